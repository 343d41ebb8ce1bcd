"""Opening a session: what a client asks for, and where the host says that each vCPU goes on."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass

from fpstate.v1 import session_pb2 as pb

from guest_agent.ledger import SeqLedger
from guest_agent.outcome import Intercepts, Pending
from guest_agent.wait import SessionLost
from guest_agent.wire import duration_from_proto, duration_to_proto, intercepts_from_proto, outcome_from_proto


class RunMode(enum.Enum):
    """Who says when a vCPU enters and leaves the guest."""

    IMPLICIT = pb.RUN_MODE_IMPLICIT  # the host: an event that needs the guest entered enters it first
    EXPLICIT = pb.RUN_MODE_EXPLICIT  # the client, with enter and leave


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """What a session is opened with, and opened again with after its lease has ended.

    Attributes:
        vcpus: `vms/{vm}/vcpus/{index}`, each once; at least one.
        client_name: for logs and people, 0 to 128 characters.
        run_mode: who enters and leaves.
        lease_s: wish for the length of the lease in seconds; None for the host's default.
        required_capabilities: without which the host is to refuse.
    """

    vcpus: tuple[str, ...]
    client_name: str = ""
    run_mode: RunMode = RunMode.IMPLICIT
    lease_s: float | None = None
    required_capabilities: tuple[str, ...] = ()

    def to_proto(self) -> pb.OpenSessionRequest:
        """Return the request, with a request_id of its own, so that sending it twice opens one session."""
        return pb.OpenSessionRequest(
            request_id=str(uuid.uuid4()),
            client_name=self.client_name,
            vcpus=self.vcpus,
            required_capabilities=self.required_capabilities,
            lease=duration_to_proto(self.lease_s),
            run_mode=self.run_mode.value,
        )


@dataclass(frozen=True, slots=True)
class SessionKey:
    """What every call of a session carries: its name and its epoch, the fencing token."""

    name: str
    epoch: int


@dataclass(frozen=True, slots=True)
class VcpuResume:
    """Where a vCPU goes on: the number of its next event, the event that pends, if one does, and what to intercept.

    `intercepts` is None where the host did not say.
    """

    vcpu: str
    uid: str
    incarnation: int
    next_seq: int
    pending_seq: int | None
    pending: Pending | None
    intercepts: Intercepts | None = None

    def ledger(self) -> SeqLedger:
        """Return the ledger of an agent that begins here."""
        ledger = SeqLedger(self.vcpu, next_seq=self.next_seq, pending_seq=self.pending_seq)
        if self.pending_seq is not None and self.pending is not None:
            ledger.note(self.pending_seq, self.pending)
        return ledger

    def check_same(self, uid: str, ledger: SeqLedger) -> None:
        """Check that an agent that knows the vCPU by `uid` and `ledger` can go on here.

        Raises:
            SessionLost: it is another vCPU of the same name, or its events are not this agent's.
        """
        if uid != self.uid:
            raise SessionLost(f"{self.vcpu}: expected the vCPU of uid {uid}, got {self.uid}; it was made anew")
        ledger.resume(self.next_seq)


@dataclass(frozen=True, slots=True)
class Opened:
    """The host's answer: the key, the lease as granted in seconds, the credits, and where each vCPU goes on."""

    key: SessionKey
    lease_s: float
    credits: int
    vcpus: tuple[VcpuResume, ...]


def opened_from_proto(response: pb.OpenSessionResponse) -> Opened:
    """Return what OpenSession was answered with."""
    return Opened(
        SessionKey(response.session, response.epoch),
        duration_from_proto(response.lease),
        response.credits,
        tuple(resume_from_proto(each) for each in response.vcpus),
    )


def resume_from_proto(message: pb.VcpuResume) -> VcpuResume:
    """Return where a vCPU goes on, as OpenSession and Attach say it."""
    pends = message.HasField("pending")
    outcome = outcome_from_proto(message.pending) if pends else None
    return VcpuResume(
        vcpu=message.vcpu,
        uid=message.uid,
        incarnation=message.incarnation,
        next_seq=message.next_seq,
        pending_seq=message.pending.seq if pends else None,
        pending=outcome if isinstance(outcome, Pending) else None,
        intercepts=intercepts_from_proto(message.intercepts) if message.HasField("intercepts") else None,
    )
