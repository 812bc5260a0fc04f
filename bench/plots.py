"""Pictures of the results: accuracy per pair, difference to published numbers, accuracy over epochs."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.lib.stride_tricks import sliding_window_view

from bench.cells import RunStatus
from bench.comparison import Comparison
from bench.frames import CellSummary, Results, clean, done, number, signed, whole
from bench.published import Reference
from bench.tables import SIGNS

KINDS = ("png", "pdf")
SMOOTHED_FROM = 50  # epochs: shorter curves are drawn as they are
DPI = 160
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "pdf.fonttype": 42,  # text in a PDF stays text
    "figure.constrained_layout.use": True,
}
# Okabe and Ito's palette (jfly.uni-koeln.de/color) without yellow, which prints badly, and black, the
# student's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
LETTER_INCHES, LINE_INCHES = 0.066, 0.17  # size of text in the font below
LEAST_INCHES = 4.2  # width of a figure that a legend fits under
MOST_INCHES = 200.0  # either side of a figure; more than this no renderer takes at DPI
STUDENT = "black"
BASELINES = {
    "student": {"color": STUDENT, "linestyle": (0, (4, 2)), "linewidth": 1},
    "teacher": {"color": "#777777", "linestyle": (0, (1, 1)), "linewidth": 1},
}
SEED = {"linestyle": "", "marker": "o", "markersize": 3.2}
MEAN = {"linestyle": "", "marker": "|", "markersize": 11, "markeredgewidth": 1.8}
OPEN = {
    "linestyle": "",
    "color": "none",
    "markeredgecolor": "0.25",
    "markersize": 4.6,
    "markeredgewidth": 0.8,
}
OPEN_MARKERS = ("D", "s", "^", "o", "v")


@dataclass(frozen=True)
class Look:
    colour: str
    dashes: str | tuple


def draw(
    results: Results, comparisons: Sequence[Comparison], runs: Mapping[str, RunStatus]
) -> dict[str, dict[str, bytes | None]]:
    """Every plot as {name: {"png": bytes, "pdf": bytes}}; None where there is nothing to show."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A label in a script that the font lacks is drawn as boxes; no reason to alarm anyone.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figures = {
            "accuracy": accuracy(results, comparisons),
            "difference": difference(results, comparisons),
            "curves": curves(results, runs),
        }
        return {name: {kind: _image(figure, kind) for kind in KINDS} for name, figure in figures.items()}


