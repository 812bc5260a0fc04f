"""What `jobs.pack` brought from another machine, merged into a results folder so that nothing here gets less.

Of each run the better state stands: finished before unfinished, the further checkpoint before the other. Two
different results of one run are both kept. Everything is checked before the first file of the folder is touched.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import re
import secrets
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import store
from bench.surroundings.commandline import counted
from jobs import claims
from zoo.errors import BadInput

FORMAT, SCHEMA = "kd-bench results", 1
INDEX = "pack.json"  # the last member of a pack: the SHA-256 of every other one
RUN_ID = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
RUN_FILE = r"(config\.json|result\.json|examined\.json|error\.json|log\.txt|weights\.pt|last\.pt)"
SOURCE_FILE = r"([A-Za-z_]\w*/)*([A-Za-z_]\w*\.py|source\.json)"  # of a person's own code, as bench.usercode keeps it
MEMBER = rf"(reports/{RUN_ID}/)?plan\.json|runs/{RUN_ID}/{RUN_FILE}|{store.SOURCES}/[0-9a-f]{{16}}/{SOURCE_FILE}"
BROKEN = (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)

FINISHED, FURTHER, WEIGHTS, NEWS = "finished", "with a further checkpoint", "with weights", "with a failure or a log"
NOTHING, LIVE, APART = "nothing new", "running here", "kept apart"
KINDS = (FINISHED, FURTHER, WEIGHTS, NEWS, NOTHING, LIVE, APART)


@dataclass(frozen=True)
class Merged:
    """How many runs brought what, and a line on each that could not be merged."""

    counts: Counter[str]
    notes: tuple[str, ...]

    def line(self, path: Path, out: Path) -> str:
        said = ", ".join(f"{self.counts[kind]} {kind}" for kind in KINDS if self.counts[kind])
        return f"{path} into {out}: {counted(sum(self.counts.values()), 'run')}" + (f" ({said})" if said else "")


def unpack(file: Path, out: Path) -> Merged:
    """Merge a pack into `out`, made where it is missing. BadInput, with nothing done, for what is no whole pack."""
    if out.exists() and not out.is_dir():
        raise BadInput(f'--into "{out}" is a file: give a folder')
    if not file.is_file():
        raise BadInput(f'there is no file "{file}"')
    with _staged(file, out) as stage:
        serving = {*teachers(out).values(), *teachers(stage).values()}
        counts, notes = Counter(), []
        (out / "runs").mkdir(exist_ok=True)
        names = sorted(os.listdir(stage / "runs")) if (stage / "runs").is_dir() else []
        for run_id in names:
            kind, note = _merge(store.run_folder(stage, run_id), out, run_id in serving)
            counts[kind] += 1
            if note:
                notes.append(f"{run_id}: {note}")
        _merge_sources(stage, out)
        _merge_plans(stage, out)
        return Merged(counts, tuple(notes))


def _merge_sources(stage: Path, out: Path) -> None:
    """A person's own code that is not here yet. Its folder is named by its content, which is checked at each use."""
    for folder in sorted((stage / store.SOURCES).glob("*")):
        there = out / store.SOURCES / folder.name
        if not there.exists():
            there.parent.mkdir(exist_ok=True)
            os.replace(folder, there)


def _merge_plans(stage: Path, out: Path) -> None:
    """Grids that are not known here. The latest one that is here stays the latest."""
    if (stage / store.KEPT).exists() and not (out / store.KEPT).exists():
        _place(stage / store.KEPT, out / store.KEPT)
    known = [out / store.KEPT, *out.glob(f"{store.REPORTS}/*/{store.KEPT}")]
    here = {_report_folder(plan, out) for plan in known}
    for plan in (stage / store.KEPT, *sorted(stage.glob(f"{store.REPORTS}/*/{store.KEPT}"))):
        place = _report_folder(plan, out)
        if place and place not in here:
            place.mkdir(parents=True, exist_ok=True)
            _place(plan, place / store.KEPT)


def _report_folder(plan: Path, out: Path) -> Path | None:
    try:
        found = store.read_json(plan)
    except store.Damaged:
        return None
    return store.report_folder_of(out, found) if found else None


def teachers(out: Path) -> dict[str, str]:
    """The teacher's run id of each run that plan.json or its own folder says has one. A damaged file says nothing."""
    said: dict[str, Any] = {}
    try:
        runs = (store.read_json(out / store.KEPT) or {}).get("runs")
        said.update(runs if isinstance(runs, dict) else {})
    except store.Damaged:
        pass
    for run_id in os.listdir(out / "runs") if (out / "runs").is_dir() else ():
        try:
            said[run_id] = store.read_json(store.run_folder(out, run_id).config) or said.get(run_id)
        except store.Damaged:
            continue
    named = {run_id: run.get("teacher") for run_id, run in said.items() if isinstance(run, dict)}
    return {run_id: str(its["run_id"]) for run_id, its in named.items() if isinstance(its, dict) and "run_id" in its}


