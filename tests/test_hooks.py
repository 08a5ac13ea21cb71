"""Hooks by TransformerLens' names: read, replaced and run on from as TransformerBridge does it."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from torch import Tensor
from toys import load_toy, save_model, save_tokenizer
from transformers import BloomConfig, BloomForCausalLM, Gemma2Config, Gemma2ForCausalLM

from tsae_lab.data import hooks, language_model
from tsae_lab.data.hooks import Site
from tsae_lab.data.language_model import LanguageModel

IDS = torch.randint(20, 250, (2, 7), generator=torch.Generator().manual_seed(0))
DELTA = torch.randn(24, generator=torch.Generator().manual_seed(1))
SMALL = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "vocab_size": 290,
    "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> LanguageModel:
    """A model with norms after attention and MLP."""
    folder = tmp_path_factory.mktemp("gemma")
    save_tokenizer(folder)
    torch.manual_seed(0)
    sizes = {"num_key_value_heads": 3, "head_dim": 8, "intermediate_size": 40}
    Gemma2ForCausalLM(Gemma2Config(**SMALL | sizes)).save_pretrained(folder)
    return load_toy(folder)


def by_bridge(lm: LanguageModel, hook: str) -> tuple[Tensor, Tensor]:
    """The value at a hook, and the logits with DELTA added there, by TransformerBridge."""
    bridge, seen = lm.bridge, []  # made outside of inference mode, for later tests

    def act(value: Tensor, hook: object) -> Tensor:  # noqa: ARG001 the bridge names it
        seen.append(value.clone())
        return value + DELTA

    with torch.inference_mode():
        logits = bridge.run_with_hooks(IDS, fwd_hooks=[(hook, act)], prepend_bos=False)
    return seen[0], logits


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
def test_every_hook_is_read_and_replaced_as_by_the_bridge(any_lm, kind):
    for hook in (f"blocks.0.hook_{kind}", f"blocks.2.hook_{kind}"):
        value, logits = by_bridge(any_lm, hook)
        close(language_model.residual(any_lm, IDS, hook), value)
        above, plain = language_model.layers_above(any_lm, hook), any_lm.model(input_ids=IDS).logits
        close(above(IDS, value + DELTA, 0), logits)
        close(above(IDS, value, 0), plain)
        assert not torch.allclose(logits, plain, atol=1e-2)


def test_the_stream_between_attention_and_mlp_is_what_the_mlp_reads_and_is_added_to(any_lm):
    hook, kind = "blocks.1.hook_resid_mid", any_lm.model.config.model_type
    if kind == "gpt_neox":
        with pytest.raises(ValueError, match="read the same stream, there is none between them"):
            language_model.check_hook(any_lm, hook)
        return
    mid, layer = by_bridge(any_lm, hook)[0], hooks.layers_of(any_lm.model)[1]
    close(language_model.residual(any_lm, IDS, hook), mid)
    norm = layer.ln_2 if kind == "gpt2" else layer.post_attention_layernorm
    after = mid + DELTA + layer.mlp(norm(mid + DELTA))
    expected = language_model.layers_above(any_lm, "blocks.1.hook_resid_post")(IDS, after, 3)
    close(language_model.layers_above(any_lm, hook)(IDS, mid + DELTA, 3), expected)


@pytest.mark.parametrize("kind", ["resid_mid", "attn_out", "mlp_out"])
def test_norms_after_attention_and_mlp_are_part_of_what_they_add(gemma, kind):
    site = language_model.check_hook(gemma, f"blocks.1.hook_{kind}")
    assert site == Site(1, kind)
    before, mid, after, attn, mlp = (
        language_model.residual(gemma, IDS, f"blocks.1.hook_{name}")
        for name in ("resid_pre", "resid_mid", "out", "attn_out", "mlp_out")
    )
    torch.testing.assert_close(before + attn, mid)
    torch.testing.assert_close(mid + mlp, after)
    value = {"resid_mid": mid, "attn_out": attn, "mlp_out": mlp}[kind]
    logits = language_model.layers_above(gemma, f"blocks.1.hook_{kind}")(IDS, value + 0.2, 0)
    moved = after + 0.2 if kind == "mlp_out" else None
    if moved is not None:
        above = language_model.layers_above(gemma, "blocks.1.hook_resid_post")
        torch.testing.assert_close(logits, above(IDS, moved, 0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits, gemma.model(input_ids=IDS).logits, atol=1e-3)


def test_a_name_stands_for_one_place_and_an_unknown_one_is_answered_with_the_nearest():
    assert hooks.site_of("blocks.0.hook_resid_pre", 3, "x") == Site(0, "resid_pre")
    assert hooks.site_of("blocks.2.hook_resid_pre", 3, "x") == Site(1, "resid_post")
    assert hooks.site_of("blocks.2.hook_out", 3, "x") == Site(2, "resid_post")
    with pytest.raises(ValueError, match=r"the nearest name is blocks\.1\.hook_mlp_out$"):
        hooks.site_of("blocks.1.mlp_out", 3, "x")
    with pytest.raises(ValueError, match=r"blocks\.2\.hook_resid_post, and hook_resid_pre, hook_r"):
        hooks.site_of("blocks.3.hook_resid_post", 3, "x")


def test_a_layer_whose_parts_are_not_added_is_refused(tmp_path):
    save_tokenizer(tmp_path)
    BloomForCausalLM(BloomConfig(**SMALL)).save_pretrained(tmp_path)
    lm = load_toy(tmp_path)
    with pytest.raises(ValueError, match="is not the stream before it plus what attention and MLP"):
        language_model.check_hook(lm, "blocks.1.hook_attn_out")
    language_model.check_hook(lm, "blocks.1.hook_resid_post")
    hooks.check_site(lm.model, Site(1, "resid_post"), IDS)


def test_changed_leaves_no_hook_behind(lm):
    before = lm.model(input_ids=IDS).logits
    with hooks.changed(lm.model, Site(1, "mlp_out"), torch.zeros_like):
        assert not torch.equal(lm.model(input_ids=IDS).logits, before)
    assert torch.equal(lm.model(input_ids=IDS).logits, before)


def test_an_alias_of_transformer_lens_is_the_hubs_model(tmp_path, monkeypatch):
    """The hub's cache holds a tiny NeoX by the name of the first host of this project."""
    names = {
        "pythia-70m-deduped": "EleutherAI/pythia-70m-deduped",
        "gpt2-small": "gpt2",
        "gemma-2-2b": "google/gemma-2-2b",
        "EleutherAI/pythia-70m": "EleutherAI/pythia-70m",
        "no-such-model": "no-such-model",
    }
    assert {name: language_model.official_name(name) for name in names} == names
    place = tmp_path / "models--EleutherAI--pythia-70m-deduped"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    save_model(_made(place / "snapshots" / "abc"), "gpt_neox")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    lm = language_model.load_lm("pythia-70m-deduped", device="cpu", dtype=torch.float32)
    assert (lm.name, lm.model.config.model_type) == ("pythia-70m-deduped", "gpt_neox")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
