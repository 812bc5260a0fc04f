"""Runs that train together: each one's result is to the bit what it is alone, whatever befalls the others."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

import methods
import zoo
from bench import cohorts
from bench.protocol import load, resolve
from bench.run import Run, Teacher
from bench.training import clock, member, trainer
from bench.training import data as datasets
from tests import tiny

torch.set_num_threads(1)
ALL = methods.names()
# MLKD with its two views, as in `standard`; one that has fewer epochs; one whose teacher's statistics drift.
TEXT = tiny.PROTOCOL + "  skd: {train: {epochs: 1, milestones: []}}\n"


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    with member.seeded(5, "teacher of a test"):
        return zoo.build("resnet8")


def runs_of(tmp_path, names=ALL):
    return [tiny.run(tmp_path, name, text=TEXT) for name in names]


def outcome(student, state):
    curve = [{key: value for key, value in row.items() if key != "wall_s"} for row in state.curve]
    return curve, {name: value.tolist() for name, value in student.state_dict().items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, teacher):
    """What each method gives by itself."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        run.method: outcome(*tiny.train(run, tiny.dataset(), teacher if run.teacher else None, folder / run.run_id))
        for run in runs_of(folder)
    }


def together(folder, runs, teacher, should_stop=lambda: False, **hooks):
    """Train runs as a cohort; who hears of each."""
    heard = {run.method: tiny.Hooks(**hooks.get(run.method, {})) for run in runs}
    entrants = [trainer.Entrant(run, folder / f"{run.run_id}.pt", heard[run.method]) for run in runs]
    trainer.train(entrants, tiny.dataset(), teacher, should_stop=should_stop)
    return heard


def test_they_may_share(tmp_path):
    """What is tested here is what `bench.cohorts` would put together."""
    runs = {run.run_id: run for run in runs_of(tmp_path)}
    assert len(cohorts.group(runs)) == 1
    assert {"paired"} == {run.data.views for run in runs.values() if run.method == "mlkd"}


def test_all_methods_together_equal_each_alone(tmp_path, teacher, alone):
    """MLKD with paired views, OFD with its own drifting teacher, the Student row without one, SKD that ends early."""
    before = copy.deepcopy(teacher.state_dict())
    heard = together(tmp_path, runs_of(tmp_path), teacher)
    assert set(heard) == set(alone)
    for name, one in heard.items():
        assert outcome(one.student, one.state) == alone[name], name
    assert len(heard["skd"].state.curve) == 1 and len(heard["kd"].state.curve) == 2
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_teacher_is_asked_once_a_step(tmp_path, teacher, monkeypatch):
    asked, made = [], []
    outputs_of, augmented = trainer.outputs_of, datasets.augmented_epoch
    monkeypatch.setattr(trainer, "outputs_of", lambda *its: asked.append(1) or outputs_of(*its))
    monkeypatch.setattr(datasets, "augmented_epoch", lambda *its: made.append(1) or augmented(*its))
    together(tmp_path, runs_of(tmp_path, ("vanilla", "kd", "dkd", "rkd")), teacher)
    assert (len(asked), len(made)) == (6, 2)  # three steps in each of two epochs


@pytest.mark.parametrize("stops", [(2, 3), (1, 4, 1)])
def test_stopped_and_continued(tmp_path, teacher, alone, stops):
    """At any step, in the first epoch and the last."""
    runs = runs_of(tmp_path, ("vanilla", "kd", "crd", "ofd", "mlkd"))
    for after in stops:
        calls = iter(range(1, 100))
        heard = together(tmp_path, runs, teacher, should_stop=lambda calls=calls, after=after: next(calls) == after)
        assert all(isinstance(one.error, trainer.Stopped) for one in heard.values())
    heard = together(tmp_path, runs, teacher)
    for name, one in heard.items():
        assert outcome(one.student, one.state) == alone[name], name


def test_members_that_stand_at_different_points_meet(tmp_path, teacher, alone):
    """KD is two steps on, DKD in its second epoch, the others are new: those behind move first."""
    runs = {run.method: run for run in runs_of(tmp_path, ("vanilla", "kd", "dkd", "fitnet", "mlkd"))}
    for name, steps in (("kd", 2), ("dkd", 4)):
        calls = iter(range(1, 100))
        together(tmp_path, [runs[name]], teacher, lambda calls=calls, steps=steps: next(calls) == steps)
    moves = []
    watch = {name: {"on_step": lambda *at, name=name: moves.append((name, at[:2]))} for name in runs}
    heard = together(tmp_path, list(runs.values()), teacher, **watch)
    for name, one in heard.items():
        assert outcome(one.student, one.state) == alone[name], name
    first = moves.index(("kd", (1, 3)))
    assert {name for name, _ in moves[:first]} == {"vanilla", "fitnet", "mlkd"}  # until they stand where KD does
    assert moves.index(("dkd", (2, 2))) > moves.index(("kd", (2, 1)))


