"""The nouns of WordNet 3.0: which things are kinds of which, from its database files, wndb(5WN)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from models.fetch import fetch_model
from models.packages import read_debian_files

_KINDS = ("~", "~i")
"""Pointers to kinds of a thing, and to instances of it."""


@dataclass(frozen=True, slots=True)
class Nouns:
    """Noun synsets by their offset in the database.

    Attributes
    ----------
    senses : the synsets of each lemma (lower case, words joined by "_"), the most frequent first.
    kinds : the synsets right below each synset.
    """

    senses: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, tuple[str, ...]]

    def below(self, synset: str) -> set[str]:
        """The synset and all that are kinds of it, directly or not."""
        found: set[str] = set()
        waiting = [synset]
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                waiting.extend(self.kinds.get(current, ()))
        return found


@functools.cache
def load_nouns() -> Nouns:
    """Read the nouns of the package that the manifest lists."""
    package = fetch_model("wordnet")
    files = {name.rsplit("/", 1)[-1]: content.decode("ascii") for name, content in read_debian_files(package, ".noun")}
    lines = {name: (line for line in files[name].splitlines() if not line.startswith(" ")) for name in files}
    return Nouns(dict(map(parse_index, lines["index.noun"])), dict(map(parse_data, lines["data.noun"])))


def parse_index(line: str) -> tuple[str, tuple[str, ...]]:
    """A lemma and its synsets, from a line of ``index.noun``."""
    fields = line.split()
    return fields[0], tuple(fields[-int(fields[2]) :])


def parse_data(line: str) -> tuple[str, tuple[str, ...]]:
    """A synset and those right below it, from a line of ``data.noun``."""
    fields = line.split(" | ")[0].split()
    start = 4 + 2 * int(fields[3], 16)
    pointers = [fields[start + 1 + 4 * k : start + 5 + 4 * k] for k in range(int(fields[start]))]
    return fields[0], tuple(target for symbol, target, *_ in pointers if symbol in _KINDS)
