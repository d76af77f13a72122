"""The paper's second table: accuracy of a VGG and a ViT on ten classes, compressed without retraining.

The rows of the paper's method (arXiv 2604.02659) are computed here by NumPy alone: every weight is replaced by its
approximation, which computes what its factors would. "This planner" is the library as a user runs it, at the same
number of stored parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from scipy.special import softmax

from benchmarks.kernel_solvers import Factors, solve_exact, textbook_rsi
from benchmarks.peer_ranks import SMALLEST
from benchmarks.peers import INT8, RECIPES, PeerBench
from benchmarks.saved_results import Size, circumstances
from lowrank_onnx import Config, KeepParams, compress
from lowrank_onnx.demo import find_demo_files
from lowrank_onnx.evaluate import open_session
from lowrank_onnx.linalg import certify_classifier

MODELS = ("fashion_vgg", "fashion_vit")
ALPHAS = (0.8, 0.6, 0.4, 0.2)
ITERATIONS = (1, 2, 3, 4)
BATCH = 250

PEERS = ("BALF", "SVD-LLM", "PIFA", "AIMET greedy", "Tucker-2", INT8)
"""Beside the paper's own rows; those at uniform ranks are plain SVD, RSVD and RSI already."""

QUICK_PEERS = ("BALF", "SVD-LLM")

Meaning = Literal["rank", "parameters"]
"""What alpha is a share of: the rank, r = ceil(alpha min(C, D)), or the stored parameters, r (C + D) <= alpha C D."""

Solve = Callable[[NDArray[Any], int], tuple[Factors, str]]


@dataclass(frozen=True, slots=True)
class Judged:
    """One way at one alpha.

    Attributes
    ----------
    kept : parameters of all weights that were looked at, over those of the original.
    top1, top5 : shares of images.
    change : the mean total variation between the class probabilities of the two models.
    classifier_change, classifier_bound, paper_bound : the same where only the classifier's own weight is replaced, its
        certified bound, and the paper's, which is on the Euclidean norm of the change; means over the images. None
        where that weight can't be told. In the model that the figures above are of, a classifier of few classes is
        not replaced.
    stable : share of the images whose top-1 class is certified not to change by the classifier's approximation.
    """

    way: str
    meaning: Meaning
    alpha: float
    kept: float
    top1: float
    top5: float
    change: float
    classifier_change: float | None
    classifier_bound: float | None
    paper_bound: float | None
    stable: float | None


@dataclass(frozen=True, slots=True)
class AccuracyResult:
    """One model at one alpha."""

    model: str
    size: Size
    images: int
    top1: float
    top5: float
    rows: tuple[Judged, ...]
    date: str
    machine: str
    versions: Mapping[str, str]


def alphas_for(size: Size) -> tuple[float, ...]:
    """What is measured."""
    return (0.4,) if size == "quick" else ALPHAS


