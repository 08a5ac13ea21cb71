"""Activations that the language model computes ahead of the training, and their batches."""

import json
import shutil
import threading
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

import experiment
from tsae_lab.data import language_model, store, stream, texts
from tsae_lab.jobs import feeding, plan, schedules, training

ALONE = schedules.Phases(pretrain=12, settle=0, introduce=0, refine=0)


@pytest.fixture(scope="module")
def config(tmp_path_factory, lm_folder) -> plan.Config:
    return toys.toy_config(tmp_path_factory.mktemp("run"), lm_folder)


def streamed(unit: plan.Unit, folder: Path) -> plan.Unit:
    """The same text and seed without a store of its training split, in another folder."""
    config = replace(unit.config, activations="stream")
    lm = plan.lm_of(config)
    folder.mkdir()
    data = plan.load_data(config, lm, plan.names_of(config)[0])
    return replace(unit, config=config, data=data, folder=folder, log=folder / "log.jsonl")


def bits(trainer: training.Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in training.snapshot(trainer).items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


# --------------------------------------------------------------------------- what a stream gives


def with_sinks(tokens: texts.Tokens, monkeypatch) -> None:
    """The language model's activations, of which some tokens have a norm 100 times the usual."""
    places, residual = [(0, 0), (1, 2), (1, 3), (3, 4)], language_model.residual
    marked = {tuple(tokens.ids[row].tolist()): [] for row, _ in places}
    for row, place in places:
        marked[tuple(tokens.ids[row].tolist())].append(place)

    def changed(lm, ids, hook):
        out = residual(lm, ids, hook).clone()
        for row, words in enumerate(ids.tolist()):
            for place in marked.get(tuple(words), []):
                out[row, len(lm.prefix) + place] *= 100
        return out

    monkeypatch.setattr(language_model, "residual", changed)


@pytest.mark.parametrize("sinks", ["drop", "keep"])
@pytest.mark.parametrize("strange", [False, True])
def test_a_stream_gives_what_the_store_gives_to_the_bit(lm, tmp_path, monkeypatch, sinks, strange):
    documents = [f"{i} the quick brown fox jumps over the lazy dog" * (1 + i % 3) for i in range(9)]
    tokens = language_model.tokenize(lm, documents, seq=9)
    if strange:
        with_sinks(tokens, monkeypatch)
    own = {"hook": toys.HOOK, "sinks": sinks, "cache_dir": tmp_path}
    kept = store.activation_store(lm, tokens, **own)
    source = stream.activations_of(lm, tokens, kind="stream", name="toy", beside=kept, **own)
    assert isinstance(source, stream.Stream)
    assert (len(source), source.d_in) == (len(kept), kept.d_in)
    for rows in (slice(None), slice(2, 5), torch.tensor([3, 0, 5]), np.array([1, 3])):
        x, valid = source.sequences(rows)
        stored, there = kept.sequences(rows)
        assert torch.equal(valid, there)
        assert x.dtype == stored.dtype == torch.bfloat16
        assert torch.equal(x, stored)
    dropped = int(tokens.valid.sum() - source.sequences(slice(None))[1].sum())
    assert (dropped >= 4) == (strange and sinks == "drop")
    part, rows = stream.held(source, np.array([0, 3, 4]))
    assert rows.tolist() == [0, 1, 2]
    assert torch.equal(part.x(slice(None)), kept.x([0, 3, 4]))
    assert torch.equal(part.read, kept.read[[0, 3, 4]])
    whole, rows = stream.held(kept, np.array([4]))
    assert (whole is kept, rows.tolist()) == (True, [4])


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4))
@settings(deadline=None)
def test_compacted_moves_what_is_read_to_the_left_in_its_order(read):
    x = torch.arange(1.0, 3 * len(read) + 1).view(len(read), 3, 1)
    moved, valid = stream.compacted(x, torch.tensor(read))
    for row, reads in enumerate(read):
        expected = [x[row, i, 0].item() for i in range(3) if reads[i]]
        padded = expected + [0.0] * (3 - len(expected))
        assert moved[row, :, 0].tolist() == padded
        assert valid[row].tolist() == [True] * len(expected) + [False] * (3 - len(expected))


def test_a_sink_is_ten_times_the_median_norm_of_the_store_beside():
    x = torch.ones(3, 4, 2)
    x[1, 1] = 300.0
    beside = toys.store_of(x, torch.ones(3, 4, dtype=torch.bool))
    assert stream.sink_norm(beside) == pytest.approx(10 * 2**0.5, rel=1e-2)


