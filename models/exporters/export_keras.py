"""Train a small convolutional network in Keras, and export it with calibration data.

The backend is TensorFlow or PyTorch, as ``KERAS_BACKEND`` says.
"""

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

keras.utils.set_random_seed(0)
digits = load_digits()
images = (digits.images[..., None] / 16).astype(np.float32)
training, testing = slice(0, 1400), slice(1400, None)

model = keras.Sequential(
    [
        layers.Input((8, 8, 1), name="image"),
        *(layers.Conv2D(16, 3, padding="same", activation="relu"), layers.MaxPooling2D()),
        *(layers.Conv2D(32, 3, padding="same", activation="relu"), layers.Flatten()),
        *(layers.Dense(64, activation="relu"), layers.Dense(10, activation="softmax")),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(images[training], digits.target[training], epochs=20, batch_size=64, verbose=0)

backend = keras.backend.backend()
model.export(f"digits_keras_{backend}.onnx", format="onnx")
np.savez("calib_keras.npz", image=images[training])

_, right = model.evaluate(images[testing], digits.target[testing], verbose=0)
print(f"digits_keras_{backend}.onnx: {right:.1%} of the test images are right")
