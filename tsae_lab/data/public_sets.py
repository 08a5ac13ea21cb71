"""Public probing sets from local files or by dataset name: minimal pairs, and items for probes.

A source is a file's path, or a dataset's name (see `records.is_name`) whose rows have the columns
that the file would have; rows as JSON Lines can stand for any table. A malformed source (a line
that is cut off, a missing column, a field of the wrong kind, no usable line at all) raises a
`ValueError` that names source and line. A well-formed line that cannot be used is left out and
counted by its reason in `Loaded.skipped`: good and bad form are equal, an offset is not at its
word, brackets mark no pronoun, neither name is the antecedent, too few sentences have a sense.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from probes import Item, Pair
from tsae_lab.data import records
from tsae_lab.data.own_sets import SETS, load_own, pickled_pairs, set_paths
from tsae_lab.data.records import Loaded
from tsae_lab.data.tasks import NUMBERS, item_at, word_span

Span = tuple[int, int]  # begin and end, in characters
Place = tuple[str, int, int]  # a text, and begin and end of a word in it


def _item(place: Place, **fields: Any) -> Item:
    return Item(text=place[0], begin=place[1], end=place[2], **fields)


# ------------------------------------------------------------------------------------ minimal pairs


def load_blimp(source: str | Path) -> Loaded[Pair]:
    """BLiMP (Warstadt et al. 2020), JSONL: `sentence_good`, `sentence_bad`, `UID` (the group)."""
    return _sentence_pairs(source, "UID")


def load_lm_syneval(source: str | Path) -> Loaded[Pair]:
    """LM_syneval (Marvin and Linzen 2018) as JSONL: as `load_blimp`, with `case` as the group; or a
    .pickle of its templates.
    """
    if str(source).endswith(".pickle"):
        fields = ("sentence_good", "sentence_bad", "case")
        rows = pickled_pairs(Path(source))
        return records.parsed(source, rows, lambda row: _pair(*(row[name] for name in fields)))
    return _sentence_pairs(source, "case")


def _sentence_pairs(source: str | Path, group: str) -> Loaded[Pair]:
    names = ("sentence_good", "sentence_bad", group)
    return records.jsonl(source, lambda row: _pair(*(records.text_of(row, name) for name in names)))


def load_linzen_pairs(source: str | Path) -> Loaded[Pair]:
    """Agreement in running text (after Linzen et al. 2016), JSONL with `tokens`, `verb_index`,
    `good`, `bad` and `attractors`, the number of which is the group.
    """

    def pair(row: dict[str, Any]) -> Pair:
        tokens, verb = _tokens(row)
        good, bad = (
            " ".join([*tokens[:verb], records.text_of(row, form), *tokens[verb + 1 :]])
            for form in ("good", "bad")
        )
        return _pair(good, bad, f"{_n_attractors(row)} attractors")

    return records.jsonl(source, pair)


def load_winogender_pairs(source: str | Path) -> Loaded[Pair]:
    """Winogender (Rudinger et al. 2018), `templates.tsv`: each participant in the pronoun's place.

    The group is the occupation; "good" has the participant that the pronoun means (column `answer`:
    0, the occupation; 1, the other), as "the technician" or "the technician's". Of the sentences
    (`sentid`, `sentence`: `all_sentences.tsv`, or the dataset) those with a man's pronoun and two
    named persons are used.
    """
    if "sentid" in records.columns_of(source):
        return records.tsv(source, ("sentid", "sentence"), _sentence_pair)
    columns = ("occupation(0)", "other-participant(1)", "answer", "sentence")
    return records.tsv(source, columns, _template_pair)


def _template_pair(row: dict[str, str]) -> Pair:
    people = (row["occupation(0)"], row["other-participant(1)"])
    sentence = row["sentence"].replace("$OCCUPATION", people[0]).replace("$PARTICIPANT", people[1])
    if row["answer"] not in ("0", "1"):
        raise ValueError(f"answer needs to be 0 or 1; got {row['answer']!r}")
    pronoun = re.search(r"\$(NOM|ACC|POSS)_PRONOUN", sentence)
    if pronoun is None:
        raise ValueError("the sentence has no $NOM_PRONOUN, $ACC_PRONOUN or $POSS_PRONOUN")
    possessive = pronoun[1] == "POSS"
    return _person_pair(sentence, pronoun.span(), possessive, people, int(row["answer"]))


def _sentence_pair(row: dict[str, str]) -> Pair:
    people, answer, gender = _who(row["sentid"])
    pronoun = re.search(r"\b(he|him|his)\b", row["sentence"], re.IGNORECASE)
    if gender != "male" or people[1] == "someone":
        raise records.Skip("the same with another pronoun, or with no second person")
    if pronoun is None:
        raise records.Skip("no pronoun is in the sentence")
    possessive = pronoun[1].lower() == "his"
    return _person_pair(row["sentence"], pronoun.span(), possessive, people, answer)


def _person_pair(
    sentence: str, pronoun: Span, possessive: bool, people: tuple[str, str], answer: int
) -> Pair:
    """The sentences with each person in the pronoun's place; the group is the first person."""
    before, after = sentence[: pronoun[0]], ("'s" if possessive else "") + sentence[pronoun[1] :]
    forms = [f"{before}the {person}{after}" for person in people]
    return _pair(forms[answer], forms[1 - answer], people[0])


