"""Errors that reach a user: one clear line each, with the process exit code that goes with it.

Every message names the offending value, says what was expected, and how to mend it. The command line prints the
message without a traceback; library callers catch `LowRankError` or one of its kinds.
"""

from __future__ import annotations

from typing import ClassVar


def how_to_install(extra: str, packages: str) -> str:
    """The commands that bring what an extra of this package names; `packages` are its distributions.

    This package is installed from a checkout, where the extra is at hand; pip finds the distributions from anywhere.
    """
    return f"pip install {packages} (or, in the checkout of lowrank-onnx, pip install -e '.[{extra}]')"


class LowRankError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code: ClassVar[int] = 2


class UsageError(LowRankError):
    """An option, a feed file or an argument is not usable as given (exit code 2)."""


class OutputError(LowRankError):
    """The output can't be written where it was asked for (exit code 2)."""


class MissingDependencyError(LowRankError):
    """A package that this step needs is absent, or two that exclude each other are installed (exit code 2)."""


class ModelError(LowRankError):
    """The model can't be read, is malformed or uses what this tool can't handle (exit code 3)."""

    exit_code: ClassVar[int] = 3


class FactorizationError(LowRankError):
    """A matrix can't be factorized as asked: not finite, empty, or a rank that it doesn't have (exit code 3)."""

    exit_code: ClassVar[int] = 3
