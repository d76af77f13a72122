from __future__ import annotations

import io

import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs Pillow (extra bench)")

from PIL import Image

from benchmarks import image_tasks
from benchmarks.image_tasks import Labelled, classes_of, image_feeds, judged_images, square_image, top1
from benchmarks.wordnet import Nouns, parse_data, parse_index
from lowrank_onnx.evaluate import open_session
from models.export_efficientnet import export_efficientnet

NOUNS = Nouns(
    senses={"bear": ("10", "90"), "brown_bear": ("11",), "crane": ("50", "60"), "tool": ("70",), "sun": ("90",)},
    kinds={"10": ("11", "12"), "12": ("13", "10"), "50": ("51",), "60": ("61",)},
)


@pytest.fixture
def _few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tasks, "load_nouns", lambda: NOUNS)
    monkeypatch.setattr(image_tasks, "class_numbers", lambda: {"11": 0, "13": 1, "61": 2})


@pytest.mark.usefixtures("_few_words")
@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("bear", {0, 1}),  # every kind of it, and kinds may go round
        ("brown-bear_2", {0}),  # the longest phrase
        ("brownBear", {0}),
        ("crane", {2}),  # the second sense, since nothing of the first is a class
        ("bear_crane", {2}),  # the later of two words
        ("sun_tool", set()),
        ("", set()),
    ],
)
def test_classes_come_from_the_longest_phrase(name: str, classes: set[int]) -> None:
    assert classes_of(name) == classes


def test_lines_of_the_database_are_read() -> None:
    index = "brown_bear n 2 3 @ ~ #m 2 1 02132136 00000007  "
    assert parse_index(index) == ("brown_bear", ("02132136", "00000007"))
    data = "02132136 05 n 02 brown_bear 0 Ursus_arctos 0 003 @ 02131653 n 0000 ~ 02132320 n 0000 ~i 02132466 n 0000 | a"
    assert parse_data(data) == ("02132136", ("02132320", "02132466"))


def picture(width: int, height: int) -> bytes:
    image = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_stamps_lie_on_white_with_a_margin() -> None:
    image = square_image(picture(100, 50), 0.1)
    assert image.shape == (260, 260, 3)
    assert image[0, 0].tolist() == [255, 255, 255]
    assert image[130, 130].tolist() == [255, 0, 0]
    red = (image[..., 1] < 128).nonzero()
    # Half of 100 x 50 in a square of 120.
    assert np.ptp(red[1]) == pytest.approx(260 * 50 / 120, abs=2)
    assert np.ptp(red[0]) == pytest.approx(260 * 25 / 120, abs=2)


def test_photographs_are_cut_to_their_middle() -> None:
    image = square_image(picture(100, 50), 0.0)
    red = (image[..., 1] < 128).nonzero()
    assert np.ptp(red[1]) == pytest.approx(259, abs=1)
    assert np.ptp(red[0]) == pytest.approx(130, abs=2)


def test_top1_takes_any_of_the_right_classes() -> None:
    image = np.zeros((260, 260, 3), np.uint8)
    images = [
        Labelled("a", image, frozenset({0, 2})),
        Labelled("b", image, frozenset({1})),
        Labelled("c", image, frozenset({2})),
    ]
    logits = [np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), np.array([[0.0, 0.0, 3.0]])]
    assert top1(logits, images) == pytest.approx(2 / 3)


@pytest.mark.zoo
def test_the_classifier_knows_samples_of_imagenet() -> None:
    samples = judged_images()["ImageNet samples"]
    session = open_session(export_efficientnet())
    feeds = image_feeds([sample.image for sample in samples])
    assert top1([session.run(feed)["logits"] for feed in feeds], samples) >= 17 / 20
