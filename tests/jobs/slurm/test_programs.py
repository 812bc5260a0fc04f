"""What a person's environment may say to SLURM's programs, and what a silent or broken one does. Stubs, no SLURM."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import reproduce
from jobs.child import Post
from jobs.slurm import cluster as clusters
from jobs.slurm import given, programs, records, scheduler, site, task
from tests import tiny
from tests.jobs.stub import Stub
from zoo.errors import BadInput

ROOT = Path(__file__).parents[3]
PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun")
HOSTILE = {  # SLURM's own names, and some of the shell that no job should start with
    **{"SBATCH_TIMELIMIT": "1", "SBATCH_GPUS": "8", "SBATCH_ARRAY_INX": "0-99", "SBATCH_EXPORT": "NONE"},
    **{
        "SBATCH_NO_REQUEUE": "1",
        "SBATCH_WAIT": "1",
        "SBATCH_CLUSTERS": "moon",
        "SBATCH_OUTPUT": "/x",
        "SLURM_HINT": "x",
    },
    **{"SQUEUE_FORMAT": "%u", "SQUEUE_STATES": "COMPLETED", "SQUEUE_USERS": "nobody", "SQUEUE_SORT": "x"},
    **{"SCANCEL_INTERACTIVE": "1", "SCANCEL_NAME": "x", "SCANCEL_STATE": "PENDING", "SCONTROL_FUTURE": "1"},
    **{"SINFO_FORMAT": "%u", "SINFO_PARTITION": "x", "SLURM_CLUSTERS": "moon", "SLURM_TIME_FORMAT": "relative"},
    **{"SLURM_NTASKS": "7", "SLURM_JOB_ID": "9", "SLURM_CPUS_PER_TASK": "5", "SRUN_EXPORT_ENV": "NONE"},
    **{"SLURM_EXIT_ERROR": "0", "SLURM_BITSTR_LEN": "1", "SALLOC_ACCOUNT": "x", "_SLURM_SPANK_OPTION_a": "b"},
    **{"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "77", "MKL_NUM_THREADS": "77", "NVIDIA_TF32_OVERRIDE": "1"},
    **{"PYTHONSAFEPATH": "1", "MPLBACKEND": "module://nothing", "KMP_AFFINITY": "none", "SLURM_HINT": "x"},
}
KEPT = {
    "SLURM_CONF": "/x/slurm.conf",
    "SLURM_JWT": "token",
    "CIFAR100_ROOT": "/data",
    "https_proxy": "p",
    "LMOD_CMD": "l",
}


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """SLURM's programs as stubs that write down how they are called; returns what makes them answer otherwise."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def answer(program: str, lines: str) -> None:
        code = (
            f"import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]), file=open({str(tmp_path)!r} + "
        )
        record = f"{code}'/{program}.jsonl', 'a'))"
        path = folder / program
        path.write_text(f'#!/bin/sh\n{sys.executable} -I -c "{record}" "$@"\n{lines}\n')
        path.chmod(0o755)

    for program in PROGRAMS:
        answer(program, "echo Submitted batch job 12" if program == "sbatch" else "true")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    site.forget()
    yield answer
    site.forget()


def called(tmp_path: Path, program: str) -> list[tuple[list[str], dict[str, str]]]:
    path = tmp_path / f"{program}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wanted(tmp_path: Path, text: str = "") -> clusters.Resources:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return clusters.load(str(path))


def test_no_variable_reaches_a_program(tmp_path, stubs, monkeypatch):
    for name, value in {**HOSTILE, **KEPT}.items():
        monkeypatch.setenv(name, value)
    asked = wanted(tmp_path, "timeout_min: 60\ngpus: 1")
    found = records.Record("0" * 12, "0", (("a",),), ("12",))
    scheduler.check_accepted([asked], tmp_path)
    jobs, cluster = scheduler.submit(tmp_path / "logs", "kd-x", [lambda: None], asked, tmp_path, None)
    assert (jobs, cluster) == (("12",), None)
    scheduler.queue([found])
    scheduler.cancel(["12"])
    site.max_array_size()
    site.gpus(asked)
    given.differences("12", asked)
    assert not called(tmp_path, "srun")
    for program in PROGRAMS[:-1]:
        calls = called(tmp_path, program)
        assert calls
        for _, environment in calls:
            assert not HOSTILE.keys() & environment.keys(), (program, HOSTILE.keys() & environment.keys())
            assert KEPT.items() <= environment.items()
    assert os.environ["SBATCH_TIMELIMIT"] == "1"  # ours is left alone
    script = (tmp_path / "logs" / "submission.sh").read_text()
    for line in ("time=60", "requeue", "export=ALL", "ntasks=1", "nodes=1", "open-mode=append", "gpus-per-node=1"):
        assert f"#SBATCH --{line}\n" in script, script


