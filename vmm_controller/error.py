"""A refused call as one typed error: the reason out of the frozen registry, its metadata, when to try again.

Source of the reasons: fpstate/v1/errors.proto. A reason that is not known here is still a text, and its status code
says enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from vmm_controller.exit_proto import seconds_of

DOMAIN: Final = "fpstate.dev"
#: Where grpc-status puts the google.rpc.Status of a refusal.
_TRAILER: Final = "grpc-status-details-bin"

#: What goes away by itself: the host is not there (yet), is busy with the vCPU, has no room, was too slow this once; or
#: the VM is about to leave, and what becomes of that will show.
#: A host that stops cancels its streams; a call that this process cancels itself raises no CallError.
_TRANSIENT_CODES: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
)
_TRANSIENT_REASONS: Final = frozenset(
    {"VCPU_BUSY", "HOST_DRAINING", "RATE_LIMITED", "STORAGE_FULL", "MIGRATION_IN_PROGRESS"}
)
#: The control is not ours (any more).
_LOST_CONTROL: Final = frozenset({"CONTROL_FENCED", "CONTROL_NOT_FOUND"})


class CallError(Exception):
    """A call of the host's was refused or did not get there; nothing has changed unless its deadline passed."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: dict[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{reason or code.name}: {message}")
        self.code = code
        self.message = message
        #: Name of the ErrorReason without its prefix; empty where the host said none.
        self.reason = reason
        self.metadata = metadata or {}
        #: The host's RetryInfo in seconds; None where it gave none.
        self.retry_after_s = retry_after_s

    @property
    def transient(self) -> bool:
        """Whether the same call may well succeed later."""
        return self.code in _TRANSIENT_CODES or self.reason in _TRANSIENT_REASONS

    @property
    def lost_control(self) -> bool:
        """Whether the host says that the caller's control has ended."""
        return self.reason in _LOST_CONTROL


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raise CallError where gRPC raises AioRpcError, and where the channel was closed by its owner."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise call_error(error) from error
    except grpc.aio.UsageError as error:
        raise CallError(grpc.StatusCode.FAILED_PRECONDITION, "the channel was closed by its owner") from error


def call_error(error: grpc.aio.AioRpcError) -> CallError:
    """Read the rich details out of the trailers, as far as there are any."""
    message = error.details() or ""
    info, retry = ErrorInfo(), RetryInfo()
    details = _details(error)
    found = any(detail.Unpack(info) for detail in details) and info.domain == DOMAIN
    has_retry = any(detail.Unpack(retry) for detail in details)
    return CallError(
        error.code(),
        message,
        reason=info.reason if found else "",
        metadata=dict(info.metadata) if found else {},
        retry_after_s=seconds_of(retry.retry_delay) if has_retry else None,
    )


def _details(error: grpc.aio.AioRpcError) -> list[Any]:
    for key, value in error.trailing_metadata() or ():
        if key == _TRAILER and isinstance(value, bytes):
            return list(Status.FromString(value).details)
    return []
