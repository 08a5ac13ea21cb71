"""What run_4 compares: static SAEs, rivals, the TSAE with its controls and its ablations.

An entry says how a system is made; `--systems` names entries or the sets at the end of this file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from tsae_lab.jobs.plan import Config
from tsae_lab.rivals.batch_topk import batch_topk_system
from tsae_lab.rivals.bypass import bypass_system, lstm_width, memoryless_system
from tsae_lab.rivals.crosscoder import crosscoder_system
from tsae_lab.rivals.persistent import persistent_system
from tsae_lab.rivals.relu import relu_system
from tsae_lab.rivals.system import System
from tsae_lab.rivals.t_sae import FRACTIONS, t_sae_system
from tsae_lab.rivals.tfa import tfa_system

Kind = Literal["static", "ours", "rival", "derived"]
WINDOW = 4  # tokens of a crosscoder's window
NESTED = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # five nested dictionaries, each twice the last


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a rival needs to know beside the recipe."""

    low: torch.dtype
    d_in: int
    distinct: Callable[[int], int]  # features that the static SAE uses in so many tokens


Make = Callable[..., System]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One system of the comparison."""

    about: str
    kind: Kind = "ours"
    recipe: Mapping[str, Any] = field(default_factory=dict)  # changes to the run's recipe
    rate: float = 1.0  # its learning rate, in units of the run's
    make: Make | None = None  # of a rival: of the config, the surroundings and `own`
    own: Mapping[str, float] = field(default_factory=dict)  # its coefficients
    search: tuple[str, tuple[float, ...]] = ("", ())  # the coefficient that is tuned, its values
    buys: Literal["fve", "jaccard", "l0"] = "fve"  # what that coefficient is there for
    of: str = ""  # the trained system that a derived one is made of
    shuffled: bool = False  # trained on sequences whose tokens are permuted
    random: bool = False  # from a random static SAE in place of the pretrained one
    forgets: bool = False  # whether its state begins anew at every token, in training and measured
    finetune: bool = False  # whether the last tenth of the steps has the KL in its loss

    def applied(self, config: Config) -> Config:
        """The run's configuration as this system has it."""
        return replace(config, **{"lr": self.rate * config.lr, **self.recipe})


def _core(config: Config, around: Surroundings) -> dict[str, Any]:
    return {"k": config.k, "d_sae": config.d_sae, "low": around.low}


def _nested(*fractions: float) -> Make:
    return lambda config, around: batch_topk_system(**_core(config, around), fractions=fractions)


def _relu(config: Config, around: Surroundings, **own: float) -> System:
    return relu_system(d_sae=config.d_sae, low=around.low, **own)


def _contrast(similarity: str = "cosine", lag: int = 1) -> Make:
    fixed: dict[str, Any] = {"similarity": similarity, "lag": lag}
    return lambda config, around, alpha: t_sae_system(**_core(config, around), alpha=alpha, **fixed)


def _as_is(make: Make) -> Make:
    return lambda config, around, **own: make(**_core(config, around), **own)


def _crosscoder(config: Config, around: Surroundings) -> System:
    k, d_sae = min(around.distinct(WINDOW), config.d_sae), config.d_sae
    return crosscoder_system(k=k, d_sae=d_sae, low=around.low, window=WINDOW)


def _as_large(make: Make) -> Make:
    """With a dense path that has as many parameters as the decoder LSTM."""
    return lambda config, around: make(
        **_core(config, around), width=lstm_width(around.d_in, config.hidden_dec)
    )


def _t_sae(about: str, alpha: float = 0.1, **fixed: Any) -> Entry:
    own, make = {"alpha": alpha}, _contrast(**fixed)
    search = "alpha", (0.03, 0.1, 0.3)
    return Entry(about=about, kind="rival", make=make, own=own, search=search, buys="jaccard")


