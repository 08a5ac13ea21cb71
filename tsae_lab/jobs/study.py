"""What is made of run_2's models: run_3, every section of the analysis, and the trade-off curve.

A section is written in one place: numbers as JSON (a section that has its file is not made again),
tables as CSV, figures as PNG and SVG. Another section is another entry of SECTIONS.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tsae
from tsae_lab import checksums, files
from tsae_lab.data import own_sets
from tsae_lab.data.language_model import LanguageModel, load_lm
from tsae_lab.data.store import Store
from tsae_lab.data.texts import Tokens
from tsae_lab.jobs import identity, plan, reporting
from tsae_lab.jobs.checkpoint import load_sae, load_tensors, remove_checkpoints, weights_of
from tsae_lab.jobs.identity import Identity
from tsae_lab.jobs.plan import Config, Unit
from tsae_lab.jobs.training import Trainer, final_dials, params_of, restore
from tsae_lab.measures import evaluation
from tsae_lab.sections import figures, stability, transitions
from tsae_lab.sections.context import Context, Section, context_of, differences, subject, summary
from tsae_lab.sections.effects import interventions_section
from tsae_lab.sections.frontiers import frontier_figure, tradeoff_figure
from tsae_lab.sections.probing import probing_section
from tsae_lab.terminal import (
    FRONTIER_MEASURES,
    console,
    frontier_tables,
    markdown_table,
    print_table,
    progress_bar,
    show_study,
    show_tradeoff,
)

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
    """The whole of run_3; returns what final_info.json holds.

    `train` makes run_2 beside it where that is missing. Raises ValueError where either directory
    holds a run with another configuration.
    """
    sections_of(config)
    models = out_dir.parent / MODELS
    with files.cache_at(config.cache_dir):
        config = plan.checked(config)
        plan.refuse_other(out_dir, config, "run_3")
        plan.refuse_other(models, config, MODELS)
        with files.sole(out_dir):
            return _study(out_dir, models, config, train)


def _study(
    out_dir: Path, models: Path, config: Config, train: Callable[[Path, Config], object]
) -> dict[str, Any]:
    if not (models / "final_info.json").exists():
        console.print(f"{models} is not finished: training it first")
        train(models, config)
    began = time.perf_counter()
    say_absent(config)
    lm = plan.lm_of(config)
    names = plan.names_of(config)
    tokens = {name: plan.split_tokens(config, lm, name, "validation") for name in names}
    splits = {name: {"validation": of_text} for name, of_text in tokens.items()}
    now = plan.identity_now(config, lm, splits)
    _check_models(models, lm, now)
    plan.check_identity(out_dir, now)
    plan.claim(out_dir, config, "run_3", now)
    info = {}
    for name in names:
        unit_now = identity.of_text(now, name)
        info[name] = _dataset(out_dir, models, config, lm, name, tokens[name], unit_now)
    checksums.write_numbers(out_dir / "final_info.json", info)
    files.write_csv(out_dir / "summary.csv", summary_rows(info))
    files.write_csv(out_dir / "intervals.csv", _interval_table(info))
    show_study(info)
    reporting.report_beside(out_dir, lm)
    console.print(f"{out_dir}: done in {(time.perf_counter() - began) / 60:.1f} minutes")
    return info


def say_absent(config: Config) -> None:
    """Which sets of minimal pairs are left out, and what is wanted of a folder of them."""
    if "interventions" not in sections_of(config):
        return
    there = own_sets.set_paths(Path(config.data_dir).expanduser()) if config.data_dir else {}
    absent = ", ".join(name for name in own_sets.SETS if not there.get(name))
    if absent:
        where = f"not in {config.data_dir}" if config.data_dir else "no --data_dir"
        said = f"left out: the minimal pairs of {absent} ({where}; {own_sets.LAYOUT})"
        console.print(said, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _check_models(models: Path, lm: LanguageModel, now: Identity) -> None:
    """ValueError where run_2's models were trained on another text, language model or SAE."""
    made = plan.made_of(models) or {}
    identity.refuse_content(models, made, now)
    if identity.is_other_lm(made, lm):
        raise ValueError(f"{models} was made of another language model; {identity.ADVICE}")
    threads = {"threads": now["threads"]} if made else {}  # each of several processes had a share
    identity.say_others(models, {**made, **threads}, now)


