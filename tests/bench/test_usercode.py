"""A person's own Python file: what counts as it, what it is called, and that what was read is what runs."""

from __future__ import annotations

import sys

import pytest

from bench import usercode
from zoo import BadInput


def write(folder, **files: str):
    """Files by their paths with __ for /, without .py; returns the path of main.py."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/') if not name.startswith('__') else name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "main.py"


MAIN = (
    "import near\nfrom parts.sums import add\n\n\ndef value():\n    from late import x\n    return add(near.one, x)\n"
)
NEAR, SUMS, LATE = "one = 1\n", "from . import same\n\n\ndef add(a, b):\n    return same.same(a + b)\n", "x = 2\n"
SAME = "def same(x):\n    return x\n"


def all_of_it(folder, main: str = MAIN, **changes: str):
    files = {"near": NEAR, "parts__sums": SUMS, "parts__same": SAME, "late": LATE, "unused": "1 / 0\n", **changes}
    return write(folder, main=main, **files)


def test_it_is_what_it_imports_from_its_folder(tmp_path):
    source = usercode.read(all_of_it(tmp_path / "a"), "method")
    assert set(source.files) == {"main.py", "near.py", "late.py", "parts/sums.py", "parts/same.py"}
    assert usercode.load(source, "method").value() == 3
    assert "near" not in sys.modules and "late" not in sys.modules


def test_its_name_is_its_content(tmp_path):
    digest = usercode.read(all_of_it(tmp_path / "a"), "method").digest
    commented = MAIN.replace("def value():", '# why\ndef value():\n    """What."""')
    assert usercode.read(all_of_it(tmp_path / "b", commented), "method").digest == digest
    elsewhere = all_of_it(tmp_path / "c").rename(tmp_path / "c" / "other.py")
    assert usercode.read(elsewhere, "method").digest == digest
    changed = {MAIN: {"main": MAIN.replace("near.one", "2 * near.one")}, NEAR: {"near": "one = 1.0\n"}}
    others = [all_of_it(tmp_path / f"d{number}", **change) for number, change in enumerate(changed.values())]
    others.append(all_of_it(tmp_path / "e", parts__same=SAME.replace("return x", "return -x")))
    others.append(all_of_it(tmp_path / "f", late="x = 3\n"))
    assert len({digest, *(usercode.read(other, "method").digest for other in others)}) == 5


def test_two_folders_may_call_their_files_alike(tmp_path):
    modules = []
    for number in (1, 2):
        path = write(tmp_path / str(number), main="from near import one\nimport near as n\n", near=f"one = {number}\n")
        modules.append(usercode.load(usercode.read(path, "method"), "method"))
    assert [module.one for module in modules] == [1, 2] == [module.n.one for module in modules]


def test_a_kept_copy_is_what_was_read(tmp_path):
    path, out = all_of_it(tmp_path / "a"), tmp_path / "out"
    source = usercode.read(path, "method")
    path.write_text("1 / 0\n")
    kept = usercode.keep(source, out)
    assert usercode.keep(source, out) == kept  # once
    again = usercode.kept(out, source.digest)
    assert (again.digest, again.entry, again.files) == (source.digest, "main", source.files)
    (kept / "near.py").write_text("one = 7\n")
    with pytest.raises(BadInput, match="was altered: give the grid"):
        usercode.kept(out, source.digest)
    usercode.keep(source, out)  # the altered one is set aside
    assert usercode.kept(out, source.digest).files == source.files
    with pytest.raises(BadInput, match="is missing"):
        usercode.kept(out, "0" * 64)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"main": "x = 1\ndef y(:\n"}, r"main.py:2: SyntaxError: invalid syntax; correct"),
        ({"main": "import near\n", "near": "(\n"}, r"near.py:1: SyntaxError"),
        ({"main": "x = 1\n\n1 / 0\n"}, "main.py:3: ZeroDivisionError"),
        ({"main": "import near\n", "near": "\nraise RuntimeError('no\\nway')\n"}, "near.py:2: RuntimeError: no;"),
        ({"main": "import sys\nsys.exit(1)\n"}, "it ends the program"),
        ({"main": "import no_such_package_at_all\n"}, "main.py:1: ModuleNotFoundError.*install what is missing"),
        ({"main": "from .. import x\n"}, "main.py:1: ImportError"),
        ({"near": "x = 1\n"}, "cannot read method file .*main.py"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(tmp_path, files, words):
    path = write(tmp_path, **files)
    with pytest.raises(BadInput, match=words) as fault:
        usercode.load(usercode.read(path, "method"), "method")
    assert "\n" not in str(fault.value)
    assert not [name for name in sys.modules if name.startswith("source_") and name.endswith(".main")
                and sys.modules[name].__file__ == str(path)]  # fmt: skip


def test_a_file_that_is_called_like_a_package(tmp_path):
    """No private name of the folder, and what to do about it."""
    for main in ("from torch.nn import Linear\n", "from torch import nn\n"):
        source = usercode.read(write(tmp_path, main=main, torch="one = 1\n"), "method")
        with pytest.raises(BadInput, match=r"torch of its folder is meant: .* another name") as refused:
            usercode.load(source, "method")
        assert "main.py:1" in str(refused.value) and "source_" not in str(refused.value)


def test_a_name_that_cannot_be_imported(tmp_path):
    (tmp_path / "my-loss.py").write_text("")
    with pytest.raises(BadInput, match="one that Python can import"):
        usercode.read(tmp_path / "my-loss.py", "method")


def test_other_packages_are_named(tmp_path):
    path = write(tmp_path, main="import torch.nn\nimport os, near\nfrom methods import Method\n", near="import numpy\n")
    assert usercode.read(path, "method").outside == {"torch", "numpy"}
