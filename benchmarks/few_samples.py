"""What 8 calibration samples are good for: ``python -m benchmarks.few_samples``.

For each model, draw of 8 samples and share of the parameters: the outputs' relative error, on samples of the same
source that the compression has not seen, of plans with effects measured on those 8 and

- unweighted factors,
- factors weighted by the second moments as they are, with the shrinkage that their rows ask for,
- factors weighted as `compress` does it: the shrinkage and tail energies of each weight by cross-validation.

Finished rows are kept, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.markdown_table import table
from benchmarks.planning import Judge
from benchmarks.planning_cases import load_case
from benchmarks.planning_variants import Variant, Workbench
from lowrank_onnx.accounting import versions
from lowrank_onnx.linalg.lapack import beside_runtime

RESULTS = Path(__file__).parent / "results"
TABLE_DENSE = "minilm, table dense"
MODELS = ("vgg", "vit", "minilm", TABLE_DENSE)
SHARES = (0.8, 0.6, 0.4)
DRAWS = 5
UNWEIGHTED = Variant("unweighted", "auto", 4, 0, False, "fast")
WEIGHTED = Variant("weighted", "auto", 4, 0, True, "fast")
CHOSEN = Variant("chosen", "auto", 4, 0, True, "fast", cross_validated=True)


class DenseTables(Workbench):
    """Tables that are looked up stay as they are, so that all else is cut the harder."""

    op_types = tuple(name for name in Workbench.op_types if name != "Gather")


@dataclass(frozen=True, slots=True)
class Row:
    """One model, draw and share: the error of each way."""

    model: str
    draw: int
    share: float
    unweighted: float
    weighted: float
    chosen: float


def measure(name: str, draw: int) -> Iterator[Row]:
    """A row for each share."""
    case = load_case("minilm" if name == TABLE_DENSE else name, quick=True, draw=draw)
    workbench = DenseTables if name == TABLE_DENSE else Workbench
    judge = Judge(replace(case, judged=case.like_few, metrics=lambda outputs: {}))
    with beside_runtime(), tempfile.TemporaryDirectory() as scratch:
        bench = workbench(case.path, case.few, Path(scratch), seed=draw)
        for share in SHARES:
            errors = []
            for variant in (UNWEIGHTED, WEIGHTED, CHOSEN):
                with bench.build(variant, bench.plan(variant, "parameters", share).choices) as model:
                    errors.append(judge.judge(model)[0])
            yield Row(name, draw, share, *errors)


def markdown(rows: list[Row], date: str) -> str:
    """The table, and how often the chosen way is as good as the unweighted one."""
    good = sum(row.chosen <= row.unweighted for row in rows)
    worst = max((row.chosen / row.unweighted for row in rows), default=math.nan)
    header = ("model", "draw", "parameters kept", "unweighted", "weighted", "chosen", "chosen / unweighted")
    cells = [
        (
            row.model,
            str(row.draw),
            f"{row.share:g}",
            *(f"{error:.4f}" for error in (row.unweighted, row.weighted, row.chosen)),
            f"{row.chosen / row.unweighted:.2f}",
        )
        for row in rows
    ]
    mean = math.exp(float(np.mean([math.log(row.chosen / row.unweighted) for row in rows]))) if rows else math.nan
    return "\n".join(
        (
            "# What 8 calibration samples are good for",
            "",
            f"`python -m benchmarks.few_samples`, {date}; onnxruntime {versions()['onnxruntime']}. Relative error of",
            "the outputs on samples of the same source that calibration did not see; plain form, not refined.",
            "",
            f"Chosen has no more error than unweighted in {good} of {len(rows)} rows; at worst {worst:.3f} times as",
            f"much, in the geometric mean {mean:.2f} times.",
            "",
            *table(header, cells),
            "",
        )
    )


def main() -> None:
    """Measure what is not there yet, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--resume", action="store_true", help="keep the rows that are saved")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    saved = options.out / "few_samples.json"
    rows = [Row(**row) for row in json.loads(saved.read_text())["rows"]] if options.resume and saved.exists() else []
    for name in options.models:
        for draw in range(options.draws):
            if sum(row.model == name and row.draw == draw for row in rows) == len(SHARES):
                continue
            for row in measure(name, draw):
                rows.append(row)
                print(row, flush=True)
            date = datetime.date.today().isoformat()
            saved.write_text(json.dumps({"date": date, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
            (options.out / "few_samples.md").write_text(markdown(rows, date), encoding="utf-8")
    print(markdown(rows, datetime.date.today().isoformat()))


if __name__ == "__main__":
    main()
