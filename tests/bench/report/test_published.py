from __future__ import annotations

import pytest

import methods
from bench import grid as grids
from bench import protocol as protocols
from bench.cells import Cell
from bench.report import published, published_tables
from bench.report.comparison import compare, shown_only
from bench.report.frames import collect
from bench.report.markup import Text
from tests.bench.report.report_cases import A, B, Grid, result


def numbers(protocol: str, source: str) -> dict[tuple[str, str, str], published.Published]:
    (found,) = [ref.numbers for ref in published.references(protocol) if ref.source.startswith(source)]
    return dict(found)


def test_numbers_as_their_sources_print_them():
    # From the SKD READMEs of May and November 2025, and the RepDistiller and mdistiller READMEs.
    assert numbers("streamlined", "StreamLined")["vgg13", "vgg8", "skd"].top1 == 74.10
    assert numbers("streamlined", "StreamLined")["resnet56", "resnet20", "clkd"].top1 == 65.74
    assert numbers("streamlined-revised", "StreamLined")["resnet32x4", "resnet8x4", "skd"].top1 == 78.33
    assert numbers("standard", "RepDistiller")["resnet32x4", "resnet8x4", "kd"].top1 == 73.33
    assert numbers("standard", "mdistiller")["vgg13", "vgg8", "dkd"].top1 == 74.68
    assert numbers("standard", "RepDistiller")["resnet50", "mobilenetv2", "crd"].top1 == 69.11
    assert numbers("standard", "mdistiller")["wrn_40_2", "shufflenetv1", "dkd"].top1 == 76.70
    assert numbers("standard", "SDD paper")["resnet50", "vgg8", "sdd"].top1 == 75.86


def test_the_column_that_mdistillers_readme_calls_mobilenet_is_shufflenet():
    """DKD 77.07 of a resnet32x4: four other sources print it for shufflenetv2."""
    dkd = numbers("standard", "mdistiller")
    assert dkd["resnet32x4", "shufflenetv2", "dkd"].top1 == 77.07
    assert "README heads this column MobileNet-V2" in dkd["resnet32x4", "shufflenetv2", "dkd"].note
    assert ("resnet32x4", "mobilenetv2", "dkd") not in dkd
    assert all(n.top1 < 72 for n in published.load() if n.student == "mobilenetv2" and n.method != "teacher")


def test_the_second_table_of_repdistiller_is_whole():
    """Six pairs; the columns' means added up by hand: KD 431.88, CRD 439.95."""
    table = numbers("standard", "RepDistiller")
    six = [pair.split("-") for pair in grids.load("different-style").pairs[:6]]
    for method, total in (("kd", 431.88), ("crd", 439.95)):
        assert sum(table[teacher, student, method].top1 for teacher, student in six) == pytest.approx(total)
    assert all((*pair, row) in table for pair in six for row in "teacher student fitnet rkd".split())
    every = {(n.teacher, n.student) for n in published.load()}
    assert every == {tuple(pair.split("-")) for name in ("full", "different-style") for pair in grids.load(name).pairs}


def test_the_target_table_is_whole():
    table = numbers("streamlined", "StreamLined")
    rows = set("teacher student fitnet rkd crd ofd reviewkd kd clkd dkd mlkd sdd skd".split())
    pairs = {(teacher, student) for teacher, student, _ in table}
    assert len(pairs) == 6 and {method for *_, method in table} == rows and len(table) == 6 * 13
    # The mean of its "Ours" row, added up by hand: 71.34 + 74.26 + 77.21 + 76.42 + 75.56 + 74.10 = 448.89.
    assert sum(table[teacher, student, "skd"].top1 for teacher, student in pairs) == pytest.approx(448.89)


def test_every_row_is_well_formed_and_given_once():
    rows = published.load()
    keys = [(row.source, row.protocol, row.statistic, row.key) for row in rows]
    assert len(set(keys)) == len(keys) == 490
    assert {row.statistic for row in rows} <= set(published.STATISTICS)
    assert all(50 < row.top1 < 90 and (row.seeds is None or row.seeds > 0) for row in rows)
    assert not all(row.confirmed for row in rows)
    assert set(published.SOURCE_NOTES) <= {row.source for row in rows}


def test_references_never_cross_protocols():
    for protocol in published.protocols():
        for reference in published.references(protocol):
            assert {number.protocol for number in reference.numbers.values()} == {protocol}
            assert {number.statistic for number in reference.numbers.values()} == {reference.statistic}
    assert published.references("sprint") == ()


def test_baselines_are_found_by_role_whatever_made_them():
    (reference,) = published.references("streamlined")
    for method in ("vanilla", "checkpoint"):
        assert reference.find(Cell("Teacher", "teacher", "", method, *A, ())).top1 == 71.22
    assert reference.find(Cell("Student", "student", "", "vanilla", *A, ())).top1 == 65.79
    assert reference.find(Cell("KD", "method", "logit", "kd", "vgg13", "vgg13", ())) is None


