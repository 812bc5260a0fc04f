from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

import methods
from bench import grid, protocol
from bench.report import claims as claimcheck
from bench.report import published
from bench.report.claims import Verdict, check, notes
from bench.report.frames import collect
from jobs import plan
from tests.bench.report.report_cases import A, B, Grid, result
from zoo.errors import BadInput

NAMES = ("-".join(A), "-".join(B))
STANDARD = {"id": "c", "text": "KD is above RKD", "source": "a table", "protocol": "streamlined", "kind": "each"}
STANDARD |= {"rows": ["KD"], "over": ["RKD"], "pairs": "all", "printed_in": []}


@pytest.fixture
def claims(tmp_path: Path):
    """Writes a claims file over pairs A and B with one claim per mapping of changes; returns its path."""

    def write(*changes: dict, **top: object) -> Path:
        path = tmp_path / "claims.yaml"
        made = [{**STANDARD, "id": f"c{i}", **change} for i, change in enumerate(changes)]
        path.write_text(yaml.safe_dump({"pairs": list(NAMES), "groups": {}, "claims": made, **top}))
        claimcheck.load.cache_clear()
        return path

    yield write
    claimcheck.load.cache_clear()


def both(protocol: str = "streamlined", **rows: tuple | list) -> Grid:
    """Rows with the same runs on both pairs, or a list of the runs on each."""
    made = Grid(protocol)
    for label, states in rows.items():
        for i, pair in enumerate((A, B)):
            kind = {"Teacher": "teacher", "Student": "student"}.get(label, "logit")
            made.add(label, kind, pair, *(states[i] if isinstance(states, list) else states))
    return made


def verdicts(made: Grid, path: Path) -> list[Verdict]:
    return check(collect(made.spec, made.runs), path)


def the_only(made: Grid, path: Path) -> Verdict:
    (verdict,) = verdicts(made, path)
    return verdict


KD, RKD = (71.4, 71.5, 71.6), (70.4, 70.6, 70.5)  # differences 1.0, 0.9, 1.1: 1.00 ± 4.3027 * 0.1 / sqrt(3) = 0.248
MIXED_UP = (71.9, 71.2, 71.4)  # KD minus these: -0.5, 0.3, 0.2: 0.00 ± 1.08


# ---- one row over one other


def test_confirmed_where_every_interval_is_on_the_claimed_side(claims):
    verdict = the_only(both(KD=KD, RKD=RKD), claims({}))
    assert (verdict.verdict, verdict.why) == ("confirmed", "Of 2 pairs: confirmed on 2.")
    assert verdict.evidence == [
        f"{name}: KD 71.50 ± 0.10, RKD 70.50 ± 0.10, difference +1.00, 95 % interval [+0.75, +1.25], 3 seeds, "
        "2 degrees of freedom"
        for name in NAMES
    ]


def test_refuted_by_one_pair(claims):
    verdict = the_only(both(KD=[KD, RKD], RKD=[RKD, KD]), claims({}))
    assert (verdict.verdict, verdict.why) == ("refuted", "Of 2 pairs: confirmed on 1, refuted on 1.")
    # Either pair could have refuted it: t(2) at 1 - 0.05 / 4 is 6.205, and 6.205 * 0.1 / sqrt(3) = 0.358.
    assert verdict.evidence[1] == (
        "wrn_40_2-wrn_16_2: KD 70.50 ± 0.10, RKD 71.50 ± 0.10, difference −1.00, 95 % interval of 2 at once "
        "[−1.36, −0.64], 3 seeds, 2 degrees of freedom"
    )


def test_undecided_where_an_interval_holds_0(claims):
    verdict = the_only(both(KD=KD, RKD=[RKD, MIXED_UP]), claims({}))
    assert (verdict.verdict, verdict.why) == ("undecided", "Of 2 pairs: confirmed on 1, not separated on 1.")
    assert "difference 0.00, 95 % interval [−1.08, +1.08]" in verdict.evidence[1]


