"""A person's own Python file, and what it imports from its folder: read once, named by its content, kept, imported.

The name is a digest of the syntax trees, so that comments, docstrings and layout do not count, nor where the file lies.
What runs is what was read: the copy in a results folder, whatever becomes of the file meanwhile.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bench import store
from bench.surroundings.sources import written
from zoo.errors import BadInput, in_a_line

INDEX = "source.json"  # beside a kept copy: its digest, and which of its files comes first
PROJECT = {"bench", "jobs", "methods", "reproduce", "zoo"}
NOT_OWN = PROJECT | sys.stdlib_module_names  # never taken for a file of the folder


@dataclass(frozen=True, eq=False)
class Source:
    """Files by their paths within a folder; `entry` is the module that was asked for."""

    digest: str
    entry: str
    files: Mapping[str, bytes]
    said: Mapping[str, str]  # the full path of each, which tracebacks show, and how a person is told of it

    @property
    def package(self) -> str:
        """The name that the folder has among imported modules."""
        return f"source_{self.digest[:16]}"

    @property
    def outside(self) -> set[str]:
        """Top-level names of what is imported from elsewhere, the project and Python's own modules left out."""
        tops = {name.split(".")[0] for text in self.files.values() for name, _ in _imports(ast.parse(text), ())}
        own = {Path(name).parts[0].removesuffix(".py") for name in self.files}
        return tops - own - NOT_OWN - {""}


def read(path: Path, kind: str) -> Source:
    """A file and what it imports from its own folder, in turn. `kind` ("method") names it in errors."""
    folder, files, said = path.parent.absolute(), {}, {}
    if not re.fullmatch(r"[A-Za-z_]\w*\.py", path.name, re.ASCII):
        raise BadInput(f'{kind} file "{path.name}": its name must be one that Python can import, as my_{kind}.py')
    trees: dict[str, ast.Module] = {}
    waiting = [path.name]
    while waiting:
        name = waiting.pop()
        if name in trees:
            continue
        place = folder / name
        try:
            files[name] = place.read_bytes()
            said[str(place)] = name
            trees[name] = ast.parse(files[name], str(place))
        except OSError as error:
            raise BadInput(f'cannot read {kind} file "{place}": {error.strerror}; check the path') from None
        except (SyntaxError, ValueError, RecursionError) as error:
            raise BadInput(f'{kind} file "{path.name}": {in_a_line(error, said)}; correct it') from None
        for module, names in _imports(trees[name], _package(name)):
            waiting += _files_of(module, names, folder)
    return Source(_digest(trees, path.name), path.stem, files, said)


def keep(source: Source, out: Path) -> Path:
    """Copy it into a results folder, where it is not there yet; an altered copy is set aside."""
    folder = _folder(out, source.digest)
    if folder.is_dir():
        try:
            kept(out, source.digest)
            return folder
        except BadInput:
            store.set_aside(folder)
    index = {"digest": source.digest, "entry": source.entry}
    store.write_folder(folder, {**source.files, INDEX: (json.dumps(index, indent=1) + "\n").encode()})
    return folder


def kept(out: Path, digest: str) -> Source:
    """The copy in a results folder; BadInput where it is not what its name says."""
    folder = _folder(out, digest)
    again = "give the grid to reproduce.py again, which writes it"
    try:
        index = store.read_json(folder / INDEX)
        if index is None:
            raise BadInput(f'"{folder}" is missing, a source that this run uses: {again}')
        found = read(folder / f"{index['entry']}.py", "source")
    except (store.Damaged, KeyError, TypeError) as damage:
        raise BadInput(f'"{folder}" is damaged ({damage}): {again}') from None
    if found.digest != digest:
        raise BadInput(f'"{folder}" was altered: {again}')
    return found


