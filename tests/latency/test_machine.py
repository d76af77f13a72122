from __future__ import annotations

import os
from importlib import metadata

import pytest

from lowrank_onnx import __version__
from lowrank_onnx.latency import machine
from lowrank_onnx.latency.machine import machine_key


def test_it_names_everything_that_a_time_depends_on() -> None:
    parts = machine_key("CPUExecutionProvider", 3).split("; ")
    assert f"onnxruntime {metadata.version('onnxruntime')}" in parts
    assert {"provider cpu", "threads 3", f"lowrank-onnx {__version__}"} <= set(parts)
    assert any(part.endswith(f" of {os.cpu_count()}") for part in parts)


def test_it_is_one_line_and_the_same_each_time() -> None:
    assert machine_key("cpu", None) == machine_key("cpu", None)
    assert machine_key("cuda", 2).isprintable()


def test_both_spellings_of_a_provider_are_one() -> None:
    assert machine_key("cpu", 1) == machine_key("CPUExecutionProvider", 1)


def test_each_part_makes_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [machine_key("cpu", 1), machine_key("cpu", 2), machine_key("cpu", None), machine_key("cuda", 1)]
    for name, value in {
        "_processor": lambda: "another processor",
        "_usable_cores": lambda: 4096,
        "_runtime_versions": lambda: "onnxruntime 0.0.1",
        "__version__": "0.0.0",
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(machine, name, value)
            keys.append(machine_key("cpu", 1))
    assert len(set(keys)) == len(keys)


def test_gpus_count_for_their_provider_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = machine_key("cpu", 1), machine_key("cuda", 1)
    monkeypatch.setattr(machine, "_gpus", lambda: "another GPU")
    assert machine_key("cpu", 1) == cpu
    assert machine_key("cuda", 1) != cuda
