"""Acts of a VMM: the ioctls that set the state of its vCPUs."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from fault_lab.sim.hand import Act, Hand
from fpu_core.layout import MXCSR_OFFSET, XSTATE_BV_OFFSET
from fpu_core.xfeature import (
    MSR_IA32_XFD,
    XFEATURE_FP,
    XFEATURE_MASK_FPSSE,
    XFEATURE_MASK_XTILE_DATA,
    XFEATURE_PKRU,
    for_each_set_bit,
)
from host_agent import commands as c
from host_agent.vcpu_state import get_xsave2

#: The indices of vCPUs that no agent has: a VM of a plan has fewer.
_SPARE_VCPUS: Final = range(4_096, 4_099)
_U64: Final = struct.Struct("<Q")
_U32: Final = struct.Struct("<I")
_MXCSR_RESERVED: Final = 1 << 31


def _mask(hand: Hand) -> int:
    """Some of what the host supports, legal or not."""
    supported = hand.record.kvm.supported_xcr0
    masks = [0, 0, XFEATURE_MASK_FPSSE, 0x7, supported & ~0x60000, supported, supported]
    return hand.draws.one_of(masks) & supported


def _create_vcpu(hand: Hand) -> Act:
    used = hand.record.kvm.vcpus
    free = [index for index in _SPARE_VCPUS if index not in used]
    if free:
        yield c.CreateVcpu(vm=hand.vm, index=hand.draws.one_of(free))


def _delete_vcpu(hand: Hand) -> Act:
    spare = [index for index in hand.record.kvm.vcpus if index in _SPARE_VCPUS]
    if spare:
        yield c.DeleteVcpu(vcpu=f"{hand.vm}/vcpus/{hand.draws.one_of(spare)}")


def _set_cpuid(hand: Hand) -> Act:
    vcpu = hand.vcpu()
    if vcpu is not None:
        whole = not hand.played and hand.draws.below(4) > 0
        yield c.SetCpuid(vm=hand.vm, xcr0_mask=_mask(hand), vcpu="" if whole else vcpu)


def _set_xsave(hand: Hand) -> Act:
    """A buffer of what the host supports, with random bytes where its XSTATE_BV says so."""
    vm, name = hand.record, hand.vcpu()
    if name is None:
        return
    config, supported = vm.platform.host.config, vm.kvm.supported_xcr0
    nrs = [nr for nr in for_each_set_bit(supported) if nr not in (XFEATURE_FP, XFEATURE_PKRU, 17)]
    chosen = [nr for nr in nrs if hand.draws.below(2)]
    bv = sum(1 << nr for nr in chosen)
    raw = bytearray(max(4096, config.user.max_size))
    mxcsr = hand.draws.one_of([0x1F80, 0x1F80, 0x1F80, 0x1FA0, 0x1FA0, _MXCSR_RESERVED])
    _U32.pack_into(raw, MXCSR_OFFSET, mxcsr)
    offsets = config.table.offsets(bv, compacted=False)
    for nr in chosen:
        size = config.table.size_bytes(nr)
        raw[offsets[nr] : offsets[nr] + size] = hand.draws.bytes(size)
    bv |= hand.draws.below(2)
    _U64.pack_into(raw, XSTATE_BV_OFFSET, bv | hand.draws.one_of([0] * 9 + [1 << 40]))
    yield c.SetXsave(vcpu=name, xsave=bytes(raw[: hand.draws.one_of([len(raw)] * 9 + [576])]))


def _carry_xsave(hand: Hand) -> Act:
    source, target = hand.vcpu(), hand.vcpu()
    if source is not None and target is not None:
        yield c.SetXsave(vcpu=target, xsave=get_xsave2(hand.state(), source))


def _set_xcrs(hand: Hand) -> Act:
    vcpu = hand.vcpu()
    if vcpu is not None:
        yield c.SetXcrs(vcpu=vcpu, xcrs=((0, _mask(hand) | 1),))


def _set_msrs(hand: Hand) -> Act:
    vcpu = hand.vcpu()
    if vcpu is not None:
        value = hand.draws.one_of([0, XFEATURE_MASK_XTILE_DATA])
        yield c.SetMsrs(vcpu=vcpu, entries=((MSR_IA32_XFD, value),))


def _reset(hand: Hand) -> Act:
    if not hand.played:
        yield c.ResetVm(vm=hand.vm)


#: By their names in ``fault_lab.plan.acts``.
PLAYED: Final[dict[str, Callable[[Hand], Act]]] = {
    "create-vcpu": _create_vcpu,
    "delete-vcpu": _delete_vcpu,
    "set-cpuid": _set_cpuid,
    "set-xsave": _set_xsave,
    "carry-xsave": _carry_xsave,
    "set-xcrs": _set_xcrs,
    "set-msrs": _set_msrs,
    "reset": _reset,
}
