"""The files that Neuronpedia imports: SAEDashboard's keys, and numbers counted here by loops."""

import json
from pathlib import Path

import pytest
import torch
from toys import HOOK, load_toy, random_model, save_saes
from typer.testing import CliRunner

import experiment
import metrics
import tsae
from tsae_lab.data import language_model, store
from tsae_lab.jobs import checkpoint
from tsae_lab.report import neuronpedia
from tsae_lab.sections.context import Subject, context_of

# of NeuronpediaDashboardFeature and NeuronpediaDashboardActivation, SAEDashboard 0.8.0; the types
# as Neuronpedia's importer takes them
LISTS = {
    **dict.fromkeys(("neuron_alignment_indices", "correlated_neurons_indices"), int),
    **dict.fromkeys(("neuron_alignment_values", "neuron_alignment_l1"), float),
    **dict.fromkeys(("correlated_neurons_l1", "correlated_neurons_pearson"), float),
    "correlated_features_indices": int,
    **dict.fromkeys(("correlated_features_l1", "correlated_features_pearson"), float),
    **dict.fromkeys(("neg_str", "pos_str"), str),
    **dict.fromkeys(("neg_values", "pos_values"), float),
    **dict.fromkeys(("freq_hist_data_bar_values", "logits_hist_data_bar_values"), float),
    **dict.fromkeys(("freq_hist_data_bar_heights", "logits_hist_data_bar_heights"), int),
    **dict.fromkeys(("decoder_weights_dist", "vector"), float),
    "activations": dict,
}
SINGLE = {"feature_index": int, "frac_nonzero": float, "n_prompts_total": int,
          "n_tokens_in_prompt": int, "dataset": str}  # fmt: skip
ACTIVATION = {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}
TEXT = "the quick brown fox jumps over the lazy dog. "


