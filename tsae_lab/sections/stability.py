"""Sections "stability" and "lifetimes": how long codes stay the same, and features active."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import metrics
import tsae
from metrics import CodedText
from tsae_lab.data.store import Store
from tsae_lab.measures import evaluation, lifetimes, splices
from tsae_lab.measures.lifetimes import Runs, mean_where
from tsae_lab.rivals.system import Run
from tsae_lab.sections.context import (
    ABSENT,
    N_BOOT,
    Context,
    Estimate,
    Numbers,
    Section,
    Subject,
    interval_rows,
    named,
    top_words,
)
from tsae_lab.sections.figures import stability_figure, survival_figure

TAUS = (16, 64, 128)  # tokens to which lifetimes are restricted
LAGS = range(1, 17)
NULLS: dict[str, Literal["global", "document"]] = {"tss": "global", "tss_in_document": "document"}
AFTER_SPLICE = (0, 1, 2, 4, 8)  # tokens


def _generator(context: Context) -> torch.Generator:
    """The same for every subject, so that their bootstrap samples are paired."""
    return torch.Generator().manual_seed(context.seed)


def _longest(codes: CodedText) -> int:
    """Tokens of the longest chunk."""
    return int(codes.valid.sum(1).max())


# ---------------------------------------------------------------------------------------- stability


def stability_section(context: Context) -> Section:
    """TSS by lag against both nulls, overlap of neighbours, events, what a splice leaves,
    smoothness.
    """
    scores = [_scores(s.codes, s.dec_norm, _generator(context)) for s in context.subjects]
    overlaps = [_overlap(s.codes, _generator(context)) for s in context.subjects]
    numbers, estimates = [], []
    for subject, by_null, overlap in zip(context.subjects, scores, overlaps, strict=True):
        similar, after_splice = _splice_measures(subject, context)
        own = {"jaccard": overlap, "jaccard_kappa": _above_chance(subject.codes, overlap)}
        own |= after_splice
        own["smoothness"] = _smoothness(subject.codes, context.store, _generator(context))
        estimates.append(own | _score_estimates(by_null))
        numbers.append(
            {name: estimate.value for name, estimate in own.items()}
            | _score_numbers(by_null)
            | similar
            | _floor_numbers(subject, _generator(context))
            | _event_numbers(subject.codes)
        )
    tables = {"intervals": interval_rows(context, estimates)}
    figures = {}
    if context.long and all(scores):
        pairs = zip(context.subjects, scores, strict=True)
        by_name = {subject.name: by_null["tss"] for subject, by_null in pairs}
        tables["stability_by_lag"] = [
            row for name, score in by_name.items() for row in _lag_rows(name, score)
        ]
        figures["stability_by_lag"] = stability_figure(by_name)
    return Section(named(context, numbers), tables, figures)


def _scores(
    codes: CodedText, dec_norm: Float[Tensor, " d_sae"], generator: torch.Generator
) -> dict[str, metrics.Stability]:
    """TSS against the nulls over all tokens and within documents; empty if no two tokens."""
    lags = [lag for lag in LAGS if lag < _longest(codes)]
    if not lags:
        return {}
    seeds = generator.get_state()
    scores = {}
    for name, null in NULLS.items():
        same = torch.Generator()
        same.set_state(seeds)
        scores[name] = metrics.tss(codes, dec_norm, lags, null, n_boot=N_BOOT, generator=same)
    return scores


def _score_numbers(scores: Mapping[str, metrics.Stability]) -> Numbers:
    numbers: Numbers = {}
    for name in NULLS:
        score = scores.get(name)
        macro, weighted = (None, None) if score is None else (score.macro, score.weighted)
        numbers |= {f"{name}_mean": macro, f"{name}_weighted_mean": weighted}
        for lag, at_lag, weighted_at_lag in _by_lag(score) if score else ():
            numbers |= {f"{name}_lag_{lag}": at_lag, f"{name}_weighted_lag_{lag}": weighted_at_lag}
    return numbers | {"tss_eligible_frac": scores["tss"].eligible_frac if scores else None}


def _score_estimates(scores: Mapping[str, metrics.Stability]) -> dict[str, Estimate]:
    estimates = {}
    for name in NULLS:
        score, wide = scores.get(name), f"{name}_weighted_mean"
        estimates[f"{name}_mean"] = estimates[wide] = ABSENT
        if score is not None:
            estimates[f"{name}_mean"] = Estimate(score.macro, score.macro_replicates)
            estimates[wide] = Estimate(score.weighted, score.weighted_replicates)
    return estimates


def _floor_numbers(subject: Subject, generator: torch.Generator) -> Numbers:
    """The TSS of the same codes with the tokens of each document in random order."""
    lags = [lag for lag in LAGS if lag < _longest(subject.codes)]
    shuffled = lifetimes.shuffle(subject.codes, generator)
    return {
        f"{name}_floor_mean": metrics.tss(shuffled, subject.dec_norm, lags, null).macro
        if lags
        else None
        for name, null in NULLS.items()
    }


def _event_numbers(codes: CodedText) -> Numbers:
    """Births per token, absent without two neighbours, and distinct features of a window."""
    n_births = metrics.births(codes) if _longest(codes) > 1 else None
    return {"births": n_births, "distinct": metrics.distinct(codes)}


def _lag_rows(name: str, score: metrics.Stability) -> list[dict[str, Any]]:
    return [
        {"model": name, "lag": lag, "tss": macro, "tss_weighted": weighted}
        for lag, macro, weighted in _by_lag(score)
    ]


def _by_lag(score: metrics.Stability) -> Iterator[tuple[int, float | None, float | None]]:
    columns = (
        map(metrics.finite, by_lag) for by_lag in (score.macro_by_lag, score.weighted_by_lag)
    )
    return zip(score.lags, *columns, strict=True)


def _overlap(codes: CodedText, generator: torch.Generator) -> Estimate:
    """Jaccard overlap of neighbours; absent without two neighbours."""
    if _longest(codes) < 2:
        return ABSENT
    sums, n_pairs = metrics.jaccard_by_document(codes)
    replicates = metrics.resampled_ratio(sums, n_pairs, N_BOOT, generator)
    return Estimate(float(sums.sum() / n_pairs.sum()), replicates)


def _above_chance(codes: CodedText, overlap: Estimate) -> Estimate:
    """`jaccard_kappa`; the samples hold chance fixed, `1 - J0 = (1 - J) / (1 - kappa)`."""
    kappa = None if overlap.value is None else metrics.jaccard_kappa(codes)
    if overlap.value is None or kappa is None:
        return ABSENT
    scale = (1 - kappa) / (1 - overlap.value) if overlap.value < 1 else 0.0
    return Estimate(kappa, 1 - scale * (1 - overlap.replicates), -np.inf)


def _smoothness(codes: CodedText, store: Store, generator: torch.Generator) -> Estimate:
    """Absent where no two neighbours differ or nothing is active."""
    if _longest(codes) < 2 or not (codes.vals > 0).any():
        return ABSENT
    x = store.x(slice(None))
    moves = (x[:, 1:] - x[:, :-1]).norm(dim=-1)[codes.valid[:, 1:]]
    if not (moves > metrics.EPS_DISTANCE).any():
        return ABSENT
    chunks, values = metrics.smoothness_by_chunk(codes, x)
    document = metrics.document_rank(codes)
    n_doc = int(document.max()) + 1
    sums = np.bincount(document[chunks], values, n_doc)
    n_chunks = np.bincount(document[chunks], minlength=n_doc)
    replicates = metrics.resampled_ratio(sums, n_chunks, N_BOOT, generator)
    return Estimate(float(values.mean()), replicates, most=np.inf)


def _splice_measures(subject: Subject, context: Context) -> tuple[Numbers, dict[str, Estimate]]:
    """Similarities at a splice, and the share kept after it; all absent without a splice.

    The samples are of the documents that a splice ends, whatever it goes on with.
    """
    seq = context.store.tokens.valid.shape[1]
    after = [n for n in AFTER_SPLICE if seq // 2 + n < seq]
    names = ("similarity_within", "similarity_across", "similarity_chance")
    sae, device = subject.sae, subject.sae.params.static.W_dec.device
    spliced = spliced_codes(evaluation.sae_run(sae), sae.d_sae, context.store, seq // 2, device)
    if spliced is None:
        return dict.fromkeys(names), {f"splice_kept_{n}": ABSENT for n in after}
    splice = splices.splice_kept(subject.codes, *spliced, seq // 2, subject.dec_norm, after)
    estimates = {}
    for row, n in enumerate(after):
        sums = splice.survived[row], splice.could[row]
        replicates = metrics.resampled_ratio(*sums, N_BOOT, _generator(context))
        value = metrics.finite(splice.kept[row])
        estimates[f"splice_kept_{n}"] = Estimate(value, replicates, -np.inf, np.inf)
    similar = (splice.within[0], splice.across[0], splice.chance[0])
    return dict(zip(names, map(metrics.finite, similar), strict=True)), estimates


@torch.inference_mode()
def spliced_codes(
    run: Run, d_sae: int, store: Store, begin: int, device: torch.device
) -> tuple[CodedText, Int[Tensor, " n_spliced"], Int[Tensor, " n_spliced"]] | None:
    """Codes of chunks that from position `begin` on are another's, and the rows of both chunks.

    None if no two full chunks of different documents can be joined.
    """
    rows = store.tokens.valid.all(1).nonzero()[:, 0]
    document = store.tokens.document[rows]
    if len(document.unique()) < 2 or not 1 < begin < store.tokens.valid.shape[1]:
        return None
    index = rows.double()[:, None, None].expand(-1, store.tokens.valid.shape[1], 1)
    mixed, _ = splices.splice_documents(index, document, begin)
    vals, idx = [], []
    joined = mixed[:, [0, -1], 0].long()
    for pairs in joined.split(evaluation.EVAL_ROWS):
        first, second = pairs.unbind(1)
        x = torch.cat([store.x(first)[:, :begin], store.x(second)[:, begin:]], dim=1)
        _, codes = run(x.to(device))
        vals.append(codes.vals.cpu())
        idx.append(codes.idx.cpu())
    spliced = metrics.codes_from_topk(evaluation.wide(vals), evaluation.wide(idx), d_sae)
    return spliced, joined[:, 0], joined[:, 1]


# ---------------------------------------------------------------------------------------- lifetimes


def lifetimes_section(context: Context) -> Section:
    """Restricted mean lifetimes, half-life, persistence, the shuffle null, lifecycle, survival."""
    all_runs = [lifetimes.runs(s.codes) for s in context.subjects]
    lives = [lifetimes.lifecycle(s.codes) for s in context.subjects]
    estimates = [_life_estimates(runs, context) for runs in all_runs]
    numbers = []
    for subject, runs, life, means in zip(
        context.subjects, all_runs, lives, estimates, strict=True
    ):
        pooled = {name: estimate.value for name, estimate in means.items()}
        shuffled = _shuffled_numbers(subject.codes, _generator(context))
        numbers.append(pooled | _life_numbers(life, runs) | shuffled)
    tables, figures = {"intervals": interval_rows(context, estimates)}, {}
    if context.long:
        pairs = zip(context.subjects, all_runs, strict=True)
        curves = {s.name: lifetimes.survival(r) for s, r in pairs if _followed(r)}
        tables["survival"] = [
            row for name, curve in curves.items() for row in _survival_rows(name, curve)
        ]
        for subject, runs, life in zip(context.subjects, all_runs, lives, strict=True):
            tables[f"features_{subject.slug}"] = _feature_rows(subject, runs, life, context)
        if curves:
            figures["survival"] = survival_figure(curves)
    return Section(named(context, numbers), tables, figures)


def _followed(runs: Runs) -> bool:
    """Whether a lifetime can be estimated: some run seen to begin was followed for a token."""
    return bool((~runs.truncated & (runs.length - runs.censored > 0)).any())


def _life_estimates(runs: Runs, context: Context) -> dict[str, Estimate]:
    """Restricted mean lifetimes, pooled over runs, and persistence; absent without a run to follow.

    All are of the same bootstrap samples of documents.
    """
    estimates = {f"restricted_mean_{tau}": ABSENT for tau in TAUS}
    for tau in TAUS if _followed(runs) else ():
        mean = lifetimes.restricted_mean(runs, tau, n_boot=N_BOOT, generator=_generator(context))
        estimates[f"restricted_mean_{tau}"] = Estimate(mean.value, mean.replicates, 1.0, float(tau))
    stays = lifetimes.persistence_replicates(runs, N_BOOT, _generator(context))
    return estimates | {"persistence": Estimate(lifetimes.persistence(runs)[0], stays)}


def _life_numbers(life: tsae.Lifecycle, runs: Runs) -> Numbers:
    """`half_life` is None if more than half of the runs live past the longest time observed."""
    numbers: Numbers = {}
    for tau in TAUS:
        by_feature = lifetimes.feature_restricted_mean(runs, tau)
        numbers[f"feature_restricted_mean_{tau}"] = mean_where(by_feature, by_feature > 0)
    median = lifetimes.survival(runs).median if _followed(runs) else None
    numbers["half_life"] = None if median is None else float(median)
    by_feature = lifetimes.persistence(runs)[1]
    numbers["feature_persistence"] = mean_where(by_feature, ~np.isnan(by_feature))
    means = lifetimes.lifecycle_means(life)
    return numbers | {f"lifecycle_{name}": value for name, value in means.items()}


def _shuffled_numbers(codes: CodedText, generator: torch.Generator) -> Numbers:
    """The same measures with the tokens of each document in random order: a null without time."""
    runs = lifetimes.runs(lifetimes.shuffle(codes, generator))
    numbers: Numbers = {"shuffled_persistence": lifetimes.persistence(runs)[0]}
    for tau in TAUS:
        value = lifetimes.restricted_mean(runs, tau).value if _followed(runs) else None
        numbers[f"shuffled_restricted_mean_{tau}"] = value
    return numbers


def _survival_rows(name: str, curve: lifetimes.Survival) -> list[dict[str, Any]]:
    columns = ("t", "survival", "low", "high", "at_risk", "hazard")
    return [
        {"model": name} | dict(zip(columns, row, strict=True))
        for row in zip(*(getattr(curve, column).tolist() for column in columns), strict=True)
    ]


def _feature_rows(
    subject: Subject, runs: Runs, life: tsae.Lifecycle, context: Context
) -> list[dict[str, Any]]:
    """One row per feature that is ever active, the most active first: what it reads, its life."""
    mean = lifetimes.feature_restricted_mean(runs, 64)
    stays = lifetimes.persistence(runs)[1]
    words = top_words(subject.codes, context)
    counts = {
        "active": life.fired,
        "births": life.births,
        "deaths": life.deaths,
        "gaps": life.gaps,
        "oldest": life.oldest,
    }
    order = np.argsort(-life.fired.numpy(), kind="stable").tolist()
    return [
        {"feature": feature, "top_words": words.get(feature, "")}
        | {name: int(count[feature]) for name, count in counts.items()}
        | {
            "peak": _short(life.peak[feature].item()),
            "persistence": _short(float(stays[feature])),
            "restricted_mean_64": _short(float(mean[feature])),
        }
        for feature in order[: int((life.fired > 0).sum())]
    ]


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
