"""The CPU side on any machine; the CuPy side against CuPy's own signatures where it is installed, and on a GPU."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.spectra import SPECTRA, matrix
from lowrank_onnx.errors import MissingDependencyError
from lowrank_onnx.linalg import FactorRequest, lapack
from lowrank_onnx.linalg import backend as backend_module
from lowrank_onnx.linalg.backend import NUMPY, Backend, DeviceMemoryError, select_backend
from lowrank_onnx.linalg.factor import factor_on


def spd(size: int, seed: int = 0) -> np.ndarray:
    A = np.random.default_rng(seed).standard_normal((2 * size, size))
    return np.asarray(A.T @ A)


def test_arrays_travel_there_and_back(backend: Backend) -> None:
    host = np.arange(6.0).reshape(2, 3)
    there = backend.start_transfer(host)()
    assert there.dtype == backend.xp.float64
    np.testing.assert_array_equal(backend.to_host(there), host)
    np.testing.assert_array_equal(backend.to_host(backend.to_device(host.T)), host.T)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_and_decompositions(backend: Backend, dtype: Any) -> None:
    A = np.random.default_rng(0).standard_normal((40, 17)).astype(dtype)
    tolerance = 100.0 * float(np.finfo(dtype).eps)
    for view in (A, np.asfortranarray(A), A[::2, ::3]):
        gram = backend.to_host(backend.gram(backend.to_device(view)))
        np.testing.assert_allclose(gram, view.T @ view, atol=tolerance * 40)
        np.testing.assert_array_equal(gram, gram.T)
    G = (A.T @ A).astype(dtype)
    values, vectors = (backend.to_host(a) for a in backend.eigh_leading(backend.to_device(G), 5))
    expected = np.linalg.eigvalsh(G.astype(np.float64))[::-1][:5]
    np.testing.assert_allclose(values, expected, rtol=tolerance)
    np.testing.assert_allclose(G @ vectors, vectors * values, atol=tolerance * expected[0])
    every = backend.eigenvalues(backend.to_device(G))
    np.testing.assert_allclose(every, np.linalg.eigvalsh(G.astype(np.float64))[::-1], atol=tolerance * expected[0])


@pytest.mark.parametrize("entries", [0, 10**9])
def test_products_are_the_same_in_every_layout(backend: Backend, monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    monkeypatch.setattr(backend_module, "CACHED_ENTRIES", entries)
    A = np.random.default_rng(0).standard_normal((40, 30))
    for view in (A, np.asfortranarray(A), A[::2, ::3], A[:1], A[:, :1]):
        X = np.random.default_rng(1).standard_normal((view.shape[1], 3))
        found = backend.to_host(backend.product(backend.to_device(view), backend.to_device(X)))
        np.testing.assert_allclose(found, view @ X, rtol=1e-12, atol=1e-12)


def test_large_cholesky_factors_are_made_by_halves() -> None:
    for size in (512, 513, 1500):
        X = np.random.default_rng(size).standard_normal((size + 50, size))
        G = X.T @ X
        R = lapack.cholesky_upper(G)
        assert R is not None
        np.testing.assert_allclose(R, np.linalg.cholesky(G).T, rtol=1e-7, atol=1e-7)
        for place in (0, size - 1):
            G[place, place] = -1.0
            assert lapack.cholesky_upper(G) is None
            G[place, place] = 1e6


def test_cholesky_factors_and_their_failure(backend: Backend) -> None:
    G = spd(12)
    R = backend.cholesky_upper(backend.to_device(G))
    inverse = backend.inverse_cholesky(backend.to_device(G))
    assert R is not None
    assert inverse is not None
    R, inverse = backend.to_host(R), backend.to_host(inverse)
    np.testing.assert_allclose(R.T @ R, G, rtol=1e-10)
    np.testing.assert_allclose(np.triu(R), R)
    np.testing.assert_allclose(R @ inverse, np.eye(12), atol=1e-10)
    for bad in (G - 100.0 * np.eye(12), np.zeros((3, 3)), -np.eye(2)):
        assert backend.cholesky_upper(backend.to_device(bad)) is None
        assert backend.inverse_cholesky(backend.to_device(bad)) is None


class FullBackend(Backend):
    """A device without any memory."""

    def to_device(self, host: np.ndarray) -> Any:
        raise DeviceMemoryError(f"{host.nbytes} bytes")


def test_a_full_device_is_answered_on_the_cpu_and_said() -> None:
    W = matrix((30, 20), SPECTRA["slow"](20), seed=0)
    result = factor_on(FullBackend("full", NUMPY.xp), W, FactorRequest(5))
    expected = factor_on(NUMPY, W, FactorRequest(5))
    assert result.left.tobytes() == expected.left.tobytes()
    assert result.solver == f"{expected.solver}, on the CPU: out of device memory"


def test_the_cpu_is_taken_where_it_is_asked_for() -> None:
    assert select_backend("cpu") is NUMPY


def test_a_device_whose_libraries_are_missing_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def eye(*_: object, **__: object) -> Any:
        raise ImportError("libcublas.so.12: cannot open\nshared object file")

    cupy, cupyx = ModuleType("cupy"), ModuleType("cupyx.scipy.linalg")
    cupy.cuda = SimpleNamespace(is_available=lambda: True)  # type: ignore[attr-defined]
    cupy.eye, cupy.float32 = eye, np.float32  # type: ignore[attr-defined]
    for name, module in (("cupy", cupy), ("cupyx", cupyx), ("cupyx.scipy", cupyx), ("cupyx.scipy.linalg", cupyx)):
        monkeypatch.setitem(sys.modules, name, module)
    backend_module._library_problem.cache_clear()
    try:
        assert select_backend("auto") is NUMPY
        missing = r"'cuda': CuPy .* \(libcublas.so.12: cannot open shared .*\[ctk"
        with pytest.raises(MissingDependencyError, match=missing):
            select_backend("cuda")
    finally:
        backend_module._library_problem.cache_clear()


def test_cupy_has_every_name_that_is_used_of_it() -> None:
    pytest.importorskip("cupy")
    source = Path(inspect.getfile(backend_module)).read_text(encoding="utf-8")
    used = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and re.fullmatch(r"cupyx?(\.\w+)+", ast.unparse(node))
    }
    assert {"cupy.empty", "cupyx.empty_pinned", "cupy.cuda.Stream"} <= used
    for name in sorted(used):
        package, *attributes = name.split(".")
        found: Any = __import__(package)
        for attribute in attributes:
            found = getattr(found, attribute)


def test_cupy_takes_the_arguments_that_it_is_given() -> None:
    cupy = pytest.importorskip("cupy")
    import cupyx

    inspect.signature(cupyx.empty_pinned).bind((2, 3), np.dtype(np.float32))
    inspect.signature(cupy.empty).bind((2, 3), np.dtype(np.float32))
    inspect.signature(cupy.asnumpy).bind(object())
    for method, mentioned in ((cupy.ndarray.set, "stream"), (cupy.cuda.Stream.wait_event, "event")):
        assert mentioned in method.__doc__
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    with cupyx.errstate(linalg="raise"):
        assert cupyx.geterr()["linalg"] == "raise"


@pytest.mark.gpu
def test_memory_goes_back_between_matrices() -> None:
    import cupy

    W = matrix((2000, 1000), SPECTRA["slow"](1000), seed=0)
    factor_on(select_backend("cuda"), W, FactorRequest(50))
    pool = cupy.get_default_memory_pool()
    assert pool.total_bytes() == 0


@pytest.mark.gpu
def test_a_limit_on_device_memory_is_answered_on_the_cpu() -> None:
    import cupy

    W = matrix((2000, 1000), SPECTRA["slow"](1000), seed=0)
    pool = cupy.get_default_memory_pool()
    before = pool.get_limit()
    pool.set_limit(size=2**20)
    try:
        result = factor_on(select_backend("cuda"), W, FactorRequest(50))
    finally:
        pool.set_limit(size=before)
    assert result.solver.endswith("on the CPU: out of device memory")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 65])
def test_leading_eigenvectors_at_every_count(dtype: Any, size: int) -> None:
    G = spd(size).astype(dtype)
    rounding = 200.0 * float(np.finfo(dtype).eps)
    expected = np.linalg.eigvalsh(G.astype(np.float64))[::-1]
    for count in {1, size // 2 + 1, size}:
        values, vectors = NUMPY.eigh_leading(NUMPY.to_device(G), count)
        assert vectors.shape == (size, count)
        assert vectors.dtype == values.dtype == dtype
        np.testing.assert_allclose(values, expected[:count], rtol=rounding, atol=rounding * expected[0])
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=rounding)
        np.testing.assert_allclose(G @ vectors, vectors * values, atol=rounding * expected[0])


def test_eigenvectors_of_degenerate_matrices() -> None:
    for G in (np.zeros((12, 12), np.float32), np.eye(12), np.ones((12, 12))):
        values, vectors = NUMPY.eigh_leading(G, 5)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(5), atol=1e-5)
        np.testing.assert_allclose(G @ vectors, vectors * values, atol=1e-5)
