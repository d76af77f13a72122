"""Real models on real tasks, before and after compression, beside other work: ``python -m benchmarks.zoo``.

For each model and budget: the task's figures, parameters, file size, MACs and the paired latency, on samples that
calibration did not see, of this program and of the recipes of `benchmarks.peers`, on the same weights and feeds. Models
and data are fetched and exported on the way. Each result is saved when it is there, and a run that was stopped goes on
behind the last one; `--again` measures anew what is there already. `--full` takes all samples, and hours.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from benchmarks.narrow_models import FORMS_TO_QUANTIZE, quantize_dynamically
from benchmarks.peers import OURS_INT8, RECIPES, PeerBench
from benchmarks.saved_results import SavedResults, Size, circumstances
from benchmarks.zoo_agenda import AGENDAS, FULL, QUICK, Agenda
from benchmarks.zoo_cases import CASES, ZooCase
from benchmarks.zoo_report import OURS, markdown
from lowrank_onnx import CompressionResult, Config, KeepMacs, compress
from lowrank_onnx.evaluate import Session, measure_latency, open_session
from lowrank_onnx.evaluate.accumulate import OutputComparison
from lowrank_onnx.types import overall_error
from models.packages import FetchError

RESULTS = Path(__file__).parent / "results"
SEED = 0
TIMED_SECONDS = 5.0
"""For one pair of models; it ends sooner where the difference is plain."""

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True)
class Original:
    """One model as it came: the task's figures, and its size."""

    model: str
    size: Size
    data: str
    lower_is_better: bool
    metrics: Mapping[str, float]
    parameters: int
    file_bytes: int
    date: str
    machine: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Point:
    """One way to compress one model at one budget.

    Attributes
    ----------
    way, objective : "this program" with the objective that it was written for ("latency", its default, or "size" where
        that wrote nothing), or a peer, which has none.
    share : of the MACs that were to be kept.
    message : why nothing was written; the figures below are None then.
    macs_kept : share of the MACs of the weights that can be factorized.
    error : relative L2 error of the outputs on calibration feeds that were held out; of the raw values, logits too, so
        that it is the same measure for all ways.
    speedup, speedup_low, speedup_high : of one run, the median of interleaved pairs with its 95 % interval.
    milliseconds, milliseconds_before : medians of one run on one calibration feed.
    """

    model: str
    size: Size
    way: str
    objective: str
    share: float
    message: str
    metrics: Mapping[str, float] | None
    parameters: int | None
    file_bytes: int | None
    macs_kept: float | None
    error: float | None
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    milliseconds: float | None
    milliseconds_before: float | None
    date: str
    machine: str
    versions: Mapping[str, str]


def main() -> int:
    """Run what was asked for; returns 1 if a model or its data could not be fetched."""
    arguments = _parse()
    logging.disable(logging.WARNING)  # onnxruntime's quantizer advises what was done already
    failed = False
    for name in arguments.models:
        agenda = {"quick": QUICK, "default": AGENDAS[name], "full": FULL}[arguments.size]
        saved = SavedResults(arguments.out / "zoo.json")
        try:
            run_model(CASES[name], name, agenda, saved, size=arguments.size, again=arguments.again)
        except FetchError as error:
            failed = True
            print(f"{name} is left out: {error}", file=sys.stderr)
        write_report(arguments.out)
    print((arguments.out / "zoo.md").read_text(encoding="utf-8"))
    return int(failed)


def run_model(
    load: Callable[[Size], ZooCase], name: str, agenda: Agenda, saved: SavedResults, *, size: Size, again: bool
) -> None:
    """Measure what isn't there yet of one model, and save each result."""
    wanted = [name, *(f"{name}/{OURS}/{share:g}" for share in agenda.shares)]
    wanted += [f"{name}/{way}/{share:g}" for share, ways in agenda.others.items() for way in ways]
    missing = [key for key in wanted if again or not saved.has(key, size)]
    if not missing:
        return
    case = load(size)
    with tempfile.TemporaryDirectory() as scratch:
        runner = _Runner(case, Path(scratch), size)
        for key in missing:
            started = time.perf_counter()
            result = runner.measure(*key.split("/")[1:])
            saved.put(key, result, time.perf_counter() - started)
            text = result.metrics or (result.message if isinstance(result, Point) else "")
            print(f"{key}: {text} ({saved[key]['seconds_taken']:.0f} s)", flush=True)


