"""The first minutes on a GPU: `python -m bench.gpu --minutes 5 --out DIR`.

Section by section, each within its share of the time, every fact is a line of DIR/facts.jsonl the moment it is known: a
machine that is taken away early has said what it had. Where CIFAR-100 is at hand the checks of `bench.acceptance`
follow, and where the published teacher is, too, real `sprint` runs with the time that is left. The same command on the
same DIR goes on. `--page` makes Markdown of facts; `--kit` makes the folder that such a machine is brought.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from bench.datasets import ENTRIES, root
from bench.measure.acceptance import TEACHER, WEIGHTS_VARIABLE
from bench.measure.gpu import judge, kit, page
from bench.measure.gpu import sprint as sprints
from bench.measure.gpu.facts import FILE, Facts, one_line, read
from bench.measure.gpu.helper import Gone, Helper, requests
from bench.measure.gpu.sections import DEFAULT_PRECISION, SECTIONS, Setting
from bench.measure.gpu.trial import SMALL, Sizes
from bench.surroundings.commandline import DONE, INCOMPLETE, Parser, refuse
from bench.training.devices import check_precision, parse_device
from zoo.errors import BadInput, choose

CIFAR100 = ENTRIES["cifar100"]
SPRINT = "sprint"
SHARES = {  # of the time, among the sections that are done; what one leaves over goes to those after it
    "machine": 12,
    "agreement": 20,
    "layouts": 26,
    "steps": 14,
    "cohorts": 10,
    "kernels": 6,
    "processes": 14,
    "plain": 10,
    "acceptance": 60,
    SPRINT: 120,
}
GRACE_S = 20.0  # beyond its seconds, for the measurement that a section is at
STARTS = 4  # of a section: each goes on behind the measurement that ended the process
LEFT = "left"  # the answer of a process that wants to be replaced
SMALL_SPRINT = {"grid": "quick", "only": "method=student,student=resnet8", "seeds": (0,)}


@dataclass
class Measuring:
    """The process that measures; a new one where it has died, since a CUDA error spoils a process for good."""

    out: Path
    setting: Setting
    facts: Facts
    helper: Helper | None = field(default=None)

    def section(self, name: str, seconds: float) -> str:
        """Do a section; returns how it ended."""
        until, grace_s = time.monotonic() + seconds, min(GRACE_S, 5 + seconds)
        for _ in range(STARTS):
            left = until - time.monotonic()
            if self.helper is None:
                self.helper = Helper(serve, self.out, self.facts.began, self.setting)
            try:
                self.helper.send((name, left))
                ended = self.helper.receive(left + grace_s)
            except Gone as gone:
                self.helper = None
                return f"failed: the process {gone}"
            if ended != LEFT:
                return ended
            self.close()
            if time.monotonic() > until:
                return "out of time"
        return f"failed: {STARTS} errors, each the end of a process"

    def close(self) -> None:
        """End the process, and give its memory on the device back."""
        if self.helper:
            self.helper.close()
        self.helper = None


def serve(connection: Connection, out: Path, began: float, setting: Setting) -> None:
    """Do the sections that are asked for; the answer is how each ended."""
    facts = Facts(out, began)
    for name, seconds in requests(connection):
        try:
            ended = measure(name, setting, facts, time.monotonic() + seconds)
        except Exception as error:
            ended = f"failed: {one_line(error)}"
        connection.send(ended)


def measure(name: str, setting: Setting, facts: Facts, until: float) -> str:
    """Take the measurements of a section that the facts do not hold yet, until the time is up.

    What failed is tried again by another call of the program, and not by the process that follows a spoiled one.
    """
    told = facts.read()
    call = max((position for position, fact in enumerate(told) if fact["fact"] == "program"), default=0)
    told = [fact for position, fact in enumerate(told) if position >= call or "error" not in fact]
    with closing(SECTIONS[name](setting)) as measurements:
        for measurement in measurements:
            known = {"fact": measurement.fact, **measurement.labels}
            if any(known.items() <= fact.items() for fact in told):
                continue
            if time.monotonic() > until:
                facts.add("unmeasured", section=name, next=measurement.labels)
                return "out of time"
            try:
                found, spoiled = measurement.work(), False
            except Exception as error:
                found = {"error": one_line(error)}
                # A process survives want of memory; after any other error on a GPU nothing it says is worth much.
                spoiled = setting.device.type == "cuda" and not isinstance(error, torch.OutOfMemoryError)
            facts.add(measurement.fact, **measurement.labels, **found)
            if spoiled:
                return LEFT
    return "done"


def perform(args: argparse.Namespace) -> int:
    """All sections; returns the exit status."""
    began, device = time.time(), parse_device(args.device)
    check_precision(args.precision, device)
    args.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(device, SMALL if args.small else Sizes(), args.data, args.weights)
    facts, until = Facts(args.out, began), time.monotonic() + 60 * args.minutes
    facts.add("program", minutes=args.minutes, device=str(device), small=args.small, sections=args.sections)
    lacking = {name: _lacking(name, args) for name in args.sections}
    for name in filter(lacking.get, lacking):
        facts.add("section", section=name, ended=f"left out: {lacking[name]}")
    names, whole = [name for name in args.sections if not lacking[name]], True
    with closing(Measuring(args.out, setting, facts)) as measuring:
        for position, name in enumerate(names):
            started = time.monotonic()
            left = max(0.0, until - started)
            seconds = left * SHARES[name] / sum(SHARES[each] for each in names[position:])
            facts.add("begins", section=name, seconds=round(seconds, 1))
            if not left:
                ended = "out of time"
            else:
                ended = _sprint(args, measuring, seconds) if name == SPRINT else measuring.section(name, seconds)
            facts.add("section", section=name, ended=ended, took_s=round(time.monotonic() - started, 1))
            whole &= ended == "done"
    page.write(facts.path, args.out / page.FILE)
    return DONE if whole else INCOMPLETE


def _lacking(name: str, args: argparse.Namespace) -> str:
    """What a section needs and is not there, if any."""
    if args.small:
        return "minutes on a CPU" if name == "acceptance" and not SMALL.accepting else ""
    folder = root("cifar100", args.data) / CIFAR100.folder
    if name in ("acceptance", SPRINT) and not folder.is_dir():
        return f"no {CIFAR100.folder} at hand"
    if name == SPRINT and not (args.weights and (args.weights / "sskd" / f"{TEACHER}.pth").is_file()):
        return f"no sskd/{TEACHER}.pth in the folder of weights"
    return ""


def _sprint(args: argparse.Namespace, measuring: Measuring, seconds: float) -> str:
    measuring.close()  # its memory is the runs' now
    facts = measuring.facts.read()
    known = judge.slots(facts, args.precision) or judge.slots(facts, DEFAULT_PRECISION)
    what = SMALL_SPRINT if args.small else {"grid": args.grid, "only": "", "seeds": (0, 1, 2)}
    sprint = sprints.Sprint(
        **what,
        results=args.results.resolve(),
        out=args.out.resolve(),
        device=args.device,
        precision=args.precision,
        slots=args.slots or (known.count if known else 1),
        data=None if args.small else args.data,
        weights=args.weights,
    )
    try:
        return sprints.run(sprint, measuring.facts, seconds)
    except OSError as error:
        return f"failed: {one_line(error)}"


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--minutes", type=float, default=5.0, metavar="MIN", help="for all sections (default: 5)")
    made.add_argument("--out", type=Path, metavar="DIR", help=f"for {FILE}, {page.FILE} and packed results")
    made.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    made.add_argument("--small", action="store_true", help="tiny sizes: the whole program in half a minute on a CPU")
    made.add_argument("--sections", nargs="+", default=list(SHARES), metavar="NAME", help=f"of {', '.join(SHARES)}")
    sprinting = made.add_argument_group("sprint")
    sprinting.add_argument("--grid", default="first-sprint", metavar="NAME|FILE", help="default: first-sprint")
    sprinting.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default=DEFAULT_PRECISION)
    sprinting.add_argument("--slots", type=int, metavar="N", help="runs at once (default: as the facts have it)")
    sprinting.add_argument(
        "--results", type=Path, default=Path("results/sprint"), metavar="DIR", help="default: results/sprint"
    )
    at_hand = made.add_argument_group("at hand")
    at_hand.add_argument("--data", type=Path, metavar="DIR", help=f"default: ${CIFAR100.variable}, else ./data")
    at_hand.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        default=os.environ.get(WEIGHTS_VARIABLE),
        help=f"folder of published checkpoints (default: ${WEIGHTS_VARIABLE})",
    )
    instead = made.add_mutually_exclusive_group()
    instead.add_argument("--page", type=Path, metavar="FILE", help="print facts as a page of Markdown, instead")
    instead.add_argument("--kit", type=Path, metavar="DIR", help="make the folder that a machine is brought, instead")
    instead.add_argument(
        "--restore",
        type=Path,
        nargs="+",
        metavar="PART",
        help="unpack the parts of a kit's CIFAR-100 to --data, instead",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    made = parser()
    args = made.parse_args(arguments)
    try:
        return _main(args, made)
    except BadInput as error:
        return refuse(str(error))


def _main(args: Any, made: Parser) -> int:
    if args.page:
        facts = read(args.page)
        if not facts:
            raise BadInput(f'--page "{args.page}": no facts are there')
        print(page.text(facts))
        return DONE
    if args.kit:
        for line in kit.make(args.kit, args.data, args.weights):
            print(line, flush=True)
        return DONE
    if args.restore:
        print(kit.restore(args.restore, root("cifar100", args.data)))
        return DONE
    if args.out is None:
        made.error("give --out, the folder for facts")
    if not args.minutes > 0:
        raise BadInput(f"--minutes {args.minutes:g}: give minutes above 0")
    if args.slots is not None and args.slots < 1:
        raise BadInput(f"--slots {args.slots}: give at least 1")
    for name in args.sections:
        choose("section", name, list(SHARES))
    args.sections = [name for name in SHARES if name in args.sections]
    return perform(args)


if __name__ == "__main__":
    sys.exit(main())
