"""Commands on a saved model, by the command line, on a toy language model."""

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import HOOK, error_line, linzen, random_model, save_saes, write
from typer.testing import CliRunner

import experiment
import probes
import tsae
from tsae_lab import files
from tsae_lab.data import language_model, public_sets
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.jobs import checkpoint, commands, plan, saved
from tsae_lab.jobs.plan import Config

SENTENCES = [
    f"{a} {b} fox jumps over {c} dog. the lazy {b} dog. "
    for a in ("the", "quick", "lazy", "over")
    for b in ("brown", "lazy", "quick")
    for c in ("the", "brown", "fox")
]


def call(*words: object):
    return CliRunner().invoke(experiment.app, [str(word) for word in words])


def told(done) -> str:
    """The one line of an error."""
    assert done.exit_code == 1, done.output
    return error_line(done.output)


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
    """A folder of 36 documents."""
    folder = tmp_path_factory.mktemp("letters")
    for i, sentence in enumerate(SENTENCES):
        (folder / f"{i:02}.txt").write_text(sentence)
    return folder


@pytest.fixture(scope="module")
def seed_folder(tmp_path_factory, lm_folder, letters) -> Path:
    """RUN/letters/seed_0 of a run whose options are not the defaults; its two SAEs differ."""
    run = tmp_path_factory.mktemp("run_2")
    config = Config(lm=str(lm_folder), hook=HOOK, seq=12, device="cpu", precision="bfloat16")
    plan.claim(run, config, "run_2")
    folder = run / "letters" / "seed_0"
    params = random_model(d_in=24, d_sae=96)
    other = tsae.static_sae(random_model(d_in=24, d_sae=96, seed=1).static, 6)
    names = {"model_name": str(lm_folder), "hook_name": HOOK, "metadata": {"dataset": str(letters)}}
    ours = tsae.Sae(params=params, dials=tsae.Dials(k=6))
    checkpoint.save_sae(folder / "tsae", ours, **names)
    checkpoint.save_sae(folder / "static", other, **names)
    return folder


@pytest.fixture
def before_6(tmp_path, lm_folder) -> Path:
    """A top-k SAE as SAELens saved it before version 6: its names at the top of cfg.json."""
    params = random_model(d_in=24, d_sae=96)
    folder = save_saes(tmp_path / "sae", params, tsae.Dials(k=6), lm_folder) / "static"
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg |= cfg.pop("metadata") | {"architecture": "standard", "activation_fn_str": "topk"}
    cfg |= {"activation_fn_kwargs": {"k": cfg.pop("k")}, "normalize_activations": False}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


def items(folder: Path) -> Path:
    """Twelve probing items of six nouns."""
    rows = [
        linzen(
            tokens=["the", noun + "s" * n, f"w{i}", "runs"],
            verb_index=3,
            subject=noun,
            good=("runs", "run")[n],
            bad=("run", "runs")[n],
        )
        for i, noun in enumerate(("fox", "dog", "cat", "hen", "cow", "ape"))
        for n in (0, 1)
    ]
    return write(folder / "items.jsonl", *rows)


# ------------------------------------------------------------------------------ opening a model


def test_every_command_takes_an_sae_of_saelens_before_6(before_6, letters, tmp_path):
    pairs = write(
        tmp_path / "pairs.jsonl",
        json.dumps({"sentence_good": "the fox", "sentence_bad": "the dog", "UID": "toy"}),
    )
    for words in (
        ["stability", before_6, f"--text={letters}"],
        ["probe", items(tmp_path), before_6, "--k=1"],
        ["intervene", before_6, "--text=the fox", "--good=s", "--bad=t", "--feature=3"],
        ["steer", before_6, "the", "--feature=3", "--tokens=2"],
        ["minimal-pairs", before_6, pairs],
    ):
        done = call(*words)
        assert done.exit_code == 0, (words, done.output)


