"""Folders of images: which files belong to which part and class, and one digest of all that is in them.

Two layouts. Of one's own: `train/<class>/...` and `test/<class>/...` (or `val/`, `valid/`, `validation/`), each class a
folder, however deep its images lie in it; classes are numbered in the order of their names, as torchvision's
ImageFolder does. Tiny-ImageNet's: `train/<wnid>/images/*`, and `val/images/*` with the classes in
`val/val_annotations.txt`, or `val/` sorted into class folders as many copies of it are: one digest for both.

The digest covers bytes, names, classes and parts. A file that is as it was when its bytes were last read (size, inode,
times of change) is not read again: the sums lie in the cache (`paths.cache`), those of files just written do not.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench import store
from bench.surroundings import paths
from zoo.errors import BadInput

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TEST_FOLDERS = ("test", "val", "valid", "validation")  # the first of them that has class folders
ANNOTATIONS = "val_annotations.txt"
# A file changed again within the clock's grain has the same times: sums of files as young as this are not kept.
YOUNG_S = 60.0
MANY = 5_000  # files to read from which on a person is told what takes so long
READERS = 8


@dataclass(frozen=True)
class File:
    """An image: its path from the root, its class, its name within the class, and the SHA-256 of its bytes."""

    path: str
    label: int
    name: str
    sha256: str


@dataclass(frozen=True)
class Tree:
    """The images of a folder in the order they are trained and tested in: by class, then by name."""

    root: Path
    classes: tuple[str, ...]
    train: tuple[File, ...]
    test: tuple[File, ...]

    @property
    def smallest(self) -> int:
        """Training images of the class with the fewest."""
        return min(Counter(file.label for file in self.train).values())

    @property
    def digest(self) -> str:
        """SHA-256 of the content, the same wherever and however the folder lies."""
        whole = hashlib.sha256(b"images 1\n")
        for part, files in (("train", self.train), ("test", self.test)):
            for file in files:
                line = f"{part}/{self.classes[file.label]}/{file.name}\0{file.sha256}\n"
                whole.update(line.encode("utf-8", "surrogateescape"))
        return whole.hexdigest()


def read(root: Path) -> Tree:
    """The tree in a folder of one's own. BadInput, in a line, for whatever would make the labels doubtful."""
    _check_folder(root)
    if (root / "val" / ANNOTATIONS).is_file():
        raise BadInput(f'"{root}" is laid out as Tiny-ImageNet: use "dataset: tiny-imagenet-200"')
    if not (root / "train").is_dir():
        raise BadInput(f'there is no folder train/ in "{root}"{_inner(root)}: --data is the folder that holds it')
    held_out = next((name for name in TEST_FOLDERS if _subfolders(root / name)), None)
    if held_out is None:
        raise BadInput(
            f'"{root}" has no test images: none of {", ".join(f"{name}/" for name in TEST_FOLDERS)} has class folders'
        )
    train, test = (_by_class(root, part) for part in ("train", held_out))
    _check_classes(root, train, test, held_out)
    return _finished(root, train, test)


def read_tiny_imagenet(root: Path, folder: str, archive: str) -> Tree:
    """The tree of Tiny-ImageNet in `root`/`folder`; its unlabelled test/ is left alone."""
    _check_folder(root)
    top = root / folder
    if not top.is_dir():
        zipped = (root / archive).is_file()
        remedy = f"unzip {root / archive} -d {root}" if zipped else f"--data is the folder that holds {folder}/"
        raise BadInput(f'there is no folder {folder}/ in "{root}"{_inner(root, folder)}: {remedy}')
    if not (top / "train").is_dir():
        raise BadInput(f'there is no folder train/ in "{top}": unpack the archive again')
    train = _by_class(top, "train")
    annotations = top / "val" / ANNOTATIONS
    test = _annotated(top, annotations) if (top / "val" / "images").is_dir() else _by_class(top, "val")
    _check_classes(top, train, test, "val")
    return _finished(top, _bare(train), _bare(test))


Found = dict[str, list[tuple[str, str]]]  # class -> (path from the root, name within the class)


def _by_class(root: Path, part: str) -> Found:
    stray = [name for name in _names(root / part) if _is_image(name) and (root / part / name).is_file()]
    if stray:
        raise BadInput(
            f'{len(stray)} image(s) of "{root / part}" lie in no class\'s folder, e.g. {stray[0]}: move or remove them'
        )
    found: Found = {}
    for name in _subfolders(root / part):
        folder = root / part / name
        inside = [path for path in _walk(folder) if _is_image(path.name)]
        found[name] = [(path.relative_to(root).as_posix(), path.relative_to(folder).as_posix()) for path in inside]
    return found


