"""Dtypes and shapes that the model takes, and its dataclasses as trees of tensors."""

import re
import subprocess
import sys
from dataclasses import make_dataclass, replace

import pytest
import torch
from torch.utils import _pytree as pytree
from toys import ROOT, random_model

import tsae
import tsae_kernels
from tsae import Codes, Dials

DIALS = Dials(k=4, window=3)
HALVES = (torch.float16, torch.bfloat16)


def activations(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def learn(params: tsae.Params, x: torch.Tensor, dials: Dials) -> tuple:
    """Reconstruction, codes, state and the gradient of every parameter."""
    named = {name: t.clone().requires_grad_() for name, t in tsae.tensors(params).items()}
    x_hat, codes, state = tsae.forward(tsae.params_from(named), x, dials)
    (x_hat.double() - x.double()).square().mean().backward()
    return x_hat, codes, state, {name: t.grad for name, t in named.items()}


def near(got: torch.Tensor, expected: torch.Tensor) -> float:
    expected = expected.double()
    return ((got.double() - expected).norm() / expected.norm().clamp(min=1e-12)).item()


# ------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", [torch.float64, *HALVES])
def test_codes_reconstruction_state_and_gradients_are_in_the_dtype_of_the_parameters(dtype):
    params = random_model()
    x = params.static.W_dec[:10].view(2, 5, 12) * 8 + params.static.b_dec  # no close call in top-k
    dials = replace(DIALS, k=1)
    x_hat, codes, state, grads = learn(tsae.to(params, dtype=dtype), x, dials)
    expected, wanted, _, slopes = learn(params, x, dials)
    floats = [x_hat, codes.vals, *grads.values(), state.memory.vals]
    floats += [state.enc_h, state.enc_c, state.dec_h, state.dec_c]
    assert {tensor.dtype for tensor in floats} == {dtype}
    assert torch.equal(codes.idx, wanted.idx)
    assert near(x_hat, expected) < (0.02 if dtype in HALVES else 1e-6)
    assert near(grads["W_dec"], slopes["W_dec"]) < (0.1 if dtype in HALVES else 1e-4)


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16])
def test_a_model_in_float64_computes_in_float64(low):
    params, x = tsae.to(random_model(), dtype=torch.float64), activations(2, 5, 12).double()
    static = params.static
    pre = (x - static.b_dec) @ static.W_enc + static.b_enc
    vals, idx = pre.topk(4)
    codes = tsae.encode_static(x, static, 4, low)
    torch.testing.assert_close(codes.vals.sort(-1).values, vals.relu().sort(-1).values)
    acts = torch.zeros_like(pre).scatter(-1, idx, vals.relu())
    x_hat = tsae.decode_static(codes, static)
    torch.testing.assert_close(x_hat, acts @ static.W_dec + static.b_dec, rtol=1e-13, atol=1e-13)
    exact = tsae.forward(params, x, DIALS)[0]
    assert torch.equal(tsae.forward(params, x, replace(DIALS, low=low))[0], exact)
    plain = tsae.forward(tsae.to(params, dtype=torch.float32), x, DIALS)[0]
    assert 0 < near(plain, exact) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, *HALVES])
def test_activations_of_another_dtype_are_read_in_that_of_the_parameters(dtype):
    params, x = random_model(), activations(2, 5, 12).to(dtype).requires_grad_()
    x_hat, codes, _ = tsae.forward(params, x, DIALS)
    expected, wanted, _ = tsae.forward(params, x.float(), DIALS)
    assert torch.equal(x_hat, expected)
    assert torch.equal(codes.vals, wanted.vals)
    (grad,) = torch.autograd.grad(x_hat.sum(), x)
    assert grad.dtype == dtype
    single = tsae.encode_static(x.float(), params.static, 4)
    assert torch.equal(tsae.encode_static(x, params.static, 4).vals, single.vals)
    other = Codes(single.vals.to(dtype), single.idx)
    assert tsae.decode_static(other, params.static).dtype == torch.float32


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(low):
    params, x, dials = random_model(), activations(2, 5, 12), replace(DIALS, low=low)
    outside = pytree.tree_leaves(tsae.forward(params, x, dials))
    outside += pytree.tree_leaves(tsae.encode_static(x, params.static, 4, low))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pytree.tree_leaves(tsae.forward(params, x, dials))
        inside += pytree.tree_leaves(tsae.encode_static(x, params.static, 4, low))
        by_name = tsae.pre_acts(static=params.static, x=x, low=low)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))
    assert torch.equal(by_name, tsae.pre_acts(x, params.static, low))


def test_an_exact_function_runs_with_autocast_off_and_one_in_float64_in_float64():
    W = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (W @ W).dtype == torch.bfloat16
        assert tsae_kernels.exact(torch.matmul)(W, W).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
    for low in (torch.float32, torch.bfloat16):
        assert tsae_kernels.product_dtype(W, low) == low
        assert tsae_kernels.product_dtype(W.double(), low) == torch.float64


# ------------------------------------------------------------------------------ one line of refusal

REFUSED = [
    (
        torch.zeros(5, 12),
        "activations need shape (batch, seq, d_in=12) and floats; got shape (5, 12)",
    ),
    (torch.zeros(12), "got shape (12,) of torch.float32"),
    (torch.tensor(0.0), "got shape () of torch.float32"),
    (torch.zeros(1, 2, 3, 12), "got shape (1, 2, 3, 12) of torch.float32"),
    (torch.zeros(1, 2, 12, dtype=torch.int64), "got shape (1, 2, 12) of torch.int64"),
    (torch.zeros(1, 2, 12, dtype=torch.bool), "got shape (1, 2, 12) of torch.bool"),
    (torch.zeros(1, 2, 12, dtype=torch.complex64), "got shape (1, 2, 12) of torch.complex64"),
    (torch.zeros(1, 2, 11), "the encoder needs d_in=12; got activations of width 11"),
]


