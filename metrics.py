"""Measures of a sparse code: reconstruction, sparsity, temporal stability. Pure functions, any
SAE's codes.

A code is held as `Codes`: chunks of documents, k values a token. The chunk is the unit of time: no
pair and no run crosses a chunk, because a recurrent model starts afresh at each; the document is
the unit of resampling.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from scipy import sparse, stats
from torch import Tensor

Null = Literal["global", "document"]
EPS_DISTANCE = 1e-8  # below this distance two activations count as one (smoothness)


@dataclass(frozen=True, eq=False)
class CodedText:
    """Sparse codes in chunks. Build with `codes_from_topk` or `codes_from_dense`, which check what
    they are given.
    """

    vals: Float[Tensor, "n_seq seq k"]  # >= 0; 0 = not active; 0 on padding
    idx: Int[Tensor, "n_seq seq k"]  # feature of each value; means nothing where the value is 0
    valid: Bool[Tensor, "n_seq seq"]  # False on padding, which is only at the end of a chunk
    document: Int[Tensor, " n_seq"]  # id of the document a chunk is from
    start: Int[
        Tensor, " n_seq"
    ]  # index in its document of a chunk's first token; 0 = the document's beginning
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
    """Codes from the k values and features of each token (by default: all valid, each chunk a whole
    document).

    Raises ValueError for a wrong shape, no valid token, padding inside a chunk, a NaN, infinite or
    negative value, an active feature outside [0, d_sae) or twice in a token. What stands on padding
    is dropped unseen.
    """
    if vals.ndim != 3 or vals.shape != idx.shape:
        raise ValueError(
            f"codes need vals and idx (n_seq seq k); got {tuple(vals.shape)} and {tuple(idx.shape)}"
        )
    n_seq, seq, _ = vals.shape
    valid = torch.ones(n_seq, seq, dtype=torch.bool) if valid is None else valid.cpu()
    document = torch.arange(n_seq) if document is None else document.cpu()
    start = torch.zeros(n_seq, dtype=torch.int64) if start is None else start.cpu()
    _check_layout(n_seq, seq, valid, document, start)
    kept = vals.detach().cpu().float().masked_fill(~valid[..., None], 0.0)
    features = idx.detach().cpu().to(torch.int64)
    _check_values(kept, features, d_sae)
    return CodedText(kept, features, valid, document, start, d_sae)


def codes_from_dense(
    acts: Float[Tensor, "doc seq d_sae"],
    *,
    lengths: Int[Tensor, " doc"] | None = None,
    valid: Bool[Tensor, "doc seq"] | None = None,
    document: Int[Tensor, " doc"] | None = None,
    start: Int[Tensor, " doc"] | None = None,
) -> CodedText:
    """Codes from dense activations; `lengths` (tokens of each chunk) or `valid` marks the padding.

    k is the largest number of active features in a token, at least 1. Raises ValueError as
    `codes_from_topk`.
    """
    if acts.ndim != 3 or 0 in acts.shape:
        raise ValueError(
            f"codes need acts (doc seq d_sae), none of them 0; got {tuple(acts.shape)}"
        )
    if lengths is not None and valid is not None:
        raise ValueError("codes need lengths or valid, not both")
    if lengths is not None:
        if (
            lengths.shape != acts.shape[:1]
            or bool((lengths < 0).any())
            or bool((lengths > acts.shape[1]).any())
        ):
            raise ValueError(
                f"codes need one length in [0, {acts.shape[1]}] per chunk; got {lengths.tolist()}"
            )
        valid = torch.arange(acts.shape[1]) < lengths.cpu()[:, None]
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
        raise ValueError(
            f"codes need a bool valid ({n_seq} {seq}); got {valid.dtype} {tuple(valid.shape)}"
        )
    if not valid.any():
        raise ValueError("codes need at least one valid token; got none")
    if (valid[:, 1:] & ~valid[:, :-1]).any():
        raise ValueError(
            "codes need padding only at the end of a chunk; got a valid token after padding"
        )
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
    if (active & ((idx < 0) | (idx >= d_sae))).any():
        raise ValueError(
            f"codes need features in [0, {d_sae}); got {int(idx[active].min())} to {int(idx[active].max())}"
        )
    ids = torch.where(active, idx, -1 - torch.arange(idx.shape[-1])).sort(-1).values
    if (ids[..., 1:] == ids[..., :-1]).any():
        raise ValueError("codes need each feature at most once a token; got one twice")


def select(codes: CodedText, chunks: Bool[Tensor, " n_seq"]) -> CodedText:
    """The marked chunks only. Raises ValueError if no valid token is left."""
    if not codes.valid[chunks].any():
        raise ValueError("select needs at least one valid token; got none")
    fields = (codes.vals, codes.idx, codes.valid, codes.document, codes.start)
    return CodedText(*(field[chunks] for field in fields), d_sae=codes.d_sae)


def token_matrix(
    codes: CodedText, dec_norm: Float[Tensor, " d_sae"] | None = None
) -> sparse.csr_array:
    """(n_seq * seq, d_sae) sparse matrix, float64, padding as empty rows; columns times `dec_norm`
    if given.
    """
    vals, idx = codes.vals.numpy(), codes.idx.numpy()
    active = vals > 0
    indptr = np.concatenate([[0], np.cumsum(active.sum(-1).ravel())])
    scale = np.ones(codes.d_sae) if dec_norm is None else dec_norm.detach().cpu().double().numpy()
    if scale.shape != (codes.d_sae,) or not (np.isfinite(scale).all() and (scale >= 0).all()):
        raise ValueError(
            f"dec_norm needs {codes.d_sae} finite values >= 0; got shape {scale.shape}"
        )
    features = idx[active].astype(np.int32)
    data = vals[active] * scale[features]
    shape = (len(indptr) - 1, codes.d_sae)
    matrix = sparse.csr_array((data, features, indptr.astype(np.int32)), shape=shape)
    matrix.sort_indices()
    return matrix


def _support(codes: CodedText) -> sparse.csr_array:
    """`token_matrix` with 1 for every active entry."""
    matrix = token_matrix(codes)
    matrix.data = np.ones_like(matrix.data)
    return matrix


def document_rank(codes: CodedText) -> Int[np.ndarray, " n_seq"]:
    """Documents renumbered 0..n_doc-1 in ascending order of their ids, one entry a chunk."""
    return np.unique(codes.document.numpy(), return_inverse=True)[1]


# ---------------------------------------------------------------- reconstruction and sparsity


@dataclass(frozen=True, eq=False)
class FveSums:
    """Running float64 sums for `fve` over batches; start with `fve_start`, `fve_add` each batch,
    end `fve_value`.
    """

    n_tokens: int
    mean: Float[Tensor, " d_in"]  # mean of the x seen
    scatter: Float[Tensor, ""]  # sum (x - mean)^2 over tokens and dimensions
    error: Float[Tensor, ""]  # sum (x - x_hat)^2


def fve_start(d_in: int) -> FveSums:
    """Sums over no token."""
    zero = torch.zeros((), dtype=torch.float64)
    return FveSums(0, torch.zeros(d_in, dtype=torch.float64), zero, zero)


def fve_add(
    sums: FveSums, x: Float[Tensor, "*batch d_in"], x_hat: Float[Tensor, "*batch d_in"]
) -> FveSums:
    """The sums with one batch more, by the pairwise update of Chan et al. (1983): no cancellation
    at large norms.
    """
    if x.shape != x_hat.shape or x.shape[-1] != len(sums.mean):
        raise ValueError(
            f"fve needs x and x_hat (... {len(sums.mean)}); got {tuple(x.shape)}, {tuple(x_hat.shape)}"
        )
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
    """`1 - error / scatter`, in (-inf, 1]. Raises ValueError if x does not vary (no token, one
    token, a constant).
    """
    if not sums.scatter > 0:
        raise ValueError(f"fve needs x that varies; got {sums.n_tokens} tokens with no variance")
    return float(1 - sums.error / sums.scatter)


def fve(x: Float[Tensor, "*batch d_in"], x_hat: Float[Tensor, "*batch d_in"]) -> float:
    """Fraction of variance explained, `1 - sum (x - x_hat)^2 / sum (x - mean)^2`, in (-inf, 1].

    Both sums run over all tokens and dimensions in float64, with one mean vector over all tokens,
    so that predicting the mean scores exactly 0 (a mean of per-token or per-dimension ratios would
    not). Drop padding beforehand.
    """
    return fve_value(fve_add(fve_start(x.shape[-1]), x, x_hat))


def ce_recovered(ce_clean: float, ce_spliced: float, ce_ablated: float) -> float:
    """`(ablated - spliced) / (ablated - clean)` of cross-entropies in nats a token, at most about
    1.

    1 = nothing lost, 0 = as bad as the mean-ablated model; `delta CE` is `ce_spliced - ce_clean`.
    Raises ValueError unless ablating costs something.
    """
    if not ce_ablated > ce_clean:
        raise ValueError(f"ce_recovered needs ablated > clean; got {ce_ablated} and {ce_clean}")
    return (ce_ablated - ce_spliced) / (ce_ablated - ce_clean)


def l0(vals: Float[Tensor, "*batch k"], valid: Bool[Tensor, "*batch"] | None = None) -> float:
    """Mean number of values > 0 a (valid) token, in [0, k]; takes a dense code as well."""
    counts = (vals > 0).sum(-1)
    kept = counts if valid is None else counts[valid]
    if kept.numel() == 0:
        raise ValueError("l0 needs at least one valid token; got none")
    return float(kept.double().mean())


def firing_rate(codes: CodedText) -> Float[Tensor, " d_sae"]:
    """Share of the valid tokens at which each feature is active, in [0, 1]."""
    return (
        torch.bincount(codes.idx[codes.vals > 0], minlength=codes.d_sae).double() / codes.n_tokens
    )


def alive_frac(codes: CodedText) -> float:
    """Share of the d_sae features that are active on at least one valid token; dead fraction = 1 -
    this.
    """
    return float((firing_rate(codes) > 0).double().mean())


# ---------------------------------------------------------------- similarity of pairs of tokens


def _pairs(
    codes: CodedText, lag: int
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Rows of `token_matrix` that are `lag` apart in one chunk, both valid: (earlier, later)."""
    valid = codes.valid.numpy()
    longest = int(valid.sum(1).max())
    if not 0 < lag < longest:
        raise ValueError(
            f"pairs need 0 < lag < longest chunk; got lag={lag}, longest chunk={longest}"
        )
    later = np.flatnonzero(np.pad(valid[:, lag:], ((0, 0), (lag, 0))))
    return later - lag, later


