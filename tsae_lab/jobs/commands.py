"""Commands that look at a saved model's codes.

`python experiment.py stability|lifetimes|transitions|evolution MODEL` read a text with it,
`python experiment.py probe TASK MODEL` trains probes on its codes.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

import probes
from probes import Task
from tsae_lab import definitions, files
from tsae_lab.data import language_model, public_sets, records, store, tasks, texts
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.data.own_sets import item_paths
from tsae_lab.data.store import Store
from tsae_lab.jobs import plan
from tsae_lab.jobs.saved import (
    CsvOption,
    HookOption,
    JsonOption,
    LmOption,
    ModelFolder,
    Outputs,
    PngOption,
    Saved,
    checked_outputs,
    open_model,
    with_lm,
    write_outputs,
)
from tsae_lab.measures import absorption, evaluation, readout
from tsae_lab.report import neuronpedia
from tsae_lab.report.page import write_explorer
from tsae_lab.sections import figures, transitions
from tsae_lab.sections.context import Context, Section, context_of, subject, top_words
from tsae_lab.sections.stability import lifetimes_section, stability_section
from tsae_lab.terminal import between, cell, console, one_line_errors, print_table, progress_bar

MOST_DRAWN = 1_000  # tokens that fit into one figure

TextOption = Annotated[
    str | None,
    typer.Option(
        "--text", help="a text by name, a file or a folder; default: the run's own validation text"
    ),
]
ColumnOption = Annotated[
    str, typer.Option("--column", help="column of a table that holds the texts [text]")
]
TokensOption = Annotated[int, typer.Option("--tokens", help="tokens of text, at most", min=1)]
Report = tuple[Section, str, tuple[str, ...]]  # with the names of its main table and its figures


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a command on a text was asked: the model, the text, where to write."""

    model: Path
    text: str | None
    tokens: int
    lm: str
    hook: str
    outputs: Outputs
    column: str = ""
    """of a table; "": the run's own"""
    both: bool = False
    """of a TSAE its static SAE, too"""
    document: int | None = None
    """the one document that is read, by its index; then `text` may also be the text itself"""


# ----------------------------------------------------------------------------- the model's codes


def _examined(ask: Ask) -> Context:
    """The model's codes on the text that was asked for; ValueError for a bad request."""
    saved = open_model(ask.model, ask.lm, ask.hook)
    title, documents = documents_of(ask, saved)
    lm, saved = with_lm(saved)
    activations = _store(ask, saved, lm, _unseen(ask, saved, lm, documents))
    saes = [saved.sae, saved.static] if ask.both and saved.sae.temporal else [saved.sae]
    n_batches = len(saes) * math.ceil(len(activations) / evaluation.EVAL_ROWS)
    with progress_bar("codes", n_batches) as advance:
        subjects = [subject(sae, activations, progress=advance) for sae in saes]
    return context_of(title, 0, lm, activations, subjects, long=True)


def documents_of(ask: Ask, saved: Saved) -> tuple[str, Sequence[str]]:
    """Title and documents of the text that was asked for; ValueError where there are none.

    Of a named text the validation split, of files everything.
    """
    title, documents = _text_of(ask, saved)
    if ask.document is None:
        return title, documents
    if not 0 <= ask.document < len(documents):
        last = len(documents) - 1
        raise ValueError(f"{title} has documents 0 to {last}; got document {ask.document}")
    return title, [documents[ask.document]]


def _unseen(ask: Ask, saved: Saved, lm: LanguageModel, documents: Sequence[str]) -> Sequence[str]:
    """Of a named text what the run validates on: parts that training has too are left out."""
    if ask.document is not None or not (ask.text is None or ask.text in texts.CORPORA):
        return documents
    name = ask.text or saved.dataset
    return texts.cut_corpus(lm.tokenizer, plan.load_text(saved.config, name)).val


def _text_of(ask: Ask, saved: Saved) -> tuple[str, Sequence[str]]:
    name, config = ask.text, saved.config
    config = replace(config, column=ask.column or config.column)
    if name is None and not saved.dataset:
        raise ValueError(f"{ask.model} does not say what text it was trained on; give --text")
    if name is None or name in texts.CORPORA:
        name = name or saved.dataset
        return f"{name} (validation)", plan.load_text(config, name).val
    if not name.strip():
        raise ValueError("the text is empty")
    path = os.path.expanduser(name)  # which, as exists, takes any text
    if os.path.exists(path):
        documents = texts.documents_at(Path(path), config.column)
        whole = len(documents) > 1 or ask.document is not None
        return Path(path).name, documents if whole else texts.pieces(documents[0])
    if ask.document is None:
        corpus = plan.load_text(config, name)
        return name, (*corpus.train, *corpus.val)
    return "text", [name]


