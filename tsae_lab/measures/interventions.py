"""Edits of a sparse code and what they add to the residual stream: `Dec(edited) - Dec(original)`.

What the SAE does not explain stays in place. An edit sets `acts -> keep * acts + add` for some
features at some positions. *Local*: only these features' decoder rows, at these positions.
*Propagated*: the edited code also runs on through the decoder LSTM, and the memory holds the edited
value, so that later tokens may select other features. For a static SAE both are the same. The
residual stream at the hook comes from the layers below, which no edit changes; so the encoder LSTM,
which reads it, does not change either.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import tsae
from tsae import Codes, Memory, Sae, Seen, State
from tsae_kernels import decode_codes
from tsae_lab.data import hooks, language_model, texts
from tsae_lab.data.language_model import LanguageModel


def modes(sae: Sae) -> dict[str, bool]:
    """Name and `propagated` of each way to apply an edit; one if no code reaches later tokens."""
    dials = sae.dials
    carried = dials.mix > 0 and (dials.beta > 0 or dials.recur)
    return {"local": False, "propagated": True} if carried else {"local": False}


# -------------------------------------------------------------------------------------------- edits


@dataclass(frozen=True, eq=False, kw_only=True)
class Edit:
    """`acts -> keep * acts + add` for `features`, each once per position, where `at`.

    The result may leave the range of a code (below 0), as steering against a feature does.
    """

    features: Int[Tensor, "batch seq n"]
    keep: Float[Tensor, "batch seq n"]
    add: Float[Tensor, "batch seq n"]
    at: Bool[Tensor, "batch seq"]
    alone: bool = False  # whether all other features are taken away


def _edit(features: Tensor, at: Tensor, keep: float, add: Tensor | float) -> Edit:
    batch, seq = at.shape
    named = features.view(1, 1, -1) if features.ndim == 1 else features[:, None]
    named = named.expand(batch, seq, -1).to(at.device)
    values = torch.as_tensor(add, dtype=torch.float32).to(at.device)
    kept = torch.full(named.shape, keep, device=at.device)
    return Edit(features=named, keep=kept, add=values.expand(named.shape), at=at)


def ablate(features: Int[Tensor, "*batch n"], at: Bool[Tensor, "batch seq"]) -> Edit:
    """The features are off at the positions; `features` of shape (batch n): one set per row."""
    return _edit(features, at, 0.0, 0.0)


def clamp(
    features: Int[Tensor, "*batch n"], at: Bool[Tensor, "batch seq"], value: Tensor | float
) -> Edit:
    """The features have the value `value` (a number, or broadcast to batch seq n) there."""
    return _edit(features, at, 0.0, value)


def steer(
    features: Int[Tensor, "*batch n"], at: Bool[Tensor, "batch seq"], amount: Tensor | float
) -> Edit:
    """The features get `amount` (a number, or broadcast to batch seq n) more; 0: the identity."""
    return _edit(features, at, 1.0, amount)


def swap(features: Int[Tensor, "*batch n"], at: Bool[Tensor, "batch seq"], twin: Codes) -> Edit:
    """The features have the values of the twin's code, position by position."""
    named = _edit(features, at, 0.0, 0.0)
    return replace(named, add=values_of(twin, named.features))


def swap_code(at: Bool[Tensor, "batch seq"], twin: Codes) -> Edit:
    """The whole code is the twin's."""
    return Edit(
        features=twin.idx, keep=torch.zeros_like(twin.vals), add=twin.vals, at=at, alone=True
    )


def _check_edit(edit: Edit, d_sae: int) -> None:
    """ValueError unless every feature exists and every number is finite."""
    outside = edit.features[(edit.features < 0) | (edit.features >= d_sae)]
    if len(outside):
        raise ValueError(
            f"an edit needs features 0 <= feature < d_sae={d_sae}; got {int(outside[0])}"
        )
    if not (edit.add.isfinite().all() and edit.keep.isfinite().all()):
        raise ValueError("an edit needs finite values; got NaN or infinity")


def positions(seq: int, wanted: Sequence[int], batch: int = 1) -> Bool[Tensor, "batch seq"]:
    """A mask of token positions, negative ones counted from the end; ValueError for one outside."""
    mask = torch.zeros(seq, dtype=torch.bool)
    for position in wanted:
        if not -seq <= position < seq:
            raise ValueError(
                f"position {position} is outside the text: "
                f"it has {seq} tokens, so {-seq} to {seq - 1}"
            )
        mask[position] = True
    return mask.expand(batch, seq)


