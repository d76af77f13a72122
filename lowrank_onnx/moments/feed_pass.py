"""One pass over the feeds: run a model that returns activations, pick their rows and add them up."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import helper

from lowrank_onnx.evaluate.feeds import Feeds
from lowrank_onnx.evaluate.session import Runner
from lowrank_onnx.moments.gather_rows import RowsError, count_rows, gather_rows
from lowrank_onnx.moments.gram import gram_threads
from lowrank_onnx.moments.lookups import LookupSum
from lowrank_onnx.moments.moment import Moment, MomentSum
from lowrank_onnx.moments.pass_plan import Wanted
from lowrank_onnx.moments.row_layout import Lookup
from lowrank_onnx.moments.row_sampling import row_target, sample_rows
from lowrank_onnx.observe import add_shape_outputs
from lowrank_onnx.progress import StageProgress
from lowrank_onnx.types import Array, Feed, numpy_dtype


class FeedPass:
    """The moments that are taken together in one pass, or what went wrong with them.

    Parameters
    ----------
    items : the moments.
    seed, max_rows : as in `lowrank_onnx.moments.stream_moments`.
    feeds : how many there are.
    """

    def __init__(self, items: Iterable[Wanted], seed: int, max_rows: int | None, feeds: int) -> None:
        self._items = tuple(items)
        self._sums: dict[Wanted, MomentSum | LookupSum] = {}
        self._results: dict[Wanted, Moment | str] = {}
        self._seed = seed
        self._max_rows = max_rows
        self._feeds = feeds

    def go(
        self,
        skeleton: onnx.ModelProto,
        run: Callable[[onnx.ModelProto], Runner],
        feeds: Feeds,
        stage: StageProgress,
    ) -> None:
        """Run the model on all feeds, and finish every moment."""
        instrumented, outputs = add_value_outputs(skeleton, {item.tensor: item.dtype for item in self._items})
        session = run(instrumented)
        with gram_threads() as executor:
            for item in self._items:
                layout = item.layout
                self._sums[item] = (
                    LookupSum(layout.in_features)
                    if isinstance(layout, Lookup)
                    else MomentSum(layout.groups, layout.in_features, item.buffer_dtype, executor)
                )
            for number, feed in enumerate(feeds):
                live = {item.tensor: outputs[item.tensor] for item in self._sums}
                if live:
                    self._add_feed(number, session.run(accepted(session, feed), list(live.values())), live)
                stage.advance()
            while self._sums:
                item = next(iter(self._sums))
                self._results[item] = self._result(item, self._sums.pop(item))

    def results(self) -> Iterator[tuple[tuple[str, ...], Moment | str]]:
        """Site names, and their moment or the reason for none, which is given up as it is handed out."""
        for item in self._items:
            yield item.sites, self._results.pop(item)

    def _result(self, item: Wanted, total: MomentSum | LookupSum) -> Moment | str:
        if not total.rows:
            return f"its input {item.tensor!r} had no rows on any feed"
        moment = total.finish()
        if not np.isfinite(moment.second_moment).all():
            return f"its input {item.tensor!r} is so large that its squares overflow"
        return moment

    def _add_feed(self, number: int, values: dict[str, Array], live: Mapping[str, str]) -> None:
        for tensor, output in live.items():
            activation = values.pop(output)
            finite = _is_finite(activation)
            for item in [item for item in self._sums if item.tensor == tensor]:
                try:
                    if not finite:
                        raise RowsError(f"holds NaN or infinity on feed {number + 1} of {self._feeds}")
                    self._add_activation(number, item, activation)
                except RowsError as error:
                    self._results[item] = f"its input {tensor!r} {error}"
                    del self._sums[item]

    def _add_activation(self, number: int, item: Wanted, activation: Array) -> None:
        total = self._sums[item]
        if isinstance(total, LookupSum):
            total.add(activation)
            return
        count = count_rows(item.layout, activation.shape)
        target = row_target(item.layout, self._max_rows)
        quota = count if target is None else -(-target * (number + 1) // self._feeds) - total.rows
        indices = sample_rows(count, quota, _row_seed(self._seed, item, number))
        start = 0
        while start < len(indices):
            chunk = indices[start : start + total.room]
            rows = gather_rows(item.layout, activation, chunk, item.buffer_dtype)
            total.add(rows, count / len(indices))
            start += len(chunk)
        if len(indices):
            total.close_feed(count)


def _is_finite(activation: Array) -> bool:
    """Without an array of booleans as large as the activation: NaN and infinity show in its extremes."""
    if not activation.size:
        return True
    with np.errstate(invalid="ignore"):  # bfloat16 warns of the NaN that is looked for
        return math.isfinite(float(activation.min())) and math.isfinite(float(activation.max()))


def _row_seed(seed: int, item: Wanted, number: int) -> int:
    text = f"{seed}\0{item.tensor}\0{item.layout!r}\0{number}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def add_value_outputs(model: onnx.ModelProto, wanted: Mapping[str, str]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Copy a model so that it returns the named values of its main graph, and nothing else.

    Parameters
    ----------
    wanted : value name -> dtype.

    Returns
    -------
    The copy, and for each name the output that gives it. A graph input or initializer is returned through an Identity
    node, since not every runtime returns what no node has made; numbers of rows ("int64") through a Cast, since they
    may be int32.

    Raises
    ------
    ModelError : the main graph has no value of that name.
    """
    # The names of shape outputs are fresh, and so are unused names to give the Identity nodes' outputs.
    _, fresh = add_shape_outputs(model, list(wanted))
    instrumented = onnx.ModelProto()
    instrumented.CopyFrom(model)
    graph = instrumented.graph
    made = {name for node in graph.node for name in node.output}
    outputs = {name: name if name in made and wanted[name] != "int64" else fresh[name] for name in wanted}
    del graph.output[:]
    for name, output in outputs.items():
        if wanted[name] == "int64":
            graph.node.append(helper.make_node("Cast", [name], [output], name=output, to=onnx.TensorProto.INT64))
        elif output != name:
            graph.node.append(helper.make_node("Identity", [name], [output], name=output))
        data_type = helper.np_dtype_to_tensor_dtype(numpy_dtype(wanted[name]))
        graph.output.append(helper.make_tensor_value_info(output, data_type, None))
    return instrumented, outputs


def accepted(session: Runner, feed: Feed) -> dict[str, Array]:
    """The part of a feed that a session takes: an instrumented copy may need fewer inputs."""
    names = {spec.name for spec in session.inputs}
    return {name: value for name, value in feed.items() if name in names}
