from __future__ import annotations

from dataclasses import replace

from lowrank_onnx.report.demo_text import demo_report
from tests.report.rendering import rendered, widest
from tests.report.samples import DEMO_ROW, FAILED, compression

REPORT = """\
Fashion-MNIST, accuracy on 2,000 test images that the compression has not seen

model              figure                 before    after         change
────────────────────────────────────────────────────────────────────────
fashion_vgg        top-1 accuracy        93.45 %  93.30 %   -0.15 points
--keep-params 0.4  file                  10.0 MB  3.60 MB  2.78x smaller
                   parameters          2,500,000  880,000  2.84x smaller
                   MACs, 32 images         466 M    146 M  3.19x smaller
                   latency, 32 images    3.10 ms  2.20 ms   1.42x faster

the compressed models were deleted: --out DIR keeps them
"""


def test_the_table() -> None:
    assert rendered(demo_report((DEMO_ROW,), kept=False)) == REPORT


def test_kept_models_are_not_called_deleted() -> None:
    lines = rendered(demo_report((DEMO_ROW,), kept=True)).splitlines()
    assert lines[-1] == "fashion_vgg: wrote model.lowrank.onnx: 1.42x faster, 2.78x smaller"


def test_a_rejected_model_has_no_accuracy_after() -> None:
    row = replace(
        DEMO_ROW,
        accuracy_after=None,
        result=compression(status="rejected", output=None, verdict=FAILED, message="not written: slow"),
    )
    content = rendered(demo_report((DEMO_ROW, row), kept=False))
    lines = [line.split() for line in content.splitlines()]
    assert ["fashion_vgg", "top-1", "accuracy", "93.45", "%", "-", "-"] in lines
    assert widest(content) <= 80
    assert "fashion_vgg: not written: slow" in content.splitlines()
    assert any(line.endswith("1.25x slower") for line in content.splitlines())
