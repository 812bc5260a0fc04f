"""Top-1 and top-5 on the test set; `python -m bench.evaluate --arch A --weights F --data DIR` for a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import zoo
from bench import paths
from bench.commandline import Parser, refuse
from bench.run import Data
from bench.training import data as datasets
from bench.training.devices import memory_format, parse_device

# Images at a time: enough to fill a GPU; on a CPU so few that a layer's maps stay in its cache (twice as fast as 1000).
BATCH = {"cuda": 1000, "cpu": 100}


@dataclass(frozen=True)
class Metrics:
    """Over the whole test set; accuracies in percent."""

    top1: float
    top5: float
    loss: float  # mean cross entropy, natural logarithm


@torch.no_grad()
def evaluate(net: nn.Module, dataset: datasets.Dataset, on_batch: Callable[[], None] = lambda: None) -> Metrics:
    """Metrics of `net` in eval mode (its mode is restored); counts stay on the device until the end."""
    was_training = net.training
    net.eval()
    device = dataset.test_images.device
    layout = memory_format(device)
    total = torch.zeros(3, dtype=torch.float64, device=device)
    for part in datasets.slices(len(dataset.test_labels), BATCH[device.type]):
        labels = dataset.test_labels[part]
        logits = net(dataset.normalise(dataset.test_images[part]).contiguous(memory_format=layout)).float()
        hits = logits.topk(5, dim=1).indices == labels[:, None]
        loss = cross_entropy(logits, labels, reduction="sum")
        total += torch.stack([hits[:, 0].sum().double(), hits.sum().double(), loss.double()])
        on_batch()
    net.train(was_training)
    top1, top5, loss = total.tolist()
    n = len(dataset.test_labels)
    return Metrics(100 * top1 / n, 100 * top5 / n, loss / n)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.evaluate", description=__doc__)
    parser.add_argument("--arch", required=True, help="architecture, e.g. resnet56")
    parser.add_argument("--weights", required=True, type=paths.option, help="checkpoint file")
    parser.add_argument(
        "--data",
        type=paths.option,
        help=f"folder that holds {datasets.CIFAR100_FOLDER}/ "
        f"(default: ${datasets.ROOT_VARIABLE}, else ./data, downloaded if missing)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    args = parser.parse_args(arguments)
    cifar100 = Data(dataset="cifar100", train_images=None, views="weak", strong=None)
    try:
        device = parse_device(args.device)
        net = zoo.build(args.arch)
        source = zoo.load_weights(net, args.weights)
        datasets.prepare(cifar100, args.data)
        dataset = datasets.load(cifar100, args.data, device)
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
