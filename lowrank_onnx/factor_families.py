"""The factorize stage: one weight at a time in memory, its factors on disk.

A weight is factorized once for each family of its forms, at the largest rank that any candidate needs. The factors wait
in a spool directory until the plan is made (`lowrank_onnx.spool`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import numpy as np

from lowrank_onnx.cache import NO_CACHE, Cache, remember
from lowrank_onnx.cache.codecs import tails_codec
from lowrank_onnx.chain_factors import ChainWeight, LeadingBases, chain_errors, chain_ranks
from lowrank_onnx.factorize import FactorizeOptions, factorize_once
from lowrank_onnx.forms import EMBEDDING, LOOKUP, MATRIX, PAIR, SHARED, TIED, TWO_SIDED, ConvChain, Form
from lowrank_onnx.linalg.lapack import solver_of_small
from lowrank_onnx.linalg.precision import accumulation_dtype
from lowrank_onnx.linalg.two_sided import ScaledColumns, with_identity
from lowrank_onnx.model_io import Model
from lowrank_onnx.progress import Progress
from lowrank_onnx.spool import FactorSpool
from lowrank_onnx.types import (
    Array,
    Curves,
    ErrorCurve,
    Rearrangement,
    Spectrum,
    Tails,
    WeightRef,
    rearrange,
)
from lowrank_onnx.weight_reader import WeightReader
from lowrank_onnx.weights import SharedWeight


def spool_factors(
    model: Model,
    groups: Sequence[SharedWeight],
    ranks: Sequence[Mapping[str, int]],
    spool: FactorSpool,
    options: FactorizeOptions,
    second_moments: Mapping[WeightRef, Array],
    progress: Progress,
    cache: Cache = NO_CACHE,
    bases: LeadingBases | None = None,
    mirrored: Mapping[WeightRef, Array] = MappingProxyType({}),
) -> tuple[Curves, ...]:
    """Factorize each weight for each family of forms at the rank given for it, one weight in memory at a time, or some
    small ones.

    `second_moments` holds those of the inputs of the weights for which they are known, and `mirrored` those of what
    tied weights apply transposed; `cache` gives factors that an earlier run made of the same weight with the same
    options; `bases` keeps what chains begin with. Returns the errors by rank of each weight, empty for a weight that
    was left alone.
    """
    weights = WeightReader(model, (group.weight for group in groups))
    found: list[dict[str, ErrorCurve]] = [{} for _ in groups]

    def factor_part(
        group: SharedWeight, part: Mapping[str, int], stored: Array, moment: Callable[[], Array | None]
    ) -> Mapping[str, ErrorCurve]:
        chains = _chain_curves(group, stored, part, options, moment(), cache, bases)
        return chains or {
            family: FAMILIES[family](group, stored, rank, spool, options, moment(), cache, *other_side(group, family))
            for family, rank in part.items()
        }

    def other_side(group: SharedWeight, family: str) -> tuple[Array | None, ...]:
        return (mirrored.get(group.weight),) if family == TWO_SIDED else ()

    def problems() -> Iterator[tuple[int, Callable[[], Mapping[str, ErrorCurve]], int]]:
        # Most work first: what is solved side by side then ends at about the same time.
        for index in sorted(range(len(groups)), key=lambda index: -work_of(groups[index])):
            group, wanted = groups[index], ranks[index]
            moment = functools.cache(partial(second_moments.get, group.weight))
            stored = weights.read(group.weight) if wanted else np.empty(0)
            for part in _parts(group, wanted):
                yield index, partial(factor_part, group, part, stored, moment), work_of(group)

    # What a cache knows is asked for in turn.
    with progress.stage("factorizing", len(groups)) as stage, solver_of_small(cache is NO_CACHE) as solve:
        begun: set[int] = set()
        for index, curves in solve(problems()):
            found[index].update(curves)
            stage.advance(int(index not in begun), detail=groups[index].weight.name)
            begun.add(index)
        stage.advance(len(groups) - len(begun))
    for members in shared_inputs(groups):
        rank = min(ranks[index].get(SHARED, 0) for index in members)
        if rank:
            bundle = [groups[index] for index in members]
            stacked = [weights.read(group.weight) for group in bundle]
            moment = second_moments.get(bundle[0].weight)
            shared = spool_shared(bundle, stacked, rank, spool, options, moment, cache)
            for index, curve in zip(members, shared, strict=True):
                found[index][SHARED] = curve
    return tuple(found)


def _parts(group: SharedWeight, wanted: Mapping[str, int]) -> list[Mapping[str, int]]:
    """The families that are factorized by themselves, with their ranks: chains of convolutions share what they begin
    with, and so are one part; what is shared with other weights is none.
    """
    families = {form.family for form in group.forms if isinstance(form, ConvChain)}
    chains = {family: rank for family, rank in wanted.items() if family in families}
    alone = [{family: rank} for family, rank in wanted.items() if family not in families and family != SHARED]
    return [chains, *alone] if chains else [*alone]


def work_of(group: SharedWeight) -> int:
    """Multiplications of a product with the second moment of the inputs."""
    return group.shape.parameters * group.shape.in_features


def shared_inputs(groups: Sequence[SharedWeight]) -> tuple[tuple[int, ...], ...]:
    """The complete bundles of weights that can share their first factor, as positions in `groups`."""
    members: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for index, group in enumerate(groups):
        for form in group.forms:
            if form.bundle is not None:
                members.setdefault(form.bundle, []).append(index)
                sizes[form.bundle] = form.bundle_size
    return tuple(tuple(indices) for name, indices in members.items() if len(indices) == sizes[name])


def spool_shared(
    bundle: Sequence[SharedWeight],
    stored: Sequence[Array],
    rank: int,
    spool: FactorSpool,
    options: FactorizeOptions,
    second_moment: Array | None,
    cache: Cache,
) -> tuple[ErrorCurve, ...]:
    """Factorize the concatenated weights, each scaled to outputs of equal energy, and keep each weight's share."""
    matrices = [rearrange(one, group.sites[0].to_matrices)[0] for one, group in zip(stored, bundle, strict=True)]
    energies = [_output_energy(matrix, second_moment) for matrix in matrices]
    scales = [energy**-0.5 if energy else 1.0 for energy in energies]
    dtype = accumulation_dtype(matrices[0].dtype)
    scaled = np.concatenate([(matrix.astype(dtype) * scale) for matrix, scale in zip(matrices, scales, strict=True)], 1)
    arrangement = Rearrangement((1, *scaled.shape), (0, 1, 2), (1, *scaled.shape))
    factors, spectrum = factorize_once(cache, scaled[None], bundle[0].weight, arrangement, rank, options, second_moment)
    norms = np.linalg.norm(factors.right[0].astype(np.float64), axis=1, keepdims=True)
    directions = np.divide(factors.right[0], norms, out=np.zeros(factors.right[0].shape), where=norms > 0)
    curves = []
    start = 0
    for group, matrix, scale, energy in zip(bundle, matrices, scales, energies, strict=True):
        columns = slice(start, start + matrix.shape[1])
        start += matrix.shape[1]
        right = factors.right[:, :, columns] / dtype.type(scale)
        form = next(form for form in group.forms if form.family == SHARED)
        spool.put_nested(group.weight, SHARED, form, replace(factors, right=right))
        captured = spectrum.values[0] * np.linalg.norm(directions[:, columns], axis=1)
        curves.append(Spectrum(captured[None], float(scale**2 * energy)))
    return tuple(curves)


