"""The planned runs: their configuration and its options, and what is checked before any work."""

import dataclasses
import functools
import math
import os
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import tsae
from tsae_lab import checksums, devices, files
from tsae_lab.data import language_model, reading, store, stream, texts, token_files
from tsae_lab.data.language_model import EMBEDDED, LanguageModel, check_hook, fast_dtype, load_lm
from tsae_lab.data.store import Store
from tsae_lab.data.stream import Stream
from tsae_lab.data.texts import Tokens
from tsae_lab.jobs import checkpoint, identity, ranks, schedules, training
from tsae_lab.jobs.config import SCALES, Config
from tsae_lab.jobs.identity import Identity
from tsae_lab.terminal import console, require_memory

PLANS = ("run_0", "run_1", "run_2", "run_3", "run_4")
# options that change no result: a run may go on with others
FREE = ("threads", "device", "cache_dir", "data_dir", "checkpoint_every", "sections", "systems",
        "tune", "finetune", "activations", "lm_device", "verify", "on_bad", "spread",
        "processes")  # fmt: skip
RETIRED = {"lr_lstm": 1.0, "lr_lstm_refine": 1.0, "lr_bridge": 1.0}
"""Options of earlier versions, which their config.json names, and the value that this one has."""
ADDED = {
    "column": "text",
    "finetune": "",
    "activations": "store",
    "lm_device": "",
    "verify": False,
    "on_bad": "stop",
    "spread": "sequences",
    "processes": 0,
}
"""Options that a config.json of before lacks, and what they were."""
LOOKED_AT = (
    "distil",
)  # of earlier versions: their models are opened, their training does not go on
# names of a run's own files
RESERVED = (
    *("config.json", "log.jsonl", "final_info.json", "summary.csv", "intervals.csv", "report.html"),
    *("table.md", "table.csv", "differences.csv", "tuning.csv", "tuning.jsonl"),
)
MOST = 10**12  # of a number that is not limited otherwise
KNOWN_VALUES = {
    "sinks": ("drop", "keep"), "precision": ("auto", "float32", "bfloat16"),
    "activations": stream.ACTIVATIONS, "on_bad": reading.ON_BAD, "spread": ranks.SPREADS,
}  # fmt: skip
AT_LEAST_1 = (
    *("seeds", "seq", "batch", "steps", "train_tokens", "val_tokens", "splice_tokens"),
    *("checkpoint_every", "hidden_enc", "hidden_dec", "warmup", "k_aux"),
)


# -------------------------------------------------------------------------------------- options


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
    for name in ("coupling", "dead_after", "aux", "threads", "processes"):
        if not 0 <= getattr(config, name) < MOST:
            raise ValueError(f"{name} needs to be in [0, {MOST:g}); got {getattr(config, name)}")
    for name in ("lr", "clip", "decay"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} needs to be > 0; got {getattr(config, name)}")
    if config.beta >= MOST:
        raise ValueError(f"beta needs to be below {MOST:g}; got {config.beta}")
    if config.seq < 2:
        raise ValueError(f"seq needs at least 2 tokens, which are neighbours; got {config.seq}")
    for device in (config.device, config.lm_device):
        devices.check_device(device)
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
    if config.finetune not in ("", "kl"):
        raise ValueError(f"finetune is kl, or not given; got {config.finetune!r}")
    for name, choices in KNOWN_VALUES.items():
        if getattr(config, name) not in choices:
            known = f"{', '.join(choices[:-1])} or {choices[-1]}"
            raise ValueError(f"{name} is {known}; got {getattr(config, name)!r}")


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
        if reading.is_large(name):
            reading.check_first(name, config.column, config.on_bad)
        else:
            load_text(config, name)
    return config


def refuse_other(out_dir: Path, config: Config, plan: str) -> None:
    """Raise ValueError where another run, or files that are not a run's, lie in the directory."""
    if plan != "run_4" and (config.finetune or config.tune):
        option = "finetune" if config.finetune else "tune"
        raise ValueError(f"--{option} is an option of run_4; got --out_dir={out_dir}")
    if plan == "run_4" and config.activations == "stream":
        need = "run_4 trains every system on the same stored activations"
        raise ValueError(f"{need}: --activations=store or auto; got stream")
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


def phases_of(config: Config) -> schedules.Phases:
    """Steps of each phase."""
    return schedules.phase_steps(
        config.steps,
        pretrain=config.pretrain,
        settle=config.settle,
        introduce=config.introduce,
        group=config.pieces,
    )


