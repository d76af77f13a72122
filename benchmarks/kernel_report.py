"""The kernel benchmark's results as a Markdown table, and what they say about its goals."""

from __future__ import annotations

import math
import re
from typing import Any

ACCURATE = 1.02
PEER_ERROR = 1.05
COLUMNS = (
    "shape",
    "r",
    "spectrum",
    "auto, s",
    "spectral",
    "Frobenius",
    "x floor",
    "of GEMM rate",
    "peer, x auto",
    "peer's error",
    "rsi, x auto",
    "its error",
    "exact, x auto",
    "solver",
)

PAPER = {(200, 2): 76.0, (200, 4): 51.0, (1000, 2): 10.0}
"""Speed-ups of the paper's Table over exact SVD at 4096 x 25088: (r, q) -> ratio (arXiv 2604.02659)."""


def markdown(data: dict[str, Any]) -> str:
    """The whole report."""
    machine = data["machine"]
    lines = [
        "# The factorization kernel beside its peers",
        "",
        f"Made by `python -m benchmarks.kernel`. {machine['processor']}, {machine['threads']} thread(s),",
        f"{machine['blas']}, Python {machine['python']}, {', '.join(machine['peers'])};",
        f"times in {data['clock']}.",
        "",
        "Errors are relative to the best possible at that rank (1 is optimal). `peer` is the fastest of scikit-learn's",
        "`randomized_svd` and `torch.svd_lowrank` (10 columns of oversampling) at the fewest power iterations that",
        f"reach a spectral error of {PEER_ERROR} on that matrix. `rsi` is the paper's algorithm with q = 4. The",
        "floor is the Gram matrix of the smaller side or one product with the sketch, whichever is less, and the",
        "final projection, at the rate of a large product measured beside each case; `of GEMM rate` is the share of",
        "that rate at which the flops of auto's solver ran. `trained` stretches the",
        "spectrum of a trained weight (MiniLM-L6, third layer, 384 x 1536) to the shape.",
        "",
        *verdicts(data["cases"]),
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
        *[_row(case) for case in data["cases"]],
        "",
    ]
    paper = [case for case in data["cases"] if any(run["solver"].startswith("rsi q=") for run in case["runs"])]
    if paper:
        lines += [
            "## The paper's table",
            "",
            "| r | spectrum | method | seconds | speed-up over exact | spectral | paper's speed-up |",
            "|---|---|---|---|---|---|---|",
            *[row for case in paper for row in _paper_rows(case)],
            "",
        ]
    return "\n".join(lines)


def verdicts(cases: list[dict[str, Any]]) -> list[str]:
    """One line for each goal of the kernel, with what the cases say."""
    if not cases:
        return ["No cases."]
    ratios, slower = [], 0
    for case in cases:
        auto, peer = _run(case, "auto"), _fastest_peer(case)
        if peer is not None:
            ratios.append(peer["seconds"] / auto["seconds"])
            slower += ratios[-1] < 1.0
    worst = max(cases, key=lambda case: _run(case, "auto")["spectral"])
    floors = sorted(cases, key=lambda case: -_run(case, "auto")["seconds"] / case["floor_seconds"])
    beyond = [case for case in cases if _run(case, "auto")["seconds"] > 6.0 * case["floor_seconds"]]
    exact = [
        _run(case, "exact")["seconds"] / _run(case, "auto")["seconds"]
        for case in cases
        if min(case["rows"], case["columns"]) >= 2048 and _maybe(case, "exact")
    ]
    error = _run(worst, "auto")["spectral"]
    lines = [
        f"- {len(cases)} cases. Largest normalised spectral error: {error:.4f} ({_title(worst)}); goal {ACCURATE}.",
        f"- Most times the floor: {_over_floor(floors[0]):.1f} ({_title(floors[0])}); {len(beyond)} cases above 6.",
    ]
    if ratios:
        lines.append(
            f"- Fastest peer that reaches {PEER_ERROR} takes {_mean(ratios):.1f} times as long (geometric mean over "
            f"{len(ratios)} cases, smallest {min(ratios):.2f}); it is faster in {slower}."
        )
    if exact:
        lines.append(f"- Exact SVD where min(m, n) >= 2048: {_mean(exact):.1f} times as long (geometric mean).")
    return lines


