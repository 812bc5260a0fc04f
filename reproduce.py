"""Regenerate a results table of knowledge distillation: `kd-bench --grid quick`, or `python reproduce.py`.

Expands a grid into runs, trains what is missing (teachers first), and writes the table. The same command again
resumes. Exit status: 0 every selected cell is done, 1 some failed or are blocked, 2 the request is wrong and nothing
was started, 3 stopped early and resumable.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if not all(
    (found := importlib.util.find_spec(name)) and Path(found.origin or "").parents[1:2] == Path(__file__).parents[:1]
    for name in ("zoo", "methods", "bench", "jobs")
):  # PYTHONPATH leads to a `methods` of a person's own first, or PYTHONSAFEPATH is set
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from bench.surroundings import commandline, paths
from bench.surroundings.commandline import DONE, STOPPED_EARLY, Parser, explain, lasting_output, note, refuse
from jobs import claims, folders
from zoo.errors import BadInput

if TYPE_CHECKING:
    from jobs.plan import Plan

MOST_SLOTS = 1024
MOST_MINUTES = 60 * 24 * 366
# More runs, or more seeds than anybody gives a count of, are asked about: --seeds 42 for the one seed 42 is 3,281 runs.
MOST_RUNS, MOST_SEEDS = 1000, 20
PRECISION = "fp32"
SUMMARY, EACH = "summary", "runs"  # what --dry-run shows
HELP = """\
Regenerates a results table of knowledge distillation. Expands a grid into runs,
trains what is missing (teachers first), and writes the table. The same command
again resumes.
"""
EXAMPLES = (
    ("--grid quick", "small, minutes, no download"),
    ("--grid full --dry-run", "what it needs, how long"),
    ("--grid full --only method=kd,dkd", ""),
    ("--status", "how far it is"),
    ("--report", "the table, from files alone"),
    ("--validate grid.yaml", "is my file right?"),
)
EXIT = """\
exit status: 0 every selected cell is done; 1 some failed or are blocked; 2 the
request is wrong, and nothing was started; 3 stopped early and resumable.
Each key of grids, protocols and cluster files: --list keys.
"""


def parser() -> Parser:
    """The command line. Its help is for 80 columns, each option in one line where that says enough."""
    made = Parser(
        prog=commandline.program(),
        usage="%(prog)s [--grid NAME|FILE] [options]",
        description=HELP,
        epilog="\n".join(["examples:", *(f"  {line}".rstrip() for line in _examples()), "", EXIT]),
        formatter_class=commandline.Narrow,
        add_help=False,
    )
    what = made.add_argument_group("what to run")
    what.add_argument("--grid", metavar="NAME|FILE", help="the grid (default: full; to look at: the last one)")
    what.add_argument("--protocol", metavar="NAME|FILE", help="another recipe than the grid's")
    what.add_argument(
        "--only",
        metavar="K=V",
        nargs="+",
        action="extend",
        default=[],
        help="these cells alone: method=kd,dkd,student=resnet20 (keys: method, teacher, student, seed; several: any "
        "may match)",
    )
    what.add_argument("--seeds", metavar="N|A,B", nargs="+", help="how many seeds (3), or which (0,1,2 or 0-2)")
    what.add_argument("--seed", metavar="A,B", nargs="+", help="which seeds, also for one: 42 is the seed 42")
    what.add_argument(
        "--precision", choices=("fp32", "tf32", "bf16"), metavar="P", help=f"fp32, tf32 or bf16 (default: {PRECISION})"
    )
    where = made.add_argument_group("where")
    where.add_argument(
        "--out", metavar="DIR", type=paths.option, default=Path("results"), help="results folder (default: results)"
    )
    where.add_argument(
        "--data", metavar="DIR", type=paths.option, help="where the data set lies (default: see --list data)"
    )
    where.add_argument(
        "--device", metavar="D", default="auto", help="cpu, cuda, cuda:N, or auto: all GPUs, else the CPU"
    )
    where.add_argument("--slots", metavar="N", type=int, help="workers per device (default: GPU 1, CPU as its cores)")
    where.add_argument(
        "--together",
        metavar="N",
        type=int,
        help="runs at most that share a worker, its images and its teacher's pass (default: all that can while each "
        "slot has work; SLURM: as the cluster file says)",
    )
    where.add_argument(
        "--executor",
        choices=("auto", "local", "slurm"),
        metavar="E",
        default="auto",
        help="local, slurm, or auto: slurm where sbatch works, this is no job already, and the grid is not quick",
    )
    where.add_argument("--cluster", metavar="NAME|FILE", help="what a SLURM job asks for (default: a GPU, two cores)")
    how = made.add_argument_group("how")
    how.add_argument("--time-budget", metavar="MIN", type=float, help="stop after MIN minutes, resumable")
    how.add_argument(
        "--hung-min",
        metavar="MIN",
        type=float,
        help=f"end a worker that makes no step for so long, and go on from its checkpoints "
        f"(default: {claims.HUNG_S / 60:g}; SLURM: as the cluster file says)",
    )
    how.add_argument("--retry-failed", action="store_true", help="try failed runs again, from their checkpoints")
    how.add_argument("--force", action="store_true", help="start over; old files go to DIR/aside/")
    how.add_argument("--wait", action="store_true", help="with SLURM: follow the jobs to the end, then report")
    how.add_argument("--yes", action="store_true", help=f"do not ask before more than {MOST_RUNS:,} runs")
    how.add_argument(
        "--columns",
        metavar="NAME,...",
        help="with --report, more tables: train_top1, agreement, kl, ece, parameters, macs or all, of weights that "
        "python -m bench.examine has seen",
    )
    how.add_argument(
        "--on", metavar="DEVICE", help="with --dry-run: the cost on another device, e.g. h100, a100, 4090, avx512"
    )
    how.add_argument("--no-plots", action="store_true", help="write the tables only")
    group = made.add_argument_group("instead of running")
    instead = group.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        nargs="?",
        const=SUMMARY,
        choices=(SUMMARY, EACH),
        help="print what it will cost, per pair and method; =runs: also each run's state, reason and time",
    )
    instead.add_argument("--status", action="store_true", help="print how far the runs are, from files alone")
    instead.add_argument("--report", action="store_true", help="write tables, plots and page, from files alone")
    instead.add_argument("--compare", metavar="DIR", type=paths.option, help="put --out beside another results folder")
    instead.add_argument("--cancel", action="store_true", help="end the SLURM jobs of --out")
    instead.add_argument(
        "--list", metavar="WHAT", nargs="?", const="", help="grids, protocols, methods, pairs, architectures, data"
    )
    instead.add_argument("--validate", metavar="FILE", help="check a grid, protocol or cluster file, and run nothing")
    instead.add_argument("--version", action="store_true", help="version, commit, and what results rest on")
    group.add_argument("-h", "--help", action="help", help="this")
    return made


def _examples() -> list[str]:
    lines = [(f"{commandline.program()} {options}", says) for options, says in EXAMPLES]
    width = max(len(line) for line, says in lines if says)
    return [f"{line:<{width}}  {says}" for line, says in lines]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = parser().parse_args(arguments)
    os.umask(os.umask(0o077) & 0o077)  # whatever it keeps from others, it keeps nothing from ourselves
    with lasting_output() as output:
        try:
            return _main(args)
        except BadInput as error:
            return refuse(str(error))
        except KeyboardInterrupt:
            return STOPPED_EARLY
        except OSError as error:
            return refuse(explain(error, args.out))
        finally:
            output.flush()
            reader_left = output.lost and output.lost.errno == errno.EPIPE  # `--status | head` is no trouble
            reads = args.status or args.report or args.compare or args.dry_run or args.list is not None
            if output.lost and not (reader_left and reads):
                note(f"output was lost ({output.lost.strerror}); nothing else was")


def _main(args: argparse.Namespace) -> int:
    _check_arguments(args)
    if args.version:
        from bench.surroundings import version  # asks git

        print(version.described())
        return DONE
    if args.list is not None:
        return _list(args)
    if args.validate is not None:
        return _validate(args)
    if args.cancel:
        return _cancel(args)
    if args.status:
        return _status(args)
    if args.report or args.compare:
        return _report(args)
    _say_first(f"reading grid {_name(args)} ...", in_a_log=not args.dry_run)
    slurm = _uses_slurm(args)
    from jobs import plan as plans  # torch is slow to import: what reads files only should not wait for it

    plan = plans.make(_grid(args), args.out, args.only)
    if args.dry_run:
        return _dry_run(args, plan)
    _confirm(args, plan)
    from jobs import drive

    return (drive.submit if slurm else drive.execute)(plan, _request(args))


def _say_first(what: str, in_a_log: bool = False) -> None:
    """One line before an import that takes seconds, for a person who waits at a terminal, or looks at the log."""
    if sys.stderr.isatty() or in_a_log:
        print(f"kd-bench: {what}", file=sys.stderr if sys.stderr.isatty() else sys.stdout, flush=True)


def _name(args: argparse.Namespace) -> str:
    return f'"{args.grid or "full"}"'


def _dry_run(args: argparse.Namespace, plan: Plan) -> int:
    """Print the plan with what it costs: on a device by name, or on the one here, measured in some 20 seconds."""
    from bench.measure import elsewhere
    from bench.training.devices import parse_device
    from jobs import forecast

    if args.on is not None:
        found = forecast.on(plan, elsewhere.known(args.on), args.slots, args.together)
        print(forecast.dry_run(plan, found, each=args.dry_run == EACH, out=args.out))
        return DONE
    # SLURM finds a GPU where the login node has none: the time is then this machine's, and the plan says so.
    device = parse_device("auto" if args.device == "cuda" and _slurm_is_chosen(args) else args.device)
    found = forecast.here(plan, device, args.slots, args.together)
    print(forecast.dry_run(plan, found, each=args.dry_run == EACH, out=args.out))
    return DONE


def _status(args: argparse.Namespace) -> int:
    from jobs import states, status

    outline = _outline(args)
    found = states.look(outline, args.out, args.only)
    print(status.report(outline, args.out, found))
    for _, other in states.other_grids(args.out) if args.grid is None else ():
        if isinstance(other, BadInput):
            print(f"also here: {other}")
        else:
            print(f"also here: {status.headline(other, states.look(other, args.out))}")
    return states.exit_status(found)


def _report(args: argparse.Namespace) -> int:
    outline = _outline(args)
    _say_first(f"reading {args.out} ...")
    from jobs import results, states  # pandas is slow to import, and a wrong request need not wait for it

    columns: tuple[str, ...] = ()
    if args.columns is not None:
        from bench.report import examined

        columns = examined.chosen(args.columns)
    if args.compare:
        return results.compare(outline, args.out, args.compare)
    if args.grid is not None and (place := states.report_place(outline, args.out)) != args.out:
        from bench import grid as grids  # another grid than the last one: its report is to be found again

        place.mkdir(parents=True, exist_ok=True)
        grids.keep(dataclasses.replace(_grid(args), sources=()), place)
    return results.report(
        outline, args.out, args.only, plots=not args.no_plots, refresh=args.grid is None, columns=columns
    )


def _request(args: argparse.Namespace):
    from jobs.drive import Request

    return Request(
        out=args.out,
        only=tuple(args.only),
        data=args.data,
        device=args.device,
        precision=args.precision or PRECISION,
        slots=args.slots,
        together=args.together,
        hung_min=args.hung_min,
        time_budget_min=args.time_budget,
        cluster=args.cluster,
        force=args.force,
        retry_failed=args.retry_failed,
        wait=args.wait,
        plots=not args.no_plots,
    )


def _check_arguments(args: argparse.Namespace) -> None:
    if args.slots is not None and not 1 <= args.slots <= MOST_SLOTS:
        raise BadInput(f"--slots {args.slots}: give 1 to {MOST_SLOTS}")
    if args.together is not None and args.together < 1:
        raise BadInput(f"--together {args.together}: give 1 or more")
    if args.hung_min is not None and not 0 < args.hung_min <= MOST_MINUTES:
        raise BadInput(f"--hung-min {args.hung_min:g}: give minutes above 0, up to {MOST_MINUTES} (a year)")
    if args.time_budget is not None and not args.time_budget > 0:
        raise BadInput(f"--time-budget {args.time_budget:g}: give minutes above 0")
    if args.out.exists() and not args.out.is_dir():
        raise BadInput(f'--out "{args.out}" is a file: give a folder')
    if args.status or args.report or args.cancel or args.compare:
        folders.require(args.out, "--out")
    for folder in (args.out, args.compare) if args.compare else ():
        folders.require(folder, "--compare" if folder is args.compare else "--out")
        if not (folder / "runs").is_dir():
            raise BadInput(f'"{folder}" has no runs/: --compare needs two results folders, --out and the one given')
    if args.on is not None and not args.dry_run:
        raise BadInput(f"--on {args.on} tells what runs would cost there, and starts nothing: add --dry-run")
    if args.columns is not None and not args.report:
        raise BadInput("--columns goes with --report, which prints what was measured: add it")
    if args.compare and args.only:
        raise BadInput("--only does not go with --compare, which shows every cell: leave it out")


def _uses_slurm(args: argparse.Namespace) -> bool:
    """Whether this call submits; BadInput where what it asks for does not go with that."""
    if args.status or args.dry_run or args.report:
        return False
    slurm = _slurm_is_chosen(args)
    if slurm and args.time_budget is not None:
        raise BadInput("--time-budget is for runs on this machine: with SLURM set timeout_min in the cluster file")
    if slurm and args.slots is not None:
        raise BadInput("--slots is for runs on this machine: with SLURM set runs_per_job in the cluster file")
    if slurm and args.device not in ("auto", "cpu", "cuda"):
        raise BadInput(f'--device "{args.device}": SLURM chooses the GPU; give auto, cpu or cuda')
    if not slurm and args.cluster is not None:
        raise BadInput("--cluster is for SLURM, and this runs here: add --executor slurm, or leave it out")
    return slurm


def _slurm_is_chosen(args: argparse.Namespace) -> bool:
    """Whether runs go to SLURM. One line where sbatch is there and does not work; BadInput where nothing is known."""
    from jobs.slurm import programs

    if args.executor == "local":
        return False
    if args.executor == "auto" and (programs.inside_a_job() or shutil.which("sbatch") is None):
        return False
    if args.executor == "auto" and _is_quick(args):
        print("this runs here: the grid quick goes to SLURM with --executor slurm only")
        return False
    found = programs.probe()
    if not found.failed:
        return True
    if args.executor == "slurm":
        raise BadInput(f"--executor slurm: {found.failed}; use --executor local, or log in to the cluster")
    if found.silent:
        raise BadInput(f"{found.failed}: --executor local runs here, --executor slurm submits once it answers")
    print(f"this runs here: sbatch is there, and SLURM is not ({found.failed})")
    return False


def _is_quick(args: argparse.Namespace) -> bool:
    """Whether the grid is the first one that a person tries: that should show something now, and here."""
    return args.grid is not None and Path(args.grid).stem == "quick"


def _list(args: argparse.Namespace) -> int:
    from bench import listing

    if args.list and listing.chosen(args.list) == "keys":
        from jobs import reference  # imports torch, which the parameters of methods need

        print(reference.text())
    else:
        print(listing.show(args.list, args.data))
    return DONE


def _validate(args: argparse.Namespace) -> int:
    from jobs import validate  # imports torch, which the parameters of methods and the networks need

    asked = {"protocol": args.protocol, "seeds": _seeds(args), "precision": args.precision or PRECISION}
    return validate.validate(args.validate, **asked, data=args.data)


def _cancel(args: argparse.Namespace) -> int:
    _say_first(f"asking SLURM for the jobs of {args.out} ...")
    from jobs.slurm import submission as slurm

    print(slurm.cancel(args.out))
    return DONE


def _grid(args: argparse.Namespace):
    from bench import grid as grids

    grid = grids.expand(
        grids.load("full" if args.grid is None else args.grid),
        protocol=args.protocol,
        seeds=_seeds(args),
        precision=args.precision or PRECISION,
        data=args.data,
    )
    return dataclasses.replace(grid, asked=_asked(args))


def _asked(args: argparse.Namespace) -> tuple[str, ...]:
    """The words that ask for the same runs in the same place, without what is to be done with them."""
    words: list[str] = []
    for name in ("grid", "protocol", "seeds", "seed", "precision", "data", "device", "executor", "cluster"):
        value = getattr(args, name)
        if value is None or value == "auto":
            continue
        if name in ("grid", "protocol", "cluster") and paths.is_file_name(value):
            value = os.path.abspath(paths.expand(value, f"--{name}"))
        words += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    return tuple(words) if args.grid else ("--grid", "full", *words)


def _seeds(args: argparse.Namespace) -> list[int] | None:
    """The seeds of --seeds, where one number is a count, or of --seed, where it is the seed."""
    from bench import grid as grids

    if args.seeds is not None and args.seed is not None:
        raise BadInput("--seeds and --seed are two ways to say one thing: give one of them")
    given = args.seeds or args.seed
    if given is None:
        return None
    text = ",".join(part.strip(",") for part in given) if len(given) > 1 else given[0]
    return grids.parse_seeds(f"{text}," if args.seed is not None and text.isdigit() else text)


def _confirm(args: argparse.Namespace, plan: Plan) -> None:
    """Ask, before they start, about more runs than a person is likely to mean; refuse where nobody can answer."""
    runs, seeds = len(plan.to_do), len({plan.grid.runs[run_id].seed for run_id in plan.to_do})
    if args.yes or (runs <= MOST_RUNS and seeds <= MOST_SEEDS):
        return
    what = f"{runs:,} runs to do, with {seeds:,} seeds"
    count = args.seeds[0] if args.seeds and len(args.seeds) == 1 and args.seeds[0].isdigit() else None
    hint = f"--seeds {count} is a count, the one seed {count} is --seed {count}; " if count else ""
    if sys.stdin and sys.stdin.isatty() and sys.stdout.isatty():
        if input(f"{what} ({hint}see them with --dry-run). Start them? [y/N] ").strip().lower() in ("y", "yes"):
            return
        raise BadInput(f"{what}: not started")
    raise BadInput(f"{what}: {hint}--yes starts them, --dry-run shows them")


def _outline(args: argparse.Namespace):
    """What --out is looked at for: the grid asked for, else the one it was last used for."""
    from jobs import states

    kept = states.read_kept(args.out) if args.grid is None else None
    if kept:
        for name in ("protocol", "seeds", "seed", "precision"):
            if getattr(args, name) is not None:
                raise BadInput(f"--{name} needs --grid: without it the plan kept in --out is shown as it is")
        return kept
    _say_first(f"reading grid {_name(args)} ...")
    from jobs import plan as plans  # imports torch, as little that reads files only should

    return plans.outline(_grid(args))


if __name__ == "__main__":
    sys.exit(main())