def _store(ask: Ask, saved: Saved, lm: LanguageModel, documents: Sequence[str]) -> Store:
    seq = min(saved.config.seq, lm.max_seq - len(lm.prefix))
    if ask.document is not None:
        documents = texts.parts(lm.tokenizer, documents)
        if len(documents) > 1:
            said = "the end of a text is written in the document: its first part is read"
            console.print(said, highlight=False, soft_wrap=True)
        documents = documents[:1]
        cut = [texts.document_tokens(lm.tokenizer, d, limit=ask.tokens)[0] for d in documents]
        n_tokens = sum(map(len, cut))
        seq = min(seq, max(n_tokens, 1))
    own = {"seq": seq + len(lm.prefix), "n_tokens": ask.tokens, "spread": True}
    tokens = language_model.tokenize(lm, documents, **own)
    cache = Path(saved.config.cache_dir) / "activations" if saved.config.cache_dir else None
    own = {"hook": saved.hook, "sinks": saved.config.sinks, "cache_dir": cache}
    return store.activation_store(lm, tokens, **own)


# ---------------------------------------------------------------------------- commands on a text


def _report(ask: Ask, report: Callable[[Context], Report]) -> Context:
    """Print a report on the text that was asked for, and write its files; what was examined."""
    context = _examined(ask)
    section, table, drawn = report(context)
    tokens = context.store.tokens.n_tokens
    content = {"model": str(ask.model), "text": context.dataset, "tokens": tokens}
    content |= {"numbers": section.numbers, "tables": section.tables}
    rows = section.tables.get(table, [])
    write_outputs(ask.outputs, content, rows, [section.figures.get(name) for name in drawn])
    return context


def _on_text(report: Callable[[Context], Report]) -> Callable[..., None]:
    """The command with the docstring of `report`, which reports on a model's codes on a text."""

    def command(
        model: ModelFolder,
        text: TextOption = None,
        column: ColumnOption = "",
        tokens: TokensOption = 40_000,
        json: JsonOption = None,
        csv: CsvOption = None,
        png: PngOption = None,
        lm: LmOption = "",
        hook: HookOption = "",
    ) -> None:
        with one_line_errors():
            outputs = checked_outputs(json, csv, png)
            ask = Ask(model=model, text=text, tokens=tokens, lm=lm, hook=hook, outputs=outputs,
                      column=column)  # fmt: skip
            _report(ask, report)

    command.__doc__ = report.__doc__
    return command


def _heading(context: Context) -> str:
    """What was measured on what."""
    name, tokens = context.subjects[0].name, context.store.tokens
    n_doc = len(tokens.document.unique())
    return f"{name}, {context.dataset}: {tokens.n_tokens:,} tokens, documents: {n_doc}"


def _print_numbers(context: Context, section: Section, keys: Sequence[str]) -> None:
    """The numbers of these keys, with their intervals where there are any."""
    bounds = {row["measure"]: row for row in section.tables.get("intervals", [])}
    rows = [(definitions.label("fve"), f"{context.subjects[0].fve:.4f}", "")]
    for key in keys:
        row = bounds.get(key)
        interval = between(row["low"], row["high"], ".4f") if row else ""
        rows.append((definitions.label(key), cell(section.numbers.get(key), ".4f"), interval))
    single = len(context.store.tokens.document.unique()) < 2
    caption = "no intervals: a single document cannot be resampled" if single else ""
    columns = ("measure", "value", "95 % interval (documents)")
    print_table(_heading(context), columns, rows, caption=caption)


STABILITY_MEASURES = (
    "tss_mean", "tss_floor_mean", "tss_weighted_mean", "tss_in_document_mean",
    "tss_in_document_floor_mean", "tss_eligible_frac", "jaccard", "jaccard_kappa", "births",
    "distinct", "splice_kept_0", "splice_kept_4", "similarity_within", "similarity_across",
    "smoothness",
)  # fmt: skip
LIFETIME_MEASURES = (
    "restricted_mean_16", "restricted_mean_64", "restricted_mean_128",
    "shuffled_restricted_mean_64", "feature_restricted_mean_64", "half_life", "persistence",
    "shuffled_persistence", "lifecycle_pooled_gap_tokens", "lifecycle_pooled_age_tokens",
)  # fmt: skip


