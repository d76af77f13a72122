from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper as h

from lowrank_onnx.config import OP_TYPES
from lowrank_onnx.errors import ModelError, OutputError, UsageError
from lowrank_onnx.evaluate.session import CPU, Runner, open_session
from lowrank_onnx.forms import PAIR
from lowrank_onnx.latency import table as site_latency
from lowrank_onnx.latency.curve import LatencyCurve
from lowrank_onnx.latency.table import LatencyTable, Unmeasured
from lowrank_onnx.passes import find_sites
from lowrank_onnx.types import Array, Feed, Site
from tests.latency.workbench import Workbench, found_in, layers, measure, measured, milliseconds, reason
from tests.passes.models import make_model, strip, value, weight


def test_the_curve_has_the_times_of_the_sessions() -> None:
    curve = measured(Workbench().table(), layers((64, 96)))
    assert curve.ranks == (8, 16, 24, 32)  # multiples of 8 below 64 * 96 / 160
    assert curve.dense_ms == pytest.approx(milliseconds(64 * 96))
    assert curve.rank_ms == pytest.approx([milliseconds(rank * 160) for rank in curve.ranks])
    assert curve.noise == 0.03
    assert curve.at(20) == pytest.approx(milliseconds(20 * 160))
    assert [curve.faster(rank) for rank in (8, 36, 39)] == [True, True, False]


def test_at_most_five_ranks_are_measured_evenly_spread() -> None:
    bench = Workbench()
    curve = measured(bench.table(seconds_per_site=100.0), layers((512, 512)), (5, 512))
    assert curve.ranks == (16, 80, 128, 176, 240)
    assert len(bench.opened) == 6


def test_equal_layers_are_measured_once() -> None:
    bench = Workbench()
    first, second = measure(bench.table(), layers((64, 96), (64, 96)))
    assert first is second
    assert len(bench.opened) == 5


def test_different_layers_are_measured_each() -> None:
    bench = Workbench()
    table = bench.table()
    first, second = measure(table, layers((64, 96), (64, 80)))
    assert first != second
    assert len(bench.opened) == 10
    measure(table, layers((64, 96)), (6, 64))  # another number of rows
    assert len(bench.opened) == 15


def conv(**attributes: Any) -> onnx.ModelProto:
    node = h.make_node("Conv", ["in", "w"], ["out"], name="conv", **attributes)
    return make_model([node], [value("in")], [value("out")], {"w": weight(16, 16, 3, 3)})


def test_another_attribute_is_another_measurement(tmp_path: Path) -> None:
    bench = Workbench()
    table = bench.table(tmp_path)
    for attributes in ({}, {"strides": [2, 2]}, {"strides": [1, 2]}, {"strides": [2, 2]}):
        measure(table, conv(**attributes), (1, 16, 12, 12))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_later_table_reads_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "yet"
    curve = measured(Workbench().table(directory), layers((64, 96)))
    later = Workbench()
    assert measured(later.table(directory), layers((64, 96))) == curve
    assert later.opened == []
    (entry,) = directory.iterdir()
    assert json.loads(entry.read_text())["key"] == entry.stem


@pytest.mark.parametrize(
    "options",
    [{"threads": 2}, {"threads": None}, {"provider": "cuda"}, {"seconds_per_site": 3.0}, {"memory_bytes": 10**6}],
)
def test_other_conditions_don_t_reuse_an_entry(tmp_path: Path, options: dict[str, Any]) -> None:
    measured(Workbench().table(tmp_path), layers((64, 96)))
    later = Workbench()
    measured(later.table(tmp_path, **options), layers((64, 96)))
    assert len(later.opened) == 5
    assert len(list(tmp_path.iterdir())) == 2


