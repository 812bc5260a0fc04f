"""Grouping of runs into job arrays, and what a cluster file makes each of them ask for. No SLURM needed."""

from __future__ import annotations

import random

import pytest

from bench import grid as grids
from jobs import plan
from jobs.slurm import arrays as group
from jobs.slurm import cluster as clusters
from jobs.slurm import given, records, scheduler, site
from jobs.slurm import submission as slurm
from tests import tiny
from zoo.errors import BadInput

GRID = tiny.GRID.replace("[resnet8-resnet8]", "[resnet8-resnet8, resnet20-resnet8, resnet20-resnet20]")


def make(tmp_path, settings: str = "", seeds: int = 3):
    """A grid of 2 teachers (both students, too), 3 pairs, the order of its plan, and what its jobs ask for."""
    grid = grids.expand(grids.load(str(tiny.write(tmp_path / "grid", GRID))), seeds=list(range(seeds)))
    (tmp_path / "cluster.yaml").write_text("gpus: 0\n" + settings)
    wanted = clusters.load(str(tmp_path / "cluster.yaml")).of_all(grid)
    return grid, plan.make(grid, tmp_path / "out").to_do, wanted


def outline(grid, made: list[group.Array]) -> list[tuple]:
    """(teacher to wait for, runs of each task) of each array."""
    return [(array.after and grid.runs[array.after].student, [*map(len, array.runs)]) for array in made]


def sizes(array: group.Array) -> list[list[int]]:
    """The sizes of the cohorts of each task."""
    return [[*map(len, task)] for task in array.tasks]


def test_one_array_for_the_first_and_one_for_each_teachers_students(tmp_path):
    grid, order, wanted = make(tmp_path, "together: 1")
    made = group.arrays(grid, order, wanted, ready=(), most_tasks=1001)
    first, *others = outline(grid, made)
    assert first == (None, [1] * 6)  # the teachers, which are Student rows, too, and the other seeds of these
    assert dict(others) == {"resnet20": [1] * 12, "resnet8": [1] * 6}


def test_a_task_is_a_cohort(tmp_path):
    """Runs of one teacher and seed; a teacher alone, although Student rows of its seed could share with it."""
    grid, order, wanted = make(tmp_path)
    made = group.arrays(grid, order, wanted, ready=(), most_tasks=1001)
    first, *others = outline(grid, made)
    assert first == (None, [1, 1, 2, 2])  # two teachers, and the Student rows of two other seeds
    assert dict(others) == {"resnet20": [4, 4, 4], "resnet8": [2, 2, 2]}
    for task in (task for array in made for task in array.tasks):
        assert len(task) == 1 and len({grid.runs[run_id].seed for run_id in task[0]}) == 1


def test_at_most_so_many_together_and_so_many_in_a_job(tmp_path):
    def students(settings: str) -> list[list[int]]:
        grid, order, wanted = make(tmp_path, settings)
        made = group.arrays(grid, order, wanted, ready=(), most_tasks=1001)
        mine = [array for array in made if array.after and grid.runs[array.after].student == "resnet20"]
        return [task for array in mine for task in sizes(array)]

    assert students("") == [[4], [4], [4]]
    assert students("together: 3") == [[2]] * 6  # four are halved, not cut three and one
    assert students("together: 1\nruns_per_job: 3") == [[1, 1, 1]] * 4  # as before there were cohorts
    assert students("runs_per_job: 3") == [[4], [4], [4]]  # a cohort is never cut for it
    assert students("runs_per_job: 9") == [[4, 4], [4]]
    assert students("together: 2\nruns_per_job: 6") == [[2, 2, 2], [2, 2, 2]]
    assert sorted(students("classes: [{match: {method: kd}, together: 1}]")) == [[1]] * 6 + [[2]] * 3


def test_students_of_ready_teachers_wait_for_nothing(tmp_path):
    grid, order, wanted = make(tmp_path, "together: 1")
    teachers = {run.teacher.run_id for run in grid.runs.values() if run.teacher}
    students = [run_id for run_id in order if grid.runs[run_id].teacher]
    assert outline(grid, group.arrays(grid, students, wanted, ready=teachers, most_tasks=1001)) == [(None, [1] * 18)]
    (small,) = (teacher for teacher in teachers if grid.runs[teacher].student == "resnet8")
    made = group.arrays(grid, students, wanted, ready={small}, most_tasks=5)
    assert sorted(map(str, outline(grid, made))) == [
        "('resnet20', [1, 1, 1, 1, 1])",
        "('resnet20', [1, 1, 1, 1, 1])",
        "('resnet20', [1, 1])",
        "(None, [1, 1, 1, 1, 1])",
        "(None, [1])",
    ]


