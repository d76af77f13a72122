"""Multiply weights into each other where linear nodes meet with nothing in between, and the product is smaller.

It is done twice: to the model as it comes, so that the product is what gets factorized, and to each model that factors
were written into, where the second factor of one weight may meet the next. No rank is involved: up to rounding the
outputs stay what they were, and a product rounds once where the two nodes rounded twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx

from lowrank_onnx import passes
from lowrank_onnx.config import Budget, KeepBytes, KeepMacs, KeepParams
from lowrank_onnx.linalg.precision import accumulation_dtype
from lowrank_onnx.model_io import Model, new_tensor_proto
from lowrank_onnx.passes.products import Apart, Product
from lowrank_onnx.passes.write_products import ProductTensor
from lowrank_onnx.types import Array, Site, WeightRef, numpy_dtype, rearrange
from lowrank_onnx.weight_reader import WeightReader
from lowrank_onnx.weights import SharedWeight


@dataclass(frozen=True, slots=True)
class Absorbed:
    """What one node with a product of weights stands for.

    Attributes
    ----------
    nodes : the nodes that it stands for, by name, with a plus sign between.
    output : its first output.
    middle : an activation that was between them: it had as many positions as the output.
    parameters_before, parameters_after : weights of all of them and of the product, without biases.
    """

    nodes: str
    output: str
    middle: str
    parameters_before: int
    parameters_after: int

    @property
    def saved(self) -> int:
        """How many weights fewer there are."""
        return self.parameters_before - self.parameters_after

    @property
    def note(self) -> str:
        """For the report."""
        return (
            f"'{self.nodes}' met with nothing in between and became one node: "
            f"{self.parameters_before} weights are {self.parameters_after}, which took no rank"
        )


@dataclass(frozen=True, slots=True)
class Absorption:
    """A model with products in it, the nodes that have them, and the pairs that stayed apart."""

    model: Model
    absorbed: tuple[Absorbed, ...]
    apart: tuple[Apart, ...]


def absorb_products(model: Model, outputs: Collection[str]) -> Absorption:
    """Write each pair of linear nodes as one where that saves weights, those that save most first.

    Parameters
    ----------
    model : it isn't changed.
    outputs : the first outputs of the nodes that may be touched.

    Returns
    -------
    Absorption
        Its model makes the products when they are read, one at a time. A product that overflows in its dtype isn't
        written.
    """
    absorbed: dict[str, Absorbed] = {}
    while True:
        found, apart = passes.find_products(model.skeleton, outputs)
        reader = WeightReader(model, _weights(found))
        chosen: list[Product] = []
        for product in sorted(found, key=lambda one: -one.saved):
            if not _overlaps(product, chosen):
                if _is_finite(product, reader):
                    chosen.append(product)
                else:
                    apart += (Apart(product.first.name, product.second.name, "their product overflows"),)
        if not chosen:
            return Absorption(model, tuple(absorbed.values()), apart)
        skeleton, tensors = passes.write_products(model.skeleton, chosen, _placeholder)
        model = model.with_rewrite(skeleton, {one.name: partial(product_values, one, reader) for one in tensors})
        for product in chosen:
            parts = [absorbed.pop(site.output) for site in (product.first, product.second) if site.output in absorbed]
            absorbed[product.second.output] = _absorbed(product, parts)


def absorbable_notes(model: Model, sites: Sequence[Site]) -> tuple[str, ...]:
    """What compressing a model would make one node of before anything else, for people."""
    absorption = absorb_products(model, {site.output for site in sites})
    return tuple(
        f"'{one.nodes}' meet with nothing in between: compress makes one node of them, "
        f"{one.parameters_before} weights are {one.parameters_after} then"
        for one in absorption.absorbed
    )


def product_values(tensor: ProductTensor, reader: WeightReader) -> Array:
    """The values of a new initializer: multiplied in the accumulation dtype, rounded once."""
    wide = accumulation_dtype(numpy_dtype(tensor.dtype))
    rows = rearrange(reader.read(tensor.rows), tensor.to_rows).astype(wide)
    columns = rearrange(reader.read(tensor.columns), tensor.to_columns).astype(wide)
    with np.errstate(over="ignore", invalid="ignore"):
        product: Array = rows @ columns
        if tensor.added is not None:
            product += reader.read(tensor.added).astype(wide)
        return rearrange(product.astype(numpy_dtype(tensor.dtype)), tensor.arrangement)


def _is_finite(product: Product, reader: WeightReader) -> bool:
    return all(bool(np.isfinite(product_values(tensor, reader)).all()) for tensor in passes.product_tensors(product))


def _overlaps(product: Product, others: Sequence[Product]) -> bool:
    nodes = {product.first.node_index, product.second.node_index}
    return any(nodes & {other.first.node_index, other.second.node_index} for other in others)


def _absorbed(product: Product, parts: Sequence[Absorbed]) -> Absorbed:
    """The record of a product; `parts` are those of the two that are products themselves."""
    first, second = product.first, product.second
    before = product.parameters + sum(part.saved for part in parts)
    middle = parts[0].middle if parts else first.output
    return Absorbed(f"{first.name}+{second.name}", second.output, middle, before, product.shape.parameters)


def _weights(products: Sequence[Product]) -> list[WeightRef]:
    refs = [
        ref
        for product in products
        for ref in (product.first.weight, product.second.weight, product.first_bias, product.second_bias)
    ]
    return [ref for ref in refs if ref is not None]


def _placeholder(tensor: ProductTensor) -> onnx.TensorProto:
    return new_tensor_proto(tensor.name, tensor.dtype, tensor.shape, tensor.name)


def credited(
    budget: Budget, groups: Sequence[SharedWeight], saved: Mapping[str, int], positions: Mapping[str, int]
) -> Budget:
    """A budget over the model as it came, as one over the model with products in it, which costs less already.

    Parameters
    ----------
    saved : weights that a product saves, by its node's first output.
    positions : how often each site applies its weight, by the site's name.
    """
    if not isinstance(budget, KeepParams | KeepBytes | KeepMacs) or not saved:
        return budget
    left = gone = 0
    for group in groups:
        for site in group.sites if isinstance(budget, KeepMacs) else group.sites[:1]:
            if isinstance(budget, KeepMacs):
                unit = positions.get(site.name, 0)
                left += site.dense_macs(unit)
            else:
                unit = site.weight.itemsize if isinstance(budget, KeepBytes) else 1
                left += unit * site.shape.parameters
            gone += unit * saved.get(site.output, 0)
    return replace(budget, share=min(1.0, budget.share * (left + gone) / left)) if left else budget
