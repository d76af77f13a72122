"""Options of single weights by pattern: from a table, a flag and Python, through planning to the report."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lowrank_onnx
from lowrank_onnx.cli import main
from lowrank_onnx.config import Alpha, Budget, Config, Energy, FixedRank, KeepMacs, KeepParams
from lowrank_onnx.errors import UsageError
from lowrank_onnx.results import CompressionResult, SiteResult
from lowrank_onnx.site_override import SiteOverride, overlaid, parse_site, site_override
from tests.tiny_model import decaying

BLOCKS = 4
RANK_8 = FixedRank(8)


def blocks() -> onnx.ModelProto:
    """Four square layers with alike weights, `block.0.fc` to `block.3.fc`."""
    weights = {f"block.{i}.weight": decaying(96, 96, 0.9 + 0.01 * i) for i in range(BLOCKS)}
    nodes = []
    for i in range(BLOCKS):
        nodes.append(helper.make_node("MatMul", [f"h{i}", f"block.{i}.weight"], [f"y{i}"], name=f"block.{i}.fc"))
        # Layers with nothing in between would become one, and with less than this pass on the order of their outputs.
        nodes.append(helper.make_node("Softmax", [f"y{i}"], [f"h{i + 1}"]))
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["n", 96])],
        [helper.make_tensor_value_info(f"h{BLOCKS}", TensorProto.FLOAT, ["n", 96])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def compressed(*overrides: SiteOverride, budget: Budget = RANK_8, **options: Any) -> CompressionResult:
    cache = options.pop("cache", None)
    config = Config(budget=budget, objective="size", validate=False, overrides=overrides, **options)
    return lowrank_onnx.compress(blocks(), config, cache=cache)


def by_name(result: CompressionResult) -> dict[str, SiteResult]:
    return {site.name: site for site in result.sites}


def ranks(result: CompressionResult) -> list[int | None]:
    return [site.rank for site in result.sites]


def digest(result: CompressionResult) -> str:
    assert result.model is not None
    return hashlib.sha256(result.model.SerializeToString(deterministic=True)).hexdigest()


# What can be asked


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.*:rank=64", SiteOverride(match="a.*", rank=64)),
        ("a::b:form=pair,rank=4", SiteOverride(match="a::b", rank=4, form="pair")),
        ("a:exclude", SiteOverride(match="a", exclude=True)),
        ("a:exclude=false, sensitivity=2", SiteOverride(match="a", exclude=False, sensitivity=2.0)),
    ],
)
def test_a_flag(text: str, expected: SiteOverride) -> None:
    assert parse_site(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encoder", "expected MATCH:SETTING"),
        ("a:", "asks for nothing: expected some of rank, form, exclude, sensitivity"),
        (":rank=4", "match is empty"),
        ("a:rnk=4", "unknown key 'rnk': did you mean rank?"),
        ("a:zzz=4", "unknown key 'zzz': expected some of match, rank, form, exclude, sensitivity"),
        ("a:rank=0", "rank 0: expected a whole number of at least 1"),
        ("a:rank=4.5", "rank is 4.5: expected a whole number"),
        ("a:rank", "rank is '': expected a whole number"),
        ("a:form=pare", "form 'pare': expected one of pair, conv_channel"),
        ("a:exclude=maybe", "exclude is 'maybe': expected true or false"),
        ("a:sensitivity=full", "sensitivity is 'full': expected how many times its damage counts"),
        ("a:sensitivity=0", "sensitivity 0: expected a number above 0"),
        ("a:sensitivity=inf", "sensitivity inf: expected a number above 0"),
        ("a:sensitivity=nan", "sensitivity nan: expected a number above 0"),
    ],
)
def test_what_is_wrong_with_a_flag(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_site(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("table", [{"rank": 4}, {"match": 3, "rank": 4}, {"match": "a", "rank": True}])
def test_what_is_wrong_with_a_table(table: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        site_override(table)


def test_later_ones_win_option_by_option() -> None:
    first = SiteOverride(match="*", rank=8, form="pair")
    assert overlaid([]) is None
    assert overlaid([first, SiteOverride(match="a", rank=4)]) == replace(first, rank=4)
    assert overlaid([SiteOverride(match="a", rank=4), first]) == SiteOverride(match="a", rank=8, form="pair")


# What it does


@pytest.mark.parametrize("budget", [FixedRank(8), Alpha(0.1), Energy(0.9), KeepParams(0.6), KeepMacs(0.6)])
def test_a_rank_holds_whatever_the_budget(budget: Budget) -> None:
    options = {} if not isinstance(budget, KeepMacs) else {"rank_multiple": 1}
    result = compressed(SiteOverride(match="block.2.*", rank=13), budget=budget, **options)
    site = by_name(result)["block.2.fc"]
    assert site.rank == 13
    assert site.overridden == "rank 13 by 'block.2.*'"
    assert all(site.overridden == "" for name, site in by_name(result).items() if name != "block.2.fc")
    assert 13 not in [site.rank for name, site in by_name(result).items() if name != "block.2.fc"]


def test_a_share_counts_the_given_ranks_too() -> None:
    result = compressed(SiteOverride(match="block.0.fc", rank=45), budget=KeepParams(0.6))
    assert ranks(result)[0] == 45
    assert result.after is not None
    assert result.after.site_parameters <= 0.6 * result.before.site_parameters


def test_a_share_that_the_given_ranks_leave_out_of_reach() -> None:
    with pytest.raises(UsageError, match=r"smallest share .* 0\.9\d\d, with the ranks that \[\[site\]\] gives"):
        compressed(SiteOverride(match="*", rank=47, form="pair"), budget=KeepParams(0.5))


@pytest.mark.parametrize("budget", [FixedRank(8), KeepParams(0.6)])
def test_a_rank_that_saves_nothing_leaves_it_dense(budget: Budget) -> None:
    site = by_name(compressed(SiteOverride(match="block.1.fc", rank=48, form="pair"), budget=budget))["block.1.fc"]
    assert site.rank is None
    assert site.reason == "rank 48 would not make it smaller: factors of 96 x 96 save weights up to rank 47"


def test_a_form() -> None:
    result = compressed(SiteOverride(match="*", form="pivoted"), SiteOverride(match="block.3.*", form="pair"))
    assert [site.form for site in result.sites] == ["dense", "dense", "dense", "pair"]
    assert {site.reason for site in result.sites[:3]} == {"pivoted at rank 8 would round too much in the stored dtype"}


def test_a_form_that_it_does_not_have() -> None:
    result = compressed(SiteOverride(match="block.0.fc", form="conv_tucker"))
    reason = "can be written as pair, pivoted, not as conv_tucker, which [[site]] 'block.0.fc' asks for"
    assert [(node.name, node.reason) for node in result.skipped] == [("block.0.fc", reason)]


def test_exclusion_and_taking_it_back() -> None:
    out = SiteOverride(match="block.*", exclude=True)
    result = compressed(out, SiteOverride(match="block.1.weight", exclude=False))
    assert ranks(result) == [8]
    assert {node.reason for node in result.skipped} == {"excluded by [[site]] 'block.*'"}
    kept_out = compressed(SiteOverride(match="block.1.*", exclude=False, rank=4), exclude=("block.1.*",))
    assert "block.1.fc" not in by_name(kept_out)
    [note] = kept_out.notes
    assert note == "[[site]] 'block.1.*' has no effect: 'block.1.fc' is left alone: excluded by 'block.1.*'"


def test_a_sensitivity_spares_a_weight() -> None:
    plain = by_name(compressed(budget=KeepParams(0.5), rank_multiple=1))["block.3.fc"]
    spared = by_name(
        compressed(SiteOverride(match="block.3.fc", sensitivity=50.0), budget=KeepParams(0.5), rank_multiple=1)
    )["block.3.fc"]
    assert plain.parameters_after < spared.parameters_after


def test_the_pattern_is_a_glob_on_nodes_and_weights_and_a_name_as_it_is() -> None:
    for pattern in ("block.?.fc", "block.[0-3].weight", "*"):
        assert ranks(compressed(SiteOverride(match=pattern, rank=5))) == [5] * BLOCKS
    assert ranks(compressed(SiteOverride(match="block.0.weight", rank=5))) == [5, 8, 8, 8]


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("blocks.0.fc", "did you mean 'block.0.fc'"),
        ("BLOCK.1*", "did you mean 'block.1.weight' or 'block.1.fc'?"),
        ("qqqqq", "there is 'block.0.weight'"),
    ],
)
def test_a_pattern_that_fits_nothing(pattern: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        compressed(SiteOverride(match=pattern, rank=5))
    assert f"site {pattern!r}: no node and no weight has such a name: {hint}" in str(caught.value)


def test_the_bytes_are_the_same_with_a_cache_that_others_filled(tmp_path: Path) -> None:
    cases: list[tuple[SiteOverride, ...]] = [
        (),
        (SiteOverride(match="block.1.*", rank=11),),
        (SiteOverride(match="block.1.*", form="pair"), SiteOverride(match="block.2.*", sensitivity=9.0)),
        (SiteOverride(match="block.0.fc", exclude=True),),
    ]
    fresh = [digest(compressed(*case, budget=KeepParams(0.5))) for case in cases]
    assert len(set(fresh)) == len(cases)
    for _ in range(2):
        assert [digest(compressed(*case, budget=KeepParams(0.5), cache=tmp_path)) for case in cases] == fresh


def test_inspect_shows_them() -> None:
    config = Config(overrides=(SiteOverride(match="block.0.*", rank=5), SiteOverride(match="block.3.*", exclude=True)))
    result = lowrank_onnx.inspect(blocks(), config)
    assert [site.overridden for site in result.sites] == ["rank 5 by 'block.0.*'", "", ""]
    assert [node.reason for node in result.skipped] == ["excluded by [[site]] 'block.3.*'"]


# On the command line


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.onnx"
    onnx.save(blocks(), path)
    return path


FLAGS = ["--objective", "size", "--no-validate"]
TABLES = """
rank = 8

