"""Checkpoints of a model's training: written while it trains, and gone on from to the same bits."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from tsae_lab import files
from tsae_lab.jobs import checkpoint, identity, ranks, training
from tsae_lab.jobs.plan import Unit
from tsae_lab.jobs.training import Trainer
from tsae_lab.terminal import console, release_memory


def checkpoint_of(unit: Unit, model: str) -> Path:
    """Where a model's last checkpoint lies."""
    return unit.folder / f"{model}.checkpoint.safetensors"


def _before(path: Path) -> Path:
    """Where the checkpoint before the last one lies."""
    return path.with_name(f"before.{path.name}")


def resumed(
    unit: Unit, model: str, start: Callable[[], Trainer], steps: range
) -> tuple[Trainer, int, float]:
    """The trainer, its next step and the seconds so far: of the checkpoint, else of `start`.

    A damaged checkpoint is said; the one before it takes its place. One from after the last step is
    of what follows, and not taken. Of several ranks each has the streams of its own sequences.
    """
    ranks.wait()
    trainer, begin, seconds = _found(unit, model, start, steps)
    held = training.snapshot(replace(trainer, state=None))
    ranks.same_everywhere(held)
    return replace(trainer, state=ranks.own_state(trainer.state)), begin, seconds


def _found(
    unit: Unit, model: str, start: Callable[[], Trainer], steps: range
) -> tuple[Trainer, int, float]:
    path = checkpoint_of(unit, model)
    for place in (path, _before(path)):
        try:
            trainer, meta = restored(unit, place, model)
            if meta["step"] <= steps.stop:
                return trainer, meta["step"], meta["seconds"]
        except FileNotFoundError:
            continue
        except checkpoint.Damaged as error:
            line = f"{' '.join(str(error).split())}; going on from what was saved before it"
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    began = time.perf_counter()
    trainer = start()
    seconds = time.perf_counter() - began
    release_memory()
    return trainer, steps.start, seconds


def restored(unit: Unit, path: Path, model: str) -> tuple[Trainer, dict[str, Any]]:
    """The trainer that a file holds, and its meta; ValueError where it is of something else."""
    saved, meta = checkpoint.load_tensors(path, unit.device)
    if meta.get("model", model) != model:
        raise ValueError(f"{path} is of the model {meta['model']}; needed is {model}")
    identity.refuse_unequal(path, meta.get("identity", {}), unit.identity)
    return training.restore(saved, unit.config), meta


def save_trainer(unit: Unit, path: Path, trainer: Trainer, meta: Mapping[str, Any]) -> None:
    """Write a trainer with the unit's identity; of several ranks the first, with all streams.

    What `resumed` reads has the file that was there before beside it.
    """
    whole = replace(trainer, state=ranks.joined_state(trainer.state, unit.config.batch))
    if ranks.rank() == 0:
        if path == checkpoint_of(unit, str(meta["model"])) and path.exists():
            path.replace(_before(path))
        about = {**meta, "identity": unit.identity}
        checkpoint.save_tensors(path, training.snapshot(whole), about)
    ranks.wait()


@contextmanager
def opened_log(unit: Unit, of_model: Mapping[str, Any], begin: int) -> Iterator[IO[str]]:
    """The log, without the model's lines after the step `begin`; one rank alone writes to it."""
    if ranks.rank() == 0:
        checkpoint.trim_log(unit.log, of_model, begin)
    with files.appended(unit.log if ranks.rank() == 0 else Path(os.devnull)) as log:
        yield log


def flushed(log: IO[str]) -> None:
    """Put what was written on the disk."""
    if ranks.rank() == 0:
        files.sync(log)
