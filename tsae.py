"""The temporal sparse autoencoder: pure functions on tensors, frozen dataclasses as state.

pre_t   = (x_t - b_dec) W_enc + b_enc                   a static SAE, bit for bit, when mix = 0
m_t     = sum_j read_j min(static_{t-j}, cap * scale)   what was active lately, j = 1..window
h_t     = LSTM_enc((x_t - b_dec) / scale, h_{t-1})
g_t     = clip(W_gate h_t + b_gate, 0, 1)               a soft gate per feature, in [0, 1]
sel_t   = pre_t + mix * beta * bridge * m_t             memory biases which features fire
acts_t  = k largest of sel_t, valued relu(pre_t) * g_t  never more than k
x_hat_t = acts_t W_dec + b_dec + mix * scale * LSTM_dec(acts_{<=t} W_dec / scale) W_out

Gradients are those of finite differences in every tensor, the choice of features held; the bridge,
which acts on that choice alone, gets a straight-through gradient.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

import tsae_kernels as kernels
from tsae_kernels import read_weights as read_weights
from tsae_kernels import to as to

Activations = Float[Tensor, "batch seq d_in"]
Starts = Bool[Tensor, "batch seq"] | None
"""Where documents begin that are packed into a stream, on the CPU; nothing is remembered there."""
PRE_VALUES = 2**26  # pre-activations that are held at a time


@dataclass(frozen=True, eq=False, kw_only=True)
class Static:
    """A static top-k SAE; rows of `W_dec` have unit norm."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Thresholded(Static):
    """A static SAE whose features are on above thresholds (JumpReLU, 0 for ReLU), not the top k."""

    threshold: Float[Tensor, " d_sae"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Temporal:
    """What a TSAE has beyond its static SAE."""

    bridge: Float[Tensor, " d_sae"]  # strength of the memory by feature, relative to beta
    enc_W_x: Float[Tensor, "d_in gates_enc"]
    enc_W_h: Float[Tensor, "hidden_enc gates_enc"]
    enc_b: Float[Tensor, " gates_enc"]
    W_gate: Float[Tensor, "d_sae hidden_enc"]
    b_gate: Float[Tensor, " d_sae"]
    dec_W_x: Float[Tensor, "d_in gates_dec"]
    dec_W_h: Float[Tensor, "hidden_dec gates_dec"]
    dec_b: Float[Tensor, " gates_dec"]
    W_out: Float[Tensor, "hidden_dec d_in"]
    scale: Float[Tensor, ""]  # rms of x - b_dec, unit of what the LSTMs read and write; not trained


@dataclass(frozen=True, eq=False, kw_only=True)
class Params:
    """All of a TSAE."""

    static: Static
    temporal: Temporal


@dataclass(frozen=True, kw_only=True)
class Dials:
    """What is set rather than learned, at one step of training or at inference."""

    k: int = 32  # most active features per token
    window: int = 16  # tokens that the memory holds
    tau: float = 4.0  # tokens in which the memory's reading falls by 1/e; inf reads the plain mean
    cap: float = 1.6  # largest value of a code that the memory reads, times `scale`; inf: no limit
    beta: float = 1.5  # strength of the memory in the selection
    mix: float = 1.0  # share of the temporal parts: 0 is the static SAE
    gate: bool = True  # whether the encoder LSTM's gates act
    recur: bool = True  # whether the decoder LSTM acts
    low: torch.dtype = torch.float32  # of the matrix products; a model in float64 takes float64


@dataclass(frozen=True, eq=False, kw_only=True)
class Sae:
    """A trained SAE with its dials; `static_sae` makes one of a static SAE."""

    params: Params
    dials: Dials

    @property
    def d_sae(self) -> int:
        return len(self.params.static.b_enc)

    @property
    def temporal(self) -> bool:
        """Whether the temporal parts act; without them it is the static SAE, bit for bit."""
        return self.dials.mix > 0 or self.dials.gate


@dataclass(frozen=True, eq=False)
class Codes:
    """Sparse codes: values >= 0 and the features they belong to; value 0 is not active."""

    vals: Float[Tensor, "batch seq k"]
    idx: Int[Tensor, "batch seq k"]


@dataclass(frozen=True, eq=False)
class Memory:
    """A ring of each stream's last `window` static codes; `pushed % window` is written next."""

    vals: Float[Tensor, "batch window k"]
    idx: Int[Tensor, "batch window k"]
    pushed: int  # codes pushed so far, not capped


@dataclass(frozen=True, eq=False)
class State:
    """What a stream carries from one call to the next: O(window * k + hidden)."""

    memory: Memory
    enc_h: Float[Tensor, "batch hidden_enc"]
    enc_c: Float[Tensor, "batch hidden_enc"]
    dec_h: Float[Tensor, "batch hidden_dec"]
    dec_c: Float[Tensor, "batch hidden_dec"]


# -------------------------------------------------------------------------------------------- start
def init_static(mean: Float[Tensor, " d_in"], d_sae: int, *, generator: Generator) -> Static:
    """Random unit rows in `W_dec`, `W_enc` its transpose, `b_dec` = `mean` (Gao et al. 2024, 3)."""
    W_dec = torch.randn(d_sae, len(mean), generator=generator).to(mean)
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    b_enc = mean.new_zeros(d_sae)
    return Static(W_enc=W_dec.t().contiguous(), b_enc=b_enc, W_dec=W_dec, b_dec=mean.clone())


def from_static(
    static: Static, *, scale: float, hidden_enc: int = 64, hidden_dec: int = 256,
    generator: Generator,
) -> Params:  # fmt: skip
    """A TSAE that computes what `static` does, until the bridge acts (`beta * mix > 0`)."""
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"from_static needs a finite scale > 0 (rms of x - b_dec); got {scale}")
    ref, (d_in, d_sae) = static.W_enc, static.W_enc.shape
    temporal = Temporal(
        bridge=ref.new_ones(d_sae),
        **kernels.init_lstm("enc", ref, hidden_enc, generator),
        W_gate=ref.new_zeros(d_sae, hidden_enc),
        b_gate=ref.new_ones(d_sae),
        **kernels.init_lstm("dec", ref, hidden_dec, generator),
        W_out=ref.new_zeros(hidden_dec, d_in),
        scale=ref.new_tensor(scale),
    )
    return Params(static=static, temporal=temporal)


