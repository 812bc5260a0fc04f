"""Calibration: what known step times give in all, what is measured and for how long, and what stands in for it."""

from __future__ import annotations

import time

import pytest
import torch

import zoo
from bench import protocol
from bench.cost import cost_flop, evaluation_flop, step_flop, steps
from bench.measure import calibration, step_cost
from bench.run import Teacher
from bench.surroundings.provenance import device_name
from tests import tiny

CPU = torch.device("cpu")


def resolved(name: str, student: str = "resnet8", seed: int = 0, recipe: str = "standard"):
    teacher = None if name == "vanilla" else Teacher(arch="resnet20", run_id="random")
    return protocol.resolve(protocol.load(recipe), name, student, seed, teacher=teacher)


def by_id(*runs):
    return {run.run_id: run for run in runs}


def result(seconds, device=None, threads=1):
    return {"timing": {"device_s": seconds}, "provenance": {"device": device or device_name(CPU), "threads": threads}}


@pytest.fixture
def measured(monkeypatch):
    """Kinds in the order they were measured; a step takes a second of a clock that stands still otherwise."""
    seen, clock = [], [0.0]

    def measure(run, device, deadline):
        seen.append((run.method, run.student))
        clock[0] += 3.0
        return calibration.Step(1.0, 0.0)

    monkeypatch.setattr(calibration, "measure", measure)
    for name in ("monotonic", "process_time"):
        monkeypatch.setattr(calibration.time, name, lambda: clock[0])
    return seen


