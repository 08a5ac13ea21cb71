"""Measures of a trained SAE: its codes, how well they reconstruct, and what they cost the model."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import metrics
from tsae import Sae, forward
from tsae_lab.data.language_model import LanguageModel, splice
from tsae_lab.data.store import Store

Replacement = Callable[[Float[Tensor, "batch seq d_in"]], Float[Tensor, "batch seq d_in"]]
EVAL_ROWS = 16  # sequences a call


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """A model's codes on some tokens, and how well they reconstruct."""

    codes: metrics.CodedText
    fve: float
    tokens_per_second: float


def replacement(sae: Sae) -> Replacement:
    """The SAE's reconstruction, every sequence from an empty state."""
    return lambda x: forward(sae.params, x, sae.dials)[0]


@torch.inference_mode()
def measure(sae: Sae, store: Store, progress: Callable[[], None] = lambda: None) -> Measured:
    """Codes and FVE over all valid tokens of the store; tokens/s of encoding and decoding alone."""
    device = sae.params.static.b_dec.device
    sums, vals, idx, seconds = metrics.fve_start(store.d_in), [], [], 0.0
    for at in range(0, len(store), EVAL_ROWS):
        rows = slice(at, at + EVAL_ROWS)
        x = store.x(rows).to(device)
        began = time.perf_counter()
        x_hat, codes, _ = forward(sae.params, x, sae.dials)
        seconds += time.perf_counter() - began
        valid = store.tokens.valid[rows].to(device)
        sums = metrics.fve_add(sums, x[valid], x_hat[valid])
        vals.append(codes.vals.cpu())
        idx.append(codes.idx.cpu())
        progress()
    tokens = store.tokens
    found = metrics.codes_from_topk(
        torch.cat(vals),
        torch.cat(idx),
        sae.d_sae,
        valid=tokens.valid,
        document=tokens.document,
        start=tokens.start,
    )
    return Measured(
        codes=found, fve=metrics.fve_value(sums), tokens_per_second=found.n_tokens / seconds
    )


def code_measures(
    measured: Measured, W_dec: Float[Tensor, "d_sae d_in"], prefix: str = ""
) -> dict[str, float]:
    """FVE, L0, alive share, Jaccard overlap of neighbours and lag-1 TSS, by name."""
    codes = measured.codes
    score = metrics.tss(codes, W_dec.detach().cpu().norm(dim=1), lags=(1,))
    return {
        f"{prefix}fve": measured.fve,
        f"{prefix}l0": metrics.l0(codes.vals, codes.valid),
        f"{prefix}alive_frac": metrics.alive_frac(codes),
        f"{prefix}jaccard": metrics.jaccard(codes),
        f"{prefix}tss": score.macro,
        f"{prefix}tss_eligible_frac": score.eligible_frac,
    }


def pick_rows(store: Store, n_tokens: int) -> Int[np.ndarray, " rows"]:
    """Sequences spread evenly over the store that hold about `n_tokens` tokens."""
    width = store.tokens.valid.shape[1]
    wanted = min(len(store), max(1, round(n_tokens / width)))
    return np.linspace(0, len(store) - 1, wanted).round().astype(np.int64)


def splice_losses(
    lm: LanguageModel,
    store: Store,
    rows: Int[np.ndarray, " rows"],
    replacements: dict[str, Replacement],
) -> dict[str, dict[str, float]]:
    """What each model's reconstruction in the residual stream does to the language model, beside
    "clean".

    `token` and `char`: its loss in nats; `kl`: `KL(clean || spliced)` in nats a token.
    """
    tokens = store.tokens

    picked = torch.from_numpy(rows)
    valid = tokens.valid[picked]
    found = splice(lm, tokens.ids[picked], valid, store.hook, replacements)
    chars = tokens.chars[picked].sum().item()
    n_tokens = int(valid.sum())
    return {
        name: {
            "token": one.nats.double().sum().item() / n_tokens,
            "char": one.nats.double().sum().item() / chars,
            "kl": one.kl.double().sum().item() / n_tokens,
        }
        for name, one in found.items()
    }


def mean_replacement(store: Store) -> Replacement:
    """Every token replaced by the mean activation: the ablation that CE recovered is relative to."""
    rows = slice(0, 256)
    mean = store.x(rows)[store.tokens.valid[rows]].mean(0)
    return lambda x: mean.to(x).expand_as(x)
