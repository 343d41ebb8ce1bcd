"""The life of a vCPU, pair by pair: in the table, or refused with the state untouched."""

from __future__ import annotations

import itertools

import pytest

from fpu_core.errors import CoreBug
from host_agent.kvm.lifecycle import TRANSITIONS, VcpuEvent, VcpuState, WrongStateError, next_state
from host_agent.kvm.run import check_entry, vcpu_leave
from host_agent.kvm.vcpu import destroy_vcpu, init_vcpu, reset_vcpu
from tests.core.world import Guest, World
from tests.kvm.test_xfd import entered

# What may happen to a vCPU, written down a second time: rows are states, in the words of the table's own docstring.
ALLOWED = {
    VcpuState.OUTSIDE: "enter reset kill failed",
    VcpuState.ENTERED: "leave",
    VcpuState.PARKED: "enter settle pause reset kill",
    VcpuState.PAUSED: "enter settle pause resume reset kill",
    VcpuState.KILLED: "reset kill",
    VcpuState.BROKEN: "kill",
}
LEADS_TO = {
    VcpuEvent.ENTER: VcpuState.ENTERED,
    VcpuEvent.LEAVE: VcpuState.OUTSIDE,
    VcpuEvent.FAILED: VcpuState.PARKED,
    VcpuEvent.SETTLE: VcpuState.OUTSIDE,
    VcpuEvent.PAUSE: VcpuState.PAUSED,
    VcpuEvent.RESUME: VcpuState.PARKED,
    VcpuEvent.RESET: VcpuState.OUTSIDE,
    VcpuEvent.KILL: VcpuState.KILLED,
    VcpuEvent.BUG: VcpuState.BROKEN,
}


def _vcpu() -> Guest:
    guest = World.create().create_vcpu("a", 0)
    assert isinstance(guest, Guest)
    return guest


@pytest.mark.parametrize(("state", "event"), list(itertools.product(VcpuState, VcpuEvent)), ids=lambda each: each.name)
def test_every_pair(state: VcpuState, event: VcpuEvent) -> None:
    """An event leads to one state whatever it comes from, or is refused and changes nothing. BUG is possible always."""
    vcpu = _vcpu().vcpu
    vcpu.state = state
    words = {"growth failed": "failed"}
    if event is VcpuEvent.BUG or words.get(event.value, event.value) in ALLOWED[state].split():
        assert next_state(state, event) is LEADS_TO[event]
        vcpu.move(event)
        assert vcpu.state is LEADS_TO[event]
    else:
        with pytest.raises(WrongStateError, match=f"a vCPU that is {state.value} cannot {event.value}") as refused:
            vcpu.move(event)
        assert (refused.value.state, refused.value.event) == (state, event)
        assert vcpu.state is state


def test_every_state_can_be_reached() -> None:
    """No state of the table is only written about."""
    reached = {VcpuState.OUTSIDE}
    for _ in TRANSITIONS:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert reached == set(VcpuState)


def test_entering_twice_changes_nothing() -> None:
    """The state is asked before the swap: the second thread is not touched."""
    world, guest = entered()
    other = world.tasks["a/vcpu"].fpu
    world.run(other, 1)
    with pytest.raises(WrongStateError, match="entered cannot enter"):
        world.enter(guest, other)
    assert other.task_fpstate is None
    world.check()


def test_leaving_without_being_entered_is_our_bug() -> None:
    """A put without a load would follow a pointer that is not there (bug B20)."""
    guest = _vcpu()
    with pytest.raises(CoreBug, match="not in KVM_RUN"):
        vcpu_leave(guest.vcpu)


def test_entry_without_room_is_our_bug() -> None:
    """(XCR0 & ~XFD & DYNAMIC) is within the container at every guest entry."""
    guest = _vcpu()
    guest.vcpu.xcr0 = 0x602E7
    with pytest.raises(CoreBug, match="no room"):
        check_entry(guest.vcpu)


def test_destroy_in_the_guest_is_our_bug() -> None:
    """A container in use is never freed; the kernel warns and leaks it."""
    world, guest = entered()
    with pytest.raises(CoreBug, match="free of"):
        destroy_vcpu(guest.vcpu)
    world.check()


def test_reset() -> None:
    """XCR0 = 1, XFD = 0, XFD_ERR = 0, PKRU = 0, registers in their init state, a new incarnation."""
    world, guest = entered()
    world.xsetbv(guest, 0x602E7)
    for nr in (0, 1, 2, 5, 6, 7, 17, 18):
        world.guest_write(guest, nr, 0, b"x" * 8)
    world.guest_write(guest, 9, 0, b"\3\0\0\0")
    world.wrmsr_xfd(guest, 1 << 18)
    world.leave(guest)
    reset_vcpu(guest.vcpu)
    vcpu = guest.vcpu
    assert (vcpu.xcr0, vcpu.fpstate.xfd, vcpu.guest.xfd_err, vcpu.pkru, vcpu.incarnation) == (1, 0, 0, 0, 2)
    assert vcpu.fpstate.xstate_bv == 0
    guest.regs.candidates.clear()
    guest.regs.pkru = 0
    world.check()


def test_reset_in_the_guest_is_refused() -> None:
    """The container is in use: the vCPU leaves first."""
    _, guest = entered()
    with pytest.raises(WrongStateError, match="entered cannot reset"):
        reset_vcpu(guest.vcpu)
    assert guest.vcpu.incarnation == 1


def test_init_clears_the_mpx_registers_and_nothing_else() -> None:
    """On a processor with MPX, INIT zeroes BNDREGS and BNDCSR in the image of a vCPU that is outside."""
    world, guest = entered("skylake-sp")
    world.xsetbv(guest, 0xFF)
    for nr in (1, 2, 3, 4, 7):
        world.guest_write(guest, nr, 0, b"before INIT")
    world.leave(guest)
    init_vcpu(guest.vcpu)
    for nr in (3, 4):
        guest.regs.candidates[nr] = [guest.regs.init(nr)]
    world.check()
    world.enter(guest, world.tasks["a/main"].fpu)
    world.guest_read(guest)
