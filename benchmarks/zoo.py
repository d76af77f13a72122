"""Real models on real tasks, before and after compression: ``python -m benchmarks.zoo``.

For each model and budget: the task's figures, parameters, file size, MACs and the paired latency, on samples that
calibration did not see. Models and data are fetched and exported on the way. Each result is saved when it is there, and
a run that was stopped goes on behind the last one; `--again` measures anew what is there already.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from benchmarks.saved_results import circumstances, is_saved, read, save
from benchmarks.zoo_cases import CASES, ZooCase
from benchmarks.zoo_report import markdown
from lowrank_onnx import CompressionResult, Config, KeepMacs, compress
from lowrank_onnx.evaluate import open_session
from models.packages import FetchError

RESULTS = Path(__file__).parent / "results"
SHARES = (0.8, 0.6, 0.5, 0.4)
SEED = 0
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True)
class Original:
    """One model as it came: the task's figures, and its size. `quick` says that only a few samples were taken."""

    model: str
    quick: bool
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
    """One model at one budget.

    Attributes
    ----------
    share : of the MACs that were to be kept; None of `macs` where no run was observed.
    status, message : the library's own; the figures below are None where it wrote no model.
    macs_kept : share of the MACs of the weights that can be factorized.
    error : relative L2 error of the outputs on calibration feeds that were held out.
    speedup, speedup_low, speedup_high : of one run, the median of interleaved pairs with its 95 % interval.
    milliseconds, milliseconds_before : medians of one run on one calibration feed.
    seconds : that the compression took.
    """

    model: str
    quick: bool
    share: float
    status: str
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
    seconds: float
    date: str
    machine: str
    versions: Mapping[str, str]


def main() -> int:
    """Run what was asked for; returns 1 if a model or its data could not be fetched."""
    arguments = _parse()
    failed = False
    for name in arguments.models:
        load = functools.partial(CASES[name], arguments.quick)
        try:
            run_model(load, name, arguments.shares, arguments.out, quick=arguments.quick, again=arguments.again)
        except FetchError as error:
            failed = True
            print(f"{name} is left out: {error}", file=sys.stderr)
        write_report(arguments.out)
    print((arguments.out / "zoo.md").read_text(encoding="utf-8"))
    return int(failed)


def run_model(
    load: Callable[[], ZooCase], name: str, shares: Sequence[float], out: Path, *, quick: bool, again: bool
) -> None:
    """Measure what isn't there yet of one model, and save each result."""
    places = {share: out / "zoo" / f"{name}-macs-{share:g}.json" for share in shares}
    original = out / "zoo" / f"{name}.json"
    missing = [share for share, place in places.items() if again or not is_saved(place, quick)]
    if not missing and is_saved(original, quick) and not again:
        return
    case = load()
    if again or not is_saved(original, quick):
        save(original, measure_original(case, quick=quick))
        print(f"{name}: {read(original)['metrics']}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for share in missing:
            point = measure_point(case, share, Path(scratch), quick=quick)
            save(places[share], point)
            print(f"{name} at {share:g}: {point.metrics or point.message}", flush=True)


def measure_original(case: ZooCase, *, quick: bool) -> Original:
    """The task's figures of the model as it is."""
    return Original(
        model=case.name,
        quick=quick,
        data=case.data,
        lower_is_better=case.lower_is_better,
        metrics=case.judge(open_session(case.path)),
        parameters=count_parameters(case.path),
        file_bytes=case.path.stat().st_size,
        **circumstances(),
    )


def measure_point(case: ZooCase, share: float, scratch: Path, *, quick: bool) -> Point:
    """Compress to a share of the MACs, and judge; what one budget learns of the model serves the next."""
    target = scratch / f"{case.name}-{share:g}.onnx"
    config = Config(budget=KeepMacs(share), seed=SEED)
    result = compress(case.path, config, feeds=case.calibration, output=target, cache=scratch / "cache")
    written = result.status == "written"
    metrics = case.judge(open_session(target)) if written else None
    parameters, file_bytes = (count_parameters(target), target.stat().st_size) if written else (None, None)
    target.unlink(missing_ok=True)
    latency = result.verdict.latency if result.verdict is not None else None
    return Point(
        model=case.name,
        quick=quick,
        share=share,
        status=result.status,
        message=result.message,
        metrics=metrics,
        parameters=parameters,
        file_bytes=file_bytes,
        macs_kept=_macs_kept(result),
        error=result.verdict.relative_error if result.verdict is not None else None,
        speedup=latency.speedup if latency is not None else None,
        speedup_low=latency.speedup_low if latency is not None else None,
        speedup_high=latency.speedup_high if latency is not None else None,
        milliseconds=latency.candidate.median_ms if latency is not None else None,
        milliseconds_before=latency.original.median_ms if latency is not None else None,
        seconds=sum(result.seconds.values()),
        **circumstances(),
    )


def count_parameters(path: Path) -> int:
    """Floating-point values that a model's main graph stores, as initializers or in Constant nodes."""
    graph = onnx.load(path).graph
    constants = (a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value")
    tensors = (*graph.initializer, *constants)
    return sum(math.prod(tensor.dims) for tensor in tensors if tensor.data_type in FLOATS)


def _macs_kept(result: CompressionResult) -> float | None:
    if result.after is None or result.after.macs is None or not result.before.macs:
        return None
    return result.after.macs / result.before.macs


def write_report(out: Path) -> None:
    """All that was saved, as Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    saved = [read(place) for place in sorted((out / "zoo").glob("*.json"))]
    fields = {field.name for field in dataclasses.fields(Point)}
    points = [result for result in saved if set(result) == fields]
    originals = {result["model"]: result for result in saved if "data" in result}
    (out / "zoo.md").write_text(markdown(originals, points), encoding="utf-8")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples, to see that everything runs")
    parser.add_argument("--again", action="store_true", help="measure what is saved already")
    parser.add_argument("--models", type=_names, default=tuple(CASES), metavar=",".join(CASES))
    parser.add_argument("--shares", type=_shares, default=SHARES, metavar=",".join(f"{share:g}" for share in SHARES))
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of zoo.md and zoo/*.json")
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    return _known(text.split(","), CASES)


def _known(names: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
    return tuple(names)


def _shares(text: str) -> tuple[float, ...]:
    shares = tuple(float(part) for part in text.split(","))
    if not all(0.0 < share <= 1.0 for share in shares):
        raise argparse.ArgumentTypeError(f"{text}: expected shares above 0 and at most 1, e.g. 0.8,0.6")
    return shares


if __name__ == "__main__":
    sys.exit(main())
