"""The SLURM executor: cluster files, what sbatch and squeue are asked, records of what was submitted, the job's task.

`submission` is what the driver calls. `task` runs inside a job and imports no torch.
"""
