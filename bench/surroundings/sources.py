"""Which source of a method a result comes from, and which there is now. Files only: no torch, nothing is imported.

The source of a method is its own file and what that imports from `methods`: of a module that is imported from, the
imported definitions and all that they use, in turn. Read as syntax trees, so that comments, docstrings and layout do
not count. The digest goes into results and checkpoints, never into a run's id: old results stay, and are said to be of
another source (`jobs.states`, the report).
"""

from __future__ import annotations

import ast
import hashlib
import re
import shlex
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.cells import TableSpec
from bench.surroundings import commandline

METHODS = Path(__file__).resolve().parents[2] / "methods"
TAG = "source:"  # before a digest, so that it is found in a checkpoint without torch
OTHER, BOTH, UNTOLD = "another source", "several sources", "source not recorded"  # what Origin.of can say

Definition = ast.stmt


@dataclass(frozen=True)
class Source:
    """A method's source as it is in files."""

    digest: str  # of the syntax trees, with TAG
    sha256: str  # of the bytes of its own file


def read(folder: Path = METHODS) -> dict[str, bytes]:
    """The files of a package of methods, by module name."""
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.py"))}


def of_methods(files: Mapping[str, bytes]) -> dict[str, Source]:
    """The source of each method, by its registered name. What cannot be parsed has none."""
    modules = {name: module for name, text in files.items() if (module := _Module.parse(name, text))}
    return {
        method: Source(TAG + _digest(modules, module.name), hashlib.sha256(files[module.name]).hexdigest())
        for module in modules.values()
        for method in module.methods
    }


@cache
def today() -> dict[str, Source]:
    """The sources of the methods of this project as its files are now: once a process. {} where they cannot be read."""
    try:
        return of_methods(read())
    except OSError:
        return {}


def compare(method: str, provenance: Mapping[str, Any]) -> str:
    """What a result's provenance says of its method's source beside today's: "" where it is the same.

    OTHER; BOTH where its run went on after the source had changed; UNTOLD for results of versions that recorded only
    the SHA-256 of the file, where that is another today: comments alone may have changed, or the loss. A method that
    is not here, and a checkpoint, have no source to compare with.
    """
    now, was = today().get(method), provenance.get("method_source")
    if now is None:
        return ""
    if provenance.get("method_sources_before"):
        return BOTH
    if isinstance(was, str) and was:
        return "" if was == now.digest else OTHER
    sha256 = provenance.get("method_sha256")
    return UNTOLD if sha256 and sha256 != now.sha256 else ""


