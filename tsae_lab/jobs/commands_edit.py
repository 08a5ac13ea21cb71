"""Commands on one saved SAE that change a code and watch the language model: `intervene`, `steer`,
`minimal-pairs`.

A model is a folder that a run has saved, or any top-k SAE in the SAELens format; its cfg.json names
the language model and the hook. What can be wrong with the request is said before the long work.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import tsae
from tsae_lab import files
from tsae_lab.data import language_model, public_sets, tasks
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.jobs import checkpoint
from tsae_lab.measures import effects, evaluation, interventions, minimal_pairs
from tsae_lab.measures.effects import SPAN, Case, Change
from tsae_lab.measures.interventions import Edit
from tsae_lab.sections import figures
from tsae_lab.terminal import console, cpu_threads, fast_memory, one_line_errors

EDITS = ("ablate", "clamp", "swap", "steer")
CASES = 32  # agreement cases that a command measures on

ModelFolder = Annotated[
    Path, typer.Argument(help="a saved model, as run_2/iambic/seed_0/tsae, or a SAELens folder")
]
FeatureOption = Annotated[
    list[int] | None, typer.Option("--feature", help="feature; give it again for several")
]
LmOption = Annotated[
    str, typer.Option("--lm", help="language model, in place of the one that cfg.json names")
]
HookOption = Annotated[
    str, typer.Option("--hook", help="hook, in place of the one that cfg.json names")
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Opened:
    """A saved SAE and where it belongs."""

    sae: tsae.Sae
    lm: str
    hook: str

    @property
    def modes(self) -> dict[str, bool]:
        """Name and `propagated` of the ways to apply an edit."""
        return interventions.modes(self.sae) if self.sae.temporal else {"static": False}


def open_sae(folder: Path, lm: str = "", hook: str = "") -> Opened:
    """The SAE in a folder. ValueError for a folder without one, or one that names no language model
    or hook.
    """
    for name in (checkpoint.SAELENS_CFG, checkpoint.SAELENS_WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no model: there is no {name}")
    weights, cfg = checkpoint.load_saelens(folder)
    names = cfg.get("metadata") or {}
    lm, hook = lm or names.get("model_name", ""), hook or names.get("hook_name", "")
    if not lm or not hook:
        raise ValueError(
            f"{folder / checkpoint.SAELENS_CFG} names no language model or no hook; give --lm and --hook"
        )
    if (folder / "temporal.safetensors").is_file():
        return Opened(sae=checkpoint.load_tsae(folder), lm=lm, hook=hook)
    sae = tsae.static_sae(tsae.Static(**weights), cfg["k"])
    return Opened(sae=sae, lm=lm, hook=hook)


def _checked_features(found: Opened, wanted: list[int] | None) -> torch.Tensor:
    """The features asked for. ValueError for one that does not exist or is named twice."""
    features = torch.tensor(wanted or [], dtype=torch.int64)
    for feature in features.tolist():
        if not 0 <= feature < found.sae.d_sae:
            raise ValueError(
                f"feature {feature} does not exist: the model has features 0 to {found.sae.d_sae - 1}"
            )
    if len(features.unique()) < len(features):
        raise ValueError("a feature is named twice")
    return features


def _load(found: Opened) -> LanguageModel:
    torch.set_num_threads(cpu_threads())
    fast_memory()
    with console.status(f"loading {found.lm}"):
        lm = language_model.load_lm(found.lm, device="cpu", dtype=torch.float32)
    language_model.check_hook(lm, found.hook)
    if lm.d_in != len(found.sae.params.static.b_dec):
        width = len(found.sae.params.static.b_dec)
        raise ValueError(f"the model reads activations of width {width}; {found.lm} has {lm.d_in}")
    return lm


# ------------------------------------------------------------------------------------------------ intervene


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `intervene` was asked to do."""

    kind: str
    value: float
    features: torch.Tensor


def intervene_command(
    model: ModelFolder,
    feature: FeatureOption = None,
    edit: Annotated[
        str, typer.Option(help="ablate, clamp (to --value), swap (twin's values) or steer")
    ] = "ablate",
    value: Annotated[float, typer.Option(help="what clamp sets and steer adds")] = 0.0,
    text: Annotated[
        str, typer.Option(help="a text up to its verb; default: generated agreement sentences")
    ] = "",
    good: Annotated[
        str, typer.Option(help="the verb's right form, with its space, as ' are'")
    ] = "",
    bad: Annotated[str, typer.Option(help="the wrong form")] = "",
    twin: Annotated[
        str, typer.Option(help="the text in the other number: the full patch, and what swap takes")
    ] = "",
    position: Annotated[
        list[int] | None,
        typer.Option(help="token to edit, -1 the last before the verb; again for several"),
    ] = None,
    n_features: Annotated[
        int,
        typer.Option(
            "--n_features",
            "--n-features",
            min=1,
            help="without --feature: the best number features",
        ),
    ] = 10,
    cases: Annotated[int, typer.Option(min=2, help="generated sentences to measure on")] = CASES,
    png: Annotated[
        Path | None, typer.Option(help="write effect against offset as PNG and SVG")
    ] = None,
    lm: LmOption = "",
    hook: HookOption = "",
) -> None:
    """Edit features at token positions; print what it does to logit(good) - logit(bad) at the
    verb.
    """
    with one_line_errors():
        files.check_outputs((), (png,))
        found = open_sae(model, lm, hook)
        features = _checked_features(found, feature)
        _check_request(edit, value, text, good, bad, twin, features)
        language_model = _load(found)
        ask = Request(kind=edit, value=value, features=features)
        if text:
            case = Case(text=text, twin=twin or text, good=good, bad=bad, label=0, group="")
            _one_text(found, language_model, ask, case, position)
        else:
            _many_texts(found, language_model, ask, n_features, cases, png, position)