def test_classes_have_arrays_of_their_own_and_share_no_task(tmp_path):
    text = """\
together: 1
runs_per_job: 4
classes: [{match: {method: kd, student: resnet8}, mem_gb: 4}, {match: {method: teacher}, qos: long}]
"""
    grid, order, wanted = make(tmp_path, text)
    made = group.arrays(grid, order, wanted, ready=(), most_tasks=1001)
    found = {
        (a.resources.qos, a.resources.mem_gb, a.after and grid.runs[a.after].student): sorted(map(len, a.runs))
        for a in made
    }
    assert found == {
        ("long", None, None): [1, 1],
        (None, None, None): [4],  # seeds 1 and 2 of resnet8 and resnet20
        (None, 4.0, "resnet8"): [3],
        (None, None, "resnet8"): [3],
        (None, 4.0, "resnet20"): [3],
        (None, None, "resnet20"): [1, 4, 4],
    }


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_asked(tmp_path, seed):
    """Every run once; teachers before their students and alone; a task's runs share teacher and resources."""
    chance = random.Random(seed)
    text = f"runs_per_job: {chance.randint(1, 5)}\ntogether: {chance.choice(['null', 1, 2, 3])}\nclasses:\n"
    for _ in range(3):
        text += f"- match: {{{chance.choice(['method: kd', 'teacher: resnet20', 'student: [resnet8, resnet20]'])}}}\n"
        text += f"  {chance.choice(['mem_gb', 'timeout_min', 'runs_per_job', 'together'])}: {chance.randint(10, 12)}\n"
    grid, order, wanted = make(tmp_path, text, seeds=chance.randint(1, 4))
    teachers = {run.teacher.run_id for run in grid.runs.values() if run.teacher}
    done = {teacher for teacher in teachers if chance.random() < 0.5}
    order = [run_id for run_id in order if run_id not in done and (run_id in teachers or chance.random() < 0.8)]
    most = chance.randint(1, 7)
    made = group.arrays(grid, order, wanted, ready=done, most_tasks=most)
    assert sorted(run_id for array in made for task in array.runs for run_id in task) == sorted(order)
    seen: set[str] = set()
    for array in made:
        assert 1 <= len(array.tasks) <= most and (array.after is None or array.after in seen)
        for cohorts, task in zip(array.tasks, array.runs, strict=True):
            assert len(cohorts) == 1 or len(task) <= array.resources.runs_per_job
            for cohort in cohorts:
                assert 1 <= len(cohort) <= (array.resources.together or 1000)
                assert len({grid.runs[run_id].seed for run_id in cohort}) == 1
            assert len(task) == 1 or not teachers & set(task)
            (teacher,) = {run.teacher.run_id if (run := grid.runs[run_id]).teacher else None for run_id in task}
            assert array.after == (teacher if teacher not in done else None)
            assert all(wanted[run_id] == array.resources for run_id in task)
            seen.update(task)


def test_classes_are_laid_over_the_settings_in_their_order(tmp_path):
    text = """\
partition: main
timeout_min: 60
classes:
- match: {student: resnet8}
  timeout_min: 10
  partition: small
- match: {method: [kd, fitnet], teacher: resnet20}
  timeout_min: 90
"""
    grid, _, wanted = make(tmp_path, text)
    asked = {
        (run.method, run.teacher and run.teacher.arch, run.student): (wanted[r].partition, wanted[r].timeout_min)
        for r, run in grid.runs.items()
    }
    assert asked["vanilla", None, "resnet8"] == ("small", 10)
    assert asked["kd", "resnet8", "resnet8"] == ("small", 10)
    assert asked["kd", "resnet20", "resnet8"] == ("small", 90)
    assert asked["kd", "resnet20", "resnet20"] == ("main", 90)
    assert asked["vanilla", None, "resnet20"] == ("main", 60)


