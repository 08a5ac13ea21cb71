"""Documents packed into sequences: each comes out as it does alone, and nothing crosses."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cases, cut
from toys import random_model

import experiment
import tsae
import tsae_kernels
from tsae import Dials
from tsae_lab.data import texts
from tsae_lab.jobs import feeding, making, plan, schedules, training, warmstart
from tsae_lab.jobs.plan import Config
from tsae_lab.rivals.system import own_rows

quick = settings(deadline=None, max_examples=12)
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog")
loose: Any = {"rtol": 1e-4, "atol": 1e-4}


def documents(starts: torch.Tensor) -> list[tuple[int, slice]]:
    """(row, positions) of every document; the first of a row may have begun before."""
    out = []
    for row, flags in enumerate(starts):
        begins = sorted({0, *flags.nonzero()[:, 0].tolist()})
        ends = [*begins[1:], starts.shape[1]]
        out += [(row, slice(b, e)) for b, e in zip(begins, ends, strict=True)]
    return out


def drawn_starts(data: st.DataObject, batch: int, seq: int) -> torch.Tensor:
    flags = st.lists(st.booleans(), min_size=batch * seq, max_size=batch * seq)
    return torch.tensor(data.draw(flags, label="starts")).view(batch, seq)


@quick
@given(cases(), st.data())
def test_every_packed_document_comes_out_as_it_does_alone(case, data):
    starts = drawn_starts(data, case.batch, case.seq)
    x_hat, codes, _ = tsae.forward(case.params, case.x, case.dials, starts=starts)
    acts = tsae.dense(codes, case.d_sae)
    for row, span in documents(starts):
        alone, own, _ = tsae.forward(case.params, case.x[row : row + 1, span], case.dials)
        torch.testing.assert_close(x_hat[row : row + 1, span], alone, **loose)
        torch.testing.assert_close(acts[row : row + 1, span], tsae.dense(own, case.d_sae), **loose)


@quick
@given(cases(), st.data())
def test_packed_documents_stream_in_pieces_of_any_sizes(case, data):
    starts, state = drawn_starts(data, case.batch, case.seq), None
    whole, codes, _ = tsae.forward(case.params, case.x, case.dials, starts=starts)
    out, acts = [], []
    for span in (slice(*piece) for piece in cut(data, case.seq)):
        given_ = case.x[:, span], case.dials, state, starts[:, span]
        x_hat, own, state = tsae.forward(case.params, *given_)
        out.append(x_hat)
        acts.append(tsae.dense(own, case.d_sae))
    torch.testing.assert_close(torch.cat(out, 1), whole, **loose)
    torch.testing.assert_close(torch.cat(acts, 1), tsae.dense(codes, case.d_sae), **loose)


@quick
@given(cases())
def test_without_a_start_packing_changes_no_bit(case):
    never = torch.zeros(case.batch, case.seq, dtype=torch.bool)
    plain, packed = (tsae.forward(case.params, case.x, case.dials, starts=s) for s in (None, never))
    assert torch.equal(plain[0], packed[0])
    assert torch.equal(plain[1].vals, packed[1].vals)
    assert torch.equal(plain[2].memory.vals, packed[2].memory.vals)


def test_packed_documents_that_differ_change_nothing_of_each_other():
    params, dials = random_model(), Dials(k=7, window=16, beta=2.0)
    x = torch.randn(1, 24, 12, generator=torch.Generator().manual_seed(0))
    starts = torch.zeros(1, 24, dtype=torch.bool)
    starts[0, 9] = True
    other = x.clone()
    other[:, :9] += 1
    for seams, same in ((starts, True), (None, False)):
        one, two = (tsae.forward(params, y, dials, starts=seams)[0][:, 9:] for y in (x, other))
        assert torch.equal(one, two) is same


@quick
@given(cases(), st.data(), st.floats(0, 1))
def test_the_loss_of_packed_documents_and_its_gradients_are_those_of_each_alone(
    case, data, coupling
):
    starts = drawn_starts(data, case.batch, case.seq)
    weight = torch.ones(case.batch, case.seq)

    def grads(*parts):
        named = {n: t.clone().requires_grad_() for n, t in tsae.tensors(case.params).items()}
        loss = torch.zeros(())
        for x, w, s in parts:
            params = tsae.params_from(named)
            own, *_ = training.tsae_loss(params, x, w, case.dials, coupling, None, s)
            loss = loss + own * w.sum()
        (loss + 0 * sum(t.sum() for t in named.values())).backward()
        return loss.detach(), {n: t.grad for n, t in named.items()}

    loss, got = grads((case.x, weight, starts))
    alone = [(case.x[r : r + 1, s], weight[r : r + 1, s], None) for r, s in documents(starts)]
    expected, wanted = grads(*alone)
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-3, atol=2e-3)


def test_an_lstm_with_starts_has_the_values_and_gradients_of_plain_operations():
    g = torch.Generator().manual_seed(0)
    shapes = (3, 9, 4), (3, 5), (3, 5), (4, 20), (5, 20), (20,)
    given_ = [torch.randn(s, generator=g, dtype=torch.float64) / 2 for s in shapes]
    starts = torch.rand(3, 9, generator=g) < 0.3
    leaves: Any = [tensor.requires_grad_() for tensor in given_]
    fast = tsae_kernels.lstm(*leaves, starts=starts)
    got = torch.autograd.grad(fast[0].square().sum() + fast[1].sum() + fast[2].sum(), leaves)

    def loss(*args):
        hs, h, c = tsae_kernels.lstm(*args, starts=starts)
        return hs.square().sum() + h.sum() + c.sum()

    wanted = torch.func.grad(loss, argnums=tuple(range(6)))(*(t.detach() for t in leaves))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_packing_holds_every_token_once_in_order_and_cuts_no_document(lengths):
    packed = texts.pack_rows(torch.tensor(lengths), 9)
    found = [
        (int(packed.row[s, t]), int(packed.place[s, t])) for s, t in packed.valid.nonzero().tolist()
    ]
    assert sorted(found) == [(row, t) for row, n in enumerate(lengths) for t in range(n)]
    assert not (packed.valid[:, 1:] & ~packed.valid[:, :-1]).any()
    seams = packed.starts[:, 1:] | ~packed.valid[:, 1:]
    same = packed.row[:, 1:] == packed.row[:, :-1]
    assert torch.equal(seams | ~packed.valid[:, 1:], ~same | ~packed.valid[:, 1:])
    assert torch.equal(packed.starts & packed.valid, packed.valid & (packed.place == 0))
    assert torch.equal(packed.starts[:, 0], packed.valid[:, 0])
    # best fit: no two sequences together leave room for one more
    used = packed.valid.sum(1)
    assert (used > 4).sum() >= len(used) - 1


@quick
@given(st.data(), st.lists(st.integers(1, 6), min_size=1, max_size=9))
def test_a_packed_batch_in_rows_of_its_own_has_each_document_in_one(data, lengths):
    packed = texts.pack_rows(torch.tensor(lengths), 6)
    x = 1 + torch.arange(packed.valid.numel() * 2.0).view(*packed.valid.shape, 2)
    span = slice(data.draw(st.integers(0, 3), label="span"), 6)
    weight = packed.valid.float()
    rows, weights = own_rows(
        (x * weight[..., None])[:, span], weight[:, span], packed.starts[:, span]
    )
    whole = [
        x[row, s][packed.valid[row, s]]
        for row, s in ((r, slice(s.start + span.start, s.stop + span.start))
                       for r, s in documents(packed.starts[:, span]))
    ]  # fmt: skip
    found = [row[w > 0] for row, w in zip(rows, weights, strict=True)]
    kept = [t for t in found if len(t)]
    assert [t.tolist() for t in kept] == [t.tolist() for t in whole if len(t)]
    assert not rows[weights == 0].any()


def test_a_decoder_lstm_started_on_packed_documents_is_the_one_started_on_each():
    g = torch.Generator().manual_seed(0)
    static = random_model().static
    params = tsae.from_static(static, scale=0.7, hidden_enc=3, hidden_dec=8, generator=g)
    x, starts = torch.randn(40, 18, 12, generator=g), torch.rand(40, 18, generator=g) < 0.2
    valid = torch.ones(40, 18, dtype=torch.bool)
    packed = warmstart.integrators(params, x, valid, Dials(k=4), starts)
    rows, weights = own_rows(x, valid.float(), starts)
    alone = warmstart.integrators(params, rows, weights > 0, Dials(k=4))
    dials = Dials(k=4, beta=0.0)
    one, two = (tsae.forward(p, x, dials, starts=starts)[0] for p in (packed, alone))
    torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-2)
    crossed = warmstart.integrators(params, x, valid, Dials(k=4))
    assert (tsae.forward(crossed, x, dials, starts=starts)[0] - two).abs().max() > 0.02


# ------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def config(tmp_path_factory, lm_folder) -> Config:
    """Documents of four words: a sequence of 24 tokens holds several."""
    rows = torch.randint(len(WORDS), (400, 4), generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("short") / "short.jsonl"
    lines = (json.dumps({"text": " ".join(WORDS[j] for j in row)}) for row in rows.tolist())
    path.write_text("\n".join(lines))
    return Config(
        lm=str(lm_folder), hook="blocks.1.hook_resid_post", datasets=str(path), seeds=1,
        cache_dir=str(tmp_path_factory.mktemp("cache")), device="cpu", precision="float32",
        seq=24, pieces=2, batch=4, steps=12, pretrain=0.4, settle=0.1, introduce=0.1, warmup=2,
        checkpoint_every=3, k=4, d_sae=48, window=3, hidden_enc=3, hidden_dec=5, dead_after=500,
        train_tokens=1_000, val_tokens=300, splice_tokens=100,
    )  # fmt: skip


@pytest.fixture
def unit(config, tmp_path) -> plan.Unit:
    lm = plan.lm_of(config)
    data = plan.load_data(config, lm, config.datasets)
    return plan.Unit(config=config, data=data, seed=0, folder=tmp_path, log=tmp_path / "log.jsonl",
                     device=lm.device, low=torch.float32)  # fmt: skip


def test_a_run_on_short_documents_fills_its_sequences_and_says_so(config, unit, capsys):
    lm = plan.lm_of(config)
    tokens = plan.both_splits(config, lm, config.datasets)
    said = " ".join(capsys.readouterr().err.split())
    share = unit.data.packed.valid.double().mean()
    assert share > 0.8 > 3 * tokens["training"].n_tokens / (len(tokens["training"].ids) * 24) / 2
    assert f"in {unit.data.n_sequences} sequences of 24, which they fill to {share:.0%}" in said
    assert f"({len(unit.data.train):,} documents, packed; nothing crosses)" in said
    made = plan.identity_now(config, lm, {"short": tokens})["texts"]["short"]
    assert made["training"].endswith(", packed")
    assert "packed" not in made["validation"]


def test_a_step_on_packed_documents_reads_each_once_an_epoch_as_the_model_read_it_alone(unit):
    store, n = unit.data.train, 0
    for step in range(2 * (unit.data.n_sequences // 4)):
        x, weight = experiment.batch_at(unit, step)
        starts = feeding.starts_at(unit, step)
        assert starts is not None
        assert not starts[weight == 0].any()
        n += int(starts.sum())
        for row, span in documents(starts):
            inside = x[row, span][weight[row, span] > 0]
            if starts[row, span.start] and span.stop < 12:
                lengths = store.tokens.valid.sum(1) == len(inside)
                same = [store.x([int(r)])[0, : len(inside)] for r in lengths.nonzero()[:, 0]]
                assert any(torch.equal(inside, one) for one in same)
    assert n >= 0.9 * len(store)


@pytest.mark.parametrize("model", ["tsae", "t_sae"])
def test_a_fit_on_packed_documents_that_was_stopped_goes_on_to_the_same_bits(unit, model):
    phases = schedules.Phases(pretrain=2, settle=2, introduce=2, refine=4)
    start = lambda: experiment.start_tsae(unit, experiment.start_static(unit))  # noqa: E731
    system = None
    if model != "tsae":
        system = making._system(making.entry_of(model), unit, lambda n: n)
        x, weight = experiment.batch_at(unit, 0)
        named = system.start(x[weight > 0], torch.Generator().manual_seed(0))
        start = lambda: training.start_trainer(named, unit.config)  # noqa: E731
    whole, _ = experiment.fit(unit, model, start, range(2, 9), phases, system)
    expected = {name: t.detach().clone() for name, t in training.snapshot(whole).items()}
    (unit.folder / f"{model}.checkpoint.safetensors").unlink()  # the one before it is of step 6
    again, _ = experiment.fit(unit, model, start, range(2, 9), phases, system)
    resumed = training.snapshot(again)
    assert [n for n, t in expected.items() if not torch.equal(resumed[n], t)] == []


def test_a_whole_run_on_short_documents_measures_each_alone(config, tmp_path):
    experiment.run(tmp_path / "run_2", config)
    info = json.loads((tmp_path / "run_2" / "final_info.json").read_text())
    means = info[config.datasets]["means"]
    assert means["fve_mean"] > 0.3
    assert means["l0_mean"] <= 4
    val = plan.split_store(config, plan.lm_of(config), config.datasets, "validation")
    assert val.tokens.valid.shape[1] < 24  # no longer than the longest document


def test_documents_that_fill_their_sequences_are_not_packed(lm):
    long = texts.pack([(torch.arange(60).numpy(), torch.ones(60).int().numpy(), 0)], seq=24,
                      prefix=lm.prefix)  # fmt: skip
    assert long.valid.shape == (3, 24)
    assert texts.packing(long, 24) is None
