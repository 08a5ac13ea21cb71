"""Saved tensors and SAEs: a file is written whole or not at all, and read exactly or refused."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import tsae
from tsae_lab.files import Writer, json_text, write_all, write_atomic

SAELENS_WEIGHTS, SAELENS_CFG = "sae_weights.safetensors", "cfg.json"
TEMPORAL_WEIGHTS = "temporal.safetensors"  # beside them, of a TSAE
OPTIONS = ("normalize_activations", "reshape_activations")  # of SAELens; only "none" is read
FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
INTEGERS = {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"}
DTYPES = FLOATS | INTEGERS | {torch.uint8: "U8", torch.bool: "BOOL"}  # as the checksum spells them
Tensors = dict[str, Tensor]


class Damaged(ValueError):
    """A file of tensors that is truncated, damaged, or none."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write `tensors` (any device, strided or not) and `meta` (JSON) as one safetensors file.

    Atomic. The header holds a crc32 of everything; the same content gives the same bytes.
    """
    text = json_text(path, meta)
    odd = [n for n, t in tensors.items() if t.dtype not in DTYPES or n == "__metadata__"]
    if odd:
        raise ValueError(f"{path} not written: name or dtype of {odd} has no place in the format")
    write_atomic(path, lambda temporary: _write_safetensors(temporary, tensors, text))


def load_tensors(path: Path, device: torch.device | str = "cpu") -> tuple[Tensors, dict[str, Any]]:
    """What `save_tensors` was given, bit for bit: fresh tensors on `device`, and the meta.

    JSON makes keys strings and tuples lists. A damaged or foreign file raises ValueError.
    """
    tensors, text = _read_safetensors(path)
    if not text:
        raise ValueError(f"{path} was not written by save_tensors: it has no checksum")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, json.loads(text)


def save_sae(
    folder: Path,
    sae: tsae.Sae,
    *,
    model_name: str,
    hook_name: str,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the static part in float32 as SAELens 6 loads it, a TSAE's temporal part beside it.

    `folder` is made if missing; `metadata` stands beside the names in cfg.json, which is moved into
    place last and is absent before: no kill leaves new weights with an old configuration.
    """
    static = {name: tensor.detach().float() for name, tensor in vars(sae.params.static).items()}
    (d_in, d_sae), k = static["W_enc"].shape, sae.dials.k
    _check_sae(folder, static, d_in, d_sae, k)
    names = {"model_name": model_name, "hook_name": hook_name}
    cfg = {"architecture": "topk", "d_in": d_in, "d_sae": d_sae, "k": k, "dtype": "float32"}
    cfg |= {"device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none"}
    dials = {name: value for name, value in vars(sae.dials).items() if name != "low"}
    temporal, meta = vars(sae.params.temporal), json.dumps({"dials": dials, **names})
    contents = {SAELENS_WEIGHTS: _crc32(_on_cpu(static), "{}")}
    contents |= {TEMPORAL_WEIGHTS: _crc32(_on_cpu(temporal), meta)} if sae.temporal else {}
    about = {**(metadata or {}), "contents": contents}
    cfg |= {"metadata": {**about, "sae_lens_version": "6.0.0", **names}}
    text = json_text(folder / SAELENS_CFG, cfg, indent=2) + "\n"
    writers: dict[Path, Writer] = {
        folder / SAELENS_WEIGHTS: lambda path: _write_safetensors(path, static, "{}"),
        folder / SAELENS_CFG: lambda path: path.write_text(text),
    }
    if sae.temporal:
        writers = {
            folder / TEMPORAL_WEIGHTS: lambda path: _write_safetensors(path, temporal, meta)
        } | writers
    folder.mkdir(parents=True, exist_ok=True)
    write_all(writers)


