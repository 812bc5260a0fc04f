"""CRD against loops over samples and images, its oracle values, and the statistics of its negatives."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

import methods
import zoo
from methods import crd
from tests.methods import reference
from tests.methods.reference import Array, close, numeric_gradient

torch.set_num_threads(1)
PARAMS = {
    "ce_weight": 1.5,
    "crd_weight": 0.8,
    "embedding": 4,
    "negatives": 6,
    "temperature": 0.3,
    "bank_momentum": 0.7,
}
LABELS = np.array([1, 0, 2, 0, 1, 0, 0, 2, 0, 1, 0, 0, 2, 1, 0])  # classes of 8, 4 and 3 images: 7 are not of class 0


SEED_ROUNDS = [(30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)]  # SplitMix64
KEY_ROUNDS = [(16, 0x7FEB352D), (15, 0x846CA68B)]  # lowbias32 without its last shift


# --- the same in plain Python ---------------------------------------------------------------------------------------


def hashed(x: int, bits: int, rounds: list[tuple[int, int]]) -> int:
    """Xor with itself shifted, multiply, over and over; unsigned."""
    for shift, factor in rounds:
        x ^= x >> shift
        x = x * factor % 2**bits
    return x


def negatives(labels: Array, own: Array, count: int, stream: int, draws: int) -> list[set[int]]:
    """SplitMix64 of a counter gives each row an odd factor and an offset, lowbias32 each column its key."""
    chosen = []
    for row, cls in enumerate(own):
        state = (stream + (draws * 2**32 + row) * 0x9E3779B97F4A7C15) % 2**64
        seed = hashed(state, 64, SEED_ROUNDS)
        factor, offset = seed % 2**32 | 1, seed >> 32
        keys = {}
        for column, label in enumerate(labels):
            if label != cls:
                x = hashed((column * factor + offset) % 2**32, 32, KEY_ROUNDS)
                keys[column] = x - 2**32 if x >= 2**31 else x
        chosen.append(set(sorted(keys, key=keys.__getitem__)[-count:]))
    return chosen


def raw_scores(v: Array, bank: Array, lists: Any, tau: float) -> list[list[float]]:
    return [[math.exp(math.fsum(bank[j] * v[i]) / tau) for j in lists[i]] for i in range(len(v))]


def normaliser(v: Array, bank: Array, lists: Any, tau: float) -> float:
    scores = [e for row in raw_scores(v, bank, lists, tau) for e in row]
    return math.fsum(scores) / len(scores) * len(bank)


def contrast(v: Array, bank: Array, lists: Any, z: float, tau: float) -> tuple[float, Array]:
    """The loss of one side as published, and its gradient in v; each list starts with the sample's own row."""
    loss, gradient = 0.0, np.zeros_like(v)
    for i, row in enumerate(raw_scores(v, bank, lists, tau)):
        noise = (len(row) - 1) / len(bank)
        for k, (j, e) in enumerate(zip(lists[i], row, strict=True)):
            p, floor = e / z, noise + 1e-7
            loss -= math.log((noise if k else p) / (p + floor)) / len(v)
            gradient[i] += (p if k else -floor) / (p + floor) * bank[j] / tau / len(v)
    return loss, gradient


def embed(f: Array, weight: Array, bias: Array) -> Array:
    rows = f @ weight.T + bias
    return np.array([row / math.sqrt(row @ row) for row in rows])


def embed_backward(f: Array, weight: Array, bias: Array, g: Array) -> dict[str, Array]:
    """Gradients of what has the gradient g in `embed`."""
    gradients = {"f": np.zeros_like(f), "weight": np.zeros_like(weight), "bias": np.zeros_like(bias)}
    for i, v in enumerate(embed(f, weight, bias)):
        row = f[i] @ weight.T + bias
        g_row = (g[i] - v * (v @ g[i])) / math.sqrt(row @ row)
        gradients["f"][i] = g_row @ weight
        gradients["weight"] += np.outer(g_row, f[i])
        gradients["bias"] += g_row
    return gradients