@_on_text
def stability_command(context: Context) -> Report:
    """Temporal stability of a model's codes: TSS by lag, overlap, what a splice leaves."""
    section = stability_section(context)
    _print_numbers(context, section, STABILITY_MEASURES)
    if not section.numbers["tss_eligible_frac"]:
        reason = "no feature is active at 20 tokens in 5 documents; give more text"
        console.print(f"TSS is absent: {reason}", soft_wrap=True)
    by_lag = section.tables.get("stability_by_lag", [])
    cells = [
        (row["lag"], cell(row["tss"], ".4f"), cell(row["tss_weighted"], ".4f")) for row in by_lag
    ]
    print_table("stability by lag", ("lag, tokens", "TSS", "weighted by activity"), cells, words=())
    return section, "stability_by_lag", ("stability_by_lag",)


@_on_text
def lifetimes_command(context: Context) -> Report:
    """Lifetimes of a model's features: survival with censoring, persistence, lifecycle; --csv has a
    row per feature.
    """
    section = lifetimes_section(context)
    _print_numbers(context, section, LIFETIME_MEASURES)
    return section, f"features_{context.subjects[0].slug}", ("survival",)


@_on_text
def transitions_command(context: Context) -> Report:
    """Transitions between a model's features: the 20 strongest in words, and whether a bigram
    explains them.
    """
    if len(context.store.tokens.document.unique()) < 2:
        need = "at least 2 documents, to screen and to test; got 1"
        raise ValueError(f"transitions need {need}: give more --tokens")
    section = transitions.transitions_section(context)
    n, slug = section.numbers, context.subjects[0].slug
    n_found = f"{n['transitions_significant']:.0f} significant transitions"
    caption = (
        f"of {n['transitions_candidates']:,.0f} candidates {cell(n['transitions_cut_frac'], '.0%')}"
        f" are not tested; {cell(n['transitions_replication'], '.0%')} of"
        f" {n['transitions_screened']:,.0f} screened"
        f" replicate, {n['transitions_beyond_token_pairs']:.0f} go beyond token pairs;"
        f" chains of three: {n['transitions_chains']:.0f}"
    )
    title = f"{_heading(context)}; the strongest of {n_found}"
    _print_transitions(title, section.tables[f"strongest_transitions_{slug}"], caption)
    title = "the strongest beyond token pairs, each source and target once"
    _print_transitions(title, section.tables[f"beyond_pairs_{slug}"])
    return section, f"strongest_transitions_{slug}", (f"transitions_{slug}",)


@_on_text
def absorption_command(context: Context) -> Report:
    """Absorption of the letter that a word begins with: where its feature is off, and a more
    special one does its work; on whole sequences.
    """
    model, tokens = context.subjects[0], context.store.tokens
    W_dec, x = model.sae.params.static.W_dec, context.store.x(slice(0, len(tokens.ids)))
    by_letter = absorption.letters(model.codes, x, context.ids, context.words, W_dec)
    if not by_letter:
        raise ValueError(f"no letter begins {2 * absorption.LEAST} tokens: give more --tokens")
    rows = [
        {"letter": letter, "tokens": result.n, "features": " ".join(map(str, result.main)),
         "full": float(result.full.mean()), "part": float(result.part.mean())}
        for letter, result in by_letter.items()
    ]  # fmt: skip
    numbers = {f"absorption_{k}": sum(row[k] for row in rows) / len(rows) for k in ("full", "part")}
    mean = {"letter": "mean", "tokens": sum(row["tokens"] for row in rows), "features": ""}
    lines = [*rows, mean | {k: numbers[f"absorption_{k}"] for k in ("full", "part")}]
    cells = [(*list(row.values())[:3], f"{row['full']:.3f}", f"{row['part']:.3f}") for row in lines]
    columns = ("letter", "tokens", "its features", "absorbed in full", "in part")
    print_table(f"{_heading(context)}; absorption of first letters", columns, cells)
    drawn = {"absorption": figures.absorption_figure(rows)}
    section = Section(numbers={**numbers}, tables={"absorption": rows}, figures=drawn)
    return section, "absorption", ("absorption",)


def _print_transitions(title: str, rows: Sequence[Mapping[str, Any]], caption: str = "") -> None:
    words = ("transition", "beyond token pairs", "most frequent token pair", "context")
    columns = ("", words[0], "lag", "count", "lift", *words[1:])
    cells = [
        (
            row["rank"],
            f"{row['source']} ({row['source_words']}) → {row['target']} ({row['target_words']})",
            row["lag"],
            row["count"],
            f"{row['lift']:.1f}",
            row["beyond_token_pairs"],
            f"{row['token_pair']}: {row['token_pair_frac']:.0%}",
            row["example_1"],
        )
        for row in rows
    ]
    print_table(title, columns, cells, words=words, caption=caption, lines=True)


