"""Second implementations of the losses in plain NumPy float64, from the equations, one sample and one class at a time.

Each returns a loss and its gradient, derived by hand; the tests check these gradients against `numeric_gradient`.
At the end, `measure` and `close` put a method beside its reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import methods
from zoo import Outputs

Array = np.ndarray


def oracle_inputs() -> tuple[Array, Array, Array]:
    """Student logits (8, 10), teacher logits (8, 10), labels (8,) that the printed oracle values belong to."""
    z_s = np.array([[2 * math.sin(0.3 * i + 0.7 * j) for j in range(10)] for i in range(8)])
    z_t = np.array([[3 * math.cos(0.2 * i - 0.5 * j) for j in range(10)] for i in range(8)])
    return z_s, z_t, np.array([7 * i % 10 for i in range(8)])


def random_inputs(batch: int, classes: int, scale: float = 3.0, seed: int = 0) -> tuple[Array, Array, Array]:
    """Logits and labels; the first two labels are the first and the last class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, batch)
    labels[: min(batch, 2)] = [0, classes - 1][: min(batch, 2)]
    return scale * rng.standard_normal((batch, classes)), scale * rng.standard_normal((batch, classes)), labels


def numeric_gradient(f: Callable[[Array], float], x: Array, h: float = 0.02) -> Array:
    """Central differences with steps h, h/2 and h/4, extrapolated twice (Richardson): the error is of order h^6."""
    gradient = np.zeros_like(x)
    for k in np.ndindex(x.shape):
        slopes = []
        for step in (h, h / 2, h / 4):
            up, down = x.copy(), x.copy()
            up[k] += step
            down[k] -= step
            slopes.append((f(up) - f(down)) / (2 * step))
        once = [(4 * slopes[1] - slopes[0]) / 3, (4 * slopes[2] - slopes[1]) / 3]
        gradient[k] = (16 * once[1] - once[0]) / 15
    return gradient


# --- logits ---------------------------------------------------------------------------------------------------------


def softmax(row: Array) -> list[float]:
    top = max(row)
    weights = [math.exp(v - top) for v in row]
    total = math.fsum(weights)
    return [w / total for w in weights]


def divergence(p: list[float], q: list[float]) -> float:
    """KL(p || q) of two probability vectors, from the definition."""
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def cross_entropy(z: Array, labels: Array) -> tuple[float, Array]:
    """-log p_y, mean over the batch; d/dz_c = p_c - [c = y]."""
    batch, loss, gradient = len(z), 0.0, np.zeros_like(z)
    for i in range(batch):
        p = softmax(z[i])
        loss -= math.log(p[labels[i]]) / batch
        for c in range(len(p)):
            gradient[i, c] = (p[c] - (c == labels[i])) / batch
    return loss, gradient


def soft_targets(z_s: Array, z_t: Array, temperature: float) -> tuple[float, Array]:
    """T^2 KL(p_t || p_s), mean over the batch; d/dz_s = T (p_s - p_t)."""
    batch, loss, gradient = len(z_s), 0.0, np.zeros_like(z_s)
    for i in range(batch):
        p_s, p_t = softmax(z_s[i] / temperature), softmax(z_t[i] / temperature)
        loss += temperature**2 * divergence(p_t, p_s) / batch
        for c in range(len(p_s)):
            gradient[i, c] = temperature * (p_s[c] - p_t[c]) / batch
    return loss, gradient


def split(row: Array, label: int) -> tuple[list[float], dict[int, float]]:
    """(p_y, 1 - p_y), and {class: p_c / (1 - p_y)} over the other classes."""
    p = softmax(row)
    rest = math.fsum(v for c, v in enumerate(p) if c != label)
    return [p[label], rest], {c: v / rest for c, v in enumerate(p) if c != label}


def tckd(z_s: Array, z_t: Array, labels: Array, temperature: float) -> tuple[list[float], Array]:
    """T^2 KL(b_t || b_s) per sample, b = (p_y, 1 - p_y), and the gradient of the batch mean.

    With u = log b_y - log(1 - b_y), dKL/du = b_s,y - b_t,y; du/dz_y = 1/T and du/dz_c = -q_c / T.
    """
    losses, gradient = [], np.zeros_like(z_s)
    for i, y in enumerate(labels):
        (b_s, q_s), (b_t, _) = split(z_s[i] / temperature, y), split(z_t[i] / temperature, y)
        losses.append(temperature**2 * divergence(b_t, b_s))
        slope = temperature * (b_s[0] - b_t[0]) / len(labels)
        gradient[i, y] = slope
        for c, q in q_s.items():
            gradient[i, c] = -slope * q
    return losses, gradient


