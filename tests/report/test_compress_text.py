from __future__ import annotations

from dataclasses import replace

import pytest

from lowrank_onnx.config import Config, KeepParams, MaxError, Method
from lowrank_onnx.report.compress_text import compress_report, options_line
from lowrank_onnx.report.tables import LISTED_ROWS
from lowrank_onnx.results import PlanTrial, SearchStep
from tests.report.rendering import rendered, widest
from tests.report.samples import DENSE, FAILED, REWRITTEN, SKIPPED, SYNTHETIC, compression, unchanged

WRITTEN = """\
model.onnx: --keep-params 0.4, --method auto, --objective latency, --seed 0

factorized: 2 sites
site                     form          in x out  rank  weights   kept   error
─────────────────────────────────────────────────────────────────────────────
blocks.0/mlp/fc1/MatMul  pair        768 x 3072   192   2.36 M  0.312  0.0312
stem/Conv                channel  2 x (27 x 64)    16   3.46 k  0.843  0.0312
error: relative, of the weight.

left dense: 1 site
  1 x no rank makes it smaller (7,680 weights)
      head/Gemm

skipped: 3 nodes
  1 x depthwise: one input channel a group (864 weights)
      depthwise/Conv (Conv)
  2 x both inputs are activations
      attention/MatMul (MatMul), attention/MatMul_1 (MatMul)

totals
                                      before        after   kept
────────────────────────────────────────────────────────────────
weights of eligible sites          2,370,432      747,872  0.316
parameters of the whole model      2,500,000      880,000  0.352
MACs of eligible sites, one run  466,000,000  146,000,000  0.313
file                                 10.0 MB      3.60 MB  0.360

outputs against the original, on 16 feeds (512 samples) from calib.npz
output         relative L2  max abs  SQNR dB  cosine   top-1
────────────────────────────────────────────────────────────
probabilities       0.0312   0.0123     30.1  0.9995  0.9922
latency: 1.42x faster (95 % interval 1.38-1.47), 3.10 ms -> 2.20 ms a run (IQR
0.120 and 0.0800 ms), 40 pairs, CPUExecutionProvider
validation passed

asked and reached
                                asked  predicted  reached
─────────────────────────────────────────────────────────
share of the parameters        0.4000      0.316    0.316
relative error of the outputs       -     0.0280   0.0312

time: factorize 1.50 s (25); in all 1.51 s (25) (in brackets: passes of the
original over all feeds)

wrote model.lowrank.onnx: 1.42x faster, 2.78x smaller
"""


def test_a_written_result() -> None:
    assert rendered(compress_report(compression(search=()))) == WRITTEN


def test_the_search_is_shown() -> None:
    lines = [line.split() for line in rendered(compress_report(compression())).splitlines()]
    assert ["1", "0.5000", "0.0200", "yes"] in lines
    assert ["2", "0.2500", "0.0900", "no"] in lines


def test_a_search_for_a_drop_shows_what_was_counted_and_what_was_held_against_the_limit() -> None:
    steps = SearchStep(0.5, 0.02, True, drop=0.001, judged_drop=0.008), SearchStep(0.3, 0.1, False, None, 0.02, 0.031)
    lines = [line.split() for line in rendered(compress_report(compression(search=steps))).splitlines()]
    assert ["attempt", "share", "kept", "output", "error", "drop", "at", "most", "accepted"] in lines
    assert ["1", "0.5000", "0.0200", "0.00100", "0.00800", "yes"] in lines
    assert ["2", "0.3000", "0.100", "0.0200", "0.0310", "no"] in lines
    numbers = compression(search=(SearchStep(0.5, 0.02, True, drop=0.001, judged_drop=0.001),))
    assert ["1", "0.5000", "0.0200", "0.00100", "yes"] in [
        line.split() for line in rendered(compress_report(numbers)).splitlines()
    ]


def test_the_trust_of_the_last_plan_is_shown_beside_the_others() -> None:
    trials = (
        PlanTrial(0.7, 1.0, 0.5, chosen=True),
        PlanTrial(0.6, 1.0, 0.04, chosen=False),
        PlanTrial(0.6, 0.75, 0.026, chosen=True),
        PlanTrial(0.6, 0.5, 0.03, chosen=False),
    )
    lines = rendered(compress_report(compression(trials=trials)), width=200).splitlines()
    text = "plan: measured effects trusted to 0.75 (error 0.0260 on calibration feeds; to 1: 0.0400, 0.5: 0.0300)"
    assert text in lines
    plain = tuple(replace(trial, plain=trial.chosen) for trial in trials)
    assert "plan: measured effects trusted to 0.75 with plain forms (error 0.0260" in rendered(
        compress_report(compression(trials=plain)), width=200
    )
    few = rendered(compress_report(compression(trials=(PlanTrial(0.6, 0.25, None, chosen=True),))), width=200)
    assert "plan: measured effects trusted to 0.25, for want of samples to choose by" in few.splitlines()


def test_a_rejected_result_says_why() -> None:
    lines = rendered(compress_report(compression(status="rejected", output=None, verdict=FAILED))).splitlines()
    assert "failed: not faster: 0.80x the speed of the original (95 % interval 0.78 to 0.83)" in lines
    assert "validation passed" not in lines


