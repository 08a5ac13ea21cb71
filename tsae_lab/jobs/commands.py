"""Commands on one saved model: `python experiment.py stability|lifetimes|transitions|evolution
MODEL`.

A model is a folder that a run has saved, or any top-k SAE in the SAELens format; its cfg.json names
the language model and the hook. Everything that can be wrong with the request is said before the
language model is loaded.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import probes
import tsae
from probes import Task
from tsae_lab import definitions, files
from tsae_lab.data import language_model, public_sets, records, store, tasks, texts
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.data.store import Store
from tsae_lab.jobs import checkpoint, plan
from tsae_lab.jobs.checkpoint import load_tsae
from tsae_lab.jobs.plan import Config
from tsae_lab.measures import evaluation, readout
from tsae_lab.measures.readout import Reader
from tsae_lab.sections import context, figures, transitions
from tsae_lab.sections.context import Context, Section, top_words
from tsae_lab.sections.figures import save
from tsae_lab.sections.stability import lifetimes_section, stability_section
from tsae_lab.terminal import (
    console,
    cpu_threads,
    fast_memory,
    one_line_errors,
    print_wide,
    progress_bar,
)

PIECE_CHARS = 8_000  # a text file is cut into documents of about this many characters
MOST_DRAWN = 1_000  # tokens that fit into one figure

ModelFolder = Annotated[
    Path,
    typer.Argument(
        help="a saved model, as run_2/iambic/seed_0/tsae, or a SAELens folder", show_default=False
    ),
]
TextOption = Annotated[
    str | None,
    typer.Option(
        "--text", help="a text by name, a file or a folder; default: the run's own validation text"
    ),
]
TokensOption = Annotated[int, typer.Option("--tokens", help="tokens of text, at most", min=1)]
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="write all numbers and tables as JSON")
]
CsvOption = Annotated[Path | None, typer.Option("--csv", help="write the main table as CSV")]
PngOption = Annotated[
    Path | None, typer.Option("--png", help="write the main figure (.png or .svg)")
]
LmOption = Annotated[
    str, typer.Option("--lm", help="language model, in place of the one that cfg.json names")
]
HookOption = Annotated[
    str, typer.Option("--hook", help="hook, in place of the one that cfg.json names")
]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a command was asked: the model, the text, where to write."""

    model: Path
    text: str | None
    tokens: int
    lm: str
    hook: str
    outputs: tuple[Path | None, ...]
    document: int | None = None  # one document only, by its index in the text
    literal: bool = False  # whether the text may be the text itself


@dataclass(frozen=True, eq=False, kw_only=True)
class Opened:
    """A request that was found good: everything but the language model."""

    sae: tsae.Sae
    config: Config  # of the run that saved the model, else the default
    lm: str
    hook: str
    title: str  # of the text
    documents: Sequence[str]


# ---------------------------------------------------------------------------------- before the work


def opened(ask: Ask) -> Opened:
    """The model, its names and the text. Raises ValueError for a bad request."""
    files.check_outputs(ask.outputs[:2], ask.outputs[2:])
    sae, cfg = checkpoint.load_model(ask.model)
    metadata = {**cfg, **(cfg.get("metadata") or {})}
    lm, hook = ask.lm or metadata.get("model_name"), ask.hook or metadata.get("hook_name")
    if not lm or not hook:
        raise ValueError(
            f"{ask.model} does not name its language model and hook; give --lm and --hook"
        )
    config = config_of(ask.model)
    title, documents = documents_of(ask, metadata.get("dataset"), config)
    if ask.document is not None:
        if not 0 <= ask.document < len(documents):
            raise ValueError(
                f"{title} has documents 0 to {len(documents) - 1}; got document {ask.document}"
            )
        documents = [documents[ask.document]]
    return Opened(
        sae=sae, config=config, lm=str(lm), hook=str(hook), title=title, documents=documents
    )


def config_of(model: Path) -> Config:
    """The configuration of the run that a model folder lies in (RUN/text/seed/model), else the
    default.
    """
    run = model.absolute().parent.parent.parent
    if not (run / "config.json").is_file():
        return Config()
    try:
        return plan.run_config(run)[0]
    except TypeError as error:
        raise ValueError(
            f"{run}/config.json was written by another version of this program: {error}"
        ) from error


