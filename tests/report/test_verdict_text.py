from __future__ import annotations

import math
from dataclasses import replace

from lowrank_onnx.report.verdict_text import feeds_phrase, latency_line, speed_phrase, validate_report
from lowrank_onnx.types import MetricComparison, OutputStatistics, ProviderNodes
from tests.report.rendering import rendered
from tests.report.samples import FAILED, LATENCY, METRIC, OUTPUT, SYNTHETIC, VERDICT


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


def test_notes_stand_under_the_figures() -> None:
    lines = rendered(validate_report("a.onnx", "b.onnx", replace(VERDICT, notes=("one at a time",)))).splitlines()
    assert lines[-2:] == ["note: one at a time", "validation passed"]


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


def test_answers_have_their_share_alone_and_it_is_said_what_it_counts_for() -> None:
    label = OutputStatistics("label", "int64", 512, None, None, None, None, 0.99, (), top1_rows=512, top1_bound=0.98)
    content = rendered(validate_report("a.onnx", "b.onnx", replace(VERDICT, outputs=(OUTPUT, label))), width=200)
    lines = content.splitlines()
    assert ["label", "-", "-", "-", "-", "0.9900"] in [line.split() for line in lines]
    assert (
        "answers, not numbers: label. top-1 is the share that is equal; they don't count in the error; --min-top1 is a "
        "gate for them"
    ) in lines
    assert any(line.startswith("answers of label: the same for at least 0.9800 of data") for line in lines)
    alone = rendered(validate_report("a.onnx", "b.onnx", replace(VERDICT, outputs=(label,))), width=200)
    assert "so the share of them that changed counts as the error" in alone
    assert "answers, not numbers" not in rendered(validate_report("a.onnx", "b.onnx", VERDICT))


def report(output: OutputStatistics) -> list[str]:
    return rendered(validate_report("a.onnx", "b.onnx", replace(VERDICT, outputs=(output,))), width=200).splitlines()


def test_logits_are_called_that_beside_their_name() -> None:
    lines = report(replace(OUTPUT, logits=True, common_level=0.996))
    assert any(line.startswith("probabilities (as logits) ") for line in lines)
    assert not any("--logits" in line or "common to each row" in line for line in lines)
    assert not any("as logits" in line for line in report(OUTPUT))


def test_a_level_common_to_each_row_is_told_where_it_is_nearly_all() -> None:
    lines = report(replace(OUTPUT, name="my scores", common_level=0.9961))
    assert (
        "99.6 % of the energy of my scores is a level common to each row: if only a softmax reads it, "
        "--logits 'my scores' compares what counts"
    ) in lines
    for share in (None, 0.0, 0.9):
        assert not any("--logits" in line for line in report(replace(OUTPUT, common_level=share)))


def test_not_a_number_is_shown_as_such() -> None:
    output = replace(OUTPUT, sqnr_db=math.nan, relative_l2=math.nan, max_abs=math.nan, cosine=math.nan)
    lines = rendered(validate_report("a.onnx", "b.onnx", replace(VERDICT, outputs=(output,)))).splitlines()
    assert ["probabilities", "NaN", "NaN", "NaN", "NaN", "0.9922"] in [line.split() for line in lines]


def test_a_bound_of_the_top_class_is_told_of_data_like_the_feeds() -> None:
    output = replace(OUTPUT, top1_rows=512, top1_bound=0.9824)
    content = rendered(validate_report("a.onnx", "b.onnx", replace(VERDICT, outputs=(output,))), width=200)
    assert (
        "top-1 of probabilities: the same for at least 0.9824 of data drawn like these 512 samples "
        "(95 % confidence, Clopper-Pearson)"
    ) in content.splitlines()
    assert "Clopper" not in rendered(validate_report("a.onnx", "b.onnx", VERDICT))


def test_a_metric_of_samples_tells_what_they_prove() -> None:
    lines = rendered(validate_report("a.onnx", "b.onnx", replace(VERDICT, metric=METRIC)), width=200).splitlines()
    assert ("metric accuracy.py:correct: 0.9460 -> 0.9450, drop 0.00100: of 2,000 samples 8 lost and 6 gained") in lines
    assert (
        "for data drawn like them: drop at most 0.00470, metric at least 0.9358 (95 % confidence each; exact paired "
        "bound, Clopper-Pearson)"
    ) in lines


def test_a_metric_that_is_a_number_proves_nothing_more() -> None:
    metric = MetricComparison("loss.py:loss", higher_is_better=False, original=0.2, candidate=0.25)
    lines = rendered(validate_report("a.onnx", "b.onnx", replace(VERDICT, metric=metric)), width=200).splitlines()
    assert (
        "metric loss.py:loss (lower is better): 0.2000 -> 0.2500, drop 0.0500; a plain number, so nothing is known of "
        "its sampling error"
    ) in lines


def test_what_ran_where() -> None:
    nodes = (ProviderNodes("CUDAExecutionProvider", 61, 1), ProviderNodes("CPUExecutionProvider", 0, 1))
    report = " ".join(rendered(validate_report("a", "b", replace(VERDICT, nodes=nodes))).split())
    assert "ran on: CUDAExecutionProvider 61 -> 1 node, CPUExecutionProvider 0 -> 1 node" in report
    assert "ran on" not in rendered(validate_report("a", "b", VERDICT))