def evolution_command(
    model: ModelFolder,
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            help="a text by name, a file, a folder, or the text itself; default: the run's own",
        ),
    ] = None,
    column: ColumnOption = "",
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
    html: Annotated[
        Path | None, typer.Option("--html", help="write a page with the words, to be coloured")
    ] = None,
    lm: LmOption = "",
    hook: HookOption = "",
) -> None:
    """The leading features over the tokens of one document: heat map and lifecycle raster; --csv
    has a row per token, --html a page that colours the words by any feature.
    """
    with one_line_errors():
        if tokens > MOST_DRAWN:
            most = f"at most {MOST_DRAWN} tokens of a document"
            raise ValueError(f"evolution shows {most}; got --tokens={tokens}")
        outputs = checked_outputs(json, csv, png, raster)
        files.check_outputs((html,), ())
        ask = Ask(model=model, text=text, tokens=tokens, lm=lm, hook=hook, outputs=outputs,
                  document=document, column=column, both=html is not None)  # fmt: skip
        context = _report(ask, _evolution)
        if html:
            write_explorer(html, context, tokens)


def _evolution(context: Context) -> Report:
    model = context.subjects[0]
    section = transitions.document_section(model, 0, context, max_tokens=None)
    rows = transitions.evolution_summary(model, 0, top_words(model.codes, context))
    columns = [name.replace("_", " ") for name in rows[0]] if rows else ["no active feature"]
    words = [name for name in columns if name.endswith("words")]
    print_table(_heading(context), columns, [list(row.values()) for row in rows], words=words)
    heat_map, raster = f"evolution_{model.slug}", f"lifecycle_{model.slug}"
    return section, heat_map, (heat_map, raster)


def neuronpedia_command(
    model: ModelFolder,
    out: Annotated[Path, typer.Argument(help="a new folder: batch-0.json, batch-1.json ..")],
    features: Annotated[
        int, typer.Option(min=0, help="the first live features, at most; 0: all")
    ] = 0,
    size: Annotated[int, typer.Option(min=1, help="features per file")] = 128,
    sae_set: Annotated[str, typer.Option(help="its name on Neuronpedia")] = "tsae-res",
    text: TextOption = None,
    column: ColumnOption = "",
    tokens: TokensOption = 40_000,
    lm: LmOption = "",
    hook: HookOption = "",
) -> None:
    """Write a model's features as SAEDashboard does and Neuronpedia imports them."""
    with one_line_errors():
        if out.exists():
            raise ValueError(f"{out} exists; give the name of a new folder")
        nothing = Outputs(json=None, csv=None, figures=())
        ask = Ask(model=model, text=text, tokens=tokens, lm=lm, hook=hook, outputs=nothing,
                  column=column)  # fmt: skip
        context = _examined(ask)
        subject, live = context.subjects[0], neuronpedia.live_features(context.subjects[0])
        layer = language_model.check_hook(context.lm, context.store.hook).layer
        about = {"model_id": Path(context.lm.name).name, "layer": layer, "sae_set": sae_set}
        chosen = live[: features or None]
        batches = neuronpedia.feature_batches(context, subject, chosen, size=size, about=about)
        skipped = sorted(set(range(subject.codes.d_sae)) - set(chosen))
        with files.staged(out) as stage:
            for i, batch in enumerate(batches):
                files.write_json(stage / f"batch-{i}.json", batch)
            dead = about | {"layer": str(layer), "log_sparsity": 0, "skipped_indexes": skipped}
            files.write_json(stage / "skipped_indexes.json", dead)
        console.print(f"{out}: {len(chosen)} features", highlight=False, soft_wrap=True)


# ----------------------------------------------------------------------------------------- probe


