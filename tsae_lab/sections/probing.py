"""What codes know of language: the three probing tasks as numbers, tables and figures."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from probes import Features, Task, probed_with, row_numbers
from tsae_lab.data import tasks
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.measures import readout
from tsae_lab.measures.readout import Reader, Reading
from tsae_lab.sections.context import Context, Section
from tsae_lab.sections.figures import accuracy_figure, distance_figure
from tsae_lab.terminal import console, progress_bar

PROBE_KS = (5, 10)  # features of the sparse probes of run_3; the command `probe` takes any


def probing_section(context: Context) -> Section:
    """The probing tasks, read from the code of each model and from the raw residual stream."""
    saes = {subject.sae.temporal: subject.sae for subject in context.subjects}
    if False not in saes:
        raise ValueError("the probing section needs a static SAE among its models")
    probed, reads, rows_of_all = _probed_residual(
        context.lm, context.store.hook, context.share, context.seed
    )
    codes = readout.readers(saes[False], saes.get(True))
    del codes["resid"]
    weights: list[dict[str, Any]] = []

    def weigh(task: Task, features: Mapping[str, Features]) -> None:
        if context.long:
            weights.extend(readout.weight_rows(task, features, k=PROBE_KS[0]))

    with progress_bar("probes", _n_probes(probed, codes)) as advance:
        options: dict[str, Any] = {"ks": PROBE_KS, "seed": context.seed, "progress": advance}
        rows = readout.probe_rows(probed, reads, codes, embedding=False, each=weigh, **options)
    rows += rows_of_all
    tables = {"probes": [dict(row) for row in rows]}
    if weights:
        tables["probe_weights"] = weights
    figures = {"probes_by_features": accuracy_figure(rows)}
    if any(row["items"].startswith("distance") for row in rows):
        figures["probes_by_distance"] = distance_figure(rows, 5)
    return Section({**row_numbers(rows)}, tables, figures)


# all seeds of a run, which each text asks for anew; one entry holds the float32 residual stream of
# every task's texts
@functools.lru_cache(maxsize=8)
def _probed_residual(
    lm: LanguageModel, hook: str, share: float, seed: int
) -> tuple[Sequence[Task], Mapping[str, Reading], list[dict[str, Any]]]:
    """Shared by codes on one hook: a seed's tasks, activations, rows of residual and layer 0."""
    probed, codes = tasks.all_tasks(share=share, seed=seed), {"resid": readout.residual_reader()}
    with console.status("reading the probing tasks"):
        reads = readout.read_tasks(lm, hook, probed)
    n_probes = _n_probes(probed, codes) + len(probed)
    with progress_bar("probes of the residual", n_probes) as advance:
        rows = readout.probe_rows(probed, reads, codes, ks=PROBE_KS, seed=seed, progress=advance)
    return probed, reads, rows


def _n_probes(probed: Sequence[Task], codes: Mapping[str, Reader]) -> int:
    return len(probed) * len(codes) * len(probed_with(PROBE_KS))
