from __future__ import annotations

import io
import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from bench.grid import expand, load
from bench.report import plots
from bench.report import writing as report
from bench.report.captions import CAPTIONS
from bench.report.comparison import compare
from bench.report.curves import Curves
from bench.report.frames import Results, collect, curves
from bench.report.plots import style
from bench.report.plots.curves import smooth
from bench.report.plots.settings import own_settings
from bench.report.plots.terms import apart
from tests.bench.report.report_cases import NOW, A, Grid, result

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
TERMS = {"ce": 0.5, "kd": 2.0, "dir": 0.01, "grad_norm_ce": 0.1, "grad_norm_kd": 0.2, "grad_norm_dir": 0.001}


def run(top1: float, seed: int, epochs: int = 60, train_s: float = 100.0, **terms: float) -> dict:
    made = result(top1, seed, epochs=epochs)
    made["timing"] = {"train_s": train_s * 3, "alone_s": train_s}  # it shared its process with two others
    for row in made["curve"]:
        row |= {"lr": 0.1 if row["epoch"] <= epochs / 2 else 0.01, **terms}
    return made


def grid_of(pairs: int, methods: int, seeds: int, protocol: str = "streamlined") -> Grid:
    rng = np.random.default_rng(0)
    grid = Grid(protocol, PAIRS[:pairs])
    grid.name = "full"
    for pair in grid.pairs:
        grid.add("Teacher", "teacher", pair, 75.0)
        grid.add("Student", "student", pair, *[run(69.0, seed, ce=1.0) for seed in range(seeds)])
        for i, label in enumerate(METHODS[:methods]):
            group = "feature" if i < 5 else "logit" if i < 10 else "ours"
            found = [run(float(rng.normal(71 + i / 4, 0.3)), s, train_s=100 + 9 * i, **TERMS) for s in range(seeds)]
            grid.add(label, group, pair, *found)
    return grid


def read(grid: Grid) -> tuple[Results, Curves]:
    return collect(grid.spec, grid.runs), Curves(curves(grid.runs))


def write(folder: Path, grid: Grid, runs: dict | None = None) -> list[Path]:
    runs = grid.runs if runs is None else runs
    return report.write(folder, report.make(grid.spec, runs, now=NOW), runs)


def drawn(figure: Figure) -> Figure:
    FigureCanvasAgg(figure).draw()
    return figure


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


# ---- files


@pytest.mark.parametrize(("pairs", "methods", "seeds"), [(1, 1, 1), (6, 12, 2)])
def test_files_are_written_and_not_blank(pairs: int, methods: int, seeds: int, tmp_path: Path):
    written = write(tmp_path, grid_of(pairs, methods, seeds))
    files = [path for path in written if path.parent.name == "plots"]
    assert {path.stem for path in files} == set(CAPTIONS) and len(files) == 12
    for path in files:
        assert path.stat().st_size > 4000
        if path.suffix == ".png":
            pixels = image.imread(io.BytesIO(path.read_bytes()))
            inked = (pixels[..., :3].min(axis=2) < 0.9).mean()
            assert min(pixels.shape[:2]) > 150 and 0.005 < inked < 0.9
        else:
            assert path.read_bytes().startswith(b"%PDF")


def test_only_the_plots_there_is_something_for_and_no_stale_ones(tmp_path: Path):
    grid = grid_of(1, 2, 2)
    write(tmp_path, grid)
    assert (tmp_path / "plots" / "difference.png").exists()
    grid.protocol = "sprint"
    write(tmp_path, grid)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == set(CAPTIONS) - {"difference"}
    write(tmp_path, grid, {})
    assert list((tmp_path / "plots").iterdir()) == []


def test_drawing_needs_no_torch():
    code = "import sys, bench.report.plots, bench.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_finished_runs_that_tell_nothing_but_their_accuracy():
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, {"metrics": {"top1_last": 71.0}})
    results, source = read(grid)
    assert plots.accuracy(results, []) is not None
    assert plots.curves(results, source) is plots.cost(results) is plots.terms(results, source.read) is None
    assert plots.gain(results) is None  # there is no Student row to gain over


# ---- what they show