def _similarity(
    matrix: sparse.csr_array, first: Int[np.ndarray, " pairs"], second: Int[np.ndarray, " pairs"]
) -> Float[np.ndarray, " pairs"]:
    """`sum_f min(a, b) / sum_f max(a, b)` of each pair of rows, in [0, 1]; 0 for two empty rows."""
    total = matrix.sum(1)
    low = matrix[first].minimum(matrix[second]).sum(1)
    return ratio(low, total[first] + total[second] - low)


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, and 0 where the bottom is 0."""
    return np.divide(
        top, bottom, out=np.zeros(np.broadcast_shapes(top.shape, bottom.shape)), where=bottom > 0
    )


def jaccard(codes: CodedText, lag: int = 1) -> float:
    """Mean Jaccard overlap of the active sets of tokens `lag` apart in a chunk, in [0, 1].

    Two empty sets count as overlap 0: silence is not persistence. Raises ValueError if no two
    tokens are `lag` apart.
    """
    return float(_similarity(_support(codes), *_pairs(codes, lag)).mean())


def jaccard_by_document(
    codes: CodedText, lag: int = 1
) -> tuple[Float[np.ndarray, " n_doc"], Int[np.ndarray, " n_doc"]]:
    """Summed overlap and number of pairs of each document, ids ascending: what `jaccard` is the
    ratio of sums of.
    """
    first, second = _pairs(codes, lag)
    document = np.repeat(document_rank(codes), codes.valid.shape[1])[first]
    n_pairs = np.bincount(document, minlength=int(document_rank(codes).max()) + 1)
    return _sums(document, _similarity(_support(codes), first, second), len(n_pairs)), n_pairs


def jaccard_kappa(
    codes: CodedText, lag: int = 1, generator: torch.Generator | None = None
) -> float:
    """Chance-corrected overlap, `(J - J0) / (1 - J0)`, at most 1: 0 for codes in random order.

    J0 is the mean over as many random pairs of distinct valid tokens, at least 10,000, drawn with
    `generator` (None: seed 0). A code that is the same at every token gives 0: there is nothing
    above chance to show.
    """
    matrix, (first, second) = _support(codes), _pairs(codes, lag)
    rows = np.flatnonzero(codes.valid.numpy())
    n_draws = max(len(first), 10_000)
    one = _randint(len(rows), (n_draws,), generator)
    other = (one + 1 + _randint(len(rows) - 1, (n_draws,), generator)) % len(rows)
    chance = _similarity(matrix, rows[one], rows[other]).mean()
    observed = _similarity(matrix, first, second).mean()
    return float((observed - chance) / (1 - chance)) if chance < 1 else 0.0


def _randint(high: int, shape: tuple[int, ...], generator: torch.Generator | None) -> np.ndarray:
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return torch.randint(high, shape, generator=generator).numpy()


# ---------------------------------------------------------------- temporal stability


@dataclass(frozen=True, eq=False)
class Stability:
    """What `tss` returns. Means run over the eligible features and are 0 if there is none."""

    lags: tuple[int, ...]
    p: Float[np.ndarray, "lags d_sae"]  # overlap; 0 for a feature without any pair
    p0: Float[np.ndarray, "lags d_sae"]  # its chance level
    kappa: Float[np.ndarray, "lags d_sae"]  # (p - p0) / (1 - p0), may be < 0; 0 where p0 = 1
    eligible: Bool[np.ndarray, " d_sae"]
    eligible_frac: float  # eligible features / d_sae
    macro_by_lag: Float[np.ndarray, " lags"]  # TSS_j: mean of max(0, kappa)
    weighted_by_lag: Float[
        np.ndarray, " lags"
    ]  # the same, weighted by each feature's summed contribution
    macro: float  # TSS: mean of macro_by_lag
    weighted: float
    macro_replicates: Float[np.ndarray, " n_boot"]  # TSS of each bootstrap sample of documents
    weighted_replicates: Float[np.ndarray, " n_boot"]
    macro_interval: tuple[float, float]  # 95 %, (0, 1) when there is no sample or a single document
    weighted_interval: tuple[float, float]


def tss(
    codes: CodedText,
    dec_norm: Float[Tensor, " d_sae"] | None = None,
    lags: Iterable[int] = range(1, 17),
    null: Null = "global",
    *,
    n_boot: int = 0,
    generator: torch.Generator | None = None,
    min_tokens: int = 20,
    min_documents: int = 5,
    max_chance: float = 0.95,
) -> Stability:
    """Temporal stability score: per lag j the mean over eligible features of `max(0, kappa)`, in
    [0, 1].

    `p(j) = sum_t min(a_t, a_{t+j}) / sum_t max(a_t, a_{t+j})` over the pairs inside chunks, a =
    acts * dec_norm; `p0 = sum_i (N-i) a_(i) / sum_i (i-1) a_(i)` over the N ascending values of all
    tokens (null "global": the ratio of expectations over all orders of the tokens) or of each
    document's, weighted by its pairs at that lag ("document": orders inside documents, so that a
    topic is chance); `kappa = (p - p0) / (1 - p0)`. Eligible: active at `min_tokens` tokens in
    `min_documents` documents, and p0 <= `max_chance` at all lags. `n_boot` bootstrap samples of
    documents hold p0 and eligibility fixed; equal seeds pair the samples of two models. Raises
    ValueError for a lag that no chunk is long enough for.
    """
    lags = tuple(lags)
    if not lags:
        raise ValueError("tss needs at least one lag; got none")
    if null not in ("global", "document"):
        raise ValueError(f'tss needs null "global" or "document"; got "{null}"')
    matrix, rank = token_matrix(codes, dec_norm), document_rank(codes)
    weights = resamples(int(rank.max()) + 1, n_boot, generator)
    chance = _chance_sums(codes, matrix, rank, null)
    p, p0, resampled = [], [], np.zeros((len(weights), codes.d_sae))
    for lag in lags:
        low, high, n_pairs = _overlap_sums(codes, matrix, rank, lag)
        p.append(ratio(low.sum(0), high.sum(0)))
        p0.append(_chance_level(chance, n_pairs, codes.d_sae))
        boot = ratio((low.T @ weights.T).T, (high.T @ weights.T).T)
        resampled += np.maximum(_above_chance(boot, p0[-1]), 0) / len(lags)
    level = np.stack(p0)
    n_active, n_documents = _activity(codes, matrix, rank)
    eligible = (
        (n_active >= min_tokens) & (n_documents >= min_documents) & (level.max(0) <= max_chance)
    )
    return _stability(
        lags, np.stack(p), level, eligible, matrix.sum(0), resampled, int(rank.max()) + 1
    )


def _stability(
    lags: tuple[int, ...],
    p: Float[np.ndarray, "lags d_sae"],
    p0: Float[np.ndarray, "lags d_sae"],
    eligible: Bool[np.ndarray, " d_sae"],
    contribution: Float[np.ndarray, " d_sae"],
    resampled: Float[np.ndarray, "n_boot d_sae"],
    n_doc: int,
) -> Stability:
    kappa = _above_chance(p, p0)
    even, by_activity = eligible.astype(float), eligible * contribution
    macro_by_lag, weighted_by_lag = (
        _weighted_mean(np.maximum(kappa, 0), w) for w in (even, by_activity)
    )
    macro_replicates, weighted_replicates = (
        _weighted_mean(resampled, w) for w in (even, by_activity)
    )
    return Stability(
        lags=lags,
        p=p,
        p0=p0,
        kappa=kappa,
        eligible=eligible,
        eligible_frac=float(eligible.mean()),
        macro_by_lag=macro_by_lag,
        weighted_by_lag=weighted_by_lag,
        macro=float(macro_by_lag.mean()),
        weighted=float(weighted_by_lag.mean()),
        macro_replicates=macro_replicates,
        weighted_replicates=weighted_replicates,
        macro_interval=interval(float(macro_by_lag.mean()), macro_replicates, n_doc),
        weighted_interval=interval(float(weighted_by_lag.mean()), weighted_replicates, n_doc),
    )


def _weighted_mean(
    values: Float[np.ndarray, "rows d_sae"], weight: Float[np.ndarray, " d_sae"]
) -> Float[np.ndarray, " rows"]:
    """Weighted mean of each row; 0 where nothing has weight."""
    return values @ weight / weight.sum() if weight.sum() > 0 else np.zeros(len(values))


def _above_chance(p: np.ndarray, p0: np.ndarray) -> np.ndarray:
    return ratio(p - p0, np.broadcast_to(1 - p0, p.shape))


def _overlap_sums(
    codes: CodedText, matrix: sparse.csr_array, rank: Int[np.ndarray, " n_seq"], lag: int
) -> tuple[sparse.csr_array, sparse.csr_array, Int[np.ndarray, " n_doc"]]:
    """Sums of min and of max over each document's pairs at `lag`, both (n_doc, d_sae), and the
    number of pairs.
    """
    first, second = _pairs(codes, lag)
    document = np.repeat(rank, codes.valid.shape[1])[first]
    n_doc = int(rank.max()) + 1
    shape = (n_doc, len(first))
    member = sparse.csr_array((np.ones(len(first)), (document, np.arange(len(first)))), shape=shape)
    earlier, later = matrix[first], matrix[second]
    low = member @ earlier.minimum(later)
    return low, member @ earlier + member @ later - low, np.bincount(document, minlength=n_doc)


@dataclass(frozen=True, eq=False)
class ChanceSums:
    """Per group (feature, document) the sums of `p0`; with the global null all documents are one
    group.
    """

    feature: Int[np.ndarray, " group"]
    document: Int[np.ndarray, " group"]
    low: Float[np.ndarray, " group"]  # sum_i (N-i) a_(i)
    high: Float[np.ndarray, " group"]  # sum_i (i-1) a_(i)
    n_tokens: Int[np.ndarray, " n_doc"]  # N of each document
    pooled: bool


def _chance_sums(
    codes: CodedText, matrix: sparse.csr_array, rank: Int[np.ndarray, " n_seq"], null: Null
) -> ChanceSums:
    pooled = null == "global"
    chunk_rank = np.zeros_like(rank) if pooled else rank
    n_tokens = np.bincount(chunk_rank, weights=codes.valid.numpy().sum(1)).astype(np.int64)
    entries = matrix.tocoo()
    document = chunk_rank[entries.coords[0] // codes.valid.shape[1]]
    group = entries.coords[1].astype(np.int64) * len(n_tokens) + document
    order = np.lexsort((entries.data, group))
    value, (ids, first, size) = (
        entries.data[order],
        np.unique(group[order], return_index=True, return_counts=True),
    )
    n = n_tokens[ids % len(n_tokens)]
    above = (
        np.repeat(first + size, size) - 1 - np.arange(len(value))
    )  # N - i, for the i-th of N with the zeros first
    below = np.repeat(n, size) - 1 - above  # i - 1
    member = np.repeat(np.arange(len(ids)), size)
    low, high = (_sums(member, value * times, len(ids)) for times in (above, below))
    return ChanceSums(ids // len(n_tokens), ids % len(n_tokens), low, high, n_tokens, pooled)


def _chance_level(
    chance: ChanceSums, n_pairs: Int[np.ndarray, " n_doc"], d_sae: int
) -> Float[np.ndarray, " d_sae"]:
    """`p0` of each feature: a document's expected min and max, times its number of pairs at the
    lag.
    """
    n = chance.n_tokens
    weight = np.ones(1) if chance.pooled else ratio(n_pairs, n * (n - 1.0))
    low, high = (
        _sums(chance.feature, part * weight[chance.document], d_sae)
        for part in (chance.low, chance.high)
    )
    return ratio(low, high)


def _sums(group: np.ndarray, values: np.ndarray, n_groups: int) -> np.ndarray:
    """Sum of the values of each group, float also when there are none."""
    return np.bincount(group, values, minlength=n_groups).astype(float)


def _activity(
    codes: CodedText, matrix: sparse.csr_array, rank: Int[np.ndarray, " n_seq"]
) -> tuple[Int[np.ndarray, " d_sae"], Int[np.ndarray, " d_sae"]]:
    """Active tokens and documents with at least one, of each feature."""
    token, feature = matrix.nonzero()
    n_doc = int(rank.max()) + 1
    seen = np.unique(feature.astype(np.int64) * n_doc + rank[token // codes.valid.shape[1]])
    return np.bincount(feature, minlength=codes.d_sae), np.bincount(
        seen // n_doc, minlength=codes.d_sae
    )


def resamples(
    n: int, n_boot: int, generator: torch.Generator | None = None
) -> Float[np.ndarray, "n_boot n"]:
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
    generator: torch.Generator | None = None,
) -> Float[np.ndarray, " n_boot"]:
    """`sum(top) / sum(bottom)` over the units of each bootstrap sample; 0 where the bottom is 0."""
    weights = resamples(len(top), n_boot, generator)
    over, under = weights @ top, weights @ bottom
    return np.divide(over, under, out=np.zeros(len(weights)), where=under != 0)


def interval(
    value: float,
    replicates: Float[np.ndarray, " n_boot"],
    n: int,
    least: float = 0.0,
    most: float = 1.0,
) -> tuple[float, float]:
    """95 % interval `value +- t sd(replicates) sqrt(n / (n - 1))`, cut to [least, most].

    n units were resampled, t has n - 1 degrees of freedom. Without two replicates and two units it
    is [least, most]. Not percentile: a ratio of sums has a bias of order 1 / n that every bootstrap
    sample repeats, so that a percentile interval of a mean over thousands of features can miss the
    very value it is of.
    """
    if len(replicates) < 2 or n < 2:
        return least, most
    half = float(stats.t.ppf(0.975, n - 1) * replicates.std(ddof=1) * np.sqrt(n / (n - 1)))
    return max(value - half, least), min(value + half, most)


# ---------------------------------------------------------------- responsiveness and smoothness


@dataclass(frozen=True, eq=False)
class Responsiveness:
    """Mean similarity of neighbouring codes, inside a document and across a splice of two."""

    within: float
    across: float
    value: float  # within - across, in [-1, 1]; a frozen code scores 0
    n_splices: int


def splice_documents(
    x: Float[Tensor, "n_seq seq d_in"], document: Int[Tensor, " n_seq"], at: int
) -> tuple[Float[Tensor, "n_spliced seq d_in"], Int[Tensor, " n_spliced"]]:
    """Chunks that begin as one document and go on, from position `at`, as another: (x, index of the
    chunk begun with).

    Encode the result and give it to `responsiveness`. Each chunk is continued by one of another
    document (the chunks in order of document, moved on by the size of the largest); chunks that
    cannot be are left out. `x` may be the activations, or anything else by token. Raises ValueError
    for a seam outside the chunk or a single document.
    """
    if not 0 < at < x.shape[1]:
        raise ValueError(f"splice needs 0 < at < {x.shape[1]}; got {at}")
    order = document.argsort(stable=True)
    other = order.roll(-int(document.unique(return_counts=True)[1].max()))
    differ = document[order] != document[other]
    if not differ.any():
        raise ValueError("splice needs chunks of at least two documents; got one")
    begun, continued = order[differ], other[differ]
    return torch.cat([x[begun, :at], x[continued, at:]], dim=1), begun


def responsiveness(
    codes: CodedText, at: int | None = None, dec_norm: Float[Tensor, " d_sae"] | None = None
) -> Responsiveness:
    """`within - across`: does the code let go when the text changes? In [-1, 1]; high TSS with a
    low value is a lag.

    Similarity of two tokens is `sum_f min(a, b) / sum_f max(a, b)` of their contributions (0 for
    two empty codes). With `at`, `codes` are of chunks spliced by `splice` at that position: the
    state is carried over the seam, and across is the pair (at - 1, at). Without, across is the last
    token of a chunk and the first of the next of another document: what similarity two texts have
    when nothing is carried. Raises ValueError if there is no such pair.
    """
    matrix, seq = token_matrix(codes, dec_norm), codes.valid.shape[1]
    first, second = _pairs(codes, 1)
    seam = second % seq == at if at is not None else np.zeros(len(second), bool)
    across = (first[seam], second[seam]) if at is not None else _document_ends(codes)
    if len(across[0]) == 0 or seam.all():
        raise ValueError(
            "responsiveness needs pairs of neighbours inside a document and across a seam; got none"
        )
    inside = float(_similarity(matrix, first[~seam], second[~seam]).mean())
    outside = float(_similarity(matrix, *across).mean())
    return Responsiveness(inside, outside, inside - outside, len(across[0]))


def _document_ends(
    codes: CodedText,
) -> tuple[Int[np.ndarray, " splices"], Int[np.ndarray, " splices"]]:
    """Rows of the last token of a chunk and of the first of the next chunk, where that is of
    another document.
    """
    length = codes.valid.sum(1).numpy()
    chunk = np.flatnonzero(length > 0)
    before, after = chunk[:-1], chunk[1:]
    differ = (codes.document.numpy()[before] != codes.document.numpy()[after]).nonzero()[0]
    seq = codes.valid.shape[1]
    return before[differ] * seq + length[before[differ]] - 1, after[differ] * seq


def smoothness(codes: CodedText, x: Float[Tensor, "n_seq seq d_in"]) -> float:
    """`max_t |a_t - a_{t-1}| / |x_t - x_{t-1}|_2`, the mean over the features active in a chunk and
    over chunks.

    Our reading of T-SAE's smoothness (Bhalla et al. 2025, arXiv 2511.05541): lower is smoother; >=
    0, in units of activation by norm of x. It depends on the scale of the code and rewards silence:
    never a headline. Pairs whose x are closer than 1e-8 are left out. Raises ValueError if no pair
    or no active feature is left.
    """
    if x.shape[:2] != codes.valid.shape:
        raise ValueError(
            f"smoothness needs x {tuple(codes.valid.shape)} + (d_in,); got {tuple(x.shape)}"
        )
    first, second = _pairs(codes, 1)
    distance = _distance(x.detach().cpu().reshape(-1, x.shape[-1]), first, second)
    apart = distance > EPS_DISTANCE
    first, second, distance = first[apart], second[apart], distance[apart]
    matrix, seq = token_matrix(codes), codes.valid.shape[1]
    slope = abs(matrix[first] - matrix[second]).tocoo()
    token, feature = matrix.nonzero()
    compared = np.isin(token, np.union1d(first, second))
    groups = np.unique(
        feature[compared].astype(np.int64) * len(codes.valid) + token[compared] // seq
    )
    if len(groups) == 0:
        raise ValueError(
            "smoothness needs an active feature and two different neighbouring x; got none"
        )
    group = slope.coords[1].astype(np.int64) * len(codes.valid) + first[slope.coords[0]] // seq
    steepest = np.zeros(len(groups))
    np.maximum.at(steepest, np.searchsorted(groups, group), slope.data / distance[slope.coords[0]])
    return float(steepest.mean())


def _distance(
    flat: Float[Tensor, "n_tokens d_in"],
    first: Int[np.ndarray, " pairs"],
    second: Int[np.ndarray, " pairs"],
) -> Float[np.ndarray, " pairs"]:
    """Euclidean distance of each pair of rows, in blocks so that no copy of all rows is made."""
    blocks = range(0, len(first), 16_384)
    parts = [
        (flat[first[b : b + 16_384]] - flat[second[b : b + 16_384]]).double().norm(dim=-1)
        for b in blocks
    ]
    return torch.cat(parts).numpy()
