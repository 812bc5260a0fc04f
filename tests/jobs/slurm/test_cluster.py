"""The private SLURM: what tests of jobs take for granted about it, and that it leaves nothing behind.

Up to two minutes, most of them the time limit's (SLURM looks at limits every 30 s) and the delay of requeued jobs.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs import cluster as clusters
from tests.jobs.cluster import Cluster

ROOT = Path(__file__).parents[3]
# Ends when run again. `exec`, as a shell that outlives its child for a moment writes "Terminated" into the output.
TWICE = 'echo run ${SLURM_RESTART_COUNT:-0}; [ -n "$SLURM_RESTART_COUNT" ] || exec sleep 1000'
# Where SLURM, munge and MariaDB write unless told otherwise.
SYSTEM = [
    *("/etc/slurm", "/etc/munge", "/etc/mysql", "/run/munge", "/run/mysqld", "/run/slurm", "/var/lib/munge"),
    *("/var/lib/mysql", "/var/lib/slurm", "/var/log/munge", "/var/log/mysql", "/var/log/slurm", "/var/spool"),
]


@pytest.fixture(scope="module")
def limited(tmp_path_factory) -> Iterator[tuple[Cluster, str]]:
    """A job about to meet its time limit, in a cluster of its own that no other test disturbs."""
    clusters.require()
    with Cluster(tmp_path_factory.mktemp("limited")) as slurm:
        job = slurm.sbatch("trap 'echo warned' USR2; while :; do sleep 0.2; done", "--time=5", "--signal=B:USR2@10")
        slurm.wait(job, "RUNNING")
        # --time counts whole minutes, an end may be set to the second.
        end = datetime.datetime.now() + datetime.timedelta(seconds=40)
        slurm.run("scontrol", "update", f"jobid={job}", f"EndTime={end:%Y-%m-%dT%H:%M:%S}")
        yield slurm, job


@pytest.fixture(scope="module")
def shared(limited, tmp_path_factory) -> Iterator[Cluster]:
    """After `limited`, so that its minute passes during the other tests."""
    with Cluster(tmp_path_factory.mktemp("shared"), nodes=2, max_array_size=4) as slurm:
        yield slurm


@pytest.fixture
def slurm(shared) -> Iterator[Cluster]:
    shared.wait_idle()
    yield shared
    shared.run("scancel", "--user=root")


def output(slurm: Cluster, job: str) -> list[str]:
    """Lines of a job's output, without SLURM's own."""
    lines = (slurm.folder / f"slurm-{job}.out").read_text().splitlines()
    return [line for line in lines if not line.startswith("slurmstepd")]


def wait_for_line(slurm: Cluster, job: str, line: str) -> None:
    path = slurm.folder / f"slurm-{job}.out"
    slurm.until(lambda: path.exists() and line in output(slurm, job), f"{line!r} from job {job}")


def test_a_job_runs_and_its_output_is_there(slurm):
    job = slurm.sbatch("echo $SLURM_JOB_ID on $SLURMD_NODENAME; exit 3", "--nodelist=n2")
    assert slurm.wait(job, "COMPLETED", "FAILED").state == "FAILED"
    assert output(slurm, job) == [f"{job} on n2"]


def test_steps_run_on_both_nodes(slurm):
    done = slurm.run("srun", "--nodes=2", "--ntasks=2", "sh", "-c", "echo $SLURMD_NODENAME")
    assert sorted(done.stdout.split()) == ["n1", "n2"]


def test_many_small_jobs_run_at_once(slurm):
    """More than the machine may have CPUs."""
    jobs = [slurm.sbatch("sleep 1000") for _ in range(16)]
    for job in jobs:
        slurm.wait(job, "RUNNING")


def test_array_tasks_have_ids_and_outputs_of_their_own(slurm):
    array = slurm.sbatch("echo task $SLURM_ARRAY_TASK_ID of $SLURM_ARRAY_JOB_ID is $SLURM_JOB_ID", "--array=0-2")
    jobs = [slurm.wait(f"{array}_{task}", "COMPLETED") for task in range(3)]
    for task, job in enumerate(jobs):
        assert output(slurm, job.id) == [f"task {task} of {array} is {job.number}"]
    assert len({job.number for job in jobs}) == 3


def test_array_size_is_limited(slurm):
    assert slurm.run("sbatch", "--array=0-3", "--wrap=true", "--output=/dev/null", check=False).returncode == 0
    refused = slurm.run("sbatch", "--array=0-4", "--wrap=true", check=False)
    assert refused.returncode != 0
    assert "Invalid job array specification" in refused.stderr


def test_children_of_a_failed_task_are_removed_or_wait_forever(slurm):
    array = slurm.sbatch("sleep 1; exit $SLURM_ARRAY_TASK_ID", "--array=0-1")
    child = slurm.sbatch("true", f"--dependency=afterok:{array}_0", "--kill-on-invalid-dep=yes")
    removed = slurm.sbatch("true", f"--dependency=afterok:{array}_1", "--kill-on-invalid-dep=yes")
    kept = slurm.sbatch("true", f"--dependency=afterok:{array}_1")
    assert slurm.wait(child, "COMPLETED", "CANCELLED").state == "COMPLETED"
    assert slurm.wait(removed, "COMPLETED", "CANCELLED").state == "CANCELLED"
    assert (slurm.job(kept).state, slurm.job(kept).reason) == ("PENDING", "DependencyNeverSatisfied")


def test_a_dependency_on_a_forgotten_job_counts_as_met(tmp_path):
    """Even `afterok` of a job that failed: who submits children late has to look at the parent's result itself."""
    clusters.require()
    with Cluster(tmp_path, min_job_age_s=2) as slurm:
        failed = slurm.sbatch("exit 1")
        slurm.until(lambda: slurm.job(failed) is None, f"job {failed} to be forgotten")
        child = slurm.sbatch("echo child", f"--dependency=afterok:{failed}", "--kill-on-invalid-dep=yes")
        wait_for_line(slurm, child, "child")


