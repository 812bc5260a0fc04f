"""Workers: SIGKILL at any moment, then again, ends bit for bit as if nothing had happened; failures say why."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import zoo
from bench import experiment, store
from bench import protocol as protocols
from bench.run import Run, Teacher
from bench.surroundings import sources
from bench.training import member
from jobs import claims, meter, states, worker
from jobs.outcomes import BLOCKED, CLAIMED, CRASHED, DONE, FAILED, NO_MEMORY, STOPPED
from tests import tiny

ROOT = Path(__file__).parents[2]
torch.set_num_threads(1)


def order(run: Run) -> str:
    return json.dumps({"runs": [{"run": run.model_dump(mode="json"), "weights": None}]}) + "\n"


def start(out: Path, every_s: float = 0.0, **options) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "jobs.worker",
        "--out",
        str(out),
        "--device",
        "cpu",
        "--threads",
        "1",
        "--checkpoint-every-s",
        str(every_s),
    ]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def teacher_run(tmp_path) -> Run:
    return tiny.run(tmp_path, "vanilla")


def student_run(tmp_path, method: str) -> Run:
    teacher = Teacher(arch="resnet8", run_id=teacher_run(tmp_path).run_id)
    return protocols.resolve(tiny.recipe(tmp_path), method, "resnet8", 0, teacher=teacher)


def here(out: Path, stop: bool = False) -> tuple[experiment.Site, threading.Event]:
    event = threading.Event()
    if stop:
        event.set()
    return experiment.Site(out, torch.device("cpu")), event


def do(run: Run, site: experiment.Site, stop: threading.Event, weights: Path | None = None) -> tuple[str, str]:
    """Outcome and message of one run done by itself."""
    said = []
    worker.do([(run, weights)], site, stop, lambda _, *word: said.append(word))
    return said[0]


def essence(out: Path, run: Run):
    """Everything of a result but clocks and places, and the weights."""
    folder = store.run_folder(out, run.run_id)
    result = store.read_result(folder)
    curve = [{key: value for key, value in row.items() if key != "wall_s"} for row in result["curve"]]
    weights = store.read_torch(folder.weights)["model"]
    return result["config"], result["metrics"], curve, {name: value.tolist() for name, value in weights.items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Teacher, vanilla-with-modules (fitnet) and kd results of an undisturbed worker."""
    tmp_path = tmp_path_factory.mktemp("undisturbed")
    for run in (teacher_run(tmp_path), student_run(tmp_path, "kd"), student_run(tmp_path, "fitnet")):
        assert do(run, *here(tmp_path))[0] == DONE
    return tmp_path


@pytest.mark.parametrize("method", ["kd", "fitnet"])
def test_killed_at_random_moments_equals_undisturbed(tmp_path, undisturbed, method):
    run, chance = student_run(tmp_path, method), random.Random(method)
    assert do(teacher_run(tmp_path), *here(tmp_path))[0] == DONE
    folder = store.run_folder(tmp_path, run.run_id)
    kills = resumed = 0
    while kills < 4 and not folder.result.exists():
        process = start(tmp_path)
        process.stdin.write(order(run))
        process.stdin.flush()
        resumed += folder.last.exists()
        seen = folder.last.stat().st_mtime_ns if folder.last.exists() else 0
        while process.poll() is None and not folder.result.exists():  # wait for a new checkpoint, then some
            if folder.last.exists() and folder.last.stat().st_mtime_ns != seen:
                break
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert resumed >= 1
    assert do(run, *here(tmp_path))[0] == DONE
    assert essence(tmp_path, run) == essence(undisturbed, run)
    assert sorted(os.listdir(folder.path)) == ["config.json", "log.txt", "result.json", "weights.pt"]


