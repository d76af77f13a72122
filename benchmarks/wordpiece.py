"""The tokenizer of uncased BERT models: basic splitting, then the longest matching pieces of a vocabulary.

After Devlin et al., arXiv 1810.04805, and Schuster and Nakajima, "Japanese and Korean voice search", ICASSP 2012.
Enough for English text; special tokens inside the text have no meaning.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path

LONGEST_WORD = 100
"""Characters of a word beyond which it is unknown."""


def load_vocabulary(path: Path) -> dict[str, int]:
    """Word pieces and their numbers: one a line, in order."""
    return {piece: index for index, piece in enumerate(path.read_text(encoding="utf-8").splitlines())}


def encode(text: str, vocabulary: Mapping[str, int], max_tokens: int) -> list[int]:
    """The numbers of the pieces of `text` between [CLS] and [SEP], `max_tokens` in all at most."""
    pieces = [vocabulary[piece] for word in split_words(text) for piece in split_pieces(word, vocabulary)]
    return [vocabulary["[CLS]"], *pieces[: max_tokens - 2], vocabulary["[SEP]"]]


def split_words(text: str) -> list[str]:
    """Lower-case words without accents; each punctuation mark and each CJK character is a word by itself."""
    spaced = []
    for character in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(character)
        if category == "Mn":
            continue
        if character.isspace():
            spaced.append(" ")
        elif category.startswith("C"):
            continue
        elif _stands_alone(character, category):
            spaced.append(f" {character} ")
        else:
            spaced.append(character)
    return "".join(spaced).split()


def _stands_alone(character: str, category: str) -> bool:
    # Marks of ASCII such as $ and ^ count as punctuation here, though Unicode calls them symbols.
    symbol = character.isascii() and not character.isalnum()
    return symbol or category.startswith("P") or 0x4E00 <= ord(character) <= 0x9FFF


def split_pieces(word: str, vocabulary: Mapping[str, int]) -> list[str]:
    """The longest piece first, again and again; ["[UNK]"] where that gets stuck."""
    if len(word) > LONGEST_WORD:
        return ["[UNK]"]
    pieces: list[str] = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        lengths = range(len(word), start, -1)
        end = next((end for end in lengths if prefix + word[start:end] in vocabulary), None)
        if end is None:
            return ["[UNK]"]
        pieces.append(prefix + word[start:end])
        start = end
    return pieces
