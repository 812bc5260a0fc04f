"""Runs from their description to their result.json: the only place that joins data, teacher, trainer and files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import zoo
from bench import outside, store
from bench.datasets import facts
from bench.protocol import CHECKPOINT
from bench.run import Data, Run
from bench.store import weights_fault
from bench.surroundings.provenance import provenance
from bench.surroundings.version import code_version
from bench.training import data as datasets
from bench.training.capture import own_stream
from bench.training.devices import failure_of_device
from bench.training.evaluate import evaluate
from bench.training.member import State, summary
from bench.training.trainer import CHECKPOINT_EVERY_S, Entrant, Hooks, train
from zoo import published, trained
from zoo.errors import BadInput
from zoo.reused import Reused


class TeacherNotReady(Exception):
    """The teacher's run has no usable weights; the message names it."""


@dataclass(frozen=True)
class Site:
    """Where runs happen on this machine. None of it can change a result, so none of it is part of a run."""

    out: Path
    device: torch.device
    data_root: Path | None = None
    checkpoint_every_s: float = CHECKPOINT_EVERY_S
    per_device: int = 1  # processes that share a GPU
    slots: int = 0  # processes in all that the driver works with; 0: not known
    together: int = 0  # runs that share one at most; 0: all that fit

    @property
    def devices(self) -> float:
        """How much this process has: so many CPU cores, or such a part of a GPU."""
        return torch.get_num_threads() if self.device.type == "cpu" else 1 / self.per_device


class Listener(Hooks):
    """Who hears of a run: what the trainer tells of it, and its end."""

    def finished(self, result: dict[str, Any]) -> None:
        """The run's files are written, result.json last."""


@dataclass(frozen=True)
class Job:
    """A run to be done, and who hears of it."""

    run: Run
    listener: Listener
    weights: Path | None = None  # the file of a checkpoint run


