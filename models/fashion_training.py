"""How the Fashion-MNIST classifiers are trained: the two recipes, the optimizers, the loop."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.architectures import IMAGE_SIDE
from models.fashion_data import MEAN, STD
from models.fashion_export import EVALUATION_BATCH

MIN_WARMUP_LR = 0.01
"""Learning rate at the first step, as a share of the largest one."""


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes
    ----------
    epochs
        Passes over the 60,000 training images.
    batch
        Images in a step.
    learning_rate
        Largest learning rate, reached after the warm-up; a cosine takes it to zero.
    weight_decay
        Of all weights with at least two axes; biases and norms are not decayed.
    warmup
        Share of the steps in which the learning rate rises linearly.
    label_smoothing
        Probability that is spread evenly over the classes.
    shift, erase
        See :func:`augment`.
    momentum
        Nesterov momentum of SGD; ``None`` chooses AdamW.
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    warmup: float
    label_smoothing: float
    shift: int
    erase: int
    momentum: float | None


RECIPES = {
    "vgg": Recipe(
        epochs=18,
        batch=128,
        learning_rate=0.05,
        weight_decay=5e-4,
        warmup=0.15,
        label_smoothing=0.05,
        shift=2,
        erase=8,
        momentum=0.9,
    ),
    "vit": Recipe(
        epochs=10,
        batch=128,
        learning_rate=1e-3,
        weight_decay=0.05,
        warmup=0.1,
        label_smoothing=0.05,
        shift=1,
        erase=0,
        momentum=None,
    ),
}
"""The recipe of each model: SGD for the convolutional network, AdamW for the transformer, as usual for them."""


def build_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make the optimizer of a recipe.

    Parameters
    ----------
    network
        Its parameters are optimized.
    recipe
        Learning rate, weight decay, momentum.

    Returns
    -------
    Optimizer
        SGD with Nesterov momentum, or AdamW.
    """
    weights = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in network.parameters() if parameter.dim() <= 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if recipe.momentum is None:
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True)


def learning_rate_share(progress: float, warmup: float) -> float:
    """Return the learning rate at a moment of the training, as a share of the largest one.

    Parameters
    ----------
    progress
        Share of the steps that are done.
    warmup
        Share of the steps in which the learning rate rises.

    Returns
    -------
    float
        A linear rise from ``MIN_WARMUP_LR`` to 1, then half a cosine down to 0.
    """
    if progress < warmup:
        return MIN_WARMUP_LR + (1 - MIN_WARMUP_LR) * progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def augment(images: Tensor, shift: int, erase: int, generator: torch.Generator) -> Tensor:
    """Flip each image with probability one half, shift it, and blank out a square of it.

    Parameters
    ----------
    images
        Normalised images, ``(batch, 1, 28, 28)``.
    shift
        Largest shift along each axis in pixels; the border is filled with black.
    erase
        Side of the square that is set to the mean, in half of the images; 0 switches it off.
    generator
        Source of the random choices.

    Returns
    -------
    Tensor
        Augmented images of the same shape.
    """
    count = len(images)
    black = -MEAN / STD
    padded = torch.nn.functional.pad(images[:, 0], (shift,) * 4, value=black)
    pixels = torch.arange(IMAGE_SIDE)
    corners = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    rows = corners[0] + pixels
    columns = corners[1] + torch.where(flip, pixels.flip(0), pixels)
    moved = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    if erase:
        centres = torch.randint(0, IMAGE_SIDE, (2, count, 1), generator=generator)
        inside = (pixels - centres).abs() * 2 < erase
        chosen = torch.rand(count, 1, 1, generator=generator) < 0.5
        moved = moved.masked_fill(inside[0][:, :, None] & inside[1][:, None, :] & chosen, 0.0)
    return moved[:, None]


def iterate_batches(
    images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the augmented batches of one epoch in random order; an incomplete last batch is left out.

    Parameters
    ----------
    images, labels
        The training set.
    recipe
        Batch size and augmentation.
    generator
        Source of the random choices.

    Yields
    ------
    tuple of Tensor
        Images and labels of a batch.
    """
    order = torch.randperm(len(images), generator=generator)
    for start in range(0, len(images) - recipe.batch + 1, recipe.batch):
        chosen = order[start : start + recipe.batch]
        yield augment(images[chosen], recipe.shift, recipe.erase, generator), labels[chosen]


def measure_accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Measure the share of images whose most probable class is the right one.

    Parameters
    ----------
    network
        The network; left in evaluation mode.
    images, labels
        A test set.

    Returns
    -------
    float
        From 0 to 1.
    """
    network.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(images), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            right += int((network(images[part]).argmax(dim=1) == labels[part]).sum())
    return right / len(images)


def train(
    network: nn.Module, recipe: Recipe, train_set: tuple[Tensor, Tensor], test_set: tuple[Tensor, Tensor], seed: int
) -> None:
    """Train a network; what it is after the last epoch is the result, and no epoch is chosen by its test accuracy.

    Parameters
    ----------
    network
        Trained in place, with bfloat16 autocast.
    recipe
        How.
    train_set, test_set
        Images and labels; the second one only for the progress lines.
    seed
        Of the order and the augmentation.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = build_optimizer(network, recipe)
    loss_function = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    steps_in_epoch = len(train_set[0]) // recipe.batch
    step = 0
    began = time.monotonic()
    for epoch in range(recipe.epochs):
        network.train()
        total = 0.0
        for images, labels in iterate_batches(*train_set, recipe, generator):
            share = learning_rate_share(step / (steps_in_epoch * recipe.epochs), recipe.warmup)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * share
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(images)
            loss = loss_function(logits.float(), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
            step += 1
        accuracy = measure_accuracy(network, *test_set)
        print(
            f"epoch {epoch + 1}/{recipe.epochs}: loss {total / steps_in_epoch:.4f}, test accuracy {accuracy:.4f}, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )
