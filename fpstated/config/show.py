"""A configuration in words: as `--print-config` prints it, and as the docs list it."""

from __future__ import annotations

import json
from pathlib import Path

from fpstated.config.setting import Setting, Table
from fpstated.config.sources import Settings
from fpstated.config.tables import TABLES


def print_config(settings: Settings) -> str:
    """The effective values as a TOML file that would bring them, each with where it came from.

    A value that is not set is a comment. Of files there is the path, never the content.
    """
    lines = [f"[{settings.table.name}]"]
    for setting in settings.table.settings:
        value, source = settings[setting.key], settings.source(setting.key)
        shown = f"{setting.key} = {_toml(setting, value)}" if value is not None else f"# {setting.key} is not set"
        lines.append(f"{shown}  # {source}")
    return "\n".join(lines) + "\n"


def settings_tables() -> str:
    """The tables of docs/configuration.md."""
    return "\n".join(map(_table, TABLES))


def _table(table: Table) -> str:
    lines = [
        f"### `fpstated {table.name}`",
        "",
        f"| flag | variable | key in `[{table.name}]` | default | |",
        "|---|---|---|---|---|",
    ]
    for setting in table.settings:
        default = setting.default_text or (
            "none" if setting.default is None else f"`{_toml(setting, setting.default)}`"
        )
        words = f"{setting.help} Expected: {setting.kind.expected}.".replace("|", "\\|")
        lines.append(f"| `{setting.flag}` | `{table.variable(setting)}` | `{setting.key}` | {default} | {words} |")
    return "\n".join(lines) + "\n"


def _toml(setting: Setting, value: object) -> str:
    if setting.key.endswith("-mode") and isinstance(value, int):
        return json.dumps(f"{value:04o}")
    if isinstance(value, Path):
        return json.dumps(str(value))
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return json.dumps(value)