def documents_of(ask: Ask, dataset: str | None, config: Config) -> tuple[str, Sequence[str]]:
    """Name and documents of the text that was asked for: of a named one the validation split, of
    files everything.
    """
    name = dataset if ask.text is None else ask.text
    if name is None:
        raise ValueError(f"{ask.model} does not say what text it was trained on; give --text")
    if name in texts.CORPORA or ask.text is None:
        return f"{name} (validation)", texts.load_corpus(name, data_dir=config.data_dir or None).val
    if not name.strip():
        raise ValueError("the text is empty")
    path = Path(name).expanduser() if len(name) < 1_000 else Path()  # longer than a path: a text
    is_file, is_folder = path.is_file(), path.is_dir() and len(name) < 1_000
    if is_file:
        text = files.read_text(path)
        if not text.strip():
            raise ValueError(f"{path} is empty")
        return path.name, [text] if ask.literal else pieces(text)
    if is_folder or not ask.literal:
        corpus = texts.load_corpus(name, data_dir=config.data_dir or None)
        return path.name, (*corpus.train, *corpus.val)
    return "text", [name]


def pieces(text: str, n_chars: int = PIECE_CHARS) -> list[str]:
    """The text in documents of about `n_chars` characters, cut after a paragraph or line; they join
    to it again.
    """
    n = max(round(len(text) / n_chars), 1)
    parts = []
    for left in range(n, 1, -1):
        head, text = texts.split_text(text, train_frac=1 / left)
        parts.append(head)
    return [part for part in (*parts, text) if part.strip()]


# ----------------------------------------------------------------------------------------- the work


def examined(ask: Ask) -> Context:
    """The model's codes on the text that was asked for."""
    torch.set_num_threads(cpu_threads())
    fast_memory()
    found = opened(ask)
    with console.status(f"loading {found.lm}"):
        lm = language_model.load_lm(found.lm, device=found.config.device or None)
    store = _store(ask, found, lm)
    dials = replace(found.sae.dials, low=plan.products(found.config, lm.device))
    sae = tsae.on_device(replace(found.sae, dials=dials), lm.device)
    with progress_bar("codes", math.ceil(len(store) / evaluation.EVAL_ROWS), 0) as advance:
        one = context.subject(sae, store, progress=lambda: advance(""))
    return context.context_of(found.title, 0, lm, store, [one], long=True)


def _store(ask: Ask, found: Opened, lm: LanguageModel) -> Store:
    language_model.check_hook(lm, found.hook)
    d_in = len(found.sae.params.static.b_dec)
    if d_in != lm.d_in:
        raise ValueError(f"{ask.model} reads activations of width {d_in}; {lm.name} has {lm.d_in}")
    seq = min(found.config.seq, lm.max_seq - len(lm.prefix))
    if ask.document is not None:
        n_tokens = len(texts.document_tokens(lm.tokenizer, found.documents[0], limit=ask.tokens)[0])
        seq = min(seq, max(n_tokens, 1))
    tokens = language_model.tokenize(
        lm, found.documents, seq=seq + len(lm.prefix), n_tokens=ask.tokens
    )
    cache = Path(found.config.cache_dir) / "activations" if found.config.cache_dir else None
    return store.activation_store(lm, tokens, hook=found.hook, cache_dir=cache)


def write(ask: Ask, context: Context, section: Section, table: str, *figures: str) -> None:
    """JSON, CSV and figures where they were asked for."""
    json_path, csv_path, *figure_paths = ask.outputs
    where = {
        "model": str(ask.model),
        "text": context.dataset,
        "tokens": context.store.tokens.n_tokens,
    }
    if json_path:
        files.write_json(json_path, where | {"numbers": section.numbers, "tables": section.tables})
    if csv_path:
        files.write_csv(csv_path, section.tables.get(table, []))
    for path, name in zip(figure_paths, figures, strict=True):
        if path and name not in section.figures:
            console.print(f"{path} was not written: there is nothing to draw", soft_wrap=True)
        elif path:
            save(section.figures[name], path)


def heading(context: Context) -> str:
    """What was measured on what."""
    one, tokens = context.subjects[0], context.store.tokens
    n_doc = len(tokens.document.unique())
    return f"{one.name}, {context.dataset}: {tokens.n_tokens:,} tokens, documents: {n_doc}"


