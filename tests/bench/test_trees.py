"""Folders of images: what is found, what is refused, and a digest of the content alone."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bench import datasets, trees
from bench.run import Data
from tests.bench import trees as made
from zoo.errors import BadInput

FOLDER = Data(dataset="image-folder", train_images=None, views="weak", strong=None, side=32)
TINY = Data(dataset="tiny-imagenet-200", train_images=None, views="weak", strong=None)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trees, "YOUNG_S", -1.0)  # what a test has just written counts as old


def refused(root: Path) -> str:
    with pytest.raises(BadInput) as caught:
        datasets.identified(FOLDER, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_of_ones_own(tmp_path):
    root = made.folder(tmp_path / "set", classes=3, train=8, test=2)
    (root / "train" / "a" / "deep").mkdir()
    shutil.move(root / "train" / "a" / "7.png", root / "train" / "a" / "deep" / "7.PNG")
    for name in (".DS_Store", "notes.txt", "._0.png"):
        (root / "train" / "a" / name).write_bytes(b"no image")
    tree = trees.read(root)
    assert tree.classes == ("a", "b", "c") and (len(tree.train), len(tree.test), tree.smallest) == (24, 6, 8)
    assert [file.path for file in tree.train[:2]] == ["train/a/0.png", "train/a/1.png"]
    assert tree.train[7].path == "train/a/deep/7.PNG" and [file.label for file in tree.test] == [0, 0, 1, 1, 2, 2]
    known = datasets.facts(datasets.identified(FOLDER, root))
    assert (known.classes, known.side, known.train, known.test) == (3, 32, 24, 6)


@pytest.mark.parametrize("held_out", ["val", "valid", "validation"])
def test_other_names_of_the_test_images(tmp_path, held_out):
    root = made.folder(tmp_path / "set", held_out=held_out)
    (root / "test").mkdir()
    (root / "test" / "unlabelled.png").write_bytes(b"as ImageNet has it")
    assert trees.read(root).test[0].path == f"{held_out}/a/0.png"


def test_the_digest_is_of_the_content_alone(tmp_path):
    root = made.folder(tmp_path / "set")
    first = trees.read(root).digest
    copy = shutil.copytree(root, tmp_path / "elsewhere" / "copy")
    for path in copy.rglob("*.png"):
        os.utime(path, (1, 1))
    assert trees.read(copy).digest == first
    (copy / "test").rename(copy / "val")
    assert trees.read(copy).digest == first
    seen = {first}
    for change in (
        lambda: (copy / "train" / "a" / "0.png").write_bytes((copy / "train" / "a" / "1.png").read_bytes()),
        lambda: (copy / "train" / "a" / "2.png").rename(copy / "train" / "a" / "9.png"),
        lambda: (copy / "train" / "b" / "0.png").rename(copy / "train" / "a" / "90.png"),
        lambda: (copy / "val" / "b" / "0.png").unlink(),
    ):
        change()
        assert trees.read(copy).digest not in seen
        seen.add(trees.read(copy).digest)


def test_a_changed_file_is_read_again_and_no_other(tmp_path, monkeypatch):
    root = made.folder(tmp_path / "set")
    read: list[str] = []
    real = trees.sha256
    monkeypatch.setattr(trees, "sha256", lambda path: read.append(path.name) or real(path))
    first = trees.read(root).digest
    assert len(read) == 30
    assert trees.read(root).digest == first and len(read) == 30
    file = root / "train" / "b" / "3.png"
    before, content = file.stat(), file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # the time of change cannot be set back
    assert trees.read(root).digest != first and read[30:] == ["3.png"]


def test_sums_of_files_just_written_are_not_kept(tmp_path, monkeypatch):
    """A second change within the clock's grain leaves the times as they are."""
    monkeypatch.setattr(trees, "YOUNG_S", 60.0)
    root = made.folder(tmp_path / "set")
    trees.read(root)
    assert trees._kept(next((tmp_path / "cache" / "trees").iterdir())) == {}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"train/a/0.png": 3}', b"\xff"])
def test_a_damaged_cache_is_made_again(tmp_path, content):
    root = made.folder(tmp_path / "set")
    first = trees.read(root).digest
    kept = next((tmp_path / "cache" / "trees").iterdir())
    kept.write_bytes(content)
    assert trees.read(root).digest == first and len(trees._kept(kept)) == 30


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KD_BENCH_CACHE", str(tmp_path / "file" / "below"))
    root = made.folder(tmp_path / "set")
    assert trees.read(root).digest == trees.read(root).digest


def test_a_link_in_a_circle_ends(tmp_path):
    root = made.folder(tmp_path / "set")
    (root / "train" / "a" / "again").symlink_to(root / "train" / "a")
    assert len(trees.read(root).train) == 24


