"""One site alone: a model of that one node, dense or at a rank, on which it can be timed.

The node has the attributes that it has in its model; weight and bias have the stored shapes and dtype, with other
values: what a matrix product or a convolution costs doesn't depend on them. The names are always the same, so that
sites that differ in nothing else give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx.helper

from lowrank_onnx import __version__, passes
from lowrank_onnx.forms import Form
from lowrank_onnx.passes.graph_view import default_domain
from lowrank_onnx.passes.splice import graph_at
from lowrank_onnx.types import Array, NewTensor, Site, SiteChoice, WeightRef, numpy_dtype

INPUT, WEIGHT, BIAS, OUTPUT = "x", "weight", "bias", "y"

_IR_VERSION = 8
"""One for all: operators mean the same in each, and from 4 on an initializer needn't be an input as well."""

_SCALE = 1 / 16
"""Standard deviation of the weights: two of them in a row don't overflow float16, nor come near its denormals."""

_BLOCK = 65_521
"""Values that are drawn; larger tensors repeat them. A prime, so that the rows of a matrix aren't copies."""


@dataclass(frozen=True, slots=True)
class SiteModel:
    """A model of one node, or of several that read the same input, whose initializers have no values; and its sites."""

    proto: onnx.ModelProto
    sites: tuple[Site, ...]
    input_shape: tuple[int, ...]

    @property
    def site(self) -> Site:
        """The first site."""
        return self.sites[0]

    def choices(self, form: Form, rank: int) -> tuple[SiteChoice, ...]:
        """All sites in their forms of that form's name, at rank r."""
        named = [next((one for one in site.forms if one.name == form.name), form) for site in self.sites]
        return tuple(SiteChoice(site, one, rank, "none", 0.0, 0.0) for site, one in zip(self.sites, named, strict=True))

    def key(self) -> bytes:
        """The same bytes for all sites that are the same node on the same shapes."""
        return bytes(self.proto.SerializeToString(deterministic=True))


def build_site_model(skeleton: onnx.ModelProto, site: Site, input_shape: tuple[int, ...]) -> SiteModel:
    """The model of one site.

    Parameters
    ----------
    skeleton : the model in which the site was found, with or without its weights; it isn't changed.
    site : any site of it, in a subgraph too.
    input_shape : of the activation that the site reads.

    Raises
    ------
    ValueError : the site isn't in this model, or a size in `input_shape` is negative.
    """
    if any(size < 0 for size in input_shape):
        raise ValueError(f"site '{site.name}': input shape {list(input_shape)}, expected sizes of at least 0")
    original = _find_node(skeleton, site)
    names = {site.input: INPUT}
    operands = [names.get(name, WEIGHT) for name in original.input[:2]]
    initializers = [_tensor(WEIGHT, site.weight.dtype, site.weight.shape)]
    if len(original.input) > 2 and original.input[2]:
        operands.append(BIAS)
        initializers.append(_tensor(BIAS, site.weight.dtype, _bias_shape(skeleton, site, original)))
    node = onnx.helper.make_node(original.op_type, operands, [OUTPUT], name="site", domain=original.domain)
    node.attribute.extend(sorted(original.attribute, key=lambda attribute: str(attribute.name)))
    for attribute in node.attribute:
        attribute.ClearField("doc_string")
    dtype = initializers[0].data_type
    graph = onnx.helper.make_graph(
        [node],
        "site",
        [onnx.helper.make_tensor_value_info(INPUT, dtype, input_shape)],
        [onnx.helper.make_tensor_value_info(OUTPUT, dtype, None)],
        initializers,
    )
    opsets = [opset for opset in skeleton.opset_import if default_domain(opset.domain) == ""]
    imports = [onnx.helper.make_opsetid("", opset.version) for opset in opsets[:1]]
    own = default_domain(original.domain)
    others = [opset for opset in skeleton.opset_import if own and opset.domain == own]
    imports += [onnx.helper.make_opsetid(own, opset.version) for opset in others[:1]]
    proto = onnx.helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
    proto.producer_name = ""
    return SiteModel(proto, (_site_in_model(site),), input_shape)


