from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lowrank_onnx.cli import terminal
from lowrank_onnx.cli.terminal import TerminalProgress, reporting_errors, showing_progress
from lowrank_onnx.errors import ModelError
from lowrank_onnx.progress import SILENT

ROOT = Path(__file__).parents[2]


def _raising(error: BaseException) -> int:
    @reporting_errors
    def command() -> int:
        raise error

    return command()


def test_an_expected_error_is_one_escaped_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert _raising(ModelError("bad\nmodel\x1b[2J")) == 3
    assert capsys.readouterr() == ("", "error: bad\\nmodel\\x1b[2J\n")


def test_a_bug_is_one_line_that_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert _raising(KeyError("x")) == 70
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: this is a bug in lowrank-onnx, please report it: KeyError: 'x' "
        "(LOWRANK_ONNX_DEBUG=1 shows the traceback)\n"
    )
    assert _raising(AssertionError()) == 70
    assert "report it: AssertionError (LOWRANK" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(KeyError("x"), 70), (ModelError("bad"), 3)])
def test_the_traceback_comes_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    monkeypatch.setenv("LOWRANK_ONNX_DEBUG", "1")
    assert _raising(error) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "Traceback (most recent call last)" in err
    assert "in _raising" not in err
    assert "in command" in err
    monkeypatch.setenv("LOWRANK_ONNX_DEBUG", "")
    _raising(error)
    assert "Traceback" not in capsys.readouterr().err


def test_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    assert _raising(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ("error: interrupted, no model was written: run it again\n")


def test_a_bug_of_a_command_that_has_debug_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    @reporting_errors
    def command(debug: Path | None) -> int:
        raise KeyError("x")

    assert command(debug=None) == 70
    assert capsys.readouterr().err.endswith(
        "(the same with --debug FILE.zip writes what to attach, without weights; "
        "LOWRANK_ONNX_DEBUG=1 shows the traceback)\n"
    )


def test_interrupt_without_a_cache_says_that_there_could_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    @reporting_errors
    def command(cache: Path | None) -> int:
        raise KeyboardInterrupt

    assert command(cache=None) == 130
    assert capsys.readouterr().err == (
        "error: interrupted, no model was written: with --cache DIR the next run goes on where this one was\n"
    )


def test_interrupt_with_a_cache_says_that_it_has_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    @reporting_errors
    def command(cache: Path) -> int:
        raise KeyboardInterrupt

    assert command(cache=Path("kept")) == 130
    assert capsys.readouterr().err == (
        "error: interrupted, no model was written: run the same command again, and it goes on from what is in kept\n"
    )


def test_no_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert _raising(MemoryError()) == 70
    assert capsys.readouterr().err.startswith("error: not enough memory")


def test_a_command_keeps_its_name_and_code() -> None:
    @reporting_errors
    def command(value: int) -> int:
        """What it does."""
        return value

    assert command(7) == 7
    assert (command.__name__, command.__doc__) == ("command", "What it does.")


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, env=os.environ | environment, check=False
    )


LONG_REPORT = """
import sys
from rich.text import Text
from lowrank_onnx.cli.terminal import output_console, prepare_streams, reporting_errors
prepare_streams()
@reporting_errors
def command():
    console = output_console()
    for _ in range(30):
        console.print(Text(("x" * 79 + chr(10)) * 100))
    return 0
sys.exit(command())
"""


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LONG_REPORT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        process.stdout.read(100)
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (141, b"")


def test_a_name_that_the_terminal_can_not_encode_is_escaped() -> None:
    code = """
from rich.text import Text
from lowrank_onnx.report.tables import table
from lowrank_onnx.cli.terminal import output_console, prepare_streams, say_error
prepare_streams()
output_console().print(table(("name", "x"), [("重み", "1")]))
say_error("größe")
"""
    done = _run(code, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert rb"\u91cd\u307f" in done.stdout
    assert done.stderr == b"error: gr\\xf6\\xdfe\n"


@pytest.mark.parametrize(("variable", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_respected(variable: dict[str, str], coloured: bool) -> None:
    code = """
from rich.text import Text
from lowrank_onnx.cli.terminal import output_console
output_console().print(Text("words", style="red"))
"""
    done = _run(code, FORCE_COLOR="1", TERM="xterm-256color", **variable)
    assert (b"\x1b[31m" in done.stdout) is coloured
    assert b"words" in done.stdout


def test_no_bars_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with showing_progress(quiet=False) as progress:
        assert progress is SILENT
        with progress.stage("factorize", 3) as stage:
            stage.advance(detail="a")
    assert capsys.readouterr() == ("", "")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_on_standard_error_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = _Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", screen)
    with showing_progress(quiet=False) as progress:
        assert isinstance(progress, TerminalProgress)
        with progress.stage("fac[b]torize\x1b[2J", 3) as stage:
            stage.advance(2, detail="[red]layer\x1b[2J")
            progress._bars.refresh()
        with progress.stage("search", None) as stage:
            stage.advance()
    drawn = screen.getvalue()
    assert r"fac[b]torize\x1b[2J" in drawn
    assert r"[red]layer\x1b[2J" in drawn
    assert "2/3" in drawn
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("total", "words"), [(3, "left"), (None, "so far")])
def test_bars_tell_the_time_left_or_that_gone_by(
    monkeypatch: pytest.MonkeyPatch, total: int | None, words: str
) -> None:
    screen = _Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", screen)
    with showing_progress(quiet=False) as progress, progress.stage("a stage", total) as stage:
        stage.advance(1, detail="a long name that a terminal has no room for " * 3)
        assert isinstance(progress, TerminalProgress)
        progress._bars.refresh()
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()))
    assert any(words in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_quiet_means_no_bars_on_a_terminal_either(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    with showing_progress(quiet=True) as progress:
        assert progress is SILENT
    assert screen.getvalue() == ""


def test_a_stage_that_fails_takes_its_bar_with_it() -> None:
    from rich.progress import Progress

    bars = Progress(console=Console(file=io.StringIO()))
    seen: list[int] = []

    def work() -> None:
        with TerminalProgress(bars).stage("factorize", 3):
            seen.append(len(bars.tasks))
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    assert seen == [1]
    assert bars.tasks == []


MAY_PRINT = ROOT / "lowrank_onnx" / "cli"


def _prints_or_exits(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "exit", "quit"):
            found.append(f"{path.name}:{node.lineno} {node.func.id}")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in ("sys.exit", "os._exit", "sys.stdout", "sys.stderr"):
                found.append(f"{path.name}:{node.lineno} {name}")
    return found


def test_only_the_command_line_prints_or_exits() -> None:
    modules = {*(ROOT / "lowrank_onnx").rglob("*.py"), *(ROOT / "passes").rglob("*.py")}
    silent = modules - {*MAY_PRINT.rglob("*.py"), ROOT / "lowrank_onnx" / "__main__.py"}
    assert len(silent) > 100
    assert [line for path in sorted(silent) for line in _prints_or_exits(path)] == []
    assert _prints_or_exits(Path(terminal.__file__)) != []
