import numpy as np
import pytest
from toys import HOOK, random_model, toy_batch

import metrics
import tsae
from probes import Pair
from tsae import Dials
from tsae_lab.data import language_model
from tsae_lab.measures import effects
from tsae_lab.sections import effects as effect_section
from tsae_lab.sections.context import Subject
from tsae_lab.sections.effects import Counts, Shared

SMALL = Counts(offsets=(-1, -4), features=2, controls=3, strengths=(-1.0, 0.0, 2.0), steer_cases=2, steer_controls=2,
               text_rows=2, duration_features=4, duration_each=2)  # fmt: skip


def make_bench(lm) -> Shared:
    above = language_model.layers_above(lm, HOOK)
    train, test = [toy_batch(lm, n=8)], [toy_batch(lm, n=6, seed=5)]
    few, offsets = effects.first_cases(test, 2), [effects.SPAN, *SMALL.offsets]
    pair = Pair(prefix="the fox", good=" jumps", bad=" dog", suffix="", group="g")
    return Shared(
        lm=lm, hook=HOOK, above=above, train=train, test=test, few=few, counts=SMALL, seed=0, skipped={"odd": 3},
        pairs={"blimp": ([pair], "sentence")}, absent=("winogender",),
        clean=effects.clean_differences(above, test), clean_few=effects.clean_differences(above, few),
        patch=effects.profile(above, test, effects.full_patch, offsets),
        patch_few=effects.profile(above, few, effects.full_patch, offsets),
    )  # fmt: skip


def make_models(lm, tokens) -> list[Subject]:
    params = random_model(d_in=lm.d_in, d_sae=96)
    dials = Dials(k=6, beta=2.0)
    x = language_model.residual(lm, tokens.ids, HOOK)[:, len(lm.prefix) :]
    codes = tsae.encode(params, x, dials)[0]
    held = metrics.codes_from_topk(
        codes.vals, codes.idx, 96, valid=tokens.valid, document=tokens.document
    )
    sae, static = tsae.Sae(params=params, dials=dials), tsae.static_sae(params.static, dials.k)
    return [
        Subject(name="TSAE", prefix="", sae=sae, codes=held, fve=0.0),
        Subject(name="static SAE", prefix="static_", sae=static, codes=held, fve=0.0),
    ]


def test_the_section_says_everything_of_both_models_side_by_side(lm):
    tokens = language_model.tokenize(
        lm, ["the quick brown fox jumps over the lazy dog " * 30], seq=32
    )
    bench = make_bench(lm)
    models = make_models(lm, tokens)
    made = effect_section.measures(bench, models, tokens)
    numbers, tables, figures = made.numbers, made.tables, made.figures
    assert all(isinstance(value, float) and np.isfinite(value) for value in numbers.values())
    for key in (
        "effect",
        "effect_best",
        "effect_ablated",
        "effect_code",
        "lifetime_effect_rho",
        "effect_duration",
    ):
        assert {
            f"{p}{key}_{m}" for p in ("", "static_") for m in ("local", "propagated")
        } <= numbers.keys()
        assert numbers[f"static_{key}_local"] == numbers[f"static_{key}_propagated"]
    for key in (
        "kl_unrelated",
        "control_p95",
        "control_beaten_frac",
        "random_direction",
        "minimal_pairs_blimp",
    ):
        assert {key, f"static_{key}"} <= numbers.keys()
    assert numbers["minimal_pair_sets_absent"] == 1
    assert numbers["agreement_skipped"] == 3
    assert {
        "intervals",
        "effects",
        "controls",
        "steering",
        "durations",
        "skipped",
        "minimal_pairs",
    } == tables.keys()
    assert {"measure", "model", "value", "low", "high"} == tables["intervals"][0].keys()
    assert all(row["low"] <= row["value"] <= row["high"] for row in tables["intervals"])
    assert set(figures) == {"effect_by_offset", "steering", "lifetime_effect"}
    zero = [row["logits"] for row in tables["steering"] if row["strength"] == 0]
    assert zero == [0.0] * 3


def test_without_drawing_the_numbers_are_the_same_and_there_are_no_figures(lm):
    tokens = language_model.tokenize(
        lm, ["the quick brown fox jumps over the lazy dog " * 30], seq=32
    )
    bench, models = make_bench(lm), make_models(lm, tokens)
    drawn = effect_section.measures(bench, models, tokens).numbers
    section = effect_section.measures(bench, models, tokens, draw=False)
    assert not section.figures
    assert section.numbers.keys() == drawn.keys()
    for key, value in section.numbers.items():
        assert value == pytest.approx(drawn[key], rel=1e-3, abs=1e-5)


def test_a_share_of_the_counts_is_never_below_four_and_keeps_what_is_no_count_of_cases():
    full, some, least = (
        effect_section.Counts(),
        effect_section.scaled(0.5),
        effect_section.scaled(0.001),
    )
    assert effect_section.scaled(1.0) == full
    assert (some.train_cases, some.controls, some.text_rows) == (120, 50, 5)
    assert (least.train_cases, least.control_cases, least.pairs_each) == (4, 4, 4)
    assert (least.features, least.duration_each, least.offsets) == (
        full.features,
        full.duration_each,
        full.offsets,
    )