def test_what_makes_labels_doubtful_is_refused(tmp_path):
    def fresh() -> Path:
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        return made.folder(tmp_path / "set")

    root = fresh()
    assert "there is no folder" in refused(tmp_path / "nowhere")
    assert f"(there is one in {root})" in refused(tmp_path)
    shutil.rmtree(root / "test")
    assert "has no test images" in refused(root)
    root = fresh()
    (root / "train" / "empty").mkdir()
    assert 'train/empty" holds no image (1 such class)' in refused(root)
    root = fresh()
    (root / "train" / "c").rename(root / "train" / "d")
    assert 'class "d" is in train/ and not in test/' in refused(root)
    root = fresh()
    shutil.copytree(root / "test" / "c", root / "test" / "d")
    assert 'class "d" is in test/ and not in train/' in refused(root)
    root = fresh()
    shutil.copy(root / "test" / "c" / "0.png", root / "train" / "stray.png")
    assert "1 image(s)" in refused(root) and "stray.png" in refused(root)
    root = fresh()
    (root / "train" / "a" / "gone.png").symlink_to(root / "nowhere.png")
    assert 'gone.png" cannot be read (No such file or directory)' in refused(root)
    root = fresh()
    for part in ("train", "test"):
        for name in "bc":
            shutil.rmtree(root / part / name)
    assert "two classes are the least" in refused(root)
    with pytest.raises(BadInput, match='"side: 64"'):
        datasets.identified(FOLDER.model_copy(update={"side": None}), root)


def test_a_file_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    root = made.folder(tmp_path / "set")

    def fails(path: object, *_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(trees, "open", fails, raising=False)
    assert '0.png" cannot be read (Permission denied)' in refused(root)


@pytest.fixture
def small_tiny(monkeypatch) -> None:
    known = datasets.Known(classes=2, side=64, train=8, test=6)
    entry = datasets.ENTRIES["tiny-imagenet-200"]
    monkeypatch.setitem(datasets.ENTRIES, "tiny-imagenet-200", replace(entry, known=known))


@pytest.mark.usefixtures("small_tiny")
def test_tiny_imagenet_as_its_archive_unpacks(tmp_path):
    root = made.tiny_imagenet(tmp_path / "data")
    tree = datasets.tree_of(TINY, root)
    assert tree.classes == ("n01", "n02")  # sorted, whatever wnids.txt says
    assert [file.name for file in tree.train] == [f"n0{k}_{i}.JPEG" for k in (1, 2) for i in range(4)]
    assert [(file.name, file.label) for file in tree.test] == [
        (f"val_{i}.JPEG", label) for label, own in ((0, (1, 3, 5)), (1, (0, 2, 4))) for i in own
    ]
    assert datasets.facts(datasets.identified(TINY, root)).side == 64
    assert datasets.facts(datasets.identified(TINY.model_copy(update={"side": 32}), root)).side == 32


@pytest.mark.usefixtures("small_tiny")
def test_val_sorted_into_class_folders_is_the_same_data(tmp_path):
    root = made.tiny_imagenet(tmp_path / "data")
    tree, val = datasets.tree_of(TINY, root), root / "tiny-imagenet-200" / "val"
    for file in tree.test:
        place = val / tree.classes[file.label] / "images"
        place.mkdir(parents=True, exist_ok=True)
        (val / "images" / file.name).rename(place / file.name)
    (val / "images").rmdir()
    assert datasets.tree_of(TINY, root).digest == tree.digest


@pytest.mark.usefixtures("small_tiny")
def test_what_is_not_the_whole_of_tiny_imagenet(tmp_path):
    root = made.tiny_imagenet(tmp_path / "data")
    top = root / "tiny-imagenet-200"

    def line(given: Path = root) -> str:
        with pytest.raises(BadInput) as caught:
            datasets.tree_of(TINY, given)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (root / "tiny-imagenet-200.zip").write_bytes(b"")
    top.rename(root / "other")
    assert f"unzip {root}/tiny-imagenet-200.zip -d {root}" in line()
    (root / "other").rename(top)
    assert f"(there is one in {root})" in line(tmp_path)
    assert "laid out as Tiny-ImageNet" in refused(top)
    annotations = top / "val" / "val_annotations.txt"
    rows = annotations.read_text()
    annotations.write_text(rows.replace("val_0.JPEG\t", "val_9.JPEG\t"))
    assert "val_9.JPEG is not in val/images/" in line()
    annotations.write_text(rows.split("\n", 1)[1])
    assert "val_0.JPEG has no class in it" in line()
    annotations.write_text(rows.replace("\t", " "))
    assert "line 1: expected a file and its class" in line()
    annotations.write_text(rows.replace("n01", "n03"))
    assert 'class "n01" is in train/ and not in val/' in line()
    annotations.unlink()
    assert "cannot be read (No such file or directory)" in line()
    annotations.write_text(rows)
    (top / "train" / "n01" / "images" / "n01_3.JPEG").unlink()
    assert "it holds 7 and 6 images of 2 classes instead of 8 and 6 images of 2 classes" in line()
