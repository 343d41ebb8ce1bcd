"""Outcomes, directives, and where a vCPU goes on."""

from __future__ import annotations

from typing import Final, assert_never

from fpstate.v1 import common_pb2, event_pb2, session_pb2

from host_agent.events import (
    BlockedOutcome,
    Directive,
    DoneOutcome,
    GoneOutcome,
    Growth,
    InjectOutcome,
    Intercepts,
    Outcome,
    PendingOutcome,
    RejectedOutcome,
)
from host_agent.service.errors import Failure, status_of
from host_agent.sessions import Resume

_DIRECTIVES: Final[dict[str, event_pb2.DirectiveKind.ValueType]] = {
    "STOP": event_pb2.DIRECTIVE_KIND_STOP,
    "RESET": event_pb2.DIRECTIVE_KIND_RESET,
    "PAUSE": event_pb2.DIRECTIVE_KIND_PAUSE,
    "RESUME": event_pb2.DIRECTIVE_KIND_RESUME,
    "MOVED": event_pb2.DIRECTIVE_KIND_MOVED,
}


def outcome_to_proto(outcome: Outcome) -> event_pb2.EventOutcome:
    """What became of one event."""
    made = event_pb2.EventOutcome(vcpu=outcome.vcpu, seq=outcome.seq)
    match outcome.kind:
        case DoneOutcome() as done:
            made.done.CopyFrom(_done(done))
        case InjectOutcome(vector, error_code, xfd_err):
            made.inject.CopyFrom(event_pb2.Inject(vector=int(vector), error_code=error_code, xfd_err=xfd_err))
        case PendingOutcome(exit_name, generation):
            made.pending.CopyFrom(event_pb2.Pending(exit=exit_name, generation=generation))
        case BlockedOutcome(expected_seq, exit_name, migration):
            blocked = event_pb2.Blocked(expected_seq=expected_seq, exit=exit_name, migration=migration)
            made.blocked.CopyFrom(blocked)
        case RejectedOutcome() as rejected:
            failure = Failure(rejected.reason, rejected.text, rejected.metadata, rejected.field)
            made.rejected.CopyFrom(status_of(failure))
        case GoneOutcome(directive):
            made.gone.CopyFrom(event_pb2.Gone(directive=directive_to_proto(directive)))
        case _:
            assert_never(outcome.kind)
    return made


def _done(done: DoneOutcome) -> event_pb2.Done:
    made = event_pb2.Done(value=done.value, data=done.data, skip_instruction=done.skip_instruction)
    if done.reallocated is not None:
        made.reallocated.CopyFrom(growth_to_proto(done.reallocated))
    if done.intercepts is not None:
        made.intercepts.CopyFrom(intercepts_to_proto(done.intercepts))
    return made


def growth_to_proto(growth: Growth) -> common_pb2.Reallocation:
    """A container that was replaced by a larger one."""
    return common_pb2.Reallocation(old_bytes=growth.old_bytes, new_bytes=growth.new_bytes, xfeatures=growth.xfeatures)


def intercepts_to_proto(intercepts: Intercepts) -> common_pb2.InterceptState:
    """What has to leave the guest."""
    return common_pb2.InterceptState(xfd_read=intercepts.xfd_read, xfd_write=intercepts.xfd_write, nm=intercepts.nm)


def directive_to_proto(directive: Directive) -> event_pb2.Directive:
    """Something that only the VMM can do."""
    return event_pb2.Directive(
        id=directive.id,
        vcpu=directive.vcpu,
        kind=_DIRECTIVES[directive.kind],
        target=directive.target,
        reason=directive.reason,
    )


def resume_to_proto(resume: Resume) -> session_pb2.VcpuResume:
    """Where a vCPU goes on."""
    made = session_pb2.VcpuResume(
        vcpu=resume.vcpu,
        uid=resume.uid,
        incarnation=resume.incarnation,
        next_seq=resume.next_seq,
        intercepts=intercepts_to_proto(resume.intercepts),
    )
    if resume.pending is not None:
        made.pending.CopyFrom(outcome_to_proto(resume.pending))
    return made
