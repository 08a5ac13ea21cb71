"""Documents of large texts, one after another: a corpus is never all in memory.

Lines, row groups and files that cannot be read end the reading, or are skipped and counted.
"""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsae_lab import files
from tsae_lab.data import records, tables, texts

STREAMED_BYTES = 256 << 20  # a text on disk from which on it is read as a stream
PACKED_TIMES = 4  # how much larger a packed file is when it is unpacked, about
LONG_BYTES = 64 << 20  # a text file from which on it is read in documents of PIECE characters
PIECE = 8_000
LINE_BYTES = 1 << 20  # of a line of a long text that are read at once
ON_BAD = ("stop", "skip")
LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, kw_only=True)
class Left:
    """What was skipped: how many of each kind, and the first one's error."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """One line for the user; "" where nothing was skipped."""
        if not self.counts:
            return ""
        n = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
        return f"{n} could not be read and are left out; the first: {self.first[0]}"


def is_large(name: str) -> bool:
    """Whether a text is read as a stream: 256 MB or more, packed files counted fourfold."""
    if name in texts.CORPORA:
        return False
    path = Path(name).expanduser()
    if not path.exists():
        return records.is_name(name) and _table_bytes(name) >= STREAMED_BYTES
    inside = path.rglob("*") if tables.is_saved(path) else texts.files_at(path)
    return sum(map(_weight, inside)) >= STREAMED_BYTES


def _table_bytes(name: str) -> int:
    return int(records.dataset_table(name).data.nbytes)


def _weight(path: Path) -> int:
    times = PACKED_TIMES if path.suffix.lower() in files.PACKED else 1
    return times * path.stat().st_size


def each_document(name: str, column: str, on_bad: str, left: Left) -> Iterator[str]:
    """The documents of a file, a folder, a saved dataset or a dataset's name, as
    `texts.documents_at` has them.

    A text file of 64 MB or more is cut into documents of about 8,000 characters. What cannot be
    read raises ValueError, or with `on_bad` "skip" is counted in `left`.
    """
    path = Path(name).expanduser()
    if not path.exists():
        yield from _rows_of(name, records.dataset_table(name), column)
        return
    if tables.is_saved(path):
        yield from _rows_of(name, tables.saved_table(path), column)
        return
    for file in texts.files_at(path):
        if tables.ending(file) in LINES:
            yield from _of_lines(file, column, on_bad, left)
            continue
        reader = _of_parquet if tables.ending(file) == ".parquet" else _of_other
        try:
            yield from reader(file, column)
        except ValueError as error:
            _skip("files", error, on_bad, left)


def _skip(kind: str, error: ValueError, on_bad: str, left: Left) -> None:
    if on_bad != "skip":
        raise error
    left.counts[kind] += 1
    left.first.append(" ".join(str(error).split())) if not left.first else None


def _of_lines(path: Path, column: str, on_bad: str, left: Left) -> Iterator[str]:
    """Texts of JSON Lines, a line at a time."""
    try:
        for number, line in enumerate(_lines(path), 1):
            try:
                document = _of_line(path, number, line, column)
            except ValueError as error:
                _skip("lines", error, on_bad, left)
                continue
            if document is not None:
                yield document
    except (OSError, EOFError) as error:  # a packed file that ends too early, say
        told = f"{path} cannot be read to its end: {' '.join(str(error).split())}"
        _skip("files", ValueError(told), on_bad, left)


def _of_line(path: Path, number: int, line: bytes, column: str) -> str | None:
    where = f"{path}, line {number}"
    text = files.decode_text(line, where)
    if not text.strip():
        return None
    try:
        document = tables.cell_of(files.json_value(text.removeprefix("\ufeff")), column, number)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if document is not None and not isinstance(document, str):
        raise ValueError(f"{where}: the column {column!r} needs texts; got {document!r:.40}")
    return document


def _lines(path: Path) -> Iterator[bytes]:
    with opened(path) as file:
        yield from file


def opened(path: Path) -> io.BufferedReader:
    """A file to read bytes from, unpacked where its name ends in .gz or .zst."""
    from pyarrow import input_stream  # takes half a second, and is needed here only

    try:
        return io.BufferedReader(input_stream(str(path)), 1 << 20)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None


def _of_parquet(path: Path, column: str) -> Iterator[str]:
    """Texts of a Parquet file, a batch of rows at a time; of a packed one all at once."""
    from pyarrow import parquet

    if path.suffix.lower() in files.PACKED:
        yield from tables.column_of(path, column)
        return
    try:
        file = parquet.ParquetFile(str(path), memory_map=True)
        tables.check_column(column, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=1_000, columns=[column]):
            yield from _texts_among(path, column, batch.column(0).to_pylist())
    except (OSError, KeyError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ValueError(told if told.startswith(str(path)) else f"{path}: {told}") from error


def _texts_among(where: str | Path, column: str, cells: list[Any]) -> Iterator[str]:
    for cell in cells:
        if cell is None:
            continue
        if not isinstance(cell, str):
            raise ValueError(f"{where}: the column {column!r} needs texts; got {cell!r:.40}")
        yield cell


def _rows_of(name: str, table: Any, column: str) -> Iterator[str]:
    """Texts of a table of `datasets`, which is memory-mapped."""
    try:
        tables.check_column(column, table.column_names)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    for begin in range(0, len(table), 1_000):
        yield from _texts_among(name, column, table[begin : begin + 1_000][column])


def _of_other(path: Path, column: str) -> Iterator[str]:
    """Other tables and texts, a file at a time; a long text in pieces."""
    if tables.ending(path) in tables.READERS:
        yield from tables.column_of(path, column)
    elif _weight(path) < LONG_BYTES:
        yield files.read_text(path)
    else:
        yield from _pieces(path)


def _pieces(path: Path) -> Iterator[str]:
    """A long text in documents of about 8,000 characters, cut after a line, or within a long one.

    No more of a line than `LINE_BYTES` is held.
    """
    text, size = "", 0  # what is left of a document, and how much was read of it
    try:
        for span, ends in _spans(path):
            text += (span if size else span.removeprefix("\ufeff")).replace("\r\n", "\n")
            size += len(span)
            done = ends and size >= PIECE
            end = len(text) if done else max(0, len(text) - 1) // (2 * PIECE) * 2 * PIECE
            yield from (text[begin : begin + 2 * PIECE] for begin in range(0, end, 2 * PIECE))
            text, size = text[end:], 0 if done else size
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read to its end: {error}") from error
    if text:
        yield text


def _spans(path: Path) -> Iterator[tuple[str, bool]]:
    """A text's lines, those longer than `LINE_BYTES` in parts, and whether each ends its line."""
    place, rest = 0, b""
    with opened(path) as file:
        while span := rest + (read := file.readline(LINE_BYTES)):
            ends = span.endswith(b"\n") or not read
            cut = len(span) if ends else _last_letter(span)
            yield files.decode_text(span[:cut], f"{path}, from byte {place:,} on,"), ends
            place, rest = place + cut, span[cut:]


def _last_letter(span: bytes) -> int:
    """Where the last UTF-8 letter begins: it may not be whole, or a \\r whose \\n is to come."""
    back = (n for n in range(1, min(4, len(span)) + 1) if span[-n] & 0xC0 != 0x80)
    return len(span) - next(back, 0)


def check_first(name: str, column: str, on_bad: str) -> None:
    """ValueError unless a large text gives a document that is not blank; reads no further."""
    documents = each_document(name, column, on_bad, Left())
    if not any(document.strip() for document in documents):
        raise ValueError(f"{name} is empty")
