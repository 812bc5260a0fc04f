"""A real SLURM on this machine (tests/jobs/cluster.py): the same results as here, whatever happens to the jobs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import reproduce
from bench import grid as grids
from bench import store
from jobs import claims
from jobs.failures import record_failure
from jobs.slurm import follow, records, scheduler, site, snapshot
from tests import tiny
from tests.jobs import cluster as slurms
from tests.jobs.results import do_here, essence

ROOT = Path(__file__).parents[3]
SETTINGS = "gpus: 0\ncpus_per_task: 1\ntimeout_min: 60\nsignal_delay_s: 30\n"
LONG, ENDLESS = (tiny.PROTOCOL.replace("epochs: 2,", f"epochs: {epochs},") for epochs in (5, 1000))
TIMEOUT_S = 90
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    slurms.require()
    with slurms.Cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as running:
        yield running


@pytest.fixture
def slurm_here(machines, monkeypatch):
    """A quiet cluster that commands of this test reach."""
    yield reach(machines, monkeypatch)
    machines.run("scancel", "--user=root", check=False)
    for node in machines.nodes:
        machines.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    until(lambda: not machines.jobs(), "an empty queue")


def reach(machines, monkeypatch):
    for name, value in machines.environment.items():
        monkeypatch.setenv(name, value)
    site.forget()
    return machines


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(follow, "LOOK_S", 0.2)
    monkeypatch.setattr(follow, "ASK_S", 2.0)


class Folder:
    """A grid, a cluster file and a results folder, and the command on them."""

    def __init__(self, path: Path, grid: str = tiny.GRID, protocol: str = tiny.PROTOCOL, settings: str = SETTINGS):
        self.grid = tiny.write(path / "grid", grid, protocol)
        self.out = path / "out"
        self.cluster = path / "cluster.yaml"
        self.cluster.write_text(settings)

    def arguments(self, *more: str) -> list[str]:
        given = ["--grid", str(self.grid), "--out", str(self.out), "--no-plots"]
        return [*given, "--executor", "slurm", "--cluster", str(self.cluster), *more]

    def __call__(self, *more: str) -> int:
        return reproduce.main(self.arguments(*more))

    def runs(self, *more: str) -> dict:
        return grids.expand(grids.load(str(self.grid))).runs

    def folder(self, start: str) -> store.RunFolder:
        """The run whose id starts so."""
        (run_id,) = [run_id for run_id in self.runs() if run_id.startswith(start)]
        return store.run_folder(self.out, run_id)

    def queued(self) -> dict[str, scheduler.Job]:
        return scheduler.queue(records.read(self.out))


def until(condition, what: str, timeout_s: float = TIMEOUT_S):
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
    return value


def progressing(folder: store.RunFolder) -> bool:
    """Whether a run is under way and an epoch old."""
    if not folder.log.exists():  # its claim comes first
        return False
    holder = claims.read(folder.path)
    return bool(holder and holder.alive and " epoch 1 " in folder.log.read_text())


def last_epoch(folder: store.RunFolder) -> int:
    return max(map(int, re.findall(r" epoch (\d+) ", folder.log.read_text())))


def test_grid_gives_the_results_of_this_machine(slurm_here, tmp_path, capsys):
    folder = Folder(tmp_path)
    assert folder("--wait") == 0
    said = capsys.readouterr().out
    assert re.search(r"submitted 1 run as \d+, 60 min\n", said)
    assert re.search(r"submitted 2 runs as \d+, 60 min, after \d+\n", said)  # they share a process
    assert "[3/3]" in said and "wrote" in said and (folder.out / "table.md").exists()
    assert essence(folder.out) == do_here(tmp_path / "here", folder.runs().values())
    teacher = folder.folder("vanilla").result.stat().st_mtime
    for student in ("kd", "fitnet"):
        log = folder.folder(student).log
        assert json.loads(folder.folder(student).config.read_text()) and log.stat().st_mtime > teacher
        assert "code in " + str(folder.out / "code") in log.read_text()  # the copy, not the working tree
    result = store.read_result(folder.folder("kd"))
    assert result["provenance"]["git_commit"] or not (ROOT / ".git").exists()
    until(lambda: not folder.queued(), "jobs to leave")
    assert folder() == 0 and not records.tokens(folder.out)  # again: nothing to do, records of what is done are gone
    assert "3 done" in capsys.readouterr().out


def test_each_run_in_its_own_job_where_that_is_asked_for(slurm_here, tmp_path, capsys):
    folder = Folder(tmp_path, settings=hold())
    assert folder("--together", "1") == 3 and len(slurm_here.jobs()) == 3
    assert re.search(r"submitted 2 runs as \d+_\[0-1\], 60 min, after \d+\n", capsys.readouterr().out)


def test_a_killed_worker_of_two_runs_is_replaced_run_by_run(slurm_here, tmp_path):
    """Its job goes on, and the results are those of an undisturbed one."""
    folder = Folder(tmp_path)
    assert folder("--only", "method=teacher", "--wait") == 0
    assert folder() == 3
    students = [folder.folder(method) for method in ("kd", "fitnet")]

    def holder() -> int | None:
        found = [claims.read(student.path) for student in students if student.path.is_dir()]
        return next((found.pid for found in found if found and found.alive), None)

    os.kill(until(holder, "a student to be begun"), signal.SIGKILL)
    assert folder("--wait") == 0
    (log,) = [text for path in folder.out.glob("submitted/*/*.out") if "its worker died" in (text := path.read_text())]
    assert "once more from the checkpoint, alone" in log
    assert essence(folder.out) == do_here(tmp_path / "here", folder.runs().values())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Teacher and kd of the long protocol, done here in one go."""
    path = tmp_path_factory.mktemp("undisturbed")
    runs = [run for run_id, run in Folder(path, protocol=LONG).runs().items() if not run_id.startswith("fitnet")]
    return do_here(path, runs)


