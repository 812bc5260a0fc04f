"""CAT-KD against loops in NumPy, its oracle values and what must hold of it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import methods
import zoo
from methods.cat_kd import class_activations
from tests.methods import reference
from tests.methods.reference import close, numeric_gradient, wave
from zoo import Outputs

torch.set_num_threads(1)
STUDENT, TEACHER = np.maximum(wave(2, 3, 8, 0.1, 1), 0), np.maximum(wave(2, 4, 8, 0.9, 1.5), 0)
W_S, W_T = np.sin(0.9 * np.arange(30)).reshape(10, 3), np.cos(0.4 * np.arange(40)).reshape(10, 4)


def by_hand(map_s, w_s, map_t, w_t, cells: int, normalise: bool = False) -> float:
    """The activation maps at full height first, then their cells, each class by itself."""
    batch, classes, size = len(map_s), len(w_s), map_s.shape[2] // cells
    total = 0.0
    for b, c in np.ndindex(batch, classes):
        sides = []
        for maps, weight in ((map_s, w_s), (map_t, w_t)):
            cam = sum(weight[c, d] * maps[b, d] for d in range(maps.shape[1]))
            pooled = [
                cam[y * size : (y + 1) * size, x * size : (x + 1) * size].sum() / size**2
                for y in range(cells) for x in range(cells)
            ]  # fmt: skip
            length = math.sqrt(sum(v * v for v in pooled)) if normalise else 1.0
            sides.append([v / length for v in pooled])
        total += sum((s - t) ** 2 for s, t in zip(*sides, strict=True)) / (batch * classes * cells**2)
    return total


def outputs(maps: torch.Tensor, weight: np.ndarray | torch.Tensor) -> Outputs:
    head = nn.Linear(weight.shape[1], weight.shape[0]).double()
    if isinstance(weight, torch.Tensor):
        del head.weight
        head.weight = weight
    else:
        head.weight.data = torch.tensor(weight)
    pooled = maps.mean((2, 3))
    return replace(reference.outputs(head(pooled)), last_map=maps, pooled=pooled, head=head)


def distance(map_s: torch.Tensor, w_s, cells: int = 2, normalise: bool = False, map_t=TEACHER, w_t=W_T) -> torch.Tensor:
    cls = methods.get("cat_kd")
    made = cls.__new__(cls)
    nn.Module.__init__(made)
    made.params = reference.settings("cat_kd", {"ce_weight": 1.0, "beta": 1.0, "cells": cells, "normalise": normalise})
    with torch.no_grad():
        teacher = outputs(torch.tensor(map_t), w_t)
    batch = reference.batch_of(np.zeros(len(map_s), dtype=int))
    return made.terms(outputs(map_s, w_s), teacher, batch, reference.progress(1))["activations"]


@pytest.mark.parametrize(
    ("cells", "normalise", "value", "digits"),
    [
        (2, False, 1.60441456923, 5e-12),
        (2, True, 0.450432526218, 5e-13),
        (4, False, 1.62040048796, 5e-12),
        (1, False, 1.59242788917, 5e-12),
    ],
)
def test_oracle_values(cells: int, normalise: bool, value: float, digits: float) -> None:
    assert float(distance(torch.tensor(STUDENT), W_S, cells, normalise)) == pytest.approx(value, abs=digits)
    assert by_hand(STUDENT, W_S, TEACHER, W_T, cells, normalise) == pytest.approx(value, abs=digits)


@pytest.mark.parametrize("normalise", [False, True])
def test_gradients_reach_map_and_classifier(normalise: bool) -> None:
    rng = np.random.default_rng(0)
    map_s, map_t = rng.standard_normal((2, 2, 4, 4)), rng.standard_normal((2, 3, 4, 4))
    w_s, w_t = rng.standard_normal((3, 2)), rng.standard_normal((3, 3))
    leaf, weight = torch.tensor(map_s, requires_grad=True), nn.Parameter(torch.tensor(w_s))
    loss = distance(leaf, weight, normalise=normalise, map_t=map_t, w_t=w_t)
    close(loss.item(), by_hand(map_s, w_s, map_t, w_t, 2, normalise))
    to_map, to_weight = torch.autograd.grad(loss, (leaf, weight))
    slope = numeric_gradient(lambda x: by_hand(x, w_s, map_t, w_t, 2, normalise), map_s, h=0.01)
    close(to_map.numpy(), slope, 1e-6)
    slope = numeric_gradient(lambda w: by_hand(map_s, w, map_t, w_t, 2, normalise), w_s, h=0.01)
    close(to_weight.numpy(), slope, 1e-6)


def test_one_cell_is_the_logits_without_their_bias() -> None:
    cams = class_activations(torch.tensor(STUDENT), torch.tensor(W_S), 1)[:, :, 0]
    whole = outputs(torch.tensor(STUDENT), W_S)
    assert torch.allclose(cams, whole.logits - whole.head.bias, atol=1e-14)


def test_half_precision_and_cells_that_do_not_fit() -> None:
    found = class_activations(torch.tensor(STUDENT, dtype=torch.float16), torch.tensor(W_S).float(), 2)
    assert found.dtype == torch.float32
    params = reference.settings("cat_kd", {"ce_weight": 1.0, "beta": 1.0, "cells": 3})
    nets = zoo.build_meta("resnet8"), zoo.build_meta("resnet20")
    with pytest.raises(zoo.BadInput, match="cells 3: the student's last map is 8 high: choose from 1, 2, 4, 8"):
        methods.get("cat_kd")(params, *nets, None)
