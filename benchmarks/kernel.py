"""How fast and how accurate the factorization kernel is, beside its peers: ``python -m benchmarks.kernel``.

For each shape, rank and spectrum: time and errors of ``factor(W, rank)`` and of the peers, each at the fewest power
iterations that bring it to a normalised spectral error of 1.05, interleaved. Exact SVD runs once for a shape, SciPy's
``svds`` on small matrices. Beside them the floor: what the products that no method can avoid would take at the
machine's own rate.

``--threads 1`` (the default) times processor seconds of one thread, which other processes on the machine disturb
least; with more threads the clock is the wall. The whole grid takes an hour and a half of an idle machine, most of it
for peers on the large shapes. Every case is printed and saved as it is done; ``--resume`` goes on with what a run that
was broken off has left.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.kernel_measure import RESULTS, SPECTRA, Case, Run, measure

SHAPES = ((768, 768), (768, 3072), (1280, 1000), (512, 4608), (4096, 4096), (4096, 11008), (4096, 25088))
SCHEMA = 3
"""Of the JSON that is saved."""


def main() -> None:
    arguments = _parse()
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    out = Path(arguments.out)
    cases = earlier(out, arguments.threads) if arguments.resume else []
    for case in measure(arguments, clock, cases):
        cases.append(case)
        print(_line(case), flush=True)
        save(out, arguments, cases)
    print(summary(cases))


def earlier(out: Path, threads: int) -> list[Case]:
    """The cases of a run that was broken off; those of another machine or version are no part of this one."""
    if not out.exists():
        return []
    stored = json.loads(out.read_text(encoding="utf-8"))
    if (stored["schema"], stored["machine"]) != (SCHEMA, _machine(threads)):
        raise SystemExit(f"{out}: made on another machine or by another version; leave out --resume to replace it")
    return [Case(**(case | {"runs": [Run(**run) for run in case["runs"]]})) for case in stored["cases"]]


def _line(case: Case) -> str:
    auto = case.run("auto")
    assert auto is not None
    head = f"{case.rows} x {case.columns}, r={case.rank}, {case.spectrum}: auto {auto.seconds:.3f} s, "
    head += f"{auto.spectral:.3f}, {auto.seconds / case.floor_seconds:.1f}x floor, {auto.detail}"
    others = [
        f"{run.solver} {run.detail} {run.seconds / auto.seconds:.1f}x {run.spectral:.3f}"
        for run in case.runs
        if run is not auto
    ]
    return head + " | " + ", ".join(others)


def summary(cases: list[Case]) -> str:
    from benchmarks.kernel_report import verdicts

    return "\n".join(verdicts([asdict(case) for case in cases]))


def save(out: Path, arguments: argparse.Namespace, cases: list[Case]) -> None:
    """The results as JSON, and the table made from them as Markdown beside it."""
    from benchmarks.kernel_report import markdown

    out.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "schema": SCHEMA,
        "machine": _machine(arguments.threads),
        "clock": "processor seconds of one thread" if arguments.threads == 1 else "wall seconds",
        "cases": [asdict(case) for case in cases],
    }
    out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(markdown(data), encoding="utf-8")


def _machine(threads: int) -> dict[str, Any]:
    from lowrank_onnx.installed import installed_version

    peers = {name: installed_version(name) for name in ("scikit-learn", "torch", "scipy")}
    return {
        "processor": _processor(),
        "blas": _blas(),
        "threads": threads,
        "python": platform.python_version(),
        "peers": [f"{name} {version}" for name, version in peers.items() if version],
    }


def _blas() -> str:
    import numpy  # noqa: F401  loads the library that is asked about
    import scipy.linalg  # noqa: F401
    import threadpoolctl

    found = {
        f"{info['internal_api']} {info['version']} ({info.get('architecture', 'unknown kernels')})"
        for info in threadpoolctl.threadpool_info()
        if info["user_api"] == "blas"
    }
    return " and ".join(sorted(found))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smaller shapes, at two ranks, in a minute or two")
    parser.add_argument("--out", default=str(RESULTS / "kernel.json"), help="where the results go; .md beside it")
    parser.add_argument("--resume", action="store_true", help="leave out the cases that --out already holds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shapes", type=_shape, nargs="*", metavar="MxN")
    parser.add_argument("--spectra", nargs="*", choices=SPECTRA, default=SPECTRA)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--enough-seconds", type=float, default=0.6, help="stop repeating a solver after this long")
    parser.add_argument("--no-exact", action="store_true", help="leave out the exact SVD")
    parser.add_argument("--no-peers", action="store_true", help="leave out scikit-learn and torch")
    parser.add_argument("--ranks", type=int, nargs="*", help="these ranks only")
    arguments = parser.parse_args()
    arguments.shapes = arguments.shapes or [s for s in SHAPES if not arguments.quick or math.prod(s) <= 768 * 3072]
    return arguments


def _shape(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    return int(rows), int(columns)


if __name__ == "__main__":
    main()
