"""One thread a process: tests run side by side, and results on a CPU depend on the number of threads."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
# No test submits to a cluster that this machine may belong to; those that need one bring their own.
os.environ["SLURM_CONF"] = os.devnull
