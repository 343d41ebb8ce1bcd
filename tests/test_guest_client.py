"""Addresses, refusals and messages: the edges of the client library."""

from __future__ import annotations

import json

import grpc
import pytest
from fpstate.v1 import event_pb2, session_pb2
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2

import fpstated.client
from guest_agent.channel import CHANNEL_OPTIONS, check_address
from guest_agent.error import EventRejected, HostError
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
from guest_agent.outcome import FieldViolation, Refusal
from guest_agent.wire import (
    MessageError,
    directive_from_proto,
    duration_from_proto,
    duration_to_proto,
    event_to_proto,
    outcome_from_proto,
    refusal_from_status,
)


@pytest.mark.parametrize(
    "address",
    ["unix:/run/fpstated/host.sock", "unix:host.sock", "unix:///run/h.sock", "127.0.0.1:7443", "[::1]:7443",
     "localhost:1", "unix-abstract:fpstated", "dns:///b.example:7443", "ipv4:127.0.0.1:7443"],
)  # fmt: skip
def test_an_address_is_a_socket_a_host_and_port_or_a_target(address: str) -> None:
    """What gRPC can dial is taken as it is."""
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address",
    ["", "unix:", "unix:///", "/run/host.sock", "localhost", "localhost:0", "localhost:70000", "a b:1", "dns:"],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    """The message says what was expected and what was given."""
    with pytest.raises(ValueError, match=r"^address: expected unix:"):
        check_address(address)


def test_a_socket_path_that_no_socket_can_have_is_refused() -> None:
    """sun_path has 107 bytes; gRPC would only say that the connection failed."""
    check_address("unix:" + "x" * 107)
    with pytest.raises(ValueError, match="1 to 107 bytes"):
        check_address("unix:" + "x" * 108)


def test_only_unavailable_is_retried_and_streams_are_not() -> None:
    """The service config names every service's unary calls, and Attach nowhere."""
    (config,) = [json.loads(value) for key, value in CHANNEL_OPTIONS if key == "grpc.service_config"]
    (method,) = config["methodConfig"]
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    session_calls = {name["method"] for name in method["name"] if name["service"].endswith("GuestSessionService")}
    service = session_pb2.DESCRIPTOR.services_by_name["GuestSessionService"]
    assert session_calls == {call.name for call in service.methods} - {"Attach"}


def _status() -> status_pb2.Status:
    info, bad, retry = Any(), Any(), Any()
    info.Pack(error_details_pb2.ErrorInfo(reason="FIELD_INVALID", domain="fpstate.dev", metadata={"field": "vm_id"}))
    violation = error_details_pb2.BadRequest.FieldViolation(field="vm_id", description="expected an id")
    bad.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    retry.Pack(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)))
    return status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="no good", details=[info, bad, retry])


def test_a_status_is_taken_apart() -> None:
    """Code, reason, metadata, violations and the delay come out typed."""
    error = HostError(refusal_from_status(_status()))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.reason, error.metadata, error.retry_delay_s) == ("FIELD_INVALID", {"field": "vm_id"}, 1.5)
    assert error.violations == (FieldViolation("vm_id", "expected an id"),)
    assert str(error) == "INVALID_ARGUMENT/FIELD_INVALID: no good; vm_id: expected an id"


def test_a_status_of_a_later_contract_is_still_read() -> None:
    """Unknown codes are UNKNOWN, unknown details and absent ones are nothing."""
    refusal = refusal_from_status(status_pb2.Status(code=99, message="?", details=[Any(type_url="x/y", value=b"z")]))
    assert refusal == Refusal("UNKNOWN", "?")


def test_a_rejected_event_is_a_host_error_with_its_number() -> None:
    """Whoever catches HostError catches it too."""
    error = EventRejected("vms/a/vcpus/0", 7, Refusal("FAILED_PRECONDITION", "no", "VCPU_NOT_ENTERED"))
    assert isinstance(error, HostError)
    assert (error.vcpu, error.seq, error.__notes__) == ("vms/a/vcpus/0", 7, ["event 7 of vms/a/vcpus/0"])


