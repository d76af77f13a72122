from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper as h

from lowrank_onnx.forms import ConvChain, ConvInput, ConvSpatial, ConvTucker, Form
from lowrank_onnx.passes.conv_chain import chain_problem
from lowrank_onnx.types import Array, Site
from tests.passes.models import assert_same, compress, run_ort, run_reference, sites_of, weight
from tests.passes.test_conv import convolutions, model_of


def chains_of(site: Site) -> list[ConvChain]:
    return [form for form in site.forms if isinstance(form, ConvChain)]


def form_named(site: Site, name: str) -> ConvChain:
    (form,) = (form for form in chains_of(site) if form.name == name)
    return form


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: h.get_attribute_value(attribute) for attribute in node.attribute}


@settings(max_examples=100, deadline=None)
@given(convolutions(), st.data())
def test_exact_at_full_rank(case: tuple[onnx.ModelProto, Array], data: st.DataObject) -> None:
    model, x = case
    (site,) = sites_of(model)
    forms = chains_of(site)
    assume(forms)
    form = data.draw(st.sampled_from(forms))
    outcome = compress(model, lambda one: form.largest_rank(one.shape), form)
    assert [new.part for new in outcome.result.new_tensors] == list(form.part_names)
    stored = sum(math.prod(new.shape) for new in outcome.result.new_tensors)
    assert stored == form.parameters(site.shape, form.largest_rank(site.shape))
    assert_same(model, outcome.model, {"x": x}, tolerance=1e-5)


@pytest.mark.parametrize("name", ["conv_spatial", "conv_input", "conv_tucker"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 5e-3), ("bfloat16", 5e-2), ("float64", 1e-12)])
def test_other_dtypes(name: str, dtype: str, tolerance: float) -> None:
    w, x = weight(8, 3, 3, 3, dtype=dtype), weight(2, 6, 6, 5, seed=1, dtype=dtype)
    model = model_of(w, x.shape, bias=weight(8, seed=2, dtype=dtype), group=2, pads=[1, 0, 1, 2], strides=[2, 1])
    model.opset_import[0].version, model.ir_version = 22, 10  # the first Conv that takes bfloat16
    form = form_named(sites_of(model)[0], name)
    outcome = compress(model, lambda site: form.largest_rank(site.shape), form)
    assert {new.dtype for new in outcome.result.new_tensors} == {dtype}
    assert_same(model, outcome.model, {"x": x}, tolerance=tolerance, run=run_reference)


@pytest.mark.parametrize("name", ["conv_spatial", "conv_input", "conv_tucker"])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", [[1, 1], [2, 1], [1, 3], [2, 2]])
@pytest.mark.parametrize("size", [(8, 7), (9, 6)])
def test_auto_pad_is_resolved_axis_by_axis(name: str, auto_pad: str, strides: list[int], size: tuple[int, int]) -> None:
    w, x = weight(8, 4, 3, 2), weight(1, 4, *size, seed=1)
    model = model_of(w, x.shape, auto_pad=auto_pad, strides=strides)
    form = form_named(sites_of(model)[0], name)
    outcome = compress(model, lambda site: form.largest_rank(site.shape), form)
    assert_same(model, outcome.model, {"x": x}, tolerance=1e-5)


def test_a_link_carries_the_attributes_of_its_axes() -> None:
    attributes: dict[str, Any] = {"group": 2, "pads": [1, 2, 0, 1], "strides": [2, 1], "dilations": [1, 2]}
    model = model_of(weight(8, 4, 3, 5), (1, 8, 9, 12), bias=weight(8), **attributes)
    (site,) = sites_of(model)
    form = ConvSpatial(form_named(site, "conv_spatial").geometry, 0)
    first, last = compress(model, lambda one: 2, form).model.graph.node
    assert attributes_of(first) == {
        "group": 2,
        "kernel_shape": [3, 1],
        "pads": [1, 0, 0, 0],
        "strides": [2, 1],
        "dilations": [1, 1],
    }
    assert attributes_of(last) == {
        "group": 2,
        "kernel_shape": [1, 5],
        "pads": [0, 2, 0, 1],
        "strides": [1, 1],
        "dilations": [1, 2],
    }
    assert (list(first.input), list(last.input)) == (["x", "w.first"], ["y.mid", "w.second", "b"])
    assert (first.name, last.name) == ("conv.first", "conv")


