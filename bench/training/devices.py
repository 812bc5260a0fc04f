"""Devices and precision: what is there, and the switches that a run's precision stands for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from bench.run import Precision
from zoo.errors import BadInput


def parse_device(name: str) -> torch.device:
    """auto (CUDA where there is a GPU), cpu, cuda or cuda:N; BadInput where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise BadInput(f'unknown device "{name}": choose auto, cpu or cuda')
    if device.type == "cuda" and not 0 <= (device.index or 0) < torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise BadInput(
            f'device "{name}" is not there ({found or "no"} GPU{"s" if found != 1 else ""} found): '
            "use --device cpu, or run where there is one"
        )
    return device


def memory_format(device: torch.device) -> torch.memory_format:
    """Layout of images and weights: channels-last makes a step 1.3 to 1.5 times as fast on a CPU (oneDNN)."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def check_precision(precision: Precision, device: torch.device) -> None:
    """BadInput where a device does not know a precision."""
    if precision == "tf32" and device.type != "cuda":
        raise BadInput("--precision tf32 exists on NVIDIA GPUs only: use fp32 or bf16 on a CPU")


def set_precision(precision: Precision) -> None:
    """TensorFloat-32 only where a run says so: PyTorch leaves it on for convolutions, which is not fp32."""
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager:
    """bfloat16 for the forward passes and the loss where a run says so."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
