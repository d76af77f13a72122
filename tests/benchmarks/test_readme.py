"""The README's results are those that were saved."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="needs scikit-learn (extra bench)")

from benchmarks.readme import BEGIN, END, RESULTS, ROOT, block, with_block, zoo

POINT = {"model": "m", "share": 0.6, "metrics": {"F1": 0.9}, "speedup": 1.5, "error": 0.1, "macs_kept": 0.6}
WHERE = {"date": "2026-01-02", "machine": "a machine", "versions": {"numpy": "2"}, "size": "default"}


def test_the_readme_shows_the_saved_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_block(text, block(RESULTS)) == text, "run python -m benchmarks.readme"


def test_what_the_readme_links_to_is_there() -> None:
    made = block(RESULTS)
    links = [part.split(")")[0] for part in made.split("](")[1:]]
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_only_what_is_between_the_markers_changes() -> None:
    text = f"a\n{BEGIN}\nold\n{END}\nb"
    assert with_block(text, "new") == f"a\n{BEGIN}\n\nnew\n\n{END}\nb"
    assert with_block(with_block(text, "new"), "new") == with_block(text, "new")
    for broken in ("", BEGIN, f"{END}{BEGIN}", text + text):
        with pytest.raises(ValueError, match="once each"):
            with_block(broken, "new")


def test_without_results_there_is_nothing(tmp_path: Path) -> None:
    assert block(tmp_path) == ""


@pytest.mark.parametrize(("lower_is_better", "best"), [(False, "A: 0.800"), (True, "B: 0.700")])
def test_the_best_peer_is_the_one_of_the_best_figure(lower_is_better: bool, best: str) -> None:
    original = {"model": "m", "data": "d", "metrics": {"F1": 0.95}, "lower_is_better": lower_is_better}
    saved: dict[str, dict[str, object]] = {
        "m": {**original, **WHERE},
        "m/this program/0.6": {**POINT, "way": "this program", **WHERE},
        "m/A/0.6": {**POINT, "way": "A", "metrics": {"F1": 0.8}, **WHERE},
        "m/B/0.6": {**POINT, "way": "B", "metrics": {"F1": 0.7}, **WHERE},
        "m/this program/0.4": {**POINT, "way": "this program", "share": 0.4, "macs_kept": 0.53, **WHERE},
        "m/int8/0.6": {**POINT, "way": "int8", "macs_kept": 1.0, "metrics": {"F1": 0.94}, **WHERE},
    }
    assert f"| m | 0.6 | F1 0.950 | 0.900, 1.50x | {best}, 1.50x | 0.940, 1.50x |  |" in zoo(saved)
    assert "| m | 0.4 | F1 0.950 | 0.900, 1.50x (keeps 0.53) |  |  |  |" in zoo(saved)
