"""The bench beside other libraries, with an interpreter that has none, and with stand-ins."""

import sys
import venv
from pathlib import Path

import pytest
import torch

from tsae_lab.jobs import bench, peer_steps, peers
from tsae_lab.jobs.training import Recipe

JOB = {"shape": [2, 6, 8], "d_sae": 64, "k": 4, "lr": 1e-3, "device": "cpu", "threads": 1,
       "repeats": 2}  # fmt: skip
TRAINER = """
class TopKTrainer:
    def __init__(self, *, activation_dim, dict_size, k, **rest):
        assert (activation_dim, dict_size, k) == (8, 64, 4)
    def update(self, step, x):
        assert tuple(x.shape) == (12, 8)
"""


def test_seconds_are_medians_of_the_last_steps():
    took = [(0.0, 0.0), (9.0, 5.0), (10.0, 5.5), (13.0, 6.5), (15.0, 7.25)]
    assert peer_steps.seconds_of(took, 3) == {"seconds": 2.0, "process_seconds": 0.75}


def test_the_batches_are_the_benchs_and_note_when_each_is_asked_for():
    took: peer_steps.Took = []
    batches = peer_steps.batches_of(JOB, took)
    x = bench.job_of(Recipe(d_sae=64, k=4), (2, 6, 8), torch.device("cpu")).x
    assert all(torch.equal(next(batches), x.flatten(0, 1)) for _ in range(3))
    assert len(took) == 3
    times = peers.own_times(lambda: torch.ones(300, 300) @ torch.ones(300, 300), 2, "cpu")
    assert 0 < times["seconds"] < 5


def test_an_interpreter_without_the_libraries_says_so_line_by_line(tmp_path, capsys):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    assert peers.interpreter(python) == python
    job = bench.job_of(Recipe(d_sae=64, k=4), (2, 6, 8), torch.device("cpu"))
    peers.show_peers(python, JOB, {"ours": bench.our_step(job, temporal=False)})
    shown, said = capsys.readouterr()
    for name in peer_steps.PEERS:
        assert f"{name}: not in {python}: No module named 'torch'" in (shown + said).splitlines()
    assert any("ours" in line and "1.00" in line for line in shown.splitlines())


def test_what_an_interpreter_has_is_timed_and_what_fails_is_said(tmp_path, monkeypatch):
    folder = tmp_path / "dictionary_learning" / "trainers"
    folder.mkdir(parents=True)
    (folder / "top_k.py").write_text(TRAINER)
    (tmp_path / "sae_lens.py").write_text("raise RuntimeError('of another\\nversion')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    times = peers.peer_times(sys.executable, JOB)
    assert 0 < times["dictionary_learning"]["seconds"] < 5
    assert times["SAELens"] == {"failed": "RuntimeError: of another version"}
    assert times["sparsify"].keys() == {"absent"}


def test_what_is_no_interpreter_is_refused_in_a_line(tmp_path):
    with pytest.raises(ValueError, match="--peers needs a Python interpreter, a path or a command"):
        peers.interpreter(str(tmp_path / "nothing"))
    false = Path("/bin/false")
    if false.exists():
        with pytest.raises(ValueError, match="--peers: /bin/false ended with 1: nothing said"):
            peers.peer_times(str(false), JOB)
    assert peer_steps.times_of_peers(JOB | {"threads": "many"}).keys() == set(peer_steps.PEERS)
