"""Models with one operator or two, feeds for them, and rows worked out the slow and obvious way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lowrank_onnx.evaluate.feeds import FeedGroup, Feeds
from lowrank_onnx.evaluate.session import Session, open_session
from lowrank_onnx.moments import Moment, observe_moments
from lowrank_onnx.types import Array, Feed, Site, rearrange
from tests.passes.models import make_model, sites_of, value


def run(proto: onnx.ModelProto) -> Session:
    return open_session(proto.SerializeToString(), threads=1)


def feeds_of(arrays: Sequence[Array]) -> Feeds:
    def load() -> Iterator[Feed]:
        for array in arrays:
            yield {"x": array}

    return Feeds("arrays", False, len(arrays), (FeedGroup(len(arrays), load),))


def observe(
    model: onnx.ModelProto, arrays: Sequence[Array], *, seed: int = 0, **options: Any
) -> dict[str, Moment | str]:
    return dict(observe_moments(model, sites_of(model), run, feeds_of(arrays), seed=seed, **options))


def only_moment(results: Mapping[str, Moment | str]) -> Moment:
    (result,) = results.values()
    assert isinstance(result, Moment), result
    return result


def moment_of(results: Mapping[str, Moment | str], name: str) -> Moment:
    result = results[name]
    assert isinstance(result, Moment), result
    return result


def whole_numbers(*shape: int, seed: int = 0) -> Array:
    """Small whole numbers: their sums of squares are exact in float32, in any order."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


def one_operator(op_type: str, weight: Array, *, weight_slot: int = 1, **attributes: Any) -> onnx.ModelProto:
    names = ["x", "w"] if weight_slot == 1 else ["w", "x"]
    node = helper.make_node(op_type, names, ["y"], name="site", **attributes)
    return make_model([node], [value("x")], [value("y")], {"w": weight})


def matrices_of(model: onnx.ModelProto, site: Site) -> Array:
    (stored,) = (t for t in model.graph.initializer if t.name == site.weight.name)
    return rearrange(numpy_helper.to_array(stored), site.to_matrices)


def exact_moment(rows: Array) -> tuple[Array, Array]:
    """Second moment and mean of rows (groups, n, in), in float64."""
    wide = rows.astype(np.float64)
    return np.einsum("gni,gnj->gij", wide, wide) / wide.shape[1], wide.mean(axis=1)


@dataclass(frozen=True)
class ConvCase:
    samples: int
    groups: int
    channels: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    seed: int

    @property
    def model(self) -> onnx.ModelProto:
        # 2 output channels for each group, and at least 2 columns and rows, make every case a site.
        shape = (2 * self.groups, self.channels, *self.kernel)
        attributes: dict[str, Any] = {"strides": self.strides, "dilations": self.dilations, "group": self.groups}
        if self.auto_pad == "NOTSET":
            attributes["pads"] = self.pads
        else:
            attributes["auto_pad"] = self.auto_pad
        return one_operator("Conv", whole_numbers(*shape, seed=self.seed), **attributes)

    @property
    def activation(self) -> Array:
        return whole_numbers(self.samples, self.groups * self.channels, *self.spatial, seed=self.seed + 1)

    def all_rows(self) -> Array:
        """(groups, rows, in): every patch, cut out of the padded activation one after the other."""
        dims = len(self.spatial)
        pads = (0,) * (2 * dims) if self.auto_pad == "VALID" else self.pads
        around = [(0, 0), (0, 0), *((pads[axis], pads[dims + axis]) for axis in range(dims))]
        padded = np.pad(self.activation, around)
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        starts = [
            range(0, size - span + 1, stride)
            for size, span, stride in zip(padded.shape[2:], spans, self.strides, strict=True)
        ]
        rows = []
        for sample in padded:
            for corner in itertools.product(*starts):
                window = tuple(
                    slice(at, at + span, dilation)
                    for at, span, dilation in zip(corner, spans, self.dilations, strict=True)
                )
                rows.append(sample[(slice(None), *window)].reshape(self.groups, -1))
        return np.stack(rows, axis=1)
