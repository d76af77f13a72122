"""Whole compressions with a cache: the same bytes with and without, whatever happened to the cache before."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import lowrank_onnx
from lowrank_onnx import Config, FixedRank, KeepParams, MaxError, calibration, factorize
from lowrank_onnx.cache import facts
from lowrank_onnx.cli import main
from lowrank_onnx.results import CompressionResult
from lowrank_onnx.sensitivity import measure as sensitivity_module
from tests.cache.killed import kill_at_entry
from tests.tiny_model import write_classifier

BASE = Config(budget=KeepParams(0.5), objective="size", validate=False, sensitivity="full", refine=False)
EVERYTHING = {"moments": 1, "factors": 2, "sensitivity": 2}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what is really computed."""
    counts: Counter[str] = Counter()
    for kind, module, name in (
        ("moments", calibration, "observe_moments"),
        ("factors", factorize, "factorize"),
        ("sensitivity", sensitivity_module, "_measure"),
    ):
        monkeypatch.setattr(module, name, _counted(counts, kind, getattr(module, name)))
    return counts


def _counted(counts: Counter[str], kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*args: Any, **options: Any) -> Any:
        counts[kind] += 1
        return real(*args, **options)

    return counted


class Bench:
    """A model, feeds and a cache in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cache = directory / "cache"
        self.model, self.feeds = directory / "model.onnx", directory / "feeds.npz"

    def run(self, config: Config = BASE, *, cache: bool = True) -> tuple[bytes, CompressionResult]:
        output = self.directory / "small.onnx"
        result = lowrank_onnx.compress(
            self.model, config, feeds=self.feeds, output=output, force=True, cache=self.cache if cache else None
        )
        assert result.status == "written"
        return output.read_bytes(), result

    def entries(self) -> list[Path]:
        return sorted(self.cache.rglob("*.entry"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """With an empty cache."""
    write_classifier(tmp_path, samples=480)
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("first")
    write_classifier(directory, samples=480)
    Bench(directory).run()
    return directory


@pytest.fixture
def warm(tmp_path: Path, first_run: Path) -> Bench:
    """With the cache and the output of a run of `BASE`."""
    return Bench(Path(shutil.copytree(first_run, tmp_path / "warm")))


def test_cold_warm_and_without_are_the_same_and_warm_computes_nothing(bench: Bench, computed: Counter[str]) -> None:
    without, _ = bench.run(cache=False)
    assert computed == EVERYTHING
    assert not bench.cache.exists()
    computed.clear()
    cold, _ = bench.run()
    assert computed == EVERYTHING
    computed.clear()
    warm, result = bench.run()
    assert computed == {}
    assert cold == without
    assert warm == without
    assert result.notes == ()
    assert [path.parent.name for path in bench.entries()] == ["factors"] * 2 + ["moments"] * 3 + ["sensitivity"] * 2


@pytest.mark.parametrize(
    ("changes", "recomputed"),
    [
        # the exact solver uses none of the next three: other entries, but equal factors, whose effects are known
        ({"seed": 1}, {"moments": 1, "factors": 2}),
        ({"power_iterations": 2}, {"factors": 2}),
        ({"oversampling": 3}, {"factors": 2}),
        ({"method": "svd"}, {"factors": 2, "sensitivity": 2}),
        ({"method": "rsi"}, {"factors": 2, "sensitivity": 2}),
        ({"device": "cpu"}, EVERYTHING),
        ({"whiten": False}, {"factors": 2, "sensitivity": 2}),
        ({"sensitivity": "fast"}, {"sensitivity": 2}),
        ({"sensitivity": "off"}, {}),
        ({"logits": ("y",)}, {"sensitivity": 2}),
        ({"exclude": ("fc1",)}, {"moments": 1, "sensitivity": 1}),
        ({"budget": KeepParams(0.4)}, {}),
        ({"budget": MaxError(0.1), "validate": True}, {}),
        ({"budget": FixedRank(4)}, {"factors": 2}),
    ],
    ids=str,
)
def test_a_changed_option_takes_what_it_can_and_nothing_that_is_wrong(
    warm: Bench, computed: Counter[str], changes: dict[str, Any], recomputed: dict[str, int]
) -> None:
    before = (warm.directory / "small.onnx").read_bytes()
    changed = replace(BASE, **changes)
    without, _ = warm.run(changed, cache=False)
    computed.clear()
    assert warm.run(changed)[0] == without
    assert computed == recomputed
    computed.clear()
    assert warm.run()[0] == before
    assert computed == {}


def _other_feed(bench: Bench) -> None:
    with np.load(bench.feeds) as arrays:
        x = arrays["x"].copy()
    x[3, 5] += 0.5
    np.savez(bench.feeds, x=x)


def _other_weight(bench: Bench) -> None:
    _replace(bench, "w1", lambda values: values * np.float32(1.001))


def _other_bias(bench: Bench) -> None:
    _replace(bench, "bias", lambda values: values + np.float32(0.25))


def _replace(bench: Bench, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    model = onnx.load(bench.model)
    [tensor] = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    onnx.save(model, bench.model)


@pytest.mark.parametrize(
    ("change", "recomputed"),
    [
        (_other_feed, EVERYTHING),
        (_other_weight, {"moments": 1, "factors": 1, "sensitivity": 2}),
        (_other_bias, {"moments": 1, "sensitivity": 2}),
    ],
)
def test_changed_contents_under_the_same_names_are_noticed(
    warm: Bench, computed: Counter[str], change: Callable[[Bench], None], recomputed: dict[str, int]
) -> None:
    change(warm)
    without, _ = warm.run(cache=False)
    computed.clear()
    assert warm.run()[0] == without
    assert computed == recomputed


def test_another_version_starts_anew(warm: Bench, computed: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = (warm.directory / "small.onnx").read_bytes()
    monkeypatch.setattr(facts, "__version__", "99.0")
    assert warm.run()[0] == before
    assert computed == EVERYTHING


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [_cut, _flip])
def test_damaged_entries_are_computed_anew_with_a_note(
    warm: Bench, computed: Counter[str], spoil: Callable[[Path], None]
) -> None:
    before = (warm.directory / "small.onnx").read_bytes()
    contents = {path: path.read_bytes() for path in warm.entries()}
    for path in contents:
        spoil(path)
    after, result = warm.run()
    assert after == before
    assert computed == EVERYTHING
    noted = {path for path in contents if any(str(path) in note for note in result.notes)}
    # one damaged moment is reason enough to observe all of them again
    assert len(noted) == len(result.notes) == 5
    assert all(note.endswith(": ignored, and computed anew") for note in result.notes)
    assert {path: path.read_bytes() for path in warm.entries()} == contents
    assert warm.run()[1].notes == ()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
@pytest.mark.parametrize(
    ("entry", "remaining"),
    [
        (2, EVERYTHING),
        (5, {"factors": 1, "sensitivity": 2}),
        (7, {"sensitivity": 1}),
    ],
)
def test_a_run_that_was_killed_goes_on(
    bench: Bench, computed: Counter[str], entry: int, remaining: dict[str, int]
) -> None:
    kill_at_entry(bench.directory, entry, "tests.cache.test_end_to_end:BASE")
    assert not (bench.directory / "small.onnx").exists()
    assert len(bench.entries()) == entry - 1
    assert len(list(bench.cache.rglob(".*.tmp"))) == 1
    resumed, result = bench.run()
    assert computed == remaining
    assert result.notes == ()
    assert resumed == bench.run(cache=False)[0]


def test_the_command_line(bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(bench.directory)
    flags = ["--keep-params", "0.5", "--objective", "size", "--no-validate", "--calib", "feeds.npz", "--cache"]
    assert main(["compress", "model.onnx", "-o", "a.onnx", *flags, "kept"]) == 0
    for path in Path("kept").rglob("*.entry"):
        _cut(path)
    assert main(["compress", "model.onnx", "-o", "b.onnx", *flags, "kept"]) == 0
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("note: cache entry kept") == 5
    assert main(["compress", "model.onnx", "-o", "c.onnx", *flags, "model.onnx"]) == 2
    error = capsys.readouterr().err
    assert error == "error: cache 'model.onnx': is no directory; give a directory that can be written\n"
    assert not Path("c.onnx").exists()
