"""Real probing sets in their public formats, from local files or by dataset name: minimal pairs,
items for probes.

A source is a file's path, or a dataset's name as in `hub` (`uclanlp/wino_bias:type1_pro`) whose
rows have the columns that the file would have; rows as JSON Lines serve wherever a table does. A
malformed source (a truncated line, a missing column, a field of the wrong kind, no usable line at
all) raises a `ValueError` that names source and line. A well-formed line that cannot serve is left
out and counted under its reason in `Loaded.skipped`: good and bad form equal, an offset outside the
text or not at the word, brackets that mark no pronoun, neither name the antecedent, a sense that
too few sentences have.
"""

import collections
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch

from probes import Item, Pair
from tsae_lab.data import records
from tsae_lab.data.records import Loaded
from tsae_lab.data.tasks import NUMBERS

# -------------------------------------------------------------------------------------- minimal pairs


def load_blimp(path: str | Path) -> Loaded[Pair]:
    """BLiMP (Warstadt et al. 2020), JSONL with `sentence_good`, `sentence_bad`, `UID`: the
    group.
    """
    return _sentence_pairs(path, "UID")


def load_lm_syneval(path: str | Path) -> Loaded[Pair]:
    """LM_syneval (Marvin and Linzen 2018) as JSONL with `case` (the group), `sentence_good`,
    `sentence_bad`.
    """
    return _sentence_pairs(path, "case")


def _sentence_pairs(path: str | Path, group: str) -> Loaded[Pair]:
    def pair(row: dict[str, Any]) -> Pair:
        return _pair(
            records.text_of(row, "sentence_good"),
            records.text_of(row, "sentence_bad"),
            records.text_of(row, group),
        )

    return records.loaded(*records.jsonl(Path(path), pair))


def load_linzen_pairs(path: str | Path) -> Loaded[Pair]:
    """Agreement in running text (after Linzen et al. 2016), JSONL with `tokens`, `verb_index`,
    `good`, `bad`, `attractors`: the group is the number of attractors.
    """

    def pair(row: dict[str, Any]) -> Pair:
        tokens, at = _tokens(row)
        good, bad = (
            [*tokens[:at], records.text_of(row, form), *tokens[at + 1 :]]
            for form in ("good", "bad")
        )
        return _pair(" ".join(good), " ".join(bad), f"{_n_attractors(row)} attractors")

    return records.loaded(*records.jsonl(Path(path), pair))


def load_winogender_pairs(path: str | Path) -> Loaded[Pair]:
    """Winogender (Rudinger et al. 2018), `templates.tsv`: the pronoun replaced by the one and the
    other participant.

    The group is the occupation; "good" has the participant that the pronoun means (column `answer`:
    0, the occupation; 1, the other). The names stand in as "the technician", a possessive as "the
    technician's". The sentences (`sentid`, `sentence`: `all_sentences.tsv`, or the dataset) serve
    too: those with a man's pronoun, and two persons that are named.
    """
    if "sentid" in records.columns_of(Path(path)):
        return records.loaded(*records.tsv(Path(path), ("sentid", "sentence"), _sentence_pair))

    def pair(row: dict[str, str]) -> Pair:
        people = (row["occupation(0)"], row["other-participant(1)"])
        sentence = (
            row["sentence"].replace("$OCCUPATION", people[0]).replace("$PARTICIPANT", people[1])
        )
        if row["answer"] not in ("0", "1"):
            raise ValueError(f"answer needs to be 0 or 1; got {row['answer']!r}")
        found = re.search(r"\$(NOM|ACC|POSS)_PRONOUN", sentence)
        if found is None:
            raise ValueError("the sentence has no $NOM_PRONOUN, $ACC_PRONOUN or $POSS_PRONOUN")
        return _person_pair(sentence, found.span(), found[1] == "POSS", people, int(row["answer"]))

    columns = ("occupation(0)", "other-participant(1)", "answer", "sentence")
    return records.loaded(*records.tsv(Path(path), columns, pair))


