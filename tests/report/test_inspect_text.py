from __future__ import annotations

from dataclasses import replace

from lowrank_onnx.report.inspect_text import inspect_report
from tests.report.rendering import rendered, widest
from tests.report.samples import INSPECTED

REPORT = """\
model.onnx: 1 eligible site, 3 skipped

eligible sites
site                   op        in x out   MACs  even  stable  90 %  @0.8  @0.6
────────────────────────────────────────────────────────────────────────────────
blocks.0/mlp/fc1/MatM  MatMul  768 x 3072  465 M   614    21.3   301     -   368
ul
even: the largest rank that stores fewer weights. stable: ||W||_F^2 / ||W||_2^2,
low means compressible. 90 %: the rank that keeps that share of ||W||_F^2 (> :
beyond what was computed).

skipped: 3 nodes
  1 x depthwise: one input channel a group (864 weights)
      depthwise/Conv (Conv)
  2 x both inputs are activations
      attention/MatMul (MatMul), attention/MatMul_1 (MatMul)

what budgets would take, by the spectra alone
budget           rewritten  weights kept  MACs kept  error  of noise
────────────────────────────────────────────────────────────────────
--keep-macs 0.8          0         1.000      1.000      -         -
--keep-macs 0.6          1         0.601      0.599  0.310     0.660
@0.8: the rank at that budget (- : it stays dense). error: root mean square over
the rewritten weights of ||W - W_r|| / ||W||; of noise: what random matrices
would lose at these ranks. The nearer the two, the less there is to gain. Real
feeds (sweep --calib) weigh what the outputs notice, and other forms lose less.

totals
                                       value
────────────────────────────────────────────
weights of eligible sites          2,370,432
parameters of the whole model      2,500,000
MACs of eligible sites, one run  466,000,000
file                                 10.0 MB

note: MACs are of one run on a synthetic feed

something to gain: a sentence
"""


def test_the_report() -> None:
    assert rendered(inspect_report(INSPECTED)) == REPORT


def test_a_model_without_sites() -> None:
    lines = rendered(inspect_report(replace(INSPECTED, sites=(), notes=()))).splitlines()
    assert lines[0] == "model.onnx: 0 eligible sites, 3 skipped"
    assert "eligible sites" not in lines


def test_a_long_list_is_cut_unless_verbose() -> None:
    site = INSPECTED.sites[0]
    sites = tuple(replace(site, name=f"s{index}", parameters=index + 1, macs=None) for index in range(50))
    result = replace(INSPECTED, sites=sites)
    assert "... and 10 smaller sites: --verbose lists all" in rendered(inspect_report(result)).splitlines()
    verbose = rendered(inspect_report(result, verbose=True))
    assert "--verbose" not in verbose
    assert all(f"\ns{index} " in verbose for index in range(50))
    assert widest(verbose) <= 80
