from __future__ import annotations

import math

import numpy as np
import pytest

from lowrank_onnx.forms import ConvChain, ConvGeometry, ConvInput, ConvSpatial, ConvTucker
from lowrank_onnx.forms.conv_spatial import spatial_form
from lowrank_onnx.types import MatrixShape

EVEN = (1, 1)
SQUARE = ConvGeometry(64, (3, 3), (EVEN, EVEN))
SHAPE = MatrixShape(1, 64 * 9, 128)


def chains(geometry: ConvGeometry) -> list[ConvChain]:
    return [ConvSpatial(geometry, 0), ConvSpatial(geometry, 1), ConvInput(geometry), ConvTucker(geometry)]


def test_parameters_are_those_of_the_links() -> None:
    assert ConvSpatial(SQUARE, 0).parameters(SHAPE, 16) == 16 * (3 * 64 + 3 * 128)
    assert ConvInput(SQUARE).parameters(SHAPE, 16) == 16 * (64 + 9 * 128)
    tucker = ConvTucker(SQUARE)
    assert tucker.output_rank(SHAPE, 16) == 64
    assert tucker.parameters(SHAPE, 16) == 64 * 16 + 9 * 16 * 64 + 64 * 128
    grouped = MatrixShape(4, 16 * 9, 32)
    geometry = ConvGeometry(16, (3, 3), (EVEN, EVEN))
    assert ConvSpatial(geometry, 1).parameters(grouped, 8) == 4 * 8 * (3 * 16 + 3 * 32)


def test_macs_follow_the_sizes_between_the_links() -> None:
    """Input 28 x 30, strides 2 and 3: output 14 x 10, and along an axis whose turn hasn't come the input's size."""
    geometry = ConvGeometry(64, (3, 5), ((28, 14), (30, 10)))
    shape = MatrixShape(1, 64 * 15, 128)
    out = 14 * 10
    rows = ConvSpatial(geometry, 0)
    assert rows.macs(shape, 16, out) == 14 * 30 * 16 * 3 * 64 + out * 16 * 5 * 128
    columns = ConvSpatial(geometry, 1)
    assert columns.macs(shape, 16, out) == 28 * 10 * 16 * 5 * 64 + out * 16 * 3 * 128
    assert ConvInput(geometry).macs(shape, 16, out) == 28 * 30 * 16 * 64 + out * 16 * 15 * 128
    tucker = ConvTucker(geometry)
    inner = tucker.output_rank(shape, 16)
    assert tucker.macs(shape, 16, out) == 28 * 30 * 16 * 64 + out * (16 * 15 * inner + inner * 128)


@pytest.mark.parametrize("form", chains(SQUARE))
def test_with_sizes_that_stay_macs_are_parameters_times_positions(form: ConvChain) -> None:
    assert form.macs(SHAPE, 24, 1000) == 1000 * form.parameters(SHAPE, 24)


@pytest.mark.parametrize("form", chains(SQUARE))
@pytest.mark.parametrize("out", [1, 2, 31, 128, 1000])
def test_the_largest_useful_rank_is_the_last_that_saves(form: ConvChain, out: int) -> None:
    shape = MatrixShape(1, 64 * 9, out)
    sizes = [form.parameters(shape, rank) for rank in range(1, form.largest_rank(shape) + 1)]
    assert sizes == sorted(sizes)
    assert form.largest_useful_rank(shape) == sum(size < shape.parameters for size in sizes)


@pytest.mark.parametrize("form", chains(ConvGeometry(4, (2, 3), (EVEN, EVEN))))
def test_the_approximation_is_the_kernel_of_the_chain(form: ConvChain) -> None:
    """Probed with one-hot patches of two groups, link by link."""
    shape = MatrixShape(2, 24, 5)
    generator = np.random.default_rng(0)
    parts = {name: generator.standard_normal(dims) for name, dims in form.part_shapes(shape, 3).items()}
    approximation = form.approximate(parts)
    (product,) = form.factors(parts)
    np.testing.assert_array_equal(product, approximation)
    assert approximation.shape == (2, 24, 5)
    links = form.links(shape, 3)
    for group in range(2):
        for c, row, column in np.ndindex(4, 2, 3):
            signal = np.eye(4)[c]
            for link in links:
                kernel = parts[link.part][group].reshape(link.inputs, *(form.geometry.kernel[a] for a in link.axes), -1)
                at = tuple((row, column)[axis] for axis in link.axes)
                signal = signal @ kernel[(slice(None), *at)]
            found = approximation[group].reshape(4, 2, 3, 5)[c, row, column]
            np.testing.assert_allclose(found, signal, atol=1e-12)


@pytest.mark.parametrize("form", chains(SQUARE))
def test_the_largest_rank_is_the_smaller_side(form: ConvChain) -> None:
    first = form.part_shapes(SHAPE, form.largest_rank(SHAPE))["first"]
    assert first[1] == first[2] == form.largest_rank(SHAPE)
    assert form.largest_rank(MatrixShape(1, 64 * 9, 1)) <= math.prod((3, 3))


@pytest.mark.parametrize("out", [3, 18, 30, 100, 1000])
@pytest.mark.parametrize("channels", [2, 18, 64])
def test_tucker_has_all_outputs_at_the_largest_rank(channels: int, out: int) -> None:
    tucker = ConvTucker(ConvGeometry(channels, (3, 3), (EVEN, EVEN)))
    shape = MatrixShape(1, channels * 9, out)
    assert tucker.output_rank(shape, tucker.largest_rank(shape)) == min(out, channels * 9)


def test_tuckers_outputs_grow_with_its_inputs() -> None:
    tucker = ConvTucker(SQUARE)
    inner = [tucker.output_rank(SHAPE, rank) for rank in range(1, 65)]
    assert inner == sorted(inner)
    assert inner[-1] == 128
    assert inner[0] == 9  # no more directions than one channel's kernel positions give
    assert all(size % 16 == 0 for size in inner[5:])


def test_spatial_needs_two_axes() -> None:
    line = ConvGeometry(16, (1, 5), (EVEN, EVEN))
    assert spatial_form(line, MatrixShape(1, 80, 32)) is None
    volume = ConvGeometry(16, (1, 3, 5), (EVEN, EVEN, EVEN))
    form = spatial_form(volume, MatrixShape(1, 240, 32))
    assert form is not None
    assert form.axis == 2  # the wider axis meets the fewer channels
    assert form.axis_order == (2, 0, 1)


def test_forms_are_equal_whatever_the_sizes() -> None:
    """Sites of one weight may see different sizes, and are still written in one form."""
    other = ConvGeometry(64, (3, 3), ((28, 13), EVEN))
    assert ConvSpatial(SQUARE, 0) == ConvSpatial(other, 0)
    assert hash(ConvSpatial(SQUARE, 0)) == hash(ConvSpatial(other, 0))
    assert ConvSpatial(SQUARE, 0) != ConvSpatial(SQUARE, 1)
