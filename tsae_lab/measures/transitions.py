"""Which feature tends to switch on a fixed number of tokens after which other: mining,
significance, chains, graph.

An onset is the first token of a run. Onsets at the first token of a chunk are left out: their start
was not seen. So a chunk of L tokens is a window of n = L - 1 places. A pattern (i, j, lag) is an
onset of i and, `lag` tokens later in the same chunk, one of j. The null turns j's onsets round in
each chunk by an independent uniform shift: rates, bursts and topics of both features stay, only
their alignment goes. (Shuffling tokens instead calls 22 to 33 % of independent but persistent pairs
significant.) The distribution of the count under that null is computed exactly, not sampled.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse, stats
from torch import Tensor

from metrics import CodedText, document_rank, ratio
from tsae_lab.measures.lifetimes import runs

P_FLOOR = (
    1e-12  # smaller p-values are below the rounding of the Fourier transform and are set to this
)
TINY = 1e-300  # stands for 0 under a logarithm
CELLS = 4_000_000  # numbers of an intermediate table
BLOCK = 2_000_000  # onsets and pairs of onsets handled at a time; bounds memory


@dataclass(frozen=True, eq=False)
class Onsets:
    """All onsets sorted by feature, chunk and place (1 = second token of the chunk)."""

    feature: Int[np.ndarray, " n"]
    chunk: Int[np.ndarray, " n"]
    place: Int[np.ndarray, " n"]
    places: Int[np.ndarray, " n_seq"]  # L - 1 of each chunk, 0 for an empty one
    d_sae: int
    seq: int


def onsets(codes: CodedText, chunks: Bool[np.ndarray, " n_seq"] | None = None) -> Onsets:
    """The onsets of a code, of the marked chunks only if given."""
    found = runs(codes)
    kept = found.position > 0
    if chunks is not None:
        kept &= chunks[found.chunk]
    places = np.maximum(codes.valid.sum(1).numpy() - 1, 0) * (1 if chunks is None else chunks)
    return Onsets(
        found.feature[kept],
        found.chunk[kept],
        found.position[kept],
        places,
        codes.d_sae,
        codes.valid.shape[1],
    )


@dataclass(frozen=True, eq=False)
class Patterns:
    """Patterns as parallel arrays: onset of `source`, then of `target` `lag` tokens later."""

    source: Int[np.ndarray, " patterns"]
    target: Int[np.ndarray, " patterns"]
    lag: Int[np.ndarray, " patterns"]

    def __len__(self) -> int:
        return len(self.source)

    def take(self, rows: np.ndarray) -> "Patterns":
        return Patterns(self.source[rows], self.target[rows], self.lag[rows])


@dataclass(frozen=True, eq=False)
class ShiftTest:
    """Counts of patterns and how they compare with the circular-shift null."""

    count: Int[np.ndarray, " patterns"]
    reverse: Int[np.ndarray, " patterns"]  # target first, then source at the same lag
    expected: Float[np.ndarray, " patterns"]  # mean count over all shifts
    p_value: Float[np.ndarray, " patterns"]  # P(count or more) over all shifts, exact down to 1e-12


def shift_test(events: Onsets, patterns: Patterns) -> ShiftTest:
    """Counts, expectations and exact one-sided p-values of patterns against circular shifts of the
    target in chunks.

    In a chunk of n places an onset pair (s, t) meets at exactly one of the n shifts, if s + lag <=
    n. The count of a chunk therefore has the generating function `1 + sum_d (z^m_d - 1) / n`, m_d
    the pairs meeting at shift d; chunks are independent, and the product is inverted by a Fourier
    transform.
    """
    key = events.feature * len(events.places) + events.chunk
    size = np.bincount(events.feature, minlength=events.d_sae)
    begin = np.concatenate([[0], np.cumsum(size)])
    n = len(patterns)
    count, reverse = np.zeros(n, np.int64), np.zeros(n, np.int64)
    expected, p_value = np.zeros(n), np.ones(n)
    n_pairs = size[patterns.source] * (
        1 + size[patterns.target] / max(len(events.places), 1)
    )  # if evenly spread
    for rows in _blocks(n_pairs):
        block = patterns.take(rows)
        which, one, other = _joined(events, key, begin, size, block)
        s, t, lag = events.place[one], events.place[other], block.lag[which]
        places = events.places[events.chunk[one]]
        count[rows] = np.bincount(which[t - s == lag], minlength=len(block))
        reverse[rows] = np.bincount(which[s - t == lag], minlength=len(block))
        inside = s + lag <= places
        expected[rows] = np.bincount(which[inside], 1 / places[inside], minlength=len(block))
        cell = which[inside], events.chunk[one][inside], ((s + lag - t) % places)[inside]
        p_value[rows] = _tail(*cell, events.places, count[rows])
    return ShiftTest(count, reverse, expected, p_value)


def _blocks(n_pairs: Float[np.ndarray, " patterns"]) -> Iterator[Int[np.ndarray, " rows"]]:
    """Rows in consecutive blocks of about BLOCK onsets and pairs of them."""
    block = np.cumsum(n_pairs) // BLOCK
    for b in np.unique(block):
        yield np.flatnonzero(block == b)


def _joined(
    events: Onsets, key: np.ndarray, begin: np.ndarray, size: np.ndarray, block: Patterns
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Every pair of a source onset and a target onset of one chunk: (pattern, source onset, target
    onset).
    """
    pattern, one = _ranges(begin[block.source], size[block.source])
    wanted = block.target[pattern] * len(events.places) + events.chunk[one]
    first = np.searchsorted(key, wanted, "left")
    row, other = _ranges(first, np.searchsorted(key, wanted, "right") - first)
    return pattern[row], one[row], other