def test_requeue_runs_a_job_again(slurm):
    job = slurm.sbatch(TWICE, "--open-mode=append")
    wait_for_line(slurm, job, "run 0")
    slurm.run("scontrol", "requeue", job)
    assert slurm.wait(job, "COMPLETED").restarts == 1
    assert output(slurm, job) == ["run 0", "run 1"]


def test_signals_reach_steps_or_the_batch_script_as_asked(slurm):
    shell = "trap 'echo {} got it' USR2; echo {} ready; while :; do sleep 0.1; done"
    step = f'srun --quiet sh -c "{shell.format("step", "step")}" &'
    job = slurm.sbatch(f"{step} {shell.format('script', 'script')}")
    wait_for_line(slurm, job, "step ready")
    wait_for_line(slurm, job, "script ready")
    slurm.run("scancel", "--signal=USR2", job)
    wait_for_line(slurm, job, "step got it")
    assert "script got it" not in output(slurm, job)
    slurm.run("scancel", "--signal=USR2", "--batch", job)
    wait_for_line(slurm, job, "script got it")
    assert output(slurm, job).count("step got it") == 1


@pytest.mark.parametrize("daemon", ["slurmctld", "slurmd"])
def test_a_running_job_survives_the_restart_of(slurm, daemon):
    job = slurm.sbatch("echo started; until [ -e go ]; do sleep 0.1; done; rm go; echo ended", "--nodelist=n1")
    wait_for_line(slurm, job, "started")
    if daemon == "slurmctld":
        slurm.restart_slurmctld()
    else:
        slurm.kill_slurmd("n1")
        slurm.start_slurmd("n1")
    assert slurm.job(job).state == "RUNNING"
    (slurm.folder / "go").touch()
    assert slurm.wait(job, "COMPLETED").restarts == 0
    assert output(slurm, job) == ["started", "ended"]


