from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from lowrank_onnx.moments import advise_rows, effective_rank, estimate_condition, observe_moments
from lowrank_onnx.moments.gather_rows import RowsError
from lowrank_onnx.moments.lookups import LookupSum, smoothed_shares
from lowrank_onnx.moments.moment import Moment
from lowrank_onnx.moments.shrinkage import shrunk_second_moment
from tests.moments.builders import feeds_of, run
from tests.passes.models import make_model, sites_of, value, weight


def counted(*lookups: list[int], size: int = 6) -> Moment:
    total = LookupSum(size)
    for indices in lookups:
        total.add(np.array(indices))
    return total.finish()


def test_it_is_the_diagonal_of_the_moment_of_one_hot_rows() -> None:
    moment = counted([0, 0, 3], [-1])
    hot = np.eye(6)[[0, 0, 3, 5]]
    np.testing.assert_allclose(np.diag(moment.second_moment[0]), hot.T @ hot / 4)
    np.testing.assert_allclose(moment.mean[0], hot.mean(axis=0))
    assert (moment.rows, moment.positions, moment.in_features, moment.diagonal) == (4, 4, 6, True)
    assert effective_rank(moment) == pytest.approx(1 / (0.5**2 + 2 * 0.25**2))
    assert estimate_condition(moment) == np.inf
    assert estimate_condition(counted([0, 0, 1, 2, 3, 4, 5])) == pytest.approx(2.0)


@pytest.mark.parametrize(("row", "size"), [(6, 6), (-7, 6)])
def test_a_row_outside_of_the_table(row: int, size: int) -> None:
    with pytest.raises(RowsError, match=f"looks up row {row} of a table of {size}"):
        counted([row], size=size)


def test_rows_that_were_never_seen_count_as_much_as_those_seen_once() -> None:
    moment = counted([0] * 6 + [1, 2])
    smoothed = smoothed_shares(moment)
    assert smoothed.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(smoothed[0, 3:], 2 / 8 / 6)
    assert smoothed[0, 0] == pytest.approx(6 / 8 * 6 / 8 + 2 / 8 / 6)
    np.testing.assert_array_equal(shrunk_second_moment(moment), smoothed)
    assert (smoothed_shares(counted([0, 0, 1, 1]))[0, 2:] == 1 / 4 / 6).all()


def test_advice() -> None:
    assert advise_rows(counted([0, 1, 2])) is None
    assert advise_rows(counted([0, 1])) == (
        "4 of 6 rows of the table were never looked up in 2 lookups: they count for little; give more samples"
    )


@pytest.mark.parametrize("made", [False, True], ids=["a graph input", "made by a node"])
@pytest.mark.parametrize(("data_type", "dtype"), [(T.INT64, np.int64), (T.INT32, np.int32)])
def test_lookups_are_counted_over_all_feeds(made: bool, data_type: int, dtype: type) -> None:
    nodes = [h.make_node("Gather", ["table", "ids" if made else "x"], ["y"], name="embed")]
    if made:
        nodes.insert(0, h.make_node("Abs", ["x"], ["ids"]))
    model = make_model(nodes, [value("x", ["n", 2], data_type)], [value("y")], {"table": weight(6, 4)})
    feeds = feeds_of([np.array([[0, 1]], dtype), np.array([[1, 1], [2, 5]], dtype)])
    (moment,) = observe_moments(model, sites_of(model), run, feeds, seed=0).values()
    assert isinstance(moment, Moment)
    np.testing.assert_allclose(moment.second_moment * 6, [[1, 3, 1, 0, 0, 1]])


def test_memory_is_not_that_of_a_matrix() -> None:
    node = h.make_node("Gather", ["table", "x"], ["y"], name="embed")
    model = make_model([node], [value("x", [2], T.INT64)], [value("y")], {"table": weight(5000, 2)})
    (moment,) = observe_moments(
        model, sites_of(model), run, feeds_of([np.array([3, 4999])]), seed=0, max_bytes=10**6
    ).values()
    assert isinstance(moment, Moment)
    assert moment.rows == 2