def test_every_seed_is_a_point_where_the_run_ended():
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, 71.0, 71.5, 73.5)
    grid.add("DKD", "logit", A, 70.0)
    figure = plots.accuracy(collect(grid.spec, grid.runs), [])
    shown = [sorted(np.atleast_1d(line.get_xdata()).tolist()) for line in figure.axes[0].lines]
    assert [71.0, 71.5, 73.5] in shown and [72.0] in shown  # the seeds, and their mean
    assert shown.count([70.0]) == 1  # one run has no mean apart from itself


def test_the_state_of_an_unfinished_row_gives_way_to_its_published_number():
    grid = Grid(pairs=(A,))
    grid.add("MLKD", "logit", A, 71.0, 71.5)
    grid.add("SDD", "logit", A, "missing")  # published: 68.22, at the left of the panel
    grid.add("SKD", "ours", A, "missing")  # published: 71.34
    results = collect(grid.spec, grid.runs)
    (axes,) = plots.accuracy(results, compare(results)).axes
    assert [(text.get_position()[1], text.get_ha()) for text in axes.texts] == [(1, "right"), (2, "left")]


@pytest.mark.parametrize(("teacher", "line"), [(75.0, True), (90.0, False)])
def test_a_teacher_far_away_is_named_and_does_not_press_the_rest_together(teacher: float, line: bool):
    grid = Grid(pairs=(A,))
    grid.add("Teacher", "teacher", A, teacher)
    grid.add("KD", "logit", A, run(71.0, 0), run(72.0, 1))
    grid.add("DKD", "logit", A, run(71.5, 0), run(72.5, 1))
    results, _ = read(grid)
    (axes,) = plots.accuracy(results, []).axes
    assert (axes.get_xlim()[1] > teacher) == line
    assert any(f"Teacher {teacher:.2f}" in text.get_text() for text in axes.texts) != line
    (axes,) = plots.cost(results).axes
    assert (axes.get_ylim()[1] > teacher) == line


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of words, of any kind, that are drawn over each other. Numbers at ticks are matplotlib's own care."""
    drawn(figure)
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(Text)
        if text.get_visible() and re.search("[a-z]", text.get_text()) and "mathdefault" not in text.get_text()
    ]
    return [
        (a, b)
        for (a, one), (b, other) in itertools.combinations(boxes, 2)
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    ]


@pytest.mark.parametrize(("student", "teacher"), [(80.0, 81.2), (40.0, 41.2), (40.0, 81.2), (61.5, 81.2)])
def test_no_label_lies_over_another(student: float, teacher: float):
    """Where both baselines are off the axis, on one side or on both, and in figures of one panel and of several."""
    for pairs in (PAIRS[:1], PAIRS[2:6]):
        grid = Grid("standard", pairs)
        for pair in pairs:
            grid.add("Teacher", "teacher", pair, run(teacher, 0, epochs=4))
            grid.add("Student", "student", pair, run(student, 0, epochs=4))
            grid.add("KD", "logit", pair, run(61.0, 0, epochs=4, **TERMS))
            grid.add("DKD", "logit", pair, run(62.0, 0, epochs=4, train_s=200.0, **TERMS))
            grid.add("SKD", "ours", pair, "failed: no disk")
        results, source = read(grid)
        with matplotlib.rc_context(style.STYLE):
            figures = [plots.accuracy(results, compare(results)), plots.cost(results), plots.gain(results)]
            figures += [plots.curves(results, source), plots.terms(results, source.read)]
            assert [found for figure in figures for found in overlapping(figure)] == []


def test_a_published_best_epoch_is_no_point_of_a_last_epoch_axis():
    grid = Grid("standard", (A,))
    grid.add("KD", "logit", A, 70.5)  # published: 70.66, last epoch
    grid.add("ReviewKD", "feature", A, 71.0)  # published: best epochs alone
    results = collect(grid.spec, grid.runs)
    figure = plots.accuracy(results, compare(results))
    assert {c.reference.statistic for c in compare(results) if c.entries} == {"last", "best"}
    assert [text for text in legend(figure) if "best epoch" in text] == []
    hollow = [line for line in figure.axes[0].lines if line.get_color() == "none"]
    assert [float(line.get_xdata()[0]) for line in hollow] == [70.66]


