"""The training loop: resume bit for bit, paired seeds, a plain loop written a second way, and divergence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import zoo
from bench import store
from bench.run import Train
from bench.training import data as datasets
from bench.training import evaluate as evaluation
from bench.training import member, trainer
from tests import tiny

torch.set_num_threads(1)


def teacher_net(seed: int = 5) -> nn.Module:
    with member.seeded(seed, "teacher of a test"):
        return zoo.build("resnet8")


def curve_without_time(curve):
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in curve]


def run_to_end(run, checkpoint, dataset, stop_after=None):
    """Train; with `stop_after` n, stop at every n-th step and start again, in new objects each time."""
    teacher = lambda: teacher_net() if run.teacher else None  # noqa: E731
    if stop_after is None:
        return tiny.train(run, dataset, teacher(), checkpoint)
    while True:
        steps = iter(range(1, 10**6))
        try:
            return tiny.train(
                run, dataset, teacher(), checkpoint, should_stop=lambda steps=steps: next(steps) == stop_after
            )
        except trainer.Stopped:
            assert checkpoint.exists()


ADAMW = "epochs: 2, milestones: [], optimizer: adamw, schedule: cosine, warm_up: 0.5"


@pytest.mark.parametrize(
    ("method", "train"), [("vanilla", None), ("kd", None), ("fitnet", None), ("skd", None), ("fitnet", ADAMW)]
)
def test_stopped_at_any_step_equals_uninterrupted(tmp_path, method, train):
    text = tiny.PROTOCOL.replace("epochs: 2, milestones: [1]", train) if train else tiny.PROTOCOL
    run, dataset = tiny.run(tmp_path, method, text=text), tiny.dataset()
    whole, whole_state = run_to_end(run, tmp_path / "a.pt", dataset)
    for stop_after in (1, 2):  # three steps an epoch: stops fall on all of them
        net, state = run_to_end(run, tmp_path / f"b{stop_after}.pt", dataset, stop_after)
        assert curve_without_time(state.curve) == curve_without_time(whole_state.curve)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, net.state_dict()[name]), name


def test_loop_equals_a_plain_one(tmp_path):
    """Two epochs of KD against a loop in the field's style: own optimiser arithmetic, no shared code but the data."""
    run, dataset = tiny.run(tmp_path, "kd"), tiny.dataset()
    net, _ = run_to_end(run, tmp_path / "a.pt", dataset)

    torch.manual_seed(datasets.seed_for(0, "student"))
    plain, teacher = zoo.build("resnet8"), teacher_net().eval()
    momentum = {name: None for name, _ in plain.named_parameters()}
    for epoch in (1, 2):
        lr = 0.05 if epoch == 1 else 0.005
        data = datasets.augmented_epoch(dataset, run.data, 0, epoch)
        for start in range(0, 80, 32):
            x = (data.images[start : start + 32].to(torch.float32) / 255 - 0.5) / 0.25
            y = data.labels[start : start + 32]
            with torch.no_grad():
                soft = (teacher(x) / 4).softmax(1)
            logits = plain(x)
            kl = (soft * (soft.log() - (logits / 4).log_softmax(1))).sum(1).mean() * 16
            loss = 0.1 * nn.functional.cross_entropy(logits, y) + 0.9 * kl
            plain.zero_grad()
            loss.backward()
            with torch.no_grad():
                for name, p in plain.named_parameters():
                    g = p.grad + 5e-4 * p
                    momentum[name] = g if momentum[name] is None else 0.9 * momentum[name] + g
                    p -= lr * momentum[name]
    for (name, value), other in zip(net.state_dict().items(), plain.state_dict().values(), strict=True):
        if value.is_floating_point():  # channels-last and the plain layout round differently
            assert torch.allclose(value, other, rtol=1e-3, atol=1e-4), name


