import csv
import json
from pathlib import Path

import pytest
import torch
import toys
from rich.control import strip_control_codes
from toys import HOOK, random_model, save_saes
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import experiment
import tsae
from tsae import Dials
from tsae_lab.data import language_model, tasks
from tsae_lab.jobs import checkpoint
from tsae_lab.measures import effects, interventions

run = CliRunner().invoke


@pytest.fixture(scope="module")
def folders(tmp_path_factory, lm_folder) -> tuple[Path, Path]:
    """A saved TSAE and a saved static SAE on a toy language model."""
    params, root = random_model(d_in=24, d_sae=96), tmp_path_factory.mktemp("models")
    save_saes(root, params, Dials(k=6), lm_folder)
    return root / "tsae", root / "static"


def ids_of(lm: language_model.LanguageModel, text: str) -> list[int]:
    return lm.tokenizer(text, add_special_tokens=False)["input_ids"]


TEXT = ["--text=the quick fox", "--good=s", "--bad=t"]


@pytest.mark.parametrize("edit", ["ablate", "clamp", "swap", "steer"])
def test_intervene_prints_the_effect_on_a_text(folders, edit):
    for folder, modes in zip(folders, (("local", "propagated"), ("local",)), strict=True):
        extra = ["--twin=the quick dog"] if edit == "swap" else []
        options = [f"--edit={edit}", "--feature=3", "--feature=7", "--value=2", "--position=-2"]
        result = run(experiment.app, ["intervene", str(folder), *TEXT, *options, *extra])
        assert result.exit_code == 0, result.output
        assert all(mode in result.output for mode in ("none", *modes))
        assert ("full patch" in result.output) == (edit == "swap")


