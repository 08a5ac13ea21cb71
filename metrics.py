"""Measures of any SAE's codes: reconstruction, sparsity, temporal stability. Pure functions.

A text's codes are a `CodedText`: chunks of documents, k values per token. The chunk is the unit of
time: no pair and no run crosses a chunk, because a recurrent model starts afresh at each. The
document is the unit of resampling.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from scipy import sparse, stats
from torch import Tensor

_Generator = torch.Generator | None
Interval = tuple[float, float]
_Pairs = tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]  # rows of `token_matrix`
EPS_DISTANCE = 1e-8  # below this distance two activations count as one (smoothness)


@dataclass(frozen=True, eq=False)
class CodedText:
    """Sparse codes in chunks; built, and checked, by `codes_from_topk` or `codes_from_dense`."""

    vals: Float[Tensor, "n_seq seq k"]  # >= 0; 0 = not active; 0 on padding
    idx: Int[Tensor, "n_seq seq k"]  # feature of each value; means nothing where the value is 0
    valid: Bool[Tensor, "n_seq seq"]  # False on padding, which is only at the end of a chunk
    document: Int[Tensor, " n_seq"]  # id of the document a chunk is from
    start: Int[Tensor, " n_seq"]  # index of a chunk's first token in its document
    d_sae: int

    @property
    def n_tokens(self) -> int:
        return int(self.valid.sum())


def codes_from_topk(
    vals: Float[Tensor, "n_seq seq k"],
    idx: Int[Tensor, "n_seq seq k"],
    d_sae: int,
    *,
    valid: Bool[Tensor, "n_seq seq"] | None = None,
    document: Int[Tensor, " n_seq"] | None = None,
    start: Int[Tensor, " n_seq"] | None = None,
) -> CodedText:
    """Codes from the k values and features of each token, copied; values on padding are dropped.

    By default all tokens are valid and each chunk is a whole document. Raises ValueError for a
    wrong shape, numbers of features or documents that are no integers, no valid token, padding
    inside a chunk, a value that is NaN, infinite, negative or above 0 but 0 in float32, an active
    feature outside [0, d_sae) or twice in a token.
    """
    if vals.ndim != 3 or vals.shape != idx.shape:
        shapes = f"{tuple(vals.shape)} and {tuple(idx.shape)}"
        raise ValueError(f"codes need vals and idx (n_seq seq k); got {shapes}")
    n_seq, seq, _ = vals.shape
    valid = torch.ones(n_seq, seq, dtype=torch.bool) if valid is None else valid.cpu().clone()
    document = torch.arange(n_seq) if document is None else _integers("document", document)
    start = torch.zeros(n_seq, dtype=torch.int64) if start is None else _integers("start", start)
    _check_layout(n_seq, seq, valid, document, start)
    values = vals.detach().cpu().masked_fill(~valid[..., None], 0)
    features = _integers("idx", idx).to(torch.int64)
    _check_values(values, features, d_sae)
    return CodedText(values.float(), features, valid, document, start, d_sae)


def _integers(name: str, numbers: Tensor) -> Tensor:
    """A copy on the CPU; ValueError unless the type is one of integers."""
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise ValueError(f"codes need integers as {name}; got {numbers.dtype}")
    return numbers.detach().cpu().clone()


def codes_from_dense(
    acts: Float[Tensor, "doc seq d_sae"],
    *,
    lengths: Int[Tensor, " doc"] | None = None,
    valid: Bool[Tensor, "doc seq"] | None = None,
    document: Int[Tensor, " doc"] | None = None,
    start: Int[Tensor, " doc"] | None = None,
) -> CodedText:
    """Codes from dense activations; `lengths` (tokens per chunk) or `valid` marks the padding.

    k is the most active features of a token, at least 1. Raises ValueError as `codes_from_topk`.
    """
    if acts.ndim != 3 or 0 in acts.shape:
        raise ValueError(f"codes need acts (doc seq d_sae), none of them 0; got {[*acts.shape]}")
    if lengths is not None and valid is not None:
        raise ValueError("codes need lengths or valid, not both")
    if lengths is not None:
        seq, n = acts.shape[1], _integers("lengths", lengths).tolist()
        if lengths.shape != acts.shape[:1] or min(n) < 0 or max(n) > seq:
            raise ValueError(f"codes need one length in [0, {seq}] per chunk; got {n}")
        valid = torch.arange(seq) < lengths.cpu()[:, None]
    dense = acts.detach().cpu()
    if valid is not None and valid.shape == dense.shape[:2]:
        dense = dense.masked_fill(~valid.cpu()[..., None], 0.0)
    k = max(int((dense != 0).sum(-1).max()), 1)
    idx = (dense != 0).to(torch.uint8).topk(k, dim=-1).indices
    return codes_from_topk(
        dense.gather(-1, idx), idx, acts.shape[2], valid=valid, document=document, start=start
    )


def _check_layout(n_seq: int, seq: int, valid: Tensor, document: Tensor, start: Tensor) -> None:
    if valid.shape != (n_seq, seq) or valid.dtype != torch.bool:
        shape = tuple(valid.shape)
        raise ValueError(f"codes need a bool valid ({n_seq} {seq}); got {valid.dtype} {shape}")
    if not valid.any():
        raise ValueError("codes need at least one valid token; got none")
    if (valid[:, 1:] & ~valid[:, :-1]).any():
        raise ValueError("codes need padding only at the end of a chunk; got a token after it")
    for name, ids in (("document", document), ("start", start)):
        if ids.shape != (n_seq,):
            raise ValueError(f"codes need one {name} per chunk ({n_seq}); got {tuple(ids.shape)}")
    if (start < 0).any():
        raise ValueError(f"codes need start >= 0; got {int(start.min())}")


def _check_values(vals: Tensor, idx: Tensor, d_sae: int) -> None:
    if not torch.isfinite(vals).all():
        raise ValueError("codes need finite values; got NaN or infinity on a valid token")
    if (vals < 0).any():
        raise ValueError(f"codes need values >= 0; got {float(vals.min())}")
    active = vals > 0
    if (active & ~((vals.float() > 0) & (vals.float() < torch.inf))).any():
        raise ValueError("codes need values that float32 holds; got one 0 or infinite in it")
    if (active & ((idx < 0) | (idx >= d_sae))).any():
        least, most = int(idx[active].min()), int(idx[active].max())
        raise ValueError(f"codes need features in [0, {d_sae}); got {least} to {most}")
    # inactive entries get distinct ids below 0, so that equal neighbours are features named twice
    ids = torch.where(active, idx, -1 - torch.arange(idx.shape[-1])).sort(-1).values
    if (ids[..., 1:] == ids[..., :-1]).any():
        raise ValueError("codes need each feature at most once per token; got one twice")


def token_matrix(
    codes: CodedText, dec_norm: Float[Tensor, " d_sae"] | None = None
) -> sparse.csr_array:
    """Sparse float64 (n_seq * seq, d_sae), padding as empty rows; columns times `dec_norm`."""
    vals, idx = codes.vals.numpy(), codes.idx.numpy()
    active = vals > 0
    indptr = np.concatenate([[0], np.cumsum(active.sum(-1).ravel())])
    scale = np.ones(codes.d_sae) if dec_norm is None else dec_norm.detach().cpu().double().numpy()
    if scale.shape != (codes.d_sae,) or not (np.isfinite(scale).all() and (scale >= 0).all()):
        raise ValueError(f"dec_norm needs {codes.d_sae} finite values >= 0; got {scale.shape}")
    features = idx[active].astype(np.int32)
    data = vals[active] * scale[features]
    shape = (len(indptr) - 1, codes.d_sae)
    matrix = sparse.csr_array((data, features, indptr.astype(np.int32)), shape=shape)
    matrix.sort_indices()
    return matrix


def _support(codes: CodedText) -> sparse.csr_array:
    matrix = token_matrix(codes)
    matrix.data[:] = 1.0
    return matrix


def document_rank(codes: CodedText) -> Int[np.ndarray, " n_seq"]:
    """Documents renumbered 0..n_doc-1 in ascending order of their ids, one entry per chunk."""
    return np.unique(codes.document.numpy(), return_inverse=True)[1]


# ---------------------------------------------------------------- reconstruction and sparsity


@dataclass(frozen=True, eq=False)
class FveSums:
    """Running float64 sums of batches: `fve_start`, then `fve_add` per batch, `fve_value`."""

    n_tokens: int
    mean: Float[Tensor, " d_in"]  # mean of the x seen
    scatter: Float[Tensor, ""]  # sum (x - mean)^2 over tokens and dimensions
    error: Float[Tensor, ""]  # sum (x - x_hat)^2


def fve_start(d_in: int) -> FveSums:
    """Sums over no token."""
    zero, mean = torch.zeros((), dtype=torch.float64), torch.zeros(d_in, dtype=torch.float64)
    return FveSums(0, mean, zero, zero)


def fve_add(
    sums: FveSums, x: Float[Tensor, "*batch d_in"], x_hat: Float[Tensor, "*batch d_in"]
) -> FveSums:
    """The sums with one batch more; the pairwise update of Chan et al. (1983) does not cancel."""
    if x.shape != x_hat.shape or x.shape[-1] != len(sums.mean):
        shapes = f"{tuple(x.shape)}, {tuple(x_hat.shape)}"
        raise ValueError(f"fve needs x and x_hat (... {len(sums.mean)}); got {shapes}")
    rows, guess = (t.detach().double().cpu().reshape(-1, x.shape[-1]) for t in (x, x_hat))
    if len(rows) == 0:
        return sums
    if not (torch.isfinite(rows).all() and torch.isfinite(guess).all()):
        raise ValueError("fve needs finite x and x_hat; got NaN or infinity")
    n = sums.n_tokens + len(rows)
    mean = rows.mean(0)
    shift = mean - sums.mean
    between = shift.square().sum() * (sums.n_tokens * len(rows) / n)
    scatter = sums.scatter + (rows - mean).square().sum() + between
    error = sums.error + (rows - guess).square().sum()
    return FveSums(n, sums.mean + shift * (len(rows) / n), scatter, error)


def fve_value(sums: FveSums) -> float:
    """`1 - error / scatter`, in (-inf, 1]. Raises ValueError if x does not vary or is empty."""
    if not sums.scatter > 0:
        raise ValueError(f"fve needs x that varies; got {sums.n_tokens} tokens with no variance")
    return float(1 - sums.error / sums.scatter)


def fve(x: Float[Tensor, "*batch d_in"], x_hat: Float[Tensor, "*batch d_in"]) -> float:
    """Fraction of variance explained, `1 - sum (x - x_hat)^2 / sum (x - mean)^2`, in (-inf, 1].

    Both sums run over all tokens and dimensions in float64, with one mean vector, so that
    predicting the mean scores exactly 0. Drop padding beforehand.
    """
    return fve_value(fve_add(fve_start(x.shape[-1]), x, x_hat))


def ce_recovered(ce_clean: float, ce_spliced: float, ce_ablated: float) -> float:
    """`(ablated - spliced) / (ablated - clean)` of cross-entropies in nats per token.

    1 = nothing lost, 0 = as bad as the mean-ablated model; at most about 1. Raises ValueError
    unless ablating costs something.
    """
    if not ce_ablated > ce_clean:
        raise ValueError(f"ce_recovered needs ablated > clean; got {ce_ablated} and {ce_clean}")
    return (ce_ablated - ce_spliced) / (ce_ablated - ce_clean)


def l0(vals: Float[Tensor, "*batch k"], valid: Bool[Tensor, "*batch"] | None = None) -> float:
    """Mean number of values > 0 per (valid) token, in [0, k]; takes a dense code as well."""
    counts = (vals > 0).sum(-1) if valid is None else (vals > 0).sum(-1)[valid]
    if counts.numel() == 0:
        raise ValueError("l0 needs at least one valid token; got none")
    return float(counts.double().mean())


def firing_rate(codes: CodedText) -> Float[Tensor, " d_sae"]:
    """Share of the valid tokens at which each feature is active, in [0, 1]."""
    n_active = torch.bincount(codes.idx[codes.vals > 0], minlength=codes.d_sae)
    return n_active.double() / codes.n_tokens


def alive_frac(codes: CodedText) -> float:
    """Share of the features that are active on at least one valid token: 1 - the dead fraction."""
    return float((firing_rate(codes) > 0).double().mean())


# ---------------------------------------------------------------- events and pairs of tokens


def _pairs(codes: CodedText, lag: int) -> _Pairs:
    """Rows of `token_matrix` that are `lag` apart in one chunk, both valid: (earlier, later)."""
    valid = codes.valid.numpy()
    longest = int(valid.sum(1).max())
    if not 0 < lag < longest:
        raise ValueError(f"pairs need 0 < lag < longest chunk; got lag={lag}, longest={longest}")
    later = np.flatnonzero(np.pad(valid[:, lag:], ((0, 0), (lag, 0))))
    return later - lag, later


def births(codes: CodedText) -> float:
    """Mean number of features that switch on at a token that has one before it in its chunk.

    What a reader has to read anew; at most the L0 of those tokens. ValueError without such a token.
    """
    support, (before, now) = _support(codes), _pairs(codes, 1)
    return float((support[now].sum(1) - support[before].multiply(support[now]).sum(1)).mean())


def distinct(codes: CodedText, window: int = 16) -> float | None:
    """Mean number of different features that are on in a window of `window` tokens.

    The windows follow one another from the start of each chunk. None where no chunk has one.
    """
    n_seq, seq = codes.valid.shape
    inside = slice(seq // window * window)
    whole = codes.valid[:, inside].reshape(n_seq, seq // window, window).all(-1).numpy()
    if not whole.any():
        return None
    row = np.arange(n_seq * seq).reshape(n_seq, seq)[:, inside]
    rows = row.reshape(*whole.shape, window)[whole].ravel()
    summed = _member(np.arange(len(rows)) // window, int(whole.sum())) @ _support(codes)[rows]
    return summed.nnz / int(whole.sum())


def similarity(matrix: sparse.csr_array, pairs: _Pairs) -> Float[np.ndarray, " pairs"]:
    """`sum_f min(a, b) / sum_f max(a, b)` of each pair of rows, in [0, 1]; 0 for two empty rows."""
    first, second = pairs
    total = matrix.sum(1)
    low = matrix[first].minimum(matrix[second]).sum(1)
    return ratio(low, total[first] + total[second] - low)


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, and 0 where the bottom is not above 0."""
    zeros = np.zeros(np.broadcast_shapes(top.shape, bottom.shape))
    return np.divide(top, bottom, out=zeros, where=bottom > 0)


