"""What a run leaves behind that is killed, or that the system stops, while it saves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lowrank_onnx.errors import OutputError
from lowrank_onnx.model_io import complete_proto, load_model, scratch_directory, stage_model

from .builders import canonical, perceptron, save_external

_PREAMBLE = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from lowrank_onnx.model_io import load_model, new_tensor_proto, stage_model, staging, datafile, workspace
    folder = Path(sys.argv[1])
    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)
    def before(module, name, call):
        original, count = getattr(module, name), [0]
        def wrapper(*args, **kwargs):
            count[0] += 1
            if count[0] == call:
                die()
            return original(*args, **kwargs)
        setattr(module, name, wrapper)
    model = load_model(folder / "in.onnx")
    new = new_tensor_proto("extra", "float32", (64, 64), "extra")
    skeleton = type(model.skeleton).FromString(model.skeleton.SerializeToString())
    skeleton.graph.initializer.append(new)
    values = lambda: np.ones((64, 64), np.float32)
"""
_SAVE = """
    model = model.with_rewrite(skeleton, {"extra": values})
    stage_model(model, folder / "small.onnx", force=True).commit()
"""

# Moments of a save, in order; from `committed` on, the new model is in place.
_MOMENTS = {
    "directory made": "before(workspace, '_lock', 1)",
    "data half written": "values = die",
    "data written": "before(os, 'replace', 1)",
    "data named": "before(staging, '_write_file', 1)",
    "model written": "before(staging, 'sync_file', 1)",
    "commit begun": "before(staging, '_write_file', 2)",
    "journal written": "before(staging, 'sync_directory', 1)",
    "journal synced": "before(os, 'replace', 2)",
    "data moved": "before(os, 'replace', 3)",
    "committed": "before(staging, 'remove_obsolete', 1)",
    "old data removed": "before(workspace.Workspace, 'remove', 1)",
}


def _run(script: str, folder: Path) -> int:
    code = textwrap.dedent(_PREAMBLE) + textwrap.dedent(script)
    return subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode


def _completed(path: Path) -> bytes:
    return canonical(complete_proto(load_model(path)))


@pytest.mark.parametrize("moment", _MOMENTS)
def test_a_killed_save_leaves_a_whole_model_and_the_next_cleans_up(tmp_path: Path, moment: str) -> None:
    save_external(perceptron(), tmp_path / "in.onnx")
    other = save_external(perceptron(seed=1), tmp_path / "other.onnx")
    with stage_model(load_model(other), tmp_path / "small.onnx") as staged:
        staged.commit()
    for path in (tmp_path / "other.onnx", tmp_path / "other.onnx.data"):
        path.unlink()
    old = _completed(tmp_path / "small.onnx")

    assert _run(_MOMENTS[moment] + textwrap.dedent(_SAVE), tmp_path) == -signal.SIGKILL
    litter = list(tmp_path.glob(".small.onnx.*.lowrank-tmp"))
    assert len(litter) == 1
    committed = moment in ("committed", "old data removed")
    assert (_completed(tmp_path / "small.onnx") == old) is not committed
    if committed:
        assert load_model(tmp_path / "small.onnx").skeleton.graph.initializer[-1].name == "extra"

    with stage_model(load_model(tmp_path / "in.onnx"), tmp_path / "small.onnx", force=True) as staged:
        assert not litter[0].exists()
        assert len(list(tmp_path.glob("small.*.data"))) == 1
        staged.commit()
    assert _completed(tmp_path / "small.onnx") == canonical(perceptron())
    assert len(list(tmp_path.glob("small.*.data"))) == 1
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".data", ".data", ".onnx", ".onnx"]


def test_a_living_run_is_not_disturbed(tmp_path: Path) -> None:
    script = """
        staged = stage_model(model, folder / "small.onnx")
        print(staged.path, flush=True)
        sys.stdin.read()
        staged.commit()
    """
    save_external(perceptron(), tmp_path / "in.onnx")
    code = textwrap.dedent(_PREAMBLE) + textwrap.dedent(script)
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    staged_path = Path(child.stdout.readline().strip())
    past = time.time() - 3600
    os.utime(staged_path.parent, (past, past))
    with scratch_directory(tmp_path / "small.onnx") as directory:
        stage_model(load_model(tmp_path / "in.onnx"), tmp_path / "small.onnx").discard()
        assert staged_path.exists()
        assert directory.exists()  # this process's own
    assert not directory.exists()
    child.stdin.close()
    assert child.wait() == 0
    child.stdout.close()
    assert _completed(tmp_path / "small.onnx") == canonical(perceptron())
    assert not staged_path.parent.exists()


def test_only_directories_of_this_target_are_leftovers(tmp_path: Path) -> None:
    dead = ".small.onnx.999999999-0123abcd.lowrank-tmp"
    kept = [
        ".small.onnx.bak.999999999-0123abcd.lowrank-tmp",
        ".other.onnx.999999999-0123abcd.lowrank-tmp",
        ".small.onnx.999999999-0123abcd",
        ".small.onnx.-0123abcd.lowrank-tmp",
        ".small.onnx.lowrank-tmp",
    ]
    for name in (dead, *kept):
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".small.onnx.999999999-ffffffff.lowrank-tmp").symlink_to(tmp_path / "elsewhere")
    # A young directory whose process lives, between its making and its locking.
    young = f".small.onnx.{os.getpid()}-0123abcd.lowrank-tmp"
    (tmp_path / young).mkdir()
    stage_model(load_model(perceptron()), tmp_path / "small.onnx").discard()
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {*kept, young, "elsewhere", ".small.onnx.999999999-ffffffff.lowrank-tmp"}
    past = time.time() - 3600
    os.utime(tmp_path / young, (past, past))
    stage_model(load_model(perceptron()), tmp_path / "small.onnx").discard()
    assert not (tmp_path / young).exists()


def test_a_forged_journal_removes_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    leftover = folder / ".small.onnx.999999999-0123abcd.lowrank-tmp"
    leftover.mkdir(parents=True)
    for victim in (tmp_path / "victim.data", folder / "victim.data"):
        victim.write_bytes(b"precious")
    names = ["../victim.data", str(tmp_path / "victim.data"), "victim.data", "..", "", "."]
    (leftover / "obsolete.txt").write_text("\n".join(names))
    stage_model(load_model(perceptron()), folder / "small.onnx").discard()
    assert (tmp_path / "victim.data").exists()
    assert (folder / "victim.data").exists()
    assert not leftover.exists()


@pytest.mark.parametrize("limit", [100, 5000, 20_000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, limit: int) -> None:
    save_external(perceptron(), tmp_path / "in.onnx")
    script = f"""
        import resource
        from lowrank_onnx.errors import OutputError
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        try:
            stage_model(model, folder / "small.onnx", force=True)
        except OutputError as error:
            assert "can't be written (File too large)" in str(error), error
            sys.exit(7)
    """
    (tmp_path / "small.onnx").write_bytes(b"old")
    assert _run(script, tmp_path) == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.onnx", "in.onnx.data", "small.onnx"]
    assert (tmp_path / "small.onnx").read_bytes() == b"old"


def test_a_private_directory_goes(tmp_path: Path) -> None:
    with scratch_directory(None) as directory:
        (directory / "spool").write_bytes(b"x")
        assert directory.parent != tmp_path
    assert not directory.exists()
    with pytest.raises(FileNotFoundError), scratch_directory(tmp_path / "small.onnx") as directory:
        tmp_path.joinpath("no", directory.name).rmdir()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="can't be written"), scratch_directory(tmp_path / "no" / "small.onnx"):
        pass
