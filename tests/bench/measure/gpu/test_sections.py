"""The sections: a wrong captured step is noticed, settings are tried and put back, and the time is kept to."""

from __future__ import annotations

import time

import pytest
import torch

import reproduce
from bench.measure import step_cost
from bench.measure.gpu import at_once, judge, program, sections, sprint, trial
from bench.measure.gpu.facts import Facts
from bench.measure.gpu.sections import Measurement, Setting
from bench.training import evaluate, member, trainer
from jobs import local

torch.set_num_threads(1)
CPU = torch.device("cpu")


@pytest.fixture
def setting():
    return Setting(CPU, trial.SMALL, None, None)


@pytest.fixture
def facts(tmp_path):
    return Facts(tmp_path, time.time())


def agree(name="kd", steps=2):
    return sections.agree([trial.run_of(name, "resnet8-resnet8", 8)], CPU, steps)


def test_a_step_agrees_with_itself():
    """crd: a memory that steps write, and indices that they read."""
    found = agree("crd")
    assert found["holds"] and found["deterministic"] and found["steps"] == 2 and not found["captured"]
    assert all(found[kind] < 1e-6 for kind in sections.TOLERANCES)
    assert not torch.are_deterministic_algorithms_enabled()


def captured_wrongly(monkeypatch, wrong):
    """Let `wrong` do the steps that would be replayed."""

    def captured(step, device):
        count = iter(range(100))

        def take(*given, members):
            return wrong(step, *given) if next(count) >= sections.EAGER_STEPS else step(*given)

        return take

    monkeypatch.setattr(sections, "captured", captured)


@pytest.mark.parametrize("fault", ["stale inputs", "no update", "not a number", "forgets momentum"])
def test_a_wrong_replay_is_noticed(monkeypatch, fault):
    kept = []

    def wrong(step, *given):
        if fault == "stale inputs":
            kept.append(given)
            return step(*kept[0]) if len(kept) > 1 else step(*given)
        if fault == "forgets momentum":
            step.__self__.members[0].optimizer.state.clear()
            return step(*given)
        trained = step.__self__.members[0].trained
        weights = [parameter.detach().clone() for parameter in trained]
        found = step(*given)
        if fault == "no update":
            for parameter, before in zip(trained, weights, strict=True):
                parameter.detach().copy_(before)
            return found
        return [(values * float("nan"), None) for values, _ in found]

    captured_wrongly(monkeypatch, wrong)
    assert not agree()["holds"]


def test_what_cannot_be_captured_deterministically_is_compared_as_it_is(monkeypatch):
    def wrong(step, *given):
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return step(*given)

    captured_wrongly(monkeypatch, wrong)
    found = agree()
    assert found["holds"] and not found["deterministic"] and found["reason"].endswith("is capturing")


def test_a_step_that_was_not_captured_does_not_hold(monkeypatch):
    """On a GPU eager steps beside eager ones would say nothing."""
    tries = []

    def distances(run, device, steps):
        tries.append(torch.are_deterministic_algorithms_enabled())
        return dict.fromkeys(sections.TOLERANCES, 0.0), captured[len(tries) - 1]

    monkeypatch.setattr(sections, "_distances", distances)
    for captured, holds in (([False, False], False), ([False, True], True), ([True], True)):
        tries.clear()
        found = sections.agree([trial.run_of("kd", "resnet8-resnet8", 8)], torch.device("cuda"), 2)
        assert found["holds"] == holds and tries == [True, False][: len(captured)]


def test_a_layout_is_tried_and_put_back():
    before = trainer.memory_format, member.memory_format, evaluate.memory_format
    for name, wanted in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        with trial.layout(name):
            at = step_cost.trainer_on_noise([trial.run_of("vanilla", "resnet8-resnet8", 8)], CPU)
            assert at.layout == at.members[0].layout == wanted and evaluate.memory_format(CPU) == wanted
    assert (trainer.memory_format, member.memory_format, evaluate.memory_format) == before
    assert trial.default_layout("fp32", CPU) == "NHWC"


