"""ReviewKD against convolution, BatchNorm, attention and pooling written as loops."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import methods
import zoo
from bench import protocol
from bench.run import Teacher
from methods import reviewkd
from methods.reviewkd import hierarchical_context_loss
from tests.methods import reference
from tests.methods.reference import Array, close

torch.set_num_threads(1)
PARAMS = {"ce_weight": 1.5, "review_weight": 0.6, "warm_up_epochs": 20}
PAIRS = {  # teacher, student: trainable weights of mdistiller's modules, measured there
    ("resnet56", "resnet20"): 114_278,
    ("resnet110", "resnet32"): 114_278,
    ("resnet32x4", "resnet8x4"): 1_808_774,
    ("wrn_40_2", "wrn_16_2"): 453_830,
    ("wrn_40_2", "wrn_40_1"): 216_006,
    ("vgg13", "vgg8"): 9_847_560,
    ("vgg13", "vgg13"): 9_847_560,
    ("vgg13", "mobilenetv2"): 9_640_712,
    ("resnet50", "mobilenetv2"): 27_933_192,
    ("resnet50", "vgg8"): 28_140_040,
    ("resnet32x4", "shufflenetv1"): 4_607_366,
    ("resnet32x4", "shufflenetv2"): 4_195_718,
    ("wrn_40_2", "shufflenetv1"): 2_984_646,
}


# --- from the equations -----------------------------------------------------------------------------------------------


def convolution(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Stride 1, zeros around the map: x (B, C, H, W), weight (D, C, k, k) with k odd."""
    (batch, _, height, width), pad = x.shape, weight.shape[2] // 2
    framed = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    y = np.zeros((batch, len(weight), height, width))
    for d, c, u, v in np.ndindex(weight.shape):
        y[:, d] += weight[d, c, u, v] * framed[:, c, u : u + height, v : v + width]
    for d in range(len(weight)):
        y[:, d] += 0 if bias is None else bias[d]
    return y


def batch_norm(x: Array, gamma: Array, beta: Array) -> Array:
    """Each channel less its mean, over its standard deviation (biased, 1e-5 added), in training."""
    y = np.zeros_like(x)
    for c in range(x.shape[1]):
        mean = x[:, c].sum() / x[:, c].size
        variance = ((x[:, c] - mean) ** 2).sum() / x[:, c].size
        y[:, c] = gamma[c] * (x[:, c] - mean) / np.sqrt(variance + 1e-5) + beta[c]
    return y


