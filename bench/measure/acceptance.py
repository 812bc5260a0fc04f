"""What must be true of a device before any long run on it: `python -m bench.acceptance --device cuda --data DIR`.

Three checks: published checkpoints (`--weights`, or $KD_WEIGHTS) give their known accuracy; the first training steps
of the `standard` recipe in fp32 give the losses and updates that the CPU gives; an augmented epoch is the CPU's, bit
for bit. With `--device cpu` the reference runs in one thread. Exit status: 0 all holds, 1 something does not, 2 wrong
request.
"""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor, nn

import methods
import zoo
from bench import protocol
from bench.run import Data, Run, Teacher
from bench.surroundings import paths
from bench.surroundings.commandline import Parser, refuse
from bench.surroundings.provenance import device_name
from bench.training import data as datasets
from bench.training.data import Dataset
from bench.training.devices import memory_format, parse_device, set_precision
from bench.training.evaluate import evaluate
from bench.training.member import Member, seeded
from bench.training.trainer import Trainer, results_of
from zoo import published
from zoo.errors import BadInput, choose

WEIGHTS_VARIABLE = "KD_WEIGHTS"
# Top-1 in fp32 on the 10,000 test images, as measured on a CPU with these files.
PUBLISHED = {entry.name.removesuffix(".pth"): entry.top1 for entry in published.published() if entry.top1}
IMAGES = 3  # of 10,000 that rounding may move over a decision boundary
TEACHER, STUDENT, METHODS, SEED = "resnet56", "resnet20", ("vanilla", "kd"), 0
STEPS = 12
# Two free runs soon agree in nothing: on one CPU the losses of one and two threads part by 2e-7 at step 1, 3e-5 at step
# 2, 2e-3 at step 4. So each step starts from the reference's state, and differences are those of single steps. A loss
# averages rounding away, logits do not: in resnet20 fp32 is off by 1e-5 to 2e-5, TF32 by 6e-4. An update follows
# gradients that jump where a ReLU switches: fp32 gives a young network's to about 1 %, in any order of sums.
TOLERANCES = {"loss": 1e-5, "logits": 1e-4, "update": 5e-2}


@dataclass(frozen=True)
class Check:
    """One thing that must hold, what was found, and the rows that show it."""

    name: str
    holds: bool
    found: str
    table: str = ""


def check_checkpoints(weights: Path, dataset: Dataset) -> Iterator[Check]:
    """Top-1 of each known checkpoint that is in the folder."""
    most = 100 * IMAGES / len(dataset.test_labels)
    device = dataset.test_images.device
    for name in _known(weights):
        net = zoo.build(published.named(f"{name}.pth").arch)
        zoo.load_weights(net, weights / f"{name}.pth")
        top1 = evaluate(net.to(device, memory_format=memory_format(device)), dataset).top1
        holds = abs(top1 - PUBLISHED[name]) <= most + 1e-9
        yield Check(name, holds, f"top-1 {top1:.2f}, known {PUBLISHED[name]:.2f} (tolerance {most:.2f})")


def _known(weights: Path) -> list[str]:
    """The checkpoints with a known accuracy that are in the folder; BadInput where there is none."""
    there = [name for name in PUBLISHED if (weights / f"{name}.pth").is_file()]
    if not there:
        raise BadInput(f'--weights "{weights}": none of {", ".join(f"{name}.pth" for name in PUBLISHED)} is there')
    return there


def check_training(run: Run, teacher: nn.Module | None, dataset: Dataset, reference: Dataset, steps: int) -> Check:
    """The first `steps` steps on the device of `dataset` beside those on that of `reference`."""
    set_precision(run.precision)
    both = [Trainer.of([run], its, teacher) for its in (dataset, reference)]
    batches, same = (_batches(run, its) for its in (dataset, reference))
    ours, theirs = (trainer.members[0] for trainer in both)
    for member in (ours, theirs):
        member.begin_epoch(1)
    seen = [_logits_seen(member) for member in (ours, theirs)]
    rows, worst = [], dict.fromkeys(TOLERANCES, 0.0)
    for step, batch, its in zip(range(1, steps + 1), batches, same, strict=False):
        ours.student.load_state_dict(theirs.student.state_dict())
        ours.method.load_state_dict(theirs.method.state_dict())
        ours.load_optimizer(copy.deepcopy(theirs.optimizer.state_dict()))  # else it may be shared
        before = _weights(theirs)
        here = _loss(both[0], batch)
        with _one_thread_if_same(dataset, reference):
            there = _loss(both[1], its)
        off = {
            "loss": (here - there).abs().max() / there.abs().sum(),
            "logits": _distance(seen[0].pop(), seen[1].pop()),
            "update": _distance(_weights(ours) - before, _weights(theirs) - before),
        }
        off = {kind: float(value.nan_to_num(nan=math.inf)) for kind, value in off.items()}  # NaN: as far as can be
        worst = {kind: max(worst[kind], off[kind]) for kind in worst}
        terms = [f"{value:.7f}" for pair in zip(here.tolist(), there.tolist(), strict=True) for value in pair]
        rows.append([step, *terms, *(f"{value:.1e}" for value in off.values())])
    heads = [head for name in ours.term_names for head in (name, f"{name}, reference")]
    table = tabulate(rows, ["step", *heads, *(f"{kind} off" for kind in worst)], "github", disable_numparse=True)
    found = ", ".join(f"{kind} off by {value:.1e} (tolerance {TOLERANCES[kind]:.0e})" for kind, value in worst.items())
    holds = all(value <= TOLERANCES[kind] for kind, value in worst.items())
    return Check(f"{run.method} {run.student}, fp32, {len(rows)} steps", holds, found, table)