def update(bank: Array, v: Array, indices: Any, momentum: float) -> Array:
    """One sample after the other, each mixed into what the bank held before the batch."""
    after = bank.copy()
    for i, j in enumerate(indices):
        row = momentum * bank[j] + (1 - momentum) * v[i]
        after[j] = row / math.sqrt(row @ row)
    return after


def unit_rows(a: Array) -> Array:
    return a / np.sqrt((a**2).sum(axis=1, keepdims=True))


# --- the method on small numbers ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks are named by the width of their pooled features."""
    real = crd.shapes
    monkeypatch.setattr(
        crd, "shapes", lambda net: SimpleNamespace(pooled=int(net)) if isinstance(net, str) else real(net)
    )


def build(labels: Array = LABELS, seed: int = 0, classes: int = 3, **changes: Any) -> methods.Method:
    torch.manual_seed(seed)
    train_set = methods.TrainSet(torch.as_tensor(labels), classes)
    settings = reference.settings("crd", {**PARAMS, **changes})
    return methods.get("crd")(settings, "3", "5", train_set).double().train()


def pooled(features: Array | torch.Tensor, logits: Array | torch.Tensor) -> zoo.Outputs:
    none = torch.empty(0)
    return zoo.Outputs(torch.as_tensor(logits), (), (), none, torch.as_tensor(features), torch.nn.Identity())


def inputs(indices: list[int], seed: int = 3) -> tuple[Any, Any, methods.Batch]:
    """Student and teacher features as leaves, logits, and the batch of `indices`."""
    rng = np.random.default_rng(seed)
    size = len(indices)
    f_s, f_t, z = (torch.tensor(rng.standard_normal((size, d)), requires_grad=True) for d in (3, 5, 3))
    at = torch.tensor(indices)
    return pooled(f_s, z), pooled(f_t, z.detach()), methods.Batch(torch.as_tensor(LABELS)[at], at)


def take(method: methods.Method, given: tuple[Any, Any, methods.Batch]) -> dict[str, torch.Tensor]:
    return method.terms(*given, reference.progress(1))


def state_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def weights(linear: torch.nn.Linear) -> dict[str, Array]:
    return {name: value.detach().numpy().copy() for name, value in linear.named_parameters()}


