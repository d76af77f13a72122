"""Low-rank compression as a pass of Olive (olive-ai).

Olive finds a pass by its name in a package configuration; `package_config` is Olive's own with this pass added.

    olive.workflows.run(workflow, package_config=package_config())

with ``{"type": "LowRankCompression", "budget": "keep_params", "amount": 0.6, "feeds": "calib.npz"}`` among the
workflow's passes.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from olive.common.config_utils import ParamCategory, validate_config
from olive.data.config import DataConfig
from olive.exception import OlivePassError
from olive.hardware import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam
from olive.resource_path import LocalFolder
from olive.search.search_parameter import Categorical, Conditional, ConditionalDefault

from lowrank_onnx.config import (
    Budget,
    Config,
    Energy,
    Gates,
    KeepBytes,
    KeepMacs,
    KeepParams,
    MaxError,
    Objective,
    Speedup,
)
from lowrank_onnx.effort import EffortLevel
from lowrank_onnx.errors import LowRankError, MissingDependencyError, OutputError, UsageError
from lowrank_onnx.observed import FeedSource
from lowrank_onnx.pipeline import compress

logger = logging.getLogger(__name__)

_SHARES = (0.8, 0.6, 0.4)
_BUDGETS: Mapping[str, tuple[Callable[[float], Budget], float, tuple[float, ...]]] = MappingProxyType(
    {
        "max_error": (MaxError, 0.05, (0.02, 0.05, 0.1)),
        "keep_params": (KeepParams, 0.6, _SHARES),
        "keep_bytes": (KeepBytes, 0.6, _SHARES),
        "keep_macs": (KeepMacs, 0.6, _SHARES),
        "speedup": (Speedup, 1.3, (1.2, 1.5, 2.0)),
        "energy": (Energy, 0.99, (0.999, 0.99, 0.95)),
    }
)
"""By name: the budget, the amount taken where none is given, and those that Olive's search tries."""

_DEFAULTS = Config()


def package_config() -> dict[str, Any]:
    """Olive's package configuration with `LowRankCompression` among its passes.

    For ``olive run --package-config FILE`` write it to a file with `json.dump`.
    """
    config: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    everything = ["*"]
    config["passes"][LowRankCompression.__name__] = {
        "module_path": f"{LowRankCompression.__module__}.{LowRankCompression.__qualname__}",
        "supported_providers": everything,
        "supported_accelerators": everything,
        "supported_precisions": everything,
        "supported_algorithms": [],
        "supported_quantization_encodings": [],
        "dataset": "dataset_optional",
    }
    return config


