"""Regenerate a results table of knowledge distillation: `python reproduce.py --grid quick`.

Expands a grid into runs, trains what is missing (teachers first), and writes the table. The same command again
resumes. Exit status: 0 every selected cell is done, 1 some failed or are blocked, 2 the request is wrong and nothing
was started, 3 stopped early and resumable.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from bench.commandline import BAD_REQUEST, Parser
from zoo.errors import BadInput

DONE, INCOMPLETE, STOPPED_EARLY = 0, 1, 3
MOST_SLOTS = 1024


def parser() -> Parser:
    """The command line."""
    made = Parser(
        prog="reproduce.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = made.add_argument_group("what to run")
    what.add_argument(
        "--grid",
        metavar="NAME|FILE",
        help="a grid of bench/grids/ or a YAML file (default: full; "
        "with --status and --report the grid that --out was last used for)",
    )
    what.add_argument("--protocol", metavar="NAME|FILE", help="another protocol than the grid's")
    what.add_argument(
        "--only",
        metavar="KEY=VALUE,...",
        nargs="+",
        action="extend",
        default=[],
        help="cells to run, e.g. method=kd,student=resnet8x4 (keys: method, teacher, student, seed; "
        "several filters: any may match)",
    )
    what.add_argument("--seeds", metavar="N|A,B,...", help="a count (3) or the seeds themselves (0,1,2)")
    what.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32", help="part of a run's identity")
    where = made.add_argument_group("where")
    where.add_argument("--out", metavar="DIR", type=Path, default=Path("results"), help="default: results")
    where.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        help="folder that holds cifar-100-python/ (default: $CIFAR100_ROOT, else ./data, downloaded if missing)",
    )
    where.add_argument("--device", default="auto", help="auto (all GPUs, else the CPU), cpu, cuda or cuda:N")
    where.add_argument(
        "--slots",
        metavar="N",
        type=int,
        help="runs at once per device (default: 1 on a GPU, one a core on a CPU)",
    )
    where.add_argument(
        "--executor",
        choices=("auto", "local", "slurm"),
        default="auto",
        help="auto: SLURM where sbatch is there and this is no allocation already, else local",
    )
    where.add_argument(
        "--cluster",
        metavar="NAME|FILE",
        help="what SLURM jobs ask for: a YAML file like jobs/clusters/example.yaml "
        "(default: one GPU, two cores, and the cluster's own defaults)",
    )
    how = made.add_argument_group("how")
    how.add_argument("--time-budget", metavar="MIN", type=float, help="stop after MIN minutes, with checkpoints")
    how.add_argument("--retry-failed", action="store_true", help="try failed runs again, from their checkpoints")
    how.add_argument("--force", action="store_true", help="start the selected runs over; old files go to DIR/aside/")
    how.add_argument("--wait", action="store_true", help="with SLURM: follow the jobs to the end, then report")
    how.add_argument("--no-plots", action="store_true", help="write the tables only")
    instead = made.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print the plan: counts, a reason per run, cost")
    instead.add_argument("--status", action="store_true", help="print how far the runs are, from files only")
    instead.add_argument("--report", action="store_true", help="write tables and plots from files only")
    instead.add_argument(
        "--compare",
        metavar="DIR",
        type=Path,
        help="put --out beside another results folder, cell by cell, from files only; writes compare.md",
    )
    instead.add_argument("--cancel", action="store_true", help="end the SLURM jobs that were submitted for --out")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that knows no arrow must not cost hours of work
    try:
        return _main(args)
    except BadInput as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return STOPPED_EARLY
    except BrokenPipeError:  # the reader of our output left, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STOPPED_EARLY
    except OSError as error:
        return _refuse(f"{error.strerror or error}: {error.filename or args.out}; make room or give another --out")


def _refuse(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_REQUEST


def _main(args: argparse.Namespace) -> int:
    _check_arguments(args)
    if args.cancel:
        return _cancel(args)
    if args.status:
        return _status(args)
    if args.report:
        return _report(_outline(args), args)
    if args.compare:
        return _compare(_outline(args), args)
    slurm = _uses_slurm(args)
    from jobs import plan as plans  # torch is slow to import: what reads files only should not wait for it

    plan = plans.make(_grid(args), args.out, args.only)
    if args.dry_run:
        _print_plan(plan, verbose=True)
        return DONE
    return _submit(plan, args) if slurm else _execute(plan, args)


def _status(args: argparse.Namespace) -> int:
    from jobs import states, status

    outline = _outline(args)
    found = states.look(outline, args.out, args.only)
    print(status.report(outline, args.out, found))
    return _exit_status(found)


def _check_arguments(args: argparse.Namespace) -> None:
    if args.slots is not None and not 1 <= args.slots <= MOST_SLOTS:
        raise BadInput(f"--slots {args.slots}: give 1 to {MOST_SLOTS}")
    if args.time_budget is not None and not args.time_budget > 0:
        raise BadInput(f"--time-budget {args.time_budget:g}: give minutes above 0")
    if args.out.exists() and not args.out.is_dir():
        raise BadInput(f'--out "{args.out}" is a file: give a folder')
    for folder in (args.out, args.compare) if args.compare else ():
        if not (folder / "runs").is_dir():
            raise BadInput(f'"{folder}" has no runs/: --compare needs two results folders, --out and the one given')


def _uses_slurm(args: argparse.Namespace) -> bool:
    """Whether this call submits; BadInput where what it asks for does not go with that."""
    if args.status or args.dry_run or args.report:
        return False
    from jobs import scheduler

    if args.executor == "slurm" and shutil.which("sbatch") is None:
        raise BadInput("--executor slurm: there is no sbatch here; use --executor local, or log in to the cluster")
    slurm = args.executor == "slurm" or (args.executor == "auto" and scheduler.available())
    if slurm and args.time_budget is not None:
        raise BadInput("--time-budget is for runs on this machine: with SLURM set timeout_min in the cluster file")
    if slurm and args.slots is not None:
        raise BadInput("--slots is for runs on this machine: with SLURM set runs_per_job in the cluster file")
    if slurm and args.device not in ("auto", "cpu", "cuda"):
        raise BadInput(f'--device "{args.device}": SLURM chooses the GPU; give auto, cpu or cuda')
    if not slurm and args.cluster is not None:
        raise BadInput("--cluster is for SLURM, and this runs here: add --executor slurm, or leave it out")
    return slurm


def _cancel(args: argparse.Namespace) -> int:
    from jobs import slurm

    print(slurm.cancel(args.out))
    return DONE


def _grid(args: argparse.Namespace):
    """The grid asked for; for --status and --report without --grid, the one kept in the folder."""
    from bench import grid as grids

    seeds = None if args.seeds is None else grids.parse_seeds(args.seeds)
    if args.grid is None and (args.status or args.report or args.compare):
        kept = grids.read_kept(args.out)
        if kept:
            if args.protocol is not None or seeds is not None:
                raise BadInput(
                    "--protocol and --seeds need --grid: without it the plan kept in --out is shown as it is"
                )
            return kept
    return grids.expand(
        grids.load("full" if args.grid is None else args.grid),
        protocol=args.protocol,
        seeds=seeds,
        precision=args.precision,
    )


def _execute(plan, args: argparse.Namespace) -> int:
    from bench import data, grid
    from bench.devices import check_precision, parse_device
    from jobs import local
    from jobs import plan as plans
    from jobs.progress import Progress

    device = parse_device(args.device)
    check_precision(args.precision, device)
    _check_writable(args.out)
    if plan.to_do or args.force or args.retry_failed:
        data.prepare(plan.grid.protocol.data, args.data)
    if args.force:
        plans.force(plan, args.out, args.only)
    if args.retry_failed:
        plans.retry_failed(plan, args.out)
    if args.force or args.retry_failed:
        plan = plans.make(plan.grid, args.out, args.only)
    grid.keep(plan.grid, args.out)
    _print_plan(plan, verbose=False)
    where = local.slots(device, args.slots)
    progress = Progress(plan, args.out, workers=len(where.devices) * where.per_device)
    with _stop_signals() as stopped:
        deadline = time.monotonic() + 60 * args.time_budget if args.time_budget else None

        def should_stop() -> str | None:
            if stopped.is_set():
                return "interrupted"
            return "time budget used up" if deadline and time.monotonic() > deadline else None

        reason = local.execute(
            plan, args.out, where, data_root=data.cifar100_root(args.data), should_stop=should_stop, progress=progress
        )
    progress.finish()
    return _finish(plan, args, reason)


def _finish(plan, args: argparse.Namespace, stopped_early: str | None) -> int:
    """Report on what there is now."""
    try:
        status = _report(plan.outline, args)
    except BadInput as error:  # the runs are done all the same
        _refuse(str(error))
        status = INCOMPLETE
    if stopped_early:
        print(f"stopped early: {stopped_early}; the same command goes on")
        return STOPPED_EARLY
    return status


def _submit(plan, args: argparse.Namespace) -> int:
    import torch

    from bench import data, grid
    from bench.devices import check_precision
    from jobs import cluster, scheduler, slurm
    from jobs import plan as plans

    resources = cluster.load(args.cluster).of_all(plan.grid, device=args.device)
    for run_id in plan.selected:
        check_precision(args.precision, torch.device(cluster.device(resources[run_id], args.device)))
    _check_writable(args.out)
    if plan.to_do or args.force or args.retry_failed:
        scheduler.check_accepted([resources[run_id] for run_id in plan.selected], args.out.resolve())
        data.prepare(plan.grid.protocol.data, args.data)
    with slurm.desk(args.out) as desk:
        if args.force:
            queued = [run_id for run_id in plan.selected if run_id in desk.queued]
            if queued:
                raise BadInput(f"--force: {queued[0]} is in the queue as job {desk.queued[queued[0]]}: --cancel first")
            plans.force(plan, args.out, args.only)
        if args.retry_failed:
            desk.forget(plans.retry_failed(plan, args.out))
        plan = plans.make(plan.grid, args.out, args.only)
        grid.keep(plan.grid, args.out)
        _print_plan(plan, verbose=False)
        for line in desk.notes:
            print(line)
        for line in desk.submit(plan, resources, device=args.device, data_root=data.cifar100_root(args.data)):
            print(line, flush=True)
        queued = [run_id for run_id in plan.to_do if run_id in desk.queued]
    if not plan.to_do:
        return _finish(plan, args, None)
    print(f"{len(queued)} of {len(plan.to_do)} runs to do are in the queue")
    if args.wait:
        return _wait(plan, queued, args)
    print("follow them with the same command and --wait, or --status; --report makes the table, --cancel ends the jobs")
    return STOPPED_EARLY


def _wait(plan, queued: list[str], args: argparse.Namespace) -> int:
    from jobs import plan as plans
    from jobs import slurm
    from jobs.progress import Progress

    progress = Progress(plan, args.out, workers=1)
    with _stop_signals("stopping to follow: the jobs go on, --cancel ends them") as stopped:
        reason = slurm.follow(plan, args.out, queued, progress, lambda: "interrupted" if stopped.is_set() else None)
    progress.finish()
    left = plans.make(plan.grid, args.out, args.only)
    if reason == slurm.NOT_ALL and len(left.to_do) < len(plan.to_do):  # there is room in the queue again
        args.force = args.retry_failed = False
        return _submit(left, args)
    return _finish(plan, args, reason)


def _outline(args: argparse.Namespace):
    """What --out is looked at for: the grid asked for, else the one it was last used for."""
    from jobs import states

    if args.grid is None and args.protocol is None and args.seeds is None:
        kept = states.read_kept(args.out)
        if kept:
            return kept
    from jobs import plan as plans  # imports torch, as little that reads files only should

    return plans.outline(_grid(args))


def _table(outline):
    from bench.cells import TableSpec

    return TableSpec(outline.grid, outline.protocol, outline.protocol_version, outline.pairs, outline.cells)


def _report(outline, args: argparse.Namespace) -> int:
    from bench import report
    from jobs import states

    found = states.look(outline, args.out, args.only)
    made = report.make(_table(outline), found.statuses, args.out)
    written = _written(lambda: report.write(args.out, made, found.statuses, plots=not args.no_plots), args.out)
    print(report.terminal(made, _width()))
    tables = [path for path in written if path.parent == args.out]
    print(
        f"\nwrote {', '.join(str(path) for path in tables)}"
        + (f" and {len(written) - len(tables)} plots in {args.out / 'plots'}" if len(written) > len(tables) else "")
    )
    return _exit_status(found)


def _compare(outline, args: argparse.Namespace) -> int:
    """The grid of the other folder is the one it was last used for, else that of --out."""
    from datetime import datetime, timezone

    from bench import compare, frames, report
    from jobs import states

    sides = []
    for folder, its in ((args.out, outline), (args.compare, states.read_kept(args.compare) or outline)):
        statuses = states.look(its, folder).statuses
        sides.append(compare.Side(str(folder), frames.collect(_table(its), statuses, folder), statuses))
    text = compare.markdown(*sides, datetime.now(timezone.utc))
    path = args.out / "compare.md"
    _written(lambda: report.write_whole(path, text.encode()), args.out)
    print(f"{compare.terminal(*sides, _width())}\n\nwrote {path}")
    return DONE


def _written(write, out: Path):
    try:
        return write()
    except OSError as error:
        raise BadInput(
            f'cannot write the report to "{out}": {error.strerror}; the results are safe in runs/, '
            "make room or give rights, then --report"
        ) from None


def _width() -> int | None:
    """Of the terminal; None where the output is read by a program, which is better served by whole lines."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _exit_status(found) -> int:
    """0 if every selected run is done, 1 otherwise."""
    return DONE if set(found.counts()) <= {"done"} else INCOMPLETE


