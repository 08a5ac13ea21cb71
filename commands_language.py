"""The command `probe`: how well a saved model's codes, its static SAE's and the residual stream solve a task."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

import activations
import checkpoint
import hub
import language
import loaders
import readout
import report
import tasks
import tsae
from language import Task
from readout import Reader
from runs import load_tsae
from terminal import console, cpu_threads, one_line_errors, progress_bar


def probe_command(
    task: Annotated[
        str,
        typer.Argument(
            help="agreement, coreference, disambiguation, unresolvable; a data file; or a dataset's name on the hub: "
            "uclanlp/wino_bias:type1_pro, aps/super_glue:wic"
        ),
    ],
    model_dir: Annotated[
        Path, typer.Argument(help="run_2/TEXT/seed_0, its folder tsae or static, or a SAELens folder")
    ],
    k: Annotated[
        list[int] | None, typer.Option("--k", help="features a probe is given; repeatable [1 2 5 10 20]")
    ] = None,
    variants: Annotated[bool, typer.Option(help="also the memory and the LSTM states as codes")] = False,
    seed: Annotated[int, typer.Option(help="of generator, splits and intervals")] = 0,
    lm: Annotated[str, typer.Option(help="language model, if not the one the SAE was trained on")] = "",
    json_path: Annotated[Path | None, typer.Option("--json", help="write all rows here, as JSON")] = None,
    csv_path: Annotated[Path | None, typer.Option("--csv", help="write all rows here, as CSV")] = None,
    png_path: Annotated[Path | None, typer.Option("--png", help="draw accuracy by number of features here")] = None,
) -> None:
    """Train probes for one task on a saved model's codes, its static SAE's and the residual stream."""
    with one_line_errors():
        torch.set_num_threads(cpu_threads())
        ks = tuple(k or language.probes.KS)
        if min(ks) < 1:
            raise ValueError(f"--k needs to be at least 1; got {min(ks)}")
        checkpoint.check_outputs((json_path, csv_path), (png_path,))
        wanted, name, hook = _model(model_dir, variants)
        given = _task(task, seed)
        with console.status(f"loading {lm or name}"):
            model = activations.load_lm(lm or name)
        with console.status(f"reading {len(given.items):,} items"):
            features = readout.features(readout.read(model, hook, given.items), wanted)
        with progress_bar(f"{given.name}: probes", 1 + len(wanted) * (len(ks) + 1), 0) as advance:
            rows = language.task_rows(given, features, ks=ks, seed=seed, progress=lambda: advance(""))
        show_rows(rows, f"{given.name}, {hook}: accuracy on held-out groups (95 % interval)")
        _write(rows, json_path, csv_path, png_path)


def _model(folder: Path, variants: bool) -> tuple[dict[str, Reader], str, str]:
    """Readers of what lies in the folder, the language model's name and the hook; ValueError where no model lies."""
    parts = {name: folder / name if (folder / name).is_dir() else folder for name in ("tsae", "static")}
    if not (parts["static"] / "cfg.json").exists():
        raise ValueError(
            f"{folder} holds no model: needed is a cfg.json, or the folders tsae and static of a run's seed"
        )
    low = activations.fast_dtype(torch.device("cpu"))
    weights, cfg = checkpoint.load_saelens(parts["static"])
    where = cfg.get("metadata") or {}
    if not {"model_name", "hook_name"} <= where.keys():
        raise ValueError(f"{parts['static']} does not say its model_name and hook_name in cfg.json's metadata")
    params, dials = None, None
    if (parts["tsae"] / "temporal.safetensors").exists():
        params, dials = load_tsae(parts["tsae"], low)
    static = tsae.Static(**weights)
    wanted = language.readers(params, dials, static, int(cfg["k"]), low=low, variants=variants)
    return wanted, where["model_name"], where["hook_name"]


def _task(name: str, seed: int) -> Task:
    if name in (*tasks.GENERATORS, "unresolvable"):
        return language.generated(name, seed=seed)
    path = Path(name).expanduser()
    if not path.exists() and not hub.is_name(name):
        known = ", ".join((*tasks.GENERATORS, "unresolvable"))
        raise ValueError(f"{name} is neither a file, nor a dataset's name (owner/dataset), nor one of {known}")
    found = loaders.load_items(path)
    for reason, n in found.skipped.items():
        console.print(f"{path.name}: {n} lines left out: {reason}", highlight=False)
    return Task(name=path.name, items=found.items)


def show_rows(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """A table: a line for each part of the items and number of features, a column for each code; then the control."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    table = Table("items", "features", *models, "control", title=title)
    cells = {(row["items"], row["k"], row["model"]): row for row in rows}
    for line, k in dict.fromkeys((row["items"], row["k"]) for row in rows):
        found = [cells.get((line, k, model)) for model in models]
        said = ["" if r is None else f"{r['accuracy']:.3f} ({r['low']:.2f}-{r['high']:.2f})" for r in found]
        controls = [f"{r['control']:.2f}" for r in found if r is not None and "control" in r]
        table.add_row(line, str(k), *said, " ".join(controls))
    typer.echo(_plain(table))


def _plain(table: Table) -> str:
    from rich.console import Console

    wide = Console(width=max(console.width, 40 + 24 * len(table.columns)))
    with wide.capture() as captured:
        wide.print(table)
    return captured.get().rstrip("\n")


def _write(rows: list[dict[str, Any]], json_path: Path | None, csv_path: Path | None, png_path: Path | None) -> None:
    if json_path is not None:
        checkpoint.write_json(json_path, {"rows": rows, "numbers": language.row_numbers(rows)})
    if csv_path is not None:
        names = list(dict.fromkeys(name for row in rows for name in row))
        with csv_path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    if png_path is not None:
        report.save_figure(language.accuracy_figure(rows), png_path.with_suffix(""))