@pytest.mark.parametrize(("x", "message"), REFUSED)
def test_activations_that_do_not_fit_are_refused_with_what_is_needed(x, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the message is compared below
        tsae_kernels.fitted(x, tsae.tensors(random_model()))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


ASKS = """
import torch, tsae
static = tsae.init_static(torch.zeros(6), 24, generator=torch.Generator())
params = tsae.from_static(static, scale=1.0, generator=torch.Generator())
dials, message = tsae.Dials(k=3), "activations need shape (batch, seq, d_in=6) and floats; got "
for x in (torch.zeros(5, 6), torch.zeros(6), torch.zeros(1, 5, 6, dtype=torch.int64)):
    for call in (
        lambda: tsae.encode(params, x, dials),
        lambda: tsae.forward(params, x, dials),
        lambda: tsae.encode_static(x, static, 3),
        lambda: tsae.pre_acts(x, static),
    ):
        try:
            call()
        except ValueError as error:
            assert message in str(error), error
        else:
            raise AssertionError(x.shape)
"""


def test_every_encoder_refuses_them_where_no_checker_of_types_is_installed():
    command = [sys.executable, "-c", ASKS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("vals", "idx", "message"),
    [
        (torch.ones(2, 3), torch.zeros(2, 3).long(), "got vals (2, 3) and idx (2, 3)"),
        (torch.ones(2, 3, 4), torch.zeros(2, 3, 1).long(), "got vals (2, 3, 4) and idx (2, 3, 1)"),
        (
            torch.ones(2, 3, 4).long(),
            torch.zeros(2, 3, 4).long(),
            "got torch.int64 and torch.int64",
        ),
        (torch.ones(2, 3, 4), torch.zeros(2, 3, 4), "got torch.float32 and torch.float32"),
    ],
)
def test_codes_that_do_not_fit_are_refused_with_what_is_needed(vals, idx, message):
    with pytest.raises(ValueError, match=r"^codes need .*; " + re.escape(message) + "$"):
        tsae_kernels.flat_codes(vals, idx, torch.zeros(1))


def test_parameters_of_several_dtypes_and_a_state_of_another_are_refused():
    params, x = random_model(), activations(2, 5, 12)
    mixed = replace(params, static=tsae.to(params.static, dtype=torch.float64))
    needs = "parameters need to be of one floating dtype; got torch.float32, torch.float64"
    with pytest.raises(ValueError, match=needs):
        tsae.encode(mixed, x, DIALS)
    state = tsae.to(tsae.start_state(params, 2, DIALS), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"needs a state of .*float32; got .*float64"):
        tsae.forward(params, x, DIALS, state)


# -------------------------------------------------------------------------------------------- trees


def trees() -> list:
    params, x = random_model(), activations(2, 5, 12)
    _, codes, state = tsae.forward(params, x, DIALS)
    life = tsae.begin_chunks(tsae.start_lifecycle(96, x), torch.tensor([True, False]))
    life = tsae.advance(life, codes, torch.ones(2, 5))
    seen = tsae.see(params, x, DIALS, state)
    sae = tsae.Sae(params=params, dials=DIALS)
    return [params, params.static, params.temporal, sae, codes, state.memory, state, seen, life]


@pytest.mark.parametrize("tree", trees(), ids=lambda tree: type(tree).__name__)
def test_a_tree_goes_to_a_device_and_a_dtype_its_whole_numbers_stay_whole(tree):
    moved = tsae.to(tree, dtype=torch.float64)
    assert type(moved) is type(tree)
    for before, after in zip(*map(pytree.tree_leaves, (tree, moved)), strict=True):
        if before is None:  # `starts` of tokens that no document begins in
            assert after is None
            continue
        assert after.dtype == (torch.float64 if before.is_floating_point() else before.dtype)
        assert torch.equal(after, before.to(after.dtype))
    leaves = [leaf for leaf in pytree.tree_leaves(tsae.to(tree, "meta")) if leaf is not None]
    assert {leaf.device.type for leaf in leaves} == {"meta"}
    assert all(a is b for a, b in zip(*map(pytree.tree_leaves, (tree, tsae.to(tree))), strict=True))
    with pytest.raises(ValueError, match=r"need a floating dtype; got torch\.int64"):
        tsae.to(tree, dtype=torch.int64)


def test_what_is_no_tensor_stays_as_it_is_in_a_tree():
    sae = tsae.Sae(params=random_model(), dials=DIALS)
    memory = tsae.encode(sae.params, activations(2, 5, 12), DIALS)[1].memory
    assert tsae.to(sae, dtype=torch.float64).dials == DIALS
    assert pytree.tree_map(lambda leaf: leaf * 2, memory).pushed == 5
    assert len(pytree.tree_leaves(sae)) == len(tsae.tensors(sae.params))
    alone = tsae.start_lifecycle(3, torch.zeros(1))
    assert tsae.to(alone, dtype=torch.float64).streams is None


@pytest.mark.parametrize("names", [(), ("b",)])
def test_register_tree_keeps_constants_apart_from_tensors(names):
    pair = make_dataclass("Pair", ["a", "b"])
    tsae_kernels.register_tree(pair, *names)
    doubled = pytree.tree_map(lambda leaf: 2 * leaf, pair(1, 3))
    assert (doubled.a, doubled.b) == (2, 3 if names else 6)
    named = pytree.tree_map_with_path(lambda path, _: path[0].name, pair(1, 3))
    assert (named.a, named.b) == ("a", 3 if names else "b")
