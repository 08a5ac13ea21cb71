"""What the user sees: progress, tables, errors of one line; and the process's memory."""

import ctypes
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from tsae_lab import definitions

WIDTH = 130  # columns of a table that is printed to no terminal, at least
MOST_THREADS = 1_024  # with many more the library of threads ends the process
console = Console(stderr=True)
DEBUG = ContextVar("DEBUG", default=False)  # whether an error is said with its traceback


@contextmanager
def progress_bar(label: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Yield `advance(note="")`: a bar with the time left, or ten lines without a terminal."""
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
    in_lines, began = not console.is_terminal, time.perf_counter()
    note_column = TextColumn("{task.fields[note]}")
    bar = Progress(*columns, note_column, console=console, disable=in_lines)
    task = bar.add_task(label, total=total, completed=done, note="")

    def advance(note: str = "") -> None:
        bar.update(task, advance=1, note=note)
        now = int(bar.tasks[0].completed)
        if in_lines and 10 * now // total > 10 * (now - 1) // total:
            seconds = (time.perf_counter() - began) / (now - done) * (total - now)
            line = f"{label}: {now}/{total}, {seconds:.0f} s left  {note}".rstrip()
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    with bar:
        yield advance


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    words: Collection[str] | None = None,
    caption: str = "",
    lines: bool = False,
) -> None:
    """Print one line per row, as wide as the terminal, without one at least 130 columns.

    The columns named in `words` (by default the first) stand to the left, numbers to the right.
    """
    words = columns[:1] if words is None else words
    table = Table(title=escape(title), caption=escape(caption), show_lines=lines)
    for name in columns:
        table.add_column(escape(name), justify="left" if name in words else "right")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    out = Console()
    wide = Console(width=max(WIDTH, 32 * len(columns)))
    (out if out.is_terminal else wide).print(table)


RUN_MEASURES = (
    "fve",
    "jaccard",
    "tss",
    "tss_floor",
    "l0",
    "births",
    "distinct",
    "delta_ce",
    "kl",
    "ce_recovered",
    "alive_frac",
)


def show(info: dict[str, Any], plan: str) -> None:
    """Print the main measures per text: static SAE, TSAE, and their difference, which is paired by
    seed; with several seeds its t-interval over them.
    """
    for name, text in info.items():
        means, errors = text["means"], text["stderrs"]
        n_seeds = len(text["final_info_dict"]["clean_ce"])
        both = "fve_mean" in means
        models = {"static SAE": "static_"} | ({"TSAE": ""} if both else {})
        rows = []
        for key in RUN_MEASURES:
            keys = [f"{prefix}{key}" for prefix in models.values()]
            cells = [
                _with_error(means.get(f"{k}_mean"), errors.get(f"{k}_stderr"), ".4f") for k in keys
            ]
            cells += [_difference_cell(key, text, "+.4f")] if both else []
            rows.append([definitions.label(key), *cells])
        spread = f": mean ± standard error over {n_seeds} seeds" if n_seeds > 1 else ", one seed"
        columns = ["measure", *models, *([_difference_head(n_seeds)] if both else [])]
        print_table(f"{name}, {plan}{spread}", columns, rows)


def _difference_head(n_seeds: int) -> str:
    return f"TSAE - static{', 95 % over seeds' if n_seeds > 1 else ''}"


def _difference_cell(key: str, text: dict[str, Any], form: str) -> str:
    """The mean difference, and the interval over seeds where several have the measure."""
    value = cell(text["means"].get(f"difference_{key}_mean"), form)
    span = text["seed_intervals"].get(f"difference_{key}")
    return f"{value} ({between(span[0], span[1], form)})" if span else value


STUDY_MEASURES = (
    "fve", "l0", "births", "distinct", "delta_ce", "kl", "jaccard", "jaccard_kappa",
    "tss_mean", "tss_floor_mean", "tss_weighted_mean", "tss_in_document_mean",
    "tss_in_document_floor_mean", "tss_eligible_frac", "splice_kept_0",
    "restricted_mean_16", "restricted_mean_64", "shuffled_restricted_mean_64",
    "feature_restricted_mean_64", "persistence", "transitions_candidates",
    "transitions_cut_frac", "transitions_significant", "transitions_replication",
    "transitions_beyond_token_pairs", "transitions_chains",
    "probe_agreement_attractor_k5", "probe_agreement_attractor_k10", "probe_coreference_k5",
    "probe_coreference_k10", "probe_disambiguation_k5", "probe_agreement_long_k5",
    "probe_coreference_long_k5", "probe_disambiguation_long_k5", "effect_propagated",
    "kl_unrelated", "lifetime_effect_rho_propagated",
)  # fmt: skip


def show_study(info: dict[str, Any]) -> None:
    """Print static SAE, TSAE and their paired difference per text: mean and standard error over
    seeds, the difference with its t-interval over seeds, where there are several.

    Beside it stands the interval over documents of seed 0.
    """
    caption = "over documents: paired bootstrap of seed 0"
    caption += "; all measures in summary.csv, intervals.csv"
    for name, text in info.items():
        n_seeds = len(text["final_info_dict"]["clean_ce"])
        models = ("static SAE", "TSAE", _difference_head(n_seeds))
        columns = ("measure", *models, "95 % over documents")
        spread = f": mean ± standard error over {n_seeds} seeds" if n_seeds > 1 else ""
        measured = [key for key in STUDY_MEASURES if f"{key}_mean" in text["means"]]
        rows = [_study_row(key, text, n_seeds) for key in measured]
        print_table(f"{name}, run_3{spread}", columns, rows, caption=caption)


def _study_row(key: str, text: dict[str, Any], n_seeds: int) -> list[str]:
    values = [text["means"][f"{prefix}{key}_mean"] for prefix in ("static_", "")]
    errors = [text["stderrs"][f"{prefix}{key}_stderr"] for prefix in ("static_", "")]
    cells = [
        _with_error(value, error, ".4g", ".2g") if n_seeds > 1 else cell(value, ".4g")
        for value, error in zip(values, errors, strict=True)
    ]
    bounds = text["intervals"].get(f"TSAE - static SAE: {key}")
    interval = between(bounds[0][1], bounds[0][2], "+.4f") if bounds else ""
    return [definitions.label(key), *cells, _difference_cell(key, text, "+.4g"), interval]


def cell(value: float | None, form: str) -> str:
    """A number for a table; "-" for what could not be computed."""
    return "-" if value is None else f"{value:{form}}"


def between(low: float | None, high: float | None, form: str) -> str:
    """An interval for a table; "-" where there is none."""
    return "-" if low is None or high is None else f"{low:{form}} to {high:{form}}"


def _with_error(value: float | None, error: float | None, form: str, error_form: str = "") -> str:
    """A number and its standard error, which one seed does not have."""
    if value is None or error is None:
        return cell(value, form)
    return f"{value:{form}} ± {error:{error_form or form}}"


def show_tradeoff(curve: dict[str, Any]) -> None:
    """Print FVE, overlap, L0 and TSS of the static SAE and of the TSAE per bridge strength."""
    saes = {"static SAE": curve["static"]}
    saes |= {f"TSAE, beta {point['beta']:g}": point for point in curve["tsae"]}
    keys = ("fve", "jaccard", "l0", "tss")
    rows = [(name, *(cell(sae[key], ".4f") for key in keys)) for name, sae in saes.items()]
    columns = ("model", *map(definitions.label, keys))
    print_table(f"{curve['dataset']}, seed {curve['seed']}", columns, rows)


FRONTIER_MEASURES = ("fve", "delta_ce", "kl", "l0", "jaccard", "births", "distinct")
EQUAL_COLUMNS = {
    "k": "static SAE's k",
    "births": "births",
    "static_residual": "static SAE's 1 - FVE",
    "residual": "TSAE's at as many births",
    "residual_taken": "share taken away",
}


def frontier_tables(curve: dict[str, Any]) -> dict[str, tuple[Sequence[str], list[list[str]]]]:
    """Columns and lines of the tables of a trade-off over k, by title: the points of both models,
    and both residuals at equal births.
    """
    points = [
        [f"{name}, k {point['k']}", *(cell(point[key], ".4f") for key in FRONTIER_MEASURES)]
        for name, model in (("static SAE", "static"), ("TSAE", "tsae"))
        for point in curve[model]
    ]
    equal = [
        [str(row["k"]), *(cell(row[key], ".4f") for key in list(EQUAL_COLUMNS)[1:])]
        for row in curve["equal_births"]
    ]
    text = f"{curve['dataset']}, seed {curve['seed']}"
    return {
        text: (["model", *map(definitions.label, FRONTIER_MEASURES)], points),
        f"{text}: at equal births per token": (list(EQUAL_COLUMNS.values()), equal),
    }


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The table in Markdown; the first column stands to the left, the others to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fast_memory() -> None:
    """Keep freed blocks in the process: fresh pages per large tensor cost a third of a step."""
    with suppress(OSError, AttributeError):  # no glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def release_memory() -> None:
    """Give freed blocks, which `fast_memory` keeps, back to the system."""
    with suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident_mib() -> float | None:
    """MiB of memory that this process holds, freed blocks that it keeps included; Linux alone."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def more_than(before: float | None) -> float | None:
    """MiB that this process holds beside those `before`."""
    now = resident_mib()
    return None if now is None or before is None else round(max(now - before, 0.0), 1)


def require_memory(n_bytes: int, what: str) -> None:
    """ValueError where `what` takes more bytes than this machine has in all, so far as is known."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    if n_bytes > there > 0:
        need, got = (f"{n / 2**30:,.1f} GiB of memory" for n in (n_bytes, there))
        raise ValueError(f"{what} takes {need}; got a machine with {got}")


def cpu_threads(wanted: int = 0) -> int:
    """Threads to use: those wanted, else OMP_NUM_THREADS, else the cores this process may use."""
    if not 0 <= wanted <= MOST_THREADS:
        raise ValueError(f"threads needs 0 <= threads <= {MOST_THREADS:,}; got {wanted}")
    set_by_user = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    affinity = getattr(os, "sched_getaffinity", None)  # absent outside Linux
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return wanted or (int(set_by_user) if set_by_user.isdigit() else 0) or cores


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input, a missing file and a full disk end the program with one line and exit code 1.

    With `--debug` the traceback stands before the line. SIGTERM stops it as ctrl-C does, and a
    second signal at once.
    """
    try:
        with _stopped_in_order():
            yield
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        if DEBUG.get():
            console.print(traceback.format_exc(), markup=False, highlight=False, soft_wrap=True)
        line = " ".join(str(error).split())
        if isinstance(error, torch.OutOfMemoryError):
            line = f"{line}; lower --batch, --seq or --d_sae, or take --device=cpu"
        console.print(f"error: {line}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except (MemoryError, RuntimeError) as error:
        wanted = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
        if not isinstance(error, MemoryError) and wanted is None:
            raise
        line = f"not enough memory: {wanted[1]} more were needed" if wanted else "not enough memory"
        advice = "a smaller text, --batch, --seq, --d_sae or --window takes less"
        console.print(f"error: {line}; {advice}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        console.print(
            "stopped; the same command continues from the last checkpoint", soft_wrap=True
        )
        raise typer.Exit(128 + (error.args or (signal.SIGINT,))[0]) from error


@contextmanager
def _stopped_in_order() -> Iterator[None]:
    """Within, SIGTERM (of a queue, of a shutdown) and ctrl-C are a KeyboardInterrupt: drafts are
    removed. The second one ends the process at once.
    """
    seen: list[int] = []

    def stop(number: int, _: object) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():  # no other may set it
        yield
        return
    taken = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        taken.append(signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Countdown:
    """Says after each of `n` parts of a long work what is left, and for how long at the pace."""

    def __init__(self, n: int) -> None:
        self.n, self.done, self.began = n, 0, time.perf_counter()

    def tick(self, label: str) -> None:
        """A part is done."""
        self.done += 1
        pace = (time.perf_counter() - self.began) / self.done
        left = f"{self.n - self.done} left, about {pace * (self.n - self.done) / 60:.0f} minutes"
        console.print(f"{label}: done ({self.done}/{self.n}, {left})", highlight=False)
