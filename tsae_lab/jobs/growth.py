"""How cost grows: `python experiment.py growth` moves one size of a step at a time, or with
`--measures` the number of tokens that are measured.
"""

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy import stats

import metrics
from metrics import CodedText
from tsae_lab import devices
from tsae_lab.jobs import bench, budget
from tsae_lab.jobs.training import Recipe
from tsae_lab.measures import lifetimes, transitions
from tsae_lab.terminal import (
    console,
    cpu_threads,
    fast_memory,
    one_line_errors,
    print_table,
    release_memory,
    resident_mib,
)

MOVED = {
    "d_sae": (4_096, 8_192, 16_384, 32_768, 65_536),
    "k": (16, 32, 64, 128, 256),
    "window": (1, 4, 16, 64),
    "seq": (21, 63, 126, 252),
}
N_TOKENS = (10_000, 31_623, 100_000, 316_228, 1_000_000)  # that the measures read
DOCUMENT, STAYS = 252, 0.3  # tokens of a document, and the chance that a feature stays for one more
LOOK = 0.01  # seconds between two looks at the memory


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


# ----------------------------------------------------------------------------- what measuring costs


def made_codes(n_tokens: int, k: int, d_sae: int) -> CodedText:
    """Codes of about `n_tokens` tokens in documents of 252, k features each: in each of k parts of
    the dictionary one is on, which stays with chance .3 or is drawn anew, the n-th of a part with a
    chance in proportion to 1 / n.
    """
    generator, n_documents = torch.Generator().manual_seed(0), max(round(n_tokens / DOCUMENT), 2)
    shape = (n_documents, DOCUMENT, k)
    chance = 1 / torch.arange(1, d_sae // k + 1)
    drawn = torch.multinomial(chance, n_documents * DOCUMENT * k, True, generator=generator)
    stays = torch.rand(shape, generator=generator) < STAYS
    stays[:, 0] = False
    last = torch.where(stays, 0, torch.arange(DOCUMENT)[:, None]).cummax(1).values
    idx = drawn.view(shape).gather(1, last) * k + torch.arange(k)
    return metrics.codes_from_topk(1 + torch.rand(shape, generator=generator), idx, d_sae)


MEASURES: dict[str, Callable[[CodedText], object]] = {
    "TSS at 16 lags": metrics.tss,
    "overlap, births, distinct features": lambda codes: (
        metrics.jaccard(codes), metrics.births(codes), metrics.distinct(codes)
    ),
    "lifetimes": lambda codes: lifetimes.survival(lifetimes.runs(codes)),
    "transitions": transitions.find_transitions,
}  # fmt: skip


def spent(act: Callable[[], object]) -> tuple[float, float | None]:
    """Processor seconds that it takes, which a busy machine lengthens less than the clock's, and GB
    that this process holds more meanwhile; None where unknown.
    """
    before, seen, ended = resident_mib(), [0.0], threading.Event()

    def look() -> None:
        while not ended.wait(LOOK):
            seen.append(resident_mib() or 0.0)

    watcher, began = threading.Thread(target=look), time.process_time()
    watcher.start()
    try:
        act()
    finally:
        took = time.process_time() - began
        ended.set()
        watcher.join()
    return took, None if before is None else max(max(seen) - before, 0.0) * 2**20 / 1e9


def measures_by_tokens(
    sizes: Sequence[int], k: int, d_sae: int
) -> dict[str, dict[int, tuple[float, float | None]]]:
    """Of every measure the `spent` seconds and GB by number of tokens."""
    costs: dict[str, dict[int, tuple[float, float | None]]] = {name: {} for name in MEASURES}
    for size in sizes:
        codes = made_codes(size, k, d_sae)
        for name, measure in MEASURES.items():
            release_memory()
            costs[name][codes.n_tokens] = spent(lambda measure=measure, codes=codes: measure(codes))
            said = f"{name}, {codes.n_tokens:,} tokens: {costs[name][codes.n_tokens][0]:.1f} s"
            console.print(said, markup=False, highlight=False, soft_wrap=True)
    return costs


def show_measures(costs: dict[str, dict[int, tuple[float, float | None]]], title: str) -> None:
    """One row per measure and number of tokens; the exponent of the whole time behind its last."""
    rows: list[tuple[str, ...]] = []
    for name, by_tokens in costs.items():
        for n_tokens, (took, gb) in by_tokens.items():
            per_token, held = f"{1e6 * took / n_tokens:.1f}", "-" if gb is None else f"{gb:.2f}"
            rows.append((f"{name}, {n_tokens:,} tokens", f"{took:.2f}", per_token, held))
        seconds = [took for took, _ in by_tokens.values()]
        fit = "{:.2f} ± {:.2f}".format(*exponent(list(by_tokens), seconds))
        rows.append((f"{name}: exponent", fit, "", ""))
    print_table(title, ("measure", "processor seconds", "us/token", "GB"), rows)


def growth_command(
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="turns of every step; medians are shown")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes all cores")] = 0,
    measures: Annotated[
        bool, typer.Option("--measures", help="of the measures instead, against tokens measured")
    ] = False,
) -> None:
    """Time and memory of a training step against d_sae, k, window and sequence length."""
    with one_line_errors():
        place = devices.check_device(device)
        fast_memory()
        devices.same_sums()
        torch.set_num_threads(cpu_threads(threads))
        recipe, shape = Recipe(dead_after=10**12), (64, 63, 576)
        if measures:
            costs_of = measures_by_tokens(N_TOKENS, recipe.k, recipe.d_sae)
            title = f"measures of made-up codes, k {recipe.k}, {recipe.d_sae:,} features"
            show_measures(costs_of, title)
            return
        where = f"{torch.get_num_threads()} threads" if place.type == "cpu" else device
        costs = costs_by_size(recipe, shape, place, repeats, MOVED)
        show_costs(costs, f"one step of {shape[0] * shape[1]:,} tokens, {where}")
