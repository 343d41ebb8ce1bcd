"""What a host does, in sentences: lane H of the founding mail's traces.

Listens to the core (allocations, XFD writes) and to applied commands, and hands lines to a sink. It only reads, so a
host behaves the same with and without it; being traced, it executes the saves and restores it would otherwise elide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fpu_core.fpstate import Fpstate
from fpu_core.xfeature import MSR_IA32_XFD, XFEATURE_MASK_USER_DYNAMIC, format_mask
from host_agent import commands as c
from host_agent.effects import DirectiveIssued, ExitChanged, OutcomeReady
from host_agent.events import (
    DoneOutcome,
    EventKind,
    InjectOutcome,
    Outcome,
    PendingOutcome,
    RejectedOutcome,
    Wrmsr,
    Xsetbv,
)
from host_agent.exits import DecisionKind, ExitRecord, ExitState
from host_agent.kvm.policy.allocation_policy import AllocationPolicy
from host_agent.machine import HostMachine

_VECTORS = {6: "#UD", 7: "#NM", 13: "#GP"}


@dataclass(frozen=True, slots=True)
class HostLine:
    """One line of lane H. ``tone`` says how to show it: plain, growth, failure, exit, event."""

    vcpu: str
    text: str
    tone: str = "plain"


class HostTimeline:
    """Observer of one machine. Make it, give it to ``HostMachine(tracer=...)``, then ``attach``."""

    def __init__(self, sink: Callable[[HostLine], None]) -> None:
        self._sink = sink
        self._operations: list[tuple[str, str]] = []
        self._machine: HostMachine | None = None

    def attach(self, machine: HostMachine) -> None:
        """Listen to what is applied from now on."""
        self._machine = machine
        machine.on_applied = self.applied

    # -- the core's tracer ---------------------------------------------------------------------------------------------

    def vzalloc(self, size_bytes: int, fpstate: Fpstate | None) -> None:
        """Note an allocation, or that there was none."""
        text = f"vzalloc {size_bytes:,} B" + ("" if fpstate is not None else "  -> NULL")
        self._operations.append((text, "growth" if fpstate is not None else "failure"))

    def vfree(self, fpstate: Fpstate) -> None:
        """Note a free."""
        self._operations.append((f"vfree {fpstate.allocated_bytes:,} B", "growth"))

    def shrink(self, old: Fpstate, new: Fpstate) -> None:
        """Note a container that shrank."""
        self._operations.append((f"vrealloc {old.allocated_bytes:,} B -> {new.allocated_bytes:,} B", "growth"))

    def save(self, fpstate: Fpstate, rfbm: int) -> None:
        """Note a save."""
        self._operations.append((f"XSAVES {_whose(fpstate)} {fpstate.size:,} B  rfbm={rfbm:#x}", "plain"))

    def restore(self, fpstate: Fpstate, rfbm: int) -> None:
        """Note a restore."""
        self._operations.append((f"XRSTORS {_whose(fpstate)} {fpstate.size:,} B  rfbm={rfbm:#x}", "plain"))

    def copy(self, to: Fpstate, of: Fpstate) -> None:
        """Note a copy in memory."""
        self._operations.append((f"memcpy {_whose(of)} {of.size:,} B -> {to.size:,} B", "plain"))

    def write_xfd(self, value: int) -> None:
        """Note an XFD write."""
        self._operations.append((f"WRMSR IA32_XFD {format_mask(value)}", "plain"))

    def pr_err(self, text: str) -> None:
        """Note an error message of the kernel."""
        self._operations.append((text, "failure"))

    def warn(self, condition: str) -> None:
        """Note a warning of the kernel."""
        self._operations.append((f"WARN({condition})", "failure"))

    # -- the machine's hook --------------------------------------------------------------------------------------------

    def applied(self, _now_ns: int, command: c.Command, reply: object) -> None:
        """Say what ``command`` did."""
        operations, self._operations = self._operations, []
        match command:
            case c.SubmitBatch(events=events) if isinstance(reply, tuple):
                said = {(outcome.vcpu, outcome.seq) for outcome in reply}
                for event, outcome in zip(events, reply, strict=True):
                    self._event(event.kind, outcome, operations)
                    operations = []
                self._effects(operations, said)
            case c.CreateVcpu(vm=vm, index=index):
                self._say_all(f"{vm}/vcpus/{index}", [("KVM_CREATE_VCPU", "plain"), *operations])
            case c.RequestPermission(vm=vm, feature=feature, guest=guest):
                which = "ARCH_REQ_XCOMP_GUEST_PERM" if guest else "ARCH_REQ_XCOMP_PERM"
                result = f"permitted {reply:#x}" if isinstance(reply, int) else str(reply)
                self._say(vm, f"arch_prctl({which}, {feature})  {result}")
            case _:
                self._effects(operations, set())

    def _event(self, kind: EventKind, outcome: Outcome, operations: list[tuple[str, str]]) -> None:
        grew = isinstance(outcome.kind, PendingOutcome) or getattr(outcome.kind, "reallocated", None) is not None
        if operations and not grew:
            self._say_all(outcome.vcpu, [("swap", "plain"), *operations])
        match outcome.kind:
            case DoneOutcome(reallocated=growth) if growth is not None:
                self._request(outcome.vcpu, growth.xfeatures & XFEATURE_MASK_USER_DYNAMIC)
                self._say_all(outcome.vcpu, operations)
                self._committed(outcome)
            case PendingOutcome():
                record = self._exit(outcome.kind.exit)
                self._request(outcome.vcpu, record.xfeatures if record is not None else 0)
                self._say_all(outcome.vcpu, operations)
            case InjectOutcome(vector=vector, xfd_err=xfd_err):
                err = f"  XFD_ERR={format_mask(xfd_err)}" if vector == 7 else ""
                self._say(outcome.vcpu, f"inject {_VECTORS.get(vector, vector)}{err}", "event")
            case RejectedOutcome(reason=reason, text=text):
                self._say(outcome.vcpu, f"rejected {reason}: {text}", "failure")
            case DoneOutcome() if isinstance(kind, Xsetbv) or (isinstance(kind, Wrmsr) and kind.msr == MSR_IA32_XFD):
                self._say(outcome.vcpu, f"commit, no growth needed   {self._registers(outcome.vcpu)}")
            case _:
                pass

    def _effects(self, operations: list[tuple[str, str]], said: set[tuple[str, int]]) -> None:
        """Say what time or a decision brought about, and how exits changed."""
        assert self._machine is not None
        for effect in self._machine.state.effects:
            match effect:
                case OutcomeReady(outcome=outcome) if (outcome.vcpu, outcome.seq) not in said:
                    self._say_all(outcome.vcpu, operations)
                    operations = []
                    self._final(outcome)
                case ExitChanged(exit=name):
                    self._exit_line(name)
                case DirectiveIssued(directive=directive):
                    self._say(directive.vcpu, f"directive {directive.kind}: {directive.reason}", "exit")
                case _:
                    pass

    def _final(self, outcome: Outcome) -> None:
        match outcome.kind:
            case DoneOutcome(reallocated=growth):
                if growth is not None:
                    self._committed(outcome)
                else:
                    self._say(outcome.vcpu, f"settled   {self._registers(outcome.vcpu)}")
            case InjectOutcome(vector=vector):
                self._say(outcome.vcpu, f"inject {_VECTORS.get(vector, vector)}, nothing committed", "event")
            case _:
                pass

    def _exit_line(self, name: str) -> None:
        record = self._exit(name)
        if record is None:
            return
        if record.decision is DecisionKind.RECLAIM and record.state in (ExitState.OPEN, ExitState.RESOLVED):
            shrunk = [each for each in record.reclaimed if each.refused is None]
            freed = sum(each.freed_bytes for each in shrunk)
            self._say(record.vcpu, f"reclaimed {freed:,} B from {len(shrunk)} vCPUs", "growth")
        match record.state:
            case ExitState.OPEN:
                errno = "ENOMEM" if record.errno == 12 else "EPERM"
                why = f"{record.cause.value}, needs {record.bytes_needed:,} B, attempt {record.attempt}"
                self._say(record.vcpu, f"KVM_RUN returns -{errno}: {why}; vCPU parked", "exit")
            case ExitState.PAUSED:
                self._say(record.vcpu, f"paused by {record.decided_by}", "exit")
            case ExitState.CANCELLED:
                self._say(record.vcpu, f"exit cancelled: {record.note}", "exit")
            case _:
                pass

    def _request(self, vcpu: str, xfeatures: int) -> None:
        self._say(vcpu, f"needs_action {format_mask(xfeatures)}: {self._policy(vcpu).grows}", "growth")

    def _committed(self, outcome: Outcome) -> None:
        assert isinstance(outcome.kind, DoneOutcome)
        growth = outcome.kind.reallocated
        assert growth is not None
        sizes = f"fpstate {growth.old_bytes:,} B -> {growth.new_bytes:,} B"
        goes_on = self._policy(outcome.vcpu).goes_on
        self._say(outcome.vcpu, f"{sizes}, commit, {goes_on}   {self._registers(outcome.vcpu)}", "growth")

    def _policy(self, name: str) -> AllocationPolicy:
        assert self._machine is not None
        return self._machine.state.vcpu(name).vm.policy

    def _registers(self, name: str) -> str:
        assert self._machine is not None
        vcpu = self._machine.state.vcpu(name)
        return f"XCR0={vcpu.xcr0:#x} XFD={format_mask(vcpu.fpstate.xfd)}"

    def _exit(self, name: str) -> ExitRecord | None:
        assert self._machine is not None
        state = self._machine.state
        return state.exits.get(name) or state.resolved_exits.get(name)

    def _say_all(self, vcpu: str, operations: list[tuple[str, str]]) -> None:
        for text, tone in operations:
            self._say(vcpu, text, tone)

    def _say(self, vcpu: str, text: str, tone: str = "plain") -> None:
        self._sink(HostLine(vcpu, text, tone))


def _whose(fpstate: Fpstate) -> str:
    return "guest" if fpstate.is_guest else "user"
