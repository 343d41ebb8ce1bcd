"""A scripted guest as a client of a host: the twin of `KvmAgent`, for other machines and for other stories."""

from __future__ import annotations

from guest_agent.directive import DirectiveListener
from guest_agent.event import GuestEvent
from guest_agent.gate import Gate
from guest_agent.outcome import Directive, DirectiveKind, InstructionOutcome
from guest_agent.port import VcpuPort
from guest_agent.script import ScriptedGuest, ScriptReport
from guest_agent.script_syntax import Script
from guest_agent.session import Session
from guest_agent.timeline import GuestTimeline


class ScriptAgent:
    """One scripted guest of a session: `run` is its vCPU's thread, `stop` ends it from any other.

    Attributes:
        gate: closed while the host has the vCPU paused: the guest stands in front of its next instruction.
    """

    def __init__(self, session: Session, vcpu: str, script: Script, timeline: GuestTimeline | None = None) -> None:
        self._session = session
        self._vcpu = vcpu
        self._port = session.vcpu(vcpu)
        if timeline is not None:
            self._port.on_step = timeline.step
        self.gate = Gate()
        port = _GatedPort(self._port, self.gate)
        self._guest = ScriptedGuest(port, script, timeline.mark if timeline is not None else None)

    def run(self) -> ScriptReport:
        """Run the script to its end, with pauses where the host wants them.

        Raises:
            HostError, SessionLost: the host refused, or was lost.
        """
        with DirectiveListener(self._session, self._carry_out, vcpus=(self._vcpu,)):
            return self._guest.run()

    def stop(self) -> None:
        """Stop the guest where it waits for the host or is paused; `run` reports STOPPED."""
        self._port.interrupt()
        self.gate.open(for_good=True)

    def _carry_out(self, directive: Directive) -> None:
        """A script that is stopped or reset hears so with its next outcome; a pause ends with that."""
        if directive.kind is DirectiveKind.PAUSE:
            self.gate.close()
        else:
            self.gate.open()


class _GatedPort:
    """A port whose instructions wait at a gate."""

    def __init__(self, port: VcpuPort, gate: Gate) -> None:
        self._port = port
        self._gate = gate

    def submit(self, event: GuestEvent) -> InstructionOutcome:
        self._gate.wait()
        return self._port.submit(event)
