"""Records of public sets: rows of a file (JSON, tab-separated, CSV; packed or not) or of a dataset.

A malformed record raises a `ValueError` that names source and line. One that is well formed but
cannot be used raises `Skip` in its parser, and is counted under its reason.
"""

import csv
import functools
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tsae_lab import files
from tsae_lab.data import tables

Record = TypeVar("Record")
Line = TypeVar("Line")


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[Record]):
    """What a source holds, and how many of its lines were left out, by reason."""

    items: tuple[Record, ...]
    skipped: Mapping[str, int]


class Skip(Exception):
    """A line is well formed but cannot be used; the text is the reason."""


# ------------------------------------------------------------------------------------------ records


def parsed(
    source: str | Path,
    lines: Iterable[Line],
    parse: Callable[[Line], Record],
    *,
    first: int = 1,
    skipped: Mapping[str, int] | None = None,
) -> Loaded[Record]:
    """`parse` of every line, the first being number `first`; `skipped` were left out before.

    Blank lines are none. ValueErrors of `parse` get source and line number; ValueError also where
    no line can be used.
    """
    items, reasons = [], Counter(skipped or {})
    for number, line in enumerate(lines, first):
        if not line or (isinstance(line, str) and not line.strip()):
            continue
        try:
            items.append(parse(line))
        except Skip as reason:
            reasons[str(reason)] += 1
        except ValueError as error:
            raise ValueError(f"{source}, line {number}: {error}") from error
    if not items:
        told = "; ".join(f"{reason} ({n})" for reason, n in reasons.items()) or "it is empty"
        raise ValueError(f"{source} has no usable line: {told}")
    return Loaded(items=tuple(items), skipped=dict(reasons))


def jsonl(source: str | Path, parse: Callable[[dict[str, Any]], Record]) -> Loaded[Record]:
    """`parse` of every row of JSON Lines, or of a dataset."""
    if is_name(source):
        return parsed(source, _dataset_rows(str(source)), parse)
    return parsed(source, lines(source), lambda line: parse(_object(line)))


def _object(line: str) -> dict[str, Any]:
    row = files.json_value(line)
    if not isinstance(row, dict):
        raise ValueError(f"a line needs to be a JSON object; got {line[:40]!r}")
    return row


def tsv(
    source: str | Path, columns: Sequence[str], parse: Callable[[dict[str, str]], Record]
) -> Loaded[Record]:
    """`parse` of every row below a header, its `columns` as text.

    Of tab-separated text (in quotes where the header is, or all fields that begin with one are), of
    .csv, JSON or a dataset.
    """
    return rows(source, columns, lambda row: parse(_as_text(row, columns)))


def rows(
    source: str | Path, columns: Sequence[str], parse: Callable[[dict[str, Any]], Record]
) -> Loaded[Record]:
    """`parse` of every row of a table, JSON or a dataset that has these columns."""
    if is_name(source) or _first(source).startswith("{"):
        return jsonl(source, lambda row: parse(_with(row, columns)))
    names, *below = _fields(source) or [[]]
    missing = [name for name in columns if name not in names]
    if missing:
        raise ValueError(f"{source}, line 1: {_needed(columns, missing)}")

    def row(values: list[str]) -> Record:
        if len(values) != len(names):
            raise ValueError(f"needs {len(names)} fields; got {len(values)}")
        return parse(dict(zip(names, values, strict=True)))

    return parsed(source, below, row, first=2)


def _fields(source: str | Path) -> list[list[str]]:
    """The fields of every line; where fields are in quotes, of every row, blank lines left out."""
    there, comma = lines(source), tables.ending(Path(source)) == ".csv"
    if comma or _is_quoted(there):
        text = io.StringIO("\n".join(there), newline="")
        return [row for row in csv.reader(text, delimiter="," if comma else "\t") if row]
    return [line.split("\t") if line.strip(" ") else [] for line in there]


def _is_quoted(there: Sequence[str]) -> bool:
    """Whether quotes are those of a table: the header's, or as pandas writes a text that has some.

    A sentence that begins with a quotation (GAP, as published) is not.
    """
    if there and there[0].startswith('"'):
        return True
    begun = [field for line in there for field in line.split("\t") if field.startswith('"')]
    whole = all(re.fullmatch('"([^"]|"")*"', field) for field in begun)
    return whole and any('""' in field[1:-1] for field in begun)