@pytest.mark.parametrize("command", ["probe", "stability", "intervene", "steer", "minimal-pairs"])
def test_an_sae_of_another_width_is_refused_before_a_text_is_read(
    command, tmp_path, lm_folder, letters, monkeypatch
):
    params = random_model(d_in=12, d_sae=96)
    folder = save_saes(tmp_path, params, tsae.Dials(k=6), lm_folder) / "tsae"
    words = {
        "probe": [items(tmp_path), folder],
        "stability": [folder, f"--text={letters}"],
        "intervene": [folder],
        "steer": [folder, "the", "--feature=1"],
        "minimal-pairs": [
            folder,
            write(tmp_path / "p.jsonl", '{"sentence_good": "a", "sentence_bad": "b", "UID": "c"}'),
        ],
    }[command]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a text was read")

    monkeypatch.setattr(language_model, "residual", never)
    expected = f"{folder} reads activations of width 12; {lm_folder} has 24"
    assert expected in told(call(command, *words))


def test_products_are_the_runs_own_and_float32_for_edits(seed_folder):
    found = saved.open_model(seed_folder / "tsae")
    assert (found.name, found.hook, found.config.seq) == ("TSAE", HOOK, 12)
    lm, ready = saved.with_lm(found)
    assert ready.sae.dials.low == ready.static.dials.low == torch.bfloat16
    assert lm.dtype == language_model.fast_dtype(torch.device("cpu"))
    lm, ready = saved.with_lm(found, exact=True)
    assert (lm.dtype, ready.sae.dials.low, ready.static.dials.low) == (torch.float32,) * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows the rule where CUDA is missing")
@pytest.mark.parametrize("exact", [False, True])
def test_the_device_is_the_runs_own_else_cuda_where_it_is_present(
    seed_folder, before_6, monkeypatch, exact
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    lm, ready = saved.with_lm(saved.open_model(seed_folder), exact=exact)
    assert lm.device == ready.sae.params.static.b_dec.device == torch.device("cpu")
    with pytest.raises(Exception, match=r"device 'cuda' cannot be used here"):
        saved.with_lm(saved.open_model(before_6), exact=exact)


def test_a_seed_is_its_tsae_with_the_static_sae_beside_it(seed_folder, tmp_path):
    whole, alone = saved.open_model(seed_folder), saved.open_model(seed_folder / "tsae")
    baseline = saved.open_model(seed_folder / "static")
    assert (whole.name, baseline.name) == ("TSAE", "static SAE")
    W = baseline.sae.params.static.W_enc
    assert torch.equal(whole.static.params.static.W_enc, W)
    assert torch.equal(alone.static.params.static.W_enc, whole.sae.params.static.W_enc)
    assert not torch.equal(W, whole.sae.params.static.W_enc)
    (tmp_path / "static").symlink_to(seed_folder / "static")
    only = saved.open_model(tmp_path, lm="other", hook="blocks.0")
    assert torch.equal(only.sae.params.static.W_enc, W)
    assert (only.lm, only.hook, only.config) == ("other", "blocks.0", Config())


def test_what_cannot_be_opened_is_refused_in_one_line(before_6, seed_folder, tmp_path):
    assert "holds no model: there is no cfg.json" in told(call("stability", tmp_path))
    cfg = json.loads((before_6 / "cfg.json").read_text())
    del cfg["hook_name"]
    (before_6 / "cfg.json").write_text(json.dumps(cfg))
    assert "give --lm and --hook" in told(call("probe", items(tmp_path), before_6))
    done = call("probe", items(tmp_path), before_6, "--k=1", f"--hook={HOOK}")
    assert done.exit_code == 0, done.output
    assert f"hub, {HOOK}" not in done.output
    (before_6 / "sae_weights.safetensors").unlink()
    assert "there is no sae_weights.safetensors" in told(call("steer", before_6, "the"))
    run = tmp_path / "run"
    (run / "text" / "seed_0").mkdir(parents=True)
    (run / "text" / "seed_0" / "tsae").symlink_to(seed_folder / "tsae")
    (run / "config.json").write_text('{"no_such_option": 1}')
    said = told(call("stability", run / "text" / "seed_0"))
    assert "config.json was written by another version" in said


# -------------------------------------------------------------------------------------- texts


def ask(text: str | None, folder: Path, **options) -> commands.Ask:
    outputs = saved.checked_outputs(None, None)
    return commands.Ask(
        model=folder, text=text, tokens=100, lm="", hook="", outputs=outputs, **options
    )


def test_a_text_is_the_runs_own_a_file_a_folder_or_itself(seed_folder, letters, tmp_path):
    model = saved.open_model(seed_folder)

    def documents(text, **options):
        return commands.documents_of(ask(text, seed_folder, **options), model)

    title, own = documents(None)
    assert title == f"{letters} (validation)"
    assert 0 < len(own) < len(SENTENCES)
    title, every = documents(str(letters))
    assert (title, sorted(every)) == (letters.name, sorted(SENTENCES))
    long = write(tmp_path / "long.txt", "a line of words, and then another\n" * 600)
    title, cut = documents(str(long))
    assert title == "long.txt"
    assert "".join(cut) == files.read_text(long)
    assert [round(len(piece), -3) for piece in cut] == [2000] * 10
    assert documents(str(long), document=0) == ("long.txt", [files.read_text(long)])
    assert documents(str(letters), document=3)[1] == [every[3]]


@pytest.mark.parametrize(
    "text", ["the fox", "the fox " * 50, "~ is a tilde", "~nobody/there", "a\0b", "x" * 2000]
)
def test_a_text_may_be_itself_however_long_or_odd(seed_folder, text):
    model = saved.open_model(seed_folder)
    assert commands.documents_of(ask(text, seed_folder, document=0), model) == ("text", [text])


# ------------------------------------------------------------------------- numbers and files


def codes_of(sae: tsae.Sae, lm: LanguageModel, ids: list[int]) -> Tensor:
    """The dense code of token ids by the language model's own hidden states, products in bf16."""
    with torch.no_grad():
        ids = [*lm.prefix, *ids]
        hidden = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2]
    x = hidden[:, len(lm.prefix) :].to(torch.bfloat16).float()  # as activations are stored
    dials = replace(sae.dials, low=torch.bfloat16)
    return tsae.dense(tsae.encode(sae.params, x, dials)[0], sae.d_sae)[0]