def test_three_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negatives, crossing, normaliser of the first step, gradients, and banks; an image that comes twice."""
    method = build()
    drawn: list[torch.Tensor] = []

    def spy(*arguments: Any) -> torch.Tensor:
        drawn.append(draw(*arguments))
        return drawn[-1]

    draw = crd.draw_negatives
    monkeypatch.setattr(crd, "draw_negatives", spy)
    banks = {side: getattr(method, f"{side}_bank").numpy().copy() for side in ("student", "teacher")}
    tau, momentum, z = PARAMS["temperature"], PARAMS["bank_momentum"], {}
    for step, indices in enumerate(([2, 0, 9, 4], [4, 2, 4, 14, 2], [9, 4, 0])):
        student, teacher, _ = given = inputs(indices, seed=step)
        terms = take(method, given)
        assert list(terms) == ["ce", "crd_student", "crd_teacher"]
        lists = [[own, *rest] for own, rest in zip(indices, drawn[-1].tolist(), strict=True)]
        expected = negatives(LABELS, LABELS[indices], PARAMS["negatives"], method.stream.item(), step)
        assert [set(rest) for _, *rest in lists] == expected

        value, gradient = reference.cross_entropy(student.logits.detach().numpy(), LABELS[indices])
        close(terms["ce"].item(), 1.5 * value)
        close(torch.autograd.grad(terms["ce"], student.logits)[0], 1.5 * gradient)
        v = {}
        for side, other, net in (("student", "teacher", student), ("teacher", "student", teacher)):
            linear = getattr(method, f"{side}_embedding")
            f, given_weights = net.pooled.detach().numpy(), weights(linear)
            v[side] = embed(f, **given_weights)
            z.setdefault(side, normaliser(v[side], banks[other], lists, tau))
            value, gradient = contrast(v[side], banks[other], lists, z[side], tau)
            close(terms[f"crd_{side}"].item(), 0.8 * value)
            close(getattr(method, f"{side}_log_z").exp(), z[side])
            wanted = embed_backward(f, **given_weights, g=0.8 * gradient)
            found = torch.autograd.grad(terms[f"crd_{side}"], [net.pooled, linear.weight, linear.bias])
            for key, actual in zip(("f", "weight", "bias"), found, strict=True):
                close(actual, wanted[key])
        for side in banks:
            banks[side] = update(banks[side], v[side], indices, momentum)
            close(getattr(method, f"{side}_bank"), banks[side])
        assert method.draws == step + 1


def test_reference_gradients_are_the_slopes_of_the_reference() -> None:
    rng = np.random.default_rng(0)
    bank, lists = unit_rows(rng.standard_normal((7, 4))), [[3, 1, 0, 6], [0, 2, 3, 5], [6, 4, 5, 1]]
    f, weight, bias = rng.standard_normal((3, 2)), rng.standard_normal((4, 2)), rng.standard_normal(4)
    z = normaliser(embed(f, weight, bias), bank, lists, 0.3)

    def loss(f: Array = f, weight: Array = weight, bias: Array = bias) -> float:
        return contrast(embed(f, weight, bias), bank, lists, z, 0.3)[0]

    gradients = embed_backward(f, weight, bias, contrast(embed(f, weight, bias), bank, lists, z, 0.3)[1])
    for name, at in {"f": f, "weight": weight, "bias": bias}.items():
        close(gradients[name], numeric_gradient(lambda x, name=name: loss(**{name: x}), at, h=1e-3), 1e-8)


@pytest.mark.parametrize(("batch", "others", "tau"), [(1, 1, 0.07), (2, 5, 0.1), (4, 19, 0.07), (3, 8, 1.0)])
def test_values_and_gradients(batch: int, others: int, tau: float) -> None:
    rng = np.random.default_rng(batch)
    bank, v = unit_rows(rng.standard_normal((20, 6))), unit_rows(rng.standard_normal((batch, 6)))
    lists = np.array([rng.permutation(20)[: others + 1] for _ in range(batch)])
    z = normaliser(v, bank, lists, tau)
    for factor in (1.0, 30.0, 1 / 30):  # at the first batch, and when scores have left the normaliser behind
        leaf = torch.tensor(v, requires_grad=True)
        scores = crd.log_scores(leaf, torch.tensor(bank), torch.tensor(lists), tau)
        close(scores.detach().exp(), raw_scores(v, bank, lists, tau))
        loss = crd.contrast_loss(scores, torch.tensor(math.log(z * factor), dtype=torch.float64), 20)
        value, gradient = contrast(v, bank, lists, z * factor, tau)
        close(loss.item(), value)
        close(torch.autograd.grad(loss, leaf)[0], gradient)
    close(crd.log_normaliser(scores.detach(), 20).exp().item(), z)


def test_oracle_values() -> None:
    """Two steps at N 20, E 4, K 6, tau 0.07, momentum 0.5, as RepDistiller's code takes them on fixed lists."""
    m, q = np.arange(80).reshape(20, 4), np.arange(12).reshape(3, 4)
    banks = {
        "student": torch.tensor(unit_rows(np.sin(0.31 * m + 0.2))),
        "teacher": torch.tensor(unit_rows(np.cos(0.17 * m - 0.4))),
    }
    v = {
        "student": torch.tensor(unit_rows(np.sin(0.6 * q + 0.5))),
        "teacher": torch.tensor(unit_rows(np.cos(0.45 * q))),
    }
    own = torch.tensor([4, 11, 17])
    lists = torch.tensor([[i, *((i + 3 * k + 1) % 20 for k in range(6))] for i in own.tolist()])
    log_z = {}
    for step in (
        {"student": 20.5792552742, "teacher": 28.0816509222},
        {"student": 8.4749740138, "teacher": 16.5077885104},
    ):
        for side, other in (("student", "teacher"), ("teacher", "student")):
            scores = crd.log_scores(v[side], banks[other], lists, 0.07)
            log_z.setdefault(side, crd.log_normaliser(scores, 20))
            assert crd.contrast_loss(scores, log_z[side], 20).item() == pytest.approx(step[side], abs=5.1e-11)
        for side in banks:
            crd.update_(banks[side], v[side], own, 0.5)
    close(log_z["student"].exp(), 4965697.4234161982, 1e-13)
    close(log_z["teacher"].exp(), 2523287.0075747133, 1e-13)
    for side, row in (
        ("student", [-0.26273795, 0.32972937, 0.64798451, 0.63432120]),
        ("teacher", [0.73071402, 0.52751018, 0.12215542, -0.41577408]),
    ):
        np.testing.assert_allclose(banks[side][4], row, rtol=0, atol=5.1e-9)


