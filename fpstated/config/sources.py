"""Where settings come from: flags, then the environment, then a TOML file, then defaults. The first that has one wins.

Whatever is wrong is named with its source: the flag, the variable, or the file and line.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fpstated.config.setting import Setting, Table, ValueExpectedError

#: Names the file where --config does not.
CONFIG_VARIABLE: Final = "FPSTATED_CONFIG"
_HEADER: Final = re.compile(r"\s*\[\s*([\w-]+)\s*\]")


class ConfigError(ValueError):
    """A setting that cannot be right: its source, its key, what was expected."""


@dataclass(frozen=True, slots=True)
class Found:
    """A value as it was found, and where."""

    value: object
    #: `--cpus`, `FPSTATED_HOST_CPUS`, `/etc/fpstated/config.toml:3`, `default`.
    source: str


@dataclass(slots=True)
class Settings:
    """The effective values of a table. ``settings["cpus"]`` is a value; ``source("cpus")`` is where it came from."""

    table: Table
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 -- each setting has its own kind
        return self.values[key]

    def source(self, key: str) -> str:
        """Where the value came from."""
        return self.sources[key]

    def wrong(self, key: str, expected: str) -> ConfigError:
        """The error of a value that only its user could find wrong."""
        return _wrong(self.table, key, self.sources[key], expected, self.values[key])


def default_files() -> list[Path]:
    """Where a file is looked for: the user's, then the machine's."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [home / "fpstated" / "config.toml", Path("/etc/fpstated/config.toml")]


def read_settings(
    table: Table,
    flags: Mapping[str, object],
    *,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
    others: Iterable[Table] = (),
) -> Settings:
    """Read everything and return the effective values. ``flags`` has None for what was not given.

    ``config`` names the file, which must be there then; ``others`` are the tables that the file may hold as well.
    Raises ``ConfigError``.
    """
    variables = os.environ if environment is None else environment
    file = _file(config, variables)
    layers = [
        {key: Found(value, f"--{key}") for key, value in flags.items() if value is not None},
        dict(_from_environment(table, variables)),
        dict(_from_file(table, file, [*others, table])) if file is not None else {},
    ]
    settings = Settings(table)
    for setting in table.settings:
        found = next((layer[setting.key] for layer in layers if setting.key in layer), None)
        settings.sources[setting.key] = found.source if found is not None else "default"
        settings.values[setting.key] = _value(table, setting, found) if found is not None else setting.default
    return settings


def _value(table: Table, setting: Setting, found: Found) -> Any:  # noqa: ANN401
    try:
        return setting.kind.read(found.value)
    except ValueExpectedError as error:
        raise _wrong(table, setting.key, found.source, str(error), found.value) from None


def _wrong(table: Table, key: str, source: str, expected: str, got: object) -> ConfigError:
    where = source if source.startswith("--") else f"{source}: {table.name}.{key}"
    return ConfigError(f"{where}: expected {expected}, got {got!r}")


# -- the environment ---------------------------------------------------------------------------------------------------


def _from_environment(table: Table, variables: Mapping[str, str]) -> Iterator[tuple[str, Found]]:
    known = {table.variable(setting): setting.key for setting in table.settings}
    for name, value in variables.items():
        if name in known:
            yield known[name], Found(value, name)
        elif name.startswith(table.prefix):
            raise ConfigError(f"{name}: no such setting{_did_you_mean(name, known)}")


# -- the file ----------------------------------------------------------------------------------------------------------


def _file(config: Path | None, variables: Mapping[str, str]) -> Path | None:
    named = config or (Path(variables[CONFIG_VARIABLE]) if variables.get(CONFIG_VARIABLE) else None)
    if named is not None:
        if not named.is_file():
            raise ConfigError(f"{'--config' if config else CONFIG_VARIABLE}: expected a file, got {str(named)!r}")
        return named
    return next((path for path in default_files() if path.is_file()), None)


def _from_file(table: Table, path: Path, tables: list[Table]) -> Iterator[tuple[str, Found]]:
    """The keys of ``table``'s section. A section or a key that nobody knows is an error, whoever's section it is."""
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    sections = {each.name: each for each in tables}
    for name, content in document.items():
        where = f"{path}:{_line(text, name, '')}"
        if name not in sections:
            raise ConfigError(f"{where}: [{name}]: no such section{_did_you_mean(name, sections)}")
        if not isinstance(content, dict):
            raise ConfigError(f"{where}: {name}: expected a section, [{name}], got {content!r}")
        for key, value in content.items():
            line = f"{path}:{_line(text, name, key)}"
            if sections[name].find(key) is None:
                keys = [setting.key for setting in sections[name].settings]
                raise ConfigError(f"{line}: {name}.{key}: no such key{_did_you_mean(key.replace('_', '-'), keys)}")
            if name == table.name:
                yield key, Found(value, line)


def _line(text: str, section: str, key: str) -> int:
    """The line of a key, or of a section's header where ``key`` is empty: tomllib does not say."""
    inside = False
    assignment = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*=""")
    dotted = re.compile(rf"\s*{re.escape(section)}\s*(\.\s*{re.escape(key)})?\s*=")
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.match(line)
        if header:
            inside = header[1] == section
            if inside and not key:
                return number
        elif (inside and key and assignment.match(line)) or (not inside and dotted.match(line)):
            return number
    return 1


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(sorted(known))}"
