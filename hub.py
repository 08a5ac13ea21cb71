"""Public sets by dataset name, from the Hugging Face hub, or from its cache on this machine.

A name is `owner/dataset`, `owner/dataset:configuration` or `owner/dataset:configuration:split`, for instance
`nyu-mll/blimp:regular_plural_subject_verb_agreement_1`. Without a split: train, else validation, else test.
"""

import functools
import re
from pathlib import Path
from typing import Any

NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(:\w[\w.-]*){0,2}")
FILE_ENDINGS = (".jsonl", ".json", ".tsv", ".csv", ".txt", ".dev", ".test", ".parquet", ".gz", ".zip", ".bz2", ".xz")
SPLITS = ("train", "validation", "test")
CONVERTED = "refs/convert/parquet"  # the hub's own copy of a dataset that is a script: tables in configuration/split/


def is_name(source: str | Path) -> bool:
    """Whether this is a dataset's name: of that form, not ending as files do, and no file or folder here."""
    name = str(source)
    return bool(NAME.fullmatch(name)) and not name.lower().endswith(FILE_ENDINGS) and not Path(name).exists()


@functools.lru_cache(maxsize=8)
def rows(name: str) -> tuple[dict[str, Any], ...]:
    """The rows of a dataset's split; what was fetched once is read from the hub's cache where there is no way to it.

    (Not of a dataset that is published as a script: the library does not find its converted tables there again.)
    ValueError in one line where it cannot be had: no such dataset, configuration or split, or no way to the hub.
    """
    import datasets  # takes a second, and is needed here only

    repository, configuration, split, *_ = [*name.split(":"), "", ""]
    try:
        try:
            found = datasets.load_dataset(repository, configuration or None)
        except (RuntimeError, ValueError) as error:  # a script; or one whose tables alone are in the cache
            if not re.search("script|find cache", str(error)):
                raise
            found = datasets.load_dataset(repository, data_dir=configuration or None, revision=CONVERTED)
    except Exception as error:  # of many kinds: of the hub, the network, the tables, the file system
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"there is no file {name}, and no dataset of that name could be read: {reason}") from error
    there = [str(part) for part in found]
    part = next((part for part in ([split] if split else [*SPLITS, *there]) if part in there), None)
    if part is None:
        raise ValueError(f"{name} has no split {split}: there are {', '.join(there)}")
    return tuple(dict(row) for row in found[part])
