from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from lowrank_onnx.candidates import Candidate, PlannedWeight, dense_candidate
from lowrank_onnx.choose import NOT_NEEDED, Choice
from lowrank_onnx.forms import PAIR
from lowrank_onnx.forms.shared import Shared
from lowrank_onnx.rollback import put_back
from lowrank_onnx.types import MatrixShape

SHAPE = MatrixShape(1, 64, 64)


def weight(name: str, at_rank: float | None, noise: float = 0.1) -> PlannedWeight:
    """Takes 1 ms dense, and `at_rank` at any rank (None: it was not measured)."""
    if at_rank is None:
        return PlannedWeight(name, SHAPE, (PAIR,), 10, unmeasured="no reason")
    return PlannedWeight(name, SHAPE, (PAIR,), 10, latency=lambda f, r: 1.0 if r is None else at_rank, noise=noise)


def low_rank(error: float) -> Choice:
    return Choice(Candidate("pair", 8, 8 * 128, None, error))


def ranks(choices: Sequence[Choice] | None) -> list[int | None]:
    assert choices is not None
    return [choice.candidate.rank for choice in choices]


def test_what_gains_nothing_measurable_goes_first_and_all_at_once() -> None:
    weights = [weight("good", 0.5), weight("slower", 1.2), weight("noise", 0.95), weight("unknown", None)]
    revised = put_back(weights, [low_rank(0.1)] * 4)
    assert ranks(revised) == [8, None, None, None]
    assert revised is not None
    assert [choice.reason for choice in revised] == [
        "",
        "put back, since the model was not faster: rank 8 is not measurably faster here than dense (1.2 of 1 ms)",
        "put back, since the model was not faster: rank 8 is not measurably faster here than dense (0.95 of 1 ms)",
        "put back, since the model was not faster: its latency is not known (no reason)",
    ]
    assert revised[1].candidate == dense_candidate(weights[1])


def test_else_the_third_that_saves_least_for_its_damage() -> None:
    weights = [weight("a", 0.5), weight("b", 0.8), weight("c", 0.5), weight("d", 0.5)]
    choices = [low_rank(0.1), low_rank(0.1), low_rank(0.3), low_rank(0.2)]
    revised = put_back(weights, choices)  # savings for each unit of damage: 5, 2, 1.7, 2.5
    assert ranks(revised) == [8, None, None, 8]
    assert revised is not None
    assert revised[2].reason == (
        "put back, since the model was not faster: rank 8 saved least for its damage (0.5 of 1 ms)"
    )
    assert ranks(put_back(weights, revised)) == [8, None, None, None]


def test_what_does_no_damage_is_kept_longest() -> None:
    assert ranks(put_back([weight("a", 0.8), weight("b", 0.2)], [low_rank(0.0), low_rank(0.1)])) == [8, None]


def test_weights_that_are_dense_already_keep_their_reasons() -> None:
    weights = [weight("dense", 0.5), weight("a", 0.5), weight("b", 0.5)]
    choices = [Choice(dense_candidate(weights[0]), NOT_NEEDED), low_rank(0.1), low_rank(0.2)]
    revised = put_back(weights, choices)
    assert revised is not None
    assert [choice.reason.split(":")[0] for choice in revised] == [
        NOT_NEEDED,
        "",
        "put back, since the model was not faster",
    ]


@pytest.mark.parametrize("at_rank", [0.5, 1.5, None])
def test_the_last_weight_is_not_put_back(at_rank: float | None) -> None:
    assert put_back([weight("only", at_rank)], [low_rank(0.1)]) is None
    dense = Choice(dense_candidate(weight("dense", 0.5)), NOT_NEEDED)
    assert put_back([weight("dense", 0.5), weight("only", at_rank)], [dense, low_rank(0.1)]) is None


def test_nothing_gains_anything_so_nothing_is_left() -> None:
    assert put_back([weight("a", 1.0), weight("b", 2.0)], [low_rank(0.1)] * 2) is None


def sharing(at_ranks: Sequence[float | None]) -> list[PlannedWeight]:
    """Weights that can share their first factor, each with what it then takes, and a good one by itself."""
    forms = [Shared("a", number == 0, len(at_ranks), 64 * len(at_ranks)) for number in range(len(at_ranks))]
    members = [weight(f"w{number}", at_rank) for number, at_rank in enumerate(at_ranks)]
    return [*(replace(one, forms=(PAIR, form)) for one, form in zip(members, forms, strict=True)), weight("good", 0.5)]


def test_weights_that_share_a_factor_are_put_back_together() -> None:
    shared = [Choice(replace(low_rank(error).candidate, form="shared")) for error in (0.1, 0.1, 0.1)]
    weights = sharing([0.5, 1.2, 0.5])
    assert ranks(put_back(weights, [*shared, low_rank(0.1)])) == [None, None, None, 8]
    assert ranks(put_back(sharing([0.8, 0.8, 0.8]), [*shared, low_rank(0.1)])) == [None, None, None, 8]
    assert ranks(put_back(sharing([0.2, 0.2, 0.2]), [*shared, low_rank(0.1)])) == [8, 8, 8, None]
    assert put_back(weights[:3], shared) is None
    assert ranks(put_back(weights, [low_rank(0.1)] * 4)) == [8, None, 8, 8]
    given = [replace(weights[0], rank=8), *weights[1:]]
    assert ranks(put_back(given, [*shared, low_rank(0.1)])) == [8, 8, 8, None]


def test_a_rank_that_was_given_stays() -> None:
    given = replace(weight("given", 1.2), rank=8)
    assert ranks(put_back([given, weight("slower", 1.2)], [low_rank(0.1)] * 2)) == [8, None]
    assert ranks(put_back([given, weight("good", 0.5)], [low_rank(0.1)] * 2)) == [8, None]
    assert put_back([given, given], [low_rank(0.1)] * 2) is None


def test_what_is_to_be_spared_goes_first() -> None:
    weights = [weight("a", 0.5), weight("b", 0.5), weight("c", 0.5)]
    assert ranks(put_back(weights, [low_rank(0.1), low_rank(0.2), low_rank(0.1)])) == [8, None, 8]
    spared = [replace(weights[0], emphasis=9.0), *weights[1:]]
    assert ranks(put_back(spared, [low_rank(0.1), low_rank(0.2), low_rank(0.1)])) == [None, 8, 8]
