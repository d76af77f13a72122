from __future__ import annotations

import pytest

from benchmarks.wordpiece import LONGEST_WORD, encode, split_pieces, split_words

VOCABULARY = {
    piece: index
    for index, piece in enumerate(["[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "##a", "cafe", "$", "u", "a"])
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("Café au\tlait\n", ["cafe", "au", "lait"]),
        ("cost: $5^2", ["cost", ":", "$", "5", "^", "2"]),
        ("don't re-do", ["don", "'", "t", "re", "-", "do"]),
        ("a\u200bb \x00c", ["ab", "c"]),
        ("中文ok", ["中", "文", "ok"]),
        ("“quoted”", ["“", "quoted", "”"]),
        ("  ", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("word", "pieces"),
    [
        ("unaffable", ["un", "##aff", "##able"]),
        ("una", ["un", "##a"]),
        ("unx", ["[UNK]"]),
        ("x", ["[UNK]"]),
        ("u" + "a" * (LONGEST_WORD - 1), ["u"] + ["##a"] * (LONGEST_WORD - 1)),
        ("u" + "a" * LONGEST_WORD, ["[UNK]"]),
    ],
)
def test_the_longest_piece_comes_first(word: str, pieces: list[str]) -> None:
    assert split_pieces(word, VOCABULARY) == pieces


def test_special_tokens_enclose_what_fits() -> None:
    assert encode("Unaffable café", VOCABULARY, 10) == [1, 3, 4, 5, 7, 2]
    assert encode("Unaffable café", VOCABULARY, 4) == [1, 3, 4, 2]
