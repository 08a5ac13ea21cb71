from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import tsae
from tsae import Dials, Static
from tsae_lab.jobs import bench, checkpoint, schedules, training
from tsae_lab.jobs.schedules import Phases
from tsae_lab.jobs.training import Recipe

ALONE = Phases(pretrain=10**6, settle=0, introduce=0, refine=0)
FOUR = Phases(pretrain=2, settle=2, introduce=3, refine=4)
SMALL = Recipe(k=3, d_sae=24, window=3, beta=1.0, hidden_enc=5, hidden_dec=7, warmup=1, lr=2e-3)
FP32 = torch.float32


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def planted(n_true, d_in, shape, k, g, noise=0.01):
    """Unit directions, and tokens that are each a positive sum of `k` of them."""
    directions = torch.nn.functional.normalize(torch.randn(n_true, d_in, generator=g), dim=1)
    on = torch.rand(*shape, n_true, generator=g).topk(k).indices
    strength = 1 + torch.rand(*shape, k, generator=g)
    acts = torch.zeros(*shape, n_true).scatter(-1, on, strength)
    return directions, acts @ directions + noise * torch.randn(*shape, d_in, generator=g)


def small_trainer(*, temporal, recipe=SMALL, d_in=6, seed=0):
    """A trainer of a random small model; a TSAE with gates and output weights that are not at their
    start.
    """
    g = generator(seed)
    static = tsae.init_static(torch.randn(d_in, generator=g), recipe.d_sae, generator=g)
    if not temporal:
        return training.start_trainer(tsae.tensors(static), recipe)
    params = tsae.from_static(static, scale=1.5, hidden_enc=5, hidden_dec=7, generator=g)
    t = params.temporal
    W_gate, W_out = (torch.randn(w.shape, generator=g) / 9 for w in (t.W_gate, t.W_out))
    params = replace(params, temporal=replace(t, W_gate=W_gate, b_gate=t.b_gate - 0.4, W_out=W_out))
    return training.start_trainer(tsae.tensors(params), recipe)


def batch(step, *, rows=4, seq=5, d_in=6):
    return torch.randn(rows, seq, d_in, generator=generator(100 + step)), torch.ones(rows, seq)


def steps(trainer, numbers, phases, recipe=SMALL, low=FP32):
    for step in numbers:
        begins = step % 3 == 0
        trainer, info = training.train_step(
            trainer, *batch(step), step, recipe, phases, low, begins=begins
        )
        assert all(value == value for value in info.values())
    return trainer


# ------------------------------------------------------------------------------- what it is all for


def test_a_static_sae_recovers_planted_features_and_its_loss_falls():
    recipe = replace(SMALL, k=3, d_sae=40, lr=1e-2, warmup=10, decay=0.5)
    directions, x = planted(20, 16, (80, 8, 8), 3, g=generator())
    phases = Phases(pretrain=240, settle=0, introduce=0, refine=0)
    start = tsae.init_static(x.mean((0, 1, 2)), recipe.d_sae, generator=generator(1))
    trainer, losses = training.start_trainer(tsae.tensors(start), recipe), []
    for step in range(phases.total):
        trainer, info = training.train_step(
            trainer, x[step % 80], torch.ones(8, 8), step, recipe, phases, FP32
        )
        losses.append(info["loss"])
    found = (directions @ trainer.named["W_dec"].detach().t()).max(1).values
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    assert found.mean() > 0.9
    assert (found > 0.9).float().mean() > 0.8


def markov(shape, n, stay, g):
    """`n` features a token that are on for about 1 / (1 - stay) tokens on end, half of the time."""
    rows, seq = shape
    on = [torch.rand(rows, n, generator=g) < 0.5]
    for _ in range(seq - 1):
        on.append(on[-1] ^ (torch.rand(rows, n, generator=g) > stay))
    return torch.stack(on, 1).float()


