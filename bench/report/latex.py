"""LaTeX notation of a table. Needs booktabs and no other package; compiles under plain pdflatex."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from bench.report.frames import clean
from bench.report.markup import Line, Note, Table, Text
from bench.report.names import in_text

# Text widths of the narrowest usual page: article with two columns, both together and one. And the height of the
# shortest: a float that is taller is never placed well, and hides all floats behind it.
PAGE_PT, COLUMN_PT, HEIGHT_PT = 465, 225, 540
# Sizes a table may take, largest first, with the width of a digit and the height of a row (Computer Modern).
SIZES = ((r"\footnotesize", 4.25, 9.6), (r"\scriptsize", 3.99, 8.1))
COLUMN_GAP_PT = 7
HEAD_PT, SECTION_PT = 34.0, 5.0  # of a tabular's rules, headings and the space after it; before a section
CAPTION_PT, CAPTION_DIGIT_PT = 12.0, 5.0  # captions are set in the size of the text
NOTE_PT, NOTE_DIGIT_PT = 8.1, 3.9  # notes are set in \scriptsize: a line, and a letter with its share of blanks
NOTES_PT = 130.0  # what notes may count on
# What the report's tables are called in a paper: the names of their files and labels, where they are not their own.
FILES = {"last": "results", "pairs": "aggregate"}
MOST_NOTE = 150  # letters of a footnote; table.md has the whole
# Widths in digits of what is not about as wide as one.
_WIDTHS = {" ": 0.67, ".": 0.55, ",": 0.55, "(": 0.78, ")": 0.78}
_WIDTHS |= {"±": 1.6, "−": 1.6, "✗": 1.6, "⊘": 1.6, "→": 2.0, "—": 2.0, "…": 2.4}

USE = r"In a paper: \usepackage{booktabs}, then \input this file, or paste it."
PREAMBLE = r"""\documentclass[10pt]{article}
\usepackage[a4paper,margin=18mm]{geometry}
\usepackage{booktabs}
\begin{document}"""
END = r"\end{document}"

_CHARACTERS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$",
    "`": r"\`{}", '"': r"{\char34}",  # straight in T1 fonts, the closing quote in OT1, which has no other
    # At the start of a row these would be read as an argument of the line break before it.
    "[": "{[}", "]": "{]}", "*": "{*}",
    "\0": "{}",
    "±": r"$\pm$", "−": "$-$", "→": r"$\rightarrow$", "←": r"$\leftarrow$", "↔": r"$\leftrightarrow$",
    "×": r"$\times$", "✗": r"$\times$", "⊘": r"$\oslash$", "…": r"\dots{}", "—": "---", "–": "--",
    "·": r"$\cdot$", "◊": r"$\diamond$",
    "≤": r"$\leq$", "≥": r"$\geq$", "≠": r"$\neq$", "≈": r"$\approx$", "∞": r"$\infty$", "°": r"$^{\circ}$",
    "†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"$\mathsection$", "¶": r"$\mathparagraph$", "‖": r"$\parallel$",
    "‘": "`", "’": "'", "“": "``", "”": "''",
    "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}",
    "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}", "µ": r"$\mu$",
}  # fmt: skip
_GREEK = {
    "SMALL": "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "phi chi psi omega",
    "CAPITAL": "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega",
}
_CHARACTERS |= {
    unicodedata.lookup(f"GREEK {case} LETTER {name.upper().replace('LAMBDA', 'LAMDA')}"): rf"$\{name}$"
    for case, names in _GREEK.items()
    for name in names.split()
}
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip


@dataclass(frozen=True)
class _Part:
    """A tabular: some columns of a table with some of its rows."""

    table: Table
    block: slice
    height_pt: float


def latex(table: Table) -> str:
    """The table as a float: caption, tabular (several, stacked, where one is too wide), notes.

    Several floats where one would be taller than a page.
    """
    sizes, per_block, width_pt = _fit(table)
    starred, line_pt = ("", COLUMN_PT) if width_pt <= COLUMN_PT else ("*", PAGE_PT)
    room_pt = HEIGHT_PT - 20 - CAPTION_PT * math.ceil(len(table.caption) * CAPTION_DIGIT_PT / line_pt)
    layouts = [(size, *_layout(table, per_block, row_pt, line_pt, room_pt)) for size, row_pt in sizes]
    # Smaller print where it saves the table from being cut, or its footnotes.
    size, pages, notes, _ = min(layouts, key=lambda layout: (len(layout[1]) > 1, not layout[3]))
    floats = []
    for i, page in enumerate(pages):
        caption = escape(table.caption)
        lines = [rf"\begin{{table{starred}}}[tbp]", r"\centering", size, r"\setlength{\tabcolsep}{3.5pt}"]
        if i:
            lines += [r"\addtocounter{table}{-1}", rf"\caption{{{caption} (continued)}}"]
        else:
            lines += [rf"\caption{{{caption}}}", rf"\label{{tab:{table.name}}}"]
        lines.append(r"\par\smallskip")  # article sets no space below a caption
        for k, part in enumerate(page):
            lines += [r"\par\medskip"] if k else []
            lines += _tabular(part.table, part.block)
        if notes and i == len(pages) - 1:
            lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}", r"\scriptsize\raggedright"]
            lines += [*notes, r"\end{minipage}"]
        floats.append("\n".join([*lines, rf"\end{{table{starred}}}"]))
    return "\n\n".join(floats)


def for_paper(table: Table, archs: Sequence[str]) -> Table:
    """The table with its networks as papers print them, and a name to be cited by."""

    def said(text: str) -> str:
        return in_text(text, archs)

    return replace(
        table,
        name=FILES.get(table.name, table.name),
        caption=said(table.caption),
        columns=tuple((said(upper), said(lower)) for upper, lower in table.columns),
        sections=tuple((said(heading), lines) for heading, lines in table.sections),
        notes=tuple(replace(note, body=said(note.body)) for note in table.notes),
    )


def comment(lines: Iterable[str]) -> str:
    """Lines that no engine prints. Escaped all the same: an older engine stops at odd characters even there."""
    return "\n".join(f"% {line if line == USE else escape(line)}" for line in lines)


def escape(text: str) -> str:
    """Printable by the LaTeX kernel alone; what it has no glyph for becomes a code point, [U+4E2D]."""
    # "--" would print as a dash, which no command-line flag survives.
    kept_apart = re.sub(r"-(?=-)", "-\0", unicodedata.normalize("NFC", clean(text)))
    return "".join(_character(char) for char in kept_apart)


def _fit(table: Table) -> tuple[list[tuple[str, float]], int, float]:
    """(sizes with their row heights, columns of a block, width): as few blocks as fit the page, largest size first."""
    lines = [line for _, rows in table.sections for line in rows]
    label = max([_width(Text(line.label)) for line in lines], default=0)
    heads = [Text(lower if table.span > 1 else f"→ {lower or upper}") for upper, lower in table.columns]
    entries = [[_width(entry) for entry in line.entries] for line in lines]
    widths = [max(column) for column in zip(map(_width, heads), *entries, strict=True)]
    units = max(1, len(table.columns) // table.span)
    for blocks in range(1, units + 1):
        columns = math.ceil(units / blocks) * table.span
        parts = [widths[i : i + columns] for i in range(0, len(widths), columns)] or [[]]
        for i, (_, digit_pt, _) in enumerate(SIZES):
            width_pt = max((label + sum(part)) * digit_pt + len(part) * COLUMN_GAP_PT for part in parts)
            if width_pt <= PAGE_PT:
                return [(size, row_pt) for size, _, row_pt in SIZES[i:]], columns, width_pt
    return [(size, row_pt) for size, _, row_pt in SIZES[-1:]], columns, width_pt


def _layout(
    table: Table, per_block: int, row_pt: float, line_pt: float, room_pt: float
) -> tuple[list[list[_Part]], list[str], bool]:
    """(tabulars by float, notes of the last one, whether those are all notes)."""
    parts = [
        _Part(piece, slice(start, start + per_block), _height_pt(piece, row_pt))
        for start in range(0, max(1, len(table.columns)), per_block)
        for piece in _split(table, room_pt - NOTES_PT, row_pt)
    ]
    least, _ = _notes(table.notes, line_pt, 0)  # footnotes may have to go, rules may not
    pages = _pages(parts, room_pt, min(NOTES_PT, _notes_pt(least, line_pt)))
    notes, all_noted = _notes(table.notes, line_pt, room_pt - sum(part.height_pt for part in pages[-1]))
    return pages, notes, all_noted


def _height_pt(table: Table, row_pt: float) -> float:
    rows = sum(bool(heading) + len(lines) for heading, lines in table.sections)
    return HEAD_PT + rows * row_pt + len(table.sections) * SECTION_PT


def _split(table: Table, most_pt: float, row_pt: float) -> list[Table]:
    """The table itself, or its rows on several tables, none taller than `most_pt`."""
    most = max(1, int((most_pt - HEAD_PT) / (row_pt + SECTION_PT)))  # as if every row were a section
    if _height_pt(table, row_pt) <= most_pt:
        return [table]
    rows = [(heading, line) for heading, lines in table.sections for line in lines]
    parts = [rows[start : start + most] for start in range(0, len(rows), most)]
    return [
        replace(
            table,
            sections=tuple(
                (heading, tuple(line for _, line in group)) for heading, group in groupby(part, lambda row: row[0])
            ),
        )
        for part in parts
    ]


def _pages(parts: Sequence[_Part], room_pt: float, notes_pt: float) -> list[list[_Part]]:
    """Parts by float, in order; the last float has room for the notes."""
    pages: list[list[_Part]] = [[]]
    for part in parts:
        if pages[-1] and sum(one.height_pt for one in (*pages[-1], part)) > room_pt:
            pages.append([])
        pages[-1].append(part)
    if len(pages[-1]) > 1 and sum(one.height_pt for one in pages[-1]) + notes_pt > room_pt:
        pages.append([pages[-1].pop()])
    return pages


def _notes(notes: Sequence[Note], line_pt: float, room_pt: float) -> tuple[list[str], bool]:
    """Footnotes run in as one paragraph, shortened; then the rules. What has no room is left to table.md."""
    marked = [replace(note, body=_shortened(note.body)) for note in notes if note.mark.isdigit()]
    rules = [note for note in notes if not note.mark.isdigit()]
    more = Note("", "Further reasons: table.md.")
    left = len(marked)
    while left and _notes_pt(_written(marked[:left], [more, *rules]), line_pt) > room_pt:
        left -= 1
    all_noted = left == len(marked)
    return _written(marked[:left], rules if all_noted else [more, *rules]), all_noted


def _written(marked: Sequence[Note], rules: Sequence[Note]) -> list[str]:
    run_in = [" ".join(map(_note, marked)) + r"\par"] if marked else []
    return [*run_in, " ".join(map(_note, rules)) + r"\par"] if rules else run_in


def _notes_pt(notes: Sequence[str], line_pt: float) -> float:
    letters = (len(re.sub(r"\\[a-z]+|[{}$]", "", note)) for note in notes)
    return NOTE_PT * sum(math.ceil(n * NOTE_DIGIT_PT / line_pt) for n in letters) + 6


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_NOTE else text[: MOST_NOTE - 1].rstrip() + "…"


def _width(text: Text) -> float:
    """About how wide, in digits."""
    body = sum(_WIDTHS.get(char, 1.0) for char in text.body)
    return body * (1.13 if text.bold else 1) + 0.75 * sum(len(mark) for mark in text.marks)


def _tabular(table: Table, block: slice) -> list[str]:
    columns = table.columns[block]
    align = "l" * len(columns) if table.span == 1 else ("c" * (table.span - 1) + "r") * (len(columns) // table.span)
    lines = [
        rf"\begin{{tabular}}{{@{{}}l{align}@{{}}}}",
        r"\toprule",
        *_heading(columns, table.span, table.corner),
        r"\midrule",
    ]
    for i, (heading, rows) in enumerate(table.sections):
        if i:
            lines.append(r"\addlinespace")
        if heading:
            lines.append(rf"\multicolumn{{{len(columns) + 1}}}{{@{{}}l}}{{\emph{{{escape(heading)}}}}} \\")
        lines += [_row(row, block) for row in rows]
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _heading(columns: tuple[tuple[str, str], ...], span: int, corner: str) -> list[str]:
    """Two rows; neighbours that share a teacher share its heading, with a rule under it."""
    upper, rules, at = [""], [], 2
    for name, group in groupby(upper_ if lower else "" for upper_, lower in columns):
        width = len(list(group))
        upper.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(name)}}}" if name else " &" * (width - 1))
        if name:
            rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    arrow = "→ " if span == 1 else ""
    lower = [f"{arrow}{lower}" if lower else upper_ for upper_, lower in columns]
    return [
        *([" & ".join(upper) + r" \\", "".join(rules)] if rules else []),
        " & ".join([escape(corner), *(rf"\multicolumn{{1}}{{c}}{{{escape(name)}}}" for name in lower)]) + r" \\",
    ]


def _row(row: Line, block: slice) -> str:
    return " & ".join([escape(row.label), *map(_entry, row.entries[block])]) + r" \\"


def _entry(entry: Text) -> str:
    body = escape(entry.body)
    # \boldmath, because the sign between mean and spread is mathematics.
    return (rf"{{\bfseries\boldmath {body}}}" if entry.bold else body) + _marks(entry.marks)


def _note(note: Note) -> str:
    # Run ids break at their hyphens; paths and dotted names would stick out of the page.
    def breakable(word: re.Match[str]) -> str:
        return re.sub(r"(/|\\_|=|\.)(?=\w)", r"\1\\allowbreak{}", word[0])

    body = re.sub(r"\S{30,}", breakable, escape(note.body))
    return (_marks((note.mark,)) + r"\," if note.mark else "") + body


def _marks(marks: tuple[str, ...]) -> str:
    numbers, symbols = [m for m in marks if m.isdigit()], [m for m in marks if not m.isdigit()]
    text = ",".join(numbers) + "".join(map(escape, symbols))
    return rf"\textsuperscript{{{text}}}" if text else ""


def _character(char: str) -> str:
    if char in _CHARACTERS:
        return _CHARACTERS[char]
    if char.isascii():
        return char
    kind, _, code = unicodedata.decomposition(char).rpartition(" ")
    if kind in ("<super>", "<sub>") and chr(int(code, 16)).isalnum() and int(code, 16) < 128:
        return rf"\text{kind[1:-1]}script{{{chr(int(code, 16))}}}"
    base, *accents = unicodedata.normalize("NFD", char)
    if base.isascii() and base.isalpha() and len(accents) == 1 and accents[0] in _ACCENTS:
        return rf"\{_ACCENTS[accents[0]]}{{{base}}}"
    return f"{{[}}U+{ord(char):04X}{{]}}"