def test_without_validation_the_report_says_so() -> None:
    config = Config(budget=KeepParams(0.4), validate=False)
    content = rendered(compress_report(compression(verdict=None, config=config)))
    assert "not validated (--no-validate): the outputs and the latency are unknown" in content.splitlines()
    assert "not validated" not in WRITTEN


def test_synthetic_feeds_are_called_synthetic_at_every_figure_from_them() -> None:
    lines = rendered(compress_report(compression(verdict=SYNTHETIC, synthetic=True)), width=200).splitlines()
    assert any(line.startswith("MACs of eligible sites, one run (synthetic feed)") for line in lines)
    assert "outputs against the original, on 8 synthetic feeds (seed 0)" in lines
    assert any(line.startswith("latency: ") and line.endswith(", synthetic feeds") for line in lines)
    assert "synthetic" not in WRITTEN


def test_unchanged_has_neither_proof_nor_table() -> None:
    content = rendered(compress_report(unchanged("no rank makes it smaller")))
    assert "factorized:" not in content
    assert "outputs against" not in content
    assert content.splitlines()[-1] == "nothing was rewritten"


def test_verbose_lists_every_node_and_versions() -> None:
    lines = rendered(compress_report(compression(), verbose=True)).splitlines()
    assert "      attention/MatMul_1 (MatMul)" in lines
    assert "versions: lowrank-onnx 0.1.0" not in rendered(compress_report(compression()))
    assert "versions: lowrank-onnx 0.1.0" in lines  # what isn't installed isn't named


def test_where_no_pass_was_timed_the_time_is_in_seconds_alone() -> None:
    lines = rendered(compress_report(compression(pass_seconds=None), verbose=True)).splitlines()
    assert "time: load 0.0120 s, factorize 1.50 s; in all 1.51 s" in lines


def test_a_long_table_is_cut_to_the_largest_sites_in_their_order() -> None:
    sites = tuple(replace(REWRITTEN, name=f"site{index:03}", parameters_before=1000 + index) for index in range(100))
    result = compression(sites=sites)
    lines = rendered(compress_report(result)).splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("site0")]
    assert shown == [f"site{index:03}" for index in range(100 - LISTED_ROWS, 100)]
    assert "... and 60 smaller sites: --verbose lists all" in lines
    everything = rendered(compress_report(result, verbose=True)).splitlines()
    assert sum(line.startswith("site0") for line in everything) == 100


def test_many_nodes_of_one_reason_are_counted_not_listed() -> None:
    skipped = tuple(replace(SKIPPED[0], name=f"node{index}") for index in range(1234))
    lines = rendered(compress_report(compression(skipped=skipped)), width=200).splitlines()
    assert "  1,234 x both inputs are activations" in lines
    assert "      node0 (MatMul), node1 (MatMul), node2 (MatMul), ... and 1,231 more (--verbose)" in lines


@pytest.mark.parametrize("verbose", [False, True])
def test_hostile_and_long_names_stay_within_80_columns_and_are_shown_whole(verbose: bool) -> None:
    hostile = "[red]not markup[/red]\x1b[2J\x07\u202e:smile:"
    long = "/".join(f"layer{index}" for index in range(40))
    result = compression(
        input=hostile,
        sites=(
            replace(REWRITTEN, name=hostile),
            replace(REWRITTEN, name=long),
            replace(DENSE, name=hostile, reason=long),
        ),
        skipped=(replace(SKIPPED[0], name=hostile, reason=hostile),),
        message=hostile,
    )
    content = rendered(compress_report(result, verbose=verbose))
    assert widest(content) <= 80
    assert all(line.isprintable() for line in content.splitlines())
    flat = "".join(content.split())
    assert r"[red]notmarkup[/red]\x1b[2J\x07\u202e:smile:" in flat
    names = "".join(line[:22].split()[0] for line in content.splitlines() if line[:5].strip() and "layer" in line[:24])
    assert "layer39" in names or "layer39" in flat


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        ("auto", "--method auto"),
        ("rsi", "--method rsi (q=4, p=10)"),
        ("rsvd", "--method rsvd (p=10)"),
        ("svd", "--method svd"),
    ],
)
def test_the_options_that_matter(method: Method, shown: str) -> None:
    line = options_line(Config(budget=MaxError(0.05), method=method, objective="size", seed=7))
    assert line == f"--max-error 0.05, {shown}, --objective size, --seed 7"


def test_what_the_feeds_taught_is_shown_and_explained() -> None:
    learnt = replace(
        REWRITTEN, input_error=0.004, importance=2.0, predicted_error=0.01, note="give 4 times as many samples"
    )
    out = rendered(compress_report(compression(sites=(learnt, replace(REWRITTEN, name="other")))))
    lines = out.splitlines()
    header = next(line for line in lines if line.split()[:1] == ["site"])
    row = next(line for line in lines if "0.00400" in line)
    assert header.split()[-2:] == ["error", "harm"]
    assert row.split()[-2:] == ["0.00400", "0.0100"]
    legend = " ".join(out.split())
    assert "where it could be whitened relative, of what the site computes on the feeds" in legend
    assert "harm: relative error of the outputs expected of this site alone" in legend
    assert "calibration notes: 1 site" in out
    assert "give 4 times as many samples" in out
