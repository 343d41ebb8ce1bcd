"""The four answers to when a container grows: what each does where another does not, and what a failure leaves."""

from __future__ import annotations

import pytest

from fpu_core.alloc import POINT_GUEST_ALLOC, POINT_REALLOC_ALLOC, AllocFailure
from fpu_core.errors import CoreBug, Errno
from fpu_core.realloc import Reallocated, ReallocFailed
from fpu_core.sched import switch_to
from fpu_core.xfeature import XFEATURE_MASK_XTILE_DATA as TILE_DATA
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.outcome import Done, Inject, ReallocExit
from host_agent.kvm.policy import ALLOCATION_POLICIES
from host_agent.kvm.run import vcpu_abandon
from host_agent.kvm.set_cpuid import set_vm_cpuid
from tests.core.snapshot import snapshot
from tests.core.world import Ambush, Guest, World
from tests.kvm.test_xfd import AMX, entered

ON_DEMAND = ("on_swap", "on_write")
UP_FRONT = ("on_cpuid", "three_buffer")
DEFAULT_BYTES, LARGEST_BYTES = 2_624, 10_816


def created(policy: str, *, permitted: bool = True) -> tuple[World, Guest]:
    """A vCPU that has not run."""
    world = World.create(policy=policy)
    if permitted:
        world.request("a", guest=True)
    guest = world.create_vcpu("a", 0)
    assert isinstance(guest, Guest)
    return world, guest


def failing(world: World, nth: int) -> list[str]:
    """Let the ``nth`` allocation from now on fail; returns the list of points that will have been reached."""
    points: list[str] = []

    def hook(point: str, _account: str, _size_bytes: int) -> Errno:
        points.append(point)
        return Errno.ENOMEM if len(points) == nth else Errno.OK

    world.allocator.should_fail = hook
    return points


# -- on_write ----------------------------------------------------------------------------------------------------------


def test_on_write_grows_without_a_swap() -> None:
    """The guest stays in, nothing is saved and nothing restored, and the XFD register has the new value at once."""
    world, guest = entered(policy="on_write")
    world.wrmsr_xfd(guest, TILE_DATA)
    world.xsetbv(guest, AMX)
    world.guest_write(guest, 2, 0, b"vector")
    before = world.cpus[0].counters.saves, world.cpus[0].counters.restores
    assert world.wrmsr_xfd(guest, 0) == Done(reallocated=Reallocated(2560, 10752, TILE_DATA))
    assert (world.cpus[0].counters.saves, world.cpus[0].counters.restores) == before
    assert (world.cpus[0].xfd, guest.vcpu.vm.fpu_reload) == (0, 0)
    world.guest_read(guest)
    world.check()


@pytest.mark.parametrize("places", [1, 2])
def test_on_write_preempted(places: int) -> None:
    """Before the allocation, or after it: the old image is made live under the old XFD before the new one is active."""
    world, guest = entered(policy="on_write")
    for nr in (1, 2):
        world.guest_write(guest, nr, 0, bytes([nr]) * 16)
    world.ambushes = [Ambush("b/main", b"intruder", resume_on=1)] * places
    assert isinstance(world.xsetbv(guest, AMX), Done)
    assert not world.ambushes
    world.guest_read(guest)
    world.check()


@pytest.mark.parametrize("policy", ON_DEMAND)
def test_a_failed_growth_parks_and_a_retry_works(policy: str) -> None:
    """Nothing is committed, the vCPU is outside and parked, and the same write executes again in a new KVM_RUN."""
    world, guest = entered(policy=policy)
    world.guest_write(guest, 1, 0, b"before")
    world.fail_next = True
    result = world.xsetbv(guest, AMX)
    assert isinstance(result, ReallocExit)
    assert (result.failed.errno, guest.vcpu.state, guest.vcpu.xcr0) == (Errno.ENOMEM, VcpuState.PARKED, 1)
    assert world.allocator.host.used_bytes == DEFAULT_BYTES
    assert isinstance(world.retry(guest, world.tasks["a/main"].fpu), Done)
    world.guest_read(guest)
    world.check()


