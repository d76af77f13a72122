from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lowrank_onnx
from lowrank_onnx.cli import main
from lowrank_onnx.config import (
    OP_TYPES,
    Alpha,
    Budget,
    Config,
    Energy,
    FixedRank,
    Gates,
    KeepBytes,
    KeepMacs,
    KeepParams,
    MaxDrop,
    MaxError,
    Speedup,
)
from lowrank_onnx.errors import FactorizationError, MissingDependencyError, ModelError, OutputError, UsageError
from tests.report.samples import FAILED, INSPECTED, VERDICT, compression, unchanged


class FakePipeline(ModuleType):
    """Stands where the pipeline would, remembers how it was called, and does as it is told."""

    def __init__(self) -> None:
        super().__init__("lowrank_onnx.pipeline")
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.outcome: dict[str, Any] = {"compress": compression(), "inspect": INSPECTED, "validate": VERDICT}
        self.error: BaseException | None = None
        for name in self.outcome:
            setattr(self, name, self._verb(name))

    def _verb(self, name: str) -> Callable[..., Any]:
        def verb(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            if self.error is not None:
                raise self.error
            return self.outcome[name]

        return verb

    @property
    def config(self) -> Config:
        """Of the only call."""
        [(_, args, kwargs)] = self.calls
        found = [value for value in (*args, *kwargs.values()) if isinstance(value, Config)]
        assert len(found) == 1
        return found[0]


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    fake = FakePipeline()
    monkeypatch.setitem(sys.modules, "lowrank_onnx.pipeline", fake)
    monkeypatch.setattr(lowrank_onnx, "pipeline", fake, raising=False)
    return fake


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"never read here")
    return path


# Options

FLAGS_OF_FIELDS = {
    "budget": "--rank --alpha --energy --keep-params --keep-bytes --keep-macs --max-error --max-drop --speedup",
    "gates": "--min-sqnr --max-error --min-top1 --max-drop",
    "validate": "--no-validate",
    "overrides": "--site",
    "provider_options": "--provider-option",
    "one_session": "--one-session --two-sessions",
}


@pytest.mark.parametrize(
    ("flags", "budget"),
    [
        ("", MaxError(0.05)),
        ("--max-error 0.2", MaxError(0.2)),
        ("--rank 64", FixedRank(64)),
        ("--alpha 0.4", Alpha(0.4)),
        ("--energy 0.99", Energy(0.99)),
        ("--keep-params 0.6", KeepParams(0.6)),
        ("--keep-bytes 0.5", KeepBytes(0.5)),
        ("--keep-macs 1", KeepMacs(1.0)),
        ("--speedup 1.5", Speedup(1.5)),
    ],
)
def test_each_budget(pipeline: FakePipeline, model: Path, flags: str, budget: Budget) -> None:
    assert main(["compress", "model.onnx", *flags.split()]) == 0
    assert pipeline.config == Config(budget=budget)


def test_max_error_beside_a_budget_is_a_gate(pipeline: FakePipeline, model: Path) -> None:
    main(["compress", "model.onnx", "--rank", "8", "--max-error", "0.1", "--min-sqnr", "-3", "--min-top1", "0.99"])
    assert pipeline.config.budget == FixedRank(8)
    assert pipeline.config.gates == Gates(max_error=0.1, min_sqnr_db=-3.0, min_top1=0.99)


def test_max_error_alone_is_no_gate(pipeline: FakePipeline, model: Path) -> None:
    main(["compress", "model.onnx", "--max-error", "0.1", "--min-top1", "1"])
    assert pipeline.config.budget == MaxError(0.1)
    assert pipeline.config.gates == Gates(min_top1=1.0)


METRIC = """
def accuracy(predict):
    return 0.5

def loss(predict):
    return 0.5
loss.higher_is_better = False
"""


@pytest.fixture
def metric_file(model: Path) -> Path:
    path = model.with_name("metrics.py")
    path.write_text(METRIC)
    return path


