from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from threadpoolctl import threadpool_info

from lowrank_onnx.cache import facts as cache_facts
from lowrank_onnx.cache.digest import content_digest
from lowrank_onnx.cache.facts import comparison_facts, environment_facts, feed_facts, model_facts
from lowrank_onnx.evaluate import Feeds, load_feeds
from lowrank_onnx.evaluate.feeds import FeedGroup
from lowrank_onnx.evaluate.session import CPU
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.model_io import load_model
from lowrank_onnx.provider import Provider
from lowrank_onnx.types import Feed
from tests.evaluate.fakes import FunctionSession
from tests.tiny_model import classifier


def of_environment() -> bytes:
    return content_digest(environment_facts("cpu"))


def of_model(source: Any, **options: Any) -> bytes:
    return content_digest(model_facts(load_model(source, **options), CPU))


def test_the_environment_is_the_same_until_something_changes() -> None:
    assert of_environment() == of_environment()
    assert of_environment() != content_digest(environment_facts("auto"))


@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        ("__version__", "99.0"),
        ("_source_digest", lambda: b"edited"),
        ("installed_version", lambda name: "99.0" if name == "numpy" else "1"),
        ("machine_key", lambda provider, threads: "another processor"),
        ("threadpool_info", lambda: [{"user_api": "blas", "internal_api": "openblas", "num_threads": 99}]),
    ],
)
def test_whatever_changes_the_last_digit_changes_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, replacement: object
) -> None:
    before = of_environment()
    monkeypatch.setattr(cache_facts, name, replacement)
    assert of_environment() != before


def test_options_of_the_provider_are_part_of_how_a_model_runs() -> None:
    model = load_model(classifier())
    plain, same, other = (Provider(CPU), Provider(CPU), Provider(CPU, (("device_id", "1"),)))
    facts = [content_digest(model_facts(model, provider)) for provider in (plain, same, other, CPU)]
    assert facts[0] == facts[1] == facts[3] != facts[2]


def test_threads_of_other_libraries_than_the_blas_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = of_environment()
    found = threadpool_info()
    monkeypatch.setattr(cache_facts, "threadpool_info", lambda: [*found, {"user_api": "openmp", "num_threads": 7}])
    assert of_environment() == before


def test_the_program_itself_is_part_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = cache_facts._source_digest.__wrapped__
    monkeypatch.setattr(cache_facts, "__file__", str(tmp_path / "cache_facts.py"))
    (tmp_path / "linalg").mkdir()
    (tmp_path / "linalg" / "solve.py").write_text("a = 1\n")
    first = digest()
    assert digest() == first
    (tmp_path / "linalg" / "solve.py").write_text("a = 2\n")
    second = digest()
    (tmp_path / "linalg" / "solve.py").rename(tmp_path / "linalg" / "other.py")
    assert len({first, second, digest()}) == 3


def test_a_model_is_the_same_wherever_and_however_its_weights_are_stored(tmp_path: Path) -> None:
    model = classifier()
    onnx.save(model, tmp_path / "one.onnx")
    (tmp_path / "elsewhere").mkdir()
    onnx.save(model, tmp_path / "elsewhere" / "two.onnx")
    digests = {of_model(model), of_model(tmp_path / "one.onnx"), of_model(tmp_path / "elsewhere" / "two.onnx")}
    assert len(digests) == 1
    (tmp_path / "external").mkdir()
    path = tmp_path / "external" / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    external = of_model(path)
    assert external == of_model(path)
    with (tmp_path / "external" / "m.bin").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\x01")
    assert of_model(path) != external


def _spoil_weight(model: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(model.graph.initializer[1]).copy()
    values[-1, -1] = np.nextafter(values[-1, -1], np.float32(9))
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(values, "w1"))


def _spoil_bias(model: onnx.ModelProto) -> None:
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.full(10, 1e-9, np.float32), "bias"))


def _spoil_node(model: onnx.ModelProto) -> None:
    model.graph.node[2].op_type = "Tanh"


@pytest.mark.parametrize("spoil", [_spoil_weight, _spoil_bias, _spoil_node])
def test_every_part_of_a_model_counts(spoil: Callable[[onnx.ModelProto], None]) -> None:
    model = classifier()
    before = of_model(model)
    spoil(model)
    assert of_model(model) != before


def test_the_provider_counts() -> None:
    loaded = load_model(classifier())
    assert content_digest(model_facts(loaded, CPU)) != content_digest(model_facts(loaded, "CUDAExecutionProvider"))


def test_which_outputs_are_logits_counts_and_not_the_order_in_which_they_were_named() -> None:
    def of(*logits: str) -> bytes:
        session = FunctionSession(lambda feed: {}, outputs=["a", "b"], logits=logits)
        return content_digest(comparison_facts(session))

    assert of("a", "b") == of("b", "a")
    assert len({of(), of("a"), of("b"), of("a", "b")}) == 4


SPECS = (InputSpec("x", "float32", ("n", 3)), InputSpec("ids", "int64", ("n",)))


def example() -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        {"x": generator.standard_normal((4, 3)).astype(np.float32), "ids": generator.integers(0, 9, 4)}
        for _ in range(3)
    ]


def of_feeds(source: Sequence[Mapping[str, np.ndarray]], count: int | None = None) -> bytes:
    return content_digest(feed_facts(load_feeds(source, SPECS), count))


def test_feeds_count_by_content_and_as_many_as_are_used() -> None:
    assert of_feeds(example()) == of_feeds(example())
    assert of_feeds(example(), 2) == of_feeds(example()[:2])
    changed = example()
    changed[2]["x"][3, 2] += 1
    assert of_feeds(example(), 2) == of_feeds(changed, 2)
    swapped = [example()[index] for index in (1, 0, 2)]
    renamed = [{"ids": feed["ids"], "y": feed["x"]} for feed in example()]
    digests = [of_feeds(feeds) for feeds in (example(), changed, swapped, example()[:2])]
    specs = (InputSpec("y", "float32", ("n", 3)), SPECS[1])
    digests.append(content_digest(feed_facts(load_feeds(renamed, specs))))
    assert len(set(digests)) == 5


def test_no_more_feeds_are_loaded_than_are_used() -> None:
    def load() -> Iterator[Feed]:
        yield {"x": np.zeros(1)}
        raise AssertionError("loaded a feed that isn't used")

    list(feed_facts(Feeds("two", False, 2, (FeedGroup(2, load),)), 1))
