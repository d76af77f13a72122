"""How factors, sensitivities and moments become entries of a cache, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from lowrank_onnx.cache import Codec, Slot
from lowrank_onnx.cache.entry_file import Entry
from lowrank_onnx.moments import Moment
from lowrank_onnx.moments.cross_validation import Validated
from lowrank_onnx.sensitivity.damage import Sensitivity, Unmeasured
from lowrank_onnx.types import Array, Factors, MatrixShape, Site, Spectrum, Tails, WeightRef


def factors_codec(shape: MatrixShape, rank: int) -> Codec[tuple[Factors, Spectrum]]:
    """For the factors of one weight at one rank, and its spectrum."""
    shapes = {
        "left": (shape.groups, shape.in_features, rank),
        "right": (shape.groups, rank, shape.out_features),
        "singular_values": (shape.groups, rank),
    }
    return Codec(shapes, _encode_factors, _decode_factors)


def _encode_factors(result: tuple[Factors, Spectrum]) -> Entry:
    factors, spectrum = result
    meta = {
        "relative_error": float(factors.relative_error),
        "spectral_error": float(factors.spectral_error),
        "solver": factors.solver,
        "energy": float(spectrum.energy),
    }
    arrays = {"left": factors.left, "right": factors.right, "singular_values": factors.singular_values}
    return Entry(meta, arrays)


def _decode_factors(entry: Entry) -> tuple[Factors, Spectrum]:
    arrays, meta = entry.arrays, entry.meta
    check_finite(arrays)
    factors = Factors(
        left=arrays["left"],
        right=arrays["right"],
        singular_values=arrays["singular_values"],
        relative_error=checked_number(meta["relative_error"]),
        spectral_error=checked_number(meta["spectral_error"]),
        solver=checked_text(meta["solver"]),
    )
    return factors, Spectrum(values=factors.singular_values, energy=checked_number(meta["energy"]))


def tails_codec(ranks: Sequence[tuple[int, ...]]) -> Codec[tuple[Tails, ...]]:
    """For the errors of one weight in some forms, each at its ranks."""
    return Codec({}, _encode_tails, partial(_decode_tails, ranks))


def _encode_tails(tails: tuple[Tails, ...]) -> Entry:
    return Entry({"errors": [list(one.errors) for one in tails]})


def _decode_tails(ranks: Sequence[tuple[int, ...]], entry: Entry) -> tuple[Tails, ...]:
    errors = [tuple(checked_number(error) for error in one) for one in entry.meta["errors"]]
    if [len(one) for one in errors] != [len(one) for one in ranks]:
        raise ValueError("errors for other ranks")
    return tuple(Tails(*one) for one in zip(ranks, errors, strict=True))


def sensitivity_codec(weight: WeightRef) -> Codec[Sensitivity | Unmeasured]:
    """For the measured effect of one weight. One whose runs failed isn't kept: that may have been chance."""
    return Codec({}, _encode_sensitivity, partial(_decode_sensitivity, weight))


def _encode_sensitivity(result: Sensitivity | Unmeasured) -> Entry | None:
    if isinstance(result, Unmeasured):
        return Entry({"reason": result.reason})
    if result.problem:
        return None
    names = ("ranks", "output_errors", "tail_energies", "importance", "fits")
    return Entry({name: getattr(result, name) for name in names})


def _decode_sensitivity(weight: WeightRef, entry: Entry) -> Sensitivity | Unmeasured:
    meta = entry.meta
    if "reason" in meta:
        return Unmeasured(weight, checked_text(meta["reason"]))
    ranks = tuple(checked_whole(rank) for rank in meta["ranks"])
    errors, tails = (
        tuple(checked_number(value) for value in meta[name]) for name in ("output_errors", "tail_energies")
    )
    if not len(ranks) == len(errors) == len(tails) > 0:
        raise ValueError("ranks, errors and tails don't belong together")
    if not isinstance(meta["fits"], bool):
        raise ValueError(f"{meta['fits']!r}: expected true or false")
    return Sensitivity(weight, ranks, errors, tails, checked_number(meta["importance"]), meta["fits"])


