"""Processes killed at random moments, and what the same command makes of what is left."""

import json
import random
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from faults.home import (
    Home,
    Row,
    call,
    contents,
    copy_of,
    differences,
    ended,
    left_over,
    new_home,
    scratch,
    send,
    start,
)
from tsae_lab.jobs import checkpoint

NEEDS = {"run_2": (), "run_3": ("run_2",), "run_4": (), "report": ("run_2", "run_3")}
SHARES = {"run_2": 0.5, "run_3": 0.25, "run_4": 0.15, "report": 0.1}  # of the kills
MADE = {"run_2": "run_2", "run_3": "run_3", "run_4": "run_4", "report": "report.html"}
A_RUN = 5  # kills of one run at most
LENGTHS = 20  # at which a checkpoint is cut
FORCED = {"SIGTERM": 143, "SIGINT": 130}  # signals that end in order, and their exit codes


def campaign(n: int, seed: int, folder: Path, shares: Mapping[str, float] = SHARES) -> list[Row]:
    """`n` kills of run_2, run_3, run_4 and the report; a twentieth as many of each other signal."""
    home, rng = new_home(folder / "undisturbed"), random.Random(seed)
    seconds, rows = _undisturbed(home, shares), []
    for name, share in shares.items():
        wanted, trial = max(1, round(n * share)), 0
        while wanted > 0:
            most = min(A_RUN, wanted)
            made = _trial(home, name, "SIGKILL", _moments(rng, seconds[name], most), folder, trial)
            rows += made
            wanted, trial = wanted - len(made), trial + 1
    for signal_name in FORCED:
        for i in range(max(1, n // 20)):
            name = list(shares)[i % len(shares)]
            moments = _moments(rng, seconds[name], 1)
            rows += _trial(home, name, signal_name, moments, folder, i)
    return rows + _cut_checkpoints(home, rng, folder, LENGTHS if n >= 100 else 1)


def _undisturbed(home: Home, names: Iterable[str]) -> dict[str, float]:
    """Runs every command once; the seconds that each took."""
    took = {}
    for name in names:
        began = time.monotonic()
        code, output = call(home, home.run(name))
        took[name] = time.monotonic() - began
        assert code == 0, output[-2000:]
    return took


def _moments(rng: random.Random, seconds: float, n: int) -> list[float]:
    """Seconds between the kills of a run: the moments are uniform over its undisturbed length."""
    moments = sorted(rng.uniform(0, seconds) for _ in range(n))
    return [b - a for a, b in zip([0.0, *moments], moments, strict=False)]


def _trial(
    home: Home, name: str, signal_name: str, waits: list[float], folder: Path, trial: int
) -> list[Row]:
    """A row per kill of one run; all are right if what the run ends with is."""
    kills: list[Row] = []
    with scratch(folder, f"{name}_{signal_name}_{trial}") as place:
        parts = (*NEEDS[name], *(("cache",) if NEEDS[name] else ()))
        own = copy_of(home, place, *parts)
        before = contents(*(own.folder / part for part in NEEDS[name]), home.text)
        faults = []
        for wait in waits:
            pid, began = start(own, own.run(name)), time.monotonic()
            code = ended(pid, wait)
            if code is not None:
                break  # it was faster
            send(pid, getattr(signal, signal_name))
            code = ended(pid)
            kills.append({"what": f"{name}, {signal_name}", "at": time.monotonic() - began})
            faults += _broken(own, name) + _forced(own, signal_name, code)
        code, output = call(own, own.run(name))
        faults += [output[-500:]] * (code != 0) + [f"left: {x}" for x in left_over(own.folder)]
        faults += [f"changed: {p}" for p, data in before.items() if p.read_bytes() != data]
        made = [place / MADE[name], home.folder / MADE[name]]
        if made[0].is_dir():
            faults += [f"differs: {line}" for line in differences(*made)]
        elif made[0].read_bytes() != made[1].read_bytes():
            faults.append("differs: report.html")
    return [kill | {"ok": not faults, "fault": "; ".join(faults)[:2000]} for kill in kills]


def _broken(home: Home, name: str) -> list[str]:
    """Files under their own names that are not whole right after a kill."""
    broken = []
    for path in (home.folder / name).rglob("*"):
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            if path.suffix == ".safetensors" and path.name != "sae_weights.safetensors":
                checkpoint.load_tensors(path)
        except ValueError as error:
            broken.append(f"not whole: {error}")
    return broken


def _forced(home: Home, signal_name: str, code: int | None) -> list[str]:
    """What is wrong with the end of a process that was asked to stop."""
    if signal_name not in FORCED or code == 0:  # it ended before the signal was seen
        return []
    output = home.log.read_text()
    faults = [f"exit code {code}"] * (code not in (FORCED[signal_name], -15, -2))
    faults += ["a traceback"] * ("Traceback" in output)
    kept = (".partial", ".checkpoint.safetensors")  # from which the work goes on
    orderly = code == FORCED[signal_name]
    return faults + [f"left: {x}" for x in left_over(home.folder) if orderly and
                     not x.endswith(kept)]  # fmt: skip


def _cut_checkpoints(home: Home, rng: random.Random, folder: Path, n_taken: int) -> list[Row]:
    """A checkpoint cut at each of 20 lengths is refused; after `n_taken` of them the run is taken
    to its end, from the checkpoint before.
    """
    rows: list[Row] = []
    with scratch(folder, "cut") as place:
        own = copy_of(home, place)
        path = own.seed / "static.checkpoint.safetensors"
        pid = start(own, own.run("run_2"))
        while not (path.exists() and path.with_name(f"before.{path.name}").exists()):
            if ended(pid, 0.005) is not None:
                raise RuntimeError(f"not killed in time: {own.log.read_text()[-500:]}")
        send(pid, signal.SIGKILL)
        ended(pid)
        whole = path.read_bytes()
        for i in range(LENGTHS):
            length = rng.randrange(len(whole))
            path.write_bytes(whole[:length])
            try:
                checkpoint.load_tensors(path)
                fault = "it was loaded"
            except checkpoint.Damaged:
                fault = _went_on(own, home, place / "again") if i < n_taken else ""
            rows.append({"what": "checkpoint cut", "at": length, "ok": not fault, "fault": fault})
    return rows


def _went_on(own: Home, home: Home, place: Path) -> str:
    """Whether a copy of the run goes on from the checkpoint before; "" or what is wrong."""
    with scratch(place.parent, place.name):
        other = copy_of(own, place, "run_2", "cache")
        code, output = call(other, other.run("run_2"))
        said = "going on from what was saved before it" in output
        odd = differences(place / "run_2", home.folder / "run_2")
    return "" if code == 0 and said and not odd else f"{output[-300:]}; {odd}"
