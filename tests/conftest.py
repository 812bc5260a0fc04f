"""One thread a process: tests run side by side, and results on a CPU depend on the number of threads."""

import os
import sys

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"  # threads that wait leave the core to other tests
# No test submits to a cluster that this machine may belong to; those that need one bring their own.
os.environ["SLURM_CONF"] = os.devnull

LONGEST = (  # files, each done by one process: these first, so that none of them is left for the end
    "test_reproduce.py",
    "test_submission.py",
    "test_readme.py",
    "test_chaos.py",
    "test_rehearsal.py",
    "test_acceptance.py",
    "test_slurm_limit.py",
    "test_task.py",
    "test_sites.py",
    "test_pack.py",
    "test_two_hosts.py",
    "test_evaluate.py",
    "test_cluster.py",
    "test_packaging.py",
    "test_report_command.py",
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Random numbers that a test draws without a generator are the same each time, whatever ran before it."""
    import torch  # here, as it reads the OMP variables above

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_from_outside():
    """Methods and networks that a test's grid brought along are unknown to the next one."""
    yield
    if "bench.outside" in sys.modules:
        sys.modules["bench.outside"].bring((), {})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than cores, as some wait for SLURM most of the time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1
