"""Sections "transitions" (which feature follows which, in words) and "evolution" (one document)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from scipy import stats

from tsae_lab.measures import lifetimes, transitions
from tsae_lab.measures.lifetimes import Evolution
from tsae_lab.measures.transitions import Chain, Transitions
from tsae_lab.sections import figures
from tsae_lab.sections.context import Context, Numbers, Section, Subject, labels, named, top_words
from tsae_lab.sections.figures import evolution_figure, raster_figure

STRONGEST = 20  # transitions that are listed with examples
EXAMPLES = 3  # contexts of each
LONGEST_TABLE = 500  # rows of a table of transitions or chains
EVOLUTION_TOKENS = 63  # tokens of a document that are drawn
EVOLUTION_FEATURES = 20
DRAWN_EDGES = 24


@dataclass(frozen=True, eq=False)
class Mined:
    """The transitions of one model, and which of them equal pairs of tokens do not explain."""

    transitions: Transitions
    beyond_pairs: Bool[np.ndarray, " patterns"]
    """significant, and still so when stratified by token pair"""
    pair_p: Float[np.ndarray, " patterns"]
    pair_lift: Float[np.ndarray, " patterns"]
    chains: list[Chain]


def transitions_section(context: Context) -> Section:
    """How many transitions are significant, replicate, survive token pairs, chain; the strongest.

    The strongest are tables in words with contexts and a graph, where long tables are wanted.
    """
    all_mined = [_mine(subject, context) for subject in context.subjects]
    section = Section(named(context, [_transition_numbers(mined) for mined in all_mined]))
    if not context.long:
        return section
    for subject, mined in zip(context.subjects, all_mined, strict=True):
        if mined is None:
            continue
        words, slug = top_words(subject.codes, context), subject.slug
        significant, beyond = mined.transitions.significant, mined.beyond_pairs
        section.tables[f"transitions_{slug}"] = _transition_rows(mined, words)
        section.tables[f"strongest_transitions_{slug}"] = _strongest_rows(
            subject, mined, words, context, significant
        )
        section.tables[f"beyond_pairs_{slug}"] = _strongest_rows(
            subject, mined, words, context, beyond, once=True
        )
        section.tables[f"chains_{slug}"] = _chain_rows(mined.chains, words)
        section.figures[f"transitions_{slug}"] = _graph_figure(subject, mined, words, context)
    return section


def _mine(subject: Subject, context: Context) -> Mined | None:
    """Transitions of a model's codes; None for one document, which cannot both find and test."""
    if len(subject.codes.document.unique()) < 2:
        return None
    result = transitions.find_transitions(subject.codes)
    stratified = transitions.beyond_token_pairs(subject.codes, context.ids, result)
    return Mined(result, *stratified, transitions.chains(subject.codes, result))


def _transition_numbers(mined: Mined | None) -> Numbers:
    """Counts, estimated from the sample of the candidates, and shares; None for one document."""
    names = ("candidates", "cut_frac", "screened", "significant", "replication")
    names += ("beyond_token_pairs", "beyond_token_pairs_frac", "chains")
    numbers: Numbers = dict.fromkeys(f"transitions_{name}" for name in names)
    if mined is None:
        return numbers
    result, p_values = mined.transitions, [chain.p_value for chain in mined.chains]
    n, beyond = result.weight @ result.significant, result.weight @ mined.beyond_pairs
    q = stats.false_discovery_control(p_values) if p_values else np.ones(0)
    counts = [result.n_candidates, result.cut_frac, result.weight.sum(), n, result.replication]
    values = [*counts, beyond, beyond / n if n else None, (q <= result.alpha).sum()]
    return {
        name: None if value is None else float(value)
        for name, value in zip(numbers, values, strict=True)
    }


def _transition_rows(mined: Mined, words: Mapping[int, str]) -> list[dict[str, Any]]:
    """One row per significant transition, smallest p first (then largest lift), at most 500."""
    rows = np.flatnonzero(mined.transitions.significant)[:LONGEST_TABLE].tolist()
    return [_transition_row(mined, row, words) for row in rows]