def recall_moments(
    slot_of: Callable[[str], Slot], sites: Sequence[Site], keep: Callable[[Moment, int], Moment]
) -> dict[str, Moment | str] | None:
    """The moments of all sites together, or None if any is missing.

    Parameters
    ----------
    slot_of : the slot of a part: "index", and "0" and so on for the distinct moments.
    sites : all sites, as when the moments were kept.
    keep : puts a moment where it does not use memory, by its number.
    """
    index = slot_of("index").get(_index_codec(sites))
    if index is None:
        return None
    moments: dict[int, Moment] = {}
    for site in sites:
        number = index[site.name]
        if isinstance(number, int) and number not in moments:
            moment = slot_of(str(number)).get(_moment_codec(site))
            if moment is None:
                return None
            moments[number] = keep(moment, number)
    return {name: entry if isinstance(entry, str) else moments[entry] for name, entry in index.items()}


def store_moments(slot_of: Callable[[str], Slot], sites: Sequence[Site], by_site: Mapping[str, Moment | str]) -> None:
    """Keep the moments of all sites, a moment that several sites share once; the index last."""
    numbers: dict[int, int] = {}
    index: dict[str, int | str] = {}
    for site in sites:
        result = by_site[site.name]
        if isinstance(result, Moment) and id(result) not in numbers:
            number = numbers[id(result)] = len(numbers)
            slot_of(str(number)).put(_moment_codec(site), result)
        index[site.name] = result if isinstance(result, str) else numbers[id(result)]
    slot_of("index").put(_index_codec(sites), index)


def validated_codec(weights: Sequence[WeightRef]) -> Codec[dict[WeightRef, Validated]]:
    """For what held-out samples say of these weights, or of some of them."""

    def encode(result: dict[WeightRef, Validated]) -> Entry:
        found = [result.get(weight) for weight in weights]
        return Entry({"weights": [None if one is None else [one.share, one.tails] for one in found]})

    return Codec({}, encode, partial(_decode_validated, weights))


def _decode_validated(weights: Sequence[WeightRef], entry: Entry) -> dict[WeightRef, Validated]:
    found = entry.meta["weights"]
    if len(found) != len(weights):
        raise ValueError(f"{len(found)} weights: expected {len(weights)}")
    validated = {}
    for weight, one in zip(weights, found, strict=True):
        if one is not None:
            share, tails = one
            pairs = tuple((checked_number(known), checked_number(seen)) for known, seen in tails)
            validated[weight] = Validated(checked_number(share), pairs)
    return validated


def _index_codec(sites: Sequence[Site]) -> Codec[dict[str, Any]]:
    return Codec({}, Entry, partial(_decode_index, sites))


def _decode_index(sites: Sequence[Site], entry: Entry) -> dict[str, Any]:
    index = dict(entry.meta)
    if index.keys() != {site.name for site in sites}:
        raise ValueError("it speaks of other sites")
    if not all(isinstance(value, str) or checked_whole(value) >= 0 for value in index.values()):
        raise ValueError("it names no moment")
    return index


def _moment_codec(site: Site) -> Codec[Moment]:
    groups, size = site.own.shape.groups, site.own.shape.in_features
    # Of lookups only the diagonal is kept.
    second = (groups, size) if site.op_type == "Gather" else (groups, size, size)
    shapes = {"second_moment": second, "mean": (groups, size)}
    return Codec(shapes, _encode_moment, _decode_moment)


def _encode_moment(moment: Moment) -> Entry:
    return Entry(
        {"rows": moment.rows, "positions": moment.positions},
        {"second_moment": moment.second_moment, "mean": moment.mean},
    )


def _decode_moment(entry: Entry) -> Moment:
    arrays = entry.arrays
    if any(array.dtype != np.float64 for array in arrays.values()):
        raise ValueError("a moment isn't float64")
    rows, positions = checked_whole(entry.meta["rows"]), checked_whole(entry.meta["positions"])
    return Moment(arrays["second_moment"], arrays["mean"], rows, positions)


def check_finite(factors: Mapping[str, Array]) -> None:
    """Refuse NaN and infinity."""
    if not all(np.isfinite(values).all() for values in factors.values()):
        raise ValueError("a factor isn't finite")


def checked_number(value: Any) -> float:
    """A number of at least 0; infinity is one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value < 0:
        raise ValueError(f"{value!r}: expected a number of at least 0")
    return float(value)


def checked_whole(value: Any) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r}: expected a whole number")
    return value


def checked_text(value: Any) -> str:
    """Text."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r}: expected text")
    return value
