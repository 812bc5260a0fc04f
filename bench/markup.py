"""What a printed table is, and its Markdown and plain-text notations (LaTeX: bench/latex.py)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from bench.frames import clean


@dataclass(frozen=True)
class Text:
    """A table entry: what it says, the marks that hang on it, and whether it is bold. All unescaped."""

    body: str
    marks: tuple[str, ...] = ()
    bold: bool = False


@dataclass(frozen=True)
class Note:
    """A line under a table: a footnote with its mark, or a sentence without one."""

    mark: str
    body: str


@dataclass(frozen=True)
class Line:
    label: str
    entries: tuple[Text, ...]


@dataclass(frozen=True)
class Table:
    """`columns` are (upper, lower) headings: teacher and student, or a thing and "".

    With `span` > 1, so many columns under one upper heading belong together: LaTeX shows their lower
    headings, the other notations write them into one column as "a / b / c". All text is unescaped.
    """

    name: str  # for the LaTeX label
    caption: str
    columns: tuple[tuple[str, str], ...]
    sections: tuple[tuple[str, tuple[Line, ...]], ...]  # (heading or "", lines)
    notes: tuple[Note, ...]
    span: int = 1


_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def markdown(table: Table) -> str:
    """Caption, pipe table and notes, as GitHub renders them."""
    head = ["Method", *_headings(table, " ")]
    rows = []
    for heading, lines in table.sections:
        if heading:
            rows.append([f"*{md(heading)}*"] + [""] * (len(head) - 1))
        rows += [[md(line.label), *_joined(table, line, _md_entry)] for line in lines]
    grid = _grid(rows, [md(cell) for cell in head], "pipe")
    notes = ["- " + f"{_superscript((note.mark,))} {md(note.body)}".strip() for note in table.notes]
    return "\n".join([md(table.caption), "", grid, "", *notes])


def plain(table: Table) -> str:
    """For a terminal: headings on two lines, a star for bold."""
    head = ["Method", *_headings(table, "\n")]
    rows = []
    for heading, lines in table.sections:
        if heading:
            rows.append([f"{clean(heading)}:"])
        rows += [[clean(line.label), *_joined(table, line, _plain_entry)] for line in lines]
    grid = _grid(rows, head, "simple")
    notes = [f"{_superscript((note.mark,))} {clean(note.body)}".strip() for note in table.notes]
    if any(entry.bold for _, lines in table.sections for line in lines for entry in line.entries):
        notes.append("* stands for bold.")
    return "\n".join([clean(table.caption), "", grid, "", *notes])


def md(text: str) -> str:
    """Escape for GitHub, in a pipe table or outside; an underscore inside a word is harmless and stays."""
    text = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", clean(text)).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def _grid(rows: list[list[str]], head: list[str], style: str) -> str:
    align = ["left"] + ["right"] * (len(head) - 1) if rows else None
    # Left to itself, tabulate reads numbers and prints 73.30 as 73.3.
    return tabulate(rows, head, tablefmt=style, disable_numparse=True, colalign=align)


def _headings(table: Table, gap: str) -> list[str]:
    if table.span > 1:
        return [upper.replace(" → ", f"{gap}→ ") for upper, _ in table.columns[:: table.span]]
    return [f"{upper}{gap}→ {lower}" if lower else upper for upper, lower in table.columns]


def _joined(table: Table, line: Line, write: Callable[[Text], str]) -> list[str]:
    written = [write(entry) for entry in line.entries]
    if table.span == 1:
        return written
    groups = (written[i : i + table.span] for i in range(0, len(written), table.span))
    return [" / ".join(group) if any(group) else "" for group in groups]


def _md_entry(entry: Text) -> str:
    body = md(entry.body)
    return (f"**{body}**" if entry.bold else body) + _superscript(entry.marks)


def _plain_entry(entry: Text) -> str:
    return ("*" if entry.bold else "") + clean(entry.body) + _superscript(entry.marks)


def _superscript(marks: Sequence[str]) -> str:
    numbers = [mark.translate(_SUPERSCRIPT) for mark in marks if mark.isdigit()]
    return ",".join(numbers) + "".join(mark for mark in marks if not mark.isdigit())