@pytest.mark.parametrize("name", ["tsae", "static"])
def test_intervene_on_a_text_writes_the_logits_of_the_edited_stream(folders, lm, tmp_path, name):
    folder = dict(zip(("tsae", "static"), folders, strict=True))[name]
    sae = checkpoint.load_sae(folder)[0]
    x = language_model.residual(
        lm, torch.tensor([[*lm.prefix, *ids_of(lm, "the quick fox")]]), HOOK
    )
    codes = tsae.dense(tsae.encode(sae.params, x[:, len(lm.prefix) :].float(), sae.dials)[0], 96)
    feature = int(codes[0, -2].argmax())
    out = [tmp_path / "out.json", tmp_path / "out.csv"]
    options = [f"--json={out[0]}", f"--csv={out[1]}", f"--feature={feature}", "--position=-2"]
    done = run(experiment.app, ["intervene", str(folder), *TEXT, "--twin=the quick dog", *options])
    assert done.exit_code == 0, done.output
    content = json.loads(out[0].read_text())
    assert (content["features"], content["positions"]) == ([feature], [-2])
    ids = torch.tensor([[*lm.prefix, *ids_of(lm, "the quick fox")]])
    good, bad = ids_of(lm, "s")[0], ids_of(lm, "t")[0]
    at = interventions.positions(ids.shape[1] - len(lm.prefix), [-2])
    edit = interventions.ablate(torch.tensor([feature]), at)
    no_edit = interventions.steer(torch.tensor([feature]), at, 0.0)
    modes = {"none": (no_edit, False)} | (
        {"local": (edit, False), "propagated": (edit, True)}
        if name == "tsae"
        else {"local": (edit, False)}
    )
    rows = {row["edit"]: row for row in content["rows"]}
    assert list(rows) == [*modes, "full patch"]
    for mode, (change, propagated) in modes.items():
        act = interventions.edit_hook(sae, change, len(lm.prefix), propagated=propagated)
        with torch.no_grad():
            logits = lm.bridge.run_with_hooks(ids, fwd_hooks=[(HOOK, act)])[0, -1]
        expected = (logits[good] - logits[bad]).item()
        assert rows[mode]["logit_difference"] == pytest.approx(expected, abs=1e-4)
        change = rows[mode]["logit_difference"] - rows["none"]["logit_difference"]
        assert rows[mode]["change"] == pytest.approx(change, abs=1e-6)
    assert abs(rows[list(modes)[1]]["change"]) > 1e-3
    with out[1].open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["change"]) for line in lines] == [row["change"] for row in content["rows"]]


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> tuple[Path, Path]:
    """A language model that has a token for each form of the verb, and a TSAE on it."""
    folder = tmp_path_factory.mktemp("reader")
    words = [item.text + form for item in tasks.agreement() for form in (" is", " are")]
    vocab_size = toys.save_tokenizer(folder, words, 700)
    torch.manual_seed(0)
    sizes = toys.SIZES | {"max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **sizes)).save_pretrained(folder)
    params = random_model(d_in=24, d_sae=96)
    return folder, save_saes(tmp_path_factory.mktemp("saes"), params, Dials(k=6), folder)


def effect_by_case(lm, sae, features, cases, offset, *, propagated):
    """Summed change of logit(good) - logit(bad), and of the full patch, from the subject on."""
    total = patch = 0.0
    for case in cases:
        [batch] = effects.batches(lm, HOOK, [case])[0]
        at = torch.zeros(1, batch.seq, dtype=torch.bool)
        begin = int(batch.subject) if offset == "subject to verb" else batch.seq + offset
        at[0, begin : begin + 1 if offset != "subject to verb" else None] = True
        from_subject = (torch.arange(batch.seq) >= batch.subject)[None]
        edit = interventions.ablate(features, at)
        delta, _ = interventions.intervene(sae, batch.x, edit, propagated=propagated)
        patched = (batch.twin - batch.x) * from_subject[..., None]
        streams = torch.stack([torch.zeros_like(delta), delta, patched])
        above = language_model.layers_above(lm, HOOK)
        clean, edited, full = effects.logit_differences(above, batch, streams)[:, 0].tolist()
        total, patch = total + edited - clean, patch + full - clean
    return total / patch


def test_intervene_without_a_text_measures_generated_sentences(reader, tmp_path):
    lm_folder, folder = reader
    out = {option: tmp_path / f"out.{option}" for option in ("json", "csv", "png")}
    options = [f"--{option}={path}" for option, path in out.items()]
    given = ["--n_features=4", "--cases=6", "--position=-1", "--position=-3"]
    done = run(experiment.app, ["intervene", str(folder), *given, *options])
    assert done.exit_code == 0, done.output
    content = json.loads(out["json"].read_text())
    lm, sae = toys.load_toy(lm_folder), checkpoint.load_sae(folder / "tsae")[0]
    cases = effects.agreement_cases(tasks.agreement())
    train, test = effects.split_cases(cases, 240, 6)
    best = effects.number_features(sae, effects.batches(lm, HOOK, train)[0])[0][:4]
    assert content["features"] == best.tolist()
    assert content["sentences"] == 6
    assert [row["edited tokens"] for row in content["rows"]] == ["subject to verb", -1, -3]
    assert content["rows"][0]["full patch"] == pytest.approx(1.0)
    for row in content["rows"]:
        for mode in ("local", "propagated"):
            expected = effect_by_case(
                lm, sae, best, test, row["edited tokens"], propagated=mode == "propagated"
            )
            assert row[mode] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    with out["csv"].open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["local"]) for line in lines] == [row["local"] for row in content["rows"]]
    assert out["png"].read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"out.json", "out.csv", "out.png"}
    assert "6 sentences" in " ".join(done.output.split())


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_steer_prints_continuations_without_and_with(folders, lm, local, temperature):
    options = [
        "--feature=3",
        "--feature=5",
        "--strength=0",
        "--strength=-80",
        "--strength=40.5",
        "--begin=1",
    ]
    options += ["--tokens=6", f"--temperature={temperature}", "--seed=4", *["--local"] * local]
    result = run(experiment.app, ["steer", str(folders[0]), "the fox", *options])
    assert result.exit_code == 0, result.output
    sae, features = checkpoint.load_sae(folders[0])[0], torch.tensor([3, 5])
    written = {}
    for amount in (0.0, -80.0, 40.5):
        written[amount] = interventions.continuation(
            lm, HOOK, "the fox", 6, sae=sae,
            make_edit=interventions.steer_edit(features, amount, begin=1), propagated=not local,
            temperature=temperature, generator=torch.Generator().manual_seed(4),
        )  # fmt: skip
    lines = {"without": 0.0, "[3, 5] +0": 0.0, "[3, 5] -80": -80.0, "[3, 5] +40.5": 40.5}
    expected = "".join(f"{label}: the fox{written[n]}\n" for label, n in lines.items())
    assert result.output == strip_control_codes(expected)  # the toy writes any bytes
    assert len(set(written.values())) > 1


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
        (["intervene", "TSAE", *TEXT, "--feature=1", "--png=x.png"], "not with --text"),
        (["intervene", "TSAE", *TEXT], "--text needs --feature"),
        (["intervene", "TSAE", *TEXT, "--feature=1", "--edit=swap"], "needs --twin"),
        (["intervene", "TSAE", "--good=s"], "go with --text"),
        (["intervene", "TSAE", "--position=1", "--lm=nowhere"], "counts back from the verb"),
        (["steer", "TSAE", "the", "--feature=1", "--strength=inf"], "needs to be finite"),
        (["steer", "TSAE", "", "--feature=1"], "at least one token"),
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
