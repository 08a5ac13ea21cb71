"""Hypothesis strategies for the shapes and values the library takes."""

from itertools import pairwise
from types import SimpleNamespace

import hypothesis.extra.numpy as hnp
import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

import tsae
from tsae import Dials

settings.register_profile("tsae", deadline=None)  # a busy machine is no failure
settings.load_profile("tsae")

finite = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
grid = st.integers(-8, 8).map(float)  # sums and products of these are exact in float32

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def tensors(
    *shape: int, elements: st.SearchStrategy[float] = finite
) -> st.SearchStrategy[torch.Tensor]:
    return hnp.arrays(np.float32, shape, elements=elements).map(torch.from_numpy)


@st.composite
def sizes(draw: st.DrawFn, *names: str, max_size: int = 7) -> dict[str, int]:
    """One size a name, all distinct, so that a swapped axis cannot pass for the right one."""
    n = st.lists(st.integers(1, max_size), min_size=len(names), max_size=len(names), unique=True)
    return dict(zip(names, draw(n), strict=True))


def cut(data: st.DataObject, seq: int) -> list[tuple[int, int]]:
    """A sequence's pieces, empty ones among them."""
    cuts = sorted(data.draw(st.lists(st.integers(0, seq), max_size=4), label="cuts"))
    return list(pairwise([0, *cuts, seq]))


@st.composite
def dense_codes(
    draw: st.DrawFn, max_doc: int = 4, max_seq: int = 7, max_sae: int = 5
) -> dict[str, torch.Tensor]:
    """Arguments of `codes_from_dense`: small whole activations, many of them 0, ragged chunks of
    shared documents.
    """
    doc, seq, d_sae = (draw(st.integers(1, top)) for top in (max_doc, max_seq, max_sae))
    return {
        "acts": draw(
            tensors(
                doc, seq, d_sae, elements=st.sampled_from([0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 3.0, 5.0])
            )
        ),
        "lengths": torch.tensor([seq, *(draw(st.integers(0, seq)) for _ in range(doc - 1))]),
        "document": torch.tensor([draw(st.integers(0, 2)) for _ in range(doc)]),
        "start": torch.tensor([draw(st.sampled_from([0, 7])) for _ in range(doc)]),
    }


eighths = st.integers(-8, 8).map(
    lambda n: n / 8
)  # products of two and their sums are exact in float32


@st.composite
def cases(draw: st.DrawFn) -> SimpleNamespace:
    """A whole model, dials and activations; all sizes distinct, pre-activations exact."""
    n = draw(sizes("batch", "seq", "d_in", "d_sae", "hidden_enc", "hidden_dec"))
    d_in, d_sae, enc, dec = n["d_in"], n["d_sae"], n["hidden_enc"], n["hidden_dec"]
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    shapes |= {"enc_W_x": (d_in, 4 * enc), "enc_W_h": (enc, 4 * enc), "enc_b": (4 * enc,)}
    shapes |= {"W_gate": (d_sae, enc), "b_gate": (d_sae,), "W_out": (dec, d_in)}
    shapes |= {"dec_W_x": (d_in, 4 * dec), "dec_W_h": (dec, 4 * dec), "dec_b": (4 * dec,)}
    named = {name: draw(tensors(*shape, elements=eighths)) for name, shape in shapes.items()}
    named |= {
        "bridge": draw(tensors(d_sae, elements=st.sampled_from([0.25, 1.0, 3.0]))),
        "scale": torch.tensor(2.0),
    }
    dials = Dials(
        k=draw(st.integers(1, d_sae)),
        window=draw(st.integers(1, 5)),
        tau=draw(st.sampled_from([0.5, 4.0, float("inf")])),
        cap=draw(st.sampled_from([0.25, 2.0, float("inf")])),
        beta=draw(st.sampled_from([0.0, 0.5, 4.0])),
        mix=draw(st.sampled_from([0.0, 0.5, 1.0])),
        gate=draw(st.booleans()),
        recur=draw(st.booleans()),
    )
    x = draw(tensors(n["batch"], n["seq"], d_in, elements=eighths))
    return SimpleNamespace(params=tsae.params_from(named), dials=dials, x=x, **n)
