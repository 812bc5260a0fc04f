"""A worker that trains nothing: it speaks `jobs.worker`'s protocol and does what a test has written down for it.

What becomes of a run is a list of outcomes, one for each time that it is tried; the last one stays. DIE ends the
process without a word on that run, HANG makes it sleep for ever. More runs at once than `memory` are NO_MEMORY for all.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import child, claims, outcomes

if TYPE_CHECKING:
    import pytest

DIE, HANG = "die", "hang"


class Stub:
    """Workers of this test are stubs from now on. `orders` tells what they were given."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, runs: Mapping[str, Any]):
        self.folder = folder
        folder.mkdir(parents=True)
        self.names = {_name(run.model_dump(mode="json")): run_id for run_id, run in runs.items()}
        monkeypatch.setattr(child, "PROGRAM", (sys.executable, "-m", "tests.jobs.stub", str(folder)))
        self.plan()

    def plan(self, memory: int = 1000, **outcomes_by_method: Iterable[str]) -> None:
        """What becomes of the runs of each method, from the first try on; all others are done."""
        told = {name.removesuffix("_"): list(tries) for name, tries in outcomes_by_method.items()}
        script = {"names": self.names, "memory": memory, "tries": told}
        (self.folder / "script.json").write_text(json.dumps(script))

    @property
    def orders(self) -> list[list[str]]:
        """The runs of each order, in the order in which workers took them up."""
        return [entry["runs"] for entry in self._log()]

    @property
    def processes(self) -> list[int]:
        """The process of each order."""
        return [entry["pid"] for entry in self._log()]

    @property
    def methods(self) -> list[str]:
        """Orders as the sorted methods of their runs."""
        return [" ".join(sorted(run_id.partition("-")[0] for run_id in order)) for order in self.orders]

    @property
    def hangs(self) -> bool:
        """Whether a process hangs now."""
        return any(claims._started(int(path.stem)) for path in self.folder.glob("*.hangs"))

    def watch_for_hangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Time flies for a process that hangs, and for no other: a start may take long on a busy machine."""
        monkeypatch.setattr(child, "LOOK_S", 0.1)
        monkeypatch.setattr(claims.Watch, "still_s", lambda *_: 1800.0 if self.hangs else 0.0)

    def _log(self) -> list[dict[str, Any]]:
        path = self.folder / "orders.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _name(run: Mapping[str, Any]) -> str:
    return " ".join(map(str, (run["method"], run["student"], run["seed"], run["teacher"] and run["teacher"]["run_id"])))


def _serve(folder: Path, out: Path) -> None:
    script = json.loads((folder / "script.json").read_text())
    print("a library's remark on its import", flush=True)
    for line in sys.stdin:
        entries = json.loads(line)["runs"]
        runs = {script["names"][_name(entry["run"])]: entry["run"]["method"] for entry in entries}
        with (folder / "orders.jsonl").open("a") as file:
            file.write(json.dumps({"runs": list(runs), "pid": os.getpid()}) + "\n")
        for run_id in runs:
            (out / "runs" / run_id).mkdir(parents=True, exist_ok=True)
        ends = {run_id: _end(folder, script, run_id, method, len(runs)) for run_id, method in runs.items()}
        for run_id, end in reversed(ends.items()):
            if end not in (DIE, HANG):
                print(json.dumps({"run_id": run_id, "outcome": end, "message": f"{end} says the stub"}), flush=True)
        if DIE in ends.values():
            os.kill(os.getpid(), signal.SIGKILL)
        if HANG in ends.values():
            (folder / f"{os.getpid()}.hangs").touch()
            time.sleep(1000)
        if set(ends.values()) & set(outcomes.LAST_WORDS):
            time.sleep(0.2)  # not gone at once: whoever asks it meanwhile is not heard
            return


def _end(folder: Path, script: Mapping[str, Any], run_id: str, method: str, company: int) -> str:
    if company > script["memory"]:
        return outcomes.NO_MEMORY
    tries = script["tries"].get(method, [outcomes.DONE])
    tried = folder / f"{run_id}.tries"
    count = len(tried.read_text()) if tried.exists() else 0
    tried.write_text("x" * (count + 1))
    return tries[min(count, len(tries) - 1)]


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[sys.argv.index("--out") + 1]))
