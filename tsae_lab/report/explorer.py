"""What the page's explorer holds of one text: a card per feature, some documents token by token.

A card has what the text's codes say of a feature: where it is most active, how strongly, how long
it stays on, how stable it is. All of it is computed by the measures; nothing is made up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

import metrics
from tsae_lab.measures import evaluation, lifetimes
from tsae_lab.sections.context import Context, Subject, top_words
from tsae_lab.sections.stability import LAGS

CONTEXTS, REACH = 6, 8  # contexts on a card, and tokens shown on either side of each
BINS = 12  # of the histogram of a feature's activations, from 0 to its peak
LIVES = 17  # t = 0..16 tokens of the survival curve
LEADING = 16  # rows of a document's timeline
NOWHERE = 2**32 - 1  # in `places`: fewer contexts than there is room for


@dataclass(frozen=True, eq=False)
class Explorer:
    """One text: what is told in words, and the arrays, named `MODEL.array`."""

    about: dict[str, Any]
    arrays: dict[str, np.ndarray]


def explorer_of(
    context: Context, *, documents: int, features: int, tokens: int = 252, seed: int = 0
) -> Explorer:
    """Cards of the `features` most active features; at most `tokens` of a sample of `documents`.

    The documents are drawn with `seed`.
    """
    ids = context.ids.numpy()
    vocabulary, spelled = np.unique(ids, return_inverse=True)
    drawn = drawn_documents(context, documents, seed)
    every = context.store.tokens
    about: dict[str, Any] = {
        "text": context.dataset,
        "seed": context.seed,
        "tokens": every.n_tokens,
        "seq": ids.shape[1],
        "n_documents": len(every.document[every.valid.any(1)].unique()),
        "words": [context.words[int(i)] for i in vocabulary],
        "models": [],
    }
    arrays = {
        "tokens": _small(spelled.reshape(-1)),
        "lengths": _small(every.valid.sum(1).numpy()),
        "document": every.document.numpy().astype(np.uint32),
    }
    for subject in context.subjects:
        cards = feature_cards(subject, features)
        sample, timelines = sampled(subject, context, drawn, tokens)
        words = top_words(subject.codes, context, n=5)
        about["models"].append(
            {
                "name": subject.name,
                "slug": subject.slug,
                "d_sae": subject.codes.d_sae,
                "k": sample["idx"].shape[1],
                "alive": int((metrics.firing_rate(subject.codes) > 0).sum()),
                "fve": subject.fve,
                "words": [words.get(int(f), "") for f in cards["feature"]],
                "timelines": timelines,
            }
        )
        arrays |= {f"{subject.slug}.{name}": array for name, array in (cards | sample).items()}
    return Explorer(about, arrays)


def drawn_documents(context: Context, n: int, seed: int) -> list[int]:
    """Up to `n` of the text's documents, drawn at random, in the order of their numbers."""
    tokens = context.store.tokens
    numbers = tokens.document[tokens.valid.any(1)].unique()
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    return sorted(numbers[order[:n]].tolist())


def _small(numbers: Int[np.ndarray, "..."]) -> np.ndarray:
    """Whole numbers >= 0 in two bytes each where these hold them, else in four."""
    return numbers.astype(np.uint16 if numbers.max(initial=0) < 2**16 else np.uint32)


# -------------------------------------------------------------------------------------- the cards


def feature_cards(subject: Subject, n: int) -> dict[str, np.ndarray]:
    """Arrays with one row per feature, of the `n` most active, in the order of their numbers.

    `feature`, `active` (tokens), `peak`, `births`, `deaths`, `persistence` and `mean_64` (NaN: not
    known), `kappa` by lag, `eligible`; `ended` and `at_risk`, the life table at 0..16 tokens;
    `histogram`; `places`, the tokens of its strongest contexts, and `strengths` around them, 0 to
    255 for 0 to the peak.
    """
    codes = subject.codes
    counts = np.bincount(codes.idx[codes.vals > 0].numpy(), minlength=codes.d_sae)
    rows = np.sort(np.argsort(-counts, kind="stable")[: min(n, int((counts > 0).sum()))])
    all_runs, life = lifetimes.runs(codes), lifetimes.lifecycle(codes)
    ended, at_risk = lifetimes.life_table(
        all_runs, all_runs.feature, codes.d_sae, max(all_runs.longest, LIVES - 1)
    )
    lags = [lag for lag in LAGS if lag < all_runs.longest]
    kappa, eligible = np.full((len(LAGS), codes.d_sae), np.nan), np.zeros(codes.d_sae, bool)
    if lags:
        score = metrics.tss(codes, subject.dec_norm, lags)
        kappa[: len(lags)], eligible = score.kappa, score.eligible
    by_feature = {
        "active": counts.astype(np.uint32),
        "peak": life.peak.numpy().astype(np.float32),
        "births": life.births.numpy().astype(np.uint32),
        "deaths": life.deaths.numpy().astype(np.uint32),
        "persistence": lifetimes.persistence(all_runs)[1].astype(np.float32),
        "mean_64": lifetimes.feature_restricted_mean(all_runs, 64).astype(np.float32),
        "kappa": kappa.T.astype(np.float32),
        "eligible": eligible.astype(np.uint8),
        "ended": ended[:, :LIVES].astype(np.uint32),
        "at_risk": at_risk[:, :LIVES].astype(np.uint32),
    }
    own = {name: array[rows] for name, array in by_feature.items()}
    return {"feature": rows.astype(np.uint32)} | own | _contexts(subject, rows)


