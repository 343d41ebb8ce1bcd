"""The edge between the wire and the policies: an Exit becomes an ExitView here, a Decision becomes its message."""

from __future__ import annotations

import enum
from typing import Final, TypeVar, assert_never

from fpstate.v1 import exit_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from vmm_controller.policy import (
    Decision,
    DecisionKind,
    Defer,
    ExitCause,
    ExitResult,
    ExitState,
    ExitTrigger,
    ExitView,
    HideFeature,
    InjectGp,
    InjectNm,
    KillVcpu,
    KillVm,
    Migrate,
    Pause,
    RaiseLimit,
    Reclaim,
    ResetVm,
    Retry,
    RetryAfter,
)

_KINDS: Final = {kind.value: kind for kind in DecisionKind}
_Known = TypeVar("_Known", bound=enum.Enum)


def exit_from_proto(message: pb.Exit) -> ExitView:
    """Return the exit as the policies know it.

    What a newer host says in numbers that this controller does not know becomes UNKNOWN, and a decision it does not
    know is left out of what is allowed.
    """
    return ExitView(
        name=message.name,
        vcpu=message.vcpu,
        vcpu_uid=message.vcpu_uid,
        seq=message.seq,
        generation=message.generation,
        state=_known(ExitState, message.state),
        cause=_known(ExitCause, message.cause),
        trigger=_known(ExitTrigger, message.trigger),
        errno=message.errno_value,
        errno_name=message.errno_name,
        attempt=message.attempt,
        bytes_needed=message.bytes_needed,
        xfeatures=message.xfeatures,
        allowed_decisions=frozenset(_KINDS[kind] for kind in message.allowed_decisions if kind in _KINDS),
        old_xcr0=message.old_xcr0,
        new_xcr0=message.new_xcr0,
        old_xfd=message.old_xfd,
        new_xfd=message.new_xfd,
        expires_in_s=seconds_of(message.expires_in) if message.HasField("expires_in") else None,
        decided_by=message.decided_by,
        decision=_KINDS.get(message.decision),
        result=_known(ExitResult, message.result),
        update_revision=message.update_revision,
    )


def _known(kind: type[_Known], number: int) -> _Known:
    try:
        return kind(number)
    except ValueError:
        return kind(0)


def decision_to_proto(decision: Decision) -> pb.Decision:  # noqa: C901, PLR0912 -- one line each
    """Return the decision as its message."""
    match decision:
        case Retry():
            return pb.Decision(retry=pb.Retry())
        case RetryAfter(delay_s=delay_s):
            return pb.Decision(retry_after=pb.RetryAfter(delay=duration_of(delay_s)))
        case RaiseLimit(limit_bytes=limit, of_host=of_host):
            scope = pb.LIMIT_SCOPE_HOST if of_host else pb.LIMIT_SCOPE_VM
            return pb.Decision(raise_limit=pb.RaiseLimit(bytes=limit, scope=scope))
        case Reclaim(victims=victims, any_other=any_other):
            return pb.Decision(reclaim=pb.Reclaim(victims=victims, any=any_other))
        case InjectGp():
            return pb.Decision(inject_gp=pb.InjectGp())
        case InjectNm():
            return pb.Decision(inject_nm=pb.InjectNm())
        case Defer():
            return pb.Decision(defer=pb.Defer())
        case Pause():
            return pb.Decision(pause=pb.Pause())
        case KillVcpu():
            return pb.Decision(kill_vcpu=pb.KillVcpu())
        case KillVm():
            return pb.Decision(kill_vm=pb.KillVm())
        case ResetVm():
            return pb.Decision(reset_vm=pb.ResetVm())
        case HideFeature():
            return pb.Decision(hide_feature=pb.HideFeature())
        case Migrate(target=target):
            return pb.Decision(migrate=pb.Migrate(target=target))
        case _:
            assert_never(decision)


def duration_of(seconds: float) -> Duration:
    """Return seconds as a Duration, at microsecond precision."""
    return Duration(seconds=int(seconds), nanos=round((seconds - int(seconds)) * 1_000_000) * 1_000)


def seconds_of(duration: Duration) -> float:
    """Return a Duration in seconds."""
    return float(duration.seconds) + float(duration.nanos) / 1e9
