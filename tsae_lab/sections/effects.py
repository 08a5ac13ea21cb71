"""run_3's section "interventions": what number features do to the verb, and how long effects last.

The float32 language model is loaded once per run and `prepare_shared` runs once per seed, for all
texts; `effect_measures` runs per text and seed, for the static SAE and the TSAE side by side.
"""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from tsae_lab.measures import effects, evaluation, lifetimes, minimal_pairs, text_effects
from tsae_lab.measures.effects import SPAN, Batch, Change
from tsae_lab.measures.interventions import modes
from tsae_lab.sections import figures
from tsae_lab.sections.context import (
    ABSENT,
    Context,
    Estimate,
    Numbers,
    Section,
    Subject,
    difference,
    estimate_row,
    interval_row,
)
from tsae_lab.terminal import between, cell, console

Rows = list[dict[str, Any]]
SEED = 0  # of the controls and of the tokens that are edited


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much is measured; the defaults take about five minutes per text and seed on two cores.

    Each random set costs a swap of all test cases, about 1.4 CPU seconds per model in SmolLM2, so
    there are 25 on all cases and not 100 on few: a control on other cases than the effect's would
    not compare. Shares of sets come in steps of 0.04.
    """

    train_cases: int = 240  # agreement cases on which features are chosen
    test_cases: int = 48  # agreement cases on which effects are measured
    offsets: tuple[int, ...] = (-1, -2, -3, -4, -5, -6)  # to the verb, of single tokens to edit
    features: int = 10  # number features that are edited together
    controls: int = 25  # random sets of features matched to them, on all test cases
    control_cases: int = 4  # cases on which they are measured at each offset alone
    strengths: tuple[float, ...] = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
    """of steering, in units of the features' difference between plural and singular"""
    steer_cases: int = 16  # cases that are steered
    steer_controls: int = 10  # random sets that are steered
    text_rows: int = 10  # sequences of unrelated text
    duration_features: int = 40  # features whose effect is timed
    duration_each: int = 4  # tokens at which each is ablated
    pairs_each: int = 40  # minimal pairs of each condition


def scaled(share: float) -> Counts:
    """The default counts times `share`, at least 4.

    `features`, `duration_each`, the offsets and the strengths stay.
    """
    fixed = ("features", "duration_each", "offsets", "strengths")
    full = {name: count for name, count in vars(Counts()).items() if name not in fixed}
    return replace(Counts(), **{name: max(4, round(share * count)) for name, count in full.items()})


@dataclass(frozen=True, eq=False)
class MeasuredCases:
    """Cases, and what the language model does with them."""

    batches: list[Batch]
    clean: Float[np.ndarray, " cases"]  # logit(good) - logit(bad)
    patch: Float[np.ndarray, "offsets cases"]  # effect of the full patch: SPAN, then each offset

    @property
    def group(self) -> Int[np.ndarray, " cases"]:
        """Lemma of each case: what is resampled."""
        return torch.cat([batch.group for batch in self.batches]).numpy()


@dataclass(frozen=True, eq=False, kw_only=True)
class Shared:
    """Shared by all models on one hook: the language model in float32, its cases and pairs."""

    lm: LanguageModel
    hook: str
    above: Above
    train: list[Batch]
    test: MeasuredCases
    few: MeasuredCases  # for the controls by offset
    skipped: dict[str, int]  # cases by reason
    pairs: dict[str, tuple[list[Pair], Rule]]
    absent: tuple[str, ...]  # minimal-pair sets that were not found
    counts: Counts


def prepare_shared(
    lm: LanguageModel, hook: str, counts: Counts, data_dir: str = "", seed: int = 0
) -> Shared:
    """Cases and minimal pairs drawn with this seed, and what the language model does with them.

    The minimal pairs are those in `data_dir`, if one is named. A language model in another dtype
    than float32 is loaded anew.
    """
    lm, above = _exact_model(lm, hook)
    cases = effects.agreement_cases(tasks.agreement(seed=seed))
    halves = effects.split_cases(cases, counts.train_cases, counts.test_cases, seed=seed)
    (train, lost), (test, lost_too) = (effects.batches(lm, hook, half) for half in halves)
    few = effects.first_cases(test, counts.control_cases)
    pairs, absent = {}, ()
    if data_dir:
        pairs, absent = public_sets.find_sets(data_dir, counts.pairs_each, seed=seed)

    def measured(batches: list[Batch]) -> MeasuredCases:
        offsets = [SPAN, *counts.offsets]
        clean = effects.clean_differences(above, batches)
        patch = effects.profile(above, batches, effects.full_patch, offsets, clean)
        return MeasuredCases(batches, clean, patch)

    return Shared(
        lm=lm,
        hook=hook,
        above=above,
        train=train,
        test=measured(test),
        few=measured(few),
        skipped={name: lost.get(name, 0) + lost_too.get(name, 0) for name in lost | lost_too},
        pairs=pairs,
        absent=absent,
        counts=counts,
    )


