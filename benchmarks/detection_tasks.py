"""What a detector of text is judged by: F1 of the boxes of words on rendered pages, whose true boxes are known.

Calibration and judged pages have different words and noise. A page takes some of every font.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from benchmarks.rendered_text import Box, Page, render_page, story_words
from lowrank_onnx.types import Array, Feed
from models.export_craft import MEAN, STD

HEIGHT, WIDTH = 256, 384
FONT_SIZES = (13, 34)
NOISE = 8.0

TEXT_THRESHOLD, LINK_THRESHOLD, LOW_TEXT = 0.7, 0.4, 0.4
"""Of the detector's authors: the least score of a word's best pixel, of a link, and of any pixel of a word."""

SMALLEST = 10
"""Pixels of the score map below which a region is none, as the authors have it."""

OVERLAP = 0.5
"""Intersection over union at which a box found is a true one, as in ICDAR's contests."""


def render_pages(source: str, count: int, seed: int) -> tuple[Page, ...]:
    """Pages of words of a file of news stories."""
    words = story_words(source)
    generator = np.random.default_rng(seed)
    return tuple(render_page(words, HEIGHT, WIDTH, FONT_SIZES, NOISE, generator) for _ in range(count))


def page_feed(page: Page) -> Feed:
    """The detector's input of one page."""
    normalized = (page.image / 255.0 - np.array(MEAN)) / np.array(STD)
    return {"image": np.ascontiguousarray(normalized.transpose(2, 0, 1)[None], dtype=np.float32)}


def calibration_feeds(count: int = 32) -> tuple[Feed, ...]:
    """Pages of background stories to calibrate with, one in a feed."""
    return tuple(page_feed(page) for page in render_pages("lee-background", count, seed=1))


def judged_pages(count: int = 48) -> tuple[Page, ...]:
    """Pages of other stories to judge by."""
    return render_pages("lee-documents", count, seed=2)


def find_boxes(scores: NDArray[np.floating]) -> tuple[Box, ...]:
    """The boxes of words in one page's scores (height / 2, width / 2, 2), in pixels of the page.

    After the paper's section 3.3: connected regions of text or link, without the links themselves, each grown by what
    shrank it in training; upright boxes, since the pages' text is upright.
    """
    text, link = scores[..., 0], scores[..., 1] > LINK_THRESHOLD
    regions, _ = ndimage.label((text > LOW_TEXT) | link)
    boxes = []
    for index, place in enumerate(ndimage.find_objects(regions), start=1):
        region = regions[place] == index
        if np.count_nonzero(region) < SMALLEST or text[place][region].max() < TEXT_THRESHOLD:
            continue
        core = region & ~(link[place] & (text[place] <= LOW_TEXT))
        boxes.append(_grown_box(core, place[0].start, place[1].start, scores.shape[0], scores.shape[1]))
    return tuple(boxes)


def _grown_box(core: NDArray[np.bool_], top: int, left: int, height: int, width: int) -> Box:
    """The box around a region that starts at (top, left) of a map of that height and width, in pixels of the page."""
    rows, columns = np.nonzero(core)
    extents = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    grown = int(np.sqrt(len(rows) * min(extents) / (extents[0] * extents[1])))
    return (
        2.0 * max(0, left + int(columns.min()) - grown),
        2.0 * max(0, top + int(rows.min()) - grown),
        2.0 * min(width, left + int(columns.max()) + 1 + grown),
        2.0 * min(height, top + int(rows.max()) + 1 + grown),
    )


def count_matches(found: Sequence[Box], true: Sequence[Box]) -> int:
    """How many boxes found are true ones, each matched with one at most."""
    if not found or not true:
        return 0
    a, b = np.array(found)[:, None, :], np.array(true)[None, :, :]
    overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.prod(np.maximum(overlap, 0.0), axis=-1)
    areas = [np.prod(box[..., 2:] - box[..., :2], axis=-1) for box in (a, b)]
    good = shared >= OVERLAP * (areas[0] + areas[1] - shared)
    rows, columns = linear_sum_assignment(good, maximize=True)
    return int(np.count_nonzero(good[rows, columns]))


def word_f1(scores: Iterable[Array], pages: Sequence[Page]) -> float:
    """F1 of the words' boxes over all pages, from the detector's output on each, (1, height / 2, width / 2, 2)."""
    matches = found = true = 0
    for batch, page in zip(scores, pages, strict=True):
        boxes = find_boxes(np.asarray(batch)[0])
        matches += count_matches(boxes, page.boxes)
        found, true = found + len(boxes), true + len(page.boxes)
    return 2.0 * matches / (found + true)