RIVALS = {
    "batch_topk": Entry(
        about="batch top-k, at its inference threshold", kind="rival", make=_nested(1.0)
    ),
    "batch_topk_batch": Entry(
        about="batch top-k, selected over a batch as in training", kind="derived", of="batch_topk"
    ),
    "relu": Entry(
        about="ReLU + L1 with resampling", kind="rival", make=_relu, rate=2.0,
        own={"l1": 0.2, "warmup_share": 0.1}, search=("l1", (0.1, 0.2, 0.4)), buys="l0",
    ),
    "matryoshka": Entry(
        about="Matryoshka batch top-k, fractions .2 and .8", kind="rival", make=_nested(*FRACTIONS)
    ),
    "matryoshka_5": Entry(
        about="Matryoshka batch top-k, five nested", kind="rival", make=_nested(*NESTED)
    ),
    "t_sae": _t_sae("T-SAE, cosine, lag 1, alpha .1"),
    "t_sae_inner": _t_sae("T-SAE, inner product", similarity="inner"),
    "t_sae_lag_2": _t_sae("T-SAE, lag 2", lag=2),
    "t_sae_lag_4": _t_sae("T-SAE, lag 4", lag=4),
    "t_sae_alpha_1": _t_sae("T-SAE, alpha 1", alpha=1.0),
    "tfa": Entry(about="TFA", kind="rival", make=_as_is(tfa_system)),
    "tfa_shuffled": Entry(
        about="TFA, trained on shuffled sequences", kind="rival", make=_as_is(tfa_system),
        shuffled=True,
    ),
    "persistent": Entry(
        about="Persistent SAE", kind="rival", make=_as_is(persistent_system),
        own={"retention": 0.3}, search=("retention", (0.1, 0.3, 0.6)), buys="jaccard",
    ),
    "crosscoder": Entry(
        about="temporal crosscoder, T = 4", kind="rival", make=_crosscoder, rate=0.5
    ),
}  # fmt: skip

CONTROLS = {
    "posthoc_ema": Entry(
        about="exponential mean of the static codes, no training", kind="derived", of="static"
    ),
    "posthoc_window": Entry(
        about="window mean of the static codes, no training", kind="derived", of="static"
    ),
    "shuffled": Entry(about="TSAE trained on shuffled sequences", shuffled=True),
    "twin": Entry(
        about="untrained twin: temporal parts at their start", kind="derived", of="static"
    ),
    "bypass": Entry(
        about="static + dense bypass of x_t, as large as the decoder LSTM", kind="rival",
        make=_as_large(bypass_system),
    ),
    "memoryless": Entry(
        about="static + hidden layer that reads what the decoder LSTM reads, as large",
        kind="rival", make=_as_large(memoryless_system),
    ),
    "decoder": Entry(
        about="static + our decoder LSTM alone", recipe={"gate": False, "beta": 0.0}
    ),
    "forgetful": Entry(
        about="static + our decoder LSTM alone, whose state begins anew at every token",
        recipe={"gate": False, "beta": 0.0}, forgets=True,
    ),
    "order": Entry(
        about="TSAE, its memory's tokens shuffled at inference", kind="derived", of="tsae"
    ),
}  # fmt: skip

ABLATIONS = {
    **{
        f"window_{w}": Entry(about=f"TSAE, memory of {w} tokens", recipe={"window": w})
        for w in (1, 4, 8, 32, 64)
    },
    "no_bridge": Entry(about="TSAE without the memory's bias", recipe={"beta": 0.0}),
    "uniform_bridge": Entry(about="TSAE, one strength for all", recipe={"learn_bridge": False}),
    "no_gate": Entry(
        about="TSAE without gates, which are all that the encoder LSTM drives",
        recipe={"gate": False},
    ),
    "no_decoder": Entry(about="TSAE without the decoder LSTM", recipe={"recur": False}),
    "coupling_0": Entry(
        about="TSAE whose code explains all of x by itself", recipe={"coupling": 0.0}
    ),
    "coupling_1": Entry(
        about="TSAE whose code leaves to the LSTMs all that they add", recipe={"coupling": 1.0}
    ),
    "no_annealing": Entry(about="TSAE, k constant", recipe={"k_multiple": 1.0}),
    "no_distillation": Entry(about="TSAE without phase (a)", recipe={"settle": 0.0}),
    "random_start": Entry(
        about="TSAE from a random static SAE, all parts learning from the first step",
        recipe={"pretrain": 0.0, "settle": 0.0, "introduce": 0.0}, random=True,
    ),
}  # fmt: skip

