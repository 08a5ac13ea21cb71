"""Transitions and documents in words: which feature follows which, with contexts; what is on at
each token.
"""

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
from tsae_lab.sections.context import Context, Section, Subject, labels, named, top_words
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

    found: Transitions
    beyond_pairs: Bool[
        np.ndarray, " patterns"
    ]  # significant, and surviving the stratification by token pair
    pair_p: Float[np.ndarray, " patterns"]
    chains: list[Chain]


def transitions_section(context: Context) -> Section:
    """How many transitions are significant, replicate, survive token pairs, chain; the strongest in
    words; graph.
    """
    mined = [mine(s, context) for s in context.subjects]
    numbers = named(context, [transition_numbers(m) for m in mined])
    tables, figures = {}, {}
    if context.long:
        for one, found in zip(context.subjects, mined, strict=True):
            if found is None:
                continue
            words = top_words(one.codes, context)
            tables[f"transitions_{one.slug}"] = transition_rows(found, words)
            tables[f"strongest_transitions_{one.slug}"] = strongest_rows(one, found, words, context)
            tables[f"beyond_pairs_{one.slug}"] = strongest_rows(
                one, found, words, context, beyond=True
            )
            tables[f"chains_{one.slug}"] = chain_rows(found.chains, words)
            figures[f"transitions_{one.slug}"] = _graph_figure(one, found, words, context)
    return Section(numbers, tables, figures)


def mine(one: Subject, context: Context) -> Mined | None:
    """Transitions of a model's codes; None for a single document, which cannot both find and
    test.
    """
    if len(one.codes.document.unique()) < 2:
        return None
    found = transitions.find_transitions(one.codes)
    beyond, pair_p = transitions.beyond_token_pairs(one.codes, context.ids, found)
    return Mined(found, beyond, pair_p, transitions.chains(one.codes, found))


def transition_numbers(mined: Mined | None) -> dict[str, float]:
    """Counts (among the 10,000 candidates of largest deviance) and shares; all 0 for a single
    document.
    """
    names = (
        "screened",
        "significant",
        "replication",
        "beyond_token_pairs",
        "beyond_token_pairs_frac",
        "chains",
    )
    values = [0.0] * len(names)
    if mined is not None:
        n, beyond = int(mined.found.significant.sum()), int(mined.beyond_pairs.sum())
        q = (
            stats.false_discovery_control([c.p_value for c in mined.chains])
            if mined.chains
            else np.ones(0)
        )
        n_chains = int((q <= mined.found.alpha).sum())
        values = [
            len(mined.found.patterns),
            n,
            mined.found.replication,
            beyond,
            beyond / max(n, 1),
            n_chains,
        ]
    return {f"transitions_{name}": float(value) for name, value in zip(names, values, strict=True)}


def transition_rows(mined: Mined, words: Mapping[int, str]) -> list[dict[str, Any]]:
    """A row a significant transition, smallest p first (then largest lift), at most 500."""
    rows = np.flatnonzero(mined.found.significant)[:LONGEST_TABLE].tolist()
    return [_transition_row(mined, row, words) for row in rows]


def _transition_row(mined: Mined, row: int, words: Mapping[int, str]) -> dict[str, Any]:
    found = mined.found
    source, target = int(found.patterns.source[row]), int(found.patterns.target[row])
    measures = {
        name: float(f"{getattr(found, name)[row]:.4g}")
        for name in ("expected", "lift", "npmi", "direction")
    }
    return {
        "source": source,
        "source_words": words.get(source, ""),
        "target": target,
        "target_words": words.get(target, ""),
        "lag": int(found.patterns.lag[row]),
        "count": int(found.count[row]),
        **measures,
        "p_value": float(f"{found.p_value[row]:.3g}"),
        "q_value": float(f"{found.q_value[row]:.3g}"),
        "beyond_token_pairs": "yes" if mined.beyond_pairs[row] else "no",
        "token_pair_p": float(f"{mined.pair_p[row]:.3g}"),
    }


def strongest_rows(
    one: Subject, mined: Mined, words: Mapping[int, str], context: Context, *, beyond: bool = False
) -> list[dict[str, Any]]:
    """The 20 strongest transitions (p, then lift; of two features the strongest lag), each with
    contexts in words.

    In a context the source's token stands in [ ], the target's in [[ ]]. `token_pair` is the most
    frequent pair of tokens the pattern occurs at and `token_pair_frac` its share: near 1, the
    transition is a bigram. With `beyond` only those that survive the stratification by token pairs,
    and each source and each target once: a wider view.
    """
    rows, seen = [], set()
    for row in np.flatnonzero(mined.beyond_pairs if beyond else mined.found.significant).tolist():
        source, target = (
            int(mined.found.patterns.source[row]),
            int(mined.found.patterns.target[row]),
        )
        keys = {("from", source), ("to", target)} if beyond else {(source, target)}
        if keys & seen:
            continue
        seen |= keys
        rows.append({"rank": len(rows) + 1} | _transition_row(mined, row, words))
        rows[-1] |= _examples(one, source, target, rows[-1]["lag"], context)
        if len(rows) == STRONGEST:
            break
    return rows


