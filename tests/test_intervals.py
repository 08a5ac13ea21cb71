"""Resamples of units, and the intervals over them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import grid

import metrics


@given(st.integers(2, 6), st.integers(1, 5), st.data())
def test_a_resampled_ratio_is_that_of_the_drawn_units(n, n_boot, data):
    top, bottom = (np.array(data.draw(st.lists(grid, min_size=n, max_size=n))) for _ in range(2))
    draws = torch.randint(n, (n_boot, n), generator=torch.Generator().manual_seed(3)).numpy()
    sums = [(sum(top[d] for d in row), sum(bottom[d] for d in row)) for row in draws]
    found = metrics.resampled_ratio(top, bottom, n_boot, torch.Generator().manual_seed(3))
    expected = [over / under if under else np.nan for over, under in sums]
    np.testing.assert_array_equal(found, expected)


def test_resamples_draw_every_unit_as_often_and_none_of_a_single_one():
    counts = metrics.resamples(5, 4_000, torch.Generator().manual_seed(1))
    assert (counts.sum(1) == 5).all()
    assert np.abs(counts.mean(0) - 1).max() < 0.07  # 4 sd of a mean of 4,000 counts
    assert np.abs(counts.var(0) - 0.8).max() < 0.1
    assert np.array_equal(metrics.resamples(5, 9), metrics.resamples(5, 9))
    assert metrics.resamples(1, 9).shape == (0, 1)


def test_interval_of_three_numbers_by_hand_is_cut_and_absent_where_nothing_is_known():
    half = 4.302652729749464 * 0.1 * 1.5**0.5  # t of 2 degrees, sd of the replicates, n = 3
    replicates = np.array([0.4, 0.5, 0.6])
    low, high = metrics.interval(0.5, replicates, 3, -9.0, 9.0)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half))
    assert metrics.interval(0.9, replicates, 3)[1] == 1.0
    assert metrics.bootstrap_error(replicates, 3) == pytest.approx(0.1 * 1.5**0.5)
    known = np.append(replicates, np.nan)  # a sample in which the measure is not defined
    assert metrics.interval(0.5, known, 3, -9.0, 9.0) == (low, high)
    assert metrics.interval(0.9, replicates, 1) is None
    assert metrics.interval(0.9, replicates[:1], 3) is None
    assert metrics.interval(None, replicates, 3) is None
    assert (metrics.finite(np.nan), metrics.finite(-np.inf), metrics.finite(2.0)) == (
        None,
        None,
        2.0,
    )
    undefined = metrics.quotient(np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    np.testing.assert_array_equal(undefined, [0.5, np.nan])


def test_an_interval_over_groups_holds_the_true_mean_about_as_often_as_it_says():
    held, generator = 0, torch.Generator().manual_seed(0)
    for _ in range(200):
        sizes = torch.randint(1, 9, (12,), generator=generator).double()
        right = torch.rand(12, 8, generator=generator) < 0.7
        right &= torch.arange(8) < sizes[:, None]
        top, bottom = right.sum(1).double().numpy(), sizes.numpy()
        replicates = metrics.resampled_ratio(top, bottom, 200, generator)
        low, high = metrics.interval(float(top.sum() / bottom.sum()), replicates, 12) or (0, 0)
        held += low <= 0.7 <= high
    assert held >= 178  # 190 expected of 200
