"""Each rival holds what its paper says of it, and trains in the one loop."""

# None, or another type, is what no test here gets
# pyright: reportOptionalCall=false, reportAttributeAccessIssue=false

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import tensors
from toys import random_model, store_of

import metrics
import tsae
from tsae_lab.data import store
from tsae_lab.jobs import entries, training
from tsae_lab.jobs.entries import Surroundings
from tsae_lab.jobs.plan import Config
from tsae_lab.measures import evaluation, readout
from tsae_lab.rivals import (
    batch_topk,
    bypass,
    crosscoder,
    persistent,
    posthoc,
    ragged,
    relu,
    system,
    tfa,
)
from tsae_lab.rivals.t_sae import FRACTIONS, contrastive_loss, t_sae_system

FP32 = torch.float32
D_IN, D_SAE, K = 6, 24, 3
SMALL = Config(k=K, d_sae=D_SAE, window=3, hidden_enc=5, hidden_dec=7, warmup=1, lr=1e-2)
AROUND = Surroundings(low=FP32, d_in=D_IN, distinct=lambda n: 2 * n)
RIVALS = [name for name, entry in entries.ENTRIES.items() if entry.kind == "rival"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_x(*shape, seed=1):
    return torch.randn(*shape, D_IN, generator=generator(seed))


def started(made, seed=0):
    named = made.start(some_x(50, seed=9), generator(seed))
    named["b_enc"] = torch.randn(named["b_enc"].shape, generator=generator(seed + 1)) / 5
    return named


def static_of(named):
    return tsae.Static(**{name: named[name] for name in training.STATIC})


def system_named(name):
    entry = entries.ENTRIES[name]
    return entry.make(SMALL, AROUND, **entry.own)


# --------------------------------------------------------------------------------- the one loop


def planted(step, rows=8, seq=8):
    directions = F.normalize(torch.randn(12, D_IN, generator=generator(5)), dim=1)
    on = torch.rand(rows, seq, 12, generator=generator(100 + step)).topk(2).indices
    acts = torch.zeros(rows, seq, 12).scatter(-1, on, 2.0)
    return acts @ directions, torch.ones(rows, seq)


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_learns_and_goes_on_from_a_checkpoint_to_the_same_bits(name):
    made, total = system_named(name), 60
    trainer = training.start_trainer(made.start(planted(0)[0].flatten(0, 1), generator()), SMALL)
    losses, halfway = [], {}
    for step in range(total):
        if step == 40:
            halfway = {key: t.clone() for key, t in training.snapshot(trainer).items()}
        trainer, info = training.rival_step(trainer, *planted(step), step, made, SMALL, total, FP32)
        losses.append(info["loss"])
        rows = trainer.named["W_dec"].norm(dim=1)
        torch.testing.assert_close(rows, torch.ones_like(rows))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    resumed = training.restore(halfway, SMALL)
    for step in range(40, total):
        resumed, _ = training.rival_step(resumed, *planted(step), step, made, SMALL, total, FP32)
    ours, theirs = training.snapshot(trainer), training.snapshot(resumed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", RIVALS)
def test_padding_at_the_end_changes_no_code_before_it(name):
    made = system_named(name)
    named, x = started(made), some_x(3, 8)
    if "threshold" in named:
        named["threshold"] = torch.tensor(0.5)
    padded = torch.cat([x, torch.zeros(3, 4, D_IN)], 1)
    short, long = (made.run(named, y) for y in (x, padded))
    torch.testing.assert_close(long[0][:, :8], short[0])
    dense = [tsae.dense(codes, D_SAE)[:, :8] for _, codes in (short, long)]
    torch.testing.assert_close(dense[0], dense[1])


def test_a_start_has_unit_rows_and_the_mean_squared_norm_of_the_tokens():
    tokens = some_x(40)
    named = system.start_tensors(tokens, D_SAE, generator())
    torch.testing.assert_close(named["W_dec"].norm(dim=1), torch.ones(D_SAE))
    expected = sum((t - tokens.mean(0)).square().sum() for t in tokens) / 40
    torch.testing.assert_close(named["unit"], expected)
    assert system.real_tokens(F.pad(tokens[None], (0, 0, 0, 3))).tolist() == [
        [True] * 40 + [False] * 3
    ]


@pytest.mark.parametrize("name", ["batch_topk", "tfa"])
def test_codes_of_any_width_are_measured_and_read_as_they_are(name):
    made, x = system_named(name), some_x(20, 5)
    named = started(made)
    x, valid = x.bfloat16().float(), torch.ones(20, 5, dtype=torch.bool)
    measured = evaluation.measure_run(
        lambda y: made.run(named, y), D_SAE, store_of(x, valid), torch.device("cpu")
    )
    x_hat, codes = made.run(named, x)
    assert measured.fve == pytest.approx(metrics.fve(x, x_hat), abs=1e-5)
    dense = metrics.token_matrix(measured.codes).toarray().reshape(20, 5, D_SAE)
    assert dense == pytest.approx(tsae.dense(codes, D_SAE).numpy(), abs=1e-5)
    last = readout.run_reader(lambda y: made.run(named, y), D_SAE)(x).toarray()
    assert last == pytest.approx(dense[:, -1], abs=1e-5)


# ---------------------------------------------------------------------------------- batch top-k


@settings(max_examples=40)
@given(data=st.data(), k=st.integers(1, 5))
def test_batch_topk_keeps_the_largest_of_the_batch_and_of_one_token_is_topk(data, k):
    acts = data.draw(tensors(3, 4, 5)).relu()
    real = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    chosen = batch_topk.batch_selected(acts, real, k)
    flat = sorted(acts[real].flatten().tolist(), reverse=True)
    least = flat[k * 10 - 1]
    expected = torch.where((acts >= least) & real[..., None], acts, 0)
    assert torch.equal(chosen, expected)
    assert batch_topk.least_selected(acts.flatten(0, 1), real.flatten(), k) == least
    one = torch.rand(1, 1, 9, generator=generator(k))
    alone = batch_topk.batch_selected(one, torch.ones(1, 1, dtype=torch.bool), k)
    assert torch.equal(
        alone, torch.zeros_like(one).scatter(-1, one.topk(k).indices, one.topk(k).values)
    )


def test_batch_topk_has_k_features_per_token_on_average_also_where_the_sample_looks_too_high():
    acts = torch.rand(16, 63, 48, generator=generator())
    acts[..., ::2] = 0
    chosen = batch_topk.batch_selected(acts, torch.ones(16, 63, dtype=torch.bool), 5)
    assert int((chosen > 0).sum()) == 5 * 16 * 63
    sparse = torch.zeros(4, 61, 61)  # every sampled value is large, few others are above 0
    sparse.view(-1)[::61] = 9.0
    sparse.view(-1)[1:400:61] = 1.0
    kept = batch_topk.batch_selected(sparse, torch.ones(4, 61, dtype=torch.bool), 2)
    assert torch.equal(kept, sparse)


def test_the_threshold_at_inference_is_the_running_mean_of_the_smallest_that_was_kept():
    made = system_named("batch_topk")
    named, x, weight = started(made), some_x(4, 7), torch.ones(4, 7)
    explained = made.explain(named, x, weight, 0.0)
    least = explained.codes.vals[explained.codes.vals > 0].min()
    assert explained.buffers["threshold"] == least
    named |= explained.buffers
    x_hat, codes = made.run(named, x)
    torch.testing.assert_close(x_hat, explained.x_hat)
    assert torch.equal(tsae.dense(codes, D_SAE), tsae.dense(explained.codes, D_SAE))
    again = made.explain(named, 2 * x, weight, 0.0)
    new = again.codes.vals[again.codes.vals > 0].min()
    torch.testing.assert_close(again.buffers["threshold"], 0.9 * least + 0.1 * new)
    by_batch = batch_topk.run_by_batch(named, x, K, FP32)
    torch.testing.assert_close(by_batch[0], x_hat)


# ----------------------------------------------------------------------------- Matryoshka, T-SAE


def test_nested_reconstructions_are_those_of_the_first_features_alone():
    named, ends = (
        started(system_named("matryoshka_5")),
        batch_topk.group_ends(D_SAE, entries.NESTED),
    )
    assert ends[-1] == D_SAE
    assert ends == sorted(ends)
    acts = torch.rand(2, 3, D_SAE, generator=generator())
    flat = acts.flatten(0, 1)
    on = ragged.entries_where(flat > 0.5)
    nested = batch_topk.nested_decode(named, flat[on.token, on.feature], on, ends)
    for end, x_hat in zip(ends, nested, strict=True):
        alone = acts * (acts > 0.5)
        alone[..., end:] = 0
        expected = system.dense_decode(named, alone, FP32).flatten(0, 1)
        torch.testing.assert_close(x_hat, expected)
    with pytest.raises(ValueError, match="sum to 1"):
        batch_topk.group_ends(8, (0.5, 0.4))


def test_t_sae_of_alpha_0_is_matryoshka_to_the_bit_and_of_more_is_not():
    core = {"k": K, "d_sae": D_SAE, "low": FP32}
    plain = batch_topk.batch_topk_system(**core, fractions=FRACTIONS)
    x, weight, losses = some_x(5, 8), torch.ones(5, 8), []
    for made in (plain, t_sae_system(**core, alpha=0.0), t_sae_system(**core, alpha=0.5)):
        named = {name: t.requires_grad_() for name, t in started(made).items()}
        loss = made.explain(named, x, weight, 0.5).loss
        losses.append((loss, *torch.autograd.grad(loss, [named["W_enc"], named["W_dec"]])))
    assert all(torch.equal(a, b) for a, b in zip(*losses[:2], strict=True))
    assert losses[2][0] > losses[0][0]


@pytest.mark.parametrize("similarity", ["cosine", "inner"])
@pytest.mark.parametrize("lag", [1, 2])
def test_the_contrast_is_the_mean_cross_entropy_of_finding_the_own_sequence(similarity, lag):
    z = torch.rand(4, 5, 3, generator=generator(3)).double()
    weight = torch.ones(4, 5).double()
    weight[2, 3:] = 0
    losses = []
    for t in range(lag, 5):
        rows = [b for b in range(4) if weight[b, t] and weight[b, t - lag]]
        for a, b in ((t, t - lag), (t - lag, t)):
            for row in rows:

                def score(own, other):
                    dot = (own @ other).item()
                    return (
                        dot / (own.norm() * other.norm()).item() if similarity == "cosine" else dot
                    )

                scores = torch.tensor([score(z[row, a], z[r, b]) for r in rows])
                losses.append(scores.logsumexp(0).item() - score(z[row, a], z[row, b]))
    found = contrastive_loss(z, weight, lag, similarity).item()
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert contrastive_loss(z[:1], weight[:1], lag, similarity) == 0


# ------------------------------------------------------------------------------ temporal rivals


def test_persistent_of_retention_0_is_the_static_sae_and_retains_as_a_loop_does():
    made = persistent.persistent_system(k=K, d_sae=D_SAE, low=FP32, retention=0.0)
    named, x = started(made), some_x(3, 7)
    x_hat, codes = made.run(named, x)
    expected = tsae.encode_static(x, static_of(named), K)
    torch.testing.assert_close(tsae.dense(codes, D_SAE), tsae.dense(expected, D_SAE))
    torch.testing.assert_close(x_hat, tsae.decode_static(expected, static_of(named)))
    r, acts = torch.rand(5, generator=generator()), torch.rand(2, 6, 5, generator=generator(1))
    s = torch.zeros(2, 5)
    for t in range(6):
        s = r * s + (1 - r) * acts[:, t]
        torch.testing.assert_close(persistent.retained(acts, r)[:, t], s)


@pytest.mark.parametrize("name", ["tfa", "persistent"])
def test_a_temporal_rival_is_causal_and_reads_the_past(name):
    made = system_named(name)
    named, x = started(made), some_x(2, 9)
    changed = x.clone()
    changed[:, 5] += 3
    before, after = made.run(named, x)[0], made.run(named, changed)[0]
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_tfa_takes_from_x_its_part_along_what_attention_foretells_and_nothing_at_the_start():
    made = tfa.tfa_system(k=K, d_sae=D_SAE, low=FP32)
    named, x = started(made), some_x(2, 6)
    along = tfa.predictable(named, x, FP32)
    rest = x - named["b_dec"] - along
    assert (along[:, 0] == 0).all()  # an empty code and biases that start at 0
    named["b_value"], named["b_open"] = named["b_value"] + 1, named["b_open"] + 1
    assert (tfa.predictable(named, x, FP32)[:, 0] != 0).all()  # what a text begins with is learned
    torch.testing.assert_close((along * rest).sum(-1), torch.zeros(2, 6), atol=1e-4, rtol=0)
    assert tfa.attention_width(4_608) == 72
    _, codes = made.run(named, x)
    assert ((codes.vals > 0).sum(-1) <= K).all()


def test_a_crosscoder_of_one_token_is_the_static_sae_and_of_four_has_one_code_per_window():
    made = crosscoder.crosscoder_system(k=K, d_sae=D_SAE, low=FP32, window=1)
    named, x = started(made), some_x(3, 7)
    x_hat, codes = made.run(named, x)
    expected = tsae.encode_static(x, static_of(named), K)
    torch.testing.assert_close(tsae.dense(codes, D_SAE), tsae.dense(expected, D_SAE))
    torch.testing.assert_close(x_hat, tsae.decode_static(expected, static_of(named)))
    four = crosscoder.crosscoder_system(k=K, d_sae=D_SAE, low=FP32, window=4)
    _, codes = four.run(started(four), x)
    dense = tsae.dense(codes, D_SAE)
    assert torch.equal(dense[:, 0], dense[:, 3])
    assert torch.equal(dense[:, 4], dense[:, 6])
    assert ((dense > 0).sum(-1) <= K).all()
    assert torch.equal(system.in_windows(x, 7)[:, 0], x.flatten(1))


# -------------------------------------------------------------------------------------- vanilla


def test_the_penalty_of_relu_warms_up_and_resampling_touches_the_dead_alone():
    made = relu.relu_system(d_sae=D_SAE, low=FP32, l1=0.02, warmup_share=0.1)
    named, x, weight = started(made), some_x(4, 6), torch.ones(4, 6)
    none, full = (made.explain(named, x, weight, share) for share in (0.0, 1.0))
    assert none.loss == system.squared_error(x, none.x_hat, weight)
    acts = system.dense_pre(named, x, FP32).relu().sum() / 24
    strength = 0.02 * named["unit"].sqrt()
    torch.testing.assert_close(full.loss - none.loss, strength * acts)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[[2, 7]] = True
    fresh = relu.resampled(named, x, none.x_hat, dead, generator())
    assert torch.equal(fresh["W_enc"][:, ~dead], named["W_enc"][:, ~dead])
    assert torch.equal(fresh["W_dec"][~dead], named["W_dec"][~dead])
    directions = F.normalize((x - named["b_dec"]).flatten(0, 1), dim=1)
    near = (fresh["W_dec"][dead] @ directions.t()).max(1).values
    torch.testing.assert_close(near, torch.ones(2))
    alive = named["W_enc"][:, ~dead].norm(dim=0).mean()
    torch.testing.assert_close(fresh["W_enc"][:, dead].norm(dim=0), 0.2 * alive.expand(2))
    assert relu.resampled(named, x, none.x_hat, ~dead & dead, generator()) == {}


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_batch_topk_and_t_sae_have_the_loss_and_gradients_of_dense_codes(alpha):
    made = t_sae_system(k=K, d_sae=D_SAE, low=FP32, alpha=alpha)
    named = {name: t.double().requires_grad_() for name, t in started(made).items()}
    x, weight = some_x(5, 8).double(), torch.ones(5, 8)
    weight[1, 5:] = 0
    x = x * weight[..., None]
    explained = made.explain(named, x, weight, 0.0)
    pre = (x - named["b_dec"].detach()) @ named["W_enc"] + named["b_enc"]
    acts = batch_topk.batch_selected(pre.relu(), weight > 0, K)
    high = batch_topk.group_ends(D_SAE, FRACTIONS)[0]
    parts = [acts[..., :high] @ named["W_dec"][:high]]
    parts.append(parts[0] + acts[..., high:] @ named["W_dec"][high:])
    losses = [system.squared_error(x, part + named["b_dec"], weight) for part in parts]
    expected = (losses[0] + losses[1]) / 2
    if alpha:
        z = acts[..., :high] / named["unit"].sqrt()
        expected = expected + alpha * named["unit"] * contrastive_loss(z, weight, 1, "cosine")
    torch.testing.assert_close(explained.loss, expected)
    learned = [named[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")]
    for ours, dense in zip(
        torch.autograd.grad(explained.loss, learned), torch.autograd.grad(expected, learned),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(ours, dense)
    assert torch.equal(tsae.dense(explained.codes, D_SAE) > 0, acts > 0)


@settings(max_examples=30)
@given(st.integers(0, 4), st.integers(1, 7), st.floats(0, 1), st.integers(0, 99))
def test_ragged_codes_are_the_dense_ones(n_tokens, d_sae, share, seed):
    """`ragged_values`, `ragged_decode`, `ragged_dense` and `padded_codes`; tokens may have none."""
    draw = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=draw).double().requires_grad_()  # noqa: E731
    x, W_enc, b_enc, W_dec = make(n_tokens, 3), make(3, d_sae), make(d_sae), make(d_sae, 3)
    pre = x @ W_enc + b_enc
    on = torch.rand(n_tokens, d_sae, generator=draw) < share
    where = ragged.entries_where(on)
    vals = ragged.ragged_values(pre, where, x, W_enc, b_enc)
    acts = (x.detach() @ W_enc + b_enc) * on
    torch.testing.assert_close(ragged.ragged_dense(vals, where, d_sae), acts)
    torch.testing.assert_close(ragged.ragged_decode(vals, where, W_dec), acts @ W_dec)
    codes = system.padded_codes(vals, where, (n_tokens, 1))
    torch.testing.assert_close(tsae.dense(codes, d_sae)[:, 0], acts.detach())
    few, some = where.within(1, 3)
    torch.testing.assert_close(ragged.ragged_dense(vals[some], few, d_sae)[:, 1:3], acts[:, 1:3])


def test_packed_codes_are_the_dense_ones():
    acts = torch.randn(3, 5, 8, generator=generator()).relu()
    acts[1, 2] = 0
    codes = system.active_codes(acts)
    assert torch.equal(tsae.dense(codes, 8), acts)
    assert codes.vals.shape[2] == int((acts > 0).sum(-1).max())
    assert system.active_codes(acts * 0).vals.shape == (3, 5, 1)


# ------------------------------------------------------------------------------------- controls


@pytest.mark.parametrize("make", [bypass.bypass_system, bypass.memoryless_system])
def test_a_dense_path_starts_as_the_static_sae_with_as_many_parameters_as_the_decoder_lstm(make):
    width = bypass.lstm_width(D_IN, 7)
    made = make(k=K, d_sae=D_SAE, low=FP32, width=width)
    named, x = started(made), some_x(2, 5)
    expected = tsae.encode_static(x, static_of(named), K)
    torch.testing.assert_close(
        made.run(named, x)[0], tsae.decode_static(expected, static_of(named))
    )
    params = tsae.from_static(static_of(named), scale=1.0, hidden_dec=7, generator=generator())
    t = params.temporal
    lstm = sum(w.numel() for w in (t.dec_W_x, t.dec_W_h, t.dec_b, t.W_out))
    own = named["W_down"].numel() + named["W_up"].numel()
    assert abs(own - lstm) <= D_IN
    assert named["W_down"].shape == (D_IN, width)


def test_a_memoryless_path_is_a_function_of_the_code_of_its_token():
    made = bypass.memoryless_system(k=K, d_sae=D_SAE, low=FP32, width=9)
    named, x = started(made), some_x(2, 5)
    named["W_up"] = torch.randn(9, D_IN, generator=generator())
    named["b_down"] = torch.randn(9, generator=generator())
    x_hat, codes = made.run(named, x)
    own = (tsae.dense(codes, D_SAE).double() @ named["W_dec"].double()).float()
    scale = (named["unit"] / D_IN).sqrt()
    hidden = torch.relu(own / scale @ named["W_down"] + named["b_down"])
    torch.testing.assert_close(
        x_hat, own + named["b_dec"] + scale * hidden @ named["W_up"], rtol=1e-4, atol=1e-4
    )
    order = torch.randperm(5, generator=generator())
    torch.testing.assert_close(made.run(named, x[:, order])[0], x_hat[:, order])


@settings(max_examples=20)
@given(acts=tensors(2, 6, 3), window=st.integers(1, 8), decay=st.floats(0, 0.9))
def test_averages_are_those_of_loops(acts, window, decay):
    acts = acts.abs()
    mean, windows = posthoc.exponential_mean(acts, decay), posthoc.window_mean(acts, window)
    m = torch.zeros(2, 3)
    for t in range(6):
        m = decay * m + (1 - decay) * acts[:, t]
        torch.testing.assert_close(mean[:, t], m, rtol=1e-4, atol=1e-4)
        past = acts[:, max(0, t - window + 1) : t + 1].sum(1) / window
        torch.testing.assert_close(windows[:, t], past, rtol=1e-4, atol=1e-4)


def test_an_average_of_one_token_is_the_static_sae_and_the_scale_is_the_least_squares_one():
    sae = tsae.static_sae(random_model().static, 4)
    x, valid = torch.randn(3, 9, 12, generator=generator()), torch.ones(3, 9, dtype=torch.bool)
    run = posthoc.averaged_run(sae, posthoc.averages(1e-9, 1)["posthoc_ema"], 1.0)
    torch.testing.assert_close(run(x)[0], tsae.forward(sae.params, x, sae.dials)[0])
    for average in posthoc.averages(2.0, 4).values():
        scale = posthoc.fitted_scale(sae, x, valid, average)
        errors = [
            (x - posthoc.averaged_run(sae, average, scale + d)(x)[0]).square().sum()
            for d in (0, -0.05, 0.05)
        ]
        assert errors[0] == min(errors)
        codes = posthoc.averaged_codes(sae, x, average)
        assert codes.vals.shape == (3, 9, 4)


def test_a_shuffled_memory_pools_what_the_memory_holds_and_keeps_no_order():
    params, x = random_model(), torch.randn(2, 23, 12, generator=generator())
    for changes, same in (({"window": 1}, True), ({"tau": float("inf")}, True), ({}, False)):
        dials = replace(tsae.Dials(k=4, window=5, tau=1.0, beta=2.0), **changes)
        sae = tsae.Sae(params=params, dials=dials)
        shuffled = posthoc.shuffled_memory_run(sae, 0)(x)
        plain = tsae.forward(params, x, dials)
        if changes.get("tau"):  # a plain mean; a window not yet full still weighs by lag alone
            assert torch.allclose(shuffled[0][:, 5:], plain[0][:, 5:], atol=1e-4) or not same
        close = torch.allclose(tsae.dense(shuffled[1], 96), tsae.dense(plain[1], 96), atol=1e-5)
        assert close == same


@given(seq=st.integers(1, 30), window=st.integers(1, 8), data=st.data())
def test_blocks_keep_each_tokens_window_together(seq, window, data):
    offset = data.draw(st.integers(0, min(window, seq) - 1))
    order = posthoc.block_order(seq, offset, window, generator())
    assert sorted(order.tolist()) == list(range(seq))
    for t in range(offset, seq, window):
        begin = max(0, t - window)
        assert sorted(order[begin:t].tolist()) == list(range(begin, t))


def test_a_shuffled_store_has_the_same_tokens_per_sequence_in_another_order():
    x = torch.randn(5, 7, 4, generator=generator()).bfloat16().float()
    valid = torch.ones(5, 7, dtype=torch.bool)
    valid[2, 4:] = False
    plain = store_of(x * valid[..., None], valid)
    assert torch.equal(store.in_memory(x, "nowhere").x(slice(None)), x)
    mixed = store.shuffled(plain, generator())
    ours, theirs = plain.x(slice(None)), mixed.x(slice(None))
    assert not torch.equal(ours, theirs)
    assert (theirs[2, 4:] == 0).all()
    for row in range(5):
        n = int(valid[row].sum())
        assert sorted(ours[row, :n].tolist()) == sorted(theirs[row, :n].tolist())
    again = store.shuffled(plain, generator()).x(slice(None))
    assert torch.equal(again, theirs)
    assert torch.equal(mixed.x(slice(1, 3), slice(2, 5)), theirs[1:3, 2:5])
