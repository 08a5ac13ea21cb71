"""What a run's numbers depend on beside its options: texts, models, dtypes, device, versions.

It is written beside the numbers and compared before they are joined: paths and names say where a
text or a model lies, not what it is.
"""

import hashlib
import importlib.metadata
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tsae_lab import checksums
from tsae_lab.data import language_model, store
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.data.texts import Tokens
from tsae_lab.jobs import checkpoint
from tsae_lab.terminal import console

Identity = Mapping[str, Any]
ARITHMETIC = ("products", "lm_dtype", "device")  # half a run cannot go on with another
SURROUNDINGS = ("threads", "torch", "version", "commit")  # others may change the last bits
REMADE = "delete it, and the run measures its models again"
ADVICE = "put back what was there, or give another --out_dir"


def identity_of(
    lm: LanguageModel,
    tokens: Mapping[str, Mapping[str, Tokens]],
    *,
    static_sae: str,
    low: torch.dtype,
) -> dict[str, Any]:
    """Digests of every text's tokens by split, of the language model, its tokenizer and a given
    SAE's tensors; dtypes, device and threads; versions of torch and of this package, and its commit
    in a checkout.

    None stands for what there is not.
    """
    return {
        "texts": {
            name: {split: store.tokens_digest(part) for split, part in splits.items()}
            for name, splits in tokens.items()
        },
        "lm": lm.identity,
        "tokenizer": language_model.tokenizer_identity(lm.tokenizer),
        "static_sae": _sae_digest(Path(static_sae).expanduser()) if static_sae else None,
        "products": _name(low),
        "lm_dtype": _name(lm.dtype),
        "device": lm.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "version": _version(),
        "commit": _commit(),
    }


def of_text(identity: Identity, name: str) -> dict[str, Any]:
    """The identity of what is made of one of the texts."""
    return {**identity, "texts": {name: identity["texts"][name]}}


def of_seed(identity: Identity, seed: int, options: Mapping[str, Any] | None = None) -> Identity:
    """The identity of what is made with one seed and, where they are known, these options."""
    if options is None:
        return {**identity, "seed": seed}
    text = json.dumps(options, sort_keys=True, default=str)
    return {**identity, "seed": seed, "options": hashlib.sha256(text.encode()).hexdigest()}


def form_of(made: Any) -> Identity:
    """An identity as a file names it; {} for what is none, such as another program's."""
    whole = isinstance(made, dict) and {"lm", "lm_dtype", "texts", "static_sae"} <= made.keys()
    texts = made["texts"] if whole else None
    splits = texts.values() if isinstance(texts, dict) else [None]
    known = whole and all(isinstance(split, dict) for split in splits)
    return made if known else {}


def of_cfg(cfg: Mapping[str, Any]) -> Identity:
    """What a saved SAE was made of, by its cfg.json; {} where that does not say."""
    return form_of((cfg.get("metadata") or {}).get("identity"))


def refuse_content(where: Path, made: Identity, now: Identity) -> None:
    """ValueError where `where` was made of other tokens, or another language model or SAE.

    What either does not say (an earlier version made it) is not compared.
    """
    if not made or not now:
        return
    texts = made["texts"]
    other = [
        f"other {split} tokens of {name}"
        for name, splits in now["texts"].items()
        for split, digest in splits.items()
        if texts.get(name, {}).get(split, digest) != digest
    ]
    if made["lm_dtype"] == now["lm_dtype"] and made["lm"] != now["lm"]:
        other.append("another language model of this name")
    if made["static_sae"] != now["static_sae"]:
        other.append("another static SAE of this name")
    named = {"seed": f"seed {made.get('seed')}", "options": "other options"}
    named |= {"models": "other models", "tokenizer": "another tokenizer of this name"}
    other += [said for key, said in named.items() if made.get(key, now.get(key)) != now.get(key)
              and key in now]  # fmt: skip
    if other:
        raise ValueError(f"{where} was made of {', '.join(other)}; {ADVICE}")


def refuse_unequal(where: Path, made: Identity, now: Identity) -> None:
    """ValueError as `refuse_content`, and where dtypes or the kind of device are others."""
    refuse_content(where, made, now)
    other = _others(ARITHMETIC, made, now)
    if other:
        advice = "go on as it was begun, or give another --out_dir"
        raise ValueError(f"{where} was made with {other}; {advice}")


def read_measures(path: Path, now: Identity) -> dict[str, Any]:
    """The numbers of a measures.json; ValueError if damaged or of other content than `now`."""
    try:
        saved = checksums.read_sealed(path)
        made = form_of(saved.pop("identity", {}))
        _check_numbers(path, saved)
    except ValueError as error:
        raise ValueError(f"{error}; {REMADE}") from error
    refuse_content(path, made, now)
    return saved


def _check_numbers(path: Path, saved: Mapping[str, Any]) -> None:
    """ValueError unless they are a run's measures: numbers, or absent; never the FVE."""
    if not isinstance(saved.get("static_fve"), float):
        raise ValueError(f"{path} is damaged: it has no static_fve")
    absent = [key for key, value in saved.items() if key.endswith("fve") and value is None]
    if absent or ("jaccard" in saved) != ("fve" in saved):
        raise ValueError(f"{path} is damaged: it has no {(absent or ['fve'])[0]}")
    odd = [key for key, value in saved.items() if type(value) not in (int, float, type(None))]
    if odd:
        raise ValueError(f"{path} is damaged: {odd[0]} is no number; got {saved[odd[0]]!r:.40}")


def say_others(where: Path, made: Identity, now: Identity) -> None:
    """One line where dtypes, device, threads or versions are others, or where nothing is known."""
    other = _others((*ARITHMETIC, *SURROUNDINGS), made, now)
    line = f"{where} was made with {other}: bits may differ" if other else ""
    if not made:
        line = f"{where} does not say which texts and model it was made of: they are not checked"
    if line:
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def is_other_lm(made: Identity, lm: LanguageModel) -> bool:
    """Whether `lm` has other weights or another configuration than what `made` names.

    A model in float32 is compared in the dtype that `made` had; of other dtypes, and where `made`
    is empty, nothing is known: False.
    """
    dtype = getattr(torch, str(made["lm_dtype"]), None) if made else lm.dtype
    if (
        not made
        or not isinstance(dtype, torch.dtype)
        or (dtype != lm.dtype and lm.dtype != torch.float32)
    ):
        return False
    mine = lm.identity if dtype == lm.dtype else language_model.model_identity(lm.model, dtype)
    return made["lm"] != mine


def _others(names: tuple[str, ...], made: Identity, now: Identity) -> str:
    pairs = ((name, made.get(name), now.get(name)) for name in names)
    return ", ".join(
        f"{n} {old} (now {new})" for n, old, new in pairs if made and now and old != new
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _sae_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.load_saelens(folder)[0].items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _version() -> str | None:
    try:
        return importlib.metadata.version("tsae")
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this file lies in, "-dirty" behind it where files differ."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None
