from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from benchmarks.sentence_tasks import Encoded, Judged, judge_vectors, sentence_vectors

PAIRS = np.array([[0, 1], [0, 2], [1, 2], [3, 0], [3, 1], [2, 3]])
SCORES = np.array([3.0, 1.0, 2.0, 2.0, 9.0, 4.0])


@pytest.mark.parametrize(("name", "correlate"), [("Pearson", pearsonr), ("Spearman", spearmanr)])
def test_correlations_are_those_of_scipy(name: str, correlate: object) -> None:
    vectors = np.random.default_rng(0).standard_normal((4, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    task = Judged("task", name, ("a", "b", "c", "d"), PAIRS, SCORES)
    cosines = [float(vectors[first] @ vectors[second]) for first, second in PAIRS]
    assert callable(correlate)
    assert judge_vectors(task, vectors) == pytest.approx(correlate(cosines, SCORES).statistic, rel=1e-12)


def test_vectors_are_means_of_length_1_in_the_order_of_the_texts() -> None:
    encoded = Encoded(feeds=({}, {}), places=((2, 0), (1,)))
    hidden = [np.array([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 1.0], [0.0, 5.0]]]), np.array([[[3.0, 4.0]]])]
    expected = [[0.0, 1.0], [0.6, 0.8], [1.0, 0.0]]
    assert sentence_vectors(hidden, encoded).tolist() == pytest.approx(np.array(expected))
