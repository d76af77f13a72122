from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

from lowrank_onnx.forms import CONV_CHANNEL, MATRIX, PAIR, PIVOTED, ConvGeometry, ConvSpatial, Form, Pivoted
from lowrank_onnx.linalg.lapack import ALL_THREADS_WORK, beside_runtime
from lowrank_onnx.spool import FactorSpool, Make
from lowrank_onnx.types import Array, Factors, NewTensor, Rearrangement, WeightRef

WEIGHT = WeightRef((), "w", "initializer", "float16", (12, 4, 3, 3))


def factors() -> Factors:
    generator = np.random.default_rng(0)
    left = generator.standard_normal((2, 36, 6)).astype(np.float32)
    right = generator.standard_normal((2, 6, 6)).astype(np.float32)
    return Factors(left, right, np.ones((2, 6), np.float32), 0.0, 0.0, "svd")


@pytest.fixture
def spool(tmp_path: Path) -> FactorSpool:
    made = FactorSpool(tmp_path)
    made.put_nested(WEIGHT, MATRIX, PAIR, factors())
    return made


def new_tensor(
    part: str, shape: tuple[int, ...], arrangement: Rearrangement, bias: WeightRef | None = None
) -> NewTensor:
    return NewTensor("new", (), "float16", shape, WEIGHT, "pair", 3, part, arrangement, bias)


@pytest.mark.parametrize("form", [PAIR, CONV_CHANNEL])
def test_a_smaller_rank_is_a_prefix_for_every_form_of_the_family(spool: FactorSpool, form: object) -> None:
    assert form in (PAIR, CONV_CHANNEL)
    stored = spool.get(WEIGHT, PAIR if form == PAIR else CONV_CHANNEL, 2)
    assert (stored.form, stored.rank, stored.solver, stored.accumulation) == (form, 2, "svd", "float32")
    np.testing.assert_array_equal(stored.values("left"), factors().left[:, :, :2])
    np.testing.assert_array_equal(stored.values("right"), factors().right[:, :2])
    assert stored.read("left").dtype == np.float16
    np.testing.assert_array_equal(stored.read("left"), factors().left[:, :, :2].astype(np.float16))


def test_approximations_are_of_the_values_that_will_be_stored(spool: FactorSpool) -> None:
    approximation = spool.get(WEIGHT, PAIR, 6).approximate()
    assert approximation.dtype == np.float32
    left, right = (array.astype(np.float16).astype(np.float32) for array in (factors().left, factors().right))
    np.testing.assert_array_equal(approximation, left @ right)


def test_what_is_put_for_a_form_and_rank_goes_before_the_prefix_and_can_be_replaced(
    spool: FactorSpool, tmp_path: Path
) -> None:
    for value in (1.0, 2.0):
        parts = {"left": np.full((2, 36, 3), value), "right": np.full((2, 3, 6), value)}
        spool.put(WEIGHT, PAIR, 3, parts, f"refined {value}")
        stored = spool.get(WEIGHT, PAIR, 3)
        assert (stored.solver, stored.accumulation) == (f"refined {value}", "float64")
        np.testing.assert_array_equal(stored.values("right"), parts["right"])
    assert spool.get(WEIGHT, PAIR, 2).solver == spool.get(WEIGHT, CONV_CHANNEL, 3).solver == "svd"
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("rank", [0, 7])
def test_a_rank_that_was_not_factorized_is_refused(spool: FactorSpool, rank: int) -> None:
    with pytest.raises(KeyError, match=f"no pair at rank {rank}"):
        spool.get(WEIGHT, PAIR, rank)


def test_a_form_whose_parts_are_others_must_be_put(spool: FactorSpool) -> None:
    with pytest.raises(KeyError, match="no pivoted at rank 3"):
        spool.get(WEIGHT, PIVOTED, 3)


def test_new_tensors_come_in_their_stored_layout(spool: FactorSpool) -> None:
    new = new_tensor("left", (6, 4, 3, 3), Rearrangement((2, 36, 3), (0, 2, 1), (6, 4, 3, 3)))
    expected = factors().left[:, :, :3].transpose(0, 2, 1).reshape(6, 4, 3, 3).astype(np.float16)
    np.testing.assert_array_equal(spool.tensor(new, PAIR), expected)