def load_sae(
    folder: Path, low: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[tsae.Sae, dict[str, Any]]:
    """The TSAE of `save_sae`, or a static SAE in the SAELens format, and its cfg.json.

    `low` is the dtype of its products. Raises ValueError for a folder without a model, or with a
    damaged or foreign one.
    """
    for name in (SAELENS_CFG, SAELENS_WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no model: there is no {name}")
    weights, cfg = load_saelens(folder)
    _check_contents(folder, (cfg.get("metadata") or {}).get("contents") or {})
    if not (folder / TEMPORAL_WEIGHTS).is_file():
        sae = tsae.static_sae(tsae.Static(**weights), cfg["k"], low)
    else:
        temporal, meta = load_tensors(folder / TEMPORAL_WEIGHTS)
        params = tsae.params_from(weights | temporal)
        sae = tsae.Sae(params=params, dials=tsae.Dials(**meta["dials"], low=low))
    return tsae.to(sae, device), cfg


def _check_contents(folder: Path, contents: Mapping[str, str]) -> None:
    """ValueError where a file that was saved with cfg.json is missing, or is another one."""
    for name, crc in contents.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not whole: {name} is missing")
        if _crc32(*_read_safetensors(folder / name)) != crc:
            raise ValueError(f"{folder / name} is not the one that was saved with {SAELENS_CFG}")


def load_saelens(
    folder: Path, *, d_in: int | None = None, d_sae: int | None = None
) -> tuple[Tensors, dict[str, Any]]:
    """`W_enc`, `b_enc`, `W_dec`, `b_dec` in float32 and the cfg of a top-k SAE in SAELens format.

    The formats of SAELens 6 and before are read. Two options are turned into weights with the same
    codes and reconstructions, and the cfg returned says so:
    - `apply_b_dec_to_input` false: b_enc + b_dec W_enc takes the place of b_enc;
    - `rescale_acts_by_decoder_norm` true: rows of W_dec become unit norm, W_enc and b_enc are
      multiplied by the norms. Without that flag the rows keep the norms they have: scaling them
      would change which features are the k largest.
    Another architecture, input normalisation or width than asked for, and tensors that do not fit,
    raise ValueError.
    """
    cfg = _topk_cfg(folder / SAELENS_CFG)
    for name, wanted in (("d_in", d_in), ("d_sae", d_sae)):
        if wanted not in (None, cfg[name]):
            raise ValueError(f"{folder} has {name}={cfg[name]}; needed is {name}={wanted}")
    path = folder / SAELENS_WEIGHTS
    sae = {name: tensor.float() for name, tensor in _read_safetensors(path)[0].items()}
    _check_sae(path, sae, cfg["d_in"], cfg["d_sae"], cfg["k"])
    if not cfg.get("apply_b_dec_to_input", True):
        sae["b_enc"] = sae["b_enc"] + sae["b_dec"] @ sae["W_enc"]
    if cfg.get("rescale_acts_by_decoder_norm", False):
        norm = sae["W_dec"].norm(dim=1)
        if not norm.all():
            reason = "by which rescale_acts_by_decoder_norm divides"
            raise ValueError(f"{path} has W_dec rows of norm 0, {reason}")
        sae |= {"W_enc": sae["W_enc"] * norm, "b_enc": sae["b_enc"] * norm}
        sae |= {"W_dec": sae["W_dec"] / norm[:, None]}
    options = {"apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": False}
    return sae, cfg | options | {"dtype": "float32"}


def unit_rows(folder: Path, sae: Tensors) -> Tensors:
    """The same codes and reconstructions, scaled so that the rows of `W_dec` have unit norm.

    Training keeps the rows at norm 1, so a start has to have them. A norm that all rows share, to
    one in a thousand, is multiplied into the encoder. Raises ValueError where the norms differ:
    dividing by them would change which features are the k largest.
    """
    norm = sae["W_dec"].norm(dim=1)
    least, most = float(norm.min()), float(norm.max())
    if not 0 < least <= most <= 1.001 * least:
        spread = f"got norms of {least:.4g} to {most:.4g} in {folder}"
        raise ValueError(f"a start needs W_dec rows of one norm, which training keeps; {spread}")
    c = norm.mean()
    if abs(float(c) - 1) < 1e-3:
        return sae
    return sae | {"W_enc": sae["W_enc"] * c, "b_enc": sae["b_enc"] * c, "W_dec": sae["W_dec"] / c}


def _topk_cfg(path: Path) -> dict[str, Any]:
    """cfg.json of a top-k SAE without input normalisation; `k` where SAELens 6 has it."""
    try:
        cfg = dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a JSON object: {error}") from error
    if cfg.get("activation_fn", cfg.get("activation_fn_str")) == "topk":  # SAELens before 6
        cfg |= {"architecture": "topk", "k": (cfg.get("activation_fn_kwargs") or {}).get("k")}
    cfg = {"architecture": "standard", **dict.fromkeys(OPTIONS, "none"), **cfg}
    cfg["normalize_activations"] = cfg["normalize_activations"] or "none"  # null and false before 6
    for name, needed in {"architecture": "topk", **dict.fromkeys(OPTIONS, "none")}.items():
        if cfg[name] != needed:
            raise ValueError(f"{path} needs {name}={needed!r}; got {cfg[name]!r}")
    for name in ("d_in", "d_sae", "k"):
        if type(cfg.get(name)) is not int:
            raise ValueError(f"{path} needs a whole number {name}; got {cfg.get(name)!r}")
    return cfg


def _check_sae(where: Path, sae: Mapping[str, Tensor], d_in: int, d_sae: int, k: int) -> None:
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    if sae.keys() != shapes.keys():
        names = f"{', '.join(sorted(shapes))}; got {', '.join(sorted(sae))}"
        raise ValueError(f"{where} needs the tensors {names}")
    for name, shape in shapes.items():
        if tuple(sae[name].shape) != shape:
            raise ValueError(f"{where} needs {name} of shape {shape}; got {tuple(sae[name].shape)}")
        if not sae[name].isfinite().all():
            raise ValueError(f"{where} has NaN or infinity in {name}")
    if not 0 < k <= d_sae:
        raise ValueError(f"{where} needs 0 < k <= d_sae; got k={k}, d_sae={d_sae}")


def _write_safetensors(path: Path, tensors: Mapping[str, Tensor], text: str) -> None:
    """The checksum and `text` are one entry of the header: the library orders several at random."""
    # cloned, because the library refuses tensors that share memory
    own = {name: t.clone(memory_format=torch.contiguous_format)
           for name, t in _on_cpu(tensors).items()}  # fmt: skip
    path.write_bytes(safetensors.torch.save(own, {"checked": _crc32(own, text) + text}))


def _on_cpu(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _read_safetensors(path: Path) -> tuple[Tensors, str]:
    """Tensors in memory of their own, and the header's text: "" where there is no checksum."""
    try:
        path.open("rb").close()  # its errors name the file
        with safe_open(path, framework="pt") as file:
            mapped = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
    except (SafetensorError, ValueError) as error:
        raise Damaged(f"{path} is truncated, damaged or no safetensors file: {error}") from error
    if {"crc32", "json"} <= header.keys():  # as two entries: files of before
        header["checked"] = header["crc32"] + header["json"]
    crc, text = header.get("checked", "")[:8], header.get("checked", "")[8:]
    if crc and crc != _crc32(mapped, text):  # before a copy makes every true bool a 1
        raise Damaged(f"{path} is damaged: its content does not have the checksum in its header")
    return {name: tensor.clone() for name, tensor in mapped.items()}, text


def _crc32(tensors: Mapping[str, Tensor], text: str) -> str:
    """Eight hexadecimal digits, the same for tensors in any order."""
    crc = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {DTYPES.get(tensor.dtype)} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
