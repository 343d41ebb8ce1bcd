"""Between values and messages, each kind in one function; nothing else in the guest agent builds an event message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar, assert_never

from fpstate.v1 import event_pb2 as pb
from fpstate.v1 import session_pb2
from fpstate.v1.common_pb2 import InterceptState, Reallocation
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from guest_agent.event import (
    Enter,
    GuestEvent,
    Hlt,
    Init,
    Leave,
    Nm,
    Preempt,
    Rdmsr,
    RegisterRead,
    RegisterWrite,
    Tile,
    TileOp,
    WriteCr4,
    Wrmsr,
    XfdSync,
    Xgetbv,
    Xsave,
    XsaveInsn,
    Xsetbv,
)
from guest_agent.outcome import (
    Blocked,
    Directive,
    DirectiveKind,
    Done,
    FieldViolation,
    Gone,
    Growth,
    Injected,
    Intercepts,
    Outcome,
    Pending,
    Refusal,
    Rejected,
)

NS_PER_S = 1_000_000_000

M = TypeVar("M", bound=Message)

TILE_OPS = {
    TileOp.LDTILECFG: pb.TILE_OP_LDTILECFG,
    TileOp.STTILECFG: pb.TILE_OP_STTILECFG,
    TileOp.TILERELEASE: pb.TILE_OP_TILERELEASE,
    TileOp.TILELOADD: pb.TILE_OP_TILELOADD,
    TileOp.TILESTORED: pb.TILE_OP_TILESTORED,
    TileOp.TILEZERO: pb.TILE_OP_TILEZERO,
}
XSAVE_INSNS = {
    XsaveInsn.XSAVE: pb.XSAVE_INSN_XSAVE,
    XsaveInsn.XSAVEOPT: pb.XSAVE_INSN_XSAVEOPT,
    XsaveInsn.XSAVEC: pb.XSAVE_INSN_XSAVEC,
    XsaveInsn.XRSTOR: pb.XSAVE_INSN_XRSTOR,
}

_DIRECTIVES = {
    pb.DIRECTIVE_KIND_STOP: DirectiveKind.STOP,
    pb.DIRECTIVE_KIND_RESET: DirectiveKind.RESET,
    pb.DIRECTIVE_KIND_PAUSE: DirectiveKind.PAUSE,
    pb.DIRECTIVE_KIND_RESUME: DirectiveKind.RESUME,
    pb.DIRECTIVE_KIND_MOVED: DirectiveKind.MOVED,
}


class MessageError(Exception):
    """The host sent a message that this client cannot read; the text says what was expected."""


# ---- to messages -----------------------------------------------------------------------------------------------------


def event_to_proto(vcpu: str, seq: int, event: GuestEvent) -> pb.GuestEvent:  # noqa: C901, PLR0912 -- one case a kind
    """Return event number `seq` of `vcpu` as a message.

    Raises:
        ValueError: a number does not fit its field.
    """
    message = pb.GuestEvent(vcpu=vcpu, seq=seq)
    match event:
        case Enter(task=task):
            message.enter.CopyFrom(pb.Enter(task=task))
        case Leave():
            message.leave.SetInParent()
        case Preempt(cpu=cpu):
            message.preempt.CopyFrom(pb.Preempt(cpu=cpu))
        case Xsetbv(value=value, index=index, cpl=cpl):
            message.xsetbv.CopyFrom(pb.Xsetbv(index=index, value=value, cpl=cpl))
        case Wrmsr(msr=msr, value=value):
            message.wrmsr.CopyFrom(pb.Wrmsr(msr=msr, value=value))
        case Rdmsr(msr=msr):
            message.rdmsr.CopyFrom(pb.Rdmsr(msr=msr))
        case Nm(cr0_ts=cr0_ts):
            message.nm.CopyFrom(pb.Nm(cr0_ts=cr0_ts))
        case RegisterWrite(feature=feature, offset=offset, data=content):
            message.register_write.CopyFrom(pb.RegisterWrite(feature=feature, offset=offset, data=content))
        case RegisterRead(feature=feature, offset=offset, length=length):
            message.register_read.CopyFrom(pb.RegisterRead(feature=feature, offset=offset, length=length))
        case Tile(op=op, tile=tile, memory=memory):
            message.tile.CopyFrom(pb.TileInstruction(op=TILE_OPS[op], tile=tile, memory=memory))
        case XfdSync(xfd=xfd):
            message.xfd_sync.CopyFrom(pb.XfdSync(xfd=xfd))
        case Init():
            message.init.SetInParent()
        case Hlt():
            message.hlt.SetInParent()
        case Xgetbv(index=index):
            message.xgetbv.CopyFrom(pb.Xgetbv(index=index))
        case WriteCr4(value=value):
            message.write_cr4.CopyFrom(pb.WriteCr4(value=value))
        case Xsave(insn=insn, rfbm=rfbm, memory=memory, misaligned_by=misaligned_by):
            message.xsave.CopyFrom(
                pb.XsaveInstruction(insn=XSAVE_INSNS[insn], rfbm=rfbm, memory=memory, misaligned_by=misaligned_by)
            )
        case _:
            assert_never(event)
    return message


def batch_to_proto(events: Iterable[pb.GuestEvent], *, received_through: Mapping[str, int]) -> pb.EventBatch:
    """Return a batch of `events` (none: it only says what was received) with the number received through per vCPU."""
    marks = [pb.SeqMark(vcpu=vcpu, seq=seq) for vcpu, seq in received_through.items() if seq]
    batch = pb.EventBatch(outcomes_received_through=marks)
    messages = list(events)
    if messages:
        batch.events.CopyFrom(pb.GuestEvents(events=messages))
    return batch


def duration_to_proto(seconds: float | None) -> Duration | None:
    """Return a number of seconds as a Duration; None stays None, the field's absence."""
    if seconds is None:
        return None
    ns = round(seconds * NS_PER_S)
    return Duration(seconds=ns // NS_PER_S, nanos=ns % NS_PER_S)


def duration_from_proto(duration: Duration) -> float:
    """Return a Duration in seconds."""
    return duration.seconds + duration.nanos / NS_PER_S


# ---- from messages ---------------------------------------------------------------------------------------------------


def outcome_from_proto(message: pb.EventOutcome) -> Outcome:
    """Return what an outcome message says.

    Raises:
        MessageError: it holds no outcome this client knows.
    """
    match message.WhichOneof("outcome"):
        case "done":
            return _done(message.done)
        case "inject":
            return _injected(message.inject)
        case "pending":
            return Pending(message.pending.exit, message.pending.generation)
        case "blocked":
            return Blocked(message.blocked.expected_seq, message.blocked.exit, message.blocked.migration)
        case "rejected":
            return Rejected(refusal_from_status(message.rejected))
        case "gone":
            return Gone(directive_from_proto(message.gone.directive))
        case _:
            raise MessageError(f"outcome {message.seq} of {message.vcpu}: expected one of the six kinds, got none")


def _done(done: pb.Done) -> Done:
    return Done(
        value=done.value if done.HasField("value") else None,
        data=done.data,
        skip_instruction=done.skip_instruction,
        reallocated=_growth(done.reallocated) if done.HasField("reallocated") else None,
        intercepts=intercepts_from_proto(done.intercepts) if done.HasField("intercepts") else None,
    )


def done_of_run(run: session_pb2.DoneRun) -> Done:
    """Return the one outcome that every event of a run has."""
    return Done(skip_instruction=True, intercepts=intercepts_from_proto(run.intercepts))


def _injected(inject: pb.Inject) -> Injected:
    error_code = inject.error_code if inject.HasField("error_code") else None
    return Injected(inject.vector, error_code, inject.xfd_err)


def _growth(message: Reallocation) -> Growth:
    return Growth(message.old_bytes, message.new_bytes, message.xfeatures)


def intercepts_from_proto(message: InterceptState) -> Intercepts:
    """Return what a VMM is to intercept."""
    return Intercepts(message.xfd_read, message.xfd_write, message.nm)


def directive_from_proto(message: pb.Directive) -> Directive:
    """Return what a directive says.

    Raises:
        MessageError: its kind is none this client knows.
    """
    kind = _DIRECTIVES.get(message.kind)
    if kind is None:
        raise MessageError(f"directive {message.id} of {message.vcpu}: kind {message.kind} is none this client knows")
    return Directive(message.id, message.vcpu, kind, message.reason, message.target)


def refusal_from_status(status: status_pb2.Status) -> Refusal:
    """Take a google.rpc.Status apart; details of types it does not know are left out."""
    info = _unpack(status.details, error_details_pb2.ErrorInfo)
    bad_request = _unpack(status.details, error_details_pb2.BadRequest)
    retry = _unpack(status.details, error_details_pb2.RetryInfo)
    return Refusal(
        code=_code_name(status.code),
        message=status.message,
        reason=info.reason if info else "",
        metadata=dict(info.metadata) if info else {},
        violations=_violations(bad_request) if bad_request else (),
        retry_delay_s=duration_from_proto(retry.retry_delay) if retry else None,
    )


def _violations(bad_request: error_details_pb2.BadRequest) -> tuple[FieldViolation, ...]:
    return tuple(FieldViolation(each.field, each.description) for each in bad_request.field_violations)


def _unpack(details: Iterable[Any], kind: type[M]) -> M | None:
    for detail in details:
        message = kind()
        if detail.Unpack(message):
            return message
    return None


def _code_name(code: int) -> str:
    return code_pb2.Code.Name(code) if code in code_pb2.Code.values() else "UNKNOWN"
