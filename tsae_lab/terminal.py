"""What the user sees: progress, tables, errors of one line; and the process's memory."""

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tsae_lab import definitions

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


RUN_MEASURES = (
    "fve", "jaccard", "tss", "l0", "delta_ce", "kl", "ce_recovered", "alive_frac",
)  # fmt: skip


def show(info: dict[str, Any], plan: str) -> None:
    """The main measures as a table, TSAE beside the static SAE, mean and standard error over the
    seeds.
    """
    for name, part in info.items():
        means, errors = part["means"], part["stderrs"]
        table = Table(
            title=f"{name}, {plan}: mean and standard error over {len(part['final_info_dict']['clean_ce'])} seeds"
        )
        table.add_column("measure")
        shown = [("static SAE", "static_")] + ([("TSAE", "")] if "fve_mean" in means else [])
        for title, _ in shown:
            table.add_column(title, justify="right")
        for key in RUN_MEASURES:
            cells = [
                f"{means[f'{p}{key}_mean']:.4f} ± {errors[f'{p}{key}_stderr']:.4f}"
                for _, p in shown
            ]
            table.add_row(definitions.label(key), *cells)
        Console().print(table)


STUDY_MEASURES = (
    "fve", "l0", "delta_ce", "kl", "jaccard", "jaccard_kappa", "tss_mean",
    "tss_weighted_mean", "tss_in_document_mean", "tss_eligible_frac", "responsiveness",
    "restricted_mean_16", "restricted_mean_64", "shuffled_restricted_mean_64",
    "feature_restricted_mean_64", "persistence", "transitions_significant",
    "transitions_replication", "transitions_beyond_token_pairs", "transitions_chains",
    "probe_agreement_attractor_k5", "probe_agreement_attractor_k10", "probe_coreference_k5",
    "probe_coreference_k10", "probe_disambiguation_k5", "effect_propagated", "kl_unrelated",
    "lifetime_effect_rho_propagated",
)  # fmt: skip


def show_study(info: dict[str, Any]) -> None:
    """Static SAE, TSAE and their difference: mean and standard error over seeds, and seed 0's
    interval by documents.
    """
    for name, part in info.items():
        means, errors = part["means"], part["stderrs"]
        n_seeds = len(part["final_info_dict"]["clean_ce"])
        table = Table(
            title=f"{name}, run_3" + f": mean ± standard error over {n_seeds} seeds" * (n_seeds > 1)
        )
        table.add_column("measure")
        for title in ("static SAE", "TSAE", "difference", "95 % (documents)"):
            table.add_column(title, justify="right")
        for key in STUDY_MEASURES:
            if f"{key}_mean" not in means:
                continue
            cells = [f"{means[f'{p}{key}_mean']:.4g}" for p in ("static_", "")]
            if n_seeds > 1:
                spreads = (f" ± {errors[f'{p}{key}_stderr']:.2g}" for p in ("static_", ""))
                cells = [cell + spread for cell, spread in zip(cells, spreads, strict=True)]
            difference = means[f"{key}_mean"] - means[f"static_{key}_mean"]
            bounds = part["intervals"].get(f"TSAE - static SAE: {key}")
            shown = f"{bounds[0][1]:+.4f} to {bounds[0][2]:+.4f}" if bounds else ""
            table.add_row(definitions.label(key), *cells, f"{difference:+.4g}", shown)
        table.caption = "intervals: seed 0, paired bootstrap over documents; all measures in summary.csv, intervals.csv"
        print_wide(table)


def show_tradeoff(curve: dict[str, Any]) -> None:
    """One row per bridge strength below the static SAE's: FVE, overlap, L0, TSS."""
    table = Table("model", "FVE", "Jaccard", "L0", "TSS, lag 1")
    table.title = f"{curve['dataset']}, seed {curve['seed']}"
    rows = [("static SAE", curve["static"])]
    rows += [(f"TSAE, beta {point['beta']:g}", point) for point in curve["tsae"]]
    for name, point in rows:
        table.add_row(name, *(f"{point[key]:.4f}" for key in ("fve", "jaccard", "l0", "tss")))
    Console().print(table)


def print_wide(table: Table) -> None:
    """On a terminal as wide as that is, else 130 columns."""
    out = Console()
    (out if out.is_terminal else Console(width=130)).print(table)


def fast_memory() -> None:
    """Keeps freed blocks in the process (glibc): fresh pages for every large tensor cost a third of
    a step.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        return


def cpu_threads(wanted: int = 0) -> int:
    """Threads to use: those wanted, else what OMP_NUM_THREADS says, else all cores."""
    set_by_user = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return wanted or (int(set_by_user) if set_by_user.isdigit() else 0) or os.cpu_count() or 1


def release_memory() -> None:
    """Gives freed blocks back to the system (glibc), which `fast_memory` keeps: called between two
    kinds of work.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Bad input, a missing file and a full disk end the program with one line and exit code 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        console.print(
            f"error: {' '.join(str(error).split())}", style="red", highlight=False, soft_wrap=True
        )
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        console.print(
            "stopped; the same command continues from the last checkpoint", soft_wrap=True
        )
        raise typer.Exit(130) from error
