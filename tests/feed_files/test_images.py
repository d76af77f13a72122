from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lowrank_onnx.errors import MissingDependencyError, UsageError
from lowrank_onnx.feed_files.images import ImageRecipe, image_feeds, prepare_image
from tests.feed_files.samples import write_images


def test_mean_and_std_are_those_of_scaled_pixels(tmp_path: Path) -> None:
    (path,) = write_images(tmp_path, 1).iterdir()
    made = prepare_image(path, ImageRecipe(height=4, width=4, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0)))
    assert made.shape == (3, 4, 4)
    assert made.dtype == np.float32
    expected = [(0 - 0.5) / 0.5, 100 / 255 - 0.25, 200 / 255 / 2]
    np.testing.assert_allclose(made[:, 0, 0], expected, rtol=1e-6)
    assert all(np.unique(channel).size == 1 for channel in made)


def test_layouts_hold_the_same_values(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    first = prepare_image(tmp_path / "noise.png", ImageRecipe(height=5, width=7))
    last = prepare_image(tmp_path / "noise.png", ImageRecipe(height=5, width=7, layout="nhwc"))
    assert last.shape == (5, 7, 3)
    assert np.array_equal(first, last.transpose(2, 0, 1))
    swapped = prepare_image(tmp_path / "noise.png", ImageRecipe(height=5, width=7, colours="bgr"))
    assert np.array_equal(swapped, first[::-1])


def test_pixels_as_they_are(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    made = prepare_image(tmp_path / "noise.png", ImageRecipe(height=4, width=6, layout="nhwc", dtype="uint8"))
    assert np.array_equal(made, noise)
    assert prepare_image(tmp_path / "noise.png", ImageRecipe(height=4, width=6, scale=1.0)).max() == noise.max()


@pytest.mark.parametrize(("fit", "left", "corner"), [("crop", 255, 255), ("stretch", 0, 0), ("pad", 0, 0)])
def test_what_becomes_of_another_shape(tmp_path: Path, fit: Any, left: int, corner: int) -> None:
    pixels = np.zeros((20, 60), np.uint8)
    pixels[:, 20:40] = 255  # white in the middle, black at both sides
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    recipe = ImageRecipe(height=20, width=20, fit=fit, colours="gray", scale=1.0, resample="nearest")
    (made,) = prepare_image(tmp_path / "wide.png", recipe)
    assert made[10, 0] == left
    assert made[0, 0] == corner
    assert made[10, 10] == 255


def test_the_share_of_the_shorter_side_that_is_kept(tmp_path: Path) -> None:
    """Resize(256) and CenterCrop(224) keep 0.875 of the shorter side."""
    pixels = np.zeros((256, 256), np.uint8)
    pixels[16:240, 16:240] = 255
    Image.fromarray(pixels).save(tmp_path / "framed.png")
    recipe = ImageRecipe(height=224, width=224, colours="gray", scale=1.0)
    assert prepare_image(tmp_path / "framed.png", recipe).min() == 0
    cropped = ImageRecipe(height=224, width=224, colours="gray", scale=1.0, crop_share=0.875)
    assert prepare_image(tmp_path / "framed.png", cropped).min() == 255


def test_images_are_taken_in_the_order_of_their_paths_and_evenly(tmp_path: Path) -> None:
    write_images(tmp_path, 6)
    write_images(tmp_path / "more", 2)
    (tmp_path / "labels.txt").write_text("no image")
    array, count = image_feeds(tmp_path, "x", ImageRecipe(height=2, width=2, scale=1.0), samples=4)
    assert count == 8
    assert array.shape == (4, 3, 2, 2)
    assert [row[0, 0, 0] for row in array.rows] == [0, 2, 4, 0]  # the last is in more/


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ImageRecipe(height=2, width=2)
    with pytest.raises(UsageError, match="no images in it"):
        image_feeds(tmp_path, "x", recipe, 4)
    with pytest.raises(UsageError, match="is no directory"):
        image_feeds(tmp_path / "nowhere", "x", recipe, 4)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UsageError, match=r"broken\.jpg: can't be read as an image: remove it"):
        list(image_feeds(tmp_path, "x", recipe, 4)[0].rows)
    write_images(tmp_path, 1, (30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UsageError, match=r"000\.png: has too many pixels"):
        prepare_image(tmp_path / "000.png", recipe)


def test_without_the_library_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"needs Pillow: pip install pillow \(or, .*'\.\[feeds\]'"):
        image_feeds(tmp_path, "x", ImageRecipe(height=2, width=2), 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 0}, "--size 0x2: expected 1 to 16384"),
        ({"width": 10**6}, "--size 2x1000000"),
        ({"mean": (0.1, 0.2)}, "--mean 0.1,0.2: expected one number, or one for each of 3"),
        ({"mean": (float("nan"),)}, "--mean nan"),
        ({"std": (0.0,)}, "--std 0: expected numbers above 0"),
        ({"std": (1.0, 1.0, 1.0), "colours": "gray"}, "each of 1 channels"),
        ({"scale": 0.0}, "--scale 0: expected a number above 0"),
        ({"crop_share": 1.5}, "--crop-share 1.5"),
        ({"dtype": "uint8", "mean": (0.5,)}, "--dtype uint8 keeps pixels as they are"),
    ],
)
def test_recipes_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ImageRecipe(**{"height": 2, "width": 2, **options})
