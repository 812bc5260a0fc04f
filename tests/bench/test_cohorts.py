"""Which runs may share their batches, and how cohorts are cut for the slots there are."""

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


def test_cut_gives_every_slot_work():
    three = [[f"{seed}{n}" for n in range(6)] for seed in "abc"]
    assert cohorts.cut(three, None, 1, lambda _: 1.0) == three
    assert cohorts.cut(three, 1, 1, lambda _: 1.0) == [[run_id] for cohort in three for run_id in cohort]
    two = cohorts.cut(three, None, 2, lambda _: 1.0)  # the third goes to both
    assert two[:2] == three[:2] and sorted(map(len, two[2:])) == [3, 3]
    assert sorted(map(len, cohorts.cut(three[:1], None, 4, lambda _: 1.0))) == [1, 1, 2, 2]
    assert sorted(run_id for piece in two for run_id in piece) == sorted(run_id for part in three for run_id in part)
    assert max(map(len, cohorts.cut(three, 4, 2, lambda _: 1.0))) == 3


def test_cut_weighs_the_pieces():
    cost = {"a": 5.0, "b": 1.0, "c": 1.0, "d": 5.0}
    assert cohorts.cut([["a", "b", "c", "d"]], None, 2, cost.get) == [["a", "b"], ["c", "d"]]