def _ranges(first: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row, first[row] + 0..size[row]-1), one entry after the other."""
    row = np.repeat(np.arange(len(size)), size)
    return row, np.arange(len(row)) + (first - np.cumsum(size) + size)[row]


def _tail(
    pattern: Int[np.ndarray, " pairs"],
    chunk: Int[np.ndarray, " pairs"],
    shift: Int[np.ndarray, " pairs"],
    places: Int[np.ndarray, " n_seq"],
    count: Int[np.ndarray, " block"],
) -> Float[np.ndarray, " block"]:
    """P(total >= count) of each pattern; 1 where nothing was counted."""
    p_value = np.ones(len(count))
    if len(pattern) == 0:
        return p_value
    which, n, meets = _met(pattern, chunk, shift, places)
    kind, n, meets = _kinds(n, meets)
    often = sparse.csr_array((np.ones(len(which)), (which, kind)), shape=(len(count), len(n)))
    powers = np.arange(1, meets.shape[1] + 1)
    theta = np.geomspace(min(0.05, 70 / len(powers)), min(5.0, 700 / len(powers)), 16)
    log_moments = np.log1p((meets / n[:, None]) @ np.expm1(powers[:, None] * theta))
    log_moments = often @ log_moments
    bound = (log_moments - theta * count[:, None]).min(1)  # Chernoff: ln p is not above it
    reach = ((log_moments + 32) / theta).min(1)  # by the same, P(total >= reach) <= exp(-32)
    p_value[bound <= np.log(P_FLOOR)] = P_FLOOR
    open_rows = np.flatnonzero((count > 0) & (bound > np.log(P_FLOOR)))
    sizes = 1 << np.ceil(np.log2(np.maximum(count, reach) + 16)).astype(int)
    for size in np.unique(sizes[open_rows]):
        rows = open_rows[sizes[open_rows] == size]
        for part in np.array_split(rows, -(-len(rows) * size // CELLS)):
            used = np.unique(often[part].indices)
            mass = _distribution(often[part][:, used], n[used], meets[used], int(size))
            above = np.where(np.arange(size) >= count[part][:, None], mass, 0.0).sum(1)
            p_value[part] = np.clip(above, P_FLOOR, 1.0)
    return p_value


def _distribution(
    often: sparse.csr_array,
    n: Int[np.ndarray, " kinds"],
    meets: Int[np.ndarray, "kinds most"],
    size: int,
) -> Float[np.ndarray, "rows size"]:
    """P(total = 0, 1, ..., size - 1) of each row: the product of its kinds' generating functions,
    inverted.
    """
    powers = np.arange(1, meets.shape[1] + 1)
    circle = np.exp(2j * np.pi * np.arange(size // 2 + 1) / size)
    product = []
    for z in np.array_split(circle, -(-len(n) * len(circle) // CELLS)):
        factor = 1 + (meets / n[:, None]) @ (z ** powers[:, None] - 1)
        log_factor = np.log(np.where(np.abs(factor) < TINY, TINY, factor)).view(float)
        product.append(np.exp((often @ log_factor).view(complex)))
    return np.fft.irfft(np.concatenate(product, axis=1).conj(), size)


def _met(
    pattern: Int[np.ndarray, " pairs"],
    chunk: Int[np.ndarray, " pairs"],
    shift: Int[np.ndarray, " pairs"],
    places: Int[np.ndarray, " n_seq"],
) -> tuple[Int[np.ndarray, " group"], Int[np.ndarray, " group"], Int[np.ndarray, "group most"]]:
    """Of each pattern and chunk with pairs: pattern, places, and the number of shifts at which 1,
    2, ... pairs meet.
    """
    width = int(places.max())
    cell, meets = _tally((pattern * len(places) + chunk) * width + shift)
    group, n_cells = _tally(cell // width, ordered=True)
    most = int(meets.max())
    at = np.repeat(np.arange(len(group)), n_cells) * most + meets - 1
    return (
        group // len(places),
        places[group % len(places)],
        np.bincount(at, minlength=len(group) * most).reshape(-1, most),
    )


def _tally(keys: np.ndarray, *, ordered: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys in order and how often each occurs."""
    keys = keys if ordered else np.sort(keys)
    begin = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
    return keys[begin], np.diff(begin, append=len(keys))


