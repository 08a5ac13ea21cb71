"""The decoder LSTM's start, against loops and a planted linear memory."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import tensors

import metrics
import tsae
from tsae import Dials, Static
from tsae_lab.jobs import warmstart


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(rows: int, seq: int, seed: int) -> tuple[torch.Tensor, Static]:
    """Tokens of two features each; half of a running mean of the tokens before is added, in other
    directions.
    """
    g = generator(seed)
    directions = torch.linalg.qr(torch.randn(24, 24, generator=generator(7))).Q
    on = torch.rand(rows, seq, 12, generator=g).topk(2).indices
    acts = torch.zeros(rows, seq, 12).scatter(-1, on, 1 + torch.rand(rows, seq, 2, generator=g))
    moved = warmstart.running_mean(acts, 0.8) @ torch.randn(12, 12, generator=generator(8))
    x = acts @ directions[:12] + moved @ directions[12:]
    W_dec = directions[:12].contiguous()
    return x, Static(
        W_enc=W_dec.t().contiguous(), b_enc=torch.zeros(12), W_dec=W_dec, b_dec=torch.zeros(24)
    )


def started(
    x: torch.Tensor, static: Static, hidden: int, valid: torch.Tensor | None = None
) -> tsae.Params:
    params = tsae.from_static(
        static, scale=0.7, hidden_enc=3, hidden_dec=hidden, generator=generator()
    )
    valid = torch.ones(x.shape[:2], dtype=torch.bool) if valid is None else valid
    return warmstart.integrators(params, x, valid, Dials(k=2))


@settings(deadline=None, max_examples=25)
@given(tensors(2, 5, 3), st.floats(0, 0.99))
def test_the_running_mean_is_the_weighted_sum_of_what_came_before(r, decay):
    expected = torch.zeros_like(r)
    for t in range(5):
        for j in range(t + 1):
            expected[:, t] += (1 - decay) * decay**j * r[:, t - j]
    torch.testing.assert_close(warmstart.running_mean(r, decay), expected, rtol=1e-4, atol=1e-4)


def test_the_start_explains_what_is_linear_in_the_past_on_held_out_tokens():
    x, static = planted(96, 20, seed=1)
    new, _ = planted(32, 20, seed=2)
    params = started(x, static, hidden=48)
    dials = Dials(k=2, beta=0.0)
    before, after = (
        tsae.forward(p, new, d)[0]
        for p, d in ((params, replace(dials, recur=False)), (params, dials))
    )
    assert metrics.fve(new, after) > metrics.fve(new, before) + 0.8 * (1 - metrics.fve(new, before))


def test_the_start_changes_only_the_decoder_lstm():
    x, static = planted(8, 6, seed=1)
    one = tsae.from_static(static, scale=0.7, hidden_enc=3, hidden_dec=9, generator=generator())
    other = warmstart.integrators(one, x, torch.ones(8, 6, dtype=torch.bool), Dials(k=2))
    changed = {
        n for n, t in tsae.tensors(one).items() if not torch.equal(t, tsae.tensors(other)[n])
    }
    assert changed == {"dec_W_x", "dec_W_h", "dec_b", "W_out"}


@pytest.mark.parametrize(
    "hidden", [1, 3, 4, 200]
)  # fewer units than decays, and more than directions
def test_any_number_of_units_gives_finite_weights(hidden):
    x, static = planted(8, 6, seed=1)
    params = started(x, static, hidden)
    assert all(torch.isfinite(t).all() for t in vars(params.temporal).values())


def test_where_every_token_begins_a_document_all_units_read_the_token_alone():
    """And none of the past: the same start whatever the order of the tokens."""
    x, static = planted(64, 9, seed=1)
    one = tsae.from_static(static, scale=0.7, hidden_enc=3, hidden_dec=8, generator=generator())
    every = torch.ones(64, 9, dtype=torch.bool)
    turned = x[:, torch.randperm(9, generator=generator())]
    told, again = (
        warmstart.integrators(one, text, every, Dials(k=2), starts=every) for text in (x, turned)
    )
    forget = told.temporal.dec_b.view(4, 8)[2]
    assert (forget < -4).all()
    torch.testing.assert_close(
        tsae.forward(told, x, Dials(k=2), starts=every)[0],
        tsae.forward(again, x, Dials(k=2), starts=every)[0],
        rtol=1e-2, atol=1e-2,
    )  # fmt: skip
    usual = warmstart.integrators(one, x, every, Dials(k=2))
    assert (usual.temporal.dec_b.view(4, 8)[2] > 0).any()


def test_padding_has_no_influence_and_no_token_is_refused():
    x, static = planted(8, 6, seed=1)
    valid = torch.ones(8, 6, dtype=torch.bool)
    padded, mask = (
        torch.cat([x, 50 * torch.ones(8, 2, 24)], 1),
        torch.cat([valid, torch.zeros(8, 2).bool()], 1),
    )
    one, other = started(x, static, 8), started(padded, static, 8, mask)
    torch.testing.assert_close(one.temporal.W_out, other.temporal.W_out, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="at least one valid token"):
        started(x, static, 8, ~valid)
