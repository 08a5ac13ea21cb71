"""Control (d): a static top-k SAE with a low-rank dense path from x_t past the code.

`x_hat = acts W_dec + b_dec + ((x - b_dec) W_down) W_up`, of as many parameters as the decoder LSTM
has (compare arXiv 2606.14040): what a dense path without any memory is worth. W_up starts at 0: the
start is the static SAE.
"""

import math

import torch
from torch import Generator, Tensor

import tsae
from tsae import Codes
from tsae_lab.rivals.system import Explained, Named, System, squared_error, start_tensors


def bypass_system(*, k: int, d_sae: int, low: torch.dtype, rank: int) -> System:
    """Static top-k with a dense path of this rank."""

    def run(named: Named, x: Tensor) -> tuple[Tensor, Codes]:
        static = tsae.Static(**{n: named[n] for n in tsae.Static.__dataclass_fields__})
        centred = x - named["b_dec"].detach()
        dense = centred @ named["W_down"] @ named["W_up"]
        codes = tsae.encode_static(x, static, k, low)
        return tsae.decode_static(codes, static) + dense, codes

    def explain(named: Named, x: Tensor, weight: Tensor, share: float) -> Explained:  # noqa: ARG001
        x_hat, codes = run(dict(named), x)
        codes = Codes(codes.vals.detach(), codes.idx)
        return Explained(loss=squared_error(x, x_hat, weight), x_hat=x_hat, codes=codes)

    def start(tokens: Tensor, generator: Generator) -> dict[str, Tensor]:
        named, d_in = start_tensors(tokens, d_sae, generator), tokens.shape[1]
        down = torch.randn(d_in, rank, generator=generator) / math.sqrt(d_in)
        return named | {"W_down": down.to(tokens), "W_up": tokens.new_zeros(rank, d_in)}

    return System(start=start, explain=explain, run=run)


def lstm_rank(d_in: int, hidden: int) -> int:
    """Rank of the dense path with as many parameters as a decoder LSTM of `hidden` units has."""
    lstm = 4 * hidden * (d_in + hidden + 1) + hidden * d_in
    return max(1, round(lstm / (2 * d_in)))
