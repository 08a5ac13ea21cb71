"""Sets that people bring: rows of their own for probes, and where in a folder public sets lie."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from probes import Item
from tsae_lab.data import records
from tsae_lab.data.records import Loaded

# of minimal pairs: the files of a set, somewhere below a folder whose name has that of the set
SETS = {"blimp": "*.jsonl", "lm_syneval": "*.jsonl", "winogender": "templates.tsv"}
LAYOUT = (
    "wanted are blimp/*.jsonl, lm_syneval/*.jsonl, winogender/templates.tsv, or clones of their "
    "repositories, in the folder, below it, or the folder itself"
)
DEEP = 4  # folders below the one that is given


def set_paths(folder: Path) -> dict[str, list[Path]]:
    """The files of each set in a folder: in one of that name, as blimp or winogender-schemas, in a
    clone's data folder too; the folder may be the clone or its data folder.
    """
    paths: dict[str, list[Path]] = {name: [] for name in SETS}
    around = folder.absolute().parts[-2:]
    for path in sorted({*_below(folder, "*.jsonl"), *_below(folder, "templates.tsv")}):
        parts = (*around, *path.relative_to(folder).parts[:-1])
        named = (
            name for part in reversed(parts) for name in SETS if _letters(name) in _letters(part)
        )
        name = next(named, None)
        if name is not None and path.match(SETS[name]):
            paths[name].append(path)
    return paths


def _below(folder: Path, pattern: str) -> Iterator[Path]:
    for depth in range(DEEP):
        yield from folder.glob("*/" * depth + pattern)


def _letters(name: str) -> str:
    return re.sub("[^a-z]", "", name.casefold())


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
