from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowrank_onnx.cache import Cache, Codec, open_cache
from lowrank_onnx.cache.codecs import (
    factors_codec,
    recall_moments,
    sensitivity_codec,
    store_moments,
    tails_codec,
    validated_codec,
)
from lowrank_onnx.cache.entry_file import Entry
from lowrank_onnx.moments import Moment
from lowrank_onnx.moments.cross_validation import Validated
from lowrank_onnx.sensitivity.damage import Sensitivity, Unmeasured
from lowrank_onnx.types import Factors, MatrixShape, Site, Spectrum, Tails, WeightRef
from tests.passes.models import make_model, sites_of, value, weight

SHAPE = MatrixShape(2, 5, 4)
WEIGHT = WeightRef((), "w", "initializer", "float32", (5, 4))
SENSITIVITY = Sensitivity(WEIGHT, (3, 1), (0.1, math.inf), (0.25, 0.5), 0.4, False)

BARE: Codec[dict[str, Any]] = Codec({}, Entry, lambda entry: dict(entry.meta))


def factors() -> tuple[Factors, Spectrum]:
    generator = np.random.default_rng(0)
    values = np.sort(generator.random((2, 3), np.float32))[:, ::-1]
    made = Factors(
        left=generator.random((2, 5, 3), np.float32),
        right=generator.random((2, 3, 4), np.float32),
        singular_values=values,
        relative_error=1 / 3,
        spectral_error=0.0,
        solver="rsi(q=4, p=10)",
    )
    return made, Spectrum(values, 1e300)


def cache(directory: Path) -> Cache:
    return open_cache(directory, list)


def encoded(codec: Codec[Any], result: Any) -> Entry:
    entry = codec.encode(result)
    assert entry is not None
    return entry


def test_tails_come_back_to_the_bit_for_the_same_ranks(tmp_path: Path) -> None:
    tails = (Tails((2, 4, 5), (1 / 3, 1e-17, 0.0)), Tails((8,), (0.1,)))
    slot = cache(tmp_path).slot("chain errors", list)
    slot.put(tails_codec([(2, 4, 5), (8,)]), tails)
    assert slot.get(tails_codec([(2, 4, 5), (8,)])) == tails


@pytest.mark.parametrize(
    "errors", [[], [[0.5]], [[0.5, 0.2], [0.1]], [[0.5, -0.2]], [[0.5, math.nan]], [[0.5, "0.2"]], [0.5, 0.5], 0.5]
)
def test_tails_that_make_no_sense_are_refused(errors: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        tails_codec([(2, 4)]).decode(Entry({"errors": errors}))


def test_factors_come_back_to_the_bit(tmp_path: Path) -> None:
    made, spectrum = factors()
    slot = cache(tmp_path).slot("factors", list)
    slot.put(factors_codec(SHAPE, 3), (made, spectrum))
    found = slot.get(factors_codec(SHAPE, 3))
    assert found is not None
    for name in ("left", "right", "singular_values"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(made, name), strict=True)
    np.testing.assert_array_equal(found[1].values, spectrum.values, strict=True)
    assert replace(found[0], left=made.left, right=made.right, singular_values=made.singular_values) == made
    assert found[1].energy == spectrum.energy
    assert slot.get(factors_codec(SHAPE, 2)) is None


@pytest.mark.parametrize("name", ["relative_error", "spectral_error", "energy", "solver"])
@pytest.mark.parametrize("wrong", [-1.0, math.nan, True, None, [0.5]])
def test_factors_with_a_wrong_figure_are_refused(name: str, wrong: object) -> None:
    codec = factors_codec(SHAPE, 3)
    entry = encoded(codec, factors())
    with pytest.raises(ValueError, match=r"expected (a number of at least 0|text)"):
        codec.decode(replace(entry, meta={**entry.meta, name: wrong}))
    with pytest.raises(KeyError):
        codec.decode(replace(entry, meta={key: entry.meta[key] for key in entry.meta if key != name}))


def test_factors_that_are_not_finite_are_refused() -> None:
    codec = factors_codec(SHAPE, 3)
    entry = encoded(codec, factors())
    entry.arrays["left"][1, 2, 0] = np.nan
    with pytest.raises(ValueError, match="a factor isn't finite"):
        codec.decode(entry)


@pytest.mark.parametrize("result", [SENSITIVITY, Unmeasured(WEIGHT, "no rank to try")])
def test_effects_come_back(tmp_path: Path, result: Sensitivity | Unmeasured) -> None:
    slot = cache(tmp_path).slot("sensitivity", list)
    slot.put(sensitivity_codec(WEIGHT), result)
    assert slot.get(sensitivity_codec(WEIGHT)) == result


def test_an_effect_whose_runs_failed_is_not_kept() -> None:
    assert sensitivity_codec(WEIGHT).encode(replace(SENSITIVITY, problem="rank 3: out of memory")) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"ranks": [3]},
        {"ranks": [], "output_errors": [], "tail_energies": []},
        {"ranks": [3.0, 1]},
        {"output_errors": [0.1, math.nan]},
        {"tail_energies": [0.25, -0.5]},
        {"importance": "large"},
        {"fits": 1},
        {"reason": 5},
    ],
)
def test_an_effect_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    codec = sensitivity_codec(WEIGHT)
    entry = encoded(codec, SENSITIVITY)
    assert codec.decode(entry) == SENSITIVITY
    with pytest.raises((ValueError, TypeError)):
        codec.decode(replace(entry, meta={**entry.meta, **changes}))


