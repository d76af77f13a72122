"""External data: from what a tensor says about it to a checked range of a file.

A model file is untrusted. Its locations are followed only to regular files inside the model's own directory, and
only to ranges that are there and have the tensor's exact size (compare the CVEs on `..`, absolute and symlinked
locations of other ONNX readers).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from lowrank_onnx.errors import ModelError
from lowrank_onnx.model_io.sources import FileRange, SourceFile, find_file
from lowrank_onnx.model_io.tensors import count_tensor_bytes, readable_name

RESERVED_PREFIX = "lowrank-onnx:"
"""How the locations of this package's own placeholders begin; no file may use it."""

_MEMORY_ADDRESS_PREFIX = "*/_ORT_MEM_ADDR_"  # onnxruntime takes the offset of such a tensor for an address
_NUMBER = re.compile(r"[0-9]{1,19}")
_UNIQUE_KEYS = ("location", "offset", "length")


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the tensor's values lie elsewhere, by the definition of ONNX."""
    return tensor.HasField("data_location") and tensor.data_location == onnx.TensorProto.EXTERNAL


def find_entry(tensor: onnx.TensorProto, key: str) -> str | bytes | None:
    """The value of one entry of `external_data`; bytes if it is no UTF-8. Raises `ModelError` if there are several."""
    values = [entry.value for entry in tensor.external_data if entry.key == key]
    if len(values) > 1:
        raise ModelError(
            f"tensor {readable_name(tensor.name)} has {len(values)} external data entries {key!r}: expected one;"
            " export the model again"
        )
    return values[0] if values else None


@dataclass(frozen=True, slots=True)
class ExternalFiles:
    """The files that external data may lie in.

    Attributes
    ----------
    base_dir : the directory that locations are relative to; None where there is none to trust.
    roots : the resolved directories that a resolved location must be inside of: `base_dir`, and where the model file
        is a symbolic link, the directory of the file it leads to (a Hugging Face cache links both the model and its
        data into one directory of blobs).
    """

    base_dir: Path | None
    roots: tuple[Path, ...]
    _found: dict[str, SourceFile] = field(default_factory=dict, repr=False, compare=False)

    def files(self) -> tuple[SourceFile, ...]:
        """The files that were found so far, each once."""
        return tuple({(file.device, file.inode): file for file in self._found.values()}.values())

    def reading_dir(self) -> Path | None:
        """The directory for other readers: `base_dir`, unless a link leads out of it; then a root that holds all."""
        holding = [root for root in self.roots if all(f.path.is_relative_to(root) for f in self._found.values())]
        return self.base_dir if not holding or holding[0] == self.roots[0] else holding[0]

    def find_range(self, tensor: onnx.TensorProto) -> FileRange:
        """Where the values of an external tensor lie.

        Raises
        ------
        ModelError : the location is unsafe or missing, or the range isn't there or hasn't the tensor's size.
        """
        name = readable_name(tensor.name)
        location = find_entry(tensor, "location")
        if not isinstance(location, str) or location == "":
            raise _refused(name, location or "", "it is empty or no UTF-8", "a relative path")
        if location not in self._found:
            self._found[location] = self._find_file(name, location)
        file = self._found[location]
        if tensor.data_type == onnx.TensorProto.STRING:
            raise ModelError(f"tensor {name} keeps strings in external data: expected them inline; export it again")
        size = count_tensor_bytes(tensor)
        offset = _read_number(tensor, "offset", 0)
        length = _read_number(tensor, "length", size)
        if length != size:
            raise ModelError(
                f"tensor {name} has {length} bytes of external data in {location!a}: expected {size} for its"
                f" type and dimensions {list(tensor.dims)[:8]}; export the model again"
            )
        if offset + size > file.size:
            raise ModelError(
                f"tensor {name} wants bytes {offset} to {offset + size} of {location!a}, which has {file.size}:"
                " the data file is incomplete or another model's; fetch it again"
            )
        return FileRange(file, offset, size)

    def _find_file(self, name: str, location: str) -> SourceFile:
        _check_location(name, location)
        if self.base_dir is None:
            raise ModelError(
                f"tensor {name} has external data in {location!a}, and a model in memory has no directory:"
                " give base_dir=, or load it with onnx.load, which reads external data"
            )
        try:
            resolved = Path(os.path.realpath(self.base_dir / location, strict=True))
            if not any(resolved.is_relative_to(root) for root in self.roots):
                raise _refused(
                    name, location, "a symbolic link leads out of the model's directory", "a file inside of it"
                )
            return find_file(resolved)
        except FileNotFoundError as error:
            raise ModelError(
                f"tensor {name} has external data in {location!a}, which is not in {self.base_dir}:"
                " expected it beside the model; fetch it, or put it there"
            ) from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no usable path"
            raise _refused(name, location, reason, "a readable file") from error


def _check_location(name: str, location: str) -> None:
    """Refuse what isn't plainly a relative path, on any operating system."""
    expected = "a relative path without '..', inside the model's directory"
    if "\0" in location:
        raise _refused(name, location, "it holds a NUL character", expected)
    if "\\" in location:
        raise _refused(name, location, "it holds a backslash", f"{expected}, its parts divided by '/'")
    if location.startswith("/") or re.match("[A-Za-z]:", location):
        raise _refused(name, location, "it is an absolute path", expected)
    if ".." in location.split("/"):
        raise _refused(name, location, "it leads upwards", expected)
    if location.startswith((RESERVED_PREFIX, _MEMORY_ADDRESS_PREFIX)):
        raise _refused(name, location, "it is the mark of a tensor in another program's memory", expected)


def _refused(name: str, location: str | bytes, reason: str, expected: str) -> ModelError:
    return ModelError(
        f"tensor {name} has external data in {readable_name(location)}, which is refused: {reason}; expected {expected}"
    )


def _read_number(tensor: onnx.TensorProto, key: str, default: int) -> int:
    text = find_entry(tensor, key)
    if text is None:
        return default
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        raise ModelError(
            f"tensor {readable_name(tensor.name)} has external data with {key} {readable_name(text)}: expected a whole"
            " number of bytes, 0 or more; export the model again"
        )
    return int(text)