def test_who_diverges_or_raises_leaves_alone(tmp_path, teacher, alone):
    """A loss that is not finite, a step that raises, a claim that is lost at a write: each by its own error."""
    runs = runs_of(tmp_path, ("vanilla", "kd", "dkd", "fitnet", "rkd"))
    wild = runs[2].train.model_copy(update={"lr": 1e30})
    runs[2] = runs[2].model_copy(update={"train": wild})

    class Lost(Exception):
        pass

    def lose(row):
        raise Lost

    def broken(*_):
        raise ValueError("a bad method")

    step = member.Member.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            member.Member, "step", lambda self, *its: (broken if self.run.method == "rkd" else step)(self, *its)
        )
        heard = together(tmp_path, runs, teacher, fitnet={"on_epoch": lose})
    assert isinstance(heard["dkd"].error, member.Diverged) and "epoch 1, step" in str(heard["dkd"].error)
    assert isinstance(heard["fitnet"].error, Lost)
    assert str(heard["rkd"].error) == "a bad method" and heard["rkd"].state is None
    for name in ("vanilla", "kd"):
        assert outcome(heard[name].student, heard[name].state) == alone[name], name


def test_a_damaged_checkpoint_starts_one_of_them_over(tmp_path, teacher, alone):
    runs = runs_of(tmp_path, ("vanilla", "kd"))
    calls = iter(range(1, 100))
    together(tmp_path, runs, teacher, should_stop=lambda: next(calls) == 4)
    path = tmp_path / f"{runs[1].run_id}.pt"
    path.write_bytes(path.read_bytes()[:2000])
    said = []
    heard = together(tmp_path, runs, teacher, kd={"damaged": said.append})
    assert len(said) == 1
    for name, one in heard.items():
        assert outcome(one.student, one.state) == alone[name], name


