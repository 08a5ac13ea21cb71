"""How a code uses its features, how alike two seeds' features fire, what a window can explain."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from metrics import CodedText, token_matrix

ROWS_AT_ONCE = 64  # sequences whose regressors are in memory


def utilisation(codes: CodedText, dec_norm: Float[Tensor, " d_sae"]) -> float | None:
    """Hill number of order 1 of the features' shares of all contributions, by d_sae; in (0, 1].

    `exp(-sum p log p) / d_sae` with p the share of `sum_t acts * dec_norm`: 1 where all features
    carry as much, 1 / d_sae where one carries all. None of an empty code.
    """
    mass = np.asarray(token_matrix(codes, dec_norm).sum(0)).ravel()
    if not mass.sum() > 0:
        return None
    p = mass[mass > 0] / mass.sum()
    return float(np.exp(-(p * np.log(p)).sum()) / codes.d_sae)


def pattern_match(first: CodedText, second: CodedText, min_tokens: int = 10) -> float | None:
    """Mean over the features of `first` of the best cosine of their activations over tokens with a
    feature of `second`; in [0, 1]. Features on at fewer than `min_tokens` tokens are left out; None
    where none is left. Not of decoder directions: two features may point alike and fire apart.
    """
    if first.valid.shape != second.valid.shape:
        shapes = f"{tuple(first.valid.shape)} and {tuple(second.valid.shape)}"
        raise ValueError(f"pattern_match needs codes of the same tokens; got {shapes}")
    own, other = (_unit_columns(codes, min_tokens) for codes in (first, second))
    if own.nnz == 0 or other.nnz == 0:
        return None
    cosines = sparse.csr_array(own.T @ other)
    return float(cosines.max(axis=1).toarray().mean())


def _unit_columns(codes: CodedText, min_tokens: int) -> sparse.csc_array:
    matrix = sparse.csc_array(token_matrix(codes))
    matrix = matrix[:, np.flatnonzero(np.diff(matrix.indptr) >= min_tokens)]
    norm = np.sqrt(np.asarray(matrix.multiply(matrix).sum(0)).ravel())
    return sparse.csc_array(matrix @ sparse.diags_array(1 / norm))


def window_explains(
    train: Float[Tensor, "n_train seq d_in"],
    val: Float[Tensor, "n_val seq d_in"],
    windows: Sequence[int],
    n_directions: int = 32,
    ridge: float = 1e-3,
) -> dict[int, float | None]:
    """FVE on `val` of x_t by ridge regression on the `w` tokens before it, per w of `windows`.

    Of the past the first `n_directions` principal components of `train` are read, of x_t all
    dimensions are foretold. The tokens are the same for all windows: real ones (x not all 0) with
    the longest window before them; None for all where there is none.
    """
    flat, longest = train[(train != 0).any(-1)], max(windows)
    mean = flat.mean(0)
    basis = torch.linalg.svd(flat[:20_000] - mean, full_matrices=False)[2][:n_directions].t()
    if min(int((x[:, longest:] != 0).any(-1).sum()) for x in (train, val)) == 0:
        return dict.fromkeys(windows)
    size = 1 + longest * basis.shape[1]
    gram, cross = (torch.zeros(size, n, dtype=torch.float64) for n in (size, train.shape[2]))
    for rows in train.split(ROWS_AT_ONCE):
        A, y = _lagged(rows, mean, basis, longest)
        gram += A.t() @ A
        cross += A.t() @ y
    A, y = _lagged(val, mean, basis, longest)
    spread, out = (y - y.mean(0)).double().square().sum(), {}
    for w in windows:
        n = 1 + w * basis.shape[1]  # the constant, then the nearest tokens
        penalty = ridge * gram[:n, :n].diagonal().mean() * torch.eye(n, dtype=gram.dtype)
        W = torch.linalg.solve(gram[:n, :n] + penalty, cross[:n])
        error = (y - A[:, :n] @ W.to(A.dtype)).double().square().sum()
        out[w] = float(1 - error / spread)
    return out


def _lagged(x: Tensor, mean: Tensor, basis: Tensor, w: int) -> tuple[Tensor, Tensor]:
    """A 1 and the last w tokens' components, nearest first, of each token that has them; the
    centred token."""
    real, seq = (x != 0).any(-1), x.shape[1]
    if seq <= w:
        return x.new_zeros(0, 1 + w * basis.shape[1]), x.new_zeros(0, x.shape[2])
    parts, now = (x - mean) @ basis, real[:, w:]  # padding is at the end of a sequence
    past = torch.cat([parts[:, w - j : seq - j] for j in range(1, w + 1)], -1)
    ones = torch.ones(int(now.sum()), 1, dtype=x.dtype)
    return torch.cat([ones, past[now]], 1), (x[:, w:] - mean)[now]
