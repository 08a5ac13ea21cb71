import errno
import json
import os
import resource
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from strategies import grid, json_values, sizes, tensors

import tsae
from tsae_lab.jobs import checkpoint

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
on_disk = settings(max_examples=50, deadline=None)  # every example waits for the disk to sync


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoint")


def temporary_files(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def bits(tensor):
    """Dtype, shape and bytes, read element by element where it lies: equal for equal NaNs, unlike
    for 0.0 and -0.0.
    """
    whole = tensor.contiguous().reshape(-1).view(torch.uint8)
    return tensor.dtype, tuple(tensor.shape), bytes(whole.tolist())


@st.composite
def any_tensors(draw):
    """Tensors of any bits (NaN payloads, infinities), dtype and up to 3 axes, some of length 0,
    some not contiguous.
    """
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    n_bytes = torch.empty(shape, dtype=dtype).nbytes
    top = 1 if dtype == torch.bool else 255
    raw = draw(st.lists(st.integers(0, top), min_size=n_bytes, max_size=n_bytes))
    tensor = torch.tensor(raw, dtype=torch.uint8).view(dtype).reshape(shape)
    return tensor.T if draw(st.booleans()) and tensor.dim() == 2 else tensor


# Tensors


names = st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__")


@on_disk
@given(
    st.dictionaries(names, any_tensors(), max_size=4),
    st.dictionaries(st.text(), json_values, max_size=3),
)
def test_what_is_saved_is_loaded_bit_for_bit(folder, given_tensors, meta):
    path = folder / "any.safetensors"
    checkpoint.save_tensors(path, given_tensors, meta)
    loaded, loaded_meta = checkpoint.load_tensors(path)
    assert {name: bits(t) for name, t in loaded.items()} == {
        name: bits(t) for name, t in given_tensors.items()
    }
    assert loaded_meta == meta


@on_disk
@given(st.dictionaries(st.sampled_from("abcd"), any_tensors(), min_size=1))
def test_a_saved_file_is_what_the_safetensors_library_reads(folder, given_tensors):
    path = folder / "library.safetensors"
    checkpoint.save_tensors(path, given_tensors, {})
    assert {name: bits(t) for name, t in load_file(path).items()} == {
        n: bits(t) for n, t in given_tensors.items()
    }


def test_loaded_tensors_are_aligned_and_do_not_change_with_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    saved = {name: torch.arange(n) % 2 == 0 for name, n in (("a", 3), ("b", 1001), ("c", 64))}
    checkpoint.save_tensors(path, saved, {})
    loaded, _ = checkpoint.load_tensors(path, device=torch.device("cpu"))
    with path.open("r+b") as file:  # into the same file, as a view would see
        file.write(b"\xff" * path.stat().st_size)
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert [t.data_ptr() % 64 for t in loaded.values()] == [0, 0, 0]


def test_a_file_with_the_checksum_in_an_entry_of_its_own_is_loaded_and_refused_when_damaged(
    tmp_path,
):
    path, word, on = tmp_path / "before", torch.tensor([1.0, -0.0]).bfloat16(), torch.tensor(True)
    text = '{"step": 100, "dials": {"k": 6}}'
    content = b"on BOOL ()" + b"\x01" + b"word BF16 (2,)" + bytes.fromhex("803f0080")
    header = {"crc32": f"{zlib.crc32(text.encode() + content):08x}", "json": text}
    save_file({"word": word, "on": on}, path, header)
    loaded, meta = checkpoint.load_tensors(path)
    assert {name: bits(t) for name, t in loaded.items()} == {"word": bits(word), "on": bits(on)}
    assert meta == {"step": 100, "dials": {"k": 6}}
    save_file({"word": word + 1, "on": on}, path, header)
    with pytest.raises(ValueError, match="before is damaged"):
        checkpoint.load_tensors(path)


def test_views_of_one_storage_are_saved_apart_and_as_small_as_they_are(tmp_path):
    whole = torch.arange(10_000.0, requires_grad=True)
    checkpoint.save_tensors(tmp_path / "a", {"whole": whole[:4], "part": whole[1:3]}, {})
    loaded, _ = checkpoint.load_tensors(tmp_path / "a")
    assert loaded["whole"].tolist() == [0, 1, 2, 3]
    assert loaded["part"].tolist() == [1, 2]
    assert (tmp_path / "a").stat().st_size < 1000


def test_the_same_content_gives_the_same_bytes_in_any_order(tmp_path):
    a, b = torch.zeros(3), torch.ones(2, dtype=torch.int64)
    checkpoint.save_tensors(tmp_path / "1", {"a": a, "b": b}, {"step": 1})
    checkpoint.save_tensors(tmp_path / "2", {"b": b, "a": a}, {"step": 1})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.fixture(scope="module")
def small_file(folder):
    path = folder / "small.safetensors"
    kept = {
        "a": torch.tensor([1.0, -0.0]),
        "b": torch.tensor(True),
        "d": torch.ones(1, dtype=torch.int64),
    }
    checkpoint.save_tensors(path, kept, {"step": 100, "word": "é"})
    return path.read_bytes()


def test_a_flipped_bit_in_any_byte_is_refused(folder, small_file):
    path = folder / "flipped.safetensors"
    for at in range(len(small_file)):
        for bit in {at % 8, (at + 3) % 8}:
            path.write_bytes(
                small_file[:at] + bytes([small_file[at] ^ 1 << bit]) + small_file[at + 1 :]
            )
            with pytest.raises(ValueError, match=r"flipped\.safetensors") as caught:
                checkpoint.load_tensors(path)
            assert "\n" not in str(caught.value)


def test_every_truncated_or_longer_file_is_refused(folder, small_file):
    path = folder / "cut.safetensors"
    for content in (*(small_file[:n] for n in range(len(small_file))), small_file + b"\0"):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"cut\.safetensors is truncated, damaged or no safetensors file"
        ):
            checkpoint.load_tensors(path)


