"""The time left, against what can be counted by hand: made-up grids in which a unit of work takes a second."""

from __future__ import annotations

import pytest

from bench.cells import Cell
from jobs.remaining import AHEAD_S, Left, Work, carried_on, companies
from jobs.states import Outline, Wanted

METHODS = ("kd", "dkd", "fitnet", "skd")
PLACE = {"device": "CPU-X", "threads": 1}


def outline(pairs: int = 1, seeds: int = 1, *, teacher: float = 60.0, own: float = 10.0, shared: float = 0.0):
    """Teachers t0, t1, ... of `teacher` FLOP with four students each, of `own` and the teacher's pass."""
    runs, cells = {}, []
    for pair in range(pairs):
        names = [f"t{pair}-s{seed}" for seed in range(seeds)]
        runs |= {name: Wanted(seed, None, teacher) for seed, name in enumerate(names)}
        cells.append(Cell("Teacher", "teacher", "", "vanilla", f"t{pair}", "student", tuple(names)))
        for method in METHODS:
            students = [f"{method}-{name}" for name in names]
            for seed, name in enumerate(students):
                runs[name] = Wanted(seed, names[seed], own + shared, shared)
            cells.append(Cell(method, "method", "logit", method, f"t{pair}", "student", tuple(students)))
    pairs_ = tuple((f"t{pair}", "student") for pair in range(pairs))
    return Outline("made up", "p", 1, pairs_, tuple(cells), runs)


def moving(left_s: float, whole_s: float, **more):
    """What a claim says of a run that is under way."""
    done = 1 - left_s / whole_s
    return {"epochs": 10, "epoch": 0, "step": 100 * done, "steps": 10, "left_s": left_s, "whole_s": whole_s, **more}


def result(train_s: float, together: float = 1.0, device: str = "CPU-X", threads: int | None = 1):
    return {
        "timing": {"train_s": train_s, "together": together},
        "provenance": {"device": device, "threads": threads},
    }


def students(*, of: str = "t0-s0") -> list[str]:
    return [f"{method}-{of}" for method in METHODS]


def test_nothing_is_said_before_anything_is_measured():
    made = outline()
    assert Work(made, [*made.runs], [], {}, {}, workers=2).left() is None
    assert Work(made, students(), [["t0-s0"]], {"t0-s0": PLACE}, {}, workers=2).left() is None
    # Nor without a process, nor where plan.json does not say what runs cost.
    assert Work(made, students(), [], {}, {"t0-s0": result(60.0)}).left() is None
    unknown = Outline("", "", 1, (), made.cells, {run_id: Wanted(0, None, None) for run_id in made.runs})
    assert Work(unknown, ["t0-s0"], [], {}, {"t0-s0": result(60.0)}, workers=1).left() is None


def test_a_teacher_alone_says_how_long_it_takes_at_least():
    """Half done at a second a FLOP, then 4 students of 10: in two halves side by side."""
    work = Work(outline(), students(), [["t0-s0"]], {"t0-s0": moving(30.0, 60.0)}, {}, workers=2)
    assert work.left() == Left(pytest.approx(30.0 + 20.0), at_least=True)
    alone = Work(outline(), students(), [["t0-s0"]], {"t0-s0": moving(30.0, 60.0)}, {}, workers=1)
    assert alone.left() == Left(pytest.approx(30.0 + 40.0), at_least=True)


def test_students_under_way_count_for_what_they_have_left():
    """All four share a process: each says how long all of them take."""
    seen = {run_id: moving(15.0, 40.0, **PLACE) for run_id in students()}
    made = Work(outline(), [], [students()], seen, {"t0-s0": result(60.0)}, workers=2)
    assert made.left() == Left(pytest.approx(15.0)) and made.left_of(students()) == pytest.approx(15.0)


def test_members_ahead_wait_and_then_take_part():
    """Two are at the half and move at 20 s for both; the others stand at the same point, as their claims say."""
    seen = {run_id: moving(10.0, 20.0) for run_id in students()[:2]}
    seen |= {run_id: {"epochs": 10, "epoch": 5} for run_id in students()[2:]}
    assert Work(outline(), [], [students()], seen, {}).left().seconds == pytest.approx(20.0)


