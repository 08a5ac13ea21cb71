"""The causal part of the analysis: what is said about a static SAE and a TSAE, side by side, for
one text and seed.

`prepare` runs once for a language model and hook; `measures` once for the models of a text and
seed.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

import metrics
from probes import Pair
from tsae import Sae
from tsae_lab.data import language_model, public_sets, tasks
from tsae_lab.data.language_model import Above, LanguageModel
from tsae_lab.data.public_sets import Rule
from tsae_lab.data.texts import Tokens
from tsae_lab.measures import effects, evaluation, lifetimes, minimal_pairs
from tsae_lab.measures.effects import SPAN, Batch, Change
from tsae_lab.measures.interventions import modes
from tsae_lab.sections import figures
from tsae_lab.sections.context import Context, Section, Subject
from tsae_lab.terminal import console

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much is measured; the defaults take about two minutes a text and seed on two CPU
    cores.
    """

    train_cases: int = 240
    """agreement cases on which features are chosen"""
    test_cases: int = 48
    """agreement cases on which effects are measured"""
    offsets: tuple[int, ...] = (-1, -2, -3, -4, -5, -6)
    """offsets to the verb at which single tokens are edited"""
    features: int = 10
    """number features that are edited together"""
    controls: int = 100
    """random sets of features matched to them"""
    control_cases: int = 4
    """cases on which the controls are measured"""
    strengths: tuple[float, ...] = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
    """of steering, in units of the features' difference between plural and singular"""
    steer_cases: int = 16
    """cases that are steered"""
    steer_controls: int = 10
    """random sets that are steered"""
    text_rows: int = 10
    """sequences of unrelated text"""
    duration_features: int = 40
    """features whose effect is timed"""
    duration_each: int = 4
    """tokens at which each is ablated"""
    pairs_each: int = 40
    """minimal pairs of each condition"""


def scaled(share: float) -> Counts:
    """A share of the default counts of cases, controls, sequences, features and pairs; never fewer
    than four.
    """
    full = Counts()
    names = [
        name
        for name, n in vars(full).items()
        if isinstance(n, int) and name not in ("features", "duration_each")
    ]
    return replace(full, **{name: max(4, round(share * getattr(full, name))) for name in names})


@dataclass(frozen=True, eq=False, kw_only=True)
class Shared:
    """What is the same for all models on one hook: the language model in float32, cases, full
    patch, minimal pairs.
    """

    lm: LanguageModel
    hook: str
    above: Above
    train: list[Batch]
    test: list[Batch]
    few: list[Batch]  # for the controls
    clean: Float[np.ndarray, " cases"]  # logit(good) - logit(bad)
    clean_few: Float[np.ndarray, " few"]
    patch: Float[np.ndarray, "offsets cases"]  # effect of the full patch: SPAN, then each offset
    patch_few: Float[np.ndarray, "offsets few"]
    skipped: dict[str, int]
    pairs: dict[str, tuple[list[Pair], Rule]]
    absent: tuple[str, ...]  # minimal-pair sets that were not found
    counts: Counts
    seed: int


# ------------------------------------------------------------------------------------------ before the models


