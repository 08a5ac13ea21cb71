"""The job of `experiment.py` in this process: a toy language model, a text file, a few steps."""

import inspect
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import toys
from typer.testing import CliRunner

import experiment
import metrics
import tsae
from tsae_lab import checksums, files, terminal
from tsae_lab.jobs import (
    bench,
    checkpoint,
    commands,
    commands_edit,
    growth,
    identity,
    options,
    plan,
    reporting,
    saebench,
    saved,
    schedules,
    sharing,
    study,
    training,
)
from tsae_lab.jobs.entries import ENTRIES, Surroundings
from tsae_lab.jobs.plan import Config
from tsae_lab.measures import evaluation
from tsae_lab.sections import context

STATIC_4 = tsae.Dials(k=4, window=1, mix=0.0, gate=False, recur=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory, lm_folder) -> Config:
    return toys.toy_config(tmp_path_factory.mktemp("run"), lm_folder)


@pytest.fixture(scope="module")
def out_dir(config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run_2"
    experiment.run(out, config)
    return out


@pytest.fixture
def unit(config, tmp_path) -> plan.Unit:
    return toys.toy_unit(config, tmp_path / "unit")


def bits(trainer: training.Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in training.snapshot(trainer).items()}


def seed_folder(out: Path, config: Config, seed: int = 0) -> Path:
    return out / plan.folder_name(config.datasets) / f"seed_{seed}"


def test_a_fit_that_was_stopped_goes_on_to_the_same_bits_and_log(unit, tmp_path):
    alone = schedules.Phases(pretrain=12, settle=0, introduce=0, refine=0)
    start = lambda: experiment.start_static(unit)  # noqa: E731
    whole, _ = experiment.fit(unit, "static", start, range(8), alone)
    log = unit.log.read_text().splitlines()
    other = replace(unit, folder=tmp_path / "other", log=tmp_path / "other.jsonl")
    other.folder.mkdir()
    experiment.fit(other, "static", start, range(5), alone)
    last = json.loads(other.log.read_text().splitlines()[-1])
    with other.log.open("a") as file:  # a step after the checkpoint, and a line cut by a kill
        file.write(json.dumps(last | {"step": 6}) + '\n{"dataset": "x", "st')
    again, seconds = experiment.fit(other, "static", start, range(8), alone)
    assert bits(whole).keys() == bits(again).keys()
    assert all(torch.equal(bits(again)[name], tensor) for name, tensor in bits(whole).items())
    steps = [json.loads(line)["step"] for line in other.log.read_text().splitlines()]
    assert steps == [json.loads(line)["step"] for line in log] == list(range(1, 9))
    assert seconds > 0


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_or_the_start_leads_to_the_same_bits(
    unit, tmp_path, capsys, damaged
):
    alone = schedules.Phases(pretrain=12, settle=0, introduce=0, refine=0)
    start = lambda: experiment.start_static(unit)  # noqa: E731
    whole, _ = experiment.fit(unit, "static", start, range(8), alone)
    other = replace(unit, folder=tmp_path / "other", log=tmp_path / "other.jsonl")
    other.folder.mkdir()
    experiment.fit(other, "static", start, range(6), alone)
    names = ("static.checkpoint.safetensors", "before.static.checkpoint.safetensors")
    assert {path.name for path in other.folder.iterdir()} == set(names)
    for name in names[:damaged]:
        content = (other.folder / name).read_bytes()
        (other.folder / name).write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    again, _ = experiment.fit(other, "static", start, range(8), alone)
    said = [line for line in capsys.readouterr().err.splitlines() if "is truncated" in line]
    assert len(said) == damaged
    assert all("going on from what was saved before it" in line for line in said)
    assert all(torch.equal(bits(again)[name], tensor) for name, tensor in bits(whole).items())
    steps = [json.loads(line)["step"] for line in other.log.read_text().splitlines()]
    assert steps == list(range(1, 9))


def test_a_run_that_diverges_says_what_helps_and_that_helps(config, tmp_path):
    wild = replace(config, lr=1e30, seeds=1)
    for _ in range(2):  # the same command comes to the same step
        with pytest.raises(
            ValueError, match=r"at step \d+; .* --lr below 1e\+30 and another --out"
        ):
            experiment.run(tmp_path / "run_2", wild)
    tame = replace(wild, lr=config.lr)
    with pytest.raises(ValueError, match=r"another configuration .*lr=1e\+30 there"):
        experiment.run(tmp_path / "run_2", tame)
    experiment.run(tmp_path / "again", tame)


def test_the_cache_directory_of_a_run_is_for_weights_and_texts_too(config, out_dir, monkeypatch):
    places = []

    def lm_of(_: Config):
        places.append(files.cache_dir())
        raise ValueError("far enough")

    monkeypatch.setattr(experiment, "lm_of", lm_of)
    with pytest.raises(ValueError, match="far enough"):
        experiment.run(out_dir, config)
    assert places == [Path(config.cache_dir)]
    assert files.cache_dir() != Path(config.cache_dir)
    saved.open_model(seed_folder(out_dir, config))
    assert files.cache_dir() == Path(config.cache_dir)


@pytest.mark.parametrize(
    "command", [["stability", "nowhere"], ["--out_dir=run_4", "--systems=none"]]
)
def test_an_error_shows_where_it_comes_from_when_asked(command):
    for arguments in (["--debug", *command], [*command, "--debug"]):
        done = CliRunner().invoke(experiment.app, arguments)
        assert done.exit_code == 1
        assert "Traceback" in done.output
        assert "error: " in done.output.splitlines()[-1]
    done = CliRunner().invoke(experiment.app, command)
    assert "Traceback" not in done.output


def test_trimming_the_log_leaves_the_lines_of_other_models_and_seeds(unit):
    line = {"dataset": unit.data.name, "seed": 0, "model": "static", "step": 3}
    lines = [line, line | {"step": 4}, line | {"step": 4, "model": "tsae"}, line | {"seed": 1}]
    unit.log.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    checkpoint.trim_log(unit.log, {"dataset": unit.data.name, "seed": 0, "model": "static"}, 3)
    assert checksums.log_lines(unit.log) == [lines[0], lines[2], lines[3]]


def test_a_rival_is_trained_in_the_same_loop_and_read_where_it_is_done(unit):
    around = Surroundings(low=torch.float32, d_in=unit.data.train.d_in, distinct=lambda n: n)
    make = ENTRIES["batch_topk"].make
    assert make is not None
    system = make(unit.config, around)
    trainer, seconds = experiment.train_rival(unit, "batch_topk", system)
    lines = [json.loads(text) for text in unit.log.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, unit.config.steps + 1))
    assert {line["model"] for line in lines} == {"batch_topk"}
    again, same = experiment.train_rival(unit, "batch_topk", system)
    assert bits(again).keys() == bits(trainer).keys()
    assert all(torch.equal(bits(again)[name], t) for name, t in bits(trainer).items())
    assert same == seconds


