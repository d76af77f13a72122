from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lowrank_onnx.errors import OutputError
from lowrank_onnx.model_io import save_array
from lowrank_onnx.types import Array


@pytest.mark.parametrize(
    "values",
    [
        np.arange(24.0).reshape(2, 3, 4),
        np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
        np.zeros((2, 0, 3), np.float32),
        np.array(1.5),
    ],
)
def test_what_was_saved_comes_back(values: Array, tmp_path: Path) -> None:
    saved = save_array(tmp_path / "values.bin", values)
    for found in (saved.read(), saved.mapped()):
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)
    assert (tmp_path / "values.bin").stat().st_size == values.nbytes
    saved.read()[...] = 7.0  # a copy
    np.testing.assert_array_equal(saved.read(), values)


def test_a_mapped_array_is_read_only(tmp_path: Path) -> None:
    mapped = save_array(tmp_path / "values.bin", np.ones(3)).mapped()
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 2.0


def test_what_cant_be_written_is_an_error_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="missing"):
        save_array(tmp_path / "missing" / "values.bin", np.ones(3))
