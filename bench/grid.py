"""Grids: rows x teacher-student pairs x seeds in YAML, expanded into runs and the cells they fill."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt
from torch import nn
from torch.overrides import TorchFunctionMode

import methods
import zoo
from bench import outside, store, trial, usercode
from bench import protocol as protocols
from bench.cells import Cell
from bench.cost import cost_flop, shared_flop
from bench.datasets import facts, identified, train_size
from bench.run import Network, Precision, Run, Teacher, canonical_json
from bench.surroundings import paths, yamlio
from methods import Settings, check
from zoo import registry
from zoo.errors import BadInput, choose
from zoo.pairs import split_pair
from zoo.published import where_to_get

FOLDER = Path(__file__).parent / "grids"


class PairEntry(Settings):
    """A pair by its two names; with `teacher_weights` its teacher is not trained, its weights come from that file."""

    teacher: str
    """Architecture of the teacher."""
    student: str
    """Architecture of the student."""
    teacher_weights: str | None = None
    """A checkpoint that the teacher's weights come from; null is to train it. A path from the grid's folder; ~ and
    $VARIABLES are filled in.
    """


class RowEntry(Settings):
    """A row of its own: a method under another label or with other parameters, or from a file of its author's.

    Without a label, one with other parameters than the protocol's is labelled with them: a method's own label, which
    published numbers and claims go by, stands for what the protocol says and nothing else.
    """

    method: str | None = None
    """A method, or a named row of the protocol. Of a file with one method it need not be said."""
    file: str | None = None
    """A Python file with a method of your own. A path from the grid's folder."""
    label: str | None = None
    """What the table prints; null is the method's own label, with the parameters that differ."""
    params: dict[str, Any] = {}
    """Parameters that replace the protocol's."""
    pairs: dict[str, dict[str, Any]] = {}
    """Parameters that replace those on single pairs: {resnet56-resnet20: {beta: 2.0}}."""

    def params_on(self, teacher: str, student: str) -> dict[str, Any]:
        """What is set on a pair."""
        return {**self.params, **self.pairs.get(f"{teacher}-{student}", {})}


def parse_seeds(text: str, *, one_is_a_seed: bool = False) -> list[int]:
    """`--seeds 3` is the seeds 0, 1, 2; `0,4` and `7,` are these seeds, `1-3` is 1, 2, 3.

    `one_is_a_seed`: as `--seed` reads it, to which 42 is the seed 42.
    """
    text = re.sub(r"\s*([,-])\s*", r"\1", text.strip())
    if one_is_a_seed and re.fullmatch(r"\d{1,9}", text):
        return [int(text)]
    if re.fullmatch(r"\d{1,4}", text) and int(text) > 0:
        return list(range(int(text)))
    if re.fullmatch(r"\d{1,9}(,\d{1,9})*,?", text) and "," in text:
        return [int(part) for part in text.strip(",").split(",")]
    if (ends := re.fullmatch(r"(\d{1,4})-(\d{1,4})", text)) and int(ends[1]) <= int(ends[2]):
        return list(range(int(ends[1]), int(ends[2]) + 1))
    if one_is_a_seed:
        raise BadInput(f'--seed "{text}": give a seed (42), a list (0,1,2) or a range (0-2), of whole numbers from 0')
    raise BadInput(f'--seeds "{text}": give a count (3), a list (0,1,2; a single seed as 7,) or a range (0-2)')


def _seeds_as_written(value: Any) -> Any:
    """In a file a text means what --seeds makes of it."""
    if value is None:
        raise ValueError("give a count (3), a list ([0, 1, 2]) or a range (0-2)")
    if not isinstance(value, str):
        return value
    try:
        return parse_seeds(value)
    except BadInput as error:
        raise ValueError(str(error).removeprefix("--seeds ").replace(f'"{value}": ', "", 1)) from None


