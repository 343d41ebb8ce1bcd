"""Exits. What is decided about them: ``translate.decision``."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Final

from fpstate.v1 import exit_pb2

from host_agent.decision_rules import allowed_decisions
from host_agent.exits import DecisionKind, ExitCause, ExitRecord, ExitResult, ExitState, Victim
from host_agent.kvm.outcome import Trigger
from host_agent.kvm.shrink import Unshrinkable
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
    ExitResult.INJECTED_NM: exit_pb2.EXIT_RESULT_INJECTED_NM,
    ExitResult.DEFERRED: exit_pb2.EXIT_RESULT_DEFERRED,
    ExitResult.FEATURE_HIDDEN: exit_pb2.EXIT_RESULT_FEATURE_HIDDEN,
    ExitResult.VCPU_KILLED: exit_pb2.EXIT_RESULT_VCPU_KILLED,
    ExitResult.VM_KILLED: exit_pb2.EXIT_RESULT_VM_KILLED,
    ExitResult.VM_RESET: exit_pb2.EXIT_RESULT_VM_RESET,
    ExitResult.VCPU_INIT: exit_pb2.EXIT_RESULT_VCPU_INIT,
    ExitResult.MIGRATED: exit_pb2.EXIT_RESULT_MIGRATED,
    ExitResult.DELETED: exit_pb2.EXIT_RESULT_DELETED,
}
_REFUSALS: Final[dict[Unshrinkable, exit_pb2.VictimRefusal.ValueType]] = {
    Unshrinkable.NOTHING_TO_FREE: exit_pb2.VICTIM_REFUSAL_NOTHING_TO_FREE,
    Unshrinkable.POLICY: exit_pb2.VICTIM_REFUSAL_POLICY,
    Unshrinkable.BROKEN: exit_pb2.VICTIM_REFUSAL_BROKEN,
    Unshrinkable.IN_GUEST: exit_pb2.VICTIM_REFUSAL_IN_GUEST,
    Unshrinkable.CONFIDENTIAL: exit_pb2.VICTIM_REFUSAL_CONFIDENTIAL,
    Unshrinkable.ENABLED: exit_pb2.VICTIM_REFUSAL_ENABLED,
    Unshrinkable.IN_USE: exit_pb2.VICTIM_REFUSAL_IN_USE,
    Unshrinkable.NOT_FOUND: exit_pb2.VICTIM_REFUSAL_NOT_FOUND,
    Unshrinkable.NOT_CONTROLLED: exit_pb2.VICTIM_REFUSAL_NOT_CONTROLLED,
    Unshrinkable.VMM_NOT_TOLD: exit_pb2.VICTIM_REFUSAL_VMM_NOT_TOLD,
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


def exit_to_proto(state: HostState, record: ExitRecord, *, now_ns: int | None = None) -> exit_pb2.Exit:
    """An exit as it is; ``expires_in`` counts from ``now_ns``, from the host's last command where that is just now.

    The clock of a VM that is leaving stands.
    """
    if record.vm in state.leaving:
        now_ns = state.leaving[record.vm].begun_ns
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
        allowed_decisions=sorted(DECISIONS[kind] for kind in allowed_decisions(record)),
        decided_by=record.decided_by,
        decision=DECISIONS[record.decision] if record.decision else exit_pb2.DECISION_KIND_UNSPECIFIED,
        result=RESULTS[record.result] if record.result else exit_pb2.EXIT_RESULT_UNSPECIFIED,
        create_revision=record.created_revision,
        update_revision=record.updated_revision,
        reclaimed=victims_to_proto(record.reclaimed),
    )
    if record.expires_ns is not None:
        made.expires_in.CopyFrom(duration(max(0, record.expires_ns - (state.now_ns if now_ns is None else now_ns))))
    return made


def victims_to_proto(victims: Iterable[Victim]) -> list[exit_pb2.Victim]:
    """What was taken from whom, or why not."""
    return [
        exit_pb2.Victim(
            vcpu=each.vcpu,
            freed_bytes=each.freed_bytes,
            refusal=_REFUSALS[each.refused] if each.refused is not None else exit_pb2.VICTIM_REFUSAL_UNSPECIFIED,
        )
        for each in victims
    ]
