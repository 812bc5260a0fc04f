"""What finished runs' weights say beyond their accuracy: `python -m bench.examine OUT --data DIR`.

Of each finished run the weights and those of its teacher are loaded, and `examined.json` is written beside its result:
accuracy on its training images, calibration error, agreement with the teacher, size. Nothing is trained. A run whose
weights are examined already is left as it is. Then `kd-bench --report --columns ece,agreement` prints them.
Exit status: 0 all finished runs are examined, 1 some are not and it says why, 2 the request is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

import zoo
from bench import outside, store
from bench.datasets import Facts, facts
from bench.run import Data, Run
from bench.surroundings import paths
from bench.surroundings.commandline import DONE, INCOMPLETE, Parser, counted, refuse
from bench.surroundings.provenance import device_name
from bench.training import data as datasets
from bench.training.devices import memory_format, parse_device
from bench.training.evaluate import BATCH
from methods import check
from zoo import trained
from zoo.errors import BadInput
from zoo.reused import Reused

BINS = 15
# Another device or batch size moves single images across a decision: so far the accuracy of the result may be away.
NEAR_POINTS, NEAR_IMAGES = 0.1, 2


class NotExamined(Exception):
    """Why a run's weights cannot be examined; one line."""


def calibration_error(logits: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error in percent, of logits (N, classes): the mean over images of |accuracy - confidence|.

    Both are means within bins of equal width of the largest probability (Guo et al., "On Calibration of Modern Neural
    Networks", ICML 2017, whose tables use 15 bins).
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1  # a bin holds its upper end, as in the paper
    gaps = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    gaps.index_add_(0, place, (predicted == labels).double() - confidence)
    return 100 * float(gaps.abs().sum()) / len(labels)


def agreement(student: Tensor, teacher: Tensor) -> tuple[float, float]:
    """(percent of images on which both name the same class, mean KL(teacher || student) in nats), logits (N, classes).

    As Stanton et al., "Does Knowledge Distillation Really Work?", NeurIPS 2021, measure fidelity; at temperature 1.
    """
    same = (student.argmax(dim=1) == teacher.argmax(dim=1)).double().mean()
    divergence = kl_div(
        log_softmax(student.double(), dim=1),
        log_softmax(teacher.double(), dim=1),
        log_target=True,
        reduction="batchmean",
    )
    return 100 * float(same), max(0.0, float(divergence))


@torch.no_grad()
def logits_of(net: nn.Module, dataset: datasets.Dataset, part: str) -> Tensor:
    """(N, classes) float32 logits of `net` in eval mode for the "train" or "test" images, not augmented."""
    images = getattr(dataset, f"{part}_images")
    layout = memory_format(images.device)
    net = net.to(images.device, memory_format=layout).eval()
    pieces = datasets.slices(len(images), BATCH[images.device.type])
    return torch.cat([net(dataset.normalise(images[some]).contiguous(memory_format=layout)).float() for some in pieces])


def top1(logits: Tensor, labels: Tensor) -> float:
    """Percent."""
    return 100 * float((logits.argmax(dim=1) == labels).double().mean())


class Examiner:
    """Keeps the last data set and the last teacher: runs come sorted by them."""

    def __init__(self, out: Path, data_root: Path | None, device: torch.device) -> None:
        self.out, self.data_root, self.device = out, data_root, device
        self._data: tuple[Data, datasets.Dataset] | None = None
        self._teacher: tuple[object, Tensor] | None = None

    def examine(self, folder: store.RunFolder, result: Mapping[str, Any]) -> bool:
        """Write examined.json; False where it is there and of these weights. Raises NotExamined."""
        config, provenance = result["config"], result.get("provenance", {})
        digest = _sha256(folder)
        size = provenance.get("weights_bytes")
        if size not in (None, folder.weights.stat().st_size):
            raise NotExamined("weights.pt is not as long as the run wrote it")
        teacher = self._teacher_of(config)
        of = {"result": store.fingerprint(result), "weights_sha256": digest, "teacher_sha256": teacher and teacher[2]}
        try:
            there = store.read_json(folder.examined)
        except store.Damaged:
            there = None
        if there and {name: there.get(name) for name in of} == of:
            return False
        try:
            data = Data.model_validate(config["data"])
            dataset, known = self._dataset(data), facts(data)
        except ValidationError as error:
            raise NotExamined(f"its data set is not known: {error.errors()[0]['msg']}") from None
        if config.get("networks"):
            try:
                outside.use(check(Run, config, folder.run_id), self.out)
            except BadInput as fault:
                raise NotExamined(str(fault)) from None
        net = _network(config["student"], known, folder)
        test = logits_of(net, dataset, "test")
        found, said = top1(test, dataset.test_labels), result["metrics"]["top1_last"]
        if abs(found - said) > max(NEAR_POINTS, 100 * NEAR_IMAGES / len(test)) + 1e-9:
            raise NotExamined(f"its weights give {found:.2f} % top-1 on the test set, its result says {said:.2f}")
        metrics = {
            "train_top1": top1(logits_of(net, dataset, "train"), dataset.train_labels),
            "ece": calibration_error(test, dataset.test_labels),
        }
        if isinstance(net, Reused):
            sizes = {"parameters": net.size}  # its multiply-accumulates are not those of the student alone
        else:
            macs = zoo.count_macs(config["student"], known.classes, known.side)
            sizes = {"parameters": zoo.count_parameters(net), "macs": macs}
        if teacher:
            arch, its, teacher_digest = teacher
            if teacher_digest:
                taught = self._teacher_logits(arch, known, its, teacher_digest)
                metrics["agreement"], metrics["kl"] = agreement(test, taught)
            with torch.device("meta"):
                sizes["teacher_parameters"] = zoo.count_parameters(zoo.build_meta(arch, known.classes, known.side))
            sizes["teacher_macs"] = zoo.count_macs(arch, known.classes, known.side)
        store.write_json(
            folder.examined,
            {
                "schema": store.SCHEMA,
                "run_id": folder.run_id,
                **of,
                "top1": found,
                "metrics": metrics,
                "sizes": sizes,
                "bins": BINS,
                "images": {"train": len(dataset.train_labels), "test": len(test)},
                "device": device_name(self.device),
                "torch": torch.__version__,
            },
        )
        return True

    def _dataset(self, data: Data) -> datasets.Dataset:
        """The images alone: how a run augments them is nothing to its weights."""
        data = data.model_copy(update={"views": "weak", "strong": None})
        if self._data is None or self._data[0] != data:
            datasets.prepare(data, self.data_root)
            self._data, self._teacher = (data, datasets.load(data, self.data_root, self.device)), None
        return self._data[1]

    def _teacher_of(self, config: Mapping[str, Any]) -> tuple[str, store.RunFolder, str | None] | None:
        """(architecture, folder, digest of its weights or None where they are not there)."""
        its = config.get("teacher")
        if not its:
            return None
        folder = store.run_folder(self.out, its["run_id"])
        return its["arch"], folder, None if store.weights_fault(folder) else _sha256(folder)

    def _teacher_logits(self, arch: str, known: Facts, folder: store.RunFolder, digest: str) -> Tensor:
        if self._teacher is None or self._teacher[0] != (folder, digest):
            self._teacher = (folder, digest), logits_of(_network(arch, known, folder), self._data[1], "test")
        return self._teacher[1]


def examine(out: Path, data_root: Path | None, device: torch.device) -> Iterator[tuple[str, str]]:
    """Examine each finished run of `out`; yields (run id, "" if done, "-" if done before, else why not)."""
    found = []
    for path in sorted((out / "runs").iterdir()):
        folder = store.RunFolder(path)
        try:
            result = store.read_result(folder, curve=False)
        except store.Damaged as damage:
            yield folder.run_id, str(damage)
            continue
        if result:
            found.append((folder, result))
    examiner = Examiner(out, data_root, device)
    for folder, result in sorted(found, key=lambda one: _order(one[1])):
        try:
            yield folder.run_id, "" if examiner.examine(folder, result) else "-"
        except NotExamined as reason:
            yield folder.run_id, str(reason)
        except (KeyError, TypeError, AttributeError) as error:
            yield folder.run_id, f"its result.json does not say what is needed ({type(error).__name__}: {error})"


def _order(result: Mapping[str, Any]) -> str:
    config = result.get("config") if isinstance(result.get("config"), dict) else {}
    return str((config.get("data"), config.get("teacher")))


def _sha256(folder: store.RunFolder) -> str:
    if not folder.weights.exists():
        raise NotExamined("weights.pt is not there")
    return zoo.sha256(folder.weights)


def _network(arch: str, known: Facts, folder: store.RunFolder) -> nn.Module:
    """What a run's weights.pt holds: its student, or the network that its method deploys instead."""
    try:
        return trained.network(folder.weights, {"arch": arch, "classes": known.classes, "side": known.side})
    except BadInput as fault:
        raise NotExamined(str(fault)) from None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = Parser(prog="python -m bench.examine", description=__doc__)
    parser.add_argument("out", type=paths.option, metavar="OUT", help="results folder")
    parser.add_argument("--data", type=paths.option, metavar="DIR", help="as for kd-bench")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    args = parser.parse_args(arguments)
    if not (args.out / "runs").is_dir():
        return refuse(f'"{args.out}" has no runs/: give the results folder that kd-bench --out wrote')
    counts = {"": 0, "-": 0}
    faults = 0
    try:
        for run_id, why in examine(args.out, args.data, parse_device(args.device)):
            if why in counts:
                counts[why] += 1
            else:
                faults += 1
                print(f"{run_id}: {why}", flush=True)
    except BadInput as error:
        return refuse(str(error))
    except OSError as error:
        return refuse(f"{error.strerror or error}: {error.filename or args.out}")
    print(f"{counted(counts[''], 'run')} examined, {counts['-']} were before, {faults} not")
    return INCOMPLETE if faults else DONE


if __name__ == "__main__":
    sys.exit(main())