def test_heat_map_shows_the_differences_and_nothing_else():
    grid = Grid(pairs=PAIRS[:2])
    grid.add("KD", "logit", PAIRS[0], 70.0)
    grid.add("KD", "logit", PAIRS[1], 72.0, 72.1, 72.2)
    grid.add("DKD", "logit", PAIRS[0], 70.0)
    grid.add("DKD", "logit", PAIRS[1], "missing")
    results = collect(grid.spec, grid.runs)
    figure = plots.difference(results, compare(results))
    # Published: KD 69.34 and 73.27, DKD 69.73 and 72.83.
    texts = {text.get_text(): text.get_weight() for text in figure.axes[0].texts}
    assert texts == {"+0.66": "normal", "−1.17": "bold", "+0.27": "normal"}  # one run has no deviation to exceed
    shown = figure.axes[0].images[0]
    assert np.isnan(shown.get_array().filled(np.nan)[1, 1])
    assert shown.norm.vmin == -shown.norm.vmax
    assert [patch.get_xy() for patch in figure.axes[0].patches] == [(0.5, 0.5)]  # hatched: published, not measured
    assert legend(figure) == ["published, not measured here"]


def test_gain_shows_the_paired_mean_and_half_its_interval():
    grid = Grid(pairs=PAIRS[:2])
    for pair in grid.pairs:
        grid.add("Student", "student", pair, 70.0, 70.0, 70.0)
    grid.add("KD", "logit", PAIRS[0], 71.0, 72.0, 73.0)  # 2 ± 4.303 * 1 / sqrt(3) = 2.48: holds 0
    grid.add("KD", "logit", PAIRS[1], 70.9, 71.0, 71.1)  # 1 ± 0.25
    grid.add("DKD", "logit", PAIRS[0], 71.0, "missing", "missing")
    grid.add("DKD", "logit", PAIRS[1], *["failed: why"] * 3)
    heat, forest, _ = plots.gain(collect(grid.spec, grid.runs)).axes
    texts = {text.get_text(): text.get_weight() for text in heat.texts}
    assert texts == {
        "+2.00": "normal", "±2.48": "normal", "+1.00": "bold", "±0.25": "normal", "1/3 seeds": "normal",
        "✗ failed": "normal",
    }  # fmt: skip
    assert [text.get_text() for text in forest.texts] == ["+1.50"]


def test_one_seed_has_a_gain_without_an_interval_and_never_bold():
    grid = Grid(pairs=(A,))
    grid.add("Student", "student", A, 70.0)
    grid.add("KD", "logit", A, 75.0)
    heat, _ = plots.gain(collect(grid.spec, grid.runs)).axes
    assert [(text.get_text(), text.get_weight()) for text in heat.texts] == [("+5.00", "normal")]


def test_cost_joins_what_nothing_cheaper_beats():
    grid = Grid(pairs=(A,))
    for label, seconds, top1 in (("KD", 60, 70.0), ("DKD", 120, 69.0), ("MLKD", 180, 72.0), ("SDD", 180, 71.0)):
        grid.add(label, "logit", A, run(top1, 0, train_s=seconds))
    (axes,) = plots.cost(collect(grid.spec, grid.runs)).axes
    steps = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert steps.get_xydata().tolist() == [[1, 70], [3, 72]]
    assert axes.get_xlabel() == "device time of a run alone (minutes)"


def test_wall_times_are_not_compared():
    """Results of before runs shared a process: the same times, disturbed by other work."""
    grid = Grid(pairs=(A,))
    for label, seconds, top1 in (("KD", 60, 70.0), ("DKD", 120, 69.0)):
        made = run(top1, 0)
        made["timing"] = {"train_s": seconds}
        grid.add(label, "logit", A, made)
    figure = plots.cost(collect(grid.spec, grid.runs))
    assert figure.axes[0].get_xlabel() == "wall time of a run (minutes)"
    assert "nothing cheaper is better" not in legend(figure)


