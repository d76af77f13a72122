from __future__ import annotations

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper as h

from lowrank_onnx.passes.einsum import Product, parse_product
from tests.passes.models import assert_same, compress, make_model, reason_of, value, weight

SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 6}


def model_of(equation: str, slot: int) -> tuple[onnx.ModelProto, list[int]]:
    terms = equation.split("->")[0].split(",")
    shapes = [[SIZES[label] for label in term.replace("...", "ab")] for term in terms]
    inputs = ["x", "w"] if slot == 1 else ["w", "x"]
    node = h.make_node("Einsum", inputs, ["y"], name="fc", equation=equation)
    dims = [None] * len(equation.split("->")[1].replace("...", "ab"))
    model = make_model([node], [value("x", shapes[1 - slot])], [value("y", dims)], {"w": weight(*shapes[slot])})
    return model, shapes[1 - slot]


@pytest.mark.parametrize(
    ("equation", "slot"),
    [
        ("ab,bc->ac", 1),
        ("bc,ab->ac", 0),
        ("abc,cd->abd", 1),
        ("abc,dc->dab", 1),
        ("abc,cde->abde", 1),
        ("abc,ebd->adec", 1),
        ("abcd,cde->abe", 1),
        ("...c,cd->...d", 1),
        ("...cd,ced->e...", 1),
    ],
)
def test_matrix_products_are_written_as_two(equation: str, slot: int) -> None:
    model, shape = model_of(equation, slot)
    outcome = compress(model)
    assert [node.op_type for node in outcome.model.graph.node] == ["Einsum", "Einsum"]
    assert_same(model, outcome.model, {"x": weight(*shape, seed=1)}, tolerance=1e-5)


@given(st.permutations("abcde"), st.permutations("abcde"), st.integers(1, 3), st.integers(1, 3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_order_of_labels(first: list[str], second: list[str], split: int, size: int, swapped: bool) -> None:
    summed, new = first[:split], first[split : split + 1]
    batch = first[split + 1 :][:size]
    activation = "".join(label for label in second if label in (*summed, *batch))
    matrix = "".join(label for label in reversed(second) if label in (*summed, *new))
    output = "".join(label for label in sorted(first) if label in (*batch, *new))
    terms = [matrix, activation] if swapped else [activation, matrix]
    model, shape = model_of(f"{terms[0]},{terms[1]}->{output}", 0 if swapped else 1)
    outcome = compress(model)
    assert_same(model, outcome.model, {"x": weight(*shape, seed=1)}, tolerance=1e-5)


@pytest.mark.parametrize(
    ("equation", "reason"),
    [
        ("ab,bc", "equation 'ab,bc' isn't two terms and an output"),
        ("ab,bc,cd->ad", "equation 'ab,bc,cd->ad' isn't two terms and an output"),
        ("aa,ab->ab", "equation 'aa,ab->ab' repeats a label within a term"),
        ("ab,...b->a...", "equation 'ab,...b->a...' has an ellipsis in the weight, or one that is summed over"),
        ("...b,bc->c", "equation '...b,bc->c' has an ellipsis in the weight, or one that is summed over"),
        ("abc,acd->abd", "equation 'abc,acd->abd' has a batch of different matrices as its weight"),
        ("ab,bc->c", "equation 'ab,bc->c' is no matrix product"),
        ("ab,b->a", "equation 'ab,b->a' is no matrix product"),
        ("ab,bc->acd", "equation 'ab,bc->acd' is no matrix product"),
    ],
)
def test_other_equations_are_declined(equation: str, reason: str) -> None:
    assert parse_product(equation, 1) == reason


def test_labels_are_told_apart() -> None:
    product = parse_product("b s d, d h k -> b s h k", 1)
    assert product == Product("bsd", "dhk", "bshk", "a")
    assert (product.summed, product.new, product.middle) == ("d", "hk", "bsa")


def test_a_weight_of_another_number_of_dimensions() -> None:
    node = h.make_node("Einsum", ["x", "w"], ["y"], name="fc", equation="ab,bc->ac")
    model = make_model([node], [value("x")], [value("y")], {"w": weight(3, 4, 5)})
    assert reason_of(model) == "weight has shape [3, 4, 5], and the equation calls it 'bc'"
    batch = h.make_node("Einsum", ["x", "w"], ["y"], name="fc", equation="abc,acd->abd")
    model = make_model([batch], [value("x")], [value("y")], {"w": weight(3, 4, 5)})
    assert reason_of(model) == "equation 'abc,acd->abd' has a batch of different matrices as its weight"


def test_shapes_that_are_not_known_are_not_invented() -> None:
    nodes = [
        h.make_node("Relu", ["x"], ["h"]),
        h.make_node("Einsum", ["h", "w"], ["y"], name="fc", equation="abc,cd->abd"),
    ]
    model = make_model(nodes, [value("x", [2, 3, 4])], [value("y", [2, 3, 5])], {"w": weight(4, 5)})
    outcome = compress(model)
    (mid,) = (info for info in outcome.model.graph.value_info if info.name == "y.mid")
    assert not mid.type.tensor_type.HasField("shape")
    assert_same(model, outcome.model, {"x": weight(2, 3, 4, seed=1)}, tolerance=1e-5)
