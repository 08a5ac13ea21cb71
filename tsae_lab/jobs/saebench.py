"""`python experiment.py saebench MODEL`: SAEBench's own evaluations, where it is installed beside.

They run on the language model that the SAE belongs to as this program loads it, and write
SAEBench's own JSON.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Annotated, Any
from unittest.mock import patch

import jaxtyping
import torch
import typer
from torch import Tensor

from tsae_lab.data import language_model
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.interop import TSAE
from tsae_lab.jobs.commands import Ask, TextOption, documents_of
from tsae_lab.jobs.saved import (
    HookOption,
    LmOption,
    ModelFolder,
    Outputs,
    Saved,
    open_model,
    with_lm,
)  # fmt: skip
from tsae_lab.terminal import console, one_line_errors

SINGLE_TOKENS = ("ravel", "absorption", "mdl", "sparse_probing_sae_probes")
INSTALL = (
    'pip install "sae-lens==6.54.*" tabulate collectibles && pip install --no-deps sae-bench==0.6.0'
)
Jobs = dict[str, Callable[[LanguageModel, TSAE, str], Any]]


def saebench_command(
    model: ModelFolder,
    evals: Annotated[str, typer.Option(help="core, sparse_probing")] = "core,sparse_probing",
    out: Annotated[Path, typer.Option(help="folder for SAEBench's JSON")] = Path("eval_results"),
    text: TextOption = None,
    batches: Annotated[int, typer.Option(min=1, help="of 16 texts, that core reads")] = 10,
    sets: Annotated[
        str, typer.Option(help="sparse_probing's sets on the hub, by commas; default: all eight")
    ] = "",
    texts: Annotated[
        int, typer.Option(min=8, help="of a set, that its probes train on; a fourth as many test")
    ] = 4_000,
    lm: LmOption = "",
    hook: HookOption = "",
) -> None:
    """SAEBench's evaluations of whole sequences, where sae-bench 0.6 is installed beside."""
    with one_line_errors():
        names = _checked(evals)
        with _said("saebench"):
            for name in names:
                _import(name)
        saved = open_model(model, lm, hook)
        release = "_".join(word for word in model.parts if word not in ("/", "..", "."))
        for name in names:
            target = out / name / f"{release}_custom_sae_eval_results.json"
            if target.exists():
                raise ValueError(f"{target} exists; give another --out")
        no_files = Outputs(json=None, csv=None, figures=())
        ask = Ask(model=model, text=text, tokens=1, lm=lm, hook=hook, outputs=no_files)
        documents = documents_of(ask, saved)[1] if "core" in names else ()
        loaded, saved = with_lm(saved, exact=True)
        face = _face(loaded, saved)
        jobs: Jobs = {
            "core": lambda lm, face, to: _faithfulness(lm, face, release, to, documents, batches),
            "sparse_probing": lambda lm, face, to: _probing(lm, face, release, to, sets, texts),
        }
        for name in names:
            with _said(f"SAEBench's {name}"):
                jobs[name](loaded, face, str(out / name))
            console.print(f"{name}: {out / name}", highlight=False, soft_wrap=True)


def _checked(evals: str) -> list[str]:
    """The evaluations that were asked for; ValueError for those of single tokens and unknown ones.

    RAVEL, absorption, mdl and sae-probes encode each token by itself: of a TSAE they measure an
    empty memory.
    """
    names = [name.strip() for name in evals.split(",") if name.strip()]
    for name in names:
        if name in SINGLE_TOKENS:
            instead = "; `absorption` and `probe` are this program's, on whole sequences"
            raise ValueError(f"{name} encodes single tokens, an empty memory of a TSAE{instead}")
        if name not in ("core", "sparse_probing"):
            raise ValueError(f"--evals takes core and sparse_probing; got {name!r}")
    if not names:
        raise ValueError("--evals needs at least one of core, sparse_probing")
    return names