def _kinds(
    n: Int[np.ndarray, " group"], meets: Int[np.ndarray, "group most"]
) -> tuple[Int[np.ndarray, " group"], Int[np.ndarray, " kinds"], Int[np.ndarray, "kinds most"]]:
    """Groups with one generating function are of one kind: the kind of each group, then n and meets
    of each kind.
    """
    label = n
    for column in meets.T:
        radix = int(column.max()) + 1
        if int(label.max()) >= 2**62 // radix:
            label = np.unique(label, return_inverse=True)[1]
        label = label * radix + column
    _, first, kind = np.unique(label, return_index=True, return_inverse=True)
    return kind, n[first], meets[first]


# ---------------------------------------------------------------- mining


@dataclass(frozen=True, eq=False)
class Transitions:
    """Patterns that passed the screen on one half of the documents, with their test on the other; p
    ascending.
    """

    patterns: Patterns
    count: Int[np.ndarray, " patterns"]  # this and all below: on the test half
    expected: Float[np.ndarray, " patterns"]  # under circular shifts
    lift: Float[np.ndarray, " patterns"]  # count / expected, 0 if the two never share a chunk
    npmi: Float[
        np.ndarray, " patterns"
    ]  # ln(p_ij / (p_i p_j)) / -ln p_ij in [-1, 1], over all places at that lag
    direction: Float[np.ndarray, " patterns"]  # (count - reverse) / (count + reverse) in [-1, 1]
    p_value: Float[np.ndarray, " patterns"]
    q_value: Float[np.ndarray, " patterns"]  # Benjamini-Hochberg over the screened patterns
    significant: Bool[np.ndarray, " patterns"]  # q <= alpha
    replication: float  # share of the screened patterns with p <= alpha on the test half; alpha if chance alone screened
    tested_chunks: Bool[np.ndarray, " n_seq"]
    alpha: float


