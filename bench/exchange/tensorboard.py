"""Curves for TensorBoard: `python -m bench.tensorboard --out results`, then `tensorboard --logdir results/tensorboard`.

Each run that has an epoch behind it, finished or not, gets a folder of event files: accuracies, losses and their
terms, gradient norms, learning rate, by epoch. Again, it adds the epochs that came since, and none twice. Nothing is
trained and nothing of the results changes. Exit status: 0 all is written, 1 some runs could not be read and it says
which, 2 the request is wrong.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import store
from bench.surroundings import paths
from bench.surroundings.commandline import DONE, INCOMPLETE, Parser, explain, refuse
from zoo.errors import BadInput

FOLDER = "tensorboard"  # in the results folder
# Names of a curve's columns in TensorBoard, which groups them by what stands before the stroke. Others are loss terms.
TAGS = {
    "lr": "learning rate",
    "train_loss": "loss/train, all terms",
    "test_loss": "loss/test",
    "val_loss": "loss/validation",
    "top1": "accuracy/test top-1",
    "top5": "accuracy/test top-5",
    "val_top1": "accuracy/validation top-1",
    "val_top5": "accuracy/validation top-5",
}
PREFIXES = {"grad_norm_": "gradient norm at the logits/", "state_": "state/"}
NO_CURVES = ("epoch", "wall_s")
OWN = re.compile(
    r"\.kd-bench-(\d+)-([0-9a-f]{8})$"
)  # ends the names of files written here: rows so far, their checksum
WRITTEN, UNCHANGED, NONE = "written", "unchanged", "without an epoch"

Rows = Sequence[Mapping[str, Any]]


def tag_of(column: str) -> str | None:
    """What a column of a curve is called in TensorBoard; None for one that is no curve."""
    if column in NO_CURVES:
        return None
    for prefix, group in PREFIXES.items():
        if column.startswith(prefix):
            return group + column.removeprefix(prefix)
    return TAGS.get(column, f"loss term/{column}")


def curve_of(folder: store.RunFolder) -> tuple[Rows, float]:
    """The rows of a run so far, and the time (seconds since 1970) of the file that has them; Damaged, Unreadable."""
    result = store.read_result(folder)
    if result is not None:
        return _rows(result.get("curve"), folder.result), folder.result.stat().st_mtime
    saved = store.read_torch(folder.last)
    if saved is None:
        return [], 0.0
    state = saved.get("state")
    return _rows(state.get("curve") if isinstance(state, dict) else None, folder.last), folder.last.stat().st_mtime


def write(rows: Rows, ended: float, folder: Path) -> str:
    """Bring the event files of a run up to `rows`; WRITTEN, or UNCHANGED where they are all there.

    `ended`: the time of the last row. Rows that are there are left as they are, and those that came since are added in
    a file of their own, so that a TensorBoard that is looking sees them once. Where the rows that are there are others
    (the run was started over), its files are made anew.
    """
    own = {path: (int(found[1]), found[2]) for path in _files(folder) if (found := OWN.search(path.name))}
    done = max((rows_there for rows_there, _ in own.values()), default=0)
    if (done, _checksum(rows[:done])) not in own.values():
        done = 0
    if done == len(rows) and own:
        return UNCHANGED
    folder.mkdir(parents=True, exist_ok=True)
    _add(rows, done, ended, folder)
    if done == 0:
        for path in own:
            path.unlink(missing_ok=True)
    return WRITTEN


def _add(rows: Rows, done: int, ended: float, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    began = ended - _seconds(rows[-1])
    with tempfile.TemporaryDirectory() as scratch:
        writer = SummaryWriter(scratch, filename_suffix=f".kd-bench-{len(rows)}-{_checksum(rows)}")
        for row in rows[done:]:
            for column, value in row.items():
                if (tag := tag_of(column)) and isinstance(value, int | float) and not isinstance(value, bool):
                    writer.add_scalar(tag, value, row["epoch"], walltime=began + _seconds(row))
        writer.close()
        (made,) = Path(scratch).iterdir()
        temporary = folder / f".{os.getpid()}.tmp"  # no name that TensorBoard reads
        try:
            temporary.write_bytes(made.read_bytes())
            os.replace(temporary, folder / made.name)
        finally:
            temporary.unlink(missing_ok=True)


def _rows(curve: Any, file: Path) -> Rows:
    if not isinstance(curve, list) or not all(
        isinstance(row, dict) and isinstance(row.get("epoch"), int) for row in curve
    ):
        raise store.Damaged(f"{file.name} is damaged (its curve is no list of epochs)")
    return curve


def _seconds(row: Mapping[str, Any]) -> float:
    seconds = row.get("wall_s")
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def _checksum(rows: Rows) -> str:
    return f"{zlib.crc32(json.dumps(rows, sort_keys=True).encode()):08x}"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def write_all(out: Path, logdir: Path) -> Iterator[tuple[str, str]]:
    """Do so for every run of a results folder; yields (run id, WRITTEN, UNCHANGED, NONE or why not)."""
    for path in sorted(path for path in (out / "runs").iterdir() if path.is_dir()):
        folder = store.RunFolder(path)
        try:
            rows, ended = curve_of(folder)
        except (store.Damaged, store.Unreadable) as fault:
            yield folder.run_id, str(fault)
            continue
        yield folder.run_id, write(rows, ended, logdir / folder.run_id) if rows else NONE


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = Parser(prog="python -m bench.tensorboard", description=__doc__)
    parser.add_argument("--out", type=paths.option, default=Path("results"), metavar="OUT", help="results folder")
    parser.add_argument("--logdir", type=paths.option, metavar="DIR", help=f"where to write (default: OUT/{FOLDER})")
    args = parser.parse_args(arguments)
    logdir = args.logdir or args.out / FOLDER
    if not (args.out / "runs").is_dir():
        return refuse(f'"{args.out}" has no runs/: give the results folder that a grid was run in')
    if importlib.util.find_spec("tensorboard") is None:
        return refuse("writing event files needs tensorboard: pip install tensorboard")
    counts: Counter[str] = Counter()
    try:
        for run_id, outcome in write_all(args.out, logdir):
            known = outcome in (WRITTEN, UNCHANGED, NONE)
            counts[outcome if known else "not read"] += 1
            if not known:
                print(f"{run_id}: {outcome}", flush=True)
    except BadInput as error:
        return refuse(str(error))
    except OSError as error:
        return refuse(explain(error, logdir))
    said = ", ".join(f"{counts[name]} {name}" for name in (WRITTEN, UNCHANGED, NONE, "not read") if counts[name])
    print(f"runs: {said or 'none'}; look at them with: tensorboard --logdir {logdir}")
    return INCOMPLETE if counts["not read"] else DONE


if __name__ == "__main__":
    sys.exit(main())
