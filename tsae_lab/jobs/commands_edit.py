"""Commands that change a saved model's code and watch the language model.

`python experiment.py intervene|steer|minimal-pairs MODEL`. All compute in float32.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape

from tsae_lab.data import own_sets, public_sets, tasks, texts
from tsae_lab.data.language_model import LanguageModel, layers_above
from tsae_lab.jobs.saved import (
    CsvOption,
    HookOption,
    JsonOption,
    LmOption,
    ModelFolder,
    PngOption,
    Saved,
    checked_outputs,
    open_model,
    with_lm,
    write_outputs,
)
from tsae_lab.measures import effects, evaluation, interventions, minimal_pairs
from tsae_lab.measures.effects import SPAN, Batch, Case, Change
from tsae_lab.measures.interventions import Edit, MakeEdit
from tsae_lab.sections import figures
from tsae_lab.terminal import cell, console, one_line_errors, print_table

EDITS = ("ablate", "clamp", "swap", "steer")
TRAIN_CASES = 240  # agreement cases on which features are chosen

FeatureOption = Annotated[
    list[int] | None, typer.Option("--feature", help="feature; give it again for several")
]
EditOption = Annotated[
    str, typer.Option(help="ablate, clamp (to --value), swap (twin's values) or steer")
]
ValueOption = Annotated[float, typer.Option(help="what clamp sets and steer adds")]
VerbTextOption = Annotated[
    str, typer.Option(help="a text up to its verb; default: generated agreement sentences")
]
GoodOption = Annotated[str, typer.Option(help="the verb's right form, with its space, as ' are'")]
BadOption = Annotated[str, typer.Option(help="the wrong form")]
TwinOption = Annotated[
    str, typer.Option(help="the text in the other number: the full patch, and what swap takes")
]
PositionOption = Annotated[
    list[int] | None,
    typer.Option(help="token to edit, -1 the last before the verb; again for several"),
]
CountOption = Annotated[
    int,
    typer.Option(
        "--n_features", "--n-features", min=1, help="without --feature: the best number features"
    ),
]
CasesOption = Annotated[int, typer.Option(min=2, help="generated sentences to measure on")]


def _features(saved: Saved, wanted: list[int] | None) -> torch.Tensor:
    """The features asked for. ValueError for one that does not exist or is named twice."""
    features = torch.tensor(wanted or [], dtype=torch.int64)
    last = saved.sae.d_sae - 1
    for feature in features.tolist():
        if not 0 <= feature <= last:
            have = f"the model has features 0 to {last}"
            raise ValueError(f"feature {feature} does not exist: {have}")
    if len(features.unique()) < len(features):
        raise ValueError("a feature is named twice")
    return features


# ------------------------------------------------------------------------------------- intervene


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `intervene` was asked to do."""

    edit: str
    value: float
    features: torch.Tensor
    """on generated sentences none: the `n_features` best number features"""
    positions: tuple[int, ...]
    case: Case | None
    """the text; without one, `n_cases` generated sentences"""
    n_features: int
    n_cases: int


def intervene_command(
    model: ModelFolder,
    feature: FeatureOption = None,
    edit: EditOption = "ablate",
    value: ValueOption = 0.0,
    text: VerbTextOption = "",
    good: GoodOption = "",
    bad: BadOption = "",
    twin: TwinOption = "",
    position: PositionOption = None,
    n_features: CountOption = 10,
    cases: CasesOption = 32,
    json: JsonOption = None,
    csv: CsvOption = None,
    png: PngOption = None,
    lm: LmOption = "",
    hook: HookOption = "",
) -> None:
    """Edit features at token positions; print what it does to logit(good) - logit(bad) at the
    verb.
    """
    with one_line_errors():
        outputs, saved = checked_outputs(json, csv, png), open_model(model, lm, hook)
        case = None
        if text or good or bad or twin:
            case = Case(text=text, twin=twin or text, good=good, bad=bad, label=0, group="")
        features, positions = _features(saved, feature), tuple(position or ())
        request = Request(edit=edit, value=value, features=features, positions=positions,
                          case=case, n_features=n_features, n_cases=cases)  # fmt: skip
        _check_request(request, png)
        measure = _sentences if case is None else _one_text
        content, figure = measure(*with_lm(saved, exact=True), request)
        content = {"model": str(model), "edit": edit, "value": value} | content
        write_outputs(outputs, content, content["rows"], [figure])