def test_what_fails_the_device_is_everybodys(tmp_path, teacher, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    runs = runs_of(tmp_path, ("vanilla", "kd"))
    monkeypatch.setattr(member.Member, "step", full)
    with pytest.raises(torch.OutOfMemoryError):
        together(tmp_path, runs, teacher)


def test_checkpoints_of_other_thread_counts_go_on_with_theirs(tmp_path, teacher, alone, monkeypatch):
    """Bits depend on the number of threads: members that began with different ones do not step together."""
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    runs = runs_of(tmp_path, ("vanilla", "kd"))
    calls = iter(range(1, 100))
    together(tmp_path, runs[:1], teacher, should_stop=lambda: next(calls) == 1)
    saved = torch.load(tmp_path / f"{runs[0].run_id}.pt")
    torch.save({**saved, "threads": 7}, tmp_path / f"{runs[0].run_id}.pt")
    heard = together(tmp_path, runs, teacher)
    assert 7 in used
    for name, one in heard.items():
        assert outcome(one.student, one.state) == alone[name], name


def test_times_are_shared_out(tmp_path, teacher):
    """Device seconds add up to what the process took; alone, each would have had the whole of what they shared."""
    heard = together(tmp_path, runs_of(tmp_path, ("vanilla", "kd", "dkd")), teacher)
    for one in heard.values():
        state = one.state
        assert 0 < state.device_s < state.alone_s and state.wall_s > 0
        assert (state.moves, state.shared_with) == (6, 18)
    own = tiny.train(runs_of(tmp_path, ("kd",))[0], tiny.dataset(), teacher, tmp_path / "own.pt")[1]
    assert own.device_s == own.alone_s > 0 and own.shared_with == own.moves


def test_the_teachers_pass_is_charged_to_those_that_share_it(tmp_path, teacher, monkeypatch):
    """Not to the Student row, which has none, nor to OFD, which has its own; of a second view to MLKD alone."""
    charged, dataset = [], tiny.dataset()
    made = trainer.Trainer.of(runs_of(tmp_path, ("vanilla", "kd", "ofd", "mlkd")), dataset, teacher)
    for part in ("shared", "second_view"):
        monkeypatch.setattr(made.clock, part, lambda members: charged.append([one.run.method for one in members]))
    for one in made.members:
        one.begin_epoch(1)
    data = next(one.run.data for one in made.members if one.paired)
    epoch = datasets.augmented_epoch(dataset, data, 0, 1)
    trainer.results_of(made.step(*epoch.batch(slice(8))))
    assert charged == [["vanilla", "kd", "ofd", "mlkd"], ["kd", "mlkd"], ["mlkd"], ["mlkd"]]


def test_a_second_view_is_charged_to_those_that_see_it():
    """On a GPU by FLOP, of which a second view doubles the student's and the teacher's."""
    nets = {"teacher": Teacher(arch="resnet20", run_id="t")}
    kd, mlkd, ofd = (resolve(load("standard"), name, "resnet8", 0, **nets) for name in ("kd", "mlkd", "ofd"))
    states = [member.State() for _ in range(3)]
    members = [One(run, state, run is not ofd, run is mlkd) for run, state in zip((kd, mlkd, ofd), states, strict=True)]
    clock.Clock(torch.device("meta")).spread(members)  # of no CPU
    student, teacher = 3 * zoo.count_macs("resnet8"), zoo.count_macs("resnet20")
    parts = [student + teacher / 2, 2 * student + teacher / 2 + teacher, student + teacher]
    device_s, alone_s = ([getattr(state, name) for state in states] for name in ("device_s", "alone_s"))
    assert device_s == pytest.approx([sum(device_s) * part / sum(parts) for part in parts])
    alone = [student + teacher, 2 * (student + teacher), student + teacher]
    assert alone_s == pytest.approx([sum(alone_s) * part / sum(alone) for part in alone])


@dataclasses.dataclass(eq=False)
class One:
    """Of a member what a clock asks."""

    run: Run
    state: member.State
    shares_teacher: bool
    paired: bool


@pytest.mark.parametrize("moved", [torch.contiguous_format, torch.channels_last])
def test_momentum_of_another_layout_goes_on_as_if_it_had_never_moved(tmp_path, moved):
    """A checkpoint of a GPU on a CPU, and back: what it says counts, not how it lay in memory there."""
    run, dataset = tiny.run(tmp_path, "fitnet"), tiny.dataset()
    with member.seeded(5, "teacher of a test"):
        teacher = zoo.build("resnet8")
    path = tmp_path / "last.pt"
    calls = iter(range(1, 100))
    with pytest.raises(trainer.Stopped):
        tiny.train(run, dataset, teacher, path, should_stop=lambda: next(calls) == 2)
    saved = torch.load(path)

    def laid(value):
        return value.contiguous(memory_format=moved) if isinstance(value, torch.Tensor) and value.dim() == 4 else value

    for state in saved["optimizer"]["state"].values():
        state.update({name: laid(value) for name, value in state.items()})
    for part in ("student", "method"):
        saved[part] = {name: laid(value) for name, value in saved[part].items()}
    torch.save(saved, tmp_path / "moved.pt")
    whole, elsewhere = (tiny.train(run, dataset, teacher, tmp_path / name)[0] for name in ("last.pt", "moved.pt"))
    assert all(torch.equal(value, elsewhere.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize(
    ("train", "names"), [("", ("momentum_buffer",)), (", optimizer: adamw", ("exp_avg", "exp_avg_sq"))]
)
def test_momentum_lies_as_its_weight_does(tmp_path, train, names):
    """The fused kernels walk both alike; CUDA's refuses others, the CPU's trains on the wrong elements."""
    text = tiny.PROTOCOL.replace("milestones: [1]", f"milestones: [1]{train}")
    made = member.Member(tiny.run(tmp_path, "vanilla", text=text), tiny.dataset(), None)
    count = {"step": torch.tensor(3.0)} if train else {}
    state = {
        number: {**count, **{name: torch.rand(p.shape) for name in names}} for number, p in enumerate(made.trained)
    }  # contiguous, as a GPU in fp32 would write it
    saved = made.optimizer.state_dict()
    elsewhere = [{**group, "capturable": True, "lr": torch.tensor(9.0)} for group in saved["param_groups"]]
    made.load_optimizer({"param_groups": elsewhere, "state": copy.deepcopy(state)})
    for number, p in enumerate(made.trained):
        for name in names:
            momentum = made.optimizer.state[p][name]
            assert momentum.stride() == p.stride() and torch.equal(momentum, state[number][name])
    group = made.optimizer.param_groups[0]
    assert group["lr"] is made.lr and not (train and group["capturable"])  # of this device


def test_images_are_normalised_once_a_step(tmp_path, teacher, monkeypatch):
    counted = []
    dataset = tiny.dataset()
    made = trainer.Trainer.of(runs_of(tmp_path, ("kd", "dkd")), dataset, teacher)
    normalise = datasets.Dataset.normalise
    monkeypatch.setattr(datasets.Dataset, "normalise", lambda self, x: counted.append(1) or normalise(self, x))
    for one in made.members:
        one.begin_epoch(1)
    epoch = datasets.augmented_epoch(dataset, made.members[0].run.data, 0, 1)
    trainer.results_of(made.step(*epoch.batch(slice(8))))
    assert len(counted) == 1
    assert dataclasses.is_dataclass(epoch)
