"""Results that are saved one by one, so that a run that was stopped goes on behind the last of them."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_onnx import Config
from lowrank_onnx.accounting import versions
from lowrank_onnx.latency.machine import machine_key

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def save(place: Path, result: DataclassInstance) -> None:
    """Write one result in one step. It says in `quick` whether it is from a short run."""
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_name(f".{place.name}.unfinished")
    unfinished.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    unfinished.replace(place)


def read(place: Path) -> dict[str, Any]:
    """One saved result."""
    found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return found


def is_saved(place: Path, quick: bool) -> bool:
    """Whether a result is there that is good enough: a full one, or a quick one where that is asked for."""
    return place.is_file() and (quick or not read(place)["quick"])


def circumstances() -> dict[str, Any]:
    """Date, machine and versions, as every result has them."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": today, "machine": machine_key(Config().provider, None), "versions": versions()}
