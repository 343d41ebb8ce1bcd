"""Three hosts, two VMs, and a driver that does anything, in any order, twice and late, while hosts die and come back.

After every step: each VM has one owner, or has been given up to a host that holds all of it and can get it; and what a
vCPU's registers hold and which number comes next is where it was, on whichever host it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fault_lab.injection.action import FailErrno
from fault_lab.injection.attributes import FaultAttributes
from fpu_core.alloc import FAULT_POINTS, POINT_REALLOC_ALLOC
from fpu_core.xfeature import MSR_IA32_XFD, XFEATURE_SSE
from host_agent.commands import (
    AcquireControl,
    ArmFault,
    CreateVcpu,
    CreateVm,
    RequestPermission,
    ResetFaults,
    ResolveExit,
    SetCpuid,
    Tick,
)
from host_agent.decision_rules import allowed_decisions
from host_agent.errors import Refused
from host_agent.events import DoneOutcome, EventKind, Hlt, Init, RegisterRead, RegisterWrite, Wrmsr, Xsetbv
from host_agent.exits import Decision, DecisionKind
from host_agent.kvm.policy import ALLOCATION_POLICIES
from host_agent.migrations import MigrationRecord
from host_agent.state import VcpuSide
from tests.core import profiles
from tests.core.samples import random_bytes
from tests.migration_nodes import SECOND_NS, Node, check_owners, finish

profiles.load_profile()

T = TypeVar("T")
VMS = ("vms/a", "vms/b")
SSE_BYTES = 256

index = st.integers(0, 100)
kinds: st.SearchStrategy[EventKind] = st.one_of(
    st.builds(Xsetbv, st.just(0), st.sampled_from([0x602E7, 0x602E7, 0x2E7, 0x40003])),
    st.builds(Wrmsr, st.just(MSR_IA32_XFD), st.sampled_from([0, 0x40000])),
    st.integers(0, 2**32).map(lambda seed: RegisterWrite(XFEATURE_SSE, 0, random_bytes(seed, SSE_BYTES))),
    st.sampled_from([Hlt(), Init()]),
)


class MigrationRules(RuleBasedStateMachine):
    """A driver without sense, and three hosts with."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes = [Node("one"), Node("two"), Node("three")]
        self.uids: dict[str, str] = {}
        #: Every migration, image and proof that anybody has ever seen.
        self.migrations: list[MigrationRecord] = []
        self.images: list[tuple[str, bytes]] = []
        self.proofs = ["", "0" * 64]
        #: By uid of the vCPU: what XMM holds, and the number that comes next.
        self.xmm: dict[str, bytes] = {}
        self.next_seq: dict[str, int] = {}
        self.failed = True  # until it has begun

    @initialize(
        policies=st.lists(st.sampled_from(sorted(ALLOCATION_POLICIES)), min_size=2, max_size=2),
        parked=st.integers(0, 2),
    )
    def start(self, policies: list[str], parked: int) -> None:
        """A VM on the first host and one on the second, some vCPUs of which are parked where the policy has that."""
        for node, vm, policy in zip(self.nodes, VMS, policies, strict=False):
            self.uids[vm] = node.do(CreateVm(vm_id=vm[4:], allocation_policy=policy)).uid
            node.do(RequestPermission(vm=vm, feature=18, guest=True))
            node.do(SetCpuid(vm=vm, xcr0_mask=0x602E7))
            for nr in range(2):
                node.do(CreateVcpu(vm=vm, index=nr))
            node.do(ArmFault(point=POINT_REALLOC_ALLOC, action=FailErrno(12), attributes=FaultAttributes(times=parked)))
            for nr in range(parked):
                self._event(node, f"{vm}/vcpus/{nr}", Xsetbv(0, 0x602E7))
        self.failed = False

    # -- the guests ----------------------------------------------------------------------------------------------------

    def places(self) -> list[tuple[Node, str]]:
        """Every vCPU where it is owned."""
        return [
            (node, node.state.vcpu_name(vcpu))
            for node in self.nodes
            for vm in node.state.vms.values()
            for vcpu in vm.kvm.vcpus.values()
        ]

    @precondition(lambda self: self.places())
    @rule(nr=index, kind=kinds)
    def guest(self, nr: int, kind: EventKind) -> None:
        """An event of a guest."""
        node, name = _pick(self.places(), nr)
        self._event(node, name, kind)

    def _event(self, node: Node, name: str, kind: EventKind) -> None:
        outcome = node.event(name, kind)
        came = outcome.reason.name if isinstance(outcome, Refused) else type(outcome.kind).__name__
        if isinstance(outcome, Refused) or not isinstance(outcome.kind, DoneOutcome):
            event(f"{type(kind).__name__}: {came}")
        elif isinstance(kind, RegisterWrite):
            self.xmm[node.state.vcpu_uid(node.state.vcpu(name))] = kind.data

    @rule(nr=index, fails=st.booleans())
    def memory(self, nr: int, fails: bool) -> None:
        """Memory gets short, or is there again."""
        node = _pick(self.nodes, nr)
        node.do(ResetFaults())
        if fails:
            node.do(
                ArmFault(point=_pick(list(FAULT_POINTS), nr), action=FailErrno(12), attributes=FaultAttributes(times=2))
            )

    @rule(nr=index, choice=index, to=index)
    def decide(self, nr: int, choice: int, to: int) -> None:
        """A decision about an open exit, to migrate among them."""
        exits = [(node, record) for node in self.nodes for record in node.state.exits.values()]
        if not exits:
            return
        node, record = _pick(exits, nr)
        control = node.do(AcquireControl(scope="", controller="c"))
        kinds_ = [DecisionKind.RETRY, DecisionKind.PAUSE, DecisionKind.MIGRATE, DecisionKind.INJECT_GP]
        kind = _pick([each for each in kinds_ if each in allowed_decisions(record)] or kinds_, choice)
        target = _pick([each.name for each in self.nodes if each is not node], to)
        command = ResolveExit(
            exit=record.name,
            generation=record.generation,
            control=control.name,
            control_epoch=control.epoch,
            decision=Decision(kind, target=target),
        )
        reply = node.do(command)
        event(f"decided {kind.name}: {reply.reason.name if isinstance(reply, Refused) else 'taken'}")
        self._note(list(node.state.leaving.values()))

    # -- the driver ----------------------------------------------------------------------------------------------------

    def _note(self, records: list[MigrationRecord]) -> None:
        self.migrations += [record for record in records if record not in self.migrations]

    @rule(nr=index, vm=st.sampled_from(VMS), to=index)
    def begin(self, nr: int, vm: str, to: int) -> None:
        """Stop a VM, wherever."""
        node = _pick(self.nodes, nr)
        found = node.begin(vm, _pick(self.nodes, to).name)
        if not isinstance(found, Refused):
            event("begun")
            self._note([found])

    @precondition(lambda self: any(node.state.leaving for node in self.nodes))
    @rule(nr=index)
    def export(self, nr: int) -> None:
        """An image of one that is leaving; twice it is the same."""
        node, record = _pick([(node, record) for node in self.nodes for record in node.state.leaving.values()], nr)
        image = node.export(record.vm)
        assert image is not None
        earlier = [each for name, each in self.images if name == record.name]
        assert all(each == image for each in earlier)
        self.images.append((record.name, image))

    @precondition(lambda self: self.images)
    @rule(nr=index, host=index)
    def import_image(self, nr: int, host: int) -> None:
        """Any image there ever was, on any host."""
        name, image = _pick(self.images[-3:] if nr % 2 else self.images, nr)
        found = _pick(self.nodes, host).import_image(name, image)
        event(f"import: {found.reason.name if isinstance(found, Refused) else found.state.name}")

    @precondition(lambda self: self.migrations)
    @rule(nr=index, host=index, what=st.sampled_from(["stage", "commit", "abort"]), proof=index, right=st.booleans())
    def step(self, nr: int, host: int, what: str, proof: int, right: bool) -> None:
        """Any step of any migration on any host, with the proof that is due or any that was ever seen."""
        record = _pick(self.migrations[-2:] if right else self.migrations, nr)
        node = _pick(self.nodes, host)
        shown = _pick(self.proofs, proof)
        if right:
            others = [each.state.migrations.get(record.name) for each in self.nodes if each is not node]
            shown = next((each.proof for each in others if each is not None and each.proof), shown)
        match what:
            case "stage":
                found = node.stage(record.name, record.ownership_epoch)
            case "commit":
                found = node.commit(record.name, record.ownership_epoch, shown)
            case _:
                found = node.abort(record.name, record.ownership_epoch, shown)
        event(f"{what}: {found.reason.name if isinstance(found, Refused) else found.role.name}")
        if not isinstance(found, Refused) and found.proof:
            self.proofs.append(found.proof)

    @rule(vm=st.sampled_from(VMS), to=index, steps=st.sampled_from([1, 2, 3, 4, 5, 6, 6, 6]))
    def drive(self, vm: str, to: int, steps: int) -> None:
        """A driver with sense, who is killed after so many steps."""
        source = next((node for node in self.nodes if vm in node.state.vms), None)
        if source is None:
            return
        target = _pick([node for node in self.nodes if node is not source], to)
        record = source.state.leaving.get(vm) or source.begin(vm, target.name)
        if isinstance(record, Refused):
            return
        self._note([record])
        image = source.export(vm) if steps > 1 else None
        if image is None:
            return
        self.images.append((record.name, image))
        name, epoch = record.name, record.ownership_epoch
        calls: list[Callable[[], Any]] = [
            lambda: target.import_image(name, image),
            lambda: target.stage(name, epoch),
            lambda: source.commit(name, epoch, target.state.migrations[name].proof),
            lambda: target.commit(name, epoch, record.proof),
        ]
        for done, call in enumerate(calls[: max(0, steps - 2)], start=1):
            found = call()
            if isinstance(found, Refused):
                event(f"driver: step {done} {found.reason.name}")
                return
        if steps == 6:
            event("driver: moved")

    @rule(nr=index, snapshot=st.booleans())
    def kill(self, nr: int, snapshot: bool) -> None:
        """A host dies, and comes back from its log, or from a snapshot."""
        _pick(self.nodes, nr).die_and_come_back(snapshot=snapshot)
        self.migrations = [self._as_it_is(record) for record in self.migrations]

    def _as_it_is(self, record: MigrationRecord) -> MigrationRecord:
        known = (node.state.migrations.get(record.name) for node in self.nodes)
        return next((each for each in known if each is not None), record)

    @rule(nr=index, seconds=st.sampled_from([1, 20, 61]))
    def wait(self, nr: int, seconds: int) -> None:
        """Time passes, on one host."""
        _pick(self.nodes, nr).do(Tick(), after_ns=seconds * SECOND_NS)

    # -- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def each_vm_has_one_owner(self) -> None:
        """Or is on its way to the one that will be."""
        for uid in self.uids.values():
            check_owners(self.nodes, uid)

    @invariant()
    def numbers_go_on(self) -> None:
        """No vCPU counts backwards, wherever it is."""
        for node, name in self.places():
            vcpu = node.state.vcpu(name)
            uid = node.state.vcpu_uid(vcpu)
            seq = vcpu.agent.next_seq if isinstance(vcpu.agent, VcpuSide) else 1
            assert seq >= self.next_seq.get(uid, 1), f"{name} on {node.name}"
            self.next_seq[uid] = seq

    def teardown(self) -> None:
        """A driver with sense comes back: every VM has its owner, and every register what the guest has put there."""
        if self.failed:
            return
        for node in self.nodes:
            node.do(ResetFaults())
        for vm, uid in self.uids.items():
            owner = finish(self.nodes, uid)
            for nr in range(2):
                self._reads_back(owner, f"{vm}/vcpus/{nr}")

    def _reads_back(self, node: Node, name: str) -> None:
        outcome = node.event(name, RegisterRead(XFEATURE_SSE, 0, SSE_BYTES))
        if isinstance(outcome, Refused) or not isinstance(outcome.kind, DoneOutcome):
            return  # parked, or without memory to run on
        uid = node.state.vcpu_uid(node.state.vcpu(name))
        assert outcome.kind.data == self.xmm.get(uid, bytes(SSE_BYTES)), f"{name} on {node.name}"


def _pick(items: list[T], nr: int) -> T:
    return items[nr % len(items)]


TestMigrations = profiles.shorter(MigrationRules.TestCase)
