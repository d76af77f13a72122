"""Feeds from an ``.npz`` archive: headers are read and checked first, arrays only when a feed is wanted."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.feed_arrays import check_dims, check_dtype, check_names, convert_array, shape_text
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.types import Array, Feed

_UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What an ``.npy`` header says: the shape and the dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class NpzPlan:
    """How one archive becomes feeds.

    Attributes
    ----------
    path, inputs : the archive and the inputs that it feeds.
    layout : "batches" cuts axis 0 into chunks of `batch_size`; "feeds" takes one complete feed per entry of axis 0.
    batch_size, count, samples : samples of one feed (1 for "feeds"), feeds, and samples in all of them.
    shared : inputs given as 0-d arrays, which every feed repeats.
    ignored : arrays of the archive that are no inputs.
    """

    path: Path
    inputs: tuple[InputSpec, ...]
    layout: Literal["batches", "feeds"]
    batch_size: int
    count: int
    samples: int
    shared: frozenset[str]
    ignored: tuple[str, ...]

    def load(self) -> tuple[Feed, ...]:
        """Read all arrays, check their values and cut them into feeds (views where possible)."""
        source = str(self.path)
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                arrays = {spec.name: archive[spec.name] for spec in self.inputs}
        except _UNREADABLE as error:
            raise UsageError(f"{source}: can't be read ({_one_line(error)}): save it again") from error
        converted = {spec.name: convert_array(source, spec, arrays.pop(spec.name)) for spec in self.inputs}
        return tuple(self._cut(converted, index) for index in range(self.count))

    def iterate(self) -> Iterator[Feed]:
        """Read the archive and give its feeds."""
        yield from self.load()

    def _cut(self, arrays: Mapping[str, Array], index: int) -> Feed:
        start = index * self.batch_size
        stop = min(start + self.batch_size, self.samples)
        return {
            name: array
            if name in self.shared
            else (array[start:stop] if self.layout == "batches" else np.asarray(array[index]))
            for name, array in arrays.items()
        }


def plan_npz(path: Path, inputs: Sequence[InputSpec], *, batch_size: int) -> NpzPlan:
    """Check an archive's headers against the model's inputs, and decide how it is cut into feeds.

    Raises
    ------
    UsageError : no archive, a missing input, a wrong rank, dim or dtype, pickled objects, no samples, or inputs that
        differ in their number of samples.
    """
    source = str(path)
    headers = read_npz_headers(path)
    check_names(source, inputs, list(headers))
    for spec in inputs:
        if not spec.is_tensor and not spec.is_optional:
            raise UsageError(
                f"{source}: the model's input {spec.name!r} is {spec.dtype}, which an .npz can't hold: "
                "give a directory of ONNX test data, or feeds from Python"
            )
    used = tuple(spec for spec in inputs if spec.name in headers and spec.is_tensor)
    for spec in used:
        check_dtype(source, spec, headers[spec.name].dtype)
    shared = frozenset(spec.name for spec in used if not spec.shape and headers[spec.name].shape == ())
    split = tuple(spec for spec in used if spec.name not in shared)
    layout = _choose_layout(source, split, headers)
    samples = _count_samples(source, split, headers)
    if layout == "batches":
        for spec in split:
            if spec.shape:
                check_dims(source, spec, headers[spec.name].shape, first=1)
        batch = _choose_batch_size(source, split, samples, batch_size)
        fixed = any(spec.shape and isinstance(spec.shape[0], int) for spec in split)
        count = samples // batch if fixed else math.ceil(samples / batch)
        samples = min(samples, count * batch)
    else:
        for spec in split:
            if spec.shape:
                check_dims(source, spec, headers[spec.name].shape[1:])
        batch, count = 1, samples
    ignored = tuple(sorted(set(headers) - {spec.name for spec in used}))
    return NpzPlan(path, used, layout, batch, count, samples, shared, ignored)


def read_npz_headers(path: Path) -> dict[str, ArrayHeader]:
    """Read the shape and dtype of every array of an archive, without reading or allocating the arrays.

    Raises
    ------
    UsageError : no archive; an array of Python objects; a header that promises other bytes than the archive holds.
    """
    headers: dict[str, ArrayHeader] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.filename.endswith(".npy"):
                    continue
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as stream:
                    header = _read_header(stream)
                    held = member.file_size - stream.tell()
                if header.dtype.hasobject:
                    raise UsageError(
                        f"{path}: {name!r} holds pickled Python objects, which are never loaded: "
                        "save it as a plain array of numbers or of fixed-width strings"
                    )
                promised = math.prod(header.shape) * header.dtype.itemsize
                if promised != held:
                    raise UsageError(f"{path}: {name!r} should have {promised} bytes and has {held}: save it again")
                headers[name] = header
    except _UNREADABLE as error:
        raise UsageError(
            f"{path}: not a readable .npz archive ({_one_line(error)}): "
            "save it with numpy.savez(path, input_name=array)"
        ) from error
    if not headers:
        raise UsageError(f"{path}: an archive without arrays: save it with numpy.savez(path, input_name=array)")
    return headers


def _read_header(stream: IO[bytes]) -> ArrayHeader:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"an array in .npy format {version[0]}.{version[1]}, which only structured arrays need")
    return ArrayHeader(tuple(shape), dtype)


def _choose_layout(
    source: str, split: Sequence[InputSpec], headers: Mapping[str, ArrayHeader]
) -> Literal["batches", "feeds"]:
    """Decide from the ranks: the inputs' own mean batches, one more axis means complete feeds."""
    extra = {spec.name: len(headers[spec.name].shape) - len(spec.shape) for spec in split if spec.shape}
    for spec in split:
        if extra.get(spec.name, 0) not in (0, 1):
            raise UsageError(
                f"{source}: {spec.name!r} has shape {shape_text(headers[spec.name].shape)}, the model's input is "
                f"{shape_text(spec.shape)}: give that rank with samples on axis 0, or one axis more in front"
            )
    batched = [name for name, axes in extra.items() if axes == 0]
    complete = [name for name, axes in extra.items() if axes == 1]
    if batched and complete:
        raise UsageError(
            f"{source}: {', '.join(map(repr, complete))} hold one complete feed per entry (one axis more than the "
            f"model's input), {', '.join(map(repr, batched))} don't: give all inputs the same way"
        )
    unknown_rank = [spec for spec in split if not spec.shape]
    if not extra:
        return "batches" if any(len(headers[spec.name].shape) > 1 for spec in unknown_rank) else "feeds"
    if batched:
        for spec in unknown_rank:
            if len(headers[spec.name].shape) == 1:
                raise UsageError(
                    f"{source}: {spec.name!r} is a scalar input: give one 0-d array for all feeds, "
                    "or give every input with one more axis in front, one complete feed per entry"
                )
        return "batches"
    return "feeds"


