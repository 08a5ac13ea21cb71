import copy
import json
import os
import re
import shutil
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import HOOK, store_of

from tsae_lab.data import language_model, splicing, store, texts
from tsae_lab.data.store import activation_store
from tsae_lab.measures import evaluation

DOCUMENTS = (
    "the quick brown fox " * 9,
    "über lazy 🙂 dogs jump. " * 7,
    "x",
    "a lazy dog jumps over it " * 5,
)
# the model, session-wide, is never written to
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="session")
def tokens(lm) -> texts.Tokens:
    return language_model.tokenize(lm, DOCUMENTS, seq=9)


@pytest.fixture
def small_blocks(monkeypatch):
    """Two sequences of 9 tokens per block, one per forward pass."""
    monkeypatch.setattr(store, "BLOCK_TOKENS", 18)
    monkeypatch.setattr(language_model, "FORWARD_TOKENS", 9)


def make_store(lm, tokens, cache_dir) -> store.Store:
    return store.activation_store(lm, tokens, hook=HOOK, cache_dir=cache_dir)


def count_passes(monkeypatch, stop_at: int | None = None) -> list[int]:
    """Records the sequences of every forward pass; pass `stop_at` raises KeyboardInterrupt."""
    passes, residual = [], language_model.residual

    def counted(lm, ids, hook):
        if len(passes) == stop_at:
            raise KeyboardInterrupt
        passes.append(len(ids))
        return residual(lm, ids, hook)

    monkeypatch.setattr(language_model, "residual", counted)
    return passes


@pytest.mark.usefixtures("small_blocks")
def test_a_store_holds_the_models_own_values_and_zeros_at_padding(lm, tokens, tmp_path):
    store = make_store(lm, tokens, tmp_path)
    assert (len(store), store.d_in) == (len(tokens.ids), lm.d_in)
    hidden = lm.model(tokens.ids.long(), output_hidden_states=True).hidden_states[2]
    expected = hidden[:, len(lm.prefix) :] * tokens.valid[..., None]
    torch.testing.assert_close(store.x(slice(None)), expected, rtol=2**-8, atol=1e-6)
    rows = [3, 0, 5]
    for index in (rows, np.array(rows), torch.tensor(rows)):
        assert torch.equal(store.x(index), store.x(slice(None))[rows])
    assert torch.equal(store.x(slice(1, 3), dtype=torch.bfloat16).float(), store.x([1, 2]))
    store.x(slice(0, 1)).zero_()
    assert store.x(slice(0, 1)).any()  # a batch is a copy


def test_in_bf16_the_store_is_the_plain_models_hidden_state_bit_for_bit(
    lm_folder, tokens, tmp_path
):
    half = language_model.load_lm(lm_folder, device="cpu", dtype=torch.bfloat16)
    store = make_store(half, tokens, tmp_path)
    hidden = half.model(input_ids=tokens.ids.long(), output_hidden_states=True).hidden_states[2]
    assert torch.equal(
        store.x(slice(None), dtype=torch.bfloat16),
        hidden[:, len(half.prefix) :] * tokens.valid[..., None],
    )


@pytest.mark.usefixtures("small_blocks")
def test_a_finished_store_is_used_again_and_another_hook_or_text_has_its_own(
    lm, tokens, tmp_path, monkeypatch
):
    store = make_store(lm, tokens, tmp_path)
    passes = count_passes(monkeypatch)
    assert make_store(lm, tokens, tmp_path).path == store.path
    assert not passes
    other_hook = activation_store(lm, tokens, hook="blocks.0.hook_resid_post", cache_dir=tmp_path)
    other_text = make_store(lm, language_model.tokenize(lm, DOCUMENTS[:2], seq=9), tmp_path)
    assert len({store.path, other_hook.path, other_text.path}) == 3
    assert passes


@pytest.mark.usefixtures("small_blocks")
def test_an_interrupted_extraction_continues_to_the_same_bytes(lm, tokens, tmp_path, monkeypatch):
    whole = make_store(lm, tokens, tmp_path / "whole")
    with monkeypatch.context() as patch:
        done = count_passes(patch, stop_at=7)
        with pytest.raises(KeyboardInterrupt):
            make_store(lm, tokens, tmp_path / "broken")
    assert not [p for p in (tmp_path / "broken").iterdir() if p.is_dir() and p.suffix != ".partial"]
    rest = count_passes(monkeypatch)
    continued = make_store(lm, tokens, tmp_path / "broken")
    assert done == [1] * 7
    assert rest == [1] * (len(whole) - 6)  # the fourth block of two was not whole
    assert (continued.path / "data.bf16").read_bytes() == (whole.path / "data.bf16").read_bytes()
    assert (continued.path / "manifest.json").read_text() == (
        whole.path / "manifest.json"
    ).read_text()