def hold(settings: str = SETTINGS) -> str:
    """Jobs that wait until they are released."""
    return settings + "additional: {hold: true}\n"


def test_usr2_requeues_and_the_student_still_waits(slurm_here, undisturbed, tmp_path):
    """What SLURM does before the time limit: checkpoint, requeue, go on; bit for bit, and students wait for the end."""
    folder = Folder(tmp_path, protocol=LONG)
    assert folder("--only", "method=kd") == 3
    teacher, student = folder.folder("vanilla"), folder.folder("kd")
    until(lambda: progressing(teacher), "the teacher to train")
    (job,) = [job for job in slurm_here.jobs() if job.state == "RUNNING"]
    slurm_here.run("scancel", "--signal=USR2", "--batch", job.id)
    until(lambda: slurm_here.job(job.id).state == "PENDING", "the teacher to be requeued")
    assert teacher.last.exists() and not teacher.result.exists() and not list(teacher.path.glob("claim*"))
    assert "stopped, checkpoint written" in teacher.log.read_text()
    assert not student.path.exists()
    assert folder("--only", "method=kd") == 3 and len(slurm_here.jobs()) == 2  # submits nothing twice meanwhile
    slurm_here.start_requeued()
    assert folder("--only", "method=kd", "--wait") == 0
    assert slurm_here.job(job.id).restarts == 1
    assert essence(folder.out) == undisturbed


def test_preempted_by_a_better_partition(slurm_here, tmp_path):
    """SLURM ends the job and requeues it by itself; it goes on from its checkpoint."""
    folder = Folder(tmp_path, protocol=ENDLESS)
    assert folder("--only", "method=teacher") == 3
    teacher = folder.folder("vanilla")
    until(lambda: progressing(teacher), "the teacher to train")
    (job,) = slurm_here.jobs()
    urgent = slurm_here.sbatch("sleep 1", "--partition=urgent", f"--nodelist={job.nodes}", "--exclusive")
    slurm_here.wait(urgent, "COMPLETED")
    assert slurm_here.wait(job.id, "PENDING").reason == "BeginTime" and teacher.last.exists()
    assert "stopped, checkpoint written" in teacher.log.read_text()
    goes_on(slurm_here, teacher, job)


