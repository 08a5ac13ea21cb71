"""run_3: the models of run_2 under every section of the analysis, unit by unit; and loading a saved model.

The one place where sections are written: numbers as JSON (a section that has its file is not made again), tables as
CSV, figures as PNG and SVG. Another section is another entry of SECTIONS.
"""

import functools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

import analysis
import causal
import checkpoint
import evaluation
import language
import reading
import readout
import report
import runs
import tsae
from activations import LanguageModel
from analysis import Context, Section, Subject
from readout import Reader, Reading
from runs import Config
from stores import Store
from terminal import console, progress_bar, show_study

MODELS = "run_2"  # the directory beside run_3 that holds the models
PROBE_KS = (5, 10)  # features of the sparse probes of run_3; the command `probe` takes any


def probing(context: Context) -> Section:
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
    wanted = language.readers(params, dials, static.weights, static.dials.k, low=static.dials.low)
    del wanted["resid"]
    with progress_bar("probes", _n_probes(given, wanted), 0) as advance:
        rows = language.probe_rows(given, reads, wanted, ks=PROBE_KS, embedding=False, progress=lambda: advance(""))
    return Section(*language.probe_section([*rows, *known]))


@functools.lru_cache(maxsize=1)
def _probed_residual(
    lm: LanguageModel, hook: str, share: float
) -> tuple[Sequence[language.Task], Mapping[str, Reading], list[dict[str, Any]]]:
    """What is the same for all codes on a hook: the tasks, their activations, the rows of residual and layer 0."""
    given, wanted = language.all_tasks(share=share), {"resid": readout.residual_reader()}
    with console.status("reading the probing tasks"):
        reads = language.read_tasks(lm, hook, given)
    with progress_bar("probes of the residual", _n_probes(given, wanted) + len(given), 0) as advance:
        rows = language.probe_rows(given, reads, wanted, ks=PROBE_KS, progress=lambda: advance(""))
    return given, reads, rows


def _n_probes(given: Sequence[language.Task], wanted: Mapping[str, Reader]) -> int:
    return len(given) * len(wanted) * (len(PROBE_KS) + 1)


def intervention(context: Context) -> Section:
    """Causal effects of number features, and how long effects last, for each model."""
    bench = _bench(context.lm, context.store.hook, context.share, context.data_dir)
    models = [causal.model(one.weights, one.dials, one.codes, one.prefix) for one in context.subjects]
    return Section(*causal.measures(bench, models, context.store.tokens, draw=context.long))


@functools.lru_cache(maxsize=1)
def _bench(lm: LanguageModel, hook: str, share: float, data_dir: str) -> causal.Bench:
    """What is the same for all models on one hook."""
    with console.status("interventions: the language model's own numbers"):
        return causal.prepare(lm, hook, data_dir=data_dir or None, counts=causal.scaled(share))


SECTIONS: Mapping[str, Callable[[Context], Section]] = MappingProxyType(
    {
        "stability": analysis.stability,
        "lifetimes": analysis.lifetime,
        "transitions": reading.transition,
        "evolution": reading.evolution,
        "probes": probing,
        "interventions": intervention,
    }
)


