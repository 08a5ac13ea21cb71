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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from tasks import NUMBERS, Item, Pair

T = TypeVar("T", Item, Pair)
L = TypeVar("L")
R = TypeVar("R")


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
    return _sentence_pairs(path, "UID")


def load_lm_syneval(path: str | Path) -> Loaded[Pair]:
    """LM_syneval (Marvin and Linzen 2018) as JSONL with `case` (the group), `sentence_good`, `sentence_bad`."""
    return _sentence_pairs(path, "case")


def _sentence_pairs(path: str | Path, group: str) -> Loaded[Pair]:
    def pair(row: dict[str, Any]) -> Pair:
        return _pair(_text(row, "sentence_good"), _text(row, "sentence_bad"), _text(row, group))

    return _loaded(*_jsonl(Path(path), pair))


def load_linzen_pairs(path: str | Path) -> Loaded[Pair]:
    """Agreement in running text (after Linzen et al. 2016), JSONL with `tokens`, `verb_index`, `good`, `bad`,
    `attractors`: the group is the number of attractors."""

    def pair(row: dict[str, Any]) -> Pair:
        tokens, at = _tokens(row)
        good, bad = ([*tokens[:at], _text(row, form), *tokens[at + 1 :]] for form in ("good", "bad"))
        return _pair(" ".join(good), " ".join(bad), f"{_attractors(row)} attractors")

    return _loaded(*_jsonl(Path(path), pair))


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

    columns = ("occupation(0)", "other-participant(1)", "answer", "sentence")
    return _loaded(*_tsv(Path(path), columns, pair))


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
    ours_differ, theirs_differ = ("".join(part[head : len(part) - tail]) for part in (ours, theirs))
    stop = re.search(r"\W*$", ours_differ)[0]  # type: ignore[index]
    stop = stop if theirs_differ.endswith(stop) and len(stop) < len(ours_differ) else ""  # the full stop both end in
    return Pair(
        prefix="".join(ours[:head]), good=ours_differ.removesuffix(stop), bad=theirs_differ.removesuffix(stop),
        suffix=stop + "".join(ours[len(ours) - tail :]), group=group,
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
        n = _attractors(row)
        return Item(
            unit="agreement", text=text, begin=end - len(tokens[at - 1]), end=end, label=label,
            group=str(row.get("subject") or text), frame=f"{n} attractors", congruent=None if n else True,
        )  # fmt: skip

    return _loaded(*_jsonl(Path(path), item))


SINGULAR = ("is", "was", "has", "does", "isn't", "wasn't", "hasn't", "doesn't")


def _is_singular(good: str, bad: str) -> bool:
    if good in SINGULAR or bad in SINGULAR:
        return good in SINGULAR
    return good.endswith("s") and not bad.endswith("s")


def _attractors(row: dict[str, Any]) -> int:
    """How many there are: a number, or a list of them."""
    return len(row["attractors"]) if isinstance(row.get("attractors"), list) else _whole(row, "attractors")


def _tokens(row: dict[str, Any]) -> tuple[list[str], int]:
    tokens, at = row.get("tokens"), _whole(row, "verb_index")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"tokens needs to be a list of words; got {str(tokens)[:40]!r}")
    if not 0 <= at < len(tokens):
        raise _Skip("verb_index lies outside the sentence")
    return tokens, at


# ------------------------------------------------------------------------------------------ coreference


PRONOUNS = frozenset("he she they him her them his hers their theirs".split())  # noqa: SIM905


def load_winogender(path: str | Path) -> Loaded[Item]:
    """Winogender's `all_sentences.tsv`: whether the pronoun means the one named first (1), read out at the last word.

    The name of a sentence, `occupation.participant.answer.gender.txt`, says who is meant; the group is the occupation.
    """

    def item(row: dict[str, str]) -> Item:
        parts = row["sentid"].split(".")
        if len(parts) != 5 or parts[2] not in ("0", "1"):
            raise ValueError(f"sentid needs to be occupation.participant.0 or 1.gender.txt; got {row['sentid']!r}")
        people, answer, sentence = parts[:2], int(parts[2]), row["sentence"]
        at = [sentence.lower().find(person.lower()) for person in people]
        if min(at) < 0:
            raise _Skip("a participant is not in the sentence")
        begin, end = _last_word(sentence)
        return Item(
            unit="coreference", text=sentence, begin=begin, end=end, label=int(at[answer] < at[1 - answer]),
            group=people[0], frame=parts[3],
        )  # fmt: skip

    return _loaded(*_tsv(Path(path), ("sentid", "sentence"), item))