def prepare_shared(
    lm: LanguageModel,
    hook: str,
    *,
    data_dir: str | Path | None = None,
    counts: Counts | None = None,
    seed: int = 0,
) -> Shared:
    """Cases and minimal pairs, and what the language model does with them. A model in another dtype
    is loaded anew.
    """
    language_model.check_hook(lm, hook)
    counts = counts or Counts()
    if lm.dtype != torch.float32:
        lm = language_model.load_lm(lm.name, device=lm.device, dtype=torch.float32)
    above = language_model.layers_above(lm, hook)
    cases = effects.agreement_cases(tasks.agreement(seed=seed))
    parts = effects.split_cases(cases, counts.train_cases, counts.test_cases, seed)
    (train, lost), (test, lost_too) = (effects.batches(lm, hook, part) for part in parts)
    few = effects.first_cases(test, counts.control_cases)
    offsets = [SPAN, *counts.offsets]
    pairs, absent = (
        public_sets.find_sets(data_dir, counts.pairs_each, seed=seed) if data_dir else ({}, ())
    )
    return Shared(
        lm=lm, hook=hook, above=above, train=train, test=test, few=few, counts=counts, seed=seed, pairs=pairs,
        absent=absent, clean=effects.clean_differences(above, test),
        clean_few=effects.clean_differences(above, few),
        patch=effects.profile(above, test, effects.full_patch, offsets),
        patch_few=effects.profile(above, few, effects.full_patch, offsets),
        skipped={reason: lost.get(reason, 0) + lost_too.get(reason, 0) for reason in lost | lost_too},
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- the whole


def measures(
    bench: Shared, models: Sequence[Subject], tokens: Tokens, *, draw: bool = True
) -> Section:
    """Numbers, tables and figures of all models on one text. A model's numbers have its prefix.

    The table "intervals" has measure, model, value, low and high. Without `draw`, numbers and
    intervals alone.
    """
    numbers: dict[str, float] = {
        "full_patch_logits": float(bench.patch[0].mean()),
        "agreement_clean_accuracy": float((bench.clean > 0).mean()),
        "agreement_skipped": float(sum(bench.skipped.values())),
    }
    tables: dict[str, Rows] = {
        "intervals": [],
        "effects": [],
        "controls": [],
        "steering": [],
        "durations": [],
    }
    tables["skipped"] = [{"reason": reason, "cases": n} for reason, n in bench.skipped.items()]
    ranked = {one.name: effects.number_features(one.sae, bench.train) for one in models}
    chosen = {name: order[: bench.counts.features] for name, (order, _) in ranked.items()}
    verbs = {
        one.name: verb_effects(bench, one, chosen[one.name], by_offset=draw and one is models[0])
        for one in models
    }
    lasts = {one.name: effect_durations(bench, one, tokens) for one in models}
    curves = (
        {
            one.name: steering_part(bench, one, chosen[one.name], ranked[one.name][1])
            for one in models
        }
        if draw
        else {}
    )
    for one in models:
        name = one.name
        for part in (
            verbs[name],
            lasts[name],
            text_effects(bench, one, chosen[name], tokens),
            curves.get(name),
        ):
            if part is None:
                continue
            numbers |= {f"{one.prefix}{key}": value for key, value in part.numbers.items()}
            for table, rows in part.rows.items():
                tables[table] += [{"model": name, **row} for row in rows]
    pair_numbers, tables["minimal_pairs"] = pair_accuracies(bench, models)
    figures = draw_all(bench, verbs, lasts, curves) if draw else {}
    filled = {name: rows for name, rows in tables.items() if rows}
    return Section(numbers | pair_numbers, filled, figures)


@dataclass(frozen=True, eq=False)
class Part:
    """What was measured of one model."""

    numbers: dict[str, float]
    rows: dict[str, Rows]
    arrays: dict[str, np.ndarray]


# ---------------------------------------------------------------------------------------------- at the verb


def verb_effects(
    bench: Shared, one: Subject, features: Int[Tensor, " n"], *, by_offset: bool
) -> Part:
    """Effects of the number features at the verb, local and propagated, with their controls
    (`by_offset`: at each).
    """
    offsets = [SPAN, *bench.counts.offsets]
    numbers, rows, arrays, intervals = {}, [], {}, []
    for mode, propagated in modes(one.sae).items():
        for name, change in _edits(one.sae, features, propagated).items():
            wanted = offsets if name == "effect" else [SPAN]
            found = effects.profile(bench.above, bench.test, change, wanted, bench.clean)
            rows += _profile_rows(bench, name, mode, wanted, found)
            numbers[f"{name}_{mode}"] = rows[-len(wanted)]["normalised"]
            intervals.append(
                {"measure": f"{name}_{mode}"}
                | {key: rows[-len(wanted)][key] for key in ("low", "high")}
            )
            intervals[-1]["value"] = numbers[f"{name}_{mode}"]
            if name == "effect":
                arrays[mode] = effects.normalised(found[1:], bench.patch[0])
    propagated = list(modes(one.sae).values())[-1]
    arrays["controls"] = _random_sets(
        bench, one, features, propagated, offsets if by_offset else [SPAN]
    )
    if "propagated" not in modes(
        one.sae
    ):  # the same for a static SAE, under both names: differences need a partner
        numbers |= {key.replace("_local", "_propagated"): value for key, value in numbers.items()}
    numbers |= _controls(bench, one, features, propagated, arrays["controls"][:, 0])
    drawn = [
        {"draw": i, "normalised": float(value)} for i, value in enumerate(arrays["controls"][:, 0])
    ]
    return Part(numbers, {"effects": rows, "intervals": intervals, "controls": drawn}, arrays)


def _edits(sae: Sae, features: Int[Tensor, " n"], propagated: bool) -> dict[str, Change]:
    """The edits by the names of their numbers."""
    return {
        "effect": effects.swap_features(sae, features, propagated=propagated),
        "effect_best": effects.swap_features(sae, features[:1], propagated=propagated),
        "effect_ablated": effects.ablate_features(sae, features, propagated=propagated),
        "effect_code": effects.swap_codes(sae, propagated=propagated),
    }


def _profile_rows(
    bench: Shared, name: str, mode: str, offsets: Sequence[int], found: np.ndarray
) -> Rows:
    total, rows = bench.patch[0], []
    for offset, effect, patch in zip(offsets, found, bench.patch, strict=False):
        low, high = effects.normalised_interval(effect, total)
        rows.append({
            "edit": name, "mode": mode, "offset": "subject to verb" if offset == SPAN else offset,
            "cases": int((~np.isnan(effect)).sum()), "logits": float(np.nanmean(effect)),
            "normalised": float(effects.normalised(effect, total)), "low": low, "high": high,
            "full_patch_here": float(effects.normalised(patch, total)),
        })  # fmt: skip
    return rows


def _random_sets(
    bench: Shared,
    one: Subject,
    features: Int[Tensor, " n"],
    propagated: bool,
    offsets: Sequence[int],
) -> Float[np.ndarray, "draws offsets"]:
    """Normalised effects of random sets of features, matched in position, contribution and firing
    rate.
    """
    draws = effects.matched_features(
        metrics.firing_rate(one.codes), features, bench.counts.controls, seed=bench.seed
    )
    pushed = functools.cache(lambda batch: effects.swap_amounts(one.sae, features, batch))
    found = []
    for stand_ins in draws:
        push = effects.matched_push(one.sae, features, stand_ins, pushed, propagated=propagated)
        effect = effects.profile(bench.above, bench.few, push, offsets, bench.clean_few)
        found.append(effects.normalised(effect, bench.patch_few[0]))
    return np.stack(found)


def _controls(
    bench: Shared,
    one: Subject,
    features: Int[Tensor, " n"],
    propagated: bool,
    drawn: Float[np.ndarray, " draws"],
) -> dict[str, float]:
    """The controls as numbers: random sets, a random direction, another position."""
    swap = effects.swap_features(one.sae, features, propagated=propagated)

    def effect(change: Change, batches: list[Batch], clean: np.ndarray, patch: np.ndarray) -> float:
        return float(
            effects.normalised(
                effects.profile(bench.above, batches, change, [SPAN], clean)[0], patch[0]
            )
        )

    own = effect(swap, bench.few, bench.clean_few, bench.patch_few)
    noise, moved = effects.random_direction(swap, bench.seed), effects.elsewhere(swap)
    return {
        "control_mean": float(drawn.mean()),
        "control_p95": float(np.quantile(np.abs(drawn), 0.95)),
        "control_beaten_frac": float((np.abs(drawn) < abs(own)).mean()),
        "random_direction": effect(noise, bench.test, bench.clean, bench.patch),
        "other_position": effect(moved, bench.test, bench.clean, bench.patch),
    }


def steering_part(
    bench: Shared, one: Subject, features: Int[Tensor, " n"], difference: Float[Tensor, " d_sae"]
) -> Part:
    """Change of logit(plural) - logit(singular) at the verb by steering strength, and that of
    matched random sets.
    """
    few = effects.first_cases(bench.test, bench.counts.steer_cases)
    norm = one.sae.params.static.W_dec.norm(dim=1).cpu()
    amounts = torch.tensor([0.0, *bench.counts.strengths])[:, None] * difference[features]
    rates = metrics.firing_rate(one.codes)
    draws = effects.matched_features(rates, features, bench.counts.steer_controls, seed=bench.seed)

    def curve(named: Tensor, propagated: bool) -> np.ndarray:
        change = effects.steer_features(
            one.sae, named, amounts / norm[named], propagated=propagated
        )
        found = []
        for batch in few:
            deltas = change(batch, effects.where(batch, SPAN).expand(len(amounts), -1, -1))
            found.append(
                effects.logit_differences(bench.above, batch, deltas) * (2 * batch.label - 1)
            )
        scores = torch.cat(found, 1).mean(1).numpy()
        return scores[1:] - scores[0]

    arrays = {mode: curve(features, propagated) for mode, propagated in modes(one.sae).items()}
    propagated = list(modes(one.sae).values())[-1]
    arrays["controls"] = np.stack([curve(draw, propagated) for draw in draws])
    rows = [
        {"mode": mode, "strength": strength, "logits": float(value)}
        for mode in modes(one.sae)
        for strength, value in zip(bench.counts.strengths, arrays[mode], strict=True)
    ]
    return Part({}, {"steering": rows}, arrays)


# ------------------------------------------------------------------------------------------------- on text


def text_effects(bench: Shared, one: Subject, features: Int[Tensor, " n"], tokens: Tokens) -> Part:
    """Nats per token of KL on unrelated text with the number features off, and with a matched
    random set off.
    """
    n_rows = min(bench.counts.text_rows, len(tokens.ids))
    rows = np.linspace(0, len(tokens.ids) - 1, n_rows).round().astype(int).tolist()
    stand_ins = effects.matched_features(
        metrics.firing_rate(one.codes), features, 1, seed=bench.seed
    )[0]
    propagated, sets = list(modes(one.sae).values())[-1], [features, stand_ins]
    own, control = effects.unrelated_kl(
        bench.lm, bench.above, bench.hook, one.sae, sets, tokens, rows, propagated=propagated
    )
    return Part({"kl_unrelated": own, "kl_unrelated_control": control}, {}, {})


def effect_durations(bench: Shared, one: Subject, tokens: Tokens) -> Part:
    """Rank correlation of a feature's lifetime with how long the effect of its ablation at one
    token lasts.
    """
    found = lifetimes.runs(one.codes)
    features = effects.spread_features(found, bench.counts.duration_features)
    life = lifetimes.feature_restricted_mean(found, 16)
    places = effects.edit_places(one.codes, features, bench.counts.duration_each, seed=bench.seed)
    numbers, intervals, rows, arrays = {}, [], [], {}
    ways = list(modes(one.sae).values())
    decays = effects.decay(bench.lm, bench.above, bench.hook, one.sae, tokens, places, ways)
    for mode, kl in zip(modes(one.sae), decays, strict=True):
        names, lasts = effects.durations(kl, places.feature)
        rank = effects.spearman(life[names], lasts, seed=bench.seed)
        numbers |= {
            f"lifetime_effect_rho_{mode}": rank.rho,
            f"effect_duration_{mode}": float(lasts.mean()) if len(lasts) else 0.0,
        }
        intervals.append(
            {
                "measure": f"lifetime_effect_rho_{mode}",
                "value": rank.rho,
                "low": rank.low,
                "high": rank.high,
            }
        )
        rows += [
            {"mode": mode, "feature": int(f), "lifetime": float(life[f]), "duration": float(d)}
            for f, d in zip(names, lasts, strict=True)
        ]
        arrays[mode] = np.stack([life[names], lasts])
        arrays[f"{mode} rho"] = np.array([rank.rho, rank.low, rank.high])
    if "propagated" not in modes(one.sae):
        numbers |= {key.replace("_local", "_propagated"): value for key, value in numbers.items()}
    return Part(numbers, {"durations": rows, "intervals": intervals}, arrays)


# ------------------------------------------------------------------------------------------ minimal pairs


def pair_accuracies(bench: Shared, models: Sequence[Subject]) -> tuple[dict[str, float], Rows]:
    """Accuracy on each set of minimal pairs, clean and with each model spliced in."""
    numbers: dict[str, float] = (
        {"minimal_pair_sets_absent": float(len(bench.absent))}
        if bench.pairs or bench.absent
        else {}
    )
    rows: Rows = [{"set": name, "group": "absent"} for name in bench.absent]
    splices = {one.name: evaluation.replacement(one.sae) for one in models}
    for name, (pairs, rule) in bench.pairs.items():
        scores = minimal_pairs.score(bench.lm, bench.hook, pairs, splices, rule)
        numbers[f"minimal_pairs_clean_{name}"] = minimal_pairs.pair_accuracy(scores, "clean")
        for one in models:
            numbers[f"{one.prefix}minimal_pairs_{name}"] = minimal_pairs.pair_accuracy(
                scores, one.name
            )
        rows += minimal_pairs.accuracy_rows(name, scores)
        rows += [
            {"set": name, "group": f"skipped: {why}", "pairs": n}
            for why, n in scores.skipped.items()
        ]
    return numbers, rows


# ------------------------------------------------------------------------------------------------ figures


def draw_all(
    bench: Shared, verbs: Mapping[str, Part], lasts: Mapping[str, Part], curves: Mapping[str, Part]
) -> dict[str, Figure]:
    """Effect against offset, steering, lifetime against duration; the controls are those of the
    first model.
    """
    first = next(iter(verbs))

    def lines(parts: Mapping[str, Part], skip: str) -> dict[str, np.ndarray]:
        return {
            (f"{name}, {mode}" if "propagated" in part.arrays else name): values
            for name, part in parts.items()
            for mode, values in part.arrays.items()
            if mode != "controls" and not mode.endswith(skip)
        }

    points = {name: (values[0], values[1]) for name, values in lines(lasts, " rho").items()}
    rhos = {}
    for name, part in lasts.items():
        for mode in [key for key in part.arrays if not key.endswith(" rho")]:
            rho, low, high = part.arrays[f"{mode} rho"]
            rhos[f"{name}, {mode}" if "propagated" in part.arrays else name] = (
                f"{rho:.2f} ({low:.2f} to {high:.2f})"
            )
    return {
        "effect_by_offset": figures.offset_figure(
            lines(verbs, " rho"), bench.counts.offsets, controls=verbs[first].arrays["controls"][:, 1:],
            patch=effects.normalised(bench.patch[1:], bench.patch[0]),
        ),
        "steering": figures.steering_figure(
            lines(curves, " rho"), bench.counts.strengths, controls=curves[first].arrays["controls"]
        ),
        "lifetime_effect": figures.duration_figure(points, rhos),
    }  # fmt: skip


def interventions_section(context: Context) -> Section:
    """Causal effects of number features, and how long effects last, for each model."""
    bench = _shared(context.lm, context.store.hook, context.share, context.data_dir)
    models = [exact(subject) for subject in context.subjects]
    return measures(bench, models, context.store.tokens, draw=context.long)


def exact(subject: Subject) -> Subject:
    """The subject with products in float32, as exact differences need."""
    dials = replace(subject.sae.dials, low=torch.float32)
    return replace(subject, sae=replace(subject.sae, dials=dials))


@functools.lru_cache(maxsize=1)
def _shared(lm: LanguageModel, hook: str, share: float, data_dir: str) -> Shared:
    """What is the same for all models on one hook."""
    with console.status("interventions: the language model's own numbers"):
        return prepare_shared(lm, hook, data_dir=data_dir or None, counts=scaled(share))
