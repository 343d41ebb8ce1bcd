"""A whole vCPU from one host to another: every order in which a VMM restores leads to the same state.

Orders as facts about QEMU 8.1 (kvm_arch_put_registers), Cloud Hypervisor, Firecracker, crosvm and KVM's own selftests
(lib/x86/processor.c, vcpu_load_state).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpu_core.errors import Errno
from fpu_core.invariants import check_core
from fpu_core.xfeature import MSR_IA32_XFD, MSR_IA32_XFD_ERR, MSR_IA32_XSS, for_each_set_bit
from host_agent.kvm.msrs_ioctl import MsrEntry, MsrsSet, get_msrs, set_msrs
from host_agent.kvm.restore import StateSet
from host_agent.kvm.vcpu import Vcpu
from host_agent.kvm.xcr0 import xcr0_error
from host_agent.kvm.xcrs_ioctl import Xcr, get_xcrs, set_xcrs
from host_agent.kvm.xsave_ioctl import get_xsave2, set_xsave
from tests.core.samples import random_bytes
from tests.kvm.restored import AMX, TILE_DATA, buffer, everything, outside

ORDERS = {
    "QEMU": ("xsave", "xcrs", "msrs"),
    "Cloud Hypervisor": ("xsave", "xcrs", "msrs"),
    "Firecracker": ("xsave", "xcrs", "msrs"),
    "crosvm": ("xcrs", "msrs", "xsave"),
    "selftests": ("msrs", "xcrs", "xsave"),
}
#: KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2) of a VM that may use tiles here.
REQUIRED_BYTES = 11008
MSRS = (MSR_IA32_XFD, MSR_IA32_XFD_ERR, MSR_IA32_XSS)
#: Components of Sapphire Rapids behind the legacy region: number, offset, size in the standard format.
PLACES = {2: (576, 256), 5: (1088, 64), 6: (1152, 512), 7: (1664, 1024), 9: (2688, 4), 17: (2752, 64), 18: (2816, 8192)}
XCR0_VALUES = [value for value in range(0x400) if xcr0_error(0, value, AMX) is None]


@dataclass(frozen=True)
class Saved:
    """What a VMM keeps of a vCPU."""

    xsave: bytes = field(repr=False)
    xcr0: int
    msrs: tuple[int, ...]


def save(vcpu: Vcpu) -> Saved:
    """Read everything, the registers into a buffer of the required size, as every VMM has one.

    A container that has not grown fills 4,096 bytes of it. The rest is needed all the same: in the middle of a restore
    the container may grow, and KVM_SET_XSAVE then reads more.
    """
    xsave, xcrs, msrs = get_xsave2(vcpu), get_xcrs(vcpu), get_msrs(vcpu, MSRS)
    assert isinstance(xsave, bytes)
    assert not isinstance(xcrs, Errno)
    assert not isinstance(msrs, Errno)
    return Saved(xsave.ljust(REQUIRED_BYTES, b"\0"), xcrs[0].value, tuple(entry.value for entry in msrs))


def load(vcpu: Vcpu, saved: Saved, what: str) -> StateSet | MsrsSet | Errno:
    """One of the three ioctls."""
    if what == "xsave":
        return set_xsave(vcpu, saved.xsave)
    if what == "xcrs":
        return set_xcrs(vcpu, [Xcr(0, saved.xcr0)])
    return set_msrs(vcpu, [MsrEntry(*entry) for entry in zip(MSRS, saved.msrs, strict=True)])


def states() -> st.SearchStrategy[Saved]:
    """What a guest could have left: a legal XCR0, XFD or not, any components, random bytes in them."""
    return st.builds(
        _saved,
        xcr0=st.sampled_from(XCR0_VALUES),
        tiles=st.booleans(),
        xfd=st.sampled_from([0, TILE_DATA]),
        bv=st.integers(0, AMX),
        seed=st.integers(0, 1 << 32),
    )


def _saved(xcr0: int, tiles: bool, xfd: int, bv: int, seed: int) -> Saved:
    bv &= AMX & ~xfd
    raw = bytearray(buffer(bv & ~3))
    for nr in for_each_set_bit(bv & ~3):
        offset, size = PLACES[nr]
        raw[offset : offset + size] = random_bytes(seed + nr, size)
    return Saved(bytes(raw), xcr0 | (0x60000 if tiles else 0), (xfd, xfd & -(seed & 1), 0x1800 * (seed >> 1 & 1)))


@given(saved=states())
@pytest.mark.parametrize("vmm", ORDERS)
def test_every_order_restores(vmm: str, saved: Saved) -> None:
    """Set in this order, then read: the same. And what is read goes into a third vCPU by any other order."""
    world, vcpu = outside()
    for what in ORDERS[vmm]:
        assert not isinstance(load(vcpu, saved, what), Errno)
        check_core(world.view())
    exported = save(vcpu)
    assert exported.xcr0 == saved.xcr0
    assert exported.msrs == saved.msrs
    assert exported.xsave[512:] == saved.xsave[512:]
    for order in ORDERS.values():
        _, other = outside()
        for what in order:
            assert not isinstance(load(other, exported, what), Errno)
        assert save(other) == exported


@pytest.mark.parametrize("vmm", ORDERS)
@pytest.mark.parametrize("tiles", [True, False], ids=["tiles in use", "tiles enabled, never used"])
@pytest.mark.parametrize("permitted", [True, False])
def test_a_restore_that_cannot_grow(vmm: str, tiles: bool, permitted: bool) -> None:
    """The one call that needs room fails with its errno and changes nothing; with memory the same call is fine."""
    saved = _saved(xcr0=0x2E7, tiles=True, xfd=0, bv=AMX if tiles else 0xE7, seed=4)
    world, vcpu = outside(permitted=permitted)
    failed = []
    for what in ORDERS[vmm]:
        world.fail_next = permitted
        before = everything(vcpu)
        result = load(vcpu, saved, what)
        if isinstance(result, Errno):
            failed.append(result)
            assert everything(vcpu) == before
            if permitted:
                assert not isinstance(load(vcpu, saved, what), Errno)
        check_core(world.view())
    if permitted:
        assert failed == [Errno.ENOMEM]
        assert save(vcpu) == replace(saved, xsave=save(vcpu).xsave)
    else:
        assert set(failed) == {Errno.EPERM}
