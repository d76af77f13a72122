from __future__ import annotations

import math

import pytest

from benchmarks.forms import MULTIPLE, SHARES, TOLERANCE, Shape, conv, find_options, matmul, measure_shape, site_model
from benchmarks.forms_report import markdown

SHAPES = (conv(64, 64, 9, 9), conv(64, 96, 9, 9, stride=2), conv(64, 64, 20, kernel=5), matmul(16, 128, 96))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.title)
def test_ranks_are_those_of_the_shares(shape: Shape) -> None:
    model = site_model(shape)
    options = list(find_options(shape, model))
    positions = math.prod(shape.made) // model.site.counted_features
    assert {form.name for form, _, _ in options} <= {form.name for form in model.site.forms}
    assert len({share for _, share, _ in options}) > 1
    for form, share, rank in options:
        assert rank % MULTIPLE == 0
        assert share in SHARES
        macs = form.macs(model.site.shape, rank, positions) / (model.site.shape.parameters * positions)
        assert macs == pytest.approx(share, rel=TOLERANCE)


def test_a_stride_is_in_the_macs_of_what_comes_before_it() -> None:
    shape = conv(64, 96, 9, 9, stride=2)
    model = site_model(shape)
    form = next(form for form in model.site.forms if form.name == "conv_input")
    assert form.macs(model.site.shape, 16, 25) == 81 * 64 * 16 + 25 * 16 * 9 * 96


def test_every_form_is_timed_against_the_dense_node() -> None:
    ticks = iter(range(10**9))
    result = measure_shape(conv(48, 48, 3, 3), 0.0, clock=lambda: 1000 * next(ticks))
    assert {one.form for one in result.forms} >= {"conv_channel", "pivoted", "conv_spatial", "conv_tucker"}
    assert all(one.low <= one.speedup <= one.high for one in result.forms)


def test_the_report_names_winners_and_ties() -> None:
    def result(form: str, asked: float, speedup: float, high: float) -> dict[str, object]:
        interval = {"speedup": speedup, "low": speedup - 0.1, "high": high}
        return {"form": form, "asked": asked, "rank": 16, "macs": asked, **interval}

    first = [result("pair", 0.5, 1.5, 1.6), result("spatial", 0.5, 2.0, 2.1), result("tucker", 0.5, 1.8, 1.95)]
    second = [result("pair", 0.25, 3.0, 3.1), result("pair", 0.5, 1.7, 1.8)]
    shapes = [{"title": "A", "dense_ms": 1.0, "forms": first}, {"title": "B", "dense_ms": 2.0, "forms": second}]
    data = {
        "date": "2026-01-01",
        "machine": "m",
        "versions": dict.fromkeys(("numpy", "onnx", "onnxruntime", "python", "cupy"), "1"),
        "shapes": shapes,
    }
    lines = markdown(data).splitlines()
    assert "| A | spatial 2.00x (~ tucker) |  |" in lines
    assert "| B | pair 1.70x | pair 3.00x |" in lines
    assert f"| pair | {math.sqrt(0.75 * 0.85):.2f} of 2 nodes | 0.75 of 1 nodes |" in lines
    assert "| spatial | 16 | 0.50 | 2.00x | 1.90 to 2.10 |" in lines
    assert "Measured on 2026-01-01: m; numpy 1, onnx 1, onnxruntime 1, python 1." in lines
