from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lowrank_onnx.config import Gates
from lowrank_onnx.errors import ModelError, UsageError
from lowrank_onnx.evaluate.compare import compare_outputs, judge
from lowrank_onnx.evaluate.confidence import share_at_least
from lowrank_onnx.evaluate.feeds import FeedGroup, Feeds
from lowrank_onnx.evaluate.values import InputSpec
from lowrank_onnx.types import LatencyComparison, MetricComparison, OutputStatistics, Timing, overall_error
from tests.evaluate.fakes import FunctionSession, as_feeds

ONE = as_feeds([np.zeros(1, np.float32)])


def compare_values(original: Any, candidate: Any) -> OutputStatistics:
    """Statistics of one output that has these values on the only feed."""
    (output,) = compare_outputs(
        FunctionSession(lambda feed: {"y": original}), FunctionSession(lambda feed: {"y": candidate}), ONE
    )
    return output


def _random(*shape: int) -> Any:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def test_equal_outputs_are_perfect() -> None:
    y = _random(4, 5)
    assert compare_values(y, y.copy()) == OutputStatistics(
        "y", "float32", 20, 0.0, 0.0, math.inf, 1.0, 1.0, (), top1_rows=len(y)
    )


def test_figures_over_several_feeds_are_those_of_all_elements_together() -> None:
    values = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(np.float32)
    noise = np.random.default_rng(1).standard_normal((3, 4, 6)).astype(np.float32) * 0.1
    feeds = as_feeds([np.float32(index) * np.ones(1, np.float32) for index in range(3)])
    (output,) = compare_outputs(
        FunctionSession(lambda feed: {"y": values[int(feed["x"][0])]}),
        FunctionSession(lambda feed: {"y": (values + noise)[int(feed["x"][0])]}),
        feeds,
    )
    y, z = values.astype(np.float64).ravel(), (values + noise).astype(np.float64).ravel()
    assert output.elements == 72
    assert output.max_abs == pytest.approx(np.abs(z - y).max(), rel=1e-12)
    assert output.relative_l2 == pytest.approx(np.linalg.norm(z - y) / np.linalg.norm(y), rel=1e-12)
    assert output.sqnr_db == pytest.approx(-20 * math.log10(output.error), rel=1e-12)
    assert output.cosine == pytest.approx(y @ z / np.linalg.norm(y) / np.linalg.norm(z), rel=1e-12)
    agreement = np.mean(values.argmax(-1) == (values + noise).argmax(-1))
    assert output.top1_agreement == pytest.approx(agreement)
    assert output.problems == ()


def test_more_elements_than_a_block() -> None:
    y = np.ones(3_000_000, np.float16)
    z = y.copy()
    z[-1] = 3.0
    output = compare_values(y, z)
    assert output.elements == 3_000_000
    assert output.max_abs == 2.0
    assert output.relative_l2 == pytest.approx(2.0 / math.sqrt(3_000_000), rel=1e-12)


@hypothesis_settings(max_examples=25, deadline=None)
@given(scale=st.floats(1.01, 1e3), rows=st.integers(1, 5), columns=st.integers(2, 6))
def test_a_scaled_output_is_seen(scale: float, rows: int, columns: int) -> None:
    y = np.random.default_rng(rows * 10 + columns).standard_normal((rows, columns))
    output = compare_values(y, y * scale)
    assert output.relative_l2 == pytest.approx(scale - 1, rel=1e-9)
    assert output.cosine == pytest.approx(1.0, abs=1e-12)
    assert output.top1_agreement == 1.0


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_every_float_type_is_compared_as_numbers(dtype: Any) -> None:
    output = compare_values(np.array([[3.0, 4.0]], dtype), np.array([[3.0, 2.0]], dtype))
    assert output.relative_l2 == pytest.approx(2 / 5)
    assert output.top1_agreement == 0.0


