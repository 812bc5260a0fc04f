"""What there is to choose from, for a person: `kd-bench --list WHAT`. Files only, so that it answers at once.

Methods are read as syntax trees and grids and protocols as YAML, without what imports torch; of the networks alone it
is imported, to count their weights.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.surroundings import sources, yamlio
from bench.surroundings.commandline import program
from zoo.errors import BadInput, choose

BENCH = Path(__file__).parent
GRIDS, PROTOCOLS = BENCH / "grids", BENCH / "protocols"
GROUPS = {"": "Baseline", "feature": "Feature-based", "logit": "Logit-based", "ours": "Ours"}
WHAT = {
    "grids": "what a table has: rows, pairs, seeds and the protocol (--grid)",
    "protocols": "how its runs are trained (--protocol)",
    "methods": "the rows that a grid can name (--only method=)",
    "pairs": "teacher-student pairs of the grids; any two architectures make one",
    "architectures": "the networks that pairs are made of",
    "data": "the data sets: what each is, where it is looked for, whether it is here",
    "keys": "the keys of grids, protocols and cluster files",
}
NARROWEST = 60

Row = Sequence[str]


def show(what: str, data: Path | None = None, width: int | None = None) -> str:
    """The list of that name as text, of as many columns as the terminal has; "" lists the lists."""
    width = columns(width)
    if not what:
        return table(("list", "what"), [(f"--list {name}", says) for name, says in WHAT.items()], width)
    what = chosen(what)
    made = {
        "grids": _grids,
        "protocols": _protocols,
        "methods": _methods,
        "pairs": _pairs,
        "architectures": _architectures,
    }
    headings, rows, more = _data(data) if what == "data" else made[what]()
    return table(headings, rows, width) + f"\n\n{_wrapped(more, width)}"


def chosen(what: str) -> str:
    """The list that a person means; BadInput where there is none."""
    return choose("list", what, WHAT)


def columns(width: int | None = None) -> int:
    """The width to write for: that of the terminal, and not too little."""
    return max(NARROWEST, width or shutil.get_terminal_size((100, 24)).columns)


def table(headings: Row, rows: Iterable[Row], width: int) -> str:
    """Aligned columns, the last of which is wrapped where lines would be longer than `width`."""
    rows = [tuple(headings), *map(tuple, rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(headings) - 1)]
    indent = sum(widths) + 2 * len(widths)
    lines = []
    for number, row in enumerate(rows):
        begin = "".join(f"{cell:<{wide}}  " for cell, wide in zip(row, widths, strict=False))
        last = textwrap.wrap(row[-1], max(width - indent, 20), break_on_hyphens=False, break_long_words=False) or [""]
        lines += [begin + last[0], *(" " * indent + more for more in last[1:])]
        if number == 0:
            lines.append("-" * min(width, max(map(len, lines))))
    return "\n".join(line.rstrip() for line in lines)


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_on_hyphens=False, break_long_words=False)


def _methods() -> tuple[Row, list[Row], str]:
    recipes = {path.stem: _protocol(path) for path in _files(PROTOCOLS)}
    rows = []
    for found in methods_in_files(sources.read()):
        lacking = _lacking(found["name"], recipes, "methods")
        rows.append((found["name"], found["label"], GROUPS.get(found["group"], ""), found["about"] + lacking))
    named: dict[str, dict[str, Any]] = {}
    for recipe in recipes.values():
        named |= recipe.get("rows", {})
    for name, row in named.items():
        said = f"{row['method']} with other parameters.{_lacking(name, recipes, 'rows')}"
        rows.append((name, row["label"], "Named row", said))
    more = (
        "All but the baseline need a teacher. Where a protocol has no parameters of a method, a row of your grid gives "
        "all of them as `params`. Each file of methods/ has the equation and its sources."
    )
    return ("name", "label", "block", "what"), rows, more


def _lacking(name: str, recipes: dict[str, dict[str, Any]], key: str) -> str:
    """Which protocols say nothing of a method or a named row."""
    without = [recipe for recipe, values in recipes.items() if name not in values.get(key, {})]
    return f" Not in {', '.join(without)}." if without else ""


def methods_in_files(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Name, label, group and first line of each registered method, in table order, from the source alone."""
    classes: dict[str, tuple[ast.ClassDef, str]] = {}
    for text in files.values():
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        about = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
        classes |= {part.name: (part, about) for part in tree.body if isinstance(part, ast.ClassDef)}

    def constants(name: str) -> dict[str, Any]:
        if name not in classes:
            return {}
        node, _ = classes[name]
        found: dict[str, Any] = {}
        for base in reversed(node.bases):
            found |= constants(getattr(base, "id", getattr(base, "attr", "")))
        for part in node.body:
            targets = part.targets if isinstance(part, ast.Assign) else [getattr(part, "target", None)]
            value = getattr(part, "value", None)
            if isinstance(value, ast.Constant):
                found |= {target.id: value.value for target in targets if isinstance(target, ast.Name)}
        return found

    order = list(GROUPS)
    registered = []
    for name, (node, about) in classes.items():
        if sources.registers(node):
            found = constants(name)
            said = about.removeprefix(f"{found['label']}: ")
            base = constants(getattr(node.bases[0], "id", "")).get("label") if node.bases else None
            if base and (own := ast.get_docstring(node)):  # a variant of another method in the same file
                said = f"{base}, {own[:1].lower()}{own[1:].split(':')[0].split('.')[0]}."
            registered.append({**found, "about": said})
    return sorted(registered, key=lambda found: (order.index(found["group"]), found["row"], found["name"]))