def test_last_meets_last_best_meets_best_and_unstated_meets_last():
    grid = Grid("standard")
    grid.add("KD", "logit", A, result(71.0, best=71.5))
    grid.add("DKD", "logit", A, result(71.0, best=71.5))
    by_statistic = {c.reference.statistic: c.entries for c in compare(collect(grid.spec, grid.runs))}
    assert by_statistic["last"][0].difference == pytest.approx(71.0 - 70.66)  # RepDistiller, KD
    assert by_statistic["best"][1].difference == pytest.approx(71.5 - 71.97)  # mdistiller, DKD
    grid.protocol = "streamlined"
    (comparison,) = compare(collect(grid.spec, grid.runs))
    assert comparison.reference.statistic == "unstated"
    assert comparison.entries[0].difference == pytest.approx(71.0 - 69.34)


def test_pairs_of_different_style_meet_their_numbers():
    pair = ("vgg13", "mobilenetv2")
    grid = Grid("standard", (pair,))
    grid.add("KD", "logit", pair, result(68.0, best=68.5))
    results = collect(grid.spec, grid.runs)
    (comparison,) = compare(results)
    assert comparison.entries[0].difference == pytest.approx(68.0 - 67.37)  # RepDistiller
    grid = Grid("standard", (pair,))
    grid.add("MLKD", "logit", pair, 70.0)
    ((reference, found),) = shown_only(collect(grid.spec, grid.runs))
    assert (reference.protocol, found[0].top1) == ("standard-480", 70.57)


def test_nothing_is_subtracted_without_a_run_or_on_other_data():
    grid = Grid()
    grid.add("KD", "logit", A, "missing")
    grid.add("KD", "logit", B, result(72.0, dataset="embedded-1"))
    (comparison,) = compare(collect(grid.spec, grid.runs))
    assert list(comparison.entries) == [0] and comparison.entries[0].difference is None
    assert comparison.other_data == 1


def entry(*states: object, protocol: str = "streamlined", label: str = "KD"):
    """Ours beside the only source of a protocol: KD on A, 69.34 and not stated under streamlined."""
    grid = Grid(protocol, (A,))
    grid.add(label, "logit", A, *states)
    (comparison,) = [c for c in compare(collect(grid.spec, grid.runs)) if c.reference.statistic != "best"]
    return comparison.entries[0]


@pytest.mark.parametrize(
    ("runs", "far"),
    [
        # Published 70.66 (RepDistiller, last epoch). More than 0.5 and more than two sample deviations, to either side.
        ((71.26, 71.26), True),
        ((70.06, 70.06), True),
        ((71.16, 71.16), False),  # exactly 0.5, whatever binary fractions make of it
        ((71.17, 71.17), True),
        ((71.0, 71.0), False),
        ((71.06, 71.86), False),  # 0.8 above, deviation 0.57
        ((71.26, 71.66), True),  # 0.8 above, deviation 0.28
        ((75.0,), None),  # one run has no deviation, however far
        ((75.0, "missing"), None),
        (("missing", "missing"), None),
    ],
)
def test_far_is_beyond_half_a_point_and_two_deviations(runs: tuple, far: bool | None):
    found = entry(*runs, protocol="standard")
    assert found.far is far and found.difference_best is None


@pytest.mark.parametrize(
    ("last", "best", "far"),
    [
        (68.0, 68.3, True),  # below 69.34 by 1.34 and 1.04: far below whichever epoch was meant
        (68.7, 69.0, False),  # 0.64 and 0.34 below: far only if the last epoch was meant
        (69.5, 70.5, False),  # 0.16 and 1.16 above
        (68.7, 69.98, False),  # far below or far above
        (70.0, 70.4, True),
    ],
)
def test_an_unstated_statistic_is_far_only_from_both_of_ours(last: float, best: float, far: bool):
    found = entry(*(result(last, seed, best=best) for seed in range(2)))
    assert found.far is far
    assert (found.difference, found.difference_best) == pytest.approx((last - 69.34, best - 69.34))


def test_another_row_of_the_same_method_has_no_published_number():
    (reference,) = published.references("streamlined")
    assert reference.find(Cell("SKD", "method", "ours", "skd", *A, ())).top1 == 71.34
    assert reference.find(Cell("SKD without Gram term", "method", "ours", "skd", *A, ())) is None
    assert reference.find(Cell("SKD (paper)", "method", "ours", "skd_paper", *A, ())) is None
    assert {name: methods.get(name).label for name in published.LABELS} == dict(published.LABELS)
    named = {name: (row.method, row.label) for name, row in protocols.load("standard").rows.items()}
    assert named == dict(published.ROWS)
    rows = {number.method for number in published.load()} - {"teacher", "student"}
    assert rows == {*published.LABELS, *published.ROWS}