def print_numbers(context: Context, section: Section, keys: Sequence[str]) -> None:
    """The named numbers, with their intervals where there are any."""
    table = Table("measure", "value", "95 % interval (documents)", title=escape(heading(context)))
    bounds = {row["measure"]: row for row in section.tables.get("intervals", [])}
    one = context.subjects[0]
    table.add_row(definitions.label("fve"), f"{one.fve:.4f}")
    for key in keys:
        row = bounds.get(key)
        shown = f"{row['low']:.4f} to {row['high']:.4f}" if row else ""
        table.add_row(definitions.label(key), f"{section.numbers[key]:.4f}", shown)
    Console().print(table)


STABILITY_MEASURES = (
    "tss_mean", "tss_weighted_mean", "tss_in_document_mean", "tss_eligible_frac", "jaccard",
    "jaccard_kappa", "responsiveness", "similarity_within", "similarity_across", "smoothness",
)  # fmt: skip
LIFETIME_MEASURES = (
    "restricted_mean_16", "restricted_mean_64", "restricted_mean_128",
    "shuffled_restricted_mean_64", "feature_restricted_mean_64", "half_life", "persistence",
    "shuffled_persistence", "lifecycle_pooled_gap_tokens", "lifecycle_pooled_age_tokens",
)  # fmt: skip


def stability_command(
    model: ModelFolder,
    text: TextOption = None,
    tokens: TokensOption = 40_000,
    json: JsonOption = None,
    csv: CsvOption = None,
    png: PngOption = None,
    lm: LmOption = "",
    hook: HookOption = "",
) -> None:
    """Temporal stability of a model's codes: TSS by lag, overlap, responsiveness."""
    with one_line_errors():
        ask = Ask(model=model, text=text, tokens=tokens, lm=lm, hook=hook, outputs=(json, csv, png))
        context = examined(ask)
        section = stability_section(context)
        print_numbers(context, section, STABILITY_MEASURES)
        if not section.numbers["tss_eligible_frac"]:
            console.print(
                "TSS is 0: no feature is active at 20 tokens in 5 documents; give more text",
                soft_wrap=True,
            )
        by_lag = Table("lag, tokens", "TSS", "weighted by activity", title="stability by lag")
        for row in section.tables.get("stability_by_lag", []):
            by_lag.add_row(str(row["lag"]), f"{row['tss']:.4f}", f"{row['tss_weighted']:.4f}")
        Console().print(by_lag)
        write(ask, context, section, "stability_by_lag", "stability_by_lag")


def lifetimes_command(
    model: ModelFolder,
    text: TextOption = None,
    tokens: TokensOption = 40_000,
    json: JsonOption = None,
    csv: CsvOption = None,
    png: PngOption = None,
    lm: LmOption = "",
    hook: HookOption = "",
) -> None:
    """Lifetimes of a model's features: survival with censoring, persistence, lifecycle; --csv has a
    row a feature.
    """
    with one_line_errors():
        ask = Ask(model=model, text=text, tokens=tokens, lm=lm, hook=hook, outputs=(json, csv, png))
        context = examined(ask)
        section = lifetimes_section(context)
        print_numbers(context, section, LIFETIME_MEASURES)
        write(ask, context, section, f"features_{context.subjects[0].slug}", "survival")


def transitions_command(
    model: ModelFolder,
    text: TextOption = None,
    tokens: TokensOption = 40_000,
    json: JsonOption = None,
    csv: CsvOption = None,
    png: PngOption = None,
    lm: LmOption = "",
    hook: HookOption = "",
) -> None:
    """Transitions between a model's features: the 20 strongest in words, and whether a bigram
    explains them.
    """
    with one_line_errors():
        ask = Ask(model=model, text=text, tokens=tokens, lm=lm, hook=hook, outputs=(json, csv, png))
        context = examined(ask)
        if len(context.store.tokens.document.unique()) < 2:
            raise ValueError(
                "transitions need at least 2 documents, to screen and to test; got 1: give more --tokens"
            )
        section = transitions.transitions_section(context)
        print_transitions(context, section)
        slug = context.subjects[0].slug
        write(ask, context, section, f"strongest_transitions_{slug}", f"transitions_{slug}")


def print_transitions(context: Context, section: Section) -> None:
    """The strongest transitions with a context each, then those that no pair of tokens explains."""
    n, slug = section.numbers, context.subjects[0].slug
    title = f"{heading(context)}; the strongest of {n['transitions_significant']:.0f} significant transitions"
    caption = (
        f"{n['transitions_replication']:.0%} of {n['transitions_screened']:.0f} screened ones replicate, "
        f"{n['transitions_beyond_token_pairs']:.0f} go beyond token pairs; "
        f"chains of three: {n['transitions_chains']:.0f}"
    )
    print_wide(_transition_table(section.tables[f"strongest_transitions_{slug}"], title, caption))
    title = "the strongest beyond token pairs, each source and target once"
    print_wide(_transition_table(section.tables[f"beyond_pairs_{slug}"], title))