@functools.lru_cache(maxsize=1)
def _exact_model(lm: LanguageModel, hook: str) -> tuple[LanguageModel, Above]:
    """The language model in float32, and its layers above the hook: one at a time in memory."""
    language_model.check_hook(lm, hook)
    if lm.dtype != torch.float32:
        lm = language_model.load_lm(lm.name, device=lm.device, dtype=torch.float32)
    return lm, language_model.layers_above(lm, hook)


# --------------------------------------------------------------------------------------- the whole


@dataclass(frozen=True, eq=False)
class Part:
    """What was measured of one model, and what is drawn of it."""

    numbers: Numbers = field(default_factory=dict)
    tables: dict[str, Rows] = field(default_factory=dict)
    lines: dict[str, np.ndarray] = field(default_factory=dict)  # by mode
    cases: dict[str, np.ndarray] = field(default_factory=dict)  # effect in each case, by measure
    estimates: dict[str, Estimate] = field(default_factory=dict)  # of features or texts
    n: int = 0  # features or texts that are resampled
    controls: np.ndarray | None = None


def effect_measures(
    shared: Shared, subjects: Sequence[Subject], tokens: Tokens, *, draw: bool = True
) -> Section:
    """Numbers, tables and figures of all models on one text; numbers under each model's prefix.

    `tokens` are the text of the models' codes. Without `draw`, no steering and no figures, and
    controls for whole spans only.
    """
    numbers: Numbers = {
        "full_patch_logits": float(shared.test.patch[0].mean()),
        "agreement_clean_accuracy": float((shared.test.clean > 0).mean()),
        "agreement_skipped": float(sum(shared.skipped.values())),
    }
    tables: dict[str, Rows] = defaultdict(list)
    tables["skipped"] = [{"reason": reason, "cases": n} for reason, n in shared.skipped.items()]
    parts = {
        subject.name: _parts(
            shared, subject, tokens, draw, by_offset=draw and subject is subjects[0]
        )
        for subject in subjects
    }
    for subject in subjects:
        for result in parts[subject.name].values():
            numbers |= {f"{subject.prefix}{name}": value for name, value in result.numbers.items()}
            for table, rows in result.tables.items():
                tables[table] += [{"model": subject.name, **row} for row in rows]
            tables["intervals"] += [
                estimate_row(measure, subject.name, estimate, result.n)
                for measure, estimate in result.estimates.items()
            ]
    tables["intervals"] += _differences(shared, subjects, parts)
    pair_numbers, tables["minimal_pairs"], paired = _pair_accuracies(shared, subjects)
    tables["intervals"] += paired
    filled = {name: rows for name, rows in tables.items() if rows}
    return Section({**numbers, **pair_numbers}, filled, _draw_all(shared, parts) if draw else {})


def _parts(
    shared: Shared, subject: Subject, tokens: Tokens, draw: bool, by_offset: bool
) -> dict[str, Part]:
    """Everything that is measured of one model but its minimal pairs."""
    ranked, difference = effects.number_features(subject.sae, shared.train)
    chosen = ranked[: shared.counts.features]
    parts = {
        "verb": _verb_effects(shared, subject, chosen, by_offset=by_offset),
        "duration": _effect_durations(shared, subject, tokens),
        "text": _text_effects(shared, subject, chosen, tokens),
    }
    if draw:
        parts["steering"] = _steering(shared, subject, chosen, difference)
    return parts


