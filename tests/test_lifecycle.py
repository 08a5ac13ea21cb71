"""The lifecycle against a loop over streams, tokens and features, in any pieces."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cut, sizes, tensors

import tsae
from tsae import Codes

COUNTS = ("fired", "peak", "births", "deaths", "gaps", "gap_tokens", "age_sum", "oldest")
mostly_off = st.sampled_from([0.0, 0.0, 1.0, 2.0, 5.0])


def lifecycle_by_loop(chunks):
    """Counts of every feature over (dense acts without padding, opens) of each stream's chunks."""
    d_sae = chunks[0][0].shape[1]
    out = {name: [0.0] * d_sae for name in COUNTS}
    for acts, opens in chunks:
        for f, column in enumerate(acts.t().tolist()):
            age, off = 0, None  # off: tokens since its last run in this chunk, None before it
            for t, value in enumerate(column):
                if value == 0:
                    out["deaths"][f] += age > 0
                    off = 1 if age > 0 else off if off is None else off + 1
                    age = 0
                    continue
                if age == 0:
                    out["births"][f] += t > 0 or opens
                    out["gaps"][f] += off is not None
                    out["gap_tokens"][f] += off or 0
                age += 1
                out["fired"][f] += 1
                out["peak"][f] = max(out["peak"][f], value)
                out["age_sum"][f] += age
                out["oldest"][f] = max(out["oldest"][f], age)
    return out


def idle_by_loop(acts, real):
    """Tokens since each feature was on in any stream; the streams read a token each, in turn."""
    idle = [0] * acts.shape[2]
    for t in range(acts.shape[1]):
        for f in range(acts.shape[2]):
            idle[f] += int(real[:, t].sum())
            if ((acts[:, t, f] > 0) & real[:, t]).any():
                idle[f] = 0
    return idle


def values_of(life):
    """All tensors of a lifecycle by name, those of its streams among them."""
    named = dict(vars(life))
    streams = named.pop("streams")
    return named | (vars(streams) if streams is not None else {})


def advance(life, acts, weight, pieces):
    """The lifecycle after dense codes, in pieces; no call may write to the state it is given."""
    vals, idx = acts.topk(acts.shape[2])
    for begin, end in pieces:
        before = {name: tensor.clone() for name, tensor in values_of(life).items()}
        codes = Codes(vals[:, begin:end], idx[:, begin:end])
        after = tsae.advance(life, codes, weight[:, begin:end])
        assert all(torch.equal(before[name], t) for name, t in values_of(life).items())
        life = after
    return life


@settings(max_examples=200)
@given(st.data(), sizes("batch", "seq", "d_sae"), st.booleans())
def test_the_lifecycle_equals_a_loop_over_tokens_in_any_pieces(data, n, padded):
    life, chunks, passed, real_all = tsae.start_lifecycle(n["d_sae"], torch.zeros(1)), [], [], []
    for _ in range(2):
        opens = data.draw(tensors(n["batch"], elements=st.sampled_from([0.0, 1.0]))) > 0
        shape = n["batch"], n["seq"], n["d_sae"]
        acts = data.draw(tensors(*shape, elements=mostly_off), label="acts")
        weight = torch.ones(n["batch"], n["seq"])
        if padded:  # a token of weight 0 is none, wherever it stands
            weight = data.draw(tensors(*weight.shape, elements=st.sampled_from([0.0, 1.0, 1.0])))
        life = advance(tsae.begin_chunks(life, opens), acts, weight, cut(data, n["seq"]))
        real = weight > 0
        chunks += [(row[keep], bool(o)) for row, keep, o in zip(acts, real, opens, strict=True)]
        passed.append(acts)
        real_all.append(real)
    expected = lifecycle_by_loop(chunks)
    assert {name: getattr(life, name).tolist() for name in COUNTS} == expected
    assert life.idle.tolist() == idle_by_loop(torch.cat(passed, 1), torch.cat(real_all, 1))
    assert life.tokens.item() == sum(len(acts) for acts, _ in chunks)