def test_identical_runs_decide_nothing(claims):
    verdict = the_only(both(KD=KD, RKD=KD), claims({}))
    assert verdict.why == "Of 2 pairs: not separated on 2."
    assert "difference 0.00, 95 % interval [0.00, 0.00]" in verdict.evidence[0]


def test_one_seed_decides_nothing_however_far_apart(claims):
    verdict = the_only(both(KD=(90.0,), RKD=(10.0,)), claims({}))
    assert (verdict.verdict, verdict.why) == ("undecided", "Of 2 pairs: one seed on 2.")
    assert verdict.evidence[0].endswith("KD 90.00, RKD 10.00, difference +80.00, one seed, no interval")


def test_unfinished_cells_are_named_and_not_compared(claims):
    verdict = the_only(both(KD=[KD, (71.4, 71.5, "failed: x")], RKD=RKD), claims({}))
    assert (verdict.verdict, verdict.why) == ("undecided", "Of 2 pairs: confirmed on 1, runs missing on 1.")
    assert verdict.evidence[1] == "wrn_40_2-wrn_16_2: runs missing: KD 2/3"


def test_an_empty_grid_is_undecided(claims):
    verdict = the_only(both(KD=("missing",) * 3, RKD=("missing",) * 3), claims({}))
    assert verdict.why == "Of 2 pairs: runs missing on 2."
    assert verdict.evidence[0] == "resnet56-resnet20: runs missing: KD 0/3, RKD 0/3"


def test_rows_without_common_seeds_are_undecided(claims):
    others = tuple(result(value, seed) for seed, value in enumerate(RKD, start=5))
    assert the_only(both(KD=KD, RKD=others), claims({})).why == "Of 2 pairs: no common seeds on 2."


def test_a_pair_that_is_not_in_the_grid_keeps_a_claim_open(claims):
    made = Grid(pairs=(A,))
    made.add("KD", "logit", A, *KD)
    made.add("RKD", "feature", A, *RKD)
    verdict = the_only(made, claims({}))
    assert (verdict.verdict, verdict.why) == ("undecided", "Of 2 pairs: confirmed on 1, not in this grid 1.")
    assert the_only(made, claims({"pairs": [NAMES[0]]})).verdict == "confirmed"


def test_a_refutation_by_any_of_several_comparisons_takes_more(claims):
    # Mean 0.5, standard error 0.1: t = 5, p = 1 - 5 / sqrt(27) = 0.038 for two degrees of freedom.
    ahead, behind = (71.6, 71.7, 71.8), (71.0, 71.4, 71.2)
    path = claims({}, {"pairs": [NAMES[0]]})
    two_pairs, one_pair = verdicts(both(KD=[behind, KD], RKD=[ahead, RKD]), path)
    assert one_pair.verdict == "refuted" and two_pairs.verdict == "undecided"
    assert two_pairs.why == "Of 2 pairs: confirmed on 1, not separated on 1."
    assert two_pairs.evidence[0].endswith(
        "[−0.93, −0.07], 3 seeds, 2 degrees of freedom; to refute takes level 1 − 0.05/2"
    )
    # To confirm takes every comparison, so the same interval is enough on both pairs.
    assert the_only(both(KD=ahead, RKD=behind), claims({})).verdict == "confirmed"


def test_a_teacher_is_a_constant_and_a_student_row_is_paired(claims):
    path = claims({"over": ["Teacher"]}, {"over": ["Student"]})
    above_teacher, above_student = verdicts(both(KD=KD, Teacher=(70.5,), Student=RKD), path)
    assert above_teacher.verdict == above_student.verdict == "confirmed"
    # Both rows have variance 0.01 over seeds: 1 ± 0.1 / sqrt(3) * t. Of the sum of squares 0.04, the seeds have 0.03
    # with two degrees of freedom and the error 0.01 with two: 0.04^2 / (0.03^2 / 2 + 0.01^2 / 2) = 3.2; t is 3.07.
    assert above_teacher.evidence[0].endswith(
        "Teacher 70.50, difference +1.00, 95 % interval [+0.82, +1.18], 3 seeds against one teacher run, "
        "3.2 degrees of freedom"
    )
    assert the_only(both(KD=KD, Teacher=("failed: x",)), claims({"over": ["Teacher"]})).verdict == "undecided"


