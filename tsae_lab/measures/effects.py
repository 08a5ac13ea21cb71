"""What edits do to the language model at the verb of a sentence.

A case is a text up to its verb, the verb's good and bad form, and a twin that differs in the
subject's number. The measure is the change of logit(good) - logit(bad) at the verb. The *full
patch* puts the twin's residual stream in place of the text's: 1 on the scale of normalised effects.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import metrics
from probes import Item
from tsae import Codes, Sae
from tsae_lab.data import language_model
from tsae_lab.data.language_model import Above, LanguageModel, residual, token_ids
from tsae_lab.measures import interventions
from tsae_lab.measures.interventions import Edit, ablate, codes_of, intervene

SPAN = 0  # in place of an offset: all positions from the subject to the verb
VERB_FORMS = (" is", " are")
EFFECT_BOOT = 1_000  # bootstrap samples of an interval
NEAR = 300  # features from which a stand-in is drawn


@dataclass(frozen=True, kw_only=True)
class Case:
    """A text that ends before its verb, and its twin of the other number."""

    text: str
    twin: str
    good: str  # the verb's form for `text`, with the space before it
    bad: str
    label: int  # 1: the subject is plural
    group: str  # lemma of the subject: never on both sides of a split


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
    group: Int[Tensor, " batch"]  # of the lemma: its cases, twins too, are resampled together

    @property
    def seq(self) -> int:
        return self.twin.shape[1]

    @property
    def x(self) -> Float[Tensor, "batch seq d_in"]:
        """The residual stream of the text."""
        return self.hidden[:, -self.seq :].float()


# a batch and where the edit is made (variants batch seq) -> what each variant adds to x
# (variants batch seq d_in)
Change = Callable[[Batch, Tensor], Tensor]


# ------------------------------------------------------------------------------------------- cases


def agreement_cases(items: Sequence[Item]) -> list[Case]:
    """Cases of both numbers from `tasks.agreement`: items that differ in the subject's number."""
    twins: dict[tuple[str, str], dict[int, Item]] = defaultdict(dict)
    for item in items:
        after_subject = item.text.split(" ", 2)[2]
        twins[item.group, after_subject][item.label] = item
    pairs = [pair for pair in twins.values() if len(pair) == 2]
    return [_case(pair[n], pair[1 - n]) for pair in pairs for n in (0, 1)]


def _case(item: Item, twin: Item) -> Case:
    good, bad = VERB_FORMS[item.label], VERB_FORMS[twin.label]
    return Case(
        text=item.text, twin=twin.text, good=good, bad=bad, label=item.label, group=item.group
    )