@contextmanager
def _staged(file: Path, out: Path) -> Iterator[Path]:
    """The files of a pack, checked, in a folder on the disk of `out`, from where they are renamed into place."""
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    stage = out / f".unpack.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        stage.mkdir()
        _extract(file, stage)
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if new and not os.listdir(out):
            out.rmdir()


def _extract(file: Path, stage: Path) -> None:
    try:
        with tarfile.open(file, "r:*") as tar:
            members = tar.getmembers()
            _check_members(file, members)
            tar.extractall(stage, filter="data")
    except BROKEN as error:
        what = str(error).strip() or type(error).__name__
        raise BadInput(f'"{file}" is no whole pack ({what}): copy it again from where it was made') from None
    index = _index(file, stage / INDEX)
    packed = {member.name for member in members} - {INDEX}
    if packed != set(index):
        odd = sorted(packed ^ set(index))[0]
        raise BadInput(f'"{file}" is no whole pack ({odd} is in the index or in the file, not in both): copy it again')
    for name, sha256 in index.items():
        if hashlib.sha256((stage / name).read_bytes()).hexdigest() != sha256:
            raise BadInput(f'"{file}" is damaged ({name} is not as it was packed): copy it again')
        if name.endswith("/result.json"):
            try:
                store.read_result(store.RunFolder((stage / name).parent))
            except store.Damaged as damage:
                raise BadInput(f'"{file}": {name}: {damage}') from None


def _check_members(file: Path, members: list[tarfile.TarInfo]) -> None:
    """Nothing but plain files of the names that a pack has, each once; so none can leave the folder."""
    seen = set()
    for member in members:
        if not member.isreg() or member.name in seen or not re.fullmatch(rf"{MEMBER}|{re.escape(INDEX)}", member.name):
            raise BadInput(f'"{file}" is no pack of a results folder: it holds "{member.name}"; nothing was unpacked')
        seen.add(member.name)
    if INDEX not in seen:
        raise BadInput(f'"{file}" is no whole pack (no {INDEX} at its end): make it with python -m jobs.pack')


def _index(file: Path, path: Path) -> dict[str, str]:
    try:
        said = json.loads(path.read_bytes())
        if said["format"] != FORMAT or not isinstance(said["files"], dict):
            raise ValueError
        schema = said["schema"]
    except (ValueError, KeyError, TypeError):
        raise BadInput(f'"{file}" is no pack of a results folder: make it with python -m jobs.pack') from None
    if schema != SCHEMA:
        raise BadInput(f'"{file}" is of schema {schema!r}, not {SCHEMA}: pack and unpack with the same version')
    return said["files"]


def _merge(theirs: store.RunFolder, out: Path, serves: bool) -> tuple[str, str]:
    """Merge one run under its claim; (what it brought, what a person must know)."""
    ours = store.run_folder(out, theirs.run_id)
    claim = claims.acquire(ours.path)
    if claim is None:
        holder = claims.read(ours.path)
        where = f" on {holder.host}, process {holder.pid}" if holder else ""
        return LIVE, f"running here{where}: skipped, unpack again when it has stopped"
    try:
        store.sweep(ours)
        kind, note = _merge_claimed(theirs, ours, out, serves)
        if kind != APART and theirs.examined.exists() and ours.result.exists() and not ours.examined.exists():
            _place(theirs.examined, ours.examined)  # it says itself which result it is of
        return kind, note
    finally:
        claim.release()


def _merge_claimed(theirs: store.RunFolder, ours: store.RunFolder, out: Path, serves: bool) -> tuple[str, str]:
    result, notes = store.read_result(theirs), []
    own = _whole(ours.result, lambda: store.read_result(ours), notes)
    if not theirs.config.exists() or ours.config.exists():
        theirs.config.unlink(missing_ok=True)  # equal by the run's id
    if result and own and _content(result) != _content(own):
        return APART, _keep_apart(theirs, ours, out)
    weights = bool(result) and store.weights_fault(theirs) is None
    if result and own:
        if not weights or store.weights_fault(ours) is None:
            return NOTHING, "; ".join(notes)
        _place(theirs.weights, ours.weights)
        ours.last.unlink(missing_ok=True)
        return WEIGHTS, "; ".join(notes)
    if own:
        return NOTHING, "; ".join(notes)
    _take(theirs.config, ours.config)
    if result:
        if ours.error.exists():
            store.set_aside(ours.error)  # it was tried again elsewhere
        if weights:
            _place(theirs.weights, ours.weights)
        _merge_log(theirs.log, ours.log)
        _place(theirs.result, ours.result)  # last: from here on the run is done
        if weights or not serves:  # a teacher without weights is made again, from this checkpoint
            ours.last.unlink(missing_ok=True)
        return FINISHED, "; ".join(notes)
    kind = _merge_unfinished(theirs, ours, notes)
    return kind, "; ".join(notes)


