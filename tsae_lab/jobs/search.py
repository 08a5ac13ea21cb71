"""run_4's search: the learning rate and the coefficient of every system, at equal budgets.

Each SAE is trained on the first text's training sequences less the last `HELD` of them, on which it
is then measured, for all of the run's steps and with a seed that no table has; what is done is not
made again. Nothing is taken over from it: `entries` holds the values.
"""

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tsae_lab import checksums, files
from tsae_lab.data import store, texts
from tsae_lab.jobs import ranks
from tsae_lab.jobs.entries import Entry, entry_of
from tsae_lab.jobs.journal import Diverged
from tsae_lab.jobs.making import Contest, trained_system
from tsae_lab.jobs.plan import Data
from tsae_lab.measures import evaluation
from tsae_lab.terminal import Countdown, cell, console, print_table

FACTORS = (0.5, 1.0, 2.0)  # of the run's learning rate
BEYOND = 2  # further ones, at most, where the best is the first or the last
HELD = 0.07  # of the training sequences, from the beginning of a document
SEARCH_SEED = 100  # of no table
TRIAL_STEPS = 8  # from which the search's time is told
FVE_GIVEN = 0.005  # that a system may give for the stability that its coefficient is there for
FVE_EQUAL = 0.001  # a difference that counts as none
L0_NEAR = 1.25  # times k, or k over it: an L0 that counts as k
OURS = ("static", "tsae")  # the systems that are no rivals and are searched, too

ArmRow = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One SAE of the search: a system, its rate in units of the run's, its coefficient's value."""

    name: str
    factor: float
    value: float | None

    @property
    def label(self) -> str:
        own = "" if self.value is None else f", {entry_of(self.name).search[0]} {self.value:g}"
        return f"{self.name}, rate times {self.factor:g}{own}"


def searched(contest: Contest, names: Sequence[str]) -> dict[str, Any]:
    """Searches the rate and the coefficient of every system asked for; writes tuning.csv, and
    prints what it chose.
    """
    out_dir, inner = contest.unit.log.parent, _inner(contest)
    inner.unit.folder.mkdir(parents=True, exist_ok=True)
    systems = searchable(names)
    left = [len(_left(inner, name)) for name in systems]
    owners = ranks.led(lambda: ranks.balanced(left))
    to_train = [name for name, owner in zip(systems, owners, strict=True) if owner == ranks.rank()]
    with ranks.apart():
        _train_arms(inner, to_train)
    ranks.wait()
    if ranks.rank() > 0:
        return {}
    rows = [row for name in systems for row in _of_system(inner, name, Countdown(0))]
    keys = dict.fromkeys(key for row in rows for key in row)  # those that diverged have few
    files.write_csv(out_dir / "tuning.csv", [{key: row.get(key) for key in keys} for row in rows])
    columns = ("system", "rate", "value", "fve", "l0", "jaccard", "alive_frac")
    body = [
        [row["system"], *(cell(row[key], ".4g") for key in columns[1:])]
        for row in rows
        if row["chosen"]
    ]
    print_table("what the search chose", columns, body, caption="all of it in tuning.csv")
    return {"tuning": rows}


def _train_arms(inner: Contest, names: Sequence[str]) -> None:
    """Train and measure the arms of these systems that are not there."""
    arms = [arm for name in names for arm in _planned(name)]
    left = [arm for name in names for arm in _left(inner, name)]
    line = f"the search trains {len(arms)} SAEs or more for {inner.unit.config.steps} steps each"
    line += f", {len(left)} are left{_trial(inner, left)}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    clock = Countdown(len(left))
    for name in names:
        _of_system(inner, name, clock)


def _left(contest: Contest, name: str) -> list[Arm]:
    """The planned arms of a system that are not there."""
    return [arm for arm in _planned(name) if not _is_there(contest, arm)]


def searchable(names: Sequence[str]) -> list[str]:
    """Those of the systems that have something to search; ValueError where none has."""
    systems = [name for name in names if name in OURS or entry_of(name).kind == "rival"]
    if not systems:
        known = f"{', '.join(OURS)} or a rival"
        raise ValueError(f"--tune needs a system that is searched, {known}; got {', '.join(names)}")
    return systems


def _grid(name: str) -> list[tuple[str, tuple[float, ...]]]:
    """What is searched, in this order, and where: the rate, then the coefficient; that on which the
    L0 depends before the rate.
    """
    entry = entry_of(name)
    axes = [("factor", FACTORS), ("value", entry.search[1])]
    return [axis for axis in (axes[::-1] if entry.buys == "l0" else axes) if axis[1]]


def _planned(name: str) -> list[Arm]:
    """The arms of a system, as if its own values were the best."""
    start = _start(name)
    arms = [replace(start, **{axis: v}) for axis, values in _grid(name) for v in values]
    return list(dict.fromkeys(arms))


def _start(name: str) -> Arm:
    return Arm(name=name, factor=1.0, value=entry_of(name).own.get(entry_of(name).search[0]))


def _of_system(contest: Contest, name: str, clock: Countdown) -> list[dict[str, Any]]:
    """The rows of a system: one axis after the other, each at the best of those before."""
    entry, best, rows = entry_of(name), _start(name), {}
    for axis, values in _grid(name):
        by = entry if axis == "value" or entry.buys == "l0" else replace(entry, buys="fve")
        wide = axis == "factor" or entry.buys == "l0"
        arms = [replace(best, **{axis: value}) for value in values]
        while True:
            rows |= {arm: _row(contest, arm, clock) for arm in arms}
            taken = best_arm(by, contest.unit.config.k, [rows[arm] for arm in arms])
            best = next(arm for arm in arms if rows[arm] is taken)
            tried = [getattr(arm, axis) for arm in arms]
            value = getattr(best, axis)
            inside = min(tried) < value < max(tried)
            if inside or not wide or len(arms) == len(values) + BEYOND:
                break
            arms.append(replace(best, **{axis: value * (2 if value == max(tried) else 0.5)}))
    return [row | {"chosen": arm == best} for arm, row in rows.items()]


def _row(contest: Contest, arm: Arm, clock: Countdown) -> dict[str, Any]:
    """An arm's measures, trained and measured unless they are there."""
    place = _arm_place(contest, arm)
    if not place.exists():
        _measure(contest, arm)
        clock.tick(arm.label)
    return checksums.read_sealed(place)


