"""Costs on a device that is not here: the model by hand, and what takes its place once something was measured."""

from __future__ import annotations

import json

import pytest

import zoo
from bench import protocol
from bench.cost import step_flop, steps
from bench.measure import calibration, elsewhere
from bench.run import Teacher
from zoo.errors import BadInput


def resolved(name: str, student: str = "resnet8", precision: str = "fp32", recipe: str = "standard"):
    teacher = None if name == "vanilla" else Teacher(arch="resnet20", run_id="t")
    return protocol.resolve(protocol.load(recipe), name, student, 0, teacher=teacher, precision=precision)


def calibrate(tmp_path, name, *runs, finished=(), cohorts=()):
    return elsewhere.calibrate({run.run_id: run for run in runs}, finished, name, cohorts, tmp_path)


def facts(tmp_path, *steps, machine="NVIDIA H100 80GB HBM3", folder="results/measured/h100"):
    place = tmp_path / folder
    place.mkdir(parents=True)
    rows = [
        {"fact": "machine", "name": machine},
        {"fact": "defaults", "layouts": {"fp32": "NCHW"}, "autotuned": False},
        *({"autotuned": False, "precision": "fp32", "batch": 64, "layout": "NCHW", **step} for step in steps),
    ]
    (place / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "results" / "measured"


def step(method, student, ms, fact="step", **more):
    run = resolved(method, student)
    return {"fact": fact, "method": method, "pair": f"resnet20-{student}", "flop": step_flop(run), "ms": ms, **more}


def test_the_model_adds_work_bytes_and_kernels():
    """KD, batch 64: 64 images through the teacher, and three times through the student; 2 FLOP a MAC."""
    student, teacher = zoo.counts("resnet8"), zoo.counts("resnet20")
    # resnet20 by hand: a stem, 18 convolutions, 2 projections, a BatchNorm behind each, a linear layer
    assert teacher.layers == 2 * (1 + 18 + 2) + 1 and teacher.stored == 278_324 + 2 * 784 + 21
    own_s, shared_s = elsewhere.model(resolved("kd"), elsewhere.DEVICES["a100"])
    assert shared_s == pytest.approx(
        2 * 64 * teacher.macs / (0.25 * 19.5e12) + 2 * 4 * 64 * teacher.outputs / (0.5 * 2.039e12) + 3e-6 * 43
    )
    assert own_s == pytest.approx(
        6 * 64 * student.macs / (0.25 * 19.5e12)
        + 6 * 4 * 64 * student.outputs / (0.5 * 2.039e12)
        + 12e-6 * student.layers
    )
    core = elsewhere.model(resolved("kd"), elsewhere.DEVICES["avx2"])
    assert sum(core) == pytest.approx(step_flop(resolved("kd")) / (0.5 * 3.0e9 * 32))
    assert elsewhere.model(resolved("vanilla"), elsewhere.DEVICES["avx2"]).shared_s == 0.0


def test_a_model_says_that_it_is_one_and_cohorts_share(tmp_path):
    kd, dkd = resolved("kd", precision="bf16"), resolved("dkd", precision="bf16")
    found = calibrate(tmp_path, "h100", kd, dkd, cohorts=[[kd.run_id, dkd.run_id]])
    assert found.rests_on.startswith("a model, nothing measured: 0.25 of its peak of 989.4 TFLOP/s at bf16")
    assert found.cuda and found.device == "H100 SXM 80 GB"
    own_s, shared_s = elsewhere.model(kd, elsewhere.DEVICES["h100"])
    assert found.seconds[kd.run_id] > (own_s + shared_s / 2) * steps(kd)
    assert found.seconds[kd.run_id] < calibrate(tmp_path, "h100", kd).seconds[kd.run_id]


@pytest.mark.parametrize("name", ["h100", "H100", "H-100"])
def test_names_are_taken_as_people_write_them(name):
    assert elsewhere.known(name) == "h100"


def test_an_unknown_name_gets_all_known_ones():
    with pytest.raises(BadInput, match='unknown device of --on "h10": did you mean "h100"\\? choose from 3090, 4090'):
        elsewhere.known("h10")


def test_measured_steps_take_the_models_place(tmp_path):
    measured = facts(
        tmp_path, step("kd", "resnet8", 2.0), step("crd", "resnet8", 3.0), step("kd", "resnet8", 9.0, batch=1024)
    )
    kd, crd, dkd = (resolved(name) for name in ("kd", "crd", "dkd"))
    found = calibrate(measured, "h100", kd, crd, dkd)
    assert found.rests_on == "steps measured on such a device (results/measured/h100/facts.jsonl)"
    assert found.seconds[kd.run_id] == pytest.approx(2e-3 * calibration._as_steps(kd), rel=1e-6)
    assert found.seconds[crd.run_id] == pytest.approx(3e-3 * calibration._as_steps(crd), rel=1e-6)
    assert found.seconds[kd.run_id] < found.seconds[dkd.run_id] < found.seconds[crd.run_id]
    for other in ("h200", "4090"):
        assert calibrate(measured, other, kd).rests_on.startswith("a model")


def test_steps_of_another_precision_or_layout_tell_nothing(tmp_path):
    measured = facts(
        tmp_path, step("kd", "resnet8", 2.0, precision="bf16"), step("kd", "resnet8", 1.0, "layout", layout="NHWC")
    )
    assert calibrate(measured, "h100", resolved("kd")).rests_on.startswith("a model")


def test_finished_runs_of_such_a_device_tell(tmp_path):
    kd = resolved("kd")
    result = {"timing": {"alone_s": 500.0}, "provenance": {"device": "NVIDIA H200", "threads": None}}
    found = calibrate(tmp_path, "h200", kd, finished=[(kd, result)])
    assert found.seconds[kd.run_id] == pytest.approx(500.0) and found.rests_on == "1 finished runs on such a device"
    assert calibrate(tmp_path, "h100", kd, finished=[(kd, result)]).rests_on.startswith("a model")
