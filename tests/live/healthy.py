"""A guest that does nothing wrong, and whose every outcome is known: what it gets is what it got when it was alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from guest_agent.error import HostError
from guest_agent.event import GuestEvent
from guest_agent.host import Host
from guest_agent.kvm import GrowthOrder
from guest_agent.outcome import InstructionOutcome
from guest_agent.report import Outcome
from guest_agent.run import shipped_script
from guest_agent.script import ScriptedGuest, ScriptPort
from guest_agent.script_parser import load_script
from guest_agent.session import open_session
from guest_agent.setup import create_guest
from tests.live.host import LiveHost

_SCRIPTS = tuple(load_script(shipped_script(order)) for order in GrowthOrder)


@dataclass
class _Recorder:
    """A port that keeps what came of each event."""

    port: ScriptPort
    outcomes: list[InstructionOutcome] = field(default_factory=list)

    def submit(self, event: GuestEvent) -> InstructionOutcome:
        """As the port's, and remember."""
        self.outcomes.append(self.port.submit(event))
        return self.outcomes[-1]


def healthy_outcomes(host: LiveHost, vm: str = "healthy") -> Sequence[InstructionOutcome]:
    """Run both shipped scripts, each on a VM of its own that is made and deleted, and return every outcome.

    Raises ``AssertionError`` where a script does not end VERIFIED, ``HostError`` where the host refuses something.
    """
    identity = f"guest/{vm}/vms/{vm}-0/{vm}-1"
    found: list[InstructionOutcome] = []
    with Host(host.address, tls=host.tls(identity)) as client:
        for nr, script in enumerate(_SCRIPTS):
            _delete(client, f"vms/{vm}-{nr}")
            vcpu = create_guest(client, f"{vm}-{nr}")
            with open_session(client.channel, vcpus=[vcpu], client_name="healthy") as session:
                recorder = _Recorder(session.vcpu(vcpu))
                report = ScriptedGuest(recorder, script).run()
            assert report.outcome is Outcome.VERIFIED, report.reason
            _delete(client, f"vms/{vm}-{nr}")
            found += recorder.outcomes
    return found


def _delete(client: Host, vm: str) -> None:
    try:
        client.delete_vm(vm, force=True)
    except HostError as error:
        if error.reason != "VM_NOT_FOUND":
            raise
