from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.feeds import Feeds, load_feeds
from lowrank_onnx.evaluate.values import InputSpec

IMAGE = InputSpec("x", "float32", ("n", 3, 4))
MASK = InputSpec("mask", "int64", ("n", "t"))


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path / "feeds.npz", **arrays)
    return path / "feeds.npz"


def load(path: Path, inputs: Sequence[InputSpec] = (IMAGE,), batch_size: int | None = None) -> Feeds:
    return load_feeds(path, inputs, batch_size=batch_size)


def images(count: int, *shape: int) -> Any:
    shape = shape or (3, 4)
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)


def shapes(feeds: Feeds, name: str = "x") -> list[tuple[int, ...]]:
    return [feed[name].shape for feed in feeds]


def test_a_symbolic_batch_is_cut_by_batch_size_with_the_rest_kept(tmp_path: Path) -> None:
    x = images(70)
    feeds = load(save(tmp_path, x=x))
    assert shapes(feeds) == [(32, 3, 4), (32, 3, 4), (6, 3, 4)]
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), x)
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), x)  # once more
    assert (len(feeds), feeds.samples, feeds.synthetic) == (3, 70, False)
    assert feeds.description == "3 feeds (70 samples) from feeds.npz"
    assert shapes(load(tmp_path / "feeds.npz", batch_size=50)) == [(50, 3, 4), (20, 3, 4)]


def test_a_fixed_batch_drops_what_does_not_fill_it(tmp_path: Path) -> None:
    feeds = load(save(tmp_path, x=images(10)), [InputSpec("x", "float32", (4, 3, 4))])
    assert shapes(feeds) == [(4, 3, 4), (4, 3, 4)]
    assert (len(feeds), feeds.samples) == (2, 8)


def test_one_more_axis_holds_complete_feeds(tmp_path: Path) -> None:
    x = images(3, 2, 3, 4)
    feeds = load(save(tmp_path, x=x))
    assert shapes(feeds) == [(2, 3, 4)] * 3
    assert (len(feeds), feeds.samples) == (3, 3)
    np.testing.assert_array_equal(list(feeds)[2]["x"], x[2])


def test_several_inputs_are_cut_together(tmp_path: Path) -> None:
    feeds = load(save(tmp_path, x=images(5), mask=np.arange(10).reshape(5, 2)), [IMAGE, MASK], batch_size=3)
    assert shapes(feeds, "mask") == [(3, 2), (2, 2)]
    assert list(feeds)[1]["mask"].tolist() == [[6, 7], [8, 9]]


def test_scalars_are_shared_or_given_per_feed(tmp_path: Path) -> None:
    rate = InputSpec("rate", "int64", ())
    feeds = load(save(tmp_path, x=images(5), rate=np.array(16000)), [IMAGE, rate], batch_size=3)
    assert [feed["rate"].tolist() for feed in feeds] == [16000, 16000]
    assert shapes(feeds, "rate") == [(), ()]
    feeds = load(save(tmp_path, x=images(2, 1, 3, 4), rate=np.array([8000, 16000])), [IMAGE, rate])
    assert [feed["rate"].tolist() for feed in feeds] == [8000, 16000]
    assert all(isinstance(feed["rate"], np.ndarray) for feed in feeds)


def test_an_input_of_unknown_rank_is_cut_along_its_first_axis(tmp_path: Path) -> None:
    feeds = load(save(tmp_path, x=images(5)), [InputSpec("x", "float32", ())], batch_size=4)
    assert shapes(feeds) == [(4, 3, 4), (1, 3, 4)]


def test_labels_are_left_out_and_mentioned(tmp_path: Path) -> None:
    feeds = load(save(tmp_path, x=images(2), labels=np.arange(2)))
    assert feeds.description == "1 feed (2 samples) from feeds.npz; not inputs, left out: labels"
    assert all(set(feed) == {"x"} for feed in feeds)