@pytest.mark.parametrize("policy", ALLOCATION_POLICIES)
def test_where_memory_is_taken(policy: str) -> None:
    """Each policy allocates where it says, and at no other moment of a vCPU's life."""
    world = World.create(policy=policy)
    world.request("a", guest=True)
    points = failing(world, 0)
    taken: dict[str, int] = {}

    def note(moment: str) -> None:
        taken[moment] = len(points)
        points.clear()

    guest = world.create_vcpu("a", 0)
    assert isinstance(guest, Guest)
    note("KVM_CREATE_VCPU")
    assert world.set_cpuid(guest, AMX) is Errno.OK
    note("KVM_SET_CPUID2")
    fpu = world.tasks["a/main"].fpu
    world.run(fpu, 0)
    world.enter(guest, fpu)
    note("first KVM_RUN")
    world.xsetbv(guest, AMX)
    note("XSETBV")
    world.leave(guest)
    world.enter(guest, fpu)
    note("second KVM_RUN")
    expected = {
        "on_swap": [1, 0, 0, 1, 0],
        "on_write": [1, 0, 0, 1, 0],
        "on_cpuid": [1, 1, 0, 0, 0],
        "three_buffer": [2, 0, 1, 0, 0],
    }
    assert list(taken.values()) == expected[policy], taken


# -- on_cpuid ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("permitted", "memory", "errno"),
    [
        pytest.param(True, True, Errno.OK, id="it grows"),
        pytest.param(False, True, Errno.EPERM, id="EPERM without permission"),
        pytest.param(False, False, Errno.EPERM, id="which is asked before memory"),
        pytest.param(True, False, Errno.EFAULT, id="EFAULT without memory, never ENOMEM"),
    ],
)
def test_on_cpuid(permitted: bool, memory: bool, errno: Errno) -> None:
    """KVM_SET_CPUID2 grows, or fails and has changed neither the CPUID nor the container nor anything else."""
    world, guest = created("on_cpuid", permitted=permitted)
    before = snapshot(world)
    world.fail_next = not memory
    assert world.set_cpuid(guest, AMX) is errno
    assert guest.vcpu.fpstate.size == (10752 if errno is Errno.OK else 2560)
    assert errno is Errno.OK or snapshot(world) == before
    world.fail_next = False
    world.check()


def test_a_cpuid_without_tiles_asks_for_nothing() -> None:
    """No dynamic feature in it: no permission is needed and nothing is allocated."""
    world, guest = created("on_cpuid", permitted=False)
    assert world.set_cpuid(guest, 0x2E7) is Errno.OK
    assert world.allocator.host.used_bytes == DEFAULT_BYTES


@pytest.mark.parametrize("policy", ALLOCATION_POLICIES)
@pytest.mark.parametrize("permitted", [True, False])
def test_tiles_without_a_cpuid(policy: str, permitted: bool) -> None:
    """A CPUID that was never set is what the host supports; up front, only as far as the container holds it."""
    world, guest = entered(policy=policy, permitted=permitted)
    result = world.xsetbv(guest, AMX)
    if policy in ON_DEMAND:
        assert isinstance(result, Done if permitted else ReallocExit)
    else:
        assert isinstance(result, Done if policy == "three_buffer" and permitted else Inject)
    assert not (isinstance(result, Inject) and guest.vcpu.xcr0 != 1)


@pytest.mark.parametrize("policy", ALLOCATION_POLICIES)
def test_the_first_xfd_that_is_not_zero(policy: str) -> None:
    """Up front the XFD intercept is dropped there, as in mainline; on demand not before the container has its room."""
    world, guest = entered(policy=policy, cpuid=AMX)
    world.wrmsr_xfd(guest, TILE_DATA)
    assert guest.vcpu.nm_intercept
    assert guest.vcpu.xfd_passthrough == (policy in UP_FRONT)


