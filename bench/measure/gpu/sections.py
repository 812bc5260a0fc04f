"""What is measured, section by section. A section is a generator of measurements, what matters most first."""

from __future__ import annotations

import itertools
import math
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import zoo
from bench.measure import acceptance, calibration, ceilings, speed, step_cost
from bench.measure.gpu import at_once
from bench.measure.gpu.facts import one_line
from bench.measure.gpu.trial import (
    Sizes,
    default_layout,
    deterministic,
    layout,
    memory,
    run_of,
    stepper,
    tensors,
    work_of,
)
from bench.run import Data, Precision, Run, Strong
from bench.surroundings.machine import cores
from bench.surroundings.provenance import device_name
from bench.surroundings.version import code_version
from bench.training import data as datasets
from bench.training.capture import EAGER_STEPS, captured, own_stream
from bench.training.devices import set_precision
from bench.training.evaluate import evaluate
from bench.training.trainer import Trainer, results_of
from zoo.outputs import IMAGE

# Relative distances of one captured step from the eager one. Where kernels are deterministic all are 0; where one adds
# in any order, a ReLU that switches moves a young network's update by a percent.
TOLERANCES = {"loss_off": 1e-4, "update_off": 5e-2, "state_off": 1e-2}
AT_MOST_S = 20.0  # for one measurement of a step
# What a run has that asks for nothing. Named here, as `bench` knows no command line; a test compares them.
DEFAULT_PRECISION, DEFAULT_SLOTS = "fp32", 1
STRONG = Strong(ops=2, posterize_bits=(4, 8))


@dataclass(frozen=True)
class Setting:
    """Where and how large."""

    device: torch.device
    sizes: Sizes
    data: Path | None  # folder that holds CIFAR-100
    weights: Path | None  # folder of published checkpoints


@dataclass(frozen=True)
class Measurement:
    """One fact to be: its kind, what tells it from others of the kind, and the work that gives the rest."""

    fact: str
    labels: dict[str, Any]
    work: Callable[[], dict[str, Any]] = field(repr=False)


def machine(at: Setting) -> Iterator[Measurement]:
    """The machine, what a run has by default on it, and the most that it does."""
    yield Measurement("machine", {}, partial(_machine, at.device))
    yield Measurement("defaults", {}, partial(_defaults, at))
    yield Measurement("copy", {}, partial(_rate, ceilings.copy, at.device, at.sizes.copied))
    for precision in at.sizes.precisions:
        work = partial(_rate, ceilings.product, at.device, precision, at.sizes.matrix)
        yield Measurement("product", {"precision": precision}, work)
    for batch, precision, name in itertools.product(at.sizes.batches, at.sizes.precisions, ceilings.LAYOUTS):
        labels = {"batch": batch, "precision": precision, "layout": name}
        yield Measurement("convolution", labels, partial(_convolution, at, **labels))


def _rate(measured: Callable[..., float], *given: Any) -> dict[str, float]:
    return {"per_s": measured(*given)}


def _convolution(at: Setting, batch: int, precision: Precision, layout: str) -> dict[str, Any]:
    best, (channels, side) = ceilings.convolution(at.device, precision, layout, batch, at.sizes.convolved)
    return {"per_s": best, "channels": channels, "side": side}


