from __future__ import annotations

import random

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.errors import ModelError
from lowrank_onnx.model_io import complete_proto, load_model, model_bytes
from lowrank_onnx.model_io.tensors import find_tensors
from lowrank_onnx.model_io.wire import (
    MESSAGES,
    WireError,
    decode_varint,
    encode_varint,
    join_pieces,
    rewrite_tensors,
    scan_fields,
)

from .builders import LARGE, canonical, pattern, random_message, raw_tensor, rich_model, unknown_field


def _random_model(seed: int) -> onnx.ModelProto:
    rng = random.Random(seed)
    model: onnx.ModelProto = random_message(onnx.ModelProto, rng)
    model.graph.name = "random"
    for found in find_tensors(model):
        if found.tensor.data_location == onnx.TensorProto.EXTERNAL:
            found.tensor.data_location = onnx.TensorProto.DEFAULT
        if rng.random() < 0.8:
            found.tensor.raw_data = rng.randbytes(rng.choice((1023, 1024, 5000)))
            del found.tensor.external_data[:]
    return model


def test_descriptors_lead_to_every_tensor() -> None:
    numbers = {name.removeprefix("onnx."): set(message.children) for name, message in MESSAGES.items()}
    assert numbers["ModelProto"] == {7, 20, 25}
    assert numbers["GraphProto"] == {1, 5, 15}
    assert numbers["NodeProto"] == {5}
    assert numbers["AttributeProto"] == {5, 6, 10, 11, 22, 23}
    assert numbers["FunctionProto"] == {7, 11}
    assert numbers["TrainingInfoProto"] == {1, 2}
    assert numbers["SparseTensorProto"] == {1, 2}
    assert MESSAGES["onnx.AttributeProto"].merging == {5, 22}
    assert MESSAGES["onnx.SparseTensorProto"].merging == {1, 2}


@given(st.integers(0, 2**64 - 1))
def test_varint_round_trip(value: int) -> None:
    encoded = encode_varint(value)
    assert decode_varint(encoded + b"\xff", 0, len(encoded) + 1) == (value, len(encoded))


