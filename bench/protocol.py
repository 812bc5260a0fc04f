"""Protocols: versioned training recipes in YAML, and how one resolves into the settings of a single run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

import methods
import zoo
from bench import outside
from bench.datasets import check_sizes
from bench.run import Data, Precision, ProtocolRef, Run, Teacher, Train
from bench.surroundings import yamlio
from methods import Settings, check
from methods.settings import added_later
from zoo.errors import BadInput, choose
from zoo.pairs import split_pair

FOLDER = Path(__file__).parent / "protocols"
OF_ALL = {"dataset", "side", "mean", "std", "source"}  # of a protocol's `data`: what a teacher and its student share
CHECKPOINT = "checkpoint"  # the method name of a run that takes its weights from a file


class MethodRecipe(Settings):
    """What a protocol says of one method: parameters, parameters per pair, and where it trains differently."""

    params: dict[str, Any] = {}
    """The method's parameters, see below."""
    pairs: dict[str, dict[str, Any]] = {}
    """Parameters that replace those on single pairs: {resnet56-resnet20: {beta: 2.0}}."""
    train: dict[str, Any] = {}
    """Keys of train that replace the protocol's for this method."""
    data: dict[str, Any] = {}
    """Keys of data that replace the protocol's for this method: views and strong."""


class NamedRow(Settings):
    """A method with other parameters that the field prints as a row of its own; a grid names it like a method."""

    method: str
    """The method."""
    label: str
    """What the table prints."""
    params: dict[str, Any] = {}
    """Parameters that replace those of the protocol for the method."""
    pairs: dict[str, dict[str, Any]] = {}
    """Parameters that replace those on single pairs."""


class Protocol(Settings):
    """A recipe. Numbers of two protocols are never compared without saying so, hence name and version."""

    name: str
    """What the protocol is called: part of what a run is."""
    version: PositiveInt
    """Raised whenever a number changes: part of what a run is."""
    about: str
    """One line for a person."""
    sources: str
    """Where its numbers come from."""
    extends: str | None = added_later()
    """Another protocol that this one starts from, by name or path; mappings are merged key by key, a list or a null
    replaces what was there.
    """
    data: Data
    """What is trained on."""
    train: Train
    """How."""
    vanilla: dict[str, Any] = {}
    """Keys of train that replace the above for teachers and the Student row."""
    teachers: dict[str, Any] = {}
    """Keys of train that replace those for teachers alone."""
    networks: dict[str, dict[str, Any]] = {}
    """Keys of train that replace all others for a network: {mobilenetv2: {lr: 0.01}}."""
    methods: dict[str, MethodRecipe]
    """What the protocol says of each method, by its name."""
    rows: dict[str, NamedRow] = {}
    """Methods with other parameters as rows of their own, by the name that grids use: {crd_kd: {...}}."""


def names() -> list[str]:
    """Protocols that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def load(name: str) -> Protocol:
    """A protocol by name or by the path of a YAML file; `extends: NAME` inside it starts from another one."""
    path = yamlio.find(name, "protocol", FOLDER)
    values = yamlio.read_extended(path, "protocol", FOLDER)
    protocol = check(Protocol, values, f'protocol "{path.name}"')
    if protocol.data.source:
        raise BadInput(f'protocol "{path.name}": data.source is found out from the folder: leave it out')
    if path.parent == FOLDER and protocol.name != path.stem:
        raise BadInput(f'protocol file "{path.name}" calls itself "{protocol.name}": name and file must agree')
    if path.parent != FOLDER and protocol.name in names():
        raise BadInput(
            f'protocol file "{path}" calls itself "{protocol.name}", which comes with the project: rename it'
        )
    made = {"methods": _recipes(protocol), "networks": _networks(protocol), "rows": _rows(protocol)}
    return protocol.model_copy(update=made)


def _here_or_brought(kind: str, written: str, known: Iterable[str], key: str) -> str:
    """The name that is meant; what only some grids bring along is known where one of them is asked for."""
    try:
        return choose(kind, written, known)
    except BadInput as fault:
        raise BadInput(f"{fault}; one of your own needs a grid that brings it, in its {key}") from None


def _networks(protocol: Protocol) -> dict[str, dict[str, Any]]:
    """The settings of architectures by the names that runs have; what is nobody's, or no setting, is refused."""
    found: dict[str, dict[str, Any]] = {}
    where = f'protocol "{protocol.name}", networks'
    for written, changes in protocol.networks.items():
        arch = _here_or_brought(f"architecture in {where}", written, zoo.architectures(), "networks")
        check(Train, {**protocol.train.model_dump(), **changes}, f"{where}, {arch}")
        if arch in found:
            raise BadInput(f"{where}: {arch} is given twice; remove one")
        found[arch] = changes
    return found


