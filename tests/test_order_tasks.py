"""The proofs: one token says no more than the ceiling, the past says what the oracle does."""

import pytest
import torch

from tsae_lab.data import order_tasks
from tsae_lab.data.order_tasks import ORDER_TASKS, linear_score


def made(name, n_seq=400, seq=48, seed=0):
    return ORDER_TASKS[name](n_seq, seq, torch.Generator().manual_seed(seed))


def symbols(task):
    """Which symbol a token shows, one-hot: all that one token can say."""
    flat = task.x.flatten(0, 1)
    centres = flat[:1]
    for row in flat[:1000]:
        if (row - centres).norm(dim=1).min() > 0.7:
            centres = torch.cat([centres, row[None]])
    near = torch.cdist(flat, centres).argmin(1)
    return torch.nn.functional.one_hot(near, len(centres)).float().unflatten(0, task.x.shape[:2])


@pytest.mark.parametrize("name", ORDER_TASKS)
def test_a_single_token_reaches_the_ceiling_and_no_more(name):
    task = made(name)
    score = linear_score(symbols(task), task)
    assert score == pytest.approx(task.ceiling, abs=0.03)
    assert task.ceiling < task.oracle


def test_the_sign_follows_from_two_neighbours():
    task = made("signed_motion", n_seq=60)
    place = symbols(task)
    pairs = (place[:, 1:, :, None] * place[:, :-1, None]).flatten(2)
    after = torch.nn.functional.pad(pairs, (0, 0, 1, 0))
    assert linear_score(after[:, 1:], _from(task, 1)) > 0.99


def test_the_time_since_a_switch_follows_from_whether_neighbours_are_equal():
    task = made("since_switch", n_seq=120)
    same = (symbols(task)[:, 1:] * symbols(task)[:, :-1]).sum(2)
    same = torch.nn.functional.pad(same, (order_tasks.LONGEST, 0))  # 0 before the start
    back = same.unfold(1, order_tasks.LONGEST, 1).flip(2).cumprod(2)  # (n_seq, seq, 16)
    assert linear_score(back, task) > 0.999


def test_the_rate_follows_from_the_past_events():
    task = made("self_exciting", n_seq=120)
    rate = task.answer - order_tasks.BASE
    before = torch.nn.functional.pad(rate[:, :-1], (1, 0))
    event = (rate - order_tasks.DECAY * before) / order_tasks.JUMP
    torch.testing.assert_close(event, event.round(), atol=1e-4, rtol=0)
    event = event.round()
    shown = symbols(task)
    agree = [(shown[..., i] == event).float().mean() for i in range(shown.shape[2])]
    assert max(agree) > 0.999  # one symbol is the event
    assert 0.05 < event.mean() < 0.3


def test_equal_seeds_give_equal_tasks_and_other_seeds_others():
    for name in ORDER_TASKS:
        assert torch.equal(made(name).x, made(name).x)
        assert not torch.equal(made(name).x, made(name, seed=1).x)


def test_a_probe_of_the_answer_itself_scores_1_and_of_noise_what_chance_gives():
    for name in ORDER_TASKS:
        task = made(name)
        assert linear_score(task.answer[..., None], task) == pytest.approx(1, abs=1e-3)
        noise = torch.randn(400, 48, 3, generator=torch.Generator().manual_seed(1))
        assert linear_score(noise, task) == pytest.approx(0.5 if task.binary else 0, abs=0.03)


def _from(task, begin):
    return order_tasks.OrderTask(
        **vars(task) | {"x": task.x[:, begin:], "answer": task.answer[:, begin:]}
    )
