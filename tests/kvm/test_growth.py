"""A legal write that the container is too small for: growth in the swap, or an exit with nothing committed.

Reference: the founding mail, "XFD/XCR0 intercept case".
"""

from __future__ import annotations

import pytest

from fpu_core.alloc import AllocFailureCause
from fpu_core.errors import Errno, FieldError
from fpu_core.realloc import Reallocated
from fpu_core.sched import switch_to
from fpu_core.xfeature import XFEATURE_MASK_XTILE_DATA as TILE_DATA
from host_agent.kvm.growth import needs_action
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.outcome import Done, PendingWrite, ReallocExit, Trigger
from host_agent.kvm.policy import ALLOCATION_POLICIES, allocation_policy
from tests.core.world import Ambush
from tests.kvm.test_xfd import AMX, entered


@pytest.mark.parametrize(
    ("xcr0", "xfd", "missing"),
    [
        pytest.param(0x1, 0, 0, id="nothing dynamic is enabled"),
        pytest.param(0x2E7, 0, 0, id="AVX-512 is in every container"),
        pytest.param(AMX, TILE_DATA, 0, id="tile data is enabled and disarmed"),
        pytest.param(AMX, 0, TILE_DATA, id="tile data is enabled and not disarmed"),
    ],
)
def test_needs_action(xcr0: int, xfd: int, missing: int) -> None:
    """What XCR0 and XFD would enable and a default container cannot hold."""
    _, guest = entered()
    assert needs_action(guest.vcpu, xcr0=xcr0, xfd=xfd) == missing


def test_boring_writes_are_committed_in_the_loop() -> None:
    """No growth, no swap: the write happens at once and the vCPU stays where it is."""
    world, guest = entered()
    restores = world.cpus[0].counters.restores
    assert world.xsetbv(guest, 0x2E7) == Done()
    assert world.wrmsr_xfd(guest, TILE_DATA) == Done()
    assert world.xsetbv(guest, AMX) == Done()
    assert world.cpus[0].counters.restores == restores
    assert guest.vcpu.fpstate.size == 2560
    assert guest.vcpu.state is VcpuState.ENTERED


@pytest.mark.parametrize(
    ("trigger", "xcr0", "xfd"),
    [
        pytest.param(Trigger.XSETBV, AMX, 0, id="XSETBV"),
        pytest.param(Trigger.WRMSR_XFD, AMX, 0, id="WRMSR XFD"),
    ],
)
@pytest.mark.parametrize("permitted", [True, False])
@pytest.mark.parametrize("memory", [True, False])
def test_write_that_needs_growth(trigger: Trigger, xcr0: int, xfd: int, permitted: bool, memory: bool) -> None:
    """Committed with its growth and back in the guest; or an exit, parked, XCR0 and XFD as they were."""
    world, guest = entered(permitted=permitted)
    if trigger is Trigger.WRMSR_XFD:
        world.wrmsr_xfd(guest, TILE_DATA)
        world.xsetbv(guest, AMX)
    before = guest.vcpu.xcr0, guest.vcpu.fpstate.xfd
    world.fail_next = not memory
    result = world.xsetbv(guest, xcr0) if trigger is Trigger.XSETBV else world.wrmsr_xfd(guest, xfd)
    if permitted and memory:
        assert result == Done(reallocated=Reallocated(2560, 10752, TILE_DATA))
        assert (guest.vcpu.xcr0, guest.vcpu.fpstate.xfd) == (AMX, 0)
        assert guest.vcpu.state is VcpuState.ENTERED
    else:
        assert isinstance(result, ReallocExit)
        assert result.write == PendingWrite(trigger, AMX, 0)
        assert (result.old_xcr0, result.old_xfd) == before
        assert result.failed.errno is (Errno.ENOMEM if permitted else Errno.EPERM)
        assert result.failed.cause is (AllocFailureCause.NO_MEMORY if permitted else None)
        assert (guest.vcpu.xcr0, guest.vcpu.fpstate.xfd) == before
        assert (guest.vcpu.state, guest.vcpu.fpu) == (VcpuState.PARKED, None)
    world.check()


def test_retry_on_another_thread_and_cpu() -> None:
    """A retry is a new KVM_RUN: any thread of the process may be the one to make it."""
    world, guest = entered()
    world.guest_write(guest, 1, 0, b"before")
    world.fail_next = True
    assert isinstance(world.xsetbv(guest, AMX), ReallocExit)
    other = world.tasks["a/vcpu"].fpu
    world.run(other, 1)
    world.fail_next = True
    assert isinstance(world.retry(guest, other), ReallocExit)
    assert isinstance(world.retry(guest, other), Done)
    world.guest_read(guest)
    world.check()


@pytest.mark.parametrize("place", [1, 2])
def test_preempted_on_the_way_out(place: int) -> None:
    """Preemption between the request and the swap, or between the allocation and the lock, changes nothing."""
    world, guest = entered()
    for nr in (1, 2):
        world.guest_write(guest, nr, 0, bytes([nr]) * 16)
    world.ambushes = [Ambush("b/main", b"intruder", resume_on=1)] * place
    assert isinstance(world.xsetbv(guest, AMX), Done)
    assert not world.ambushes
    world.guest_read(guest)
    world.check()


def test_nothing_is_allocated_inside_the_loop() -> None:
    """Seen from KVM: at each allocation the vCPU's write is not committed, and its request is already taken."""
    world, guest = entered()
    seen: list[object] = []

    def look(point: str, _account: str, _size_bytes: int) -> Errno:
        seen.append((point, guest.vcpu.xcr0, guest.vcpu.guest.realloc_request))
        return Errno.OK

    world.allocator.should_fail = look
    world.wrmsr_xfd(guest, TILE_DATA)
    world.wrmsr_xfd(guest, 0)
    assert seen == []
    world.xsetbv(guest, AMX)
    assert seen == [("fpstate.realloc.alloc", 1, None)]


def test_growth_of_a_guest_that_lost_the_cpu_before_its_exit_was_handled() -> None:
    """The VM exit happened, then the thread was preempted and came back on another CPU; then the write is handled."""
    world, guest = entered()
    world.guest_write(guest, 7, 0, b"zmm16")
    assert guest.vcpu.fpu is not None
    switch_to(world.cpus[1], guest.vcpu.fpu)
    assert isinstance(world.xsetbv(guest, AMX), Done)
    world.guest_read(guest)
    world.check()


def test_policies() -> None:
    """There are four; any other name is refused with the list."""
    assert list(ALLOCATION_POLICIES) == ["on_swap", "on_write", "on_cpuid", "three_buffer"]
    listed = "on_swap, on_write, on_cpuid, three_buffer"
    with pytest.raises(FieldError, match=rf"vm\.allocation_policy: expected one of {listed}, got 'on_demand'"):
        allocation_policy("on_demand")
