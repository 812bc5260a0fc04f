"""A grid as written: rows, teacher-student pairs and seeds in YAML. `bench.grid` makes runs of it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from bench import outside
from bench import protocol as protocols
from bench.run import Network
from bench.surroundings import paths, yamlio
from methods import Settings, check
from zoo.errors import BadInput
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


def names() -> list[str]:
    """Grids that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> GridFile:
    """A grid by name or by the path of a YAML file; paths in it start from its folder."""
    path = yamlio.find(name, "grid", FOLDER)
    grid = check(GridFile, yamlio.read(path, "grid"), f'grid "{path.name}"')
    folder = path.parent.absolute()
    pairs = [
        pair.model_copy(update={"teacher_weights": str(weights_file(pair.teacher_weights, folder))})
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


def weights_file(text: str, folder: Path | None = None) -> Path:
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
