"""What is remembered of a request, so that its repetition is known for one and another request under its id is not.

Not the command itself: a whole XSAVE image under each of a hundred thousand ids would be a gigabyte.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from typing import Any, Protocol


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None:
        """Take bytes in."""


def fingerprint(command: object) -> str:
    """The command's name and 128 bits of its contents. Equal for equal commands, whatever the order of their labels."""
    digest = hashlib.blake2b(digest_size=16)
    _take(digest, command)
    return f"{type(command).__name__} {digest.hexdigest()}"


def method_of(remembered: str) -> str:
    """The name of the command that a fingerprint is of."""
    return remembered.partition(" ")[0]


def _take(digest: _Digest, value: Any) -> None:  # noqa: ANN401 -- whatever a command holds
    """Each value with its type and its length, so that no two commands read alike."""
    match value:
        case bytes():
            digest.update(b"bytes %d\n" % len(value))
            digest.update(value)
        case tuple():
            digest.update(b"tuple %d\n" % len(value))
            for each in value:
                _take(digest, each)
        case dict():
            _take(digest, tuple(sorted(value.items())))
        case _ if is_dataclass(value) and not isinstance(value, type):
            _take(
                digest, (type(value).__name__, *(getattr(value, each.name) for each in fields(value) if each.compare))
            )
        case _:
            text = repr(value).encode()
            digest.update(b"%s %d\n" % (type(value).__name__.encode(), len(text)))
            digest.update(text)