def test_an_output_of_zeros() -> None:
    zeros = np.zeros((1, 3), np.float32)
    equal = compare_values(zeros, zeros)
    assert (equal.relative_l2, equal.sqnr_db, equal.cosine) == (0.0, math.inf, 1.0)
    different = compare_values(zeros, zeros + 1)
    assert (different.relative_l2, different.sqnr_db, different.cosine) == (math.inf, -math.inf, 0.0)
    assert different.problems == ()


@pytest.mark.parametrize(
    ("original", "candidate", "problem"),
    [
        ([1.0, np.nan], [1.0, 2.0], "the original's output holds 1 NaN: choose other feeds"),
        ([1.0, np.nan], [1.0, np.nan], "the original's output holds 1 NaN: choose other feeds"),
        ([1.0, 2.0], [np.nan, 2.0], "the candidate has 1 NaN or infinite values where the original is finite"),
        ([1.0, 2.0], [np.inf, -np.inf], "the candidate has 2 NaN or infinite values where the original is finite"),
        ([1.0, np.inf], [1.0, -np.inf], "1 infinities of the original are not reproduced"),
        ([1.0, -np.inf], [1.0, 5.0], "1 infinities of the original are not reproduced"),
        ([1.0, -np.inf], [1.0, np.nan], "1 infinities of the original are not reproduced"),
        ([np.inf], [np.inf], "nothing was compared: it has no finite elements on these feeds"),
        ([], [], "nothing was compared: it has no finite elements on these feeds"),
        ([1e200], [1e200], "its values are too large to compare in float64"),
    ],
)
def test_what_is_not_finite_is_a_problem(original: list[float], candidate: list[float], problem: str) -> None:
    output = compare_values(np.array(original), np.array(candidate))
    assert output.problems == (problem,)
    assert output.relative_l2 == math.inf
    assert output.sqnr_db == -math.inf


def test_infinities_that_are_reproduced_take_no_part() -> None:
    output = compare_values(np.array([3.0, 4.0, -np.inf]), np.array([3.0, 5.0, -np.inf]))
    assert output.problems == ()
    assert output.relative_l2 == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("original", "candidate", "problem"),
    [
        (_random(2, 3), _random(3, 2), "its shape changed from (2, 3) to (3, 2)"),
        (_random(2, 3), _random(1, 2, 3), "its shape changed from (2, 3) to (1, 2, 3)"),
        (_random(2), _random(2).astype(np.float16), "its dtype changed from float32 to float16"),
        (_random(2), [_random(2)], "its structure changed from a tensor to [*]"),
        ([_random(2)], [_random(2), _random(2)], "its structure changed from [*] to [*,*]"),
        ({"a": 0.5}, {"b": 0.5}, "its structure changed from {'a'} to {'b'}"),
        (None, _random(1), "its structure changed from nothing to a tensor"),
        (np.array([1.0, 2.0]), np.array([1, 2]), "its dtype changed from float64 to int64"),
        (
            np.array([], np.int64),
            np.array([], np.int64),
            "nothing was compared: it has no finite elements on these feeds",
        ),
        (np.array([1 + 2j]), np.array([1 + 2j]), "its dtype complex128 can't be compared"),
        (None, None, "nothing was compared: it has no finite elements on these feeds"),
    ],
)
def test_changes_are_problems(original: Any, candidate: Any, problem: str) -> None:
    output = compare_values(original, candidate)
    assert output.problems == (problem,)
    assert output.relative_l2 == math.inf


def test_sequences_and_maps_are_compared_as_numbers() -> None:
    original = [{0: 0.6, 1: 0.8}, {0: 1.0, 1: 0.0}]
    assert compare_values(original, [dict(entry) for entry in original]).relative_l2 == 0.0
    output = compare_values(original, [{1: 0.8, 0: 0.6}, {0: 0.0, 1: 0.0}])
    assert output.dtype == "map"
    assert output.elements == 4
    assert output.relative_l2 == pytest.approx(1 / math.sqrt(2))
    assert output.top1_agreement is None
    assert output.problems == ()
    assert compare_values([_random(2, 3)], [_random(2, 3)]).dtype == "sequence"