OTHER = replace(WEIGHT, name="other")


@pytest.mark.parametrize(
    "result", [{}, {OTHER: Validated(1 / 3, ((0.1, 1 / 7), (0.2, 1.0)))}, {WEIGHT: Validated(0, ())}]
)
def test_what_was_validated_comes_back_to_the_bit(tmp_path: Path, result: dict[WeightRef, Validated]) -> None:
    slot = cache(tmp_path).slot("validated", list)
    slot.put(validated_codec([WEIGHT, OTHER]), result)
    assert slot.get(validated_codec([WEIGHT, OTHER])) == result


@pytest.mark.parametrize(
    "found", [[], [None], [None, [0.5]], [None, [0.5, [[0.1]]]], [None, [-0.5, []]], [None, ["0.5", []]], None]
)
def test_what_was_validated_of_other_weights_is_refused(tmp_path: Path, found: Any) -> None:
    slot = cache(tmp_path).slot("validated", list)
    slot.put(BARE, {"weights": found})
    assert slot.get(validated_codec([WEIGHT, OTHER])) is None


def three_sites() -> tuple[Site, ...]:
    from onnx import helper

    nodes = [helper.make_node("MatMul", ["x", name], [f"y_{name}"], name=name) for name in ("q", "k")]
    nodes += [helper.make_node("MatMul", ["y_k", "o"], ["y_o"], name="o")]
    weights = {"q": weight(6, 4), "k": weight(6, 8), "o": weight(8, 3)}
    outputs = [value("y_q"), value("y_o")]
    return sites_of(make_model(nodes, [value("x", ["n", 6])], outputs, weights))


def moment(size: int) -> Moment:
    generator = np.random.default_rng(size)
    return Moment(generator.random((1, size, size)), generator.random((1, size)), 7, 9)


def slots(directory: Path) -> Callable[[str], Any]:
    opened = cache(directory)
    return lambda part: opened.slot("moments", lambda: [part])


def test_moments_come_back_and_shared_ones_are_kept_once(tmp_path: Path) -> None:
    sites = three_sites()
    shared = moment(6)
    by_site: dict[str, Moment | str] = {"q": shared, "k": shared, "o": "its input is in a subgraph"}
    store_moments(slots(tmp_path), sites, by_site)
    assert len(list(tmp_path.rglob("*.entry"))) == 2
    kept: list[int] = []

    def keep(moment: Moment, number: int) -> Moment:
        kept.append(number)
        return moment

    found = recall_moments(slots(tmp_path), sites, keep)
    assert found is not None
    assert list(found) == ["q", "k", "o"]
    assert kept == [0]
    assert found["q"] is found["k"]
    assert found["o"] == by_site["o"]
    recalled = found["q"]
    assert isinstance(recalled, Moment)
    np.testing.assert_array_equal(recalled.second_moment, shared.second_moment, strict=True)
    np.testing.assert_array_equal(recalled.mean, shared.mean, strict=True)
    assert (recalled.rows, recalled.positions) == (7, 9)


def test_moments_count_only_where_all_are_there(tmp_path: Path) -> None:
    sites = three_sites()
    store_moments(slots(tmp_path), sites, {"q": moment(6), "k": moment(6), "o": moment(8)})
    paths = sorted(tmp_path.rglob("*.entry"))
    assert len(paths) == 4
    for path in paths:
        content = path.read_bytes()
        path.unlink()
        assert recall_moments(slots(tmp_path), sites, lambda moment, number: moment) is None
        path.write_bytes(content)
    assert recall_moments(slots(tmp_path), sites, lambda moment, number: moment) is not None


@pytest.mark.parametrize(
    "index",
    [
        {"q": 0, "k": 0},
        {"q": 0, "k": 0, "o": 0, "z": 0},
        {"q": 0, "k": 0, "o": -1},
        {"q": 0, "k": 0, "o": True},
        {"q": 0, "k": 0, "o": None},
        {"q": 0, "k": 0, "o": [0]},
    ],
)
def test_an_index_of_other_sites_or_moments_is_refused(tmp_path: Path, index: dict[str, Any]) -> None:
    sites, slot_of = three_sites(), slots(tmp_path)
    store_moments(slot_of, sites, {"q": moment(6), "k": moment(6), "o": moment(8)})
    slot_of("index").put(BARE, index)
    assert recall_moments(slot_of, sites, lambda moment, number: moment) is None


def test_a_moment_of_another_size_or_precision_is_refused(tmp_path: Path) -> None:
    sites, slot_of = three_sites(), slots(tmp_path)
    store_moments(slot_of, sites, {"q": moment(6), "k": moment(6), "o": moment(8)})
    index = {"q": 0, "k": 0, "o": 0}  # o has 8 features, moment 0 has 6; the first to ask decides
    slot_of("index").put(BARE, index)
    assert recall_moments(slot_of, sites[::-1], lambda moment, number: moment) is None
    single = replace(moment(6), second_moment=moment(6).second_moment.astype(np.float32))
    store_moments(slot_of, sites, {"q": single, "k": single, "o": moment(8)})
    assert recall_moments(slot_of, sites, lambda moment, number: moment) is None