def nckd(z_s: Array, z_t: Array, labels: Array, temperature: float) -> tuple[list[float], Array]:
    """T^2 KL(q_t || q_s) per sample, q = p without the label's class, and the gradient of the batch mean."""
    losses, gradient = [], np.zeros_like(z_s)
    for i, y in enumerate(labels):
        (_, q_s), (_, q_t) = split(z_s[i] / temperature, y), split(z_t[i] / temperature, y)
        losses.append(temperature**2 * divergence(list(q_t.values()), list(q_s.values())))
        for c in q_s:
            gradient[i, c] = temperature * (q_s[c] - q_t[c]) / len(labels)
    return losses, gradient


# --- relations between samples --------------------------------------------------------------------------------------


def direction(z_s: Array, z_t: Array, tikhonov: float, divisor: float) -> tuple[float, Array]:
    """mean_i sqrt(D_i P D_i^T), P = (Cov(rows of D) + lambda I)^-1 by inversion, and its gradient.

    With r_i the i-th root: dL/dD_i = P D_i / (B r_i) + 2 M (D_i - mean) / (B - 1), where the second part comes through
    the covariance: M = dL/dS = -sum_i (P D_i)(P D_i)^T / (2 B r_i), as dP = -P dS P.
    """
    batch, classes = z_s.shape
    unit = [[np.array(z[i]) / math.sqrt(sum(v * v for v in z[i])) for i in range(batch)] for z in (z_s, z_t)]
    d = np.zeros((batch, batch))
    for i in range(batch):
        for j in range(batch):
            d[i, j] = (sum(unit[0][i] * unit[0][j]) - sum(unit[1][i] * unit[1][j])) / divisor
    mean = sum(d) / batch
    s = tikhonov * np.identity(batch)
    for i in range(batch):
        s += np.outer(d[i] - mean, d[i] - mean) / (batch - 1)
    p = np.linalg.inv(s)
    roots = [math.sqrt(d[i] @ p @ d[i]) for i in range(batch)]
    m = -sum(np.outer(p @ d[i], p @ d[i]) / (2 * batch * roots[i]) for i in range(batch))
    slope = [p @ d[i] / (batch * roots[i]) + 2 * m @ (d[i] - mean) / (batch - 1) for i in range(batch)]
    gradient = np.zeros((batch, classes))
    for a in range(batch):
        g = sum((slope[a][b] + slope[b][a]) * unit[0][b] for b in range(batch)) / divisor
        gradient[a] = (g - unit[0][a] * (unit[0][a] @ g)) / math.sqrt(z_s[a] @ z_s[a])
    return sum(roots) / batch, gradient


def share_up_to_median(values: list[float]) -> float:
    """Fraction of values at most the median, the mean of the middle two for an even count (as NumPy's percentile)."""
    ordered, n = sorted(values), len(values)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return sum(v <= median for v in values) / n


def released_factors(z_t: Array) -> tuple[float, float]:
    """SKD's m1 (samples by their highest probability) and m2 (classes by their summed probability)."""
    p = [softmax(row) for row in z_t]
    per_class = [sum(row[c] for row in p) for c in range(z_t.shape[1])]
    return share_up_to_median([max(row) for row in p]), share_up_to_median(per_class)


# --- maps -----------------------------------------------------------------------------------------------------------


def hint(
    x: Array,
    target: Array,
    weight: Array,
    bias: Array,
    gamma: Array,
    beta: Array,
    stride: int = 1,
    padding: int = 0,
    transposed: bool = False,
    eps: float = 1e-5,
) -> tuple[float, dict[str, Array]]:
    """MSE(ReLU(BatchNorm(conv(x))), target), batch statistics, and its gradients by argument name.

    x (B, C, H, W); target (B, D, h, w); weight (D, C, k, k), or (C, D, k, k) if transposed.
    """
    y = np.zeros_like(target)
    for b, d in np.ndindex(target.shape[:2]):
        y[b, d] += bias[d]
    for out, into, tap in _taps(x.shape, target.shape, weight.shape, stride, padding, transposed):
        y[out] += weight[tap] * x[into]

    names = ("x", "weight", "bias", "gamma", "beta")
    gradient = {name: np.zeros_like(a) for name, a in zip(names, (x, weight, bias, gamma, beta), strict=True)}
    g_y, loss = np.zeros_like(y), 0.0
    for d in range(target.shape[1]):
        cells = [(b, d, i, j) for b, i, j in np.ndindex(target.shape[0], *target.shape[2:])]
        n = len(cells)
        mean = sum(y[k] for k in cells) / n
        root = math.sqrt(sum((y[k] - mean) ** 2 for k in cells) / n + eps)  # biased, as in training
        normal = {k: (y[k] - mean) / root for k in cells}
        g = {}
        for k in cells:
            before = gamma[d] * normal[k] + beta[d]
            loss += (max(before, 0.0) - target[k]) ** 2 / target.size
            g[k] = 2 * (before - target[k]) / target.size if before > 0 else 0.0
        gradient["beta"][d] = sum(g.values())
        gradient["gamma"][d] = sum(g[k] * normal[k] for k in cells)
        for k in cells:
            g_y[k] = gamma[d] / root * (g[k] - (gradient["beta"][d] + normal[k] * gradient["gamma"][d]) / n)
            gradient["bias"][d] += g_y[k]
    for out, into, tap in _taps(x.shape, target.shape, weight.shape, stride, padding, transposed):
        gradient["x"][into] += weight[tap] * g_y[out]
        gradient["weight"][tap] += x[into] * g_y[out]
    return loss, gradient