def test_the_longer_table_meets_its_numbers():
    """Typed from the READMEs of RepDistiller, logit standardization, CTKD and SimKD, and the CRD paper."""
    printed = {
        ("at", "AT"): ("RepDistiller README", "vgg13", "vgg8", 71.43),
        ("vid", "VID"): ("RepDistiller README", "wrn_40_2", "wrn_40_1", 73.30),
        ("sp", "SP"): ("RepDistiller README", "resnet50", "mobilenetv2", 68.08),
        ("pkt", "PKT"): ("RepDistiller README", "resnet32x4", "resnet8x4", 73.64),
        ("crd", "CRD+KD"): ("CRD paper", "resnet56", "resnet20", 71.63),
        ("kd", "KD+LS"): ("Logit Standardization README", "resnet32x4", "resnet8x4", 76.62),
        ("dkd", "DKD+LS"): ("Logit Standardization README", "vgg13", "vgg8", 74.81),
        ("ctkd", "CTKD"): ("CTKD README", "resnet56", "resnet20", 71.19),
        ("simkd", "SimKD"): ("SimKD README", "resnet32x4", "resnet8x4", 78.08),
        ("cat_kd", "CAT-KD"): ("Logit Standardization paper", "resnet110", "resnet32", 73.62),
    }
    for (method, label), (source, *pair, top1) in printed.items():
        cell = Cell(label, "method", "logit", method, *pair, ())
        found = {ref.source: ref.find(cell).top1 for ref in published.references("standard") if ref.find(cell)}
        assert found[source] == top1, label
    shown = [ref for ref in published.all_references() if ref.protocol == "standard-480"]
    cell = Cell("MLKD+LS", "method", "logit", "mlkd", "resnet110", "resnet32", ())
    assert {ref.find(cell).top1 for ref in shown if ref.find(cell)} >= {74.32}
    assert all(ref.find(Cell("KD, standardize true", "method", "logit", "kd", *A, ())) is None for ref in shown)


def test_other_protocols_are_shown_and_never_subtracted():
    grid = Grid("streamlined", (A,))
    grid.add("DKD", "logit", A, 71.0, 71.2)
    results = collect(grid.spec, grid.runs)
    sources = {reference.source: numbers[0].top1 for reference, numbers in shown_only(results)}
    assert sources == {"StreamLined README, Nov 2025 (CVPR 2026)": 71.17, "mdistiller README": 71.97}
    assert all(c.reference.protocol == "streamlined" for c in compare(results))
    table = published_tables.shown_table(results, shown_only(results))
    entries = {heading: lines[0].entries for heading, lines in table.sections}
    assert entries == {
        "StreamLined README, Nov 2025 (CVPR 2026): streamlined-revised, statistic not stated": (
            Text("71.17", ("1", "‡")),
        ),
        "mdistiller README: standard, best epoch": (Text("71.97", ("2",)),),
    }
    assert [note.body for note in table.notes if note.mark.isdigit()] == [
        "protocol streamlined-revised, statistic not stated, number of runs not stated",
        "protocol standard, best epoch, 5 runs",
    ]
    assert "nothing is subtracted" in table.caption


def test_what_the_marks_of_a_comparison_stand_on():
    grid = Grid("streamlined", (A, B))
    grid.add("KD", "logit", A, result(71.0, best=71.2), result(71.2, 1, best=71.4))  # 69.34: + 1.76
    grid.add("KD", "logit", B, 75.05)  # 75.25: - 0.20
    grid.add("SKD", "ours", A, "missing")
    results = collect(grid.spec, grid.runs)
    (comparison,) = compare(results)
    table = published_tables.published_table(results, comparison, 1)
    ((_, (kd, skd)),) = table.sections
    bodies = [entry.body for entry in kd.entries]
    assert bodies == ["69.34", "71.10", "+1.76", "75.25", "75.05", "−0.20"]
    assert [entry.marks for entry in kd.entries] == [("‡",), (), ("◊",), ("‡",), (), ()]
    assert [entry.body for entry in skd.entries] == ["71.34", "—", "—", "", "", ""]
    notes = [note.body for note in table.notes]
    assert any("1 of 1 cell with a deviation" in note for note in notes)
    assert "One finished run has no deviation, so 1 difference could not be judged." in notes
    assert "Over 2 cells: mean difference +0.78, mean absolute difference 0.98." in notes
    # Best minus last is .2 on A and .25 on B.
    assert any("beside the best epoch the differences would be +0.23" in note.lower() for note in notes)


def test_no_comparison_under_a_protocol_without_numbers():
    grid = Grid("sprint")
    grid.add("KD", "logit", A, 71.0)
    assert compare(collect(grid.spec, grid.runs)) == []
