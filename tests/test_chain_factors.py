from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from lowrank_onnx.candidates import natural_rank_multiple
from lowrank_onnx.chain_factors import (
    DRAFT,
    MOST_TUCKER_RANKS,
    ChainWeight,
    LeadingBases,
    chain_errors,
    chain_maker,
    chain_parts,
    chain_ranks,
)
from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.forms import PAIR, ConvChain, ConvGeometry, ConvInput, ConvSpatial, ConvTucker
from lowrank_onnx.model_io import load_model
from lowrank_onnx.types import Array, MatrixShape, Rearrangement, WeightRef, rearrange
from lowrank_onnx.weights import group_by_weight
from tests.passes.models import sites_of
from tests.passes.test_conv import model_of

CHANNELS, OUT, GROUPS = 6, 8, 2
GEOMETRY = ConvGeometry(CHANNELS, (3, 2), ((1, 1), (1, 1)))
FORMS = (ConvSpatial(GEOMETRY, 0), ConvSpatial(GEOMETRY, 1), ConvInput(GEOMETRY), ConvTucker(GEOMETRY))
SIZE = CHANNELS * 6


def patches() -> Array:
    """(groups, rows, in), correlated and of uneven size."""
    generator = np.random.default_rng(1)
    mixing = np.eye(SIZE) + generator.standard_normal((SIZE, SIZE)) / 6.0
    return np.asarray(generator.standard_normal((GROUPS, 400, SIZE)) * np.geomspace(1.0, 0.05, SIZE) @ mixing)


