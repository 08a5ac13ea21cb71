"""Several processes that train together, as torchrun starts them; one process alone is the usual.

Spread over sequences, each reads its share of every batch and all have the same weights; spread
over units, each trains other texts and seeds. Rank 0 alone writes what they share.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

import tsae
import tsae_kernels
from tsae import Codes, Lifecycle, State
from tsae_lab import devices
from tsae_lab.data.store import MakeBlock
from tsae_lab.terminal import console

SPREADS = ("sequences", "units")
PATIENCE = timedelta(days=2)  # one may extract or measure for long; a lost one is noticed at once
GOES_ON = "the same command goes on from the last checkpoint"
APART = ContextVar("APART", default=False)  # whether this process works by itself for a while
HELPED = ContextVar("HELPED", default=False)  # whether the other ranks wait for what is dealt out

Told = TypeVar("Told")


class Refused(Exception):
    """Another rank says why the run ends; this one is silent."""


def rank() -> int:
    """Which of the processes that work together this is, from 0, the one that writes."""
    return dist.get_rank() if _is_joined() else 0


def n_ranks() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _is_joined() else 1


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized() and not APART.get()


def is_asked_for() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def device_here(name: str) -> torch.device:
    """The device of that name; of several processes each takes a CUDA device of its own.

    ValueError for one that this machine does not have.
    """
    device = devices.check_device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type != "cuda" or device.index is not None or not is_asked_for():
        return device
    own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if own >= there:
        need = f"each process needs a CUDA device of its own; this machine has {there}"
        raise ValueError(f"{need}: start no more than {there} here")
    return torch.device("cuda", own)


@contextmanager
def together(device: torch.device, *, spread: str) -> Iterator[None]:
    """Within, this process is one of those that torchrun started; alone nothing changes.

    All but rank 0 are silent. Of errors the first is said, by the rank that has it: the others
    notice that one is gone, and end with SystemExit.
    """
    if not is_asked_for():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" and spread == "sequences" else "gloo"
    with _noticed():
        store, own, n = next(iter(rendezvous("env://")))
        dist.init_process_group(backend, store=store, rank=own, world_size=n, timeout=PATIENCE)
    console.quiet = own > 0
    try:
        yield
    except Refused as error:
        raise SystemExit(1) from error
    except Exception as error:
        first = _is_first(store)
        if not first and isinstance(error, ValueError | OSError):
            raise SystemExit(1) from error
        console.quiet = console.quiet and not first
        raise
    except KeyboardInterrupt:
        _is_first(store)  # the others are silent
        raise
    finally:
        with suppress(Exception):  # of a rank that is gone
            dist.destroy_process_group()


def _is_first(store: Any) -> bool:
    """Whether no other rank had an error before; so where that cannot be known."""
    try:
        return store.add("errors", 1) == 1
    except RuntimeError:
        return True


@contextmanager
def apart() -> Iterator[None]:
    """Within, this process is alone, whatever the others do."""
    mark = APART.set(True)
    try:
        yield
    finally:
        APART.reset(mark)


@contextmanager
def for_unit(number: int, n_units: int, spread: str) -> Iterator[bool]:
    """Yield whether this rank trains the unit of that number; spread over units, it does so alone.

    Each rank has units that follow each other, so that they are of few texts: what is measured of a
    text alone is then measured by few. Spread over sequences, all ranks train it together.
    """
    if spread != "units":
        yield True
        return
    mine = number * n_ranks() // n_units == rank()
    with apart():
        yield mine


def balanced(sizes: Sequence[int]) -> list[int]:
    """The rank of each unit of work: one after the other to the rank with the least before it."""
    held, owners = [0] * n_ranks(), []
    for size in sizes:
        owners.append(held.index(min(held)))
        held[owners[-1]] += size
    return owners


def refuse_few(batch: int, n_units: int, spread: str) -> None:
    """ValueError where there are fewer sequences in a batch, or fewer units, than ranks."""
    n, what = (
        (n_units, "units (texts times seeds, systems of a search)")
        if spread == "units"
        else (batch, "sequences")
    )
    if n < n_ranks():
        of_batch = "" if spread == "units" else " of a batch"
        said = f"{n} {what}{of_batch} for {n_ranks()} processes"
        raise ValueError(f"--spread={spread}: {said}: start no more processes than {n}")


def refuse_shared_batches(name: str, spread: str) -> None:
    """ValueError where several processes would share the batches of a run that cannot do so."""
    if n_ranks() > 1 and spread != "units":
        need = f"processes of {name} share texts and seeds, not batches"
        raise ValueError(f"{need}: it needs --spread=units; got --spread={spread}")


def refuse_plan(name: str) -> None:
    """ValueError where torchrun started several processes for a run that one process makes."""
    if is_asked_for():
        if os.environ.get("RANK") != "0":
            raise SystemExit(1)
        advice = "train run_2 with torchrun, then start this without"
        raise ValueError(f"{name} is made by one process: {advice}")


@contextmanager
def _noticed() -> Iterator[None]:
    """A rank that is gone is a ValueError of one line."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        lost = f"another process of this run has ended ({reason})"
        raise ValueError(f"{lost}; {GOES_ON}") from error


