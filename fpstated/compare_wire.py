"""Between a script's events and a machine's, in one process: by way of the wire's own messages, without a wire."""

from __future__ import annotations

from guest_agent.event import GuestEvent
from guest_agent.outcome import Done, Gone, Injected, InstructionOutcome
from guest_agent.wire import event_to_proto, outcome_from_proto
from host_agent import events as host
from host_agent.service.translate.event import event_from_proto
from host_agent.service.translate.outcome import outcome_to_proto


def event_for_host(vcpu: str, seq: int, event: GuestEvent) -> host.GuestEvent:
    """Event number ``seq`` of ``vcpu`` as the machine takes it."""
    return event_from_proto("event", event_to_proto(vcpu, seq, event))


def outcome_for_guest(outcome: host.Outcome) -> InstructionOutcome:
    """A final outcome as a script takes it."""
    found = outcome_from_proto(outcome_to_proto(outcome))
    assert isinstance(found, Done | Injected | Gone), f"{found} is no outcome of an instruction"
    return found