def test_a_cpuid_for_all_vcpus_is_taken_by_all_or_none() -> None:
    """The second of two cannot grow: no CPUID has changed; the first one's container keeps the size it has by then."""
    world, first = created("on_cpuid")
    second = world.create_vcpu("a", 1)
    assert isinstance(second, Guest)
    vm = world.vms["a"]
    before = [(vcpu.guest_supported_xcr0, vm.cpuid) for vcpu in vm.vcpus.values()]
    points = failing(world, 2)
    assert set_vm_cpuid(vm, vm.masked_cpuid(AMX)) is Errno.EFAULT
    assert points == [POINT_REALLOC_ALLOC] * 2
    assert [(vcpu.guest_supported_xcr0, vm.cpuid) for vcpu in vm.vcpus.values()] == before
    assert (first.vcpu.fpstate.size, second.vcpu.fpstate.size) == (10752, 2560)
    assert set_vm_cpuid(vm, vm.masked_cpuid(AMX)) is Errno.OK
    assert len(points) == 3, "the first one has its room and asks for none"
    world.check()


@pytest.mark.parametrize("policy", UP_FRONT)
@pytest.mark.parametrize("permitted", [True, False])
@pytest.mark.parametrize("nth", [1, 2, 0])
def test_creation_in_a_vm_that_has_its_cpuid(policy: str, permitted: bool, nth: int) -> None:
    """The vCPU has room for the VM's CPUID from the start, or there is none: EPERM, ENOMEM, EFAULT, nothing left."""
    world = World.create(policy=policy)
    if permitted:
        world.request("a", guest=True)
    vm = world.vms["a"]
    assert set_vm_cpuid(vm, vm.masked_cpuid(AMX)) is Errno.OK
    before = snapshot(world)
    points = failing(world, nth)
    result = world.create_vcpu("a", 0)
    if not permitted:
        assert (result, points) == (Errno.EPERM, [])
        assert snapshot(world) == before, "not even the permission is locked"
    elif nth == 0:
        assert isinstance(result, Guest)
        assert result.vcpu.guest_supported_xcr0 == AMX
    else:
        assert result is Errno.EFAULT or isinstance(result, AllocFailure)
        assert (result is Errno.EFAULT) == (policy == "on_cpuid" and nth == 2)
        assert points[-1] == (POINT_REALLOC_ALLOC if result is Errno.EFAULT else POINT_GUEST_ALLOC)
        assert not world.vms["a"].vcpus
        assert world.allocator.host.used_bytes == 0
    world.check()


# -- three_buffer ------------------------------------------------------------------------------------------------------


def test_kvm_run_without_memory_for_the_threads_own_image() -> None:
    """ENOMEM before anything has moved; the vCPU is outside as before, and the next KVM_RUN enters."""
    world, guest = created("three_buffer")
    fpu = world.tasks["a/main"].fpu
    world.run(fpu, 0)
    before = snapshot(world)
    world.fail_next = True
    assert isinstance(world.enter(guest, fpu), AllocFailure)
    assert snapshot(world) == before
    assert world.enter(guest, fpu) is None
    assert guest.vcpu.state is VcpuState.ENTERED
    world.check()


def test_three_buffers_take_three_times_the_largest() -> None:
    """user_fpu, guest_fpu and the thread's own image; the thread keeps its own when the vCPU goes."""
    world, guest = entered(policy="three_buffer")
    assert world.allocator.host.used_bytes == 3 * LARGEST_BYTES
    world.leave(guest)
    world.destroy(guest)
    assert world.allocator.host.used_bytes == LARGEST_BYTES
    world.exit(world.tasks["a/vcpu"])
    world.exit(world.tasks["a/main"])
    assert world.allocator.host.used_bytes == 0


def test_a_confidential_guest_is_not_copied() -> None:
    """Its registers are the firmware's: neither saved nor loaded; XFD is switched all the same."""
    world = World.create(policy="three_buffer")
    world.request("a", guest=True)
    guest = world.create_vcpu("a", 0, confidential=True)
    assert isinstance(guest, Guest)
    fpu, counters = world.tasks["a/main"].fpu, world.cpus[0].counters
    world.run(fpu, 0)
    world.enter(guest, fpu)
    assert (counters.restores, world.cpus[0].xfd) == (0, 0)
    world.leave(guest)
    assert (counters.saves, counters.restores, world.cpus[0].xfd) == (0, 1, TILE_DATA)
    world.check()


