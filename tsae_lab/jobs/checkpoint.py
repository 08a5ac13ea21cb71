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
from tsae_lab import checksums
from tsae_lab.files import Writer, json_text, write_all, write_atomic
from tsae_lab.jobs import foreign
from tsae_lab.jobs.foreign import Tensors

SAELENS_WEIGHTS, SAELENS_CFG = "sae_weights.safetensors", "cfg.json"
TEMPORAL_WEIGHTS = "temporal.safetensors"  # beside them, of a TSAE
SAELENS_OWN = "reshape_activations"  # in each cfg.json of SAELens 6, in none of ours
# configuration and weights as SAELens, sparsify and dictionary_learning name them
FORMATS = (
    (SAELENS_CFG, SAELENS_WEIGHTS), ("cfg.json", "sae.safetensors"), ("config.json", "ae.pt")
)  # fmt: skip
FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
INTEGERS = {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"}
DTYPES = FLOATS | INTEGERS | {torch.uint8: "U8", torch.bool: "BOOL"}  # as the checksum spells them


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


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints in a folder, whose training is at its end."""
    for path in folder.glob("*.checkpoint.safetensors"):
        path.unlink()


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
    (d_in, d_sae), jumps = static["W_enc"].shape, "threshold" in static
    names = {"model_name": model_name, "hook_name": hook_name}
    cfg = {"architecture": "jumprelu" if jumps else "topk", "d_in": d_in, "d_sae": d_sae}
    cfg |= {"dtype": "float32"} if jumps else {"k": sae.dials.k, "dtype": "float32"}
    _check_sae(folder, static, cfg)
    cfg |= {"device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none"}
    dials = {name: value for name, value in vars(sae.dials).items() if name != "low"}
    temporal, meta = vars(sae.params.temporal), json.dumps({"dials": dials, **names})
    contents: dict[str, str] = {SAELENS_WEIGHTS: _crc32(_on_cpu(static), "{}")}
    contents |= {TEMPORAL_WEIGHTS: _crc32(_on_cpu(temporal), meta)} if sae.temporal else {}
    about = {**(metadata or {}), "contents": contents}
    cfg |= {"metadata": {**about, "sae_lens_version": "6.0.0", **names}}
    contents[SAELENS_CFG] = checksums.checksum(cfg)  # without this entry
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
    """The TSAE of `save_sae`, or any SAE that `load_saelens` reads, and its cfg.json.

    `low` is the dtype of its products; with thresholds, which decide, it is float32. Raises
    ValueError for a folder without a model, or with a damaged or foreign one.
    """
    files_of(folder)
    weights, cfg = load_saelens(folder)
    _check_contents(folder)
    if "threshold" in weights:
        sae = tsae.static_sae(tsae.Thresholded(**weights), cfg["k"])
    elif not (folder / TEMPORAL_WEIGHTS).is_file():
        sae = tsae.static_sae(tsae.Static(**weights), cfg["k"], low)
    else:
        temporal, meta = load_tensors(folder / TEMPORAL_WEIGHTS)
        sae = _temporal_sae(folder / TEMPORAL_WEIGHTS, weights | temporal, meta, low)
    return tsae.to(sae, device), cfg


def own_lm(cfg: Mapping[str, Any]) -> str:
    """The language model that a cfg.json names, as `load_lm` takes it; "" where it names none."""
    named = {**cfg, **(cfg.get("metadata") or {})}  # at the top before SAELens 6
    return str(named.get("lm") or named.get("model_name") or "")


def files_of(folder: Path) -> tuple[str, str]:
    """Names of the configuration and the weights of an SAE in a folder; ValueError without one."""
    for cfg, weights in FORMATS:
        if (folder / weights).is_file() and (folder / cfg).is_file():
            return cfg, weights
    if folder.is_file():
        raise ValueError(f"a model is a folder; {folder} is a file: give {folder.parent}")
    missing = [name for name in FORMATS[0] if not (folder / name).is_file()]
    others = " and ".join(f"{cfg} with {weights}" for cfg, weights in FORMATS[1:])
    told = f"{folder} holds no model: there is no {missing[0]}, nor {others}"
    inside = sorted({path.parent for _, name in FORMATS for path in folder.glob(f"*/{name}")})
    below = ", ".join(str(path.relative_to(folder)) for path in inside[:5])
    raise ValueError(f"{told}; it holds models in {below}" if below else told)


def _temporal_sae(
    path: Path, named: Tensors, meta: Mapping[str, Any], low: torch.dtype
) -> tsae.Sae:
    """The TSAE of these tensors and dials; ValueError where they are not those of this version."""
    try:
        dials = tsae.Dials(**meta["dials"], low=low)
        params = tsae.params_from(named)
        tsae.check_dials(dials, d_sae=len(named["b_enc"]))
    except (KeyError, TypeError) as error:
        told = f"was written by another version of this program: {error}"
        raise ValueError(f"{path} {told}") from error
    return tsae.Sae(params=params, dials=dials)


def _check_contents(folder: Path) -> None:
    """ValueError where cfg.json, or a file that was saved with it, is missing or another one.

    Not of an SAE that SAELens saved anew: it takes our metadata along, checksums and all.
    """
    path = folder / SAELENS_CFG
    cfg = checksums.read_object(path) if path.is_file() else {}
    if SAELENS_OWN in cfg:
        return
    contents = dict((cfg.get("metadata") or {}).get("contents") or {})
    crc = contents.pop(SAELENS_CFG, None)
    if crc is not None:
        cfg["metadata"]["contents"] = contents
        if checksums.checksum(cfg) != crc:
            raise ValueError(f"{path} is damaged: its content does not have the checksum in it")
    for name, crc in contents.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not whole: {name} is missing")
        if _crc32(*_read_safetensors(folder / name)) != crc:
            raise ValueError(f"{folder / name} is not the one that was saved with {SAELENS_CFG}")


def weights_of(folder: Path) -> dict[str, str]:
    """Checksums of the weights of a saved SAE, as its cfg.json has them; {} where it has none."""
    path = folder / SAELENS_CFG
    cfg = checksums.read_object(path) if path.is_file() else {}
    contents = (cfg.get("metadata") or {}).get("contents") or {}
    return {name: crc for name, crc in contents.items() if name != SAELENS_CFG}


def load_saelens(
    folder: Path, *, d_in: int | None = None, d_sae: int | None = None
) -> tuple[Tensors, dict[str, Any]]:
    """`W_enc`, `b_enc`, `W_dec`, `b_dec` in float32, of an SAE that is not top-k also `threshold`,
    and the cfg of the SAE in a folder.

    SAELens 3 to 6, dictionary_learning and sparsify; what their options say is folded into the
    weights (`foreign.folded`), and the cfg returned says so. What cannot be folded, another width
    than asked for, and tensors that do not fit, raise ValueError.
    """
    names = next((pair for pair in FORMATS if (folder / pair[1]).is_file()), FORMATS[0])
    config, path = (folder / name for name in names)
    if names == FORMATS[1]:
        cfg, named = foreign.sparsify_cfg(config), foreign.renamed(_read_safetensors(path)[0])
    elif names == FORMATS[2]:
        cfg, named = foreign.dictionary_cfg(config), foreign.renamed(foreign.torch_file(path))
    else:
        cfg, named = foreign.saelens_cfg(config), foreign.renamed(_read_safetensors(path)[0])
    if names != FORMATS[0] and "W_enc" in named:
        cfg |= dict(zip(("d_in", "d_sae"), named["W_enc"].shape, strict=True))
    for name in ("d_in", "d_sae") + (("k",) if cfg["architecture"] == foreign.TOPK else ()):
        if type(cfg.get(name)) is not int:
            raise ValueError(f"{config} needs a whole number {name}; got {cfg.get(name)!r}")
    for name, wanted in (("d_in", d_in), ("d_sae", d_sae)):
        if wanted not in (None, cfg[name]):
            raise ValueError(f"{folder} has {name}={cfg[name]}; needed is {name}={wanted}")
    _check_sae(path, named, cfg)
    return foreign.folded(path, named, cfg)


def unit_rows(folder: Path, sae: Tensors) -> Tensors:
    """The same codes and reconstructions, scaled so that the rows of `W_dec` have unit norm.

    Training keeps the rows at norm 1, so a start has to have them. A norm that all rows share, to
    one in a thousand, is multiplied into the encoder. Raises ValueError where the norms differ:
    dividing by them would change which features are the k largest; and where it is not top-k.
    """
    if "threshold" in sae:
        what = "the features have thresholds: it can be measured, probed and intervened on"
        raise ValueError(f"a start needs a top-k SAE, which training keeps; of {folder} {what}")
    norm = sae["W_dec"].norm(dim=1)
    least, most = float(norm.min()), float(norm.max())
    if not 0 < least <= most <= 1.001 * least:
        spread = f"got norms of {least:.4g} to {most:.4g} in {folder}"
        raise ValueError(f"a start needs W_dec rows of one norm, which training keeps; {spread}")
    c = norm.mean()
    if abs(float(c) - 1) < 1e-3:
        return sae
    return sae | {"W_enc": sae["W_enc"] * c, "b_enc": sae["b_enc"] * c, "W_dec": sae["W_dec"] / c}


def _check_sae(where: Path, sae: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> None:
    d_in, d_sae, topk = cfg["d_in"], cfg["d_sae"], cfg["architecture"] == foreign.TOPK
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    if cfg["architecture"] == "gated":
        del shapes["b_enc"]
        shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag"), (d_sae,))
    if sae.keys() - {"threshold", "scaling_factor"} != shapes.keys():
        names = f"{', '.join(sorted(shapes))}; got {', '.join(sorted(sae))}"
        raise ValueError(f"{where} needs the tensors {names}")
    for name in (*shapes, *sorted(sae.keys() - shapes.keys())):
        shape = shapes.get(name) or ((d_sae,) if sae[name].ndim else ())
        if tuple(sae[name].shape) != shape:
            raise ValueError(f"{where} needs {name} of shape {shape}; got {tuple(sae[name].shape)}")
        if not sae[name].isfinite().all():
            raise ValueError(f"{where} has NaN or infinity in {name}")
    if topk and not 0 < cfg["k"] <= d_sae:
        raise ValueError(f"{where} needs 0 < k <= d_sae; got k={cfg['k']}, d_sae={d_sae}")


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


def trim_log(log: Path, of_model: Mapping[str, Any], step: int) -> None:
    """Drop a model's lines after `step` from the log: a killed run wrote them too early."""
    if log.exists():
        lines = [
            checksums.log_line(line)
            for line in checksums.log_lines(log)
            if not (of_model.items() <= line.items() and line["step"] > step)
        ]
        write_atomic(log, lambda path: path.write_text("".join(lines)))
