"""Several processes that step on one device at the same time, as the slots of the local executor do."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from bench.measure.gpu.facts import one_line
from bench.measure.gpu.helper import Gone, Helper, requests
from bench.measure.gpu.trial import run_of, stepper
from bench.measure.step_cost import now
from bench.training.capture import own_stream

READY_S = 60.0  # for a process to start, build its networks and warm up
WARM_UP = {"cuda": 10, "cpu": 1}
BLOCK = {"cuda": 10, "cpu": 1}  # steps between two looks at the clock


class Processes:
    """As many processes as asked for; some of them step, the others wait."""

    def __init__(self, number: int, device: torch.device, pair: str) -> None:
        self.number, self.given = number, (str(device), pair)
        self.helpers: list[Helper] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *given: object) -> None:
        for helper in self.helpers:
            helper.close()

    def rate(self, count: int, batch: int, precision: str, seconds: float) -> float:
        """KD steps per second of `count` processes in total. RuntimeError where one of them fails."""
        if not self.helpers:  # all at once, and not before they are needed
            self.helpers = [Helper(serve, *self.given) for _ in range(self.number)]
        taken = self.helpers[:count]
        try:
            for request, patience_s in (("ready", READY_S), ("go", READY_S + seconds)):
                for helper in taken:
                    helper.send((request, batch, precision, seconds))
                answers = [helper.receive(patience_s) for helper in taken]
                failed = [answer for answer in answers if isinstance(answer, str)]
                if failed:
                    raise RuntimeError(failed[0])
        except Gone as error:
            raise RuntimeError(f"a process {error}") from None
        return sum(answers)


def serve(connection: Connection, device_name: str, pair: str) -> None:
    """Answer with steps per second, or with what went wrong as text: first get ready, then, all at once, go."""
    device, ready = torch.device(device_name), None
    if device.type == "cpu":
        torch.set_num_threads(1)
    with own_stream(device):
        for request, batch, precision, seconds in requests(connection):
            try:
                if request == "ready":
                    ready = None  # its memory goes first
                    ready = _stepping(device, pair, batch, precision)
                    connection.send(0.0)
                else:
                    connection.send(_rate(ready, device, seconds))
            except Exception as error:
                connection.send(one_line(error))


def _stepping(device: torch.device, pair: str, batch: int, precision: str) -> Callable[[int], None]:
    """Takes so many steps of a KD run, warmed up."""
    step = stepper([run_of("kd", pair, batch, precision)], device)

    def take(count: int) -> None:
        for _ in range(count):
            step()
        now(device)

    take(WARM_UP[device.type])
    return take


def _rate(take: Callable[[int], None], device: torch.device, seconds: float) -> float:
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        take(BLOCK[device.type])
        done += BLOCK[device.type]
    return done / (time.perf_counter() - started)