@settings(max_examples=50)
@given(st.data(), sizes("batch", "seq", "d_sae"))
def test_without_streams_what_needs_no_run_is_counted_the_same(data, n):
    acts = data.draw(tensors(*n.values(), elements=mostly_off))
    weight = data.draw(tensors(n["batch"], n["seq"], elements=st.sampled_from([0.0, 1.0])))
    start, pieces = tsae.start_lifecycle(n["d_sae"], acts), cut(data, n["seq"])
    bare = advance(start, acts, weight, pieces)
    followed = tsae.begin_chunks(start, torch.ones(n["batch"], dtype=torch.bool))
    followed = advance(followed, acts, weight, pieces)
    for name in ("tokens", "idle", "fired", "peak"):
        assert torch.equal(getattr(bare, name), getattr(followed, name))
    assert bare.streams is None
    assert not any(getattr(bare, name).any() for name in COUNTS[2:])


@pytest.mark.parametrize(
    ("second", "births", "deaths", "gaps"),
    [
        ("goes on", 1, 0, 0),  # one run over both calls
        ("inside its document", 1, 0, 0),  # the seam hides the end of a run and the next beginning
        ("opens a document", 2, 0, 0),  # nothing can have been on before its first token
    ],
)
def test_what_a_seam_hides_is_neither_a_birth_nor_a_death(second, births, deaths, gaps):
    on, weight = torch.ones(1, 3, 1), torch.ones(1, 3)
    life = tsae.begin_chunks(tsae.start_lifecycle(1, on), torch.tensor([True]))
    life = advance(life, on, weight, [(0, 3)])
    if second != "goes on":
        life = tsae.begin_chunks(life, torch.tensor([second == "opens a document"]))
    life = advance(life, on, weight, [(0, 3)])
    assert (life.births.item(), life.deaths.item(), life.gaps.item()) == (births, deaths, gaps)
    assert life.oldest.item() == (6 if second == "goes on" else 3)
    assert life.fired.item() == life.tokens.item() == 6


def test_a_lifecycle_without_features_tokens_or_rows_is_fine_and_foreign_rows_are_refused():
    life = tsae.begin_chunks(tsae.start_lifecycle(2, torch.ones(1)), torch.tensor([True, False]))
    again = advance(life, torch.zeros(2, 0, 2), torch.zeros(2, 0), [(0, 0)])
    assert all(torch.equal(values_of(again)[name], t) for name, t in values_of(life).items())
    empty = tsae.start_lifecycle(0, torch.ones(1))
    assert advance(empty, torch.zeros(1, 3, 0), torch.ones(1, 3), [(0, 3)]).tokens == 3
    with pytest.raises(ValueError, match="has 2 streams; got 3 rows"):
        advance(life, torch.zeros(3, 1, 2), torch.ones(3, 1), [(0, 1)])


def test_a_feature_goes_through_its_stages():
    acts = torch.zeros(1, 12, 5)
    acts[0, :, 0] = 1.0  # on from the first token: its first run
    acts[0, [0, 1, 11], 1] = 1.0  # came back
    acts[0, 8, 2] = 1.0  # off for 3
    acts[0, 5, 3] = 1.0  # off for 6
    start = tsae.start_lifecycle(5, acts)
    life = advance(
        tsae.begin_chunks(start, torch.tensor([True])), acts, torch.ones(1, 12), [(0, 12)]
    )
    stages = tsae.stage(life, dormant_after=3, dead_after=6).tolist()
    assert stages == [tsae.BORN, tsae.ACTIVE, tsae.DORMANT, tsae.DEAD, tsae.DEAD]
    late = tsae.stage(life, dormant_after=3, dead_after=99).tolist()
    assert late[3:] == [tsae.DORMANT, tsae.UNBORN]
    assert tsae.stage(start, dead_after=2).tolist() == [tsae.UNBORN] * 5
    for dormant, dead in ((0, 1), (4, 3)):
        message = f"dormant_after <= dead_after; got {dormant}, {dead}"
        with pytest.raises(ValueError, match=message):
            tsae.stage(life, dormant_after=dormant, dead_after=dead)


def test_the_codes_values_get_no_gradient_from_the_lifecycle():
    vals = torch.ones(1, 2, 1, requires_grad=True)
    life = tsae.start_lifecycle(3, vals.detach())
    life = tsae.advance(life, Codes(vals, torch.ones(1, 2, 1, dtype=torch.int64)), torch.ones(1, 2))
    assert not any(getattr(life, f.name).requires_grad for f in fields(life) if f.name != "streams")
    assert replace(life, streams=None).peak.tolist() == [0.0, 1.0, 0.0]
