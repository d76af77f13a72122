"""Run an instrumented model feed by feed, and add up the second moments of what its sites read.

Memory does not grow with the number of feeds: of each feed only its own activations are held, and where those of all
sites and the moments together would be too much, the feeds are gone through several times, some sites at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx

from lowrank_onnx.errors import UsageError
from lowrank_onnx.evaluate.feeds import Feeds
from lowrank_onnx.evaluate.session import Runner
from lowrank_onnx.model_io import save_array
from lowrank_onnx.moments.feed_pass import FeedPass, accepted
from lowrank_onnx.moments.moment import Moment
from lowrank_onnx.moments.pass_plan import Wanted, plan_passes
from lowrank_onnx.moments.row_layout import Lookup, RowLayout, find_row_layout
from lowrank_onnx.observe import add_shape_outputs
from lowrank_onnx.progress import SILENT, Progress
from lowrank_onnx.types import Feed, Site


def observe_moments(
    skeleton: onnx.ModelProto,
    sites: Sequence[Site],
    run: Callable[[onnx.ModelProto], Runner],
    feeds: Feeds,
    *,
    seed: int,
    max_bytes: int = 2**31,
    max_rows: int | None = None,
    directory: Path | None = None,
    first_shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    progress: Progress = SILENT,
) -> Mapping[str, Moment | str]:
    """The second moments of the inputs of all sites.

    Parameters
    ----------
    skeleton, sites, run, feeds, seed, max_bytes, max_rows, first_shapes, progress : as in `stream_moments`.
    directory : where finished moments are kept, as files that are mapped into memory when read; the caller
        owns and removes it. None keeps all of them in memory, which `max_bytes` does not bound: it bounds one pass.

    Returns
    -------
    By `Site.name`: a moment, or the reason why there is none. Sites that read the same rows share one object.

    Raises
    ------
    UsageError, ModelError : as in `stream_moments`.
    """
    found: dict[str, Moment | str] = {}
    stream = stream_moments(
        skeleton,
        sites,
        run,
        feeds,
        seed=seed,
        max_bytes=max_bytes,
        max_rows=max_rows,
        first_shapes=first_shapes,
        progress=progress,
    )
    for number, (names, result) in enumerate(stream):
        kept = result if directory is None or isinstance(result, str) else keep_moment(result, directory, number)
        found.update(dict.fromkeys(names, kept))
    return {site.name: found[site.name] for site in sites}


def keep_moment(moment: Moment, directory: Path, number: int) -> Moment:
    """The same moment, its large part in a file of that number in `directory` instead of in memory."""
    second = save_array(directory / f"moment.{number}.bin", moment.second_moment)
    return Moment(second.mapped(), moment.mean, moment.rows, moment.positions)


def stream_moments(
    skeleton: onnx.ModelProto,
    sites: Sequence[Site],
    run: Callable[[onnx.ModelProto], Runner],
    feeds: Feeds,
    *,
    seed: int,
    max_bytes: int = 2**31,
    max_rows: int | None = None,
    first_shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    progress: Progress = SILENT,
) -> Iterator[tuple[tuple[str, ...], Moment | str]]:
    """Give the second moments of the sites' inputs as they are finished, pass by pass.

    Parameters
    ----------
    skeleton : the model, with or without its weights; it is not changed.
    sites : the sites; those in subgraphs get a reason instead of a moment.
    run : opens a session for an instrumented copy (and restores the weights first, where the skeleton lacks them).
    feeds : feeds for the model; gone through once to find the largest, and once for each pass.
    seed : of the sampled positions. The same seed gives the same positions, however the passes are divided.
    max_bytes : bound of one pass: its moments, its workspace and the activations that it holds of one feed, taken to
        be no larger than on the feed with the most elements. What onnxruntime needs itself comes on top.
    max_rows : rows that go into one moment, spread evenly over the feeds. None takes all rows of MatMul and Gemm, and
        of convolutions `SAMPLED_ROWS_PER_FEATURE` times `in`, at least `LEAST_SAMPLED_ROWS`; all where there are fewer.
    first_shapes : of values on the first feed, where they are known: where no other feed has more elements, the model
        isn't run on it to find them.
    progress : receives one stage, a unit for each feed of each pass.

    Yields
    ------
    Names of the sites that read the same rows, and their moment, or the reason why there is none.

    Raises
    ------
    UsageError : there is no feed, or `max_bytes` or `max_rows` is below 1.
    ModelError : the copy can't run, or a site names a value that the graph doesn't have.
    """
    for name, bound in (("max_bytes", max_bytes), ("max_rows", max_rows)):
        if bound is not None and bound < 1:
            raise UsageError(f"{name} {bound}: expected at least 1")
    wanted, unknown = _collect(skeleton, sites)
    yield from unknown
    if not wanted:
        return
    elements = _largest_elements(skeleton, [item.tensor for item in wanted], run, feeds, first_shapes)
    passes, reasons = plan_passes(wanted, elements, max_bytes)
    for item, reason in reasons.items():
        yield item.sites, reason
    with progress.stage("observing inputs", len(passes) * len(feeds)) as stage:
        for items in passes:
            one_pass = FeedPass(items, seed, max_rows, len(feeds))
            one_pass.go(skeleton, run, feeds, stage)
            yield from one_pass.results()


def _collect(
    skeleton: onnx.ModelProto, sites: Sequence[Site]
) -> tuple[list[Wanted], list[tuple[tuple[str, ...], str]]]:
    """The distinct moments, in the order of their first site; and the sites whose rows aren't known."""
    readers: dict[tuple[str, RowLayout, str], list[str]] = {}
    unknown: list[tuple[tuple[str, ...], str]] = []
    for site in sites:
        layout = find_row_layout(skeleton, site)
        if isinstance(layout, str):
            unknown.append(((site.name,), layout))
        else:
            dtype = "int64" if isinstance(layout, Lookup) else site.weight.dtype
            readers.setdefault((site.input, layout, dtype), []).append(site.name)
    wanted = [Wanted(tensor, layout, dtype, tuple(names)) for (tensor, layout, dtype), names in readers.items()]
    return wanted, unknown


def _largest_elements(
    skeleton: onnx.ModelProto,
    tensors: Sequence[str],
    run: Callable[[onnx.ModelProto], Runner],
    feeds: Feeds,
    first_shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, int]:
    """Elements of each tensor when the model runs on the feed with the most elements."""
    number, largest = max(enumerate(feeds), key=lambda entry: _feed_size(entry[1]), default=(0, None))
    if largest is None:
        raise UsageError("there is no feed to observe the model on: give at least one")
    if number == 0 and all(tensor in first_shapes for tensor in tensors):
        return {tensor: math.prod(first_shapes[tensor]) for tensor in tensors}
    instrumented, shape_names = add_shape_outputs(skeleton, list(dict.fromkeys(tensors)))
    session = run(instrumented)
    shapes = session.run(accepted(session, largest))
    return {tensor: math.prod(int(size) for size in shapes[name]) for tensor, name in shape_names.items()}


def _feed_size(feed: Feed) -> int:
    return sum(value.size for value in feed.values() if isinstance(value, np.ndarray))