def spent_flops(case: dict[str, Any]) -> float:
    """Floating-point operations of auto's solver, from what it says of itself; 4 k**3 for an eigendecomposition."""
    m, n = max(case["rows"], case["columns"]), min(case["rows"], case["columns"])
    r, detail = case["rank"], _run(case, "auto")["detail"]
    filtered = re.match(r"chebyshev\(l=(\d+), degree=(\d+)\)", detail)
    if filtered:
        columns, degree = int(filtered[1]), int(filtered[2])
        return float(m * n * n + 2 * n * n * columns * (degree + 2) + 4 * n * columns**2 * degree + 2 * m * n * r)
    found = re.match(r"krylov\(b=(\d+), d=(\d+), (direct|gram)\)", detail)
    if found is None:
        return float(m * n * n + 4 * n**3 + 2 * m * n * r)
    b, d = int(found[1]), int(found[2])
    small = 4.0 * n * (d + b) ** 2 + 4 * d**3 + 2 * n * d * r
    if found[3] == "gram":
        return float(small + m * n * n + 2 * n * n * (d + b) + 2 * m * n * r)
    return float(small + 4 * m * n * (d + b) + 2 * m * d * r)


def _fastest_peer(case: dict[str, Any]) -> dict[str, Any] | None:
    runs = [run for run in case["runs"] if run["solver"] in ("sklearn", "torch")]
    reached = [run for run in runs if run["spectral"] <= PEER_ERROR]
    # A peer that never gets there counts with the time that it spent.
    return min(reached or runs, key=lambda run: float(run["seconds"]), default=None)


def _row(case: dict[str, Any]) -> str:
    auto, peer = _run(case, "auto"), _fastest_peer(case)
    rsi, exact = _maybe(case, "rsi"), _maybe(case, "exact")

    def ratio(run: dict[str, Any] | None) -> str:
        return f"{run['seconds'] / auto['seconds']:.1f}" if run else ""

    cells = [
        f"{case['rows']} x {case['columns']}",
        str(case["rank"]),
        case["spectrum"],
        f"{auto['seconds']:.3g}",
        f"{auto['spectral']:.3f}",
        f"{auto['frobenius']:.4f}",
        f"{_over_floor(case):.1f}",
        f"{spent_flops(case) / (auto['seconds'] * case['gemm_rate']):.0%}",
        f"{ratio(peer)} ({peer['solver']} {peer['detail']})" if peer else "",
        f"{peer['spectral']:.3f}" if peer else "",
        ratio(rsi),
        f"{rsi['spectral']:.3f}" if rsi else "",
        ratio(exact),
        auto["detail"],
    ]
    return "| " + " | ".join(cells) + " |"


def _paper_rows(case: dict[str, Any]) -> list[str]:
    exact = _maybe(case, "exact")
    rows = []
    for run in case["runs"]:
        if not run["solver"].startswith(("auto", "exact", "rsi q=")):
            continue
        q = int(run["solver"].removeprefix("rsi q=")) if run["solver"].startswith("rsi q=") else 0
        published = PAPER.get((case["rank"], q))
        speed = f"{exact['seconds'] / run['seconds']:.1f}" if exact else ""
        rows.append(
            f"| {case['rank']} | {case['spectrum']} | {run['solver']} | {run['seconds']:.3g} | {speed} "
            f"| {run['spectral']:.3f} | {f'{published:.0f}' if published else ''} |"
        )
    return rows


def _run(case: dict[str, Any], solver: str) -> dict[str, Any]:
    found = _maybe(case, solver)
    if found is None:
        raise KeyError(f"{solver} did not run on {_title(case)}")
    return found


def _maybe(case: dict[str, Any], solver: str) -> dict[str, Any] | None:
    return next((run for run in case["runs"] if run["solver"] == solver), None)


def _over_floor(case: dict[str, Any]) -> float:
    return float(_run(case, "auto")["seconds"]) / float(case["floor_seconds"])


def _title(case: dict[str, Any]) -> str:
    return f"{case['rows']} x {case['columns']}, r={case['rank']}, {case['spectrum']}"


def _mean(values: list[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))
