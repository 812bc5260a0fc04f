"""Runs that take a second, for the tests of everything around training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import protocol
from bench.run import Run, Teacher
from bench.training import trainer
from bench.training.data import Dataset
from bench.training.member import State

PROTOCOL = """\
extends: standard
name: tiny
version: 1
about: "a second a run"
sources: "made up for tests"
data: {dataset: embedded-1, train_images: 100}
train: {epochs: 2, milestones: [1], batch: 32}
methods:
  dkd: {params: {warm_up_epochs: 1}}
  crd: {params: {negatives: 50}}
"""

GRID = """\
name: tiny
about: "made up for tests"
protocol: PROTOCOL
pairs: [resnet8-resnet8]
methods: [vanilla, kd, fitnet]
seeds: 1
"""


def write(folder: Path, grid: str = GRID, protocol_text: str = PROTOCOL) -> Path:
    """Write grid.yaml and its protocol into a folder; returns the grid's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(protocol_text)
    path = folder / "grid.yaml"
    path.write_text(grid.replace("PROTOCOL", str(folder / "tiny.yaml")))
    return path


def recipe(tmp_path: Path, text: str = PROTOCOL) -> protocol.Protocol:
    write(tmp_path, protocol_text=text)
    return protocol.load(str(tmp_path / "tiny.yaml"))


def run(tmp_path: Path, method: str = "kd", seed: int = 0, text: str = PROTOCOL) -> Run:
    """A run of `method` on resnet8 with a resnet8 teacher that need not exist."""
    teacher = None if method == "vanilla" else Teacher(arch="resnet8", run_id="vanilla-resnet8-s0-00000000")
    return protocol.resolve(recipe(tmp_path, text), method, "resnet8", seed, teacher=teacher)


def dataset(n: int = 80, seed: int = 0) -> Dataset:
    """Random images; every class at most once or twice."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n + 40, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n + 40) % 100
    mean, std = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.25)
    return Dataset(images[:n], labels[:n], images[n:], labels[n:], mean, std)


class Hooks(trainer.Hooks):
    """Remembers what became of a run; other hooks by name."""

    def __init__(self, **hooks: Any) -> None:
        self.student: nn.Module | None = None
        self.state: State | None = None
        self.error: Exception | None = None
        for name, hook in hooks.items():
            setattr(self, name, hook)

    def done(self, student: nn.Module, state: State) -> None:
        self.student, self.state = student, state

    def left(self, error: Exception) -> None:
        self.error = error


def train(
    run: Run, dataset: Dataset, teacher: nn.Module | None, checkpoint: Path, should_stop=lambda: False, **hooks: Any
) -> tuple[nn.Module, State]:
    """Train one run by itself; its student and state, or the error with which it left."""
    heard = Hooks(**hooks)
    trainer.train([trainer.Entrant(run, checkpoint, heard)], dataset, teacher, should_stop=should_stop)
    if heard.error:
        raise heard.error
    return heard.student, heard.state
