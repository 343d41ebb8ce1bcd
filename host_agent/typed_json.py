"""Values of frozen dataclasses as JSON, and back, with every field checked against its annotation.

A dataclass is an object of its fields, an enum its name (an IntEnum its number), bytes are hexadecimal, a tuple is a
list, a dict an object. Each dataclass says what it is: ``{"type": "DoneOutcome", ...}``. Integers are unsigned, of 64
bits. So what comes in is either a value that could have been written here, or a ``FieldError`` that names the place.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from fpu_core.errors import FieldError

_TYPE: Final = "type"
_INT_END: Final = 1 << 64
#: Characters of a text that a message shows.
_SHOWN: Final = 60


def to_json(value: object) -> Any:  # noqa: ANN401 -- JSON values
    """Return ``value`` in JSON's terms. Each dataclass says what it is, whether or not a reader has to be told."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {_TYPE: type(value).__name__, **fields}
    if isinstance(value, enum.IntEnum):
        return int(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return value


def from_json(kind: Any, value: Any, path: str) -> Any:  # noqa: ANN401 -- a type, and JSON values
    """Return the ``kind`` that ``value`` says. Raises ``FieldError`` with the path of what cannot be one."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return _union(kind, value, path)
    if origin is tuple:
        return _tuple(kind, value, path)
    if origin is dict:
        key, item = typing.get_args(kind)
        _need(isinstance(value, dict), path, "an object", value)
        return {from_json(key, each, path): from_json(item, of, f"{path}.{each}") for each, of in value.items()}
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, path)
    if issubclass(kind, enum.Enum):
        _need(
            isinstance(value, str) and value in kind.__members__, path, f"one of {', '.join(kind.__members__)}", value
        )
        return kind[value]
    return _bytes(value, path) if kind is bytes else _plain(kind, value, path)


def _plain(kind: type, value: Any, path: str) -> Any:  # noqa: ANN401
    if kind is int:
        _need(type(value) is int and 0 <= value < _INT_END, path, "an unsigned integer of 64 bits", value)
    else:
        _need(type(value) is kind, path, {bool: "true or false", str: "a text"}[kind], value)
    return value


def _bytes(value: Any, path: str) -> bytes:  # noqa: ANN401
    try:
        return bytes.fromhex(value)
    except (TypeError, ValueError):
        raise FieldError(path, "bytes in hexadecimal", _short(value)) from None


def _tuple(kind: Any, value: Any, path: str) -> tuple[Any, ...]:  # noqa: ANN401
    _need(isinstance(value, list), path, "a list", value)
    items = typing.get_args(kind)
    if items[-1] is Ellipsis:
        return tuple(from_json(items[0], item, f"{path}[{nr}]") for nr, item in enumerate(value))
    _need(len(value) == len(items), path, f"a list of {len(items)}", value)
    return tuple(from_json(of, item, f"{path}[{nr}]") for nr, (of, item) in enumerate(zip(items, value, strict=True)))


def _union(kind: Any, value: Any, path: str) -> Any:  # noqa: ANN401
    kinds = typing.get_args(kind)
    if types.NoneType in kinds and value is None:
        return None
    kinds = tuple(each for each in kinds if each is not types.NoneType)
    if len(kinds) == 1:
        return from_json(kinds[0], value, path)
    names = {each.__name__: each for each in kinds}
    named = value.get(_TYPE) if isinstance(value, dict) else None
    _need(named in names, f"{path}.{_TYPE}", f"one of {', '.join(names)}", named)
    return _dataclass(names[named], value, path)


def _dataclass(kind: Any, value: Any, path: str) -> Any:  # noqa: ANN401
    _need(isinstance(value, dict), path, "an object", value)
    fields = _fields(kind)
    _need(value.get(_TYPE) == kind.__name__, f"{path}.{_TYPE}", kind.__name__, value.get(_TYPE))
    unknown = sorted(value.keys() - fields.keys() - {_TYPE})
    missing = sorted(fields.keys() - value.keys())
    _need(not missing, path, f"a field {missing[0] if missing else ''}", "none")
    _need(not unknown, path, "no field that it does not have", unknown[0] if unknown else "")
    return kind(**{name: from_json(of, value[name], f"{path}.{name}") for name, of in fields.items()})


@cache
def _fields(kind: Any) -> dict[str, Any]:  # noqa: ANN401
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _need(condition: bool, path: str, expected: str, got: object) -> None:  # noqa: FBT001 -- as an assert has it
    if not condition:
        raise FieldError(path, expected, _short(got))


def _short(got: object) -> object:
    """Register content, and megabytes of it, are in no message."""
    if isinstance(got, str):
        return got if len(got) <= _SHOWN else got[:_SHOWN] + "..."
    return got if isinstance(got, int | float | None) else type(got).__name__
