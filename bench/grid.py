"""Grids, expanded into runs and the cells of the table that they fill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import methods
import zoo
from bench import outside, store, usercode
from bench import protocol as protocols
from bench.cells import Cell
from bench.cost import cost_flop, shared_flop
from bench.datasets import facts, identified
from bench.fit import check_fit
from bench.gridfile import GridFile, PairEntry, RowEntry, load, names, parse_seeds, weights_file
from bench.rows import labelled, rows_of
from bench.run import Precision, Run, Teacher, canonical_json
from zoo import registry
from zoo.errors import BadInput, choose
from zoo.pairs import split_pair
from zoo.published import where_to_get

__all__ = ["Grid", "GridFile", "expand", "keep", "load", "names", "parse_seeds"]


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

    def flop(self) -> dict[str, tuple[float, float]]:
        """By run id `cost_flop` and `shared_flop`, which the seeds of a cell have in common."""
        found: dict[str, tuple[float, float]] = {}
        for cell in self.cells:
            run = self.runs[cell.run_ids[0]]
            found |= dict.fromkeys(cell.run_ids, (cost_flop(run), shared_flop(run)))
        return found


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
    rows = rows_of(grid, recipe)
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
    rows = labelled(rows, recipe, [(teacher_run.student, student) for teacher_run, student, _ in served], grid.name)
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
            check_fit(first)
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
    file = weights_file(pair.teacher_weights)
    try:
        zoo.load_weights(_built(recipe, teacher), file)  # a wrong file is refused before anything starts
    except BadInput as error:
        gone = isinstance(error.__cause__, FileNotFoundError)
        raise BadInput(f"{error}{where_to_get(file) if gone else ''}") from None
    return protocols.checkpoint(recipe, teacher, zoo.sha256(file), precision), student, file


def _built(recipe: protocols.Protocol, arch: str) -> zoo.Net:
    known = facts(recipe.data)
    return zoo.build(arch, known.classes, known.side)


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
    flop = grid.flop()
    store.keep_plan(
        out,
        {
            "grid": grid.name,
            "asked": grid.asked,
            "protocol": grid.protocol.model_dump(mode="json"),
            "pairs": grid.pairs,
            "cells": [asdict(cell) for cell in grid.cells],
            "runs": {run_id: run.model_dump(mode="json") for run_id, run in grid.runs.items()},
            "flop": {run_id: flop[run_id][0] for run_id in grid.runs},
            "shared_flop": {run_id: flop[run_id][1] for run_id in grid.runs},
        },
    )
