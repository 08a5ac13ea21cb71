"""Sets that people bring: rows of their own for probes, and where in a folder public sets lie."""

import io
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from probes import Item
from tsae_lab import files
from tsae_lab.data import records, tables
from tsae_lab.data.records import Loaded

SETS = {"blimp": "UID", "lm_syneval": "case", "winogender": "occupation(0)"}  # of minimal pairs
LAYOUT = (
    "wanted are blimp/*.jsonl, lm_syneval/*.jsonl or *.pickle, winogender/templates.tsv, or clones "
    "of their repositories, in the folder, below it, or the folder itself"
)
ITEM_SETS = {  # for probes: the names of a set's files, and a column; WinoBias has none
    "WinoBias": ("*_stereotyped_type1.txt.*", ""), "Winogender": ("all_sentences.tsv", "sentid"),
    "GAP": ("gap-*.tsv", "Pronoun-offset"), "homographs": ("train/*.tsv train.tsv", "homograph"),
}  # fmt: skip
ITEM_LAYOUT = (
    "wanted are pro_ and anti_stereotyped_type1.txt.dev beside the lists of occupations (WinoBias),"
    " all_sentences.tsv (Winogender), gap-*.tsv (GAP), train/*.tsv (Wikipedia homographs), in the "
    "folder or below it; or one file"
)
DEEP = 5  # folders, the one that is given among them
TWICE = ("old-templates", "EMNLP2018")  # in a clone of LM_syneval, beside data/templates


# ------------------------------------------------------------------------------- sets in a folder


def set_paths(folder: Path) -> dict[str, list[Path]]:
    """The files of each set of minimal pairs in a folder, a clone, its parent or its data folder.

    A file whose rows are pairs (`sentence_good`) is of the set that a folder above it is named
    after, as blimp or LM_syneval-master, else of the one whose column it has. ValueError for one
    that cannot be read, in a folder of such a name.
    """
    paths: dict[str, list[Path]] = {name: [] for name in SETS}
    around = folder.absolute().parts[-3:]
    for path in _below(folder):
        parts = (*around, *path.relative_to(folder).parts[:-1])
        named = (n for above in reversed(parts) for n in SETS if _letters(n) in _letters(above))
        name = _set_of(path, next(named, ""))
        if name:
            paths[name].append(path)
    paths["lm_syneval"] = _each_once(paths["lm_syneval"])
    return paths


def _set_of(path: Path, named: str) -> str:
    """The set of minimal pairs that a file is of, "" for none."""
    if path.suffix == ".pickle":
        return named if named == "lm_syneval" and any(_sentence_tuples(path)) else ""
    if tables.ending(path) != ".jsonl" and path.name != "templates.tsv":
        return ""
    try:
        columns = records.columns_of(path)
    except ValueError:
        if named:
            raise
        return ""
    if path.name == "templates.tsv":
        return "winogender" if SETS["winogender"] in columns else ""
    own = (name for name, column in SETS.items() if column in columns)
    return (named or next(own, "")) if "sentence_good" in columns else ""


def _each_once(paths: list[Path]) -> list[Path]:
    """Of pickles of one name those of the newest templates."""
    taken: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: sum(name in TWICE for name in path.parts)):
        taken.setdefault(path.name if path.suffix == ".pickle" else str(path), path)
    return sorted(taken.values())


def item_paths(folder: Path) -> tuple[str, list[Path]]:
    """The one probing set in a folder, a clone, its parent or its data folder: name and files.

    ValueError, with the wanted layout, where there is none, and where there are several.
    """
    sets: dict[str, list[Path]] = {}
    for path in _below(folder):
        for name, (patterns, column) in ITEM_SETS.items():
            named = any(path.match(pattern) for pattern in patterns.split())
            if named and (not column or column in records.columns_of(path)):
                sets.setdefault(name, []).append(path)
    if len(sets) > 1:
        places = (f"{name} in {paths[0].parent}" for name, paths in sets.items())
        raise ValueError(f"{folder} holds several sets: {', '.join(places)}; give one of them")
    if not sets:
        raise ValueError(f"{folder} holds no probing set; {ITEM_LAYOUT}")
    return next(iter(sets.items()))


