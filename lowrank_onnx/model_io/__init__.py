"""Model files: the only package that opens them.

A model is loaded as a skeleton (the proto without its weights) and a store that reads any weight on demand; it is
saved by staging all files beside the target and renaming them. What wasn't rewritten leaves as it came, except that
references to external data point to the one new data file.
"""

from __future__ import annotations

from lowrank_onnx.model_io.assembly import complete_proto, model_bytes, model_chunks
from lowrank_onnx.model_io.loading import ModelSource, load_model
from lowrank_onnx.model_io.model import Model, base_dir
from lowrank_onnx.model_io.scratch import SavedArray, save_array, scratch_directory
from lowrank_onnx.model_io.staging import StagedModel, check_target, stage_model
from lowrank_onnx.model_io.store import WeightStore, new_tensor_proto

__all__ = [
    "Model",
    "ModelSource",
    "SavedArray",
    "StagedModel",
    "WeightStore",
    "base_dir",
    "check_target",
    "complete_proto",
    "load_model",
    "model_bytes",
    "model_chunks",
    "new_tensor_proto",
    "save_array",
    "scratch_directory",
    "stage_model",
]
