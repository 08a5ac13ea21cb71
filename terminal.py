"""What the user sees: progress, tables, errors of one line; and the process's memory."""

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(stderr=True)


@contextmanager
def progress_bar(label: str, total: int, done: int) -> Iterator[Callable[[str], None]]:
    """A bar with the time left; where stderr is no terminal, a line about every tenth."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
                   TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(label, total=total, completed=done, note="")
            yield lambda note: bar.update(task, advance=1, note=note)
        return
    at, began = [done], time.perf_counter()

    def line(note: str) -> None:
        at[0] += 1
        if at[0] * 10 // total > (at[0] - 1) * 10 // total:
            left = (time.perf_counter() - began) / (at[0] - done) * (total - at[0])
            console.print(f"{label}: {at[0]}/{total}, {left:.0f} s left  {note}", highlight=False)

    yield line


def show(info: dict[str, Any], plan: str) -> None:
    """The main measures as a table, TSAE beside the static SAE, mean and standard error over the seeds."""
    rows = {
        "FVE": "fve",
        "Jaccard overlap of neighbours": "jaccard",
        "TSS, lag 1": "tss",
        "L0": "l0",
        "delta CE, nats a token": "delta_ce",
        "CE recovered": "ce_recovered",
        "alive": "alive_frac",
    }
    for name, part in info.items():
        means, errors = part["means"], part["stderrs"]
        table = Table(
            title=f"{name}, {plan}: mean and standard error over {len(part['final_info_dict']['clean_ce'])} seeds"
        )
        table.add_column("measure")
        shown = [("static SAE", "static_")] + ([("TSAE", "")] if "fve_mean" in means else [])
        for title, _ in shown:
            table.add_column(title, justify="right")
        for title, key in rows.items():
            cells = [f"{means[f'{p}{key}_mean']:.4f} ± {errors[f'{p}{key}_stderr']:.4f}" for _, p in shown]
            table.add_row(title, *cells)
        Console().print(table)


def fast_memory() -> None:
    """Keeps freed blocks in the process (glibc): fresh pages for every large tensor cost a third of a step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        return


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input, a missing file and a full disk end the program with one line and exit code 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        console.print(f"error: {' '.join(str(error).split())}", style="red", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        console.print("stopped; the same command continues from the last checkpoint", soft_wrap=True)
        raise typer.Exit(130) from error
