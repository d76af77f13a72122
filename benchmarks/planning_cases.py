"""The models that planning is judged on: what each is calibrated with, and what it is judged by.

No sample that is judged was seen in calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.detection_tasks import calibration_feeds, judged_pages, page_feed, word_f1
from benchmarks.sentence_tasks import calibration_sentences, encode_texts, judge_encoder, load_tasks
from lowrank_onnx.choose import CostName
from lowrank_onnx.demo import find_demo_files
from lowrank_onnx.types import Array, Feed
from models.export_craft import export_craft
from models.export_minilm import export_minilm
from models.fashion_data import DEFAULT_DIRECTORY, normalise, read_split

Feeds = tuple[Feed, ...]

IMAGES_PER_FEED = 32
JUDGED_PER_FEED = 250
SENTENCES = 512
"""Calibration sentences: as many as calibration images."""

PAGES, QUICK_PAGES = 32, 6
"""Of the text detector, to calibrate with and to judge by."""

FEW = 8
LIKE_FEW = 250
"""Samples to judge by what was learnt from few."""


@dataclass(frozen=True, slots=True)
class Case:
    """One model.

    Attributes
    ----------
    name, path : of the model.
    calibration : feeds to calibrate with.
    few : feeds that hold 8 samples of them.
    like_few : feeds of other samples from the same source.
    judged : feeds on which the outputs' error is measured.
    metrics : the model's figures of merit, by name, from its output on each judged feed; higher is better.
    costs : the budgets to plan for; MACs too where they aren't in proportion to the parameters.
    data : what the feeds are, in a sentence.
    more : other feeds to calibrate with, of one sample each, as many as are asked for, or none.
    """

    name: str
    path: Path
    calibration: Feeds
    few: Feeds
    like_few: Feeds
    judged: Feeds
    metrics: Callable[[Sequence[Array]], Mapping[str, float]]
    costs: tuple[CostName, ...]
    data: str
    more: Callable[[int], Feeds] = lambda count: ()


def load_case(name: str, *, quick: bool, draw: int = 0) -> Case:
    """One of "vgg", "vit", "minilm", "craft"; `quick` judges by fewer samples, `draw` picks the few samples."""
    if name == "craft":
        return _load_craft(quick)
    return _load_minilm(quick, draw) if name == "minilm" else _load_fashion(name, quick, draw)


def _order(count: int, draw: int) -> NDArray[np.int64]:
    """Where the samples stand from which the few are taken: as they are, or by a seeded draw."""
    return np.arange(count) if draw == 0 else np.random.default_rng(draw).permutation(count)


def _load_fashion(name: str, quick: bool, draw: int) -> Case:
    files = find_demo_files()
    path = next(path for path in files.models if path.stem == f"fashion_{name}")
    count = 500 if quick else len(files.images)
    images, labels = files.images[:count], files.labels[:count]
    judged = _cut(images, JUDGED_PER_FEED)
    drawn = files.calibration[_order(len(files.calibration), draw)]
    return Case(
        name=name,
        path=path,
        calibration=_cut(files.calibration, IMAGES_PER_FEED),
        few=({"image": drawn[:FEW]},),
        like_few=_cut(drawn[FEW : FEW + LIKE_FEW], JUDGED_PER_FEED),
        judged=judged,
        metrics=lambda outputs: {"top-1": _top1(outputs, labels)},
        costs=("parameters", "macs") if name == "vgg" else ("parameters",),
        data=f"calibrated with {len(files.calibration)} training images of Fashion-MNIST, judged on {count} others",
        more=training_images,
    )


def training_images(count: int) -> Feeds:
    """So many training images of Fashion-MNIST, one in a feed; none where the data set isn't installed."""
    if not DEFAULT_DIRECTORY.is_dir():
        return ()
    images, _ = read_split(DEFAULT_DIRECTORY, "train")
    drawn = np.sort(np.random.default_rng(count).choice(len(images), count, replace=False))
    return _cut(normalise(images[drawn]), 1)


def _cut(images: NDArray[np.float32], size: int) -> Feeds:
    return tuple({"image": images[start : start + size]} for start in range(0, len(images), size))


def _top1(outputs: Sequence[Array], labels: NDArray[np.int64]) -> float:
    return float((np.concatenate(outputs).argmax(axis=-1) == labels).mean())


def _load_minilm(quick: bool, draw: int) -> Case:
    tasks = {task.name: (task, encode_texts(task.texts)) for task in load_tasks()}
    if quick:
        del tasks["SimLex"]
    sentences = calibration_sentences(SENTENCES)
    drawn = [sentences[index] for index in _order(len(sentences), draw)]
    return Case(
        name="minilm",
        path=export_minilm(),
        calibration=encode_texts(sentences).feeds,
        few=encode_texts(drawn[:FEW]).feeds,
        like_few=encode_texts(drawn[FEW : FEW + LIKE_FEW]).feeds,
        judged=tuple(feed for _, encoded in tasks.values() for feed in encoded.feeds),
        metrics=lambda outputs: judge_encoder(outputs, tasks),
        costs=("parameters",),
        data=f"calibrated with {SENTENCES} sentences of Lee's background stories, judged on Lee's 50 documents and the "
        f"words of {' and '.join(name for name in tasks if name != 'Lee')}",
    )


def _load_craft(quick: bool) -> Case:
    calibration, pages = (
        calibration_feeds(QUICK_PAGES if quick else PAGES),
        judged_pages(QUICK_PAGES if quick else PAGES),
    )
    return Case(
        name="craft",
        path=export_craft(),
        calibration=calibration,
        few=calibration[:FEW],
        like_few=calibration[FEW:],
        judged=tuple(page_feed(page) for page in pages),
        metrics=lambda outputs: {"word F1": word_f1(outputs, pages)},
        costs=("parameters", "macs"),
        data=f"calibrated with {len(calibration)} rendered pages of Lee's background stories, judged on {len(pages)} "
        "pages of other stories",
    )
