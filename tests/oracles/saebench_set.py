"""SAEBench's sparse probing through `saebench`, on texts of this machine in place of a hub's set.

By hand, in an environment that has sae-bench 0.6 beside this program (docs/OWN.md), from the root
of the repository:

    PYTHONPATH=tests:. python tests/oracles/saebench_set.py MODEL OUT A.txt B.txt C.txt D.txt

A hub on this machine serves passages of the four texts as the four classes of `fancyzhx/ag_news`:
the probes tell which text a passage is from. Options, such as --texts=400, are handed on.
"""

import os
import subprocess
import sys
from pathlib import Path

from hub_server import dataset, serve

NAME, LENGTH = "fancyzhx/ag_news", 300  # characters of a passage


def passages(file: str, label: int) -> list[dict[str, object]]:
    """Passages of a text, one after the other; the cuts may part words."""
    text = " ".join(Path(file).read_text(encoding="utf-8").split())
    begins = range(0, len(text) - LENGTH, LENGTH)
    return [{"text": text[begin : begin + LENGTH], "label": label} for begin in begins]


def main() -> None:
    model, out, *rest = sys.argv[1:]
    files = [word for word in rest if not word.startswith("--")]
    if len(files) != 4:
        raise SystemExit(f"four texts are needed; got {len(files)}")
    rows = [row for label, file in enumerate(files) for row in passages(file, label)]
    train = [row for i, row in enumerate(rows) if i % 5]
    hub = dataset({"default": {"train": train, "test": rows[::5]}})
    call = [sys.executable, "experiment.py", "saebench", model, "--evals=sparse_probing"]
    call += [f"--sets={NAME}", f"--out={out}", *(word for word in rest if word.startswith("--"))]
    with serve({(NAME, "main"): hub}) as url:
        place = {"HF_ENDPOINT": url, "HF_HOME": str(Path(out).absolute() / "hub")}
        raise SystemExit(subprocess.run(call, env=os.environ | place, check=False).returncode)


if __name__ == "__main__":
    main()