@on_disk
@given(st.binary(max_size=64))
def test_a_file_of_something_else_is_refused(folder, content):
    (folder / "foreign").write_bytes(content)
    with pytest.raises(ValueError, match="foreign"):
        checkpoint.load_tensors(folder / "foreign")


def test_tensors_that_another_program_saved_are_refused_for_want_of_a_checksum(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "theirs")
    with pytest.raises(ValueError, match="theirs was not written by save_tensors"):
        checkpoint.load_tensors(tmp_path / "theirs")


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_missing_file_or_a_folder_is_an_error_with_its_name(tmp_path, name):
    with pytest.raises(OSError, match=str(tmp_path)):
        checkpoint.load_tensors(tmp_path / name)


@pytest.mark.parametrize(
    "odd", [{"a": torch.zeros(2, dtype=torch.complex64)}, {"__metadata__": torch.zeros(2)}]
)
def test_what_the_format_cannot_hold_is_not_saved(tmp_path, odd):
    with pytest.raises(ValueError, match="has no place in the format"):
        checkpoint.save_tensors(tmp_path / "a", odd, {})
    assert not list(tmp_path.iterdir())


# Atomic files


def test_a_file_that_outgrows_the_limit_of_the_system_leaves_the_old_one(tmp_path):
    path = tmp_path / "a"
    checkpoint.save_tensors(path, {"a": torch.ones(2)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=f"{path} not written: File too large"):
            checkpoint.save_tensors(path, {"a": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.load_tensors(path)[0]["a"].tolist() == [1, 1]
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


# The SAELens format


def an_sae(d_in=3, d_sae=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}


def save(folder, sae, k=2, **metadata):
    static = tsae.static_sae(tsae.Static(**sae), k)
    checkpoint.save_sae(folder, static, model_name="lm", hook_name="h", metadata=metadata)


def edit(folder, **changes):
    """Writes `changes` into cfg.json; None takes the key away."""
    cfg = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(
        json.dumps({name: value for name, value in cfg.items() if value is not None})
    )


def rewrite(folder, **changes):
    """Writes `changes` into the weights as another program would, without a checksum; None takes
    the tensor away.
    """
    weights = load_file(folder / "sae_weights.safetensors") | changes
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "sae_weights.safetensors")


def codes_by_loop(x, sae, cfg):
    """Codes and reconstruction of one token as SAELens defines them, feature by feature in Python
    floats.
    """
    W_enc, b_enc, W_dec, b_dec = (
        sae[name].double().tolist() for name in ("W_enc", "b_enc", "W_dec", "b_dec")
    )
    norm = [
        sum(w * w for w in row) ** 0.5 if cfg.get("rescale_acts_by_decoder_norm") else 1.0
        for row in W_dec
    ]
    centred = [
        a - b if cfg.get("apply_b_dec_to_input", True) else a
        for a, b in zip(x.tolist(), b_dec, strict=True)
    ]
    pre = [
        (sum(a * W_enc[i][f] for i, a in enumerate(centred)) + b_enc[f]) * norm[f]
        for f in range(len(b_enc))
    ]
    chosen = sorted(range(len(pre)), key=lambda f: -pre[f])[: cfg["k"]]
    acts = [max(pre[f], 0.0) if f in chosen else 0.0 for f in range(len(pre))]
    x_hat = [
        sum(acts[f] / norm[f] * W_dec[f][i] for f in range(len(pre))) + b
        for i, b in enumerate(b_dec)
    ]
    return acts, x_hat


@on_disk
@given(st.data(), sizes("d_in", "d_sae"))
def test_an_sae_comes_back_bit_for_bit_with_its_configuration(folder, data, n):
    shapes = {
        "W_enc": ("d_in", "d_sae"),
        "b_enc": ("d_sae",),
        "W_dec": ("d_sae", "d_in"),
        "b_dec": ("d_in",),
    }
    sae = {name: data.draw(tensors(*(n[axis] for axis in axes))) for name, axes in shapes.items()}
    k = data.draw(st.integers(1, n["d_sae"]))
    save(folder / "sae", sae, k=k, n_tokens=7)
    loaded, cfg = checkpoint.load_saelens(folder / "sae", d_in=n["d_in"], d_sae=n["d_sae"])
    assert {name: bits(t) for name, t in loaded.items()} == {
        name: bits(t) for name, t in sae.items()
    }
    assert (cfg["k"], cfg["d_in"], cfg["d_sae"]) == (k, n["d_in"], n["d_sae"])
    assert cfg["metadata"].pop("contents").keys() == {"cfg.json", "sae_weights.safetensors"}
    assert cfg["metadata"] == {
        "sae_lens_version": "6.0.0",
        "model_name": "lm",
        "hook_name": "h",
        "n_tokens": 7,
    }


def test_the_files_hold_what_saelens_asks_for_and_nothing_else(tmp_path):
    sae = {name: tensor.bfloat16() for name, tensor in an_sae().items()}
    save(tmp_path / "new" / "sae", sae)
    weights = load_file(tmp_path / "new" / "sae" / "sae_weights.safetensors")
    assert {name: bits(t) for name, t in weights.items()} == {
        name: bits(t.float()) for name, t in sae.items()
    }
    cfg = json.loads((tmp_path / "new" / "sae" / "cfg.json").read_text())
    assert len(cfg["metadata"].pop("contents")["sae_weights.safetensors"]) == 8  # a crc32
    assert cfg == {
        **{
            "architecture": "topk",
            "d_in": 3,
            "d_sae": 5,
            "k": 2,
            "dtype": "float32",
            "device": "cpu",
        },
        **{"apply_b_dec_to_input": True, "normalize_activations": "none"},
        "metadata": {"sae_lens_version": "6.0.0", "model_name": "lm", "hook_name": "h"},
    }


def test_the_checksums_of_weights_change_with_the_weights_alone(tmp_path):
    for name, seed, note in (("a", 0, "x"), ("b", 0, "y"), ("c", 1, "x")):
        save(tmp_path / name, an_sae(seed=seed), note=note)
    a, b, c = (checkpoint.weights_of(tmp_path / name) for name in "abc")
    assert a.keys() == {"sae_weights.safetensors"}
    assert a == b != c
    assert checkpoint.weights_of(tmp_path) == {}


def test_an_sae_that_saelens_saved_anew_is_not_held_against_our_checksums(tmp_path):
    save(tmp_path, an_sae())
    rewrite(tmp_path, b_enc=torch.ones(5))  # as after a fine-tuning there
    with pytest.raises(ValueError, match="not the one that was saved"):
        checkpoint.load_sae(tmp_path)
    edit(tmp_path, reshape_activations="none", rescale_acts_by_decoder_norm=False)
    assert checkpoint.load_sae(tmp_path)[0].params.static.b_enc.tolist() == [1.0] * 5


flags = st.sampled_from([None, False, True])


@on_disk
@given(flags, flags, tensors(3, elements=grid))
def test_options_are_turned_into_weights_with_the_same_codes(folder, rescale, b_dec_to_input, x):
    path = folder / "options"
    sae = an_sae()
    save(path, sae)
    edit(path, rescale_acts_by_decoder_norm=rescale, apply_b_dec_to_input=b_dec_to_input)
    raw = json.loads((path / "cfg.json").read_text())
    loaded, cfg = checkpoint.load_saelens(path)
    for ours, theirs in zip(
        codes_by_loop(x, loaded, {"k": cfg["k"]}), codes_by_loop(x, sae, raw), strict=True
    ):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert torch.equal(loaded["W_dec"], sae["W_dec"]) is not bool(rescale)
    assert (cfg["apply_b_dec_to_input"], cfg["rescale_acts_by_decoder_norm"]) == (True, False)


def test_the_oracle_tells_the_options_apart():
    x, sae = torch.tensor([1.0, -2.0, 3.0]), an_sae()
    cases = [{}, {"rescale_acts_by_decoder_norm": True}, {"apply_b_dec_to_input": False}]
    assert len({str(codes_by_loop(x, sae, {"k": 2, **case})) for case in cases}) == 3


@pytest.mark.parametrize("name", ["activation_fn", "activation_fn_str"])
def test_a_topk_sae_of_saelens_before_6_is_loaded(tmp_path, name):
    save(tmp_path, an_sae())
    edit(
        tmp_path,
        **{"architecture": "standard", "k": None, name: "topk", "activation_fn_kwargs": {"k": 4}},
        normalize_activations=False,
    )
    _, cfg = checkpoint.load_saelens(tmp_path)
    assert (cfg["architecture"], cfg["k"], cfg["normalize_activations"]) == ("topk", 4, "none")


def test_half_precision_weights_are_loaded_as_float32(tmp_path):
    save(tmp_path, an_sae())
    rewrite(tmp_path, **{name: tensor.half() for name, tensor in an_sae().items()})
    loaded, _ = checkpoint.load_saelens(tmp_path)
    assert all(
        torch.equal(loaded[name], tensor.half().float()) for name, tensor in an_sae().items()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "jumprelu"}, "needs a threshold for a jumprelu SAE; got none"),
        ({"architecture": "x"}, "cfg.json needs an architecture of topk, .*; got 'x'"),
        (
            {"normalize_activations": "layer_norm"},
            "cfg.json needs normalize_activations='none'; got 'layer_norm': its .*",
        ),
        (
            {"normalize_activations": True},
            "cfg.json needs normalize_activations='none'; got True: the mean .*",
        ),
        (
            {"reshape_activations": "hook_z"},
            "cfg.json needs reshape_activations='none'; got 'hook_z': it reads .*",
        ),
        ({"d_sae": None}, "cfg.json needs a whole number d_sae; got None"),
        ({"k": 2.0}, "cfg.json needs a whole number k; got 2.0"),
        ({"activation_fn": "topk"}, "cfg.json needs a whole number k; got None"),
        ({"k": 0}, "needs 0 < k <= d_sae; got k=0, d_sae=5"),
        ({"k": 6}, "needs 0 < k <= d_sae; got k=6, d_sae=5"),
        ({"d_in": 4}, r"needs W_enc of shape \(4, 5\); got \(3, 5\)"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_in_one_line(tmp_path, changes, message):
    save(tmp_path, an_sae())
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"^{tmp_path}.*{message}$"):
        checkpoint.load_saelens(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b_dec": None}, "needs the tensors W_dec, W_enc, b_dec, b_enc; got W_dec, W_enc, b_enc"),
        (
            {"extra": torch.zeros(1)},
            "needs the tensors W_dec, W_enc, b_dec, b_enc; got W_dec, W_enc, b_dec, b_enc, extra",
        ),
        ({"W_enc": torch.zeros(5, 3)}, r"needs W_enc of shape \(3, 5\); got \(5, 3\)"),
        ({"b_enc": torch.full((5,), float("nan"))}, "has NaN or infinity in b_enc"),
        ({"W_dec": torch.full((5, 3), float("inf"))}, "has NaN or infinity in W_dec"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, changes, message):
    save(tmp_path, an_sae())
    rewrite(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"^{tmp_path}/sae_weights.safetensors {message}$"):
        checkpoint.load_saelens(tmp_path)


def test_decoder_rows_of_norm_0_are_refused_only_where_they_are_divided_by(tmp_path):
    save(tmp_path, an_sae() | {"W_dec": torch.zeros(5, 3)})
    assert not checkpoint.load_saelens(tmp_path)[0]["W_dec"].any()
    edit(tmp_path, rescale_acts_by_decoder_norm=True)
    with pytest.raises(ValueError, match="W_dec rows of norm 0"):
        checkpoint.load_saelens(tmp_path)


@pytest.mark.parametrize(("name", "got"), [("d_in", 3), ("d_sae", 5)])
def test_a_width_other_than_asked_for_is_refused(tmp_path, name, got):
    save(tmp_path, an_sae())
    with pytest.raises(ValueError, match=f"has {name}={got}; needed is {name}=9"):
        checkpoint.load_saelens(tmp_path, **{name: 9})


@pytest.mark.parametrize("missing", ["cfg.json", "sae_weights.safetensors"])
def test_a_missing_file_of_an_sae_is_named(tmp_path, missing):
    save(tmp_path, an_sae())
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        checkpoint.load_saelens(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "3", "null", '"topk"'])
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path, text):
    save(tmp_path, an_sae())
    (tmp_path / "cfg.json").write_text(text)
    with pytest.raises(ValueError, match=r"cfg\.json (is not JSON|needs a JSON object)"):
        checkpoint.load_saelens(tmp_path)


