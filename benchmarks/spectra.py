"""Test matrices by name: a spectrum that is known exactly, between two random orthogonal bases.

The names are shared by the tests of the kernel and its benchmark, in the manner of RandLAPACK's generators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

Spectrum = Callable[[int], NDArray[np.float64]]


def slow(size: int) -> NDArray[np.float64]:
    """i**-0.4: what many trained weights look like."""
    return np.asarray(np.arange(1, size + 1) ** -0.4, dtype=np.float64)


def polynomial(size: int) -> NDArray[np.float64]:
    """1 / i."""
    return 1.0 / np.arange(1, size + 1)


def exponential(size: int) -> NDArray[np.float64]:
    """From 1 to exp(-8)."""
    return np.exp(-8.0 * np.arange(size) / size)


def steep(size: int) -> NDArray[np.float64]:
    """From 1 to exp(-13): squares of the small ones are lost in float32."""
    return np.exp(-13.0 * np.arange(size) / size)


def step(size: int) -> NDArray[np.float64]:
    """A drop to a tenth after an eighth of the values, on a gentle slope."""
    return np.where(np.arange(size) < size // 8, 1.0, 0.1) * np.linspace(1.0, 0.9, size)


def spiked(size: int) -> NDArray[np.float64]:
    """One value ten thousand times the others, which decay slowly."""
    values = np.arange(1, size + 1) ** -0.3
    values[0] = 1e4
    return np.asarray(values, dtype=np.float64)


def flat(size: int) -> NDArray[np.float64]:
    """All equal: a Krylov space is invariant after one block."""
    return np.ones(size)


def deficient(size: int) -> NDArray[np.float64]:
    """Exactly zero after a quarter of the values."""
    values = slow(size)
    values[max(1, size // 4) :] = 0.0
    return values


def gaussian(size: int) -> NDArray[np.float64]:
    """The spectrum of a square Gaussian matrix (quarter circle law): dense and slow, the hardest for iterations."""
    angles = np.linspace(0.0, np.pi / 2, 4001)
    # Distribution function of the quarter circle law on [0, 2] at 2 sin(angle).
    shares = (2.0 * angles + np.sin(2.0 * angles)) / np.pi
    wanted = 1.0 - (np.arange(size) + 0.5) / size
    return np.asarray(2.0 * np.sin(np.interp(wanted, shares, angles)), dtype=np.float64)


SPECTRA: dict[str, Spectrum] = {
    f.__name__: f for f in (slow, polynomial, exponential, steep, step, spiked, flat, deficient, gaussian)
}


def matrix(shape: tuple[int, int], values: NDArray[np.float64], seed: int, dtype: Any = np.float32) -> NDArray[Any]:
    """A (m, n) matrix with these min(m, n) singular values, to the rounding of `dtype`.

    The bases are products of random signs and cosine transforms: orthogonal to rounding, dense, and cheap.
    """
    generator = np.random.default_rng(seed)
    W = np.zeros(shape, dtype=np.float64 if np.dtype(dtype) == np.float64 else np.float32)
    diagonal = np.arange(min(shape))
    W[generator.permutation(shape[0])[: min(shape)], diagonal] = values
    for axis, size in enumerate(shape):
        for _ in range(2):
            signs = generator.choice([-1.0, 1.0], size).astype(W.dtype)
            W *= signs[:, None] if axis == 0 else signs
            W = scipy.fft.dct(W, axis=axis, norm="ortho", overwrite_x=True)
    return np.ascontiguousarray(W).astype(dtype, copy=False)
