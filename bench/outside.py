"""Methods and networks that a grid brings along: from files of a person's own, or from installed packages.

A grid makes those known that it names, and no others (`bring`). A worker makes known what its run says (`use`), from
the copies of files in the results folder. Both are known by their names then, like those of the project.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

import methods
import zoo
from bench import store, usercode
from bench.run import Network, Run
from bench.usercode import Source
from methods import Method, check
from zoo import registry
from zoo.errors import BadInput, bare, in_a_line
from zoo.outside import Recipe
from zoo.tried import tried

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}", re.ASCII)
ROLES = ("teacher", "student", "checkpoint", "all")  # words that stand for something else where a method is named
OWN_FILE = re.compile(r"(?P<path>.+\.py):(?P<attribute>\w+)")

_imported: dict[str, tuple[ModuleType, dict[str, type[Method]]]] = {}  # by digest, with what it registers
_sources: dict[str, Source] = {}  # by digest, of what is known at present
_methods: dict[str, tuple[str, type[Method]]] = {}  # by name, with the digest
_networks: dict[str, Network] = {}


def bring(
    files: Sequence[tuple[Path, str | None]], networks: Mapping[str, Network]
) -> tuple[list[str], tuple[Source, ...]]:
    """Make known the methods of `files`, each with the name of the one that is meant, if its file has several, and
    networks by the names that a grid gives them. A factory in a file is PATH.py:NAME.

    Returns the methods' names, and all that was read. BadInput with the line of the file where something is wrong.
    """
    read = cache(usercode.read)
    made: dict[str, tuple[str, type[Method]]] = {}
    named, sources = [], {}
    for path, wanted in files:
        source = read(path, "method")
        cls = _method_of(source, wanted)
        if made.setdefault(cls.name, (source.digest, cls))[0] != source.digest:
            raise BadInput(f'two files have a method called "{cls.name}", {path.name} is one: rename one of the two')
        named.append(cls.name)
        sources[source.digest] = source
    found = {}
    for name, network in networks.items():
        _check_name("network", name, registry.ARCHITECTURES, [other for other in networks if other != name])
        if network.digest:
            raise BadInput(f'network "{name}": digest is found out from the file: leave it out')
        if own := OWN_FILE.fullmatch(network.factory):
            path = Path(own["path"])
            source = read(path, "network")
            sources[source.digest] = source
            changes = {"factory": f"{path.name}:{own['attribute']}", "digest": source.digest}
            network = network.model_copy(update=changes)
        found[name] = network
    _make_known(made, found, sources)
    return named, tuple(sources.values())


def use(run: Run, out: Path) -> None:
    """Make known what a run needs, from the copies in its results folder; nothing where it is known already."""
    made, found, sources = dict(_methods), dict(_networks), dict(_sources)
    digests = {digest for digest in (run.method_digest, *(n.digest for n in (run.networks or {}).values())) if digest}
    for digest in digests - sources.keys():
        sources[digest] = usercode.kept(out, digest)
    if run.method_digest and made.get(run.method, ("",))[0] != run.method_digest:
        made[run.method] = run.method_digest, _method_of(sources[run.method_digest], run.method)
    found |= run.networks or {}
    if (made, found) != (_methods, _networks):
        _make_known(made, found, sources)


def load(path: str | os.PathLike[str]) -> nn.Module:
    """`zoo.load` for runs of every network: what a grid brought along is made known first. That runs the copies of its
    author's files that the results folder keeps.
    """
    given = Path(path).expanduser()
    folder = given if given.is_dir() else given.parent
    try:
        config = (store.read_json(folder / "result.json") or {}).get("config") or {}
    except (store.Damaged, AttributeError):
        config = {}  # said by zoo.load, where it matters
    if config.get("networks") or config.get("method_digest"):
        use(check(Run, config, f"{folder / 'result.json'}"), folder.absolute().parents[1])
    return zoo.load(given)


def identity(method: str, *networks: str | None) -> dict[str, Any]:
    """What a run says of its method and its networks (None: it has none), beyond their names."""
    own = {name: _networks[name] for name in networks if name in _networks}
    return {"method_digest": _methods[method][0] if method in _methods else None, "networks": own or None}


def of(run: Run) -> bool:
    """Whether anything of a run comes from elsewhere."""
    return bool(run.method_digest or run.networks)


def source_of(method: str) -> Source | None:
    """The file that a method comes from; None for one of the project."""
    return _sources.get(_methods[method][0]) if method in _methods else None


def packages(run: Run) -> dict[str, str]:
    """Versions of the packages that a run's method and networks come from or import, by name."""
    networks = (run.networks or {}).values()
    tops = {network.factory.split(".")[0] for network in networks if network.digest is None}
    for digest in (run.method_digest, *(network.digest for network in networks)):
        if digest in _sources:
            tops |= _sources[digest].outside
    return {name: version for top in sorted(tops) for name, version in _version(top)}


