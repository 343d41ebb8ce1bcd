"""A host's refusal as an exception: the google.rpc.Status of a failed call or of a rejected event, taken apart.

One class for whatever a host refuses, since the reason registry is the host's and grows; a caller asks `error.reason`.
"""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.rpc import status_pb2

from guest_agent.outcome import FieldViolation, Refusal
from guest_agent.wire import refusal_from_status

#: Trailer that carries a google.rpc.Status. Source: grpcio-status, which reads and writes it.
STATUS_DETAILS_KEY = "grpc-status-details-bin"


class HostError(Exception):
    """A call that the host refused, or that gRPC could not bring to it. Nothing has changed, unless the reason says so.

    `refusal` has everything; the properties are its parts.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(_text(refusal))
        self.refusal = refusal

    @property
    def code(self) -> grpc.StatusCode:
        """The status code."""
        return grpc.StatusCode[self.refusal.code]

    @property
    def reason(self) -> str:
        """Name of the ErrorReason without prefix, `"VM_NOT_FOUND"`; empty where gRPC itself failed."""
        return self.refusal.reason

    @property
    def metadata(self) -> Mapping[str, str]:
        """The reason's variables by their lowerCamel keys."""
        return self.refusal.metadata

    @property
    def violations(self) -> tuple[FieldViolation, ...]:
        """The wrong fields of the request."""
        return self.refusal.violations

    @property
    def retry_delay_s(self) -> float | None:
        """How long to wait before a repetition makes sense, in seconds; None where the host did not say."""
        return self.refusal.retry_delay_s


class EventRejected(HostError):  # noqa: N818 -- the wire's word for this outcome
    """An event that was the caller's mistake: it changed nothing, and its number `seq` on `vcpu` is used up."""

    def __init__(self, vcpu: str, seq: int, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.vcpu = vcpu
        self.seq = seq
        self.add_note(f"event {seq} of {vcpu}")


def host_error(error: grpc.RpcError) -> HostError:
    """Return what a failed call says, of a synchronous channel or of grpc.aio. A call cancelled here is CANCELLED."""
    return HostError(refusal_of(error))


def refusal_of(error: grpc.RpcError) -> Refusal:
    """Take a failed call apart: its google.rpc.Status where it came with one, else what gRPC itself says."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError), error
    code: grpc.StatusCode = error.code()
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            return refusal_from_status(status_pb2.Status.FromString(value))
    return Refusal(code.name, error.details() or "")


def _text(refusal: Refusal) -> str:
    reason = f"{refusal.code}/{refusal.reason}" if refusal.reason else refusal.code
    more = (each for each in refusal.violations if each.field not in refusal.message)
    fields = "".join(f"; {each.field}: {each.description}" for each in more)
    return f"{reason}: {refusal.message}{fields}"
