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

from bench.surroundings import paths
from bench.surroundings.commandline import DONE, STOPPED_EARLY, counted, explain, lasting_output, note, refuse
from jobs import folders
from jobs.options import EACH, MOST_RUNS, MOST_SEEDS, PRECISION, parser
from zoo.errors import BadInput

if TYPE_CHECKING:
    from jobs.plan import Plan

MOST_SLOTS = 1024
MOST_MINUTES = 60 * 24 * 366


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
    _say_filters(args.only)
    if args.dry_run:
        return _dry_run(args, plan)
    _confirm(args, plan)
    from jobs import drive

    return (drive.submit if slurm else drive.execute)(plan, _request(args))


def _say_filters(only: list[str]) -> None:
    """What method=kd student=resnet20 means: it reads as if both had to hold."""
    if len({text.partition("=")[0] for text in only}) > 1 and not any("," in text for text in only):
        note(f"--only: runs that any of {len(only)} filters matches; for those that all match write {','.join(only)}")


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
    return grids.parse_seeds(text, one_is_a_seed=args.seed is not None)


def _confirm(args: argparse.Namespace, plan: Plan) -> None:
    """Ask, before they start, about more runs than a person is likely to mean; refuse where nobody can answer."""
    runs, seeds = len(plan.to_do), len({plan.grid.runs[run_id].seed for run_id in plan.to_do})
    if args.yes or (runs <= MOST_RUNS and seeds <= MOST_SEEDS):
        return
    what = f"{counted(runs, 'run')} to do, with {counted(seeds, 'seed')}"
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
