"""What edits do to the language model on other text than the cases': how much, and for how long."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

import metrics
from tsae import Sae
from tsae_lab.data.language_model import Above, LanguageModel, residual
from tsae_lab.data.splicing import scored_at_once
from tsae_lab.data.texts import Tokens
from tsae_lab.measures.effects import EFFECT_BOOT
from tsae_lab.measures.interventions import Edit, ablate, codes_of, intervene

TEXT_ROWS = 16  # texts per call: full logits are wide
BEFORE, AFTER = 16, 12  # tokens of text around an edit whose effect is timed


@torch.no_grad()
def kl_nats(
    clean: Float[Tensor, "batch seq vocab"], edited: Float[Tensor, "batch seq vocab"]
) -> Float[Tensor, "batch seq"]:
    """`KL(clean || edited)` of the next token in nats; exactly 0 where the logits are equal."""
    kl = torch.empty(clean.shape[:-1], dtype=torch.float32, device=clean.device)
    for row in range(len(clean)):
        for span in scored_at_once(clean, clean.shape[1]):
            log_p, log_q = (logits[row, span].float().log_softmax(-1) for logits in (clean, edited))
            kl[row, span] = (log_p.exp() * (log_p - log_q)).sum(-1)
    return kl.clamp(min=0)


def _edited_kl(
    above: Above,
    sae: Sae,
    ids: Tensor,
    hidden: Tensor,
    edits: Sequence[tuple[Edit, bool]],
    keep: int,
) -> list[Float[Tensor, "batch keep"]]:
    """KL at the last `keep` positions with each edit, and whether it propagates, in force.

    `ids` (batch, total) with the prefix, `hidden` (batch, total, d_in) their residual stream.
    """
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
) -> tuple[Float[np.ndarray, "sets rows"], Int[np.ndarray, " rows"]]:
    """KL in nats with each of `sets` of features off at every token, summed by row, and tokens.

    The ratio of the two sums is the KL per token; a row is what is resampled.
    """
    totals, counts = [], []
    for batch in torch.as_tensor(list(rows)).split(TEXT_ROWS):
        ids, valid = tokens.ids[batch].long(), tokens.valid[batch]
        edits = [(ablate(features, valid.to(lm.device)), propagated) for features in sets]
        by_set = _edited_kl(above, sae, ids, residual(lm, ids, hook), edits, valid.shape[1])
        totals.append([(kl.double() * valid).sum(1).tolist() for kl in by_set])
        counts += valid.sum(1).tolist()
    return np.concatenate(totals, axis=1), np.array(counts)


@dataclass(frozen=True, eq=False)
class Occurrences:
    """Tokens at which features are active, with room for BEFORE and AFTER tokens around them."""

    feature: Int[np.ndarray, " occurrences"]
    row: Int[np.ndarray, " occurrences"]
    position: Int[np.ndarray, " occurrences"]


def spread_features(life: Float[np.ndarray, " d_sae"], n: int) -> Int[np.ndarray, " features"]:
    """Up to `n` features, evenly spread over the ranks of their mean lifetime, of those above 0."""
    known = np.flatnonzero(life > 0)
    ranked = known[np.argsort(life[known], kind="stable")]
    return ranked[np.linspace(0, len(ranked) - 1, min(n, len(ranked))).round().astype(np.int64)]


def edit_places(
    codes: metrics.CodedText, features: Int[np.ndarray, " n"], n_each: int, *, seed: int
) -> Occurrences:
    """Up to `n_each` random active tokens of each feature that have text enough around them."""
    rng = np.random.default_rng(seed)
    seq = codes.valid.shape[1]
    room = np.zeros(codes.valid.shape, bool)
    room[:, BEFORE : max(seq - AFTER, 0)] = codes.valid.numpy()[:, BEFORE + AFTER :]
    matrix = metrics.token_matrix(codes).tocsc()
    picked = []
    for feature in features:
        active = matrix.indices[matrix.indptr[feature] : matrix.indptr[feature + 1]]
        active = active[room.flatten()[active]]
        picked += [(feature, *divmod(token, seq)) for token in rng.permutation(active)[:n_each]]
    return Occurrences(*np.array(picked, np.int64).reshape(-1, 3).T)


def active_places(
    lm: LanguageModel, hook: str, sae: Sae, tokens: Tokens, places: Occurrences, n_each: int
) -> tuple[Occurrences, float | None]:
    """The first `n_each` occurrences of each feature that are active in the short text of `decay`.

    Also the share of all occurrences that are not: in so short a text, what came before is gone.
    None where there is no occurrence.
    """
    n_prefix, active = len(lm.prefix), np.zeros(len(places.feature), bool)
    for start in range(0, len(active), TEXT_ROWS):
        batch = slice(start, start + TEXT_ROWS)
        x = residual(lm, _short_texts(tokens, places, batch), hook)[:, n_prefix:].float()
        codes = codes_of(sae, x[:, : BEFORE + 1])
        feature = torch.from_numpy(places.feature[batch]).to(codes.idx.device)
        fires = (codes.idx[:, -1] == feature[:, None]) & (codes.vals[:, -1] > 0)
        active[batch] = fires.any(1).cpu().numpy()
    rows = np.flatnonzero(active)
    rank = [int((places.feature[rows[:i]] == places.feature[row]).sum())
            for i, row in enumerate(rows)]  # fmt: skip
    rows = rows[np.array(rank, np.int64) < n_each]
    kept = Occurrences(places.feature[rows], places.row[rows], places.position[rows])
    return kept, 1 - float(active.mean()) if len(active) else None


def _short_texts(tokens: Tokens, places: Occurrences, batch: slice) -> Int[Tensor, "rows total"]:
    """Prefix and text of the occurrences, from BEFORE tokens ahead to AFTER behind."""
    n_prefix = tokens.ids.shape[1] - tokens.valid.shape[1]
    row, position = places.row[batch, None], places.position[batch, None]
    text = tokens.ids[row, n_prefix + position + np.arange(-BEFORE, AFTER + 1)]
    return torch.cat([tokens.ids[row[:, 0], :n_prefix], text], 1).long()


def decay(
    lm: LanguageModel,
    above: Above,
    hook: str,
    sae: Sae,
    tokens: Tokens,
    places: Occurrences,
    modes: Sequence[bool],
) -> list[Float[np.ndarray, "occurrences distance"]]:
    """KL in nats, 0..AFTER tokens behind each occurrence, with its feature off there alone.

    One array per entry of `modes`: whether the edit propagates. The text starts BEFORE tokens ahead
    of the occurrence, so that all texts have one length. Where the feature is not active in so
    short a text (see `active_places`), the effect is 0.
    """
    out = [np.zeros((len(places.feature), AFTER + 1)) for _ in modes]
    for start in range(0, len(places.feature), TEXT_ROWS):
        batch = slice(start, start + TEXT_ROWS)
        ids, seq = _short_texts(tokens, places, batch), BEFORE + AFTER + 1
        mask = (torch.arange(seq) == BEFORE).expand(len(ids), seq).to(lm.device)
        edit = ablate(torch.from_numpy(places.feature[batch])[:, None], mask)
        edits = [(edit, propagated) for propagated in modes]
        by_mode = _edited_kl(above, sae, ids, residual(lm, ids, hook), edits, AFTER + 1)
        for kl, values in zip(out, by_mode, strict=True):
            kl[batch] = values.numpy()
    return out


def durations(
    kl: Float[np.ndarray, "occurrences distance"], feature: Int[np.ndarray, " occurrences"]
) -> tuple[Int[np.ndarray, " features"], Float[np.ndarray, " features"]]:
    """Features with any effect, and the KL-weighted mean distance of each, in tokens."""
    names, row = np.unique(feature, return_inverse=True)
    total = np.bincount(row, kl.sum(1), minlength=len(names))
    moment = np.bincount(row, kl @ np.arange(kl.shape[1]), minlength=len(names))
    seen = total > 0
    return names[seen], moment[seen] / total[seen]


def decay_rows(
    kl: Float[np.ndarray, "occurrences distance"], feature: Int[np.ndarray, " occurrences"]
) -> list[dict[str, float | int]]:
    """One row per feature: `kl_0`, `kl_1`, ..., the mean KL in nats so many tokens behind."""
    return [
        {"feature": int(name)}
        | {f"kl_{i}": float(value) for i, value in enumerate(kl[feature == name].mean(0))}
        for name in np.unique(feature)
    ]


def spearman(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], generator: torch.Generator | None = None
) -> tuple[float | None, Float[np.ndarray, " n_boot"]]:
    """Spearman's rank correlation of two measures of the same things, and of resamples of them.

    None, and no resamples, for fewer than 3 things or a constant measure; NaN for a resample in
    which one is constant.
    """
    n = len(x)
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None, np.zeros(0)
    counts = metrics.resamples(n, EFFECT_BOOT, generator).astype(np.int64)
    rows = np.stack([np.repeat(np.arange(n), times) for times in counts])
    ranked = [stats.rankdata(values[rows], axis=1) for values in (x, y)]
    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in ranked)
    norm = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    rho = float(stats.spearmanr(x, y)[0])  # type: ignore[arg-type]
    return rho, metrics.quotient((a * b).sum(1), norm)
