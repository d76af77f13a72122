"""The versioned JSON report: strict JSON, keys in a fixed order, written atomically.

Documented in docs/report-schema.md; docs/report-schema.json is the schema that `lowrank_onnx.report.schema` derives
from the same dataclasses.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from lowrank_onnx.config import Alpha, Energy, FixedRank, KeepBytes, KeepMacs, KeepParams, MaxDrop, MaxError, Speedup
from lowrank_onnx.metric import Metric
from lowrank_onnx.report.escape import encodable
from lowrank_onnx.report.tables import budget_flag
from lowrank_onnx.report.written import write_text
from lowrank_onnx.results import CompressionResult, DemoRow, InspectResult, SweepResult
from lowrank_onnx.types import LatencyComparison, MetricComparison, Verdict

SCHEMA = "lowrank-onnx/report/1"
"""Name and version of the format. The number goes up when a field changes its meaning or goes away."""

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

COMPUTED: Mapping[type, tuple[str, ...]] = {
    Verdict: ("passed", "relative_error"),
    LatencyComparison: ("faster",),
    MetricComparison: ("drop",),
}
"""Properties that stand in the report beside the fields of their dataclass."""

OMITTED: Mapping[type, tuple[str, ...]] = {CompressionResult: ("model",), Metric: ("function",)}
"""Fields that are no part of a report."""


def compress_document(result: CompressionResult) -> dict[str, Json]:
    """The report of one compression."""
    return _document("compress", result)


def inspect_document(result: InspectResult) -> dict[str, Json]:
    """The report of one inspection."""
    return _document("inspect", result)


def validate_document(original: str, candidate: str, verdict: Verdict) -> dict[str, Json]:
    """The report of one comparison of two models."""
    head: dict[str, Json] = {"schema": SCHEMA, "kind": "validate"}
    return head | {"original": encodable(original), "candidate": encodable(candidate), "verdict": json_value(verdict)}


def sweep_document(result: SweepResult) -> dict[str, Json]:
    """The report of a sweep: every point as a compression."""
    return _document("sweep", result)


def demo_document(rows: Sequence[DemoRow]) -> dict[str, Json]:
    """The report of the demo: one row for each shipped model."""
    return {"schema": SCHEMA, "kind": "demo", "rows": [json_value(row) for row in rows]}


def _document(kind: str, result: CompressionResult | InspectResult | SweepResult) -> dict[str, Json]:
    return {"schema": SCHEMA, "kind": kind, **_object(result)}


def json_value(value: Any) -> Json:
    """Turn a result into what strict JSON can hold.

    A dataclass becomes an object with its fields in their order; None is null; NaN and the infinities, which JSON has
    no numbers for, are the strings "NaN", "Infinity" and "-Infinity".

    Raises
    ------
    TypeError
        If a value of any other kind has got into a result.
    """
    match value:
        case None | bool() | int():
            return value
        case float():
            return _finite_or_name(value)
        case str():
            return encodable(value)
        case (
            FixedRank()
            | Alpha()
            | Energy()
            | KeepParams()
            | KeepBytes()
            | KeepMacs()
            | MaxError()
            | MaxDrop()
            | Speedup()
        ):
            flag, amount = budget_flag(value)
            return {"flag": flag, "value": amount}
        case Mapping():
            return {encodable(str(key)): json_value(item) for key, item in value.items()}
        case tuple() | list():
            return [json_value(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _object(value)
    raise TypeError(f"a report can't hold a {type(value).__name__}")


def _object(value: Any) -> dict[str, Json]:
    return {name: json_value(getattr(value, name)) for name in report_fields(type(value))}


def report_fields(kind: type) -> tuple[str, ...]:
    """The names under which a dataclass stands in a report, in order."""
    fields = (field.name for field in dataclasses.fields(kind))
    return (*(name for name in fields if name not in OMITTED.get(kind, ())), *COMPUTED.get(kind, ()))


def _finite_or_name(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def json_text(document: Mapping[str, Json]) -> str:
    """The document as ASCII text that ends with a line break."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def write_json(document: Mapping[str, Json], path: Path) -> None:
    """Write the document whole or not at all (`OutputError`)."""
    write_text(json_text(document), path, flag="--json")
