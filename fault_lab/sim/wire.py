"""What goes over the modelled wire: the real translations of both sides, remembered where the same value comes again.

A guest's event becomes a message and the host's event, an outcome becomes a message and the guest's, an exit becomes a
message and the controller's view. So a field that one side forgets is lost here as it is on a socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from grpc import StatusCode

from guest_agent.event import GuestEvent
from guest_agent.opening import Opened, SessionKey, VcpuResume, resume_from_proto
from guest_agent.outcome import Directive, Outcome, Refusal
from guest_agent.wire import directive_from_proto, event_to_proto, outcome_from_proto, refusal_from_status
from host_agent import events, sessions
from host_agent.exits import Decision as HostDecision
from host_agent.exits import ExitRecord
from host_agent.service.errors import Failure, failure_of, status_of
from host_agent.service.translate.decision import decision_from_proto
from host_agent.service.translate.event import event_from_proto
from host_agent.service.translate.exit import exit_to_proto
from host_agent.service.translate.outcome import directive_to_proto, outcome_to_proto, resume_to_proto
from host_agent.state import HostState
from vmm_controller.error import CallError
from vmm_controller.exit_proto import decision_to_proto, exit_from_proto
from vmm_controller.policy import Decision, ExitView

_NS_PER_S = 1_000_000_000
_REMEMBERED = 1 << 14


@dataclass(frozen=True, slots=True)
class Answer:
    """What SubmitEvents is answered with: the outcome, and the number up to which the host has taken events."""

    outcome: Outcome
    taken: int


@lru_cache(maxsize=_REMEMBERED)
def host_event(vcpu: str, event: GuestEvent) -> events.EventKind:
    """A guest's event as the host reads it."""
    return event_from_proto("event", event_to_proto(vcpu, 1, event)).kind


def guest_outcome(outcome: events.Outcome) -> Outcome:
    """A host's outcome as the guest reads it."""
    kind = outcome.kind
    if isinstance(kind, events.DoneOutcome | events.InjectOutcome):
        return _remembered(kind)
    return outcome_from_proto(outcome_to_proto(outcome))


@lru_cache(maxsize=_REMEMBERED)
def _remembered(kind: events.DoneOutcome | events.InjectOutcome) -> Outcome:
    return outcome_from_proto(outcome_to_proto(events.Outcome("vms/any/vcpus/0", 1, kind)))


def guest_opened(opened: sessions.Opened, credit: int) -> Opened:
    """An opened session as the guest reads it."""
    session = opened.session
    resumes = tuple(guest_resume(each) for each in opened.vcpus)
    return Opened(SessionKey(session.name, session.epoch), session.lease_ns / _NS_PER_S, credit, resumes)


def guest_resume(resume: sessions.Resume) -> VcpuResume:
    """Where a vCPU goes on, as the guest reads it."""
    return resume_from_proto(resume_to_proto(resume))


def guest_directive(directive: events.Directive) -> Directive:
    """A directive as the guest reads it."""
    return directive_from_proto(directive_to_proto(directive))


def exit_view(state: HostState, record: ExitRecord) -> ExitView:
    """An exit as a controller sees it."""
    return exit_from_proto(exit_to_proto(state, record))


def host_decision(decision: Decision) -> HostDecision:
    """A controller's decision as the host reads it."""
    return decision_from_proto("decision", decision_to_proto(decision))


def refusal_of(error: Exception) -> Refusal | None:
    """A host's refusal as the guest reads it; None for what is no refusal."""
    failure = failure_of(error)
    return refusal_from_status(status_of(failure)) if failure is not None else None


def because(reason: str, text: str) -> Refusal:
    """A refusal of the host's services."""
    return refusal_from_status(status_of(Failure(reason, text)))


def call_error(refusal: Refusal) -> CallError:
    """The same refusal as a controller has it."""
    code = StatusCode[refusal.code]
    return CallError(code, refusal.message, reason=refusal.reason, retry_after_s=refusal.retry_delay_s)


def code_name(code: int) -> str:
    """The name of a status code by its number."""
    return next(each.name for each in StatusCode if each.value[0] == code)
