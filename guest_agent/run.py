"""One guest as a process: `fpstated guest`. It makes what it needs at the host, runs to its end, and says how it went.

| status | the guest |
|---|---|
| 0 | ended in order: VERIFIED, REFUSED (it lived on without tiles), or a script's end |
| 1 | was found wrong (MISMATCH, FAULTED), or the host could not be reached or refused something |
| 2 | can not be run as asked: the command line, the script, no /dev/kvm |
| 3 | was stopped by the host: killed, reset or moved |
| 130, 143 | was stopped by SIGINT, SIGTERM: its session is closed, its vCPU left as it is |
"""

from __future__ import annotations

import enum
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol, TextIO

from fpstated.link.tls import ClientTls
from guest_agent.channel import connect, wait_for_host
from guest_agent.error import HostError
from guest_agent.host import Host
from guest_agent.kvm import GrowthOrder, GuestProgram, KvmError, install_kick_signal, kvm_available
from guest_agent.kvm.report import GuestReport
from guest_agent.kvm_agent import KvmAgent
from guest_agent.port import VcpuPort
from guest_agent.report import Outcome
from guest_agent.script import ScriptReport
from guest_agent.script_agent import ScriptAgent
from guest_agent.script_parser import ScriptError, load_script
from guest_agent.session import Session, open_session
from guest_agent.setup import GUEST_PROFILE, create_guest
from guest_agent.timeline import GuestLine, GuestTimeline
from guest_agent.vcpu_thread import VcpuThread
from guest_agent.wait import SessionLost
from guest_agent.wire import MessageError

_SCRIPTS = {
    GrowthOrder.XFD_ARMED_FIRST: "xfd-armed-first.txt",
    GrowthOrder.XCR0_FIRST_WITH_XFD_0: "xcr0-first.txt",
}
_STATUS = {
    Outcome.VERIFIED: 0,
    Outcome.REFUSED: 0,
    Outcome.HALTED: 0,
    Outcome.MISMATCH: 1,
    Outcome.FAULTED: 1,
    Outcome.STOPPED: 3,
}


class GuestAgent(Protocol):
    """A guest on a vCPU of a session: `run` is its thread, `stop` makes that return."""

    def run(self) -> GuestReport | ScriptReport:
        """Run the guest to its end."""

    def stop(self) -> None:
        """End it early, from any thread."""


_Load = Callable[[Session, str, GuestTimeline], GuestAgent]


class GuestKind(enum.Enum):
    """What plays the guest."""

    AUTO = "auto"  # a real one where /dev/kvm can run it, a scripted one elsewhere
    KVM = "kvm"
    SCRIPT = "script"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestOptions:
    """What `fpstated guest` is asked for.

    Attributes:
        host: where the host listens: `unix:PATH`, `HOST:PORT`.
        vm: the VM's id; it is made if there is none.
        index: of the vCPU; it is made if there is none.
        kind: what plays the guest.
        order: which write grows the fpstate, of the real program and of its scripted twin.
        script: a script of the caller's own, instead of that twin.
        seed: of the bytes that a real guest puts through its tiles, 64 bits.
        rounds: how often a real guest does so, 1 to 2**32 - 1.
        profile: the VM's processor.
        byte_limit: for the VM's containers together, in bytes; None for none.
        permission: ask for XTILE_DATA in guests.
        lease_s: wish for the session's lease, in seconds; None for the host's default.
        wait_s: how long to wait for a host that is not there yet, in seconds.
        timeline: write lane G as JSON lines.
        tls: certificate, key and CA, for a host that has mutual TLS.
    """

    host: str
    vm: str
    index: int = 0
    kind: GuestKind = GuestKind.AUTO
    order: GrowthOrder = GrowthOrder.XFD_ARMED_FIRST
    script: Path | None = None
    seed: int = 1
    rounds: int = 1
    profile: str = GUEST_PROFILE
    byte_limit: int | None = None
    permission: bool = True
    lease_s: float | None = None
    wait_s: float = 10.0
    timeline: bool = False
    tls: ClientTls | None = None


