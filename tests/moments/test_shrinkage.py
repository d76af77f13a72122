from __future__ import annotations

import numpy as np
import pytest

from lowrank_onnx.linalg import factor
from lowrank_onnx.moments.moment import Moment
from lowrank_onnx.moments.shrinkage import ShrunkMoments, shrinkage, shrunk_second_moment
from lowrank_onnx.types import WeightRef


def moment_of(rows: np.ndarray) -> Moment:
    return Moment((rows.T @ rows / len(rows))[None], rows.mean(axis=0)[None], len(rows), len(rows))


def drawn(count: int, size: int, decay: float = 0.9) -> np.ndarray:
    """Rows whose true second moment is diagonal, with eigenvalues that fall by `decay`."""
    return np.random.default_rng(0).standard_normal((count, size)) * decay ** (np.arange(size) / 2)


def test_few_rows_for_many_directions_are_pulled_all_the_way() -> None:
    moment = moment_of(np.random.default_rng(0).standard_normal((8, 1536)))
    assert shrinkage(moment.second_moment[0], moment.rows) > 0.9


def test_many_rows_are_left_as_they_are() -> None:
    moment = moment_of(drawn(20_000, 64))
    assert shrinkage(moment.second_moment[0], moment.rows) < 0.01


@pytest.mark.parametrize("count", [16, 64, 256])
def test_the_shrunk_moment_is_nearer_to_the_truth(count: int) -> None:
    size = 64
    truth = np.diag(0.9 ** np.arange(size))
    moment = moment_of(drawn(count, size))
    plain = np.linalg.norm(moment.second_moment[0] - truth)
    assert np.linalg.norm(shrunk_second_moment(moment)[0] - truth) < plain


def test_the_trace_is_kept_and_singular_moments_become_definite() -> None:
    moment = moment_of(drawn(8, 64))
    shrunk = shrunk_second_moment(moment)[0]
    assert np.trace(shrunk) == pytest.approx(np.trace(moment.second_moment[0]))
    assert np.linalg.eigvalsh(shrunk)[0] > 0.0


def test_dead_inputs_count_for_next_to_nothing_and_can_still_be_whitened_by() -> None:
    matrices = np.stack([np.zeros((8, 8)), np.eye(8)])
    shrunk = shrunk_second_moment(Moment(matrices, np.zeros((2, 8)), 10**6, 10**6))
    assert 0.0 < np.trace(shrunk[0]) < 1e-20 * np.trace(shrunk[1])
    W = np.random.default_rng(0).standard_normal((8, 6))
    found = factor(W, 3, method="svd", second_moment=shrunk[0])
    plain = factor(W, 3, method="svd")
    np.testing.assert_allclose(found.left @ found.right, plain.left @ plain.right, atol=1e-9)


def test_shrunk_moments_are_made_when_asked_for() -> None:
    weights = [WeightRef((), name, "initializer", "float32", (64, 4)) for name in ("a", "b")]
    moments = {weight: moment_of(drawn(16, 64)) for weight in weights}
    shrunk = ShrunkMoments(moments)
    assert list(shrunk) == weights
    assert len(shrunk) == 2
    np.testing.assert_array_equal(shrunk[weights[0]], shrunk_second_moment(moments[weights[0]]))
    assert shrunk.get(WeightRef((), "c", "initializer", "float32", (64, 4))) is None
