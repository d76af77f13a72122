"""Export of a trained network to ONNX, and the checks that the file is what it should be."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from models.architectures import IMAGE_SIDE, Classifier

OPSET = 20
"""First opset with a Gelu operator, so that the ViT's activation is one node."""

AGREEMENT = 1e-4
"""Largest difference of a probability between PyTorch and onnxruntime; float32 rounding gives about 1e-6."""

EVALUATION_BATCH = 500
"""Images in one onnxruntime call."""

INPUT, OUTPUT = "image", "probabilities"
"""Names of the model's input and output."""

Floats = NDArray[np.float32]


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about the machine and the source: stack traces, paths, module names.

    Parameters
    ----------
    model
        Changed in place.
    """
    del model.metadata_props[:]
    graph = model.graph
    del graph.metadata_props[:]
    graph.doc_string = ""
    for item in (*graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.doc_string = ""


def export(network: nn.Module, path: Path) -> None:
    """Write a network with a softmax behind it as one ONNX file with a dynamic batch.

    Parameters
    ----------
    network
        Gives logits; put into evaluation mode, so that batch normalisation is folded into the convolutions.
    path
        The file to write.
    """
    model = Classifier(network).eval()
    example = torch.zeros(2, 1, IMAGE_SIDE, IMAGE_SIDE)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={INPUT: {0: batch}},
    )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    proto = program.model_proto
    strip_metadata(proto)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())


def predict(path: Path, images: Floats) -> Floats:
    """Run an exported model in onnxruntime.

    Parameters
    ----------
    path
        The model.
    images
        Normalised images, ``(count, 1, 28, 28)``.

    Returns
    -------
    ndarray
        Probabilities, ``(count, 10)``.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = [
        session.run([OUTPUT], {INPUT: images[start : start + EVALUATION_BATCH]})[0]
        for start in range(0, len(images), EVALUATION_BATCH)
    ]
    return np.concatenate(parts)


def check_agreement(network: nn.Module, path: Path, images: Floats) -> float:
    """Compare an exported model with the network that it came from.

    Parameters
    ----------
    network
        The network, which gives logits.
    path
        The exported model.
    images
        Normalised images.

    Returns
    -------
    float
        The largest difference of a probability.

    Raises
    ------
    ValueError
        If it is larger than ``AGREEMENT``.
    """
    with torch.no_grad():
        expected = Classifier(network).eval()(torch.from_numpy(images)).numpy()
    difference = float(np.abs(expected - predict(path, images)).max())
    if not difference <= AGREEMENT:
        raise ValueError(f"{path}: differs from PyTorch by {difference}")
    return difference