def _sentence_pair(row: dict[str, str]) -> Pair:
    people, answer, gender = _who(row["sentid"])
    found = re.search(r"\b(he|him|his)\b", row["sentence"], re.IGNORECASE)
    if gender != "male" or people[1] == "someone":
        raise records.Skip("the same with another pronoun, or with no second person")
    if found is None:
        raise records.Skip("no pronoun is in the sentence")
    return _person_pair(row["sentence"], found.span(), found[1].lower() == "his", people, answer)


def _person_pair(
    sentence: str, at: tuple[int, int], possessive: bool, people: tuple[str, str], answer: int
) -> Pair:
    """Each person in the place of the pronoun, the group being the first of them."""
    ending = "'s" if possessive else ""
    forms = [f"{sentence[: at[0]]}the {person}{ending}{sentence[at[1] :]}" for person in people]
    return _pair(forms[answer], forms[1 - answer], people[0])


def _who(sentid: str) -> tuple[tuple[str, str], int, str]:
    """The two people of a sentence of Winogender, which of them is meant, and the pronoun's
    gender.
    """
    parts = sentid.split(".")
    if len(parts) != 5 or parts[2] not in ("0", "1"):
        raise ValueError(
            f"sentid needs to be occupation.participant.0 or 1.gender.txt; got {sentid!r}"
        )
    return (parts[0], parts[1]), int(parts[2]), parts[3]


def _pair(good: str, bad: str, group: str) -> Pair:
    """The pair whose prefix and suffix are the words that both sentences share at either end.

    Each form keeps a word: of "she smiled." and "she smiled today." the forms begin at "smiled".
    """
    if good.split() == bad.split():
        raise records.Skip("good and bad form are equal")
    ours, theirs = (re.findall(r"\s*\S+", sentence.strip()) for sentence in (good, bad))
    if not ours or not theirs:
        raise records.Skip("a sentence is empty")
    spare = min(len(ours), len(theirs)) - 1
    for head in range(min(_n_equal(ours, theirs), spare), -1, -1):
        tail = min(_n_equal(ours[::-1], theirs[::-1]), spare - head)
        forms = ["".join(words[head : len(words) - tail]) for words in (ours, theirs)]
        ours_end, theirs_end = (re.findall(r"\W*$", form)[0] for form in forms)
        stop = ours_end if ours_end == theirs_end else ""  # such as the full stop both end in
        good_form, bad_form = (form.removesuffix(stop) for form in forms)
        if good_form and bad_form:
            suffix = stop + "".join(ours[len(ours) - tail :])
            return Pair(
                prefix="".join(ours[:head]),
                good=good_form,
                bad=bad_form,
                suffix=suffix,
                group=group,
            )
    raise records.Skip("a form would be empty")