def _differences(
    shared: Shared, subjects: Sequence[Subject], parts: Mapping[str, Mapping[str, Part]]
) -> Rows:
    """Of two models: the first's measures minus the second's.

    At the verb in the same cases, on text in the same sequences; durations are of features that
    either model has of its own. Where the second has no propagated mode, its local one stands
    against the first's.
    """
    if len(subjects) != 2:
        return []
    one, other = (parts[subject.name] for subject in subjects)
    model, total = " - ".join(subject.name for subject in subjects), shared.test.patch[0]
    rows = []
    for measure, effect in one["verb"].cases.items():
        apart = effect - other["verb"].cases[_known(measure, other["verb"].cases)]
        bounds = effects.normalised_interval(apart, total, shared.test.group)
        value = metrics.finite(effects.normalised(apart, total))
        rows.append(interval_row(measure, model, value, bounds))
    for kind in ("duration", "text"):
        theirs, n = other[kind].estimates, min(one[kind].n, other[kind].n)
        for measure, estimate in one[kind].estimates.items():
            apart = difference(estimate, theirs[_known(measure, theirs)])
            rows.append(estimate_row(measure, model, apart, n))
    return rows


def _known(measure: str, measured: Mapping[str, Any]) -> str:
    """The measure, or its local mode where that is the only one."""
    return measure if measure in measured else measure.replace("_propagated", "_local")


def _last_mode(sae: Sae) -> bool:
    """`propagated` of the mode in which controls are measured: propagated where there is one."""
    return list(modes(sae).values())[-1]


def _under_both_modes(sae: Sae, numbers: Numbers) -> Numbers:
    """The numbers; where local is the only mode, also as propagated: differences need a partner."""
    if "propagated" in modes(sae):
        return numbers
    copied = {name.replace("_local", "_propagated"): value for name, value in numbers.items()}
    return numbers | copied


# ------------------------------------------------------------------------------------- at the verb


def _verb_effects(
    shared: Shared, subject: Subject, features: Int[Tensor, " n"], *, by_offset: bool
) -> Part:
    """Effects of the number features at the verb, with controls (`by_offset`: at each offset)."""
    offsets = [SPAN, *shared.counts.offsets]
    numbers, rows, intervals, lines, cases = {}, [], [], {}, {}
    for mode, propagated in modes(subject.sae).items():
        for name, change in _changes_by_name(subject.sae, features, propagated).items():
            edited = offsets if name == "effect" else [SPAN]
            profile = _profile(shared, shared.test, change, edited)
            profile_rows = _profile_rows(shared, name, mode, edited, profile)
            rows += profile_rows
            whole = profile_rows[0]
            numbers[f"{name}_{mode}"] = whole["normalised"]
            cases[f"{name}_{mode}"] = profile[0]
            bounds = {"low": whole["low"], "high": whole["high"]}
            intervals.append({"measure": f"{name}_{mode}", **bounds, "value": whole["normalised"]})
            if name == "effect":
                lines[mode] = effects.normalised(profile[1:], shared.test.patch[0])
    controls = _random_sets(shared, shared.test, subject, features, [SPAN])[:, 0]
    numbers = _under_both_modes(subject.sae, numbers)
    numbers |= _control_numbers(shared, subject.sae, features, controls)
    drawn = [{"draw": i, "normalised": metrics.finite(v)} for i, v in enumerate(controls)]
    tables = {"effects": rows, "intervals": intervals, "controls": drawn}
    lined = None
    if by_offset:
        lined = _random_sets(shared, shared.few, subject, features, offsets[1:])
    return Part(numbers, tables, lines, cases, controls=lined)


def _changes_by_name(sae: Sae, features: Int[Tensor, " n"], propagated: bool) -> dict[str, Change]:
    """The edits by the names of their numbers."""
    return {
        "effect": effects.swap_features(sae, features, propagated=propagated),
        "effect_best": effects.swap_features(sae, features[:1], propagated=propagated),
        "effect_ablated": effects.ablate_features(sae, features, propagated=propagated),
        "effect_code": effects.swap_codes(sae, propagated=propagated),
    }


def _profile(
    shared: Shared, cases: MeasuredCases, change: Change, offsets: Sequence[int]
) -> Float[np.ndarray, "offsets cases"]:
    return effects.profile(shared.above, cases.batches, change, offsets, cases.clean)