class _Runner:
    """One model with what was made of it so far."""

    def __init__(self, case: ZooCase, scratch: Path, size: Size) -> None:
        self._case, self._scratch, self._size = case, scratch, size
        self._bench: PeerBench | None = None

    @property
    def bench(self) -> PeerBench:
        if self._bench is None:
            self._bench = PeerBench(self._case.path, self._case.calibration, self._scratch, seed=SEED)
        return self._bench

    def measure(self, way: str = "", share: str = "") -> Original | Point:
        if not way:
            return self.original()
        if way == OURS:
            return self.ours(float(share))
        return self.ours_in_int8(float(share)) if way == OURS_INT8 else self.peer(way, float(share))

    def original(self) -> Original:
        """The task's figures of the model as it is."""
        case = self._case
        return Original(
            model=case.name,
            size=self._size,
            data=case.data,
            lower_is_better=case.lower_is_better,
            metrics=case.judge(open_session(case.path)),
            parameters=count_parameters(case.path),
            file_bytes=case.path.stat().st_size,
            **circumstances(),
        )

    def ours(self, share: float) -> Point:
        """Compress to a share of the MACs as by default, or for size alone where nothing faster came of that."""
        result = self._compress(share, Config(budget=KeepMacs(share), seed=SEED))
        if result.status == "rejected":
            result = self._compress(share, Config(budget=KeepMacs(share), seed=SEED, objective="size"))
        target = self._target(share)
        if result.status != "written":
            return self._point(OURS, share, None, None, message=result.message)
        return self._point(OURS, share, target, _macs_kept(result), objective=result.config.objective)

    def ours_in_int8(self, share: float) -> Point:
        """Compressed without the pivoted form, whose large coefficients 8 bits can't hold, then quantized."""
        config = Config(budget=KeepMacs(share), seed=SEED, objective="size", forms=FORMS_TO_QUANTIZE)
        made = self._compress(share, config)
        if made.status != "written":
            return self._point(OURS_INT8, share, None, None, message=made.message)
        target = self._scratch / "int8.onnx"
        quantize_dynamically(self._target(share), target, per_channel=True)
        return self._point(OURS_INT8, share, target, None)

    def peer(self, name: str, share: float) -> Point:
        """One recipe."""
        recipe = next(recipe for recipe in RECIPES if recipe.name == name)
        target = self._scratch / "peer.onnx"
        kept = recipe.write(self.bench, "macs", share, target)
        return self._point(name, share, target, kept)

    def _target(self, share: float) -> Path:
        return self._scratch / f"{share:g}.onnx"

    def _compress(self, share: float, config: Config) -> CompressionResult:
        feeds, target, cache = self._case.calibration, self._target(share), self._scratch / "cache"
        declared = replace(config, logits=self._case.logits)
        return compress(self._case.path, declared, feeds=feeds, output=target, cache=cache, force=True)

    def _point(
        self,
        way: str,
        share: float,
        target: Path | None,
        kept: float | None,
        *,
        objective: str = "",
        message: str = "",
    ) -> Point:
        head = (self._case.name, self._size, way, objective, share, message)
        if target is None:
            return Point(*head, *[None] * 10, **circumstances())  # type: ignore[arg-type]
        session = open_session(target)
        latency = measure_latency(
            self.bench.original, session, self.bench.observed.held_out, seed=SEED, max_seconds=TIMED_SECONDS
        )
        return Point(
            *head,
            metrics=self._case.judge(session),
            parameters=count_parameters(target),
            file_bytes=target.stat().st_size,
            macs_kept=kept,
            error=self._error(session),
            speedup=latency.speedup,
            speedup_low=latency.speedup_low,
            speedup_high=latency.speedup_high,
            milliseconds=latency.candidate.median_ms,
            milliseconds_before=latency.original.median_ms,
            **circumstances(),
        )

    def _error(self, session: Session) -> float:
        comparison = OutputComparison(self.bench.original)
        for feed in self.bench.observed.held_out:
            comparison.add(self.bench.original.run(feed), session.run(feed))
        return overall_error(comparison.statistics())


def count_parameters(path: Path) -> int:
    """Values that a model's main graph stores in tensors of floats or of 8 bits, initializers or Constant nodes."""
    graph = onnx.load(path).graph
    constants = (a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value")
    tensors = (*graph.initializer, *constants)
    counted = (*FLOATS, onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    return sum(math.prod(tensor.dims) for tensor in tensors if tensor.data_type in counted)


def _macs_kept(result: CompressionResult) -> float | None:
    if result.after is None or result.after.macs is None or not result.before.macs:
        return None
    return result.after.macs / result.before.macs


def write_report(out: Path) -> None:
    """All that was saved, as Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    saved = SavedResults(out / "zoo.json").part("")
    originals = {result["model"]: result for result in saved if "data" in result}
    points = [result for result in saved if "way" in result]
    (out / "zoo.md").write_text(markdown(originals, points), encoding="utf-8")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_const", dest="size", const="quick", help="few samples, one budget")
    sizes.add_argument("--full", action="store_const", dest="size", const="full", help="all samples and budgets")
    parser.add_argument("--again", action="store_true", help="measure what is saved already")
    parser.add_argument("--models", type=_names, default=tuple(AGENDAS), metavar=",".join(AGENDAS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of zoo.json and zoo.md")
    parser.set_defaults(size="default")
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    return _known(text.split(","), CASES)


def _known(names: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
    return tuple(names)


if __name__ == "__main__":
    sys.exit(main())
