from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from lowrank_onnx.errors import MissingDependencyError, UsageError
from lowrank_onnx.feed_files.choices import TokenArray
from lowrank_onnx.feed_files.text import text_feeds
from tests.feed_files.samples import write_tokenizer

LINES = "a tree grows\n\na tree\ntree grows slowly a tree\nslowly\n"
BOTH: dict[str, TokenArray] = {"tokens": "ids", "mask": "attention_mask"}


def values(file: Path, tokenizer: Path, length: int = 4, samples: int = 10) -> dict[str, list[list[int]]]:
    arrays, _ = text_feeds(file, tokenizer, BOTH, length, samples)
    return {array.name: [row.tolist() for row in array.rows] for array in arrays}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text(LINES)
    return path


def test_lines_are_cut_and_padded(text: Path, tmp_path: Path) -> None:
    made = values(text, write_tokenizer(tmp_path / "tokenizer.json"))
    assert made["tokens"] == [[2, 3, 4, 0], [2, 3, 0, 0], [3, 4, 5, 2], [5, 0, 0, 0]]
    assert made["mask"] == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]


def test_lines_are_spread_over_the_file_and_empty_ones_do_not_count(text: Path, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    (array,), count = text_feeds(text, tokenizer, {"t": "ids"}, 2, 2)
    assert count == 4
    assert array.shape == (2, 2)
    assert array.dtype == np.dtype(np.int64)
    assert [row.tolist() for row in array.rows] == [[2, 3], [3, 4]]


def test_the_padding_that_a_tokenizer_brings_along_is_kept(text: Path, tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_padding(pad_id=5, pad_token="slowly")
    tokenizer.save(str(path))
    assert values(text, path)["tokens"][1] == [2, 3, 5, 5]


def test_what_cannot_be_read(text: Path, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(UsageError, match=r"nowhere\.txt: can't be read \(No such file"):
        values(tmp_path / "nowhere.txt", tokenizer)
    (tmp_path / "latin.txt").write_bytes("Bäume".encode("latin-1"))
    with pytest.raises(UsageError, match="it is not UTF-8"):
        values(tmp_path / "latin.txt", tokenizer)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UsageError, match="has no line with text"):
        values(tmp_path / "empty.txt", tokenizer)
    with pytest.raises(UsageError, match=r"--tokenizer .*lines\.txt: can't be read"):
        values(text, text)
    with pytest.raises(UsageError, match="--length 0: expected 1 to"):
        values(text, tokenizer, length=0)


def test_without_the_library_the_message_names_the_extra(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match=r"needs tokenizers: pip install tokenizers \(or, .*'\.\[feeds\]'"):
        values(text, tokenizer)
