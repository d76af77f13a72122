"""Runs that don't end well: killed at any moment, or out of room. What was there before is whole; litter goes."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowrank_onnx.model_io import load_model
from tests.tiny_model import write_classifier

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and limits of POSIX")

_LIMITED = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); "
_RUN = "from lowrank_onnx.cli import main; sys.exit(main(sys.argv[1:]))"


def command(source: Path, target: Path, *options: str) -> list[str]:
    budget = ["--keep-params", "0.6", "--objective", "size", "--no-validate", "--force"]
    return ["compress", str(source), "-o", str(target), *budget, *options]


@pytest.mark.parametrize("limit", [300, 20_000])
@pytest.mark.parametrize("calibrated", [False, True])
def test_no_room_for_scratch_files_is_said_plainly(limit: int, calibrated: bool, tmp_path: Path) -> None:
    source, feeds = write_classifier(tmp_path)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "small.onnx"
    target.write_bytes(b"before")
    options = ["--calib", str(feeds)] if calibrated else []
    code = _LIMITED.format(limit) + _RUN
    done = subprocess.run(
        [sys.executable, "-c", code, *command(source, target, *options)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "can't be written" in done.stderr
    assert [path.name for path in target.parent.iterdir()] == ["small.onnx"]
    assert target.read_bytes() == b"before"


def check_kills(count: int, tmp_path: Path) -> None:
    source, _ = write_classifier(tmp_path)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "small.onnx"
    run = [sys.executable, "-m", "lowrank_onnx", *command(source, target)]
    start = time.monotonic()
    assert subprocess.run(run, capture_output=True, check=False).returncode == 0
    seconds = time.monotonic() - start
    generator = random.Random(0)
    killed = 0
    for attempt in range(count):
        before = target.read_bytes()
        process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds * (attempt + generator.random()) / count)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        assert target.read_bytes() == before  # the result is the same each time, so a new one can't be told
        left = [path.name for path in target.parent.iterdir() if path != target]
        assert all(name.endswith(".lowrank-tmp") for name in left)
    assert killed >= 1
    assert subprocess.run(run, capture_output=True, check=False).returncode == 0
    assert [path.name for path in target.parent.iterdir()] == ["small.onnx"]
    assert load_model(target).file_bytes == target.stat().st_size


def test_a_killed_run_leaves_what_was_there(tmp_path: Path) -> None:
    check_kills(3, tmp_path)


@pytest.mark.slow
def test_runs_killed_at_many_moments(tmp_path: Path) -> None:
    check_kills(40, tmp_path)
