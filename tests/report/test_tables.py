from __future__ import annotations

import io
from typing import get_args

from rich.console import Console

from lowrank_onnx.config import (
    Alpha,
    Budget,
    Energy,
    FixedRank,
    KeepBytes,
    KeepMacs,
    KeepParams,
    MaxDrop,
    MaxError,
    Speedup,
)
from lowrank_onnx.report.tables import budget_flag, by_reason, largest, text
from tests.report.rendering import rendered, widest


def test_every_budget_has_its_flag() -> None:
    budgets = (
        FixedRank(8),
        Alpha(0.1),
        Energy(0.2),
        KeepParams(0.3),
        KeepBytes(0.35),
        KeepMacs(0.4),
        MaxError(0.5),
        MaxDrop(0.6),
        Speedup(1.5),
    )
    assert {type(budget) for budget in budgets} == set(get_args(Budget))
    assert [budget_flag(budget) for budget in budgets] == [
        ("--rank", 8),
        ("--alpha", 0.1),
        ("--energy", 0.2),
        ("--keep-params", 0.3),
        ("--keep-bytes", 0.35),
        ("--keep-macs", 0.4),
        ("--max-error", 0.5),
        ("--max-drop", 0.6),
        ("--speedup", 1.5),
    ]


def test_reasons_with_the_most_weights_come_first() -> None:
    block = by_reason(
        "title", [("a", "small", 1), ("b", "large", 5), ("c", "large", 6), ("d", "none", 0)], verbose=False
    )
    assert block is not None
    assert rendered(block) == (
        "title\n  2 x large (11 weights)\n      b, c\n  1 x small (1 weight)\n      a\n  1 x none\n      d\n"
    )
    assert by_reason("title", [], verbose=True) is None


def test_the_largest_rows_keep_their_order() -> None:
    rows = list(range(100))
    assert largest(rows, lambda row: row % 50, verbose=True) == rows
    shown = largest(rows, lambda row: row % 50, verbose=False)
    assert shown == [*range(30, 50), *range(80, 100)]


def test_a_wrapped_line_keeps_its_indent_and_ends_without_a_blank() -> None:
    stream = io.StringIO()
    Console(file=stream, width=24).print(text("  1 x a reason that is longer than one line"))
    assert stream.getvalue() == "  1 x a reason that is\n    longer than one line\n"
    assert rendered(text("a note that is longer than one line"), width=24) == "a note that is longer\nthan one line\n"


def test_a_word_that_is_longer_than_a_line_is_shown_whole() -> None:
    content = rendered(text("    " + "x" * 50), width=24)
    assert widest(content) <= 24
    assert "".join(content.split()) == "x" * 50
