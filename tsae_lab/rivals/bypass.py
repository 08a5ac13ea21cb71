"""Controls (d): a static top-k SAE with a dense path of as many parameters as the decoder LSTM.

`bypass`: `x_hat = own + ((x - b_dec) W_down) W_up`, where `own = acts W_dec + b_dec`, past the code
(compare arXiv 2606.14040): low-rank only where the LSTM has fewer than 2 d_in^2 parameters.
`memoryless`: `x_hat = own + s relu((own - b_dec) / s W_down + b_down) W_up`, of the code's
reconstruction as the LSTM is, token by token (s is the activations' root mean square): what the
LSTM's parameters are worth without a state. W_up starts at 0: the start is the static SAE.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

import tsae
from tsae import Codes
from tsae_lab.rivals.system import Explained, Named, System, squared_error, start_tensors

Added = Callable[[Named, Tensor, Tensor], Tensor]
"""What the dense path adds, of named tensors, x and the code's reconstruction."""


def bypass_system(*, k: int, d_sae: int, low: torch.dtype, width: int) -> System:
    """Static top-k with a dense path from x, of this rank."""

    def of_x(named: Named, x: Tensor, own: Tensor) -> Tensor:  # noqa: ARG001
        return (x - named["b_dec"].detach()) @ named["W_down"] @ named["W_up"]

    return _with_path(of_x, k=k, d_sae=d_sae, low=low, width=width, biased=False)


def memoryless_system(*, k: int, d_sae: int, low: torch.dtype, width: int) -> System:
    """Static top-k with a hidden layer of so many units that reads the code's reconstruction."""

    def of_own(named: Named, x: Tensor, own: Tensor) -> Tensor:
        scale = (named["unit"] / x.shape[-1]).sqrt()
        read = (own - named["b_dec"]) / scale
        return scale * ((read @ named["W_down"] + named["b_down"]).relu() @ named["W_up"])

    return _with_path(of_own, k=k, d_sae=d_sae, low=low, width=width, biased=True)


def lstm_width(d_in: int, hidden: int) -> int:
    """Units of a dense path with as many weights as a decoder LSTM of `hidden` units has."""
    lstm = 4 * hidden * (d_in + hidden + 1) + hidden * d_in
    return max(1, round(lstm / (2 * d_in)))


def _with_path(
    added: Added, *, k: int, d_sae: int, low: torch.dtype, width: int, biased: bool
) -> System:
    """A static SAE with a dense path beside it."""

    def run(named: Named, x: Tensor) -> tuple[Tensor, Codes]:
        static = tsae.Static(**{n: named[n] for n in tsae.Static.__dataclass_fields__})
        codes = tsae.encode_static(x, static, k, low)
        own = tsae.decode_static(codes, static)
        return own + added(named, x, own), codes

    def explain(named: Named, x: Tensor, weight: Tensor, share: float) -> Explained:  # noqa: ARG001
        x_hat, codes = run(dict(named), x)
        codes = Codes(codes.vals.detach(), codes.idx)
        return Explained(loss=squared_error(x, x_hat, weight), x_hat=x_hat, codes=codes)

    def start(tokens: Tensor, generator: Generator) -> dict[str, Tensor]:
        named, d_in = start_tensors(tokens, d_sae, generator), tokens.shape[1]
        down = torch.randn(d_in, width, generator=generator) / math.sqrt(d_in)
        named |= {"W_down": down.to(tokens), "W_up": tokens.new_zeros(width, d_in)}
        return named | ({"b_down": tokens.new_zeros(width)} if biased else {})

    return System(start=start, explain=explain, run=run)
