"""Names from a model are untrusted text: what a terminal would obey is made visible instead."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Replace every character that isn't printable by its Python escape, so that `text` stays on one line.

    That covers control characters (a terminal obeys ``\x1b``), line breaks, bidirectional overrides, zero-width
    characters, private use and lone surrogates (from file names that aren't UTF-8).
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def encodable(text: str) -> str:
    """Replace lone surrogates by their Python escape: JSON and UTF-8 can't carry them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
