"""``lowrank-onnx feeds``: calibration files from a folder of images or a file of text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowrank_onnx.cli import checks as checks
from lowrank_onnx.cli.budgets import number, whole_number
from lowrank_onnx.cli.terminal import EXIT_DONE, output_console, reporting_errors
from lowrank_onnx.errors import OutputError, UsageError
from lowrank_onnx.feed_files.choices import Colours, Fit, Layout, PixelType, Resample, TokenArray
from lowrank_onnx.report.escape import printable

if TYPE_CHECKING:
    from lowrank_onnx.evaluate.values import InputSpec
    from lowrank_onnx.feed_files.npz_writer import FeedArray

app = typer.Typer(
    name="feeds",
    help="Make a calibration file from a folder of images or a file of text (needs the extra 'feeds').",
    rich_markup_mode="rich",
)

_PREPARATION = "How they are prepared: exactly as in deployment"
_OUTPUT = "Output"

FeedsFileOption = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FILE.npz", help="The file to write, for --calib.", rich_help_panel=_OUTPUT),
]
FeedsForceOption = Annotated[
    bool, typer.Option("--force", "-f", help="Replace the file if it exists.", rich_help_panel=_OUTPUT)
]
FeedsModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The model that they are for: names, shapes and types are checked against it.",
        show_default="nothing is checked",
        rich_help_panel=_OUTPUT,
    ),
]
SamplesOption = Annotated[
    int,
    typer.Option(
        "--samples",
        metavar="N",
        help="How many to take, evenly spread over all in the order of their names or lines.",
        parser=whole_number,
        rich_help_panel=_OUTPUT,
    ),
]


def _numbers(flag: str, value: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, value.split(",")))
    except ValueError:
        raise UsageError(f"{flag} {printable(value)}: expected numbers with commas between, e.g. 0.5,0.5,0.5") from None


def _size(value: str) -> tuple[int, int]:
    """``224`` or ``HEIGHTxWIDTH``."""
    height, _, width = value.partition("x")
    try:
        return int(height), int(width or height)
    except ValueError:
        raise UsageError(f"--size {printable(value)}: expected pixels, or height x width: 224, 480x640") from None


@app.command()
@reporting_errors
def images(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder; those inside it too.", show_default=False)
    ],
    output: FeedsFileOption,
    size: Annotated[
        str,
        typer.Option(metavar="N|HxW", help="Height and width.", rich_help_panel=_PREPARATION, show_default=False),
    ],
    mean: Annotated[
        str,
        typer.Option(
            metavar="M[,M,M]",
            help="Subtracted after --scale: one number, or one for each channel. ImageNet's: 0.485,0.456,0.406.",
            rich_help_panel=_PREPARATION,
        ),
    ] = "0",
    std: Annotated[
        str,
        typer.Option(
            metavar="S[,S,S]",
            help="Divided by after --mean. ImageNet's: 0.229,0.224,0.225.",
            rich_help_panel=_PREPARATION,
        ),
    ] = "1",
    scale: Annotated[
        float,
        typer.Option(
            metavar="S",
            help="What pixels of 0 to 255 are divided by; 1 leaves them.",
            parser=number,
            rich_help_panel=_PREPARATION,
        ),
    ] = 255.0,
    layout: Annotated[
        Layout,
        typer.Option(
            help="nchw: channels first (PyTorch). nhwc: channels last (Keras, TensorFlow).",
            rich_help_panel=_PREPARATION,
        ),
    ] = "nchw",
    channels: Annotated[Colours, typer.Option(help="Their order; gray has one.", rich_help_panel=_PREPARATION)] = "rgb",
    fit: Annotated[
        Fit,
        typer.Option(
            help="Where the shape is another: cut off what is too long, distort, or add black.",
            rich_help_panel=_PREPARATION,
        ),
    ] = "crop",
    crop_share: Annotated[
        float,
        typer.Option(
            metavar="F",
            help="With --fit crop: the share of the shorter side to keep. 0.875 is Resize(256) and CenterCrop(224).",
            parser=number,
            rich_help_panel=_PREPARATION,
        ),
    ] = 1.0,
    resample: Annotated[
        Resample, typer.Option(help="How pixels are interpolated.", rich_help_panel=_PREPARATION)
    ] = "bilinear",
    dtype: Annotated[
        PixelType, typer.Option(help="uint8: pixels as they are.", rich_help_panel=_PREPARATION)
    ] = "float32",
    name: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="NAME",
            help="The model's input that they are for.",
            show_default="the only one of --model",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    samples: SamplesOption = 512,
    model: FeedsModelOption = None,
    force: FeedsForceOption = False,
) -> int:
    """Prepare the images of a folder, as the model's input."""
    _check(output, (directory, model), samples, force=force)

    from lowrank_onnx.feed_files.images import ImageRecipe, image_feeds

    height, width = _size(size)
    recipe = ImageRecipe(
        height=height,
        width=width,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        scale=scale,
        layout=layout,
        colours=channels,
        fit=fit,
        crop_share=crop_share,
        resample=resample,
        dtype=dtype,
    )
    inputs = _inputs(model)
    array, count = image_feeds(directory, name or _only_input(model, inputs), recipe, samples)
    ways = "--size, --layout and --channels make the shape"
    return _write(output, (array,), model, inputs, f"{array.shape[0]} of {count} images", ways)