def _dataset(
    out_dir: Path,
    models: Path,
    config: Config,
    lm: LanguageModel,
    name: str,
    tokens: Tokens,
    now: Identity,
) -> dict[str, Any]:
    """One text's share of final_info.json: run_2's measures and all sections' over the seeds."""
    open_store = functools.cache(lambda: plan.open_store(config, lm, tokens))
    measured, intervals = [], []
    for seed in range(config.seeds):
        place = Path(plan.folder_name(name)) / f"seed_{seed}"
        weights = {kind: weights_of(models / place / kind) for kind in ("static", "tsae")}
        own = {**identity.of_seed(now, seed), "models": weights}
        folders = out_dir / place, models / place
        sections = study_unit(*folders, config, lm, name, seed, open_store, own)
        numbers = identity.read_measures(models / place / "measures.json", own)
        for section in sections:
            numbers |= section["numbers"]
        measured.append(differences(numbers) | numbers)
        intervals.append([row for section in sections for row in section["intervals"]])
    by_measure = {f"{row['model']}: {row['measure']}": [] for row in intervals[0]}
    for row in itertools.chain(*intervals):
        bounds = by_measure.get(f"{row['model']}: {row['measure']}")
        if bounds is not None:
            bounds.append([row["value"], row["low"], row["high"]])
    return summary(measured) | {"intervals": by_measure}


def study_unit(
    folder: Path,
    models: Path,
    config: Config,
    lm: LanguageModel,
    name: str,
    seed: int,
    open_store: Callable[[], Store],
    now: Identity | None = None,
) -> list[dict[str, Any]]:
    """Numbers and intervals of all sections for one text and seed; sections that exist are read."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = sections_of(config)
    there = {section: read_section(folder / f"{section}.json", now) for section in wanted}
    missing = [section for section in wanted if there[section] is None]
    if missing:
        label = f"{name}, seed {seed}"
        context = _context(models, config, lm, name, seed, open_store(), label, now or {})
        for i, section in enumerate(missing, 1):
            began = time.perf_counter()
            write_section(folder, section, SECTIONS[section](context), now)
            took = f"{time.perf_counter() - began:.0f} s ({i}/{len(missing)})"
            console.print(f"{label}: {section} took {took}", highlight=False)
    return [read_section(folder / f"{section}.json") or {} for section in wanted]


def read_section(path: Path, now: Identity | None = None) -> dict[str, Any] | None:
    """Numbers and intervals of a section; None where its file is missing or damaged: made again.

    ValueError where it was made of something else than `now`.
    """
    saved = checksums.read_result(path)
    if saved is not None:
        identity.refuse_unequal(path, identity.form_of(saved.get("identity")), now or {})
    return saved


def _context(
    models: Path, config: Config, lm: LanguageModel, name: str, seed: int, store: Store,
    label: str, now: Identity,
) -> Context:  # fmt: skip
    low = plan.products(config, lm.device)
    n_batches = 2 * math.ceil(len(store) / evaluation.EVAL_ROWS)
    subjects = []
    with progress_bar(f"{label}: codes", n_batches, 0) as advance:
        for folder, prefix in ((models / "tsae", ""), (models / "static", "static_")):
            sae, cfg = load_sae(folder, low, lm.device)
            identity.refuse_content(folder, identity.of_cfg(cfg), now)
            if sae.temporal != (prefix == ""):
                raise ValueError(f"{folder} holds another kind of SAE than its name says")
            subjects.append(subject(sae, store, prefix=prefix, progress=lambda: advance("")))
    context = context_of(name, seed, lm, store, subjects, long=seed == 0)
    return replace(context, share=config.share, data_dir=config.data_dir)


def write_section(folder: Path, name: str, section: Section, now: Identity | None = None) -> None:
    """Write tables and figures, then NAME.json, which says that the section is whole: it has size
    and crc32 of every table.
    """
    sums = {}
    for table, rows in section.tables.items():
        path = folder / f"{f'{name}_{table}' if table == 'intervals' else table}.csv"
        files.write_csv(path, rows)
        sums[path.name] = files.size_and_crc(path)
    for figure, drawn in section.figures.items():
        figures.save_figure(drawn, folder / figure)
    content = {"numbers": section.numbers, "intervals": section.tables.get("intervals", [])}
    content |= {checksums.TABLES: sums} | ({"identity": now} if now else {})
    checksums.write_sealed(folder / f"{name}.json", content)


# --------------------------------------------------------------------------------- over the seeds


def summary_rows(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per text and measure: mean and standard error of static SAE, TSAE and difference, and
    the difference's t-interval over seeds, empty of a single one.
    """
    rows = []
    for name, text in info.items():
        for key in text["final_info_dict"]:
            if f"static_{key}" not in text["final_info_dict"]:
                continue
            row: dict[str, Any] = {"dataset": name, "measure": key}
            for model in ("static", "tsae", "difference"):
                measure = key if model == "tsae" else f"{model}_{key}"
                row[f"{model}_mean"] = text["means"].get(f"{measure}_mean", "")
                row[f"{model}_stderr"] = text["stderrs"].get(f"{measure}_stderr", "")
            span = text["seed_intervals"].get(f"difference_{key}") or ("", "")
            row |= dict(zip(("difference_low", "difference_high"), span, strict=True))
            rows.append(row)
    return rows


