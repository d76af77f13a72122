"""Feeds from ONNX test data: folders of serialized protos, ``input_0.pb`` for the first input and so on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.values import InputSpec


def find_test_data_sets(path: Path) -> list[Path]:
    """The folders that hold ``input_*.pb``: `path` itself, or its ``test_data_set_*`` in the order of their numbers."""
    if any(path.glob("input_*.pb")):
        return [path]
    folders = [folder for folder in path.glob("test_data_set_*") if any(folder.glob("input_*.pb"))]
    return sorted(folders, key=lambda folder: (_number(folder.name), folder.name))


def load_test_data(folder: Path, inputs: Sequence[InputSpec]) -> dict[str, Any]:
    """Read one complete feed; the files are numbered in the order of the model's inputs.

    Returns
    -------
    Input name -> array, or a list of arrays for a sequence, or None for an empty optional.

    Raises
    ------
    UsageError : a file is missing, can't be parsed, is of another kind than the input, or points to other files.
    """
    files = {_number(file.stem): file for file in folder.glob("input_*.pb")}
    surplus = sorted(index for index in files if not 0 <= index < len(inputs))
    if surplus:
        raise UsageError(f"{files[surplus[0]]}: the model has only {len(inputs)} inputs: remove it, or fix its number")
    feed: dict[str, Any] = {}
    for index, spec in enumerate(inputs):
        if index in files:
            feed[spec.name] = _read_value(files[index], spec)
        elif not spec.is_optional:
            raise UsageError(f"{folder}: no input_{index}.pb for the model's input {spec.name!r}: add it")
    return feed


def _read_value(file: Path, spec: InputSpec) -> Any:
    if not spec.is_tensor and not spec.dtype.startswith(("optional(", "seq(")):
        raise UsageError(f"{file}: the model's input {spec.name!r} is {spec.dtype}: give feeds from Python")
    try:
        data = file.read_bytes()
        if spec.dtype.startswith("optional("):
            optional = onnx.OptionalProto.FromString(data)
            _refuse_external(file, optional.tensor_value, *optional.sequence_value.tensor_values)
            return numpy_helper.to_optional(optional)
        if spec.dtype.startswith("seq("):
            sequence = onnx.SequenceProto.FromString(data)
            _refuse_external(file, *sequence.tensor_values)
            return numpy_helper.to_list(sequence)
        tensor = onnx.TensorProto.FromString(data)
        _refuse_external(file, tensor)
        return numpy_helper.to_array(tensor)
    except UsageError:
        raise
    except Exception as error:  # protobuf's decoding error has no typed import, and onnx raises many kinds
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{file}: can't be read as {spec.dtype} for input {spec.name!r} ({line[:200]})") from error


def _refuse_external(file: Path, *tensors: onnx.TensorProto) -> None:
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise UsageError(f"{file}: its data is in another file, which feeds may not read: store it inline")


def _number(name: str) -> int:
    digits = re.search(r"(\d+)$", name)
    return int(digits.group(1)) if digits else -1
