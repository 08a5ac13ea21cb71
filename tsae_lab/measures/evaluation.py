"""Measures of a trained SAE: its codes, how well they reconstruct, and what they cost the model."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.interpolate import PchipInterpolator
from torch import Tensor

import metrics
import tsae
import tsae_kernels as kernels
from tsae import Codes, Sae, forward
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.data.splicing import Clean, clean_pass, splice
from tsae_lab.data.store import Store
from tsae_lab.data.stream import Stream
from tsae_lab.measures.lifetimes import shuffle
from tsae_lab.rivals.system import Run

Replacement = Callable[[Float[Tensor, "batch seq d_in"]], Float[Tensor, "batch seq d_in"]]
EVAL_ROWS = 16  # sequences per call
MEAN_ROWS = 256  # sequences that the mean of the ablation is taken over


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """An SAE's codes on some tokens, and how well they reconstruct."""

    codes: metrics.CodedText
    fve: float
    tokens_per_second: float


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was given; a CPU has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def step_time(took: float, before: Sequence[float]) -> float:
    """Seconds of a step: `took`, or the median of the last 100 before it where that is 10 times as
    long: the machine or the process stood still. Of fewer than three before it nothing is known.
    """
    usual = statistics.median(before[-100:]) if len(before) >= 3 else took
    return took if took <= 10 * usual else usual


def replacement(sae: Sae) -> Replacement:
    """The SAE's reconstruction, every sequence from an empty state."""
    device = sae.params.static.b_dec.device
    return lambda x: forward(sae.params, x.to(device), sae.dials)[0]


def measure(sae: Sae, store: Store, progress: Callable[[], None] = lambda: None) -> Measured:
    """Codes and FVE of all valid tokens of the store; the speed is that of the SAE alone.

    Every sequence starts from an empty state. `progress` is called after each 16 sequences.
    """
    device = sae.params.static.b_dec.device
    run = sae_run(sae)
    return measure_run(run, sae.d_sae, store, device, progress)


def sae_run(sae: Sae, *, forgets: bool = False) -> Run:
    """Reconstruction and codes of an SAE, every sequence from an empty state; of one that forgets,
    every token.
    """

    def run(x: Tensor) -> tuple[Tensor, Codes]:
        starts = torch.ones(x.shape[:2], dtype=torch.bool) if forgets else None
        return forward(sae.params, x, sae.dials, starts=starts)[:2]

    return run


@torch.inference_mode()
def measure_run(
    run: Run,
    d_sae: int,
    store: Store,
    device: torch.device,
    progress: Callable[[], None] = lambda: None,
) -> Measured:
    """As `measure`, of anything that reconstructs; codes of any width."""
    sums, vals, idx, times = metrics.fve_start(store.d_in), [], [], []
    for start in range(0, len(store), EVAL_ROWS):
        rows = slice(start, start + EVAL_ROWS)
        x = store.x(rows).to(device)
        wait_for(device)
        began = time.perf_counter()
        x_hat, acts = run(x)
        wait_for(device)
        times.append(step_time(time.perf_counter() - began, times))
        valid = store.tokens.valid[rows].to(device)
        sums = metrics.fve_add(sums, x[valid], x_hat[valid])
        vals.append(acts.vals.cpu())
        idx.append(acts.idx.cpu())
        progress()
    tokens = store.tokens
    layout = {"valid": tokens.valid, "document": tokens.document, "start": tokens.start}
    codes = metrics.codes_from_topk(wide(vals), wide(idx), d_sae, **layout)
    fve, speed = metrics.fve_value(sums), codes.n_tokens / sum(times)
    return Measured(codes=codes, fve=fve, tokens_per_second=speed)


@dataclass(frozen=True, eq=False, kw_only=True)
class Anatomy:
    """How each value of a code came about: `vals = relu(pre) * gate`; `pre + added` chose it."""

    vals: Float[Tensor, "batch seq k"]
    idx: Int[Tensor, "batch seq k"]
    pre: Float[Tensor, "batch seq k"]
    added: Float[Tensor, "batch seq k"]  # by the memory, to the selection; 0 without one
    gate: Float[Tensor, "batch seq k"]  # in [0, 1]; 1 without gates


@torch.inference_mode()
def anatomy(sae: Sae, x: Float[Tensor, "batch seq d_in"]) -> Anatomy:
    """The codes of sequences that start from an empty state, in their parts; on the CPU."""
    params, dials = sae.params, sae.dials
    state = tsae.start_state(params, len(x), dials)
    seen = tsae.see(params, x, dials, state)
    codes = tsae.selected_codes(params, seen, seen.selected)
    gate = torch.ones_like(codes.vals)
    if seen.hs is not None:
        t, flat = params.temporal, codes.idx.flatten(0, 1)
        gate = kernels.gate_values(seen.hs.flatten(0, 1), t.W_gate, t.b_gate, flat).view_as(gate)
    parts = {"vals": codes.vals, **vars(seen.selected)}
    return Anatomy(**{name: part.cpu() for name, part in (parts | {"gate": gate}).items()})


