"""Real probing sets in their public file formats, read from local files: minimal pairs, and items for probes.

A malformed file (a truncated line, a missing column, a field of the wrong kind, no usable line at all) raises a
`ValueError` that names file and line. A well-formed line that cannot serve is left out and counted under its reason
in `Loaded.skipped`: good and bad form equal, an offset outside the text or not at the word, brackets that mark no
pronoun, neither name the antecedent, a sense that too few sentences have.
"""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from tasks import NUMBERS, Item, Pair

T = TypeVar("T", Item, Pair)


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[T]):
    """What a file holds, and how many lines were left out, by reason."""

    items: tuple[T, ...]
    skipped: Mapping[str, int]


class _Skip(Exception):
    """A line that is well formed and cannot serve; its text is the reason."""


# -------------------------------------------------------------------------------------- minimal pairs


def load_blimp(path: str | Path) -> Loaded[Pair]:
    """BLiMP (Warstadt et al. 2020), JSONL with `sentence_good`, `sentence_bad`, `UID`: the group."""
    return _read_jsonl(path, lambda row: _pair(_text(row, "sentence_good"), _text(row, "sentence_bad"), _text(row, "UID")))


def load_lm_syneval(path: str | Path) -> Loaded[Pair]:
    """LM_syneval (Marvin and Linzen 2018) as JSONL with `case` (the group), `sentence_good`, `sentence_bad`."""
    return _read_jsonl(path, lambda row: _pair(_text(row, "sentence_good"), _text(row, "sentence_bad"), _text(row, "case")))


def load_linzen_pairs(path: str | Path) -> Loaded[Pair]:
    """Agreement in running text (after Linzen et al. 2016), JSONL with `tokens`, `verb_index`, `good`, `bad`,
    `attractors`: the group is the number of attractors."""

    def pair(row: dict[str, Any]) -> Pair:
        tokens, at = _tokens(row)
        good, bad = ([*tokens[:at], _text(row, form), *tokens[at + 1 :]] for form in ("good", "bad"))
        return _pair(" ".join(good), " ".join(bad), f"{_whole(row, 'attractors')} attractors")

    return _read_jsonl(path, pair)


def load_winogender_pairs(path: str | Path) -> Loaded[Pair]:
    """Winogender (Rudinger et al. 2018), `templates.tsv`: the pronoun replaced by the one and the other participant.

    The group is the occupation; "good" has the participant that the pronoun means (column `answer`: 0, the
    occupation; 1, the other). The names stand in as "the technician", a possessive as "the technician's".
    """

    def pair(row: dict[str, str]) -> Pair:
        people = (row["occupation(0)"], row["other-participant(1)"])
        sentence = row["sentence"].replace("$OCCUPATION", people[0]).replace("$PARTICIPANT", people[1])
        if row["answer"] not in ("0", "1"):
            raise ValueError(f"answer needs to be 0 or 1; got {row['answer']!r}")
        found = re.search(r"\$(NOM|ACC|POSS)_PRONOUN", sentence)
        if found is None:
            raise ValueError("the sentence has no $NOM_PRONOUN, $ACC_PRONOUN or $POSS_PRONOUN")
        ending = "'s" if found[1] == "POSS" else ""
        forms = [re.sub(r"\$\w+_PRONOUN", f"the {person}{ending}", sentence) for person in people]
        good = int(row["answer"])
        return _pair(forms[good], forms[1 - good], people[0])

    return _read_tsv(path, ("occupation(0)", "other-participant(1)", "answer", "sentence"), pair)


def _pair(good: str, bad: str, group: str) -> Pair:
    """The pair with what the sentences share, word by word, taken to its prefix and suffix."""
    if good == bad:
        raise _Skip("good and bad form are equal")
    ours, theirs = (re.findall(r"\s*\S+", sentence) for sentence in (good, bad))
    if not ours or not theirs:
        raise _Skip("a sentence is empty")
    shorter = min(len(ours), len(theirs))
    head = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
    head = min(head, shorter - 1)  # a form is never empty: "she smiled" / "she smiled today" differ from "smiled" on
    tail = next((i for i in range(shorter - head) if ours[-1 - i] != theirs[-1 - i]), shorter - head)
    tail = min(tail, shorter - head - 1)
    middle = slice(head, len(ours) - tail), slice(head, len(theirs) - tail)
    return Pair(
        prefix="".join(ours[:head]), good="".join(ours[middle[0]]), bad="".join(theirs[middle[1]]),
        suffix="".join(ours[len(ours) - tail :]), group=group,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------- agreement


def load_linzen(path: str | Path) -> Loaded[Item]:
    """The file of `load_linzen_pairs` for probes: the number of the verb, read out at the word before it.

    A verb form with -s, "is", "was" or "has" is singular. The group is the subject if the line has `subject`, else the
    line; `frame` is the number of attractors.
    """

    def item(row: dict[str, Any]) -> Item:
        tokens, at = _tokens(row)
        good, bad = _text(row, "good"), _text(row, "bad")
        if good == bad:
            raise _Skip("good and bad form are equal")
        if at == 0:
            raise _Skip("there is no word before the verb")
        label = NUMBERS.index("singular" if _is_singular(good, bad) else "plural")
        text = " ".join(tokens)
        end = len(" ".join(tokens[:at]))
        n = _whole(row, "attractors")
        return Item(
            unit="agreement", text=text, begin=end - len(tokens[at - 1]), end=end, label=label,
            group=str(row.get("subject") or text), frame=f"{n} attractors", congruent=None if n else True,
        )  # fmt: skip

    return _read_jsonl(path, item)


SINGULAR = ("is", "was", "has", "does", "isn't", "wasn't", "hasn't", "doesn't")


def _is_singular(good: str, bad: str) -> bool:
    if good in SINGULAR or bad in SINGULAR:
        return good in SINGULAR
    return good.endswith("s") and not bad.endswith("s")


def _tokens(row: dict[str, Any]) -> tuple[list[str], int]:
    tokens, at = row.get("tokens"), _whole(row, "verb_index")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"tokens needs to be a list of words; got {str(tokens)[:40]!r}")
    if not 0 <= at < len(tokens):
        raise _Skip("verb_index lies outside the sentence")
    return tokens, at
