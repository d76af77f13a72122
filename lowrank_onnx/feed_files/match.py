"""Whether arrays are what a model takes, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowrank_onnx.config import Config
from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.feed_arrays import check_dims, check_dtype, shape_text
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.feed_files.npz_writer import FeedArray
from lowrank_onnx.model_io import load_model
from lowrank_onnx.observed import open_model


def model_inputs(model: Path) -> tuple[InputSpec, ...]:
    """The inputs that a model has to be given (`ModelError` where it can't be read or run)."""
    return tuple(open_model(load_model(model), Config().provider).inputs)


def check_arrays(source: str, arrays: Sequence[FeedArray], inputs: Sequence[InputSpec], *, ways: str) -> list[str]:
    """Refuse arrays that the model doesn't take (`UsageError`); the names of its inputs that none is for.

    `ways` are the flags that decide the arrays' shapes, for the message.
    """
    known = {spec.name: spec for spec in inputs}
    for array in arrays:
        spec = known.get(array.name)
        if spec is None:
            raise UsageError(f"{source}: the model has no input {array.name!r}, expected one of {', '.join(known)}")
        check_dtype(source, spec, array.dtype)
        if spec.shape and len(spec.shape) != len(array.shape):
            raise UsageError(
                f"{source}: {array.name!r} would have the shape {shape_text(array.shape)}, the model's input is "
                f"{shape_text(spec.shape)}: these are other inputs than it takes"
            )
        if spec.shape:
            try:
                check_dims(source, spec, array.shape, first=1)
            except UsageError as error:
                raise UsageError(f"{error} ({ways})") from None
    given = {array.name for array in arrays}
    return [spec.name for spec in inputs if spec.name not in given and not spec.is_optional]
