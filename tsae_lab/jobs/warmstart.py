"""The decoder LSTM's start: a least-squares fit of what the static SAE leaves, on running means."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

import tsae
import tsae_kernels
from tsae import Dials, Params, Starts

DECAYS = (0.0, 0.5, 0.8, 0.95)  # of a unit's running mean, per token
AMPLITUDE = 0.3  # root mean square of a unit's input: tanh is near linear there
RIDGE_INPUT, RIDGE_OUTPUT = 0.02, 0.005  # relative to the mean variance of the regressors
START_ROWS = 64  # sequences per call


def integrators(
    params: Params,
    x: Float[Tensor, "batch seq d_in"],
    valid: Bool[Tensor, "batch seq"],
    dials: Dials,
    starts: Starts = None,
) -> Params:
    """`params` with a decoder LSTM that explains the static SAE's error on the valid tokens of `x`.

    Unit u of decay d: input gate 1 - d, forget gate d, output gate 0.95, candidate tanh(0.3 p_u r),
    where `r = (x_hat - b_dec) / scale` and p_u is one of the leading left singular directions, in
    the metric of r's covariance, of the ridge regression of the error on all running means; no
    recurrent weights. `W_out` is the ridge regression of the error on the units. Where every token
    begins a document, all units have decay 0. Raises ValueError where no token is valid.
    """
    static, t = params.static, params.temporal
    if not valid.any():
        raise ValueError("integrators needs at least one valid token; got none")
    codes = [tsae.encode_static(rows, static, dials.k, dials.low) for rows in x.split(START_ROWS)]
    base = torch.cat([tsae.decode_static(row_codes, static) for row_codes in codes])
    r, error = (base - static.b_dec) / t.scale, ((x - base) / t.scale)[valid]
    past = starts is None or not starts.to(valid.device)[valid].all()
    means = [running_mean(r, decay, starts)[valid] for decay in DECAYS[: None if past else 1]]
    W_x, b = _units(means, error, len(t.dec_W_h))
    zeros, W_h = r.new_zeros(START_ROWS, len(t.dec_W_h)), torch.zeros_like(t.dec_W_h)
    begun = [None] * len(codes) if starts is None else starts.split(START_ROWS)
    states = [
        tsae_kernels.lstm(rows, zero, zero, W_x, W_h, b, starts=new)[0]
        for rows, new in zip(r.split(START_ROWS), begun, strict=True)
        for zero in [zeros[: len(rows)]]
    ]
    W_out = _ridge(torch.cat(states)[valid], error, RIDGE_OUTPUT)
    return replace(params, temporal=replace(t, dec_W_x=W_x, dec_W_h=W_h, dec_b=b, W_out=W_out))


def _units(means: Sequence[Tensor], error: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    """Input weights (d_in, 4 hidden) and biases of the integrators."""
    d_in = error.shape[1]
    by_mean = _ridge(torch.cat(list(means), 1), error, RIDGE_INPUT).split(d_in)
    W_x, b = error.new_zeros(d_in, 4, hidden), error.new_zeros(4, hidden)
    shares = _shares(hidden, len(means))
    for units, decay, mean, weight in zip(shares, DECAYS, means, by_mean, strict=False):
        covariance = mean.t() @ mean / len(mean)
        jitter = 1e-4 * covariance.diagonal().mean().clamp(min=1e-12)
        root = torch.linalg.cholesky(covariance + jitter * torch.eye(len(covariance)).to(error))
        leading = torch.linalg.svd(root.t() @ weight)[0][:, : len(units)]
        # unit variance on the running mean; more units than dimensions: the rest starts silent
        directions = torch.linalg.solve_triangular(root.t(), leading, upper=True)
        W_x[:, 3, units[: directions.shape[1]]] = AMPLITUDE * directions
        forget = math.log(max(decay, 0.01) / (1 - max(decay, 0.01)))
        b[0, units], b[1, units], b[2, units] = 3.0, -forget, forget
    return W_x.flatten(1), b.flatten()


def _shares(hidden: int, n: int) -> list[list[int]]:
    """The units of each of `n` decays, in turn."""
    return [list(range(first, hidden, n)) for first in range(n)]


def running_mean(
    r: Float[Tensor, "batch seq d"], decay: float, starts: Starts = None
) -> Float[Tensor, "batch seq d"]:
    """`m_t = decay m_{t-1} + (1 - decay) r_t`, from 0 where a sequence begins and at `starts`."""
    out, mean = torch.empty_like(r), torch.zeros_like(r[:, 0])
    for t in range(r.shape[1]):
        mean = mean if starts is None else mean * ~starts[:, t, None].to(r.device)
        mean = decay * mean + (1 - decay) * r[:, t]
        out[:, t] = mean
    return out


def _ridge(A: Tensor, y: Tensor, ridge: float) -> Tensor:
    """`argmin ||y - A W||^2 + lambda ||W||^2`, lambda relative to the mean diagonal of `A^T A`."""
    gram = A.t() @ A
    penalty = ridge * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram)).to(gram)
    return torch.linalg.solve(gram + penalty, A.t() @ y)
