"""The answer in sentences: each true of the hand-made results it is said of."""

from __future__ import annotations

import re

import pytest

from bench.report import writing as report
from bench.report.statistics import gains
from tests.bench.report.report_cases import A, B, Grid, hand_made, result

C = ("vgg13", "vgg8")
LEVEL = "(5 %, all methods of a pair at once)"


def of(*pairs: tuple, protocol: str = "streamlined") -> Grid:
    """Each of `pairs` is a pair and its rows: accuracies or states by label."""
    grid = Grid(protocol, pairs=tuple(pair for pair, _ in pairs))
    for pair, rows in pairs:
        for label, states in rows.items():
            grid.add(label, "student" if label == "Student" else "logit", pair, *states)
    return grid


# Rows follow their seeds but for a tenth: a whole point is much, a tenth nothing. Means 66.2, 68.23, 69.23, 71.23.
CLEAR = {"Student": (66.0, 66.2, 66.4), "KD": (68.0, 68.3, 68.4), "X": (69.0, 69.2, 69.5), "Y": (71.0, 71.3, 71.4)}
CLOSE = CLEAR | {"KD": (71.0, 71.2, 71.4)}  # 71.20, a thirtieth below Y
TIED = {"KD": (71.0, 71.2), "X": (69.0, 69.3), "Y": (71.2, 71.0)}  # no Student row
OTHER = {"Student": (70.0, 70.2), "KD": (74.0, 74.2), "Y": (71.0, 71.3)}  # KD leads
HALF = {"KD": (70.0, 70.1), "X": ("missing", "failed: x")}
Z = {"Z": ("missing", "missing", "missing")}
ONE = {"Student": (66.0,), "KD": (70.0,), "X": (71.0,)}

TABLE = {
    "one pair": (
        of((A, CLEAR)),
        "Y leads on resnet56 → resnet20 with 71.23 % top-1.",
        "Gain of Y over the Student row: +5.03 [INTERVAL] points (95 % interval, for all methods of the pair at once).",
        f"Every other method is shown to be worse {LEVEL}.",
    ),
    "one pair, a close second": (
        of((A, CLOSE)),
        "Y leads on resnet56 → resnet20 with 71.23 % top-1.",
        "Gain of Y over the Student row: +5.03 [INTERVAL] points (95 % interval, for all methods of the pair at once).",
        f"Not shown to be worse {LEVEL}: KD.",
    ),
    "a tie, and no Student row": (
        of((A, TIED)),
        "KD and Y lead together on resnet56 → resnet20 with 71.10 % top-1.",
        "There is no Student row, so no gain is given.",
        f"Every other method is shown to be worse {LEVEL}.",
    ),
    "one seed": (
        of((A, ONE)),
        "X leads on resnet56 → resnet20 with 71.00 % top-1.",
        "Gain of X over the Student row: +5.00 points (one seed, so no interval).",
        "One seed a cell: nothing is tested, and the order may be chance.",
    ),
    "one seed on one of two pairs": (
        of((A, CLEAR), (B, {"Student": (70.0,), "KD": (71.0,), "Y": (72.0,)})),
        "Y leads on both pairs.",
        "Gain of Y over the Student row: +2.00 (wrn_40_2 → wrn_16_2) to +5.03 [INTERVAL] (resnet56 → resnet20) points "
        "(95 % intervals, for all methods of a pair at once).",
        "One seed a cell on 1 pair: nothing is tested, and the order may be chance.",
        f"Every other method is shown to be worse on 1 pair {LEVEL}.",
    ),
    "an unfinished Student row": (
        of((A, {"Student": (66.0, "missing"), "KD": (70.0, 70.1), "X": (72.0, 72.1)})),
        "X leads on resnet56 → resnet20 with 72.05 % top-1.",
        "The Student row is not finished where it would be needed, so no gain is given.",
        f"Every other method is shown to be worse {LEVEL}.",
        "1 of 6 wanted runs is not finished (1 missing): all this may change.",
    ),
    "three pairs, one leader": (
        of((A, CLEAR), (B, CLEAR), (C, CLEAR)),
        "Y leads on all 3 pairs.",
        "Gain of Y over the Student row: +5.03 [INTERVAL] (resnet56 → resnet20) to +5.03 [INTERVAL] (vgg13 → vgg8) "
        "points (95 % intervals, for all methods of a pair at once).",
        f"Every other method is shown to be worse on each of 3 pairs {LEVEL}.",
    ),
    "three pairs, two leaders": (
        of((A, CLEAR), (B, CLOSE), (C, OTHER)),
        "Y leads on 2 of 3 pairs, KD on 1.",
        "Gain of Y over the Student row: +1.05 [INTERVAL] (vgg13 → vgg8) to +5.03 [INTERVAL] (wrn_40_2 → wrn_16_2) "
        "points (95 % intervals, for all methods of a pair at once).",
        f"Not shown to be worse than the leader {LEVEL}: KD on 1 (of 3 pairs). Every other method is shown to be worse "
        "on 2 pairs.",
    ),
    "two pairs, two leaders": (
        of((A, CLEAR), (B, OTHER)),
        "Y and KD each lead on 1 of 2 pairs.",
        "Gain of the leaders over the Student row: +4.00 [INTERVAL] (KD on wrn_40_2 → wrn_16_2) to +5.03 [INTERVAL] "
        "(Y on resnet56 → resnet20) points (95 % intervals, for all methods of a pair at once).",
        f"Every other method is shown to be worse on each of 2 pairs {LEVEL}.",
    ),
    "a shared lead among two": (
        of((A, CLEAR), (B, TIED)),
        "Y leads on both pairs, KD on 1; 1 lead is shared.",
        "Gain of Y over the Student row on 1 of 2 pairs: +5.03 [INTERVAL] points (95 % interval, for all methods of "
        "the pair at once).",
        f"Every other method is shown to be worse on each of 2 pairs {LEVEL}.",
    ),
    "missing cells": (
        of((A, CLEAR | Z), (B, HALF)),
        "Y leads on resnet56 → resnet20 with 71.23 % top-1; the other pair cannot be ranked yet.",
        "Gain of Y over the Student row on 1 of 2 pairs: +5.03 [INTERVAL] points (95 % interval, for all methods of "
        "the pair at once).",
        f"Every other method that was compared is shown to be worse on 1 pair {LEVEL}. Not compared, with fewer than "
        "two runs: 1 cell.",
        "5 of 19 wanted runs are not finished (1 failed, 4 missing): all this may change.",
    ),
    "two of three pairs can be ranked": (
        of((A, CLEAR), (B, CLEAR), (C, HALF)),
        "Y leads on both pairs that can be ranked yet (3 in all).",
        "Gain of Y over the Student row on 2 of 3 pairs: +5.03 [INTERVAL] (resnet56 → resnet20) to +5.03 [INTERVAL] "
        "(wrn_40_2 → wrn_16_2) points (95 % intervals, for all methods of a pair at once).",
        f"Every other method is shown to be worse on each of 2 pairs {LEVEL}.",
        "2 of 28 wanted runs are not finished (1 failed, 1 missing): all this may change.",
    ),
    "one method": (
        of((A, {"Student": (66.0, 66.2, 66.4), "X": (68.0, 68.3, 68.4)})),
        "No pair has two methods with all wanted seeds finished, so none leads.",
        "Gain of X over the Student row: +2.03 [INTERVAL] points (95 % interval, for all methods of the pair at once).",
    ),
    "nothing finished": (
        of((A, {"Student": ("missing",), "KD": ("failed: no disk",)})),
        "No run has finished yet.",
        "2 of 2 wanted runs are not finished (1 failed, 1 missing).",
    ),
    "no cells": (of(), "No run has finished yet."),
}


