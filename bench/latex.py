"""LaTeX notation of a table. Needs booktabs and no other package; compiles under plain pdflatex."""

from __future__ import annotations

import math
import re
import unicodedata
from itertools import groupby

from bench.frames import clean
from bench.markup import Line, Note, Table, Text

# Text widths of the narrowest usual page: article with two columns, both together and one.
PAGE_PT, COLUMN_PT = 465, 225
# Sizes a table may take, largest first, with the width of a digit in each (Computer Modern).
SIZES = ((r"\footnotesize", 4.25), (r"\scriptsize", 3.99))
COLUMN_GAP_PT = 7
# Widths in digits of what is not about as wide as one.
_WIDTHS = {" ": 0.67, ".": 0.55, ",": 0.55, "(": 0.78, ")": 0.78}
_WIDTHS |= {"±": 1.6, "−": 1.6, "✗": 1.6, "⊘": 1.6, "→": 2.0, "—": 2.0, "…": 2.4}

PREAMBLE = r"""% In a paper: \usepackage{booktabs}, then \input this file.
% To compile it alone: uncomment the lines that begin with %%.
%% \documentclass[10pt]{article}
%% \usepackage[a4paper,margin=18mm]{geometry}
%% \usepackage{booktabs}
%% \begin{document}"""
END = r"%% \end{document}"

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
    "·": r"$\cdot$",
    "≤": r"$\leq$", "≥": r"$\geq$", "≠": r"$\neq$", "≈": r"$\approx$", "∞": r"$\infty$", "°": r"$^{\circ}$",
    "†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"$\mathsection$", "¶": r"$\mathparagraph$",
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


def latex(table: Table) -> str:
    """One float: caption, tabular (several, stacked, where one is too wide) and notes."""
    size, per_block, width_pt = _fit(table)
    environment = "table" if width_pt <= COLUMN_PT else "table*"
    lines = [
        rf"\begin{{{environment}}}[tbp]",
        r"\centering",
        size,
        r"\setlength{\tabcolsep}{3.5pt}",
        rf"\caption{{{escape(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        r"\par\smallskip",  # article sets no space below a caption
    ]
    for start in range(0, max(1, len(table.columns)), per_block):
        if start:
            lines.append(r"\par\medskip")
        lines += _tabular(table, slice(start, start + per_block))
    if table.notes:
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}", r"\scriptsize\raggedright"]
        lines += [_note(note) for note in table.notes]
        lines.append(r"\end{minipage}")
    return "\n".join([*lines, rf"\end{{{environment}}}"])


def escape(text: str) -> str:
    """Printable by the LaTeX kernel alone; what it has no glyph for becomes a code point, [U+4E2D]."""
    # "--" would print as a dash, which no command-line flag survives.
    kept_apart = re.sub(r"-(?=-)", "-\0", unicodedata.normalize("NFC", clean(text)))
    return "".join(_character(char) for char in kept_apart)


def _fit(table: Table) -> tuple[str, int, float]:
    """(size, columns of a block, width in points): as few blocks as fit the page, then as large as fits."""
    lines = [line for _, rows in table.sections for line in rows]
    label = max([_width(Text(line.label)) for line in lines], default=0)
    heads = [Text(lower if table.span > 1 else f"→ {lower or upper}") for upper, lower in table.columns]
    entries = [[_width(entry) for entry in line.entries] for line in lines]
    widths = [max(column) for column in zip(map(_width, heads), *entries, strict=True)]
    units = max(1, len(table.columns) // table.span)
    for blocks in range(1, units + 1):
        columns = math.ceil(units / blocks) * table.span
        parts = [widths[i : i + columns] for i in range(0, len(widths), columns)] or [[]]
        for size, digit_pt in SIZES:
            width_pt = max((label + sum(part)) * digit_pt + len(part) * COLUMN_GAP_PT for part in parts)
            if width_pt <= PAGE_PT:
                return size, columns, width_pt
    return size, columns, width_pt


def _width(text: Text) -> float:
    """About how wide, in digits."""
    body = sum(_WIDTHS.get(char, 1.0) for char in text.body)
    return body * (1.13 if text.bold else 1) + 0.75 * sum(len(mark) for mark in text.marks)


def _tabular(table: Table, block: slice) -> list[str]:
    columns = table.columns[block]
    align = "l" * len(columns) if table.span == 1 else "ccr" * (len(columns) // table.span)
    lines = [
        rf"\begin{{tabular}}{{@{{}}l{align}@{{}}}}",
        r"\toprule",
        *_heading(columns, table.span),
        r"\midrule",
    ]
    for i, (heading, rows) in enumerate(table.sections):
        if i:
            lines.append(r"\addlinespace")
        if heading:
            lines.append(rf"\multicolumn{{{len(columns) + 1}}}{{@{{}}l}}{{\emph{{{escape(heading)}}}}} \\")
        lines += [_row(row, block) for row in rows]
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _heading(columns: tuple[tuple[str, str], ...], span: int) -> list[str]:
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
        " & ".join(upper) + r" \\",
        *(["".join(rules)] if rules else []),
        " & ".join(["Method", *(rf"\multicolumn{{1}}{{c}}{{{escape(name)}}}" for name in lower)]) + r" \\",
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
    return (_marks((note.mark,)) + r"\," if note.mark else "") + body + r"\par"


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
