"""Loss terms over epochs, and the norms of their gradients with respect to the logits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from bench.report.curves import MOST_SEEDS, Read, Series, mean, series
from bench.report.frames import CellSummary, Results, done, number
from bench.report.plots import style
from bench.report.plots.curves import smooth

# Keys of a curve's row that are no loss terms.
OTHER = {"epoch", "lr", "train_loss", "top1", "top5", "test_loss", "val_top1", "val_top5", "val_loss", "wall_s"}
PULL, WATCHED = "grad_norm_", "state_"
ABREAST = 5
# By the place of the term in its method's sum: cross entropy first, in black.
TERM_STYLES = (
    {"color": "black", "linestyle": "-"},
    {"color": "#D55E00", "linestyle": "-"},
    {"color": "#0072B2", "linestyle": (0, (4, 1.2))},
    {"color": "#8E5BA6", "linestyle": (0, (1.5, 1))},
    {"color": "#2E7D32", "linestyle": (0, (5, 1.2, 1.2, 1.2))},
)
DECADES = 5  # an axis shows so many at most: one vanishing term must not flatten all others
LABEL_GAP = 0.13  # least distance of two labels at the ends of their lines, as a share of the axis


@dataclass(frozen=True)
class _Terms:
    label: str
    values: Mapping[str, Series]  # by term, in the order of the sum
    pulls: Mapping[str, Series]


def terms(results: Results, read: Read) -> Figure | None:
    """Small multiples, one method each, for the pair on which most rows have terms (the first of several)."""
    pair, found = _fullest(results, read)
    if not found:
        return None
    kinds = 2 if any(entry.pulls for entry in found) else 1
    columns = min(ABREAST, len(found))
    blocks = math.ceil(len(found) / columns)
    figure = style.new_figure(2.15 * columns + 0.6, 1.45 * kinds * blocks + 0.6)
    grid = figure.subplots(kinds * blocks, columns, squeeze=False)
    last = max(max(points) for entry in found for points in entry.values.values())
    for kind in range(kinds):
        shown = [entry.pulls if kind else entry.values for entry in found]
        span = _span([value for lines in shown for points in lines.values() for value in points.values()])
        for k, (entry, lines) in enumerate(zip(found, shown, strict=True)):
            axes = grid[k // columns * kinds + kind][k % columns]
            _panel(axes, lines, list(entry.values), span, pull=bool(kind))
            axes.set_xlim(0, max(last, 1) * 1.02)
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            lowest = kind == kinds - 1 and k + columns >= len(found)
            axes.tick_params(labelleft=k % columns == 0, labelbottom=lowest)
            if kind == 0:
                axes.set_title(style.plain(entry.label))
            if k % columns == 0:
                axes.set_ylabel("gradient norm" if kind else "loss term")
            if lowest and k // columns == blocks - 1:
                axes.set_xlabel("Epoch")
    for k in range(len(found), columns * blocks):
        for kind in range(kinds):
            grid[k // columns * kinds + kind][k % columns].remove()
    figure.suptitle(style.pair_name(pair), fontsize=9)
    return figure


def _fullest(results: Results, read: Read) -> tuple[tuple[str, str], list[_Terms]]:
    """The pair with terms of most rows, and these; reads no more curves than it has to."""
    candidates = {
        pair: [s for line in style.student_lines(results) if (s := style.at(line, pair)) and s.last.n]
        for pair in results.pairs
    }
    best: tuple[tuple[str, str], list[_Terms]] = (("", ""), [])
    for pair in sorted(candidates, key=lambda pair: -len(candidates[pair])):
        if len(candidates[pair]) <= len(best[1]):
            break
        found = [entry for s in candidates[pair] if (entry := _terms(s, read)).values]
        if len(found) > len(best[1]):
            best = pair, found
    return best


def _terms(summary: CellSummary, read: Read) -> _Terms:
    curves = [curve for run in done(summary.runs)[:MOST_SEEDS] if (curve := read(run.run_id))]
    names = [key for key, value in curves[0][-1].items() if number(value) is not None] if curves else []
    names = [name for name in names if name not in OTHER and not name.startswith((PULL, WATCHED))]

    def over_runs(key: str) -> Series:
        return mean(points for curve in curves if (points := series(curve, key)))

    values = {name: points for name in names if (points := over_runs(name))}
    pulls = {name: smooth(points) for name in names if (points := over_runs(PULL + name))}
    return _Terms(summary.cell.label, values, pulls)


def _panel(
    axes: Axes, lines: Mapping[str, Series], names: Sequence[str], span: tuple[float, float], *, pull: bool
) -> None:
    axes.set_yscale("log")
    axes.set_ylim(span)
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    ends, remarks = {}, []
    for name, points in lines.items():
        above = {epoch: value for epoch, value in points.items() if value > 0}
        if not above:
            remarks.append(f"{name}: no pull on the logits" if pull else f"{name}: never above 0")
            continue
        if max(above.values()) < span[0]:
            remarks.append(f"{name}: below, {above[max(above)]:.0e}")
            continue
        look = TERM_STYLES[names.index(name) % len(TERM_STYLES)]
        dot = {"marker": "o", "markersize": 3} if len(above) == 1 else {}
        axes.plot(list(above), list(above.values()), linewidth=1.1, **look, **dot)
        ends[name] = (above[max(above)], look["color"])
    _end_labels(axes, ends, span)
    if remarks:
        axes.text(0.04, 0.04, style.plain("\n".join(remarks)), transform=axes.transAxes, fontsize=6, color="0.35")
    axes.grid(linewidth=0.4, color="0.9")


def _end_labels(axes: Axes, ends: Mapping[str, tuple[float, str]], span: tuple[float, float]) -> None:
    """The name of each line at its end, moved apart where lines end together."""
    low, high = map(math.log10, span)
    wanted = {name: (math.log10(value) - low) / (high - low) for name, (value, _) in ends.items()}
    order = sorted(wanted, key=wanted.__getitem__)
    for name, height in zip(order, apart([wanted[name] for name in order], LABEL_GAP), strict=True):
        words = style.plain(name)
        axes.text(1.03, height, words, transform=axes.transAxes, va="center", fontsize=6.5, color=ends[name][1])


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights moved as little as possible (least squares) until they are `gap` apart."""
    blocks: list[list[float]] = []  # [mean of height - place * gap, size]: pool adjacent violators
    for place, height in enumerate(heights):
        blocks.append([height - place * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            level, size = blocks.pop()
            before, count = blocks[-1]
            blocks[-1] = [(level * size + before * count) / (size + count), size + count]
    levels = [level for level, size in blocks for _ in range(int(size))]
    return [level + place * gap for place, level in enumerate(levels)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Limits of a logarithmic axis for the values above zero."""
    above = [value for value in values if value > 0] or [1.0]
    low = max(min(above), max(above) / 10**DECADES)
    return 10 ** math.floor(math.log10(low / 1.1)), max(above) * 1.6
