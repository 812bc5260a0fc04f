"""A real SLURM as sites have it: typed GPUs, several clusters, plug-ins that change jobs, people with variables set."""

from __future__ import annotations

import pickle
import re

import pytest

import reproduce
from jobs.slurm import follow, given, records, scheduler
from jobs.slurm import submission as slurm
from tests.jobs import cluster as slurms
from tests.jobs.slurm.test_programs import HOSTILE
from tests.jobs.slurm.test_submission import Folder, hold, reach, refused

HELD = "cpus_per_task: 1\ntimeout_min: 60\nsignal_delay_s: 30\nadditional: {hold: true}\n"
STUDENT = ("--only", "method=student", "--together", "1")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(follow, "LOOK_S", 0.2)
    monkeypatch.setattr(follow, "ASK_S", 2.0)


@pytest.fixture(scope="module")
def gpus(tmp_path_factory):
    """A cluster whose nodes have two GPUs of a type."""
    slurms.require()
    with slurms.Cluster(tmp_path_factory.mktemp("gpus"), gpus="a100:2") as running:
        yield running


@pytest.fixture
def gpus_here(gpus, monkeypatch):
    yield reach(gpus, monkeypatch)
    gpus.run("scancel", "--user=root", check=False)


def values(machines, job: str) -> dict[str, str]:
    return given.fields(machines.run("scontrol", "--oneliner", "show", "job", job).stdout.splitlines()[0])


def submitted_task(folder: Folder):
    (record,) = records.read(folder.out)
    with open(records.logs(folder.out, record.token) / f"{record.jobs[0]}_submitted.pkl", "rb") as file:
        return record, pickle.load(file).function


@pytest.mark.parametrize(
    "asks",
    [
        "gpus: 1",
        "gpus: a100:1",
        "gres: gpu:a100:1",
        "gpus_per_node: a100:1",
        "additional: {hold: true, gres: 'gpu:a100:1'}",
        "additional: {hold: true, --gpus: a100:1}",
    ],
)
def test_gpus_as_sites_want_them_asked_for(gpus_here, tmp_path, capsys, asks):
    settings = HELD if "additional" not in asks else HELD.replace("additional: {hold: true}\n", "")
    folder = Folder(tmp_path, settings=f"{settings}{asks}\n")
    assert folder(*STUDENT) == 3
    record, task = submitted_task(folder)
    count, types = given.gpus(values(gpus_here, record.jobs[0]))
    assert (count, types) == (1, {"a100"} if "a100" in asks else set()) and task.post.device == "cuda"
    assert "SLURM made of" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asks", "says"),
    [
        ("gpus: v100:1", "it has a100 GPUs (partition main): write gpus: a100:1 in the cluster file"),
        ("gpus: 0\ngres: gpu:a100:1", "contradict each other: write gpus: a100:1 and leave gres out"),
    ],
)
def test_gpus_that_are_refused(gpus_here, tmp_path, capsys, asks, says):
    refused(capsys, Folder(tmp_path, settings=f"timeout_min: 60\n{asks}\n"), says)
    assert not gpus_here.jobs()


def test_a_job_without_a_gpu_where_there_are_some_is_said(gpus_here, tmp_path, capsys):
    folder = Folder(tmp_path, settings=HELD + "gpus: 0\n")
    assert folder(*STUDENT) == 3
    assert "though there are a100 GPUs (partition main): gpus: a100:1 asks for one" in capsys.readouterr().out


def test_a_job_whose_gpu_is_none_trains_nothing_and_says_so(gpus_here, tmp_path, capsys):
    """The files that this SLURM hands out are no GPUs: as on a node whose driver is broken."""
    folder = Folder(tmp_path, settings=HELD.replace("additional: {hold: true}", "setup: export CUDA_VISIBLE_DEVICES="))
    assert folder(*STUDENT, "--wait") == 3
    said = capsys.readouterr().out
    assert "left the queue without a result (no run of this job was done: it is to train on a GPU" in said
    assert "(SLURM gave it 1)" in said and not list(folder.out.glob("runs/*/error.json"))
    assert not list(folder.out.glob("runs/*/result.json"))


