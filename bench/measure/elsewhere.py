"""What runs cost on a device that is not here, told from what was measured on one like it, else from a model.

Measured are runs that finished on it, and the steps in `results/measured/*/facts.jsonl` (`bench.measure.gpu`). The
model adds three times: FLOP (`bench.cost`) at a share of the device's peak, bytes (`bench.measure.ceilings`) at a share
of its bandwidth, and the starts of its kernels. Losses and connectors of methods are not in it, nor augmentation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zoo
from bench.cost import shared_step_flop, student_flop, teacher_flop
from bench.datasets import facts as facts_of
from bench.measure import calibration
from bench.measure.calibration import Calibration, Pace, Step, kind
from bench.measure.gpu.facts import FILE, Fact, read
from bench.run import Precision, Run
from zoo.errors import bare, choose

MEASURED = Path(__file__).parents[2] / "results" / "measured"
GPU_SHARE, CORE_SHARE = 0.25, 0.5  # of the peak: what small convolutions reach
BANDWIDTH_SHARE = 0.5
KERNEL_S = 3e-6  # from one small kernel of a recorded graph to the next
KERNELS = {
    "student": 4,
    "teacher": 1,
}  # a layer: forward, backward, activation and update; forward with folded BatchNorm


@dataclass(frozen=True)
class Device:
    """What its maker says of a device: dense products, without sparsity."""

    words: str
    peak: Mapping[Precision, float]  # FLOP per second
    bytes_per_s: float | None  # None: of a CPU core, whose caches hold most of a step
    source: str

    @property
    def cuda(self) -> bool:
        return self.bytes_per_s is not None


def _gpu(words: str, fp32: float, tf32: float, bf16: float, tb_per_s: float, source: str) -> Device:
    peak = {"fp32": fp32 * 1e12, "tf32": tf32 * 1e12, "bf16": bf16 * 1e12}
    return Device(words, peak, tb_per_s * 1e12, f"NVIDIA, {source}")


def _core(words: str, flop_per_s: float, source: str) -> Device:
    return Device(words, dict.fromkeys(("fp32", "tf32", "bf16"), flop_per_s), None, source)


DEVICES = {
    "h100": _gpu("H100 SXM 80 GB", 66.9, 494.7, 989.4, 3.35, "H100 architecture white paper and data sheet"),
    "h200": _gpu("H200 SXM 141 GB", 66.9, 494.7, 989.4, 4.8, "H200 data sheet"),
    "a100": _gpu("A100 SXM 80 GB", 19.5, 156, 312, 2.039, "A100 data sheet"),
    "l40s": _gpu("L40S 48 GB", 91.6, 183, 362, 0.864, "L40S data sheet"),
    "4090": _gpu("GeForce RTX 4090", 82.6, 82.6, 165.2, 1.008, "Ada architecture white paper"),
    "3090": _gpu("GeForce RTX 3090", 35.6, 35.6, 71, 0.936, "GA102 architecture white paper"),
    # Two fused multiply-adds a cycle, each a multiplication and an addition on 8 or 16 numbers.
    "avx2": _core("a core with AVX2 at 3.0 GHz", 3.0e9 * 2 * 2 * 8, "two 256-bit multiply-adds a cycle"),
    "avx512": _core("a core with AVX-512 at 2.7 GHz", 2.7e9 * 2 * 2 * 16, "two 512-bit multiply-adds a cycle"),
}


def known(name: str) -> str:
    """The device of --on by the name that this project has for it. BadInput with all names where it has none."""
    return choose("device of --on", name, DEVICES)


def calibrate(
    runs: Mapping[str, Run],
    finished: Iterable[tuple[Run, Mapping[str, Any]]],
    name: str,
    cohorts: Sequence[Sequence[str]] = (),
    measured: Path = MEASURED,
) -> Calibration:
    """Seconds of `runs` on the device of that name; like `calibration.calibrate`, and nothing is measured now."""
    device, pace = DEVICES[name], Pace()
    examples = {kind(run): run for run in runs.values() if run.train is not None}
    done = calibration.take_finished(pace, finished, lambda origin: _is(name, origin.get("device")))
    told = [path for path in _tell(pace, list(examples.values()), name, measured)] if device.cuda else []
    if told:
        rests_on = f"steps measured on such a device ({', '.join(dict.fromkeys(told))})"
    elif done:
        rests_on = f"{done} finished runs on such a device"
    else:
        for run in examples.values():
            pace.add(run, model(run, device))
        rests_on = _said(device, next(iter(examples.values())).precision) if examples else ""
    together = {run_id: len(cohort) for cohort in cohorts for run_id in cohort}
    seconds = {run_id: pace.of(run, together.get(run_id, 1)) for run_id, run in runs.items()} if pace else {}
    kinds_done = len(examples.keys() & pace.step_s.keys()) if told or done else 0
    return Calibration(seconds, device.words, device.cuda, len(examples), kinds_done, 0, 0.0, rests_on)


def model(run: Run, device: Device) -> Step:
    """Seconds of a training step, by the model."""
    known_data, views = facts_of(run.data), 2 if run.data.views == "paired" else 1
    images = run.train.batch * views * (2 if run.precision == "bf16" else 4)  # bytes of one number of each image

    def part(role: str, arch: str, flop: float, passes: int) -> float:
        counts = zoo.counts(arch, known_data.classes, known_data.side)
        if not device.cuda:
            return flop / (CORE_SHARE * device.peak[run.precision])
        return (
            flop / (GPU_SHARE * device.peak[run.precision])
            + passes * counts.outputs * images / (BANDWIDTH_SHARE * device.bytes_per_s)
            + KERNELS[role] * counts.layers * views * KERNEL_S
        )

    own_s = part("student", run.student, student_flop(run), 6)
    if run.teacher is None:
        return Step(own_s, 0.0)
    teacher_s = part("teacher", run.teacher.arch, teacher_flop(run), 2)
    shared_s = teacher_s * shared_step_flop(run) / teacher_flop(run)
    return Step(own_s + teacher_s - shared_s, shared_s)


def _said(device: Device, precision: Precision) -> str:
    share = GPU_SHARE if device.cuda else CORE_SHARE
    more = f", {BANDWIDTH_SHARE:g} of its bandwidth, {KERNEL_S * 1e6:g} us a kernel" if device.cuda else ""
    peak = device.peak[precision]
    rate = f"{peak / 1e12:g} TFLOP/s" if peak >= 1e12 else f"{peak / 1e9:.0f} GFLOP/s"
    said = f"{share:g} of its peak of {rate} at {precision}{more}"
    return f"a model, nothing measured: {said} (expect a factor of 2 either way)"


def _is(name: str, device: Any) -> bool:
    """Whether a device's own name is of that kind: "NVIDIA H100 80GB HBM3" is an h100."""
    return DEVICES[name].cuda and isinstance(device, str) and bare(name) in bare(device)


