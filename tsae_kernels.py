"""The products and recurrences that training spends its time in, on sparse codes.

A code is `(vals, idx)`, both `(tokens k)`: values and the features they belong to. Products run in
`low`, bfloat16 where the processor has it and float32 else (tensors in float64: in float64); what
is summed up over steps stays in the dtype of the tensors. Autocast has no say in any of them.

Gradients are those of finite differences, unless a function says another. They are written by hand
and can be taken once; `torch.func` and `torch.compile` get the same functions in plain operations.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import fields
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Generator, Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import Function
from torch.utils import _pytree
from torch.utils.weak import WeakTensorKeyDictionary

Args = ParamSpec("Args")
Result = TypeVar("Result")
Tree = TypeVar("Tree")
Hidden = tuple[
    Float[Tensor, "batch seq hidden"], Float[Tensor, "batch hidden"], Float[Tensor, "batch hidden"]
]


def exact(call: Callable[Args, Result]) -> Callable[Args, Result]:
    """`call` with autocast off."""

    @wraps(call)
    def run(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        device = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)).device.type
        cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if cast else nullcontext():
            return call(*args, **kwargs)

    return run


def product_dtype(W: Tensor, low: torch.dtype) -> torch.dtype:
    """`low`, but float64 for a `W` in float64."""
    return torch.float64 if W.dtype == torch.float64 else low


def plain() -> bool:
    """Whether `torch.func` or `torch.compile` asks, which see through plain operations alone."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _once(backward: Callable[..., Result]) -> Callable[..., Result]:
    """Raise where a hand-written gradient is to be differentiated or mapped over.

    `once_differentiable` would raise in `backward()` alone: `grad` passes its error by.
    """

    @wraps(backward)
    def run(ctx: Any, *grads: Tensor) -> Result:
        mapped = any(is_legacy_batchedtensor(grad) for grad in grads)
        if torch.is_grad_enabled() or mapped:
            advice = "take higher or batched ones by torch.func (grad, jacrev, hessian)"
            raise RuntimeError(f"gradients of tsae can be taken once, one by one; {advice}")
        return backward(ctx, *grads)

    return run


def register_tree(cls: type, *constants: str) -> None:
    """Make a dataclass a pytree (`torch.func`, `tree_map`); `constants` are not tensors."""
    names = [field.name for field in fields(cls) if field.name not in constants]

    def flatten(tree: Any) -> tuple[list[Any], list[Any]]:
        return [getattr(tree, n) for n in names], [getattr(tree, n) for n in constants]

    def unflatten(leaves: Any, context: list[Any]) -> Any:
        tree = object.__new__(cls)  # leaves may be anything: no check of types or shapes
        vars(tree).update(zip([*names, *constants], [*leaves, *context], strict=True))
        return tree

    def flatten_with_keys(tree: Any) -> tuple[list[Any], list[Any]]:
        leaves, context = flatten(tree)
        return list(zip(map(_pytree.GetAttrKey, names), leaves, strict=True)), context

    register = _pytree.register_pytree_node
    register(cls, flatten, unflatten, flatten_with_keys_fn=flatten_with_keys)


