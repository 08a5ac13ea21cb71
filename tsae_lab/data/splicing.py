"""What a reconstruction in place of the activations does to a language model's predictions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from tsae_lab.data import hooks
from tsae_lab.data.hooks import site_of
from tsae_lab.data.language_model import LanguageModel, layers_above, residual, rows_at_once

IN_CACHE = 2**20  # float32 logits that a CPU's caches hold


@dataclass(frozen=True, eq=False)
class Spliced:
    """What a replacement does to the language model, in nats per token; 0 at padding."""

    nats: Float[Tensor, "n_seq kept"]
    """cross-entropy, `-log p(token | what comes before it)`"""
    kl: Float[Tensor, "n_seq kept"]
    """`KL(clean || spliced)` of the prediction of that token, no less for a worse reconstruction"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Clean:
    """What the language model without a replacement has of some sequences, in its dtype, on CPU."""

    hidden: Float[Tensor, "n_seq seq d_in"]
    """activations at the hook"""
    last: Float[Tensor, "n_seq seq d_in"]
    """output of the last layer"""

    def of_rows(self, rows: slice) -> "Clean":
        return Clean(hidden=self.hidden[rows], last=self.last[rows])


@torch.inference_mode()
def clean_pass(lm: LanguageModel, ids: Integer[Tensor, "n_seq seq"], hook: str) -> Clean:
    """One pass of the model over ids with the prefix, in the batches of `splice`."""
    site, n_rows = site_of(hook, lm.n_layers, lm.name), rows_at_once(ids.shape[1])
    hidden: list[Tensor] = []
    last: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        hidden.append(x.cpu())
        return x

    for batch in ids.split(n_rows):
        with hooks.changed(lm.model, site, note):
            last.append(residual(lm, batch, _last_hook(lm)).cpu())
    return Clean(hidden=torch.cat(hidden), last=torch.cat(last))


def _last_hook(lm: LanguageModel) -> str:
    return f"blocks.{lm.n_layers - 1}.hook_resid_post"


@torch.inference_mode()
def splice(
    lm: LanguageModel,
    ids: Integer[Tensor, "n_seq seq"],
    valid: Bool[Tensor, "n_seq kept"],
    hook: str,
    replacements: Mapping[str, Callable[[Tensor], Tensor]],
    read: Bool[Tensor, "n_seq kept"] | None = None,
    clean: Clean | None = None,
) -> dict[str, Spliced]:
    """What each replacement does to the model's predictions, and the model without one ("clean").

    Entry [i, j] is about text token j and what comes before it: all tokens of text are scored once,
    the first of a sequence from the prefix alone (no replacement reaches that one). A replacement
    maps the residual stream at the text, x (batch, kept, d_in) float32, zeros where not valid, to
    x_hat of that shape, which takes its place; the prefix keeps its own. Tokens that are not in
    `read` (attention sinks; by default there are none) keep theirs, too: x is without them, what
    follows moved to the left, but they are scored. The rows go through in order, in batches of
    about 2,048 tokens; the model runs once per batch, or not at all where its `clean_pass` over the
    ids is given, and the layers above the hook once per replacement. All on the CPU.
    """
    if "clean" in replacements:
        raise ValueError("splice: 'clean' is the name of the model without a replacement")
    n_prefix, above = ids.shape[1] - valid.shape[1], layers_above(lm, hook)
    head = layers_above(lm, _last_hook(lm))
    names = ("clean", *replacements)
    out = {name: Spliced(torch.zeros(valid.shape), torch.zeros(valid.shape)) for name in names}
    starts = range(0, len(ids), rows_at_once(ids.shape[1]))
    for rows in (slice(start, start + starts.step) for start in starts):
        batch, mask = ids[rows].to(lm.device, torch.int64), valid[rows].to(lm.device)
        unedited = clean_pass(lm, batch, hook) if clean is None else clean.of_rows(rows)
        hidden, last = unedited.hidden.to(lm.device), unedited.last.to(lm.device)
        x, in_place = _moved_left(hidden, n_prefix, (valid if read is None else read)[rows])
        p, entropy = None, torch.zeros(())
        for name, spliced in out.items():
            if name == "clean":
                logits = head(batch, last, 0)
            else:
                patched = in_place(_replaced(name, replacements[name], x))
                logits = above(batch, patched, 0)
            nats, cross, p = _scored(logits, batch[:, n_prefix:], p)
            entropy = cross if name == "clean" else entropy
            spliced.nats[rows] = (nats * mask).cpu()
            spliced.kl[rows] = ((entropy - cross) * mask).cpu()
    return out


def _moved_left(
    hidden: Tensor, n_prefix: int, read: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The text's activations that are `read`, moved to the left; and what puts others there."""
    left = (torch.arange(read.shape[1]) < read.sum(1, keepdim=True)).to(hidden.device)
    text, read = hidden[:, n_prefix:], read.to(hidden.device)
    x = torch.zeros_like(text, dtype=torch.float32)
    x[left] = text[read].float()

    def in_place(x_hat: Tensor) -> Tensor:
        changed = hidden.clone()
        changed[:, n_prefix:][read] = x_hat.to(hidden)[left]
        return changed

    return x, in_place


def _replaced(name: str, replacement: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x_hat = replacement(x.clone())
    if x_hat.shape != x.shape:
        shapes = f"{tuple(x_hat.shape)} for x of {tuple(x.shape)}"
        raise ValueError(f"replacement {name!r} gives shape {shapes}")
    return x_hat


def _scored(
    logits: Float[Tensor, "batch seq vocabulary"],
    targets: Integer[Tensor, "batch kept"],
    p: Tensor | None,
) -> tuple[Float[Tensor, "batch kept"], Float[Tensor, "batch kept"], Tensor]:
    """Of the last `kept` tokens, `targets`: cross-entropy, `sum p log q`, and q, the softmax.

    `p` (batch kept vocabulary) are the probabilities that q is compared with; None means q itself.
    """
    n_kept = targets.shape[1]
    begin = logits.shape[1] - n_kept - 1
    nats, cross = torch.empty(2, *targets.shape, dtype=torch.float32, device=logits.device)
    q = torch.empty(*targets.shape, logits.shape[-1], device=logits.device) if p is None else p
    # float32 logits of a whole batch would take gigabytes
    for row, target in enumerate(targets.to(logits.device, torch.int64)):
        for span in scored_at_once(logits, n_kept):
            log_q = logits[row, begin + span.start : begin + span.stop].float().log_softmax(-1)
            nats[row, span] = -log_q.gather(-1, target[span, None])[:, 0]
            if p is None:
                torch.exp(log_q, out=q[row, span])
            cross[row, span] = torch.linalg.vecdot(q[row, span], log_q)
    return nats, cross, q


def scored_at_once(logits: Float[Tensor, "... vocabulary"], n: int) -> list[slice]:
    """Spans of `n` tokens that are scored together: on a CPU what stays in its caches, else all."""
    step = max(1, IN_CACHE // logits.shape[-1]) if logits.device.type == "cpu" else max(n, 1)
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]
