"""Squared errors, and the auxiliary loss of dead features, in bounded memory."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import Function

import tsae_kernels
from tsae import Static
from tsae_lab.jobs import ranks

DEAD_VALUES = 2**26  # pre-activations of dead features that are held at a time


class _Squares(Function):
    @staticmethod
    def forward(ctx: Any, missed: Tensor) -> Tensor:
        ctx.save_for_backward(missed)
        return missed.square()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (missed,) = ctx.saved_tensors
        return 2 * missed * grads[0] if torch.is_grad_enabled() else (2 * missed).mul_(grads[0])


def squares(missed: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`missed^2`; its gradient takes one array, where that of `square` takes three."""
    return _Squares.apply(missed)  # type: ignore[no-any-return]


def auxiliary_loss(
    error: Float[Tensor, "batch seq d_in"],
    x: Float[Tensor, "batch seq d_in"],
    static: Static,
    dead: Int[Tensor, " dead"],
    k_aux: int,
    low: torch.dtype = torch.float32,
    *,
    weight: Bool[Tensor, "batch seq"] | None = None,
    still: Bool[Tensor, " dead"] | None = None,
) -> Float[Tensor, ""]:
    """`||error - error_hat||^2 / ||error - mean||^2` of the dead features alone (Gao et al. A.2).

    `error` is a constant; the `k_aux` largest of the dead count, of those that are `still`. 0 where
    nothing is dead or `error` does not vary (one token, say); `weight` leaves out padding.
    """
    if len(dead) == 0:
        return error.new_zeros(())
    flat_x, target = (x - static.b_dec).detach().flatten(0, 1), error.detach().flatten(0, 1)
    real = None if weight is None else weight.flatten()[:, None]
    if real is None:
        mean = ranks.mean(target)
    else:
        target = target * real
        mean = ranks.total(target.sum(0)) / ranks.total(real.sum()).clamp(min=1) * real
    spread = ranks.total((target - mean).square().sum())
    vals, idx = _dead_codes(flat_x, static, dead, still, k_aux, low)
    error_hat = tsae_kernels.decode_codes(vals, dead[idx], static.W_dec)
    error_hat = error_hat if real is None else error_hat * real
    varies = spread > 1e-10 * ranks.total(target.square().sum())  # less is rounding
    missed = squares(target - error_hat).sum() / torch.where(varies, spread, 1)
    return torch.where(varies, missed, 0)


class _DeadValues(Function):
    """`relu(pre)` at `idx` of the dead, `pre` a product in the dtype of `x`; `width` at a time."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, idx: Tensor, x: Tensor, *rest: Any) -> Tensor:
        W_enc, _, dead, ctx.width = rest
        vals = pre.relu()
        ctx.save_for_backward(vals > 0, idx, x, W_enc, dead)
        return vals

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        on, idx, x, W_enc, dead = ctx.saved_tensors
        d_vals = torch.where(on, grads[0], 0)
        d_W, d_b = torch.zeros_like(W_enc), W_enc.new_zeros(W_enc.shape[1])
        for begin in range(0, len(dead), ctx.width):
            features = dead[begin : begin + ctx.width]
            place, n = idx - begin, len(features)
            own = torch.where((place >= 0) & (place < n), d_vals, 0)
            d_pre = own.new_zeros(len(x), n).scatter_add_(1, place.clamp(0, n - 1), own)
            d_W[:, features] = (x.t() @ d_pre.to(x.dtype)).to(W_enc.dtype)
            d_b[features] = d_pre.sum(0)
        return None, None, None, d_W, d_b, None, None


def _dead_codes(
    x: Tensor, static: Static, dead: Tensor, still: Tensor | None, k: int, low: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Values and places in `dead` of the `k` largest; as many features at a time as fit."""
    width, vals, idx = max(DEAD_VALUES // max(len(x), 1), k), [], []
    W_enc, b_enc = static.W_enc, static.b_enc
    x_low = x.to(tsae_kernels.product_dtype(W_enc, low))
    for begin in range(0, len(dead), width):
        features = dead[begin : begin + width]
        pre = (x_low @ W_enc.detach()[:, features].to(x_low.dtype)).to(x.dtype)
        pre += b_enc.detach()[features]
        if still is not None:
            pre = pre.masked_fill(~still[begin : begin + width], -torch.inf)
        best = tsae_kernels.topk_idx(pre, min(k, len(features)))
        vals.append(pre.gather(1, best))
        idx.append(best + begin)
        del pre
    every, place = torch.cat(vals, 1), torch.cat(idx, 1)
    if len(vals) > 1:
        best = tsae_kernels.topk_idx(every, min(k, len(dead)))
        every, place = every.gather(1, best), place.gather(1, best)
    return _DeadValues.apply(every, place, x_low, W_enc, b_enc, dead, width), place  # type: ignore[return-value]
