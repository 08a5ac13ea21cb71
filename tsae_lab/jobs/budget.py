"""How much memory a step of training needs, and what to lower where it is too much."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import tsae
from tsae_lab.jobs import training
from tsae_lab.jobs.plan import Config
from tsae_lab.jobs.training import Recipe

GB = 1e9
ADAM = 3  # numbers per weight beside its gradient: itself and two moments, of 4 bytes each


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors on the `meta` device: those alive, and the most at a time."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """What is `known` is not counted, nor are views of it."""
        super().__init__()
        self.alive: dict[Any, int] = {weakref.ref(t.untyped_storage()): 0 for t in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in _pytree.tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                storage = tensor.untyped_storage()
                if weakref.ref(storage) not in self.alive:
                    self.alive[weakref.ref(storage, self.gone)] = storage.nbytes()
                    self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        return out

    def gone(self, storage: Any) -> None:
        """What a storage took is free."""
        self.now -= self.alive.pop(storage)


def _on_meta(recipe: Recipe, d_in: int) -> dict[str, Tensor]:
    """The tensors of a TSAE without values."""
    d_sae, units, own = recipe.d_sae, recipe.hidden_enc, recipe.hidden_dec
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    shapes |= {"enc_W_x": (d_in, 4 * units), "enc_W_h": (units, 4 * units), "enc_b": (4 * units,)}
    shapes |= {"dec_W_x": (d_in, 4 * own), "dec_W_h": (own, 4 * own), "dec_b": (4 * own,)}
    shapes |= {"W_gate": (d_sae, units), "b_gate": (d_sae,), "bridge": (d_sae,)}
    shapes |= {"W_out": (own, d_in), "scale": ()}
    named = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return training.start_trainer(named, recipe).named


def step_gb(recipe: Recipe, d_in: int, batch: int, seq: int, low: torch.dtype) -> float:
    """GB of weights, gradients, Adam's moments and what a TSAE's step holds beside them.

    Of `batch` sequences of `seq` tokens, without dead features: the step's own operations on
    tensors without values. What a device's library takes for itself is not counted.
    """
    named = _on_meta(recipe, d_in)
    leaves = {n: tensor.requires_grad_(n != "scale") for n, tensor in named.items()}
    x = torch.empty(batch, seq, d_in, device="meta")
    dials, weight = training.final_dials(recipe, low), x.new_empty(batch, seq)
    with LiveBytes([*leaves.values(), x, weight]) as live:
        params = tsae.params_from(leaves)
        loss, _x_hat, *_ = training.tsae_loss(params, x, weight, dials, recipe.coupling)
        loss.backward()
        with torch.no_grad():
            training.tangent(params.static.W_dec, params.static.W_dec)
    n_weights = sum(tensor.numel() for tensor in named.values())
    return (4 * (ADAM * n_weights + x.numel()) + live.peak) / GB


def advice(config: Config, d_in: int, low: torch.dtype) -> str:
    """What a step needs, and what it would with half of the batch, d_sae or sequence length.

    The one that saves the most comes first.
    """

    def needed(tried: Config) -> float:
        return step_gb(tried, d_in, tried.batch, -(-tried.seq // tried.pieces), low)

    halves = {name: max(getattr(config, name) // 2, 1) for name in ("batch", "d_sae", "seq")}
    tried = {name: needed(replace(config, **{name: half})) for name, half in halves.items()}
    ways = [
        f"--{n}={halves[n]} ({gb:.2g} GB)" for n, gb in sorted(tried.items(), key=itemgetter(1))
    ]
    return f"a step needs about {needed(config):.2g} GB; lower one of {', '.join(ways)}"


@contextmanager
def fitting(config: Config, d_in: int, low: torch.dtype) -> Iterator[None]:
    """Within, memory that is not there is a ValueError that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = " ".join(str(error).split(". ")[:2]).strip(" .")
        raise ValueError(f"{said}: {advice(config, d_in, low)}") from error
