"""A synthetic transformer of any size with its weights in external data, made block by block."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.helper

from lowrank_onnx.types import Array

SIGNAL_RANK = 64
NOISE_SHARE = 0.3
"""Frobenius norm of the noise over that of the part of rank 64."""

_ROWS = 256
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Weight:
    """A float32 weight of the synthetic model, (in, out)."""

    name: str
    in_features: int
    out_features: int

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return 4 * self.in_features * self.out_features


def weight_blocks(weight: Weight) -> Iterator[Array]:
    """The weight's rows, 256 at a time; the same at every call."""
    rng = np.random.default_rng(zlib.crc32(weight.name.encode()))
    values = np.arange(1, SIGNAL_RANK + 1, dtype=np.float32) ** -0.4
    right = rng.standard_normal((SIGNAL_RANK, weight.out_features), dtype=np.float32)
    # Entries of variance 1 / in, so that activations keep their size through the chain.
    scale = np.float32(1.0 / np.sqrt(weight.in_features))
    right *= (values / np.linalg.norm(values) * scale)[:, None]
    for start in range(0, weight.in_features, _ROWS):
        rows = min(_ROWS, weight.in_features - start)
        block = rng.standard_normal((rows, SIGNAL_RANK), dtype=np.float32) @ right
        noise = rng.random((rows, weight.out_features), dtype=np.float32)
        noise -= np.float32(0.5)
        noise *= np.float32(NOISE_SHARE * np.sqrt(12.0)) * scale
        block += noise
        yield block


def plan_weights(total_bytes: int, width: int) -> list[list[Weight]]:
    """Blocks of three weights each, as many as `total_bytes` holds, and at least one."""
    hidden = width * 43 // 16  # 11008 for 4096
    count = max(1, round(total_bytes / (4 * width * (width + 2 * hidden))))
    return [
        [
            Weight(f"block{index}.attention", width, width),
            Weight(f"block{index}.up", width, hidden),
            Weight(f"block{index}.down", hidden, width),
        ]
        for index in range(count)
    ]


def write_model(path: Path, blocks: list[list[Weight]]) -> int:
    """Write the model and its external data; returns the bytes of both. One block of rows is in memory at a time."""
    initializers = []
    data = path.with_name(f"{path.name}.data")
    with open(data, "wb") as file:
        for weight in (weight for block in blocks for weight in block):
            file.write(bytes(-file.tell() % _PAGE))
            tensor = onnx.TensorProto(
                name=weight.name,
                data_type=onnx.TensorProto.FLOAT,
                dims=[weight.in_features, weight.out_features],
                data_location=onnx.TensorProto.EXTERNAL,
            )
            entries = {"location": data.name, "offset": str(file.tell()), "length": str(weight.nbytes)}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=value)
            initializers.append(tensor)
            for rows in weight_blocks(weight):
                file.write(rows.data)
    width = blocks[0][0].in_features
    nodes = [node for index, block in enumerate(blocks) for node in _block_nodes(index, block)]
    graph = onnx.helper.make_graph(
        nodes,
        "large",
        [onnx.helper.make_tensor_value_info("x0", onnx.TensorProto.FLOAT, ["rows", width])],
        [onnx.helper.make_tensor_value_info(f"x{len(blocks)}", onnx.TensorProto.FLOAT, ["rows", width])],
        initializers,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path.stat().st_size + data.stat().st_size


def _block_nodes(index: int, block: list[Weight]) -> list[onnx.NodeProto]:
    attention, up, down = (weight.name for weight in block)
    source, middle, target = f"x{index}", f"m{index}", f"x{index + 1}"
    make = onnx.helper.make_node
    return [
        make("MatMul", [source, attention], [f"{attention}.out"], name=attention),
        make("Add", [source, f"{attention}.out"], [middle], name=f"{attention}.residual"),
        make("MatMul", [middle, up], [f"{up}.out"], name=up),
        make("Relu", [f"{up}.out"], [f"{up}.relu"], name=f"{up}.activation"),
        make("Gemm", [f"{up}.relu", down], [f"{down}.out"], name=down),
        make("Add", [middle, f"{down}.out"], [target], name=f"{down}.residual"),
    ]
