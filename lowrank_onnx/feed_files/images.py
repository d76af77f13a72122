"""Images of a folder as the array that a vision model takes, prepared by Pillow."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_onnx.errors import MissingDependencyError, UsageError, how_to_install
from lowrank_onnx.feed_files.choices import Colours, Fit, Layout, PixelType, Resample
from lowrank_onnx.feed_files.npz_writer import FeedArray, evenly_spread
from lowrank_onnx.report.escape import printable
from lowrank_onnx.types import Array

_LARGEST_SIDE = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecipe:
    """How an image becomes an array: (pixels / scale - mean) / std, after it was brought to its size.

    Attributes
    ----------
    height, width : in pixels.
    mean, std : one number for all channels or one each, of pixels that were divided by `scale`.
    scale : what pixels of 0 to 255 are divided by.
    layout : "nchw" puts the channels before the rows, "nhwc" behind the columns.
    colours : order of the channels; "gray" has one.
    fit : what is done with another shape: "crop" cuts what is too long, "stretch" distorts, "pad" adds black.
    crop_share : with "crop", the share of the shorter side that is kept.
    resample : how pixels are interpolated.
    dtype : "uint8" keeps the pixels as they are.
    """

    height: int
    width: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 255.0
    layout: Layout = "nchw"
    colours: Colours = "rgb"
    fit: Fit = "crop"
    crop_share: float = 1.0
    resample: Resample = "bilinear"
    dtype: PixelType = "float32"

    def __post_init__(self) -> None:
        if not (0 < self.height <= _LARGEST_SIDE and 0 < self.width <= _LARGEST_SIDE):
            raise UsageError(f"--size {self.height}x{self.width}: expected 1 to {_LARGEST_SIDE} pixels, e.g. 224")
        for flag, values in (("--mean", self.mean), ("--std", self.std)):
            if len(values) not in (1, self.channels) or not np.isfinite(values).all():
                shown = ",".join(f"{value:g}" for value in values)
                raise UsageError(f"{flag} {shown}: expected one number, or one for each of {self.channels} channels")
        if min(self.std) <= 0:
            raise UsageError(f"--std {min(self.std):g}: expected numbers above 0")
        if not (self.scale > 0 and np.isfinite(self.scale)):
            raise UsageError(
                f"--scale {self.scale:g}: expected a number above 0: 255, or 1 to leave pixels as they are"
            )
        if not 0.0 < self.crop_share <= 1.0:
            raise UsageError(f"--crop-share {self.crop_share:g}: expected a share above 0, up to 1")
        if self.dtype == "uint8" and (self.mean, self.std) != ((0.0,), (1.0,)):
            raise UsageError("--dtype uint8 keeps pixels as they are: drop --mean and --std")

    @property
    def channels(self) -> int:
        """1 or 3."""
        return 1 if self.colours == "gray" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, as the model takes it."""
        if self.layout == "nchw":
            return self.channels, self.height, self.width
        return self.height, self.width, self.channels


def image_feeds(directory: Path, name: str, recipe: ImageRecipe, samples: int) -> tuple[FeedArray, int]:
    """The images of a directory and those below it as one array, and how many there are in all.

    Parameters
    ----------
    directory : is searched for files whose suffix Pillow knows, in the order of their paths.
    name : of the model's input.
    recipe : how each is prepared.
    samples : how many are taken, evenly spread over all.

    Raises
    ------
    MissingDependencyError
        Pillow isn't installed.
    UsageError
        There is no image. Those that can't be read raise it when their turn comes.
    """
    found = _find_images(directory)
    chosen = [found[index] for index in evenly_spread(len(found), samples)]
    rows = (prepare_image(path, recipe) for path in chosen)
    return FeedArray(name, (len(chosen), *recipe.shape), np.dtype(recipe.dtype), rows), len(found)


def prepare_image(path: Path, recipe: ImageRecipe) -> Array:
    """One image as the recipe says (`UsageError` where it can't be read)."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                pixels = np.asarray(_fitted(image.convert("L" if recipe.colours == "gray" else "RGB"), recipe))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UsageError(f"{printable(str(path))}: has too many pixels to be read safely: scale it down") from error
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        raise UsageError(f"{printable(str(path))}: can't be read as an image: remove it from the folder") from error
    return _arranged(pixels, recipe)


def _find_images(directory: Path) -> list[Path]:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(f"feeds images: needs Pillow: {how_to_install('feeds', 'pillow')}") from error
    if not directory.is_dir():
        raise UsageError(f"{printable(str(directory))}: is no directory, expected a folder of images")
    known = Image.registered_extensions()
    found = sorted(path for path in directory.rglob("*") if path.suffix.lower() in known and path.is_file())
    if not found:
        raise UsageError(f"{printable(str(directory))}: no images in it, expected .jpg, .png and the like")
    return found


def _fitted(image: Any, recipe: ImageRecipe) -> Any:
    from PIL import Image, ImageOps

    size = recipe.width, recipe.height
    method = Image.Resampling[recipe.resample.upper()]
    if recipe.fit == "stretch":
        return image.resize(size, method)
    if recipe.fit == "pad":
        return ImageOps.pad(image, size, method)
    return ImageOps.fit(_middle(image, recipe.crop_share), size, method)


def _middle(image: Any, share: float) -> Any:
    """The middle of the image: a border is cut off all around, `share` of the shorter side stays."""
    border = round(min(image.size) * (1.0 - share) / 2)
    return image.crop((border, border, image.width - border, image.height - border)) if border else image


def _arranged(pixels: Array, recipe: ImageRecipe) -> Array:
    array = pixels[..., None] if pixels.ndim == 2 else pixels
    if recipe.colours == "bgr":
        array = array[..., ::-1]
    if recipe.dtype == "float32":
        array = ((array / recipe.scale - np.array(recipe.mean)) / np.array(recipe.std)).astype(np.float32)
    return np.ascontiguousarray(array.transpose(2, 0, 1) if recipe.layout == "nchw" else array)