@pytest.mark.parametrize(("name", "recipe"), [("vanilla", "standard"), ("kd", "standard"), ("mlkd", "standard")])
def test_costs_agree_with_the_training_cost(name, recipe):
    """Steps times FLOP of a step is the cost of training, but for the last batch, which is not full."""
    run = resolved(name, recipe=recipe)
    assert steps(run) * step_flop(run) == pytest.approx(cost_flop(run), rel=2e-3)
    assert steps(run) == 782 * 240
    assert evaluation_flop(run) == 2 * zoo.count_macs("resnet8") * 10_000 * 240
    for validation, images in ((5000, 5000 * 240 + 10_000), (0, 10_000)):  # the test set once
        split = run.model_copy(update={"data": run.data.model_copy(update={"validation": validation})})
        assert evaluation_flop(split) == 2 * zoo.count_macs("resnet8") * images
        assert steps(split) == -(-(50_000 - validation) // 64) * 240


def test_views_shuffled_together_make_twice_the_steps():
    run = resolved("kd", recipe="streamlined")
    assert run.data.views == "weak+strong"
    assert steps(run) == -(-100_000 // run.train.batch) * run.train.epochs
    assert steps(run) * step_flop(run) == pytest.approx(cost_flop(run), rel=2e-3)


def test_known_steps_give_known_hours(measured):
    run = resolved("vanilla")
    found = calibration.calibrate(by_id(run), [], CPU)
    # 240 epochs of 782 steps of a second; 10,000 images forward are a third of the work of 10,000 trained on
    assert found.seconds[run.run_id] == pytest.approx(240 * (782 + 10_000 / 64 / 3))
    assert (found.kinds, found.measured, found.finished, found.took_s) == (1, 1, 0, 3.0)


def test_a_cohort_has_the_teachers_pass_in_common(monkeypatch):
    """Steps of 3 s and 1 s for the teacher: of four together each takes 3.25 s; an evaluation is a run's own."""
    monkeypatch.setattr(calibration, "measure", lambda *_: calibration.Step(3.0, 1.0))
    runs = by_id(*(resolved(name) for name in ("kd", "dkd", "rkd", "skd")), resolved("kd", seed=1))
    found = calibration.calibrate(runs, [], CPU, cohorts=[list(runs)[:4], list(runs)[4:]])
    one, *_, alone = runs
    evaluations = 4.0 * evaluation_flop(runs[one]) / step_flop(runs[one])
    assert found.seconds[one] == pytest.approx(3.25 * steps(runs[one]) + evaluations)
    assert found.seconds[alone] == pytest.approx(4.0 * steps(runs[one]) + evaluations)


def test_the_teachers_part_is_measured(tmp_path):
    """resnet56 before resnet8: nearly all of a step is the teacher's, without one nothing is."""
    run = protocol.resolve(tiny.recipe(tmp_path), "kd", "resnet8", 0, teacher=Teacher(arch="resnet56", run_id="random"))
    own_s, shared_s = calibration.measure(run, CPU, deadline=time.monotonic() + 60)
    assert shared_s > own_s > 0
    own_s, shared_s = calibration.measure(tiny.run(tmp_path, "vanilla"), CPU, deadline=time.monotonic() + 60)
    assert own_s > 10 * shared_s > 0  # the images are


def test_seeds_are_measured_once(measured):
    runs = by_id(*(resolved(name, seed=seed) for seed in range(3) for name in ("kd", "vanilla")))
    found = calibration.calibrate(runs, [], CPU)
    assert sorted(measured) == [("kd", "resnet8"), ("vanilla", "resnet8")]
    assert len(found.seconds) == 6 and found.kinds == found.measured == 2


def test_each_pair_then_each_method_is_measured_and_the_rest_is_told_by_flop(measured, monkeypatch):
    """In 11 s four of these six: the shortest step of each networks, those with the most work first; then OFD's."""
    monkeypatch.setattr(calibration, "CALIBRATION_S", 11.0)
    runs = [resolved(name, student) for student in ("resnet20", "resnet8") for name in ("kd", "ofd")]
    runs += [resolved("vanilla", "resnet8"), resolved("mlkd", "resnet20")]
    found = calibration.calibrate(by_id(*runs), [], CPU)
    assert measured == [("kd", "resnet20"), ("kd", "resnet8"), ("vanilla", "resnet8"), ("ofd", "resnet8")]
    assert (found.measured, found.kinds) == (4, 6)
    assert found.seconds[runs[0].run_id] == pytest.approx(1.0 * steps(runs[0]) * (1 + share_of_evaluation(runs[0])))


def share_of_evaluation(run):
    return evaluation_flop(run) / (steps(run) * step_flop(run))


def test_what_a_method_takes_beyond_others_is_told_from_other_networks():
    """OFD takes twice KD's time on one pair: so it does on another, where MLKD, with equal speed, was measured."""
    pace = calibration.Pace()
    pace.add(resolved("kd", "resnet20"), calibration.Step(0.75, 0.25))
    pace.add(resolved("ofd", "resnet20"), calibration.Step(2.0, 0.0))
    pace.add(resolved("mlkd", "resnet20"), calibration.Step(2.0, 0.0))  # two views: KD's speed
    pace.add(resolved("mlkd", "resnet8"), calibration.Step(0.6, 0.2))
    assert pace.guess(resolved("kd", "resnet8")) == pytest.approx(0.4)
    assert pace.guess(resolved("ofd", "resnet8")) == pytest.approx(0.8)


def test_same_networks_tell_before_others():
    pace = calibration.Pace()
    pace.add(resolved("kd", "resnet20"), calibration.Step(0.75, 0.25))
    pace.add(resolved("vanilla", "resnet8"), calibration.Step(100.0, 0.0))
    dkd, mlkd = resolved("dkd", "resnet20"), resolved("mlkd", "resnet20")
    assert pace.guess(dkd) == pytest.approx(1.0) and pace.guess(mlkd) == pytest.approx(2.0)  # two views
    between = pace.guess(resolved("dkd", "resnet8"))
    assert between == pytest.approx(
        step_flop(resolved("dkd", "resnet8"))
        * 101
        / (step_flop(resolved("kd", "resnet20")) + step_flop(resolved("vanilla", "resnet8")))
    )


def test_what_is_too_slow_makes_way_for_something_shorter(measured, monkeypatch):
    monkeypatch.setattr(calibration, "CALIBRATION_S", 3.3)
    runs = by_id(resolved("vanilla"), resolved("kd", "wrn_40_2"), resolved("mlkd", "wrn_40_2"))
    found = calibration.calibrate(runs, [], CPU)
    assert found.measured == 2 and measured == [("kd", "wrn_40_2"), ("vanilla", "resnet8")]


def test_what_fails_is_told_by_flop(measured, monkeypatch):
    def measure(run, device, deadline):
        if run.method == "kd":
            raise torch.OutOfMemoryError("no memory")
        return calibration.Step(1.5, 0.5)

    monkeypatch.setattr(calibration, "measure", measure)
    kd, dkd = resolved("kd"), resolved("dkd")
    found = calibration.calibrate(by_id(kd, dkd), [], CPU)
    assert found.measured == 1 and found.kinds == 2
    assert found.seconds[kd.run_id] == pytest.approx(found.seconds[dkd.run_id])  # equal passes


def test_nothing_measured_gives_no_time(monkeypatch):
    monkeypatch.setattr(calibration, "CALIBRATION_S", 0.0)
    found = calibration.calibrate(by_id(resolved("kd")), [], CPU)
    assert found.seconds == {} and found.measured == 0


def test_finished_runs_of_this_device_take_precedence(measured):
    kd = [resolved("kd", seed=seed) for seed in range(3)]
    elsewhere = [(resolved("dkd"), result(5.0, "another CPU")), (resolved("dkd"), result(5.0, threads=None))]
    to_do = by_id(kd[2], resolved("dkd", seed=1))
    finished = [(kd[0], result(900.0)), (resolved("vanilla"), {}), *elsewhere]
    found = calibration.calibrate(to_do, finished, CPU)
    assert found.seconds[kd[2].run_id] == pytest.approx(900.0)
    assert measured == [("dkd", "resnet8")] and (found.kinds, found.finished, found.measured) == (2, 1, 1)


def test_a_checkpoint_costs_its_evaluation(measured, tmp_path):
    kd = resolved("kd")
    checkpoint = kd.model_copy(update={"method": "checkpoint", "train": None, "teacher": None})
    found = calibration.calibrate(by_id(kd, checkpoint), [], CPU)
    assert found.kinds == 1
    assert found.seconds[checkpoint.run_id] == pytest.approx(evaluation_flop(checkpoint) / step_flop(kd))


def test_measures_steps_on_one_thread_and_leaves_no_trace(tmp_path, monkeypatch):
    taken = []
    original = step_cost.Trainer.step

    def step(self, *inputs, **options):
        taken.append((self.members[0].run.method, torch.get_num_threads()))
        return original(self, *inputs, **options)

    monkeypatch.setattr(step_cost.Trainer, "step", step)
    run = tiny.run(tmp_path, "kd")
    torch.set_num_threads(2)
    try:
        drawn = torch.get_rng_state()
        started = time.perf_counter()
        found = calibration.calibrate(by_id(run), [], CPU)
        assert 0 < found.seconds[run.run_id] < 100 * (time.perf_counter() - started)
        assert set(taken) == {("kd", 1)} and len(taken) in (2, 3)  # on a busy machine one after the warm-up does
        assert torch.get_num_threads() == 2
        assert torch.equal(drawn, torch.get_rng_state())
    finally:
        torch.set_num_threads(1)


def test_the_first_step_is_never_counted(tmp_path, monkeypatch):
    """It takes five times what the others do, also where there is no time for a second of these."""
    clock = [0.0]
    monkeypatch.setattr(calibration.time, "process_time", lambda: clock[0])
    for deadline, count in ((time.monotonic() + 60, 1 + calibration.TURNS), (time.monotonic() - 1, 2)):
        taken = []

        def step(trainer, take, taken=taken):
            clock[0] += 1.0 if taken else 5.0
            trainer.clock._since()
            taken.append(1)

        monkeypatch.setattr(calibration, "step", step)
        found = calibration.measure(tiny.run(tmp_path, "kd"), CPU, deadline)
        assert sum(found) == pytest.approx(1.0) and len(taken) == count


def test_a_long_step_is_enough(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(calibration, "step", lambda *given: taken.append(given))
    clock = time.monotonic
    monkeypatch.setattr(calibration.time, "monotonic", lambda: clock() + 1.0 * len(taken))
    calibration.measure(tiny.run(tmp_path, "kd"), CPU, deadline=time.monotonic() + 60)
    assert len(taken) == 2


def test_a_second_view_is_a_runs_own(tmp_path):
    """Of MLKD's teacher the first view's pass is shared, a half."""
    run = protocol.resolve(tiny.recipe(tmp_path), "mlkd", "resnet8", 0, teacher=Teacher(arch="resnet56", run_id="t"))
    own_s, shared_s = calibration.measure(run, CPU, deadline=time.monotonic() + 60)
    teacher_s = 2 * zoo.count_macs("resnet56") / (2 * zoo.count_macs("resnet56") + 6 * zoo.count_macs("resnet8"))
    assert shared_s / (own_s + shared_s) == pytest.approx(teacher_s / 2, rel=0.25)
    assert calibration.Step.split(1.0, run).shared_s == pytest.approx(teacher_s / 2)


def test_takes_the_step_that_training_takes(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(
        calibration, "captured", lambda step, device: lambda *given, **named: taken.append(len(given[2])) or []
    )
    calibration.measure(tiny.run(tmp_path, "kd"), CPU, deadline=time.monotonic() + 60)
    assert taken == [32] * 3