def _check_request(request: Request, png: Path | None) -> None:
    case = request.case
    if request.edit not in EDITS:
        raise ValueError(f"edit is one of {', '.join(EDITS)}; got {request.edit!r}")
    if not math.isfinite(request.value):
        raise ValueError(f"value needs to be finite; got {request.value}")
    if case is None:
        if request.positions and max(request.positions) >= 0:
            rule = "a position counts back from the verb: -1 is the last before it"
            raise ValueError(f"{rule}; got {max(request.positions)}")
        return
    if not case.text:
        raise ValueError("--good, --bad and --twin go with --text")
    if not (case.good and case.bad):
        raise ValueError("--text needs --good and --bad, the two forms of the verb")
    if not len(request.features):
        raise ValueError("--text needs --feature")
    if request.edit == "swap" and case.twin == case.text:
        raise ValueError("--edit=swap with --text needs --twin, the text in the other number")
    if png is not None:
        raise ValueError("--png draws the effect on generated sentences: not with --text")


def _change(saved: Saved, request: Request, *, propagated: bool) -> Change:
    def make(batch: Batch, mask: torch.Tensor) -> Edit:
        if request.edit == "ablate":
            return interventions.ablate(request.features, mask)
        if request.edit == "clamp":
            return interventions.clamp(request.features, mask, request.value)
        if request.edit == "steer":
            return interventions.steer(request.features, mask, request.value)
        twins = effects.twin_codes(saved.sae, batch, mask)
        return interventions.swap(request.features, mask, twins)

    return effects.change_by(saved.sae, make, propagated=propagated)


def _one_text(lm: LanguageModel, saved: Saved, request: Request) -> tuple[dict[str, Any], None]:
    """What the edit does at the verb of the request's text."""
    case = request.case
    assert case is not None
    patched = case.twin != case.text
    batch = effects.batches(lm, saved.hook, [case], need_twin=patched)[0][0]
    mask = interventions.positions(batch.seq, request.positions or (-1,)).to(lm.device)
    deltas = {"none": torch.zeros_like(batch.twin)}
    for mode, propagated in interventions.modes(saved.sae).items():
        deltas[mode] = _change(saved, request, propagated=propagated)(batch, mask[None])[0]
    if patched:
        deltas["full patch"] = effects.full_patch(batch, mask[None])[0]
    above, variants = layers_above(lm, saved.hook), torch.stack([*deltas.values()])
    scores = effects.logit_differences(above, batch, variants)[:, 0].tolist()
    rows = [
        {"edit": name, "logit_difference": score, "change": score - scores[0]}
        for name, score in zip(deltas, scores, strict=True)
    ]
    words = [texts.spelled(lm.tokenizer, [i]) for i in batch.ids[0, -batch.seq :].tolist()]
    edited = [i - batch.seq for i in mask[0].nonzero()[:, 0].tolist()]
    places = ", ".join(f"{i} {words[i]!r}" for i in edited)
    changes = ["", *(f"{score - scores[0]:+.4f}" for score in scores[1:])]
    cells = zip(deltas, (f"{score:.4f}" for score in scores), changes, strict=True)
    title = f"{request.edit} {request.features.tolist()} at {places}"
    print_table(title, ("edit", "logit(good) - logit(bad)", "change"), cells)
    content = {"features": request.features.tolist(), "text": case.text, "positions": edited}
    return content | {"rows": rows}, None


def _sentences(lm: LanguageModel, saved: Saved, request: Request) -> tuple[dict[str, Any], Figure]:
    """What the edit does at the verb of generated sentences, by the position that is edited."""
    offsets = [SPAN, *(request.positions or (-1, -2, -3, -4, -5, -6))]
    cases = effects.agreement_cases(tasks.agreement())
    train, test = effects.split_cases(cases, TRAIN_CASES, request.n_cases)
    batches, skipped = effects.batches(lm, saved.hook, test)
    if not len(request.features):
        seen, _ = effects.batches(lm, saved.hook, train)
        best = effects.number_features(saved.sae, seen)[0]
        request = replace(request, features=best[: request.n_features])
    profiles = _profiles(lm, saved, request, batches, offsets)
    patch = profiles["full patch"][0]
    curves = {name: effects.normalised(values, patch) for name, values in profiles.items()}
    n, features = sum(len(batch.ids) for batch in batches), request.features.tolist()
    scale = f"effect / effect of the whole full patch ({patch.mean():.2f} logits)"
    columns = ["edited tokens", *curves]
    places = ["subject to verb" if offset == SPAN else offset for offset in offsets]
    lines = list(zip(places, *curves.values(), strict=True))
    cells = [(place, *(f"{effect:+.4f}" for effect in there)) for place, *there in lines]
    print_table(f"{request.edit} {features}: {scale}, {n} sentences", columns, cells)
    _say_skipped(skipped)
    drawn = {name: curve[1:] for name, curve in curves.items()}
    ceiling = drawn.pop("full patch")
    figure = figures.offset_figure(drawn, offsets[1:], patch=ceiling)
    content = {"features": features, "sentences": n, "full_patch_logits": float(patch.mean())}
    rows = [dict(zip(columns, line, strict=True)) for line in lines]
    return content | {"rows": rows}, figure