def test_auto_takes_the_store_that_is_there_or_fits_in_half_of_the_free_disk_and_says_why(
    lm, tmp_path, monkeypatch, capsys
):
    tokens = language_model.tokenize(lm, ["the quick brown fox " * 20], seq=9)
    own = {"name": "toy", "hook": toys.HOOK, "cache_dir": tmp_path / "cache"}
    usage = namedtuple("usage", "total used free")
    needed = 2 * tokens.valid.numel() * lm.d_in
    for free, kind in ((2 * needed, "store"), (2 * needed - 1, "stream")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(0, 0, free))
        assert stream.chosen_kind(lm, tokens, **own) == kind
        said = {"store": "stored", "stream": "streamed"}[kind]
        assert f"toy, training: activations are {said}: they need" in capsys.readouterr().err
    monkeypatch.undo()
    store.activation_store(lm, tokens, hook=toys.HOOK, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 0))
    assert stream.chosen_kind(lm, tokens, **own) == "store"
    assert "they are there already" in capsys.readouterr().err


@pytest.mark.parametrize("packed", [False, True])
def test_batches_of_a_stream_are_those_of_the_store(config, tmp_path, packed):
    unit = toys.toy_unit(config, tmp_path / "unit")
    other = streamed(unit, tmp_path / "streamed")
    if packed:
        rows = texts.pack_rows(unit.data.train.tokens.valid.sum(1), config.seq)
        unit, other = (replace(u, data=replace(u.data, packed=rows)) for u in (unit, other))
    for step in range(5):
        for left, right in zip(experiment.batch_at(unit, step), feeding.batch_at(other, step),
                               strict=True):  # fmt: skip
            assert torch.equal(left, right)
        starts = feeding.starts_at(unit, step), feeding.starts_at(other, step)
        lists = [None if begins is None else begins.tolist() for begins in starts]
        assert lists[0] == lists[1]
        assert (lists[0] is not None) == packed


def test_packed_sequences_lose_the_sinks_of_a_stream_and_documents_begin_behind_them(
    lm, tmp_path, monkeypatch
):
    tokens = language_model.tokenize(
        lm, [f"{i} the quick brown fox" + " dog" * (i % 3) for i in range(8)], seq=9
    )
    packed = texts.pack_rows(tokens.valid.sum(1), 24)
    with_sinks(tokens, monkeypatch)
    clean = store.activation_store(lm, tokens, hook=toys.HOOK, cache_dir=tmp_path)
    source = stream.Stream(lm=lm, hook=toys.HOOK, tokens=tokens, most=stream.sink_norm(clean))
    data = plan.Data(name="toy", train=source, val=clean, packed=packed)
    config = plan.Config(seq=24, pieces=2, batch=1)
    unit = plan.Unit(config=config, data=data, seed=0, folder=tmp_path, log=tmp_path,
                     device=lm.device, low=torch.float32)  # fmt: skip
    x, valid, starts = feeding.sequences_at(unit, slice(0, len(packed.valid)))
    assert torch.equal(valid.sum(1) > 0, packed.valid.any(1))
    assert valid.sum() == clean.tokens.n_tokens == tokens.n_tokens - 4
    assert starts is not None
    assert starts.sum() == len(clean)
    assert not x[~valid].any()
    seen = sorted(x[valid].float().sum(-1).tolist())
    stored = clean.x(slice(None))[clean.tokens.valid].sum(-1)
    assert seen == pytest.approx(sorted(stored.tolist()))


# ------------------------------------------------------------------------------ the thread ahead


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 4))
@settings(deadline=None, max_examples=20)
def test_made_ahead_gives_every_item_in_order(items, depth):
    with feeding.made_ahead(lambda item: item + 1, items, depth) as made:
        assert list(made) == [item + 1 for item in items]


def test_no_more_is_made_ahead_than_is_asked_for_and_the_thread_ends_with_the_block():
    begun = []
    with feeding.made_ahead(lambda item: begun.append(item) or item, range(100), 2) as made:
        assert next(made) == 0
        time.sleep(0.1)
        assert len(begun) <= 4
    assert len(begun) <= 5
    assert not [t for t in threading.enumerate() if t.name == "made ahead"]


def test_an_error_ahead_is_raised_where_its_item_is_asked_for_and_interrupts_end_the_thread():
    def make(item: int) -> int:
        if item == 3:
            raise ValueError("sequence 3 gives NaN")
        return item

    got = []
    with feeding.made_ahead(make, range(9)) as made, pytest.raises(ValueError, match="3 gives NaN"):
        got += [item for item in made if not got.append(item)]
    assert got[:3] == [0, 1, 2]
    with pytest.raises(KeyboardInterrupt), feeding.made_ahead(make, range(3)) as made:
        raise KeyboardInterrupt
    assert not [t for t in threading.enumerate() if t.name == "made ahead"]


