"""Independent graphs with stored inputs and outputs: those of the onnx package, and Debian's libonnx-testdata."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from lowrank_onnx.types import Array
from models.fetch import find_cache

WHEEL = Path(onnx.__file__).parent / "backend" / "test" / "data"
WHEEL_SUITES = ("pytorch-converted", "pytorch-operator", "simple", "light")

DEBIAN_PACKAGE = "libonnx-testdata"
DEBIAN_SHA256 = "7dc0912e02f79ece102331411a751b091bc0e191c9fb1287f8cdfbe5530f6027"
"""Of version 1.12.0-2."""


@dataclass(frozen=True)
class DataSet:
    """Inputs by name, and what the model must give for them; None stands for what is no tensor."""

    inputs: dict[str, Array | None]
    outputs: tuple[Array | None, ...]


@dataclass(frozen=True)
class Case:
    """A model with its data."""

    name: str
    model: onnx.ModelProto
    data: tuple[DataSet, ...]


def wheel_cases(suite: str) -> Iterator[Case]:
    """The models of one suite of the onnx package; those of "light" lie in one directory, with data beside them."""
    for path in sorted((WHEEL / suite).glob("*/model.onnx")):
        yield read_case(path)
    for path in sorted((WHEEL / suite).glob("*.onnx")):
        yield Case(path.stem, onnx.load(path), ())


def node_cases(directory: Path) -> Iterator[Case]:
    """The node tests of the Debian package that are unpacked in `directory`, their weights made initializers."""
    for path in sorted(directory.glob("usr/share/libonnx-testdata/data/node/*/model.onnx")):
        yield promote_weights(read_case(path))


def read_case(path: Path) -> Case:
    """A model and the ``test_data_set_*`` beside it."""
    model = onnx.load(path)
    given = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in given]
    data = []
    for directory in sorted(path.parent.glob("test_data_set_*")):
        inputs = dict(zip(names, _read_values(directory, "input"), strict=False))
        data.append(DataSet(inputs, tuple(_read_values(directory, "output"))))
    return Case(path.parent.name, model, tuple(data))


def _read_values(directory: Path, kind: str) -> Iterator[Array | None]:
    for path in sorted(directory.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.split("_")[1])):
        yield _read_tensor(path)


def _read_tensor(path: Path) -> Array | None:
    """None for sequences and optionals, which are stored in messages of their own."""
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        return numpy_helper.to_array(tensor)
    except (DecodeError, ValueError, TypeError, KeyError):
        return None


def promote_weights(case: Case) -> Case:
    """The case with all inputs but the first as initializers, with the values that its first data set gives them."""
    if not case.data or len(case.model.graph.input) < 2:
        return case
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    data = case.data[0]
    for position, value in reversed(list(enumerate(case.model.graph.input))):
        given = data.inputs.get(value.name)
        if position == 0 or given is None or given.dtype == np.object_:
            continue
        tensor = numpy_helper.from_array(given, value.name)
        if tensor.data_type != value.type.tensor_type.elem_type:
            continue
        model.graph.initializer.append(tensor)
        del model.graph.input[position]
    left = {value.name for value in model.graph.input}
    inputs = {name: array for name, array in data.inputs.items() if name in left}
    return Case(case.name, model, (DataSet(inputs, data.outputs),))


def fetch_node_tests(cache: Path | None = None) -> Path:
    """The directory in which the Debian package is unpacked, downloaded first if need be; it has 6 MB."""
    target = find_cache(cache) / DEBIAN_PACKAGE
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as name:
        scratch = Path(name)
        subprocess.run(["apt-get", "download", "-q", DEBIAN_PACKAGE], cwd=scratch, check=True, capture_output=True)
        (package,) = scratch.glob("*.deb")
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        if digest != DEBIAN_SHA256:
            raise RuntimeError(f"{package.name} has sha256 {digest}, expected {DEBIAN_SHA256}")
        subprocess.run(["dpkg-deb", "-x", package, scratch / "unpacked"], check=True)
        shutil.move(scratch / "unpacked", target)
    return target
