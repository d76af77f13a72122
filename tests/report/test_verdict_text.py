from __future__ import annotations

import math
from dataclasses import replace

from lowrank_onnx.report.verdict_text import feeds_phrase, latency_line, speed_phrase, validate_report
from tests.report.rendering import rendered
from tests.report.samples import FAILED, LATENCY, OUTPUT, SYNTHETIC, VERDICT


def test_the_latency_line() -> None:
    assert latency_line(LATENCY, VERDICT) == (
        "latency: 1.42x faster (95 % interval 1.38-1.47), 3.10 ms -> 2.20 ms a run "
        "(IQR 0.120 and 0.0800 ms), 40 pairs, CPUExecutionProvider"
    )
    assert latency_line(LATENCY, SYNTHETIC).endswith(", CPUExecutionProvider, synthetic feeds")


def test_faster_is_only_said_where_the_whole_interval_is() -> None:
    assert speed_phrase(LATENCY) == "1.42x faster"
    assert speed_phrase(replace(LATENCY, speedup_low=0.99)) == "1.42x, no measurable difference"
    assert speed_phrase(replace(LATENCY, speedup=0.8, speedup_low=0.7, speedup_high=0.9)) == (
        "0.80x the speed, slower than the original"
    )


def test_feeds() -> None:
    assert feeds_phrase(VERDICT) == "16 feeds (512 samples) from calib.npz"
    assert feeds_phrase(SYNTHETIC) == "8 synthetic feeds (seed 0)"
    assert feeds_phrase(replace(SYNTHETIC, feeds="made up")) == "synthetic feeds: made up"


def test_a_failed_comparison() -> None:
    lines = rendered(validate_report("a.onnx", "b.onnx", FAILED)).splitlines()
    assert lines[0] == "b.onnx against a.onnx"
    assert lines[-1] == "failed: not faster: 0.80x the speed of the original (95 % interval 0.78 to 0.83)"
    assert "validation passed" not in lines


def test_nothing_compared_is_said_and_is_no_pass() -> None:
    lines = rendered(validate_report("a.onnx", "b.onnx", replace(VERDICT, outputs=(), latency=None))).splitlines()
    assert "nothing was compared" in lines
    assert "validation passed" not in lines


def test_equal_outputs_and_outputs_without_classes() -> None:
    output = replace(OUTPUT, sqnr_db=math.inf, relative_l2=0.0, max_abs=0.0, cosine=1.0, top1_agreement=None)
    lines = rendered(validate_report("a.onnx", "b.onnx", replace(VERDICT, outputs=(output,)))).splitlines()
    assert ["probabilities", "0", "0", "infinity", "1.0000", "-"] in [line.split() for line in lines]


def test_not_a_number_is_shown_as_such() -> None:
    output = replace(OUTPUT, sqnr_db=math.nan, relative_l2=math.nan, max_abs=math.nan, cosine=math.nan)
    lines = rendered(validate_report("a.onnx", "b.onnx", replace(VERDICT, outputs=(output,)))).splitlines()
    assert ["probabilities", "NaN", "NaN", "NaN", "NaN", "0.9922"] in [line.split() for line in lines]
