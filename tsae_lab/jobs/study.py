"""run_3: the models of run_2 under every section of the analysis, unit by unit; and loading a saved
model.

The one place where sections are written: numbers as JSON (a section that has its file is not made
again), tables as CSV, figures as PNG and SVG. Another section is another entry of SECTIONS.
"""

import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tsae_lab import files
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.data.store import Store
from tsae_lab.jobs import plan
from tsae_lab.jobs.checkpoint import load_model
from tsae_lab.jobs.plan import Config
from tsae_lab.measures import evaluation
from tsae_lab.sections import figures, stability, transitions
from tsae_lab.sections.context import Context, Section, context_of, subject
from tsae_lab.sections.effects import interventions_section
from tsae_lab.sections.probing import probing_section
from tsae_lab.terminal import console, progress_bar, show_study

MODELS = "run_2"  # the directory beside run_3 that holds the models


SECTIONS: Mapping[str, Callable[[Context], Section]] = MappingProxyType(
    {
        "stability": stability.stability_section,
        "lifetimes": stability.lifetimes_section,
        "transitions": transitions.transitions_section,
        "evolution": transitions.evolution_section,
        "probes": probing_section,
        "interventions": interventions_section,
    }
)


def sections_of(config: Config) -> list[str]:
    """The sections that a run_3 has. ValueError for one that does not exist."""
    wanted = [name.strip() for name in config.sections.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown or not wanted:
        raise ValueError(f"sections are of {', '.join(SECTIONS)}; got {config.sections!r}")
    return wanted


def run_study(
    out_dir: Path, config: Config, *, train: Callable[[Path, Config], object]
) -> dict[str, Any]:
    """The whole of run_3; what it returns is what final_info.json holds.

    `train` makes run_2 beside it where that is missing.

    Raises ValueError where either directory holds a run with another configuration.
    """
    sections_of(config)
    config = plan.checked(config, "run_3")
    models = out_dir.parent / MODELS
    plan.refuse_other(out_dir, config, "run_3")
    plan.refuse_other(models, config, MODELS)
    if not (models / "final_info.json").exists():
        console.print(f"{models} is not finished: training it first")
        train(models, config)
    began = time.perf_counter()
    lm = plan.lm_of(config)
    plan.claim(out_dir, config, "run_3")
    info = {name: _dataset(out_dir, models, config, lm, name) for name in plan.names_of(config)}
    files.write_json(out_dir / "final_info.json", info)
    files.write_csv(out_dir / "summary.csv", summary_rows(info))
    files.write_csv(out_dir / "intervals.csv", _interval_table(info))
    show_study(info)
    console.print(f"{out_dir}: done in {(time.perf_counter() - began) / 60:.1f} minutes")
    return info


def _dataset(
    out_dir: Path, models: Path, config: Config, lm: LanguageModel, name: str
) -> dict[str, Any]:
    """One text's part of final_info.json: run_2's own measures and those of all sections, over the
    seeds.
    """
    open_store = functools.cache(lambda: plan.split_store(config, lm, name, "validation"))
    measured, intervals = [], []
    for seed in range(config.seeds):
        place = Path(plan.folder_name(name)) / f"seed_{seed}"
        parts = study_unit(out_dir / place, models / place, config, lm, name, seed, open_store)
        own = json.loads((models / place / "measures.json").read_text())
        found = own | {key: value for part in parts for key, value in part["numbers"].items()}
        differences = {
            f"difference_{k}": found[k] - found[f"static_{k}"]
            for k in found
            if f"static_{k}" in found
        }
        measured.append(differences | found)
        intervals.append([row for part in parts for row in part["intervals"]])
    rows = {f"{row['model']}: {row['measure']}": row for row in intervals[0]}
    by_measure = {
        key: [
            [row["value"], row["low"], row["high"]]
            for seed in intervals
            for row in seed
            if _same(row, first)
        ]
        for key, first in rows.items()
    }
    return plan.summary(measured) | {"intervals": by_measure}


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (one["model"], one["measure"]) == (other["model"], other["measure"])


def study_unit(
    folder: Path,
    models: Path,
    config: Config,
    lm: LanguageModel,
    name: str,
    seed: int,
    open_store: Callable[[], Store],
) -> list[dict[str, Any]]:
    """Numbers and intervals of every section for one text and seed; sections that are there already
    are read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = sections_of(config)
    missing = [section for section in wanted if read_section(folder / f"{section}.json") is None]
    if missing:
        label = f"{name}, seed {seed}"
        context = _context(models, config, lm, name, seed, open_store(), label)
        for at, section in enumerate(missing, 1):
            began = time.perf_counter()
            write_section(folder, section, SECTIONS[section](context))
            took = time.perf_counter() - began
            console.print(
                f"{label}: {section} took {took:.0f} s ({at}/{len(missing)})", highlight=False
            )
    return [read_section(folder / f"{section}.json") or {} for section in wanted]


def read_section(path: Path) -> dict[str, Any] | None:
    """The numbers and intervals of a section; None where its file is missing or damaged, so that it
    is made again.
    """
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and {"numbers", "intervals"} <= found.keys() else None


def _context(
    models: Path, config: Config, lm: LanguageModel, name: str, seed: int, store: Store, label: str
) -> Context:
    low = plan.products(config, lm.device)
    n_batches = 2 * math.ceil(len(store) / evaluation.EVAL_ROWS)
    subjects = []
    with progress_bar(f"{label}: codes", n_batches, 0) as advance:
        for folder, prefix in ((models / "tsae", ""), (models / "static", "static_")):
            sae, _ = load_model(folder, low, lm.device)
            subjects.append(subject(sae, store, prefix=prefix, progress=lambda: advance("")))
    context = context_of(name, seed, lm, store, subjects, long=seed == 0)
    return replace(context, share=config.share, data_dir=config.data_dir)


def write_section(folder: Path, name: str, section: Section) -> None:
    """Tables and figures under their own names, then NAME.json, which says that the section is
    whole.
    """
    for table, rows in section.tables.items():
        file = f"{name}_{table}" if table == "intervals" else table
        files.write_csv(folder / f"{file}.csv", rows)
    for figure, drawn in section.figures.items():
        figures.save_figure(drawn, folder / figure)
    content = {"numbers": section.numbers, "intervals": section.tables.get("intervals", [])}
    files.write_json(folder / f"{name}.json", content)


# ------------------------------------------------------------------------------------------- over the seeds


def summary_rows(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a text and measure: mean and standard error over the seeds of static SAE, TSAE and
    their difference.
    """
    rows = []
    for name, part in info.items():
        for key in part["final_info_dict"]:
            if f"static_{key}" not in part["final_info_dict"]:
                continue
            row: dict[str, Any] = {"dataset": name, "measure": key}
            for model, prefix in (
                ("static", "static_"),
                ("tsae", ""),
                ("difference", "difference_"),
            ):
                row[f"{model}_mean"] = part["means"].get(f"{prefix}{key}_mean", "")
                row[f"{model}_stderr"] = part["stderrs"].get(f"{prefix}{key}_stderr", "")
            rows.append(row)
    return rows


def _interval_table(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "dataset": name,
            "seed": seed,
            "model": model,
            "measure": measure,
            "value": value,
            "low": low,
            "high": high,
        }
        for name, part in info.items()
        for key, by_seed in part["intervals"].items()
        for model, measure in [key.split(": ", 1)]
        for seed, (value, low, high) in enumerate(by_seed)
    ]
