"""How fast training is beside a plain loop in the field's style, on the same device: `python -m bench.speed`.

The plain loop is what the field's repositories do: PIL transforms in a DataLoader with two workers, eager networks in
PyTorch's default layout, the loss fetched at every step. It has the same networks, losses and batch. Both are timed in
turns and the shortest of each is shown, since what else runs on the machine only ever adds to it. The floor is that of
`bench.measure.ceilings`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tabulate import tabulate
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset

import methods
import zoo
from bench import protocol
from bench.datasets import ENTRIES, facts, root
from bench.measure.ceilings import limits
from bench.measure.step_cost import now
from bench.run import Precision, Run, Teacher
from bench.surroundings import paths
from bench.surroundings.commandline import Parser, refuse
from bench.surroundings.provenance import device_name
from bench.training import data as datasets
from bench.training.capture import captured, own_stream
from bench.training.devices import autocast, check_precision, parse_device, set_precision
from bench.training.member import seeded
from bench.training.trainer import Trainer, results_of
from zoo.errors import BadInput
from zoo.pairs import split_pair

CIFAR100 = ENTRIES["cifar100"]
PAIRS = ("resnet56-resnet20", "wrn_40_2-wrn_16_2")
WORKERS = 2  # of the plain loop's DataLoader
WARM_UP = 8  # steps before the clock counts; a captured step is recorded in them
PARTS = {  # of a step, by words in the names of operations and kernels
    "convolution backward": ("convolution_backward", "wgrad", "dgrad"),
    "convolution forward": ("conv", "fprop"),
    "BatchNorm": ("batch_norm", "bn_"),
    "ReLU": ("clamp", "threshold", "relu"),
    "optimiser": ("sgd", "fused_", "foreach"),
    "sums": ("add",),
}

Batch = tuple[Tensor, Tensor | None, Tensor]  # images, strongly augmented images, labels


class RandomImages(Dataset):
    """Random pixels as torchvision's CIFAR100 keeps and hands out its images: they cost what real ones do."""

    def __init__(self, images: int, transform: Callable[[Image.Image], object]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.data = torch.randint(0, 256, (images, 32, 32, 3), generator=generator, dtype=torch.uint8).numpy()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[object, int]:
        return self.transform(Image.fromarray(self.data[index])), index % CIFAR100.known.classes


def pil_images(views: str, root: Path | None, images: int = CIFAR100.known.train) -> Dataset:
    """CIFAR-100's training set as the field feeds it; two views of an image where `views` is "paired".

    Without a folder so many random images instead.
    """
    from torchvision import datasets as sets
    from torchvision import transforms

    crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    end = [transforms.ToTensor(), transforms.Normalize(CIFAR100.mean, CIFAR100.std)]
    weak = transforms.Compose([*crop, *end])
    strong = transforms.Compose([*crop, transforms.RandAugment(2), *end])
    seen = (lambda image: (weak(image), strong(image))) if views == "paired" else weak
    return RandomImages(images, seen) if root is None else sets.CIFAR100(root, train=True, transform=seen)


class Plain:
    """One run's networks, loss and optimiser, as the field trains them."""

    def __init__(self, run: Run, teacher: nn.Module, labels: Tensor, device: torch.device) -> None:
        with seeded(run.seed, "student"):
            self.student = zoo.build(run.student, facts(run.data).classes, facts(run.data).side)
        with seeded(run.seed, "method"):
            cls = methods.get(run.method)
            params = methods.check(cls.Params, run.params, "run")
            train_set = methods.TrainSet(labels, facts(run.data).classes)
            self.method = cls(params, self.student, teacher, train_set).to(device)
        self.run, self.device, self.student = run, device, self.student.to(device).train()
        self.teacher = teacher.to(device).train(self.method.teacher_mode == "train")
        self.optimizer = torch.optim.SGD(
            [*self.student.parameters(), *self.method.parameters()],
            lr=run.train.lr,
            momentum=run.train.momentum,
            weight_decay=run.train.weight_decay,
            nesterov=run.train.nesterov,
        )

    def step(self, images: Tensor, strong_images: Tensor | None, labels: Tensor, indices: Tensor) -> float:
        """One step on normalised images; returns the loss."""
        with autocast(self.run.precision, self.device):
            with torch.no_grad():
                teacher = self._outputs(self.teacher, images, strong_images)
            student = self._outputs(self.student, images, strong_images)
            progress = methods.Progress(torch.ones((), device=self.device))
            batch = methods.Batch(labels, indices, self.run.train.label_smoothing or 0.0)
            loss = sum(self.method.terms(student, teacher, batch, progress).values())
        self.optimizer.zero_grad()
        loss.backward()
        if self.run.train.grad_clip is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.run.train.grad_clip)
        self.optimizer.step()
        return loss.item()

    @staticmethod
    def _outputs(net: nn.Module, images: Tensor, strong_images: Tensor | None) -> zoo.Outputs:
        outputs = net.outputs(images)
        strong = None if strong_images is None else net.outputs(strong_images)
        return replace(outputs, strong=strong)


