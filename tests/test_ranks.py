"""Several processes that train together: two on the CPU, by gloo."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toys

import experiment
import tsae
from tsae_lab.jobs import plan, ranks

OVER = {"loss": 1e-5, "fve": 1e-5, "l0": 1e-6, "grad_norm": 1e-5, "weights": 1e-5}


def started(command: list[str], *, n: int = 2, **more: str) -> list[subprocess.Popen[str]]:
    """The command once per rank, with the variables that torchrun would set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **more,
              "OMP_NUM_THREADS": "1", "PYTHONPATH": str(toys.ROOT)}  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *command], cwd=toys.ROOT, text=True, stderr=subprocess.PIPE,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(n)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit codes and what stood on stderr."""
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[dict[str, Any], Path]:
    """What rank 0 of two saw, and the folder where both wrote."""
    out = tmp_path_factory.mktemp("two") / "seen.json"
    results = ended(started(["tests/two_ranks.py"], OUT=str(out)))
    assert [code for code, _ in results] == [0, 3], results
    return json.loads(out.read_text()), out.parent


def test_two_ranks_sum_join_and_agree(two):
    seen, folder = two
    basics = seen["basics"]
    assert basics["ranks"] == 2
    assert basics["total"] == [2.0, 1.0]
    assert basics["largest"] == [0, 1]
    assert basics["mean"] == [4.0, 5.0]  # of five rows, of which one rank has two
    assert basics["shared"] == pytest.approx(0 * 2 / 5 + 1 * 3 / 5)
    assert basics["joined"] == list(range(10))
    assert basics["same"] == [0.0, 0]
    assert basics["led"] == "said by 0"
    assert seen["led_error"].startswith("invalid literal")
    assert (folder / "led_elsewhere.txt").read_text() == "silent"


@pytest.mark.parametrize("how", ["whole", "pieces"])
def test_two_ranks_learn_what_one_process_does_with_the_same_dead_features(two, how):
    """Through `advanced`, `sum_gradients`, the auxiliary loss and the states of the streams."""
    far = two[0][how]
    assert {name: far[name] <= most for name, most in OVER.items()} == dict.fromkeys(OVER, True)
    assert far["same_dead"]
    assert far["some_dead"] > 10
    assert far["shapes"]


def test_two_ranks_extract_the_bits_of_one_in_turns(two):
    """An error on either ends both, and the same call goes on after the last good block."""
    first, second = (json.loads((two[1] / f"extracted_{n}.json").read_text()) for n in (0, 1))
    blocks = first["blocks"]
    assert blocks > 5
    for seen in (first, second):
        assert seen["equal"]
        assert seen["again"]
        assert seen["fetched"]
    left = range(3, blocks)  # those before the error were written
    assert second["made"] == [*range(1, blocks, 2), 1, *left[1::2]]
    assert first["made"] == []  # a store makes its own
    assert first["error"] == "block 3 cannot be made"
    assert second["error"] == "silent"


def test_a_rank_with_another_configuration_says_so_and_the_others_are_silent(two):
    seen, folder = two
    assert seen["refused"] == ["silent", None]
    said = (folder / "said_by_1.txt").read_text()
    assert said == "rank 1 has another configuration than rank 0: steps=10 on rank 0, 11 here"


def test_a_rank_that_is_gone_is_one_line(two):
    line = two[0]["lost"]
    assert line.startswith("another process of this run has ended (")
    assert line.endswith("the same command goes on from the last checkpoint")
    assert "\n" not in line


def test_alone_nothing_is_shared(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not ranks.is_asked_for()
    with ranks.together(torch.device("cpu"), spread="sequences"):
        assert (ranks.rank(), ranks.n_ranks(), ranks.own_share(5)) == (0, 1, slice(0, 5))
    x = torch.randn(3, 2)
    assert ranks.total(x) is ranks.largest(x) is ranks.joined_rows(x, 3) is x
    assert torch.equal(ranks.mean(x), x.mean(0))
    assert ranks.shared(x.sum(), x) is not None
    assert ranks.led(lambda: 5) == ranks.in_turn(lambda: 5) == 5
    ranks.wait()
    ranks.refuse_others("configuration", {})
    ranks.same_everywhere({"x": x})
    ranks.sum_gradients({"x": x})
    assert ranks.own_state(None) is ranks.joined_state(None, 3) is None
    life = tsae.start_lifecycle(4, x)
    codes = tsae.Codes(torch.ones(1, 2, 1), torch.tensor([[[0], [2]]]))
    told = (
        ranks.advanced(life, codes, torch.ones(1, 2)),
        tsae.advance(life, codes, torch.ones(1, 2)),
    )
    assert all(torch.equal(a, b) for a, b in zip(*(vars(t).values() for t in told), strict=True)
               if a is not None)  # fmt: skip
    assert ranks.device_here("cpu") == torch.device("cpu")
    for name in ("cpu:x", "gpu", "cpu:1"):
        with pytest.raises(ValueError, match=f"^device '{name}' cannot be used here"):
            ranks.device_here(name)
    ranks.refuse_plan("run_3")
    with ranks.for_unit(3, 6, "units") as mine:
        assert mine
    ranks.refuse_few(1, 1, "sequences")


def test_too_few_sequences_or_units_and_runs_of_one_process_are_refused(monkeypatch):
    monkeypatch.setattr(ranks, "n_ranks", lambda: 4)
    with pytest.raises(ValueError, match="3 sequences of a batch for 4 processes: start no more"):
        ranks.refuse_few(3, 9, "sequences")
    with pytest.raises(
        ValueError, match=r"2 units \(texts times seeds, systems of a search\) for 4"
    ):
        ranks.refuse_few(64, 2, "units")
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    mine = []
    for number in range(9):
        with ranks.for_unit(number, 9, "units") as own:
            mine += [number] if own else []
    assert mine == [3, 4]
    assert [ranks.own_share(6)] == [slice(1, 3)]
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="run_3 is made by one process: train run_2 with torchrun"):
        ranks.refuse_plan("run_3")
    with pytest.raises(ValueError, match="run_4 share texts and seeds, not batches: it needs"):
        ranks.refuse_shared_batches("run_4", "sequences")
    ranks.refuse_shared_batches("run_4", "units")
    assert ranks.balanced([9, 3, 3, 3, 1, 1]) == [0, 1, 2, 3, 1, 2]
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        ranks.refuse_plan("run_3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks.device_here("cuda") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="a CUDA device of its own; this machine has 2"):
        ranks.device_here("cuda")


# --------------------------------------------------------------------------------- whole runs


def options(config: plan.Config) -> list[str]:
    """The configuration as the command line takes it."""
    default = plan.Config()
    changed = [
        f.name for f in fields(config) if getattr(config, f.name) != getattr(default, f.name)
    ]
    return [f"--{name}={getattr(config, name)}" for name in changed]


def curve(out: Path) -> dict[tuple[str, int, int], dict[str, float]]:
    lines = [json.loads(text) for log in sorted(out.glob("log*.jsonl"))
             for text in log.read_text().splitlines()]  # fmt: skip
    return {(line["model"], line["seed"], line["step"]): line for line in lines}


@pytest.fixture(scope="module")
def config(tmp_path_factory, lm_folder) -> plan.Config:
    return toys.toy_config(tmp_path_factory.mktemp("run"), lm_folder)


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run_2"
    experiment.run(out, config)
    return out


def test_two_processes_of_which_one_was_killed_come_to_the_run_of_one(config, alone, tmp_path):
    """Begun with a seed for each rank, gone on with a share of every batch for each; what the ranks
    extract together (`plan.all_data`) has the bytes of one.
    """
    out = tmp_path / "run_2"
    own = replace(config, cache_dir=str(tmp_path / "cache"))
    command = ["experiment.py", f"--out_dir={out}", *options(own)]
    first = started([*command, "--spread=units"])
    for _ in range(3_000):
        if list(out.rglob("seed_1/*.checkpoint.safetensors")) or first[1].poll() is not None:
            break
        time.sleep(0.05)
    first[1].send_signal(signal.SIGKILL)
    (code, said), (killed, _) = ended(first)
    assert (code, killed) == (1, -signal.SIGKILL)
    assert "another process of this run has ended" in " ".join(toys.error_line(said).split())
    assert (out / "log_1.jsonl").stat().st_size > 0
    results = ended(started(command))
    assert [code for code, _ in results] == [0, 0], results
    assert results[1][1] == ""
    one, two = curve(alone), curve(out)
    assert one.keys() == two.keys()
    stored = [
        {path.parent.name: path.read_bytes() for path in Path(c.cache_dir).rglob("data.bf16")}
        for c in (config, own)
    ]
    assert len(stored[0]) == 2
    assert stored[0] == stored[1]
    for step, line in one.items():
        for key in ("loss", "fve", "l0"):
            assert two[step][key] == pytest.approx(line[key], rel=1e-5, abs=1e-5), step
        assert two[step]["dead"] == line["dead"]
    numbers = [json.loads((run / "final_info.json").read_text()) for run in (alone, out)]
    both = [next(iter(info.values()))["means"] for info in numbers]
    assert both[0].keys() == both[1].keys()
    for key in ("fve_mean", "static_fve_mean", "dead_frac_mean", "l0_mean"):
        assert both[1][key] == pytest.approx(both[0][key], rel=1e-4)


def test_two_processes_search_and_compare_as_one_does(config, tmp_path):
    """The search's systems, and the comparison's seeds, in equal shares."""
    lm = toys.save_model(tmp_path / "lm", "llama", max_position_embeddings=128)
    asked = replace(config, lm=str(lm), systems="static,batch_topk", seeds=2, steps=4, share=0.02)
    infos = {}
    for n in (1, 2):
        out = tmp_path / str(n) / "run_4"
        command = ["experiment.py", f"--out_dir={out}", *options(asked), "--spread=units"]
        for more in (["--tune"], []):
            results = ended(started([*command, *more], n=n))
            assert [code for code, _ in results] == [0] * n, results
        infos[n] = (
            json.loads((out / "final_info.json").read_text()),
            (out / "tuning.csv").read_text(),
        )
    logs = sorted(path.name for path in (tmp_path / "2" / "run_4").glob("*.jsonl"))
    assert logs == ["log.jsonl", "log_1.jsonl", "tuning.jsonl", "tuning_1.jsonl"]
    assert infos[1][1] == infos[2][1]
    one, two = (next(iter(info.values()))["means"] for info, _ in (infos[1], infos[2]))
    timed = ("time", "per_second", "memory")
    assert one.keys() == two.keys()
    for key in [key for key in one if not any(word in key for word in timed)]:
        assert one[key] == two[key], key
