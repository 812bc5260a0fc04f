"""From a grid to finished runs: plan, states, claims, the worker, the local queue; `drive` carries a plan out.

`slurm/` submits to a cluster and holds what runs inside a job, `carry/` packs a results folder and merges packs.
Imports `bench`; only `reproduce.py` imports this.
"""