def test_times_of_several_devices_are_said_not_to_be_comparable():
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, result(70.0, device="cpu"))
    grid.add("DKD", "logit", A, result(71.0, device="NVIDIA H200"))
    figure = plots.cost(collect(grid.spec, grid.runs))
    assert figure.get_suptitle() == "times of different devices, not comparable: NVIDIA H200, cpu"
    assert "nothing cheaper is better" not in legend(figure)
    assert all(line.get_drawstyle() == "default" for line in figure.axes[0].lines)


def test_terms_are_those_of_the_fullest_pair_and_vanishing_ones_are_named():
    grid = Grid(pairs=PAIRS[:2])
    grid.add("KD", "logit", PAIRS[0], run(70.0, 0, **TERMS))
    vanishing = TERMS | {"hint": 3.0, "grad_norm_hint": 0.0, "grad_norm_dir": 1e-12}
    for label in ("KD", "SKD"):
        grid.add(label, "ours", PAIRS[1], run(70.0, 0, **vanishing), run(71.0, 1, **vanishing))
    results, source = read(grid)
    figure = plots.terms(results, source.read)
    assert figure.get_suptitle() == "resnet110 → resnet32"
    above, below = figure.axes[0], figure.axes[2]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["KD", "SKD"]
    assert {text.get_text() for text in above.texts} == {"ce", "kd", "dir", "hint"}
    words = "hint: no pull on the logits\ndir: below, 1e-12"
    assert {text.get_text() for text in below.texts} == {"ce", "kd", words.split("\n")[1] + "\n" + words.split("\n")[0]}
    assert {axes.get_yscale() for axes in figure.axes} == {"log"}
    assert above.get_ylim() == figure.axes[1].get_ylim()


@pytest.mark.parametrize("heights", [[0.1], [0.1, 0.5, 0.9], [0.5, 0.5, 0.5], [0.2, 0.21, 0.5, 0.52, 0.53]])
def test_labels_are_moved_apart_as_little_as_possible(heights: list[float]):
    from scipy.optimize import minimize

    gap = 0.13
    bounds = [{"type": "ineq", "fun": lambda z, i=i: z[i + 1] - z[i] - gap} for i in range(len(heights) - 1)]
    best = minimize(lambda z: ((z - heights) ** 2).sum(), heights, constraints=bounds, tol=1e-12).x
    assert apart(heights, gap) == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("epochs", [1, 2, 49, 50, 120, 250])
def test_running_median_against_a_slow_one(epochs: int):
    values = np.random.default_rng(1).normal(70, 2, epochs).tolist()
    half = epochs // 50
    expected = []
    for i in range(epochs):
        reach = min(half, i, epochs - 1 - i)
        expected.append(float(np.median([values[j] for j in range(i - reach, i + reach + 1)])))
    found = smooth(dict(enumerate(values, start=1)))
    assert list(found) == list(range(1, epochs + 1)) and list(found.values()) == pytest.approx(expected)
    assert found[epochs] == values[-1]


def test_long_curves_have_panels_for_their_end_from_the_first_fall_of_the_learning_rate():
    results, source = read(grid_of(2, 12, 2))
    figure = plots.curves(results, source)
    grid = np.array(figure.axes).reshape(2, 4)
    titles = [axes.get_title() for axes in grid[0]]
    assert titles == ["All epochs", "Feature-based, end", "Logit-based, end", "Ours, end"]
    assert grid[0, 0].get_xlim()[0] < 2 and 29 < grid[0, 1].get_xlim()[0] < 31
    few, source = read(grid_of(2, 2, 2))
    assert [axes.get_title() for axes in plots.curves(few, source).axes][:2] == ["All epochs", "End"]


# ---- looks


def test_a_method_looks_the_same_in_every_grid_and_no_two_are_alike():
    full = style.looks_of(collect((grid := grid_of(1, 12, 1)).spec, grid.runs))
    assert len({(look.colour, look.marker, look.filled) for look in full.values()}) == len(full) == 14
    assert len({(look.colour, look.dashes) for look in full.values()}) == len(full)
    assert full == style.looks_of(collect(grid.spec, {}))
    small = Grid(pairs=(A,))
    small.add("KD", "logit", A, 70.0)
    assert style.looks_of(collect(small.spec, {}))["method", "kd", "KD"] == full["method", "kd", "KD"]


