"""Controls without training: averages over a trained static SAE's codes, and a shuffled memory.

The average of the codes of token t and those before it, by feature, is cut to its k largest and
decoded by the static SAE, times one scalar: the least-squares one on training tokens. A memory has
to beat it. Nobody seems to have published it.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

import tsae
import tsae_kernels
from tsae import Codes, Sae
from tsae_lab.rivals.system import Run

Average = Callable[[Float[Tensor, "batch seq d_sae"]], Float[Tensor, "batch seq d_sae"]]


def exponential_mean(acts: Float[Tensor, "batch seq d"], decay: float) -> Tensor:
    """`m_t = decay m_{t-1} + (1 - decay) acts_t`, from m = 0."""
    out, mean = [], torch.zeros_like(acts[:, 0])
    for now in acts.unbind(1):
        mean = decay * mean + (1 - decay) * now
        out.append(mean)
    return torch.stack(out, 1)


def window_mean(acts: Float[Tensor, "batch seq d"], window: int) -> Tensor:
    """Mean of the codes of the last `window` tokens, t among them; 0 before a sequence's start."""
    summed = torch.nn.functional.pad(acts.double().cumsum(1), (0, 0, window, 0))
    return ((summed[:, window:] - summed[:, :-window]) / window).clamp(min=0).to(acts)


def averaged_codes(static: Sae, x: Tensor, average: Average) -> Codes:
    """The k largest of the averaged static codes."""
    codes = tsae.encode_static(x, static.params.static, static.dials.k, static.dials.low)
    smooth = average(tsae.dense(codes, static.d_sae)).flatten(0, 1)
    idx = tsae_kernels.topk_idx(smooth, static.dials.k)
    vals = smooth.gather(1, idx)
    return Codes(vals.view(codes.vals.shape), idx.view(codes.idx.shape))


def fitted_scale(static: Sae, x: Tensor, valid: Tensor, average: Average) -> float:
    """The scalar c of least `||x - b_dec - c codes W_dec||^2` on the valid tokens of x."""
    b_dec = static.params.static.b_dec
    shape = tsae.decode_static(averaged_codes(static, x, average), static.params.static) - b_dec
    y, own = (x - b_dec)[valid].double(), shape[valid].double()
    return float((y * own).sum() / own.square().sum().clamp(min=1e-12))


def averaged_run(static: Sae, average: Average, scale: float) -> Run:
    """Reconstruction and codes of the averaged static codes, values times `scale`."""

    def run(x: Tensor) -> tuple[Tensor, Codes]:
        codes = averaged_codes(static, x, average)
        codes = Codes(codes.vals * scale, codes.idx)
        return tsae.decode_static(codes, static.params.static), codes

    return run


def shuffled_memory_run(sae: Sae, seed: int) -> Run:
    """Control (e): a TSAE each of whose tokens reads its memory's tokens in random order.

    What is left of its gain is pooling, not order. For each offset one pass in which the held codes
    are permuted within blocks of `window` tokens, so that the memory of every token right after a
    block holds that token's own window, permuted.
    """
    window = sae.dials.window

    def run(x: Tensor) -> tuple[Tensor, Codes]:
        generator = Generator().manual_seed(seed)
        state = tsae.start_state(sae.params, len(x), sae.dials)
        seen = tsae.see(sae.params, x.to(sae.params.static.b_dec), sae.dials, state)
        vals, idx = torch.zeros_like(seen.static.vals), torch.zeros_like(seen.static.idx)
        for offset in range(min(window, x.shape[1])):
            order = block_order(x.shape[1], offset, window, generator).to(x.device)
            held = Codes(seen.static.vals[:, order], seen.static.idx[:, order])
            codes = tsae.codes_with(sae.params, seen, held, state.memory, sae.dials)
            vals[:, offset::window] = codes.vals[:, offset::window]
            idx[:, offset::window] = codes.idx[:, offset::window]
        shuffled = Codes(vals, idx)
        return tsae.decode(sae.params, shuffled, replace(sae.dials))[0], shuffled

    return run


def block_order(seq: int, offset: int, window: int, generator: Generator) -> Int[Tensor, " seq"]:
    """Tokens 0 .. seq - 1, permuted in blocks that end before `offset`, `offset + window`, ...

    The first block has `offset` tokens: a window that is not yet full stays the most recent.
    """
    ends = [*range(offset, seq, window), seq]
    begins = [0, *ends[:-1]]
    blocks = [
        b + torch.randperm(e - b, generator=generator) for b, e in zip(begins, ends, strict=True)
    ]
    return torch.cat(blocks)


def averages(tau: float, window: int) -> dict[str, Average]:
    """The averages that are compared, with the memory's own time constant and window."""
    decay = math.exp(-1 / tau)
    return {
        "posthoc_ema": lambda acts: exponential_mean(acts, decay),
        "posthoc_window": lambda acts: window_mean(acts, window),
    }