@pytest.fixture(scope="module")
def exported(tmp_path_factory, lm_folder) -> tuple[Path, Path, Path]:
    root = tmp_path_factory.mktemp("neuronpedia")
    params = random_model(d_in=24, d_sae=96)
    model = save_saes(root / "sae", params, tsae.Dials(k=6), lm_folder) / "tsae"
    (root / "text.txt").write_text(TEXT * 40)
    words = ["neuronpedia", model, root / "out", f"--text={root / 'text.txt'}", "--size=20",
             "--tokens=600"]  # fmt: skip
    done = CliRunner().invoke(experiment.app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    again = CliRunner().invoke(experiment.app, [str(word) for word in words])
    assert again.exit_code == 1
    assert "exists; give the name of a new folder" in again.output
    return root / "out", model, lm_folder


def test_every_key_of_saedashboards_batches_is_there_with_its_type(exported):
    out, *_ = exported
    paths = sorted(out.glob("batch-*.json"))
    batches = [json.loads(path.read_text()) for path in paths]
    assert len(batches) > 1
    indices = []
    for batch in batches:
        assert batch.keys() == {"model_id", "layer", "sae_set", "sae_id_suffix", "features"}
        assert (batch["layer"], batch["sae_set"]) == (1, "tsae-res")
        assert len(batch["features"]) <= 20
        for feature in batch["features"]:
            indices.append(feature["feature_index"])
            assert feature.keys() == LISTS.keys() | SINGLE.keys()
            for name, kind in SINGLE.items():
                assert type(feature[name]) is kind, name
            for name, kind in LISTS.items():
                assert {type(value) for value in feature[name]} <= {kind}, name
            assert len(feature["pos_str"]) == len(feature["pos_values"]) == 10
            assert feature["activations"]
            for activation in feature["activations"]:
                assert activation.keys() == ACTIVATION
                assert len(activation["tokens"]) == len(activation["values"])
                peak = activation["qualifying_token_index"]
                assert activation["values"][peak] == max(activation["values"]) > 0
                assert activation["bin_max"] >= max(activation["values"]) - 0.002
    skipped = json.loads((out / "skipped_indexes.json").read_text())
    assert skipped.keys() == {"model_id", "layer", "sae_set", "log_sparsity", "skipped_indexes"}
    assert sorted(indices + skipped["skipped_indexes"]) == list(range(96))


def test_its_numbers_are_those_of_the_codes_and_of_the_unembedding(exported):
    out, folder, lm_folder = exported
    lm, (sae, _) = load_toy(lm_folder), checkpoint.load_sae(folder)
    features = [f for p in out.glob("batch-*.json") for f in json.loads(p.read_text())["features"]]
    seen = {}  # sequences as they stand in the file, coded again by the functions
    for feature in features:
        for activation in feature["activations"]:
            seen["".join(activation["tokens"])] = activation["tokens"]
    assert all(text in TEXT * 40 for text in seen)
    n_tokens: list[float] = []
    vocabulary = lm.model.get_output_embeddings().weight.float()
    for feature in features[:5]:
        index = feature["feature_index"]
        assert 0 < feature["frac_nonzero"] <= 1
        n_active = sum(feature["freq_hist_data_bar_heights"])
        n_tokens.append(n_active / feature["frac_nonzero"])
        assert n_tokens[-1] == pytest.approx(n_tokens[0])
        assert n_tokens[0] <= feature["n_prompts_total"] * feature["n_tokens_in_prompt"]
        logits = (vocabulary @ sae.params.static.W_dec[index]).tolist()
        assert feature["pos_values"] == pytest.approx(sorted(logits)[:-11:-1], abs=2e-3)
        assert feature["neg_values"] == pytest.approx(sorted(logits)[:10], abs=2e-3)
        assert sum(feature["logits_hist_data_bar_heights"]) == len(vocabulary)
        top = [a for a in feature["activations"] if a["bin_min"] == -1]
        peaks = [max(a["values"]) for a in top]
        assert peaks == sorted(peaks, reverse=True)
        for activation in feature["activations"]:
            if activation["bin_min"] >= 0:
                peak = max(activation["values"])
                assert activation["bin_min"] - 2e-3 <= peak <= activation["bin_max"] + 2e-3
                assert 0 <= activation["bin_contains"] <= 1
    _same_codes(lm, sae, features[0])


def test_a_feature_that_fires_anywhere_lives_and_no_features_are_no_batches(lm):
    dense = torch.zeros(2, 3, 4)
    dense[0, 1, 2], dense[1, 0, 0] = 1.0, 2.0
    sae = tsae.static_sae(random_model(d_in=24, d_sae=4).static, 2)
    subject = Subject(name="static SAE", prefix="", sae=sae, fve=0.0,
                      codes=metrics.codes_from_dense(dense))  # fmt: skip
    assert neuronpedia.live_features(subject) == [0, 2]
    x = torch.zeros(2, 3, 24)
    context = context_of("toy", 0, lm, store.in_memory(x, HOOK), [subject], long=False)
    assert list(neuronpedia.feature_batches(context, subject, [], size=2, about={})) == []


def _same_codes(lm, sae, feature) -> None:
    """One sequence of a feature, read by the language model and coded here."""
    activation = feature["activations"][0]
    text = "".join(activation["tokens"])
    ids = language_model.token_ids(lm, text)
    if [lm.tokenizer.decode([i]) for i in ids] != activation["tokens"]:
        pytest.skip("the sequence begins inside a word: its tokens are others by themselves")
    x = language_model.residual(lm, torch.tensor([[*lm.prefix, *ids]]), HOOK)[:, len(lm.prefix) :]
    _, codes, _ = tsae.forward(sae.params, x.float(), sae.dials)
    dense = tsae.dense(codes, 96)[0, :, feature["feature_index"]]
    peak = activation["qualifying_token_index"]  # the file's were computed in bf16
    assert float(dense[peak]) == pytest.approx(activation["values"][peak], rel=0.2)