def test_strings_tell_their_share_of_equal_elements() -> None:
    output = compare_values(np.array(["a", "b"]), np.array(["a", "c"], object))
    assert output == OutputStatistics("y", "string", 2, None, None, None, None, 0.5, (), top1_rows=2)
    assert (output.is_answer, output.error) == (True, 0.5)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32, np.bool_])
def test_integers_and_bools_tell_their_share_of_equal_elements_and_nothing_else(dtype: Any) -> None:
    output = compare_values(np.array([1, 0, 1, 1], dtype), np.array([1, 0, 0, 1], dtype))
    assert output == OutputStatistics("y", np.dtype(dtype).name, 4, None, None, None, None, 0.75, (), top1_rows=4)
    assert output.error == 0.25


def test_large_integers_that_differ_are_not_equal() -> None:
    assert compare_values(np.array([2**62, 5]), np.array([2**62 + 1, 5])).top1_agreement == 0.5


def test_answers_in_sequences_are_answers() -> None:
    output = compare_values([np.array([1, 2]), np.array([3])], [np.array([1, 5]), np.array([3])])
    assert (output.dtype, output.relative_l2, output.error, output.top1_rows) == ("sequence", None, round(1 / 3, 12), 0)


@pytest.mark.parametrize(("shape", "rows"), [((5,), 5), ((5, 1), 5), ((5, 2), 0), ((), 0), ((1,), 1)])
def test_answers_with_one_entry_a_row_are_samples(shape: tuple[int, ...], rows: int) -> None:
    assert compare_values(np.zeros(shape, np.int64), np.zeros(shape, np.int64)).top1_rows == rows


@pytest.mark.parametrize(
    ("original", "candidate", "agreement"),
    [
        ([[1.0, 2.0], [2.0, 1.0]], [[1.0, 3.0], [1.0, 2.0]], 0.5),
        ([[2.0, 2.0, 1.0]], [[1.0, 3.0, 0.0]], 1.0),  # the original's tie forgives
        ([[2.0, 1.0]], [[0.0, 0.0]], 0.0),  # a constant candidate has found nothing
        ([[1.0, 1.0]], [[0.0, 0.0]], 1.0),
    ],
)
def test_top1(original: Any, candidate: Any, agreement: float) -> None:
    assert compare_values(np.array(original), np.array(candidate)).top1_agreement == agreement


@pytest.mark.parametrize(("shape", "has_classes"), [((4,), False), ((4, 3), True), ((2, 4, 3), True), ((4, 1), False)])
def test_only_scores_have_a_class_axis(shape: tuple[int, ...], has_classes: bool) -> None:
    assert (compare_values(_random(*shape), _random(*shape)).top1_agreement is not None) is has_classes
    assert compare_values(_random(1, 2, 3, 4), _random(1, 2, 3, 4)).top1_agreement is None


def test_outputs_that_only_one_model_has_are_problems() -> None:
    values = {"a": _random(1, 2), "b": _random(1, 2), "c": _random(1, 2)}
    outputs = compare_outputs(
        FunctionSession(lambda feed: values, outputs=("a", "b")),
        FunctionSession(lambda feed: values, outputs=("c", "a")),
        ONE,
    )
    assert [(output.name, output.problems) for output in outputs] == [
        ("a", ()),
        ("b", ("the candidate lacks this output",)),
        ("c", ("the original has no such output",)),
    ]


def test_no_feed_compares_nothing() -> None:
    session = FunctionSession(lambda feed: {"y": _random(1, 2)})
    nothing = Feeds("none", synthetic=False, samples=0, groups=())
    (output,) = compare_outputs(session, session, nothing)
    assert output.problems == ("nothing was compared: it has no finite elements on these feeds",)


