"""``python -m lowrank_onnx`` is ``lowrank-onnx``."""

from __future__ import annotations

import sys

from lowrank_onnx.cli import main

if __name__ == "__main__":
    sys.exit(main())
