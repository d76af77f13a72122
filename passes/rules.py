"""The rules, one per operator, in the order in which they are listed to a user."""

from __future__ import annotations

from lowrank_onnx.passes.conv import RULE as CONV
from lowrank_onnx.passes.conv_transpose import RULE as CONV_TRANSPOSE
from lowrank_onnx.passes.einsum import RULE as EINSUM
from lowrank_onnx.passes.fused import FUSED_RULES
from lowrank_onnx.passes.gather import RULE as GATHER
from lowrank_onnx.passes.gemm import RULE as GEMM
from lowrank_onnx.passes.matmul import RULE as MATMUL
from lowrank_onnx.passes.rule import Rule

RULES: tuple[Rule, ...] = (MATMUL, GEMM, CONV, CONV_TRANSPOSE, EINSUM, GATHER, *FUSED_RULES)
"""Every operator whose weights can be factorized."""

RULE_OF: dict[str, Rule] = {rule.op_type: rule for rule in RULES}
"""Rule by operator."""
