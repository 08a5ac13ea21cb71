"""Training on a device, `--device=cuda` where there is one, against the CPU; memory and cost."""

import re
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
import toys

import experiment
import metrics
import tsae
import tsae_kernels
from tsae_lab import devices, terminal
from tsae_lab.jobs import bench, budget, growth, plan, schedules, study, training
from tsae_lab.jobs.plan import Config
from tsae_lab.jobs.training import Recipe
from tsae_lab.measures import evaluation

RECIPE = Recipe(
    k=8, d_sae=256, window=4, hidden_enc=16, hidden_dec=32, warmup=2, k_aux=16, dead_after=150
)
PHASES = schedules.Phases(pretrain=2, settle=2, introduce=2, refine=4)
FP32 = torch.float32


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    weight = (torch.arange(20) < torch.randint(15, 21, (8, 1), generator=g)).float()
    starts = torch.rand(8, 20, generator=g) < 0.1
    return torch.randn(8, 20, 32, generator=g) * weight[..., None], weight, starts


def trained(device: torch.device | str, low: torch.dtype = FP32) -> tuple[dict, list[dict]]:
    """A model after all phases, and its log; it waits for the device at the first step alone."""
    params = toys.random_model(d_in=32, d_sae=256, hidden=16)
    trainer, infos = training.start_trainer(tsae.tensors(tsae.to(params, device)), RECIPE), []
    for step in range(PHASES.total):
        x, weight, starts = batch(step)
        options: Any = {"begins": step % 3 == 0, "starts": starts, "wait": step == 0}
        trainer, info = training.train_step(
            trainer, x.to(device), weight.to(device), step, RECIPE, PHASES, low, **options
        )
        infos.append(info)
    return training.snapshot(trainer), training.fetched(infos)


def test_a_model_trained_on_the_device_is_the_one_trained_on_the_cpu(device):
    (saved, log), (own, expected) = trained(device), trained("cpu")
    for line, other in zip(log, expected, strict=True):
        assert line.pop("phase") == other.pop("phase")
        assert line == pytest.approx(other, rel=1e-2, abs=1e-3)
    assert {tensor.device.type for n, tensor in saved.items() if n.startswith("param.")} == {
        device.type
    }
    for name in ("param.W_dec", "param.dec_W_h", "param.W_gate"):
        assert (saved[name].cpu() - own[name]).norm() < 2e-2 * own[name].norm()


