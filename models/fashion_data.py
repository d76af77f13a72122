"""Fashion-MNIST: reading, normalising, and the small file of images that is shipped with the models."""

import gzip
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DEFAULT_DIRECTORY = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts the four files of the data set."""

MEAN = 0.2860
"""Mean of the training images' pixels, on the scale where white is 1."""

STD = 0.3530
"""Standard deviation of the training images' pixels, on the same scale."""

CALIBRATION_IMAGES = 512
"""Training images in the shipped file."""

TEST_IMAGES = 2000
"""Test images in the shipped file: the first ones of the test set, in its own order."""

CALIBRATION_SEED = 20170828
"""Seed of the draw of the calibration images (the date of the data set's paper; any number would do)."""

IMAGE_MAGIC, LABEL_MAGIC = 2051, 2049
"""First word of an idx file of unsigned bytes: with three axes (images), with one axis (labels)."""

Bytes = NDArray[np.uint8]


def read_idx(path: Path) -> Bytes:
    """Read one gzipped idx file of unsigned bytes.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    ndarray
        ``(count, 28, 28)`` for images, ``(count,)`` for labels.

    Raises
    ------
    ValueError
        If the file is not an idx file of unsigned bytes, or is truncated.
    """
    content = gzip.decompress(path.read_bytes())
    magic = int.from_bytes(content[:4], "big")
    if magic not in (IMAGE_MAGIC, LABEL_MAGIC):
        raise ValueError(f"{path}: not an idx file of unsigned bytes (it begins with {magic})")
    axes = magic & 0xFF
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", axes, 4))
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if data.size != math.prod(shape):
        raise ValueError(f"{path}: {data.size} values instead of {math.prod(shape)}")
    return data.reshape(shape)


def read_split(directory: Path, split: str) -> tuple[Bytes, Bytes]:
    """Read the images and labels of one split.

    Parameters
    ----------
    directory
        Holds the four files under their original names.
    split
        ``"train"`` (60,000 images) or ``"t10k"`` (10,000 test images).

    Returns
    -------
    tuple of ndarray
        Images ``(count, 1, 28, 28)`` and labels ``(count,)``, both uint8.
    """
    images = read_idx(directory / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(directory / f"{split}-labels-idx1-ubyte.gz")
    return images[:, None], labels


def normalise(images: Bytes) -> NDArray[np.float32]:
    """Turn pixels into what the models take.

    Parameters
    ----------
    images
        Pixels from 0 to 255.

    Returns
    -------
    ndarray
        ``(images / 255 - MEAN) / STD`` as float32.
    """
    scaled = (images.astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    return scaled.astype(np.float32)


def write_samples(directory: Path, target: Path) -> None:
    """Write the shipped file of calibration and test images.

    Parameters
    ----------
    directory
        Holds the data set.
    target
        The npz file to write: ``calib_image``, ``test_image``, ``test_label`` as uint8, and ``mean`` and ``std``.
    """
    train_images, _ = read_split(directory, "train")
    test_images, test_labels = read_split(directory, "t10k")
    draw = np.random.default_rng(CALIBRATION_SEED).choice(len(train_images), CALIBRATION_IMAGES, replace=False)
    np.savez_compressed(
        target,
        calib_image=train_images[np.sort(draw)],
        test_image=test_images[:TEST_IMAGES],
        test_label=test_labels[:TEST_IMAGES],
        mean=np.float32(MEAN),
        std=np.float32(STD),
    )
