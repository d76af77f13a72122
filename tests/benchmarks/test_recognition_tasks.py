from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs Pillow (extra bench)")

from benchmarks.recognition_tasks import (
    BATCH,
    Line,
    character_error_rate,
    judged_lines,
    line_feeds,
    load_characters,
    read_lines,
)
from lowrank_onnx.evaluate import open_session
from lowrank_onnx.types import Array
from models.fetch import fetch_model

CHARACTERS = ("a", "b", " ")


def scores_of(*numbers: int) -> Array:
    return np.eye(4)[list(numbers)][None]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((0, 0), ""), ((1, 1, 2), "ab"), ((1, 0, 1), "aa"), ((1, 3, 0, 3, 2), "a  b"), ((2, 2, 0, 0, 2, 1), "bba")],
)
def test_repeated_outputs_count_once_unless_a_blank_parts_them(numbers: tuple[int, ...], text: str) -> None:
    assert read_lines(scores_of(*numbers), CHARACTERS) == [text]


def test_error_rate_leaves_spaces_out() -> None:
    image = np.zeros((48, 20, 3), np.uint8)
    lines = [Line(image, "a b"), Line(image, "bb")]
    scores = np.concatenate([scores_of(1, 2, 0), scores_of(2, 0, 1)])
    assert character_error_rate([scores], lines, CHARACTERS) == pytest.approx(1 / 4)


def test_feeds_hold_blue_first_and_are_filled_up() -> None:
    image = np.zeros((48, 20, 3), np.uint8)
    image[..., 0], image[..., 2] = 255, 51
    feeds = line_feeds([Line(image, "")] * (BATCH + 1))
    assert [feed["x"].shape for feed in feeds] == [(BATCH, 3, 48, 320), (1, 3, 48, 320)]
    x = feeds[1]["x"][0]
    assert np.allclose(x[:, :, :20], np.array([-0.6, -1.0, 1.0])[:, None, None])
    assert not x[:, :, 20:].any()


@pytest.mark.zoo
def test_the_recogniser_reads_rendered_lines_with_some_errors() -> None:
    lines, characters = judged_lines(40), load_characters()
    assert len(characters) == 6624
    session = open_session(fetch_model("ppocr-v4-recogniser"))
    scores = [session.run(feed)[session.outputs[0]] for feed in line_feeds(lines)]
    assert 0.005 < character_error_rate(scores, lines, characters) < 0.1
