"""Features for probes: a language model's residual stream, and codes of it, at one word of a text.

A reader takes activations (batch, seq, d_in) of whole texts and gives the features of their *last*
token. The memory and the LSTM states of a TSAE have then seen the text from its first token on.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import tsae
from probes import EMBEDDING, Features, Item, Task, chosen, task_rows
from tsae_lab.data import language_model
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.rivals.system import Run

Reader = Callable[[Tensor], Features]


# ------------------------------------------------------------------------------------------ readers


def residual_reader() -> Reader:
    """The activation itself: the ceiling for a code of one token."""
    return lambda x: x[:, -1].cpu().numpy()


def code_reader(sae: tsae.Sae) -> Reader:
    """The code of an SAE that has read the text from an empty state."""
    return lambda x: _last(tsae.encode(sae.params, x, sae.dials)[0], sae.d_sae)


def run_reader(run: Run, d_sae: int) -> Reader:
    """The code of anything that reconstructs."""
    return lambda x: _last(run(x)[1], d_sae)


def memory_reader(static: tsae.Static, dials: tsae.Dials) -> Reader:
    """The memory's reading `m_t` (d_sae wide): a weighted mean of static codes *before* the word.

    `tau = inf` gives the plain mean of the last `window` codes.
    """
    window, d_sae = dials.window, len(static.b_enc)
    weights = tsae.read_weights(window, dials.tau)

    def reader(x: Tensor) -> Features:
        codes = tsae.encode_static(x[:, -window - 1 :], static, dials.k, dials.low)
        memory = tsae.empty_memory(len(x), window, dials.k, codes.vals)
        m = tsae.remember(memory, codes, weights.to(x.device), d_sae)
        return sparse.csr_array(m[:, -1].cpu().numpy())

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


# ----------------------------------------------------------------------------------------- read-out


@dataclass(frozen=True, eq=False, kw_only=True)
class Texts:
    """Activations of whole texts in batches of one length, and embeddings of their last tokens."""

    x: tuple[Tensor, ...]  # each (batch, seq, d_in), without the prefix
    rows: tuple[int, ...]  # for each text, in the order of the batches, its place in the input
    embedding: np.ndarray  # (texts, d_in), in the order of the batches


Reading = tuple[Texts, Texts | None]  # the items' texts, and their second ones


@torch.inference_mode()
def read(lm: LanguageModel, hook: str, items: Sequence[Item]) -> Reading:
    """Activations of all items' texts up to their read-out word: once, for any number of readers.

    What comes after the word changes nothing. Texts of equal length go through together, so there
    is no padding. Raises ValueError where there is no item, or one is too long for the model.
    """
    if not items:
        raise ValueError("reading needs at least one item; got none")
    others = [item.other for item in items if item.other is not None]
    if 0 < len(others) < len(items):
        raise ValueError(
            f"{len(others)} of {len(items)} items have a second text; all need one, or none"
        )
    first = _read(lm, hook, [item.text[: item.end] for item in items])
    return first, _read(lm, hook, [text[:end] for text, _, end in others]) if others else None


@torch.inference_mode()
def features(reading: Reading, readers: Mapping[str, Reader]) -> dict[str, Features]:
    """Features of all items, in order, by every reader; "embedding": layer 0 of the model.

    They are those of the last token of the read-out word, for items of two texts the absolute
    difference of both. Raises ValueError for a reader with the name of layer 0.
    """
    if EMBEDDING in readers:
        raise ValueError(f"readers: {EMBEDDING!r} is the name of layer 0")
    first, second = (None if texts is None else _read_all(texts, readers) for texts in reading)
    assert first is not None
    return first if second is None else {name: abs(first[name] - second[name]) for name in first}


def _read(lm: LanguageModel, hook: str, texts: Sequence[str]) -> Texts:
    ids = _prefixed_ids(lm, texts)
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    n_prefix, embed = len(lm.prefix), lm.model.get_input_embeddings()
    x, embedding = [], []
    for length, group in groupby(order, key=lambda i: len(ids[i])):
        rows = list(group)
        size = language_model.rows_at_once(length)
        for start in range(0, len(rows), size):
            batch = torch.tensor([ids[i] for i in rows[start : start + size]])
            x.append(language_model.residual(lm, batch, hook)[:, n_prefix:].clone())
            embedding.append(embed(batch[:, -1].to(lm.device)).float().cpu().numpy())
    return Texts(x=tuple(x), rows=tuple(order), embedding=np.concatenate(embedding))


def _read_all(texts: Texts, readers: Mapping[str, Reader]) -> dict[str, Features]:
    back = np.argsort(texts.rows)
    out: dict[str, Features] = {EMBEDDING: texts.embedding[back]}
    for name, reader in readers.items():
        out[name] = _stacked([reader(x.float()) for x in texts.x])[back]
    return out


def _prefixed_ids(lm: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the prefix and each text."""
    all_ids = [language_model.token_ids(lm, text) for text in texts]
    most = lm.max_seq - len(lm.prefix)
    for text, ids in zip(texts, all_ids, strict=True):
        if not 0 < len(ids) <= most:
            raise ValueError(
                f"{lm.name} reads 1 to {most} tokens of text; an item has {len(ids)}: {text[:60]!r}"
            )
    return [[*lm.prefix, *ids] for ids in all_ids]


