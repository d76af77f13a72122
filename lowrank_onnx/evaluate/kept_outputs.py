"""What the original returns on some feeds, to hold any number of models against it without running it for each."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lowrank_onnx.errors import OutputError
from lowrank_onnx.evaluate.feeds import Feeds
from lowrank_onnx.evaluate.output_file import OutputFile
from lowrank_onnx.evaluate.session import Runner
from lowrank_onnx.evaluate.turns import MOST_KEPT, pair_outputs, run_as
from lowrank_onnx.types import Feed


class KeptOutputs:
    """The original's outputs on some feeds, on disk from the first comparison until nobody holds this any more.

    Where they take more than `most` bytes, or the disk has no room, they aren't kept, and the original runs for each
    comparison.

    Parameters
    ----------
    original, feeds : the model, and what to run it on.
    directory : where there is room for the outputs; None takes the system's temporary directory.
    most : bytes.
    """

    def __init__(self, original: Runner, feeds: Feeds, directory: Path | None, most: int = MOST_KEPT) -> None:
        self._original, self._feeds, self._directory, self._most = original, feeds, directory, most
        self._kept: OutputFile | None = None

    def pair_with(self, candidate: Runner) -> Iterator[tuple[Feed, dict[str, Any], dict[str, Any]]]:
        """Each feed with both models' outputs, as `pair_outputs` gives them, and with its errors."""
        self.prepare()
        if self._kept is None:
            yield from pair_outputs(self._original, candidate, self._feeds)
            return
        for index, (feed, expected) in enumerate(zip(self._feeds, self._kept, strict=True)):
            yield feed, expected, run_as("candidate", candidate, feed, index)

    def prepare(self) -> None:
        """Run the original, if it hasn't: keep its outputs, or settle that there is no room for them."""
        if self._kept is not None or self._most <= 0:
            return
        with suppress(OutputError):
            kept = OutputFile(self._directory)
            closing = weakref.finalize(self, kept.close)
            if self._fill(kept):
                self._kept = kept
                return
            closing()
        self._most = 0

    def _fill(self, kept: OutputFile) -> bool:
        """Put all outputs into a file; False where there is no room for them."""
        for index, feed in enumerate(self._feeds):
            outputs = run_as("original", self._original, feed, index)
            try:
                kept.add(outputs)
            except OutputError:
                return False
            if kept.nbytes > self._most:
                return False
        return True
