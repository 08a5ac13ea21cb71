"""What is said about a model's codes on a text: sections of numbers, tables and figures. Nothing is
read or written.

`run_3` calls each section with the static SAE and the TSAE side by side, a command with one model.
A measure that is not defined for the codes it gets (no active feature, one document, one token a
chunk) is 0, so that a mean over seeds stays finite; an interval about which nothing is known is the
whole range of its measure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
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


@dataclass(frozen=True, eq=False)
class Section:
    """One part of an analysis. A table is a list of rows; "intervals" has measure, model, value,
    low and high.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
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

    @property
    def two(self) -> tuple[Subject, Subject] | None:
        """TSAE and static SAE, if there are both."""
        return (self.subjects[0], self.subjects[1]) if len(self.subjects) == 2 else None


def subject(
    sae: Sae, store: Store, *, prefix: str = "", progress: Callable[[], None] = lambda: None
) -> Subject:
    """An SAE with its codes on the store."""
    measured = evaluation.measure(sae, store, progress)
    name = "TSAE" if sae.temporal else "static SAE"
    return Subject(name=name, prefix=prefix, sae=sae, codes=measured.codes, fve=measured.fve)


# ---------------------------------------------------------------- estimates and their intervals


@dataclass(frozen=True, eq=False)
class Estimate:
    """A measure with its bootstrap samples over documents and the range it can be in."""

    value: float
    replicates: Float[np.ndarray, " n_boot"]
    least: float = 0.0
    most: float = 1.0


def interval_rows(
    context: Context, found: Sequence[Mapping[str, Estimate]]
) -> list[dict[str, Any]]:
    """95 % intervals of the estimates of each subject, and of their differences, paired: equal
    samples of documents.
    """
    n_doc = len(context.store.tokens.document.unique())
    rows = [
        _row(m, s.name, e, n_doc)
        for s, part in zip(context.subjects, found, strict=True)
        for m, e in part.items()
    ]
    if context.two:
        name = f"{context.subjects[0].name} - {context.subjects[1].name}"
        rows += [
            _row(m, name, _difference(found[0][m], found[1][m]), n_doc)
            for m in found[0]
            if m in found[1]
        ]
    return rows


def _difference(one: Estimate, other: Estimate) -> Estimate:
    paired = len(one.replicates) == len(other.replicates)
    spread = one.replicates - other.replicates if paired else np.zeros(0)
    return Estimate(one.value - other.value, spread, one.least - other.most, one.most - other.least)


def _row(measure: str, model: str, estimate: Estimate, n_doc: int) -> dict[str, Any]:
    low, high = metrics.interval(
        estimate.value, estimate.replicates, n_doc, estimate.least, estimate.most
    )
    return {"measure": measure, "model": model, "value": estimate.value, "low": low, "high": high}


def named(context: Context, found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The numbers of each subject under its prefix; of two also `difference_...`, the first minus
    the second.
    """
    numbers = {}
    for one, part in zip(context.subjects, found, strict=True):
        numbers |= {f"{one.prefix}{name}": float(value) for name, value in part.items()}
    if context.two:
        numbers |= {
            f"difference_{k}": float(v - found[1][k]) for k, v in found[0].items() if k in found[1]
        }
    return numbers


def _generator(context: Context) -> torch.Generator:
    """The same for every subject, so that their bootstrap samples are paired."""
    return torch.Generator().manual_seed(context.seed)


def _longest(codes: CodedText) -> int:
    return int(codes.valid.sum(1).max())


def top_words(codes: CodedText, context: Context, n: int = 3) -> dict[int, str]:
    """The `n` tokens with the largest summed activation of each active feature, in falling
    order.
    """
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
            listed.append(figures.shown(context.words[int(cell[at] % most)]))
    return {feature: " ".join(words) for feature, words in found.items()}


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
    return Context(
        dataset=name,
        seed=seed,
        long=long,
        lm=lm,
        store=store,
        words=words,
        subjects=tuple(subjects),
    )