def goes_on(machines, run: store.RunFolder, job: slurms.Job) -> None:
    """The requeued job does the next epochs, not the first ones again."""
    epochs = last_epoch(run)
    machines.start_requeued()
    until(lambda: last_epoch(run) > epochs + 1, "the run to go on")
    assert len(re.findall(r" epoch 1 ", run.log.read_text())) == 1
    assert machines.job(job.id).restarts == 1 and run.log.read_text().count("code in") == 2


def test_students_wait_for_their_own_teacher(slurm_here, tmp_path, capsys):
    grid = tiny.GRID.replace("[resnet8-resnet8]", "[resnet8-resnet8, resnet20-resnet8]")
    folder = Folder(tmp_path, grid=grid, settings=hold() + "classes: [{match: {method: fitnet}, mem_gb: 1}]\n")
    assert folder() == 3
    waits = dict(line.split() for line in slurm_here.run("squeue", "-r", "-h", "--format=%i %E").stdout.splitlines())
    jobs = records.submitted(folder.out)
    assert len(jobs) == 6 == len(waits)
    for run_id, run in folder.runs().items():
        after = f"afterok:{jobs[run.teacher.run_id]}(unfulfilled)" if run.teacher else "(null)"
        assert waits[jobs[run_id]] == after, waits
    capsys.readouterr()
    assert folder() == 3
    assert "SLURM holds jobs back" in capsys.readouterr().out
    assert reproduce.main(["--status", "--out", str(folder.out)]) == 1
    assert f"job {jobs[next(iter(jobs))]}" in capsys.readouterr().out


def test_scancel_then_the_same_command_goes_on(slurm_here, undisturbed, tmp_path, capsys):
    folder = Folder(tmp_path, protocol=LONG)
    assert folder("--only", "method=teacher") == 3
    teacher = folder.folder("vanilla")
    until(lambda: progressing(teacher), "the teacher to train")
    (job,) = slurm_here.jobs()
    slurm_here.run("scancel", job.id)
    capsys.readouterr()
    assert folder("--only", "method=teacher", "--wait") == 0  # at once: the job may still be writing its checkpoint
    assert "1 interrupted" in capsys.readouterr().out and "stopped, checkpoint written" in teacher.log.read_text()
    assert essence(folder.out).items() <= undisturbed.items()


def test_daemons_restarted_and_a_node_lost(slurm_here, tmp_path):
    """slurmctld and slurmd may come and go while a run goes on; a lost node's job is requeued elsewhere."""
    folder = Folder(tmp_path, protocol=ENDLESS)
    assert folder("--only", "method=teacher") == 3
    teacher = folder.folder("vanilla")
    until(lambda: progressing(teacher), "the teacher to train")
    (job,) = slurm_here.jobs()
    slurm_here.restart_slurmctld()
    slurm_here.restart_slurmd(job.nodes)
    epochs = last_epoch(teacher)
    until(lambda: last_epoch(teacher) > epochs + 1, "the teacher to go on")
    assert teacher.log.read_text().count("code in") == 1
    assert folder("--only", "method=teacher") == 3 and len(slurm_here.jobs()) == 1
    slurm_here.node_down(job.nodes)
    until(lambda: slurm_here.job(job.id).state == "PENDING", "the job to be requeued")
    goes_on(slurm_here, teacher, job)
    assert slurm_here.job(job.id).nodes != job.nodes


def test_a_failing_teacher_blocks_its_students_only(slurm_here, tmp_path, capsys):
    broken = tiny.PROTOCOL + "teachers: {lr: 1.0e+30}\n"
    folder = Folder(tmp_path, protocol=broken, settings=SETTINGS + "classes: [{match: {method: kd}, mem_gb: 1}]\n")
    assert folder("--wait") == 1
    said = capsys.readouterr().out
    assert said.count("BLOCKED") == 2 and said.count("FAILED") == 1 and "loss is not finite" in said
    assert set(essence(folder.out)) == {run_id for run_id in folder.runs() if run_id.startswith("vanilla")} - {
        next(path.parent.name for path in folder.out.glob("runs/*/error.json"))
    }
    until(lambda: not slurm_here.jobs(), "the students' jobs to be removed")
    assert folder() == 1 and not records.tokens(folder.out)  # failed is failed, and blocked runs are not submitted
    assert folder("--retry-failed") == 3  # the teacher again, and its students after it
    assert len(slurm_here.jobs()) == 3


