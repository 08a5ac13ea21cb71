"""Activations on disk: a memory map in bf16, keyed by language model, hook and tokens.

A store is written under a temporary name and renamed; an interrupted extraction continues after its
last whole block; one that is damaged (every block has a checksum) or foreign is made again.
"""

import contextlib
import functools
import hashlib
import json
import math
import mmap
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tsae_lab import checksums, files
from tsae_lab.data import language_model
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.data.texts import Tokens
from tsae_lab.terminal import progress_bar

STORE_FORMAT, MANIFEST, SINKS = 1, "manifest.json", "sinks.json"
NORM_ROWS = 64  # sequences per call
BLOCK_TOKENS = 8_192  # tokens per block of the store: the unit of checksums and of continuing
CHECKED_BYTES = 2 << 30  # a larger store is not read whole when it is opened
SINK_NORM = 10  # times the median norm: a token above is an attention sink, like the prefix
SPARE_BYTES = 64 << 20  # of disk that a store leaves free

MakeBlock = Callable[[str, int], np.ndarray]  # a block: by digest of its tokens, and number
Deal = Callable[[MakeBlock, str, Sequence[int]], Iterator[np.ndarray]]  # those blocks, in order


@dataclass(frozen=True, eq=False, kw_only=True)
class Blocks:
    """The blocks of a large store, whose checksums are compared when they are first read."""

    rows: int  # sequences per block
    crcs: Sequence[int]
    seen: np.ndarray  # bool: which were compared; written to


@dataclass(frozen=True, eq=False, kw_only=True)
class Store:
    """Activations on disk, a memory map; zeros where `tokens.valid` is False.

    Where attention sinks are dropped, `tokens` and `x` lack them, and what follows moves to the
    left; the language model reads `text`.
    """

    path: Path
    hook: str
    tokens: Tokens
    data: np.ndarray  # int16 view of bf16, (sequences, kept, d_in), with the sinks
    text: Tokens  # the same sequences with their sinks
    read: Bool[Tensor, "n_seq kept"]  # of the text: what `tokens` holds
    source: tuple[np.ndarray, np.ndarray] | None  # where `tokens` lie in `data`; None: the same
    blocks: Blocks | None = None  # None: they were compared when it was opened

    @property
    def d_in(self) -> int:
        return int(self.data.shape[2])

    def __len__(self) -> int:
        return len(self.tokens.ids)

    def sequences(
        self, rows: slice | Sequence[int] | np.ndarray | Tensor
    ) -> tuple[Float[Tensor, "rows kept d_in"], Bool[Tensor, "rows kept"]]:
        """bf16 activations of whole sequences, zeros where the second says that no token is."""
        return self.x(rows, dtype=torch.bfloat16), self.tokens.valid[rows]

    def x(
        self,
        rows: slice | Sequence[int] | np.ndarray | Tensor,
        span: slice = slice(None),
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "rows span d_in"]:
        """Activations of the sequences `rows` at the positions `span` of the text, a copy."""
        index = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
        if self.blocks is not None:
            every = np.arange(len(self.data)) if self.source is None else self.source[0]
            check_blocks(self, every[index])
        if self.source is None:
            copied = np.array(self.data[index, span], copy=isinstance(index, slice) or None)
        else:
            row, place = self.source
            copied = np.array(self.data[row[index][:, None], place[index, span]], copy=None)
            copied[~self.tokens.valid.numpy()[index, span]] = 0
        forget(self.data)
        return torch.from_numpy(copied).view(torch.bfloat16).to(dtype)

    def at(
        self,
        row: Int[Tensor, "rows span"],
        place: Int[Tensor, "rows span"],
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "rows span d_in"]:
        """Activations at places of sequences (`texts.pack_rows`), a copy."""
        rows, places = row.numpy(), place.numpy()
        if self.source is not None:
            rows, places = self.source[0][rows], self.source[1][rows, places]
        check_blocks(self, rows)
        copied = np.array(self.data[rows, places], copy=None)
        forget(self.data)
        return torch.from_numpy(copied).view(torch.bfloat16).to(dtype)


