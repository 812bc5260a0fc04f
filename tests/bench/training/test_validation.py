"""The validation split: which images it holds out, and that the test set is looked at once."""

from __future__ import annotations

import dataclasses
import hashlib
import os

import pytest
import torch

from bench.datasets import train_size
from bench.run import Data
from bench.training import data as datasets
from bench.training import evaluate as evaluation
from bench.training import member
from tests import tiny
from zoo.errors import BadInput

CPU = torch.device("cpu")


def settings(validation=None, train_images=None, dataset="embedded-1") -> Data:
    return Data(dataset=dataset, train_images=train_images, views="weak", strong=None, validation=validation)


def checksum(indices: torch.Tensor) -> str:
    return hashlib.sha256(",".join(map(str, indices.tolist())).encode()).hexdigest()[:16]


def per_class(labels: torch.Tensor, images: int) -> bool:
    return torch.equal(torch.bincount(labels, minlength=100), torch.full((100,), images))


def numbered(images: torch.Tensor, known: dict[bytes, int]) -> list[int]:
    """Positions in the whole training set of these images."""
    return [known[image.numpy().tobytes()] for image in images]


@pytest.fixture(scope="module")
def whole() -> tuple[datasets.Dataset, dict[bytes, int]]:
    dataset = datasets.load(settings(), None, CPU)
    known = {image.numpy().tobytes(): i for i, image in enumerate(dataset.train_images)}
    assert len(known) == 2000 and dataset.val_images is None
    return dataset, known


def test_images_held_out_are_balanced_and_not_trained_on(whole):
    all_of_it, known = whole
    split = datasets.load(settings(500), None, CPU)
    held_out, left = numbered(split.val_images, known), numbered(split.train_images, known)
    assert sorted(held_out + left) == list(range(2000))
    assert checksum(torch.tensor(held_out)) == "91c3ea1b7acc42b5"
    assert left == sorted(left)  # indices of what is left follow its order
    assert per_class(split.val_labels, 5) and per_class(split.train_labels, 15)
    assert torch.equal(split.val_labels, all_of_it.train_labels[held_out])
    assert torch.equal(split.train_labels, all_of_it.train_labels[left])
    assert torch.equal(split.test_images, all_of_it.test_images)


def test_a_subset_is_drawn_from_what_is_left(whole):
    _, known = whole
    split, part = datasets.load(settings(500), None, CPU), datasets.load(settings(500, 1000), None, CPU)
    assert torch.equal(part.val_images, split.val_images)
    trained = set(numbered(part.train_images, known))
    assert trained < set(numbered(split.train_images, known)) and per_class(part.train_labels, 10)
    assert [train_size(settings(500)), train_size(settings(500, 1000))] == [len(split.train_labels), 1000]
    everything_left = datasets.load(settings(500, 1500), None, CPU)
    assert torch.equal(everything_left.train_images, split.train_images)


def test_the_same_images_in_every_run_for_ever():
    """Other images under the same id would be another measurement: these change with a new purpose only."""
    labels = torch.arange(50_000) % 100
    chosen = datasets.balanced_subset(labels, 5000, "validation")
    assert checksum(chosen) == "808dff101b4cc291"
    assert checksum(datasets.balanced_subset(labels, 5000)) == "7996f9b55a582051"  # of runs without a split


