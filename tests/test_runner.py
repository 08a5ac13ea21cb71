"""The outside runner of this project: what it does to a folder that holds a clone, step by step."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toys import ROOT, save_model

SMALL = {
    "hook": "blocks.1.hook_resid_post", "seeds": 1, "steps": 12, "batch": 4, "seq": 24,
    "d_sae": 48, "k": 4, "hidden_enc": 4, "hidden_dec": 4, "warmup": 2, "pretrain": 0.4,
    "train_tokens": 4_000, "val_tokens": 600, "splice_tokens": 100, "threads": 1,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    """A clone whose plain run was edited, as the runner may: a toy model and text, few steps."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    clone = tmp_path / "templates" / "tsae"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True, capture_output=True)
    rows = [{"text": f"the quick brown fox {i} jumps over the lazy dog. " * 9} for i in range(40)]
    (tmp_path / "fox.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lm = save_model(tmp_path / "lm", "gpt_neox")
    edited = SMALL | {"lm": str(lm), "datasets": str(tmp_path / "fox.jsonl")}
    scales = clone / "tsae_lab" / "jobs" / "config.py"
    plain = '    "cpu": {},\n'
    assert plain in scales.read_text()
    scales.write_text(scales.read_text().replace(plain, f'    "cpu": {edited!r},\n'))
    return clone


def test_the_outside_runner_gets_its_means_and_figures(folder, tmp_path):
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    surroundings = kept | {"TSAE_CACHE": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}

    def run(*command: str, limit: int) -> None:
        call = [sys.executable, *command]
        done = subprocess.run(
            call, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=limit
        )
        assert done.returncode == 0, done.stderr

    shutil.copy(folder / "experiment.py", folder / "run_1.py")
    run("experiment.py", "--out_dir=run_1", limit=7_200)
    info = json.loads((folder / "run_1" / "final_info.json").read_text())
    (means,) = (of_text["means"] for of_text in info.values())
    assert all(isinstance(means[name], float) for name in ("fve_mean", "static_fve_mean"))
    if (folder / "plot.py").exists():
        run("plot.py", limit=600)
