"""CIFAR-100's files as people copy them: which one is wrong is said, and its archive is unpacked."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from bench.run import Data
from bench.training import cifar, data
from zoo.errors import BadInput

REAL = Data(dataset="cifar100", train_images=None, views="weak", strong=None)


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A folder with an archive of three small files that stand for the real ones."""
    inside = tmp_path / "made" / cifar.FOLDER
    inside.mkdir(parents=True)
    files = {}
    for name in cifar.FILES:
        content = name.encode() * 1000
        (inside / name).write_bytes(content)
        files[name] = hashlib.md5(content).hexdigest(), len(content)
    root = tmp_path / "disk" / "root"
    root.mkdir(parents=True)
    with tarfile.open(root / cifar.ARCHIVE, "w:gz") as archive:
        archive.add(inside, cifar.FOLDER)
    monkeypatch.setattr(cifar, "FILES", files)
    monkeypatch.setattr(cifar, "ARCHIVE_MD5", hashlib.md5((root / cifar.ARCHIVE).read_bytes()).hexdigest())
    return root


def refusal(root: Path) -> str:
    with pytest.raises(BadInput) as caught:
        data.prepare(REAL, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("given", ["", cifar.FOLDER, cifar.ARCHIVE])
def test_the_archive_alone_is_unpacked(small, given, capsys):
    data.prepare(REAL, small / given)
    assert "unpacked" in capsys.readouterr().out and cifar.make_whole(small) is None
    assert sorted(os.listdir(small)) == [cifar.FOLDER, cifar.ARCHIVE]
    data.prepare(REAL, small / given)
    assert not capsys.readouterr().out


def test_an_archive_inside_the_folder_mends_what_is_cut_short(small):
    data.prepare(REAL, small)
    shutil.move(small / cifar.ARCHIVE, small / cifar.FOLDER / cifar.ARCHIVE)
    (small / cifar.FOLDER / "train").write_bytes(b"train")
    data.prepare(REAL, small)
    assert (small / cifar.FOLDER / "train").read_bytes() == b"train" * 1000


def test_which_file_is_wrong(small):
    data.prepare(REAL, small)
    archive = (small / cifar.ARCHIVE).read_bytes()
    (small / cifar.ARCHIVE).unlink()
    folder = small / cifar.FOLDER
    (folder / "meta").unlink()
    (folder / "train").write_bytes(b"train" * 999)
    (folder / "test").write_bytes(b"test" * 999 + b"tesT")
    line = refusal(small)
    assert f"{cifar.FOLDER}/train has 4,995 bytes instead of 5,000: it is cut short" in line
    assert f"{cifar.FOLDER}/test has the right size and a wrong byte" in line
    assert f"{cifar.FOLDER}/meta is missing" in line
    (small / cifar.ARCHIVE).write_bytes(archive[:-5])
    assert "is cut short or damaged" in refusal(small) and "copy it again" in refusal(small)
    assert cifar.FOLDER in os.listdir(small)


def test_where_else_it_lies(small):
    data.prepare(REAL, small)
    assert f"give --data {small}" in refusal(small.parent)
    assert "put them into a folder" in refusal((small / cifar.FOLDER).rename(small / "cifar100"))
    assert f"there is no folder {cifar.FOLDER}/" in refusal(small / "nowhere")


def test_a_disk_that_cannot_be_read_now(small, monkeypatch):
    data.prepare(REAL, small)

    def fails(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "is_file", fails)
    assert "cannot be read now (Input/output error)" in refusal(small)


def test_where_nothing_can_be_written(small, monkeypatch):
    def fails(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", fails)
    line = refusal(small)
    assert "cannot be unpacked there (Read-only file system): tar xzf" in line and "--data DIR" in line


def test_sums_are_torchvisions():
    from torchvision.datasets import CIFAR100

    assert dict(CIFAR100.train_list + CIFAR100.test_list) == {name: cifar.FILES[name][0] for name in ("train", "test")}
    assert (CIFAR100.meta["md5"], CIFAR100.tgz_md5) == (cifar.FILES["meta"][0], cifar.ARCHIVE_MD5)
    assert (CIFAR100.base_folder, CIFAR100.filename) == (cifar.FOLDER, cifar.ARCHIVE)
