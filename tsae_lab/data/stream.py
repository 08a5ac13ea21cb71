"""Activations that the language model computes when they are read: nothing is stored.

A stream gives what the store of the same tokens would give, to the bit, wherever the language
model's arithmetic does not depend on which sequences it reads together.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from tsae_lab import files
from tsae_lab.data import store
from tsae_lab.data.language_model import LanguageModel, check_hook
from tsae_lab.data.store import SINK_NORM, Deal, Store, block_of, store_place, without
from tsae_lab.data.texts import Tokens
from tsae_lab.terminal import console

ACTIVATIONS = ("store", "stream", "auto")
SHARE_OF_FREE = 0.5  # of the free disk that `auto` lets a store take

Picked = slice | Sequence[int] | Int[np.ndarray, " rows"] | Int[Tensor, " rows"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Stream:
    """Activations of `tokens` at `hook`, computed anew at each reading, in the store's dtype.

    Attention sinks are dropped where they are read: tokens of a norm above `most` (infinity keeps
    them all); what follows moves to the left, as in the store. `tokens` still have them.
    """

    lm: LanguageModel
    hook: str
    tokens: Tokens
    most: float

    @property
    def d_in(self) -> int:
        return self.lm.d_in

    def __len__(self) -> int:
        return len(self.tokens.ids)

    def sequences(
        self, rows: Picked
    ) -> tuple[Float[Tensor, "rows kept d_in"], Bool[Tensor, "rows kept"]]:
        """bf16 activations of whole sequences, zeros where the second says that no token is."""
        picked = torch.arange(len(self))[rows]
        data, valid = self.raw(picked), self.tokens.valid[picked]
        x = torch.from_numpy(data).view(torch.bfloat16)
        read = valid & (x.float().norm(dim=-1) <= self.most)
        return compacted(x, read) if not torch.equal(read, valid) else (x, valid)

    def raw(self, picked: Int[Tensor, " rows"]) -> np.ndarray:
        """The sequences with their attention sinks, as the store has them on disk: bf16 bits."""
        tokens = Tokens(**{name: value[picked] for name, value in vars(self.tokens).items()})
        store.forget_tokens(self.tokens)
        return block_of(self.lm, tokens, self.hook, slice(0, len(picked)))


def compacted(
    x: Shaped[Tensor, "rows kept d_in"], read: Bool[Tensor, "rows kept"]
) -> tuple[Shaped[Tensor, "rows kept d_in"], Bool[Tensor, "rows kept"]]:
    """The tokens that are `read`, moved to the left in their order; zeros behind them."""
    place = (~read).to(torch.uint8).argsort(dim=1, stable=True)
    valid = read.gather(1, place)
    return x.gather(1, place[..., None].expand_as(x)) * valid[..., None], valid


def held(source: Store | Stream, rows: Int[np.ndarray, " rows"]) -> tuple[Store, np.ndarray]:
    """A store that has these sequences, and where they lie in it; of a stream one in memory."""
    if isinstance(source, Store):
        return source, rows
    picked = torch.from_numpy(rows)
    tokens = Tokens(**{name: value[picked] for name, value in vars(source.tokens).items()})
    data = source.raw(picked)
    norms = torch.from_numpy(data).view(torch.bfloat16).float().norm(dim=-1)
    own = without(Path("memory"), source.hook, tokens, data, norms > source.most)
    return own, np.arange(len(own))


def sink_norm(beside: Store) -> float:
    """The norm above which a token is an attention sink, by the median of a store of its text."""
    valid = beside.text.valid
    rows = np.arange(len(beside)) if beside.source is None else beside.source[0]
    norms = torch.zeros(valid.shape)
    for start in range(0, len(rows), store.NORM_ROWS):
        batch = rows[start : start + store.NORM_ROWS]
        x = torch.from_numpy(np.array(beside.data[batch])).view(torch.bfloat16)
        norms[start : start + len(batch)] = x.float().norm(dim=-1)
    return SINK_NORM * float(norms[valid].median())


def activations_of(
    lm: LanguageModel, tokens: Tokens, *, kind: str, name: str, hook: str, sinks: str,
    cache_dir: Path | None, beside: Store, verify: bool = False, deal: Deal | None = None,
) -> Store | Stream:  # fmt: skip
    """The store of `tokens`, or a stream of them: `kind` says which, "auto" leaves it to the disk.

    `beside` is a store of the same text; its median norm says what the stream takes for an
    attention sink.
    """
    if kind == "auto":
        kind = chosen_kind(lm, tokens, name=name, hook=hook, cache_dir=cache_dir)
    if kind == "stream":
        check_hook(lm, hook)
        most = math.inf if sinks == "keep" else sink_norm(beside)
        return Stream(lm=lm, hook=hook, tokens=tokens, most=most)
    own = {"hook": hook, "sinks": sinks, "cache_dir": cache_dir, "verify": verify}
    return store.activation_store(lm, tokens, deal=deal, **own)


def chosen_kind(
    lm: LanguageModel, tokens: Tokens, *, name: str, hook: str, cache_dir: Path | None
) -> str:
    """"store" where the activations are stored or take half of the free disk at most, else
    "stream"; the reason is printed.
    """  # fmt: skip
    path, key = store_place(lm, tokens, hook, cache_dir)
    needed = 2 * math.prod(key["shape"])
    free = shutil.disk_usage(files.make_dir(path.parent)).free
    is_there = path.exists()
    kind = "store" if is_there or needed <= SHARE_OF_FREE * free else "stream"
    disk = f"{needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free in {path.parent}"
    said = {"store": "stored", "stream": "streamed"}[kind]
    reason = "they are there already" if is_there else f"they need {disk}"
    line = f"{name}, training: activations are {said}: {reason}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    return kind