def test_memory_finds_persistent_features_in_noise_and_keeps_them():
    g, slow, fast, k = generator(), 6, 30, 5
    directions = torch.linalg.qr(torch.randn(40, 40, generator=g)).Q[: slow + fast]
    truth = markov((16, 60), slow, 0.95, g)
    passing = torch.zeros(16, 60, fast).scatter(
        -1, torch.rand(16, 60, fast, generator=g).topk(2).indices, 1.2
    )
    strength = 1 + 0.5 * torch.randn(16, 60, slow, generator=g)
    x = torch.cat([truth * strength, passing], -1) @ directions + 0.1 * torch.randn(
        16, 60, 40, generator=g
    )
    static = Static(
        W_enc=directions.t(), b_enc=torch.zeros(36), W_dec=directions, b_dec=torch.zeros(40)
    )
    params = tsae.from_static(static, scale=0.3, hidden_enc=2, hidden_dec=3, generator=g)
    overlap, recall = [], []
    for beta in (0.0, 0.5, 1.5):
        codes, _ = tsae.encode(params, x, Dials(k=k, window=8, beta=beta))
        on = tsae.dense(codes, 36) > 0
        both, either = (on[:, 1:] & on[:, :-1]).sum(-1), (on[:, 1:] | on[:, :-1]).sum(-1)
        overlap.append((both / either.clamp(min=1)).mean().item())
        recall.append((on[..., :slow].float() * truth).sum().item() / truth.sum().item())
    assert overlap == sorted(overlap)
    assert overlap[-1] > 1.2 * overlap[0]
    assert recall[1] > recall[0]


def test_the_lstms_learn_what_the_past_tells_of_the_present_while_the_static_sae_is_frozen():
    g, recipe = (
        generator(),
        replace(SMALL, k=2, d_sae=16, beta=0.3, hidden_enc=8, hidden_dec=24, lr=1e-2, clip=5.0),
    )
    directions = torch.linalg.qr(torch.randn(20, 20, generator=g)).Q[:16]
    on = torch.rand(8, 32, 10, 16, generator=g).topk(2).indices
    acts = torch.zeros(8, 32, 10, 16).scatter(-1, on, 1 + torch.rand(8, 32, 10, 2, generator=g))
    x = acts @ directions
    x[:, :, 1:] += (
        acts[:, :, :-1] @ torch.randn(16, 20, generator=g) * 0.4
    )  # what fired a token ago adds to this one
    static = Static(
        W_enc=directions.t(), b_enc=torch.zeros(16), W_dec=directions, b_dec=torch.zeros(20)
    )
    params = tsae.from_static(static, scale=0.5, hidden_enc=8, hidden_dec=24, generator=g)
    trainer, weight = training.start_trainer(tsae.tensors(params), recipe), torch.ones(32, 10)
    phases, fve = Phases(pretrain=0, settle=0, introduce=70, refine=0), []
    for step in range(70):
        trainer, info = training.train_step(
            trainer, x[step % 8], weight, step, recipe, phases, FP32
        )
        fve.append(info["fve"])
    assert torch.equal(trainer.named["W_dec"], directions)
    assert sum(fve[-8:]) / 8 > sum(fve[:8]) / 8 + 0.02  # at its start it is the static SAE


def test_the_auxiliary_loss_revives_dead_features():
    recipe = replace(SMALL, k=2, d_sae=20, lr=5e-3, dead_after=64, k_aux=8, aux=0.5)
    _, x = planted(16, 8, (60, 8, 4), 2, g=generator())
    start = tsae.init_static(x.mean((0, 1, 2)), recipe.d_sae, generator=generator(1))
    start.W_enc[:, 8:] *= 0.02  # never among the k largest
    fired = {}
    for aux in (0.0, recipe.aux):
        trainer = training.start_trainer(tsae.tensors(start), recipe)
        for step in range(120):
            one = replace(recipe, aux=aux)
            trainer, _ = training.train_step(
                trainer, x[step % 60], torch.ones(8, 4), step, one, ALONE, FP32
            )
        fired[aux] = int((trainer.life.idle < 1_000).sum())
    assert fired[recipe.aux] > fired[0.0] + 4


