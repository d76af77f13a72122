"""Text rendered with free fonts, so that what is written, and where, is known exactly. Needs Pillow (extra `bench`)."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from models.fetch import fetch_model
from models.packages import read_debian_files

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

MARGIN = 8
"""Pixels between the text and the border of its image."""


@dataclass(frozen=True, slots=True)
class Page:
    """An image of text, uint8 (height, width, 3), with its words and the boxes of their ink."""

    image: NDArray[np.uint8]
    words: tuple[str, ...]
    boxes: tuple[Box, ...]


@functools.cache
def load_fonts() -> tuple[bytes, ...]:
    """The font files of two families of typefaces, in the order of their names."""
    packages = [fetch_model(name) for name in ("fonts-dejavu", "fonts-liberation")]
    files = [file for package in packages for file in read_debian_files(package, ".ttf")]
    return tuple(content for _, content in sorted(files))


@functools.cache
def open_font(index: int, size: int) -> ImageFont.FreeTypeFont:
    """A font by its place in `load_fonts`, `size` pixels high; laid out without libraries that may be missing."""
    return ImageFont.truetype(io.BytesIO(load_fonts()[index]), size, layout_engine=ImageFont.Layout.BASIC)


def story_words(name: str) -> tuple[str, ...]:
    """The words of a file of news stories (`lee-background`, `lee-documents`), with their punctuation."""
    return tuple(word for word in fetch_model(name).read_text(encoding="latin-1").split() if word.isascii())


def plain_words(words: Sequence[str]) -> tuple[str, ...]:
    """Those of letters and digits alone, with at least two of them."""
    return tuple(word for word in words if re.fullmatch(r"[A-Za-z0-9]{2,}", word))


def render_page(
    words: Sequence[str], height: int, width: int, sizes: tuple[int, int], noise: float, generator: np.random.Generator
) -> Page:
    """Lines of words drawn at random, each line in a font, a size and a contrast of its own.

    Parameters
    ----------
    words : to draw from.
    height, width : of the page, in pixels.
    sizes : the smallest and the largest height of a font, in pixels.
    noise : standard deviation of the noise on every pixel, of 255.
    generator : draws everything.
    """
    paper = generator.integers(150, 256, 3)
    image = Image.new("RGB", (width, height), tuple(int(c) for c in paper))
    draw = ImageDraw.Draw(image)
    written: list[str] = []
    boxes: list[Box] = []
    top = MARGIN
    while True:
        size = int(generator.integers(sizes[0], sizes[1] + 1))
        font = open_font(int(generator.integers(len(load_fonts()))), size)
        ink = tuple(int(c) for c in np.clip(paper - generator.integers(60, 200, 3), 0, 255))
        if top + 1.3 * size > height - MARGIN:
            break
        left = MARGIN + float(generator.integers(0, size))
        while True:
            word = words[int(generator.integers(len(words)))]
            box = draw.textbbox((left, top), word, font=font)
            if box[2] > width - MARGIN:
                break
            draw.text((left, top), word, fill=ink, font=font)
            written.append(word)
            boxes.append((float(box[0]), float(box[1]), float(box[2]), float(box[3])))
            left = box[2] + size * float(generator.uniform(0.35, 0.8))
        top += int(size * generator.uniform(1.35, 1.8))
    return Page(add_noise(np.asarray(image), noise, generator), tuple(written), tuple(boxes))


def add_noise(image: NDArray[np.uint8], noise: float, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Gaussian noise on every pixel; `noise` is its standard deviation, of 255."""
    noisy = image + noise * generator.standard_normal(image.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
