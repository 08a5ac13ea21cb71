"""SAEs of other libraries as weights of ours, with the same codes and reconstructions.

SAELens 3 to 6, dictionary_learning and sparsify. What makes an architecture another one is folded
into `W_enc`, `b_enc`, `W_dec`, `b_dec` and, of SAEs that are not top-k, a `threshold` per feature,
which is on where its pre-activation is above it (0: ReLU).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsae_lab import checksums

Tensors = dict[str, Tensor]
Cfg = dict[str, Any]

TOPK, JUMPS = "topk", ("jumprelu", "standard", "gated", "batchtopk", "matryoshka_batchtopk")
OPTIONS = ("normalize_activations", "reshape_activations")  # of SAELens; only "none" is read
FACTOR = "norm_scaling_factor"  # of activations scaled to a mean norm, where a cfg.json names it
TOKENS_NORM = "its reconstruction needs each token's norm, which is in no code"
REASONS = {  # for which another value is refused
    "layer_norm": TOKENS_NORM, "constant_norm_rescale": TOKENS_NORM,
    "expected_average_only_in": f"the mean norm's factor is not in the file, as {FACTOR}",
    "hook_z": "it reads attention heads",
}  # fmt: skip
RENAMED = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}  # before SAELens 6
# names of tensors elsewhere, and whether they are transposed there
ALIASES = {
    "encoder.weight": ("W_enc", True), "encoder.bias": ("b_enc", False),
    "decoder.weight": ("W_dec", True), "decoder.bias": ("b_dec", False),
    "bias": ("b_dec", False), "decoder_bias": ("b_dec", False),
    "gate_bias": ("b_gate", False), "mag_bias": ("b_mag", False),
    "topk_threshold": ("threshold", False), "finetuning_scaling_factor": ("scaling_factor", False),
}  # fmt: skip
NO_PART = ("k", "group_sizes")  # of an SAE's weights, though they are saved among them
# classes of dictionary_learning: what they are called in SAELens, and whether b_dec is subtracted
CLASSES = {
    "AutoEncoder": ("standard", True), "AutoEncoderNew": ("standard", False),
    "GatedAutoEncoder": ("gated", True), "JumpReluAutoEncoder": ("jumprelu", False),
    "AutoEncoderTopK": ("topk", True), "BatchTopKSAE": ("batchtopk", True),
    "MatryoshkaBatchTopKSAE": ("matryoshka_batchtopk", True),
}  # fmt: skip
OBJECTS = ("metadata", "trainer")  # objects in an object
FIELDS: Mapping[str, Any] = {
    **dict.fromkeys((*OBJECTS, "activation_fn_kwargs", "contents"), dict),
    **dict.fromkeys(("architecture", "dict_class", "model_name", "hook_name", "hook_point"), str),
    **dict.fromkeys(("model", "lm_name", "submodule_name", "dataset"), str), FACTOR: (int, float),
}  # fmt: skip
SITES = {"resid": "resid_post", "mlp": "mlp_out", "attn": "attn_out", "attention": "attn_out"}


# ------------------------------------------------------------------------------- configurations


def json_object(path: Path) -> Cfg:
    """The JSON object in a file; ValueError without one, and for an entry of a wrong kind."""
    cfg = checksums.read_object(path)
    for place in (cfg, *(cfg[name] for name in OBJECTS if isinstance(cfg.get(name), dict))):
        for name, kind in FIELDS.items():
            value = place.get(name)
            if value is not None and not isinstance(value, kind):
                need = {dict: "an object", str: "a text"}.get(kind, "a number")
                raise ValueError(f"{path} needs {need} {name}; got {value!r:.40}")
    return cfg


def saelens_cfg(path: Path) -> Cfg:
    """A SAELens cfg.json in the terms of version 6; ValueError for what cannot be folded."""
    cfg = {RENAMED.get(name, name): value for name, value in json_object(path).items()}
    if cfg.get("activation_fn") == "topk":
        cfg |= {"architecture": "topk", "k": (cfg.get("activation_fn_kwargs") or {}).get("k")}
    cfg = {"architecture": "standard", **dict.fromkeys(OPTIONS, "none"), **cfg}
    cfg["normalize_activations"] = cfg["normalize_activations"] or "none"  # null and false before 6
    scaled = cfg["normalize_activations"] in (True, "expected_average_only_in")
    if scaled and (cfg | (cfg.get("metadata") or {})).get(FACTOR):
        cfg |= {
            "normalize_activations": "none",
            FACTOR: (cfg | (cfg.get("metadata") or {}))[FACTOR],
        }
    for name in OPTIONS:
        if cfg[name] != "none":
            reason = REASONS.get("expected_average_only_in" if cfg[name] is True else cfg[name])
            told = f"{path} needs {name}='none'; got {cfg[name]!r}"
            raise ValueError(f"{told}: {reason}" if reason else told)
    if cfg["architecture"] not in (TOPK, *JUMPS):
        known = ", ".join((TOPK, *JUMPS))
        raise ValueError(f"{path} needs an architecture of {known}; got {cfg['architecture']!r}")
    if cfg.get("activation_fn", "relu") not in ("relu", "topk"):
        raise ValueError(f"{path} needs activation_fn='relu'; got {cfg['activation_fn']!r}")
    return cfg


def sparsify_cfg(path: Path) -> Cfg:
    """A cfg.json of sparsify in SAELens' terms; the hook is that of the module its folder names."""
    cfg = json_object(path)
    for name, needed in (("transcode", False), ("skip_connection", False), ("activation", "topk")):
        if cfg.get(name, needed) != needed:
            raise ValueError(f"{path} needs {name}={needed!r}; got {cfg[name]!r}")
    run = path.parent.parent / "config.json"
    model = json_object(run).get("model") if run.is_file() else None
    module = re.fullmatch(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)(?:\.(\w+))?", path.parent.name)
    hook = None
    if module is not None:
        part = (module[2] or "resid").removeprefix("self_")
        hook = f"blocks.{module[1]}.hook_{SITES[part]}" if part in SITES else None
    return cfg | {"architecture": "topk", "model_name": model, "hook_name": hook}


