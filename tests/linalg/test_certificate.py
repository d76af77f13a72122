from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.spectra import SPECTRA, matrix
from lowrank_onnx.errors import FactorizationError
from lowrank_onnx.linalg import certify_classifier, certify_spectral, factor
from lowrank_onnx.linalg.certificate import shortfall_bound


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(SPECTRA)), st.integers(1, 30), st.integers(0, 10_000), st.sampled_from([2, 4, 16]))
def test_the_spectral_certificate_holds(spectrum: str, rank: int, seed: int, steps: int) -> None:
    W = matrix((90, 60), SPECTRA[spectrum](60), seed=seed)
    result = factor(W, rank, method="rsvd", seed=seed)
    certificate = certify_spectral(W, result.left, result.right, steps=steps, seed=seed)
    norm = float(np.linalg.norm(W.astype(np.float64) - result.left.astype(np.float64) @ result.right, 2))
    assert certificate.lower <= norm * (1.0 + 1e-9)
    assert norm <= certificate.upper
    frobenius = np.linalg.norm(W.astype(np.float64) - result.left.astype(np.float64) @ result.right)
    assert certificate.upper <= frobenius * (1.0 + 1e-9)


def test_more_steps_make_it_tight_and_less_certainty_tighter() -> None:
    W = matrix((600, 400), SPECTRA["slow"](400), seed=0)
    result = factor(W, 40)
    norm = float(np.linalg.norm(W - result.left @ result.right, 2))
    uppers = [certify_spectral(W, result.left, result.right, steps=steps).upper for steps in (8, 16, 32)]
    assert uppers[0] > uppers[1] > uppers[2] >= norm
    assert uppers[2] <= 1.03 * norm
    bolder = certify_spectral(W, result.left, result.right, failure_probability=1e-3, steps=8)
    assert bolder.upper < uppers[0]
    assert bolder.failure_probability == 1e-3


def largest_ritz_root(values: np.ndarray, start: np.ndarray, steps: int) -> float:
    """From k Lanczos steps on diag(values**2)."""
    K = start[:, None] / np.linalg.norm(start)
    for _ in range(steps - 1):
        x = values**2 * K[:, -1]
        for _repeat in range(2):
            x = x - K @ (K.T @ x)
        K = np.column_stack((K, x / np.linalg.norm(x)))
    return float(np.linalg.norm(values[:, None] * K, 2))


