"""A results folder in one file, so that a campaign goes on where another machine left it.

    python -m jobs.pack results campaign.tar.gz            # here: everything that the next machine needs
    python -m jobs.pack --into results campaign.tar.gz     # there: merged into what is there already
    python -m jobs.pack results --keep results/measured/NAME   # results and report alone, to commit

The file is a gzipped tar with the names of a results folder and an index as its last member, so that a file that was
cut short is noticed. Exit status: 0 all is in the file (or merged), 1 something was left out or kept apart, and said,
2 the request or the file is wrong.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import sys
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import store
from bench.cells import RunStatus
from bench.surroundings import paths
from bench.surroundings.commandline import DONE, INCOMPLETE, Parser, counted, explain, lasting_output, refuse
from jobs import states
from jobs.carry import merge
from zoo.errors import BadInput

# Results and logs shrink to a quarter; tensors by 7 % at any level, at several times the time above the first.
LEVEL = 1
LOG_TAIL = 64 << 10  # bytes of a log: some 250 epochs
OVERHEAD = 1 << 10  # bytes a member may cost beside its content
ENDING = 1 << 12  # bytes of the index and the end of the archive, beside what the index says of each file
WEIGHTS = ("teachers", "all", "none")


@dataclass(frozen=True)
class Packed:
    """What went into a file, and a line on each thing that did not."""

    runs: int
    files: Counter[str]  # by name within a run folder
    size: int
    notes: tuple[str, ...]

    def line(self, path: Path) -> str:
        held = [f"{count} {name}" for name, count in sorted(self.files.items()) if name.startswith(("result", "last"))]
        held += [f"{self.files[name]} {name}" for name in ("weights.pt",) if self.files[name]]
        inside = f" ({', '.join(held)})" if held else ""
        return f"{path}: {counted(self.runs, 'run')}{inside}, {_mib(self.size)}"


@dataclass(frozen=True)
class _File:
    """A file of a run that is to be taken along."""

    folder: store.RunFolder
    path: Path

    @property
    def name(self) -> str:
        return f"runs/{self.folder.run_id}/{self.path.name}"

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0


def pack(
    out: Path, target: Path, *, weights: str = "teachers", max_mib: float | None = None, only: Iterable[str] = ()
) -> Packed:
    """Write the runs of `out` into `target`; runs that a live process works on are left where they are.

    `max_mib` bounds the file: results, configurations and logs first, then weights that unfinished students wait for,
    then checkpoints (teachers', then those that hold most training time per byte), then all other weights.
    """
    if not (out / "runs").is_dir():
        raise BadInput(f'"{out}" has no runs/: give the results folder that kd-bench --out wrote')
    if target.is_dir():
        raise BadInput(f'"{target}" is a folder: give the name of the file to write')
    found, notes = _look(out, only)
    files = _in_order(out, found, weights, by_value=max_mib is not None)
    limit = None if max_mib is None else int(max_mib * (1 << 20)) - ENDING
    packed: Counter[str] = Counter()
    runs: set[str] = set()

    def write(temporary: Path) -> None:
        # Without a time and a name in its header the same files give the same pack.
        with open(temporary, "wb") as raw, gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) as zipped:
            with tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar:
                index, room = {}, limit
                plans = [out / store.KEPT, *(folder / store.KEPT for folder, _ in states.other_grids(out))]
                own_code = [path for path in sorted((out / store.SOURCES).rglob("*")) if path.is_file()]
                named = [(path.relative_to(out).as_posix(), path) for path in (*plans, *own_code)]
                named = [(name, path) for name, path in named if re.fullmatch(merge.MEMBER, name)]
                for name, path in [*named, *((file.name, file.path) for file in files)]:
                    content = _content(path)
                    if content is None:
                        continue
                    if room is not None:
                        # Beside its content a file costs its member's header and its line in the index.
                        cost = len(zlib.compress(content, LEVEL)) + OVERHEAD
                        if cost > room:
                            notes.append(f"left out: {name} ({_mib(len(content))} do not fit)")
                            continue
                        room -= cost
                    _add(tar, name, content, path)
                    index[name] = hashlib.sha256(content).hexdigest()
                    if name.startswith("runs/"):
                        packed[path.name] += 1
                        runs.add(path.parent.name)
                said = {"format": merge.FORMAT, "schema": merge.SCHEMA, "weights": weights, "files": index}
                _add(tar, merge.INDEX, (json.dumps(said, indent=1) + "\n").encode())

    if limit is not None and limit < OVERHEAD:
        raise BadInput(f"--max-mib {max_mib:g}: nothing fits; give at least 1")
    store.write_atomically(target, write)
    return Packed(len(runs), packed, target.stat().st_size, tuple(notes))


def keep(out: Path, folder: Path) -> int:
    """Copy the plans and the result of each finished run into `folder`; returns how many. Nothing there is removed.

    BadInput, with nothing copied, where `folder` has another result of a run: a measured number is not replaced unseen.
    """
    if not (out / "runs").is_dir():
        raise BadInput(f'"{out}" has no runs/: give the results folder that kd-bench --out wrote')
    outline = states.read_kept(out)
    if outline is None:
        raise BadInput(
            f'"{out}" has no {store.KEPT}, which the report is made from: run kd-bench --grid with its grid once'
        )
    folders = [store.run_folder(out, name) for name in sorted(os.listdir(out / "runs"))]
    done = [run for run in folders if run.path.is_dir() and states.status(run).state == "done"]
    contents = {run.run_id: run.result.read_bytes() for run in done}
    for run_id, content in contents.items():
        there = store.run_folder(folder, run_id).result
        if there.exists() and there.read_bytes() != content:
            raise BadInput(f'"{there}" is another result of this run: keep one of the two, nothing was copied')
    for run_id, content in contents.items():
        run, source = store.run_folder(folder, run_id), store.run_folder(out, run_id)
        run.path.mkdir(parents=True, exist_ok=True)
        _write(run.result, content)
        if source.examined.exists():
            _write(run.examined, source.examined.read_bytes())
    if done:
        others = [place for place, other in states.other_grids(out) if not isinstance(other, BadInput)]
        for place in [*others, out]:  # the last one stands on top, as in `out`
            store.keep_plan(folder, store.read_json(place / store.KEPT))
    return len(done)


def _write(path: Path, content: bytes) -> None:
    store.write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _look(out: Path, only: Iterable[str]) -> tuple[dict[str, RunStatus], list[str]]:
    """The state of each run folder that is to be taken along, and a line on each that is not."""
    names = sorted(name for name in os.listdir(out / "runs") if re.fullmatch(merge.RUN_ID, name))
    only = list(only)
    if only:
        outline = states.read_kept(out)
        if outline is None:
            raise BadInput(f'--only needs "{out / store.KEPT}", which is not there: pack the whole folder')
        chosen = states.select(outline, only)
        chosen |= {teacher for run_id in chosen if (teacher := outline.runs[run_id].teacher)}
        names = [name for name in names if name in chosen]
    found, notes = {}, []
    for name in names:
        if not (out / "runs" / name).is_dir():
            continue
        seen = states.status(store.run_folder(out, name))
        if seen.state == "running":
            notes.append(f"left out: {name} is running ({seen.reason})")
            continue
        if "damaged" in seen.reason or "another run" in seen.reason:
            notes.append(f"{name}: {seen.reason.partition(', will')[0]}, not taken along")
        found[name] = seen
    return found, notes


def _in_order(out: Path, found: dict[str, RunStatus], weights: str, by_value: bool) -> list[_File]:
    """The files of the runs, what would be missed most first."""
    folders = {run_id: store.run_folder(out, run_id) for run_id in found}
    teachers = merge.teachers(out)
    done = {run_id for run_id, seen in found.items() if seen.state == "done"}
    waiting = Counter(teacher for student, teacher in teachers.items() if student not in done)
    serving = set(teachers.values())
    small, checkpoints = [], []
    for run_id, folder in folders.items():
        names = [folder.config, folder.result] if run_id in done else [folder.config, folder.error]
        small += [_File(folder, path) for path in (*names, folder.examined, folder.log)]
        # A teacher that has lost its weights is made again, from the checkpoint where there is one.
        if run_id not in done or (run_id in waiting and store.weights_fault(folder)):
            checkpoints.append(_File(folder, folder.last))
    checkpoints = [file for file in checkpoints if file.size]
    if by_value:
        checkpoints.sort(key=lambda file: (file.folder.run_id not in serving, -_wall_s(file.path) / file.size))
    offered = [] if weights == "none" else [run_id for run_id in folders if run_id in done]
    offered = [run_id for run_id in offered if store.weights_fault(folders[run_id]) is None]
    heavy = [_File(folders[run_id], folders[run_id].weights) for run_id in offered]
    heavy.sort(key=lambda file: (-waiting[file.folder.run_id], file.size))
    needed = [file for file in heavy if waiting[file.folder.run_id]]
    served = [file for file in heavy if file.folder.run_id in serving and file not in needed]
    others = [file for file in heavy if file.folder.run_id not in serving] if weights == "all" else []
    return [*small, *needed, *checkpoints, *served, *others]


def _wall_s(checkpoint: Path) -> float:
    """Training time that a checkpoint saves; none where it cannot be read."""
    try:
        return float(store.read_torch(checkpoint)["state"]["wall_s"])
    except (store.Damaged, KeyError, TypeError, ValueError):
        return 0.0


def _content(path: Path) -> bytes | None:
    """What a file holds, of a log the end; None where there is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if path.name != "log.txt" or len(content) <= LOG_TAIL:
        return content
    return content[-LOG_TAIL:].partition(b"\n")[2]  # from the start of a line


def _add(tar: tarfile.TarFile, name: str, content: bytes, path: Path | None = None) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    member.mtime = int(path.stat().st_mtime) if path else 0
    tar.addfile(member, io.BytesIO(content))


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _lines(args: argparse.Namespace) -> Iterator[tuple[str, bool]]:
    """Do what is asked; each line of the answer, and whether it says that something is missing."""
    if args.keep:
        if len(args.paths) != 1 or args.into or args.weights or args.max_mib is not None or args.only:
            raise BadInput("--keep takes one results folder and no other option")
        count = keep(args.paths[0], args.keep)
        if not count:
            raise BadInput(f'"{args.paths[0]}" has no finished run to keep')
        from jobs import results  # pandas is slow to import, and only this needs it

        results.report(states.read_kept(args.keep), args.keep, refresh=True)
        yield f"{count} results of {args.paths[0]} in {args.keep}", False
        return
    if args.into is None:
        if len(args.paths) != 2:
            raise BadInput("give the results folder and the file to write; to unpack: --into FOLDER FILE")
        options = {"weights": args.weights or "teachers", "max_mib": args.max_mib, "only": args.only}
        made = pack(*args.paths, **options)
        yield from ((note, True) for note in made.notes)
        yield made.line(args.paths[1]), False
        return
    if args.weights or args.max_mib is not None or args.only:
        raise BadInput("--into takes all that is in the file: leave --weights, --max-mib and --only to packing")
    for path in args.paths:
        merged = merge.unpack(path, args.into)
        yield from ((note, True) for note in merged.notes)
        yield merged.line(path, args.into), False


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = Parser(
        prog="python -m jobs.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=paths.option, metavar="PATH", help="FOLDER FILE; with --into FILE ...")
    parser.add_argument(
        "--into", type=paths.option, metavar="FOLDER", help="unpack into a results folder, new or in use"
    )
    parser.add_argument(
        "--keep", type=paths.option, metavar="FOLDER", help="copy results without weights there, and report"
    )
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="KEY=VALUE,...",
                        help="runs of these cells, as in kd-bench, and their teachers")  # fmt: skip
    parser.add_argument("--weights", choices=WEIGHTS, help="weights.pt of which finished runs (default: teachers)")
    parser.add_argument("--max-mib", type=float, metavar="N", help="leave out, and say, what makes the file larger")
    args = parser.parse_args(arguments)
    if args.max_mib is not None and not 0 < args.max_mib < float("inf"):
        parser.error(f"--max-mib {args.max_mib:g}: give a size above 0")
    status = DONE
    with lasting_output():
        try:
            for line, lacking in _lines(args):
                print(line, flush=True)
                status = INCOMPLETE if lacking else status
            return status
        except BadInput as error:
            return refuse(str(error))
        except OSError as error:
            return refuse(f"{explain(error, args.paths[-1])}; nothing that was there is lost")


if __name__ == "__main__":
    sys.exit(main())
