"""Facts survive what becomes of the machine, and a process that dies is no more than a fact."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection

import pytest

from bench.measure.gpu import facts as files
from bench.measure.gpu.helper import Gone, Helper


def test_a_fact_is_a_line(tmp_path, capsys):
    facts = files.Facts(tmp_path, began=time.time())
    facts.add("copy", per_s=3e12)
    facts.add("step", method="kd", top=[["x" * 500, 1, 2]])
    assert [fact["fact"] for fact in facts.read()] == ["copy", "step"]
    assert facts.read()[0] == {"fact": "copy", "at_s": facts.read()[0]["at_s"], "per_s": 3e12}
    assert max(map(len, capsys.readouterr().out.splitlines())) <= files.SHOWN


def test_a_torn_line_is_left_out_and_the_next_one_is_whole(tmp_path):
    facts = files.Facts(tmp_path, began=time.time())
    facts.add("copy", per_s=1.0)
    whole = facts.path.read_bytes()
    facts.path.write_bytes(whole + b'{"fact": "step", "ms"')  # a process killed as it wrote
    assert [fact["fact"] for fact in facts.read()] == ["copy"]
    facts.add("product", per_s=2.0)
    assert [fact["fact"] for fact in facts.read()] == ["copy", "product"]


def test_what_is_no_fact_is_left_out(tmp_path):
    path = tmp_path / "facts.jsonl"
    assert files.read(path) == []
    path.write_bytes(b'[1]\n{"kind": 1}\n\xff\xfe\n\n{"fact": 7}\n{"fact": "copy"}\n')
    assert files.read(path) == [{"fact": "copy"}]


@pytest.mark.parametrize(
    ("serve", "given", "word"),
    [
        (Connection.recv, (), "killed: no answer"),  # waits for ever
        (Connection.send, (lambda: None,), None),  # cannot even be started
        (Connection.close, (), "died"),  # answers nothing and ends
    ],
)
def test_a_process_that_does_not_answer_is_gone(serve, given, word):
    if word is None:
        with pytest.raises(Exception, match="pickle"):
            Helper(serve, *given)
        return
    helper = Helper(serve, *given)
    with pytest.raises(Gone, match=word):
        helper.receive(2.0 if "killed" in word else 60.0)
    assert not helper.process.is_alive()


def test_a_process_that_answers():
    helper = Helper(Connection.send, {"steps_per_s": 3.0})
    assert helper.receive(60.0) == {"steps_per_s": 3.0}
    helper.close()
    assert helper.process.exitcode == 0