def test_models_with_other_inputs_are_refused() -> None:
    other = FunctionSession(lambda feed: {}, inputs=[InputSpec("z", "int64", ())])
    with pytest.raises(UsageError, match=r"the candidate's inputs \(z: int64\) aren't the original's \(x: float32\)"):
        compare_outputs(FunctionSession(lambda feed: {}), other, ONE)


def test_a_model_that_fails_is_named() -> None:
    def fail(feed: Any) -> dict[str, Any]:
        raise ModelError("onnxruntime can't run the model: bad")

    with pytest.raises(ModelError, match="the candidate on feed 0: onnxruntime can't run the model: bad"):
        compare_outputs(FunctionSession(lambda feed: {"y": _random(1)}), FunctionSession(fail), ONE)


def test_progress_advances_with_each_feed() -> None:
    class Stage:
        done = 0

        def advance(self, n: int = 1, detail: str = "") -> None:
            self.done += n

    session, stage = FunctionSession(lambda feed: {"y": feed["x"]}), Stage()
    compare_outputs(session, session, as_feeds([_random(2)] * 3), progress=stage)
    assert stage.done == 3


NO_CLASSES = (
    "--min-top1 0.95: no output has a class axis (a float output of rank 2 or 3) or answers (integers, bools or "
    "strings): drop the gate"
)
GOOD = OutputStatistics("y", "float32", 10, 0.1, 0.01, 40.0, 0.999, 0.98, ())


def _latency(low: float, high: float) -> LatencyComparison:
    return LatencyComparison(Timing(2.0, 0.1, 10), Timing(1.0, 0.1, 10), (low + high) / 2, low, high, 0.95, 10)


def _failures(
    *outputs: OutputStatistics,
    gates: Gates | None = None,
    latency: LatencyComparison | None = None,
    require_faster: bool = False,
    min_speedup: float = 1.0,
    feeds: Feeds = ONE,
) -> tuple[str, ...]:
    verdict = judge(
        outputs,
        latency,
        feeds,
        ["cpu"],
        gates=gates or Gates(),
        require_faster=require_faster,
        min_speedup=min_speedup,
    )
    assert verdict.passed is not bool(verdict.failures)
    return verdict.failures


def test_a_sound_comparison_passes_and_is_reported() -> None:
    verdict = judge(
        [GOOD],
        _latency(1.1, 1.3),
        ONE,
        ["CPUExecutionProvider"],
        gates=Gates(min_sqnr_db=40.0, max_error=0.01, min_top1=0.98),
        require_faster=True,
    )
    assert verdict.passed
    assert verdict.outputs == (GOOD,)
    assert (verdict.feeds, verdict.synthetic, verdict.samples) == (ONE.description, False, 1)
    assert verdict.providers == ("CPUExecutionProvider",)


def test_comparing_nothing_fails() -> None:
    failure = "nothing was compared: give feeds and a model with outputs"
    assert _failures() == (failure,)
    assert _failures(GOOD, feeds=Feeds("none", synthetic=False, samples=0, groups=())) == (failure,)


def _changed(**changes: Any) -> OutputStatistics:
    fields = {name: getattr(GOOD, name) for name in GOOD.__slots__}
    return OutputStatistics(**{**fields, **changes})


@pytest.mark.parametrize(
    ("output", "gates", "failure"),
    [
        (_changed(problems=("it broke",)), Gates(), "output 'y': it broke"),
        (_changed(sqnr_db=39.9), Gates(min_sqnr_db=40), "output 'y': SQNR 39.90 dB is below --min-sqnr 40"),
        (_changed(sqnr_db=math.nan), Gates(min_sqnr_db=40), "output 'y': SQNR nan dB is below --min-sqnr 40"),
        (
            _changed(relative_l2=0.06),
            Gates(max_error=0.05),
            "output 'y': relative error 0.06 is above --max-error 0.05",
        ),
        (
            _changed(relative_l2=math.nan),
            Gates(max_error=0.05),
            "output 'y': relative error nan is above --max-error 0.05",
        ),
        (
            _changed(top1_agreement=0.9),
            Gates(min_top1=0.95),
            "output 'y': top-1 agreement 0.9000 is below --min-top1 0.95",
        ),
        (
            _changed(top1_agreement=None),
            Gates(min_top1=0.95),
            NO_CLASSES,
        ),
    ],
)
def test_each_failure_is_a_sentence(output: OutputStatistics, gates: Gates, failure: str) -> None:
    assert _failures(output, gates=gates) == (failure,)
    assert _failures(GOOD) == ()