def test_seeds_are_paired_across_methods(tmp_path):
    """Same seed: same initial student and same data order for every method; another seed: neither."""
    dataset = tiny.dataset()
    made = {
        m: member.Member(tiny.run(tmp_path, m), dataset, None if m == "vanilla" else teacher_net())
        for m in ("vanilla", "kd", "fitnet")
    }
    first = made["vanilla"].student.state_dict()
    for other in made.values():
        assert all(torch.equal(first[name], value) for name, value in other.student.state_dict().items())
    moved = member.Member(tiny.run(tmp_path, "vanilla", seed=1), dataset, None).student.state_dict()
    assert not torch.equal(first["conv1.weight"], moved["conv1.weight"])
    orders = [datasets.augmented_epoch(dataset, tiny.run(tmp_path, "kd").data, seed, 1).indices for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


def test_optimiser_holds_connectors_and_not_the_teacher(tmp_path):
    teacher = teacher_net()
    made = trainer.Trainer.of([tiny.run(tmp_path, "fitnet")], tiny.dataset(), teacher)
    (own,) = made.members
    before = {name: value.clone() for name, value in made.teacher.state_dict().items()}
    held = {id(p) for group in own.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in [*own.student.parameters(), *own.method.parameters()]}
    connector = next(own.method.parameters()).clone()
    own.begin_epoch(1)
    epoch = datasets.augmented_epoch(made.dataset, own.run.data, 0, 1)
    made.step(*epoch.batch(slice(32)))
    assert not torch.equal(connector, next(own.method.parameters()))
    assert all(torch.equal(before[name], value) for name, value in made.teacher.state_dict().items())


def test_diverging_run_names_epoch_step_and_terms(tmp_path):
    text = tiny.PROTOCOL.replace("batch: 32}", "batch: 32, lr: 1.0e+30}")
    run = tiny.run(tmp_path, "kd", text=text)
    with pytest.raises(member.Diverged, match=r"epoch 1, step \d of 3: ce .*, kd "):
        tiny.train(run, tiny.dataset(), teacher_net(), tmp_path / "last.pt")
    with pytest.raises(member.Diverged):  # and what has diverged is not saved at a stop either
        steps = iter(range(100))
        tiny.train(run, tiny.dataset(), teacher_net(), tmp_path / "last.pt", should_stop=lambda: next(steps) == 2)
    assert not (tmp_path / "last.pt").exists()


def test_checkpoint_of_another_run_is_refused(tmp_path):
    steps = iter(range(100))
    with pytest.raises(trainer.Stopped):
        tiny.train(
            tiny.run(tmp_path, "vanilla"),
            tiny.dataset(),
            None,
            tmp_path / "last.pt",
            should_stop=lambda: next(steps) == 1,
        )
    with pytest.raises(store.Damaged, match="another run"):
        tiny.train(tiny.run(tmp_path, "vanilla", seed=1), tiny.dataset(), None, tmp_path / "last.pt")
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:1000])
    with pytest.raises(store.Damaged):
        tiny.train(tiny.run(tmp_path, "vanilla"), tiny.dataset(), None, tmp_path / "last.pt")


def test_curve_means_are_over_samples(tmp_path, monkeypatch):
    """80 samples in batches of 32, 32, 16: the last one counts half."""
    run, dataset = tiny.run(tmp_path, "vanilla"), tiny.dataset()
    seen = []

    step = member.Member.step

    def recorded(self, inputs, *others, **options):
        values, pulls = step(self, inputs, *others, **options)
        seen.append((len(inputs), float(values[0])))
        return values, pulls

    monkeypatch.setattr(member.Member, "step", recorded)
    _, state = tiny.train(run, dataset, None, tmp_path / "last.pt")
    assert [n for n, _ in seen] == [32, 32, 16] * 2
    for epoch, row in enumerate(state.curve):
        part = seen[3 * epoch : 3 * epoch + 3]
        assert math.isclose(row["ce"], sum(n * value for n, value in part) / 80, rel_tol=1e-6)
        assert math.isclose(row["train_loss"], row["ce"], rel_tol=1e-12)


