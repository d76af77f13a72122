"""Small folders of images and a tokenizer, made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers


def write_images(directory: Path, count: int, size: tuple[int, int] = (12, 8)) -> Path:
    """`count` PNGs of (height, width), each of one colour that tells which it is."""
    directory.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.full((*size, 3), (number, 100, 200), np.uint8)
        Image.fromarray(pixels).save(directory / f"{number:03d}.png")
    return directory


def write_tokenizer(path: Path) -> Path:
    """A tokenizer of a few words."""
    words = ["[PAD]", "[UNK]", "a", "tree", "grows", "slowly"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


def write_identity(path: Path, inputs: dict[str, tuple[int, list[int | str]]]) -> Path:
    """A model that gives back each of its inputs, `name: (element type, shape)`."""
    given = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    outputs = [helper.make_tensor_value_info(f"{name}_out", kind, shape) for name, (kind, shape) in inputs.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs]
    graph = helper.make_graph(nodes, "identity", given, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


IMAGE_INPUT: tuple[int, list[int | str]] = (TensorProto.FLOAT, ["n", 3, 8, 8])
TOKEN_INPUT: tuple[int, list[int | str]] = (TensorProto.INT64, ["n", "length"])