def _transition_row(mined: Mined, row: int, words: Mapping[int, str]) -> dict[str, Any]:
    result = mined.transitions
    source, target = int(result.patterns.source[row]), int(result.patterns.target[row])
    measures = {
        name: float(f"{value:.4g}") if np.isfinite(value := getattr(result, name)[row]) else None
        for name in ("expected", "lift", "npmi", "direction")  # no direction if never reversed
    }
    return {
        "source": source,
        "source_words": words.get(source, ""),
        "target": target,
        "target_words": words.get(target, ""),
        "lag": int(result.patterns.lag[row]),
        "count": int(result.count[row]),
        "reverse": int(result.reverse[row]),
        **measures,
        "p_value": float(f"{result.p_value[row]:.3g}"),
        "q_value": float(f"{result.q_value[row]:.3g}"),
        "beyond_token_pairs": "yes" if mined.beyond_pairs[row] else "no",
        "token_pair_p": float(f"{mined.pair_p[row]:.3g}"),
        "token_pair_lift": float(f"{mined.pair_lift[row]:.4g}"),
    }


def _strongest_rows(
    subject: Subject,
    mined: Mined,
    words: Mapping[int, str],
    context: Context,
    wanted: Bool[np.ndarray, " patterns"],
    *,
    once: bool = False,
) -> list[dict[str, Any]]:
    """The 20 strongest of the `wanted` transitions (p, then lift), each with contexts in words.

    Of two features the strongest lag; with `once` each source and each target once: a wider view.
    In a context the source's token stands in [ ], the target's in [[ ]]. `token_pair` is the most
    frequent pair of tokens the pattern occurs at and `token_pair_frac` its share: near 1, the
    transition is a bigram.
    """
    rows, seen = [], set()
    for pattern in np.flatnonzero(wanted).tolist():
        row = _transition_row(mined, pattern, words)
        source, target = row["source"], row["target"]
        keys = {("from", source), ("to", target)} if once else {(source, target)}
        if keys & seen:
            continue
        seen |= keys
        examples = _examples(subject, source, target, row["lag"], context)
        rows.append({"rank": len(rows) + 1} | row | examples)
        if len(rows) == STRONGEST:
            break
    return rows


def _examples(
    subject: Subject, source: int, target: int, lag: int, context: Context
) -> dict[str, Any]:
    chunk, first = transitions.occurrences(subject.codes, source, target, lag)
    ids, lengths = context.ids.numpy(), subject.codes.valid.sum(1)
    pairs = Counter(zip(ids[chunk, first].tolist(), ids[chunk, first + lag].tolist(), strict=True))
    (pair, times), *_ = pairs.most_common(1)
    out: dict[str, Any] = {
        "token_pair": " … ".join(figures.shown(context.words[i]) for i in pair),
        "token_pair_frac": round(times / len(chunk), 3),
    }
    spread = np.unique(np.linspace(0, len(chunk) - 1, EXAMPLES).round().astype(int)).tolist()
    for number in range(EXAMPLES):
        shown = ""
        if number < len(spread):
            row, begin = int(chunk[spread[number]]), int(first[spread[number]])
            words = [context.words[int(i)] for i in ids[row, : int(lengths[row])]]
            shown = in_context(words, begin, begin + lag)
        out[f"example_{number + 1}"] = shown
    return out


