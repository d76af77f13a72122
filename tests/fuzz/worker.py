"""The process in which cases run: it reads their numbers from standard input and answers each with a line of JSON."""

from __future__ import annotations

import json
import sys

from tests.fuzz.case import Target

MEMORY_BYTES = 4 << 30
"""Address space of the process: what a declared but absent tensor asks for must not be allocated."""


def main() -> None:
    """Serve until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    target, runtime = Target(), "--runtime" in sys.argv
    for line in sys.stdin:
        answers.write(json.dumps(target.run(int(line), runtime=runtime)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
