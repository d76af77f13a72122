"""Low-rank compression as a pass of onnx-ir, for its `Sequential` and `PassManager`.

onnx_ir.passes.Sequential(RemoveUnusedNodesPass(), LowRankPass(Config(budget=KeepParams(0.6)), feeds="feeds.npz"))
"""

from __future__ import annotations

import onnx_ir as ir

from lowrank_onnx.config import Config
from lowrank_onnx.observed import FeedSource
from lowrank_onnx.pipeline import DEFAULTS, compress
from lowrank_onnx.results import CompressionResult


class LowRankPass(ir.passes.FunctionalPass):
    """Compress a model as `lowrank_onnx.compress` does; a result that does not hold gives a copy of the model.

    Parameters
    ----------
    config : budget, method, gates; see `Config`.
    feeds : as in `lowrank_onnx.compress`.

    Attributes
    ----------
    result : what came of the last model; None before the first. Its status tells why a model was left as it is.
    """

    def __init__(self, config: Config = DEFAULTS, *, feeds: FeedSource | None = None) -> None:
        self.config = config
        self.feeds = feeds
        self.result: CompressionResult | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Give a new model, or a copy of the given one (`LowRankError` as in `lowrank_onnx.compress`)."""
        self.result = compress(model, self.config, feeds=self.feeds)
        if self.result.model is None:
            return ir.passes.PassResult(model.clone(), modified=False)
        return ir.passes.PassResult(ir.from_proto(self.result.model), modified=True)