def _tell(pace: Pace, examples: Sequence[Run], name: str, measured: Path) -> Iterator[str]:
    """Let a pace learn from measured steps of the runs' precision and nearest batch; yields where each was found."""
    for path in sorted(measured.glob(f"**/{FILE}")):
        facts = read(path)
        if any(fact["fact"] == "machine" and _is(name, fact.get("name")) for fact in facts):
            for run in examples:
                for fact in _nearest(run, facts):
                    pace.learn((str(path), *_of(fact)), _networks(fact), fact["method"], fact["flop"], fact["ms"] / 1e3)
                    yield str(path.relative_to(measured.parents[1]))


def _nearest(run: Run, facts: Sequence[Fact]) -> list[Fact]:
    """Facts of training steps as a run of this precision takes them, at the measured batch nearest to its own."""
    usual = next((fact for fact in facts if fact["fact"] == "defaults"), {})
    found = [
        fact
        for fact in facts
        if fact["fact"] in ("step", "layout")
        and {"method", "pair", "batch", "flop", "ms"} <= fact.keys()
        and fact.get("precision") == run.precision
        and (fact["fact"] == "step" or fact.get("layout") == usual.get("layouts", {}).get(run.precision))
        and fact.get("autotuned") == usual.get("autotuned", False)
    ]
    batches = {fact["batch"] for fact in found}
    nearest = min(batches, key=lambda batch: abs(math.log(batch / run.train.batch)), default=None)
    return [fact for fact in found if fact["batch"] == nearest]


def _of(fact: Fact) -> tuple[Any, ...]:
    return tuple(fact.get(name) for name in ("method", "pair", "batch", "precision"))


def _networks(fact: Fact) -> tuple[str | None, str]:
    teacher, dash, student = fact["pair"].rpartition("-")
    return (teacher if dash else None), student
