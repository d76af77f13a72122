"""Main memory: how much of it this process may still take, where the system tells, and giving it back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def available_memory(root: Path = _ROOT) -> int | None:
    """Bytes that can be taken without swapping: the least of what the system and each of its control groups leave.

    Read from Linux's ``/proc/meminfo`` (MemAvailable) and the memory controller of control groups, version 1 and 2.
    What a group holds of files that nobody reads just now counts as available, since the kernel gives it up first.

    Parameters
    ----------
    root : where ``proc`` and ``sys`` are mounted.

    Returns
    -------
    None where the system says none of this.
    """
    rooms = [room for room in (_system_room(root), *_group_rooms(root)) if room is not None]
    return min(rooms, default=None)


def _system_room(root: Path) -> int | None:
    kilobytes = _table(root / "proc/meminfo").get("MemAvailable:")
    return None if kilobytes is None else 1024 * kilobytes


def _group_rooms(root: Path) -> Iterator[int | None]:
    """What the process's control group leaves, and each group around it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            place, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            place = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the path may be the host's, which isn't there: then the mount point is the container's group.
        group = place / path.strip().lstrip("/")
        for one in (group, *group.parents):
            yield _group_room(one, *names)
            if one == place:
                break


def _group_room(group: Path, limit_name: str, usage_name: str, idle_name: str) -> int | None:
    limit, usage = _text(group / limit_name).strip(), _text(group / usage_name).strip()
    if not limit.isdecimal() or not usage.isdecimal():  # "max", or no such group
        return None
    return max(0, int(limit) - int(usage) + _table(group / "memory.stat").get(idle_name, 0))


def _table(path: Path) -> dict[str, int]:
    """The first number of each line, by the word before it."""
    words = (line.split() for line in _text(path).splitlines())
    return {found[0]: int(found[1]) for found in words if len(found) >= 2 and found[1].isdecimal()}


def _text(path: Path) -> str:
    """What is in a file; nothing where it can't be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def return_freed_memory() -> None:
    """Hand what was freed back to the system, where the C library keeps it.

    Measured with glibc 2.36: of what a session took, between none and all stays with the process when it is closed,
    and the next session uses only part of that.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