# ---- many rows


def test_each_row_must_beat_each_other_row(claims):
    path = claims({"over": ["RKD", "CRD", "OFD"]})
    far, near = (60.0, 60.2, 60.4), (71.3, 71.6, 71.4)
    good = the_only(both(KD=KD, RKD=RKD, CRD=far, OFD=far), path)
    assert good.verdict == "confirmed" and "KD 71.50 ± 0.10, best other RKD 70.50 ± 0.10" in good.evidence[0]
    open_ = the_only(both(KD=KD, RKD=RKD, CRD=near, OFD=far), path)
    assert open_.verdict == "undecided" and "best other CRD 71.43 ± 0.15" in open_.evidence[0]
    assert open_.evidence[0].endswith("; 2 of 3 comparisons as claimed")
    bad = the_only(both(KD=KD, RKD=far, CRD=far, OFD=(79.5, 79.4, 79.6)), path)
    assert bad.verdict == "refuted" and "best other OFD 79.50" in bad.evidence[0]
    assert bad.evidence[0].endswith("; 1 of 3 comparisons the other way")


def test_a_refutation_does_not_wait_for_missing_runs(claims):
    made = both(KD=KD, RKD=(79.5, 79.4, 79.6), CRD=("missing",) * 3)
    assert the_only(made, claims({"over": ["RKD", "CRD"]})).verdict == "refuted"
    made = both(KD=KD, RKD=RKD, CRD=("missing",) * 3)
    verdict = the_only(made, claims({"over": ["RKD", "CRD"]}))
    assert verdict.verdict == "undecided"
    assert verdict.evidence[0].startswith("resnet56-resnet20: runs missing: CRD 0/3; KD 71.50 ± 0.10, best other RKD")


def test_the_lowest_of_many_rows_is_shown(claims):
    verdict = the_only(
        both(KD=KD, RKD=RKD, Student=(66.0, 66.1, 66.2)), claims({"rows": ["KD", "RKD"], "over": ["Student"]})
    )
    assert verdict.verdict == "confirmed" and "lowest RKD 70.50 ± 0.10, Student 66.10 ± 0.10" in verdict.evidence[0]


# ---- the best of one group over the best of another


def grouped(claims, **top: object) -> Path:
    groups = {"logit": ["KD", "DKD"], "feature": ["RKD", "CRD"]}
    return claims({"kind": "best", "rows": ["logit"], "over": ["feature"]}, groups=groups)


LOW, HIGH = (60.0, 60.2, 60.4), (79.5, 79.4, 79.6)


def test_best_of_groups(claims):
    path = grouped(claims)
    good = the_only(both(KD=LOW, DKD=HIGH, RKD=KD, CRD=LOW), path)
    assert good.verdict == "confirmed" and "best DKD 79.50 ± 0.10, best other RKD 71.50 ± 0.10" in good.evidence[0]
    bad = the_only(both(KD=LOW, DKD=KD, RKD=LOW, CRD=HIGH), path)
    assert bad.verdict == "refuted" and "best DKD 71.50 ± 0.10, best other CRD 79.50 ± 0.10" in bad.evidence[0]
    assert the_only(both(KD=LOW, DKD=KD, RKD=LOW, CRD=MIXED_UP), path).verdict == "undecided"


def test_the_choice_of_a_best_row_takes_more(claims):
    # p = 0.026 with the error of all four rows: enough for one row, not for the better of two.
    ahead, behind = (71.6, 71.7, 71.8), (71.1, 71.5, 71.3)
    made = both(KD=LOW, DKD=ahead, RKD=behind, CRD=LOW)
    verdict = the_only(made, grouped(claims))
    assert verdict.verdict == "undecided"
    assert "95 % interval of 2 at once [−0.0" in verdict.evidence[0]
    assert verdict.evidence[0].endswith("; 1 of 2 comparisons as claimed")
    path = claims({"kind": "best", "rows": ["DKD"], "over": ["RKD"]})
    assert the_only(made, path).verdict == "confirmed"
    # The other side's best row is a choice as well where it refutes; here p = 0.038.
    against = both(DKD=behind, RKD=ahead, CRD=LOW)
    for over, verdict in ((["RKD", "CRD"], "undecided"), (["RKD"], "refuted")):
        path = claims({"kind": "best", "rows": ["DKD"], "over": over, "pairs": [NAMES[0]]})
        assert the_only(against, path).verdict == verdict


