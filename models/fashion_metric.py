"""An example of a task metric: ``lowrank-onnx compress ... --metric models/fashion_metric.py:correct``.

A metric brings its own data, runs the model on it, and says how good the model is. This one tells for each image
whether the model is right, so that a bound can be given for images that it has not seen; a metric may as well return
one number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BATCH = 500

Predict = Callable[[Mapping[str, NDArray[np.float32]]], Mapping[str, NDArray[np.float32]]]
"""Runs the model on one feed: input name -> array to output name -> array."""


def correct(predict: Predict) -> NDArray[np.bool_]:
    """For each of the 2,000 labelled test images: whether the model's top class is its label."""
    images, labels = load_test_images()
    classes = [
        predict({"image": images[start : start + BATCH]})["probabilities"].argmax(axis=1)
        for start in range(0, len(images), BATCH)
    ]
    return np.asarray(np.concatenate(classes) == labels)


def load_test_images() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The test images, normalised as the shipped models take them, and their classes."""
    with np.load(Path(__file__).with_name("fashion_mnist.npz"), allow_pickle=False) as arrays:
        pixels, labels = arrays["test_image"].astype(np.float32), arrays["test_label"]
        return ((pixels / 255 - arrays["mean"]) / arrays["std"]).astype(np.float32), labels
