"""The device that work runs on: whether it is there, how it sums, what it holds."""

import os

import torch


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
