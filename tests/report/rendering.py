"""What a report looks like in a terminal."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType


def rendered(report: RenderableType, width: int = 80) -> str:
    """The report's characters, as on a terminal without colours."""
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False, emoji=False, markup=False).print(report)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def widest(content: str) -> int:
    """Columns of the longest line."""
    return max(map(len, content.splitlines()))
