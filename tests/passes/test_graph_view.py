from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

from lowrank_onnx.errors import ModelError
from lowrank_onnx.passes.dataflow import read_dataflow
from lowrank_onnx.passes.graph_view import MAX_NESTING, view_model
from tests.passes.models import make_model, sites_of, tensor, value, weight


def nested(depth: int) -> onnx.ModelProto:
    """`depth` subgraphs inside each other, built without a recursion."""
    model = make_model([], [value("c", [], T.BOOL), value("x", [2, 4])], [value("y", None)], {"w": weight(4, 4)})
    graph = model.graph
    for level in range(depth):
        node = graph.node.add(op_type="If", name=f"if{level}", input=["c"], output=["y"])
        attribute = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        graph = attribute.g
        graph.output.add(name="y")
    graph.node.append(h.make_node("MatMul", ["x", "w"], ["y"], name="fc"))
    return model


def test_nesting_up_to_the_limit_is_walked() -> None:
    (site,) = sites_of(nested(MAX_NESTING))
    assert len(site.scope) == MAX_NESTING
    assert site.weight.scope == ()


@pytest.mark.parametrize("depth", [MAX_NESTING + 1, 500])
def test_deeper_nesting_is_an_error(depth: int) -> None:
    with pytest.raises(ModelError, match="nested more than 30 deep; flatten the model"):
        view_model(nested(depth))


@pytest.mark.parametrize("where", ["graph.node", "graph.input", "graph.initializer"])
def test_names_that_are_not_utf8_are_an_error(where: str) -> None:
    name = "AAAAAA"
    model = make_model(
        [h.make_node("MatMul", ["x", "w"], ["y"], name=name if where == "graph.node" else "")],
        [value("x" if where != "graph.input" else name, [2, 4])],
        [value("y", [2, 4])],
        {"w" if where != "graph.initializer" else name: weight(4, 4)},
    )
    broken = onnx.ModelProto.FromString(model.SerializeToString().replace(b"AAAAAA", b"\xff\xfeAAAA"))
    with pytest.raises(ModelError, match=r"graph main: the name b'\\xff\\xfeAAAA' isn't valid UTF-8"):
        view_model(broken)


def test_the_name_of_a_graph_may_be_no_utf8() -> None:
    model = make_model(
        [h.make_node("MatMul", ["x", "w"], ["y"])], [value("x", [2, 4])], [value("y", [2, 4])], {"w": weight(4, 4)}
    )
    model.graph.name = "AAAAAA"
    broken = onnx.ModelProto.FromString(model.SerializeToString().replace(b"AAAAAA", b"\xff\xfeAAAA"))
    assert len(view_model(broken).scopes[()].nodes) == 1
    assert read_dataflow(broken).node(0).op_type == "MatMul"


def test_two_subgraphs_of_one_name_are_an_error() -> None:
    model = nested(1)
    model.graph.node[0].attribute.append(model.graph.node[0].attribute[0])
    with pytest.raises(ModelError, match="if0/then_branch/: two subgraphs of one node share this name"):
        view_model(model)


@pytest.mark.parametrize(
    ("method", "what"),
    [("import_node", r"node 'fc' \(MatMul\)"), ("import_tensor", "initializer 'w'"), ("import_graph", "graph 'main'")],
)
def test_what_the_importer_refuses_is_named(monkeypatch: pytest.MonkeyPatch, method: str, what: str) -> None:
    def refuse(*args: object, **options: object) -> None:
        if method != "import_graph" or "import_domains" in options:
            raise KeyError("no such kind\nsecond line")

    monkeypatch.setattr(OnnxImporter, method, staticmethod(refuse))
    with pytest.raises(
        ModelError, match=f"^onnx-graphsurgeon can't import {what}: .*no such kind.*; remove or re-export"
    ):
        view_model(nested(0))


def test_a_value_that_the_importer_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = OnnxImporter.import_tensor

    def refuse(proto: object) -> object:
        if isinstance(proto, onnx.ValueInfoProto):
            raise KeyError(77)
        return original(proto)

    monkeypatch.setattr(OnnxImporter, "import_tensor", staticmethod(refuse))
    with pytest.raises(ModelError, match="can't import value 'c': 77; remove or re-export it"):
        view_model(nested(0))


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """onnx-graphsurgeon warns on standard output about what it doesn't know, bfloat16 among it."""
    model = nested(1)
    model.graph.initializer.append(tensor("b", weight(2, dtype="bfloat16")))
    model.opset_import[0].domain = "com.acme"
    view_model(model)
    assert capsys.readouterr() == ("", "")


def test_shapes_are_seen_from_inner_graphs() -> None:
    view = view_model(nested(2))
    inner = view.scopes[((0, "then_branch"), (0, "then_branch"))]
    assert inner.dims("x") == (2, 4)
    assert inner.dims("w") == (4, 4)
    assert inner.dims("y") is None
    assert inner.dims("nowhere") is None


def test_uses_count_every_slot_and_output() -> None:
    model = make_model(
        [h.make_node("Add", ["x", "x"], ["y"])],
        [value("x", [2])],
        [value("y", [2]), value("x", [2])],
        {"w": np.ones(1)},
    )
    uses = view_model(model).uses
    assert [(use.node_index, use.slot) for use in uses[(), "x"]] == [(0, 0), (0, 1), (-1, 1)]
    assert ((), "w") not in uses
