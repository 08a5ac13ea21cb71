# pyright: reportMissingImports=false
"""SAEs as other libraries write them, with those libraries' own codes and reconstructions.

By hand, in an environment of the library (`pip install sae-lens`, `dictionary-learning` or
`eai-sparsify`), then in ours, from the root of the repository:

    OTHER/bin/python tests/oracles/saes.py write saelens tests/fixtures/saes
    python tests/oracles/saes.py compare tests/fixtures/saes

The fixtures are those of the first command. `--d_in=768 --d_sae=24576` makes them of a usual size.
"""

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Made = tuple[str, Callable[[Path], object], Callable[[Path], Any], Callable[..., Any]]
NAMES = {"model_name": "gpt2-small", "hook_name": "blocks.1.hook_resid_pre"}


def scramble(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Random weights of every kind: biases that matter, decoder rows of several norms."""
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.3 if name == "threshold" else 0.5
        parameter.data = (noise.abs() if "threshold" in name else noise) * scale
    for name, buffer in module.named_buffers():
        if "threshold" in name:
            buffer.data = torch.tensor(0.4, dtype=buffer.dtype)


# ---------------------------------------------------------------------------------------- SAELens


def saelens_6(d_in: int, d_sae: int, generator: torch.Generator) -> Iterator[Made]:
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata

    metadata = SAEMetadata(**NAMES, prepend_bos=True, context_size=128)
    shared = {"d_in": d_in, "d_sae": d_sae, "metadata": metadata}
    kinds = {
        "standard": ("Standard", {}),
        "standard_bare": ("Standard", {"apply_b_dec_to_input": False}),
        "topk": ("TopK", {"k": 3, "rescale_acts_by_decoder_norm": False}),
        "topk_rescaled": ("TopK", {"k": 3, "rescale_acts_by_decoder_norm": True}),
        "jumprelu": ("JumpReLU", {}),
        "gated": ("Gated", {}),
        "gated_bare": ("Gated", {"apply_b_dec_to_input": False}),
        "batchtopk": ("BatchTopKTraining", {"k": 3}),
        "matryoshka": ("MatryoshkaBatchTopKTraining", {"k": 3, "matryoshka_widths": [4, d_sae]}),
    }
    for name, (kind, options) in kinds.items():
        config = getattr(sae_lens, f"{kind}SAEConfig")(**shared, **options)
        sae = getattr(sae_lens, f"{kind}SAE")(config)
        scramble(sae, generator)
        save = getattr(sae, "save_inference_model", sae.save_model)
        yield f"saelens-{sae_lens.__version__}-{name}", save, sae_lens.SAE.load_from_disk, ours


def saelens_before_6(d_in: int, d_sae: int, generator: torch.Generator) -> Iterator[Made]:
    import sae_lens
    from sae_lens import SAE, SAEConfig

    shared = {
        "d_in": d_in, "d_sae": d_sae, **NAMES, "hook_layer": 1, "hook_head_index": None,
        "apply_b_dec_to_input": True, "finetuning_scaling_factor": False, "context_size": 128,
        "prepend_bos": True, "dataset_path": "x", "dataset_trust_remote_code": False,
        "normalize_activations": "none", "dtype": "float32", "device": "cpu",
        "sae_lens_training_version": None, "activation_fn_str": "relu", "activation_fn": "relu",
    }  # fmt: skip
    known = inspect.signature(SAEConfig).parameters
    kinds = {
        "standard": {"architecture": "standard"},
        "standard_bare": {"architecture": "standard", "apply_b_dec_to_input": False},
        "topk": {"architecture": "topk", "activation_fn": "topk", "activation_fn_str": "topk"},
        "jumprelu": {"architecture": "jumprelu"},
        "gated": {"architecture": "gated"},
    }
    for name, options in kinds.items():
        if name == "topk":
            options |= {"activation_fn_kwargs": {"k": 3}}
            if int(sae_lens.__version__[0]) < 4:
                options["architecture"] = "standard"
        config = {n: value for n, value in (shared | options).items() if n in known}
        sae = SAE(SAEConfig(**config))
        scramble(sae, generator)
        load = getattr(SAE, "load_from_pretrained", None) or SAE.load_from_disk
        yield f"saelens-{sae_lens.__version__}-{name}", sae.save_model, load, ours


def ours(sae: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    acts = sae.encode(x)
    return acts, sae.decode(acts)


# ------------------------------------------------------------------ dictionary_learning, sparsify


def dictionary_learning(d_in: int, d_sae: int, generator: torch.Generator) -> Iterator[Made]:
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k
    from dictionary_learning.utils import load_dictionary

    modules = (dictionary, top_k, batch_top_k, matryoshka_batch_top_k)
    extra: dict[str, dict[str, Any]] = {
        "AutoEncoder": {}, "AutoEncoderNew": {}, "GatedAutoEncoder": {}, "JumpReluAutoEncoder": {},
        "AutoEncoderTopK": {"k": 3}, "BatchTopKSAE": {"k": 3},
        "MatryoshkaBatchTopKSAE": {"k": 3, "group_sizes": [4, d_sae - 4]},
    }  # fmt: skip
    for name, options in extra.items():
        cls = next(getattr(module, name) for module in modules if hasattr(module, name))
        sae = cls(d_in, d_sae, **options)
        scramble(sae, generator)
        trainer = {"dict_class": name, "lm_name": "EleutherAI/pythia-70m-deduped", "layer": 3}
        trainer |= {"submodule_name": "resid_post_layer_3", "activation_dim": d_in}
        trainer |= {"dict_size": d_sae} | {n: v for n, v in options.items() if n == "k"}

        def save(folder: Path, sae: Any = sae, trainer: dict[str, Any] = trainer) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(sae.state_dict(), folder / "ae.pt")
            (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))

        yield f"dictionary_learning-{name}", save, lambda f: load_dictionary(str(f), "cpu")[0], ours


def sparsify(d_in: int, d_sae: int, generator: torch.Generator) -> Iterator[Made]:
    from sparsify import SparseCoder, SparseCoderConfig

    def dense(sae: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        top = sae.encode(x)
        acts = torch.zeros(len(x), d_sae).scatter(1, top.top_indices, top.top_acts)
        return acts, sae.decode(top.top_acts, top.top_indices)

    sae = SparseCoder(d_in, SparseCoderConfig(k=3, num_latents=d_sae))
    scramble(sae, generator)
    yield "sparsify/layers.2", sae.save_to_disk, SparseCoder.load_from_disk, dense


LIBRARIES = {
    "saelens": saelens_6,
    "saelens_before_6": saelens_before_6,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
}


@torch.no_grad()
def write(library: str, out: Path, d_in: int, d_sae: int) -> None:
    """Every SAE of a library in a folder of its own, with what it makes of some tokens."""
    generator = torch.Generator().manual_seed(0)
    for name, save, load, run in LIBRARIES[library](d_in, d_sae, generator):
        save(out / name)
        x = torch.randn(7, d_in, generator=generator)
        acts, x_hat = run(load(out / name), x)
        expected = {"x": x, "acts": acts.contiguous(), "x_hat": x_hat.contiguous()}
        save_file(expected, out / name / "expected.safetensors")
        print(name, f"L0 {(acts > 0).sum(1).float().mean():.1f}")  # noqa: T201


def differences(folder: Path) -> tuple[float, float, float]:
    """Of our reader's codes and reconstruction from the library's, relative; and the L0."""
    import tsae
    from tsae_lab.jobs import checkpoint

    expected = load_file(folder / "expected.safetensors")
    sae, _ = checkpoint.load_sae(folder)
    codes, _ = tsae.encode(sae.params, expected["x"][:, None], sae.dials)
    x_hat, _ = tsae.decode(sae.params, codes, sae.dials)
    acts = tsae.dense(codes, sae.d_sae)
    errors = [
        float((a[:, 0] - b).norm() / b.norm())
        for a, b in ((acts, expected["acts"]), (x_hat, expected["x_hat"]))
    ]
    return errors[0], errors[1], float((expected["acts"] > 0).float().sum(1).mean())


def compare(out: Path) -> None:
    """One line per folder."""
    for path in sorted(out.rglob("expected.safetensors")):
        acts, x_hat, l0 = differences(path.parent)
        name = path.parent.relative_to(out)
        print(f"{name}: codes {acts:.1e}, reconstruction {x_hat:.1e}, L0 {l0:.1f}")  # noqa: T201


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=["write", "compare"])
    parser.add_argument("arguments", nargs="+")
    parser.add_argument("--d_in", type=int, default=6)
    parser.add_argument("--d_sae", type=int, default=10)
    given = parser.parse_args()
    if given.job == "write":
        write(given.arguments[0], Path(given.arguments[1]), given.d_in, given.d_sae)
    else:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        compare(Path(given.arguments[0]))