@pytest.mark.parametrize(
    ("given", "wanted", "values"),
    [
        (np.float64, "float32", [0.5, 2.0]),
        (np.float32, "float16", [0.5, 2.0]),
        (np.float32, "bfloat16", [0.5, 2.0]),
        (np.int32, "int64", [1, -2]),
        (np.int64, "int32", [1, -2]),
        (np.int64, "uint8", [0, 255]),
        (">i8", "int64", [1, -2]),
        (np.bool_, "bool", [True, False]),
    ],
)
def test_types_that_can_only_mean_one_thing_are_converted(
    tmp_path: Path, given: Any, wanted: str, values: list[Any]
) -> None:
    (feed,) = load(save(tmp_path, x=np.array(values, given)), [InputSpec("x", wanted, ("n",))])
    assert feed["x"].dtype.name == wanted
    assert feed["x"].dtype.isnative
    assert feed["x"].tolist() == values


def test_fixed_width_strings_become_objects(tmp_path: Path) -> None:
    (feed,) = load(save(tmp_path, x=np.array(["a", "bc"])), [InputSpec("x", "str", ("n",))])
    assert feed["x"].dtype == object
    assert feed["x"].tolist() == ["a", "bc"]


def test_arrays_are_contiguous(tmp_path: Path) -> None:
    (feed,) = load(save(tmp_path, x=np.asfortranarray(images(2))))
    assert feed["x"].flags.c_contiguous


@pytest.mark.parametrize(
    ("arrays", "inputs", "message"),
    [
        (
            {"images": images(2)},
            [IMAGE],
            "no array for the model's input 'x' (it holds images): add it",
        ),
        (
            {"x": images(2, 4)},
            [IMAGE],
            "'x' has shape (2, 4), the model's input is (n, 3, 4): give that rank with samples on axis 0, or one axis",
        ),
        (
            {"x": images(2, 3, 5)},
            [IMAGE],
            "'x' has shape (2, 3, 5), the model's input is (n, 3, 4): axis 2 has to be 4",
        ),
        (
            {"x": images(2, 1, 2, 4)},
            [IMAGE],
            "'x' has shape (1, 2, 4), the model's input is (n, 3, 4): axis 1 has to be 3",
        ),
        (
            {"x": np.zeros((2, 3, 4), np.uint8)},
            [IMAGE],
            "'x' holds uint8, the model's input is float32: prepare it as the model expects (scaling included)",
        ),
        (
            {"x": images(2), "mask": np.zeros((2, 5), np.float32)},
            [IMAGE, MASK],
            "'mask' holds float32, the model's input is int64",
        ),
        (
            {"x": images(3), "mask": np.zeros((2, 5), np.int64)},
            [IMAGE, MASK],
            "different numbers of samples on axis 0 (x 3, mask 2): give each input the same",
        ),
        (
            {"x": images(2, 1, 3, 4), "mask": np.zeros((2, 5), np.int64)},
            [IMAGE, MASK],
            "'x' hold one complete feed per entry (one axis more than the model's input), 'mask' don't: give all",
        ),
        ({"x": images(0)}, [IMAGE], "'x' is empty (shape (0, 3, 4)): give some samples"),
        (
            {"x": images(3)},
            [InputSpec("x", "float32", (4, 3, 4))],
            "3 samples, the model's batch is fixed at 4: give at least 4",
        ),
        (
            {"x": images(4), "mask": np.zeros((4, 5), np.int64)},
            [InputSpec("x", "float32", (4, 3, 4)), InputSpec("mask", "int64", (1, 5))],
            "the model's inputs have different fixed first dims (x 4, mask 1): give every input with one more axis",
        ),
        (
            {"x": images(4), "mask": np.zeros(4, np.int64)},
            [IMAGE, InputSpec("mask", "int64", ())],
            "'mask' is a scalar input: give one 0-d array for all feeds",
        ),
        (
            {"x": np.array(["a", None], object)},
            [InputSpec("x", "str", ("n",))],
            "'x' holds pickled Python objects, which are never loaded",
        ),
        (
            {"x": images(1)},
            [InputSpec("x", "seq(tensor(float))", ())],
            "the model's input 'x' is seq(tensor(float)), which an .npz can't hold: give a directory of ONNX test data",
        ),
        ({}, [IMAGE], "an archive without arrays: save it with numpy.savez"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(
    tmp_path: Path, arrays: dict[str, Any], inputs: list[InputSpec], message: str
) -> None:
    path = save(tmp_path, **arrays)
    with pytest.raises(UsageError) as info:
        load(path, inputs)
    assert str(info.value).startswith(f"{path}: {message}")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("array", "spec", "message"),
    [
        (np.array([1.0, np.nan, np.inf]), InputSpec("x", "float32", ("n",)), "'x' holds 2 NaN or infinite values"),
        (np.array([1e6]), InputSpec("x", "float16", ("n",)), "'x' holds 1 NaN or infinite values (as float16)"),
        (np.array([300]), InputSpec("x", "uint8", ("n",)), "'x' holds int64 values that don't fit the model's uint8"),
        (np.array([-1]), InputSpec("x", "uint64", ("n",)), "'x' holds int64 values that don't fit the model's uint64"),
    ],
)
def test_values_are_checked_when_a_feed_is_loaded(tmp_path: Path, array: Any, spec: InputSpec, message: str) -> None:
    feeds = load(save(tmp_path, x=array), [spec])
    with pytest.raises(UsageError) as info:
        list(feeds)
    assert message in str(info.value)


@pytest.mark.parametrize("content", [b"", b"random bytes " * 50, b"PK\x03\x04" + bytes(100)])
def test_a_random_file_is_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "feeds.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"feeds.npz: not a readable .npz archive .*: save it with numpy.savez"):
        load(path)


def test_a_truncated_or_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, x=images(500))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r"not a readable \.npz archive"):
        load(path)
    damaged = bytearray(content)
    damaged[20_000] ^= 0xFF  # inside the values: the header is sound, the checksum isn't
    path.write_bytes(bytes(damaged))
    feeds = load(path)
    with pytest.raises(UsageError, match=r"feeds.npz: can't be read \(Bad CRC-32"):
        list(feeds)


