"""What edits do to the language model: the change of logit(good) - logit(bad) at the verb, and its
controls.

A case is a text up to its verb, the verb's good and bad form, and a twin that differs in the
subject's number. The *full patch* puts the twin's residual stream in place of the text's: 1 on the
scale of normalised effects.
"""

import collections
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

import metrics
from probes import Item
from tsae import Codes, Sae
from tsae_lab.data import language_model
from tsae_lab.data.language_model import Above, LanguageModel, residual
from tsae_lab.data.texts import Tokens
from tsae_lab.measures import lifetimes
from tsae_lab.measures.interventions import (
    Edit,
    ablate,
    codes_of,
    intervene,
    steer,
    swap,
    swap_code,
    values_of,
)

SPAN = 0  # in place of an offset: all positions from the subject to the verb


@dataclass(frozen=True, kw_only=True)
class Case:
    """A text that ends before its verb, and its twin of the other number."""

    text: str
    twin: str
    good: str
    """the verb's form for `text`, with the space before it"""
    bad: str
    label: int
    """1: the subject is plural"""
    group: str
    """lemma of the subject: never on both sides of a split"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Cases of one length, with their residual stream at the hook."""

    ids: Int[Tensor, "batch total"]  # with the prefix
    hidden: Float[Tensor, "batch total d_in"]  # in the model's dtype
    twin: Float[Tensor, "batch seq d_in"]  # the twin's, of the text alone
    good: Int[Tensor, " batch"]
    bad: Int[Tensor, " batch"]
    label: Int[Tensor, " batch"]
    subject: Int[Tensor, " batch"]  # first position at which text and twin differ

    @property
    def seq(self) -> int:
        return self.twin.shape[1]

    @property
    def x(self) -> Float[Tensor, "batch seq d_in"]:
        """The residual stream of the text."""
        return self.hidden[:, -self.seq :].float()


# a batch and where the edit is made (variants batch seq) -> what each variant adds to x (variants batch seq d_in)
Change = Callable[[Batch, Tensor], Tensor]


# ---------------------------------------------------------------------------------------------- cases


def agreement_cases(items: Sequence[Item], forms: tuple[str, str] = (" is", " are")) -> list[Case]:
    """Cases of both numbers from the items of `tasks.agreement`; `forms` are the verb's singular
    and plural.
    """
    twins: dict[tuple, dict[int, Item]] = collections.defaultdict(dict)
    for item in items:
        key = (
            item.frame,
            item.group,
            tuple(sorted(item.factors.items())),
            item.text.split(" ", 2)[2],
        )
        twins[key][item.label] = item
    return [
        Case(
            text=pair[n].text,
            twin=pair[1 - n].text,
            good=forms[n],
            bad=forms[1 - n],
            label=n,
            group=pair[n].group,
        )
        for pair in twins.values()
        if len(pair) == 2
        for n in (0, 1)
    ]


