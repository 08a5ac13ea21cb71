"""SAEBench's evaluations: what is refused and why; where it is installed beside, its own JSON."""

import importlib.util
import json
from pathlib import Path

import pytest
from hub_server import dataset, printed, serve
from toys import error_line, random_model, save_model, save_saes
from typer.testing import CliRunner

import experiment
import tsae

BESIDE = importlib.util.find_spec("sae_bench") is not None


def call(*words: object):
    return CliRunner().invoke(experiment.app, [str(word) for word in words])


@pytest.mark.parametrize("name", ["ravel", "absorption", "mdl", "sparse_probing_sae_probes"])
def test_evaluations_of_single_tokens_are_named(name, tmp_path):
    line = error_line(call("saebench", tmp_path, f"--evals=core,{name}").output)
    assert f"{name} encodes single tokens, an empty memory of a TSAE" in line


def test_unknown_evaluations_and_none_are_refused(tmp_path):
    line = error_line(call("saebench", tmp_path, "--evals=cores").output)
    assert "--evals takes core and sparse_probing; got 'cores'" in line
    assert "at least one of core" in error_line(call("saebench", tmp_path, "--evals=,").output)


@pytest.mark.skipif(BESIDE, reason="sae-bench is installed beside")
def test_without_the_package_one_line_says_what_to_install(tmp_path):
    line = error_line(call("saebench", tmp_path).output)
    assert "sae-bench 0.6 is not installed beside" in line
    assert "pip install --no-deps sae-bench==0.6.0" in line


@pytest.mark.skipif(not BESIDE, reason="sae-bench 0.6 is not installed beside")
@pytest.mark.filterwarnings("ignore")
def test_core_writes_saebenchs_json_on_a_text_of_ours(tmp_path):
    lm = save_model(tmp_path / "lm", "llama", max_position_embeddings=160)
    params = random_model(d_in=24, d_sae=96)
    model = save_saes(tmp_path / "sae", params, tsae.Dials(k=6), lm) / "tsae"
    (tmp_path / "text").mkdir()
    for i in range(30):
        text = "the quick brown fox jumps over the lazy dog. " * (5 + i)
        (tmp_path / "text" / f"{i}.txt").write_text(text)
    words = ["saebench", model, "--evals=core", f"--text={tmp_path / 'text'}", "--batches=1"]
    done = call(*words, f"--out={tmp_path / 'out'}")
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "out" / "core").glob("*_eval_results.json")
    metrics = json.loads(path.read_text())["eval_result_metrics"]
    assert 0 < metrics["sparsity"]["l0"] <= 6
    assert metrics["reconstruction_quality"]["explained_variance"] < 1
    again = call(*words, f"--out={tmp_path / 'out'}")
    assert "exists; give another --out" in error_line(again.output)


TOPICS = ("quick brown fox", "lazy dog", "jumps over", "the the the")


@pytest.mark.skipif(not BESIDE, reason="sae-bench 0.6 is not installed beside")
def test_sparse_probing_writes_saebenchs_json_on_a_set_of_a_hub(tmp_path):
    lm = save_model(tmp_path / "lm", "gpt2")
    params = random_model(d_in=24, d_sae=96)
    model = save_saes(tmp_path / "sae", params, tsae.Dials(k=6), lm) / "tsae"
    here = set(lm.iterdir()) | set(Path.cwd().iterdir())
    rows = [{"text": f"{topic} {i}", "label": n}
            for n, topic in enumerate(TOPICS) for i in range(200)]  # fmt: skip
    hub = dataset({"default": {"train": rows, "test": rows[::4]}})
    call = ["saebench", str(model), "--evals=sparse_probing", "--sets=fancyzhx/ag_news"]
    call += [f"--out={tmp_path / 'out'}", "--texts=400"]
    with serve({("fancyzhx/ag_news", "main"): hub}) as url:
        code = f"import experiment; experiment.app({call!r}, standalone_mode=False)"
        printed(url, tmp_path / "home", code)
    (path,) = (tmp_path / "out" / "sparse_probing").glob("*_eval_results.json")
    said = json.loads(path.read_text())
    (detail,) = said["eval_result_details"]
    assert detail["dataset_name"].startswith("fancyzhx/ag_news")
    config = said["eval_config"]
    assert (config["context_length"], config["probe_test_set_size"]) == (32, 100)
    scores = said["eval_result_metrics"]
    assert scores["sae"]["sae_top_5_test_accuracy"] > 0.7  # chance is 0.5
    assert scores["llm"]["llm_test_accuracy"] > 0.9
    assert {*lm.iterdir(), *Path.cwd().iterdir()} == here  # its scratch folders are gone