def test_tucker_writes_three_and_states_the_shapes_between() -> None:
    model = model_of(weight(32, 8, 3, 3), (1, 8, 9, 12), pads=[1, 1, 1, 1], strides=[2, 1], kernel_shape=[3, 3])
    model.graph.output[0].CopyFrom(h.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 32, 5, 12]))
    (site,) = sites_of(model)
    form = form_named(site, "conv_tucker")
    assert form.geometry.sizes == ((9, 5), (12, 12))
    outcome = compress(model, lambda one: 2, form)
    inner = form.part_shapes(site.shape, 2)["last"][1]
    assert [node.name for node in outcome.model.graph.node] == ["conv.first", "conv.core", "conv"]
    shapes = {
        info.name: [d.dim_value for d in info.type.tensor_type.shape.dim] for info in outcome.model.graph.value_info
    }
    assert shapes == {"y.mid": [1, 2, 9, 12], "y.core": [1, inner, 5, 12]}
    first, core, last = outcome.model.graph.node
    assert attributes_of(first) == {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0]}
    assert attributes_of(core) == {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 1, 1, 1]}
    assert attributes_of(last) == {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0]}


@pytest.mark.parametrize("name", ["conv_spatial", "conv_input", "conv_tucker"])
def test_what_is_written_is_what_the_form_says_it_approximates(name: str) -> None:
    """At a truncated rank the model computes the convolution with the approximated kernel, whatever its attributes."""
    w, x = weight(16, 4, 3, 2, 3), weight(1, 8, 5, 6, 7, seed=1)
    attributes: dict[str, Any] = {"group": 2, "strides": [1, 2, 1], "pads": [1, 0, 2, 0, 1, 1], "dilations": [2, 1, 1]}
    model = model_of(w, x.shape, **attributes)
    form = form_named(sites_of(model)[0], name)
    outcome = compress(model, lambda site: 3, form)
    (site,) = outcome.sites
    parts = {}
    for new in outcome.result.new_tensors:
        stored = next(t for t in outcome.model.graph.initializer if t.name == new.name)
        matrices = onnx.numpy_helper.to_array(stored)
        groups, rows, columns = form.part_shapes(site.shape, 3)[new.part]
        parts[new.part] = matrices.reshape(groups, columns, rows).transpose(0, 2, 1)
    kernel = form.approximate(parts).transpose(0, 2, 1).reshape(w.shape)
    assert 0.1 < np.linalg.norm(kernel - w) / np.linalg.norm(w) < 1.0
    expected = run_ort(model_of(kernel, x.shape, **attributes), {"x": x})
    for optimized in (False, True):
        found = run_ort(outcome.model, {"x": x}, optimized=optimized)
        np.testing.assert_allclose(found[0], expected[0], atol=1e-4)


def test_which_forms_are_offered() -> None:
    def offered(*shape: int, **attributes: Any) -> list[type[Form]]:
        model = model_of(
            weight(*shape), (1, shape[1] * attributes.get("group", 1), *(9,) * (len(shape) - 2)), **attributes
        )
        return [type(form) for form in chains_of(sites_of(model)[0])]

    assert offered(32, 16, 3, 3) == [ConvSpatial, ConvInput, ConvTucker]
    assert offered(32, 16, 3, 3, 3) == [ConvSpatial, ConvInput, ConvTucker]
    assert offered(32, 16, 3) == offered(32, 16, 1, 5) == [ConvInput, ConvTucker]
    assert offered(32, 16, 1, 1) == []
    # One input channel can't be fewer; a kernel of one column and a few channels have nothing to save.
    assert offered(32, 1, 5, 5) == [ConvSpatial]


def test_the_cheaper_axis_goes_first() -> None:
    def axis(w: Array, **attributes: Any) -> int:
        form = form_named(sites_of(model_of(w, (1, w.shape[1], 16, 16), **attributes))[0], "conv_spatial")
        assert isinstance(form, ConvSpatial)
        return form.axis

    assert axis(weight(32, 32, 3, 3)) == 0
    # Many inputs: the small axis should meet them.
    assert axis(weight(16, 64, 5, 3)) == 1
    assert axis(weight(64, 16, 5, 3)) == 0
    # The axis with the stride should go first: what follows has fewer positions.
    assert axis(weight(32, 32, 3, 3), strides=[1, 2], pads=[1, 1, 1, 1]) == 1


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"strides": [2]}, "strides is [2], expected 2 numbers"),
        ({"dilations": [1, 1, 1]}, "dilations is [1, 1, 1], expected 2 numbers"),
        ({"pads": [1, 1]}, "pads is [1, 1], expected 4 numbers"),
        ({"pads": [1, 1, -1, 1]}, "pads is [1, 1, -1, 1], expected none below 0"),
    ],
)
def test_attributes_that_cant_be_divided(attributes: dict[str, Any], reason: str) -> None:
    assert chain_problem(attributes, 2) == reason
    assert chains_of(sites_of(model_of(weight(32, 16, 3, 3), (1, 16, 9, 9), **attributes))[0]) == []


def test_attributes_that_can_be_divided() -> None:
    assert chain_problem({}, 2) is None
    assert chain_problem({"strides": [], "pads": [0, 1, 2, 3], "dilations": [2, 2]}, 2) is None
