from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_onnx.report.escape import encodable, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain/Name_0", "plain/Name_0"),
        ("größe 重み", "größe 重み"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("two\nlines\r", r"two\nlines\r"),
        ("bell\x07 c1\x9b", r"bell\x07 c1\x9b"),
        ("bidi\u202eevil", r"bidi\u202eevil"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("surrogate\udc80", r"surrogate\udc80"),
        ("line\u2028sep", r"line\u2028sep"),
        ("private\U000f0000", r"private\U000f0000"),
    ],
)
def test_what_a_terminal_would_obey_is_made_visible(name: str, shown: str) -> None:
    assert printable(name) == shown


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=())))
def test_the_result_is_always_one_printable_line(name: str) -> None:
    assert printable(name).isprintable()
    assert printable(printable(name)) == printable(name)


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=())))
def test_every_text_can_be_encoded(name: str) -> None:
    encodable(name).encode("utf-8")


def test_text_that_is_sound_is_kept() -> None:
    assert encodable("größe\n\x00") == "größe\n\x00"
    assert encodable("a\udc80b") == r"a\udc80b"