def _import(name: str) -> Any:
    """SAEBench's module of an evaluation."""
    try:
        return importlib.import_module(f"sae_bench.evals.{name}.main")
    except ImportError as error:
        raise ValueError(f"sae-bench 0.6 is not installed beside ({error}): {INSTALL}") from error


@contextmanager
def _said(what: str) -> Iterator[None]:
    """SAEBench's errors, and those of the libraries and hubs below it, as one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {' '.join(str(error).split())[:300]}") from error


def _face(lm: LanguageModel, saved: Saved) -> TSAE:
    face = TSAE(saved.sae, model_name=saved.lm, hook_name=saved.hook)
    face.cfg.context_size = min(128, lm.max_seq)
    return face.to(lm.device)


def _faithfulness(
    lm: LanguageModel, face: TSAE, release: str, out: str, documents: Any, batches: int
) -> None:
    """Faithfulness, sparsity and reconstruction on the documents, joined as SAELens does."""
    from datasets import Dataset

    core, stores = _import("core"), importlib.import_module("sae_lens").ActivationsStore
    rows = Dataset.from_list([{"text": text} for text in documents])

    def from_sae(model: Any, sae: Any, *, context_size: int, **_: Any) -> Any:
        return stores.from_sae(model, sae, rows, context_size=context_size)

    ours: dict[str, Any] = {
        "HookedTransformer": SimpleNamespace(
            from_pretrained_no_processing=lambda *_, **__: lm.bridge
        ),
        "ActivationsStore": SimpleNamespace(from_sae=from_sae),
    }
    with patch.multiple(core, **ours):
        done = core.multiple_evals(
            [(release, face)], batches, batches, eval_batch_size_prompts=16,
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
            exclude_special_tokens_from_reconstruction=True, dataset="documents of this program",
            context_size=face.cfg.context_size, output_folder=out, device=str(lm.device),
        )  # fmt: skip
    if not done:
        raise ValueError("it gave no result; its own message stands above")


def _probing(lm: LanguageModel, face: TSAE, release: str, out: str, sets: str, texts: int) -> None:
    """Sparse probes on the mean code of a text, on SAEBench's sets, which it fetches itself.

    The tokenizer is TransformerLens' one: it puts BOS first and can pad, as SAEBench expects.
    """
    probing = _import("sparse_probing")
    collection, batch, tokenizer = probing.activation_collection, 16, lm.bridge.tokenizer
    options: dict[str, Any] = {"dataset_names": sets.split(",")} if sets else {}
    config = probing.SparseProbingEvalConfig(
        model_name=Path(lm.name).name, llm_batch_size=batch, llm_dtype="float32",
        context_length=face.cfg.context_size, probe_train_set_size=texts,
        probe_test_set_size=texts // 4, **options,
    )  # fmt: skip

    def read(ids: Tensor, mask: bool) -> Tensor:
        x = torch.cat(
            [language_model.residual(lm, i, face.cfg.hook_name) for i in ids.split(batch)]
        )
        text = collection.get_bos_pad_eos_mask(ids, tokenizer) if mask else torch.ones_like(ids)
        return x.clone() * text[..., None].to(x)

    def activations(
        tokens: Any, _model: Any, _size: int, _layer: int, _hook: str, mask_bos_pad_eos_tokens: bool
    ) -> dict[str, Tensor]:
        return {n: read(t["input_ids"], mask_bos_pad_eos_tokens) for n, t in tokens.items()}

    host = SimpleNamespace(tokenizer=tokenizer)
    ours = SimpleNamespace(from_pretrained_no_processing=lambda *_, **__: host)
    with (
        TemporaryDirectory() as scratch,
        patch.multiple(probing, HookedTransformer=ours),
        patch.multiple(collection, get_all_llm_activations=activations),
        # its annotations contradict each other, which the jaxtyping that we need finds
        patch.object(jaxtyping.config, "jaxtyping_disable", new=True),
    ):
        probing.run_eval(config, [(release, face)], str(lm.device), out, save_activations=False,
                         artifacts_path=scratch)  # fmt: skip
