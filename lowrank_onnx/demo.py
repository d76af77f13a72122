"""The demo: both shipped models through the whole pipeline, with their accuracy on images that it has not seen.

The pipeline comes in as a function, so that this module knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lowrank_onnx.config import Budget, Config, KeepMacs
from lowrank_onnx.errors import OutputError, UsageError
from lowrank_onnx.evaluate.session import open_session
from lowrank_onnx.progress import Progress
from lowrank_onnx.report.escape import printable
from lowrank_onnx.results import CompressionResult, DemoRow

DEMO_BUDGETS: Mapping[str, Budget] = {"fashion_vgg": KeepMacs(0.6), "fashion_vit": KeepMacs(0.5)}
"""How much of each shipped model is kept."""

SAMPLES_FILE = "fashion_mnist.npz"
CALIBRATION_BATCH = 32
"""Images in one calibration feed, and so in one timed run."""

TEST_BATCH = 500
"""Images in one run when the accuracy is counted."""

Floats = NDArray[np.float32]


class Compress(Protocol):
    """`lowrank_onnx.compress`, as far as the demo uses it."""

    def __call__(
        self,
        model: Path,
        config: Config,
        /,
        *,
        feeds: Sequence[Mapping[str, Any]],
        output: Path,
        force: bool,
        progress: Progress,
    ) -> CompressionResult:
        """Compress `model` and write the result to `output`."""


@dataclass(frozen=True, slots=True)
class DemoFiles:
    """The shipped models, and the images that go with them, normalised as the models take them."""

    models: tuple[Path, ...]
    calibration: Floats
    images: Floats
    labels: NDArray[np.int64]


def find_demo_files(directory: Path | None = None) -> DemoFiles:
    """Load what ships with the repository.

    Parameters
    ----------
    directory : the repository's ``models/``; None looks beside the package, where a checkout has it.

    Raises
    ------
    UsageError
        If a file is missing (a wheel doesn't carry them) or isn't what it should be.
    """
    place = directory or Path(__file__).resolve().parent.parent / "models"
    models = tuple(place / f"{name}.onnx" for name in DEMO_BUDGETS)
    missing = [path.name for path in (*models, place / SAMPLES_FILE) if not path.is_file()]
    if missing:
        raise UsageError(
            f"demo: {printable(str(place))} lacks {', '.join(missing)}: the models come with the repository, not with "
            "the wheel; clone it, or point --models to its models directory"
        )
    calibration, images, labels = _load_samples(place / SAMPLES_FILE)
    return DemoFiles(models, calibration, images, labels)


def _load_samples(path: Path) -> tuple[Floats, Floats, NDArray[np.int64]]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            calibration, images, labels = (arrays[name] for name in ("calib_image", "test_image", "test_label"))
            mean, std = float(arrays["mean"]), float(arrays["std"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise UsageError(
            f"demo: {printable(str(path))} is damaged ({type(error).__name__}): take it from the repository"
        ) from error

    def normalise(pixels: NDArray[Any]) -> Floats:
        return ((pixels.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)).astype(np.float32)

    return normalise(calibration), normalise(images), labels.astype(np.int64)


def prepare_directory(directory: Path) -> Path:
    """Make the directory that keeps the compressed models (`OutputError` where that can't be)."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(
            f"--out {printable(str(directory))}: can't be made ({reason}): give another directory"
        ) from error
    return directory


def count_accuracy(model: Path, images: Floats, labels: NDArray[np.int64]) -> float:
    """Top-1 accuracy of a classifier with one input and one output, from 0 to 1."""
    session = open_session(model)
    name, output = session.inputs[0].name, session.outputs[0]
    right = 0
    for start in range(0, len(images), TEST_BATCH):
        batch = slice(start, start + TEST_BATCH)
        scores = session.run({name: images[batch]})[output]
        right += int((scores.argmax(axis=-1) == labels[batch]).sum())
    return right / len(images)


def calibration_feeds(model: Path, images: Floats) -> list[dict[str, Floats]]:
    """The calibration images as feeds of `CALIBRATION_BATCH` images each."""
    name = open_session(model).inputs[0].name
    return [{name: images[start : start + CALIBRATION_BATCH]} for start in range(0, len(images), CALIBRATION_BATCH)]


def run_demo(
    files: DemoFiles, directory: Path, compress: Compress, *, seed: int, progress: Progress
) -> tuple[DemoRow, ...]:
    """Compress each shipped model into `directory`, and count its accuracy before and after."""
    rows: list[DemoRow] = []
    with progress.stage("demo", len(files.models)) as models_done:
        for model in files.models:
            rows.append(_run_one(model, files, directory, compress, seed=seed, progress=progress))
            models_done.advance(detail=model.stem)
    return tuple(rows)


def _run_one(
    model: Path, files: DemoFiles, directory: Path, compress: Compress, *, seed: int, progress: Progress
) -> DemoRow:
    result = compress(
        model,
        Config(budget=DEMO_BUDGETS[model.stem], seed=seed),
        feeds=calibration_feeds(model, files.calibration),
        output=directory / f"{model.stem}.lowrank.onnx",
        force=True,
        progress=progress,
    )
    after = None if result.output is None else Path(result.output)
    return DemoRow(
        model=model.stem,
        images=len(files.images),
        accuracy_before=count_accuracy(model, files.images, files.labels),
        accuracy_after=None if after is None else count_accuracy(after, files.images, files.labels),
        batch=CALIBRATION_BATCH,
        result=result,
    )
