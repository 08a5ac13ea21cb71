"""Feature absorption on whole sequences (Chanin et al. 2024, arXiv 2409.14507).

A feature of a concept is absorbed where it stays off on a token of the concept and a more special
feature, whose decoder row leans towards the concept, does its work. SAEBench encodes single tokens
for it, which is an empty memory of a TSAE; here a token's code comes after all that stands before
it, and a concept is the letter that a word begins with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import metrics
from metrics import CodedText

LEAN = 0.1  # least cosine of an absorbing feature's decoder row and the concept
SHARE = 0.4  # of the code's projection on the concept, that one absorbing feature holds
MOST_MAIN, MOST_ABSORBING = 5, 3  # features per concept; per token
GAIN = 0.03  # of F1, that a further main feature brings
LEAST = 20  # tokens of a concept that the probe finds, on either side of the split


@dataclass(frozen=True, eq=False)
class Absorbed:
    """What a code does with one concept, on held-out words that a probe on x finds."""

    n: int
    """tokens of the concept that the probe finds"""
    main: tuple[int, ...]
    """the concept's features: those that are active on it, by F1"""
    full: Bool[np.ndarray, " n"]
    """whether no main feature is active, and one absorbing feature holds 40 % of the projection"""
    part: Float[np.ndarray, " n"]
    """share of the main and absorbing features' projection that the absorbing ones hold, in [0, 1];
    0 where neither has any"""


def absorbed(
    x: Float[np.ndarray, "tokens d_in"],
    codes: Any,
    W_dec: Float[np.ndarray, "d_sae d_in"],
    concept: Bool[np.ndarray, " tokens"],
    words: Int[np.ndarray, " tokens"],
) -> Absorbed | None:
    """Absorption of a concept by the features of `codes`, sparse (tokens d_sae).

    Every second word, of the concept and of the others, is for choosing the direction (logistic
    regression on x) and the main features; the rest is measured. None where fewer than 20 tokens
    of the concept are on either side. Unlike the paper, main features are those whose being active
    together has the best F1, and what counts is the projection, not an ablation.
    """
    train = _every_second(words, concept)
    if min((concept & train).sum(), (concept & ~train).sum()) < LEAST:
        return None
    direction, finds = _direction(x, concept, train)
    test = np.flatnonzero(concept & ~train & finds)
    if len(test) < LEAST:
        return None
    main = _main(codes[train], concept[train])
    lean = W_dec @ direction
    work = np.asarray(codes[test].multiply(np.maximum(lean, 0)[None]).todense())
    leans = lean > LEAN * np.linalg.norm(W_dec, axis=1)
    leans[list(main)] = False
    others = -np.sort(-work * leans, axis=1)[:, :MOST_ABSORBING]
    own, absorbing = work[:, list(main)].sum(1), others.sum(1)
    off = np.asarray(codes[test][:, list(main)].sum(1)).ravel() == 0
    full = off & (others[:, 0] > 0) & (others[:, 0] >= SHARE * work.sum(1))
    both = own + absorbing
    shares = np.divide(absorbing, both, out=np.zeros_like(both), where=both > 0)
    return Absorbed(n=len(test), main=main, full=full, part=shares)


def _every_second(words: np.ndarray, concept: np.ndarray) -> np.ndarray:
    """Whether a token's word is one of every second, of the concept's and of the others' words."""
    train = np.zeros(len(words), dtype=bool)
    for side in (concept, ~concept):
        train[side] = np.unique(words[side], return_inverse=True)[1] % 2 == 0
    return train


def _direction(
    x: np.ndarray, concept: np.ndarray, train: np.ndarray
) -> tuple[Float[np.ndarray, " d_in"], Bool[np.ndarray, " tokens"]]:
    """The concept's direction in x, of norm 1, and the tokens that the probe takes for it."""
    scale = max(float(x[train].std()), 1e-12)  # one number: the geometry of x stays
    scaled = ((x - x[train].mean(0)) / scale).astype(np.float64)
    probe = LogisticRegression(class_weight="balanced", max_iter=300)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # as in `probes`
        finds = probe.fit(scaled[train], concept[train]).predict(scaled)
    return probe.coef_[0] / np.linalg.norm(probe.coef_[0]), finds.astype(bool)


def _main(codes: Any, concept: np.ndarray) -> tuple[int, ...]:
    """Features whose being active together finds the concept best: the best by F1, then others
    while they bring 0.03.
    """
    active = (codes > 0).astype(np.float64).tocsc()
    hits, fires = active.T @ concept.astype(np.float64), np.asarray(active.sum(0)).ravel()
    f1 = 2 * hits / np.maximum(fires + concept.sum(), 1)
    main: list[int] = []
    together, best = np.zeros(len(concept), dtype=bool), 0.0
    for feature in np.argsort(-f1, kind="stable")[: 4 * MOST_MAIN].tolist():
        on = together | (np.asarray(active[:, [feature]].todense())[:, 0] > 0)
        score = 2 * (on & concept).sum() / (on.sum() + concept.sum())
        if not main or (score >= best + GAIN and len(main) < MOST_MAIN):
            main, together, best = [*main, feature], on, score
    return tuple(main)


def letters(
    codes: CodedText,
    x: Float[Tensor, "n_seq seq d_in"],
    ids: Int[Tensor, "n_seq seq"],
    words: Mapping[int, str],
    W_dec: Float[Tensor, "d_sae d_in"],
) -> dict[str, Absorbed]:
    """Absorption per letter, on the tokens that begin a word: a space and a letter of a to z.

    Letters with too few tokens are left out.
    """
    first = {i: text[1].lower() for i, text in words.items() if _begins(text)}
    letter = np.array([ord(first.get(i, "\0")) for i in ids.flatten().tolist()])
    rows = np.flatnonzero(codes.valid.flatten().numpy() & (letter > 0))
    read = x.flatten(0, 1)[torch.from_numpy(rows)].float().numpy()
    matrix = metrics.token_matrix(codes)[rows]
    decoder, word = W_dec.detach().cpu().float().numpy(), ids.flatten().numpy()[rows]
    begun = letter[rows]
    by_letter = {
        chr(n): absorbed(read, matrix, decoder, begun == n, word) for n in np.unique(begun)
    }
    return {name: result for name, result in by_letter.items() if result is not None}


def _begins(text: str) -> bool:
    return len(text) > 1 and text[0] in " Ġ▁" and "a" <= text[1].lower() <= "z"