def dictionary_cfg(path: Path) -> Cfg:
    """A config.json of dictionary_learning in SAELens' terms."""
    trainer = json_object(path).get("trainer") or {}
    name = trainer.get("dict_class")
    if name not in CLASSES:
        raise ValueError(f"{path} needs a dict_class of {', '.join(CLASSES)}; got {name!r}")
    architecture, b_dec_to_input = CLASSES[name]
    submodule = re.match(r"[a-z]*", str(trainer.get("submodule_name") or "resid"))
    site = SITES.get(submodule[0] if submodule else "")
    layer = trainer.get("layer")
    hook = f"blocks.{layer}.hook_{site}" if site and type(layer) is int else None
    cfg = {"architecture": architecture, "apply_b_dec_to_input": b_dec_to_input, "hook_name": hook}
    cfg |= {"model_name": trainer.get("lm_name"), "k": trainer.get("k")}
    return cfg | {"unit_rows": name == "AutoEncoder"}  # as its from_pretrained makes them


# ---------------------------------------------------------------------------------------- weights


def renamed(named: Mapping[str, Tensor]) -> Tensors:
    """The tensors by our names, in float32, `b_dec` in one axis, no `scaling_factor` of ones."""
    tensors = {}
    for name, tensor in named.items():
        ours, transposed = ALIASES.get(name, (name, False))
        tensors[ours] = tensor.float().t().contiguous() if transposed else tensor.float()
    if tensors.get("b_dec", torch.empty(0)).ndim == 2:
        tensors["b_dec"] = tensors["b_dec"].squeeze(0)
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if torch.equal(factor := tensors.get("scaling_factor", torch.ones(1)), torch.ones_like(factor)):
        tensors.pop("scaling_factor", None)
    return {name: tensor for name, tensor in tensors.items() if name not in NO_PART}


