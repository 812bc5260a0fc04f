"""Top-1 and top-5 on held-out images.

`python -m bench.evaluate --weights F --data DIR` for a run, a checkpoint that is known, or with --arch A any other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import zoo
from bench import grid, outside
from bench.datasets import ENTRIES, facts, identified
from bench.run import Data, Run
from bench.surroundings import paths
from bench.surroundings.commandline import Parser, refuse
from bench.training import data as datasets
from bench.training.devices import memory_format, parse_device
from methods import check
from zoo import published, trained
from zoo.checkpoints import Source
from zoo.reused import Reused

# Images at a time: enough to fill a GPU; on a CPU so few that a layer's maps stay in its cache (twice as fast as 1000).
BATCH = {"cuda": 1000, "cpu": 100}


Part = Literal["test", "val"]
COLUMNS = {"test": ("top1", "top5", "test_loss"), "val": ("val_top1", "val_top5", "val_loss")}  # of a curve


@dataclass(frozen=True)
class Metrics:
    """Over all images of a set; accuracies in percent."""

    top1: float
    top5: float
    loss: float  # mean cross entropy, natural logarithm

    def columns(self, part: Part) -> dict[str, float]:
        """As a row of a curve has them."""
        return dict(zip(COLUMNS[part], (self.top1, self.top5, self.loss), strict=True))


def due(run: Run, epoch: int) -> tuple[Part, ...]:
    """What a run is evaluated on after an epoch (from 1). One with a validation split sees the test set once."""
    if run.data.validation is None:
        return ("test",)
    return (("val",) if run.data.validation else ()) + (("test",) if epoch == run.train.epochs else ())


@torch.no_grad()
def evaluate(
    net: nn.Module,
    dataset: datasets.Dataset,
    on_batch: Callable[[], None] = lambda: None,
    layout: torch.memory_format | None = None,
    part: Part = "test",
) -> Metrics:
    """Metrics of `net` in eval mode (its mode is restored); counts stay on the device until the end.

    `layout` is that of its weights where it is not the device's for fp32. `part` "val" is the validation images, which
    the data set must have.
    """
    was_training = net.training
    net.eval()
    images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
    device = images.device
    layout = layout or memory_format(device)
    total = torch.zeros(3, dtype=torch.float64, device=device)
    for some in datasets.slices(len(labels), BATCH[device.type]):
        logits = net(dataset.normalise(images[some]).contiguous(memory_format=layout)).float()
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[some, None]
        loss = cross_entropy(logits, labels[some], reduction="sum")
        total += torch.stack([hits[:, 0].sum().double(), hits.sum().double(), loss.double()])
        on_batch()
    net.train(was_training)
    top1, top5, loss = total.tolist()
    n = len(labels)
    return Metrics(100 * top1 / n, 100 * top5 / n, loss / n)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.evaluate", description=__doc__)
    parser.add_argument("--weights", required=True, type=paths.option, help="checkpoint file, or the folder of a run")
    parser.add_argument("--arch", help="architecture, e.g. resnet56, where the file does not say (default: it does)")
    parser.add_argument("--grid", help="a grid file, of whose own `networks` --arch may be one")
    parser.add_argument(
        "--dataset", help=f"{', '.join(ENTRIES)} (default: what the file says it was trained on, else cifar100)"
    )
    parser.add_argument("--side", type=int, help="height and width that the images of a folder are resized to")
    parser.add_argument(
        "--data",
        type=paths.option,
        help="folder that holds the data set (default: its variable, $CIFAR100_ROOT for CIFAR-100, else ./data, "
        "downloaded if missing)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    args = parser.parse_args(arguments)
    try:
        device = parse_device(args.device)
        if args.grid:
            outside.bring((), grid.load(args.grid).networks)
        net = None if args.arch else outside.load(args.weights)
        file = args.weights / trained.WEIGHTS if args.weights.is_dir() else args.weights
        data = _data(args, net and net.about)
        known = facts(data)
        if net is None:
            net = zoo.build(args.arch, known.classes, known.side)
        elif (net.about.classes, net.about.side) != (known.classes, known.side):
            raise zoo.BadInput(
                f"{file} has {net.about.classes} classes and takes images of side {net.about.side}, {data.dataset} has "
                f"{known.classes} and side {known.side}: give another --dataset or --side"
            )
        # What a method deploys beside its student fits no architecture: it was read whole.
        source = Source("", (), ("top1", net.about.top1)) if isinstance(net, Reused) else zoo.load_weights(net, file)
        known_as = published.verdict(file)
        datasets.prepare(data, args.data, device)
        dataset = datasets.load(data, args.data, device)
    except zoo.BadInput as error:
        return refuse(str(error))
    net.to(device, memory_format=memory_format(device))
    metrics = evaluate(net, dataset)
    print(
        f"{net.arch}: top-1 {metrics.top1:.2f}  top-5 {metrics.top5:.2f}  loss {metrics.loss:.4f}  "
        f"({len(dataset.test_labels):,} test images)"
    )
    if source.part or source.left_out:
        print(f"read: {source}")
    print(source.compared(metrics.top1) or "its file states no accuracy to compare with")
    if known_as:
        print(known_as)
    return 0


def _data(args: argparse.Namespace, about: trained.About | None) -> Data:
    """The test set that is asked for, else that of the network's own data set; normalised as the network learned it."""
    name = zoo.choose("data set", args.dataset or (about and about.dataset) or "cifar100", ENTRIES)
    asked = {"dataset": name, "train_images": None, "views": "weak", "strong": None, "side": args.side}
    if about:
        asked |= {"mean": about.mean, "std": about.std}
        if ENTRIES[name].known is None and args.side is None:
            asked["side"] = about.side
    return identified(check(Data, asked, "--dataset"), args.data)


if __name__ == "__main__":
    sys.exit(main())