def _list_as_written(value: Any) -> Any:
    """A text with commas means a list of its parts."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) and value != "all" else value


class GridFile(Settings):
    """A grid as written."""

    name: str
    """What the grid is called in reports."""
    about: str
    """One line for a person."""
    protocol: str
    """The protocol, by name or path; --protocol replaces it."""
    pairs: Annotated[list[str | PairEntry], BeforeValidator(_list_as_written)]
    """Pairs as teacher-student (resnet56-resnet20), as a list or with commas between them; or mappings with the keys of
    a pair.
    """
    methods: Annotated[Literal["all"] | list[str | RowEntry], BeforeValidator(_list_as_written)]
    """Rows of the table: all is the target table's; else names of methods or named rows, as a list or with commas
    between them; or mappings with the keys of a row. The Student row is always there.
    """
    seeds: Annotated[PositiveInt | list[NonNegativeInt], BeforeValidator(_seeds_as_written)]
    """How many (3 is 0, 1, 2), or which: [0, 4], 0-2; --seeds replaces it."""
    teacher_seed: NonNegativeInt = Field(default=0)
    """The seed of the teachers, one run for all students."""
    networks: dict[str, Network] = {}
    """Networks that do not come with the project, by the names that pairs give them: mappings with the keys of a
    network.
    """


@dataclass(frozen=True)
class Grid:
    """Every run fully resolved and named; nothing has started."""

    name: str
    protocol: protocols.Protocol
    runs: Mapping[str, Run]  # by run id, teachers before their students
    cells: tuple[Cell, ...]
    pairs: tuple[tuple[str, str], ...]
    weights: Mapping[str, Path]  # run id of a checkpoint -> its file
    asked: tuple[str, ...] = ()  # words of the command line that ask for it
    sources: tuple[usercode.Source, ...] = ()  # files of their authors' own that its runs use


def names() -> list[str]:
    """Grids that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> GridFile:
    """A grid by name or by the path of a YAML file; paths in it start from its folder."""
    path = yamlio.find(name, "grid", FOLDER)
    grid = check(GridFile, yamlio.read(path, "grid"), f'grid "{path.name}"')
    folder = path.parent.absolute()
    pairs = [
        pair.model_copy(update={"teacher_weights": str(_weights_file(pair.teacher_weights, folder))})
        if isinstance(pair, PairEntry) and pair.teacher_weights is not None
        else pair
        for pair in grid.pairs
    ]
    rows = [_own_file(row, folder) for row in grid.methods] if grid.methods != "all" else grid.methods
    networks = {name: _own_factory(network, folder) for name, network in grid.networks.items()}
    recipe = grid.protocol
    if paths.is_file_name(recipe):
        recipe = str(yamlio.find(recipe, "protocol", protocols.FOLDER, folder))
    return grid.model_copy(update={"pairs": pairs, "protocol": recipe, "methods": rows, "networks": networks})


def _own_file(row: str | RowEntry, folder: Path) -> str | RowEntry:
    """A row with the whole path of its file, where it has one; a file alone may be written as a method is."""
    if isinstance(row, str):
        row = RowEntry(file=row) if row.endswith(".py") else row
    if isinstance(row, str) or row.file is None:
        return row
    return row.model_copy(update={"file": str(_from_grid(row.file, "method file", folder))})


def _own_factory(network: Network, folder: Path) -> Network:
    own = outside.OWN_FILE.fullmatch(network.factory)
    if not own:
        return network
    path = _from_grid(own["path"], "factory", folder)
    return network.model_copy(update={"factory": f"{path}:{own['attribute']}"})