def test_arrays_are_split_where_the_cluster_ends(machines, tmp_path, monkeypatch, capsys):
    """8 runs on a cluster whose arrays have 3 tasks at most: cancelled, twice; submitted again and done."""
    with slurms.Cluster(tmp_path / "slurm", max_array_size=3) as small:
        reach(small, monkeypatch)
        folder = Folder(tmp_path, settings=hold())
        wanted = ("--only", "method=student", "--seeds", "8")
        assert folder(*wanted) == 3
        assert len(small.jobs()) == 8
        said = capsys.readouterr().out
        assert re.findall(r"submitted (\d+) runs? as \d+_\[0-(\d)\]", said) == [("3", "2"), ("3", "2"), ("2", "1")]
        cancel = ["--cancel", "--out", str(folder.out)]
        assert reproduce.main(cancel) == 0 and reproduce.main(cancel) == 0
        said = capsys.readouterr().out
        assert "cancelled 8 runs in 3 jobs" in said and "nothing to cancel" in said
        assert not small.jobs() and not records.tokens(folder.out)
        folder.cluster.write_text(SETTINGS)
        assert folder(*wanted, "--wait") == 0
        said = capsys.readouterr().out
        assert said.count("submitted ") == 3 and "[8/8]" in said and len(essence(folder.out)) == 8


def test_accounting_does_not_matter(tmp_path, monkeypatch):
    slurms.require(accounting=True)
    with slurms.Cluster(tmp_path / "slurm", accounting=True) as counted:
        reach(counted, monkeypatch)
        folder = Folder(tmp_path)
        assert folder("--only", "method=teacher", "--wait") == 0
        until(lambda: "COMPLETED" in counted.run("sacct", "--noheader", "--format=state").stdout, "the job in sacct")


def test_two_submissions_at_once(slurm_here, tmp_path):
    folder = Folder(tmp_path, settings=hold() + "together: 1\n")
    command = [sys.executable, str(ROOT / "reproduce.py"), *folder.arguments("--seeds", "3")]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [process.communicate(timeout=TIMEOUT_S)[0] for process in pair]
    assert [process.returncode for process in pair] == [3, 3], said
    assert sorted(text.count("submitted") for text in said) == [0, 2], said
    assert len(slurm_here.jobs()) == 9 and all("in the queue: 9 of 9 runs to do" in text for text in said)


def test_a_driver_killed_around_sbatch_is_healed(slurm_here, tmp_path, capsys):
    """A record without job ids: the whole job is taken over, a half made one is replaced, none is submitted again."""
    folder = Folder(tmp_path, settings=hold())
    assert folder("--seeds", "2") == 3
    jobs = {job.id for job in slurm_here.jobs()}
    before = {record.token: record for record in records.read(folder.out)}

    def kill_before_the_ids() -> None:
        for record in records.read(folder.out):
            records.write(folder.out, records.Record(record.token, record.user, record.tasks))

    kill_before_the_ids()
    assert records.submitted(folder.out) and folder("--seeds", "2") == 3
    assert {job.id for job in slurm_here.jobs()} == jobs
    assert {record.token: record for record in records.read(folder.out)} == before

    kill_before_the_ids()  # ... and before submitit had put the last task where its job looks for it
    victim = next(record for record in before.values() if len(record.tasks) > 1)
    (records.logs(folder.out, victim.token) / f"{victim.jobs[-1]}_submitted.pkl").unlink()
    assert folder("--seeds", "2") == 3
    until(lambda: len(slurm_here.jobs()) == len(jobs), "the half made job to be gone")
    left = {job.id for job in slurm_here.jobs()}
    assert not left & set(victim.jobs) and left >= jobs - set(victim.jobs)
    assert not (records.logs(folder.out, victim.token)).exists()

    name = "0123456789ab"  # killed before sbatch
    records.write(folder.out, records.Record(name, victim.user, (("kd-x",),)))
    (folder.out / "submitted" / "ba9876543210.json").write_text("{")  # a damaged one
    capsys.readouterr()
    assert folder("--seeds", "2") == 3 and {job.id for job in slurm_here.jobs()} == left
    assert name not in records.tokens(folder.out) and "is damaged: removed" in capsys.readouterr().out