[[site]]
match = "block.1.*"
rank = 11
form = "pair"

[[site]]
match = "block.1.fc"
sensitivity = 2
"""


def _written_ranks(path: Path) -> list[int]:
    return [t.dims[1] for t in onnx.load(path).graph.initializer if t.name.endswith(".left")]


def test_tables_in_a_file_and_what_is_dumped(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("o.toml").write_text(TABLES)
    assert (
        main(["compress", "model.onnx", "--config", "o.toml", "-o", "a.onnx", "--dump-config", "d.toml", *FLAGS]) == 0
    )
    report = " ".join(capsys.readouterr().out.split())
    assert "set by [[site]]: 1 site" in report
    assert "rank 11, form pair by 'block.1.*'; sensitivity 2 by 'block.1.fc'" in report
    assert _written_ranks(Path("a.onnx")) == [8, 11, 8, 8]
    assert tomllib.loads(Path("d.toml").read_text())["site"] == [
        {"match": "block.1.*", "rank": 11, "form": "pair"},
        {"match": "block.1.fc", "sensitivity": 2.0},
    ]
    assert main(["compress", "model.onnx", "--config", "d.toml", "-o", "b.onnx", "--quiet"]) == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()


def test_flags_take_the_place_of_the_tables(model: Path) -> None:
    Path("o.toml").write_text(TABLES)
    flags = ["--site", "block.*:rank=5", "--site", "block.3.*:rank=7", "--quiet", *FLAGS]
    assert main(["compress", "model.onnx", "--config", "o.toml", "-o", "a.onnx", *flags]) == 0
    assert _written_ranks(Path("a.onnx")) == [5, 5, 5, 7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[site]]\nmatch = 'block.*'\nrnk = 3", "unknown key 'rnk': did you mean rank?"),
        ("[site]\nmatch = 'block.*'", "site is a dict: expected tables, e.g. [[site]] with match"),
        ("site = 3", "site is a int: expected tables"),
        ("[[sites]]\nmatch = 'a'", "unknown key 'sites': did you mean site?"),
        ("[[site]]\nmatch = 'zzz'\nrank = 3", "site 'zzz': no node and no weight has such a name"),
    ],
)
def test_what_is_wrong_with_tables(model: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    Path("o.toml").write_text(text)
    assert main(["compress", "model.onnx", "--rank", "8", "--config", "o.toml", *FLAGS]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_sweep_keeps_to_them(model: Path) -> None:
    np.savez("feeds.npz", h0=np.random.default_rng(3).standard_normal((4, 96)).astype(np.float32))
    flags = ["--keep-params", "0.7,0.5", "--objective", "size", "--effort", "fast", "--calib", "feeds.npz", "--quiet"]
    pick = ["--pick", "error=100", "-o", "a.onnx", "--site", "block.2.*:rank=9", "--site", "block.0.*:exclude"]
    assert main(["sweep", "model.onnx", *flags, *pick]) == 0
    names = {t.name: list(t.dims) for t in onnx.load("a.onnx").graph.initializer}
    assert names["block.2.weight.left"] == [96, 9]
    assert names["block.0.weight"] == [96, 96]


def three_on_one_input() -> onnx.ModelProto:
    weights = {name: decaying(96, 96, decay) for name, decay in (("q", 0.9), ("k", 0.92), ("v", 0.94))}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", name], [f"{name}.out"], name=f"{name}.fc") for name in weights],
        "three",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 96])],
        [helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, ["n", 96]) for name in weights],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


SHARED = SiteOverride(match="*", form="shared")


@pytest.mark.parametrize(
    ("budget", "overrides", "forms"),
    [
        (FixedRank(8), (SHARED,), ["shared 8"] * 3),
        (KeepParams(0.6), (replace(SHARED, rank=20),), ["shared 20"] * 3),
        (FixedRank(8), (SHARED, SiteOverride(match="k", rank=20)), ["dense"] * 3),
        (Energy(0.9), (SHARED,), ["dense"] * 3),
        (FixedRank(8), (replace(SHARED, match="k"),), ["pair 8", "dense", "pair 8"]),
    ],
)
def test_the_shared_form_is_for_all_at_one_rank_or_for_none(
    budget: Budget, overrides: tuple[SiteOverride, ...], forms: list[str]
) -> None:
    config = Config(budget=budget, objective="size", validate=False, overrides=overrides)
    sites = lowrank_onnx.compress(three_on_one_input(), config).sites
    assert [f"{site.form} {site.rank or ''}".strip() for site in sites] == forms
    reason = "its only form here, shared, takes all weights that read the same input, at one rank"
    assert {site.reason for site in sites if site.rank is None} <= {reason}


@pytest.mark.parametrize("flag", ["include", "exclude"])
def test_a_filter_that_fits_nothing_is_noted_with_names_that_are_near(flag: str) -> None:
    patterns: dict[str, Any] = {flag: ("blocks.0.fc", "block.1.fc")}
    result = compressed(**patterns)
    notes = [note for note in result.notes if "no effect" in note]
    assert len(notes) == 1
    assert notes[0].startswith(f"--{flag} 'blocks.0.fc' has no effect: it fits no node, and no weight that can be")
    assert "did you mean 'block.0.fc'" in notes[0]


def test_a_filter_that_fits_something_is_not_noted() -> None:
    assert not [note for note in compressed(exclude=("block.*",), include=("*.fc",)).notes if "no effect" in note]