def chain_weight(dtype: Literal["float32", "float64"] = "float64", *, whiten: bool = True) -> ChainWeight:
    shape = (GROUPS * OUT, CHANNELS, 3, 2)
    stored = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    arrangement = Rearrangement((GROUPS, OUT, SIZE), (0, 2, 1), (GROUPS, SIZE, OUT))
    X = patches()
    moment = X.transpose(0, 2, 1) @ X if whiten else None
    return ChainWeight(WeightRef((), "w", "initializer", dtype, shape), stored, arrangement, moment, "cpu")


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_errors_are_those_of_the_parts_over_all_groups(form: ConvChain, whiten: bool) -> None:
    kernel = chain_weight(whiten=whiten)
    ranks = (1, 3, 6)
    (curve,) = chain_errors(kernel, [(form, ranks)])
    assert curve.ranks == ranks
    matrices = rearrange(kernel.stored, kernel.to_matrices)
    rows = patches() if whiten else np.broadcast_to(np.eye(SIZE), (GROUPS, SIZE, SIZE))
    for rank, error in zip(ranks, curve.errors, strict=True):
        parts = chain_parts(kernel, form, rank)
        assert {part: array.shape for part, array in parts.items()} == form.part_shapes(kernel.shape, rank)
        residual = rows @ (matrices - form.approximate(parts))
        found = float(np.linalg.norm(residual) / np.linalg.norm(rows @ matrices)) ** 2
        if whiten:
            # The parts are swept once, which can only lower what the curve promises.
            assert 0.5 * error - 1e-12 <= found <= error * (1.0 + 1e-6) + 1e-12
        else:
            assert found == pytest.approx(error, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_whitening_lowers_the_error_on_the_inputs(form: ConvChain) -> None:
    X, matrices = patches(), rearrange(chain_weight().stored, chain_weight().to_matrices)

    def missed(whiten: bool) -> float:
        parts = chain_parts(chain_weight(whiten=whiten), form, 3)
        return float(np.linalg.norm(X @ (matrices - form.approximate(parts))))

    assert missed(True) < 0.9 * missed(False)


@pytest.mark.parametrize("form", FORMS)
def test_parts_have_the_accumulation_dtype_and_are_deterministic(form: ConvChain) -> None:
    kernel = chain_weight("float32")
    first, second = chain_parts(kernel, form, 3), chain_parts(kernel, form, 3)
    assert {array.dtype.name for array in first.values()} == {"float32"}
    assert all(first[part].tobytes() == second[part].tobytes() for part in first)


def test_the_solver_says_what_ran() -> None:
    assert chain_weight(whiten=False).solver == "svd"
    assert chain_weight().solver == "als(1 sweep), weighted"


def test_a_kernel_that_is_not_finite_is_named() -> None:
    kernel = chain_weight(whiten=False)
    kernel.stored[3, 2, 1, 0] = np.nan
    with pytest.raises(FactorizationError, match=r"weight 'w': .*NaN or infinite"):
        chain_errors(kernel, [(FORMS[0], (2,))])


def test_a_zero_kernel_has_no_error() -> None:
    kernel = chain_weight(whiten=False)
    kernel.stored[...] = 0.0
    (curve,) = chain_errors(kernel, [(FORMS[0], (1, 2))])
    assert curve.errors == (0.0, 0.0)


def test_forms_asked_together_get_the_errors_that_each_has_alone() -> None:
    kernel = chain_weight()
    asked = [(form, (1, 2, 4 + number % 2)) for number, form in enumerate(FORMS)]
    for one, together in zip(asked, chain_errors(kernel, asked), strict=True):
        (alone,) = chain_errors(kernel, [one])
        assert together.ranks == alone.ranks
        assert together.errors == pytest.approx(alone.errors, rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_smaller_ranks_are_made_from_the_leading_factor_of_the_largest(form: ConvChain, tmp_path: Path) -> None:
    kernel = chain_weight()
    (tmp_path / "computed").mkdir()
    (tmp_path / "recalled").mkdir()
    computed, recalled = LeadingBases(tmp_path / "computed"), LeadingBases(tmp_path / "recalled")
    for bases in (computed, recalled):
        bases.expect(kernel, form, 6)
    chain_errors(kernel, [(form, (1, 3, 6))], computed)
    alone, known, later = (chain_parts(kernel, form, 3, bases) for bases in (None, computed, recalled))
    np.testing.assert_allclose(form.approximate(known), form.approximate(alone), atol=1e-8)
    # What a cache remembers of the errors must not change the factors by a bit.
    assert all(known[part].tobytes() == later[part].tobytes() for part in known)


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_draft_is_what_the_kernel_gives_without_sweeps(form: ConvChain, whiten: bool, tmp_path: Path) -> None:
    kernel, bases = chain_weight("float32", whiten=whiten), LeadingBases(tmp_path)
    bases.expect(kernel, form, 6)
    assert bases.draft(kernel.weight, form, kernel.shape, 3, "cpu") is None
    chain_errors(kernel, [(form, (1, 3, 6))], bases)
    draft = bases.draft(kernel.weight, form, kernel.shape, 3, "cpu")
    assert draft is not None
    assert {part: array.shape for part, array in draft.items()} == form.part_shapes(kernel.shape, 3)
    assert {array.dtype.name for array in draft.values()} == {"float32"}
    alone = form.approximate(chain_parts(kernel, form, 3, sweeps=0))
    np.testing.assert_allclose(form.approximate(draft), alone, atol=1e-5 * float(np.abs(alone).max()))
    assert bases.draft(kernel.weight, form, kernel.shape, 7, "cpu") is None


@pytest.mark.parametrize("form", FORMS)
def test_drafts_are_the_same_whether_the_fit_was_kept_before_or_is_made_for_them(
    form: ConvChain, tmp_path: Path
) -> None:
    kernel = chain_weight("float32")
    drafts = []
    for name in ("computed", "recalled"):
        (tmp_path / name).mkdir()
        bases = LeadingBases(tmp_path / name)
        bases.expect(kernel, form, 6)
        if name == "computed":
            chain_errors(kernel, [(form, (1, 3, 6))], bases)
        drafts.append(chain_parts(kernel, form, 3, bases, sweeps=0))
    assert all(drafts[0][part].tobytes() == drafts[1][part].tobytes() for part in drafts[0])


def test_a_rank_that_was_not_expected_is_fitted_by_itself(tmp_path: Path) -> None:
    kernel, bases = chain_weight(), LeadingBases(tmp_path)
    bases.expect(kernel, FORMS[0], 2)
    alone, parts = chain_parts(kernel, FORMS[0], 3), chain_parts(kernel, FORMS[0], 3, bases)
    assert all(parts[part].tobytes() == alone[part].tobytes() for part in parts)


def test_sweeps_lower_the_error_of_what_is_written() -> None:
    kernel, X = chain_weight(), patches()
    matrices = rearrange(kernel.stored, kernel.to_matrices)

    def missed(sweeps: int) -> float:
        parts = chain_parts(kernel, FORMS[0], 3, sweeps=sweeps)
        return float(np.linalg.norm(X @ (matrices - FORMS[0].approximate(parts))))

    assert missed(1) < 0.999 * missed(0)


def test_the_maker_reads_the_kernel_of_the_weight_that_is_asked_for() -> None:
    stored = np.random.default_rng(0).standard_normal((8, 6, 3, 2)).astype(np.float32)
    model = load_model(model_of(stored, (1, 6, 5, 5)))
    groups = group_by_weight(sites_of(model.skeleton))
    make = chain_maker(model, groups, {}, "cpu")
    form = next(form for form in groups[0].forms if isinstance(form, ConvInput))
    parts, solver = make(groups[0].weight, form, 6)
    assert solver == "svd"
    expected = rearrange(stored, groups[0].sites[0].to_matrices)
    np.testing.assert_allclose(form.approximate(parts), expected, atol=1e-5)
    with pytest.raises(KeyError, match="has no pair at rank 2"):
        make(groups[0].weight, PAIR, 2)


def test_a_draft_of_a_kept_fit_reads_neither_kernel_nor_moment(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).standard_normal((8, 6, 3, 2)).astype(np.float32)
    model = load_model(model_of(stored, (1, 6, 5, 5)))
    (group,) = group_by_weight(sites_of(model.skeleton))
    form = next(form for form in group.forms if isinstance(form, ConvTucker))
    kernel = ChainWeight(group.weight, stored, group.sites[0].to_matrices, np.eye(SIZE)[None], "cpu")
    bases, asked = LeadingBases(tmp_path), Asked()
    bases.expect(kernel, form, 4)
    make = chain_maker(model, (group,), asked, "cpu", bases, sweeps=0)
    first, _ = make(group.weight, form, 3)
    assert asked.times == 1
    again, solver = make(group.weight, form, 3)
    smaller, _ = make(group.weight, form, 2)
    assert asked.times == 1
    assert solver == DRAFT
    assert all(first[part].tobytes() == again[part].tobytes() for part in first)
    assert {part: array.shape for part, array in smaller.items()} == form.part_shapes(group.shape, 2)


class Asked(Mapping[WeightRef, Array]):
    """White moments of every weight, and how many were asked for."""

    def __init__(self) -> None:
        self.times = 0

    def __getitem__(self, weight: WeightRef) -> Array:
        self.times += 1
        return np.eye(SIZE)[None]

    def __iter__(self) -> Iterator[WeightRef]:
        return iter(())

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize("largest", [1, 12, 16, 250, 256, 400])
def test_errors_are_found_at_every_rank_but_those_of_tucker_at_few_and_the_largest(largest: int) -> None:
    shape, geometry = MatrixShape(1, 512 * 9, 512), ConvGeometry(512, (3, 3), ((1, 1), (1, 1)))
    assert chain_ranks(shape, ConvInput(geometry), largest) == tuple(range(1, largest + 1))
    ranks = chain_ranks(shape, ConvTucker(geometry), largest)
    assert ranks[-1] == largest
    assert list(ranks) == sorted(set(ranks))
    assert all(rank % natural_rank_multiple(shape) == 0 for rank in ranks[:-1])
    assert min(largest // 32, 8) <= len(ranks) <= MOST_TUCKER_RANKS + 1
