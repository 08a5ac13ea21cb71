"""Linear probes on any code: dense and k-sparse, on held-out groups, with controls and intervals.

A probe is a logistic regression (scikit-learn). All items of a group (a lemma, a set of names, a
cue) lie on one side of every split; so do they in the inner cross-validation that chooses the
strength of regularisation.
"""

import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from sklearn.linear_model import LogisticRegression


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A minimal pair: `prefix + good + suffix` is a sentence, `prefix + bad + suffix` is none; no
    character is added.

    `good` and `bad` are the words that differ, with the space before them (none at the start of the
    sentence); `suffix` is what comes after, with its own space or full stop. They are never equal.
    """

    prefix: str
    good: str
    bad: str
    suffix: str
    group: str
    """condition that accuracy is reported for: paradigm, case, occupation"""

    @property
    def sentence_good(self) -> str:
        """The grammatical, or the intended, sentence."""
        return self.prefix + self.good + self.suffix

    @property
    def sentence_bad(self) -> str:
        """The other one."""
        return self.prefix + self.bad + self.suffix


@dataclass(frozen=True, kw_only=True)
class Item:
    """A text with the word that is read out, and what a probe should find there."""

    unit: str
    """what one probe is trained for: a frame of agreement, a homonym"""
    text: str
    begin: int
    """character at which the read-out word begins"""
    end: int
    """character after its last: a code that is read there has seen `text[:end]`"""
    label: int
    """0 or 1"""
    group: str
    """lemma, names or cue: never on both sides of a split"""
    frame: str = ""
    distance: int = 0
    """words from what decides the label to the read-out word; 0 where it is not known"""
    congruent: bool | None = None
    """whether the nearest distractor agrees with the label; None where there is none"""
    factors: Mapping[str, str] = field(default_factory=dict, hash=False)
    """what else was crossed, by name"""
    other: tuple[str, int, int] | None = None
    """a second text with its `begin` and `end`, where the label is about both: the probe reads
    |difference| of codes
    """

    @property
    def word(self) -> str:
        """The read-out word."""
        return self.text[self.begin : self.end]


EMBEDDING = "embedding"

Features = (
    sparse.csr_array | Float[np.ndarray, "_items _width"]
)  # not bound: codes of several widths come together
STRENGTHS = (0.01, 0.1, 1.0)  # C of scikit-learn: the inverse of the penalty
KS = (1, 2, 5, 10, 20)


@dataclass(frozen=True, eq=False, kw_only=True)
class Probed:
    """What probes trained on some folds say about the items of the others."""

    correct: Float[np.ndarray, " items"]
    """share of the probes that had the item held out and were right"""
    features: tuple[tuple[int, ...], ...]
    """of each fold, the features its probe was given; empty for all of them"""
    strengths: tuple[float, ...]
    """of each fold, the strength that the inner cross-validation chose"""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A mean with its 95 % interval, by bootstrap over groups."""

    value: float
    low: float
    high: float
    n_items: int
    n_groups: int


# -------------------------------------------------------------------------------------------- splits


def folds(
    groups: Sequence[str], labels: Int[np.ndarray, " items"], n_folds: int, *, seed: int = 0
) -> Int[np.ndarray, " items"]:
    """Fold of each item, 0 .. n_folds - 1: groups dealt out at random, those of one class (cues)
    class by class.

    Raises ValueError for fewer than two folds, or groups.
    """
    share = {group: float(np.mean(labels[at])) for group, at in _members(groups).items()}
    if not 2 <= n_folds <= len(share):
        raise ValueError(
            f"folds needs 2 <= n_folds <= groups; got n_folds={n_folds}, {len(share)} groups"
        )
    rng = np.random.default_rng(seed)
    names = sorted(share)
    shuffled = [names[i] for i in rng.permutation(len(names))]
    dealt = sorted(shuffled, key=lambda group: share[group])  # stable: random within a class
    fold = {group: at % n_folds for at, group in enumerate(dealt)}
    return np.array([fold[group] for group in groups])


