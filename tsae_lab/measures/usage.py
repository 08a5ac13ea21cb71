"""How a code uses its features, how alike two seeds' features fire, what a window can explain."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from metrics import CodedText, token_matrix


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
    dimensions are foretold. Only whole windows of real tokens (x not all 0) count; None where no
    sequence is long enough.
    """
    flat = train[(train != 0).any(-1)].double()
    mean = flat.mean(0)
    _, _, basis = torch.linalg.svd(flat[:20_000] - mean, full_matrices=False)
    basis = basis[:n_directions].t()
    out: dict[int, float | None] = {}
    for w in windows:
        rows = [_lagged(x.double(), mean, basis, w) for x in (train, val)]
        if min(len(y) for _, y in rows) == 0:
            out[w] = None
            continue
        (A, y), (A_val, y_val) = rows
        gram = A.t() @ A
        penalty = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        W = torch.linalg.solve(gram + penalty, A.t() @ y)
        error, spread = (y_val - A_val @ W).square().sum(), (y_val - y_val.mean(0)).square().sum()
        out[w] = float(1 - error / spread)
    return out


def _lagged(x: Tensor, mean: Tensor, basis: Tensor, w: int) -> tuple[Tensor, Tensor]:
    """The last w tokens' components of each token that has them, a 1, and the centred token."""
    real, seq = (x != 0).any(-1), x.shape[1]
    if seq <= w:
        return x.new_zeros(0, 1), x.new_zeros(0, x.shape[2])
    parts = (x - mean) @ basis
    past = torch.cat([parts[:, w - j : seq - j] for j in range(1, w + 1)], -1)
    now = real[:, w:]  # padding is at the end: what comes before a real token is real
    ones = torch.ones(int(now.sum()), 1, dtype=x.dtype)
    return torch.cat([past[now], ones], 1), (x[:, w:] - mean)[now]