def wide(batches: Sequence[Tensor]) -> Tensor:
    """All batches as one, each filled up with zeros to the widest."""
    k = max(batch.shape[-1] for batch in batches)
    return torch.cat([torch.nn.functional.pad(b, (0, k - b.shape[-1])) for b in batches])


def code_measures(
    measured: Measured, W_dec: Float[Tensor, "d_sae d_in"], prefix: str = ""
) -> dict[str, float | None]:
    """FVE, L0, alive share, events, Jaccard overlap of neighbours, lag-1 TSS and its floor.

    The TSS of shuffled tokens is the floor; None without an eligible feature.
    """
    codes, dec_norm = measured.codes, W_dec.detach().cpu().norm(dim=1)
    score, floor = (metrics.tss(c, dec_norm, lags=(1,)) for c in (codes, shuffle(codes)))
    return {
        f"{prefix}fve": measured.fve,
        f"{prefix}l0": metrics.l0(codes.vals, codes.valid),
        f"{prefix}alive_frac": metrics.alive_frac(codes),
        f"{prefix}births": metrics.births(codes),
        f"{prefix}distinct": metrics.distinct(codes),
        f"{prefix}jaccard": metrics.jaccard(codes),
        f"{prefix}tss": score.macro,
        f"{prefix}tss_floor": floor.macro,
        f"{prefix}tss_eligible_frac": score.eligible_frac,
    }


def residual_at(points: Sequence[Mapping[str, Any]], births: float) -> float | None:
    """`1 - FVE` at so many births per token on the frontier through `points`; None outside it.

    Monotone cubic interpolation (Fritsch and Carlson 1980) over the points' `births`: it lies
    between its neighbours. Of points with equally many births the best counts.
    """
    least: dict[float, float] = {}
    for point in points:
        residual = 1 - point["fve"]
        least[point["births"]] = min(residual, least.get(point["births"], residual))
    x = sorted(least)
    if not x or not x[0] <= births <= x[-1]:
        return None
    if len(x) == 1:
        return least[x[0]]
    return float(PchipInterpolator(x, [least[n] for n in x])(births))


def at_equal_births(
    static: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One row per static SAE, with its `k` and `births`: the `static_residual`, 1 - FVE, the TSAE's
    `residual` at as many births (`residual_at`), and the share of the first that it takes away.

    `residual_taken = 1 - residual / static_residual`. Both are None outside the range of the TSAE's
    births, the share also where there is nothing to take.
    """
    rows = []
    for point in static:
        theirs, own = 1 - point["fve"], residual_at(ours, point["births"])
        taken = None if own is None or theirs <= 0 else 1 - own / theirs
        row = {"k": point["k"], "births": point["births"], "static_residual": theirs}
        rows.append(row | {"residual": own, "residual_taken": taken})
    return rows


def pick_rows(store: Store | Stream, n_tokens: int) -> Int[np.ndarray, " rows"]:
    """Sequences spread evenly over the store that hold about `n_tokens` tokens."""
    width = store.tokens.valid.shape[1]
    wanted = min(len(store), max(1, round(n_tokens / width)))
    return np.linspace(0, len(store) - 1, wanted).round().astype(np.int64)


# the models and seeds of a text, one after the other, are spliced into the same tokens
@functools.lru_cache(maxsize=1)
def read_clean(
    lm: LanguageModel, store: Store, n_tokens: int
) -> tuple[Int[np.ndarray, " rows"], Clean]:
    """The sequences of `pick_rows`, and the language model's own pass over them; kept until another
    is asked for.
    """
    rows = pick_rows(store, n_tokens)
    return rows, clean_pass(lm, store.text.ids[torch.from_numpy(rows)], store.hook)


def splice_losses(
    lm: LanguageModel,
    store: Store,
    rows: Int[np.ndarray, " rows"],
    replacements: dict[str, Replacement],
    clean: Clean | None = None,
) -> dict[str, dict[str, float]]:
    """Loss of the language model, "clean" and with each replacement in its residual stream.

    "token" and "char": nats per token and per character; "kl": `KL(clean || spliced)` in nats per
    token. Attention sinks that the store dropped keep their own activation, and count as tokens.
    `clean`, the model's own pass over these rows, is made where it is not given.
    """
    tokens, picked = store.text, torch.from_numpy(rows)
    valid, read = tokens.valid[picked], store.read[picked]
    spliced = splice(lm, tokens.ids[picked], valid, store.hook, replacements, read, clean)
    chars, n_tokens = tokens.chars[picked].sum().item(), int(valid.sum())
    return {
        name: {
            "token": effect.nats.double().sum().item() / n_tokens,
            "char": effect.nats.double().sum().item() / chars,
            "kl": effect.kl.double().sum().item() / n_tokens,
        }
        for name, effect in spliced.items()
    }


def mean_replacement(store: Store) -> Replacement:
    """The mean activation in place of every token: the ablation that CE recovered refers to."""
    rows = slice(0, MEAN_ROWS)
    mean = store.x(rows)[store.tokens.valid[rows]].mean(0)
    return lambda x: mean.to(x).expand_as(x)
