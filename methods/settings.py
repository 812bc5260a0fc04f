"""Frozen, typed settings: how a mapping read from YAML becomes an object, or one line that says why not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoo.errors import BadInput, unknown


class Settings(BaseModel):
    """Base of all settings: immutable; unknown keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def added_later(default: Any = None) -> Any:
    """Left out where it is the default: runs named before the setting existed keep their ids."""
    return Field(default=default, exclude_if=lambda value: value == default)


S = TypeVar("S", bound=Settings)


def check(model: type[S], values: object, where: str) -> S:
    """Make `model` from a mapping; BadInput with one line naming `where`, the key and the remedy if it does not fit."""
    if not isinstance(values, Mapping):
        raise BadInput(f"{where}: expected keys and values, got {_short(values)}")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first, *others = _faults(error, model)
        more = f" (and {len(others)} more)" if others else ""
        raise Faults([f"{where}: {fault}" for fault in (first, *others)], f"{where}: {first}{more}") from None


class Faults(BadInput):
    """Several faults of one mapping: the first is the message, `lines` has one each."""

    def __init__(self, lines: list[str], message: str) -> None:
        super().__init__(message)
        self.lines = lines


def _faults(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Each fault in one line, the one that says most first."""
    # Where a value may have several forms each form complains: the deepest complaint is of the form that was meant.
    # A misspelt key is also a missing one: the unknown name says more.
    faults = error.errors(include_url=False)
    faults.sort(key=lambda found: (len(found["loc"]), found["type"] == "extra_forbidden"), reverse=True)
    said: list[tuple[list[str], str]] = []
    for fault in faults:
        owner, written = _walk(model, fault["loc"])
        misspelt = fault["type"] == "missing" and any(f'did you mean "{written[-1]}"' in line for _, line in said)
        if misspelt or any(place[: len(written)] == written for place, _ in said):
            continue
        line = " ".join(_said(fault, owner, written).split())  # a line break in the file does not break the line
        said.append((written, line))
    return [line for _, line in said]


def _said(fault: Mapping[str, Any], owner: type[BaseModel], written: list[str]) -> str:
    place = ".".join(written) or "value"
    if fault["type"] == "extra_forbidden":
        refusal = unknown("key", written[-1], owner.model_fields)
        return str(refusal).replace(f'"{written[-1]}"', f'"{place}"', 1)
    if fault["type"] == "missing":
        return f'"{place}" is missing: add it'
    given = fault["input"]
    remedy = _number(given, whole=fault["type"].startswith("int"))
    if remedy and fault["type"].startswith(("float", "int")):
        return (
            f'"{place}" is the text "{given}", not a number: write {remedy} '
            f"(YAML reads 1e-4 as text and 1.0e-4 as a number)"
        )
    message = fault["msg"].removeprefix("Value error, ")
    return f'"{place}": {message[:1].lower()}{message[1:]}, got {_short(given)}'


def _walk(model: type[BaseModel], path: tuple[int | str, ...]) -> tuple[type[BaseModel], list[str]]:
    """The innermost model that a fault's path leads to, and the path without what a person did not write.

    Pydantic puts the form it tried into the path where a value may have several: "PairEntry", "list[...]", "str".
    """
    written: list[str] = []
    forms: list[type[BaseModel]] = []
    several = False
    for part in path:
        if part in model.model_fields:
            annotation = model.model_fields[part].annotation
            forms = list(_models_in(annotation))
            several = _has_forms(annotation)
            model = forms[0] if len(forms) == 1 and not several else model
            written.append(str(part))
            continue
        chosen = next((form for form in forms if several and form.__name__ == part), None)
        model = chosen or model
        if not chosen and not (several and _is_form(part)):
            written.append(str(part))
    return model, written


def _has_forms(annotation: Any) -> bool:
    """Whether a union of more than one thing and None stands anywhere in an annotation."""
    parts = [part for part in get_args(annotation) if part is not NoneType]
    return (get_origin(annotation) in (Union, UnionType) and len(parts) > 1) or any(map(_has_forms, parts))


def _is_form(part: int | str) -> bool:
    return isinstance(part, str) and (
        part in ("str", "int", "float", "none") or "[" in part or part.startswith("constrained-")
    )


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not get_args(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _number(text: object, whole: bool) -> str | None:
    """How to write in YAML the finite number that a text spells; None if it spells none."""
    try:
        value = float(text) if isinstance(text, str) else math.nan
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    if whole and value == int(value):
        return str(int(value))
    mantissa, e, exponent = repr(value).partition("e")
    return mantissa + (".0" if e and "." not in mantissa else "") + e + exponent


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
