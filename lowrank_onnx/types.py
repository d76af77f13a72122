"""The frozen data that flows between the stages.

One symbol set everywhere: a site computes ``y = x @ W`` where ``W`` is ``(in, out)`` after layout, ``r`` is the rank,
``q`` the power iterations (q = 1 is RSVD) and ``p`` the oversampling. A grouped convolution is a stack of ``groups``
such matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.verdict import LatencyComparison as LatencyComparison
from lowrank_onnx.verdict import MetricComparison as MetricComparison
from lowrank_onnx.verdict import OutputStatistics as OutputStatistics
from lowrank_onnx.verdict import ProviderNodes as ProviderNodes
from lowrank_onnx.verdict import Timing as Timing
from lowrank_onnx.verdict import Verdict as Verdict
from lowrank_onnx.verdict import judged_by_answers as judged_by_answers
from lowrank_onnx.verdict import overall_error as overall_error

if TYPE_CHECKING:
    from lowrank_onnx.forms import Form

Array: TypeAlias = NDArray[Any]
"""A NumPy array of any shape and dtype (bfloat16 through ml_dtypes included)."""

Feed: TypeAlias = Mapping[str, Array]
"""One input set for one run of a model: input name -> array."""

Scope: TypeAlias = tuple[tuple[int, str], ...]
"""Where a graph lives: ``()`` is the main graph; each step inwards is (index of the node, name of the attribute)."""


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """Pure data movement between two layouts: reshape to `split`, permute the axes by `order`, reshape to `merged`."""

    split: tuple[int, ...]
    order: tuple[int, ...]
    merged: tuple[int, ...]


def rearrange(array: Array, arrangement: Rearrangement) -> Array:
    """Move `array` into another layout; a view where NumPy can give one, else a copy. The dtype is kept."""
    return array.reshape(arrangement.split).transpose(arrangement.order).reshape(arrangement.merged)


@dataclass(frozen=True, slots=True)
class MatrixShape:
    """The shape of a weight as the numerics see it: `groups` matrices of (`in_features`, `out_features`)."""

    groups: int
    in_features: int
    out_features: int

    @property
    def parameters(self) -> int:
        """Number of weights stored when dense."""
        return self.groups * self.in_features * self.out_features

    @property
    def max_rank(self) -> int:
        """min(in, out): the rank at which a pair of factors is exact for any weight."""
        return min(self.in_features, self.out_features)


Operation: TypeAlias = Literal["transpose", "reshape", "cast", "add", "subtract", "multiply", "divide", "dequantize"]
"""What a `DecodeStep` can do."""


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """One operator between a stored tensor and the weight that a node reads.

    Attributes
    ----------
    operation : arithmetic is with `operands[0]` on the right; "dequantize" takes a scale and perhaps a zero point.
    dtype, shape : of the result.
    axes : for "transpose", the permutation; for "dequantize", the axis along which the scale varies.
    block : for "dequantize", elements along the axis that share a scale; 0 where each index has its own.
    operands : stored tensors too, perhaps decoded themselves.
    """

    operation: Operation
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] = ()
    block: int = 0
    operands: tuple[WeightRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a weight is made of what is stored, where it isn't stored as the node reads it.

    Attributes
    ----------
    steps : from the stored tensor to the weight; evaluated each time that the weight is read, one weight in memory.
    nbytes : bytes of all tensors behind it, scales and zero points included. Factors that aren't smaller gain nothing.
    description : for people, e.g. "int8 behind Cast -> Mul".
    """

    steps: tuple[DecodeStep, ...]
    nbytes: int
    description: str


