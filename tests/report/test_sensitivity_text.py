from __future__ import annotations

from dataclasses import replace

from lowrank_onnx.report.compress_text import compress_report
from lowrank_onnx.report.sensitivity_text import LISTED_SITES, exclusion_line, sensitivity_block
from tests.report.rendering import rendered
from tests.report.samples import DENSE, REWRITTEN, compression

PROBED = [
    replace(REWRITTEN, name=f"site{index}", importance=float(index), probes=((96, 0.01 * index), (24, 0.5)))
    for index in range(LISTED_SITES + 2)
]


def test_the_most_sensitive_sites_come_first() -> None:
    block = sensitivity_block([*PROBED, DENSE], verbose=False)
    assert block is not None
    lines = rendered(block).splitlines()
    assert lines[0] == "sensitivity: 7 sites, each compressed alone"
    assert ["site6", "2.36", "M", "96", "0.0600", "6.00"] in [line.split() for line in lines]
    assert [line.split()[0] for line in lines if line.startswith("site") and line[4].isdigit()] == [
        f"site{index}" for index in (6, 5, 4, 3, 2)
    ]
    assert "... and 2 less sensitive sites: --verbose lists all" in lines
    everything = sensitivity_block(PROBED, verbose=True)
    assert everything is not None
    assert "site0" in rendered(everything)


def test_what_was_not_measured_has_no_table() -> None:
    assert sensitivity_block([REWRITTEN, DENSE], verbose=True) is None
    assert "each compressed alone" not in rendered(compress_report(compression()))


def test_the_flag_that_excludes_a_site_can_be_copied() -> None:
    """Also where the name holds what a shell or a glob would obey."""
    dear = replace(PROBED[0], name="a b[0]*", exclude="it costs too much")
    assert exclusion_line(dear) == "better left out: --exclude 'a b[[]0][*]' (it costs too much)"
    content = rendered(compress_report(compression(sites=(dear, *PROBED))), width=200)
    assert exclusion_line(dear) in content.splitlines()
    assert content.count("better left out") == 1