def _profiles(
    lm: LanguageModel, saved: Saved, request: Request, batches: list[Batch], offsets: list[int]
) -> dict[str, Float[np.ndarray, "offsets cases"]]:
    """Change of logit(good) - logit(bad) by the full patch and by the edit in each of its modes."""
    changes: dict[str, Change] = {"full patch": effects.full_patch}
    for mode, propagated in interventions.modes(saved.sae).items():
        changes[mode] = _change(saved, request, propagated=propagated)
    above, profiles = layers_above(lm, saved.hook), {}
    for name, change in changes.items():
        with console.status(name):
            profiles[name] = effects.profile(above, batches, change, offsets)
        if np.isnan(profiles[name]).all(1).any():
            raise ValueError(f"no sentence reaches back to position {min(offsets)}")
    return profiles


def _say_skipped(skipped: Mapping[str, int]) -> None:
    for reason, n in skipped.items():
        console.print(f"skipped {n}: {reason}", highlight=False)


# ----------------------------------------------------------------------------------------- steer


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
        saved, strengths = open_model(model, lm, hook), strength or [50.0]
        features = _features(saved, feature)
        if not len(features):
            raise ValueError("steer needs --feature")
        if not all(map(math.isfinite, strengths)):
            raise ValueError("strength needs to be finite")
        lm_loaded, saved = with_lm(saved, exact=True)
        edits: dict[str, MakeEdit | None] = {"without": None}
        for amount in strengths:
            edit = interventions.steer_edit(features, amount, begin=begin)
            edits[f"{features.tolist()} {amount:+g}"] = edit
        out = Console(soft_wrap=True, highlight=False)
        for label, edit in edits.items():
            written = interventions.continuation(
                lm_loaded, saved.hook, prompt, tokens, sae=saved.sae, make_edit=edit,
                propagated=not local, temperature=temperature,
                generator=torch.Generator().manual_seed(seed))  # fmt: skip
            out.print(
                f"[bold]{escape(label)}[/bold]: {escape(prompt)}[green]{escape(written)}[/green]"
            )


# --------------------------------------------------------------------------------- minimal pairs


def minimal_pairs_command(
    model: ModelFolder,
    source: Annotated[
        str,
        typer.Argument(
            help="folder with blimp/*.jsonl, lm_syneval/*.jsonl, winogender/templates.tsv; or one"
            " file; or a dataset's name on the hub:"
            " nyu-mll/blimp:regular_plural_subject_verb_agreement_1, oskarvanderwal/winogender:all"
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
        saved = open_model(model, lm, hook)
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        sets, absent = public_sets.find_sets(source, each, names=wanted, seed=seed)
        if not sets:
            raise ValueError(f"{source} holds none of {', '.join(absent)}; {own_sets.LAYOUT}")
        lm_loaded, saved = with_lm(saved, exact=True)
        models, cells = ("clean", saved.name), []
        splice = {saved.name: evaluation.replacement(saved.sae)}
        for name, (pairs, rule) in sets.items():
            with console.status(f"{name}: {len(pairs)} pairs"):
                scores = minimal_pairs.score(lm_loaded, saved.hook, pairs, splice, rule)
            for row in minimal_pairs.accuracy_rows(name, scores):
                shares = [
                    f"{cell(row[m], '.3f')} ± {cell(row[f'{m}_stderr'], '.3f')}" for m in models
                ]
                cells.append((name, row["group"], row["pairs"], *shares))
            _say_skipped({f"{name}: {reason}": n for reason, n in scores.skipped.items()})
        columns = ("set", "condition", "pairs", *models)
        print_table(f"accuracy on minimal pairs, {model}", columns, cells, words=columns[:2])
        for name in absent:
            console.print(f"absent in {source}: {name}", highlight=False)