def quotient(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, and NaN where the bottom is 0: what cannot be computed."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0)


def finite(value: float | np.floating | Float[np.ndarray, ""]) -> float | None:
    """The value, or None for a NaN or an infinity: what cannot be computed is absent."""
    return float(value) if np.isfinite(value) else None


def jaccard(codes: CodedText, lag: int = 1) -> float:
    """Mean Jaccard overlap of the active sets of tokens `lag` apart in a chunk, in [0, 1].

    Two empty sets overlap by 0: empty codes are not stable. Raises ValueError without a pair.
    """
    return float(similarity(_support(codes), _pairs(codes, lag)).mean())


def jaccard_by_document(
    codes: CodedText, lag: int = 1
) -> tuple[Float[np.ndarray, " n_doc"], Int[np.ndarray, " n_doc"]]:
    """Summed overlap and number of pairs per document, ids ascending; `jaccard` is their ratio."""
    pairs, rank = _pairs(codes, lag), document_rank(codes)
    document = rank[pairs[0] // codes.valid.shape[1]]
    n_pairs = np.bincount(document, minlength=int(rank.max()) + 1)
    return np.bincount(document, similarity(_support(codes), pairs), len(n_pairs)), n_pairs


def jaccard_kappa(codes: CodedText, lag: int = 1, generator: _Generator = None) -> float | None:
    """Chance-corrected overlap, `(J - J0) / (1 - J0)`, at most 1: 0 for codes in random order.

    J0 is the mean over as many random pairs of distinct valid tokens, at least 10,000, drawn with
    `generator` (None: seed 0). None for a code that is the same at every token, whose J0 is 1.
    """
    matrix, pairs = _support(codes), _pairs(codes, lag)
    rows = np.flatnonzero(codes.valid.numpy())
    n_draws = max(len(pairs[0]), 10_000)
    drawn = _randint(len(rows), (n_draws,), generator)
    partner = (drawn + 1 + _randint(len(rows) - 1, (n_draws,), generator)) % len(rows)
    chance = similarity(matrix, (rows[drawn], rows[partner])).mean()
    observed = similarity(matrix, pairs).mean()
    return float((observed - chance) / (1 - chance)) if chance < 1 else None


def _randint(high: int, shape: tuple[int, ...], generator: _Generator) -> np.ndarray:
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return torch.randint(high, shape, generator=generator).numpy()


# ---------------------------------------------------------------- temporal stability


@dataclass(frozen=True, eq=False)
class Stability:
    """What `tss` returns. Means run over the eligible features: None, by lag NaN, without one."""

    lags: tuple[int, ...]
    p: Float[np.ndarray, "lags d_sae"]  # overlap; 0 for a feature without any pair
    p0: Float[np.ndarray, "lags d_sae"]  # its chance level
    kappa: Float[np.ndarray, "lags d_sae"]  # (p - p0) / (1 - p0); NaN where p0 = 1 or never active
    eligible: Bool[np.ndarray, " d_sae"]
    eligible_frac: float  # eligible features / d_sae
    macro_by_lag: Float[np.ndarray, " lags"]  # TSS_j: mean of max(0, kappa)
    weighted_by_lag: Float[np.ndarray, " lags"]  # weighted by each feature's summed contribution
    macro: float | None  # TSS: mean of macro_by_lag
    weighted: float | None
    macro_replicates: Float[np.ndarray, " n_boot"]  # TSS of each bootstrap sample of documents
    weighted_replicates: Float[np.ndarray, " n_boot"]
    macro_interval: Interval | None  # 95 %; None without a score, samples or a second document
    weighted_interval: Interval | None


def tss(
    codes: CodedText,
    dec_norm: Float[Tensor, " d_sae"] | None = None,
    lags: Iterable[int] = range(1, 17),
    null: Literal["global", "document"] = "global",
    *,
    n_boot: int = 0,
    generator: _Generator = None,
    min_tokens: int = 20,
    min_documents: int = 5,
    max_chance: float = 0.95,
) -> Stability:
    """Temporal stability score: at lag j the mean over eligible features of `max(0, kappa)`.

    `p(j) = sum_t min(a_t, a_{t+j}) / sum_t max(a_t, a_{t+j})` over the pairs inside chunks, a =
    acts * dec_norm; `p0 = sum_i (N-i) a_(i) / sum_i (i-1) a_(i)` over the N ascending values of all
    tokens (null "global": all orders of the tokens) or of each document, weighted by its pairs at
    that lag ("document": orders inside documents, so that a topic is chance); `kappa = (p - p0) /
    (1 - p0)`; the score is in [0, 1]. Eligible: active at `min_tokens` tokens in `min_documents`
    documents, and p0 <= `max_chance` at all lags. `n_boot` samples of documents hold p0 and
    eligibility fixed. Raises ValueError for a lag that no chunk is long enough for.
    """
    lags = tuple(lags)
    if not lags or null not in ("global", "document"):
        raise ValueError(f'tss needs a lag, and null "global" or "document"; got {lags}, "{null}"')
    matrix = token_matrix(codes, dec_norm)
    document = np.repeat(document_rank(codes), codes.valid.shape[1])  # of each row
    n_doc = int(document.max()) + 1
    weights = resamples(n_doc, n_boot, generator)
    chance = _chance_sums(codes, matrix, document if null == "document" else 0 * document)
    p, p0 = np.zeros((2, len(lags), codes.d_sae))
    resampled = np.zeros((len(weights), codes.d_sae))
    for row, lag in enumerate(lags):
        low, high, n_pairs = _overlap_sums(matrix, document, _pairs(codes, lag))
        p[row] = ratio(low.sum(0), high.sum(0))
        p0[row] = _chance_level(*chance, n_pairs if null == "document" else None)
        drawn = ratio((low.T @ weights.T).T, (high.T @ weights.T).T)
        resampled += np.maximum(ratio(drawn - p0[row], 1 - p0[row]), 0) / len(lags)
    n_documents = _n_active(_member(document, n_doc) @ matrix, codes.d_sae)
    eligible = (n_documents >= min_documents) & (p0.max(0) <= max_chance)
    eligible &= (_n_active(matrix, codes.d_sae) >= min_tokens) & (p0.max(0) < 1)
    return _stability(lags, p, p0, eligible, matrix.sum(0), resampled, n_doc)


def _stability(
    lags: tuple[int, ...],
    p: Float[np.ndarray, "lags d_sae"],
    p0: Float[np.ndarray, "lags d_sae"],
    eligible: Bool[np.ndarray, " d_sae"],
    contribution: Float[np.ndarray, " d_sae"],
    resampled: Float[np.ndarray, "n_boot d_sae"],
    n_doc: int,
) -> Stability:
    kappa = np.where(contribution > 0, quotient(p - p0, 1 - p0), np.nan)
    scores: dict[str, Any] = {"eligible_frac": float(eligible.mean())}
    for name, weight in (("macro", eligible.astype(float)), ("weighted", eligible * contribution)):
        by_lag = _weighted_mean(np.maximum(kappa, 0), weight)
        replicates, score = _weighted_mean(resampled, weight), finite(by_lag.mean())
        scores |= {name: score, f"{name}_by_lag": by_lag, f"{name}_replicates": replicates}
        scores[f"{name}_interval"] = interval(score, replicates, n_doc)
    return Stability(lags=lags, p=p, p0=p0, kappa=kappa, eligible=eligible, **scores)


def _n_active(matrix: sparse.csr_array, d_sae: int) -> Int[np.ndarray, " d_sae"]:
    """In how many rows each column is above 0."""
    return np.bincount(matrix.indices[matrix.data > 0], minlength=d_sae)


def _weighted_mean(
    values: Float[np.ndarray, "rows d_sae"], weight: Float[np.ndarray, " d_sae"]
) -> Float[np.ndarray, " rows"]:
    """Weighted mean of each row over what has weight; NaN where nothing has."""
    counted = weight > 0
    return quotient(values[:, counted] @ weight[counted], np.full(len(values), weight.sum()))


def _member(group: Int[np.ndarray, " n"], n_groups: int) -> sparse.csr_array:
    """(n_groups, n), 1 where an entry is of the group: `member @ values` sums by group."""
    where = group, np.arange(len(group))
    return sparse.csr_array((np.ones(len(group)), where), shape=(n_groups, len(group)))


def _overlap_sums(
    matrix: sparse.csr_array, document: Int[np.ndarray, " rows"], pairs: _Pairs
) -> tuple[sparse.csr_array, sparse.csr_array, Float[np.ndarray, " n_doc"]]:
    """Sums of min and of max over a document's pairs, both (n_doc, d_sae), and its pairs."""
    member = _member(document[pairs[0]], int(document.max()) + 1)
    earlier, later = matrix[pairs[0]], matrix[pairs[1]]
    low = member @ earlier.minimum(later)
    return low, member @ earlier + member @ later - low, member.sum(1)


def _chance_sums(
    codes: CodedText, matrix: sparse.csr_array, document: Int[np.ndarray, " rows"]
) -> tuple[sparse.csr_array, sparse.csr_array, Int[np.ndarray, " n_doc"]]:
    """`sum_i (N-i) a_(i)` and `sum_i (i-1) a_(i)` of each document (n_doc, d_sae), and its N."""
    n_doc = int(document.max()) + 1
    n_tokens = np.bincount(document[codes.valid.numpy().ravel()], minlength=n_doc)
    entries = matrix.tocoo()
    group = entries.coords[1].astype(np.int64) * n_doc + document[entries.coords[0]]
    order = np.lexsort((entries.data, group))
    value = entries.data[order]
    ids, first, size = np.unique(group[order], return_index=True, return_counts=True)
    where = ids % n_doc, ids // n_doc
    # the zeros come first in rank; they are not stored, as they add nothing
    above = np.repeat(first + size, size) - 1 - np.arange(len(value))  # N - i
    below = np.repeat(n_tokens[where[0]], size) - 1 - above  # i - 1
    member = np.repeat(np.arange(len(ids)), size)
    low, high = (np.bincount(member, value * times) for times in (above, below))
    shape = n_doc, codes.d_sae
    return sparse.csr_array((low, where), shape), sparse.csr_array((high, where), shape), n_tokens


def _chance_level(
    low: sparse.csr_array,
    high: sparse.csr_array,
    n_tokens: Int[np.ndarray, " n_doc"],
    n_pairs: Float[np.ndarray, " n_doc"] | None,
) -> Float[np.ndarray, " d_sae"]:
    """`p0` per feature: expected min over max, documents weighted by their pairs at the lag."""
    weight = np.ones(1) if n_pairs is None else ratio(n_pairs, n_tokens * (n_tokens - 1.0))
    return ratio(weight @ low, weight @ high)


def resamples(n: int, n_boot: int, generator: _Generator = None) -> Float[np.ndarray, "n_boot n"]:
    """How often each of n units (documents, groups of items, cases) is drawn in each sample.

    Equal seeds pair the samples of two models (None: seed 0). No sample of fewer than two units.
    """
    if n < 2 or n_boot == 0:
        return np.zeros((0, n))
    draws = _randint(n, (n_boot, n), generator)
    return np.stack([np.bincount(draw, minlength=n) for draw in draws]).astype(float)


def resampled_ratio(
    top: Float[np.ndarray, " n"],
    bottom: Real[np.ndarray, " n"],
    n_boot: int,
    generator: _Generator = None,
) -> Float[np.ndarray, " n_boot"]:
    """`sum(top) / sum(bottom)` over the units of each bootstrap sample; NaN if the bottom is 0."""
    weights = resamples(len(top), n_boot, generator)
    return quotient(weights @ top, weights @ bottom)


def bootstrap_error(replicates: Float[np.ndarray, " n_boot"], n: int) -> float | None:
    """Standard error `sd(replicates) sqrt(n / (n - 1))` of what was resampled over n units.

    NaN replicates are left out. None without two: one document cannot be resampled.
    """
    known = replicates[np.isfinite(replicates)]
    if len(known) < 2 or n < 2:
        return None
    return float(known.std(ddof=1) * np.sqrt(n / (n - 1)))


def interval(
    value: float | None,
    replicates: Float[np.ndarray, " n_boot"],
    n: int,
    least: float = 0.0,
    most: float = 1.0,
) -> Interval | None:
    """95 % interval `value +- t bootstrap_error(replicates, n)`, cut to [least, most].

    t has n - 1 degrees of freedom. None without a value or a standard error. Percentiles would
    repeat the bias of a ratio of sums, of order 1 / n, and over thousands of features can miss the
    very value they are of.
    """
    error = bootstrap_error(replicates, n)
    if value is None or error is None:
        return None
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return max(value - half, least), min(value + half, most)


# ---------------------------------------------------------------- smoothness


def smoothness(codes: CodedText, x: Float[Tensor, "n_seq seq d_in"]) -> float:
    """T-SAE's smoothness (Bhalla et al. 2025, arXiv 2511.05541), in activation per norm of x.

    Mean over chunks of the mean over the features active in the chunk of the steepest slope
    `|a_t+1 - a_t| / |x_t+1 - x_t|`; lower is smoother. Low for inactive codes and small scales: to
    be read beside TSS. Pairs whose x are within 1e-8, and chunks without a pair or an active
    feature, are left out. Raises ValueError if none is left, or x is not finite.
    """
    return float(smoothness_by_chunk(codes, x)[1].mean())


def smoothness_by_chunk(
    codes: CodedText, x: Float[Tensor, "n_seq seq d_in"]
) -> tuple[Int[np.ndarray, " chunks"], Float[np.ndarray, " chunks"]]:
    """The chunks that have a smoothness, and what it is there; ValueError as `smoothness`."""
    if x.shape[:2] != codes.valid.shape:
        shape = tuple(codes.valid.shape)
        raise ValueError(f"smoothness needs x {shape} + (d_in,); got {tuple(x.shape)}")
    if not torch.isfinite(x).all(-1).cpu()[codes.valid].all():
        raise ValueError("smoothness needs finite x; got NaN or infinity on a valid token")
    first, second = _pairs(codes, 1)
    distance = _distance(x.detach().cpu().reshape(-1, x.shape[-1]), (first, second))
    apart = distance > EPS_DISTANCE
    first, second, distance = first[apart], second[apart], distance[apart]
    matrix, seq = token_matrix(codes), codes.valid.shape[1]
    slope = abs(matrix[first] - matrix[second]).tocoo()
    token, feature = matrix.nonzero()
    compared = np.isin(token, np.union1d(first, second))
    groups = np.unique(token[compared] // seq * codes.d_sae + feature[compared])  # chunk, feature
    if len(groups) == 0:
        raise ValueError("smoothness needs an active feature and two neighbours whose x differ")
    group = first[slope.coords[0]] // seq * codes.d_sae + slope.coords[1]
    steepest = np.zeros(len(groups))
    np.maximum.at(steepest, np.searchsorted(groups, group), slope.data / distance[slope.coords[0]])
    chunks, of_chunk = np.unique(groups // codes.d_sae, return_inverse=True)
    return chunks, np.bincount(of_chunk, steepest) / np.bincount(of_chunk)


def _distance(flat: Float[Tensor, "n d_in"], pairs: _Pairs) -> Float[np.ndarray, " pairs"]:
    """Euclidean distance of each pair of rows, in blocks so that no copy of all rows is made."""
    blocks = zip(*(torch.from_numpy(rows).split(16_384) for rows in pairs), strict=True)
    return torch.cat([(flat[a].double() - flat[b]).norm(dim=-1) for a, b in blocks]).numpy()
