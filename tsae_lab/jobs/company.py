"""A run by several processes of this machine, which its first one starts, as torchrun would.

Small products keep two threads less busy than two processes of one thread: on a CPU these train
most in the same time.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
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
from tsae_lab.jobs import plan, ranks
from tsae_lab.jobs.config import Config
from tsae_lab.terminal import console, cpu_threads, fast_memory, one_line_errors

MEMORY_EACH = 6 << 30  # bytes: the most that one was seen to hold at the default size was 4.8 GB
COPIES = 4  # of another language model's weights, read in float32
SHORT = 200_000  # tokens: a unit that trains on fewer is done before another process has started
LAST_WORDS = 60  # seconds in which the others end after this one, before they are stopped
ADDRESS = "127.0.0.1"

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

    def size(sized: Config) -> float:
        return sized.d_sae * sized.batch * sized.seq / sized.pieces

    own = int(MEMORY_EACH * max(1.0, size(config) / size(Config())))
    if config.lm == EMBEDDED:
        return own
    folder = Path(config.lm).expanduser()
    if not folder.is_dir():  # a name on a hub
        return 1 << 62
    return own + COPIES * sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def by_processes(n: int, act: Callable[..., Answer], *args: object) -> Answer:
    """What `act(*args)` gives in this process, rank 0 of `n` that do so; alone where n is 1.

    The others get an nth of the threads, as this one does meanwhile, and end with it, however it
    ends. `act` and its arguments are pickled.
    """
    if n == 1:
        return act(*args)
    meeting = TCPStore(ADDRESS, 0, n, True, timedelta(minutes=5), wait_for_workers=False)
    threads = torch.get_num_threads()
    each = max(1, threads // n)
    surroundings = {
        "WORLD_SIZE": str(n), "MASTER_ADDR": ADDRESS, "MASTER_PORT": str(meeting.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "0", "LOCAL_RANK": "0",
        "OMP_NUM_THREADS": str(each),
    }  # fmt: skip
    before = {name: os.environ[name] for name in surroundings.keys() & os.environ.keys()}
    os.environ |= surroundings
    console.print(f"{n} processes share the texts and seeds; the first one's progress is shown")
    others: list[BaseProcess] = []
    patience = 0
    try:
        for own in range(1, n):
            started = multiprocessing.get_context("spawn").Process(
                target=_join, args=(own, each, act, args), daemon=True
            )
            started.start()
            others.append(started)
        torch.set_num_threads(each)
        made = act(*args)
        patience = LAST_WORDS
    except SystemExit:  # another one has an error, and says so
        patience = LAST_WORDS
        raise
    finally:
        for started in others:
            started.join(patience)
            started.kill()
            started.join()
        torch.set_num_threads(threads)
        for name in surroundings:
            del os.environ[name]
        os.environ |= before
    return made


def _join(own: int, threads: int, act: Callable[..., object], args: tuple[object, ...]) -> None:
    """Do as rank `own`, until the first process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the first one's, which stops this
    os.environ |= {"RANK": str(own), "LOCAL_RANK": str(own)}
    threading.Thread(target=_end_with_first, daemon=True).start()
    torch.set_num_threads(threads)
    fast_memory()
    try:
        with one_line_errors():
            act(*args)
    except typer.Exit as ended:
        sys.exit(ended.exit_code)


def _end_with_first() -> None:
    first = multiprocessing.parent_process()
    assert first is not None
    wait([first.sentinel])
    with suppress(Exception):
        sys.stderr.flush()
    os._exit(1)