def _output_energy(matrix: Array, second_moment: Array | None) -> float:
    """||S' W||_F^2 in float64, with the identity for S where the inputs aren't known."""
    wide = matrix.astype(np.float64)
    weighed = wide if second_moment is None else second_moment[0].astype(np.float64) @ wide
    return float(np.sum(wide * weighed))


def _spool_matrix(
    form: Form,
    group: SharedWeight,
    stored: Array,
    rank: int,
    spool: FactorSpool,
    options: FactorizeOptions,
    second_moment: Array | None,
    cache: Cache,
) -> ErrorCurve:
    arrangement = group.sites[0].to_matrices
    factors, spectrum = factorize_once(cache, stored, group.weight, arrangement, rank, options, second_moment)
    spool.put_nested(group.weight, form.family, form, factors)
    return spectrum


def _spool_tied(
    group: SharedWeight,
    stored: Array,
    rank: int,
    spool: FactorSpool,
    options: FactorizeOptions,
    second_moment: Array | None,
    cache: Cache,
    mirrored: Array | None,
) -> ErrorCurve:
    """Factorize a weight that is applied transposed too, in the norm of `lowrank_onnx.linalg.two_sided`."""
    if second_moment is None or mirrored is None:
        return _spool_matrix(TIED, group, stored, rank, spool, options, second_moment, cache)
    to_matrices = group.sites[0].to_matrices
    scaled = ScaledColumns(mirrored[0])
    matrix = scaled.scale(rearrange(stored, to_matrices)[0])[None]
    arrangement = Rearrangement(matrix.shape, (0, 1, 2), matrix.shape)
    rows = with_identity(second_moment[0])[None]
    factors, spectrum = factorize_once(cache, matrix, group.weight, arrangement, rank, options, rows)
    spool.put_nested(group.weight, TWO_SIDED, TIED, replace(factors, right=scaled.restore(factors.right[0])[None]))
    return spectrum


def _chain_curves(
    group: SharedWeight,
    stored: Array,
    wanted: Mapping[str, int],
    options: FactorizeOptions,
    second_moment: Array | None,
    cache: Cache,
    bases: LeadingBases | None,
) -> dict[str, Tails]:
    """The errors of chains of convolutions, by family; their factors are made when a rank is chosen."""
    chains = [form for form in group.forms if isinstance(form, ConvChain) and form.family in wanted]
    if not chains:
        return {}
    asked = [(form, chain_ranks(group.shape, form, wanted[form.family])) for form in chains]
    kernel = ChainWeight(group.weight, stored, group.sites[0].to_matrices, second_moment, options.device)
    if bases is not None:
        for form, ranks in asked:
            bases.expect(kernel, form, max(ranks))
    slot = cache.slot("chain errors", lambda: (kernel, asked))
    found = remember(slot, tails_codec([ranks for _, ranks in asked]), lambda: chain_errors(kernel, asked, bases))
    return {form.family: tails for form, tails in zip(chains, found, strict=True)}


FAMILIES: Mapping[str, Callable[..., ErrorCurve]] = MappingProxyType(
    {MATRIX: partial(_spool_matrix, PAIR), LOOKUP: partial(_spool_matrix, EMBEDDING), TWO_SIDED: _spool_tied}
)
"""For each family of forms whose factors are spooled: factorize a weight, and give its error by rank."""
