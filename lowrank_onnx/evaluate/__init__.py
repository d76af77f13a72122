"""Feeds, sessions, comparison and latency: what shows, in onnxruntime, what a rewrite did to a model."""

from lowrank_onnx.evaluate.compare import compare_outputs, judge
from lowrank_onnx.evaluate.feeds import Feeds, load_feeds, split_feeds
from lowrank_onnx.evaluate.latency import measure_latency
from lowrank_onnx.evaluate.session import Runner, Session, open_session
from lowrank_onnx.evaluate.synthetic import synthetic_feeds
from lowrank_onnx.evaluate.values import InputSpec

__all__ = [
    "Feeds",
    "InputSpec",
    "Runner",
    "Session",
    "compare_outputs",
    "judge",
    "load_feeds",
    "measure_latency",
    "open_session",
    "split_feeds",
    "synthetic_feeds",
]