def test_a_loss_that_is_not_finite_ends_the_fit_with_the_step(unit):
    alone = schedules.Phases(pretrain=12, settle=0, introduce=0, refine=0)

    def broken() -> training.Trainer:
        trainer = experiment.start_static(unit)
        named = {n: t.detach().clone() for n, t in trainer.named.items()}
        named["b_dec"] = torch.full_like(named["b_dec"], float("inf"))
        return training.start_trainer(named, unit.config)

    with pytest.raises(ValueError, match=r"static: the loss is (nan|inf), .* at step 1; nothing"):
        experiment.fit(unit, "static", broken, range(4), alone)
    assert not (unit.folder / "static.checkpoint.safetensors").exists()


def test_a_gradient_that_is_not_finite_leaves_the_last_good_checkpoint(unit, monkeypatch):
    alone = schedules.Phases(pretrain=12, settle=0, introduce=0, refine=0)
    step_of = training.train_step

    def fails_at_5(trainer, x, weight, step, *rest, **options):
        trainer, info = step_of(trainer, x, weight, step, *rest, **options)
        return trainer, info | ({"grad_norm": float("inf")} if step == 4 else {})

    monkeypatch.setattr(training, "train_step", fails_at_5)
    with pytest.raises(ValueError, match=r"gradient's norm inf at step 5"):
        experiment.fit(unit, "static", lambda: experiment.start_static(unit), range(8), alone)
    saved, meta = checkpoint.load_tensors(unit.folder / "static.checkpoint.safetensors")
    assert meta["step"] == 3
    assert all(torch.isfinite(tensor.float()).all() for tensor in saved.values())


