"""Another text, language model or SAE under the same path is another run."""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import FOX, HOOK, edit_json, load_toy

import experiment
import tsae
from tsae_lab import checksums, files
from tsae_lab.data import language_model, store
from tsae_lab.jobs import checkpoint, identity, plan, saved, study
from tsae_lab.jobs.plan import Config

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps"]
HERE = Config(
    datasets="notes.txt", lm="model", static_sae="sae", cache_dir="cache", hook=HOOK, seeds=1,
    device="cpu", precision="float32", seq=24, pieces=2, batch=4, steps=8, pretrain=0.4,
    settle=0.1, introduce=0.1, warmup=2, checkpoint_every=2, k=4, d_sae=48, window=3, hidden_enc=3,
    hidden_dec=5, dead_after=500, train_tokens=1_000, val_tokens=300, splice_tokens=100,
    sections="lifetimes",
)  # fmt: skip


def write_text(path: Path, seed: int = 0) -> None:
    order = torch.randint(len(WORDS), (200, 12), generator=torch.Generator().manual_seed(seed))
    path.write_text("".join(" ".join(WORDS[i] for i in row) + ".\n" for row in order.tolist()))


@pytest.fixture(scope="module")
def begun(tmp_path_factory, lm_folder) -> Path:
    """A folder with a text, a language model, a static SAE and a finished run_2 of them."""
    folder = tmp_path_factory.mktemp("begun")
    write_text(folder / "notes.txt")
    shutil.copytree(lm_folder, folder / "model")
    save_sae(folder / "sae", seed=3)
    with contextlib.chdir(folder):
        experiment.run(Path("run_2"), HERE)
    return folder


