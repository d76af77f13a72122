from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs Pillow (extra bench)")

from benchmarks.detection_tasks import count_matches, find_boxes, judged_pages, page_feed, word_f1
from benchmarks.rendered_text import Box, Page
from lowrank_onnx.evaluate import open_session
from models.export_craft import export_craft


def scores_of(*texts: tuple[slice, slice]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    scores = np.zeros((32, 64, 2), np.float32)
    for place in texts:
        scores[(*place, 0)] = 0.9
    return scores


def test_two_regions_are_two_boxes_grown_by_half_their_height() -> None:
    scores = scores_of((slice(8, 12), slice(4, 20)), (slice(20, 24), slice(30, 50)))
    # A full rectangle grows by the square root of its smaller side: 2 pixels of the map, 4 of the page.
    assert find_boxes(scores) == ((4.0, 12.0, 44.0, 28.0), (56.0, 36.0, 104.0, 52.0))


def test_a_link_joins_two_regions() -> None:
    scores = scores_of((slice(8, 12), slice(4, 12)), (slice(8, 12), slice(16, 20)))
    assert len(find_boxes(scores)) == 2
    scores[9:11, 12:16, 1] = 0.8
    # The link itself is cut out of the word: 48 of 64 pixels are left, and it grows by 1 pixel of the map.
    assert find_boxes(scores) == ((6.0, 14.0, 42.0, 26.0),)


@pytest.mark.parametrize(("height", "score"), [(4, 0.69), (2, 0.9)])
def test_weak_and_small_regions_are_none(height: int, score: float) -> None:
    scores = np.zeros((32, 64, 2), np.float32)
    scores[8 : 8 + height, 4:8, 0] = score
    assert find_boxes(scores) == ()


TRUE: tuple[Box, ...] = ((0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0))


@pytest.mark.parametrize(
    ("found", "matches"),
    [
        ((), 0),
        (TRUE, 2),
        (((0.0, 0.0, 10.0, 5.0),), 1),
        (((0.0, 0.0, 10.0, 4.9),), 0),
        (((0.0, 0.0, 10.0, 9.0), (0.0, 0.0, 10.0, 8.0)), 1),  # one true box is found once
        (((0.0, 0.0, 30.0, 10.0),), 0),
    ],
)
def test_matches_are_one_to_one_from_half_the_union(found: tuple[Box, ...], matches: int) -> None:
    assert count_matches(found, TRUE) == matches


def test_f1_counts_over_all_pages() -> None:
    image = np.zeros((64, 128, 3), np.uint8)
    page = Page(image, ("a", "b"), ((4.0, 12.0, 44.0, 28.0), (80.0, 40.0, 100.0, 60.0)))
    scores = scores_of((slice(8, 12), slice(4, 20)))[None]
    assert word_f1([scores, scores], [page, page]) == pytest.approx(2 * 2 / (2 + 4))


@pytest.mark.zoo
def test_the_detector_finds_rendered_words() -> None:
    pages = judged_pages(6)
    session = open_session(export_craft())
    assert word_f1([session.run(page_feed(page))["scores"] for page in pages], pages) > 0.95