def test_each_term_trains_its_own_embedding_and_no_bank() -> None:
    method = build()
    student, teacher, _ = given = inputs([0, 1, 2])
    terms = take(method, given)
    leaves = [student.pooled, teacher.pooled, method.student_embedding.weight, method.teacher_embedding.weight]
    for key, reached in (("crd_student", [0, 2]), ("crd_teacher", [1, 3])):
        gradients = torch.autograd.grad(terms[key], leaves, allow_unused=True)
        assert [i for i, gradient in enumerate(gradients) if gradient is not None] == reached
        assert all(gradients[i].any() for i in reached)
    assert not any(buffer.requires_grad or buffer.grad_fn for buffer in method.buffers())


def test_terms_are_linear_in_the_weights() -> None:
    given = inputs([0, 1, 2])
    one = take(build(), given)
    other = take(build(ce_weight=3.0, crd_weight=0.2), given)
    for key, ratio in (("ce", 2.0), ("crd_student", 0.25), ("crd_teacher", 0.25)):
        close(other[key].item(), ratio * one[key].item(), 1e-13)


def test_more_than_one_gradient_can_be_taken() -> None:
    """The trainer takes each term's gradient apart before the step's own backward pass."""
    method = build()
    student, _, _ = given = inputs([0, 1, 2])
    terms = take(method, given)
    first, again = (torch.autograd.grad(terms["crd_student"], student.pooled, retain_graph=True)[0] for _ in range(2))
    sum(terms.values()).backward()
    assert torch.equal(first, again) and torch.equal(first, student.pooled.grad)


# --- negatives ------------------------------------------------------------------------------------------------------


def chosen(labels: Array, own: Array, count: int, draws: int = 0, stream: int = 2**62 + 12345) -> torch.Tensor:
    """Which columns each row takes, (B, N) float64 of zeros and ones."""
    labels, own = (torch.as_tensor(a, dtype=torch.int32) for a in (labels, own))
    drawn = crd.draw_negatives(labels, own, count, torch.tensor(stream), torch.tensor(draws))
    assert drawn.shape == (len(own), count)
    return torch.zeros(len(own), len(labels), dtype=torch.float64).scatter_(1, drawn, 1.0)


@pytest.mark.parametrize(("stream", "draws"), [(0, 0), (1, 2**31 - 1), (2**63 - 2, 390_000)])
def test_negatives_are_those_of_the_hash(stream: int, draws: int) -> None:
    rng = np.random.default_rng(0)
    labels, own = rng.integers(0, 5, 300), rng.integers(0, 5, 6)
    drawn = crd.draw_negatives(torch.tensor(labels), torch.tensor(own), 90, torch.tensor(stream), torch.tensor(draws))
    assert [set(row) for row in drawn.tolist()] == negatives(labels, own, 90, stream, draws)


def test_negatives_are_distinct_images_of_other_classes() -> None:
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.repeat(np.arange(4), [700, 150, 149, 1]))
    own = np.array([0, 1, 2, 3] * 8)
    for draws in range(20):
        taken = chosen(labels, own, 300, draws)
        assert (taken.sum(dim=1) == 300).all()  # no duplicate
        assert not taken[torch.tensor(own[:, None] == labels)].any()


def test_as_many_negatives_as_there_are_takes_them_all() -> None:
    labels = np.repeat(np.arange(3), [60, 25, 15])
    for cls, others in enumerate((40, 75, 85)):
        taken = chosen(labels, np.full(50, cls), others)
        assert (taken == torch.tensor(labels != cls).double()).all()


