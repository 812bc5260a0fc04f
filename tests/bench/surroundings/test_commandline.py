"""Output that is lost costs itself, and an error says what to do about it."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from bench.surroundings import commandline

ROOT = Path(__file__).parents[3]
WORK = (
    "import sys\nfrom bench.surroundings.commandline import lasting_output\n"
    "with lasting_output() as output:\n"
    "    for number in range(3): print('line', number, flush=True)\n"
    "    print('x' * 100_000)\n"
    "open(sys.argv[1], 'w').write(f'worked {output.lost and output.lost.errno}')\n"
    "sys.exit(7)\n"
)


@pytest.mark.parametrize(
    ("shell", "lost"),
    [
        ("{} >/dev/full", errno.ENOSPC),
        ("({}; echo $? >status) | true", errno.EPIPE),
        ("({}; echo $? >status) | head -1", errno.EPIPE),
        ("{} >&-", None),  # nowhere to begin with
        ("{} >&- 2>&- <&-", None),
        ("{}", None),
    ],
)
def test_work_goes_on_without_its_output(tmp_path, shell, lost):
    command = f'{sys.executable} -c "$WORK" {tmp_path}/worked'
    done = subprocess.run(
        ["bash", "-c", shell.format(command)],
        cwd=tmp_path,
        env={"WORK": WORK, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (tmp_path / "worked").read_text() == f"worked {lost}" and done.stderr == ""
    status = tmp_path / "status"
    assert (int(status.read_text()) if status.exists() else done.returncode) == 7  # and not the 120 of a late flush


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EACCES, "rights"),
        (errno.EMFILE, "ulimit"),
        (errno.EIO, "try again"),
    ],
)
def test_what_to_do_depends_on_the_error(number, words):
    said = commandline.explain(OSError(number, "What happened", "/some/file"), "/out")
    assert said.startswith("What happened: /some/file; ") and words in said
    assert commandline.explain(OSError(number, "What happened"), "/out").startswith("What happened: /out; ")
