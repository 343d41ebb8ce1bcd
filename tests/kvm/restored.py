"""A vCPU outside the guest, the buffers that go in, and the whole of what must not change."""

from __future__ import annotations

import struct

from fpu_core.errors import Errno
from host_agent.kvm.set_cpuid import set_vm_cpuid
from host_agent.kvm.vcpu import Vcpu
from tests.core.world import Guest, World

AMX = 0x602E7
TILE_DATA = 1 << 18


def outside(
    profile: str = "sapphire-rapids", *, permitted: bool = True, cpuid: int | None = None, confidential: bool = False
) -> tuple[World, Vcpu]:
    """A fresh vCPU of process ``a`` that nobody runs."""
    world = World.create(profile)
    if permitted:
        assert world.request("a", guest=True) is Errno.OK
    if cpuid is not None:
        vm = world.vms["a"]
        assert set_vm_cpuid(vm, vm.masked_cpuid(cpuid)) is Errno.OK
    guest = world.create_vcpu("a", 0, confidential=confidential)
    assert isinstance(guest, Guest)
    return world, guest.vcpu


def buffer(bv: int = 0, *, size: int = 11008, mxcsr: int = 0x1F80, fill: bytes = b"") -> bytes:
    """A buffer whose XSTATE_BV is ``bv``; ``fill`` goes to where Sapphire Rapids has tile data."""
    raw = bytearray(size)
    struct.pack_into("<II", raw, 24, mxcsr, 0xFFFF)
    struct.pack_into("<Q", raw, 512, bv)
    raw[2816 : 2816 + len(fill)] = fill
    return bytes(raw)


def everything(vcpu: Vcpu) -> tuple[object, ...]:
    """All that a refused call must leave alone."""
    fpstate, guest = vcpu.fpstate, vcpu.guest
    registers = (vcpu.xcr0, vcpu.xss, vcpu.pkru, guest.xfd_err, fpstate.xfd, fpstate.image())
    container = (id(fpstate), fpstate.size, fpstate.xfeatures, guest.xfeatures, guest.uabi_size)
    used = vcpu.vm.account.used_bytes
    return registers, container, used, vcpu.nm_intercept, vcpu.xfd_passthrough, vcpu.state
