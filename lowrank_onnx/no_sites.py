"""Why a model has no weight that can be factorized, for people who expected one."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from lowrank_onnx.types import Skipped

NO_WEIGHT = "the model has no weight that can be factorized"

_CLASSICAL = "ai.onnx.ml"
_LISTED = 6


def why_no_sites(model: onnx.ModelProto, skipped: Sequence[Skipped]) -> str:
    """The reason, in half a sentence; `skipped` are the nodes that were looked at and left alone."""
    if skipped:
        return f"{NO_WEIGHT}: nodes that could have one were skipped, each for a reason"
    nodes = model.graph.node
    if not nodes:
        return f"{NO_WEIGHT}: it has no nodes"
    operators = sorted({node.op_type for node in nodes})
    shown = ", ".join(operators[:_LISTED]) + (", ..." if len(operators) > _LISTED else "")
    if any(node.domain == _CLASSICAL for node in nodes):
        end = f" ({_CLASSICAL} is for linear models, trees and kernels, whose numbers are attributes and not matrices)"
    else:
        end = ""
    return f"{NO_WEIGHT}: none of its operators ({shown}) multiplies by a stored matrix{end}"
