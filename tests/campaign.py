"""A campaign of faults, with figures: `python tests/campaign.py --kind=kills --n=100 --seed=0`.

kills   processes killed at random moments; the same command again ends in the same bits
inputs  bad options, names, files, texts, models, SAEs, stores, runs, probing sets: a line each
damage  files damaged at a random byte: found and named
load    several processes at once, full and read-only disks, large and odd texts

It prints a table and, with --json, writes every row. A small share of it runs in test_campaign.py.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from faults import damage, inputs, kills, load  # noqa: E402

from tsae_lab import files, terminal  # noqa: E402

KINDS = {"kills": kills, "inputs": inputs, "damage": damage, "load": load}
MOST = {"kills": 100, "inputs": 200, "damage": 50, "load": 1}  # of a whole campaign


def main(
    kind: Annotated[str, typer.Option(help=", ".join(KINDS))] = "kills",
    n: Annotated[int, typer.Option(help="faults; 0 takes the whole campaign's")] = 0,
    seed: Annotated[int, typer.Option(help="of moments, cases, bytes")] = 0,
    json: Annotated[Path | None, typer.Option(help="write every row")] = None,
) -> None:
    """Run one kind of faults; the exit code is 1 where one was not survived."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        rows = KINDS[kind].campaign(n or MOST[kind], seed, Path(folder))
    done, right = (Counter(row["what"] for row in rows if ok or row["ok"]) for ok in (True, False))
    lines = [(what, right[what], done[what]) for what in done]
    lines.append(("all", sum(right.values()), len(rows)))
    terminal.print_table(f"{kind}, seed {seed}", ("fault", "right", "of"), lines)
    for row in rows:
        if not row["ok"]:
            terminal.console.print(f"{row['what']}: {row['fault']}", markup=False, soft_wrap=True)
    if json:
        files.write_json(json, {"kind": kind, "seed": seed, "rows": rows})
    raise typer.Exit(int(len(rows) > sum(right.values())))


if __name__ == "__main__":
    typer.run(main)