def _examples(one: Subject, source: int, target: int, lag: int, context: Context) -> dict[str, Any]:
    chunk, first = transitions.occurrences(one.codes, source, target, lag)
    ids = context.ids.numpy()
    pairs = Counter(zip(ids[chunk, first].tolist(), ids[chunk, first + lag].tolist(), strict=True))
    (pair, times), *_ = pairs.most_common(1)
    out: dict[str, Any] = {
        "token_pair": " … ".join(figures.shown(context.words[i]) for i in pair),
        "token_pair_frac": round(times / len(chunk), 3),
    }
    spread = np.unique(np.linspace(0, len(chunk) - 1, EXAMPLES).round().astype(int))
    for number in range(EXAMPLES):
        shown = ""
        if number < len(spread):
            at = spread[number]
            row = ids[chunk[at], : int(one.codes.valid[chunk[at]].sum())]
            shown = in_context(
                [context.words[int(i)] for i in row], int(first[at]), int(first[at]) + lag
            )
        out[f"example_{number + 1}"] = shown
    return out


def in_context(words: Sequence[str], source: int, target: int, reach: int = 8) -> str:
    """The words around two tokens, the first in [ ], the second in [[ ]]; line breaks as a sign."""
    parts = []
    for at in range(max(source - reach, 0), min(target + 1 + reach // 2, len(words))):
        word = words[at].replace("\n", "↵")
        body = word.strip() or "␣"
        lead = word[: len(word) - len(word.lstrip())]
        parts.append(
            f"{lead}[{body}]" if at == source else f"{lead}[[{body}]]" if at == target else word
        )
    return "".join(parts).strip()


def chain_rows(found: Sequence[Chain], words: Mapping[int, str]) -> list[dict[str, Any]]:
    """A row a chain, most surprising first, at most 500: features with their words, lags, counts,
    binomial p.
    """
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
        for chain in found[:LONGEST_TABLE]
    ]


def _graph_figure(one: Subject, mined: Mined, words: Mapping[int, str], context: Context) -> Figure:
    kept: nx.DiGraph = transitions.graph(mined.found, mined.beyond_pairs)
    title = f"{context.dataset}, {one.name}: transitions beyond token pairs"
    n_all = kept.number_of_edges()
    if n_all > DRAWN_EDGES:
        title += f" ({n_all:,} in all; strong ones drawn)"
    two_lines = {feature: text.replace(" ", "\n", 1) for feature, text in labels(words).items()}
    return figures.transition_figure(kept, two_lines, max_edges=DRAWN_EDGES, title=title)


# ---------------------------------------------------------------- one document


def evolution_section(context: Context) -> Section:
    """The leading features over the first tokens of one document: heat map, lifecycle raster and a
    table, a model each.

    The document is the first that is seen from its beginning. Only where long tables are wanted,
    and no numbers.
    """
    document = first_document(context)
    tables, figures = {}, {}
    if context.long:
        for one in context.subjects:
            part = document_section(one, document, context)
            tables |= part.tables
            figures |= part.figures
    return Section({}, tables, figures)


def first_document(context: Context) -> int:
    """The first document of the store whose beginning is in it, or the first one."""
    tokens = context.store.tokens
    begun = tokens.document[(tokens.start == 0) & tokens.valid.any(1)]
    return int(begun[0] if len(begun) else tokens.document[tokens.valid.any(1)][0])


def document_section(
    one: Subject, document: int, context: Context, *, max_tokens: int | None = EVOLUTION_TOKENS
) -> Section:
    """Heat map, raster and table of one document; no figure where nothing is active."""
    table = lifetimes.evolution(
        one.codes, document, n_features=EVOLUTION_FEATURES, max_tokens=max_tokens
    )
    words = [context.words[int(i)] for i in context.ids.numpy()[table.chunk, table.position]]
    names = labels(top_words(one.codes, context))
    figures = {}
    if len(table.features):
        title = f"{context.dataset}, document {document}, {one.name}"
        figures[f"evolution_{one.slug}"] = evolution_figure(table, words, names, title)
        figures[f"lifecycle_{one.slug}"] = raster_figure(table, words, names, title)
    return Section({}, {f"evolution_{one.slug}": evolution_rows(table, words)}, figures)


def evolution_rows(table: Evolution, words: list[str]) -> list[dict[str, Any]]:
    """A row for each feature and token at which it is active or has just died."""
    rows = []
    for feature, at in zip(*np.nonzero((table.acts > 0) | table.deaths), strict=True):
        rows.append(
            {
                "feature": int(table.features[feature]),
                "token": int(table.index[at]),
                "word": figures.shown(words[at]),
                "act": float(f"{table.acts[feature, at]:.6g}"),
                "birth": int(table.births[feature, at]),
                "death": int(table.deaths[feature, at]),
            }
        )
    return rows


def evolution_summary(
    one: Subject, document: int, words: Mapping[int, str]
) -> list[dict[str, Any]]:
    """A row a leading feature of a document: what it reads, active tokens, births, deaths, peak and
    when.
    """
    table = lifetimes.evolution(one.codes, document, n_features=EVOLUTION_FEATURES)
    peaks: Int[np.ndarray, " rows"] = (
        table.acts.argmax(axis=1) if len(table.features) else np.zeros(0, np.int64)
    )
    return [
        {
            "feature": int(feature),
            "top_words": words.get(int(feature), ""),
            "active_tokens": int((table.acts[row] > 0).sum()),
            "births": int(table.births[row].sum()),
            "deaths": int(table.deaths[row].sum()),
            "peak": float(f"{table.acts[row].max():.4g}"),
            "peak_token": int(table.index[peaks[row]]),
        }
        for row, feature in enumerate(table.features)
    ]
