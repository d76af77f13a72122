"""onnxruntime sessions: the only module that imports onnxruntime.

onnxruntime is imported when the first session is opened, so that everything that needs no session works without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lowrank_onnx.errors import MissingDependencyError, ModelError, UsageError, how_to_install
from lowrank_onnx.evaluate.execution_providers import CPU as CPU
from lowrank_onnx.evaluate.execution_providers import (
    RECORD_PLACEMENT,
    check_options,
    install_hint,
    load_libraries,
    placed_nodes,
    resolve_provider,
)
from lowrank_onnx.evaluate.log_text import first_line
from lowrank_onnx.evaluate.provider_start import left_to_the_cpu, silent_log, why_not_started
from lowrank_onnx.evaluate.values import EXTENSION_TYPES, InputSpec, describe_inputs, numpy_name, read_value
from lowrank_onnx.installed import installed_version
from lowrank_onnx.provider import Provider
from lowrank_onnx.types import Feed

DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-migraphx",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-training",
)
"""The packages that bring onnxruntime."""


class Runner(Protocol):
    """What comparison and timing need of a model: its signature, and a way to run it."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The inputs that a feed has to give."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs, in the model's order."""
        ...

    @property
    def logits(self) -> frozenset[str]:
        """The outputs that are compared as logits."""
        ...

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run once; all outputs, or those named."""
        ...


class Session:
    """One onnxruntime session. Opened by `open_session`.

    Attributes
    ----------
    inputs : the inputs that a feed has to give (initializers that can be overridden are not among them).
    overridable : initializers that are graph inputs too (from IR version 4 on): a feed may give other values for them.
    outputs : the names of the outputs, in the model's order.
    logits : the outputs that are compared as logits; none until who opened the session says so.
    provider : onnxruntime's name of the provider that was asked for.
    nodes : how many nodes each provider runs, as onnxruntime places them before its last fusions; None where this
        onnxruntime doesn't say.
    providers_used : the execution providers that really run nodes.
    """

    __slots__ = (
        "_extension_outputs",
        "_inner",
        "_onnxruntime",
        "inputs",
        "logits",
        "nodes",
        "outputs",
        "overridable",
        "provider",
        "providers_used",
    )

    def __init__(self, onnxruntime: Any, inner: Any, provider: str) -> None:
        self._onnxruntime = onnxruntime
        self._inner = inner
        self.inputs = describe_inputs(inner.get_inputs())
        self.overridable = describe_inputs(inner.get_overridable_initializers())
        output_types = {o.name: numpy_name(o.type) for o in inner.get_outputs()}
        self.outputs = tuple(output_types)
        self.logits: frozenset[str] = frozenset()
        self._extension_outputs = {name for name, dtype in output_types.items() if dtype in EXTENSION_TYPES}
        self.provider = provider
        self.nodes = placed_nodes(inner)
        # Handing a node to another provider is refused when a session is opened.
        self.providers_used: tuple[str, ...] = tuple(self.nodes or (provider,))

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run the model once.

        Parameters
        ----------
        feed : input name -> array (a list of arrays for a sequence).
        outputs : the outputs to return; None returns all.

        Returns
        -------
        Output name -> array; a list for a sequence, a dict for a map, None for an absent optional.

        Raises
        ------
        ModelError : onnxruntime can't run the model on this feed.
        """
        names = list(self.outputs if outputs is None else outputs)
        try:
            values = {name: self._to_onnxruntime(value) for name, value in feed.items()}
            if self._extension_outputs.isdisjoint(names):
                return dict(zip(names, self._inner.run(names, values), strict=True))
            return self._run_with_extension_outputs(names, values)
        except Exception as error:  # onnxruntime's own errors have no common base below Exception
            raise ModelError(f"onnxruntime can't run the model: {_first_line(error)}") from error

    def _to_onnxruntime(self, value: Any) -> Any:
        if isinstance(value, np.generic):  # NumPy makes scalars of 0-d arrays, and onnxruntime takes arrays only
            value = np.asarray(value)
        if not isinstance(value, np.ndarray):
            return value
        if not value.dtype.isnative:  # onnxruntime reads foreign byte orders as if they were native
            value = value.astype(value.dtype.newbyteorder("="))
        element_type = EXTENSION_TYPES.get(value.dtype.name)
        if element_type is None:
            return value
        raw = np.ascontiguousarray(value).view(np.dtype(f"u{value.dtype.itemsize}")).reshape(value.shape)
        return self._onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, element_type)

    def _run_with_extension_outputs(self, names: list[str], values: dict[str, Any]) -> dict[str, Any]:
        ort_value = self._onnxruntime.OrtValue
        wrapped = {
            name: ort_value.ortvalue_from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }
        results = self._inner.run_with_ort_values(names, wrapped)
        return {name: read_value(result) for name, result in zip(names, results, strict=True)}


