"""Batch top-k (Bussmann, Leask, Nanda 2024, arXiv 2412.06410), and its nested, Matryoshka form.

`acts = relu(pre)` where it is among the `k * tokens` largest of the whole batch, 0 elsewhere: a
token may take more than k features where another takes fewer. Nested (Bussmann et al. 2025, arXiv
2503.17547): the first fractions of the dictionary have to reconstruct x by themselves, too.

Known defect: what a token's code is depends on the batch it is in. At inference a threshold takes
the batch's place, a running mean of the smallest activation that was kept; it moves with the rate
and need not give k features on another text. Both are measured.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tsae import Codes
from tsae_lab.rivals.ragged import (
    Entries,
    entries_where,
    ragged_decode,
    ragged_dense,
    ragged_values,
)
from tsae_lab.rivals.system import (
    KEEP,
    Explained,
    Named,
    System,
    active_codes,
    dense_decode,
    dense_pre,
    padded_codes,
    real_tokens,
    squared_error,
    start_tensors,
)

SAMPLED = 61  # one value in so many is looked at first
Penalty = Callable[[Named, Float[Tensor, "batch seq first"], Tensor], Tensor]
"""Something added to the loss, of named tensors, dense codes of the first fraction, and weight."""


def batch_topk_system(
    *,
    k: int,
    d_sae: int,
    low: torch.dtype,
    fractions: Sequence[float] = (1.0,),
    penalty: Penalty | None = None,
) -> System:
    """Batch top-k; `fractions` of the dictionary, in order, sum to 1: nested where there are more.

    The loss is the mean of the squared errors of the nested reconstructions, and the penalty.
    """
    ends = group_ends(d_sae, fractions)

    def explain(named: Named, x: Tensor, weight: Tensor, share: float) -> Explained:  # noqa: ARG001
        flat, real = (x - named["b_dec"].detach()).flatten(0, 1), weight.flatten() > 0
        with torch.no_grad():
            pre = dense_pre(named, x, low).flatten(0, 1)
            on = (pre > 0) & (pre >= least_selected(pre, real, k)) & real[:, None]
        entries = entries_where(on)
        vals = ragged_values(pre, entries, flat, named["W_enc"], named["b_enc"])
        nested = [x_hat.view_as(x) for x_hat in nested_decode(named, vals, entries, ends)]
        loss = torch.stack([squared_error(x, x_hat, weight) for x_hat in nested]).mean()
        if penalty is not None:
            high, some = entries.within(0, ends[0])
            acts = ragged_dense(vals[some], high, ends[0]).unflatten(0, x.shape[:2])
            loss = loss + penalty(named, acts, weight)
        before, held = named["threshold"], vals.detach()
        least = held.min() if len(held) else before
        threshold = torch.where(before < 0, least, KEEP * before + (1 - KEEP) * least)
        codes, buffers = padded_codes(held, entries, x.shape[:2]), {"threshold": threshold}
        return Explained(loss=loss, x_hat=nested[-1], codes=codes, buffers=buffers)

    def run(named: Named, x: Tensor) -> tuple[Tensor, Codes]:
        acts = dense_pre(named, x, low).relu()
        acts = acts * (acts >= named["threshold"])
        return dense_decode(named, acts, low), active_codes(acts)

    def start(tokens: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        named = start_tensors(tokens, d_sae, generator)
        return named | {"threshold": tokens.new_tensor(-1.0)}  # -1: no batch seen yet

    return System(start=start, explain=explain, run=run)


def run_by_batch(named: Named, x: Tensor, k: int, low: torch.dtype) -> tuple[Tensor, Codes]:
    """Reconstruction and codes with the selection of training: over the batch `x`."""
    acts = batch_selected(dense_pre(named, x, low).relu(), real_tokens(x), k)
    return dense_decode(named, acts, low), active_codes(acts)


def group_ends(d_sae: int, fractions: Sequence[float]) -> list[int]:
    """Where each nested group of features ends; ValueError unless the fractions sum to 1."""
    if abs(sum(fractions) - 1) > 1e-6 or min(fractions) <= 0:
        raise ValueError(f"fractions need to be > 0 and sum to 1; got {tuple(fractions)}")
    return [round(d_sae * sum(fractions[: i + 1])) for i in range(len(fractions))]


def batch_selected(
    acts: Float[Tensor, "batch seq d_sae"], real: Bool[Tensor, "batch seq"], k: int
) -> Float[Tensor, "batch seq d_sae"]:
    """`acts` (>= 0) where among the `k * n` largest of the n real tokens; equal ones all stay."""
    least = least_selected(acts.detach().flatten(0, 1), real.flatten(), k)
    return acts * ((acts >= least) & real[..., None])


def least_selected(
    pre: Float[Tensor, "tokens d_sae"], real: Bool[Tensor, " tokens"], k: int
) -> Float[Tensor, ""]:
    """The least of the `k * n` largest values of the n real tokens; infinity without one."""
    values = (pre if bool(real.all()) else pre[real]).flatten()
    n = min(k * int(real.sum()), len(values))
    if n == 0:
        return pre.new_tensor(torch.inf)
    # a sample says above which value to look; the search itself is exact
    sample = values[::SAMPLED]
    near = sample.topk(min(len(sample), 2 * n // SAMPLED + 8)).values.min()
    high = values[values >= near]
    high = high if len(high) >= n else values
    return high.kthvalue(len(high) - n + 1).values


def nested_decode(
    named: Named, vals: Float[Tensor, " entries"], entries: Entries, ends: Sequence[int]
) -> list[Float[Tensor, "tokens d_in"]]:
    """Reconstructions from the features before each of `ends`; the last is the whole one."""
    out, begin, x_hat = [], 0, named["b_dec"]
    for end in ends:
        group, some = entries.within(begin, end) if len(ends) > 1 else (entries, slice(None))
        x_hat = x_hat + ragged_decode(vals[some], group, named["W_dec"])
        out.append(x_hat)
        begin = end
    return out
