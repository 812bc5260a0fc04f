"""Settings: what fits becomes an object, what does not one line that says why and what to do."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import PositiveInt, ValidationError

import methods
from methods import Settings, check
from zoo import BadInput

KD = {"temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9}


class Inner(Settings):
    rate: float
    name: str = "plain"
    on: bool = True


class Outer(Settings):
    steps: PositiveInt
    inner: Inner
    maybe: Inner | None = None
    many: dict[str, Inner] = {}


GOOD: dict[str, Any] = {"steps": 3, "inner": {"rate": 0.5}}


def message(values: object, model: type[Settings] = Outer) -> str:
    """The one line that `values` is refused with."""
    with pytest.raises(BadInput) as refusal:
        check(model, values, "file.yaml")
    text = str(refusal.value)
    assert text.startswith("file.yaml: ")
    assert "\n" not in text
    error = refusal.value  # no second traceback behind it:
    assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__)
    return text.removeprefix("file.yaml: ")


def test_what_fits_becomes_an_object() -> None:
    settings = check(Outer, {**GOOD, "maybe": None, "many": {"a": {"rate": 1}}}, "file.yaml")
    assert settings == Outer(steps=3, inner=Inner(rate=0.5), many={"a": Inner(rate=1.0)})
    assert isinstance(settings.many["a"].rate, float)  # an integer is a number
    assert check(Outer, settings.model_dump(), "file.yaml") == settings


def test_settings_do_not_change() -> None:
    settings = check(Outer, GOOD, "file.yaml")
    with pytest.raises(ValidationError):
        settings.steps = 4


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({**GOOD, "stesp": 4}, 'unknown key "stesp": did you mean "steps"? choose from inner, many, maybe, steps'),
        ({**GOOD, "xyzzy": 4}, 'unknown key "xyzzy": choose from inner, many, maybe, steps'),
        (
            {**GOOD, "inner": {"rate": 0.5, "nmae": "x"}},
            'unknown key "inner.nmae": did you mean "name"? choose from name, on, rate',
        ),
        (
            {**GOOD, "maybe": {"rate": 0.5, "nmae": "x"}},
            'unknown key "maybe.nmae": did you mean "name"? choose from name, on, rate',
        ),
        (
            {**GOOD, "many": {"first": {"rate": 0.5, "nmae": "x"}}},
            'unknown key "many.first.nmae": did you mean "name"? choose from name, on, rate',
        ),
        ({"inner": {"rate": 0.5}}, '"steps" is missing: add it'),
        ({"steps": 3, "inner": {}}, '"inner.rate" is missing: add it'),
        ({}, '"steps" is missing: add it (and 1 more)'),
    ],
)
def test_keys(values: dict[str, Any], wanted: str) -> None:
    assert message(values) == wanted


@pytest.mark.parametrize("key", ["rate", "inner.rate"])
def test_a_number_that_yaml_read_as_text(key: str) -> None:
    values = {"rate": "1e-4"} if key == "rate" else {**GOOD, "inner": {"rate": "1e-4"}}
    assert message(values, Inner if key == "rate" else Outer) == (
        f'"{key}" is the text "1e-4", not a number: write 0.0001 (YAML reads 1e-4 as text and 1.0e-4 as a number)'
    )


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({**GOOD, "steps": True}, ('"steps"', "integer", "got True")),
        ({**GOOD, "steps": 3.0}, ('"steps"', "integer", "got 3.0")),
        ({**GOOD, "steps": 0}, ('"steps"', "greater than 0", "got 0")),
        ({**GOOD, "steps": None}, ('"steps"', "integer", "got None")),
        ({**GOOD, "steps": "many"}, ('"steps"', "integer", "got 'many'")),
        ({**GOOD, "steps": "three\nlines\nlong"}, ('"steps"', "integer", "got 'three\\nlines\\nlong'")),
        ({**GOOD, "steps": [1] * 1000}, ('"steps"', "integer", "got [1, 1,", "...")),
        ({**GOOD, "inner": {"rate": True}}, ('"inner.rate"', "number", "got True")),
        ({**GOOD, "inner": {"rate": math.nan}}, ('"inner.rate"', "finite", "got nan")),
        ({**GOOD, "inner": {"rate": -math.inf}}, ('"inner.rate"', "finite", "got -inf")),
        ({**GOOD, "inner": {"rate": 0.5, "name": 3}}, ('"inner.name"', "string", "got 3")),
        ({**GOOD, "inner": {"rate": 0.5, "on": 1}}, ('"inner.on"', "boolean", "got 1")),
        ({**GOOD, "inner": {"rate": 0.5, "on": "no"}}, ('"inner.on"', "boolean", "got 'no'")),
        ({**GOOD, "inner": [0.5]}, ('"inner"', "got [0.5]")),
        ({**GOOD, "inner": None}, ('"inner"', "got None")),
        ({**GOOD, "many": {"a": {"rate": "x"}}}, ('"many.a.rate"', "number", "got 'x'")),
        ({**GOOD, "steps": 0, "inner": {"rate": "x"}}, ("(and 1 more)",)),
        ({**GOOD, 7: 1}, ("keys should be strings", "7")),
        ({**GOOD, False: 1}, ("keys should be strings", "False")),
    ],
)
def test_values(values: dict[str, Any], parts: tuple[str, ...]) -> None:
    text = message(values)
    assert all(part in text for part in parts), text
    assert len(text) < 200


@pytest.mark.parametrize("values", [[1, 2], None, "text", 3, [{"steps": 3}], "long " * 100])
def test_only_a_mapping_has_keys(values: object) -> None:
    text = message(values)
    assert text.startswith("expected keys and values, got ")
    assert len(text) < 100


def test_a_validator_speaks_for_itself() -> None:
    """A rule over several keys has no key of its own."""
    from bench.run import Train

    values = {
        "epochs": 2,
        "batch": 1,
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0,
        "milestones": [2, 1],
        "gamma": 0.1,
        "grad_clip": None,
    }
    assert message(values, Train).startswith('"value": milestones must rise strictly, got {')


@pytest.mark.parametrize("name", methods.names())
def test_parameters_of_every_method_are_settings(name: str) -> None:
    params = methods.get(name).Params
    assert issubclass(params, Settings)
    config = params.model_config
    assert config["frozen"] and config["strict"] and config["extra"] == "forbid" and not config["allow_inf_nan"]
    assert 'unknown key "no_such_key"' in message({"no_such_key": 1}, params) or "is missing" in message({}, params)


@pytest.mark.parametrize("value", [0.0, -4.0, True, "4", None, math.inf])
def test_bounds_of_a_method(value: object) -> None:
    assert '"temperature"' in message({**KD, "temperature": value}, methods.get("kd").Params)
    assert message({**KD, "ce_weight": -0.1}, methods.get("kd").Params).startswith('"ce_weight"')


def test_an_integer_given_as_text_has_an_integer_for_a_remedy() -> None:
    assert '"steps" is the text "20", not a number: write 20 ' in message({**GOOD, "steps": "20"}) + " "


def test_a_small_number_given_as_text_has_a_remedy_that_yaml_reads() -> None:
    assert "write 1.0e-05 " in message({"rate": "1e-5"}, Inner)


@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity"])
def test_text_for_no_finite_number_is_not_to_be_written_as_a_number(text: str) -> None:
    assert "write" not in message({"rate": text}, Inner)


@pytest.mark.parametrize("values", [{"rate": "1e-4\n"}, {"rate": 0.5, "na\nme": "x"}])
def test_a_line_break_in_the_file_does_not_break_the_line(values: dict[str, Any]) -> None:
    message(values, Inner)


def test_a_misspelt_required_key_is_not_a_missing_one() -> None:
    assert message({"rtae": 0.5}, Inner).startswith('unknown key "rtae": did you mean "rate"?')


def test_a_capitalised_key_is_part_of_the_path() -> None:
    assert message({**GOOD, "many": {"Big": {"rate": "x"}}}).startswith('"many.Big.rate"')