# ------------------------------------------------------------------------------------- the products


class Products(TorchDispatchMode):
    """Records the shapes of the operands of every matrix product."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm", "addmv", "mv", "dot"):
            self.shapes.append([tuple(a.shape) for a in args if isinstance(a, torch.Tensor)])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("temporal", "step", "encoders"), [(False, 0, 1), (True, 2, 1), (True, 6, 1), (True, 8, 1)]
)
def test_no_dense_code_is_multiplied_by_a_weight_in_a_step(temporal, step, encoders):
    trainer = small_trainer(temporal=temporal)
    with Products() as seen:
        training.train_step(trainer, *batch(step), step, SMALL, FOUR if temporal else ALONE, FP32)
    tokens, d_in, d_sae = 20, 6, SMALL.d_sae
    assert sum(shapes == [(tokens, d_in), (d_in, d_sae)] for shapes in seen.shapes) == encoders
    dense = {(tokens, d_sae), (d_sae, tokens), (4, 5, d_sae), (d_sae, d_in)}
    assert not [shapes for shapes in seen.shapes if dense & set(shapes)]
    assert len(seen.shapes) == encoders if not temporal else len(seen.shapes) > 4


# --------------------------------------------------------------------------------------- the phases


def test_each_phase_trains_its_own_tensors():
    trainer, seen = small_trainer(temporal=True), {}
    for step in range(2, 11):
        before = {name: tensor.detach().clone() for name, tensor in trainer.named.items()}
        trainer, info = training.train_step(trainer, *batch(step), step, SMALL, FOUR, FP32)
        moved = {
            name for name, tensor in trainer.named.items() if not torch.equal(tensor, before[name])
        }
        seen[info["phase"]] = seen.get(info["phase"], set()) | moved
    everything = {*training.STATIC, *training.TEMPORAL} - {"scale"}
    assert seen["introduce"] == everything - set(training.STATIC)
    assert seen["refine"] == everything
    assert seen["settle"] == seen["introduce"] - {"bridge"}
    for phase in ("pretrain", "settle", "introduce", "refine"):
        assert seen.get(phase, set()) <= training.trained_at(phase, SMALL)


def test_a_bridge_that_is_not_to_be_learned_stays():
    recipe = replace(SMALL, learn_bridge=False)
    trainer = steps(small_trainer(temporal=True), range(2, 11), FOUR, recipe)
    assert torch.equal(trainer.named["bridge"], torch.ones(24))
    assert "bridge" not in {
        n for phase in ("settle", "introduce", "refine") for n in training.trained_at(phase, recipe)
    }


@pytest.mark.parametrize("temporal", [False, True])
def test_rows_of_the_decoder_have_unit_norm_after_every_step(temporal):
    trainer = small_trainer(temporal=temporal)
    for step in range(0 if not temporal else 2, 11):
        trainer = steps(trainer, [step], FOUR if temporal else ALONE)
        torch.testing.assert_close(
            trainer.named["W_dec"].norm(dim=1), torch.ones(24), rtol=0, atol=1e-6
        )


def test_the_dials_of_a_step_follow_the_schedules_and_end_at_the_recipe():
    dials = [training.dials_at(step, SMALL, FOUR, FP32) for step in range(11)]
    assert [d.beta for d in dials[:5] + dials[7:]] == [0.0] * 5 + [SMALL.beta] * 4
    assert {d.mix for d in dials} == {1.0}
    assert [d.k for d in dials[:3]] == [4] * 3
    assert [d.k for d in dials[7:]] == [3] * 4
    assert dials[10] == training.final_dials(SMALL)


@given(st.integers(0, 299), st.floats(0.01, 1))
@settings(deadline=None, max_examples=40)
def test_rates_are_those_of_the_schedule_and_the_temporal_parts_warm_up_again(step, decay):
    recipe = replace(Recipe(), decay=decay)
    phases = schedules.phase_steps(300, pretrain=0.4, settle=0.1, introduce=0.2)
    rate = training.rates(step, recipe, phases)
    assert set(rate) == {*training.STATIC, *training.TEMPORAL} - {"scale"}
    base = recipe.lr * schedules.rate_at(step, total=300, warmup=recipe.warmup, decay=decay)
    assert 0 < base <= recipe.lr
    assert all(rate[name] == base for name in training.STATIC)
    into = min(1, (step - phases.pretrain + 1) / recipe.warmup)
    assert rate["dec_W_x"] == rate["bridge"] == pytest.approx(max(into, 0) * base)


def test_the_gradients_of_static_and_temporal_tensors_are_clipped_apart():
    trainer = small_trainer(temporal=True)
    x, weight = batch(8)
    _, info = training.train_step(trainer, 50 * x, weight, 8, SMALL, FOUR, FP32)
    for names in (training.STATIC, training.TEMPORAL):
        grads = [g for n in names if (g := trainer.named[n].grad) is not None]
        assert torch.cat([g.flatten() for g in grads]).norm().item() == pytest.approx(1, abs=1e-3)
    assert info["grad_norm"] > 10


def test_a_feature_is_taken_for_dead_after_a_thousand_mean_distances_or_as_told():
    assert Recipe(d_sae=4_608, k=32).patience == 144_000
    assert Recipe(d_sae=16_384, k=64).patience == 256_000
    assert Recipe(dead_after=7).patience == 7


@pytest.mark.parametrize(("epoch", "dead"), [(10, 3), (40, 2), (10**9, 1)])
def test_the_share_of_dead_features_is_over_an_epoch_or_all_tokens_read(epoch, dead):
    trainer = small_trainer(temporal=False)
    idle = torch.zeros(24, dtype=torch.int64)
    idle[:3] = torch.tensor([10, 40, 100])
    life = replace(trainer.life, idle=idle, tokens=torch.tensor(100))
    assert training.dead_frac(replace(trainer, life=life), epoch) == dead / 24


def test_weights_of_a_trainer_are_its_own_without_gradients():
    trainer = small_trainer(temporal=True)
    params = training.params_of(trainer)
    assert tsae.tensors(params).keys() == trainer.named.keys()
    assert not any(tensor.requires_grad for tensor in tsae.tensors(params).values())
    assert training.static_of(trainer).W_dec.data_ptr() == trainer.named["W_dec"].data_ptr()


# --------------------------------------------------------------------------------- to the same bits


@pytest.mark.parametrize(
    ("temporal", "first", "cut", "last"),
    [(False, 0, 3, 6), (True, 2, 3, 6), (True, 2, 4, 9), (True, 2, 7, 9), (True, 2, 2, 4)],
)
def test_a_run_continued_from_its_checkpoint_has_the_same_bits(
    temporal, first, cut, last, tmp_path
):
    recipe, phases = replace(SMALL, dead_after=40), FOUR if temporal else ALONE
    whole = steps(small_trainer(temporal=temporal), range(first, cut), phases, recipe)
    checkpoint.save_tensors(tmp_path / "at", training.snapshot(whole), {"step": cut})
    whole = steps(whole, range(cut, last), phases, recipe)
    saved, meta = checkpoint.load_tensors(tmp_path / "at")
    again = steps(training.restore(saved, recipe), range(meta["step"], last), phases, recipe)
    expected, got = training.snapshot(whole), training.snapshot(again)
    assert expected.keys() == got.keys()
    assert list(whole.named) == list(
        again.named
    )  # the order in which the gradient's norm is summed
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())
    assert cut == first or any(name.startswith("adam.") for name in saved)


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 60), st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), max_size=9)
)
def test_a_feature_is_dead_after_whole_steps_of_that_many_tokens_in_which_it_never_fired(
    dead_after, lengths
):
    """The loop counts per step; the trainer goes through its checkpoint after every other step."""
    recipe = replace(SMALL, dead_after=dead_after, k_aux=4)
    trainer, off = small_trainer(temporal=False), [0] * recipe.d_sae
    for step, valid in enumerate(lengths):
        expected = [f for f in range(recipe.d_sae) if off[f] >= dead_after]
        assert training.dead_features(trainer, recipe).tolist() == expected
        weight = (torch.arange(5) < torch.tensor(valid)[:, None]).float()
        x = batch(step)[0] * weight[..., None]
        static = Static(**{n: trainer.named[n].detach().clone() for n in training.STATIC})
        acts = tsae.dense(tsae.encode_static(x, static, recipe.k), recipe.d_sae)
        fired = acts[weight > 0].sum(0) > 0
        off = [0 if fired[f] else n + sum(valid) for f, n in enumerate(off)]
        trainer, info = training.train_step(trainer, x, weight, step, recipe, ALONE, FP32)
        assert info["dead"] == len(expected)
        assert trainer.life.streams is None
        if step % 2:
            trainer = training.restore(training.snapshot(trainer), recipe)


def test_a_checkpoint_from_before_the_lifecycle_has_the_same_dead_features():
    recipe = replace(SMALL, dead_after=45)
    trainer = small_trainer(temporal=False)
    off = torch.randint(0, 3, (24,), generator=generator()) * 20  # whole steps of 20 tokens
    saved = training.snapshot(trainer)
    old = {n: t for n, t in saved.items() if not n.startswith(("life.", "silent", "dead"))}
    trainer, dead = training.restore(old | {"idle": off}, recipe), []
    for step in range(4):
        dead = training.dead_features(trainer, recipe).tolist()
        assert dead == (off >= 45).nonzero()[:, 0].tolist()
        trainer, _ = training.train_step(trainer, *batch(step), step, recipe, ALONE, FP32)
        off = torch.where(trainer.life.idle < 20, 0, off + 20)
    assert len(dead)


def test_the_recipes_dials_are_those_of_the_model_and_have_its_defaults():
    recipe, dials = Recipe(), Dials()
    assert training.final_dials(recipe) == dials
    moved = replace(recipe, window=5, tau=7.0, cap=0.5, beta=0.25, gate=False, recur=False, k=9)
    given_ = {name: getattr(moved, name) for name in vars(dials) if hasattr(moved, name)}
    assert set(vars(dials)) - set(given_) == {"mix", "low"}
    assert training.final_dials(moved, torch.bfloat16) == Dials(**given_, low=torch.bfloat16)


@given(k=st.integers(0, 4_608), beta=st.floats(0, 5))
def test_the_memory_weakens_as_the_root_of_more_features_than_32(k, beta):
    strength = training.final_dials(replace(Recipe(), k=k, beta=beta)).beta
    if k <= 32:
        assert strength == beta
    else:
        assert strength**2 * k == pytest.approx(beta**2 * 32)
    per_step = training.dials_at(9, replace(SMALL, k=k, beta=beta), FOUR, FP32).beta
    assert per_step == strength


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 30))
def test_a_checkpoint_with_the_tokens_of_its_steps_has_the_same_dead_features(steps_back, patience):
    """Newest first; a feature that was on `idle` tokens ago fired in the step which that is in."""
    idle = torch.arange(SMALL.d_sae) % (sum(steps_back) + 1)
    saved = training.snapshot(small_trainer(temporal=False))
    saved = {n: t for n, t in saved.items() if n not in ("silent", "dead")}
    saved |= {"life.idle": idle, "step_tokens": torch.tensor(steps_back, dtype=torch.int64)}
    silent = training.restore(saved, replace(SMALL, dead_after=patience)).silent.tolist()
    for tokens, got in zip(idle.tolist(), silent, strict=True):
        whole, left = 0, tokens
        for n in steps_back:  # steps that lie behind it as a whole
            if left < n:
                break
            whole, left = whole + n, left - n
        assert got == whole


def test_a_tsae_takes_over_the_moments_and_the_lifecycle_of_its_static_sae():
    static = small_trainer(temporal=False)
    for step in range(4):
        static, _ = training.train_step(static, *batch(step), step, SMALL, ALONE, FP32)
    start = training.snapshot(small_trainer(temporal=True))
    named = {n.removeprefix("param."): t for n, t in start.items() if n.startswith("param.")}
    ours = training.snapshot(training.start_trainer(named, SMALL, before=static))
    theirs = training.snapshot(static)
    assert {n for n in ours if n.startswith("adam.")} == {
        n for n in theirs if n.startswith("adam.")
    }
    assert all(
        torch.equal(ours[n], theirs[n]) and ours[n] is not theirs[n]
        for n in ours
        if n.startswith("adam.")
    )
    counts = [n for n in theirs if n.startswith("life.")] + ["silent", "dead"]
    assert all(torch.equal(ours[n], theirs[n]) for n in counts)
    assert theirs["life.tokens"] == 4 * 20
    assert all(torch.equal(ours[f"param.{n}"], named[n]) for n in named)


@pytest.mark.parametrize("step", [2, 6, 8])
def test_a_sequence_read_in_pieces_is_seen_as_one_read_at_once(step):
    """At a rate of 0, each phase: the second piece's reconstruction is that of the whole
    sequence.
    """
    frozen = replace(SMALL, lr=0.0)
    x, weight = batch(0, seq=9)
    trainer = small_trainer(temporal=True)
    whole, whole_info = training.train_step(trainer, x, weight, step, frozen, FOUR, FP32)
    trainer, first = training.train_step(trainer, x[:, :5], weight[:, :5], step, frozen, FOUR, FP32)
    carried, second = training.train_step(
        trainer, x[:, 5:], weight[:, 5:], step, frozen, FOUR, FP32, begins=False
    )
    whole_loss, *losses = (info["loss"].item() for info in (whole_info, first, second))
    assert whole_loss == pytest.approx((5 * losses[0] + 4 * losses[1]) / 9, rel=1e-4)
    assert carried.state is not None
    assert whole.state is not None
    assert carried.state.memory.pushed == whole.state.memory.pushed == 9
    for name in ("enc_h", "enc_c", "dec_h", "dec_c"):
        torch.testing.assert_close(getattr(carried.state, name), getattr(whole.state, name))
        assert not getattr(carried.state, name).requires_grad
    forgetful, anew = training.train_step(
        trainer, x[:, 5:], weight[:, 5:], step, frozen, FOUR, FP32
    )
    assert forgetful.state is not None
    assert forgetful.state.memory.pushed == 4
    assert step == 2 or anew["loss"].item() != pytest.approx(
        losses[1], rel=1e-4
    )  # before the introduction mix is 0


def test_a_trainer_works_on_copies():
    named = tsae.tensors(tsae.init_static(torch.ones(6), 24, generator=generator()))
    before = {name: tensor.clone() for name, tensor in named.items()}
    trainer = training.start_trainer(named, SMALL)
    x, weight = batch(0)
    x_before = x.clone()
    training.train_step(trainer, x, weight, 0, SMALL, ALONE, FP32)
    assert all(
        torch.equal(named[name], tensor) and not named[name].requires_grad
        for name, tensor in before.items()
    )
    assert torch.equal(x, x_before)


# -------------------------------------------------------------------------- padding, zeros, the log


@pytest.mark.parametrize(("temporal", "step"), [(False, 0), (True, 2), (True, 6), (True, 8)])
@pytest.mark.parametrize("dead_after", [10**6, 1])
def test_padding_has_no_influence_on_a_step(temporal, step, dead_after):
    recipe, phases = replace(SMALL, dead_after=dead_after), FOUR if temporal else ALONE
    x, weight = batch(step)
    padded, padded_weight = (
        torch.nn.functional.pad(t, p) for t, p in ((x, (0, 0, 0, 3)), (weight, (0, 3)))
    )
    grads, infos, idle = [], [], []
    for one, mask in ((x, weight), (padded, padded_weight)):
        trainer = small_trainer(temporal=temporal)
        # every other feature is dead where dead_after is 1
        trainer = replace(trainer, silent=torch.arange(24) % 2)
        trainer, info = training.train_step(trainer, one, mask, step, recipe, phases, FP32)
        grads.append({name: t.grad for name, t in trainer.named.items() if t.grad is not None})
        infos += training.fetched([info])
        idle.append(trainer.life.idle)
    assert infos[0]["dead"] == (12 if dead_after == 1 else 0)
    assert infos[0].pop("phase") == infos[1].pop("phase")
    assert infos[0] == pytest.approx(infos[1], rel=1e-4)
    assert torch.equal(*idle)
    assert list(grads[0]) == list(grads[1])
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("temporal", "first"), [(False, 0), (True, 2)])
@pytest.mark.parametrize("real", [0.0, 1.0])
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_activations_that_do_not_vary_give_finite_steps(temporal, first, real, value):
    trainer = small_trainer(temporal=temporal)
    recipe = replace(SMALL, dead_after=1)
    for step in range(first, 9):
        x = torch.full((4, 5, 6), value * real)
        trainer, info = training.train_step(
            trainer, x, torch.full((4, 5), real), step, recipe, FOUR if temporal else ALONE, FP32
        )
        assert all(abs(v) < 1e30 for name, v in info.items() if name != "phase")
        if value * real == 0:
            assert info["fve"] == 0
    assert all(tensor.isfinite().all() for tensor in trainer.named.values())


def test_the_log_says_what_the_codes_are():
    trainer = small_trainer(temporal=False)
    x, weight = batch(0)
    weight[0, 3:] = weight[2, 1:] = 0
    x = x * weight[..., None]
    static = Static(**{name: tensor.clone() for name, tensor in trainer.named.items()})
    codes = tsae.encode_static(x, static, 3)
    x_hat, real = tsae.decode_static(codes, static), weight > 0
    after, held = training.train_step(trainer, x, weight, 0, SMALL, ALONE, FP32)
    [info] = training.fetched([held])
    error = (x - x_hat)[real].square().sum()
    spread = (x[real] - x[real].mean(0)).square().sum()
    assert info["fve"] == pytest.approx(1 - (error / spread).item(), abs=1e-5)
    assert info["loss"] == pytest.approx(error.item() / real.sum().item(), rel=1e-5)
    assert info["l0"] == pytest.approx((codes.vals[real] > 0).sum().item() / real.sum().item())
    assert (info["phase"], info["k"], info["dead"]) == ("pretrain", 3, 0)
    acts = tsae.dense(codes, 24)[real]
    assert after.life.tokens.item() == len(acts) == int(real.sum())
    assert torch.equal(after.life.fired, (acts > 0).sum(0))
    assert torch.equal(after.life.peak, acts.amax(0))


def test_the_benchmark_runs_at_a_tiny_size(capsys, monkeypatch):
    monkeypatch.setattr(bench, "fast_memory", lambda: None)
    bench.bench_command(
        batch=2,
        seq=3,
        d_in=8,
        d_sae=64,
        k=2,
        window=2,
        hidden_enc=3,
        hidden_dec=5,
        repeats=1,
        threads=1,
    )
    shown = " ".join(capsys.readouterr().out.split())
    for name in (
        "one step of 6 tokens, 1 threads",
        "tokens/s",
        "parts of the TSAE step",
        "gates",
        "memory",
    ):
        assert name in shown


def test_the_dense_arm_of_the_benchmark_computes_what_the_static_sae_does():
    static = tsae.init_static(torch.ones(6), 24, generator=generator())
    x, _ = batch(0)
    expected = tsae.decode_static(tsae.encode_static(x, static, 3), static)
    torch.testing.assert_close(bench.DenseSAE(static, 3)(x.flatten(0, 1)), expected.flatten(0, 1))
    job = bench.Job(x=x, recipe=SMALL, low=FP32, static=static)
    dense, ours = bench.dense_step(job), cast(Any, bench.our_step(job, temporal=False))
    assert dense().item() == pytest.approx(ours()["loss"].item(), rel=1e-5)