def test_a_flipped_byte_in_our_own_weights_is_refused(tmp_path):
    save(tmp_path, an_sae())
    path = tmp_path / "sae_weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its content does not have the checksum"):
        checkpoint.load_saelens(tmp_path)


@pytest.mark.parametrize(
    ("changes", "k", "message"),
    [
        ({}, 6, "got k=6, d_sae=5"),
        ({}, 0, "got k=0"),
        ({"b_dec": torch.full((3,), float("nan"))}, 2, "NaN"),
    ],
)
def test_an_sae_that_could_not_be_loaded_is_not_saved(tmp_path, changes, k, message):
    save(tmp_path, an_sae())
    with pytest.raises(ValueError, match=message):
        save(tmp_path, an_sae(seed=1) | changes, k=k)
    assert torch.equal(checkpoint.load_saelens(tmp_path)[0]["W_enc"], an_sae()["W_enc"])


def test_a_full_disk_leaves_both_files_of_the_old_sae(tmp_path, monkeypatch):
    save(tmp_path, an_sae(), k=2)

    def full(path, _text):
        path.write_bytes(b"{")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)  # cfg.json, when the new weights are complete
        with pytest.raises(OSError, match=r"cfg\.json not written: No space left on device"):
            save(tmp_path, an_sae(seed=1), k=3)
    loaded, cfg = checkpoint.load_saelens(tmp_path)
    assert torch.equal(loaded["W_enc"], an_sae()["W_enc"])
    assert cfg["k"] == 2
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("n_moved", [0, 1])
def test_a_kill_between_two_moves_leaves_no_mixture_of_two_saes(tmp_path, monkeypatch, n_moved):
    save(tmp_path, an_sae(), k=2)
    moved = []

    def stop(source, target, replace=os.replace):
        if len(moved) == n_moved:
            raise KeyboardInterrupt
        moved.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, an_sae(seed=1), k=3)
    with pytest.raises(FileNotFoundError, match=r"cfg\.json"):
        checkpoint.load_saelens(tmp_path)


