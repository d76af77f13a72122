from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lowrank_onnx.config import Config, MaxDrop
from lowrank_onnx.metric import Metric
from lowrank_onnx.report.json_report import (
    compress_document,
    demo_document,
    inspect_document,
    json_text,
    validate_document,
)
from lowrank_onnx.report.schema import report_schema
from lowrank_onnx.results import PlanTrial, SearchStep
from tests.report.samples import DEMO_ROW, FAILED, INSPECTED, METRIC, SYNTHETIC, VERDICT, compression, unchanged
from tests.report.schema_check import problems

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA: dict[str, Any] = report_schema()

DOCUMENTS: dict[str, Any] = {
    "written": compress_document(compression()),
    "rejected": compress_document(compression(status="rejected", output=None, verdict=FAILED)),
    "synthetic": compress_document(compression(verdict=SYNTHETIC, synthetic=True)),
    "metric": compress_document(
        compression(
            config=Config(budget=MaxDrop(0.01), metric=Metric("accuracy.py:correct", lambda predict: 1.0)),
            verdict=replace(VERDICT, metric=METRIC),
            search=(SearchStep(0.5, 0.02, True, drop=0.001, judged_drop=0.008),),
        )
    ),
    "tried": compress_document(compression(trials=(PlanTrial(0.6, 1.0, 0.04, False), PlanTrial(0.6, 0.5, None, True)))),
    "unchanged": compress_document(unchanged("no rank makes it smaller")),
    "inspect": inspect_document(INSPECTED),
    "validate": validate_document("a.onnx", "b.onnx", VERDICT),
    "demo": demo_document((DEMO_ROW,)),
}


def test_the_shipped_schema_is_the_one_of_the_code() -> None:
    """To renew it: python -c "import json; from lowrank_onnx.report.schema import report_schema;
    open('docs/report-schema.json', 'w').write(json.dumps(report_schema(), indent=2) + chr(10))"
    """
    assert json.loads((DOCS / "report-schema.json").read_text(encoding="utf-8")) == SCHEMA


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_kind_of_report_holds_to_the_schema(name: str) -> None:
    assert problems(json.loads(json_text(DOCUMENTS[name])), SCHEMA, SCHEMA) == []


def _no_schema(document: dict[str, Any]) -> None:
    document["schema"] = "lowrank-onnx/report/2"


def _no_kind(document: dict[str, Any]) -> None:
    del document["kind"]


def _foreign_key(document: dict[str, Any]) -> None:
    document["sites"][0]["colour"] = "red"


def _missing_key(document: dict[str, Any]) -> None:
    del document["sites"][0]["rank"]


def _text_for_number(document: dict[str, Any]) -> None:
    document["before"]["parameters"] = "many"


def _fraction_for_integer(document: dict[str, Any]) -> None:
    document["before"]["parameters"] = 1.5


def _truth_for_number(document: dict[str, Any]) -> None:
    document["verdict"]["samples"] = True


def _unknown_status(document: dict[str, Any]) -> None:
    document["status"] = "perhaps"


def _unknown_budget(document: dict[str, Any]) -> None:
    document["config"]["budget"]["flag"] = "--magic"


def _object_for_list(document: dict[str, Any]) -> None:
    document["search"] = {}


@pytest.mark.parametrize(
    "mutate",
    [
        _no_schema,
        _no_kind,
        _foreign_key,
        _missing_key,
        _text_for_number,
        _fraction_for_integer,
        _truth_for_number,
        _unknown_status,
        _unknown_budget,
        _object_for_list,
    ],
)
def test_the_schema_refuses_what_is_wrong(mutate: Callable[[dict[str, Any]], None]) -> None:
    document = copy.deepcopy(DOCUMENTS["written"])
    mutate(document)
    assert problems(document, SCHEMA, SCHEMA) != []


def test_pairs_have_two_members() -> None:
    document = copy.deepcopy(DOCUMENTS["inspect"])
    document["sites"][0]["energy_ranks"][0].append(1)
    assert problems(document, SCHEMA, SCHEMA) != []


def test_the_page_describes_every_field() -> None:
    page = (DOCS / "report-schema.md").read_text(encoding="utf-8")
    objects = {name: set(shape["properties"]) for name, shape in SCHEMA["$defs"].items()}
    kinds = {
        kind["properties"]["kind"]["const"]: set(kind["properties"]) - {"schema", "kind"} for kind in SCHEMA["oneOf"]
    }
    assert objects.pop("CompressionResult") == kinds["compress"]
    for name, fields in (objects | kinds).items():
        assert page.count(f"\n## {name}\n") == 1, name
        section = page.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]
        first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
        described = [field.strip(" `") for cell in first_cells for field in cell.split(",")]
        assert sorted(described) == sorted(fields), name
