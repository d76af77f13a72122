"""How large a rank has to be: the smallest one for a Frobenius error, an energy or a spectral error.

All that these functions need of a matrix is its leading singular values and its energy ``||W||_F**2``: what they leave
out of the energy is the error of a truncation, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.errors import FactorizationError


@dataclass(frozen=True, slots=True)
class RankTarget:
    """What a rank must reach; exactly one field is set.

    Attributes
    ----------
    error : largest ``||W - L R||_F / ||W||_F``, from 0 to 1.
    energy : smallest share of ``||W||_F**2`` kept, above 0 and at most 1.
    spectral : largest ``||W - L R||_2 / ||W||_2``, above 0 and at most 1.
    """

    error: float | None = None
    energy: float | None = None
    spectral: float | None = None

    def __post_init__(self) -> None:
        given = {"error": self.error, "energy": self.energy, "spectral": self.spectral}
        named = {name: value for name, value in given.items() if value is not None}
        if len(named) != 1:
            raise FactorizationError(
                f"{' and '.join(named) or 'nothing'} given: expected one of error, energy, spectral"
            )
        for name, value in named.items():
            lowest_allowed = name == "error" and value == 0.0
            if not (0.0 < value <= 1.0 or lowest_allowed):
                raise FactorizationError(f"{name} {value:g}: expected a share above 0 and at most 1, e.g. {name}=0.1")

    def smallest_rank(self, values: NDArray[Any], energy: float) -> int | None:
        """The smallest rank that reaches the target, at least 1; None where more values than these are needed.

        Parameters
        ----------
        values : (k,) leading singular values, descending.
        energy : ``||W||_F**2``, in the same scale.
        """
        if self.spectral is not None:
            return smallest_rank_for_spectral(values, self.spectral)
        if self.error is not None:
            return smallest_rank_for_tail(values, energy, self.error**2)
        assert self.energy is not None
        return smallest_rank_for_tail(values, energy, 1.0 - self.energy)


def tail_shares(values: NDArray[Any], energy: float) -> NDArray[np.float64]:
    """Relative squared Frobenius error of ranks 0 to k: (k + 1,) shares of the energy, descending from 1.

    Where the values hold all of the energy, the shares are summed from the small end, so that nothing cancels.
    """
    squares = values.astype(np.float64) ** 2
    if energy <= 0.0:
        return np.zeros(values.size + 1)
    rest = max(energy - float(np.sum(squares)), 0.0)
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0) + rest
    return np.asarray(np.minimum(tails / energy, 1.0), dtype=np.float64)


def smallest_rank_for_tail(values: NDArray[Any], energy: float, share: float) -> int | None:
    """The smallest rank, at least 1, that leaves out at most `share` of the energy; None where `values` are too few."""
    reached = np.flatnonzero(tail_shares(values, energy) <= share)
    return max(1, int(reached[0])) if reached.size else None


def smallest_rank_for_spectral(values: NDArray[Any], share: float) -> int | None:
    """The smallest rank whose first dropped value is at most `share` of the largest; None where that isn't known."""
    above = int(np.count_nonzero(values > share * values[0])) if values.size else 0
    return max(1, above) if above < values.size else None