@app.command()
@reporting_errors
def text(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="UTF-8 text, one sample a line.", show_default=False)],
    output: FeedsFileOption,
    tokenizer: Annotated[
        Path,
        typer.Option(
            metavar="tokenizer.json", help="The tokenizer that goes with the model.", rich_help_panel=_PREPARATION
        ),
    ],
    length: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Tokens of each sample: longer lines are cut, shorter ones padded.",
            parser=whole_number,
            rich_help_panel=_PREPARATION,
        ),
    ] = 128,
    ids: Annotated[
        str, typer.Option(metavar="NAME", help="The model's input for tokens.", rich_help_panel=_OUTPUT)
    ] = "input_ids",
    mask: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="The input that is 1 where a token is, 0 at padding.", rich_help_panel=_OUTPUT
        ),
    ] = "attention_mask",
    types: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The input for segments; written only where --model has it.",
            rich_help_panel=_OUTPUT,
        ),
    ] = "token_type_ids",
    samples: SamplesOption = 512,
    model: FeedsModelOption = None,
    force: FeedsForceOption = False,
) -> int:
    """Tokenize the lines of a text, as the model's inputs."""
    _check(output, (file, model, tokenizer), samples, force=force)

    from lowrank_onnx.feed_files.text import text_feeds

    inputs = _inputs(model)
    names: dict[str, TokenArray] = {ids: "ids", mask: "attention_mask", types: "type_ids"}
    taken = (ids, mask) if model is None else [spec.name for spec in inputs]
    wanted = {name: kind for name, kind in names.items() if name in taken or name == ids}
    arrays, count = text_feeds(file, tokenizer, wanted, length, samples)
    told = f"{arrays[0].shape[0]} of {count} lines"
    return _write(output, arrays, model, inputs, told, "--length makes the shape")


def _check(output: Path, others: Sequence[Path | None], samples: int, *, force: bool) -> None:
    if samples < 1:
        raise UsageError(f"--samples {samples}: expected at least 1")
    for other in filter(None, others):
        if os.path.realpath(other) == os.path.realpath(output):
            raise OutputError(f"--output {printable(str(output))}: is one of the files to read, give another name")
    if output.suffix != ".npz":
        raise OutputError(f"--output {printable(str(output))}: expected a name that ends in .npz")
    checks.check_output(output, output.with_suffix(""), force=force)


def _inputs(model: Path | None) -> tuple[InputSpec, ...]:
    if model is None:
        return ()
    from lowrank_onnx.feed_files.match import model_inputs

    return model_inputs(model)


def _only_input(model: Path | None, inputs: Sequence[InputSpec]) -> str:
    if model is None:
        raise UsageError("feeds images: which input they are for isn't known: give --input NAME or --model MODEL")
    if len(inputs) != 1:
        raise UsageError(f"the model has the inputs {', '.join(spec.name for spec in inputs)}: name one with --input")
    return inputs[0].name


def _write(
    output: Path,
    arrays: Sequence[FeedArray],
    model: Path | None,
    inputs: Sequence[InputSpec],
    told: str,
    ways: str,
) -> int:
    from lowrank_onnx.feed_files.npz_writer import write_feeds

    absent: list[str] = []
    if model is not None:
        from lowrank_onnx.feed_files.match import check_arrays

        absent = check_arrays(str(output), arrays, inputs, ways=ways)
    write_feeds(output, arrays)
    console = output_console()
    console.print(f"{printable(str(output))}: {told}", markup=False, highlight=False)
    for array in arrays:
        console.print(f"  {printable(array.name)}: {array.dtype.name} {array.shape}", markup=False, highlight=False)
    if absent:
        names = printable(", ".join(absent))
        console.print(
            f"the model also takes {names}: add them with numpy before --calib", markup=False, highlight=False
        )
    return EXIT_DONE
