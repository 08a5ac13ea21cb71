"""The lifecycle against a loop over tokens, in any pieces."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cut, sizes, tensors

import tsae

quick = settings(deadline=None, max_examples=25)


def lifecycle_by_loop(acts, starts):
    """Age, idle, fired, births, deaths and peak of every feature, token by token."""
    out = {
        name: [0.0] * acts.shape[1] for name in ("age", "idle", "fired", "births", "deaths", "peak")
    }
    for t, row in enumerate(acts.tolist()):
        for f, value in enumerate(row):
            if out["age"][f] > 0 and (t in starts or value == 0):
                out["deaths"][f] += 1
                out["age"][f] = 0
            if value > 0:
                out["births"][f] += out["age"][f] == 0
                out["age"][f] += 1
                out["fired"][f] += 1
                out["peak"][f] = max(out["peak"][f], value)
            out["idle"][f] = 0 if value > 0 else out["idle"][f] + 1
    return out


def advance(acts, starts, pieces, k=None):
    """The lifecycle of dense codes, in pieces; the state before each piece is checked to be
    untouched.
    """
    life = tsae.start_lifecycle(acts.shape[1], acts)
    vals, idx = acts.topk(k or acts.shape[1])
    for begin, end in pieces:
        before = {name: tensor.clone() for name, tensor in vars(life).items()}
        inside = torch.tensor([s - begin for s in starts if begin <= s < end], dtype=torch.int64)
        after = tsae.advance(life, vals[begin:end], idx[begin:end], inside)
        assert all(torch.equal(tensor, getattr(life, name)) for name, tensor in before.items())
        life = after
    return life


mostly_off = st.sampled_from([0.0, 0.0, 1.0, 2.0, 5.0])


@settings(quick, max_examples=200)
@given(st.data(), sizes("tokens", "d_sae", max_size=12))
def test_the_lifecycle_equals_a_loop_over_tokens_in_any_pieces(data, n):
    acts = data.draw(tensors(n["tokens"], n["d_sae"], elements=mostly_off), label="acts")
    starts = data.draw(st.sets(st.integers(0, n["tokens"] - 1)), label="starts")
    life = advance(acts, starts, cut(data, n["tokens"]))
    expected = lifecycle_by_loop(acts, starts)
    assert life.tokens.item() == n["tokens"]
    assert {name: getattr(life, name).tolist() for name in expected} == expected


@pytest.mark.parametrize(
    ("starts", "pieces", "births", "age"),
    [
        ((), [(0, 6)], 1, 6),
        ((), [(0, 3), (3, 6)], 1, 6),
        ((3,), [(0, 6)], 2, 3),
        ((3,), [(0, 3), (3, 6)], 2, 3),
        ((0, 3), [(0, 3), (3, 3), (3, 6)], 2, 3),
        ((5,), [(0, 2), (2, 5), (5, 6)], 2, 1),
        ((1, 2, 5), [(0, 1), (1, 6)], 4, 1),
    ],
)
def test_a_run_ends_at_a_seam_inside_a_piece_and_between_pieces(starts, pieces, births, age):
    life = advance(torch.ones(6, 1), set(starts), pieces)
    assert (life.births.item(), life.deaths.item(), life.age.item()) == (births, births - 1, age)


def test_a_feature_goes_through_its_stages():
    acts = torch.zeros(12, 5)
    acts[:, 0] = 1.0  # on from the first token: its first run
    acts[[0, 1, 11], 1] = 1.0  # came back
    acts[8, 2] = 1.0  # off for 3
    acts[5, 3] = 1.0  # off for 6
    life = advance(acts, set(), [(0, 12)])
    stages = tsae.stage(life, dormant_after=3, dead_after=6).tolist()
    assert stages == [tsae.BORN, tsae.ACTIVE, tsae.DORMANT, tsae.DEAD, tsae.DEAD]
    assert tsae.stage(life, dormant_after=3, dead_after=99).tolist()[3:] == [
        tsae.DORMANT,
        tsae.UNBORN,
    ]
    assert (
        tsae.stage(tsae.start_lifecycle(2, acts), dormant_after=1, dead_after=2).tolist()
        == [tsae.UNBORN] * 2
    )
    for dormant, dead in ((0, 1), (3, 3), (4, 3)):
        with pytest.raises(
            ValueError, match=f"dormant_after < dead_after tokens; got {dormant}, {dead}"
        ):
            tsae.stage(life, dormant_after=dormant, dead_after=dead)
