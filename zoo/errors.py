"""The one exception that means "the request is wrong": a single line that names the fault and the remedy."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable, Mapping


class BadInput(ValueError):
    """A wrong name, setting or file. The message is one line, for a person, and ends in a remedy."""


def choose(kind: str, name: object, options: Iterable[str]) -> str:
    """The one of `options` that `name` means: itself, or as papers print it (WRN-40-2, ResNet32x4, "KD").

    Raises BadInput with the nearest one and the whole list. Go on with what is returned, not with what was given.
    """
    known = sorted(options)
    if isinstance(name, str) and name in known:
        return name
    same = [option for option in known if bare(option) == bare(str(name))]
    if isinstance(name, str) and len(same) == 1:
        return same[0]
    raise unknown(kind, name, known)


def unknown(kind: str, name: object, options: Iterable[str]) -> BadInput:
    """The error that says a name is none of `options`, with the nearest one and the whole list."""
    known = sorted(options)
    spelt = {bare(option): option for option in reversed(known)}
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    near = near or [spelt[found] for found in difflib.get_close_matches(bare(str(name)), spelt, n=1, cutoff=0.6)]
    hint = f'did you mean "{near[0]}"? ' if near else ""
    return BadInput(f'unknown {kind} "{name}": {hint}choose from {", ".join(known)}')


def in_a_line(error: BaseException, files: Mapping[str, str]) -> str:
    """What somebody's own code raised, and where in it: "my_loss.py:12: NameError: name 'x' is not defined".

    `files` holds the paths of that code, and how each is named to a person. The innermost line that is in them counts.
    """
    text = error.msg if isinstance(error, SyntaxError) else str(error).strip()
    said = ": ".join(filter(None, (type(error).__name__, *text.splitlines()[:1])))
    if isinstance(error, SyntaxError):
        place = (error.filename or "", error.lineno)
    else:
        frames = traceback.extract_tb(error.__traceback__)
        place = next(((one.filename, one.lineno) for one in reversed(frames) if one.filename in files), ("", None))
    return f"{files[place[0]]}:{place[1]}: {said}" if place[0] in files else said


def bare(name: str) -> str:
    """A name without what people spell differently: capitals, blanks, hyphens, underscores, the sign of times."""
    return re.sub(r"[\W_]", "", name.replace("×", "x")).lower()