def _stacked(batches: Sequence[Features]) -> Features:
    dense = [batch for batch in batches if isinstance(batch, np.ndarray)]
    return np.concatenate(dense) if dense else sparse.csr_array(sparse.vstack(batches))


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
        plain = replace(dials, tau=math.inf)
        memory, window = (memory_reader(params.static, d) for d in (dials, plain))
        out |= {"memory": memory, "tsae+memory": joined(code, memory)}
        out |= {"window": window, "tsae+window": joined(code, window)}
        out["state"] = state_reader(params, dials)
        out["static window"] = memory_reader(static.params.static, plain)
    return out


def read_tasks(lm: LanguageModel, hook: str, tasks: Sequence[Task]) -> dict[str, Reading]:
    """Activations of every task's items, by the task's name: read once, for any number of codes."""
    return {task.name: read(lm, hook, task.items) for task in tasks}


def probe_rows(
    tasks: Sequence[Task],
    reads: Mapping[str, Reading],
    readers: Mapping[str, Reader],
    *,
    ks: Sequence[int],
    seed: int = 0,
    embedding: bool = True,
    progress: Callable[[], None] = lambda: None,
    each: Callable[[Task, Mapping[str, Features]], None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """`task_rows` of all tasks for every code of `readers` and, if `embedding`, for layer 0.

    `each` is called with every task and its codes.
    """
    rows = []
    for task in tasks:
        codes = features(reads[task.name], readers)
        if not embedding:
            del codes[EMBEDDING]
        each(task, codes)
        rows += task_rows(task, codes, ks=ks, seed=seed, progress=progress)
    return rows


def weight_rows(task: Task, codes: Mapping[str, Features], *, k: int) -> list[dict[str, Any]]:
    """One row per code, unit and feature of a k-sparse probe on all items of a task: its weight.

    Features as in `probes.chosen`, divided by their root mean square; logistic regression with an
    L2 penalty, C = 1. Above 0 speaks for label 1. The accuracies are of other probes, which are
    tested on groups that they did not see.
    """
    rows, units = [], np.array([item.unit for item in task.items])
    every = np.array([item.label for item in task.items])
    for (model, code), unit in itertools.product(codes.items(), dict.fromkeys(units.tolist())):
        inputs: Any = code
        inputs, labels = inputs[np.flatnonzero(units == unit)], every[units == unit]
        columns = list(chosen(inputs, labels, k))
        picked = inputs[:, columns]
        values = picked if isinstance(picked, np.ndarray) else picked.toarray()
        scale = np.sqrt((values**2).mean(0)).clip(min=1e-6)
        weights = LogisticRegression(max_iter=1_000).fit(values / scale, labels).coef_[0]
        rows += [
            {"task": task.name, "unit": unit, "model": model, "feature": f, "weight": float(w)}
            for f, w in zip(columns, weights, strict=True)
        ]
    return rows