def split_cases(
    cases: Sequence[Case], n_train: int, n_test: int, seed: int = 0
) -> tuple[list[Case], list[Case]]:
    """About so many cases to choose features on and to measure on: whole twin pairs, no lemma on
    both sides.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = sorted({case.group for case in cases})
    order = torch.randperm(len(groups), generator=generator).tolist()
    train_groups = {groups[i] for i in order[: len(groups) // 2]}

    def some(wanted: bool, n: int) -> list[Case]:
        pairs = collections.defaultdict(list)
        for case in cases:
            if (case.group in train_groups) == wanted:
                pairs[tuple(sorted((case.text, case.twin)))].append(case)
        kept = [
            list(pairs.values())[i]
            for i in torch.randperm(len(pairs), generator=generator).tolist()
        ]
        return [case for pair in kept[: n // 2] for case in pair]

    return some(True, n_train), some(False, n_test)


def batches(
    lm: LanguageModel, hook: str, cases: Sequence[Case], *, need_twin: bool = True
) -> tuple[list[Batch], dict[str, int]]:
    """The cases by length, and how many were skipped, by reason. Without `need_twin`, a text may be
    its own twin.

    Skipped: good and bad are equal, or not one token each; text and twin are equal or differ in
    length; a text that the model cannot take. ValueError where nothing is left.
    """
    by_length: dict[int, list[tuple]] = collections.defaultdict(list)
    skipped: collections.Counter[str] = collections.Counter()
    for case in cases:
        text, twin, good, bad = (
            language_model.token_ids(lm, words)
            for words in (case.text, case.twin, case.good, case.bad)
        )
        reason = _refusal(lm, text, twin, good, bad, need_twin)
        if reason:
            skipped[reason] += 1
        else:
            subject = next(
                (i for i, (a, b) in enumerate(zip(text, twin, strict=True)) if a != b), 0
            )
            by_length[len(text)].append((text, twin, good[0], bad[0], case.label, subject))
    if not by_length:
        raise ValueError(
            f"none of {len(cases)} texts can be measured: {', '.join(skipped) or 'none was given'}"
        )
    return [_batch(lm, hook, rows) for _, rows in sorted(by_length.items())], dict(skipped)


def _refusal(
    lm: LanguageModel, text: list[int], twin: list[int], good: list[int], bad: list[int], need: bool
) -> str:
    if good == bad or len(good) != 1 or len(bad) != 1:
        return "good and bad forms are equal or not one token each"
    if len(text) != len(twin):
        return "text and twin differ in tokens"
    if not text or (need and text == twin):
        return "text and twin are equal, or empty"
    return "too long for the model" if len(text) + len(lm.prefix) > lm.max_seq else ""


def _batch(lm: LanguageModel, hook: str, rows: Sequence[tuple]) -> Batch:
    texts, twins, good, bad, label, subject = zip(*rows, strict=True)
    ids, twin_ids = (
        torch.tensor([[*lm.prefix, *text] for text in part]) for part in (texts, twins)
    )
    twin = residual(lm, twin_ids, hook)[:, len(lm.prefix) :].float()
    numbers = (torch.tensor(part) for part in (good, bad, label, subject))
    names = ("good", "bad", "label", "subject")
    return Batch(
        ids=ids, hidden=residual(lm, ids, hook), twin=twin, **dict(zip(names, numbers, strict=True))
    )


def first_cases(found: Sequence[Batch], n: int) -> list[Batch]:
    """About `n` cases, from the lengths that most cases have: few calls of the model for many
    edits.
    """
    taken: list[Batch] = []
    for batch in sorted(found, key=lambda batch: -len(batch.ids)):
        left = n - sum(len(part.ids) for part in taken)
        if left > 0:
            taken.append(Batch(**{name: value[:left] for name, value in vars(batch).items()}))
    return taken


# ---------------------------------------------------------------------------------------------- effects


def where(batch: Batch, offset: int) -> Bool[Tensor, "batch seq"]:
    """The position `offset` (-1: the last before the verb) of each text, or, for SPAN, all from the
    subject on.
    """
    place = torch.arange(batch.seq)
    at = (
        place >= batch.subject[:, None]
        if offset == SPAN
        else (place == batch.seq + offset).expand(len(batch.ids), -1)
    )
    return at.to(batch.twin.device)


def logit_differences(
    above: Above, batch: Batch, deltas: Float[Tensor, "variants batch seq d_in"]
) -> Float[Tensor, "variants batch"]:
    """logit(good) - logit(bad) at the verb, with each of `deltas` added to the text's residual
    stream.
    """
    n_rows = max(1, language_model.FORWARD_TOKENS // batch.ids.shape[1])
    variant, row = (
        i.flatten() for i in torch.meshgrid(*map(torch.arange, deltas.shape[:2]), indexing="ij")
    )
    out = []
    for at in range(0, len(row), n_rows):
        v, r = variant[at : at + n_rows], row[at : at + n_rows]
        hidden = batch.hidden[r]
        text = batch.x[r] + deltas[v, r].to(hidden.device)
        hidden = torch.cat([hidden[:, : -batch.seq], text.to(hidden.dtype)], 1)
        logits = above(batch.ids[r], hidden, 1)[:, -1].float().cpu()
        out.append(
            (logits.gather(1, batch.good[r, None]) - logits.gather(1, batch.bad[r, None]))[:, 0]
        )
    return torch.cat(out).view(deltas.shape[:2])


def profile(
    above: Above,
    found: Sequence[Batch],
    change: Change,
    offsets: Sequence[int],
    clean: Float[np.ndarray, " cases"] | None = None,
) -> Float[np.ndarray, "offsets cases"]:
    """Change of logit(good) - logit(bad) when `change` is made at each offset; NaN where a text is
    too short.

    `clean` is what `clean_differences` has found for these batches, to save finding it again.
    """
    clean = clean_differences(above, found) if clean is None else clean
    columns = []
    for batch in found:
        reached = [offset for offset in offsets if -batch.seq <= offset]
        deltas = change(batch, torch.stack([where(batch, offset) for offset in reached]))
        column = np.full((len(offsets), len(batch.ids)), np.nan)
        column[[offsets.index(offset) for offset in reached]] = logit_differences(
            above, batch, deltas
        ).numpy()
        columns.append(column)
    return np.concatenate(columns, 1) - clean


def clean_differences(above: Above, found: Sequence[Batch]) -> Float[np.ndarray, " cases"]:
    """logit(good) - logit(bad) of the model as it is; above 0 it is right."""
    parts = [
        logit_differences(above, batch, torch.zeros(1, *batch.twin.shape))[0] for batch in found
    ]
    return torch.cat(parts).numpy()


def normalised(
    effects: Float[np.ndarray, "*rows cases"], patch: Float[np.ndarray, " cases"]
) -> Float[np.ndarray, "*rows"]:
    """Summed effect over the summed effect of the full patch, over the cases that are not NaN; NaN
    where none is.
    """
    seen = ~np.isnan(effects)
    bottom = np.where(seen, patch, 0.0).sum(-1)
    return np.where(
        bottom != 0, np.nansum(effects, -1) / np.where(bottom != 0, bottom, 1.0), np.nan
    )


def normalised_interval(
    effects: Float[np.ndarray, " cases"],
    patch: Float[np.ndarray, " cases"],
    seed: int = 0,
    n_boot: int = 1000,
) -> tuple[float, float]:
    """95 % interval of `normalised` by bootstrap over the cases that are not NaN."""
    seen = ~np.isnan(effects)
    rows = np.random.default_rng(seed).integers(max(seen.sum(), 1), size=(n_boot, int(seen.sum())))
    ratios = effects[seen][rows].sum(1) / patch[seen][rows].sum(1)
    return float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))


# ---------------------------------------------------------------------------------------------- changes


def full_patch(
    batch: Batch, at: Bool[Tensor, "variants batch seq"]
) -> Float[Tensor, "variants batch seq d_in"]:
    """The twin's residual stream in place of the text's."""
    return torch.where(at[..., None], batch.twin - batch.x, 0.0)


def change_by(sae: Sae, make: Callable[[Batch, Tensor], Edit], *, propagated: bool) -> Change:
    """What the edit that `make(batch, at)` gives adds to x; all variants of a batch in one call."""

    def change(batch: Batch, at: Tensor) -> Tensor:
        x = batch.x.expand(len(at), -1, -1, -1).flatten(0, 1)
        return intervene(sae, x, make(batch, at.flatten(0, 1)), propagated=propagated)[0].view(
            *at.shape, -1
        )

    return change


def twin_codes(sae: Sae, batch: Batch, at: Bool[Tensor, "rows seq"]) -> Codes:
    """The twins' codes, once for each variant in `at`."""
    return _repeated(codes_of(sae, batch.twin), at)


