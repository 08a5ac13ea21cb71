"""A start for the decoder LSTM that is useful at once: leaky integrators with a least-squares read-out.

In a few hundred steps from random weights an LSTM learns less of the static SAE's error than a linear model of running
means of what was decoded. So the LSTM begins as that linear model: each quarter of its units integrates, with one
decay, the directions of the decoded activations that foretell the error best (reduced-rank regression); training goes
on from there.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kernels import lstm
from tsae import Dials, Params, decode_static, encode_static

DECAYS = (0.0, 0.5, 0.8, 0.95)  # of what was decoded, a token
AMPLITUDE = 0.3  # root mean square of a unit's input: tanh is near linear there
RIDGE_INPUT, RIDGE_OUTPUT = 0.02, 0.005  # relative to the mean variance of the regressors
ROWS = 64  # sequences a call


def integrators(
    params: Params, x: Float[Tensor, "batch seq d_in"], valid: Bool[Tensor, "batch seq"], dials: Dials
) -> Params:
    """`params` with a decoder LSTM that explains the static SAE's error on the valid tokens of `x` linearly.

    Unit u of decay d: input gate 1 - d, forget gate d, output gate 0.95, candidate tanh(0.3 p_u r), where
    `r = (x_hat - b_dec) / scale` and p_u is one of the leading left singular directions, in the metric of r's
    covariance, of the ridge regression of the error on all running means; no recurrent weights. `W_out` is the ridge
    regression of the error on the units. Raises ValueError where no token is valid.
    """
    static, t = params.static, params.temporal
    if not valid.any():
        raise ValueError("integrators needs at least one valid token; got none")
    parts = [decode_static(encode_static(part, static, dials.k, dials.low), static) for part in x.split(ROWS)]
    base = torch.cat(parts)
    r, error = (base - static.b_dec) / t.scale, ((x - base) / t.scale)[valid]
    W_x, b = _units(r, error, valid, len(t.dec_W_h))
    zeros, W_h = r.new_zeros(ROWS, len(t.dec_W_h)), torch.zeros_like(t.dec_W_h)
    states = [lstm(part, zeros[: len(part)], zeros[: len(part)], W_x, W_h, b)[0] for part in r.split(ROWS)]
    W_out = _ridge(torch.cat(states)[valid], error, RIDGE_OUTPUT)
    return replace(params, temporal=replace(t, dec_W_x=W_x, dec_W_h=W_h, dec_b=b, W_out=W_out))


def _units(r: Tensor, error: Tensor, valid: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    """Input weights (d_in, 4 hidden) and biases of the integrators."""
    means = [running_mean(r, decay)[valid] for decay in DECAYS]
    by_mean = _ridge(torch.cat(means, 1), error, RIDGE_INPUT).split(r.shape[-1])
    W_x, b = r.new_zeros(r.shape[-1], 4, hidden), r.new_zeros(4, hidden)
    for units, decay, mean, weight in zip(_shares(hidden), DECAYS, means, by_mean, strict=True):
        covariance = mean.t() @ mean / len(mean)
        jitter = 1e-4 * covariance.diagonal().mean().clamp(min=1e-12)
        root = torch.linalg.cholesky(covariance + jitter * torch.eye(len(covariance)).to(r))
        leading = torch.linalg.svd(root.t() @ weight)[0][:, : len(units)]
        found = torch.linalg.solve_triangular(root.t(), leading, upper=True)  # unit variance on the running mean
        W_x[:, 3, units[: found.shape[1]]] = AMPLITUDE * found  # more units than dimensions: the rest starts silent
        forget = math.log(max(decay, 0.01) / (1 - max(decay, 0.01)))
        b[0, units], b[1, units], b[2, units] = 3.0, -forget, forget
    return W_x.flatten(1), b.flatten()


def _shares(hidden: int) -> list[list[int]]:
    """The units of each decay, in turn."""
    return [list(range(at, hidden, len(DECAYS))) for at in range(len(DECAYS))]


def running_mean(r: Float[Tensor, "batch seq d"], decay: float) -> Float[Tensor, "batch seq d"]:
    """`m_t = decay m_{t-1} + (1 - decay) r_t`, from 0 at each sequence's start."""
    out, mean = torch.empty_like(r), torch.zeros_like(r[:, 0])
    for t in range(r.shape[1]):
        mean = decay * mean + (1 - decay) * r[:, t]
        out[:, t] = mean
    return out


def _ridge(A: Tensor, y: Tensor, ridge: float) -> Tensor:
    """`argmin ||y - A W||^2 + lambda ||W||^2`, lambda relative to the mean diagonal of `A^T A`."""
    gram = A.t() @ A
    penalty = ridge * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram)).to(gram)
    return torch.linalg.solve(gram + penalty, A.t() @ y)