def _make_known(
    made: dict[str, tuple[str, type[Method]]], found: dict[str, Network], sources: dict[str, Source]
) -> None:
    recipes = {name: _recipe(name, network, sources.get(network.digest or "")) for name, network in found.items()}
    registry.bring(
        {name: registry.recipe(name) if _networks.get(name) == found[name] else recipes[name] for name in found}
    )
    methods.bring({name: cls for name, (_, cls) in made.items()})
    for kept, now in ((_methods, made), (_networks, found), (_sources, sources)):
        kept.clear()
        kept.update(now)


def _method_of(source: Source, wanted: str | None) -> type[Method]:
    """The method of a file, checked."""
    file = f"{source.entry}.py"
    module, classes = _import(source, "method")
    own = {name: cls for name, cls in classes.items() if cls.__module__ == module.__name__}
    if wanted is not None and wanted not in classes:
        raise BadInput(f'method file "{file}" has no method "{wanted}": it registers {_listed(classes)}')
    if wanted is None and not own:
        raise BadInput(f'method file "{file}" registers no method: write @register above its class')
    if wanted is None and len(own) > 1:
        raise BadInput(f'method file "{file}" registers {_listed(own)}: say which one is meant, as `method: NAME`')
    cls = classes[wanted] if wanted else next(iter(own.values()))
    place = usercode.line_of(source, cls)
    if not issubclass(cls, Method):
        raise BadInput(f"{place}: {cls.__name__} is no Method: write class {cls.__name__}(Method)")
    _check_name(f"{place}: method", cls.name, (*methods.names_here(), *ROLES), ())
    if not cls.uses_teacher or not cls.group:
        raise BadInput(
            f"{place}: {cls.name} must have a teacher and a group ({', '.join(methods.GROUPS)}): the Student row is the"
            " one without"
        )
    for name in methods.names_here():
        if methods.get(name).label == cls.label:
            raise BadInput(f'{place}: label "{cls.label}" is that of {name}: give {cls.name} another label')
    return cls


def _import(source: Source, kind: str) -> tuple[ModuleType, dict[str, type[Method]]]:
    if source.digest not in _imported:
        with methods.apart() as classes:
            module = usercode.load(source, kind)
        _imported[source.digest] = module, classes
    return _imported[source.digest]


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"


def _check_name(kind: str, name: str, known: Sequence[str] | Mapping[str, Any], others: Sequence[str]) -> None:
    """That a name can stand in a run's id, and is nobody else's, however spelt."""
    if not NAME.fullmatch(name):
        raise BadInput(f'{kind} "{name}": a name is of at most 40 letters, digits and _, a letter first')
    for other in (*known, *others):
        if bare(other) == bare(name):
            whose = "the project has" if other in known else "this grid also has"
            raise BadInput(f'{kind} "{name}": {whose} "{other}": give it another name')


def _recipe(name: str, network: Network, source: Source | None) -> Recipe:
    options = network.model_dump(include={"args", "features", "stem", "preact", "head", "classes", "side"})
    files = dict(source.said) if source else {}
    factory = partial(_call, name, network.factory, source)
    return Recipe(name, network.factory, factory, tried, **options, files=files)


def _call(name: str, factory: str, source: Source | None, **arguments: Any) -> Any:
    """Make a network; what makes it is imported now, as some packages take seconds."""
    where = f'network "{name}", factory {factory}'
    if source:
        attribute = factory.rpartition(":")[2]
        return _attribute(_import(source, "network")[0], attribute, where)(**arguments)
    return _named(factory, where)(**arguments)


@cache
def _named(dotted: str, where: str) -> Callable[..., Any]:
    parts = dotted.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise BadInput(f"{where}: write PACKAGE.MODULE.NAME, or ./FILE.py:NAME for a file of your own")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and f"{module}.".startswith(f"{error.name}."):
                continue
            raise BadInput(
                f"{where}: importing {module} fails: {in_a_line(error, {})}; install what is missing"
            ) from None
        except Exception as error:
            raise BadInput(f"{where}: importing {module} fails: {in_a_line(error, {})}; see that package") from None
        for part in parts[length:]:
            found = _attribute(found, part, where)
        return found
    raise BadInput(
        f"{where}: no package {parts[0]} is installed here: pip install {parts[0]}, or write ./FILE.py:NAME for a file "
        "of your own"
    )


def _attribute(holder: Any, name: str, where: str) -> Any:
    found = getattr(holder, name, None)
    if not callable(found) and not isinstance(found, ModuleType):
        known = [one for one in dir(holder) if not one.startswith("_")]
        near = ", ".join(difflib.get_close_matches(name, known, n=5, cutoff=0.5))
        raise BadInput(f"{where}: there is no {name}" + (f"; the nearest are {near}" if near else ": check the name"))
    return found


@cache
def _version(top: str) -> tuple[tuple[str, str], ...]:
    """(name, version) of what a top-level module is installed by; () where it is a loose file."""
    try:
        return ((top, importlib.metadata.version(top)),)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        owners = importlib.metadata.packages_distributions().get(top, [])
        return tuple((owner, importlib.metadata.version(owner)) for owner in dict.fromkeys(owners))
