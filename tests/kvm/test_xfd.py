"""IA32_XFD, IA32_XFD_ERR and #NM: who may write what, and what is intercepted when.

Reference: arch/x86/kvm/x86.c, kvm_set_msr_common(); vmx/vmx.c, handle_nm_fault_irqoff().
"""

from __future__ import annotations

import contextlib

import pytest

from fpu_core.cpu import Vector
from fpu_core.errors import Errno, FieldError
from fpu_core.sched import switch_to
from fpu_core.tile import TileOp
from fpu_core.xfeature import MSR_IA32_XFD, MSR_IA32_XFD_ERR
from fpu_core.xfeature import XFEATURE_MASK_XTILE_DATA as TILE_DATA
from host_agent.kvm import intercept
from host_agent.kvm.outcome import Done, Inject
from host_agent.kvm.run import guest_window
from host_agent.kvm.set_cpuid import set_vm_cpuid
from host_agent.kvm.vcpu import reset_vcpu
from tests.core.samples import tilecfg
from tests.core.world import Guest, World

AMX = 0x602E7


def entered(
    profile: str = "sapphire-rapids", *, permitted: bool = True, cpuid: int | None = None, policy: str = "on_swap"
) -> tuple[World, Guest]:
    """A vCPU in the guest."""
    world = World.create(profile, policy)
    if permitted:
        world.request("a", guest=True)
    if cpuid is not None:
        vm = world.vms["a"]
        assert set_vm_cpuid(vm, vm.masked_cpuid(cpuid)) is Errno.OK
    guest = world.create_vcpu("a", 0)
    assert isinstance(guest, Guest)
    fpu = world.tasks["a/main"].fpu
    world.run(fpu, 0)
    world.enter(guest, fpu)
    return world, guest


@pytest.mark.parametrize("msr", [MSR_IA32_XFD, MSR_IA32_XFD_ERR])
@pytest.mark.parametrize(
    ("profile", "cpuid", "value", "fine"),
    [
        pytest.param("sapphire-rapids", None, 0, True, id="0"),
        pytest.param("sapphire-rapids", None, TILE_DATA, True, id="bit 18"),
        pytest.param("sapphire-rapids", None, 1 << 17, False, id="bit 17 can never be disarmed - expect #GP"),
        pytest.param("sapphire-rapids", None, 1, False, id="bit 0 - expect #GP"),
        pytest.param("sapphire-rapids", None, TILE_DATA | 1 << 63, False, id="bits 18 and 63 - expect #GP"),
        pytest.param("sapphire-rapids", 0x2E7, TILE_DATA, False, id="a guest CPUID without tiles - expect #GP"),
        pytest.param("sapphire-rapids", 0x2E7, 0, True, id="but 0 is fine there"),
        pytest.param("zen4", None, 0, False, id="a processor without XFD - expect #GP for any value"),
    ],
)
def test_wrmsr(msr: int, profile: str, cpuid: int | None, value: int, fine: bool) -> None:
    """A write is committed, or #GP(0) and nothing has changed."""
    world, guest = entered(profile, cpuid=cpuid)
    result = intercept.handle_wrmsr(guest.vcpu, msr=msr, value=value)
    if fine:
        assert result == Done()
        assert intercept.handle_rdmsr(guest.vcpu, msr=msr) == Done(value=value)
    else:
        assert isinstance(result, Inject)
        assert (result.vector, result.error_code) == (Vector.GP, 0)
        assert (guest.vcpu.fpstate.xfd, guest.vcpu.guest.xfd_err) == (0, 0)
    world.check()


def test_rdmsr_without_xfd_is_gp() -> None:
    """Neither MSR exists for a guest whose CPUID has no XFD."""
    _, guest = entered("zen4")
    for msr in (MSR_IA32_XFD, MSR_IA32_XFD_ERR):
        assert isinstance(intercept.handle_rdmsr(guest.vcpu, msr=msr), Inject)


def test_other_msrs_are_not_ours() -> None:
    """Any other MSR is the caller's mistake, and named."""
    _, guest = entered()
    with pytest.raises(FieldError, match=r"msr: expected 0x1c4 .* got '0x10'"):
        intercept.handle_rdmsr(guest.vcpu, msr=0x10)


def test_xfd_does_not_depend_on_xcr0() -> None:
    """XFD may be armed before the feature is enabled, and reaches the register at once, for the guest is loaded."""
    _, guest = entered()
    assert guest.vcpu.xcr0 == 1
    intercept.handle_wrmsr(guest.vcpu, msr=MSR_IA32_XFD, value=TILE_DATA)
    assert guest.vcpu.fpu is not None
    assert guest.vcpu.fpu.cpu is not None
    assert guest.vcpu.fpu.cpu.xfd == TILE_DATA


