"""Codes with another number of features for each token, as lists: no work for what is off.

An entry is a value, its token and its feature; entries are in the order of their tokens. What they
compute, and its gradients, is what a dense code does, at the cost of the entries alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, eq=False, kw_only=True)
class Entries:
    """Where a code is on."""

    token: Int[Tensor, " entries"]  # ascending
    feature: Int[Tensor, " entries"]
    n_tokens: int

    @property
    def begin(self) -> Int[Tensor, " tokens"]:
        """The first entry of each token."""
        return _begin(self.token, self.n_tokens)

    def within(self, first: int, end: int) -> tuple["Entries", Int[Tensor, " some"]]:
        """The entries of the features `first` to `end - 1`, and which of all they are."""
        some = ((self.feature >= first) & (self.feature < end)).nonzero()[:, 0]
        token, feature = self.token[some], self.feature[some]
        return Entries(token=token, feature=feature, n_tokens=self.n_tokens), some


def entries_where(on: Bool[Tensor, "tokens d_sae"]) -> Entries:
    """The entries of a mask."""
    token, feature = on.nonzero(as_tuple=True)
    return Entries(token=token, feature=feature, n_tokens=len(on))


def ragged_values(
    pre: Float[Tensor, "tokens d_sae"], entries: Entries, x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"],
) -> Float[Tensor, " entries"]:  # fmt: skip
    """`pre` at the entries, where it is `x W_enc + b_enc`: the gradient goes to the latter two."""
    vals = pre.detach()[entries.token, entries.feature].to(x.dtype)
    return _Values.apply(vals, entries, x.detach(), W_enc, b_enc)  # type: ignore[no-any-return]


def ragged_decode(
    vals: Float[Tensor, " entries"], entries: Entries, W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "tokens d_in"]:
    """The sum of `vals W_dec[feature]` by token; 0 where a token has no entry."""
    return _Decoded.apply(vals, entries, W_dec)  # type: ignore[no-any-return]


def ragged_dense(
    vals: Float[Tensor, " entries"], entries: Entries, width: int
) -> Float[Tensor, "tokens width"]:
    """The dense form of entries whose features are all below `width`."""
    zeros = vals.new_zeros(entries.n_tokens, width)
    return zeros.index_put((entries.token, entries.feature), vals)


def _begin(ascending: Tensor, n: int) -> Tensor:
    return torch.searchsorted(ascending, torch.arange(n, device=ascending.device))


def _codes_t_product(vals: Tensor, entries: Entries, x: Tensor, d_sae: int) -> Tensor:
    """`codes^T x`, a weight's gradient: entries sorted by feature, then summed in bags."""
    feature, order = entries.feature.sort(stable=True)
    token, begin = entries.token[order], _begin(feature, d_sae)
    return F.embedding_bag(token, x, begin, per_sample_weights=vals[order], mode="sum")


class _Values(Function):
    @staticmethod
    def forward(ctx, vals, entries, x, W_enc, b_enc):  # noqa: ARG004
        ctx.save_for_backward(x)
        ctx.entries, ctx.d_sae = entries, len(b_enc)
        return vals.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,), (grad,) = ctx.saved_tensors, grads
        d_W = _codes_t_product(grad, ctx.entries, x, ctx.d_sae).t()
        d_b = grad.new_zeros(ctx.d_sae).index_add_(0, ctx.entries.feature, grad)
        return None, None, None, d_W, d_b


class _Decoded(Function):
    @staticmethod
    def forward(ctx, vals, entries, W_dec):
        ctx.save_for_backward(vals, W_dec)
        ctx.entries = entries
        begin = entries.begin
        return F.embedding_bag(entries.feature, W_dec, begin, per_sample_weights=vals, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # pyright: ignore[reportIncompatibleMethodOverride]
        (vals, W_dec), entries, grad = ctx.saved_tensors, ctx.entries, grads[0].contiguous()
        d_vals = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad, W_dec, entries.feature, entries.begin, entries.token, 0, -1
        )
        return d_vals, None, _codes_t_product(vals, entries, grad, len(W_dec))