def test_a_missing_row_of_the_other_group_might_be_its_best(claims):
    missing = ("missing",) * 3
    assert the_only(both(KD=LOW, DKD=HIGH, RKD=KD, CRD=missing), grouped(claims)).verdict == "undecided"
    assert the_only(both(KD=missing, DKD=HIGH, RKD=KD, CRD=LOW), grouped(claims)).verdict == "confirmed"
    assert the_only(both(KD=missing, DKD=LOW, RKD=KD, CRD=HIGH), grouped(claims)).verdict == "undecided"
    assert the_only(both(KD=LOW, DKD=LOW, RKD=missing, CRD=HIGH), grouped(claims)).verdict == "refuted"
    assert the_only(both(KD=missing, DKD=missing, RKD=missing, CRD=missing), grouped(claims)).verdict == "undecided"


# ---- which claims are listed, and what is said of them


def test_another_protocol_is_said_and_comes_last(claims):
    path = claims({"protocol": "standard"}, {"protocol": "streamlined"})
    own, other = verdicts(both(KD=KD, RKD=RKD), path)
    assert own.id == "c1" and own.why == "Of 2 pairs: confirmed on 2."
    assert other.id == "c0" and other.verdict == "confirmed"
    assert other.why == "Under protocol streamlined, where the claim's is standard. Of 2 pairs: confirmed on 2."


def test_claims_out_of_reach_are_counted_and_not_listed(claims):
    made = both(KD=KD, RKD=RKD)
    made.add("CRD", "feature", ("vgg13", "vgg8"), *RKD)
    results = collect(made.spec, made.runs)
    path = claims({}, {"over": ["OFD"]}, {"rows": ["SKD"]}, {"over": ["CRD"]})
    assert [verdict.id for verdict in check(results, path)] == ["c0"]
    rule, counted = notes(results, path)
    assert rule == claimcheck.RULE
    assert counted == (
        "Claims not checked here: 2 because the grid does not have their rows; "
        "1 because the grid does not have their pairs."
    )
    assert notes(results, claims({})) == [claimcheck.RULE]


def test_one_seed_is_no_count_of_comparisons(claims):
    """Where a row is missing, too, a single seed has not failed to come out as claimed."""
    made = both(KD=(71.0,), RKD=(70.0,), CRD=(70.1,), OFD=("missing",))
    verdict = the_only(made, claims({"over": ["RKD", "CRD", "OFD"]}))
    assert verdict.verdict == "undecided" and "runs missing: OFD 0/1" in verdict.evidence[0]
    assert "one seed, no interval" in verdict.evidence[0] and "as claimed" not in verdict.evidence[0]


def test_runs_on_other_data_say_nothing_about_a_claim(claims):
    path = claims({})
    other = tuple(result(value, seed, dataset="embedded-1") for seed, value in enumerate(KD))
    made = both(KD=other, RKD=other)
    results = collect(made.spec, made.runs)
    assert check(results, path) == []
    assert notes(results, path) == ["Claims not checked here: 1 because these runs did not use CIFAR-100 as published."]


def test_cells_that_mix_devices_are_counted(claims):
    mixed = (*KD[:2], result(KD[2], 2, device="cpu"))
    verdict = the_only(both(KD=mixed, RKD=RKD), claims({}))
    assert verdict.why == "Of 2 pairs: confirmed on 2. Cells among them whose runs are not alike (§): 2."


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"kind": "beats"}, "kind"),
        ({"rows": []}, "compares nothing"),
        ({"over": ["KD"]}, "names a row twice: KD"),
        ({"pairs": ["resnet56-resnet8"]}, "names a pair that the file does not have: resnet56-resnet8"),
        ({"pairs": [NAMES[0], NAMES[0]]}, "names a pair twice: resnet56-resnet20"),
        ({"row": "KD"}, "row"),
        ({"rows": "KD"}, "rows"),
        ({"id": "same"}, 'the id "same" is given twice'),
    ],
)
def test_a_wrong_file_gets_one_line(change: dict, fault: str, claims):
    path = claims(change, *([change] if "id" in change else []))
    with pytest.raises(BadInput) as caught:
        claimcheck.load(path)
    assert fault in str(caught.value) and "claims.yaml" in str(caught.value) and "\n" not in str(caught.value)


