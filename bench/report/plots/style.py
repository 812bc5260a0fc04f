"""How every plot looks: one look per method, panels per pair, legends, and the images of a figure."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.report.frames import CellSummary, Results, clean
from bench.report.published import LABELS, ROWS

DPI = 160
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,  # text in a PDF stays text
}
LETTER_INCHES, LINE_INCHES = 0.066, 0.17  # size of text in the font above
LEAST_INCHES = 5.0  # width of a figure that a legend fits under
MOST_INCHES = 40.0  # either side of a figure: 6,400 pixels, which every viewer still opens
MOST_ABREAST = 3
BEYOND_PT = 6.5  # size of the words for what is beyond an axis
FAR_POINTS = 5.0  # a baseline that is nearer is always drawn
# What one figure can show. A larger grid is cut, and the figure says so.
MOST_PAIRS, MOST_ROWS = 24, 40


@dataclass(frozen=True)
class Look:
    colour: str
    marker: str
    filled: bool
    dashes: str | tuple
    width: float = 1.1

    @property
    def line(self) -> dict[str, object]:
        return {"color": self.colour, "linestyle": self.dashes, "linewidth": self.width}

    @property
    def point(self) -> dict[str, object]:
        face = self.colour if self.filled else "white"
        size = {"*": 9.0, "P": 6.5}.get(self.marker, 5.0)
        edge = {"markerfacecolor": face, "markeredgecolor": self.colour, "markeredgewidth": 1.1}
        return {"linestyle": "", "marker": self.marker, "markersize": size, **edge}


_SOLID, _DASHED, _DOTTED, _DASHDOT, _DASHDOTDOT = (
    "-",
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (4, 1.2, 1.2, 1.2, 1.2, 1.2)),
)
STUDENT = Look("black", "X", True, (0, (4, 2)), 1.0)
TEACHER = Look("#777777", "P", True, (0, (1, 1)), 1.0)
# Blues with hollow markers are feature-based, warm colours with filled ones logit-based, ours magenta and thick.
# Chosen so that any two stay apart (CIE Lab distance 16 or more) as seen with deuteranopia and protanopia (Machado
# et al. 2009), and so that lightness differs within a group, for print in grey.
KNOWN = {
    "fitnet": Look("#57B8A6", "o", False, _SOLID),
    "rkd": Look("#0039D1", "s", False, _DASHED),
    "crd": Look("#ADA1FF", "^", False, _DASHDOT),
    "ofd": Look("#007097", "D", False, _DOTTED),
    "reviewkd": Look("#0E287A", "v", False, _DASHDOTDOT),
    "kd": Look("#FF6A00", "o", True, _SOLID),
    "clkd": Look("#DBAE6F", "s", True, _DASHED),
    "dkd": Look("#A24400", "^", True, _DASHDOT),
    "mlkd": Look("#C2605B", "D", True, _DOTTED),
    "sdd": Look("#4D411F", "v", True, _DASHDOTDOT),
    "skd": Look("#FF10C9", "*", True, _SOLID, 1.7),
    "skd_paper": Look("#7A3E66", "P", True, _DASHED, 1.7),
}
# For methods that are not named above: counts without a common divisor give 210 different looks.
_COLOURS = ("#2E7D32", "#8A8A8A", "#00B7EB", "#B8860B", "#6A3D9A", "#90C956")
_MARKERS = ("h", "<", "d", ">", "p", "X", "8")
_DASHES = (_SOLID, _DASHDOT, _DASHED, _DOTTED, _DASHDOTDOT)
# Of the longer table: as for those that are not named, but the same in every grid. From far enough to meet none.
_LATER = (
    "at", "sp", "vid", "pkt", "crd_kd", "simkd", "cat_kd", "dist", "nkd", "ctkd",
    "lskd", "lskd_dkd", "lskd_mlkd", "lskd_ctkd",
)  # fmt: skip
_LATER_FROM = 105

RowName = tuple[str, str, str]


def looks_of(results: Results) -> dict[RowName, Look]:
    """A look for each row: by the registered name of its method, so the same in every plot of every grid.

    A method's look is that of the row under its own label, if there is one. A second row of one method (other
    parameters) and an unknown method take looks that no method is known by, in the order of the table: the same
    whatever has finished.
    """
    looks: dict[RowName, Look] = {}
    named, others = set(), 0
    later = {ROWS.get(name, (name, LABELS.get(name))): _LATER_FROM + k for k, name in enumerate(_LATER)}
    own = {cell.method for line in results.lines if (cell := line[0].cell).label == LABELS.get(cell.method)}
    for line in results.lines:
        cell = line[0].cell
        first = cell.label == LABELS[cell.method] if cell.method in own else cell.method not in named
        k = later.get((cell.method, cell.label))
        if cell.role == "method" and cell.method in KNOWN and first and k is None:
            named.add(cell.method)
            looks[row_name(line[0])] = KNOWN[cell.method]
        elif cell.role == "method":
            if k is None:
                k, others = others, others + 1
            looks[row_name(line[0])] = Look(
                _COLOURS[k % len(_COLOURS)],
                _MARKERS[k % len(_MARKERS)],
                cell.group != "feature",
                _DASHES[k % len(_DASHES)],
            )
        else:
            looks[row_name(line[0])] = STUDENT if cell.role == "student" else TEACHER
    return looks


def row_name(summary: CellSummary) -> RowName:
    return summary.cell.role, summary.cell.method, summary.cell.label


def method_lines(results: Results) -> list[tuple[CellSummary, ...]]:
    return [line for line in results.lines if line[0].cell.role == "method"]


def student_lines(results: Results) -> list[tuple[CellSummary, ...]]:
    """Rows whose model is the pair's student, distilled or not; a teacher's numbers are another model's."""
    return [line for line in results.lines if line[0].cell.role != "teacher"]


