"""What is asked of the machine around us, without what a person's surroundings would change: git, cores, memory.

Matplotlib has a place of its own (`bench.report.plots.settings`), and so have SLURM's programs (`jobs.slurm`).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

GIT_S = 20.0  # a slow disk, a huge checkout: then git's word is missing, and nothing waits for it
# git(1) "Environment Variables", git-config(1): every GIT_ variable may name another repository, other settings or
# another program; a person's and a system's files may set a pager, hooks, a file system monitor, filters, and which
# owner's checkouts are trusted. Here git only reads, and nothing that it is asked runs a program of the repository's.
GIT_SETTINGS = (
    *("core.fsmonitor=false", "core.hooksPath=/dev/null", "core.untrackedCache=false", "core.pager=cat"),
    *("status.submoduleSummary=false", "status.branch=false", "status.short=false", "submodule.recurse=false"),
    "safe.directory=*",
)
GIT_VARIABLES = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_OPTIONAL_LOCKS": "0",  # a status otherwise writes the index, which another git may be at
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}

# What a worker does not inherit, by the beginnings of names, and the few that it does. The number of threads is ours to
# set; what chooses instructions, precision or algorithms changes the last bits of a result, or more.
DROPPED = (
    # Threads and where they run: OpenMP (specification, "Environment Variables"), GNU's and Intel's runtimes, BLAS.
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "GOTO_", "BLIS_", "VECLIB_", "NUMEXPR_"),
    # Kernels, instructions and precision: oneDNN, ATen, TF32 for fp32, cuBLAS and cuDNN, compilation and its logs.
    *("ONEDNN_", "DNNL_", "ATEN_", "NVIDIA_TF32_OVERRIDE", "CUBLAS", "CUDNN_", "CUDA_LAUNCH_BLOCKING"),
    *("TORCH_", "TORCHDYNAMO_", "TORCHINDUCTOR_", "DISABLE_ADDMM_CUDA_LT"),
    # Python's own (its manual, "Environment variables"): what makes it stay at the end, not find our modules, leave out
    # assertions, make errors of warnings, or write in another encoding.
    *("PYTHONINSPECT", "PYTHONSAFEPATH", "PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONSTARTUP", "PYTHONVERBOSE"),
    *("PYTHONDEVMODE", "PYTHONPROFILEIMPORTTIME", "PYTHONTRACEMALLOC", "PYTHONASYNCIODEBUG", "PYTHONIOENCODING"),
    *("PYTHONUTF8", "PYTHONCOERCECLOCALE", "PYTHONBREAKPOINT", "PYTHONLEGACYWINDOWSSTDIO", "PYTHONCASEOK"),
)
KEPT = (
    *("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_DUPLICATE_LIB_OK"),  # how to wait; two runtimes
    *("TORCH_HOME", "TORCH_EXTENSIONS_DIR", "TORCH_DEVICE_BACKEND_AUTOLOAD"),  # folders, plug-ins
)


def git(folder: Path, *arguments: str) -> str | None:
    """What git says of the checkout around a folder, stripped; None where there is no git, or it fails, or is slow."""
    settings = [word for setting in GIT_SETTINGS for word in ("-c", setting)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-pager", *settings, "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=GIT_S, env={**environment, **GIT_VARIABLES}
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return os.fsdecode(done.stdout).strip() if done.returncode == 0 else None


def worker_environment(environment: Mapping[str, str], threads: int) -> dict[str, str]:
    """The variables of a process that trains: those of a person without DROPPED, and the number of its threads."""
    kept = {n: value for n, value in environment.items() if n in KEPT or not n.startswith(DROPPED)}
    return {**kept, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}


# Parameters of glibc's mallopt(3), by their numbers in malloc.h. Each is a default that a process otherwise adapts.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
TOP_PAD_BYTES = 64 * 2**20


def keep_memory() -> bool:
    """Have the C library keep what was freed, and say whether it will. For processes that train on a CPU.

    A step frees its buffers and the next one asks for them again. glibc may give them back to the system in between,
    which then clears every page anew. Not where a person has set up an allocator, nor with another C library.
    """
    chosen = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    if any(name.startswith(chosen) for name in os.environ):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    wanted = ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, TOP_PAD_BYTES))
    return all([set_option(option, value) == 1 for option, value in wanted])


def cores() -> int:
    """CPU cores that this process may use: those it is bound to, and no more than its container has the time of.

    A quota of 1.5 cores is 1. Two threads of one core (SMT) count as two.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *map(int, _quotas())]))


def _quotas(root: Path = Path("/sys/fs/cgroup"), of: Path = Path("/proc/self/cgroup")) -> list[float]:
    """Cores that the control groups around this process are given, a number a limit (cgroups(7), versions 1 and 2)."""
    try:
        lines = [line.split(":", 2) for line in of.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        tops = [root / controllers, root / "cpu"] if controllers else [root, root / "unified"]
        inner = Path(path.strip("/"))
        # In a container its own group is mounted as the root; outside it lies at its path, below groups with limits.
        for top in tops:
            for folder in {top, *(top / part for part in (inner, *inner.parents))}:
                found += _quota(folder)
    return found


def _quota(folder: Path) -> list[float]:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return [int(quota) / int(period)] if quota.strip() != "max" and int(quota) > 0 and int(period) > 0 else []
    except (OSError, ValueError):
        return []
