"""``python -m benchmarks.forms_planning``: what planning gains by all forms over pairs alone.

Each model is compressed twice at each budget: with the plain forms alone, and with every form that its operators have.
The budgets are shares of its parameters and of its MACs, planned for size, and limits of the outputs' error, planned
for latency. Both ways get the same weights to plan for, which leaves out looked-up tables (no pair is a form of
theirs), the same calibration feeds, and no refinement, so that what differs is the plan. Judged by the outputs'
relative error on other samples, by the model's own figure of merit, and by latency in interleaved pairs: each against
the original, and the two against each other.

Every point is saved when it is there, so that a run that was stopped goes on; ``--again`` measures all of them anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from benchmarks.forms_planning_report import budget_text, markdown
from benchmarks.planning import Judge
from benchmarks.planning_cases import Case, load_case
from benchmarks.saved_results import circumstances
from lowrank_onnx import Config, KeepMacs, KeepParams, MaxError, compress
from lowrank_onnx.config import FORM_NAMES, OP_TYPES, Budget
from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate import Feeds, Session, load_feeds, measure_latency, open_session

RESULTS = Path(__file__).parent / "results"
MODELS = ("vgg", "vit", "minilm", "craft")
SHARES = (0.8, 0.6, 0.4)
Limited: TypeAlias = Literal["parameters", "macs", "error"]
LIMITED: tuple[Limited, ...] = ("parameters", "macs", "error")
ERRORS: Mapping[str, tuple[float, ...]] = {
    "vgg": (0.02, 0.05),
    "vit": (0.003, 0.01),
    "minilm": (0.4, 0.6),
    "craft": (0.02, 0.05),
}
"""Limits of the error by model: about what some of the shares make of it."""

SEED = 0
TIMED_SECONDS = 2.0
"""For one pair of models; it ends sooner where the difference is plain."""

PAIRS, ALL = "pairs alone", "all forms"
WAYS: Mapping[str, tuple[str, ...]] = {PAIRS: ("pair", "conv_channel", "conv_transpose_channel"), ALL: FORM_NAMES}

BUDGETS: Mapping[Limited, Callable[[float], Budget]] = {
    "parameters": KeepParams,
    "macs": KeepMacs,
    "error": MaxError,
}

PLANNED_OPERATORS = tuple(name for name in OP_TYPES if name != "Gather")
"""A table would count towards what all forms may keep, and not towards what pairs may."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Latency of one model over that of another, the median of interleaved pairs with its 95 % interval."""

    speedup: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Way:
    """What became of a model; `forms` counts its weights by form, `seconds` is what compressing took."""

    kept: float
    error: float
    metrics: Mapping[str, float]
    speed: Speed
    forms: Mapping[str, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Point:
    """Both ways at one budget, None where that can't be had; `against` is pairs alone over all forms."""

    limited: Limited
    asked: float
    ways: Mapping[str, Way | None]
    against: Speed | None


def main() -> None:
    arguments = _parse()
    place = arguments.out / "forms_planning.json"
    for name in arguments.models:
        saved = _read(place).get(name, {})
        done = [] if arguments.again else _usable(saved, arguments.quick)
        wanted = [
            (limited, asked)
            for limited in arguments.limited
            for asked in (ERRORS[name] if limited == "error" else arguments.shares)
            if (limited, asked) not in {(point["limited"], point["asked"]) for point in done}
        ]
        if not wanted:
            continue
        case = load_case(name, quick=arguments.quick)
        judge = Judge(case)
        result = {"model": name, "data": case.data, "quick": arguments.quick, "metrics": dict(judge.metrics)}
        for point in measure_points(case, judge, wanted, arguments.seconds):
            done.append(asdict(point))
            save(place, {**result, "circumstances": circumstances(), "points": done})
            print(f"{name}: {_line(point)}", flush=True)
    if place.is_file():
        print((arguments.out / "forms_planning.md").read_text(encoding="utf-8"))


def measure_points(
    case: Case, judge: Judge, wanted: Iterable[tuple[Limited, float]], seconds: float
) -> Iterator[Point]:
    """Each budget that makes sense for the model, one after the other."""
    original = open_session(case.path)
    timed = load_feeds(case.calibration[:4], original.inputs)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for limited, asked in wanted:
            if limited not in (*case.costs, "error"):
                continue
            found = {way: _compressed(case, limited, asked, forms, place) for way, forms in WAYS.items()}
            ways: dict[str, Way | None] = {}
            sessions: dict[str, Session] = {}
            for way, one in found.items():
                if one is None:
                    ways[way] = None
                    continue
                output, kept, forms, took = one
                sessions[way] = open_session(output)
                error, metrics = judge.judge(sessions[way])
                ways[way] = Way(kept, error, metrics, _speed(original, sessions[way], timed, seconds), forms, took)
            both = len(sessions) == len(WAYS)
            yield Point(limited, asked, ways, _speed(sessions[PAIRS], sessions[ALL], timed, seconds) if both else None)


def _compressed(
    case: Case, limited: Limited, asked: float, forms: tuple[str, ...], place: Path
) -> tuple[Path, float, dict[str, int], float] | None:
    """Where the model lies, the share that it kept, its weights by form, and the seconds that it took.

    Under a limit of the error, the share is of the MACs. Only plans for latency are validated: they need its timings.
    """
    config = Config(
        budget=BUDGETS[limited](asked),
        objective="latency" if limited == "error" else "size",
        seed=SEED,
        refine=False,
        forms=forms,
        op_types=PLANNED_OPERATORS,
        validate=limited == "error",
    )
    output = place / f"{len(forms)}.onnx"
    begin = time.perf_counter()
    try:
        result = compress(case.path, config, feeds=case.calibration, output=output, force=True, cache=place / "cache")
    except UsageError:
        return None
    if result.after is None:
        return None
    before, after = (
        totals.site_parameters if limited == "parameters" else totals.macs or 0
        for totals in (result.before, result.after)
    )
    used = Counter(site.form for site in result.sites)
    return output, after / before, dict(used), time.perf_counter() - begin


def _speed(first: Session, second: Session, timed: Feeds, seconds: float) -> Speed:
    found = measure_latency(first, second, timed, seed=SEED, max_seconds=seconds)
    return Speed(found.speedup, found.speedup_low, found.speedup_high)


def _line(point: Point) -> str:
    ways = (
        f"{name} {way.error:.4f}, {way.speed.speedup:.2f}x, {way.seconds:.0f} s" if way else f"{name} out of reach"
        for name, way in point.ways.items()
    )
    return f"{budget_text(point.limited, point.asked)}: {'; '.join(ways)}"


def save(place: Path, result: Mapping[str, Any]) -> None:
    """One model's results in one step, those of the others kept, and the tables made from all of them."""
    place.parent.mkdir(parents=True, exist_ok=True)
    models = {**_read(place), result["model"]: result}
    data = {"schema": 1, "models": [models[name] for name in MODELS if name in models]}
    unfinished = place.with_name(f".{place.name}.unfinished")
    unfinished.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(place)
    place.with_suffix(".md").write_text(markdown(data), encoding="utf-8")


def _read(place: Path) -> dict[str, dict[str, Any]]:
    if not place.is_file():
        return {}
    return {model["model"]: model for model in json.loads(place.read_text(encoding="utf-8"))["models"]}


def _usable(saved: Mapping[str, Any], quick: bool) -> list[dict[str, Any]]:
    """The saved points that were judged by at least as many samples as are asked for."""
    return list(saved["points"]) if saved and (quick or not saved["quick"]) else []


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forms_planning", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="500 images, 6 pages, fewer words; short timing")
    parser.add_argument("--again", action="store_true", help="measure what is already saved anew")
    parser.add_argument("--models", type=_some_of(MODELS), default=MODELS, metavar=",".join(MODELS))
    parser.add_argument("--limited", type=_some_of(LIMITED), default=LIMITED, metavar=",".join(LIMITED))
    parser.add_argument("--shares", type=_numbers, default=SHARES, metavar="S,...")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of forms_planning.json and .md")
    arguments = parser.parse_args()
    arguments.seconds = 1.0 if arguments.quick else TIMED_SECONDS
    return arguments


def _some_of(known: tuple[str, ...]) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
        return names

    return parse


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


if __name__ == "__main__":
    main()
