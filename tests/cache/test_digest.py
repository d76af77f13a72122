from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.cache.digest import content_digest
from lowrank_onnx.errors import UsageError


@dataclass(frozen=True)
class Pair:
    first: object
    second: object


@dataclass(frozen=True)
class Other:
    first: object
    second: object


DIFFERENT: list[list[object]] = [
    [],
    [None],
    [[]],
    [0],
    [0.0],
    [-0.0],
    [False],
    ["0"],
    [b"0"],
    [1, 2],
    [12],
    [(1, 2)],
    [(1,), (2,)],
    ["ab", "c"],
    ["a", "bc"],
    ["abc"],
    ["\udc80"],
    [{"a": 1, "b": 2}],
    [{"a": 2, "b": 1}],
    [Pair(1, 2)],
    [Pair(2, 1)],
    [Other(1, 2)],
    [np.zeros(4, np.float32)],
    [np.zeros(4, np.int32)],
    [np.zeros(4, ">f4")],
    [np.zeros(2, np.float64)],
    [np.zeros((2, 2), np.float32)],
    [np.zeros((4, 1), np.float32)],
    [np.zeros(8, np.float16)],
    [np.zeros(8, ml_dtypes.bfloat16)],
    [np.float32(0)],
    [np.float64(0)],
    [np.zeros((0, 3), np.float32)],
    [np.zeros((3, 0), np.float32)],
    [np.array(["a", "b"], object)],
    [np.array(["ab"], object)],
    [np.array(["a", "b"])],
    [np.array([""])],
]


def test_different_values_have_different_digests() -> None:
    digests = [content_digest(values) for values in DIFFERENT]
    same = [(a, b) for (a, x), (b, y) in itertools.combinations(zip(DIFFERENT, digests, strict=True), 2) if x == y]
    assert same == []


@settings(max_examples=50, deadline=None)
@given(
    values=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    others=st.lists(st.integers() | st.text(), max_size=3),
)
def test_equal_values_are_equal_and_a_longer_sequence_is_another(values: object, others: list[object]) -> None:
    assert content_digest([values, *others]) == content_digest(iter([values, *others]))
    assert content_digest([values, *others]) != content_digest([values, *others, 0])


def test_layout_in_memory_and_order_of_a_mapping_do_not_count() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert content_digest([array]) == content_digest([np.asfortranarray(array)])
    assert content_digest([array]) == content_digest([np.stack([array, array], axis=-1)[..., 0]])
    assert content_digest([{"a": array, "b": 1}]) == content_digest([{"b": 1, "a": array}])


@settings(max_examples=30, deadline=None)
@given(index=st.integers(0, 59), bit=st.integers(0, 7))
def test_every_bit_of_an_array_counts(index: int, bit: int) -> None:
    content = np.arange(60, dtype=np.uint8)
    changed = content.copy()
    changed[index] ^= 1 << bit
    assert content_digest([content.view(np.float32)]) != content_digest([changed.view(np.float32)])


def test_another_process_finds_the_same_digest() -> None:
    program = (
        "import numpy as np; from lowrank_onnx.cache.digest import content_digest\n"
        "print(content_digest(['w', {'b': 1.5, 'a': None}, np.arange(5)]).hex())"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == content_digest(["w", {"a": None, "b": 1.5}, np.arange(5)]).hex()


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array([object()]), lambda: None])
def test_what_has_no_content_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match=r"can't tell one (object|set|function) from another: expected arrays"):
        content_digest([value])
