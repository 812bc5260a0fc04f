"""What a person writes into a cluster file, as sites' own pages write it, in the words of `cluster.Resources`.

Times as SLURM takes them (90, 2:00:00, 1-00:00:00), sizes (16G), GPUs with their type (a100:1, gpu:a100:1), set-up
lines as one block of text, numbers as names. BadInput names the key as it was written and how to write it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from methods import Settings
from methods.settings import Faults
from zoo.errors import BadInput, bare, unknown

MOST_GPUS = 64

# Options of sbatch, as they are written without dashes and marks, and the key of the cluster file that means the same.
SAME = {
    **dict.fromkeys(("time", "timelimit", "walltime", "timeout", "minutes", "hours"), "timeout_min"),
    **dict.fromkeys(("mem", "memory", "memgb", "mempernode", "ram"), "mem_gb"),
    **dict.fromkeys(("cpus", "cpu", "cores", "ncpus", "cpuspernode", "numcpus", "threads"), "cpus_per_task"),
    **dict.fromkeys(("gpu", "ngpus", "numgpus", "gputype"), "gpus"),
    **dict.fromkeys(("signal", "signaldelay"), "signal_delay_s"),
    **dict.fromkeys(("queue", "partitions"), "partition"),
    **dict.fromkeys(("accounts", "project", "charge"), "account"),
    **dict.fromkeys(("feature", "features"), "constraint"),
    **dict.fromkeys(("cluster",), "clusters"),
    **dict.fromkeys(("maxjobs", "parallelism", "throttle"), "array_parallelism"),
    **dict.fromkeys(("modules", "module", "prologue", "commands", "env"), "setup"),
}
# Options of sbatch that submission itself sets: another value would break resuming, waiting or finding the jobs again.
OURS = {
    **dict.fromkeys(("array", "dependency", "kill-on-invalid-dep", "chdir", "job-name", "output", "error"), None),
    **dict.fromkeys(("requeue", "no-requeue", "wrap", "export", "export-file", "get-user-env", "parsable"), None),
    **dict.fromkeys(("test-only", "open-mode", "input", "wait", "quiet", "verbose", "help", "usage", "version"), None),
    **dict.fromkeys(("ntasks", "nodes", "ntasks-per-node", "tasks-per-node", "ntasks-per-gpu", "het-group"), None),
    "signal": "signal_delay_s",
    "time": "timeout_min",
    "mem": "mem_gb",
    "cpus-per-task": "cpus_per_task",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "cluster": "clusters",
    "clusters": "clusters",
}
# Ways to ask for GPUs that are taken for `gpus`.
GPUS = ("gres", "gpuspernode", "gpuspertask", "gpuspersocket")
# Options of sbatch that have no key: they stand in `additional`.
OTHERS = frozenset(
    "acctgfreq begin comment contiguous corespec cpuspergpu deadline delayboot exclude exclusive gpubind gpufreq"
    " gresflags hint hold licenses mailtype mailuser membind mempercpu mempergpu mincpus network nice nodefile nodelist"
    " oversubscribe priority propagate reservation spreadjob switches threadspec tmp wckey".split()
)
SHORT = {
    **{"A": "account", "C": "constraint", "D": "chdir", "F": "nodefile", "G": "gpus", "H": "hold", "J": "job-name"},
    **{"L": "licenses", "M": "clusters", "N": "nodes", "O": "overcommit", "S": "core-spec", "W": "wait", "a": "array"},
    **{"b": "begin", "c": "cpus-per-task", "d": "dependency", "e": "error", "i": "input", "k": "no-kill"},
    **{"m": "distribution", "n": "ntasks", "o": "output", "p": "partition", "q": "qos", "s": "oversubscribe"},
    **{"t": "time", "w": "nodelist", "x": "exclude"},
}


def as_meant(values: Mapping[str, Any], where: str, model: type[Settings]) -> dict[str, Any]:
    """The settings of a file or of one of its classes, as `model` takes them. A key without a value is left out."""
    made: dict[str, Any] = {}
    asks: dict[str, Any] = {}  # for GPUs, as sbatch has it
    faults: list[str] = []
    for key, value in values.items():
        if bare(str(key)) in GPUS:
            asks[str(key)] = value
            continue
        try:
            name, value = _one(str(key), value, tuple(model.model_fields))
        except _Unclear as error:
            faults.append(f"{where}: {error}")
            continue
        if value is None and model.model_fields[name].default is not None:
            continue
        if name in made:
            faults.append(f'{where}: "{key}" says again what "{name}" is for: keep one of the two')
        made[name] = value
    if faults:
        raise Faults(faults, faults[0] + (f" (and {len(faults) - 1} more)" if faults[1:] else ""))
    try:
        if isinstance(additional := made.get("additional"), Mapping):
            made["additional"] = {}
            for key, value in additional.items():
                option = str(key).lstrip("-")
                option = SHORT.get(option, option)
                if bare(option) in (*GPUS, "gpus"):
                    asks[str(key)] = value
                else:
                    made["additional"][option.replace("_", "-")] = True if value is None else value  # --exclusive
        for key, value in asks.items():
            if value is not None:
                _ask_for_gpus(made, key, value)
    except _Unclear as error:
        raise BadInput(f"{where}: {error}") from None
    return made


def _ask_for_gpus(made: dict[str, Any], key: str, value: Any) -> None:
    """Take an option of sbatch that asks for GPUs as `gpus`: how many a job holds decides where it trains.

    Other resources in it stay an option. With a part of a GPU (mps, shard) a job needs no whole one.
    """
    parts = [part.strip() for part in str(value).split(",")] if bare(key) == "gres" else [value]
    gpus = [part for part in parts if bare(key) != "gres" or re.match(r"(gres[:/])?gpu\b", part)]
    others = [part for part in parts if part not in gpus]
    if len(gpus) > 1:
        raise _Unclear(f'"{key}" asks for GPUs of several types: a job has one, such as gpus: {GPUS_EXAMPLE}')
    if others:
        made["additional"] = {**made.get("additional", {}), "gres": ",".join(others)}
        if not gpus and any(PART_OF_A_GPU.match(part) for part in others):
            made.setdefault("gpus", 0)
    for part in gpus:
        found = _gpus(key, part)
        if made.setdefault("gpus", found) != found:
            raise _Unclear(
                f'gpus: {made["gpus"]} and "{key}: {value}" contradict each other: write gpus: {found} and leave '
                f"{key} out"
            )


class _Unclear(ValueError):
    """What a person wrote, and how to write it."""


def _one(key: str, value: Any, keys: tuple[str, ...]) -> tuple[str, Any]:
    name = key.replace("-", "_").strip()
    if name in keys:
        return name, VALUES[name](key, value) if name in VALUES and value is not None else value
    raise _Unclear(_unknown(key, value, keys))


def _unknown(key: str, value: Any, keys: tuple[str, ...]) -> str:
    """What to write instead of a key that is none."""
    option = key.lstrip("-")
    option = SHORT.get(option, option)
    if bare(option) in ("ntasks", "taskspernode", "ntaskspernode", "nodes"):
        return f'"{key}" has no place here: a job is one task on one node, and cpus_per_task gives it cores'
    if OURS.get(option.replace("_", "-"), option) is None:
        return f'"{key}" has no place in a cluster file: submission sets it'
    meant = SAME.get(bare(option)) or next((name for name in keys if bare(name) == bare(option)), None)
    if meant:
        megabytes = meant == "mem_gb" and isinstance(value, int)  # as sbatch counts
        return f'unknown key "{key}": write {meant}: {_as_yaml(f"{value}M" if megabytes else value)}'
    if bare(option) in OTHERS:
        return f'unknown key "{key}": write additional: {{{option}: {_as_yaml(value)}}}'
    return str(unknown("key", key, keys))


def _as_yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = " ".join(str(value).split())
    return text if re.fullmatch(r"[\w./:%+-]+", text) else f'"{text}"'


GPUS_EXAMPLE = "a100:1"
PART_OF_A_GPU = re.compile(r"(gres[:/])?(mps|shard)\b")
TYPE = r"[A-Za-z][\w.+-]*|\d+[A-Za-z_][\w.+-]*|\d+(?=:\d)"  # a100, 1g.10gb, 3090


def _gpus(key: str, value: Any) -> int | str:
    """A count, or TYPE:COUNT, of a job: as --gpus-per-node takes it."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = str(value).strip()
    found = re.fullmatch(rf"(?:gres[:/])?(?:gpu(?:[:=]|$))?(?:({TYPE})(?:[:=]|$))?(\d+)?", text)
    if not isinstance(value, str) or not text or not found:
        raise _Unclear(
            f'"{key}" {_as_yaml(value)} is no number of GPUs: write gpus: 1, or with the type gpus: {GPUS_EXAMPLE}'
        )
    kind, count = found[1], int(found[2] or 1)
    if count > MOST_GPUS:
        raise _Unclear(f'"{key}" {_as_yaml(value)}: a job holds {MOST_GPUS} GPUs at most')
    return f"{kind}:{count}" if kind and count else count


