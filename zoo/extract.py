"""Take one set of weights out of a checkpoint that holds several: `python -m zoo.extract FILE [PART NEW]`.

With FILE alone it lists what the file holds. With a part it writes that part to NEW, as a plain state dict. Nothing
that FILE brings along is run.
"""

from __future__ import annotations

import sys

import torch

from zoo.checkpoints import parts_of
from zoo.errors import BadInput, choose


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) not in (1, 3) or arguments[0].startswith("-"):
        print("usage: python -m zoo.extract FILE [PART NEW]", file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    try:
        parts = parts_of(arguments[0])
        if len(arguments) == 1:
            print("\n".join(f"{part or 'the outermost'}: {len(state)} tensors" for part, state in parts.items()))
            return 0
        _write(parts, *arguments[1:])
    except (BadInput, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(parts: dict[str, dict[str, torch.Tensor]], wanted: str, new: str) -> None:
    """A part may go on into the names: "model/module.student" is what starts with module.student. there."""
    for part in sorted(parts, key=len, reverse=True):
        if wanted in (part, part or "the outermost"):
            return _save(parts[part], new)
        if part == "" or wanted.startswith(part + "/"):
            prefix = wanted.removeprefix(part).removeprefix("/") + "."
            inner = {key.removeprefix(prefix): v for key, v in parts[part].items() if key.startswith(prefix)}
            if inner:
                return _save(inner, new)
    choose("part", wanted, [part or "the outermost" for part in parts])


def _save(state: dict[str, torch.Tensor], new: str) -> None:
    torch.save({key: value.clone() for key, value in state.items()}, new)
    print(f"{new}: {len(state)} tensors")


if __name__ == "__main__":
    sys.exit(main())