def in_context(words: Sequence[str], source: int, target: int, reach: int = 8) -> str:
    """The words around two tokens, the first in [ ], the second in [[ ]]; line breaks as a sign."""
    parts = []
    for position in range(max(source - reach, 0), min(target + 1 + reach // 2, len(words))):
        word = words[position].replace("\n", "↵")
        body = word.strip() or "␣"
        lead = word[: len(word) - len(word.lstrip())]
        marked = {target: f"{lead}[[{body}]]", source: f"{lead}[{body}]"}
        parts.append(marked.get(position, word))
    return "".join(parts).strip()


def _chain_rows(chains: Sequence[Chain], words: Mapping[int, str]) -> list[dict[str, Any]]:
    """One row per chain, most surprising first, at most 500; p of a binomial test."""
    return [
        {
            "features": " > ".join(str(f) for f in chain.features),
            "words": " > ".join(words.get(f, "").split(" ")[0] for f in chain.features),
            "lags": " ".join(map(str, chain.lags)),
            "count": chain.count,
            "expected": round(chain.expected, 3),
            "lift": round(chain.lift, 3),
            "p_value": float(f"{chain.p_value:.3g}"),
        }
        for chain in chains[:LONGEST_TABLE]
    ]


def _graph_figure(
    subject: Subject, mined: Mined, words: Mapping[int, str], context: Context
) -> Figure:
    graph: nx.DiGraph = transitions.graph(mined.transitions, mined.beyond_pairs)
    title = f"{context.dataset}, {subject.name}: transitions beyond token pairs"
    n_all = graph.number_of_edges()
    if n_all > DRAWN_EDGES:
        title += f" ({n_all:,} in all; strong ones drawn)"
    two_lines = {feature: text.replace(" ", "\n", 1) for feature, text in labels(words).items()}
    return figures.transition_figure(graph, two_lines, max_edges=DRAWN_EDGES, title=title)


# ------------------------------------------------------------------------------------- one document


def evolution_section(context: Context) -> Section:
    """The leading features over the first tokens of one document: heat map, raster and table.

    The document is the first that is seen from its beginning. Nothing where no long tables are
    wanted; no numbers.
    """
    section = Section()
    if context.long:
        for subject in context.subjects:
            of_subject = document_section(subject, _first_document(context), context)
            section.tables.update(of_subject.tables)
            section.figures.update(of_subject.figures)
    return section


def _first_document(context: Context) -> int:
    """The first document of the store whose beginning is in it, or the first one."""
    tokens = context.store.tokens
    begun = tokens.document[(tokens.start == 0) & tokens.valid.any(1)]
    return int(begun[0] if len(begun) else tokens.document[tokens.valid.any(1)][0])


def document_section(
    subject: Subject, document: int, context: Context, *, max_tokens: int | None = EVOLUTION_TOKENS
) -> Section:
    """Heat map, raster and table of one document; no figure where nothing is active."""
    table = lifetimes.evolution(
        subject.codes, document, n_features=EVOLUTION_FEATURES, max_tokens=max_tokens
    )
    words = [context.words[int(i)] for i in context.ids.numpy()[table.chunk, table.position]]
    names, slug = labels(top_words(subject.codes, context)), subject.slug
    for feature, n in zip(table.features.tolist(), table.alike.tolist(), strict=True):
        names[feature] += f" (+{n - 1} alike)" if n > 1 else ""
    figures = {}
    if len(table.features):
        title = f"{context.dataset}, document {document}, {subject.name}"
        figures[f"evolution_{slug}"] = evolution_figure(table, words, names, title)
        figures[f"lifecycle_{slug}"] = raster_figure(table, words, names, title)
    return Section({}, {f"evolution_{slug}": _evolution_rows(table, words)}, figures)


def _evolution_rows(table: Evolution, words: list[str]) -> list[dict[str, Any]]:
    """One row per feature and token at which it is active or has just died."""
    return [
        {
            "feature": int(table.features[row]),
            "alike": int(table.alike[row]),
            "token": int(table.index[token]),
            "word": figures.shown(words[token]),
            "act": float(f"{table.acts[row, token]:.6g}"),
            "birth": int(table.births[row, token]),
            "death": int(table.deaths[row, token]),
        }
        for row, token in zip(*np.nonzero((table.acts > 0) | table.deaths), strict=True)
    ]


def evolution_summary(
    subject: Subject, document: int, words: Mapping[int, str]
) -> list[dict[str, Any]]:
    """One row per leading feature of a document: words, active tokens, births, deaths, peak.

    `alike`: features that are on at exactly the same tokens, of which the row shows one.
    """
    table = lifetimes.evolution(subject.codes, document, n_features=EVOLUTION_FEATURES)
    peaks: Int[np.ndarray, " rows"] = (
        table.acts.argmax(axis=1) if len(table.features) else np.zeros(0, np.int64)
    )
    return [
        {
            "feature": int(feature),
            "top_words": words.get(int(feature), ""),
            "alike": int(table.alike[row]),
            "active_tokens": int((table.acts[row] > 0).sum()),
            "births": int(table.births[row].sum()),
            "deaths": int(table.deaths[row].sum()),
            "peak": float(f"{table.acts[row].max():.4g}"),
            "peak_token": int(table.index[peaks[row]]),
        }
        for row, feature in enumerate(table.features)
    ]
