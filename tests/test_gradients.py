"""Gradients of the public functions against finite differences, and under `torch.func`."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils import _pytree as pytree
from toys import ROOT, random_model

import tsae
from tsae import Codes, Dials
from tsae_lab.jobs import training

DIALS = Dials(k=4, window=3)
SETTINGS = [
    DIALS,
    replace(DIALS, mix=0.5, cap=float("inf")),
    replace(DIALS, beta=0.0, recur=False),
    replace(DIALS, gate=False),
]


def doubles(*shape: int, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def params() -> tsae.Params:
    """In float64, with open, closed and half-open gates."""
    return tsae.to(random_model(d_in=5, d_sae=16, hidden=2), dtype=torch.float64)


def leaves(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def squared(params: tsae.Params, x: torch.Tensor) -> torch.Tensor:
    return (tsae.forward(params, x, DIALS)[0] - x).square().sum()


# ------------------------------------------------------------------------------- finite differences


def test_a_static_sae_has_the_gradients_of_finite_differences_in_every_tensor(params):
    def run(x, *weights):
        static = tsae.Static(**dict(zip(tsae.tensors(params.static), weights, strict=True)))
        codes = tsae.encode_static(x, static, 3)
        return codes.vals, tsae.decode_static(codes, static)

    inputs = leaves([doubles(2, 3, 5), *tsae.tensors(params.static).values()])
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("dials", SETTINGS, ids=str)
def test_a_tsae_has_the_gradients_of_finite_differences_in_every_tensor(params, dials):
    state = tsae.forward(params, doubles(2, 4, 5, seed=1), dials)[2]
    names = [name for name in tsae.tensors(params) if name != "bridge"]  # acts on the choice alone
    held = [state.enc_h, state.enc_c, state.dec_h, state.dec_c]

    def run(x, enc_h, enc_c, dec_h, dec_c, *tensors):
        named = tsae.tensors(params) | dict(zip(names, tensors, strict=True))
        before = tsae.State(state.memory, enc_h, enc_c, dec_h, dec_c)
        x_hat, codes, after = tsae.forward(tsae.params_from(named), x, dials, before)
        return x_hat, codes.vals, after.enc_h, after.dec_c

    inputs = leaves([doubles(2, 4, 5), *held, *(tsae.tensors(params)[name] for name in names)])
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("dials", SETTINGS, ids=str)
def test_decoding_has_the_gradient_of_finite_differences_in_the_codes(params, dials):
    codes, state = tsae.encode(params, doubles(2, 4, 5), dials)
    vals = codes.vals * torch.tensor([0.0, 1.0, 1.0, 1.0])  # of a feature that is off, too

    def run(vals):
        x_hat, after = tsae.decode(params, Codes(vals, codes.idx), dials, state)
        return x_hat, after.dec_h

    assert torch.autograd.gradcheck(run, leaves([vals]), fast_mode=True)


# ----------------------------------------------------------------------------- training's shortcuts


def test_in_training_b_dec_and_the_codes_learn_from_the_static_part_of_the_decoder_alone(params):
    x, upstream = doubles(2, 4, 5), doubles(2, 4, 5, seed=1)
    named = dict(zip(tsae.tensors(params), leaves([*tsae.tensors(params).values()]), strict=True))
    own = tsae.params_from(named)
    explained, added, *_ = training.explain(own, x, DIALS)
    torch.testing.assert_close(explained + added, tsae.forward(params, x, DIALS)[0])
    (explained + added).backward(upstream)
    torch.testing.assert_close(named["b_dec"].grad, upstream.sum((0, 1)))
    codes, _ = tsae.encode(params, x, replace(DIALS, gate=False))
    dense_grad = tsae.dense(codes, 16).flatten(0, 1).t() @ upstream.flatten(0, 1)
    torch.testing.assert_close(named["W_dec"].grad, dense_grad)
    (vals,) = leaves([codes.vals])
    decoded, _ = tsae.decode(params, Codes(vals, codes.idx), DIALS, detach=True)
    decoded.backward(upstream)
    expected = (upstream @ params.static.W_dec.t()).gather(-1, codes.idx)
    torch.testing.assert_close(vals.grad, expected)


def test_in_training_a_closed_gate_gets_the_gradient_that_opens_it(params):
    t = params.temporal
    for encode in (tsae.encode, lambda *call: training.explain(*call)[2:]):
        (b_gate,) = leaves([t.b_gate * 0 - 1])
        closed = replace(t, W_gate=t.W_gate * 0, b_gate=b_gate)
        codes, _ = encode(replace(params, temporal=closed), doubles(2, 4, 5), DIALS)
        assert not codes.vals.any()
        (grad,) = torch.autograd.grad(-codes.vals.sum(), b_gate)
        assert bool((grad < 0).any()) == (encode is not tsae.encode)
        assert not (grad > 0).any()


# --------------------------------------------------------------------------------------- torch.func


def test_torch_func_has_the_gradients_of_backward(params):
    x = doubles(2, 4, 5)
    named = dict(zip(tsae.tensors(params), leaves([*tsae.tensors(params).values()]), strict=True))
    (own_x,) = leaves([x])
    squared(tsae.params_from(named), own_x).backward()
    by_params, by_x = torch.func.grad(squared, argnums=(0, 1))(params, x)
    torch.testing.assert_close(by_x, own_x.grad)
    for name, grad in tsae.tensors(by_params).items():
        torch.testing.assert_close(grad, named[name].grad, msg=name)


def test_jacobians_and_second_derivatives_come_from_torch_func(params):
    x = doubles(1, 3, 5)
    static = params.static

    def tokens(x):
        return tsae.decode_static(tsae.encode_static(x, static, 3), static)

    for run in (tokens, lambda x: tsae.forward(params, x, DIALS)[0]):
        expected = torch.autograd.functional.jacobian(run, x)
        torch.testing.assert_close(torch.func.jacrev(run)(x), expected)
        torch.testing.assert_close(torch.func.jacfwd(run)(x), expected)
    curvature = torch.func.hessian(squared, argnums=1)(params, x).view(15, 15)
    torch.testing.assert_close(curvature, curvature.t())
    step = doubles(1, 3, 5, seed=1) * 1e-4
    slopes = [torch.func.grad(squared, argnums=1)(params, x + sign * step) for sign in (1, -1)]
    change = (curvature @ step.flatten()).view_as(x)
    torch.testing.assert_close((slopes[0] - slopes[1]) / 2, change, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5)])
def test_torch_func_takes_the_gradient_of_no_stream_and_no_token(params, shape):
    assert torch.func.grad(squared, argnums=1)(params, torch.zeros(shape).double()).shape == shape


def test_vmap_runs_over_sequences_states_and_models(params):
    x = doubles(3, 4, 5)
    whole, _, state = tsae.forward(params, x, DIALS)
    later = tsae.forward(params, x, DIALS, state)[0]

    def alone(state, x):
        state = pytree.tree_map(lambda tensor: tensor[None], state)
        return tsae.forward(params, x[None], DIALS, state)[0][0]

    torch.testing.assert_close(torch.vmap(alone)(state, x), later)
    half = pytree.tree_map(lambda tensor: tensor / 2, params)
    both = pytree.tree_map(lambda *tensors: torch.stack(tensors), params, half)
    outs = torch.vmap(lambda one: tsae.forward(one, x, DIALS)[0])(both)
    torch.testing.assert_close(outs[0], whole)
    torch.testing.assert_close(outs[1], tsae.forward(half, x, DIALS)[0])


def test_a_gradient_of_a_gradient_is_refused_not_wrong(params):
    (x,) = leaves([doubles(1, 3, 5)])
    needs = "gradients of tsae can be taken once, one by one; take higher or batched ones by torch"
    with pytest.raises(RuntimeError, match=needs):
        torch.autograd.grad(squared(params, x), x, create_graph=True)
    with pytest.raises(RuntimeError, match=needs):
        torch.autograd.functional.jacobian(lambda x: squared(params, x), x, vectorize=True)


# ------------------------------------------------------------------------------------ torch.compile

COMPILED = """
import torch, tsae
from torch.utils._pytree import tree_leaves

g = torch.Generator().manual_seed(0)
static = tsae.init_static(torch.zeros(6), 24, generator=g)
params = tsae.from_static(static, scale=1.0, hidden_enc=3, hidden_dec=5, generator=g)
x, dials = torch.randn(2, 5, 6, generator=g), tsae.Dials(k=3, window=2)
codes, state = tsae.encode(params, x, dials)
for name, args in {
    "encode_static": (x, static, 3),
    "decode_static": (codes, static),
    "encode": (params, x, dials),
    "decode": (params, codes, dials, state),
    "forward": (params, x, dials),
}.items():
    eager = getattr(tsae, name)
    compiled = torch.compile(eager, backend="eager", fullgraph=True)
    for got, expected in zip(tree_leaves(compiled(*args)), tree_leaves(eager(*args)), strict=True):
        torch.testing.assert_close(got, expected)
ours = theirs = None  # a stream goes on in the compiled function, too
for piece in x.repeat(1, 4, 1).split(3, 1):
    a, _, ours = compiled(params, piece, dials, ours)
    b, _, theirs = eager(params, piece, dials, theirs)
    torch.testing.assert_close(a, b)
"""


def test_the_model_compiles_into_one_graph():
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
