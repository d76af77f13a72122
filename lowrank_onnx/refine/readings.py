"""What is read of the original for a step: what its sites make of their inputs, as far as that is in their outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from lowrank_onnx.model_io import Model
from lowrank_onnx.passes.dataflow import Dataflow
from lowrank_onnx.passes.residual import stored_constant
from lowrank_onnx.refine.ahead import Reading
from lowrank_onnx.refine.steps import Step, output_layout
from lowrank_onnx.refine.target import Target
from lowrank_onnx.types import Array, Site

EXACT = ("float32", "float64")
"""Types of outputs from which products can be read; what others have rounded is multiplied anew."""


@dataclass(frozen=True, slots=True, eq=False)
class StepReadings:
    """The values of the original that make a step's targets.

    Attributes
    ----------
    products : of each site its output; or what all of them read, where one's output doesn't say what W made of that.
    outputs : whether `products` are outputs.
    carried : the other term of the sum that the only site writes into, where that differs in the two models.
    afterwards : whether W multiplies not what is read, row by row, but what its rows add up to.
    """

    products: tuple[Reading, ...]
    outputs: bool
    carried: Reading | None
    afterwards: bool = False

    @property
    def all(self) -> tuple[Reading, ...]:
        """Products, then what is carried."""
        return self.products if self.carried is None else (*self.products, self.carried)

    def multiplied(self, rows: Sequence[Array], targets: Sequence[Target]) -> Array:
        """Rows of ``X W``, the sites side by side and in their metrics, (groups, n, out), from rows of `products`."""
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows stays infinite, and shows in the result
            if self.outputs:
                parts = [target.in_metric(one) for target, one in zip(targets, rows, strict=True)]
            else:
                parts = [rows[0] @ target.W for target in targets]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def find_readings(model: Model, flow: Dataflow, step: Step, changed: frozenset[str], rows: int) -> StepReadings:
    """What to read for a step.

    Parameters
    ----------
    changed : values that may differ in the compressed model.
    rows : how many will be read.
    """
    residual, layout = step.members[0].residual, output_layout(flow.skeleton, step.members[0].site)
    carried = None
    if residual is not None and layout is not None and residual.carried in changed:
        carried = Reading(residual.carried, layout)
    inputs = (Reading(step.value, step.layout),)
    if carried is None and _is_cheaper_afterwards(step, rows, products=1):
        return StepReadings(inputs, False, None, True)
    found = [_output(model, flow, member.site) for member in step.members]
    outputs = tuple(one for one in found if one is not None)
    if len(outputs) == len(found):
        return StepReadings(outputs, True, carried)
    return StepReadings(inputs, False, carried, carried is None and _is_cheaper_afterwards(step, rows, products=2))


def _is_cheaper_afterwards(step: Step, rows: int, *, products: int) -> bool:
    """Whether equations take less time from inputs X that W multiplies when they are added up.

    That takes ``3/2 in**2`` multiplications a row, X'' X and X' X, and once ``2 in**2 out``, for what W makes of these;
    otherwise it is ``in out`` a row, from outputs, and as much again where X has to be multiplied first: so many
    `products`.
    """
    size = step.members[0].site.shape.in_features
    outputs = sum(member.site.shape.out_features for member in step.members)
    return rows * products * outputs > 1.5 * rows * size + 2 * size * outputs


def _output(model: Model, flow: Dataflow, site: Site) -> Reading | None:
    """The output of a site, and how to get from it to the product; None where that isn't known."""
    layout, node = output_layout(flow.skeleton, site), flow.node(site.node_index)
    if layout is None or site.weight.dtype not in EXACT:
        return None
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    scale = float(attributes.get("alpha", 1.0)) if site.op_type == "Gemm" else 1.0
    beta = float(attributes.get("beta", 1.0)) if site.op_type == "Gemm" else 1.0
    bias = _bias(model, flow, node, site)
    if bias is None or scale == 0.0:
        return None
    return Reading(site.output, layout, scale, bias * beta)


def _bias(model: Model, flow: Dataflow, node: onnx.NodeProto, site: Site) -> Array | float | None:
    """What a node adds to the product, (groups, 1, out) or 0; None where it isn't a stored number for each feature."""
    name = node.input[2] if site.op_type in ("Conv", "Gemm") and len(node.input) > 2 else ""
    if not name:
        return 0.0
    tensor = stored_constant(flow, name)
    shape = site.shape
    if tensor is None or not _is_for_features(tuple(tensor.dims), shape.groups * shape.out_features, node, site):
        return None
    values: Array = model.store.array(tensor).astype(np.float64)
    return values.reshape(shape.groups, 1, shape.out_features)


def _is_for_features(dims: tuple[int, ...], features: int, node: onnx.NodeProto, site: Site) -> bool:
    weight_on_the_right = site.op_type == "Conv" or node.input[0] == site.input
    along = dims[-1:] if weight_on_the_right else dims[-2:-1]
    return math.prod(dims) == features and along == (features,)
