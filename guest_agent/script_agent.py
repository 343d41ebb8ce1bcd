"""A scripted guest as a client of a host: the twin of `KvmAgent`, for other machines and for other stories."""

from __future__ import annotations

from guest_agent.script import ScriptedGuest, ScriptReport
from guest_agent.script_syntax import Script
from guest_agent.session import Session
from guest_agent.timeline import GuestTimeline


class ScriptAgent:
    """One scripted guest of a session: `run` is its vCPU's thread, `stop` ends it from any other."""

    def __init__(self, session: Session, vcpu: str, script: Script, timeline: GuestTimeline | None = None) -> None:
        self._port = session.vcpu(vcpu)
        if timeline is not None:
            self._port.on_step = timeline.step
        self._guest = ScriptedGuest(self._port, script, timeline.mark if timeline is not None else None)

    def run(self) -> ScriptReport:
        """Run the script to its end.

        Raises:
            HostError, SessionLost: the host refused, or was lost.
        """
        return self._guest.run()

    def stop(self) -> None:
        """Stop the guest where it waits for the host; `run` reports STOPPED."""
        self._port.interrupt()
