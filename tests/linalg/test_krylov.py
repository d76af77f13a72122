from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.kernel_measure import named_values
from benchmarks.spectra import SPECTRA, matrix
from lowrank_onnx.linalg.backend import NUMPY, Backend
from lowrank_onnx.linalg.krylov import (
    NORM_STEPS,
    KrylovSpace,
    block_width,
    most_left_behind,
    planned_dimension,
    solve_krylov,
)


def grown(
    backend: Backend, values: np.ndarray, block: int, steps: int, dtype: Any, room: int = 0
) -> tuple[KrylovSpace, np.ndarray]:
    W = matrix((values.size, values.size), values, seed=1, dtype=dtype)
    G = W.T @ W
    there = backend.to_device(G)
    start = np.linalg.qr(np.random.default_rng(0).standard_normal((values.size, block)))[0].astype(dtype)
    space = KrylovSpace(
        backend,
        lambda X, _start: there @ X,
        backend.to_device(np.zeros((block * steps + room, values.size), dtype)),
        backend.to_device(np.zeros((block * steps + room,) * 2, dtype)),
        backend.to_device(start),
    )
    for _ in range(steps):
        space.extend()
    return space, G


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spectrum", sorted(SPECTRA))
def test_the_basis_stays_orthonormal_and_the_projection_true(backend: Backend, spectrum: str, dtype: Any) -> None:
    values = SPECTRA[spectrum](80)
    values = values / values[0]
    space, G = grown(backend, values, 8, 6, dtype)
    Q, T = backend.to_host(space.basis), backend.to_host(space.matrix)
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(Q.T @ Q, np.eye(48), atol=200.0 * eps)
    np.testing.assert_allclose(T, Q.T @ G @ Q, atol=200.0 * eps)


def test_it_finds_more_than_a_subspace_iteration_of_the_same_products() -> None:
    values = SPECTRA["slow"](200)
    space, G = grown(NUMPY, values, 8, 8, np.float64)
    krylov = np.linalg.eigvalsh(space.matrix)[::-1][:16]
    Y = np.random.default_rng(0).standard_normal((200, 16))
    for _ in range(4):
        Y = np.linalg.qr(G @ Y)[0]
    iterated = np.linalg.eigvalsh(Y.T @ G @ Y)[::-1]
    exact = values[:16] ** 2
    assert np.all(krylov >= iterated)
    assert np.max(exact - krylov) < 0.2 * np.max(exact - iterated)


@settings(max_examples=20, deadline=None)
@given(st.integers(30, 90), st.integers(1, 10), st.integers(0, 1000))
def test_the_norm_of_what_is_left_behind(size: int, rank: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    A = generator.standard_normal((size, size))
    T = A @ A.T
    depth = size - 5
    V = np.linalg.qr(generator.standard_normal((depth, rank)))[0]
    padded = np.concatenate((V, np.zeros((5, rank))))
    P = np.eye(size) - padded @ padded.T
    exact = float(np.linalg.norm(P @ T @ P, 2))
    found, most = most_left_behind(NUMPY, T.__matmul__, V, generator.standard_normal((size, 4)), NORM_STEPS, 3)
    assert 0.97 * exact <= found <= exact * (1.0 + 1e-10)
    np.testing.assert_allclose(most.T @ most, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(padded.T @ most, 0.0, atol=1e-12)
    assert most[:, 0] @ T @ most[:, 0] == pytest.approx(found)


@pytest.mark.parametrize("through_gram", [False, True])
@pytest.mark.parametrize("spectrum", ["slow", "exponential", "step", "gaussian", "flat"])
def test_the_tolerance_is_met(backend: Backend, spectrum: str, through_gram: bool) -> None:
    values = SPECTRA[spectrum](300)
    W = matrix((400, 300), values, seed=1)
    there = backend.to_device(W)
    triplets = solve_krylov(backend, there, 24, tolerance=1.02, seed=0, through_gram=through_gram, limit=290)
    assert triplets is not None
    left, right = backend.to_host(triplets.scaled_left), backend.to_host(triplets.right)
    norm = float(np.linalg.norm(W - left @ right.T, 2))
    assert norm <= 1.02 * values[24]
    assert triplets.residual is not None
    assert 0.95 * norm <= triplets.residual <= norm * (1.0 + 1e-3)
    np.testing.assert_allclose(right.T @ right, np.eye(24), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), backend.to_host(triplets.values), rtol=1e-5)
    assert ("gram" if through_gram else "direct") in triplets.solver


@pytest.mark.parametrize(
    ("spectrum", "rank", "limit"), [("slow", 113, 290), ("trained", 148, 360), ("gaussian", 295, 718)]
)
def test_a_space_at_its_limit_is_held_to_the_tolerance_too(spectrum: str, rank: int, limit: int) -> None:
    """A look ahead by a few columns, all that these limits left room for, let errors of 1.022, 1.071 and 1.040 pass."""
    values = named_values(spectrum, 1024)
    W = matrix((1024, 1024), values, seed=3)
    for allowed in (limit, 1000):
        triplets = solve_krylov(NUMPY, W, rank, tolerance=1.02, seed=0, through_gram=False, limit=allowed)
        if triplets is None:
            assert allowed == limit
            continue
        assert triplets.residual is not None
        norm = float(np.linalg.norm(W - triplets.scaled_left @ triplets.right.T, 2))
        assert norm <= 1.02 * values[rank]
        assert 0.99 * norm <= triplets.residual <= norm * (1.0 + 1e-3)


@pytest.mark.parametrize("room", [0, 3, 8, 20])
def test_the_image_of_a_space_takes_no_product(backend: Backend, room: int) -> None:
    """Where the next block has room; else it is the image within the space."""
    values = SPECTRA["slow"](80)
    space, G = grown(backend, values, 8, 3, np.float64, room)
    coordinates = np.random.default_rng(2).standard_normal((24, 3))
    image = backend.to_host(space.image(backend.to_device(coordinates)))
    Q = backend.to_host(space.basis)
    exact = G @ (Q @ coordinates)
    if room < 8:
        image, exact = Q.T @ image, Q.T @ exact
    np.testing.assert_allclose(image, exact, atol=1e-10)


def test_it_declines_what_it_cannot_do() -> None:
    options: Any = {"tolerance": 1.02, "seed": 0, "through_gram": False}
    hard = matrix((300, 300), SPECTRA["gaussian"](300), seed=1)
    assert solve_krylov(NUMPY, hard, 24, limit=planned_dimension(24, 16, 1.02) + 16, **options) is None
    assert solve_krylov(NUMPY, hard, 150, limit=290, **options) is None
    squared_away = matrix((300, 300), SPECTRA["spiked"](300), seed=1)
    assert solve_krylov(NUMPY, squared_away, 24, limit=290, **options) is None


@given(st.integers(1, 5000), st.sampled_from([10**5, 10**8]))
def test_blocks_suit_the_kernels_and_the_plan_exceeds_the_rank(rank: int, entries: int) -> None:
    width = block_width(rank, entries)
    assert width == 16 or width % 32 == 0
    assert width <= 128
    assert width >= block_width(rank, 10**5)
    assert planned_dimension(rank, width, 1.02) > rank + width
