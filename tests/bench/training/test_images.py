"""Images of a folder: decoded as one would expect, refused before anything trains, and trained on like any others."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import methods
import zoo
from bench import datasets as catalogue
from bench import grid as grids
from bench import protocol as protocols
from bench import trees
from bench.run import Data, Teacher
from bench.surroundings import paths
from bench.training import data as datasets
from bench.training import images
from tests import tiny
from tests.bench import trees as made
from zoo.errors import BadInput

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory, cache) -> Path:
    return made.folder(tmp_path_factory.mktemp("images") / "set", classes=3, train=8, test=2)


def settings(side: int | None = 32, dataset: str = "image-folder", **changes) -> Data:
    given = {"train_images": None, "views": "weak", "strong": None, **changes}
    return Data(dataset=dataset, side=side, **given)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey16() -> bytes:
    """A PNG of 16-bit grey, 32x32, whose high bytes are the column's number."""
    rows = b"".join(b"\0" + b"".join(struct.pack(">BB", x, 7) for x in range(32)) for _ in range(32))
    parts = ((b"IHDR", struct.pack(">IIBBBBB", 32, 32, 16, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_an_image_of_the_right_size_keeps_its_pixels():
    pixels = made.pixels(0, 32, 32)
    assert (images.decode(saved(Image.fromarray(pixels)), 32) == pixels.transpose(2, 0, 1)).all()


@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 41), (20, 24)])
def test_others_are_cut_to_a_centred_square_and_resized(height, width):
    """The reference is torch's bilinear interpolation with antialiasing, which rounds otherwise than Pillow."""
    pixels, side = made.pixels(1, height, width), min(height, width)
    top, left = round((height - side) / 2), round((width - side) / 2)
    square = torch.from_numpy(pixels[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None].double()
    reference = torch.nn.functional.interpolate(square, (32, 32), mode="bilinear", antialias=True)[0].numpy()
    assert abs(images.decode(saved(Image.fromarray(pixels)), 32) - reference).max() <= 1


def test_kinds_of_pixels():
    rgb = Image.fromarray(made.pixels(2, 32, 32))
    grey, palette, cmyk = rgb.convert("L"), rgb.convert("P"), rgb.convert("CMYK")
    alpha = rgb.copy()
    alpha.putalpha(7)
    expected = {
        "grey": (saved(grey), np.asarray(grey)[None].repeat(3, 0)),
        "palette": (saved(palette), np.asarray(palette.convert("RGB")).transpose(2, 0, 1)),
        "transparent palette": (saved(palette, transparency=b"\0" * 256), None),
        "cmyk": (saved(cmyk, "TIFF"), np.asarray(rgb).transpose(2, 0, 1)),
        "alpha": (saved(alpha), np.asarray(rgb).transpose(2, 0, 1)),
        "bilevel": (saved(grey.convert("1")), np.asarray(grey.convert("1").convert("L"))[None].repeat(3, 0)),
        "16 bits": (grey16(), np.broadcast_to(np.arange(32, dtype=np.uint8), (3, 32, 32))),
    }
    for name, (raw, pixels) in expected.items():
        found = images.decode(raw, 32)
        assert found.shape == (3, 32, 32) and found.dtype == np.uint8, name
        assert pixels is None or (found == pixels).all(), name


def test_an_image_is_turned_as_its_exif_says():
    image = Image.fromarray(made.pixels(3, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    turned = images.decode(saved(image, exif=exif), 32)
    assert (turned == np.rot90(np.asarray(image), -1).transpose(2, 0, 1)).all()


def test_loaded_once_and_from_the_cache_afterwards(root, monkeypatch):
    data = catalogue.identified(settings(), root)
    first = datasets.load(data, root, CPU)
    assert first.train_images.shape == (24, 3, 32, 32) and first.train_images.dtype == torch.uint8
    assert torch.bincount(first.train_labels).tolist() == [8, 8, 8] and first.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    one = images.decode((root / "train" / "b" / "3.png").read_bytes(), 32)
    assert (first.train_images[11].numpy() == one).all()
    pixels = first.train_images.double() / 255
    assert torch.allclose(pixels.mean((0, 2, 3)), first.mean.double().flatten(), atol=1e-4)
    assert torch.allclose(pixels.std((0, 2, 3), correction=0), first.std.double().flatten(), atol=1e-4)
    monkeypatch.setattr(images, "decode", None)
    again = datasets.load(data, None, CPU)  # without the folder even
    assert torch.equal(again.train_images, first.train_images) and torch.equal(again.mean, first.mean)
    own = datasets.load(data.model_copy(update={"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}), None, CPU)
    assert own.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3]) and own.std.flatten().tolist() == [1, 2, 3]


def test_a_damaged_cache_is_made_again(root):
    data = catalogue.identified(settings(48), root)
    first = datasets.load(data, root, CPU)
    kept = next(path for path in paths.cache("images").iterdir() if "-48-" in path.name)
    for name, content in (("train.npy", b"short"), (images.FACTS, b"{"), (images.FACTS, b"{}")):
        (kept / name).write_bytes(content)
        assert torch.equal(datasets.load(data, root, CPU).train_images, first.train_images)
    (kept / "test.npy").unlink()
    assert torch.equal(datasets.load(data, root, CPU).test_images, first.test_images)


def test_another_folder_than_the_plans_is_refused(root, tmp_path):
    data = catalogue.identified(settings(64), root)
    copy = shutil.copytree(root, tmp_path / "copy")
    (copy / "test" / "a" / "0.png").write_bytes((copy / "test" / "a" / "1.png").read_bytes())
    with pytest.raises(BadInput, match="not the folder that the plan was made for"):
        datasets.load(data, copy, CPU)


def test_a_file_that_changes_while_it_is_decoded_is_seen(root, tmp_path, monkeypatch):
    copy = shutil.copytree(root, tmp_path / "copy")
    (copy / "test" / "a" / "0.png").unlink()
    tree = trees.read(copy)
    data = catalogue.identified(settings(), copy)
    (copy / "train" / "a" / "0.png").write_bytes((copy / "train" / "a" / "1.png").read_bytes())
    monkeypatch.setattr(images, "tree_of", lambda *_: tree)
    with pytest.raises(BadInput, match=r'train/a/0.png" has just changed'):
        datasets.prepare(data, copy)


def test_broken_images_are_named_before_anything_trains(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    whole = saved(Image.fromarray(made.pixels(4, 64, 64)), "JPEG")
    for place, (content, says) in enumerate(
        (
            (b"", "no image of a kind"),
            (b"text, not an image", "no image of a kind"),
            (whole[: len(whole) // 2], "truncated"),
            ((root / "train" / "a" / "0.png").read_bytes()[:200], "not a whole image"),
            (saved(Image.fromarray(np.zeros((32, 32), np.float32)), "TIFF"), "floating-point"),
        )
    ):
        (copy / "train" / "a" / "3.png").write_bytes(content)
        with pytest.raises(BadInput, match=says) as caught:
            datasets.prepare(catalogue.identified(settings(), copy), copy)
        assert "\n" not in str(caught.value) and "train/a/3.png" in str(caught.value), place
        assert "repair or remove it" in str(caught.value)
    (copy / "test" / "b" / "1.png").write_bytes(b"")
    with pytest.raises(BadInput, match="2 such files"):
        datasets.prepare(catalogue.identified(settings(), copy), copy)
    assert not [path for path in paths.cache("images").iterdir() if path.name.startswith(".")]


def test_a_cache_without_room_is_said(root, monkeypatch, tmp_path):
    data = catalogue.identified(settings(80), root)
    monkeypatch.setattr(images.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(BadInput, match=r"0.0 GB are free there.*KD_BENCH_CACHE"):
        datasets.prepare(data, root)


def test_what_does_not_fit_is_said_before_it_is_decoded(root, monkeypatch):
    data = catalogue.identified(settings(), root)
    needed = 3 * 32 * 32 * (24 * 3 + 6)
    monkeypatch.setattr(datasets, "_free_bytes", lambda _: needed / datasets.ROOM)
    datasets.prepare(data, root, CPU)
    with pytest.raises(BadInput, match=r"image-folder at 32x32 does not fit: .* GB, cpu has .* GB free"):
        datasets.prepare(data.model_copy(update={"views": "paired"}), root, CPU)


def test_validation_and_subsets_of_uneven_classes(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    (copy / "train" / "a" / "0.png").unlink()
    whole = catalogue.identified(settings(), copy)
    data = whole.model_copy(update={"validation": 9, "train_images": 12})
    catalogue.check_sizes(data)
    split = datasets.load(data, copy, CPU)
    assert torch.bincount(split.val_labels).tolist() == [3, 3, 3]
    assert torch.bincount(split.train_labels).tolist() == [4, 4, 4] and catalogue.train_size(data) == 12
    rest = datasets.load(whole.model_copy(update={"validation": 9}), copy, CPU)
    assert torch.bincount(rest.train_labels).tolist() == [4, 5, 5]
    for changes, says in (({"validation": 10}, "multiple of 3 up to 9"), ({"validation": 12}, "up to 9")):
        with pytest.raises(BadInput, match=says):
            catalogue.check_sizes(whole.model_copy(update=changes))
    with pytest.raises(BadInput, match=r"train_images: 15 .* multiple of 3 up to 12"):
        catalogue.check_sizes(whole.model_copy(update={"validation": 9, "train_images": 15}))


FOLDER_PROTOCOL = tiny.PROTOCOL.replace(
    "{dataset: embedded-1, train_images: 100}", "{dataset: image-folder, side: SIDE}"
).replace("{negatives: 50}", "{negatives: 16}")


def expanded(tmp_path: Path, root: Path, side: int = 32, grid: str = tiny.GRID) -> grids.Grid:
    path = tiny.write(tmp_path, grid, FOLDER_PROTOCOL.replace("SIDE", str(side)))
    return grids.expand(grids.load(str(path)), data=root)


def test_a_runs_identity_is_the_content_and_the_size(root, tmp_path):
    ids = set(expanded(tmp_path / "1", root).runs)
    copy = shutil.copytree(root, tmp_path / "copy")
    assert set(expanded(tmp_path / "2", copy).runs) == ids
    assert not ids & set(expanded(tmp_path / "3", root, side=64).runs)
    (copy / "test" / "a" / "0.png").write_bytes((copy / "test" / "a" / "1.png").read_bytes())
    assert not ids & set(expanded(tmp_path / "4", copy).runs)


@pytest.mark.parametrize("change", ["data: {side: 64}", "data: {dataset: cifar10}", "data: {mean: null}"])
def test_a_method_has_the_data_of_its_protocol(root, tmp_path, change):
    path = tiny.write(tmp_path, tiny.GRID, FOLDER_PROTOCOL.replace("SIDE", "32") + f"  kd: {{{change}}}\n")
    with pytest.raises(BadInput, match="is one for all methods"):
        grids.expand(grids.load(str(path)), data=root)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("dataset: image-folder", r'"side: 64"'),
        ("dataset: image-folder, side: 40", "side"),
        ("dataset: cifar10, side: 64", "side: images of cifar10 are 32x32"),
        ("dataset: cifar10, mean: [0.5, 0.5, 0.5]", "mean and std go together"),
        ("dataset: cifar10, mean: [0, 0, 0], std: [1, 0, 1]", "std must be above 0"),
        ("dataset: cifar11", "data.dataset"),
    ],
)
def test_bad_data_get_one_line(root, tmp_path, written, says):
    path = tiny.write(tmp_path, tiny.GRID, tiny.PROTOCOL.replace("dataset: embedded-1, train_images: 100", written))
    with pytest.raises(BadInput, match=says) as caught:
        grids.expand(grids.load(str(path)), data=root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("name", methods.names())
def test_every_method_trains_on_a_folder(root, tmp_path, name, side):
    text = FOLDER_PROTOCOL.replace("SIDE", str(side)).replace("epochs: 2, milestones: [1]", "epochs: 1, milestones: []")
    tiny.write(tmp_path, protocol_text=text)
    recipe = protocols.load(str(tmp_path / "tiny.yaml"))
    recipe = recipe.model_copy(update={"data": catalogue.identified(recipe.data, root)})
    teacher = Teacher(arch="wrn_16_1", run_id="t") if methods.get(name).uses_teacher else None
    run = protocols.resolve(recipe, name, "resnet8", 0, teacher=teacher)
    net = zoo.build("wrn_16_1", 3, side) if teacher else None
    student, state = tiny.train(run, datasets.load(run.data, root, CPU), net, tmp_path / "last.pt")
    assert student.head.out_features == 3 and student.side == side
    assert np.isfinite(state.curve[0]["train_loss"]) and state.curve[0]["top5"] == 100


def test_tiny_imagenet_is_loaded_with_its_own_statistics(cache, tmp_path, monkeypatch):
    entry = catalogue.ENTRIES["tiny-imagenet-200"]
    known = catalogue.Known(classes=2, side=64, train=8, test=6)
    monkeypatch.setitem(catalogue.ENTRIES, "tiny-imagenet-200", replace(entry, known=known))
    root = made.tiny_imagenet(tmp_path)
    data = catalogue.identified(settings(None, "tiny-imagenet-200"), root)
    datasets.prepare(data, root)
    loaded = datasets.load(data, root, CPU)
    assert loaded.train_images.shape == (8, 3, 64, 64) and loaded.test_labels.tolist() == [0, 0, 0, 1, 1, 1]
    first = np.asarray(Image.open(root / "tiny-imagenet-200" / "train" / "n01" / "images" / "n01_0.JPEG"))
    assert (loaded.train_images[0].numpy() == first.transpose(2, 0, 1)).all()
    assert loaded.mean.flatten().tolist() == pytest.approx(entry.mean)
    small = catalogue.identified(settings(32, "tiny-imagenet-200"), root)
    assert datasets.load(small, root, CPU).train_images.shape == (8, 3, 32, 32)


def test_cifar10s_pickles(tmp_path, monkeypatch):
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    folder, rows = tmp_path / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir()

    def write(name: str, labels: list[int] | None) -> tuple[str, str]:
        held = {"label_names": list("abcdefghij")}
        if labels is not None:
            held = {"data": rows.integers(0, 256, (len(labels), 3072), dtype=np.uint8), "labels": labels}
        content = pickle.dumps(held, protocol=2)
        (folder / name).write_bytes(content)
        return name, hashlib.md5(content).hexdigest()

    train = [write(f"data_batch_{number}", [number, 9 - number]) for number in range(1, 6)]
    test = [write("test_batch", [3])]
    meta = dict(zip(("filename", "md5"), write("batches.meta", None), strict=True))
    monkeypatch.setattr(CIFAR10, "train_list", [list(pair) for pair in train])
    monkeypatch.setattr(CIFAR10, "test_list", [list(pair) for pair in test])
    monkeypatch.setattr(CIFAR10, "meta", {**meta, "key": "label_names"})
    loaded = datasets.load(settings(None, "cifar10"), tmp_path, CPU)
    assert loaded.train_labels.tolist() == [1, 8, 2, 7, 3, 6, 4, 5, 5, 4] and loaded.test_labels.tolist() == [3]
    third = pickle.loads((folder / "data_batch_2").read_bytes())["data"][0].reshape(3, 32, 32)  # R, G, B planes by row
    assert (loaded.train_images[2].numpy() == third).all()
    assert loaded.std.flatten().tolist() == pytest.approx((0.2470, 0.2435, 0.2616))
