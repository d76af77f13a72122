"""What a form can't hold is no solution."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from lowrank_onnx.linalg.pivoted import pivot_factors
from lowrank_onnx.refine.write_form import _stored


@pytest.mark.parametrize(
    ("gap", "stored", "fits"),
    [
        (1e-3, np.float32, True),
        (1e-6, np.float32, True),
        (1e-6, ml_dtypes.bfloat16, True),
        (1e-6, np.float16, False),  # up to 65,504
        (1e-60, np.float32, False),
    ],
)
def test_pivots_that_are_nearly_dependent_must_fit_the_dtype(gap: float, stored: type, fits: bool) -> None:
    """The second pivot is the first times two plus `gap`, so the third column takes about 1 / gap of each."""
    found = pivot_factors(np.eye(2), np.array([[1.0, 2.0, 0.0], [0.0, gap, 1.0]]), 0)
    assert found is not None
    parts = _stored(
        {"left": found.left, "before": found.before, "after": found.after}, np.dtype(np.float32), np.dtype(stored)
    )
    assert (parts is not None) == fits
    if parts is not None:
        assert {part: values.shape for part, values in parts.items()} == {"left": (1, 2, 2), "after": (1, 2, 1)}
        assert all(values.dtype == np.float32 for values in parts.values())
        assert np.abs(parts["after"]).max() == pytest.approx(2.0 / gap, rel=1e-6)