def find_transitions(
    codes: CodedText,
    lags: Iterable[int] = range(1, 17),
    *,
    alpha: float = 0.05,
    min_count: int = 5,
    screen_level: float = 1e-3,
    max_candidates: int = 10_000,
    generator: torch.Generator | None = None,
) -> Transitions:
    """Onset-to-onset patterns, found on a random half of the documents and tested on the other.

    Candidates (at least `min_count` times, more often than rates say, the `max_candidates` of
    largest deviance) are screened at p <= `screen_level` on the first half; what is left is tested
    on the second, Benjamini-Hochberg at `alpha`. A feature is not paired with itself. No candidate
    gives empty arrays and replication 0. Lags that no chunk is long enough for have no patterns.
    The generator splits the documents (None: seed 0). Raises ValueError for a single document, or a
    lag < 1.
    """
    lags = tuple(lags)
    if not lags or min(lags) < 1:
        raise ValueError(f"transitions need lags >= 1; got {lags}")
    rank = document_rank(codes)
    n_doc = int(rank.max()) + 1
    if n_doc < 2:
        raise ValueError(
            f"transitions need at least 2 documents, to screen and to test; got {n_doc}"
        )
    order = torch.randperm(
        n_doc, generator=torch.Generator().manual_seed(0) if generator is None else generator
    )
    tested = np.isin(rank, order[n_doc // 2 :].numpy())
    screen, test = onsets(codes, ~tested), onsets(codes, tested)
    candidates = _candidates(screen, lags, min_count, max_candidates)
    kept = candidates.take(np.flatnonzero(shift_test(screen, candidates).p_value <= screen_level))
    return _tested(kept, test, tested, alpha)


def _tested(
    kept: Patterns, test: Onsets, tested: Bool[np.ndarray, " n_seq"], alpha: float
) -> Transitions:
    found = shift_test(test, kept)
    q_value = stats.false_discovery_control(found.p_value) if len(kept) else np.zeros(0)
    lift = ratio(found.count, found.expected)
    order = np.lexsort((-lift, found.p_value))
    return Transitions(
        patterns=kept.take(order),
        count=found.count[order],
        expected=found.expected[order],
        lift=lift[order],
        npmi=_npmi(test, kept, found.count)[order],
        direction=ratio(found.count - found.reverse, found.count + found.reverse)[order],
        p_value=found.p_value[order],
        q_value=q_value[order],
        significant=q_value[order] <= alpha,
        replication=float((found.p_value <= alpha).mean()) if len(kept) else 0.0,
        tested_chunks=tested,
        alpha=alpha,
    )


def _paired(events: Onsets, lag: int) -> tuple[sparse.csr_array, sparse.csr_array]:
    """0-1 matrices (places from which a lag stays in the chunk, d_sae): onsets there, and onsets
    `lag` later.
    """
    shape = (len(events.places) * events.seq, events.d_sae)
    token = events.chunk * events.seq + events.place
    sides = []
    for kept, moved in (
        (events.place + lag <= events.places[events.chunk], 0),
        (events.place > lag, lag),
    ):
        where = (token[kept] - moved, events.feature[kept])
        sides.append(sparse.csr_array((np.ones(kept.sum(), np.int32), where), shape=shape))
    return sides[0], sides[1]


def _candidates(
    events: Onsets, lags: tuple[int, ...], min_count: int, max_candidates: int
) -> Patterns:
    """Patterns of the largest deviance `2 (C ln(C/E) - C + E)` from E = n_i n_j / n, one sparse
    product a lag.
    """
    found = [np.zeros((0, 3), np.int64)]
    scores = [np.zeros(0)]
    for lag in lags:
        before, after = _paired(events, lag)
        n = np.maximum(events.places - lag, 0).sum()
        joint = sparse.coo_array(sparse.csr_array(before.T) @ after)
        i, j = (c.astype(np.int64) for c in joint.coords)
        kept = (joint.data >= max(min_count, 1)) & (i != j)
        i, j, count = i[kept], j[kept], joint.data[kept].astype(float)
        expected = before.sum(0)[i] * after.sum(0)[j] / max(n, 1)
        deviance = np.where(
            count > expected, 2 * (count * np.log(count / expected) - count + expected), 0.0
        )
        best = np.argsort(-deviance, kind="stable")[:max_candidates]
        best = best[deviance[best] > 0]
        found.append(np.stack([i[best], j[best], np.full(len(best), lag)], axis=1))
        scores.append(deviance[best])
    best = np.argsort(-np.concatenate(scores), kind="stable")[:max_candidates]
    rows = np.concatenate(found)[np.sort(best)]
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    return Patterns(rows[:, 0], rows[:, 1], rows[:, 2])


def _npmi(
    events: Onsets, patterns: Patterns, count: Int[np.ndarray, " patterns"]
) -> Float[np.ndarray, " patterns"]:
    npmi = np.full(len(patterns), -1.0)
    for lag in np.unique(patterns.lag):
        before, after = _paired(events, int(lag))
        rows = np.flatnonzero((patterns.lag == lag) & (count > 0))
        n = np.maximum(events.places - lag, 0).sum()
        both = count[rows] / n
        apart = before.sum(0)[patterns.source[rows]] * after.sum(0)[patterns.target[rows]] / n**2
        certain = both == 1
        npmi[rows] = np.where(
            certain, 1.0, np.log(both / apart) / -np.log(np.where(certain, 0.5, both))
        )
    return npmi


# ---------------------------------------------------------------- token pairs, chains, graph


def beyond_token_pairs(
    codes: CodedText, tokens: Int[Tensor, "n_seq seq"], found: Transitions
) -> tuple[Bool[np.ndarray, " patterns"], Float[np.ndarray, " patterns"]]:
    """(which significant transitions survive, p): is j's onset tied to i's even among equal pairs
    of tokens?

    Cochran-Mantel-Haenszel test on the test half, one-sided with continuity correction: the places
    (t, t + lag) are stratified by their two tokens, each stratum being a table of i's onset at t by
    j's at t + lag. A pattern that only a bigram makes has p = 1. Survivors: Benjamini-Hochberg at
    `alpha` over the significant ones.
    """
    if tokens.shape != codes.valid.shape:
        raise ValueError(
            f"beyond_token_pairs needs tokens {tuple(codes.valid.shape)}; got {tuple(tokens.shape)}"
        )
    events, ids = onsets(codes, found.tested_chunks), tokens.cpu().numpy().astype(np.int64)
    p_value = np.ones(len(found.patterns))
    for lag in np.unique(found.patterns.lag[found.significant]):
        rows = np.flatnonzero((found.patterns.lag == lag) & found.significant)
        stratum, size = _strata(events, ids, int(lag))
        before, after = _paired(events, int(lag))
        a, b = sparse.csc_array(stratum @ before), sparse.csc_array(stratum @ after)
        for part in np.array_split(rows, -(-len(rows) // 256)):
            i, j = found.patterns.source[part], found.patterns.target[part]
            p_value[part] = _mantel_haenszel(
                sparse.csr_array(a[:, i]), sparse.csr_array(b[:, j]), size, found.count[part]
            )
    survives = np.zeros(len(p_value), bool)
    if found.significant.any():
        survives[found.significant] = (
            stats.false_discovery_control(p_value[found.significant]) <= found.alpha
        )
    return survives, p_value


def _strata(
    events: Onsets, ids: Int[np.ndarray, "n_seq seq"], lag: int
) -> tuple[sparse.csr_array, np.ndarray]:
    """Indicator (strata, n_seq * seq) of the places of each pair of tokens `lag` apart, and places
    in each.
    """
    place = np.arange(events.seq)
    chunk, first = np.nonzero((place >= 1) & (place + lag <= events.places[:, None]))
    pair = ids[chunk, first] * (int(ids.max()) + 1) + ids[chunk, first + lag]
    stratum = np.unique(pair, return_inverse=True)[1]
    shape = (int(stratum.max()) + 1, ids.size)
    where = (stratum, chunk * events.seq + first)
    return sparse.csr_array((np.ones(len(pair)), where), shape=shape), np.bincount(stratum).astype(
        float
    )


def _mantel_haenszel(
    a: sparse.csr_array,
    b: sparse.csr_array,
    size: Float[np.ndarray, " strata"],
    count: Int[np.ndarray, " patterns"],
) -> Float[np.ndarray, " patterns"]:
    both = sparse.coo_array(a.multiply(b))
    stratum, pattern = both.coords
    n = size[stratum]
    n_a = np.asarray(a[stratum, pattern]).ravel()
    n_b = np.asarray(b[stratum, pattern]).ravel()
    spread = ratio(n_a * n_b * (n - n_a) * (n - n_b), n**2 * (n - 1))
    expected = np.bincount(pattern, n_a * n_b / n, minlength=len(count))
    variance = np.bincount(pattern, spread, minlength=len(count))
    z = ratio(count - expected - 0.5, np.sqrt(variance))
    return np.where(variance > 0, stats.norm.sf(z), 1.0)


def occurrences(
    codes: CodedText, source: int, target: int, lag: int
) -> tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"]]:
    """Where a pattern occurs: chunk, and position in it of the source's onset. For example
    contexts.
    """
    events = onsets(codes)
    token = events.chunk * events.seq + events.place
    first = token[(events.feature == source) & (events.place + lag <= events.places[events.chunk])]
    both = first[np.isin(first + lag, token[events.feature == target])]
    return both // events.seq, both % events.seq


@dataclass(frozen=True, eq=False)
class Chain:
    """A pattern of three or more onsets: `features[0]`, then after `lags[0]` tokens `features[1]`,
    and so on.
    """

    features: tuple[int, ...]
    lags: tuple[int, ...]
    count: int
    expected: float  # count of the chain without its last step, times the rate at which that step follows its source
    lift: float
    p_value: float  # binomial, one-sided: does the whole beginning foretell more than the last feature of it?


def chains(
    codes: CodedText, found: Transitions, *, length: int = 3, min_count: int = 5, limit: int = 1000
) -> list[Chain]:
    """Chains of `length` onsets whose steps are significant transitions, on the test half, most
    surprising first.

    Grown step by step from the `limit` most significant transitions, keeping the `limit` most
    frequent chains of each length. The null is a first-order walk. Raises ValueError if length < 3.
    """
    if length < 3:
        raise ValueError(f"chains need length >= 3; got {length}")
    events = onsets(codes, found.tested_chunks)
    token = np.arange(len(events.places)).repeat(events.seq)  # chunk of each flat token
    at = np.split(
        events.chunk * events.seq + events.place,
        np.cumsum(np.bincount(events.feature, minlength=events.d_sae)),
    )
    strong = found.patterns.take(np.flatnonzero(found.significant)[:limit])
    steps = list(
        zip(strong.source.tolist(), strong.target.tolist(), strong.lag.tolist(), strict=True)
    )

    def follow(ends: np.ndarray, target: int, lag: int) -> np.ndarray:
        ends = ends[ends + lag < len(token)]
        return ends[(token[ends] == token[ends + lag]) & np.isin(ends + lag, at[target])] + lag

    grown = [((i, j), (lag,), follow(at[i], j, lag)) for i, j, lag in steps]
    rate = {
        (i, j, lag): len(follow(at[i], j, lag)) / len(at[i]) for i, j, lag in steps if len(at[i])
    }
    result: list[Chain] = []
    for _ in range(length - 2):
        longer = [
            ((*features, j), (*gaps, lag), follow(ends, j, lag), ends)
            for features, gaps, ends in grown
            for i, j, lag in steps
            if i == features[-1] and j not in features
        ]
        longer = sorted((c for c in longer if len(c[2]) >= min_count), key=lambda c: -len(c[2]))[
            :limit
        ]
        result = [_chain(f, g, len(e), len(b), rate[f[-2], f[-1], g[-1]]) for f, g, e, b in longer]
        grown = [(f, g, e) for f, g, e, _ in longer]
    return sorted(result, key=lambda c: (c.p_value, -c.lift))


def _chain(
    features: tuple[int, ...], lags: tuple[int, ...], count: int, n_before: int, rate: float
) -> Chain:
    expected = n_before * rate
    return Chain(
        features,
        lags,
        count,
        expected,
        count / expected,
        float(stats.binom.sf(count - 1, n_before, rate)),
    )


def graph(found: Transitions, kept: Bool[np.ndarray, " patterns"] | None = None) -> nx.DiGraph:
    """Features as nodes, the kept transitions (default: the significant ones) as edges with their
    numbers.

    Of several lags between two features the one with the smallest p is drawn; `lags` has them all.
    """
    drawn = nx.DiGraph()
    for row in np.flatnonzero(found.significant if kept is None else kept):
        source, target, lag = (
            int(x[row]) for x in (found.patterns.source, found.patterns.target, found.patterns.lag)
        )
        if drawn.has_edge(source, target):
            drawn[source][target]["lags"].append(lag)
            continue
        numbers = {
            name: float(getattr(found, name)[row])
            for name in ("lift", "npmi", "direction", "p_value")
        }
        drawn.add_edge(source, target, lag=lag, lags=[lag], count=int(found.count[row]), **numbers)
    return drawn
