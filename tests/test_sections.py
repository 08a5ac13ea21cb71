"""Sections on synthetic codes against independent calculations."""

import json
import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from toys import HOOK, store_of

import metrics
import tsae
from tsae_lab.data import language_model
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.jobs import study
from tsae_lab.measures import evaluation, lifetimes, splices, transitions
from tsae_lab.sections import context, figures, stability
from tsae_lab.sections import transitions as transitions_in_words
from tsae_lab.sections.context import Context, Subject, top_words
from tsae_lab.sections.probing import probing_section

D_IN, D_SAE = 4, 12
WORDS = ["the", " cat", " sat", " on", "\n", " mat", ".", " naïve"]


def a_store(n_seq=12, seq=20, n_doc=6, seed=0, lengths=None):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(WORDS), (n_seq, seq + 1), generator=g).int()
    valid = (
        torch.arange(seq)
        < (torch.full((n_seq,), seq) if lengths is None else torch.tensor(lengths))[:, None]
    )
    document = (torch.arange(n_seq) * n_doc // n_seq).int()
    start = torch.tensor(
        [int((document[:row] == document[row]).sum()) * seq for row in range(n_seq)]
    ).int()
    x = torch.randn(n_seq, seq, D_IN, generator=g).to(torch.bfloat16) * valid[..., None]
    chars = torch.ones(n_seq).int()
    return store_of(x, valid, ids=ids, document=document, start=start, chars=chars)


def a_lm():
    device, dtype = torch.device("cpu"), torch.float32
    return LanguageModel(
        name="none",
        model=None,
        tokenizer=None,
        d_in=D_IN,
        n_layers=1,
        max_seq=64,
        bos_id=0,
        prefix=(0,),
        identity="",
        device=device,
        dtype=dtype,
    )


def weights(seed=0):
    return tsae.init_static(torch.zeros(D_IN), D_SAE, generator=torch.Generator().manual_seed(seed))


def two_subjects(store):
    static = weights()
    params = tsae.from_static(
        static, scale=1.0, hidden_enc=3, hidden_dec=5, generator=torch.Generator().manual_seed(1)
    )
    sae = tsae.Sae(params=params, dials=tsae.Dials(k=3, window=4, beta=2.0))
    static_sae = tsae.static_sae(static, 3)
    return (context.subject(sae, store), context.subject(static_sae, store, prefix="static_"))


def a_context(store=None, subjects=None, seed=0):
    store = a_store() if store is None else store
    subjects = two_subjects(store) if subjects is None else subjects
    return Context(
        dataset="synthetic",
        seed=seed,
        long=True,
        lm=a_lm(),
        store=store,
        words=dict(enumerate(WORDS)),
        subjects=subjects,
    )


def with_codes(one, codes):
    return Subject(**(vars(one) | {"codes": codes}))


# ---------------------------------------------------------------- numbers and intervals


def test_stability_reports_both_models_and_their_difference_as_the_measures_themselves_do():
    context = a_context()
    numbers = stability.stability_section(context).numbers
    ours, static = context.subjects
    for prefix, one in (("", ours), ("static_", static)):
        norm = one.sae.params.static.W_dec.norm(dim=1)
        for name, null in (("tss", "global"), ("tss_in_document", "document")):
            score = metrics.tss(one.codes, norm, range(1, 17), null)
            assert numbers[f"{prefix}{name}_mean"] == pytest.approx(score.macro)
            assert numbers[f"{prefix}{name}_lag_16"] == pytest.approx(score.macro_by_lag[15])
            assert numbers[f"{prefix}{name}_weighted_lag_1"] == pytest.approx(
                score.weighted_by_lag[0]
            )
        assert numbers[f"{prefix}tss_eligible_frac"] == score.eligible_frac
        assert numbers[f"{prefix}jaccard"] == pytest.approx(metrics.jaccard(one.codes))
        assert numbers[f"{prefix}births"] == metrics.births(one.codes)
        assert numbers[f"{prefix}distinct"] == metrics.distinct(one.codes)
        assert numbers[f"{prefix}smoothness"] == pytest.approx(
            metrics.smoothness(one.codes, context.store.x(slice(None)))
        )
    assert numbers["jaccard"] > numbers["static_jaccard"]  # the memory prefers what was on
    for name in [n.removeprefix("static_") for n in numbers if n.startswith("static_")]:
        own, theirs = numbers[name], numbers[f"static_{name}"]
        absent = own is None or theirs is None
        assert numbers[f"difference_{name}"] == (None if absent else pytest.approx(own - theirs))


def test_the_interval_of_the_difference_in_lifetime_is_that_of_paired_samples():
    context = a_context()
    section = stability.lifetimes_section(context)
    rows = {(r["model"], r["measure"]): r for r in section.tables["intervals"]}
    row = rows["TSAE - static SAE", "restricted_mean_16"]
    tsae_mean, static_mean = (
        lifetimes.restricted_mean(
            lifetimes.runs(s.codes),
            16,
            n_boot=200,
            generator=torch.Generator().manual_seed(context.seed),
        )
        for s in context.subjects
    )
    assert row["value"] == pytest.approx(tsae_mean.value - static_mean.value)
    paired, n = tsae_mean.replicates - static_mean.replicates, len(tsae_mean.replicates)
    n_doc = len(context.store.tokens.document.unique())
    variance = ((paired - paired.mean()) ** 2).sum() / (n - 1) * n_doc / (n_doc - 1)
    half = scipy.stats.t.ppf(0.975, n_doc - 1) * variance**0.5
    assert (row["low"], row["high"]) == pytest.approx((row["value"] - half, row["value"] + half))
    own = rows["TSAE", "restricted_mean_16"]
    assert (own["low"], own["high"]) == tsae_mean.interval
    apart = tsae_mean.interval[1] - tsae_mean.interval[0], np.diff(static_mean.interval)[0]
    assert row["high"] - row["low"] < np.hypot(*apart)  # documents in common


def test_intervals_of_paired_samples_are_narrower_than_their_models_and_hold_the_value():
    rows = stability.stability_section(a_context()).tables["intervals"]
    by_key = {(r["model"], r["measure"]): r for r in rows}
    assert all(r["low"] <= r["value"] <= r["high"] for r in rows if r["value"] is not None)
    same = a_context()
    twice = a_context(subjects=(same.subjects[0], same.subjects[0]))
    equal = {
        (r["model"], r["measure"]): r
        for r in stability.stability_section(twice).tables["intervals"]
    }
    for measure in ("jaccard", "jaccard_kappa", "splice_kept_2"):
        row = equal["TSAE - TSAE", measure]
        assert (row["value"], row["low"], row["high"]) == (0.0, 0.0, 0.0)
        assert by_key["TSAE", measure]["high"] > by_key["TSAE", measure]["low"]


def test_the_overlap_above_chance_is_resampled_by_document_with_chance_held_fixed():
    context = a_context()
    one, n_doc = context.subjects[0], len(context.store.tokens.document.unique())
    rows = stability.stability_section(context).tables["intervals"]
    row = {(r["model"], r["measure"]): r for r in rows}["TSAE", "jaccard_kappa"]
    kappa = metrics.jaccard_kappa(one.codes)
    assert row["value"] == kappa
    chance = (metrics.jaccard(one.codes) - kappa) / (1 - kappa)
    sums, n_pairs = metrics.jaccard_by_document(one.codes)
    drawn = metrics.resamples(n_doc, 200, torch.Generator().manual_seed(context.seed))
    replicates = [(w @ sums / (w @ n_pairs) - chance) / (1 - chance) for w in drawn]
    bounds = metrics.interval(kappa, np.array(replicates), n_doc, -np.inf)
    assert (row["low"], row["high"]) == pytest.approx(bounds)


def test_lifetimes_are_those_of_the_runs_and_above_their_shuffle_where_there_is_memory():
    context = a_context()
    numbers = stability.lifetimes_section(context).numbers
    found = lifetimes.runs(context.subjects[0].codes)
    assert numbers["restricted_mean_64"] == pytest.approx(
        lifetimes.restricted_mean(found, 64).value
    )
    assert numbers["persistence"] == pytest.approx(lifetimes.persistence(found)[0])
    assert numbers["persistence"] > numbers["shuffled_persistence"]
    by_feature = lifetimes.feature_restricted_mean(found, 16)
    assert numbers["feature_restricted_mean_16"] == pytest.approx(by_feature[by_feature > 0].mean())


def test_intervals_are_those_of_the_estimates_and_of_their_paired_differences():
    made, draws = a_context(), torch.Generator().manual_seed(0)
    first, second = (torch.rand(50, generator=draws).double().numpy() for _ in range(2))
    estimates = [
        {"a": context.Estimate(0.5, first), "only": context.Estimate(0.1, first)},
        {"a": context.Estimate(0.25, second)},
    ]
    rows = context.interval_rows(made, estimates)
    assert [(r["model"], r["measure"], r["value"]) for r in rows] == [
        ("TSAE", "a", 0.5),
        ("TSAE", "only", 0.1),
        ("static SAE", "a", 0.25),
        ("TSAE - static SAE", "a", 0.25),
    ]
    n_doc = len(made.store.tokens.document.unique())
    expected = metrics.interval(0.25, first - second, n_doc, -1.0, 1.0)
    assert (rows[-1]["low"], rows[-1]["high"]) == pytest.approx(expected)
    values = [{name: e.value for name, e in by_name.items()} for by_name in estimates]
    n_doc = len(made.store.tokens.document.unique())
    apart = context.difference(estimates[0]["a"], estimates[1]["a"])
    assert rows[-1] == context.estimate_row("a", "TSAE - static SAE", apart, n_doc)
    nothing = context.difference(context.ABSENT, estimates[1]["a"])
    row = context.interval_row("a", "x", None, None)
    assert context.estimate_row("a", "x", nothing, n_doc) == row
    assert row == {"measure": "a", "model": "x", "value": None, "low": None, "high": None}
    assert context.named(made, values) == {
        "a": 0.5,
        "only": 0.1,
        "static_a": 0.25,
        "difference_a": 0.25,
    }


def test_a_context_has_the_words_of_its_text_and_its_ids_without_the_prefix(lm):
    tokens = language_model.tokenize(lm, ["the quick brown fox jumps over it. " * 9], seq=9)
    x = language_model.residual(lm, tokens.ids, HOOK)[:, len(lm.prefix) :]
    fields = {name: getattr(tokens, name) for name in ("ids", "document", "start", "chars")}
    store = store_of(x, tokens.valid, **fields)
    made = context.context_of("foxes", 1, lm, store, [], long=False)
    assert made.ids.shape == tokens.valid.shape
    assert "".join(made.words[int(i)] for i in made.ids[0]).startswith("the quick brown fox")
    assert (made.dataset, made.seed, made.long, made.subjects) == ("foxes", 1, False, ())


# ---------------------------------------------------------------- splices


def splice_of(subject, store):
    run, cpu = evaluation.sae_run(subject.sae), torch.device("cpu")
    return stability.spliced_codes(run, subject.sae.d_sae, store, 10, cpu)


def test_spliced_codes_of_a_static_sae_are_the_codes_of_the_two_documents():
    store = a_store(lengths=[20] * 11 + [9])  # the last chunk is padded and takes no part
    one = two_subjects(store)[1]
    spliced, begins, continues = splice_of(one, store) or pytest.fail("no splice")
    whole = metrics.token_matrix(one.codes).toarray().reshape(12, 20, D_SAE)
    mixed = metrics.token_matrix(spliced).toarray().reshape(-1, 20, D_SAE)
    document = store.tokens.document.numpy()
    for row, first, second in zip(mixed, begins.tolist(), continues.tolist(), strict=True):
        begun = [c for c in range(11) if np.allclose(whole[c, :10], row[:10], atol=1e-5)]
        continued = [c for c in range(11) if np.allclose(whole[c, 10:], row[10:], atol=1e-5)]
        assert (begun, continued) == ([first], [second])
        assert document[begun[0]] != document[continued[0]]


def test_over_a_splice_a_static_sae_has_chance_similarity_and_a_memory_more():
    numbers = stability.stability_section(a_context()).numbers
    assert numbers["static_similarity_across"] == pytest.approx(numbers["static_similarity_chance"])
    assert numbers["similarity_across"] > 1.1 * numbers["similarity_chance"]
    for after in (
        0,
        1,
        2,
        4,
        8,
    ):  # x is noise: neighbours are hardly alike, and some less than chance
        assert numbers[f"static_splice_kept_{after}"] in (None, pytest.approx(0, abs=1e-5))


def test_a_memory_is_carried_over_the_splice():
    store = a_store()
    ours, static = two_subjects(store)
    spliced, *_ = splice_of(ours, store) or pytest.fail("no splice")
    alone = {tuple(row) for row in metrics.token_matrix(ours.codes).toarray().round(3).tolist()}
    after = metrics.token_matrix(spliced).toarray().reshape(-1, 20, D_SAE)[:, 10].round(3).tolist()
    assert any(tuple(row) not in alone for row in after)
    assert splice_of(static, a_store(n_doc=1)) is None


# ---------------------------------------------------------------- degenerate codes


def degenerate(name):
    store = {
        "one document": a_store(n_doc=1),
        "one token a chunk": a_store(seq=1, n_seq=7, n_doc=7),
        "two short chunks": a_store(seq=3, n_seq=2, n_doc=2),
        "ragged": a_store(lengths=[20, 1, 0, 3, 20, 2, 20, 1, 1, 5, 0, 20]),
    }.get(name, a_store())
    subjects = two_subjects(store)
    shape = (*store.tokens.valid.shape, D_SAE)
    acts = {
        "silent": torch.zeros(shape),
        "constant": torch.ones(shape),
        "always the same feature": torch.eye(D_SAE)[0].expand(shape),
    }
    if name in acts:
        tokens = store.tokens
        codes = metrics.codes_from_dense(
            acts[name], valid=tokens.valid, document=tokens.document, start=tokens.start
        )
        subjects = (with_codes(subjects[0], codes), subjects[1])
    return a_context(store, subjects)


@pytest.mark.parametrize("section", ["stability", "lifetimes", "transitions", "evolution"])
@pytest.mark.parametrize(
    "name",
    ["one document", "one token a chunk", "two short chunks", "ragged", "silent", "constant",
     "always the same feature"],
)  # fmt: skip
def test_every_section_of_degenerate_codes_is_finite_and_can_be_written(name, section, tmp_path):
    made = study.SECTIONS[section](degenerate(name))
    assert all(value is None or math.isfinite(value) for value in made.numbers.values())
    for row in made.tables.get("intervals", []):
        absent = row["value"] is None or row["low"] is None
        assert absent or row["low"] <= row["value"] <= row["high"]
    study.write_section(tmp_path, section, made)
    assert json.loads((tmp_path / f"{section}.json").read_text())["numbers"] == made.numbers


def test_the_probing_section_needs_a_static_sae():
    made = a_context()
    with pytest.raises(ValueError, match="needs a static SAE among its models"):
        probing_section(replace(made, subjects=made.subjects[:1]))


def test_a_single_token_has_no_variance_to_explain_and_is_refused():
    with pytest.raises(ValueError, match="got 1 tokens with no variance"):
        two_subjects(a_store(seq=1, n_seq=1, n_doc=1))


def test_one_document_leaves_nothing_known_of_a_measure():
    section = stability.stability_section(degenerate("one document"))
    rows = {(r["model"], r["measure"]): r for r in section.tables["intervals"]}
    assert rows["TSAE", "jaccard"]["value"] > 0
    assert (rows["TSAE", "jaccard"]["low"], rows["TSAE", "jaccard"]["high"]) == (None, None)
    assert section.numbers["tss_mean"] is None  # no feature is in five documents
    assert section.numbers["splice_kept_0"] is None
    assert section.numbers["difference_similarity_within"] is None
    numbers = transitions_in_words.transitions_section(degenerate("one document")).numbers
    assert set(numbers.values()) == {None}


def test_what_silent_codes_do_not_have_is_absent_and_not_zero():
    context = degenerate("silent")
    made = [stability.stability_section, stability.lifetimes_section]
    numbers = {k: v for section in made for k, v in section(context).numbers.items()}
    for name in ("tss_mean", "tss_in_document_weighted_mean", "tss_floor_mean", "tss_lag_3",
                 "smoothness", "half_life", "persistence", "restricted_mean_64",
                 "feature_restricted_mean_16", "shuffled_persistence", "feature_persistence",
                 "lifecycle_pooled_gap_tokens", "lifecycle_feature_peak"):  # fmt: skip
        assert numbers[name] is None, name
        assert numbers[f"difference_{name}"] is None, name
    assert numbers["jaccard"] == numbers["tss_eligible_frac"] == 0  # those are known
    assert numbers["births"] == 0


def test_a_half_life_that_is_never_reached_is_absent():
    store = a_store()
    acts = torch.zeros(12, 20, D_SAE)
    acts[:, 1:, 0] = 1  # on to the end of every chunk
    tokens = store.tokens
    codes = metrics.codes_from_dense(acts, document=tokens.document, start=tokens.start)
    context = a_context(store, (with_codes(two_subjects(store)[0], codes),))
    numbers = stability.lifetimes_section(context).numbers
    assert numbers["half_life"] is None
    assert numbers["restricted_mean_16"] == 16


def test_codes_without_order_have_the_stability_of_their_floor():
    """Every token's features are drawn alone: TSS is above 0 for its maximum with 0 alone."""
    store = a_store(n_seq=60, seq=40, n_doc=30)
    on = torch.rand(60, 40, D_SAE, generator=torch.Generator().manual_seed(1)) < 0.3
    tokens = store.tokens
    codes = metrics.codes_from_dense(on.float(), document=tokens.document, start=tokens.start)
    one = with_codes(two_subjects(store)[0], codes)
    numbers = stability.stability_section(a_context(store, (one,))).numbers
    for null in ("tss", "tss_in_document"):
        assert 0 < numbers[f"{null}_floor_mean"] < 0.02
        assert numbers[f"{null}_mean"] == pytest.approx(numbers[f"{null}_floor_mean"], abs=0.004)
    kept = stability.stability_section(a_context()).numbers
    assert kept["tss_mean"] > kept["tss_floor_mean"]


MEASURES = {
    "tss": lambda c: metrics.tss(c, lags=(1, 2), n_boot=4),
    "tss in document": lambda c: metrics.tss(c, None, (1, 2), "document", n_boot=4),
    "tss beyond the chunk": lambda c: metrics.tss(c, lags=(99,)),
    "jaccard": lambda c: (
        metrics.jaccard(c),
        metrics.jaccard_by_document(c),
        metrics.jaccard_kappa(c),
    ),
    "splice": lambda c: splices.splice_kept(c, c, torch.arange(1), torch.arange(1, 2), 2).across,
    "smoothness": lambda c: metrics.smoothness(c, torch.ones(*c.valid.shape, 3)),
    "rates": lambda c: (metrics.alive_frac(c), metrics.l0(c.vals, c.valid)),
    "survival": lambda c: lifetimes.survival(lifetimes.runs(c)),
    "restricted mean": lambda c: lifetimes.restricted_mean(lifetimes.runs(c), 16, n_boot=4),
    "by feature": lambda c: lifetimes.feature_restricted_mean(lifetimes.runs(c), 16),
    "persistence": lambda c: lifetimes.persistence(lifetimes.runs(c)),
    "lifecycle": lambda c: (
        lifetimes.lifecycle(c),
        lifetimes.lifecycle_means(lifetimes.lifecycle(c)),
    ),
    "evolution": lambda c: lifetimes.evolution(c, 0),
    "transitions": transitions.find_transitions,
    "token pairs": lambda c: transitions.beyond_token_pairs(
        c, c.idx[..., 0], transitions.find_transitions(c)
    ),
    "chains": lambda c: transitions.chains(c, transitions.find_transitions(c, lags=(1, 99))),
}


def or_refusal(measure, codes):
    try:
        return measure(codes)
    except ValueError as error:
        return str(error)


def numbers_in(found):
    if isinstance(found, float | np.ndarray):
        return [np.asarray(found)]
    if isinstance(found, list | tuple):
        return [number for part in found for number in numbers_in(part)]
    if isinstance(found, dict):
        return numbers_in(list(found.values()))
    return [
        number for part in getattr(found, "__dict__", {}).values() for number in numbers_in(part)
    ]


@pytest.mark.parametrize("measure", MEASURES)
def test_a_measure_of_degenerate_codes_is_finite_absent_or_refused_in_one_line(measure):
    some = (torch.rand(6, 8, 5, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    cases = {
        "silent": metrics.codes_from_dense(torch.zeros(6, 8, 5)),
        "one document": metrics.codes_from_dense(some, document=torch.zeros(6, dtype=torch.int64)),
        "one token": metrics.codes_from_dense(torch.ones(1, 1, 5)),
        "chunks of one token": metrics.codes_from_dense(some[:, :1]),
        "constant": metrics.codes_from_dense(torch.ones(6, 8, 5)),
        "one feature": metrics.codes_from_dense(some[..., :1]),
    }
    for codes in cases.values():
        found = or_refusal(MEASURES[measure], codes)
        if isinstance(found, str):
            assert "need" in found
            assert len(found.splitlines()) == 1
        assert not any(np.isinf(number).any() for number in numbers_in(found))


def test_both_models_have_the_same_measures_so_that_seeds_and_models_can_be_averaged():
    for name in ("ragged", "silent"):
        for section in (
            stability.stability_section,
            stability.lifetimes_section,
            transitions_in_words.transitions_section,
        ):
            numbers = section(degenerate(name)).numbers
            own = {n for n in numbers if not n.startswith(("static_", "difference_"))}
            assert {f"static_{n}" for n in own} | {f"difference_{n}" for n in own} | own == set(
                numbers
            )


# ---------------------------------------------------------------- words


def test_top_words_are_those_of_the_largest_summed_activation():
    context = a_context()
    one, ids = context.subjects[0], context.ids
    sums = defaultdict(float)
    for chunk, t, slot in np.ndindex(*one.codes.vals.shape):
        sums[int(one.codes.idx[chunk, t, slot]), int(ids[chunk, t])] += float(
            one.codes.vals[chunk, t, slot]
        )
    found = top_words(one.codes, context, n=2)
    for feature, text in found.items():
        ranked = sorted((-v, WORDS[i]) for (f, i), v in sums.items() if f == feature and v > 0)[:2]
        assert text == " ".join(figures.shown(word) for _, word in ranked)


def planted():
    """Feature 1 follows feature 0 after two tokens, whatever the words; two documents in three
    chunks each.
    """
    rng = np.random.default_rng(0)
    store = a_store(n_seq=60, seq=20, n_doc=10)
    acts = torch.zeros(60, 20, D_SAE)
    for chunk in range(60):
        at = int(rng.integers(1, 17))
        acts[chunk, at, 0] = 1.0
        acts[chunk, at + 2, 1] = 2.0
        acts[chunk, int(rng.integers(1, 20)), 2] = 1.0
    tokens = store.tokens
    codes = metrics.codes_from_dense(
        acts, valid=tokens.valid, document=tokens.document, start=tokens.start
    )
    return a_context(store, (with_codes(two_subjects(store)[1], codes),))


def test_a_planted_transition_is_listed_first_with_its_tokens_marked():
    context = planted()
    section = transitions_in_words.transitions_section(context)
    best = section.tables["strongest_transitions_static"][0]
    assert (best["source"], best["target"], best["lag"], best["beyond_token_pairs"]) == (
        0,
        1,
        2,
        "yes",
    )
    assert best["count"] == 30  # half of the documents test
    chunk, first = transitions.occurrences(context.subjects[0].codes, 0, 1, 2)
    ids = context.ids[int(chunk[0])]
    words = [WORDS[int(i)] for i in ids]
    assert best["example_1"] == transitions_in_words.in_context(
        words, int(first[0]), int(first[0]) + 2
    )
    pairs = [
        (int(context.ids[c, t]), int(context.ids[c, t + 2]))
        for c, t in zip(chunk, first, strict=True)
    ]
    assert best["token_pair_frac"] == pytest.approx(
        max(map(pairs.count, pairs)) / len(pairs), abs=1e-3
    )
    assert section.numbers["static_transitions_significant"] >= 1
    assert [row["rank"] for row in section.tables["beyond_pairs_static"]] == [1]
    assert ["0"] in [
        t.get_text().split()[:1] for t in section.figures["transitions_static"].axes[0].texts
    ]


def test_an_evolution_is_of_the_first_document_seen_from_its_beginning_and_summed_up_by_feature():
    store = a_store()
    cut = store.tokens.start + 5 * (store.tokens.document == 0).int()  # document 0 lacks its start
    shown = a_context(replace(store, tokens=replace(store.tokens, start=cut)))
    one = shown.subjects[0]
    section = transitions_in_words.evolution_section(shown)
    assert set(section.tables) == {"evolution_tsae", "evolution_static"}
    expected = transitions_in_words.document_section(one, 1, shown)
    assert section.tables["evolution_tsae"] == expected.tables["evolution_tsae"]
    assert not transitions_in_words.evolution_section(replace(shown, long=False)).tables
    rows = transitions_in_words.evolution_summary(one, 1, top_words(one.codes, shown))
    table = lifetimes.evolution(one.codes, 1, n_features=20)
    for row, acts in zip(rows, table.acts, strict=True):
        assert row["active_tokens"] == (acts > 0).sum()
        assert row["peak"] == pytest.approx(acts.max(), rel=1e-3)
        assert acts[list(table.index).index(row["peak_token"])] == acts.max()


def test_features_that_are_on_at_the_same_tokens_are_one_row_that_says_how_many():
    store, acts = a_store(), torch.zeros(12, 20, D_SAE)
    acts[0, 3:9, 7], acts[0, 3:9, 4], acts[0, 5:12, 2] = 1.0, 2.0, 1.0
    layout = {name: getattr(store.tokens, name) for name in ("valid", "document", "start")}
    one = with_codes(two_subjects(store)[1], metrics.codes_from_dense(acts, **layout))
    shown = a_context(store, (one,))
    rows = transitions_in_words.evolution_summary(one, 0, top_words(one.codes, shown))
    assert [(row["feature"], row["alike"]) for row in rows] == [(4, 2), (2, 1)]
    section = transitions_in_words.document_section(one, 0, shown)
    cells = section.tables["evolution_static"]
    assert {(row["feature"], row["alike"]) for row in cells} == {(4, 2), (2, 1)}
    for figure in section.figures.values():
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert [label.endswith(" (+1 alike)") for label in labels] == [True, False]


def test_a_context_marks_source_and_target_and_is_cut_to_what_is_near():
    words = ["The", " old", "\n", " king", " of", " France", " is", " bald"]
    assert transitions_in_words.in_context(words, 3, 5) == "The old↵ [king] of [[France]] is bald"
    assert transitions_in_words.in_context(words, 2, 3, reach=1) == "old[↵] [[king]]"
    assert (
        transitions_in_words.in_context([" a"] * 40, 20, 22, reach=4) == "a a a a [a] a [[a]] a a"
    )


def test_the_rows_of_an_evolution_are_its_active_cells_and_deaths():
    context = a_context()
    one = context.subjects[0]
    section = transitions_in_words.document_section(one, 0, context, max_tokens=15)
    rows = section.tables["evolution_tsae"]
    table = lifetimes.evolution(one.codes, 0, n_features=20, max_tokens=15)
    assert sum(r["act"] > 0 for r in rows) == (table.acts > 0).sum()
    assert sum(r["death"] for r in rows) == table.deaths.sum()
    assert sum(r["birth"] for r in rows) == table.births.sum()
    assert {r["word"] for r in rows} <= {figures.shown(w) for w in WORDS}
    assert set(section.figures) == {"evolution_tsae", "lifecycle_tsae"}