def unhashed(x: int, bits: int, rounds: list[tuple[int, int]]) -> int:
    """What `hashed` makes x of."""
    for shift, factor in reversed(rounds):
        x = x * pow(factor, -1, 2**bits) % 2**bits
        high = x
        for _ in range(bits // shift):  # each time `shift` more bits are right, from the top
            high = x ^ high >> shift
        x = high
    return x


def test_the_lowest_key_is_still_above_the_own_class() -> None:
    """One column in 2^32 hashes to the value that marks the own class: a stream where column 20 of row 0 does."""
    labels = np.array([0] * 10 + [1] * 21 + [0] * 33)
    start = unhashed(2**31, 32, KEY_ROUNDS)
    state = unhashed((start - 20) % 2**32 << 32 | 1, 64, SEED_ROUNDS)
    taken = chosen(labels, [0], 21, stream=state - 2**64 if state >= 2**63 else state)
    assert (taken[0] == torch.tensor(labels != 0).double()).all()


def test_every_subset_of_the_others_is_equally_likely() -> None:
    """Columns by chi-square, pairs of columns by their standardised counts, against draws without replacement."""
    count, rows, calls = 7, 2048, 60
    labels = np.array([0] * 10 + [1] * 30)
    together = torch.zeros(40, 40, dtype=torch.float64)
    for draws in range(calls):
        taken = chosen(labels, np.zeros(rows), count, draws)
        together += taken.T @ taken
    n, trials = 30, rows * calls
    together = together[10:, 10:].numpy()
    p = count / n
    # Counts of a row add up to K: the variances are those of n - 1 free columns.
    chi_square = ((np.diag(together) - trials * p) ** 2).sum() / (trials * p * (1 - p)) * (n - 1) / n
    assert 1e-4 < stats.chi2.sf(chi_square, n - 1) < 1 - 1e-4
    p = count * (count - 1) / (n * (n - 1))
    z = (together[np.triu_indices(n, 1)] - trials * p) / math.sqrt(trials * p * (1 - p))
    assert abs(z).max() < 4.5 and 0.85 < z.std() < 1.15


def test_rows_and_steps_are_independent() -> None:
    """Overlaps of any two rows, in one call or in two, have the hypergeometric mean and variance."""
    n, count, rows, calls = 3000, 1000, 32, 6
    labels = np.ones(n)
    taken = torch.cat([chosen(labels, np.zeros(rows), count, draws) for draws in range(calls)])
    law = stats.hypergeom(n, count, count)
    overlaps = (taken @ taken.T).numpy()
    z = (overlaps - law.mean()) / law.std()
    same_call = np.kron(np.eye(calls), np.ones((rows, rows))).astype(bool)
    upper = np.triu(np.ones_like(same_call), 1)
    for part in (same_call & upper, ~same_call & upper):
        assert abs(z[part].mean()) < 4 / math.sqrt(part.sum())
        assert abs(z[part].std() - 1) < 4 / math.sqrt(2 * part.sum())
        assert abs(z[part]).max() < 5.5


@pytest.mark.parametrize("stride", [1, 2, 64, 1000])
def test_parts_of_a_row_are_not_preferred(stride: int) -> None:
    """A row's number of negatives in a stretch of columns, or in every so many, is hypergeometric."""
    n, count = 4000, 1300
    taken = torch.cat([chosen(np.ones(n), np.zeros(64), count, draws) for draws in range(4)])
    part = taken[:, :200] if stride == 1 else taken[:, ::stride]
    law = stats.hypergeom(n, count, part.shape[1])
    z = (part.sum(dim=1).numpy() - law.mean()) / law.std()
    assert abs(z.mean()) < 4 / math.sqrt(len(z)) and abs(z.std() - 1) < 4 / math.sqrt(2 * len(z))


def test_another_stream_is_another_draw() -> None:
    one, other = build(seed=1), build(seed=2)
    assert one.stream != other.stream and one.stream.dtype == one.draws.dtype == torch.int64
    taken = [chosen(np.ones(1000), np.zeros(4), 300, stream=method.stream.item()) for method in (one, other)]
    assert (taken[0] * taken[1]).sum(dim=1).max() < 150  # 90 expected, standard deviation 6.6


# --- memory and edges -----------------------------------------------------------------------------------------------


def test_a_restored_state_goes_on_bit_for_bit() -> None:
    method = build()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        sum(take(method, inputs([0, 5, 1, 5], seed=step)).values()).backward()
        optimizer.step()
    copied, restored = copy.deepcopy(method), build(seed=9)
    restored.load_state_dict(method.state_dict())
    torch.manual_seed(123)  # nothing is drawn from the generator any more
    wanted = [take(method, inputs([3, 2, 8], seed=step)) for step in (7, 8)]
    for other in (copied, restored):
        torch.manual_seed(321)
        for step, terms in zip((7, 8), wanted, strict=True):
            found = take(other, inputs([3, 2, 8], seed=step))
            assert all(torch.equal(found[key], terms[key]) for key in terms)
        after, expected = state_of(other), state_of(method)
        assert after.keys() == expected.keys() and all(torch.equal(after[key], expected[key]) for key in after)


class Backwards(TorchDispatchMode):
    """Writes the rows of an `index_copy_` last to first: a GPU promises no order."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index_copy_.default:
            target, dim, index, rows = args
            args = (target, dim, index.flip(0), rows.flip(0))
        return func(*args, **(kwargs or {}))


def test_of_an_image_that_comes_twice_the_last_is_kept() -> None:
    rng = np.random.default_rng(5)
    bank, v = rng.standard_normal((9, 4)), rng.standard_normal((6, 4))
    indices = [3, 0, 3, 8, 3, 0]
    for order in (nullcontext(), Backwards()):
        after = torch.tensor(bank)
        with order:
            crd.update_(after, torch.tensor(v), torch.tensor(indices), 0.5)
        close(after, update(bank, v, indices, 0.5))
    close(after[3], unit_rows(0.5 * bank[[3]] + 0.5 * v[[4]])[0])
    untouched = [i for i in range(9) if i not in indices]
    assert torch.equal(after[untouched], torch.tensor(bank)[untouched])


def test_banks_at_the_start() -> None:
    """Uniform in +-sqrt(3 / E), two different ones, a row for each image."""
    method = build(labels=np.arange(3000) % 3, embedding=12)
    bound = math.sqrt(3 / 12)
    for bank in (method.student_bank, method.teacher_bank):
        assert bank.shape == (3000, 12) and bank.abs().max() <= bound
        assert stats.kstest(bank.flatten().numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-4
    assert not torch.equal(method.student_bank, method.teacher_bank)


@pytest.mark.parametrize("classes", [[0] * 8 + [1] * 4 + [2] * 3, [2] * 8 + [0] * 7])
def test_too_many_negatives_are_bad_input(classes: list[int]) -> None:
    labels = np.array(classes)
    assert build(labels, negatives=7)
    with pytest.raises(zoo.BadInput, match=r"^negatives 8: only 7 of 15 .* set it to 7 or less$"):
        build(labels, negatives=8)


def test_without_storage() -> None:
    """The planner builds on the meta device, where labels can only be counted all together."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    nets = zoo.build_meta("resnet8"), zoo.build_meta("resnet8x4")
    with torch.device("meta"):
        train_set = methods.TrainSet(torch.zeros(50_000, dtype=torch.int64), 100)
        for count in (16_384, 49_500):
            method = methods.get("crd")(reference.settings("crd", {**PARAMS, "negatives": count}), *nets, train_set)
        with pytest.raises(zoo.BadInput, match="negatives 49501"):
            methods.get("crd")(reference.settings("crd", {**PARAMS, "negatives": 49_501}), *nets, train_set)
    assert all(value.is_meta for value in (*method.parameters(), *method.buffers()))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("teacher", "student", "count"),
    [
        ("resnet56", "resnet20", 16_640),
        ("resnet110", "resnet32", 16_640),
        ("resnet32x4", "resnet8x4", 65_792),
        ("wrn_40_2", "wrn_16_2", 33_024),
        ("wrn_40_2", "wrn_40_1", 24_832),
        ("vgg13", "vgg8", 131_328),
        ("vgg13", "mobilenetv2", 229_632),
        ("resnet50", "mobilenetv2", 426_240),
        ("resnet50", "vgg8", 327_936),
        ("resnet32x4", "shufflenetv1", 155_904),
        ("resnet32x4", "shufflenetv2", 164_096),
        ("wrn_40_2", "shufflenetv1", 139_520),
        ("resnet32x4", "mobilenetv2", 196_864),
    ],
)
def test_extra_parameters(teacher: str, student: str, count: int) -> None:
    """Counts of RepDistiller's and mdistiller's embeddings, measured there; banks are no parameters."""
    nets = zoo.build_meta(student), zoo.build_meta(teacher)
    settings = reference.settings("crd", {**PARAMS, "embedding": 128})
    method = methods.get("crd")(settings, *nets, methods.TrainSet(torch.as_tensor(LABELS), 3))
    assert zoo.count_parameters(method) == count
    assert method.student_embedding.in_features == nets[0].head.in_features
    assert method.teacher_embedding.in_features == nets[1].head.in_features
    # What a checkpoint holds: two banks, and little else.
    assert sum(value.numel() for value in method.state_dict().values()) == count + 2 * 15 * 128 + 4


