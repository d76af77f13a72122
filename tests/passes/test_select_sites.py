from __future__ import annotations

import pytest
from onnx import helper as h

from lowrank_onnx.passes import select_sites
from lowrank_onnx.types import Site
from tests.passes.models import make_model, sites_of, value, weight


@pytest.fixture(scope="module")
def sites() -> tuple[Site, ...]:
    """Four sites; the last two share a weight."""
    names = [("block.0/q", "q.weight"), ("block.0/k[0]", "k.weight"), ("head", "tied"), ("tail", "tied")]
    nodes = [h.make_node("MatMul", [f"h{i}", w], [f"h{i + 1}"], name=n) for i, (n, w) in enumerate(names)]
    stored = {w: weight(3, 3) for _, w in names}
    return sites_of(make_model(nodes, [value("h0", [2, 3])], [value("h4", [2, 3])], stored))


def select(sites: tuple[Site, ...], include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> dict[str, str]:
    """Name -> "" for a kept site, else the reason."""
    kept, skipped = select_sites(sites, include=include, exclude=exclude)
    assert all(item.parameters == 9 for item in skipped)
    return {site.name: "" for site in kept} | {item.name: item.reason for item in skipped}


def test_without_patterns_everything_stays_in_order(sites: tuple[Site, ...]) -> None:
    assert select_sites(sites, include=(), exclude=()) == (sites, ())


def test_include_takes_node_names_and_weight_names(sites: tuple[Site, ...]) -> None:
    reason = "not included by 'block*q', 'k.*'"
    assert select(sites, include=("block*q", "k.*")) == {
        "block.0/q": "",
        "block.0/k[0]": "",
        "head": reason,
        "tail": reason,
    }


def test_exclude_wins_and_names_the_first_pattern_that_matches(sites: tuple[Site, ...]) -> None:
    found = select(sites, include=("*",), exclude=("Q*", "q*", "*"))
    assert found["block.0/q"] == "excluded by 'q*'"
    assert found["head"] == "excluded by '*'"


def test_a_name_with_brackets_can_be_given_as_it_is(sites: tuple[Site, ...]) -> None:
    assert select(sites, exclude=("block.0/k[0]",))["block.0/k[0]"] == "excluded by 'block.0/k[0]'"


def test_sites_that_share_a_weight_stay_or_go_together(sites: tuple[Site, ...]) -> None:
    found = select(sites, exclude=("head",))
    assert found["head"] == "excluded by 'head'"
    assert found["tail"] == "shares weight 'tied' with 'head', which is left out"
    found = select(sites, include=("tail", "block*"))
    assert found["head"] == "not included by 'tail', 'block*'"
    assert found["tail"] == "shares weight 'tied' with 'head', which is left out"
