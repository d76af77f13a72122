"""Whether ``--max-drop`` holds on data that the search did not see: ``python -m benchmarks.max_drop``.

For both shipped models: the search counts mistakes on one half of the test images, and the model that it takes is
judged on the other half. Every split is seeded; calibration uses training images.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx import Config, MaxDrop, Metric, compress
from lowrank_onnx.accounting import versions
from lowrank_onnx.demo import DemoFiles, calibration_feeds, find_demo_files
from lowrank_onnx.evaluate import Session, open_session
from lowrank_onnx.metric import Predict
from lowrank_onnx.results import CompressionResult
from lowrank_onnx.types import MetricComparison

RESULTS = Path(__file__).parent / "results" / "max_drop.md"
ASKED = 0.01
SEEDS = (0, 1, 2)
BATCH = 500


@dataclass(frozen=True, slots=True)
class Row:
    """One model, one split: the drop that was asked for, counted, proved, and seen on the other half."""

    model: str
    seed: int
    images: int
    kept: float
    speedup: float
    searched: MetricComparison
    unseen_before: float
    unseen_after: float

    @property
    def unseen(self) -> float:
        """The drop on images that the search did not see."""
        return self.unseen_before - self.unseen_after


def correct_on(images: NDArray[np.float32], labels: NDArray[np.int64]) -> Metric:
    """For each of some images, whether the top class is the label."""

    def correct(predict: Predict) -> NDArray[np.bool_]:
        batches = range(0, len(images), BATCH)
        scores = [predict({"image": images[start : start + BATCH]})["probabilities"] for start in batches]
        return np.asarray(np.concatenate(scores).argmax(axis=1) == labels)

    return Metric.of(correct)


def measure(files: DemoFiles, objective: str) -> Iterator[Row]:
    """One row for each model and split."""
    for path in files.models:
        for seed in SEEDS:
            order = np.random.default_rng(seed).permutation(len(files.images))
            halves = order[: len(order) // 2], order[len(order) // 2 :]
            searched, unseen = (correct_on(files.images[half], files.labels[half]) for half in halves)
            config = Config(
                budget=MaxDrop(ASKED), objective="size" if objective == "size" else "latency", metric=searched
            )
            result = compress(path, config, feeds=calibration_feeds(path, files.calibration))
            yield _row(path, seed, len(halves[0]), result, unseen)


def _row(path: Path, seed: int, images: int, result: CompressionResult, unseen: Metric) -> Row:
    if result.model is None or result.after is None or result.verdict is None or result.verdict.metric is None:
        raise SystemExit(f"{path.stem}, split {seed}: {result.message}")
    before, after = (unseen.measure(session.run).value for session in (open_session(path), _session(result)))
    return Row(
        model=path.stem,
        seed=seed,
        images=images,
        kept=result.after.site_parameters / result.before.site_parameters,
        speedup=result.verdict.latency.speedup if result.verdict.latency else float("nan"),
        searched=result.verdict.metric,
        unseen_before=before,
        unseen_after=after,
    )


def _session(result: CompressionResult) -> Session:
    if result.model is None:
        raise ValueError("nothing was compressed")
    return open_session(result.model.SerializeToString())


def markdown(rows: Sequence[Row], objective: str) -> str:
    """The table with what it means."""
    held = sum(row.unseen <= ASKED for row in rows)
    return TEMPLATE.format(
        objective=objective,
        date=datetime.date.today().isoformat(),
        versions=f"onnxruntime {versions()['onnxruntime']}, {versions()['cpus']} cores",
        asked=ASKED,
        images=rows[0].images,
        rows="\n".join(_cells(row) for row in rows),
        held=f"{held} of {len(rows)}",
    )


TEMPLATE = """\
# A drop that was asked for, on data that the search did not see

`python -m benchmarks.max_drop --objective {objective}`, {date}, {versions}.

`--max-drop {asked:g}` with accuracy as the metric, searched on {images} test images of Fashion-MNIST and judged on as
many others; calibrated with training images. Three seeded splits for each model. *Proved* is what the drop is at the
most, with 95 % confidence over all models that the search may try, on data drawn like the images that it saw; the
search accepts a model by this figure.

| model | split | weights kept | speed | asked | counted in search | proved | on unseen images | accuracy there |
|---|---|---|---|---|---|---|---|---|
{rows}

The drop on unseen images is within {asked:g} in {held} cases.
"""


def _cells(row: Row) -> str:
    cells = (
        row.model,
        row.seed,
        f"{row.kept:.3f}",
        f"{row.speedup:.2f}x",
        f"{ASKED:g}",
        f"{row.searched.drop:+.4f}",
        f"{row.searched.drop_bound:.4f}",
        f"{row.unseen:+.4f}",
        f"{row.unseen_before:.4f} -> {row.unseen_after:.4f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objective", choices=("size", "latency"), default="size")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = list(measure(find_demo_files(), options.objective))
    text = markdown(rows, options.objective)
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