@pytest.mark.parametrize("policy", ALLOCATION_POLICIES)
@pytest.mark.parametrize("runs", [True, False], ids=["running", "scheduled out"])
def test_abandoned_in_the_guest(policy: str, runs: bool) -> None:
    """A bug of ours stops the vCPU; its thread has its own registers back, wherever they were."""
    world, guest = entered(policy=policy)
    fpu = world.tasks["a/main"].fpu
    world.leave(guest)
    world.user_write(world.tasks["a/main"], 1, 0, b"the user's")
    world.enter(guest, fpu)
    world.guest_write(guest, 1, 0, b"the guest's")
    if not runs:
        switch_to(world.cpus[0], None)
    vcpu_abandon(guest.vcpu)
    world.run(fpu, 0)
    assert fpu.task_fpstate is None
    assert not fpu.fpstate.in_use
    world.user_read(world.tasks["a/main"])
    del world.guests["a/0"]
    world.vms["a"].policy.destroy(guest.vcpu)
    world.check()


@pytest.mark.parametrize("policy", ALLOCATION_POLICIES)
def test_swapping_what_is_not_there_is_our_bug(policy: str) -> None:
    """In twice, out twice, or without a container: named, and not carried out."""
    world, guest = entered(policy=policy)
    rules = world.vms["a"].policy
    fpu, pseudo = world.tasks["a/main"].fpu, guest.vcpu.guest
    with pytest.raises(CoreBug):
        rules.swap_in(fpu, pseudo)
    with pytest.raises(CoreBug):
        rules.destroy(guest.vcpu)
    world.leave(guest)
    with pytest.raises(CoreBug):
        rules.swap_out(fpu, pseudo)
    world.destroy(guest)
    with pytest.raises(CoreBug):
        rules.swap_in(fpu, pseudo)


# -- host-initiated growth ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ON_DEMAND)
@pytest.mark.parametrize("inside", [True, False])
def test_growth_for_a_restore(policy: str, inside: bool) -> None:
    """On demand it grows at once, inside KVM_RUN or outside; what the guest had loaded is still there."""
    world, guest = entered(policy=policy)
    world.xsetbv(guest, 0x2E7)
    for nr in (1, 2, 5, 7, 9):
        world.guest_write(guest, nr, 0, bytes([nr]) * 4)
    world.guest_write(guest, 0, 24, (0x1FA0).to_bytes(4, "little"))
    fpu = world.tasks["a/main"].fpu
    if not inside:
        world.leave(guest)
        switch_to(world.cpus[0], world.tasks["b/main"].fpu)
    rules = world.vms["a"].policy
    assert rules.grow_for_restore(guest.vcpu, AMX) == Reallocated(2560, 10752, TILE_DATA)
    assert rules.grow_for_restore(guest.vcpu, AMX) is None
    world.check()
    if not inside:
        world.run(fpu, 1)
        world.enter(guest, fpu)
    world.guest_read(guest)
    world.check()


@pytest.mark.parametrize("policy", ON_DEMAND)
@pytest.mark.parametrize(("permitted", "errno"), [(True, Errno.ENOMEM), (False, Errno.EPERM)])
def test_growth_for_a_restore_that_fails(policy: str, permitted: bool, errno: Errno) -> None:
    """The errno is the ioctl's, nothing has changed, and no exit is opened for anybody to decide."""
    world, guest = created(policy, permitted=permitted)
    before = snapshot(world)
    world.fail_next = True
    result = world.vms["a"].policy.grow_for_restore(guest.vcpu, AMX)
    assert isinstance(result, ReallocFailed)
    assert (result.errno, guest.vcpu.state) == (errno, VcpuState.OUTSIDE)
    assert snapshot(world) == before


@pytest.mark.parametrize("policy", UP_FRONT)
def test_no_growth_for_a_restore_up_front(policy: str) -> None:
    """What the container lacks there is the ioctl's to refuse."""
    world, guest = created(policy)
    points = failing(world, 0)
    assert world.vms["a"].policy.grow_for_restore(guest.vcpu, AMX) is None
    assert points == []