def _answers(agreement: float, elements: int = 100, name: str = "label") -> OutputStatistics:
    return OutputStatistics(name, "int64", elements, None, None, None, None, agreement, (), top1_rows=elements)


def test_answers_beside_numbers_are_no_error_and_have_a_gate() -> None:
    assert overall_error([GOOD, _answers(0.8)]) == GOOD.relative_l2
    assert _failures(GOOD, _answers(0.8), gates=Gates(max_error=0.05, min_sqnr_db=40)) == ()
    assert _failures(GOOD, _answers(0.8), gates=Gates(min_top1=0.9)) == (
        "output 'label': share of equal answers 0.8000 is below --min-top1 0.9",
    )


@pytest.mark.parametrize(
    "others", [(), (_changed(relative_l2=0.0, sqnr_db=math.inf),), (_changed(relative_l2=1e-6, sqnr_db=120.0),)]
)
def test_where_no_number_moved_the_share_of_changed_answers_is_the_error(others: tuple[OutputStatistics, ...]) -> None:
    gates = Gates(max_error=0.05)
    assert overall_error([*others, _answers(0.94)]) == 0.06
    assert _failures(*others, _answers(0.94), gates=gates) == (
        "output 'label': share of changed answers 0.06 is above --max-error 0.05",
    )
    assert _failures(*others, _answers(0.95), gates=gates) == ()
    assert overall_error([*others, _answers(0.94), _answers(0.5, name="other")]) == 0.5


def test_numbers_that_moved_too_little_do_not_hide_the_others() -> None:
    moved = _changed(name="z", relative_l2=2e-6)
    assert overall_error([_changed(relative_l2=0.0), moved, _answers(0.5)]) == 2e-6
    assert math.isinf(overall_error([]))
    assert math.isinf(overall_error([GOOD, replace(_answers(1.0), problems=("it broke",))]))


def test_answers_alone_have_no_signal_to_noise_ratio() -> None:
    assert _failures(_answers(1.0), gates=Gates(min_sqnr_db=30)) == (
        "--min-sqnr 30: no output has numbers, only answers: give --min-top1 instead",
    )


def test_few_answers_alone_prove_no_small_error() -> None:
    def failures(*outputs: OutputStatistics) -> tuple[str, ...]:
        verdict = judge(outputs, None, ONE, ["cpu"], gates=Gates(), require_faster=False, asked_error=0.05)
        return verdict.failures

    assert failures(_answers(1.0, 19)) == (
        "output 'label': 19 answers are too few to tell an error of 0.05: give feeds with at least 20",
    )
    assert failures(_answers(1.0, 20)) == failures(GOOD, _answers(1.0, 3)) == ()


def test_a_gate_holds_for_every_output() -> None:
    worse = _changed(name="z", relative_l2=0.5)
    assert _failures(GOOD, worse, gates=Gates(max_error=0.05)) == (
        "output 'z': relative error 0.5 is above --max-error 0.05",
    )


def test_faster_has_to_be_measured_and_certain() -> None:
    assert _failures(GOOD, latency=_latency(1.01, 1.2), require_faster=True) == ()
    assert _failures(GOOD, latency=_latency(0.9, 1.2)) == ()
    assert _failures(GOOD, require_faster=True) == ("the latency was not measured, and the objective is latency",)
    (failure,) = _failures(GOOD, latency=_latency(0.99, 1.21), require_faster=True)
    assert failure == "not faster: 2 ms -> 1 ms, speedup 1.100 with 95 % interval 0.990 to 1.210 (10 pairs)"


