"""Codes at a word: what a language model's residual stream, and SAEs on it, hold when a probing
item is read out.

A reader takes activations (batch, seq, d_in) of whole texts and gives the features of their *last*
token; what a code carries from token to token (memory, LSTM state) has then seen the text from its
first token on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

import probes
import tsae
from probes import EMBEDDING, Features, Item, Task, task_rows
from tsae_lab.data import language_model
from tsae_lab.data.language_model import LanguageModel

Reader = Callable[[Tensor], Features]


# -------------------------------------------------------------------------------------------- readers


def residual_reader() -> Reader:
    """The activation itself: what a code can know at most, if the code looks at one token."""
    return lambda x: x[:, -1].cpu().numpy()


def code_reader(sae: tsae.Sae) -> Reader:
    """The code of an SAE that has read the text from an empty state."""
    return lambda x: _last(tsae.encode(sae.params, x, sae.dials)[0], sae.d_sae)


def memory_reader(
    static: tsae.Static, dials: tsae.Dials, window: int | None = None, tau: float | None = None
) -> Reader:
    """The memory's reading `m_t` (d_sae wide): a weighted mean of the static codes of the tokens
    *before* the word.

    `window` and `tau` (tokens) default to the dials'; `tau = inf` is the plain mean.
    """
    window, d_sae = window or dials.window, len(static.b_enc)
    weights = tsae.read_weights(window, dials.tau if tau is None else tau)

    def reader(x: Tensor) -> Features:
        codes = tsae.encode_static(x[:, -window - 1 :], static, dials.k, dials.low)
        memory = tsae.empty_memory(len(x), window, dials.k, codes.vals)
        return sparse.csr_array(
            tsae.remember(memory, codes, weights.to(x.device), d_sae)[:, -1].cpu().numpy()
        )

    return reader


def state_reader(params: tsae.Params, dials: tsae.Dials) -> Reader:
    """The hidden states of the encoder's and the decoder's LSTM after the word."""

    def reader(x: Tensor) -> Features:
        state = tsae.forward(params, x, dials)[2]
        return torch.cat([state.enc_h, state.dec_h], 1).cpu().numpy()

    return reader


def joined(*readers: Reader) -> Reader:
    """The features of all readers side by side."""
    return lambda x: sparse.csr_array(
        sparse.hstack([sparse.csr_array(reader(x)) for reader in readers])
    )


def _last(codes: tsae.Codes, d_sae: int) -> sparse.csr_array:
    vals, idx = codes.vals[:, -1].double().cpu().numpy(), codes.idx[:, -1].cpu().numpy()
    indptr = np.arange(len(vals) + 1) * vals.shape[1]
    out = sparse.csr_array((vals.ravel(), idx.ravel(), indptr), shape=(len(vals), d_sae))
    out.eliminate_zeros()
    return out


# ------------------------------------------------------------------------------------------ read-out


@dataclass(frozen=True, eq=False, kw_only=True)
class Texts:
    """Activations of whole texts, in batches of one length, and the token embedding of each text's
    last token.
    """

    x: tuple[Tensor, ...]  # each (batch, seq, d_in), without the prefix
    rows: tuple[int, ...]  # of the texts in the order of the batches, where they stood
    embedding: np.ndarray  # (texts, d_in), in the order of the batches


Reading = tuple[Texts, Texts | None]  # the items' texts, and their second ones


@torch.inference_mode()
def read(
    lm: LanguageModel, hook: str, items: Sequence[Item], progress: Callable[[], None] = lambda: None
) -> Reading:
    """Activations of all items' texts up to their read-out word: once, for however many readers.

    What comes after the word changes nothing. Texts of equal length go through together, so there
    is no padding. Raises ValueError where there is no item, or one is too long for the model.
    """
    if not items:
        raise ValueError("read_out needs at least one item; got none")
    others = [item.other for item in items if item.other is not None]
    if 0 < len(others) < len(items):
        raise ValueError(
            f"{len(others)} of {len(items)} items have a second text; all need one, or none"
        )
    first = _read(lm, hook, [item.text[: item.end] for item in items], progress)
    return first, _read(
        lm, hook, [text[:end] for text, _, end in others], progress
    ) if others else None


@torch.inference_mode()
def features(reading: Reading, readers: Mapping[str, Reader]) -> dict[str, Features]:
    """Features of all items, in order, by every reader; "embedding": the token embedding, layer 0
    of the model.

    Read at the last token of the read-out word. For items about two texts the features are `|first
    - second|`.
    """
    if EMBEDDING in readers:
        raise ValueError(f"read_out: {EMBEDDING!r} is the name of layer 0")
    first, second = (None if texts is None else _features(texts, readers) for texts in reading)
    assert first is not None
    return first if second is None else {name: abs(first[name] - second[name]) for name in first}


def read_out(
    lm: LanguageModel,
    hook: str,
    items: Sequence[Item],
    readers: Mapping[str, Reader],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Features]:
    """`features` of `read`: both in one."""
    if EMBEDDING in readers:
        raise ValueError(f"read_out: {EMBEDDING!r} is the name of layer 0")
    return features(read(lm, hook, items, progress), readers)


def _read(
    lm: LanguageModel, hook: str, texts: Sequence[str], progress: Callable[[], None]
) -> Texts:
    ids = _prefixed_ids(lm, texts)
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    n_prefix, embed = len(lm.prefix), lm.model.get_input_embeddings()
    x, embedding = [], []
    for length, group in groupby(order, key=lambda i: len(ids[i])):
        rows = list(group)
        size = max(1, language_model.FORWARD_TOKENS // length)
        for at in range(0, len(rows), size):
            batch = torch.tensor([ids[i] for i in rows[at : at + size]])
            x.append(language_model.residual(lm, batch, hook)[:, n_prefix:].clone())
            embedding.append(embed(batch[:, -1].to(lm.device)).float().cpu().numpy())
            progress()
    return Texts(x=tuple(x), rows=tuple(order), embedding=np.concatenate(embedding))


def _features(texts: Texts, readers: Mapping[str, Reader]) -> dict[str, Features]:
    back = np.argsort(texts.rows)
    found = {
        name: _stacked([reader(x.float()) for x in texts.x])[back]
        for name, reader in readers.items()
    }
    return {EMBEDDING: texts.embedding[back], **found}


def _prefixed_ids(lm: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the prefix and each text."""
    found = lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    for text, ids in zip(texts, found, strict=True):
        if not 0 < len(ids) <= lm.max_seq - len(lm.prefix):
            most = lm.max_seq - len(lm.prefix)
            raise ValueError(
                f"{lm.name} reads 1 to {most} tokens of text; an item has {len(ids)}: {text[:60]!r}"
            )
    return [[*lm.prefix, *ids] for ids in found]