def test_a_drop_is_a_budget(pipeline: FakePipeline, metric_file: Path) -> None:
    assert main(["compress", "model.onnx", "--max-drop", "0.01", "--metric", "metrics.py:accuracy"]) == 0
    assert pipeline.config.budget == MaxDrop(0.01)
    assert pipeline.config.gates == Gates()
    assert pipeline.config.metric is not None
    assert (pipeline.config.metric.name, pipeline.config.metric.higher_is_better) == ("metrics.py:accuracy", True)


def test_beside_a_drop_an_error_is_a_gate_and_beside_another_budget_both_are(
    pipeline: FakePipeline, metric_file: Path
) -> None:
    both = ["--max-drop", "0.01", "--max-error", "0.1", "--metric", "metrics.py:loss"]
    main(["compress", "model.onnx", *both])
    assert (pipeline.config.budget, pipeline.config.gates) == (MaxDrop(0.01), Gates(max_error=0.1))
    pipeline.calls.clear()
    main(["compress", "model.onnx", "--rank", "8", *both])
    assert (pipeline.config.budget, pipeline.config.gates) == (FixedRank(8), Gates(max_error=0.1, max_drop=0.01))
    assert pipeline.config.metric is not None
    assert not pipeline.config.metric.higher_is_better


def test_two_models_can_be_compared_by_a_metric(pipeline: FakePipeline, metric_file: Path) -> None:
    assert main(["validate", "a", "b", "--metric", "metrics.py:accuracy", "--max-drop", "0.01"]) == 0
    assert pipeline.config.gates == Gates(max_drop=0.01)
    assert pipeline.config.metric is not None


def test_every_other_option_arrives(pipeline: FakePipeline, model: Path) -> None:
    flags = (
        "--alpha 0.4 --objective size --method rsvd --power-iterations 2 --oversampling 0 --seed 7 --include a* "
        "--include b --exclude c --op-types MatMul,Gemm --op-types Conv,MatMul --rank-multiple 8 --device cpu "
        "--provider cuda --one-session --no-validate --allow-larger --fix-overridable "
        "--no-whiten --effort fast --sensitivity full --logits scores --logits head/*"
    )
    assert main(["compress", "model.onnx", *flags.split()]) == 0
    assert pipeline.config == Config(
        budget=Alpha(0.4),
        objective="size",
        method="rsvd",
        power_iterations=2,
        oversampling=0,
        seed=7,
        include=("a*", "b"),
        exclude=("c",),
        op_types=("MatMul", "Gemm", "Conv"),
        rank_multiple=8,
        allow_larger=True,
        fix_overridable=True,
        whiten=False,
        effort="fast",
        sensitivity="full",
        device="cpu",
        provider="cuda",
        one_session=True,
        logits=("scores", "head/*"),
        validate=False,
    )


def test_every_field_of_the_configuration_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    main(["compress", "--help"])
    words = set(capsys.readouterr().out.split())
    for field in dataclasses.fields(Config):
        flags = FLAGS_OF_FIELDS.get(field.name, "--" + field.name.replace("_", "-"))
        assert words.issuperset(flags.split()), field.name


def test_defaults_are_those_of_the_library(pipeline: FakePipeline, model: Path) -> None:
    main(["compress", "model.onnx"])
    assert pipeline.config == Config()
    assert pipeline.config.op_types == OP_TYPES


def test_what_the_pipeline_is_given(pipeline: FakePipeline, model: Path, tmp_path: Path) -> None:
    (tmp_path / "feeds.npz").write_bytes(b"")
    main(["compress", "model.onnx", "--calib", "feeds.npz", "--force", "-o", "small.onnx", "--cache", "kept"])
    [(name, args, kwargs)] = pipeline.calls
    assert (name, args[0]) == ("compress", Path("model.onnx"))
    assert (kwargs["feeds"], kwargs["output"], kwargs["force"]) == (Path("feeds.npz"), Path("small.onnx"), True)
    assert kwargs["cache"] == Path("kept")


