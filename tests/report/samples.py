"""Results with every kind of content, made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lowrank_onnx.config import Config, KeepParams
from lowrank_onnx.results import (
    CompressionResult,
    DemoRow,
    InspectedPlan,
    InspectedSite,
    InspectResult,
    Reached,
    SearchStep,
    SiteResult,
    Totals,
)
from lowrank_onnx.types import LatencyComparison, MetricComparison, OutputStatistics, Skipped, Timing, Verdict

REWRITTEN = SiteResult(
    name="blocks.0/mlp/fc1/MatMul",
    op_type="MatMul",
    weight="blocks.0.mlp.fc1.weight",
    dtype="float32",
    groups=1,
    in_features=768,
    out_features=3072,
    form="pair",
    rank=192,
    reason="",
    parameters_before=2_359_296,
    parameters_after=737_280,
    macs_before=464_781_312,
    macs_after=145_244_160,
    relative_error=0.0312,
    spectral_error=0.011,
    solver="rsi(q=4, p=10)",
    bytes_before=9_437_184,
    bytes_after=2_949_120,
    latency_before_ms=1.9,
    latency_after_ms=0.76,
)
GROUPED = replace(
    REWRITTEN,
    name="stem/Conv",
    op_type="Conv",
    weight="stem.weight",
    groups=2,
    in_features=27,
    out_features=64,
    form="conv_channel",
    rank=16,
    parameters_before=3456,
    parameters_after=2912,
    bytes_before=13_824,
    bytes_after=11_648,
    latency_before_ms=None,
    latency_after_ms=None,
)
DENSE = replace(
    REWRITTEN,
    name="head/Gemm",
    op_type="Gemm",
    weight="head.weight",
    in_features=768,
    out_features=10,
    form="dense",
    rank=None,
    reason="no rank makes it smaller",
    parameters_before=7680,
    parameters_after=7680,
    bytes_before=30_720,
    bytes_after=30_720,
    latency_before_ms=0.012,
    latency_after_ms=None,
    relative_error=None,
    spectral_error=None,
    solver="",
)
SKIPPED = (
    Skipped("attention/MatMul", "MatMul", "both inputs are activations"),
    Skipped("attention/MatMul_1", "MatMul", "both inputs are activations"),
    Skipped("depthwise/Conv", "Conv", "depthwise: one input channel a group", 864),
)
BEFORE = Totals(parameters=2_500_000, site_parameters=2_370_432, macs=466_000_000, file_bytes=10_012_345)
AFTER = Totals(parameters=880_000, site_parameters=747_872, macs=146_000_000, file_bytes=3_600_000)
OUTPUT = OutputStatistics(
    name="probabilities",
    dtype="float32",
    elements=5120,
    max_abs=0.01234,
    relative_l2=0.0312,
    sqnr_db=30.12,
    cosine=0.99951,
    top1_agreement=0.9922,
    problems=(),
)
LATENCY = LatencyComparison(
    original=Timing(3.1, 0.12, 80),
    candidate=Timing(2.2, 0.08, 80),
    speedup=1.42,
    speedup_low=1.38,
    speedup_high=1.47,
    confidence=0.95,
    pairs=40,
)
METRIC = MetricComparison(
    name="accuracy.py:correct",
    higher_is_better=True,
    original=0.946,
    candidate=0.945,
    samples=2000,
    lost=8,
    gained=6,
    candidate_bound=0.9358,
    drop_bound=0.0047,
    confidence=0.95,
)
VERDICT = Verdict(
    outputs=(OUTPUT,),
    latency=LATENCY,
    feeds="16 feeds (512 samples) from calib.npz",
    synthetic=False,
    samples=512,
    providers=("CPUExecutionProvider",),
    failures=(),
)
SYNTHETIC = replace(VERDICT, feeds="8 synthetic feeds (seed 0)", synthetic=True, samples=8)
FAILED = replace(
    VERDICT,
    latency=replace(LATENCY, speedup=0.8, speedup_low=0.78, speedup_high=0.83),
    failures=("not faster: 0.80x the speed of the original (95 % interval 0.78 to 0.83)",),
)


def compression(**changes: Any) -> CompressionResult:
    """A written result, with some fields changed."""
    result = CompressionResult(
        status="written",
        output="model.lowrank.onnx",
        input="model.onnx",
        config=Config(budget=KeepParams(0.4)),
        sites=(REWRITTEN, GROUPED, DENSE),
        skipped=SKIPPED,
        before=BEFORE,
        after=AFTER,
        verdict=VERDICT,
        search=(SearchStep(0.5, 0.02, True), SearchStep(0.25, 0.09, False)),
        message="wrote model.lowrank.onnx: 1.42x faster, 2.78x smaller",
        seconds={"load": 0.012, "factorize": 1.5},
        reached=(
            Reached("share of the parameters", 0.4, 0.316, 0.316),
            Reached("relative error of the outputs", None, 0.028, 0.0312),
        ),
        pass_seconds=0.06,
        versions={"lowrank-onnx": "0.1.0", "cupy": ""},
    )
    return replace(result, **changes)


def unchanged(reason: str) -> CompressionResult:
    """A result in which every site stayed dense for `reason`."""
    return compression(
        status="unchanged",
        reached=(),
        pass_seconds=None,
        output=None,
        after=None,
        verdict=None,
        search=(),
        sites=(replace(DENSE, reason=reason),),
        message="nothing was rewritten",
    )


INSPECTED = InspectResult(
    input="model.onnx",
    sites=(
        InspectedSite(
            name="blocks.0/mlp/fc1/MatMul",
            op_type="MatMul",
            weight="blocks.0.mlp.fc1.weight",
            dtype="float32",
            groups=1,
            in_features=768,
            out_features=3072,
            parameters=2_359_296,
            macs=464_781_312,
            break_even_rank=614,
            stable_rank=21.34,
            energy_ranks=((0.9, 301), (0.95, 402), (0.99, None)),
            budget_ranks=((0.8, None), (0.6, 368)),
        ),
    ),
    skipped=SKIPPED,
    totals=BEFORE,
    notes=("MACs are of one run on a synthetic feed",),
    plans=(
        InspectedPlan("--keep-macs", 0.8, 0, 2_370_432, 466_000_000, 0.0, 0.0),
        InspectedPlan("--keep-macs", 0.6, 1, 1_424_256, 279_000_000, 0.31, 0.66),
    ),
    message="something to gain: a sentence",
)

DEMO_ROW = DemoRow(
    model="fashion_vgg",
    images=2000,
    accuracy_before=0.9345,
    accuracy_after=0.933,
    batch=32,
    result=compression(),
)
