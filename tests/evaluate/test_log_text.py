"""Messages of onnxruntime become one line that says what is wrong, and not where in its sources."""

from __future__ import annotations

import pytest

from lowrank_onnx.evaluate.log_text import first_line, logged_reason

LOGGED = "\x1b[1;31m2026-11-22 11:06:37.75 [E:onnxruntime:Default, provider_bridge_ort.cc:2310 Create] "


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : /build/src/core/a_b.cc:12 Run \x1b[31mbad\x07 shape\nmore",
            "Run [31mbad shape",
        ),
        ("/a/b.h:142 MatMul dimension mismatch (a) b", "MatMul dimension mismatch (a) b"),
        ("/a/b.cc:9 std::shared_ptr<o::F> o::python::Create(const o::S&, const std::string&) Invalid: x", "Invalid: x"),
        ("/a/b.cc:9 auto o::Call(F&&) [with bool t = false; A = {x}] No cache", "No cache"),
        ("/a/b.cc:9 bool o::Check(int) const Failed (twice)", "Failed (twice)"),
        ("a node onnx::Thing(3) was refused", "a node onnx::Thing(3) was refused"),
        ("", ""),
    ],
)
def test_the_first_line_is_what_is_wrong(message: str, line: str) -> None:
    assert first_line(message) == line


def test_a_line_is_cut() -> None:
    assert len(first_line("x" * 999_999)) == 403


@pytest.mark.parametrize(
    ("logged", "reason"),
    [
        ("/o/f.cc:141 std::string o::Parse(std::shared_ptr<C>) [ERROR] [OpenVINO] Device GPU is not available", None),
        ("/o/f.cc:141 o::Parse(const o::P&)::<lambda(const std::string&)> Device GPU is not available\n\x1b[m", None),
        ("/o/p.cc:1778 o::P& o::L::Get() [ONNXRuntimeError] : 1 : FAIL : Device GPU is not available", None),
        ("stoi\x1b[m", "stoi"),
    ],
)
def test_the_reason_is_found_in_a_log(logged: str, reason: str | None) -> None:
    log = f"something else\n2026-11-22 11:06:37.7 [W:onnxruntime:Default, a.cc:1 B] a warning\n{LOGGED}{logged}"
    assert logged_reason(log) == (reason or "Device GPU is not available")


def test_a_log_without_errors_has_no_reason() -> None:
    assert logged_reason("Loading\n") == ""


def test_a_name_of_a_million_characters_takes_no_time() -> None:
    """Looking for where a path ends takes the square of its length."""
    assert len(first_line(f"no such tensor: {'x' * 1_000_000}")) == 403
