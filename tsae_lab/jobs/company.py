"""A run by several processes of this machine, which its first one starts, as torchrun would.

Small products keep two threads less busy than two processes of one thread: on a CPU these train
most in the same time.
"""

import _thread
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import torch
import typer
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tsae_lab.data.language_model import EMBEDDED
from tsae_lab.devices import free_memory
from tsae_lab.jobs import budget, plan, ranks
from tsae_lab.jobs.config import Config
from tsae_lab.terminal import DEBUG, console, cpu_threads, fast_memory, one_line_errors

MEMORY_EACH = 10 << 30  # bytes: two were seen to hold 7.8 and 11.1 GB at the default size
COPIES = 4  # of another language model's weights, read in float32
SHORT = 200_000  # tokens: a unit that trains on fewer is done before another process has started
GRACE = 2  # seconds in which this process notices by itself that another one is gone
LAST_WORDS = 60  # seconds in which the others end after this one, before they are stopped
MEETS_IN = timedelta(seconds=20)  # in which processes of one machine reach each other
ADDRESS = "127.0.0.1"
USUAL_D_IN = 576  # width of the activations of the language model that is there by default

Answer = TypeVar("Answer")


def n_processes(config: Config, n_units: int) -> int:
    """How many processes share the units: as `processes` says; with 0 what is best, 1 to one for
    each thread.

    One where torchrun started this one, on another device than the CPU, for short work, or where
    memory is scarce. ValueError for settings that no run can have, for more processes than units,
    or beside torchrun.
    """
    plan.check_config(config)
    if config.processes > 1 and ranks.is_asked_for():
        need = "torchrun has started the processes of this run"
        raise ValueError(f"{need}: leave --processes={config.processes} out")
    if config.processes > n_units:
        what = "units (texts times seeds, systems of a search)"
        raise ValueError(f"processes needs at most the {n_units} {what}; got {config.processes}")
    if config.processes or ranks.is_asked_for():
        return max(1, config.processes)
    tokens = config.steps * config.batch * config.seq // config.pieces
    if tokens < SHORT or plan.device_of(config).type != "cpu":
        return 1
    room = free_memory() // _memory_each(config)
    most = max(1, min(n_units, cpu_threads(config.threads), room))
    rounds = -(-n_units // most)
    return -(-n_units // rounds)


def _memory_each(config: Config) -> int:
    """Bytes that a process may take, roughly; more than there are where that is not known."""
    folder = Path(config.lm).expanduser()
    if config.lm != EMBEDDED and not folder.is_dir():  # a name on a hub
        return 1 << 62
    lm = 0 if config.lm == EMBEDDED else sum(p.stat().st_size for p in folder.rglob("*"))

    def step(sized: Config) -> float:
        seq = -(-sized.seq // sized.pieces)
        return budget.GB * budget.step_gb(sized, USUAL_D_IN, sized.batch, seq, torch.float32)

    more = max(0.0, step(config) - step(Config()))  # twice: while a TSAE begins, its SAE is there
    return int(MEMORY_EACH + 2 * more) + COPIES * lm


def by_processes(n: int, act: Callable[..., Answer], *args: object) -> Answer:
    """What `act(*args)` gives in this process, rank 0 of `n` that do so; alone where n is 1.

    The others get an nth of the threads, as this one does meanwhile, and end with it, however it
    ends. `act` and its arguments are pickled. ValueError where another one ends before its time.
    """
    meeting = _meeting(n) if n > 1 else None
    if meeting is None:
        return act(*args)
    threads = torch.get_num_threads()
    each = max(1, threads // n)
    console.print(f"{n} processes share the texts and seeds; the first one's progress is shown")
    others: list[BaseProcess] = []
    lost: list[str] = []
    over = threading.Event()
    patience = 0
    with _surrounded(n, meeting.port, each):
        try:
            for own in range(1, n):
                others.append(_spawned((own, meeting.port, n, each, DEBUG.get(), act, args)))
            _await(meeting, others)
            threading.Thread(target=_watch, args=(others, lost, over), daemon=True).start()
            torch.set_num_threads(each)
            answer = act(*args)
            patience = LAST_WORDS
        except SystemExit:  # another one has an error, and says so
            patience = LAST_WORDS
            raise
        except KeyboardInterrupt:
            if lost and lost[0]:
                raise ValueError(lost[0]) from None
            if lost:
                raise SystemExit(1) from None
            raise
        finally:
            over.set()
            for spawned in others:
                spawned.join(patience)
                spawned.kill()
                spawned.join()
            torch.set_num_threads(threads)
    return answer


def _spawned(asked: tuple[object, ...]) -> BaseProcess:
    """A process that does what `_join` is asked."""
    process = multiprocessing.get_context("spawn").Process(target=_join, args=asked, daemon=True)
    process.start()
    return process


def _meeting(n: int) -> TCPStore | None:
    """Where the processes meet, for this machine alone; None where there is no network within."""
    try:
        with socket.create_server((ADDRESS, 0)) as server:
            port = server.getsockname()[1]
            return TCPStore(
                ADDRESS, port, n, True, MEETS_IN, wait_for_workers=False,
                master_listen_fd=server.detach(),
            )  # fmt: skip
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:80]
        line = f"one process for all texts and seeds: no connection within this machine ({reason})"
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
        return None


@contextmanager
def _surrounded(n: int, port: int, threads: int) -> Iterator[None]:
    """Within, the environment is that of rank 0 of n processes, as torchrun sets it."""
    own = {
        "WORLD_SIZE": str(n), "MASTER_ADDR": ADDRESS, "MASTER_PORT": str(port), "RANK": "0",
        "LOCAL_RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": str(threads),
    }  # fmt: skip
    if sys.platform == "linux":
        own |= {"GLOO_SOCKET_IFNAME": "lo"}
    before = {name: os.environ[name] for name in own.keys() & os.environ.keys()}
    os.environ |= own
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]
        os.environ |= before


def _await(meeting: TCPStore, others: Sequence[BaseProcess]) -> None:
    """Until all are there; ValueError where one ended on its way."""
    for own, other in enumerate(others, start=1):
        while not meeting.check([f"there {own}"]):
            if not other.is_alive():
                raise ValueError(_ended(other))
            time.sleep(0.05)


def _watch(others: Sequence[BaseProcess], lost: list[str], over: threading.Event) -> None:
    """Interrupt this process when another one ends before its time, and say how in `lost`: with
    nothing, where that one has said it.
    """
    left = {other.sentinel: other for other in others}
    while left:
        for sentinel in wait(list(left)):
            other = left.pop(sentinel)  # type: ignore[arg-type]
            other.join()
            if other.exitcode and not over.wait(GRACE):
                lost.append(_ended(other) if other.exitcode < 0 else "")
                _thread.interrupt_main()
                return


def _ended(other: BaseProcess) -> str:
    """A line on a process that is gone."""
    code = other.exitcode or 0
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    advice = "where memory was short, --processes=1 takes less"
    return f"another process of this run has ended {how}: {ranks.GOES_ON}; {advice}"


def _join(
    own: int, port: int, n: int, threads: int, debug: bool, act: Callable[..., object],
    args: tuple[object, ...],
) -> None:  # fmt: skip
    """Do as rank `own`, until the first process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the first one's, which stops this
    os.environ |= {"RANK": str(own), "LOCAL_RANK": str(own)}
    threading.Thread(target=_end_with_first, daemon=True).start()
    torch.set_num_threads(threads)
    fast_memory()
    DEBUG.set(debug)
    meeting = TCPStore(ADDRESS, port, n, False, MEETS_IN, wait_for_workers=False)
    meeting.set(f"there {own}", "")
    try:
        with one_line_errors():
            act(*args)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)


def _end_with_first() -> None:
    first = multiprocessing.parent_process()
    assert first is not None
    wait([first.sentinel])
    os._exit(1)