def best_arm(entry: Entry, k: int, rows: Sequence[ArmRow]) -> ArmRow:
    """The best of some arms of a system, by what its coefficient buys.

    "fve": the largest FVE, of equal ones (within `FVE_EQUAL`) that with the L0 nearest to k, then
    the least rate. "jaccard": the largest overlap of neighbouring codes of those within `FVE_GIVEN`
    of the largest FVE. "l0": as "fve", of those with an L0 near k, or the nearest L0 where none is.
    Arms without an FVE are those that diverged; ValueError where all are.
    """
    rows = [row for row in rows if row["fve"] is not None]
    if not rows:
        raise ValueError(f"{entry.about}: no rate of the search led to a finite loss")
    away = {id(row): abs(math.log(max(row["l0"], 1e-9) / k)) for row in rows}
    if entry.buys == "l0":
        most = max(math.log(L0_NEAR), min(away.values()))
        rows = [row for row in rows if away[id(row)] <= most]
    best = max(row["fve"] for row in rows)
    if entry.buys == "jaccard":
        faithful = [row for row in rows if row["fve"] >= best - FVE_GIVEN]
        return max(faithful, key=lambda row: (row["jaccard"] or 0.0, row["fve"]))
    equal = [row for row in rows if row["fve"] >= best - FVE_EQUAL]
    return min(equal, key=lambda row: (round(away[id(row)], 2), row["rate"], -row["fve"]))