def probe_command(
    task: Annotated[
        str,
        typer.Argument(
            help="agreement, coreference, disambiguation, unresolvable; a data file; or a dataset's"
            " name on the hub: uclanlp/wino_bias:type1_pro, aps/super_glue:wic; several by commas"
        ),
    ],
    model: ModelFolder,
    k: Annotated[
        list[int] | None,
        typer.Option("--k", help="features a probe is given; repeatable [1 2 5 10 20]"),
    ] = None,
    variants: Annotated[
        bool, typer.Option(help="also the memory and the LSTM states as codes")
    ] = False,
    seed: Annotated[int, typer.Option(help="of generator, splits and intervals")] = 0,
    json: JsonOption = None,
    csv: CsvOption = None,
    png: PngOption = None,
    lm: LmOption = "",
    hook: HookOption = "",
) -> None:
    """Train probes for one task on a saved model's codes, its static SAE's and the residual
    stream.
    """
    with one_line_errors():
        ks = tuple(k or probes.KS)
        if min(ks) < 1:
            raise ValueError(f"--k needs to be at least 1; got {min(ks)}")
        outputs = checked_outputs(json, csv, png)
        saved, given_task = open_model(model, lm, hook), _task(task, seed)
        rows = _probe_rows(saved, given_task, ks, seed, variants=variants)
        title = f"{given_task.name}, {saved.hook}: accuracy on held-out groups ± standard error"
        title += " (95 % interval)"
        _print_probes(title, rows)
        content = {"rows": rows, "numbers": probes.row_numbers(rows)}
        warning = public_sets.warning(given_task.items)
        if warning:
            console.print(f"warning: {warning}", highlight=False)
            content["warning"] = warning
        write_outputs(outputs, content, rows, [figures.accuracy_figure(rows) if png else None])


def _probe_rows(
    saved: Saved, task: Task, ks: tuple[int, ...], seed: int, *, variants: bool
) -> list[dict[str, Any]]:
    lm, saved = with_lm(saved)
    ours = saved.sae if saved.sae.temporal else None
    wanted = readout.readers(saved.static, ours, variants=variants)
    with console.status(f"reading {len(task.items):,} items"):
        features = readout.features(readout.read(lm, saved.hook, task.items), wanted)
    if task.name not in tasks.GENERATORS:
        features |= probes.baselines(task.items)
    n_probes = len(features) - len(wanted) + len(wanted) * len(probes.probed_with(ks))
    with progress_bar(f"{task.name}: probes", n_probes) as advance:
        return probes.task_rows(task, features, ks=ks, seed=seed, progress=advance)


def _task(name: str, seed: int) -> Task:
    """The items of a generator, a file or a dataset's name; ValueError where it is none of them."""
    if name in tasks.GENERATORS:
        return tasks.generated(name, seed=seed)
    items, names, sources = [], [], []
    for part in [name] if Path(name).expanduser().exists() else name.split(","):
        source = Path(part).expanduser()
        if not source.exists() and not records.is_name(part):
            known = f"a dataset's name (owner/dataset), nor one of {', '.join(tasks.GENERATORS)}"
            raise ValueError(f"{part} is neither a file, nor {known}")
        title, paths = item_paths(source) if source.is_dir() else (source.name, [source])
        names.append(title)
        sources += paths
    for source in sources:
        try:
            loaded = public_sets.load_items(source)
        except ValueError as error:  # of a folder's files some may have too few of a sense
            if (source is sources[-1] and not items) or "has no usable line" not in str(error):
                raise
            console.print(str(error), highlight=False, soft_wrap=True)
            continue
        items += loaded.items
        for reason, n in loaded.skipped.items():
            console.print(f"{source.name}: {n} lines left out: {reason}", highlight=False)
    return Task(name="+".join(names), items=tuple(items))


def _accuracy_cell(row: Mapping[str, Any]) -> str:
    """Accuracy, or a difference of two, with its standard error and interval."""
    bounds = between(row["low"], row["high"], ".2f")
    return f"{row['accuracy']:.3f} ± {cell(row['stderr'], '.3f')} ({bounds})"


def _print_probes(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A line per part of the items, number of features and rule that chose them, a column per code;
    then the control.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    probed = [(row["items"], row["k"], row["chosen"]) for row in rows]
    by_cell = {(*key, row["model"]): row for key, row in zip(probed, rows, strict=True)}
    lines = []
    for key in dict.fromkeys(probed):
        measured = [by_cell.get((*key, model), {}) for model in models]
        values = [_accuracy_cell(row) if row else "" for row in measured]
        controls = [
            " ".join(f"{row[kind]:.2f}" for row in measured if kind in row)
            for kind in ("control", "recurring")
        ]
        lines.append((*key, *values, *controls))
    print_table(title, ("items", "features", "chosen by", *models, "control", "recurring"), lines)


def listed(name: str, text: str, kind: type) -> list[Any]:
    """The different numbers of an option, in order."""
    try:
        return list(dict.fromkeys(map(kind, text.split(","))))
    except ValueError as error:
        need = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"--{name} needs {need}, separated by commas; got {text!r}") from error