def _profile_rows(
    shared: Shared, name: str, mode: str, offsets: Sequence[int], profile: np.ndarray
) -> Rows:
    """One row per offset: mean effect in logits, and normalised by the whole full patch."""
    total, rows = shared.test.patch[0], []
    for offset, effect, patch in zip(offsets, profile, shared.test.patch, strict=False):
        reached = effect[~np.isnan(effect)]
        low, high = effects.normalised_interval(effect, total, shared.test.group) or (None, None)
        rows.append(
            {
                "edit": name,
                "mode": mode,
                "offset": "subject to verb" if offset == SPAN else offset,
                "cases": len(reached),
                "logits": float(reached.mean()) if len(reached) else None,
                "normalised": metrics.finite(effects.normalised(effect, total)),
                "low": low,
                "high": high,
                "full_patch_here": metrics.finite(effects.normalised(patch, total)),
            }
        )
    return rows


def _stand_ins(
    subject: Subject, features: Int[Tensor, " n"], n_draws: int
) -> Int[Tensor, "n_draws n"]:
    """Random sets of features of about the firing rates of these."""
    rates = metrics.firing_rate(subject.codes)
    return effects.matched_features(rates, features, n_draws, seed=SEED)


def _random_sets(
    shared: Shared,
    cases: MeasuredCases,
    subject: Subject,
    features: Int[Tensor, " n"],
    offsets: Sequence[int],
) -> Float[np.ndarray, "draws offsets"]:
    """Normalised effects of random sets, matched in position, contribution and firing rate."""
    sae, propagated = subject.sae, _last_mode(subject.sae)
    pushed = functools.cache(lambda batch: effects.swap_amounts(sae, features, batch))
    rows = []
    for stand_ins in _stand_ins(subject, features, shared.counts.controls):
        push = effects.matched_push(sae, features, stand_ins, pushed, propagated=propagated)
        profile = _profile(shared, cases, push, offsets)
        rows.append(effects.normalised(profile, cases.patch[0]))
    return np.stack(rows)


def _control_numbers(
    shared: Shared, sae: Sae, features: Int[Tensor, " n"], drawn: Float[np.ndarray, " draws"]
) -> Numbers:
    """The controls as numbers: random sets, a random direction, another position."""
    swap = effects.swap_features(sae, features, propagated=_last_mode(sae))

    def effect(change: Change) -> float | None:
        profile = _profile(shared, shared.test, change, [SPAN])
        return metrics.finite(effects.normalised(profile[0], shared.test.patch[0]))

    own = effect(swap)
    return {
        "control_mean": metrics.finite(drawn.mean()),
        "control_p95": metrics.finite(np.quantile(np.abs(drawn), 0.95)),
        "control_beaten_frac": None if own is None else float((np.abs(drawn) < abs(own)).mean()),
        "random_direction": effect(effects.random_direction(swap, SEED)),
        "other_position": effect(effects.elsewhere(swap)),
    }


def _steering(
    shared: Shared,
    subject: Subject,
    features: Int[Tensor, " n"],
    difference: Float[Tensor, " d_sae"],
) -> Part:
    """Change of logit(plural) - logit(singular) at the verb by strength, also of random sets."""
    counts, sae = shared.counts, subject.sae
    few = effects.first_cases(shared.test.batches, counts.steer_cases)
    norm = sae.params.static.W_dec.norm(dim=1).cpu()
    amounts = torch.tensor([0.0, *counts.strengths])[:, None] * difference[features]

    def curve(steered: Tensor, propagated: bool) -> Float[np.ndarray, " strengths"]:
        change = effects.steer_features(
            sae, steered, amounts / norm[steered], propagated=propagated
        )
        scores = []
        for batch in few:
            deltas = change(batch, effects.where(batch, SPAN).expand(len(amounts), -1, -1))
            towards_plural = 2 * batch.label - 1
            scores.append(effects.logit_differences(shared.above, batch, deltas) * towards_plural)
        means = torch.cat(scores, 1).mean(1).numpy()
        return means[1:] - means[0]

    lines = {mode: curve(features, propagated) for mode, propagated in modes(sae).items()}
    draws = _stand_ins(subject, features, counts.steer_controls)
    controls = np.stack([curve(draw, _last_mode(sae)) for draw in draws])
    rows = [
        {"mode": mode, "strength": strength, "logits": float(value)}
        for mode, line in lines.items()
        for strength, value in zip(counts.strengths, line, strict=True)
    ]
    numbered = [{"rank": i, "feature": f} for i, f in enumerate(features.tolist(), 1)]
    return Part({}, {"steering": rows, "number_features": numbered}, lines, controls=controls)


