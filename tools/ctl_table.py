"""The commands of `fpstated ctl` as a table, read off the command line itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from typer.main import get_command

from fpstated.ctl.app import ctl


def commands(app: typer.Typer) -> Iterator[tuple[str, str, str]]:
    """Yield each command below a group: its words, what it takes, and what it does in one line."""
    yield from _below(get_command(app), "")


def _below(group: Any, words: str) -> Iterator[tuple[str, str, str]]:  # noqa: ANN401 -- typer's own types
    for name, command in group.commands.items():
        full = f"{words} {name}".strip()
        if hasattr(command, "commands"):
            yield from _below(command, full)
        else:
            yield full, " ".join(_takes(command)), command.help.split("\n")[0]


def _takes(command: Any) -> Iterator[str]:  # noqa: ANN401
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            yield parameter.metavar or parameter.name.upper()
    for parameter in command.params:
        if parameter.param_type_name == "option" and "--help" not in parameter.opts and "--json" not in parameter.opts:
            value = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
            yield f"[{parameter.opts[0]}{value}]" if not parameter.required else f"{parameter.opts[0]}{value}"


def ctl_table() -> str:
    """The table of docs/ctl.md."""
    lines = ["| fpstated ctl | |", "|---|---|"]
    for words, takes, does in commands(ctl):
        usage = f"{words} {takes}".strip().replace("|", "\\|")
        lines.append(f"| `{usage}` | {does} |")
    return "\n".join(lines) + "\n"
