"""What the host has said, by the name of the field: names, epochs, generations, tokens, and the next numbers.

A random text gets no further than the first check. A name that exists, an epoch that is old, or somebody else's
session gets to where it hurts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

#: Ids that the host makes: ``s-`` and 12 digits. In the order in which they were first said, so that another run's can
#: be put in their places.
HOSTS_OWN: Final = re.compile(rb"\b[a-z]+-[0-9a-f]{12}\b")
_MOST: Final = 64
_PLAIN: Final = (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_UINT32)


class Vocabulary:
    """Values by field name, the newest last; ``latest`` is for the tour."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Any, None]] = defaultdict(dict)
        self.latest: dict[str, str] = {}
        self.next_seq: dict[str, int] = {}
        self.sessions: dict[str, int] = {}
        self.controls: dict[str, int] = {}
        self.ids: dict[bytes, None] = {}

    def learn(self, message: Message) -> None:
        """Take in what a response says."""
        self.ids |= dict.fromkeys(HOSTS_OWN.findall(message.SerializeToString()))
        kind = message.DESCRIPTOR.name
        for name, value in _scalars(message):
            self._learn(name, value)
        if kind == "OpenSessionResponse":
            self.sessions[message.session] = message.epoch  # type: ignore[attr-defined]
            self.latest |= {"session": message.session, "epoch": str(message.epoch)}  # type: ignore[attr-defined]
        if kind == "AcquireControlResponse":
            self.controls[message.control] = message.epoch  # type: ignore[attr-defined]
            self.latest |= {"control": message.control, "control_epoch": str(message.epoch)}  # type: ignore[attr-defined]
        if kind == "ResolveExitResponse":
            self.latest["generation"] = str(message.exit.generation)  # type: ignore[attr-defined]
        if kind == "ArmFaultResponse":
            self.latest["fault"] = message.fault.name  # type: ignore[attr-defined]
        if kind == "BeginMigrationResponse":
            begun = message.migration  # type: ignore[attr-defined]
            self.latest |= {"migration": begun.name, "ownership_epoch": str(begun.ownership_epoch)}
        self._learn_numbers(message)

    def _learn(self, name: str, value: Any) -> None:  # noqa: ANN401 -- of any scalar type
        values = self._values[name]
        values.pop(value, None)
        values[value] = None
        if len(values) > _MOST:
            del values[next(iter(values))]

    def _learn_numbers(self, message: Message) -> None:
        for each in _messages(message):
            if each.DESCRIPTOR.name == "VcpuResume":
                self.next_seq[each.vcpu] = each.next_seq  # type: ignore[attr-defined]
            elif each.DESCRIPTOR.name == "EventOutcome":
                self._learn_outcome(each)

    def _learn_outcome(self, outcome: Any) -> None:  # noqa: ANN401 -- an EventOutcome
        match outcome.WhichOneof("outcome"):
            case "done" | "inject" | "pending":
                self.next_seq[outcome.vcpu] = max(self.next_seq.get(outcome.vcpu, 1), outcome.seq + 1)
            case "blocked":
                self.next_seq[outcome.vcpu] = outcome.blocked.expected_seq
        if outcome.HasField("pending"):
            self.latest |= {"exit": outcome.pending.exit, "generation": str(outcome.pending.generation)}

    def pick(self, rng: Random, name: str) -> Any | None:  # noqa: ANN401
        """A value that a field of this name has had, or one of a similar field; None where there is none."""
        similar = {"parent": "name", "vm": "name", "vcpus": "vcpu", "victims": "vcpu", "scope": "name"}.get(name, name)
        values = [*self._values[name], *self._values[similar]]
        return rng.choice(values) if values else None


def _scalars(message: Message) -> Iterator[tuple[str, Any]]:
    for each in _messages(message):
        for field, value in each.ListFields():
            if field.cpp_type in _PLAIN and not _is_map(field):
                values = value if field.is_repeated else [value]
                yield from ((field.name, found) for found in list(values)[:_MOST] if _is_short(found))


def _is_short(value: object) -> bool:
    return not isinstance(value, bytes) and len(str(value)) < 200


def _messages(message: Message) -> Iterator[Message]:
    """The message and every one inside of it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None and not _is_map(field):
            for each in value if field.is_repeated else [value]:
                yield from _messages(each)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
