"""Models that other libraries hold in memory, as ModelProtos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from lowrank_onnx.errors import ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

_EXPECTED = "a path, an onnx.ModelProto, an onnx_graphsurgeon.Graph or an onnx_ir.Model"


def export_object(model: object) -> tuple[onnx.ModelProto, Path | None]:
    """The proto of a model object, and the directory of its external data where the object knows it.

    Raises
    ------
    ModelError
        It is no model, its library can't export it, or its external data lies in several directories.
    """
    library = type(model).__module__.partition(".")[0]
    try:
        if library == "onnx_graphsurgeon":
            return _export_graphsurgeon(model), None
        if library == "onnx_ir":
            return _export_ir(model)
    except ModelError:
        raise
    except Exception as error:  # both raise whatever their many branches come upon
        raise ModelError(
            f"{library.replace('_', '-')} can't export this model ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}): expected an exportable one; "
            "give the ModelProto that it was made from"
        ) from error
    raise ModelError(f"a {type(model).__name__} is no model: expected {_EXPECTED}")


def _export_graphsurgeon(graph: object) -> onnx.ModelProto:
    import onnx_graphsurgeon as gs

    if not isinstance(graph, gs.Graph):
        raise ModelError(f"a {type(graph).__name__} is no model: expected {_EXPECTED}")
    exported: onnx.ModelProto = gs.export_onnx(graph)
    return exported


def _export_ir(model: object) -> tuple[onnx.ModelProto, Path | None]:
    import onnx_ir as ir

    if not isinstance(model, ir.Model):
        raise ModelError(f"a {type(model).__name__} is no model: expected {_EXPECTED}")
    directories = _external_directories(model)
    if len(directories) > 1:
        raise ModelError(
            f"the onnx_ir.Model has external data in {len(directories)} directories "
            f"({', '.join(sorted(directories))}): expected one; save the model and give its path"
        )
    directory = next(iter(directories), None)
    return ir.to_proto(model), None if directory is None else Path(directory)


def _external_directories(model: ir.Model) -> set[str]:
    import onnx_ir as ir

    held: list[object] = []
    for graph in model.graphs():
        held += [value.const_value for value in graph.initializers.values()]
        held += [attribute.value for node in graph for attribute in node.attributes.values()]
    return {str(tensor.base_dir) for tensor in held if isinstance(tensor, ir.ExternalTensor)}
