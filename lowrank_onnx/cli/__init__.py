"""The command line: the only place that prints or exits.

Exit codes: 0 done (also when there was nothing left to compress); 1 the result was rejected, or there is nothing to
compress; 2 wrong usage; 3 the model can't be read; 70 a bug; 130 interrupted; 141 the reader of the output went away.

Numerical and model libraries are imported inside the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from lowrank_onnx import __version__
from lowrank_onnx.cli.compress_command import compress
from lowrank_onnx.cli.demo_command import demo
from lowrank_onnx.cli.feeds_command import app as feeds_app
from lowrank_onnx.cli.inspect_command import inspect
from lowrank_onnx.cli.sweep_command import sweep
from lowrank_onnx.cli.terminal import EXIT_DONE, EXIT_USAGE, error_exit_code, prepare_streams, say_error
from lowrank_onnx.cli.validate_command import validate

app = typer.Typer(
    name="lowrank-onnx",
    help="Makes exported ONNX models smaller and faster by low-rank factorization, and proves it.",
    epilog="Exit codes: 0 done, 1 rejected or nothing to compress, 2 wrong usage, 3 the model can't be read.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"lowrank-onnx {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


for _command in (compress, sweep, inspect, validate, demo):
    app.command()(_command)
app.add_typer(feeds_app)


def _usage_exit_code(error: BaseException) -> int:
    """One line for what the parser didn't understand."""
    message = getattr(error, "format_message", error.__str__)().replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else app.info.name
    say_error(f"{' '.join(message.split()).rstrip('.')}: see {command} --help")
    return EXIT_USAGE


_ClickError = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""The base of the parser's errors: click's, or that of the copy which newer versions of typer bring along."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : the arguments after the program's name; None takes those of the process.
    """
    prepare_streams()
    command = typer.main.get_command(app)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = command.main(
            args=arguments or ["--help"], prog_name="lowrank-onnx", standalone_mode=False, obj=tuple(arguments)
        )
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if not isinstance(error, _ClickError):
            return error_exit_code(error)
        return _usage_exit_code(error)
    if not arguments:
        return EXIT_USAGE
    return code if isinstance(code, int) else EXIT_DONE
