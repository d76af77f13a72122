"""Write calibration data for the shipped classifiers: prepared training images."""

import sys

import numpy as np

count = int(sys.argv[1]) if len(sys.argv) > 1 else 512
with np.load("models/fashion_mnist.npz") as shipped:
    pixels = shipped["calib_image"][:count].astype(np.float32)
    np.savez("calib.npz", image=(pixels / 255 - shipped["mean"]) / shipped["std"])
