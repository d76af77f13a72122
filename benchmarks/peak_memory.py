"""The most memory that a command takes."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path


def peak_memory(command: list[str]) -> int:
    """Bytes of the largest resident set of a command, as Linux keeps it for the process.

    What the parent gets from the kernel at the end is no less than the parent's own, so the process is watched.

    Raises
    ------
    RuntimeError
        The command failed.
    """
    process = subprocess.Popen(command)
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        found = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        peak = peak if found is None else int(found.split()[1]) * 1024
        time.sleep(0.01)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}")
    return peak