def _protocols() -> tuple[Row, list[Row], str]:
    rows = []
    for path in _files(PROTOCOLS):
        recipe = _protocol(path)
        train = recipe["train"]
        size = f"{train['epochs']} x {train['batch']}"
        rows.append((path.stem, str(recipe["version"]), recipe["data"]["dataset"], size, recipe["about"]))
    more = (
        "Epochs x batch are those of students. A protocol of yours is a YAML file; `extends: standard` in it starts "
        f"from another. {program()} --list data says which data sets are here."
    )
    return ("name", "v", "data", "epochs x batch", "what"), rows, more


def _grids() -> tuple[Row, list[Row], str]:
    rows = []
    everything = sum(bool(found["in_all"]) for found in methods_in_files(sources.read()))
    for path in _files(GRIDS):
        grid = yamlio.read(path, "grid")
        count = everything if grid["methods"] == "all" else len(grid["methods"])
        seeds = grid["seeds"] if isinstance(grid["seeds"], int) else len(grid["seeds"])
        needs = "".join(f" Needs {_weights(text)}." for text in sorted(set(_teacher_files(grid))))
        dataset = _protocol(PROTOCOLS / f"{grid['protocol']}.yaml")["data"]["dataset"]
        shape = f"{count} x {len(grid['pairs'])} x {seeds}"
        rows.append((path.stem, grid["protocol"], dataset, shape, f"{grid['about'].rstrip('.')}.{needs}"))
    more = (
        "The Student row counts as a row. A grid of yours is a YAML file with the same keys: "
        f"{program()} --list keys says what each means, --validate FILE checks it, --dry-run shows its runs."
    )
    return ("name", "protocol", "data", "rows x pairs x seeds", "what"), rows, more


def _teacher_files(grid: dict[str, Any]) -> list[str]:
    return [pair["teacher_weights"] for pair in grid["pairs"] if isinstance(pair, dict) and "teacher_weights" in pair]


def _weights(text: str) -> str:
    """A file of weights that a grid names, and whether it is here."""
    missing = [name for name in re.findall(r"\$\{?(\w+)\}?", text) if name not in os.environ]
    if missing:
        return f"{text} (not here: {missing[0]} is not set)"
    return f"{text} ({'found' if Path(os.path.expandvars(text)).is_file() else 'not here'})"


def _pairs() -> tuple[Row, list[Row], str]:
    used: dict[tuple[str, str], list[str]] = {}
    for path in _files(GRIDS):
        for pair in yamlio.read(path, "grid")["pairs"]:
            teacher, student = pair.split("-") if isinstance(pair, str) else (pair["teacher"], pair["student"])
            used.setdefault((teacher, student), []).append(path.stem)
    rows = [(f"{teacher}-{student}", teacher, student, ", ".join(used[teacher, student])) for teacher, student in used]
    more = (
        f"Any two of {program()} --list architectures make a pair, written teacher-student. Teachers are trained "
        "first, by the protocol, unless the grid names a file of weights."
    )
    return ("pair", "teacher", "student", "grids"), rows, more


def _architectures() -> tuple[Row, list[Row], str]:
    import zoo

    rows = [
        (name, f"{zoo.count_parameters(zoo.build_meta(name)) / 1e6:.2f} M", f"{zoo.count_macs(name) / 1e6:.0f} M")
        for name in zoo.architectures()
    ]
    return ("name", "weights", "MACs"), rows, "Of one 32x32 image and 100 classes. Names may be written as papers do."


def _data(given: Path | None) -> tuple[Row, list[Row], str]:
    from bench import datasets

    rows = []
    for name, entry in datasets.ENTRIES.items():
        known = entry.known
        size = f"{known.classes} classes, {known.side}x{known.side}" if known else ""
        rows.append((name, entry.label, size or "as its folder says", place(name, given)))
    more = (
        "Looked for where --data says, else where the variable says, else in ./data. An image folder is one with "
        "train/CLASS/... and test/CLASS/... in it."
    )
    return ("name", "label", "holds", "where"), rows, more


def place(name: str, given: Path | None) -> str:
    """Where a data set is looked for, and whether it is there."""
    from bench import datasets

    entry = datasets.ENTRIES[name]
    if entry.variable is None:
        return "comes with the project: nothing to download"
    try:
        folder = datasets.root(name, given)
    except BadInput:
        return f"not here: give --data DIR or set {entry.variable}"
    place = folder / entry.folder if entry.folder else folder
    if entry.folder is None and not (folder / "train").is_dir():
        return f"no train/ in {folder}: give --data DIR or set {entry.variable}"
    if place.is_dir():
        return f"found: {place}"
    if (folder / entry.archive).is_file():
        return f"found, packed: {folder / entry.archive}"
    if name.startswith("cifar"):
        return f"not here: would be downloaded to {folder}; or give --data DIR, or set {entry.variable}"
    return f"not here: give --data DIR or set {entry.variable}, the folder with {entry.folder}/ or {entry.archive}"


def _protocol(path: Path) -> dict[str, Any]:
    return yamlio.read_extended(path, "protocol", PROTOCOLS)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.yaml"))