def expand(
    grid: GridFile,
    *,
    protocol: str | None = None,
    seeds: list[int] | None = None,
    precision: Precision = "fp32",
    data: Path | None = None,
) -> Grid:
    """Resolve a grid into runs and cells. Raises BadInput for an empty grid, a wrong name, or two equal runs.

    `data` is --data: where a folder's content is part of a run's identity, it is read here.
    """
    grid, sources = _brought(grid)
    recipe = protocols.load(grid.protocol if protocol is None else protocol)
    recipe = recipe.model_copy(update={"data": identified(recipe.data, data)})
    wanted_seeds = seeds if seeds is not None else _seeds(grid.seeds)
    rows = _rows(grid, recipe)
    for kind, entries in (("pairs", grid.pairs), ("methods", rows), ("seeds", wanted_seeds)):
        if not entries:
            raise BadInput(f'grid "{grid.name}" is empty: `{kind}` names nothing')
    if len(set(wanted_seeds)) < len(wanted_seeds):
        raise BadInput(f"seeds {wanted_seeds}: a seed is given twice; two equal runs say nothing about spread")

    runs: dict[str, Run] = {}
    weights: dict[str, Path] = {}
    cells: list[Cell] = []
    owner: dict[str, str] = {}
    columns: list[tuple[str, str]] = []
    served = [_teacher(pair, recipe, grid.teacher_seed, precision) for pair in grid.pairs]
    rows = _labelled(rows, recipe, [(teacher_run.student, student) for teacher_run, student, _ in served], grid.name)
    for teacher_run, student, file in served:
        runs.setdefault(teacher_run.run_id, teacher_run)
        if file:
            weights[teacher_run.run_id] = file
        teacher = Teacher(arch=teacher_run.student, run_id=teacher_run.run_id)
        column = (teacher.arch, student)
        columns.append(column)
        cells.append(Cell("Teacher", "teacher", "", teacher_run.method, *column, (teacher_run.run_id,)))
        for row in rows:
            cls = methods.get(row.method)
            given = teacher if cls.uses_teacher else None
            first = protocols.resolve(
                recipe,
                row.method,
                student,
                wanted_seeds[0],
                teacher=given,
                params=row.params_on(*column),
                precision=precision,
            )
            _check_fit(first)
            made = first.by_seed(wanted_seeds)
            place = f'"{row.label}" on {column[0]}-{student}'
            for run_id, run in made.items():
                _no_collision(runs.get(run_id, run), run)
                # A plain student or a teacher may serve several pairs; a distilled run belongs to one cell.
                if cls.uses_teacher and run_id in owner:
                    raise BadInput(
                        f'grid "{grid.name}" holds the same run twice, as {owner[run_id]} and as {place} '
                        f"(both are {run_id}): remove one"
                    )
                owner[run_id] = place
                runs.setdefault(run_id, run)
            role = "method" if cls.group else "student"
            cells.append(Cell(row.label, role, cls.group, row.method, *column, tuple(made)))
    if len(set(columns)) < len(columns):
        twice = next(pair for pair in columns if columns.count(pair) > 1)
        raise BadInput(f'grid "{grid.name}" holds the pair {"-".join(twice)} twice: remove one')
    return Grid(grid.name, recipe, runs, tuple(cells), tuple(columns), weights, sources=sources)


def _brought(grid: GridFile) -> tuple[GridFile, tuple[usercode.Source, ...]]:
    """The grid with the names of methods in place of their files, which are known from here on, as its networks are."""
    rows = [] if grid.methods == "all" else grid.methods
    if any(isinstance(row, RowEntry) and not (row.method or row.file) for row in rows):
        raise BadInput(f'grid "{grid.name}": a row of `methods` has neither a method nor a file: add one of them')
    files = [row for row in rows if isinstance(row, RowEntry) and row.file]
    names, sources = outside.bring([(Path(row.file), row.method) for row in files], grid.networks)
    named = [row.model_copy(update={"method": name, "file": None}) for row, name in zip(files, names, strict=True)]
    by_file = dict(zip(map(id, files), named, strict=True))
    methods_named = grid.methods if grid.methods == "all" else [by_file.get(id(row), row) for row in rows]
    return grid.model_copy(update={"methods": methods_named}), sources


def _seeds(seeds: int | list[int]) -> list[int]:
    return list(range(seeds)) if isinstance(seeds, int) else seeds


def _rows(grid: GridFile, recipe: protocols.Protocol) -> list[RowEntry]:
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


