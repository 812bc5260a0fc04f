"""Which runs may share their batches, and how cohorts are split."""

from __future__ import annotations

from bench import cohorts, protocol
from bench.run import Teacher


def run(method: str, seed: int = 0, teacher: str = "a", recipe: str = "standard", **train):
    known = None if method == "vanilla" else Teacher(arch="resnet56", run_id=teacher)
    made = protocol.resolve(protocol.load(recipe), method, "resnet20", seed, teacher=known)
    return made.model_copy(update={"train": made.train.model_copy(update=train)}) if train else made


def named(**runs):
    return cohorts.group(runs)


def test_all_methods_of_a_pair_and_seed_share():
    """MLKD's second view, OFD's teacher in train mode and the Student row's want of one are their own affair."""
    runs = {name: run(name) for name in ("vanilla", "fitnet", "ofd", "kd", "mlkd", "skd")}
    assert cohorts.group(runs) == [list(runs)]


def test_what_must_be_equal():
    first = run("kd")
    for other in (run("dkd", seed=1), run("dkd", teacher="b"), run("dkd", batch=32), run("dkd", recipe="quick")):
        assert named(first=first, other=other) == [["first"], ["other"]]
    assert named(first=first, other=first.model_copy(update={"precision": "bf16"})) == [["first"], ["other"]]
    assert named(first=first, other=run("dkd", epochs=3, milestones=())) == [["first", "other"]]


def test_mixed_copies_share_with_their_like_only():
    streamlined = {name: run(name, recipe="streamlined") for name in ("kd", "skd", "vanilla")}
    views = {name: made.data.views for name, made in streamlined.items()}
    assert views["kd"] == "weak+strong"
    assert cohorts.group(streamlined)[0][:2] == ["kd", "skd"]


def test_two_kinds_of_second_view_stand_apart():
    one = run("mlkd")
    strong = one.data.strong.model_copy(update={"ops": 5})
    other = one.model_copy(update={"data": one.data.model_copy(update={"strong": strong})})
    assert named(one=one, other=other, kd=run("kd")) == [["one", "kd"], ["other"]]


def test_a_student_row_joins_one_teacher_not_two():
    assert named(v=run("vanilla"), a=run("kd"), b=run("kd", teacher="b")) == [["v", "a"], ["b"]]


def test_teachers_stand_alone():
    runs = {"t": run("vanilla"), "kd": run("kd"), "dkd": run("dkd")}
    assert cohorts.group(runs, alone={"t"}) == [["t"], ["kd", "dkd"]]


def test_parts_are_about_equal_and_hold_every_member_once():
    six = list("abcdef")
    assert cohorts.split(six, 1, lambda _: 1.0) == [six]
    assert cohorts.split(six, 6, lambda _: 1.0) == [[run_id] for run_id in six] == cohorts.split(six, 9, lambda _: 1.0)
    parts = cohorts.split(six, 4, lambda _: 1.0)
    assert sorted(map(len, parts)) == [1, 1, 2, 2] and sorted(run_id for part in parts for run_id in part) == six
    assert [sorted(part) for part in parts] == parts  # order is kept


def test_parts_are_weighed():
    cost = {"a": 5.0, "b": 1.0, "c": 1.0, "d": 5.0}
    assert cohorts.split(list("abcd"), 2, cost.get) == [["a", "b"], ["c", "d"]]
