"""Logit standardization as a switch of KD, DKD and MLKD: oracle values, a NumPy reference, what must hold of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import methods
from methods.standardize import standardized
from tests.methods import reference
from tests.methods.reference import close, measure, numeric_gradient, oracle_inputs, random_inputs
from zoo import BadInput

torch.set_num_threads(1)
KD = {"temperature": 2.0, "ce_weight": 1.0, "kd_weight": 1.0, "standardize": True}
DKD = {"temperature": 2.0, "ce_weight": 1.0, "alpha": 1.0, "beta": 1.0, "warm_up_epochs": 1, "standardize": True}
MLKD = {
    "ce_weight": 0.1,
    "temperatures": [2.0, 2.0, 3.0, 5.0, 6.0],
    "instance_weight": 4.5,
    "batch_weight": 4.5,
    "class_weight": 4.5,
    "strong_instance_weight": 9.0,
    "slipped_temperatures": [],
    "standardize": True,
}


def z_score(z: np.ndarray) -> np.ndarray:
    rows = []
    for row in z:
        mean = sum(row) / len(row)
        deviation = (sum((v - mean) ** 2 for v in row) / (len(row) - 1)) ** 0.5
        rows.append([(v - mean) / (deviation + 1e-7) for v in row])
    return np.array(rows)


def test_oracle_values() -> None:
    z_s, z_t, labels = oracle_inputs()
    row = standardized(torch.tensor(z_s))[0, :4]
    assert row.tolist() == pytest.approx([-0.00121763894, 0.910841998, 1.39394574, 1.22088234], abs=5e-9)
    for temperature, value in ((2.0, 0.631559637927), (3.0, 0.666334404284)):
        terms = measure("kd", KD | {"temperature": temperature}, z_s, z_t, labels)
        assert terms["kd"][0] == pytest.approx(value, abs=5e-13)
    gradient = measure("kd", KD, z_s, z_t, labels)["kd"][1]
    assert gradient[0, :3] == pytest.approx([-0.0183039, -0.0087308, 0.0032735], abs=5e-8)
    usual = measure("kd", KD | {"ce_weight": 0.1, "kd_weight": 9.0}, z_s, z_t, labels)
    assert sum(value for value, _ in usual.values()) == pytest.approx(6.00159205366, abs=5e-12)
    for (alpha, beta, temperature), value in {
        (1.0, 0.0, 2.0): 0.0965723366272,
        (0.0, 1.0, 2.0): 0.593515384812,
        (9.0, 72.0, 2.0): 43.6022587361,
        (18.0, 36.0, 3.0): 24.3615222198,
        (12.0, 24.0, 2.0): 15.403237275,
    }.items():
        given = DKD | {"alpha": alpha, "beta": beta, "temperature": temperature}
        terms = measure("dkd", given, z_s, z_t, labels)
        assert terms["tckd"][0] + terms["nckd"][0] == pytest.approx(value, rel=1e-11)


def test_mlkd_oracle_values() -> None:
    """The released sum with its slip: at the second 2 and at 6 the strong view's term is the weak view's."""
    z_s, z_t, labels = oracle_inputs()
    i, j = np.mgrid[0:8, 0:10]
    strong_s, strong_t = 2 * np.cos(0.4 * i + 0.6 * j), 3 * np.sin(0.25 * i + 0.45 * j)
    method = methods.get("mlkd")(reference.settings("mlkd", MLKD), None, None, None)
    method.slipped = torch.tensor([False, True, False, False, True])
    student, teacher = (
        replace(reference.outputs(torch.tensor(weak)), strong=reference.outputs(torch.tensor(strong)))
        for weak, strong in ((z_s, strong_s), (z_t, strong_t))
    )
    terms = method.terms(student, teacher, reference.batch_of(labels), reference.progress(1))
    found = {key: float(value) for key, value in terms.items()}
    assert found["ce"] == pytest.approx(0.634785648313, abs=5e-12)
    assert found["instance"] + found["strong"] == pytest.approx(68.4196806041, abs=5e-10)
    assert (found["class"], found["batch"]) == pytest.approx((1.03934369868, 0.187617776804), abs=5e-11)


@pytest.mark.parametrize(("batch", "classes"), [(1, 4), (5, 7)])
def test_values_and_gradients(batch: int, classes: int) -> None:
    z_s, z_t, labels = random_inputs(batch, classes)
    slope = lambda loss: numeric_gradient(lambda z: loss(z_score(z), z_score(z_t)), z_s, h=0.005)  # noqa: E731
    kd = lambda s, t: reference.soft_targets(s, t, 2.0)[0]  # noqa: E731
    found = measure("kd", KD, z_s, z_t, labels)
    close(found["kd"][0], kd(z_score(z_s), z_score(z_t)))
    close(found["kd"][1], slope(kd), 1e-6)
    close(found["ce"][0], reference.cross_entropy(z_s, labels)[0])
    found = measure("dkd", DKD, z_s, z_t, labels)
    for name, loss in (("tckd", reference.tckd), ("nckd", reference.nckd)):
        mean = lambda s, t, loss=loss: float(np.mean(loss(s, t, labels, 2.0)[0]))  # noqa: E731
        close(found[name][0], mean(z_score(z_s), z_score(z_t)))
        close(found[name][1], slope(mean), 1e-6)


def test_the_scale_and_place_of_a_row_are_the_labels_business() -> None:
    z_s, z_t, labels = random_inputs(4, 9)
    scale, shift = np.array([[0.5], [2.0], [7.0], [1.0]]), np.array([[3.0], [-1.0], [0.0], [50.0]])
    value, gradient = measure("kd", KD, z_s, z_t, labels)["kd"]
    other, _ = measure("kd", KD, scale * z_s + shift, z_t / scale, labels)["kd"]
    assert other == pytest.approx(value, rel=1e-6)
    assert np.abs(gradient.sum(axis=1)).max() < 1e-15
    assert np.abs((gradient * z_s).sum(axis=1)).max() < 1e-7
    assert np.abs(gradient).max() > 1e-2
    z = standardized(torch.tensor(z_s))
    assert z.mean(dim=1).abs().max() < 1e-15 and z.std(dim=1).numpy() == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize(("name", "params"), [("kd", KD), ("dkd", DKD)])
def test_a_constant_row_and_half_precision(name: str, params: dict) -> None:
    z_s, z_t, labels = random_inputs(4, 9)
    z_s[1] = 2.5
    terms = measure(name, params, z_s, z_t, labels)
    assert all(np.isfinite(value) and np.isfinite(gradient).all() for value, gradient in terms.values())
    assert standardized(torch.tensor(z_s, dtype=torch.float16)).dtype == torch.float32


def test_off_is_as_if_it_did_not_exist() -> None:
    written = {**KD, "standardize": False}
    assert reference.settings("kd", written) == reference.settings("kd", {k: KD[k] for k in list(KD)[:3]})
    assert "standardize" not in reference.settings("kd", written).model_dump(mode="json")
    assert reference.settings("kd", KD).model_dump(mode="json")["standardize"] is True
    with pytest.raises(BadInput, match="logit_clamp and standardize are two ways"):
        reference.settings("dkd", DKD | {"logit_clamp": 10.0})
    with pytest.raises(BadInput, match="no temperature twice"):
        reference.settings("mlkd", MLKD | {"standardize": False})