def test_ctrl_c_while_following_leaves_the_jobs(slurm_here, tmp_path, capsys):
    folder = Folder(tmp_path, settings=hold())
    threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert folder("--wait") == 3
    said = capsys.readouterr().out
    assert "the jobs go on, --cancel ends them" in said and "stopped early: interrupted" in said
    assert len(slurm_here.jobs()) == 2


def test_jobs_that_leave_without_a_result_are_said(slurm_here, tmp_path, capsys):
    folder = Folder(tmp_path, settings=hold())
    threading.Timer(3, slurm_here.run, ("scancel", "--user=root")).start()
    assert folder("--wait") == 3
    assert "stopped early: 3 runs left the queue without a result" in capsys.readouterr().out


def test_a_job_without_its_record_does_nothing(slurm_here, tmp_path):
    folder = Folder(tmp_path, settings=hold())
    assert folder("--only", "method=teacher") == 3
    (record,) = records.read(folder.out)
    records.remove(folder.out, record.token, keep_logs=True)
    slurm_here.run("scontrol", "release", *record.jobs)
    slurm_here.wait(record.jobs[0], "COMPLETED")
    assert not folder.folder("vanilla").path.exists()
    (log,) = records.logs(folder.out, record.token).glob("*.out")
    assert "nothing to do" in log.read_text()


def test_squeue_that_does_not_answer(slurm_here, tmp_path, monkeypatch, capsys):
    folder = Folder(tmp_path, settings=hold())
    assert folder() == 3
    broken = tmp_path / "bin" / "squeue"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
        capsys.readouterr()
        assert folder() == 3
        said = capsys.readouterr().out
        assert (
            "squeue does not answer: 3 runs submitted earlier counted as queued" in said
            and "submitted " not in said[said.index("squeue does not answer") + 60 :]
        )
        assert reproduce.main(["--cancel", "--out", str(folder.out)]) == 0
        assert "SLURM does not answer: 2 submissions are forgotten" in capsys.readouterr().out
    assert folder() == 3 and len(folder.queued()) == 2


def test_code_changed_after_submission_does_not_reach_the_job(slurm_here, tmp_path, monkeypatch):
    for part in ("bench", "jobs", "methods", "zoo"):
        shutil.copytree(ROOT / part, tmp_path / "code" / part)
    monkeypatch.setattr(snapshot, "ROOT", tmp_path / "code")
    folder = Folder(tmp_path, settings=hold())
    assert folder("--only", "method=teacher") == 3
    for path in (tmp_path / "code").glob("*/*.py"):
        path.write_text("raise SystemExit('changed after submission')\n")
    (job,) = slurm_here.jobs()
    slurm_here.run("scontrol", "release", job.id)
    slurm_here.wait(job.id, "COMPLETED", "FAILED")
    assert folder.folder("vanilla").result.exists()
    assert snapshot.take(folder.out) == snapshot.take(folder.out) and len([*folder.out.glob("code/*")]) == 2


def test_failed_runs_of_a_busy_job_are_forgotten(slurm_here, tmp_path, capsys):
    """--retry-failed submits a run again although its first job still has others to do; --force waits for --cancel."""
    folder = Folder(tmp_path, settings=hold() + "runs_per_job: 9\n")
    only = ["--only", "method=student", "--seeds", "1,2,3"]
    assert folder(*only) == 3
    (job,) = slurm_here.jobs()
    victim = sorted(records.submitted(folder.out))[0]
    failed = store.run_folder(folder.out, victim)
    failed.path.mkdir(parents=True)
    record_failure(failed, "made up", "")
    assert folder(*only, "--retry-failed") == 3
    assert len(slurm_here.jobs()) == 2 and records.submitted(folder.out)[victim] != job.id
    refused(capsys, folder, "is in the queue as job", *only, "--force", quiet=False)


