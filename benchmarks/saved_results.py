"""Results that are saved one by one in one file, so that a run that was stopped goes on behind the last of them."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lowrank_onnx import Config
from lowrank_onnx.accounting import versions
from lowrank_onnx.latency.machine import machine_key

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Size: TypeAlias = Literal["quick", "default", "full"]
"""How much is measured: enough to see that everything runs, what the tables need, all there is."""

QUIET_LOAD = 4.0
"""Load averages above this come from other processes: one measurement runs a few threads, and waits for them."""

SHARED = "The machine was shared: single times are longer than on a quiet one, ratios come from interleaved pairs"

SIZES: tuple[Size, ...] = ("quick", "default", "full")


class SavedResults:
    """Results by key in a JSON file, written in one step after each of them.

    Every result says in `size` how much was measured, in `seconds_taken` how long that took, and in `load` how many
    processes wanted a core of the machine at its end, the measured one among them.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}

    def __getitem__(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self._found[key]
        return found

    def has(self, key: str, size: Size) -> bool:
        """Whether a result is there that took as many samples, or more."""
        return key in self._found and SIZES.index(self._found[key]["size"]) >= SIZES.index(size)

    def put(self, key: str, result: DataclassInstance, seconds: float) -> None:
        """Keep a result, in place of one that was there."""
        self._found[key] = asdict(result) | {"seconds_taken": round(seconds, 1), "load": round(os.getloadavg()[0], 1)}
        self._place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._place.with_name(f".{self._place.name}.unfinished")
        ordered = dict(sorted(self._found.items()))
        unfinished.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(self._place)

    def part(self, prefix: str) -> list[dict[str, Any]]:
        """All results whose key starts so, by key."""
        return [self._found[key] for key in sorted(self._found) if key.startswith(prefix)]


def circumstances() -> dict[str, Any]:
    """Date, machine and versions, as every result has them."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": today, "machine": machine_key(Config().provider, None), "versions": versions()}


def measured_on(results: list[dict[str, Any]]) -> str:
    """One line: when, on what, with which versions, whether in a hurry, and whether beside other work."""
    dates, machines = (", ".join(sorted({result[name] for result in results})) for name in ("date", "machine"))
    newest: Mapping[str, Any] = max(results, key=lambda result: str(result["date"]))["versions"]
    versions = ", ".join(f"{name} {version}" for name, version in newest.items() if version)
    quick = " Part of it is from a quick run on few samples." if any(r["size"] == "quick" for r in results) else ""
    load = max((float(r.get("load", 0.0)) for r in results), default=0.0)
    shared = "" if load <= QUIET_LOAD else f" {SHARED} (load average up to {load:g})."
    return f"Measured on {dates}: {machines}; {versions}.{quick}{shared}"