@settings(shared, max_examples=25)
@given(st.data())
def test_whatever_a_kill_leaves_of_the_data_extraction_ends_with_the_same_bytes(
    lm, tokens, tmp_path_factory, data
):
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "BLOCK_TOKENS", 18)
        made = make_store(lm, tokens, folder)
        good = (made.path / "data.bf16").read_bytes()
        partial = made.path.rename(f"{made.path}.partial")
        left = bytearray(good[: data.draw(st.integers(0, len(good)))])
        if left and data.draw(st.booleans()):
            left[data.draw(st.integers(0, len(left) - 1))] ^= 1
        (partial / "data.bf16").write_bytes(bytes(left) + data.draw(st.binary(max_size=9)))
        manifest = json.loads((partial / "manifest.json").read_text())
        manifest["crc32"] = manifest["crc32"][: data.draw(st.integers(0, len(manifest["crc32"])))]
        (partial / "manifest.json").write_text(
            json.dumps(manifest)[: data.draw(st.sampled_from([20, 10**6]))]
        )
        assert (make_store(lm, tokens, folder).path / "data.bf16").read_bytes() == good
        assert not partial.exists()


def flip_a_byte(path: Path) -> None:
    content = bytearray((path / "data.bf16").read_bytes())
    content[len(content) // 2] ^= 16
    (path / "data.bf16").write_bytes(content)


def truncate(path: Path) -> None:
    with (path / "data.bf16").open("r+b") as file:
        file.truncate(100)


def change_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["key"]["model"] = "another model"
    (path / "manifest.json").write_text(json.dumps(manifest))


DAMAGES = {
    "wrong checksum of sequences": flip_a_byte,
    "not the expected size": truncate,
    "belongs to something else": change_manifest,
    "no readable manifest": lambda path: (path / "manifest.json").write_text("{"),
    "valid.npy is missing or damaged": lambda path: (path / "valid.npy").unlink(),
    "document.npy is missing or damaged": lambda path: np.save(path / "document.npy", np.zeros(3)),
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("problem", DAMAGES)
def test_a_damaged_or_foreign_store_is_refused_in_one_line_and_made_again(
    lm, tokens, tmp_path, capsys, problem
):
    path = make_store(lm, tokens, tmp_path).path
    good = {file.name: file.read_bytes() for file in path.iterdir()}
    DAMAGES[problem](path)
    capsys.readouterr()
    make_store(lm, tokens, tmp_path)
    refusal, *progress = capsys.readouterr().err.splitlines()
    assert problem in refusal
    assert all(line.startswith("activations: ") for line in progress)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == good


@pytest.mark.usefixtures("small_blocks")
def test_an_unfinished_store_of_something_else_is_not_continued(lm, tokens, tmp_path, capsys):
    store = make_store(lm, tokens, tmp_path)
    good = (store.path / "data.bf16").read_bytes()
    partial = store.path.rename(f"{store.path}.partial")
    change_manifest(partial)
    assert (make_store(lm, tokens, tmp_path).path / "data.bf16").read_bytes() == good
    assert "not this one's; starting anew" in capsys.readouterr().err


def test_nan_activations_are_an_error_that_names_the_sequence(lm, tokens, tmp_path):
    row = int((tokens.document == 1).nonzero()[0, 0])
    broken = copy.deepcopy(lm.model)
    only_there = set(tokens.ids[row].tolist()) - set(
        tokens.ids[tokens.document != 1].flatten().tolist()
    )
    broken.get_input_embeddings().weight[only_there.pop()] = float("nan")
    with pytest.raises(
        ValueError, match=rf"NaN or infinite activations in sequence {row} \(document 1, token 0\)"
    ):
        make_store(replace(lm, model=broken), tokens, tmp_path)


def test_a_full_disk_is_an_error_before_any_work(lm, tokens, tmp_path, monkeypatch):
    passes = count_passes(monkeypatch)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))
    with pytest.raises(OSError, match=r"needs [\d,]+ bytes of disk, 1 are free"):
        make_store(lm, tokens, tmp_path)
    assert not passes
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the directory"):
        make_store(lm, tokens, tmp_path / "file" / "below")