@pytest.mark.parametrize("case", TABLE)
def test_each_kind_of_result_gets_true_sentences(case: str):
    grid, *expected = TABLE[case]
    said = grid.report().headline
    lines = [line for line in (said.lead, *said.rest) if "claim" not in line]
    assert [re.sub(r"\[[+−].*?\]", "[INTERVAL]", line) for line in lines] == expected


def test_intervals_are_those_of_the_gains():
    made = of((A, CLEAR)).report()
    (interval,) = (gain.interval for i, gain in gains(made.results).items() if made.results.cells[i].cell.label == "Y")
    assert f"+5.03 [+{interval.low:.2f}, +{interval.high:.2f}]" in made.headline.rest[0]


def test_claims_are_counted_under_their_own_protocol():
    rows = {"Student": (66.0, 66.2, 66.4)} | {label: (70.0, 70.3, 70.4) for label in ("MLKD", "DKD")}
    target = "Of 1 claim of the target table, 0 hold, 0 are refuted and 1 undecided."
    assert of((A, rows)).report().headline.rest[-1] == target
    own = "Of 1 claim published under protocol standard, 1 holds, 0 are refuted and 0 undecided."
    standard = {"KD": (70.0, 70.1, 70.2), "DKD": (72.0, 72.1, 72.2)}
    said = of(*((pair, standard) for pair in STANDARD), protocol="standard").report().headline.rest[-1]
    assert said == own
    other = of((A, rows), protocol="sprint").report().headline.rest[-1]
    assert (
        other
        == "No published claim under protocol sprint is about these runs; 1 claim of others is checked for orientation."
    )


STANDARD = (
    A, ("resnet110", "resnet32"), ("resnet32x4", "resnet8x4"), ("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1"), C
)  # fmt: skip


# ---- what stands above it


@pytest.mark.parametrize(
    ("grid", "title"),
    [
        (of((A, CLEAR)), "Knowledge distillation on CIFAR-100: top-1 accuracy of 3 methods on resnet56 → resnet20"),
        (hand_made(), "Knowledge distillation on CIFAR-100: top-1 accuracy of 7 methods on 2 teacher-student pairs"),
        (of((A, Z)), "Knowledge distillation: top-1 accuracy of 1 method on resnet56 → resnet20"),
        (of(), "Knowledge distillation"),
    ],
)
def test_the_title_says_what_is_measured(grid: Grid, title: str):
    assert grid.report().headline.title == title
    assert report.markdown_report(grid.report()).startswith(f"# {title}\n")


def test_procedural_images_are_said_to_be_so_before_all_numbers():
    rows = {label: (result(60.0, dataset="embedded-1"),) for label in ("KD", "X")}
    made = of((A, rows), protocol="quick").report()
    assert "on procedural images (embedded-1)" in made.headline.title
    for text in (report.markdown_report(made), report.terminal(made)):
        above, _, _ = text.partition("60.00")
        assert "images are procedural" in above and "say nothing of how the methods fare" in above
    assert hand_made().report().headline.banner == ""