def test_a_text_that_is_too_short_leaves_no_directory(config, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("the quick brown fox. " * 3)
    bad = replace(config, datasets=f"{config.datasets},{short}")
    with pytest.raises(ValueError, match="short"):
        experiment.run(tmp_path / "run_2", bad)
    assert not (tmp_path / "run_2").exists()


def test_the_baseline_takes_as_many_tokens_as_the_tsae_with_its_pretraining(unit):
    phases = plan.phases_of(unit.config)
    pretrained, static, _ = experiment.train_static(unit)
    again = experiment.load_pretrained(unit)
    assert all(torch.equal(bits(again)[name], tensor) for name, tensor in bits(pretrained).items())
    assert not torch.equal(static.named["W_dec"], pretrained.named["W_dec"])
    torch.testing.assert_close(static.named["W_dec"].norm(dim=1), torch.ones(48))
    trainer, _ = experiment.train_tsae(unit, pretrained, "run_1")
    steps = {"static": [], "tsae": []}
    for line in map(json.loads, unit.log.read_text().splitlines()):
        steps[line["model"]].append(line["step"])
    end = experiment.last_step(phases, "run_1")
    assert steps["static"] == list(range(1, phases.total + 1))
    assert steps["tsae"] == list(range(phases.pretrain + 1, end + 1))
    assert end == phases.pretrain + phases.settle < experiment.last_step(phases, "run_2")
    assert trainer.named["W_out"].any()
    seen = sum(experiment.batch_at(unit, step)[1].sum().item() for step in range(phases.total))
    assert experiment.training_tokens(unit, "run_2") == pytest.approx(seen, rel=0.1)


def test_a_tsae_starts_as_its_static_sae_but_for_the_decoder_lstm(unit):
    trainer = experiment.start_tsae(unit, experiment.start_static(unit))
    x, _ = experiment.batch_at(unit, 0)
    params = tsae.params_from({name: tensor.detach() for name, tensor in trainer.named.items()})
    dials = replace(training.final_dials(unit.config), mix=0.0, recur=False)
    x_hat, codes, _ = tsae.forward(params, x, dials)
    expected = tsae.encode_static(x, params.static, 4)
    assert torch.equal(tsae.dense(codes, 48), tsae.dense(expected, 48))
    assert torch.equal(x_hat, tsae.decode_static(expected, params.static))


def test_the_run_says_what_its_saved_models_are(out_dir, config):
    info = json.loads((out_dir / "final_info.json").read_text())[config.datasets]
    lm = plan.lm_of(config)
    store = plan.split_store(config, lm, config.datasets, "validation")
    for seed in range(2):
        for name, prefix in (("static", "static_"), ("tsae", "")):
            sae, cfg = checkpoint.load_sae(seed_folder(out_dir, config, seed) / name)
            about = cfg["metadata"]  # what SAELens' ActivationsStore.from_sae asks for
            assert (about["hook_name"], about["lm"]) == (config.hook, lm.name)
            assert about["context_size"] == config.seq + len(lm.prefix)
            assert about["prepend_bos"] is True
            card = (seed_folder(out_dir, config, seed) / name / "README.md").read_text()
            assert f"{info['final_info_dict'][f'{prefix}fve'][seed]:.4f}" in card
            measured = evaluation.measure(sae, store)
            for key, value in {
                "fve": measured.fve,
                "jaccard": metrics.jaccard(measured.codes),
            }.items():
                assert info["final_info_dict"][f"{prefix}{key}"][seed] == pytest.approx(
                    value, abs=1e-6
                )
    assert info["final_info_dict"]["fve"][0] != info["final_info_dict"]["fve"][1]
    assert not list(out_dir.rglob("*.checkpoint.safetensors"))


def test_delta_ce_and_recovered_are_of_one_clean_and_one_ablated_loss(out_dir, config):
    for seed in range(2):
        m = json.loads((seed_folder(out_dir, config, seed) / "measures.json").read_text())
        ratio = 1 - m["delta_ce"] / (m["ablated_ce"] - m["clean_ce"])
        if m["ablated_ce"] > m["clean_ce"]:
            assert m["ce_recovered"] == pytest.approx(ratio)
        assert m["kl"] >= 0
        assert m["best_val_loss"] > 0


def test_measures_are_of_every_model_and_the_last_one_is_the_runs_own(unit, lm):
    static = tsae.init_static(torch.zeros(24), 48, generator=torch.Generator().manual_seed(3))
    models = {"static": tsae.static_sae(static, 4), "tsae": tsae.static_sae(static, 9)}
    both = experiment.measure_models(unit, lm, models)
    alone = experiment.measure_models(unit, lm, {"static": models["static"]})
    assert both["static_fve"] == alone["static_fve"] != both["fve"]
    static_l0, own_l0 = both["static_l0"], both["l0"]
    assert static_l0 is not None
    assert own_l0 is not None
    assert static_l0 <= 4 < own_l0 <= 9
    assert both["clean_ce"] == alone["clean_ce"]
    assert both["best_val_loss"] != alone["best_val_loss"]
    assert "fve" not in alone


def test_a_unit_that_has_its_measures_is_read_and_not_trained(unit, lm):
    numbers = {"static_fve": 0.5, "fve": 0.5, "jaccard": 0.25}
    (unit.folder / "measures.json").write_text(json.dumps(numbers))
    assert experiment.run_unit(unit, lm, "run_2") == numbers
    assert [path.name for path in unit.folder.iterdir()] == ["measures.json"]


def test_the_trade_off_takes_the_runs_own_strength_from_the_run_and_trains_the_others(
    out_dir, config
):
    betas = (0.0, config.beta)
    text, trained = config.datasets, []

    def train(unit: plan.Unit, pretrained: training.Trainer, run: str):
        trained.append(unit.config.beta)
        return experiment.train_tsae(unit, pretrained, run)

    curve = study.tradeoff(out_dir, text, betas, 0, train=train)
    measures = identity.read_measures(seed_folder(out_dir, config) / "measures.json", {})
    assert trained == [0.0]
    assert [point["beta"] for point in curve["tsae"]] == list(betas)
    assert curve["tsae"][1] == {"beta": config.beta} | measures
    assert curve["static"]["fve"] == measures["static_fve"]
    assert curve["tsae"][0]["jaccard"] != measures["jaccard"]
    stem = out_dir / f"tradeoff_{plan.folder_name(text)}"
    assert json.loads(stem.with_suffix(".json").read_text()) == curve
    assert stem.with_suffix(".png").stat().st_size > 1_000
    again = study.tradeoff(out_dir, text, betas, 0, train=train)
    assert (again, trained) == (curve, [0.0])
    with pytest.raises(ValueError, match="has no finished model"):
        study.tradeoff(out_dir, text, betas, 7, train=train)
    with pytest.raises(ValueError, match="beta"):
        study.tradeoff(out_dir, text, (0.0, -1.0), 0, train=train)


def test_a_trade_off_over_k_trains_both_models_at_each_k_but_the_runs_own_and_can_go_on(
    out_dir, config, capsys
):
    text, trained, ks = config.datasets, [], (config.k - 1, config.k, config.k + 1)

    def train(unit: plan.Unit, lm, run: str):
        trained.append(unit.config.k)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return experiment.run_unit(unit, lm, run)

    with pytest.raises(KeyboardInterrupt):
        study.frontier(out_dir, text, ks, 0, train=train)
    folder = seed_folder(out_dir, config)
    before = (folder / f"k_{config.k - 1}" / "measures.json").stat().st_mtime_ns
    curve = study.frontier(out_dir, text, ks, 0, train=train)
    assert trained == [config.k - 1, config.k + 1, config.k - 1, config.k + 1]
    assert (folder / f"k_{config.k - 1}" / "measures.json").stat().st_mtime_ns == before
    assert "(3/3)" in capsys.readouterr().err
    measures = identity.read_measures(folder / "measures.json", {})
    assert curve["tsae"][1] == {"k": config.k} | measures
    assert [point["k"] for point in curve["static"]] == list(ks)
    for i, k in enumerate(ks):
        if k != config.k:
            sae, _ = checkpoint.load_sae(folder / f"k_{k}" / "tsae", torch.float32)
            assert (sae.dials.k, sae.temporal) == (k, True)
        assert curve["static"][i]["l0"] == pytest.approx(k, abs=0.1 * k)
        assert curve["equal_births"][i]["static_residual"] == 1 - curve["static"][i]["fve"]
    stem = out_dir / f"tradeoff_{plan.folder_name(text)}_k"
    assert json.loads(stem.with_suffix(".json").read_text()) == curve
    rows = stem.with_suffix(".csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * len(ks)
    assert rows[0].split(",") == ["model", "k", *terminal.FRONTIER_MEASURES]
    assert stem.with_suffix(".md").read_text().count("\n|") == 2 + 2 * len(ks) + 2 + len(ks)
    assert stem.with_name(f"{stem.name}_births.png").stat().st_size > 1_000
    with pytest.raises(ValueError, match="k"):
        study.frontier(out_dir, text, (config.k, 0), 0, train=train)
    with pytest.raises(ValueError, match="has no finished model"):
        study.frontier(out_dir, text, ks, 7, train=train)


def test_a_study_measures_the_runs_models_once_and_says_their_difference(out_dir, config):
    run_3 = out_dir.parent / "run_3"
    short = replace(config, sections="stability,lifetimes")

    def train(*_: object) -> None:
        raise AssertionError("run_2 is there")

    info = study.run_study(run_3, short, train=train)[config.datasets]
    values = info["final_info_dict"]
    for key in ("fve", "jaccard", "persistence"):
        for seed in range(2):
            difference = values[key][seed] - values[f"static_{key}"][seed]
            assert values[f"difference_{key}"][seed] == pytest.approx(difference)
    place, lm = plan.folder_name(config.datasets), plan.lm_of(config)
    written = {path: path.stat().st_mtime_ns for path in (run_3 / place).rglob("*.json")}
    (run_3 / place / "seed_0" / "lifetimes.json").write_text("{")
    seed_0 = run_3 / place / "seed_0", seed_folder(out_dir, config)
    store = plan.split_store(config, lm, config.datasets, "validation")
    sections = study.study_unit(*seed_0, short, lm, config.datasets, 0, lambda: store)
    again = {path for path, time in written.items() if path.stat().st_mtime_ns != time}
    assert {path.name for path in again} == {"lifetimes.json"}
    assert sections[1]["numbers"]["persistence"] == values["persistence"][0]


def test_a_given_static_sae_sets_k_and_d_sae_and_a_text_that_is_absent_is_refused(config, tmp_path):
    static = tsae.init_static(torch.zeros(24), 40, generator=torch.Generator().manual_seed(3))
    names = {"model_name": "toy", "hook_name": config.hook}
    checkpoint.save_sae(tmp_path / "sae", tsae.static_sae(static, 7), **names)
    ready = plan.checked(replace(config, static_sae=str(tmp_path / "sae")))
    assert (ready.k, ready.d_sae) == (7, 40)
    with pytest.raises(ValueError, match="nowhere"):
        plan.checked(replace(config, datasets=str(tmp_path / "nowhere.txt")))


def write_scaled(folder: Path, config: Config, norms: torch.Tensor) -> tsae.Static:
    """A saved SAE with decoder rows of these norms."""
    static = tsae.init_static(torch.zeros(24), 48, generator=torch.Generator().manual_seed(3))
    static = replace(static, W_dec=static.W_dec * norms[:, None])
    sae = tsae.static_sae(static, 4)
    checkpoint.save_sae(folder, sae, model_name=config.lm, hook_name=config.hook)
    return static


@pytest.mark.parametrize("norm", [1.0, 0.2, 7.0])
def test_a_given_sae_starts_with_the_reconstructions_it_was_saved_with(unit, tmp_path, norm):
    saved = write_scaled(tmp_path / "sae", unit.config, torch.full((48,), norm))
    config = plan.checked(replace(unit.config, static_sae=str(tmp_path / "sae")))
    trainer = experiment.start_static(replace(unit, config=config))
    weights = {name: trainer.named[name].detach() for name in training.STATIC}
    torch.testing.assert_close(weights["W_dec"].norm(dim=1), torch.ones(48))
    x, _ = experiment.batch_at(unit, 0)
    started = tsae.forward(tsae.static_sae(tsae.Static(**weights), 4).params, x, STATIC_4)[0]
    expected = tsae.forward(tsae.static_sae(saved, 4).params, x, STATIC_4)[0]
    torch.testing.assert_close(started, expected, rtol=1e-4, atol=1e-4)


def test_unit_rows_leave_codes_and_reconstructions_and_do_nothing_twice():
    g = torch.Generator().manual_seed(0)
    static = tsae.init_static(torch.randn(6, generator=g), 20, generator=g)
    static = replace(static, W_dec=static.W_dec * 3.0, b_enc=torch.randn(20, generator=g))
    scaled = checkpoint.unit_rows(Path("sae"), vars(static))
    torch.testing.assert_close(scaled["W_dec"].norm(dim=1), torch.ones(20))
    x = torch.randn(2, 5, 6, generator=g)
    codes = [tsae.encode_static(x, one, 3) for one in (static, tsae.Static(**scaled))]
    x_hat = [
        tsae.decode_static(c, s)
        for c, s in zip(codes, (static, tsae.Static(**scaled)), strict=True)
    ]
    assert torch.equal(codes[0].idx.sort().values, codes[1].idx.sort().values)
    torch.testing.assert_close(x_hat[0], x_hat[1])
    assert checkpoint.unit_rows(Path("sae"), scaled) is scaled


def test_a_given_sae_of_another_width_or_model_is_said_before_activations(config, tmp_path, capfd):
    static = tsae.init_static(torch.zeros(7), 48, generator=torch.Generator().manual_seed(3))
    names = {"model_name": "gpt-wide", "hook_name": config.hook}
    checkpoint.save_sae(tmp_path / "wide", tsae.static_sae(static, 4), **names)
    with pytest.raises(ValueError, match="has d_in=7; needed is d_in=24"):
        plan.lm_of(replace(config, static_sae=str(tmp_path / "wide")))
    write_scaled(tmp_path / "own", replace(config, lm="gpt-other"), torch.ones(48))
    plan.lm_of(replace(config, static_sae=str(tmp_path / "own")))
    assert "was trained on gpt-other; this run reads" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("far", [2.0, 1.01, 0.0])
def test_a_given_sae_whose_decoder_rows_differ_in_norm_is_refused_before_work(
    config, tmp_path, far
):
    norms = torch.ones(48)
    norms[5] = far
    write_scaled(tmp_path / "sae", config, norms)
    with pytest.raises(ValueError, match="rows of one norm"):
        plan.checked(replace(config, static_sae=str(tmp_path / "sae")))


def test_a_given_sae_brings_its_k_width_and_hook_and_other_options_are_refused(config, tmp_path):
    write_scaled(tmp_path / "sae", config, torch.ones(48))
    given_sae = {"static_sae": str(tmp_path / "sae")}
    for scale in ("smoke", "cpu"):
        ready = plan.scaled_config(scale, given_sae)
        assert (ready.k, ready.d_sae, ready.hook) == (4, 48, config.hook)
    assert plan.scaled_config("cpu", given_sae | {"k": 4, "hook": config.hook}).k == 4
    for name, value in (("k", 5), ("d_sae", 64), ("hook", "blocks.2.hook_resid_post")):
        with pytest.raises(ValueError, match=f"was trained with {name}="):
            plan.scaled_config("cpu", given_sae | {name: value})


def test_every_command_of_the_program_is_its_function():
    functions = {c.name: c.callback for c in experiment.app.registered_commands}
    assert functions == {
        "tradeoff": experiment.tradeoff_command,
        "stability": commands.stability_command,
        "lifetimes": commands.lifetimes_command,
        "transitions": commands.transitions_command,
        "evolution": commands.evolution_command,
        "probe": commands.probe_command,
        "intervene": commands_edit.intervene_command,
        "steer": commands_edit.steer_command,
        "minimal-pairs": commands_edit.minimal_pairs_command,
        "bench": bench.bench_command,
        "growth": growth.growth_command,
        "absorption": commands.absorption_command,
        "neuronpedia": commands.neuronpedia_command,
        "saebench": saebench.saebench_command,
        "push": sharing.push_command,
        "pull": sharing.pull_command,
        "report": reporting.report_command,
    }


def test_config_options_put_one_option_per_field_in_place_of_the_commands_own():
    taken = {}

    @options.config_options
    def command(name: str, **options: object) -> None:
        taken.update(options, name=name)

    names = list(inspect.signature(command).parameters)
    assert names == ["name", *(field.name for field in fields(Config))]
    command(name="x", k=3)
    assert taken == {"name": "x", "k": 3}


@pytest.mark.parametrize("betas", ["a", "", "0,,1"])
def test_strengths_that_are_no_numbers_end_in_one_line(out_dir, betas):
    done = CliRunner().invoke(experiment.app, ["tradeoff", str(out_dir), f"--betas={betas}"])
    assert done.exit_code == 1
    assert len(done.output.strip().splitlines()) == 1
    done = CliRunner().invoke(experiment.app, ["tradeoff", str(out_dir), f"--ks={betas or '8.5'}"])
    assert "--ks needs whole numbers, separated by commas" in done.output


def test_a_run_goes_on_under_free_options_and_refuses_others(out_dir, config):
    plan.refuse_other(out_dir, replace(config, threads=7, checkpoint_every=1), "run_2")
    for other in (replace(config, k=5), replace(config, lr=1e-3)):
        with pytest.raises(ValueError, match="holds a run with another configuration"):
            plan.refuse_other(out_dir, other, "run_2")
    with pytest.raises(ValueError, match="another configuration"):
        plan.refuse_other(out_dir, config, "run_1")
    saved, name = plan.run_config(out_dir)
    assert (saved, name) == (config, "run_2")


def test_what_a_directory_and_a_list_of_texts_mean():
    assert [plan.plan_of(Path(name)) for name in ("a/run_1", "run_9", "x")] == [
        "run_1",
        *["run_2"] * 2,
    ]
    assert plan.names_of(Config(datasets=" sotu, a b.txt ,,")) == ["sotu", "a b.txt"]
    assert plan.folder_name("sotu") == "sotu"
    assert plan.folder_name("/data/my text.txt") == "my_text"


def test_too_little_text_and_too_long_sequences_are_refused_before_training(config, lm):
    with pytest.raises(ValueError, match="training sequences do not fill a batch of 1000"):
        plan.load_data(replace(config, batch=1_000), lm, config.datasets)
    with pytest.raises(ValueError, match="seq needs to be at most"):
        plan.lm_of(replace(config, seq=10_000))


def test_each_split_holds_as_many_tokens_as_asked_and_no_document_is_in_both(config, lm):
    train = plan.split_store(config, lm, config.datasets, "training").tokens
    val = plan.split_store(config, lm, config.datasets, "validation").tokens
    assert val.n_tokens <= config.val_tokens
    assert train.n_tokens <= config.train_tokens
    assert not {tuple(row) for row in val.ids.tolist()} & {tuple(row) for row in train.ids.tolist()}


def test_a_section_that_is_damaged_counts_as_missing(tmp_path):
    path = tmp_path / "stability.json"
    assert study.read_section(path) is None
    for text in ("{", "[]", '{"numbers": {}}'):
        path.write_text(text)
        assert study.read_section(path) is None
    path.write_text('{"numbers": {"tss": 1.0}, "intervals": []}')
    assert study.read_section(path) == {"numbers": {"tss": 1.0}, "intervals": []}


def test_the_sections_of_a_study_are_named_and_others_refused():
    assert study.sections_of(Config(sections="stability, probes")) == ["stability", "probes"]
    for wrong in ("", "stability,nothing"):
        with pytest.raises(ValueError, match="sections are of stability"):
            study.sections_of(Config(sections=wrong))


def test_a_summary_has_one_row_per_text_and_measure_that_both_models_have():
    measured = context.summary(
        [
            {"fve": 0.8, "static_fve": 0.7, "difference_fve": 0.1, "clean_ce": 3.0},
            {"fve": 0.6, "static_fve": 0.7, "difference_fve": -0.1, "clean_ce": 3.0},
        ]
    )
    (row,) = study.summary_rows({"sotu": measured})
    assert (row["dataset"], row["measure"]) == ("sotu", "fve")
    assert row["tsae_mean"] == pytest.approx(0.7)
    assert row["difference_mean"] == pytest.approx(0.0)
    assert row["tsae_stderr"] == pytest.approx(0.1)
    assert row["static_stderr"] == 0.0


def test_a_checkpoint_of_another_model_is_refused(unit):
    alone = schedules.Phases(pretrain=12, settle=0, introduce=0, refine=0)
    start = lambda: experiment.start_static(unit)  # noqa: E731
    experiment.fit(unit, "static", start, range(2), alone)
    name = "checkpoint.safetensors"
    (unit.folder / f"static.{name}").rename(unit.folder / f"tsae.{name}")
    with pytest.raises(ValueError, match="is of the model static; needed is tsae"):
        experiment.fit(unit, "tsae", start, range(3), alone)
