"""From a refusal to what the caller gets: one table of reasons, and the google.rpc.Status that is built from it.

The same table serves a failed call and the `rejected` outcome of an event. The reasons are those of
protos/fpstate/v1/errors.proto; the machine knows those it needs (``host_agent.errors.Reason``, by the same names), the
service the rest.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Final

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from fpu_core.errors import CoreBug, FieldError
from host_agent.errors import Refused
from host_agent.journal.errors import JournalError, StorageFullError

#: ErrorInfo.domain of every refusal.
DOMAIN: Final = "fpstate.dev"

_S = StatusCode

#: Every reason and its status code. KVM_ERRNO has no one code: the errno says (``_ERRNO_CODES``).
CODES: Final[dict[str, StatusCode]] = {
    "FIELD_INVALID": _S.INVALID_ARGUMENT,
    "REQUEST_ID_REUSED": _S.INVALID_ARGUMENT,
    "ETAG_MISMATCH": _S.ABORTED,
    "DEADLINE_REQUIRED": _S.INVALID_ARGUMENT,
    "DEADLINE_REACHED": _S.DEADLINE_EXCEEDED,
    "UNIMPLEMENTED_CALL": _S.UNIMPLEMENTED,
    "CAPABILITY_MISSING": _S.FAILED_PRECONDITION,
    "PRINCIPAL_UNKNOWN": _S.UNAUTHENTICATED,
    "ROLE_NOT_ALLOWED": _S.PERMISSION_DENIED,
    "NOT_OWNER": _S.PERMISSION_DENIED,
    "RATE_LIMITED": _S.RESOURCE_EXHAUSTED,
    "VM_NOT_FOUND": _S.NOT_FOUND,
    "VM_EXISTS": _S.ALREADY_EXISTS,
    "VM_NOT_EMPTY": _S.FAILED_PRECONDITION,
    "VM_MOVED": _S.FAILED_PRECONDITION,
    "VCPU_NOT_FOUND": _S.NOT_FOUND,
    "VCPU_EXISTS": _S.ALREADY_EXISTS,
    "VCPU_PARKED": _S.FAILED_PRECONDITION,
    "VCPU_NOT_ENTERED": _S.FAILED_PRECONDITION,
    "VCPU_ALREADY_ENTERED": _S.FAILED_PRECONDITION,
    "VCPU_KILLED": _S.FAILED_PRECONDITION,
    "VCPU_BROKEN": _S.FAILED_PRECONDITION,
    "VCPU_PAUSED": _S.FAILED_PRECONDITION,
    "VCPU_BUSY": _S.ABORTED,
    "VCPU_NOT_IN_SESSION": _S.FAILED_PRECONDITION,
    "TASK_NOT_FOUND": _S.NOT_FOUND,
    "TASK_EXISTS": _S.ALREADY_EXISTS,
    "TASK_BUSY": _S.FAILED_PRECONDITION,
    "TASK_NOT_RUNNING": _S.FAILED_PRECONDITION,
    "SESSION_NOT_FOUND": _S.NOT_FOUND,
    "SESSION_FENCED": _S.ABORTED,
    "SESSION_EXPIRED": _S.ABORTED,
    "SEQ_GAP": _S.FAILED_PRECONDITION,
    "OUTCOME_FORGOTTEN": _S.FAILED_PRECONDITION,
    "CREDITS_EXCEEDED": _S.RESOURCE_EXHAUSTED,
    "ATTACH_OUT_OF_ORDER": _S.FAILED_PRECONDITION,
    "EXIT_NOT_FOUND": _S.NOT_FOUND,
    "EXIT_ALREADY_RESOLVED": _S.FAILED_PRECONDITION,
    "EXIT_STALE_GENERATION": _S.ABORTED,
    "CONTROL_NOT_FOUND": _S.NOT_FOUND,
    "CONTROL_FENCED": _S.ABORTED,
    "CONTROL_HELD": _S.ABORTED,
    "CONTROL_OUT_OF_SCOPE": _S.FAILED_PRECONDITION,
    "DECISION_NOT_ALLOWED": _S.FAILED_PRECONDITION,
    "KVM_ERRNO": _S.FAILED_PRECONDITION,
    "ALLOCATION_FAILED": _S.RESOURCE_EXHAUSTED,
    "XFD_SYNC_NEEDS_GROWTH": _S.FAILED_PRECONDITION,
    "FEATURE_UNSUPPORTED": _S.FAILED_PRECONDITION,
    "HOST_DRAINING": _S.UNAVAILABLE,
    "LIMIT_REACHED": _S.RESOURCE_EXHAUSTED,
    "REVISION_IN_FUTURE": _S.OUT_OF_RANGE,
    "HISTORY_CHANGED": _S.OUT_OF_RANGE,
    "STORAGE_FULL": _S.RESOURCE_EXHAUSTED,
    "STORAGE_FAILED": _S.UNAVAILABLE,
    "FAULTS_NOT_ENABLED": _S.FAILED_PRECONDITION,
    "FAULT_NOT_FOUND": _S.NOT_FOUND,
    "FAULT_POINT_UNKNOWN": _S.INVALID_ARGUMENT,
    "CLOCK_NOT_MANUAL": _S.FAILED_PRECONDITION,
    "MIGRATION_NOT_FOUND": _S.NOT_FOUND,
    "MIGRATION_FENCED": _S.ABORTED,
    "MIGRATION_WRONG_STATE": _S.FAILED_PRECONDITION,
    "SNAPSHOT_CORRUPT": _S.DATA_LOSS,
    "SNAPSHOT_VERSION_UNSUPPORTED": _S.INVALID_ARGUMENT,
    "HOST_INCOMPATIBLE": _S.FAILED_PRECONDITION,
    "MIGRATION_IN_PROGRESS": _S.ABORTED,
    "STATE_CONFIDENTIAL": _S.FAILED_PRECONDITION,
    "INTERNAL_INVARIANT": _S.INTERNAL,
}

#: How a kernel's errno reads as a status code; FAILED_PRECONDITION for the rest.
_ERRNO_CODES: Final = {
    errno.EPERM: _S.PERMISSION_DENIED,
    errno.EINVAL: _S.INVALID_ARGUMENT,
    errno.E2BIG: _S.INVALID_ARGUMENT,
    errno.ENOMEM: _S.RESOURCE_EXHAUSTED,
    errno.EFAULT: _S.RESOURCE_EXHAUSTED,
}
#: Of these calls EFAULT says that the caller's buffer is too short, not that memory is.
_READS_A_BUFFER: Final = ("KVM_SET_XSAVE",)

#: Where repeating the same call later can help, and after how long, in milliseconds. CONTROL_HELD knows it exactly.
_RETRY_MS: Final = {
    "VCPU_BUSY": 10,
    "CREDITS_EXCEEDED": 100,
    "CONTROL_HELD": 1000,
    "ALLOCATION_FAILED": 1000,
    "HOST_DRAINING": 1000,
    "STORAGE_FULL": 1000,
    "STORAGE_FAILED": 1000,
}

#: What a refusal repeats of a request is cut to so many bytes. A status travels as metadata, of which a client takes
#: 8 KiB, and its text is in there three times: percent-encoded in grpc-message (three bytes for one), and twice in
#: base64 (four for three). Source: grpc/doc/PROTOCOL-HTTP2.md; GRPC_ARG_MAX_METADATA_SIZE in grpc's channel arguments.
_TEXT_BYTES_MAX: Final = 768
_VALUE_BYTES_MAX: Final = 384
_CUT: Final = " ... "


# What the disk said, and where, is for the host's log: a caller can do nothing about either.
_STORAGE_FULL: Final = (
    "the host's disk is full: what was under way has not happened, and no new work is taken until there is room"
)
_STORAGE_FAILED: Final = "the host could not write its journal, and stops: what is not on the disk is not answered"


@dataclass(eq=False)
class Failure(Exception):  # noqa: N818 -- a refusal, as the machine's ``Refused``
    """A refusal on its way to the caller: a reason of the registry, a text for people, and what the text is made of.

    ``metadata`` is ErrorInfo's: lowerCamel keys. ``field`` is the path of the one wrong field, if that is the reason.
    """

    reason: str
    text: str
    metadata: dict[str, str] = field(default_factory=dict)
    field: str = ""

    def __post_init__(self) -> None:
        assert self.reason in CODES, f"{self.reason} is not in the registry"
        super().__init__(self.text)

    @classmethod
    def because(cls, reason: str, text: str, **metadata: object) -> Failure:
        """Make one from keywords: ``Failure.because("VM_NOT_EMPTY", "...", vm=name, vcpus=3)``."""
        return cls(reason, text, {key: str(value) for key, value in metadata.items()})

    @property
    def code(self) -> StatusCode:
        """The status code of the table, or of the errno."""
        if self.reason == "KVM_ERRNO":
            number = int(self.metadata.get("errno", "0"))
            if number == errno.EFAULT and self.metadata.get("call") in _READS_A_BUFFER:
                return _S.INVALID_ARGUMENT
            return _ERRNO_CODES.get(number, CODES["KVM_ERRNO"])
        return CODES[self.reason]


def field_invalid(path: str, expected: str, got: object) -> Failure:
    """A field that cannot be right: its path in the request, and what would have been accepted."""
    return Failure(
        "FIELD_INVALID", f"{path}: expected {expected}, got {got!r}", {"field": path, "expected": expected}, path
    )


def failure_of(error: Exception) -> Failure | None:
    """Return the refusal that ``error`` is; None for what nobody has foreseen."""
    match error:
        case Failure():
            return error
        case Refused():
            return Failure(error.reason.name, error.text, error.metadata, error.field)
        case FieldError():
            return field_invalid(error.field, error.expected, error.got)
        case StorageFullError():
            return Failure.because("STORAGE_FULL", _STORAGE_FULL)
        case JournalError():
            return Failure.because("STORAGE_FAILED", _STORAGE_FAILED)
        case CoreBug():
            return Failure.because("INTERNAL_INVARIANT", f"a bug of the host: {error}", invariant=str(error))
        case _:
            return None


def status_of(failure: Failure) -> status_pb2.Status:
    """Build the google.rpc.Status: one ErrorInfo, and BadRequest and RetryInfo where they say more."""
    number: int = failure.code.value[0]
    text = shortened(failure.text, _TEXT_BYTES_MAX)
    metadata = {key: shortened(value, _VALUE_BYTES_MAX) for key, value in failure.metadata.items()}
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=failure.reason, domain=DOMAIN, metadata=metadata)]
    if failure.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=shortened(failure.field, _VALUE_BYTES_MAX), description=text, reason=failure.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    retry_ms = _retry_ms(failure)
    if retry_ms is not None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromMilliseconds(retry_ms)
        details.append(info)
    return status_pb2.Status(code=number, message=text, details=[_packed(detail) for detail in details])


def shortened(text: str, size_bytes: int) -> str:
    """The text, cut in its middle to so many bytes of UTF-8 where it has more: both of its ends say what it is."""
    raw = text.encode(errors="replace")
    if len(raw) <= size_bytes:
        return text
    half = (size_bytes - len(_CUT.encode())) // 2
    return raw[:half].decode(errors="ignore") + _CUT + raw[-half:].decode(errors="ignore")


def _retry_ms(failure: Failure) -> int | None:
    """The delay of RetryInfo; what is left of a lease where that is what has to end."""
    remaining = failure.metadata.get("remainingMillis")
    return int(remaining) if remaining is not None else _RETRY_MS.get(failure.reason)


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