def test_what_the_manuals_list_is_hidden():
    """The sections on variables of the manual pages that are installed here, name by name."""
    for program in PROGRAMS:
        done = subprocess.run(["man", program], capture_output=True, text=True, env={**os.environ, "MANWIDTH": "120"})
        if done.returncode:
            pytest.skip("no manual pages here")
        text = re.sub(".\b", "", done.stdout)
        section = re.search(r"^(INPUT )?ENVIRONMENT VARIABLES$(.*?)^\S", text, re.M | re.S)
        names = re.findall(r"^ {7}((?:SLURMD?|S[A-Z]+)_[A-Z0-9_]+)", section[2], re.M)
        names += re.findall(r"^ {7}[A-Z_]+ or ([A-Z_]+)", section[2], re.M)
        assert len(names) > 5
        left = [name for name in names if not programs.OPTIONS.match(name)]
        assert set(left) <= {"SLURM_CONF", "SLURMD_DEBUG"}, left  # the latter: srun alone


def test_what_was_not_taken_is_said(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("SBATCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert programs.ignored() is None
    monkeypatch.setenv("SBATCH_ACCOUNT", "x")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "30")
    monkeypatch.setenv("SBATCH_EXCLUSIVE", "")
    assert programs.ignored() == (
        "not taken from the environment: SBATCH_ACCOUNT, SBATCH_EXCLUSIVE, SBATCH_TIMELIMIT "
        "(say it in the cluster file: account, additional, timeout_min)"
    )
    (tmp_path / ".slurm").mkdir()
    (tmp_path / ".slurm" / "defaults").write_text("time=1:30\n")
    assert "defaults may add to what the cluster file says" in programs.ignored()


# Programs that do not answer


def command(tmp_path: Path, *more: str) -> int:
    grid = tiny.write(tmp_path / "grid")
    return reproduce.main(["--grid", str(grid), "--out", str(tmp_path / "out"), "--no-plots", *more])


def test_sbatch_that_hangs_is_asked_briefly(tmp_path, stubs, monkeypatch, capsys):
    monkeypatch.setattr(programs, "PROBE_S", 0.3)
    stubs("sbatch", "exec sleep 60")
    began = time.monotonic()
    assert command(tmp_path) == 2 and time.monotonic() - began < 30
    said = capsys.readouterr().err
    assert "sbatch has not answered in 0.3 s: --executor local runs here" in said and said.count("\n") == 1
    assert command(tmp_path, "--executor", "slurm") == 2
    assert "sbatch has not answered" in capsys.readouterr().err and not (tmp_path / "out" / "submitted").exists()


def test_sbatch_without_a_configuration_is_said_and_runs_stay_here(tmp_path, stubs, monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    stubs("sbatch", "echo 'sbatch: error: fetch_config: DNS SRV lookup failed' >&2; exit 1")
    args = reproduce.parser().parse_args(["--grid", "full"])
    assert not reproduce._uses_slurm(args)
    said = capsys.readouterr().out
    assert said == "this runs here: sbatch is there, and SLURM is not (fetch_config: DNS SRV lookup failed)\n"
    with pytest.raises(BadInput, match="--executor slurm: fetch_config: DNS SRV lookup failed; use --executor local"):
        reproduce._uses_slurm(reproduce.parser().parse_args(["--grid", "full", "--executor", "slurm"]))


def test_the_first_grid_stays_here_unless_asked(stubs, monkeypatch, capsys):
    def uses(*arguments: str) -> bool:
        return reproduce._uses_slurm(reproduce.parser().parse_args([*arguments]))

    assert not uses("--grid", "quick") and "goes to SLURM with --executor slurm only" in capsys.readouterr().out
    assert uses("--grid", "quick", "--executor", "slurm") and uses("--grid", "full") and uses()
    with pytest.raises(BadInput, match="add --executor slurm"):
        uses("--grid", "quick", "--cluster", "example")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert not uses("--grid", "full")


def test_no_answer_is_not_a_refusal(tmp_path, stubs, monkeypatch):
    stubs("sbatch", "echo 'sbatch: error: Batch job submission failed: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(BadInput, match=r"SLURM does not answer \(.*Unable to contact.*\): try again later"):
        scheduler.check_accepted([wanted(tmp_path)], tmp_path)
    with pytest.raises(scheduler.Refused) as error:
        scheduler.submit(tmp_path / "logs", "kd-x", [lambda: None], wanted(tmp_path), tmp_path, None)
    assert error.value.silent and not error.value.too_many


def test_a_long_wait_is_said_and_ends(stubs, monkeypatch, capsys):
    monkeypatch.setattr(programs, "SAY_S", 0.1)
    stubs("sbatch", "sleep 1; cat; echo done")
    assert programs.call("sbatch", text="script\n", within_s=60).out == "script\ndone\n"
    assert capsys.readouterr().err == "waiting for sbatch, 60 s at most\n"
    stubs("sbatch", "sleep 100 & sleep 100")  # a child keeps its output open
    began = time.monotonic()
    assert programs.call("sbatch", within_s=1).silent and time.monotonic() - began < 50
    assert programs.call("no-such-program").failed == "no-such-program: No such file or directory"


def test_what_sbatch_says_besides_does_not_matter(tmp_path, stubs):
    stubs("sbatch", "echo hello; echo 'Submitted batch job 7 on cluster big'; echo 'sbatch: lua: welcome' >&2")
    jobs = scheduler.submit(tmp_path / "logs", "kd-x", [print, print], wanted(tmp_path), tmp_path, None)
    assert jobs == (("7_0", "7_1"), "big")
    assert (tmp_path / "logs" / "7_1_submitted.pkl").exists()
    stubs("sbatch", "echo hello")
    with pytest.raises(scheduler.Refused, match="without the number of a job"):
        scheduler.submit(tmp_path / "logs", "kd-x", [print], wanted(tmp_path), tmp_path, None)


# Several clusters


def test_ids_are_a_clusters_own(tmp_path, stubs):
    """Job 12 of one cluster is not job 12 of another; each is asked, and told, about its own."""
    rows = "case $1 in --clusters=a) echo '12|kd-{0}|RUNNING|None';; --clusters=b) echo '12|kd-{1}|PENDING|Held';; esac"
    tokens = "0" * 12, "1" * 12, "2" * 12
    stubs("squeue", rows.format(*tokens) + "; echo '13|somebody-elses|RUNNING|None'; echo a warning")
    found = [
        records.Record(tokens[0], "0", (("r",),), ("12",), "a"),
        records.Record(tokens[1], "0", (("s",),), None, "a,b"),  # its driver died before it knew where
        records.Record(tokens[2], "0", (("t",),), ("12",)),
    ]
    (tmp_path / records.FOLDER).mkdir()
    for record in found:
        records.write(tmp_path, record)
    assert records.read(tmp_path) == found
    assert scheduler.queue(found).keys() == {"12@a", "12@b"}
    assert records.submitted(tmp_path) == {"r": "12@a", "s": f"kd-{tokens[1]}", "t": "12"}
    scheduler.cancel(["12@a", "13@a", "12@b", "12"])
    assert [arguments for arguments, _ in called(tmp_path, "scancel")] == [
        ["--clusters=a", "12", "13"],
        ["--clusters=b", "12"],
        ["12"],
    ]
    stubs("squeue", "[ $1 != --clusters=b ]")
    assert scheduler.queue(found) is None  # one that does not answer: nothing is known


# What SLURM made of a job


JOB = (
    "JobId=12 JobName=kd-x Account=lab QOS=normal Requeue=1 TimeLimit=04:00:00 Partition=main CPUs/Task=2 "
    "TRES=cpu=2,mem=16G,node=1,billing=2,gres/gpu=1,gres/gpu:a100=1 MinMemoryNode=16G Features=a100 NumCPUs=2 "
    "TresPerNode=gres:gpu:a100:1 Command=/a b/c WorkDir=/x"
)
ASKED = "partition: main\naccount: lab\nqos: normal\ntimeout_min: 240\nmem_gb: 16\ngpus: a100:1\nconstraint: a100\n"
CHANGES = {
    "Partition=main": ("Partition=urgent", "partition urgent (asked for main)"),
    "Account=lab": ("Account=guest", "account guest (asked for lab)"),
    "QOS=normal": ("QOS=low", "qos low (asked for normal)"),
    "TimeLimit=04:00:00": ("TimeLimit=00:30:00", "time limit 00:30:00 (asked for 240 min)"),
    "CPUs/Task=2": ("CPUs/Task=8", "cores 8 (asked for 2)"),
    "MinMemoryNode=16G": ("MinMemoryNode=4000M", "memory 4000M (asked for 16G)"),
    "Features=a100": ("Features=(null)", "constraint (null) (asked for a100)"),
    "Requeue=1": ("Requeue=0", "no requeue: at its time limit it ends"),
}


def compared(tmp_path: Path, line: str, asked: str = ASKED) -> list[str]:
    return given.compare(given.fields(line), wanted(tmp_path, asked))


@pytest.mark.parametrize("field", CHANGES)
def test_a_job_that_was_changed_is_told(tmp_path, field):
    now, says = CHANGES[field]
    assert compared(tmp_path, JOB) == []
    (found,) = compared(tmp_path, JOB.replace(field, now))
    assert found.startswith(says)


def test_gpus_are_counted_wherever_slurm_writes_them(tmp_path):
    plain = re.sub(r",gres/gpu.*? ", " ", JOB).replace("TresPerNode=gres:gpu:a100:1", "{}")
    for text in ("TresPerNode=gres:gpu:a100:1", "TresPerNode=gres/gpu:a100:1", "TresPerJob=gpu:a100:1"):
        assert compared(tmp_path, plain.format(text)) == []
    assert compared(tmp_path, plain.format("TresPerNode=gres:gpu:v100:1")) == ["GPUs v100 (asked for a100:1)"]
    assert compared(tmp_path, plain.format("")) == ["GPUs 0 (asked for a100:1), was to train on a GPU"]
    none = ASKED.replace("a100:1", "0")
    assert compared(tmp_path, plain.format("TresPerNode=gres:gpu"), none) == ["GPUs 1 (asked for 0), trains on the CPU"]
    assert compared(tmp_path, plain.format(""), none) == []


def test_the_gpus_of_a_cluster(tmp_path, stubs):
    stubs("sinfo", "echo 'main*|gpu:a100:2(S:0-1),shard:8'; echo 'old|gpu:4'; echo 'cpu|(null)'; echo 'big|gpu:3090:2'")
    found = site.gpus(wanted(tmp_path))
    assert found == {("main", "a100")}
    assert site.gpu_remark([wanted(tmp_path, "gpus: 0")], "auto") == (
        "jobs that ask for no GPU train on the CPU, though there are a100 GPUs (partition main): "
        "gpus: a100:1 asks for one"
    )
    assert site.gpu_remark([wanted(tmp_path, "gpus: 0")], "cpu") is None
    assert site.gpu_remark([wanted(tmp_path)], "auto") is None
    assert "they train on what their node shows" in site.gpu_remark([wanted(tmp_path, "gpus: 0")], "cuda")
    refusal = "Invalid generic resource (gres) specification"
    assert site.gpu_remedy(wanted(tmp_path, "gpus: 2"), refusal).endswith("write gpus: a100:2 in the cluster file")
    assert site.gpu_remedy(wanted(tmp_path, "gpus: 0"), refusal) is None
    assert site.gpu_remedy(wanted(tmp_path), "Invalid account") is None
    site.forget()
    stubs("sinfo", "echo 'main*|(null)'")
    assert site.gpu_remedy(wanted(tmp_path), refusal).startswith("this cluster has no GPUs: add --device cpu")


# Inside a job


def test_what_slurm_gave_a_job(monkeypatch):
    for name in ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS"):
        monkeypatch.delenv(name, raising=False)
    assert task.gpus_given() == 0
    monkeypatch.setenv("SLURM_JOB_GPUS", "0-1,3")
    assert task.gpus_given() == 3
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    assert task.gpus_given() == 1


def made_task(tmp_path: Path, device: str) -> tuple[task.Task, str]:
    run = tiny.run(tmp_path, "vanilla")
    record = tmp_path / "record.json"
    record.write_text("{}")
    orders = {run.run_id: {"run": run.model_dump(mode="json")}}
    cohorts = [[run.run_id]]
    return task.Task(str(ROOT), str(record), Post(tmp_path, device, 1), 60, 20, cohorts, orders), run.run_id


def test_a_job_that_holds_a_gpu_says_that_it_trains_on_the_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    made, run_id = made_task(tmp_path, "cpu")
    Stub(tmp_path / "stub", monkeypatch, {run_id: tiny.run(tmp_path, "vanilla")})
    made()
    says = "SLURM gave this job 2 GPU(s), and it trains on the CPU"
    assert says in capsys.readouterr().out and says in (tmp_path / "runs" / run_id / "log.txt").read_text()


def test_a_job_without_its_gpu_trains_nothing_and_fails_no_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    made, run_id = made_task(tmp_path, "cuda")
    with pytest.raises(RuntimeError, match=r"no run of this job was done: .* PyTorch finds none .* --device cpu"):
        made()
    assert not (tmp_path / "runs" / run_id / "error.json").exists()
