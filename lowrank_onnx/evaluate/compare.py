"""Comparison of two models' outputs, and the verdict on it. What wasn't compared has failed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from lowrank_onnx.config import Gates
from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.accumulate import OutputComparison
from lowrank_onnx.evaluate.confidence import CONFIDENCE, share_at_least
from lowrank_onnx.evaluate.feeds import Feeds
from lowrank_onnx.evaluate.kept_outputs import KeptOutputs
from lowrank_onnx.evaluate.session import Runner
from lowrank_onnx.evaluate.turns import pair_outputs
from lowrank_onnx.progress import StageProgress
from lowrank_onnx.types import LatencyComparison, MetricComparison, OutputStatistics, Verdict, judged_by_answers


def compare_outputs(
    original: Runner,
    candidate: Runner,
    feeds: Feeds,
    *,
    kept: KeptOutputs | None = None,
    progress: StageProgress | None = None,
) -> tuple[OutputStatistics, ...]:
    """Run both models on every feed, and compare each output; one feed's outputs are in memory at a time.

    `OutputAccumulator` says how each kind of output is compared; the original's session says which outputs are logits.

    Parameters
    ----------
    original, candidate : two sessions that take the same inputs.
    feeds : what to run them on.
    kept : the original's outputs on these feeds; None runs it beside the candidate.
    progress : is advanced by 1 for each feed.

    Returns
    -------
    One entry for each output of the original, in its order, then one for each output that only the candidate has.
    What makes a comparison unsound by itself is in `OutputStatistics.problems`.

    Raises
    ------
    UsageError : the two models don't take the same inputs, a feed is not usable, or an output that was named as logits
        is none.
    ModelError : one of them can't run on a feed.
    OutputError : they take turns, and there is no room on disk for the original's outputs.
    """
    _check_same_inputs(original, candidate)
    shared = [name for name in original.outputs if name in candidate.outputs]
    comparison = OutputComparison(original, shared)
    pairs = pair_outputs(original, candidate, feeds, shared) if kept is None else kept.pair_with(candidate)
    for _, expected, actual in pairs if shared else ():
        comparison.add(expected, actual)
        if progress is not None:
            progress.advance()
    compared = {output.name: output for output in comparison.statistics()}
    statistics = [compared.get(name) or _absent(name, "the candidate lacks this output") for name in original.outputs]
    surplus = [name for name in candidate.outputs if name not in original.outputs]
    return (*statistics, *(_absent(name, "the original has no such output") for name in surplus))


def judge(
    outputs: Sequence[OutputStatistics],
    latency: LatencyComparison | None,
    feeds: Feeds,
    providers: Sequence[str],
    *,
    gates: Gates,
    require_faster: bool,
    min_speedup: float = 1.0,
    metric: MetricComparison | None = None,
    max_drop: float | None = None,
    asked_error: float | None = None,
    models: int = 1,
) -> Verdict:
    """Decide whether the candidate passes; each failure is one sentence.

    Parameters
    ----------
    outputs, latency : from `compare_outputs` and `measure_latency` (None: not timed).
    feeds, providers : what was run, on what; for the report.
    gates : each holds for every output; `min_top1` for those that have a top-1 agreement and for answers, and there
        has to be one; `max_error` and `min_sqnr_db` for numbers, and where only answers can tell what was rewritten
        (`judged_by_answers`) `max_error` for the share of them that changed.
    require_faster : whether the candidate has to be faster, with confidence.
    min_speedup : the least median speedup of a candidate that has to be faster.
    metric, max_drop : what the task metric says, and the largest drop that is accepted; None: there is none.
    asked_error : the error that was asked for, as gate or budget. Where only answers can tell what was rewritten they
        have to be so many that one that changed is no more than that.
    models : how many models a search may have judged by these feeds; the bound of the top-1 agreement allows for it.
    """
    failures = []
    if not outputs or len(feeds) == 0:
        failures.append("nothing was compared: give feeds and a model with outputs")
    for output in outputs:
        failures += [f"output {output.name!r}: {problem}" for problem in output.problems]
    sound = [output for output in outputs if not output.problems]
    by_answers = len(sound) == len(outputs) and judged_by_answers(sound)
    for output in sound:
        failures += _broken_gates(output, gates, by_answers=by_answers)
    if by_answers and asked_error is not None:
        failures += _too_few(sound, asked_error)
    failures += _empty_gates(outputs, gates)
    if max_drop is not None:
        failures += _dropped(metric, max_drop)
    if require_faster:
        failures += _not_faster(latency, min_speedup)
    return Verdict(
        outputs=tuple(outputs) if feeds.synthetic else tuple(_bounded(output, feeds, models) for output in outputs),
        latency=latency,
        feeds=feeds.description,
        synthetic=feeds.synthetic,
        samples=feeds.samples,
        providers=tuple(providers),
        failures=tuple(failures),
        metric=metric,
    )


def _bounded(output: OutputStatistics, feeds: Feeds, models: int) -> OutputStatistics:
    """The output with the bound of its agreement, where its rows are the samples."""
    if output.problems or output.top1_agreement is None or not output.top1_rows:
        return output
    less_than_a_feed = abs(output.top1_rows - feeds.samples) * len(feeds) < feeds.samples  # to which samples are right
    if output.is_answer and not less_than_a_feed:  # e.g. the objects found in one image
        return output
    agreeing = round(output.top1_agreement * output.top1_rows)
    bound = share_at_least(agreeing, output.top1_rows, 1.0 - (1.0 - CONFIDENCE) / models)
    return replace(output, top1_bound=bound)


def _check_same_inputs(original: Runner, candidate: Runner) -> None:
    wanted = {spec.name: spec.dtype for spec in original.inputs}
    given = {spec.name: spec.dtype for spec in candidate.inputs}
    if wanted != given:
        first, second = (", ".join(f"{name}: {dtype}" for name, dtype in side.items()) for side in (wanted, given))
        raise UsageError(
            f"the candidate's inputs ({second}) aren't the original's ({first}): compare two versions of one model"
        )


def _absent(name: str, problem: str) -> OutputStatistics:
    return OutputStatistics(
        name, "", 0, float("inf"), float("inf"), float("-inf"), 0.0, top1_agreement=None, problems=(problem,)
    )


def _broken_gates(output: OutputStatistics, gates: Gates, *, by_answers: bool) -> list[str]:
    """The gates that one output breaks. Written as `not (good)`, so that NaN breaks them."""
    broken = []
    if gates.min_sqnr_db is not None and output.sqnr_db is not None and not output.sqnr_db >= gates.min_sqnr_db:
        broken.append(f"SQNR {output.sqnr_db:.2f} dB is below --min-sqnr {gates.min_sqnr_db:g}")
    counts = by_answers or not output.is_answer
    if gates.max_error is not None and counts and not output.error <= gates.max_error:
        what = "share of changed answers" if output.is_answer else "relative error"
        broken.append(f"{what} {output.error:.4g} is above --max-error {gates.max_error:g}")
    agreement = output.top1_agreement
    if gates.min_top1 is not None and agreement is not None and not agreement >= gates.min_top1:
        what = "share of equal answers" if output.is_answer else "top-1 agreement"
        broken.append(f"{what} {agreement:.4f} is below --min-top1 {gates.min_top1:g}")
    return [f"output {output.name!r}: {text}" for text in broken]


def _too_few(outputs: Sequence[OutputStatistics], max_error: float) -> list[str]:
    """The outputs with so few answers that a single one that changed would be more than is allowed."""
    needed = math.ceil(1.0 / max_error)
    return [
        f"output {output.name!r}: {output.elements} answers are too few to tell an error of {max_error:g}: give feeds "
        f"with at least {needed}"
        for output in outputs
        if output.is_answer and output.elements < needed
    ]


def _empty_gates(outputs: Sequence[OutputStatistics], gates: Gates) -> list[str]:
    """The gates that no output is held to."""
    empty = []
    if gates.min_top1 is not None and all(output.top1_agreement is None for output in outputs):
        empty.append(
            f"--min-top1 {gates.min_top1:g}: no output has a class axis (a float output of rank 2 or 3) or answers "
            "(integers, bools or strings): drop the gate"
        )
    if gates.min_sqnr_db is not None and outputs and all(output.is_answer for output in outputs):
        empty.append(f"--min-sqnr {gates.min_sqnr_db:g}: no output has numbers, only answers: give --min-top1 instead")
    return empty


def _dropped(metric: MetricComparison | None, max_drop: float) -> list[str]:
    if metric is None:
        return [f"--max-drop {max_drop:g}: the metric was not measured"]
    if metric.within(max_drop):
        return []
    proof = "" if metric.drop_bound is None else f", and up to {metric.drop_bound:.4g} can't be ruled out"
    fell = f"{metric.original:.6g} -> {metric.candidate:.6g} is a drop of {metric.drop:.4g}"
    return [f"metric {metric.name}: {fell}{proof}: above --max-drop {max_drop:g}"]


def _not_faster(latency: LatencyComparison | None, min_speedup: float) -> list[str]:
    if latency is None:
        return ["the latency was not measured, and the objective is latency"]
    if latency.faster and latency.speedup >= min_speedup:
        return []
    problem = f"not as fast as --speedup {min_speedup:g}" if latency.faster else "not faster"
    text = (
        f"{problem}: {latency.original.median_ms:.3g} ms -> {latency.candidate.median_ms:.3g} ms, speedup "
        f"{latency.speedup:.3f} with {latency.confidence * 100:g} % interval {latency.speedup_low:.3f} to "
        f"{latency.speedup_high:.3f} ({latency.pairs} pairs)"
    )
    return [text]
