"""Reads the weights of sites, one at a time: as they are stored, or decoded by the steps that the model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from lowrank_onnx.model_io import Model
from lowrank_onnx.types import FLOAT_DTYPES, Array, DecodeStep, WeightRef, numpy_dtype
from lowrank_onnx.weights import SharedWeight, stored_tensors

_ARITHMETIC = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide}


class WeightReader:
    """Gives the values of weights; nothing is kept between two calls."""

    def __init__(self, model: Model, weights: Iterable[WeightRef]) -> None:
        self._store = model.store
        wanted = dict.fromkeys(part for weight in weights for part in _all_parts(weight))
        self._tensors = stored_tensors(model.skeleton, wanted)

    def read(self, weight: WeightRef) -> Array:
        """The values as the weight's nodes read them; a view of the file where they are stored so.

        Raises
        ------
        ModelError : a tensor behind it is malformed, or its file has changed.
        """
        values = self._store.array(self._tensors[weight])
        for step in weight.encoding.steps if weight.encoding else ():
            values = self._apply(step, values)
        return values

    def check_sizes(self) -> None:
        """Refuse tensors that don't hold what their dimensions say, before anything is planned by these.

        Raises
        ------
        ModelError : the message names the tensor.
        """
        for tensor in self._tensors.values():
            self._store.check_size(tensor)

    def _apply(self, step: DecodeStep, values: Array) -> Array:
        if step.operation == "transpose":
            return values.transpose(step.axes)
        if step.operation == "reshape":
            return values.reshape(step.shape)
        if step.operation == "cast":
            return values.astype(_dtype(step.dtype))
        operands = [self.read(operand) for operand in step.operands]
        if step.operation == "dequantize":
            return _dequantized(step, values, operands)
        # In the operands' own type, as the operator computes; what overflows there is infinite in the model, too.
        with np.errstate(all="ignore"):
            result: Array = _ARITHMETIC[step.operation](values, operands[0])
        return result


def read_biases(model: Model, groups: Iterable[SharedWeight]) -> Callable[[WeightRef], tuple[Array, ...]]:
    """Gives the biases (out,) of a weight's sites that a form may write anew, each once."""
    refs: dict[WeightRef, Sequence[WeightRef]] = {
        group.weight: tuple(dict.fromkeys(site.bias for site in group.sites if site.bias is not None))
        for group in groups
    }
    reader = WeightReader(model, (bias for biases in refs.values() for bias in biases))
    return lambda weight: tuple(reader.read(bias) for bias in refs.get(weight, ()))


def _all_parts(weight: WeightRef) -> Iterator[WeightRef]:
    """The weight, and the operands of its decoding, and theirs."""
    yield weight
    for step in weight.encoding.steps if weight.encoding else ():
        for operand in step.operands:
            yield from _all_parts(operand)


def _dequantized(step: DecodeStep, values: Array, operands: list[Array]) -> Array:
    """``(q - zero point) * scale`` in float32 at least; one array of the result's size is all that is made."""
    compute = np.dtype(np.float64 if step.dtype == "float64" else np.float32)
    spread = [_spread(step, operand, values.shape) for operand in operands]
    result = values.astype(compute)
    with np.errstate(all="ignore"):
        if len(spread) == 2:
            result -= spread[1].astype(compute)
        result *= spread[0].astype(compute)
    return result.astype(numpy_dtype(step.dtype), copy=False)


def _spread(step: DecodeStep, operand: Array, shape: tuple[int, ...]) -> Array:
    """Scales or zero points, shaped so that they broadcast to the values."""
    if not step.axes:
        return operand.reshape(())
    (axis,) = step.axes
    if step.block:
        return np.repeat(operand, step.block, axis)[tuple(slice(size) for size in shape)]
    return operand.reshape([-1 if index == axis else 1 for index in range(len(shape))])


def _dtype(name: str) -> np.dtype[np.generic]:
    return numpy_dtype(name) if name in FLOAT_DTYPES else np.dtype(name)