def run_guest(options: GuestOptions, out: TextIO | None = None) -> int:
    """Run one guest and return the process's status; call it from the main thread, whose signals it takes.

    The timeline, if asked for, goes to `out` (standard output unless given); errors to standard error.
    """
    try:
        load = _prepare(options)
    except (ScriptError, ValueError, OSError) as error:
        return _complain(error, 2)
    try:
        with _terminable(), Host(options.host, tls=options.tls) as host:
            wait_for_host(host.channel, timeout_s=options.wait_s)
            return _run(options, load, host, _write_to(out or sys.stdout) if options.timeline else _to_nobody)
    except (HostError, TimeoutError) as error:
        return _complain(error, 1, where=f"{options.host}: ")
    except (SessionLost, MessageError, KvmError, OSError) as error:
        return _complain(error, 1)
    except ValueError as error:
        return _complain(error, 2)
    except KeyboardInterrupt as signalled:
        return 128 + (signalled.args[0] if signalled.args else signal.SIGINT)


def shipped_script(order: GrowthOrder) -> Path:
    """Return the scripted twin of the real guest's program for a growth order."""
    return Path(__file__).with_name("scripts") / _SCRIPTS[order]


def _prepare(options: GuestOptions) -> _Load:
    """Find out what is to run, before anything is made at the host.

    Raises:
        ScriptError, ValueError, OSError: it can not be run.
    """
    unavailable = kvm_available()
    if options.kind is GuestKind.KVM and unavailable:
        raise ValueError(f"no real guest can run here: {unavailable}")
    if options.kind is GuestKind.SCRIPT or options.script is not None or unavailable:
        script = load_script(options.script or shipped_script(options.order))
        return lambda session, vcpu, timeline: ScriptAgent(session, vcpu, script, timeline)
    program = GuestProgram(order=options.order, seed=options.seed, rounds=options.rounds)
    install_kick_signal()
    return lambda session, vcpu, timeline: KvmAgent(session, vcpu, program, timeline)


def _run(options: GuestOptions, load: _Load, host: Host, on_line: Callable[[GuestLine], None]) -> int:
    vcpu = create_guest(
        host,
        options.vm,
        index=options.index,
        profile=options.profile,
        byte_limit=options.byte_limit,
        permission=options.permission,
    )
    timeline = GuestTimeline(vcpu, on_line)
    with open_session(
        host.channel,
        vcpus=[vcpu],
        client_name="fpstated guest",
        lease_s=options.lease_s,
        connect_to=lambda address: connect(address, options.tls),
    ) as session:
        _settle(session.vcpu(vcpu), timeline)
        agent = load(session, vcpu, timeline)
        report, number = VcpuThread(agent.run, agent.stop).run_until_over()
    _say_ended(report, timeline)
    return 128 + number if number else _STATUS[report.outcome]


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end what the main thread does as SIGINT does, except where the guest's thread runs."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _settle(port: VcpuPort, timeline: GuestTimeline) -> None:
    """Wait for what an earlier agent of this vCPU has left pending; nothing else can happen on it before."""
    waiting = port.pending
    if waiting is not None:
        timeline.say(
            f"event {waiting.seq} of an earlier agent waits for its decision", "exit", exit=waiting.pending.exit
        )
        port.wait_pending()


def _say_ended(report: GuestReport | ScriptReport, timeline: GuestTimeline) -> None:
    reason = f": {report.reason}" if report.reason else ""
    tone = "failure" if _STATUS[report.outcome] else "event"
    timeline.say(f"guest ended: {report.outcome.name}{reason}", tone, outcome=report.outcome.value, said=report.said)


def _complain(error: Exception, status: int, *, where: str = "") -> int:
    sys.stderr.write(f"fpstated guest: {where}{error}\n")
    for note in getattr(error, "__notes__", ()):
        sys.stderr.write(f"  {note}\n")
    return status


def _write_to(out: TextIO) -> Callable[[GuestLine], None]:
    """Return what writes lines as JSON; once nobody reads them the guest goes on without."""

    def write(line: GuestLine) -> None:
        with suppress(BrokenPipeError):
            out.write(line.to_json() + "\n")
            out.flush()

    return write


def _to_nobody(_line: GuestLine) -> None:
    """Write nothing: no timeline was asked for."""
