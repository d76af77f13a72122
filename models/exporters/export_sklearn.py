"""Train a pipeline of scikit-learn, and export it with calibration data."""

from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline

digits = load_digits()
pixels = (digits.data / 16).astype(np.float32)
training, testing = slice(0, 1400), slice(1400, None)

perceptron = MLPClassifier((128, 128), max_iter=80, early_stopping=True, random_state=0)
model = make_pipeline(PCA(48), perceptron)
model.fit(pixels[training], digits.target[training])

# Probabilities as one tensor; the label is their argmax.
exported = to_onnx(model, pixels[:1], options={"zipmap": False})
exported = select_model_inputs_outputs(exported, outputs=["probabilities"])
Path("digits_sklearn.onnx").write_bytes(exported.SerializeToString())
np.savez("calib_sklearn.npz", X=pixels[training])
right = model.score(pixels[testing], digits.target[testing])
print(f"digits_sklearn.onnx: {right:.1%} of the test images are right")