def test_the_default_output_lies_beside_the_model(pipeline: FakePipeline, model: Path) -> None:
    main(["compress", str(model)])
    [(_, _, kwargs)] = pipeline.calls
    assert kwargs["output"] == model.parent / "model.lowrank.onnx"
    assert kwargs["feeds"] is None
    assert kwargs["cache"] is None
    assert kwargs["force"] is False


def test_validate_and_inspect_arrive(pipeline: FakePipeline, model: Path, tmp_path: Path) -> None:
    (tmp_path / "feeds").mkdir()
    assert main(["validate", "a", "b", "--data", "feeds", "--min-sqnr", "30", "--max-error", "0.1", "--seed", "3"]) == 0
    assert main(["inspect", "model.onnx", "--op-types", "Gemm", "--include", "x"]) == 0
    (_, args, kwargs), (_, inspected, _) = pipeline.calls
    assert args == (Path("a"), Path("b"))
    assert kwargs["feeds"] == Path("feeds")
    assert kwargs["config"] == Config(seed=3, gates=Gates(min_sqnr_db=30.0, max_error=0.1))
    assert inspected == (Path("model.onnx"), Config(op_types=("Gemm",), include=("x",)))


# Bad input: one line, the right exit code, no work done

SEE_HELP = ": see lowrank-onnx compress --help"
NO_FEEDS = "no such file or directory, expected an .npz, a directory of .npz or of test_data_set_*"
FLAGS = """
    --rank --alpha --energy --keep-params --keep-bytes --keep-macs --max-error --min-sqnr --min-top1 --objective --calib
    --provider --no-validate --include --exclude --op-types --method --power-iterations --oversampling --rank-multiple
    --seed --effort --metric --max-drop --device --output -o --force --cache --json --quiet --verbose
"""


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--rank 0", "--rank 0: expected a whole number of at least 1, e.g. --rank 64"),
        ("--rank -3", "--rank -3: expected a whole number of at least 1, e.g. --rank 64"),
        ("--rank 3.5", f"Invalid value for '--rank': '3.5' is not a whole number{SEE_HELP}"),
        ("--alpha x", f"Invalid value for '--alpha': 'x' is not a number{SEE_HELP}"),
        ("--alpha nan", f"Invalid value for '--alpha': 'nan' is not a number{SEE_HELP}"),
        ("--min-sqnr nan", f"Invalid value for '--min-sqnr': 'nan' is not a number{SEE_HELP}"),
        ("--alpha 1.5", "--alpha 1.5: expected a share above 0 and at most 1, e.g. --alpha 0.6"),
        ("--energy 0", "--energy 0: expected a share above 0 and at most 1, e.g. --energy 0.6"),
        ("--keep-params -1", "--keep-params -1: expected a share above 0 and at most 1, e.g. --keep-params 0.6"),
        ("--keep-bytes 0", "--keep-bytes 0: expected a share above 0 and at most 1, e.g. --keep-bytes 0.6"),
        ("--keep-macs 2", "--keep-macs 2: expected a share above 0 and at most 1, e.g. --keep-macs 0.6"),
        ("--max-error 1", "--max-error 1: expected a relative error between 0 and 1, e.g. 0.05"),
        ("--rank 8 --max-error 0", "--max-error 0: expected a relative error above 0, e.g. 0.05"),
        ("--speedup 1", "--speedup 1: expected a factor above 1, e.g. --speedup 1.5"),
        ("--speedup inf", "--speedup inf: expected a factor above 1, e.g. --speedup 1.5"),
        ("--speedup nan", f"Invalid value for '--speedup': 'nan' is not a number{SEE_HELP}"),
        ("--speedup 2 --objective size", "--speedup goes with --objective latency: drop --objective size"),
        (
            "--speedup 2 --no-validate",
            "--speedup needs validation: drop --no-validate, or give a budget such as --keep-params",
        ),
        (
            "--max-drop 0.01",
            "--max-drop 0.01 is about a metric: give --metric FILE.py:FUNCTION, or --max-error",
        ),
        (
            "--rank 8 --max-drop 0.01",
            "--max-drop 0.01 is about a metric: give --metric FILE.py:FUNCTION, or --max-error",
        ),
        ("--max-drop -1", "--max-drop -1: expected 0 or more in the metric's unit, e.g. --max-drop 0.01"),
        ("--rank 8 --max-drop inf", "--max-drop inf: expected 0 or more in the metric's unit, e.g. --max-drop 0.01"),
        ("--metric accuracy", "--metric accuracy: expected FILE.py:FUNCTION, e.g. accuracy.py:top1"),
        ("--metric nowhere.py:top1", "--metric nowhere.py:top1: no such file nowhere.py"),
        ("--min-top1 2", "--min-top1 2: expected a share from 0 to 1, e.g. 0.99"),
        ("--rank 8 --alpha 0.5", "--rank and --alpha: expected one budget, drop one"),
        (
            "--energy 0.5 --keep-macs 0.5 --keep-params 0.5",
            "--energy and --keep-params and --keep-macs: expected one budget, drop all but one",
        ),
        (
            "--no-validate",
            "--max-error needs validation: drop --no-validate, or give a budget such as --keep-params",
        ),
        (
            "--rank 8 --no-validate --min-top1 1",
            "a gate needs validation: drop --no-validate, or --min-sqnr, --max-error and --min-top1",
        ),
        ("--power-iterations 0", "--power-iterations 0: expected at least 1 (1 is RSVD)"),
        ("--oversampling -1", "--oversampling -1: expected 0 or more"),
        ("--seed -1", "--seed -1: expected a whole number from 0 to 2**63 - 1"),
        ("--rank-multiple 0", "--rank-multiple 0: expected at least 1, e.g. 16"),
        ("--op-types Softmax", f"--op-types Softmax: expected some of {', '.join(OP_TYPES)}"),
        ("--op-types ,", f"--op-types: expected at least one of {', '.join(OP_TYPES)}"),
        (
            "--method magic",
            f"Invalid value for '--method': 'magic' is not one of 'auto', 'rsi', 'rsvd', 'svd'{SEE_HELP}",
        ),
        (
            "--objective speed",
            f"Invalid value for '--objective': 'speed' is not one of 'latency', 'size'{SEE_HELP}",
        ),
        (
            "--calib nowhere.npz",
            f"--calib nowhere.npz: {NO_FEEDS}",
        ),
        ("-o model.onnx", "--output model.onnx: is the model itself, which is never changed: give another name"),
        ("-o model.onnx -f", "--output model.onnx: is the model itself, which is never changed: give another name"),
        ("-o .", "--output .: is a directory, give a file name such as ./small.onnx"),
        ("--json .", "--json .: is a directory, give a file name such as ./report.json"),
        ("--json model.onnx", "--json model.onnx: is one of the command's other files, give another name"),
        ("-o a.onnx --json a.onnx", "--json a.onnx: is one of the command's other files, give another name"),
    ],
)
def test_wrong_usage(
    pipeline: FakePipeline, model: Path, capsys: pytest.CaptureFixture[str], flags: str, line: str
) -> None:
    assert main(["compress", "model.onnx", *flags.split()]) == 2
    assert capsys.readouterr() == ("", f"error: {line}\n")
    assert pipeline.calls == []
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.onnx"]


