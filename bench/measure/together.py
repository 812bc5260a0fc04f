"""What runs cost that train together, beside one by one and beside a plain loop: `python -m bench.together`.

Core seconds of a step at batch 64, by the process's own clock: eight logit methods alone, as one cohort, and alone in
a plain loop in the field's style (`bench.measure.speed`, its loader in the same process); then all methods alone and as
one cohort. Each with its share of an epoch's augmentation. All are taken in turns, and the least of each counts.
The bound is what FLOP allow: n (teacher + student) / (teacher + n students).
Memory is the high-water mark of a process that takes steps of the cohort, beside that of its largest member alone and
what all have of their own: weights, momentum, statistics.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate
from torch.utils.data import DataLoader

import methods
import zoo
from bench import protocol
from bench.cost import student_flop, teacher_flop
from bench.measure import speed
from bench.measure.step_cost import noise, step, trainer_on_noise
from bench.run import Run, Teacher
from bench.surroundings.commandline import Parser, refuse
from bench.surroundings.provenance import device_name
from bench.training import data as datasets
from bench.training.trainer import Trainer
from zoo.errors import BadInput
from zoo.pairs import split_pair

PAIRS = ("resnet56-resnet20", "resnet32x4-resnet8x4")
# Eight whose step asks the teacher for its logits on one view.
LOGIT = (
    ("kd", {}),
    ("kd", {"temperature": 2.0}),
    ("clkd", {}),
    ("dkd", {}),
    ("sdd", {}),
    ("skd", {}),
    ("skd", {"dir_weight": 0.0}),
    ("skd_paper", {}),
)
IMAGES = 5000  # whose augmentation is timed
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Figures:
    """Core seconds of a step of all runs of a set."""

    runs: int
    alone_s: float
    together_s: float
    plain_s: float | None
    bound: float


def resolved(pair: str, name: str, changes: dict[str, float]) -> Run:
    """A run of the `standard` recipe with a random teacher."""
    teacher_arch, student = split_pair(pair, zoo.architectures())
    teacher = Teacher(arch=teacher_arch, run_id="random") if methods.get(name).uses_teacher else None
    run = protocol.resolve(protocol.load("standard"), name, student, 0, teacher=teacher)
    return run.model_copy(update={"params": {**run.params, **changes}})


def measure(runs: Sequence[Run], rounds: int, *, plainly: bool) -> Figures:
    """Steps of these runs alone, together and, where asked for, in a plain loop, in turns."""
    trainers = [[trainer_on_noise([run], CPU)] for run in runs] + [[trainer_on_noise(runs, CPU)]]
    takers: list[Callable[[], object]] = [lambda made=made: step(made[0]) for made in trainers]
    with closing(_plain_steps(runs[0])) as endless:
        if plainly:
            takers.append(lambda: next(endless))
        least = [min(times) for times in zip(*(_turn(takers) for _ in range(rounds + 1)), strict=True)]
    augmented_s = _augmentation_s(runs)
    flop = max(map(teacher_flop, runs)), sum(map(student_flop, runs))
    return Figures(
        len(runs),
        sum(least[: len(runs)]) + augmented_s * len(runs),
        least[len(runs)] + augmented_s,
        least[-1] * len(runs) if plainly else None,
        (sum(map(teacher_flop, runs)) + flop[1]) / (flop[0] + flop[1]),
    )


def _turn(takers: Sequence[Callable[[], object]]) -> list[float]:
    times = []
    for take in takers:
        started = time.process_time()
        take()
        times.append(time.process_time() - started)
    return times


def _plain_steps(run: Run) -> Iterator[float]:
    """Steps of a plain loop, one at each call; its images are made in this process, so that its clock sees them."""
    labels = noise(run.train.batch, CPU).train_labels
    plain = speed.Plain(run, speed.random_teacher(run), labels, CPU)
    loader = DataLoader(speed.pil_images("weak", None, IMAGES), run.train.batch, shuffle=True, drop_last=True)
    indices = torch.arange(run.train.batch)
    while True:
        for images, wanted in loader:
            yield plain.step(images, None, wanted, indices)


def _augmentation_s(runs: Sequence[Run]) -> float:
    """Core seconds of a step's images, made an epoch at a time."""
    run = next((run for run in runs if run.data.views == "paired"), runs[0])
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
    made = noise(1, CPU)
    dataset = datasets.Dataset(
        images, made.train_labels[:IMAGES], images[:1], made.train_labels[:1], made.mean, made.std
    )
    spent = []
    for epoch in (1, 2):
        started = time.process_time()
        datasets.augmented_epoch(dataset, run.data, 0, epoch)
        spent.append(time.process_time() - started)
    return min(spent) * run.train.batch / IMAGES


def peak_mib(runs: Sequence[Run]) -> float:
    """The most memory that a fresh process had while it took steps of these runs together."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_mib, (list(runs),))


def _peak_mib(runs: list[Run]) -> float:
    torch.set_num_threads(1)
    made = trainer_on_noise(runs, CPU)
    for _ in range(3):
        step(made)
    said = Path("/proc/self/status").read_text()
    return float(next(line for line in said.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def own_mib(runs: Sequence[Run]) -> float:
    """What runs hold for themselves between steps: weights and connectors with momentum, statistics."""
    made = Trainer.of(runs, noise(runs[0].train.batch, CPU), speed.random_teacher(runs[0]))
    counted = 0
    for member in made.members:
        trained = sum(p.numel() * p.element_size() for p in member.trained)
        buffers = [*member.student.buffers(), *member.method.buffers()]
        drifting = [*member.drifting.parameters(), *member.drifting.buffers()] if member.drifting else []
        counted += 2 * trained + sum(b.numel() * b.element_size() for b in (*buffers, *drifting))
    return counted / 2**20


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = Parser(prog="python -m bench.together", description=__doc__)
    parser.add_argument("--pairs", nargs="+", default=PAIRS, metavar="TEACHER-STUDENT")
    parser.add_argument("--rounds", type=int, default=3, help="turns, after one that warms up (default: 3)")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        rows, memory = [], []
        print(
            f"{device_name(CPU)}, one thread, torch {torch.__version__}, batch 64, fp32; core ms of a step", flush=True
        )
        for pair in args.pairs:
            logit = [resolved(pair, name, changes) for name, changes in LOGIT]
            everything = [resolved(pair, name, {}) for name in methods.names()]
            for label, runs in (("logit methods", logit), ("all methods", everything)):
                found = measure(runs, args.rounds, plainly=runs is logit)
                spent = [s and 1e3 * s for s in (found.plain_s, found.alone_s, found.together_s)]
                ratios = (
                    found.alone_s / found.together_s,
                    found.bound,
                    found.plain_s and found.plain_s / found.together_s,
                )
                rows.append([pair, label, found.runs, *spent, *ratios])
            if not args.no_memory:
                largest = max(peak_mib([run]) for run in logit)
                memory.append([pair, peak_mib(logit), largest, own_mib(logit)])
        heads = ["Pair", "runs", "n", "plain", "one by one", "together", "ratio", "bound", "beside plain"]
        print(tabulate(rows, heads, "github", (None, None, "d", ".0f", ".0f", ".0f", ".2f", ".2f", ".2f")))
        if memory:
            heads = ["Pair", "cohort (MiB)", "largest member alone (MiB)", "all members' own (MiB)"]
            print("\n" + tabulate(memory, heads, "github", (None, ".0f", ".0f", ".1f")))
    except BadInput as error:
        return refuse(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