def static_sae(static: Static, k: int, low: torch.dtype = torch.float32) -> Sae:
    """A static SAE as a TSAE whose temporal parts do not act: mix 0, no gates, no recurrence."""
    params = from_static(static, scale=1.0, hidden_enc=1, hidden_dec=1, generator=Generator())
    return Sae(params=params, dials=Dials(k=k, window=1, mix=0.0, gate=False, recur=False, low=low))


def tensors(params: Params | Static | Temporal) -> dict[str, Tensor]:
    """Name to tensor, `W_enc` .. `scale`; no copies. Inverse: `params_from`."""
    groups = (params.static, params.temporal) if isinstance(params, Params) else (params,)
    return {name: tensor for group in groups for name, tensor in vars(group).items()}


def params_from(named: Mapping[str, Tensor]) -> Params:
    """Parameters from the names of `tensors`. Raises ValueError where one is missing."""
    wanted = [f.name for cls in (Static, Temporal) for f in fields(cls)]
    missing = [name for name in wanted if name not in named]
    if missing:
        raise ValueError(f"a TSAE needs {len(wanted)} tensors; missing: {', '.join(missing)}")
    pick = {cls: {f.name: named[f.name] for f in fields(cls)} for cls in (Static, Temporal)}
    return Params(static=Static(**pick[Static]), temporal=Temporal(**pick[Temporal]))


def start_state(params: Params, batch: int, dials: Dials) -> State:
    """The state at the first token of a document: nothing remembered."""
    check_dials(dials, d_sae=params.static.W_enc.shape[1])
    t, ref = params.temporal, params.static.W_enc
    hidden = (len(t.enc_W_h), len(t.enc_W_h), len(t.dec_W_h), len(t.dec_W_h))
    memory = empty_memory(batch, dials.window, dials.k, ref)
    return State(memory, *(ref.new_zeros(batch, units) for units in hidden))