def plain_s(run: Run, teacher: nn.Module, images: Dataset, labels: Tensor, device: torch.device, steps: int) -> float:
    """Seconds of a step of the plain loop, loader included."""
    plain = Plain(run, teacher, labels, device)
    indices = torch.arange(run.train.batch, device=device)
    loader = DataLoader(
        images,
        run.train.batch,
        shuffle=True,
        num_workers=WORKERS,
        drop_last=True,
        multiprocessing_context="fork",  # as the field's loops have it, also within a process that was spawned
    )

    def batches() -> Iterator[Batch]:
        while True:
            yield from loader

    with closing(batches()) as endless:

        def take() -> None:
            seen, wanted = next(endless)
            views = seen if isinstance(seen, (list, tuple)) else (seen, None)
            weak, strong = (None if view is None else view.to(device) for view in views)
            plain.step(weak, strong, wanted.to(device), indices)

        return timed(take, device, steps)


def ours_s(run: Run, teacher: nn.Module, dataset: datasets.Dataset, steps: int) -> float:
    """Seconds of a step of the trainer, with its share of the epoch's augmentation."""
    device = dataset.train_labels.device
    with own_stream(device):
        take, epoch, augmented_s = _ours(run, teacher, dataset)
        return timed(take, device, steps) + augmented_s / epoch.steps(run.train.batch)