def swap_features(sae: Sae, features: Int[Tensor, " n"], *, propagated: bool) -> Change:
    """The features have the values of the twin's code."""
    return change_by(
        sae, lambda b, at: swap(features, at, twin_codes(sae, b, at)), propagated=propagated
    )


def swap_codes(sae: Sae, *, propagated: bool) -> Change:
    """The whole code is the twin's."""
    return change_by(
        sae, lambda b, at: swap_code(at, twin_codes(sae, b, at)), propagated=propagated
    )


def ablate_features(sae: Sae, features: Int[Tensor, " n"], *, propagated: bool) -> Change:
    """The features are off."""
    return change_by(sae, lambda _, at: ablate(features, at), propagated=propagated)


def steer_features(
    sae: Sae, features: Int[Tensor, " n"], amounts: Float[Tensor, "variants n"], *, propagated: bool
) -> Change:
    """The features get more: in each variant its own amounts."""

    def make(batch: Batch, at: Tensor) -> Edit:
        return steer(features, at, amounts.repeat_interleave(len(batch.ids), 0)[:, None])

    return change_by(sae, make, propagated=propagated)


def matched_push(
    sae: Sae,
    features: Int[Tensor, " n"],
    stand_ins: Int[Tensor, " n"],
    pushed: Callable[[Batch], Tensor],
    *,
    propagated: bool,
) -> Change:
    """A control of `swap_features`: what it adds of each feature's contribution, added of its
    stand-in instead.

    `pushed` gives what the swap adds to the features of a batch (batch seq n): `swap_amounts`,
    cached by the caller.
    """
    norm = sae.params.static.W_dec.norm(dim=1)
    scale = norm[features] / norm[stand_ins].clamp(min=1e-12)

    def make(batch: Batch, at: Tensor) -> Edit:
        amount = (pushed(batch) * scale).repeat(len(at) // len(batch.ids), 1, 1)
        return steer(stand_ins, at, amount)

    return change_by(sae, make, propagated=propagated)


def swap_amounts(
    sae: Sae, features: Int[Tensor, " n"], batch: Batch
) -> Float[Tensor, "batch seq n"]:
    """The twin's value of each feature minus the text's own."""
    named = features.expand(len(batch.ids), batch.seq, -1).to(batch.twin.device)
    return values_of(codes_of(sae, batch.twin), named) - values_of(codes_of(sae, batch.x), named)


def _repeated(codes: Codes, at: Tensor) -> Codes:
    n = len(at) // len(codes.vals)
    return Codes(codes.vals.repeat(n, 1, 1), codes.idx.repeat(n, 1, 1))


def random_direction(change: Change, seed: int) -> Change:
    """A control: at every position, a vector of random direction with the norm of what `change`
    adds.
    """
    generator = torch.Generator().manual_seed(seed)

    def control(batch: Batch, at: Tensor) -> Tensor:
        delta = change(batch, at)
        noise = torch.randn(delta.shape, generator=generator).to(delta)
        return noise / noise.norm(dim=-1, keepdim=True) * delta.norm(dim=-1, keepdim=True)

    return control


def elsewhere(change: Change) -> Change:
    """A control: what `change` adds in all, put at the position before the subject, where nothing
    is about number.

    Where the text begins with the subject, nothing is added.
    """

    def control(batch: Batch, at: Tensor) -> Tensor:
        place = (
            torch.arange(batch.seq, device=at.device) == batch.subject.to(at.device)[:, None] - 1
        )
        return change(batch, at).sum(2, keepdim=True) * place[None, :, :, None]

    return control


# ---------------------------------------------------------------------------------------------- features


def number_features(
    sae: Sae, found: Sequence[Batch]
) -> tuple[Int[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """All features, those that tell the numbers apart first, and plural minus singular mean of
    each, by feature.

    The mean contribution (value times norm of the decoder row) from the subject to the verb, class
    by class.
    """
    sums, counts = torch.zeros(2, sae.d_sae), torch.zeros(2)
    norm = sae.params.static.W_dec.norm(dim=1).cpu()
    for batch in found:
        codes, at = codes_of(sae, batch.x), where(batch, SPAN)
        vals = codes.vals * at[..., None] / at.sum(1)[:, None, None]
        row = batch.label[:, None, None].expand(codes.idx.shape)
        sums.index_put_(
            (row.flatten(), codes.idx.flatten().cpu()), vals.flatten().cpu(), accumulate=True
        )
        counts.index_add_(0, batch.label, torch.ones(len(batch.label)))
    if not counts.all():
        raise ValueError("number_features needs cases of both numbers; got one")
    difference = (sums[1] / counts[1] - sums[0] / counts[0]) * norm
    return difference.abs().argsort(descending=True, stable=True), difference


def matched_features(
    rates: Float[Tensor, " d_sae"],
    features: Int[Tensor, " n"],
    n_draws: int,
    *,
    seed: int,
    near: int = 300,
) -> Int[Tensor, "n_draws n"]:
    """For each feature, stand-ins drawn from the `near` living features closest to it in log firing
    rate.

    A draw names no feature twice and none of `features`; for one feature, all draws differ while
    enough are near.
    """
    generator = torch.Generator().manual_seed(seed)
    taken = torch.zeros(len(rates), dtype=torch.bool)
    taken[features] = True
    alive = ((rates > 0) & ~taken).nonzero()[:, 0]
    if len(alive) < len(features):
        raise ValueError(
            f"{len(features)} stand-ins are needed; {len(alive)} other features are ever active"
        )
    columns: list[Tensor] = []
    for feature in features:
        distance = (rates[alive].log() - rates[feature].clamp(min=1e-9).log()).abs()
        pool = alive[distance.argsort(stable=True)[: max(near, len(features))]]
        shuffled = [
            pool[torch.randperm(len(pool), generator=generator)]
            for _ in range(-(-n_draws // len(pool)))
        ]
        columns.append(torch.cat(shuffled)[:n_draws])
    out = torch.stack(columns, 1)
    for draw in out:
        while len(draw.unique()) < len(draw):
            twice = next(i for i in range(len(draw)) if draw[i] in draw[:i])
            draw[twice] = alive[torch.randint(len(alive), (), generator=generator)]
    return out


TEXT_ROWS = 16  # texts a call: full logits are wide


@torch.no_grad()
def kl_nats(
    clean: Float[Tensor, "batch seq vocab"], edited: Float[Tensor, "batch seq vocab"]
) -> Float[Tensor, "batch seq"]:
    """`KL(clean || edited)` of the next token at each position, in nats; exactly 0 where the logits
    are equal.
    """
    log_p, log_q = clean.float().log_softmax(-1), edited.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def edited_kl(
    above: Above,
    sae: Sae,
    ids: Int[Tensor, "batch total"],
    hidden: Float[Tensor, "batch total d_in"],
    edits: Sequence[tuple[Edit, bool]],
    keep: int,
) -> list[Float[Tensor, "batch keep"]]:
    """KL in nats at the last `keep` positions of texts, with each edit (and whether it propagates)
    in force.
    """
    seq = edits[0][0].at.shape[1]
    x, clean, out = hidden[:, -seq:].float(), above(ids, hidden, keep), []
    for edit, propagated in edits:
        text = (x + intervene(sae, x, edit, propagated=propagated)[0]).to(hidden.dtype)
        out.append(kl_nats(clean, above(ids, torch.cat([hidden[:, :-seq], text], 1), keep)).cpu())
    return out


def unrelated_kl(
    lm: LanguageModel,
    above: Above,
    hook: str,
    sae: Sae,
    sets: Sequence[Int[Tensor, " _"]],
    tokens: Tokens,
    rows: Sequence[int],
    *,
    propagated: bool,
) -> list[float]:
    """Nats per token when a set of features is off at every token of these sequences: what the edit
    does besides.
    """
    totals, count = np.zeros(len(sets)), 0
    for at in range(0, len(rows), TEXT_ROWS):
        part = torch.as_tensor(list(rows[at : at + TEXT_ROWS]))
        ids, valid = tokens.ids[part].long(), tokens.valid[part]
        edits = [(ablate(features, valid.to(lm.device)), propagated) for features in sets]
        found = edited_kl(above, sae, ids, residual(lm, ids, hook), edits, valid.shape[1])
        totals += [float(kl[valid].double().sum()) for kl in found]
        count += int(valid.sum())
    return (totals / count).tolist()


# ---------------------------------------------------------------------------------------------- duration


@dataclass(frozen=True, eq=False)
class Occurrences:
    """Tokens at which features are active, `n_each` a feature, with room after them."""

    feature: Int[np.ndarray, " occurrences"]
    row: Int[np.ndarray, " occurrences"]
    position: Int[np.ndarray, " occurrences"]


def spread_features(
    found: lifetimes.Runs, n: int, *, tau: int = 16, min_deaths: int = 5
) -> Int[np.ndarray, " n"]:
    """Up to `n` features, evenly spread over the ranks of their restricted mean lifetime, of those
    that have one.
    """
    mean = lifetimes.feature_restricted_mean(found, tau, min_deaths=min_deaths)
    known = np.flatnonzero(mean > 0)
    ranked = known[np.argsort(mean[known], kind="stable")]
    return ranked[np.linspace(0, len(ranked) - 1, min(n, len(ranked))).round().astype(np.int64)]


def edit_places(
    codes: metrics.CodedText,
    features: Int[np.ndarray, " n"],
    n_each: int,
    *,
    before: int = 16,
    after: int = 12,
    seed: int = 0,
) -> Occurrences:
    """Up to `n_each` random active tokens of each feature, with `before` tokens of text ahead and
    `after` behind.
    """
    rng = np.random.default_rng(seed)
    seq = codes.valid.shape[1]
    room = np.zeros(codes.valid.shape, bool)
    room[:, before : max(seq - after, 0)] = codes.valid.numpy()[:, before + after :]
    matrix = metrics.token_matrix(codes).tocsc()
    picked = []
    for feature in features:
        tokens = matrix.indices[matrix.indptr[feature] : matrix.indptr[feature + 1]]
        tokens = tokens[room.flatten()[tokens]]
        kept = rng.permutation(tokens)[:n_each]
        picked += [(feature, token // seq, token % seq) for token in kept]
    table = np.array(picked, np.int64).reshape(-1, 3)
    return Occurrences(*table.T)


def decay(
    lm: LanguageModel,
    above: Above,
    hook: str,
    sae: Sae,
    tokens: Tokens,
    found: Occurrences,
    modes: Sequence[bool],
    *,
    before: int = 16,
    after: int = 12,
) -> list[Float[np.ndarray, "occurrences distance"]]:
    """KL in nats, 0..after tokens behind each occurrence, when its feature is off there alone; for
    each of `modes`.

    The text starts `before` tokens ahead of the occurrence, so that all texts have one length.
    Where the feature is not active in so short a text, the effect is 0.
    """
    n_prefix = tokens.ids.shape[1] - tokens.valid.shape[1]
    out = [np.zeros((len(found.feature), after + 1)) for _ in modes]
    at = torch.zeros(TEXT_ROWS, before + 1 + after, dtype=torch.bool)
    at[:, before] = True
    for begin in range(0, len(found.feature), TEXT_ROWS):
        part = slice(begin, begin + TEXT_ROWS)
        row, position = found.row[part, None], found.position[part, None]
        text = tokens.ids[row, n_prefix + position + np.arange(-before, after + 1)]
        ids = torch.cat([tokens.ids[: len(text), :n_prefix], text], 1).long()
        edit = ablate(torch.from_numpy(found.feature[part])[:, None], at[: len(ids)].to(lm.device))
        hidden = residual(lm, ids, hook)
        for kl, values in zip(
            out,
            edited_kl(above, sae, ids, hidden, [(edit, m) for m in modes], after + 1),
            strict=True,
        ):
            kl[part] = values.numpy()
    return out


def durations(kl: Float[np.ndarray, "occurrences distance"], feature: Int[np.ndarray, " occurrences"]) -> tuple[
    Int[np.ndarray, " features"], Float[np.ndarray, " features"]
]:  # fmt: skip
    """Features with any effect, and the KL-weighted mean distance in tokens of each, 0..after."""
    names, row = np.unique(feature, return_inverse=True)
    total = np.bincount(row, kl.sum(1), minlength=len(names))
    moment = np.bincount(row, kl @ np.arange(kl.shape[1]), minlength=len(names))
    kept = total > 0
    return names[kept], moment[kept] / total[kept]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with its 95 % bootstrap interval."""

    rho: float
    low: float
    high: float
    n: int


def spearman(
    one: Float[np.ndarray, " n"],
    other: Float[np.ndarray, " n"],
    *,
    n_boot: int = 1000,
    seed: int = 0,
) -> Correlation:
    """Rank correlation of two measures of the same things; 0 in (-1, 1) for fewer than 3, or a
    constant one.
    """
    n = len(one)
    if n < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return Correlation(0.0, -1.0, 1.0, n)
    rows = np.random.default_rng(seed).integers(n, size=(n_boot, n))
    ranked = [stats.rankdata(values[rows], axis=1) for values in (one, other)]
    a, b = (r - r.mean(1, keepdims=True) for r in ranked)
    norm = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    rhos = (a * b).sum(1)[norm > 0] / norm[norm > 0]
    rho = float(stats.spearmanr(one, other)[0])  # type: ignore[arg-type]
    return Correlation(rho, float(np.quantile(rhos, 0.025)), float(np.quantile(rhos, 0.975)), n)
