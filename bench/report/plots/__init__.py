"""Pictures of the results: accuracy, gain, difference to published numbers, curves, cost, loss terms."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from bench.report.plots.settings import own_settings

# isort: split
# Only now what imports matplotlib: the above sees to what it is imported with.
from bench.report.comparison import compare
from bench.report.curves import Curves
from bench.report.frames import Results
from bench.report.plots import style
from bench.report.plots.accuracy import accuracy
from bench.report.plots.cost import cost
from bench.report.plots.curves import curves
from bench.report.plots.heat import difference, gain
from bench.report.plots.terms import terms

KINDS = ("png", "pdf")


def draw(
    results: Results, read: Curves, watched: Callable[[str], AbstractContextManager] = nullcontext
) -> dict[str, dict[str, bytes | None]]:
    """Every plot as {name: {"png": bytes, "pdf": bytes}}; None where there is nothing to show.

    Each is made within `watched(name)`, which may let a fault in it pass; that plot is then None.
    """
    shown, note = style.cut(results)
    comparisons = compare(shown)
    makers = {
        "accuracy": lambda: accuracy(shown, comparisons),
        "gain": lambda: gain(shown),
        "difference": lambda: difference(shown, comparisons),
        "curves": lambda: curves(shown, read),
        "cost": lambda: cost(shown),
        "terms": lambda: terms(shown, read.read),
    }
    drawn = {}
    with own_settings(), warnings.catch_warnings():
        warnings.resetwarnings()  # which PYTHONWARNINGS=error would make errors of
        # A label in a script that the font lacks is drawn as boxes; no reason to alarm anyone.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for name, make in makers.items():
            drawn[name] = dict.fromkeys(KINDS)
            with watched(f"plot {name}"):
                figure = make()
                if figure is None:
                    continue
                if note:
                    figure.suptitle("\n".join(filter(None, (figure.get_suptitle(), note))), fontsize=8)
                drawn[name] = style.images(figure, KINDS)
    return drawn
