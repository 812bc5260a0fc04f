"""The training loop, one for all methods: a run, a data set and a teacher in; weights, metrics and a curve out.

What may not change without a new protocol version: the order of operations of a step, what the random numbers are
keyed by (`seed_for`), and that nothing is selected, stopped or rolled back on test accuracy.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import methods
import zoo
from bench import store
from bench.run import Run, seed_for
from bench.training import data as datasets
from bench.training.capture import captured
from bench.training.devices import autocast, memory_format, set_precision
from bench.training.evaluate import due, evaluate
from bench.training.optim import SGD
from zoo.inference import folded

CHECKPOINT_EVERY_S = 60.0


class Diverged(ArithmeticError):
    """A loss term is not finite; the message names epoch, step and terms."""


class Stopped(Exception):
    """Training was asked to stop; everything needed to go on is in the checkpoint."""


@dataclass
class State:
    """Where training stands: `epoch` (from 1) is under way and `step` of its steps are done."""

    epoch: int = 1
    step: int = 0
    losses: Tensor | None = None  # (steps, terms), this epoch's loss terms, on the device
    pulls: Tensor | None = None  # (terms,), gradient norms at this epoch's first step, on the device
    curve: list[dict[str, Any]] = field(default_factory=list)
    wall_s: float = 0.0  # training time so far, over all interruptions


class Trainer:
    """Networks, method and optimiser of one run, and the single step they take."""

    def __init__(self, run: Run, dataset: datasets.Dataset, teacher: nn.Module | None) -> None:
        device = dataset.train_images.device
        layout = memory_format(device)
        method = methods.get(run.method)
        with seeded(run.seed, "student"):
            student = zoo.build(run.student, datasets.NUM_CLASSES)
        with seeded(run.seed, "method"):
            params = methods.check(method.Params, run.params, f"run {run.run_id}")
            train_set = methods.TrainSet(dataset.train_labels, datasets.NUM_CLASSES)
            self.method = method(params, student, teacher, train_set).to(device).train()
        self.run, self.dataset, self.layout = run, dataset, layout
        self.student = student.to(device, memory_format=layout)
        if teacher and self.method.teacher_mode == "eval":
            teacher = folded(teacher)
        self.teacher = teacher.to(device, memory_format=layout).requires_grad_(False) if teacher else None
        self.trained = [*self.student.parameters(), *self.method.parameters()]
        settings = run.train
        # Tensors, so that a captured step sees their new values.
        self.epoch = torch.zeros((), device=device)
        self.lr, self.lr_now = torch.full((), settings.lr, device=device), settings.lr
        self.optimizer = SGD(
            self.trained,
            lr=self.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
            fused=True,
        )
        self.term_names: list[str] = []

    def begin_epoch(self, epoch: int) -> None:
        """Set the learning rate and the modes of an epoch counted from 1."""
        self.epoch.fill_(epoch)
        self.set_lr(self.run.train.lr_at(epoch))
        self.student.train()
        if self.teacher:
            self.teacher.train(self.method.teacher_mode == "train")

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        if lr != self.lr_now:
            self.lr.fill_(lr)
            self.lr_now = lr

    def load_optimizer(self, saved: dict[str, Any]) -> None:
        """Take over momentum; the learning rate stays this trainer's tensor, which a captured step reads."""
        self.optimizer.load_state_dict(saved)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr

    def step(
        self, images: Tensor, strong_images: Tensor | None, labels: Tensor, indices: Tensor, measure: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """One optimiser step; returns the detached loss terms (terms,). Nothing here waits for the device.

        With `measure` also each term's gradient norm (terms,) with respect to the student's logits, else None.
        """
        with autocast(self.run.precision, labels.device):
            with torch.no_grad():
                teacher = self._outputs(self.teacher, images, strong_images) if self.teacher else None
            student = self._outputs(self.student, images, strong_images)
            batch, progress = methods.Batch(labels, indices), methods.Progress(self.epoch)
            terms = self.method.terms(student, teacher, batch, progress)
        self.term_names = list(terms)
        values = torch.stack(list(terms.values()))
        pulls = gradient_norms(terms.values(), student) if measure else None
        self.optimizer.zero_grad(set_to_none=True)
        values.sum().backward()
        if self.run.train.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.trained, self.run.train.grad_clip)
        self.optimizer.step()
        return values.detach(), pulls

    def _outputs(self, net: nn.Module, images: Tensor, strong_images: Tensor | None) -> zoo.Outputs:
        outputs = net.outputs(self._input(images))
        strong = None if strong_images is None else self._outputs(net, strong_images, None)
        # Losses see float32 logits whatever the autocast: in bfloat16 confident samples tie and logarithms are coarse.
        logits = outputs.logits.to(torch.promote_types(outputs.logits.dtype, torch.float32))
        return dataclasses.replace(outputs, logits=logits, strong=strong)

    def _input(self, images: Tensor) -> Tensor:
        return self.dataset.normalise(images).contiguous(memory_format=self.layout)

    def save(self, path: Path, state: State) -> None:
        """Write everything that the rest of training depends on; the random numbers depend on (seed, epoch) alone."""
        drifts = self.teacher is not None and self.method.teacher_mode == "train"
        store.write_torch(
            path,
            {
                "run_id": self.run.run_id,
                "student": self.student.state_dict(),
                "method": self.method.state_dict(),
                "teacher": self.teacher.state_dict() if drifts else None,
                "optimizer": self.optimizer.state_dict(),
                "term_names": self.term_names,
                "state": vars(state),
                "threads": torch.get_num_threads(),
            },
        )

    def restore(self, path: Path) -> State | None:
        """Load what `save` wrote; None where there is nothing. Damaged where it is not this run's."""
        saved = store.read_torch(path)
        if saved is None:
            return None
        if saved.get("run_id") != self.run.run_id:
            raise store.Damaged(f'{path.name} belongs to another run ("{saved.get("run_id")}")')
        try:
            return self._restore(saved)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise store.Damaged(f"{path.name} is damaged ({type(error).__name__})") from None

    def _restore(self, saved: dict[str, Any]) -> State:
        self.student.load_state_dict(saved["student"])
        self.method.load_state_dict(saved["method"])
        if saved["teacher"] is not None:
            self.teacher.load_state_dict(saved["teacher"])
        self.load_optimizer(saved["optimizer"])
        self.term_names = saved["term_names"]
        if self.epoch.device.type == "cpu":
            torch.set_num_threads(saved["threads"])  # sums over threads: another number of them, other last bits
        state = State(**saved["state"])
        for name in ("losses", "pulls"):
            if getattr(state, name) is not None:
                setattr(state, name, getattr(state, name).to(self.epoch.device))
        return state


