"""``cpuid`` and ``supported-cpuid``: what a VMM asks KVM about CPUID and tells it; ``guest cpuid``: the instruction."""

from __future__ import annotations

from dataclasses import replace

from fpu_core.cpuid import _CAP_BITS
from fpu_core.xfeature import format_mask
from host_agent.commands import SetCpuid
from host_agent.kvm.cpuid import CpuidTable, xcr0_of
from host_agent.kvm.set_cpuid import guest_cpuid
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import HostState
from host_agent.vms import get_supported_cpuid
from tests.scenarios.block import ScenarioError
from tests.scenarios.operands import Words, mask, number
from tests.scenarios.world import World

#: Entries of a table that is too long for KVM.
_TOO_MANY = 257


def cpuid(world: World, words: Words) -> None:
    """KVM_SET_CPUID2 for a VM or with ``vcpu=`` one vCPU: a mask of leaf 0xD, or a table by name.

    ``empty``: no entry. ``supported``: what KVM_GET_SUPPORTED_CPUID gives, without the capabilities of ``without=``,
    for the first VM of another host with ``of=``. ``long``: one entry too many.
    """
    what, vm, label = words.take("a mask or a table"), world.vm(words.key("vm")), words.key("vcpu")
    without, of = words.key("without"), words.key("of")
    words.end()
    vcpu = world.vcpu_name(label) if label else ""
    whose = f" of vcpu {label}" if label else ""
    if what not in ("empty", "supported", "long"):
        world.lanes.user(f"KVM_SET_CPUID2{whose} 0xD={mask(what):#x}")
        world.apply(SetCpuid(vm=vm.name, vcpu=vcpu, xcr0_mask=mask(what)))
        world.lanes.append("= 0")
        return
    state, model = world.state, vm.name
    if of:
        state = world.hosts[of].machine.state
        model = next(iter(state.vms))
    table = _table(state, what, model, without.split(",") if without else [])
    lacks = (f" by host {of}" if of else "") + (f" without {without}" if without else "")
    world.lanes.user(f"KVM_SET_CPUID2{whose}, {what}{lacks}: {len(table)} entries")
    world.apply(SetCpuid(vm=vm.name, vcpu=vcpu, table=table))
    world.lanes.append("= 0")


def _table(state: HostState, what: str, vm: str, without: list[str]) -> CpuidTable:
    supported = get_supported_cpuid(state, vm)
    if what == "long":
        return supported[:1] * _TOO_MANY
    table = supported if what == "supported" else ()
    for name in without:
        table = _clear(table, name)
    return table


def _clear(table: CpuidTable, capability: str) -> CpuidTable:
    if capability not in _CAP_BITS:
        raise ScenarioError(f"cpuid: expected without= some of {', '.join(_CAP_BITS)}, got {capability!r}")
    leaf, subleaf, register, bit = _CAP_BITS[capability]
    return tuple(
        replace(entry, **{register: getattr(entry, register) & ~(1 << bit)})
        if (entry.function, entry.index) == (leaf, subleaf)
        else entry
        for entry in table
    )


def supported_cpuid(world: World, words: Words) -> None:
    """KVM_GET_SUPPORTED_CPUID and KVM_X86_XCOMP_GUEST_SUPP: leaves 0xD, 0x1D and 0x1E entry by entry."""
    vm = world.vm(words.key("vm"))
    words.end()
    table = get_supported_cpuid(world.state, vm.name)
    world.lanes.user("KVM_GET_SUPPORTED_CPUID", f"XCR0 {format_mask(xcr0_of(table))}")
    for entry in table:
        if entry.function in (0xD, 0x1D, 0x1E):
            regs = f"eax={entry.eax:#x} ebx={entry.ebx:#x} ecx={entry.ecx:#x} edx={entry.edx:#x}"
            world.lanes.host(f"  {entry.function:#x}.{entry.index}", regs)
    world.lanes.user("KVM_X86_XCOMP_GUEST_SUPP", f"{vm.kvm.supported_xcr0:#x}")


def guest_cpuid_instruction(world: World, words: Words, vcpu: Vcpu) -> None:
    """``cpuid LEAF [SUBLEAF]`` by the guest. KVM answers it by itself, so it is no event, only a look."""
    words.take("cpuid")
    leaf, subleaf = number(words.take("a leaf")), number(words.take("a sub-leaf")) if words.peek() else 0
    words.end()
    regs = guest_cpuid(vcpu, leaf, subleaf)
    world.lanes.guest(
        f"CPUID {leaf:#x}.{subleaf}", " ".join(f"{name}={value:#x}" for name, value in regs._asdict().items())
    )
