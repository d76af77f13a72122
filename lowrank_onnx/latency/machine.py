"""What a measured time depends on beside what was measured: the machine, the runtime and their versions."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

from lowrank_onnx import __version__
from lowrank_onnx.evaluate.session import DISTRIBUTIONS
from lowrank_onnx.installed import installed_version
from lowrank_onnx.provider import Provider


def machine_key(provider: Provider | str, threads: int | None) -> str:
    """What a time depends on beside the node: the machine, the provider, the versions and the number of threads.

    Readable, on one line. The processor is told by name, family, model and stepping and the number of cores that this
    process may use; NVIDIA GPUs by what their driver says of them, where the provider isn't the CPU's.
    """
    asked = Provider(provider) if isinstance(provider, str) else provider
    name = asked.name.casefold().removesuffix("executionprovider")
    parts = [
        f"{_processor()} ({platform.system()} {platform.machine()})",
        f"cores {_usable_cores()} of {os.cpu_count()}",
        f"provider {name}",
        *(f"option {option}={value}" for option, value in asked.options),
        *(() if name == "cpu" else (f"gpus {_gpus()}",)),
        _runtime_versions(),
        f"threads {'default' if threads is None else threads}",
        f"lowrank-onnx {__version__}",
    ]
    return "; ".join(parts)


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


@cache
def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        return platform.processor() or "unknown processor"
    facts: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip().casefold(), value.strip())
    wanted = ("model name", "cpu family", "model", "stepping", "cpu implementer", "cpu part", "cpu variant")
    return " ".join(facts[name] for name in wanted if facts.get(name)) or platform.processor() or "unknown processor"


@cache
def _gpus() -> str:
    found = [os.environ.get("CUDA_VISIBLE_DEVICES", "all")]
    try:
        for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
            lines = path.read_text(errors="replace").splitlines()
            found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
        found += Path("/proc/driver/nvidia/version").read_text(errors="replace").splitlines()[:1]
    except OSError:
        found.append("unknown")
    return ", ".join(" ".join(fact.split()) for fact in found)


@cache
def _runtime_versions() -> str:
    # By name: to look for them among all that is installed takes as long as to time a weight.
    found = [f"{name} {version}" for name in DISTRIBUTIONS if (version := installed_version(name)) is not None]
    return ", ".join(found) or "no onnxruntime"