def load_winobias(path: str | Path) -> Loaded[Item]:
    """WinoBias (Zhao et al. 2018), `*_type1.txt.dev`: whether the pronoun means the one named first (1), at the end.

    Lines are "1 [The developer] argued with the designer because [she] ..."; `male_occupations.txt` and
    `female_occupations.txt` in the same folder name the other person. The group is the pair of occupations. (Type 2 is
    solved by recency: of no use here.)
    """
    path = Path(path)
    names: set[str] = set()
    for part in ("male", "female"):
        names |= {line.strip().lower() for line in _lines(path.with_name(f"{part}_occupations.txt")) if line.strip()}
    people = re.compile(r"\b(" + "|".join(sorted(map(re.escape, names), key=len, reverse=True)) + r")\b", re.IGNORECASE)

    def item(line: str) -> Item:
        number, _, rest = line.partition(" ")
        if not number.isdigit() or not rest:
            raise ValueError(f"a line needs a number and a sentence; got {line[:40]!r}")
        marks = re.findall(r"\[([^][]*)\]", rest)
        if len(marks) < 2 or marks[1].lower() not in PRONOUNS or rest.count("[") != rest.count("]"):
            raise _Skip("the brackets do not mark a person and then a pronoun")
        marked = rest.index(marks[0]) - 1
        named = [(match.start(), match[1].lower()) for match in people.finditer(rest)]
        other = [found for found in named if not marked <= found[0] <= marked + len(marks[0]) + 1]
        ours = [name for at, name in named if marked <= at <= marked + len(marks[0]) + 1]
        if not other or not ours:
            raise _Skip("a person is not on the lists of occupations")
        text = re.sub(r"[][]", "", rest)
        begin, end = _last_word(text)
        return Item(
            unit="coreference", text=text, begin=begin, end=end, label=int(marked < other[0][0]),
            group="/".join(sorted((ours[0], other[0][1]))), frame=marks[1].lower(),
        )  # fmt: skip

    return _loaded(*_collect(path, enumerate(_lines(path), 1), item))


def load_gap(path: str | Path) -> Loaded[Item]:
    """GAP (Webster et al. 2018): whether the pronoun means the name that comes first (1), read out at the pronoun.

    Left out: neither or both names are the antecedent, and a name after the pronoun. The group is the article (`URL`).
    """
    columns = ("Text", "Pronoun", "Pronoun-offset", "A", "A-offset", "A-coref", "B", "B-offset", "B-coref", "URL")

    def item(row: dict[str, str]) -> Item:
        at = {name: _number(row, f"{name}-offset") for name in ("Pronoun", "A", "B")}
        for name, begin in at.items():
            if row["Text"][begin : begin + len(row[name])] != row[name] or begin < 0:
                raise _Skip("an offset is not at its word")
        is_antecedent = [_truth(row, f"{name}-coref") for name in "AB"]
        if sum(is_antecedent) != 1:
            raise _Skip("neither or both names are the antecedent")
        if max(at["A"], at["B"]) > at["Pronoun"]:
            raise _Skip("a name comes after the pronoun")
        first = "A" if at["A"] < at["B"] else "B"
        return Item(
            unit="coreference", text=row["Text"], begin=at["Pronoun"], end=at["Pronoun"] + len(row["Pronoun"]),
            label=int(is_antecedent["AB".index(first)]), group=row["URL"], frame=row["Pronoun"].lower(),
        )  # fmt: skip

    return _loaded(*_tsv(Path(path), columns, item))


def _last_word(sentence: str) -> tuple[int, int]:
    """Begin and end of the last word, without the punctuation after it."""
    found = re.search(r"(\w[\w'-]*)\W*$", sentence)
    if found is None:
        raise _Skip("the sentence has no word")
    return found.span(1)


# ---------------------------------------------------------------------------------------- word senses


def load_homographs(path: str | Path, *, min_items: int = 8) -> Loaded[Item]:
    """Wikipedia homographs (Gorman et al. 2018): which of its two most frequent readings a word has, read out there.

    TSV with `homograph`, `wordid`, `sentence`, and `start` and `end` in *bytes* of UTF-8. One unit a homograph; of both
    readings equally many sentences are kept, at least `min_items`.
    """

    def sense(row: dict[str, str]) -> tuple[Item, str]:
        raw, start, end = row["sentence"].encode(), _number(row, "start"), _number(row, "end")
        word = raw[start:end].decode(errors="replace")
        if not 0 <= start < end <= len(raw) or word.lower() != row["homograph"].lower():
            raise _Skip("an offset is not at its word")
        begin = len(raw[:start].decode())
        return _occurrence(row["homograph"], row["sentence"], begin, begin + len(word)), row["wordid"]

    columns = ("homograph", "wordid", "sentence", "start", "end")
    return _two_senses(*_tsv(Path(path), columns, sense), min_items)


