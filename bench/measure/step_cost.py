"""What a training step of each method costs beside the passes it cannot avoid: `python -m bench.step_cost`.

The floor of a method is the same step with the cross entropy as its only loss: the teacher's forward pass, the
student's forward and backward pass (on both views, where the method asks for two) and the optimiser. Step and floor
are timed in turns; the smallest of each is shown, since what else runs on the machine only ever adds to it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import torch
from tabulate import tabulate
from torch.nn.functional import cross_entropy

import methods
import zoo
from bench import protocol
from bench.datasets import CHANNELS, ENTRIES, facts, train_size
from bench.run import Data, Run, Teacher
from bench.surroundings.commandline import Parser, refuse
from bench.surroundings.provenance import device_name
from bench.training.data import Dataset
from bench.training.devices import parse_device
from bench.training.trainer import Trainer, results_of
from zoo.errors import BadInput
from zoo.pairs import split_pair

CIFAR100 = Data(dataset="cifar100", train_images=None, views="weak", strong=None)
PAIRS = ("resnet56-resnet20", "resnet32x4-resnet8x4")


def measure(run: Run, device: torch.device, rounds: int, steps: int = 1) -> tuple[float, float]:
    """Seconds of one step and of its floor, the least of `rounds` turns of `steps` each; random weights and images."""
    trainer = trainer_on_noise([run], device)
    method = trainer.members[0].method
    whole = method.terms
    times: dict[object, list[float]] = {whole: [], _labels_alone: []}
    for turn in range(rounds + 1):
        for terms, taken in times.items():
            method.terms = terms
            started = now(device)
            for _ in range(steps):
                step(trainer)
            if turn:  # the first one warms up
                taken.append((now(device) - started) / steps)
    return min(times[whole]), min(times[_labels_alone])


def _labels_alone(student: zoo.Outputs, teacher: zoo.Outputs | None, batch: methods.Batch, progress: object) -> dict:
    views = [student, *([student.strong] if student.strong else [])]
    return {"ce": sum(cross_entropy(view.logits, batch.labels) for view in views)}


def trainer_on_noise(runs: Sequence[Run], device: torch.device) -> Trainer:
    """The trainer of runs at their first epoch, with a random teacher, and one batch of images for its training set."""
    arch, data = next((run.teacher.arch for run in runs if run.teacher), None), runs[0].data
    teacher = zoo.build(arch, facts(data).classes, facts(data).side) if arch else None
    trainer = Trainer.of(runs, noise(runs[0].train.batch, device, data), teacher)
    for member in trainer.members:
        member.begin_epoch(1)
    return trainer


def step(trainer: Trainer, take: Callable[..., list] | None = None) -> list:
    """A training step of a `trainer_on_noise`; `take` is the trainer's step where that is wrapped, e.g. captured.

    Returns the result of each member; raises what one of them raised.
    """
    images = trainer.dataset.train_images
    strong = images if any(member.paired for member in trainer.members) else None
    batch = len(images)
    labels, indices = trainer.dataset.train_labels[:batch], torch.arange(batch, device=images.device)
    return results_of((take or trainer.step)(images, strong, labels, indices, members=trainer.members))


def noise(batch: int, device: torch.device, data: Data = CIFAR100) -> Dataset:
    """One batch of random images of a data set's size, and labels of all of it, which memories are sized by."""
    known, entry = facts(data), ENTRIES[data.dataset]
    generator = torch.Generator().manual_seed(0)
    shape = (batch, CHANNELS, known.side, known.side)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)
    labels = (torch.arange(max(train_size(data), batch)) % known.classes).to(device)
    mean, std = (
        torch.tensor(values or (0.5,) * CHANNELS, device=device).view(1, CHANNELS, 1, 1)
        for values in (entry.mean, entry.std)
    )
    return Dataset(images, labels, images, labels[:batch], mean, std)


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def table(recipe: protocol.Protocol, pair: str, names: Sequence[str], device: torch.device, rounds: int) -> str:
    """Milliseconds of a step and of its floor, and their ratio, one method a row."""
    teacher_arch, student = split_pair(pair, zoo.architectures())
    rows = []
    for name in names:
        teacher = Teacher(arch=teacher_arch, run_id="random") if methods.get(name).uses_teacher else None
        run = protocol.resolve(recipe, name, student, 0, teacher=teacher)
        step_s, floor_s = measure(run, device, rounds)
        rows.append([methods.get(name).label, 1e3 * step_s, 1e3 * floor_s, step_s / floor_s])
    return tabulate(rows, ["Method", "step (ms)", "floor (ms)", "ratio"], "github", (None, ".1f", ".1f", ".2f"))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = Parser(prog="python -m bench.step_cost", description=__doc__)
    parser.add_argument("--pairs", nargs="+", default=PAIRS, metavar="TEACHER-STUDENT")
    parser.add_argument("--methods", nargs="+", default=methods.names(), metavar="NAME")
    parser.add_argument("--protocol", default="standard", metavar="NAME|FILE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5, help="turns per method (default: 5)")
    args = parser.parse_args(arguments)
    try:
        device, recipe = parse_device(args.device), protocol.load(args.protocol)
        threads = f", {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
        print(f"{device_name(device)}{threads}, torch {torch.__version__}, batch {recipe.train.batch}, fp32")
        for pair in args.pairs:
            print(f"\n{pair}\n" + table(recipe, pair, args.methods, device, args.rounds), flush=True)
    except BadInput as error:
        return refuse(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
