"""Everything that onnx-graphsurgeon's own round trip would lose or change leaves with the bytes that it came with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from lowrank_onnx.passes import rewrite
from tests.passes.models import (
    Outcome,
    choose,
    compress,
    make_model,
    placeholder,
    sites_of,
    strip,
    tensor,
    value,
    weight,
)
from tests.passes.untouched import changes

FC = {
    "node": (["h"], ["h.mid", "h"]),
    "initializer": (["w"], ["w.left", "w.right"]),
    "value_info": ([], ["h.mid"]),
}


def base() -> onnx.ModelProto:
    """A MatMul to rewrite, and a Relu behind it."""
    return make_model(
        [h.make_node("MatMul", ["x", "w"], ["h"], name="fc"), h.make_node("Relu", ["h"], ["y"], name="relu")],
        [value("x", [2, 4])],
        [value("y", [2, 4])],
        {"w": weight(4, 4)},
        ir_version=10,
    )


def metadata(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="dictionary", value="a b c")
    model.domain, model.model_version, model.doc_string = "org.example", 7, "model"
    model.producer_name, model.producer_version = "exporter", "2.0"
    model.graph.doc_string = "graph"
    model.graph.metadata_props.add(key="graph", value="g")
    model.graph.node[1].metadata_props.add(key="node", value="n")
    model.graph.node[1].doc_string = "activation"
    model.graph.input[0].metadata_props.add(key="value", value="v")
    model.graph.input[0].doc_string = "input"
    model.graph.input[0].type.denotation = "TENSOR"
    model.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    model.graph.output[0].metadata_props.add(key="value", value="v")


def quantization_annotation(model: onnx.ModelProto) -> None:
    annotation = model.graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    model.graph.initializer.append(tensor("s", np.array(1, np.float32)))


def functions(model: onnx.ModelProto) -> None:
    for overload in ("", "fast"):
        function = h.make_function(
            "pkg", "F", ["a"], ["b"], [h.make_node("Neg", ["a"], ["b"])], [h.make_opsetid("", 17)]
        )
        function.overload = overload
        function.doc_string = "f"
        function.metadata_props.add(key="k", value="v")
        function.value_info.append(value("a", [2]))
        function.attribute.append("alpha")
        function.attribute_proto.append(h.make_attribute("beta", b"\xff"))
        model.functions.append(function)
    model.opset_import.append(h.make_opsetid("pkg", 1))


def initializer_as_input(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(tensor("b", weight(4)))
    model.graph.input.append(value("b", [4]))


def unused_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(tensor("unused", weight(3, 3)))


def odd_tensors(model: onnx.ModelProto) -> None:
    kinds = (T.INT4, T.UINT4, T.INT2, T.UINT2, T.FLOAT4E2M1, T.FLOAT8E4M3FNUZ, T.FLOAT8E8M0, T.BFLOAT16, T.COMPLEX64)
    for kind in kinds:
        model.graph.initializer.add(name=f"t{kind}", dims=[8], data_type=kind, raw_data=bytes(64))
    model.graph.initializer.add(name="text", dims=[2], data_type=T.STRING, string_data=[b"\xff", b"ok"])
    model.graph.initializer.add(name="typed", dims=[2], data_type=T.FLOAT, float_data=[1, 2], doc_string="doc")
    model.graph.initializer.add(name="alien", dims=[-1, 2**40], data_type=77)


def external_tensor(model: onnx.ModelProto) -> None:
    outside = model.graph.initializer.add(name="outside", dims=[4], data_type=T.FLOAT, data_location=T.EXTERNAL)
    for key, text in (("location", "weights.bin"), ("offset", "4096"), ("length", "16"), ("checksum", "abc")):
        outside.external_data.add(key=key, value=text)


def sparse_initializer(model: onnx.ModelProto) -> None:
    sparse = h.make_sparse_tensor(tensor("sp", weight(2)), tensor("sp.indices", np.array([0, 5])), [4, 4])
    model.graph.sparse_initializer.append(sparse)


def odd_attributes(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="Odd", domain="com.acme", name="odd", input=["h"], output=["o"])
    node.attribute.append(h.make_attribute("text", b"\xff\xfe"))
    node.attribute.append(h.make_attribute("texts", [b"\x80", b"fine"]))
    node.attribute.append(h.make_attribute("kind", h.make_tensor_type_proto(T.FLOAT, [2])))
    node.attribute.append(h.make_attribute("tensors", [tensor("a", weight(2)), tensor("b", weight(2))]))
    node.attribute.add(name="alien", type=13)
    node.attribute.add(name="untyped", i=3)
    node.attribute.add(name="reference", type=onnx.AttributeProto.INT, ref_attr_name="outer")
    node.attribute.add(name="odd", type=onnx.AttributeProto.TENSOR).t.CopyFrom(T(data_type=77, dims=[2]))
    node.attribute.add(name="empty", type=onnx.AttributeProto.INTS)


def odd_values(model: onnx.ModelProto) -> None:
    tensor_type = h.make_tensor_type_proto(T.FLOAT, [2])
    kinds = {
        "optional": h.make_optional_type_proto(tensor_type),
        "map": h.make_map_type_proto(T.STRING, tensor_type),
        "sequence": h.make_sequence_type_proto(h.make_sequence_type_proto(tensor_type)),
        "sparse": h.make_sparse_tensor_type_proto(T.FLOAT, [2]),
        "alien": h.make_tensor_type_proto(T.FLOAT, None),
    }
    kinds["alien"].tensor_type.elem_type = 77
    for name, kind in kinds.items():
        model.graph.value_info.add(name=name).type.CopyFrom(kind)
        model.graph.input.add(name=f"{name}.in").type.CopyFrom(kind)
    model.graph.value_info.add(name="nothing")


def training(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.node.append(h.make_node("Neg", ["b"], ["b_new"]))


def device_configurations(model: onnx.ModelProto) -> None:
    model.configuration.add(name="two", num_devices=2)
    model.graph.node[1].device_configurations.add(configuration_id="two")


def subgraphs(model: onnx.ModelProto) -> None:
    inner = h.make_graph(
        [h.make_node("Neg", ["v"], ["t"], doc_string="d")], "inner", [], [value("t", None)], doc_string="b"
    )
    inner.metadata_props.add(key="k", value="v")
    inner.initializer.append(tensor("unused.inner", weight(2)))
    model.graph.initializer.append(tensor("v", weight(4, 4)))
    model.graph.node.append(h.make_node("If", ["c"], ["z"], name="if", then_branch=inner, else_branch=inner))
    model.graph.node.append(h.make_node("Many", ["c"], ["m"], domain="com.acme", cases=[inner, inner]))
    model.graph.node.append(h.make_node("Neg", ["v"], ["nv"]))


EXTRAS = [
    metadata,
    quantization_annotation,
    functions,
    initializer_as_input,
    unused_initializer,
    odd_tensors,
    external_tensor,
    sparse_initializer,
    odd_attributes,
    odd_values,
    training,
    device_configurations,
    subgraphs,
]


def rewritten(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    skeleton, _ = strip(model)
    chosen = [choose(site, 2) for site in sites_of(skeleton)]
    assert [choice.site.name for choice in chosen] == ["fc"]
    return skeleton, rewrite(skeleton, chosen, tool_version="1", placeholder=placeholder).skeleton


@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: extra.__name__)
def test_only_the_site_changes(extra: Callable[[onnx.ModelProto], None]) -> None:
    model = base()
    extra(model)
    assert model.SerializeToString() != base().SerializeToString()
    assert changes(*rewritten(model)) == FC


def test_only_the_site_changes_with_everything_at_once() -> None:
    model = base()
    for extra in EXTRAS:
        extra(model)
    assert changes(*rewritten(model)) == FC


def test_fields_that_this_version_of_onnx_does_not_know_are_kept() -> None:
    unknown = b"\xfa\x3f\x03abc"  # Field 1023, three bytes.
    model = onnx.ModelProto.FromString(base().SerializeToString() + unknown)
    before, after = rewritten(model)
    assert changes(before, after) == FC
    assert after.SerializeToString().count(b"\x03abc") == 1


def test_a_model_with_odd_parts_still_runs() -> None:
    model = base()
    for extra in (metadata, unused_initializer, initializer_as_input):
        extra(model)
    outcome: Outcome = compress(model)
    assert outcome.model.metadata_props[0].value == "a b c"


@pytest.mark.parametrize(
    "damage",
    [
        lambda model: model.metadata_props.add(key="k", value="v"),
        lambda model: setattr(model.graph, "doc_string", "other"),
        lambda model: model.graph.node[2].metadata_props.add(key="k", value="v"),
        lambda model: model.graph.node.reverse(),
        lambda model: model.graph.output[0].type.tensor_type.shape.dim[0].ClearField("dim_value"),
        lambda model: setattr(model.graph.node[2], "op_type", "Tanh"),
    ],
)
def test_the_comparison_can_fail(damage: Callable[[onnx.ModelProto], object]) -> None:
    before, after = rewritten(base())
    damage(after)
    try:
        found = changes(before, after)
    except AssertionError:
        return
    assert found != FC
