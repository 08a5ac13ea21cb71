"""T-SAE (Bhalla, Oesterling et al. 2025, arXiv 2511.05541): Matryoshka batch top-k + contrast.

The first fifth of the dictionary (high-level) has to reconstruct x by itself, and its codes z of
tokens `lag` apart have to find each other among those of other sequences:
`alpha * unit * (ce(s(z_t, z'_{t-lag})) + ce(s(z_{t-lag}, z'_t))) / 2`, an InfoNCE in either
direction with s the cosine (the paper's text) or the inner product of codes of inputs of unit mean
squared norm, over the sequences of a batch at one place. alpha = 0 is Matryoshka.

The authors' code (github.com/AI4LIFE-GROUP/temporal-saes, on inputs of unit mean squared norm) has
the inner product and alpha = .1, our `t_sae_inner`; its batch is of pairs from anywhere in the data
where ours is of the pairs at each place of 64 sequences, only the first of a pair is reconstructed
where ours reconstructs every token, and its threshold is a slower mean (.999 per step).

Known defect: what it gains over a static SAE, corrected by a null of shuffled tokens, is gone after
a few tokens (persistence +.044, +.012, .000 at lags 1, 2, 4, by its followers): the loss pulls
neighbours together, not what lasts.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tsae_lab.rivals.batch_topk import batch_topk_system
from tsae_lab.rivals.system import Named, System

FRACTIONS = (0.2, 0.8)  # high-level and low-level features
Similarity = Literal["cosine", "inner"]


def t_sae_system(
    *,
    k: int,
    d_sae: int,
    low: torch.dtype,
    alpha: float,
    lag: int = 1,
    similarity: Similarity = "cosine",
) -> System:
    """T-SAE with contrast of strength `alpha` between tokens `lag` apart."""

    def penalty(named: Named, acts: Tensor, weight: Tensor) -> Tensor:
        z = acts / named["unit"].sqrt()
        return alpha * named["unit"] * contrastive_loss(z, weight, lag, similarity)

    shared = {"k": k, "d_sae": d_sae, "low": low, "fractions": FRACTIONS}
    return batch_topk_system(**shared, penalty=penalty if alpha > 0 else None)


def contrastive_loss(
    z: Float[Tensor, "batch seq high"],
    weight: Float[Tensor, "batch seq"],
    lag: int,
    similarity: Similarity,
) -> Float[Tensor, ""]:
    """Nats by which a token's code fails to find its sequence's code `lag` tokens away; >= 0.

    Negatives are the other sequences' codes at that place. 0 without a place where two sequences
    have both tokens.
    """
    z = F.normalize(z, dim=-1) if similarity == "cosine" else z
    now, before = z[:, lag:].transpose(0, 1), z[:, :-lag].transpose(0, 1)
    both = ((weight[:, lag:] > 0) & (weight[:, :-lag] > 0)).t()
    both = both & (both.sum(1, keepdim=True) > 1)
    if not both.any():
        return z.sum() * 0
    scores = now @ before.transpose(1, 2)  # (places, sequences, sequences)
    scores = scores.masked_fill(~both[:, None], -torch.inf)
    backward = (before @ now.transpose(1, 2)).masked_fill(~both[:, None], -torch.inf)
    place, row = both.nonzero(as_tuple=True)
    losses = [F.cross_entropy(table[place, row], row) for table in (scores, backward)]
    return (losses[0] + losses[1]) / 2
