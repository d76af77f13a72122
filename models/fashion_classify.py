"""Name what an image of the calibration data shows, with the model given."""

import sys

import numpy as np
import onnxruntime

CLASSES = (
    *("T-shirt", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

session = onnxruntime.InferenceSession(sys.argv[1])
image = np.load("calib.npz")["image"][:1]
(probabilities,) = session.run(None, {"image": image})
print(CLASSES[probabilities.argmax()], f"{probabilities.max():.0%}")