@pytest.mark.parametrize("broken", [b"", b"\x80", b"\x80" * 10, b"\xff" * 11])
def test_broken_varint(broken: bytes) -> None:
    with pytest.raises(WireError, match="is cut off or too long"):
        decode_varint(broken, 0, len(broken))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\x00\x01", "begins no field"),  # field number 0
        (b"\x0e\x01", "begins no field"),  # wire type 6
        (b"\x0a\x05abc", "should end at byte 7, but only 5 bytes"),
        (b"\x09abc", "should end at byte 9"),
        (b"\x0dabc", "should end at byte 5"),
        (b"\x0c", "a group ends at byte 0 that was never begun"),
        (b"\x0b\x08\x01", "has no end"),
        (b"\x0b\x14", "has no end"),  # ended with another field's number
        (b"\x0b" * 300, "nested more than 100 deep"),
    ],
)
def test_malformed_messages_are_refused_as_protobuf_refuses_them(message: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        list(scan_fields(message, 0, len(message)))
    with pytest.raises(Exception, match="Error parsing message"):
        onnx.TensorProto().ParseFromString(message)


def test_groups_are_skipped_whole() -> None:
    group = b"\x9b\x38" + b"\x08\x05" + b"\x0b\x0c" + b"\x9c\x38"  # field 899: a varint and an empty group
    fields = list(scan_fields(group + b"\x08\x01", 0, len(group) + 2))
    assert [(f.number, f.wire_type, f.end) for f in fields] == [(899, 3, len(group)), (1, 0, len(group) + 2)]
    tensor = raw_tensor("t", 1, LARGE, pattern(4 * LARGE))
    model = onnx.ModelProto()
    model.graph.name = "g"
    model.graph.initializer.append(tensor)
    model.MergeFromString(group)
    assert canonical(complete_proto(load_model(model))) == canonical(model)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_random_models_survive_byte_for_byte(seed: int) -> None:
    original = _random_model(seed)
    model = load_model(original)
    large = sum(len(f.tensor.raw_data) >= 1024 and not f.tensor.external_data for f in find_tensors(original))
    assert len(model.store.stripped) == large
    assert model.skeleton.ByteSize() <= original.ByteSize() + 200 * sum(1 for _ in find_tensors(original))
    assert canonical(complete_proto(model)) == canonical(original)
    assert model_bytes(model) == canonical(original)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_scanner_visits_the_tensors_that_the_parser_finds(seed: int) -> None:
    original = _random_model(seed)
    serialized = canonical(original)
    visited: list[bytes] = []

    def edit(start: int, end: int) -> None:
        visited.append(serialized[start:end])

    pieces = rewrite_tensors(serialized, lambda start, end: True, edit)
    assert join_pieces(pieces) == serialized
    assert visited == [canonical(found.tensor) for found in find_tensors(original)]


def test_scanner_reads_nothing_but_headers() -> None:
    serialized = canonical(rich_model())
    looked_at: list[tuple[int, int]] = []

    def interesting(start: int, end: int) -> bool:
        looked_at.append((start, end))
        return end - start >= 1024

    rewrite_tensors(serialized, interesting, lambda start, end: None)
    assert len(looked_at) > 50
    assert all(0 <= start <= end <= len(serialized) for start, end in looked_at)


def _nested(depth: int) -> bytes:
    """A model with `depth` graphs in one another, the innermost with a large initializer."""
    graph = canonical(onnx.GraphProto(name="in", initializer=[raw_tensor("t", 1, LARGE, pattern(4 * LARGE))]))
    for _ in range(depth):
        attribute = unknown_field(6, graph)
        node = unknown_field(5, attribute)
        graph = unknown_field(1, node)
    return unknown_field(7, graph)


def test_nesting_up_to_the_parsers_limit(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("nested") / "model.onnx"
    path.write_bytes(_nested(30))
    (found,) = find_tensors(load_model(path).skeleton)
    assert not found.tensor.HasField("raw_data")
    path.write_bytes(_nested(5000))
    with pytest.raises(ModelError, match="nested too deeply"):
        load_model(path)


def test_a_repeated_singular_tensor_is_merged_as_protobuf_merges_it() -> None:
    first = canonical(raw_tensor("t", 1, LARGE, pattern(4 * LARGE, 1)))
    second = canonical(onnx.TensorProto(doc_string="second", raw_data=pattern(4 * LARGE, 2)))
    node = unknown_field(5, unknown_field(5, first) + unknown_field(5, second))
    sparse = unknown_field(15, unknown_field(1, first) + unknown_field(1, second) + unknown_field(2, first))
    serialized = unknown_field(7, unknown_field(1, node) + sparse)
    expected = onnx.ModelProto.FromString(serialized)
    assert expected.graph.node[0].attribute[0].t.raw_data == pattern(4 * LARGE, 2)
    path_free = load_model(expected)
    assert canonical(complete_proto(path_free)) == canonical(expected)


def test_a_file_with_repeated_singular_fields(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("merged") / "model.onnx"
    first = canonical(raw_tensor("t", 1, LARGE, pattern(4 * LARGE, 1)))
    second = canonical(onnx.TensorProto(doc_string="second", raw_data=pattern(4 * LARGE, 2)))
    node = unknown_field(1, unknown_field(5, unknown_field(5, first) + unknown_field(5, second)))
    twice_raw = unknown_field(5, first + unknown_field(9, pattern(4 * LARGE, 3)))
    path.write_bytes(unknown_field(7, node + twice_raw) + unknown_field(7, unknown_field(5, first)))
    expected = onnx.load(path)
    assert len(expected.graph.initializer) == 2
    assert canonical(complete_proto(load_model(path))) == canonical(expected)
