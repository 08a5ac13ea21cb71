"""Persistent SAE (arXiv 2607.17117): one learned retention per feature.

`s_t = r s_{t-1} + (1 - r) relu(pre_t)`, r in [0, .999] per feature and learned, `acts_t` the k
largest of s_t. Retention 0 is the static top-k SAE.

The paper's text could not be read here. Others who read it write `h_t = r h_{t-1} + (1 - r) a_t`,
`r = .999 sigmoid(l)`, `x_hat = h W_dec + b_dec`: there the state is decoded whole, so that far more
than k features make up x_hat; here k are, as in every system of the table, and r is learned itself.

Known defect: what a feature was carries over whatever the text does now; its state does not end
with a topic, only fade.
"""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

import tsae_kernels
from tsae import Codes
from tsae_lab.rivals.system import Explained, Named, System, dense_pre, squared_error, start_tensors

MOST_RETAINED = 0.999  # of a retention


def persistent_system(*, k: int, d_sae: int, low: torch.dtype, retention: float) -> System:
    """Persistent SAE with k features per token, all retentions starting at `retention`."""

    def run(named: Named, x: Tensor) -> tuple[Tensor, Codes]:
        s = retained(dense_pre(named, x, low).relu(), named["retention"]).flatten(0, 1)
        idx = tsae_kernels.topk_idx(s.detach(), k)
        vals = s.gather(1, idx)
        x_hat = tsae_kernels.decode_codes(vals, idx, named["W_dec"]).view_as(x) + named["b_dec"]
        return x_hat, Codes(vals.unflatten(0, x.shape[:2]), idx.unflatten(0, x.shape[:2]))

    def explain(named: Named, x: Tensor, weight: Tensor, share: float) -> Explained:  # noqa: ARG001
        x_hat, codes = run(named, x)
        codes = Codes(codes.vals.detach(), codes.idx)
        return Explained(loss=squared_error(x, x_hat, weight), x_hat=x_hat, codes=codes)

    def start(tokens: Tensor, generator: Generator) -> dict[str, Tensor]:
        named = start_tensors(tokens, d_sae, generator)
        return named | {"retention": torch.full_like(named["b_enc"], retention)}

    return System(start=start, explain=explain, run=run, whole=True)


def retained(
    acts: Float[Tensor, "batch seq d_sae"], retention: Float[Tensor, " d_sae"]
) -> Float[Tensor, "batch seq d_sae"]:
    """`s_t = r s_{t-1} + (1 - r) acts_t` from s = 0, r the retention cut to [0, 0.999]."""
    r = retention.clamp(0.0, MOST_RETAINED)
    s, out = torch.zeros_like(acts[:, 0]), []
    for fresh in ((1 - r) * acts).unbind(1):
        s = torch.addcmul(fresh, r, s)
        out.append(s)
    return torch.stack(out, 1)
