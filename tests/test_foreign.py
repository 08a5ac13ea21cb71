"""SAEs of other libraries: their own codes and reconstructions, and every command on them.

The folders in tests/fixtures/saes were written by the libraries, see tests/oracles/saes.py.
"""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file, save_file
from strategies import grid, tensors
from toys import ROOT, error_line, save_model
from typer.testing import CliRunner

import experiment
import tsae
import tsae_kernels as kernels
from tsae_lab.jobs import checkpoint, foreign, plan, saved

SAES = ROOT / "tests" / "fixtures" / "saes"
FOLDERS = sorted(path.parent for path in SAES.rglob("expected.safetensors"))


def oracle() -> Any:
    spec = importlib.util.spec_from_file_location("saes", ROOT / "tests" / "oracles" / "saes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(SAES)))
def test_an_sae_of_another_library_has_its_codes_and_reconstruction(folder):
    acts, x_hat, l0 = oracle().differences(folder)
    assert acts < 1e-6
    assert x_hat < 1e-6
    assert l0 > 1


def test_the_fixtures_are_of_every_library_and_architecture():
    names = " ".join(str(path.relative_to(SAES)) for path in FOLDERS)
    for word in ("saelens-6", "dictionary_learning", "sparsify", *foreign.CLASSES, "topk_rescaled"):
        assert word in names
    read = {checkpoint.load_saelens(folder)[1]["architecture"] for folder in FOLDERS}
    assert read == {"topk", "jumprelu"}
    for folder in FOLDERS:
        named, cfg = checkpoint.load_saelens(folder)
        assert cfg["k"] == (3 if cfg["architecture"] == "topk" else 1)
        assert ("threshold" in named) == (cfg["architecture"] == "jumprelu")


def test_the_hook_and_the_model_are_those_that_the_files_name():
    cfg = checkpoint.load_saelens(SAES / "dictionary_learning-BatchTopKSAE")[1]
    assert cfg["hook_name"] == "blocks.3.hook_resid_post"
    assert cfg["model_name"] == "EleutherAI/pythia-70m-deduped"
    assert checkpoint.load_saelens(SAES / "sparsify" / "layers.2")[1]["hook_name"] == (
        "blocks.2.hook_resid_post"
    )
    one = saved.open_model(next(path for path in FOLDERS if path.name.startswith("saelens-6")))
    assert (one.lm, one.hook) == ("gpt2-small", "blocks.1.hook_resid_pre")
    with pytest.raises(ValueError, match="does not name its language model and hook; give --lm"):
        saved.open_model(SAES / "sparsify" / "layers.2")


@pytest.mark.parametrize(
    ("module", "hook"),
    [("h.4.mlp", "blocks.4.hook_mlp_out"), ("gpt_neox.layers.0", "blocks.0.hook_resid_post"),
     ("layers.1.self_attn", "blocks.1.hook_attn_out"), ("embed", None), ("layers.1.x", None)],
)  # fmt: skip
def test_sparsify_folders_are_named_as_modules(tmp_path, module, hook):
    shutil.copytree(SAES / "sparsify" / "layers.2", tmp_path / module)
    (tmp_path / "config.json").write_text(json.dumps({"model": "a/b"}))
    cfg = foreign.sparsify_cfg(tmp_path / module / "cfg.json")
    assert (cfg["hook_name"], cfg["model_name"]) == (hook, "a/b")


# ------------------------------------------------------------------------------ versions, options


def stranger(folder: Path, *, cfg: dict | None = None, named: dict | None = None) -> Path:
    """A standard SAE as SAELens 3 wrote it, changed."""
    g = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (24, 40), "b_enc": (40,), "W_dec": (40, 24), "b_dec": (24,)}
    weights = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    config = {
        "d_in": 24, "d_sae": 40, "dtype": "torch.float32", "device": "cuda",
        "model_name": "gpt2-small", "hook_point": "blocks.1.hook_resid_pre",
        "hook_point_layer": 1, "hook_point_head_index": None, "activation_fn_str": "relu",
        "apply_b_dec_to_input": True, "finetuning_scaling_factor": False, "context_size": 128,
        "normalize_activations": False, "sae_lens_training_version": "3.5.0", "prepend_bos": True,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config | (cfg or {})))
    save_file(weights | (named or {}), folder / "sae_weights.safetensors")
    return folder


def x_hat_of(folder: Path, x: torch.Tensor) -> torch.Tensor:
    sae, _ = checkpoint.load_sae(folder)
    return tsae.forward(sae.params, x, sae.dials)[0]


def test_a_bias_of_one_row_and_a_scaling_factor_of_ones_are_read_away(tmp_path):
    x = torch.randn(2, 3, 24)
    plain = stranger(tmp_path / "plain")
    b_dec = load_file(plain / "sae_weights.safetensors")["b_dec"]
    ones = {"b_dec": b_dec[None], "scaling_factor": torch.ones(40)}
    assert torch.equal(x_hat_of(plain, x), x_hat_of(stranger(tmp_path / "row", named=ones), x))
    for name in ("scaling_factor", "finetuning_scaling_factor"):  # as it was called before, after
        doubled = stranger(tmp_path / name, named={name: torch.full((40,), 2.0)})
        torch.testing.assert_close(x_hat_of(doubled, x) - b_dec, 2 * (x_hat_of(plain, x) - b_dec))


