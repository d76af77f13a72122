"""What 8 calibration samples are good for: ``python -m benchmarks.few_samples``.

For each model, draw of 8 samples and share of the parameters: the outputs' relative error, on samples of the same kind
that the compression has not seen (2,000 images, of which 250 leave an interval of 20 % up and down, or 250 sentences,
which leave 1 %), of plans with effects measured on those 8 and

- unweighted factors,
- factors weighted by the second moments as they are, with the shrinkage that their rows ask for,
- factors weighted as `compress` does it: what each weight's inputs are worth, what its loss costs and which plan is
  best by cross-validation, with factors tried on samples that they were not made of.

An error that differs from another by less than these samples can tell is said to be the same: 1 is in the interval that
holds 95 % of the ratios of the two errors over samples drawn from them with replacement.

Finished rows are kept, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.markdown_table import table
from benchmarks.planning_cases import Feeds, load_case
from benchmarks.planning_variants import Variant, Workbench
from lowrank_onnx.accounting import versions
from lowrank_onnx.evaluate import Runner, open_session
from lowrank_onnx.linalg.lapack import beside_runtime
from lowrank_onnx.types import Array

RESULTS = Path(__file__).parent / "results"
TABLE_DENSE = "minilm, table dense"
MODELS = ("vgg", "vit", "minilm", TABLE_DENSE)
SHARES = (0.8, 0.6, 0.4)
DRAWS = 10
RESAMPLES = 2_000
INTERVAL = (2.5, 97.5)
"""Percentiles."""
UNWEIGHTED = Variant("unweighted", "auto", 4, 0, False, "fast")
WEIGHTED = Variant("weighted", "auto", 4, 0, True, "fast")
CHOSEN = Variant("chosen", "auto", 4, 0, True, "fast", cross_validated=True)


class DenseTables(Workbench):
    """Tables that are looked up stay as they are, so that all else is cut the harder."""

    op_types = tuple(name for name in Workbench.op_types if name != "Gather")


@dataclass(frozen=True, slots=True)
class Row:
    """One model, draw and share: the error of each way, and the interval of chosen / unweighted."""

    model: str
    draw: int
    share: float
    unweighted: float
    weighted: float
    chosen: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Lost:
    """What a model's outputs lose on each judged sample: the squares of the difference, and of what there was."""

    missed: NDArray[np.float64]
    energy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Relative, on all samples together."""
        return math.sqrt(float(self.missed.sum() / self.energy.sum()))


def ratio_interval(lost: Lost, other: Lost, seed: int) -> tuple[float, float]:
    """What the ratio of two models' errors may be on other samples like these."""
    count = len(lost.missed)
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    sums = [one.missed[drawn].sum(axis=1) for one in (lost, other)]
    low, high = np.percentile(np.sqrt(sums[0] / sums[1]), INTERVAL)
    return float(low), float(high)


def lose(model: Runner, feeds: Feeds, expected: Sequence[Array]) -> Lost:
    """Run a model on all feeds; `expected` has the original's first output for each."""
    missed: list[NDArray[np.float64]] = []
    energy: list[NDArray[np.float64]] = []
    for feed, wanted in zip(feeds, expected, strict=True):
        wide = wanted.astype(np.float64).reshape(len(wanted), -1)
        found = np.asarray(model.run(feed)[model.outputs[0]]).reshape(wide.shape)
        missed.append(np.sum(np.square(found - wide), axis=1))
        energy.append(np.sum(np.square(wide), axis=1))
    return Lost(np.concatenate(missed), np.concatenate(energy))


def measure(name: str, draw: int) -> Iterator[Row]:
    """A row for each share."""
    images = name in ("vgg", "vit")
    case = load_case("minilm" if name == TABLE_DENSE else name, quick=not images, draw=draw)
    unseen = case.judged if images else case.like_few
    workbench = DenseTables if name == TABLE_DENSE else Workbench
    original = open_session(case.path)
    expected = [np.asarray(original.run(feed)[original.outputs[0]]) for feed in unseen]
    with beside_runtime(), tempfile.TemporaryDirectory() as scratch:
        bench = workbench(case.path, case.few, Path(scratch), seed=draw)
        for share in SHARES:
            lost = []
            for variant in (UNWEIGHTED, WEIGHTED, CHOSEN):
                with bench.build(variant, bench.plan(variant, "parameters", share).choices) as model:
                    lost.append(lose(model, unseen, expected))
            interval = ratio_interval(lost[-1], lost[0], draw)
            unweighted, weighted, chosen = (one.error for one in lost)
            yield Row(name, draw, share, unweighted, weighted, chosen, *interval)


def markdown(rows: list[Row], date: str) -> str:
    """The table, and how often the chosen way is as good as the unweighted one."""
    good = sum(row.chosen <= row.unweighted for row in rows)
    worst = max((row.chosen / row.unweighted for row in rows), default=math.nan)
    above = sum(row.low > 1.0 for row in rows)
    header = ("model", "draw", "parameters kept", "unweighted", "weighted", "chosen", "chosen / unweighted", "95 %")
    cells = [
        (
            row.model,
            str(row.draw),
            f"{row.share:g}",
            *(f"{error:.4f}" for error in (row.unweighted, row.weighted, row.chosen)),
            f"{row.chosen / row.unweighted:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
        )
        for row in rows
    ]
    mean = math.exp(float(np.mean([math.log(row.chosen / row.unweighted) for row in rows]))) if rows else math.nan
    return "\n".join(
        (
            "# What 8 calibration samples are good for",
            "",
            f"`python -m benchmarks.few_samples`, {date}; onnxruntime {versions()['onnxruntime']}. Relative error of",
            "the outputs on samples of the same kind that calibration did not see; plain form, not refined.",
            "",
            f"Chosen has no more error than unweighted in {good} of {len(rows)} rows; at worst {worst:.3f} times as",
            f"much, in the geometric mean {mean:.2f} times. It has more in {above} rows by what the samples can tell.",
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