@dataclass(frozen=True, slots=True)
class WeightRef:
    """A stored weight: the scope that holds it, its tensor name, and how it is stored.

    `storage` is ``"initializer"`` or ``"constant"`` (a Constant node whose output is `name`).
    `dtype` is one of float16, bfloat16, float32, float64, and `shape` the shape, of the weight as nodes read it:
    as it is stored, unless `encoding` says how it is decoded.
    """

    scope: Scope
    name: str
    storage: Literal["initializer", "constant"]
    dtype: str
    shape: tuple[int, ...]
    encoding: Encoding | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of one stored weight."""
        return {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[self.dtype]


@dataclass(frozen=True, slots=True)
class Site:
    """A node whose weight can be replaced by factors.

    Attributes
    ----------
    name : unique and readable: the node's name (or its first output's), prefixed by the path of its subgraph.
    scope, node_index : the graph that holds the node and the node's position in it.
    op_type : "MatMul", "Gemm", "Conv", "ConvTranspose", ...
    weight : where the weight is stored.
    to_matrices : from the stored layout to (groups, in, out).
    forms : the forms in which the operator's rule can write the factors, the plain one first.
    input, output : names of the activation read and of the node's first output.
    counted : name of the activation whose number of elements, divided by `counted_features`, is the number of
        positions at which the matrices are applied (MACs of one run = positions x parameters of one position).
    counted_features : elements of `counted` per position.
    shares : what else must agree, besides operator and dtype, for sites that read the same tensor to share their first
        factor; None where the site can't.
    bias : the stored bias (out,) that the node adds, where a form may write it anew; else None.
    native : where other nodes read the weight in another layout, the site as its node reads it; `weight`, `to_matrices`
        and `forms` are then what all of them have in common. Else None.
    mirrored : whether `native`'s matrices are the transposes of these.
    """

    name: str
    scope: Scope
    node_index: int
    op_type: str
    weight: WeightRef
    to_matrices: Rearrangement
    forms: tuple[Form, ...]
    input: str
    output: str
    counted: str
    counted_features: int
    bias: WeightRef | None = None
    shares: str | None = None
    native: Site | None = None
    mirrored: bool = False

    @property
    def shape(self) -> MatrixShape:
        """The (groups, in, out) of this site's matrices."""
        groups, in_features, out_features = self.to_matrices.merged
        return MatrixShape(groups, in_features, out_features)

    @property
    def own(self) -> Site:
        """The site as its node reads the weight: the rows, positions and multiplications of that node go by it."""
        return self if self.native is None else self.native

    def dense_macs(self, positions: int) -> int:
        """Multiply-accumulates of its node as it stands, at so many positions."""
        return self.own.forms[0].dense_macs(self.own.shape, positions)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A node that was looked at and left alone, with a reason that a user can act on."""

    name: str
    op_type: str
    reason: str
    parameters: int = 0


@dataclass(frozen=True, slots=True)
class Factors:
    """Low-rank factors of one weight: per group, W ~ left @ right.

    Attributes
    ----------
    left : (groups, in, r), right : (groups, r, out), both in the accumulation dtype (float32 or float64), balanced
        (each carries the square root of the singular values).
    singular_values : (groups, r), descending.
    relative_error : ||W - L R||_F / ||W||_F over all groups, measured, not assumed.
    spectral_error : largest over the groups of the estimated ||W - L R||_2 / ||W||_2 (a lower estimate by power
        iteration; see `lowrank_onnx.linalg`).
    solver : what really ran, e.g. "rsi(q=4, p=10)".
    """

    left: Array
    right: Array
    singular_values: Array
    relative_error: float
    spectral_error: float
    solver: str

    @property
    def rank(self) -> int:
        """The rank r."""
        return int(self.left.shape[-1])


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Leading singular values of a weight and the energy behind them: all that candidates need to know of it.

    `values` is (groups, k) descending; `energy` is ||W||_F^2 over all groups, so the relative squared error at rank
    r <= k is ``1 - sum(values[:, :r]**2) / energy`` exactly.
    """

    values: Array
    energy: float


@dataclass(frozen=True, slots=True)
class Tails:
    """The relative squared errors that were measured at some ranks of a weight, where smaller ranks are no prefixes.

    `ranks` are ascending; only they can be candidates.
    """

    ranks: tuple[int, ...]
    errors: tuple[float, ...]


ErrorCurve: TypeAlias = Spectrum | Tails
"""The error of one factorization of a weight by rank."""

Curves: TypeAlias = Mapping[str, ErrorCurve]
"""The errors of one weight, by the family of forms that share a factorization; empty where it wasn't factorized."""


@dataclass(frozen=True, slots=True)
class SiteChoice:
    """What the plan and the factorization settled for one site: enough to write its nodes.

    `form` is one of the site's, with what the values settled of it (the pivots of a pivoted form).
    """

    site: Site
    form: Form
    rank: int
    solver: str
    relative_error: float
    spectral_error: float


@dataclass(frozen=True, slots=True)
class NewTensor:
    """An initializer to be made from factors.

    `part` says which part of the weight's form, written at `rank`; `arrangement` leads from the part's own layout to
    the stored one. With `bias`, `part` is a bias that the form makes of that stored one. `key` is unique among the new
    tensors of one rewrite.
    """

    name: str
    scope: Scope
    dtype: str
    shape: tuple[int, ...]
    weight: WeightRef
    form: str
    rank: int
    part: str
    arrangement: Rearrangement
    bias: WeightRef | None = None
    key: str = ""


FLOAT_DTYPES: tuple[str, ...] = ("float16", "bfloat16", "float32", "float64")
"""The stored dtypes of weights that can be factorized."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of one of `FLOAT_DTYPES` (bfloat16 from ml_dtypes)."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)
