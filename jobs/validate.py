"""Whether a grid, a protocol or a cluster file is right, and what it expands to: `kd-bench --validate FILE`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import methods
import zoo
from bench import grid as grids
from bench import listing
from bench import protocol as protocols
from bench.datasets import ENTRIES, identified
from bench.run import Teacher
from bench.surroundings import paths, yamlio
from bench.surroundings.commandline import BAD_REQUEST, DONE, program, refuse
from jobs.options import PRECISION
from jobs.slurm import cluster, words
from jobs.status import duration
from methods.settings import Faults
from zoo.errors import BadInput, bare
from zoo.pairs import split_pair

MODELS = {"grid": grids.GridFile, "protocol": protocols.Protocol, "cluster file": cluster.Cluster}
ANY_PAIR = ("resnet56", "resnet20")  # on which parameters that are the same for all pairs are checked


def validate(text: str, **asked: Any) -> int:
    """Check a file and print what it is, what is wrong with it, or what it expands to; returns the exit status.

    `asked` holds `protocol`, `seeds`, `precision` and `data` of the command line, as `grid.expand` takes them.
    """
    if not paths.is_file_name(text):
        raise BadInput(f'--validate "{text}": give the path of a YAML file, which ends in .yaml or .yml')
    path = paths.expand(text, "--validate")
    kind = _kind(yamlio.read(path, "YAML", may_be_empty=True), path)
    check: Callable[..., list[str]] = {"grid": _grid, "protocol": _protocol, "cluster file": _cluster}[kind]
    try:
        said = check(str(path), asked)
    except BadInput as fault:
        lines = list(dict.fromkeys(_lines(fault)))
        print(f"{path} is taken for a {kind}; {len(lines)} {'fault' if len(lines) == 1 else 'faults'}", flush=True)
        for line in lines:
            refuse(line)
        return BAD_REQUEST
    print(f"{path} is a {kind}: {said[0]}")
    for line in said[1:]:
        print(f"  {line}")
    return DONE


def _lines(fault: BadInput) -> list[str]:
    return fault.lines if isinstance(fault, Faults) else [str(fault)]


def _raise(lines: list[str]) -> None:
    if lines:
        raise Faults(lines, lines[0])


def _kind(values: Mapping[str, Any], path: Path) -> str:
    """What a file is, by its keys. BadInput where they are nobody's or as many of one as of another."""
    known = {kind: set(map(bare, model.model_fields)) for kind, model in MODELS.items()}
    known["cluster file"] |= {*words.SAME, *words.GPUS}
    found = {kind: sum(bare(str(key)) in names for key in values) for kind, names in known.items()}
    found["protocol" if isinstance(values.get("methods"), Mapping) else "grid"] += "methods" in values
    if not values:  # all lines are comments: of a cluster file every key may be left out
        return "cluster file"
    best = max(found.values())
    kinds = [kind for kind, count in found.items() if count == best]
    if best == 0:
        why = f"none of its keys ({', '.join(map(str, values))}) is one of theirs"
        raise BadInput(f'"{path}" is no {" and no ".join(MODELS)}: {why}; {program()} --list keys has them')
    if len(kinds) > 1:
        raise BadInput(f'"{path}": its keys are as many of a {kinds[0]} as of a {kinds[1]}: complete it')
    return kinds[0]


def _grid(path: str, asked: Mapping[str, Any]) -> list[str]:
    grid = grids.load(path)
    try:
        made = grids.expand(grid, **asked)
    except BadInput as fault:
        _raise([*_lines(fault), *_parts_at_fault(grid, asked)])
        raise
    teachers = {run_id for cell in made.cells if cell.role == "teacher" for run_id in cell.run_ids}
    given = f", {len(made.weights)} from files of weights" if made.weights else ""
    rows = {cell.label for cell in made.cells if cell.role != "teacher"}
    seeds = {run.seed for run in made.runs.values() if run.run_id not in teachers}
    return [
        f'"{made.name}" under protocol "{made.protocol.name}" v{made.protocol.version}',
        f"{_count(len(rows), 'row')} x {_count(len(made.pairs), 'pair')} x {_count(len(seeds), 'seed')}: "
        f"{_count(len(made.runs), 'run')} ({_count(len(teachers), 'teacher')}{given})",
        _data(made.protocol, asked),
        f"see them with: {program()} {_asking(path, asked)} --dry-run",
    ]