def test_a_speedup_that_was_asked_for_has_to_be_reached_by_the_median() -> None:
    assert _failures(GOOD, latency=_latency(1.4, 1.6), require_faster=True, min_speedup=1.49) == ()
    (failure,) = _failures(GOOD, latency=_latency(1.4, 1.6), require_faster=True, min_speedup=1.51)
    assert failure == (
        "not as fast as --speedup 1.51: 2 ms -> 1 ms, speedup 1.500 with 95 % interval 1.400 to 1.600 (10 pairs)"
    )
    (failure,) = _failures(GOOD, latency=_latency(0.9, 4.0), require_faster=True, min_speedup=1.5)
    assert failure.startswith("not faster: ")
    assert _failures(GOOD, latency=_latency(1.4, 1.6), min_speedup=2.0) == ()


def _judged(output: OutputStatistics, feeds: Feeds = ONE, models: int = 1) -> OutputStatistics:
    verdict = judge([output], None, feeds, ["cpu"], gates=Gates(), require_faster=False, models=models)
    return verdict.outputs[0]


def test_rows_that_are_samples_bound_the_top_class_of_others_like_them() -> None:
    rows = _changed(top1_agreement=0.98, top1_rows=100)
    assert _judged(rows).top1_bound == share_at_least(98, 100)
    assert _judged(rows, models=5).top1_bound == share_at_least(98, 100, 0.99)


def test_answers_have_a_bound_where_each_is_a_sample() -> None:
    feeds = Feeds("given", synthetic=False, samples=100, groups=ONE.groups)
    assert _judged(_answers(0.98), feeds).top1_bound == share_at_least(98, 100)
    nearly = Feeds("the last feed is smaller", synthetic=False, samples=110, groups=(FeedGroup(4, lambda: iter(())),))
    assert _judged(_answers(0.98), nearly).top1_bound == share_at_least(98, 100)
    assert _judged(_answers(0.98), ONE).top1_bound is None


def test_what_proves_nothing_has_no_bound() -> None:
    rows = _changed(top1_agreement=0.98, top1_rows=100)
    synthetic = Feeds("made up", synthetic=True, samples=1, groups=ONE.groups)
    assert _judged(rows, synthetic).top1_bound is None
    assert _judged(_changed(top1_agreement=0.98, top1_rows=0)).top1_bound is None
    assert _judged(replace(rows, problems=("it broke",))).top1_bound is None


@pytest.mark.parametrize(("shape", "rows"), [((5, 4), 5), ((2, 5, 4), 0), ((5,), 0), ((5, 1), 0)])
def test_only_rows_of_rank_two_are_samples(shape: tuple[int, ...], rows: int) -> None:
    y = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert compare_values(y, y.copy()).top1_rows == rows


def test_a_metric_that_dropped_too_far_fails() -> None:
    def failures(candidate: float, max_drop: float | None, bound: float | None = None) -> tuple[str, ...]:
        metric = MetricComparison("m", True, 0.95, candidate, samples=None, drop_bound=bound)
        verdict = judge(
            [GOOD], None, ONE, ["cpu"], gates=Gates(), require_faster=False, metric=metric, max_drop=max_drop
        )
        assert verdict.metric == metric
        return verdict.failures

    assert failures(0.94, 0.01) == failures(0.5, None) == ()
    assert failures(0.93, 0.01) == ("metric m: 0.95 -> 0.93 is a drop of 0.02: above --max-drop 0.01",)
    assert failures(math.nan, 0.01)
    assert failures(0.945, 0.01, bound=0.012) == (
        "metric m: 0.95 -> 0.945 is a drop of 0.005, and up to 0.012 can't be ruled out: above --max-drop 0.01",
    )


def test_a_limit_without_a_metric_fails() -> None:
    verdict = judge([GOOD], None, ONE, ["cpu"], gates=Gates(), require_faster=False, max_drop=0.01)
    assert verdict.failures == ("--max-drop 0.01: the metric was not measured",)
