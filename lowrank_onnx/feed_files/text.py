"""Lines of text as the token arrays that a language model takes, made by the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_onnx.errors import MissingDependencyError, UsageError, how_to_install
from lowrank_onnx.feed_files.choices import TokenArray
from lowrank_onnx.feed_files.npz_writer import FeedArray, evenly_spread
from lowrank_onnx.report.escape import printable
from lowrank_onnx.types import Array

_LONGEST = 1_000_000
_PADDING_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")


def text_feeds(
    file: Path, tokenizer: Path, names: Mapping[str, TokenArray], length: int, samples: int
) -> tuple[tuple[FeedArray, ...], int]:
    """The lines of a file as arrays of int64, (lines, length), and how many lines there are that aren't empty.

    Parameters
    ----------
    file : UTF-8, one sample a line.
    tokenizer : the ``tokenizer.json`` that goes with the model.
    names : for each of the model's inputs what goes into it.
    length : tokens of each sample; longer lines are cut, shorter ones padded.
    samples : how many lines are taken, evenly spread over the file.

    Raises
    ------
    MissingDependencyError
        tokenizers isn't installed.
    UsageError
        A file can't be read, is empty, or the length is out of range.
    """
    if not 0 < length <= _LONGEST:
        raise UsageError(f"--length {length}: expected 1 to {_LONGEST} tokens, e.g. 128")
    encoder = _load_tokenizer(tokenizer)
    encoder.enable_truncation(length)
    encoder.enable_padding(length=length, **_padding(encoder))
    count = _count_lines(file)
    lines = _read_lines(file, evenly_spread(count, samples))
    arrays = (
        FeedArray(name, (len(lines), length), np.dtype(np.int64), _encoded(encoder, lines, kind))
        for name, kind in names.items()
    )
    return tuple(arrays), count


def _encoded(encoder: Any, lines: Sequence[str], kind: TokenArray) -> Iterator[Array]:
    """Line after line, when it is to be written: what all lines together need is known before."""
    for line in lines:
        yield np.array(getattr(encoder.encode(line), kind), np.int64)


def _load_tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError(
            f"feeds text: needs tokenizers: {how_to_install('feeds', 'tokenizers')}"
        ) from error
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        reason = printable((str(error).splitlines() or [""])[0][:120])
        raise UsageError(
            f"--tokenizer {printable(str(path))}: can't be read ({reason}): expected the model's tokenizer.json"
        ) from error


def _padding(encoder: Any) -> dict[str, Any]:
    """The padding that the tokenizer brings along, or else the first known token for it."""
    if encoder.padding is not None:
        return {key: encoder.padding[key] for key in ("pad_id", "pad_type_id", "pad_token")}
    for token in _PADDING_TOKENS:
        if (number := encoder.token_to_id(token)) is not None:
            return {"pad_id": number, "pad_token": token}
    return {}


def _count_lines(file: Path) -> int:
    try:
        with file.open(encoding="utf-8") as stream:
            count = sum(1 for line in stream if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(
            f"{printable(str(file))}: can't be read ({reason}): expected text, one sample a line"
        ) from error
    if not count:
        raise UsageError(f"{printable(str(file))}: has no line with text, expected one sample a line")
    return count


def _read_lines(file: Path, wanted: list[int]) -> list[str]:
    numbers = frozenset(wanted)
    with file.open(encoding="utf-8") as stream:
        lines = (line.strip() for line in stream if line.strip())
        return [line for number, line in enumerate(lines) if number in numbers]