class AccuracyBench:
    """One model with its images, and what it makes of them."""

    def __init__(self, name: str, scratch: Path, size: Size) -> None:
        files = find_demo_files()
        count = {"quick": 250, "default": 1000, "full": len(files.images)}[size]
        self.name, self.scratch, self.size = name, scratch, size
        self.path = next(path for path in files.models if path.stem == name)
        self.model = onnx.load(self.path)
        self.images, self.labels = files.images[:count], files.labels[:count]
        self.calibration = [{"image": part} for part in np.split(files.calibration, len(files.calibration) // 32)]
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in eligible_weights(self.model)}
        # The classifier is the last weight of the graph; its input gives the certificate's samples.
        self.head = next(node for node in reversed(self.model.graph.node) if node.op_type in ("Gemm", "MatMul"))
        self.expected = self.run(self.model)
        self.features = self.run(with_output(self.model, self.head.input[0]), self.head.input[0])
        (scratch / "peers").mkdir()
        self.peers = PeerBench(self.path, self.calibration, scratch / "peers", seed=0)

    def measure(self, alpha: float) -> AccuracyResult:
        """Every way, for both meanings of alpha; the peers for that of stored parameters."""
        quick = self.size == "quick"
        ways: dict[str, Solve] = {f"RSI q={q}": textbook_rsi(q) for q in ((1, 4) if quick else ITERATIONS)}
        ways["exact SVD"] = solve_exact
        rows: list[Judged] = []
        meanings: tuple[Meaning, ...] = ("rank", "parameters")
        for meaning in meanings:
            rows += [self.judge_uniform(way, solve, meaning, alpha) for way, solve in ways.items()]
            kept = rows[-1].kept
            rows += self.judge_planner(meaning, alpha, kept)
            if meaning == "parameters":
                rows += self.judge_peers(alpha, kept)
        top1, top5 = self.accuracy(self.expected)
        return AccuracyResult(self.name, self.size, self.labels.size, top1, top5, tuple(rows), **circumstances())

    def judge_peers(self, alpha: float, kept: float) -> Iterator[Judged]:
        """Other work's recipes at the same number of parameters."""
        names = QUICK_PEERS if self.size == "quick" else PEERS
        for recipe in (recipe for recipe in RECIPES if recipe.name in names):
            target = self.scratch / "peer.onnx"
            share = recipe.write(self.peers, "parameters", kept, target)
            yield self._judged(recipe.name, "parameters", alpha, share, self.run(onnx.load(target)), None)

    def run(self, model: onnx.ModelProto, output: str = "probabilities") -> NDArray[Any]:
        """The output on all images."""
        session = open_session(model.SerializeToString())
        starts = range(0, len(self.images), BATCH)
        return np.concatenate([session.run({"image": self.images[s : s + BATCH]})[output] for s in starts])

    def accuracy(self, probabilities: NDArray[Any]) -> tuple[float, float]:
        """Shares of images whose class is first, and among the first five."""
        order = np.argsort(-probabilities, axis=1, kind="stable")
        hits = order == self.labels[:, None]
        return float(hits[:, 0].mean()), float(hits[:, :5].any(axis=1).mean())

    def judge_uniform(self, way: str, solve: Solve, meaning: Meaning, alpha: float) -> Judged:
        """Every weight at its own rank for alpha, but those of few rows or columns, which stay as they are."""
        replaced, stored = {}, 0
        for name, values in self.weights.items():
            W = values.reshape(len(values), -1)
            if min(W.shape) < SMALLEST:
                stored += values.size
                continue
            rank = rank_for(W.shape[0], W.shape[1], meaning, alpha)
            (left, right), _ = solve(W, rank)
            replaced[name] = (left @ right).reshape(values.shape).astype(np.float32)
            stored += rank * sum(W.shape)
        probabilities = self.run(with_weights(self.model, replaced))
        kept = stored / sum(values.size for values in self.weights.values())
        classifier = self.weights[self.head.input[1]]
        head, _ = solve(classifier, rank_for(classifier.shape[0], classifier.shape[1], meaning, alpha))
        return self._judged(way, meaning, alpha, kept, probabilities, head)

    def judge_planner(self, meaning: Meaning, alpha: float, kept: float) -> Iterator[Judged]:
        """The library at the same number of parameters; nothing where that is no fewer than the original's."""
        if kept >= 1.0:
            return
        target = self.scratch / "planned.onnx"
        config = Config(budget=KeepParams(kept), objective="size", validate=False)
        result = compress(
            self.path, config, feeds=self.calibration, output=target, force=True, cache=self.scratch / "cache"
        )
        if result.after is None or result.status != "written":
            raise ValueError(f"{self.path.stem} at {kept:.3f} of its parameters: {result.message}")
        planned = onnx.load(target)
        share = result.after.site_parameters / result.before.site_parameters
        yield self._judged("this planner", meaning, alpha, share, self.run(planned), self._head_factors(planned))

    def _head_factors(self, planned: onnx.ModelProto) -> Factors | None:
        """The classifier's factors (out, r) and (r, in) in a compressed model, the weight itself where it is dense."""
        name = self.head.input[1]
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in planned.graph.initializer}
        if name in stored:
            return stored[name], np.eye(stored[name].shape[1], dtype=np.float32)
        return None

    def _judged(
        self, way: str, meaning: Meaning, alpha: float, kept: float, probabilities: NDArray[Any], head: Factors | None
    ) -> Judged:
        top1, top5 = self.accuracy(probabilities)
        change = float(total_variation(probabilities, self.expected).mean())
        certified = (None, None, None, None) if head is None else self._certify(head)
        return Judged(way, meaning, alpha, kept, top1, top5, change, *certified)

    def _certify(self, head: Factors) -> tuple[float, float, float, float]:
        W = self.weights[self.head.input[1]]
        transposed = any(a.name == "transB" and a.i for a in self.head.attribute)
        left, right = (head[1].T, head[0].T) if transposed else head
        W = W.T if transposed else W
        inputs = self.features.astype(np.float64)
        bias = next((b for b in self.model.graph.initializer if b.name in self.head.input[2:]), None)
        shift = 0.0 if bias is None else numpy_helper.to_array(bias).astype(np.float64)
        logits = inputs @ W + shift
        certificate = certify_classifier(W, left, right, inputs, logits)
        changed = softmax(inputs @ (left.astype(np.float64) @ right) + shift, axis=1)
        measured = total_variation(changed, softmax(logits, axis=1))
        if np.any(measured > certificate.probability_change + 1e-9):
            raise AssertionError(f"a certified bound was exceeded by {measured.max():.3g}: a bug")
        return (
            float(measured.mean()),
            float(certificate.probability_change.mean()),
            float(certificate.paper_probability_change.mean()),
            certificate.stable_share,
        )


def rank_for(rows: int, columns: int, meaning: Meaning, alpha: float) -> int:
    """The rank of a (rows, columns) weight, at least 1."""
    if meaning == "rank":
        return math.ceil(alpha * min(rows, columns))
    return max(1, math.floor(alpha * rows * columns / (rows + columns)))


def total_variation(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Between rows of probabilities."""
    return np.asarray(np.abs(first.astype(np.float64) - second).sum(axis=1) / 2.0)


def eligible_weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The weights of MatMul, Gemm and Conv nodes that are stored, each once."""
    names = [node.input[1] for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    stored = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) >= 2}
    return [stored[name] for name in dict.fromkeys(names) if name in stored]


def with_weights(model: onnx.ModelProto, values: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """A copy with other values of some initializers."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return changed


def with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy that also gives an inner value."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return changed
