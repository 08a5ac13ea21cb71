"""Fine-tuning on what the language model makes of a reconstruction (`--finetune=kl`).

In the last tenth of the steps the loss is the squared error and, as large, `KL(clean || spliced)`
of the language model's predictions (Karvonen 2025, arXiv 2503.17272), of a static SAE and of the
TSAE alike.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from tsae_lab.data.language_model import Above, LanguageModel, layers_above, residual
from tsae_lab.data.store import Store
from tsae_lab.jobs import plan, schedules
from tsae_lab.jobs.plan import Unit
from tsae_lab.jobs.training import Trainer

KL_SHARE = 0.1  # of the steps
KL_ROWS = 4  # sequences of a step whose predictions are compared: the upper layers cost the most

Divergence = Callable[[Tensor, Tensor, Tensor], Tensor]
"""More of the loss, of a step's sequences, their reconstruction and its squared error."""


def trained(
    unit: Unit, name: str, start: Callable[[], Trainer], fit: Callable[..., tuple[Trainer, float]],
    lm: LanguageModel, *, temporal: bool,
) -> tuple[Trainer, float]:  # fmt: skip
    """A static SAE, or a TSAE, whose last tenth of the steps adds `divergence_of` to the loss, on
    as many tokens per step in whole sequences; the seconds its own steps took.
    """
    config, phases = unit.config, plan.phases_of(unit.config)
    alone = schedules.Phases(pretrain=phases.total, settle=0, introduce=0, refine=0)
    own, last = phases if temporal else alone, phases.total
    cut = last - max(1, round(KL_SHARE * last))
    trainer, before = fit(unit, f"{name}_before", start, range(phases.pretrain, cut), own)
    whole = replace(config, pieces=1, batch=max(1, config.batch // config.pieces))
    data = replace(unit.data, packed=None)
    divergence = divergence_of(lm, data.stored)
    unit = replace(unit, config=whole, data=data)
    tuned, after = fit(unit, name, lambda: trainer, range(cut, last), own, divergence=divergence)
    return tuned, before + after


def divergence_of(lm: LanguageModel, store: Store) -> Divergence:
    """The KL in the language model's upper layers, times a constant that makes it as large as the
    squared error; whole sequences of `store` are reconstructed.

    What comes back has the KL's gradient, not its value.
    """
    above = layers_above(lm, store.hook, grad=True)
    prefix = residual(lm, torch.tensor([lm.prefix]), store.hook).clone()

    def added(rows: Tensor, x_hat: Tensor, error: Tensor) -> Tensor:
        picked = torch.arange(0, len(rows), -(-len(rows) // KL_ROWS))
        chosen = rows[picked]
        clean = _text_activations(store, chosen).to(prefix)
        hidden = torch.cat([prefix.expand(len(chosen), -1, -1), clean], 1)
        masks = (store.read[chosen], store.tokens.valid[chosen], store.text.valid[chosen])
        kl, slope = kl_gradient(above, store.text.ids[chosen], hidden, x_hat[picked], *masks)
        return error / max(kl, 1e-9) * (x_hat[picked] * slope).sum()

    return added


def _text_activations(store: Store, rows: Tensor) -> Tensor:
    """Activations of whole sequences of text, attention sinks included."""
    index = rows.numpy() if store.source is None else store.source[0][rows.numpy()]
    return torch.from_numpy(store.data[index]).view(torch.bfloat16)


def kl_gradient(
    above: Above,
    ids: Integer[Tensor, "batch seq"],
    hidden: Float[Tensor, "batch seq d_in"],
    x_hat: Float[Tensor, "batch kept d_in"],
    read: Bool[Tensor, "batch kept"],
    left: Bool[Tensor, "batch kept"],
    valid: Bool[Tensor, "batch kept"],
) -> tuple[float, Float[Tensor, "batch kept d_in"]]:
    """`KL(clean || spliced)`, nats per token of text, and its gradient in x_hat.

    `read` are the tokens of text that x_hat replaces, `left` where they lie in it, `valid` all
    tokens of text; `hidden` are their activations, after those of the prefix.
    """
    n_prefix, n = ids.shape[1] - valid.shape[1], max(int(valid.sum()), 1)
    total, leaf = 0.0, x_hat.detach().clone().requires_grad_()
    for row in range(len(ids)):  # float32 logits of a whole batch would take gigabytes
        one = slice(row, row + 1)
        patched = hidden[one].clone()
        patched[:, n_prefix:][read[one]] = leaf[one][left[one]].to(hidden.dtype)
        with torch.no_grad():
            p = _log_probabilities(above(ids[one], hidden[one], 0), n_prefix, valid[row])
        q = _log_probabilities(above(ids[one], patched, 0), n_prefix, valid[row])
        kl = F.kl_div(q, p, log_target=True, reduction="sum") / n
        kl.backward()
        total += kl.item()
    assert leaf.grad is not None
    return total, leaf.grad


def _log_probabilities(logits: Tensor, n_prefix: int, valid: Tensor) -> Tensor:
    """Of the tokens of one text, each predicted from those before it."""
    return logits[0, n_prefix - 1 : -1][valid.to(logits.device)].float().log_softmax(-1)