def ids_of(lm: LanguageModel, text: str) -> list[int]:
    return lm.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_evolution_writes_the_codes_of_a_text(seed_folder, tmp_path):
    out = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "png")}
    options = [
        *(f"--{name}={path}" for name, path in out.items()),
        f"--raster={tmp_path / 'r.svg'}",
    ]
    text = "the quick brown fox jumps over the lazy dog"
    done = call("evolution", seed_folder, f"--text={text}", *options)
    assert done.exit_code == 0, done.output
    lm, model = saved.with_lm(saved.open_model(seed_folder))
    dense = codes_of(model.sae, lm, ids_of(lm, text))
    with out["csv"].open() as file:
        rows = [row for row in csv.DictReader(file) if float(row["act"])]
    assert len(rows) > 20
    for row in rows:
        value = dense[int(row["token"]), int(row["feature"])].item()
        assert float(row["act"]) == pytest.approx(value, rel=1e-5)
    held = json.loads(out["json"].read_text())
    assert (held["text"], held["tokens"]) == ("text", len(dense))
    assert out["png"].read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "r.svg").read_text().startswith("<?xml")
    assert {path.name for path in tmp_path.iterdir()} == {"out.json", "out.csv", "out.png", "r.svg"}


@pytest.mark.parametrize("name", ["tsae", "static"])
def test_commands_on_a_text_measure_the_codes_of_its_documents(
    seed_folder, letters, tmp_path, name
):
    numbers = {}
    for command in ("stability", "lifetimes", "transitions"):
        out = [tmp_path / f"{command}.{kind}" for kind in ("json", "csv", "svg")]
        options = (
            f"--{option}={path}" for option, path in zip(("json", "csv", "png"), out, strict=True)
        )
        done = call(command, seed_folder / name, f"--text={letters}", *options)
        assert done.exit_code == 0, done.output
        numbers |= json.loads(out[0].read_text())["numbers"]
        assert all(path.is_file() for path in out)
    assert len(list(tmp_path.iterdir())) == 9
    lm, model = saved.with_lm(saved.open_model(seed_folder / name))
    overlaps, on_after_on = [], []
    for text in SENTENCES:
        ids = ids_of(lm, text)
        for begin in range(0, len(ids), 12):  # the run's seq
            on = codes_of(model.sae, lm, ids[begin : begin + 12]) > 0
            for now, then in itertools.pairwise(on):
                overlaps.append((now & then).sum().item() / max((now | then).sum().item(), 1))
                on_after_on += then[now].tolist()
    assert numbers["jaccard"] == pytest.approx(np.mean(overlaps), rel=1e-9)
    assert numbers["persistence"] == pytest.approx(np.mean(on_after_on), rel=1e-9)