def accuracy(results: Results, comparisons: Sequence[Comparison]) -> Figure | None:
    """Last-epoch accuracy, a panel a pair: seeds are points, means ticks, published numbers open markers."""
    if not any(summary.last.n for summary in results.cells):
        return None
    lines, looks = _methods(results), looks_of(results)
    figure, panels = _panels(results, width=2.7, height=0.9 + 0.21 * max(len(lines), 2), sharey=True)
    handles = [
        Line2D([], [], color="0.3", label="one seed", **SEED),
        Line2D([], [], color="0.3", label="mean", **MEAN),
    ]
    for role, style in BASELINES.items():
        means = [(s.column, s.last.mean) for s in results.cells if s.cell.role == role and s.last.n]
        for pair, mean in means:
            panels[pair].axvline(mean, zorder=1, **style)
        handles += [Line2D([], [], label=f"{role.capitalize()} (mean)", **style)] if means else []
    for y, line in enumerate(lines):
        for summary in line:
            _accuracy_row(panels[summary.column], y, summary, looks[_row_name(summary)])
    height = {id(summary): y for y, line in enumerate(lines) for summary in line}
    for k, comparison in enumerate(comparisons):
        style = OPEN | {"marker": OPEN_MARKERS[k % len(OPEN_MARKERS)]}
        for i, entry in comparison.entries.items():
            if (summary := results.cells[i]).cell.role == "method":
                panels[summary.column].plot(entry.published.top1, height[id(summary)], zorder=2, **style)
        handles.append(Line2D([], [], label=_published(comparison.reference), **style))
    for axes in panels.values():
        axes.set_yticks(range(len(lines)), [_plain(line[0].cell.label) for line in lines])
        axes.set_ylim(max(len(lines), 1) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", linewidth=0.4, color="0.88")
        axes.margins(x=0.08)
        for y in _group_breaks(lines):
            axes.axhline(y, color="0.8", linewidth=0.6, zorder=0)
    _label_axes(panels, "Top-1 at the last epoch (%)")
    _legend_below(figure, handles)
    return figure


def _accuracy_row(axes: Axes, y: int, summary: CellSummary, look: Look) -> None:
    if summary.last.mean is None:
        # Position in the axes across, in data up: no accuracy is claimed.
        across = axes.get_yaxis_transform()
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(
            0.02, y, SIGNS[summary.state], transform=across, va="center", fontsize=6.5, color="0.4", bbox=box
        )
        return
    points = [run.top1_last for run in done(summary.runs)]
    axes.plot(points, [y] * len(points), color=look.colour, alpha=0.75, zorder=3, **SEED)
    axes.plot(summary.last.mean, y, color=look.colour, zorder=4, **MEAN)


def difference(results: Results, comparisons: Sequence[Comparison]) -> Figure | None:
    """Ours minus published as a heat map, one panel a source, zero in the middle of the colours."""
    covered = {
        results.cells[i].column
        for comparison in comparisons
        for i, entry in comparison.entries.items()
        if entry.difference is not None
    }
    columns = [pair for pair in results.pairs if pair in covered]
    if not columns:
        return None
    grids = [grid for comparison in comparisons if (grid := _grid(results, comparison, columns))]
    limit = max(0.5, *(float(np.nanmax(np.abs(values))) for _, _, values in grids))
    heights = [len(rows) for _, rows, _ in grids]
    title = 1.0 + LETTER_INCHES * max(len(name) for name, _, _ in grids)
    size = (max(title, 2.6 + 0.85 * len(columns)), 0.8 + 0.24 * sum(heights) + 0.3 * len(grids))
    figure = Figure(figsize=tuple(min(side, MOST_INCHES) for side in size))
    panels = list(figure.subplots(len(grids), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0])
    for axes, (name, rows, values) in zip(panels, grids, strict=True):
        axes.set_facecolor("0.93")
        image = axes.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
        for (y, x), value in np.ndenumerate(values):
            if not np.isnan(value):
                shade = "white" if abs(value) > 0.62 * limit else "black"
                axes.text(x, y, signed(value), ha="center", va="center", fontsize=7, color=shade)
        axes.set_yticks(range(len(rows)), [_plain(row) for row in rows])
        axes.set_xticks(range(len(columns)), [_plain(f"{t}\n→ {s}") for t, s in columns], fontsize=6.5)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(_plain(name), loc="left")
    bar = figure.colorbar(image, ax=panels, shrink=min(1.0, 2.5 / size[1]), aspect=18, pad=0.02)
    bar.set_label("ours − published (points of top-1)\ngrey: nothing to compare")
    bar.outline.set_visible(False)
    return figure


def curves(results: Results, runs: Mapping[str, RunStatus]) -> Figure | None:
    """Test accuracy over epochs, one panel a pair: the mean over seeds, each seed thin behind it.

    A long curve is drawn as a running median (`_smooth`): at a high learning rate single epochs scatter by
    points, and a dozen methods would hide each other. The last point is the last epoch's own value.
    """
    looks, shown, longest = looks_of(results), {}, 0
    figure, panels = _panels(results, width=3.0, height=2.4, sharey=False)
    for pair, axes in panels.items():
        ends, tails = [], []
        for line in _students(results):
            summary = next((summary for summary in line if summary.column == pair), None)
            series = [] if summary is None else _series(summary, runs)
            if not series:
                continue
            name = _row_name(summary)
            look = looks[name]
            shown[name] = _plain(summary.cell.label)
            common = sorted(set.intersection(*(set(points) for points in series)))
            for points in series if len(series) > 1 else []:
                axes.plot(list(points), list(points.values()), color=look.colour, linewidth=0.35, alpha=0.35)
            mean = [math.fsum(points[epoch] for points in series) / len(series) for epoch in common]
            if common:
                axes.plot(common, mean, color=look.colour, linestyle=look.dashes, linewidth=1.1)
            ends += [max(points) for points in series]
            for points in series:
                climb = max(points) / 3
                tails += [value for epoch, value in points.items() if epoch > climb]
        if tails:
            # The first third climbs from chance; shown whole it would flatten what the plot is for.
            pad = 0.05 * (max(tails) - min(tails)) + 0.2
            axes.set_ylim(min(tails) - pad, max(tails) + pad)
            longest, margin = max(longest, *ends), 0.01 * max(ends)
            axes.set_xlim(1 - margin, max(ends) + margin)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", color="0.4")
        axes.grid(linewidth=0.4, color="0.9")
    if not shown:
        return None
    _label_axes(panels, "Epoch", "Test top-1 (%)" + (", running median" if longest >= SMOOTHED_FROM else ""))
    handles = [
        Line2D([], [], color=looks[name].colour, linestyle=looks[name].dashes, linewidth=1.3, label=label)
        for name, label in shown.items()
    ]
    _legend_below(figure, handles)
    return figure


def looks_of(results: Results) -> dict[tuple[str, str, str], Look]:
    """A look for each row by its place in the table: the same in every plot, whatever has finished."""
    looks = {}
    for i, line in enumerate(_methods(results)):
        colour, dashes = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
        looks[_row_name(line[0])] = Look(colour, dashes)
    for summary in results.cells:
        if summary.cell.role == "student":
            looks[_row_name(summary)] = Look(STUDENT, "-")
    return looks


def _methods(results: Results) -> list[tuple[CellSummary, ...]]:
    return [line for line in results.lines if line[0].cell.role == "method"]


def _students(results: Results) -> list[tuple[CellSummary, ...]]:
    """Rows whose model is the pair's student, distilled or not; a teacher's curve is another model's."""
    return [line for line in results.lines if line[0].cell.role != "teacher"]


def _row_name(summary: CellSummary) -> tuple[str, str, str]:
    return summary.cell.role, summary.cell.method, summary.cell.label


def _group_breaks(lines: Sequence[tuple[CellSummary, ...]]) -> list[float]:
    groups = [line[0].cell.group for line in lines]
    return [y - 0.5 for y in range(1, len(groups)) if groups[y] != groups[y - 1]]


def _panels(
    results: Results, width: float, height: float, sharey: bool
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """An empty figure with a titled panel for each pair, at most four abreast; panel sizes in inches."""
    n = max(len(results.pairs), 1)
    rows = math.ceil(n / 4)
    columns = math.ceil(n / rows)
    size = (max(LEAST_INCHES, columns * width + 1.0), rows * height + 0.4)
    figure = Figure(figsize=tuple(min(side, MOST_INCHES) for side in size))
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    panels = dict(zip(results.pairs, grid, strict=False))
    for pair, axes in panels.items():
        axes.set_title(_plain(" → ".join(pair)))
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure, panels


def _grid(
    results: Results, comparison: Comparison, columns: Sequence[tuple[str, str]]
) -> tuple[str, list[str], np.ndarray] | None:
    """(title, row labels, differences with NaN for none) of one source; None without any difference."""
    known = {id(results.cells[i]): entry.difference for i, entry in comparison.entries.items()}
    known = {key: value for key, value in known.items() if value is not None}
    lines = [line for line in results.lines if any(id(summary) in known for summary in line)]
    values = np.full((len(lines), len(columns)), np.nan)
    for y, line in enumerate(lines):
        for summary in line:
            if id(summary) in known:
                values[y, columns.index(summary.column)] = known[id(summary)]
    return (comparison.reference.name, [line[0].cell.label for line in lines], values) if lines else None


def _series(summary: CellSummary, runs: Mapping[str, RunStatus]) -> list[dict[int, float]]:
    """{epoch: top-1}, smoothed, of each finished run that has a usable curve."""
    series = []
    for run in done(summary.runs):
        curve = runs[run.run_id].result.get("curve")
        rows = [row for row in curve if isinstance(row, dict)] if isinstance(curve, list) else []
        found = {whole(row.get("epoch")): number(row.get("top1")) for row in rows}
        points = {epoch: top1 for epoch, top1 in found.items() if epoch is not None and top1 is not None}
        series += [_smooth(points)] if points else []
    return series


def _smooth(points: dict[int, float]) -> dict[int, float]:
    """Running median over about a 25th of the epochs.

    It keeps the steps of the learning rate, and narrows at both ends until the first and the last epoch
    stand for themselves.
    """
    epochs = sorted(points)
    values = np.array([points[epoch] for epoch in epochs])
    half = len(values) // SMOOTHED_FROM
    smooth = values.copy()
    if half:
        smooth[half:-half] = np.median(sliding_window_view(values, 2 * half + 1), axis=1)
    for i in range(1, half):
        smooth[i], smooth[-1 - i] = np.median(values[: 2 * i + 1]), np.median(values[-1 - 2 * i :])
    return dict(zip(epochs, smooth.tolist(), strict=True))


def _label_axes(panels: Mapping[tuple[str, str], Axes], x: str, y: str = "") -> None:
    """On the lowest panel of each column and the first of each row."""
    lowest = {axes.get_subplotspec().colspan.start: axes for axes in panels.values()}
    for axes in lowest.values():
        axes.set_xlabel(x)
    for axes in panels.values():
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(y)


def _legend_below(figure: Figure, handles: list[Line2D]) -> None:
    """Outside the axes, in as many columns as the figure is wide, on height added for it."""
    labels = [handle.get_label().split("\n") for handle in handles]
    # The sample of a column and its gaps take 0.6 inch.
    widths = [LETTER_INCHES * max(map(len, lines)) + 0.6 for lines in labels]

    def fits(columns: int) -> bool:
        return sum(max(part) for part in np.array_split(widths, columns)) <= figure.get_figwidth()

    most = max(filter(fits, range(1, len(handles) + 1)), default=1)
    columns = math.ceil(len(handles) / math.ceil(len(handles) / most))  # as even as can be
    tallest = max(sum(part) for part in np.array_split([len(lines) for lines in labels], columns))
    figure.set_figheight(min(MOST_INCHES, figure.get_figheight() + LINE_INCHES * tallest))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def _published(reference: Reference) -> str:
    return _plain(f"published: {reference.source}\n({reference.statistic_words})")


def _plain(text: str) -> str:
    """Nothing in a label is mathematics, and none starts with the underscore that hides it from legends."""
    text = "\n".join(map(clean, text.split("\n"))).replace("$", r"\$")
    return " " + text if text.startswith("_") else text


def _image(figure: Figure | None, kind: str) -> bytes | None:
    if figure is None:
        return None
    buffer = io.BytesIO()
    # No creation date: the same results give the same file.
    metadata = {"CreationDate": None} if kind == "pdf" else None
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()
