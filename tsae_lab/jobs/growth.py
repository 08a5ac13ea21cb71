"""How a step's cost grows: `python experiment.py growth` moves one size at a time."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy import stats

from tsae_lab import devices
from tsae_lab.jobs import bench, budget
from tsae_lab.jobs.training import Recipe
from tsae_lab.terminal import cpu_threads, fast_memory, one_line_errors, print_table

MOVED = {
    "d_sae": (4_096, 8_192, 16_384, 32_768, 65_536),
    "k": (16, 32, 64, 128, 256),
    "window": (1, 4, 16, 64),
    "seq": (21, 63, 126, 252),
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a step costs at one size."""

    static: float  # microseconds per token
    tsae: float
    gb: float  # of memory for the TSAE's step, weights, gradients and moments (`budget.step_gb`)


def costs_by_size(
    recipe: Recipe, shape: tuple[int, int, int], device: torch.device, repeats: int,
    sizes: dict[str, tuple[int, ...]],
) -> dict[str, dict[int, Cost]]:  # fmt: skip
    """The cost by size and value, the others as given; `seq` keeps the tokens per step."""
    return {
        name: {
            value: cost(moved, new_shape, device, repeats)
            for value, moved, new_shape in _values(recipe, shape, name, values)
        }
        for name, values in sizes.items()
    }


def _values(
    recipe: Recipe, shape: tuple[int, int, int], name: str, values: tuple[int, ...]
) -> Iterator[tuple[int, Recipe, tuple[int, int, int]]]:
    batch, seq, d_in = shape
    for value in values:
        if name == "seq":
            yield value, recipe, (max(round(batch * seq / value), 1), value, d_in)
        else:
            yield value, replace(recipe, **{name: value}), shape


def cost(recipe: Recipe, shape: tuple[int, int, int], device: torch.device, repeats: int) -> Cost:
    """Medians of a step of the static SAE and of the TSAE, which take turns."""
    job = bench.job_of(recipe, shape, device)
    arms = {name: bench.our_step(job, temporal=name == "tsae") for name in ("static", "tsae")}
    seconds = bench.medians(arms, repeats, device)
    del arms
    gc.collect()
    per_token = {name: 1e6 * took / job.tokens for name, took in seconds.items()}
    batch, seq, d_in = shape
    return Cost(**per_token, gb=budget.step_gb(recipe, d_in, batch, seq, job.low))


def exponent(values: list[int], costs: list[float]) -> tuple[float, float]:
    """Slope of `log cost` against `log value` and its standard error; two values or more."""
    fit: Any = stats.linregress(np.log(values), np.log(costs))
    return float(fit.slope), float(fit.stderr)


def show_costs(costs: dict[str, dict[int, Cost]], title: str) -> None:
    """One row per size and value, and the exponents of each size behind its last."""
    rows = []
    for name, by_value in costs.items():
        fits = []
        for key in ("static", "tsae", "gb"):
            numbers = [getattr(point, key) for point in by_value.values()]
            fits.append("{:.2f} ± {:.2f}".format(*exponent(list(by_value), numbers)))
        for value, point in by_value.items():
            gb = f"{point.gb:.2f}"
            rows.append((f"{name} {value:,}", f"{point.static:.1f}", f"{point.tsae:.1f}", gb))
        rows.append((f"{name}: exponent", *fits))
    columns = ("size", "static, us/token", "TSAE, us/token", "TSAE, GB")
    print_table(title, columns, rows)


def growth_command(
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="turns of every step; medians are shown")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes all cores")] = 0,
) -> None:
    """Time and memory of a training step against d_sae, k, window and sequence length."""
    with one_line_errors():
        place = devices.check_device(device)
        fast_memory()
        devices.same_sums()
        torch.set_num_threads(cpu_threads(threads))
        recipe, shape = Recipe(dead_after=10**12), (64, 63, 576)
        where = f"{torch.get_num_threads()} threads" if place.type == "cpu" else device
        costs = costs_by_size(recipe, shape, place, repeats, MOVED)
        show_costs(costs, f"one step of {shape[0] * shape[1]:,} tokens, {where}")
