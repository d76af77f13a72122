"""What a recogniser of text is judged by: the character error rate on rendered lines, with noise and blur on them.

Calibration and judged lines have different words, noise and blur. Without those it makes next to no errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.edit_distance import error_rate
from benchmarks.rendered_text import add_noise, load_fonts, open_font, plain_words, story_words
from lowrank_onnx.types import Array, Feed
from models.fetch import fetch_model

HEIGHT, WIDTH = 48, 320
"""Of a line's image in pixels, as the recogniser was trained on."""

FONT_SIZES = (20, 36)
BLUR = (0.3, 1.2)
"""Standard deviation of the blur in pixels, from and to."""

NOISE = (5.0, 25.0)
"""Standard deviation of the noise, of 255, from and to."""

BATCH = 4


@dataclass(frozen=True, slots=True)
class Line:
    """An image of a line, uint8 (48, at most 320, 3), and what is written on it."""

    image: NDArray[np.uint8]
    text: str


def render_lines(source: str, count: int, seed: int) -> tuple[Line, ...]:
    """Lines of words of a file of news stories, each in a font, a size, a contrast, a blur and a noise of its own."""
    words = plain_words(story_words(source))
    generator = np.random.default_rng(seed)
    return tuple(_render_line(words, generator) for _ in range(count))


def _render_line(words: Sequence[str], generator: np.random.Generator) -> Line:
    font = open_font(int(generator.integers(len(load_fonts()))), int(generator.integers(*FONT_SIZES, endpoint=True)))
    text = words[int(generator.integers(len(words)))]
    while True:
        longer = f"{text} {words[int(generator.integers(len(words)))]}"
        if font.getlength(longer) > WIDTH - 8:
            break
        text = longer
    paper = generator.integers(150, 256, 3)
    ink = np.clip(paper - generator.integers(60, 150, 3), 0, 255)
    width = min(WIDTH, round(font.getlength(text)) + 10)
    image = Image.new("RGB", (width, HEIGHT), tuple(int(c) for c in paper))
    place = (float(generator.uniform(2, 6)), HEIGHT / 2 + float(generator.uniform(-3, 3)))
    ImageDraw.Draw(image).text(place, text, fill=tuple(int(c) for c in ink), font=font, anchor="lm")
    blurred = image.filter(ImageFilter.GaussianBlur(float(generator.uniform(*BLUR))))
    return Line(add_noise(np.asarray(blurred), float(generator.uniform(*NOISE)), generator), text)


def line_feeds(lines: Sequence[Line]) -> tuple[Feed, ...]:
    """The recogniser's inputs, `BATCH` lines in each: blue first, from -1 to 1, filled up with 0 on the right."""
    scaled = np.zeros((len(lines), 3, HEIGHT, WIDTH), np.float32)
    for row, line in zip(scaled, lines, strict=True):
        row[:, :, : line.image.shape[1]] = line.image[..., ::-1].transpose(2, 0, 1) / 127.5 - 1.0
    return tuple({"x": scaled[start : start + BATCH]} for start in range(0, len(lines), BATCH))


def calibration_feeds(count: int = 256) -> tuple[Feed, ...]:
    """Lines of background stories to calibrate with."""
    return line_feeds(render_lines("lee-background", count, seed=1))


def judged_lines(count: int = 400) -> tuple[Line, ...]:
    """Lines of other stories to judge by."""
    return render_lines("lee-documents", count, seed=2)


def load_characters() -> tuple[str, ...]:
    """What each output but the first, the blank, stands for: the dictionary in the model's metadata, and a space."""
    model = onnx.load(fetch_model("ppocr-v4-recogniser"), load_external_data=False)
    (dictionary,) = (entry.value for entry in model.metadata_props if entry.key == "character")
    return (*dictionary.splitlines(), " ")


def read_lines(scores: Array, characters: Sequence[str]) -> list[str]:
    """The texts of a batch of scores (lines, steps, 1 + characters): repeated outputs once, blanks left out."""
    texts = []
    for best in scores.argmax(axis=-1):
        changed = np.concatenate([[True], best[1:] != best[:-1]])
        texts.append("".join(characters[int(number) - 1] for number in best[changed & (best != 0)]))
    return texts


def character_error_rate(scores: Iterable[Array], lines: Sequence[Line], characters: Sequence[str]) -> float:
    """Edits over characters, of all lines together; spaces don't count, since the recogniser often leaves them out."""
    texts = [text for batch in scores for text in read_lines(batch, characters)]
    pairs = zip(lines, texts, strict=True)
    return error_rate((line.text.replace(" ", ""), text.replace(" ", "")) for line, text in pairs)
