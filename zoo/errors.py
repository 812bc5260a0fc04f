"""The one exception that means "the request is wrong": a single line that names the fault and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """A wrong name, setting or file. The message is one line, for a person, and ends in a remedy."""


def choose(kind: str, name: object, options: Iterable[str]) -> str:
    """Return `name` if it is one of `options`; else raise BadInput with the nearest one and the whole list."""
    known = sorted(options)
    if isinstance(name, str) and name in known:
        return name
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    raise BadInput(f'unknown {kind} "{name}": {hint}choose from {", ".join(known)}')