def test_slurmctld_stopped_and_started_knows_what_ended_meanwhile(slurm):
    job = slurm.sbatch("echo started; until [ -e go ]; do sleep 0.1; done; rm go; echo ended; exit 1")
    wait_for_line(slurm, job, "started")
    slurm.stop_slurmctld()
    assert slurm.run("scontrol", "ping", check=False).returncode != 0
    (slurm.folder / "go").touch()
    wait_for_line(slurm, job, "ended")
    slurm.start_slurmctld()
    assert slurm.wait(job, "COMPLETED", "FAILED").state == "FAILED"


def test_jobs_of_a_lost_node_are_requeued_until_it_is_back(slurm):
    job = slurm.sbatch(TWICE, "--open-mode=append", "--nodelist=n1")
    forbidding = slurm.sbatch(TWICE, "--no-requeue", "--nodelist=n1")
    elsewhere = slurm.sbatch("sleep 1000", "--nodelist=n2")
    wait_for_line(slurm, job, "run 0")
    wait_for_line(slurm, forbidding, "run 0")
    slurm.wait(elsewhere, "RUNNING")
    slurm.node_down("n1")
    slurm.wait(job, "PENDING")
    slurm.wait(forbidding, "NODE_FAIL")
    slurm.node_up("n1")
    assert slurm.wait(job, "COMPLETED").restarts == 1
    assert output(slurm, job) == ["run 0", "run 1"]
    assert slurm.job(elsewhere).restarts == 0


def test_urgent_jobs_preempt_and_requeue_others(slurm):
    job = slurm.sbatch(TWICE, "--open-mode=append", "--nodes=2", "--exclusive")
    wait_for_line(slurm, job, "run 0")
    urgent = slurm.sbatch("true", "--partition=urgent", "--nodes=2", "--exclusive")
    slurm.wait(urgent, "COMPLETED")
    assert slurm.wait(job, "COMPLETED").restarts == 1
    assert output(slurm, job) == ["run 0", "run 1"]


def test_after_a_reboot_jobs_run_again(tmp_path):
    """With or without a SLURM_RESTART_COUNT: slurmctld may not have saved yet that the job had begun."""
    clusters.require()
    slurm = Cluster(tmp_path)
    with slurm:
        job = slurm.sbatch("echo run; [ -e begun ] || { touch begun; exec sleep 1000; }", "--open-mode=append")
        wait_for_line(slurm, job, "run")
        slurm.until((tmp_path / "begun").exists, "the job to begin")
    with slurm:
        slurm.wait(job, "COMPLETED")
        assert output(slurm, job) == ["run", "run"]


def through_submitit(slurm: Cluster, *lines: str) -> str:
    """What `lines`, given the submitted `jobs` 2**10 and 3**2, print."""
    if "CI" in os.environ:
        importlib.import_module("submitit")
    else:
        pytest.importorskip("submitit", reason="needs the extra `slurm`")
    program = """
import time, submitit
executor = submitit.AutoExecutor("submitit", cluster="slurm")
executor.update_parameters(timeout_min=5)
jobs = executor.map_array(pow, [2, 3], [10, 2])
"""
    # In a process of its own, because submitit asks about the job ids of all clusters its process has known.
    return slurm.run(sys.executable, "-c", program + "\n".join(lines), timeout=60).stdout


def test_submitit_runs_functions(slurm):
    assert "[1024, 9]" in through_submitit(slurm, "print([job.result() for job in jobs])")


def test_without_accounting_sacct_fails(slurm):
    done = slurm.run("sacct", check=False)
    assert done.returncode != 0
    assert "accounting storage is disabled" in done.stderr


