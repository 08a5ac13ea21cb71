"""Features as Neuronpedia imports them: the batches of JSON that SAEDashboard's runner writes.

Keys and meanings are those of SAEDashboard 0.8 (`neuronpedia_dashboard.py`). A feature's direct
logits are its decoder row times the unembedding, without the last norm. Correlations with other
features and neurons are left empty, as SAEDashboard leaves what was not computed.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import metrics
from tsae_lab.sections.context import Context, Subject

TOP, INTERVALS, PER_INTERVAL = 20, 5, 5  # sequences: of the highest peaks, and per interval of them
BARS, TOKENS, NEURONS = 50, 10, 3  # of a histogram; of the most and least favoured; aligned


def live_features(subject: Subject) -> list[int]:
    """The features that are active on the text, in order."""
    return (metrics.firing_rate(subject.codes) > 0).nonzero()[:, 0].tolist()


def feature_batches(
    context: Context, subject: Subject, features: Sequence[int], *, size: int, about: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Batches of `size` features each; `about` has model_id, layer and sae_set."""
    matrix = metrics.token_matrix(subject.codes).tocsc()
    W_dec = subject.sae.params.static.W_dec.detach().cpu().float()
    unembed = context.lm.model.get_output_embeddings().weight.detach().cpu().float()
    words = np.array([*_vocabulary(context, len(unembed))], dtype=object)
    every = context.store.tokens
    shared = {"n_prompts_total": len(every.ids), "dataset": context.dataset}
    shared |= {"n_tokens_in_prompt": every.valid.shape[1], "vector": [], "decoder_weights_dist": []}
    for begin in range(0, len(features), size):
        rows = []
        for feature in features[begin : begin + size]:
            span = slice(*matrix.indptr[feature : feature + 2])
            places, values = matrix.indices[span], matrix.data[span]
            row = {"feature_index": feature} | _aligned(W_dec[feature])
            row |= _logits(W_dec[feature] @ unembed.T, words)
            bars = _histogram(values, "freq_hist_data")
            frac = len(values) / max(subject.codes.n_tokens, 1)
            sequences = _sequences_of(context, subject, feature, places, values)
            rows.append(row | bars | {"frac_nonzero": frac, "activations": sequences} | shared)
        yield about | {"sae_id_suffix": None, "features": rows}


def _vocabulary(context: Context, n: int) -> Iterator[str]:
    """What each token id is called; those that no tokenizer knows have SAEDashboard's name."""
    tokenizer = context.lm.tokenizer
    known = tokenizer.convert_ids_to_tokens(list(range(min(n, len(tokenizer)))))
    for name in known:
        yield str(name).replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")
    yield from ["<|outofrange|>"] * (n - len(known))


def _aligned(row: Float[Tensor, " d_in"]) -> dict[str, list[Any]]:
    """The dimensions of the residual stream that a decoder row holds most of."""
    values, indices = row.topk(min(NEURONS, len(row)))
    out = {"neuron_alignment_indices": indices.tolist(), "neuron_alignment_values": values.tolist()}
    out["neuron_alignment_l1"] = (values / row.abs().sum().clamp(min=1e-12)).tolist()
    for kind in ("neurons", "features"):
        out |= {f"correlated_{kind}_{what}": [] for what in ("indices", "l1", "pearson")}
    return out


def _logits(logits: Float[Tensor, " vocabulary"], words: np.ndarray) -> dict[str, list[Any]]:
    """The tokens that a feature favours most and least, and the histogram of all."""
    n = min(TOKENS, len(logits))
    (most, at_most), (least, at_least) = logits.topk(n), logits.topk(n, largest=False)
    out: dict[str, list[Any]] = {"pos_str": words[at_most.numpy()].tolist()}
    out |= {"pos_values": _rounded(most), "neg_values": _rounded(least)}
    out |= {"neg_str": words[at_least.numpy()].tolist()}
    return out | _histogram(logits.numpy(), "logits_hist_data")


def _histogram(values: np.ndarray, name: str) -> dict[str, list[Any]]:
    """Counts, and the middles of the bars."""
    heights, edges = np.histogram(values, bins=BARS)
    middles = (edges[:-1] + edges[1:]) / 2
    return {f"{name}_bar_heights": heights.tolist(), f"{name}_bar_values": _rounded(middles)}


def _rounded(values: Tensor | np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in values]


def _sequences_of(
    context: Context, subject: Subject, feature: int, places: Int[np.ndarray, " n"],
    values: Float[np.ndarray, " n"],
) -> list[dict[str, Any]]:  # fmt: skip
    """Sequences by the feature's peak in them: the highest, then some of each interval of values.

    `bin_contains` is the share of the active tokens whose value lies in the interval.
    """
    seq = context.store.tokens.valid.shape[1]
    peaks = np.zeros(len(context.store.tokens.ids))
    np.maximum.at(peaks, places // seq, values)
    order, top = np.argsort(-peaks, kind="stable")[: (peaks > 0).sum()], float(values.max())
    bins = [(-1.0, top, -1.0, order[:TOP])]
    for i in reversed(range(INTERVALS)):
        low, high = top * i / INTERVALS, top * (i + 1) / INTERVALS
        inside = order[(peaks[order] > low) & (peaks[order] <= high)][:PER_INTERVAL]
        share = float(((values > low) & (values <= high)).mean())
        bins.append((low, high, share, inside))
    return [
        {"bin_min": round(low, 3), "bin_max": round(high, 3), "bin_contains": round(share, 5)}
        | _activation(context, subject, feature, int(row))
        for low, high, share, inside in bins
        for row in inside
    ]


def _activation(context: Context, subject: Subject, feature: int, row: int) -> dict[str, Any]:
    """The tokens of a sequence, the feature's values on them, and where it peaks."""
    codes = subject.codes
    n = int(codes.valid[row].sum())
    values = (codes.vals[row, :n] * (codes.idx[row, :n] == feature)).sum(-1)
    tokens = [context.words[i] for i in context.ids[row, :n].tolist()]
    peak = int(torch.argmax(values))
    return {"tokens": tokens, "values": _rounded(values), "qualifying_token_index": peak}