def test_a_methods_look_is_that_of_the_row_under_its_own_label():
    """Whatever other rows of it stand above."""
    grid = Grid(pairs=(A,))
    grid.add("KD, temperature 2", "logit", A, 70.0)
    grid.add("KD", "logit", A, 70.0)
    grid.cells[0] = replace(grid.cells[0], method="kd")
    looks = style.looks_of(collect(grid.spec, {}))
    assert looks["method", "kd", "KD"] == style.KNOWN["kd"] != looks["method", "kd", "KD, temperature 2"]
    grid.cells.pop()  # without it the row stands for its method
    assert style.looks_of(collect(grid.spec, {}))["method", "kd", "KD, temperature 2"] == style.KNOWN["kd"]


def test_rows_of_one_method_and_unknown_methods_get_looks_of_their_own():
    grid = Grid(pairs=(A,))
    for i in range(100):
        grid.add(f"new {i}", "logit", A, 70.0)
    looks = style.looks_of(collect(grid.spec, {})).values()
    assert len({(look.colour, look.marker, look.dashes) for look in looks}) == 100
    known = {(look.colour, look.marker) for look in style.KNOWN.values()}
    assert not known & {(look.colour, look.marker) for look in looks}


def test_every_row_of_the_longer_table_looks_like_no_other():
    """Each row by itself looks as it does in the whole table."""
    made = expand(load("extended"), seeds=[0])
    lines = [(cell.label, cell.group, cell.method) for cell in made.cells if cell.student == "vgg8"]

    def looks(rows: list[tuple[str, str, str]]) -> dict:
        grid = Grid("standard", (A,))
        for label, group, _ in rows:
            grid.add(label, group, A, 70.0)
        cells = [replace(cell, method=method) for cell, (*_, method) in zip(grid.cells, rows, strict=True)]
        grid.cells = cells
        return style.looks_of(collect(grid.spec, {}))

    rows = [line for line in lines if line[1]]
    found = looks(rows)
    own = [look for (role, *_), look in found.items() if role == "method"]
    assert len(own) == 23 and len(set(own)) == 23
    assert len({(look.colour, look.marker) for look in own}) == 23
    more = looks([*((f"new {i}", "feature", f"new{i}") for i in range(10)), *rows])
    assert len(set(more.values())) == len(more)
    for row in rows[::4]:
        key = "method", row[2], row[0]
        assert looks([row])[key] == found[key]


def test_known_looks_stay_apart_for_the_colour_blind_and_in_grey():
    # Machado, Oliveira and Fernandes 2009, deuteranopia; on linear RGB.
    deuteranopia = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]

    def lab(colour: str) -> np.ndarray:
        rgb = np.array(to_rgb(colour))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen = np.clip(np.array(deuteranopia) @ linear, 0, 1)
        xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
        x, y, z = np.cbrt(xyz / [0.9505, 1, 1.089])
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    for a, b in itertools.combinations(style.KNOWN.values(), 2):
        assert np.linalg.norm(lab(a.colour) - lab(b.colour)) > 15
        # In grey, of two lines in a panel (one group is one kind of filling), marker and dashes tell.
        if (a.filled, a.width) == (b.filled, b.width):
            assert a.marker != b.marker and a.dashes != b.dashes


# ---- layout


@pytest.mark.parametrize(("pairs", "methods"), [(1, 2), (2, 5), (7, 12)])
@pytest.mark.parametrize("protocol", ["streamlined", "standard"])
def test_nothing_overlaps_and_nothing_is_cut_off(pairs: int, methods: int, protocol: str):
    results, source = read(grid_of(pairs, methods, 2, protocol))
    with matplotlib.rc_context(style.STYLE):
        made = [plots.accuracy(results, compare(results)), plots.curves(results, source), plots.cost(results)]
        for figure in map(drawn, made):
            (legend,) = figure.legends
            panels = [axes for axes in figure.axes if axes.get_visible()]
            assert len(panels) >= pairs
            boxes = [axes.get_tightbbox() for axes in panels] + [legend.get_window_extent()]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
            for box in boxes:
                assert figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max)
            for axes in panels:
                assert no_overlaps(axes)


