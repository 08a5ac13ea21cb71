"""Linear probes on any code: dense and k-sparse, on held-out groups, with controls and intervals.

A probe is a logistic regression (scikit-learn). All items of a group (a lemma, a set of names, a
cue) lie on one side of every split, also in the inner cross-validation that chooses the strength
of regularisation.
"""

import itertools
import math
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import metrics


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A minimal pair: `prefix + good + suffix` is grammatical, `prefix + bad + suffix` is not.

    `good` and `bad` are the words that differ, with the space before them (none at the start of the
    sentence), never empty and never equal; `suffix` has its own space or full stop.
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
    """second text with `begin` and `end`: the probe then reads |difference| of the two codes"""

    @property
    def word(self) -> str:
        """The read-out word."""
        return self.text[self.begin : self.end]


# The widths are not bound to a name: codes of several widths are probed in one call.
Features = sparse.csr_array | Float[np.ndarray, "_items _width"]
STRENGTHS = (0.01, 0.1, 1.0)  # C of scikit-learn: the inverse of the penalty
KS = (1, 2, 5, 10, 20)
CONTROLLED = (5, None)  # numbers of features whose probes have a random-label control
Choice = Literal["raw", "standardised", "l1"]
"""Rule by which a sparse probe's features are chosen, see `chosen`."""
MOST_C = 100  # end of the L1 path, by the C at which it begins
CHOICES: tuple[Choice, ...] = ("raw", "standardised", "l1")
COMPARED = (5, 10)  # numbers of features that all rules choose; others are by the raw difference
EMBEDDING = "embedding"
MAJORITY, WORDS = "majority", "bag of words"  # baselines that see no code
DENSE_ONLY = (EMBEDDING, MAJORITY, WORDS)
DIFFERENCE = "TSAE - static SAE"
PREFIX = {"tsae": "", "static": "static_", "resid": "resid_", EMBEDDING: "embed_"}
PREFIX |= {MAJORITY: "majority_", WORDS: "words_", DIFFERENCE: "difference_"}
Control = Literal["", "groups", "recurring"]
MAX_UNITS = 12  # with more units than these (homonyms), a table has no line per unit


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
    """A mean with its standard error and 95 % interval, by bootstrap over groups.

    None where nothing is known of it: one group, or no resamples.
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    n_items: int
    n_groups: int


# ------------------------------------------------------------------------------------------- splits


def folds(
    groups: Sequence[str], labels: Int[np.ndarray, " items"], n_folds: int, *, seed: int = 0
) -> Int[np.ndarray, " items"]:
    """Fold of each item, 0 .. n_folds - 1: groups dealt out at random, class by class where a group
    (a cue) has one label only.

    Raises ValueError for fewer than two folds, or fewer groups than folds.
    """
    share = {group: float(np.mean(labels[rows])) for group, rows in _members(groups).items()}
    if not 2 <= n_folds <= len(share):
        raise ValueError(
            f"folds needs 2 <= n_folds <= groups; got n_folds={n_folds}, {len(share)} groups"
        )
    names = sorted(share)
    shuffled = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    dealt = sorted(shuffled, key=lambda group: share[group])  # stable: random within a class
    fold = {group: i % n_folds for i, group in enumerate(dealt)}
    return np.array([fold[group] for group in groups])


def _members(groups: Sequence[str]) -> dict[str, Int[np.ndarray, " _"]]:
    """Indices of each group's items."""
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    return {group: np.array(rows) for group, rows in members.items()}


def group_labels(
    labels: Int[np.ndarray, " items"], groups: Sequence[str], *, seed: int = 0
) -> Int[np.ndarray, " items"]:
    """One random label per group, 1 in about as many groups as items have it, in one at least.

    The control task of Hewitt and Liang (2019), whose word types are the groups here. Where groups
    are held out memory does not help, and a probe of these labels above chance means that the split
    leaks; where they recur in the test it measures what the probe can learn by heart.
    """
    members = _members(groups)
    n = min(max(round(float(labels.mean()) * len(members)), 1), len(members) - 1)
    drawn = np.random.default_rng(seed).permutation(np.arange(len(members)) < n)
    out = np.empty(len(labels), dtype=np.int64)
    for rows, label in zip(members.values(), drawn, strict=True):
        out[rows] = label
    return out


