"""Paths as people write them: the same in every option, variable and file."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from zoo.errors import BadInput


def expand(text: str | os.PathLike[str], what: str, base: Path | None = None) -> Path:
    """The path that a text means: `~` and `$VARIABLES` filled in, from `base` where it is relative.

    `what` names the option, variable or key in errors. `base` is the folder of the file that holds the text; without
    one a path starts from the working directory, and stays relative.
    """
    text = os.fspath(text)
    missing = [name for name in re.findall(r"\$\{?(\w+)\}?", text) if name not in os.environ]
    if missing:
        raise BadInput(
            f'{what} "{text}": the environment variable {missing[0]} is not set: export {missing[0]}=DIR, or write the'
            " path out"
        )
    if not text.strip() or "\0" in text:
        raise BadInput(f"{what} {text!r} is no path: give the path of a file or folder")
    try:
        path = Path(os.path.expandvars(text)).expanduser()
    except (ValueError, RuntimeError) as error:  # "~nobody/x"
        raise BadInput(f'{what} "{text}": {error}; write the path out') from None
    return base / path if base else path


def cache(*parts: str) -> Path:
    """A path in the folder for what can be made again: $KD_BENCH_CACHE, else kd-bench/ in the user's own cache."""
    said = os.environ.get("KD_BENCH_CACHE")
    if said:
        return expand(said, "KD_BENCH_CACHE").absolute().joinpath(*parts)
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache").joinpath("kd-bench", *parts)


def option(text: str) -> Path:
    """`type=` of a command line option that takes a path."""
    try:
        return expand(text, "path")
    except BadInput as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def is_file_name(name: str) -> bool:
    """Whether a name stands for a YAML file, and not for one of those that come with the project."""
    return name.lower().endswith((".yaml", ".yml"))