@pytest.mark.parametrize("tau", [0.07, 0.002])
@pytest.mark.parametrize("size", [1, 4])
def test_a_sharp_temperature_is_finite_in_single_precision(size: int, tau: float) -> None:
    """At tau = 0.002 exp(1 / tau) is far beyond float32; the images all look alike to both networks."""
    method = build(temperature=tau).float()
    f_s, f_t = torch.ones(size, 3, requires_grad=True), torch.ones(size, 5)
    for _ in range(3):
        given = pooled(f_s, torch.zeros(size, 3)), pooled(f_t, torch.zeros(size, 3))
        terms = method.terms(*given, reference.batch_of(LABELS[:size]), reference.progress(1))
        sum(terms.values()).backward()
        assert all(torch.isfinite(term) for term in terms.values())
    assert torch.isfinite(f_s.grad).all()
    assert all(torch.isfinite(value.grad).all() for value in method.parameters())


def test_features_of_zero_have_finite_gradients() -> None:
    method = build()
    torch.nn.init.zeros_(method.student_embedding.bias)
    f_s = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    given = pooled(f_s, torch.zeros(2, 3)), pooled(torch.zeros(2, 5, dtype=torch.float64), torch.zeros(2, 3))
    terms = method.terms(*given, reference.batch_of(LABELS[:2]), reference.progress(1))
    sum(terms.values()).backward()
    assert torch.isfinite(f_s.grad).all() and torch.isfinite(method.student_bank).all()


