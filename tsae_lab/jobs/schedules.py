"""What changes over the steps of a training: its phases, and values between two ends."""

import math
from dataclasses import dataclass

Number = float | int


def ramp(
    step: Number, *, start: Number, end: Number, steps: Number, shape: str = "linear"
) -> Number:
    """`start` up to step 0, `end` from `steps` on, "linear" or "cosine" between; never outside."""
    if shape not in ("linear", "cosine"):
        raise ValueError(f"shape is 'linear' or 'cosine'; got {shape!r}")
    if step >= steps:
        return end
    if step <= 0:
        return start
    done = step / steps
    share = done if shape == "linear" else (1 - math.cos(math.pi * done)) / 2
    value = start + share * (end - start)
    return min(max(value, min(start, end)), max(start, end))


@dataclass(frozen=True, kw_only=True)
class Phases:
    """Steps of the four parts of a TSAE's training; `pretrain` trains its static SAE."""

    pretrain: int
    settle: int
    introduce: int
    refine: int

    @property
    def total(self) -> int:
        return self.pretrain + self.settle + self.introduce + self.refine


def phase_steps(
    total: int, *, pretrain: float, settle: float, introduce: float, group: int = 1
) -> Phases:
    """`total` steps by shares >= 0 that sum to <= 1, else ValueError; `refine` takes the rest.

    The pretraining takes whole groups of `group` steps: what follows begins with one.
    """
    if min(pretrain, settle, introduce) < 0 or pretrain + settle + introduce > 1 + 1e-9:
        shares = f"{pretrain}, {settle}, {introduce}"
        raise ValueError(f"phase shares need to be >= 0 and sum to at most 1; got {shares}")
    a = min(group * round(total * pretrain / group), total)
    b = min(round(total * settle), total - a)
    c = min(round(total * introduce), total - a - b)
    return Phases(pretrain=a, settle=b, introduce=c, refine=total - a - b - c)


def phase_at(step: int, phases: Phases) -> str:
    """Phase at a step counted from the start of the pretraining."""
    ends = (phases.pretrain, phases.pretrain + phases.settle, phases.total - phases.refine)
    return ("pretrain", "settle", "introduce", "refine")[sum(step >= end for end in ends)]


def memory_at(step: int, phases: Phases) -> float:
    """The memory's share of its strength: 0 until the introduction, which ramps it to 1."""
    return ramp(step - phases.pretrain - phases.settle, start=0.0, end=1.0, steps=phases.introduce)


def k_at(step: int, phases: Phases, *, k: int, multiple: float) -> int:
    """`multiple * k` when phase (a) starts, `k` from the introduction's end on; a cosine."""
    span = {"steps": phases.settle + phases.introduce, "shape": "cosine"}
    return round(ramp(step - phases.pretrain, start=multiple * k, end=float(k), **span))


def rate_at(step: int, *, total: int, warmup: int, decay: float) -> float:
    """Share of the peak learning rate: warm-up, 1, then to 0 over the last `decay` of the steps."""
    return min(1.0, (step + 1) / max(warmup, 1), (total - step) / max(decay * total, 1))
