"""The losses and the tangent gradient against loops, and where they have to be 0."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cases, grid, sizes, tensors
from toys import random_model

import tsae
from tsae_lab.jobs import training

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
@given(cases(), st.data())
def test_the_auxiliary_loss_is_what_dead_features_leave_of_the_error(case, data):
    static = tsae.Static(
        **{name: t.clone().requires_grad_() for name, t in vars(case.params.static).items()}
    )
    dead = sorted(data.draw(st.sets(st.integers(0, case.d_sae - 1)), label="dead"))
    k_aux = data.draw(st.integers(1, 9))
    error = data.draw(tensors(case.batch, case.seq, case.d_in, elements=grid))
    loss = training.auxiliary_loss(
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
    loss = training.auxiliary_loss(x - 1, x, static, dead, 2)
    loss.backward()
    assert static.W_enc.grad[:, dead].norm(dim=0).min() > 0
    with torch.no_grad():
        moved = {
            name: t - 1e-3 * t.grad if t.grad is not None else t for name, t in vars(static).items()
        }
    assert training.auxiliary_loss(x - 1, x, tsae.Static(**moved), dead, 2) < loss


@pytest.mark.parametrize(
    "error", [torch.zeros(2, 3, 4), torch.full((2, 3, 4), 0.7), torch.ones(1, 1, 4)]
)
def test_the_auxiliary_loss_of_an_error_that_does_not_vary_is_zero_with_finite_gradients(error):
    g = torch.Generator().manual_seed(0)
    static = tsae.init_static(torch.ones(4), 6, generator=g)
    static = tsae.Static(**{name: t.requires_grad_() for name, t in vars(static).items()})
    loss = training.auxiliary_loss(error, torch.ones_like(error), static, torch.tensor([0, 4]), 2)
    assert loss.item() == 0
    (loss + 0 * static.W_enc.sum()).backward()
    assert all(t.grad is None or t.grad.isfinite().all() for t in vars(static).values())


@quick
@given(cases(), st.data())
def test_distillation_measures_the_distance_to_the_teachers_code_and_reconstruction(case, data):
    teacher = replace(case.params.static, W_dec=case.params.static.W_dec.flip(0))
    weight = data.draw(tensors(case.batch, case.seq, elements=st.sampled_from([0.0, 1.0])))
    loss, x_hat, codes, _ = training.distillation_loss(
        case.params, case.x, teacher, case.dials, weight
    )
    goal = tsae.encode_static(case.x, teacher, case.dials.k)
    acts = tsae.dense(goal, case.d_sae)
    total = 0.0
    for b, t in torch.cartesian_prod(torch.arange(case.batch), torch.arange(case.seq)).tolist():
        if weight[b, t] > 0:
            x_goal = acts[b, t] @ teacher.W_dec + teacher.b_dec
            total += (x_goal - x_hat[b, t]).square().sum().item()
            total += sum(
                (v - acts[b, t, f]).item() ** 2
                for v, f in zip(codes.vals[b, t], codes.idx[b, t], strict=True)
            )
    assert loss.item() == pytest.approx(total / max(weight.sum().item(), 1), rel=1e-4, abs=1e-5)


@quick
@given(st.data(), sizes("d_sae", "d_in"))
def test_the_tangent_gradient_is_orthogonal_to_its_unit_rows_and_loses_nothing_else(data, n):
    grad = data.draw(tensors(n["d_sae"], n["d_in"], elements=grid))
    rows = torch.eye(8)[: n["d_sae"], : n["d_in"]]
    rows = torch.where(rows.sum(1, keepdim=True) > 0, rows, torch.eye(n["d_in"])[:1])
    tangent = training.tangent(grad, rows)
    assert torch.equal((tangent * rows).sum(1), torch.zeros(n["d_sae"]))
    assert torch.equal(tangent + (grad * rows).sum(1, keepdim=True) * rows, grad)