def _merge_unfinished(theirs: store.RunFolder, ours: store.RunFolder, notes: list[str]) -> str:
    """The side that came further is the later one, and its failure, or its going on after one, counts."""
    far, own = _far(theirs, notes, ours), _far(ours, notes, theirs)
    if far > own:
        _place(theirs.last, ours.last)
        if ours.error.exists():
            store.set_aside(ours.error)
        _take(theirs.error, ours.error)
        _merge_log(theirs.log, ours.log)
        return FURTHER
    fails = theirs.error.exists() and not ours.error.exists()
    if fails and own > far:
        notes.append("failed there, goes on here from a further checkpoint")
    elif fails:
        _place(theirs.error, ours.error)
    grown = _merge_log(theirs.log, ours.log) if far == own else False
    return NEWS if grown or (fails and far == own) else NOTHING


def _far(folder: store.RunFolder, notes: list[str], other: store.RunFolder) -> tuple[int, int]:
    """Epoch and step of a checkpoint; (0, 0) where there is none. A broken one is set aside."""
    if not other.last.exists():
        return int(folder.last.exists()), 0  # nothing to compare with, so torch need not be loaded to read it
    saved = _whole(folder.last, lambda: store.read_torch(folder.last), notes)
    if saved is None:
        return 0, 0
    try:
        if saved["run_id"] != folder.run_id:
            raise ValueError
        return int(saved["state"]["epoch"]), int(saved["state"]["step"])
    except (KeyError, TypeError, ValueError):
        notes.append(f"last.pt is not this run's: set aside as {store.set_aside(folder.last).name}")
        return 0, 0


def _whole(path: Path, read: Any, notes: list[str]) -> dict[str, Any] | None:
    """What `read` gives; a damaged file is set aside and counts as absent."""
    try:
        return read()
    except store.Damaged as damage:
        notes.append(f"{damage}: set aside as {store.set_aside(path).name}")
        return None


def _content(result: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """What two trainings of one run must agree in to be the same: all but their clocks and places."""
    rows = [{key: value for key, value in row.items() if key != "wall_s"} for row in result.get("curve", [])]
    return result["metrics"], rows


def _keep_apart(theirs: store.RunFolder, ours: store.RunFolder, out: Path) -> str:
    """Put another result of the same run into `OUT/aside/`, unless it lies there already."""
    text = theirs.result.read_bytes()
    kept = [path.parent for path in (out / "aside").glob(f"{theirs.run_id}.aside-*/result.json")
            if path.read_bytes() == text]  # fmt: skip
    there, here = (store.read_result(folder, curve=False)["metrics"]["top1_last"] for folder in (theirs, ours))
    place = kept[0] if kept else store.set_aside(theirs.path, out / "aside")
    return f"another result than the one here (top-1 {there:.2f}, here {here:.2f}): kept in {place}"


def _merge_log(theirs: Path, ours: Path) -> bool:
    """Put what their log has over ours at the end of ours; whether there was anything."""
    if not theirs.exists():
        return False
    old, new = ours.read_bytes() if ours.exists() else b"", theirs.read_bytes()
    whole = joined(old, new)
    if whole != old:
        store.write_atomically(ours, lambda temporary: temporary.write_bytes(whole))
    return whole != old


def joined(old: bytes, new: bytes) -> bytes:
    """Two logs of one run as one: where they overlap, what both have stands once."""
    first = new.partition(b"\n")[0] + b"\n"
    at = old.find(first) if first.strip() else -1  # lines begin with the time, so the first is found where it stands
    if at >= 0 and new.startswith(old[at:]):
        return old[:at] + new
    return old if new in old else old + new


def _take(theirs: Path, ours: Path) -> None:
    if theirs.exists():
        _place(theirs, ours)


def _place(source: Path, target: Path) -> None:
    """Rename a staged file into place, synced first."""
    store.write_atomically(target, lambda temporary: os.replace(source, temporary))
