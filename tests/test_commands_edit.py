import json
from pathlib import Path

import pytest
from toys import random_model, save_saes
from typer.testing import CliRunner

import experiment
from tsae import Dials

run = CliRunner().invoke


@pytest.fixture(scope="module")
def folders(tmp_path_factory, lm_folder) -> tuple[Path, Path]:
    """A saved TSAE and a saved static SAE on a toy language model."""
    params, root = random_model(d_in=24, d_sae=96), tmp_path_factory.mktemp("models")
    save_saes(root, params, Dials(k=6), lm_folder)
    return root / "tsae", root / "static"


TEXT = ["--text=the quick fox", "--good=s", "--bad=t"]


@pytest.mark.parametrize("edit", ["ablate", "clamp", "swap", "steer"])
def test_intervene_prints_the_effect_on_a_text(folders, edit):
    for folder, modes in zip(folders, (("local", "propagated"), ("static",)), strict=True):
        extra = ["--twin=the quick dog"] if edit == "swap" else []
        options = [f"--edit={edit}", "--feature=3", "--feature=7", "--value=2", "--position=-2"]
        result = run(experiment.app, ["intervene", str(folder), *TEXT, *options, *extra])
        assert result.exit_code == 0, result.output
        assert all(mode in result.output for mode in ("none", *modes))
        assert ("full patch" in result.output) == (edit == "swap")


def test_steer_prints_continuations_without_and_with(folders):
    result = run(
        experiment.app,
        ["steer", str(folders[0]), "the", "--feature=3", "--strength=0", "--tokens=4"],
    )
    assert result.exit_code == 0, result.output
    without, steered = result.output.strip().splitlines()
    assert without.removeprefix("without: ") == steered.removeprefix("[3] +0: ")


def test_minimal_pairs_prints_accuracies_and_names_what_is_absent(folders, tmp_path):
    (tmp_path / "blimp").mkdir()
    row = {"sentence_good": "the fox jumps", "sentence_bad": "the fox dog", "UID": "toy"}
    (tmp_path / "blimp" / "toy.jsonl").write_text(json.dumps(row) + "\n")
    result = run(experiment.app, ["minimal-pairs", str(folders[0]), str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "toy" in result.output
    assert "TSAE" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["intervene", "nowhere"], "nowhere holds no model"),
        (
            ["intervene", "TSAE", "--feature=96"],
            "feature 96 does not exist: the model has features 0 to 95",
        ),
        (["intervene", "TSAE", "--feature=-1"], "feature -1 does not exist"),
        (["intervene", "TSAE", "--feature=1", "--feature=1"], "named twice"),
        (["intervene", "TSAE", "--edit=cut"], "edit is one of"),
        (["intervene", "TSAE", "--text=the fox", "--feature=1"], "needs --good and --bad"),
        (
            ["intervene", "TSAE", *TEXT, "--feature=1", "--position=40"],
            "position 40 is outside the text",
        ),
        (
            ["intervene", "TSAE", "--text=fox", "--good=s", "--bad=s", "--feature=1"],
            "equal or not one token each",
        ),
        (
            ["intervene", "TSAE", "--text=fox", "--good=xyzzy", "--bad=s", "--feature=1"],
            "not one token each",
        ),
        (["intervene", "TSAE", "--hook=blocks.7.hook_resid_post"], "unknown hook"),
        (["intervene", "TSAE", "--value=nan"], "value needs to be finite"),
        (["intervene", "TSAE", "--png=nowhere/x.png"], "there is no folder nowhere"),
        (["intervene", "TSAE", "--png=x.pdf"], "as .png or .svg; got x.pdf"),
        (["steer", "TSAE", "the"], "steer needs --feature"),
        (["steer", "TSAE", "the", "--feature=1", "--tokens=99"], "positions"),
        (["minimal-pairs", "TSAE", "nowhere"], "does not exist"),
        (["minimal-pairs", "TSAE", ".", "--sets=blump"], "unknown minimal pairs"),
    ],
)
def test_a_bad_request_ends_with_one_line_and_exit_code_one(folders, arguments, message):
    given = [str(folders[0]) if word == "TSAE" else word for word in arguments]
    result = run(experiment.app, given)
    lines = [line for line in result.output.splitlines() if line.startswith("error:")]
    assert result.exit_code == 1, result.output
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in result.output