def _check_request(
    edit: str, value: float, text: str, good: str, bad: str, twin: str, features: torch.Tensor
) -> None:
    if edit not in EDITS:
        raise ValueError(f"edit is one of {', '.join(EDITS)}; got {edit!r}")
    if not np.isfinite(value):
        raise ValueError(f"value needs to be finite; got {value}")
    if text and not (good and bad):
        raise ValueError("--text needs --good and --bad, the two forms of the verb")
    if text and not len(features):
        raise ValueError("--text needs --feature")
    if text and edit == "swap" and not twin:
        raise ValueError("--edit=swap with --text needs --twin, the text in the other number")
    if not text and (good or bad or twin):
        raise ValueError("--good, --bad and --twin go with --text")


def _change(found: Opened, ask: Request, propagated: bool) -> Change:
    def make(batch: effects.Batch, at: torch.Tensor) -> Edit:
        if ask.kind == "ablate":
            return interventions.ablate(ask.features, at)
        if ask.kind == "clamp":
            return interventions.clamp(ask.features, at, ask.value)
        if ask.kind == "steer":
            return interventions.steer(ask.features, at, ask.value)
        return interventions.swap(ask.features, at, effects.twin_codes(found.sae, batch, at))

    return effects.change_by(found.sae, make, propagated=propagated)


def _one_text(
    found: Opened, lm: LanguageModel, ask: Request, case: Case, position: list[int] | None
) -> None:
    patched = case.twin != case.text
    batch = effects.batches(lm, found.hook, [case], need_twin=patched)[0][0]
    at = interventions.positions(batch.seq, position or [-1])
    above = language_model.layers_above(lm, found.hook)
    deltas = {
        mode: _change(found, ask, propagated)(batch, at[None])[0]
        for mode, propagated in found.modes.items()
    }
    if patched:
        deltas["full patch"] = effects.full_patch(batch, at[None])[0]
    scores = effects.logit_differences(
        above, batch, torch.stack([torch.zeros_like(batch.twin), *deltas.values()])
    )[:, 0]
    words = [lm.tokenizer.decode([i]) for i in batch.ids[0, -batch.seq :].tolist()]
    edited = ", ".join(f"{i - batch.seq} {words[i]!r}" for i in at[0].nonzero()[:, 0].tolist())
    table = Table(
        "edit",
        "logit(good) - logit(bad)",
        "change",
        title=escape(f"{ask.kind} {ask.features.tolist()} at {edited}"),
    )
    table.add_row("none", f"{float(scores[0]):.4f}", "")
    for name, score in zip(deltas, scores[1:].tolist(), strict=True):
        table.add_row(name, f"{score:.4f}", f"{score - float(scores[0]):+.4f}")
    Console().print(table)


def _many_texts(
    found: Opened,
    lm: LanguageModel,
    ask: Request,
    n_features: int,
    n_cases: int,
    png: Path | None,
    position: list[int] | None,
) -> None:
    offsets = [SPAN, *(position or [-1, -2, -3, -4, -5, -6])]
    if any(offset > 0 for offset in offsets) or 0 in offsets[1:]:
        raise ValueError(
            f"a position counts back from the verb: -1 is the last before it; got {max(offsets[1:])}"
        )
    above = language_model.layers_above(lm, found.hook)
    every = effects.agreement_cases(tasks.agreement())
    train, test = effects.split_cases(every, 240, n_cases)
    batches, skipped = effects.batches(lm, found.hook, test)
    if not len(ask.features):
        chosen = effects.number_features(found.sae, effects.batches(lm, found.hook, train)[0])[0][
            :n_features
        ]
        ask = Request(kind=ask.kind, value=ask.value, features=chosen)
    with console.status("full patch"):
        patch = effects.profile(above, batches, effects.full_patch, offsets)
    if np.isnan(patch).all(1).any():
        raise ValueError(f"no sentence reaches back to position {min(offsets)}")
    profiles = {}
    for mode, propagated in found.modes.items():
        with console.status(mode):
            profiles[mode] = effects.profile(
                above, batches, _change(found, ask, propagated), offsets
            )
    n = sum(len(batch.ids) for batch in batches)
    scale = f"effect / effect of the whole full patch ({patch[0].mean():.2f} logits)"
    title = f"{ask.kind} {ask.features.tolist()}: {scale}, {n} sentences"
    table = Table("edited tokens", "full patch", *profiles, title=escape(title))
    for i, offset in enumerate(offsets):
        cells = [effects.normalised(values[i], patch[0]) for values in (patch, *profiles.values())]
        table.add_row(
            "subject to verb" if offset == SPAN else str(offset),
            *(f"{cell:+.4f}" for cell in cells),
        )
    Console().print(table)
    _say_skipped(skipped)
    if png is not None:
        lines = {
            mode: effects.normalised(values[1:], patch[0]) for mode, values in profiles.items()
        }
        figure = figures.offset_figure(
            lines, offsets[1:], patch=effects.normalised(patch[1:], patch[0])
        )
        figures.save_figure(figure, png.with_suffix(""))