def load(source: Source, kind: str) -> ModuleType:
    """Import it, once a process. Whatever it raises becomes one line with its place."""
    name = f"{source.package}.{source.entry}"
    if name in sys.modules:
        return sys.modules[name]
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _FINDER.sources[source.package] = source
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        for loaded in [one for one in sys.modules if one.partition(".")[0] == source.package]:
            del sys.modules[loaded]
        said = "it ends the program" if isinstance(error, SystemExit) else in_a_line(error, source.said)
        remedy = "install what is missing" if isinstance(error, ModuleNotFoundError) else "correct it"
        if isinstance(error, ImportError) and (error.name or "").startswith(f"{source.package}."):
            said, top = said.replace(f"{source.package}.", ""), error.name.split(".")[1]
            remedy = f"the {top} of its folder is meant: correct it, or give that file another name"
        raise BadInput(f'{kind} file "{source.entry}.py" cannot be imported: {said}; {remedy}') from None


def line_of(source: Source, cls: type) -> str:
    """Where a class of it is defined, as "my_loss.py:12"."""
    name = cls.__module__.partition(".")[2].replace(".", "/")
    for file in (f"{name}.py", f"{name}/__init__.py"):
        for node in ast.walk(ast.parse(source.files.get(file, b""))):
            if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
                return f"{file}:{node.lineno}"
    return f"{source.entry}.py"


def _folder(out: Path, digest: str) -> Path:
    return (out / store.SOURCES / digest[:16]).absolute()


def _digest(trees: Mapping[str, ast.Module], entry: str) -> str:
    """Of all trees. The first file goes without its name: it may be called otherwise."""
    texts = sorted(f"{'' if name == entry else name} {written(tree)}" for name, tree in trees.items())
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _package(name: str) -> tuple[str, ...]:
    """Of a file: the folders that lead to it."""
    return Path(name).parts[:-1]


def _imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Modules that a file imports anywhere in it, with what it takes from each; relative ones by their place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            if node.level == 0:
                yield node.module or "", names
            elif node.level - 1 <= len(package):  # further out Python itself refuses
                inside = package[: len(package) - node.level + 1]
                yield ".".join([*inside, *([node.module] if node.module else [])]), names


def _files_of(module: str, names: tuple[str, ...], folder: Path) -> list[str]:
    """The files of the folder that importing `names` from a module reads, none for a module from elsewhere."""
    parts = [part for part in module.split(".") if part]
    if parts and parts[0] in NOT_OWN:
        return []
    wanted = [parts[:length] for length in range(1, len(parts) + 1)] + [[*parts, name] for name in names]
    found = []
    for path in wanted:
        for file in (f"{'/'.join(path)}.py", f"{'/'.join(path)}/__init__.py"):
            if (folder / file).is_file():
                found.append(file)
    return found


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules of sources by their private names."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        package, _, rest = fullname.partition(".")
        source = self.sources.get(package)
        if source is None:
            return None
        inside = rest.replace(".", "/")
        for file, is_package in ((f"{inside}/__init__.py", True), (f"{inside}.py", False)):
            if file in source.files:
                return importlib.util.spec_from_loader(fullname, _Loader(source, file), is_package=is_package)
        if not rest or any(file.startswith(f"{inside}/") for file in source.files):
            return importlib.util.spec_from_loader(fullname, _Loader(source, None), is_package=True)
        return None


_FINDER = _Finder()


class _Loader(importlib.abc.Loader):
    def __init__(self, source: Source, file: str | None) -> None:
        self.source, self.file = source, file

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        if self.file is None:
            return
        path = next(full for full, said in self.source.said.items() if said == self.file)
        module.__file__ = path
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        exec(compile(self.source.files[self.file], path, "exec", dont_inherit=True), module.__dict__)

    def _import(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        """`import`, to which the files of the folder are modules like any other: two folders may name theirs alike."""
        top = name.partition(".")[0]
        own = {Path(file).parts[0].removesuffix(".py") for file in self.source.files}
        if level or top not in own or top in NOT_OWN:
            return builtins.__import__(name, globals, locals, fromlist, level)
        package = self.source.package
        module = importlib.import_module(f"{package}.{name}")
        if not fromlist:
            return sys.modules[f"{package}.{top}"]
        for part in fromlist:
            if part != "*" and not hasattr(module, part) and hasattr(module, "__path__"):
                try:
                    importlib.import_module(f"{module.__name__}.{part}")
                except ModuleNotFoundError:
                    pass  # what asks for it says so
        return module
