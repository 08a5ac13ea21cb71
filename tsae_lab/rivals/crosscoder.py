"""Temporal crosscoder ("Crosscoding Through Time: Sparse Feature Discovery Across Sequence
Positions", Mech Interp Workshop at ICML 2026): one code per window of T tokens.

A static top-k SAE of T neighbouring activations side by side: `W_enc` (T d_in, d_sae) reads all of
them, each feature has a decoder slab (T, d_in) of unit norm. Windows do not overlap; a sequence's
last, shorter one is filled up with `b_dec`. T = 1 is the static SAE. Every token of a window is
said to have the window's code. The budget is k of a window, set so that a window costs as many
features as the static SAE's T codes have, as measured.

The authors' code (github.com/chainik1125/temp_xc) has T = 5 and k T features per window, draws one
window per sequence at random or tiles it as here, drops a sequence's last tokens, and has a `b_dec`
per place that the encoder does not subtract; the rest is the same.

Known defects: a window's code has seen its last token at its first, so it cannot stream token by
token; an untrained twin has the larger order gap in 11 of 12 cells (its followers).
"""

import torch
from torch import Generator, Tensor

import tsae_kernels
from tsae import Codes
from tsae_lab.rivals.system import (
    Explained,
    Named,
    System,
    in_windows,
    real_tokens,
    squared_error,
    start_tensors,
)


def crosscoder_system(*, k: int, d_sae: int, low: torch.dtype, window: int) -> System:
    """A crosscoder over windows of `window` tokens with `k` features per window."""

    def run(named: Named, x: Tensor) -> tuple[Tensor, Codes]:
        real = real_tokens(x)[..., None].expand_as(x)
        centred = (in_windows(x, window) - named["b_dec"].detach()) * in_windows(real, window)
        flat = centred.flatten(0, 1)
        pre = tsae_kernels.product(flat, named["W_enc"], low) + named["b_enc"]
        idx = tsae_kernels.topk_idx(pre.detach(), k)
        vals = pre.gather(1, idx).relu()
        slabs = tsae_kernels.decode_codes(vals, idx, named["W_dec"]) + named["b_dec"]
        x_hat = slabs.view(len(x), -1, x.shape[2])[:, : x.shape[1]]
        return x_hat, _at_tokens(vals, idx, x, window)

    def explain(named: Named, x: Tensor, weight: Tensor, share: float) -> Explained:  # noqa: ARG001
        x_hat, codes = run(named, x)
        return Explained(loss=squared_error(x, x_hat, weight), x_hat=x_hat, codes=codes)

    def start(tokens: Tensor, generator: Generator) -> dict[str, Tensor]:
        named = start_tensors(tokens.repeat(1, window), d_sae, generator)
        return named | {"unit": named["unit"] / window}

    return System(start=start, explain=explain, run=run, window=window, whole=True)


def _at_tokens(vals: Tensor, idx: Tensor, x: Tensor, window: int) -> Codes:
    """The code of each window at each of its tokens."""
    rows = (t.detach().view(len(x), -1, t.shape[1]) for t in (vals, idx))
    return Codes(*(t.repeat_interleave(window, dim=1)[:, : x.shape[1]] for t in rows))