# ----------------------------------------------------------------------------------------- on text


def _text_effects(
    shared: Shared, subject: Subject, features: Int[Tensor, " n"], tokens: Tokens
) -> Part:
    """KL in nats per token on unrelated text, with the features off and with a random set off."""
    n_rows = min(shared.counts.text_rows, len(tokens.ids))
    rows = np.linspace(0, len(tokens.ids) - 1, n_rows).round().astype(int).tolist()
    sets = [features, _stand_ins(subject, features, 1)[0]]
    lm, above, hook, sae = shared.lm, shared.above, shared.hook, subject.sae
    kl, n_tokens = text_effects.unrelated_kl(
        lm, above, hook, sae, sets, tokens, rows, propagated=_last_mode(sae)
    )
    own, control = map(metrics.finite, metrics.quotient(kl.sum(1), n_tokens.sum().repeat(2)))
    resampled = metrics.resampled_ratio(kl[0], n_tokens, effects.EFFECT_BOOT)
    estimates = {"kl_unrelated": Estimate(own, resampled, most=np.inf)}
    numbers: Numbers = {"kl_unrelated": own, "kl_unrelated_control": control}
    return Part(numbers, estimates=estimates, n=n_rows)


def _effect_durations(shared: Shared, subject: Subject, tokens: Tokens) -> Part:
    """Rank correlation of a feature's lifetime with how long the effect of one ablation lasts."""
    sae, codes, counts = subject.sae, subject.codes, shared.counts
    life = lifetimes.feature_restricted_mean(lifetimes.runs(codes), 16)
    features = text_effects.spread_features(life, counts.duration_features)
    places = text_effects.edit_places(codes, features, 3 * counts.duration_each, seed=SEED)
    places, inactive = text_effects.active_places(
        shared.lm, shared.hook, sae, tokens, places, counts.duration_each
    )
    ways = list(modes(sae).values())
    decays = text_effects.decay(shared.lm, shared.above, shared.hook, sae, tokens, places, ways)
    estimates, rows, decayed, lines = {}, [], [], {}
    for mode, kl in zip(modes(sae), decays, strict=True):
        decayed += [{"mode": mode} | row for row in text_effects.decay_rows(kl, places.feature)]
        names, lasts = text_effects.durations(kl, places.feature)
        draws = (torch.Generator().manual_seed(int(sae.temporal)) for _ in range(2))
        rho = Estimate(*text_effects.spearman(life[names], lasts, next(draws)), -1.0)
        drawn = metrics.resampled_ratio(
            lasts, np.ones(len(lasts)), effects.EFFECT_BOOT, next(draws)
        )
        most = float(text_effects.AFTER)
        mean = Estimate(float(lasts.mean()), drawn, 0.0, most) if len(lasts) else ABSENT
        estimates |= {f"lifetime_effect_rho_{mode}": rho, f"effect_duration_{mode}": mean}
        rows += [
            {"mode": mode, "feature": int(f), "lifetime": float(life[f]), "duration": float(d)}
            for f, d in zip(names, lasts, strict=True)
        ]
        lines[mode] = np.stack([life[names], lasts])
    numbers: Numbers = {measure: estimate.value for measure, estimate in estimates.items()}
    numbers = _under_both_modes(sae, numbers) | {"effect_inactive_frac": inactive}
    timed = min((len(life) for life, _ in lines.values()), default=0)
    tables = {"durations": rows, "effect_decay": decayed}
    return Part(numbers, tables, lines, estimates=estimates, n=timed)


# ----------------------------------------------------------------------------------- minimal pairs


