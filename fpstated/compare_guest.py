"""One guest of a comparison: its VMM's calls and its script, against a machine in this process.

The VMM does what a VMM does with a failure: it asks once more where memory was short, and leaves AMX out of the CPUID
where the permission is missing. What it met on the way it writes down in words, for "what a failed allocation did".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fpstated.compare_wire import event_for_host, outcome_for_guest
from fpu_core.errors import Errno
from fpu_core.xfeature import XFEATURE_MASK_XTILE, XFEATURE_XTILE_DATA
from guest_agent.event import GuestEvent
from guest_agent.outcome import Done, InstructionOutcome
from guest_agent.report import Outcome
from guest_agent.script import ScriptReport, play
from guest_agent.script_syntax import Script
from host_agent import commands as c
from host_agent.effects import OutcomeReady
from host_agent.errors import Reason, Refused
from host_agent.events import PendingOutcome, RejectedOutcome
from host_agent.exits import Decision, DecisionKind, ExitCause
from host_agent.figures import Figures, figures
from host_agent.kvm.vcpu import Vcpu
from host_agent.machine import HostMachine
from host_agent.state import ControlRecord, SessionRecord, VmRecord


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """A guest to be: its script, and whether its VMM asks for the permission to give it AMX."""

    name: str
    script: Script
    permission: bool = True


@dataclass(slots=True)
class ComparedGuest:
    """A guest under one policy. ``steps`` runs it, an event at a time; what it has cost is in ``figures``."""

    machine: HostMachine
    plan: GuestPlan
    policy: str
    profile: str
    figures: Figures = field(default_factory=Figures)
    exits: int = 0
    report: ScriptReport | None = None
    #: What went otherwise than asked for, in order.
    notes: list[str] = field(default_factory=list)
    _session: SessionRecord | None = None

    @property
    def vm(self) -> VmRecord:
        """Its VM."""
        return self.machine.state.vms[f"vms/{self.plan.name}"]

    @property
    def vcpu(self) -> Vcpu:
        """Its one vCPU."""
        return self.vm.kvm.vcpus[0]

    @property
    def peak_bytes(self) -> int:
        """The most that the buffers which exist because of its vCPU have taken at once, headers included."""
        return self.vm.kvm.account.peak_bytes

    @property
    def rest_bytes(self) -> int:
        """What they take at the end."""
        return self.vm.kvm.account.used_bytes

    # -- the VMM -------------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """VM, permission, vCPU, CPUID and session."""
        name = self.plan.name
        self.machine.apply(c.CreateVm(vm_id=name, profile=self.profile, allocation_policy=self.policy), self._now())
        vm = self.vm
        for cpu in vm.platform.cpus:
            cpu.eager = True  # the kernel executes a save and a restore also where nothing is live
        before = figures(vm)
        if self.plan.permission and vm.kvm.supported_xcr0 >> XFEATURE_XTILE_DATA & 1:
            self._apply(c.RequestPermission(vm=vm.name, feature=XFEATURE_XTILE_DATA, guest=True))
        self._create_vcpu(vm)
        self._set_cpuid(vm)
        opened = self._apply(c.OpenSession(client_name=name, vcpus=(f"{vm.name}/vcpus/0",)))
        self._session = opened.session
        self.figures += figures(vm) - before

    def _create_vcpu(self, vm: VmRecord) -> None:
        command = c.CreateVcpu(vm=vm.name, index=0)
        try:
            self._apply(command)
        except Refused as refused:
            self.notes.append(f"KVM_CREATE_VCPU: {_errno(refused)}, no vCPU and {vm.kvm.account.used_bytes} bytes used")
            self._apply(command)
            self.notes.append("asked again: 0")

    def _set_cpuid(self, vm: VmRecord) -> None:
        """Offer all the host has; without permission, all but the tiles."""
        offered = vm.kvm.supported_xcr0
        before = self.vcpu.guest_supported_xcr0, self.vcpu.fpstate.size
        try:
            self._apply(c.SetCpuid(vm=vm.name, xcr0_mask=offered))
        except Refused as refused:
            unchanged = (self.vcpu.guest_supported_xcr0, self.vcpu.fpstate.size) == before
            as_before = "CPUID and container as before" if unchanged else "CPUID or container changed"
            self.notes.append(f"KVM_SET_CPUID2: {_errno(refused)}, {as_before}")
            without = refused.metadata["errnoName"] == Errno.EPERM.name
            self._apply(c.SetCpuid(vm=vm.name, xcr0_mask=offered & ~XFEATURE_MASK_XTILE if without else offered))
            self.notes.append("asked again without AMX: 0" if without else "asked again: 0")

    # -- the guest -----------------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[None]:
        """Play the script to its end; yields after each event, so that another guest can have the CPU."""
        events = play(self.plan.script)
        try:
            event = next(events)
            while True:
                before = figures(self.vm)
                outcome = self._submit(event)
                self.figures += figures(self.vm) - before
                yield
                event = events.send(outcome)
        except StopIteration as end:
            self.report = end.value
            how = end.value.outcome
            if how in (Outcome.MISMATCH, Outcome.FAULTED, Outcome.STOPPED):
                raise CompareError(f"{self.plan.name} under {self.policy}: {how.value}, {end.value.reason}") from None

    def _submit(self, event: GuestEvent) -> InstructionOutcome:
        for _attempt in range(2):
            seq = self.machine.state.side(self.vcpu).next_seq
            session = self._session
            assert session is not None
            sent = event_for_host(f"{self.vm.name}/vcpus/0", seq, event)
            (outcome,) = self._apply(c.SubmitBatch(session=session.name, epoch=session.epoch, events=(sent,)))
            if isinstance(outcome.kind, PendingOutcome):
                outcome = self._decide(outcome.kind.exit)
            if not isinstance(outcome.kind, RejectedOutcome):
                return outcome_for_guest(outcome)
            if outcome.kind.reason != Reason.ALLOCATION_FAILED.name:
                raise CompareError(f"{self.plan.name} under {self.policy}: {outcome.kind.text}")
            self.notes.append("KVM_RUN: ENOMEM before the guest is entered; called again")
        raise CompareError(f"{self.plan.name} under {self.policy}: {event} was rejected twice")

    def _decide(self, name: str) -> Any:  # noqa: ANN401 -- an Outcome of the host's
        """RETRY where memory was short, #GP where it is not allowed: the exit's event has its final outcome then."""
        self.exits += 1
        record = self.machine.state.exits[name]
        retry = record.cause is not ExitCause.NO_PERMISSION
        kind = DecisionKind.RETRY if retry else DecisionKind.INJECT_GP
        errno = Errno(record.errno).name
        control: ControlRecord = self._apply(c.AcquireControl(scope=self.vm.name, controller="compare"))
        self.machine.take_effects()
        self._apply(
            c.ResolveExit(
                exit=name,
                generation=record.generation,
                control=control.name,
                control_epoch=control.epoch,
                decision=Decision(kind),
            )
        )
        (final,) = [e.outcome for e in self.machine.take_effects() if isinstance(e, OutcomeReady) and e.outcome.final]
        became = "committed" if isinstance(outcome_for_guest(final), Done) else "#GP"
        self.notes.append(f"{record.write.trigger.value}: KVM_RUN returns -{errno}, parked; {kind.name}: {became}")
        return final

    def _apply(self, command: c.Command) -> Any:  # noqa: ANN401 -- each command has its own reply
        return self.machine.apply(command, self._now())

    def _now(self) -> int:
        """Virtual time: a nanosecond a command."""
        return self.machine.state.now_ns + 1


class CompareError(Exception):
    """A guest did not run to its end as its script says; the text names guest, policy and line."""


def _errno(refused: Refused) -> str:
    return refused.metadata.get("errnoName", refused.reason.name)