def test_interception() -> None:
    """#NM is intercepted from the first non-zero XFD on; XFD is not, once the container can hold all it may arm.

    Neither is re-armed, and RESET does not either.
    """
    world, guest = entered()
    vcpu = guest.vcpu
    world.wrmsr_xfd(guest, 0)
    assert (vcpu.nm_intercept, vcpu.xfd_passthrough) == (False, False)
    world.wrmsr_xfd(guest, TILE_DATA)
    assert (vcpu.nm_intercept, vcpu.xfd_passthrough) == (True, False), "a write of 0 could still need growth"
    world.xsetbv(guest, AMX)
    assert (vcpu.nm_intercept, vcpu.xfd_passthrough) == (True, False), "armed, so nothing grew"
    world.wrmsr_xfd(guest, 0)
    assert (vcpu.nm_intercept, vcpu.xfd_passthrough) == (True, True)
    world.leave(guest)
    reset_vcpu(vcpu)
    assert (vcpu.xcr0, vcpu.fpstate.xfd, vcpu.fpstate.size) == (1, 0, 10752)
    assert (vcpu.nm_intercept, vcpu.xfd_passthrough) == (True, True)


@pytest.mark.parametrize(
    ("xfd", "xcr0", "cr0_ts", "before", "xfd_err"),
    [
        pytest.param(TILE_DATA, AMX, False, 0, TILE_DATA, id="XFD: XFD_ERR says which"),
        pytest.param(TILE_DATA, AMX, True, 0, 0, id="CR0.TS: XFD_ERR stays 0 (bug B32)"),
        pytest.param(0, AMX, True, TILE_DATA, TILE_DATA, id="CR0.TS: XFD_ERR stays what it was"),
        pytest.param(TILE_DATA, 0x7, False, 0, 0, id="a feature that XCR0 has not enabled caused no #NM"),
    ],
)
def test_nm(xfd: int, xcr0: int, cr0_ts: bool, before: int, xfd_err: int) -> None:
    """An #NM exit records XFD_ERR, injects #NM without an error code, and allocates nothing."""
    world, guest = entered()
    world.xsetbv(guest, xcr0)
    world.wrmsr_xfd(guest, xfd)
    guest.vcpu.guest.xfd_err = before
    allocations = world.allocator.host.allocations
    injected = intercept.handle_nm(guest.vcpu, cr0_ts=cr0_ts)
    assert injected == Inject(Vector.NM, xfd_err=xfd_err, why="CR0.TS" if cr0_ts else "XFD")
    assert guest.vcpu.guest.xfd_err == xfd_err
    assert world.allocator.host.allocations == allocations


def test_nm_then_the_handler() -> None:
    """The guest's protocol: #NM, read XFD_ERR, clear XFD, clear XFD_ERR, and the instruction executes."""
    world, guest = entered()
    vcpu = guest.vcpu
    world.xsetbv(guest, AMX)
    world.tile(guest, TileOp.LDTILECFG, 0, tilecfg())
    world.wrmsr_xfd(guest, TILE_DATA)
    first = world.tile(guest, TileOp.TILELOADD, 0, bytes([7]) * 1024)
    assert isinstance(first, Inject)
    assert (first.vector, first.xfd_err) == (Vector.NM, TILE_DATA)
    assert intercept.handle_rdmsr(vcpu, msr=MSR_IA32_XFD_ERR) == Done(value=TILE_DATA)
    world.wrmsr_xfd(guest, 0)
    intercept.handle_wrmsr(vcpu, msr=MSR_IA32_XFD_ERR, value=0)
    assert world.tile(guest, TileOp.TILELOADD, 0, bytes([7]) * 1024) == Done()
    world.check()


def test_host_never_sees_xfd_err() -> None:
    """XFD_ERR is the guest's inside its window and zero outside, whatever happened in it (bug B41)."""
    world, guest = entered()
    intercept.handle_wrmsr(guest.vcpu, msr=MSR_IA32_XFD_ERR, value=TILE_DATA)
    with guest_window(guest.vcpu) as cpu:
        assert cpu.xfd_err == TILE_DATA
    assert cpu.xfd_err == 0
    assert guest.vcpu.guest.xfd_err == TILE_DATA
    world.check()


def test_window_loads_and_restores_the_hosts_registers() -> None:
    """XCR0 and PKRU are the guest's inside the window and the host's outside, also when the guest's code faults."""
    world, guest = entered()
    guest.vcpu.xcr0, guest.vcpu.pkru = 0x203, 5
    host_xcr0 = world.cpus[0].xcr0
    cpu = world.cpus[0]
    with contextlib.suppress(RuntimeError), guest_window(guest.vcpu):
        assert (cpu.xcr0, cpu.read_register(9)[0]) == (0x203, 5)
        raise RuntimeError
    assert (cpu.xcr0, cpu.read_register(9)[0]) == (host_xcr0, 0x54)
    assert guest.vcpu.pkru == 5


