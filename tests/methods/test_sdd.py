"""SDD against a NumPy reference that pools pixel by pixel, and what must hold of regions and their weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import methods
import zoo
from bench import protocol
from bench.run import Teacher
from methods.sdd import region_logits, region_weights
from tests.methods import reference
from tests.methods.reference import close, random_inputs
from zoo import Outputs

torch.set_num_threads(1)
KD = {
    "base": "kd",
    "scales": [1, 2],
    "temperature": 3.0,
    "ce_weight": 0.3,
    "complementary_weight": 2.0,
    "kd_weight": 0.7,
}
DKD = {
    "base": "dkd",
    "scales": [1, 2],
    "temperature": 3.0,
    "ce_weight": 0.3,
    "complementary_weight": 2.0,
    "alpha": 1.5,
    "beta": 4.0,
    "warm_up_epochs": 20,
}


# --- the reference: pixel by pixel, gradients by hand ---------------------------------------------------------------


@dataclass
class Side:
    """What a network gives: last map (B, D, h, h), and its classifier's weight (C, D) and bias (C,)."""

    maps: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def classify(self, sample: int, pixels: list[tuple[int, int]]) -> np.ndarray:
        cell = sum(self.maps[sample, :, i, j] for i, j in pixels) / len(pixels)
        return np.array([sum(row * cell) + shift for row, shift in zip(self.weight, self.bias, strict=True)])