def hidden_spectrum(size: int, steps: int, eps: float) -> np.ndarray:
    """Singular values in which k Lanczos steps find the largest, 1, worst: the extrema of the bound's polynomial."""
    extrema = (1.0 - eps) * np.sin(np.pi * np.arange(steps) / (2 * steps - 1)) ** 2
    return np.append(1.0, np.sqrt(np.repeat(extrema, size // steps + 1)[: size - 1]))


@pytest.mark.parametrize("failure", [0.5, 0.1])
@pytest.mark.parametrize("steps", [3, 6])
def test_lanczos_falls_short_no_more_often_than_stated(failure: float, steps: int) -> None:
    size, trials = 60, 400
    factor = shortfall_bound(size, steps, failure)
    eps = 1.0 - factor**-2.0
    generator = np.random.default_rng(1)
    plain = np.append(1.0, np.linspace(0.0, (1.0 - eps) ** 0.5, size - 1))
    for values in (hidden_spectrum(size, steps, eps), hidden_spectrum(size, steps, eps / 2.0), plain):
        roots = np.array([largest_ritz_root(values, generator.standard_normal(size), steps) for _ in range(trials)])
        assert np.mean(roots * factor < 1.0) <= failure + 3.0 * (failure / trials) ** 0.5
    # The test can fail: half of the allowance is broken on a spectrum that hides its largest value.
    values = hidden_spectrum(size, steps, eps / 2.0)
    roots = np.array([largest_ritz_root(values, generator.standard_normal(size), steps) for _ in range(trials)])
    assert np.mean(roots * factor**0.25 < 1.0) > failure


def test_the_bound_is_sharper_than_the_classic_one() -> None:
    for size, steps, failure in ((100, 16, 1e-3), (4096, 16, 1e-2), (4096, 32, 1e-9)):
        classic = (np.log(1.648 * np.sqrt(size) / failure) / (2 * steps - 1)) ** 2
        assert classic < 1.0
        assert 1.0 < shortfall_bound(size, steps, failure) < (1.0 - classic) ** -0.5


def test_where_lanczos_knows_little_the_frobenius_norm_is_certain() -> None:
    W = np.zeros((80, 50), np.float32)
    W[3, 4] = 2.0
    nothing = (np.zeros((80, 1), np.float32), np.zeros((1, 50), np.float32))
    certificate = certify_spectral(W, *nothing, steps=2, failure_probability=1e-12)
    assert certificate.failure_probability == 0.0
    assert certificate.upper == pytest.approx(2.0)
    exact = certify_spectral(W[:, :1], nothing[0], np.zeros((1, 1), np.float32))
    assert (exact.lower, exact.upper) == (0.0, 0.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 8), st.floats(0.1, 20.0))
def test_no_sample_breaks_the_classifier_certificate(seed: int, classes: int, rank: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    W = generator.standard_normal((16, classes)).astype(np.float32)
    X = generator.standard_normal((50, 16)) * scale
    bias = generator.standard_normal(classes)
    result = factor(W, min(rank, classes), method="rsvd", seed=seed)
    logits = X @ W + bias
    changed = X @ (result.left.astype(np.float64) @ result.right) + bias
    certificate = certify_classifier(W, result.left, result.right, X, logits)
    variation = np.abs(softmax(changed) - softmax(logits)).sum(axis=1) / 2.0
    assert np.all(variation <= certificate.measured_probability_change + 1e-9)
    assert np.all(certificate.measured_probability_change <= certificate.probability_change + 1e-9)
    distance = np.linalg.norm(softmax(changed) - softmax(logits), axis=1)
    assert np.all(distance <= certificate.paper_probability_change + 1e-9)
    ratio = np.max(np.abs(np.log(softmax(changed)) - np.log(softmax(logits))), axis=1)
    assert np.all(ratio <= certificate.measured_log_ratio * (1.0 + 1e-9) + 1e-9)
    same = np.argmax(changed, axis=1) == np.argmax(logits, axis=1)
    assert np.all(same[certificate.stable])
    assert not np.any(certificate.paper_stable & ~certificate.stable)
    assert certificate.stable_share == np.mean(certificate.stable)


def test_the_worst_input_of_the_same_norm_keeps_to_it() -> None:
    generator = np.random.default_rng(0)
    W = generator.standard_normal((30, 5))
    result = factor(W, 3)
    E = W - result.left @ result.right
    x = generator.standard_normal((1, 30))
    logits = x @ W
    certificate = certify_classifier(W, result.left, result.right, x, logits)
    for i in range(5):
        for j in range(5):
            worst = E[:, i] - E[:, j]
            length = np.linalg.norm(worst)
            change = (worst / length if length else worst) * np.linalg.norm(x) @ E
            variation = np.abs(softmax(logits + change) - softmax(logits)).sum() / 2.0
            assert variation <= certificate.probability_change[0] + 1e-12


def test_one_class_can_never_change() -> None:
    W, L, R = np.ones((3, 1)), np.zeros((3, 1)), np.zeros((1, 1))
    certificate = certify_classifier(W, L, R, np.ones((2, 3)), np.ones((2, 1)))
    assert certificate.stable_share == 1.0


def test_bad_arguments() -> None:
    W, L, R = np.ones((4, 3)), np.ones((4, 1)), np.ones((1, 3))
    X, Z = np.ones((2, 4)), np.ones((2, 3))
    with pytest.raises(FactorizationError, match=r"expected \(in, r\) and \(r, out\)"):
        certify_spectral(W, L, np.ones((2, 3)))
    with pytest.raises(FactorizationError, match="failure_probability 0: expected above 0"):
        certify_spectral(W, L, R, failure_probability=0.0)
    with pytest.raises(FactorizationError, match="steps 1: expected at least 2"):
        certify_spectral(W, L, R, steps=1)
    with pytest.raises(FactorizationError, match="weight or factors with NaN"):
        certify_spectral(W * np.nan, L, R)
    with pytest.raises(FactorizationError, match=r"inputs of shape \(0, 4\): expected \(samples, 4\)"):
        certify_classifier(W, L, R, X[:0], Z[:0])
    with pytest.raises(FactorizationError, match=r"logits of shape \(2, 2\): expected \(2, 3\)"):
        certify_classifier(W, L, R, X, Z[:, :2])
    with pytest.raises(FactorizationError, match="inputs or logits with NaN"):
        certify_classifier(W, L, R, X * np.inf, Z)