def _transition_table(rows: Sequence[dict[str, Any]], title: str, caption: str = "") -> Table:
    table = Table(title=escape(title), caption=caption, show_lines=True)
    for name in (
        "",
        "transition",
        "lag",
        "count",
        "lift",
        "beyond token pairs",
        "most frequent token pair",
        "context",
    ):
        table.add_column(name, justify="right" if name in ("", "lag", "count", "lift") else "left")
    for row in rows:
        words = f"{row['source']} ({row['source_words']}) → {row['target']} ({row['target_words']})"
        pair = f"{row['token_pair']}: {row['token_pair_frac']:.0%}"
        cells = [str(row["rank"]), words, str(row["lag"]), str(row["count"]), f"{row['lift']:.1f}"]
        table.add_row(*map(escape, [*cells, row["beyond_token_pairs"], pair, row["example_1"]]))
    return table


def evolution_command(
    model: ModelFolder,
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            help="a text by name, a file, a folder, or the text itself; default: the run's own",
        ),
    ] = None,
    document: Annotated[
        int, typer.Option("--document", help="which document of the text, from 0")
    ] = 0,
    tokens: Annotated[
        int, typer.Option("--tokens", help="tokens of the document, at most", min=1)
    ] = 63,
    json: JsonOption = None,
    csv: CsvOption = None,
    png: PngOption = None,
    raster: Annotated[
        Path | None, typer.Option("--raster", help="write the lifecycle raster (.png or .svg)")
    ] = None,
    lm: LmOption = "",
    hook: HookOption = "",
) -> None:
    """The leading features over the tokens of one document: heat map and lifecycle raster; --csv
    has a row a token.
    """
    with one_line_errors():
        if tokens > MOST_DRAWN:
            raise ValueError(
                f"evolution shows at most {MOST_DRAWN} tokens of a document; got --tokens={tokens}"
            )
        outputs = (json, csv, png, raster)
        ask = Ask(
            model=model,
            text=text,
            tokens=tokens,
            lm=lm,
            hook=hook,
            outputs=outputs,
            document=document,
            literal=True,
        )
        context = examined(ask)
        one = context.subjects[0]
        section = transitions.document_section(one, 0, context, max_tokens=None)
        print_rows(
            heading(context), transitions.evolution_summary(one, 0, top_words(one.codes, context))
        )
        write(
            ask,
            context,
            section,
            f"evolution_{one.slug}",
            f"evolution_{one.slug}",
            f"lifecycle_{one.slug}",
        )


