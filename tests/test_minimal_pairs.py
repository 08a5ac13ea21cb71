import json

import numpy as np
import pytest
import torch
from toys import DATA, HOOK

from probes import Pair
from tsae_lab.data import public_sets
from tsae_lab.measures import minimal_pairs


def pair(prefix: str, good: str, bad: str, suffix: str = "", group: str = "g") -> Pair:
    return Pair(prefix=prefix, good=good, bad=bad, suffix=suffix, group=group)


PAIRS = (
    pair("the fox", " jumps", " dog", " over it"),
    pair("a lazy", " dog", " quick", " jumps over", group="h"),
    pair("", "the", "fox", " dog"),
    pair("over the lazy brown fox", " over", " lazy"),
)


def log_probability(lm, text: str, replacement=None, begin: int = 0) -> float:
    """Of a sentence's tokens from `begin` on, by a full run of the bridge with the residual stream
    replaced.
    """
    ids = torch.tensor([[*lm.prefix, *lm.tokenizer(text)["input_ids"]]])
    n = len(lm.prefix)

    def patch(x, hook):  # noqa: ARG001
        return x if replacement is None else torch.cat([x[:, :n], replacement(x[:, n:])], 1)

    log_p = lm.bridge.run_with_hooks(ids, fwd_hooks=[(HOOK, patch)]).log_softmax(-1)
    return float(sum(log_p[0, n + i - 1, ids[0, n + i]] for i in range(begin, ids.shape[1] - n)))


@torch.no_grad()
def test_a_pairs_margin_is_the_difference_of_the_sentences_log_probabilities(lm):
    models = {"relu": torch.relu, "same": lambda x: x}
    scores = minimal_pairs.score(lm, HOOK, PAIRS, models, "sentence")
    assert scores.pairs == PAIRS
    for name, replacement in {"clean": None, **models}.items():
        expected = [
            log_probability(lm, p.sentence_good, replacement)
            - log_probability(lm, p.sentence_bad, replacement)
            for p in PAIRS
        ]
        np.testing.assert_allclose(scores.margin[name], expected, rtol=1e-3, atol=1e-4)
        assert scores.right[name].tolist() == [value > 0 for value in scores.margin[name]]
    np.testing.assert_array_equal(scores.margin["same"], scores.margin["clean"])
    assert not np.allclose(scores.margin["relu"], scores.margin["clean"])


@torch.no_grad()
def test_by_the_rule_word_the_word_alone_counts_given_what_is_before_it(lm):
    usable = [
        p for p in PAIRS if all(len(lm.tokenizer(w)["input_ids"]) == 1 for w in (p.good, p.bad))
    ]
    scores = minimal_pairs.score(lm, HOOK, PAIRS, {}, "word")
    assert scores.pairs == tuple(usable)
    assert scores.skipped == (
        {"a word is not one token": len(PAIRS) - len(usable)} if len(usable) < len(PAIRS) else {}
    )
    for p, margin in zip(usable, scores.margin["clean"], strict=True):
        begin = len(lm.tokenizer(p.prefix)["input_ids"]) if p.prefix else 0
        good, bad = (log_probability(lm, p.prefix + word, begin=begin) for word in (p.good, p.bad))
        assert margin == pytest.approx(good - bad, abs=1e-4)


def test_unusable_pairs_are_skipped_and_counted(lm):
    bad = [
        pair("a", " fox", " fox"),
        pair("a fox " * 30, " the", " dog"),
        pair("a", " xyzzy", " the"),
    ]
    scores = minimal_pairs.score(lm, HOOK, [*bad, pair("a", "b", "c")], {}, "word")
    assert sum(scores.skipped.values()) == 3 + (1 - len(scores.pairs))
    assert scores.skipped["good and bad are equal"] == 1
    assert scores.skipped["too long for the model"] == 1


def test_rows_give_each_conditions_accuracy_with_its_standard_error(lm):
    scores = minimal_pairs.score(lm, HOOK, PAIRS, {}, "sentence")
    rows = minimal_pairs.accuracy_rows("set", scores)
    assert [(row["group"], row["pairs"]) for row in rows] == [("g", 3), ("h", 1), ("all", 4)]
    share = rows[-1]["clean"]
    assert share == minimal_pairs.pair_accuracy(scores, "clean") == scores.right["clean"].mean()
    assert rows[1]["clean_stderr"] is None  # of a single pair
    nothing = minimal_pairs.score(lm, HOOK, [pair("a", "b", "b")], {}, "sentence")
    assert minimal_pairs.pair_accuracy(nothing, "clean") is None
    assert minimal_pairs.accuracy_rows("set", nothing)[0]["clean"] is None
    assert rows[-1]["clean_stderr"] == pytest.approx((share * (1 - share) / 4) ** 0.5)


def test_a_sample_has_at_most_so_many_of_each_condition_in_their_order():
    many = [pair("a", f" {i}", " x", group=str(i % 3)) for i in range(20)]
    some = public_sets.sample(many, 4, seed=1)
    assert [p.group for p in some].count("0") == 4
    assert len(some) == 12
    assert [many.index(p) for p in some] == sorted(many.index(p) for p in some)
    assert some != public_sets.sample(many, 4, seed=2)


def test_sets_are_found_below_a_folder_and_absent_ones_are_named(tmp_path):
    (tmp_path / "agreement" / "blimp").mkdir(parents=True)
    row = {
        "sentence_good": "Ann sees herself.",
        "sentence_bad": "Ann sees himself.",
        "UID": "anaphor",
    }
    (tmp_path / "agreement" / "blimp" / "a.jsonl").write_text(json.dumps(row) + "\n")
    sets, absent = public_sets.find_sets(tmp_path, 5)
    assert list(sets) == ["blimp"]
    assert sets["blimp"][0][0].bad == " himself"
    assert absent == ("lm_syneval", "winogender")
    with pytest.raises(ValueError, match="does not exist"):
        public_sets.find_sets(tmp_path / "nowhere", 5)
    with pytest.raises(ValueError, match="unknown minimal pairs 'blump'"):
        public_sets.find_sets(tmp_path, 5, names=["blump"])


@pytest.mark.skipif(not DATA.is_dir(), reason="the real sets are not here")
def test_the_real_sets_load():
    sets, absent = public_sets.find_sets(DATA, 3)
    assert not absent
    assert {name: rule for name, (_, rule) in sets.items()} == {
        "blimp": "sentence", "lm_syneval": "word", "winogender": "sentence"
    }  # fmt: skip
    assert all(len(pairs) >= 24 for pairs, _ in sets.values())
