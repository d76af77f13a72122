from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lowrank_onnx.evaluate.memory import available_memory, return_freed_memory

MEMINFO = "MemTotal:       16384000 kB\nMemFree:          100000 kB\nMemAvailable:    8000000 kB\n"
SYSTEM_BYTES = 8_000_000 * 1024


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    return root


def test_without_control_groups_the_system_decides(tmp_path: Path) -> None:
    assert available_memory(write(tmp_path, {"proc/meminfo": MEMINFO})) == SYSTEM_BYTES


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    assert available_memory(write(tmp_path, {"proc/meminfo": "MemAvailable: lots kB\n\n"})) is None


def group_v2(limit: str, usage: int, idle: int, path: str = "job") -> dict[str, str]:
    place = f"sys/fs/cgroup/{path}".rstrip("/")
    return {
        f"{place}/memory.max": f"{limit}\n",
        f"{place}/memory.current": f"{usage}\n",
        f"{place}/memory.stat": f"anon 5\nfile 7\ninactive_file {idle}\n",
    }


def test_a_group_of_version_2_leaves_what_is_below_its_limit_and_idle_files(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/job\n", **group_v2("5000", 3000, 400)}
    assert available_memory(write(tmp_path, files)) == 2400


def test_no_limit_is_none(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/job\n", **group_v2("max", 3000, 400)}
    assert available_memory(write(tmp_path, files)) == SYSTEM_BYTES


def test_the_groups_around_it_count_too(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/job/step\n",
        **group_v2("9000", 1000, 0),
        **group_v2("max", 1000, 0, "job/step"),
    }
    assert available_memory(write(tmp_path, files)) == 8000


def test_in_a_container_the_mount_point_is_the_group(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/kubepods/pod1/abc\n",
        **group_v2("7000", 1000, 0, ""),
    }
    assert available_memory(write(tmp_path, files)) == 6000


def test_a_group_of_version_1(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/job\n0::/\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "6000\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "5500\n",
        "sys/fs/cgroup/memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 100\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "100000\n",
    }
    assert available_memory(write(tmp_path, files)) == 600


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/job\n", **group_v2("100", 3000, 0)}
    assert available_memory(write(tmp_path, files)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells")
def test_this_system_leaves_something() -> None:
    found = available_memory()
    assert found is not None
    assert found > 0
    return_freed_memory()  # harmless at any time