def _who(sentid: str) -> tuple[tuple[str, str], int, str]:
    """The two people in a sentence of Winogender, which of them is meant, the pronoun's gender."""
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
    n_head, n_tail = _n_equal(ours, theirs), _n_equal(ours[::-1], theirs[::-1])
    for head in range(min(n_head, spare), -1, -1):
        tail = min(n_tail, spare - head)
        forms = ["".join(words[head : len(words) - tail]) for words in (ours, theirs)]
        ours_end, theirs_end = (re.findall(r"\W*$", form)[0] for form in forms)
        stop = ours_end if ours_end == theirs_end else ""  # such as the full stop both end in
        forms = [form.removesuffix(stop) for form in forms]
        if all(forms):
            prefix, suffix = "".join(ours[:head]), stop + "".join(ours[len(ours) - tail :])
            return Pair(prefix=prefix, good=forms[0], bad=forms[1], suffix=suffix, group=group)
    raise records.Skip("a form would be empty")


def _n_equal(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Number of words at the beginning that are the same in both."""
    return len(os.path.commonprefix([tuple(ours), tuple(theirs)]))


# ---------------------------------------------------------------------------------------- agreement


def load_linzen(source: str | Path) -> Loaded[Item]:
    """The file of `load_linzen_pairs`: the number of the verb, read out at the word before it.

    A verb form with -s, "is", "was" or "has" is singular. The group is the subject if the line has
    `subject`, else the sentence; `frame` is the number of attractors, of which it is not known
    whether they agree. Chance is the share of the more frequent number, .69 in Linzen's own.
    """

    def item(row: dict[str, Any]) -> Item:
        tokens, verb = _tokens(row)
        good, bad = records.text_of(row, "good"), records.text_of(row, "bad")
        if good == bad:
            raise records.Skip("good and bad form are equal")
        if verb == 0:
            raise records.Skip("there is no word before the verb")
        label = NUMBERS.index("singular" if _is_singular(good, bad) else "plural")
        n = _n_attractors(row)
        fields = {"frame": f"{n} attractors", "label": label}
        group = str(row.get("subject") or " ".join(tokens))
        return item_at(tokens, verb - 1, unit="agreement", group=group, **fields)

    return records.jsonl(source, item)


SINGULAR = ("is", "was", "has", "does", "isn't", "wasn't", "hasn't", "doesn't")


def _is_singular(good: str, bad: str) -> bool:
    if good in SINGULAR or bad in SINGULAR:
        return good in SINGULAR
    return good.endswith("s") and not bad.endswith("s")


def _n_attractors(row: dict[str, Any]) -> int:
    """Number of attractors; the field holds it, or a list of them."""
    attractors = row.get("attractors")
    return len(attractors) if isinstance(attractors, list) else records.whole_of(row, "attractors")


def _tokens(row: dict[str, Any]) -> tuple[list[str], int]:
    tokens, verb = _words(row), records.whole_of(row, "verb_index")
    if not 0 <= verb < len(tokens):
        raise records.Skip("verb_index lies outside the sentence")
    return tokens, verb


def _words(row: dict[str, Any]) -> list[str]:
    tokens = row.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"tokens needs to be a list of words; got {tokens!r:.40}")
    return tokens


# -------------------------------------------------------------------------------------- coreference


PRONOUNS = frozenset("he she they him her them his hers their theirs".split())  # noqa: SIM905


def _coreference(place: Place, first: bool, group: str, frame: str) -> Item:
    """Label 1 where the pronoun means the person who is named first."""
    return _item(place, unit="coreference", label=int(first), group=group, frame=frame)


def _last_word(sentence: str) -> Place:
    """A sentence and its last word, without the punctuation after it."""
    word = re.search(r"(\w[\w'-]*)\W*$", sentence)
    if word is None:
        raise records.Skip("the sentence has no word")
    return sentence, *word.span(1)


def load_winogender(source: str | Path) -> Loaded[Item]:
    """Winogender's `all_sentences.tsv`: whether the pronoun means the person named first (1), read
    out at the last word.

    A sentence's `sentid`, `occupation.participant.answer.gender.txt`, says who is meant; the group
    is the occupation.
    """

    def item(row: dict[str, str]) -> Item:
        (people, answer, gender), sentence = _who(row["sentid"]), row["sentence"]
        begins = [sentence.lower().find(person.lower()) for person in people]
        if min(begins) < 0:
            raise records.Skip("a participant is not in the sentence")
        first = begins[answer] < begins[1 - answer]
        return _coreference(_last_word(sentence), first, people[0], gender)

    return records.tsv(source, ("sentid", "sentence"), item)


_Mark = tuple[str, Span, str]  # a sentence, the person in it that is meant, and the pronoun


def load_winobias(source: str | Path) -> Loaded[Item]:
    """WinoBias (Zhao et al. 2018), `*_type1.txt.dev`: whether the pronoun means the person named
    first (1), read out at the last word.

    Lines are "1 [The developer] argued with the designer because [she] ..."; the occupations are
    those of `male_occupations.txt` and `female_occupations.txt` in the same folder. Or rows with
    `tokens` and `coreference_clusters` (first and last word of the person, then of the pronoun);
    the occupations are those of all rows. The group is the pair of occupations. Type 2 is of no
    use here: recency solves it.
    """
    if "coreference_clusters" in records.columns_of(source):
        marked = records.jsonl(source, _row_mark)
        people = {text[slice(*person)] for text, person, _ in marked.items}
        names = {re.sub(r"^(the|a|an) ", "", person.lower()) for person in people}
    else:
        marked = records.parsed(source, records.lines(source), _line_mark)
        lists = (Path(source).with_name(f"{kind}_occupations.txt") for kind in ("male", "female"))
        names = {line.strip().lower() for file in lists for line in records.lines(file)} - {""}
    longest_first = sorted(map(re.escape, names), key=len, reverse=True)
    occupation = re.compile(rf"\b({'|'.join(longest_first)})\b", re.IGNORECASE)

    def item(mark: _Mark) -> Item:
        text, (begin, end), pronoun = mark
        named = [(match.start(), match[1].lower()) for match in occupation.finditer(text)]
        inside = [name for place, name in named if begin <= place < end]
        outside = [(place, name) for place, name in named if not begin <= place < end]
        if not inside or not outside:
            raise records.Skip("a person is not on the lists of occupations")
        place, name = outside[0]
        group = "/".join(sorted((inside[0], name)))
        located = _coreference(_last_word(text), begin < place, group, pronoun.lower())
        return replace(located, factors={"set": "WinoBias"})

    return records.parsed(source, marked.items, item, skipped=marked.skipped)


def warning(items: Sequence[Item]) -> str:
    """What is wrong with these items as they are, in one line; empty if nothing is known.

    WinoBias's pro and anti files hold the same sentences with pronouns of the other gender. In one
    of them alone the gender tells which occupation is meant: .90 are right without reading on.
    """
    genders: dict[str, set[bool]] = defaultdict(set)
    for item in items:
        if item.factors.get("set") == "WinoBias":
            sentence = re.sub(r"\b(she|her|hers|he|him|his)\b", "_", item.text, flags=re.IGNORECASE)
            genders[sentence].add(item.frame in ("she", "her", "hers"))
    paired = sum(len(both) == 2 for both in genders.values())
    if paired >= 0.9 * len(genders):
        return ""
    told = f"of {len(genders)} sentences of WinoBias {paired} are there with both genders"
    return f"{told}: the pronoun alone tells the person; give the pro and the anti file together"


def _line_mark(line: str) -> _Mark:
    number, _, sentence = line.partition(" ")
    if not number.isdigit() or not sentence:
        raise ValueError(f"a line needs a number and a sentence; got {line[:40]!r}")
    marks = re.findall(r"\[([^][]*)\]", sentence)
    unpaired = sentence.count("[") != sentence.count("]")
    if unpaired or len(marks) < 2 or marks[1].lower() not in PRONOUNS:
        raise records.Skip("the brackets do not mark a person and then a pronoun")
    begin = sentence.index(f"[{marks[0]}]")
    return re.sub(r"[][]", "", sentence), (begin, begin + len(marks[0])), marks[1]


def _row_mark(row: dict[str, Any]) -> _Mark:
    words, clusters = _words(row), row.get("coreference_clusters")
    if not isinstance(clusters, list) or not all(str(place).isdigit() for place in clusters):
        raise ValueError(f"coreference_clusters needs whole numbers; got {clusters!r:.40}")
    places = [int(place) for place in clusters[:4]]  # a second pronoun is not used
    if len(places) < 4 or not places[0] <= places[1] < places[2] <= places[3] < len(words):
        raise records.Skip("coreference_clusters mark no person and then a pronoun in the sentence")
    pronoun = " ".join(words[places[2] : places[3] + 1])
    if pronoun.lower() not in PRONOUNS:
        raise records.Skip("coreference_clusters mark no pronoun")
    begin, end = word_span(words, places[0])[0], word_span(words, places[1])[1]
    return " ".join(words), (begin, end), pronoun


def load_gap(source: str | Path) -> Loaded[Item]:
    """GAP (Webster et al. 2018): whether the pronoun means the name that comes first (1), read out
    at the pronoun.

    Left out: neither or both names are the antecedent, or a name comes after the pronoun. The group
    is the article (`URL`).
    """
    parts = [f"{name}{field}" for name in "AB" for field in ("", "-offset", "-coref")]
    columns = ("Text", "Pronoun", "Pronoun-offset", *parts, "URL")
    return records.tsv(source, columns, _gap_item)


def _gap_item(row: dict[str, str]) -> Item:
    text, pronoun = row["Text"], row["Pronoun"]
    begins = {name: records.number_of(row, f"{name}-offset") for name in ("Pronoun", "A", "B")}
    if any(begin < 0 or not text.startswith(row[name], begin) for name, begin in begins.items()):
        raise records.Skip("an offset is not at its word")
    is_antecedent = {name: records.truth_of(row, f"{name}-coref") for name in "AB"}
    if is_antecedent["A"] == is_antecedent["B"]:
        raise records.Skip("neither or both names are the antecedent")
    begin = begins.pop("Pronoun")
    if max(begins.values()) > begin:
        raise records.Skip("a name comes after the pronoun")
    first = is_antecedent["A" if begins["A"] < begins["B"] else "B"]
    place = (text, begin, begin + len(pronoun))
    return _coreference(place, first, row["URL"], pronoun.lower())


# -------------------------------------------------------------------------------------- word senses


def load_homographs(source: str | Path, *, min_items: int = 8) -> Loaded[Item]:
    """Wikipedia homographs (Gorman et al. 2018): which of its two most frequent readings a word
    has, read out at the word.

    TSV with `homograph`, `wordid`, `sentence`, and `start` and `end` in *bytes* of UTF-8. One unit
    per homograph; both readings have equally many sentences, at least `min_items`.
    """

    def occurrence(row: dict[str, str]) -> tuple[Item, str]:
        word, text = row["homograph"], row["sentence"]
        start, end = records.number_of(row, "start"), records.number_of(row, "end")
        data = text.encode()
        form = data[start:end].decode(errors="replace")
        if not 0 <= start < end <= len(data) or form.lower() != word.lower():
            raise records.Skip("an offset is not at its word")
        begin = len(data[:start].decode())
        place = (text, begin, begin + len(form))
        return _item(place, unit=word, label=0, group=text), row["wordid"]

    columns = ("homograph", "wordid", "sentence", "start", "end")
    return _two_senses(source, records.tsv(source, columns, occurrence), min_items)


def load_coarsewsd(source: str | Path, *, min_items: int = 8) -> Loaded[Item]:
    """CoarseWSD-20 (Loureiro et al. 2021), as `load_homographs`: one word's `train.data.txt`, with
    its gold file beside it.

    A line is the position of the word, a tab and the tokens; the folder's name is the word.
    """
    word = Path(source).parent.name

    def occurrence(line: str, gold: str) -> tuple[Item, str]:
        position, tab, sentence = line.partition("\t")
        if not tab or not position.isdigit() or not gold.strip().isdigit():
            needed = "a position, a tab and tokens, and a number in the gold file"
            raise ValueError(f"a line needs {needed}; got {line[:40]!r}")
        place = _at_position(sentence, position)
        return _item(place, unit=word, label=0, group=place[0]), gold.strip()

    return _two_senses(source, records.with_gold(source, occurrence), min_items)


def _at_position(sentence: str, position: str) -> Place:
    """A tokenized sentence, and begin and end of the token at a position."""
    tokens = sentence.split()
    if int(position) >= len(tokens):
        raise records.Skip("the position lies outside the sentence")
    return " ".join(tokens), *word_span(tokens, int(position))


def _two_senses(
    source: str | Path, occurrences: Loaded[tuple[Item, str]], min_items: int
) -> Loaded[Item]:
    """Of each word the two most frequent senses, as labels 1 and 0, with equally many sentences,
    each once.
    """
    words: dict[str, dict[str, dict[str, Item]]] = defaultdict(lambda: defaultdict(dict))
    for item, sense in occurrences.items:
        words[item.unit][sense].setdefault(item.text, item)
    items: list[Item] = []
    for senses in words.values():
        frequent = sorted(senses, key=lambda sense: (-len(senses[sense]), sense))[:2]
        n = min(len(senses[sense]) for sense in frequent) if len(frequent) == 2 else 0
        for label, sense in enumerate(reversed(frequent)):
            if n >= min_items:
                items += [replace(item, label=label) for item in list(senses[sense].values())[:n]]
    unused = len(occurrences.items) - len(items)
    reason = "a sense is too rare, or has more sentences than the other"
    skipped = Counter(occurrences.skipped) + Counter({reason: unused})
    return records.parsed(source, items, lambda item: item, skipped=skipped)


def load_wic(source: str | Path) -> Loaded[Item]:
    """Word in Context (Pilehvar and Camacho-Collados 2019): whether a word means the same in two
    sentences (1).

    `train.data.txt` (word, part of speech, positions "2-5", two tokenized sentences; tabs) with
    `train.gold.txt` beside it; or rows as in SuperGLUE (`word`, `sentence1`, `start1`, `end1`, the
    same with 2, `label`; offsets in characters). The group is the word.
    """
    if not Path(source).name.endswith(".data.txt"):
        return records.jsonl(source, _wic_row)
    return records.with_gold(source, _wic_line)


def _wic_line(line: str, gold: str) -> Item:
    fields, answer = line.split("\t"), gold.strip()
    positions = fields[2] if len(fields) == 5 else ""
    if not re.fullmatch(r"\d+-\d+", positions) or answer not in ("T", "F"):
        needed = "5 fields, positions like 2-5, and T or F as gold"
        raise ValueError(f"needs {needed}; got {line[:40]!r}")
    place, other = map(_at_position, fields[3:], positions.split("-"))
    same = {"unit": "same sense", "label": int(answer == "T")}
    return _item(place, group=fields[0], frame=fields[1], other=other, **same)


def _wic_row(row: dict[str, Any]) -> Item:
    label = row.get("label")
    if label in (None, -1):
        raise records.Skip("there is no label")
    if type(label) not in (bool, int) or label not in (0, 1):
        raise ValueError(f"label needs to be 0 or 1, false or true; got {label!r}")
    text, whole = records.text_of, records.whole_of
    place, other = (
        (text(row, f"sentence{n}"), whole(row, f"start{n}"), whole(row, f"end{n}")) for n in (1, 2)
    )
    for sentence, begin, end in (place, other):
        if not 0 <= begin < end <= len(sentence) or not sentence[begin:end].strip():
            raise records.Skip("an offset is not at its word")
    same = {"unit": "same sense", "label": int(label)}
    return _item(place, group=text(row, "word"), other=other, **same)


# ------------------------------------------------------------------------------------------ reading

Rule = Literal["sentence", "word"]

# by a column that no other set has
ITEM_LOADERS: Mapping[str, Callable[[str | Path], Loaded[Item]]] = {
    "sentid": load_winogender,
    "Pronoun-offset": load_gap,
    "homograph": load_homographs,
    "verb_index": load_linzen,
    "coreference_clusters": load_winobias,
    "sentence1": load_wic,
    "label": load_own,  # after those that have a label, too
}
PAIR_LOADERS: Mapping[str, tuple[Callable[[str | Path], Loaded[Pair]], Rule]] = {
    "UID": (load_blimp, "sentence"),
    "case": (load_lm_syneval, "word"),
    "verb_index": (load_linzen_pairs, "word"),
    "sentid": (load_winogender_pairs, "sentence"),
    "occupation(0)": (load_winogender_pairs, "sentence"),
}


def load_items(source: str | Path) -> Loaded[Item]:
    """The items of any source for probes; its name and its first line or row tell the format."""
    if Path(source).name.endswith(".data.txt"):
        first = next(iter(records.lines(source)), "")
        return load_wic(source) if first.count("\t") == 4 else load_coarsewsd(source)
    columns = records.columns_of(source)
    for column, load in ITEM_LOADERS.items():
        if column in columns:
            return load(source)
    if "sentence_good" in columns:
        reason = "they are compared, not probed (the last noun solves 98 % of some)"
        raise ValueError(f"{source} holds minimal pairs: {reason}")
    if columns and re.match(r"\d+ .*\[", columns[0]):
        return load_winobias(source)
    own = "a set of your own has the columns text, label, and word or begin and end"
    said = f"line 1 is of no format known here: {' '.join(columns)[:60]!r}; {own}"
    raise ValueError(f"{source}: {said}")


def load_pairs(source: str | Path) -> tuple[Loaded[Pair], Rule]:
    """The pairs of any source of minimal pairs, and the rule by which they are scored."""
    columns = ["case"] if str(source).endswith(".pickle") else records.columns_of(source)
    for column, (load, rule) in PAIR_LOADERS.items():
        if column in columns:
            return load(source), rule
    start = " ".join(columns)[:60]
    raise ValueError(f"{source} holds no minimal pairs known here: its first line has {start!r}")


def find_sets(
    source: str | Path, n_each: int, *, names: Sequence[str] = tuple(SETS), seed: int = 0
) -> tuple[dict[str, tuple[list[Pair], Rule]], tuple[str, ...]]:
    """The sets in a folder, by name, at most `n_each` pairs per group; and the names of those that
    are not there.

    A file, or a dataset's name, is one set of that name, and `names` is not used. ValueError for a
    source that does not exist, an unknown name, or a damaged file.
    """
    folder = Path(source).expanduser()
    unknown = [name for name in names if name not in SETS]
    if records.is_name(source) or folder.is_file():
        paths = {folder.name: [folder]}
    elif not folder.is_dir():
        raise ValueError(f"data folder {folder} does not exist")
    elif unknown:
        raise ValueError(f"unknown minimal pairs {unknown[0]!r}: there are {', '.join(SETS)}")
    else:
        there = set_paths(folder)
        paths = {name: there[name] for name in names}
    sets = {}
    for name in paths:
        loaded = [load_pairs(path) for path in paths[name]]
        pairs = [pair for file, _ in loaded for pair in file.items]
        if loaded:
            sets[name] = (sample(pairs, n_each, seed=seed), loaded[0][1])
    return sets, tuple(name for name in paths if name not in sets)


def sample(pairs: Sequence[Pair], n_each: int, *, seed: int = 0) -> list[Pair]:
    """At most `n_each` random pairs of every group, in their order."""
    generator = torch.Generator().manual_seed(seed)
    groups: dict[str, list[int]] = defaultdict(list)
    for i, pair in enumerate(pairs):
        groups[pair.group].append(i)
    drawn = [
        members[j]
        for members in groups.values()
        for j in torch.randperm(len(members), generator=generator)[:n_each].tolist()
    ]
    return [pairs[i] for i in sorted(drawn)]
