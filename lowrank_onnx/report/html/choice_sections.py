"""The parts of the page on how the model was chosen: trade-off, search, plan, refinement, what was reached."""

from __future__ import annotations

from lowrank_onnx.report.escape import printable
from lowrank_onnx.report.html import figures
from lowrank_onnx.report.html.figures import Point
from lowrank_onnx.report.html.parts import Section, Table
from lowrank_onnx.report.numbers import count, fraction, plural, significant
from lowrank_onnx.report.refinement_text import refinement_line
from lowrank_onnx.report.search_text import reached_table, search_table
from lowrank_onnx.report.sweep_text import sweep_columns, sweep_legend, sweep_row
from lowrank_onnx.report.tables import budget_flag
from lowrank_onnx.results import CompressionResult, RefinedWeight, SweepResult


def front_section(result: SweepResult) -> Section:
    """What each budget costs and brings, over speed where it was measured for all points, else over size."""
    points = [(index, point.result) for index, point in enumerate(result.points)]
    timed = all(r.verdict is not None and r.verdict.latency is not None for _, r in points)
    drawn = []
    for index, point in points:
        verdict, after = point.verdict, point.after
        if verdict is None or after is None:
            continue
        faster = verdict.latency.speedup if timed and verdict.latency is not None else 0.0
        cost = faster if timed else after.file_bytes / 1e6
        _, value = budget_flag(point.config.budget)
        drawn.append(Point(cost, verdict.relative_error, index == result.picked, f"{value:g}"))
    cost_name = "speed, times the original's" if timed else "MB of the file"
    rows = tuple(sweep_row(index, point, result) for index, point in enumerate(result.points))
    return Section(
        "trade-off",
        "The trade-off",
        (
            "One model for each budget, measured, with its budget beside it."
            + ("" if result.picked is None else " The diamond is the one that was written."),
            printable(sweep_legend(result)),
        ),
        figures.trade_off(drawn, cost_name) if drawn else "",
        f"Relative error of the outputs over {cost_name}, {plural(len(drawn), 'point')}; the table has the figures.",
        (Table("Points", sweep_columns(result), rows),),
    )


def search_section(result: CompressionResult) -> Section | None:
    """The attempts of a search, and the one that was taken."""
    steps = result.search
    if not steps:
        return None
    accepted = [step for step in steps if step.accepted]
    chosen = min(accepted, key=lambda step: step.keep) if accepted else None
    raced = all(step.speedup is not None for step in steps)
    if raced and accepted:
        chosen = max(accepted, key=lambda step: step.keep)
    points = [Point((step.speedup or 0.0) if raced else step.keep, step.error, step is chosen) for step in steps]
    cost = "speed, times the original's" if raced else "share kept"
    return Section(
        "search",
        "The search",
        ("Every model that was tried on the way to the budget. The diamond is the one that was taken.",),
        figures.trade_off(points, cost),
        f"Relative error of the outputs over {cost}, {plural(len(steps), 'attempt')}.",
        (Table("Attempts", *search_table(steps)),),
    )


def plan_section(result: CompressionResult) -> Section | None:
    """The plans that were tried at each share, by how far they trusted what was measured."""
    if not result.trials:
        return None
    measured = any(trial.error is not None for trial in result.trials)
    rows = tuple(
        (
            fraction(trial.keep),
            "the plain ones" if trial.plain else "all",
            f"{trial.trust:g}",
            significant(trial.error),
            "yes" if trial.chosen else "no",
        )
        for trial in result.trials
    )
    return Section(
        "plan",
        "The plan",
        (
            "What the loss of one weight alone does to the outputs was measured.",
            "A trust of 1 plans by these effects, 0 by the tail energies of the weights, in between by both.",
            "Of each share, the plan whose model has the least error on calibration feeds was taken.",
            "" if measured else "There was no error to choose by: the calibration feeds have too few samples.",
        ),
        tables=(Table("Plans", ("share kept", "forms", "trust", "output error", "taken"), rows, 2),),
    )


def refinement_section(result: CompressionResult) -> Section | None:
    """What solving the factors again did to the model on held-out feeds, and to each weight."""
    refinement = result.refinement
    if refinement is None:
        return None
    columns = ("weight", "outcome", "solved for", "error before", "error after", "inputs")
    weights = tuple(map(_refined_row, refinement.weights))
    caption = "Weights; errors of what was solved for, relative, on feeds that were not solved for"
    before, after = significant(refinement.error_before), significant(refinement.error_after)
    outputs = ("relative error of the outputs", before, after)
    held_out = f"The whole model on {plural(refinement.held_out, 'held-out feed')}"
    return Section(
        "refinement",
        "Factors solved again",
        (printable(refinement_line(refinement)),),
        tables=(
            *([Table(held_out, ("", "before", "after"), (outputs,))] if refinement.error_before is not None else []),
            *([Table(caption, columns, weights, left=3)] if weights else []),
        ),
    )


def _refined_row(weight: RefinedWeight) -> tuple[str, ...]:
    return (
        printable(weight.weight),
        "refined" if weight.refined else printable(f"as planned: {weight.reason}"),
        {"output": "its output", "sum": "the sum that it adds to"}[weight.target],
        significant(weight.error_before),
        significant(weight.error_after),
        count(weight.rows),
    )


def reached_section(result: CompressionResult) -> Section | None:
    """What was asked beside what the plan predicted and what came of it."""
    if not result.reached:
        return None
    return Section(
        "reached",
        "Asked and reached",
        ("Predicted by the plan, before the model was made; reached as counted or measured.",),
        tables=(Table("Each figure of the result", *reached_table(result.reached)),),
    )