def _recipes(protocol: Protocol) -> dict[str, MethodRecipe]:
    """The recipes by the names that runs have, whatever the file's spelling; what is nobody's is refused."""
    recipes: dict[str, MethodRecipe] = {}
    for written, recipe in protocol.methods.items():
        where = f'protocol "{protocol.name}"'
        method = _here_or_brought(f"method in {where}", written, methods.names(), "methods")
        pairs = by_own_names(recipe.pairs, f'{where}, method "{method}"')
        if method in recipes:
            raise BadInput(f'{where}: the method "{method}" is given twice; remove one')
        recipes[method] = recipe.model_copy(update={"pairs": pairs})
    return recipes


def by_own_names(written: Mapping[str, dict[str, Any]], where: str) -> dict[str, dict[str, Any]]:
    """Parameters per pair, by the pairs' own names."""
    pairs: dict[str, dict[str, Any]] = {}
    for text, params in written.items():
        pair = "-".join(split_pair(text, zoo.architectures()))
        if pair in pairs:
            raise BadInput(f"{where}: the pair {pair} is given twice; remove one")
        pairs[pair] = params
    return pairs


def _rows(protocol: Protocol) -> dict[str, NamedRow]:
    """The rows by their names, none of which, and no label of which, is a method's or another row's."""
    labels = {methods.get(name).label: name for name in methods.names()}
    for name, row in protocol.rows.items():
        where = f'protocol "{protocol.name}", rows'
        if name in methods.names():
            raise BadInput(f'{where}: "{name}" is a method: give the row another name')
        if row.label in labels:
            raise BadInput(f'{where}: {name} has the label "{row.label}" of {labels[row.label]}: give it another')
        labels[row.label] = name
    return {
        name: row.model_copy(
            update={
                "method": choose(f'method in protocol "{protocol.name}", rows', row.method, methods.names()),
                "pairs": by_own_names(row.pairs, f'protocol "{protocol.name}", row "{name}"'),
            }
        )
        for name, row in protocol.rows.items()
    }


def resolve(
    protocol: Protocol,
    method: str,
    student: str,
    seed: int,
    *,
    teacher: Teacher | None = None,
    as_teacher: bool = False,
    params: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
) -> Run:
    """The run of `method` on a pair under a protocol; `params` replaces single parameters (ablations).

    `as_teacher` trains `student` by the protocol's settings for teachers.
    """
    cls = methods.get(method)
    method = cls.name
    student = choose("architecture", student, zoo.architectures())
    recipe = protocol.methods.get(method, MethodRecipe())
    pair = f"{teacher.arch}-{student}" if teacher else student
    where = f'protocol "{protocol.name}", method "{method}", pair {pair}'
    values = {**recipe.params, **recipe.pairs.get(pair, {}), **(params or {})}
    changes = recipe.train if cls.uses_teacher else {**protocol.vanilla, **recipe.train}
    if as_teacher:
        changes = {**changes, **protocol.teachers}
    changes = {**changes, **protocol.networks.get(student, {})}
    train = check(Train, {**protocol.train.model_dump(), **changes}, where)
    data = check(Data, {**protocol.data.model_dump(), **recipe.data}, where)
    if of_all := sorted(recipe.data.keys() & OF_ALL):
        raise BadInput(f"{where}: data: {of_all[0]} is one for all methods: set it in the protocol's own `data`")
    check_sizes(data, where)
    try:
        checked = check(cls.Params, values, where)
    except BadInput:
        if values or method in protocol.methods or outside.source_of(method):
            raise
        raise BadInput(
            f'protocol "{protocol.name}" has no parameters for method "{method}": choose one that has (standard), or '
            "give all of them as `params` of a row"
        ) from None
    return Run(
        method=method,
        params=checked.model_dump(mode="json"),
        student=student,
        teacher=teacher,
        data=data,
        train=train,
        protocol=ProtocolRef(name=protocol.name, version=protocol.version),
        precision=precision,
        seed=seed,
        **outside.identity(method, student, teacher.arch if teacher else None),
    )


def checkpoint(protocol: Protocol, arch: str, sha256: str, precision: Precision = "fp32") -> Run:
    """The run that offers published weights as a teacher: it is named by the SHA-256 of the file, not its path."""
    return Run(
        method=CHECKPOINT,
        params={"sha256": sha256},
        student=arch,
        teacher=None,
        data=protocol.data,
        train=None,
        protocol=ProtocolRef(name=protocol.name, version=protocol.version),
        precision=precision,
        seed=0,
        **outside.identity(CHECKPOINT, arch),
    )