def forget(data: np.ndarray) -> None:
    """What was read need not stay in this process: the page cache has it."""
    mapped = getattr(data, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def check_blocks(store: Store, rows: Int[np.ndarray, " *rows"]) -> None:
    """Compare the checksums of the blocks with these sequences of `data`, each once.

    At a wrong one ValueError: the store is then taken for an unfinished one, which the next start
    continues after its good blocks.
    """
    blocks = store.blocks
    if blocks is None:
        return
    for block in np.unique(rows // blocks.rows):
        if not blocks.seen[block]:
            data = np.array(store.data[block * blocks.rows : (block + 1) * blocks.rows])
            forget(store.data)
            if zlib.crc32(data.data) != blocks.crcs[block]:
                with contextlib.suppress(OSError):
                    store.path.replace(_partial(store.path))
                said = f"wrong checksum of sequences {block * blocks.rows} and following"
                raise ValueError(f"{store.path}: {said}; the same command extracts them again")
            blocks.seen[block] = True


def _partial(path: Path) -> Path:
    """Where a store is written before it is whole."""
    return path.with_name(f"{path.name}.partial")


def sink_mask(data: np.ndarray, valid: Bool[Tensor, "n_seq kept"]) -> Bool[Tensor, "n_seq kept"]:
    """Attention sinks: tokens whose norm is over 10 times the median norm of all valid tokens."""
    norms = torch.zeros(valid.shape)
    for start in range(0, len(data), NORM_ROWS):
        rows = slice(start, start + NORM_ROWS)
        x = torch.from_numpy(np.array(data[rows])).view(torch.bfloat16)
        norms[rows] = x.float().norm(dim=-1)
        forget(data)
    return valid & (norms > SINK_NORM * norms[valid].median())


def without(
    path: Path, hook: str, tokens: Tokens, data: np.ndarray, dropped: Bool[Tensor, "n_seq kept"]
) -> Store:
    """A store of the tokens less those `dropped`; sequences of nothing else are left out."""
    read = tokens.valid & ~dropped
    shared = {"path": path, "hook": hook, "data": data}
    if torch.equal(read, tokens.valid):
        return Store(**shared, tokens=tokens, text=tokens, read=read, source=None)
    row = read.any(1).nonzero()[:, 0]
    text, read = Tokens(**{name: value[row] for name, value in vars(tokens).items()}), read[row]
    place = (~read).to(torch.uint8).argsort(dim=1, stable=True)
    n_prefix, valid = text.ids.shape[1] - read.shape[1], read.gather(1, place)
    prefix, ids = text.ids[:, :n_prefix], text.ids[:, n_prefix:].gather(1, place)
    ids = torch.where(valid, ids, prefix[:, :1])
    left = replace(text, ids=torch.cat([prefix, ids], 1), valid=valid)
    source = (row.numpy(), place.to(torch.int32).numpy())
    return Store(**shared, tokens=left, text=text, read=read, source=source)


def in_memory(x: Float[Tensor, "n_seq seq d_in"], hook: str) -> Store:
    """A store of activations that no language model gave, in bf16; each sequence is a document."""
    n, seq, _ = x.shape
    tokens = Tokens(
        ids=torch.zeros(n, seq, dtype=torch.int32),
        valid=torch.ones(n, seq, dtype=torch.bool),
        document=torch.arange(n, dtype=torch.int32),
        start=torch.zeros(n, dtype=torch.int32),
        chars=torch.zeros(n, dtype=torch.int32),
    )
    data = x.to(torch.bfloat16).view(torch.int16).numpy()
    return without(Path("memory"), hook, tokens, data, torch.zeros_like(tokens.valid))


def of_rows(store: Store, rows: slice) -> Store:
    """The store of some of its sequences, a view of the same data."""
    row, place = _source(store)
    parts = {
        name: replace(tokens, **{key: value[rows] for key, value in vars(tokens).items()})
        for name, tokens in (("tokens", store.tokens), ("text", store.text))
    }
    return replace(store, **parts, read=store.read[rows], source=(row[rows], place[rows]))


def _source(store: Store) -> tuple[np.ndarray, np.ndarray]:
    """Where the store's tokens lie in its data: sequences, and places in them."""
    n, width = store.tokens.valid.shape
    return store.source or (np.arange(n), np.arange(width)[None].repeat(n, 0))


def shuffled(store: Store, generator: torch.Generator) -> Store:
    """The store with the tokens of each sequence in random order, a view of the same data.

    What is left is which tokens a sequence has: a code that gains by their order gains no more.
    """
    n_valid = store.tokens.valid.sum(1)
    width = store.tokens.valid.shape[1]
    chance = torch.rand(store.tokens.valid.shape, generator=generator)
    last = torch.arange(width) >= n_valid[:, None]  # padding stays where it is
    order = torch.where(last, 1 + torch.arange(width), chance).argsort(dim=1)
    row, place = _source(store)
    ids = store.tokens.ids.clone()
    ids[:, -width:] = ids[:, -width:].gather(1, order)
    source = row, np.take_along_axis(place, order.numpy().astype(place.dtype), 1)
    return replace(store, tokens=replace(store.tokens, ids=ids), source=source)


def activation_store(
    lm: LanguageModel,
    tokens: Tokens,
    *,
    hook: str,
    sinks: str = "drop",
    cache_dir: str | Path | None = None,
    verify: bool = False,
    deal: Deal | None = None,
) -> Store:
    """Activations of `tokens` at `hook`: read from `cache_dir`, or extracted into it.

    The directory's name is a hash over model, hook and tokens. It is written under the name
    `...partial` and renamed at the end; an interrupted extraction continues after its last whole
    block. A store that is damaged or holds something else is made again, after a line on stderr;
    of a store of more than 2 GB a block is compared with its checksum when it is first read, unless
    all are to be `verified` now.
    `deal` gives the blocks in order where others make some of them, `block` of these tokens'
    `tokens_digest`.
    Default directory: `activations` in the cache. Attention sinks are on the disk; the store lacks
    them unless `sinks` is "keep"; a line on stderr says how many there are.
    """
    language_model.check_hook(lm, hook)
    if tokens.ids.shape[1] > lm.max_seq:
        raise ValueError(
            f"sequences of {tokens.ids.shape[1]} tokens: {lm.name} takes at most {lm.max_seq}"
        )
    path, key = store_place(lm, tokens, hook, cache_dir)
    with files.locked(files.make_dir(path.parent) / f"{path.name}.lock"):
        if path.exists():
            later = not verify and 2 * math.prod(key["shape"]) > CHECKED_BYTES
            problem = _problem(path, tokens, key, blocks_too=not later)
            if problem is None:
                return _open(path, tokens, key, sinks, later=later)
            sys.stderr.write(
                f"activation store {path} is refused: {problem}; extracting it again\n"
            )
            shutil.rmtree(path)
        _extract(lm, tokens, _partial(path), key, deal or _by_itself)
        files.move_whole(_partial(path), path)
    return _open(path, tokens, key, sinks)


def store_place(
    lm: LanguageModel, tokens: Tokens, hook: str, cache_dir: str | Path | None
) -> tuple[Path, dict[str, Any]]:
    """Where the activations are stored or would be, and what the store's name is a hash of."""
    root = Path(cache_dir).expanduser() if cache_dir else files.cache_dir() / "activations"
    key = {
        "format": STORE_FORMAT,
        "model": lm.identity,
        "model_name": lm.name,
        "hook": hook,
        "tokens": tokens_digest(tokens),
        "shape": [*tokens.valid.shape, lm.d_in],
        "dtype": "bfloat16",
    }
    return root / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20], key


@dataclass(frozen=True, eq=False)
class TokenMaps:
    """The files that tokens are memory maps of, and the `tokens_digest` of what is in them."""

    digest: str
    arrays: Sequence[np.ndarray]


token_maps: WeakKeyDictionary[Tokens, TokenMaps] = WeakKeyDictionary()  # of the tokens in files


@functools.lru_cache(maxsize=8)
def tokens_digest(tokens: Tokens) -> str:
    """sha256 over the ids and where they come from, in hexadecimal."""
    if tokens in token_maps:
        return token_maps[tokens].digest
    digest = hashlib.sha256()
    for array in _token_arrays(tokens).values():
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def forget_tokens(tokens: Tokens) -> None:
    """What was read of tokens in files need not stay in this process."""
    for array in token_maps[tokens].arrays if tokens in token_maps else ():
        forget(array)


def _token_arrays(tokens: Tokens) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in vars(tokens).items()}