def check_dials(dials: Dials, *, d_sae: int) -> None:
    """ValueError unless 0 < k <= d_sae, window >= 1, tau and cap > 0, 0 <= beta, mix < inf."""
    needs = {
        f"k needs 0 < k <= d_sae; got k={dials.k}, d_sae={d_sae}": 0 < dials.k <= d_sae,
        f"window needs to be at least 1 token; got {dials.window}": dials.window >= 1,
        f"tau needs to be > 0 tokens; got {dials.tau}": dials.tau > 0,
        f"cap needs to be > 0 (in units of scale); got {dials.cap}": dials.cap > 0,
        f"beta needs to be finite and >= 0; got beta={dials.beta}": 0 <= dials.beta < math.inf,
        f"mix needs to be finite and >= 0; got mix={dials.mix}": 0 <= dials.mix < math.inf,
    }
    for message, holds in needs.items():
        if not holds:
            raise ValueError(message)


def _begun(state: State | None, params: Params, batch: int, dials: Dials) -> State:
    """A start for None, else the state; ValueError if it is of other streams, window or model."""
    if state is None:
        return start_state(params, batch, dials)
    t, ring = params.temporal, state.memory.vals
    form = "streams={}, window={}, hidden_enc={}, hidden_dec={}, {}".format
    needed = form(batch, dials.window, len(t.enc_W_h), len(t.dec_W_h), t.W_gate.dtype)
    held = form(*ring.shape[:2], state.enc_h.shape[1], state.dec_h.shape[1], ring.dtype)
    if held != needed:
        raise ValueError(f"this call needs a state of {needed}; got {held}")
    return state


# ------------------------------------------------------------------------------------------- memory
def empty_memory(batch: int, window: int, k: int, like: Tensor) -> Memory:
    """A ring with nothing in it; values on the device and in the dtype of `like`."""
    if window < 1:
        raise ValueError(f"window needs to be at least 1 token; got {window}")
    idx = torch.zeros(batch, window, k, dtype=torch.int64, device=like.device)
    return Memory(like.new_zeros(batch, window, k), idx, 0)


def push(memory: Memory, codes: Codes, starts: Starts = None) -> Memory:
    """The memory after all tokens of `codes`, oldest first; slots as wide as the widest code.

    What lies before the last of a stream's `starts` is forgotten.
    """
    if starts is not None:
        starts = starts.to(codes.vals.device)
        n_before, n = starts.cumsum(1), starts.sum(1, keepdim=True)
        codes = Codes(codes.vals * (n_before == n)[..., None], codes.idx)
        memory = replace(memory, vals=memory.vals * (n == 0)[..., None])
    window, seq = memory.vals.shape[1], codes.vals.shape[1]
    k = max(memory.vals.shape[2], codes.vals.shape[2])
    first = max(seq - window, 0)  # codes before it would be overwritten in this very call
    slots = (memory.pushed + torch.arange(first, seq, device=codes.idx.device)) % window
    vals = _widen(memory.vals, k).index_copy(1, slots, _widen(codes.vals[:, first:], k))
    idx = _widen(memory.idx, k).index_copy(1, slots, _widen(codes.idx[:, first:], k))
    return Memory(vals, idx, memory.pushed + seq)


def recall(memory: Memory) -> Codes:
    """All `window` slots, oldest first; those not yet written are empty codes and come first."""
    window = memory.vals.shape[1]
    order = (memory.pushed + torch.arange(window, device=memory.idx.device)) % window
    return Codes(memory.vals[:, order], memory.idx[:, order])


def _widen(slots: Tensor, k: int) -> Tensor:
    return torch.nn.functional.pad(slots, (0, k - slots.shape[-1]))


def remember(
    memory: Memory, static: Codes, weights: Float[Tensor, " window"], d_sae: int
) -> Float[Tensor, "batch seq d_sae"]:
    """`m_t = sum_j weights_j static_{t-j}` for all tokens of `static`; `memory` lies before."""
    out = static.vals.new_zeros(*static.vals.shape[:2], d_sae)
    return _add_memory(out.flatten(0, 1), memory, static, weights).view_as(out)


def _add_memory(
    base: Tensor, memory: Memory, static: Codes, weights: Tensor, starts: Starts = None
) -> Tensor:
    """`base (tokens d_sae)` plus what the memory reads, written into `base`."""
    past, k = recall(memory), max(static.vals.shape[2], memory.vals.shape[2])
    vals = torch.cat([_widen(past.vals, k), _widen(static.vals, k)], 1)
    idx = torch.cat([_widen(past.idx, k), _widen(static.idx, k)], 1)
    return kernels.add_window(base, vals, idx, weights, starts)


