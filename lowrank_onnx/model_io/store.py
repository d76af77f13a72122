"""The weight store: the bytes of any tensor of a skeleton, read when they are asked for and not before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import onnx
import onnx.helper

from lowrank_onnx.errors import ModelError
from lowrank_onnx.model_io.external import RESERVED_PREFIX, ExternalFiles, find_entry, is_external
from lowrank_onnx.model_io.sources import FileRange, MemoryRange, Provided, Source
from lowrank_onnx.model_io.tensors import check_size, count_tensor_bytes, decode_inline, readable_name, view_raw
from lowrank_onnx.types import Array, numpy_dtype

Provider: TypeAlias = Callable[[], Array]
"""Makes the values of a new tensor; called at save time, and each time the tensor is read."""

_NEW_PREFIX = f"{RESERVED_PREFIX}new:"


def new_tensor_proto(name: str, dtype: str, shape: tuple[int, ...], key: str) -> onnx.TensorProto:
    """A placeholder initializer, whose bytes a store gets from its provider of that key.

    Parameters
    ----------
    name : of the initializer.
    dtype : a NumPy or ml_dtypes name that ONNX has too, e.g. "float16", "bfloat16", "float32", "int64".
    shape : its dimensions.
    key : under which `Model.with_rewrite` gives the provider. Tensors with one key share the bytes in a data file.

    Raises
    ------
    ModelError : ONNX has no such element type, or one smaller than a byte.
    """
    try:
        data_type = onnx.helper.np_dtype_to_tensor_dtype(numpy_dtype(dtype))
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(
            f"new tensor {readable_name(name)} has dtype {dtype!r}: expected one of ONNX, e.g. float32"
        ) from error
    return make_placeholder(_NEW_PREFIX + key, onnx.TensorProto(name=name, data_type=data_type, dims=shape))


def make_placeholder(location: str, tensor: onnx.TensorProto) -> onnx.TensorProto:
    """`tensor` itself, made to say that its values lie at `location`."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


@dataclass(frozen=True, slots=True)
class Stripped:
    """Raw data that was taken out of a tensor; `default_location` where the tensor said that its values are inline."""

    source: FileRange | MemoryRange
    default_location: bool


@dataclass(frozen=True, slots=True)
class WeightStore:
    """Reads the tensors of a skeleton on demand.

    Attributes
    ----------
    files : where external data may lie.
    stripped : raw data that was taken out of the skeleton, by the location in the tensor's placeholder. It holds a
        random token, so that no file can name one.
    providers : new tensors, by key.
    """

    files: ExternalFiles
    stripped: Mapping[str, Stripped]
    providers: Mapping[str, Provider]

    def array(self, tensor: onnx.TensorProto) -> Array:
        """The values of a tensor of the skeleton.

        Large ones are mapped from their file afresh at each call, and unmapped when the array and all its views are
        gone; so memory stays bounded where arrays are dropped after use.

        Returns
        -------
        A read-only array of the tensor's shape. bfloat16, float8 and the types below a byte are ml_dtypes' (the
        latter unpacked, one byte an element); strings are objects.

        Raises
        ------
        ModelError : the tensor is malformed, or its file has changed since it was loaded.
        """
        source = self.find_source(tensor)
        values = decode_inline(tensor) if source is None else view_raw(tensor, source.array())
        values = values.view()
        values.flags.writeable = False
        return values

    def check_size(self, tensor: onnx.TensorProto) -> None:
        """Raise `ModelError` where a tensor of the skeleton hasn't the bytes that its type and dimensions call for."""
        source = self.find_source(tensor)
        check_size(tensor, None if source is None else len(source))

    def nbytes(self, tensor: onnx.TensorProto) -> int:
        """Bytes of the tensor's values as stored (types below a byte are packed). Raises `ModelError`."""
        return count_tensor_bytes(tensor)

    def find_source(self, tensor: onnx.TensorProto) -> Source | None:
        """Where the tensor's bytes come from; None where the tensor holds them itself. Raises `ModelError`."""
        if not is_external(tensor):
            return None
        location = find_entry(tensor, "location")
        if not isinstance(location, str) or not location.startswith(RESERVED_PREFIX):
            return self.files.find_range(tensor)
        if location in self.stripped:
            return self.stripped[location].source
        key = location.removeprefix(_NEW_PREFIX)
        if key == location or key not in self.providers:
            raise ModelError(
                f"tensor {readable_name(tensor.name)} has the placeholder {readable_name(location)}: expected one of"
                " this model; give its provider to with_rewrite, or take the tensor from the model's own skeleton"
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return Provided(key, dtype, tuple(tensor.dims), self.providers[key])

    def find_stripped(self, tensor: onnx.TensorProto) -> Stripped | None:
        """How the tensor was before its raw data was taken out; None where that didn't happen."""
        if not is_external(tensor):
            return None
        location = find_entry(tensor, "location")
        return self.stripped.get(location) if isinstance(location, str) else None

    def with_providers(self, new: Mapping[str, Provider]) -> WeightStore:
        """The same store, with more new tensors, or others under the same keys."""
        return replace(self, providers={**self.providers, **new})
