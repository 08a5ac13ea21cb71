"""What codes know of language: the three probing tasks, for several codes at once, as numbers,
tables and figures.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

import probes
import tsae
from probes import row_numbers
from tsae_lab.data import tasks
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.measures import readout
from tsae_lab.measures.readout import Reader, Reading
from tsae_lab.sections.context import Context, Section
from tsae_lab.sections.figures import accuracy_figure, distance_figure
from tsae_lab.terminal import console, progress_bar

# --------------------------------------------------------------------------------------------- section

Found = tuple[dict[str, float], dict[str, list[dict[str, Any]]], dict[str, Figure]]


def probe_section(rows: Sequence[Mapping[str, Any]]) -> Found:
    """Numbers, table and figures of rows."""
    ks = {row["k"] for row in rows}
    figures = {"probes_by_features": accuracy_figure(rows)}
    if any(row["items"].startswith("distance") for row in rows):
        figures["probes_by_distance"] = distance_figure(rows, 5 if 5 in ks else "all")
    return row_numbers(rows), {"probes": [dict(row) for row in rows]}, figures


PROBE_KS = (5, 10)  # features of the sparse probes of run_3; the command `probe` takes any


def probing_section(context: Context) -> Section:
    """The probing tasks, read from the code of each model and from the raw residual stream."""
    params, dials, static = None, None, None
    for one in context.subjects:
        if isinstance(one.weights, tsae.Params):
            params, dials = one.weights, one.dials
        else:
            static = one
    if static is None or not isinstance(static.weights, tsae.Static):
        raise ValueError("the probing section needs a static SAE among its models")
    given, reads, known = _probed_residual(context.lm, context.store.hook, context.share)
    wanted = readout.readers(params, dials, static.weights, static.dials.k, low=static.dials.low)
    del wanted["resid"]
    with progress_bar("probes", _n_probes(given, wanted), 0) as advance:
        rows = readout.probe_rows(
            given, reads, wanted, ks=PROBE_KS, embedding=False, progress=lambda: advance("")
        )
    return Section(*probe_section([*rows, *known]))


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