def print_rows(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as a table; its columns are the keys of the first."""
    table = Table(title=escape(title))
    for name in rows[0] if rows else ["no active feature"]:
        table.add_column(
            name.replace("_", " "), justify="left" if name.endswith("words") else "right"
        )
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row.values()))
    print_wide(table)


def probe_command(
    task: Annotated[
        str,
        typer.Argument(
            help="agreement, coreference, disambiguation, unresolvable; a data file; or a dataset's name on the hub: "
            "uclanlp/wino_bias:type1_pro, aps/super_glue:wic"
        ),
    ],
    model_dir: Annotated[
        Path,
        typer.Argument(help="run_2/TEXT/seed_0, its folder tsae or static, or a SAELens folder"),
    ],
    k: Annotated[
        list[int] | None,
        typer.Option("--k", help="features a probe is given; repeatable [1 2 5 10 20]"),
    ] = None,
    variants: Annotated[
        bool, typer.Option(help="also the memory and the LSTM states as codes")
    ] = False,
    seed: Annotated[int, typer.Option(help="of generator, splits and intervals")] = 0,
    lm: Annotated[
        str, typer.Option(help="language model, if not the one the SAE was trained on")
    ] = "",
    json_path: Annotated[
        Path | None, typer.Option("--json", help="write all rows here, as JSON")
    ] = None,
    csv_path: Annotated[
        Path | None, typer.Option("--csv", help="write all rows here, as CSV")
    ] = None,
    png_path: Annotated[
        Path | None, typer.Option("--png", help="draw accuracy by number of features here")
    ] = None,
) -> None:
    """Train probes for one task on a saved model's codes, its static SAE's and the residual
    stream.
    """
    with one_line_errors():
        torch.set_num_threads(cpu_threads())
        ks = tuple(k or probes.KS)
        if min(ks) < 1:
            raise ValueError(f"--k needs to be at least 1; got {min(ks)}")
        files.check_outputs((json_path, csv_path), (png_path,))
        wanted, name, hook = _model(model_dir, variants)
        given = _task(task, seed)
        with console.status(f"loading {lm or name}"):
            model = language_model.load_lm(lm or name)
        with console.status(f"reading {len(given.items):,} items"):
            features = readout.features(readout.read(model, hook, given.items), wanted)
        with progress_bar(f"{given.name}: probes", 1 + len(wanted) * (len(ks) + 1), 0) as advance:
            rows = probes.task_rows(given, features, ks=ks, seed=seed, progress=lambda: advance(""))
        show_rows(rows, f"{given.name}, {hook}: accuracy on held-out groups (95 % interval)")
        _write_rows(rows, json_path, csv_path, png_path)


def _model(folder: Path, variants: bool) -> tuple[dict[str, Reader], str, str]:
    """Readers of what lies in the folder, the language model's name and the hook; ValueError where
    no model lies.
    """
    parts = {
        name: folder / name if (folder / name).is_dir() else folder for name in ("tsae", "static")
    }
    if not (parts["static"] / "cfg.json").exists():
        raise ValueError(
            f"{folder} holds no model: needed is a cfg.json, or the folders tsae and static of a run's seed"
        )
    low = language_model.fast_dtype(torch.device("cpu"))
    weights, cfg = checkpoint.load_saelens(parts["static"])
    where = cfg.get("metadata") or {}
    if not {"model_name", "hook_name"} <= where.keys():
        raise ValueError(
            f"{parts['static']} does not say its model_name and hook_name in cfg.json's metadata"
        )
    has_tsae = (parts["tsae"] / "temporal.safetensors").exists()
    ours = load_tsae(parts["tsae"], low) if has_tsae else None
    static = tsae.static_sae(tsae.Static(**weights), int(cfg["k"]), low)
    wanted = readout.readers(static, ours, variants=variants)
    return wanted, where["model_name"], where["hook_name"]


def _task(name: str, seed: int) -> Task:
    if name in tasks.GENERATORS:
        return tasks.generated(name, seed=seed)
    path = Path(name).expanduser()
    if not path.exists() and not records.is_name(name):
        known = ", ".join(tasks.GENERATORS)
        raise ValueError(
            f"{name} is neither a file, nor a dataset's name (owner/dataset), nor one of {known}"
        )
    found = public_sets.load_items(path)
    for reason, n in found.skipped.items():
        console.print(f"{path.name}: {n} lines left out: {reason}", highlight=False)
    return Task(name=path.name, items=found.items)


def show_rows(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """A table: a line for each part of the items and number of features, a column for each code;
    then the control.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    table = Table("items", "features", *models, "control", title=title)
    cells = {(row["items"], row["k"], row["model"]): row for row in rows}
    for line, k in dict.fromkeys((row["items"], row["k"]) for row in rows):
        found = [cells.get((line, k, model)) for model in models]
        said = [
            "" if r is None else f"{r['accuracy']:.3f} ({r['low']:.2f}-{r['high']:.2f})"
            for r in found
        ]
        controls = [f"{r['control']:.2f}" for r in found if r is not None and "control" in r]
        table.add_row(line, str(k), *said, " ".join(controls))
    typer.echo(_plain(table))


def _plain(table: Table) -> str:
    from rich.console import Console

    wide = Console(width=max(console.width, 40 + 24 * len(table.columns)))
    with wide.capture() as captured:
        wide.print(table)
    return captured.get().rstrip("\n")


def _write_rows(
    rows: list[dict[str, Any]], json_path: Path | None, csv_path: Path | None, png_path: Path | None
) -> None:
    if json_path is not None:
        files.write_json(json_path, {"rows": rows, "numbers": probes.row_numbers(rows)})
    if csv_path is not None:
        names = list(dict.fromkeys(name for row in rows for name in row))
        with csv_path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    if png_path is not None:
        figures.save_figure(figures.accuracy_figure(rows), png_path.with_suffix(""))