def regions(height: int, scales: list[int]) -> Iterator[list[tuple[int, int]]]:
    """The pixels of every region: the whole map first, then the cells of each grid, which touch them at all."""
    for scale in sorted(scales):
        spans = [range(n * height // scale, -(-(n + 1) * height // scale)) for n in range(scale)]
        for rows in spans:
            for columns in spans:
                yield [(i, j) for i in rows for j in columns]


def pull(side: Side, sample: int, pixels: list[tuple[int, int]], slope: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients of a region's loss by map, weight and bias, from its gradient in the region's logits (C,)."""
    gradient = {"maps": np.zeros_like(side.maps), "bias": slope, "weight": np.zeros_like(side.weight)}
    for i, j in pixels:
        gradient["maps"][sample, :, i, j] = side.weight.T @ slope / len(pixels)
        gradient["weight"] += np.outer(slope, side.maps[sample, :, i, j]) / len(pixels)
    return gradient


def sdd(
    student: Side, teacher: Side, labels: np.ndarray, p: dict[str, Any], epoch: float
) -> tuple[dict[str, tuple[float, dict[str, np.ndarray]]], list[tuple[bool, bool]]]:
    """Terms with their gradients by argument, and per region and sample whether the teacher is right (whole, part)."""
    temperature, batch = p["temperature"], len(labels)
    factor = min(epoch / p["warm_up_epochs"], 1) if p["base"] == "dkd" else 1
    bases: dict[str, tuple[float, Any]] = {
        "kd": (p.get("kd_weight"), lambda s, t, y: reference.soft_targets(s, t, temperature)),
        "tckd": (p.get("alpha"), lambda s, t, y: reference.tckd(s, t, y, temperature)),
        "nckd": (p.get("beta"), lambda s, t, y: reference.nckd(s, t, y, temperature)),
    }
    keys = ["kd"] if p["base"] == "kd" else ["tckd", "nckd"]
    whole_t, whole_s = (next(regions(side.maps.shape[2], [1])) for side in (teacher, student))
    cells = [list(regions(side.maps.shape[2], p["scales"])) for side in (student, teacher)]
    terms: dict[str, Any] = {key: (0.0, None) for key in ["ce", *keys]}
    right = []

    def add(key: str, weight: float, loss: float, gradient: dict[str, np.ndarray]) -> None:
        value, sums = terms[key]
        sums = sums or {name: 0 for name in gradient}
        terms[key] = value + weight * loss, {name: sums[name] + weight * part for name, part in gradient.items()}

    for sample, label in enumerate(labels):
        logits = student.classify(sample, whole_s)[None]
        loss, slope = reference.cross_entropy(logits, [label])
        add("ce", p["ce_weight"] / batch, loss, pull(student, sample, whole_s, slope[0]))
        knows = np.argmax(teacher.classify(sample, whole_t)) == label
        for part_s, part_t in zip(*cells, strict=True):
            z_s, z_t = student.classify(sample, part_s)[None], teacher.classify(sample, part_t)[None]
            sees = np.argmax(z_t) == label
            right.append((bool(knows), bool(sees)))
            weight = factor * (1 if knows == sees else p["complementary_weight"]) / (batch * len(cells[0]))
            for key in keys:
                loss, slope = bases[key][1](z_s, z_t, [label])
                add(key, weight * bases[key][0], float(np.sum(loss)), pull(student, sample, part_s, slope[0]))
    return terms, right


# --- the method -----------------------------------------------------------------------------------------------------


def sides(batch: int = 8, heights: tuple[int, int] = (4, 4), seed: int = 0) -> tuple[Side, Side, np.ndarray]:
    """Two networks of other widths on 4 classes; the teacher is right on the whole map in every second sample."""
    rng = np.random.default_rng(seed)
    student, teacher = (
        Side(2 * rng.standard_normal((batch, d, h, h)), 2 * rng.standard_normal((4, d)), rng.standard_normal(4))
        for d, h in zip((3, 5), heights, strict=True)
    )
    labels = rng.integers(0, 4, batch)
    whole = next(regions(heights[1], [1]))
    for sample in range(0, batch, 2):
        labels[sample] = np.argmax(teacher.classify(sample, whole))
    return student, teacher, labels


def outputs(side: Side, dtype: torch.dtype = torch.float64, trained: bool = False) -> Outputs:
    """As a network gives them: the logits hang on the map, and the classifier is a layer."""
    head = nn.Linear(*side.weight.T.shape).to(dtype)
    for parameter, value in ((head.weight, side.weight), (head.bias, side.bias)):
        parameter.data = torch.from_numpy(value).to(dtype)
        parameter.requires_grad_(trained)
    last_map = torch.from_numpy(side.maps).to(dtype).requires_grad_(trained)
    pooled = last_map.mean((2, 3))
    return Outputs(head(pooled), (), (), last_map, pooled, head)


def make(params: dict[str, Any], student: str = "resnet8", teacher: str = "resnet20") -> methods.Method:
    networks = zoo.build_meta(student), zoo.build_meta(teacher)
    return methods.get("sdd")(reference.settings("sdd", params), *networks, methods.TrainSet(torch.arange(4), 4))


def measure(
    student: Side, teacher: Side, labels: np.ndarray, params: dict[str, Any], epoch: float = 20
) -> dict[str, tuple[float, dict[str, np.ndarray]]]:
    """Terms and their gradients; `make` checks no maps of this size, so it is asked for a scale that always fits."""
    method = make({**params, "scales": [1]})
    method.params = reference.settings("sdd", params)
    at = outputs(student, trained=True)
    terms = method.terms(at, outputs(teacher), reference.batch_of(labels), reference.progress(epoch))
    leaves = {"maps": at.last_map, "weight": at.head.weight, "bias": at.head.bias}
    measured = {}
    for key, term in terms.items():
        gradients = torch.autograd.grad(term, list(leaves.values()), retain_graph=True)
        measured[key] = term.item(), {name: g.numpy() for name, g in zip(leaves, gradients, strict=True)}
    return measured


CASES = {  # scales, heights of the student's and the teacher's map
    "one region": ([1], (4, 4)),
    "2": ([1, 2], (4, 4)),
    "2 and 4": ([1, 2, 4], (8, 8)),
    "a cell is a pixel": ([1, 2, 4], (4, 4)),
    "4 alone": ([1, 4], (4, 4)),
    "cells that do not nest": ([1, 2, 3], (6, 6)),
    "in any order": ([4, 1, 2], (4, 4)),
    "maps of two sizes": ([1, 2], (4, 2)),
    "fewer pixels than cells": ([1, 2, 4], (2, 4)),  # as mobilenetv2 has
    "more and fewer": ([1, 4, 6], (2, 12)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("params", [KD, DKD], ids=["kd", "dkd"])
def test_values_and_gradients(params: dict[str, Any], case: str) -> None:
    scales, heights = CASES[case]
    at = sides(heights=heights)
    expected, right = sdd(*at, {**params, "scales": scales}, epoch=7)
    if len(scales) > 1:
        assert {(True, True), (True, False), (False, True), (False, False)} == set(right)
    terms = measure(*at, {**params, "scales": scales}, epoch=7)
    assert list(terms) == list(expected)
    for key, (value, gradients) in expected.items():
        close(terms[key][0], value)
        for name, gradient in gradients.items():
            close(terms[key][1][name], gradient)


@pytest.mark.parametrize("weight", [0.0, 1.0, 1.7])
@pytest.mark.parametrize("params", [KD, DKD], ids=["kd", "dkd"])
def test_the_complementary_weight(params: dict[str, Any], weight: float) -> None:
    at, params = sides(seed=3), {**params, "complementary_weight": weight}
    expected, _ = sdd(*at, params, epoch=20)
    for key, (value, gradients) in measure(*at, params).items():
        close(value, expected[key][0])
        close(gradients["maps"], expected[key][1]["maps"])


def test_the_reference_gradients_are_the_slopes_of_the_reference() -> None:
    student, teacher, labels = sides(batch=2, heights=(2, 2))
    for params in (KD, DKD):
        expected, _ = sdd(student, teacher, labels, params, epoch=5)
        for name in ("maps", "weight", "bias"):

            def loss(x: np.ndarray, params: dict[str, Any] = params, name: str = name) -> float:
                terms, _ = sdd(Side(**{**vars(student), name: x}), teacher, labels, params, epoch=5)
                return sum(value for value, _ in terms.values())

            slope = sum(gradients[name] for _, gradients in expected.values())
            close(slope, reference.numeric_gradient(loss, getattr(student, name)), 1e-7)


@pytest.mark.parametrize("batch", [1, 2])
def test_small_batches(batch: int) -> None:
    at = sides(batch=batch)
    expected, _ = sdd(*at, DKD, epoch=20)
    for key, (value, _) in measure(*at, DKD).items():
        close(value, expected[key][0])


@pytest.mark.parametrize(
    ("params", "base"),
    [
        (KD, {"temperature": 3.0, "ce_weight": 0.3, "kd_weight": 0.7}),
        (DKD, {"temperature": 3.0, "ce_weight": 0.3, "alpha": 1.5, "beta": 4.0, "warm_up_epochs": 20}),
    ],
    ids=["kd", "dkd"],
)
def test_the_whole_map_alone_is_the_base_method(params: dict[str, Any], base: dict[str, Any]) -> None:
    student, teacher, labels = sides()
    ours = measure(student, teacher, labels, {**params, "scales": [1]}, epoch=7)
    name = params["base"]
    plain = methods.get(name)(reference.settings(name, base), None, None, None)
    at = outputs(student, trained=True)
    terms = plain.terms(at, outputs(teacher), reference.batch_of(labels), reference.progress(7))
    assert list(ours) == list(terms)
    for key, term in terms.items():
        close(ours[key][0], term.item(), 1e-14)
        close(ours[key][1]["maps"], torch.autograd.grad(term, at.last_map, retain_graph=True)[0], 1e-12)


@pytest.mark.parametrize(("epoch", "factor"), [(1, 0.05), (7, 0.35), (20, 1.0), (240, 1.0)])
def test_warm_up_is_dkds_alone(epoch: int, factor: float) -> None:
    at = sides()
    for params in (KD, DKD):
        late, now = measure(*at, params, epoch=1000), measure(*at, params, epoch=epoch)
        for key in now:
            close(now[key][0], late[key][0] * (factor if key in ("tckd", "nckd") else 1), 1e-12)


# --- regions and weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["resnet8", "wrn_16_1", "vgg8", "mobilenetv2"])
@pytest.mark.parametrize("scale", [2, 4])
def test_regions_of_a_network_add_up_to_its_own_logits(arch: str, scale: int) -> None:
    """The classifier is linear: the mean of its answers to all cells is its answer to the mean of the cells."""
    torch.manual_seed(0)
    net = zoo.build(arch).double().eval()
    with torch.no_grad():
        at = net.outputs(torch.randn(2, 3, 32, 32, dtype=torch.float64))
        logits = region_logits(at, (1, scale))
    assert logits.shape == (2, 1 + scale**2, 100)
    assert torch.equal(logits[:, 0], at.logits)
    assert (logits[:, 1:] - at.logits[:, None]).abs().max() > 1e-3 * at.logits.std()
    close(logits[:, 1:].mean(1), at.logits)


def test_only_the_label_counts_for_the_weights() -> None:
    """Rows: regions, the whole map first; what the teacher answers there. Sample 1 is never right: all agree."""
    answers, labels = torch.tensor([[2, 2, 0, 2], [1, 0, 2, 1], [0, 2, 1, 0]]), torch.tensor([2, 3, 2])
    logits = torch.nn.functional.one_hot(answers, 4).double() + 0.5
    weights = region_weights(logits, labels, 1.7)
    assert weights.tolist() == [[1, 1, 1.7, 1], [1, 1, 1, 1], [1, 1.7, 1, 1]]


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher, labels = sides()
    at = outputs(teacher, trained=True)
    for params in (KD, DKD):
        terms = make(params).terms(
            outputs(student, trained=True), at, reference.batch_of(labels), reference.progress(20)
        )
        sum(terms.values()).backward()
    assert at.last_map.grad is at.head.weight.grad is at.head.bias.grad is None


@pytest.mark.parametrize("params", [KD, DKD], ids=["kd", "dkd"])
def test_equal_networks_cost_nothing_and_pull_nowhere(params: dict[str, Any]) -> None:
    student, _, labels = sides()
    terms = measure(student, student, labels, params)
    for key in terms.keys() - {"ce"}:
        assert abs(terms[key][0]) < 1e-14
        assert all(np.abs(gradient).max() < 1e-14 for gradient in terms[key][1].values())


@pytest.mark.parametrize("params", [KD, DKD], ids=["kd", "dkd"])
def test_confident_networks_give_finite_numbers(params: dict[str, Any]) -> None:
    student, teacher, labels = sides()
    at, of = (outputs(Side(100 * s.maps, s.weight, s.bias), torch.float32, trained=True) for s in (student, teacher))
    terms = make(params).terms(at, of, reference.batch_of(labels), reference.progress(20, torch.float32))
    assert of.logits.abs().max() > 200
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(leaf.grad).all() for leaf in (at.last_map, at.head.weight, at.head.bias))


@pytest.mark.parametrize("params", [KD, DKD], ids=["kd", "dkd"])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_regions_are_compared_in_float32(params: dict[str, Any], autocast: bool) -> None:
    """With autocast the classifier is in float32 and answers in bfloat16, and the trainer casts the logits back."""
    student, teacher, labels = sides()
    at, of = (outputs(side, torch.bfloat16, trained=side is student) for side in (student, teacher))
    if autocast:
        for side in (at, of):
            side.head.float()
        at, of = (replace(side, logits=side.logits.float()) for side in (at, of))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        terms = make(params).terms(at, of, reference.batch_of(labels), reference.progress(20, torch.float32))
    # The reference sees the same rounded maps and classifier; what is left is the rounding of the logits.
    rounded = [
        Side(*(v.detach().double().numpy() for v in (side.last_map, side.head.weight, side.head.bias)))
        for side in (at, of)
    ]
    expected, _ = sdd(*rounded, labels, params, epoch=20)
    for key in terms.keys() - {"ce"}:
        assert terms[key].dtype == torch.float32
        assert terms[key].item() == pytest.approx(expected[key][0], rel=0.02)
    sum(terms.values()).backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in (at.last_map, at.head.weight, at.head.bias))


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "student", "beta"),
    [("resnet56", "resnet20", 2.0), ("resnet32x4", "resnet8x4", 8.0), ("vgg13", "vgg8", 6.0)],
)
def test_the_standard_protocol_is_the_released_sd_dkd(teacher: str, student: str, beta: float) -> None:
    """Defaults of shicaiwei123/SDD-CVPR2024: CE 1, alpha 1, T 4, warm-up 20, weight 2; its beta per pair."""
    at = sides()
    released = {"base": "dkd", "temperature": 4.0, "ce_weight": 1.0, "alpha": 1.0, "beta": beta}
    expected, _ = sdd(*at, {**released, "complementary_weight": 2.0, "warm_up_epochs": 20, "scales": [1, 2]}, epoch=5)
    for key, (value, _) in measure(*at, resolved("standard", teacher, student), epoch=5).items():
        close(value, expected[key][0])


def test_the_streamlined_protocol_has_its_weights() -> None:
    at = sides()
    released = {"base": "dkd", "temperature": 4.0, "ce_weight": 2.0, "alpha": 3.0, "beta": 6.0, "warm_up_epochs": 20}
    expected, _ = sdd(*at, {**released, "complementary_weight": 2.0, "scales": [1, 2, 4]}, epoch=5)
    for key, (value, _) in measure(*at, resolved("streamlined", "vgg13", "vgg8"), epoch=5).items():
        close(value, expected[key][0])


def resolved(name: str, teacher: str, student: str) -> dict[str, Any]:
    trained = Teacher(arch=teacher, run_id=f"vanilla-{teacher}-s0-00000000")
    params = protocol.resolve(protocol.load(name), "sdd", student, 0, teacher=trained).params
    make(params, student, teacher)
    return params


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({**KD, "scales": [2, 4]}, '"scales": must contain 1'),
        ({**KD, "scales": [1, 2, 2]}, '"scales": .*no scale twice'),
        ({**KD, "scales": []}, '"scales": must contain 1'),
        ({**KD, "scales": [1, 0]}, "scales"),
        ({**KD, "kd_weight": None}, 'base "kd" needs kd_weight'),
        ({**KD, "alpha": 1.0}, 'base "kd" takes no alpha'),
        ({**KD, "beta": 0.0}, 'base "kd" takes no beta'),
        ({**KD, "warm_up_epochs": 20}, 'base "kd" takes no warm_up_epochs'),
        ({**DKD, "alpha": None}, 'base "dkd" needs alpha'),
        ({**DKD, "beta": None}, 'base "dkd" needs beta'),
        ({**DKD, "warm_up_epochs": None}, 'base "dkd" needs warm_up_epochs'),
        ({**DKD, "kd_weight": 0.9}, 'base "dkd" takes no kd_weight'),
        ({**DKD, "base": "nkd"}, "base"),
    ],
)
def test_settings_that_mean_nothing_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(zoo.BadInput, match=message) as error:
        make(params)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("student", "teacher", "scales", "message"),
    [
        ("resnet8", "resnet20", [1, 3], "scales: .*student.* height 8 .*3 x 3.* 1, 2, 4, 8 and multiples of 8, "),
        ("vgg8", "vgg13", [1, 2, 6], "scales: .*student.* height 4 .*6 x 6.* 1, 2, 4 and "),
        ("mobilenetv2", "vgg13", [1, 2, 6], "scales: .*teacher.* height 4 .*6 x 6"),
    ],
)
def test_scales_that_leave_no_equal_cells_are_refused(
    student: str, teacher: str, scales: list[int], message: str
) -> None:
    with torch.device("meta"), pytest.raises(zoo.BadInput, match=message):
        make({**DKD, "scales": scales}, student, teacher)


def test_scales_up_to_the_height_or_a_multiple_are_fine() -> None:
    with torch.device("meta"):
        make({**DKD, "scales": [1, 2, 4, 8]}, "resnet8", "wrn_16_2")
        make({**DKD, "scales": [1, 2, 4]}, "vgg8", "resnet20")
        make({**DKD, "scales": [1, 2, 4]}, "mobilenetv2", "vgg13")


def test_the_whole_maps_region_is_the_logits_as_the_trainer_gives_them() -> None:
    """In float32 under autocast, where the classifier would answer in bfloat16: other logits, another first region."""
    student, teacher, labels = sides()
    z_s, z_t, _ = random_inputs(8, 4)
    at, of = (replace(outputs(side), logits=torch.from_numpy(z)) for side, z in ((student, z_s), (teacher, z_t)))
    params = {**KD, "complementary_weight": 1.0}
    terms = make(params).terms(at, of, reference.batch_of(labels), reference.progress(1))
    expected, _ = sdd(student, teacher, labels, params, epoch=1)
    pixels = next(regions(4, [1]))
    whole = [np.array([side.classify(i, pixels) for i in range(8)]) for side in (student, teacher)]
    change = reference.soft_targets(z_s, z_t, 3.0)[0] - reference.soft_targets(*whole, 3.0)[0]
    assert abs(change) > 0.1
    close(terms["kd"].item(), expected["kd"][0] + 0.7 * change / 5)