def test_another_machine_s_entries_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(Workbench().table(tmp_path), layers((64, 96)))
    monkeypatch.setattr(site_latency, "machine_key", lambda provider, threads: "another machine")
    later = Workbench()
    measured(later.table(tmp_path), layers((64, 96)))
    assert len(later.opened) == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"key": "', '"key": "0'),
        lambda text: json.dumps({**json.loads(text), "dense_ms": -1.0}),
        lambda text: json.dumps({**json.loads(text), "rank_ms": [math.nan] * 4}),
        lambda text: json.dumps({**json.loads(text), "ranks": [8, 16, 24, 33]}),
    ],
)
def test_a_damaged_entry_is_measured_again_and_mended(tmp_path: Path, damage: Callable[[str], str]) -> None:
    curve = measured(Workbench().table(tmp_path), layers((64, 96)))
    (entry,) = tmp_path.iterdir()
    entry.write_text(damage(entry.read_text()))
    later = Workbench()
    assert measured(later.table(tmp_path), layers((64, 96))) == curve
    assert len(later.opened) == 5
    latest = Workbench()
    assert measured(latest.table(tmp_path), layers((64, 96))) == curve
    assert latest.opened == []
    assert [path.name for path in tmp_path.iterdir()] == [entry.name]


def test_an_entry_of_another_site_is_not_taken_for_this_one(tmp_path: Path) -> None:
    measured(Workbench().table(tmp_path), layers((64, 96)))
    (other,) = tmp_path.iterdir()
    text = other.read_text()
    other.unlink()
    curve = measured(Workbench().table(tmp_path), layers((64, 80)))
    (entry,) = tmp_path.iterdir()
    entry.write_text(text)
    assert measured(Workbench().table(tmp_path), layers((64, 80))) == curve


