"""The losses and the tangent gradient against loops, and where they have to be 0."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cases, grid, sizes, tensors
from toys import random_model

import tsae
from tsae_lab.jobs import losses, training

quick = settings(deadline=None, max_examples=25)


@quick
@given(st.data(), sizes("batch", "seq", "d_in"))
def test_the_squared_error_is_summed_over_d_in_and_averaged_over_tokens_that_count(data, n):
    x, x_hat = (
        data.draw(tensors(n["batch"], n["seq"], n["d_in"], elements=grid)) for _ in range(2)
    )
    weight = data.draw(tensors(n["batch"], n["seq"], elements=st.sampled_from([0.0, 1.0])))
    total = 0.0
    for b, t in torch.cartesian_prod(torch.arange(n["batch"]), torch.arange(n["seq"])).tolist():
        total += weight[b, t].item() * sum(
            (p - q) ** 2 for p, q in zip(x[b, t].tolist(), x_hat[b, t].tolist(), strict=True)
        )
    expected = total / max(weight.sum().item(), 1)
    assert training.squared_error(x, x_hat, weight).item() == pytest.approx(expected, rel=1e-6)


@quick
@given(st.data(), sizes("batch", "d_in"))
def test_squares_and_their_gradients_are_those_of_square(data, n):
    drawn = [data.draw(tensors(n["batch"], n["d_in"])) for _ in range(2)]
    x, upstream = drawn[0].requires_grad_(), drawn[1]
    got, expected = losses.squares(x), x.square()
    assert torch.equal(got, expected)
    both = [torch.autograd.grad(out, x, upstream)[0] for out in (got, expected)]
    assert torch.equal(*both)


@quick
@given(cases(), st.data())
def test_the_auxiliary_loss_is_what_dead_features_leave_of_the_error(case, data):
    static = tsae.Static(
        **{name: t.clone().requires_grad_() for name, t in vars(case.params.static).items()}
    )
    dead = sorted(data.draw(st.sets(st.integers(0, case.d_sae - 1)), label="dead"))
    k_aux = data.draw(st.integers(1, 9))
    error = data.draw(tensors(case.batch, case.seq, case.d_in, elements=grid))
    loss = losses.auxiliary_loss(
        error, case.x, static, torch.tensor(dead, dtype=torch.int64), k_aux
    )
    flat = error.flatten(0, 1)
    spread = (flat - flat.mean(0)).square().sum()
    if not dead or spread < 1e-6:
        assert loss.item() == 0
        return
    pre = ((case.x - static.b_dec) @ static.W_enc + static.b_enc).flatten(0, 1)[:, dead].detach()
    kept = pre.topk(min(k_aux, len(dead)))
    acts = torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu())
    by_ties = pre.unique(dim=1).shape == pre.shape and len(pre.unique()) == pre.numel()
    if min(k_aux, len(dead)) == len(dead) or by_ties:
        expected = (flat - acts @ static.W_dec[dead]).square().sum() / spread
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    loss.backward()
    alive = [f for f in range(case.d_sae) if f not in dead]
    assert not static.W_enc.grad[:, alive].any()
    assert not static.b_enc.grad[alive].any()
    assert not static.W_dec.grad[alive].any()
    assert static.b_dec.grad is None or not static.b_dec.grad.any()


def test_a_step_down_the_auxiliary_gradient_lets_dead_features_explain_more():
    params, g = random_model().static, torch.Generator().manual_seed(3)
    static = tsae.Static(**{name: t.clone().requires_grad_() for name, t in vars(params).items()})
    x, dead = torch.randn(4, 5, 12, generator=g), torch.tensor([3, 50, 90])
    loss = losses.auxiliary_loss(x - 1, x, static, dead, 2)
    loss.backward()
    assert static.W_enc.grad[:, dead].norm(dim=0).min() > 0
    with torch.no_grad():
        moved = {
            name: t - 1e-3 * t.grad if t.grad is not None else t for name, t in vars(static).items()
        }
    assert losses.auxiliary_loss(x - 1, x, tsae.Static(**moved), dead, 2) < loss


@pytest.mark.parametrize(
    "error", [torch.zeros(2, 3, 4), torch.full((2, 3, 4), 0.7), torch.ones(1, 1, 4)]
)
def test_the_auxiliary_loss_of_an_error_that_does_not_vary_is_zero_with_finite_gradients(error):
    g = torch.Generator().manual_seed(0)
    static = tsae.init_static(torch.ones(4), 6, generator=g)
    static = tsae.Static(**{name: t.requires_grad_() for name, t in vars(static).items()})
    loss = losses.auxiliary_loss(error, torch.ones_like(error), static, torch.tensor([0, 4]), 2)
    assert loss.item() == 0
    (loss + 0 * static.W_enc.sum()).backward()
    assert all(t.grad is None or t.grad.isfinite().all() for t in vars(static).values())


@quick
@given(cases(), st.data(), st.floats(0, 1))
def test_a_tsae_is_trained_on_what_its_code_and_its_temporal_parts_leave_to_each_other(
    case, data, coupling
):
    weight = data.draw(tensors(case.batch, case.seq, elements=st.sampled_from([0.0, 1.0])))
    own, added, codes, state = training.explain(case.params, case.x, case.dials)
    x_hat, expected, after = tsae.forward(case.params, case.x, case.dials)
    torch.testing.assert_close(own + added, x_hat, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tsae.dense(codes, case.d_sae), tsae.dense(expected, case.d_sae))
    assert torch.equal(state.memory.vals, after.memory.vals)
    torch.testing.assert_close(state.dec_h, after.dec_h)
    ungated, _ = tsae.encode(case.params, case.x, replace(case.dials, gate=False))
    torch.testing.assert_close(own, tsae.decode_static(ungated, case.params.static))
    loss, *_ = training.tsae_loss(case.params, case.x, weight, case.dials, coupling)
    left = case.x - coupling * (x_hat - own) - own
    squares = (left.square() + (case.x - x_hat).square()).sum(-1)
    mean = (squares * weight).sum().item() / max(weight.sum().item(), 1)
    assert loss.item() == pytest.approx(mean, rel=1e-3, abs=1e-4)


@quick
@given(cases())
def test_code_and_temporal_parts_learn_each_from_its_own_term(case):
    named = {
        n: t.clone().requires_grad_(n != "scale") for n, t in tsae.tensors(case.params).items()
    }
    own, added, *_ = training.explain(tsae.params_from(named), case.x, case.dials)
    code = {*training.STATIC, "bridge"}
    for part, learns in ((own, code), (added, set(named) - code)):
        grads = torch.autograd.grad(
            part.square().sum() + 0 * sum(t.sum() for t in named.values()),
            [t for n, t in named.items() if n != "scale"], retain_graph=True,
        )  # fmt: skip
        names = [n for n in named if n != "scale"]
        assert {n for n, g in zip(names, grads, strict=True) if g.any()} <= learns


@quick
@given(st.data(), sizes("d_sae", "d_in"))
def test_the_tangent_gradient_is_orthogonal_to_its_unit_rows_and_loses_nothing_else(data, n):
    grad = data.draw(tensors(n["d_sae"], n["d_in"], elements=grid))
    rows = torch.eye(8)[: n["d_sae"], : n["d_in"]]
    rows = torch.where(rows.sum(1, keepdim=True) > 0, rows, torch.eye(n["d_in"])[:1])
    tangent = training.tangent(grad, rows)
    assert torch.equal((tangent * rows).sum(1), torch.zeros(n["d_sae"]))
    assert torch.equal(tangent + (grad * rows).sum(1, keepdim=True) * rows, grad)