def test_curve_tells_how_hard_each_term_pulls_at_the_logits(tmp_path):
    """Against the closed forms of both gradients at the first step; a hint never sees the logits."""
    dataset, teacher = tiny.dataset(), teacher_net()
    run = tiny.run(tmp_path, "kd")
    _, state = tiny.train(run, dataset, teacher, tmp_path / "kd.pt")
    batch = datasets.augmented_epoch(dataset, run.data, run.seed, 1)
    images, labels = dataset.normalise(batch.images[:32]), batch.labels[:32]
    with member.seeded(run.seed, "student"):
        student = zoo.build("resnet8").train()
    with torch.no_grad():
        z_s, z_t = student(images), teacher_net().eval()(images)
    ce = 0.1 * (z_s.softmax(1) - nn.functional.one_hot(labels, 100)) / 32
    kd = 0.9 * 4 * ((z_s / 4).softmax(1) - (z_t / 4).softmax(1)) / 32
    row = state.curve[0]
    assert math.isclose(row["grad_norm_ce"], float(ce.norm()), rel_tol=1e-4)
    assert math.isclose(row["grad_norm_kd"], float(kd.norm()), rel_tol=1e-4)
    assert all({"grad_norm_ce", "grad_norm_kd"} <= set(row) for row in state.curve)

    _, state = tiny.train(tiny.run(tmp_path, "fitnet"), dataset, teacher_net(), tmp_path / "fitnet.pt")
    assert state.curve[0]["grad_norm_hint"] == 0 < state.curve[0]["grad_norm_ce"]


def test_measuring_gradients_changes_no_weight(tmp_path, monkeypatch):
    run, dataset = tiny.run(tmp_path, "skd"), tiny.dataset()
    measured, _ = tiny.train(run, dataset, teacher_net(), tmp_path / "a.pt")
    monkeypatch.setattr(member, "gradient_norms", lambda terms, student: torch.zeros(3))
    plain, _ = tiny.train(run, dataset, teacher_net(), tmp_path / "b.pt")
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in measured.state_dict().items())


def test_gradients_of_both_views_count():
    logits = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    empty = torch.empty(0)
    strong = zoo.Outputs(logits[1], (), (), empty, empty, nn.Identity())
    outputs = zoo.Outputs(logits[0], (), (), empty, empty, nn.Identity(), strong)
    terms = [3 * logits[0].sum() + 4 * logits[1].sum(), 2 * logits[1].sum(), torch.ones(4, requires_grad=True).sum()]
    expected = [5 * math.sqrt(20), 2 * math.sqrt(20), 0]
    assert member.gradient_norms(terms, outputs).tolist() == pytest.approx(expected, rel=1e-6)


def test_every_step_and_every_batch_of_an_evaluation_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(evaluation.BATCH, "cpu", 16)
    dataset, told = tiny.dataset(80), []
    tiny.train(tiny.run(tmp_path, "vanilla"), dataset, None, tmp_path / "last.pt", on_step=lambda *at: told.append(at))
    assert len(dataset.test_labels) == 40
    epochs = [[(e, step, 3) for step in (1, 2, 3)] + [(e, 3, 3)] * 3 for e in (1, 2)]  # 80 in 32s, 40 in 16s
    assert told == epochs[0] + epochs[1]


def settings(**changes) -> Train:
    fixed = dict(momentum=0.9, nesterov=False, weight_decay=5e-4, gamma=0.1, grad_clip=None)
    return Train(**{**fixed, **changes})


def test_step_schedule_counts_epochs_from_one():
    made = settings(epochs=240, batch=64, lr=0.05, milestones=(150, 180, 210))
    rates = [made.lr_at(epoch) for epoch in (1, 150, 151, 180, 181, 210, 211, 240)]
    assert rates == pytest.approx([0.05, 0.05, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5], rel=1e-12)


def test_one_cycle_rises_and_falls_in_straight_lines():
    """The peak is at the middle of epoch 8 of 30: a quarter of the way. By hand: 0, 1, 2, 4/3, 2/3 and 0."""
    cycle = dict(epochs=30, batch=1024, lr=2.0, peak_at=0.25)
    made = settings(**cycle, milestones=())
    at = ((1, 0.0), (4, 0.75), (8, 0.5), (16, 0.0), (23, 0.5), (30, 1.0))
    rates = [made.lr_at(epoch, within) for epoch, within in at]
    assert rates == pytest.approx([0, 1, 2, 4 / 3, 2 / 3, 0], abs=1e-12)
    with pytest.raises(ValueError, match="two schedules"):
        settings(**cycle, milestones=(10,))


