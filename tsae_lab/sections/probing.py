"""What codes know of language: the three probing tasks as numbers, tables and figures."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import probes
from probes import row_numbers
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
    by_kind = {subject.sae.temporal: subject.sae for subject in context.subjects}
    if False not in by_kind:
        raise ValueError("the probing section needs a static SAE among its models")
    given, reads, known = _probed_residual(context.lm, context.store.hook, context.share)
    wanted = readout.readers(by_kind[False], by_kind.get(True))
    del wanted["resid"]
    with progress_bar("probes", _n_probes(given, wanted), 0) as advance:
        rows = readout.probe_rows(
            given, reads, wanted, ks=PROBE_KS, embedding=False, progress=lambda: advance("")
        )
    rows += known
    figures = {"probes_by_features": accuracy_figure(rows)}
    if any(row["items"].startswith("distance") for row in rows):
        figures["probes_by_distance"] = distance_figure(rows, 5)
    return Section(row_numbers(rows), {"probes": [dict(row) for row in rows]}, figures)


@functools.lru_cache(maxsize=1)
def _probed_residual(
    lm: LanguageModel, hook: str, share: float
) -> tuple[Sequence[probes.Task], Mapping[str, Reading], list[dict[str, Any]]]:
    """What is the same for all codes on a hook: the tasks, their activations, the rows of residual
    and layer 0.
    """
    given, wanted = tasks.all_tasks(share=share), {"resid": readout.residual_reader()}
    with console.status("reading the probing tasks"):
        reads = readout.read_tasks(lm, hook, given)
    with progress_bar(
        "probes of the residual", _n_probes(given, wanted) + len(given), 0
    ) as advance:
        rows = readout.probe_rows(given, reads, wanted, ks=PROBE_KS, progress=lambda: advance(""))
    return given, reads, rows


def _n_probes(given: Sequence[probes.Task], wanted: Mapping[str, Reader]) -> int:
    return len(given) * len(wanted) * (len(PROBE_KS) + 1)