def test_batches_choose_their_recipe():
    assert trial.run_of("kd", "resnet56-resnet20", 64).protocol.name == "standard"
    large = trial.run_of("rkd", "resnet56-resnet20", 1024, "bf16")
    assert (large.protocol.name, large.train.batch, large.precision) == ("sprint", 1024, "bf16")
    assert trial.run_of("vanilla", "resnet56-resnet20", 64).teacher is None


def test_defaults_are_those_of_the_code(monkeypatch):
    monkeypatch.setattr(local.torch.cuda, "device_count", lambda: 1)
    assert local.slots(torch.device("cuda"), None).per_device == sections.DEFAULT_SLOTS
    assert reproduce.PRECISION == sections.DEFAULT_PRECISION


def test_full_size_covers_what_is_asked():
    """Every method at both batches, three pairs in all precisions, layouts and both ways of cuDNN."""
    full = Setting(torch.device("cuda"), trial.Sizes(), None, None)
    kinds = [each.labels for each in sections.layouts(full)]
    assert len(kinds) == 3 * 2 * 3 * 2 * 2 and len({tuple(labels.values()) for labels in kinds}) == len(kinds)
    assert [labels["autotuned"] for labels in kinds] == [False] * 36 + [True] * 36
    steps = {(labels["method"], labels["batch"]) for labels in (each.labels for each in sections.steps(full))}
    assert steps == {(name, batch) for name in trial.methods.names() for batch in (64, 1024)}
    agreeing = [each.labels for each in sections.agreement(full)]
    wanted = {*trial.methods.names(), "all together"}
    assert {labels["method"] for labels in agreeing if labels["precision"] == "fp32"} == wanted
    assert {labels["precision"] for labels in agreeing} == {"fp32", "tf32", "bf16"}


@pytest.fixture
def made_up(monkeypatch):
    """A section of three measurements; the second one fails as the test says."""
    done, failure = [], [RuntimeError("CUDA error: an illegal memory access")]

    def work(number):
        done.append(number)
        if number == 1 and failure:
            raise failure[0]
        return {"number": number}

    def section(at):
        for number in range(3):
            yield Measurement("made up", {"part": number}, lambda number=number: work(number))

    monkeypatch.setitem(sections.SECTIONS, "made up", section)
    return done, failure


def measure(setting, facts, until=None):
    return program.measure("made up", setting, facts, time.monotonic() + 60 if until is None else until)


def test_a_failure_is_a_fact_and_the_next_one_starts(made_up, setting, facts):
    assert measure(setting, facts) == "done"
    assert [fact.get("error", "") for fact in facts.read()] == [
        "",
        "RuntimeError: CUDA error: an illegal memory access",
        "",
    ]


def test_after_an_error_on_a_gpu_a_fresh_process_goes_on(made_up, setting, facts):
    gpu = Setting(torch.device("cuda"), trial.SMALL, None, None)
    assert measure(gpu, facts) == program.LEFT and made_up[0] == [0, 1]
    assert measure(gpu, facts) == "done" and made_up[0] == [0, 1, 2]  # nothing twice, the error neither
    facts.add("program")
    assert measure(gpu, facts) == program.LEFT and made_up[0] == [0, 1, 2, 1]  # another call tries again
    made_up[1][0] = torch.OutOfMemoryError("CUDA out of memory")
    facts.path.unlink()
    assert measure(gpu, facts) == "done"


def test_the_time_is_kept_to(made_up, setting, facts):
    assert measure(setting, facts, until=time.monotonic() - 1) == "out of time"
    assert made_up[0] == [] and facts.read()[0]["next"] == {"part": 0}