def _stacked(parts: Sequence[Features]) -> Features:
    dense = [part for part in parts if isinstance(part, np.ndarray)]
    return np.concatenate(dense) if dense else sparse.csr_array(sparse.vstack(parts))


def readers(
    static: tsae.Sae, ours: tsae.Sae | None, *, variants: bool = False
) -> dict[str, Reader]:
    """Readers "tsae" (if there is one), "static", "resid"; `variants`: what the TSAE carries, too.

    "memory" is the memory's reading, "window" its plain mean over all tokens that it holds,
    "tsae+memory" and "tsae+window" side by side, "state" the hidden states of the LSTMs, "static
    window" the plain mean of the static SAE's codes.
    """
    out: dict[str, Reader] = {"static": code_reader(static), "resid": residual_reader()}
    if ours is None:
        return out
    params, dials, code = ours.params, ours.dials, code_reader(ours)
    out = {"tsae": code, **out}
    if variants:
        memory = memory_reader(params.static, dials)
        window = memory_reader(params.static, dials, tau=math.inf)
        out |= {"memory": memory, "tsae+memory": joined(code, memory)}
        out |= {"window": window, "tsae+window": joined(code, window)}
        out |= {"state": state_reader(params, dials)}
        out |= {"static window": memory_reader(static.params.static, dials, tau=math.inf)}
    return out


def read_tasks(
    lm: LanguageModel, hook: str, given: Sequence[Task], progress: Callable[[], None] = lambda: None
) -> dict[str, Reading]:
    """Activations of every task's items, by task: what any number of codes on this hook are read
    from.
    """
    return {task.name: read(lm, hook, task.items, progress) for task in given}


def probe_rows(
    given: Sequence[Task],
    reads: Mapping[str, Reading],
    wanted: Mapping[str, Reader],
    *,
    ks: Sequence[int] = probes.KS,
    embedding: bool = True,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """`task_rows` of all tasks for every code of `wanted` (see `readers`) and, unless told
    otherwise, layer 0.
    """
    rows = []
    for task in given:
        found = features(reads[task.name], wanted)
        kept = {
            name: features for name, features in found.items() if embedding or name != EMBEDDING
        }
        rows += task_rows(task, kept, ks=ks, seed=seed, progress=progress)
    return rows
