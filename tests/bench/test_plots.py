from __future__ import annotations

import io
import itertools
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bench import plots, report
from bench.comparison import compare
from bench.frames import collect
from tests.bench.report_cases import NOW, A, Grid, result

PAIRS = (
    ("resnet56", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("vgg13", "vgg8"),
    ("vgg13", "vgg13"),
)
METHODS = ("FitNet", "RKD", "CRD", "OFD", "ReviewKD", "KD", "CLKD", "DKD", "MLKD", "SDD", "SKD", "_my_$new$")


def grid_of(pairs: int, methods: int, seeds: int, protocol: str = "streamlined") -> Grid:
    rng = np.random.default_rng(0)
    grid = Grid(protocol, PAIRS[:pairs])
    for pair in grid.pairs:
        grid.add("Teacher", "teacher", pair, 75.0)
        grid.add("Student", "student", pair, *[result(69.0, seed, epochs=60) for seed in range(seeds)])
        for i, label in enumerate(METHODS[:methods]):
            group = "feature" if i < 5 else "logit" if i < 10 else "ours"
            found = [result(float(rng.normal(71 + i / 4, 0.3)), seed, epochs=60) for seed in range(seeds)]
            grid.add(label, group, pair, *found)
    return grid


@pytest.mark.parametrize(("pairs", "methods", "seeds"), [(1, 1, 1), (2, 5, 2), (7, 12, 2)])
def test_files_are_written_and_not_blank(pairs: int, methods: int, seeds: int, tmp_path: Path):
    grid = grid_of(pairs, methods, seeds)
    written = report.write(tmp_path, grid.spec, grid.runs, now=NOW)
    files = [path for path in written if path.parent.name == "plots"]
    assert {path.stem for path in files} == {"accuracy", "curves", "difference"} and len(files) == 6
    for path in files:
        assert path.stat().st_size > 5000
        if path.suffix == ".png":
            pixels = image.imread(io.BytesIO(path.read_bytes()))
            inked = (pixels[..., :3].min(axis=2) < 0.9).mean()
            assert min(pixels.shape[:2]) > 200 and 0.005 < inked < 0.9
        else:
            assert path.read_bytes().startswith(b"%PDF")


def test_only_the_plots_there_is_something_for_and_no_stale_ones(tmp_path: Path):
    grid = grid_of(1, 2, 2)
    report.write(tmp_path, grid.spec, grid.runs, now=NOW)
    assert (tmp_path / "plots" / "difference.png").exists()
    grid.protocol = "sprint"
    report.write(tmp_path, grid.spec, grid.runs, now=NOW)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        "accuracy.pdf", "accuracy.png", "curves.pdf", "curves.png",
    ]  # fmt: skip
    report.write(tmp_path, grid.spec, {}, now=NOW)
    assert list((tmp_path / "plots").iterdir()) == []


def test_finished_runs_without_curves_leave_the_accuracy_plot():
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, {"metrics": {"top1_last": 71.0}})
    results = collect(grid.spec, grid.runs)
    assert plots.accuracy(results, []) is not None and plots.curves(results, grid.runs) is None


def test_every_seed_is_a_point_where_the_run_ended():
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, 71.0, 71.5, 73.5)
    figure = plots.accuracy(collect(grid.spec, grid.runs), [])
    drawn = [sorted(np.atleast_1d(line.get_xdata()).tolist()) for line in figure.axes[0].lines]
    assert [71.0, 71.5, 73.5] in drawn and [72.0] in drawn  # the seeds, and their mean


def test_heat_map_shows_the_differences_and_nothing_else():
    grid = Grid(pairs=PAIRS[:2])
    grid.add("KD", "logit", PAIRS[0], 70.0)
    grid.add("KD", "logit", PAIRS[1], 73.0)
    grid.add("DKD", "logit", PAIRS[0], 70.0)
    grid.add("DKD", "logit", PAIRS[1], "missing")
    results = collect(grid.spec, grid.runs)
    figure = plots.difference(results, compare(results))
    # Published: KD 69.34 and 73.27, DKD 69.73 and 72.83.
    assert [text.get_text() for text in figure.axes[0].texts] == ["+0.66", "−0.27", "+0.27"]
    shown = figure.axes[0].images[0]
    assert np.isnan(shown.get_array().filled(np.nan)[1, 1])
    assert shown.norm.vmin == -shown.norm.vmax


def test_looks_are_all_different_and_do_not_depend_on_what_has_finished():
    grid = grid_of(1, 12, 1)
    looks = plots.looks_of(collect(grid.spec, grid.runs))
    assert len({(look.colour, look.dashes) for look in looks.values()}) == len(looks) == 13
    assert looks == plots.looks_of(collect(grid.spec, {}))


@pytest.mark.parametrize(("pairs", "methods"), [(1, 2), (2, 5), (6, 11), (7, 12)])
@pytest.mark.parametrize("protocol", ["streamlined", "standard"])
def test_legends_lie_outside_the_panels_and_labels_apart(pairs: int, methods: int, protocol: str):
    grid = grid_of(pairs, methods, 2, protocol)
    results = collect(grid.spec, grid.runs)
    with matplotlib.rc_context(plots.STYLE):
        figures = [plots.accuracy(results, compare(results)), plots.curves(results, grid.runs)]
        for figure in figures:
            FigureCanvasAgg(figure).draw()
            (legend,) = figure.legends
            panels = [axes for axes in figure.axes if axes.get_visible()]
            assert len(panels) == pairs
            boxes = [axes.get_tightbbox() for axes in panels] + [legend.get_window_extent()]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
            assert figure.bbox.contains(*legend.get_window_extent().min)
            assert figure.bbox.contains(*legend.get_window_extent().max)
            for axes in panels:
                for axis in (axes.xaxis, axes.yaxis):
                    low, high = sorted(axis.get_view_interval())
                    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
                    shown = [tick.label1 for tick in ticks if tick.label1.get_visible()]
                    extents = [label.get_window_extent() for label in shown]
                    assert not any(a.overlaps(b) for a, b in itertools.pairwise(extents))


@pytest.mark.parametrize("pairs", [1, 6])
@pytest.mark.parametrize("protocol", ["streamlined", "streamlined-revised", "standard"])
def test_heat_map_keeps_its_titles_inside_and_its_numbers_apart(pairs: int, protocol: str):
    grid = grid_of(pairs, 11, 1, protocol)
    results = collect(grid.spec, grid.runs)
    with matplotlib.rc_context(plots.STYLE):
        figure = plots.difference(results, compare(results))
        FigureCanvasAgg(figure).draw()
        *panels, _ = figure.axes
        assert len(panels) == len(compare(results))
        for axes in panels:
            assert axes.get_title("left") and axes._left_title.get_window_extent().x1 <= figure.bbox.x1
            boxes = [text.get_window_extent() for text in axes.texts]
            assert boxes and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        outer = [axes.get_tightbbox() for axes in panels]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(outer, 2))


@pytest.mark.parametrize("epochs", [1, 2, 49, 50, 120, 250])
def test_running_median_against_a_slow_one(epochs: int):
    values = np.random.default_rng(1).normal(70, 2, epochs).tolist()
    half = epochs // 50
    expected = []
    for i in range(epochs):
        reach = min(half, i, epochs - 1 - i)
        expected.append(float(np.median([values[j] for j in range(i - reach, i + reach + 1)])))
    smooth = plots._smooth(dict(enumerate(values, start=1)))
    assert list(smooth) == list(range(1, epochs + 1)) and list(smooth.values()) == pytest.approx(expected)
    assert smooth[epochs] == values[-1]