def _contexts(subject: Subject, rows: Int[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
    """Histogram, and the places and activations of the strongest contexts, of each feature."""
    matrix, seq = metrics.token_matrix(subject.codes).tocsc(), subject.codes.valid.shape[1]
    width, n_slots = 2 * REACH + 1, subject.codes.valid.numel()
    histogram = np.zeros((len(rows), BINS), np.uint32)
    places = np.full((len(rows), CONTEXTS), NOWHERE, np.uint32)
    strengths = np.zeros((len(rows), CONTEXTS, width), np.uint8)
    around, share = np.arange(-REACH, REACH + 1), np.zeros(n_slots + 2 * REACH)
    for row, feature in enumerate(rows.tolist()):
        entries = slice(matrix.indptr[feature], matrix.indptr[feature + 1])
        slots, values = matrix.indices[entries], matrix.data[entries]
        scaled = values / values.max()
        histogram[row] = np.histogram(scaled, BINS, (0.0, 1.0))[0]
        top = slots[np.argsort(values.max() - values, kind="stable")[:CONTEXTS]]
        places[row, : len(top)] = top
        share[slots + REACH] = scaled
        near = top[:, None] + around
        inside = near // seq == (top // seq)[:, None]
        shown = np.where(inside, share[near + REACH], 0.0)
        strengths[row, : len(top)] = np.ceil(255 * shown)
        share[slots + REACH] = 0.0
    return {"histogram": histogram, "places": places, "strengths": strengths}


# ---------------------------------------------------------------------------------- the documents


def sampled(
    subject: Subject, context: Context, documents: Sequence[int], most: int
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """The first `most` tokens of each document: arrays (tokens k), and a timeline per document.

    `idx`, `pre`, `added`, `gate`: the k features of each token and how each value came about. A
    timeline has its document, its number of `tokens`, the `slots` where they stand in the text, its
    leading features, and the (row, token) of every birth and death seen.
    """
    tokens = context.store.tokens
    device = subject.sae.params.static.W_dec.device
    parts: dict[str, list[np.ndarray]] = {"idx": [], "pre": [], "added": [], "gate": []}
    timelines = []
    for document in documents:
        rows = ((tokens.document == document) & tokens.valid.any(1)).nonzero()[:, 0]
        rows = rows[tokens.start[rows].argsort(stable=True)]
        seen = evaluation.anatomy(subject.sae, context.store.x(rows).to(device))
        layout = {name: getattr(tokens, name)[rows] for name in ("valid", "document", "start")}
        codes = metrics.codes_from_topk(seen.vals, seen.idx, subject.codes.d_sae, **layout)
        shown = lifetimes.evolution(codes, document, n_features=LEADING, max_tokens=most)
        for name, arrays in parts.items():
            arrays.append(getattr(seen, name).float().numpy()[shown.chunk, shown.position])
        slots = rows.numpy()[shown.chunk] * tokens.valid.shape[1] + shown.position
        timelines.append(
            {
                "document": document,
                "slots": slots.tolist(),
                "index": shown.index.tolist(),
                "seams": shown.seams.tolist(),
                "leading": shown.features.tolist(),
                "alike": shown.alike.tolist(),
                "births": np.argwhere(shown.births).tolist(),
                "deaths": np.argwhere(shown.deaths).tolist(),
            }
        )
    stacked = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    halves = {name: stacked[name].astype(np.float16) for name in ("pre", "added", "gate")}
    return {"idx": _small(stacked["idx"].astype(np.int64))} | halves, timelines