def split_cases(
    cases: Sequence[Case], n_train: int, n_test: int, *, seed: int = 0
) -> tuple[list[Case], list[Case]]:
    """Cases to choose features on and cases to measure on, with no lemma on both sides.

    About `n_train` and `n_test`, in whole twin pairs; fewer where there are not so many.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = sorted({case.group for case in cases})
    order = torch.randperm(len(groups), generator=generator).tolist()
    train_groups = {groups[i] for i in order[: len(groups) // 2]}

    def drawn(in_train: bool, n: int) -> list[Case]:
        pairs = defaultdict(list)
        for case in cases:
            if (case.group in train_groups) == in_train:
                pairs[frozenset((case.text, case.twin))].append(case)
        listed = list(pairs.values())
        chosen = torch.randperm(len(listed), generator=generator).tolist()[: n // 2]
        return [case for i in chosen for case in listed[i]]

    return drawn(True, n_train), drawn(False, n_test)


def batches(
    lm: LanguageModel, hook: str, cases: Sequence[Case], *, need_twin: bool = True
) -> tuple[list[Batch], dict[str, int]]:
    """The cases by length, and the number of skipped ones by reason.

    Skipped: good and bad are equal, or not one token each; text and twin are equal (allowed without
    `need_twin`) or differ in length; a text that the model cannot take. ValueError where none is
    left.
    """
    by_length: dict[int, list[tuple]] = defaultdict(list)
    skipped: Counter[str] = Counter()
    number = {group: i for i, group in enumerate(dict.fromkeys(case.group for case in cases))}
    for case in cases:
        words = (case.text, case.twin, case.good, case.bad)
        ids = [token_ids(lm, word) for word in words]
        reason = _refusal(ids, lm.max_seq - len(lm.prefix), need_twin)
        if reason:
            skipped[reason] += 1
        else:
            by_length[len(ids[0])].append((*ids, case.label, number[case.group]))
    if not by_length:
        reasons = ", ".join(skipped) or "none was given"
        raise ValueError(f"none of {len(cases)} texts can be measured: {reasons}")
    return [_batch(lm, hook, rows) for _, rows in sorted(by_length.items())], dict(skipped)


def _refusal(ids: Sequence[list[int]], longest: int, need_twin: bool) -> str:
    """Why a case cannot be measured; empty if it can."""
    text, twin, good, bad = ids
    if good == bad or len(good) != 1 or len(bad) != 1:
        return "good and bad forms are equal or not one token each"
    if len(text) != len(twin):
        return "text and twin differ in tokens"
    if not text or (need_twin and text == twin):
        return "text and twin are equal, or empty"
    return "too long for the model" if len(text) > longest else ""


def _batch(lm: LanguageModel, hook: str, rows: Sequence[tuple]) -> Batch:
    columns = (torch.tensor(column) for column in zip(*rows, strict=True))
    text, twin, good, bad, label, group = columns
    prefix = torch.tensor(lm.prefix).expand(len(text), -1)
    ids, twin_ids = (torch.cat([prefix, words], 1) for words in (text, twin))
    return Batch(
        ids=ids,
        hidden=residual(lm, ids, hook),
        twin=residual(lm, twin_ids, hook)[:, len(lm.prefix) :].float(),
        good=good[:, 0],
        bad=bad[:, 0],
        label=label,
        subject=(text != twin).int().argmax(1),  # 0 where they are equal
        group=group,
    )


def first_cases(cases: Sequence[Batch], n: int) -> list[Batch]:
    """About `n` cases, from the lengths that most cases have: few calls of the model per edit."""
    taken: list[Batch] = []
    left = n
    for batch in sorted(cases, key=lambda batch: -len(batch.ids)):
        if left > 0:
            taken.append(Batch(**{name: value[:left] for name, value in vars(batch).items()}))
            left -= len(batch.ids)
    return taken


# ----------------------------------------------------------------------------------------- effects


def where(batch: Batch, offset: int) -> Bool[Tensor, "batch seq"]:
    """The position `offset` (-1: the last before the verb) of each text; SPAN: from subject on."""
    place = torch.arange(batch.seq)
    if offset == SPAN:
        mask = place >= batch.subject[:, None]
    else:
        mask = (place == batch.seq + offset).expand(len(batch.ids), -1)
    return mask.to(batch.twin.device)


def logit_differences(
    above: Above, batch: Batch, deltas: Float[Tensor, "variants batch seq d_in"]
) -> Float[Tensor, "variants batch"]:
    """logit(good) - logit(bad) at the verb, with each of `deltas` added to the residual stream."""
    n_rows = language_model.rows_at_once(batch.ids.shape[1])
    variants, rows = torch.cartesian_prod(*map(torch.arange, deltas.shape[:2])).T
    out = []
    for variant, row in zip(variants.split(n_rows), rows.split(n_rows), strict=True):
        hidden = batch.hidden[row]
        text = batch.x[row] + deltas[variant, row].to(hidden.device)
        hidden = torch.cat([hidden[:, : -batch.seq], text.to(hidden.dtype)], 1)
        logits = above(batch.ids[row], hidden, 1)[:, -1].float().cpu()
        good, bad = (logits.gather(1, form[row, None])[:, 0] for form in (batch.good, batch.bad))
        out.append(good - bad)
    return torch.cat(out).view(deltas.shape[:2])


def clean_differences(above: Above, cases: Sequence[Batch]) -> Float[np.ndarray, " cases"]:
    """logit(good) - logit(bad) of the model as it is; above 0 it is right."""
    parts = [
        logit_differences(above, batch, torch.zeros(1, *batch.twin.shape))[0] for batch in cases
    ]
    return torch.cat(parts).numpy()


def profile(
    above: Above,
    cases: Sequence[Batch],
    change: Change,
    offsets: Sequence[int],
    clean: Float[np.ndarray, " cases"] | None = None,
) -> Float[np.ndarray, "offsets cases"]:
    """Change of logit(good) - logit(bad) when `change` is made at each offset, or SPAN.

    NaN where a text is too short to have the offset. `clean`: the `clean_differences` of these
    cases, where they are known.
    """
    clean = clean_differences(above, cases) if clean is None else clean
    columns = []
    for batch in cases:
        reached = [i for i, offset in enumerate(offsets) if -batch.seq <= offset]
        deltas = change(batch, torch.stack([where(batch, offsets[i]) for i in reached]))
        column = np.full((len(offsets), len(batch.ids)), np.nan)
        column[reached] = logit_differences(above, batch, deltas).numpy()
        columns.append(column)
    return np.concatenate(columns, 1) - clean


def normalised(
    effects: Float[np.ndarray, "*rows cases"], patch: Float[np.ndarray, " cases"]
) -> Float[np.ndarray, "*rows"]:
    """Summed effect over the summed effect of the full patch, over the cases that are not NaN.

    NaN where there is no such case, or where the full patch has no effect.
    """
    bottom = np.where(np.isnan(effects), 0.0, patch).sum(-1)
    top = np.nansum(effects, -1)
    return np.where(bottom != 0, top / np.where(bottom != 0, bottom, 1.0), np.nan)


def normalised_interval(
    effects: Float[np.ndarray, " cases"],
    patch: Float[np.ndarray, " cases"],
    group: Int[np.ndarray, " cases"],
) -> metrics.Interval | None:
    """95 % interval of `normalised` (`metrics.interval`) over resamples of the groups of cases.

    Twins are not independent, so whole groups are drawn, of cases not NaN. None for fewer than two
    groups.
    """
    seen = ~np.isnan(effects)
    names, member = np.unique(group[seen], return_inverse=True)
    top, bottom = (
        np.bincount(member, values[seen], minlength=len(names)) for values in (effects, patch)
    )
    replicates = metrics.resampled_ratio(top, bottom, EFFECT_BOOT)
    value = metrics.finite(normalised(effects, patch))
    return metrics.interval(value, replicates, len(names), -np.inf, np.inf)


# ----------------------------------------------------------------------------------------- changes


def full_patch(
    batch: Batch, mask: Bool[Tensor, "variants batch seq"]
) -> Float[Tensor, "variants batch seq d_in"]:
    """The twin's residual stream in place of the text's."""
    return torch.where(mask[..., None], batch.twin - batch.x, 0.0)


def change_by(sae: Sae, make: Callable[[Batch, Tensor], Edit], *, propagated: bool) -> Change:
    """The change that the edit `make(batch, mask)` makes; all variants of a batch in one call.

    `make` gets the variants one below the other: `mask` (variants * batch, seq).
    """

    def change(batch: Batch, mask: Tensor) -> Tensor:
        x = batch.x.expand(len(mask), -1, -1, -1).flatten(0, 1)
        delta, _ = intervene(sae, x, make(batch, mask.flatten(0, 1)), propagated=propagated)
        return delta.view(*mask.shape, -1)

    return change


def twin_codes(sae: Sae, batch: Batch, mask: Bool[Tensor, "rows seq"]) -> Codes:
    """The codes of the twins, repeated for each variant in `mask` (variants * batch, seq)."""
    codes = codes_of(sae, batch.twin)
    n_variants = len(mask) // len(batch.ids)
    return Codes(codes.vals.repeat(n_variants, 1, 1), codes.idx.repeat(n_variants, 1, 1))


def swap_features(sae: Sae, features: Int[Tensor, " n"], *, propagated: bool) -> Change:
    """The features have the values of the twin's code."""

    def make(batch: Batch, mask: Tensor) -> Edit:
        return interventions.swap(features, mask, twin_codes(sae, batch, mask))

    return change_by(sae, make, propagated=propagated)