def sections_of(config: Config) -> list[str]:
    """The sections that a run_3 has. ValueError for one that does not exist."""
    wanted = [name.strip() for name in config.sections.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown or not wanted:
        raise ValueError(f"sections are of {', '.join(SECTIONS)}; got {config.sections!r}")
    return wanted


def run(out_dir: Path, config: Config) -> dict[str, Any]:
    """The whole of run_3; what it returns is what final_info.json holds. Trains run_2 beside it where that is missing.

    Raises ValueError where either directory holds a run with another configuration.
    """
    sections_of(config)
    config = runs.checked(config, "run_3")
    models = out_dir.parent / MODELS
    runs.refuse_other(out_dir, config, "run_3")
    runs.refuse_other(models, config, MODELS)
    if not (models / "final_info.json").exists():
        console.print(f"{models} is not finished: training it first")
        runs.run(models, config)
    began = time.perf_counter()
    lm = runs.language_model(config)
    runs.claim(out_dir, config, "run_3")
    info = {name: _dataset(out_dir, models, config, lm, name) for name in runs.names_of(config)}
    checkpoint.write_json(out_dir / "final_info.json", info)
    checkpoint.write_csv(out_dir / "summary.csv", summary_rows(info))
    checkpoint.write_csv(out_dir / "intervals.csv", _interval_table(info))
    show_study(info)
    console.print(f"{out_dir}: done in {(time.perf_counter() - began) / 60:.1f} minutes")
    return info


def _dataset(out_dir: Path, models: Path, config: Config, lm: LanguageModel, name: str) -> dict[str, Any]:
    """One text's part of final_info.json: run_2's own measures and those of all sections, over the seeds."""
    open_store = functools.cache(lambda: runs.split_store(config, lm, name, "validation"))
    measured, intervals = [], []
    for seed in range(config.seeds):
        place = Path(runs.folder_name(name)) / f"seed_{seed}"
        parts = run_unit(out_dir / place, models / place, config, lm, name, seed, open_store)
        own = json.loads((models / place / "measures.json").read_text())
        found = own | {key: value for part in parts for key, value in part["numbers"].items()}
        differences = {f"difference_{k}": found[k] - found[f"static_{k}"] for k in found if f"static_{k}" in found}
        measured.append(differences | found)
        intervals.append([row for part in parts for row in part["intervals"]])
    rows = {f"{row['model']}: {row['measure']}": row for row in intervals[0]}
    by_measure = {
        key: [[row["value"], row["low"], row["high"]] for seed in intervals for row in seed if _same(row, first)]
        for key, first in rows.items()
    }
    return runs.summary(measured) | {"intervals": by_measure}


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (one["model"], one["measure"]) == (other["model"], other["measure"])


def run_unit(
    folder: Path,
    models: Path,
    config: Config,
    lm: LanguageModel,
    name: str,
    seed: int,
    open_store: Callable[[], Store],
) -> list[dict[str, Any]]:
    """Numbers and intervals of every section for one text and seed; sections that are there already are read."""
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
            console.print(f"{label}: {section} took {took:.0f} s ({at}/{len(missing)})", highlight=False)
    return [read_section(folder / f"{section}.json") or {} for section in wanted]


def read_section(path: Path) -> dict[str, Any] | None:
    """The numbers and intervals of a section; None where its file is missing or damaged, so that it is made again."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and {"numbers", "intervals"} <= found.keys() else None


def _context(
    models: Path, config: Config, lm: LanguageModel, name: str, seed: int, store: Store, label: str
) -> Context:
    low = runs.products(config, lm.device)
    n_batches = 2 * math.ceil(len(store) / evaluation.EVAL_ROWS)
    subjects = []
    with progress_bar(f"{label}: codes", n_batches, 0) as advance:
        for folder, prefix in ((models / "tsae", ""), (models / "static", "static_")):
            weights, dials, _ = load_model(folder, low, lm.device)
            subjects.append(
                analysis.subject(weights, dials, store, lm.device, prefix=prefix, progress=lambda: advance(""))
            )
    context = context_of(name, seed, lm, store, subjects, long=seed == 0)
    return replace(context, share=config.share, data_dir=config.data_dir)


def context_of(
    name: str, seed: int, lm: LanguageModel, store: Store, subjects: Sequence[Subject], *, long: bool
) -> Context:
    """A context with the words of its text."""
    words = {i: lm.tokenizer.decode([i]) for i in store.tokens.ids.unique().tolist()}
    return Context(dataset=name, seed=seed, long=long, lm=lm, store=store, words=words, subjects=tuple(subjects))


def write_section(folder: Path, name: str, section: Section) -> None:
    """Tables and figures under their own names, then NAME.json, which says that the section is whole."""
    for table, rows in section.tables.items():
        file = f"{name}_{table}" if table == "intervals" else table
        checkpoint.write_csv(folder / f"{file}.csv", rows)
    for figure, drawn in section.figures.items():
        report.save_figure(drawn, folder / figure)
    content = {"numbers": section.numbers, "intervals": section.tables.get("intervals", [])}
    checkpoint.write_json(folder / f"{name}.json", content)


def load_model(
    folder: Path, low: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[tsae.Static | tsae.Params, tsae.Dials, dict[str, Any]]:
    """A saved TSAE, or a static SAE in the SAELens format, with its dials and its cfg.json.

    Raises ValueError for a folder that is missing, damaged or foreign.
    """
    if not (folder / checkpoint.SAELENS_CFG).is_file():
        raise ValueError(f"{folder} holds no model: there is no {checkpoint.SAELENS_CFG}")
    if not (folder / checkpoint.SAELENS_WEIGHTS).is_file():
        raise ValueError(f"{folder} holds no model: there is no {checkpoint.SAELENS_WEIGHTS}")
    weights, cfg = checkpoint.load_saelens(folder)
    if (folder / "temporal.safetensors").is_file():
        params, dials = runs.load_tsae(folder, low)
        named = {name: tensor.to(device) for name, tensor in tsae.tensors(params).items()}
        return tsae.params_from(named), dials, cfg
    static = tsae.Static(**{name: tensor.to(device) for name, tensor in weights.items()})
    return static, tsae.Dials(k=cfg["k"], mix=0.0, low=low), cfg


# ------------------------------------------------------------------------------------------- over the seeds


def summary_rows(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a text and measure: mean and standard error over the seeds of static SAE, TSAE and their difference."""
    rows = []
    for name, part in info.items():
        for key in part["final_info_dict"]:
            if f"static_{key}" not in part["final_info_dict"]:
                continue
            row: dict[str, Any] = {"dataset": name, "measure": key}
            for model, prefix in (("static", "static_"), ("tsae", ""), ("difference", "difference_")):
                row[f"{model}_mean"] = part["means"].get(f"{prefix}{key}_mean", "")
                row[f"{model}_stderr"] = part["stderrs"].get(f"{prefix}{key}_stderr", "")
            rows.append(row)
    return rows


def _interval_table(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"dataset": name, "seed": seed, "model": model, "measure": measure, "value": value, "low": low, "high": high}
        for name, part in info.items()
        for key, by_seed in part["intervals"].items()
        for model, measure in [key.split(": ", 1)]
        for seed, (value, low, high) in enumerate(by_seed)
    ]
