"""What must hold of a vCPU's state as its VMM gets and sets it, and of the CPUID that its VM is offered.

Each function looks at one host after one command and yields (name of a check, what was found).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from fault_lab.sim.register_image import in_image
from fpu_core.errors import Errno
from fpu_core.layout import MXCSR_OFFSET, XSAVE_EXTENDED_OFFSET, XSTATE_BV_OFFSET
from fpu_core.xfeature import (
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_PKRU,
    XFEATURE_MASK_USER_DYNAMIC,
    XFEATURE_MASK_XTILE,
    XFEATURE_PKRU,
    for_each_set_bit,
)
from host_agent import commands as c
from host_agent.errors import Refused
from host_agent.kvm.cpuid import find_entry, xcr0_of, xss_of
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.vcpu import Vcpu
from host_agent.kvm.xsave_ioctl import get_xsave2
from host_agent.machine import HostMachine
from host_agent.state import HostState, VmRecord

Found = Iterator[tuple[str, str]]
_U64: Final = struct.Struct("<Q")
_KVM_XSAVE_BYTES: Final = 4096
_SET: Final = (c.CreateVcpu, c.SetXsave, c.SetXcrs, c.SetMsrs, c.SetCpuid)
_MXCSR: Final = slice(MXCSR_OFFSET, MXCSR_OFFSET + 8)


def note(machine: HostMachine, command: c.Command, result: object) -> Found:
    """A command was carried out."""
    state = machine.state
    if isinstance(command, c.CreateVm | c.RequestPermission | c.CreateVcpu) and not isinstance(result, Exception):
        vm = state.vms.get(f"vms/{command.vm_id}" if isinstance(command, c.CreateVm) else command.vm)
        if vm is not None:
            yield from _offered(vm)
    if isinstance(command, c.SetXsave):
        yield from _taken(state, command, result)
        if not isinstance(result, Exception):
            yield from _restored(state.vcpu(command.vcpu), command)
    if isinstance(command, _SET) and not isinstance(result, Exception):
        vcpus = [vcpu for vm in state.vms.values() for vcpu in vm.kvm.vcpus.values()]
        for vcpu in vcpus:
            if vcpu.state in (VcpuState.OUTSIDE, VcpuState.PARKED) and not vcpu.fpstate.is_confidential:
                yield from _exported(vcpu)


def _offered(vm: VmRecord) -> Found:
    """KVM_GET_SUPPORTED_CPUID: of the tile components both or neither, and a size that is that of an image."""
    config = vm.platform.host.config
    if config.user.max_features & XFEATURE_MASK_PKRU and not config.caps.OSPKE:
        yield "pkru-needs-protection-keys", f"{vm.name}: PKRU is in XCR0, and CR4.PKE is clear"
    table = vm.kvm.supported_cpuid(vm.kvm.permitted_xcr0)
    xcr0, leaf = xcr0_of(table), find_entry(table, 0xD, 1)
    tiles = xcr0 & XFEATURE_MASK_XTILE
    if tiles not in (0, XFEATURE_MASK_XTILE):
        yield "cpuid-tells-the-truth", f"{vm.name}: of the tile components CPUID offers {tiles:#x} alone"
    if leaf is not None and leaf.ebx:
        size = config.table.calculate_size(xcr0 | xss_of(table), compacted=True)
        if leaf.ebx != size:
            yield "cpuid-tells-the-truth", f"{vm.name}: CPUID.0xD.1 EBX is {leaf.ebx}, an image has {size} bytes"


def _taken(state: HostState, command: c.SetXsave, result: object) -> Found:
    """KVM_SET_XSAVE takes what the host supports, whatever the guest's CPUID has, and refuses what cannot be loaded."""
    errno = result.metadata.get("errnoName", "") if isinstance(result, Refused) else "OK"
    if not errno:
        return  # it never came to the ioctl
    vcpu = state.vcpu(command.vcpu)
    if vcpu.fpstate.is_confidential or not vcpu.vm.host.config.xsave or errno == "ENOMEM":
        return
    wanted = _expected(vcpu, command.xsave)
    if wanted is not None and errno != wanted:
        yield "set-xsave-takes-what-it-must", f"{command.vcpu}: {errno} for a buffer that is {wanted}"