# -------------------------------------------------------------------------------- encode and decode
def pre_acts(
    x: Activations, static: Static, low: torch.dtype = torch.float32
) -> Float[Tensor, "batch seq d_sae"]:
    """Pre-activations `(x - b_dec) W_enc + b_enc`, in `low`; 0 where not above a threshold."""
    return _pre(kernels.fitted(x, vars(static)) - static.b_dec, static, low)


@kernels.exact
def _pre(centred: Tensor, static: Static, low: torch.dtype) -> Tensor:
    low = kernels.product_dtype(static.W_enc, low)
    flat, b = centred.to(low).flatten(0, 1), static.b_enc.to(low)
    pre = (flat @ static.W_enc.to(low)).unflatten(0, centred.shape[:2])
    pre = pre + b if kernels.plain() else pre.add_(b)  # the largest array: held once
    return kernels.jump(pre, static.threshold) if isinstance(static, Thresholded) else pre


def _by_span(
    centred: Tensor, static: Static, k: int, low: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Spans of `seq`, their pre-activations, `PRE_VALUES` at most, and where the k largest are.

    They have a gradient for `torch.func` and `torch.compile` alone: else `_kept` makes one.
    """
    low = kernels.product_dtype(static.W_enc, low)
    static = replace(static, W_enc=static.W_enc.to(low), b_enc=static.b_enc.to(low))
    step = max(PRE_VALUES // max(len(centred) * len(static.b_enc), 1), 1)
    for begin in range(0, max(centred.shape[1], 1), step):
        pre = _pre(centred[:, begin : begin + step], static, low)
        pre = pre if kernels.plain() else pre.detach()
        idx = kernels.topk_idx(pre.detach().flatten(0, 1), k, whole=isinstance(static, Thresholded))
        yield slice(begin, begin + step), pre, idx.unflatten(0, pre.shape[:2])
        del pre  # before the next


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Spans side by side, filled up with 0 to the widest code."""
    k = max(part.shape[2] for part in parts)
    return torch.cat([_widen(part, k) for part in parts], 1) if len(parts) > 1 else parts[0]


def _kept(pre: Tensor, idx: Tensor, centred: Tensor, static: Static) -> Tensor:
    flat = [tensor.flatten(0, 1) for tensor in (idx, centred)]
    weights = static.W_enc, static.b_enc
    return kernels.kept_values(pre.flatten(0, 1), flat[0], flat[1], *weights).view(idx.shape)


def encode_static(
    x: Activations, static: Static, k: int, low: torch.dtype = torch.float32
) -> Codes:
    """`relu(k largest of pre)` by token; of a `Thresholded` SAE as many as any token has on."""
    centred, spans = kernels.fitted(x, vars(static)) - static.b_dec, []
    for _, pre, idx in _by_span(centred, static, k, low):
        spans.append((pre.gather(2, idx), idx))
        del pre
    pre, idx = (_side_by_side(parts) for parts in zip(*spans, strict=True))
    return Codes(_kept(pre, idx, centred, static), idx)


def decode_static(codes: Codes, static: Static) -> Activations:
    """`acts W_dec + b_dec`."""
    named = kernels.flat_codes(codes.vals, codes.idx, static.W_dec)
    flat = kernels.decode_codes(*named, static.W_dec)
    return flat.view(*codes.vals.shape[:2], len(static.b_dec)) + static.b_dec


@dataclass(frozen=True, eq=False)
class Selected:
    """The features that fire, their pre-activations, and what the memory added to choose them."""

    idx: Int[Tensor, "batch seq k"]
    pre: Float[Tensor, "batch seq k"]
    added: Float[Tensor, "batch seq k"]


@dataclass(frozen=True, eq=False)
class Seen:
    """What an encoder makes of activations."""

    centred: Activations
    static: Codes  # detached: what the memory will hold
    selected: Selected  # with a memory of these
    hs: Float[Tensor, "batch seq hidden_enc"] | None  # what the gates read; None without gates
    enc_h: Float[Tensor, "batch hidden_enc"]
    enc_c: Float[Tensor, "batch hidden_enc"]
    starts: Starts = None


def see(params: Params, x: Activations, dials: Dials, state: State, starts: Starts = None) -> Seen:
    """Static codes, the features that fire and the encoder LSTM's states."""
    static, t = params.static, params.temporal
    centred = kernels.fitted(x, vars(static)) - static.b_dec
    codes, selected = select(params, centred, dials, state.memory, starts)
    hs, h, c = None, state.enc_h, state.enc_c
    if dials.gate:
        weights = t.enc_W_x, t.enc_W_h, t.enc_b
        hs, h, c = kernels.lstm(centred / t.scale, h, c, *weights, dials.low, starts)
    return Seen(centred, codes, selected, hs, h, c, starts)


def select(
    params: Params, centred: Activations, dials: Dials, memory: Memory, starts: Starts = None,
    held: Codes | None = None,
) -> tuple[Codes, Selected]:  # fmt: skip
    """Static codes, and the features that fire: `k` largest of `pre + mix * beta * bridge * m`.

    The memory holds `memory` and then, token by token, `held`: the static codes, unless edited.
    """
    spans = []
    for span, pre, idx in _by_span(centred, params.static, dials.k, dials.low):
        vals = pre.detach().gather(2, idx).to(centred.dtype).relu()
        now = Codes(vals, idx) if held is None else Codes(held.vals[:, span], held.idx[:, span])
        begun = None if starts is None else starts[:, span]
        best, added = _biased(pre.detach(), idx, now, memory, params.temporal, dials, begun)
        spans.append((vals, idx, best, pre.gather(2, best), added))
        memory = push(memory, now, begun)
        del pre
    vals, idx, best, pre, added = (_side_by_side(parts) for parts in zip(*spans, strict=True))
    return Codes(vals, idx), Selected(best, pre, added)


def _biased(
    pre: Tensor, idx: Tensor, held: Codes, memory: Memory, temporal: Temporal, dials: Dials,
    starts: Starts,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The `k` largest with what the memory adds, and that; `idx` are those of `pre` alone."""
    if (strength := dials.mix * dials.beta) == 0:
        return idx, torch.zeros_like(idx, dtype=held.vals.dtype)
    flat = pre.flatten(0, 1)
    weights = strength * read_weights(dials.window, dials.tau, flat.device)
    past = replace(memory, vals=_as_read(Codes(memory.vals, memory.idx), temporal, dials).vals)
    sel = _add_memory(flat.clone(), past, _as_read(held, temporal, dials), weights, starts)
    best = kernels.topk_idx(sel, dials.k)
    added = (sel.gather(1, best) - flat.gather(1, best)).to(held.vals.dtype)
    return best.unflatten(0, pre.shape[:2]), added.unflatten(0, pre.shape[:2])


def _as_read(codes: Codes, temporal: Temporal, dials: Dials) -> Codes:
    """What the memory's reading makes of the codes it holds: `min(vals, cap * scale) * bridge`."""
    vals = codes.vals
    if dials.cap < math.inf:
        vals = vals.clamp(max=(dials.cap * temporal.scale.detach().double()).to(vals.dtype))
    return Codes(vals * temporal.bridge.detach()[codes.idx], codes.idx)


def encode(
    params: Params, x: Activations, dials: Dials, state: State | None = None, starts: Starts = None
) -> tuple[Codes, State]:
    """Codes of `x`, and the state after it; `state` came before, None is the start of a document.

    At most `k` values > 0 per token. Raises ValueError on dials or activations that do not fit.
    """
    check_dials(dials, d_sae=len(params.static.b_enc))
    x = kernels.fitted(x, tensors(params))
    state = _begun(state, params, len(x), dials)
    seen = see(params, x, dials, state, starts)
    codes = selected_codes(params, seen, seen.selected)
    memory = push(state.memory, seen.static, starts)
    return codes, replace(state, memory=memory, enc_h=seen.enc_h, enc_c=seen.enc_c)


def codes_with(params: Params, seen: Seen, held: Codes, memory: Memory, dials: Dials) -> Codes:
    """The codes of what was seen when the memory holds `memory` and then, by token, `held`."""
    _, selected = select(params, seen.centred, dials, memory, seen.starts, held)
    return selected_codes(params, seen, selected)


def selected_codes(params: Params, seen: Seen, selected: Selected) -> Codes:
    """The codes of these features: `relu(pre) * g`."""
    t, idx = params.temporal, selected.idx
    vals = _kept(selected.pre, idx, seen.centred, params.static)
    if t.bridge.requires_grad:  # straight-through: adds 0, passes the gradient of `added` on
        strength = t.bridge.detach()[idx].clamp(min=1e-3)
        ghost = t.bridge[idx] * (selected.added * (vals.detach() > 0) / strength)
        vals = vals + (ghost - ghost.detach())
    if seen.hs is not None:
        flat = seen.hs.flatten(0, 1), t.W_gate, t.b_gate, idx.flatten(0, 1)
        vals = vals * kernels.gate_values(*flat).view(idx.shape)
    return Codes(vals, idx)


def decode(
    params: Params, codes: Codes, dials: Dials, state: State | None = None, starts: Starts = None,
    *, detach: bool = False,
) -> tuple[Activations, State]:  # fmt: skip
    """Reconstruction from the codes alone, and the state after them (the decoder LSTM's part).

    With `detach` the LSTM sends no gradient into the codes.
    """
    static, t = params.static, params.temporal
    state = _begun(state, params, len(codes.vals), dials)
    base = decode_static(codes, static)
    if not dials.recur or dials.mix == 0:
        return base, state
    read = (base - static.b_dec) / t.scale
    read = read.detach() if detach else read
    h, c = state.dec_h, state.dec_c
    hs, h, c = kernels.lstm(read, h, c, t.dec_W_x, t.dec_W_h, t.dec_b, dials.low, starts)
    out = kernels.product(hs.flatten(0, 1), t.W_out, dials.low).view_as(base)
    return base + dials.mix * t.scale * out, replace(state, dec_h=h, dec_c=c)


def forward(
    params: Params, x: Activations, dials: Dials, state: State | None = None, starts: Starts = None
) -> tuple[Activations, Codes, State]:
    """`decode(encode(x))`, the codes, and the state after both."""
    codes, state = encode(params, x, dials, state, starts)
    x_hat, state = decode(params, codes, dials, state, starts)
    return x_hat, codes, state


def dense(codes: Codes, d_sae: int) -> Float[Tensor, "batch seq d_sae"]:
    """The dense code."""
    flat = kernels.scatter_codes(codes.vals.flatten(0, 1), codes.idx.flatten(0, 1), d_sae)
    return flat.view(*codes.vals.shape[:2], d_sae)


# ---------------------------------------------------------------------------------------- lifecycle
UNBORN, BORN, ACTIVE, DORMANT, DEAD = range(5)
NEVER = -2  # a position that is before every token and next to none


@dataclass(frozen=True, eq=False)
class Streams:
    """The runs of each stream, in positions of the chunk that it reads (0 is the first token)."""

    opens: Bool[Tensor, " streams"]  # whether the chunk begins a document
    length: Int[Tensor, " streams"]  # tokens of the chunk read so far
    last: Int[Tensor, "streams d_sae"]  # where a feature was last on; NEVER if not in this chunk
    begun: Int[Tensor, "streams d_sae"]  # where that run of it began


@dataclass(frozen=True, eq=False, kw_only=True)
class Lifecycle:
    """What each feature did in the tokens read so far, over all streams.

    A run is a maximal stretch of tokens of one chunk at which a feature is on. Its birth was seen
    unless it starts at the first token of a chunk inside a document; its death was seen once a
    token of the same chunk is off. A gap lies between two runs of one chunk.
    """

    tokens: Int[Tensor, ""]  # read so far
    idle: Int[Tensor, " d_sae"]  # tokens since it was last on in any stream; `tokens` if never
    fired: Int[Tensor, " d_sae"]  # tokens it was on at
    peak: Float[Tensor, " d_sae"]  # largest value
    births: Int[Tensor, " d_sae"]  # runs that were seen to begin
    deaths: Int[Tensor, " d_sae"]  # runs that were seen to end
    gaps: Int[Tensor, " d_sae"]  # gaps that have ended
    gap_tokens: Int[Tensor, " d_sae"]  # tokens in those
    age_sum: Int[Tensor, " d_sae"]  # sum over `fired` of the age, the tokens since it was last off
    oldest: Int[Tensor, " d_sae"]  # largest age
    streams: Streams | None = None  # None: runs are not followed; births to oldest stay 0


def start_lifecycle(d_sae: int, like: Tensor) -> Lifecycle:
    """No token read and no stream open; values on the device and in the dtype of `like`."""
    counted = ("idle", "fired", "births", "deaths", "gaps", "gap_tokens", "age_sum", "oldest")
    zero = torch.zeros(d_sae, dtype=torch.int64, device=like.device)
    counts = dict.fromkeys(counted, zero) | {"tokens": zero.new_zeros(())}
    return Lifecycle(peak=like.new_zeros(d_sae), streams=None, **counts)


def begin_chunks(life: Lifecycle, opens: Bool[Tensor, " streams"]) -> Lifecycle:
    """All streams begin a new chunk, those that `opens` marks a document; no run goes on."""
    length = torch.zeros_like(opens, dtype=torch.int64)
    never = torch.full((len(opens), len(life.idle)), NEVER, device=opens.device)
    return replace(life, streams=Streams(opens, length, never, never))


def advance(life: Lifecycle, codes: Codes, weight: Float[Tensor, "batch seq"]) -> Lifecycle:
    """The lifecycle after these tokens: one stream per row, which goes on from the call before.

    Cut along `seq` into pieces, the result is the same. Weight 0 (padding) is no token; weights
    are else 1. Where no chunk was begun (`begin_chunks`) only tokens, idle, fired and peak count.
    """
    real, d_sae = weight > 0, len(life.idle)
    vals, idx = codes.vals.detach() * real[..., None], codes.idx
    on = vals > 0
    read = torch.nn.functional.pad(real.sum(0).cumsum(0), (1, 0))  # tokens before each column
    column = torch.where(on, torch.arange(1, len(read), device=idx.device)[:, None], 0)
    latest = life.idle.new_zeros(d_sae).scatter_reduce_(0, idx.flatten(), column.flatten(), "amax")
    total, flat_vals = read[-1], vals.flatten().to(life.peak.dtype)
    counted = replace(
        life,
        tokens=life.tokens + total,
        idle=torch.where(latest > 0, total - read[latest], life.idle + total),
        fired=life.fired + kernels.feature_sums(on.long(), idx, d_sae),
        peak=life.peak.scatter_reduce(0, idx.flatten(), flat_vals, "amax"),
    )
    return counted if life.streams is None else _follow(counted, life.streams, idx, on, real)


def _follow(life: Lifecycle, streams: Streams, idx: Tensor, on: Tensor, real: Tensor) -> Lifecycle:
    """`life` with what happened to the runs, token by token, all streams at once."""
    if len(streams.opens) != len(idx):
        raise ValueError(f"this lifecycle has {len(streams.opens)} streams; got {len(idx)} rows")
    tables = streams.last, streams.begun, streams.length, streams.opens
    counts, oldest, (last, begun, length) = kernels.run_counts(*tables, idx, on, real)
    return replace(
        life,
        **{name: getattr(life, name) + count for name, count in counts.items()},
        oldest=torch.maximum(life.oldest, oldest),
        streams=Streams(streams.opens, length, last, begun),
    )


def stage(life: Lifecycle, *, dead_after: int, dormant_after: int = 1) -> Int[Tensor, " d_sae"]:
    """UNBORN, BORN (no run seen to end), ACTIVE, DORMANT or DEAD (also if never on) by feature."""
    if not 0 < dormant_after <= dead_after:
        raise ValueError(f"need 0 < dormant_after <= dead_after; got {dormant_after}, {dead_after}")
    out = torch.where(life.deaths > 0, ACTIVE, BORN)
    out[life.idle >= dormant_after] = DORMANT
    out[life.fired == 0] = UNBORN
    out[life.idle >= dead_after] = DEAD
    return out


for _c in (Static, Thresholded, Temporal, Params, Codes, State, Selected, Seen, Streams, Lifecycle):
    kernels.register_tree(_c)
kernels.register_tree(Sae, "dials")
kernels.register_tree(Memory, "pushed")
