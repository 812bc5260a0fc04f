"""How fast training is beside a plain loop in the field's style, on the same device: `python -m bench.speed`.

The plain loop is what the field's repositories do: PIL transforms in a DataLoader with two workers, eager networks in
PyTorch's default layout, the loss fetched at every step. It has the same networks, losses and batch. Both are timed in
turns and the shortest of each is shown, since what else runs on the machine only ever adds to it.

The floor is the larger of two times: the step's FLOP (`bench.cost`) at the device's best measured convolution or matrix
product, and its bytes at the measured bandwidth. Bytes: each output of a convolution, BatchNorm or linear layer written
and read once in a forward pass, and twice that again in the student's backward pass.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset

import methods
import zoo
from bench import paths, protocol
from bench.commandline import Parser, refuse
from bench.cost import step_flop
from bench.measure.step_cost import now
from bench.provenance import device_name
from bench.run import Precision, Run, Teacher
from bench.training import data as datasets
from bench.training.capture import captured, own_stream
from bench.training.devices import autocast, check_precision, parse_device, set_precision
from bench.training.trainer import Trainer, seeded
from zoo.errors import BadInput
from zoo.outputs import IMAGE
from zoo.pairs import split_pair

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


def pil_images(views: str, root: Path) -> Dataset:
    """CIFAR-100's training set as the field feeds it; two views of an image where `views` is "paired"."""
    from torchvision import transforms
    from torchvision.datasets import CIFAR100

    crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    end = [transforms.ToTensor(), transforms.Normalize(datasets.CIFAR100_MEAN, datasets.CIFAR100_STD)]
    weak = transforms.Compose([*crop, *end])
    strong = transforms.Compose([*crop, transforms.RandAugment(2), *end])
    seen = (lambda image: (weak(image), strong(image))) if views == "paired" else weak
    return CIFAR100(root, train=True, transform=seen)


class Plain:
    """One run's networks, loss and optimiser, as the field trains them."""

    def __init__(self, run: Run, teacher: nn.Module, labels: Tensor, device: torch.device) -> None:
        with seeded(run.seed, "student"):
            self.student = zoo.build(run.student)
        with seeded(run.seed, "method"):
            cls = methods.get(run.method)
            params = methods.check(cls.Params, run.params, "run")
            self.method = cls(params, self.student, teacher, methods.TrainSet(labels, datasets.NUM_CLASSES)).to(device)
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
            loss = sum(self.method.terms(student, teacher, methods.Batch(labels, indices), progress).values())
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
    loader = DataLoader(images, run.train.batch, shuffle=True, num_workers=WORKERS, drop_last=True)

    def batches() -> Iterator[Batch]:
        while True:
            yield from loader

    with closing(batches()) as endless:

        def take() -> None:
            seen, wanted = next(endless)
            views = seen if isinstance(seen, (list, tuple)) else (seen, None)
            weak, strong = (None if view is None else view.to(device) for view in views)
            plain.step(weak, strong, wanted.to(device), indices)

        return _timed(take, device, steps)


def ours_s(run: Run, teacher: nn.Module, dataset: datasets.Dataset, steps: int) -> float:
    """Seconds of a step of the trainer, with its share of the epoch's augmentation."""
    device = dataset.train_labels.device
    with own_stream(device):
        take, epoch, augmented_s = _ours(run, teacher, dataset)
        return _timed(take, device, steps) + augmented_s / epoch.steps(run.train.batch)


