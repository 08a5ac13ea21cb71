"""What codes know of language: the three probing tasks, for several codes at once, as numbers, tables and figures."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import probes
import readout
import tasks
import tsae
from activations import LanguageModel
from probes import Features
from readout import EMBEDDING, Reader, Reading
from report_language import accuracy_figure, distance_figure
from tasks import Item

PREFIX = {"tsae": "", "static": "static_", "resid": "resid_", EMBEDDING: "embed_"}  # of a model's numbers
CONTROLLED = (5, None)  # the probes that have a random-label control


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """Items, and how they are split."""

    name: str
    items: tuple[Item, ...]
    n_folds: int = 5
    few: bool = False
    """train on one fold and test on the others, so that a probe sees few items"""


def generated(name: str, *, seed: int = 0) -> Task:
    """A generator's task. A homonym's probe is trained on two cues a sense (24 items) and tested on the other six."""
    few = name == "disambiguation"
    make = {**tasks.GENERATORS, "unresolvable": tasks.unresolvable}
    if name not in make:
        raise ValueError(f"a task is one of {', '.join(make)}; got {name!r}")
    return Task(name=name, items=tuple(make[name](seed=seed)), n_folds=4 if few else 5, few=few)


def all_tasks(*, seed: int = 0, share: float = 1.0) -> tuple[Task, ...]:
    """Agreement, coreference, disambiguation, and the control of coreference that nothing can solve.

    With a `share` below 1, that share of each unit's groups, of the homonyms where each is a unit; at least two a fold.
    """
    return tuple(_sampled(generated(name, seed=seed), share, seed) for name in (*tasks.GENERATORS, "unresolvable"))


def _sampled(task: Task, share: float, seed: int) -> Task:
    if share >= 1:
        return task
    rng, groups = np.random.default_rng(seed), {}
    for item in task.items:
        whole = "" if task.few else item.unit
        groups.setdefault(whole, {})[item.unit if task.few else item.group] = None
    least = 1 if task.few else 2 * task.n_folds
    kept = set()
    for whole, names in groups.items():
        n = min(len(names), max(least, round(share * len(names))))
        kept |= {(whole, list(names)[i]) for i in rng.permutation(len(names))[:n]}
    chosen = (item for item in task.items if (("", item.unit) if task.few else (item.unit, item.group)) in kept)
    return replace(task, items=tuple(chosen))


def readers(
    params: tsae.Params | None,
    dials: tsae.Dials | None,
    static: tsae.Static,
    k: int,
    *,
    low: torch.dtype = torch.float32,
    variants: bool = False,
) -> dict[str, Reader]:
    """Readers "tsae" (if there is one), "static" and "resid"; with `variants`, also of what the TSAE carries along.

    "memory" is the memory's reading, "window" its plain mean over all tokens that it holds, "tsae+memory" and
    "tsae+window" side by side, "state" the hidden states of the LSTMs, "static window" the plain mean of the static
    SAE's codes. `low` is the dtype of the static SAE's product.
    """
    out: dict[str, Reader] = {"static": readout.static_reader(static, k, low), "resid": readout.residual_reader()}
    if params is None or dials is None:
        return out
    code, memory = readout.tsae_reader(params, dials), readout.memory_reader(params.static, dials)
    out = {"tsae": code, **out}
    if variants:
        window = readout.memory_reader(params.static, dials, tau=math.inf)
        out |= {"memory": memory, "tsae+memory": readout.joined(code, memory)}
        out |= {"window": window, "tsae+window": readout.joined(code, window)}
        out |= {"state": readout.state_reader(params, dials)}
        out |= {"static window": readout.memory_reader(static, dials, tau=math.inf)}
    return out


# ---------------------------------------------------------------------------------------------- tables


def task_rows(
    task: Task,
    features: Mapping[str, Features],
    *,
    ks: Sequence[int] = probes.KS,
    controlled: Sequence[int | None] = CONTROLLED,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """One row a code, a number of features ("all": dense) and a line of `probes.breakdown`.

    `accuracy` with its interval `low`, `high` (95 %, bootstrap over groups), `n_items`, `n_groups`; and, where the
    random-label control was run, `control` and `selectivity`, their difference. The embedding is probed densely only.
    """
    rows, parts = [], probes.breakdown(task.items)
    for name, found in features.items():
        for k in (None,) if name == EMBEDDING else (*ks, None):
            options: dict[str, Any] = {"k": k, "n_folds": task.n_folds, "few": task.few, "seed": seed}
            correct = probes.scores(found, task.items, **options)
            control = probes.scores(found, task.items, control=True, **options) if k in controlled else None
            for line, mask in parts.items():
                row = {"task": task.name, "model": name, "k": k or "all", "items": line}
                rows.append(row | _measured(task, correct, control, mask, seed))
            progress()
    return rows


def _measured(
    task: Task, correct: np.ndarray, control: np.ndarray | None, mask: np.ndarray, seed: int
) -> dict[str, float]:
    groups = [item.group for item, kept in zip(task.items, mask, strict=True) if kept]
    found = probes.accuracy(correct[mask], groups, seed=seed)
    out = {"accuracy": found.value, "low": found.low, "high": found.high}
    if control is not None:
        chance = probes.accuracy(control[mask], groups, seed=seed).value
        out |= {"control": chance, "selectivity": found.value - chance}
    return out | {"n_items": found.n_items, "n_groups": found.n_groups}


def row_numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The rows as plain numbers: `probe_agreement_k5`, `static_probe_agreement_object_RC_k5`, `resid_probe_agreement`.

    The TSAE's have no prefix; dense probes have no k; lines other than "all" stand after the task. Distances are left
    to the tables. Selectivity is `..._selectivity`.
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


# --------------------------------------------------------------------------------------------- section

Section = tuple[dict[str, float], dict[str, list[dict[str, Any]]], dict[str, Figure]]


def read_tasks(
    lm: LanguageModel, hook: str, given: Sequence[Task], progress: Callable[[], None] = lambda: None
) -> dict[str, Reading]:
    """Activations of every task's items, by task: what any number of codes on this hook are read from."""
    return {task.name: readout.read(lm, hook, task.items, progress) for task in given}


def probe_rows(
    given: Sequence[Task],
    reads: Mapping[str, Reading],
    wanted: Mapping[str, Reader],
    *,
    ks: Sequence[int] = probes.KS,
    embedding: bool = True,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """`task_rows` of all tasks for every code of `wanted` (see `readers`) and, unless told otherwise, layer 0."""
    rows = []
    for task in given:
        found = readout.features(reads[task.name], wanted)
        kept = {name: features for name, features in found.items() if embedding or name != EMBEDDING}
        rows += task_rows(task, kept, ks=ks, seed=seed, progress=progress)
    return rows


def probe_section(rows: Sequence[Mapping[str, Any]]) -> Section:
    """Numbers, table and figures of rows."""
    ks = {row["k"] for row in rows}
    figures = {"probes_by_features": accuracy_figure(rows)}
    if any(row["items"].startswith("distance") for row in rows):
        figures["probes_by_distance"] = distance_figure(rows, 5 if 5 in ks else "all")
    return row_numbers(rows), {"probes": [dict(row) for row in rows]}, figures
