"""A saved model's card, and its way to a hub on this machine and back."""

import json
import pickle
import re
from typing import Any

import pytest
import torch
from hub_server import printed, serve
from huggingface_hub import ModelCard
from toys import random_model

import tsae
from tsae_lab.jobs import checkpoint, sharing

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
ABOUT = {"dataset": "sotu", "seed": 0, "steps": 300, "context_size": 254, "prepend_bos": True}
MEASURES = {"fve": 0.8422, "static_fve": 0.8325, "l0": 31.8, "kl": None, "alive_frac": 1.0}


def read_card(path) -> tuple[Any, str]:
    """The front matter and the rest, as the hub's own library reads them."""
    read = ModelCard.load(path)
    return read.data, read.text


def save(folder, *, temporal: bool = True, **about):
    dials = tsae.Dials(k=4, window=3)
    sae = tsae.Sae(params=random_model(), dials=dials)
    sae = sae if temporal else tsae.static_sae(sae.params.static, 4)
    names = {"model_name": HUB, "hook_name": "blocks.14.hook_resid_post"}
    checkpoint.save_sae(folder, sae, metadata=ABOUT | about, **names)
    return folder


def run(url, home, *calls):
    """What commands say on a hub at `url`, in a process of its own."""
    code = "import sys; sys.stderr = sys.stdout\nimport experiment\n"
    code += f"for words in {calls!r}:\n    experiment.app(words.split(), standalone_mode=False)\n"
    return printed(url, home, code)


def test_a_card_says_what_was_measured_on_which_text_of_which_licence(tmp_path):
    tsae_folder, static_folder = save(tmp_path / "tsae"), save(tmp_path / "static", temporal=False)
    for folder in (tsae_folder, static_folder):
        sharing.write_card(folder, MEASURES)
    data, text = read_card(tsae_folder / "README.md")
    assert (data.base_model, data.library_name) == (HUB, "saelens")
    results = {r.metric_type: r.metric_value for r in data.eval_results}
    assert results == {"fve": 0.8422, "l0": 31.8, "alive_frac": 1.0}
    assert {r.dataset_name for r in data.eval_results} == {"sotu"}
    for said in ("| trained on | sotu; licence of the text: MIT", "0.8422", "12, 96, 4", "254"):
        assert said in text
    other_data, other_text = read_card(static_folder / "README.md")
    assert {r.metric_type: r.metric_value for r in other_data.eval_results} == {"fve": 0.8325}
    assert ("TSAE.from_pretrained" in other_text, "without memory" in other_text) == (True, False)


@pytest.mark.parametrize(
    ("dataset", "said", "datasets"),
    [
        ("roneneldan/TinyStories:default", "see its page", ["roneneldan/TinyStories"]),
        ("/home/me/secret/notes.txt", "notes.txt; licence of the text: not known here", None),
    ],
)
def test_a_card_names_a_dataset_and_no_path(tmp_path, dataset, said, datasets):
    sharing.write_card(save(tmp_path / "m", dataset=dataset), {})
    data, text = read_card(tmp_path / "m" / "README.md")
    assert said in text
    assert "secret" not in (tmp_path / "m" / "README.md").read_text()
    assert data.datasets == datasets
    assert "Measured" not in text
    assert data.eval_results is None


def test_the_hubs_name_of_a_language_model(tmp_path):
    assert sharing.hub_name("smollm2-135m") == HUB
    assert sharing.hub_name("gpt2-small") in ("gpt2", "openai-community/gpt2")
    assert sharing.hub_name("EleutherAI/pythia-70m") == "EleutherAI/pythia-70m"
    assert sharing.hub_name(str(tmp_path)) == str(tmp_path)
    assert checkpoint.own_lm({"model_name": "a", "metadata": {"lm": "b"}}) == "b"
    assert checkpoint.own_lm({"metadata": {"model_name": "c"}}) == "c"
    assert checkpoint.own_lm({}) == ""


def test_a_seeds_models_go_to_a_hub_and_come_back_to_the_bit(tmp_path):
    seed = tmp_path / "run_2" / "sotu" / "seed_0"
    save(seed / "tsae")
    save(seed / "static", temporal=False)
    (seed / "measures.json").write_text(json.dumps(MEASURES))
    (seed / "log.txt").write_text("stays here")
    with serve({}) as url:
        calls = (
            f"push {seed} me/saes/sotu",
            f"pull me/saes/sotu {tmp_path / 'seed'}",
            f"pull me/saes/sotu/static {tmp_path / 'static'}",
            f"push {tmp_path / 'static'} me/other --private",
            f"pull me/other {tmp_path / 'other'}",
        )
        told = run(url, tmp_path / "home", *calls)
    assert "me/other" in told
    assert sorted(str(p.relative_to(tmp_path / "seed")) for p in (tmp_path / "seed").rglob("*.*")) \
        == sorted(f"{m}/{n}" for m in ("tsae", "static") for n in ("README.md", "cfg.json",
        "sae_weights.safetensors", *(["temporal.safetensors"] if m == "tsae" else [])))  # fmt: skip
    for there, here in (("seed/tsae", "tsae"), ("static", "static"), ("other", "static")):
        sae, cfg = checkpoint.load_sae(tmp_path / there)
        expected, expected_cfg = checkpoint.load_sae(seed / here)
        assert cfg == expected_cfg
        tensors = tsae.tensors(sae.params)
        for name, tensor in tsae.tensors(expected.params).items():
            assert torch.equal(tensors[name], tensor), name
    data, _ = read_card(tmp_path / "seed" / "static" / "README.md")
    assert [r.metric_value for r in data.eval_results] == [0.8325]