def _count_samples(source: str, split: Sequence[InputSpec], headers: Mapping[str, ArrayHeader]) -> int:
    counts = {spec.name: headers[spec.name].shape[0] for spec in split}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UsageError(f"{source}: different numbers of samples on axis 0 ({told}): give each input the same")
    for spec in split:
        if math.prod(headers[spec.name].shape) == 0:
            raise UsageError(
                f"{source}: {spec.name!r} is empty (shape {shape_text(headers[spec.name].shape)}): give some samples"
            )
    return next(iter(counts.values()), 1)


def _choose_batch_size(source: str, split: Sequence[InputSpec], samples: int, batch_size: int) -> int:
    fixed = {spec.name: spec.shape[0] for spec in split if spec.shape and isinstance(spec.shape[0], int)}
    sizes = {size for size in fixed.values() if isinstance(size, int)}
    if not sizes:
        return batch_size
    if len(sizes) > 1:
        told = ", ".join(f"{name} {size}" for name, size in fixed.items())
        raise UsageError(
            f"{source}: the model's inputs have different fixed first dims ({told}): "
            "give every input with one more axis in front, one complete feed per entry"
        )
    (size,) = sizes
    if samples < size or size == 0:
        raise UsageError(f"{source}: {samples} samples, the model's batch is fixed at {size}: give at least {size}")
    return size


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