# ------------------------------------------------------------------------------------------- probes


def _rows(features: Any, at: np.ndarray) -> Any:  # scipy's types know no row indexing
    return features[at]


def chosen(
    features: Features, labels: Int[np.ndarray, " items"], k: int, by: Choice = "raw"
) -> tuple[int, ...]:
    """The k features that tell the classes apart best, best first; on ties the lower.

    "raw": largest `|mean(label 1) - mean(label 0)|`; "standardised": the same over the standard
    deviation of the feature, 0 where it is constant; "l1": largest weights in a logistic regression
    at the strongest L1 penalty that leaves k or more weights, features scaled as for a probe; the
    standardised difference breaks its ties.
    """
    wide = features.astype(np.float64)
    if by == "l1":
        order = np.lexsort((-_difference(wide, labels, "standardised"), -_l1(wide, labels, k)))
    else:
        order = np.argsort(-_difference(wide, labels, by), kind="stable")
    return tuple(order[:k].tolist())


def _difference(features: Any, labels: np.ndarray, by: Choice) -> Float[np.ndarray, " width"]:
    """Absolute difference of the class means of each feature, raw or in standard deviations."""
    negative, positive = (_rows(features, labels == label).mean(axis=0) for label in (0, 1))
    difference = np.abs(np.asarray(positive - negative))
    if by == "raw":
        return difference
    squares = features**2 if isinstance(features, np.ndarray) else features.power(2)
    power, mean = (np.asarray(x.mean(axis=0)) for x in (squares, features))
    variance = power - mean**2
    varies = variance > 1e-12 * power  # a constant's is rounding alone
    return difference / np.sqrt(np.where(varies, variance, np.inf))


def _l1(features: Any, labels: np.ndarray, k: int) -> Float[np.ndarray, " width"]:
    """Absolute weights at the strongest penalty, to 5 %, under which k or more are not 0.

    Where no penalty of the path leaves so many, those at its weak end.
    """
    scaled = _scaled(features, np.ones(len(labels), dtype=bool))
    if not isinstance(scaled, np.ndarray):  # liblinear takes no wider indices
        parts = (scaled.data, scaled.indices.astype(np.int32), scaled.indptr.astype(np.int32))
        scaled = sparse.csr_array(parts, shape=scaled.shape)
    steepest = np.abs(scaled.T @ (labels - labels.mean())).max()
    if steepest < 1e-9:  # no feature varies with the labels
        return np.zeros(features.shape[1])
    low = high = 1 / steepest  # C at which the first weight leaves 0
    weights = _l1_weights(scaled, labels, high)
    while np.count_nonzero(weights) < k and high * steepest < MOST_C:
        low, high = high, 2 * high
        weights = _l1_weights(scaled, labels, high)
    for _ in range(4):
        middle = math.sqrt(low * high)
        fewer = _l1_weights(scaled, labels, middle)
        enough = np.count_nonzero(fewer) >= k
        low, high, weights = (low, middle, fewer) if enough else (middle, high, weights)
    return weights


def _l1_weights(features: Any, labels: np.ndarray, strength: float) -> Float[np.ndarray, " width"]:
    options: dict[str, Any] = {"l1_ratio": 1, "solver": "liblinear", "intercept_scaling": 10}
    fitted = LogisticRegression(C=strength, tol=1e-3, random_state=0, **options)
    with warnings.catch_warnings():  # at a weak penalty of separable items; its time is bounded
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(features, labels)
    return np.abs(fitted.coef_[0])