def nearest(x: Array, height: int, width: int) -> Array:
    y = np.zeros((*x.shape[:2], height, width))
    for i, j in np.ndindex(height, width):
        y[:, :, i, j] = x[:, :, i * x.shape[2] // height, j * x.shape[3] // width]
    return y


def fuse(levels: list[Array], weights: dict[str, Array], sizes: list[tuple[int, int]]) -> list[Array]:
    """Levels 1 ... L and pooled (B, D, 1, 1), fused from the last to the first."""
    results, residual = {}, None
    for n in reversed(range(len(levels))):
        own = {name.removeprefix(f"fusions.{n}."): value for name, value in weights.items()}
        x = convolution(levels[n], own["reduce.0.weight"])
        x = batch_norm(x, own["reduce.1.weight"], own["reduce.1.bias"])
        if residual is not None:
            r = nearest(residual, *x.shape[2:])
            scores = convolution(np.concatenate([x, r], axis=1), own["attention.weight"], own["attention.bias"])
            attention = 1 / (1 + np.exp(-scores))
            for c in range(x.shape[1]):
                x[:, c] = attention[:, 0] * x[:, c] + attention[:, 1] * r[:, c]
        residual = nearest(x, *sizes[n])
        y = convolution(residual, own["expand.0.weight"])
        results[n] = batch_norm(y, own["expand.1.weight"], own["expand.1.bias"])
    return [results[n] for n in range(len(levels))]


def hcl(s: Array, t: Array) -> tuple[float, Array]:
    """HCL of one level, and its gradient in s; a cell of a pooled map spreads its slope evenly over what it covers."""
    batch, channels, height, width = s.shape
    sizes = [size for size in (4, 2, 1) if size < height]
    whole = sum(0.5**k for k in range(len(sizes) + 1))
    loss, gradient = ((s - t) ** 2).mean() / whole, 2 * (s - t) / s.size / whole
    for k, size in enumerate(sizes, start=1):
        cells = batch * channels * size**2
        for i, j in np.ndindex(size, size):
            rows = slice(i * height // size, -((i + 1) * height // -size))
            columns = slice(j * width // size, -((j + 1) * width // -size))
            covered = s[0, 0, rows, columns].size
            for b, c in np.ndindex(batch, channels):
                gap = (s[b, c, rows, columns].sum() - t[b, c, rows, columns].sum()) / covered
                loss += 0.5**k * gap**2 / cells / whole
                gradient[b, c, rows, columns] += 0.5**k * 2 * gap / cells / covered / whole
    return loss, gradient


# --- the context loss -------------------------------------------------------------------------------------------------


def oracle_maps(
    h: int, shift: float = 0.1, teacher_shift: float = 0.9, teacher_scale: float = 1.5
) -> tuple[Array, Array]:
    n = np.arange(2 * 3 * h * h, dtype=np.float64).reshape(2, 3, h, h)
    return np.sin(0.37 * n + shift), teacher_scale * np.sin(0.37 * n + teacher_shift)


@pytest.mark.parametrize(
    ("maps", "value"),
    [(oracle_maps(8), 0.3124500004), (oracle_maps(4), 0.4433979420), (oracle_maps(1, 0.2, 0.7, 1.0), 0.0808760859)],
)
def test_oracle_values_of_the_context_loss(maps: tuple[Array, Array], value: float) -> None:
    """Values of mdistiller's function; the last is of a map of one pixel, which it does not pool."""
    assert hcl(*maps)[0] == pytest.approx(value, abs=5.1e-11)
    assert hierarchical_context_loss(*(torch.from_numpy(a) for a in maps)).item() == pytest.approx(value, abs=5.1e-11)


SIZES = [(n, n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)] + [(6, 8), (8, 6), (3, 8), (8, 1), (1, 8)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", SIZES)
def test_context_loss_of_every_kind_of_size(size: tuple[int, int], layout: torch.memory_format) -> None:
    rng = np.random.default_rng(0)
    s, t = rng.standard_normal((2, 3, *size)), rng.standard_normal((2, 3, *size))
    student, teacher = (torch.from_numpy(a).contiguous(memory_format=layout) for a in (s, t))
    loss = hierarchical_context_loss(student.requires_grad_(), teacher)
    loss.backward()
    value, gradient = hcl(s, t)
    close(loss.item(), value)
    close(student.grad, gradient)


@pytest.mark.parametrize("size", [(5, 5), (6, 8)])
def test_reference_gradient_is_the_slope_of_the_reference(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    s, t = rng.standard_normal((2, 2, *size)), rng.standard_normal((2, 2, *size))
    close(hcl(s, t)[1], reference.numeric_gradient(lambda x: hcl(x, t)[0], s))


def test_a_shift_of_the_whole_map_is_its_square_at_every_scale() -> None:
    t = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    close(hierarchical_context_loss(t + 0.7, t), 0.49, 1e-12)


def test_equal_maps_cost_nothing_and_pull_nowhere() -> None:
    s = torch.randn(2, 3, 8, 8, requires_grad=True)
    loss = hierarchical_context_loss(s, s.detach())
    loss.backward()
    assert loss.item() == 0 and not s.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_context_loss_is_computed_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    rng = np.random.default_rng(0)
    s, t = (torch.from_numpy(100 * rng.standard_normal((8, 5, 8, 8))).to(dtype) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = hierarchical_context_loss(s.requires_grad_(), t)
    loss.backward()
    assert loss.dtype == torch.float32 and s.grad.dtype == dtype
    close(loss.item(), hcl(s.detach().double().numpy(), t.double().numpy())[0], 1e-5)


# --- the whole --------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """Small networks: shapes (channels, height, width) of their levels, and widths of their pooled features."""

    student: tuple[tuple[int, int, int], ...]
    teacher: tuple[tuple[int, int, int], ...]
    pooled: tuple[int, int]
    batch: int = 2


CASES = {
    "halving": Case(((2, 8, 8), (3, 4, 4), (4, 2, 2)), ((3, 8, 8), (2, 4, 4), (5, 2, 2)), (4, 5)),
    "two levels of a size": Case(((2, 4, 4), (3, 4, 4)), ((2, 4, 4), (3, 4, 4)), (3, 3)),
    "a teacher of other sizes": Case(((2, 4, 4), (3, 2, 2)), ((3, 6, 6), (2, 3, 3)), (3, 2)),
    "a teacher of smaller maps": Case(((2, 6, 6), (3, 4, 4)), ((3, 5, 5), (2, 2, 2)), (3, 2)),
    "sizes nothing divides": Case(((2, 7, 7), (3, 3, 3)), ((2, 7, 7), (3, 3, 3)), (3, 3)),
    "not square": Case(((2, 4, 6), (3, 2, 3)), ((3, 4, 6), (2, 2, 3)), (3, 2)),
    "one image": Case(((2, 4, 4), (3, 2, 2)), ((3, 4, 4), (2, 2, 2)), (3, 2), batch=1),
    "one level": Case(((2, 3, 3),), ((3, 3, 3),), (2, 3), batch=3),
}


def build(monkeypatch: pytest.MonkeyPatch, case: Case, rng: np.random.Generator) -> methods.Method:
    """The method in float64 with every parameter drawn by NumPy; some BatchNorm scales are negative."""
    shapes = {
        name: SimpleNamespace(features=((7, 9, 9), *levels), preact=levels, pooled=pooled)
        for name, levels, pooled in zip(("student", "teacher"), (case.student, case.teacher), case.pooled, strict=True)
    }
    monkeypatch.setattr(reviewkd, "shapes", shapes.__getitem__)
    train_set = methods.TrainSet(torch.arange(2), 4)
    method = methods.get("reviewkd")(reference.settings("reviewkd", PARAMS), "student", "teacher", train_set)
    for parameter in method.parameters():
        parameter.data = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)))
    return method.double().train()


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case, rng = CASES[name], np.random.default_rng(5)
    method = build(monkeypatch, case, rng)
    maps = [rng.standard_normal((case.batch, *shape)) for shape in case.student]
    maps.append(rng.standard_normal((case.batch, case.pooled[0], 1, 1)))
    targets = [rng.standard_normal((case.batch, *shape)) for shape in (*case.teacher, (case.pooled[1], 1, 1))]
    z_s, _, labels = reference.random_inputs(case.batch, 4)

    leaves = [torch.tensor(a, requires_grad=True) for a in maps]
    unused = torch.full((1,), torch.nan)  # the stem, the activated teacher and the last map must not enter
    logits = torch.tensor(z_s, requires_grad=True)
    student = replace(
        reference.outputs(logits, (unused, *leaves[:-1])), pooled=leaves[-1].flatten(1), preact=(unused,) * len(maps)
    )
    teacher = replace(
        reference.outputs(unused, (unused,) * (len(maps) + 1)),
        preact=tuple(torch.tensor(a) for a in targets[:-1]),
        pooled=torch.tensor(targets[-1]).flatten(1),
    )
    terms = method.terms(student, teacher, reference.batch_of(labels), reference.progress(5))
    assert list(terms) == ["ce", "review"]
    close(terms["ce"].item(), 1.5 * reference.cross_entropy(z_s, labels)[0])
    terms["review"].backward()
    assert logits.grad is None

    values = {key: value.detach().numpy().copy() for key, value in method.named_parameters()}
    sizes = [target.shape[2:] for target in targets]
    weight = 0.6 * 5 / 20

    def loss() -> float:
        results = fuse(maps, values, sizes)
        assert [result.shape for result in results] == [target.shape for target in targets]
        return weight * sum(hcl(s, t)[0] for s, t in zip(results, targets, strict=True))

    close(terms["review"].item(), loss())
    everything = [(f"map {n}", array, leaf.grad) for n, (array, leaf) in enumerate(zip(maps, leaves, strict=True))]
    everything += [(key, values[key], parameter.grad) for key, parameter in method.named_parameters()]
    scale = max(gradient.norm().item() for _, _, gradient in everything)
    for key, array, gradient in everything:  # along one random direction each, which no element is left out of
        start, direction = array.copy(), rng.standard_normal(array.shape)

        def along(step: Array, array: Array = array, start: Array = start, direction: Array = direction) -> float:
            array[...] = start + step[0] * direction
            return loss()

        (slope,) = reference.numeric_gradient(along, np.zeros(1), h=2e-3)
        array[...] = start
        assert (gradient.numpy() * direction).sum() == pytest.approx(slope, rel=1e-7, abs=1e-9 * scale), key


def test_channels_last_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case, rng = CASES["halving"], np.random.default_rng(2)
    method = build(monkeypatch, case, rng)
    arrays = [rng.standard_normal((2, *shape)) for shape in (*case.student, *case.teacher)]
    pooled = [torch.from_numpy(rng.standard_normal((2, width))) for width in case.pooled]
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        maps = [torch.from_numpy(a).contiguous(memory_format=layout) for a in arrays]
        leaves = [m.requires_grad_() for m in maps[:3]]
        student = replace(reference.outputs(torch.zeros(2, 4), (torch.empty(0), *leaves)), pooled=pooled[0])
        teacher = replace(reference.outputs(torch.zeros(2, 4)), preact=tuple(maps[3:]), pooled=pooled[1])
        terms = method.terms(student, teacher, reference.batch_of([0, 1]), reference.progress(5))
        gradients = torch.autograd.grad(terms["review"], [*leaves, *method.parameters()])
        found.append((terms["review"].detach(), *gradients))
    for plain, last in zip(*found, strict=True):
        np.testing.assert_allclose(last, plain, rtol=1e-9, atol=1e-13)


# --- on the zoo's networks --------------------------------------------------------------------------------------------


def on_meta(teacher: str, student: str, **params: float) -> tuple[methods.Method, zoo.Net, zoo.Net]:
    nets = zoo.build_meta(student), zoo.build_meta(teacher)
    with torch.device("meta"):
        settings = reference.settings("reviewkd", {**PARAMS, **params})
        return methods.get("reviewkd")(settings, *nets, methods.TrainSet(torch.arange(2), 100)), *nets


@pytest.mark.parametrize("pair", PAIRS)
def test_every_level_is_fused_into_the_shape_of_the_teachers(pair: tuple[str, str]) -> None:
    method, student, teacher = on_meta(*pair)
    assert all(parameter.is_meta and parameter.requires_grad for parameter in method.parameters())
    assert zoo.count_parameters(method) == PAIRS[pair]
    images = torch.empty(2, 3, 32, 32, device="meta")
    seen = teacher.outputs(images)
    fused = method.fuse(student.outputs(images))
    assert [f.shape for f in fused] == [t.shape for t in (*seen.preact, seen.pooled[:, :, None, None])]


def test_the_width_between_follows_the_student_up_to_512(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_meta("wrn_40_2", "wrn_40_1")[0].fusions[0].reduce[0].out_channels == 64
    assert on_meta("wrn_40_1", "wrn_40_2")[0].fusions[0].reduce[0].out_channels == 128
    wide = build(monkeypatch, Case(((2, 3, 3),), ((3, 3, 3),), (600, 700)), np.random.default_rng(0))
    assert wide.fusions[0].reduce[0].out_channels == 512


@pytest.mark.parametrize(
    ("teacher", "student", "channels", "shapes"),
    [
        ("vgg13", "resnet20", (16, 32, 64, 64), [(256, 8, 8), (512, 4, 4), (512, 4, 4), (512, 1, 1)]),
        ("resnet32x4", "mobilenetv2", (16, 48, 160, 1280), [(64, 32, 32), (128, 16, 16), (256, 8, 8), (256, 1, 1)]),
    ],
)
def test_of_unequal_numbers_of_levels_the_deepest_meet(
    teacher: str, student: str, channels: tuple[int, ...], shapes: list[tuple[int, int, int]]
) -> None:
    method, *nets = on_meta(teacher, student)
    assert tuple(fusion.reduce[0].in_channels for fusion in method.fusions) == channels
    with torch.device("meta"):
        seen_s, seen_t = (net.outputs(torch.empty(2, 3, 32, 32)) for net in nets)
        assert [f.shape[1:] for f in method.fuse(seen_s)] == shapes
        terms = method.terms(seen_s, seen_t, reference.batch_of([0, 1]), reference.progress(5))
    assert terms["review"].shape == ()


def test_initial_weights() -> None:
    """He et al.'s uniform distribution for gain 1 in the convolutions, PyTorch's own in the attention."""
    torch.manual_seed(0)
    nets = zoo.build_meta("resnet8x4"), zoo.build_meta("resnet32x4")
    settings = reference.settings("reviewkd", PARAMS)
    method = methods.get("reviewkd")(settings, *nets, methods.TrainSet(torch.arange(2), 100))
    assert [fusion.attention is not None for fusion in method.fusions] == [True, True, True, False]
    for fusion in method.fusions:
        for conv, bn in (fusion.reduce, fusion.expand):
            assert conv.bias is None and (bn.weight == 1).all() and (bn.bias == 0).all()
            bound = (3 / conv.weight[0].numel()) ** 0.5
            assert 0.99 * bound < conv.weight.abs().max() <= bound
            assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        if fusion.attention is not None:
            bound = fusion.attention.in_channels**-0.5
            assert 0.97 * bound < fusion.attention.weight.abs().max() <= bound
            assert fusion.attention.bias.abs().max() <= bound


def on_real(epoch: int, **params: float) -> dict[str, float]:
    torch.manual_seed(0)
    student, teacher = zoo.build("resnet8").double(), zoo.build("resnet8x4").double().eval()
    settings = reference.settings("reviewkd", {**PARAMS, **params})
    method = methods.get("reviewkd")(settings, student, teacher, methods.TrainSet(torch.arange(2), 100)).double()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        batch, progress = reference.batch_of([0, 1, 2]), reference.progress(epoch)
        terms = method.terms(student.outputs(images), teacher.outputs(images), batch, progress)
    return {key: float(term) for key, term in terms.items()}


def test_terms_are_linear_in_their_weights() -> None:
    plain, review, ce, none = (
        on_real(20, **p)
        for p in ({}, {"review_weight": 1.8}, {"ce_weight": 0.5}, {"review_weight": 0.0, "ce_weight": 0.0})
    )
    assert review == {"ce": plain["ce"], "review": pytest.approx(3 * plain["review"], rel=1e-12)}
    assert ce == {"ce": pytest.approx(plain["ce"] / 3, rel=1e-12), "review": plain["review"]}
    assert none == {"ce": 0, "review": 0}


@pytest.mark.parametrize(("epoch", "warm_up", "factor"), [(1, 20, 0.05), (7, 20, 0.35), (40, 20, 1), (3, 4, 0.75)])
def test_the_warm_up_counts_from_one_and_leaves_the_cross_entropy(epoch: int, warm_up: int, factor: float) -> None:
    early, late = on_real(epoch, warm_up_epochs=warm_up), on_real(250)
    assert early["ce"] == late["ce"]
    close(early["review"], factor * late["review"], 1e-12)


@pytest.mark.parametrize(
    ("pair", "weight"),
    [("resnet56-resnet20", 0.6), ("resnet110-resnet32", 1.0), ("resnet32x4-resnet8x4", 5.0), ("vgg13-vgg8", 5.0)],
)
def test_the_weight_of_the_standard_protocol_follows_the_pair(pair: str, weight: float) -> None:
    teacher, student = pair.split("-")
    trained = Teacher(arch=teacher, run_id=f"vanilla-{teacher}-s0-00000000")
    run = protocol.resolve(protocol.load("standard"), "reviewkd", student, 0, teacher=trained)
    params = methods.check(methods.get("reviewkd").Params, run.params, "test")
    assert (params.ce_weight, params.review_weight, params.warm_up_epochs) == (1.0, weight, 20)


def test_a_last_batch_of_one_leaves_the_running_statistics_of_single_values() -> None:
    """BatchNorm cannot divide by n - 1 = 0; the map of one pixel of one image is its own mean."""
    torch.manual_seed(0)
    student, teacher = zoo.build("resnet8"), zoo.build("resnet20").eval()
    method = methods.get("reviewkd")(
        reference.settings("reviewkd", PARAMS), student, teacher, methods.TrainSet(torch.arange(2), 100)
    )
    before = copy.deepcopy(method.state_dict())
    images = torch.randn(1, 3, 32, 32)
    terms = method.terms(
        student.outputs(images), teacher.outputs(images), reference.batch_of([0]), reference.progress(20)
    )
    sum(terms.values()).backward()
    for key, value in method.state_dict().items():
        assert torch.isfinite(value).all(), key
        if "running" in key:
            assert torch.equal(value, before[key]) == key.startswith("fusions.3."), key
    gradients = {key: parameter.grad for key, parameter in method.named_parameters()}
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients.values())
    assert not gradients["fusions.3.reduce.1.weight"].any() and gradients["fusions.3.reduce.1.bias"].any()