def _interval_table(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per text, seed, model and measure."""
    names = ("dataset", "seed", "model", "measure", "value", "low", "high")
    return [
        dict(zip(names, (name, seed, *key.split(": ", 1), *bounds), strict=True))
        for name, text in info.items()
        for key, by_seed in text["intervals"].items()
        for seed, bounds in enumerate(by_seed)
    ]


# ---------------------------------------------------------------------------------- the trade-off


def tradeoff(
    out_dir: Path,
    dataset: str,
    betas: Sequence[float],
    seed: int,
    *,
    train: Callable[[Unit, Trainer, str], tuple[Trainer, float]],
) -> dict[str, Any]:
    """Faithfulness and overlap of TSAEs at several bridge strengths, and of their static baseline.

    All start from the pretrained SAE of the run in `out_dir`; `train` trains one. A strength that
    is done is read; the run's own is taken from the run. Raises ValueError without such a run.
    """
    config, run, base = _finished(out_dir, dataset, seed)
    for beta in betas:
        tsae.check_dials(final_dials(replace(config, beta=beta)), d_sae=config.d_sae)
    with files.cache_at(config.cache_dir), files.sole(out_dir):
        measures, unit, _ = _opened(out_dir, base, config, dataset, seed)
        saved, _ = load_tensors(base / "pretrained.safetensors", unit.device)
        pretrained = restore(saved, config)
        points = []
        for beta in betas:
            own = _beside(unit, f"beta_{beta!r}", replace(config, beta=beta))
            done = own.folder / "tradeoff.json"
            if beta == config.beta and run == "run_2" and not done.exists():
                checksums.write_sealed(done, {"beta": beta} | measures)
            points.append(_point_of(done, own, lambda u: params_of(train(u, pretrained, run)[0])))
        static = _of_static(measures)
        curve = {"dataset": dataset, "seed": seed, "static": static, "tsae": points}
        return _write_curve(out_dir, curve)


def _finished(out_dir: Path, dataset: str, seed: int) -> tuple[Config, str, Path]:
    """A run's configuration, its plan, and the folder of a text and seed that it has finished."""
    config, run = plan.run_config(out_dir)
    base = out_dir / plan.folder_name(dataset) / f"seed_{seed}"
    if not (base / "measures.json").exists():
        names = ", ".join(plan.names_of(config))
        there = f"{out_dir} has the texts {names} with seeds 0 to {config.seeds - 1}"
        raise ValueError(f"{base} has no finished model; {there}")
    return config, run, base


def _opened(
    out_dir: Path, base: Path, config: Config, dataset: str, seed: int
) -> tuple[dict[str, Any], Unit, LanguageModel]:
    """The run's measures of a text and seed, its unit, and the language model."""
    lm = load_lm(config.lm, device=config.lm_device or config.device or None)
    tokens = plan.both_splits(config, lm, dataset)
    now = plan.identity_now(config, lm, {dataset: tokens})
    plan.check_identity(out_dir, now)
    measures = identity.read_measures(base / "measures.json", identity.of_seed(now, seed))
    unit = Unit(
        config=config,
        data=plan.data_of(config, lm, dataset, tokens),
        seed=seed,
        folder=base,
        log=base / "log.jsonl",
        device=plan.device_of(config),
        low=plan.products(config, plan.device_of(config)),
        identity=now,
    )
    return measures, unit, lm


def _beside(unit: Unit, name: str, config: Config) -> Unit:
    """The same text and seed under another configuration, in a folder of its own."""
    folder = unit.folder / name
    folder.mkdir(exist_ok=True)
    return replace(unit, config=config, folder=folder, log=folder / "log.jsonl")


def _of_static(measures: Mapping[str, Any]) -> dict[str, Any]:
    return {k.removeprefix("static_"): v for k, v in measures.items() if k.startswith("static_")}


def _point_of(done: Path, unit: Unit, train: Callable[[Unit], tsae.Params]) -> dict[str, float]:
    """Measures of the code at the unit's bridge strength; trained unless `done` has them."""
    if not done.exists():
        sae = tsae.Sae(params=train(unit), dials=final_dials(unit.config, unit.low))
        measured = evaluation.measure(sae, unit.data.val)
        codes = evaluation.code_measures(measured, sae.params.static.W_dec)
        checksums.write_sealed(done, {"beta": unit.config.beta} | codes)
    remove_checkpoints(unit.folder)
    point = checksums.read_sealed(done)
    if point.get("beta") != unit.config.beta or not {"fve", "jaccard", "l0", "tss"} <= point.keys():
        raise ValueError(f"{done} is not that of beta {unit.config.beta:g}; {identity.REMADE}")
    return point


def _write_curve(out_dir: Path, curve: dict[str, Any]) -> dict[str, Any]:
    name = curve["dataset"]
    stem = out_dir / f"tradeoff_{plan.folder_name(name)}"
    files.write_json(stem.with_name(f"{stem.name}.json"), curve)
    title = f"{name}: faithfulness against stability"
    figures.save_figure(tradeoff_figure(curve["tsae"], curve["static"], title), stem)
    show_tradeoff(curve)
    return curve


def frontier(
    out_dir: Path,
    dataset: str,
    ks: Sequence[int],
    seed: int,
    *,
    train: Callable[[Unit, LanguageModel, str], Mapping[str, Any]],
) -> dict[str, Any]:
    """Faithfulness and events of static SAEs and TSAEs at several numbers of features `k`.

    Both are trained by the recipe of the run in `out_dir`, from scratch; `train` trains and
    measures the pair. A `k` that is done is read; the run's own is taken from the run. Raises
    ValueError without such a run, and for a `k` that it cannot have.
    """
    config, run, base = _finished(out_dir, dataset, seed)
    if run == "run_0" or config.static_sae:
        reason = "has no TSAE" if run == "run_0" else f"has the k of {config.static_sae}"
        raise ValueError(f"{out_dir} {reason}: the numbers of features cannot be compared")
    for k in ks:
        plan.check_config(replace(config, k=k))
    if config.k in ks and "births" not in checksums.read_object(base / "measures.json"):
        raise ValueError(f"{base / 'measures.json'} has no births; {identity.REMADE}")
    points = []
    with files.cache_at(config.cache_dir), files.sole(out_dir):
        measures, unit, lm = _opened(out_dir, base, config, dataset, seed)
        of_text = identity.of_text(unit.identity, dataset)
        for n, k in enumerate(ks, 1):
            console.print(f"{dataset}, seed {seed}: k {k} ({n}/{len(ks)})", highlight=False)
            own = _beside(unit, f"k_{k}", replace(config, k=k))
            named = identity.of_seed(of_text, seed, plan.options_of(own.config))
            own = replace(own, identity=named)
            points.append({"k": k, **(measures if k == config.k else train(own, lm, run))})
        static = [{"k": point["k"]} | _of_static(point) for point in points]
        equal = evaluation.at_equal_births(static, points)
        curve = {"dataset": dataset, "seed": seed, "static": static, "tsae": points}
        return _write_frontier(out_dir, curve | {"equal_births": equal})


def _write_frontier(out_dir: Path, curve: dict[str, Any]) -> dict[str, Any]:
    """JSON, CSV (a row per model and k), Markdown, and a figure per measure of events."""
    stem = f"tradeoff_{plan.folder_name(curve['dataset'])}_k"
    models = {"static SAE": curve["static"], "TSAE": curve["tsae"]}
    rows = [
        {"model": name, "k": point["k"]} | {key: point[key] for key in FRONTIER_MEASURES}
        for name, points in models.items()
        for point in points
    ]
    tables = frontier_tables(curve)
    for title, (columns, lines) in tables.items():
        print_table(title, columns, lines)
    for axis in ("births", "distinct"):
        if all(row[axis] is not None for row in rows):
            title = f"{curve['dataset']}: faithfulness against what a reader has to read"
            drawn = frontier_figure(curve["static"], curve["tsae"], axis, title)
            figures.save_figure(drawn, out_dir / f"{stem}_{axis}")
    text = "\n".join(f"{title}\n\n{markdown_table(*table)}" for title, table in tables.items())
    files.write_atomic(out_dir / f"{stem}.md", lambda path: path.write_text(text))
    files.write_csv(out_dir / f"{stem}.csv", rows)
    files.write_json(out_dir / f"{stem}.json", curve)
    return curve
