"""Command line of the fuzz target."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.fuzz.campaign import Finding, Worker, run_campaign
from tests.fuzz.case import Target


def main() -> int:
    """Run a campaign, one case, or write one case's model; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the reader and the compiler pass.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default 1)")
    parser.add_argument("--first", type=int, help="number of the first case (default: from the clock)")
    parser.add_argument("--count", type=int, help="how many cases at most")
    parser.add_argument("--case", type=int, help="run this one case again, in this process")
    parser.add_argument("--save", type=Path, help="with --case: write its model into this directory instead")
    parser.add_argument("--runtime", action="store_true", help="let onnxruntime run what was written, too")
    options = parser.parse_args()
    if options.case is not None and options.save is not None:
        print(Target().save(options.case, options.save))
        return 0
    if options.case is not None:
        problems = Target().run(options.case, runtime=options.runtime)
        print("\n".join(problems) or "nothing found")
        return int(bool(problems))
    found = 0

    def report(number: int, findings: list[Finding]) -> None:
        nonlocal found
        found += len(findings)
        for finding in findings:
            print(f"case {number}: {finding.problem}", flush=True)

    first = int(time.time()) * 1000 if options.first is None else options.first
    worker = Worker(runtime=options.runtime)
    done = run_campaign(worker, first, count=options.count, seconds=60 * options.minutes, report=report)
    print(f"{done} inputs from number {first} on, {found} findings")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
