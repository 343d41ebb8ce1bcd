"""A real guest as a client of a host: each instruction that traps on /dev/kvm is one blocking call on a vCPU's port.

/dev/kvm -> KvmGuest -> SessionTrapHandler -> VcpuPort -> the host, and back
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from guest_agent.directive import DirectiveListener
from guest_agent.event import TileOp
from guest_agent.kvm.program import GuestProgram
from guest_agent.kvm.report import GuestReport
from guest_agent.kvm.trap import Done as TrapDone
from guest_agent.kvm.trap import Inject, Stop, TrapResult
from guest_agent.kvm.vmm import KvmGuest
from guest_agent.outcome import Directive, DirectiveKind, Done, Gone, Injected, InstructionOutcome
from guest_agent.port import VcpuPort
from guest_agent.session import Session
from guest_agent.step import PendingEvent
from guest_agent.timeline import GuestTimeline
from guest_agent.wait import Interrupted


class SessionTrapHandler:
    """Decides each trapped instruction by asking the host; the `TrapHandler` of a `KvmGuest`.

    While a call waits for a controller's decision the vCPU stands in front of its instruction, and `waiting` says on
    what. A vCPU that is killed, reset or moved stops, and so does one whose port is interrupted.

    Attributes:
        waiting: the event whose final outcome is waited for because the vCPU is parked; None otherwise.
        waits: how often the vCPU was parked.
        waited_s: how long it stood parked altogether, in seconds.
    """

    def __init__(self, port: VcpuPort) -> None:
        self._port = port
        self.waiting: PendingEvent | None = None
        self.waits = 0
        self.waited_s = 0.0
        self._parked_at_s = 0.0
        port.on_pending = self._park

    def xsetbv(self, index: int, value: int) -> TrapResult:
        """Decide XSETBV of `value` to register `index`."""
        return self._answer(lambda: self._port.xsetbv(value, index=index))

    def wrmsr(self, msr: int, value: int) -> TrapResult:
        """Decide WRMSR of IA32_XFD or IA32_XFD_ERR."""
        return self._answer(lambda: self._port.wrmsr(msr, value=value))

    def rdmsr(self, msr: int) -> TrapResult:
        """Read IA32_XFD or IA32_XFD_ERR."""
        return self._answer(lambda: self._port.rdmsr(msr))

    def tile(self, op: TileOp, tile: int, memory: bytes) -> TrapResult:
        """Decide a tile instruction; `memory` and what is stored have the form of the wire, whole registers."""
        return self._answer(lambda: self._port.tile(op, tile=tile, memory=memory))

    def hlt(self) -> TrapResult:
        """Tell the host of HLT."""
        return self._answer(self._port.hlt)

    def _park(self, event: PendingEvent) -> None:
        if self.waiting is None:
            self.waits += 1
            self._parked_at_s = time.monotonic()
        self.waiting = event

    def _answer(self, ask: Callable[[], InstructionOutcome]) -> TrapResult:
        try:
            return _trap_result(ask())
        except Interrupted:
            return Stop("interrupted")
        finally:
            if self.waiting is not None:
                self.waited_s += time.monotonic() - self._parked_at_s
                self.waiting = None


class KvmAgent:
    """One real guest of a session: `run` is its vCPU's thread, `stop` ends it from any other.

    Made in the main thread, or after `install_kick_signal` was called there.
    """

    def __init__(
        self, session: Session, vcpu: str, program: GuestProgram, timeline: GuestTimeline | None = None
    ) -> None:
        self._session = session
        self._port = session.vcpu(vcpu)
        self._vcpu = vcpu
        self.handler = SessionTrapHandler(self._port)
        if timeline is not None:
            self._port.on_step = timeline.step
        self._directive: Directive | None = None
        self._guest = KvmGuest(self.handler, program, timeline.mark if timeline is not None else None)

    def run(self) -> GuestReport:
        """Run the guest to its end; the host's directives pause and stop it also where it executes without a trap.

        Raises:
            HostError, SessionLost: the host refused, or was lost.
            KvmError, OSError: as `KvmGuest.run`.
        """
        with DirectiveListener(self._session, self._carry_out, vcpus=(self._vcpu,)):
            report = self._guest.run()
        if report.reason == "kicked" and self._directive is not None:
            return replace(report, reason=str(self._directive))
        return report

    def stop(self) -> None:
        """Stop the guest, whether it executes or waits for a decision; `run` reports STOPPED."""
        self._guest.kick()
        self._port.interrupt()

    def _carry_out(self, directive: Directive) -> None:
        """Do what only a VMM can: keep the vCPU out of the guest, or end it where its life on this host ends."""
        match directive.kind:
            case DirectiveKind.PAUSE:
                self._guest.pause()
            case DirectiveKind.RESUME:
                self._guest.resume()
            case DirectiveKind.STOP | DirectiveKind.RESET | DirectiveKind.MOVED:
                self._directive = directive
                self._guest.kick()
            case _:
                assert_never(directive.kind)


def run_kvm_guest(
    session: Session, vcpu: str, program: GuestProgram, timeline: GuestTimeline | None = None
) -> GuestReport:
    """Run a guest program on the real processor, its XCR0, XFD and tiles behind `vcpu` of `session`.

    This thread is the vCPU's. Raises as `KvmAgent.run`.
    """
    return KvmAgent(session, vcpu, program, timeline).run()


def _trap_result(outcome: InstructionOutcome) -> TrapResult:
    match outcome:
        case Done(value=value, data=content):
            return TrapDone(value, content)
        case Injected(vector=vector, error_code=error_code, xfd_err=xfd_err):
            return Inject(vector, error_code, xfd_err)
        case Gone(directive=directive):
            return Stop(str(directive))
        case _:
            assert_never(outcome)