def _pair_accuracies(shared: Shared, subjects: Sequence[Subject]) -> tuple[Numbers, Rows, Rows]:
    """Accuracy on each set of minimal pairs, clean and with each model spliced in.

    As numbers, rows by group, and intervals: of each model and, of two, of their difference in the
    same pairs.
    """
    numbers: Numbers = {}
    intervals: Rows = []
    if shared.pairs or shared.absent:
        numbers["minimal_pair_sets_absent"] = float(len(shared.absent))
    rows: Rows = [{"set": name, "group": "absent"} for name in shared.absent]
    spliced = {subject.name: evaluation.replacement(subject.sae) for subject in subjects}
    prefixes = {"clean": "", **{subject.name: subject.prefix for subject in subjects}}
    for name, (pairs, rule) in shared.pairs.items():
        scores = minimal_pairs.score(shared.lm, shared.hook, pairs, spliced, rule)
        for model, prefix in prefixes.items():
            key = (
                f"minimal_pairs_clean_{name}"
                if model == "clean"
                else f"{prefix}minimal_pairs_{name}"
            )
            numbers[key] = minimal_pairs.pair_accuracy(scores, model)
        intervals += _pair_intervals(f"minimal_pairs_{name}", scores, subjects)
        rows += minimal_pairs.accuracy_rows(name, scores)
        rows += [
            {"set": name, "group": f"skipped: {reason}", "pairs": n}
            for reason, n in scores.skipped.items()
        ]
    return numbers, rows, intervals


def _pair_intervals(
    measure: str, scores: minimal_pairs.Scores, subjects: Sequence[Subject]
) -> Rows:
    """Of each model's accuracy and, of two, of the difference; pairs are resampled."""
    n, right = len(scores.pairs), [scores.right[subject.name] for subject in subjects]
    columns = [(s.name, r.astype(float), 0.0) for s, r in zip(subjects, right, strict=True)]
    if len(subjects) == 2:
        apart = right[0].astype(float) - right[1]
        columns.append((" - ".join(subject.name for subject in subjects), apart, -1.0))
    return [
        estimate_row(
            measure,
            name,
            Estimate(
                float(values.mean()) if n else None,
                metrics.resampled_ratio(values, np.ones(n), effects.EFFECT_BOOT),
                least,
            ),
            n,
        )
        for name, values, least in columns
    ]


# ----------------------------------------------------------------------------------------- figures


def _draw_all(shared: Shared, parts: Mapping[str, Mapping[str, Part]]) -> dict[str, Figure]:
    """Effect against offset, steering, lifetime against duration; controls of the first model."""
    first = next(iter(parts.values()))
    assert first["verb"].controls is not None
    said = [
        f"{cell(row['value'], '.2f')} ({between(row['low'], row['high'], '.2f')})"
        for part in (by_kind["duration"] for by_kind in parts.values())
        for measure, rho in part.estimates.items()
        if measure.startswith("lifetime_effect_rho")
        for row in [estimate_row(measure, "", rho, part.n)]
    ]
    points = {name: (life, lasts) for name, (life, lasts) in _labelled(parts, "duration").items()}
    return {
        "effect_by_offset": figures.offset_figure(
            _labelled(parts, "verb"),
            shared.counts.offsets,
            controls=first["verb"].controls,
            patch=effects.normalised(shared.test.patch[1:], shared.test.patch[0]),
        ),
        "steering": figures.steering_figure(
            _labelled(parts, "steering"),
            shared.counts.strengths,
            controls=first["steering"].controls,
        ),
        "lifetime_effect": figures.duration_figure(points, dict(zip(points, said, strict=True))),
    }


def _labelled(parts: Mapping[str, Mapping[str, Part]], kind: str) -> dict[str, np.ndarray]:
    """The lines of one kind by model and, of a model with two modes, mode."""
    return {
        f"{name}, {mode}" if len(by_kind[kind].lines) > 1 else name: values
        for name, by_kind in parts.items()
        for mode, values in by_kind[kind].lines.items()
    }


def interventions_section(context: Context) -> Section:
    """Causal effects of number features, and how long effects last, for each model."""
    shared = _shared(context.lm, context.store.hook, context.share, context.data_dir, context.seed)
    exact = [_exact(subject) for subject in context.subjects]
    return effect_measures(shared, exact, context.store.tokens, draw=context.long)


def _exact(subject: Subject) -> Subject:
    """The subject with products in float32, as exact differences need."""
    dials = replace(subject.sae.dials, low=torch.float32)
    return replace(subject, sae=replace(subject.sae, dials=dials))


# all seeds of a run, which each text asks for anew; one entry holds two residual streams of some
# 290 short texts (about 15 MB for SmolLM2), and the one language model of all
@functools.lru_cache(maxsize=8)
def _shared(lm: LanguageModel, hook: str, share: float, data_dir: str, seed: int) -> Shared:
    """What was made of the same arguments before, or is made now."""
    with console.status("interventions: the language model's own numbers"):
        return prepare_shared(lm, hook, scaled(share), data_dir, seed)