def swap_codes(sae: Sae, *, propagated: bool) -> Change:
    """The whole code is the twin's."""

    def make(batch: Batch, mask: Tensor) -> Edit:
        return interventions.swap_code(mask, twin_codes(sae, batch, mask))

    return change_by(sae, make, propagated=propagated)


def ablate_features(sae: Sae, features: Int[Tensor, " n"], *, propagated: bool) -> Change:
    """The features are off."""
    return change_by(sae, lambda _, mask: ablate(features, mask), propagated=propagated)


def steer_features(
    sae: Sae, features: Int[Tensor, " n"], amounts: Float[Tensor, "variants n"], *, propagated: bool
) -> Change:
    """The features get more: in each variant its own amounts."""

    def make(batch: Batch, mask: Tensor) -> Edit:
        by_row = amounts.repeat_interleave(len(batch.ids), 0)[:, None]
        return interventions.steer(features, mask, by_row)

    return change_by(sae, make, propagated=propagated)


def matched_push(
    sae: Sae,
    features: Int[Tensor, " n"],
    stand_ins: Int[Tensor, " n"],
    pushed: Callable[[Batch], Tensor],
    *,
    propagated: bool,
) -> Change:
    """A control of `swap_features`: each feature's contribution comes from its stand-in instead.

    A contribution is the value times the norm of the decoder row. `pushed` gives what the swap adds
    to the features of a batch (batch seq n): `swap_amounts`, cached by the caller.
    """
    norm = sae.params.static.W_dec.norm(dim=1)
    scale = norm[features] / norm[stand_ins].clamp(min=1e-12)

    def make(batch: Batch, mask: Tensor) -> Edit:
        amount = (pushed(batch) * scale).repeat(len(mask) // len(batch.ids), 1, 1)
        return interventions.steer(stand_ins, mask, amount)

    return change_by(sae, make, propagated=propagated)


def swap_amounts(
    sae: Sae, features: Int[Tensor, " n"], batch: Batch
) -> Float[Tensor, "batch seq n"]:
    """The twin's value of each feature minus the text's own."""
    named = features.expand(len(batch.ids), batch.seq, -1).to(batch.twin.device)
    twin, own = (codes_of(sae, x) for x in (batch.twin, batch.x))
    return interventions.values_of(twin, named) - interventions.values_of(own, named)


def random_direction(change: Change, seed: int) -> Change:
    """A control: at each position a random direction, with the norm of what `change` adds there."""
    generator = torch.Generator().manual_seed(seed)

    def control(batch: Batch, mask: Tensor) -> Tensor:
        delta = change(batch, mask)
        noise = torch.randn(delta.shape, generator=generator).to(delta)
        return noise / noise.norm(dim=-1, keepdim=True) * delta.norm(dim=-1, keepdim=True)

    return control


def elsewhere(change: Change) -> Change:
    """A control: the sum of what `change` adds, put at the position after the subject.

    The word there has no number, and what is put there reaches the verb: the first position of a
    text, which most models use as a sink, passes nothing on. Nothing is added where the subject is
    the last word.
    """

    def control(batch: Batch, mask: Tensor) -> Tensor:
        after = batch.subject.to(mask.device)[:, None] + 1
        place = torch.arange(batch.seq, device=mask.device) == after
        return change(batch, mask).sum(2, keepdim=True) * place[None, :, :, None]

    return control


# ---------------------------------------------------------------------------------------- features


def number_features(
    sae: Sae, cases: Sequence[Batch]
) -> tuple[Int[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """All features by how far they tell the numbers apart, and their plural minus singular mean.

    The mean is of the contribution (value times norm of the decoder row) from the subject to the
    verb. The order is by its size, the second result by feature. ValueError for one number alone.
    """
    sums, counts = torch.zeros(2, sae.d_sae), torch.zeros(2)
    norm = sae.params.static.W_dec.norm(dim=1).cpu()
    for batch in cases:
        codes, span = codes_of(sae, batch.x), where(batch, SPAN)
        vals = (codes.vals * span[..., None] / span.sum(1)[:, None, None]).flatten().cpu()
        number = batch.label[:, None, None].expand(codes.idx.shape).flatten()
        sums.index_put_((number, codes.idx.flatten().cpu()), vals, accumulate=True)
        counts.index_add_(0, batch.label, torch.ones(len(batch.label)))
    if not counts.all():
        raise ValueError("number_features needs cases of both numbers; got one")
    difference = (sums[1] / counts[1] - sums[0] / counts[0]) * norm
    return difference.abs().argsort(descending=True, stable=True), difference


def matched_features(
    rates: Float[Tensor, " d_sae"], features: Int[Tensor, " n"], n_draws: int, *, seed: int
) -> Int[Tensor, "n_draws n"]:
    """For each feature, stand-ins from the NEAR living features closest to it in log firing rate.

    A draw names no feature twice and none of `features`; for one feature, all draws differ while
    enough are near. ValueError where fewer other features are alive than there are features.
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
        pool = alive[distance.argsort(stable=True)[: max(NEAR, len(features))]]
        n_rounds = -(-n_draws // len(pool))
        shuffled = [pool[torch.randperm(len(pool), generator=generator)] for _ in range(n_rounds)]
        columns.append(torch.cat(shuffled)[:n_draws])
    draws = torch.stack(columns, 1)
    for draw in draws:
        while len(draw.unique()) < len(draw):
            twice = next(i for i in range(len(draw)) if draw[i] in draw[:i])
            draw[twice] = alive[torch.randint(len(alive), (), generator=generator)]
    return draws
