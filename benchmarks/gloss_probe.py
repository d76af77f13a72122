"""What a sentence encoder's vectors tell about WordNet's definitions: the topic of each, found by a linear probe.

The probe is fitted to the vectors of the model that is judged, so that it shows what they still hold, not how far they
moved. Needs scikit-learn (extra `bench`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from lowrank_onnx.types import Array
from models.fetch import fetch_model
from models.packages import read_debian_files

FEWEST = 500
"""Definitions of a topic, below which it is left out."""


@dataclass(frozen=True, slots=True)
class Glosses:
    """Definitions, the topic (WordNet's lexicographer file) of each, and which of them the probe is fitted to."""

    texts: tuple[str, ...]
    topics: NDArray[np.int64]
    fitted: NDArray[np.bool_]


def load_glosses(count: int = 3000, *, seed: int = 0) -> Glosses:
    """Definitions of nouns drawn at random; two thirds to fit the probe to, one third to judge by."""
    ((_, content),) = read_debian_files(fetch_model("wordnet"), "/data.noun")
    lines = [line for line in content.decode("ascii").splitlines() if not line.startswith(" ")]
    parsed = [parse_gloss(line) for line in lines]
    topics = np.array([topic for topic, _ in parsed])
    common = np.flatnonzero(np.bincount(topics)[topics] >= FEWEST)
    chosen = np.random.default_rng(seed).permutation(common)[:count]
    texts = tuple(parsed[index][1] for index in chosen)
    return Glosses(texts, topics[chosen], np.arange(len(chosen)) < 2 * len(chosen) // 3)


def parse_gloss(line: str) -> tuple[int, str]:
    """The topic's number and the definition, without examples, from a line of ``data.noun``."""
    fields, _, gloss = line.partition(" | ")
    return int(fields.split()[1]), gloss.split('; "')[0].strip()


def probe_accuracy(vectors: Array, glosses: Glosses) -> float:
    """The share of judged definitions whose topic a logistic regression finds."""
    probe = LogisticRegression(C=10.0, max_iter=1000)
    probe.fit(vectors[glosses.fitted], glosses.topics[glosses.fitted])
    return float(probe.score(vectors[~glosses.fitted], glosses.topics[~glosses.fitted]))
