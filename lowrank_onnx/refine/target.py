"""What a site should compute on the compressed model's inputs: what it computed in the original, or more than that.

A site whose output ends in a sum can also make good what the other term of the sum got wrong. With R and R' that term
in the original and in the compressed model, and g the constants between the site and the sum, the target is
``g X W + (R - R')`` for ``X' M g``: biases cancel.

A site whose outputs end in others' weights W2, features alike, is solved in the metric of what these sum up: an error e
counts as ``||e W2||``, as it would without an activation in between, and by itself. On the shipped VGG at 0.45 of its
MACs that leaves 0.91 to 0.94 of the error (2,000 test images, three draws of 512 to calibrate with).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from lowrank_onnx.linalg.lapack import cholesky_upper, solve_upper
from lowrank_onnx.model_io import Model
from lowrank_onnx.moments.row_layout import Columns, LastAxis, RowLayout
from lowrank_onnx.passes.dataflow import Dataflow
from lowrank_onnx.passes.residual import Residual, stored_constant
from lowrank_onnx.refine.steps import Member, output_layout
from lowrank_onnx.types import Array, Site, rearrange
from lowrank_onnx.weight_reader import WeightReader

PLAIN = 1.0
"""What each output counts by itself, in units of what one counts on average by what the next weights make of it. Errors
of two outputs that cancel there do so only where an activation passes both on: where it passes on every second value by
chance, what counts is half of the products and half of their diagonal."""

MOST_IN_METRIC = 4096
"""Outputs up to which their metric, with as many numbers squared, is worth its time."""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """``T = X W + (R - R')``, in the metric of the sums that the site writes into or ends in, if it does.

    Attributes
    ----------
    W : (groups, in, out) float32 or float64: the original's, in the metric.
    gain : (groups, 1, out), or (1, 1, 1) where it is the same for all.
    carried, layout : the name of R, and how its rows lie; None where nothing is carried.
    metric : (out, out), the upper triangular U with U'U the products of the rows that sum over the outputs; None where
        that isn't known. Only where the gain is 1, and of one group.
    """

    W: Array
    gain: Array
    carried: str | None
    layout: RowLayout | None
    metric: Array | None = None

    def in_metric(self, right: Array) -> Array:
        """A matrix (groups, ..., out) of outputs as they act on the sums."""
        if self.metric is not None:
            return np.asarray(right @ self.metric.T)
        return right if self.gain.size == 1 and self.gain.item() == 1.0 else np.asarray(right * self.gain)

    def out_of_metric(self, right: Array) -> Array:
        """The matrix (groups, ..., out) whose outputs act so on the sums; where the gain is 0 nothing does."""
        if self.metric is not None:
            rows = right.reshape(-1, right.shape[-1])
            return np.ascontiguousarray(solve_upper(self.metric, rows.T, transposed=False).T).reshape(right.shape)
        return np.divide(right, self.gain, out=np.zeros_like(right), where=np.broadcast_to(self.gain != 0, right.shape))


def find_target(model: Model, flow: Dataflow, member: Member) -> Target:
    """The target of one site, with its weight read from the file."""
    weight, site = member.replaced.weight, member.site
    stored = WeightReader(model, [weight]).read(weight)
    dtype = np.float64 if weight.dtype == "float64" else np.float32
    W = rearrange(stored, site.to_matrices).astype(dtype)
    layout = output_layout(model.skeleton, site)
    if member.residual is None or layout is None:
        plain = Target(W, np.ones((1, 1, 1), dtype), None, None, _metric(model, member, dtype))
        return replace(plain, W=plain.in_metric(W))
    gain = _gain(model, flow, member.residual, site, layout)
    if gain is None:
        return Target(W, np.ones((1, 1, 1), dtype), None, None)
    gain = gain.astype(dtype)
    return Target(W * gain, gain, member.residual.carried, layout)


def _metric(model: Model, member: Member, dtype: type[np.float32] | type[np.float64]) -> Array | None:
    """The triangular factor of what the sites that sum over the outputs make of each pair of them, and of `PLAIN`.

    None where there are none, or they see but some directions: what an activation makes of the others is then most of
    what matters. With such a metric the shipped ViT and MiniLM-L6, whose MLPs narrow again, have 0 to 2 % more error.
    """
    size = member.site.shape.out_features
    columns = sum(site.shape.in_features * site.shape.out_features // size for site in member.summing)
    if columns < size or size > MOST_IN_METRIC:
        return None
    products = np.zeros((size, size))
    reader = WeightReader(model, [site.weight for site in member.summing])
    for site in member.summing:
        rows = rearrange(reader.read(site.weight), site.to_matrices)[0].astype(dtype).reshape(size, -1)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows stays infinite, and shows below
            products += rows @ rows.T
    mean = float(np.trace(products)) / size
    if not (np.isfinite(products).all() and mean > np.finfo(dtype).tiny):
        return None
    factor = cholesky_upper(products / mean + PLAIN * np.eye(size))
    return None if factor is None else factor.astype(dtype)


def _gain(model: Model, flow: Dataflow, residual: Residual, site: Site, layout: RowLayout) -> Array | None:
    """The product of alpha and the gains; None where one isn't a finite number for each output feature."""
    groups, out_features = site.shape.groups, site.shape.out_features
    product = np.full((groups, 1, out_features), residual.alpha)
    for gain in residual.gains:
        tensor = stored_constant(flow, gain.name)
        if tensor is None or not _is_for_features(tuple(tensor.dims), layout, groups * out_features, site):
            return None
        values = model.store.array(tensor).astype(np.float64)
        values = values.reshape(groups, 1, out_features) if values.size > 1 else values.reshape(1, 1, 1)
        if not np.isfinite(values).all() or (gain.divides and not values.all()):
            return None
        product = product / values if gain.divides else product * values
    return product if np.any(product) else None


def _is_for_features(shape: tuple[int, ...], layout: RowLayout, features: int, site: Site) -> bool:
    """Whether a constant of this shape holds one number for each output feature, or one for all."""
    if math.prod(shape) == 1:
        return True
    if isinstance(layout, LastAxis):
        after = 0
    elif isinstance(layout, Columns):
        after = 1
    else:
        after = len(site.weight.shape) - 2
    return math.prod(shape) == features == shape[-1 - after] if len(shape) > after else False
