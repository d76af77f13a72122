"""Write calibration data for the shipped classifiers: prepared training images, as calib.npz."""

import argparse

import numpy as np

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("images", type=int, nargs="?", default=512, help="how many, from 1 to 512 (the default)")
count = parser.parse_args().images
with np.load("models/fashion_mnist.npz") as shipped:
    images = shipped["calib_image"]
    if not 1 <= count <= len(images):
        parser.error(f"images {count}: expected 1 to {len(images)}")
    pixels = images[:count].astype(np.float32)
    np.savez("calib.npz", image=(pixels / 255 - shipped["mean"]) / shipped["std"])
