"""The rows of a grid's table: which methods, in which order, with which parameters, under which labels."""

from __future__ import annotations

import json
from typing import Any

import methods
from bench import outside
from bench import protocol as protocols
from bench.gridfile import GridFile, RowEntry
from bench.run import Teacher
from zoo.errors import BadInput, choose


def rows_of(grid: GridFile, recipe: protocols.Protocol) -> list[RowEntry]:
    rows = []
    written = [grid.methods] if grid.methods == "all" else grid.methods
    for entry in (one for part in written for one in (methods.all_names() if part == "all" else [part])):
        row = RowEntry(method=entry) if isinstance(entry, str) else entry
        known = (*methods.names(), *(recipe.rows if isinstance(entry, str) else ()))
        _check_row(entry, grid, recipe)
        name = choose(f'method in grid "{grid.name}"', row.method, known)
        if name in recipe.rows:
            rows.append(RowEntry(**recipe.rows[name].model_dump()))
            continue
        pairs = protocols.by_own_names(row.pairs, f'grid "{grid.name}", {name}')
        rows.append(row.model_copy(update={"method": name, "pairs": pairs}))
    # The Student row is what every gain is measured from: it comes first and is never left out.
    baseline = [row for row in rows if not methods.get(row.method).uses_teacher] or [RowEntry(method="vanilla")]
    return baseline + [row for row in rows if methods.get(row.method).uses_teacher] if rows else []


def _check_row(entry: str | RowEntry, grid: GridFile, recipe: protocols.Protocol) -> None:
    """A row of another protocol is not a misspelt method."""
    if not isinstance(entry, str) or entry in recipe.rows or entry in methods.names():
        return
    if elsewhere := [name for name in protocols.names() if entry in protocols.load(name).rows]:
        raise BadInput(
            f'grid "{grid.name}" names the row "{entry}", which protocol "{recipe.name}" has not: '
            f"choose one that has it ({', '.join(elsewhere)}), or leave the row out"
        )


def labelled(
    rows: list[RowEntry], recipe: protocols.Protocol, pairs: list[tuple[str, str]], grid: str
) -> list[RowEntry]:
    """The rows with their labels, each of which stands for one thing."""
    own = {methods.get(name).label: name for name in methods.names()}
    labelled: dict[str, RowEntry] = {}
    for row in rows:
        cls = methods.get(row.method)
        other = _other_params(row, recipe, pairs)
        reserved = next((named for named in recipe.rows.values() if named.label == row.label), None)
        if reserved and RowEntry(**reserved.model_dump()) != row:
            raise BadInput(
                f'grid "{grid}" labels {row.method} "{row.label}", which is a row of protocol '
                f'"{recipe.name}": give another label'
            )
        label = row.label or ", ".join([cls.label, *(f"{name} {_said(row, name)}" for name in other)])
        if label == "Teacher" or (label == "Student") != (not cls.uses_teacher):
            raise BadInput(f'grid "{grid}" labels {row.method} "{label}": Teacher and Student are rows of their own')
        if own.get(label, row.method) != row.method:
            raise BadInput(f'grid "{grid}" labels {row.method} "{label}", which is {own[label]}: give another label')
        if label == cls.label and other:
            raise BadInput(
                f'grid "{grid}" labels {row.method} "{label}" with other parameters than the protocol\'s '
                f"({', '.join(other)}): give another label, or none"
            )
        if label in labelled:
            raise BadInput(f'grid "{grid}" holds the row "{label}" ({row.method}) twice: give each a label of its own')
        labelled[label] = row.model_copy(update={"label": label})
    return list(labelled.values())


def _other_params(row: RowEntry, recipe: protocols.Protocol, pairs: list[tuple[str, str]]) -> list[str]:
    """The parameters of a row that are not the protocol's on one of the pairs."""
    other: dict[str, None] = {}
    for teacher, student in pairs if row.params or row.pairs else ():
        given = Teacher(arch=teacher, run_id="") if methods.get(row.method).uses_teacher else None
        changes = row.params_on(teacher, student)
        mine, usual = (
            protocols.resolve(recipe, row.method, student, 0, teacher=given, params=params).params
            for params in (changes, _needed(row.method, recipe, changes))
        )
        # What is not given and was added to a method later is not in there.
        other.update(dict.fromkeys(name for name in changes if mine.get(name) != usual.get(name)))
    return list(other)


def _needed(method: str, recipe: protocols.Protocol, changes: dict[str, Any]) -> dict[str, Any]:
    """Of a row's parameters those without which its method has none: of one of its author's own that has no defaults
    for them, and of which the protocol says nothing, the row's are the usual ones.
    """
    if method in recipe.methods or not outside.source_of(method):
        return {}
    fields = methods.get(method).Params.model_fields
    return {name: value for name, value in changes.items() if name in fields and fields[name].is_required()}


def _said(row: RowEntry, name: str) -> str:
    if any(name in params for params in row.pairs.values()):
        return "per pair"
    value = row.params[name]
    return value if isinstance(value, str) else json.dumps(value)
