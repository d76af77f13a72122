"""A compression in a process of its own that is killed while it writes an entry of its cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_DEADLY = """
import os, signal, sys
from importlib import import_module
from pathlib import Path
import lowrank_onnx
from lowrank_onnx import cache

place, left, module, name, prefix = sys.argv[1:]
real, left = cache.write_entry, int(left)

def deadly(stream, kind, key, entry):
    global left
    left -= kind.startswith(prefix)
    if left == 0:
        stream.write(b"half an entry")
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    real(stream, kind, key, entry)

cache.write_entry = deadly
home = Path(place)
config = getattr(import_module(module), name)
lowrank_onnx.compress(
    home / "model.onnx", config, feeds=home / "feeds.npz", output=home / "small.onnx", cache=home / "cache"
)
"""


def kill_at_entry(home: Path, entry: int, config: str, *, kinds: str = "") -> None:
    """Compress model.onnx of a directory to small.onnx, with feeds.npz and cache/ there, and be killed.

    Parameters
    ----------
    entry : which entry is half written then, counted from 1 among those whose kind begins with `kinds`.
    config : module:name of the options.
    """
    arguments = [sys.executable, "-c", _DEADLY, str(home), str(entry), *config.split(":"), kinds]
    killed = subprocess.run(arguments, cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr.decode()
