"""run_4 that is stopped, damaged, or asked for something else: one clear line, nothing lost."""

import json
from pathlib import Path

import pytest
import toys
from typer.testing import CliRunner

import experiment
from tsae_lab import checksums, files
from tsae_lab.jobs import making, training
from tsae_lab.jobs.plan import Config
from tsae_lab.sections import rival_table

SYSTEMS = "static,batch_topk,posthoc_ema"


@pytest.fixture(scope="module", autouse=True)
def short():
    """Without probes and order-only tasks, which are of no interest here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rival_table, "probed", lambda *_: {})
        patch.setattr(making, "ORDER_TASKS", {})
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory, lm_folder) -> Config:
    return toys.toy_config(tmp_path_factory.mktemp("toy"), lm_folder)


def call(out: Path, config: Config, *more: str):
    """The command as its users give it."""
    given = {n: value for n, value in vars(config).items() if value != vars(Config())[n]}
    options = [
        f"--out_dir={out}",
        f"--systems={SYSTEMS}",
        *(f"--{n}={v}" for n, v in given.items()),
    ]
    return CliRunner().invoke(experiment.app, [*options, *more])


def numbers(out: Path) -> dict[str, float]:
    """What every system of every seed has, times aside."""
    return {
        f"{path.relative_to(out)} {key}": value
        for path in sorted(out.glob("text/seed_*/*.json"))
        for key, value in json.loads(path.read_text())["numbers"].items()
        if value is not None and not any(word in key for word in ("second", "time", "memory"))
    }


def systems(out: Path) -> list[Path]:
    return sorted(out.glob("text/seed_*/*.json"))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run_4"
    done = call(out, config)
    assert done.exit_code == 0, done.output
    assert len(systems(out)) == 6
    return out


def test_ctrl_c_ends_in_one_line_and_the_same_command_goes_on(config, whole, tmp_path, monkeypatch):
    """In the second seed's last training; what is done of either seed stays as it is."""
    out, steps = tmp_path / "run_4", []
    rival_step = training.rival_step

    def interrupted(*args, **options):
        steps.append(1)
        if len(steps) == 20:
            raise KeyboardInterrupt
        return rival_step(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training, "rival_step", interrupted)
        stopped = call(out, config)
    assert stopped.exit_code == 130
    assert stopped.output.count("stopped; the same command continues") == 1
    assert "Traceback" not in stopped.output
    there = {path: path.read_bytes() for path in systems(out)}
    assert len(there) == 4
    again = call(out, config)
    assert "6 to train or derive and measure, 4 of them done" in again.output
    assert "1 left" in again.output
    assert numbers(out) == pytest.approx(numbers(whole), rel=1e-9)
    assert {path: path.read_bytes() for path in there} == there


def test_a_half_written_system_is_made_again_and_no_other_is(config, whole):
    before = numbers(whole)
    path, kept = (whole / "text" / f"seed_{i}" / "batch_topk.json" for i in (0, 1))
    untouched = kept.read_bytes()
    path.write_bytes(path.read_bytes()[:100])
    done = call(whole, config)
    assert done.exit_code == 0, done.output
    assert "5 of them done" in done.output
    assert numbers(whole) == pytest.approx(before, rel=1e-9)
    assert kept.read_bytes() == untouched


def test_a_system_of_another_version_is_taken_and_said_once(config, whole):
    path = whole / "text" / "seed_1" / "static.json"
    made = checksums.read_sealed(path)
    made["identity"]["version"], made["identity"]["commit"] = "0.0.1", "abcdef0"
    checksums.write_sealed(path, made)
    done = call(whole, config)
    assert done.exit_code == 0, done.output
    assert "6 of them done" in done.output
    [line] = [line for line in done.output.splitlines() if "0.0.1" in line]
    assert line.endswith("bits may differ")
    assert checksums.read_sealed(path) == made


@pytest.mark.parametrize(
    ("option", "needle"),
    [
        ("--hook=blocks.0.hook_resid_post", "hook='blocks.1.hook_resid_post' there"),
        ("--lr=0.1", "lr=0.005 there, 0.1 wanted"),
        ("--finetune=ce", "finetune is kl, or not given; got 'ce'"),
    ],
)
def test_another_hook_or_recipe_is_refused_in_one_line(config, whole, option, needle):
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file() and p.name != files.LOCK}
    refused = call(whole, config, option)
    assert refused.exit_code == 1
    assert needle in toys.error_line(refused.output)
    assert {p: p.read_bytes() for p in before} == before


def test_fine_tuning_is_an_option_of_run_4_alone(config, tmp_path):
    refused = call(tmp_path / "run_2", config, "--finetune=kl")
    assert "--finetune is an option of run_4" in toys.error_line(refused.output)


def test_a_search_of_nothing_is_refused_before_any_work(config, tmp_path):
    """By `search.searchable`."""
    refused = call(tmp_path / "run_4", config, "--tune", "--systems=posthoc_ema,shuffled")
    needle = "--tune needs a system that is searched, static, tsae or a rival; got posthoc_ema, shu"
    assert needle in toys.error_line(refused.output)
    assert not (tmp_path / "run_4" / "config.json").exists()


def test_fine_tuned_systems_stand_beside_those_they_are_made_of(config, whole):
    done = call(whole, config, "--finetune=kl")
    assert done.exit_code == 0, done.output
    assert "static, batch_topk, posthoc_ema, tsae, static_kl, tsae_kl" in done.output
    [text] = json.loads((whole / "final_info.json").read_text()).values()
    info = text["means"]
    for name in ("static", "tsae"):
        assert info[f"{name}_kl_kl_mean"] != info[f"{name}_kl_mean"]
    assert "`tsae_kl`: TSAE, fine-tuned on KL" in (whole / "table.md").read_text()