def test_the_rest_goes_by_the_speed_of_students_and_not_of_teachers():
    """A second pair, whose students are as slow for their FLOP as the first one's: 8 s each in place of 10."""
    made = outline(pairs=2)
    seen = {run_id: moving(16.0, 32.0) for run_id in students()}
    results = {"t0-s0": result(60.0), "t1-s0": result(60.0)}
    work = Work(made, students(of="t1-s0"), [students()], seen, results, workers=1)
    assert work.left() == Left(pytest.approx(16.0 + 32.0))
    # Once one of its own is through, that counts: 4 s for 10 FLOP.
    first, *others = students(of="t1-s0")
    work = Work(made, others, [students()], seen, {**results, first: result(16.0, together=4.0)}, workers=1)
    assert work.left() == Left(pytest.approx(16.0 + 3 * 4.0))


def test_the_teachers_pass_is_done_once_for_all_that_share_it():
    """Own 10, shared 8: four together take 48, one alone 18."""
    made = outline(shared=8.0)
    results = {"t0-s0": result(60.0), "kd-t0-s0": result(18.0)}
    rest = students()[1:]
    assert Work(made, rest, [], {}, results, workers=1).left().seconds == pytest.approx(30.0 + 8.0)
    # In pieces for two processes each has a teacher's pass; where runs are not to share, each of them has.
    assert Work(made, rest, [], {}, results, workers=2).left().seconds == pytest.approx(20.0 + 8.0)
    busy = {"kd-t0-s0": moving(9.0, 18.0, slots=1, together=1)}
    alone = Work(made, rest, [["kd-t0-s0"]], busy, {"t0-s0": result(60.0)})
    assert alone.left().seconds == pytest.approx(9.0 + 3 * 18.0)


def test_slots_that_claims_speak_of_count_where_nobody_else_knows_them():
    made = outline(pairs=2)
    seen = {"t0-s0": moving(30.0, 60.0, slots=2)}
    assert Work(made, ["t1-s0"], [["t0-s0"]], seen, {}).left().seconds == pytest.approx(60.0)
    assert Work(made, ["t1-s0"], [["t0-s0"]], {"t0-s0": moving(30.0, 60.0)}, {}).left().seconds == pytest.approx(90.0)


def test_finished_runs_of_another_kind_of_machine_tell_nothing_of_this_one():
    made = outline()
    elsewhere = {"t0-s0": result(60.0), "kd-t0-s0": result(999.0, device="GPU-Z", threads=None)}
    seen = {"dkd-t0-s0": moving(5.0, 10.0, **PLACE)}
    work = Work(made, ["fitnet-t0-s0", "skd-t0-s0"], [["dkd-t0-s0"]], seen, elsewhere, workers=1)
    assert work.left() == Left(pytest.approx(5.0 + 20.0))


def test_what_is_interrupted_goes_on_from_where_it_was():
    made, results = outline(), {"t0-s0": result(60.0), "kd-t0-s0": result(10.0)}
    seen = {"dkd-t0-s0": {"epochs": 10, "epoch": 9}}
    assert Work(made, ["dkd-t0-s0"], [], seen, results, workers=1).left().seconds == pytest.approx(1.0)


def test_students_of_a_run_that_nobody_does_hold_nothing_up():
    """It can be in no process and not be pending: another selection has it."""
    made = outline(pairs=2)
    work = Work(made, ["kd-t0-s0"], [], {}, {"dkd-t1-s0": result(10.0)}, workers=1)
    assert work.left() == Left(pytest.approx(10.0))


def test_many_runs_are_reckoned_at_once():
    """Ten thousand: as many turns as there are cohorts, not as there are pairs of them."""
    made = outline(pairs=100, seeds=20)
    work = Work(made, [*made.runs], [], {}, {"t0-s0": result(60.0), "kd-t0-s0": result(10.0)}, workers=8)
    assert len(made.runs) == 10_000
    assert work.left().seconds == pytest.approx(2000 * (60 + 40) / 8, rel=0.01)


def test_a_claim_is_carried_on_at_its_speed():
    said = {**moving(50.0, 100.0), "said_at": 1000.0}
    assert said["epoch"] == 0 and said["step"] == 50.0  # 5 of 10 epochs of 10 steps
    now = carried_on(said, 1010.0)
    assert (now["epoch"], now["left_s"]) == (6, 40.0) and now["step"] == pytest.approx(0.0, abs=1e-6)
    assert carried_on(said, 990.0)["left_s"] == 50.0  # another host's clock
    assert carried_on(said, 9999.0)["left_s"] == 50.0 - AHEAD_S
    assert carried_on({"epoch": 1}, 9999.0) == {"epoch": 1}


def test_runs_by_their_process():
    class Holder:
        def __init__(self, pid, host="here"):
            self.pid, self.host = pid, host

    held = {"a": Holder(1), "b": Holder(2), "c": Holder(1), "d": Holder(1, "there")}
    assert companies(held) == [["a", "c"], ["b"], ["d"]]