def _members(groups: Sequence[str]) -> dict[str, Int[np.ndarray, " _"]]:
    at: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        at.setdefault(group, []).append(i)
    return {group: np.array(found) for group, found in at.items()}


def random_labels(labels: Int[np.ndarray, " items"], *, seed: int = 0) -> Int[np.ndarray, " items"]:
    """The labels in random order: the control task.

    After Hewitt and Liang (2019); theirs draws one label a word type and lets the types recur in
    the test, which measures memory. Here groups are held out, so what a probe memorises does not
    help, and a control above chance says that the split leaks.
    """
    return np.random.default_rng(seed).permutation(labels)


# -------------------------------------------------------------------------------------------- probes


def _rows(features: Any, at: np.ndarray) -> Any:  # scipy's types know no row indexing
    return features[at]


def chosen(features: Features, labels: Int[np.ndarray, " items"], k: int) -> tuple[int, ...]:
    """The k features whose class means differ most, `|mean(label 1) - mean(label 0)|`; the lower
    index on a tie.
    """
    difference = _rows(features, labels == 1).mean(axis=0) - _rows(features, labels == 0).mean(
        axis=0
    )
    return tuple(np.argsort(-np.abs(np.asarray(difference)), kind="stable")[:k].tolist())


def probe(
    features: Features,
    labels: Int[np.ndarray, " items"],
    groups: Sequence[str],
    *,
    k: int | None = None,
    n_folds: int = 5,
    few: bool = False,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> Probed:
    """Probes on `n_folds` splits by group: each trained on all folds but one; if `few`, on one,
    tested on the others.

    With `k`, a probe is given the k features of `chosen`, picked on its training items. Dense
    features are standardised, sparse ones divided by their root mean square, over the training
    items.

    Raises ValueError for lengths that differ, labels other than 0 and 1, one class only (also in a
    training split), k outside 1 .. width, and values that are not finite.
    """
    _check(features, labels, groups, k)
    fold = folds(groups, labels, n_folds, seed=seed)
    hits, times = np.zeros(len(labels)), np.zeros(len(labels))
    picked, strength = [], []
    for at in range(n_folds):
        train = fold == at if few else fold != at
        kept = () if k is None else chosen(_rows(features, train), labels[train], k)
        ours = features if k is None else _columns(features, kept)
        said, best = _fitted(ours, labels, groups, train, strengths, seed)
        hits += (said == labels) & ~train
        times += ~train
        picked.append(kept)
        strength.append(best)
    return Probed(correct=hits / times, features=tuple(picked), strengths=tuple(strength))


def _check(features: Any, labels: np.ndarray, groups: Sequence[str], k: int | None) -> None:
    if not features.shape[0] == len(labels) == len(groups):
        sizes = (features.shape[0], len(labels), len(groups))
        raise ValueError(
            f"a probe needs as many rows of features as labels and groups; got {sizes}"
        )
    classes = np.unique(labels).tolist()
    if classes != [0, 1]:
        raise ValueError(f"a probe needs items of both classes, 0 and 1; got {classes}")
    if k is not None and not 1 <= k <= features.shape[1]:
        raise ValueError(
            f"a probe needs 1 <= k <= features; got k={k}, {features.shape[1]} features"
        )
    values = features if isinstance(features, np.ndarray) else features.data
    if not np.isfinite(values).all():
        raise ValueError("a probe needs finite features; got NaN or infinity")


def _columns(features: Any, kept: Sequence[int]) -> Float[np.ndarray, "items k"]:
    found = features[:, list(kept)]
    return found if isinstance(found, np.ndarray) else found.toarray()


def _fitted(
    features: Any,
    labels: np.ndarray,
    groups: Sequence[str],
    train: Bool[np.ndarray, " items"],
    strengths: Sequence[float],
    seed: int,
) -> tuple[Int[np.ndarray, " items"], float]:
    """What a probe fitted to the training items says about all items, and the strength it was
    given.
    """
    scaled = _scaled(features, train)
    at = np.flatnonzero(train)
    best = _strength(scaled[at], labels[at], [groups[int(i)] for i in at], strengths, seed)
    return _said(_regression(scaled[at], labels[at], best), scaled), best


def _scaled(features: Any, train: Bool[np.ndarray, " items"]) -> Any:
    """Standardised if dense; if sparse, divided by the root mean square (zeros stay)."""
    if isinstance(features, np.ndarray):
        spread = features[train].std(axis=0)
        return (features - features[train].mean(axis=0)) / np.where(spread > 1e-6, spread, 1.0)
    rms = np.sqrt(np.asarray(features[train].power(2).mean(axis=0)))
    return sparse.csr_array(features @ sparse.diags_array(1 / np.where(rms > 1e-6, rms, 1.0)))


def _strength(
    features: Any, labels: np.ndarray, groups: Sequence[str], strengths: Sequence[float], seed: int
) -> float:
    """The strength with the best accuracy on inner folds by group; the weakest probe on a tie.

    Where the groups do not make two folds with both classes to train on, the middle one.
    """
    n_groups = len(set(groups))
    inner = (
        folds(groups, labels, min(3, n_groups // 2), seed=seed + 1)
        if n_groups >= 4
        else np.zeros(len(labels))
    )
    splits = [inner != at for at in np.unique(inner)]
    if len(splits) < 2 or any(len(np.unique(labels[train])) < 2 for train in splits):
        if len(np.unique(labels)) < 2:
            raise ValueError(
                "a training split has one class only: more groups, or fewer folds, are needed"
            )
        return sorted(strengths)[len(strengths) // 2]
    right = {strength: 0 for strength in sorted(strengths)}
    for train, strength in itertools.product(splits, right):
        said = _said(_regression(features[train], labels[train], strength), features[~train])
        right[strength] += int((said == labels[~train]).sum())
    return max(right, key=lambda strength: right[strength])


def _said(probe: LogisticRegression, features: Any) -> Int[np.ndarray, " items"]:
    return np.asarray(probe.predict(features))


def _regression(features: Any, labels: np.ndarray, strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, tol=1e-3, max_iter=1_000).fit(features, labels)


# ------------------------------------------------------------------------------------------ accuracy


def accuracy(
    correct: Float[np.ndarray, " items"],
    groups: Sequence[str],
    *,
    n_boot: int = 1_000,
    seed: int = 0,
) -> Accuracy:
    """The mean of `correct`, and its 95 % interval: percentiles over resamples of whole groups.

    One group gives the interval (mean, mean). Raises ValueError without an item.
    """
    if len(correct) == 0:
        raise ValueError("accuracy needs at least one item; got none")
    members = list(_members(groups).values())
    sums, sizes = (
        np.array([f(correct[at]) for at in members], dtype=np.float64) for f in (np.sum, len)
    )
    drawn = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), size=n_boot
    )
    low, high = np.quantile(drawn @ sums / (drawn @ sizes), (0.025, 0.975))
    value = float(sums.sum() / sizes.sum())
    return Accuracy(
        value=value, low=float(low), high=float(high), n_items=len(correct), n_groups=len(sums)
    )


def scores(
    features: Features,
    items: Sequence[Item],
    *,
    k: int | None,
    control: bool = False,
    seed: int = 0,
    **options: object,
) -> Float[np.ndarray, " items"]:
    """`correct` of every item, by one probe a unit; with `control`, of probes on labels in random
    order.
    """
    out = np.zeros(len(items))
    for unit, at in _members([item.unit for item in items]).items():
        labels = np.array([items[i].label for i in at])
        if control:
            labels = random_labels(labels, seed=seed + zlib.crc32(unit.encode()))
        groups = [items[i].group for i in at]
        try:
            out[at] = probe(_rows(features, at), labels, groups, k=k, seed=seed, **options).correct  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"unit {unit!r} ({len(at)} items): {error}") from error
    return out


MAX_UNITS = 12  # more units than these (homonyms) are not listed one by one


def breakdown(items: Sequence[Item]) -> dict[str, Bool[np.ndarray, " items"]]:
    """Which items each line of a table is about: all, the units if they are few, attractors,
    congruence, distance.
    """
    units = list(dict.fromkeys(item.unit for item in items))
    out = {"all": np.ones(len(items), dtype=bool)}
    if 1 < len(units) <= MAX_UNITS:
        out |= {unit: np.array([item.unit == unit for item in items]) for unit in units}
    if any(item.congruent is not None for item in items):
        out["attractor"] = np.array([item.congruent is not None for item in items])
        out |= {
            name: np.array([item.congruent is value for item in items])
            for name, value in (("congruent", True), ("incongruent", False))
        }
    distances = sorted({item.distance for item in items} - {0})
    out |= {f"distance {d}": np.array([item.distance == d for item in items]) for d in distances}
    return {name: mask for name, mask in out.items() if mask.any()}


PREFIX = {
    "tsae": "",
    "static": "static_",
    "resid": "resid_",
    EMBEDDING: "embed_",
}  # of a model's numbers
CONTROLLED = (5, None)  # the probes that have a random-label control


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """Items, and how they are split."""

    name: str
    items: tuple[Item, ...]
    n_folds: int = 5
    few: bool = False
    """train on one fold and test on the others, so that a probe sees few items"""


# ---------------------------------------------------------------------------------------------- tables


def task_rows(
    task: Task,
    features: Mapping[str, Features],
    *,
    ks: Sequence[int] = KS,
    controlled: Sequence[int | None] = CONTROLLED,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """One row a code, a number of features ("all": dense) and a line of `probes.breakdown`.

    `accuracy` with its interval `low`, `high` (95 %, bootstrap over groups), `n_items`, `n_groups`;
    and, where the random-label control was run, `control` and `selectivity`, their difference. The
    embedding is probed densely only.
    """
    rows, parts = [], breakdown(task.items)
    for name, found in features.items():
        for k in (None,) if name == EMBEDDING else (*ks, None):
            options: dict[str, Any] = {
                "k": k,
                "n_folds": task.n_folds,
                "few": task.few,
                "seed": seed,
            }
            correct = scores(found, task.items, **options)
            control = (
                scores(found, task.items, control=True, **options) if k in controlled else None
            )
            for line, mask in parts.items():
                row = {"task": task.name, "model": name, "k": k or "all", "items": line}
                rows.append(row | _measured(task, correct, control, mask, seed))
            progress()
    return rows


def _measured(
    task: Task, correct: np.ndarray, control: np.ndarray | None, mask: np.ndarray, seed: int
) -> dict[str, float]:
    groups = [item.group for item, kept in zip(task.items, mask, strict=True) if kept]
    found = accuracy(correct[mask], groups, seed=seed)
    out = {"accuracy": found.value, "low": found.low, "high": found.high}
    if control is not None:
        chance = accuracy(control[mask], groups, seed=seed).value
        out |= {"control": chance, "selectivity": found.value - chance}
    return out | {"n_items": found.n_items, "n_groups": found.n_groups}


def row_numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The rows as plain numbers: `probe_agreement_k5`, `static_probe_agreement_object_RC_k5`,
    `resid_probe_agreement`.

    The TSAE's have no prefix; dense probes have no k; lines other than "all" stand after the task.
    Distances are left to the tables. Selectivity is `..._selectivity`.
    """
    out = {}
    for row in rows:
        if row["items"].startswith("distance"):
            continue
        part = "" if row["items"] == "all" else f"_{row['items'].replace(' ', '_')}"
        k = "" if row["k"] == "all" else f"_k{row['k']}"
        prefix = PREFIX.get(row["model"], f"{row['model'].replace(' ', '_').replace('+', '_')}_")
        name = f"{prefix}probe_{row['task']}{part}{k}"
        out[name] = row["accuracy"]
        if "selectivity" in row and row["items"] == "all":
            out[f"{name}_selectivity"] = row["selectivity"]
    return out