# ---- the claims that come with the project

QUESTIONS = {question.claim.id: question for question in claimcheck.load()}


def test_rows_pairs_protocols_and_sources_exist():
    full, ablation = (grid.expand(grid.load(name)) for name in ("full", "skd-ablation"))
    labels = {cell.label for cell in full.cells} | {cell.label for cell in ablation.cells}
    assert {pair for question in QUESTIONS.values() for pair in question.pairs} == set(full.pairs)
    for question in QUESTIONS.values():
        assert {*question.rows, *question.over} <= labels
        assert question.claim.protocol in protocol.names()
        assert set(question.claim.printed_in) <= {number.source for number in published.load()}
        assert {n.protocol for n in published.load() if n.source in question.claim.printed_in} <= {
            question.claim.protocol
        }


def test_published_names_are_labels_in_lower_case():
    known = {methods.get(name).label.lower() for name in methods.names()} | {"teacher", "student"}
    assert {number.method for number in published.load()} <= known
    assert all(
        methods.get(name).label.lower() == name for name in methods.names() if name not in ("vanilla", "skd_paper")
    )


def test_every_claim_can_be_listed_somewhere():
    full, ablation = (plan.outline(grid.expand(grid.load(name))) for name in ("full", "skd-ablation"))
    listed = [verdict.id for table in (full, ablation) for verdict in check(collect(table, {}))]
    assert sorted(listed) == sorted(QUESTIONS)
    assert all(verdict.verdict == "undecided" for verdict in check(collect(full, {})))


# What each source's own numbers say, counted by hand in the tables of published.csv.
PRINTED = {
    "skd-best": "holds on 6 of 6 pairs",
    "skd-above-teacher": "holds on 5 of 5 pairs",
    "skd-over-mlkd": "holds on 6 of 6 pairs",
    "mlkd-over-dkd": "holds on 6 of 6 pairs",
    "mlkd-best-logit": "holds on 5 of 5 pairs",
    "logit-over-feature": "holds on 4 of 4 pairs",
    "feature-over-logit": "holds on 2 of 2 pairs",
    "distilled-over-student": "holds on 6 of 6 pairs",
    "clkd-over-student": "holds on 4 of 4 pairs",
    "student-over-clkd": "holds on 2 of 2 pairs",
    # The revised table contradicts its abstract.
    "skd-over-logit-revised": "holds on 5 of 6 pairs, not on wrn_40_2-wrn_16_2 (SKD 76.60, MLKD 76.83)",
    "skd-over-feature-revised": "holds on 6 of 6 pairs",
    "skd-above-teacher-revised": "holds on 5 of 5 pairs",
    "logit-over-feature-revised": "holds on 6 of 6 pairs",
    "skd-gram-term": "no numbers printed",
    "skd-whitening": "no numbers printed",
    "crd-over-kd": "holds on 6 of 6 pairs",
    "dkd-over-kd": "holds on 6 of 6 pairs",
    "reviewkd-best-feature": "holds on 6 of 6 pairs",
    "dkd-over-reviewkd": "holds on 4 of 4 pairs",
}


def test_what_the_sources_own_numbers_say():
    assert {name: claimcheck.printed(question) for name, question in QUESTIONS.items()} == PRINTED