def _open(
    path: Path, tokens: Tokens, key: Mapping[str, Any], sinks: str, *, later: bool = False
) -> Store:
    data = np.memmap(path / "data.bf16", dtype=np.int16, mode="r", shape=tuple(key["shape"]))
    mask = _known_sinks(path, data, tokens)
    n_sinks, keep = int(mask.sum()), sinks == "keep"
    if n_sinks:
        said = f"(norm over {SINK_NORM} times the median): {'kept' if keep else 'dropped'}"
        share = f"{n_sinks:,} tokens of {tokens.n_tokens:,}"
        sys.stderr.write(f"{key['hook']}: {share} are attention sinks {said}\n")
    opened = without(path, key["hook"], tokens, data, torch.zeros_like(mask) if keep else mask)
    if not later:
        return opened
    manifest = _read_manifest(path)
    seen = np.zeros(len(manifest["crc32"]), dtype=bool)
    own = Blocks(rows=manifest["block_rows"], crcs=manifest["crc32"], seen=seen)
    return replace(opened, blocks=own)


def _known_sinks(path: Path, data: np.ndarray, tokens: Tokens) -> Bool[Tensor, "n_seq kept"]:
    """The `sink_mask`, which is written down beside the data: it takes all of them."""
    file, mask = path / SINKS, torch.zeros_like(tokens.valid)
    with contextlib.suppress(ValueError, OSError, KeyError, IndexError, TypeError):
        saved = checksums.read_sealed(file)
        if saved["times"] == SINK_NORM:
            mask.view(-1)[torch.tensor(saved["places"], dtype=torch.int64)] = True
            return mask
    mask = sink_mask(data, tokens.valid)
    places = mask.flatten().nonzero()[:, 0].tolist()
    with contextlib.suppress(OSError):  # of a folder that nobody may write to
        checksums.write_sealed(file, {"times": SINK_NORM, "places": places})
    return mask


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = checksums.read_object(path / MANIFEST)
    except (OSError, ValueError):
        return {}
    rows, crcs = manifest.get("block_rows"), manifest.get("crc32")
    whole = type(rows) is int and rows > 0 and isinstance(crcs, list) and "key" in manifest
    return manifest if whole else {}


