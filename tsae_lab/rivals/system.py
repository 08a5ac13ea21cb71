"""A rival as a record of pure functions on named tensors, which the one training loop takes.

Named tensors are those of a static SAE (`W_enc`, `b_enc`, `W_dec`, `b_dec`; rows of `W_dec` of unit
norm) and what a system has beside them. `x` is 0 at padding, which lies at a sequence's end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Generator, Tensor

import tsae
import tsae_kernels
from tsae import Codes
from tsae_lab.rivals.ragged import Entries, entries_where

Named = Mapping[str, Tensor]
Run = Callable[[Float[Tensor, "batch seq d_in"]], tuple[Float[Tensor, "batch seq d_in"], Codes]]
"""Reconstruction and codes of activations, every sequence from an empty state."""
BUFFERS = ("unit", "threshold")  # tensors of rivals that no gradient moves
KEEP = 0.9  # of the running mean of a threshold, per step


@dataclass(frozen=True, eq=False, kw_only=True)
class Explained:
    """What a system makes of a batch in training."""

    loss: Float[Tensor, ""]
    x_hat: Float[Tensor, "batch seq d_in"]
    codes: Codes
    buffers: dict[str, Tensor] = field(default_factory=dict)  # new values of tensors of BUFFERS


@dataclass(frozen=True, eq=False, kw_only=True)
class System:
    """How a rival starts, what it is trained on, and what it does when it is trained."""

    start: Callable[[Float[Tensor, "tokens d_in"], Generator], dict[str, Tensor]]
    explain: Callable[[Named, Tensor, Tensor, float], Explained]
    """of named tensors, x, weight (0 at padding) and the share of the steps that is done"""
    run: Callable[[Named, Tensor], tuple[Tensor, Codes]]
    window: int = 1  # tokens that one row of `W_enc` and `W_dec` spans
    whole: bool = False  # whether a step needs whole sequences, not pieces of them
    revive: bool = True  # whether the auxiliary loss revives dead features
    resample: Callable[[Named, Tensor, Tensor, Tensor, Generator], dict[str, Tensor]] | None = None
    """tensors with the dead features begun anew, of named, x, x_hat, a mask of the dead"""


def squared_error(
    x: Float[Tensor, "batch seq d_in"],
    x_hat: Float[Tensor, "batch seq d_in"],
    weight: Float[Tensor, "batch seq"],
) -> Float[Tensor, ""]:
    """Squared error, summed over d_in, averaged over the tokens with `weight` 1 (padding has 0)."""
    return ((x - x_hat).square().sum(-1) * weight).sum() / weight.sum().clamp(min=1)


def start_tensors(
    tokens: Float[Tensor, "tokens d_in"], d_sae: int, generator: Generator
) -> dict[str, Tensor]:
    """The start of our static SAE, and `unit`, the mean squared norm of `x - b_dec`.

    Coefficients of penalties are relative to `unit`, so that no scale of x changes what they mean.
    """
    named = tsae.tensors(tsae.init_static(tokens.mean(0), d_sae, generator=generator))
    return named | {"unit": (tokens - named["b_dec"]).square().sum(-1).mean()}


def real_tokens(x: Float[Tensor, "batch seq d_in"]) -> Bool[Tensor, "batch seq"]:
    """Which tokens are no padding."""
    return (x != 0).any(-1)


def in_windows(
    x: Shaped[Tensor, "batch seq width"], window: int
) -> Shaped[Tensor, "batch windows slab"]:
    """`window` neighbours side by side; zeros fill up a sequence's last window."""
    filled = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[1] % window))
    return filled.reshape(len(x), -1, window * x.shape[2])


def own_rows(
    x: Float[Tensor, "batch seq d_in"], weight: Float[Tensor, "batch seq"],
    starts: tsae.Starts,
) -> tuple[Float[Tensor, "rows longest d_in"], Float[Tensor, "rows longest"]]:  # fmt: skip
    """The documents in packed sequences, each in a row of its own, 0 behind its end.

    Where `starts` is None none are packed: the same sequences.
    """
    if starts is None:
        return x, weight
    first = starts.to(x.device, copy=True)
    first[:, 0] = True  # of a piece that goes on with a document
    row, real = first.flatten().cumsum(0) - 1, weight.flatten() > 0
    begin = first.flatten().nonzero()[:, 0]
    place = torch.arange(len(row), device=row.device) - begin[row]
    shape = len(begin), int(place[real].max()) + 1 if real.any() else 1
    rows, weights = x.new_zeros(*shape, x.shape[2]), weight.new_zeros(shape)
    rows[row[real], place[real]] = x.flatten(0, 1)[real]
    weights[row[real], place[real]] = weight.flatten()[real]
    return rows, weights


def dense_pre(
    named: Named, x: Float[Tensor, "batch seq d_in"], low: torch.dtype
) -> Float[Tensor, "batch seq d_sae"]:
    """`(x - b_dec) W_enc + b_enc`; `b_dec` learns as the decoder's alone, as in our static SAE."""
    flat = (x - named["b_dec"].detach()).flatten(0, 1)
    return (tsae_kernels.product(flat, named["W_enc"], low) + named["b_enc"]).unflatten(
        0, x.shape[:2]
    )


def dense_decode(
    named: Named, acts: Float[Tensor, "batch seq d_sae"], low: torch.dtype
) -> Float[Tensor, "batch seq d_in"]:
    """`acts W_dec + b_dec`."""
    flat = tsae_kernels.product(acts.flatten(0, 1), named["W_dec"], low)
    return flat.unflatten(0, acts.shape[:2]) + named["b_dec"]


def active_codes(acts: Float[Tensor, "batch seq d_sae"]) -> Codes:
    """The active features of dense codes, as wide as the token with the most of them; detached."""
    flat = acts.detach().flatten(0, 1)
    entries = entries_where(flat > 0)
    return padded_codes(flat[entries.token, entries.feature], entries, acts.shape[:2])


def padded_codes(vals: Float[Tensor, " entries"], entries: Entries, shape: Sequence[int]) -> Codes:
    """Codes of (batch, seq) tokens, 0 behind the features of a token; detached."""
    token, n = entries.token, entries.n_tokens
    count, first = token.bincount(minlength=n), entries.begin
    slot = torch.arange(len(token), device=token.device) - first[token]
    wide = max(int(count.max()), 1) if n else 1
    flat, idx = vals.new_zeros(n, wide), token.new_zeros(n, wide)
    flat[token, slot], idx[token, slot] = vals.detach(), entries.feature
    return Codes(flat.unflatten(0, tuple(shape)), idx.unflatten(0, tuple(shape)))