def _minutes(key: str, value: Any) -> Any:
    """A time limit as SLURM takes it (sbatch, --time), in whole minutes, rounded up."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if re.fullmatch(r"\d+", text):
        return int(text)
    if found := re.fullmatch(r"(\d+):(\d\d)", text):
        # To SLURM these are minutes and seconds, to most people hours and minutes.
        raise _Unclear(
            f'"{key}" {text} can be read in two ways: write {int(found[1]) + (int(found[2]) > 0)} for minutes, '
            f"{found[1]}:{found[2]}:00 for hours"
        )
    if found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)|(\d+)-(\d+)(?::(\d\d))?", text):
        days, hours, minutes, seconds, days_, hours_, minutes_ = (int(part or 0) for part in found.groups())
        return (days + days_) * 1440 + (hours + hours_) * 60 + minutes + minutes_ + (seconds > 0)
    if found := re.fullmatch(r"(\d+(?:\.\d+)?) ?(m|mins?|minutes?|h|hrs?|hours?|d|days?)", text, re.I):
        return math.ceil(float(found[1]) * {"m": 1, "h": 60, "d": 1440}[found[2][0].lower()])
    raise _Unclear(f'"{key}" {_as_yaml(value)} is no time: write minutes (240), 4:00:00 or 1-00:00:00 (a day)')


def _gigabytes(key: str, value: Any) -> Any:
    """A size as SLURM takes it (16G, 16000M), in GiB; SLURM's letters count in 1024."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", value.strip(), re.I)
    if not found:
        raise _Unclear(f'"{key}" {_as_yaml(value)} is no size: write gigabytes (16), 16G or 16000M')
    return float(found[1]) * 1024.0 ** {"K": -2, "M": -1, "": 0, "G": 0, "T": 1}[found[2].upper()]


