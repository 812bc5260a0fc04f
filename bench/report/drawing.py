"""The curve of a cell's runs as a drawing on the page."""

from __future__ import annotations

from collections.abc import Mapping

from bench.report.curves import Series
from bench.report.frames import percent
from bench.report.hypertext import Html, tag

CURVE_POINTS = 100
WIDTH, HEIGHT, LEFT, BOTTOM = 560, 130, 56, 18  # in units of its viewBox


def drawing(series: Mapping[int | None, Series], part: str, name: str) -> Html:
    """Accuracy over epochs, a line per run; "" where there is nothing to join.

    `part` says on which images, `name` is the element's id.
    """
    series = {seed: points for seed, points in series.items() if len(points) > 1}
    if not series:
        return Html("")
    first, last = min(map(min, series.values())), max(map(max, series.values()))
    # The climb from chance would flatten the rest.
    tails = [top1 for points in series.values() for epoch, top1 in points.items() if epoch > first + (last - first) / 3]
    low, high = min(tails), max(tails)
    low, high = low - 0.05 * (high - low) - 0.1, high + 0.05 * (high - low) + 0.1

    def x(epoch: float) -> float:
        return LEFT + (WIDTH - LEFT - 2) * (epoch - first) / (last - first)

    def y(top1: float) -> float:
        return max(-9.0, min(HEIGHT + 9.0, 2 + (HEIGHT - BOTTOM - 2) * (high - top1) / (high - low)))

    lines = []
    for points in series.values():
        epochs = list(points)
        step = max(1, len(epochs) // CURVE_POINTS)
        kept = sorted({*epochs[::step], epochs[-1]})
        lines.append(tag("polyline", points=" ".join(f"{x(epoch):.0f},{y(points[epoch]):.1f}" for epoch in kept)))
    floor = HEIGHT - BOTTOM
    ends = [points[max(points)] for points in series.values()]
    words = (
        f"{part} top-1 over epochs {first} to {last}, {len(series)} run" + "s" * (len(series) > 1) + ": ends at "
        f"{percent(min(ends))}" + (f" to {percent(max(ends))}" if len(ends) > 1 else "")
    )
    clip = tag("svg", *lines, x=0, y=0, width=WIDTH, height=floor)
    axes = [
        tag("line", x1=LEFT, x2=WIDTH, y1=floor, y2=floor),
        tag("line", x1=LEFT, x2=LEFT, y1=0, y2=floor),
        tag("text", f"{high:.1f} %", x=LEFT - 4, y=12, text_anchor="end"),
        tag("text", f"{low:.1f} %", x=LEFT - 4, y=floor, text_anchor="end"),
        tag("text", f"epoch {first}", x=LEFT, y=HEIGHT - 3),
        tag("text", str(last), x=WIDTH - 2, y=HEIGHT - 3, text_anchor="end"),
    ]
    return tag("svg", *axes, clip, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=words, id=name)
