"""Decisions: as they come in, and as the audit has them."""

from __future__ import annotations

from typing import Final

from fpstate.v1 import exit_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from host_agent.audit import DecisionRecord
from host_agent.exits import Decision, DecisionKind
from host_agent.service.errors import field_invalid
from host_agent.service.translate.exit import CAUSES, EXIT_STATES, RESULTS
from host_agent.service.translate.fields import NS_PER_S, duration, duration_ns

_SCOPES: Final[dict[int, str]] = {
    exit_pb2.LIMIT_SCOPE_UNSPECIFIED: "vm",
    exit_pb2.LIMIT_SCOPE_VM: "vm",
    exit_pb2.LIMIT_SCOPE_HOST: "host",
}
_DELAY_MAX_NS: Final = 3600 * NS_PER_S


_KIND_OF_FIELD: Final = {kind.name.lower(): kind for kind in DecisionKind}


def decision_from_proto(path: str, message: exit_pb2.Decision) -> Decision:
    """Read a decision. One that this release does not carry out is the machine's to refuse: no exit allows it."""
    name = message.WhichOneof("kind")
    if name is None:
        raise field_invalid(path, "one of the decisions", "none")
    match name:
        case "retry_after":
            return Decision(DecisionKind.RETRY_AFTER, delay_ns=_delay_ns(f"{path}.retry_after.delay", message))
        case "raise_limit":
            return _raise_limit(f"{path}.raise_limit", message.raise_limit)
        case _:
            return Decision(_KIND_OF_FIELD[name])


def _delay_ns(path: str, message: exit_pb2.Decision) -> int:
    delay_ns = duration_ns(path, message.retry_after.delay)
    if not 0 < delay_ns <= _DELAY_MAX_NS:
        raise field_invalid(path, "more than 0 s and at most 3,600 s", f"{delay_ns} ns")
    return delay_ns


def _raise_limit(path: str, message: exit_pb2.RaiseLimit) -> Decision:
    scope = _SCOPES.get(message.scope)
    if scope is None:
        raise field_invalid(f"{path}.scope", "LIMIT_SCOPE_VM or LIMIT_SCOPE_HOST", message.scope)
    if message.bytes == 0:
        raise field_invalid(f"{path}.bytes", "more than 0 bytes", message.bytes)
    return Decision(DecisionKind.RAISE_LIMIT, bytes=message.bytes, scope=scope)


# -- the audit ---------------------------------------------------------------------------------------------------------


def decision_record_to_proto(record: DecisionRecord) -> exit_pb2.DecisionRecord:
    """A decision that was taken, and what it came to."""
    time = Timestamp()
    time.FromNanoseconds(record.unix_ns)
    return exit_pb2.DecisionRecord(
        number=record.number,
        time=time,
        revision=record.revision,
        principal=record.decider.principal,
        decided_by=record.decider.name,
        reason=record.decider.reason,
        exit=record.exit,
        vcpu_uid=record.vcpu_uid,
        generation=record.generation,
        cause=CAUSES[record.cause],
        decision=_decision_to_proto(record.decision),
        state=EXIT_STATES[record.state],
        result=RESULTS[record.result] if record.result else exit_pb2.EXIT_RESULT_UNSPECIFIED,
    )


def _decision_to_proto(decision: Decision) -> exit_pb2.Decision:
    made = exit_pb2.Decision()
    match decision.kind:
        case DecisionKind.RETRY_AFTER:
            made.retry_after.delay.CopyFrom(duration(decision.delay_ns))
        case DecisionKind.RAISE_LIMIT:
            made.raise_limit.bytes = decision.bytes
            of_host = decision.scope == "host"
            made.raise_limit.scope = exit_pb2.LIMIT_SCOPE_HOST if of_host else exit_pb2.LIMIT_SCOPE_VM
        case DecisionKind.RECLAIM:
            made.reclaim.CopyFrom(exit_pb2.Reclaim(victims=decision.victims, any=decision.any_victim))
        case DecisionKind.MIGRATE:
            made.migrate.target = decision.target
        case kind:
            getattr(made, kind.name.lower()).SetInParent()
    return made
