"""Records of public sets: the lines of a file, its rows as JSON Lines or tab-separated, or the rows
of a dataset.

A malformed record raises a `ValueError` that names source and line; one that is well formed and
cannot serve raises `Skip` in its parser, and is counted under its reason.
"""

import csv
import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from probes import Item, Pair
from tsae_lab import files

Case = TypeVar("Case", Item, Pair)
Line = TypeVar("Line")
Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[Case]):
    """What a source holds, and how many lines were left out, by reason."""

    items: tuple[Case, ...]
    skipped: Mapping[str, int]


class Skip(Exception):
    """A line that is well formed and cannot serve; its text is the reason."""


def columns_of(path: Path) -> list[str]:
    """What the first line or row calls its fields; of another file, the first line itself, cut at
    its tabs.
    """
    if is_name(path):
        return list(next(iter(rows(str(path))), {}))
    begin = next(iter(lines(path)), "")
    if not begin.startswith("{"):
        return [field.strip('"') for field in begin.split("\t")]
    try:
        return list(json.loads(begin))
    except ValueError as error:
        raise ValueError(f"{path}, line 1: {error}") from error


def lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, without their ends and without an empty last one."""
    # not splitlines: running text holds other separators
    *whole, rest = files.read_text(path).split("\n")
    return [*whole, rest] if rest else whole


def collect(
    path: Path, numbered: Iterable[tuple[int, Line]], parse: Callable[[Line], Row]
) -> tuple[Path, list[Row], Counter[str]]:
    """`parse` of every numbered line; its ValueErrors get file and line, its Skips are counted."""
    found: list[Row] = []
    skipped: Counter[str] = Counter()
    for number, line in numbered:
        try:
            found.append(parse(line))
        except Skip as reason:
            skipped[str(reason)] += 1
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return path, found, skipped


def loaded(path: Path, items: Sequence[Case], skipped: Counter[str]) -> Loaded[Case]:
    """What was collected; ValueError, with the reasons, where nothing was."""
    if not items:
        reasons = (
            "; ".join(f"{reason} ({n})" for reason, n in skipped.items() if n) or "it is empty"
        )
        raise ValueError(f"{path} has no usable line: {reasons}")
    return Loaded(items=tuple(items), skipped={reason: n for reason, n in skipped.items() if n})


def jsonl(
    path: Path, parse: Callable[[dict[str, Any]], Row]
) -> tuple[Path, list[Row], Counter[str]]:
    """`parse` of every row: of JSON Lines, or of a dataset."""
    if is_name(path):
        return collect(path, enumerate(rows(str(path)), 1), parse)

    def parsed(line: str) -> Row:
        row = json.loads(line)  # its error is a ValueError
        if not isinstance(row, dict):
            raise ValueError(f"a line needs to be a JSON object; got {line[:40]!r}")
        return parse(row)

    return collect(path, enumerate(lines(path), 1), parsed)


def tsv(
    path: Path, columns: Sequence[str], parse: Callable[[dict[str, str]], Row]
) -> tuple[Path, list[Row], Counter[str]]:
    """Rows below a header; fields in quotes where the header has them, else taken as they are. Or
    JSON Lines.
    """
    if is_name(path) or next(iter(lines(path)), "").startswith("{"):
        return jsonl(path, lambda row: parse(_as_text(row, columns)))
    head, *rows = lines(path) or [""]
    quoted = head.startswith('"')

    def fields(line: str) -> list[str]:
        return next(csv.reader([line], delimiter="\t")) if quoted else line.split("\t")

    names = fields(head) if head else []
    missing = [name for name in columns if name not in names]
    if missing:
        raise ValueError(
            f"{path}, line 1: needs the columns {', '.join(columns)}; missing: {', '.join(missing)}"
        )

    def parsed(line: str) -> Row:
        found = fields(line)
        if len(found) != len(names):
            raise ValueError(f"needs {len(names)} fields; got {len(found)}")
        return parse(dict(zip(names, found, strict=True)))

    return collect(path, enumerate(rows, 2), parsed)


def _as_text(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, str]:
    """The columns as a table of text would have them."""
    missing = [name for name in columns if row.get(name) is None]
    if missing:
        raise ValueError(f"needs the columns {', '.join(columns)}; missing: {', '.join(missing)}")
    wrong = [name for name in columns if not isinstance(row[name], str | int | float)]
    if wrong:
        raise ValueError(
            f"needs a text or a number in {', '.join(wrong)}; got {row[wrong[0]]!r:.60}"
        )
    return {
        name: str(row[name]).upper() if isinstance(row[name], bool) else str(row[name])
        for name in columns
    }


def with_gold(path: Path) -> list[tuple[int, tuple[str, str]]]:
    """Numbered lines of `*.data.txt`, each with that of `*.gold.txt` beside it."""
    if not path.name.endswith(".data.txt"):
        raise ValueError(
            f"{path} needs a name that ends in .data.txt, so that its .gold.txt is found"
        )
    gold = path.with_name(path.name.replace(".data.txt", ".gold.txt"))
    ours, theirs = lines(path), lines(gold)
    if len(ours) != len(theirs):
        raise ValueError(f"{path} has {len(ours)} lines and {gold} {len(theirs)}: one is truncated")
    return list(enumerate(zip(ours, theirs, strict=True), 1))


def text_of(row: Mapping[str, Any], name: str) -> str:
    """A text that is not empty."""
    if not isinstance(row.get(name), str) or not row[name]:
        raise ValueError(f"needs a text {name}; got {row.get(name)!r}")
    return row[name]


def whole_of(row: Mapping[str, Any], name: str) -> int:
    """A whole number."""
    if type(row.get(name)) is not int:
        raise ValueError(f"needs a whole number {name}; got {row.get(name)!r}")
    return row[name]


def number_of(row: Mapping[str, str], name: str) -> int:
    """A whole number written as text."""
    if not re.fullmatch(r"-?\d+", row[name]):
        raise ValueError(f"needs a whole number {name}; got {row[name]!r}")
    return int(row[name])


def truth_of(row: Mapping[str, str], name: str) -> bool:
    """TRUE or FALSE."""
    if row[name] not in ("TRUE", "FALSE"):
        raise ValueError(f"needs TRUE or FALSE in {name}; got {row[name]!r}")
    return row[name] == "TRUE"


NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(:\w[\w.-]*){0,2}")
FILE_ENDINGS = (
    ".jsonl",
    ".json",
    ".tsv",
    ".csv",
    ".txt",
    ".dev",
    ".test",
    ".parquet",
    ".gz",
    ".zip",
    ".bz2",
    ".xz",
)
SPLITS = ("train", "validation", "test")
CONVERTED = "refs/convert/parquet"  # the hub's own copy of a dataset that is a script: tables in configuration/split/


def is_name(source: str | Path) -> bool:
    """Whether this is a dataset's name: of that form, not ending as files do, and no file or folder
    here.
    """
    name = str(source)
    return (
        bool(NAME.fullmatch(name))
        and not name.lower().endswith(FILE_ENDINGS)
        and not Path(name).exists()
    )


@functools.lru_cache(maxsize=8)
def rows(name: str) -> tuple[dict[str, Any], ...]:
    """The rows of a dataset's split; what was fetched once is read from the hub's cache where there
    is no way to it.

    (Not of a dataset that is published as a script: the library does not find its converted tables
    there again.) ValueError in one line where it cannot be had: no such dataset, configuration or
    split, or no way to the hub.
    """
    import datasets  # takes a second, and is needed here only

    repository, configuration, split, *_ = [*name.split(":"), "", ""]
    try:
        try:
            found = datasets.load_dataset(repository, configuration or None)
        except (
            RuntimeError,
            ValueError,
        ) as error:  # a script; or one whose tables alone are in the cache
            if not re.search("script|find cache", str(error)):
                raise
            found = datasets.load_dataset(
                repository, data_dir=configuration or None, revision=CONVERTED
            )
    except (
        Exception
    ) as error:  # of many kinds: of the hub, the network, the tables, the file system
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"there is no file {name}, and no dataset of that name could be read: {reason}"
        ) from error
    there = [str(part) for part in found]
    part = next((part for part in ([split] if split else [*SPLITS, *there]) if part in there), None)
    if part is None:
        raise ValueError(f"{name} has no split {split}: there are {', '.join(there)}")
    return tuple(dict(row) for row in found[part])
