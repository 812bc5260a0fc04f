from __future__ import annotations

import pytest

from bench import published
from bench.cells import Cell
from bench.comparison import compare
from bench.frames import collect
from tests.bench.report_cases import A, B, Grid, result


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
    assert len(set(keys)) == len(keys) == 223
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


def test_nothing_is_subtracted_without_a_run_or_on_other_data():
    grid = Grid()
    grid.add("KD", "logit", A, "missing")
    grid.add("KD", "logit", B, result(72.0, dataset="embedded-1"))
    (comparison,) = compare(collect(grid.spec, grid.runs))
    assert list(comparison.entries) == [0] and comparison.entries[0].difference is None
    assert comparison.other_data == 1


def test_no_comparison_under_a_protocol_without_numbers():
    grid = Grid("sprint")
    grid.add("KD", "logit", A, 71.0)
    assert compare(collect(grid.spec, grid.runs)) == []
