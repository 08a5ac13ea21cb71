import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from toys import HOOK, load_toy, random_model, save_model

import metrics
import tsae
from tsae_lab.data import language_model, public_sets, store, tasks
from tsae_lab.measures import effects, interventions, text_effects
from tsae_lab.sections import effects as effect_section
from tsae_lab.sections.context import Context, Subject
from tsae_lab.sections.effects import Counts

SMALL = Counts(train_cases=40, test_cases=20, offsets=(-1, -6), features=3, controls=4,
               strengths=(-1.0, 0.0, 2.0), steer_cases=4, steer_controls=2, text_rows=3,
               duration_features=6, duration_each=2, pairs_each=8)  # fmt: skip
TEXTS = [item.text for item in tasks.agreement()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random language model that has most words of the agreement tasks as one token each."""
    texts = [*TEXTS, *[" is are"] * 20]
    return save_model(tmp_path_factory.mktemp("lm"), "llama", texts=texts, vocab_size=900)


@pytest.fixture(scope="module")
def lm(folder) -> language_model.LanguageModel:
    return load_toy(folder)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    """Minimal pairs of one set, one of them unusable; the other sets are absent."""
    (tmp_path_factory.getbasetemp() / "sets" / "blimp").mkdir(parents=True)
    root = tmp_path_factory.getbasetemp() / "sets"
    pairs = [(f"{text} is", f"{text} are") for text in TEXTS[:12:2]] + [("The man is " * 12, "The")]
    rows = [{"sentence_good": good, "sentence_bad": bad, "UID": "toy"} for good, bad in pairs]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (root / "blimp" / "toy.jsonl").write_text(lines)
    return str(root)


@pytest.fixture(scope="module")
def shared(lm, data_dir) -> effect_section.Shared:
    return effect_section.prepare_shared(lm, HOOK, SMALL, data_dir)


@pytest.fixture(scope="module")
def tokens(lm):
    documents = [" ".join(TEXTS[i : i + 50]) for i in range(0, 600, 50)]
    return language_model.tokenize(lm, documents, seq=32)


def subject(lm, tokens, sae: tsae.Sae, name: str, prefix: str = "") -> Subject:
    x = language_model.residual(lm, tokens.ids, HOOK)[:, len(lm.prefix) :]
    codes = interventions.codes_of(sae, x)
    coded = metrics.codes_from_topk(
        codes.vals, codes.idx, sae.d_sae, valid=tokens.valid, document=tokens.document
    )
    return Subject(name=name, prefix=prefix, sae=sae, codes=coded, fve=0.0)


def exact_sae(d_in: int) -> tsae.Sae:
    """A static SAE without an error: two features per dimension, for its two signs."""
    both = torch.cat([torch.eye(d_in), -torch.eye(d_in)])
    zeros = torch.zeros(2 * d_in)
    static = tsae.Static(W_enc=both.T.contiguous(), b_enc=zeros, W_dec=both, b_dec=zeros[:d_in])
    return tsae.static_sae(static, 2 * d_in)


@pytest.fixture(scope="module")
def subjects(lm, tokens) -> list[Subject]:
    dials = tsae.Dials(k=6, beta=2.0)
    temporal = tsae.Sae(params=random_model(d_in=lm.d_in, d_sae=96), dials=dials)
    return [
        subject(lm, tokens, temporal, "TSAE"),
        subject(lm, tokens, exact_sae(lm.d_in), "static SAE", "static_"),
    ]


@pytest.fixture(scope="module")
def section(shared, subjects, tokens):
    return effect_section.effect_measures(shared, subjects, tokens)


# --------------------------------------------------------------------- what all models share


def test_every_case_is_measured_or_counted_as_skipped(shared):
    counts = shared.counts
    measured = sum(len(batch.ids) for batch in (*shared.train, *shared.test.batches))
    assert measured + sum(shared.skipped.values()) == counts.train_cases + counts.test_cases
    assert shared.skipped.keys() == {"text and twin differ in tokens"}
    assert sum(len(batch.ids) for batch in shared.few.batches) == counts.control_cases
    assert shared.absent == ("lm_syneval", "winogender")


@torch.no_grad()
def test_clean_differences_are_those_of_full_runs_of_the_language_model(lm, shared):
    expected = []
    for batch in shared.test.batches:
        logits = lm.model(batch.ids).logits[:, -1]
        rows = torch.arange(len(batch.ids))
        expected += (logits[rows, batch.good] - logits[rows, batch.bad]).tolist()
    np.testing.assert_allclose(shared.test.clean, expected, rtol=1e-3, atol=1e-5)


def test_the_full_patch_makes_each_case_its_twin(lm, shared):
    words = [ids[len(lm.prefix) :] for batch in shared.test.batches for ids in batch.ids.tolist()]
    texts = [lm.tokenizer.decode(ids) for ids in words]
    clean = dict(zip(texts, shared.test.clean, strict=True))
    twins = {case.text: case.twin for case in effects.agreement_cases(tasks.agreement())}
    patched = shared.test.clean + shared.test.patch[0]
    expected = [-clean[twins[text]] for text in texts]  # the forms are the other way round
    np.testing.assert_allclose(patched, expected, rtol=1e-3, atol=1e-4)


def test_a_language_model_in_another_dtype_is_measured_in_float32(folder, shared):
    half = language_model.load_lm(folder, device="cpu", dtype=torch.bfloat16)
    again = effect_section.prepare_shared(half, HOOK, SMALL)
    assert again.lm.dtype == torch.float32
    assert not again.pairs
    np.testing.assert_array_equal(again.test.clean, shared.test.clean)
    with pytest.raises(ValueError, match="unknown hook"):
        effect_section.prepare_shared(half, "blocks.9.hook_resid_post", SMALL)


# --------------------------------------------------------------------- what edits do


def rows_of(section, table: str, **wanted) -> list[dict]:
    return [row for row in section.tables[table] if wanted.items() <= row.items()]


def test_swapping_the_code_of_an_sae_without_error_is_the_full_patch(section, shared):
    assert section.numbers["static_effect_code_local"] == pytest.approx(1.0, abs=1e-4)
    assert abs(section.numbers["effect_code_local"] - 1) > 1e-2  # the random one has an error
    whole = rows_of(section, "effects", offset="subject to verb")
    assert {row["full_patch_here"] for row in whole} == {1.0}
    assert section.numbers["full_patch_logits"] == pytest.approx(shared.test.patch[0].mean())
    rows = rows_of(section, "effects", model="static SAE", edit="effect_code")
    assert rows[0]["logits"] == pytest.approx(shared.test.patch[0].mean(), abs=1e-4)


def test_a_static_sae_has_one_mode_under_both_names_and_a_tsae_has_two(section):
    for name in ("effect", "effect_best", "effect_ablated", "effect_code", "effect_duration"):
        ours, theirs = (
            [section.numbers[f"{prefix}{name}_{mode}"] for mode in ("local", "propagated")]
            for prefix in ("", "static_")
        )
        assert theirs[0] == theirs[1]
        assert ours[0] != ours[1]
    assert {row["mode"] for row in rows_of(section, "effects", model="static SAE")} == {"local"}


def test_an_offset_is_measured_on_the_cases_that_are_long_enough(section, shared):
    for row in rows_of(section, "effects", edit="effect", offset=-6):
        assert row["cases"] == sum(len(b.ids) for b in shared.test.batches if b.seq >= 6)
    for row in rows_of(section, "effects", offset="subject to verb"):
        assert row["cases"] == len(shared.test.clean)


def test_every_number_is_finite_and_lies_in_its_interval(section):
    assert all(np.isfinite(value) for value in section.numbers.values())
    # at the verb, of durations, on text, of minimal pairs: measures times modes, and differences
    assert len(section.tables["intervals"]) == (2 * 4 + 4 + 2 * 4) + (4 + 2 + 4) + (1 + 1 + 1) + 3
    prefixes = {"TSAE": "", "static SAE": "static_"}
    for row in section.tables["intervals"]:
        assert row["low"] <= row["value"] <= row["high"]
        if row["model"] in prefixes:
            assert section.numbers[prefixes[row["model"]] + row["measure"]] == row["value"]


def test_the_two_models_are_compared_in_the_same_cases(section, shared, subjects, tokens):
    numbers = section.numbers
    for row in rows_of(section, "intervals", model="TSAE - static SAE"):
        difference = numbers[row["measure"]] - numbers[f"static_{row['measure']}"]
        assert row["value"] == pytest.approx(difference)
    twice = [subjects[0], replace(subjects[0], name="again", prefix="again_")]
    same = effect_section.effect_measures(shared, twice, tokens, draw=False)
    rows = rows_of(same, "intervals", model="TSAE - again")
    assert len(rows) == 8 + 4 + 1 + 1
    assert all(row["value"] == row["low"] == row["high"] == 0 for row in rows)


def test_steering_by_nothing_does_nothing(section):
    zero = rows_of(section, "steering", strength=0.0)
    assert [row["logits"] for row in zero] == [0.0] * 3
    assert all(row["logits"] != 0 for row in rows_of(section, "steering", strength=2.0))


def test_controls_do_not_depend_on_the_chosen_features_but_the_effect_does(shared, tokens, lm):
    sae = tsae.static_sae(random_model(d_in=lm.d_in, d_sae=96).static, 6)
    chosen = effects.number_features(sae, shared.train)[0][: SMALL.features]
    W_dec = sae.params.static.W_dec.clone()
    W_dec[chosen] *= -1  # the norms stay, so the same features are chosen and matched
    static = replace(sae.params.static, W_dec=W_dec)
    turned = replace(sae, params=replace(sae.params, static=static))
    first, second = (
        effect_section.effect_measures(
            shared, [subject(lm, tokens, each, "static SAE")], tokens, draw=False
        )
        for each in (sae, turned)
    )
    assert first.tables["controls"] == second.tables["controls"]
    assert len(first.tables["controls"]) == SMALL.controls
    for section in (first, second):
        drawn = np.array([row["normalised"] for row in section.tables["controls"]])
        assert section.numbers["control_mean"] == pytest.approx(drawn.mean())
        assert section.numbers["control_p95"] == np.quantile(abs(drawn), 0.95)
    assert first.numbers["kl_unrelated_control"] == second.numbers["kl_unrelated_control"]
    effect, other = (section.numbers["effect_local"] or 0.0 for section in (first, second))
    assert effect * other < 0


def test_a_random_set_costs_one_pass_of_the_test_cases_and_of_the_few_at_all_offsets(
    shared, subjects, tokens
):
    def cost(controls: int) -> np.ndarray:
        """Forward passes of the layers above, and texts in them."""
        n_texts = []

        def above(ids, hidden, keep):
            n_texts.append(len(ids))
            return shared.above(ids, hidden, keep)

        counts = replace(SMALL, controls=controls)
        counted = replace(shared, above=above, counts=counts, pairs={}, absent=())
        effect_section.effect_measures(counted, subjects, tokens)
        return np.array([len(n_texts), sum(n_texts)])

    test, few = shared.test.batches, shared.few.batches
    n_edits = sum(len(batch.ids) * (-batch.seq <= o) for batch in few for o in SMALL.offsets)
    per_set = 2 * len(test) + len(few), 2 * len(shared.test.clean) + n_edits
    np.testing.assert_array_equal(cost(5) - cost(2), 3 * np.array(per_set))


# --------------------------------------------------------------------- on text


def test_an_sae_without_error_predicts_minimal_pairs_as_the_language_model_does(section):
    numbers = section.numbers
    assert numbers["static_minimal_pairs_blimp"] == numbers["minimal_pairs_clean_blimp"]
    assert numbers["minimal_pair_sets_absent"] == 2
    groups = [(row["set"], row["group"]) for row in section.tables["minimal_pairs"]]
    absent = [("lm_syneval", "absent"), ("winogender", "absent")]
    skipped = [("blimp", "skipped: too long for the model")]
    assert groups == [*absent, ("blimp", "toy"), ("blimp", "all"), *skipped]


def test_the_rank_correlation_is_that_of_the_table_of_durations(section):
    for prefix, model in (("", "TSAE"), ("static_", "static SAE")):
        for mode in ("local", "propagated") if model == "TSAE" else ("local",):
            rows = rows_of(section, "durations", model=model, mode=mode)
            life, lasts = zip(*((row["lifetime"], row["duration"]) for row in rows), strict=True)
            rho = section.numbers[f"{prefix}lifetime_effect_rho_{mode}"]
            assert rho == pytest.approx(float(stats.spearmanr(life, lasts)[0]))  # type: ignore[arg-type]
            assert section.numbers[f"{prefix}effect_duration_{mode}"] == pytest.approx(
                np.mean(lasts)
            )
            assert 1 <= min(life) <= max(life) <= 16
            assert 0 <= min(lasts) <= max(lasts) <= text_effects.AFTER


def test_without_drawing_the_numbers_are_the_same_and_nothing_is_drawn(
    section, shared, subjects, tokens
):
    plain = effect_section.effect_measures(shared, subjects, tokens, draw=False)
    assert set(section.figures) == {"effect_by_offset", "steering", "lifetime_effect"}
    assert not plain.figures
    assert "steering" not in plain.tables
    assert plain.numbers.keys() == section.numbers.keys()
    for name, value in plain.numbers.items():
        assert value == pytest.approx(section.numbers[name], rel=1e-3, abs=1e-5)


def test_the_section_of_a_context_measures_its_subjects_in_float32(
    lm, tokens, subjects, data_dir, tmp_path
):
    sae = subjects[0].sae
    low = replace(sae, dials=replace(sae.dials, low=torch.bfloat16))
    unread = np.zeros((len(tokens.ids), 1, lm.d_in), np.int16)
    held = store.without(tmp_path, HOOK, tokens, unread, torch.zeros_like(tokens.valid))
    context = Context(
        dataset="toy", seed=0, long=False, lm=lm, store=held, words={}, share=0.1,
        subjects=(replace(subjects[0], sae=low),), data_dir=data_dir,
    )  # fmt: skip
    made = effect_section.interventions_section(context)
    shared = effect_section.prepare_shared(lm, HOOK, effect_section.scaled(0.1), data_dir)
    assert (
        made.numbers
        == effect_section.effect_measures(shared, subjects[:1], tokens, draw=False).numbers
    )
    ids = [
        [
            batch.ids
            for batch in effect_section.prepare_shared(lm, HOOK, SMALL, seed=seed).test.batches
        ]
        for seed in (0, 1)
    ]
    assert str(ids[0]) != str(ids[1])  # another seed, other cases


def test_texts_share_one_float32_model_and_each_seeds_cases(
    folder, tokens, subjects, data_dir, tmp_path, monkeypatch
):
    half = language_model.load_lm(folder, device="cpu", dtype=torch.bfloat16)
    calls = {"load_lm": 0, "batches": 0, "find_sets": 0}

    def count(module, name):
        function = getattr(module, name)

        def counted(*args, **options):
            calls[name] += 1
            return function(*args, **options)

        monkeypatch.setattr(module, name, counted)

    count(language_model, "load_lm")
    count(effects, "batches")
    count(public_sets, "find_sets")
    unread = np.zeros((len(tokens.ids), 1, half.d_in), np.int16)
    held = store.without(tmp_path, HOOK, tokens, unread, torch.zeros_like(tokens.valid))
    made = {}
    for text in ("first", "second"):  # run_3's order: each text, and of it each seed
        for seed in range(2):
            context = Context(
                dataset=text, seed=seed, long=False, lm=half, store=held, words={}, share=0.05,
                subjects=tuple(subjects[:1]), data_dir=data_dir,
            )  # fmt: skip
            made[text, seed] = effect_section.interventions_section(context).numbers
    assert calls == {"load_lm": 1, "batches": 4, "find_sets": 2}  # two halves
    assert all(made["first", seed] == made["second", seed] for seed in range(2))
    assert made["first", 0] != made["first", 1]


def test_a_share_of_the_counts_is_never_below_four_and_keeps_what_is_no_count_of_cases():
    full, some, least = Counts(), effect_section.scaled(0.5), effect_section.scaled(0.001)
    assert effect_section.scaled(1.0) == full
    assert (some.train_cases, some.controls, some.text_rows) == (120, 12, 5)
    assert (least.train_cases, least.control_cases, least.pairs_each) == (4, 4, 4)
    for name in ("features", "duration_each", "offsets", "strengths"):
        assert getattr(least, name) == getattr(full, name)
