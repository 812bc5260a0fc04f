"""Claims: one live process a run; dead ones are taken over, live ones never, and a sleeper gives up."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from jobs import claims


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_foreign(folder, *, age_s=0.0, host="another-host", pid=1):
    folder.mkdir(exist_ok=True)
    path = folder / "claim.json"
    path.write_text(
        json.dumps(
            {
                "host": host,
                "boot": "elsewhere",
                "pid": pid,
                "started": "1",
                "progress": {"epoch": 3, "epochs": 9, "top1": 1.5},
            }
        )
    )
    os.utime(path, (time.time() - age_s,) * 2)


def test_held_by_a_live_process(tmp_path):
    claim = claims.acquire(tmp_path / "run")
    assert claim is not None and claims.acquire(tmp_path / "run") is None
    assert claims.read(tmp_path / "run").pid == os.getpid()
    claim.release()
    assert os.listdir(tmp_path / "run") == [] and claims.acquire(tmp_path / "run") is not None


def test_dead_process_on_this_host_is_taken_over_at_once(tmp_path):
    claim = claims.acquire(tmp_path / "run")
    claim.me["pid"] = dead_pid()
    claim.beat()
    holder = claims.read(tmp_path / "run")
    assert not holder.alive
    mine = claims.acquire(tmp_path / "run")
    assert mine.generation == 1
    with pytest.raises(claims.ClaimLost):
        claim.beat()  # had it only been asleep, it would notice
    claim.release()  # and its release takes nothing away
    assert claims.read(tmp_path / "run").alive
    mine.release()
    assert os.listdir(tmp_path / "run") == []


def test_reused_process_number_is_not_taken_for_the_claimant(tmp_path):
    claim = claims.acquire(tmp_path / "run")
    claim.me["started"] = "12345"
    claim.beat()
    assert not claims.read(tmp_path / "run").alive


def test_other_host_lives_by_its_heartbeat(tmp_path):
    write_foreign(tmp_path / "run", age_s=0.5 * claims.STALE_S)
    assert claims.read(tmp_path / "run").alive and claims.acquire(tmp_path / "run") is None
    write_foreign(tmp_path / "run", age_s=1.1 * claims.STALE_S)
    assert not claims.read(tmp_path / "run").alive and claims.acquire(tmp_path / "run").generation == 1


def test_damaged_claim_is_nobodys_unless_it_is_young(tmp_path):
    path = tmp_path / "run" / "claim.json"
    path.parent.mkdir()
    path.write_text('{"host": ')  # or half seen on a network disk: the next beat makes it whole
    assert claims.read(path.parent).alive and claims.acquire(path.parent) is None
    for age_s in (2 * claims.DAMAGED_S, -2 * claims.DAMAGED_S):
        os.utime(path, (time.time() - age_s,) * 2)
        assert not claims.read(path.parent).alive
    assert claims.acquire(path.parent).generation == 1


def test_a_claim_that_is_still_listed_and_gone(tmp_path, monkeypatch):
    """A network disk may list for some time what another host has removed."""
    monkeypatch.setattr(claims, "_newest", lambda folder: 0)
    assert claims.read(tmp_path) is None


def test_progress_of_the_dead_is_kept(tmp_path):
    write_foreign(tmp_path / "run", age_s=10 * claims.STALE_S)
    assert claims.read(tmp_path / "run").progress == {"epoch": 3, "epochs": 9, "top1": 1.5}
    claims.acquire(tmp_path / "run")
    assert claims.read(tmp_path / "run").progress == {"epoch": 3, "epochs": 9, "top1": 1.5}


def test_a_link_whose_answer_was_lost_is_ours(tmp_path, monkeypatch):
    link = os.link

    def asked_twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", asked_twice)  # as an NFS client does when the first answer does not arrive
    claim = claims.acquire(tmp_path / "run")
    assert claim is not None and os.listdir(tmp_path / "run") == ["claim.json"]
    claim.beat()
    assert claims.acquire(tmp_path / "run") is None


def _race(folder, start, won):
    start.wait()
    claim = claims.acquire(folder)
    if claim:
        won.put(claim.generation)
        time.sleep(1)  # stay alive, so that the others find a live claim


def _no_links(monkeypatch, number=errno.EOPNOTSUPP):
    def link(source, target):
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("stale_first", [False, True])
def test_of_many_exactly_one_gets_it(tmp_path, monkeypatch, stale_first, links):
    if not links:
        _no_links(monkeypatch)
    for attempt in range(5):
        folder = tmp_path / f"run{attempt}"
        if stale_first:
            write_foreign(folder, age_s=10 * claims.STALE_S)
        context = multiprocessing.get_context("fork")
        start, won = context.Event(), context.Queue()
        racers = [context.Process(target=_race, args=(folder, start, won)) for _ in range(8)]
        for racer in racers:
            racer.start()
        start.set()
        for racer in racers:
            racer.join()
        assert won.get(timeout=5) == (1 if stale_first else 0)
        assert won.empty()


def test_heartbeat_thread_refreshes_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.05)
    claim = claims.acquire(tmp_path / "run")
    os.utime(tmp_path / "run" / "claim.json", (0, 0))
    thread = claim.keep_alive()
    deadline = time.monotonic() + 5
    while (tmp_path / "run" / "claim.json").stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "run" / "claim.json").stat().st_mtime > 0
    claim.release()
    thread.join(timeout=5)
    assert not thread.is_alive() and os.listdir(tmp_path / "run") == []


def test_heartbeat_carries_what_is_measured_then(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.02)
    claim, asked = claims.acquire(tmp_path / "run"), []
    claim.keep_alive(lambda: asked.append(1) or {"ticks": len(asked), "device": "a GPU"})
    deadline = time.monotonic() + 5
    while claims.read(tmp_path / "run").progress.get("ticks", 0) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert claims.read(tmp_path / "run").progress["ticks"] >= 3
    assert claims.read(tmp_path / "run").progress["device"] == "a GPU"
    claim.release()


def test_progress_is_of_its_kind_or_left_out(tmp_path):
    write_foreign(tmp_path / "run")
    path = tmp_path / "run" / "claim.json"
    said = json.loads(path.read_text())
    odd = {"epoch": "3", "epochs": None, "top1": float("nan"), "left_s": float("inf"), "gpu": 3, "wall_s": 10**400}
    path.write_text(json.dumps({**said, "progress": {**odd, "device": "x", "step": 2}}))
    assert claims.read(tmp_path / "run").progress == {"device": "x", "step": 2}
    path.write_text(json.dumps({**said, "progress": [1]}))
    assert claims.read(tmp_path / "run").progress == {}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_a_disk_without_hard_links(tmp_path, monkeypatch, number):
    """Google Drive, gcsfuse, exFAT: a claim is whole as soon as it can be seen, held, beaten, taken over, given up."""
    _no_links(monkeypatch, number)
    folder = tmp_path / "run"
    folder.mkdir()
    assert claims.links_fault(folder) == os.strerror(number) and os.listdir(folder) == []
    claim = claims.acquire(folder)
    assert claims.read(folder).pid == os.getpid() and claims.acquire(folder) is None
    claim.me["pid"] = dead_pid()
    claim.beat()
    mine = claims.acquire(folder)
    assert mine.generation == 1
    mine.release()
    assert os.listdir(folder) == []


def test_a_disk_with_hard_links(tmp_path):
    assert claims.links_fault(tmp_path) is None and os.listdir(tmp_path) == []
    with pytest.raises(OSError):
        claims.links_fault(tmp_path / "none")


def test_a_link_that_fails_for_another_reason_is_no_disk_without(tmp_path, monkeypatch):
    _no_links(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError, match="space"):
        claims.acquire(tmp_path / "run")
    assert os.listdir(tmp_path / "run") == []


def test_a_claim_written_over_by_another_is_lost(tmp_path):
    """Disks that let two make the same file, and a sleeper whose successors have all come and gone."""
    first = claims.acquire(tmp_path / "run")
    (tmp_path / "run" / "claim.json").unlink()
    second = claims.acquire(tmp_path / "run")
    with pytest.raises(claims.ClaimLost):
        first.beat()
    first.release()  # takes nothing away
    second.check()
    assert claims.read(tmp_path / "run").alive


def test_a_folder_that_cannot_be_looked_at_is_no_progress_and_no_standstill(tmp_path, monkeypatch):
    claims.acquire(tmp_path / "run")
    watch = claims.Watch()
    watch.still_s(tmp_path / "run", 10.0)

    def fail(folder):
        raise OSError(errno.EIO, "Input/output error", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fail)
        watch._looked -= 10
        assert watch.still_s(tmp_path / "run", 10.0) == 0.0
    assert watch.still_s(tmp_path / "run", 10.0) < 1.0