BAD = {  # name -> (cluster file, what the line must hold)
    "unknown key": ("partitoin: main", 'did you mean "partition"'),
    "wrong type": ("gpus: 1.5", "gpus"),
    "base-60 number": ("timeout_min: 10:30", "timeout_min"),
    "truth value as text": ("runs_per_job: yes", "runs_per_job"),
    "none": ("array_parallelism: 0", "array_parallelism"),
    "not keys": ("- partition", "keys and values"),
    "class without match": ("classes: [{gpus: 1}]", '"classes.0.match" is missing'),
    "class for nothing": ("classes: [{match: {}, gpus: 1}]", "match"),
    "misspelt method": ("classes: [{match: {method: vanila}}]", 'did you mean "vanilla"'),
    "misspelt architecture": ("classes: [{match: {student: resnet08}}]", 'did you mean "resnet8"'),
    "ours": ("additional: {array: 0-9}", '"array" has no place'),
    "ours by another name": ("additional: {cpus_per_task: 2}", "use cpus_per_task"),
    "signal after the limit": ("timeout_min: 1\nsignal_delay_s: 90", "signal_delay_s"),
    "signal after a class's limit": ("classes: [{match: {method: kd}, timeout_min: 1}]", "signal_delay_s"),
}
REFUSED = {
    "partition": ("gpus: 0\npartition: mian", "invalid partition specified: mian"),
    "gpus": ("gpus: 1", "Invalid generic resource (gres) specification; this cluster has no GPUs: add --device cpu"),
    "constraint": ("gpus: 0\nconstraint: big", "Invalid feature"),
    "option": ("gpus: 0\nadditional: {bogus: 1}", "unrecognized option '--bogus=1'"),
    "class": ("gpus: 0\nclasses: [{match: {method: kd}, constraint: big}]", "Invalid feature"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_cluster_file_gets_one_line_and_exit_2(tmp_path, monkeypatch, capsys, name):
    text, says = BAD[name]
    with_sbatch(tmp_path, monkeypatch)
    refused(capsys, Folder(tmp_path, settings=text), says)


@pytest.mark.parametrize("name", REFUSED)
def test_what_slurm_refuses_gets_one_line_and_exit_2(slurm_here, tmp_path, capsys, name):
    text, says = REFUSED[name]
    refused(capsys, Folder(tmp_path, settings=text), says)
    assert not slurm_here.jobs()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--time-budget", "5"], "timeout_min"),
        (["--slots", "2"], "runs_per_job"),
        (["--device", "cuda:1"], "cuda:1"),
        (["--cluster", "exmaple"], 'did you mean "example"'),
        (["--cluster", "no/such.yaml"], "no/such.yaml"),
        (["--precision", "tf32", "--device", "cpu"], "tf32"),
    ],
)
def test_what_does_not_go_with_slurm(tmp_path, monkeypatch, capsys, arguments, says):
    with_sbatch(tmp_path, monkeypatch)
    refused(capsys, Folder(tmp_path), says, *arguments)


def test_without_slurm(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(capsys, Folder(tmp_path), "there is no sbatch here")
    refused(capsys, Folder(tmp_path), "--cluster is for SLURM", "--executor", "auto")
    (tmp_path / "runs").mkdir()
    assert reproduce.main(["--cancel", "--out", str(tmp_path)]) == 0


def with_sbatch(tmp_path: Path, monkeypatch) -> None:
    """A machine with SLURM's commands, none of which works."""
    for name in ("sbatch", "srun", "squeue", "scontrol"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('#!/bin/sh\n[ "$1" = --version ]\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def refused(capsys, folder: Folder, says: str, *arguments: str, quiet: bool = True) -> None:
    capsys.readouterr()
    status = folder(*arguments)
    said = capsys.readouterr()
    assert status == 2 and says in said.err and said.err.count("\n") == 1 and said.err.startswith("error: "), said
    assert not quiet or (not list(folder.out.glob("submitted/*")) and not list(folder.out.glob("runs/*")))
