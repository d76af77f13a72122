"""Factors of a matrix that is applied from both sides, ``x @ W`` and ``z @ W'``, in one norm for both.

With C the second moment of x and D that of z, each scaled to a mean diagonal of 1, E = W - L R is measured by

    trace(E' (C + I) E (D + I)) = tr(E' C E) + tr(E D E') + tr(E' C E D) + ||E||_F^2.

The first two are the squared errors of the two outputs, each in its own unit. Their sum alone has no closed form whose
smaller ranks are prefixes of larger ones; this norm has, as it is a product: that of ``(C + I)^(1/2) E (D + I)^(1/2)``.
The third term makes what both sides excite count more. Of a table of tokens C is diagonal, how often each is looked up,
and the third term is the head's error where logits count as often as their tokens occur; a softmax's divergence
weighs them so, to second order, if they are predicted as often as they are read. That is assumed, not measured. How
much each of the nodes matters to the model isn't part of the norm either.

The right side is scaled before factorizing, and its inverse, which the identity bounds by 1, applied to R.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.linalg.precision import accumulation_dtype
from lowrank_onnx.types import Array


def with_identity(second_moment: Array) -> NDArray[np.float64]:
    """A second moment (n, n), or its diagonal (n,), scaled to a mean diagonal of 1, plus the identity."""
    wide = np.array(second_moment, np.float64)
    diagonal = wide if wide.ndim == 1 else np.einsum("ii->i", wide)
    mean = float(np.mean(diagonal))
    if mean > 0.0:
        wide /= mean
    diagonal += 1.0
    return wide


class ScaledColumns:
    """The right side of the norm: the symmetric root of D + I.

    Parameters
    ----------
    second_moment : D (out, out), symmetric; its negative eigenvalues are taken for rounding.
    """

    def __init__(self, second_moment: Array) -> None:
        values, self._vectors = np.linalg.eigh(with_identity(second_moment))
        self._roots = np.sqrt(np.maximum(values, 1.0))

    def scale(self, W: Array) -> Array:
        """``W (D + I)^(1/2)`` of an (in, out) matrix, in its accumulation dtype."""
        dtype = accumulation_dtype(W.dtype)
        scaled: Array = W.astype(dtype) @ ((self._vectors * self._roots) @ self._vectors.T).astype(dtype)
        return scaled

    def restore(self, right: Array) -> Array:
        """``R (D + I)^(-1/2)`` of an (r, out) factor, in its dtype."""
        restored: Array = right.astype(np.float64) @ ((self._vectors / self._roots) @ self._vectors.T)
        return restored.astype(right.dtype)