def device_of(config: Config) -> torch.device:
    """Where the SAEs train: CUDA where it is present and no other is asked for."""
    return ranks.device_here(config.device)


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
        if config.lm == EMBEDDED:  # which rank 0 fetches: on others transformers writes nothing
            ranks.led(lambda: str(language_model.smollm2_folder()))
        lm = load_lm(config.lm, device=ranks.device_here(config.lm_device or config.device))
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
    train: Store | Stream
    val: Store
    packed: texts.Packed | None = None  # how training reads `train`; None: sequence by sequence

    @property
    def stored(self) -> Store:
        """`train`, where it is stored; ValueError for a stream."""
        if isinstance(self.train, Store):
            return self.train
        raise ValueError(f"{self.name} is streamed: this needs --activations=store")

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


def all_data(
    config: Config, lm: LanguageModel, tokens: Mapping[str, Mapping[str, Tokens]]
) -> list[Data]:
    """Activations of both splits of every text; all ranks extract what is not stored."""
    splits = [split for by_name in tokens.values() for split in by_name.values()]
    by_digest = {store.tokens_digest(split): split for split in splits}
    return ranks.in_turn(
        lambda: [data_of(config, lm, name, own) for name, own in tokens.items()],
        lambda digest, number: store.block(lm, by_digest[digest], config.hook, number),
    )


def data_of(config: Config, lm: LanguageModel, name: str, tokens: Mapping[str, Tokens]) -> Data:
    """Activations of both splits of a text."""
    val = open_store(config, lm, tokens["validation"])
    own = {"kind": config.activations, "name": name, "beside": val} | _of_store(config)
    train = stream.activations_of(lm, tokens["training"], **own)
    packed = texts.packing(tokens["training"], config.seq)
    if packed is not None:  # attention sinks are gone from the store
        packed = texts.pack_rows(train.tokens.valid.sum(1), config.seq)
    return Data(name=name, train=train, val=val, packed=packed)


def both_splits(config: Config, lm: LanguageModel, name: str) -> dict[str, Tokens]:
    """Tokens of both splits of a text; ValueError where the training split fills no batch."""
    read = functools.cache(lambda: load_text(config, name))
    splits = ("validation", "training")
    tokens = {split: split_tokens(config, lm, name, split, read) for split in splits}
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
    return store.activation_store(lm, tokens, **_of_store(config))


def _of_store(config: Config) -> dict[str, Any]:
    cache = Path(config.cache_dir) / "activations" if config.cache_dir else None
    own = {"hook": config.hook, "sinks": config.sinks, "verify": config.verify}
    return own | {"cache_dir": cache, "deal": ranks.dealt}


def load_text(config: Config, name: str) -> texts.Corpus:
    """A text of the run, in its splits; ValueError for one that is too large to be held."""
    if reading.is_large(name):
        raise ValueError(f"{name} is read as a stream: give a text of less than 256 MB here")
    if config.on_bad == "stop" or name in texts.CORPORA:
        return texts.load_corpus(name, data_dir=config.data_dir or None, column=config.column)
    left = reading.Left()
    documents = list(reading.each_document(name, config.column, config.on_bad, left))
    if left.line:
        line = f"{name}: {left.line}"
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return texts.corpus_of(name, documents)


def split_tokens(
    config: Config, lm: LanguageModel, name: str, split: str,
    read: Callable[[], texts.Corpus] | None = None,
) -> Tokens:  # fmt: skip
    """Tokens of the "training" or "validation" split of a text, which `read` gives if needed."""
    wanted = {"training": config.train_tokens, "validation": config.val_tokens}
    options = {n: getattr(config, n) for n in ("column", "data_dir", "on_bad")}
    cache, n_tokens = Path(config.cache_dir) if config.cache_dir else None, wanted[split]
    own = {"seq": config.seq, "n_tokens": wanted, "options": options, "cache_dir": cache}
    read = read or (lambda: load_text(config, name))
    tokens = token_files.text_tokens(lm, name, split, read=read, **own)
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
    low = products(config, device_of(config))
    made = identity.identity_of(lm, tokens, static_sae=config.static_sae, low=low)
    for name, splits in tokens.items():
        if "training" in splits and texts.packing(splits["training"], config.seq) is not None:
            made["texts"][name]["training"] += ", packed"
    return made


def epochs(config: Config, n_sequences: int) -> float:
    """How often the steps of one model's training read each of these sequences."""
    return config.steps * config.batch / config.pieces / n_sequences