def test_each_step_takes_its_own_learning_rate(tmp_path, monkeypatch):
    """Two epochs of three steps: twelfths of the way, up to the peak at a half and down; one stop changes nothing."""
    text = tiny.PROTOCOL.replace("milestones: [1]", "milestones: [], peak_at: 0.5").replace("lr: 0.05", "lr: 1.2")
    run, dataset, seen = tiny.run(tmp_path, "vanilla", text=text), tiny.dataset(), []
    assert (run.train.epochs, run.train.peak_at) == (2, 0.5)
    step = member.Member.step

    def watched(self, *inputs, **options):
        seen.append(round(float(self.optimizer.param_groups[0]["lr"]), 6))
        return step(self, *inputs, **options)

    monkeypatch.setattr(member.Member, "step", watched)
    run_to_end(run, tmp_path / "last.pt", dataset)
    top = run.train.lr
    assert seen == pytest.approx([top / 6 * k for k in (1, 3, 5, 5, 3, 1)], rel=1e-4)
    whole, seen[:] = list(seen), []
    run_to_end(run, tmp_path / "stopped.pt", dataset, stop_after=2)
    assert seen == whole


def test_summary_keeps_last_and_best_apart():
    rows = [
        {"epoch": e, "top1": t, "top5": 90.0, "test_loss": 1.0} for e, t in ((1, 50.0), (2, 60.0), (3, 60.0), (4, 55.0))
    ]
    assert member.summary(rows) == {
        "top1_last": 55.0,
        "top1_best": 60.0,
        "best_epoch": 2,
        "top5_last": 90.0,
        "test_loss_last": 1.0,
    }


@pytest.fixture
def demanding():
    """A method that needs everything the contract offers at once; unregistered afterwards."""
    from methods import contract

    @contract.register
    class Demanding(contract.Method):
        name, label, group, views = "demanding", "Demanding", "feature", "paired"
        teacher_mode = "train"

        def build(self, student, teacher, train_set):
            self.connector = nn.Linear(zoo.shapes(student).pooled, 8)
            self.register_buffer("bank", torch.zeros(len(train_set.labels), 8))
            self.margins = [bn.weight.detach().abs().sum() for bn in teacher.preact_bn]

        def terms(self, student, teacher, batch, progress):
            embedded = self.connector(student.pooled)
            memory = self.bank[batch.indices]
            self.bank[batch.indices] = 0.5 * memory + 0.5 * embedded.detach()
            regions = student.head(nn.functional.adaptive_avg_pool2d(student.last_map, 2).flatten(2).mT)
            return {
                "views": (student.logits - student.strong.logits - teacher.logits + teacher.strong.logits)
                .square()
                .mean(),
                "bank": (embedded - memory).square().mean() * progress.warm_up(2),
                "preact": sum((s - t).square().mean() for s, t in zip(student.preact, teacher.preact, strict=True)),
                "regions": regions.square().mean() * 1e-3,
            }

    yield
    del contract._REGISTRY["demanding"]


def test_contract_carries_banks_views_and_a_drifting_teacher(tmp_path, demanding):
    """Memory by sample index, paired views, region maps, teacher in train mode: trained and resumed to the bit."""
    text = tiny.PROTOCOL + "  demanding: {data: {views: paired, strong: {ops: 2, posterize_bits: [4, 8]}}}\n"
    run, dataset = tiny.run(tmp_path, "demanding", text=text), tiny.dataset()
    whole, whole_state = run_to_end(run, tmp_path / "a.pt", dataset)
    net, state = run_to_end(run, tmp_path / "b.pt", dataset, stop_after=1)
    assert curve_without_time(state.curve) == curve_without_time(whole_state.curve)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in whole.state_dict().items())
    made = member.Member(run, dataset, teacher_net())
    assert made.restore(tmp_path / "b.pt")
    assert made.method.bank.abs().sum() > 0
    fresh = teacher_net().state_dict()
    for name, value in made.drifting.state_dict().items():
        drifted = "running" in name or "num_batches" in name
        assert torch.equal(value.float(), fresh[name].float()) != drifted, name  # statistics drift, weights never
