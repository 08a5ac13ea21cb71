"""Continuations of a text by the language model, as it is and with a feature steered while it writes.

The SAE reads token by token, as the text comes: its memory and its LSTM states are carried, so a steered feature also
acts through them.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

import activations
import interventions
from activations import LanguageModel
from interventions import Edit, Sae, States

MakeEdit = Callable[[int, int], Edit]  # tokens of text before this call, tokens in it -> the edit for them


def steer_edit(features: Int[Tensor, " n"], amount: float, *, begin: int = 0, value: float | None = None) -> MakeEdit:
    """Adds `amount` to the features at every token from `begin` on, or clamps them to `value` where one is given."""

    def make(done: int, seq: int) -> Edit:
        at = (torch.arange(done, done + seq) >= begin)[None]
        return interventions.steer(features, at, amount) if value is None else interventions.clamp(features, at, value)

    return make


@torch.no_grad()
def continuation(
    lm: LanguageModel,
    hook: str,
    prompt: str,
    n_tokens: int,
    *,
    sae: Sae | None = None,
    make_edit: MakeEdit | None = None,
    propagated: bool = True,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> str:
    """The `n_tokens` tokens (fewer at an end-of-text token) that the model writes after `prompt`.

    Greedy for temperature 0, else sampled with `generator`. With `sae` and `make_edit` the edit is in force at every
    token. Raises ValueError for an empty prompt and for more tokens than the model has positions.
    """
    ids = list(lm.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    if not ids:
        raise ValueError("a continuation needs a prompt of at least one token; got none")
    if temperature < 0 or n_tokens < 1:
        raise ValueError(f"need temperature >= 0 and n_tokens >= 1; got {temperature} and {n_tokens}")
    total = len(lm.prefix) + len(ids) + n_tokens
    if total > lm.max_seq:
        raise ValueError(f"prefix, prompt and continuation take {total} positions; {lm.name} has {lm.max_seq}")
    layer = activations._layers(lm, lm.model)[activations.check_hook(lm, hook)]
    if sae is None or make_edit is None:
        return _write(lm, ids, n_tokens, temperature, generator)
    handle = layer.register_forward_hook(_stream(sae, make_edit, len(lm.prefix), propagated))
    try:
        return _write(lm, ids, n_tokens, temperature, generator)
    finally:
        handle.remove()


def _stream(sae: Sae, make_edit: MakeEdit, n_prefix: int, propagated: bool) -> Callable[[Any, Any, Any], Any]:
    """A hook on a layer that is called with the text piece by piece and carries the SAE's states from call to call."""
    states: States | None = None
    done = -n_prefix

    def act(_module: Any, _args: Any, output: Any) -> Any:
        nonlocal states, done
        x = output[0] if isinstance(output, tuple) else output
        skip = max(-done, 0)
        text = x[:, skip:].float()
        edit = make_edit(done + skip, text.shape[1])
        delta, states = interventions.intervene(sae, text, edit, propagated=propagated, states=states)
        done += x.shape[1]
        changed = torch.cat([x[:, :skip], (text + delta).to(x.dtype)], 1)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return act


def _write(
    lm: LanguageModel, ids: list[int], n_tokens: int, temperature: float, generator: torch.Generator | None
) -> str:
    """The tokens one by one, by the plain model with its cache (TransformerBridge 4.3 loses the cache's keys)."""
    name = "cache" if "cache" in inspect.signature(lm.model.forward).parameters else "past_key_values"
    kept, fresh, written = None, torch.tensor([[*lm.prefix, *ids]], device=lm.device), []
    for _ in range(n_tokens):
        out = lm.model(input_ids=fresh, **{name: kept}, use_cache=True, logits_to_keep=1)
        kept = out[name]
        token = pick(out.logits[0, -1].float().cpu(), temperature, generator)
        if token == lm.tokenizer.eos_token_id:
            break
        written.append(token)
        fresh = torch.tensor([[token]], device=lm.device)
    return lm.tokenizer.decode(written)


def pick(logits: Float[Tensor, " vocab"], temperature: float, generator: torch.Generator | None) -> int:
    """The most probable token for temperature 0, else one drawn with `generator` from softmax(logits / temperature)."""
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