def load_coarsewsd(path: str | Path, *, min_items: int = 8) -> Loaded[Item]:
    """CoarseWSD-20 (Loureiro et al. 2021): one word's `train.data.txt`, with its gold file beside it.

    A line is the position of the word, a tab and the tokens; the folder's name is the word. As `load_homographs`.
    """
    path = Path(path)

    def sense(line: tuple[str, str]) -> tuple[Item, str]:
        position, tab, sentence = line[0].partition("\t")
        if not tab or not position.isdigit() or not line[1].strip().isdigit():
            raise ValueError(
                f"a line needs a position, a tab and tokens, and a number in the gold file; got {line[0][:40]!r}"
            )
        tokens, at = sentence.split(), int(position)
        if at >= len(tokens):
            raise _Skip("the position lies outside the sentence")
        begin = len(" ".join(tokens[:at])) + (at > 0)
        return _occurrence(path.parent.name, " ".join(tokens), begin, begin + len(tokens[at])), line[1].strip()

    return _two_senses(*_collect(path, _with_gold(path), sense), min_items)


def load_wic(path: str | Path) -> Loaded[Item]:
    """Word in Context (Pilehvar and Camacho-Collados 2019): whether a word means the same in two sentences (1).

    `train.data.txt` (word, part of speech, positions "2-5", two tokenized sentences; tabs) and `train.gold.txt` beside
    it. The group is the word.
    """

    def item(line: tuple[str, str]) -> Item:
        fields, gold = line[0].split("\t"), line[1].strip()
        if len(fields) != 5 or re.fullmatch(r"\d+-\d+", fields[2]) is None or gold not in ("T", "F"):
            raise ValueError(f"needs 5 fields, positions like 2-5, and T or F as gold; got {line[0][:40]!r}")
        spans = []
        for position, sentence in zip(fields[2].split("-"), fields[3:], strict=True):
            tokens, at = sentence.split(), int(position)
            if at >= len(tokens):
                raise _Skip("the position lies outside the sentence")
            begin = len(" ".join(tokens[:at])) + (at > 0)
            spans.append((" ".join(tokens), begin, begin + len(tokens[at])))
        (text, begin, end), other = spans
        return Item(
            unit="same sense", text=text, begin=begin, end=end, label=int(gold == "T"), group=fields[0],
            frame=fields[1], other=other,
        )  # fmt: skip

    path = Path(path)
    return _loaded(*_collect(path, _with_gold(path), item))


def _occurrence(word: str, text: str, begin: int, end: int) -> Item:
    return Item(unit=word, text=text, begin=begin, end=end, label=0, group=text)


def _two_senses(path: Path, found: list[tuple[Item, str]], skipped: Counter[str], min_items: int) -> Loaded[Item]:
    """Of each word the two most frequent senses, as labels 1 and 0, with equally many sentences, each once."""
    words: dict[str, dict[str, dict[str, Item]]] = defaultdict(lambda: defaultdict(dict))
    for item, sense in found:
        words[item.unit][sense].setdefault(item.text, item)
    kept: list[Item] = []
    for senses in words.values():
        ordered = sorted(senses, key=lambda sense: (-len(senses[sense]), sense))[:2]
        n = min(len(senses[sense]) for sense in ordered) if len(ordered) == 2 else 0
        n = n if n >= min_items else 0
        for label, sense in enumerate(reversed(ordered)):
            kept += [replace(item, label=label) for item in list(senses[sense].values())[:n]]
    skipped["a sense is too rare, or has more sentences than the other"] += len(found) - len(kept)
    return _loaded(path, kept, skipped)


# ------------------------------------------------------------------------------------------- reading


def load_items(path: str | Path) -> Loaded[Item]:
    """The items of a file for probes, by what its name and first line say it is."""
    path = Path(path)
    begin = next(iter(_lines(path)), "")
    by_header = {"sentid\t": load_winogender, "ID\tText\t": load_gap, "homograph\t": load_homographs}
    for header, loader in by_header.items():
        if begin.startswith(header):
            return loader(path)
    if path.name.endswith(".data.txt"):
        return load_wic(path) if begin.count("\t") == 4 else load_coarsewsd(path)
    if re.match(r"\d+ .*\[", begin):
        return load_winobias(path)
    if begin.startswith("{") and '"verb_index"' in begin:
        return load_linzen(path)
    if begin.startswith("{") and '"sentence_good"' in begin:
        raise ValueError(
            f"{path} holds minimal pairs: they are compared, not probed (the last noun solves 98 % of some)"
        )
    raise ValueError(f"{path}: line 1 is of no format known here: {begin[:60]!r}")


