"""A run by several processes that its first one starts."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import toys

import experiment
from tsae_lab.jobs import company, plan, ranks


def absent(folder: str, how: str) -> None:
    """The second process is killed, in whatever it does, while the first one works on."""
    with ranks.together(torch.device("cpu"), spread="units"):
        if ranks.rank() == 1:
            Path(folder, "1").write_text(str(os.getpid()))
            if how == "memory":
                raise MemoryError
            os.kill(os.getpid(), signal.SIGKILL)
        began = time.perf_counter()
        while time.perf_counter() - began < 60:
            time.sleep(0.05)


def unopened() -> None:
    """Pickled as a name that the second process cannot import."""


def joined(folder: str, wrong: int) -> tuple[int, int, int]:
    """Ranks and threads here; each leaves its process number, and `wrong` has an error."""
    with ranks.together(torch.device("cpu"), spread="units"):
        own = ranks.rank()
        (Path(folder) / str(own)).write_text(str(os.getpid()))
        if own == wrong:
            raise ValueError(f"said by {own}")
        ranks.wait()
        return own, ranks.n_ranks(), torch.get_num_threads()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_this_process_is_the_first_of_those_it_starts_and_alone_again_after(tmp_path, threads):
    threads(4)
    before = dict(os.environ)
    assert company.by_processes(2, joined, str(tmp_path), -1) == (0, 2, 2)
    numbers = [int((tmp_path / own).read_text()) for own in "01"]
    assert numbers[0] == os.getpid() != numbers[1]
    assert dict(os.environ) == before
    assert torch.get_num_threads() == 4
    with pytest.raises(ProcessLookupError):
        os.kill(numbers[1], 0)
    assert company.by_processes(1, joined, str(tmp_path), -1) == (0, 1, 4)


@pytest.mark.parametrize(("wrong", "error"), [(0, ValueError), (1, SystemExit)])
def test_an_error_of_any_is_said_once_and_ends_all(tmp_path, capfd, wrong, error):
    with pytest.raises(error, match="^said by 0$" if wrong == 0 else "^1$"):
        company.by_processes(2, joined, str(tmp_path), wrong)
    said = capfd.readouterr().err
    assert said.count("error: said by 1") == wrong
    assert "WORLD_SIZE" not in os.environ
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "1").read_text()), 0)


@pytest.mark.parametrize("how", ["signal", "memory"])
def test_one_that_is_gone_is_said_while_the_first_one_works(tmp_path, capfd, how):
    began = time.perf_counter()
    line = "ended by signal 9: the same command" if how == "signal" else "^1$"
    with pytest.raises((ValueError, SystemExit), match=line):
        company.by_processes(2, absent, str(tmp_path), how)
    assert time.perf_counter() - began < 50
    assert capfd.readouterr().err.count("error: not enough memory") == (how == "memory")


def test_one_that_never_comes_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(unopened, "__module__", "none_such")
    monkeypatch.setitem(sys.modules, "none_such", sys.modules[__name__])
    with pytest.raises(ValueError, match="another process of this run has ended with exit code 1"):
        company.by_processes(2, unopened)


def test_without_a_network_of_its_own_a_machine_has_one_process(monkeypatch, tmp_path, capsys):
    def none(*_: object) -> None:
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(company.socket, "create_server", none)
    assert company.by_processes(2, joined, str(tmp_path), -1)[:2] == (0, 1)
    assert "one process for all texts and seeds: no connection" in capsys.readouterr().err


def test_units_are_shared_where_that_is_worth_it(monkeypatch, tmp_path):
    long = plan.Config(device="cpu")
    monkeypatch.setattr(company, "free_memory", lambda: 64 << 30)

    def chosen(config: plan.Config, threads: int, units: int = 6) -> int:
        return company.n_processes(replace(config, threads=threads), units)

    assert [chosen(long, threads) for threads in (1, 2, 3, 4, 5, 6, 64)] == [1, 2, 3, 3, 3, 6, 6]
    assert [chosen(long, 2, units) for units in (1, 2, 3)] == [1, 2, 2]
    assert chosen(replace(long, steps=20), 2) == 1
    assert chosen(replace(long, processes=1), 2) == 1
    assert chosen(replace(long, processes=5), 2) == 5
    with pytest.raises(ValueError, match=r"at most the 2 units \(texts times seeds.*; got 5"):
        chosen(replace(long, processes=5), 2, 2)
    (tmp_path / "weights").write_bytes(bytes(1 << 20))
    own = replace(long, lm=str(tmp_path))
    for n, gib, config in (
        (2, 21, long), (1, 19, long), (1, 0, long), (1, 64, replace(long, d_sae=1 << 20)),
        (1, 40, replace(long, hidden_dec=16_384)), (6, 80, replace(long, hidden_dec=1_024)),
        (2, 20.01, own), (1, 20, own), (1, 10**6, replace(long, lm="EleutherAI/pythia-70m")),
    ):  # fmt: skip
        monkeypatch.setattr(company, "free_memory", lambda gib=gib: int(gib * 2**30))
        assert chosen(config, 64) == n, (gib, config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert chosen(long, 2) == 1
    with pytest.raises(ValueError, match="torchrun has started the processes"):
        chosen(replace(long, processes=2), 2)


def test_a_run_by_two_processes_that_was_killed_comes_to_the_bits_of_one(
    lm_folder, tmp_path, threads
):
    """The second process ends with the first, which was killed, and the command goes on."""
    threads(1)
    config = replace(toys.toy_config(tmp_path, lm_folder), threads=1, seeds=2)
    experiment.run(tmp_path / "1" / "run_2", config)
    out = tmp_path / "2" / "run_2"
    default = plan.Config()
    changed = [
        f"--{f.name}={getattr(config, f.name)}"
        for f in fields(config)
        if getattr(config, f.name) != getattr(default, f.name)
    ]
    command = [sys.executable, "experiment.py", f"--out_dir={out}", *changed, "--processes=2"]

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=toys.ROOT, stderr=subprocess.PIPE, text=True)

    first = started()
    for _ in range(3_000):
        if list(out.rglob("seed_1/*.checkpoint.safetensors")) or first.poll() is not None:
            break
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    said = first.communicate(timeout=60)[1]  # ends when no process holds stderr any more
    assert first.returncode == -signal.SIGKILL, said
    again = started()
    said = again.communicate(timeout=240)[1]
    assert again.returncode == 0, said
    assert "2 processes share the texts and seeds" in said
    models = [
        {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*/*.safetensors")}
        for run in (tmp_path / "1" / "run_2", out)
    ]
    assert len(models[0]) > 4
    assert models[0] == models[1]
    assert (out / "log_1.jsonl").stat().st_size > 0


def test_what_the_command_line_asks_for_is_shared_and_bad_input_starts_nobody(
    monkeypatch, lm_folder, tmp_path
):
    config = replace(toys.toy_config(tmp_path, lm_folder), processes=2)
    asked = []
    monkeypatch.setattr(company, "by_processes", lambda *said: asked.append(said))
    experiment.run_shared(tmp_path / "run_2", config)
    experiment.run_shared(tmp_path / "run_4", replace(config, tune=True, systems="static,tsae"))
    assert [(n, act, own.spread) for n, act, _, own in asked] == [
        (2, experiment.run, "units"), (2, experiment.run_compared, "units")
    ]  # fmt: skip
    experiment.run_shared(tmp_path / "run_2", replace(config, processes=0))
    assert (asked[-1][0], asked[-1][-1].spread) == (1, "sequences")
    (tmp_path / "run_1").mkdir()
    (tmp_path / "run_1" / "notes.txt").write_text("mine")
    for out, bad, need in (
        ("run_2", {"processes": 3}, "at most the 2 units"),
        ("run_4", {"processes": 2, "tune": True, "systems": "static"}, "at most the 1 units"),
        ("run_2", {"datasets": str(tmp_path / "no.txt")}, "no.txt"),
        ("run_1", {}, "holds files that are not a run's"),
    ):
        with pytest.raises(ValueError, match=need):
            experiment.run_shared(tmp_path / out, replace(config, **bad))
    assert len(asked) == 3
    with pytest.raises(ValueError, match="none_such"):
        experiment.run_compared(tmp_path / "run_4", replace(config, systems="none_such"))
    with pytest.raises(ValueError, match="processes needs to be in"):
        experiment.run_shared(tmp_path / "run_2", replace(config, processes=-1))
    with pytest.raises(ValueError, match="seeds needs to be at least 1"):
        experiment.run_shared(tmp_path / "run_2", replace(config, processes=0, seeds=0))
    with pytest.raises(ValueError, match="pieces needs 1 <= pieces"):
        experiment.run_shared(tmp_path / "run_2", replace(config, processes=0, pieces=0))
