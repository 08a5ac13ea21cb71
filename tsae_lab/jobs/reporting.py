"""report.html of runs: their numbers and tables, and an explorer of their models' codes."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from tsae_lab import files
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.jobs import identity, plan
from tsae_lab.jobs.checkpoint import load_sae
from tsae_lab.jobs.plan import Config
from tsae_lab.measures import evaluation
from tsae_lab.report import story
from tsae_lab.report.explorer import Explorer, explorer_of
from tsae_lab.report.page import write_page
from tsae_lab.report.sources import read_run
from tsae_lab.sections.context import context_of, subject
from tsae_lab.terminal import console, cpu_threads, fast_memory, one_line_errors, progress_bar

REPORT = "report.html"
DOCUMENTS, FEATURES = 24, 24_000  # of all explorers of a page together
DRAWN_WITH = 0  # the seed of the documents that are drawn


def report_command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="directories of runs; default: every run_* here", show_default=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="the file to write; default: beside the runs")
    ] = None,
) -> None:
    """Write report.html: what runs have measured, and their features, in one page."""
    with one_line_errors():
        torch.set_num_threads(cpu_threads())
        fast_memory()
        folders = runs or sorted(path for path in Path.cwd().glob("run_*") if path.is_dir())
        if not folders:
            raise ValueError(f"a report needs a run; there is no run_* in {Path.cwd()}")
        absent = [folder for folder in folders if not folder.is_dir()]
        if absent:
            raise ValueError(f"a report needs directories of runs; {absent[0]} is none")
        html = html or folders[-1].absolute().parent / REPORT
        files.check_outputs((html,), ())
        write_report(folders, html)


def report_beside(run: Path, lm: LanguageModel | None = None) -> None:
    """The report of a run that has just ended, in its directory; an error is said, not raised.

    It has the models beside the run and, where they are there, its measures and the ablations.
    `lm` is the language model of the models, which is else loaded.
    """
    names = {"run_2", "run_3", "run_4", run.absolute().name}
    folders = [place for place in run.absolute().parent.iterdir() if place.name in names]
    try:
        write_report(folders, run / REPORT, lm)
    except (ValueError, OSError) as error:
        line = f"no report was written: {' '.join(str(error).split())}"
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def write_report(folders: Sequence[Path], path: Path, lm: LanguageModel | None = None) -> None:
    """Write the page of these runs, and say where it lies.

    What is missing or damaged is named in it. ValueError where no run has a number.
    """
    began = time.perf_counter()
    runs = [read_run(folder) for folder in sorted(folders, key=lambda folder: folder.name)]
    texts = {name: plan.folder_name(name) for name in story.texts_of(runs)}
    explorers, notes = _explorers([run.folder for run in runs], list(texts), lm)
    size = write_page(path, story.told(runs, texts, notes), explorers)
    took = f"{size / 1e6:.1f} MB, {time.perf_counter() - began:.0f} s"
    console.print(f"{path}: the report ({took}); open it in a browser", soft_wrap=True)


# ------------------------------------------------------------------------------------ the explorers


def _explorers(
    folders: Sequence[Path], texts: Sequence[str], lm: LanguageModel | None
) -> tuple[list[Explorer], list[str]]:
    """An explorer per text of the last run that has models, or of run_2 beside; else why not."""
    beside = [folder.absolute().parent / "run_2" for folder in folders]
    places = [place for place in (*reversed(folders), *beside) if _has_models(place, texts)]
    if not places:
        return [], ["the explorer is left out: no run here holds a saved model of seed 0"]
    try:
        config, _ = plan.run_config(places[0])
        with files.cache_at(config.cache_dir):
            return _of_run(places[0], config, texts, lm or plan.lm_of(config))
    except (ValueError, OSError, TypeError) as error:
        reason = " ".join(str(error).split())
        return [], [f"the explorer is left out: {reason}"]


def _has_models(folder: Path, texts: Sequence[str]) -> bool:
    return any((folder / plan.folder_name(t) / "seed_0" / "static").is_dir() for t in texts)


def _of_run(
    run: Path, config: Config, texts: Sequence[str], lm: LanguageModel
) -> tuple[list[Explorer], list[str]]:
    made = plan.made_of(run) or {}
    if identity.is_other_lm(made, lm):
        raise ValueError(f"{run} was made of another language model than {lm.name} is now")
    explorers, notes = [], []
    for name in texts:
        try:
            explorers.append(_explorer(run, config, lm, name, len(texts)))
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            notes.append(f"the explorer of {name} is left out: {reason}")
    return explorers, notes


def _explorer(run: Path, config: Config, lm: LanguageModel, name: str, n_texts: int) -> Explorer:
    """The explorer of one text: the codes of its models of seed 0 on the validation tokens."""
    tokens = plan.split_tokens(config, lm, name, "validation")
    now = plan.identity_now(config, lm, {name: {"validation": tokens}})
    store, low = plan.open_store(config, lm, tokens), plan.products(config, lm.device)
    seed = run / plan.folder_name(name) / "seed_0"
    models = [seed / kind for kind in ("tsae", "static") if (seed / kind).is_dir()]
    subjects = []
    n_batches = len(models) * math.ceil(len(store) / evaluation.EVAL_ROWS)
    with progress_bar(f"{name}: codes for the report", n_batches) as advance:
        for folder in models:
            sae, cfg = load_sae(folder, low, lm.device)
            identity.refuse_content(folder, identity.of_cfg(cfg), identity.of_text(now, name))
            subjects.append(subject(sae, store, progress=advance))
    context = replace(context_of(name, 0, lm, store, subjects, long=True), dataset=name)
    share = n_texts * len(subjects)
    documents = min(max(DOCUMENTS // n_texts, 2), 12)
    return explorer_of(context, documents=documents, features=FEATURES // share, seed=DRAWN_WITH)
