"""One damaged model through the program, and what must not happen."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from lowrank_onnx import cli
from lowrank_onnx.errors import LowRankError
from lowrank_onnx.model_io import load_model
from lowrank_onnx.passes import find_sites
from tests.fuzz.mutations import mutate
from tests.fuzz.seeds import Seed, make_seeds, write_seed

SECRET = "outside/secret.bin"
"""Beside the model's directory: a file that no model may lead to."""

_BUDGETS = (("--rank", "2"), ("--keep-params", "0.6"), ("--alpha", "1.0", "--allow-larger"), ("--energy", "0.9"))
_ACCEPTED = (0, 1, 3)
"""Exit codes: done, rejected or unchanged, and a model that can't be read."""


class ReadGuard:
    """Notes every file that this process opens outside of the places where it has business."""

    def __init__(self) -> None:
        self.strays: list[str] = []
        self._allowed: tuple[str, ...] = ()
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def only(self, *directories: Path) -> Iterator[None]:
        """Within it files may be opened there, and where Python and its libraries live."""
        own = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), "/proc/", "/sys/", "/dev/null")
        self._allowed = (*(os.path.realpath(place) for place in own), *(os.path.realpath(d) for d in directories))
        try:
            yield
        finally:
            self._allowed = ()

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._allowed or event != "open" or not isinstance(arguments[0], str | bytes):
            return
        with contextlib.suppress(ValueError):  # a NUL in the path: the system will refuse it
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith(self._allowed):
                self.strays.append(path)


class Target:
    """Runs cases; each is told by its number alone, on every machine."""

    def __init__(self) -> None:
        self._seeds = make_seeds()
        self._guard = ReadGuard()

    def seed_of(self, number: int) -> Seed:
        """The damaged model of a case."""
        rng = random.Random(number)
        return mutate(rng.choice(self._seeds), rng)

    def run(self, number: int, *, runtime: bool = False) -> list[str]:
        """What is wrong with how the program took case `number`; with `runtime`, onnxruntime validates results too."""
        with tempfile.TemporaryDirectory(prefix="lowrank-fuzz-") as name:
            root = Path(name)
            for folder in ("model", "out", "outside"):
                (root / folder).mkdir()
            (root / SECRET).write_bytes(bytes(1 << 16))
            (root / "model" / "link.bin").symlink_to(root / SECRET)
            (root / "model" / "linked").symlink_to(root / "outside")
            model = write_seed(self.seed_of(number), root / "model")
            before = _listing(root / "model")
            options = random.Random(number).choice(_BUDGETS)
            with self._guard.only(root / "model", root / "out"):
                problems = _compress(model, root / "out" / "small.onnx", options, runtime=runtime)
            problems += [f"read outside of the model's directory: {path}" for path in self._guard.strays]
            self._guard.strays.clear()
            if _listing(root / "model") != before:
                problems.append("the input was changed")
            return problems

    def save(self, number: int, directory: Path) -> Path:
        """Write the damaged model of a case; returns the model's path."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return write_seed(self.seed_of(number), directory)


def _listing(directory: Path) -> list[tuple[str, int, int]]:
    entries = ((path, path.lstat()) for path in sorted(directory.rglob("*")))
    return [(str(path), status.st_size, status.st_mtime_ns) for path, status in entries]


def _compress(model: Path, output: Path, options: tuple[str, ...], *, runtime: bool) -> list[str]:
    arguments = ["compress", str(model), "-o", str(output), "--objective", "size", *options]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = cli.main(arguments if runtime else [*arguments, "--no-validate"])
    except BaseException:
        return [f"uncaught: {traceback.format_exc()}"]
    text, problems = printed.getvalue(), []
    if code not in _ACCEPTED:
        problems.append(f"exit code {code}: {text}")
    if "Traceback" in text:
        problems.append(f"a traceback was printed: {text}")
    if any(not character.isprintable() and character != "\n" for character in text):
        problems.append(f"control characters were printed: {text!a}")
    return problems + _check_output(output, written=code == 0)


def _check_output(output: Path, *, written: bool) -> list[str]:
    left = sorted(path.name for path in output.parent.iterdir())
    if not written or not left:  # nothing of the model could be replaced
        return [f"left behind: {left}"] if left else []
    strange = [name for name in left if name != output.name and not name.endswith(".data")]
    if not output.exists() or strange:
        return [f"the output directory holds {left}"]
    try:
        find_sites(load_model(output).skeleton, op_types=("MatMul", "Gemm", "Conv", "ConvTranspose"))
    except LowRankError as error:
        return [f"the output can't be read: {error}"]
    return []