def test_new_biases_are_made_by_the_form(spool: FactorSpool) -> None:
    after = np.arange(6.0, dtype=np.float32).reshape(1, 3, 2)
    spool.put(WEIGHT, Pivoted(0), 3, {"left": np.zeros((1, 4, 3), np.float32), "after": after}, "svd")
    bias: Array = np.array([1, 2, 3, 4, 5], np.float16)
    source = WeightRef((), "b", "initializer", "float16", (5,))
    found = [
        spool.tensor(new_tensor(part, (size,), Rearrangement((size,), (0,), (size,)), source), PIVOTED, bias)
        for part, size in (("bias", 3), ("bias_after", 2))
    ]
    assert all(values.dtype == np.float16 for values in found)
    np.testing.assert_array_equal(found[0], [1, 2, 3])
    np.testing.assert_array_equal(found[1], bias[3:] - bias[:3] @ after[0])


def test_what_no_factorization_here_gives_is_made_once_when_it_is_asked_for(tmp_path: Path) -> None:
    form = ConvSpatial(ConvGeometry(4, (3, 3), ((1, 1), (1, 1))), 0)
    parts = {"first": np.ones((2, 12, 3), np.float32), "second": np.full((2, 9, 6), 2.0, np.float32)}
    asked: list[tuple[WeightRef, Form, int]] = []

    def make(weight: WeightRef, form: Form, rank: int) -> tuple[dict[str, Array], str]:
        asked.append((weight, form, rank))
        return parts, "made"

    spool = FactorSpool(tmp_path, make)
    spool.put_nested(WEIGHT, MATRIX, PAIR, factors())
    for _ in range(2):
        stored = spool.get(WEIGHT, form, 3)
        assert (stored.form, stored.rank, stored.solver) == (form, 3, "made")
        np.testing.assert_array_equal(stored.values("second"), parts["second"])
    assert spool.get(WEIGHT, PAIR, 3).solver == "svd"
    assert asked == [(WEIGHT, form, 3)]
    held = spool.get(WEIGHT, form, 3)
    spool.put(WEIGHT, form, 3, {part: 2 * values for part, values in parts.items()}, "better")
    np.testing.assert_array_equal(held.values("second"), parts["second"])


def test_what_is_missing_is_made_side_by_side_and_once(tmp_path: Path) -> None:
    form = ConvSpatial(ConvGeometry(4, (3, 3), ((1, 1), (1, 1))), 0)
    threads: dict[int, str] = {}

    def make(weight: WeightRef, form: Form, rank: int) -> tuple[dict[str, Array], str]:
        assert rank not in threads
        threads[rank] = threading.current_thread().name.split("_")[0]
        return {"first": np.full((2, 12, rank), rank), "second": np.zeros((2, 9, 6))}, f"rank {rank}"

    spool = FactorSpool(tmp_path, make)
    spool.put_nested(WEIGHT, MATRIX, PAIR, factors())
    with threadpoolctl.threadpool_limits(2, user_api="blas"), beside_runtime():
        for _ in range(2):
            spool.fill([(WEIGHT, form, 2, 1), (WEIGHT, form, 3, int(ALL_THREADS_WORK)), (WEIGHT, PAIR, 4, 1)])
    assert threads == {2: "small", 3: "MainThread"}
    assert [spool.get(WEIGHT, form, rank).solver for rank in (2, 3)] == ["rank 2", "rank 3"]
    assert spool.get(WEIGHT, PAIR, 4).solver == "svd"
    np.testing.assert_array_equal(spool.get(WEIGHT, form, 3).values("first"), 3)
    held = spool.get(WEIGHT, form, 2)
    spool.put(WEIGHT, form, 2, {"first": np.zeros((2, 12, 2)), "second": np.zeros((2, 9, 6))}, "better")
    np.testing.assert_array_equal(held.values("first"), 2)


def test_drafts_see_what_the_spool_has_and_gets_and_keep_what_they_make_to_themselves(tmp_path: Path) -> None:
    def maker(value: float) -> Make:
        def make(weight: WeightRef, form: Form, rank: int) -> tuple[dict[str, Array], str]:
            return {"left": np.full((2, 36, rank), value), "right": np.full((2, rank, 6), value)}, f"made {value}"

        return make

    spool = FactorSpool(tmp_path, maker(1.0))
    drafts = spool.drafts(maker(2.0))
    spool.get(WEIGHT, PAIR, 2)
    assert drafts.get(WEIGHT, PAIR, 2).solver == "made 1.0"
    assert drafts.get(WEIGHT, PAIR, 3).solver == drafts.get(WEIGHT, PAIR, 3).solver == "made 2.0"
    assert spool.get(WEIGHT, PAIR, 3).solver == "made 1.0"
    np.testing.assert_array_equal(spool.get(WEIGHT, PAIR, 3).values("left"), 1.0)
    spool.put_nested(WEIGHT, MATRIX, PAIR, factors())
    assert drafts.get(WEIGHT, PAIR, 6).solver == "svd"
