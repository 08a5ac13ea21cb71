"""A step that reads nothing back from the device: no value on the host, no shape that hangs on one.

On the `meta` device there are no values: what asks for one, or mixes devices, raises.
"""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import experiment
import tsae
from tsae_lab.jobs import journal, losses, schedules, training
from tsae_lab.jobs.training import Recipe, Trainer

RECIPE = Recipe(
    k=3, d_sae=96, window=3, hidden_enc=5, hidden_dec=7, warmup=1, k_aux=4, dead_after=9
)
PHASES = schedules.Phases(pretrain=2, settle=2, introduce=3, refine=4)
STEPS = {"pretrain": 0, "settle": 2, "introduce": 5, "refine": 8}
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "is_nonzero"}
WAITS |= {"unique", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave.Tensor"}


class NoWaiting(TorchDispatchMode):
    """Raises where an operation has to know a value on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indexed = name.startswith(("index", "_index_put"))
        masks = [t for t in pytree.tree_leaves(args) if getattr(t, "dtype", 0) == torch.bool]
        if name in WAITS or str(func) in WAITS or (indexed and masks):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def trainer_of(phase: str, seed: int = 0) -> Trainer:
    """A trainer with dead features, one of which has fired since it was listed."""
    params = toys.random_model(d_in=12, d_sae=RECIPE.d_sae, hidden=5, seed=seed)
    named = tsae.tensors(params.static if phase == "pretrain" else params)
    trainer = training.start_trainer(named, RECIPE)
    silent = torch.where(torch.arange(RECIPE.d_sae) % 3 == 0, 50, 0)
    dead = silent.nonzero()[:, 0]
    return replace(trainer, silent=silent.index_fill(0, dead[:1], 0), dead=dead)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations with padding, and documents that begin inside sequences."""
    g = torch.Generator().manual_seed(7)
    weight = (torch.arange(6) < torch.tensor([6, 4, 5, 6])[:, None]).float()
    starts = torch.rand(4, 6, generator=g) < 0.3
    return torch.randn(4, 6, 12, generator=g) * weight[..., None], weight, starts


def step(
    trainer: Trainer, phase: str, *, wait: bool, device: str = "cpu", carry: bool = False
) -> Any:
    x, weight, starts = batch()
    x, weight = x.to(device), weight.to(device)
    number, options = STEPS[phase], {"wait": wait, "begins": not carry, "starts": starts}
    low = torch.bfloat16
    return training.train_step(trainer, x, weight, number, RECIPE, PHASES, low, **options)


@pytest.mark.parametrize("phase", STEPS)
def test_a_step_that_may_not_wait_does_not(phase):
    trainer = trainer_of(phase)
    with NoWaiting():
        trainer, info = step(trainer, phase, wait=False)
        trainer, _ = step(trainer, phase, wait=False, carry=True)
    assert info["dead"] == 31
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        step(trainer, phase, wait=True)


@pytest.mark.parametrize("phase", STEPS)
def test_a_step_has_its_shapes_without_any_value_and_keeps_to_its_device(phase):
    trainer = trainer_of(phase)
    snapshot = {name: tensor.to("meta") for name, tensor in training.snapshot(trainer).items()}
    on_meta = replace(training.restore(snapshot, RECIPE), dead=trainer.dead.to("meta"))
    trainer, info = step(trainer, phase, wait=False)
    on_meta, held = step(on_meta, phase, wait=False, device="meta")
    shapes = [{n: t.shape for n, t in training.snapshot(t).items()} for t in (trainer, on_meta)]
    assert shapes[0] == shapes[1]
    assert {n for n, t in training.snapshot(on_meta).items() if t.device.type != "meta"} <= {
        "state.pushed", *(n for n in shapes[0] if n.endswith(".step"))
    }  # fmt: skip
    assert {n for n, v in held.items() if isinstance(v, torch.Tensor)} == {
        n for n, v in info.items() if isinstance(v, torch.Tensor)
    }


@pytest.mark.parametrize("phase", STEPS)
def test_a_step_that_does_not_wait_learns_what_one_that_waits_does(phase):
    """All listed are dead, so both revive the same; padding is skipped, or multiplied away."""
    results = []
    for wait in (True, False):
        trainer = trainer_of(phase)
        trainer = replace(trainer, silent=trainer.silent.index_fill(0, trainer.dead[:1], 50))
        trainer, info = step(trainer, phase, wait=wait)
        grads = {n: t.grad for n, t in trainer.named.items() if t.grad is not None}
        results.append((grads, training.fetched([info])[0]))
    (waited, info), (ran, other) = results
    assert info == pytest.approx(other)
    assert waited.keys() == ran.keys()
    for name, grad in waited.items():
        torch.testing.assert_close(ran[name], grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_feature_that_fired_since_it_was_listed_is_not_revived():
    trainer = trainer_of("pretrain")
    fired, others = trainer.dead[0], trainer.dead[1:]
    static = tsae.Static(**{n: trainer.named[n].detach().requires_grad_() for n in training.STATIC})
    x, weight, _ = batch()
    still = trainer.silent[trainer.dead] >= RECIPE.patience
    shared = {"k_aux": RECIPE.d_sae, "weight": weight > 0}
    loss = losses.auxiliary_loss(x - 1, x, static, trainer.dead, **shared, still=still)
    torch.testing.assert_close(
        loss, losses.auxiliary_loss(x - 1, x, static, others, **shared), rtol=1e-5, atol=0
    )
    loss.backward()
    assert static.W_dec.grad is not None
    assert not static.W_dec.grad[fired].any()
    assert static.W_dec.grad[others].any()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 70))
