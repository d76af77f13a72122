"""Every case of an independent suite through the program at full rank, and an account of what became of its weights."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from lowrank_onnx import Alpha, Config, compress
from lowrank_onnx.errors import LowRankError
from lowrank_onnx.evaluate import open_session
from lowrank_onnx.model_io import complete_proto, load_model, stage_model
from lowrank_onnx.results import CompressionResult
from lowrank_onnx.types import Array
from tests.passes.untouched import changes
from tests.suites.testdata import Case, DataSet

FULL = Config(budget=Alpha(1.0), allow_larger=True, objective="size", method="svd", validate=False)
RTOL = 1e-3

Outputs = list[Array | None]


@dataclass
class Account:
    """What became of the cases of a suite."""

    models: int = 0
    rewritten: Counter[str] = field(default_factory=Counter)
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def add(self, case: Case, directory: Path) -> None:
        """Run one case; `directory` is empty, and may be filled."""
        self.models += 1
        try:
            problems = self._examine(case, directory)
        except Exception as error:
            problems = [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]
        self.failed += [f"{case.name}: {problem}" for problem in problems]

    def lines(self) -> list[str]:
        """The account, for people."""
        counts = self.models, sum(self.rewritten.values()), sum(self.skipped.values()), len(self.failed)
        return [
            "{} models, {} weights rewritten, {} nodes skipped, {} failed".format(*counts),
            *(f"  rewritten: {count:5} x {operator}" for operator, count in self.rewritten.most_common()),
            *(f"  skipped:   {count:5} x {kind}: {reason}" for (kind, reason), count in self.skipped.most_common()),
            *(f"  compared:  {count:5} x {how}" for how, count in self.compared.most_common()),
            *(f"  FAILED: {line}" for line in self.failed),
        ]

    def _examine(self, case: Case, directory: Path) -> list[str]:
        source, target = directory / "model.onnx", directory / "full.onnx"
        source.write_bytes(case.model.SerializeToString(deterministic=True))
        result = compress(source, FULL, output=target)
        self.rewritten.update(site.op_type for site in result.sites if site.rank is not None)
        self.skipped.update((item.op_type, generalised(item.reason, item.name)) for item in result.skipped)
        problems = [f"{item.name} was skipped without a reason" for item in result.skipped if not item.reason]
        problems += _untouched(case.model, source, target, result, directory)
        if result.status == "written":
            problems += [
                problem for data in case.data or (DataSet({}, ()),) for problem in self._compare(case, data, target)
            ]
        return problems

    def _compare(self, case: Case, data: DataSet, target: Path) -> list[str]:
        """The rewritten model against the stored outputs; where the original misses these, against the original."""
        if not data.inputs:
            self.compared["no stored data"] += 1
            return []
        before, after = run(case.model, data), run(onnx.load(target), data)
        if before is None:
            self.compared["not run: no evaluator knows the original"] += 1
            return []
        if after is None:
            return ["the original runs and the rewritten model doesn't"]
        expected: Outputs = list(data.outputs)
        if differences(before, expected):
            self.compared["with the original's outputs (which aren't the stored ones)"] += 1
            expected = before
        else:
            self.compared["with the stored outputs"] += 1
        return differences(after, expected)


def generalised(reason: str, name: str) -> str:
    """A reason without what is particular to one node, so that reasons can be counted."""
    for part in sorted(name.split("/"), key=len, reverse=True):
        reason = reason.replace(f"'{part}'", "'...'")
    words = [("'...'" if word.startswith("'") and word.endswith(("'", "'s")) else word) for word in reason.split(" ")]
    return " ".join(words)


def _untouched(
    original: onnx.ModelProto, source: Path, target: Path, result: CompressionResult, directory: Path
) -> list[str]:
    """What changed though it may not have: bytes of a model that is only copied, or beside the rewritten nodes."""
    copy = directory / "copy.onnx"
    with stage_model(load_model(source), copy) as staged:
        staged.commit()
    problems = [] if copy.read_bytes() == source.read_bytes() else ["a copy isn't the same, byte for byte"]
    if result.status != "written":
        return problems if not target.exists() else [*problems, "it is unchanged, and yet was written"]
    found = changes(original, complete_proto(load_model(target)))
    removed, added = found.get("node", ([], []))
    sites = sum(site.rank is not None for site in result.sites)
    if len(added) != 2 * sites or len(removed) < sites:
        problems.append(f"{sites} sites took away {len(removed)} nodes and brought {len(added)}")
    return problems


def run(model: onnx.ModelProto, data: DataSet) -> Outputs | None:
    """In onnxruntime, else in onnx's reference evaluator; None where neither can."""
    feed = {name: array for name, array in data.inputs.items() if array is not None}
    if len(feed) != len(data.inputs):
        return None
    with contextlib.suppress(LowRankError):
        return list(open_session(model.SerializeToString()).run(feed).values())
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ReferenceEvaluator(model).run(None, feed)
        return [value if isinstance(value, np.ndarray) else None for value in found]
    return None


def differences(found: Outputs, expected: Outputs) -> list[str]:
    """What is wrong with outputs."""
    if len(found) != len(expected):
        return [f"{len(found)} outputs, expected {len(expected)}"]
    problems = []
    for index, (got, wanted) in enumerate(zip(found, expected, strict=True)):
        if got is None or wanted is None:
            continue
        if got.dtype != wanted.dtype or got.shape != wanted.shape:
            problems.append(f"output {index} is {got.dtype} {got.shape}, expected {wanted.dtype} {wanted.shape}")
        elif got.dtype.kind not in "fV":
            problems += [] if np.array_equal(got, wanted) else [f"output {index} isn't equal"]
        else:
            a, b = got.astype(np.float64), wanted.astype(np.float64)
            scale = np.abs(b[np.isfinite(b)]).max(initial=1.0)
            rtol = 10 * RTOL if got.dtype.itemsize == 2 else RTOL
            if not np.allclose(a, b, rtol=rtol, atol=1e-2 * rtol * scale, equal_nan=True):
                problems.append(f"output {index} is off by {np.nanmax(np.abs(a - b)):.3g}, at a scale of {scale:.3g}")
    return problems


def account_for(cases: Iterable[Case], directory: Path) -> Account:
    """Run all cases, each in a directory of its own under `directory`."""
    account = Account()
    for number, case in enumerate(cases):
        folder = directory / str(number)
        folder.mkdir(parents=True)
        account.add(case, folder)
        for path in folder.iterdir():
            path.unlink()
    return account