def _expected(vcpu: Vcpu, buf: bytes) -> str | None:
    if len(buf) < vcpu.guest.uabi_size:
        return Errno.EFAULT.name
    config = vcpu.vm.host.config
    bv, xcomp_bv = struct.unpack_from("<QQ", buf, XSTATE_BV_OFFSET)
    bv &= ~vcpu.fpstate.xfd
    if bv & XFEATURE_MASK_USER_DYNAMIC & ~vcpu.fpstate.xfeatures:
        return None  # whether it may grow is another matter
    if bv & ~vcpu.vm.supported_xcr0 or xcomp_bv or any(buf[XSTATE_BV_OFFSET + 16 : XSAVE_EXTENDED_OFFSET]):
        return Errno.EINVAL.name
    mxcsr = int.from_bytes(buf[MXCSR_OFFSET : MXCSR_OFFSET + 4], "little")
    if bv & 0b111 and mxcsr & ~config.mxcsr_mask:
        return Errno.EINVAL.name
    return "OK"


def _restored(vcpu: Vcpu, command: c.SetXsave) -> Found:
    """What went in comes out again, as far as the guest's XFD lets it in and its CPUID lets it out; x87 aside."""
    raw, config = get_xsave2(vcpu), vcpu.vm.host.config
    if isinstance(raw, Errno) or vcpu.fpstate.is_confidential or not config.xsave:
        return
    (bv,) = _U64.unpack_from(command.xsave, XSTATE_BV_OFFSET)
    kept = bv & ~vcpu.fpstate.xfd & (vcpu.guest_supported_xcr0 | XFEATURE_MASK_FPSSE)
    offsets = config.table.offsets(config.user.max_features, compacted=False)
    for nr in for_each_set_bit(kept & ~1):
        span = slice(offsets[nr], offsets[nr] + config.table.size_bytes(nr))
        if raw[span] != command.xsave[span]:
            yield "restore-is-what-was-saved", f"{command.vcpu}: component {nr} is {raw[span][:24].hex()}..."


def _exported(vcpu: Vcpu) -> Found:
    """KVM_GET_XSAVE2 gives what the image holds, of what the CPUID has, and the init state elsewhere."""
    raw = get_xsave2(vcpu)
    name = f"{vcpu.vm.account.name}/vcpus/{vcpu.index}"
    if isinstance(raw, Errno) or not vcpu.vm.host.config.xsave:
        return
    if len(raw) < _KVM_XSAVE_BYTES:
        yield "get-xsave-tells-the-truth", f"{name}: {len(raw)} bytes"
        return
    (bv,) = _U64.unpack_from(raw, XSTATE_BV_OFFSET)
    more = bv & ~(vcpu.guest_supported_xcr0 | XFEATURE_MASK_FPSSE)
    if more:
        yield "get-xsave-tells-the-truth", f"{name}: exports {more:#x}, which its CPUID has not"
    config, fpstate = vcpu.vm.host.config, vcpu.fpstate
    held, _mxcsr = in_image(config, fpstate)
    offsets = config.table.offsets(fpstate.user_xfeatures, compacted=False)
    for nr in for_each_set_bit(fpstate.user_xfeatures & ~(1 << XFEATURE_PKRU)):
        size = config.table.size_bytes(nr)
        found = raw[offsets[nr] : offsets[nr] + size]
        there = held.get(nr) if bv >> nr & 1 else None
        if nr == 0 or len(found) < size:
            continue
        if found != (there if there is not None else bytes(size)):
            yield "get-xsave-tells-the-truth", f"{name}: component {nr} is {found[:24].hex()}..."
