"""What cached results depend on, besides options: the program and its libraries, the model, the feeds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

from threadpoolctl import threadpool_info

from lowrank_onnx import __version__
from lowrank_onnx.config import Device
from lowrank_onnx.evaluate import Feeds, Runner
from lowrank_onnx.installed import installed_version
from lowrank_onnx.latency.machine import machine_key
from lowrank_onnx.model_io import Model, model_chunks
from lowrank_onnx.provider import Provider


def environment_facts(device: Device) -> Iterator[object]:
    """What decides the last digit of any factorization: program, libraries, processor and threads."""
    yield from ("lowrank-onnx", __version__, _source_digest())
    yield {
        name: installed_version(name)
        for name in ("numpy", "scipy", "ml_dtypes", "cupy-cuda12x", "cupy-cuda13x", "cupy")
    }
    yield machine_key(Provider("cpu" if device == "cpu" else "cuda"), None)
    # The BLAS picks its kernels by processor and by the number of threads, and each rounds in its own way.
    wanted = ("internal_api", "version", "architecture", "threading_layer", "num_threads")
    pools = [pool for pool in threadpool_info() if pool.get("user_api") == "blas"]
    yield sorted(tuple(str(pool.get(name)) for name in wanted) for pool in pools)


@cache
def _source_digest() -> bytes:
    """Of the program's own files: a checkout changes without its version number changing."""
    hasher = hashlib.blake2b(digest_size=32)
    home = Path(__file__).parent
    for path in sorted([*home.rglob("*.py"), *(home / "passes").glob("*.py")]):
        content = path.read_bytes()
        hasher.update(b"%s %d;" % (path.relative_to(home).as_posix().encode(), len(content)))
        hasher.update(content)
    return hasher.digest()


def model_facts(model: Model, provider: Provider | str) -> Iterator[object]:
    """What decides how a model runs: every byte of it, its weights included, and what runs it."""
    yield machine_key(provider, None)
    hasher = hashlib.blake2b(digest_size=32)
    for chunk in model_chunks(model):
        hasher.update(chunk)
    yield hasher.digest()


def comparison_facts(original: Runner) -> Iterator[object]:
    """What decides how outputs are compared with the original's, besides themselves: which of them are logits."""
    yield sorted(original.logits)


def feed_facts(feeds: Feeds, count: int | None = None) -> Iterator[object]:
    """The contents of the first `count` feeds, or of all; one is in memory at a time."""
    return islice(feeds, count)
