"""Rows of the files that people keep data in: JSON, JSON Lines, CSV, TSV, Parquet, `datasets`.

Each may be packed as .gz or .zst. Bad input is a `ValueError` of one line that names the file.
"""

import csv
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tsae_lab import files

SAVED = ("dataset_dict.json", "state.json")  # in a folder of `datasets.save_to_disk`
ABOUT = ("dataset_info.json", "dataset_infos.json")  # beside a dataset's tables
SPLITS = ("train", "validation", "test")  # that is taken where none is named


def ending(path: Path) -> str:
    """The ending that says what a file holds, in small letters: ".json" of a.json and a.json.gz."""
    bare = path.with_suffix("") if path.suffix.lower() in files.PACKED else path
    return bare.suffix.lower()


def column_of(path: Path, column: str) -> list[str]:
    """The texts in one column of a table, row by row, nulls left out.

    Rows of JSON may also be texts without a name; a JSON object is one row, a column per name
    (lists, or objects of values as pandas writes them), or holds the rows in the only list of
    objects that it has.
    """
    try:
        cells = list(READERS[ending(path)](path, column))
    except (ValueError, KeyError, OSError, csv.Error) as error:
        told = " ".join(str(error).split())
        raise ValueError(told if told.startswith(str(path)) else f"{path}: {told}") from error
    texts = [cell for cell in cells if cell is not None]
    wrong = next((cell for cell in texts if not isinstance(cell, str)), None)
    if wrong is not None:
        raise ValueError(f"{path}: the column {column!r} needs texts; got {wrong!r:.40}")
    return texts


def cell_of(row: Any, column: str, number: int) -> Any:
    """A row's value in a column; a row may be the text itself. ValueError for other rows."""
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise ValueError(f"a row needs to be an object or a text; got {row!r:.40} as row {number}")
    check_column(column, row, f"row {number} has ")
    return row[column]


def check_column(column: str, names: Iterable[str], where: str = "") -> None:
    """ValueError unless the column is one of the names."""
    if column not in (names := list(names)):
        there = f"there are {', '.join(map(str, names))}" if names else "there is none"
        raise ValueError(f"{where}no column {column!r}: {there}; give --column")


def json_rows(path: Path) -> list[Any]:
    """The rows of JSON or JSON Lines, whichever the file is: many .json files are lines.

    An object alone is one row. ValueError names the line that is no JSON.
    """
    text = files.read_text(path)
    if text.lstrip()[:1] in ("[", "{"):
        try:
            whole = files.json_value(text)
            return whole if isinstance(whole, list) else [whole]
        except ValueError as error:
            if text.lstrip().startswith("["):
                raise ValueError(f"{path}: {error}") from error
    parsed = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                parsed.append(files.json_value(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return parsed


def _json_cells(path: Path, column: str) -> list[Any]:
    rows = json_rows(path)
    if len(rows) == 1 and isinstance(rows[0], dict):
        (whole,) = rows
        inside = [value for value in whole.values() if _is_rows(value)]
        if isinstance(whole.get(column), list | dict):
            cells = whole[column]
            return list(cells.values()) if isinstance(cells, dict) else cells
        if column not in whole and len(inside) == 1:
            rows = inside[0]
    return [cell_of(row, column, number) for number, row in enumerate(rows, 1)]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _csv_cells(path: Path, column: str) -> list[str]:
    """Fields may be in quotes, and then hold line breaks; an empty one is an empty text."""
    return list(_in_column(quoted_rows(files.read_text(path), ","), column))


def _tsv_cells(path: Path, column: str) -> list[str]:
    """As `_csv_cells`; where the quotes are not a table's, all of them belong to the text."""
    text = files.read_text(path)
    try:
        return list(_in_column(quoted_rows(text, "\t"), column))
    except csv.Error:
        plain = ((n, line.split("\t")) for n, line in enumerate(text.split("\n"), 1) if line)
        return list(_in_column(plain, column))


def quoted_rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line and fields of every row that is not empty; `csv.Error` where a quote
    is opened inside a field, or not closed: a lenient reader takes all rows below for one field.
    """
    csv.field_size_limit(sys.maxsize)  # else 128 kB
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise csv.Error(f"the row that begins in line {line}: {error}") from None
        if fields:
            yield line, fields


def _in_column(rows: Iterable[tuple[int, list[str]]], column: str) -> Iterator[str]:
    """The cells of the column that the first row names."""
    names: list[str] = []
    for line, fields in rows:
        if not names:
            check_column(column, names := fields)
        elif len(fields) != len(names):
            raise ValueError(f"line {line} needs {len(names)} fields; got {len(fields)}")
        else:
            yield fields[names.index(column)]


def _parquet_cells(path: Path, column: str) -> list[Any]:
    file = _parquet(path)
    check_column(column, file.schema_arrow.names)
    return file.read(columns=[column])[column].to_pylist()


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a Parquet file; ValueError in one line where it is damaged or none."""
    try:
        return _parquet(path).read().to_pylist()
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def _parquet(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    return parquet.ParquetFile(pyarrow.BufferReader(files.read_bytes(path)))


READERS: Mapping[str, Callable[[Path, str], Iterable[Any]]] = {
    ".jsonl": _json_cells,
    ".ndjson": _json_cells,
    ".json": _json_cells,
    ".csv": _csv_cells,
    ".tsv": _tsv_cells,
    ".parquet": _parquet_cells,
}


# ----------------------------------------------------------------------------------------- datasets


def is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in SAVED)


def saved_texts(folder: Path, column: str) -> list[str]:
    """The texts of a folder of `datasets.save_to_disk`; of several splits the training split."""
    return table_texts(str(folder), saved_table(folder), column)


def saved_table(folder: Path) -> Any:
    """The table of a folder of `datasets.save_to_disk`; of several splits the training split."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # of the library, the tables or the file system
        raise ValueError(f"{folder} cannot be read: {' '.join(str(error).split())}") from error
    return chosen_split(str(folder), loaded, "")


def chosen_split(name: str, loaded: Any, split: str) -> Any:
    """The table of a split, by default training's; `loaded` is one table or one per split."""
    if not isinstance(loaded, dict):
        return loaded
    wanted = [split] if split else [*SPLITS, *loaded]
    chosen = next((part for part in wanted if part in loaded), None)
    if chosen is None:
        raise ValueError(f"{name} has no split {split}: there are {', '.join(loaded)}")
    return loaded[chosen]


def table_texts(name: str, table: Any, column: str) -> list[str]:
    """The texts in one column of a table of `datasets`, nulls left out."""
    try:
        check_column(column, table.column_names)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    texts = [text for text in table[column] if text is not None]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}: the column {column!r} needs texts")
    return texts
