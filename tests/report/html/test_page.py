"""The page stands alone, says what the result says, and never obeys a name from a model."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lowrank_onnx.errors import OutputError
from lowrank_onnx.report.html import compress_page, sweep_page, write_page
from lowrank_onnx.results import (
    CompressionResult,
    PlanTrial,
    RefinedWeight,
    Refinement,
    SearchStep,
    SweepPoint,
    SweepResult,
)
from lowrank_onnx.types import ProviderNodes, Skipped
from tests.report.samples import (
    DENSE,
    FAILED,
    GROUPED,
    METRIC,
    OUTPUT,
    REWRITTEN,
    SYNTHETIC,
    VERDICT,
    compression,
    unchanged,
)

CURVE = ((0, 1.0), (64, 0.4), (192, 0.03))
REFINEMENT = Refinement(
    96,
    24,
    0.0527,
    0.0361,
    (
        RefinedWeight("fc1.weight", True, "", "sum", 0.03, 0.21, 0.154, 4096),
        RefinedWeight("stem.weight", False, "its inputs are the original's", "output", None, None, None, 0),
    ),
)
HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}$x^2$\x1b[2J\u202e"


def _full() -> CompressionResult:
    """A result with something for every section."""
    site = replace(REWRITTEN, error_curve=CURVE, importance=0.4, predicted_error=0.01, input_error=0.02)
    return compression(
        sites=(site, replace(GROUPED, error_curve=CURVE), replace(DENSE, error_curve=CURVE)),
        trials=(
            PlanTrial(0.4, 0.0, 0.034, False),
            PlanTrial(0.4, 0.5, 0.0288, True),
            PlanTrial(0.4, 0.5, 0.031, False, True),
        ),
        refinement=REFINEMENT,
    )


class _Parser(HTMLParser):
    """Collects elements and text; unbalanced elements are an error."""

    _VOID = frozenset(("meta", "link", "br", "wbr"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def _parse(page: str) -> _Parser:
    parser = _Parser()
    parser.feed(page.replace("<wbr>", ""))
    parser.close()
    assert parser.open == []
    return parser


def _ids(parser: _Parser) -> list[str]:
    return [value for _, attributes in parser.elements if (value := attributes.get("id"))]


def test_every_section_is_there_with_its_figure() -> None:
    parser = _parse(compress_page(_full()))
    assert [attributes["id"] for tag, attributes in parser.elements if tag == "section"] == [
        "search",
        "outputs",
        "reached",
        "sizes",
        "milliseconds",
        "spectra",
        "sensitivity",
        "layers",
        "refinement",
        "plan",
        "left-alone",
        "reproduce",
    ]
    figures = [attributes for tag, attributes in parser.elements if tag == "figure"]
    assert len(figures) == sum(tag == "svg" for tag, _ in parser.elements) == 5
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in figures)


def test_the_verdict_comes_first_in_words_and_figures() -> None:
    text = _parse(compress_page(_full())).text
    assert text.index("wrote model.lowrank.onnx: 1.42x faster, 2.78x smaller") < text.index("The search")
    for shown in (
        "2.78x smaller",
        "1.42x faster",
        "0.0312",
        "same first answer in 99.22 % of cases",
        "3.19x less",
    ):
        assert shown in text


def test_logits_and_what_may_be_some() -> None:
    for changes, shown, hidden in (
        ({"logits": True, "common_level": 0.996}, "probabilities (as logits)", "--logits probabilities"),
        ({"common_level": 0.996}, "if only a softmax reads it, --logits probabilities compares", "(as logits)"),
    ):
        verdict = replace(VERDICT, outputs=(replace(OUTPUT, **changes),))  # type: ignore[arg-type]
        text = _parse(compress_page(compression(verdict=verdict))).text
        assert shown in text
        assert hidden not in text


def test_nothing_is_fetched_and_nothing_runs() -> None:
    page = compress_page(_full())
    parser = _parse(page)
    assert "script" not in {tag for tag, _ in parser.elements}
    addresses = [
        value
        for _, attributes in parser.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "data")
    ]
    assert all(value is not None and value.startswith(("#", "data:,")) for value in addresses)
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    policies = [a["content"] for tag, a in parser.elements if tag == "meta" and "http-equiv" in a]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_identifiers_are_unique_and_references_lead_somewhere() -> None:
    parser = _parse(compress_page(_full()))
    counted = Counter(_ids(parser))
    assert [name for name, times in counted.items() if times > 1] == []
    used = {
        value[1:]
        for _, attributes in parser.elements
        for name in ("href", "xlink:href")
        if (value := attributes.get(name)) and value.startswith("#")
    }
    assert used <= set(counted)


def test_names_from_the_model_are_text() -> None:
    sites = tuple(replace(site, name=HOSTILE, weight=HOSTILE) for site in _full().sites)
    verdict = replace(VERDICT, outputs=(replace(OUTPUT, name=HOSTILE),), feeds=HOSTILE)
    hostile_weight = replace(REFINEMENT.weights[1], weight=HOSTILE, reason=HOSTILE)
    hostile = replace(
        _full(),
        sites=sites,
        input=HOSTILE,
        message=HOSTILE,
        notes=(HOSTILE,),
        skipped=(Skipped(HOSTILE, "MatMul", HOSTILE),),
        verdict=verdict,
        refinement=replace(REFINEMENT, note=HOSTILE, weights=(hostile_weight,)),
    )
    page = compress_page(hostile, ("compress", HOSTILE))
    parser = _parse(page)
    assert "script" not in {tag for tag, _ in parser.elements}
    assert "alert(1)</script>" not in page
    assert "\x1b" not in page
    assert "\u202e" not in parser.text
    assert "{{ 7*7 }}" in parser.text
    assert "中文" in _parse(compress_page(replace(_full(), sites=(replace(sites[0], name="中文"),)))).text


def test_the_same_result_gives_the_same_page() -> None:
    assert compress_page(_full()) == compress_page(_full())


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (compression(verdict=SYNTHETIC, synthetic=True), "The feeds are synthetic"),
        (compression(verdict=None), "Not validated: outputs and latency were not compared."),
        (compression(verdict=FAILED, status="rejected"), "Failed: not faster: 0.80x the speed of the original"),
        (compression(verdict=replace(VERDICT, outputs=(), latency=None), status="rejected"), "rejected"),
        (unchanged("no rank makes it smaller"), "no rank makes it smaller"),
        (compression(sites=(), skipped=(), search=(), after=None, verdict=None), "To reproduce it"),
    ],
    ids=["synthetic", "not validated", "failed", "nothing compared", "unchanged", "nothing found"],
)
def test_what_a_reader_must_know_stands_on_the_page(result: CompressionResult, shown: str) -> None:
    assert shown in _parse(compress_page(result)).text


def _table_rows(page: str, caption: str) -> list[list[str]]:
    body = page[page.index(f"<caption>{caption}</caption>") :]
    body = body[: body.index("</table>")]
    return [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row.replace("<wbr>", ""))
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    ]


def test_bytes_and_milliseconds_of_each_layer() -> None:
    page = compress_page(_full())
    assert _table_rows(page, "Stored weights of each layer")[1:] == [
        ["blocks.0/mlp/fc1/MatMul", "9.44 MB", "2.95 MB", "0.312"],
        ["head/Gemm", "30.7 kB", "30.7 kB", "1.000"],
        ["stem/Conv", "13.8 kB", "11.6 kB", "0.843"],
    ]
    assert _table_rows(page, "Milliseconds of one run")[1:] == [
        ["blocks.0/mlp/fc1/MatMul", "1.90", "0.760", "2.50x"],
        ["head/Gemm", "0.0120", "0.0120", "1.00x"],
        ["all of these", "1.91", "0.772", "2.48x"],
    ]
    assert "1 layer could not be timed, or not in the time for that." in _parse(page).text


def test_a_weight_that_several_layers_share_is_one_row() -> None:
    sites = (REWRITTEN, replace(REWRITTEN, name="again"), DENSE)
    rows = _table_rows(compress_page(compression(sites=sites)), "Milliseconds of one run")[1:]
    assert [row[0] for row in rows] == ["blocks.0/mlp/fc1/MatMul and 1 more", "head/Gemm", "all of these"]


def test_no_milliseconds_where_none_were_measured() -> None:
    sites = tuple(replace(site, latency_before_ms=None, latency_after_ms=None) for site in _full().sites)
    assert 'id="milliseconds"' not in compress_page(replace(_full(), sites=sites))


def test_what_was_set_for_single_layers_and_what_ran_where() -> None:
    nodes = (ProviderNodes("CUDAExecutionProvider", 61, 73), ProviderNodes("CPUExecutionProvider", 2, 2))
    site = replace(REWRITTEN, overridden=f"rank 64 by '{HOSTILE}'")
    page = compress_page(compression(sites=(site,), verdict=replace(VERDICT, nodes=nodes)))
    text = _parse(page).text
    assert "ran on: CUDAExecutionProvider 61 → 73 nodes, CPUExecutionProvider 2 → 2 nodes" in text
    assert "What was set for single layers" in text
    assert "alert(1)</script>" not in page
    assert 'id="overrides"' not in compress_page(_full())


def test_the_command_can_be_pasted() -> None:
    arguments: Sequence[str] = ("compress", "my model.onnx", "--keep-params", "0.6")
    assert "lowrank-onnx compress 'my model.onnx' --keep-params 0.6" in _parse(compress_page(_full(), arguments)).text


def test_a_long_command_goes_on_in_lines_that_begin_with_an_option() -> None:
    arguments = ("compress", "models/a.onnx", *(f"--option-{index} value" for index in range(9)))
    words = [word for argument in arguments for word in argument.split()]
    page = compress_page(_full(), words)
    (command,) = re.findall(r"<pre[^>]*><code>(.*?)</code>", page, re.DOTALL)
    first, *others = command.split(" \\\n")
    assert first.startswith("lowrank-onnx compress models/a.onnx --option-0 value ")
    assert others
    assert all(line.startswith("    --option-") for line in others)
    assert max(map(len, command.splitlines())) <= 90
    assert shlex.split(command.replace("\\\n", "")) == ["lowrank-onnx", *words]


def test_a_status_that_the_message_begins_with_is_not_said_twice() -> None:
    assert "written to small.onnx" in _parse(compress_page(replace(_full(), message="written to small.onnx"))).text
    page = compress_page(replace(_full(), message="written to small.onnx"))
    assert "<strong>written</strong> to small.onnx" in page
    assert "<strong>written</strong>: point 1 written" in compress_page(replace(_full(), message="point 1 written"))


def test_a_failure_that_the_message_names_is_not_said_twice() -> None:
    rejected = compression(verdict=FAILED, status="rejected", message=f"not written: {FAILED.failures[0]}")
    page = compress_page(rejected).replace("\N{NO-BREAK SPACE}", " ")
    assert page.count(FAILED.failures[0]) == 1
    assert f"<strong>rejected</strong>: {FAILED.failures[0]}" in page


def test_numbers_stay_with_their_units_and_names_break_between_their_parts() -> None:
    page = compress_page(_full())
    assert "99.22\N{NO-BREAK SPACE}% of cases" in page
    assert ">blocks.<wbr>0/<wbr>mlp/<wbr>fc1/<wbr>MatMul</th>" in page


def _luminance(colour: str) -> float:
    """WCAG 2's relative luminance of ``#rrggbb``."""
    digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [s / 12.92 if s <= 0.03928 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("scheme", "index"), [("light", 0), ("dark", 1), ("print", 2)])
