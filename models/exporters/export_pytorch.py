"""Train a small convolutional network in PyTorch, and export it with calibration data."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()
images = (digits.images[:, None] / 16).astype(np.float32)
training, testing = slice(0, 1400), slice(1400, None)

model = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten()),
    *(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for _ in range(20):
    for batch in torch.randperm(1400).split(64):
        scores = model(torch.tensor(images[batch]))
        loss = nn.functional.cross_entropy(scores, torch.tensor(digits.target[batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

torch.onnx.export(
    model.eval(),
    (torch.zeros(2, 1, 8, 8),),
    "digits_pytorch.onnx",
    input_names=["image"],
    output_names=["scores"],
    dynamic_shapes=({0: torch.export.Dim("batch")},),  # any number of images at once
    external_data=False,  # one file
    dynamo=True,
)
np.savez("calib_pytorch.npz", image=images[training])

with torch.no_grad():
    right = model(torch.tensor(images[testing])).argmax(1).numpy() == digits.target[testing]
print(f"digits_pytorch.onnx: {right.mean():.1%} of the test images are right")