def test_a_job_is_what_the_cluster_file_says(gpus_here, tmp_path, monkeypatch, capsys):
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    folder = Folder(tmp_path, settings=HELD + "partition: main\ngpus: 1\nmem_gb: 2\n")
    assert folder(*STUDENT) == 3
    assert "not taken from the environment: SBATCH_" in capsys.readouterr().out
    record, _ = submitted_task(folder)
    found = values(gpus_here, record.jobs[0])
    assert (
        found.items()
        >= {
            **{"Partition": "main", "TimeLimit": "01:00:00", "Requeue": "1", "CPUs/Task": "1"},
            **{"MinMemoryNode": "2G", "TresPerNode": "gres:gpu:1", "JobName": record.name},
        }.items()
    )
    assert len(folder.queued()) == 1 and folder(*STUDENT) == 3  # squeue is asked what we ask it
    assert len(gpus_here.jobs()) == 1
    assert reproduce.main(["--cancel", "--out", str(folder.out)]) == 0
    assert "cancelled 1 run in 1 job\n" in capsys.readouterr().out and not gpus_here.jobs()


LUA = """
function slurm_job_submit(job, partitions, uid)
    job.partition = "urgent"
    job.time_limit = 30
    return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, uid)
    return slurm.SUCCESS
end
"""


def test_two_clusters_of_one_login_and_a_plug_in(tmp_path, monkeypatch, capsys):
    """Job 1 of one is not job 1 of the other: followed, cancelled, not submitted twice; what a plug-in made is said."""
    slurms.require(accounting=True)
    (tmp_path / "alpha").mkdir()
    (tmp_path / "alpha" / "job_submit.lua").write_text(LUA)
    with (
        slurms.Cluster(tmp_path / "alpha", accounting=True, name="alpha", conf="JobSubmitPlugins=lua\n") as alpha,
        slurms.Cluster(tmp_path / "beta", name="beta", partner=alpha) as beta,
    ):
        reach(alpha, monkeypatch)
        settings = hold() + "partition: main\nclasses: [{match: {method: teacher}, clusters: beta}]\n"
        folder = Folder(tmp_path, settings=settings)
        assert folder("--only", "method=kd") == 3
        said = capsys.readouterr().out
        job = re.search(r"submitted 1 run as (\d+) on main of cluster beta, 60 min\n", said)[1]
        assert f"1 run with a teacher on another cluster, as job {job}@beta: the same command submits" in said
        assert "in the queue: 1 of 2 runs to do" in said
        assert "SLURM made of" not in said and len(beta.jobs()) == 1 and not alpha.jobs()

        other = Folder(tmp_path / "other", settings=hold() + "partition: main\nclusters: alpha\n")
        assert other(*STUDENT) == 3
        said = capsys.readouterr().out
        assert "partition urgent (asked for main); time limit 00:30:00 (asked for 60 min)\n" in said
        (job,) = alpha.jobs()
        assert {*records.submitted(other.out).values()} == {f"{job.id}@alpha"}

        half = records.read(other.out)[0]  # its driver died before it knew which cluster took the job
        records.write(other.out, records.Record(half.token, half.user, half.tasks, None, "alpha,beta"))
        assert other(*STUDENT) == 3 and folder("--only", "method=kd") == 3
        assert records.read(other.out) == [half]
        assert len(alpha.jobs()) == 1 and len(beta.jobs()) == 1  # nothing twice

        monkeypatch.setattr(slurm, "COMPLETING_WAIT_S", 10.0)
        assert reproduce.main(["--cancel", "--out", str(folder.out)]) == 0
        assert not beta.jobs() and len(alpha.jobs()) == 1
        assert reproduce.main(["--cancel", "--out", str(other.out)]) == 0
        assert not alpha.jobs() and scheduler.queue(records.read(other.out)) == {}