def at(line: Sequence[CellSummary], pair: tuple[str, str]) -> CellSummary | None:
    """The cell of a row in a column, if the grid has it."""
    return next((summary for summary in line if summary.column == pair), None)


def cut(results: Results) -> tuple[Results, str]:
    """What fits into figures that a person can look at, and a sentence on what does not ("" for nothing)."""
    pairs, lines = results.pairs[:MOST_PAIRS], results.lines[:MOST_ROWS]
    if pairs == results.pairs and lines == results.lines:
        return results, ""
    kept = {id(summary) for line in lines for summary in line if summary.column in set(pairs)}
    lines = tuple(tuple(summary for summary in line if id(summary) in kept) for line in lines)
    words = [
        f"{shown} of {total} {what}"
        for shown, total, what in (
            (len(pairs), len(results.pairs), "pairs"),
            (len(lines), len(results.lines), "rows"),
        )
        if shown < total
    ]
    cells = tuple(summary for summary in results.cells if id(summary) in kept)
    small = replace(results, pairs=pairs, cells=cells, lines=tuple(filter(None, lines)))
    return small, f"shown: the first {' and '.join(words)}"


def group_breaks(lines: Sequence[Sequence[CellSummary]]) -> list[float]:
    groups = [line[0].cell.group for line in lines]
    return [y - 0.5 for y in range(1, len(groups)) if groups[y] != groups[y - 1]]


def panels_by_pair(
    pairs: Sequence[tuple[str, str]], width: float, height: float, *, sharey: bool = False
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """An empty figure with a titled panel for each pair; panel sizes in inches."""
    n = max(len(pairs), 1)
    rows = math.ceil(n / MOST_ABREAST)
    columns = math.ceil(n / rows)
    figure = new_figure(columns * width + 0.8, rows * height + 0.4)
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    panels = dict(zip(pairs, grid, strict=False))
    for pair, axes in panels.items():
        axes.set_title(pair_name(pair))
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure, panels


def far_off(value: float, values: Sequence[float]) -> bool:
    """Whether an axis that shows `value` too would press the `values` together: said in words instead."""
    low, high = min(values), max(values)
    return not low - max(2 * (high - low), FAR_POINTS) <= value <= high + max(2 * (high - low), FAR_POINTS)


def beyond(axes: Axes, low: Sequence[str], high: Sequence[str], arrows: str) -> None:
    """Name, between a panel and its title, what lies beyond an end of its axis: each end has a corner, in one line."""
    for words, x, align in ((low, 0.0, "left"), (high, 1.0, "right")):
        if words:
            said = f"{arrows[0]} {', '.join(words)}" if align == "left" else f"{', '.join(words)} {arrows[1]}"
            look = {"fontsize": BEYOND_PT, "color": "0.35", "va": "bottom", "ha": align}
            axes.annotate(plain(said), (x, 1.0), (0, 1.5), "axes fraction", textcoords="offset points", **look)
    if low or high:
        axes.set_title(axes.get_title(), pad=BEYOND_PT + 5)


def new_figure(width: float, height: float) -> Figure:
    size = min(max(width, LEAST_INCHES), MOST_INCHES), min(height, MOST_INCHES)
    return Figure(figsize=size, layout="constrained")


def label_axes(panels: Mapping[tuple[str, str], Axes], x: str, y: str = "") -> None:
    """On the lowest panel of each column and the first of each row."""
    lowest = {axes.get_subplotspec().colspan.start: axes for axes in panels.values()}
    for axes in lowest.values():
        axes.set_xlabel(x)
    for axes in panels.values():
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(y)


def legend_below(figure: Figure, handles: list[Line2D]) -> None:
    """Outside the axes, in as many columns as the figure is wide, on height added for it."""
    labels = [handle.get_label().split("\n") for handle in handles]
    # The sample of a column and its gaps take 0.6 inch.
    widths = [LETTER_INCHES * max(map(len, lines)) + 0.6 for lines in labels]

    def fits(columns: int) -> bool:
        return sum(max(part) for part in np.array_split(widths, columns)) <= figure.get_figwidth()

    most = max(filter(fits, range(1, len(handles) + 1)), default=1)
    columns = math.ceil(len(handles) / math.ceil(len(handles) / most))  # as even as can be
    tallest = max(sum(part) for part in np.array_split([len(lines) for lines in labels], columns))
    figure.set_figheight(min(MOST_INCHES, figure.get_figheight() + LINE_INCHES * tallest + 0.1))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def pair_name(pair: tuple[str, str], between: str = " → ") -> str:
    return plain(between.join(filter(None, pair)))


def plain(text: str) -> str:
    """Nothing in a label is mathematics, and none starts with the underscore that hides it from legends."""
    text = "\n".join(map(clean, text.split("\n"))).replace("$", r"\$")
    return " " + text if text.startswith("_") else text


def images(figure: Figure, kinds: Sequence[str]) -> dict[str, bytes]:
    """The figure in each format. It is laid out once, which takes most of the time."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    return {kind: _image(figure, kind) for kind in kinds}


def _image(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    # No creation date: the same results give the same file.
    metadata = {"CreationDate": None} if kind == "pdf" else None
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()