def _good_blocks(path: Path, key: Mapping[str, Any], block_rows: int, crcs: Sequence[int]) -> int:
    """How many blocks from the start have the checksum that is written down for them."""
    n_rows, row_bytes = key["shape"][0], 2 * key["shape"][1] * key["shape"][2]
    with contextlib.suppress(OSError), path.open("rb") as file:
        for block, crc in enumerate(crcs):
            size = (min(n_rows, (block + 1) * block_rows) - block * block_rows) * row_bytes
            data = file.read(size)
            if len(data) != size or zlib.crc32(data) != crc:
                return block
        return len(crcs)
    return 0


def _problem(path: Path, tokens: Tokens, key: Mapping[str, Any], *, blocks_too: bool) -> str | None:
    """Why the store at `path` cannot be used, or None. With its blocks all of it is read once."""
    manifest = _read_manifest(path)
    if not manifest:
        return "it has no readable manifest"
    if manifest["key"] != key:
        return "its manifest belongs to something else"
    rows, crcs, n_rows = manifest["block_rows"], manifest["crc32"], key["shape"][0]
    if len(crcs) != -(-n_rows // rows):
        return "it is incomplete"
    file = path / "data.bf16"
    expected = 2 * int(np.prod(key["shape"]))
    if not file.is_file() or file.stat().st_size != expected:
        return f"data.bf16 has not the expected size of {expected:,} bytes"
    for name, array in _token_arrays(tokens).items():
        with contextlib.suppress(Exception):  # whatever numpy says of a damaged file
            if np.array_equal(np.load(path / f"{name}.npy", allow_pickle=False), array):
                continue
        return f"{name}.npy is missing or damaged"
    good = _good_blocks(file, key, rows, crcs) if blocks_too else len(crcs)
    return None if good == len(crcs) else f"wrong checksum of sequences {good * rows} and following"


def _by_itself(make: MakeBlock, what: str, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    return (make(what, number) for number in numbers)


def block_rows_of(tokens: Tokens) -> int:
    """Sequences per block of the store of these tokens."""
    return max(1, BLOCK_TOKENS // (tokens.valid.shape[1] + 1))


def block(lm: LanguageModel, tokens: Tokens, hook: str, number: int) -> np.ndarray:
    """The block of that number, as `block_of` gives it."""
    size, n_seq = block_rows_of(tokens), len(tokens.ids)
    return block_of(lm, tokens, hook, slice(number * size, min((number + 1) * size, n_seq)))


def _extract(
    lm: LanguageModel, tokens: Tokens, path: Path, key: Mapping[str, Any], deal: Deal
) -> None:
    """Writes data, token arrays and manifest into `path`, continuing what is there."""
    n_seq, n_kept, d_in = key["shape"]
    block_rows = block_rows_of(tokens)
    crcs = _finished_blocks(path, key, block_rows)
    done = min(n_seq, len(crcs) * block_rows)
    files.require_space(path, 2 * (n_seq - done) * n_kept * d_in + SPARE_BYTES)
    path.mkdir(exist_ok=True)
    with files.naming(path):
        for name, array in _token_arrays(tokens).items():
            np.save(path / f"{name}.npy", array)
    n_blocks, began = -(-n_seq // block_rows), time.monotonic()
    with (
        files.appended(path / "data.bf16", "ab") as file,
        progress_bar("activations", n_blocks, len(crcs)) as advance,
    ):
        file.truncate(2 * done * n_kept * d_in)
        manifest = {"key": key, "block_rows": block_rows, "crc32": crcs}
        files.write_json(path / MANIFEST, manifest)
        left = range(len(crcs), n_blocks)
        for x in deal(lambda _, n: block(lm, tokens, key["hook"], n), key["tokens"], left):
            data = x.tobytes()
            file.write(data)
            file.flush()
            crcs.append(zlib.crc32(data))
            files.write_json(path / MANIFEST, manifest)
            n_done = min(len(crcs) * block_rows, n_seq) - done
            rate = n_done * n_kept / max(time.monotonic() - began, 1e-9)
            advance(f"{rate:,.0f} tokens per second")


def _finished_blocks(path: Path, key: Mapping[str, Any], block_rows: int) -> list[int]:
    """Checksums of the whole blocks of an unfinished store; one of something else is removed."""
    manifest = _read_manifest(path)
    if manifest and manifest["key"] == key and manifest["block_rows"] == block_rows:
        crcs = manifest["crc32"]
        return crcs[: _good_blocks(path / "data.bf16", key, block_rows, crcs)]
    if path.exists():
        sys.stderr.write(
            f"unfinished activation store {path} is refused: not this one's; starting anew\n"
        )
        shutil.rmtree(path)
    return []


def block_of(lm: LanguageModel, tokens: Tokens, hook: str, rows: slice) -> np.ndarray:
    """The sequences `rows` as int16 view of bf16, (rows, kept, d_in), zeros at padding."""
    n_rows = language_model.rows_at_once(tokens.ids.shape[1])
    batches = []
    for start in range(rows.start, rows.stop, n_rows):
        batch = slice(start, min(start + n_rows, rows.stop))
        hidden = language_model.residual(lm, tokens.ids[batch], hook)
        valid = tokens.valid[batch].to(hidden.device)
        x = hidden[:, -valid.shape[1] :].masked_fill(~valid[..., None], 0.0).to(torch.bfloat16)
        finite = x.isfinite().flatten(1).all(1)
        if not finite.all():
            row = start + int((~finite).nonzero()[0, 0])
            place = f"document {int(tokens.document[row])}, token {int(tokens.start[row])}"
            where = f"sequence {row} ({place})"
            raise ValueError(f"{lm.name} gives NaN or infinite activations in {where}")
        batches.append(x.cpu().view(torch.int16).numpy())
    return np.concatenate(batches)