def test_window_reloads_a_preempted_guest() -> None:
    """The registers may be anybody's when the thread comes back: they are loaded before XCR0 is the guest's."""
    world, guest = entered()
    world.guest_write(guest, 1, 0, b"guest")
    intruder = world.tasks["b/main"]
    switch_to(world.cpus[0], intruder.fpu)
    world.user_write(intruder, 1, 0, b"intruder")
    assert guest.vcpu.fpu is not None
    world.run(guest.vcpu.fpu, 0)
    world.guest_read(guest)
    world.check()


@pytest.mark.parametrize(
    ("xfd", "error"),
    [
        pytest.param(0, intercept.XfdSyncNeedsGrowthError, id="arms what the container has no room for"),
        pytest.param(1 << 17, FieldError, id="a value no guest could have written"),
    ],
)
def test_sync_that_cannot_be(xfd: int, error: type[Exception]) -> None:
    """A reported XFD that would need growth is the caller's mistake: nothing changes, nothing is allocated."""
    world, guest = entered()
    world.wrmsr_xfd(guest, TILE_DATA)
    world.xsetbv(guest, AMX)
    allocations = world.allocator.host.allocations
    with pytest.raises(error):
        intercept.handle_xfd_sync(guest.vcpu, xfd=xfd)
    assert guest.vcpu.fpstate.xfd == TILE_DATA
    assert world.allocator.host.allocations == allocations
    world.check()


def test_sync_of_a_passed_through_write() -> None:
    """Container, cache and register agree after the sync, and the tiles are hidden."""
    world, guest = entered()
    world.xsetbv(guest, AMX)
    world.wrmsr_xfd(guest, TILE_DATA)
    assert guest.vcpu.xfd_passthrough
    world.xfd_sync(guest, 0)
    world.tile(guest, TileOp.LDTILECFG, 0, tilecfg())
    world.xfd_sync(guest, TILE_DATA)
    assert isinstance(world.tile(guest, TileOp.TILEZERO, 0, b""), Inject)
    world.check()


@pytest.mark.parametrize(
    ("feature", "offset", "length"),
    [(-1, 0, 1), (19, 0, 1), (11, 0, 1), (64, 0, 1), (1, 256, 1), (1, 0, 257), (1, -1, 1), (1, 0, 0)],
)
def test_register_access_out_of_range(feature: int, offset: int, length: int) -> None:
    """A component that no guest has, or bytes it has not: the caller's mistake, named."""
    world, guest = entered()
    with pytest.raises(FieldError, match=r"feature|length"):
        intercept.read_register(guest.vcpu, feature=feature, offset=offset, length=length)
    with pytest.raises(FieldError, match=r"feature|data"):
        intercept.write_register(guest.vcpu, feature=feature, offset=offset, data=bytes(length))
    world.check()


def test_one_byte_of_a_register() -> None:
    """The least there is to read, at either end of a component."""
    _, guest = entered()
    intercept.write_register(guest.vcpu, feature=1, offset=0, data=b"\1" + bytes(254) + b"\2")
    for offset, byte in ((0, b"\1"), (255, b"\2")):
        assert intercept.read_register(guest.vcpu, feature=1, offset=offset, length=1) == Done(data=byte)


@pytest.mark.parametrize(
    ("feature", "offset", "data", "vector", "error_code"),
    [
        pytest.param(18, 0, b"tile", Vector.UD, None, id="tiles that XCR0 has not: #UD has no error code"),
        pytest.param(0, 24, b"\0\0\1\0", Vector.GP, 0, id="a reserved bit of MXCSR: #GP(0)"),
    ],
)
def test_what_a_register_access_injects(
    feature: int, offset: int, data: bytes, vector: Vector, error_code: int | None
) -> None:
    """Only #GP pushes an error code."""
    _, guest = entered()
    refused = intercept.write_register(guest.vcpu, feature=feature, offset=offset, data=data)
    assert refused == Inject(vector, error_code=error_code)


def test_every_leave_reloads_the_fpu() -> None:
    """The VM's fpu_reload counts the times that the user's registers were brought back, one for each KVM_RUN."""
    world, guest = entered()
    vm, fpu = guest.vcpu.vm, world.tasks["a/main"].fpu
    for count in (1, 2, 3):
        world.leave(guest)
        assert vm.fpu_reload == count
        world.enter(guest, fpu)
