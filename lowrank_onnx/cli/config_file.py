"""Options from a TOML file: the flags' own names, and the command line wins.

keep-macs = 0.6
calib = "feeds.npz"
exclude = ["head/*", "stem/*"]

[[site]]
match = "encoder.*"
rank = 64

[provider-option]
device_id = 1
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from lowrank_onnx.errors import OutputError, UsageError
from lowrank_onnx.provider import provider_option_texts
from lowrank_onnx.report.escape import printable
from lowrank_onnx.report.written import write_text
from lowrank_onnx.site_override import SiteOverride

_PANEL = "Options in a file"
_ARGUMENTS = frozenset(("model", "original", "candidate"))
TABLES = {
    "site": "tables, e.g. [[site]] with match = 'encoder.*' and rank = 64",
    "provider-option": "a table, e.g. [provider-option] with device_id = 1",
}
"""Options that are written as tables, and how."""

_OWN = frozenset(("config_file", "dump_config", "debug", "version", "help"))


def read_options(path: Path, known: Mapping[str, str]) -> dict[str, Any]:
    """The options that a file gives, by the names of the command's parameters.

    Parameters
    ----------
    path : a TOML file.
    known : from a flag without its dashes, ``keep-macs``, to the command's parameter, ``keep_macs``.

    Raises
    ------
    UsageError
        The file can't be read, is no TOML, or has a key that is no flag.
    """
    shown = printable(str(path))
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {shown}: can't be read ({error.strerror}): check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {shown}: is no TOML ({printable(str(error))})") from error
    found = {}
    for key, value in content.items():
        name = known.get(key.replace("_", "-"))
        if name is None:
            near = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(sorted(known))}"
            raise UsageError(f"--config {shown}: unknown key {printable(key)!r}: {hint}")
        found[name] = _checked(value, key.replace("_", "-"), shown)
    return found


def _checked(value: Any, key: str, shown: str) -> Any:
    if key in TABLES:
        return _tables(value, key, shown)
    simple = (str, int, float)  # bool is an int
    if isinstance(value, simple) or (isinstance(value, list) and all(isinstance(part, simple) for part in value)):
        return value
    raise UsageError(
        f"--config {shown}: {printable(key)} is a {type(value).__name__}: expected a string, a number, true or false, "
        "or a list of them"
    )


def _tables(value: Any, key: str, shown: str) -> list[Any]:
    """What is a table, or a list of tables; what is in them is checked where the flag's own value is."""
    if key == "provider-option" and isinstance(value, dict):
        return provider_option_texts(value)
    if isinstance(value, list) and all(isinstance(entry, dict | str) for entry in value):
        return value
    raise UsageError(f"--config {shown}: {key} is a {type(value).__name__}: expected {TABLES[key]}")


def _flags(context: typer.Context) -> dict[str, str]:
    """The command's flags without dashes, and the parameters that they set."""
    found = {}
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in _ARGUMENTS | _OWN:
            continue
        for flag in parameter.opts:
            if flag.startswith("--"):
                found[flag.removeprefix("--")] = name
    return found


def _use_file(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        context.default_map = {**(context.default_map or {}), **read_options(path, _flags(context))}
    return path


ConfigFileOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Take options from a TOML file: the flags' names without dashes in front, e.g. keep-macs = 0.6. Flags on "
        "the command line win.",
        callback=_use_file,
        is_eager=True,
        rich_help_panel=_PANEL,
    ),
]
DumpConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--dump-config",
        metavar="FILE",
        help="Write all options of this run to a TOML file for --config, replacing FILE.",
        rich_help_panel=_PANEL,
    ),
]


def dump_options(context: typer.Context, path: Path | None) -> None:
    """Write the options of a run, those left at their defaults too (`OutputError` where that can't be).

    Options that have no value, such as budgets that weren't given, have no line.
    """
    if path is None:
        return
    try:
        text = options_text(context)
    except (TypeError, ValueError) as error:  # a name that isn't UTF-8
        raise OutputError(f"--dump-config {printable(str(path))}: can't hold these options ({error})") from error
    write_text(text, path, flag="--dump-config")


def options_text(context: typer.Context) -> str:
    """All options of a run as TOML (`TypeError`, `ValueError` where a value can't be in one)."""
    import tomli_w

    given = {flag: context.params.get(name) for flag, name in _flags(context).items()}
    values = {flag: _plain(value) for flag, value in given.items() if value is not None and value not in ([], ())}
    return tomli_w.dumps(values)


def _plain(value: Any) -> Any:
    if isinstance(value, SiteOverride):
        return {"match": value.match, **value.settings}
    if isinstance(value, Path):
        return str(value)
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value