def _lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, without their ends and without an empty last one."""
    try:
        lines = path.read_bytes().decode().split("\n")  # not splitlines: running text holds other separators
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte {error.start}") from error
    lines = [line.removesuffix("\r") for line in lines]
    return lines[:-1] if lines[-1] == "" else lines


def _collect(path: Path, lines: Iterable[tuple[int, L]], parse: Callable[[L], R]) -> tuple[Path, list[R], Counter[str]]:
    """`parse` of every numbered line; its ValueErrors get file and line, its _Skips are counted."""
    found: list[R] = []
    skipped: Counter[str] = Counter()
    for number, line in lines:
        try:
            found.append(parse(line))
        except _Skip as reason:
            skipped[str(reason)] += 1
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return path, found, skipped


def _loaded(path: Path, items: Sequence[T], skipped: Counter[str]) -> Loaded[T]:
    if not items:
        reasons = "; ".join(f"{reason} ({n})" for reason, n in skipped.items() if n) or "it is empty"
        raise ValueError(f"{path} has no usable line: {reasons}")
    return Loaded(items=tuple(items), skipped={reason: n for reason, n in skipped.items() if n})


def _jsonl(path: Path, parse: Callable[[dict[str, Any]], R]) -> tuple[Path, list[R], Counter[str]]:
    def parsed(line: str) -> R:
        row = json.loads(line)  # its error is a ValueError
        if not isinstance(row, dict):
            raise ValueError(f"a line needs to be a JSON object; got {line[:40]!r}")
        return parse(row)

    return _collect(path, enumerate(_lines(path), 1), parsed)


def _tsv(
    path: Path, columns: Sequence[str], parse: Callable[[dict[str, str]], R]
) -> tuple[Path, list[R], Counter[str]]:
    """Rows below a header; fields in quotes where the header has them, else taken as they are."""
    head, *rows = _lines(path) or [""]
    quoted = head.startswith('"')

    def fields(line: str) -> list[str]:
        return next(csv.reader([line], delimiter="\t")) if quoted else line.split("\t")

    names = fields(head) if head else []
    missing = [name for name in columns if name not in names]
    if missing:
        raise ValueError(f"{path}, line 1: needs the columns {', '.join(columns)}; missing: {', '.join(missing)}")

    def parsed(line: str) -> R:
        found = fields(line)
        if len(found) != len(names):
            raise ValueError(f"needs {len(names)} fields; got {len(found)}")
        return parse(dict(zip(names, found, strict=True)))

    return _collect(path, enumerate(rows, 2), parsed)


def _with_gold(path: Path) -> list[tuple[int, tuple[str, str]]]:
    """Numbered lines of `*.data.txt`, each with that of `*.gold.txt` beside it."""
    if not path.name.endswith(".data.txt"):
        raise ValueError(f"{path} needs a name that ends in .data.txt, so that its .gold.txt is found")
    gold = path.with_name(path.name.replace(".data.txt", ".gold.txt"))
    ours, theirs = _lines(path), _lines(gold)
    if len(ours) != len(theirs):
        raise ValueError(f"{path} has {len(ours)} lines and {gold} {len(theirs)}: one is truncated")
    return list(enumerate(zip(ours, theirs, strict=True), 1))


def _text(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row.get(name), str) or not row[name]:
        raise ValueError(f"needs a text {name}; got {row.get(name)!r}")
    return row[name]


def _whole(row: Mapping[str, Any], name: str) -> int:
    if type(row.get(name)) is not int:
        raise ValueError(f"needs a whole number {name}; got {row.get(name)!r}")
    return row[name]


def _number(row: Mapping[str, str], name: str) -> int:
    if not re.fullmatch(r"-?\d+", row[name]):
        raise ValueError(f"needs a whole number {name}; got {row[name]!r}")
    return int(row[name])


def _truth(row: Mapping[str, str], name: str) -> bool:
    if row[name] not in ("TRUE", "FALSE"):
        raise ValueError(f"needs TRUE or FALSE in {name}; got {row[name]!r}")
    return row[name] == "TRUE"
