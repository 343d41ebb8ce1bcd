"""A batch of events: what of it goes to the machine, what is refused here, and the outcomes in the batch's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fpstate.v1 import event_pb2

from host_agent.events import BlockedOutcome, GuestEvent, Malformed, Outcome, RejectedOutcome
from host_agent.service.errors import Failure
from host_agent.service.limits import EVENTS_PER_BATCH_MAX
from host_agent.service.translate.event import FIELD_OF_KIND, event_from_proto
from host_agent.service.translate.fields import vcpu_name
from host_agent.service.translate.packed import decode


@dataclass(slots=True)
class Batch:
    """A batch that was read. ``outcomes`` has one place per event: filled here where the event is malformed."""

    #: The field of the message that the events came in: event number nr is ``path[nr]``.
    path: str = ""
    outcomes: list[Outcome | None] = field(default_factory=list)
    events: list[GuestEvent] = field(default_factory=list)
    #: For each of ``events``: its place.
    places: list[int] = field(default_factory=list)
    received: tuple[tuple[str, int], ...] = ()

    def add(self, vcpu: str, seq: int, read: GuestEvent | Failure) -> None:
        """Take the next event, or the reason why it is none."""
        if isinstance(read, Failure):
            if seq < 1 or read.field.endswith((".vcpu", ".seq")):  # whose number it was cannot be said
                self.outcomes.append(rejected(vcpu, seq, read))
                return
            read = GuestEvent(vcpu, seq, Malformed(read.reason, read.text, read.field, read.metadata))
        self.places.append(len(self.outcomes))
        self.events.append(read)
        self.outcomes.append(None)

    def only_blocked(self, outcomes: Sequence[Outcome]) -> Batch:
        """The events of this batch that were blocked, at their places among ``outcomes``, to be applied once more."""
        again = Batch(self.path, outcomes=list(outcomes))
        for place, event in zip(self.places, self.events, strict=True):
            if isinstance(outcomes[place].kind, BlockedOutcome):
                again.places.append(place)
                again.events.append(event)
        return again

    def settle(self, replies: Sequence[Outcome]) -> list[Outcome]:
        """Put the machine's outcomes into their places and return all, in the order of the batch."""
        for place, event, outcome in zip(self.places, self.events, replies, strict=True):
            said = isinstance(outcome.kind, RejectedOutcome)
            self.outcomes[place] = with_path(f"{self.path}[{place}]", event, outcome) if said else outcome
        settled = [outcome for outcome in self.outcomes if outcome is not None]
        assert len(settled) == len(self.outcomes), "every event has an outcome"
        return settled


def batch_from_proto(path: str, message: event_pb2.EventBatch) -> Batch:
    """Read a batch. A malformed event is that event's outcome; a malformed batch raises ``Failure``."""
    batch = Batch(
        received=tuple(
            (vcpu_name(f"{path}.outcomes_received_through[{nr}].vcpu", mark.vcpu), mark.seq)
            for nr, mark in enumerate(message.outcomes_received_through)
        )
    )
    match message.WhichOneof("body"):
        case "events":
            _check_length(path, len(message.events.events))
            batch.path = f"{path}.events.events"
            for nr, event in enumerate(message.events.events):
                batch.add(event.vcpu, event.seq, _read(batch.path, nr, event))
        case "packed":
            records = decode(f"{path}.packed", message.packed)
            _check_length(path, len(records))
            batch.path = f"{path}.packed.records"
            for vcpu, seq, read in records:
                batch.add(vcpu, seq, read)
        case None:
            pass  # a batch that only says what was received
    return batch


def _check_length(path: str, events: int) -> None:
    if events > EVENTS_PER_BATCH_MAX:
        text = f"{path}: expected at most {EVENTS_PER_BATCH_MAX} events, got {events}"
        raise Failure.because("LIMIT_REACHED", text, limit="events_per_batch_max", maximum=EVENTS_PER_BATCH_MAX)


def _read(path: str, nr: int, message: event_pb2.GuestEvent) -> GuestEvent | Failure:
    """Where something is wrong it is read once more, to say where: paths are made for those that need one."""
    try:
        return event_from_proto("", message)
    except Failure:
        pass
    try:
        return event_from_proto(f"{path}[{nr}]", message)
    except Failure as failure:
        return failure


def rejected(vcpu: str, seq: int, failure: Failure) -> Outcome:
    """The outcome of an event that never reaches the machine."""
    return Outcome(vcpu, seq, RejectedOutcome(failure.reason, failure.text, failure.field, failure.metadata))


def with_path(path: str, event: GuestEvent, outcome: Outcome) -> Outcome:
    """The machine knows the field of an event; the caller wants its path in the request."""
    kind = outcome.kind
    if not isinstance(kind, RejectedOutcome) or not kind.field or isinstance(event.kind, Malformed):
        return outcome
    name = FIELD_OF_KIND[type(event.kind)]
    inside = kind.field if kind.field.startswith(f"{name}.") else f"{name}.{kind.field}"
    full = f"{path}.{inside}"
    text = kind.text.replace(kind.field, full, 1)
    return replace(outcome, kind=replace(kind, field=full, text=text, metadata=kind.metadata | {"field": full}))
