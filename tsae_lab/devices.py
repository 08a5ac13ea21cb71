"""The device that work runs on: whether it is there, how it sums, what it holds."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

LIMITS = {  # of memory, in both versions of control groups: the most of a container, what it uses
    "": ("memory.max", "memory.current"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def check_device(name: str) -> torch.device:
    """The device; ValueError for one that torch does not know or this machine does not have."""
    try:
        device = torch.device(name or "cpu")
    except RuntimeError as error:
        known = "the devices are cpu, cuda, cuda:1, ..."
        raise ValueError(f"device {name!r} cannot be used here: {known}") from error
    n = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.mps.is_available())}
    if (device.index or 0) >= n.get(device.type, 0):
        here = ", ".join(f"{n} of {kind}" for kind, n in n.items() if n)
        raise ValueError(f"device {name!r} cannot be used here: this machine has {here}")
    return device


def same_sums(*, exact: bool = False) -> None:
    """Have CUDA sum in float32 and in one order, before its first product; `exact`: no TF32."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuDNN's LSTMs, too
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cudnn.allow_tf32 = not exact


def start_peak(device: torch.device) -> None:
    """Count `peak_gb` from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float | None:
    """Most memory that tensors took at a time, in GB (10^9 bytes); None where nobody counts it."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process and others may still take on Linux, within a container's limit.

    Pages of files that the system can drop count as free. 0 where the system does not say.
    """
    free = _numbers_in(root / "proc/meminfo").get("MemAvailable:", 0) << 10
    for folder, names in _groups(root):
        most, used = (_number_in(folder / name) for name in names)
        if most is not None and used is not None:
            counts = _numbers_in(folder / "memory.stat")
            droppable = counts.get("total_inactive_file", counts.get("inactive_file", 0))
            free = min(free, max(0, most - used + droppable))
    return free


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
    """The control groups that limit this process's memory, with the names of the two numbers.

    Its own, and all those that hold it, as far as they are seen from here.
    """
    own = dict.fromkeys(LIMITS, "/")
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _number, kinds, path = line.split(":", 2)
            own |= {kind: path for kind in kinds.split(",") if kind in LIMITS}
    for kind, names in LIMITS.items():
        top = root / "sys/fs/cgroup" / kind
        folder = top / own[kind].lstrip("/")
        yield from (
            (place, names) for place in (folder, *folder.parents) if place.is_relative_to(top)
        )


def _numbers_in(path: Path) -> dict[str, int]:
    """The first number of every line, by the line's first word; {} where there is no such file."""
    with suppress(OSError):
        lines = (line.split() for line in path.read_text().splitlines())
        return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
    return {}


def _number_in(path: Path) -> int | None:
    """The number that a file holds; None where it holds none, such as "max"."""
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None
