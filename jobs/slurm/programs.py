"""SLURM's programs, all called from here, so that nobody's shell or dot file changes what they do.

What they take from their surroundings (the manual pages of SLURM 22.05, and the names of variables in its programs):

- sbatch: SBATCH_* (an option each: SBATCH_TIMELIMIT is --time), SLURM_CLUSTERS, SLURM_HINT, SLURM_EXIT_ERROR,
  SLURM_UMASK, SLURM_DEBUG_FLAGS and, undocumented, SLURM_NTASKS, SLURM_CPUS_PER_TASK and others that an allocation
  sets. Hidden from it; those that a person may mean are said (`ignored`).
- squeue: SQUEUE_* (SQUEUE_STATES is --states), SLURM_CLUSTERS, SLURM_TIME_FORMAT, SLURM_BITSTR_LEN. Hidden.
- scancel: SCANCEL_* (SCANCEL_INTERACTIVE asks at a terminal), SLURM_CLUSTERS. Hidden.
- scontrol: SCONTROL_*, SLURM_CLUSTERS, SLURM_TIME_FORMAT, SLURM_BITSTR_LEN, SLURM_CONF_OUT. Hidden.
- sinfo: SINFO_* (SINFO_FORMAT is --format), SLURM_CLUSTERS, SLURM_TIME_FORMAT. Hidden.
- srun: SRUN_* and most of SLURM_*. Hidden, and srun is never called.
- All: SLURM_CONF and SLURM_CONF_SERVER (where the configuration is), SLURM_JWT and SLURM_JWKS (who one is). Kept.
- sbatch reads ~/.slurm/defaults where the site uses cli_filter/user_defaults: options that neither command line nor
  script gives. Nothing switches it off. What matters is given (`scheduler`), the rest is read back (`given`).
- sbatch reads lines "#SBATCH", "#PBS" and "#BSUB" at the head of a script: refused in `setup` (`words`), which is the
  only text there that is not ours.
- A job has the variables of the shell that submits it (--export=ALL, said explicitly): modules, conda, proxies and
  paths such as CIFAR100_ROOT reach it, NOT_INHERITED do not. What a job is to have of these, `setup` sets.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

COMMAND_S = 90.0  # SLURM's commands retry for a while where its controller is away
SAY_S = 5.0  # after which a line says what is waited for
PROBE_S = 10.0  # for `sbatch --version`, which asks nobody unless it looks for a configuration

OPTIONS = re.compile(
    "_?(SLURMD?|SBATCH|SALLOC|SRUN|SQUEUE|SCANCEL|SCONTROL|SINFO|SACCT|SPANK|SUBMITIT)_(?!CONF$|CONF_SERVER$|JWT$|JWKS$)"
)
# Of the shell that submits: which devices that machine has, and what changes how, or what, a process computes.
NOT_INHERITED = re.compile(
    "(CUDA|NVIDIA|HIP|ROCR)_VISIBLE_DEVICES$|GPU_DEVICE_ORDINAL$|ZE_AFFINITY_MASK$"
    "|(OMP|GOMP|KMP|MKL|OPENBLAS|BLIS|VECLIB|NUMEXPR|DNNL|ONEDNN)_|ATEN_CPU_CAPABILITY$"
    "|NVIDIA_TF32_OVERRIDE$|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE$|CUBLAS_WORKSPACE_CONFIG$|CUDA_LAUNCH_BLOCKING$"
    "|PYTHON(SAFEPATH|STARTUP|OPTIMIZE|INSPECT|BREAKPOINT|WARNINGS)$|MPLBACKEND$"
)
KEYS = {  # variables of sbatch whose option has a key of its own in the cluster file
    **{"ACCOUNT": "account", "PARTITION": "partition", "QOS": "qos", "CONSTRAINT": "constraint"},
    **{"TIMELIMIT": "timeout_min", "MEM_PER_NODE": "mem_gb", "CLUSTERS": "clusters", "SIGNAL": "signal_delay_s"},
    **dict.fromkeys(("GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK", "GRES"), "gpus"),
}


@dataclass(frozen=True)
class Reply:
    """What a program said. `failed` is None, or one line that says why it did not do what it was asked."""

    out: str = ""
    failed: str | None = None
    silent: bool = False  # it did not answer in time, or SLURM did not answer it: nothing is known

    @property
    def text(self) -> str | None:
        """Its output; None if it failed."""
        return self.out if self.failed is None else None


# In the words of programs that could not reach SLURM.
UNREACHED = re.compile(
    "timed out|Unable to contact|Connection refused|Connection reset|Zero Bytes|temporarily|fail(ed|ure) to connect"
    "|Socket|controller not responding|No route to host|slurm_persist_conn",
    re.I,
)


def environment() -> dict[str, str]:
    """The variables that a program of SLURM, and with sbatch the job, gets to see."""
    return {
        name: value for name, value in os.environ.items() if not OPTIONS.match(name) and not NOT_INHERITED.match(name)
    }


def call(*command: str, text: str | None = None, clusters: str | None = None, within_s: float = COMMAND_S) -> Reply:
    """Run a program of SLURM, on `clusters` other than that of this machine if given, with `text` as its input."""
    program, *arguments = command
    where = [f"--clusters={clusters}"] if clusters else []
    try:
        process = subprocess.Popen(
            [program, *where, *arguments],
            # Without an input of its own a program could read what is typed for us.
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment(),
        )
    except OSError as error:
        return Reply(failed=f"{program}: {error.strerror}")
    with process:
        try:
            out, err = _communicate(process, text, program, within_s)
        except subprocess.TimeoutExpired:
            return Reply(failed=f"{program} has not answered in {within_s:g} s", silent=True)
        finally:
            process.kill()
    if process.returncode == 0:
        return Reply(out)
    said = one_line(err) if err.strip() else f"{program} ended with status {process.returncode}"
    return Reply(out, said, silent=bool(UNREACHED.search(said)))


def _communicate(process: subprocess.Popen, text: str | None, program: str, within_s: float) -> tuple[str, str]:
    """What it says, and after a while a line that it is waited for. Raises subprocess.TimeoutExpired."""
    try:
        return process.communicate(text, timeout=min(within_s, SAY_S))
    except subprocess.TimeoutExpired:
        if within_s <= SAY_S:
            raise
    print(f"waiting for {program}, {within_s:g} s at most", file=sys.stderr, flush=True)
    return process.communicate(timeout=within_s - SAY_S)


def ask(*command: str, clusters: str | None = None) -> str | None:
    """What a program prints; None if it fails or does not answer."""
    return call(*command, clusters=clusters).text


def probe() -> Reply:
    """Whether sbatch is there and finds its configuration."""
    if shutil.which("sbatch") is None:
        return Reply(failed="there is no sbatch here")
    found = call("sbatch", "--version", within_s=PROBE_S)
    # Of several lines the last one says what it came to: "Could not establish a configuration source".
    return replace(found, failed=found.failed.split("; ")[-1]) if found.failed else found


def inside_a_job() -> bool:
    """Whether this is an allocation of SLURM already."""
    return "SLURM_JOB_ID" in os.environ


def ignored() -> str | None:
    """One line on what the surroundings say of jobs, and what was made of it; None where they say nothing."""
    said = []
    # SBATCH_MEM_BIND...: SLURM's own, in every job.
    names = sorted(name for name in os.environ if re.match("SBATCH_(?!MEM_BIND)|SLURM_(CLUSTERS|HINT)$", name))
    if names:
        keys = dict.fromkeys(KEYS.get(name.partition("_")[2], "additional") for name in names)
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        said.append(f"not taken from the environment: {shown} (say it in the cluster file: {', '.join(keys)})")
    if (file := Path(os.path.expanduser("~")) / ".slurm" / "defaults").is_file():
        said.append(f"{file} may add to what the cluster file says, where this site reads it")
    return "; ".join(said) or None


def one_line(words: object) -> str:
    """SLURM's words without the name of the program before each of them."""
    begin = "^((sbatch|squeue|scancel|scontrol|sinfo|error|fatal|allocation failure): )+"
    lines = [re.sub(begin, "", line).strip() for line in str(words).splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or type(words).__name__