def test_a_drop_and_a_metric_need_validation(
    pipeline: FakePipeline, metric_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metric = ["--metric", "metrics.py:accuracy", "--no-validate"]
    assert main(["compress", "model.onnx", "--max-drop", "0.01", *metric]) == 2
    assert "--max-drop needs validation: drop --no-validate" in capsys.readouterr().err
    assert main(["compress", "model.onnx", "--rank", "8", *metric]) == 2
    assert "--metric needs validation: drop --no-validate" in capsys.readouterr().err
    assert pipeline.calls == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["validate", "a", "b", "--data", "nowhere"],
            f"--data nowhere: {NO_FEEDS}",
        ),
        (["validate", "a", "b", "--json", "b"], "--json b: is one of the command's other files, give another name"),
        (["inspect", "a", "--json", "./a"], "--json a: is one of the command's other files, give another name"),
    ],
)
def test_wrong_usage_of_other_commands(
    pipeline: FakePipeline, model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"error: {line}\n")
    assert pipeline.calls == []


@pytest.mark.parametrize(
    ("arguments", "names", "see"),
    [
        (["compress"], "MODEL", "lowrank-onnx compress --help"),
        (["validate", "a"], "CANDIDATE", "lowrank-onnx validate --help"),
        (["compres"], "compres", "lowrank-onnx --help"),
        (["compress", "model.onnx", "--rank"], "--rank", "lowrank-onnx --help"),
        (["compress", "model.onnx", "another.onnx"], "another.onnx", "lowrank-onnx compress --help"),
        (["validate", "a", "b", "--objective", "size"], "--objective", "lowrank-onnx validate --help"),
    ],
)
def test_what_the_parser_refuses_is_one_line_too(
    pipeline: FakePipeline,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    names: str,
    see: str,
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert names in err
    assert err.endswith(f": see {see}\n")
    assert pipeline.calls == []


def test_no_command_shows_the_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "compress" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["-o", "--json"])
def test_a_missing_directory(
    pipeline: FakePipeline, model: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert main(["compress", "model.onnx", flag, "nowhere/file"]) == 2
    name = {"-o": "--output", "--json": "--json"}[flag]
    nowhere = model.parent / "nowhere"
    assert capsys.readouterr().err == f"error: {name} nowhere/file: {nowhere} is no directory, create it first\n"
    assert pipeline.calls == []


def test_an_existing_output_stops_at_once_without_force(
    pipeline: FakePipeline, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    existing = model.parent / "model.lowrank.onnx"
    existing.write_bytes(b"precious")
    assert main(["compress", "model.onnx"]) == 2
    assert capsys.readouterr().err == (
        "error: --output model.lowrank.onnx: exists already, give another name or --force to replace it\n"
    )
    assert pipeline.calls == []
    assert main(["compress", "model.onnx", "--force"]) == 0
    assert existing.read_bytes() == b"precious"  # replacing it is the pipeline's work


def test_a_link_to_the_model_is_the_model(
    pipeline: FakePipeline, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model.parent / "link.onnx").symlink_to(model)
    assert main(["compress", "model.onnx", "-o", "link.onnx", "--force"]) == 2
    assert "is the model itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("--provider x: not available, expected one of CPUExecutionProvider"), 2),
        (OutputError("--output a: can't be written"), 2),
        (MissingDependencyError("onnxruntime is not installed: pip install onnxruntime"), 2),
        (ModelError("model.onnx: is no ONNX file"), 3),
        (FactorizationError("weight w: holds NaN"), 3),
    ],
)
@pytest.mark.parametrize("command", [["compress", "model.onnx"], ["inspect", "model.onnx"], ["validate", "a", "b"]])
def test_what_the_library_raises_is_one_line(
    pipeline: FakePipeline,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    error: Exception,
    code: int,
) -> None:
    pipeline.error = error
    assert main(command) == code
    assert capsys.readouterr() == ("", f"error: {error}\n")


