"""What every section shares: the text with the codes of its SAEs, estimates, intervals, words.

A section gives numbers, tables and figures; it writes no file, and reads none but a language model
and public sets of minimal pairs. `run_3` calls each with the TSAE and the static SAE side by side,
a command with one of them. A measure that is not defined
for the codes it gets (no active feature, one document, one token per chunk) is 0, so that a mean
over seeds stays finite; where no interval can be estimated, the range of the measure is returned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

import metrics
from metrics import CodedText
from tsae import Sae
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.data.store import Store
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

    value: float
    replicates: Float[np.ndarray, " n_boot"]
    least: float = 0.0
    most: float = 1.0


def interval_rows(
    context: Context, estimates: Sequence[Mapping[str, Estimate]]
) -> list[dict[str, Any]]:
    """95 % intervals of each subject's estimates and, of two subjects, of the differences.

    The differences are paired: both subjects' bootstrap samples are of the same documents.
    """
    n_doc = len(context.store.tokens.document.unique())
    names = [subject.name for subject in context.subjects]
    listed = list(zip(names, estimates, strict=True))
    if len(estimates) == 2:
        first, second = estimates
        differences = {m: _difference(first[m], second[m]) for m in first if m in second}
        listed.append((" - ".join(names), differences))
    return [
        _row(measure, name, estimate, n_doc)
        for name, by_measure in listed
        for measure, estimate in by_measure.items()
    ]


def _difference(one: Estimate, other: Estimate) -> Estimate:
    paired = len(one.replicates) == len(other.replicates)
    spread = one.replicates - other.replicates if paired else np.zeros(0)
    return Estimate(one.value - other.value, spread, one.least - other.most, one.most - other.least)


def _row(measure: str, model: str, estimate: Estimate, n_doc: int) -> dict[str, Any]:
    low, high = metrics.interval(
        estimate.value, estimate.replicates, n_doc, estimate.least, estimate.most
    )
    return {"measure": measure, "model": model, "value": estimate.value, "low": low, "high": high}


def named(context: Context, values: Sequence[Mapping[str, float | None]]) -> Numbers:
    """The numbers of each subject under its prefix; of two, also `difference_...`: first - second.

    A difference of what could not be computed is None too.
    """
    numbers: Numbers = {}
    for subject, own in zip(context.subjects, values, strict=True):
        numbers |= {
            f"{subject.prefix}{name}": None if value is None else float(value)
            for name, value in own.items()
        }
    if len(values) == 2:
        first, second = values
        for name in [name for name in first if name in second]:
            one, other = first[name], second[name]
            difference = None if one is None or other is None else float(one - other)
            numbers[f"difference_{name}"] = difference
    return numbers


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
    words = {i: lm.tokenizer.decode([i]) for i in store.tokens.ids.unique().tolist()}
    shared = {"lm": lm, "store": store, "words": words, "subjects": tuple(subjects)}
    return Context(dataset=name, seed=seed, long=long, **shared)
