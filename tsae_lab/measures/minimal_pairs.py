"""Accuracy of the language model on minimal pairs, with and without a reconstruction spliced in.

A pair is right when the good sentence is more probable than the bad one. By the rule "sentence" the
log-probabilities of all tokens are summed (BLiMP, Winogender); by the rule "word" only that of the
word that differs counts, given what is before it (LM_syneval), and pairs whose words are not one
token each are skipped and counted.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes import Pair
from tsae_lab.data.language_model import LanguageModel, token_ids
from tsae_lab.data.public_sets import Rule
from tsae_lab.data.splicing import splice

CALL_ROWS = 256  # sentences per call, of about one length


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores:
    """Which pairs each model gets right, "clean" among them, and the pairs that were skipped."""

    pairs: tuple[Pair, ...]
    right: dict[str, Bool[np.ndarray, " pairs"]]
    margin: dict[str, Float[np.ndarray, " pairs"]]  # log-probability of good minus bad, in nats
    skipped: dict[str, int]  # by reason


def score(
    lm: LanguageModel,
    hook: str,
    pairs: Sequence[Pair],
    models: Mapping[str, Callable[[Tensor], Tensor]],
    rule: Rule,
) -> Scores:
    """Every pair under the language model ("clean") and with each of `models` spliced in.

    `models` map the residual stream of the text (batch, seq, d_in) at the hook to what takes its
    place; the prefix keeps its own. The layers below the hook run once, those above once per model.
    A tie counts as wrong.
    """
    usable, skipped = _usable(lm, pairs, rule)
    rows = [row for pair in usable for row in _sentence_rows(lm, pair, rule)]
    nats = {name: np.zeros(len(rows)) for name in ("clean", *models)}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for start in range(0, len(order), CALL_ROWS):
        call = order[start : start + CALL_ROWS]
        ids, valid, counted = _padded(lm, [rows[i] for i in call])
        for name, spliced in splice(lm, ids, valid, hook, models).items():
            nats[name][call] = (spliced.nats.double() * counted).sum(1).numpy()
    margin = {name: values[1::2] - values[::2] for name, values in nats.items()}
    right = {name: values > 0 for name, values in margin.items()}
    return Scores(pairs=tuple(usable), right=right, margin=margin, skipped=skipped)


def _usable(
    lm: LanguageModel, pairs: Sequence[Pair], rule: Rule
) -> tuple[list[Pair], dict[str, int]]:
    """The pairs that can be scored, and the number of others by reason."""
    reasons = [_unusable(lm, pair, rule) for pair in pairs]
    usable = [pair for pair, reason in zip(pairs, reasons, strict=True) if not reason]
    return usable, dict(Counter(filter(None, reasons)))


def _unusable(lm: LanguageModel, pair: Pair, rule: Rule) -> str:
    """Why a pair cannot be scored; empty if it can."""
    if pair.good == pair.bad:
        return "good and bad are equal"
    sentences = (pair.sentence_good, pair.sentence_bad)
    if max(len(token_ids(lm, text)) for text in sentences) + len(lm.prefix) > lm.max_seq:
        return "too long for the model"
    if rule == "word":
        before = token_ids(lm, pair.prefix)
        for word in (pair.good, pair.bad):
            ids = token_ids(lm, pair.prefix + word)
            if ids[:-1] != before or len(ids) != len(before) + 1:
                return "a word is not one token"
    return ""


def _sentence_rows(lm: LanguageModel, pair: Pair, rule: Rule) -> list[tuple[list[int], int]]:
    """Token ids of both sentences, good first, and the first token that counts."""
    if rule == "sentence":
        return [(token_ids(lm, text), 0) for text in (pair.sentence_good, pair.sentence_bad)]
    first = len(token_ids(lm, pair.prefix))
    return [(token_ids(lm, pair.prefix + word), first) for word in (pair.good, pair.bad)]


def _padded(
    lm: LanguageModel, rows: Sequence[tuple[list[int], int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids with the prefix, which are text, and which of the text count."""
    longest = max(len(ids) for ids, _ in rows)
    filled = [[*lm.prefix, *ids, *[lm.bos_id] * (longest - len(ids))] for ids, _ in rows]
    place = torch.arange(longest)
    valid = place < torch.tensor([len(ids) for ids, _ in rows])[:, None]
    counted = valid & (place >= torch.tensor([first for _, first in rows])[:, None])
    return torch.tensor(filled), valid, counted


def accuracy_rows(name: str, scores: Scores) -> list[dict[str, Any]]:
    """One row per group and one over all pairs: pairs, each model's accuracy and standard error.

    The standard error is `sqrt(p (1 - p) / pairs)`, None for a single pair. Of no pairs, one row
    without numbers.
    """
    groups = np.array([pair.group for pair in scores.pairs])
    members = {group: groups == group for group in sorted(set(groups))}
    members["all"] = np.ones(len(groups), bool)
    rows = []
    for group, mask in members.items():
        row: dict[str, Any] = {"set": name, "group": group, "pairs": int(mask.sum())}
        for model, right in scores.right.items():
            n, share = int(mask.sum()), float(right[mask].sum()) / max(int(mask.sum()), 1)
            row[model] = share if n else None
            row[f"{model}_stderr"] = math.sqrt(share * (1 - share) / n) if n > 1 else None
        rows.append(row)
    return rows


def pair_accuracy(scores: Scores, model: str) -> float | None:
    """Share of all pairs that the model gets right; None where none could be scored."""
    return float(scores.right[model].mean()) if len(scores.pairs) else None
