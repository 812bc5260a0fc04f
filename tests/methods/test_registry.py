"""The registry of methods, their table order, and the warm-up that methods share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import methods
from methods import contract
from zoo import BadInput


@pytest.mark.parametrize("name", methods.names())
def test_class_attributes(name: str) -> None:
    cls = methods.get(name)
    assert cls.name == name and cls.label and "\n" not in cls.label
    assert cls.group in ("", *methods.GROUPS) and (cls.group or not cls.uses_teacher)
    assert cls.__doc__ and issubclass(cls.Params, methods.Settings)


def test_labels_are_told_apart() -> None:
    labels = [methods.get(name).label for name in methods.names()]
    assert len(set(labels)) == len(labels)


def test_warm_up_is_linear_and_ends_at_one() -> None:
    factors = [methods.Progress(torch.tensor(float(epoch))).warm_up(20) for epoch in (1, 7, 19, 20, 21, 240)]
    assert all(isinstance(factor, Tensor) for factor in factors)  # a number would be frozen into a captured step
    assert [float(factor) for factor in factors] == pytest.approx([0.05, 0.35, 0.95, 1, 1, 1], abs=1e-7)
    assert factors[3:] == [1, 1, 1]


def test_table_order() -> None:
    order = ["", *methods.GROUPS]
    assert methods.GROUPS == ("feature", "logit", "ours")
    blocks = [order.index(methods.get(name).group) for name in methods.names()]
    assert blocks == sorted(blocks)
    rows = [(block, methods.get(name).row) for block, name in zip(blocks, methods.names(), strict=True)]
    assert rows == sorted(rows)
    table = "vanilla fitnet rkd crd ofd reviewkd kd clkd dkd mlkd sdd skd skd_paper"  # the target table's, from above
    assert [name for name in methods.names() if name in table.split()] == table.split()


@pytest.mark.parametrize(
    ("wrong", "near"), [("dkdd", "dkd"), ("XYZ", None), ("fitnets", "fitnet"), ("vanila", "vanilla")]
)
def test_an_unknown_name_suggests_the_nearest(wrong: str, near: str | None) -> None:
    with pytest.raises(BadInput, match=f'unknown method "{wrong}"') as refusal:
        methods.get(wrong)
    text = str(refusal.value)
    assert "\n" not in text and all(known in text for known in methods.names())
    assert (f'did you mean "{near}"?' in text) if near else True


@pytest.mark.parametrize(("printed", "name"), [("KD", "kd"), ("ReviewKD", "reviewkd"), ("SKD-paper", "skd_paper")])
def test_names_as_papers_print_them(printed: str, name: str) -> None:
    assert methods.get(printed).name == name


def attributes(**changes: Any) -> dict[str, Any]:
    full = {"name": "test_only", "label": "Test", "group": "logit", **changes}
    return {key: value for key, value in full.items() if value is not None}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (attributes(name=None), "Broken must set name"),
        (attributes(label=None), "Broken must set label"),
        (attributes(group=None), "Broken must set group"),
        (attributes(label=3), "Broken must set label"),
        (attributes(group="best"), "Broken.group must be one of"),
        (attributes(name="kd"), 'two methods are called "kd": KD and Broken'),
    ],
)
def test_a_broken_class_is_a_programming_error(given: dict[str, Any], complaint: str) -> None:
    before = methods.names()
    with pytest.raises(TypeError, match=complaint):
        methods.register(type("Broken", (methods.Method,), given))
    assert methods.names() == before


def test_a_subclass_needs_a_name_of_its_own() -> None:
    with pytest.raises(TypeError, match='two methods are called "kd"'):
        methods.register(type("Variant", (methods.get("kd"),), {}))


def test_a_registered_class_is_found_and_stands_last_in_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "_REGISTRY", dict(contract._REGISTRY))
    new = type("New", (methods.Method,), attributes(name="a_new_one", group="feature"))
    assert methods.register(new) is new and methods.get("a_new_one") is new
    feature = [name for name in methods.names() if methods.get(name).group == "feature"]
    assert feature[-1] == "a_new_one"


def test_a_method_without_terms_says_so() -> None:
    cls = type("Silent", (methods.Method,), attributes(name="silent"))
    method = cls(cls.Params(), None, None, None)
    with pytest.raises(TypeError, match="silent does not define its loss terms"):
        method.terms(None, None, None, None)
