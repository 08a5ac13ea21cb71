"""What is said about a model's codes on a text: sections of numbers, tables and figures. Nothing is read or written.

`run_3` calls each section with the static SAE and the TSAE side by side, a command with one model. A measure that is
not defined for the codes it gets (no active feature, one document, one token a chunk) is 0, so that a mean over seeds
stays finite; an interval about which nothing is known is the whole range of its measure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from torch import Tensor

import evaluation
import lifetimes
import metrics
import report
import tsae
from activations import LanguageModel
from lifetimes import Runs
from metrics import Codes
from stores import Store

TAUS = (16, 64, 128)  # tokens to which lifetimes are restricted
LAGS = range(1, 17)
N_BOOT = 200


@dataclass(frozen=True, eq=False)
class Section:
    """One part of an analysis. A table is a list of rows; "intervals" has measure, model, value, low and high."""

    numbers: dict[str, float] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """A model and its codes on the text."""

    name: str  # in figures and tables, "TSAE" or "static SAE"
    prefix: str  # of its numbers' names
    weights: tsae.Static | tsae.Params
    dials: tsae.Dials  # of a static SAE, k and low count
    model: evaluation.Model
    codes: Codes
    fve: float

    @property
    def slug(self) -> str:
        """Its name in file names."""
        return self.name.split()[0].lower()

    @property
    def dec_norm(self) -> Float[Tensor, " d_sae"]:
        """Norms of the decoder's rows: what turns activations into contributions."""
        return static_part(self.weights).W_dec.detach().cpu().norm(dim=1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Context:
    """One text, one seed: what every section is given."""

    dataset: str
    seed: int
    long: bool  # figures and long tables are wanted, not the numbers and intervals alone
    lm: LanguageModel
    store: Store
    words: Mapping[int, str]  # token id to its text
    subjects: tuple[Subject, ...]  # the TSAE first, where there are two
    share: float = 1.0  # of the probing items, and of the interventions' cases and controls
    data_dir: str = ""  # where sets of minimal pairs lie

    @property
    def ids(self) -> Int[Tensor, "n_seq seq"]:
        """Token ids of the text, without the prefix."""
        tokens = self.store.tokens
        return tokens.ids[:, -tokens.valid.shape[1] :].long()

    @property
    def two(self) -> tuple[Subject, Subject] | None:
        """TSAE and static SAE, if there are both."""
        return (self.subjects[0], self.subjects[1]) if len(self.subjects) == 2 else None


def static_part(weights: tsae.Static | tsae.Params) -> tsae.Static:
    """The static SAE of a model."""
    return weights.static if isinstance(weights, tsae.Params) else weights


def subject(
    weights: tsae.Static | tsae.Params,
    dials: tsae.Dials,
    store: Store,
    device: torch.device,
    *,
    prefix: str = "",
    progress: Callable[[], None] = lambda: None,
) -> Subject:
    """A model with its codes on the store."""
    if isinstance(weights, tsae.Params):
        name, model = "TSAE", evaluation.tsae_model(weights, dials)
    else:
        name, model = "static SAE", evaluation.static_model(weights, dials.k, dials.low)
    found = evaluation.measure(model, store, len(static_part(weights).b_enc), device, progress)
    return Subject(
        name=name, prefix=prefix, weights=weights, dials=dials, model=model, codes=found.codes, fve=found.fve
    )


# ---------------------------------------------------------------- estimates and their intervals


@dataclass(frozen=True, eq=False)
class Estimate:
    """A measure with its bootstrap samples over documents and the range it can be in."""

    value: float
    replicates: Float[np.ndarray, " n_boot"]
    least: float = 0.0
    most: float = 1.0


def interval_rows(context: Context, found: Sequence[Mapping[str, Estimate]]) -> list[dict[str, Any]]:
    """95 % intervals of the estimates of each subject, and of their differences, paired: equal samples of documents."""
    n_doc = len(context.store.tokens.document.unique())
    rows = [_row(m, s.name, e, n_doc) for s, part in zip(context.subjects, found, strict=True) for m, e in part.items()]
    if context.two:
        name = f"{context.subjects[0].name} - {context.subjects[1].name}"
        rows += [_row(m, name, _difference(found[0][m], found[1][m]), n_doc) for m in found[0] if m in found[1]]
    return rows


def _difference(one: Estimate, other: Estimate) -> Estimate:
    paired = len(one.replicates) == len(other.replicates)
    spread = one.replicates - other.replicates if paired else np.zeros(0)
    return Estimate(one.value - other.value, spread, one.least - other.most, one.most - other.least)


def _row(measure: str, model: str, estimate: Estimate, n_doc: int) -> dict[str, Any]:
    low, high = metrics.interval(estimate.value, estimate.replicates, n_doc, estimate.least, estimate.most)
    return {"measure": measure, "model": model, "value": estimate.value, "low": low, "high": high}


def named(context: Context, found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The numbers of each subject under its prefix; of two also `difference_...`, the first minus the second."""
    numbers = {}
    for one, part in zip(context.subjects, found, strict=True):
        numbers |= {f"{one.prefix}{name}": float(value) for name, value in part.items()}
    if context.two:
        numbers |= {f"difference_{k}": float(v - found[1][k]) for k, v in found[0].items() if k in found[1]}
    return numbers


def _generator(context: Context) -> torch.Generator:
    """The same for every subject, so that their bootstrap samples are paired."""
    return torch.Generator().manual_seed(context.seed)


def _n_documents(codes: Codes) -> int:
    return len(codes.document[codes.valid.any(1)].unique())


def _longest(codes: Codes) -> int:
    return int(codes.valid.sum(1).max())


# ---------------------------------------------------------------- stability


def stability(context: Context) -> Section:
    """TSS by lag against both nulls, overlap of neighbours, responsiveness at splices, smoothness."""
    scores = [stability_scores(s.codes, s.dec_norm, _generator(context)) for s in context.subjects]
    overlaps = [_overlap(s.codes, _generator(context)) for s in context.subjects]
    numbers, estimates = [], []
    for one, by_null, overlap in zip(context.subjects, scores, overlaps, strict=True):
        estimates.append({"jaccard": overlap} | _score_estimates(by_null))
        numbers.append(
            {"jaccard": overlap.value, "jaccard_kappa": _kappa(one.codes)}
            | _score_numbers(by_null)
            | _responsiveness(one, context.store)
            | {"smoothness": _smoothness(one.codes, context.store)}
        )
    tables = {"intervals": interval_rows(context, estimates)}
    figures = {}
    if context.long and all(scores):
        by_name = {s.name: by_null["tss"] for s, by_null in zip(context.subjects, scores, strict=True)}
        tables["stability_by_lag"] = [row for name, score in by_name.items() for row in _lag_rows(name, score)]
        figures["stability_by_lag"] = report.stability_figure(by_name)
    return Section(named(context, numbers), tables, figures)


def stability_scores(
    codes: Codes, dec_norm: Float[Tensor, " d_sae"], generator: torch.Generator, n_boot: int = N_BOOT
) -> dict[str, metrics.Stability]:
    """TSS against the null over all tokens ("tss") and within documents ("tss_in_document"); empty if no two tokens."""
    lags = [lag for lag in LAGS if lag < _longest(codes)]
    if not lags:
        return {}
    overall = metrics.tss(codes, dec_norm, lags, n_boot=n_boot, generator=generator)
    return {"tss": overall, "tss_in_document": metrics.tss(codes, dec_norm, lags, "document")}


def _score_numbers(scores: Mapping[str, metrics.Stability]) -> dict[str, float]:
    numbers = dict.fromkeys(
        ("tss_mean", "tss_weighted_mean", "tss_in_document_mean", "tss_in_document_weighted_mean"), 0.0
    )
    for name, score in scores.items():
        numbers |= {f"{name}_mean": score.macro, f"{name}_weighted_mean": score.weighted}
        for lag, macro, weighted in zip(score.lags, score.macro_by_lag, score.weighted_by_lag, strict=True):
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
        for lag, macro, weighted in zip(score.lags, score.macro_by_lag, score.weighted_by_lag, strict=True)
    ]


def _overlap(codes: Codes, generator: torch.Generator) -> Estimate:
    """Jaccard overlap of neighbours; 0 without two neighbours."""
    if _longest(codes) < 2:
        return Estimate(0.0, np.zeros(0))
    sums, n_pairs = metrics.jaccard_by_document(codes)
    weights = metrics.resamples(len(sums), N_BOOT, generator)
    return Estimate(float(sums.sum() / n_pairs.sum()), metrics.ratio(weights @ sums, weights @ n_pairs))


def _kappa(codes: Codes) -> float:
    return metrics.jaccard_kappa(codes) if _longest(codes) > 1 else 0.0


def _smoothness(codes: Codes, store: Store) -> float:
    """0 where no two neighbours differ or nothing is active."""
    if _longest(codes) < 2 or not (codes.vals > 0).any():
        return 0.0
    x = store.x(slice(None))
    moves = (x[:, 1:] - x[:, :-1]).norm(dim=-1)[codes.valid[:, 1:]]
    return metrics.smoothness(codes, x) if bool((moves > metrics.EPS_DISTANCE).any()) else 0.0


def _responsiveness(one: Subject, store: Store) -> dict[str, float]:
    """Similarity of neighbours in a document and over a splice, the model's state carried over it; 0 without splice."""
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
def spliced_codes(one: Subject, store: Store, at: int) -> Codes | None:
    """Codes of chunks that go on from position `at` as another document's; None if no two full chunks can be joined."""
    rows = store.tokens.valid.all(1).nonzero()[:, 0]
    document = store.tokens.document[rows]
    if len(document.unique()) < 2 or not 1 < at < store.tokens.valid.shape[1]:
        return None
    index = rows.double()[:, None, None].expand(-1, store.tokens.valid.shape[1], 1)
    mixed, _ = metrics.splice(index, document, at)
    begun, continued = mixed[:, 0, 0].long(), mixed[:, -1, 0].long()
    vals, idx = [], []
    for first, second in zip(begun.split(evaluation.EVAL_ROWS), continued.split(evaluation.EVAL_ROWS), strict=True):
        x = torch.cat([store.x(first)[:, :at], store.x(second)[:, at:]], dim=1)
        codes = one.model(x.to(static_part(one.weights).W_dec.device))[1]
        vals.append(codes.vals.cpu())
        idx.append(codes.idx.cpu())
    return metrics.codes_from_topk(torch.cat(vals), torch.cat(idx), one.codes.d_sae)


# ---------------------------------------------------------------- lifetimes


def lifetime(context: Context) -> Section:
    """Restricted mean lifetimes, half-life, persistence, the shuffle null and lifecycle means; survival curves."""
    found = [lifetimes.runs(s.codes) for s in context.subjects]
    estimates = [_restricted(r, _generator(context)) for r in found]
    numbers = []
    for one, runs, part in zip(context.subjects, found, estimates, strict=True):
        pooled = {name: estimate.value for name, estimate in part.items()}
        numbers.append(pooled | _life_numbers(one.codes, runs) | _shuffled(one.codes, _generator(context)))
    tables, figures = {"intervals": interval_rows(context, estimates)}, {}
    if context.long:
        pairs = zip(context.subjects, found, strict=True)
        curves = {s.name: lifetimes.survival(r) for s, r in pairs if _followed(r)}
        tables["survival"] = [row for name, curve in curves.items() for row in _survival_rows(name, curve)]
        for one, runs in zip(context.subjects, found, strict=True):
            tables[f"features_{one.slug}"] = feature_rows(one, runs, context)
        if curves:
            figures["survival"] = report.survival_figure(curves)
    return Section(named(context, numbers), tables, figures)


def _followed(found: Runs) -> bool:
    """Whether a run whose beginning was seen was followed for a token or more, so that a lifetime can be estimated."""
    return bool((~found.truncated & (found.length - found.censored > 0)).any())


def _restricted(found: Runs, generator: torch.Generator) -> dict[str, Estimate]:
    """Restricted mean lifetimes, pooled over runs; 0 if none was followed for a token."""
    if not _followed(found):
        return {f"restricted_mean_{tau}": Estimate(0.0, np.zeros(0), 0.0, float(tau)) for tau in TAUS}
    seed = int(torch.randint(2**62, (), generator=generator))
    estimates = {}
    for tau in TAUS:
        mean = lifetimes.restricted_mean(found, tau, n_boot=N_BOOT, generator=torch.Generator().manual_seed(seed))
        estimates[f"restricted_mean_{tau}"] = Estimate(mean.value, mean.replicates, 1.0, float(tau))
    return estimates


def _life_numbers(codes: Codes, found: Runs) -> dict[str, float]:
    """`half_life` is the follow-up, a lower bound, where more than half of the runs live past it."""
    numbers = {}
    for tau in TAUS:
        by_feature = lifetimes.feature_restricted_mean(found, tau)
        numbers[f"feature_restricted_mean_{tau}"] = _mean_of(by_feature, by_feature > 0)
    numbers["half_life"] = 0.0
    if _followed(found):
        curve = lifetimes.survival(found)
        numbers["half_life"] = float(curve.follow_up if curve.median is None else curve.median)
    pooled, by_feature = lifetimes.persistence(found)
    has_runs = np.bincount(found.feature, minlength=found.d_sae) > 0
    numbers |= {"persistence": pooled, "feature_persistence": _mean_of(by_feature, has_runs)}
    means = lifetimes.lifecycle_means(lifetimes.lifecycle(codes))
    return numbers | {f"lifecycle_{name}": value for name, value in means.items()}


def _shuffled(codes: Codes, generator: torch.Generator) -> dict[str, float]:
    """The same measures with the tokens of each document in random order: what time does not contribute."""
    found = lifetimes.runs(lifetimes.shuffle(codes, generator))
    numbers = {"shuffled_persistence": lifetimes.persistence(found)[0]}
    for tau in TAUS:
        value = lifetimes.restricted_mean(found, tau).value if _followed(found) else 0.0
        numbers[f"shuffled_restricted_mean_{tau}"] = value
    return numbers


def _mean_of(values: Float[np.ndarray, " d_sae"], counted: Bool[np.ndarray, " d_sae"]) -> float:
    return float(values[counted].mean()) if counted.any() else 0.0


def _survival_rows(name: str, curve: lifetimes.Survival) -> list[dict[str, Any]]:
    columns = ("t", "survival", "low", "high", "at_risk", "hazard")
    return [
        {"model": name} | dict(zip(columns, row, strict=True))
        for row in zip(*(getattr(curve, column).tolist() for column in columns), strict=True)
    ]


def feature_rows(one: Subject, found: Runs, context: Context) -> list[dict[str, Any]]:
    """A row a feature that is ever active, the most active first: what it reads, and its life."""
    cycle = lifetimes.lifecycle(one.codes)
    mean = lifetimes.feature_restricted_mean(found, 64)
    stays = lifetimes.persistence(found)[1]
    words = top_words(one.codes, context)
    rows = []
    for feature in np.argsort(-cycle.active, kind="stable"):
        if cycle.active[feature] == 0:
            break
        counts = {name: int(getattr(cycle, name)[feature]) for name in ("active", "births", "deaths", "gaps", "oldest")}
        shares = {
            "peak": _short(cycle.peak[feature]),
            "persistence": _short(stays[feature]),
            "restricted_mean_64": _short(mean[feature]),
        }
        rows.append({"feature": int(feature), "top_words": words.get(int(feature), "")} | counts | shares)
    return rows


def _short(value: Any) -> float:
    return float(f"{value:.6g}")


def top_words(codes: Codes, context: Context, n: int = 3) -> dict[int, str]:
    """The `n` tokens with the largest summed activation of each active feature, in falling order."""
    entries = metrics.token_matrix(codes).tocoo()
    ids = context.ids.flatten().numpy()[entries.coords[0]]
    most = int(ids.max(initial=0)) + 1
    cell, member = np.unique(entries.coords[1].astype(np.int64) * most + ids, return_inverse=True)
    total = np.bincount(member, entries.data, minlength=len(cell))
    order = np.lexsort((-total, cell // most))
    found: dict[int, list[str]] = {}
    for at in order:
        listed = found.setdefault(int(cell[at] // most), [])
        if len(listed) < n:
            listed.append(report.shown(context.words[int(cell[at] % most)]))
    return {feature: " ".join(words) for feature, words in found.items()}


def labels(words: Mapping[int, str]) -> dict[int, str]:
    """Feature number and the word it is most active on, for axes and nodes."""
    return {feature: f"{feature} {text.split(' ')[0][:14]}" for feature, text in words.items()}