@given(tensors(3, 5), tensors(5, 4), st.sampled_from([0.25, 1.0, 3.0]))
def test_unit_rows_gives_the_same_codes_and_reconstructions_with_rows_of_norm_1(W_enc, x, norm):
    W_dec = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator())) * norm
    sae = {"W_enc": W_enc, "b_enc": x[:, 0], "W_dec": W_dec, "b_dec": x[:3, 1]}
    scaled = checkpoint.unit_rows(Path("sae"), sae)
    torch.testing.assert_close(scaled["W_dec"].norm(dim=1), torch.ones(5))
    for token in torch.eye(3):
        before, after = ((token @ s["W_enc"] + s["b_enc"]).relu() for s in (sae, scaled))
        torch.testing.assert_close(after, before * norm, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(after @ scaled["W_dec"], before @ W_dec, rtol=1e-4, atol=1e-2)


def test_unit_rows_refuses_rows_of_several_norms_and_rows_of_norm_0():
    for factors in ([1.0, 1.0, 1.01], [0.0, 0.0, 0.0]):
        eye, ones = torch.eye(3), torch.ones(3)
        W_dec = eye * torch.tensor(factors)[:, None]
        sae = {"W_enc": eye, "b_enc": ones, "W_dec": W_dec, "b_dec": ones}
        with pytest.raises(ValueError, match="a start needs W_dec rows of one norm"):
            checkpoint.unit_rows(Path("sae"), sae)