def _annotated(root: Path, annotations: Path) -> Found:
    """val/images with their classes from the text beside it."""
    try:
        rows = [line.split("\t") for line in annotations.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise BadInput(f'"{annotations}" cannot be read ({why}): the classes of val/images/ stand in it') from None
    short = next((number for number, row in enumerate(rows, 1) if len(row) < 2), None)
    if short:
        raise BadInput(f'"{annotations}" line {short}: expected a file and its class with a tab between')
    class_of = {row[0]: row[1] for row in rows}
    here = {name for name in _names(root / "val" / "images") if _is_image(name)}
    lacking, unlisted = class_of.keys() - here, here - class_of.keys()
    for odd, what in ((lacking, "is not in val/images/"), (unlisted, "has no class in it")):
        if odd:
            raise BadInput(f'"{annotations}": {min(odd)} {what} ({len(odd)} in all): unpack the archive again')
    found: Found = {}
    for name in sorted(here):
        found.setdefault(class_of[name], []).append((f"val/images/{name}", name))
    return found


def _bare(found: Found) -> Found:
    """The names without folders, which lie one deeper in some copies than in others."""
    return {name: [(path, os.path.basename(path)) for path, _ in files] for name, files in found.items()}


def _check_classes(root: Path, train: Found, test: Found, held_out: str) -> None:
    if len(train) < 2:
        raise BadInput(f'"{root / "train"}" has {len(train)} class folder(s): two classes are the least')
    for part, found in (("train", train), (held_out, test)):
        empty = sorted(name for name, files in found.items() if not files)
        if empty:
            raise BadInput(f'"{root / part / empty[0]}" holds no image ({_number(empty)}): fill or remove it')
    for names, there, missing in ((train, "train", held_out), (test, held_out, "train")):
        odd = sorted(names.keys() - (test if names is train else train).keys())
        if odd:
            raise BadInput(
                f'"{root}": class "{odd[0]}" is in {there}/ and not in {missing}/ ({_number(odd)}): both need the same'
            )


def _number(classes: list[str]) -> str:
    return f"{len(classes)} such class{'es' if len(classes) > 1 else ''}"


def _finished(root: Path, train: Found, test: Found) -> Tree:
    """In order, with a sum for each file."""
    classes = tuple(sorted(train))
    sums = _sums(root, [path for part in (train, test) for files in part.values() for path, _ in files])
    train_files, test_files = (
        tuple(
            File(path, label, file, sums[path])
            for label, name in enumerate(classes)
            for path, file in sorted(part[name], key=lambda found: found[1])
        )
        for part in (train, test)
    )
    return Tree(root, classes, train_files, test_files)


def _sums(root: Path, files: list[str]) -> dict[str, str]:
    """SHA-256 by path: from the cache where a file is as it was, else from its bytes."""
    kept_in = paths.cache("trees", hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16] + ".json")
    known = _kept(kept_in)
    stats: dict[str, list[int]] = {}
    for path in files:
        try:
            now = os.stat(root / path)
        except OSError as error:
            raise _unreadable(root / path, error) from None
        stats[path] = [now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino]
    begun = time.time()
    sums = {path: known[path][1] for path in files if path in known and known[path][0] == stats[path]}
    new = [path for path in files if path not in sums]
    if len(new) >= MANY:
        print(f'reading {len(new):,} images in "{root}" for their digest, once ...', file=sys.stderr, flush=True)
    with ThreadPoolExecutor(READERS) as readers:
        sums.update(zip(new, readers.map(lambda path: sha256(root / path), new), strict=True))
    if new or len(known) != len(sums):
        old = {path: [stats[path], sums[path]] for path in sums if max(stats[path][1:3]) / 1e9 < begun - YOUNG_S}
        try:
            kept_in.parent.mkdir(parents=True, exist_ok=True)
            store.write_atomically(kept_in, lambda temporary: temporary.write_text(json.dumps(old)))
        except OSError:
            pass  # the next plan reads the files again
    return sums


def _kept(path: Path) -> dict[str, list]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and all(isinstance(entry, list) and len(entry) == 2 for entry in found.values())
    return found if whole else {}


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; BadInput where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise _unreadable(path, error) from None
    return digest.hexdigest()


def _unreadable(path: Path, error: OSError) -> BadInput:
    return BadInput(f'"{path}" cannot be read ({error.strerror}): see to its permissions or its link, or remove it')


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise BadInput(f'there is no folder "{root}": check --data, or the variable that says where the images lie')


def _subfolders(folder: Path) -> list[str]:
    return [name for name in _names(folder) if not name.startswith(".") and (folder / name).is_dir()]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(folder, error) from None


def _walk(folder: Path) -> Iterator[Path]:
    """Files at any depth, through links but never round in a circle; hidden folders are left out."""
    seen: set[tuple[int, int]] = set()

    def fails(error: OSError) -> None:
        raise _unreadable(Path(error.filename), error)

    for place, inner, names in os.walk(folder, onerror=fails, followlinks=True):
        held = os.stat(place)
        if (held.st_dev, held.st_ino) in seen:
            inner.clear()
            continue
        seen.add((held.st_dev, held.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names))


def _inner(root: Path, wanted: str = "train") -> str:
    """Where the folder that is wanted lies instead, if one further in holds it."""
    found: Iterable[str] = (name for name in _subfolders(root) if (root / name / wanted).is_dir())
    inner = next(iter(found), None)
    return f" (there is one in {root / inner})" if inner else ""