class LowRankCompression(Pass):  # type: ignore[misc]  # Olive has no types
    """Compress a model as `lowrank_onnx.compress` does; one whose result does not hold goes on as it is.

    What came of it is in the output's ``model_attributes["lowrank_onnx"]``: a status, "written", "rejected" or
    "unchanged", and a message that says why.
    """

    @staticmethod
    def is_accelerator_agnostic(accelerator_spec: AcceleratorSpec) -> bool:
        """False: what is faster depends on the execution provider."""
        return False

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        names = {(name,): budget for name, budget in _BUDGETS.items()}
        return {
            "budget": PassConfigParam(
                type_=str, default_value="max_error", description=f"What is limited: {', '.join(_BUDGETS)}."
            ),
            "amount": PassConfigParam(
                type_=float,
                default_value=ConditionalDefault(("budget",), {name: amount for name, (_, amount, _) in names.items()}),
                search_defaults=Conditional(
                    ("budget",), {name: Categorical(list(tried)) for name, (_, _, tried) in names.items()}
                ),
                description="How much the budget allows: a share to keep, a factor of speed, a relative error.",
            ),
            "feeds": PassConfigParam(
                type_=str,
                category=ParamCategory.PATH,
                description="Calibration inputs: an .npz, a directory of .npz, or of ONNX test_data_set_*.",
            ),
            "data_config": PassConfigParam(
                type_=DataConfig | dict, description="Calibration inputs as Olive's data config; instead of feeds."
            ),
            "objective": PassConfigParam(
                type_=Objective,
                default_value=_DEFAULTS.objective,
                description="latency: a result that isn't faster is refused. size: only parameters count.",
            ),
            "effort": PassConfigParam(
                type_=EffortLevel,
                default_value=_DEFAULTS.effort,
                description="fast, default or full: time for quality.",
            ),
            "forms": PassConfigParam(
                type_=list[str],
                default_value=list(_DEFAULTS.forms),
                description="How weights may be written. Without pivoted, what is quantized next keeps its accuracy.",
            ),
            "include": PassConfigParam(type_=list[str], description="Only nodes or weights that match these globs."),
            "exclude": PassConfigParam(type_=list[str], description="No node or weight that matches these globs."),
            "logits": PassConfigParam(
                type_=list[str],
                description="Outputs that match these globs are logits: compared without rows' means.",
            ),
            "max_error": PassConfigParam(type_=float, description="Refuse a larger relative error of the outputs."),
            "min_top1": PassConfigParam(type_=float, description="Refuse a smaller share of equal first answers."),
            "seed": PassConfigParam(type_=int, default_value=_DEFAULTS.seed, description="Of everything random."),
        }

    def _run_for_config(self, model: ONNXModelHandler, config: BasePassConfig, output_model_path: str) -> Any:
        if not isinstance(model, ONNXModelHandler):
            raise ValueError(
                f"LowRankCompression: got a {type(model).__name__}, expected an ONNX model: convert it first"
            )
        if model.external_initializers_path or model.constant_inputs_path:
            raise ValueError(
                "LowRankCompression: weights are not in the model: run this pass before they are taken out"
            )
        target = Path(resolve_onnx_path(output_model_path, "model.onnx"))
        try:
            result = compress(
                model.model_path,
                _compression(config, self.accelerator_spec),
                feeds=_feeds(config, model),
                output=target,
                force=True,
            )
        except MissingDependencyError as error:
            raise ImportError(str(error)) from error
        except (UsageError, OutputError) as error:
            raise ValueError(str(error)) from error  # Olive stops at these, and takes others for a failed trial
        except LowRankError as error:
            raise OlivePassError(str(error)) from error
        logger.info("%s: %s", result.status, result.message)
        done = _handler(target) if result.status == "written" else copy.deepcopy(model)
        told = {"lowrank_onnx": {"status": result.status, "message": result.message}}
        done.model_attributes = {**(model.model_attributes or {}), **told}
        return done


def _compression(config: BasePassConfig, accelerator: AcceleratorSpec) -> Config:
    if config.budget not in _BUDGETS:
        raise UsageError(f"budget {config.budget!r}: expected one of {', '.join(_BUDGETS)}")
    make_budget = _BUDGETS[config.budget][0]
    return Config(
        budget=make_budget(config.amount),
        objective=config.objective,
        effort=config.effort,
        forms=tuple(config.forms),
        include=tuple(config.include or ()),
        exclude=tuple(config.exclude or ()),
        logits=tuple(config.logits or ()),
        gates=Gates(max_error=config.max_error, min_top1=config.min_top1),
        seed=config.seed,
        provider=str(accelerator.execution_provider or _DEFAULTS.provider),
    )


def _feeds(config: BasePassConfig, model: ONNXModelHandler) -> FeedSource | None:
    if config.data_config is None:
        return None if config.feeds is None else str(config.feeds)
    if config.feeds is not None:
        raise UsageError("feeds and data_config: both are calibration inputs, give one of them")
    data = validate_config(config.data_config, DataConfig).to_data_container()
    return _batches(data.create_calibration_dataloader(model_path=model.model_path, io_config=model.io_config))


def _batches(reader: Any) -> Iterator[Mapping[str, Any]]:
    """What onnxruntime's calibration readers give, one dict of input name -> array a call, until None."""
    while (feed := reader.get_next()) is not None:
        yield feed


def _handler(written: Path) -> ONNXModelHandler:
    """A model with a data file beside it is a directory to Olive, so that both go wherever it takes them."""
    if any(path != written for path in written.parent.iterdir()):
        return ONNXModelHandler(model_path=LocalFolder({"path": written.parent}), onnx_file_name=written.name)
    return ONNXModelHandler(model_path=str(written))
