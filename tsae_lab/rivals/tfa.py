"""TFA (Lubana, Rager, Hindupur et al. 2025, arXiv 2511.01836): a predictable and a novel part.

`z_t = relu(pre_t)` dense; attention with query z_t over keys and values 0, z_0 .. z_{t-1} (all in a
bottleneck of d_sae / 64 units, four heads), its output `p_t >= 0` in code space; the predictable
part of x is `c_t p_t W_dec` with c_t the projection of `x_t - b_dec` on it; the novel code is the
static top-k code of what is left, and x_hat their sum.

The authors' code (github.com/eslubana/TemporalFeatureAnalysis, and sae-lens) differs in three
things: its values and output are d_sae wide, 2 d_sae^2 numbers, eight times our whole SAE at 4,608
features, where ours go through the bottleneck, too; its encoder is tied to the decoder where ours
is free, as all encoders of the table; it has no `b_enc` and reads `x / (4 d_in)`, a scale.

Known defects: p_t is dense and not counted in L0, and its query and its length c_t read x_t itself,
so that it is no prediction; trained on sequences of shuffled tokens it keeps 88-97 % of its gain.
The published threshold for inference is taken before the top-k (mean L0 of 255 in place of 4);
here both are top-k.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

import tsae_kernels
from tsae import Codes
from tsae_lab.rivals.system import Explained, Named, System, dense_pre, squared_error, start_tensors

BOTTLENECK, HEADS = 64, 4


def tfa_system(*, k: int, d_sae: int, low: torch.dtype) -> System:
    """TFA with one attention layer and k novel features per token."""

    def run(named: Named, x: Tensor) -> tuple[Tensor, Codes]:
        predicted = predictable(named, x, low)
        rest = x - predicted
        pre = dense_pre(named, rest, low).flatten(0, 1)
        idx = tsae_kernels.topk_idx(pre.detach(), k)
        vals = pre.gather(1, idx).relu()
        novel = tsae_kernels.decode_codes(vals, idx, named["W_dec"]) + named["b_dec"]
        codes = Codes(vals.unflatten(0, x.shape[:2]), idx.unflatten(0, x.shape[:2]))
        return predicted + novel.view_as(x), codes

    def explain(named: Named, x: Tensor, weight: Tensor, share: float) -> Explained:  # noqa: ARG001
        x_hat, codes = run(named, x)
        codes = Codes(codes.vals.detach(), codes.idx)
        return Explained(loss=squared_error(x, x_hat, weight), x_hat=x_hat, codes=codes)

    def start(tokens: Tensor, generator: Generator) -> dict[str, Tensor]:
        named, inner = start_tensors(tokens, d_sae, generator), attention_width(d_sae)
        for name, rows, columns in (
            *((f"W_{role}", d_sae, inner) for role in ("query", "key", "value")),
            ("W_open", inner, d_sae),
        ):
            weights = torch.randn(rows, columns, generator=generator) / math.sqrt(rows)
            named[name] = weights.to(tokens)
            named[name.replace("W", "b", 1)] = tokens.new_zeros(columns)
        return named

    return System(start=start, explain=explain, run=run, whole=True)


def attention_width(d_sae: int) -> int:
    """Units of the bottleneck: d_sae / 64 in whole heads."""
    return HEADS * max(1, d_sae // BOTTLENECK // HEADS)


def predictable(
    named: Named, x: Float[Tensor, "batch seq d_in"], low: torch.dtype
) -> Float[Tensor, "batch seq d_in"]:
    """The part of x - b_dec along what attention makes of an empty code and the tokens before."""
    z = dense_pre(named, x, low).relu() / named["unit"].sqrt()
    before, (batch, seq) = F.pad(z[:, :-1], (0, 0, 1, 0)), x.shape[:2]
    query, key, value = (
        (tsae_kernels.product(codes.flatten(0, 1), named[f"W_{role}"], low) + named[f"b_{role}"])
        .view(batch, seq, HEADS, -1)
        .transpose(1, 2)
        for role, codes in (("query", z), ("key", before), ("value", before))
    )
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    mixed = mixed.transpose(1, 2).reshape(batch * seq, -1)
    codes = (tsae_kernels.product(mixed, named["W_open"], low) + named["b_open"]).relu()
    direction = tsae_kernels.product(codes, named["W_dec"], low).view_as(x)
    centred = x - named["b_dec"].detach()
    length = (direction * centred).sum(-1, keepdim=True)
    return direction * length / direction.square().sum(-1, keepdim=True).clamp(min=1e-8)