def _with(row: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    missing = [name for name in columns if row.get(name) is None]
    if missing:
        raise ValueError(_needed(columns, missing))
    return row


def _first(source: str | Path) -> str:
    """The first line that is not blank."""
    return next(filter(str.strip, lines(source)), "")


def _needed(columns: Sequence[str], missing: Sequence[str]) -> str:
    return f"needs the columns {', '.join(columns)}; missing: {', '.join(missing)}"


def _as_text(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, str]:
    """The columns as a table of text would have them."""
    wrong = [name for name in columns if not isinstance(row[name], str | int | float)]
    if wrong:
        got = f"{row[wrong[0]]!r:.60}"
        raise ValueError(f"needs a text or a number in {', '.join(wrong)}; got {got}")
    texts = {name: str(row[name]) for name in columns}
    return {n: text.upper() if isinstance(row[n], bool) else text for n, text in texts.items()}


def with_gold(source: str | Path, parse: Callable[[str, str], Record]) -> Loaded[Record]:
    """`parse` of every line of `*.data.txt` and the same line of `*.gold.txt` beside it."""
    path = Path(source)
    if not path.name.endswith(".data.txt"):
        raise ValueError(f"{path} needs a name that ends in .data.txt, to find its .gold.txt")
    gold = path.with_name(path.name.replace(".data.txt", ".gold.txt"))
    data, labels = lines(path), lines(gold)
    if len(data) != len(labels):
        raise ValueError(f"{path} has {len(data)} lines and {gold} {len(labels)}: one is truncated")
    return parsed(path, zip(data, labels, strict=True), lambda both: parse(*both))


# ------------------------------------------------------------------------------------------- fields


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
    """A whole number written as text; 12.0 is one, as pandas writes it."""
    if not re.fullmatch(r"-?\d+(\.0)?", row[name]):
        raise ValueError(f"needs a whole number {name}; got {row[name]!r}")
    return int(float(row[name]))


def truth_of(row: Mapping[str, str], name: str) -> bool:
    """Whether the text is TRUE, in letters of any size; FALSE is the only other."""
    if row[name].upper() not in ("TRUE", "FALSE"):
        raise ValueError(f"needs TRUE or FALSE in {name}; got {row[name]!r}")
    return row[name].upper() == "TRUE"


def columns_of(source: str | Path) -> list[str]:
    """Names of the fields in the first line or row; of other text, that line split at its tabs."""
    if is_name(source):
        return list(next(iter(_dataset_rows(str(source))), {}))
    header = _first(source)
    if header.startswith("{"):
        return parsed(source, [header], lambda line: list(_object(line))).items[0]
    delimiter = "," if tables.ending(Path(source)) == ".csv" else "\t"
    return [field.strip('"') for field in header.split(delimiter)]


def lines(source: str | Path) -> list[str]:
    """The lines of a UTF-8 file, without their ends and without an empty last one; of .json and
    .parquet the rows, one per line.
    """
    path, ending = Path(source), tables.ending(Path(source))
    if ending in (".json", ".parquet"):
        there = tables.json_rows(path) if ending == ".json" else tables.parquet_rows(path)
        return [json.dumps(row, default=str) for row in there]
    split = files.read_text(Path(source)).split("\n")  # splitlines knows more ends than that
    return split[:-1] if split[-1] == "" else split


# ----------------------------------------------------------------------------------------- datasets

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(:\w[\w.-]*){0,2}")
_ENDINGS = "jsonl ndjson json tsv csv txt dev test parquet gz zst zip bz2 xz".split()  # noqa: SIM905
CONVERTED = "refs/convert/parquet"  # revision with the hub's tables of a dataset that is a script


def is_name(source: str | Path) -> bool:
    """Whether this is a dataset's name, `owner/dataset[:configuration[:split]]`, not a file's: none
    of that name exists, and it does not end as files do.
    """
    name = str(source)
    is_file = name.lower().endswith(tuple(f".{ending}" for ending in _ENDINGS))
    return bool(_NAME.fullmatch(name)) and not is_file and not Path(name).exists()


def dataset_table(name: str) -> Any:
    """The table of a dataset's split; without a network, from the hub's cache.

    The cache does not serve datasets that are scripts. ValueError in one line where there is no
    such dataset, configuration or split, or it cannot be fetched.
    """
    repository, configuration, split, *_ = [*name.split(":"), "", ""]
    try:
        by_split = _fetched(repository, configuration or None)
    except Exception as error:  # of the hub, the network, the tables or the file system
        reason = " ".join(str(error).split())[:300]
        told = f"there is no file {name}, and no dataset of that name could be read: {reason}"
        raise ValueError(told) from error
    return tables.chosen_split(name, by_split, split)


@functools.lru_cache(maxsize=8)
def _dataset_rows(name: str) -> tuple[dict[str, Any], ...]:
    return tuple(dict(row) for row in dataset_table(name))


def _fetched(repository: str, configuration: str | None) -> Any:
    """All splits of a dataset, by name."""
    import datasets  # takes a second, and is needed here only

    try:
        return datasets.load_dataset(repository, configuration)
    except (RuntimeError, ValueError) as error:
        # It is a script, or a configuration of which the cache holds tables only.
        if not re.search("script|find cache", str(error)):
            raise
        return datasets.load_dataset(repository, data_dir=configuration, revision=CONVERTED)
