"""A small home for faults: a toy language model, a text, and commands in processes of their own.

A command is forked from this process, which has loaded the libraries: it takes seconds.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import toys

import experiment
from tsae_lab.data import tasks
from tsae_lab.jobs import identity

WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "sleeps",
    "near",
)
SYSTEMS = "--systems=static,batch_topk"
DRAFTS = ("*.partial", ".lock", "*.lock", "*.tmp", "*.checkpoint.safetensors")
TIMES = ("total_train_time", "tokens_per_second", "checksum", "seconds", "memory_mib")
"""fields that differ between two runs of one command: times, memory, checksums of what has them"""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Home:
    """Where the language model, the text and one run's directories lie."""

    folder: Path
    source: Path  # of the language model and the text

    @property
    def lm(self) -> Path:
        return self.source / "lm"

    @property
    def text(self) -> Path:
        return self.source / "letters"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def seed(self) -> Path:
        return self.folder / "run_2" / "letters" / "seed_0"

    def options(self) -> list[str]:
        """Of a run that reads every letter: it asks for more tokens than there are."""
        return [
            f"--lm={self.lm}", f"--datasets={self.text}", f"--hook={toys.HOOK}", "--seq=24",
            "--pieces=2", "--batch=4", "--steps=16", "--seeds=1", "--d_sae=64", "--k=4",
            "--hidden_enc=4", "--hidden_dec=4", "--warmup=2", "--train_tokens=4000",
            "--val_tokens=600", "--splice_tokens=100", "--device=cpu", "--checkpoint_every=2",
            "--share=0.01", "--threads=1", "--pretrain=0.3", "--settle=0.1", "--introduce=0.1",
            "--sections=stability,lifetimes,transitions,evolution",
        ]  # fmt: skip

    def run(self, name: str, *more: str) -> list[str]:
        """The command line of run_2, run_3, run_4 or the report."""
        if name == "report":
            return ["report", str(self.folder / "run_2"), str(self.folder / "run_3")]
        more = (SYSTEMS, *more) if name == "run_4" else more
        return [f"--out_dir={self.folder / name}", *self.options(), *more]


def new_home(folder: Path) -> Home:
    """A language model that knows the words of the tasks, and thirty letters."""
    home = Home(folder=folder, source=folder)
    torch.set_num_threads(1)
    texts = [item.text for name in tasks.GENERATORS for item in tasks.generated(name).items]
    toys.save_model(home.lm, "llama", texts=texts[::20], vocab_size=2_000,
                    max_position_embeddings=256)  # fmt: skip
    home.text.mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(30):
        order = torch.randint(len(WORDS), (60,), generator=generator).tolist()
        (home.text / f"{i:02}.txt").write_text(" ".join(WORDS[j] for j in order) + ".\n")
    return home


def copy_of(home: Home, folder: Path, *parts: str) -> Home:
    """Another home on the same model and text, with copies of these parts of the first."""
    folder.mkdir(parents=True)
    for name in parts:
        shutil.copytree(home.folder / name, folder / name)
    return Home(folder=folder, source=home.source)


# ------------------------------------------------------------------------------------- processes


def start(home: Home, args: Sequence[str]) -> int:
    """The pid of the command, which leads a process group of its own and writes into the log."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as at a terminal
        os.environ["TSAE_CACHE"] = str(home.cache)
        descriptor = os.open(home.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = os.fdopen(1, "w")  # pytest's are others
        sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace")  # as a new process has it
        identity._commit = lambda: None  # the checkout may change during a campaign
        experiment.app(list(args))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def send(pid: int, number: int) -> None:
    """The signal to the process and its group, which it leads unless it has only just been born."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        os.kill(pid, number)


def ended(pid: int, seconds: float | None = None) -> int | None:
    """The exit code of a process (below 0: the signal), or None where it still runs after that."""
    until = None if seconds is None else time.monotonic() + seconds
    while until is None or time.monotonic() < until:
        done, status = os.waitpid(pid, 0 if until is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def call(home: Home, args: Sequence[str]) -> tuple[int, str]:
    """Exit code and output of a command."""
    before = home.log.stat().st_size if home.log.exists() else 0
    code = ended(start(home, args))
    assert code is not None
    return code, home.log.read_bytes()[before:].decode(errors="replace")


# ------------------------------------------------------------------------------------- comparing


def left_over(*folders: Path) -> list[str]:
    """Drafts, locks and checkpoints that should not be there when a command has ended."""
    return [str(path) for folder in folders for kind in DRAFTS for path in folder.rglob(kind)]


def differences(one: Path, other: Path) -> list[str]:
    """The files of two folders that differ, but for times: by bytes, of JSON and CSV by value."""
    names = [
        {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} for root in (one, other)
    ]
    odd = [f"{name} is in one alone" for name in sorted(names[0] ^ names[1])]
    return odd + [n for n in sorted(names[0] & names[1]) if _plain(one / n) != _plain(other / n)]


def _plain(path: Path) -> Any:
    if "run_4" in path.parts and path.name in ("table.md", "report.html"):
        return None  # they show tokens per second; the numbers are compared in table.csv
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        steps = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        return sorted(map(str, steps))  # what is made again is logged behind what stood there
    if path.suffix == ".csv":
        lines = [line.split(",") for line in path.read_text().splitlines()]
        timed = [i for i, name in enumerate(lines[0] if lines else []) if _is_time(name)]
        return [
            [cell for i, cell in enumerate(line) if i not in timed]
            for line in lines
            if not any(map(_is_time, line[:2]))
        ]
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if not _is_time(key)}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def _is_time(name: str) -> bool:
    return any(word in name for word in TIMES)


def contents(*folders: Path) -> dict[Path, bytes]:
    """Every file below these folders."""
    return {p: p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}


@contextlib.contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """A folder that is removed at the end."""
    folder = parent / name
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