def _ours(run: Run, teacher: nn.Module, dataset: datasets.Dataset) -> tuple[Callable, datasets.Epoch, float]:
    """The next step, the epoch that it is of, and the seconds that the epoch took to make."""
    device, batch = dataset.train_labels.device, run.train.batch
    trainer = Trainer(run, dataset, teacher)
    trainer.begin_epoch(1)
    started = now(device)
    epoch = datasets.augmented_epoch(dataset, run.data, run.seed, 1)
    augmented_s = now(device) - started
    step = captured(trainer.step, batch, device)
    parts = itertools.cycle(datasets.slices(len(epoch.labels) // batch * batch, batch))

    def take() -> None:
        part = next(parts)
        strong = None if epoch.strong_images is None else epoch.strong_images[part]
        step(epoch.images[part], strong, epoch.labels[part], epoch.indices[part])

    return take, epoch, augmented_s


def _timed(take: Callable[[], None], device: torch.device, steps: int) -> float:
    for _ in range(WARM_UP):
        take()
    started = now(device)
    for _ in range(steps):
        take()
    return (now(device) - started) / steps


@dataclass(frozen=True)
class Limits:
    """What the device does at best."""

    flop_per_s: float
    bytes_per_s: float

    def floor_s(self, run: Run) -> float:
        """The least that a step of a run takes."""
        return max(step_flop(run) / self.flop_per_s, step_bytes(run) / self.bytes_per_s)


def limits(device: torch.device, precision: Precision) -> Limits:
    """Measured: the best of 3x3 convolutions of 64 images, in both layouts, and a matrix product; a copy."""
    set_precision(precision)
    flop_per_s = 0.0
    with torch.no_grad(), autocast(precision, device):
        a = torch.randn(2048, 2048, device=device)
        flop_per_s = 2 * 2048**3 / _least_s(lambda: a @ a, device)
        for channels, size in ((64, 32), (128, 16), (256, 8)):
            for layout in (torch.contiguous_format, torch.channels_last):
                x = torch.randn(64, channels, size, size, device=device).contiguous(memory_format=layout)
                w = torch.randn(channels, channels, 3, 3, device=device).contiguous(memory_format=layout)
                work = lambda x=x, w=w: nn.functional.conv2d(x, w, padding=1)  # noqa: E731
                flop = 2 * 9 * channels * x.numel()
                flop_per_s = max(flop_per_s, flop / _least_s(work, device))
        source = torch.empty(1 << (27 if device.type == "cuda" else 26), device=device)
        target = torch.empty_like(source)
        bytes_per_s = 2 * source.nbytes / _least_s(lambda: target.copy_(source), device)
    return Limits(flop_per_s, bytes_per_s)


def _least_s(work: Callable[[], object], device: torch.device, turns: int = 10) -> float:
    times = []
    for _ in range(turns + 2):
        started = now(device)
        work()
        times.append(now(device) - started)
    return min(times)


def step_bytes(run: Run) -> float:
    """Bytes of a step, as the module says; in bfloat16 half of them."""
    passes = 6 * _outputs_of(run.student) + 2 * (_outputs_of(run.teacher.arch) if run.teacher else 0)
    views = 2 if run.data.views == "paired" else 1
    return passes * run.train.batch * views * (2 if run.precision == "bf16" else 4)


@torch.no_grad()
def _outputs_of(arch: str) -> int:
    """Numbers that the layers of a network put out for one image."""
    net, seen = zoo.build(arch).eval(), 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal seen
        seen += output.numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            module.register_forward_hook(add)
    net(torch.zeros(1, *IMAGE))
    return seen


def parts_table(run: Run, teacher: nn.Module, dataset: datasets.Dataset, steps: int) -> str:
    """Where a step's time goes, by kind of operation (CPU) or kernel (GPU)."""
    device = dataset.train_labels.device
    cuda = device.type == "cuda"
    with own_stream(device):
        take, _, _ = _ours(run, teacher, dataset)
        _timed(take, device, 1)
        with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
            for _ in range(steps):
                take()
            now(device)
    spent = dict.fromkeys((*PARTS, "other"), 0.0)
    for event in seen.key_averages():
        name = event.key.lower()
        part = next((part for part, words in PARTS.items() if any(word in name for word in words)), "other")
        spent[part] += (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3 / steps
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
    made = Trainer(run, dataset, copy.deepcopy(teacher))  # whose statistics may drift
    plain = Plain(run, teacher, dataset.train_labels, dataset.train_labels.device)
    if dtype == torch.float64:
        made.dataset = replace(dataset, mean=dataset.mean.double(), std=dataset.std.double())
        for net in (made.student, made.method, plain.student, plain.method):
            net.double()
    made.begin_epoch(epoch_of_lr)
    for group in plain.optimizer.param_groups:
        group["lr"] = float(made.lr)  # as float32 has it
    epoch = datasets.augmented_epoch(dataset, run.data, run.seed, 1)
    for _, part in zip(range(steps), datasets.slices(len(epoch.labels), run.train.batch), strict=False):
        strong = None if epoch.strong_images is None else epoch.strong_images[part]
        made.step(epoch.images[part], strong, epoch.labels[part], epoch.indices[part])
        views = (None if view is None else made.dataset.normalise(view) for view in (epoch.images[part], strong))
        plain.step(*views, epoch.labels[part], epoch.indices[part])
    ours, theirs = (
        torch.cat([p.detach().flatten().double() for p in net.parameters()]) for net in (made.student, plain.student)
    )
    return float((ours - theirs).norm() / theirs.norm())


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
    runs = [_run(recipe, pair, name, args.precision) for pair in args.pairs for name in args.methods]
    set_precision(args.precision)
    datasets.prepare(recipe.data, args.data)
    root = datasets.cifar100_root(args.data)
    dataset = datasets.load(recipe.data, root, device)
    threads = f", {torch.get_num_threads()} thread(s)" if device.type == "cpu" else ""
    batch = f"batch {recipe.train.batch}, {args.precision}"
    print(f"{device_name(device)}{threads}, torch {torch.__version__}, {batch}", flush=True)
    if args.profile:
        for run in runs:
            print(
                f"\n{run.teacher.arch}-{run.student} {run.method}\n{parts_table(run, _net(run), dataset, args.steps)}"
            )
        return 0
    if args.agreement:
        for run in runs:
            for dtype in (torch.float32, torch.float64):
                for epoch in (1, run.train.epochs):
                    off = agreement(run, _net(run), dataset, args.steps, dtype, epoch)
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
                plain_s(run, _net(run), images, dataset.train_labels, device, args.steps),
                ours_s(run, _net(run), dataset, args.steps),
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


def _net(run: Run) -> nn.Module:
    """A random teacher, the same each time."""
    with seeded(run.seed, "teacher of a benchmark"):
        return zoo.build(run.teacher.arch).requires_grad_(False)


if __name__ == "__main__":
    sys.exit(main())