def test_a_cohort_killed_at_random_moments_equals_undisturbed(tmp_path, undisturbed):
    """Three runs of one process: what each has in its files goes on, wherever it stands."""
    runs, chance = [student_run(tmp_path, "kd"), student_run(tmp_path, "fitnet")], random.Random(3)
    assert do(teacher_run(tmp_path), *here(tmp_path))[0] == DONE
    together = json.dumps({"runs": [{"run": run.model_dump(mode="json"), "weights": None} for run in runs]}) + "\n"
    folders = [store.run_folder(tmp_path, run.run_id) for run in runs]
    for _ in range(3):
        process = start(tmp_path)
        process.stdin.write(together)
        process.stdin.flush()
        seen = {folder: folder.last.stat().st_mtime_ns if folder.last.exists() else 0 for folder in folders}
        while process.poll() is None and not all(folder.result.exists() for folder in folders):
            if any(folder.last.exists() and folder.last.stat().st_mtime_ns != seen[folder] for folder in folders):
                break
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    said = []
    site, stop = here(tmp_path)
    assert worker.do([(run, None) for run in runs], site, stop, lambda run, *word: said.append(word[0]))
    assert said == [DONE, DONE]
    for run, folder in zip(runs, folders, strict=True):
        assert essence(tmp_path, run) == essence(undisturbed, run)
        assert sorted(os.listdir(folder.path)) == ["config.json", "log.txt", "result.json", "weights.pt"]
    assert "together with " + runs[1].run_id in folders[0].log.read_text()
    assert store.read_result(folders[0])["timing"]["together"] > 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), CRASHED),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB"), NO_MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), CRASHED),
        (MemoryError(), NO_MEMORY),
    ],
)
def test_what_fails_the_device_fails_no_run(tmp_path, undisturbed, monkeypatch, error, outcome):
    """Each of the order is interrupted, none is marked as failed, and the process takes no other order."""
    runs = [teacher_run(tmp_path), tiny.run(tmp_path, "vanilla", seed=1)]
    said = []
    site, stop = here(tmp_path)

    def broken(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(member.Member, "step", broken)
        again = worker.do([(run, None) for run in runs[:1]], site, stop, lambda run, *word: said.append(word))
    assert not again and [word[0] for word in said] == [outcome]
    folder = store.run_folder(tmp_path, runs[0].run_id)
    assert not folder.error.exists() and not list(folder.path.glob("claim*"))
    assert "Traceback" in folder.log.read_text()
    assert do(runs[0], site, stop)[0] == DONE
    assert essence(tmp_path, runs[0]) == essence(undisturbed, runs[0])


def test_a_worker_leaves_after_its_last_word(tmp_path):
    answered, left = io.StringIO(), threading.Event()

    def work(orders, stop, settle):
        for run, _ in orders:
            settle(run, CRASHED, "CUDA error")
        return False

    def orders():
        yield from [order(teacher_run(tmp_path))] * 2
        left.wait(10)

    worker.serve(work, orders(), answered, hung_s=60)
    left.set()
    assert [json.loads(line)["outcome"] for line in answered.getvalue().splitlines()] == [CRASHED]


def test_end_of_orders_stops_with_a_checkpoint(tmp_path, undisturbed):
    """The driver died: its end of the pipe closes, the worker writes where it stands and leaves."""
    run = teacher_run(tmp_path)
    process = start(tmp_path, every_s=1e9)
    process.stdin.write(order(run))
    process.stdin.flush()
    folder = store.run_folder(tmp_path, run.run_id)
    while not (folder.log.exists() and "epoch 1 " in folder.log.read_text()):
        time.sleep(0.01)
    said, _ = process.communicate(timeout=60)  # closes its input
    outcome = json.loads(said)["outcome"]
    assert outcome in (STOPPED, DONE) and process.returncode == 0
    assert (outcome == STOPPED) == folder.last.exists()
    assert not list(folder.path.glob("claim*"))
    assert do(run, *here(tmp_path))[0] == DONE
    assert essence(tmp_path, run) == essence(undisturbed, run)


def test_an_answer_that_nobody_hears_is_no_error(tmp_path):
    """The driver died while a run was at its end: no word of that where the driver's shell shows it."""
    run, second = teacher_run(tmp_path), tiny.run(tmp_path, "vanilla", seed=1)
    process = start(tmp_path, stderr=subprocess.PIPE)
    process.stdout.close()
    process.stdin.write(order(run) + order(second))
    process.stdin.flush()
    assert process.wait(timeout=120) == 0 and process.stderr.read() == ""
    assert store.run_folder(tmp_path, run.run_id).result.exists()
    assert not store.run_folder(tmp_path, second.run_id).path.exists()


def test_claimed_done_and_blocked(tmp_path):
    run = teacher_run(tmp_path)
    folder = store.run_folder(tmp_path, run.run_id)
    claim = claims.acquire(folder.path)
    assert do(run, *here(tmp_path)) == (CLAIMED, "another process has it")
    claim.release()
    outcome, message = do(student_run(tmp_path, "kd"), *here(tmp_path))
    assert outcome == BLOCKED and run.run_id in message and "not done" in message
    assert do(run, *here(tmp_path))[0] == DONE
    before = folder.result.stat().st_mtime_ns
    assert do(run, *here(tmp_path))[0] == DONE
    assert folder.result.stat().st_mtime_ns == before  # done is done


@pytest.mark.parametrize("foreign", [False, True])
def test_damaged_files_are_set_aside_and_said(tmp_path, undisturbed, foreign):
    run = teacher_run(tmp_path)
    folder = store.run_folder(tmp_path, run.run_id)
    assert do(run, *here(tmp_path, stop=True))[0] == STOPPED
    folder.last.write_bytes(folder.last.read_bytes()[:5000])
    if foreign:
        torch.save({"run_id": run.run_id}, folder.last)
    folder.result.write_text('{"run_id": ')
    assert do(run, *here(tmp_path))[0] == DONE
    assert {"result.json.aside-1", "last.pt.aside-1"} <= set(os.listdir(folder.path))
    assert "set aside" in folder.log.read_text()
    assert essence(tmp_path, run) == essence(undisturbed, run)


def test_failure_is_recorded_with_its_reason(tmp_path):
    text = tiny.PROTOCOL.replace("batch: 32}", "batch: 32, lr: 1.0e+30}")
    run = tiny.run(tmp_path, "vanilla", text=text)
    outcome, message = do(run, *here(tmp_path))
    assert outcome == FAILED and "loss is not finite at epoch 1, step" in message and "ce" in message
    error = store.read_json(store.run_folder(tmp_path, run.run_id).error)
    assert error["message"] == message and "Traceback" in error["details"]
    assert do(run, *here(tmp_path)) == (FAILED, message)  # not tried again unasked


def test_broken_teacher_weights_block_and_do_not_fail(tmp_path):
    run = teacher_run(tmp_path)
    assert do(run, *here(tmp_path))[0] == DONE
    weights = store.run_folder(tmp_path, run.run_id).weights
    weights.write_bytes(weights.read_bytes()[:100])
    outcome, message = do(student_run(tmp_path, "kd"), *here(tmp_path))
    assert outcome == BLOCKED and "weights.pt is cut short" in message


@pytest.mark.parametrize("name", ["result.json", "error.json", "last.pt"])
def test_what_cannot_be_read_now_is_left_as_it_is(tmp_path, name):
    """Nothing set aside, nothing trained, no failure recorded; once it can be read again the run goes on."""
    run = teacher_run(tmp_path)
    folder = store.run_folder(tmp_path, run.run_id)
    assert do(run, *here(tmp_path, stop=name == "last.pt"))[0] == (STOPPED if name == "last.pt" else DONE)
    if name == "error.json":
        folder.result.rename(folder.path / "kept")
        store.write_json(folder.error, {"message": "it failed"})
    path = folder.path / name
    path.rename(folder.path / "hidden")
    path.symlink_to(name)  # ELOOP, for root as well
    before = sorted(os.listdir(folder.path))
    outcome, message = do(run, *here(tmp_path))
    assert outcome == BLOCKED and f"{name} cannot be read now (" in message
    assert sorted({*os.listdir(folder.path)} - {"log.txt"}) == sorted({*before} - {"log.txt"})
    found = states.status(folder)
    assert name == "last.pt" or (found.state == "blocked" and found.reason == message)
    (folder.path / "hidden").replace(path)
    assert do(run, *here(tmp_path))[0] == (FAILED if name == "error.json" else DONE)


def test_teacher_weights_that_cannot_be_read_now(tmp_path, undisturbed):
    run, student = teacher_run(tmp_path), student_run(tmp_path, "kd")
    shutil.copytree(store.run_folder(undisturbed, run.run_id).path, store.run_folder(tmp_path, run.run_id).path)
    weights = store.run_folder(tmp_path, run.run_id).weights
    weights.unlink()
    weights.symlink_to(weights.name)
    outcome, message = do(student, *here(tmp_path))
    assert outcome == BLOCKED and "weights.pt cannot be read now (" in message
    assert not store.run_folder(tmp_path, student.run_id).error.exists()


def test_a_log_that_cannot_be_written_costs_itself(tmp_path, undisturbed):
    run = teacher_run(tmp_path)
    log = store.run_folder(tmp_path, run.run_id).log
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    outcome, message = do(run, *here(tmp_path))
    assert outcome == DONE and message.endswith("(log.txt has gaps: No space left on device)")
    assert essence(tmp_path, run) == essence(undisturbed, run)


def test_going_on_with_another_source_is_said_and_recorded(tmp_path, monkeypatch):
    run = teacher_run(tmp_path)
    folder = store.run_folder(tmp_path, run.run_id)
    then = "source:" + "0" * 64
    with monkeypatch.context() as patch:
        patch.setattr("bench.training.member.source_of", lambda method: then)
        assert do(run, *here(tmp_path, stop=True))[0] == STOPPED
    assert states.status(folder).source == sources.OTHER
    assert "made with another source of its method" in states.status(folder).reason
    assert do(run, *here(tmp_path))[0] == DONE
    assert "another source of vanilla has made" in folder.log.read_text()
    said = store.read_result(folder)["provenance"]
    assert said["method_sources_before"] == [then] and said["method_source"] == sources.today()["vanilla"].digest
    assert states.status(folder).source == sources.BOTH


def test_result_says_what_and_where(undisturbed):
    run = student_run(undisturbed, "kd")
    result = store.read_result(store.run_folder(undisturbed, run.run_id))
    assert Run.model_validate(json.loads(json.dumps(result["config"]))).run_id == run.run_id
    assert set(result["metrics"]) == {"top1_last", "top1_best", "best_epoch", "top5_last", "test_loss_last"}
    assert [row["epoch"] for row in result["curve"]] == [1, 2]
    assert {"epoch", "lr", "train_loss", "ce", "kd", "top1", "wall_s"} <= set(result["curve"][0])
    assert result["provenance"]["versions"]["torch"] == torch.__version__
    assert result["provenance"]["method_source"] == sources.today()["kd"].digest
    assert "method_sources_before" not in result["provenance"]
    assert len(result["provenance"]["method_sha256"]) == 64 and result["provenance"]["device"]


@pytest.mark.parametrize("validation", [200, 0])
def test_a_run_with_a_validation_split(tmp_path, validation):
    text = tiny.PROTOCOL.replace("train_images: 100", f"train_images: 100, validation: {validation}")
    run = tiny.run(tmp_path, "vanilla", text=text)
    assert do(run, *here(tmp_path))[0] == DONE
    result = store.read_result(store.run_folder(tmp_path, run.run_id))
    of_split = {"val_top1_last", "val_top1_best", "best_epoch"} if validation else set()
    assert set(result["metrics"]) == {"top1_last", "top5_last", "test_loss_last"} | of_split
    assert ["top1" in row for row in result["curve"]] == [False, True]
    assert ["val_top1" in row for row in result["curve"]] == [bool(validation)] * 2
    assert Run.model_validate(result["config"]).run_id == run.run_id


@pytest.fixture
def clock(monkeypatch):
    """Both clocks of the meter; add to its only item."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: 1e9 + now[0])
    return now


def test_progress_is_worked_out_when_asked_for(tmp_path, clock):
    run = student_run(tmp_path, "kd")  # two epochs; of 4 steps of 32 images
    seen_by = meter.Meter(run, {"epoch": 1, "epochs": 2, "top1": 7.5, "left_s": 99.0, "ticks": 50}, meter.Pulse())
    clock[0] += 5
    # Before the first step: where the last claimant was, and nothing of its speed.
    at_first = {"epoch": 1, "epochs": 2, "top1": 7.5, "ticks": 0, "idle_s": 5.0, "wall_s": 5.0, "said_at": 1e9 + 105}
    assert seen_by.measure() == at_first
    seen_by.on_step(1, 2, 4)  # it goes on from a checkpoint after one step; the first step tells no speed
    assert {"images_per_s", "left_s"}.isdisjoint(seen_by.measure())
    clock[0] += 4
    seen_by.on_step(1, 4, 4)
    # Of two evaluations each is taken to be half as long as 1,000 forward passes of the student, where a step is 32
    # times three of these and one of its teacher, which here is as large.
    evaluation = 1_000 / (32 * 4) / 2
    seen = seen_by.measure()
    assert (seen["epoch"], seen["step"], seen["steps"], seen["top1"]) == (0, 4, 4, 7.5)
    assert seen["images_per_s"] == pytest.approx(32 * 2 / 4)
    assert seen["left_s"] == pytest.approx(2 * (4 + 2 * evaluation), abs=0.1)
    assert seen["whole_s"] == pytest.approx(2 * (8 + 2 * evaluation), abs=0.1)
    clock[0] += 16
    seen_by.on_step(1, 4, 4)  # a batch of the evaluation, of ten: no step, but no standstill
    seen = seen_by.measure()
    assert seen["left_s"] == pytest.approx(20 / (2 + evaluation / 10) * (4 + 1.9 * evaluation), abs=0.1)
    clock[0] += 80
    seen_by.on_epoch(1, 12.25)
    seen = seen_by.measure()
    assert seen["top1"] == 12.25 and seen["left_s"] == pytest.approx(100 / (2 + evaluation) * (4 + evaluation), abs=0.1)
    assert (seen["ticks"], seen["idle_s"], seen["wall_s"]) == (3, 80.0, 105.0)
    clock[0] += 60
    assert seen_by.measure()["idle_s"] == 140.0 and seen_by.measure()["ticks"] == 3
    site = experiment.Site(tmp_path, torch.device("cpu"), slots=4)
    seen_by.place = meter.place(site, together=2)
    told = json.loads(json.dumps(seen_by.measure()))
    assert claims._checked(told) == told and told["device"] and told["devices"] == torch.get_num_threads() / 2
    assert told["slots"] == 4 and told["threads"] == torch.get_num_threads() and "together" not in told


def test_an_evaluation_that_was_seen_tells_how_long_the_next_takes(tmp_path, clock):
    """Four steps of a second, then twenty seconds until the next epoch begins, whoever was evaluated meanwhile."""
    seen_by = meter.Meter(tiny.run(tmp_path, "vanilla"), {}, meter.Pulse())
    for step in range(1, 5):
        seen_by.on_step(1, step, 4)
        clock[0] += step < 4
    clock[0] += 5
    seen_by.on_step(1, 4, 4)
    seen_by.on_epoch(1, 10.0)
    clock[0] += 15
    seen_by.on_step(2, 1, 4)
    seen = seen_by.measure()
    # Since the first of them four steps and an evaluation took 23 s, which is as fast as one a second; left are three
    # more, and an evaluation.
    assert seen["left_s"] == pytest.approx(23 / (4 + 20) * (3 + 20), abs=0.1)


def test_the_speed_is_that_of_the_last_minutes(tmp_path, clock):
    text = tiny.PROTOCOL.replace("train_images: 100", "train_images: 100, validation: 0").replace("s: 2,", "s: 1000,")
    run = tiny.run(tmp_path, "vanilla", text=text)
    seen_by = meter.Meter(run, {}, meter.Pulse())
    for step in range(500):  # a second each, then ten
        seen_by.on_step(1 + step // 4, 1 + step % 4, 4)
        clock[0] += 1 if step < 250 else 10
        seen = seen_by.measure()
        assert step < 10 or step >= 250 or seen["images_per_s"] == pytest.approx(32, rel=0.1)
    assert seen["images_per_s"] == pytest.approx(32 / 10, rel=0.05)


def test_steps_that_are_queued_tell_a_speed_where_the_device_was_waited_for(tmp_path, clock):
    """All steps of an epoch are told at once; they are done when it is evaluated."""
    text = tiny.PROTOCOL.replace("train_images: 100", "train_images: 100, validation: 0")
    seen_by = meter.Meter(tiny.run(tmp_path, "vanilla", text=text), {}, meter.Pulse(), queued=True)
    for step in range(1, 5):
        seen_by.on_step(1, step, 4)
    clock[0] += 30
    assert "left_s" not in seen_by.measure() and seen_by.measure()["step"] == 4
    seen_by.on_epoch(1, None)
    for step in range(1, 5):
        seen_by.on_step(2, step, 4)
    clock[0] += 10
    seen = seen_by.measure()
    # Three steps in 30 s since the first was seen; one evaluation follows (half of 1,000 images to 3 x 32).
    assert seen["images_per_s"] == pytest.approx(32 * 3 / 30)
    assert seen["left_s"] == pytest.approx(10 * (4 + 1_000 / 96 / 2) - 10, abs=0.1)


def test_worker_that_hangs_without_a_driver_ends_itself(tmp_path, monkeypatch):
    """Nobody watches it any more, and its heartbeat would keep the run from everybody else for ever."""
    begun, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())

    def hang(orders, stop, settle):
        begun.set()
        settle(orders[0][0], DONE if ended.wait(10) else "hung", "")
        return True

    def orders():
        yield order(teacher_run(tmp_path))
        begun.wait(10)  # then the driver dies

    answers = io.StringIO()
    worker.serve(hang, orders(), answers, hung_s=0.05)
    assert json.loads(answers.getvalue())["outcome"] == DONE
    ended.clear()
    worker.serve(hang, iter(()), answers, hung_s=0.05)
    assert not ended.wait(0.5)  # one that leaves in time is let go


@pytest.mark.parametrize(("key", "off", "agrees"), [("acc", 2.0, False), ("best_acc", 0.2, True), (None, 0, None)])
def test_what_a_checkpoint_claims_is_compared_with_what_it_gives(tmp_path, key, off, agrees):
    file, measured = tmp_path / "sskd" / "resnet56.pth", 1.0  # an untrained network is right once in a hundred
    file.parent.mkdir()
    torch.manual_seed(0)
    content = {"model": zoo.build("resnet8").state_dict(), **({key: measured + off} if key else {})}
    torch.save(content, file)
    run = protocols.checkpoint(tiny.recipe(tmp_path), "resnet8", zoo.sha256(file))
    site, stop = here(tmp_path / "out")
    outcome, message = do(run, site, stop, weights=file)
    folder = store.run_folder(site.out, run.run_id)
    result = store.read_result(folder)
    assert outcome == DONE and abs(result["metrics"]["top1_last"] - measured) < 0.3
    said = result["weights_file"]
    assert said["read"] == "weights under model" and said.get("said", "it states no accuracy") in folder.log.read_text()
    assert (
        said["published"].startswith("not the published sskd/resnet56.pth")
        and said["published"] in folder.log.read_text()
    )
    assert said.get("claims", {}).get("agrees") is agrees
    assert (f"its file says {key} 3.00, it gives 1." in message) == (agrees is False)
