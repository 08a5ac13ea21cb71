"""Where a language model is read and changed, by TransformerLens' names.

`blocks.L.hook_resid_post` (or `hook_out`) is the residual stream after layer L, `hook_resid_pre`
the one before it, `hook_resid_mid` the one between attention and MLP; `hook_attn_out` and
`hook_mlp_out` are what these two add to it.
"""

import contextlib
import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

KINDS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "out")
ATTENTION = ("self_attn", "attn", "attention", "self_attention")  # names of a layer's modules
FEED_FORWARD = ("mlp", "feed_forward", "block_sparse_moe", "fc2")


@dataclass(frozen=True)
class Site:
    """A layer, and what of it: "resid_post", "resid_mid", "attn_out", "mlp_out"; "resid_pre" of
    layer 0 alone, since every other one is the "resid_post" of the layer before.
    """

    layer: int
    kind: str


def site_of(hook: str, n_layers: int, name: str) -> Site:
    """The place that a hook names in a model called `name`; ValueError says which hooks exist."""
    match = re.fullmatch(rf"blocks\.(\d+)\.hook_({'|'.join(KINDS)})", hook)
    if match is None or int(match[1]) >= n_layers:
        every = [f"blocks.{layer}.hook_{kind}" for layer in range(n_layers) for kind in KINDS]
        near = difflib.get_close_matches(hook, every, n=1)
        there = f"{name} has blocks.0.hook_resid_post to blocks.{n_layers - 1}.hook_resid_post"
        others = ", ".join(f"hook_{kind}" for kind in KINDS if kind != "resid_post")
        nearest = f"; the nearest name is {near[0]}" if near else ""
        raise ValueError(f"unknown hook {hook!r}: {there}, and {others} of the same{nearest}")
    layer, kind = int(match[1]), match[2]
    if kind == "resid_pre" and layer > 0:
        layer, kind = layer - 1, "resid_post"
    return Site(layer, "resid_post" if kind == "out" else kind)


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The model's transformer layers: the outermost list of as many modules as it has layers."""
    config: Any = model.config
    n_layers = config.get_text_config().num_hidden_layers
    lists = (
        (name.count("."), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    )
    depth_and_layers = min(lists, key=lambda pair: pair[0], default=None)
    if depth_and_layers is None:
        raise ValueError(f"{type(model).__name__} has no list of its {n_layers} layers")
    return depth_and_layers[1]


@contextlib.contextmanager
def changed(model: nn.Module, site: Site, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, every pass of the model goes on with `change(x)` where it has x at that place."""
    layer = layers_of(model)[site.layer]
    entered: list[Tensor] = []

    def enter(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        entered[:] = [x]
        if site.kind != "resid_pre":
            return None
        x = change(x)
        return ((x, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": x})

    def after(_module: Any, _args: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        before = entered[0] if site.kind == "resid_mid" else 0
        x = change(x + before) - before
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handles = [layer.register_forward_pre_hook(enter, with_kwargs=True)]
    if site.kind != "resid_pre":
        handles.append(_module_at(layer, site.kind).register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _module_at(layer: nn.Module, kind: str) -> nn.Module:
    """The module of a layer whose output is added to the stream; the layer for "resid_post"."""
    if kind == "resid_post":
        return layer
    modules, mlp = dict(layer.named_children()), kind == "mlp_out"
    names = FEED_FORWARD if mlp else ATTENTION
    if "post_feedforward_layernorm" in modules:  # a norm after either, as in Gemma 2 and OLMo 2
        names = ("post_feedforward_layernorm" if mlp else "post_attention_layernorm",)
    for name in names:
        if name in modules:
            return modules[name]
    there = f"its layers have {', '.join(modules)}"
    raise ValueError(f"hook_{kind} needs one of {', '.join(names)} in a layer; {there}")


@torch.inference_mode()
def check_site(model: nn.Module, site: Site, ids: Tensor) -> None:
    """ValueError where the layer adds something else to the stream than attention and MLP, or has
    no stream between the two; tried on `ids` (batch seq).
    """
    if site.kind not in ("resid_mid", "attn_out", "mlp_out"):
        return
    seen: dict[str, Tensor] = {}

    def note(name: str, scale: float = 1.0) -> Callable[[Tensor], Tensor]:
        return lambda x: (seen.setdefault(name, x.float()), scale * x)[1]

    def run(suffix: str, scale: float) -> None:
        with contextlib.ExitStack() as stack:
            for kind in ("mlp_out", "resid_post"):
                stack.enter_context(changed(model, Site(site.layer, kind), note(kind + suffix)))
            attention = Site(site.layer, "attn_out")
            stack.enter_context(changed(model, attention, note("attn_out" + suffix, scale)))
            stack.enter_context(changed(model, Site(site.layer, "resid_mid"), note("mid")))
            model(input_ids=ids, use_cache=False)

    run("", 1.0)
    run(" twice", 2.0)
    rest = seen["resid_post"] - seen["mid"] - seen["mlp_out"]
    if rest.norm() > 0.02 * seen["resid_post"].norm():
        what = "is not the stream before it plus what attention and MLP give"
        raise ValueError(f"hook_{site.kind} cannot be placed: layer {site.layer} {what}")
    if site.kind == "resid_mid" and torch.equal(seen["mlp_out"], seen["mlp_out twice"]):
        what = "attention and MLP read the same stream, there is none between them"
        raise ValueError(f"hook_resid_mid cannot be placed: {what}")
