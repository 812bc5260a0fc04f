"""One run from its description to its result.json: the only place that joins data, teacher, trainer and files."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import zoo
from bench import store
from bench.protocol import CHECKPOINT
from bench.provenance import provenance
from bench.run import Data, Run, Teacher
from bench.store import weights_fault
from bench.training import data as datasets
from bench.training.capture import own_stream
from bench.training.evaluate import evaluate
from bench.training.trainer import CHECKPOINT_EVERY_S, State, summary, train
from zoo.errors import BadInput


class TeacherNotReady(Exception):
    """The teacher's run has no usable weights; the message names it."""


@dataclass(frozen=True)
class Site:
    """Where runs happen on this machine. None of it can change a result, so none of it is part of a run."""

    out: Path
    device: torch.device
    data_root: Path | None = None
    weights: Path | None = None  # the file of a checkpoint run
    checkpoint_every_s: float = CHECKPOINT_EVERY_S
    per_device: int = 1  # runs that share a GPU

    @property
    def devices(self) -> float:
        """How much a run has: so many CPU cores, or such a part of a GPU."""
        return torch.get_num_threads() if self.device.type == "cpu" else 1 / self.per_device


def perform(
    run: Run,
    site: Site,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[int, int, int], None] = lambda epoch, step, steps: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    before_write: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Do `run` (from its checkpoint, where there is one), write its files, result.json last, and return the result.

    `should_stop`, `on_step`, `on_epoch` and `before_write` are the trainer's.
    Raises TeacherNotReady, trainer.Diverged, trainer.Stopped, store.Damaged (a broken checkpoint of this run).
    """
    folder = store.run_folder(site.out, run.run_id)
    dataset = _dataset(run.data.dataset, run.data.train_images, site.data_root, site.device)
    file = None
    if run.method == CHECKPOINT:
        net, curve, timing, file = _evaluate_checkpoint(run, site, dataset, on_batch=lambda: on_step(0, 0, 0))
    else:
        teacher = load_teacher(run.teacher, site.out) if run.teacher else None
        with own_stream(site.device):
            net, state = train(
                run,
                dataset,
                teacher,
                folder.last,
                should_stop=should_stop,
                on_step=on_step,
                on_epoch=on_epoch,
                before_write=before_write,
                checkpoint_every_s=site.checkpoint_every_s,
            )
        curve, timing = state.curve, _timing(state, len(dataset.train_labels), site.devices)
    before_write()
    store.write_torch(folder.weights, {"model": {name: value.cpu() for name, value in net.state_dict().items()}})
    result = {
        "schema": store.SCHEMA,
        "run_id": run.run_id,
        "config": run.model_dump(mode="json"),
        "metrics": summary(curve),
        **({"weights_file": file} if file else {}),
        "timing": timing,
        "provenance": {
            **provenance(run.method, site.device, torch.get_num_threads()),
            "weights_bytes": folder.weights.stat().st_size,
        },
        "curve": curve,
    }
    before_write()
    store.write_result(folder.result, result)
    folder.last.unlink(missing_ok=True)
    return result


def load_teacher(teacher: Teacher, out: Path) -> nn.Module:
    """The trained network of another run, on the CPU. A student looks for itself, whatever its scheduler promised."""
    folder = store.run_folder(out, teacher.run_id)
    reason = weights_fault(folder)
    if reason:
        raise TeacherNotReady(f"teacher {teacher.run_id}: {reason}")
    try:
        net = _network(teacher.arch, folder.weights, folder.weights.stat().st_mtime_ns)
    except BadInput as error:
        raise TeacherNotReady(
            f"teacher {teacher.run_id}: {error}; start it over with --force --only method=teacher"
        ) from None
    return copy.deepcopy(net)  # training may change its statistics


def _evaluate_checkpoint(
    run: Run, site: Site, dataset: datasets.Dataset, on_batch: Callable[[], None]
) -> tuple[nn.Module, list[dict[str, Any]], dict[str, float], dict[str, Any]]:
    """A checkpoint is a run whose curve has one row: what its weights give on the test set.

    With it comes where in the file they were, and what the file itself says they give, if anything, beside that.
    """
    started = time.monotonic()
    if site.weights is None or not site.weights.exists():
        raise BadInput(f'weights file "{site.weights}" of {run.run_id} is missing: give the grid its path again')
    if zoo.sha256(site.weights) != run.params["sha256"]:
        raise BadInput(f'weights file "{site.weights}" has changed since the grid was read: run the command again')
    net = zoo.build(run.student, datasets.NUM_CLASSES)
    source = zoo.load_weights(net, site.weights)
    metrics = evaluate(net.to(site.device), dataset, on_batch)
    wall_s = round(time.monotonic() - started, 3)
    row = {
        "epoch": 0,
        "top1": metrics.top1,
        "top5": metrics.top5,
        "test_loss": metrics.loss,
        "wall_s": wall_s,
    }
    file = {"read": str(source)}
    if source.claims:
        key, top1 = source.claims
        file["claims"] = {"key": key, "top1": top1, "agrees": not source.disagrees(metrics.top1)}
        file["said"] = source.compared(metrics.top1)
    return net, [row], {"train_s": 0.0}, file


def _timing(state: State, images: int, devices: float) -> dict[str, float]:
    """Training time over all interruptions, evaluation included; `device_s` is that of a whole GPU, or of one core."""
    return {
        "train_s": round(state.wall_s, 3),
        "device_s": round(state.wall_s * devices, 3),
        "images_per_s": round(images * len(state.curve) / state.wall_s, 1),
    }


@lru_cache(maxsize=1)
def _network(arch: str, weights: Path, written_ns: int) -> nn.Module:
    """Kept from run to run of one worker: in most grids many students follow one teacher."""
    net = zoo.build(arch, datasets.NUM_CLASSES)
    zoo.load_weights(net, weights)
    return net


@lru_cache(maxsize=1)
def _dataset(name: str, train_images: int | None, root: Path | None, device: torch.device) -> datasets.Dataset:
    """Kept from run to run of one worker, however they augment it: most grids have one data set."""
    return datasets.load(Data(dataset=name, train_images=train_images, views="weak", strong=None), root, device)