@pytest.mark.skipif("CIFAR100_ROOT" not in os.environ, reason="CIFAR100_ROOT is not set: no real CIFAR-100")
def test_the_split_of_real_cifar100():
    split = datasets.load(settings(5000, dataset="cifar100"), None, CPU)
    assert per_class(split.val_labels, 50) and per_class(split.train_labels, 450)
    assert hashlib.sha256(split.val_images.numpy().tobytes()).hexdigest()[:16] == "0bc862f45dd863fd"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (settings(150), "validation: 150 is not .* multiple of 100 up to 1000"),
        (settings(1100), "multiple of 100 up to 1000"),
        (settings(25_100, dataset="cifar100"), "up to 25000"),
        (settings(500, 1600), "train_images: 1600 is not .* 1500 images: use a multiple of 100 up to 1500"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(data, says):
    with pytest.raises(BadInput, match=says):
        datasets.prepare(data, None)


# ---- in training


def held_out(n: int = 80) -> datasets.Dataset:
    """80 training, 40 test and 30 validation images."""
    dataset, other = tiny.dataset(n), tiny.dataset(30, seed=1)
    return dataclasses.replace(dataset, val_images=other.train_images, val_labels=other.train_labels)


def protocol(validation: int) -> str:
    text = tiny.PROTOCOL.replace("train_images: 100", f"train_images: 100, validation: {validation}")
    return text.replace("epochs: 2", "epochs: 3")


@pytest.fixture
def looks(monkeypatch) -> list[str]:
    """What was evaluated on, in order."""
    found: list[str] = []

    def watched(net, dataset, *given, part="test", **options):
        found.append(part)
        return evaluation.evaluate(net, dataset, *given, part=part, **options)

    monkeypatch.setattr(member, "evaluate", watched)
    return found


@pytest.mark.parametrize(("validation", "wanted"), [(100, ["val", "val", "val", "test"]), (0, ["test"])])
def test_the_test_set_is_looked_at_once(tmp_path, looks, validation, wanted):
    run, dataset = tiny.run(tmp_path, "vanilla", text=protocol(validation)), held_out()
    seen = []
    net, state = tiny.train(run, dataset, None, tmp_path / "last.pt", on_epoch=seen.append)
    assert looks == wanted and state.curve == seen
    on_test, on_val = {"top1", "top5", "test_loss"}, {"val_top1", "val_top5", "val_loss"}
    for row in state.curve:
        assert (row.keys() >= on_val) == bool(validation)
        assert (row.keys() & on_test == on_test) if row["epoch"] == 3 else not row.keys() & on_test
    last = state.curve[-1]
    assert last["test_loss"] == evaluation.evaluate(net, dataset).loss
    if validation:
        as_test = dataclasses.replace(dataset, test_images=dataset.val_images, test_labels=dataset.val_labels)
        assert last["val_loss"] == evaluation.evaluate(net, as_test).loss != last["test_loss"]


def test_a_split_changes_what_is_measured_and_not_what_is_trained(tmp_path):
    """The same images give the same weights, watched or not: evaluation draws no random number."""
    nets = []
    for place, text in enumerate((protocol(100), protocol(0), protocol(0).replace(", validation: 0", ""))):
        run = tiny.run(tmp_path / str(place), "vanilla", text=text)
        nets.append(tiny.train(run, held_out(), None, tmp_path / f"{place}.pt")[0].state_dict())
    for other in nets[1:]:
        assert all(torch.equal(value, other[name]) for name, value in nets[0].items())


def test_summary_with_a_split_knows_no_test_accuracy_of_the_best_epoch():
    rows = [{"epoch": e, "val_top1": v, "val_top5": 9.0, "val_loss": 1.0} for e, v in ((1, 50.0), (2, 60.0), (3, 58.0))]
    rows[-1] |= {"top1": 57.0, "top5": 88.0, "test_loss": 1.5}
    last = {"top1_last": 57.0, "top5_last": 88.0, "test_loss_last": 1.5}
    assert member.summary(rows, 5000) == {**last, "val_top1_best": 60.0, "best_epoch": 2, "val_top1_last": 58.0}
    checkpoint = [{"epoch": 0, "top1": 57.0, "top5": 88.0, "test_loss": 1.5}]
    assert member.summary(checkpoint, 5000) == member.summary(checkpoint, 0) == last


def test_what_diverges_on_validation_images_is_said(tmp_path, monkeypatch):
    run = tiny.run(tmp_path, "vanilla", text=protocol(100))
    monkeypatch.setattr(member, "evaluate", lambda *_, **__: evaluation.Metrics(1.0, 5.0, float("nan")))
    with pytest.raises(member.Diverged, match="val loss is nan after epoch 1"):
        tiny.train(run, held_out(), None, tmp_path / "last.pt")