def _loss(trainer: Trainer, batch: tuple[Tensor, Tensor | None, Tensor, Tensor]) -> Tensor:
    """The loss terms of a step of its only member."""
    ((values, _),) = results_of(trainer.step(*batch))
    return values.cpu().double()


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours - theirs).norm() / theirs.norm()


def _logits_seen(member: Member) -> list[Tensor]:
    """Where the student's logits of each step will be found."""
    seen, terms = [], member.method.terms

    def watched(student: zoo.Outputs, *others: object) -> dict[str, Tensor]:
        seen.append(student.logits.detach().cpu().double())
        return terms(student, *others)

    member.method.terms = watched
    return seen


def _batches(run: Run, dataset: Dataset) -> Iterator[tuple[Tensor, Tensor | None, Tensor, Tensor]]:
    """The batches of the first epoch, as the trainer takes them."""
    epoch = datasets.augmented_epoch(dataset, run.data, run.seed, 1)
    for part in datasets.slices(len(epoch.labels), run.train.batch):
        yield epoch.batch(part)


def _weights(member: Member) -> Tensor:
    return torch.cat([parameter.detach().flatten().cpu().double() for parameter in member.trained])


def check_data(data: Data, dataset: Dataset, reference: Dataset) -> Check:
    """An augmented epoch, weak and strong, on both devices: integers, so nothing may differ."""
    ours = datasets.augmented_epoch(dataset, data, SEED, 1)
    with _one_thread_if_same(dataset, reference):
        theirs = datasets.augmented_epoch(reference, data, SEED, 1)
    differ = (ours.images.cpu() != theirs.images).flatten(1).any(dim=1)
    same = torch.equal(ours.labels.cpu(), theirs.labels) and torch.equal(ours.indices.cpu(), theirs.indices)
    found = f"{int(differ.sum())} of {len(differ):,} images differ" + ("" if same else ", and their order does")
    return Check(f"augmented epoch, {data.views}", same and not differ.any(), found)


@contextmanager
def _one_thread_if_same(dataset: Dataset, reference: Dataset) -> Iterator[None]:
    """Where a CPU is compared with itself, one thread makes it sum in another order."""
    threads = torch.get_num_threads()
    if dataset.train_images.device == reference.train_images.device:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def checks(
    device: torch.device, data: Path | None, weights: Path | None, names: Sequence[str] = METHODS, steps: int = STEPS
) -> Iterator[Check]:
    """All checks of a device on CIFAR-100, cheapest first."""
    recipe, both = protocol.load("standard"), protocol.load("streamlined").data
    datasets.prepare(recipe.data, data)
    reference = datasets.load(recipe.data, data, torch.device("cpu"))
    dataset = reference if device.type == "cpu" else datasets.load(recipe.data, data, device)
    known = weights / "sskd" / f"{TEACHER}.pth" if weights else None
    file = known if known and known.is_file() else None
    for name in names:
        teacher = Teacher(arch=TEACHER, run_id="acceptance") if methods.get(name).uses_teacher else None
        run = protocol.resolve(recipe, name, STUDENT, SEED, teacher=teacher)
        net = None
        if teacher:
            with seeded(SEED, "teacher"):  # what a teacher without a file is drawn from
                net = zoo.build(TEACHER)
            if file:
                zoo.load_weights(net, file)
        yield check_training(run, net, dataset, reference, steps)
    yield check_data(both, dataset, reference)
    if weights:
        yield from check_checkpoints(weights, dataset)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = Parser(prog="python -m bench.acceptance", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--data", type=paths.option, metavar="DIR", help="default: $CIFAR100_ROOT, else ./data")
    parser.add_argument("--weights", type=paths.option, metavar="DIR", default=os.environ.get(WEIGHTS_VARIABLE),
                        help=f"folder of published checkpoints (default: ${WEIGHTS_VARIABLE})")  # fmt: skip
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="NAME", help="trained for a few steps")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"default: {STEPS}")
    args = parser.parse_args(arguments)
    if not 1 <= args.steps <= 100:
        parser.error(f"--steps {args.steps}: give 1 to 100")
    began, failed = time.monotonic(), 0
    try:
        device = parse_device(args.device)
        args.methods = [choose("method", name, methods.names()) for name in args.methods]
        if args.weights:
            _known(args.weights)
        print(f"{device_name(device)}, torch {torch.__version__}, reference {device_name(torch.device('cpu'))}")
        for check in checks(device, args.data, args.weights, args.methods, args.steps):
            failed += not check.holds
            print(f"{'ok    ' if check.holds else 'FAILED'}  {check.name}: {check.found}", flush=True)
            if check.table:
                print(check.table, flush=True)
    except BadInput as error:
        return refuse(str(error))
    if not args.weights:
        print(f"not checked: published checkpoints (no --weights, no ${WEIGHTS_VARIABLE})")
    print(f"{f'{failed} checks FAILED' if failed else 'all holds'}, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