@pytest.fixture
def here(begun, tmp_path, monkeypatch) -> Path:
    """A copy of it as the working directory: the paths of a run are relative."""
    shutil.copytree(begun, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def save_sae(folder: Path, seed: int) -> None:
    static = tsae.init_static(torch.zeros(24), 48, generator=torch.Generator().manual_seed(seed))
    sae = tsae.static_sae(static, 4)
    checkpoint.save_sae(folder, sae, model_name="model", hook_name=HOOK)


def weigh(folder: Path) -> None:
    """Another weight in the language model under the same path."""
    lm = load_toy(folder)
    with torch.no_grad():
        next(iter(lm.model.parameters()))[5] += 0.5
    lm.model.save_pretrained(folder)


def spell(folder: Path) -> None:
    """Another spelling of a byte, which the text does not have, under the same path."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    model["vocab"]["other"] = model["vocab"].pop("ÿ")
    edit_json(folder / "tokenizer.json", model=model)


def test_a_tokenizer_is_known_by_what_it_spells_and_not_by_how_it_is_written(tmp_path, lm_folder):
    shutil.copytree(lm_folder, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    names = [language_model.tokenizer_identity(load_toy(tmp_path / "model").tokenizer)]
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content, indent=7))
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    old = content | {"model": content["model"] | {"merges": merges}}  # as before 0.20
    path.write_text(json.dumps(old))
    names.append(language_model.tokenizer_identity(load_toy(tmp_path / "model").tokenizer))
    assert names[0] == names[1]
    spell(tmp_path / "model")
    assert language_model.tokenizer_identity(load_toy(tmp_path / "model").tokenizer) != names[0]


CHANGES = {
    "tokenizer": (lambda here: spell(here / "model"), "another tokenizer"),
    "text": (lambda here: write_text(here / "notes.txt", seed=1), "other .* tokens of .*notes.txt"),
    "model": (lambda here: weigh(here / "model"), "another language model"),
    "sae": (lambda here: save_sae(here / "sae", seed=4), "another static SAE"),
}


def contents(out: Path) -> dict:
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_under_the_same_path_is_refused_with_its_name(here, change):
    before = contents(here / "run_2")
    act, needle = CHANGES[change]
    act(here)
    for call in (experiment.run, run_3, trade):
        with pytest.raises(ValueError, match=needle) as caught:
            call(Path("run_2") if call != run_3 else Path("run_3"), HERE)
        assert "another --out_dir" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert contents(here / "run_2") == before
    assert not (here / "run_3").exists()
    experiment.run(Path("again"), HERE)


def run_3(out: Path, config: Config) -> dict:
    return study.run_study(out, config, train=experiment.run)


def trade(out: Path, config: Config) -> dict:
    return study.tradeoff(out, config.datasets, [0.0], 0, train=experiment.train_tsae)


def test_a_finished_run_that_did_not_change_is_read_and_says_what_it_was_made_of(here, capsys):
    info = json.loads((here / "run_2" / "final_info.json").read_text())
    for key in (checksums.SEAL, checksums.CONFIG):  # of the file, not of the run
        del info["notes.txt"][key]
    assert experiment.run(Path("run_2"), HERE)["notes.txt"] == info["notes.txt"]
    (here / "run_2" / "log.jsonl").unlink()
    assert experiment.run(Path("run_2"), HERE)["notes.txt"] == info["notes.txt"]
    run_3(Path("run_3"), HERE)
    assert "bits may differ" not in capsys.readouterr().err
    made = plan.made_of(Path("run_2"))
    assert made
    assert made["texts"]["notes.txt"].keys() == {"training", "validation"}
    of_text = identity.of_text(made, "notes.txt")
    of_seed = identity.of_seed(of_text, 0, plan.options_of(HERE))
    assert of_seed != identity.of_seed(of_text, 0, plan.options_of(replace(HERE, lr=1.0)))
    assert [made[key] for key in ("device", "products", "torch")] == [
        "cpu", "float32", torch.__version__,
    ]  # fmt: skip
    seed = Path("run_2/notes.txt/seed_0")
    assert json.loads((seed / "measures.json").read_text())["identity"] == of_seed
    _, cfg = checkpoint.load_sae(seed / "tsae")
    assert cfg["metadata"]["identity"] == of_seed
    section = json.loads(Path("run_3/notes.txt/seed_0/lifetimes.json").read_text())
    assert section["identity"]["lm"] == made["lm"]
    assert "identity" not in info["notes.txt"]["final_info_dict"]


def test_numbers_that_were_carried_in_from_another_run_are_refused(here):
    path = here / "run_2" / "notes.txt" / "seed_0" / "measures.json"
    made = json.loads(path.read_text())["identity"]
    edit_json(path, identity=made | {"lm": "0" * 64})
    for call in (lambda: experiment.run(Path("run_2"), HERE), lambda: run_3(Path("run_3"), HERE)):
        with pytest.raises(ValueError, match=r"measures\.json was made of another language model"):
            call()


def test_a_half_finished_run_goes_on_with_the_same_alone(here):
    seed = here / "run_2" / "notes.txt" / "seed_0"
    (here / "run_2" / "final_info.json").unlink()
    (seed / "measures.json").unlink()
    saved_meta = checkpoint.load_tensors(seed / "pretrained.safetensors")
    checkpoint.save_tensors(
        seed / "pretrained.safetensors",
        saved_meta[0],
        saved_meta[1] | {"identity": saved_meta[1]["identity"] | {"static_sae": "0"}},
    )
    with pytest.raises(ValueError, match=r"pretrained\.safetensors was made of another static SAE"):
        experiment.run(Path("run_2"), HERE)


@pytest.mark.parametrize("name", identity.ARITHMETIC)
def test_another_dtype_or_device_is_refused_and_other_surroundings_are_said(here, name, capsys):
    path = here / "run_2" / "config.json"
    made = json.loads(path.read_text())["identity"]
    edit_json(path, identity=made | {name: "other"})
    with pytest.raises(ValueError, match=f"run_2 was made with {name} other"):
        experiment.run(Path("run_2"), HERE)
    around = {"threads": 99, "torch": "1.0", "commit": "abc"}
    edit_json(path, identity=made | around)
    capsys.readouterr()
    experiment.run(Path("run_2"), HERE)
    [line] = [line for line in capsys.readouterr().err.splitlines() if "bits may differ" in line]
    assert all(f"{key} {value}" in line for key, value in around.items())


def test_a_run_of_an_earlier_version_goes_on_and_says_that_it_is_not_checked(here, capsys):
    for path in (here / "run_2").rglob("*.json"):
        content = json.loads(path.read_text())
        content.pop("identity", None)
        content.pop(checksums.SEAL, None)
        path.write_text(json.dumps(content))
    experiment.run(Path("run_2"), HERE)
    said = capsys.readouterr().err
    assert said.count("are not checked") == 1
    for name in ("config.json", "measures.json"):
        assert f"{name} has no checksum" in said


def test_a_command_refuses_another_model_under_the_saved_name_unless_it_is_given(here, capsys):
    folder = Path("run_2/notes.txt/seed_0/tsae")
    for exact in (False, True):  # in bfloat16, say, and in float32
        saved.with_lm(saved.open_model(folder), exact=exact)
    weigh(here / "model")
    for exact in (False, True):
        with pytest.raises(ValueError, match="another language model than model is; give --lm"):
            saved.with_lm(saved.open_model(folder), exact=exact)
        capsys.readouterr()
        saved.with_lm(saved.open_model(folder, lm="model"), exact=exact)
        assert "another language model" in capsys.readouterr().err


def test_what_is_not_known_of_both_is_not_compared():
    made = {"texts": {"a": {"validation": "1"}}, "lm": "1", "lm_dtype": "float32",
            "static_sae": None}  # fmt: skip
    other_split = made | {"texts": {"a": {"training": "2"}, "b": {"validation": "3"}}}
    other_dtype = made | {"lm": "2", "lm_dtype": "bfloat16"}
    for now in ({}, other_split, other_dtype):
        identity.refuse_content(Path("x"), made, now)
        identity.refuse_content(Path("x"), now, made)
    with pytest.raises(ValueError, match="x was made with lm_dtype float32"):
        identity.refuse_unequal(Path("x"), made, other_dtype)


def test_a_digest_is_of_everything_that_tokens_and_weights_are(lm):
    tokens = language_model.tokenize(lm, FOX, seq=12)
    same, digest = language_model.tokenize(lm, FOX, seq=12), store.tokens_digest(tokens)
    assert store.tokens_digest(same) == digest
    for name, value in vars(tokens).items():
        other = value.clone()
        other[-1] = ~other[-1] if other.dtype == torch.bool else other[-1] + 1
        assert store.tokens_digest(replace(tokens, **{name: other})) != digest
    digest = language_model.model_identity(lm.model)
    assert digest == lm.identity
    assert digest != language_model.model_identity(lm.model, torch.bfloat16)


def test_a_model_in_float32_is_compared_in_the_dtype_that_was_used(lm, lm_folder):
    low = language_model.load_lm(lm_folder, device="cpu", dtype=torch.bfloat16)
    in_low = identity.identity_of(low, {}, static_sae="", low=torch.float32)
    in_full = identity.identity_of(lm, {}, static_sae="", low=torch.float32)
    assert not identity.is_other_lm(in_low, lm)
    assert not identity.is_other_lm(in_full, lm)
    assert identity.is_other_lm(in_low | {"lm": "0"}, lm)
    assert identity.is_other_lm(in_full | {"lm": "0"}, lm)
    assert not identity.is_other_lm(in_full | {"lm": "0"}, low)  # cannot be known
    assert not identity.is_other_lm({}, lm)


def test_the_parts_of_a_run_are_read_from_tokens_that_were_made_once(here, capsys):
    lm = plan.lm_of(HERE)
    tokens = plan.both_splits(HERE, lm, "notes.txt")
    assert torch.equal(
        tokens["validation"].ids, plan.split_tokens(HERE, lm, "notes.txt", "validation").ids
    )
    data = plan.data_of(HERE, lm, "notes.txt", tokens)
    assert data.train.tokens is tokens["training"]
    assert plan.open_store(HERE, lm, tokens["validation"]).path == data.val.path
    now = plan.identity_now(HERE, lm, {"notes.txt": tokens})
    plan.check_identity(here / "run_2", now)
    plan.check_identity(here / "none", now)
    capsys.readouterr()
    identity.say_others(Path("x"), now, now)
    assert capsys.readouterr().err == ""


def test_a_directory_that_another_process_makes_is_refused_at_once(here):
    with files.sole(here / "run_2"):
        for call in (experiment.run, trade):
            with pytest.raises(ValueError, match="run_2 is being made by another process"):
                call(Path("run_2"), HERE)
    (here / "run_2" / "final_info.json").unlink()
    with files.sole(here / "run_2"), pytest.raises(ValueError, match="run_2 is being made by"):
        run_3(Path("run_3"), HERE)
    with files.sole(here / "run_3"), pytest.raises(ValueError, match="run_3 is being made by"):
        run_3(Path("run_3"), HERE)
    assert not (here / "run_3").exists()


def test_a_lock_that_a_killed_process_left_is_no_foreign_file(tmp_path):
    (tmp_path / files.LOCK).write_text("(pid 1)")
    plan.claim(tmp_path, HERE, "run_2")
    assert plan.run_config(tmp_path) == (HERE, "run_2")


@pytest.mark.parametrize("theirs", ["mine", 3, None, {"lm": "x"}])
def test_what_other_programs_call_an_identity_is_not_taken_for_ours(here, theirs):
    path = here / "run_2" / "notes.txt" / "seed_0" / "tsae" / "cfg.json"
    metadata = json.loads(path.read_text())["metadata"]
    edit_json(path, metadata=metadata | {"identity": theirs})
    assert saved.open_model(path.parent).made == {}


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"static_fve": 0.5, "jaccard": 0.1}'])
def test_damaged_measures_are_refused_with_what_to_do(here, content):
    done = here / "run_2/notes.txt/seed_0/measures.json"
    done.write_text(content)
    with pytest.raises(ValueError, match=r"measures\.json (is|needs) .*delete it") as caught:
        experiment.run(Path("run_2"), HERE)
    assert "\n" not in str(caught.value)
    done.unlink()
    experiment.run(Path("run_2"), HERE)


def test_what_was_made_with_another_seed_or_other_options_is_refused(here):
    done = here / "run_2/notes.txt/seed_0/measures.json"
    made = json.loads(done.read_text())["identity"]
    for change, needle in ({"seed": 1}, "made of seed 1"), ({"options": "x"}, "other options"):
        edit_json(done, identity=made | change)
        with pytest.raises(ValueError, match=needle):
            experiment.run(Path("run_2"), HERE)
    edit_json(done, identity=made)
    cfg = here / "run_2/notes.txt/seed_0/tsae/cfg.json"
    metadata = json.loads(cfg.read_text())["metadata"]
    edit_json(cfg, metadata=metadata | {"identity": made | {"seed": 1}})
    with pytest.raises(ValueError, match="made of seed 1"):
        run_3(Path("run_3"), HERE)


def test_a_tsae_without_its_temporal_part_or_with_anothers_is_refused(here):
    models = here / "run_2/notes.txt/seed_0"
    part = models / "tsae/temporal.safetensors"
    own = part.read_bytes()
    part.unlink()
    with pytest.raises(ValueError, match=r"temporal\.safetensors is missing"):
        run_3(Path("run_3"), HERE)
    temporal, meta = checkpoint.load_tensors(save_bytes(here / "own.safetensors", own))
    checkpoint.save_tensors(part, temporal | {"bridge": temporal["bridge"] + 1}, meta)
    with pytest.raises(ValueError, match=r"is not the one that was saved with cfg\.json"):
        run_3(Path("run_3"), HERE)
    part.write_bytes(own)
    shutil.copy(models / "static/sae_weights.safetensors", models / "tsae")
    with pytest.raises(ValueError, match=r"is not the one that was saved with cfg\.json"):
        saved.open_model(models / "tsae")


def save_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_the_trade_offs_of_two_strengths_that_look_alike_are_apart(here):
    betas = [0.5, 0.5000001]
    curve = study.tradeoff(Path("run_2"), "notes.txt", betas, 0, train=experiment.train_tsae)
    assert [point["beta"] for point in curve["tsae"]] == betas
    assert (here / "run_2/tradeoff_notes.txt.json").is_file()