def build_bundle_model(skeleton: onnx.ModelProto, sites: Sequence[Site], input_shape: tuple[int, ...]) -> SiteModel:
    """The model of sites that read the same tensor; as `build_site_model` for each of them."""
    first, *others = (build_site_model(skeleton, site, input_shape) for site in sites)
    proto = first.proto
    members = list(first.sites)
    for number, other in enumerate(others, 1):
        names = {name: f"{name}.{number}" for name in (WEIGHT, BIAS, OUTPUT)}
        node = other.proto.graph.node[0]
        node.name = f"site.{number}"
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names[OUTPUT]]
        for value in (*other.proto.graph.initializer, *other.proto.graph.output):
            value.name = names[value.name]
        proto.graph.node.append(node)
        proto.graph.initializer.extend(other.proto.graph.initializer)
        proto.graph.output.extend(other.proto.graph.output)
        site = other.site
        members.append(
            replace(
                site,
                name=node.name,
                node_index=number,
                weight=replace(site.weight, name=names[WEIGHT]),
                bias=site.bias and replace(site.bias, name=names[BIAS]),
                output=names[OUTPUT],
            )
        )
    return SiteModel(proto, tuple(members), input_shape)


def at_rank(model: SiteModel, form: Form, rank: int) -> onnx.ModelProto:
    """The model with its nodes rewritten, as the pass rewrites them, in a form at rank r; without values.

    Raises
    ------
    ValueError : the site doesn't have the form, or the form not the rank.
    """
    return passes.rewrite(
        model.proto, model.choices(form, rank), tool_version=__version__, placeholder=_placeholder
    ).skeleton


def with_values(proto: onnx.ModelProto) -> bytes:
    """The serialized model with random values in all its initializers: the same ones each time."""
    complete = onnx.ModelProto()
    complete.CopyFrom(proto)
    for tensor in complete.graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        block = (_draw(math.prod(tensor.dims)) * _SCALE).astype(dtype).tobytes()
        size = math.prod(tensor.dims) * dtype.itemsize
        tensor.raw_data = (block * math.ceil(size / max(1, len(block))))[:size]
    return bytes(complete.SerializeToString())


def draw_input(model: SiteModel) -> dict[str, Array]:
    """A feed for the model: standard normal values, the same ones each time."""
    size = math.prod(model.input_shape)
    values = np.resize(_draw(size), size).astype(numpy_dtype(model.site.weight.dtype))
    return {INPUT: values.reshape(model.input_shape)}


def _draw(size: int) -> Array:
    return np.random.default_rng(0).standard_normal(min(size, _BLOCK), dtype=np.float32)


def _find_node(skeleton: onnx.ModelProto, site: Site) -> onnx.NodeProto:
    try:
        node: onnx.NodeProto = graph_at(skeleton.graph, site.scope).node[site.node_index]
    except (KeyError, IndexError):
        node = onnx.NodeProto()
    if node.op_type != site.op_type or site.output not in node.output or site.input not in node.input:
        raise ValueError(f"site '{site.name}' isn't in this model")
    return node


def _site_in_model(site: Site) -> Site:
    return replace(
        site,
        name="site",
        scope=(),
        node_index=0,
        weight=WeightRef((), WEIGHT, "initializer", site.weight.dtype, site.weight.shape),
        bias=site.bias and WeightRef((), BIAS, "initializer", site.bias.dtype, site.bias.shape),
        input=INPUT,
        output=OUTPUT,
        counted=INPUT if site.counted == site.input else OUTPUT,
    )


def _bias_shape(skeleton: onnx.ModelProto, site: Site, node: onnx.NodeProto) -> tuple[int, ...]:
    """The shape of the third input. Where a Gemm's isn't stored, a vector of the output's features stands for it."""
    if site.op_type in ("Conv", "FusedConv"):
        return (site.weight.shape[0],)
    if site.op_type == "ConvTranspose":
        return (site.weight.shape[1] * site.shape.groups,)
    stored = _stored_shape(skeleton, site, node.input[2])
    if stored is not None:
        return stored
    weight_comes_first = node.input[1] == site.input
    return (site.shape.out_features, 1) if weight_comes_first else (site.shape.out_features,)


def _stored_shape(skeleton: onnx.ModelProto, site: Site, name: str) -> tuple[int, ...] | None:
    """The shape of an initializer or of a Constant's tensor, as a node in the site's graph sees its name."""
    for depth in range(len(site.scope), -1, -1):
        graph = graph_at(skeleton.graph, site.scope[:depth])
        for tensor in graph.initializer:
            if tensor.name == name:
                return tuple(tensor.dims)
        for node in graph.node:
            if name in node.output:
                values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
                return tuple(values[0].dims) if node.op_type == "Constant" and values else None
        if any(value.name == name for value in graph.input):
            return None
    return None


def _tensor(name: str, dtype: str, shape: tuple[int, ...]) -> onnx.TensorProto:
    data_type = onnx.helper.np_dtype_to_tensor_dtype(numpy_dtype(dtype))
    return onnx.TensorProto(name=name, data_type=data_type, dims=shape)


def _placeholder(tensor: NewTensor, key: str) -> onnx.TensorProto:
    del key
    return _tensor(tensor.name, tensor.dtype, tensor.shape)
