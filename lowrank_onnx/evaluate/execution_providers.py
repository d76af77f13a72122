"""Execution providers by name, what to install where one is missing, and which of them got how many nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from lowrank_onnx.errors import UsageError, how_to_install
from lowrank_onnx.provider import ProviderOptions

CPU = "CPUExecutionProvider"

RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"
"""The session's setting that makes onnxruntime remember which provider got which node."""

_CUDA_12 = "'onnxruntime-gpu[cuda,cudnn]<1.27' 'cupy-cuda12x[ctk]'"
_CUDA = f"in place of onnxruntime, {how_to_install('cuda12', _CUDA_12)}, or cuda13 and a newer onnxruntime-gpu likewise"

_PACKAGES: Mapping[str, str] = {
    "CUDAExecutionProvider": _CUDA,
    "TensorrtExecutionProvider": f"{_CUDA}, and TensorRT",
    "NvTensorRTRTXExecutionProvider": "the build of onnxruntime for TensorRT-RTX",
    "OpenVINOExecutionProvider": "pip install onnxruntime-openvino in place of onnxruntime",
    "DmlExecutionProvider": "pip install onnxruntime-directml in place of onnxruntime",
    "MIGraphXExecutionProvider": "pip install onnxruntime-migraphx in place of onnxruntime",
    "QNNExecutionProvider": "pip install onnxruntime-qnn in place of onnxruntime",
    "CoreMLExecutionProvider": "pip install onnxruntime on macOS",
}
"""What brings a provider."""


def short_name(provider: str) -> str:
    """The name without its ending, like "cuda"."""
    return provider.casefold().removesuffix("executionprovider")


def resolve_provider(wanted: str, available: Sequence[str]) -> str:
    """Onnxruntime's name of a provider that is given by it, or shortened, in any case.

    Raises
    ------
    UsageError
        It isn't among those available; the message says what to install.
    """
    for name in available:
        if wanted.casefold() in (name.casefold(), short_name(name)):
            return name
    there = ", ".join(available)
    for name, install in _PACKAGES.items():
        if wanted.casefold() in (name.casefold(), short_name(name)):
            raise UsageError(f"provider {wanted!r}: this onnxruntime has only {there}: for {name}, {install}")
    raise UsageError(
        f"provider {wanted!r}: this onnxruntime has {there}; "
        "choose one of them, or install the build of onnxruntime that has it"
    )


def load_libraries(onnxruntime: Any, name: str) -> None:
    """Load what a provider needs of CUDA from NVIDIA's packages, where they are installed: no linker looks there.

    What isn't found there is left to the linker.
    """
    load = getattr(onnxruntime, "preload_dlls", None)
    if load is not None and name in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        with redirect_stdout(StringIO()):  # what it misses it prints; why a provider doesn't start is asked for later
            load()


def install_hint(name: str) -> str:
    """What to do about a provider that is there and doesn't start."""
    install = _PACKAGES.get(name)
    return "" if install is None else f" (it comes with: {install})"


def check_options(name: str, options: ProviderOptions, session: Any) -> None:
    """Refuse options that a provider doesn't have: onnxruntime drops some of them without a word (`UsageError`)."""
    known = session.get_provider_options().get(name, {}) if options else {}
    unknown = [option for option, _ in options if option not in known]
    if unknown and (known or name == CPU):
        there = f"it has {', '.join(sorted(known))}" if known else "it has none"
        raise UsageError(f"--provider-option {unknown[0]}: {name} has no such option: {there}")


def placed_nodes(session: Any) -> dict[str, int] | None:
    """How many nodes, as onnxruntime left them after its own optimizations, each provider runs.

    None where this onnxruntime does not say (older ones).
    """
    record = getattr(session, "get_provider_graph_assignment_info", None)
    if record is None:
        return None
    counts: Counter[str] = Counter()
    for part in record():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)