def _ours(run: Run, teacher: nn.Module, dataset: datasets.Dataset) -> tuple[Callable, datasets.Epoch, float]:
    """The next step, the epoch that it is of, and the seconds that the epoch took to make."""
    device, batch = dataset.train_labels.device, run.train.batch
    trainer = Trainer.of([run], dataset, teacher)
    trainer.members[0].begin_epoch(1)
    started = now(device)
    epoch = datasets.augmented_epoch(dataset, run.data, run.seed, 1)
    augmented_s = now(device) - started
    step = captured(trainer.step, device)
    parts = itertools.cycle(datasets.slices(len(epoch.labels) // batch * batch, batch))

    def take() -> None:
        results_of(step(*epoch.batch(next(parts)), members=trainer.members))

    return take, epoch, augmented_s


def timed(take: Callable[[], None], device: torch.device, steps: int) -> float:
    for _ in range(WARM_UP):
        take()
    started = now(device)
    for _ in range(steps):
        take()
    return (now(device) - started) / steps


def profiled(take: Callable[[], None], device: torch.device, steps: int) -> list[tuple[str, float, float]]:
    """(name, how often a step, ms a step) of each operation (CPU) or kernel (GPU), the longest first."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            take()
        now(device)
    return longest_first(seen.key_averages(), cuda, steps)


def longest_first(events: Iterable[Any], cuda: bool, steps: int) -> list[tuple[str, float, float]]:
    """What `profiled` returns, of the profiler's averages. On a GPU what launched a kernel would count it again."""
    rows = []
    for event in events:
        if cuda and (event.device_type != DeviceType.CUDA or getattr(event, "is_user_annotation", False)):
            continue
        spent_us = event.self_device_time_total if cuda else event.self_cpu_time_total
        rows.append((event.key, event.count / steps, spent_us / 1e3 / steps))
    return sorted(rows, key=lambda row: -row[2])


def parts_table(run: Run, teacher: nn.Module, dataset: datasets.Dataset, steps: int) -> str:
    """Where a step's time goes, by kind of operation (CPU) or kernel (GPU)."""
    device = dataset.train_labels.device
    with own_stream(device):
        take, _, _ = _ours(run, teacher, dataset)
        timed(take, device, 1)
        seen = profiled(take, device, steps)
    spent = dict.fromkeys((*PARTS, "other"), 0.0)
    for name, _, ms in seen:
        part = next((part for part, words in PARTS.items() if any(word in name.lower() for word in words)), "other")
        spent[part] += ms
    whole = sum(spent.values())
    rows = [[part, ms, 100 * ms / whole] for part, ms in sorted(spent.items(), key=lambda item: -item[1])]
    return tabulate(rows, ["part of a step", "ms", "%"], "github", (None, ".2f", ".1f"))


def agreement(
    run: Run, teacher: nn.Module, dataset: datasets.Dataset, steps: int, dtype: torch.dtype, epoch_of_lr: int = 1
) -> float:
    """Relative distance of the weights, trainer to plain loop, after `steps` of the same batches in that precision.

    The weights start as the run's do, and the learning rate is that of an epoch of the schedule. At the first one's a
    young network doubles any difference every few steps, in float32 that of one and two threads, too.
    """
    teacher.to(dtype)  # before its BatchNorm is folded
    made = Trainer.of([run], dataset, teacher)
    ours = made.members[0]
    plain = Plain(run, teacher, dataset.train_labels, dataset.train_labels.device)
    if dtype == torch.float64:
        made.dataset = replace(dataset, mean=dataset.mean.double(), std=dataset.std.double())
        for net in (ours.student, ours.method, plain.student, plain.method):
            net.double()
    ours.begin_epoch(epoch_of_lr)
    for group in plain.optimizer.param_groups:
        group["lr"] = float(ours.lr)  # as float32 has it
    epoch = datasets.augmented_epoch(dataset, run.data, run.seed, 1)
    for _, part in zip(range(steps), datasets.slices(len(epoch.labels), run.train.batch), strict=False):
        images, strong, labels, indices = epoch.batch(part)
        results_of(made.step(images, strong, labels, indices))
        views = (None if view is None else made.dataset.normalise(view) for view in (images, strong))
        plain.step(*views, labels, indices)
    here, there = (
        torch.cat([p.detach().flatten().double() for p in net.parameters()]) for net in (ours.student, plain.student)
    )
    return float((here - there).norm() / there.norm())


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = Parser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--pairs", nargs="+", default=PAIRS, metavar="TEACHER-STUDENT")
    parser.add_argument("--methods", nargs="+", default=["kd"], metavar="NAME")
    parser.add_argument("--protocol", default="standard", metavar="NAME|FILE")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument(
        "--data", type=paths.option, metavar="DIR", help="folder that holds cifar-100-python/ (default: $CIFAR100_ROOT)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=40, help="steps of a turn (default: 40)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each loop (default: 3)")
    parser.add_argument("--profile", action="store_true", help="where a step's time goes, instead")
    parser.add_argument("--agreement", action="store_true", help="how far weights are apart after --steps, instead")
    args = parser.parse_args(arguments)
    try:
        return _main(args)
    except BadInput as error:
        return refuse(str(error))


def _main(args: argparse.Namespace) -> int:
    device, recipe = parse_device(args.device), protocol.load(args.protocol)
    check_precision(args.precision, device)
    if recipe.train.optimizer:
        raise BadInput(
            f'protocol "{recipe.name}" trains with {recipe.train.optimizer}: the plain loop here has SGD alone'
        )
    runs = [_run(recipe, pair, name, args.precision) for pair in args.pairs for name in args.methods]
    set_precision(args.precision)
    datasets.prepare(recipe.data, args.data)
    folder = root("cifar100", args.data)
    dataset = datasets.load(recipe.data, folder, device)
    threads = f", {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    batch = f"batch {recipe.train.batch}, {args.precision}"
    print(f"{device_name(device)}{threads}, torch {torch.__version__}, {batch}", flush=True)
    if args.profile:
        for run in runs:
            print(f"\n{_name(run)}\n{parts_table(run, random_teacher(run), dataset, args.steps)}")
        return 0
    if args.agreement:
        for run in runs:
            for dtype in (torch.float32, torch.float64):
                for epoch in (1, run.train.epochs):
                    off = agreement(run, random_teacher(run), dataset, args.steps, dtype, epoch)
                    at = f"{args.steps} steps at the learning rate of epoch {epoch}, {str(dtype)[6:]}"
                    print(f"{_name(run)}: weights {off:.1e} apart after {at}", flush=True)
        return 0
    best = limits(device, args.precision)
    print(f"at best {best.flop_per_s / 1e9:.0f} GFLOP/s, {best.bytes_per_s / 1e9:.0f} GB/s", flush=True)
    rows = []
    for run in runs:
        images = pil_images(run.data.views, root)
        times = [
            (
                plain_s(run, random_teacher(run), images, dataset.train_labels, device, args.steps),
                ours_s(run, random_teacher(run), dataset, args.steps),
            )
            for _ in range(args.rounds)
        ]
        plain, ours = (min(column) for column in zip(*times, strict=True))
        floor = best.floor_s(run)
        each = run.train.batch / ours
        found = 1e3 * plain, 1e3 * ours, plain / ours, each, 1e3 * floor, 100 * floor / ours
        rows.append([*_name(run).split(), *found])
    heads = ["Pair", "Method", "plain (ms)", "ours (ms)", "ratio", "ours (images/s)", "floor (ms)", "floor/ours (%)"]
    print("\n" + tabulate(rows, heads, "github", (None, None, ".1f", ".1f", ".2f", ".0f", ".1f", ".0f")))
    return 0


def _run(recipe: protocol.Protocol, pair: str, name: str, precision: Precision) -> Run:
    teacher, student = split_pair(pair, zoo.architectures())
    if not methods.get(name).uses_teacher:
        raise BadInput(f'method "{name}" has no teacher: bench.speed times distillation')
    random = Teacher(arch=teacher, run_id="random")
    return protocol.resolve(recipe, name, student, 0, teacher=random, precision=precision)


def _name(run: Run) -> str:
    return f"{run.teacher.arch}-{run.student} {run.method}"


def random_teacher(run: Run) -> nn.Module:
    """A random teacher, the same each time."""
    with seeded(run.seed, "teacher of a benchmark"):
        return zoo.build(run.teacher.arch, facts(run.data).classes, facts(run.data).side).requires_grad_(False)


if __name__ == "__main__":
    sys.exit(main())