def probe(
    features: Features,
    labels: Int[np.ndarray, " items"],
    groups: Sequence[str],
    *,
    k: int | None = None,
    by: Choice = "raw",
    n_folds: int = 5,
    few: bool = False,
    seed: int = 0,
) -> Probed:
    """Probes on `n_folds` splits by group, each trained on all folds but one and tested on that;
    with `few`, trained on one and tested on the others.

    With `k`, a probe is given the k features of `chosen`, picked on its training items by the rule
    `by`. Dense features are standardised, sparse ones divided by their root mean square, over the
    training items.

    Raises ValueError for lengths that differ, labels other than 0 and 1, one class only (also in a
    training split), k outside 1 .. width, and values that are not finite.
    """
    _check(features, labels, groups, k)
    fold = folds(groups, labels, n_folds, seed=seed)
    n_right, n_tested = np.zeros(len(labels)), np.zeros(len(labels))
    picked, strengths = [], []
    for i in range(n_folds):
        train = fold == i if few else fold != i
        columns = () if k is None else chosen(_rows(features, train), labels[train], k, by)
        inputs = features if k is None else _columns(features, columns)
        with threadpool_limits(1, user_api="blas"):  # waiting for threads takes longer than adding
            predicted, strength = _fitted(inputs, labels, groups, train, seed)
        n_right += (predicted == labels) & ~train
        n_tested += ~train
        picked.append(columns)
        strengths.append(strength)
    return Probed(correct=n_right / n_tested, features=tuple(picked), strengths=tuple(strengths))


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


def _columns(features: Any, columns: Sequence[int]) -> Float[np.ndarray, "items k"]:
    selected = features[:, list(columns)]
    return selected if isinstance(selected, np.ndarray) else selected.toarray()


def _fitted(
    features: Any,
    labels: np.ndarray,
    groups: Sequence[str],
    train: Bool[np.ndarray, " items"],
    seed: int,
) -> tuple[Int[np.ndarray, " items"], float]:
    """What a probe fitted to the training items predicts for all items, and its strength."""
    scaled = _scaled(features, train)
    rows = np.flatnonzero(train)
    strength = _strength(scaled[rows], labels[rows], [groups[int(i)] for i in rows], seed)
    return _predicted(_regression(scaled[rows], labels[rows], strength), scaled), strength


def _scaled(features: Any, train: Bool[np.ndarray, " items"]) -> Any:
    """Standardised if dense; if sparse, divided by the root mean square (zeros stay)."""
    if isinstance(features, np.ndarray):
        spread = features[train].std(axis=0)
        return (features - features[train].mean(axis=0)) / np.where(spread > 1e-6, spread, 1.0)
    rms = np.sqrt(np.asarray(features[train].power(2).mean(axis=0)))
    return sparse.csr_array(features @ sparse.diags_array(1 / np.where(rms > 1e-6, rms, 1.0)))


