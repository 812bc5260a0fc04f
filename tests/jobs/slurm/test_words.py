"""Cluster files as people copy them from their site's pages: taken, or refused in one line that says what to write."""

from __future__ import annotations

import pytest

from jobs.slurm import cluster as clusters
from zoo.errors import BadInput


def load(tmp_path, text: str) -> clusters.Cluster:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return clusters.load(str(path))


TAKEN = {  # what is written -> key, value
    "timeout_min: 90": ("timeout_min", 90),
    'timeout_min: "90"': ("timeout_min", 90),
    "timeout_min: 1-00:00:00": ("timeout_min", 1440),
    "timeout_min: 2:00:00": ("timeout_min", 120),
    "timeout_min: 02:00:30": ("timeout_min", 121),
    "timeout_min: 24:00:00": ("timeout_min", 1440),
    "timeout_min: 3-12": ("timeout_min", 84 * 60),
    "timeout_min: 1-06:30": ("timeout_min", 30 * 60 + 30),
    "timeout_min: 12h": ("timeout_min", 720),
    "mem_gb: 16": ("mem_gb", 16),
    "mem_gb: 16G": ("mem_gb", 16),
    "mem_gb: 64gb": ("mem_gb", 64),
    "mem_gb: 1.5T": ("mem_gb", 1536),
    "mem_gb: 16384M": ("mem_gb", 16),
    "cpus-per-task: 8": ("cpus_per_task", 8),
    "gpus: 2": ("gpus", 2),
    "gpus: a100:1": ("gpus", "a100:1"),
    "gpus: a100": ("gpus", "a100:1"),
    "gpus: gpu:2": ("gpus", 2),
    "gpus: gpu:3090:1": ("gpus", "3090:1"),
    "gpus: 1g.10gb:1": ("gpus", "1g.10gb:1"),
    "gres: gpu:a100:1": ("gpus", "a100:1"),
    "gres: gpu:1": ("gpus", 1),
    "gres: gres:gpu:A100_80GB:4": ("gpus", "A100_80GB:4"),
    "gpus_per_node: v100:1": ("gpus", "v100:1"),
    "gpus-per-task: 1": ("gpus", 1),
    "additional: {gres: 'gpu:a100:1'}": ("gpus", "a100:1"),
    "additional: {--gpus-per-node: a100:1}": ("gpus", "a100:1"),
    "additional: {-G: 2}": ("gpus", 2),
    "additional: {--nodelist: n1}": ("additional", {"nodelist": "n1"}),
    "additional: {-w: n1}": ("additional", {"nodelist": "n1"}),
    "account: 1234567": ("account", "1234567"),
    "partition: 7": ("partition", "7"),
    "partition: gpu, gpu-long": ("partition", "gpu,gpu-long"),
    "partition: [gpu, gpu-long]": ("partition", "gpu,gpu-long"),
    "clusters: big": ("clusters", "big"),
    "constraint: a100|h100": ("constraint", "a100|h100"),
    "setup: |\n  module load cuda\n  conda activate kd\n": ("setup", ["module load cuda", "conda activate kd"]),
    "setup: module load cuda": ("setup", ["module load cuda"]),
    "setup:\n  - module load cuda\n": ("setup", ["module load cuda"]),
    "# partition: gpu\n# gpus: 1\n": ("gpus", 1),
    "": ("partition", None),
    "gpus:\nsetup:\nadditional:\npartition:\n": ("gpus", 1),
    "additional: {exclusive: }": ("additional", {"exclusive": True}),
}
REFUSED = {  # what is written -> what the line must hold
    "timeout_min: 10:30": "write 11 for minutes, 10:30:00 for hours",
    "timeout_min: soon": "write minutes (240), 4:00:00 or 1-00:00:00",
    "mem_gb: lots": "write gigabytes (16), 16G or 16000M",
    "gpus: a100:b": "write gpus: 1, or with the type gpus: a100:1",
    "gpus: 1.5": "is no number of GPUs",
    "gpus: -1": "is no number of GPUs",
    "requeue: true": '"requeue" has no place in a cluster file: submission sets it',
    "job_name: x": "submission sets it",
    "gpus: a100:65": "64 GPUs at most",
    "gpus: 0\nadditional: {gres: 'gpu:a100:1'}": "contradict each other: write gpus: a100:1",
    "gpus: 1\ngres: gpu:2": 'gpus: 1 and "gres: gpu:2" contradict each other: write gpus: 2 and leave gres out',
    "gpus: 1\ntimeout-min: 5\ntimeout_min: 6": '"timeout_min" says again what "timeout_min" is for',
    "additional: {gres: 'gpu:a100:1,gpu:v100:1'}": "several types",
    "account: true": '"account" true is no name',
    "account: a b": '"account" "a b" is no name',
    "clusters: all": "write their names",
    "setup: |\n  #SBATCH --time=10\n  true\n": "options of a job are keys",
    "time: 24:00:00": "write timeout_min: 24:00:00",
    "walltime: 4:00:00": "write timeout_min: 4:00:00",
    "-t: 60": "write timeout_min: 60",
    "mem: 16G": "write mem_gb: 16G",
    "mem: 16000": "write mem_gb: 16000M",
    "cpus: 4": "write cpus_per_task: 4",
    "-c: 4": "write cpus_per_task: 4",
    "ntasks: 4": "a job is one task on one node",
    "nodes: 1": "a job is one task on one node",
    "queue: gpu": "write partition: gpu",
    "--partition: gpu": "write partition: gpu",
    "cluster: big": "write clusters: big",
    "nodelist: n1": "write additional: {nodelist: n1}",
    "exclusive: true": "write additional: {exclusive: true}",
    "mail_user: a@b.org": "write additional: {mail_user:",
    "partitoin: gpu": 'did you mean "partition"',
    "additional: {wait: true}": '"wait" has no place in additional',
    "additional: {-M: big}": "use clusters",
    "classes: [{match: {method: kd}, time: 60}]": 'classes, number 1: unknown key "time": write timeout_min: 60',
}


@pytest.mark.parametrize("text", TAKEN)
def test_taken(tmp_path, text):
    key, value = TAKEN[text]
    assert getattr(load(tmp_path, text), key) == value


@pytest.mark.parametrize("text", REFUSED)
def test_refused_with_the_remedy(tmp_path, text):
    with pytest.raises(BadInput) as error:
        load(tmp_path, text)
    said = str(error.value)
    assert REFUSED[text] in said and said.startswith('cluster file "c.yaml"') and "\n" not in said, said


def test_other_resources_beside_gpus_stay(tmp_path):
    made = load(tmp_path, "additional: {gres: 'gpu:a100:1,nvme:100', nice: 5}")
    assert (made.gpus, made.additional) == ("a100:1", {"gres": "nvme:100", "nice": 5})
    part = load(tmp_path, "gres: shard:1")
    assert (part.gpus, part.additional, clusters.device(part, "auto")) == (0, {"gres": "shard:1"}, "cuda")


def test_how_many_and_of_which_type(tmp_path):
    asked = [load(tmp_path, f"gpus: {gpus}") for gpus in ("0", "2", "a100:4", "a100:0")]
    assert [(one.gpu_count, one.gpu_type) for one in asked] == [(0, None), (2, None), (4, "a100"), (0, None)]
    assert [clusters.device(one, "auto") for one in asked] == ["cpu", "cuda", "cuda", "cpu"]
