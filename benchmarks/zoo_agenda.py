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

QUICK = Agenda((0.6,), {0.6: ("plain SVD", "BALF", "SVD-LLM", *EIGHT_BITS)})
FULL = Agenda((0.8, 0.6, 0.5, 0.4), {0.6: (*PEERS, *EIGHT_BITS), 0.8: PEERS, 0.4: PEERS})

AGENDAS: Mapping[str, Agenda] = {
    "minilm-l6": Agenda((0.8, 0.6, 0.4), {0.6: (*PEERS, *EIGHT_BITS), 0.8: PEERS, 0.4: PEERS}),
    "craft": Agenda((0.6, 0.4), {0.6: (*PEERS, *EIGHT_BITS), 0.4: PEERS}),
    "ppocr-v4-recogniser": Agenda((0.8, 0.6), {0.8: (*PEERS, *EIGHT_BITS), 0.6: PEERS}),
    "whisper-base-encoder": Agenda((0.8, 0.6), {0.8: (*PEERS, *EIGHT_BITS), 0.6: PEERS}),
    "whisper-base-decoder": Agenda((0.8,), {0.8: (*PEERS, *EIGHT_BITS)}),
    "efficientnet-lite2": Agenda((0.8,), {0.8: (*PEERS, *EIGHT_BITS)}),
}
"""By default: every recipe at every share of each model."""
