"""A guest's own XSAVE instructions, under its XCR0 and XFD, on its own memory.

Reference: Intel SDM vol. 1, 13.7 to 13.14; tools/testing/selftests/kvm/x86/amx_test.c.
"""

from __future__ import annotations

import pytest

from fpstated.testing_host import HostUnderTest
from fpu_core.cpu import Vector
from fpu_core.errors import FieldError
from fpu_core.xfeature import MSR_IA32_XFD, XFEATURE_PKRU, XFEATURE_YMM
from fpu_core.xfeature import XFEATURE_MASK_XTILE_DATA as TILE_DATA
from fpu_core.xsave_insn import MemoryImage, XsaveInsn
from guest_agent.error import EventRejected
from guest_agent.event import XsaveInsn as WireInsn
from guest_agent.outcome import Done as WireDone
from guest_agent.outcome import Injected
from host_agent.kvm.intercept import execute_xsave, handle_wrmsr, handle_xsetbv, read_register, write_register
from host_agent.kvm.outcome import Done, Inject, Intercepted
from tests.kvm.test_xfd import AMX, entered

_ALL = (1 << 64) - 1


def _stored(result: Intercepted) -> bytearray:
    assert isinstance(result, Done)
    return bytearray(result.data)


def test_the_guests_xcr0_is_what_counts() -> None:
    """Components XCR0 does not have are left out of a save, and are #GP in the header of a restore."""
    vcpu = entered()[1].vcpu
    handle_xsetbv(vcpu, index=0, value=0x7)
    write_register(vcpu, feature=XFEATURE_YMM, offset=0, data=b"ymm")
    image = _stored(execute_xsave(vcpu, insn=XsaveInsn.XSAVEC, rfbm=_ALL, memory=bytes(12288)))
    assert (MemoryImage(image).xstate_bv, MemoryImage(image).xcomp_bv) == (0x4, 1 << 63 | 0x7)
    assert image[576:579] == b"ymm"
    MemoryImage(image).xcomp_bv |= 1 << 5
    refused = execute_xsave(vcpu, insn=XsaveInsn.XRSTOR, rfbm=0x4, memory=bytes(image))
    assert isinstance(refused, Inject)
    assert (refused.vector, refused.error_code) == (Vector.GP, 0)


def test_tiles_under_xfd() -> None:
    """XRSTOR of tiles under XFD is #NM with XFD_ERR, and one write of XFD later it loads them."""
    vcpu = entered()[1].vcpu
    image = bytearray(12288)
    MemoryImage(image).xstate_bv = TILE_DATA
    image[24:26] = (0x1F80).to_bytes(2, "little")
    handle_wrmsr(vcpu, msr=MSR_IA32_XFD, value=TILE_DATA)
    handle_xsetbv(vcpu, index=0, value=AMX)
    before = vcpu.fpstate
    result = execute_xsave(vcpu, insn=XsaveInsn.XRSTOR, rfbm=_ALL, memory=bytes(image))
    assert isinstance(result, Inject)
    assert (result.vector, result.xfd_err, vcpu.guest.xfd_err) == (Vector.NM, TILE_DATA, TILE_DATA)
    assert vcpu.fpstate is before, "an #NM grows nothing"
    saved = _stored(execute_xsave(vcpu, insn=XsaveInsn.XSAVEC, rfbm=TILE_DATA, memory=bytes(image)))
    assert MemoryImage(saved).xstate_bv == 0


def test_pkru_of_an_image_is_the_guests() -> None:
    """XRSTOR loads the guest's PKRU, which is switched around the guest and not with its container."""
    world, guest = entered()
    vcpu, cpu = guest.vcpu, world.cpus[0]
    handle_xsetbv(vcpu, index=0, value=0x207)
    host = cpu.read_register(XFEATURE_PKRU)
    image = bytearray(12288)
    MemoryImage(image).xstate_bv = 1 << XFEATURE_PKRU
    image[24:26] = (0x1F80).to_bytes(2, "little")
    image[world.config.table.offsets(0x200, compacted=False)[XFEATURE_PKRU]] = 0x55
    assert execute_xsave(vcpu, insn=XsaveInsn.XRSTOR, rfbm=_ALL, memory=bytes(image)) == Done()
    assert vcpu.pkru == 0x55
    assert read_register(vcpu, feature=XFEATURE_PKRU, offset=0, length=4) == Done(data=b"\x55\0\0\0")
    assert cpu.read_register(XFEATURE_PKRU) == host


@pytest.mark.parametrize("insn", list(XsaveInsn))
def test_too_little_memory(insn: XsaveInsn) -> None:
    """The caller's mistake: an error that names the bytes, and nothing happened."""
    vcpu = entered()[1].vcpu
    with pytest.raises(FieldError, match="memory: expected at least 576 bytes"):
        execute_xsave(vcpu, insn=insn, rfbm=3, memory=bytes(575))


def test_over_the_wire(fpstated_host: HostUnderTest) -> None:
    """As a VMM reports it: the memory comes back, a fault is injected, and too little memory is rejected."""
    vcpu = fpstated_host.vcpu("vms/a/vcpus/0")
    vcpu.xsetbv(0x7)
    vcpu.write_register(XFEATURE_YMM, data=b"ymm")
    stored = vcpu.xsave(WireInsn.XSAVE, 0x7, bytes(832))
    assert isinstance(stored, WireDone)
    assert stored.data[576:579] == b"ymm"
    assert isinstance(vcpu.xsave(WireInsn.XRSTOR, 0x7, stored.data), WireDone)
    refused = vcpu.xsave(WireInsn.XRSTOR, 0x7, stored.data, misaligned_by=16)
    assert isinstance(refused, Injected)
    assert refused.vector == Vector.GP
    for memory, misaligned_by in ((bytes(600), 0), (bytes(832), 64)):
        with pytest.raises(EventRejected, match="xsave"):
            vcpu.xsave(WireInsn.XSAVE, 0x7, memory, misaligned_by=misaligned_by)