class Stub:
    """Stands in for a process: it answers, is gone, or wants to be replaced, in that order of `answers`."""

    answers: list = []
    made = 0

    def __init__(self, *given):
        Stub.made += 1

    def send(self, request):
        self.request = request

    def receive(self, seconds):
        answer = Stub.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        pass


@pytest.mark.parametrize(
    ("answers", "ended", "made"),
    [
        (["done"], "done", 1),
        ([program.LEFT, "done"], "done", 2),
        ([program.Gone("died (exit status -11)")], "failed: the process died (exit status -11)", 1),
        ([program.LEFT] * 9, "failed: 4 errors, each the end of a process", 4),
    ],
)
def test_a_section_outlives_its_process(monkeypatch, tmp_path, setting, facts, answers, ended, made):
    monkeypatch.setattr(program, "Helper", Stub)
    monkeypatch.setattr(Stub, "answers", list(answers))
    monkeypatch.setattr(Stub, "made", 0)
    assert program.Measuring(tmp_path, setting, facts).section("machine", 60.0) == ended
    assert Stub.made == made


def test_a_failing_process_at_once_is_an_error(monkeypatch):
    monkeypatch.setattr(at_once, "Helper", Stub)
    monkeypatch.setattr(Stub, "answers", [0.0, 0.0, 5.0, 7.0, 0.0, "OutOfMemoryError: CUDA"])
    with at_once.Processes(2, CPU, "resnet8-resnet8") as stepping:
        assert stepping.rate(2, 8, "fp32", 0.1) == 12.0
        with pytest.raises(RuntimeError, match="OutOfMemory"):
            stepping.rate(2, 8, "fp32", 0.1)


def test_a_large_pack_comes_in_parts(monkeypatch, tmp_path):
    """Whole again when joined in the order of their names; an older pack's parts are gone."""
    whole = bytes(range(256)) * 10
    made = sprint.Sprint("g", "", (0,), tmp_path / "results", tmp_path, "cpu", "fp32", 1, None, None)
    (tmp_path / f"{sprint.PACK}.part7").write_bytes(b"old")

    def call(command, seconds):
        assert command[-2:] == ["--max-mib", "58"]
        (tmp_path / sprint.PACK).write_bytes(whole)
        return 1

    monkeypatch.setattr(sprint, "_call", call)
    monkeypatch.setattr(sprint, "PART_BYTES", 1000)
    assert sprint._pack(made, 60.0) == {"mib": 0.0, "parts": 3, "complete": False}
    parts = sorted(tmp_path.glob(f"{sprint.PACK}*"))
    assert [part.name[-5:] for part in parts] == ["part0", "part1", "part2"]
    assert b"".join(part.read_bytes() for part in parts) == whole
    assert sprint.PACK_MIB * 2**20 <= 4 * 15 * 2**20  # at most four files


def test_seeds_follow_one_another_while_there_is_time(monkeypatch, tmp_path, facts):
    clock, calls = [0.0], []
    monkeypatch.setattr(sprint.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sprint, "_pack", lambda *given: {})

    def call(command, seconds, weights=None):
        calls.append(command[command.index("--only") + 1])
        clock[0] += 100
        return 0

    monkeypatch.setattr(sprint, "_call", call)
    made = sprint.Sprint("first-sprint", "method=kd", (0, 1, 2), tmp_path, tmp_path, "cuda", "fp32", 4, None, None)
    assert sprint.run(made, facts, 220.0) == "out of time"
    assert calls == ["seed=0,method=kd", "seed=1,method=kd"]
    clock[0] = 0.0
    assert sprint.run(made, facts, 1000.0) == "done"


def test_slots_are_those_that_the_facts_speak_for():
    rows = [{"fact": "at once", "processes": k, "batch": 1024, "precision": "fp32", "steps_per_s": rate}
            for k, rate in ((1, 40.0), (2, 59.0), (4, 60.0))]  # fmt: skip
    assert judge.slots(rows, "fp32").count == 2 and judge.slots(rows, "bf16") is None
