"""What a classifier of ImageNet's classes is judged by: drawings and photographs whose names are known.

Judged are the stamps of a children's drawing program whose names are those of classes, or of kinds of things to which
classes belong (any of these is right then), and 20 images of ImageNet. Calibration sees other stamps only.
"""

from __future__ import annotations

import functools
import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.wordnet import load_nouns
from lowrank_onnx.types import Array, Feed
from models.export_efficientnet import IMAGE_SIZE
from models.fetch import fetch_model
from models.packages import read_debian_files

NOT_THINGS = ("symbols", "cartoon")
"""Directories of stamps that show letters, and such as are drawn in a way that hides what they are."""

SENSES = 2
"""Of a word that are tried."""

BATCH = 8

MARGIN = 0.1
"""White around a stamp, as a share of its longer side."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Labelled:
    """An image, uint8 (260, 260, 3), and the classes that are right for it."""

    name: str
    image: Pixels
    classes: frozenset[int]


def classes_of(name: str) -> frozenset[int]:
    """ImageNet's classes that are what a file name says, in one of the two most frequent senses of a phrase in it.

    Longer phrases come first, and of those as long the later, since English has the noun after what qualifies it.
    """
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    classes, nouns = class_numbers(), load_nouns()
    spans = [(start, end) for end in range(len(words), 0, -1) for start in range(end)]
    for start, end in sorted(spans, key=lambda span: span[0] - span[1]):
        for sense in nouns.senses.get("_".join(words[start:end]), ())[:SENSES]:
            found = frozenset(classes[kind] for kind in nouns.below(sense) if kind in classes)
            if found:
                return found
    return frozenset()


@functools.cache
def class_numbers() -> dict[str, int]:
    """The number of each class by its synset in WordNet 3.0."""
    synsets = fetch_model("imagenet-classes").read_text(encoding="ascii").split()
    return {synset.removeprefix("n"): number for number, synset in enumerate(synsets)}


@functools.cache
def stamp_files() -> dict[str, bytes]:
    """Every stamp that shows a thing, as a PNG file, by its name."""
    stored = read_debian_files(fetch_model("stamps"), ".png")
    by_name = {path.split("/stamps/", 1)[1]: content for path, content in stored}
    return {name: content for name, content in by_name.items() if not set(NOT_THINGS) & set(PurePosixPath(name).parts)}


def load_stamps() -> tuple[Labelled, ...]:
    """The stamps that have a class."""
    classes = {name: classes_of(PurePosixPath(name).stem) for name in stamp_files()}
    return tuple(
        Labelled(name, square_image(content, MARGIN), classes[name])
        for name, content in stamp_files().items()
        if classes[name]
    )


def load_samples() -> tuple[Labelled, ...]:
    """20 images of ImageNet, each with its one class."""
    samples = []
    with zipfile.ZipFile(fetch_model("imagenet-samples")) as archive:
        for name in sorted(archive.namelist()):
            match = re.search(r"/data/imagenet_\d+_(\d+)\.jpg$", name)
            if match:
                samples.append(Labelled(name, square_image(archive.read(name), 0.0), frozenset({int(match[1])})))
    return tuple(samples)


def square_image(content: bytes, margin: float) -> Pixels:
    """An image of the classifier's size: on white with a margin where there is one, else cut to its middle."""
    with Image.open(io.BytesIO(content)) as opened:
        picture = opened.convert("RGBA")
    side = round(max(picture.size) * (1.0 + 2.0 * margin)) if margin else min(picture.size)
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(picture, *_placement(picture.size, side))
    return np.asarray(canvas.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def _placement(size: tuple[int, int], side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where to put an image in the middle of a square, and where to begin in the image itself."""
    spare = [(side - extent) // 2 for extent in size]
    return (max(0, spare[0]), max(0, spare[1])), (max(0, -spare[0]), max(0, -spare[1]))


def image_feeds(images: Sequence[Pixels]) -> tuple[Feed, ...]:
    """The classifier's inputs, `BATCH` images in each."""
    return tuple(
        {"image": ((np.stack(images[start : start + BATCH]).transpose(0, 3, 1, 2) - np.float32(127)) / np.float32(128))}
        for start in range(0, len(images), BATCH)
    )


def judged_images() -> dict[str, tuple[Labelled, ...]]:
    """The tasks: stamps that have a class, and samples of ImageNet."""
    return {"stamps": load_stamps(), "ImageNet samples": load_samples()}


def calibration_feeds(count: int = 256, *, seed: int = 0) -> tuple[Feed, ...]:
    """Stamps without a class, drawn at random."""
    others = [content for name, content in stamp_files().items() if not classes_of(PurePosixPath(name).stem)]
    chosen = np.random.default_rng(seed).permutation(len(others))[:count]
    return image_feeds([square_image(others[index], MARGIN) for index in chosen])


def top1(logits: Sequence[Array], images: Sequence[Labelled]) -> float:
    """The share of images whose likeliest class is right."""
    best = np.concatenate(list(logits)).argmax(axis=-1)
    return float(np.mean([int(number) in image.classes for number, image in zip(best, images, strict=True)]))
