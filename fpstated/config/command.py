"""A command of the command line whose flags are a table's settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fpstated.config.setting import Setting, Table

#: What a command does with its flags, those that were given, by key; the file; and whether only to show the result.
Run = Callable[[dict[str, object], Path | None, bool], None]


#: The same, for a command that has others below it: with typer's context, where it leaves what they need.
RunAbove = Callable[[typer.Context, dict[str, object], Path | None, bool], None]


def settings_callback(table: Table, run: RunAbove, description: str) -> Callable[..., None]:
    """Return what typer takes as the callback of a group of commands, with the parameters of ``settings_command``."""

    def with_context(ctx: typer.Context, **given: Any) -> None:  # noqa: ANN401 -- what typer hands over
        settings_command(table, lambda *read: run(ctx, *read), description)(**given)

    made = settings_command(table, lambda *_read: None, description)
    ctx = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [ctx, *inspect.signature(made).parameters.values()]
    with_context.__doc__ = description
    with_context.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_context.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_context


def settings_command(table: Table, run: Run, description: str) -> Callable[..., None]:
    """Return what typer takes as a command: a function with one parameter per setting, and --config, --print-config."""
    parameters = [
        *_parameters(table),
        _parameter("config", Path | None, None, typer.Option("--config", metavar="FILE", help=_CONFIG_HELP)),
        _parameter("print_config", bool, default=False, option=typer.Option("--print-config", help=_PRINT_HELP)),
    ]

    def command(**given: Any) -> None:  # noqa: ANN401 -- what typer hands over
        config, show = given.pop("config"), given.pop("print_config")
        flags = {setting.key: given[setting.parameter] or None for setting in table.settings if setting.kind.many}
        flags |= {setting.key: given[setting.parameter] for setting in table.settings if not setting.kind.many}
        run(flags, config, show)

    command.__doc__ = description
    command.__name__ = table.name
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


_CONFIG_HELP = "A TOML file instead of ~/.config/fpstated/config.toml or /etc/fpstated/config.toml."
_PRINT_HELP = "Print the effective configuration and where each value came from, and exit."


def _parameters(table: Table) -> Iterator[inspect.Parameter]:
    for setting in table.settings:
        kind: Any = str | None
        if setting.kind.boolean:
            kind = bool | None
        elif setting.kind.many:
            kind = list[str] | None
        yield _parameter(setting.parameter, kind, None, _option(setting))


def _option(setting: Setting) -> Any:  # noqa: ANN401 -- typer's own type
    if setting.kind.boolean:
        return typer.Option(f"{setting.flag}/--no-{setting.key}", help=f"{setting.help} {_default(setting)}")
    help_text = f"{setting.help} {_default(setting)}".strip()
    return typer.Option(setting.flag, metavar=setting.metavar or setting.kind.metavar, help=help_text)


def _default(setting: Setting) -> str:
    """The default, in the help: the flag itself has none, so that file and environment get their turn."""
    if setting.kind.boolean:
        return "[on]" if setting.default else ""
    shown = setting.default_text or setting.default
    if setting.key.endswith("-mode"):
        shown = f"{setting.default:04o}"
    return f"[{shown}]" if shown not in (None, "", ()) else ""


def _parameter(name: str, kind: Any, default: object, option: Any) -> inspect.Parameter:  # noqa: ANN401
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
