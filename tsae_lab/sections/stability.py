"""What is said about a model's codes on a text: sections of numbers, tables and figures. Nothing is
read or written.

`run_3` calls each section with the static SAE and the TSAE side by side, a command with one model.
A measure that is not defined for the codes it gets (no active feature, one document, one token a
chunk) is 0, so that a mean over seeds stays finite; an interval about which nothing is known is the
whole range of its measure.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import metrics
import tsae
from metrics import CodedText
from tsae_lab.data.store import Store
from tsae_lab.measures import evaluation, lifetimes
from tsae_lab.measures.lifetimes import Runs, mean_where
from tsae_lab.sections.context import (
    N_BOOT,
    Context,
    Estimate,
    Section,
    Subject,
    _generator,
    _longest,
    interval_rows,
    named,
    top_words,
)
from tsae_lab.sections.figures import stability_figure, survival_figure

TAUS = (16, 64, 128)  # tokens to which lifetimes are restricted
LAGS = range(1, 17)


def _n_documents(codes: CodedText) -> int:
    return len(codes.document[codes.valid.any(1)].unique())


# ---------------------------------------------------------------- stability


def stability_section(context: Context) -> Section:
    """TSS by lag against both nulls, overlap of neighbours, responsiveness at splices,
    smoothness.
    """
    scores = [stability_scores(s.codes, s.dec_norm, _generator(context)) for s in context.subjects]
    overlaps = [_overlap(s.codes, _generator(context)) for s in context.subjects]
    numbers, estimates = [], []
    for one, by_null, overlap in zip(context.subjects, scores, overlaps, strict=True):
        estimates.append({"jaccard": overlap} | _score_estimates(by_null))
        numbers.append(
            {"jaccard": overlap.value, "jaccard_kappa": _jaccard_kappa(one.codes)}
            | _score_numbers(by_null)
            | _responsiveness(one, context.store)
            | {"smoothness": _smoothness(one.codes, context.store)}
        )
    tables = {"intervals": interval_rows(context, estimates)}
    figures = {}
    if context.long and all(scores):
        by_name = {
            s.name: by_null["tss"] for s, by_null in zip(context.subjects, scores, strict=True)
        }
        tables["stability_by_lag"] = [
            row for name, score in by_name.items() for row in _lag_rows(name, score)
        ]
        figures["stability_by_lag"] = stability_figure(by_name)
    return Section(named(context, numbers), tables, figures)


def stability_scores(
    codes: CodedText,
    dec_norm: Float[Tensor, " d_sae"],
    generator: torch.Generator,
    n_boot: int = N_BOOT,
) -> dict[str, metrics.Stability]:
    """TSS against the null over all tokens ("tss") and within documents ("tss_in_document"); empty
    if no two tokens.
    """
    lags = [lag for lag in LAGS if lag < _longest(codes)]
    if not lags:
        return {}
    overall = metrics.tss(codes, dec_norm, lags, n_boot=n_boot, generator=generator)
    return {"tss": overall, "tss_in_document": metrics.tss(codes, dec_norm, lags, "document")}


def _score_numbers(scores: Mapping[str, metrics.Stability]) -> dict[str, float]:
    numbers = dict.fromkeys(
        ("tss_mean", "tss_weighted_mean", "tss_in_document_mean", "tss_in_document_weighted_mean"),
        0.0,
    )
    for name, score in scores.items():
        numbers |= {f"{name}_mean": score.macro, f"{name}_weighted_mean": score.weighted}
        for lag, macro, weighted in zip(
            score.lags, score.macro_by_lag, score.weighted_by_lag, strict=True
        ):
            numbers |= {f"{name}_lag_{lag}": macro, f"{name}_weighted_lag_{lag}": weighted}
    return numbers | {"tss_eligible_frac": scores["tss"].eligible_frac if scores else 0.0}


def _score_estimates(scores: Mapping[str, metrics.Stability]) -> dict[str, Estimate]:
    """Nothing is known, rather than 0 for sure, where no feature is eligible."""
    score = scores.get("tss")
    if score is None or not score.eligible.any():
        return {name: Estimate(0.0, np.zeros(0)) for name in ("tss_mean", "tss_weighted_mean")}
    return {
        "tss_mean": Estimate(score.macro, score.macro_replicates),
        "tss_weighted_mean": Estimate(score.weighted, score.weighted_replicates),
    }


def _lag_rows(name: str, score: metrics.Stability) -> list[dict[str, Any]]:
    return [
        {"model": name, "lag": lag, "tss": float(macro), "tss_weighted": float(weighted)}
        for lag, macro, weighted in zip(
            score.lags, score.macro_by_lag, score.weighted_by_lag, strict=True
        )
    ]


def _overlap(codes: CodedText, generator: torch.Generator) -> Estimate:
    """Jaccard overlap of neighbours; 0 without two neighbours."""
    if _longest(codes) < 2:
        return Estimate(0.0, np.zeros(0))
    sums, n_pairs = metrics.jaccard_by_document(codes)
    replicates = metrics.resampled_ratio(sums, n_pairs, N_BOOT, generator)
    return Estimate(float(sums.sum() / n_pairs.sum()), replicates)


def _jaccard_kappa(codes: CodedText) -> float:
    return metrics.jaccard_kappa(codes) if _longest(codes) > 1 else 0.0


def _smoothness(codes: CodedText, store: Store) -> float:
    """0 where no two neighbours differ or nothing is active."""
    if _longest(codes) < 2 or not (codes.vals > 0).any():
        return 0.0
    x = store.x(slice(None))
    moves = (x[:, 1:] - x[:, :-1]).norm(dim=-1)[codes.valid[:, 1:]]
    return metrics.smoothness(codes, x) if bool((moves > metrics.EPS_DISTANCE).any()) else 0.0


def _responsiveness(one: Subject, store: Store) -> dict[str, float]:
    """Similarity of neighbours in a document and over a splice, the model's state carried over it;
    0 without splice.
    """
    at = store.tokens.valid.shape[1] // 2
    codes = spliced_codes(one, store, at)
    if codes is None:
        return {"responsiveness": 0.0, "similarity_within": 0.0, "similarity_across": 0.0}
    found = metrics.responsiveness(codes, at, one.dec_norm)
    return {
        "responsiveness": found.value,
        "similarity_within": found.within,
        "similarity_across": found.across,
    }


@torch.inference_mode()
def spliced_codes(one: Subject, store: Store, at: int) -> CodedText | None:
    """Codes of chunks that go on from position `at` as another document's; None if no two full
    chunks can be joined.
    """
    rows = store.tokens.valid.all(1).nonzero()[:, 0]
    document = store.tokens.document[rows]
    if len(document.unique()) < 2 or not 1 < at < store.tokens.valid.shape[1]:
        return None
    index = rows.double()[:, None, None].expand(-1, store.tokens.valid.shape[1], 1)
    mixed, _ = metrics.splice_documents(index, document, at)
    begun, continued = mixed[:, 0, 0].long(), mixed[:, -1, 0].long()
    vals, idx, sae = [], [], one.sae
    for first, second in zip(
        begun.split(evaluation.EVAL_ROWS), continued.split(evaluation.EVAL_ROWS), strict=True
    ):
        x = torch.cat([store.x(first)[:, :at], store.x(second)[:, at:]], dim=1)
        codes = tsae.encode(sae.params, x.to(sae.params.static.W_dec.device), sae.dials)[0]
        vals.append(codes.vals.cpu())
        idx.append(codes.idx.cpu())
    return metrics.codes_from_topk(torch.cat(vals), torch.cat(idx), one.codes.d_sae)


# ---------------------------------------------------------------- lifetimes


def lifetimes_section(context: Context) -> Section:
    """Restricted mean lifetimes, half-life, persistence, the shuffle null and lifecycle means;
    survival curves.
    """
    all_runs = [lifetimes.runs(s.codes) for s in context.subjects]
    lives = [lifetimes.lifecycle(s.codes) for s in context.subjects]
    estimates = [_restricted_estimates(runs, _generator(context)) for runs in all_runs]
    numbers = []
    for sae, runs, life, means in zip(context.subjects, all_runs, lives, estimates, strict=True):
        pooled = {name: estimate.value for name, estimate in means.items()}
        shuffled = _shuffled_numbers(sae.codes, _generator(context))
        numbers.append(pooled | _life_numbers(life, runs) | shuffled)
    tables, figures = {"intervals": interval_rows(context, estimates)}, {}
    if context.long:
        pairs = zip(context.subjects, all_runs, strict=True)
        curves = {s.name: lifetimes.survival(r) for s, r in pairs if _followed(r)}
        tables["survival"] = [
            row for name, curve in curves.items() for row in _survival_rows(name, curve)
        ]
        for sae, runs, life in zip(context.subjects, all_runs, lives, strict=True):
            tables[f"features_{sae.slug}"] = _feature_rows(sae, runs, life, context)
        if curves:
            figures["survival"] = survival_figure(curves)
    return Section(named(context, numbers), tables, figures)


def _followed(found: Runs) -> bool:
    """Whether a run whose beginning was seen was followed for a token or more, so that a lifetime
    can be estimated.
    """
    return bool((~found.truncated & (found.length - found.censored > 0)).any())


def _restricted_estimates(found: Runs, generator: torch.Generator) -> dict[str, Estimate]:
    """Restricted mean lifetimes, pooled over runs; 0 if none was followed for a token."""
    if not _followed(found):
        return {
            f"restricted_mean_{tau}": Estimate(0.0, np.zeros(0), 0.0, float(tau)) for tau in TAUS
        }
    seed = int(torch.randint(2**62, (), generator=generator))
    estimates = {}
    for tau in TAUS:
        mean = lifetimes.restricted_mean(
            found, tau, n_boot=N_BOOT, generator=torch.Generator().manual_seed(seed)
        )
        estimates[f"restricted_mean_{tau}"] = Estimate(mean.value, mean.replicates, 1.0, float(tau))
    return estimates


def _life_numbers(life: tsae.Lifecycle, found: Runs) -> dict[str, float]:
    """`half_life` is the follow-up, a lower bound, if more than half of the runs live past it."""
    numbers = {}
    for tau in TAUS:
        by_feature = lifetimes.feature_restricted_mean(found, tau)
        numbers[f"feature_restricted_mean_{tau}"] = mean_where(by_feature, by_feature > 0)
    numbers["half_life"] = 0.0
    if _followed(found):
        curve = lifetimes.survival(found)
        numbers["half_life"] = float(curve.follow_up if curve.median is None else curve.median)
    pooled, by_feature = lifetimes.persistence(found)
    has_runs = np.bincount(found.feature, minlength=found.d_sae) > 0
    numbers |= {"persistence": pooled, "feature_persistence": mean_where(by_feature, has_runs)}
    means = lifetimes.lifecycle_means(life)
    return numbers | {f"lifecycle_{name}": value for name, value in means.items()}


def _shuffled_numbers(codes: CodedText, generator: torch.Generator) -> dict[str, float]:
    """The same measures with the tokens of each document in random order: what time does not
    contribute.
    """
    found = lifetimes.runs(lifetimes.shuffle(codes, generator))
    numbers = {"shuffled_persistence": lifetimes.persistence(found)[0]}
    for tau in TAUS:
        value = lifetimes.restricted_mean(found, tau).value if _followed(found) else 0.0
        numbers[f"shuffled_restricted_mean_{tau}"] = value
    return numbers


def _survival_rows(name: str, curve: lifetimes.Survival) -> list[dict[str, Any]]:
    columns = ("t", "survival", "low", "high", "at_risk", "hazard")
    return [
        {"model": name} | dict(zip(columns, row, strict=True))
        for row in zip(*(getattr(curve, column).tolist() for column in columns), strict=True)
    ]


def _feature_rows(
    one: Subject, found: Runs, life: tsae.Lifecycle, context: Context
) -> list[dict[str, Any]]:
    """One row per feature that is ever active, the most active first: what it reads, its life."""
    mean = lifetimes.feature_restricted_mean(found, 64)
    stays = lifetimes.persistence(found)[1]
    words = top_words(one.codes, context)
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
            "persistence": _short(stays[feature]),
            "restricted_mean_64": _short(mean[feature]),
        }
        for feature in order[: int((life.fired > 0).sum())]
    ]


def _short(value: Any) -> float:
    return float(f"{value:.6g}")