@pytest.mark.parametrize("steps", [range(0), range(5), range(3, 8), range(1, 2)])
def test_ahead_gives_the_batches_of_the_steps(config, tmp_path, steps):
    unit = toys.toy_unit(config, tmp_path / "unit")
    with feeding.ahead(unit, steps) as batches:
        for step in steps:
            batch = next(batches)
            x, weight = feeding.batch_at(unit, step)
            assert torch.equal(batch.x, x)
            assert torch.equal(batch.weight, weight)
            assert len(batch.rows) == len(x)
        assert next(batches, None) is None


def test_an_order_is_a_permutation_drawn_once():
    order = feeding.order_of(50, 3)
    assert sorted(order.tolist()) == list(range(50))
    assert feeding.order_of(50, 3) is order
    assert not torch.equal(feeding.order_of(50, 4), order)
    drawn = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    assert torch.equal(order, drawn)


# -------------------------------------------------------------------------------------- training


def test_a_streamed_fit_is_the_stored_one_to_the_bit_also_where_it_was_stopped(config, tmp_path):
    unit = toys.toy_unit(config, tmp_path / "unit")
    other = streamed(unit, tmp_path / "streamed")
    whole, _ = experiment.fit(
        unit, "static", lambda: experiment.start_static(unit), range(8), ALONE
    )
    start = lambda: experiment.start_static(other)  # noqa: E731
    experiment.fit(other, "static", start, range(5), ALONE)
    again, _ = experiment.fit(other, "static", start, range(8), ALONE)
    assert same(bits(whole), bits(again))
    logs = ([json.loads(line) for line in u.log.read_text().splitlines()] for u in (unit, other))
    assert [[line["loss"] for line in log] for log in logs] == [
        [json.loads(line)["loss"] for line in unit.log.read_text().splitlines()]
    ] * 2


def test_an_error_of_the_language_model_ends_a_streamed_fit_in_one_line(
    config, tmp_path, monkeypatch
):
    other = streamed(toys.toy_unit(config, tmp_path / "unit"), tmp_path / "streamed")
    start, passes, residual = experiment.start_static(other), [], language_model.residual

    def failing(lm, ids, hook):
        passes.append(ids)
        return residual(lm, ids, hook) * (float("nan") if len(passes) > 2 else 1.0)

    monkeypatch.setattr(language_model, "residual", failing)
    with pytest.raises(ValueError, match="gives NaN or infinite activations") as caught:
        experiment.fit(other, "static", lambda: start, range(12), ALONE)
    assert "\n" not in str(caught.value)
    assert not [t for t in threading.enumerate() if t.name == "made ahead"]


def test_a_streamed_run_has_the_numbers_of_the_stored_one_and_stores_no_training_text(
    config, tmp_path
):
    config = replace(config, seeds=1, cache_dir=str(tmp_path / "cache"))
    numbers = []
    for kind in ("stream", "store"):
        out = tmp_path / kind
        info = experiment.run(out, replace(config, activations=kind))[config.datasets]["means"]
        numbers.append({k: v for k, v in info.items() if "second" not in k and "time" not in k})
        stores = [p for p in (tmp_path / "cache" / "activations").iterdir() if p.is_dir()]
        assert len(stores) == (1 if kind == "stream" else 2)
    assert numbers[0] == numbers[1]
    assert plan.run_config(tmp_path / "stream")[0].activations == "stream"


def test_the_kinds_of_activations_are_named_and_run_4_does_without_a_stream(config, tmp_path):
    with pytest.raises(ValueError, match="activations is store, stream or auto; got 'disk'"):
        plan.check_config(replace(config, activations="disk"))
    with pytest.raises(ValueError, match="device 'foo' cannot be used here"):
        plan.check_config(replace(config, lm_device="foo"))
    with pytest.raises(ValueError, match="run_4 trains every system on the same stored"):
        plan.refuse_other(tmp_path / "run_4", replace(config, activations="stream"), "run_4")
    other = streamed(toys.toy_unit(config, tmp_path / "unit"), tmp_path / "streamed")
    with pytest.raises(ValueError, match="is streamed: this needs --activations=store"):
        _ = other.data.stored
    assert plan.device_of(replace(config, device="cpu")) == torch.device("cpu")
