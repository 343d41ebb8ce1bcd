"""State out and in: KVM_GET/SET_XSAVE, XCRS and MSRS as a VMM issues them, and a whole save and restore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fpu_core.permission import get_permitted
from fpu_core.xfeature import XFEATURE_MASK_USER_DYNAMIC, XFEATURE_XTILE_DATA, format_mask
from host_agent.commands import (
    CreateVcpu,
    CreateVm,
    DeleteVm,
    OpenSession,
    RequestPermission,
    SetCpuid,
    SetMsrs,
    SetXcrs,
    SetXsave,
)
from host_agent.events import Growth
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.msrs_ioctl import msr_index_list
from host_agent.sessions import Opened
from host_agent.state import VcpuSide, VmRecord
from host_agent.vcpu_state import MsrsReply, get_msrs, get_xcrs, get_xsave, get_xsave2
from host_agent.vms import required_size
from tests.scenarios.block import ScenarioError
from tests.scenarios.guest_commands import MSRS
from tests.scenarios.operands import Words, mask, number
from tests.scenarios.world import HOUR_NS, World
from tests.scenarios.xsave_buffer import describe, edited

#: In which order a VMM loads what it saved. Facts about QEMU 8.1, Cloud Hypervisor, Firecracker, crosvm and the
#: kernel's own selftests (lib/x86/processor.c, vcpu_load_state).
RESTORE_ORDERS: Final = {
    "selftests": ("msrs", "xcrs", "xsave"),
    "qemu": ("xsave", "xcrs", "msrs"),
    "cloud-hypervisor": ("xsave", "xcrs", "msrs"),
    "firecracker": ("xsave", "xcrs", "msrs"),
    "crosvm": ("xcrs", "msrs", "xsave"),
}
_SAVED_MSRS: Final = tuple(MSRS.values())


# -- one ioctl each ----------------------------------------------------------------------------------------------------


def get_xsave_command(world: World, words: Words) -> None:
    """KVM_GET_XSAVE2 into a buffer that ``as=`` names; ``old`` is KVM_GET_XSAVE."""
    label, old, name = _label(words), words.flag("old"), words.key("as", "saved")
    words.end()
    world.lanes.user(f"{'KVM_GET_XSAVE' if old else 'KVM_GET_XSAVE2'} {label}".rstrip())
    read = get_xsave if old else get_xsave2
    buf = world.buffers[name] = read(world.state, world.vcpu_name(label or "0"))
    world.lanes.append(describe(world.vcpu(label or "0").vm.host.config, world.patterns, buf))


def edit(world: World, words: Words) -> None:
    """Change a buffer, or make another of it with ``as=``."""
    name = words.take("a buffer")
    target = words.key("as", name)
    buf = _buffer(world, name)
    config = world.vm().platform.host.config
    field, value = words.pair("FIELD=VALUE")
    while field:
        buf = edited(config, world.patterns, buf, field, value)
        field, value = words.pair("FIELD=VALUE") if words.more() else ("", "")
    words.end()
    world.buffers[target] = buf
    world.lanes.user(f"buffer {target}", describe(config, world.patterns, buf))


def set_xsave_command(world: World, words: Words) -> None:
    """KVM_SET_XSAVE of a buffer."""
    label, name = _label(words), words.take("a buffer") if words.peek() else "saved"
    words.end()
    world.lanes.user(f"KVM_SET_XSAVE {label} {name}".replace("  ", " "))
    line = world.lanes.count
    grown: Growth | None = world.apply(SetXsave(vcpu=world.vcpu_name(label or "0"), xsave=_buffer(world, name)))
    _tell_done(world, line, "= 0", grown)


def get_xcrs_command(world: World, words: Words) -> None:
    """KVM_GET_XCRS."""
    label = _label(words)
    words.end()
    world.lanes.user(f"KVM_GET_XCRS {label}".rstrip())
    found = get_xcrs(world.state, world.vcpu_name(label or "0"))
    world.lanes.append(" ".join(f"XCR{nr}={value:#x}" for nr, value in found) or "none")


def set_xcrs_command(world: World, words: Words) -> None:
    """KVM_SET_XCRS of XCR0, or of ``xcr=``; ``times=`` entries, ``flags=``."""
    label = _label(words) if len(words) > 1 else ""
    value = mask(words.take("a value"))
    nr, times, flags = number(words.key("xcr", "0")), number(words.key("times", "1")), number(words.key("flags", "0"))
    words.end()
    odd = (f" x {times}" if times != 1 else "") + (f" flags={flags}" if flags else "")
    world.lanes.user(f"KVM_SET_XCRS {label} XCR{nr}={value:#x}{odd}".replace("  ", " "))
    command = SetXcrs(vcpu=world.vcpu_name(label or "0"), xcrs=((nr, value),) * times, flags=flags)
    line = world.lanes.count
    _tell_done(world, line, "= 0", world.apply(command))


def get_msrs_command(world: World, words: Words) -> None:
    """KVM_GET_MSRS of the MSRs named, or of every one that is saved."""
    label, names = _label(words), []
    while words.peek():
        names.append(words.take("an MSR"))
    words.end()
    wanted = names or list(MSRS)
    world.lanes.user(f"KVM_GET_MSRS {label} {' '.join(wanted)}".replace("  ", " "))
    read = get_msrs(world.state, world.vcpu_name(label or "0"), tuple(_msr(name) for name in wanted))
    values = [f"{name}={format_mask(entry.value)}" for name, entry in zip(wanted, read, strict=False)]
    world.lanes.append(f"= {len(read)}: {' '.join(values)}" if values else "= 0")


def set_msrs_command(world: World, words: Words) -> None:
    """KVM_SET_MSRS in the order written."""
    label, entries = _label(words), []
    while words.more():
        entries.append(words.pair("MSR=VALUE"))
    words.end()
    text = " ".join(f"{name}={format_mask(mask(value)) if name in MSRS else value}" for name, value in entries)
    world.lanes.user(f"KVM_SET_MSRS {label} {text}".replace("  ", " "))
    values = tuple((_msr(name), mask(value)) for name, value in entries)
    line = world.lanes.count
    done: MsrsReply = world.apply(SetMsrs(vcpu=world.vcpu_name(label or "0"), entries=values))
    _tell_done(world, line, f"= {done.processed}", done.reallocated)


def msr_index_list_command(world: World, words: Words) -> None:
    """KVM_GET_MSR_INDEX_LIST, of the MSRs that hang on FPU state."""
    vm = world.vm(words.key("vm"))
    words.end()
    listed = msr_index_list(vm.kvm.caps)
    names = [name for name, index in MSRS.items() if index in listed]
    world.lanes.user("KVM_GET_MSR_INDEX_LIST", " ".join(names) or "none of XFD, XFD_ERR, XSS")


def required_size_command(world: World, words: Words) -> None:
    """KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2)."""
    vm = world.vm(words.take("a VM") if words.peek() else "")
    words.end()
    world.lanes.user("KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2)", f"{required_size(world.state, vm.name)} B")


def _label(words: Words) -> str:
    return words.take("a vCPU") if words.peek().rpartition("/")[2].isdecimal() else ""


def _msr(name: str) -> int:
    return MSRS[name] if name in MSRS else number(name)


def _buffer(world: World, name: str) -> bytes:
    if name not in world.buffers:
        raise ScenarioError(f"there is no buffer {name}: get-xsave makes one")
    return world.buffers[name]


def _tell_done(world: World, line: int, result: str, grown: Growth | None) -> None:
    """The result beside the call, which was line number ``line``; below what a trace has said since."""
    if world.lanes.count == line:
        world.lanes.append(result)
    else:
        world.lanes.user("  ...", result)
    if grown is not None:
        world.lanes.inner(f"fpstate {grown.old_bytes} -> {grown.new_bytes} B", "before anything was set")


# -- a whole save and restore ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Saved:
    """What a VMM keeps of a vCPU; the registers in a buffer of the required size."""

    xsave: bytes
    xcrs: tuple[tuple[int, int], ...]
    msrs: tuple[tuple[int, int], ...]


def save_restore(world: World, words: Words) -> None:
    """Save all state, destroy the VM, make it anew, load in the order of ``vmm=``, and compare.

    The VM has one vCPU, which leaves the guest first. A session it had is opened again.
    """
    label, vmm = _label(words), words.key("vmm", "selftests")
    words.end()
    if vmm not in RESTORE_ORDERS:
        raise ScenarioError(f"save-restore: expected vmm= one of {', '.join(RESTORE_ORDERS)}, got {vmm!r}")
    vm, name = world.state.vms[world.vcpu_name(label or "0").partition("/vcpus/")[0]], world.vcpu_name(label or "0")
    if len(vm.kvm.vcpus) != 1 or world.vcpu(label or "0").state is VcpuState.ENTERED:
        raise ScenarioError("save-restore: expected a VM of one vCPU, outside the guest")
    saved = _save(world, vm, name)
    session = world.sessions[-1] if world.sessions else None
    _make_again(world, vm, world.vcpu(label or "0").index)
    world.lanes.user(f"saved, new VM, restored in the order of {vmm}", " ".join(RESTORE_ORDERS[vmm]))
    for what in RESTORE_ORDERS[vmm]:
        _load(world, name, saved, what)
    again = _save(world, world.state.vms[vm.name], name)
    if again != saved:
        raise ScenarioError(f"save-restore: the state came back changed: {saved} before, {again} after")
    world.lanes.user("  saved again", "the same")
    if session is not None:
        opened: Opened = world.apply(
            OpenSession(client_name="vmm", vcpus=(name,), explicit=session.explicit, lease_ns=HOUR_NS)
        )
        world.sessions.append(opened.session)


def _save(world: World, vm: VmRecord, name: str) -> Saved:
    state = world.state
    xsave = get_xsave2(state, name).ljust(required_size(state, vm.name), b"\0")
    xcrs = tuple((entry.xcr, entry.value) for entry in get_xcrs(state, name))
    msrs = tuple((entry.index, entry.value) for entry in get_msrs(state, name, _SAVED_MSRS))
    return Saved(xsave, xcrs, msrs)


def _load(world: World, name: str, saved: Saved, what: str) -> None:
    grown: Growth | None
    match what:
        case "xsave":
            grown = world.apply(SetXsave(vcpu=name, xsave=saved.xsave))
        case "xcrs":
            grown = world.apply(SetXcrs(vcpu=name, xcrs=saved.xcrs))
        case _:
            done: MsrsReply = world.apply(SetMsrs(vcpu=name, entries=saved.msrs))
            assert done.processed == len(saved.msrs)
            grown = done.reallocated
    if grown is not None:
        sizes = f"fpstate {grown.old_bytes} -> {grown.new_bytes} B"
        world.lanes.inner(sizes, f"in KVM_SET_{what.upper()}")


def _make_again(world: World, vm: VmRecord, index: int) -> None:
    """The same VM: processor, kernel, policy, permission, CPUID; then the vCPU."""
    permitted = get_permitted(vm.kvm.leader, guest=True) & XFEATURE_MASK_USER_DYNAMIC
    task, cpuid = vm.kvm.vcpus[index].agent, vm.kvm.vcpus[index].cpuid
    world.apply(DeleteVm(vm=vm.name, force=True))
    world.machine.take_effects()
    world.apply(
        CreateVm(
            vm_id=vm.id,
            profile=vm.profile,
            cpuid_dump=vm.cpuid_dump,
            kernel_rules=vm.kernel_rules,
            allocation_policy=vm.allocation_policy,
            byte_limit=vm.kvm.account.limit_bytes,
            has_protected_state=vm.kvm.has_protected_state,
        )
    )
    world.watch()
    if permitted:
        world.apply(RequestPermission(vm=vm.name, feature=XFEATURE_XTILE_DATA, guest=True))
    if vm.kvm.cpuid_given:
        world.apply(SetCpuid(vm=vm.name, table=vm.kvm.cpuid.table))
    main = "main" if isinstance(task, VcpuSide) and task.task == "main" else ""
    world.apply(CreateVcpu(vm=vm.name, index=index, task=main))
    if not vm.kvm.cpuid_given and cpuid.table != vm.kvm.cpuid.table:
        world.apply(SetCpuid(vm=vm.name, vcpu=f"{vm.name}/vcpus/{index}", table=cpuid.table))
