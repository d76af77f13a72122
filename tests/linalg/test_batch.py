from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.spectra import SPECTRA, matrix
from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg import FactorRequest, factor, factor_each


def test_each_result_is_that_of_its_own_call() -> None:
    weights = [matrix((40, 30), SPECTRA["slow"](30), seed=s).astype(t) for s, t in enumerate((np.float16, np.float32))]
    results = list(factor_each(weights, [FactorRequest(3), FactorRequest(5)], device="cpu"))
    for weight, rank, result in zip(weights, (3, 5), results, strict=True):
        assert result.left.tobytes() == factor(weight, rank).left.tobytes()


def test_the_next_weight_is_read_while_this_one_is_factorized_and_no_further() -> None:
    read: list[int] = []
    second = threading.Event()

    def weights() -> Iterator[np.ndarray]:
        for index in range(4):
            read.append(index)
            if index == 1:
                second.set()
            yield np.eye(8, dtype=np.float32) * (index + 1)

    results = factor_each(weights(), [FactorRequest(8)] * 4, device="cpu")
    assert next(results).singular_values[0] == pytest.approx(1.0)
    assert second.wait(10.0)
    assert read == [0, 1]
    assert [r.singular_values[0] for r in results] == pytest.approx([2.0, 3.0, 4.0])


def test_a_bad_matrix_fails_in_its_turn() -> None:
    results = factor_each([np.eye(3), np.full((3, 3), np.nan)], [FactorRequest(1)] * 2, device="cpu")
    assert next(results).rank == 1
    with pytest.raises(FactorizationError, match="9 NaN or infinite entries"):
        next(results)


def test_weights_and_requests_must_pair_up() -> None:
    with pytest.raises(ValueError, match="zip"):
        list(factor_each([np.eye(3)], [FactorRequest(1)] * 2, device="cpu"))