def test_dead_features_that_do_not_fit_at_once_are_searched_part_by_part(n_dead, k_aux, values):
    params = toys.random_model(d_in=12, d_sae=96).static
    x, _, _ = batch()
    dead = torch.randperm(96, generator=torch.Generator().manual_seed(n_dead))[:n_dead]
    results = []
    for most in (10**9, values * 24):
        static = tsae.Static(**{n: t.clone().requires_grad_() for n, t in vars(params).items()})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(losses, "DEAD_VALUES", most)
            loss = losses.auxiliary_loss(x - 1, x, static, dead, k_aux)
        loss.backward()
        results.append((loss, static.W_enc.grad, static.b_enc.grad, static.W_dec.grad))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_what_a_log_says_is_fetched_for_many_steps_at_once():
    infos = [
        {"phase": "all", "k": 3, "loss": torch.tensor(i / 3), "dead": torch.tensor(i)}
        for i in range(4)
    ]
    lines = training.fetched(infos)
    assert [line["dead"] for line in lines] == [0, 1, 2, 3]
    assert all(isinstance(line["dead"], int) and line["k"] == 3 for line in lines)
    assert [line["loss"] for line in lines] == [torch.tensor(i / 3).item() for i in range(4)]
    assert training.fetched([]) == []


@pytest.fixture
def unit(lm_folder, tmp_path):
    return toys.toy_unit(toys.toy_config(tmp_path, lm_folder), tmp_path / "unit")


def test_a_loop_that_waits_once_in_many_steps_logs_and_saves_what_one_that_always_waits_does(
    unit, monkeypatch
):
    alone = schedules.Phases(pretrain=12, settle=0, introduce=0, refine=0)
    logs, trainers = [], []
    for every in (1, 5):
        monkeypatch.setattr(journal, "wait_every", lambda _, every=every: every)
        trainer, seconds = experiment.fit(
            unit, "static", lambda: experiment.start_static(unit), range(8), alone
        )
        trainers.append(training.snapshot(trainer))
        logs.append([json.loads(line) for line in unit.log.read_text().splitlines()])
        assert seconds > 0
        unit.log.unlink()
        (unit.folder / "static.checkpoint.safetensors").unlink()
        (unit.folder / "before.static.checkpoint.safetensors").unlink()
    for line in (line for log in logs for line in log):
        assert line.pop("tokens_per_second") > 0
        line.pop("memory_mib")
        line.pop("checksum", None)  # of a line with its speed
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[1]] == list(range(1, 9))
    assert all(torch.equal(tensor, trainers[1][name]) for name, tensor in trainers[0].items())
    device = torch.device
    assert [journal.wait_every(device(name)) for name in ("cpu", "cuda")] == [5, 5]


def test_a_device_is_waited_for_once_in_fifty_steps_and_a_cpu_after_each():
    assert journal.wait_every(torch.device("cpu")) == 1
    assert journal.wait_every(torch.device("cuda")) == journal.EVERY == 50


def test_a_line_of_the_log_says_the_speed_and_the_bar_the_last_of_them():
    number = {"step": 3, "loss": 1.0, "fve": 0.5, "l0": 3.0, "grad_norm": 1.0, "tokens": 40}
    [line] = journal.step_lines([number], 0.5)
    assert line["tokens_per_second"] == 80
    assert "tokens" not in line
    assert journal.note(number, 0.5) == "fve 0.500  l0 3.0  80 tokens/s"
    journal.check_finite(line, "x", 1e-3)
    for name in ("loss", "grad_norm"):
        with pytest.raises(ValueError, match="at step 3; nothing of it was saved"):
            journal.check_finite(line | {name: float("nan")}, "x", 1e-3)