def test_with_accounting_sacct_knows_finished_jobs(tmp_path):
    clusters.require(accounting=True)
    with Cluster(tmp_path, accounting=True) as slurm:
        jobs = {slurm.sbatch("exit 0"): "COMPLETED", slurm.sbatch("exit 1"): "FAILED"}

        def states() -> dict[str, str]:
            lines = slurm.run("sacct", "-nPX", "--format=JobID,State").stdout.splitlines()
            return dict(line.split("|") for line in lines)

        slurm.until(lambda: states() == jobs, f"sacct to say {jobs}")
        states_by_submitit = "{job.get_info(mode='force').get('State') for job in jobs}"
        lines = f"while {states_by_submitit} != {{'COMPLETED'}}: time.sleep(0.5)", "print('agreed')"
        assert "agreed" in through_submitit(slurm, *lines)


def test_clusters_side_by_side_know_nothing_of_each_other(slurm, tmp_path):
    with Cluster(tmp_path) as other:
        job = other.sbatch("sleep 1000", "--job-name=mine")
        other.wait(job, "RUNNING")
        assert [job.name for job in other.jobs()] == ["mine"]
        assert slurm.jobs() == []


def processes(scratch: Path) -> set[str]:
    """Names of running processes that carry the path of `scratch` in their environment or command line."""
    names = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            if os.fsencode(scratch) in words:
                names.add((process / "comm").read_text().strip())
    return names


def system_files() -> dict[Path, int]:
    paths = [Path(folder) for folder in SYSTEM]
    return {path: path.lstat().st_mtime_ns for top in paths if top.exists() for path in [top, *top.rglob("*")]}


@pytest.mark.parametrize("end", ["regular", signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(end):
    clusters.require()
    # Not tmp_path, which only its owner may enter: munged refuses to put its socket there.
    scratch = Path(tempfile.mkdtemp(prefix="c"))
    scratch.chmod(0o755)
    before = system_files()
    script = """
        job=$(sbatch --parsable --output=/dev/null --wrap 'setsid sleep 1000 & exec sleep 1000')
        until squeue --noheader --states=RUNNING | grep -q .; do sleep 0.1; done
        echo ready; read line; exit 3"""
    holder = subprocess.Popen(
        [sys.executable, "-m", "tests.jobs.cluster", "--", "sh", "-c", script],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(scratch)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert holder.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 20
        while not processes(scratch) >= {"munged", "slurmctld", "slurmd", "slurmstepd", "sleep"}:
            assert time.monotonic() < deadline, processes(scratch)
            time.sleep(0.1)
        if end == "regular":
            holder.communicate("\n")
            assert holder.returncode == 3
            assert processes(scratch) == set()
            assert list(scratch.iterdir()) == []
        else:
            os.killpg(holder.pid, end)
            holder.communicate()
            deadline = time.monotonic() + 20
            while processes(scratch) or list(scratch.glob("slurm*")):
                assert time.monotonic() < deadline, processes(scratch)
                time.sleep(0.1)
        assert system_files() == before
    finally:
        holder.kill()
        holder.communicate()
        shutil.rmtree(scratch)


def test_a_cluster_that_does_not_start_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    clusters.require()
    monkeypatch.setattr(clusters, "_NODE", "NodeName={name} Nonsense={host} CPUs=x\n")
    with pytest.raises(RuntimeError, match=r"slurmctld died(.|\n)*Nonsense"):
        Cluster(tmp_path).__enter__()
    assert processes(tmp_path) == set()


def test_what_is_missing_skips_the_tests_but_fails_them_under_ci(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(clusters, "_SEARCH", "/nowhere")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"no sbatch, .*install_slurm\.sh"):
        clusters.require()
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="no sbatch"):
        clusters.require()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(pytest.fail.Exception, match="root"):
        clusters.require()


def test_time_limit_warns_then_kills(limited):
    """Last, as SLURM needs up to a minute for it."""
    slurm, job = limited
    slurm.wait(job, "TIMEOUT", timeout_s=120)
    lines = (slurm.folder / f"slurm-{job}.out").read_text()
    assert 0 <= lines.find("warned") < lines.find("DUE TO TIME LIMIT")
