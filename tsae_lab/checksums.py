"""JSON objects: read whole or refused in a line; ours have their checksum in them."""

import functools
import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsae_lab import files

SEAL = "checksum"  # the entry with a crc32 of the others
CONFIG = "config_checksum"  # of the config.json that numbers were made with
RESULT = {"numbers": dict, "intervals": (list, dict)}  # of a section, of a system
TABLES = "tables"  # of a section: size and crc32 of the files that were written with it, by name


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError in one line where it holds none, or OSError."""
    try:
        text = files.decode_text(path.read_bytes(), path).removeprefix("\ufeff")
        content = files.json_value(text)
    except ValueError as error:
        known = str(error).startswith(str(path))
        raise ValueError(str(error) if known else f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} needs a JSON object; got {content!r:.40}")
    return content


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON object with its checksum in it, by which damage is found."""
    return {**content, SEAL: checksum(content)}


def unsealed(where: str | Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """What was `sealed`; ValueError where it is not what it was.

    What has no checksum (an earlier version wrote it) is taken, and that is said.
    """
    bare = {key: value for key, value in content.items() if key != SEAL}
    if SEAL not in content:
        _say(f"{where} has no checksum: whether it is damaged is not known")
    elif content[SEAL] != checksum(bare):
        raise ValueError(f"{where} is damaged: its content does not have the checksum in it")
    return bare


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` was given, as JSON gives it back; ValueError where it is damaged."""
    return unsealed(path, read_object(path))


def read_result(path: Path) -> dict[str, Any] | None:
    """Numbers and intervals of a file, as they were written; None where they are to be made again:
    the file is missing, or, which is said, it or a table that was written with it is damaged.
    """
    if not path.exists():
        return None
    try:
        saved = read_sealed(path)
        whole = all(isinstance(saved.get(name), kind) for name, kind in RESULT.items())
    except ValueError as error:
        _say(f"{error}; it is made again")
        return None
    wrong = [] if whole else [f"{path} has no numbers and intervals"]
    of_tables = wrong_tables(path.parent, saved)
    wrong += [f"{path.parent / name} {said}" for name, said in of_tables.items()]
    if wrong:
        _say(f"{wrong[0]}; {path.name} is made again")
    return None if wrong else saved


def wrong_tables(folder: Path, saved: Mapping[str, Any]) -> dict[str, str]:
    """Of the tables of a section, by name: "is missing", or "is damaged", which are not as written.

    `saved` is what its JSON file in the folder holds; one of an earlier version lists no table.
    """
    wrong = {}
    for name, was in (saved.get(TABLES) or {}).items():
        if not (folder / name).is_file():
            wrong[name] = "is missing"
        elif files.size_and_crc(folder / name) != was:
            wrong[name] = "is damaged: it is not what was written with its section"
    return wrong


@functools.lru_cache(maxsize=256)
def _say(line: str) -> None:
    """The line on stderr, once: a file may be read several times."""
    sys.stderr.write(f"{line}\n")


def checksum(content: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits, whatever the order of the keys and the blanks between them."""
    plain = json.loads(json.dumps(content))  # as it is read: names are texts, tuples lists
    return f"{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """`content` as `write_json`, with its checksum in it."""
    files.json_text(path, content)  # its errors are those of the content
    files.write_json(path, sealed(content))


def write_numbers(path: Path, info: Mapping[str, Mapping[str, Any]]) -> None:
    """The numbers of each text, each with its checksum and that of the config.json beside it."""
    files.json_text(path, info)
    config = path.with_name("config.json")
    made_with = {CONFIG: read_object(config).get(SEAL)} if config.exists() else {}
    files.write_json(path, {name: sealed({**text, **made_with}) for name, text in info.items()})


def log_line(step: Mapping[str, Any]) -> str:
    """A line of a log: a step with its checksum."""
    return f"{json.dumps(sealed(step))}\n"


def log_lines(log: Path) -> list[dict[str, Any]]:
    """The steps in a log, without their checksums; [] where there is none.

    Lines that a kill has cut or a fault damaged are left out, and their number is said. A line of
    an earlier version has no checksum.
    """
    texts = log.read_bytes().splitlines() if log.exists() else []
    steps = [step for step in map(_logged, texts) if step is not None]
    n_wrong = len(texts) - len(steps)
    if n_wrong:
        _say(f"{log}: {n_wrong} of {len(texts)} lines are cut or damaged, and left out")
    return steps


def _logged(text: bytes) -> dict[str, Any] | None:
    """The step in a line; None for what is none."""
    try:
        step = files.json_value(text)
    except ValueError:
        return None
    if not isinstance(step, dict) or not {"dataset", "seed", "model", "step"} <= step.keys():
        return None
    seal = step.pop(SEAL, None)
    return step if seal in (None, checksum(step)) else None