def folded(where: Path, sae: Tensors, cfg: Cfg) -> tuple[Tensors, Cfg]:
    """The weights with everything in them that cfg says, and the cfg of what they are now.

    - `gated` becomes jumprelu: `exp(r) x W + b_mag` is on where `x W + b_gate > 0`;
    - `apply_b_dec_to_input` false: b_enc + b_dec W_enc takes the place of b_enc;
    - `rescale_acts_by_decoder_norm`: rows of W_dec become unit norm, W_enc and b_enc are multiplied
      by the norms (dictionary_learning does so to an AutoEncoder, as it is loaded);
    - a `scaling_factor` multiplies the rows of W_dec, the factor of a mean norm is taken in;
    - batch top-k is its jumprelu form: without a threshold it is refused, since what is on would
      depend on the other tokens of a batch.
    """
    sae = dict(sae)
    if "scaling_factor" in sae:
        sae["W_dec"] = sae["W_dec"] * sae.pop("scaling_factor")[:, None]
    if not cfg.get("apply_b_dec_to_input", True):
        name = "b_gate" if cfg["architecture"] == "gated" else "b_enc"
        shift = sae["b_dec"] @ sae["W_enc"]
        sae[name] = sae[name] + shift
        if name == "b_gate":
            sae["b_mag"] = sae["b_mag"] + shift * sae["r_mag"].exp()
    if cfg["architecture"] == "gated":
        steep, b_gate, b_mag = sae.pop("r_mag").exp(), sae.pop("b_gate"), sae.pop("b_mag")
        sae |= {"W_enc": sae["W_enc"] * steep, "b_enc": b_mag}
        sae["threshold"] = (b_mag - steep * b_gate).clamp(min=0)
    if cfg["architecture"] == TOPK:
        sae.pop("threshold", None)  # dictionary_learning keeps one beside the k
    else:
        sae["threshold"] = _threshold(where, sae, cfg["architecture"])
    if cfg.get("rescale_acts_by_decoder_norm") or cfg.get("unit_rows"):
        norm = sae["W_dec"].norm(dim=1)
        if not norm.all():
            reason = "by which rescale_acts_by_decoder_norm divides"
            raise ValueError(f"{where} has W_dec rows of norm 0, {reason}")
        sae |= {"W_enc": sae["W_enc"] * norm, "b_enc": sae["b_enc"] * norm}
        sae |= {"W_dec": sae["W_dec"] / norm[:, None]}
    if FACTOR in cfg:
        factor = float(cfg[FACTOR])
        sae |= {name: sae[name] / factor for name in ("W_dec", "b_dec")}
        sae["W_enc"] = sae["W_enc"] * factor
    options = {"apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": False}
    if cfg["architecture"] in JUMPS:
        options |= {"architecture": "jumprelu", "k": 1}  # a code is as wide as it needs
    return sae, cfg | options | {"dtype": "float32"}


def _threshold(where: Path, sae: Tensors, architecture: str) -> Tensor:
    threshold, like = sae.get("threshold"), sae["b_enc"]
    if architecture == "standard":
        return torch.zeros_like(like)
    if threshold is None or (architecture != "jumprelu" and float(threshold.max()) < 0):
        got = "none" if threshold is None else f"{float(threshold.max()):g}, that of no training"
        raise ValueError(f"{where} needs a threshold for a {architecture} SAE; got {got}")
    return threshold.expand_as(like).clamp(min=0).contiguous()


def torch_file(path: Path) -> Mapping[str, Tensor]:
    """The tensors that `torch.save` wrote; nothing in the file is run."""
    try:
        named = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zip or torch
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be read as a file of tensors: {told}") from error
    if not isinstance(named, Mapping) or not all(isinstance(t, Tensor) for t in named.values()):
        raise ValueError(f"{path} is not a dictionary of tensors")
    return named
