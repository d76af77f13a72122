"""Runs cases in a worker process, and notices where it dies or hangs."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CASE_SECONDS = 60.0
"""A case takes some 30 ms. One that takes this long hangs, on however slow a machine."""

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Finding:
    """What went wrong with one case."""

    number: int
    problem: str


@dataclass(slots=True)
class Worker:
    """A process that runs cases one after the other; a new one takes its place when it dies."""

    runtime: bool = False
    module: str = "tests.fuzz.worker"
    seconds: float = CASE_SECONDS
    _process: subprocess.Popen[str] | None = field(default=None, init=False)

    def run(self, number: int) -> list[Finding]:
        """Everything that went wrong with case `number`."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
        except BrokenPipeError:
            return [Finding(number, f"the process died: exit status {self.stop()}")]
        ready, _, _ = select.select([process.stdout], [], [], self.seconds)
        if not ready:
            self.stop()
            return [Finding(number, f"no answer within {self.seconds:.0f} s")]
        line = process.stdout.readline()
        if not line:
            return [Finding(number, f"the process died: exit status {self.stop()}")]
        return [Finding(number, problem) for problem in json.loads(line)]

    def stop(self) -> int:
        """End the process; returns its exit status, negative for a signal."""
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.stdin is not None:
            process.stdin.close()
        try:
            status = process.wait(1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        return status

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", self.module, *(["--runtime"] if self.runtime else [])]
        self._process = subprocess.Popen(
            command, cwd=_ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self._process


def run_campaign(
    worker: Worker, first: int, *, count: int | None, seconds: float, report: Callable[[int, list[Finding]], None]
) -> int:
    """Run the cases from number `first` on until `count` are done or `seconds` are over; returns how many were."""
    end, number = time.monotonic() + seconds, first
    try:
        while (count is None or number < first + count) and time.monotonic() < end:
            report(number, worker.run(number))
            number += 1
    finally:
        worker.stop()
    return number - first