@pytest.mark.usefixtures("small_blocks")
def test_progress_is_at_most_ten_lines_with_rate_and_time_left_where_there_is_no_terminal(
    lm, tokens, tmp_path, capsys
):
    made = make_store(lm, tokens, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert 2 < len(lines) <= 10
    n_blocks = -(-len(made) // 2)
    last = rf"activations: {n_blocks}/{n_blocks}, 0 s left  [\d,]+ tokens per second"
    assert re.fullmatch(last, lines[-1].rstrip())
    make_store(lm, tokens, tmp_path)
    assert capsys.readouterr().err == ""


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_an_array_of_a_store_that_is_a_pickle_is_refused_and_not_run(lm, tokens, tmp_path, capsys):
    made = make_store(lm, tokens, tmp_path / "cache")
    ids = (made.path / "ids.npy").read_bytes()
    evil = np.array([Evil(tmp_path / "was_run")], dtype=object)
    np.save(made.path / "ids.npy", evil, allow_pickle=True)
    again = make_store(lm, tokens, tmp_path / "cache")
    assert "ids.npy is missing or damaged; extracting it again" in capsys.readouterr().err
    assert (again.path / "ids.npy").read_bytes() == ids
    assert not (tmp_path / "was_run").exists()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_store_without_some_tokens_holds_the_others_in_order_and_pads_at_the_end(data):
    n_seq, seq = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    lengths = data.draw(st.lists(st.integers(1, seq), min_size=n_seq, max_size=n_seq))
    masks = st.lists(st.booleans(), min_size=seq, max_size=seq)
    dropped = torch.tensor(data.draw(st.lists(masks, min_size=n_seq, max_size=n_seq)))
    valid = torch.arange(seq) < torch.tensor(lengths)[:, None]
    place = torch.arange(1, n_seq * seq + 1).reshape(n_seq, seq)
    x = torch.stack([place, -place], 2).float() * valid[..., None]
    ids = torch.cat([torch.full((n_seq, 2), 99), place.where(valid, 99)], 1).int()
    whole = store_of(x, valid, ids=ids)
    found = store.without(Path(), HOOK, whole.tokens, whole.data, dropped)
    left = [row[v & ~d].tolist() for row, v, d in zip(place, valid, dropped, strict=True)]
    rows = [row for row in left if row]
    assert len(found) == len(found.text.ids) == len(rows)
    start = data.draw(st.integers(0, seq - 1))
    for got, held, text, read, row in zip(
        found.x(range(len(rows)), slice(start, seq)), found.tokens.ids, found.text.ids, found.read,
        rows, strict=True,
    ):  # fmt: skip
        padded = [*row, *[0] * (seq - len(row))]
        assert got.tolist() == [[value, -value] for value in padded[start:]]
        assert held.tolist() == [99, 99, *row, *[99] * (seq - len(row))]
        assert text[2:][read].tolist() == row
    assert found.tokens.valid.sum(1).tolist() == [len(row) for row in rows]
    assert (found.tokens is found.text) == (not (valid & dropped).any())


def planted(lm, sinks: Sequence[int]) -> language_model.LanguageModel:
    """The model with embeddings of these tokens that are a thousand times the others'."""
    model = copy.deepcopy(lm.model)
    model.get_input_embeddings().weight[list(sinks)] *= 1_000
    return replace(lm, model=model, identity=f"planted {sinks}")


def test_some_rows_of_a_store_are_its_sequences(lm, tokens, tmp_path):
    """With sinks left out and without; `of_rows` of `of_rows`, too."""
    whole = make_store(lm, tokens, tmp_path)
    dropped = torch.zeros_like(whole.tokens.valid)
    dropped[:, 2] = whole.tokens.valid[:, 2]
    for held in (whole, store.without(Path(), HOOK, whole.tokens, whole.data, dropped)):
        part = store.of_rows(store.of_rows(held, slice(1, None)), slice(1, 4))
        assert torch.equal(part.x(slice(None)), held.x(slice(2, 5)))
        assert torch.equal(part.x([2, 0], slice(1, 3)), held.x([4, 2], slice(1, 3)))
        for name in ("tokens", "text"):
            for key, value in vars(getattr(part, name)).items():
                assert torch.equal(value, getattr(getattr(held, name), key)[2:5])
        assert torch.equal(part.read, held.read[2:5])


@pytest.mark.parametrize("words", [(" fox",), (" fox", " quick")])
def test_attention_sinks_are_said_and_dropped_or_kept_from_one_store(lm, tmp_path, capsys, words):
    sinks = [language_model.token_ids(lm, word)[0] for word in words]
    strange, tokens = planted(lm, sinks), language_model.tokenize(lm, DOCUMENTS[:2], seq=9)
    whole = activation_store(strange, tokens, hook=HOOK, sinks="keep", cache_dir=tmp_path)
    found = activation_store(strange, tokens, hook=HOOK, cache_dir=tmp_path)
    are = torch.isin(tokens.ids[:, 2:], torch.tensor(sinks)) & tokens.valid
    assert torch.equal(store.sink_mask(whole.data, tokens.valid), are)
    line = f"{HOOK}: {int(are.sum())} tokens of {tokens.n_tokens} are attention sinks"
    assert capsys.readouterr().err.count(f"{line} (norm over 10 times the median): ") == 2
    assert found.path == whole.path
    assert torch.equal(whole.tokens.valid, tokens.valid)
    assert not torch.isin(found.tokens.ids[:, 2:], torch.tensor(sinks)).any()
    kept = whole.x(slice(None))[tokens.valid & ~are]
    assert torch.equal(found.x(slice(None))[found.tokens.valid], kept)
    mean = evaluation.mean_replacement(found)
    losses = evaluation.splice_losses(
        strange, found, np.arange(len(found)), {"same": lambda x: x, "mean": mean}
    )
    clean = splicing.splice(strange, tokens.ids, tokens.valid, HOOK, {})["clean"]
    assert losses["same"] == losses["clean"]
    assert losses["clean"]["token"] == pytest.approx(clean.nats[tokens.valid].mean().item())
    assert losses["clean"]["char"] * tokens.chars.sum() == pytest.approx(clean.nats.sum().item())
    assert losses["mean"]["kl"] > 1e-4
