from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lowrank_onnx import config, passes

ROOT = Path(passes.__file__).resolve().parents[1]


def run(statement: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", statement], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_folder_is_not_a_top_level_package() -> None:
    result = run("import passes")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert (
        last == "ImportError: this folder is the package lowrank_onnx.passes: write 'from lowrank_onnx import passes'"
    )


def test_the_package_needs_no_runtime() -> None:
    result = run("import sys, lowrank_onnx.passes; print(sorted({'onnxruntime', 'cupy', 'scipy'} & set(sys.modules)))")
    assert (result.returncode, result.stdout.strip()) == (0, "[]")


def test_there_is_one_rule_for_each_operator_that_can_be_selected() -> None:
    assert tuple(rule.op_type for rule in passes.RULES) == config.OP_TYPES