def _below(folder: Path) -> Iterator[Path]:
    """The files in a folder and some folders below it, less hidden and generated (`_site`) ones."""
    for depth in range(DEEP):
        for path in sorted(folder.glob("*/" * depth + "*")):
            parts = path.relative_to(folder).parts
            if not any(name.startswith((".", "_")) for name in parts) and path.is_file():
                yield path


def _letters(name: str) -> str:
    return re.sub("[^a-z]", "", name.casefold())


# -------------------------------------------------------------------------- LM_syneval's pickles


class _Plain(pickle.Unpickler):
    """Builds texts, lists, tuples and dictionaries; a pickle that would call anything is refused:
    nothing in it is run.
    """

    def find_class(self, module: str, name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def pickled_pairs(path: Path) -> list[dict[str, str]]:
    """The pairs in a pickle of LM_syneval's templates, as rows of `sentence_good`, `sentence_bad`
    and `case`, the file's name.

    It holds, per condition, a list of (grammatical, ungrammatical); those of three sentences
    (polarity items) are left out. ValueError for another pickle, and for one without a pair.
    """
    pairs = list(_sentence_tuples(path))
    if not pairs:
        raise ValueError(f"{path} holds no pairs of sentences")
    return [{"sentence_good": a, "sentence_bad": b, "case": path.stem} for a, b in pairs]


def _sentence_tuples(path: Path) -> Iterator[Sequence[str]]:
    data = files.read_bytes(path)
    try:
        conditions = _Plain(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"{path} is no pickle of plain texts: {error}") from None
    if not isinstance(conditions, dict):
        raise ValueError(f"{path} needs a dictionary of pairs; got {type(conditions).__name__}")
    for rows in conditions.values():
        for row in rows if isinstance(rows, list | tuple) else ():
            is_pair = isinstance(row, list | tuple) and len(row) == 2
            if is_pair and all(isinstance(sentence, str) for sentence in row):
                yield row


# ----------------------------------------------------------------------------- rows of one's own


def load_own(source: str | Path) -> Loaded[Item]:
    """An own set, any table or dataset: `text`, `label`, and the word that is read out at: `begin`
    and `end` in characters, or `word`, which is in the text once.

    The label has two values, the first in order being 0. `group` (default: the text) is never in
    both folds; `unit` (default: own) names what is probed apart.
    """
    drawn = records.rows(source, ("text", "label"), _own_row)
    values = sorted({label for _, label in drawn.items})
    if len(values) != 2:
        got = ", ".join(values[:5])
        raise ValueError(f"{source} needs two labels; got {len(values)}: {got}")
    items = [Item(**fields, label=values.index(label)) for fields, label in drawn.items]
    return Loaded(items=tuple(items), skipped=drawn.skipped)


def _own_row(row: dict[str, Any]) -> tuple[dict[str, Any], str]:
    text, word = str(row["text"]), row.get("word")
    if row.get("begin") not in (None, "") and row.get("end") not in (None, ""):
        begin, end = (int(float(row[name])) for name in ("begin", "end"))
    elif word:
        if text.count(str(word)) != 1:
            raise records.Skip("the word is not in the text once")
        begin = text.index(str(word))
        end = begin + len(str(word))
    else:
        raise ValueError("needs begin and end, or word")
    if not 0 <= begin < end <= len(text) or not text[begin:end].strip():
        raise records.Skip("an offset is not at its word")
    group, unit = str(row.get("group") or text), str(row.get("unit") or "own")
    return {"text": text, "begin": begin, "end": end, "group": group, "unit": unit}, str(
        row["label"]
    )
