"""What a sentence encoder is judged by: how well its similarities agree with people's.

Calibration sentences and the judged texts are of different files. A feed holds texts of one length in tokens, so that
there is no padding: padded positions would count as activations and as outputs though nobody reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from benchmarks.wordpiece import encode, load_vocabulary
from lowrank_onnx.types import Array, Feed
from models.fetch import fetch_model

MAX_TOKENS = 256
"""The encoder's own limit."""

BATCH = 8


@dataclass(frozen=True, slots=True)
class Judged:
    """Pairs of texts and what people said of them. `correlation` is "Pearson" or "Spearman"."""

    name: str
    correlation: str
    texts: tuple[str, ...]
    pairs: NDArray[np.int64]
    scores: NDArray[np.float64]


def load_tasks() -> tuple[Judged, ...]:
    """Similarity of 50 news stories (Lee, Pincombe and Welsh 2005), WordSim-353 and SimLex-999."""
    stories = fetch_model("lee-documents").read_text(encoding="latin-1").strip().splitlines()
    similarities = np.loadtxt(fetch_model("lee-similarities"))
    first, second = np.triu_indices(len(stories), 1)
    lee = Judged("Lee", "Pearson", tuple(stories), np.stack([first, second], 1), similarities[first, second])
    return (lee, _load_words("WordSim", "wordsim-353"), _load_words("SimLex", "simlex-999"))


def _load_words(name: str, entry: str) -> Judged:
    rows = [line.split("\t") for line in fetch_model(entry).read_text(encoding="utf-8").splitlines()]
    judged = [row for row in rows if len(row) == 3 and not row[0].startswith("#")]
    texts = tuple(dict.fromkeys(word for row in judged for word in row[:2]))
    place = {word: index for index, word in enumerate(texts)}
    pairs = np.array([[place[row[0]], place[row[1]]] for row in judged], np.int64)
    return Judged(name, "Spearman", texts, pairs, np.array([float(row[2]) for row in judged]))


def calibration_sentences(count: int, *, seed: int = 0) -> tuple[str, ...]:
    """Sentences of the 300 background stories, drawn at random."""
    text = fetch_model("lee-background").read_text(encoding="ascii")
    sentences = [s for line in text.splitlines() for s in re.split(r"(?<=[.!?])\s+", line.strip()) if len(s) > 20]
    chosen = np.random.default_rng(seed).choice(len(sentences), size=count, replace=False)
    return tuple(sentences[index] for index in chosen)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Texts as feeds; `places` says which text each row of each feed is."""

    feeds: tuple[Feed, ...]
    places: tuple[tuple[int, ...], ...]


def encode_texts(texts: Sequence[str], batch: int = BATCH, *, seed: int = 0) -> Encoded:
    """Feeds of texts of equal length in tokens, at most `batch` in each, in a random order."""
    vocabulary = load_vocabulary(fetch_model("minilm-vocabulary"))
    by_length: dict[int, list[tuple[int, list[int]]]] = {}
    for index, text in enumerate(texts):
        tokens = encode(text, vocabulary, MAX_TOKENS)
        by_length.setdefault(len(tokens), []).append((index, tokens))
    batches = [
        members[start : start + batch]
        for _, members in sorted(by_length.items())
        for start in range(0, len(members), batch)
    ]
    order = np.random.default_rng(seed).permutation(len(batches))
    shuffled = [batches[index] for index in order]
    feeds = tuple(_feed([tokens for _, tokens in members]) for members in shuffled)
    return Encoded(feeds, tuple(tuple(index for index, _ in members) for members in shuffled))


def _feed(rows: list[list[int]]) -> dict[str, Array]:
    ids = np.array(rows, np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def sentence_vectors(hidden: Iterable[Array], encoded: Encoded) -> Array:
    """The mean over the tokens of each text, scaled to length 1; (texts, features), in the order of the texts."""
    rows = {
        place: states.astype(np.float64).mean(axis=0)
        for batch, places in zip(hidden, encoded.places, strict=True)
        for states, place in zip(batch, places, strict=True)
    }
    vectors = np.stack([rows[place] for place in sorted(rows)])
    normalized: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalized


def judge_vectors(task: Judged, vectors: Array) -> float:
    """The correlation of cosine similarity with the judgements."""
    cosines = np.einsum("if,if->i", vectors[task.pairs[:, 0]], vectors[task.pairs[:, 1]])
    if task.correlation == "Spearman":
        cosines, scores = rankdata(cosines), rankdata(task.scores)
    else:
        scores = task.scores
    return float(np.corrcoef(cosines, scores)[0, 1])


def judge_encoder(hidden: Iterable[Array], tasks: Mapping[str, tuple[Judged, Encoded]]) -> dict[str, float]:
    """Every task's correlation, from the encoder's outputs on all feeds of the tasks in turn."""
    outputs = iter(hidden)
    return {
        name: judge_vectors(task, sentence_vectors(islice(outputs, len(encoded.feeds)), encoded))
        for name, (task, encoded) in tasks.items()
    }
