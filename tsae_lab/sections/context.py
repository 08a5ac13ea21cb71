"""What every section shares: the text with the codes of its SAEs, estimates, intervals, words.

A section gives numbers, tables and figures; it writes no file, and reads none but a language model
and public sets of minimal pairs. `run_3` calls each with the TSAE and the static SAE side by side,
a command with one of them. A measure that is not defined for the codes it gets (no active feature,
one document, one token per chunk) is None, and so is an interval that cannot be estimated.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

import metrics
from metrics import CodedText
from tsae import Sae
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.data.store import Store
from tsae_lab.data.texts import spelled
from tsae_lab.measures import evaluation
from tsae_lab.sections import figures

N_BOOT = 200
Numbers = dict[str, float | None]
"""Measures by key; None: could not be computed, which is null in JSON and "-" in a table."""


@dataclass(frozen=True, eq=False)
class Section:
    """Results of one part of an analysis; a table is a list of rows."""

    numbers: Numbers = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """the table "intervals" has the columns measure, model, value, low and high"""
    figures: dict[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """An SAE and its codes on the text."""

    name: str  # in figures and tables, "TSAE" or "static SAE"
    prefix: str  # of its numbers' names
    sae: Sae
    codes: CodedText
    fve: float

    @property
    def slug(self) -> str:
        """Its name in file names."""
        return self.name.split()[0].lower()

    @property
    def dec_norm(self) -> Float[Tensor, " d_sae"]:
        """Norms of the decoder's rows: what turns activations into contributions."""
        return self.sae.params.static.W_dec.detach().cpu().norm(dim=1)


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


def subject(
    sae: Sae, store: Store, *, prefix: str = "", progress: Callable[[], None] = lambda: None
) -> Subject:
    """An SAE with its codes on the store."""
    measured = evaluation.measure(sae, store, progress)
    name = "TSAE" if sae.temporal else "static SAE"
    return Subject(name=name, prefix=prefix, sae=sae, codes=measured.codes, fve=measured.fve)


# -------------------------------------------------------------------- estimates and their intervals


@dataclass(frozen=True, eq=False)
class Estimate:
    """A measure with its bootstrap samples over documents and the range it can be in."""

    value: float | None
    replicates: Float[np.ndarray, " n_boot"]
    least: float = 0.0
    most: float = 1.0


ABSENT = Estimate(None, np.zeros(0))


def interval_rows(
    context: Context, estimates: Sequence[Mapping[str, Estimate]]
) -> list[dict[str, Any]]:
    """95 % intervals of each subject's estimates and, of two subjects, of the differences.

    The differences are paired: both subjects' bootstrap samples are of the same documents. What
    has no value, or a single document to resample, has no interval.
    """
    n_doc = len(context.store.tokens.document.unique())
    names = [subject.name for subject in context.subjects]
    listed = list(zip(names, estimates, strict=True))
    if len(estimates) == 2:
        first, second = estimates
        paired = {m: difference(first[m], second[m]) for m in first if m in second}
        listed.append((" - ".join(names), paired))
    return [
        estimate_row(measure, name, estimate, n_doc)
        for name, by_measure in listed
        for measure, estimate in by_measure.items()
    ]


def difference(one: Estimate, other: Estimate) -> Estimate:
    """One minus the other; paired where both sets of samples are of the same things."""
    if one.value is None or other.value is None:
        return ABSENT
    spread = one.replicates - other.replicates
    return Estimate(one.value - other.value, spread, one.least - other.most, one.most - other.least)


def estimate_row(measure: str, model: str, estimate: Estimate, n: int) -> dict[str, Any]:
    """A row of the table "intervals", of an estimate whose samples are of n things."""
    range_of = estimate.least, estimate.most
    bounds = metrics.interval(estimate.value, estimate.replicates, n, *range_of)
    return interval_row(measure, model, estimate.value, bounds)


