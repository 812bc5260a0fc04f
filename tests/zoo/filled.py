"""Networks with weights that a formula gives, the same in any implementation: for values measured elsewhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import zoo


def filled(arch: str, gain: float) -> zoo.Net:
    """`arch` in float64 and eval mode. Entry i of the k-th state-dict key in alphabetical order is a multiple of

    u = 2 ((40503 (i^2 mod 65521) + 30011 i + 50021 (k + 1)) mod 65521) / 65521 - 1.
    """
    net = zoo.build(arch).double().eval()
    state = net.state_dict()
    for k, key in enumerate(sorted(state), start=1):
        value = state[key]
        if value.is_floating_point():
            i = torch.arange(value.numel())
            u = 2 * ((40503 * (i * i % 65521) + 30011 * i + 50021 * k) % 65521).double() / 65521 - 1
            state[key] = _scaled(key, u.view(value.shape), gain)
    net.load_state_dict(state)
    return net


def _scaled(key: str, u: Tensor, gain: float) -> Tensor:
    if u.ndim == 4:
        return gain * math.sqrt(6 / u[0].numel()) * u
    if u.ndim == 2:
        return math.sqrt(3 / u.shape[1]) * u
    if key.endswith("weight"):
        return 1 + 0.2 * u
    return 1 + 0.3 * u if key.endswith("running_var") else 0.1 * u


def waves() -> Tensor:
    """Images (2, 3, 32, 32): sin(0.2 y (n + 1) + 0.37 x + 1.1 c)."""
    n, c, y, x = (torch.arange(size, dtype=torch.float64) for size in (2, 3, 32, 32))
    y = 0.2 * y[:, None] * (n[:, None, None, None] + 1)
    return torch.sin(y + 0.37 * x + 1.1 * c[:, None, None])


def measured(out: zoo.Outputs) -> tuple[list[float], list[float], list[float]]:
    """Logits 0 to 2 of each image; means of the features and of `pooled`; means of the pre-activations."""
    logits = out.logits[:, :3].flatten().tolist()
    return logits, [t.mean().item() for t in (*out.features, out.pooled)], [t.mean().item() for t in out.preact]


def batch_norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """With running statistics, from the weights of a state dict."""
    mean, var, gamma, beta = (
        w[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * gamma + beta
