"""How far an edit reaches: KL of the next-token distributions over ordinary text, and how long one edit is felt.

Does a feature's lifetime predict how long its causal effect lasts? The feature is ablated at one token at which it is
active; the effect at distance d is the KL d tokens later, and its duration the mean distance weighted by that KL.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

import lifetimes
import metrics
from activations import LanguageModel
from corpora import Tokens
from interventions import Above, Edit, Sae, ablate, intervene, residual

ROWS = 16  # texts a call: full logits are wide


@torch.no_grad()
def kl_nats(
    clean: Float[Tensor, "batch seq vocab"], edited: Float[Tensor, "batch seq vocab"]
) -> Float[Tensor, "batch seq"]:
    """`KL(clean || edited)` of the next token at each position, in nats; exactly 0 where the logits are equal."""
    log_p, log_q = clean.float().log_softmax(-1), edited.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def edited_kl(
    above: Above,
    sae: Sae,
    ids: Int[Tensor, "batch total"],
    hidden: Float[Tensor, "batch total d_in"],
    edits: Sequence[tuple[Edit, bool]],
    keep: int,
) -> list[Float[Tensor, "batch keep"]]:
    """KL in nats at the last `keep` positions of texts, with each edit (and whether it propagates) in force."""
    seq = edits[0][0].at.shape[1]
    x, clean, out = hidden[:, -seq:].float(), above(ids, hidden, keep), []
    for edit, propagated in edits:
        text = (x + intervene(sae, x, edit, propagated=propagated)[0]).to(hidden.dtype)
        out.append(kl_nats(clean, above(ids, torch.cat([hidden[:, :-seq], text], 1), keep)).cpu())
    return out


def unrelated_kl(
    lm: LanguageModel,
    above: Above,
    hook: str,
    sae: Sae,
    sets: Sequence[Int[Tensor, " _"]],
    tokens: Tokens,
    rows: Sequence[int],
    *,
    propagated: bool,
) -> list[float]:
    """Nats per token when a set of features is off at every token of these sequences: what the edit does besides."""
    totals, count = np.zeros(len(sets)), 0
    for at in range(0, len(rows), ROWS):
        part = torch.as_tensor(list(rows[at : at + ROWS]))
        ids, valid = tokens.ids[part].long(), tokens.valid[part]
        edits = [(ablate(features, valid.to(lm.device)), propagated) for features in sets]
        found = edited_kl(above, sae, ids, residual(lm, ids, hook), edits, valid.shape[1])
        totals += [float(kl[valid].double().sum()) for kl in found]
        count += int(valid.sum())
    return (totals / count).tolist()


# ---------------------------------------------------------------------------------------------- duration


@dataclass(frozen=True, eq=False)
class Occurrences:
    """Tokens at which features are active, `n_each` a feature, with room after them."""

    feature: Int[np.ndarray, " occurrences"]
    row: Int[np.ndarray, " occurrences"]
    position: Int[np.ndarray, " occurrences"]


def spread_features(found: lifetimes.Runs, n: int, *, tau: int = 16, min_deaths: int = 5) -> Int[np.ndarray, " n"]:
    """Up to `n` features, evenly spread over the ranks of their restricted mean lifetime, of those that have one."""
    mean = lifetimes.feature_restricted_mean(found, tau, min_deaths=min_deaths)
    known = np.flatnonzero(mean > 0)
    ranked = known[np.argsort(mean[known], kind="stable")]
    return ranked[np.linspace(0, len(ranked) - 1, min(n, len(ranked))).round().astype(np.int64)]


def occurrences(
    codes: metrics.Codes,
    features: Int[np.ndarray, " n"],
    n_each: int,
    *,
    before: int = 16,
    after: int = 12,
    seed: int = 0,
) -> Occurrences:
    """Up to `n_each` random active tokens of each feature, with `before` tokens of text ahead and `after` behind."""
    rng = np.random.default_rng(seed)
    seq = codes.valid.shape[1]
    room = np.zeros(codes.valid.shape, bool)
    room[:, before : max(seq - after, 0)] = codes.valid.numpy()[:, before + after :]
    matrix = metrics.token_matrix(codes).tocsc()
    picked = []
    for feature in features:
        tokens = matrix.indices[matrix.indptr[feature] : matrix.indptr[feature + 1]]
        tokens = tokens[room.flatten()[tokens]]
        kept = rng.permutation(tokens)[:n_each]
        picked += [(feature, token // seq, token % seq) for token in kept]
    table = np.array(picked, np.int64).reshape(-1, 3)
    return Occurrences(*table.T)


def decay(
    lm: LanguageModel,
    above: Above,
    hook: str,
    sae: Sae,
    tokens: Tokens,
    found: Occurrences,
    modes: Sequence[bool],
    *,
    before: int = 16,
    after: int = 12,
) -> list[Float[np.ndarray, "occurrences distance"]]:
    """KL in nats, 0..after tokens behind each occurrence, when its feature is off there alone; for each of `modes`.

    The text starts `before` tokens ahead of the occurrence, so that all texts have one length. Where the feature is
    not active in so short a text, the effect is 0.
    """
    n_prefix = tokens.ids.shape[1] - tokens.valid.shape[1]
    out = [np.zeros((len(found.feature), after + 1)) for _ in modes]
    at = torch.zeros(ROWS, before + 1 + after, dtype=torch.bool)
    at[:, before] = True
    for begin in range(0, len(found.feature), ROWS):
        part = slice(begin, begin + ROWS)
        row, position = found.row[part, None], found.position[part, None]
        text = tokens.ids[row, n_prefix + position + np.arange(-before, after + 1)]
        ids = torch.cat([tokens.ids[: len(text), :n_prefix], text], 1).long()
        edit = ablate(torch.from_numpy(found.feature[part])[:, None], at[: len(ids)].to(lm.device))
        hidden = residual(lm, ids, hook)
        for kl, values in zip(
            out, edited_kl(above, sae, ids, hidden, [(edit, m) for m in modes], after + 1), strict=True
        ):
            kl[part] = values.numpy()
    return out


def durations(kl: Float[np.ndarray, "occurrences distance"], feature: Int[np.ndarray, " occurrences"]) -> tuple[
    Int[np.ndarray, " features"], Float[np.ndarray, " features"]
]:  # fmt: skip
    """Features with any effect, and the KL-weighted mean distance in tokens of each, 0..after."""
    names, row = np.unique(feature, return_inverse=True)
    total = np.bincount(row, kl.sum(1), minlength=len(names))
    moment = np.bincount(row, kl @ np.arange(kl.shape[1]), minlength=len(names))
    kept = total > 0
    return names[kept], moment[kept] / total[kept]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with its 95 % bootstrap interval."""

    rho: float
    low: float
    high: float
    n: int


def spearman(
    one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"], *, n_boot: int = 1000, seed: int = 0
) -> Correlation:
    """Rank correlation of two measures of the same things; 0 in (-1, 1) for fewer than 3, or a constant one."""
    n = len(one)
    if n < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return Correlation(0.0, -1.0, 1.0, n)
    rows = np.random.default_rng(seed).integers(n, size=(n_boot, n))
    ranked = [stats.rankdata(values[rows], axis=1) for values in (one, other)]
    a, b = (r - r.mean(1, keepdims=True) for r in ranked)
    norm = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    rhos = (a * b).sum(1)[norm > 0] / norm[norm > 0]
    rho = float(stats.spearmanr(one, other)[0])  # type: ignore[arg-type]
    return Correlation(rho, float(np.quantile(rhos, 0.025)), float(np.quantile(rhos, 0.975)), n)