def test_the_same_input_makes_the_same_entry(tmp_path: Path) -> None:
    for name in ("a", "b"):
        measured(Workbench().table(tmp_path / name), layers((64, 96)))
    first, second = (next((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert (first.name, first.read_bytes()) == (second.name, second.read_bytes())


def test_a_node_that_the_runtime_refuses_has_a_reason() -> None:
    def refuse(model: bytes) -> Runner:
        raise ModelError("onnxruntime can't load the model: no kernel")

    table = Workbench().table(open_model=refuse)
    assert reason(table, layers((64, 96))) == (
        "the node can't be timed on its own: onnxruntime can't load the model: no kernel"
    )


def test_a_refusal_is_not_kept_on_disk(tmp_path: Path) -> None:
    attempts: list[bytes] = []

    def refuse(model: bytes) -> Runner:
        attempts.append(model)
        raise ModelError("out of memory")

    table = Workbench().table(tmp_path, open_model=refuse)
    assert reason(table, layers((64, 96))) == reason(table, layers((64, 96)))
    assert len(attempts) == 1
    assert list(tmp_path.iterdir()) == []
    assert measured(Workbench().table(tmp_path), layers((64, 96))).ranks == (8, 16, 24, 32)


def test_a_provider_that_leaves_new_nodes_to_another_has_a_reason() -> None:
    bench = Workbench()

    def dense_only(model: bytes) -> Runner:
        if len(onnx.load_from_string(model).graph.node) > 1:
            raise UsageError("provider X: it can't run every node")
        return bench.open(model)

    assert reason(bench.table(open_model=dense_only), layers((64, 96))) == (
        "the node can't be timed on its own: at rank 8: provider X: it can't run every node"
    )


def test_a_provider_that_isn_t_there_is_the_user_s_to_mend() -> None:
    with pytest.raises(UsageError, match="provider 'nowhere': this onnxruntime has"):
        measure(LatencyTable(None, provider="nowhere"), layers((64, 96)))


def test_no_rank_worth_considering_is_a_reason() -> None:
    bench = Workbench()
    assert reason(bench.table(), layers((2, 2)), (5, 2)) == "its matrices are 2 x 2: factors are smaller at no rank"
    assert bench.opened == []


def test_a_single_rank_is_measured() -> None:
    assert measured(Workbench().table(), layers((3, 4)), (5, 3)).ranks == (1,)


def test_an_empty_input_is_a_reason() -> None:
    assert reason(Workbench().table(), layers((64, 96)), (0, 64)) == "its input of shape [0, 64] is empty"


def test_memory_bounds_the_ranks() -> None:
    # Dense has 24,576 bytes, rank r 640 r: all four ranks together have 75,776 bytes, the first and last 50,176.
    model = layers((64, 96))
    everything, both = 24_576 + 640 * (8 + 16 + 24 + 32), 24_576 + 640 * (8 + 32)
    assert measured(Workbench().table(memory_bytes=everything), model).ranks == (8, 16, 24, 32)
    assert measured(Workbench().table(memory_bytes=everything - 1), model).ranks == (8, 24, 32)
    assert measured(Workbench().table(memory_bytes=both), model).ranks == (8, 32)
    bench = Workbench()
    assert reason(bench.table(memory_bytes=both - 1), model) == (
        "its weight and bias have 24576 bytes: timing it dense and at ranks would take more than 50175 bytes of memory"
    )
    assert bench.opened == []


def huge(bias: Sequence[int]) -> tuple[onnx.ModelProto, Site]:
    """A Gemm whose bias claims a shape of its own, without values."""
    node = h.make_node("Gemm", ["in", "w", "b"], ["out"], name="layer")
    skeleton, _ = strip(make_model([node], [value("in")], [value("out")], {"w": weight(64, 96), "b": weight(96)}))
    stored = skeleton.graph.initializer[1]
    del stored.dims[:]
    stored.dims.extend(bias)
    (site,), _ = find_sites(skeleton, op_types=OP_TYPES)
    return skeleton, site


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ([-1, 96], "its bias has shape [-1, 96]: a dimension below 0"),
        ([100_000, 100_000], "its weight and bias have 40000024576 bytes, more than a serialized model can hold"),
        (
            [20_000, 20_000],
            (
                "its weight and bias have 1600024576 bytes: timing it dense and at ranks would take more than "
                "1073741824 bytes of memory"
            ),
        ),
    ],
)
def test_a_claimed_size_is_checked_before_anything_is_made(dims: list[int], expected: str) -> None:
    bench = Workbench()
    assert bench.table().curve(*huge(dims), PAIR, (5, 64)) == Unmeasured(expected)
    assert bench.opened == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds_per_site": 0.0}, "0 s per site: expected some time, e.g. 2"),
        ({"seconds_per_site": math.nan}, "nan s per site: expected some time, e.g. 2"),
        ({"threads": 0}, "0 threads: expected at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Workbench().table(**options)


def test_a_directory_that_can_t_be_made_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="give a directory that can be written"):
            Workbench().table(directory)


def test_a_directory_that_can_t_be_written_to_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OutputError, match="it can't be written to"):
        Workbench().table(tmp_path)


def test_a_site_of_another_model_is_refused() -> None:
    _, (site,) = found_in(layers((64, 96)))
    with pytest.raises(ValueError, match="site 'layer0' isn't in this model"):
        Workbench().table().curve(conv(), site, PAIR, (5, 64))


def real(bench: Workbench, shapes: list[tuple[int, ...]]) -> Callable[[bytes], Runner]:
    """Opens real sessions whose runs move the bench's clock on, so that no test depends on time."""

    def opened(model: bytes) -> Runner:
        return _Real(open_session(model, threads=1), bench.open(model), shapes)

    return opened


class _Real:
    def __init__(self, session: Runner, timed: Runner, shapes: list[tuple[int, ...]]) -> None:
        self.inputs, self.outputs, self.logits = session.inputs, session.outputs, session.logits
        self._session, self._timed, self._shapes = session, timed, shapes
        self._ran = False

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        self._timed.run(feed)
        if self._ran:
            return {}
        self._ran = True
        found = self._session.run(feed, outputs)
        assert np.isfinite(found["y"]).all()
        self._shapes.append(found["y"].shape)
        return found