def _inner(contest: Contest) -> Contest:
    """The contest on training documents alone, those at the end held out."""
    unit = contest.unit
    own = {"data": _held_out(unit.data, unit.config.seq), "seed": SEARCH_SEED}
    log = unit.log.with_name(unit.log.name.replace("log", "tuning", 1))
    places = {"folder": unit.folder.with_name("tuning"), "log": log}
    return replace(contest, unit=replace(unit, **own, **places))


def _held_out(data: Data, seq: int) -> Data:
    """The training sequences, those at the end as validation: of the first document that begins
    there, or of the last that begins not much before.
    """
    whole = data.stored
    at, document = round((1 - HELD) * len(whole)), whole.tokens.document
    begins = ((document[1:] != document[:-1]).nonzero()[:, 0] + 1).tolist()
    before = [begin for begin in begins if at - HELD * len(whole) <= begin < at]
    cut = next((begin for begin in begins if begin >= at), before[-1] if before else at)
    train, val = (store.of_rows(whole, rows) for rows in (slice(cut), slice(cut, None)))
    packed = texts.pack_rows(train.tokens.valid.sum(1), seq) if data.packed is not None else None
    return Data(name=data.name, train=train, val=val, packed=packed)


def _trial(contest: Contest, arms: Sequence[Arm]) -> str:
    """How long the arms will take, from a few steps of each system."""
    per_step = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch, config = Path(folder), replace(contest.unit.config, steps=TRIAL_STEPS)
        unit = replace(contest.unit, config=config, folder=scratch, log=scratch / "log.jsonl")
        for name in dict.fromkeys(arm.name for arm in arms):
            system = trained_system(replace(contest, unit=unit), entry_of(name), name)
            per_step[name] = (system.seconds or 0.0) / TRIAL_STEPS
    minutes = sum(per_step[arm.name] for arm in arms) * contest.unit.config.steps / 60
    said = ", ".join(f"{name} {seconds:.2f}" for name, seconds in per_step.items())
    return f": about {minutes:.0f} minutes (seconds per step: {said})" if arms else ""


def _arm_place(contest: Contest, arm: Arm) -> Path:
    return contest.unit.folder / f"{arm.name}_{arm.factor:g}_{arm.value}.json"


def _is_there(contest: Contest, arm: Arm) -> bool:
    """Whether an arm is done; one of a later axis at whatever was the best of the one before."""
    axes, start = [axis for axis, _ in _grid(arm.name)], _start(arm.name)
    free = len(axes) > 1 and getattr(arm, axes[1]) != getattr(start, axes[1])
    factor = "*" if free and axes[1] == "value" else f"{arm.factor:g}"
    value = "*" if free and axes[1] == "factor" else arm.value
    return any(contest.unit.folder.glob(f"{arm.name}_{factor}_{value}.json"))


def _measure(contest: Contest, arm: Arm) -> None:
    """Train an arm and write its measures, None where it diverged; its folder is gone then."""
    entry, place = entry_of(arm.name), _arm_place(contest, arm)
    own = {entry.search[0]: arm.value} if arm.value is not None else {}
    changed = replace(entry, own={**entry.own, **own}, rate=1.0)
    config = replace(contest.unit.config, lr=arm.factor * contest.unit.config.lr)
    unit = replace(contest.unit, config=config, folder=place.with_suffix(""))
    unit.folder.mkdir(exist_ok=True)
    try:
        system = trained_system(replace(contest, unit=unit), changed, arm.name)
        width = len(system.dec_norm)
        measured = evaluation.measure_run(system.run, width, unit.data.val, unit.device)
        numbers = evaluation.code_measures(measured, system.dec_norm[:, None])
    except Diverged as error:
        console.print(f"{arm.label}: {error}", highlight=False, markup=False, soft_wrap=True)
        numbers = dict.fromkeys(("fve", "l0", "jaccard", "alive_frac")) | {"absent": "diverged"}
    said = {"system": arm.name, "rate": arm.factor, "lr": config.lr, "steps": config.steps}
    said |= {"coefficient": entry.search[0], "value": arm.value}
    checksums.write_sealed(place, said | numbers)
    shutil.rmtree(unit.folder)
