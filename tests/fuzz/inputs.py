"""One input: who sends what under which method's path, and how it ends; and where the next one comes from."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from tests.fuzz.messages import FieldPath, Messages, field_paths
from tests.fuzz.methods import PATHS, descriptor, request_class
from tests.fuzz.vocabulary import Vocabulary
from tests.fuzz.wire_bytes import changed, random_bytes

#: Said whole, and everything read; given up after some answers; the connection closed in the middle.
FINISH, CANCEL, CUT = "finish", "cancel", "cut"
_SENDS_EVENTS: Final = ("/fpstate.v1.GuestSessionService/SubmitEvents", "/fpstate.v1.GuestSessionService/Attach")
_RECORD: Final = struct.Struct("<HHIIIQQ")
_MOST: Final = 40


@dataclass(frozen=True, slots=True)
class Input:
    """What is sent. ``reads`` is how many answers are read before a CANCEL or a CUT."""

    role: str
    path: str
    messages: tuple[bytes, ...]
    ending: str = FINISH
    reads: int = 0

    def to_json(self) -> dict[str, Any]:
        """As it stands in a file."""
        messages = [message.hex() for message in self.messages]
        return {"role": self.role, "path": self.path, "messages": messages, "ending": self.ending, "reads": self.reads}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Input:
        """Read one back."""
        messages = tuple(bytes.fromhex(each) for each in found["messages"])
        return cls(found["role"], found["path"], messages, found["ending"], found["reads"])


class Corpus:
    """What the host has accepted, by method: the tour's calls, and inputs that got through."""

    def __init__(self) -> None:
        self._accepted: dict[str, list[Input]] = defaultdict(list)

    def add(self, accepted: Input) -> None:
        """Take it as something to begin with."""
        known = self._accepted[accepted.path]
        known.append(accepted)
        if len(known) > _MOST:
            del known[len(known) // 2]  # neither the tour's nor the newest

    def some(self, rng: Random, path: str) -> Input | None:
        """One of a method's; None where it has none."""
        return rng.choice(self._accepted[path]) if self._accepted[path] else None


class Inputs:
    """A source of inputs in these roles. ``fields`` are the (method, field) pairs still to be changed once, of all."""

    def __init__(
        self,
        rng: Random,
        vocabulary: Vocabulary,
        corpus: Corpus,
        fields: list[tuple[str, FieldPath]],
        roles: Sequence[str],
    ) -> None:
        self._rng = rng
        self._roles = roles
        self._vocabulary = vocabulary
        self._corpus = corpus
        self._fields = fields
        self._messages = Messages(rng, vocabulary)

    def next(self) -> Input:
        """Make one."""
        path = self._rng.choice(PATHS)
        field: FieldPath = ()
        if self._rng.random() < 0.2:
            path = _SENDS_EVENTS[self._rng.random() < 0.4]
        elif self._fields and self._rng.random() < 0.5:
            path, field = self._fields.pop()
        base = self._corpus.some(self._rng, path) or Input("operator", path, (b"",))
        choice = self._rng.random()
        if field or choice < 0.6:
            messages = self._with_fields_changed(base, field)
        elif choice < 0.7:
            messages = (self._messages.build(descriptor(path).input_type).SerializeToString(),)
        elif choice < 0.85:
            messages = self._with_bytes_changed(base)
        elif choice < 0.95:
            messages = self._shuffled(base)
        else:
            messages = (random_bytes(self._rng),)
        role = base.role if base.role in self._roles and self._rng.random() < 0.75 else self._rng.choice(self._roles)
        ending = self._rng.choices((FINISH, CANCEL, CUT), (92, 7, 1))[0]
        if path.endswith("/AcquireControl"):
            ending = (
                FINISH  # who does not hear which control it has cannot give it up: nobody else has it until it ends
            )
        return Input(role, path, messages, ending, self._rng.randrange(3))

    def _with_fields_changed(self, base: Input, field: FieldPath) -> tuple[bytes, ...]:
        """One message of it with a few fields changed, its events mostly with the numbers that are due."""
        messages = list(base.messages)
        nr = self._rng.randrange(len(messages)) if messages else 0
        message = _parsed(base.path, messages[nr] if messages else b"")
        for _ in range(self._rng.choice((1, 1, 2, 3))):
            self._messages.change(message, field)
            field = ()
        if base.path in _SENDS_EVENTS and self._rng.random() < 0.7:
            self._renumber(message.batch)  # type: ignore[attr-defined]
        messages[nr : nr + 1] = [message.SerializeToString()]
        return tuple(messages)

    def _renumber(self, batch: Any) -> None:  # noqa: ANN401 -- an EventBatch
        due = dict(self._vocabulary.next_seq)
        for event in batch.events.events if batch.HasField("events") else ():
            if event.vcpu in due:
                event.seq = min(due[event.vcpu], (1 << 64) - 1)
                due[event.vcpu] += 1
        if batch.HasField("packed") and len(batch.packed.vcpus):
            seq = due.get(batch.packed.vcpus[0], 1)
            batch.packed.records = _renumbered(batch.packed.records, seq)

    def _with_bytes_changed(self, base: Input) -> tuple[bytes, ...]:
        messages = list(base.messages) or [b""]
        other = self._corpus.some(self._rng, self._rng.choice(PATHS))
        nr = self._rng.randrange(len(messages))
        messages[nr] = changed(self._rng, messages[nr], other.messages[0] if other and other.messages else b"")
        return tuple(messages)

    def _shuffled(self, base: Input) -> tuple[bytes, ...]:
        """A stream's messages in another order, one left out, one twice, or another stream's behind them; or none."""
        messages = list(base.messages)
        other = self._corpus.some(self._rng, base.path)
        for _ in range(self._rng.choice((1, 2))):
            choice = self._rng.randrange(5)
            if choice == 0:
                self._rng.shuffle(messages)
            elif choice == 1 and messages:
                messages.remove(self._rng.choice(messages))
            elif choice == 2 and messages:
                messages.append(self._rng.choice(messages))
            elif choice == 3 and other is not None:
                messages += other.messages
            else:
                messages.append(b"")
        return tuple(messages)


def every_field() -> list[tuple[str, FieldPath]]:
    """Every (method, path of a field) there is."""
    return [(path, field) for path in PATHS for field in field_paths(descriptor(path).input_type)]


def _parsed(path: str, raw: bytes) -> Message:
    try:
        return request_class(path).FromString(raw)
    except DecodeError:
        return request_class(path)()


def _renumbered(records: bytes, seq: int) -> bytes:
    """Packed records with the numbers that are due; what is cut short stays as it is."""
    made, at = bytearray(records), 0
    while at + _RECORD.size <= len(made):
        kind, flags, payload, ordinal, arg, _, value = _RECORD.unpack_from(made, at)
        _RECORD.pack_into(made, at, kind, flags, payload, ordinal, arg, min(seq, (1 << 64) - 1), value)
        at, seq = at + _RECORD.size + (payload + 7 & ~7), seq + 1
    return bytes(made)
