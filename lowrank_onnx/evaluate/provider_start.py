"""Why a provider didn't start, and what it left to the CPU: asked only once a session was refused.

Onnxruntime puts the CPU in the place of a provider that fails to start, and says why in its log alone. That is read
here from what the process writes to its standard error meanwhile, as this log can't be redirected from Python.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from onnx import TensorProto, helper

from lowrank_onnx.evaluate.execution_providers import CPU
from lowrank_onnx.evaluate.log_text import first_line, logged_reason
from lowrank_onnx.provider import ProviderOptions

_WARNING, _ERROR, _FATAL = 2, 3, 4


@contextmanager
def silent_log(onnxruntime: Any) -> Iterator[None]:
    """Without the lines that providers log while they start: what fails is asked for again, by `why_not_started`."""
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)  # onnxruntime's own default


def why_not_started(onnxruntime: Any, name: str, options: ProviderOptions) -> str | None:
    """The reason in one line why a provider doesn't start with these options, whatever the model; None if it does."""
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = _FATAL
    onnxruntime.set_default_logger_severity(_ERROR)
    try:
        with _standard_error() as log:
            session = onnxruntime.InferenceSession(
                _smallest(), session_options, providers=[(name, dict(options)), CPU], enable_fallback=0
            )
            if name in session.get_providers():
                return None
            log.seek(0)
            return logged_reason(log.read(1 << 16).decode(errors="replace")) or "it doesn't say why"
    except Exception as error:  # onnxruntime's own errors have no common base below Exception
        return first_line(str(error))
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)


def left_to_the_cpu(onnxruntime: Any, source: str | bytes, session_options: Any, provider: Any) -> str | None:
    """How many nodes of a model, and of which operators, a provider leaves to others; None where that is not known.

    The options must allow the CPU, and ask for a record of the placement.
    """
    with suppress(Exception), silent_log(onnxruntime):  # the refusal that led here is told in any case
        session = onnxruntime.InferenceSession(source, session_options, providers=[provider, CPU], enable_fallback=0)
        parts = [(part.ep_name, part.get_nodes()) for part in session.get_provider_graph_assignment_info()]
        left = Counter(node.op_type for name, nodes in parts if name != provider[0] for node in nodes)
        if left:
            kinds = [f"{count} x {first_line(operator)}" for operator, count in left.most_common(4)]
            more = f" and {len(left) - 4} more" if len(left) > 4 else ""
            return f"{left.total()} of {sum(len(nodes) for _, nodes in parts)} ({', '.join(kinds)}{more})"
    return None


def _smallest() -> bytes:
    """A model of one node, which asks nothing of a provider but to start."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "smallest", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@contextmanager
def _standard_error() -> Iterator[IO[bytes]]:
    """What the process writes to its standard error meanwhile, native libraries included."""
    with tempfile.TemporaryFile() as log:
        try:
            terminal = os.dup(2)
        except OSError:  # there is none
            yield log
            return
        os.dup2(log.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
