"""Independent suites through the program, one command: ``python -m tests.suites [SUITE ...]``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.suites.independent import account_for
from tests.suites.testdata import WHEEL_SUITES, fetch_node_tests, node_cases, wheel_cases


def main() -> int:
    """Print an account of each suite; returns 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.suites", description=__doc__)
    suites = (*WHEEL_SUITES, "node")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"some of {', '.join(suites)} (default: all)")
    chosen = parser.parse_args().suites or list(suites)
    unknown = sorted(set(chosen) - set(suites))
    if unknown:
        parser.error(f"no such suite: {', '.join(unknown)}; there are {', '.join(suites)}")
    failed = 0
    for suite in chosen:
        cases = node_cases(fetch_node_tests()) if suite == "node" else wheel_cases(suite)
        with tempfile.TemporaryDirectory(prefix="lowrank-suite-") as name:
            account = account_for(cases, Path(name))
        failed += len(account.failed)
        print("\n".join((f"{suite}: ", *account.lines())), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
