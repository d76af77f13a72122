"""What a whole model weighs: the original, and the one that was made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import onnx

from lowrank_onnx.absorb import Absorbed
from lowrank_onnx.results import SiteResult, Totals
from lowrank_onnx.types import Site
from lowrank_onnx.weights import SharedWeight, count_parameters

NOTHING_SAVED: Mapping[str, int] = MappingProxyType({})
"""Where no site stands for several nodes."""


def totals(
    skeleton: onnx.ModelProto,
    file_bytes: int,
    groups: Sequence[SharedWeight],
    rows: Mapping[str, SiteResult] | None,
    positions: Mapping[str, int],
    saved: Mapping[str, int] = NOTHING_SAVED,
) -> Totals:
    """Figures of a model: the original's where `rows` is None, else those after the choices in `rows` (by site).

    `saved` is what the original has beside the weights of the sites (`site_results`).
    """
    parameters = macs = 0
    known = True
    for group in groups:
        first = group.sites[0]
        parameters += rows[first.name].parameters_after if rows else _before(first, saved)
        for site in group.sites:
            at = positions.get(site.name)
            after = rows[site.name].macs_after if rows else None
            if at is None:
                known = False
                continue
            dense = site.dense_macs(at) + at * saved.get(site.output, 0)
            macs += dense if after is None else after
    return Totals(
        parameters=count_parameters(skeleton),
        site_parameters=parameters,
        macs=macs if known else None,
        file_bytes=file_bytes,
    )


def _before(site: Site, saved: Mapping[str, int]) -> int:
    return site.shape.parameters + saved.get(site.output, 0)


def without_absorbed(
    after: Totals, absorbed: Sequence[Absorbed], groups: Sequence[SharedWeight], positions: Mapping[str, int]
) -> Totals:
    """The figures after the choices, less what factors saved that were multiplied into their neighbours."""
    at = {site.output: positions.get(site.name, 0) for group in groups for site in group.sites}
    return replace(
        after,
        site_parameters=after.site_parameters - sum(one.saved for one in absorbed),
        macs=None if after.macs is None else after.macs - sum(at[one.middle] * one.saved for one in absorbed),
    )
