"""Train one of the two shipped Fashion-MNIST classifiers and export it to ONNX.

Run as ``python -m models.train_fashion vgg`` or ``python -m models.train_fashion vit``, from the repository's root.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.architectures import FashionVGG, FashionViT
from models.fashion_data import DEFAULT_DIRECTORY, TEST_IMAGES, normalise, read_split, write_samples
from models.fashion_export import check_agreement, export, predict
from models.fashion_training import RECIPES, train

SEED = 20260402
"""Default seed of weights, order of the images and augmentation (any number would do)."""

THREADS = 2
"""Threads of PyTorch; fixed, because the order of float additions, and so the exact weights, depend on it."""

IMAGE_AXES = 4
"""Axes of an image batch and of a convolution's weight: the tensors that have a memory layout to choose."""

AGREEMENT_IMAGES = 256
"""Test images on which the exported file is compared with PyTorch."""


def build(name: str) -> nn.Module:
    """Make an untrained network.

    Parameters
    ----------
    name
        ``"vgg"`` or ``"vit"``.

    Returns
    -------
    Module
        The network, in the memory layout that trains fastest on a CPU.
    """
    if name == "vgg":
        network = FashionVGG()
        for parameter in network.parameters():
            if parameter.dim() == IMAGE_AXES:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return network
    return FashionViT()


def to_tensors(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Turn a split into what the training takes.

    Parameters
    ----------
    images, labels
        As read from the files.

    Returns
    -------
    tuple of Tensor
        Normalised float32 images and int64 labels.
    """
    return torch.from_numpy(normalise(images)), torch.from_numpy(labels.astype(np.int64))


def main() -> None:
    """Parse the command line, train, export, check, and print the accuracy of the exported file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--epochs", type=int, help="instead of the recipe's number")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--data", type=Path, default=DEFAULT_DIRECTORY, help="directory of the four data files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the model and npz are written")
    parser.add_argument("--checkpoint", type=Path, help="save the weights here; if the file exists, only export it")
    arguments = parser.parse_args()

    torch.set_num_threads(THREADS)
    torch.manual_seed(arguments.seed)
    recipe = RECIPES[arguments.model]
    if arguments.epochs is not None:
        recipe = replace(recipe, epochs=arguments.epochs)
    test_images, test_labels = read_split(arguments.data, "t10k")
    network = build(arguments.model)
    if arguments.checkpoint is not None and arguments.checkpoint.exists():
        network.load_state_dict(torch.load(arguments.checkpoint, weights_only=True))
    else:
        train_set = to_tensors(*read_split(arguments.data, "train"))
        train(network, recipe, train_set, to_tensors(test_images, test_labels), arguments.seed)
        if arguments.checkpoint is not None:
            torch.save(network.state_dict(), arguments.checkpoint)

    path = arguments.out / f"fashion_{arguments.model}.onnx"
    export(network, path)
    inputs = normalise(test_images)
    difference = check_agreement(network, path, inputs[:AGREEMENT_IMAGES])
    right = predict(path, inputs).argmax(axis=1) == test_labels
    write_samples(arguments.data, arguments.out / "fashion_mnist.npz")
    print(
        f"{path}: {path.stat().st_size / 1e6:.2f} MB, top-1 {right.mean():.4f} on {len(right)} test images, "
        f"{right[:TEST_IMAGES].mean():.4f} on the first {TEST_IMAGES}, "
        f"largest difference from PyTorch {difference:.1e}"
    )


if __name__ == "__main__":
    main()