def _say_skipped(skipped: dict[str, int]) -> None:
    for reason, n in skipped.items():
        console.print(f"skipped {n}: {reason}", highlight=False)


# ---------------------------------------------------------------------------------------------------- steer


def steer_command(
    model: ModelFolder,
    prompt: Annotated[str, typer.Argument(help="the text to continue")],
    feature: FeatureOption = None,
    strength: Annotated[
        list[float] | None, typer.Option(help="what is added to the feature; again for several")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="tokens to write")] = 30,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the most probable token")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="of the sampling")] = 0,
    local: Annotated[
        bool, typer.Option("--local", help="keep the edit out of memory and recurrence")
    ] = False,
    begin: Annotated[int, typer.Option(min=0, help="first token that is steered")] = 0,
    lm: LmOption = "",
    hook: HookOption = "",
) -> None:
    """Continue a text without and with features steered at every token, the SAE's state carried
    along.
    """
    with one_line_errors():
        found = open_sae(model, lm, hook)
        features = _checked_features(found, feature)
        strengths = strength or [50.0]
        if not len(features):
            raise ValueError("steer needs --feature")
        if not np.isfinite(strengths).all():
            raise ValueError("strength needs to be finite")
        language_model = _load(found)

        def write(**edit: Any) -> str:
            generator = torch.Generator().manual_seed(seed)
            return interventions.continuation(language_model, found.hook, prompt, tokens, temperature=temperature,
                                         generator=generator, propagated=not local, **edit)  # fmt: skip

        out = Console(soft_wrap=True, highlight=False)
        out.print(f"[bold]without[/bold]: {escape(prompt)}[green]{escape(write())}[/green]")
        for amount in strengths:
            edit = interventions.steer_edit(features, amount, begin=begin)
            written = write(sae=found.sae, make_edit=edit)
            out.print(
                f"[bold]{features.tolist()} {amount:+g}[/bold]: {escape(prompt)}[green]{escape(written)}[/green]"
            )


# -------------------------------------------------------------------------------------------- minimal pairs


def minimal_pairs_command(
    model: ModelFolder,
    source: Annotated[
        str,
        typer.Argument(
            help="folder with blimp/*.jsonl, lm_syneval/*.jsonl, winogender/templates.tsv; or one file; or a dataset's "
            "name on the hub: nyu-mll/blimp:regular_plural_subject_verb_agreement_1, oskarvanderwal/winogender:all"
        ),
    ],
    names: Annotated[
        str, typer.Option("--sets", help="which of a folder's, separated by commas")
    ] = ",".join(public_sets.SETS),
    each: Annotated[int, typer.Option(min=1, help="pairs of each condition, at most")] = 100,
    seed: Annotated[int, typer.Option(help="of the sample")] = 0,
    lm: LmOption = "",
    hook: HookOption = "",
) -> None:
    """Accuracy of the language model on minimal pairs, as it is and with the code spliced in."""
    with one_line_errors():
        found = open_sae(model, lm, hook)
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        sets, absent = public_sets.find_sets(source, each, names=wanted, seed=seed)
        if not sets:
            raise ValueError(f"{source} holds none of {', '.join(absent)}")
        language_model = _load(found)
        label = "TSAE" if found.sae.temporal else "static SAE"
        table = Table(
            "set", "condition", "pairs", "clean", label, title=f"accuracy on minimal pairs, {model}"
        )
        for name, (some, rule) in sets.items():
            with console.status(f"{name}: {len(some)} pairs"):
                splice = {label: evaluation.replacement(found.sae)}
                scores = minimal_pairs.score(language_model, found.hook, some, splice, rule)
            for row in minimal_pairs.accuracy_rows(name, scores):
                cells = [f"{row[m]:.3f} ± {row[f'{m}_stderr']:.3f}" for m in ("clean", label)]
                table.add_row(name, str(row["group"]), str(row["pairs"]), *cells)
            _say_skipped({f"{name}: {reason}": n for reason, n in scores.skipped.items()})
        Console().print(table)
        for name in absent:
            console.print(f"absent in {source}: {name}", highlight=False)


def register(app: typer.Typer) -> None:
    """Adds the three commands."""
    for name, command in (
        ("intervene", intervene_command),
        ("steer", steer_command),
        ("minimal-pairs", minimal_pairs_command),
    ):
        app.command(name)(command)
