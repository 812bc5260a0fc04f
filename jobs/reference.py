"""Every key of grids, protocols and cluster files, from the models that check them: `python -m jobs.reference`.

It prints docs/reference.md. A key's line is its `description`, or the docstring that stands below it in its class.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import methods
from bench import listing
from bench.gridfile import GridFile, PairEntry, RowEntry
from bench.protocol import MethodRecipe, NamedRow, Protocol
from bench.run import Data, Network, Strong, Train
from bench.surroundings.commandline import DONE, Parser, lasting_output
from jobs.slurm.cluster import Cluster, Match, ResourceClass
from methods.kd import WithKD
from methods.settings import Settings
from zoo.errors import BadInput

NOT_WRITTEN = ("source", "digest")  # of data and networks: found out from files, and refused where written
PATTERNS = {r"^\S+$": "text without blanks", r"^[\w.+-]+:[1-9]\d*$": "TYPE:COUNT"}
HEADINGS = ("key", "value", "default", "what it means")
INTRODUCTION = """\
# Keys of YAML files

Every key of grids, protocols and cluster files. `python -m jobs.reference` writes this page from the models that check
the files, and a test compares the two. `kd-bench --list keys` prints it; `kd-bench --validate FILE` checks a file.

A key without a default must be there. Numbers are written as 0.1 or 1.0e-4, switches as true or false, nothing as null.
Names of methods and architectures may be written as papers print them. Paths start from the file's folder."""


@dataclass(frozen=True)
class Key:
    """One key, in words for a person."""

    name: str
    value: str
    default: str
    means: str


@dataclass(frozen=True)
class Section:
    """Keys that stand together; `level` is that of its heading."""

    title: str
    level: int
    text: str
    keys: tuple[Key, ...]
    model: type[Settings] | None = None


def sections() -> Iterator[Section]:
    """The whole reference, in order. BadInput, which names it, for a key that nothing is said of."""
    yield _of("Grids", GridFile, "What a table has: rows, pairs and seeds (--grid mine.yaml).", level=2)
    yield _of("An entry of pairs", PairEntry)
    yield _of("An entry of methods", RowEntry)
    yield _of("An entry of networks, by its name", Network)
    text = "How runs are trained (--protocol mine.yaml). With extends only what differs."
    yield _of("Protocols", Protocol, text, level=2)
    yield _of("data", Data)
    yield _of("data.strong", Strong)
    yield _of("train", Train)
    yield _of("An entry of methods, by its name", MethodRecipe)
    yield _of("An entry of rows, by its name", NamedRow)
    yield Section("Parameters of methods", 2, "What `params` holds, in protocols and in rows of grids.", ())
    for cls, names in _by_parameters().items():
        shared = tuple(WithKD.model_fields) if issubclass(cls, WithKD) else ()
        text = f"And {' and '.join(shared)}, see KD beside a method." if shared else ""
        yield _of(", ".join(names), cls, text, leave_out=shared)
    yield _of("KD beside a method", WithKD)
    text = "What SLURM jobs ask for (--cluster mine.yaml); every key may be left out."
    yield _of("Cluster files", Cluster, text, level=2)
    above = tuple(name for name in ResourceClass.model_fields if name in Cluster.model_fields)
    yield _of("An entry of classes", ResourceClass, "Any of the keys above but classes, and:", leave_out=above)
    yield _of("match", Match)


def _by_parameters() -> dict[type[Settings], list[str]]:
    """The methods that have parameters, in table order, by the model of them."""
    found: dict[type[Settings], list[str]] = {}
    for name in methods.names():
        if (model := methods.get(name).Params).model_fields:
            found.setdefault(model, []).append(name)
    return found


def _of(title: str, model: type[Settings], text: str = "", *, level: int = 3, leave_out: Sequence[str] = ()) -> Section:
    left_out = (*NOT_WRITTEN, *leave_out)
    return Section(title, level, text, tuple(key for key in keys(model) if key.name not in left_out), model)


def keys(model: type[Settings]) -> list[Key]:
    """The keys of a model, in their order."""
    schema = model.model_json_schema()
    made = []
    for name, field in model.model_fields.items():
        default = "" if field.is_required() else json.dumps(field.get_default(call_default_factory=True), default=list)
        value = _words(schema["properties"][name], schema.get("$defs", {}))
        made.append(Key(name, value, default, described(model, name)))
    return made


def described(model: type[Settings], name: str) -> str:
    """The line on a key; BadInput where there is none."""
    if said := model.model_fields[name].description:
        return said
    for cls in model.__mro__:
        if name in inspect.get_annotations(cls) and (said := _docstrings(cls).get(name)):
            return said
    raise BadInput(
        f"{model.__module__}.{model.__qualname__}.{name} has no description: write one in a docstring below it"
    )


@cache
def _docstrings(cls: type) -> dict[str, str]:
    """The texts that stand directly below the fields of a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def _words(schema: Mapping[str, Any], models: Mapping[str, Any]) -> str:
    """What values a JSON schema allows, in plain words."""
    if "anyOf" in schema:
        parts = dict.fromkeys(_words(part, models) for part in schema["anyOf"])
        return " or ".join(sorted(parts, key=lambda part: part == "null"))
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        known = models[name]
        return "keys below" if known.get("type") == "object" else _words(known, models)
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        *others, last = map(str, schema["enum"])
        return f"{', '.join(others)} or {last}"
    kind = schema.get("type")
    if kind == "array":
        several = schema.get("prefixItems")
        count = f"{len(several)} " if several else ""
        one = _words(several[0] if several else schema["items"], models)
        many = re.sub("^(whole number|number|text)", r"\1s", one)
        return f"list of {count}{many}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        inside = _words(inner, models) if isinstance(inner, Mapping) else "value"
        return f"mapping of names to {inside}" if inside != "value" else "mapping"
    if kind in ("integer", "number"):
        return " ".join(["whole number" if kind == "integer" else "number", *_bounds(schema)])
    if kind == "string":
        return PATTERNS.get(schema["pattern"], f"text like {schema['pattern']}") if "pattern" in schema else "text"
    return {"boolean": "true or false", "null": "null"}.get(kind, "value")


def _bounds(schema: Mapping[str, Any]) -> Iterator[str]:
    for name, word in (
        ("exclusiveMinimum", "above"),
        ("minimum", "from"),
        ("exclusiveMaximum", "below"),
        ("maximum", "to"),
        ("multipleOf", "in steps of"),
    ):
        if name in schema:
            yield f"{word} {schema[name]:,}"


def markdown() -> str:
    """The page docs/reference.md."""
    lines = [INTRODUCTION]
    for section in sections():
        lines += ["", f"{'#' * section.level} {section.title}"]
        lines += ["", section.text] if section.text else []
        if section.keys:
            lines += ["", f"| {' | '.join(HEADINGS)} |", "|---|---|---|---|"]
        for key in section.keys:
            cells = (f"`{key.name}`", key.value, f"`{key.default}`" if key.default else "", key.means)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def text(width: int | None = None) -> str:
    """The same for a terminal."""
    width = listing.columns(width)
    parts = []
    for section in sections():
        rows = [(key.name, key.default or "-", f"{key.means} ({key.value})") for key in section.keys]
        heading = section.title.upper() if section.level == 2 else section.title
        parts.append("\n".join(filter(None, [heading, section.text])))
        if rows:
            parts[-1] += "\n" + listing.table(("key", "default", "what it means"), rows, width)
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    Parser(prog="python -m jobs.reference", description=__doc__.splitlines()[0]).parse_args(arguments)
    with lasting_output():
        print(markdown(), end="")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
