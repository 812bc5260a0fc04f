"""A plan carried out, here or on a cluster, from the first check to the report."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench import grid
from bench.datasets import root
from bench.surroundings.commandline import INCOMPLETE, STOPPED_EARLY, counted, explain, note, refuse
from bench.training import data
from bench.training.devices import check_precision, parse_device
from jobs import claims, local, results
from jobs import plan as plans
from jobs.plan import Plan
from jobs.progress import Progress
from jobs.slurm import cluster, follow, programs, scheduler, site
from jobs.slurm import submission as slurm
from zoo.errors import BadInput


@dataclass(frozen=True)
class Request:
    """How a plan is to be carried out: the options of the command line by their names."""

    out: Path
    only: tuple[str, ...]
    data: Path | None
    device: str
    precision: str
    slots: int | None
    together: int | None  # runs that share a process at most; None: all that fit (SLURM: what the cluster file says)
    hung_min: float | None  # None: the default (SLURM: what the cluster file says)
    time_budget_min: float | None
    cluster: str | None
    force: bool
    retry_failed: bool
    wait: bool
    plots: bool


def execute(plan: Plan, request: Request) -> int:
    """Do it on this machine; returns the exit status."""
    device = parse_device(request.device)
    check_precision(request.precision, device)
    _check_writable(request.out)
    if plan.to_do or request.force or request.retry_failed:
        data.prepare(plan.grid.protocol.data, request.data, device)
    if request.force:
        plans.force(plan, request.out, request.only)
    if request.retry_failed:
        plans.retry_failed(plan, request.out)
    if request.force or request.retry_failed:
        plan = plans.make(plan.grid, request.out, request.only)
    grid.keep(plan.grid, request.out)
    print("\n".join([plans.describe(plan, out=request.out), *plans.ahead(plan)]))
    where = local.slots(device, request.slots)
    progress = Progress(plan, request.out, workers=len(where.devices) * where.per_device)
    with progress, _stop_signals(progress.stopping) as stopped:
        deadline = time.monotonic() + 60 * request.time_budget_min if request.time_budget_min else None

        def should_stop() -> str | None:
            if stopped.is_set():
                return "interrupted"
            return "time budget used up" if deadline and time.monotonic() > deadline else None

        try:
            reason = local.execute(
                plan,
                request.out,
                where,
                data_root=root(plan.grid.protocol.data.dataset, request.data),
                should_stop=should_stop,
                progress=progress,
                together=request.together,
                hung_s=60 * request.hung_min if request.hung_min else claims.HUNG_S,
            )
        except OSError as error:  # workers have written their checkpoints
            reason = explain(error, request.out)
    progress.finish()
    return _finish(plan, request, reason)


def submit(plan: Plan, request: Request) -> int:
    """Put it in the queue of SLURM, and follow it where that is asked for; returns the exit status."""
    resources = cluster.load(request.cluster).of_all(
        plan.grid, device=request.device, together=request.together, hung_min=request.hung_min
    )
    for run_id in plan.selected:
        check_precision(request.precision, torch.device(cluster.device(resources[run_id], request.device)))
    _check_writable(request.out)
    if plan.to_do or request.force or request.retry_failed:
        wanted = [resources[run_id] for run_id in plan.selected]
        if remark := programs.ignored():  # before SLURM's answer, which may be a refusal for the lack of these
            print(remark, flush=True)
        scheduler.check_accepted(wanted, request.out.resolve())
        for remark in filter(None, (site.gpu_remark(wanted, request.device), _no_cuda(wanted))):
            print(remark, flush=True)
        data.prepare(plan.grid.protocol.data, request.data)
    with slurm.desk(request.out) as desk:
        if request.force:
            queued = [run_id for run_id in plan.selected if run_id in desk.queued]
            if queued:
                raise BadInput(f"--force: {queued[0]} is in the queue as job {desk.queued[queued[0]]}: --cancel first")
            plans.force(plan, request.out, request.only)
        if request.retry_failed:
            desk.forget(plans.retry_failed(plan, request.out))
        plan = plans.make(plan.grid, request.out, request.only)
        grid.keep(plan.grid, request.out)
        print("\n".join([plans.describe(plan, out=request.out), *plans.ahead(plan)]))
        for line in desk.notes:
            print(line)
        data_root = root(plan.grid.protocol.data.dataset, request.data)
        for line in desk.submit(plan, resources, device=request.device, data_root=data_root):
            print(line, flush=True)
        queued = [run_id for run_id in plan.to_do if run_id in desk.queued]
    if not plan.to_do:
        return _finish(plan, request, None)
    print(f"in the queue: {len(queued)} of {counted(len(plan.to_do), 'run')} to do")
    if request.wait:
        return _wait(plan, queued, request)
    print("follow them with the same command and --wait, or --status; --report makes the table, --cancel ends the jobs")
    return STOPPED_EARLY


def _no_cuda(all_wanted: Collection[cluster.Resources]) -> str | None:
    """One line where jobs hold GPUs that this Python, which they use, too, cannot train on."""
    if any(wanted.gpu_count for wanted in all_wanted) and not (torch.version.cuda or torch.version.hip):
        return (
            f"PyTorch {torch.__version__} is built without CUDA: jobs that hold a GPU will end without training; "
            "install one with CUDA, or use --device cpu"
        )
    return None


def _wait(plan: Plan, queued: list[str], request: Request) -> int:
    progress = Progress(plan, request.out, workers=1)
    words = "stopping to follow: the jobs go on, --cancel ends them"
    with progress, _stop_signals(progress.stopping, words) as stopped:
        reason = follow.follow(plan, request.out, queued, progress, lambda: "interrupted" if stopped.is_set() else None)
    progress.finish()
    left = plans.make(plan.grid, request.out, request.only)
    if reason == follow.NOT_ALL and len(left.to_do) < len(plan.to_do):  # there is room in the queue again
        return submit(left, replace(request, force=False, retry_failed=False))
    return _finish(plan, request, reason)


def _finish(plan: Plan, request: Request, stopped_early: str | None) -> int:
    """Report on what there is now."""
    try:
        status = results.report(plan.outline, request.out, request.only, plots=request.plots)
    except (BadInput, OSError) as error:  # the runs are done all the same
        refuse(str(error) if isinstance(error, BadInput) else explain(error, request.out))
        status = INCOMPLETE
    if stopped_early:
        print(f"stopped early: {stopped_early}; the same command goes on")
        return STOPPED_EARLY
    return status


def _check_writable(out: Path) -> None:
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        probe = out / "runs" / f".probe.{os.getpid()}"
        with open(probe, "wb") as file:  # enough to notice a full disk
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
        probe.unlink()
        fault = claims.links_fault(out / "runs")
    except OSError as error:
        raise BadInput(f'cannot write to --out "{out}": {error.strerror}; give another folder') from None
    if fault:
        note(
            f'the disk of --out "{out}" has no hard links ({fault}): claims on runs are made without; on one computer '
            "that is as safe, but do not let two work in this folder at once unless it is one disk for both"
        )


class _stop_signals:
    """Ctrl-C and SIGTERM ask to stop; a second Ctrl-C is a KeyboardInterrupt again."""

    def __init__(
        self,
        say: Callable[[str], None],
        says: str = "stopping: workers write their checkpoints (once more to kill them)",
    ) -> None:
        self.say, self.says = say, says

    def __enter__(self) -> threading.Event:
        self.event = threading.Event()
        asked = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it
            asked.append(signal.SIGHUP)  # the terminal has gone
        self.old = {number: signal.signal(number, self._ask) for number in asked}
        return self.event

    def _ask(self, number: int, frame: object) -> None:
        if not self.event.is_set():
            self.say(self.says)
        self.event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)
