"""The wheel and the source distribution hold what they should, `passes` included, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import lowrank_onnx
from lowrank_onnx import passes

ROOT = Path(__file__).resolve().parents[2]
RESOURCES = {f"lowrank_onnx/{name}" for name in ("py.typed", "report/html/page.css", "report/html/page.html.jinja")}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds both from a copy of the tracked layout, without touching the checkout."""
    directory = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "checkout"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(source)], check=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return directory


def sources() -> set[str]:
    own = {f"lowrank_onnx/{p.relative_to(ROOT / 'lowrank_onnx')}" for p in (ROOT / "lowrank_onnx").glob("**/*.py")}
    rules = {f"lowrank_onnx/passes/{p.relative_to(ROOT / 'passes')}" for p in (ROOT / "passes").glob("**/*.py")}
    return {name for name in own | rules if "__pycache__" not in name}


def test_wheel_holds_the_library_with_passes_and_nothing_else(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    code = {name for name in names if ".dist-info/" not in name}
    assert code == sources() | RESOURCES
    assert len(names) == len(set(names))


def test_source_distribution_builds_from_itself(distributions: Path, tmp_path: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert (unpacked / "passes" / "__init__.py").is_file()


def test_installed_wheel_imports_passes(distributions: Path, tmp_path: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = "import lowrank_onnx, lowrank_onnx.passes as p; print(p.__file__); print(len(p.RULES))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(tmp_path / "lowrank_onnx" / "passes" / "__init__.py")


def test_passes_refuses_to_be_a_top_level_package() -> None:
    done = subprocess.run([sys.executable, "-c", "import passes"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "lowrank_onnx.passes" in done.stderr.splitlines()[-1]


def test_the_symlink_is_committed() -> None:
    link = ROOT / "lowrank_onnx" / "passes"
    assert link.is_symlink()
    assert link.readlink() == Path("../passes")
    assert Path(passes.__file__).resolve() == ROOT / "passes" / "__init__.py"


def test_public_names_resolve() -> None:
    for name in lowrank_onnx.__all__:
        assert getattr(lowrank_onnx, name) is not None
