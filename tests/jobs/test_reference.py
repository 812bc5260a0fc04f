"""docs/reference.md is what the models say, every key of theirs with a line that a person wrote."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, PositiveInt

import methods
import reproduce
from bench.grid import GridFile
from bench.protocol import Protocol
from jobs import reference
from jobs.slurm.cluster import Cluster
from methods.kd import WithKD
from zoo.errors import BadInput

PAGE = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")


def test_the_page_is_as_the_models_say(capsys):
    assert reference.main([]) == 0
    assert capsys.readouterr().out == PAGE, "python -m jobs.reference > docs/reference.md writes it again"


def test_every_key_of_every_model_is_there():
    """Models within models, too, and of each method all that its parameters hold."""
    shown = {section.model: [key.name for key in section.keys] for section in reference.sections() if section.model}
    for model in (GridFile, Protocol, Cluster):
        assert shown[model] == list(model.model_fields)
        inner = {name for name, schema in model.model_json_schema()["$defs"].items() if schema["type"] == "object"}
        assert inner - {"Source"} <= {other.__name__ for other in shown}, "give it a section in jobs/reference.py"
    for name in methods.names():
        model = methods.get(name).Params
        beside = list(WithKD.model_fields) if issubclass(model, WithKD) else []
        assert sorted([*shown.get(model, []), *beside]) == sorted(model.model_fields), name
        assert not model.model_fields or re.search(rf"^### (.*, )?{name}(,|$)", PAGE, re.M), name


class Told(methods.Settings):
    """What a model can say of its keys."""

    below: Annotated[int, Field(ge=2, lt=5)] = 3
    """Said
    below.
    """
    inside: Literal["a", "b", "c"] | None = Field(description="Said inside.")
    several: tuple[PositiveInt, ...] = Field(default=(), strict=False)
    """Numbers."""
    names: dict[str, list[float]] = {}
    """Names."""


class Derived(Told):
    own: bool
    """Its own."""


class Silent(Told):
    silent: int

    def method(self) -> None:
        """What stands below the field is of another thing."""


def test_values_in_plain_words():
    assert [(key.name, key.value, key.default, key.means) for key in reference.keys(Derived)] == [
        ("below", "whole number from 2 below 5", "3", "Said below."),
        ("inside", "a, b or c or null", "", "Said inside."),
        ("several", "list of whole numbers above 0", "[]", "Numbers."),
        ("names", "mapping of names to list of numbers", "{}", "Names."),
        ("own", "true or false", "", "Its own."),
    ]


def test_a_key_without_a_line_is_named():
    with pytest.raises(BadInput, match=r"Silent\.silent has no description: write one in a docstring below it"):
        reference.keys(Silent)


def test_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert reproduce.main(["--list", "keys"]) == 0
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines())
    for name in ("teacher_weights", "label_smoothing", "kd_temperature", "signal_delay_s"):
        assert re.search(rf"^{name} ", said, re.M)
