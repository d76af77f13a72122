"""A loaded model: the proto without its weights, and the store that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from lowrank_onnx.model_io.store import Provider, WeightStore


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model whose weights are read on demand.

    Attributes
    ----------
    skeleton : the proto without large raw data. A tensor that lost its bytes has a placeholder location in their
        stead; `store` knows what it stands for. Don't edit it in place: copy it, and use `with_rewrite`.
    store : reads any tensor of the skeleton.
    name : for display: the file's name, or the graph's.
    path : the file it came from; None for a model in memory.
    external : the source kept weights in external data.
    file_bytes : bytes of the source: the model file and all external data files that it references.
    """

    skeleton: onnx.ModelProto
    store: WeightStore
    name: str
    path: Path | None
    external: bool
    file_bytes: int

    def with_rewrite(self, skeleton: onnx.ModelProto, new: Mapping[str, Provider]) -> Model:
        """The same source with a rewritten skeleton.

        Parameters
        ----------
        skeleton : may hold tensors of this model's skeleton and tensors of `new_tensor_proto`.
        new : the providers of the latter, by key, besides those that this model has already.
        """
        return replace(self, skeleton=skeleton, store=self.store.with_providers(new))


def base_dir(model: Model) -> Path | None:
    """The directory against which the external locations in `model_bytes` resolve.

    It is what onnxruntime wants as ``session.model_external_initializers_file_folder_path`` beside the bytes of a
    model: the model's own directory, or where that only links to the data, as in a Hugging Face cache, the one that
    holds it. None for a model in memory that was given none.
    """
    return model.store.files.reading_dir()
