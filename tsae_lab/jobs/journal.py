"""What the log says of steps: a device is asked for it once in many steps, a CPU after each."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

EVERY = 50  # steps between two waits for a device


class Diverged(ValueError):
    """A training whose loss or gradient is not finite."""


def wait_every(device: torch.device) -> int:
    """Steps after which a loop waits for the device; a CPU never runs ahead, so 1."""
    return 1 if device.type == "cpu" else EVERY


def step_lines(numbers: Sequence[Mapping[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """What the log says of steps that took so many seconds each, of their `fetched` numbers."""
    return [
        {name: number for name, number in step.items() if name != "tokens"}
        | {"tokens_per_second": round(step["tokens"] / seconds, 1)}
        for step in numbers
    ]


def note(number: Mapping[str, Any], seconds: float) -> str:
    """What a progress bar says of a step that took so many seconds."""
    speed = f"{number['tokens'] / seconds:,.0f} tokens/s"
    return f"fve {number['fve']:.3f}  l0 {number['l0']:.1f}  {speed}"


def check_finite(line: Mapping[str, Any], label: str, lr: float) -> None:
    """Raise Diverged where a step's loss or gradient is not finite.

    A run keeps one --lr: its SAEs are compared at the same rate.
    """
    if math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]):
        return
    values = f"the loss is {line['loss']}, the gradient's norm {line['grad_norm']}"
    advice = f"give an --lr below {lr:g} and another --out_dir: this one would come here again"
    raise Diverged(f"{label}: {values} at step {line['step']}; nothing of it was saved; {advice}")