def _taps(
    x: tuple[int, ...], y: tuple[int, ...], weight: tuple[int, ...], stride: int, padding: int, transposed: bool
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Every product in a convolution, as indices (of the output, of the input, of the weight)."""
    for b, d, c, u, v in np.ndindex(x[0], y[1], x[1], *weight[2:]):
        if transposed:  # each input pixel paints a patch
            for i, j in np.ndindex(x[2:]):
                at = (i * stride - padding + u, j * stride - padding + v)
                if 0 <= at[0] < y[2] and 0 <= at[1] < y[3]:
                    yield (b, d, *at), (b, c, i, j), (c, d, u, v)
        else:  # each output pixel reads a patch
            for i, j in np.ndindex(y[2:]):
                at = (i * stride - padding + u, j * stride - padding + v)
                if 0 <= at[0] < x[2] and 0 <= at[1] < x[3]:
                    yield (b, d, i, j), (b, c, *at), (d, c, u, v)


def wave(batch: int, channels: int, height: int, phase: float, size: float) -> Array:
    """The maps (B, C, h, h) that printed oracle values belong to: size * sin(.37 n + phase), n the flat index."""
    n = np.arange(batch * channels * height * height)
    return (size * np.sin(0.37 * n + phase)).reshape(batch, channels, height, height)


def value_and_slope(loss: Callable[[torch.Tensor], torch.Tensor], x: Array) -> tuple[float, Array]:
    """A loss of a float64 tensor, and its gradient by autograd."""
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = loss(leaf)
    return float(value.detach()), torch.autograd.grad(value, leaf)[0].numpy()


# --- a method beside its reference ----------------------------------------------------------------------------------


def outputs(logits: torch.Tensor, features: tuple[torch.Tensor, ...] = ()) -> Outputs:
    """Outputs that hold no more than a test needs."""
    none = torch.empty(0)
    return Outputs(logits, features, (), none, none, torch.nn.Identity())


def settings(name: str, params: dict[str, Any]) -> methods.Settings:
    return methods.check(methods.get(name).Params, params, "test")


def batch_of(labels: Array) -> methods.Batch:
    return methods.Batch(torch.as_tensor(labels), torch.arange(len(labels)))


def progress(epoch: float, dtype: torch.dtype = torch.float64) -> methods.Progress:
    return methods.Progress(torch.tensor(float(epoch), dtype=dtype))


def measure(
    name: str,
    params: dict[str, Any],
    z_s: Array,
    z_t: Array,
    labels: Array,
    epoch: float = 1,
    dtype: torch.dtype = torch.float64,
) -> dict[str, tuple[float, Array]]:
    """A logit method's terms and their gradients in the student's logits; the epoch is of `dtype`, too."""
    train_set = methods.TrainSet(torch.as_tensor(labels), z_s.shape[1])
    method = methods.get(name)(settings(name, params), torch.nn.Identity(), torch.nn.Identity(), train_set)
    student, teacher = (torch.tensor(z, dtype=dtype) for z in (z_s, z_t))
    student.requires_grad_()
    terms = method.terms(outputs(student), outputs(teacher), batch_of(labels), progress(epoch, dtype))
    return {
        key: (float(term.detach()), torch.autograd.grad(term, student, retain_graph=True)[0].double().numpy())
        for key, term in terms.items()
    }


def close(actual: Any, expected: Any, rtol: float = 1e-9) -> None:
    """Equal to a relative `rtol`; elements near zero to `rtol` of a thousandth of the largest one."""
    expected = np.asarray(expected, dtype=np.float64)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * 1e-3 * np.abs(expected).max())