def train(
    run: Run,
    dataset: datasets.Dataset,
    teacher: nn.Module | None,
    checkpoint: Path,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[int, int, int], None] = lambda epoch, step, steps: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    before_write: Callable[[], None] = lambda: None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> tuple[nn.Module, State]:
    """Train `run` from its checkpoint, or from the start; returns the student and the finished state.

    `on_step` is called after each step, and after each batch of an evaluation, with the epoch under way (from 1), its
    steps so far and in all: it tells training from hanging, and must be cheap.
    `before_write` is called before each checkpoint and may raise to keep it from being written.
    On a GPU call it on a stream of its own (`capture.own_stream`).
    Raises Diverged for a loss that is not finite, Stopped (after saving) when `should_stop` says so at a step.
    """
    set_precision(run.precision)
    trainer = Trainer(run, dataset, teacher)
    step = captured(trainer.step, run.train.batch, dataset.train_labels.device)
    state = trainer.restore(checkpoint) or State()
    started = time.monotonic() - state.wall_s
    saved_at = time.monotonic()

    def save() -> None:
        nonlocal saved_at
        state.wall_s = time.monotonic() - started
        before_write()
        trainer.save(checkpoint, state)
        saved_at = time.monotonic()

    while state.epoch <= run.train.epochs:
        epoch = datasets.augmented_epoch(dataset, run.data, run.seed, state.epoch)
        steps = epoch.steps(run.train.batch)
        trainer.begin_epoch(state.epoch)
        for part in datasets.slices(len(epoch.labels), run.train.batch, first=state.step):
            strong = None if epoch.strong_images is None else epoch.strong_images[part]
            trainer.set_lr(run.train.lr_at(state.epoch, (state.step + 0.5) / steps))
            values, pulls = step(
                epoch.images[part], strong, epoch.labels[part], epoch.indices[part], measure=state.step == 0
            )
            if state.step == 0:
                state.pulls = pulls
                state.losses = torch.zeros(steps, len(values), device=values.device)
            state.losses[state.step] = values
            state.step += 1
            on_step(state.epoch, state.step, steps)
            stop = should_stop()
            if stop or time.monotonic() - saved_at > checkpoint_every_s:
                _check_finite(trainer, state)  # what has diverged is never saved as something to go on from
                save()
            if stop:
                raise Stopped
        row = _finish_epoch(
            trainer,
            state,
            len(epoch.labels),
            time.monotonic() - started,
            on_batch=lambda: on_step(state.epoch, state.step, state.step),
        )
        state.curve.append(row)
        on_epoch(row)
        state.epoch, state.step, state.losses, state.pulls = state.epoch + 1, 0, None, None
    state.wall_s = time.monotonic() - started  # with the last evaluation, which the last row leaves out
    return trainer.student, state


def _finish_epoch(
    trainer: Trainer, state: State, samples: int, wall_s: float, on_batch: Callable[[], None]
) -> dict[str, Any]:
    """The epoch's row of the curve: loss terms as means over samples, accuracies, wall time since the start."""
    _check_finite(trainer, state)
    batch = trainer.run.train.batch
    sizes = torch.full((state.step,), float(batch), dtype=torch.float64)
    sizes[-1] = samples - batch * (state.step - 1)
    means = (state.losses.cpu().double() * sizes[:, None]).sum(dim=0) / samples
    pulls = [] if state.pulls is None else state.pulls.tolist()
    accuracies: dict[str, float] = {}
    for part in due(trainer.run, state.epoch):
        metrics = evaluate(trainer.student, trainer.dataset, on_batch, part=part)
        if not math.isfinite(metrics.loss):
            raise Diverged(f"{part} loss is {metrics.loss} after epoch {state.epoch}")
        accuracies |= metrics.columns(part)
    return {
        "epoch": state.epoch,
        "lr": trainer.run.train.lr_at(state.epoch),
        "train_loss": float(means.sum()),
        **dict(zip(trainer.term_names, means.tolist(), strict=True)),
        **{f"grad_norm_{name}": pull for name, pull in zip(trainer.term_names, pulls, strict=False)},
        **accuracies,
        "wall_s": round(wall_s, 3),
    }


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


def _check_finite(trainer: Trainer, state: State) -> None:
    """Raise Diverged at the first step of this epoch with a term that is not finite. Waits for the device."""
    losses = state.losses[: state.step].cpu()
    bad = ~torch.isfinite(losses).all(dim=1)
    if bad.any():
        step = int(bad.nonzero()[0])
        terms = ", ".join(f"{name} {value:.6g}" for name, value in zip(trainer.term_names, losses[step], strict=True))
        raise Diverged(f"loss is not finite at epoch {state.epoch}, step {step + 1} of {len(state.losses)}: {terms}")


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


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Draw initial weights from (seed, purpose) on the CPU, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, purpose))
        yield