def _labelled(
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


def _teacher(
    pair: str | PairEntry, recipe: protocols.Protocol, seed: int, precision: Precision
) -> tuple[Run, str, Path | None]:
    """The teacher's run, the student's architecture, and the teacher's file of weights if it has one."""
    known = zoo.architectures()
    if isinstance(pair, str):
        teacher, student = split_pair(pair, known)
    else:
        teacher, student = (choose("architecture", arch, known) for arch in (pair.teacher, pair.student))
    known = facts(recipe.data)
    for arch in (teacher, student):
        if own := registry.recipe(arch):
            own.facts(known.classes, known.side)  # what does not fit is refused before anything starts
    if isinstance(pair, str) or pair.teacher_weights is None:
        return protocols.resolve(recipe, "vanilla", teacher, seed, as_teacher=True, precision=precision), student, None
    file = _weights_file(pair.teacher_weights)
    try:
        zoo.load_weights(_built(recipe, teacher), file)  # a wrong file is refused before anything starts
    except BadInput as error:
        gone = isinstance(error.__cause__, FileNotFoundError)
        raise BadInput(f"{error}{where_to_get(file) if gone else ''}") from None
    return protocols.checkpoint(recipe, teacher, zoo.sha256(file), precision), student, file


def _built(recipe: protocols.Protocol, arch: str) -> zoo.Net:
    known = facts(recipe.data)
    return zoo.build(arch, known.classes, known.side)


def _weights_file(text: str, folder: Path | None = None) -> Path:
    try:
        return _from_grid(text, "teacher_weights", folder)
    except BadInput as error:
        raise BadInput(f"{error}{where_to_get(text)}") from None


def _from_grid(text: str, what: str, folder: Path | None) -> Path:
    """The path that a grid's file says, `what` being what it says it for."""
    file = paths.expand(text, what, folder).resolve()
    here = paths.expand(text, what)
    if folder and not file.exists() and here.exists():
        raise BadInput(
            f'{what} "{text}" is not in {folder}: a path in a file starts from the file\'s own folder; write'
            f" {os.path.relpath(here, folder)}"
        )
    return file


def _check_fit(run: Run) -> None:
    """Build a run's method on networks without storage, so that what does not fit is said before anything starts."""
    if not run.teacher:
        return
    known = facts(run.data)
    nets, size = (run.teacher.arch, run.student), (known.classes, known.side, train_size(run.data))
    params = canonical_json(run.params)
    views = trial.views(run) if outside.of(run) else _build_unstored(run.method, params, *nets, *size)
    if views and views != run.data.views:
        raise BadInput(
            f'protocol "{run.protocol.name}", method "{run.method}": its parameters need {views} views, '
            f"not {run.data.views}: write into the protocol "
            f"methods: {{{run.method}: {{data: {{views: {views}, strong: {{ops: 2, posterize_bits: [4, 8]}}}}}}}}"
        )


@cache
def _build_unstored(
    method: str, params: str, teacher: str, student: str, classes: int, side: int, images: int
) -> str | None:
    """The views that the method asks for."""
    cls = methods.get(method)
    where = f'method "{method}" on {teacher}-{student}'
    # Networks are built, and what they give is found out, before torch is made to look at each of its calls.
    networks = [_unstored(arch, role, classes, side) for arch, role in ((student, "student"), (teacher, "teacher"))]
    for network in networks:
        zoo.shapes(network)
    with torch.device("meta"), _Drawn():
        train_set = methods.TrainSet(torch.zeros(images, dtype=torch.int64), classes)
        try:
            return cls(check(cls.Params, json.loads(params), where), *networks, train_set).views
        except BadInput as fault:
            raise BadInput(f"{where}: {fault}") from None


class _Drawn(TorchFunctionMode):
    """Whole numbers without storage need not be drawn: torch would import sympy for it, a third of a second."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.randint and isinstance(args[-1], tuple | list):
            return torch.empty(args[-1], dtype=kwargs.get("dtype", torch.int64))
        return function(*args, **kwargs)


@cache
def _unstored(arch: str, role: str, classes: int, side: int) -> nn.Module:
    """One for all methods, which look at it and leave it as it is; a teacher of the same architecture is another."""
    return zoo.build_meta(arch, classes, side)


def _no_collision(known: Run, run: Run) -> None:
    """Eight hex digits can collide: then the two runs are shown instead of one silently standing for both."""
    if known != run:
        texts = " and ".join(canonical_json(one.model_dump(mode="json")) for one in (known, run))
        raise BadInput(f"two different runs share the id {run.run_id}: {texts}")


def keep(grid: Grid, out: Path) -> None:
    """Write the expanded grid beside the results; `out` remembers the grids that it was used for before.

    Its sources are copied first: what a run uses is there as it was read, whatever becomes of the files.
    """
    for source in grid.sources:
        usercode.keep(source, out)
    store.keep_plan(
        out,
        {
            "grid": grid.name,
            "asked": grid.asked,
            "protocol": grid.protocol.model_dump(mode="json"),
            "pairs": grid.pairs,
            "cells": [asdict(cell) for cell in grid.cells],
            "runs": {run_id: run.model_dump(mode="json") for run_id, run in grid.runs.items()},
            "flop": {run_id: cost_flop(run) for run_id, run in grid.runs.items()},
            "shared_flop": {run_id: shared_flop(run) for run_id, run in grid.runs.items()},
        },
    )