def _n_equal(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Number of words at the beginning that are the same in both."""
    same = (a == b for a, b in zip(ours, theirs, strict=False))
    return sum(1 for _ in itertools.takewhile(bool, same))


# -------------------------------------------------------------------------------------------- agreement


def load_linzen(path: str | Path) -> Loaded[Item]:
    """The file of `load_linzen_pairs` for probes: the number of the verb, read out at the word
    before it.

    A verb form with -s, "is", "was" or "has" is singular. The group is the subject if the line has
    `subject`, else the line; `frame` is the number of attractors.
    """

    def item(row: dict[str, Any]) -> Item:
        tokens, at = _tokens(row)
        good, bad = records.text_of(row, "good"), records.text_of(row, "bad")
        if good == bad:
            raise records.Skip("good and bad form are equal")
        if at == 0:
            raise records.Skip("there is no word before the verb")
        label = NUMBERS.index("singular" if _is_singular(good, bad) else "plural")
        text = " ".join(tokens)
        end = len(" ".join(tokens[:at]))
        n = _n_attractors(row)
        return Item(
            unit="agreement", text=text, begin=end - len(tokens[at - 1]), end=end, label=label,
            group=str(row.get("subject") or text), frame=f"{n} attractors", congruent=None if n else True,
        )  # fmt: skip

    return records.loaded(*records.jsonl(Path(path), item))


SINGULAR = ("is", "was", "has", "does", "isn't", "wasn't", "hasn't", "doesn't")


def _is_singular(good: str, bad: str) -> bool:
    if good in SINGULAR or bad in SINGULAR:
        return good in SINGULAR
    return good.endswith("s") and not bad.endswith("s")


def _n_attractors(row: dict[str, Any]) -> int:
    """How many there are: a number, or a list of them."""
    return (
        len(row["attractors"])
        if isinstance(row.get("attractors"), list)
        else records.whole_of(row, "attractors")
    )


def _tokens(row: dict[str, Any]) -> tuple[list[str], int]:
    tokens, at = row.get("tokens"), records.whole_of(row, "verb_index")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"tokens needs to be a list of words; got {str(tokens)[:40]!r}")
    if not 0 <= at < len(tokens):
        raise records.Skip("verb_index lies outside the sentence")
    return tokens, at


# ------------------------------------------------------------------------------------------ coreference


PRONOUNS = frozenset("he she they him her them his hers their theirs".split())  # noqa: SIM905


def load_winogender(path: str | Path) -> Loaded[Item]:
    """Winogender's `all_sentences.tsv`: whether the pronoun means the one named first (1), read out
    at the last word.

    The name of a sentence, `occupation.participant.answer.gender.txt`, says who is meant; the group
    is the occupation.
    """

    def item(row: dict[str, str]) -> Item:
        (people, answer, gender), sentence = _who(row["sentid"]), row["sentence"]
        at = [sentence.lower().find(person.lower()) for person in people]
        if min(at) < 0:
            raise records.Skip("a participant is not in the sentence")
        begin, end = _last_word(sentence)
        return Item(
            unit="coreference", text=sentence, begin=begin, end=end, label=int(at[answer] < at[1 - answer]),
            group=people[0], frame=gender,
        )  # fmt: skip

    return records.loaded(*records.tsv(Path(path), ("sentid", "sentence"), item))


def load_winobias(path: str | Path) -> Loaded[Item]:
    """WinoBias (Zhao et al. 2018), `*_type1.txt.dev`: whether the pronoun means the one named first
    (1), at the end.

    Lines are "1 [The developer] argued with the designer because [she] ..."; `male_occupations.txt`
    and `female_occupations.txt` in the same folder name the other person. The group is the pair of
    occupations. (Type 2 is solved by recency: of no use here.) Of rows with `tokens` and
    `coreference_clusters` (first and last word of the person, then of the pronoun) the persons of
    all rows are the list of names.
    """
    path = Path(path)
    lines, names, lost = _marked(path)
    people = re.compile(
        r"\b(" + "|".join(sorted(map(re.escape, names), key=len, reverse=True)) + r")\b",
        re.IGNORECASE,
    )

    def item(line: str) -> Item:
        number, _, rest = line.partition(" ")
        if not number.isdigit() or not rest:
            raise ValueError(f"a line needs a number and a sentence; got {line[:40]!r}")
        marks = re.findall(r"\[([^][]*)\]", rest)
        if len(marks) < 2 or marks[1].lower() not in PRONOUNS or rest.count("[") != rest.count("]"):
            raise records.Skip("the brackets do not mark a person and then a pronoun")
        marked = rest.index(marks[0]) - 1
        named = [(match.start(), match[1].lower()) for match in people.finditer(rest)]
        other = [found for found in named if not marked <= found[0] <= marked + len(marks[0]) + 1]
        ours = [name for at, name in named if marked <= at <= marked + len(marks[0]) + 1]
        if not other or not ours:
            raise records.Skip("a person is not on the lists of occupations")
        text = re.sub(r"[][]", "", rest)
        begin, end = _last_word(text)
        return Item(
            unit="coreference", text=text, begin=begin, end=end, label=int(marked < other[0][0]),
            group="/".join(sorted((ours[0], other[0][1]))), frame=marks[1].lower(),
        )  # fmt: skip

    path, found, skipped = records.collect(path, enumerate(lines, 1), item)
    return records.loaded(path, found, skipped + lost)


def _marked(path: Path) -> tuple[list[str], set[str], Counter[str]]:
    """The lines of a WinoBias file, or of rows; the names of occupations in lower case; the rows
    left out.
    """
    if "coreference_clusters" not in records.columns_of(path):
        lists = [
            records.lines(path.with_name(f"{part}_occupations.txt")) for part in ("male", "female")
        ]
        names = {line.strip().lower() for part in lists for line in part if line.strip()}
        return records.lines(path), names, Counter()
    _, marked, lost = records.jsonl(path, _marks)
    return (
        [f"{number} {line}" for number, (line, _) in enumerate(marked, 1)],
        {name for _, name in marked},
        lost,
    )


def _marks(row: dict[str, Any]) -> tuple[str, str]:
    """A row of WinoBias as a line with brackets, and the occupation; a second pronoun is not
    marked.
    """
    words, places = row.get("tokens"), row.get("coreference_clusters")
    if not (isinstance(words, list) and all(isinstance(word, str) for word in words)) or not (
        isinstance(places, list) and all(str(place).isdigit() for place in places)
    ):
        raise ValueError(
            f"needs tokens, and in coreference_clusters whole numbers; got {words!r:.40}, {places!r:.40}"
        )
    at = [int(place) for place in places[:4]]
    if len(at) < 4 or not at[0] <= at[1] < at[2] <= at[3] < len(words):
        raise records.Skip(
            "coreference_clusters do not mark a person and then a pronoun in the sentence"
        )
    line = list(words)
    for first, last in (at[:2], at[2:]):
        line[first] = f"[{line[first]}"
        line[last] = f"{line[last]}]"
    return " ".join(line), re.sub(r"^(the|a|an) ", "", " ".join(words[at[0] : at[1] + 1]).lower())


def load_gap(path: str | Path) -> Loaded[Item]:
    """GAP (Webster et al. 2018): whether the pronoun means the name that comes first (1), read out
    at the pronoun.

    Left out: neither or both names are the antecedent, and a name after the pronoun. The group is
    the article (`URL`).
    """
    columns = (
        "Text",
        "Pronoun",
        "Pronoun-offset",
        "A",
        "A-offset",
        "A-coref",
        "B",
        "B-offset",
        "B-coref",
        "URL",
    )

    def item(row: dict[str, str]) -> Item:
        at = {name: records.number_of(row, f"{name}-offset") for name in ("Pronoun", "A", "B")}
        for name, begin in at.items():
            if row["Text"][begin : begin + len(row[name])] != row[name] or begin < 0:
                raise records.Skip("an offset is not at its word")
        is_antecedent = [records.truth_of(row, f"{name}-coref") for name in "AB"]
        if sum(is_antecedent) != 1:
            raise records.Skip("neither or both names are the antecedent")
        if max(at["A"], at["B"]) > at["Pronoun"]:
            raise records.Skip("a name comes after the pronoun")
        first = "A" if at["A"] < at["B"] else "B"
        return Item(
            unit="coreference", text=row["Text"], begin=at["Pronoun"], end=at["Pronoun"] + len(row["Pronoun"]),
            label=int(is_antecedent["AB".index(first)]), group=row["URL"], frame=row["Pronoun"].lower(),
        )  # fmt: skip

    return records.loaded(*records.tsv(Path(path), columns, item))


def _last_word(sentence: str) -> tuple[int, int]:
    """Begin and end of the last word, without the punctuation after it."""
    found = re.search(r"(\w[\w'-]*)\W*$", sentence)
    if found is None:
        raise records.Skip("the sentence has no word")
    return found.span(1)


# ---------------------------------------------------------------------------------------- word senses


def load_homographs(path: str | Path, *, min_items: int = 8) -> Loaded[Item]:
    """Wikipedia homographs (Gorman et al. 2018): which of its two most frequent readings a word
    has, read out there.

    TSV with `homograph`, `wordid`, `sentence`, and `start` and `end` in *bytes* of UTF-8. One unit
    a homograph; of both readings equally many sentences are kept, at least `min_items`.
    """

    def sense(row: dict[str, str]) -> tuple[Item, str]:
        raw, start, end = (
            row["sentence"].encode(),
            records.number_of(row, "start"),
            records.number_of(row, "end"),
        )
        word = raw[start:end].decode(errors="replace")
        if not 0 <= start < end <= len(raw) or word.lower() != row["homograph"].lower():
            raise records.Skip("an offset is not at its word")
        begin = len(raw[:start].decode())
        return _occurrence(row["homograph"], row["sentence"], begin, begin + len(word)), row[
            "wordid"
        ]

    columns = ("homograph", "wordid", "sentence", "start", "end")
    return _two_senses(*records.tsv(Path(path), columns, sense), min_items)


def load_coarsewsd(path: str | Path, *, min_items: int = 8) -> Loaded[Item]:
    """CoarseWSD-20 (Loureiro et al. 2021): one word's `train.data.txt`, with its gold file beside
    it.

    A line is the position of the word, a tab and the tokens; the folder's name is the word. As
    `load_homographs`.
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
            raise records.Skip("the position lies outside the sentence")
        begin = len(" ".join(tokens[:at])) + (at > 0)
        return _occurrence(
            path.parent.name, " ".join(tokens), begin, begin + len(tokens[at])
        ), line[1].strip()

    return _two_senses(*records.collect(path, records.with_gold(path), sense), min_items)


def load_wic(path: str | Path) -> Loaded[Item]:
    """Word in Context (Pilehvar and Camacho-Collados 2019): whether a word means the same in two
    sentences (1).

    `train.data.txt` (word, part of speech, positions "2-5", two tokenized sentences; tabs) and
    `train.gold.txt` beside it; or rows as SuperGLUE has them (`word`, `sentence1`, `start1`,
    `end1`, the same with 2, `label`; offsets in characters). The group is the word.
    """
    if not Path(path).name.endswith(".data.txt"):
        return records.loaded(*records.jsonl(Path(path), _same_sense))

    def item(line: tuple[str, str]) -> Item:
        fields, gold = line[0].split("\t"), line[1].strip()
        if (
            len(fields) != 5
            or re.fullmatch(r"\d+-\d+", fields[2]) is None
            or gold not in ("T", "F")
        ):
            raise ValueError(
                f"needs 5 fields, positions like 2-5, and T or F as gold; got {line[0][:40]!r}"
            )
        spans = []
        for position, sentence in zip(fields[2].split("-"), fields[3:], strict=True):
            tokens, at = sentence.split(), int(position)
            if at >= len(tokens):
                raise records.Skip("the position lies outside the sentence")
            begin = len(" ".join(tokens[:at])) + (at > 0)
            spans.append((" ".join(tokens), begin, begin + len(tokens[at])))
        (text, begin, end), other = spans
        return Item(
            unit="same sense", text=text, begin=begin, end=end, label=int(gold == "T"), group=fields[0],
            frame=fields[1], other=other,
        )  # fmt: skip

    path = Path(path)
    return records.loaded(*records.collect(path, records.with_gold(path), item))


def _same_sense(row: dict[str, Any]) -> Item:
    if row.get("label") in (None, -1):
        raise records.Skip("there is no label")
    if type(row["label"]) not in (bool, int) or row["label"] not in (0, 1):
        raise ValueError(f"label needs to be 0 or 1, false or true; got {row['label']!r}")
    texts = [records.text_of(row, f"sentence{n}") for n in "12"]
    begins, ends = (
        [records.whole_of(row, f"{side}{n}") for n in "12"] for side in ("start", "end")
    )
    spans = list(zip(texts, begins, ends, strict=True))
    if not all(
        0 <= begin < end <= len(text) and text[begin:end].strip() for text, begin, end in spans
    ):
        raise records.Skip("an offset is not at its word")
    (text, begin, end), other = spans
    word = records.text_of(row, "word")
    return Item(
        unit="same sense", text=text, begin=begin, end=end, label=int(row["label"]), group=word, other=other
    )  # fmt: skip


def _occurrence(word: str, text: str, begin: int, end: int) -> Item:
    return Item(unit=word, text=text, begin=begin, end=end, label=0, group=text)


def _two_senses(
    path: Path, found: list[tuple[Item, str]], skipped: Counter[str], min_items: int
) -> Loaded[Item]:
    """Of each word the two most frequent senses, as labels 1 and 0, with equally many sentences,
    each once.
    """
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
    return records.loaded(path, kept, skipped)


# ------------------------------------------------------------------------------------------- reading


def load_items(path: str | Path) -> Loaded[Item]:
    """The items of a source for probes, by what its name and its columns or first line say it
    is.
    """
    path = Path(path)
    if path.name.endswith(".data.txt"):
        return (
            load_wic(path)
            if next(iter(records.lines(path)), "").count("\t") == 4
            else load_coarsewsd(path)
        )
    columns = records.columns_of(path)
    for column, loader in ITEM_LOADERS.items():
        if column in columns:
            return loader(path)
    if "sentence_good" in columns:
        raise ValueError(
            f"{path} holds minimal pairs: they are compared, not probed (the last noun solves 98 % of some)"
        )
    if columns and re.match(r"\d+ .*\[", columns[0]):
        return load_winobias(path)
    raise ValueError(f"{path}: line 1 is of no format known here: {' '.join(columns)[:60]!r}")


def pair_loader(path: str | Path) -> Callable[[str | Path], Loaded[Pair]]:
    """The loader for a source of minimal pairs, by its columns."""
    columns = records.columns_of(Path(path))
    for column, loader in PAIR_LOADERS.items():
        if column in columns:
            return loader
    raise ValueError(
        f"{path} holds no minimal pairs known here: its first line has {' '.join(columns)[:60]!r}"
    )


ITEM_LOADERS: Mapping[str, Callable[[str | Path], Loaded[Item]]] = MappingProxyType({
    "sentid": load_winogender, "Pronoun-offset": load_gap, "homograph": load_homographs, "verb_index": load_linzen,
    "coreference_clusters": load_winobias, "sentence1": load_wic,
})  # fmt: skip
PAIR_LOADERS: Mapping[str, Callable[[str | Path], Loaded[Pair]]] = MappingProxyType({
    "UID": load_blimp, "case": load_lm_syneval, "verb_index": load_linzen_pairs, "sentid": load_winogender_pairs,
    "occupation(0)": load_winogender_pairs,
})  # fmt: skip

Rule = Literal["sentence", "word"]
# name: files below the data folder, loader, rule
SETS: Mapping[str, tuple[str, Callable[[str | Path], Loaded[Pair]], Rule]] = MappingProxyType({
    "blimp": ("**/blimp/*.jsonl", load_blimp, "sentence"),
    "lm_syneval": ("**/lm_syneval/*.jsonl", load_lm_syneval, "word"),
    "winogender": ("**/winogender/templates.tsv", load_winogender_pairs, "sentence"),
})  # fmt: skip


def find_sets(
    source: str | Path, n_each: int, *, names: Sequence[str] = tuple(SETS), seed: int = 0
) -> tuple[dict[str, tuple[list[Pair], Rule]], tuple[str, ...]]:
    """The sets in a folder, by name, at most `n_each` pairs a condition; and the names of those
    that are not there.

    A source that is a file, or a dataset's name as in `hub`, is one set of that name, whatever
    `names` are. ValueError for what does not exist, an unknown name, or a file that is damaged.
    """
    folder = Path(source).expanduser()
    if records.is_name(source) or folder.is_file():
        load = pair_loader(folder)
        rule: Rule = "word" if load in (load_lm_syneval, load_linzen_pairs) else "sentence"
        return {Path(source).name: (sample(load(folder).items, n_each, seed=seed), rule)}, ()
    if not folder.is_dir():
        raise ValueError(f"data folder {folder} does not exist")
    found, absent = {}, []
    for name in names:
        if name not in SETS:
            raise ValueError(f"unknown minimal pairs {name!r}: there are {', '.join(SETS)}")
        pattern, load, rule = SETS[name]
        files = sorted(folder.glob(pattern))
        pairs = [pair for file in files for pair in load(file).items]
        if files:
            found[name] = (sample(pairs, n_each, seed=seed), rule)
        else:
            absent.append(name)
    return found, tuple(absent)


def sample(pairs: Sequence[Pair], n_each: int, *, seed: int = 0) -> list[Pair]:
    """At most `n_each` random pairs of every group, in their order."""
    generator = torch.Generator().manual_seed(seed)
    by_group: dict[str, list[int]] = collections.defaultdict(list)
    for i, pair in enumerate(pairs):
        by_group[pair.group].append(i)
    kept = [
        places[j]
        for places in by_group.values()
        for j in torch.randperm(len(places), generator=generator)[:n_each].tolist()
    ]
    return [pairs[i] for i in sorted(kept)]
