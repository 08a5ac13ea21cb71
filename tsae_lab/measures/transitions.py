"""Which feature tends to switch on a fixed number of tokens after which other; chains; graph.

An onset is the first token of a run. Onsets at the first token of a chunk are left out: their start
was not seen. So a chunk of L tokens is a window of n = L - 1 places. A pattern (i, j, lag) is an
onset of i and, `lag` tokens later in the same chunk, one of j. The null shifts j's onsets
circularly within each chunk, uniformly and independently: rates, bursts and topics of both features
stay, only their alignment goes. (Shuffling tokens instead calls 22 to 33 % of independent but
persistent pairs significant.) The distribution of the count under that null is computed exactly.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse, stats
from torch import Tensor

from metrics import CodedText, document_rank, quotient, ratio
from tsae_lab.measures.lifetimes import runs

P_FLOOR = 1e-12  # smaller p-values are lost in the rounding of the Fourier transform: set to this
TINY = 1e-300  # stands for 0 under a logarithm
CELLS = 4_000_000  # numbers in an intermediate table
LISTED = 2_000  # candidates of the largest deviance, all tested where others are sampled
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
    seen = runs(codes)
    counted = np.ones(len(codes.valid), bool) if chunks is None else chunks
    rows = (seen.position > 0) & counted[seen.chunk]
    places = np.maximum(codes.valid.sum(1).numpy() - 1, 0) * counted
    where = seen.feature[rows], seen.chunk[rows], seen.position[rows]
    return Onsets(*where, places, codes.d_sae, codes.valid.shape[1])


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
    """Counts, expectations and exact one-sided p-values against circular shifts of the target.

    In a chunk of n places an onset pair (s, t) meets at exactly one of the n shifts, if s + lag <=
    n. The count of a chunk therefore has the generating function `1 + sum_d (z^m_d - 1) / n`, m_d
    the pairs meeting at shift d; chunks are independent, and the product is inverted by a Fourier
    transform.
    """
    size = np.bincount(events.feature, minlength=events.d_sae)
    n = len(patterns)
    count, reverse = np.zeros(n, np.int64), np.zeros(n, np.int64)
    expected, p_value = np.zeros(n), np.ones(n)
    per_chunk = size[patterns.target] / max(len(events.places), 1)  # as if spread evenly
    for rows in _blocks(size[patterns.source] * (1 + per_chunk)):
        block = patterns.take(rows)
        pattern, source, target = _joined(events, size, block)
        s, t, lag = events.place[source], events.place[target], block.lag[pattern]
        chunk = events.chunk[source]
        places = events.places[chunk]
        count[rows] = np.bincount(pattern[t - s == lag], minlength=len(block))
        reverse[rows] = np.bincount(pattern[s - t == lag], minlength=len(block))
        inside = s + lag <= places
        expected[rows] = np.bincount(pattern[inside], 1 / places[inside], minlength=len(block))
        shift = ((s + lag - t) % places)[inside]
        p_value[rows] = _tail(pattern[inside], chunk[inside], shift, events.places, count[rows])
    return ShiftTest(count, reverse, expected, p_value)


def _blocks(n_pairs: Float[np.ndarray, " patterns"]) -> Iterator[Int[np.ndarray, " rows"]]:
    """Rows in consecutive blocks of about BLOCK onsets and pairs of them."""
    block = np.cumsum(n_pairs) // BLOCK
    for b in np.unique(block):
        yield np.flatnonzero(block == b)


def _joined(
    events: Onsets, size: Int[np.ndarray, " d_sae"], block: Patterns
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Pairs of a source and a target onset of one chunk: pattern, source onset, target onset."""
    key = events.feature * len(events.places) + events.chunk  # ascending: onsets are sorted
    begin = np.concatenate([[0], np.cumsum(size)])
    pattern, source = _ranges(begin[block.source], size[block.source])
    wanted = block.target[pattern] * len(events.places) + events.chunk[source]
    first = np.searchsorted(key, wanted, "left")
    row, target = _ranges(first, np.searchsorted(key, wanted, "right") - first)
    return pattern[row], source[row], target


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
    group, n, meets = _met(pattern, chunk, shift, places)
    kind, n_of_kind, meets_of_kind = _kinds(n, meets)
    where, shape = (group, kind), (len(count), len(n_of_kind))
    often = sparse.csr_array((np.ones(len(group)), where), shape=shape)
    bound, reach = _bounds(often, n_of_kind, meets_of_kind, count)
    p_value[bound <= np.log(P_FLOOR)] = P_FLOOR
    open_rows = np.flatnonzero((count > 0) & (bound > np.log(P_FLOOR)))
    sizes = 1 << np.ceil(np.log2(np.maximum(count, reach) + 16)).astype(int)
    for size in np.unique(sizes[open_rows]):
        alike = open_rows[sizes[open_rows] == size]
        for rows in np.array_split(alike, -(-len(alike) * size // CELLS)):
            used = np.unique(often[rows].indices)
            weight = often[rows][:, used]
            mass = _distribution(weight, n_of_kind[used], meets_of_kind[used], int(size))
            above = np.where(np.arange(size) >= count[rows][:, None], mass, 0.0).sum(1)
            p_value[rows] = np.clip(above, P_FLOOR, 1.0)
    return p_value


def _bounds(
    often: sparse.csr_array,
    n: Int[np.ndarray, " kinds"],
    meets: Int[np.ndarray, "kinds most"],
    count: Int[np.ndarray, " rows"],
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Chernoff's bounds: one of ln P(total >= count), and an r with ln P(total >= r) <= -32."""
    powers = np.arange(1, meets.shape[1] + 1)
    theta = np.geomspace(min(0.05, 70 / len(powers)), min(5.0, 700 / len(powers)), 16)
    log_moments = often @ np.log1p((meets / n[:, None]) @ np.expm1(powers[:, None] * theta))
    reach = ((log_moments + 32) / theta).min(1)
    return (log_moments - theta * count[:, None]).min(1), reach


def _distribution(
    often: sparse.csr_array,
    n: Int[np.ndarray, " kinds"],
    meets: Int[np.ndarray, "kinds most"],
    size: int,
) -> Float[np.ndarray, "rows size"]:
    """P(total = 0 .. size - 1) of each row, from the product of its kinds' generating functions."""
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
    """Per pattern and chunk: pattern, places, and at how many shifts 1, 2, ... pairs meet."""
    width = int(places.max())
    cell, meets = _tally((pattern * len(places) + chunk) * width + shift)
    group, n_cells = _tally(cell // width, ordered=True)
    most = int(meets.max())
    slot = np.repeat(np.arange(len(group)), n_cells) * most + meets - 1
    times = np.bincount(slot, minlength=len(group) * most).reshape(-1, most)
    return group // len(places), places[group % len(places)], times


def _tally(keys: np.ndarray, *, ordered: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys in order and how often each occurs."""
    keys = keys if ordered else np.sort(keys)
    begin = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
    return keys[begin], np.diff(begin, append=len(keys))


def _kinds(
    n: Int[np.ndarray, " group"], meets: Int[np.ndarray, "group most"]
) -> tuple[Int[np.ndarray, " group"], Int[np.ndarray, " kinds"], Int[np.ndarray, "kinds most"]]:
    """Groups of equal generating functions are a kind: kind of a group, n and meets of a kind."""
    label = n
    for (
        column
    ) in meets.T:  # one number per group, its columns as digits; renumbered before it wraps
        radix = int(column.max()) + 1
        if int(label.max()) >= 2**62 // radix:
            label = np.unique(label, return_inverse=True)[1]
        label = label * radix + column
    _, first, kind = np.unique(label, return_index=True, return_inverse=True)
    return kind, n[first], meets[first]


# ---------------------------------------------------------------- mining


@dataclass(frozen=True, eq=False)
class Transitions:
    """Patterns screened on one half of the documents and tested on the other; p ascending."""

    patterns: Patterns
    count: Int[np.ndarray, " patterns"]  # this and all below: on the test half
    expected: Float[np.ndarray, " patterns"]  # under circular shifts
    reverse: Int[np.ndarray, " patterns"]  # target first, then source at the same lag
    lift: Float[np.ndarray, " patterns"]  # N_ij M / (N_i N_j) on the M places; NaN if N_i N_j = 0
    npmi: Float[np.ndarray, " patterns"]  # PMI / -ln(N_ij / M), PMI = ln lift; -1 if N_ij = 0
    direction: Float[
        np.ndarray, " patterns"
    ]  # PMI_ij - PMI_ji; +-inf if one, NaN if no way is seen
    p_value: Float[np.ndarray, " patterns"]
    q_value: Float[np.ndarray, " patterns"]  # Benjamini-Hochberg over what they stand for
    significant: Bool[np.ndarray, " patterns"]  # q <= alpha
    weight: Float[np.ndarray, " patterns"]  # candidates that each stands for: 1, or more if drawn
    n_candidates: int
    cut_frac: float | None  # share of the candidates that was not drawn; None without one
    replication: float | None  # share of the screened with p <= alpha; alpha if chance alone did
    tested_chunks: Bool[np.ndarray, " n_seq"]
    alpha: float


def find_transitions(
    codes: CodedText,
    lags: Iterable[int] = range(1, 17),
    *,
    alpha: float = 0.05,
    min_count: int = 3,
    screen_level: float = 1e-3,
    max_candidates: int = 10_000,
    generator: torch.Generator | None = None,
) -> Transitions:
    """Onset-to-onset patterns, found on a random half of the documents and tested on the other.

    Candidates (at least `min_count` times, above what the rates say by a deviance that chance
    exceeds with p <= `screen_level`) are screened at p <= `screen_level` against shifts on the
    first half; what is left is tested on the second, Benjamini-Hochberg at `alpha`. Of more than
    `max_candidates` the `LISTED` of the largest deviance are taken, so that the strongest can be
    listed, and a random sample of the others, each of which stands for many: weighted shares and
    counts do not depend on the size of the sample. A feature is not paired with itself. No
    candidate gives empty arrays. The generator splits the documents and draws the sample (None:
    seed 0). Raises ValueError for a single document and for numbers out of range.
    """
    lags = tuple(lags)
    if not lags or min(lags) < 1 or len(set(lags)) < len(lags):
        raise ValueError(f"transitions need lags >= 1, each once; got {lags}")
    if not (0 < alpha < 1 and 0 < screen_level <= 1 and max_candidates >= 2 and min_count >= 1):
        got = f"{alpha}, {screen_level}, {max_candidates}, {min_count}"
        needs = "0 < alpha < 1, 0 < screen_level <= 1, max_candidates >= 2, min_count >= 1"
        raise ValueError(f"transitions need {needs}; got {got}")
    rank = document_rank(codes)
    n_doc = int(rank.max()) + 1
    if n_doc < 2:
        raise ValueError(f"transitions need at least 2 documents, a half to test on; got {n_doc}")
    seeded = torch.Generator().manual_seed(0) if generator is None else generator
    order = torch.randperm(n_doc, generator=seeded)
    tested = np.isin(rank, order[n_doc // 2 :].numpy())
    screen, test = onsets(codes, ~tested), onsets(codes, tested)
    candidates, deviance = _candidates(screen, lags, min_count, -2 * np.log(screen_level))
    weight = _weights(deviance, max_candidates, seeded)
    rows = np.flatnonzero(weight)
    cut = 1 - len(rows) / len(weight) if len(weight) else None
    rows = rows[shift_test(screen, candidates.take(rows)).p_value <= screen_level]
    about = {"n_candidates": len(weight), "cut_frac": cut, "tested_chunks": tested, "alpha": alpha}
    return _tested(candidates.take(rows), test, weight[rows], about)


def _weights(
    deviance: Float[np.ndarray, " patterns"], most: int, generator: torch.Generator
) -> Float[np.ndarray, " patterns"]:
    """How many candidates each stands for, 0 if it is not taken: `most` are, if there are more."""
    if len(deviance) <= most:
        return np.ones(len(deviance))
    weight = np.zeros(len(deviance))
    first, rest = np.split(np.argsort(-deviance, kind="stable"), [min(LISTED, most // 2)])
    n = most - len(first)
    drawn = rest[torch.randperm(len(rest), generator=generator)[:n].numpy()]
    weight[first], weight[drawn] = 1.0, len(rest) / n
    return weight


def _tested(
    screened: Patterns, test: Onsets, weight: Float[np.ndarray, " n"], about: dict[str, Any]
) -> Transitions:
    shifts = shift_test(test, screened)
    q_value = _false_discoveries(shifts.p_value, weight)
    arrays = _associations(test, screened, shifts) | {
        "count": shifts.count,
        "reverse": shifts.reverse,
        "expected": shifts.expected,
        "p_value": shifts.p_value,
        "q_value": q_value,
        "significant": q_value <= about["alpha"],
        "weight": weight,
    }
    order = np.lexsort((-arrays["lift"], shifts.p_value))
    replicates = weight @ (shifts.p_value <= about["alpha"])
    return Transitions(
        patterns=screened.take(order),
        **{name: values[order] for name, values in arrays.items()},
        replication=float(replicates / weight.sum()) if len(weight) else None,
        **about,
    )


def _false_discoveries(
    p_value: Float[np.ndarray, " patterns"], weight: Float[np.ndarray, " patterns"]
) -> Float[np.ndarray, " patterns"]:
    """Benjamini-Hochberg's q-values, as if each p-value were there `weight` times."""
    order = np.argsort(p_value, kind="stable")
    times = np.cumsum(weight[order])
    bound = p_value[order] * times[-1:] / times
    q_value = np.empty(len(p_value))
    q_value[order] = np.minimum.accumulate(bound[::-1])[::-1]
    return np.minimum(q_value, 1.0)


def _paired(events: Onsets, lag: int) -> tuple[sparse.csr_array, sparse.csr_array]:
    """0-1 matrices (n_seq * seq, d_sae) of onsets, and of onsets `lag` later, both in the chunk."""
    shape = (len(events.places) * events.seq, events.d_sae)
    token = events.chunk * events.seq + events.place
    sides = []
    early = events.place + lag <= events.places[events.chunk]
    for rows, moved in ((early, 0), (events.place > lag, lag)):
        where = token[rows] - moved, events.feature[rows]
        sides.append(sparse.csr_array((np.ones(rows.sum(), np.int32), where), shape=shape))
    return sides[0], sides[1]


def _candidates(
    events: Onsets, lags: tuple[int, ...], min_count: int, least: float
) -> tuple[Patterns, Float[np.ndarray, " patterns"]]:
    """Patterns above `E = n_i n_j / n` by the deviance `2 (C ln(C/E) - C + E)`, and their deviance.

    By Chernoff's bound chance at these rates exceeds a deviance of d with `p <= exp(-d / 2)`.
    """
    tables, scores = [np.zeros((0, 3), np.int64)], [np.zeros(0)]
    for lag in lags:
        before, after = _paired(events, lag)
        n = np.maximum(events.places - lag, 0).sum()
        joint = sparse.coo_array(sparse.csr_array(before.T) @ after)
        i, j = (c.astype(np.int64) for c in joint.coords)
        frequent = (joint.data >= max(min_count, 1)) & (i != j)
        i, j, count = i[frequent], j[frequent], joint.data[frequent].astype(float)
        expected = before.sum(0)[i] * after.sum(0)[j] / max(n, 1)
        deviance = 2 * (count * np.log(count / expected) - count + expected)
        above = (count > expected) & (deviance >= least)
        tables.append(np.stack([i[above], j[above], np.full(above.sum(), lag)], axis=1))
        scores.append(deviance[above])
    rows = np.concatenate(tables)
    order = np.argsort(rows[:, 0], kind="stable")
    return Patterns(*rows[order].T), np.concatenate(scores)[order]


def _associations(
    events: Onsets, patterns: Patterns, counts: ShiftTest
) -> dict[str, Float[np.ndarray, " patterns"]]:
    """Lift, NPMI and direction of the counts, on the places where both onsets can be seen."""
    both, lift, reverse_lift = np.zeros((3, len(patterns)))
    for lag in np.unique(patterns.lag):
        rows = np.flatnonzero(patterns.lag == lag)
        i, j = patterns.source[rows], patterns.target[rows]
        before, after = (side.sum(0).astype(float) for side in _paired(events, int(lag)))
        n = max(int(np.maximum(events.places - lag, 0).sum()), 1)
        both[rows] = counts.count[rows] / n
        lift[rows] = quotient(counts.count[rows] * n, before[i] * after[j])
        reverse_lift[rows] = quotient(counts.reverse[rows] * n, before[j] * after[i])
    with np.errstate(divide="ignore", invalid="ignore"):  # ln 0 and 0 / 0
        pmi = np.log(lift)
        npmi = np.where(both == 1, 1.0, pmi / -np.log(both))  # -ln 1 = 0: 1 by convention
        direction = pmi - np.log(reverse_lift)
    npmi = np.where((both == 0) & np.isfinite(lift), -1.0, npmi)
    return {"lift": lift, "npmi": npmi, "direction": direction}


# ---------------------------------------------------------------- token pairs, chains, graph


def beyond_token_pairs(
    codes: CodedText, tokens: Int[Tensor, "n_seq seq"], mined: Transitions
) -> tuple[
    Bool[np.ndarray, " patterns"], Float[np.ndarray, " patterns"], Float[np.ndarray, " patterns"]
]:
    """Which significant transitions hold among equal pairs of tokens too; their p-values and lifts.

    Cochran-Mantel-Haenszel test on the test half, one-sided with continuity correction: the places
    (t, t + lag) are stratified by their two tokens, each stratum being a table of i's onset at t by
    j's at t + lag. The lift is the count over `sum n_i n_j / n` of the strata; a pattern that only
    a bigram makes has p = 1 and lift 1. Survivors: Benjamini-Hochberg at `alpha` over the
    significant ones; what is not significant is not tested (p = 1, lift NaN).
    """
    if tokens.shape != codes.valid.shape:
        shapes = f"{tuple(codes.valid.shape)}; got {tuple(tokens.shape)}"
        raise ValueError(f"beyond_token_pairs needs tokens {shapes}")
    events, ids = onsets(codes, mined.tested_chunks), tokens.cpu().numpy().astype(np.int64)
    strong, p_value = mined.significant, np.ones(len(mined.patterns))
    lift = np.full(len(p_value), np.nan)
    for lag in np.unique(mined.patterns.lag[strong]):
        of_lag = np.flatnonzero((mined.patterns.lag == lag) & strong)
        stratum, size = _strata(events, ids, int(lag))
        before, after = _paired(events, int(lag))
        a, b = sparse.csc_array(stratum @ before), sparse.csc_array(stratum @ after)
        for rows in np.array_split(of_lag, -(-len(of_lag) // 256)):  # bounds memory
            i, j = mined.patterns.source[rows], mined.patterns.target[rows]
            sides = sparse.csr_array(a[:, i]), sparse.csr_array(b[:, j])
            p_value[rows], expected = _mantel_haenszel(*sides, size, mined.count[rows])
            lift[rows] = ratio(mined.count[rows], expected)
    survives = np.zeros(len(p_value), bool)
    q_value = _false_discoveries(p_value[strong], mined.weight[strong])
    survives[strong] = q_value <= mined.alpha
    return survives, p_value, lift


def _strata(
    events: Onsets, ids: Int[np.ndarray, "n_seq seq"], lag: int
) -> tuple[sparse.csr_array, np.ndarray]:
    """Indicator (strata, n_seq * seq) of the places of each pair of tokens, and places in each."""
    place = np.arange(events.seq)
    chunk, first = np.nonzero((place >= 1) & (place + lag <= events.places[:, None]))
    pair = ids[chunk, first] * (int(ids.max()) + 1) + ids[chunk, first + lag]
    stratum = np.unique(pair, return_inverse=True)[1]
    shape = (int(stratum.max()) + 1, ids.size)
    where = (stratum, chunk * events.seq + first)
    size = np.bincount(stratum).astype(float)
    return sparse.csr_array((np.ones(len(pair)), where), shape=shape), size


def _mantel_haenszel(
    a: sparse.csr_array,
    b: sparse.csr_array,
    size: Float[np.ndarray, " strata"],
    count: Int[np.ndarray, " patterns"],
) -> tuple[Float[np.ndarray, " patterns"], Float[np.ndarray, " patterns"]]:
    """p-value and expected count of each pattern."""
    both = sparse.coo_array(a.multiply(b))
    stratum, pattern = both.coords
    n = size[stratum]
    n_a = np.asarray(a[stratum, pattern]).ravel()
    n_b = np.asarray(b[stratum, pattern]).ravel()
    spread = ratio(n_a * n_b * (n - n_a) * (n - n_b), n**2 * (n - 1))
    expected = np.bincount(pattern, n_a * n_b / n, minlength=len(count))
    variance = np.bincount(pattern, spread, minlength=len(count))
    z = ratio(count - expected - 0.5, np.sqrt(variance))
    return np.where(variance > 0, stats.norm.sf(z), 1.0), expected


def occurrences(
    codes: CodedText, source: int, target: int, lag: int
) -> tuple[Int[np.ndarray, " times"], Int[np.ndarray, " times"]]:
    """Where a pattern occurs: chunk, and position in it of the source's onset."""
    events = onsets(codes)
    token = events.chunk * events.seq + events.place
    first = token[(events.feature == source) & (events.place + lag <= events.places[events.chunk])]
    both = first[np.isin(first + lag, token[events.feature == target])]
    return both // events.seq, both % events.seq


@dataclass(frozen=True, eq=False)
class Chain:
    """Three or more onsets: `features[0]`, after `lags[0]` tokens `features[1]`, and so on."""

    features: tuple[int, ...]
    lags: tuple[int, ...]
    count: int
    expected: float  # count without the last step, times the rate at which that step is taken
    lift: float
    p_value: float  # binomial, one-sided: does the whole beginning foretell more than its last?


def chains(
    codes: CodedText, mined: Transitions, *, length: int = 3, min_count: int = 5, limit: int = 1000
) -> list[Chain]:
    """Chains of `length` onsets whose steps are significant transitions, most surprising first.

    Counted on the test half; grown step by step from the `limit` most significant transitions,
    keeping the `limit` most frequent chains of each length. The null is a first-order walk. Raises
    ValueError if length < 3.
    """
    if length < 3:
        raise ValueError(f"chains need length >= 3; got {length}")
    events = onsets(codes, mined.tested_chunks)
    chunk = np.arange(len(events.places)).repeat(events.seq)  # of each place, counted through
    size = np.bincount(events.feature, minlength=events.d_sae)
    places = np.split(events.chunk * events.seq + events.place, np.cumsum(size))  # by feature

    def follow(ends: np.ndarray, target: int, lag: int) -> np.ndarray:
        inside = ends[ends + lag < len(chunk)]
        together = chunk[inside] == chunk[inside + lag]
        return inside[together & np.isin(inside + lag, places[target])] + lag

    p = mined.patterns.take(np.flatnonzero(mined.significant)[:limit])
    steps = list(zip(p.source.tolist(), p.target.tolist(), p.lag.tolist(), strict=True))
    grown = [((i, j), (lag,), follow(places[i], j, lag)) for i, j, lag in steps]
    rate = {(*f, *g): len(ends) / max(int(size[f[0]]), 1) for f, g, ends in grown}
    result: list[Chain] = []
    for _ in range(length - 2):
        longer = [
            ((*features, j), (*gaps, lag), follow(ends, j, lag), len(ends))
            for features, gaps, ends in grown
            for i, j, lag in steps
            if i == features[-1] and j not in features
        ]
        frequent = [grown_on for grown_on in longer if len(grown_on[2]) >= min_count]
        frequent = sorted(frequent, key=lambda grown_on: -len(grown_on[2]))[:limit]
        result = [_chain(f, g, len(e), n, rate[f[-2], f[-1], g[-1]]) for f, g, e, n in frequent]
        grown = [(features, gaps, ends) for features, gaps, ends, _ in frequent]
    return sorted(result, key=lambda chain: (chain.p_value, -chain.lift))


def _chain(
    features: tuple[int, ...], lags: tuple[int, ...], count: int, n_before: int, rate: float
) -> Chain:
    expected = n_before * rate
    p_value = float(stats.binom.sf(count - 1, n_before, rate))
    return Chain(features, lags, count, expected, count / expected, p_value)


def graph(mined: Transitions, shown: Bool[np.ndarray, " patterns"] | None = None) -> nx.DiGraph:
    """Features as nodes, transitions (default: the significant ones) as edges with their numbers.

    Of several lags between two features the one with the smallest p is drawn; `lags` has them all.
    """
    drawn, p = nx.DiGraph(), mined.patterns
    for row in np.flatnonzero(mined.significant if shown is None else shown):
        source, target, lag = (int(x[row]) for x in (p.source, p.target, p.lag))
        if drawn.has_edge(source, target):
            drawn[source][target]["lags"].append(lag)
            continue
        names = ("lift", "npmi", "direction", "p_value")
        numbers = {name: float(getattr(mined, name)[row]) for name in names}
        drawn.add_edge(source, target, lag=lag, lags=[lag], count=int(mined.count[row]), **numbers)
    return drawn