def values_of(codes: Codes, features: Int[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq n"]:
    """What the code holds for each of `features`; 0 where it is not active."""
    same = codes.idx[..., :, None] == features[..., None, :]
    return (codes.vals[..., :, None] * same).sum(-2)


def _apart(codes: Codes, features: Tensor) -> Codes:
    """The same code with `features` in columns of their own at the end."""
    named = (codes.idx[..., :, None] == features[..., None, :]).any(-1)
    vals = torch.cat([codes.vals.masked_fill(named, 0.0), values_of(codes, features)], -1)
    return Codes(vals, torch.cat([codes.idx, features], -1))


def _edited(edit: Edit, codes: Codes, where: Tensor) -> Codes:
    """`codes`, as `_apart` has laid them out, with the edit made where `_changes` says."""
    others, own = _edit_columns(edit, codes)
    rest = others.masked_fill(where[..., :1] & edit.alone, 0.0)
    named = torch.where(where[..., 1:], edit.keep * own + edit.add, own)
    return Codes(torch.cat([rest, named], -1), codes.idx)


def _changes(edit: Edit, codes: Codes) -> Bool[Tensor, "batch seq all"]:
    """Where the edit changes the code: column 0 all other features, then each that it names."""
    others, own = _edit_columns(edit, codes)
    named = edit.keep * own + edit.add != own
    return edit.at[..., None] & torch.cat([(others != 0).any(-1, keepdim=True), named], -1)


def _edit_columns(edit: Edit, codes: Codes) -> tuple[Tensor, Tensor]:
    n_others = codes.vals.shape[-1] - edit.features.shape[-1]
    return codes.vals[..., :n_others], codes.vals[..., n_others:]


# ------------------------------------------------------------------------------------- running them


@dataclass(frozen=True, eq=False)
class States:
    """What a stream carries with an edit in force: the SAE's state without it, and with it."""

    original: State
    edited: State


def start_states(sae: Sae, batch: int) -> States:
    """The states at the first token of a text."""
    state = tsae.start_state(sae.params, batch, sae.dials)
    return States(state, state)


def _propagate(
    sae: Sae, seen: Seen, edit: Edit, plain: Codes, memory: Memory
) -> tuple[Codes, Codes]:
    """The codes, and those that the memory holds, with the edit in force at every token.

    The memory follows the edit where the edit changes the code, so that taking away what is not
    there does nothing. Which tokens these are depends on the memory of earlier tokens only: from
    the tokens that change without it, each round settles at least one more, in order of time; one
    or two rounds are the rule.
    """
    static = _apart(seen.static, edit.features)
    where, codes, held = _changes(edit, plain), plain, static
    for _ in range(plain.vals.shape[1] + 1):
        held = _edited(edit, static, where)
        codes = _apart(tsae.codes_with(sae.params, seen, held, memory, sae.dials), edit.features)
        again = _changes(edit, codes)
        if torch.equal(again, where):
            break
        where = again
    return _edited(edit, codes, where), held


@torch.no_grad()
def intervene(
    sae: Sae,
    x: Float[Tensor, "batch seq d_in"],
    edit: Edit,
    *,
    propagated: bool,
    states: States | None = None,
) -> tuple[Float[Tensor, "batch seq d_in"], States]:
    """`Dec(edited) - Dec(original)`, to be added to x, and the states after it.

    `states` is what came before; None is the start of a text. Exactly 0 before the first position
    that the edit changes, and everywhere if it changes none. Token by token with the states carried
    gives what one call gives. Local: the edited features' rows alone; the edited state is then the
    original one. Raises ValueError for a feature that does not exist or a value that is not finite.
    """
    _check_edit(edit, sae.d_sae)
    if edit.at.shape != x.shape[:2]:
        raise ValueError(
            f"the edit is for {tuple(edit.at.shape)} (batch, seq); x has {tuple(x.shape[:2])}"
        )
    states = states or start_states(sae, len(x))
    tensors = {name: v.to(x.device) for name, v in vars(edit).items() if name != "alone"}
    edit = replace(edit, **tensors)
    seen = tsae.see(sae.params, x, sae.dials, states.original)
    held = _apart(seen.static, edit.features)
    plain = _apart(
        tsae.codes_with(sae.params, seen, held, states.original.memory, sae.dials), edit.features
    )
    x_hat, original = _after(sae, seen, plain, held, states.original)
    if not propagated:
        change = _edited(edit, plain, _changes(edit, plain)).vals - plain.vals
        local = decode_codes(change.flatten(0, 1), plain.idx.flatten(0, 1), sae.params.static.W_dec)
        return local.view_as(x), States(original, original)
    codes, edited_held = _propagate(sae, seen, edit, plain, states.edited.memory)
    x_edited, edited = _after(sae, seen, codes, edited_held, states.edited)
    return x_edited - x_hat, States(original, edited)


def _after(sae: Sae, seen: Seen, codes: Codes, held: Codes, state: State) -> tuple[Tensor, State]:
    x_hat, state = tsae.decode(sae.params, codes, sae.dials, state)
    return x_hat, replace(
        state, memory=tsae.push(state.memory, held), enc_h=seen.enc_h, enc_c=seen.enc_c
    )


def codes_of(sae: Sae, x: Float[Tensor, "batch seq d_in"]) -> Codes:
    """The SAE's code of whole texts."""
    with torch.no_grad():
        return tsae.encode(sae.params, x, sae.dials)[0]


# ----------------------------------------------------------------------------------- language model


def edit_hook(sae: Sae, edit: Edit, n_prefix: int, *, propagated: bool) -> Callable[..., Tensor]:
    """A TransformerBridge hook that makes the edit in the residual stream of the text alone."""

    def act(x: Tensor, hook: Any = None) -> Tensor:  # noqa: ARG001 the bridge names it
        text = x[:, n_prefix:].float()
        delta, _ = intervene(sae, text, edit, propagated=propagated)
        return torch.cat([x[:, :n_prefix], (text + delta).to(x.dtype)], 1)

    return act


# tokens of text before this call and tokens in it, to the edit for these
MakeEdit = Callable[[int, int], Edit]


def steer_edit(features: Int[Tensor, " n"], amount: float, *, begin: int = 0) -> MakeEdit:
    """Adds `amount` to the features at every token from `begin` on."""

    def make(done: int, seq: int) -> Edit:
        return steer(features, (torch.arange(done, done + seq) >= begin)[None], amount)

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

    Greedy for temperature 0, else sampled with `generator`. With `sae` and `make_edit` the edit is
    in force at every token. Raises ValueError for an empty prompt and for more tokens than the
    model has positions.
    """
    ids = language_model.token_ids(lm, prompt)
    if not ids:
        raise ValueError("a continuation needs a prompt of at least one token; got none")
    if temperature < 0 or n_tokens < 1:
        raise ValueError(
            f"need temperature >= 0 and n_tokens >= 1; got {temperature} and {n_tokens}"
        )
    total = len(lm.prefix) + len(ids) + n_tokens
    if total > lm.max_seq:
        raise ValueError(
            f"prefix, prompt and continuation take {total} positions; {lm.name} has {lm.max_seq}"
        )
    site = language_model.check_hook(lm, hook)
    if sae is None or make_edit is None:
        return _next_tokens(lm, ids, n_tokens, temperature, generator)
    act = _stream(sae, make_edit, len(lm.prefix), propagated)
    with hooks.changed(lm.model, site, act):
        return _next_tokens(lm, ids, n_tokens, temperature, generator)


def _stream(
    sae: Sae, make_edit: MakeEdit, n_prefix: int, propagated: bool
) -> Callable[[Tensor], Tensor]:
    """What is called with pieces of the text, one after the other; it carries the SAE's states."""
    states: States | None = None
    done = -n_prefix

    def act(x: Tensor) -> Tensor:
        nonlocal states, done
        skip = max(-done, 0)
        text = x[:, skip:].float()
        edit = make_edit(done + skip, text.shape[1])
        delta, states = intervene(sae, text, edit, propagated=propagated, states=states)
        done += x.shape[1]
        return torch.cat([x[:, :skip], (text + delta).to(x.dtype)], 1)

    return act


def _next_tokens(
    lm: LanguageModel,
    ids: list[int],
    n_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
) -> str:
    """The text of the tokens, one by one, by the plain model with its cache.

    TransformerBridge 4.3 loses the cache's keys.
    """
    parameters = inspect.signature(lm.model.forward).parameters
    name = "cache" if "cache" in parameters else "past_key_values"
    cache, fresh, written = None, torch.tensor([[*lm.prefix, *ids]], device=lm.device), []
    for _ in range(n_tokens):
        out = lm.model(input_ids=fresh, **{name: cache}, use_cache=True, logits_to_keep=1)
        cache = out[name]
        token = _pick(out.logits[0, -1].float().cpu(), temperature, generator)
        if token == lm.tokenizer.eos_token_id:
            break
        written.append(token)
        fresh = torch.tensor([[token]], device=lm.device)
    return texts.spelled(lm.tokenizer, written)


def _pick(
    logits: Float[Tensor, " vocab"], temperature: float, generator: torch.Generator | None
) -> int:
    """The most probable token for temperature 0, else one of `softmax(logits / temperature)`."""
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
