"""A static training step beside those of other libraries: `bench --peers PYTHON`."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tsae_lab.jobs import peer_steps
from tsae_lab.terminal import console, print_table


def interpreter(name: str) -> str:
    """Where a Python interpreter is; ValueError where there is none."""
    path = shutil.which(str(Path(name).expanduser()))
    if path is None:
        raise ValueError(f"--peers needs a Python interpreter, a path or a command; got {name}")
    return str(Path(path).absolute())  # not resolved: a link says which environment it is


def peer_times(python: str, job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What `peer_steps.times_of_peers` measures there; ValueError where it does not run."""
    source = Path(peer_steps.__file__).read_text()
    with tempfile.TemporaryDirectory() as empty:  # where nothing of ours hides a module
        done = subprocess.run(
            [python, "-", json.dumps(job)], input=source, cwd=empty, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        said = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise ValueError(f"--peers: {python} ended with {done.returncode}: {said}") from None


def own_times(step: Callable[[], object], repeats: int, device: str) -> dict[str, float]:
    """Seconds of our step, as those of the peers are taken."""
    took: peer_steps.Took = []
    batches = peer_steps.batches_of({"shape": (1, 1, 1), "device": device}, took)
    for _ in range(repeats + 1):
        next(batches)
        step()
    next(batches)
    return peer_steps.seconds_of(took, repeats)


def show_peers(python: str, job: dict[str, Any], arms: dict[str, Callable[[], object]]) -> None:
    """Our arms before and after theirs, and how many times as long each of theirs takes."""
    own = job["repeats"], job["device"]
    before = {name: own_times(arm, *own) for name, arm in arms.items()}
    theirs = peer_times(python, job)
    after = {name: own_times(arm, *own) for name, arm in arms.items()}
    ours = {n: {k: min(v, after[n][k]) for k, v in before[n].items()} for n in before}
    rows = []
    for name, result in (ours | theirs).items():
        if "seconds" not in result:
            why = f"not in {python}: {result['absent']}" if "absent" in result else result["failed"]
            console.print(f"{name}: {why}", markup=False, highlight=False, soft_wrap=True)
            continue
        times = [result["process_seconds"] / mine["process_seconds"] for mine in ours.values()]
        shown = f"{result['seconds'] * 1e3:.1f}", f"{result['process_seconds'] * 1e3:.1f}"
        rows.append((name, *shown, *(f"{ratio:.2f}" for ratio in times)))
    columns = ("one step", "ms", "ms of the process", *(f"x {name}" for name in ours))
    print_table("beside other libraries, float32 activations", columns, rows)
