"""What each step reads: it depends on seed and step alone, and is made ahead in a thread."""

import functools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsae import Starts
from tsae_lab.data.stream import Stream, compacted
from tsae_lab.jobs import ranks
from tsae_lab.jobs.plan import Unit

AHEAD = 2  # groups of sequences that are made before they are asked for
LISTEN = 0.2  # seconds after which a thread looks whether the other one has ended

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False, kw_only=True)
class StepBatch:
    """What a step reads: float32 activations, 1 on tokens and 0 on padding, document starts.

    The starts stay on the CPU, which cuts the sequences there.
    """

    x: Float[Tensor, "batch seq d_in"]
    weight: Float[Tensor, "batch seq"]
    starts: Starts  # None where no sequence holds several documents
    rows: Int[Tensor, " batch"]  # which sequences these are


@dataclass(frozen=True, eq=False, kw_only=True)
class Group:
    """Whole sequences, which `pieces` steps in a row read, in bf16."""

    x: Float[Tensor, "batch kept d_in"]
    valid: Bool[Tensor, "batch kept"]
    starts: Starts
    rows: Int[Tensor, " batch"]


def batch_at(unit: Unit, step: int) -> tuple[Tensor, Tensor]:
    """Activations (batch seq d_in) and weights (1 on tokens, 0 on padding) of a step.

    `pieces` steps in a row read the same sequences, in order of the store, from their beginning to
    their end; each epoch has its own order.
    """
    batch = _piece(unit, _group_at(unit, step // unit.config.pieces), step)
    return batch.x, batch.weight


def starts_at(unit: Unit, step: int) -> Starts:
    """Where documents begin in the batch of a step; None where none are packed."""
    return _piece(unit, _group_at(unit, step // unit.config.pieces), step).starts


def sequences_at(
    unit: Unit, rows: slice | Int[Tensor, " rows"]
) -> tuple[Float[Tensor, "rows kept d_in"], Bool[Tensor, "rows kept"], Starts]:
    """bf16 activations of the sequences that training reads, which positions hold a token, and
    where documents begin; zeros elsewhere.
    """
    source, packed = unit.data.train, unit.data.packed
    if packed is None:
        return *source.sequences(rows), None
    row, place, valid = packed.row[rows], packed.place[rows], packed.valid[rows]
    starts = packed.starts[rows]
    if not isinstance(source, Stream):
        return source.at(row, place, torch.bfloat16) * valid[..., None], valid, starts
    needed = row[valid].unique()
    x, there = source.sequences(needed)
    index = torch.searchsorted(needed, row.contiguous()).clamp(max=len(needed) - 1)
    x, read = x[index, place.long()], valid & there[index, place.long()]
    if torch.equal(read, valid):
        return x * valid[..., None], valid, starts
    begins = compacted((starts & read)[..., None], read)[0][..., 0]  # sinks lay at the ends
    return *compacted(x, read), begins


@contextmanager
def ahead(unit: Unit, steps: range) -> Iterator[Iterator[StepBatch]]:
    """Yield the batches of the steps in order; a thread makes them before they are asked for.

    What goes wrong in the thread is raised where its batch is asked for. The thread ends with the
    block.
    """
    pieces = unit.config.pieces
    groups = range(steps.start // pieces, -(-steps.stop // pieces)) if steps else range(0)

    def cut(made: Iterator[Group]) -> Iterator[StepBatch]:
        for number, group in zip(groups, made, strict=False):
            for step in range(number * pieces, (number + 1) * pieces):
                if step in steps:
                    yield _piece(unit, group, step)

    share = ranks.own_share(unit.config.batch)  # of several ranks each reads its own sequences
    with made_ahead(lambda number: _pinned(unit, _group_at(unit, number, share)), groups) as made:
        yield cut(made)


@contextmanager
def made_ahead(
    make: Callable[[int], Made], items: Iterable[int], depth: int = AHEAD
) -> Iterator[Iterator[Made]]:
    """Yield `make` of each item in order, `depth` of them made ahead by a thread.

    An error of `make` is raised where its item is asked for; nothing is made after it, nor after
    the end of the block, which waits for the item that is being made.
    """
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=depth)
    ended = threading.Event()

    def give(whole: bool, result: Any) -> None:
        while not ended.is_set():
            with suppress(queue.Full):
                waiting.put((whole, result), timeout=LISTEN)
                return

    def work() -> None:
        try:
            for item in items:
                give(True, make(item))
                if ended.is_set():
                    return
        except BaseException as error:  # whatever it is: who waits for the item has to know
            give(False, error)

    def taken() -> Iterator[Made]:
        for _ in items:
            whole, result = waiting.get()
            if not whole:
                raise result
            yield result

    thread = threading.Thread(target=work, name="made ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        ended.set()
        thread.join()


def _group_at(unit: Unit, group: int, share: slice = slice(None)) -> Group:
    """The sequences of `pieces` steps, in order of the store, or a share of them."""
    config, n = unit.config, unit.data.n_sequences
    epoch, batch = divmod(group, n // config.batch)
    order = order_of(n, 1_000_003 * unit.seed + epoch)
    rows = order[batch * config.batch : (batch + 1) * config.batch].sort().values[share]
    x, valid, starts = sequences_at(unit, rows)
    return Group(x=x, valid=valid, starts=starts, rows=rows)


@functools.lru_cache(maxsize=4)
def order_of(n: int, seed: int) -> Int[Tensor, " n"]:
    """A permutation of 0 .. n - 1. It is read only: several readers share it."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _piece(unit: Unit, group: Group, step: int) -> StepBatch:
    """What a step reads of its group, on the device that trains."""
    config, piece = unit.config, step % unit.config.pieces
    span = slice(*(config.seq * i // config.pieces for i in (piece, piece + 1)))
    starts = None if group.starts is None else group.starts[:, span]
    return StepBatch(
        x=_moved(group.x[:, span], unit.device).float(),
        weight=_moved(group.valid[:, span], unit.device).float(),
        starts=starts,
        rows=group.rows,
    )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def _pinned(unit: Unit, group: Group) -> Group:
    """The group in memory that a CUDA device reads by itself, where one trains."""
    if unit.device.type != "cuda" or group.x.is_cuda:
        return group
    x, valid = group.x.pin_memory(), group.valid.pin_memory()
    return Group(x=x, valid=valid, starts=group.starts, rows=group.rows)