def test_half_precision_features_are_scored_in_single() -> None:
    """Under autocast every product would be rounded to bfloat16's eight bits."""
    coarse = [torch.randn(4, d).bfloat16() for d in (3, 5)]
    found = []
    for dtype, enabled in ((torch.bfloat16, True), (torch.float32, False)):
        method = build().float()
        nets = [pooled(f.to(dtype), torch.zeros(4, 3)) for f in coarse]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found.append(method.terms(*nets, reference.batch_of(LABELS[:4]), reference.progress(1)))
    for key in ("crd_student", "crd_teacher"):
        assert found[0][key].dtype == torch.float32 and torch.equal(found[0][key], found[1][key])


def test_single_precision_is_close_to_double() -> None:
    """At the usual size: the published form sums log ratios near zero and loses three digits of the negatives."""
    labels = np.arange(5000) % 100
    changes = {"embedding": 128, "negatives": 1638, "temperature": 0.07}
    values = []
    for method in (build(labels, classes=100, **changes), build(labels, classes=100, **changes).float()):
        kind = method.student_bank.dtype
        rng = np.random.default_rng(0)
        nets = [pooled(torch.tensor(rng.standard_normal((8, d)), dtype=kind), torch.zeros(8, 100)) for d in (3, 5)]
        terms = [method.terms(*nets, reference.batch_of(labels[:8]), reference.progress(1)) for _ in range(3)][-1]
        values.append([terms[key].item() for key in ("crd_student", "crd_teacher")])
    np.testing.assert_allclose(values[1], values[0], rtol=2e-6)