def test_tensors_are_renamed_and_folded_without_a_change_to_what_is_given():
    raw = {"encoder.weight": torch.randn(5, 3), "bias": torch.randn(1, 3), "k": torch.tensor(2)}
    named = foreign.renamed(raw)
    assert named.keys() == {"W_enc", "b_dec"}
    assert torch.equal(named["W_enc"], raw["encoder.weight"].T)
    assert torch.equal(named["b_dec"], raw["bias"][0])
    sae = named | {"b_enc": torch.randn(5), "W_dec": torch.randn(5, 3)}
    cfg = {"architecture": "standard", "apply_b_dec_to_input": False}
    weights, read = foreign.folded(Path("x"), sae, cfg)
    torch.testing.assert_close(weights["b_enc"], sae["b_enc"] + sae["b_dec"] @ sae["W_enc"])
    assert (read["architecture"], read["k"], sae.keys()) == (
        "jumprelu",
        1,
        {*named, "b_enc", "W_dec"},
    )


def test_the_factor_of_a_mean_norm_is_folded(tmp_path):
    x = torch.randn(2, 3, 24)
    plain = stranger(tmp_path / "plain")
    scaled = {"normalize_activations": "expected_average_only_in", foreign.FACTOR: 0.25}
    folder = stranger(tmp_path / "scaled", cfg=scaled)
    torch.testing.assert_close(x_hat_of(folder, x), x_hat_of(plain, x * 0.25) / 0.25)
    assert foreign.saelens_cfg(folder / "cfg.json")["normalize_activations"] == "none"


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"normalize_activations": "layer_norm"}, "got 'layer_norm': its reconstruction needs"),
        ({"normalize_activations": "constant_norm_rescale"}, "needs each token's norm"),
        ({"normalize_activations": True}, "got True: the mean norm's factor is not in"),
        ({"reshape_activations": "hook_z"}, "got 'hook_z': it reads attention heads"),
        ({"architecture": "temporal"}, "needs an architecture of topk, jumprelu, .*got 'temporal'"),
        ({"activation_fn_str": "tanh-relu"}, "needs activation_fn='relu'; got 'tanh-relu'"),
        ({"architecture": "batchtopk"}, "needs a threshold for a batchtopk SAE; got none"),
        ({"architecture": "gated"}, "needs the tensors W_dec, W_enc, b_dec, b_gate, b_mag, r_mag"),
        ({"d_in": None}, "needs a whole number d_in; got None"),
    ],
)
def test_what_cannot_be_folded_is_refused_in_one_line(tmp_path, cfg, message):
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.load_saelens(stranger(tmp_path, cfg=cfg))
    assert "\n" not in str(caught.value)


