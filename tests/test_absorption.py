"""Absorption against codes whose truth is known: who is active where was written down."""

import json
import random

import numpy as np
import pytest
import torch
from scipy import sparse
from toys import random_model, save_model, save_saes
from typer.testing import CliRunner

import experiment
import metrics
import tsae
from tsae_lab import definitions
from tsae_lab.measures import absorption
from tsae_lab.sections.figures import absorption_figure

N, D, WORDS = 2_000, 16, 20  # tokens, width, words; every second word is of the concept
RNG = np.random.default_rng(0)


def text(absorbed_words: tuple[int, ...]):
    """x, codes, decoder, concept and words: feature 0 is the concept, feature 1 + w the word w.

    On the words named the concept's feature is off, and the word's decoder row holds the concept.
    """
    words = RNG.integers(0, WORDS, N)
    concept = words % 2 == 0
    axes = np.linalg.qr(RNG.normal(size=(24, 24)))[0]
    W_dec = axes[: 1 + WORDS].copy()
    dense = np.zeros((N, 1 + WORDS))
    dense[np.arange(N), 1 + words] = 1.0
    dense[concept, 0] = 1.0
    for word in absorbed_words:
        dense[words == word, 0] = 0.0
        W_dec[1 + word] += W_dec[0]
    x = dense @ W_dec + 0.01 * RNG.normal(size=(N, 24))
    return x, sparse.csr_array(dense), W_dec, concept, words


def test_a_code_with_one_feature_per_concept_absorbs_nothing():
    result = absorption.absorbed(*text(()))
    assert result is not None
    assert result.main == (0,)
    assert not result.full.any()
    assert result.part.max() < 0.1


@pytest.mark.parametrize("lost", [(2,), (2, 6), (0, 2)])
def test_what_words_absorb_is_their_share_of_the_held_out_tokens(lost):
    given = text(lost)
    concept, words = given[3:]
    result = absorption.absorbed(*given)
    assert result is not None
    assert 0 in result.main
    held_out = sorted(set(words[concept]))[1::2]  # 2, 6, 10 ..: a loop over what was written down
    n, n_lost = 0, 0
    for token in range(N):
        if words[token] in held_out:
            n += 1
            n_lost += words[token] in lost
    assert result.n == n
    assert result.full.sum() == n_lost
    assert result.part[result.full] == pytest.approx(1)
    assert result.part[~result.full].max() < 0.1


def test_a_concept_of_few_tokens_or_that_no_probe_finds_has_no_absorption():
    x, codes, W_dec, concept, words = text(())
    few = concept & (np.cumsum(concept) <= absorption.LEAST)
    assert absorption.absorbed(x, codes, W_dec, few, words) is None


def test_letters_are_of_tokens_that_begin_words_in_sequences():
    x, codes, W_dec, concept, words = text((2,))
    names = {w: f" {'a' if w % 2 == 0 else 'b'}{w}" for w in range(WORDS)} | {WORDS: "ab"}
    ids = torch.from_numpy(words).view(20, 100)
    ids[:, -1] = WORDS  # continues a word: is nobody's letter
    valid = torch.ones(20, 100, dtype=torch.bool)
    valid[:, 90:] = False
    dense = torch.from_numpy(codes.todense()).float().view(20, 100, -1)
    coded = metrics.codes_from_dense(dense, lengths=valid.sum(1))
    read = torch.from_numpy(x).float().view(20, 100, -1)
    results = absorption.letters(coded, read, ids, names, torch.from_numpy(W_dec))
    assert results.keys() == {"a", "b"}
    keep = valid.flatten().numpy()
    expected = absorption.absorbed(
        x.astype(np.float32)[keep], codes[keep], W_dec, concept[keep], words[keep]
    )
    assert expected is not None
    assert (results["a"].n, results["a"].full.sum()) == (expected.n, expected.full.sum())
    assert results["b"].full.mean() < 0.1


def test_the_command_writes_numbers_that_are_defined_a_table_and_a_figure(tmp_path):
    rng = random.Random(0)
    spoken = ("bank", "bird", "cat", "cow", "dog", "dusk")
    texts = [" ".join(rng.choices(spoken, k=60)) for _ in range(30)]
    lm = save_model(tmp_path / "lm", "llama", texts=texts, vocab_size=400)
    model = save_saes(tmp_path, random_model(d_in=24, d_sae=96), tsae.Dials(k=6), lm) / "tsae"
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    words = ["absorption", model, f"--text={tmp_path / 'texts.json'}"]
    words += [f"--{kind}={tmp_path / kind}.{kind}" for kind in ("json", "csv", "png")]
    done = CliRunner().invoke(experiment.app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    said = json.loads((tmp_path / "json.json").read_text())
    rows = said["tables"]["absorption"]
    assert {row["letter"] for row in rows} == {"b", "c", "d"}
    assert said["numbers"].keys() == {"absorption_full", "absorption_part"}
    for key, value in said["numbers"].items():
        kind = key.removeprefix("absorption_")
        assert value == pytest.approx(sum(row[kind] for row in rows) / len(rows))
        assert 0 <= value <= 1
        assert definitions.definition(key).range == "[0, 1]"
    assert (tmp_path / "csv.csv").read_text().startswith("letter,tokens,features,full,part\n")
    assert (tmp_path / "png.png").stat().st_size > 0
    few = CliRunner().invoke(experiment.app, [*map(str, words[:3]), "--tokens=30"])
    assert "no letter begins 40 tokens: give more --tokens" in few.output


def test_the_figure_of_absorption_has_a_mark_per_letter_and_kind():
    rows = [{"letter": "a", "full": 0.1, "part": 0.5}, {"letter": "t", "full": 0.2, "part": 0.25}]
    (axes,) = absorption_figure(rows).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert (drawn["in full"], drawn["in part, mean"]) == ([0.1, 0.2], [0.5, 0.25])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "t"]
    with pytest.raises(ValueError, match="absorption_figure needs at least one letter"):
        absorption_figure([])
