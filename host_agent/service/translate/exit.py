"""Exits. What is decided about them: ``translate.decision``."""

from __future__ import annotations

import errno
from typing import Final

from fpstate.v1 import exit_pb2

from host_agent.exits import DecisionKind, ExitCause, ExitRecord, ExitResult, ExitState
from host_agent.kvm.outcome import Trigger
from host_agent.service.translate.fields import duration
from host_agent.state import HostState

EXIT_STATES: Final[dict[ExitState, exit_pb2.ExitState.ValueType]] = {
    ExitState.OPEN: exit_pb2.EXIT_STATE_OPEN,
    ExitState.APPLYING: exit_pb2.EXIT_STATE_APPLYING,
    ExitState.PAUSED: exit_pb2.EXIT_STATE_PAUSED,
    ExitState.RESOLVED: exit_pb2.EXIT_STATE_RESOLVED,
    ExitState.CANCELLED: exit_pb2.EXIT_STATE_CANCELLED,
}
CAUSES: Final[dict[ExitCause, exit_pb2.ExitCause.ValueType]] = {
    ExitCause.NO_MEMORY: exit_pb2.EXIT_CAUSE_NO_MEMORY,
    ExitCause.QUOTA: exit_pb2.EXIT_CAUSE_QUOTA,
    ExitCause.NO_PERMISSION: exit_pb2.EXIT_CAUSE_NO_PERMISSION,
}
_TRIGGERS: Final[dict[Trigger, exit_pb2.ExitTrigger.ValueType]] = {
    Trigger.XSETBV: exit_pb2.EXIT_TRIGGER_XSETBV,
    Trigger.WRMSR_XFD: exit_pb2.EXIT_TRIGGER_WRMSR_XFD,
}
RESULTS: Final[dict[ExitResult, exit_pb2.ExitResult.ValueType]] = {
    ExitResult.COMMITTED: exit_pb2.EXIT_RESULT_COMMITTED,
    ExitResult.INJECTED_GP: exit_pb2.EXIT_RESULT_INJECTED_GP,
    ExitResult.DEFERRED: exit_pb2.EXIT_RESULT_DEFERRED,
    ExitResult.VCPU_KILLED: exit_pb2.EXIT_RESULT_VCPU_KILLED,
    ExitResult.VM_KILLED: exit_pb2.EXIT_RESULT_VM_KILLED,
    ExitResult.VM_RESET: exit_pb2.EXIT_RESULT_VM_RESET,
    ExitResult.VCPU_INIT: exit_pb2.EXIT_RESULT_VCPU_INIT,
    ExitResult.DELETED: exit_pb2.EXIT_RESULT_DELETED,
}
DECISIONS: Final[dict[DecisionKind, exit_pb2.DecisionKind.ValueType]] = {
    DecisionKind.RETRY: exit_pb2.DECISION_KIND_RETRY,
    DecisionKind.RETRY_AFTER: exit_pb2.DECISION_KIND_RETRY_AFTER,
    DecisionKind.RAISE_LIMIT: exit_pb2.DECISION_KIND_RAISE_LIMIT,
    DecisionKind.RECLAIM: exit_pb2.DECISION_KIND_RECLAIM,
    DecisionKind.INJECT_GP: exit_pb2.DECISION_KIND_INJECT_GP,
    DecisionKind.INJECT_NM: exit_pb2.DECISION_KIND_INJECT_NM,
    DecisionKind.DEFER: exit_pb2.DECISION_KIND_DEFER,
    DecisionKind.PAUSE: exit_pb2.DECISION_KIND_PAUSE,
    DecisionKind.KILL_VCPU: exit_pb2.DECISION_KIND_KILL_VCPU,
    DecisionKind.KILL_VM: exit_pb2.DECISION_KIND_KILL_VM,
    DecisionKind.RESET_VM: exit_pb2.DECISION_KIND_RESET_VM,
    DecisionKind.HIDE_FEATURE: exit_pb2.DECISION_KIND_HIDE_FEATURE,
    DecisionKind.MIGRATE: exit_pb2.DECISION_KIND_MIGRATE,
}


def exit_to_proto(state: HostState, record: ExitRecord) -> exit_pb2.Exit:
    """An exit as it is now; ``expires_in`` counts from the host's present time."""
    made = exit_pb2.Exit(
        name=record.name,
        vcpu=record.vcpu,
        vcpu_uid=record.vcpu_uid,
        seq=record.seq,
        generation=record.generation,
        state=EXIT_STATES[record.state],
        reason=exit_pb2.EXIT_REASON_FPU_REALLOC_FAILED,
        errno_value=record.errno,
        errno_name=errno.errorcode[record.errno],
        cause=CAUSES[record.cause],
        trigger=_TRIGGERS[record.write.trigger],
        old_xcr0=record.old_xcr0,
        new_xcr0=record.write.xcr0,
        old_xfd=record.old_xfd,
        new_xfd=record.write.xfd,
        xfeatures=record.xfeatures,
        bytes_needed=record.bytes_needed,
        attempt=record.attempt,
        allowed_decisions=sorted(DECISIONS[kind] for kind in record.allowed),
        decided_by=record.decided_by,
        decision=DECISIONS[record.decision] if record.decision else exit_pb2.DECISION_KIND_UNSPECIFIED,
        result=RESULTS[record.result] if record.result else exit_pb2.EXIT_RESULT_UNSPECIFIED,
        create_revision=record.created_revision,
        update_revision=record.updated_revision,
    )
    if record.expires_ns is not None:
        made.expires_in.CopyFrom(duration(record.expires_ns - state.now_ns))
    return made
