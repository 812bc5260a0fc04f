"""YAML as a person means it: no surprises from YAML 1.1, no silent duplicates, errors in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bench.surroundings import paths
from zoo.errors import BadInput, choose

MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """SafeLoader that takes only plain decimals for numbers (10:30 and 012 are text, not 630 and 10) and only true and
    false for booleans, and that refuses a key given twice.
    """

    yaml_implicit_resolvers = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        # Here, as written: later on the keys of merged mappings (<<: *base) stand beside those that replace them.
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a list or a mapping, and YAML read here has names for keys", key.start_mark
                )
            if key.tag == MERGE:
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f'"{key.value}" is given twice', key.start_mark)
            seen.add((key.tag, key.value))
        return node


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def find(name: str, kind: str, folder: Path, base: Path | None = None) -> Path:
    """The file that a name stands for: a path to a YAML file, or one of those in `folder` that come with the project.

    `base` is the folder of the file that says the name: paths start there.
    """
    if not paths.is_file_name(name):
        return folder / f"{choose(kind, name, [path.stem for path in folder.glob('*.yaml')])}.yaml"
    path = paths.expand(name, kind, base)
    if base and not path.exists() and paths.expand(name, kind).exists():
        raise BadInput(
            f'{kind} "{name}" is not in {base}: a path in a file starts from the file\'s own folder; write'
            f" {os.path.relpath(paths.expand(name, kind), base)}"
        )
    return path


def read(path: Path, kind: str, *, may_be_empty: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file; `kind` ("grid", "protocol") names it in errors.

    `may_be_empty`: a file without a key, such as one with all lines commented out, is an empty mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise BadInput(f'cannot read {kind} file "{path}": {error.strerror}; check the path') from None
    except UnicodeDecodeError:
        raise BadInput(f'{kind} file "{path}" is not text: expected YAML in UTF-8') from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise BadInput(f'{kind} file "{path}"{place}: {problem}; correct that line') from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise BadInput(f'{kind} file "{path}": not valid YAML ({type(error).__name__}: {error}); correct it') from None
    if values is None and may_be_empty:
        return {}
    if not isinstance(values, dict):
        what = "nothing" if values is None else "a list" if isinstance(values, list) else "one value"
        raise BadInput(f'{kind} file "{path}" holds {what}, not keys and values: write "key: value" lines')
    return values


def read_extended(path: Path, kind: str, folder: Path) -> dict[str, Any]:
    """The mapping in a YAML file, laid over that of the file which it `extends` by name or path, and so on.

    Mappings are merged key by key; a list or a null replaces what was there.
    """
    return _extended(path, kind, folder, ())


def _extended(path: Path, kind: str, folder: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise BadInput(f'{kind} file "{path}" extends itself: break the circle')
    values = read(path, kind)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise BadInput(f'{kind} file "{path}": extends {base!r}: give the name of a {kind} or the path of its file')
    below = find(base, kind, folder, path.parent.absolute())
    return _merge(_extended(below, kind, folder, (*seen, path)), values)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return merged