CRASHES, NO_CRASH = "FuseFp16InitializerToFp32NodeTransformer", (1, 30)
"""An optimization that ends the process where a float16 initializer is an input too, on a CPU; and the first version of
onnxruntime that was seen without that (1.23 to 1.28 were seen with it)."""


def open_session(
    model: Path | bytes,
    *,
    base_dir: Path | None = None,
    provider: Provider | str = CPU,
    threads: int | None = None,
    optimize: bool = True,
    overridden: bool = False,
) -> Session:
    """Open a model in onnxruntime on one execution provider, with no silent fallback to another.

    Parameters
    ----------
    model : a model file, or a serialized ModelProto.
    base_dir : for serialized models, the directory that their external data is relative to.
    provider : an onnxruntime name ("CUDAExecutionProvider") or a short one ("cuda"), in any case; or a `Provider`, with
        options for it.
    threads : threads of one operator; None takes onnxruntime's choice (the physical cores).
    optimize : False turns onnxruntime's graph optimizations off.
    overridden : whether the model has initializers that feeds give other values for.

    Raises
    ------
    MissingDependencyError : there is no onnxruntime, or there are several.
    UsageError : the provider isn't available, couldn't start, doesn't know an option, or would leave nodes to the CPU.
    ModelError : onnxruntime can't load the model.
    """
    onnxruntime = _import_onnxruntime()
    asked = Provider(provider) if isinstance(provider, str) else provider
    name = resolve_provider(asked.name, onnxruntime.get_available_providers())
    load_libraries(onnxruntime, name)

    def session_options(*, fallback: bool) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # fatal only: everything else arrives here as an exception
        options.add_session_config_entry(RECORD_PLACEMENT, "1")
        # Sessions are run in turns: the threads of the one that waits mustn't spin on the cores of the one that runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if base_dir is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(base_dir))
        if not fallback:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return options

    source = model if isinstance(model, bytes) else str(model)
    wanted = (name, dict(asked.options))
    disabled = {"disabled_optimizers": [CRASHES]} if overridden and _is_before(onnxruntime, NO_CRASH) else {}
    try:
        with nullcontext() if name == CPU else silent_log(onnxruntime):
            options = session_options(fallback=name == CPU)
            inner = onnxruntime.InferenceSession(source, options, providers=[wanted], enable_fallback=0, **disabled)
    except Exception as error:  # onnxruntime's own errors have no common base below Exception
        if name != CPU and (reason := why_not_started(onnxruntime, name, asked.options)) is not None:
            raise _not_started(name, asked, reason) from error
        if "fallback to CPU EP has been explicitly disabled" in str(error):
            left = left_to_the_cpu(onnxruntime, source, session_options(fallback=True), wanted)
            raise UsageError(
                f"provider {name}: it can't run every node of the model, and onnxruntime would run the others on the "
                f"CPU{'' if left is None else f', {left}'}: use --provider cpu, or one that supports the whole model"
            ) from error
        raise ModelError(f"onnxruntime can't load the model: {_first_line(error)}") from error
    if name not in inner.get_providers():
        reason = why_not_started(onnxruntime, name, asked.options)
        raise _not_started(name, asked, reason or f"it fell back to {', '.join(inner.get_providers())}")
    check_options(name, asked.options, inner)
    return Session(onnxruntime, inner, name)


def _not_started(name: str, asked: Provider, reason: str) -> UsageError:
    given = " ".join(f"--provider-option {option}={value}" for option, value in asked.options)
    fix = "check that option and its value" if given else f"check its driver and libraries{install_hint(name)}"
    return UsageError(
        f"provider {name}: onnxruntime couldn't start it{given and f' with {given}'}: {reason}: "
        f"{fix}, or use --provider cpu"
    )


def _is_before(onnxruntime: Any, version: tuple[int, int]) -> bool:
    major, minor, *_ = onnxruntime.__version__.split(".")
    return (int(major), int(minor)) < version


@cache
def _import_onnxruntime() -> Any:
    installed = [name for name in DISTRIBUTIONS if installed_version(name) is not None]
    if len(installed) > 1:
        raise MissingDependencyError(
            f"{' and '.join(installed)} are both installed and overwrite each other's files: "
            f"run `pip uninstall {' '.join(installed)}`, then install one of them"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"onnxruntime can't be imported ({_first_line(error)}): "
            f"{how_to_install('cpu', 'onnxruntime')}; for an NVIDIA GPU the extra is cuda12 or cuda13"
        ) from error
    return onnxruntime


def _first_line(error: BaseException) -> str:
    return first_line(str(error) or type(error).__name__)
