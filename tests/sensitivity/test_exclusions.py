from __future__ import annotations

import math

import pytest

from lowrank_onnx.sensitivity.damage import Sensitivity
from lowrank_onnx.sensitivity.exclusions import Probe, find_exclusions
from lowrank_onnx.types import WeightRef


def probe(name: str, error: float, saved: int = 1000, mildest: float = 1e-6) -> tuple[WeightRef, Probe]:
    weight = WeightRef((), name, "initializer", "float32", (64, 64))
    problem = "" if math.isfinite(error) else "rank 8: output 'y': 3 NaN"
    return weight, Probe(Sensitivity(weight, (8,), (error,), (0.1,), error / 0.1, True, problem), saved, mildest)


ALIKE = [probe(f"w{index}", 1e-4 * (1 + index / 4)) for index in range(6)]


def names(*others: tuple[WeightRef, Probe], max_error: float | None = None) -> dict[str, str]:
    found = find_exclusions(dict([*ALIKE, *others]), max_error)
    return {weight.name: reason for weight, reason in found.items()}


def test_weights_alike_are_all_kept() -> None:
    assert names() == {}


def test_a_weight_that_breaks_the_outputs_is_out() -> None:
    assert names(probe("bad", math.inf)) == {"bad": "compressing it breaks the outputs (rank 8: output 'y': 3 NaN)"}


def test_a_weight_that_alone_costs_more_than_is_allowed_is_out() -> None:
    dear = probe("dear", 1e-3, mildest=0.04)
    assert names(dear, max_error=0.1) == {
        "dear": "alone, at its largest rank, it costs a relative error of 0.2, where 0.1 is allowed"
    }
    assert names(dear, max_error=0.3) == names(dear) == {}


def test_a_weight_far_dearer_than_the_others_is_out() -> None:
    assert names(probe("dear", 0.1)) == {
        "dear": "it costs 571 times as much for each parameter saved as is typical here"
    }
    assert names(probe("small", 1e-4, saved=2)) == {
        "small": "it costs 286 times as much for each parameter saved as is typical here"
    }


@pytest.mark.parametrize("error", [5e-4, 0.0])
def test_somewhat_dearer_or_free_is_no_reason(error: float) -> None:
    assert names(probe("other", error)) == {}


def test_where_prices_spread_widely_none_is_unlike_the_others() -> None:
    spread = dict(probe(f"w{index}", 10.0 ** (index - 9)) for index in range(9))
    assert find_exclusions(spread, None) == {}


def test_few_weights_have_no_typical_price() -> None:
    assert find_exclusions(dict([*ALIKE[:3], probe("dear", 0.5)]), None) == {}


def test_nothing_saved_has_no_price() -> None:
    assert names(probe("none", 0.5, saved=0)) == {}