def _strength(features: Any, labels: np.ndarray, groups: Sequence[str], seed: int) -> float:
    """The strength with the best accuracy on inner folds by group; on a tie the strongest penalty.

    Where the groups do not make two folds with both classes to train on, the middle one.
    """
    n_groups = len(set(groups))
    inner = np.zeros(len(labels))
    if n_groups >= 4:
        inner = folds(groups, labels, min(3, n_groups // 2), seed=seed + 1)
    splits = [inner != i for i in np.unique(inner)]
    if len(splits) < 2 or any(len(np.unique(labels[train])) < 2 for train in splits):
        if len(np.unique(labels)) < 2:
            raise ValueError(
                "a training split has one class only: more groups, or fewer folds, are needed"
            )
        return sorted(STRENGTHS)[len(STRENGTHS) // 2]
    n_right = {strength: 0 for strength in sorted(STRENGTHS)}
    for train, strength in itertools.product(splits, n_right):
        fitted = _regression(features[train], labels[train], strength)
        n_right[strength] += int((_predicted(fitted, features[~train]) == labels[~train]).sum())
    return max(n_right, key=lambda strength: n_right[strength])


def _predicted(probe: LogisticRegression, features: Any) -> Int[np.ndarray, " items"]:
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # as in `_regression`
        return np.asarray(probe.predict(features))


def _regression(features: Any, labels: np.ndarray, strength: float) -> LogisticRegression:
    probe = LogisticRegression(C=strength, tol=1e-3, max_iter=1_000)
    # some BLAS kernels raise floating-point flags on lanes that they mask out
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        probe.fit(features, labels)
    if not np.isfinite(probe.coef_).all():
        raise ValueError("a probe's coefficients are not finite: the features are too large")
    return probe


# ----------------------------------------------------------------------------------------- accuracy


def accuracy(
    correct: Float[np.ndarray, " items"],
    groups: Sequence[str],
    *,
    n_boot: int = 1_000,
    least: float = 0.0,
    seed: int = 0,
) -> Accuracy:
    """The mean of `correct` with its 95 % interval (`metrics.interval`) over resamples of groups.

    It is cut to [least, 1]: differences have -1 as least. Raises ValueError without an item.
    """
    if len(correct) == 0:
        raise ValueError("accuracy needs at least one item; got none")
    members = _members(groups).values()
    sums = np.array([correct[rows].sum() for rows in members])
    sizes = np.array([len(rows) for rows in members], dtype=np.float64)
    value = float(sums.sum() / sizes.sum())
    generator = torch.Generator().manual_seed(seed)
    replicates = metrics.resampled_ratio(sums, sizes, n_boot, generator)
    n = len(sums)
    low, high = metrics.interval(value, replicates, n, least) or (None, None)
    stderr = metrics.bootstrap_error(replicates, n)
    bounds = {"stderr": stderr, "low": low, "high": high}
    return Accuracy(value=value, **bounds, n_items=len(correct), n_groups=n)


def scores(
    features: Features,
    items: Sequence[Item],
    *,
    k: int | None,
    by: Choice = "raw",
    n_folds: int = 5,
    few: bool = False,
    control: Control = "",
    seed: int = 0,
) -> Float[np.ndarray, " items"]:
    """`correct` of every item, one probe per unit; with `control`, for `group_labels`.

    "groups" holds out the same groups, "recurring" single items, whose groups recur in the test.
    """
    correct = np.zeros(len(items))
    for unit, rows in _members([item.unit for item in items]).items():
        labels = np.array([items[i].label for i in rows])
        inputs, groups = _rows(features, rows), [items[i].group for i in rows]
        if control and len(set(groups)) > 1:
            labels = group_labels(labels, groups, seed=seed + zlib.crc32(unit.encode()))
        if control == "recurring":
            groups = [str(i) for i in rows]
        try:
            probed = probe(inputs, labels, groups, k=k, by=by, n_folds=n_folds, few=few, seed=seed)
        except ValueError as error:
            raise ValueError(f"unit {unit!r} ({len(rows)} items): {error}") from error
        correct[rows] = probed.correct
    return correct


def breakdown(items: Sequence[Item]) -> dict[str, Bool[np.ndarray, " items"]]:
    """Mask of the items of each line of a table: all, each unit (if at most `MAX_UNITS`; of one
    unit, each frame), with an attractor, congruent or not, and each distance.
    """
    units = list(dict.fromkeys(item.unit for item in items))
    frames = list(dict.fromkeys(item.frame for item in items))
    masks = {"all": np.ones(len(items), dtype=bool)}
    if len(units) == 1 < len(frames) <= MAX_UNITS:
        masks |= {frame: np.array([item.frame == frame for item in items]) for frame in frames}
    if 1 < len(units) <= MAX_UNITS:
        masks |= {unit: np.array([item.unit == unit for item in items]) for unit in units}
    masks["attractor"] = np.array([item.congruent is not None for item in items])
    masks["congruent"] = np.array([item.congruent is True for item in items])
    masks["incongruent"] = np.array([item.congruent is False for item in items])
    for distance in sorted({item.distance for item in items} - {0}):
        masks[f"distance {distance}"] = np.array([item.distance == distance for item in items])
    return {name: mask for name, mask in masks.items() if mask.any()}


# ------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """Items, and how they are split."""

    name: str
    items: tuple[Item, ...]
    n_folds: int = 5
    few: bool = False
    """train on one fold and test on the others, so that a probe sees few items"""


def probed_with(ks: Sequence[int]) -> list[tuple[int | None, Choice]]:
    """Number of features and rule of each probe of a code; None, the last: all features.

    The numbers of `COMPARED` are chosen by every rule, the others by the raw difference.
    """
    probed: list[tuple[int | None, Choice]] = []
    for k in ks:
        rules: tuple[Choice, ...] = CHOICES if k in COMPARED else ("raw",)
        probed.extend((k, by) for by in rules)
    return [*probed, (None, "raw")]


def task_rows(
    task: Task,
    features: Mapping[str, Features],
    *,
    ks: Sequence[int] = KS,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """One row per code, number of features ("all": dense), rule that chose them (`chosen`; dense:
    empty) and line of `breakdown`.

    `accuracy` with its `stderr` and interval `low`, `high` (95 %, bootstrap over groups),
    `n_items`, `n_groups`; and, where the controls were run (see `scores`), `control`, of held-out
    groups, `selectivity`, accuracy minus control, and `recurring`. Embedding and baselines are
    probed densely only. Rows of `DIFFERENCE` are paired by item. `progress` is called per probe.
    """
    rows, masks, held = [], breakdown(task.items), {}

    def add(name: str, k: int | None, by: Choice, controls: Mapping[str, Any]) -> None:
        correct = held[name, k, by]
        for line, mask in masks.items():
            row = {"task": task.name, "model": name, "k": k or "all", "chosen": by if k else ""}
            row["items"] = line
            rows.append(row | _measured(task, correct, controls, mask, seed, name == DIFFERENCE))

    for name, code in features.items():
        for k, by in probed_with(() if name in DENSE_ONLY else ks):
            options: dict[str, Any] = {"k": k, "n_folds": task.n_folds, "few": task.few}
            held[name, k, by] = scores(code, task.items, by=by, seed=seed, **options)
            controls = {}
            if k in CONTROLLED and by == "raw" and name not in (MAJORITY, WORDS):
                kinds: tuple[Control, ...] = ("groups", "recurring")
                controls = {
                    kind: scores(code, task.items, seed=seed, control=kind, **options)
                    for kind in kinds
                }
            add(name, k, by, controls)
            progress()
    if {"tsae", "static"} <= features.keys():
        for k, by in probed_with(ks):
            held[DIFFERENCE, k, by] = held["tsae", k, by] - held["static", k, by]
            add(DIFFERENCE, k, by, {})
    return rows


def _measured(
    task: Task,
    correct: np.ndarray,
    controls: Mapping[str, np.ndarray],
    mask: np.ndarray,
    seed: int,
    is_difference: bool,
) -> dict[str, float | None]:
    groups = [task.items[i].group for i in np.flatnonzero(mask)]
    right = accuracy(correct[mask], groups, least=-float(is_difference), seed=seed)
    numbers: dict[str, float | None] = {"accuracy": right.value, "stderr": right.stderr}
    numbers |= {"low": right.low, "high": right.high}
    if controls:
        control = float(controls["groups"][mask].mean())
        numbers |= {"control": control, "selectivity": right.value - control}
        numbers["recurring"] = float(controls["recurring"][mask].mean())
    return numbers | {"n_items": right.n_items, "n_groups": right.n_groups}


def baselines(items: Sequence[Item]) -> dict[str, Features]:
    """What a probe knows without a code: nothing but the labels, and which words a text has.

    A constant, whose probe finds the most frequent label; and one column per word, 1 in the texts
    that have it up to the read-out word (of two texts, |difference|).
    """
    ends = [(item.text[: item.end], item.other) for item in items]
    counts = CountVectorizer(binary=True, token_pattern=r"\w+")
    counts.fit([text for text, _ in ends])
    words = sparse.csr_array(counts.transform([text for text, _ in ends]), dtype=np.float64)
    if all(other is not None for _, other in ends):
        second = counts.transform([other[0][: other[2]] for _, other in ends if other is not None])
        words = abs(words - sparse.csr_array(second))
    return {MAJORITY: np.zeros((len(items), 1)), WORDS: words}


def row_numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Accuracies by name: `probe_agreement_k5`, `static_probe_agreement_object_RC_k5_l1`,
    `resid_probe_agreement`.

    The TSAE has no prefix, a dense probe no k, and the raw choice of features no name; a line other
    than "all" follows the task.
    Distances are in the tables only. Selectivity is `..._selectivity`.
    """
    numbers = {}
    for row in rows:
        if row["items"].startswith("distance"):
            continue
        line = "" if row["items"] == "all" else f"_{row['items'].replace(' ', '_')}"
        k = "" if row["k"] == "all" else f"_k{row['k']}"
        k += "" if row["chosen"] in ("", "raw") else f"_{row['chosen']}"
        prefix = PREFIX.get(row["model"], f"{row['model'].replace(' ', '_').replace('+', '_')}_")
        name = f"{prefix}probe_{row['task']}{line}{k}"
        numbers[name] = row["accuracy"]
        if "selectivity" in row and row["items"] == "all":
            numbers[f"{name}_selectivity"] = row["selectivity"]
    return numbers
