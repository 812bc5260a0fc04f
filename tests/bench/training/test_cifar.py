"""The files of CIFAR-10 and CIFAR-100 as people copy them: which one is wrong is said, and its archive is unpacked."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import tarfile
from functools import partial
from pathlib import Path

import pytest

from bench.datasets import ENTRIES
from bench.run import Data
from bench.training import cifar, data
from zoo.errors import BadInput


@pytest.fixture(params=["cifar100", "cifar10"])
def dataset(request) -> str:
    return request.param


@pytest.fixture
def layout(dataset, tmp_path, monkeypatch) -> cifar.Layout:
    """Small files that stand for the real ones, and their archive in tmp_path/disk/root."""
    real = cifar.LAYOUTS[dataset]
    inside = tmp_path / "made" / real.folder
    inside.mkdir(parents=True)
    files = {}
    for name, (_, size) in real.files.items():
        content = name.encode() * 1000
        (inside / name).write_bytes(content)
        files[name] = hashlib.md5(content).hexdigest(), None if size is None else len(content)
    root = tmp_path / "disk" / "root"
    root.mkdir(parents=True)
    with tarfile.open(root / real.archive, "w:gz") as archive:
        archive.add(inside, real.folder)
    md5 = hashlib.md5((root / real.archive).read_bytes()).hexdigest()
    made = dataclasses.replace(real, files=files, archive_md5=md5)
    monkeypatch.setitem(cifar.LAYOUTS, dataset, made)
    return made


@pytest.fixture
def small(layout, tmp_path) -> Path:
    """The folder with the archive."""
    return tmp_path / "disk" / "root"


@pytest.fixture
def prepare(dataset):
    return partial(data.prepare, Data(dataset=dataset, train_images=None, views="weak", strong=None))


@pytest.fixture
def refusal(prepare):
    def of(root: Path) -> str:
        with pytest.raises(BadInput) as caught:
            prepare(root)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return of


@pytest.mark.parametrize("given", ["", "folder", "archive"])
def test_the_archive_alone_is_unpacked(small, layout, prepare, given, capsys):
    given = getattr(layout, given) if given else ""
    prepare(small / given)
    assert "unpacked" in capsys.readouterr().out and cifar.make_whole(small, layout) is None
    assert sorted(os.listdir(small)) == sorted([layout.folder, layout.archive])
    prepare(small / given)
    assert not capsys.readouterr().out


def test_an_archive_inside_the_folder_mends_what_is_cut_short(small, layout, prepare):
    prepare(small)
    first = next(iter(layout.files))
    shutil.move(small / layout.archive, small / layout.folder / layout.archive)
    (small / layout.folder / first).write_bytes(first.encode())
    prepare(small)
    assert (small / layout.folder / first).read_bytes() == first.encode() * 1000


def test_which_file_is_wrong(small, layout, prepare, refusal):
    prepare(small)
    archive = (small / layout.archive).read_bytes()
    (small / layout.archive).unlink()
    folder = small / layout.folder
    one, *_, other, missing = layout.files
    (folder / missing).unlink()
    (folder / one).write_bytes(one.encode() * 999)
    (folder / other).write_bytes(other.encode() * 999 + other.upper().encode())
    line = refusal(small)
    if layout.files[one][1]:
        assert f"{layout.folder}/{one} has 4,995 bytes instead of 5,000: it is cut short" in line
        assert f"{layout.folder}/{other} has the right size and a wrong byte" in line
    else:
        assert all(f"{layout.folder}/{name} is cut short or damaged" in line for name in (one, other))
    assert f"{layout.folder}/{missing} is missing" in line
    (small / layout.archive).write_bytes(archive[:-5])
    assert "is cut short or damaged" in refusal(small) and "copy it again" in refusal(small)
    assert layout.folder in os.listdir(small)


def test_where_else_it_lies(small, layout, prepare, refusal):
    prepare(small)
    assert f"give --data {small}" in refusal(small.parent)
    assert "put them into a folder" in refusal((small / layout.folder).rename(small / "other"))
    assert f"there is no folder {layout.folder}/" in refusal(small / "nowhere")


def test_a_disk_that_cannot_be_read_now(small, prepare, refusal, monkeypatch):
    prepare(small)

    def fails(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "is_file", fails)
    assert "cannot be read now (Input/output error)" in refusal(small)


def test_where_nothing_can_be_written(small, refusal, monkeypatch):
    def fails(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", fails)
    line = refusal(small)
    assert "cannot be unpacked there (Read-only file system): tar xzf" in line and "--data DIR" in line


def test_sums_are_torchvisions():
    from torchvision.datasets import CIFAR10, CIFAR100

    for theirs, ours in ((CIFAR10, cifar.CIFAR10), (CIFAR100, cifar.CIFAR100)):
        sums = {name: md5 for name, (md5, _) in ours.files.items()}
        assert {**dict(theirs.train_list + theirs.test_list), theirs.meta["filename"]: theirs.meta["md5"]} == sums
        assert (theirs.base_folder, theirs.filename, theirs.tgz_md5) == (ours.folder, ours.archive, ours.archive_md5)
        entry = next(entry for entry in ENTRIES.values() if entry.label == ours.name)
        assert (entry.folder, entry.archive) == (ours.folder, ours.archive)