def _name(key: str, value: Any) -> Any:
    """A name, which may look like a number, or several: with commas between them or as a list."""
    many = value if isinstance(value, list) else [value]
    if any(isinstance(one, (bool, float, dict, list)) for one in many):
        raise _Unclear(f'"{key}" {_as_yaml(value)} is no name: if it is one, write it in quotes')
    names = [part.strip() for one in many for part in str(one).split(",")]
    for name in names:
        if not re.fullmatch(r"[^\s'\"]+", name):
            raise _Unclear(f'"{key}" {_as_yaml(value)} is no name: write one, or several as a,b')
    if bare(key) == "clusters" and "all" in names:
        raise _Unclear(f'"{key}" all: write their names, as `sacctmgr show clusters` lists them')
    return ",".join(names)


def _lines(key: str, value: Any) -> Any:
    """Lines of shell: a block of text, or a list of lines."""
    lines = value.splitlines() if isinstance(value, str) else value
    for line in lines if isinstance(lines, list) else ():
        if found := re.match(r"\s*#(SBATCH|PBS|BSUB)\b\s*(.*)", str(line)):
            raise _Unclear(
                f'"{key}" holds "#{found[1]} {found[2]}": options of a job are keys of the cluster file, or stand in '
                "additional"
            )
    return lines


VALUES: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("partition", "account", "qos", "constraint", "clusters"), _name),
    "timeout_min": _minutes,
    "mem_gb": _gigabytes,
    "gpus": _gpus,
    "setup": _lines,
}