# Outcomes


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_done(pipeline: FakePipeline, model: Path, capsys: pytest.CaptureFixture[str], quiet: list[str]) -> None:
    assert main(["compress", "model.onnx", *quiet]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[-1:] == ([] if quiet else ["wrote model.lowrank.onnx: 1.42x faster, 2.78x smaller"])


def test_rejected(pipeline: FakePipeline, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.outcome["compress"] = compression(
        status="rejected", output=None, verdict=FAILED, message="not written: slow"
    )
    assert main(["compress", "model.onnx"]) == 1
    out, err = capsys.readouterr()
    assert (out.splitlines()[-1], err) == ("not written: slow", "")
    assert main(["compress", "model.onnx", "--quiet"]) == 1
    assert capsys.readouterr() == ("", "error: not written: slow\n")


def test_nothing_to_compress_is_a_failure_but_nothing_left_to_compress_is_not(
    pipeline: FakePipeline, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.outcome["compress"] = unchanged("no rank makes it smaller")
    assert main(["compress", "model.onnx"]) == 1
    pipeline.outcome["compress"] = replace(unchanged("no rank makes it smaller"), already_compressed=True)
    capsys.readouterr()
    assert main(["compress", "model.onnx", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_speedup_that_can_not_be_had_is_a_failure_of_a_second_compression_too(
    pipeline: FakePipeline, model: Path
) -> None:
    fast = Config(budget=Speedup(2.0))
    pipeline.outcome["compress"] = replace(unchanged("out of reach"), already_compressed=True, config=fast)
    assert main(["compress", "model.onnx", "--speedup", "2", "--quiet"]) == 1


def test_a_rejected_second_compression_is_a_failure(pipeline: FakePipeline, model: Path) -> None:
    pipeline.outcome["compress"] = compression(status="rejected", output=None, verdict=FAILED, already_compressed=True)
    assert main(["compress", "model.onnx", "--quiet"]) == 1


def test_a_failed_verdict(pipeline: FakePipeline, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.outcome["validate"] = FAILED
    assert main(["validate", "a", "b"]) == 1
    assert f"failed: {FAILED.failures[0]}" in capsys.readouterr().out.splitlines()
    assert main(["validate", "a", "b", "--quiet"]) == 1
    assert capsys.readouterr() == ("", f"error: {FAILED.failures[0]}\n")


@pytest.mark.parametrize("command", [["compress", "model.onnx"], ["inspect", "model.onnx"], ["validate", "a", "b"]])
def test_json_on_standard_output_is_alone_there(
    pipeline: FakePipeline, model: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert main([*command, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["kind"] == command[0]
    assert err == ""


def test_json_on_standard_output_still_says_why_it_failed(
    pipeline: FakePipeline, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.outcome["compress"] = compression(
        status="rejected", output=None, verdict=FAILED, message="not written: slow"
    )
    assert main(["compress", "model.onnx", "--json", "-"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["status"] == "rejected"
    assert err == "error: not written: slow\n"


def test_json_in_a_file_stands_beside_the_report(
    pipeline: FakePipeline, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model.parent / "report.json").write_text("old")
    assert main(["compress", "model.onnx", "--json", "report.json"]) == 0
    assert json.loads((model.parent / "report.json").read_text())["schema"] == "lowrank-onnx/report/1"
    assert "wrote model.lowrank.onnx" in capsys.readouterr().out


def test_verbose(pipeline: FakePipeline, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compress", "model.onnx", "-v"])
    assert "versions: lowrank-onnx" in capsys.readouterr().out
    main(["compress", "model.onnx"])
    assert "versions:" not in capsys.readouterr().out


# Help


@pytest.mark.parametrize("command", [[], ["compress"], ["inspect"], ["validate"], ["demo"]])
def test_help_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out


def test_the_help_teaches_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    main(["compress", "--help"])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for flag in FLAGS.split():
        assert f" {flag} " in out, flag
    for words in (
        "r = ceil(A * min(in, out)) for every weight",
        "[default: (0.05 where no budget is given)]",
        "[default: (STEM.lowrank.onnx beside MODEL)]",
        "[default: latency]",
        "[default: auto]",
        "[default: 4]",
        "[default: CPUExecutionProvider]",
        "every figure from them says so",
        "MatMul, Gemm, Conv, ConvTranspose",
        "conv_input, conv_tucker",
    ):
        assert words in out, words
    assert "…" not in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lowrank-onnx {lowrank_onnx.__version__}\n"


def test_start_up_leaves_heavy_libraries_alone() -> None:
    heavy = ("numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "onnx_ir", "scipy", "ml_dtypes", "cupy")
    code = f"import sys, lowrank_onnx.cli; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
