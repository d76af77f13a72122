from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.spectra import SPECTRA, matrix
from lowrank_onnx.linalg import chebyshev
from lowrank_onnx.linalg.backend import NUMPY, Backend
from lowrank_onnx.linalg.chebyshev import (
    MOST_DEGREES,
    PROBE_STEPS,
    PROBES,
    filter_degree,
    filtered_columns,
    has_room,
    least_bordered,
    roots,
    solve_chebyshev,
)


@pytest.mark.parametrize("shape", [(400, 400), (1200, 400)])
@pytest.mark.parametrize("spectrum", ["slow", "exponential", "step", "gaussian", "flat"])
def test_the_tolerance_is_met(backend: Backend, spectrum: str, shape: tuple[int, int]) -> None:
    values = SPECTRA[spectrum](400)
    W = matrix(shape, values, seed=1)
    for rank in (50, 100):
        triplets = solve_chebyshev(backend, backend.to_device(W), rank, tolerance=1.02, seed=0)
        assert triplets is not None
        left, right = backend.to_host(triplets.scaled_left), backend.to_host(triplets.right)
        norm = float(np.linalg.norm(W - left @ right.T, 2))
        assert norm <= 1.02 * values[rank]
        assert triplets.residual is not None
        assert 0.95 * norm <= triplets.residual <= norm * (1.0 + 1e-3)
        np.testing.assert_allclose(right.T @ right, np.eye(rank), atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(left, axis=0), backend.to_host(triplets.values), rtol=1e-5)
        assert triplets.solver.startswith(f"chebyshev(l={filtered_columns(rank)}, degree=")


@pytest.mark.parametrize("seed", range(4))
def test_no_seed_breaks_the_tolerance(seed: int) -> None:
    for spectrum, rank in (("slow", 64), ("gaussian", 64), ("exponential", 64), ("step", 40)):
        values = SPECTRA[spectrum](320)
        W = matrix((320, 320), values, seed=seed)
        triplets = solve_chebyshev(NUMPY, W, rank, tolerance=1.02, seed=seed)
        assert triplets is not None
        assert np.linalg.norm(W - triplets.scaled_left @ triplets.right.T, 2) <= 1.02 * values[rank]


def test_it_declines_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    no_room = matrix((160, 160), SPECTRA["slow"](160), seed=1)
    assert not has_room(100, 160)
    assert solve_chebyshev(NUMPY, no_room, 100, tolerance=1.02, seed=0) is None
    squared_away = matrix((300, 300), SPECTRA["spiked"](300), seed=1)
    assert solve_chebyshev(NUMPY, squared_away, 24, tolerance=1.02, seed=0) is None
    slow = matrix((300, 300), SPECTRA["slow"](300), seed=1)
    monkeypatch.setattr(chebyshev, "WANTED_GROWTH", ((0.125, 0.25), (0.1, 0.1)))
    monkeypatch.setattr(chebyshev, "MOST_FILTERS", 1)
    assert solve_chebyshev(NUMPY, slow, 24, tolerance=1.02, seed=0) is None
    rough = solve_chebyshev(NUMPY, slow, 24, tolerance=2.0, seed=0)
    assert rough is not None
    assert rough.solver == "chebyshev(l=32, degree=2)"


@settings(max_examples=50)
@given(st.integers(1, MOST_DEGREES), st.floats(0.01, 100.0))
def test_the_roots_are_those_of_the_scaled_chebyshev_polynomial(degree: int, edge: float) -> None:
    zeros = roots(degree, edge)
    assert len(zeros) == degree
    coefficients = np.zeros(degree + 1)
    coefficients[degree] = 1.0
    values = np.polynomial.chebyshev.chebval(2.0 * np.array(zeros) / edge - 1.0, coefficients)
    np.testing.assert_allclose(values, 0.0, atol=1e-10)
    assert len(set(zeros)) == degree


@given(st.floats(1.001, 50.0), st.floats(0.5, 6.0))
def test_the_degree_is_the_least_that_grows_enough(ratio: float, growth: float) -> None:
    degree = filter_degree(ratio, growth)
    assert 1 <= degree <= MOST_DEGREES
    exponent = np.arccosh(max(2.0 * ratio - 1.0, 1.001))
    if degree < MOST_DEGREES:
        assert degree * exponent >= growth - exponent / 2.0 - 1e-9
    if degree > 1:
        assert degree * exponent <= growth + exponent / 2.0 + 1e-9


@settings(max_examples=100)
@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=12), st.floats(0.0, 5.0), st.floats(0.05, 12.0))
def test_the_least_eigenvalue_of_a_bordered_matrix(diagonal: list[float], border: float, corner: float) -> None:
    d = np.array(diagonal)
    c = border * np.cos(np.arange(d.size))
    M = np.diag(np.append(d, corner))
    M[:-1, -1] = M[-1, :-1] = c
    exact = float(np.linalg.eigvalsh(M)[0])
    found = least_bordered(d, c, corner)
    assert exact - 1e-6 * (1.0 + abs(exact)) <= found <= exact + 1e-8 * (1.0 + abs(exact))


@given(st.integers(1, 4000))
def test_columns_exceed_the_rank_by_enough_to_probe(rank: int) -> None:
    assert filtered_columns(rank) >= rank + PROBES
    assert filtered_columns(rank) % 8 == 0
    assert not has_room(rank, rank + 2 * PROBES * PROBE_STEPS)


def unusual_matrices(size: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((size, size))
    low = generator.standard_normal((size, 30)) @ generator.standard_normal((30, size)) / 30
    order = np.arange(size)
    return {
        "diagonal": np.diag(SPECTRA["slow"](size)),
        "permuted diagonal": np.diag(SPECTRA["gaussian"](size))[generator.permutation(size)],
        "low rank and noise": low + 0.1 * noise,
        "low rank and little noise": low + 0.01 * noise,
        "sparse": noise * (generator.random((size, size)) < 0.02),
        "signs": np.sign(noise),
        "heavy tails": generator.standard_cauchy((size, size)),
        "rows of many scales": noise * np.geomspace(1.0, 1e-3, size)[:, None],
        "equal blocks": np.kron(np.eye(8), noise[: size // 8, : size // 8]),
        "two levels": matrix((size, size), np.where(order < size // 2, 1.0, 0.9), seed=3),
        "outliers above a flat tail": matrix((size, size), np.where(order < 60, 1.05, 1.0), seed=3),
        "a late drop": matrix((size, size), 1.0 - (order / size) ** 3 * 0.9, seed=3),
    }


@pytest.mark.parametrize("name", sorted(unusual_matrices(8)))
def test_unusual_matrices_are_within_the_tolerance_or_declined(name: str) -> None:
    W = unusual_matrices(400)[name].astype(np.float32)
    values = np.linalg.svd(W.astype(np.float64), compute_uv=False)
    for rank in (40, 80):
        triplets = solve_chebyshev(NUMPY, W, rank, tolerance=1.02, seed=0)
        if triplets is None:
            # Squares of these lose the value that follows, beside the largest.
            assert values[rank] ** 2 < 1e-3 * values[0] ** 2
            continue
        error = np.linalg.norm(W - triplets.scaled_left.astype(np.float64) @ triplets.right.T, 2)
        assert error <= 1.02 * values[rank]