def of_checkpoint(path: Path) -> tuple[str, ...]:
    """The digests that a `last.pt` names; () where it names none or cannot be read. A few milliseconds."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            found = re.findall(TAG.encode() + rb"[0-9a-f]{64}", archive.read(name))
    except (OSError, ValueError, StopIteration, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile):
        return ()
    return tuple(dict.fromkeys(digest.decode() for digest in found))


def redo(spec: TableSpec, run_ids: Collection[str], begun: Collection[str], out: Path | str) -> str:
    """The command that does these runs of a table again, and no other: of those that have `begun` it names no more."""
    chosen = set(run_ids)
    whole, parts = [], {}
    for kind in dict.fromkeys(map(_kind, spec.cells)):
        cells = [cell for cell in spec.cells if _kind(cell) == kind]
        mine = {run_id for cell in cells for run_id in cell.run_ids}
        if not mine & chosen:
            continue
        if mine & set(begun) <= chosen:
            whole.append(kind)
            continue
        for cell in cells:
            seeds = [run_id.rsplit("-", 2)[-2].removeprefix("s") for run_id in cell.run_ids if run_id in chosen]
            if seeds:
                words = f"method={kind},teacher={cell.teacher},student={cell.student},seed={','.join(seeds)}"
                parts[words] = None
    filters = [*([f"method={','.join(whole)}"] if whole else []), *parts]
    asked = spec.asked or ("--grid", spec.grid)
    return f"{commandline.program()} {shlex.join([*asked, '--out', str(out), '--force', '--only', *filters])}"


def _kind(cell: Any) -> str:
    return cell.method if cell.role == "method" else cell.role


def registers(statement: ast.stmt) -> bool:
    """Whether a statement is a class that makes a method known by its name."""
    return isinstance(statement, ast.ClassDef) and any(_called(d) == "register" for d in statement.decorator_list)


@dataclass(frozen=True)
class _Module:
    name: str
    body: tuple[ast.stmt, ...]
    defined: Mapping[str, tuple[ast.stmt, ...]]  # statements by a name that they bind
    acts: tuple[ast.stmt, ...]  # statements that do something else: they count whatever is imported
    imported: Mapping[str, tuple[str, str | None]]  # local name -> (module of methods, name in it; None: all of it)
    outside: Mapping[str, str]  # local name -> what it is elsewhere

    @classmethod
    def parse(cls, name: str, text: bytes) -> _Module | None:
        try:
            body = ast.parse(text).body
        except (SyntaxError, ValueError):
            return None
        defined: dict[str, list[ast.stmt]] = {}
        acts, imported, outside = [], {}, {}
        for statement in body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                imported |= dict(_from_methods(statement))
                origin = getattr(statement, "module", "")
                outside |= {a.asname or a.name.split(".")[0]: f"{origin} {a.name}" for a in statement.names}
            elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.setdefault(statement.name, []).append(statement)
            elif targets := _names_bound(statement):
                for target in targets:
                    defined.setdefault(target, []).append(statement)
            elif not _is_text(statement):
                acts.append(statement)
        frozen = {key: tuple(value) for key, value in defined.items()}
        body = [statement for statement in body if not isinstance(statement, ast.Import | ast.ImportFrom)]
        return cls(name, tuple(body), frozen, tuple(acts), imported, outside)

    @property
    def methods(self) -> Iterator[str]:
        """Names that classes of this module are registered by."""
        for statement in self.body:
            if registers(statement):
                for part in statement.body:
                    value = getattr(getattr(part, "value", None), "value", None)
                    if "name" in _names_bound(part) and isinstance(value, str):
                        yield value


def _digest(modules: Mapping[str, _Module], name: str) -> str:
    """Of one module whole, and of what it uses of the others."""
    wanted: list[tuple[str, str | None]] = [(name, None)]
    seen: dict[tuple[str, str | None], None] = {}
    statements: dict[tuple[str, int], ast.stmt] = {}
    lines: set[str] = set()
    while wanted:
        key = wanted.pop()
        module = modules.get(key[0])
        if key in seen or module is None:
            continue
        seen[key] = None
        if key[1] is None:
            found = module.body
        else:
            if key[1] in module.imported:
                wanted.append(module.imported[key[1]])
            found = (*module.defined.get(key[1], ()), *module.acts)
        for statement in found:
            statements[key[0], statement.lineno * 10_000 + statement.col_offset] = statement
            for used in _names_used(statement):
                if used in module.imported:
                    wanted.append(module.imported[used])
                elif used in module.defined:
                    wanted.append((module.name, used))
                elif used in module.outside:
                    lines.add(f"{module.name} {used}: {module.outside[used]}")
        if key[1] is None:
            wanted += [target for target in module.imported.values() if target[1] is None]
    ordered = sorted(statements.items(), key=lambda item: item[0])
    texts = [*(f"{module} {written(statement)}" for (module, _), statement in ordered), *sorted(lines)]
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def written(node: Any) -> str:
    """A syntax tree as text, the same in every version of Python: what is empty is left out, and where it stood."""
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__} {node.value!r}"
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields)
        inner = (
            f"{name}={written(value)}" for name, value in fields if value not in (None, []) and name != "type_comment"
        )
        return f"{type(node).__name__}({', '.join(inner)})"
    if isinstance(node, list):
        return f"[{', '.join(written(part) for part in node if not _is_text(part))}]"
    return repr(node)


def _is_text(node: Any) -> bool:
    """A docstring, or another text that stands for itself."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _names_bound(statement: ast.stmt) -> list[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    simple = isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign)
    return [target.id for target in targets if isinstance(target, ast.Name)] if simple else []


def _names_used(statement: ast.stmt) -> set[str]:
    names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    # Annotations that are texts name what they mean, too.
    texts = (node.value for node in ast.walk(statement) if isinstance(node, ast.Constant))
    return names | {text for text in texts if isinstance(text, str) and text.isidentifier()}


def _from_methods(statement: ast.Import | ast.ImportFrom) -> Iterable[tuple[str, tuple[str, str | None]]]:
    """What an import takes from the package: local name, module, and the name in it."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            if alias.name.startswith("methods."):
                yield alias.asname or alias.name, (alias.name.split(".")[1], None)
        return
    origin = statement.module or ""
    inside = origin.removeprefix("methods").strip(".") if statement.level == 0 else origin
    if statement.level > 1 or (statement.level == 0 and origin.split(".")[0] != "methods"):
        return
    for alias in statement.names:
        local = alias.asname or alias.name
        if not inside:  # a module of the package, or a name that its __init__ passes on
            yield local, (alias.name, None)
        else:
            yield local, (inside.split(".")[0], None if alias.name == "*" else alias.name)


def _called(decorator: ast.expr) -> str:
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    return getattr(target, "id", getattr(target, "attr", ""))
