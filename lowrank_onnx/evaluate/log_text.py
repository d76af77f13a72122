"""Onnxruntime's messages, as one line for people."""

from __future__ import annotations

import re

_STATUS = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE_LOCATION = r"\S+\.(?:cc|cpp|cu|cuh|h|hpp|py):\d{1,9}:?"
_SIGNATURE = (
    r"[^()]{1,200}\b[\w~]+\([^()]{0,400}\)(?:::<lambda\([^()]{0,400}\)>)?(?: const)?(?: \[with [^\[\]]{0,2000}\])?"
)
_ORIGIN = re.compile(rf"{_SOURCE_LOCATION} (?:(?=[^()]*::){_SIGNATURE} )?|{_SOURCE_LOCATION}$")
_LOG_PREFIX = re.compile(r"\x1b\[[\d;]*m|\S+ \S+ \[[EF]:onnxruntime:[^\]]*\] |\[ERROR\] |\[[\w-]+\] (?=[A-Z])")

LONGEST = 4000
"""Characters of a message that are looked at: it may hold names from the model, which may be of any length."""


def first_line(message: str) -> str:
    """The first line, without control characters, status codes, and where in onnxruntime's sources it comes from."""
    lines = message[:LONGEST].strip().splitlines() or [""]
    text = "".join(character if character.isprintable() else " " for character in _STATUS.sub("", lines[0]))
    text = _ORIGIN.sub("", " ".join(text.split()))
    return text if len(text) <= 400 else f"{text[:400]}..."


def logged_reason(log: str) -> str:
    """The first error of a log, without the log's own marks; empty where there is none."""
    for line in log.splitlines():
        if re.search(r"\[[EF]:onnxruntime:", line):
            return first_line(_LOG_PREFIX.sub("", first_line(_LOG_PREFIX.sub("", line)))).rstrip(". ")
    return ""