def node_model(op_type: str, weights: dict[str, Array], **attributes: Any) -> onnx.ModelProto:
    node = h.make_node(op_type, ["in", *weights], ["out"], name="layer", **attributes)
    return make_model([node], [value("in")], [value("out")], weights)


REAL: dict[str, tuple[onnx.ModelProto, tuple[int, ...], tuple[int, ...]]] = {
    "conv": (
        node_model("Conv", {"w": weight(32, 8, 3, 3), "b": weight(32)}, strides=[2, 1], pads=[1, 1, 0, 1], group=2),
        (2, 16, 11, 9),
        (2, 32, 5, 9),
    ),
    "conv transpose": (
        node_model("ConvTranspose", {"w": weight(16, 8, 3, 3), "b": weight(16)}, strides=[2, 2], group=2),
        (1, 16, 5, 6),
        (1, 16, 11, 13),
    ),
    "gemm": (node_model("Gemm", {"w": weight(40, 24), "b": weight(1, 40)}, transB=1), (7, 24), (7, 40)),
    "matmul": (node_model("MatMul", {"w": weight(24, 40)}), (2, 3, 4, 24), (2, 3, 4, 40)),
}


@pytest.mark.parametrize("name", REAL)
def test_real_sessions_run_dense_and_at_every_rank(name: str) -> None:
    model, input_shape, output_shape = REAL[name]
    shapes: list[tuple[int, ...]] = []
    bench = Workbench()
    table = bench.table(open_model=real(bench, shapes))
    curve = measured(table, model, input_shape)
    assert shapes == [output_shape] * (1 + len(curve.ranks))
    assert len(curve.ranks) >= 3
    dense, *low_rank = bench.opened
    assert dense.graph.node[0].op_type == model.graph.node[0].op_type
    assert [len(proto.graph.node) for proto in low_rank] == [2] * len(curve.ranks)


def test_sites_in_subgraphs_are_timed() -> None:
    branch = [
        h.make_graph([h.make_node("MatMul", ["in", "w"], [name], name=name)], name, [], [value(name)])
        for name in ("yes", "no")
    ]
    node = h.make_node("If", ["which"], ["out"], then_branch=branch[0], else_branch=branch[1])
    inputs = [value("which", [], onnx.TensorProto.BOOL), value("in", [5, 64])]
    shapes: list[tuple[int, ...]] = []
    bench = Workbench()
    table = bench.table(open_model=real(bench, shapes))
    first, second = measure(table, make_model([node], inputs, [value("out")], {"w": weight(64, 96)}))
    assert isinstance(first, LatencyCurve)
    assert first is second  # both branches hold the same node
    assert shapes == [(5, 96)] * 5


def test_an_input_that_doesn_t_fit_is_a_reason_from_the_runtime() -> None:
    table = LatencyTable(None, provider=CPU, threads=1)
    assert reason(table, layers((64, 96)), (5, 63)).startswith("the node can't be timed on its own: onnxruntime can't ")


def test_a_dtype_that_the_provider_lacks_is_a_reason_from_the_runtime() -> None:
    node = h.make_node("MatMul", ["in", "w"], ["out"], name="layer")
    values = value("in", None, onnx.TensorProto.BFLOAT16), value("out", None, onnx.TensorProto.BFLOAT16)
    model = make_model([node], [values[0]], [values[1]], {"w": weight(64, 96, dtype="bfloat16")})
    found = reason(LatencyTable(None, provider=CPU, threads=1), model)
    assert found.startswith("the node can't be timed on its own: onnxruntime can't load the model:")


def test_on_the_real_clock_there_are_times(tmp_path: Path) -> None:
    def table() -> LatencyTable:
        return LatencyTable(tmp_path, provider=CPU, threads=1, seconds_per_site=0.1)

    curve = measured(table(), layers((64, 96)))
    assert curve.ranks[0] == 8
    assert len(curve.ranks) >= 2
    assert measured(table(), layers((64, 96))) == curve  # read, not measured