def to(
    tree: Tree, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tree:
    """Parameters, codes or a state on `device`, floats in `dtype`; None: as they are.

    Whole numbers stay whole. Raises ValueError on a `dtype` that is not floating.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"parameters and codes need a floating dtype; got {dtype}")

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

    return _pytree.tree_map(moved, tree)


def fitted(x: Tensor, named: Mapping[str, Tensor]) -> Tensor:
    """`x` in the dtype of the parameters; ValueError unless (batch, seq, d_in) and floating."""
    dtypes, d_in, width = {t.dtype for t in named.values()}, len(named["b_dec"]), x.shape[-1:]
    if len(dtypes) > 1 or not named["b_dec"].is_floating_point():
        names = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"parameters need to be of one floating dtype; got {names}")
    if x.ndim != 3 or not x.is_floating_point():
        got = f"got shape {tuple(x.shape)} of {x.dtype}"
        raise ValueError(f"activations need shape (batch, seq, d_in={d_in}) and floats; {got}")
    if width[0] != d_in:
        raise ValueError(f"the encoder needs d_in={d_in}; got activations of width {width[0]}")
    return x.to(named["b_dec"].dtype)


def flat_codes(
    vals: Shaped[Tensor, "..."], idx: Shaped[Tensor, "..."], like: Tensor
) -> tuple[Float[Tensor, "tokens k"], Int[Tensor, "tokens k"]]:
    """Codes by token, `vals` in the dtype of `like`; ValueError unless both are (batch, seq, k)."""
    if vals.shape != idx.shape or vals.ndim != 3:
        got = f"got vals {tuple(vals.shape)} and idx {tuple(idx.shape)}"
        raise ValueError(f"codes need vals and idx of one shape (batch, seq, k); {got}")
    if not vals.is_floating_point() or idx.is_floating_point():
        raise ValueError(f"codes need floats and whole idx; got {vals.dtype} and {idx.dtype}")
    return vals.to(like.dtype).flatten(0, 1), idx.flatten(0, 1)


def jump(
    pre: Float[Tensor, "tokens seq d_sae"], threshold: Float[Tensor, " d_sae"]
) -> Float[Tensor, "tokens seq d_sae"]:
    """`pre` where it is above the feature's threshold, else 0 (JumpReLU, with the ReLU behind)."""
    return torch.where(pre > threshold, pre, 0)


def topk_idx(
    pre: Float[Tensor, "tokens d_sae"], k: int, *, whole: bool = False
) -> Int[Tensor, "tokens k"]:
    """Where the `k` largest of each row are, in no order (of equal values, any).

    Wide rows are searched in two steps: row by row, the `k` columns of the (8, d_sae / 8) view with
    the largest maxima hold the `k` largest values. With `whole`, `k` is as many as the row with the
    most has above 0, and at least 1.
    """
    tokens, d_sae = pre.shape
    if not 0 < k <= d_sae:
        raise ValueError(f"top-k needs 0 < k <= d_sae; got k={k}, d_sae={d_sae}")
    if whole and tokens:
        k = max(int((pre > 0).sum(1).max()), 1)
    deep, wide = 8, d_sae // 8
    if d_sae % deep or wide < 4 * k:
        return pre.topk(k, dim=-1, sorted=False).indices
    blocks = pre.view(tokens, deep, wide)
    best = blocks.amax(1).topk(k, dim=-1, sorted=False).indices
    values = blocks.gather(2, best[:, None].expand(-1, deep, -1)).flatten(1)
    slot = values.topk(k, dim=-1, sorted=False).indices  # depth * k + rank of the column in `best`
    return best.gather(1, slot % k) + wide * (slot // k)


def scatter_codes(
    vals: Float[Tensor, "tokens k"], idx: Int[Tensor, "tokens k"], d_sae: int
) -> Float[Tensor, "tokens d_sae"]:
    """The dense form of a code; a feature named twice gets the sum."""
    return vals.new_zeros(len(idx), d_sae).scatter_add(1, idx, vals)


def gather_dot(
    x: Float[Tensor, "tokens d"], W: Float[Tensor, "d_sae d"], idx: Int[Tensor, "tokens k"]
) -> Float[Tensor, "tokens k"]:
    """`(x W^T)` at `idx`: `k` dot products per token in place of `d_sae`; no derivative.

    The gradient of `embedding_bag` in its weights per sample; ten times faster than gathering rows.
    """
    tokens, k = idx.shape
    starts = torch.arange(0, tokens * k, k, device=idx.device)
    row = torch.arange(tokens, device=idx.device).repeat_interleave(k)
    out = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x.contiguous(), W, idx.flatten().contiguous(), starts, row, 0, -1
    )
    return out.view(tokens, k)


_sorted = WeakTensorKeyDictionary()  # of the indices of a step, which several gradients sort


def by_feature(idx: Int[Tensor, "tokens k"], d_sae: int) -> tuple[Tensor, Tensor]:
    """The entries of `idx` in the order of their features, then where each feature's begin.

    Remembered as long as the indices live: views of one tensor are sorted once.
    """
    base = idx if idx._base is None else idx._base
    version = 0 if base.is_inference() else base._version
    key = (idx.storage_offset(), *idx.shape, *idx.stride(), d_sae, version)
    if (held := _sorted.get(base)) is None or held[0] != key:
        feature, order = idx.flatten().sort(stable=True)
        begin = torch.searchsorted(feature, torch.arange(d_sae, device=idx.device))
        held = _sorted[base] = (key, order, begin)
    return held[1], held[2]


def codes_t_product(
    vals: Float[Tensor, "tokens k"], idx: Int[Tensor, "tokens k"], x: Float[Tensor, "tokens d"],
    d_sae: int,
) -> Float[Tensor, "d_sae d"]:  # fmt: skip
    """`codes^T x`, a weight's gradient: entries sorted by feature, then summed in bags."""
    order, starts = by_feature(idx, d_sae)
    token = torch.div(order, idx.shape[1], rounding_mode="floor")
    return F.embedding_bag(token, x, starts, per_sample_weights=vals.flatten()[order], mode="sum")


def feature_sums(
    vals: Shaped[Tensor, "*codes k"], idx: Int[Tensor, "*codes k"], d_sae: int
) -> Shaped[Tensor, " d_sae"]:
    """Sum of the values of each feature, in one order each time; whole numbers stay whole."""
    if vals.device.type == "cpu" or not vals.is_floating_point():
        return vals.new_zeros(d_sae).index_add_(0, idx.flatten(), vals.flatten())
    entries = by_feature(idx.flatten(0, -2), d_sae)
    return F.embedding_bag(entries[0], vals.reshape(-1, 1), entries[1], mode="sum")[:, 0]


def read_weights(
    window: int, tau: float, device: torch.device | str = "cpu"
) -> Float[Tensor, " window"]:
    """Weights of the codes 1..window tokens back, `exp(-j / tau)` scaled to sum 1."""
    # from lag 0: a small tau leaves no 0 / 0
    weights = torch.exp(-torch.arange(window, dtype=torch.float64, device=device) / tau)
    return (weights / weights.sum()).float()


def add_window(
    base: Float[Tensor, "tokens d_sae"], vals: Float[Tensor, "batch past k"],
    idx: Int[Tensor, "batch past k"], weights: Float[Tensor, " window"],
    starts: Bool[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, "tokens d_sae"]:  # fmt: skip
    """`base` plus `sum_j weights_j codes_{t-j}`, j = 1..window; written into `base`.

    Of the codes the first `window` come before the tokens of `base`, the others are theirs. Codes
    on the other side of one of `starts`, the first tokens of documents, are not read.
    """
    window, seq = len(weights), vals.shape[1] - len(weights)
    n_before = None if starts is None else F.pad(starts.to(vals.device), (window, 0)).cumsum(1)
    lags, k = [], vals.shape[2]
    for j, weight in enumerate(weights.unbind(), 1):
        past = slice(window - j, window - j + seq)
        near = vals[:, past] * weight
        if n_before is not None:
            near = near * (n_before[:, past] == n_before[:, window:])[..., None]
        lags.append((idx[:, past].reshape(-1, k), near.reshape(-1, k).to(base.dtype)))
    if base.device.type == "cpu":
        return base.scatter_add_(1, *(torch.cat(entries, 1) for entries in zip(*lags, strict=True)))
    for entries in lags:  # a lag's features differ: no two sums meet in one place, in any order
        base.scatter_add_(1, *entries)
    return base


def follow_runs(
    last: Int[Tensor, "streams d_sae"], begun: Int[Tensor, "streams d_sae"],
    idx: Int[Tensor, "streams seq k"], position: Int[Tensor, "streams seq"],
) -> tuple[
    Int[Tensor, "streams seq k"], Int[Tensor, "streams seq k"],
    Int[Tensor, "streams d_sae"], Int[Tensor, "streams d_sae"],
]:  # fmt: skip
    """By entry, where its feature was on before and where its run began; then the new tables.

    `last` and `begun` say where each feature was last on and where that run began; a run goes on
    if it was on one position before. An `idx` of -1 is no feature, and its entry means nothing.
    """
    feature = torch.where(idx < 0, last.shape[1], idx)  # -1 reads and writes a spare column
    last, begun = F.pad(last, (0, 1)), F.pad(begun, (0, 1))  # copies
    before, begin = torch.empty_like(idx), torch.empty_like(idx)
    # one column of all streams at a time: two gathers and two scatters are cheaper than a sort
    for t in range(idx.shape[1]):
        f, now = feature[:, t], position[:, t, None].expand_as(idx[:, t])
        before[:, t] = last.gather(1, f)
        begin[:, t] = torch.where(before[:, t] == now - 1, begun.gather(1, f), now)
        last.scatter_(1, f, now)
        begun.scatter_(1, f, begin[:, t])
    return before, begin, last[:, :-1], begun[:, :-1]


def run_counts(
    last: Int[Tensor, "streams d_sae"], begun: Int[Tensor, "streams d_sae"],
    length: Int[Tensor, " streams"], opens: Bool[Tensor, " streams"],
    idx: Int[Tensor, "streams seq k"], on: Bool[Tensor, "streams seq k"],
    real: Bool[Tensor, "streams seq"],
) -> tuple[dict[str, Tensor], Int[Tensor, " d_sae"], tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
    """Births, deaths, gaps, gap tokens and summed ages by feature, largest ages, then the tables.

    The tables are those of `follow_runs` and the `length` of each stream's chunk so far; `opens`
    says whether it begins a document. Token by token, all streams at once.
    """
    d_sae = last.shape[1]
    position = length[:, None] + real.long().cumsum(1) - 1
    now = position[..., None]
    before, begin, new_last, new_begun = follow_runs(
        last, begun, torch.where(on, idx, -1), position
    )
    new_length = length + real.sum(1)
    fresh = on & (begin == now)
    gap = torch.where(fresh & (before >= 0), now - before - 1, 0)
    age = torch.where(on, now - begin + 1, 0)
    still = (new_last == new_length[:, None] - 1).sum(0)
    open_before = (last == length[:, None] - 1).sum(0)
    born = fresh & ((now > 0) | opens[:, None, None])
    counts = {
        "births": feature_sums(born.long(), idx, d_sae),
        "deaths": open_before + feature_sums(fresh.long(), idx, d_sae) - still,
        "gaps": feature_sums((gap > 0).long(), idx, d_sae),
        "gap_tokens": feature_sums(gap, idx, d_sae),
        "age_sum": feature_sums(age, idx, d_sae),
    }
    oldest = still.new_zeros(d_sae).scatter_reduce(0, idx.flatten(), age.flatten(), "amax")
    return counts, oldest, (new_last, new_begun, new_length)


class _Keep(Function):
    @staticmethod
    def forward(ctx, pre, idx, x, W_enc, b_enc):
        vals = pre.to(x.dtype).relu()
        ctx.save_for_backward(vals > 0, idx, x, W_enc)
        ctx.d_sae = len(b_enc)
        return vals

    @staticmethod
    @_once
    def backward(ctx, *grads):
        on, idx, x, W_enc = ctx.saved_tensors
        d_vals = grads[0] * on
        d_x = decode_codes(d_vals, idx, W_enc.t()) if ctx.needs_input_grad[2] else None
        d_W = codes_t_product(d_vals, idx, x, ctx.d_sae).t() if ctx.needs_input_grad[3] else None
        d_b = feature_sums(d_vals, idx, ctx.d_sae) if ctx.needs_input_grad[4] else None
        return None, None, d_x, d_W, d_b


def kept_values(
    pre: Float[Tensor, "tokens k"], idx: Int[Tensor, "tokens k"],
    x: Float[Tensor, "tokens d_in"], W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
) -> Float[Tensor, "tokens k"]:  # fmt: skip
    """`relu(pre)`, where `pre` is `x W_enc + b_enc` at `idx`: the gradient goes to the latter."""
    if plain():
        return pre.to(x.dtype).relu()
    return _Keep.apply(pre.detach(), idx, x, W_enc, b_enc)  # type: ignore[no-any-return]


class _Decode(Function):
    @staticmethod
    def forward(ctx, vals, idx, W_dec):
        ctx.save_for_backward(vals, idx, W_dec)
        return F.embedding_bag(
            idx.contiguous(), W_dec, per_sample_weights=vals.contiguous(), mode="sum"
        )

    @staticmethod
    @_once
    def backward(ctx, *grads):
        vals, idx, W_dec = ctx.saved_tensors
        grad = grads[0].contiguous()
        d_vals = gather_dot(grad, W_dec, idx) if ctx.needs_input_grad[0] else None
        d_W = codes_t_product(vals, idx, grad, len(W_dec)) if ctx.needs_input_grad[2] else None
        return d_vals, None, d_W


@exact
def decode_codes(
    vals: Float[Tensor, "tokens k"], idx: Int[Tensor, "tokens k"],
    W_dec: Float[Tensor, "d_sae d_in"],
) -> Float[Tensor, "tokens d_in"]:  # fmt: skip
    """`sum_j vals_j W_dec[idx_j]`: `k` rows per token, not `d_sae`, forward and backward."""
    if plain():
        return scatter_codes(vals, idx, len(W_dec)) @ W_dec
    return _Decode.apply(vals, idx, W_dec)  # type: ignore[no-any-return]


class _Gate(Function):
    @staticmethod
    def forward(ctx, h, W_gate, b_gate, idx, inward):
        z = gather_dot(h, W_gate, idx) + b_gate[idx]
        ctx.save_for_backward(h, W_gate, idx, z)
        ctx.inward = inward
        return z.clamp(0.0, 1.0)

    @staticmethod
    @_once
    def backward(ctx, *grads):
        h, W_gate, idx, z = ctx.saved_tensors
        passes = (z >= 0) & (z <= 1)
        if ctx.inward:  # a saturated gate gets the gradient that brings it back
            passes |= torch.where(z < 0, grads[0] < 0, grads[0] > 0)
        grad = grads[0] * passes
        d_h = F.embedding_bag(
            idx.contiguous(), W_gate, per_sample_weights=grad.contiguous(), mode="sum"
        )
        d_W = codes_t_product(grad, idx, h, len(W_gate))
        return d_h, d_W, feature_sums(grad, idx, len(W_gate)), None, None


@exact
def gate_values(
    h: Float[Tensor, "tokens hidden"], W_gate: Float[Tensor, "d_sae hidden"],
    b_gate: Float[Tensor, " d_sae"], idx: Int[Tensor, "tokens k"], *, inward: bool = False,
) -> Float[Tensor, "tokens k"]:  # fmt: skip
    """`clip(W_gate h + b_gate, 0, 1)` at `idx`: exact zeros, exact ones.

    With `inward` the gradient passes outside (0, 1) too, where a step along it leads back inside,
    so that a gate that is once open does not stay so; not under `torch.func`.
    """
    if plain() and not inward:
        return (h @ W_gate.t() + b_gate).gather(1, idx).clamp(0.0, 1.0)
    return _Gate.apply(h.contiguous(), W_gate, b_gate, idx, inward)  # type: ignore[no-any-return]


class _Product(Function):
    @staticmethod
    def forward(ctx, x, W, low):
        ctx.save_for_backward(x, W)
        ctx.low = low
        return (x.to(low) @ W.to(low)).to(x.dtype)

    @staticmethod
    @_once
    def backward(ctx, *grads):
        x, W = ctx.saved_tensors
        grad = grads[0].to(ctx.low)
        d_x = (grad @ W.to(ctx.low).t()).to(x.dtype) if ctx.needs_input_grad[0] else None
        d_W = (x.to(ctx.low).t() @ grad).to(W.dtype) if ctx.needs_input_grad[1] else None
        return d_x, d_W, None


@exact
def product(
    x: Float[Tensor, "tokens d_a"], W: Float[Tensor, "d_a d_b"], low: torch.dtype = torch.float32
) -> Float[Tensor, "tokens d_b"]:
    """`x W`, and its gradients, with the products in `low`."""
    low = product_dtype(W, low)
    if plain():
        return (x.to(low) @ W.to(low)).to(x.dtype)
    return _Product.apply(x, W, low)  # type: ignore[no-any-return]


def init_lstm(name: str, like: Tensor, hidden: int, generator: Generator) -> dict[str, Tensor]:
    """Weights of an LSTM that reads as many inputs as `like` has rows; in its dtype.

    Uniform in +-1 / sqrt(fan in); forget gates open (Jozefowicz et al. 2015).
    """
    W_x, W_h = (
        (torch.rand(fan, 4 * hidden, generator=generator) * 2 - 1) / math.sqrt(fan)
        for fan in (len(like), hidden)
    )
    b = torch.cat([torch.zeros(2 * hidden), torch.ones(hidden), torch.zeros(hidden)])
    return {f"{name}_W_x": W_x.to(like), f"{name}_W_h": W_h.to(like), f"{name}_b": b.to(like)}


class _Lstm(Function):
    """One Python loop per direction; products that need no recurrence are taken once for all steps,
    and views made before it: at 16 streams a view costs as much as its arithmetic.
    """

    @staticmethod
    def forward(ctx, x, h, c, W_x, W_h, b, low, keep):
        seq, batch, _ = x.shape
        hidden = len(W_h)
        x_low, W_x_low, W_h_low = x.to(low), W_x.to(low), W_h.to(low)
        gates = (x_low.flatten(0, 1) @ W_x_low).view(seq, batch, 4 * hidden).to(b.dtype).add_(b)
        hs, cs = x.new_empty(seq + 1, batch, hidden), x.new_empty(seq + 1, batch, hidden)
        tanh_c = x.new_empty(seq, batch, hidden)
        hs[0], cs[0] = h, c
        soft, hard = gates[..., : 3 * hidden].unbind(), gates[..., 3 * hidden :].unbind()
        o, i, f, g = (gate.unbind() for gate in gates.split(hidden, 2))
        z, h_t, c_t, tanh_t = gates.unbind(), hs.unbind(), cs.unbind(), tanh_c.unbind()
        for t in range(seq):
            h, c = (h_t[t], c_t[t]) if keep is None else (h_t[t] * keep[t], c_t[t] * keep[t])
            z[t].add_(h.to(low) @ W_h_low)
            soft[t].sigmoid_()
            hard[t].tanh_()
            torch.mul(f[t], c, out=c_t[t + 1])
            c_t[t + 1].addcmul_(i[t], g[t])
            torch.tanh(c_t[t + 1], out=tanh_t[t])
            torch.mul(o[t], tanh_t[t], out=h_t[t + 1])
        ctx.save_for_backward(x_low, W_x_low, W_h_low, gates, hs, cs, tanh_c, keep)
        return hs[1:], hs[seq].clone(), cs[seq].clone()

    @staticmethod
    @_once
    def backward(ctx, *grads):
        x, W_x, W_h, gates, hs, cs, tanh_c, keep = ctx.saved_tensors
        low, hidden, (o, i, f, g) = x.dtype, len(W_h), gates.split(len(W_h), 2)
        h_before, c_before = hs[:-1], cs[:-1]
        if keep is not None:
            h_before, c_before = h_before * keep, c_before * keep
        # d gates / d c, of input, forget and candidate; o acts on h alone
        by_c = torch.stack([g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g)], 2).unbind()
        by_h, c_by_h = (tanh_c * o * (1 - o)).unbind(), (o * (1 - tanh_c * tanh_c)).unbind()
        d_gates, (d_h, d_c) = torch.empty_like(gates), (grads[1].clone(), grads[2].clone())
        d, d_o = d_gates.unbind(), d_gates[..., :hidden].unbind()
        d_rest = d_gates[..., hidden:].unflatten(2, (3, hidden)).unbind()
        up, f = grads[0].unbind(), f.unbind()
        for t in range(len(gates) - 1, -1, -1):
            d_h = d_h + up[t]
            d_c.addcmul_(d_h, c_by_h[t])
            torch.mul(d_h, by_h[t], out=d_o[t])
            torch.mul(d_c[:, None], by_c[t], out=d_rest[t])
            d_c *= f[t]
            d_h = d[t].to(low) @ W_h.t()
            if keep is not None:
                d_h, d_c = d_h * keep[t].to(low), d_c * keep[t]
        flat = d_gates.flatten(0, 1).to(low)
        d_x = (flat @ W_x.t()).to(hs.dtype).view(x.shape) if ctx.needs_input_grad[0] else None
        d_W_x = (x.flatten(0, 1).t() @ flat).to(hs.dtype)
        d_W_h = (h_before.flatten(0, 1).to(low).t() @ flat).to(hs.dtype)
        return d_x, d_h.to(hs.dtype), d_c, d_W_x, d_W_h, d_gates.sum((0, 1)), None, None


def _plain_lstm(x, h, c, W_x, W_h, b, low, keep):
    """`_Lstm.apply` in plain operations; `x` is (seq batch d_in)."""
    gates, hs = product(x.flatten(0, 1), W_x, low).view(*x.shape[:2], len(b)) + b, []
    for t, z in enumerate(gates.unbind()):
        h, c = (h, c) if keep is None else (h * keep[t], c * keep[t])
        o, i, f, g = (z + product(h, W_h, low)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        hs.append(h)
    return torch.stack(hs) if hs else x.new_empty(0, *h.shape), h, c


@exact
def lstm(
    x: Float[Tensor, "batch seq d_in"], h: Float[Tensor, "batch hidden"],
    c: Float[Tensor, "batch hidden"], W_x: Float[Tensor, "d_in gates"],
    W_h: Float[Tensor, "hidden gates"], b: Float[Tensor, " gates"],
    low: torch.dtype = torch.float32, starts: Bool[Tensor, "batch seq"] | None = None,
) -> Hidden:  # fmt: skip
    """Hidden states of all steps, then the last `h` and `c` (Hochreiter & Schmidhuber 1997).

    `gates = 4 * hidden`: output, input, forget, candidate. `torch.nn.LSTM`, rows so ordered. At
    `starts` a stream begins anew: `h` and `c` before them are 0. Products are in `low` on a CPU;
    elsewhere it is `fused_lstm`, and nothing waits for the device where `starts` lie on the CPU.
    """
    if x.device.type != "cpu" and x.shape[1] and not plain():
        return fused_lstm(x, h, c, W_x, W_h, b, starts)
    keep = None if starts is None else (~starts).t()[..., None].to(h)
    run: Callable[..., Any] = _plain_lstm if plain() else _Lstm.apply
    steps, low = x.transpose(0, 1).contiguous(), product_dtype(W_x, low)
    hs, h_last, c_last = run(steps, h, c, W_x, W_h, b, low, keep)
    return hs.transpose(0, 1), h_last, c_last


def fused_lstm(
    x: Float[Tensor, "batch seq d_in"], h: Float[Tensor, "batch hidden"],
    c: Float[Tensor, "batch hidden"], W_x: Float[Tensor, "d_in gates"],
    W_h: Float[Tensor, "hidden gates"], b: Float[Tensor, " gates"],
    starts: Bool[Tensor, "batch seq"] | None = None,
) -> Hidden:  # fmt: skip
    """As `lstm`, by `torch.lstm` in the dtype of the tensors: on CUDA cuDNN's, all steps at once.

    Documents between `starts` are packed sequences of their own; seq >= 1. On a CPU slower than
    `lstm` (64 x 63 tokens, 576 to 256 units, both ways, one thread, float32: 242 ms and 222).
    """
    batch, seq, hidden = *x.shape[:2], len(W_h)
    # torch's order is input, forget, candidate, output; one buffer, as cuDNN wants its weights
    parts = [W.roll(-hidden, -1).t() for W in (W_x, W_h, b, torch.zeros_like(b))]
    flat = torch.cat([W.flatten() for W in parts]).split([W.numel() for W in parts])
    shared = [w.view_as(W) for w, W in zip(flat, parts, strict=True)], True, 1, 0.0, True, False
    if starts is None:
        hs, h_n, c_n = torch.lstm(x.transpose(0, 1), (h[None], c[None]), *shared, False)
        return hs.transpose(0, 1), h_n[0], c_n[0]
    sizes, *places = segments(starts.cpu())
    order, back, row, carries, last = (t.to(x.device, non_blocking=True) for t in places)
    before = tuple((t[row] * carries[:, None])[None] for t in (h, c))
    hs, h_n, c_n = torch.lstm(x.flatten(0, 1)[order], sizes, before, *shared)
    return hs[back].view(batch, seq, hidden), h_n[0][last], c_n[0][last]


def segments(starts: Bool[Tensor, "batch seq"]) -> tuple[Tensor, ...]:
    """Stretches of rows between `starts` as packed sequences (`torch.nn.utils.rnn`), longest first.

    Sequences per step; the token at each packed place; the packed place of each token; per sequence
    its row and whether it goes on with what came before its row; the last sequence of each row.
    """
    seq, first = starts.shape[1], starts.clone()
    first[:, 0] = True
    begin = first.flatten().nonzero()[:, 0]
    length = begin.diff(append=begin.new_tensor([starts.numel()]))
    length, longest_first = length.sort(descending=True, stable=True)
    begin = begin[longest_first]
    step = torch.arange(int(length[0]))[:, None]
    order = (begin + step)[step < length]
    row, ends = begin // seq, (begin + length) % seq == 0
    last = ends.nonzero()[:, 0][row[ends].argsort()]
    return (step < length).sum(1), order, order.argsort(), row, ~starts.flatten()[begin], last
