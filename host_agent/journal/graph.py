"""The form of a snapshot's body: the records of a state with their identities, as JSON and raw bytes.

Each object is a line's entry ``[class, value, ...]`` in the order of the class's fields; object 0 is the HostState. A
value is null, a boolean, a number or a text as JSON has them, or a list that begins with what it is:

    [0, nr]         an object, by number: one that is held in two places is one object afterwards
    [1, ...]        a list                     [5, nr]          a bytearray, by the number of its bytes
    [2, ...]        a tuple                    [6, name, name]  an enum's member
    [3, k, v, ...]  a dict, in its order       [7, ...]         a frozenset, sorted
    [4, nr]         bytes, by number           [8, name]        an object without a state, by name
                                               [9, ...]         a set, sorted

Equal bytes are kept once. The form says itself which fields each class had, so that another release can tell.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from host_agent.journal.shapes import ENUMS, SHAPES, SINGLETONS, Shape

#: Objects a line: enough for the line to cost little, few enough to be read in portions.
_LINE: Final = 1000
_SINGLETON_NAMES: Final = {id(found): name for name, found in SINGLETONS.items()}


class GraphError(ValueError):
    """An object that has no shape, or a body that is none. The text names it."""


class GraphWriter:
    """Turns an object and all it holds into lines and blobs."""

    def __init__(self, root: object) -> None:
        self._numbers: dict[int, int] = {}
        self._objects: list[object] = []
        self._blobs: dict[bytes, int] = {}
        self._number(root)

    def lines(self) -> Iterator[bytes]:
        """The objects, a thousand a line. ``classes`` and ``blobs`` are complete afterwards."""
        at = 0
        while at < len(self._objects):
            line: list[list[Any]] = []
            while at < len(self._objects) and len(line) < _LINE:
                line.append(self._entry(self._objects[at]))
                at += 1
            yield json.dumps(line, separators=(",", ":")).encode() + b"\n"

    @property
    def blobs(self) -> Sequence[bytes]:
        """Bytes by number."""
        return list(self._blobs)

    @staticmethod
    def classes() -> dict[str, tuple[str, ...]]:
        """The fields of every class, as entries have them."""
        return {name: shape.saved for name, shape in SHAPES.items()}

    def _number(self, found: object) -> int:
        number = self._numbers.get(id(found))
        if number is None:
            number = self._numbers[id(found)] = len(self._objects)
            self._objects.append(found)
        return number

    def _entry(self, found: object) -> list[Any]:
        name = type(found).__name__
        shape = SHAPES.get(name)
        if shape is None or shape.cls is not type(found):
            raise GraphError(f"a snapshot has no shape for {type(found).__module__}.{name}")
        value = self._value
        return [name, *[value(getattr(found, field)) for field in shape.saved]]

    def _value(self, value: Any) -> Any:  # noqa: ANN401 -- anything a record may hold
        kind = type(value)
        if value is None or kind in (int, str, bool):
            return value
        writer = _WRITERS.get(kind)
        if writer is not None:
            return writer(self, value)
        if isinstance(value, enum.Enum):
            if ENUMS.get(kind.__name__) is not kind:
                raise GraphError(f"a snapshot has no shape for the enum {kind.__module__}.{kind.__name__}")
            return [6, kind.__name__, value.name]
        name = _SINGLETON_NAMES.get(id(value))
        return [8, name] if name is not None else [0, self._number(value)]

    def _list(self, value: list[Any]) -> list[Any]:
        return [1, *map(self._value, value)]

    def _tuple(self, value: tuple[Any, ...]) -> list[Any]:
        return [2, *map(self._value, value)]

    def _dict(self, value: dict[Any, Any]) -> list[Any]:
        out: list[Any] = [3]
        for key, item in value.items():
            out.append(self._value(key))
            out.append(self._value(item))
        return out

    def _bytes(self, value: bytes) -> list[Any]:
        return [4, self._blobs.setdefault(value, len(self._blobs))]

    def _bytearray(self, value: bytearray) -> list[Any]:
        return [5, self._blobs.setdefault(bytes(value), len(self._blobs))]

    def _frozenset(self, value: frozenset[Any]) -> list[Any]:
        return [7, *sorted(map(self._value, value), key=json.dumps)]

    def _set(self, value: set[Any]) -> list[Any]:
        return [9, *sorted(map(self._value, value), key=json.dumps)]


_WRITERS: Final[dict[type, Callable[[GraphWriter, Any], list[Any]]]] = {
    list: GraphWriter._list,  # noqa: SLF001 -- its own table
    tuple: GraphWriter._tuple,  # noqa: SLF001
    dict: GraphWriter._dict,  # noqa: SLF001
    bytes: GraphWriter._bytes,  # noqa: SLF001
    bytearray: GraphWriter._bytearray,  # noqa: SLF001
    frozenset: GraphWriter._frozenset,  # noqa: SLF001
    set: GraphWriter._set,  # noqa: SLF001
}


class GraphReader:
    """Turns entries and blobs back into the objects. ``classes`` is what the writer's release had."""

    def __init__(self, classes: Mapping[str, Sequence[str]], blobs: Sequence[bytes]) -> None:
        self._classes = classes
        self._blobs = blobs
        self._objects: list[Any] = []
        self._ints: dict[int, int] = {}

    def read(self, entries: Sequence[Sequence[Any]]) -> Any:  # noqa: ANN401
        """Return object 0 with everything it holds. Raises ``GraphError``."""
        try:
            shapes = {name: self._shape(name) for name in {entry[0] for entry in entries}}
            self._objects = [object.__new__(shapes[entry[0]].cls) for entry in entries]
            for made, entry in zip(self._objects, entries, strict=True):
                for field, value in zip(shapes[entry[0]].saved, entry[1:], strict=True):
                    object.__setattr__(made, field, self._value(value))
            return self._objects[0]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise error if isinstance(error, GraphError) else GraphError(f"not a state: {error!r}") from error

    def _shape(self, name: str) -> Shape:
        shape = SHAPES.get(name)
        if shape is None:
            raise GraphError(f"this release has no class {name}")
        if tuple(self._classes.get(name, ())) != shape.saved:
            had, has = set(self._classes.get(name, ())), set(shape.saved)
            gone, fresh = ", ".join(sorted(had - has)) or "none", ", ".join(sorted(has - had)) or "none"
            raise GraphError(f"class {name} has changed: fields that are gone: {gone}; that are new: {fresh}")
        return shape

    def _value(self, value: Any) -> Any:  # noqa: ANN401
        if type(value) is int:
            return self._ints.setdefault(value, value)  # masks are few and held by many
        if type(value) is not list:
            return value
        return self._READERS[value[0]](self, value)

    def _dict(self, value: list[Any]) -> dict[Any, Any]:
        read = self._value
        return {read(value[at]): read(value[at + 1]) for at in range(1, len(value), 2)}

    _READERS: Final[tuple[Callable[[GraphReader, list[Any]], Any], ...]] = (
        lambda self, value: self._objects[value[1]],
        lambda self, value: [self._value(item) for item in value[1:]],
        lambda self, value: tuple(self._value(item) for item in value[1:]),
        lambda self, value: self._dict(value),
        lambda self, value: self._blobs[value[1]],
        lambda self, value: bytearray(self._blobs[value[1]]),
        lambda _self, value: ENUMS[value[1]][value[2]],
        lambda self, value: frozenset(self._value(item) for item in value[1:]),
        lambda _self, value: SINGLETONS[value[1]],
        lambda self, value: {self._value(item) for item in value[1:]},
    )