def _parts_at_fault(grid: grids.GridFile, asked: Mapping[str, Any]) -> Iterator[str]:
    """The faults of each pair with the rows that are right, and of each row: one fault hides none of the others."""
    rows = [*(methods.all_names() if grid.methods == "all" else grid.methods)]
    parts = [{"pairs": [pair], "methods": ["vanilla"]} for pair in grid.pairs]
    parts += [{"pairs": [pair], "methods": [row]} for row in rows for pair in grid.pairs]
    for part in parts:
        try:
            grids.expand(grid.model_copy(update=part), **asked)
        except BadInput as fault:
            yield from _lines(fault)


def _protocol(path: str, asked: Mapping[str, Any]) -> list[str]:
    recipe = protocols.load(path)
    faults: dict[tuple[str, str], str] = {}
    plain = recipe.data.model_copy(update={"train_images": None, "validation": None})
    try:
        checked = recipe.model_copy(update={"data": identified(recipe.data, asked.get("data"))})
    except BadInput:  # a folder that is not here: its size is not known
        checked = recipe.model_copy(update={"data": plain})
    for method, params, pair in _uses(checked):
        cls = methods.get(method)
        given = Teacher(arch=pair[0], run_id="") if cls.uses_teacher else None
        for as_teacher in (False,) if cls.uses_teacher else (False, True):
            try:
                protocols.resolve(checked, method, pair[1], 0, teacher=given, params=params, as_teacher=as_teacher)
            except BadInput as fault:
                for line in _lines(fault):  # the same on every pair is one fault
                    faults.setdefault((method, line.rpartition(f"pair {'-'.join(pair)}")[2]), line)
    _raise(list(faults.values()))
    lacking = [name for name in methods.names() if name not in recipe.methods]
    train = recipe.train
    without = f", none for {', '.join(lacking)}" if lacking else ""
    return [
        f'"{recipe.name}" v{recipe.version}',
        f"{_count(train.epochs, 'epoch')}, batch {train.batch}, lr {train.lr:g}; parameters for "
        f"{_count(len(recipe.methods), 'method')}{without}; {_count(len(recipe.rows), 'named row')}",
        _data(recipe, asked),
        f"use it with: {program()} {_asking('full', {**asked, 'protocol': path})} --dry-run",
    ]


def _uses(recipe: protocols.Protocol) -> Iterator[tuple[str, Mapping[str, Any], tuple[str, str]]]:
    """Each method with the parameters and the pairs that the protocol names: what can be at fault."""
    entries = [(name, {}, entry.pairs) for name, entry in recipe.methods.items()]
    entries += [("vanilla", {}, {})] if "vanilla" not in recipe.methods else []
    entries += [(row.method, row.params, row.pairs) for row in recipe.rows.values()]
    for method, params, pairs in entries:
        yield method, params, ANY_PAIR
        for text, changes in pairs.items():
            yield method, {**params, **changes}, split_pair(text, zoo.architectures())


def _cluster(path: str, asked: Mapping[str, Any]) -> list[str]:
    found = cluster.load(path)
    limit = f"{duration(60 * found.timeout_min)}" if found.timeout_min else "the partition's time limit"
    memory = f", {found.mem_gb:g} GB" if found.mem_gb else ""
    where = f", partition {found.partition}" if found.partition else ""
    gpus = _count(found.gpu_count, "GPU") + (f" ({found.gpu_type})" if found.gpu_type else "")
    classes = f"; {_count(len(found.classes), 'class', 'classes')} of runs with others" if found.classes else ""
    return [
        f"a job has {gpus}, {_count(found.cpus_per_task, 'core')}{memory}, {limit}{where}{classes}",
        f"use it with: {program()} --grid full --executor slurm --cluster {path}",
    ]


def _asking(grid: str, asked: Mapping[str, Any]) -> str:
    """The words of a command line that ask for a grid, with what else was asked for when the file was checked."""
    given = {name: value for name, value in asked.items() if value is not None and value != PRECISION}
    if "seeds" in given:
        given["seeds"] = ",".join(map(str, given["seeds"])) + ","
    return shlex.join(["--grid", grid, *(word for name, value in given.items() for word in (f"--{name}", str(value)))])


def _data(recipe: protocols.Protocol, asked: Mapping[str, Any]) -> str:
    name = recipe.data.dataset
    return f"images: {ENTRIES[name].label}, {listing.place(name, asked.get('data'))}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