def perform(jobs: Sequence[Job], site: Site, *, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Do runs that `bench.cohorts` lets share a process, each from its checkpoint, where there is one.

    The listener of each hears `finished`, or `left` with the reason: TeacherNotReady, Diverged, Stopped, what its step
    or the listener itself raised. What fails the device fails all that are not through, and is raised.
    """
    jobs = [job for job in jobs if _leaving(job, lambda job=job: outside.use(job.run, site.out) or job)]
    if not jobs:
        return
    run = jobs[0].run
    code_version()  # of now, not of the end
    dataset = _dataset(run.data.model_copy(update={"views": "weak", "strong": None}), site.data_root, site.device)
    if run.method == CHECKPOINT:
        for job in jobs:
            _leaving(job, lambda job=job: _evaluate_checkpoint(job, site, dataset))
        return
    teacher, ready = None, []
    for job in jobs:
        if job.run.teacher and teacher is None:
            teacher = _leaving(job, lambda job=job: load_teacher(job.run, site.out))
        if teacher or not job.run.teacher:
            ready.append(Entrant(job.run, _folder(job, site).last, _Writer(job, site, dataset)))
    if ready:
        with own_stream(site.device):
            train(ready, dataset, teacher, should_stop=should_stop, checkpoint_every_s=site.checkpoint_every_s)


class _Writer(Hooks):
    """Passes on what the trainer tells, and writes the files of a run that is through."""

    def __init__(self, job: Job, site: Site, dataset: datasets.Dataset) -> None:
        self.job, self.site, self.dataset, self.images = job, site, dataset, len(dataset.train_labels)
        listener = job.listener
        self.on_step, self.on_epoch, self.before_write = listener.on_step, listener.on_epoch, listener.before_write
        self.damaged, self.left, self.other_source = listener.damaged, listener.left, listener.other_source

    def done(self, network: nn.Module, state: State) -> None:
        before = state.sources[:-1]
        timing = _timing(state, self.images, self.site)
        _write(self.job, self.site, self.dataset, network, state.curve, timing, before=before)


def _write(
    job: Job,
    site: Site,
    dataset: datasets.Dataset,
    net: nn.Module,
    curve: list[dict[str, Any]],
    timing: dict[str, float | None],
    file: dict[str, Any] | None = None,
    before: Sequence[str] = (),
) -> None:
    """`before`: sources of its method that made a part of it, and that this process does not have."""
    run, folder = job.run, _folder(job, site)
    job.listener.before_write()
    metrics = summary(curve, run.data.validation)
    mean, std = dataset.statistics
    about = {"run_id": run.run_id, "dataset": run.data.dataset, "mean": mean, "std": std, "top1": metrics["top1_last"]}
    store.write_torch(folder.weights, trained.contents(net, **about))
    result = {
        "schema": store.SCHEMA,
        "run_id": run.run_id,
        "config": run.model_dump(mode="json"),
        "metrics": metrics,
        **({"weights_file": file} if file else {}),
        **({"deployed": _deployed(net)} if isinstance(net, Reused) else {}),
        "timing": timing,
        "provenance": {
            **provenance(run.method, site.device, torch.get_num_threads(), outside.packages(run)),
            **({"method_sources_before": [*before]} if before else {}),
            "weights_bytes": folder.weights.stat().st_size,
        },
        "curve": curve,
    }
    job.listener.before_write()
    store.write_result(folder.result, result)
    folder.last.unlink(missing_ok=True)
    job.listener.finished(result)


def _deployed(net: Reused) -> dict[str, int]:
    """How large the network is that predicts, where it is not the student alone, and how large that would be."""
    return {"parameters": net.size, "student_parameters": zoo.count_parameters(net.student)}


def _leaving(job: Job, do: Callable[[], Any]) -> Any:
    """What `do` gives; None where it raises, which the job's listener hears."""
    try:
        return do()
    except Exception as error:
        if failure_of_device(error):
            raise
        job.listener.left(error)
        return None


def _folder(job: Job, site: Site) -> store.RunFolder:
    return store.run_folder(site.out, job.run.run_id)


def load_teacher(run: Run, out: Path) -> nn.Module:
    """A run's trained teacher, on the CPU. A student looks for itself, whatever its scheduler promised."""
    teacher, known = run.teacher, facts(run.data)
    folder = store.run_folder(out, teacher.run_id)
    reason = weights_fault(folder)
    if reason:
        raise TeacherNotReady(f"teacher {teacher.run_id}: {reason}")
    try:
        written_ns = store.patiently(lambda: folder.weights.stat().st_mtime_ns, folder.weights)
        net = store.patiently(
            lambda: _network(teacher.arch, known.classes, known.side, folder.weights, written_ns), folder.weights
        )
    except BadInput as error:
        raise TeacherNotReady(
            f"teacher {teacher.run_id}: {error}; start it over with --force --only method=teacher"
        ) from None
    if net is None:  # it has gone since we looked
        raise TeacherNotReady(f"teacher {teacher.run_id}: weights.pt is missing")
    return net


def _evaluate_checkpoint(job: Job, site: Site, dataset: datasets.Dataset) -> None:
    """A checkpoint is a run whose curve has one row: what its weights give on the test set.

    With it comes where in the file they were, and what the file itself says they give, if anything, beside that.
    """
    run, weights, started = job.run, job.weights, time.monotonic()
    there = weights and store.patiently(weights.stat, weights)
    if not there:
        raise BadInput(f'weights file "{weights}" of {run.run_id} is missing: give the grid its path again')
    if store.patiently(lambda: _reading(lambda: zoo.sha256(weights)), weights) != run.params["sha256"]:
        raise BadInput(f'weights file "{weights}" has changed since the grid was read: run the command again')
    known = facts(run.data)
    net = zoo.build(run.student, known.classes, known.side)
    source = store.patiently(lambda: _reading(lambda: zoo.load_weights(net, weights)), weights)
    metrics = evaluate(net.to(site.device), dataset, lambda: job.listener.on_step(0, 0, 0))
    row = {
        "epoch": 0,
        **metrics.columns("test"),
        "wall_s": round(time.monotonic() - started, 3),
    }
    file = {"read": str(source)}
    if known_as := store.patiently(lambda: _reading(lambda: published.verdict(weights)), weights):
        file["published"] = known_as
    if source.claims:
        key, top1 = source.claims
        file["claims"] = {"key": key, "top1": top1, "agrees": not source.disagrees(metrics.top1)}
        file["said"] = source.compared(metrics.top1)
    _write(job, site, dataset, net, [row], {"train_s": 0.0}, file)


def _reading(read: Callable[[], Any]) -> Any:
    """What `read` gives; where the disk is at fault and not the file, the disk's own error."""
    try:
        return read()
    except BadInput as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise


def _timing(state: State, images: int, site: Site) -> dict[str, float | None]:
    """Times over all interruptions, evaluation included. Device seconds are of a CPU core, or of a whole GPU.

    `train_s` is wall time, `device_s` this run's part of the device, `alone_s` what it would have taken by itself, and
    `together` how many runs, on the average of its steps, shared the images and the teacher's pass.
    """
    part = 1.0 if site.device.type == "cpu" else site.devices
    return {
        "train_s": round(state.wall_s, 3),
        "device_s": round(state.device_s * part, 3),
        "alone_s": round(state.alone_s * part, 3),
        "together": round(state.shared_with / state.moves, 1) if state.moves else None,
        "images_per_s": round(images * len(state.curve) / state.wall_s, 1),
    }


@lru_cache(maxsize=1)
def _network(arch: str, classes: int, side: int, weights: Path, written_ns: int) -> nn.Module:
    """Kept from run to run of one worker: in most grids many students follow one teacher."""
    net = zoo.build(arch, classes, side)
    _reading(lambda: zoo.load_weights(net, weights))
    return net


@lru_cache(maxsize=1)
def _dataset(data: Data, root: Path | None, device: torch.device) -> datasets.Dataset:
    """Kept from run to run of one worker, however they augment it: most grids have one data set."""
    return datasets.load(data, root, device)
