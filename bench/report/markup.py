"""What a printed table is, and its Markdown and plain-text notations (LaTeX: bench/latex.py)."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from bench.report.frames import clean


@dataclass(frozen=True)
class Text:
    """A table entry: what it says, the marks that hang on it, and whether it is bold. All unescaped.

    `cell` is the position in `Results.cells` of the cell that it is about, for notations that can link.
    """

    body: str
    marks: tuple[str, ...] = ()
    bold: bool = False
    cell: int | None = None


@dataclass(frozen=True)
class Note:
    """A line under a table: a footnote with its mark, or a sentence without one.

    `about` names the runs that a footnote is about, for notations that have the room.
    """

    mark: str
    body: str
    about: str = ""

    @property
    def text(self) -> str:
        """The whole line, marked, unescaped."""
        about = f" ({self.about})" if self.about else ""
        return f"{superscript((self.mark,))} {self.body}{about}".strip()


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
    corner: str = "Method"  # heading of the labels


@dataclass(frozen=True)
class Item:
    """A line of a list: a word that stands out at its beginning (or ""), a sentence, and lines that support it.

    `name` stands for the sentence where those lines stand apart from it.
    """

    strong: str
    body: str
    under: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the report, the same in every notation."""

    heading: str  # "" for the first
    tables: tuple[Table, ...] = ()
    items: tuple[Item, ...] = ()
    fold: str = ""  # what stands in its place until a reader unfolds it, where a notation can; "" stands open


_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_PLACE = "\0"
_GAP, _PADDING = 2, 2  # what tabulate puts between columns, and adds to their headings


def markdown_section(section: Section) -> str:
    """Heading, tables and items; folded away behind a line where that is asked for."""
    parts = [f"## {md(section.heading)}"] if section.heading else []
    parts += [f"<details><summary>{md(section.fold)}</summary>"] if section.fold else []
    parts += [*map(markdown, section.tables), *([markdown_list(section.items)] if section.items else [])]
    return "\n\n".join([*parts, *(["</details>"] if section.fold else [])])


def markdown(table: Table) -> str:
    """Caption, pipe table and notes, as GitHub renders them."""
    head = [table.corner, *_headings(table, " ")]
    rows = []
    for heading, lines in table.sections:
        if heading:
            rows.append([f"*{md(heading)}*"] + [""] * (len(head) - 1))
        rows += [[md(line.label), *_joined(table, line, _md_entry)] for line in lines]
    grid = _grid(rows, [md(cell) for cell in head], "pipe")
    notes = ["- " + md(note.text) for note in table.notes]
    return "\n".join([md(table.caption), "", grid, *(["", *notes] if notes else [])])


def markdown_list(items: Sequence[Item]) -> str:
    """A bulleted list; the lines that support its items fold out below it."""

    def bullet(strong: str, body: str) -> str:
        return "- " + (f"**{md(strong)}**: " if strong else "") + md(body)

    lines = [bullet(item.strong, item.body) for item in items]
    if any(item.under for item in items):
        lines += ["", "<details><summary>The numbers behind each of them</summary>", ""]
        for item in items:
            if item.under:
                lines += [bullet(item.strong, item.name or item.body), *(f"  - {md(line)}" for line in item.under)]
        lines += ["", "</details>"]
    return "\n".join(lines)


def plain(table: Table, width: int | None = None) -> str:
    """For a terminal: headings on two lines, a star for bold; columns beyond `width` follow in blocks below."""
    head = [table.corner, *_headings(table, "\n")]
    rows: list[list[str]] = []
    headings: list[str] = []
    for heading, lines in table.sections:
        if heading:  # stands in for a heading, which may be wider than the labels
            headings.append(f"{clean(heading)}:")
            rows.append([_PLACE] + [""] * (len(head) - 1))
        rows += [[clean(line.label), *_joined(table, line, _plain_entry)] for line in lines]
    notes = [clean(note.text) for note in table.notes]
    if any(entry.bold for _, lines in table.sections for line in lines for entry in line.entries):
        notes.append("* stands for bold.")
    blocks = []
    for part in _blocks(head, rows, width):
        columns = slice(1 + part.start, 1 + part.stop)
        grid = _grid([[row[0], *row[columns]] for row in rows], [head[0], *head[columns]], "simple")
        left = iter(headings)
        blocks += ["\n".join(next(left) if line.startswith(_PLACE) else line for line in grid.split("\n"))]
    text = [wrap(table.caption, width), "", "\n\n".join(blocks)]
    return "\n".join([*text, *(["", *(wrap(note, width) for note in notes)] if notes else [])])


def plain_list(items: Sequence[Item], width: int | None = None) -> str:
    """The list for a terminal, without the lines that support its items."""
    return "\n".join(wrap((f"{item.strong}: " if item.strong else "") + item.body, width) for item in items)


def wrap(text: str, width: int | None) -> str:
    """A paragraph as lines of at most `width` characters; what is longer than a line stays whole."""
    if width is None:
        return clean(text)
    keep = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(clean(text), width, subsequent_indent="  ", **keep)


def md(text: str) -> str:
    """Escape for GitHub, in a pipe table or outside; an underscore inside a word is harmless and stays."""
    text = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", clean(text)).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def superscript(marks: Sequence[str]) -> str:
    """Marks as they stand after a text: numbers raised, with commas between them, then the signs."""
    numbers = [mark.translate(_SUPERSCRIPT) for mark in marks if mark.isdigit()]
    return ",".join(numbers) + "".join(mark for mark in marks if not mark.isdigit())


def _blocks(head: list[str], rows: list[list[str]], width: int | None) -> list[range]:
    """Ranges of the columns after the labels: as few as fit `width`, of about as many columns."""
    wide = [max(_PADDING + len(line) for line in name.split("\n")) for name in head]
    wide = [max(most, *(len(row[i]) for row in rows)) if rows else most for i, most in enumerate(wide)]
    columns = len(wide) - 1
    for count in range(1, columns + 1):
        each = math.ceil(columns / count)
        parts = [range(start, min(start + each, columns)) for start in range(0, columns, each)]
        widest = max(wide[0] + sum(_GAP + wide[1 + i] for i in part) for part in parts)
        if width is None or widest <= width:
            return parts
    return [range(i, i + 1) for i in range(columns)] or [range(0)]


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
    return [" / ".join(filter(None, group)) for group in groups]


def _md_entry(entry: Text) -> str:
    body = md(entry.body)
    return (f"**{body}**" if entry.bold else body) + superscript(entry.marks)


def _plain_entry(entry: Text) -> str:
    return ("*" if entry.bold else "") + clean(entry.body) + superscript(entry.marks)