# ------------------------------------------------------------------------------ what all agree on


def wait() -> None:
    """Until every rank is here."""
    if n_ranks() == 1:
        return
    with _noticed():
        work = dist.barrier(async_op=True)
        assert work is not None
        while not work.is_completed():  # within, a signal would wait, too
            time.sleep(0.02)
        work.wait()


def led(act: Callable[[], Told], make: MakeBlock | None = None) -> Told:
    """What `act` gives rank 0, which alone does it; where it raises, every rank ends.

    With `make` the others help meanwhile with what `act` deals out (`dealt`).
    """
    if n_ranks() == 1:
        return act()
    if rank() > 0:
        return _told(make)
    mark = HELPED.set(make is not None)
    try:
        result = act()
    except BaseException:
        with suppress(ValueError, Refused):
            _tell("refused")
        raise
    finally:
        HELPED.reset(mark)
    _tell("done", result)
    return result


def in_turn(act: Callable[[], Told], make: MakeBlock | None = None) -> Told:
    """What `act` gives every rank; rank 0 does it first, so that the others find what it made.

    With `make` they help it, as in `led`.
    """
    results: list[Told] = []
    led(lambda: results.append(act()), make)
    return results[0] if results else act()


def dealt(make: MakeBlock, what: str, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """`make(what, number)` of each number, in order; where the other ranks help (`led`), each of
    them makes every n-th.

    ValueError of `make` on any rank is raised here.
    """
    if not HELPED.get():
        yield from (make(what, number) for number in numbers)
        return
    for start in range(0, len(numbers), n_ranks()):
        now = numbers[start : start + n_ranks()]
        _tell("make", (what, now))
        for made, error in _gathered(make, what, now)[: len(now)]:
            if made is None:
                raise ValueError(error)
            yield made


def _tell(word: str, content: Any = None) -> None:
    with _noticed():
        dist.broadcast_object_list([word, content])


def _told(make: MakeBlock | None) -> Any:
    """What rank 0's `act` gave, after what was to be made for it."""
    while True:
        said: list[Any] = [None, None]
        with _noticed():
            dist.broadcast_object_list(said)
        word, content = said
        if word == "refused":
            raise Refused
        if word == "done":
            return content
        assert make is not None
        _gathered(make, *content)


def _gathered(make: MakeBlock, what: str, numbers: Sequence[int]) -> list[Any]:
    """On rank 0, of every rank what it made of its number, or the error that it had."""
    own: tuple[np.ndarray | None, str] = (None, "")
    if rank() < len(numbers):
        try:
            own = (make(what, numbers[rank()]), "")
        except (ValueError, OSError) as error:
            own = (None, str(error))
    all_of_them: list[Any] = [None] * n_ranks()
    with _noticed():
        dist.gather_object(own, all_of_them if rank() == 0 else None)
    return all_of_them


def refuse_others(what: str, options: Mapping[str, Any]) -> None:
    """ValueError on the ranks whose options are others than rank 0's; the rest end in silence."""
    if n_ranks() == 1:
        return
    said: list[Any] = [None] * n_ranks()
    with _noticed():
        dist.all_gather_object(said, dict(options))
    wrong = [number for number, own in enumerate(said) if own != said[0]]
    if not wrong:
        return
    if rank() != wrong[0]:
        raise Refused
    first = said[0]
    other = sorted(key for key in first | options if first.get(key) != options.get(key))
    changes = (f"{key}={first.get(key)!r} on rank 0, {options.get(key)!r} here" for key in other)
    raise ValueError(f"rank {rank()} has another {what} than rank 0: {', '.join(changes)}")


def own_share(n: int) -> slice:
    """Which of `n` sequences of a batch this rank reads: parts that differ by one at most."""
    return slice(n * rank() // n_ranks(), n * (rank() + 1) // n_ranks())


# --------------------------------------------------------------------------- sums over the ranks


def total(tensor: Tensor) -> Tensor:
    """The sum over the ranks; alone the tensor itself."""
    return _reduced(tensor, dist.ReduceOp.SUM) if n_ranks() > 1 else tensor


def largest(tensor: Tensor) -> Tensor:
    """The largest values over the ranks; alone the tensor itself."""
    return _reduced(tensor, dist.ReduceOp.MAX) if n_ranks() > 1 else tensor


def _reduced(tensor: Tensor, how: Any) -> Tensor:
    out = tensor.detach().clone(memory_format=torch.contiguous_format)
    with _noticed():
        dist.all_reduce(out, how)
    return out


def mean(rows: Float[Tensor, "rows width"]) -> Float[Tensor, " width"]:
    """The mean row, over the rows of all ranks."""
    if n_ranks() == 1:
        return rows.mean(0)
    return total(rows.sum(0)) / total(rows.new_tensor(len(rows)))


def shared(loss: Float[Tensor, ""], weight: Float[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    """A mean over this rank's tokens as its part of the mean over those of all ranks."""
    if n_ranks() == 1:
        return loss
    return loss * (weight.sum() / total(weight.sum()).clamp(min=1))


def sum_gradients(named: Mapping[str, Tensor]) -> None:
    """Replace the gradients by their sums over the ranks."""
    if n_ranks() == 1:
        return
    for tensor in named.values():
        if tensor.grad is not None:
            tensor.grad.copy_(total(tensor.grad))


def advanced(life: Lifecycle, codes: Codes, weight: Float[Tensor, "batch seq"]) -> Lifecycle:
    """`tsae.advance` of the whole batch, of which this rank has some rows; no runs are followed."""
    if n_ranks() == 1:
        return tsae.advance(life, codes, weight)
    real, d_sae, device = weight > 0, len(life.idle), weight.device
    vals, idx = codes.vals.detach() * real[..., None], codes.idx
    on = vals > 0
    counts = torch.cat([real.sum(0), tsae_kernels.feature_sums(on.long(), idx, d_sae)])
    columns, fired = total(counts).split([weight.shape[1], d_sae])
    read = torch.nn.functional.pad(columns.cumsum(0), (1, 0))  # tokens before each column
    column = torch.where(on, torch.arange(1, len(read), device=device)[:, None], 0)
    latest = life.idle.new_zeros(d_sae).scatter_reduce_(0, idx.flatten(), column.flatten(), "amax")
    peak = life.peak.scatter_reduce(0, idx.flatten(), vals.flatten().to(life.peak.dtype), "amax")
    latest, tokens = largest(latest), read[-1]
    return Lifecycle(
        **{
            **vars(life),
            "tokens": life.tokens + tokens,
            "idle": torch.where(latest > 0, tokens - read[latest], life.idle + tokens),
            "fired": life.fired + fired,
            "peak": largest(peak),
        }
    )


def same_everywhere(tensors: Mapping[str, Tensor]) -> None:
    """Give every rank that shares a batch the values that rank 0 has, in place."""
    if n_ranks() == 1:
        return
    with torch.no_grad(), _noticed():
        for _, tensor in sorted(tensors.items()):
            flat = tensor.detach().clone(memory_format=torch.contiguous_format)
            if dist.get_backend() == "nccl":  # Adam counts its steps on the CPU
                flat = flat.cuda()
            dist.broadcast(flat, 0)
            tensor.copy_(flat)


def joined_rows(tensor: Shaped[Tensor, "rows ..."], n: int) -> Shaped[Tensor, "batch ..."]:
    """The rows of all ranks of `n`, in its order."""
    if n_ranks() == 1:
        return tensor
    whole = tensor.new_zeros(n, *tensor.shape[1:])
    whole[own_share(n)] = tensor
    return total(whole)


def joined_state(state: State | None, n: int) -> State | None:
    """What the streams of a batch of `n` carry, of all ranks: what a checkpoint holds."""
    return _of_rows(state, lambda tensor: joined_rows(tensor, n))


def own_state(state: State | None) -> State | None:
    """This rank's share of what the streams of a whole batch carry."""
    return _of_rows(state, lambda tensor: tensor[own_share(len(tensor))].clone())


def _of_rows(state: State | None, change: Callable[[Tensor], Tensor]) -> State | None:
    if state is None or n_ranks() == 1:
        return state
    fields = {name: change(value) for name, value in vars(state).items() if name != "memory"}
    ring = state.memory
    memory = replace(ring, vals=change(ring.vals), idx=change(ring.idx))
    return State(memory=memory, **fields)