def test_training_on_the_device_has_the_same_bits_each_time(device):
    devices.same_sums()
    for low in (FP32, torch.bfloat16):
        (one, log), (two, again) = trained(device, low), trained(device, low)
        assert log == again
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_an_lstm_on_the_device_is_that_of_the_cpu(device):
    g = torch.Generator().manual_seed(0)
    shapes = (8, 20, 32), (8, 16), (8, 16), (32, 64), (16, 64), (64,)
    held = [torch.randn(shape, generator=g) / 4 for shape in shapes]
    for starts in (None, batch(0)[2]):
        results = []
        for place in ("cpu", device):
            leaves = [tensor.to(place, copy=True).requires_grad_() for tensor in held]
            hs, h, c = tsae_kernels.lstm(*leaves, starts=starts)
            loss = hs.square().sum() + h.sum() + c.sum()
            results.append([hs, h, c, *torch.autograd.grad(loss, leaves)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(b.cpu(), a, rtol=1e-3, atol=1e-3)  # TF32


def test_a_run_of_a_toy_model_is_trained_and_measured_on_the_device(device, lm_folder, tmp_path):
    config = replace(toys.toy_config(tmp_path, lm_folder), device=str(device), seeds=1, steps=8)
    info = experiment.run(tmp_path / "run_2", config)
    assert info[config.datasets]["means"]["fve_mean"] <= 1


def test_a_trade_off_goes_on_from_tensors_on_its_device(lm_folder, tmp_path, monkeypatch):
    config = replace(toys.toy_config(tmp_path, lm_folder), seeds=1)
    experiment.run(tmp_path / "run_2", config)
    places = []

    def loaded(*args: Any) -> None:
        places.append(args[1:])
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "load_tensors", loaded)
    with pytest.raises(KeyboardInterrupt):
        study.tradeoff(tmp_path / "run_2", config.datasets, (0.0,), 0, train=experiment.train_tsae)
    assert places == [(plan.lm_of(config).device,)]


# -------------------------------------------------------------------------------- what is not there


@pytest.mark.parametrize("name", ["foo", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_said_in_one_line(name):
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used here: "):
        devices.check_device(name)
    assert devices.check_device("") == devices.check_device("cpu") == torch.device("cpu")


def test_a_device_is_waited_for_and_its_memory_counted_where_somebody_counts_it(device):
    devices.start_peak(device)
    evaluation.wait_for(device)
    peak = devices.peak_gb(device)
    assert (peak is None) == (device.type != "cuda")


def test_memory_that_is_not_there_ends_in_a_line_that_says_what_to_lower(
    lm_folder, tmp_path, monkeypatch
):
    unit = toys.toy_unit(toys.toy_config(tmp_path, lm_folder), tmp_path / "unit")

    def none_left(*_: object, **__: object) -> None:
        said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 3 GiB"
        raise torch.OutOfMemoryError(said)

    monkeypatch.setattr(training, "train_step", none_left)
    alone = schedules.Phases(pretrain=12, settle=0, introduce=0, refine=0)
    with pytest.raises(ValueError, match="CUDA out of memory") as caught:
        experiment.fit(unit, "static", lambda: experiment.start_static(unit), range(2), alone)
    line = str(caught.value)
    assert "Tried to allocate 2.00 GiB: a step needs about " in line
    assert {f"--{n}={v}" for n, v in (("batch", 2), ("d_sae", 24), ("seq", 12))} <= {
        word for word in line.split() if word.startswith("--")
    }
    assert "\n" not in line
    with pytest.raises(KeyError), budget.fitting(unit.config, 24, FP32):
        raise KeyError("anything else")


def test_what_a_step_needs_is_what_its_tensors_take():
    """Up to `PRE_VALUES` two arrays of tokens by d_sae in `low`; beyond, nothing of that size."""
    recipe, low = Recipe(d_sae=8_192, hidden_enc=4, hidden_dec=4), torch.bfloat16
    n_weights = sum(t.numel() for t in _weights(recipe, 64).values())

    def slope(few: int, many: int) -> float:
        small, large = (budget.step_gb(recipe, 64, batch, 10, low) for batch in (few, many))
        assert small > 16 * n_weights / budget.GB
        return (large - small) * budget.GB / ((many - few) * 10 * 8_192)

    assert 4 <= slope(100, 800) < 6
    assert slope(2_000, 4_000) < 1
    config = Config(batch=512, d_sae=8_192, seq=20)
    said = budget.advice(config, 64, low)
    assert re.search(r"a step needs about [\d.]+ GB; lower one of --", said)
    assert said.index("--d_sae=4096") < said.index("--seq=10") or "--batch=256" in said


def _weights(recipe: Recipe, d_in: int) -> dict[str, torch.Tensor]:
    static = tsae.init_static(torch.zeros(d_in), recipe.d_sae, generator=torch.Generator())
    params = tsae.from_static(static, scale=1.0, generator=torch.Generator())
    return tsae.tensors(params)


# ------------------------------------------------------------------------------------ what it costs


def test_costs_are_measured_by_size_and_exponents_fitted(capsys):
    recipe, shape = Recipe(d_sae=64, k=4, hidden_enc=4, hidden_dec=4, dead_after=10**12), (2, 6, 8)
    cpu, moved = torch.device("cpu"), {"d_sae": (64, 128), "seq": (3, 4)}
    costs = growth.costs_by_size(recipe, shape, cpu, 1, moved)
    assert {name: list(by_value) for name, by_value in costs.items()} == {
        name: list(values) for name, values in moved.items()
    }
    assert all(
        p.static > 0 and p.tsae > 0 for by_value in costs.values() for p in by_value.values()
    )
    growth.show_costs(costs, "growth")
    shown = capsys.readouterr().out
    assert "d_sae: exponent" in shown
    assert growth.exponent([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0])[0] == pytest.approx(2)
    point = growth.cost(recipe, shape, cpu, 1)
    assert point.gb == budget.step_gb(recipe, 8, 2, 6, bench.job_of(recipe, shape, cpu).low)


def test_what_measuring_costs_is_taken_by_number_of_tokens(capsys):
    codes = growth.made_codes(3_000, 8, 64)
    assert codes.n_tokens == 12 * growth.DOCUMENT
    assert bool((codes.vals > 0).all())  # codes_from_topk refuses a feature twice in a token
    again = sum(n**-2 for n in range(1, 9)) / sum(1 / n for n in range(1, 9)) ** 2  # drawn twice
    assert metrics.births(codes) / 8 == pytest.approx((1 - growth.STAYS) * (1 - again), rel=0.03)
    costs = growth.measures_by_tokens((2_016, 4_032), 8, 64)
    assert costs.keys() == growth.MEASURES.keys()
    for by_tokens in costs.values():
        assert list(by_tokens) == [2_016, 4_032]
        assert all(took > 0 and gb is not None and gb >= 0 for took, gb in by_tokens.values())
    growth.show_measures(costs, "measures")
    assert "lifetimes: exponent" in capsys.readouterr().out


@pytest.mark.skipif(terminal.resident_mib() is None, reason="memory is read on Linux alone")
def test_memory_that_is_held_meanwhile_is_seen_though_it_is_given_back():
    took, gb = growth.spent(lambda: (torch.ones(5 * 10**7), time.sleep(0.1)))
    assert took > 0
    assert gb is not None
    assert 0.15 < gb < 0.6


def test_the_limit_of_a_step_counts_its_products_and_what_it_moves():
    job = bench.job_of(Recipe(d_sae=64, k=4), (2, 6, 8), torch.device("cpu"))
    products, moved = bench.work(job, temporal=False)
    assert products == 2 * 12 * 8 * 64
    low = job.low.itemsize
    assert moved == 2 * low * 12 * 64 + 4 * 4 * 12 * 4 * 8 + 7 * 4 * 2 * 8 * 64
    assert bench.work(job, temporal=True)[0] > products
    speed, copied = bench.device_rates(torch.device("cpu"), torch.float32, 1)
    assert speed > 1e9
    assert copied > 1e8
    assert bench.medians({"nothing": lambda: None}, 1, torch.device("cpu"))["nothing"] >= 0


def test_free_memory_is_the_systems_within_a_containers_limit(tmp_path):
    """In both versions of control groups; files that can be dropped are free."""
    assert devices.free_memory(tmp_path) == 0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:  500 kB\n")
    assert devices.free_memory(tmp_path) == 500 << 10
    new = tmp_path / "sys" / "fs" / "cgroup"
    old = new / "memory"
    old.mkdir(parents=True)
    for folder, limit, usage, key in (
        (new, "memory.max", "memory.current", "inactive_file"),
        (old, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        (folder / limit).write_text("max\n")
        (folder / usage).write_text("3000\n")
        assert devices.free_memory(tmp_path) == 500 << 10
        (folder / limit).write_text("5000\n")
        assert devices.free_memory(tmp_path) == 2000
        (folder / "memory.stat").write_text(f"anon 7\n{key} 400\n")
        assert devices.free_memory(tmp_path) == 2400
        (folder / usage).write_text("9000\n")
        assert devices.free_memory(tmp_path) == 0
        (folder / limit).write_text("max\n")
    (tmp_path / "proc" / "self").mkdir()
    (tmp_path / "proc" / "self" / "cgroup").write_text("4:cpu,memory:/job/step\n0::/slice\n")
    for inner, limit, usage in (
        (old / "job", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        (new / "slice", "memory.max", "memory.current"),
    ):
        inner.mkdir()
        (inner / limit).write_text("7000\n")
        (inner / usage).write_text("1000\n")
        assert devices.free_memory(tmp_path) == 6000
        (inner / usage).unlink()
