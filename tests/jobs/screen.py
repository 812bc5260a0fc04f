"""What a terminal shows: just as much of one as the live display needs, and strict about the rest."""

from __future__ import annotations

import re

PIECES = re.compile(
    r"\x1b\[(?P<count>\d*)(?P<what>[AKJ])|\x1b\[[\d;]*m|(?P<moves>[\r\n])|(?P<text>[^\x1b\r\n]+)|(?P<odd>.)"
)


def shown(said: str) -> list[str]:
    """The lines of a screen of any size after this was written to it."""
    lines, row, column = [""], 0, 0
    for piece in PIECES.finditer(said):
        if piece["text"]:
            text = piece["text"]
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
        elif piece["moves"] == "\r":
            column = 0
        elif piece["moves"]:
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece["what"] == "A":
            row -= int(piece["count"] or 1)
            assert row >= 0, "above the first line"
        elif piece["what"] == "K":
            lines[row] = "" if piece["count"] == "2" else lines[row][:column]
        elif piece["what"] == "J":
            lines[row + 1 :] = []
            lines[row] = lines[row][:column]
        else:
            assert not piece["odd"], f"not known to this terminal: {said[piece.start() :][:12]!r}"
    return [line.rstrip() for line in lines]
