"""The lifecycle of features in a stream of codes: a state that goes in and comes out, token by token or in pieces."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

UNBORN, BORN, ACTIVE, DORMANT, DEAD = range(5)


@dataclass(frozen=True, eq=False, kw_only=True)
class Lifecycle:
    """Per feature, in tokens of one stream read in order."""

    tokens: Int[Tensor, ""]  # read so far
    age: Int[Tensor, " d_sae"]  # tokens of the run that is on now; 0 when off
    idle: Int[Tensor, " d_sae"]  # tokens since it was last on; `tokens` while unborn
    fired: Int[Tensor, " d_sae"]  # tokens it was on at
    births: Int[Tensor, " d_sae"]  # times it went from off to on
    deaths: Int[Tensor, " d_sae"]  # times it went from on to off
    peak: Float[Tensor, " d_sae"]  # largest value so far


def start_lifecycle(d_sae: int, like: Tensor) -> Lifecycle:
    """No token read: every feature unborn."""
    zero = torch.zeros(d_sae, dtype=torch.int64, device=like.device)
    return Lifecycle(
        tokens=zero.new_zeros(()), age=zero, idle=zero, fired=zero, births=zero, deaths=zero, peak=like.new_zeros(d_sae)
    )


def advance(
    life: Lifecycle, vals: Float[Tensor, "tokens k"], idx: Int[Tensor, "tokens k"], starts: Int[Tensor, " chunks"]
) -> Lifecycle:
    """The lifecycle after these tokens; in pieces or at once, the result is the same.

    A run ends at each of `starts`, the positions in `vals` where a new document or chunk begins: no run crosses a seam.
    """
    tokens = len(vals)
    on_t, on_f = _active_sorted(vals, idx)
    seam = torch.zeros(tokens + 1, dtype=torch.int64, device=vals.device)
    seam.index_add_(0, starts, torch.ones_like(starts))
    part = seam.cumsum(0)  # which chunk a token lies in, relative to the one before these tokens
    joined = torch.zeros(len(on_t), dtype=torch.bool, device=vals.device)
    if len(on_t) > 1:
        joined[1:] = (on_f[1:] == on_f[:-1]) & (on_t[1:] == on_t[:-1] + 1) & (part[on_t[1:]] == part[on_t[:-1]])
    first = torch.ones_like(joined)
    first[1:] = on_f[1:] != on_f[:-1]
    joined |= first & (on_t == 0) & (part[on_t] == 0) & (life.age[on_f] > 0)
    births = torch.zeros_like(life.births).index_add_(0, on_f, (~joined).long())
    last = torch.full_like(life.age, -1).scatter_reduce_(0, on_f, on_t, "amax")
    run_start = torch.full_like(life.age, -1).scatter_reduce_(0, on_f[~joined], on_t[~joined], "amax")
    still = (last == tokens - 1) if tokens else life.age > 0
    fresh = torch.where(run_start >= 0, last - run_start + 1, life.age + last + 1)
    age = torch.where(still, fresh, torch.zeros_like(fresh)) if tokens else life.age
    fired = torch.zeros_like(life.fired).index_add_(0, on_f, torch.ones_like(on_f))
    peak = life.peak.scatter_reduce(0, idx.flatten(), vals.flatten().to(life.peak.dtype), "amax")
    return Lifecycle(
        tokens=life.tokens + tokens,
        age=age,
        idle=torch.where(last >= 0, tokens - 1 - last, life.idle + tokens),
        fired=life.fired + fired,
        births=life.births + births,
        deaths=life.births + births - (age > 0).long(),
        peak=peak,
    )


def _active_sorted(vals: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
    """Token and feature of every active entry, by feature and then by token."""
    token, slot = (vals > 0).nonzero(as_tuple=True)
    key = (idx[token, slot] * max(len(vals), 1) + token).sort().values
    return key % max(len(vals), 1), key // max(len(vals), 1)


def stage(life: Lifecycle, *, dormant_after: int, dead_after: int) -> Int[Tensor, " d_sae"]:
    """UNBORN, BORN (on for the first time), ACTIVE, DORMANT or DEAD, by the tokens since a feature was last on."""
    if not 0 < dormant_after < dead_after:
        raise ValueError(f"need 0 < dormant_after < dead_after tokens; got {dormant_after}, {dead_after}")
    out = torch.full_like(life.age, ACTIVE)
    out[(life.births == 1) & (life.age > 0)] = BORN
    out[life.idle >= dormant_after] = DORMANT
    out[life.fired == 0] = UNBORN
    out[life.idle >= dead_after] = DEAD
    return out
