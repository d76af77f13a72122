"""Every check of the project, one after the other: ``python -m tests [pytest arguments]``."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ("lowrank_onnx", "passes", "tests", "benchmarks", "models")
LINT_IMPORTS = "import importlinter.cli as cli; cli.lint_imports_command()"

CHECKS: dict[str, tuple[str, ...]] = {
    "format": ("-m", "ruff", "format", "--check", "--quiet", *CODE),
    "lint": ("-m", "ruff", "check", "--quiet", *CODE),
    "types": ("-m", "mypy", "lowrank_onnx", "tests"),
    "contracts": ("-c", LINT_IMPORTS, "--no-cache"),
    "tests": ("-m", "pytest", *sys.argv[1:]),
}


def run(name: str, arguments: tuple[str, ...]) -> bool:
    start = time.perf_counter()
    code = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False).returncode
    print(
        f"[{name}] {'passed' if code == 0 else f'FAILED ({code})'} in {time.perf_counter() - start:.0f} s", flush=True
    )
    return code == 0


if __name__ == "__main__":
    results = [run(name, arguments) for name, arguments in CHECKS.items()]
    sys.exit(0 if all(results) else 1)