def interval_row(
    measure: str, model: str, value: float | None, bounds: metrics.Interval | None
) -> dict[str, Any]:
    """A row of the table "intervals"."""
    low, high = bounds or (None, None)
    return {"measure": measure, "model": model, "value": value, "low": low, "high": high}


def named(context: Context, values: Sequence[Mapping[str, float | None]]) -> Numbers:
    """The numbers of each subject under its prefix, and the `differences` of two."""
    numbers: Numbers = {}
    for subject, own in zip(context.subjects, values, strict=True):
        numbers |= {
            f"{subject.prefix}{name}": None if value is None else float(value)
            for name, value in own.items()
        }
    return numbers | differences(numbers)


def differences(numbers: Mapping[str, float | None]) -> Numbers:
    """`difference_...` of every number that the static SAE has too: TSAE minus static SAE.

    A difference of what could not be computed is None too.
    """
    pairs = {key: (own, numbers[f"static_{key}"]) for key, own in numbers.items()
             if f"static_{key}" in numbers}  # fmt: skip
    return {
        f"difference_{key}": None if own is None or static is None else own - static
        for key, (own, static) in pairs.items()
    }


def summary(by_seed: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Per measure: mean, standard error s / sqrt(n) and every seed's value; of paired differences
    the 95 % t-interval, `mean +- t(n - 1) s / sqrt(n)`.

    All are over the n seeds that have the measure: None where none has it, standard error and
    interval also where a single one has.
    """
    keys = list(dict.fromkeys(key for measures in by_seed for key in measures))
    values = {key: [measures.get(key) for measures in by_seed] for key in keys}
    means, errors, spans = {}, {}, {}
    for key, of_seeds in values.items():
        present = [value for value in of_seeds if value is not None]
        n = len(present)
        means[f"{key}_mean"] = float(np.mean(present)) if present else None
        error = float(np.std(present, ddof=1) / math.sqrt(n)) if n > 1 else None
        errors[f"{key}_stderr"] = error
        if key.startswith("difference_"):
            half = None if error is None else float(stats.t.ppf(0.975, n - 1)) * error
            mean = means[f"{key}_mean"]
            spans[key] = None if half is None else [mean - half, mean + half]
    numbers = {"means": means, "stderrs": errors, "final_info_dict": values}
    return numbers | {"seed_intervals": spans}


def top_words(codes: CodedText, context: Context, n: int = 3) -> dict[int, str]:
    """The `n` tokens with the largest summed activation of each active feature, largest first."""
    entries = metrics.token_matrix(codes).tocoo()
    ids = context.ids.flatten().numpy()[entries.coords[0]]
    most = int(ids.max(initial=0)) + 1
    cell, member = np.unique(entries.coords[1].astype(np.int64) * most + ids, return_inverse=True)
    total = np.bincount(member, entries.data, minlength=len(cell))
    order = np.lexsort((-total, cell // most))
    words: dict[int, list[str]] = {}
    for feature, token in zip(
        (cell[order] // most).tolist(), (cell[order] % most).tolist(), strict=True
    ):
        of_feature = words.setdefault(feature, [])
        if len(of_feature) < n:
            of_feature.append(figures.shown(context.words[token]))
    return {feature: " ".join(tokens) for feature, tokens in words.items()}


def labels(words: Mapping[int, str]) -> dict[int, str]:
    """Feature number and the word it is most active on, for axes and nodes."""
    return {feature: f"{feature} {text.split(' ')[0][:14]}" for feature, text in words.items()}


def context_of(
    name: str,
    seed: int,
    lm: LanguageModel,
    store: Store,
    subjects: Sequence[Subject],
    *,
    long: bool,
) -> Context:
    """A context with the words of its text."""
    words = {i: spelled(lm.tokenizer, [i]) for i in store.tokens.ids.unique().tolist()}
    shared = {"lm": lm, "store": store, "words": words, "subjects": tuple(subjects)}
    return Context(dataset=name, seed=seed, long=long, **shared)