def _print_plan(plan, *, verbose: bool) -> None:
    from jobs.plan import measured_flop_per_s
    from jobs.status import duration, headline

    print(headline(plan.outline, plan))
    for run_id in plan.selected:
        found = plan.statuses[run_id]
        if verbose or found.state in ("running", "interrupted", "failed", "blocked") or "set aside" in found.reason:
            print(f"  {found.state:<11}  {run_id}" + (f"  ({found.reason})" if found.reason else ""))
    flop = sum(map(plan.flop, plan.to_do))
    if flop:
        speed = measured_flop_per_s(plan)
        guess = (
            f", about {duration(flop / speed)} one run at a time"
            if speed
            else " (no finished run yet to tell the time from)"
        )
        print(f"to do: {len(plan.to_do)} runs, {flop / 1e15:.3g} PFLOP{guess}")


def _check_writable(out: Path) -> None:
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        probe = out / "runs" / f".probe.{os.getpid()}"
        with open(probe, "wb") as file:  # enough to notice a full disk
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
        probe.unlink()
    except OSError as error:
        raise BadInput(f'cannot write to --out "{out}": {error.strerror}; give another folder') from None


class _stop_signals:
    """Ctrl-C and SIGTERM ask to stop; a second Ctrl-C is a KeyboardInterrupt again."""

    def __init__(self, says: str = "stopping: workers write their checkpoints (once more to kill them)") -> None:
        self.says = says

    def __enter__(self) -> threading.Event:
        self.event = threading.Event()
        self.old = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self.event

    def _ask(self, number: int, frame: object) -> None:
        if not self.event.is_set():
            print(f"\n{self.says}", flush=True)
        self.event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