def test_no_local_path_goes_to_a_hub(tmp_path):
    secret = tmp_path / "secret"
    lm, text = str(secret / "my_lm"), str(secret / "notes.txt")
    about = ABOUT | {"dataset": text, "lm": lm, "identity": {"texts": {text: {"training": "a"}}}}
    sae = tsae.Sae(params=random_model(), dials=tsae.Dials(k=4, window=3))
    names = {"model_name": lm, "hook_name": "blocks.1.hook_resid_post"}
    checkpoint.save_sae(tmp_path / "ours", sae, metadata=about, **names)
    sharing.write_card(tmp_path / "ours", {})
    theirs = save(tmp_path / "theirs", temporal=False)
    old = json.loads((theirs / "cfg.json").read_text())
    del old["metadata"]
    (theirs / "cfg.json").write_text(json.dumps(old | {"model_name": lm, "hook_point": "h"}))
    hub: dict = {}
    for name in ("ours", "theirs"):
        hub[f"a/{name}", "main"] = files = sharing.published_files(tmp_path / name)
        assert b"secret" not in b"".join(files.values())
        assert files.keys() >= {"README.md", "cfg.json", "sae_weights.safetensors"}
    with serve(hub) as url:
        told = run(url, tmp_path / "home", f"pull a/ours {tmp_path / 'back'}",
                   f"pull a/theirs {tmp_path / 'other'}",
                   f"push {tmp_path / 'ours'} me/m")  # fmt: skip
    assert "ours: local paths in cfg.json go without their folders" in told
    again, cfg = checkpoint.load_sae(tmp_path / "back")
    for name, tensor in tsae.tensors(sae.params).items():
        assert torch.equal(tsae.tensors(again.params)[name], tensor)
    assert again.dials == sae.dials
    assert checkpoint.own_lm(cfg) == "my_lm"
    assert cfg["metadata"]["dataset"] == "notes.txt"
    assert cfg["metadata"]["identity"] == {"texts": {"notes.txt": {"training": "a"}}}
    assert checkpoint.own_lm(checkpoint.load_sae(tmp_path / "other")[1]) == "my_lm"


def test_a_path_is_told_from_a_name():
    kept = ["sotu", "a/b", "a/b:default:train", "2.13.0+cpu", "https://x.org/a/b", "blocks.1.h", ""]
    assert sharing.without_paths(kept) == kept
    paths = {"/a/b.txt": "~/c d", "e": ["./f", "../g", "C:\\h\\i.txt", "j/k/l", 3, None]}
    assert sharing.without_paths(paths) == {"b.txt": "c d", "e": ["f", "g", "i.txt", "l", 3, None]}


def test_nothing_but_safetensors_is_fetched_or_sent(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    evil = {"cfg.json": b"{}", "sae_weights.pt": pickle.dumps(Bomb()), "model.py": b"1/0"}
    inside = {f"sub/{n}": b"" for n in ("cfg.json", "sae_weights.safetensors")}
    with serve({("a/b", "main"): evil | inside}) as url:
        home = tmp_path / "home"
        calls = [["a/b"], ["a/b/sub"], ["a/none"], ["a"], ["a/b/.."]]
        code = "from pathlib import Path\nfrom tsae_lab.jobs import sharing\n"
        code += f"for (source,) in {calls!r}:\n    try:\n"
        code += f"        sharing.pull_from_hub(source, Path({str(tmp_path / 'out')!r}))\n"
        code += "    except ValueError as error:\n        print(error)\n"
        told = printed(url, home, code).splitlines()
    assert "holds no cfg.json with sae_weights.safetensors" in told[0]
    assert "it has SAEs in sub; pickles are not fetched" in told[0]
    assert "is truncated, damaged or no safetensors" in told[1] or "cfg.json" in told[1]
    assert "a/none was not fetched: no hub could be reached, or it refuses" in told[2]
    assert told[3:] == [f"a repository is owner/name[/folder]; got {w!r}" for w in ("a", "a/b/..")]
    names = {path.name for path in tmp_path.rglob("*")}
    assert not names & {"ran", "out", "model.py", "sae_weights.pt"}
    pickled = tmp_path / "theirs"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "ae.pt").write_bytes(pickle.dumps(1))
    with pytest.raises(ValueError, match="is a pickle: only safetensors are pushed"):
        sharing.push_to_hub(pickled, "a/b")
    assert sharing.model_folders(pickled) == {"": pickled}


def test_without_a_hub_one_line_says_so(tmp_path):
    folder = save(tmp_path / "m")
    code = "from pathlib import Path\nfrom tsae_lab.jobs import sharing\nfor call in (\n"
    code += f"    lambda: sharing.push_to_hub(Path({str(folder)!r}), 'a/b'),\n"
    code += f"    lambda: sharing.pull_from_hub('a/b', Path({str(tmp_path / 'out')!r})),\n):\n"
    code += "    try:\n        call()\n    except ValueError as error:\n        print(error)\n"
    pushed, pulled = printed("http://127.0.0.1:9", tmp_path / "home", code).splitlines()
    assert re.search(r"m was not pushed to a/b: no hub could be reached, or it refuses: .", pushed)
    assert re.search(r"^a/b was not fetched: no hub could be reached, or it refuses: .", pulled)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="exists; give the name of a new folder"):
        sharing.pull_from_hub("a/b", folder)