def no_overlaps(axes) -> bool:
    """Whether the tick labels of both axes stay clear of each other."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        shown = [tick.label1 for tick in ticks if tick.label1.get_visible()]
        extents = [label.get_window_extent() for label in shown if label.get_text()]
        if any(a.overlaps(b) for a, b in itertools.pairwise(extents)):
            return False
    return True


@pytest.mark.parametrize("pairs", [1, 6])
@pytest.mark.parametrize("protocol", ["streamlined", "streamlined-revised", "standard"])
def test_heat_maps_keep_their_titles_inside_and_their_numbers_apart(pairs: int, protocol: str):
    results, _ = read(grid_of(pairs, 11, 2, protocol))
    with matplotlib.rc_context(style.STYLE):
        for figure in map(drawn, (plots.difference(results, compare(results)), plots.gain(results))):
            *panels, _ = figure.axes
            for axes in panels:
                assert axes._left_title.get_window_extent().x1 <= figure.bbox.x1
                boxes = [text.get_window_extent() for text in axes.texts]
                assert boxes and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
                assert all(figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max) for box in boxes)
            outer = [axes.get_tightbbox() for axes in panels]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(outer, 2))


def test_a_grid_too_large_for_one_figure_is_cut_and_says_so():
    pairs = tuple((f"teacher{i}", f"student{i}") for i in range(style.MOST_PAIRS + 3))
    grid = Grid(pairs=pairs)
    for pair in pairs:
        for i in range(style.MOST_ROWS + 2):
            grid.add(f"M{i}", "logit", pair, "missing")
    small, note = style.cut(collect(grid.spec, grid.runs))
    assert (len(small.pairs), len(small.lines)) == (style.MOST_PAIRS, style.MOST_ROWS)
    assert len(small.cells) == style.MOST_PAIRS * style.MOST_ROWS == sum(map(len, small.lines))
    assert note == "shown: the first 24 of 27 pairs and 40 of 42 rows"
    results = collect((fits := grid_of(2, 3, 1)).spec, fits.runs)
    assert style.cut(results) == (results, "")


# ---- whatever surrounds them


def test_a_persons_settings_are_not_ours(tmp_path):
    """The same picture with a matplotlibrc in the working directory that cannot be read, a backend that is not there,
    no home, warnings as errors: and the process keeps its own."""
    code = (
        "import hashlib, os, sys\n"
        "from bench.report.plots import draw\n"
        "from bench.report.curves import Curves\n"
        "from tests.bench.report.test_plots import grid_of, read\n"
        "results, source = read(grid_of(1, 2, 2))\n"
        "drawn = draw(results, source)\n"
        "print(hashlib.sha256(drawn['accuracy']['png']).hexdigest(), os.getcwd(), os.environ.get('MPLBACKEND'))\n"
    )
    said = []
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "matplotlibrc").write_bytes(b"\xff\xfetext.usetex: True\nfont.size: 30\n")
    hostile = {
        "MPLBACKEND": "module://matplotlib_inline.not_there",
        "MPLCONFIGDIR": "/proc/none",
        "MATPLOTLIBRC": str(tmp_path / "here" / "matplotlibrc"),
        "HOME": "/none",
        "PYTHONWARNINGS": "error::UserWarning",
    }
    for folder, more in ((tmp_path, {}), (tmp_path / "here", hostile)):
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[3]), **more}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        said.append(done.stdout.split())
    (plain, _, none), (other, where, kept) = said
    assert plain == other and where == str(tmp_path / "here") and (none, kept) == ("None", hostile["MPLBACKEND"])


def test_settings_of_the_process_stay_as_they_were():
    with matplotlib.rc_context({"font.size": 31, "text.usetex": True}):
        with own_settings():
            assert matplotlib.rcParams["font.size"] == style.STYLE["font.size"]
            assert not matplotlib.rcParams["text.usetex"]
        assert matplotlib.rcParams["font.size"] == 31 and matplotlib.rcParams["text.usetex"]
