"""The options of the main command, and its help. Nothing here runs anything or imports what takes long."""

from __future__ import annotations

from pathlib import Path

from bench.surroundings import commandline, paths
from bench.surroundings.commandline import Parser
from jobs import claims

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
        metavar="runs",
        help="print what it will cost, per pair and method; =runs: and of each run its state, reason and time",
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
