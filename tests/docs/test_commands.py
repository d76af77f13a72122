"""The documentation's commands do what it says: every line behind a ``$`` in a console block is run, page by page.

A backslash at its end continues a line. Scripts that a page shows are those that ship.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.exported import EXPORTERS, EXPORTS, calibration

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _commands(page: Path) -> list[str]:
    blocks = _BLOCK.findall(page.read_text(encoding="utf-8"))
    lines = (line for block in blocks for line in block.replace("\\\n", "").splitlines())
    return [line[2:] for line in lines if line.startswith("$ ")]


PAGES = {str(page.relative_to(DOCS)): page for page in sorted(DOCS.glob("**/*.md")) if _commands(page)}


def _run_page(page: Path, directory: Path, *, verbatim: bool) -> None:
    (directory / "models").symlink_to(ROOT / "models")
    for command in _commands(page):
        words = shlex.split(command)
        settings = {}
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, settings[name] = words.pop(0).partition("=")
        if words[-1].startswith("models/exporters/") and _stand_in(words[-1], settings, directory):
            continue
        if words[0] == "lowrank-onnx":
            words = [sys.executable, "-m", "lowrank_onnx", *words[1:]]
            if not verbatim and words[3] in ("compress", "sweep"):
                # What is faster on a loaded machine is left to chance, and how well it is done isn't the point here.
                words += ["--objective", "size", "--effort", "fast"]
        elif words[0] == "python":
            words[0] = sys.executable
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(directory), **settings}
        done = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def _stand_in(script: str, settings: dict[str, str], directory: Path) -> bool:
    """Put there what a script wrote earlier, where the framework that it needs isn't installed."""
    backend = settings.get("KERAS_BACKEND")
    needed = {"export_pytorch.py": ("torch",), "export_keras.py": ("keras", backend)}.get(Path(script).name, ())
    if all(package is None or importlib.util.find_spec(package) for package in needed):
        return False
    name = f"digits_keras_{backend}.onnx" if backend else "digits_pytorch.onnx"
    shutil.copy(EXPORTERS / name, directory / name)
    calibration(directory / name, directory / EXPORTS[name])
    return True


def test_there_are_pages_with_commands() -> None:
    assert {"tutorial.md", "guides/ci.md"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_work(name: str, tmp_path: Path) -> None:
    _run_page(PAGES[name], tmp_path, verbatim=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_work_as_they_stand(name: str, tmp_path: Path) -> None:
    _run_page(PAGES[name], tmp_path, verbatim=True)


def test_a_command_that_fails_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ lowrank-onnx inspect nowhere.onnx\n```\n")
    with pytest.raises(AssertionError, match="no such file"):
        _run_page(page, tmp_path, verbatim=True)


_SCRIPT = re.compile(r"^```python\n# (models/\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SHOWN = [(page.name, *found) for page in sorted(DOCS.glob("**/*.md")) for found in _SCRIPT.findall(page.read_text())]


@pytest.mark.parametrize(("page", "script", "shown"), _SHOWN, ids=[script for _, script, _ in _SHOWN])
def test_a_script_that_a_page_shows_is_the_one_that_ships(page: str, script: str, shown: str) -> None:
    assert shown == (ROOT / script).read_text(encoding="utf-8")


def test_pages_show_the_exporters() -> None:
    shown = {script for _, script, _ in _SHOWN}
    assert {f"models/exporters/{path.name}" for path in EXPORTERS.glob("export_*.py")} <= shown


@pytest.mark.parametrize(
    "page", [*DOCS.glob("**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


COLUMNS = 92
"""Of code that a page of the site shows beside its contents without cutting it."""

_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [*DOCS.glob("**/*.md")], ids=lambda page: page.name)
def test_code_is_not_cut(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    fenced = "\n".join(block for block in _FENCED.findall(content) if "{eval-rst}" not in block)
    indented = (line[4:] for line in _FENCED.sub("", content).splitlines() if line.startswith("    "))
    assert [line for line in (*fenced.splitlines(), *indented) if len(line) > COLUMNS] == []