EVENTS: list[tuple[GuestEvent, str]] = [
    (Enter("vms/a/tasks/t"), "enter"),
    (Enter(), "enter"),
    (Leave(), "leave"),
    (Preempt(), "preempt"),
    (Preempt(3), "preempt"),
    (Xsetbv(2**64 - 1, 0, 3), "xsetbv"),
    (Wrmsr(0x1C4, 2**64 - 1), "wrmsr"),
    (Rdmsr(0x1C5), "rdmsr"),
    (Nm(cr0_ts=True), "nm"),
    (RegisterWrite(2, 16, b"\1\2"), "register_write"),
    (RegisterRead(2, 16, 2), "register_read"),
    *((Tile(op, 0, b""), "tile") for op in TileOp),
    (XfdSync(1 << 18), "xfd_sync"),
    (Init(), "init"),
    (Hlt(), "hlt"),
    (Xgetbv(1), "xgetbv"),
    (WriteCr4(1 << 18), "write_cr4"),
    *((Xsave(insn, 2**64 - 1, b"m", 16), "xsave") for insn in XsaveInsn),
]


@pytest.mark.parametrize(
    ("event", "kind"), EVENTS, ids=[f"{type(event).__name__}-{n}" for n, (event, _) in enumerate(EVENTS)]
)
def test_every_event_has_its_message(event: GuestEvent, kind: str) -> None:
    """The kind is set even where the message has no field to set, and survives the wire."""
    message = event_pb2.GuestEvent.FromString(event_to_proto("vms/a/vcpus/0", 9, event).SerializeToString())
    assert (message.WhichOneof("kind"), message.vcpu, message.seq) == (kind, "vms/a/vcpus/0", 9)
    if isinstance(event, Preempt):
        assert message.preempt.HasField("cpu") == (event.cpu is not None)
    if isinstance(event, Tile):
        assert event_pb2.TileOp.Name(message.tile.op) == f"TILE_OP_{event.op.value}"
    if isinstance(event, Xsave):
        assert event_pb2.XsaveInsn.Name(message.xsave.insn) == f"XSAVE_INSN_{event.insn.value}"


def test_every_kind_of_event_of_the_contract_can_be_sent() -> None:
    """A kind that the contract gains is missed here, and not by a user."""
    kinds = {field.name for field in event_pb2.GuestEvent.DESCRIPTOR.oneofs_by_name["kind"].fields}
    assert {kind for _event, kind in EVENTS} == kinds


def test_a_number_that_does_not_fit_the_wire_is_refused() -> None:
    """65 bits are nobody's register."""
    with pytest.raises(ValueError, match="out of range"):
        event_to_proto("vms/a/vcpus/0", 1, Wrmsr(0x1C4, 1 << 64))


def test_a_message_of_no_kind_is_refused() -> None:
    """An outcome or a directive that this client does not know is an error, never a guess."""
    with pytest.raises(MessageError, match="outcome 3 of v: expected one of the six kinds"):
        outcome_from_proto(event_pb2.EventOutcome(vcpu="v", seq=3))
    with pytest.raises(MessageError, match="directive 1 of v"):
        directive_from_proto(event_pb2.Directive(id=1, vcpu="v"))


@pytest.mark.parametrize("seconds", [0.0, 0.25, 30.0, 3600.5])
def test_durations_make_the_round_trip(seconds: float) -> None:
    """Seconds and nanoseconds on the wire, seconds here; None is the field's absence."""
    duration = duration_to_proto(seconds)
    assert duration is not None
    assert duration_from_proto(duration) == seconds
    assert duration_to_proto(None) is None


def test_the_stable_names_are_there() -> None:
    """Everything that `fpstated.client` promises can be had from it."""
    assert all(hasattr(fpstated.client, name) for name in fpstated.client.__all__)
    assert sorted(fpstated.client.__all__) == fpstated.client.__all__