def test_the_example_is_a_cluster_file(tmp_path):
    """Every key it may hold is in it, so that it can be copied and cut."""
    example = clusters.load("example")
    text = (clusters.FOLDER / "example.yaml").read_text()
    assert all(f"{name}:" in text for name in clusters.Cluster.model_fields)
    grid, *_ = make(tmp_path)
    assert {found.timeout_min for found in example.of_all(grid).values()} == {240, 360}


def test_the_command_line_goes_before_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("together: 4\nclasses: [{match: {method: kd}, together: 2, hung_min: 5}]")
    grid, *_ = make(tmp_path)
    file = clusters.load(str(tmp_path / "c.yaml"))
    assert {(one.together, one.hung_min) for one in file.of_all(grid).values()} == {(4, 15.0), (2, 5.0)}
    instead = file.of_all(grid, together=1, hung_min=None).values()
    assert {(one.together, one.hung_min) for one in instead} == {(1, 15.0), (1, 5.0)}


def test_without_a_gpu(tmp_path):
    grid, *_ = make(tmp_path)
    assert {found.gpus for found in clusters.load(None).of_all(grid).values()} == {1}
    none = clusters.load(None).of_all(grid, device="cpu").values()
    assert {found.gpus for found in none} == {0} and {clusters.device(found, "auto") for found in none} == {"cpu"}
    assert clusters.device(clusters.load(None), "auto") == "cuda"


def test_time_limits_as_slurm_writes_them():
    limits = {"01:00:00": 60, "1-00:00:00": 1440, "2-12:30:00": 3630, "00:00:30": 1, "UNLIMITED": 10080}
    assert {text: site.in_minutes(text) for text in limits} == limits


def test_additional_options_keep_their_names(tmp_path):
    (tmp_path / "c.yaml").write_text("additional: {exclude: 'n[1-2]', mail_type: END, exclusive: true, nice: 5}")
    options = scheduler._parameters(clusters.load(str(tmp_path / "c.yaml")), "kd-x", tmp_path, None)
    assert options["additional_parameters"].items() >= {"mail-type": "END", "exclusive": True, "nice": 5}.items()
    (tmp_path / "c.yaml").write_text("additional: {no_requeue: true}")
    with pytest.raises(BadInput, match='"no-requeue" has no place'):
        clusters.load(str(tmp_path / "c.yaml"))


def test_what_a_limit_leaves_room_for_is_submitted(tmp_path, monkeypatch):
    """A user may have 10 jobs in the queue: arrays are halved until they fit, teachers first, the rest is for later."""
    grid, _, wanted = make(tmp_path, "together: 1")
    taken: list[tuple[str, ...]] = []

    def submit(folder, name, tasks, resources, code, after):
        if sum(map(len, taken)) + len(tasks) > 10:
            raise scheduler.Refused("Job violates accounting/QOS policy (job submit limit, user's size and/or time)")
        taken.append(tuple(f"{len(taken)}_{index}" for index in range(len(tasks))))
        return taken[-1], None

    monkeypatch.setattr(scheduler, "submit", submit)
    monkeypatch.setattr(
        scheduler, "queue", lambda found: {job: scheduler.Job("", "PENDING") for t in taken for job in t}
    )
    monkeypatch.setattr(site, "max_array_size", lambda clusters: 1001)
    monkeypatch.setattr(given, "differences", lambda job, wanted: None)
    out = tmp_path / "out"

    def call() -> list[str]:
        with slurm.desk(out) as desk:
            return list(desk.submit(plan.make(grid, out), wanted, device="auto", data_root=None))

    said = call()
    assert [len(jobs) for jobs in taken] == [6, 3, 1] and "takes no more" in said[-1] and "other 14 runs" in said[-1]
    assert [run_id for run_id in records.submitted(out) if not grid.runs[run_id].teacher] != []
    assert len(call()) == 1 and sum(map(len, taken)) == 10  # still full: nothing is submitted, nothing twice
    with pytest.raises(BadInput, match="SLURM refuses the job: Job violates"):
        taken[:] = [("9_0",) * 10]  # another folder's
        call()


def test_names_in_match_may_be_as_papers_print_them(tmp_path):
    """And several with commas between them."""
    path = tmp_path / "c.yaml"
    path.write_text("classes:\n  - {match: {method: 'KD, ReviewKD', student: ResNet-8x4}, mem_gb: 3}\n")
    (entry,) = clusters.load(str(path)).classes
    assert (entry.match.method, entry.match.student) == (["kd", "reviewkd"], ["resnet8x4"])
