"""What is written where refined factors miss a limit that a search held."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

import lowrank_onnx
from lowrank_onnx import Config, FixedRank, MaxError, finish
from lowrank_onnx.config import Budget, KeepParams
from lowrank_onnx.evaluate.feeds import Feeds
from lowrank_onnx.evaluate.kept_outputs import KeptOutputs
from lowrank_onnx.forms import Form
from lowrank_onnx.judging import judge_staged
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import Array, Verdict, WeightRef
from tests.passes.models import make_model, value
from tests.refine.builders import inputs, layers


def missing(monkeypatch: pytest.MonkeyPatch, times: int) -> list[Verdict]:
    """So many of the first verdicts fail; all of them, as they come."""
    verdicts: list[Verdict] = []

    def judged(*arguments: Any) -> Verdict:
        verdict = judge_staged(*arguments)
        verdicts.append(replace(verdict, failures=("the limit was missed",)) if len(verdicts) < times else verdict)
        return verdicts[-1]

    monkeypatch.setattr(finish, "judge_staged", judged)
    return verdicts


def compress(budget: Budget) -> lowrank_onnx.CompressionResult:
    return lowrank_onnx.compress(layers(3), Config(budget=budget, objective="size"), feeds=inputs(16))


def test_a_model_that_a_search_took_is_written_as_it_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    refined = compress(MaxError(0.5))
    assert refined.refinement is not None
    assert refined.notes == ()
    verdicts = missing(monkeypatch, 1)
    result = compress(MaxError(0.5))
    assert len(verdicts) == 2
    assert result.status == "written"
    assert result.refinement is None
    assert result.notes == ("not refined: with refined factors, the limit was missed",)
    assert not any(site.solver.endswith(", refined") for site in result.sites)
    assert [(site.form, site.rank) for site in result.sites] == [(site.form, site.rank) for site in refined.sites]
    assert result.verdict is not None
    assert result.verdict.relative_error == next(step.error for step in reversed(result.search) if step.accepted)


@pytest.mark.parametrize("budget", [KeepParams(0.5), MaxError(0.5)])
def test_the_original_runs_once_on_what_judges(monkeypatch: pytest.MonkeyPatch, budget: Budget) -> None:
    """Of the search, refinement and the verdict."""
    filled: list[Feeds] = []
    fill = KeptOutputs._fill

    def counted(kept: KeptOutputs, file: Any) -> bool:
        filled.append(kept._feeds)
        return fill(kept, file)

    monkeypatch.setattr(KeptOutputs, "_fill", counted)
    result = compress(budget)
    assert result.refinement is not None
    assert result.verdict is not None
    first = [next(iter(feeds))["x"].tobytes() for feeds in filled]
    assert len(set(first)) == len(first) == 2  # plans are judged by feeds of their own


def test_it_is_rejected_where_it_misses_the_limit_as_planned_too(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = missing(monkeypatch, 9)
    assert compress(MaxError(0.5)).status == "rejected"
    assert len(verdicts) == 2


def test_what_no_search_judged_is_rejected_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = missing(monkeypatch, 9)
    assert compress(FixedRank(4)).status == "rejected"
    assert len(verdicts) == 1


def test_what_refinement_left_as_planned_is_not_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one layer the inputs are the original's: there is nothing to refine."""
    verdicts = missing(monkeypatch, 9)
    config = Config(budget=MaxError(0.5), objective="size")
    result = lowrank_onnx.compress(layers(1), config, feeds=inputs(16))
    assert result.status == "rejected"
    assert result.refinement is not None
    assert not any(weight.refined for weight in result.refinement.weights)
    assert len(verdicts) == 1


def test_chains_are_made_once_for_walk_judges_and_file(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    keep = FactorSpool._keep

    def counting(
        spool: FactorSpool, weight: WeightRef, form: Form, rank: int, parts: dict[str, Array], solver: str
    ) -> None:
        made.append((weight.name, form.name, rank))
        keep(spool, weight, form, rank, parts, solver)

    monkeypatch.setattr(FactorSpool, "_keep", counting)
    generator = np.random.default_rng(0)
    feeds = [{"x": generator.standard_normal((2, 8, 9, 9)).astype(np.float32)} for _ in range(8)]
    config = Config(budget=FixedRank(6), objective="size", forms=("conv_spatial",), validate=False)
    result = lowrank_onnx.compress(convolutions(generator), config, feeds=feeds)
    assert [site.form for site in result.sites] == ["conv_spatial", "conv_spatial"]
    assert result.refinement is not None
    assert [weight.refined for weight in result.refinement.weights] == [False, True]
    assert sorted(made) == [("first", "conv_spatial", 6), ("second", "conv_spatial", 6)]


def convolutions(generator: np.random.Generator) -> onnx.ModelProto:
    """Two of 3 x 3, with an activation in between."""
    weights = {
        name: generator.standard_normal((16, size, 3, 3)).astype(np.float32) / 8
        for name, size in (("first", 8), ("second", 16))
    }
    nodes = [
        onnx.helper.make_node("Conv", ["x", "first"], ["h"]),
        onnx.helper.make_node("Relu", ["h"], ["a"]),
        onnx.helper.make_node("Conv", ["a", "second"], ["y"]),
    ]
    return make_model(nodes, [value("x", [2, 8, 9, 9])], [value("y", [2, 16, 5, 5])], weights)