def test_files_of_other_libraries_that_are_damaged_or_other_are_refused(tmp_path):
    ours = tmp_path / "BatchTopKSAE"
    shutil.copytree(SAES / "dictionary_learning-BatchTopKSAE", ours)
    named = dict(foreign.torch_file(ours / "ae.pt"))
    torch.save(named | {"threshold": torch.tensor(-1.0)}, ours / "ae.pt")
    with pytest.raises(ValueError, match="got -1, that of no training"):
        checkpoint.load_saelens(ours)
    for content, message in (
        (b"x", "cannot be read as a file of tensors"),
        (None, "no dictionary"),
    ):
        if content is None:
            torch.save([1], ours / "ae.pt")
            message = "is not a dictionary of tensors"
        else:
            (ours / "ae.pt").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            checkpoint.load_saelens(ours)
    config = foreign.json_object(ours / "config.json")
    config["trainer"]["dict_class"] = "CrossCoder"
    (ours / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"needs a dict_class of AutoEncoder, .*got 'CrossCoder'"):
        foreign.dictionary_cfg(ours / "config.json")
    skip = tmp_path / "layers.1"
    shutil.copytree(SAES / "sparsify" / "layers.2", skip)
    cfg = foreign.json_object(skip / "cfg.json") | {"transcode": True}
    (skip / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(ValueError, match="needs transcode=False; got True"):
        checkpoint.load_saelens(skip)
    with pytest.raises(
        ValueError, match=r"holds no model: there is no cfg\.json, nor cfg\.json wi"
    ):
        checkpoint.files_of(tmp_path)
    assert checkpoint.files_of(ours) == ("config.json", "ae.pt")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float8_e4m3fn"])
def test_weights_of_any_float_dtype_and_a_configuration_with_a_mark_are_read(tmp_path, dtype):
    folder = stranger(tmp_path, cfg={"dtype": dtype})
    named = load_file(folder / "sae_weights.safetensors")
    cast = {name: tensor.to(getattr(torch, dtype)) for name, tensor in named.items()}
    save_file(cast, folder / "sae_weights.safetensors")
    text = (folder / "cfg.json").read_text()
    (folder / "cfg.json").write_text(f"\ufeff{text}")
    read, _ = checkpoint.load_saelens(folder)
    assert torch.equal(read["W_enc"], cast["W_enc"].float())


def test_a_file_and_a_folder_of_folders_are_answered_with_the_folder_that_is_meant(tmp_path):
    for name in ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"):
        stranger(tmp_path / name)
    with pytest.raises(ValueError, match=r"in blocks.0.hook_resid_pre, blocks.1.hook_resid_pre"):
        checkpoint.files_of(tmp_path)
    with pytest.raises(ValueError, match=r"a model is a folder; .* is a file: give .*0.hook"):
        checkpoint.files_of(tmp_path / "blocks.0.hook_resid_pre" / "cfg.json")


@settings(deadline=None, max_examples=40)
@given(tensors(4, 2, 6, elements=grid), tensors(6, elements=grid))
def test_a_feature_is_on_above_its_threshold_and_no_other(pre, threshold):
    jumped = kernels.jump(pre, threshold)
    on = [[[p if p > t else 0 for p, t in zip(row, threshold.tolist(), strict=True)]
           for row in rows] for rows in pre.tolist()]  # fmt: skip
    assert jumped.tolist() == on


def test_a_code_of_thresholds_is_as_wide_as_the_token_with_the_most_features_on(tmp_path):
    sae, _ = checkpoint.load_sae(stranger(tmp_path))
    params, x = sae.params, torch.randn(2, 3, 24)
    expected = tsae.pre_acts(x, params.static).relu()
    n_on = int((expected > 0).sum(-1).max())
    codes, state = tsae.encode(params, x, sae.dials)
    for found in (codes, tsae.encode_static(x, params.static, 1)):
        assert found.vals.shape == (2, 3, n_on)
        torch.testing.assert_close(tsae.dense(found, 40), expected, rtol=0, atol=1e-5)
    high = replace(params.static, threshold=torch.full((40,), 1e9))
    silent, _ = tsae.encode(replace(params, static=high), x, sae.dials, state)
    assert silent.vals.tolist() == [[[0.0]] * 3] * 2
    nothing, _ = tsae.encode(params, x[:, :0], sae.dials)
    assert nothing.vals.shape == (2, 0, 1)


def test_what_is_saved_of_a_thresholded_sae_comes_back(tmp_path):
    sae, _ = checkpoint.load_sae(SAES / "dictionary_learning-GatedAutoEncoder")
    checkpoint.save_sae(tmp_path / "again", sae, model_name="m", hook_name="h")
    again, cfg = checkpoint.load_sae(tmp_path / "again")
    assert cfg["architecture"] == "jumprelu"
    for name, tensor in tsae.tensors(sae.params.static).items():
        assert torch.equal(tsae.tensors(again.params.static)[name], tensor)


# -------------------------------------------------------------------------------- every command


@pytest.fixture
def hub(tmp_path, monkeypatch) -> None:
    """A cache of the hub that holds a tiny GPT-2 by its name."""
    place = tmp_path / "hub" / "models--gpt2"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots" / "abc").mkdir(parents=True)
    save_model(place / "snapshots" / "abc", "gpt2")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TSAE_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("hub")
def test_a_strangers_gpt2_sae_at_resid_pre_is_examined_by_its_files_alone(tmp_path):
    folder = stranger(tmp_path / "blocks.1.hook_resid_pre")
    text = tmp_path / "fox.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    on_text = [f"--text={text}", "--tokens=300"]
    run = CliRunner().invoke(experiment.app, ["stability", str(folder), *on_text])
    assert run.exit_code == 0, run.output
    assert "static SAE" in run.output
    pairs = tmp_path / "pairs.jsonl"
    row = {"sentence_good": "the fox jumps.", "sentence_bad": "the fox jump.", "UID": "x"}
    pairs.write_text(json.dumps(row) + "\n")
    asked = ["minimal-pairs", str(folder), str(pairs)]
    run = CliRunner().invoke(experiment.app, asked)
    assert run.exit_code == 0, run.output
    asked = ["steer", str(folder), "the quick", "--feature=1", "--strength=3", "--tokens=3"]
    run = CliRunner().invoke(experiment.app, asked)
    assert run.exit_code == 0, run.output


def test_training_does_not_start_from_an_sae_that_is_not_top_k(tmp_path):
    folder = stranger(tmp_path / "sae")
    with pytest.raises(
        ValueError, match=r"a start needs a top-k SAE, .*can be measured, probed and"
    ):
        plan.scaled_config("cpu", {"static_sae": str(folder)})
    run = CliRunner().invoke(
        experiment.app, [f"--out_dir={tmp_path}/run_2", f"--static_sae={folder}"]
    )
    assert "a start needs a top-k SAE" in error_line(run.output)
