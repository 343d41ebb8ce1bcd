"""Messages by their descriptors: built from nothing, and with one field of them changed."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, Final

from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.fuzz.vocabulary import Vocabulary
from tests.fuzz.wire_bytes import random_bytes, with_a_word_changed

FieldPath = tuple[str, ...]
#: Descriptors are of one class or another, as protobuf is built; what is asked of them here both have.
Descriptor = Any
Field = Any
#: How deep a message may be in itself, and how long a repeated field is built.
_DEPTH_MAX: Final = 6
_INTERESTING: Final = (0, 1, 2, 3, 7, 8, 9, 17, 18, 19, 31, 32, 63, 64, 255, 256, 0x1C4, 0x1C5, 0xDA0, 4096, 0x602E7)
_EDGES: Final = tuple(
    edge + delta for edge in (1 << 15, 1 << 16, 1 << 31, 1 << 32, 1 << 53, 1 << 63, 1 << 64) for delta in (-1, 0, 1)
)
_TEXTS: Final = (
    "", " ", "/", "vms/", "vms/a", "vms/prey-0/vcpus/00", "vms/prey-0/vcpus/0/exits/1", "..",
    "\x00", "\u202e", "\U0001f980",
    "vms/" + "a" * 63, "vms/" + "a" * 64, "vms/prey-0/vcpus/99999999999999999999", "%s%n", "a" * 129, "x" * 70_000,
    "sessions/none", "controls/none", "faults/none", "*", "byte_limit", "owner.pid", "-1", "\u0660", "nan", "\n",
    "W1tb" * 5000, "bnVsbA==", "WzEsMl0=",
)  # fmt: skip
_INT_RANGES: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
}


def field_paths(descriptor: Descriptor, depth: int = 0) -> Iterator[FieldPath]:
    """The path of every field, those of messages inside included, each message once on a path."""
    for field in descriptor.fields:
        yield (field.name,)
        if field.message_type is not None and depth < _DEPTH_MAX and field.message_type is not descriptor:
            yield from ((field.name, *rest) for rest in field_paths(field.message_type, depth + 1))


class Messages:
    """Builds and changes messages by chance, with what the vocabulary knows."""

    def __init__(self, rng: Random, vocabulary: Vocabulary) -> None:
        self._rng = rng
        self._vocabulary = vocabulary

    def build(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """A message with a good part of its fields set; of a oneof at most one."""
        message: Message = message_factory.GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self._rng.random() < (0.7 if depth < 2 else 0.4):
                self._set(message, field, depth)
        return message

    def change(self, message: Message, path: FieldPath = ()) -> None:
        """Change the field at ``path``, making the messages on the way; without one, some field that is set."""
        path = path or self._some_path(message)
        for name in path[:-1]:
            field = message.DESCRIPTOR.fields_by_name[name]
            if _is_map(field):
                self._set(message, field, _DEPTH_MAX)
                return
            inside = getattr(message, name)
            if field.is_repeated:
                message = self._rng.choice(inside) if len(inside) else inside.add()
            else:
                inside.SetInParent()
                message = inside
        if path:
            self._set(message, message.DESCRIPTOR.fields_by_name[path[-1]], 1)

    def _some_path(self, message: Message) -> FieldPath:
        """Of a field that is set, as deep as chance goes; of any field where none is."""
        path: list[str] = []
        while True:
            fields: list[Field] = [field for field, _ in message.ListFields()] or [*message.DESCRIPTOR.fields]
            if not fields:
                return tuple(path)
            field = self._rng.choice(fields)
            path.append(field.name)
            if field.message_type is None or _is_map(field) or self._rng.random() < 0.15:
                return tuple(path)
            inside = getattr(message, field.name)
            if field.is_repeated and not len(inside):
                return tuple(path)
            message = inside[0] if field.is_repeated else inside

    # -- one field -----------------------------------------------------------------------------------------------------

    def _set(self, message: Message, field: Field, depth: int) -> None:
        if self._rng.random() < 0.08:
            message.ClearField(field.name)
        elif _is_map(field):
            self._set_map(message, field)
        elif field.is_repeated:
            self._set_repeated(message, field, depth)
        elif field.message_type is not None:
            self._set_message(message, field, depth)
        else:
            setattr(message, field.name, self._scalar(field, getattr(message, field.name)))

    def _set_map(self, message: Message, field: Field) -> None:
        entries = getattr(message, field.name)
        for _ in range(self._rng.choice((1, 2, 64, 65))):
            entries[self._text(field.name)] = self._text(field.name)

    def _set_message(self, message: Message, field: Field, depth: int) -> None:
        inside = getattr(message, field.name)
        inside.SetInParent()
        if depth < _DEPTH_MAX and field.message_type is not None:
            inside.MergeFrom(self.build(field.message_type, depth + 1))

    def _set_repeated(self, message: Message, field: Field, depth: int) -> None:
        values = getattr(message, field.name)
        choice = self._rng.randrange(5)
        if choice == 0 and len(values):  # one twice
            values.append(values[0]) if field.message_type is None else values.add().CopyFrom(values[0])
        elif choice == 1 and len(values):
            del values[self._rng.randrange(len(values))]
        elif choice == 2 and len(values) > 1:
            values.reverse()
        else:
            for _ in range(self._rng.choice((1, 1, 2, 3, 40))):
                self._append(values, field, depth)

    def _append(self, values: Any, field: Field, depth: int) -> None:  # noqa: ANN401 -- a repeated field
        if field.message_type is None:
            values.append(self._scalar(field, None))
        elif depth < _DEPTH_MAX:
            values.add().MergeFrom(self.build(field.message_type, depth + 1))

    def _scalar(self, field: Field, now: Any) -> Any:  # noqa: ANN401 -- of the field's type
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_BOOL:
                return self._rng.random() < 0.5
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return self._bytes(now)
            case FieldDescriptor.CPPTYPE_STRING:
                return self._text(field.name)
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return self._rng.choice((0.0, -1.0, float("inf"), float("nan"), 1e308))
        return self._number(field, now)

    def _number(self, field: Field, now: int | None) -> int:
        """Of the vocabulary, beside what it is now, or at an edge; within the range of its type."""
        low, high = _INT_RANGES[field.cpp_type]
        known = self._vocabulary.pick(self._rng, field.name)
        choice = self._rng.random()
        if choice < 0.25 and isinstance(known, int):
            value = known
        elif choice < 0.5:
            value = (now or 0) + self._rng.choice((-2, -1, 1, 2))
        elif choice < 0.8:
            value = self._rng.choice(_INTERESTING)
        elif choice < 0.95:
            value = self._rng.choice(_EDGES)
        else:
            value = self._rng.getrandbits(64)
        return min(max(value, low), high)

    def _text(self, name: str) -> str:
        known = self._vocabulary.pick(self._rng, name)
        if isinstance(known, str) and self._rng.random() < 0.6:
            return known
        return self._rng.choice(_TEXTS)

    def _bytes(self, now: bytes | None) -> bytes:
        if now and self._rng.random() < 0.6:
            return with_a_word_changed(self._rng, now)
        return random_bytes(self._rng)


def _is_map(field: Field) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
