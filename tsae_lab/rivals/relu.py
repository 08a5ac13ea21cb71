"""The vanilla SAE: ReLU and an L1 penalty (Cunningham et al. 2023, arXiv 2309.08600; Bricken 2023).

`acts = relu(pre)`; loss `||x - x_hat||^2 + l1 sqrt(unit) sum acts`, the coefficient warmed up
linearly over the first share of the steps. Features that did not fire since the last resampling
begin anew at inputs drawn with probability in proportion to their squared error, squared (Bricken).

Known defect: the penalty shrinks every activation, and its L0 is nobody's choice: it follows from
the coefficient. It stands in the table at the L0 it has.
"""

import torch
from torch import Generator, Tensor

from tsae import Codes
from tsae_lab.rivals.system import (
    Explained,
    Named,
    System,
    active_codes,
    dense_decode,
    dense_pre,
    real_tokens,
    squared_error,
    start_tensors,
)

SHY = 0.2  # norm of a resampled encoder column, relative to the mean of the living (Bricken 2023)


def relu_system(*, d_sae: int, low: torch.dtype, l1: float, warmup_share: float) -> System:
    """ReLU + L1: `l1` relative to the root mean square norm of x - b_dec, after `warmup_share`."""

    def explain(named: Named, x: Tensor, weight: Tensor, share: float) -> Explained:
        acts = dense_pre(named, x, low).relu() * weight[..., None]
        x_hat = dense_decode(named, acts, low)
        strength = l1 * min(1.0, share / warmup_share) * named["unit"].sqrt()
        penalty = strength * acts.sum() / weight.sum().clamp(min=1)
        loss = squared_error(x, x_hat, weight) + penalty
        return Explained(loss=loss, x_hat=x_hat, codes=active_codes(acts))

    def run(named: Named, x: Tensor) -> tuple[Tensor, Codes]:
        acts = dense_pre(named, x, low).relu()
        return dense_decode(named, acts, low), active_codes(acts)

    def start(tokens: Tensor, generator: Generator) -> dict[str, Tensor]:
        return start_tensors(tokens, d_sae, generator)

    return System(start=start, explain=explain, run=run, revive=False, resample=resampled)


def resampled(
    named: Named, x: Tensor, x_hat: Tensor, dead: Tensor, generator: Generator
) -> dict[str, Tensor]:
    """W_enc, b_enc and W_dec with the features of the mask `dead` pointing at badly explained x."""
    real = real_tokens(x)
    centred = (x - named["b_dec"])[real]
    loss = (x - x_hat)[real].square().sum(-1)
    n_dead = int(dead.sum())
    if n_dead == 0 or bool(dead.all()) or not loss.sum() > 0:
        return {}
    chance = (loss / loss.max()).square().cpu().double()
    picked = torch.multinomial(chance, n_dead, replacement=True, generator=generator)
    unit = torch.nn.functional.normalize(centred[picked.to(x.device)], dim=1)
    size = SHY * named["W_enc"][:, ~dead].norm(dim=0).mean()
    W_enc, b_enc, W_dec = (named[name].detach().clone() for name in ("W_enc", "b_enc", "W_dec"))
    W_enc[:, dead], b_enc[dead], W_dec[dead] = size * unit.t(), 0.0, unit
    return {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec}
