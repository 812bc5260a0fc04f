"""From a grid to finished runs: plan, states, claims, the worker, the local queue; `drive` carries a plan out.

`slurm/` submits to a cluster and holds what runs inside a job, `carry/` packs a results folder and merges packs.
Imports `bench`; only `reproduce.py` imports this.
"""

import os
import sys

if sys.argv[:1] == ["-m"] and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
    del sys.path[0]  # `python -m jobs.pack` looks for nothing in the working directory: see `bench/__init__.py`