FINETUNED = {
    "static_kl": Entry(about="static top-k SAE, fine-tuned on KL", kind="static", finetune=True),
    "tsae_kl": Entry(about="TSAE, fine-tuned on KL", finetune=True),
}

ENTRIES: Mapping[str, Entry] = {
    "static": Entry(about="static top-k SAE", kind="static"),
    "tsae": Entry(about="TSAE"),
    **RIVALS,
    **CONTROLS,
    **ABLATIONS,
    **FINETUNED,
}
CORE = ("static", "tsae", "shuffled", "batch_topk", "t_sae", "posthoc_ema")
PLAIN = (
    *CORE, "batch_topk_batch", "relu", "matryoshka", "tfa", "persistent", "crosscoder",
    "posthoc_window", "twin", "bypass", "memoryless", "decoder", "forgetful", "order",
)  # fmt: skip
"""What a plain run_4 compares; what is not of the core, with the first seed of the first text."""
SYSTEM_SETS: Mapping[str, tuple[str, ...]] = {
    "plain": PLAIN,
    "core": CORE,
    "all": tuple(ENTRIES),
    "controls": ("static", "tsae", *CONTROLS),
    "ablations": ("static", "tsae", *ABLATIONS),
    "finetuned": ("static", "tsae", *FINETUNED),
    "window": ("tsae", *(name for name in ABLATIONS if name.startswith("window_"))),
    "frontier": tuple(
        f"{name}@{k}" for k in (8, 16, 32, 64, 128) for name in ("static", "batch_topk", "tsae")
    ),
}


def chosen_systems(config: Config) -> list[str]:
    """The systems that `--systems` and `--finetune` ask for, each once; ValueError for one that
    does not exist.
    """
    words = [word.strip() for word in config.systems.split(",") if word.strip()]
    words += ["finetuned"] if words and config.finetune else []
    names = [name for word in words for name in SYSTEM_SETS.get(word, (word,))]
    if not names:
        raise ValueError(f"systems needs at least one name; got {config.systems!r}")
    for name in names:
        base, _, k = name.partition("@")
        if base not in ENTRIES or ("@" in name and not k.isdigit()):
            sets, known = ", ".join(SYSTEM_SETS), ", ".join(ENTRIES)
            raise ValueError(
                f"systems are of {sets}, or {known}, NAME@K for another k; got {name!r}"
            )
    return list(dict.fromkeys(names))


def once_alone(config: Config) -> frozenset[str]:
    """The systems that are made with the first seed of the first text alone: those of "plain" that
    are not of the core, where `--systems` does not ask for them in another way, too.
    """
    words = {word.strip() for word in config.systems.split(",")}
    if "plain" not in words:
        return frozenset()
    others = ",".join(sorted(words - {"plain"})) or "core"
    elsewhere = chosen_systems(replace(config, systems=others))
    return frozenset(PLAIN) - frozenset(CORE) - frozenset(elsewhere)


def entry_of(name: str) -> Entry:
    """The entry of a system's name; NAME@8 is NAME with k = 8."""
    base, _, k = name.partition("@")
    entry = ENTRIES[base]
    if not k:
        return entry
    about = f"{entry.about}, k = {k}"
    of = f"{entry.of}@{k}" if entry.of else ""
    return replace(entry, about=about, of=of, recipe={**entry.recipe, "k": int(k)})


def own_options(entry: Entry) -> dict[str, Any]:
    """What of an entry a trained system depends on, beside the recipe."""
    names = ["kind", "own", "of", "shuffled", "random", "finetune"]
    names += ["forgets"] if entry.forgets else []  # later than what was trained without
    return {name: getattr(entry, name) for name in names}
