"""Git, cores and variables, whatever surrounds us."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.surroundings import machine

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "file").write_text("x")
    who = ("-c", "user.name=x", "-c", "user.email=x@example.com")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "first")):
        subprocess.run(["git", "-C", folder, *words], check=True)
    return folder


def test_git_is_asked_without_a_persons_settings(checkout, tmp_path, monkeypatch):
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o755)
    subprocess.run(["git", "-C", checkout, "config", "core.fsmonitor", str(trap)], check=True)
    settings = tmp_path / "settings"
    settings.write_text(f"[core]\n\tpager = {trap}\n\tfsmonitor = {trap}\n[status]\n\tshort = true\n\tbranch = true\n")
    for name, value in {
        "GIT_DIR": "/nowhere",
        "GIT_WORK_TREE": "/nowhere",
        "GIT_CONFIG_GLOBAL": str(settings),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.worktree",
        "GIT_CONFIG_VALUE_0": "/nowhere",
        "GIT_PAGER": str(trap),
        "LANG": "de_DE.UTF-8",
    }.items():
        monkeypatch.setenv(name, value)
    assert machine.git(checkout, "rev-parse", "--show-toplevel") == str(checkout.resolve())
    assert machine.git(checkout, "status", "--porcelain", "--untracked-files=no") == ""
    (checkout / "file").write_text("y")
    assert machine.git(checkout, "status", "--porcelain", "--untracked-files=no") == "M file"
    assert not (tmp_path / "sprung").exists()


def test_git_that_is_slow_or_not_there_is_not_waited_for(checkout, tmp_path, monkeypatch):
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(machine, "GIT_S", 0.2)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    assert machine.git(checkout, "rev-parse", "HEAD") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.git(checkout, "rev-parse", "HEAD") is None


def test_a_worker_has_its_own_threads_instructions_and_python():
    person = {
        **dict.fromkeys(("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS", "MKL_CBWR", "KMP_AFFINITY"), "7"),
        **dict.fromkeys(("OMP_PROC_BIND", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "OPENBLAS_NUM_THREADS"), "x"),
        **dict.fromkeys(("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG"), "1"),
        **dict.fromkeys(("PYTHONINSPECT", "PYTHONSAFEPATH", "PYTHONOPTIMIZE", "PYTHONWARNINGS"), "1"),
        **dict.fromkeys(
            ("PATH", "HOME", "TORCH_HOME", "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "OMP_WAIT_POLICY"), "kept"
        ),
    }
    kept = machine.worker_environment(person, 3)
    assert {name for name, value in kept.items() if value == "kept"} == {n for n, v in person.items() if v == "kept"}
    assert {name: value for name, value in kept.items() if value != "kept"} == {
        "OMP_NUM_THREADS": "3",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
    }


def test_every_variable_that_is_dropped_would_reach_python():
    """The list is no dead letter: a process that keeps them does what it is there to prevent."""
    hostile = {
        **os.environ,
        "PYTHONINSPECT": "1",
        "PYTHONOPTIMIZE": "1",
        "PYTHONWARNINGS": "error",
        "PYTHONSAFEPATH": "1",
    }
    code = "import sys; print(sys.flags.inspect, sys.flags.optimize, sys.warnoptions)"
    options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    said = [
        subprocess.run([sys.executable, "-c", code], env=env, **options).stdout.strip()
        for env in (hostile, machine.worker_environment(hostile, 1))
    ]
    assert said == ["1 1 ['error']", "0 0 []"]


LIMITS = {  # files below the control groups, what /proc/self/cgroup says -> cores
    "none": ({}, "0::/\n", []),
    "docker --cpus 1.5": ({"cpu.max": "150000 100000\n"}, "0::/\n", [1.5]),
    "no limit": ({"cpu.max": "max 100000\n"}, "0::/\n", []),
    "of a group above": ({"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b\n", [2.0]),
    "version 1": ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/\n", [0.5]),
    "version 1, no limit": ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/\n", []),
    "strange": ({"cpu.max": "much"}, "0::/\n", []),
}


@pytest.mark.parametrize("name", LIMITS)
def test_the_time_that_a_container_is_given(tmp_path, monkeypatch, name):
    files, said, limits = LIMITS[name]
    for path, text in files.items():
        (tmp_path / "groups" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / path).write_text(text)
    (tmp_path / "said").write_text(said)
    found = machine._quotas(tmp_path / "groups", tmp_path / "said")
    assert found == limits
    monkeypatch.setattr(machine, "_quotas", lambda: found)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    assert machine.cores() == max(1, min([4, *map(int, limits)]))


# Ten times 40 MiB, each freed at once: more than glibc ever keeps by itself (mallopt(3), M_MMAP_THRESHOLD).
ASK_AND_FREE = """
import ctypes, resource, sys
from bench.surroundings import machine
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
kept = machine.keep_memory() if sys.argv[1] == "keep" else None
faults = []
for _ in range(10):
    buffer = ctypes.c_void_p(libc.malloc(40 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    libc.memset(buffer, 1, ctypes.c_size_t(40 << 20))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    libc.free(buffer)
print(kept, faults[0], sum(faults[1:]))
"""


def ask_and_free(how, **variables):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    command = [sys.executable, "-c", ASK_AND_FREE, how]
    done = subprocess.run(command, env={**clean, **variables}, capture_output=True, text=True, check=True, cwd=ROOT)
    kept, first, others = done.stdout.split()
    return kept, int(first), int(others)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's")
def test_memory_that_was_freed_is_kept():
    _, first, others = ask_and_free("as it is")
    assert others > 5 * first  # each time all pages anew
    kept, first, others = ask_and_free("keep")
    assert kept == "True" and others < first


@pytest.mark.parametrize("name, value", [("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.check=0")])
def test_an_allocator_that_a_person_set_up_is_left_alone(name, value):
    assert ask_and_free("keep", **{name: value})[0] == "False"


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert machine.keep_memory() is False