def test_claims_name_all_the_pairs_on_which_the_target_table_shows_them():
    table = {n.key: n.top1 for n in published.load() if n.source == "StreamLined README, May 2025"}
    pairs = list(dict.fromkeys(key[:2] for key in table))
    feature, logit = ("fitnet", "rkd", "crd", "ofd", "reviewkd"), ("kd", "clkd", "dkd", "mlkd", "sdd")

    def where(shown) -> set[tuple[str, str]]:
        return {pair for pair in pairs if shown(lambda name, pair=pair: table[(*pair, name)])}

    assert set(QUESTIONS["skd-above-teacher"].pairs) == where(lambda top1: top1("skd") > top1("teacher"))
    assert set(QUESTIONS["clkd-over-student"].pairs) == where(lambda top1: top1("clkd") > top1("student"))
    assert set(QUESTIONS["student-over-clkd"].pairs) == where(lambda top1: top1("clkd") < top1("student"))
    assert set(QUESTIONS["mlkd-best-logit"].pairs) == where(lambda top1: max(logit, key=top1) == "mlkd")
    for name, a, b in (("logit-over-feature", logit, feature), ("feature-over-logit", feature, logit)):
        assert set(QUESTIONS[name].pairs) == where(lambda top1, a=a, b=b: max(map(top1, a)) > max(map(top1, b)))


def test_runs_exactly_as_printed_confirm_the_target_tables_claims():
    """Every seed at the printed value: no spread, so each claim of that table must come out as it prints it."""
    table = {n.key: n.top1 for n in published.load() if n.source == "StreamLined README, May 2025"}
    full = grid.expand(grid.load("full"))
    made = Grid(pairs=full.pairs)
    for cell in full.cells:
        row = cell.role if cell.role != "method" else cell.method
        if top1 := table.get((cell.teacher, cell.student, row)):
            kind = cell.group if cell.role == "method" else cell.role
            made.add(cell.label, kind, (cell.teacher, cell.student), *[top1] * (1 if row == "teacher" else 3))
    found = {verdict.id: verdict.verdict for verdict in check(collect(made.spec, made.runs))}
    own = {name for name, question in QUESTIONS.items() if question.claim.protocol == "streamlined"}
    assert {found[name] for name in own} == {"confirmed"} and len(own) == 10
    assert found["dkd-over-kd"] == found["reviewkd-best-feature"] == found["crd-over-kd"] == "refuted"


def drawn(skd: float) -> dict[str, str]:
    """Verdicts on the full grid with three seeds, drawn around the printed values; SKD so far above the best other."""
    table = {n.key: n.top1 for n in published.load() if n.source == "StreamLined README, May 2025"}
    full, draw = grid.expand(grid.load("full")), np.random.default_rng(0)
    made, seeds = Grid(pairs=full.pairs), {pair: draw.normal(0, 0.15, size=3) for pair in full.pairs}
    best = {
        pair: max(top1 for key, top1 in table.items() if key[:2] == pair and key[2] != "skd") for pair in full.pairs
    }
    for cell in full.cells:
        pair, row = (cell.teacher, cell.student), cell.role if cell.role != "method" else cell.method
        if top1 := best[pair] + skd if row == "skd" else table.get((*pair, row)):
            values = top1 + seeds[pair] + draw.normal(0, 0.22, size=3)
            kind = cell.group if cell.role == "method" else cell.role
            made.add(cell.label, kind, pair, *([top1] if row == "teacher" else values.round(2).tolist()))
    return {verdict.id: verdict.verdict for verdict in check(collect(made.spec, made.runs))}


def test_three_seeds_decide_what_differs_enough():
    """Others lead SKD by 1.5 points everywhere; SKD leads everywhere; and what the printed values differ by beside."""
    behind, ahead = drawn(-1.5), drawn(1.5)
    assert (behind["skd-best"], ahead["skd-best"]) == ("refuted", "confirmed")
    assert (behind["skd-over-mlkd"], ahead["skd-over-mlkd"]) == ("refuted", "confirmed")
    for found in (behind, ahead):
        assert found["distilled-over-student"] == found["clkd-over-student"] == "confirmed"  # by 0.8 points and more
        assert found["crd-over-kd"] == found["reviewkd-best-feature"] == "refuted"  # by up to 2.7 and 2.2
        assert found["student-over-clkd"] == "undecided"  # by 0.05 on one pair
