"""The runs that a report is made of, read as they are: what is missing or damaged is said.

A run's numbers are its final_info.json, its tables the CSV files of a text's first seed, whose
checksums the JSON files of the sections hold.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tsae_lab import checksums

MOST_ROWS = 2_500  # of a table in the page
MEASURED = (
    "fve",
    "tss",
    "tss_mean",
    "jaccard",
    "births",
    "distinct",
    "l0",
    "kl",
    "delta_ce",
    "alive_frac",
)
"""what is told of every system, by the end of its key"""


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run's directory holds."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)  # {} where the run is not finished
    missing: tuple[str, ...] = ()  # what is not there or damaged, in words

    @property
    def name(self) -> str:
        return self.folder.absolute().name


def read_run(folder: Path) -> RunFiles:
    """Configuration and numbers of a run; what cannot be read is left out and said."""
    config, no_config = _json_object(folder / "config.json")
    seal = config.pop(checksums.SEAL, None)
    info, no_info = _json_object(folder / "final_info.json")
    unfinished = f"{folder.name}/final_info.json is missing: the run is not finished"
    said = [line for line in (no_config, unfinished if "missing" in no_info else no_info) if line]
    texts = {}
    for name, text in info.items():
        if isinstance(text, dict):
            where = f"{folder.name}/final_info.json, {name}"
            try:
                numbers = checksums.unsealed(where, text)
                if numbers.pop(checksums.CONFIG, seal) != seal:
                    raise ValueError(f"{where} is damaged, or of a run with another config.json")
                texts[name] = numbers
            except ValueError as error:
                said.append(str(error))
    if info and not any(isinstance(text, dict) for text in info.values()):
        said.append(f"{folder.name}/final_info.json holds no text's numbers")
    return RunFiles(folder=folder, config=config, info=texts, missing=tuple(said))


def _json_object(path: Path) -> tuple[dict[str, Any], str]:
    """The object in a JSON file, and "" or what is wrong with it."""
    name = f"{path.parent.name}/{path.name}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except FileNotFoundError:
        return {}, f"{name} is missing"
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        return {}, f"{name} is damaged: {reason}"
    return (content, "") if isinstance(content, dict) else ({}, f"{name} is damaged: no object")


def numbers_of(text: Mapping[str, Any], table: str) -> dict[str, float]:
    """The finite numbers of "means" or "stderrs", by measure."""
    end = {"means": "_mean", "stderrs": "_stderr"}[table]
    values = text.get(table)
    return {
        key.removesuffix(end): float(value)
        for key, value in (values.items() if isinstance(values, dict) else ())
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    }


# ------------------------------------------------------------------------------------- the systems


def systems(run: RunFiles) -> Iterator[tuple[str, str, dict[str, float], dict[str, float]]]:
    """Text, system, means and standard errors of every trained system that a run has measured.

    A system is whatever has an `fve`: by a key's prefix ("" the TSAE, "static_" the static SAE), or
    an entry of a table of systems, whatever level it stands on. What run_4 says that a system is
    ("about") is its name.
    """
    for text, content in run.info.items():
        names = _names_in(content.get("about"))
        for of_text, system, means, errors in _systems(content, text, ""):
            yield of_text, names.get(system, system), means, errors


def _names_in(about: Any) -> dict[str, str]:
    """What run_4 says of each system, by its spelled key."""
    said = about.items() if isinstance(about, dict) else ()
    names = {_spelled(f"{system}_", ""): str(what) for system, what in said}
    return {key: name for key, name in names.items() if key not in ("TSAE", "static SAE")}


def _systems(
    node: Any, text: str, name: str
) -> Iterator[tuple[str, str, dict[str, float], dict[str, float]]]:
    if isinstance(node, list):
        names = [entry for entry in node if isinstance(entry, dict)]
        node = {str(_called(entry, i)): entry for i, entry in enumerate(names)}
    if not isinstance(node, dict):
        return
    means = numbers_of(node, "means") or {
        key.removesuffix("_mean"): float(value)
        for key, value in node.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    prefixes = [key.removesuffix("fve") for key in means if re.fullmatch(r"(.+_)?fve", key)]
    errors = numbers_of(node, "stderrs")
    for prefix in prefixes:
        if not prefix.endswith(("difference_", "temporal_share_")):
            own = [
                {key: table[f"{prefix}{key}"] for key in MEASURED if f"{prefix}{key}" in table}
                for table in (means, errors)
            ]
            yield text, _spelled(prefix, name), own[0], own[1]
    for key, entry in node.items():
        if key not in ("means", "stderrs", "final_info_dict", "intervals", "seed_intervals"):
            yield from _systems(entry, text, "" if key == "systems" else str(key))


def _called(entry: Mapping[str, Any], row: int) -> object:
    """The name that an entry of a list of systems has."""
    return next((entry[k] for k in ("system", "name", "model", "label") if k in entry), row)


def _spelled(prefix: str, name: str) -> str:
    """A system's name for a reader."""
    words = {"": "TSAE", "tsae_": "TSAE", "static_": "static SAE"}.get(
        prefix, prefix.strip("_").replace("_", " ")
    )
    if not name:
        return words
    return name.replace("_", " ") + (f", {words}" if prefix else "")


# -------------------------------------------------------------------------------------- the tables


def read_tables(folder: Path) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The CSV tables of a folder by name, numbers as numbers, and what of them is missing.

    An empty cell and a number that is not finite are None. A table that is not what was written
    with its section is left out and said; of one that no section lists, that it is not known.
    """
    where = "/".join(folder.absolute().parts[-3:])
    tables: dict[str, list[dict[str, Any]]] = {}
    listed, missing = _listed(folder, where)
    wrong = checksums.wrong_tables(folder, {checksums.TABLES: listed})
    missing += [f"{where}/{name} {said}" for name, said in wrong.items()]
    paths = [path for path in sorted(folder.glob("*.csv")) if path.name not in wrong]
    unknown = [path.name for path in paths if path.name not in listed]
    if unknown:
        missing.append(
            f"{where}: whether {', '.join(unknown)} is damaged is not known: there is no checksum"
        )
    for path in paths:
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except (OSError, ValueError, csv.Error) as error:
            missing.append(f"{where}/{path.name} is damaged: {error}")
            continue
        tables[path.stem] = [
            {
                str(key): _parsed_cell(str(key), value)
                for key, value in row.items()
                if key is not None
            }
            for row in rows[:MOST_ROWS]
        ]
    return tables, missing


def _listed(folder: Path, where: str) -> tuple[dict[str, Any], list[str]]:
    """Size and crc32 of a folder's tables by name, as its sections list them; which are damaged."""
    listed, damaged = {}, []
    for path in sorted(folder.glob("*.json")):
        content, wrong = _json_object(path)
        try:
            saved = checksums.unsealed(f"{where}/{path.name}", content)
            listed |= saved.get(checksums.TABLES) or {}
        except ValueError as error:
            wrong = str(error)
        damaged += [wrong] if wrong else []
    return listed, damaged


def _parsed_cell(column: str, text: str | None) -> str | float | None:
    if text is None or text == "":
        return None
    if re.search(r"words?$|^token_pair$|^example|^features$|^lags$", column):
        return text
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.IGNORECASE):
        number = float(text)
        return number if abs(number) < 1e300 else None
    return None if text in ("nan", "inf", "-inf") else text
