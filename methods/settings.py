"""Frozen, typed settings: how a mapping read from YAML becomes an object, or one line that says why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from zoo.errors import BadInput, choose


class Settings(BaseModel):
    """Base of all settings: immutable; unknown keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def check(model: type[S], values: object, where: str) -> S:
    """Make `model` from a mapping; BadInput with one line naming `where`, the key and the remedy if it does not fit."""
    if not isinstance(values, Mapping):
        raise BadInput(f"{where}: expected keys and values, got {_short(values)}")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise BadInput(f"{where}: {_first_fault(error, model)}") from None


def _first_fault(error: ValidationError, model: type[BaseModel]) -> str:
    faults = error.errors(include_url=False)
    # Where a value may have several forms each form complains: the deepest complaint is of the form that was meant.
    # A misspelt key is also a missing one: the unknown name says more.
    fault = max(faults, key=lambda found: (len(found["loc"]), found["type"] == "extra_forbidden"))
    *path, key = fault["loc"] or ("value",)
    place = ".".join(str(part) for part in fault["loc"] if not _is_branch(part)) or "value"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] == "extra_forbidden":
        owner = _model_at(model, path)
        prefix = "".join(f"{part}." for part in path if not _is_branch(part))
        try:
            choose("key", str(key), owner.model_fields)
        except BadInput as unknown:
            return str(unknown).replace(f'"{key}"', f'"{prefix}{key}"', 1) + more
    if fault["type"] == "missing":
        return f'"{place}" is missing: add it{more}'
    given = fault["input"]
    number = _number(given)
    if number is not None and fault["type"].startswith(("float", "int")):
        return (
            f'"{place}" is the text "{given}", not a number: write {number!r} '
            f"(YAML reads 1e-4 as text and 1.0e-4 as a number){more}"
        )
    message = fault["msg"].removeprefix("Value error, ")
    return f'"{place}": {message[:1].lower()}{message[1:]}, got {_short(given)}{more}'


def _is_branch(part: object) -> bool:
    """Pydantic names the branch of a union in the path ("PairEntry", "list[str]"); a person did not write that."""
    return isinstance(part, str) and (part[:1].isupper() or "[" in part or part in ("str", "int", "float"))


def _model_at(model: type[BaseModel], path: list[Any]) -> type[BaseModel]:
    """The nested model that a fault's path leads to: by field, and where a value has several forms by its name."""
    candidates: list[type[BaseModel]] = []
    for part in path:
        if part in model.model_fields:
            candidates = list(_models_in(model.model_fields[part].annotation))
            model = candidates[0] if len(candidates) == 1 else model
        model = next((candidate for candidate in candidates if candidate.__name__ == part), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not get_args(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _number(text: object) -> float | None:
    try:
        return float(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
