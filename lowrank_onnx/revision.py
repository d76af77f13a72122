"""After a model was measured as not fast enough: other choices for it, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lowrank_onnx.candidates import PlannedWeight
from lowrank_onnx.choose import Choice
from lowrank_onnx.config import Config, Speedup
from lowrank_onnx.results import SearchStep
from lowrank_onnx.rollback import put_back
from lowrank_onnx.search import beyond
from lowrank_onnx.settle import Settled
from lowrank_onnx.types import Verdict

MAX_ROUNDS = 3
"""How often a model that is not fast enough is made again."""

_MARGIN = 1.02
"""A speedup that was missed is asked for with this factor on top, the next time."""


@dataclass(frozen=True, slots=True)
class Reviser:
    """What it takes to choose again.

    Attributes
    ----------
    config : its budget and objective are used.
    timed_weights : the weights with their latencies; measured when first asked for.
    settle_speedup : searches again, for a speedup and from a share on.
    """

    config: Config
    timed_weights: Callable[[], Sequence[PlannedWeight]]
    settle_speedup: Callable[[Speedup, float], Settled]

    def revise(
        self, choices: Sequence[Choice], search: Sequence[SearchStep], verdict: Verdict
    ) -> tuple[tuple[Choice, ...], tuple[SearchStep, ...]] | None:
        """Choose again for a model that failed by its latency alone.

        A speedup that was missed is searched for again, with as much more as was missed, from where the last search
        ended; under any other budget, weights are put back (`put_back`).

        Parameters
        ----------
        choices, search : what the model was made of, and the attempts that led there.
        verdict : on the model.

        Returns
        -------
        The choices and the attempts of another search; None where the verdict stands: it failed by more than latency,
        latency doesn't matter, the rewriting was asked for whatever it costs, or no rewritten weight would be left.
        """
        budget, latency = self.config.budget, verdict.latency
        if self.config.allow_larger or latency is None or not only_too_slow(verdict, self.config):
            return None
        if isinstance(budget, Speedup):
            missed = max(1.0, budget.speedup / latency.speedup)
            target = budget.speedup * missed * _MARGIN
            reached = max((step.keep for step in search if step.accepted), default=1.0)
            start = beyond(reached, 1.0 / latency.speedup, 1.0 / target)
            found = self.settle_speedup(Speedup(target), start)
            return found if any(choice.candidate.rank is not None for choice in found[0]) else None
        revised = put_back(self.timed_weights(), choices)
        return None if revised is None else (revised, ())


def only_too_slow(verdict: Verdict, config: Config) -> bool:
    """Whether the one failure of the verdict is the one that `judge` has for latency."""
    latency = verdict.latency
    if config.objective != "latency" or latency is None or len(verdict.failures) != 1:
        return False
    return not (latency.faster and latency.speedup >= required_speedup(config))


def required_speedup(config: Config) -> float:
    """The least median speedup that the budget asks for; 1 where it is about something else."""
    return config.budget.speedup if isinstance(config.budget, Speedup) else 1.0
