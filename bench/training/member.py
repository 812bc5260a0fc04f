"""One run in training: its student, method and optimiser, its own part of a step, its checkpoint, its curve.

What may not change without a new protocol version: the order of operations of a step and what the random numbers are
keyed by (`seed_for`).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import methods
import zoo
from bench import outside, store
from bench.datasets import facts
from bench.run import Run, seed_for
from bench.surroundings.provenance import source_of
from bench.training.data import Dataset
from bench.training.devices import autocast, memory_format
from bench.training.evaluate import due, evaluate
from bench.training.optim import optimizer

WATCHED = "state_"  # before the name, in a curve, of what a method lets us watch
Result = tuple[Tensor, Tensor | None]  # of a step: detached loss terms (terms,), and their gradient norms if measured


class Diverged(ArithmeticError):
    """A loss term is not finite; the message names epoch, step and terms."""


@dataclass
class State:
    """Where training stands: `epoch` (from 1) is under way, `step` of its steps are done. Times: of all attempts."""

    epoch: int = 1
    step: int = 0
    losses: Tensor | None = None  # (steps, terms), this epoch's loss terms, on the device
    pulls: Tensor | None = None  # (terms,), gradient norms at this epoch's first step, on the device
    curve: list[dict[str, Any]] = field(default_factory=list)
    wall_s: float = 0.0  # while this run moved
    # Seconds of a CPU core, or of a whole GPU: what the run took, its part of what it shared, and what it would have
    # taken alone: the whole of that.
    device_s: float = 0.0
    alone_s: float = 0.0
    moves: int = 0  # steps taken
    shared_with: int = 0  # the sum over these of how many runs moved
    sources: list[str] = field(default_factory=list)  # of its method, each that made a part of it


class Member:
    """Networks, method and optimiser of one run. Nothing in a step waits for the device."""

    def __init__(self, run: Run, dataset: Dataset, teacher: nn.Module | None) -> None:
        """`teacher` is looked at, and copied where its statistics drift (`teacher_mode` "train"), else not kept."""
        device = dataset.train_images.device
        self.layout = memory_format(device, run.precision)
        method, known = methods.get(run.method), facts(run.data)
        with seeded(run.seed, "student"):
            student = zoo.build(run.student, known.classes, known.side)
        with seeded(run.seed, "method"):
            params = methods.check(method.Params, run.params, f"run {run.run_id}")
            train_set = methods.TrainSet(dataset.train_labels, known.classes)
            self.method = method(params, student, teacher, train_set).to(device).train()
        self.run, self.dataset = run, dataset
        self.student = student.to(device, memory_format=self.layout)
        self.network = self.method.deployed(self.student).to(device)  # what is evaluated and kept; its parts are theirs
        # A teacher in train mode is this run's alone: its statistics drift with the steps that it sees.
        self.drifting = (
            on_device(copy.deepcopy(teacher), device, self.layout) if self.method.teacher_mode == "train" else None
        )
        self.shares_teacher = run.teacher is not None and self.drifting is None
        self.trained = [*self.student.parameters(), *self.method.parameters()]
        settings = run.train
        # Tensors, so that a captured step sees their new values.
        self.epoch = torch.zeros((), device=device)
        self.lr, self.lr_now = torch.full((), settings.lr, device=device), settings.lr
        self.optimizer = optimizer(settings, self.trained, self.lr)
        self.term_names: list[str] = []
        self.state = State(sources=[source] if (source := source_of(run.method)) else [])
        self.threads = torch.get_num_threads()  # sums over threads: another number of them, other last bits

    @property
    def at(self) -> tuple[int, int]:
        """The epoch under way and its steps so far."""
        return self.state.epoch, self.state.step

    @property
    def paired(self) -> bool:
        """Whether a step needs a second, strongly augmented view."""
        return self.run.data.views == "paired"

    def begin_epoch(self, epoch: int) -> None:
        """Set the learning rate and the modes of an epoch counted from 1."""
        self.epoch.fill_(epoch)
        self.set_lr(self.run.train.lr_at(epoch))
        self.student.train()
        if self.drifting:
            self.drifting.train()

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        if lr != self.lr_now:
            self.lr.fill_(lr)
            self.lr_now = lr

    def step(
        self,
        inputs: Tensor,
        strong: Tensor | None,
        labels: Tensor,
        indices: Tensor,
        teacher: zoo.Outputs | None,
        measure: bool = False,
    ) -> Result:
        """One optimiser step on normalised images (B, 3, h, w), with the outputs of a teacher that is shared.

        `strong` is the second view for paired views. With `measure` also each term's gradient norm (terms,) with
        respect to the student's logits.
        """
        strong = strong if self.paired else None
        with self._chance(), autocast(self.run.precision, labels.device):
            if self.drifting:
                with torch.no_grad():
                    teacher = outputs_of(self.drifting, inputs, strong)
            elif teacher is not None and strong is None:
                teacher = dataclasses.replace(teacher, strong=None)
            student = outputs_of(self.student, inputs, strong)
            batch = methods.Batch(labels, indices, self.run.train.label_smoothing or 0.0)
            progress = methods.Progress(self.epoch)
            terms = self.method.terms(student, teacher, batch, progress)
        self.term_names = list(terms)
        values = torch.stack(list(terms.values()))
        pulls = gradient_norms(terms.values(), student) if measure else None
        values.sum().backward()
        if self.run.train.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.trained, self.run.train.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # the other members need the memory
        return values.detach(), pulls

    @contextmanager
    def _chance(self) -> Iterator[None]:
        """What a step of foreign code draws, such as dropout, follows from (seed, epoch, step), on a CPU.

        The project's own networks and methods draw nothing from the global generator.
        """
        if self.epoch.device.type == "cpu" and outside.of(self.run):
            with seeded(self.run.seed, "step", *self.at):
                yield
        else:
            yield

    def took(self, result: Result, steps: int, together: int) -> None:
        """Take down the result of a step that `together` runs took; `steps` are those of this epoch."""
        values, pulls = result
        state = self.state
        if state.step == 0:
            state.pulls = None if pulls is None else pulls.clone()  # a captured step overwrites its result
            state.losses = torch.zeros(steps, len(values), device=values.device)
        state.losses[state.step] = values
        state.step += 1
        state.moves += 1
        state.shared_with += together

    def finish_epoch(self, samples: int, on_batch: Callable[[], None]) -> dict[str, Any]:
        """The epoch's row of the curve: loss terms as means over samples, accuracies, wall time since the start."""
        self.check_finite()
        state, batch, wall_s = self.state, self.run.train.batch, self.state.wall_s
        sizes = torch.full((state.step,), float(batch), dtype=torch.float64)
        sizes[-1] = samples - batch * (state.step - 1)
        means = (state.losses.cpu().double() * sizes[:, None]).sum(dim=0) / samples
        pulls = [] if state.pulls is None else state.pulls.tolist()
        accuracies: dict[str, float] = {}
        for part in due(self.run, state.epoch):
            metrics = evaluate(self.network, self.dataset, on_batch, layout=self.layout, part=part)
            if not math.isfinite(metrics.loss):
                raise Diverged(f"{part} loss is {metrics.loss} after epoch {state.epoch}")
            accuracies |= metrics.columns(part)
        row = {
            "epoch": state.epoch,
            "lr": self.run.train.lr_at(state.epoch),
            "train_loss": float(means.sum()),
            **dict(zip(self.term_names, means.tolist(), strict=True)),
            **{f"grad_norm_{name}": pull for name, pull in zip(self.term_names, pulls, strict=False)},
            **{f"{WATCHED}{name}": value.item() for name, value in self.method.watched().items()},
            **accuracies,
            "wall_s": round(wall_s, 3),
        }
        state.curve.append(row)
        state.epoch, state.step, state.losses, state.pulls = state.epoch + 1, 0, None, None
        return row

    def check_finite(self) -> None:
        """Raise Diverged at the first step of this epoch with a term that is not finite. Waits for the device."""
        state = self.state
        if state.losses is None:
            return
        losses = state.losses[: state.step].cpu()
        bad = ~torch.isfinite(losses).all(dim=1)
        if bad.any():
            step = int(bad.nonzero()[0])
            terms = ", ".join(f"{name} {value:.6g}" for name, value in zip(self.term_names, losses[step], strict=True))
            raise Diverged(
                f"loss is not finite at epoch {state.epoch}, step {step + 1} of {len(state.losses)}: {terms}"
            )

    def save(self, path: Path) -> None:
        """Write everything that the rest of training depends on; the random numbers depend on (seed, epoch) alone."""
        store.write_torch(
            path,
            {
                "run_id": self.run.run_id,
                "student": self.student.state_dict(),
                "method": self.method.state_dict(),
                "teacher": self.drifting.state_dict() if self.drifting else None,
                "optimizer": self.optimizer.state_dict(),
                "term_names": self.term_names,
                "state": vars(self.state),
                "threads": self.threads,
            },
        )

    def restore(self, path: Path) -> bool:
        """Load what `save` wrote, and say whether there was anything. Damaged where it is not this run's."""
        saved = store.read_torch(path)
        if saved is None:
            return False
        if saved.get("run_id") != self.run.run_id:
            raise store.Damaged(f'{path.name} belongs to another run ("{saved.get("run_id")}")')
        try:
            self._restore(saved)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise store.Damaged(f"{path.name} is damaged ({type(error).__name__})") from None
        return True

    def _restore(self, saved: dict[str, Any]) -> None:
        self.student.load_state_dict(saved["student"])
        self.method.load_state_dict(saved["method"])
        if saved["teacher"] is not None:
            self.drifting.load_state_dict(saved["teacher"])
        self.load_optimizer(saved["optimizer"])
        self.term_names = saved["term_names"]
        self.threads = saved["threads"]
        own = self.state.sources
        self.state = State(**saved["state"])
        self.state.sources = [*self.state.sources, *(own if self.state.sources[-1:] != own else ())]
        for name in ("losses", "pulls"):
            if getattr(self.state, name) is not None:
                setattr(self.state, name, getattr(self.state, name).to(self.epoch.device))

    def load_optimizer(self, saved: dict[str, Any]) -> None:
        """Take over momenta, in the layout of their weights; the learning rate stays the tensor that a step reads.

        A checkpoint keeps the strides of where it was written. The fused kernel walks weight, gradient and momentum
        alike in memory: on a CPU it does not even notice that one of them lies otherwise.
        """
        own = [
            {name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(saved)
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group.update(settings)  # those of this device, with this tensor for the learning rate
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def outputs_of(net: nn.Module, inputs: Tensor, strong: Tensor | None) -> zoo.Outputs:
    """What a network gives for normalised images, and for a second view where there is one."""
    outputs = net.outputs(inputs)
    second = None if strong is None else outputs_of(net, strong, None)
    # Losses see float32 logits whatever the autocast: in bfloat16 confident samples tie and logarithms are coarse.
    logits = outputs.logits.to(torch.promote_types(outputs.logits.dtype, torch.float32))
    return dataclasses.replace(outputs, logits=logits, strong=second)


def gradient_norms(terms: Iterable[Tensor], student: zoo.Outputs) -> Tensor:
    """|| d term / d logits || (Frobenius, all views) of each term (terms,): how hard it pulls at what is predicted.

    The gradient is that of the weighted term on the whole batch; a term that does not read the logits has 0. The
    backward pass of each term ends at the logits, so this costs next to nothing.
    """
    logits = [student.logits, *([student.strong.logits] if student.strong else [])]
    norms = []
    for term in terms:
        gradients = torch.autograd.grad(term, logits, retain_graph=True, allow_unused=True)
        found = [gradient.flatten() for gradient in gradients if gradient is not None]
        norms.append(torch.linalg.vector_norm(torch.cat(found)) if found else torch.zeros_like(term))
    return torch.stack(norms).detach()


def summary(curve: list[dict[str, Any]], validation: int | None = None) -> dict[str, Any]:
    """Headline metrics of a finished curve: the LAST epoch, and the best one apart (it is selected on test data).

    With a validation split the best epoch is the one that is best on it, and its test accuracy is not known; where the
    split is empty there is no best epoch.
    """
    last = curve[-1]
    watched = "top1" if validation is None else "val_top1"
    chosen = {}
    if watched in last:
        best = max(curve, key=lambda row: row[watched])
        chosen = {f"{watched}_best": best[watched], "best_epoch": best["epoch"]}
        chosen |= {} if validation is None else {"val_top1_last": last["val_top1"]}
    return {"top1_last": last["top1"], **chosen, "top5_last": last["top5"], "test_loss_last": last["test_loss"]}


def on_device(teacher: nn.Module, device: torch.device, layout: torch.memory_format) -> nn.Module:
    """A teacher as a step asks it: there, in the layout of the images, never trained."""
    return teacher.to(device, memory_format=layout).requires_grad_(False)


@contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Draw, as initial weights, from (seed, purpose) on the CPU, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, *purpose))
        yield
