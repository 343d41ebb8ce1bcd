"""A host under random commands: events, failures, decisions, time, sessions, and everything sent twice.

After every command the machine checks its own invariants; the books in tests/core/host.py check what a client relies
on; and the text of the log, replayed, leads to the same digest, as does the journal.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fault_lab.injection.action import FailErrno
from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.hit import Selector
from fault_lab.injection.points import FAULT_POINTS, HOST_POINTS, FaultPoint
from fpu_core.fpstate import image_offsets
from fpu_core.tile import TileOp
from fpu_core.xfeature import (
    MSR_IA32_XFD,
    MSR_IA32_XFD_ERR,
    MSR_IA32_XSS,
    XFEATURE_MASK_XTILE,
    XFEATURE_SSE,
    for_each_set_bit,
)
from fpu_core.xsave_insn import XsaveInsn
from host_agent.commands import (
    AckDirective,
    AcquireControl,
    ArmFault,
    CloneTask,
    CloseSession,
    Command,
    CreateTask,
    CreateVcpu,
    CreateVm,
    DeleteVcpu,
    DeleteVm,
    ExecTask,
    ExitTask,
    KeepAlive,
    KernelFpu,
    OpenSession,
    PreemptTask,
    ReleaseControl,
    RenewControl,
    RequestPermission,
    ResetFaults,
    ResetVm,
    ResolveExit,
    ScheduleTask,
    SetCpuid,
    SetHostLimit,
    SetMsrs,
    SetXcrs,
    SetXsave,
    SubmitBatch,
    Tick,
    UpdateVm,
    UseFeature,
)
from host_agent.decision_rules import allowed_decisions
from host_agent.errors import Reason, Refused
from host_agent.events import (
    BlockedOutcome,
    DoneOutcome,
    Enter,
    EventKind,
    GuestEvent,
    Hlt,
    Init,
    Leave,
    Nm,
    Outcome,
    PendingOutcome,
    Preempt,
    Rdmsr,
    RegisterRead,
    RegisterWrite,
    RejectedOutcome,
    Tile,
    WriteCr4,
    Wrmsr,
    XfdSync,
    Xgetbv,
    Xsave,
    Xsetbv,
)
from host_agent.exits import Decision, DecisionKind
from host_agent.journal.recovery import Recovered, replay_records
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import SessionRecord, VcpuSide
from host_agent.vcpu_state import MsrsReply, get_xsave2
from tests.core import profiles
from tests.core.host import SECOND_NS, Host, host_config
from tests.core.life_commands import task_commands, vm_commands
from tests.core.samples import random_bytes, tilecfg

profiles.load_profile()

T = TypeVar("T")

VMS = ("vms/a", "vms/b")
SSE_BYTES = 256
_TILES = tilecfg(16, 64)

index = st.integers(0, 7)
seeds = st.integers(0, 2**32)
sizes = st.sampled_from([4096, 4096, 11_008, 11_008, 100])

kinds: st.SearchStrategy[EventKind] = st.one_of(
    st.builds(Xsetbv, st.just(0), st.sampled_from([0x602E7, 0x602E7, 0x2E7, 0x7, 0x1, 0x40003, 0])),
    st.builds(Wrmsr, st.sampled_from([MSR_IA32_XFD] * 3 + [MSR_IA32_XFD_ERR, 0x10]), st.sampled_from([0, 0x40000, 1])),
    st.builds(Rdmsr, st.sampled_from([MSR_IA32_XFD, MSR_IA32_XFD_ERR])),
    st.builds(RegisterWrite, st.just(XFEATURE_SSE), st.just(0), seeds.map(lambda seed: random_bytes(seed, SSE_BYTES))),
    st.builds(
        RegisterWrite, st.sampled_from([2, 9, 17, 18, 19, 40]), st.sampled_from([0, 4, 9_000]), st.just(b"\x09ab")
    ),
    st.builds(RegisterRead, st.just(XFEATURE_SSE), st.just(0), st.just(SSE_BYTES)),
    st.builds(Tile, st.sampled_from(TileOp), st.integers(-1, 8), st.sampled_from([b"", _TILES, bytes(1024)])),
    st.builds(
        Xsave,
        st.sampled_from(XsaveInsn),
        st.sampled_from([0, 0x7, 0x40000, (1 << 64) - 1]),
        st.sampled_from([b"", bytes(832), bytes(512) + b"\x07" + bytes(319), b"\xff" * 832]),
        st.sampled_from([0, 0, 16, 64]),
    ),
    st.builds(XfdSync, st.sampled_from([0, 0x40000, 2])),
    st.builds(Wrmsr, st.just(MSR_IA32_XSS), st.sampled_from([0, 0x800, 0x1800, 0x100])),
    st.builds(Xgetbv, st.sampled_from([0, 1, 2])),
    st.builds(WriteCr4, st.sampled_from([1 << 18, 1 << 18, 1 << 18, 0, 1 << 63])),
    st.builds(Preempt, st.sampled_from([None, 0, 1, 2])),
    st.builds(Nm, st.booleans()),
    st.builds(Enter, st.sampled_from(["", "main", "t0", "nobody"])),
    st.sampled_from([Leave(), Init(), Hlt()]),
)

decisions = st.builds(
    Decision,
    st.sampled_from([*DecisionKind, DecisionKind.RETRY, DecisionKind.RETRY, DecisionKind.PAUSE]),
    delay_ns=st.sampled_from([-1, 0, 5, 2 * SECOND_NS]),
    bytes=st.sampled_from([0, 30_000, 1_000_000]),
    scope=st.sampled_from(["vm", "host", "moon"]),
    victims=st.lists(st.sampled_from([f"{vm}/vcpus/{nr}" for vm in VMS for nr in (0, 1, 2, 9)]), max_size=3).map(tuple),
    any_victim=st.booleans(),
)


class HostRules(RuleBasedStateMachine):
    """Everything that can be asked of a host, in any order."""

    policy = "on_swap"

    def __init__(self) -> None:
        super().__init__()
        self.host = Host(host_config(max_outcomes=64, exit_deadline_ns=5 * SECOND_NS, default_lease_ns=20 * SECOND_NS))
        self.sent: list[GuestEvent] = []
        self.answered: list[tuple[Command, object]] = []
        self.sessions: list[SessionRecord] = []
        self.controls: list[tuple[str, int]] = []
        self.decided: list[ResolveExit] = []
        #: What the XMM registers of each life of each vCPU hold, by (uid, incarnation).
        self.xmm: dict[tuple[str, int], bytes] = {}
        self.requests = 0
        self.reloaded: Recovered | None = None
        self.failed = True  # until everything_holds says otherwise

    @initialize(
        permitted=st.sampled_from([True, True, True, False]),
        limit=st.sampled_from([None, None, None, 9_000]),
        fails=st.sampled_from([False, False, True]),
        cpuid=st.sampled_from([True, True, False]),
        asking=st.integers(0, 2),
    )
    def start(self, permitted: bool, limit: int | None, fails: bool, cpuid: bool, asking: int) -> None:
        """Two VMs with a vCPU each, some of which ask for tiles at once and may not get the memory."""
        for name in VMS:
            self.do(CreateVm(vm_id=name[4:], byte_limit=limit, allocation_policy=self.policy))
            if permitted:
                self.do(RequestPermission(vm=name, feature=18, guest=True))
            if cpuid:
                self.do(SetCpuid(vm=name, xcr0_mask=0x602E7))
            self.do(CreateVcpu(vm=name, index=0))
        self.acquire(0, name="one")
        if fails:
            self.do(ArmFault(point="fpstate.realloc.alloc", action=FailErrno(12), attributes=FaultAttributes(times=3)))
        for nr in range(asking if self.vcpus() else 0):
            self.submit(nr, [Xsetbv(0, 0x602E7)], explicit=False)

    # -- doing ---------------------------------------------------------------------------------------------------------

    def do(self, command: Command, *, after_ns: int = 1) -> object:
        """Apply a command, with a request id of its own where it can have one."""
        self.failed = True
        if hasattr(command, "request_id"):
            self.requests += 1
            command = replace(command, request_id=f"r{self.requests}")  # type: ignore[arg-type]
        reply = self.host.tried(command, after_ns=after_ns)
        if hasattr(command, "request_id") and not isinstance(reply, Refused):
            self.answered.append((command, reply))
        if isinstance(reply, Refused):
            event(f"refused {reply.reason.name}")
        return reply

    def vcpus(self) -> list[str]:
        """Every vCPU's name."""
        state = self.host.machine.state
        return [state.vcpu_name(vcpu) for vm in state.vms.values() for vcpu in vm.kvm.vcpus.values()]

    def tasks(self) -> list[str]:
        """Every task's name."""
        return [f"{vm.name}/tasks/{task}" for vm in self.host.machine.state.vms.values() for task in vm.tasks]

    def life(self, vcpu: Vcpu) -> tuple[str, int]:
        """Which life of which vCPU this is."""
        return self.host.machine.state.vcpu_uid(vcpu), vcpu.incarnation

    def any_vcpu(self) -> bool:
        """Whether there is a vCPU."""
        return bool(self.vcpus())

    # -- guest events --------------------------------------------------------------------------------------------------

    @precondition(any_vcpu)
    @rule(nr=index, batch=st.lists(kinds, min_size=1, max_size=4), explicit=st.sampled_from([False, False, True]))
    def submit(self, nr: int, batch: list[EventKind], explicit: bool) -> None:
        """A batch of events for one vCPU, in the session that has it or a new one."""
        name = _pick(self.vcpus(), nr)
        vcpu = self.host.vcpu(name)
        if self.host.session_of(name) is None:
            self.open_session([nr], explicit=explicit)
        session = self.host.session_of(name)
        if session is None:
            return
        side = self.host.side(name)
        events = tuple(GuestEvent(name, side.next_seq + offset, kind) for offset, kind in enumerate(batch))
        outcomes = self.do(SubmitBatch(session=session.name, epoch=session.epoch, events=events))
        if isinstance(outcomes, tuple):
            for sent, outcome in zip(events, outcomes, strict=True):
                self._sent(vcpu, sent, outcome)

    def _sent(self, vcpu: Vcpu, sent: GuestEvent, outcome: Outcome) -> None:
        event(f"{type(sent.kind).__name__}: {type(outcome.kind).__name__}")
        if not isinstance(outcome.kind, BlockedOutcome):
            self.sent.append(sent)
        if not isinstance(outcome.kind, DoneOutcome) or getattr(sent.kind, "feature", None) != XFEATURE_SSE:
            return
        if vcpu.fpstate.is_confidential:
            return  # its registers are the firmware's: nothing is known about them here
        if isinstance(sent.kind, RegisterWrite):
            self.xmm[self.life(vcpu)] = sent.kind.data
        else:
            assert outcome.kind.data == self.xmm.get(self.life(vcpu), bytes(SSE_BYTES)), f"{sent.vcpu} reads back"

    @precondition(lambda self: self.sent)
    @rule(nr=st.integers(0, 200))
    def repeat_event(self, nr: int) -> None:
        """A repeated number gets its outcome again, pending or final."""
        sent = _pick(self.sent, nr)
        if sent.vcpu not in self.vcpus() or (sent.vcpu, sent.seq) not in self.host.outcomes:
            return
        session, side = self.host.session_of(sent.vcpu), self.host.side(sent.vcpu)
        if session is None or sent.seq >= side.next_seq:
            return
        reply = self.do(SubmitBatch(session=session.name, epoch=session.epoch, events=(sent,)))
        if isinstance(reply, tuple):
            kind = reply[0].kind
            known = self.host.outcomes[sent.vcpu, sent.seq]
            if isinstance(kind, RejectedOutcome) and kind.reason == "OUTCOME_FORGOTTEN":
                assert known.final
                assert sent.seq not in side.outcomes
            else:
                assert kind == known.kind

    @precondition(any_vcpu)
    @rule(nr=index, gap=st.integers(1, 3))
    def gap(self, nr: int, gap: int) -> None:
        """A number too high hears the expected one (or what blocks it), and uses nothing up."""
        name = _pick(self.vcpus(), nr)
        session = self.host.session_of(name)
        if session is None:
            return
        side = self.host.side(name)
        expected = side.next_seq
        sent = GuestEvent(name, expected + gap, Hlt())
        reply = self.do(SubmitBatch(session=session.name, epoch=session.epoch, events=(sent,)))
        if isinstance(reply, tuple):
            kind = reply[0].kind
            assert isinstance(kind, BlockedOutcome | RejectedOutcome)
            told = kind.expected_seq if isinstance(kind, BlockedOutcome) else int(kind.metadata["expectedSeq"])
            assert told == expected == side.next_seq

    @precondition(any_vcpu)
    @rule(nr=index)
    def receive(self, nr: int) -> None:
        """The agent says it has received everything: final outcomes are forgotten, a pending one is kept."""
        name = _pick(self.vcpus(), nr)
        session = self.host.session_of(name)
        if session is not None:
            side = self.host.side(name)
            received = ((name, side.next_seq - 1),)
            reply = self.do(SubmitBatch(session=session.name, epoch=session.epoch, events=(), received=received))
            if not isinstance(reply, Refused):
                assert not any(outcome.final for outcome in side.outcomes.values())

    # -- sessions and control ------------------------------------------------------------------------------------------

    @precondition(any_vcpu)
    @rule(nrs=st.lists(index, min_size=1, max_size=2), explicit=st.booleans())
    def open_session(self, nrs: list[int], explicit: bool) -> None:
        """A session takes vCPUs over, from whoever had them."""
        names = tuple(dict.fromkeys(_pick(self.vcpus(), nr) for nr in nrs))
        opened = self.do(OpenSession(client_name="x", vcpus=names, explicit=explicit, lease_ns=10 * SECOND_NS))
        if not isinstance(opened, Refused):
            self.sessions.append(opened.session)  # type: ignore[attr-defined]

    @precondition(lambda self: self.sessions)
    @rule(nr=index, what=st.sampled_from(["keep", "close", "stale", "ack"]))
    def use_session(self, nr: int, what: str) -> None:
        """Keep alive, close, acknowledge, or use an epoch that was never given."""
        session = _pick(self.sessions, nr)
        match what:
            case "keep":
                self.do(KeepAlive(session=session.name, epoch=session.epoch))
            case "close":
                self.do(CloseSession(session=session.name, epoch=session.epoch))
            case "ack":
                for directive in list(session.directives):
                    self.do(AckDirective(session=session.name, epoch=session.epoch, directive=directive))
            case _:
                reply = self.do(KeepAlive(session=session.name, epoch=session.epoch + 1_000))
                assert isinstance(reply, Refused)

    @rule(nr=st.integers(0, 2), name=st.sampled_from(["one", "one", "two"]))
    def acquire(self, nr: int, name: str) -> None:
        """A controller takes the host, or a VM."""
        record = self.do(AcquireControl(scope=("", *VMS)[nr], controller=name, lease_ns=15 * SECOND_NS))
        if not isinstance(record, Refused):
            self.controls.append((record.name, record.epoch))  # type: ignore[attr-defined]

    @precondition(lambda self: self.controls)
    @rule(nr=index, release=st.booleans())
    def use_control(self, nr: int, release: bool) -> None:
        """Renew or release, held or lost."""
        name, epoch = _pick(self.controls, nr)
        self.do(ReleaseControl(control=name, epoch=epoch) if release else RenewControl(control=name, epoch=epoch))

    # -- decisions -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.host.machine.state.exits)
    @rule(nr=index, choice=index, late=st.booleans())
    def decide_well(self, nr: int, choice: int, late: bool) -> None:
        """The controller that holds the host makes a decision the exit allows."""
        record = _pick(list(self.host.machine.state.exits.values()), nr)
        self.acquire(0, name="one")
        allowed = sorted(allowed_decisions(record), key=lambda kind: kind.value)
        delay_ns = 8 * SECOND_NS if late else 5
        decision = (
            Decision(_pick(allowed, choice), delay_ns=delay_ns, bytes=1_000_000, any_victim=True) if allowed else None
        )
        if decision is not None:
            self.decide(nr, -1, decision, 0)

    @precondition(lambda self: self.host.machine.state.exits)
    @rule(nr=index, victims=st.lists(index, max_size=3), any_victim=st.booleans())
    def reclaim(self, nr: int, victims: list[int], any_victim: bool) -> None:
        """Containers shrink for an exit: what was taken is free, and no guest can tell that anything happened."""
        record = _pick(list(self.host.machine.state.exits.values()), nr)
        if DecisionKind.RECLAIM not in allowed_decisions(record):
            return
        self.acquire(0, name="one")
        state = self.host.machine.state
        outside = [name for name in self.vcpus() if state.vcpu(name).state is not VcpuState.ENTERED]
        before = {name: _seen_by_guest(state.vcpu(name)) for name in outside if name != record.vcpu}
        sizes = {name: state.vcpu(name).fpstate.allocated_bytes for name in self.vcpus()}
        named = tuple(_pick(self.vcpus(), each) for each in victims)
        decided = len(self.decided)
        self.decide(nr, -1, Decision(DecisionKind.RECLAIM, victims=named, any_victim=any_victim), 0)
        if len(self.decided) == decided:
            return
        assert [each.vcpu for each in record.reclaimed][: len(set(named))] == list(dict.fromkeys(named))
        for each in record.reclaimed:
            assert (each.freed_bytes > 0) == (each.refused is None)
            if each.refused is None:
                assert each.freed_bytes == sizes[each.vcpu] - state.vcpu(each.vcpu).fpstate.allocated_bytes
            event(f"reclaim: {each.refused.name if each.refused is not None else 'shrunk'}")
        for name, seen in before.items():
            assert _seen_by_guest(state.vcpu(name)) == seen

    @precondition(lambda self: self.controls and self.host.machine.state.exits)
    @rule(
        nr=index,
        control=st.sampled_from([-1, -1, -1, 0, 1]),
        decision=decisions,
        off=st.sampled_from([0, 0, 0, 0, 1, -1]),
    )
    def decide(self, nr: int, control: int, decision: Decision, off: int) -> None:
        """A decision on an open exit, by whoever, of whatever generation."""
        record = _pick(list(self.host.machine.state.exits.values()), nr)
        name, epoch = self.controls[control % len(self.controls)]
        command = ResolveExit(
            exit=record.name,
            generation=record.generation + off,
            control=name,
            control_epoch=epoch,
            decision=decision,
        )
        reply = self.do(command)
        if isinstance(reply, Refused):
            return
        event(f"decided {decision.kind.name}: {record.state.name}")
        self.decided.append(self.answered[-1][0])  # type: ignore[arg-type]

    @precondition(lambda self: self.decided)
    @rule(nr=index, decision=decisions)
    def decide_otherwise(self, nr: int, decision: Decision) -> None:
        """A second, different decision of a generation is refused, and hears who won."""
        first = _pick(self.decided, nr)
        if decision == first.decision:
            return
        reply = self.do(replace(first, decision=decision))
        assert isinstance(reply, Refused)
        assert reply.reason in (Reason.EXIT_ALREADY_RESOLVED, Reason.EXIT_NOT_FOUND)

    @precondition(lambda self: self.answered)
    @rule(nr=st.integers(0, 200), other=st.booleans())
    def repeat_request(self, nr: int, other: bool) -> None:
        """A repeated request id gets the same answer; with another command it is refused."""
        self.failed = True
        command, reply = _pick(self.answered, nr)
        if other:
            different = replace(ResetVm(vm="vms/nowhere"), request_id=command.request_id)  # type: ignore[union-attr]
            refused = self.host.tried(different)
            assert isinstance(refused, Refused)
            assert refused.reason is Reason.REQUEST_ID_REUSED
        else:
            assert self.host.apply(command) is reply

    # -- VMs, vCPUs, tasks ---------------------------------------------------------------------------------------------

    @rule(vm=st.sampled_from(VMS), nr=st.integers(0, 2), confidential=st.sampled_from([False, False, True]))
    def create_vcpu(self, vm: str, nr: int, confidential: bool) -> None:
        """KVM_CREATE_VCPU; the VM may be gone."""
        self.do(CreateVcpu(vm=vm, index=nr, confidential=confidential, task="main" if nr == 2 else ""))

    @precondition(any_vcpu)
    @rule(nr=index)
    def delete_vcpu(self, nr: int) -> None:
        """The vCPU goes, with what was pending on it."""
        name = _pick(self.vcpus(), nr)
        assert not isinstance(self.do(DeleteVcpu(vcpu=name)), Refused)
        self._gone(name)

    def _gone(self, name: str) -> None:
        """A vCPU is no more: nothing of it is pending, and a later one of its name is another."""
        assert not any(key[0] == name for key in self.host.pending)
        self.host.forget_vcpu(name)
        self.decided = [each for each in self.decided if not each.exit.startswith(f"{name}/")]

    @rule(vm=st.sampled_from(VMS), what=st.sampled_from(["reset", "create", "delete", "host perm", "guest perm"]))
    def change_vm(self, vm: str, what: str) -> None:
        """RESET, make, remove, permissions."""
        match what:
            case "reset":
                self.reset(vm)
            case "create":
                self.do(CreateVm(vm_id=vm[4:], allocation_policy=self.policy))
            case "delete":
                self.do(DeleteVm(vm=vm))  # refused while it has vCPUs
            case _:
                self.do(RequestPermission(vm=vm, feature=18, guest=what == "guest perm"))

    def reset(self, vm: str) -> None:
        """RESET; what was to be hidden is hidden now, from each vCPU that can run, and nothing was before."""
        found = self.host.machine.state.vms.get(vm)
        hidden = found.hidden_at_reset if found is not None else 0
        had = {vcpu: vcpu.guest_supported_xcr0 for vcpu in (found.kvm.vcpus.values() if found is not None else ())}
        self.do(ResetVm(vm=vm))
        for vcpu, supported in had.items():
            if vcpu.state is not VcpuState.BROKEN:
                assert vcpu.guest_supported_xcr0 == (supported & ~XFEATURE_MASK_XTILE if hidden else supported)
        event(f"reset hides {hidden:#x}")

    @rule(vm=st.sampled_from(VMS), mask=st.sampled_from([0x7, 0x2E7, 0x602E7, 1 << 50]), nr=st.none() | index)
    def set_cpuid(self, vm: str, mask: int, nr: int | None) -> None:
        """KVM_SET_CPUID2 of one vCPU or of all, early or late."""
        vcpus = [name for name in self.vcpus() if name.startswith(f"{vm}/")]
        one = _pick(vcpus, nr) if nr is not None and vcpus else ""
        self.do(SetCpuid(vm=vm, xcr0_mask=mask, vcpu=one))

    @rule(vm=st.sampled_from(VMS), what=st.sampled_from(["supported", "supported", "empty", "double"]))
    def set_cpuid_table(self, vm: str, what: str) -> None:
        """KVM_SET_CPUID2 with a table: what is supported now, nothing, or every entry twice."""
        found = self.host.machine.state.vms.get(vm)
        table = found.kvm.supported_cpuid(found.kvm.permitted_xcr0) if found is not None else ()
        self.do(SetCpuid(vm=vm, table={"supported": table, "empty": (), "double": table * 2}[what]))

    @precondition(any_vcpu)
    @rule(nr=index, bv=st.sampled_from([0, 2, 3, 0x40002, 0x60002, 1 << 11]), size=sizes, seed=seeds)
    def set_xsave(self, nr: int, bv: int, size: int, seed: int) -> None:
        """KVM_SET_XSAVE of a buffer that may be short, or hold what does not go in; XMM is what it says, or init."""
        name = _pick(self.vcpus(), nr)
        vcpu = self.host.vcpu(name)
        raw = bytearray(size)
        raw[24:28], raw[160:416] = (0x1F80).to_bytes(4, "little"), random_bytes(seed, SSE_BYTES)
        raw[512:520] = bv.to_bytes(8, "little")
        reply = self.do(SetXsave(vcpu=name, xsave=bytes(raw)))
        if isinstance(reply, Refused) or vcpu.fpstate.is_confidential:
            return
        event("set xsave")
        self.xmm[self.life(vcpu)] = bytes(raw[160:416]) if bv & 2 else bytes(SSE_BYTES)
        exported = get_xsave2(self.host.machine.state, name)
        assert exported[160:416] == self.xmm[self.life(vcpu)]

    @precondition(any_vcpu)
    @rule(nr=index, xcr0=st.sampled_from([1, 7, 0x2E7, 0x602E7, 0x602E7, 5]), flags=st.sampled_from([0, 0, 0, 1]))
    def set_xcrs(self, nr: int, xcr0: int, flags: int) -> None:
        """KVM_SET_XCRS: done, or nothing has changed; that room came first, the machine's invariants say."""
        vcpu = _pick(self.vcpus(), nr)
        before = self.host.vcpu(vcpu).xcr0
        reply = self.do(SetXcrs(vcpu=vcpu, xcrs=((0, xcr0),), flags=flags))
        assert self.host.vcpu(vcpu).xcr0 == (before if isinstance(reply, Refused) else xcr0)

    @precondition(any_vcpu)
    @rule(nr=index, entries=st.lists(st.sampled_from([(0x1C4, 0), (0x1C4, 0x40000), (0x1C5, 0x40000), (0x10, 0)])))
    def set_msrs(self, nr: int, entries: list[tuple[int, int]]) -> None:
        """KVM_SET_MSRS: what the count says was done, was done, and nothing else."""
        name = _pick(self.vcpus(), nr)
        vcpu = self.host.vcpu(name)
        before = {0x1C4: vcpu.fpstate.xfd, 0x1C5: vcpu.guest.xfd_err}
        reply = self.do(SetMsrs(vcpu=name, entries=tuple(entries)))
        done = entries[: reply.processed] if isinstance(reply, MsrsReply) else []
        assert {0x1C4: vcpu.fpstate.xfd, 0x1C5: vcpu.guest.xfd_err} == before | dict(done)
        event(f"set msrs: {len(done)} of {len(entries)}")

    @rule(vm=st.sampled_from([*VMS, ""]), room=st.sampled_from([None, None, 0, 3_000, 12_000]))
    def limit(self, vm: str, room: int | None) -> None:
        """A byte limit of a VM or the host, relative to what is used."""
        state = self.host.machine.state
        if not vm:
            self.do(SetHostLimit(byte_limit=None if room is None else state.allocator.host.used_bytes + room))
        elif vm in state.vms:
            limit = None if room is None else state.vms[vm].kvm.account.used_bytes + room
            self.do(UpdateVm(vm=vm, fields=("byte_limit",), byte_limit=limit))

    @rule(
        nr=index,
        what=st.sampled_from(["create", "thread", "process", "exec", "exit", "schedule", "preempt", "kernel"]),
    )
    def change_task(self, nr: int, what: str) -> None:
        """The VMM's threads come, go, and move."""
        tasks = self.tasks()
        if not tasks:
            return
        task = _pick(tasks, nr)
        vm, _, _ = task.partition("/tasks/")
        commands: dict[str, Command] = {
            "create": CreateTask(vm=vm, task_id=f"t{nr % 2}"),
            "thread": CloneTask(task=task, task_id=f"t{nr % 3}", thread=True),
            "process": CloneTask(task=task, task_id=f"p{nr % 3}", thread=False),
            "exec": ExecTask(task=task),
            "exit": ExitTask(task=task),
            "schedule": ScheduleTask(task=task, cpu=nr % 3),
            "preempt": PreemptTask(task=task),
            "kernel": KernelFpu(task=task),
        }
        before = self.vcpus()
        self.do(commands[what])
        for name in set(before).difference(self.vcpus()):  # execve(2) of the VMM's main thread ends its vCPUs
            self._gone(name)

    @rule(nr=index, feature=st.sampled_from([0, 1, 2, 9, 17, 18, 18, 11, 63]), seed=seeds)
    def use_feature(self, nr: int, feature: int, seed: int) -> None:
        """User code of a task uses a register."""
        tasks = self.tasks()
        if tasks:
            self.do(UseFeature(task=_pick(tasks, nr), feature=feature, offset=0, data=random_bytes(seed, 2)))

    @rule(data=st.data(), nr=index, vm=st.sampled_from(VMS))
    def live(self, data: st.DataObject, nr: int, vm: str) -> None:
        """Signals, debuggers, signal stacks, interrupts, workers; CPUs that come and go."""
        tasks = self.tasks()
        commands = [vm_commands(vm), *([task_commands(_pick(tasks, nr))] if tasks else [])]
        self.do(data.draw(st.one_of(commands)))

    # -- breaking, and time --------------------------------------------------------------------------------------------

    @rule(
        point=st.sampled_from([FAULT_POINTS[name] for name in HOST_POINTS if FAULT_POINTS[name].errnos]),
        vm=st.sampled_from(["", *VMS]),
        times=st.sampled_from([1, 2, -1]),
        ppm=st.sampled_from([1_000_000, 500_000]),
        seed=index,
    )
    def arm(self, point: FaultPoint, vm: str, times: int, ppm: int, seed: int) -> None:
        """Something fails from now on, for ever or until a lease ends."""
        fault = ArmFault(
            point=point.name,
            action=FailErrno(point.errnos[seed % len(point.errnos)]),
            selector=Selector(vm=vm),
            attributes=FaultAttributes(times=times, probability_ppm=ppm, seed=seed),
            lease_ns=seed % 3 * SECOND_NS,
        )
        self.do(fault)

    @rule()
    def disarm_all(self) -> None:
        """Memory is plenty again."""
        self.do(ResetFaults())

    @rule(seconds=st.sampled_from([0, 1, 1, 3, 6, 30]), due=st.booleans())
    def tick(self, seconds: int, due: bool) -> None:
        """Time passes: so many seconds, or to the very moment when something is due."""
        deadline = self.host.machine.next_deadline_ns()
        after = max(0, deadline - self.host.now_ns) if due and deadline is not None else seconds * SECOND_NS
        self.do(Tick(), after_ns=after)
        after_tick = self.host.machine.next_deadline_ns()
        assert after_tick is None or after_tick > self.host.now_ns, "what is due was done"

    @rule()
    def replay(self) -> None:
        """The text of the log, replayed, is this host."""
        self.failed = True
        assert self.host.replayed().digest() == self.host.machine.digest()

    @rule()
    def snapshot(self) -> None:
        """A snapshot is this host, and has to go on like it: until the end, command by command."""
        self.failed = True
        self.reloaded = self.host.reloaded()

    # -- after every rule ----------------------------------------------------------------------------------------------

    @invariant()
    def everything_holds(self) -> None:
        """The machine has checked itself; what is pending here is what is pending there."""
        state = self.host.machine.state
        there = {
            (name, outcome.seq)
            for name in self.vcpus()
            for outcome in _kept(state.vcpu(name))
            if isinstance(outcome.kind, PendingOutcome)
        }
        assert there == self.host.pending
        assert {(record.vcpu, record.seq) for record in state.exits.values()} == self.host.pending
        self.failed = False

    def teardown(self) -> None:
        """Every VM can go, after which nothing is pending and nothing is used; and the whole log replays."""
        if self.failed:
            return  # a rule failed half-way, and that failure is the one to report
        for name in list(self.host.machine.state.vms):
            self.host.apply(DeleteVm(vm=name, force=True))
        assert not self.host.pending
        assert all(count == 1 for count in self.host.finals.values())
        assert self.host.machine.state.allocator.host.used_bytes == 0
        assert self.host.replayed().digest() == self.host.machine.digest()
        assert self.host.recovered().digest() == self.host.machine.digest()
        if self.reloaded is not None:
            since = self.host.bodies[self.reloaded.n :]
            assert replay_records(self.reloaded, since).machine.digest() == self.host.machine.digest()


def _pick(of: list[T], nr: int) -> T:
    return of[nr % len(of)]


def _seen_by_guest(vcpu: Vcpu) -> tuple[object, ...]:
    """What a guest could find out about itself, its container apart: registers, control registers, XFD."""
    fpstate, config = vcpu.fpstate, vcpu.vm.host.config
    offsets = image_offsets(fpstate, config)
    held = [(nr, offsets[nr], config.table.size_bytes(nr)) for nr in for_each_set_bit(fpstate.xstate_bv & ~3)]
    raw = tuple((nr, bytes(fpstate.regs[at : at + size])) for nr, at, size in held)
    registers = (vcpu.xcr0, vcpu.xss, fpstate.xfd, vcpu.guest.xfd_err, vcpu.pkru, vcpu.nm_intercept)
    return (*registers, fpstate.xstate_bv, raw, bytes(fpstate.regs[:512]))


def _kept(vcpu: Vcpu) -> list[Outcome]:
    return list(vcpu.agent.outcomes.values()) if isinstance(vcpu.agent, VcpuSide) else []


#: A failure is shrunk before it is reported, which takes its time.
TestHost = pytest.mark.timeout(900)(HostRules.TestCase)
