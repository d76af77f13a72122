"""The documentation's commands do what it says: every line behind a ``$`` in a console block is run, page by page."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _commands(page: Path) -> list[str]:
    blocks = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


PAGES = {str(page.relative_to(DOCS)): page for page in sorted(DOCS.glob("**/*.md")) if _commands(page)}


def _run_page(page: Path, directory: Path, *, verbatim: bool) -> None:
    (directory / "models").symlink_to(ROOT / "models")
    for command in _commands(page):
        words = shlex.split(command)
        if words[0] == "lowrank-onnx":
            words = [sys.executable, "-m", "lowrank_onnx", *words[1:]]
            if not verbatim and words[3] in ("compress", "sweep"):
                # What is faster on a loaded machine is left to chance, and how well it is done isn't the point here.
                words += ["--objective", "size", "--effort", "fast"]
        elif words[0] == "python":
            words[0] = sys.executable
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(directory)}
        done = subprocess.run(words, cwd=directory, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


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


@pytest.mark.parametrize(
    "page", [*DOCS.glob("**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []
