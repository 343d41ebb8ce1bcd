"""What the machine does about VMs that leave, come and have gone, beyond what scenarios show."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from host_agent import commands as c
from host_agent import migration_commands as m
from host_agent import task_commands as t
from host_agent.errors import Reason, Refused
from host_agent.events import BlockedOutcome, EventKind, Hlt, Outcome, RegisterWrite, RejectedOutcome, Wrmsr, Xsetbv
from host_agent.exits import ExitResult
from host_agent.kvm.policy import ALLOCATION_POLICIES
from host_agent.leaving import NAMED_BY
from host_agent.machine import HANDLERS
from host_agent.migrations import MigrationRecord, MigrationState
from host_agent.vcpu_state import get_msrs, get_xcrs, get_xsave2
from host_agent.vcpus import stop_vcpu
from tests.core.samples import random_bytes
from tests.migration_nodes import Node, finish

#: Commands that change no VM, or that a VM which is leaving does not mind.
FREE = {
    c.Boot,
    c.CreateVm,
    c.OpenSession,
    c.KeepAlive,
    c.CloseSession,
    c.SubmitBatch,
    c.AckDirective,
    c.AcquireControl,
    c.RenewControl,
    c.ReleaseControl,
    c.SetHostLimit,
    c.DrainHost,
    c.ArmFault,
    c.DisarmFault,
    c.ResetFaults,
    c.RenewFaults,
    c.HitFault,
    c.Tick,
    t.OfflineCpu,
    t.OnlineCpu,
    t.IdleCpu,
    t.SuspendHost,
    *get_args(m.MigrationCommand),
}


def a_vm(node: Node, *, policy: str = "on_swap", vcpus: int = 1) -> None:
    """``vms/a``, which may use tiles."""
    node.do(c.CreateVm(vm_id="a", allocation_policy=policy))
    node.do(c.RequestPermission(vm="vms/a", feature=18, guest=True))
    node.do(c.SetCpuid(vm="vms/a", xcr0_mask=0x602E7))
    for nr in range(vcpus):
        node.do(c.CreateVcpu(vm="vms/a", index=nr))


def moved(source: Node, target: Node) -> MigrationRecord:
    """Move ``vms/a``; the target's record."""
    ours = source.begin("vms/a", target.name)
    assert isinstance(ours, MigrationRecord)
    image = source.export("vms/a")
    assert image is not None
    theirs = target.import_image(ours.name, image)
    assert isinstance(theirs, MigrationRecord), theirs
    for done in (
        target.stage(ours.name, ours.ownership_epoch),
        source.commit(ours.name, ours.ownership_epoch, theirs.proof),
        target.commit(ours.name, ours.ownership_epoch, ours.proof),
    ):
        assert isinstance(done, MigrationRecord), done
    return theirs


def test_every_command_that_changes_a_vm_is_held_up_while_it_leaves() -> None:
    """A new command is in the table by its field, or in the list above by somebody's decision."""
    assert set(HANDLERS) == set(get_args(c.Command))
    assert set(HANDLERS) == set(NAMED_BY) | FREE
    assert not set(NAMED_BY) & FREE


@pytest.mark.parametrize("policy", ALLOCATION_POLICIES)
def test_a_move_under_every_policy(policy: str) -> None:
    """State, sizes and what is intercepted are the same on both sides, and on the way back."""
    one, two = Node("one"), Node("two")
    a_vm(one, policy=policy)
    vcpu = "vms/a/vcpus/0"
    tiles = RegisterWrite(18, 0, random_bytes(1, 8192))
    kinds: tuple[EventKind, ...] = (Xsetbv(0, 0x602E7), tiles, Wrmsr(0x1C4, 0x40000), Wrmsr(0x1C4, 0), Hlt())
    for kind in kinds:
        one.event(vcpu, kind)
    before = _seen(one)
    for source, target, epoch in ((one, two, 2), (two, one, 3)):
        moved(source, target)
        assert _seen(target) == before
        assert target.state.vms["vms/a"].ownership_epoch == epoch
        assert "vms/a" not in source.state.vms
        assert source.state.allocator.host.used_bytes == 0


def _seen(node: Node) -> tuple[object, ...]:
    name = "vms/a/vcpus/0"
    vcpu = node.state.vcpu(name)
    state = node.state
    return (
        (get_xsave2(state, name), get_xcrs(state, name), get_msrs(state, name, (0x1C4, 0x1C5, 0xDA0))),
        (vcpu.fpstate.size, vcpu.fpstate.xfeatures, vcpu.fpstate.xstate_bv, vcpu.guest.uabi_size, vcpu.guest.xfeatures),
        (vcpu.nm_intercept, vcpu.xfd_passthrough, vcpu.pkru, vcpu.cpuid.fingerprint, vcpu.has_run, vcpu.incarnation),
        (state.vcpu_uid(vcpu), state.vms["vms/a"].uid, state.side(vcpu).next_seq, state.side(vcpu).outcomes),
    )


def test_a_killed_vcpu_and_one_that_nobody_has_touched() -> None:
    """Both go along as they are."""
    one, two = Node("one"), Node("two")
    a_vm(one, vcpus=2)
    stop_vcpu(one.state, one.state.vcpu("vms/a/vcpus/0"), "test", ExitResult.VCPU_KILLED)
    moved(one, two)
    assert [vcpu.state.name for vcpu in two.state.vms["vms/a"].kvm.vcpus.values()] == ["KILLED", "OUTSIDE"]
    found = two.event("vms/a/vcpus/0", Hlt())
    assert isinstance(found, Outcome)
    assert isinstance(found.kind, RejectedOutcome)
    assert found.kind.reason == "VCPU_KILLED"


def test_a_vcpu_that_is_made_later_has_the_vms_cpuid() -> None:
    """At the target as at the source."""
    one, two = Node("one"), Node("two")
    a_vm(one)
    one.do(c.SetCpuid(vm="vms/a", xcr0_mask=0x7))
    moved(one, two)
    made = two.do(c.CreateVcpu(vm="vms/a", index=1))
    assert made.guest_supported_xcr0 == 0x7
    locked = two.do(c.RequestPermission(vm="vms/a", feature=18, guest=True))
    assert not isinstance(locked, Refused)  # it has that permission


def test_what_is_over_is_forgotten_beyond_a_number() -> None:
    """The oldest first; what is open stays."""
    one = Node("one")
    one.machine.state.config = replace(one.config, max_migrations=3)
    a_vm(one)
    names = []
    for _nr in range(5):
        record = one.begin("vms/a", "two")
        assert isinstance(record, MigrationRecord)
        names.append(record.name)
        one.abort(record.name, 1, "")
    record = one.begin("vms/a", "two")
    assert isinstance(record, MigrationRecord)
    assert list(one.state.migrations) == [*names[2:], record.name]


def test_an_event_while_it_leaves_changes_nothing() -> None:
    """Neither does the word that outcomes were received: every image is the same."""
    one = Node("one")
    a_vm(one)
    one.event("vms/a/vcpus/0", Hlt())
    one.begin("vms/a", "two")
    before = one.export("vms/a")
    blocked = one.event("vms/a/vcpus/0", Hlt())
    assert isinstance(blocked, Outcome)
    assert isinstance(blocked.kind, BlockedOutcome)
    assert blocked.kind.migration == next(iter(one.state.migrations))
    (session,) = one.state.sessions.values()
    one.do(c.SubmitBatch(session=session.name, epoch=session.epoch, events=(), received=(("vms/a/vcpus/0", 1),)))
    assert one.export("vms/a") == before


def test_a_name_that_a_moved_vm_had() -> None:
    """May be another VM's; and the one that has gone is not taken for it."""
    one, two = Node("one"), Node("two")
    a_vm(one)
    uid = one.state.vms["vms/a"].uid
    moved(one, two)
    assert one.do(c.CreateVcpu(vm="vms/a", index=0)).reason is Reason.VM_MOVED
    a_vm(one)
    assert one.state.vms["vms/a"].uid != uid
    assert isinstance(one.event("vms/a/vcpus/0", Hlt()), Outcome)
    back = two.begin("vms/a", "one")
    assert isinstance(back, MigrationRecord)
    image = two.export("vms/a")
    assert image is not None
    assert one.import_image(back.name, image).reason is Reason.VM_EXISTS
    assert finish([one, two], uid) is two
    assert back.state is MigrationState.ABORTED
