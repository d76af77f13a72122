from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.confidence import drop_at_most, share_at_least, share_at_most
from lowrank_onnx.evaluate.scores import MetricJudge, compare_scores, judge_by
from lowrank_onnx.metric import Metric, Score


class Model:
    """Its outputs are what it was made of."""

    def __init__(self, result: object) -> None:
        self.result = result

    def run(self, feed: Mapping[str, Any], /) -> Mapping[str, Any]:
        return {"result": self.result}


HIGHER = Metric("m", lambda predict: predict({})["result"])
LOWER = Metric("m", lambda predict: predict({})["result"], higher_is_better=False)
RIGHT = np.array([True] * 90 + [False] * 10)
WRONG = ~RIGHT
CHANGED = np.array([False] * 3 + [True] * 88 + [False] * 9)  # 3 lost, 1 gained


def test_numbers_have_a_drop_and_no_bounds() -> None:
    compared = compare_scores(HIGHER, Score(0.9), Score(0.8))
    assert compared.drop == pytest.approx(0.1)
    assert compared.judged_drop == compared.drop
    assert (compared.samples, compared.drop_bound, compared.candidate_bound, compared.confidence) == (None,) * 4


def test_a_lower_loss_is_no_drop() -> None:
    assert compare_scores(LOWER, Score(0.3), Score(0.2)).drop == pytest.approx(-0.1)
    assert compare_scores(LOWER, Score(0.2), Score(0.3)).drop == pytest.approx(0.1)


def test_samples_are_counted_in_pairs() -> None:
    compared = judge_by(HIGHER, Model(RIGHT), 1, None)(Model(CHANGED))
    assert (compared.original, compared.candidate) == (0.9, 0.88)
    assert (compared.samples, compared.lost, compared.gained) == (100, 3, 1)
    assert compared.candidate_bound == share_at_least(88, 100)
    assert compared.drop_bound == drop_at_most(3, 1, 100)
    assert compared.judged_drop == compared.drop_bound
    assert compared.confidence == 0.95


def test_samples_of_a_loss_are_mistakes() -> None:
    compared = compare_scores(LOWER, Score(0.1, WRONG), Score(0.12, ~CHANGED))
    assert compared.drop == pytest.approx(0.02)
    assert (compared.lost, compared.gained) == (3, 1)
    assert compared.candidate_bound == share_at_most(12, 100)
    assert compared.drop_bound == drop_at_most(3, 1, 100)


def test_the_confidence_is_shared_among_the_models_of_a_search() -> None:
    compared = MetricJudge(HIGHER, Score(0.9, RIGHT), models=5)(Model(CHANGED))
    assert compared.drop_bound == drop_at_most(3, 1, 100, 0.99)
    assert compared.candidate_bound == share_at_least(88, 100, 0.99)
    assert compared.confidence == 0.95


@pytest.mark.parametrize("result", [0.8, RIGHT[:50]])
def test_other_samples_can_not_be_compared(result: object) -> None:
    with pytest.raises(UsageError, match="each of the same samples from every model"):
        MetricJudge(HIGHER, Score(0.9, RIGHT))(Model(result))


def test_a_limit_that_no_model_could_be_proved_to_keep_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"--max-drop 0.01: 100 samples of m can prove a drop of at most 0.0402; .*402"
    ):
        judge_by(HIGHER, Model(RIGHT), 1, 0.01)
    judge_by(HIGHER, Model(RIGHT), 1, 0.05)
    judge_by(HIGHER, Model(0.9), 1, 0.01)
    samples = np.ones(402, bool)
    judge_by(HIGHER, Model(np.append(samples, [True] * 10)), 1, 0.01)


def test_a_limit_holds_up_to_rounding() -> None:
    assert compare_scores(HIGHER, Score(0.95), Score(0.94)).within(0.01)
    assert not compare_scores(HIGHER, Score(0.95), Score(0.9399)).within(0.01)