def test_a_header_that_promises_too_much_allocates_nothing(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3, 4)})
    path = tmp_path / "feeds.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", stream.getvalue())
    with pytest.raises(UsageError, match="'x' should have 48000000000000 bytes and has 0: save it again"):
        load(path)


def test_a_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "feeds.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"not an array")
    with pytest.raises(UsageError, match=r"not a readable \.npz archive"):
        load(path)


def test_a_directory_is_read_file_by_file_in_the_order_of_names(tmp_path: Path) -> None:
    for name, count, level in (("b", 40, 2.0), ("a", 1, 1.0)):
        np.savez(tmp_path / f"{name}.npz", x=np.full((count, 3, 4), level, np.float32))
    (tmp_path / "notes.txt").write_text("ignored")
    feeds = load(tmp_path)
    assert [(feed["x"].shape[0], float(feed["x"][0, 0, 0])) for feed in feeds] == [(1, 1.0), (32, 2.0), (8, 2.0)]
    assert (len(feeds), feeds.samples) == (3, 41)
    (tmp_path / "b.npz").unlink()  # not read before its turn, nor kept after it
    iterator = iter(feeds)
    assert next(iterator)["x"].shape == (1, 3, 4)
    with pytest.raises(UsageError, match=r"b.npz: can't be read"):
        next(iterator)


def test_a_bad_file_in_a_directory_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=images(1))
    np.savez(tmp_path / "b.npz", y=images(1))
    with pytest.raises(UsageError, match=r"b.npz: no array for the model's input 'x' \(it holds y\)"):
        load(tmp_path)