def test_probe_takes_a_folder_and_leaves_out_a_file_with_too_few_of_a_sense(seed_folder, tmp_path):
    for word, n in (("fox", 8), ("dog", 3)):
        rows = [f"{word}\t{word}_{s}\t{word} {s} {i}\t0\t3" for s in "ab" for i in range(n)]
        write(tmp_path / "train" / f"{word}.tsv", "homograph\twordid\tsentence\tstart\tend", *rows)
    done = call("probe", tmp_path, seed_folder, "--k=1")
    assert done.exit_code == 0, done.output
    assert "dog.tsv has no usable line: a sense is too rare" in done.output
    assert "homographs" in done.output
    (tmp_path / "train" / "fox.tsv").unlink()
    assert "dog.tsv has no usable line" in told(call("probe", tmp_path, seed_folder))


def test_probe_trains_on_the_codes_of_a_seed_in_the_runs_products(seed_folder, tmp_path):
    out = {option: tmp_path / f"out.{option}" for option in ("json", "csv", "png")}
    options = [f"--{option}={path}" for option, path in out.items()]
    source = items(tmp_path)
    done = call("probe", source, seed_folder, "--k=1", "--k=3", "--seed=2", *options)
    assert done.exit_code == 0, done.output
    lm, model = saved.with_lm(saved.open_model(seed_folder))
    task = probes.Task(name="items.jsonl", items=public_sets.load_items(source).items)
    texts = [item.text[: item.end] for item in task.items]
    features = {
        name: np.stack([codes_of(sae, lm, ids_of(lm, text))[-1].numpy() for text in texts])
        for name, sae in (("tsae", model.sae), ("static", model.static))
    }
    expected = probes.task_rows(task, features, ks=(1, 3), seed=2)
    expected = [row for row in expected if row["model"] in features]  # no differences
    rows = json.loads(out["json"].read_text())["rows"]
    ours = [row for row in rows if row["model"] in features]
    assert [(row["model"], row["k"], row["items"]) for row in ours] == [
        (row["model"], row["k"], row["items"]) for row in expected
    ]
    sparse = [i for i, row in enumerate(expected) if row["k"] != "all"]
    assert [ours[i]["accuracy"] for i in sparse] == [expected[i]["accuracy"] for i in sparse]
    with out["csv"].open() as file:
        lines = list(csv.DictReader(file))
    assert [line["accuracy"] for line in lines] == [str(row["accuracy"]) for row in rows]
    assert {line.get("control") for line in lines} >= {""}
    assert {path.name for path in tmp_path.iterdir()} == {"items.jsonl", *(f"out.{o}" for o in out)}


def test_figures_are_the_one_file_asked_for_by_its_suffix(seed_folder, tmp_path):
    picture = tmp_path / "probe.svg"
    done = call("probe", items(tmp_path), seed_folder, "--k=1", f"--png={picture}")
    assert done.exit_code == 0, done.output
    assert picture.read_text().startswith("<?xml")
    assert {path.name for path in tmp_path.iterdir()} == {"items.jsonl", "probe.svg"}


def test_outputs_say_what_cannot_be_written_and_what_is_not_there_to_draw(tmp_path, capsys):
    with pytest.raises(ValueError, match="there is no folder"):
        saved.checked_outputs(tmp_path / "no" / "a.json", None)
    with pytest.raises(ValueError, match=r"\.png or \.svg; got .*a\.pdf"):
        saved.checked_outputs(None, None, tmp_path / "a.pdf")
    outputs = saved.checked_outputs(tmp_path / "a.json", tmp_path / "a.csv", tmp_path / "a.png")
    saved.write_outputs(outputs, {"n": 1}, [{"a": 1}, {"a": 2, "b": 3}], [None])
    assert json.loads((tmp_path / "a.json").read_text()) == {"n": 1}
    assert (tmp_path / "a.csv").read_text() == "a,b\n1,\n2,3\n"
    assert not (tmp_path / "a.png").exists()
    assert "nothing to draw" in capsys.readouterr().err