def test_colours_have_the_contrast_that_text_and_figures_need(scheme: str, index: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", compress_page(unchanged("nothing")), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w+);", blocks[index]))
    assert len(blocks) == 3
    assert set(colours) == {"paper", "card", "ink", "muted", "rule", "before", "after", "mark", "good", "bad", "warn"}
    for ground in ("paper", "card"):
        for name in ("ink", "muted", "after", "mark", "good", "bad", "warn"):
            dark, light = sorted((_luminance(colours[ground]), _luminance(colours[name])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, name, ground)
    dark, light = sorted((_luminance(colours["paper"]), _luminance(colours["before"])))
    assert (light + 0.05) / (dark + 0.05) >= 3.0  # of what is no text


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    write_page("old", target)
    write_page("new\udcff", target)
    assert target.read_text(encoding="utf-8") == "new\\udcff"
    with pytest.raises(OutputError, match=r"--html .*can't be written"):
        write_page("x", tmp_path / "nowhere" / "report.html")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize("result", [_full(), unchanged("nothing to gain")], ids=["full", "unchanged"])
def test_a_browser_shows_it_without_complaint(result: CompressionResult, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(compress_page(result), path)
    done = _chromium(path, tmp_path)
    assert "CONSOLE" not in done.stderr
    parser = _Parser()
    parser.feed(done.stdout)
    assert "To reproduce it" in parser.text


def _chromium(page: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        f"--user-data-dir={directory / 'profile'}",
        "--dump-dom",
    )
    command: list[Any] = [shutil.which("chromium"), *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_a_sweep_shows_its_trade_off_first_and_then_the_point_that_was_written() -> None:
    points = (SweepPoint(_full(), on_front=True), SweepPoint(compression(verdict=FAILED, status="rejected"), False))
    written = SweepResult("model.onnx", points, 0, "small.onnx", "point 1 written to small.onnx")
    parser = _parse(sweep_page(written))
    anchors = [attributes["id"] for tag, attributes in parser.elements if tag == "section"]
    assert anchors[:2] == ["trade-off", "search"]
    assert "point 1 written to small.onnx" in parser.text
    unwritten = _parse(sweep_page(replace(written, picked=None, output=None, message="nothing was written")))
    assert [a["id"] for tag, a in unwritten.elements if tag == "section"] == ["trade-off", "reproduce"]


def test_layers_that_are_better_left_out_are_named() -> None:
    dear = replace(REWRITTEN, name="a <b>", importance=3.0, exclude="it costs too much")
    page = _Parser()
    page.feed(compress_page(compression(sites=(dear,))))
    assert "better left out: --exclude 'a <b>' (it costs too much)" in page.text


def _rows(page: str, anchor: str) -> list[list[str]]:
    """The cells of all tables of one section, headings too."""
    section = re.search(rf'<section id="{anchor}".*?</section>', page.replace("<wbr>", ""), re.DOTALL)
    assert section is not None, f"no section {anchor}"
    rows = re.findall(r"<tr>(.*?)</tr>", section[0], re.DOTALL)
    return [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


def test_refinement_is_shown_with_what_it_did_and_why_a_weight_was_left() -> None:
    page = compress_page(_full())
    assert "1 of 2 weights: error of the outputs on 24 held-out feeds 0.0527 → 0.0361." in _parse(page).text
    assert _rows(page, "refinement") == [
        ["", "before", "after"],
        ["relative error of the outputs", "0.0527", "0.0361"],
        ["weight", "outcome", "solved for", "error before", "error after", "inputs"],
        ["fc1.weight", "refined", "the sum that it adds to", "0.210", "0.154", "4,096"],
        ["stem.weight", "as planned: its inputs are the original's", "its output", "-", "-", "0"],
    ]
    nothing = Refinement(1, 0, None, None, (), "1 feed to calibrate with")
    page = compress_page(compression(refinement=nothing))
    assert "Nothing was refined. 1 feed to calibrate with." in _parse(page).text
    assert _rows(page, "refinement") == []


def test_plans_are_shown_with_the_one_that_was_taken() -> None:
    page = compress_page(_full())
    assert _rows(page, "plan") == [
        ["share kept", "forms", "trust", "output error", "taken"],
        ["0.4000", "all", "0", "0.0340", "no"],
        ["0.4000", "all", "0.5", "0.0288", "yes"],
        ["0.4000", "the plain ones", "0.5", "0.0310", "no"],
    ]
    unjudged = "the calibration feeds have too few samples"
    assert unjudged not in _parse(page).text
    assert unjudged in _parse(compress_page(compression(trials=(PlanTrial(0.4, 0.5, None, True),)))).text


def test_what_was_asked_stands_beside_what_was_reached() -> None:
    assert _rows(compress_page(_full()), "reached") == [
        ["", "asked", "predicted", "reached"],
        ["share of the parameters", "0.4000", "0.316", "0.316"],
        ["relative error of the outputs", "-", "0.0280", "0.0312"],
    ]


def test_a_search_shows_drops_only_where_they_were_measured() -> None:
    assert _rows(compress_page(_full()), "search")[0] == ["attempt", "share kept", "output error", "accepted"]
    bounded = SearchStep(0.5, 0.02, True, drop=0.001, judged_drop=0.0047)
    assert _rows(compress_page(compression(search=(bounded,))), "search") == [
        ["attempt", "share kept", "output error", "drop", "at most", "accepted"],
        ["1", "0.5000", "0.0200", "0.00100", "0.00470", "yes"],
    ]
    plain = replace(bounded, judged_drop=bounded.drop)
    columns = _rows(compress_page(compression(search=(plain,))), "search")[0]
    assert columns == ["attempt", "share kept", "output error", "drop", "accepted"]


def test_the_time_of_each_stage_is_also_in_passes_where_one_was_timed() -> None:
    assert _rows(compress_page(_full()), "reproduce")[-4:] == [
        ["stage", "seconds", "passes"],
        ["load", "0.0120", "0.20"],
        ["factorize", "1.50", "25"],
        ["in all", "1.51", "25"],
    ]
    assert _rows(compress_page(compression(pass_seconds=None)), "reproduce")[-4] == ["stage", "seconds"]


def test_a_sweep_shows_the_task_metric_where_there_is_one() -> None:
    measured = compression(verdict=replace(VERDICT, metric=METRIC))
    points = (SweepPoint(measured, on_front=True), SweepPoint(compression(verdict=None), on_front=False))
    page = sweep_page(SweepResult("model.onnx", points, None, None, "nothing was written"))
    columns, first, second = _rows(page, "trade-off")
    assert columns[-3:] == ["metric", "drop", "outcome"]
    assert first[-3:] == ["0.9450", "0.00470", "*"]
    assert second[-3:-1] == ["-", "-"]
    assert "metric: accuracy.py:correct, 0.9460 originally" in _parse(page).text


def test_harm_and_the_diamond_are_explained_only_where_they_are_shown() -> None:
    unmeasured = compression(sites=(replace(REWRITTEN, predicted_error=None),))
    assert "harm" not in compress_page(unmeasured, ())
    assert "harm" in compress_page(compression(sites=(replace(REWRITTEN, predicted_error=0.01),)), ())
    points = (SweepPoint(_full(), on_front=True),)
    assert "The diamond" not in sweep_page(SweepResult("m.onnx", points, None, None, "nothing was written"), ())
    assert "The diamond" in sweep_page(SweepResult("m.onnx", points, 0, None, "written"), ())
