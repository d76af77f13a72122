"""The two network architectures of the shipped Fashion-MNIST models.

Both take normalised images, ``(batch, 1, 28, 28)``, and give logits, ``(batch, 10)``.
:class:`Classifier` puts the softmax behind them for the export.
They are small copies of what low-rank compression is usually shown on: a VGG with wide convolutions and large fully
connected layers, and a pre-norm vision transformer.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE_SIDE = 28
"""Side of a Fashion-MNIST image in pixels."""

CLASSES = 10
"""Number of Fashion-MNIST classes."""

VGG_STAGES = ((32, 64), (128, 128), (256, 256))
"""Channels of the 3x3 convolutions, stage by stage; each stage ends in a 2x2 max-pooling (28 -> 14 -> 7 -> 3)."""

VGG_HIDDEN = 512
"""Width of the two hidden fully connected layers; the first one has 3 * 3 * 256 = 2304 inputs."""

VIT_PATCH, VIT_STRIDE = 8, 5
"""Side of a patch and distance of neighbours in pixels: overlapping patches in a grid of 5 x 5 = 25 tokens."""

VIT_WIDTH = 192
"""Width of the token stream: 6 blocks of 12 * 192^2 weights are 2.65 million parameters, 10.6 MB in float32."""

VIT_DEPTH = 6
"""Number of transformer blocks."""

VIT_HEADS = 6
"""Attention heads, 32 channels each."""

VIT_MLP_RATIO = 4
"""Hidden width of a block's MLP, as a multiple of the token width."""

INITIAL_STD = 0.02
"""Standard deviation of the ViT's position embeddings and projection weights before training, as in the first ViT."""


class FashionVGG(nn.Module):
    """A VGG: stages of 3x3 convolutions with batch normalisation, then three fully connected layers.

    Parameters
    ----------
    dropout
        Dropout probability in front of each hidden fully connected layer's successor.
    """

    def __init__(self, dropout: float = 0.4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        side = IMAGE_SIDE
        for stage in VGG_STAGES:
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
            side //= 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * side * side, VGG_HIDDEN),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(VGG_HIDDEN, VGG_HIDDEN),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(VGG_HIDDEN, CLASSES),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of a batch of images.

        Parameters
        ----------
        image
            Normalised images, ``(batch, 1, 28, 28)``.

        Returns
        -------
        Tensor
            Logits, ``(batch, 10)``.
        """
        logits: Tensor = self.classifier(self.features(image))
        return logits


class Projection(nn.Module):
    """A linear layer that keeps its weight as ``(in, out)``, so that the exporter writes it under its own name.

    (``nn.Linear`` keeps ``(out, in)``; on more than two axes the exporter folds the transposition and invents a name.)

    Parameters
    ----------
    inputs
        Width of the input.
    outputs
        Width of the output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(inputs, outputs), std=INITIAL_STD))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply the layer to the last axis.

        Parameters
        ----------
        tokens
            ``(batch, tokens, inputs)``.

        Returns
        -------
        Tensor
            ``(batch, tokens, outputs)``.
        """
        return tokens @ self.weight + self.bias


class Attention(nn.Module):
    """Multi-head self-attention with separate query, key and value projections.

    Parameters
    ----------
    width
        Width of the tokens.
    heads
        Number of heads; divides ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = Projection(width, width)
        self.key = Projection(width, width)
        self.value = Projection(width, width)
        self.output = Projection(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Let every token attend to all tokens of its image.

        Parameters
        ----------
        tokens
            ``(batch, tokens, width)``.

        Returns
        -------
        Tensor
            The same shape.
        """
        count, width = tokens.shape[1:]
        split = (-1, count, self.heads, width // self.heads)
        query, key, value = (
            layer(tokens).reshape(split).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scale = (width // self.heads) ** -0.5
        mixed = functional.softmax((query * scale) @ key.transpose(2, 3), dim=-1) @ value
        result: Tensor = self.output(mixed.transpose(1, 2).reshape(-1, count, width))
        return result


class Block(nn.Module):
    """A pre-norm transformer block: attention, then an MLP, each on a residual branch.

    Parameters
    ----------
    width
        Width of the tokens.
    heads
        Number of attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            Projection(width, VIT_MLP_RATIO * width), nn.GELU(), Projection(VIT_MLP_RATIO * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply the block.

        Parameters
        ----------
        tokens
            ``(batch, tokens, width)``.

        Returns
        -------
        Tensor
            The same shape.
        """
        tokens = tokens + self.attention(self.attention_norm(tokens))
        result: Tensor = tokens + self.mlp(self.mlp_norm(tokens))
        return result


class FashionViT(nn.Module):
    """A pre-norm vision transformer; the class is read from the mean of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        count = ((IMAGE_SIDE - VIT_PATCH) // VIT_STRIDE + 1) ** 2
        self.patches = nn.Conv2d(1, VIT_WIDTH, VIT_PATCH, stride=VIT_STRIDE)
        self.position = nn.Parameter(INITIAL_STD * torch.randn(1, count, VIT_WIDTH))
        self.blocks = nn.Sequential(*(Block(VIT_WIDTH, VIT_HEADS) for _ in range(VIT_DEPTH)))
        self.norm = nn.LayerNorm(VIT_WIDTH)
        self.head = nn.Linear(VIT_WIDTH, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of a batch of images.

        Parameters
        ----------
        image
            Normalised images, ``(batch, 1, 28, 28)``.

        Returns
        -------
        Tensor
            Logits, ``(batch, 10)``.
        """
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits


class Classifier(nn.Module):
    """A network with a softmax behind its logits: what is exported.

    Parameters
    ----------
    network
        Gives logits of shape ``(batch, 10)``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return the class probabilities of a batch of images.

        Parameters
        ----------
        image
            Normalised images, ``(batch, 1, 28, 28)``.

        Returns
        -------
        Tensor
            Probabilities, ``(batch, 10)``; each row sums to one.
        """
        return functional.softmax(self.network(image), dim=-1)