def _machine(device: torch.device) -> dict[str, Any]:
    commit, dirty = code_version()
    found = {
        "name": device_name(device),
        "cores": cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit,
        "changed": dirty,
    }
    if device.type == "cuda":
        seen = torch.cuda.get_device_properties(device)
        found |= {
            "memory_gib": round(seen.total_memory / 2**30, 2),
            "multiprocessors": seen.multi_processor_count,
            "capability": f"{seen.major}.{seen.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }
    return found


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split("\n")[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        return None


def _defaults(at: Setting) -> dict[str, Any]:
    layouts = {precision: default_layout(precision, at.device) for precision in at.sizes.precisions}
    tuned = torch.backends.cudnn.benchmark
    return {"layouts": layouts, "autotuned": tuned, "precision": DEFAULT_PRECISION, "slots": DEFAULT_SLOTS}


def agreement(at: Setting) -> Iterator[Measurement]:
    """Every method: a captured step beside an eager one from the same state."""
    sizes = at.sizes
    others = itertools.product(sizes.agreeing_methods, [p for p in sizes.precisions if p != "fp32"])
    for name, precision in (*((name, "fp32") for name in sizes.methods), *others):
        run = run_of(name, sizes.agreeing_pair, sizes.agreeing_batch, precision)
        labels = {"method": name, "precision": precision}
        yield Measurement("agreement", labels, partial(agree, [run], at.device, sizes.agreeing_steps))
    runs = [run_of(name, sizes.agreeing_pair, sizes.agreeing_batch) for name in sizes.methods]
    labels = {"method": "all together", "precision": "fp32"}
    yield Measurement("agreement", labels, partial(agree, runs, at.device, sizes.agreeing_steps))


def agree(runs: Sequence[Run], device: torch.device, steps: int) -> dict[str, Any]:
    """The largest distances of `steps` captured steps from eager ones, and whether they are within TOLERANCES.

    Each step starts from the eager trainer's state: what two free runs make of rounding says nothing. A deterministic
    kernel may be one that cannot be captured; then those that training takes are compared.
    """
    set_precision(runs[0].precision)
    wanted, reason = device.type == "cuda", ""
    try:
        with deterministic():
            worst, replayed = _distances(runs, device, steps)
        if wanted and not replayed:
            reason = "not captured"
    except RuntimeError as error:
        reason = one_line(error)
    if reason:
        worst, replayed = _distances(runs, device, steps)
    holds = all(worst[kind] <= most for kind, most in TOLERANCES.items()) and (replayed or not wanted)
    known = {"steps": steps, "holds": holds, "captured": replayed, "deterministic": not reason}
    return {**worst, **known, **({"reason": reason} if reason else {})}


def _distances(runs: Sequence[Run], device: torch.device, steps: int) -> tuple[dict[str, float], bool]:
    """The largest distances of any of these runs by kind, and whether the steps were captured."""
    worst = dict.fromkeys(TOLERANCES, 0.0)
    with own_stream(device):
        eager, other = (step_cost.trainer_on_noise(runs, device) for _ in range(2))
        take = captured(other.step, device)
        if eager.teacher:
            other.teacher.load_state_dict(eager.teacher.state_dict())  # drawn apart
        for ours, theirs in zip(eager.members, other.members, strict=True):
            if ours.drifting:
                theirs.drifting.load_state_dict(ours.drifting.state_dict())
        for number in range(EAGER_STEPS + steps):
            if number:  # before, both are as their seed has them, and momentum does not exist
                for theirs, ours in zip(tensors(other), tensors(eager), strict=True):
                    theirs.detach().copy_(ours.detach())
            before, batch = [_flat(own.trained) for own in eager.members], _batch(eager, number)
            losses, replayed = (
                [values.double() for values, _ in results_of(step(*batch, members=at.members))]
                for step, at in ((eager.step, eager), (take, other))
            )
            if number < EAGER_STEPS:
                continue  # not captured yet
            both = zip(tensors(eager), tensors(other), strict=True)
            state_off = max((a - b).double().norm() / (1e-6 + a.double().norm()) for a, b in both)
            for own, theirs, was, loss, again in zip(
                eager.members, other.members, before, losses, replayed, strict=True
            ):
                after = _flat(own.trained)
                off = {
                    "loss_off": (loss - again).abs().max() / loss.abs().sum(),
                    "update_off": (_flat(theirs.trained) - after).norm() / (after - was).norm(),
                    "state_off": state_off,
                }
                found = {kind: float(value.nan_to_num(nan=math.inf)) for kind, value in off.items()}  # NaN: at worst
                worst = {kind: max(worst[kind], found[kind]) for kind in worst}
    return worst, bool(getattr(take, "recordings", None))


def _batch(at: Trainer, number: int) -> tuple:
    """A batch of its own for each number, as a step takes it: images, labels and positions all differ."""
    images = at.dataset.train_images.roll(number, dims=-1)
    indices = torch.arange(len(images), device=images.device) + number * len(images)
    strong = images.flip(-1) if any(own.paired for own in at.members) else None
    return images, strong, at.dataset.train_labels[indices], indices


def _flat(parameters: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().double() for parameter in parameters])


def layouts(at: Setting) -> Iterator[Measurement]:
    """KD on all pairs and batches: precision by layout, and then the same with cuDNN's autotuning."""
    sizes = at.sizes
    for tuned in (False, True) if at.device.type == "cuda" else (False,):  # a CPU has no cuDNN
        for pair, batch in itertools.product(sizes.pairs, sizes.batches):
            for precision, name in itertools.product(sizes.precisions, ceilings.LAYOUTS):
                yield _step("layout", run_of("kd", pair, batch, precision), at, name, tuned)


def steps(at: Setting) -> Iterator[Measurement]:
    """Time and memory of a step of every method, as a run has it by default."""
    for batch, name in itertools.product(at.sizes.batches, at.sizes.methods):
        run = run_of(name, at.sizes.pairs[0], batch)
        yield _step("step", run, at, default_layout(run.precision, at.device), False)


def _step(kind: str, run: Run, at: Setting, name: str, tuned: bool) -> Measurement:
    labels = {**_labels(run), "layout": name, "autotuned": tuned}
    return Measurement(kind, labels, partial(_time_and_memory, run, at.device, name, tuned))


def _time_and_memory(run: Run, device: torch.device, name: str, tuned: bool) -> dict[str, Any]:
    with layout(name), ceilings.autotuned(tuned), memory(device) as peak:
        step_s = calibration.measure(run, device, time.monotonic() + AT_MOST_S)
    return {"ms": 1e3 * sum(step_s), **peak, **work_of(run)}


def cohorts(at: Setting) -> Iterator[Measurement]:
    """All methods in one process: a step of all beside the sum of their steps alone, and its memory."""
    precisions = [precision for precision in at.sizes.precisions if precision != "tf32"]
    for batch, precision in itertools.product(at.sizes.batches, precisions):
        runs = [run_of(name, at.sizes.pairs[0], batch, precision) for name in at.sizes.methods]
        labels = {**_labels(runs[-1]), "method": "all together"}
        yield Measurement("cohort", labels, partial(_cohort, runs, at))


def _cohort(runs: Sequence[Run], at: Setting) -> dict[str, Any]:
    alone_s = 0.0
    for run in runs:
        alone_s += sum(calibration.measure(run, at.device, time.monotonic() + AT_MOST_S / len(runs)))
    with memory(at.device) as peak, own_stream(at.device):
        step_s = speed.timed(stepper(runs, at.device), at.device, at.sizes.profiled_steps)
    return {"ms": 1e3 * step_s, "alone_ms": 1e3 * alone_s, "runs": len(runs), **peak}


def _labels(run: Run) -> dict[str, Any]:
    pair = f"{run.teacher.arch}-{run.student}" if run.teacher else run.student
    return {"method": run.method, "pair": pair, "batch": run.train.batch, "precision": run.precision}


def kernels(at: Setting) -> Iterator[Measurement]:
    """What a KD step consists of, by name, beside the time that it takes."""
    pair, precisions = at.sizes.pairs[0], [p for p in at.sizes.precisions if p != "tf32"]
    for batch, precision in itertools.product(at.sizes.batches, precisions):
        run, name = run_of("kd", pair, batch, precision), default_layout(precision, at.device)
        if precision != "fp32":
            name = "NHWC"  # that of its fast convolutions
        labels = {**_labels(run), "layout": name}
        yield Measurement("kernels", labels, partial(_kernels, run, at, name))


def _kernels(run: Run, at: Setting, name: str) -> dict[str, Any]:
    with layout(name), own_stream(at.device):
        take = stepper([run], at.device)
        step_s = speed.timed(take, at.device, 4 * at.sizes.profiled_steps)
        rows = speed.profiled(take, at.device, at.sizes.profiled_steps)
    if not rows:
        raise RuntimeError("the profiler saw no kernel")
    top = [[name[:100], round(count, 1), round(1e3 * ms, 1)] for name, count, ms in rows[:20]]
    busy_ms, count = sum(row[2] for row in rows), sum(row[1] for row in rows)
    return {"ms": 1e3 * step_s, "busy_ms": busy_ms, "kernels": count, **work_of(run), "top": top}


def processes(at: Setting) -> Iterator[Measurement]:
    """Steps per second of 1, 2, 4 processes in total: what runs at once give."""
    sizes = at.sizes
    precisions = [precision for precision in sizes.precisions if precision != "tf32"]
    # The larger batch, that of `sprint`, decides for real results.
    trials = itertools.product(reversed(sizes.batches), precisions, sizes.processes)
    with at_once.Processes(max(sizes.processes), at.device, sizes.pairs[0]) as stepping:
        for batch, precision, count in trials:
            labels = {"processes": count, "batch": batch, "precision": precision}
            yield Measurement(
                "at once", labels, partial(_together, stepping, count, batch, precision, sizes.stepping_s)
            )


def _together(stepping: at_once.Processes, *trial: Any) -> dict[str, float]:
    return {"steps_per_s": stepping.rate(*trial)}


def plain(at: Setting) -> Iterator[Measurement]:
    """The field's plain loop beside ours, and what an epoch has beside its steps; on random images of full number."""
    sizes = at.sizes
    dataset = _random_images(sizes.images, at.device)
    views = {"weak": None, "weak+strong": STRONG, "paired": STRONG}
    for name, strong in views.items():
        data = Data(dataset="cifar100", train_images=None, views=name, strong=strong)
        work = partial(_seconds, partial(datasets.augmented_epoch, dataset, data, 0, 1), at.device)
        yield Measurement("epoch", {"part": f"augmentation, {name}", "images": sizes.images}, work)
    student = zoo.build(sizes.pairs[0].partition("-")[2]).to(at.device)
    work = partial(_seconds, partial(evaluate, student, dataset), at.device)
    yield Measurement("epoch", {"part": "evaluation", "images": len(dataset.test_labels)}, work)
    for pair in sizes.plain_pairs:
        run = run_of("kd", pair, sizes.batches[0])
        yield Measurement("plain", _labels(run), partial(_plain, run, dataset, sizes))


def _plain(run: Run, dataset: datasets.Dataset, sizes: Sizes) -> dict[str, Any]:
    set_precision(run.precision)
    images, device = speed.pil_images(run.data.views, None, sizes.images), dataset.train_labels.device
    ours_s = speed.ours_s(run, speed.random_teacher(run), dataset, sizes.plain_steps)
    plain_s = speed.plain_s(run, speed.random_teacher(run), images, dataset.train_labels, device, sizes.plain_steps)
    return {"plain_ms": 1e3 * plain_s, "ms": 1e3 * ours_s, **work_of(run)}


def _random_images(number: int, device: torch.device) -> datasets.Dataset:
    """As many training images as asked for, and a fifth of that for a test set."""
    noise = step_cost.noise(1, device)
    train, test = (torch.randint(0, 256, (n, *IMAGE), dtype=torch.uint8, device=device) for n in (number, number // 5))
    labels = noise.train_labels
    return datasets.Dataset(train, labels[:number], test, labels[: number // 5], noise.mean, noise.std)


def _seconds(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Of the second call: the first one finds its memory."""
    work()
    started = step_cost.now(device)
    work()
    return {"seconds": step_cost.now(device) - started}


def accepted(at: Setting) -> Iterator[Measurement]:
    """The checks of `bench.acceptance`, on real images."""
    for check in acceptance.checks(at.device, at.data, at.weights):
        found = {"holds": check.holds, "found": check.found}
        yield Measurement("acceptance", {"check": check.name}, partial(dict, found))


SECTIONS: dict[str, Callable[[Setting], Iterator[Measurement]]] = {
    "machine": machine,
    "agreement": agreement,
    "layouts": layouts,
    "steps": steps,
    "cohorts": cohorts,
    "kernels": kernels,
    "processes": processes,
    "plain": plain,
    "acceptance": accepted,
}
