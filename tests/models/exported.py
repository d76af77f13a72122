"""The exports that ship in ``models/exporters``, and their calibration data, for tests without the frameworks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from sklearn.datasets import load_digits

EXPORTERS = Path(__file__).resolve().parents[2] / "models" / "exporters"

EXPORTS: Mapping[str, str] = {
    "digits_pytorch.onnx": "calib_pytorch.npz",
    "digits_keras_torch.onnx": "calib_keras.npz",
    "digits_keras_tensorflow.onnx": "calib_keras.npz",
}
"""The files that ship, and the name that their script gives the calibration data."""


def image_layout(digits: Any, shape: Sequence[object]) -> NDArray[np.float32]:
    """scikit-learn's digits, scaled to 0..1, in the layout of the input: (n, 64), (n, 1, 8, 8) or (n, 8, 8, 1)."""
    scaled = (digits.images / 16).astype(np.float32)
    if len(shape) == 2:
        return np.asarray(scaled.reshape(len(scaled), 64))
    return np.asarray(scaled[:, None] if shape[1] == 1 else scaled[..., None])


def calibration(model: Path, target: Path) -> Path:
    """Write what the model's script saves as calibration data: the 1,400 images that it trained on."""
    (given,) = onnx.load(model).graph.input
    shape = [dim.dim_value or None for dim in given.type.tensor_type.shape.dim]
    arrays = {given.name: image_layout(load_digits(), shape)[:1400]}
    np.savez(target, **arrays)  # type: ignore[arg-type]  # the stubs take any name for `allow_pickle`
    return target
