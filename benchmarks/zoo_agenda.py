"""What the zoo measures of each model by default, in haste, and in full."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.peers import INT8, OURS_INT8, RECIPES


@dataclass(frozen=True, slots=True)
class Agenda:
    """What is measured of one model: this program at `shares` of the MACs, and other ways at some of them."""

    shares: tuple[float, ...]
    others: Mapping[float, tuple[str, ...]]


PEERS = tuple(recipe.name for recipe in RECIPES if recipe.name != INT8)
EIGHT_BITS = (INT8, OURS_INT8)
"""Ways that are run once: int8 has no share to keep."""


def _everything_at(first: float, *more: float) -> Mapping[float, tuple[str, ...]]:
    return {first: (*PEERS, *EIGHT_BITS)} | dict.fromkeys(more, PEERS)


QUICK = Agenda((0.6,), {0.6: ("plain SVD", "BALF", "SVD-LLM", *EIGHT_BITS)})
FULL = Agenda((0.8, 0.6, 0.5, 0.4), _everything_at(0.6, 0.8, 0.4))

AGENDAS: Mapping[str, Agenda] = {
    "minilm-l6": Agenda((0.8, 0.6, 0.4), _everything_at(0.6, 0.8, 0.4)),
    "craft": Agenda((0.6, 0.4), _everything_at(0.6, 0.4)),
    "ppocr-v4-recogniser": Agenda((0.8, 0.6), _everything_at(0.8, 0.6)),
    "whisper-base-encoder": Agenda((0.8, 0.6), _everything_at(0.8, 0.6)),
    "whisper-base-decoder": Agenda((0.8,), _everything_at(0.8)),
    "efficientnet-lite2": Agenda((0.8,), _everything_at(0.8)),
}
"""By default: every recipe at every share of each model."""
