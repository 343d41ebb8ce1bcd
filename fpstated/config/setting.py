"""A setting: its key, what it can be, its default; and the kinds of values there are.

A kind reads a text (a flag, a variable) and a TOML value, and says what it expects where it can be neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ValueExpectedError(ValueError):
    """A value that cannot be right. ``str()`` is what was expected."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a setting can be. ``expected`` says it in words; ``read`` raises ``ValueExpectedError``."""

    expected: str
    read: Callable[[object], Any]
    metavar: str = "TEXT"
    #: A flag that is there or not: --faults, --no-faults.
    boolean: bool = False
    #: Given several times, or as an array.
    many: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key of a table: ``exit-deadline`` is --exit-deadline, FPSTATED_HOST_EXIT_DEADLINE and host.exit-deadline."""

    key: str
    kind: Kind
    default: Any
    help: str
    #: What the default is called where it is not a value of its own.
    default_text: str = ""
    #: In the help of the flag instead of the kind's.
    metavar: str = ""

    @property
    def flag(self) -> str:
        """As it is spelt on the command line."""
        return f"--{self.key}"

    @property
    def parameter(self) -> str:
        """As Python spells it."""
        return self.key.replace("-", "_")


@dataclass(frozen=True, slots=True)
class Table:
    """The settings of one command. ``name`` is its section in the file."""

    name: str
    settings: tuple[Setting, ...]

    def variable(self, setting: Setting) -> str:
        """The environment's name of a setting."""
        return f"{self.prefix}{setting.key.replace('-', '_').upper()}"

    @property
    def prefix(self) -> str:
        """What its variables begin with."""
        return f"FPSTATED_{self.name.upper()}_"

    def find(self, key: str) -> Setting | None:
        """The setting of a key."""
        return next((setting for setting in self.settings if setting.key == key), None)


# -- kinds -------------------------------------------------------------------------------------------------------------


def text(metavar: str = "TEXT") -> Kind:
    """Any text."""
    return Kind("a text", _text, metavar)


def choice(*words: str) -> Kind:
    """One of some words."""
    expected = f"one of {', '.join(words)}"

    def read(value: object) -> str:
        if value not in words:
            raise ValueExpectedError(expected)
        return str(value)

    return Kind(expected, read, "|".join(words))


def number(least: float, most: float | None = None, *, unit: str = "", whole: bool = False) -> Kind:
    """A number from ``least`` to ``most``."""
    what = f"a {'whole ' if whole else ''}number{f' of {unit}' if unit else ''}"
    expected = f"{what}, {least:,g} or more" if most is None else f"{what}, {least:,g} to {most:,g}"

    def read(value: object) -> float:
        try:
            found = _number(value, whole=whole)
        except (TypeError, ValueError):
            raise ValueExpectedError(expected) from None
        if not least <= found or (most is not None and found > most) or found in (float("inf"), float("-inf")):
            raise ValueExpectedError(expected)
        return found

    return Kind(expected, read, "N" if whole else "NUMBER")


def switch() -> Kind:
    """On or off."""

    def read(value: object) -> bool:
        found = _SWITCH.get(value.lower() if isinstance(value, str) else value) if _hashable(value) else None
        if found is None:
            raise ValueExpectedError("true or false")
        return found

    return Kind("true or false", read, "", boolean=True)


def path() -> Kind:
    """A file's path; ~ is the home folder."""
    return Kind("a path", lambda value: Path(_text(value)).expanduser(), "FILE")


def file_mode() -> Kind:
    """An octal mode, as a text in the file as well: 0o660 and "0660" alike."""
    expected = 'an octal mode such as "0600"'

    def read(value: object) -> int:
        try:
            found = int(value, 8) if isinstance(value, str) else _number(value, whole=True)
        except (TypeError, ValueError):
            raise ValueExpectedError(expected) from None
        return int(found)

    return Kind(expected, read, "MODE")


def texts(metavar: str = "TEXT") -> Kind:
    """Several texts: the flag several times, an array in the file, words in the variable."""

    def read(value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            return tuple(value.split())
        if not isinstance(value, list | tuple):
            raise ValueExpectedError("an array of texts")
        return tuple(map(_text, value))

    return Kind("an array of texts", read, metavar, many=True)


_SWITCH: dict[object, bool] = {
    True: True,
    False: False,
    "true": True,
    "false": False,
    "yes": True,
    "no": False,
    "1": True,
    "0": False,
}


def _hashable(value: object) -> bool:
    return isinstance(value, bool | str)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueExpectedError("a text")
    return value


def _number(value: object, *, whole: bool) -> float:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, str):
        return int(value) if whole else float(value)
    if isinstance(value, int) or (isinstance(value, float) and not whole):
        return value
    raise TypeError
