"""``fpstated ctl`` in this process, against a host in another; and guests that get stuck when they are told to."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import grpc
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc
from fpstate.v1 import event_pb2, session_pb2, session_pb2_grpc
from typer.testing import CliRunner

from fpstated.cli import app
from tests.host_process import HostProcess

#: How long a call, and anything that is waited for, may take on a busy machine.
TIMEOUT_S: Final = 60
WAIT_S: Final = 120

#: What differs from run to run, and what stands for it in a golden text.
_VARIES: Final = (
    (re.compile(r"\b(vm|vcpu|task|s|c|m)-[0-9a-f]{12}\b"), r"\1-************"),
    (re.compile(r"(boot id +)[0-9a-f]{16}"), r"\1****************"),
    (re.compile(r'("bootId": )"[0-9a-f]{16}"'), r'\1"****************"'),
    (re.compile(r"(version +)\d\S+"), r"\1*"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "****-**-**T**:**:**Z"),
    (re.compile(r'(etag +|"etag": )(\\?"\S*"|"\\"\S*\\"")'), r"\1*"),
    (re.compile(r"\b[0-9a-f]{64}\.ticket-[0-9a-f]{12}\b"), "PROOF"),
    (re.compile(r"unix:/\S*other/host\.sock"), "OTHER"),
    (re.compile(r"unix:/\S*host\.sock"), "ADDRESS"),
    (re.compile(r" \d+\.\d s\b"), " **.* s"),
)


@dataclass(frozen=True, slots=True)
class Done:
    """What a command has said, and its status."""

    status: int
    out: str
    err: str

    @property
    def golden(self) -> str:
        """All of it as one text, with what varies masked; lines of standard error begin with `! `."""
        assert "Traceback" not in self.err
        text = self.out + "".join(f"! {line}\n" for line in self.err.splitlines())
        for pattern, instead in _VARIES:
            text = pattern.sub(instead, text)
        return text + (f"[status {self.status}]\n" if self.status else "")


class CtlHost:
    """A host process and `fpstated ctl` pointed at it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.process = HostProcess(folder, "--name", "golden", "--faults", "--exit-deadline", "3600", *arguments)
        self.address = self.process.address
        self._channel: grpc.Channel | None = None
        self._folder = folder
        self._other: HostProcess | None = None

    def __enter__(self) -> Self:
        self.process.start()
        self._channel = self.process.channel()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._channel is not None:
            self._channel.close()
        self.process.kill()
        if self._other is not None:
            self._other.kill()

    @property
    def other(self) -> HostProcess:
        """A second host; it is started when somebody first asks."""
        if self._other is None:
            folder = self._folder / "other"
            folder.mkdir()
            self._other = HostProcess(folder, "--name", "other", "--faults", "--exit-deadline", "3600")
            self._other.start()
        return self._other

    @property
    def channel(self) -> grpc.Channel:
        """For what no command does."""
        assert self._channel is not None
        return self._channel

    def ctl(self, line: str) -> Done:
        """Run `fpstated ctl LINE`; OTHER in it is the address of the second host."""
        words = [self.other.address if word == "OTHER" else word for word in shlex.split(line)]
        return run_ctl("--address", self.address, *words)

    def open_session(self, *vcpus: str, client: str = "guest") -> session_pb2.OpenSessionResponse:
        """A guest agent's session, which lasts."""
        stub = session_pb2_grpc.GuestSessionServiceStub(self.channel)
        request = session_pb2.OpenSessionRequest(client_name=client, vcpus=vcpus)
        request.lease.seconds = 3600
        return stub.OpenSession(request, timeout=TIMEOUT_S)

    def get_stuck(self, vcpu: str) -> str:
        """Let the guest of a vCPU need memory that is not there; returns its exit's name."""
        fault = fault_pb2.Fault(
            point="fpstate.realloc.alloc",
            scope=fault_pb2.FaultScope(vcpu=vcpu),
            attributes=fault_pb2.FaultAttributes(times=1),
            action=fault_pb2.FaultAction(errno_action=fault_pb2.ErrnoAction(errno_value=12)),
        )
        faults = fault_pb2_grpc.FaultServiceStub(self.channel)
        armed = faults.ArmFault(fault_pb2.ArmFaultRequest(fault=fault), timeout=TIMEOUT_S)
        opened = self.open_session(vcpu)
        seq = opened.vcpus[0].next_seq
        event = event_pb2.GuestEvent(vcpu=vcpu, seq=seq, xsetbv=event_pb2.Xsetbv(value=0x602E7))
        batch = event_pb2.EventBatch(events=event_pb2.GuestEvents(events=[event]))
        sessions = session_pb2_grpc.GuestSessionServiceStub(self.channel)
        request = session_pb2.SubmitEventsRequest(session=opened.session, epoch=opened.epoch, batch=batch)
        answer = sessions.SubmitEvents(request, timeout=TIMEOUT_S)
        assert answer.outcomes.outcomes[0].HasField("pending"), answer
        fired = faults.GetFault(fault_pb2.GetFaultRequest(name=armed.fault.name), timeout=TIMEOUT_S).fault.fired
        assert fired == 1
        return f"{vcpu}/exits/{seq}"


def run_ctl(*arguments: str) -> Done:
    """Run `fpstated ctl` with these arguments, in this process."""
    done = CliRunner().invoke(app, ["ctl", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


@contextmanager
def ctl_host(folder: Path, *arguments: str) -> Iterator[CtlHost]:
    """A host until the end of the block."""
    with CtlHost(folder, *arguments) as host:
        yield host
