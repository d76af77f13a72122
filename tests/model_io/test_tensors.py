from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as nh
import pytest

from lowrank_onnx.errors import ModelError
from lowrank_onnx.model_io.tensors import (
    BITS,
    count_elements,
    count_tensor_bytes,
    decode_inline,
    find_tensors,
    readable_name,
    view_raw,
)

from .builders import pattern, raw_tensor, rich_model

_TYPES = dict(onnx.TensorProto.DataType.items())


def test_every_tensor_is_found_once_in_serial_order() -> None:
    found = list(find_tensors(rich_model()))
    names = [f.tensor.name for f in found]
    expected = {"then.weight", "else.weight", "constant", "t1", "t2", "first.weight", "second.weight", "f", "g"}
    expected |= {"attribute.sparse", "attribute.sparse.indices", "sparse", "sparse.indices", "small", "strings"}
    assert expected | {"initialization.weight", "algorithm.weight", "empty"} <= set(names)
    dense = {f.tensor.name for f in found if f.initializer}
    assert {"small", "then.weight", "first.weight", "initialization.weight"} <= dense
    assert not dense & {"constant", "t1", "sparse", "sparse.indices", "f", "g", "attribute.sparse"}


@pytest.mark.parametrize("number", sorted(set(_TYPES.values()) - {0, 8}))
def test_bytes_of_every_type_equal_what_onnx_packs(number: int) -> None:
    packed = oh.make_tensor("t", number, [7], np.ones(7, np.float32))
    dtype = oh.tensor_dtype_to_np_dtype(number)
    assert count_tensor_bytes(packed) == len(nh.from_array(np.ones(7).astype(dtype), "t").raw_data)
    assert number in BITS


def test_strings_count_their_bytes() -> None:
    assert count_tensor_bytes(onnx.TensorProto(name="s", data_type=8, dims=[2], string_data=[b"ab", b"c"])) == 3


def test_negative_and_unknown_are_refused() -> None:
    with pytest.raises(ModelError, match=r"tensor 't' has dimensions \[4, -1\]: expected none below 0"):
        count_elements(onnx.TensorProto(name="t", data_type=1, dims=[4, -1]))
    tensor = onnx.TensorProto(name="t", data_type=99)
    with pytest.raises(ModelError, match="tensor 't' has element type 99: expected a type that onnx"):
        count_tensor_bytes(tensor)
    with pytest.raises(ModelError, match="element type 0"):
        decode_inline(onnx.TensorProto(name="t"))


def test_dimensions_beyond_64_bits_are_counted_exactly() -> None:
    huge = onnx.TensorProto(name="t", data_type=1, dims=[2**62, 2**62])
    assert count_tensor_bytes(huge) == 2**126
    with pytest.raises(ModelError, match="holds 0 bytes: expected 850705917"):
        view_raw(huge, np.empty(0, np.uint8))
    with pytest.raises(ModelError, match="can't be read"):
        decode_inline(onnx.TensorProto(name="t", data_type=1, dims=[2**62, 2**62], float_data=[1.0]))
    with pytest.raises(ModelError, match="can't be read"):
        decode_inline(onnx.TensorProto(name="t", data_type=1, dims=[0, 2**62, 2**62], raw_data=b""))


def test_wrong_amounts_of_data_are_refused() -> None:
    with pytest.raises(ModelError, match=r"tensor 't' holds 9 bytes: expected 8 for its type and dimensions \[2\]"):
        decode_inline(raw_tensor("t", 1, 2, b"123456789"))
    with pytest.raises(ModelError, match="tensor 't' can't be read"):
        decode_inline(onnx.TensorProto(name="t", data_type=1, dims=[3], float_data=[1.0, 2.0]))
    with pytest.raises(ModelError, match="tensor 't' can't be read"):
        decode_inline(onnx.TensorProto(name="t", data_type=8, dims=[1], string_data=[b"\xff"]))
    segmented = onnx.TensorProto(name="t", data_type=1, dims=[1], float_data=[1.0])
    segmented.segment.begin = 0
    with pytest.raises(ModelError, match="tensor 't' can't be read"):
        decode_inline(segmented)


def test_unaligned_bytes_give_an_aligned_array() -> None:
    raw = np.frombuffer(pattern(41), np.uint8)
    shifted = view_raw(raw_tensor("t", 11, 5, b""), raw[1:])
    assert shifted.flags.aligned
    assert shifted.dtype == np.float64
    assert shifted.tobytes() == raw[1:].tobytes()


def test_bfloat16_comes_as_ml_dtypes() -> None:
    tensor = raw_tensor("t", onnx.TensorProto.BFLOAT16, 2, b"\x80\x3f\x00\xc0")
    values = decode_inline(tensor)
    assert values.dtype == np.dtype(ml_dtypes.bfloat16)
    assert values.astype(np.float32).tolist() == [1.0, -2.0]


def test_names_are_made_printable() -> None:
    assert readable_name("a\n\x1b[31m") == r"'a\n\x1b[31m'"
    assert readable_name(b"\xff") == r"b'\xff'"
    assert len(readable_name("x" * 5000)) < 120
