"""Commands that make, change and break a host: VMs, vCPUs, permissions, limits, faults, time."""

from __future__ import annotations

import errno
from dataclasses import replace

from fault_lab.injection.action import FailErrno
from fault_lab.injection.attributes import FaultAttributes
from fault_lab.injection.hit import Selector
from fpu_core.alloc import FAULT_POINTS, POINT_GUEST_ALLOC, POINT_REALLOC_ALLOC, POINT_TASK_REALLOC_ALLOC
from fpu_core.cpuid import _CAP_BITS, builtin_profile, format_cpuid_dump
from fpu_core.xfeature import format_mask
from host_agent.commands import (
    ArmFault,
    CreateVcpu,
    CreateVm,
    DeleteVcpu,
    DeleteVm,
    RequestPermission,
    ResetFaults,
    ResetVm,
    SetHostLimit,
    UpdateVm,
)
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import VmRecord
from tests.scenarios.block import ScenarioError
from tests.scenarios.operands import Words, duration_ns, feature, format_ns, number
from tests.scenarios.world import PREEMPT_POINTS, PlannedPreemption, World

_POINTS = {"guest": POINT_GUEST_ALLOC, "realloc": POINT_REALLOC_ALLOC, "task": POINT_TASK_REALLOC_ALLOC}
assert set(_POINTS.values()) == set(FAULT_POINTS)


def create_vm(world: World, words: Words) -> None:
    """A VM on a built-in processor; ``without=`` takes capabilities away; ``protected``: has_protected_state."""
    vm_id, limit, without = words.take("a name"), words.key("limit"), words.key("without")
    profile = words.key("profile", world.state.config.default_profile)
    protected = words.flag("protected")
    policy = words.key("policy", world.policy)
    command = CreateVm(
        vm_id=vm_id,
        profile="" if without else profile,
        cpuid_dump=_dump_without(profile, without.split(",")) if without else "",
        kernel_rules=words.key("rules"),
        allocation_policy=policy,
        byte_limit=number(limit) if limit else None,
        has_protected_state=protected,
    )
    words.end()
    vm: VmRecord = world.apply(command)
    world.watch()
    config = vm.platform.host.config
    lacks = f" without {without}" if without else ""
    rules = f"kernel rules {config.rules.name}"
    by = f", {policy}" if policy != "on_swap" else ""
    world.lanes.host(f"vm {vm_id}: {profile}{lacks}, {rules}", f"XCR0 {config.user.max_features:#x}{by}")


def _dump_without(profile_name: str, capabilities: list[str]) -> str:
    """The ``cpuid -r`` dump of a built-in processor with some capability flags cleared."""
    profile = builtin_profile(profile_name)
    leaves = dict(profile.leaves)
    for name in capabilities:
        if name not in _CAP_BITS:
            raise ScenarioError(f"create-vm: expected without= some of {', '.join(_CAP_BITS)}, got {name!r}")
        leaf, subleaf, register, bit = _CAP_BITS[name]
        regs = leaves[leaf, subleaf]
        leaves[leaf, subleaf] = regs._replace(**{register: getattr(regs, register) & ~(1 << bit)})
    return format_cpuid_dump(replace(profile, leaves=leaves))


def delete_vm(world: World, words: Words) -> None:
    """Delete a VM and, with ``force``, what is in it."""
    vm_id, force = words.take("a name"), words.flag("force")
    words.end()
    world.apply(DeleteVm(vm=f"vms/{vm_id}", force=force))
    world.lanes.host(f"vm {vm_id} deleted")
    world.tell_effects()


def reset_vm(world: World, words: Words) -> None:
    """RESET every vCPU of a VM."""
    vm_id = words.take("a name")
    words.end()
    world.lanes.user(f"RESET vm {vm_id}")
    world.apply(ResetVm(vm=f"vms/{vm_id}"))
    world.tell_effects()


def permit(world: World, words: Words) -> None:
    """arch_prctl(2) of the VM's process: ARCH_REQ_XCOMP_GUEST_PERM or ARCH_REQ_XCOMP_PERM."""
    whose, nr, vm = words.take("guest or host"), feature(words.take("a feature")), world.vm(words.key("vm"))
    if whose not in ("guest", "host"):
        raise ScenarioError(f"permit: expected guest or host, got {whose!r}")
    words.end()
    name = "ARCH_REQ_XCOMP_GUEST_PERM" if whose == "guest" else "ARCH_REQ_XCOMP_PERM"
    world.lanes.user(f"arch_prctl({name}, {nr})")
    permitted: int = world.apply(RequestPermission(vm=vm.name, feature=nr, guest=whose == "guest"))
    world.lanes.append(f"= 0, permitted {permitted:#x}")


def create_vcpu(world: World, words: Words) -> None:
    """KVM_CREATE_VCPU. ``task=`` names the thread that will run it."""
    index, vm = number(words.take("an index")), world.vm(words.key("vm"))
    task, confidential = words.key("task"), words.flag("confidential")
    words.end()
    world.lanes.user(f"KVM_CREATE_VCPU {index}")
    line = world.lanes.count
    vcpu: Vcpu = world.apply(CreateVcpu(vm=vm.name, index=index, task=task, confidential=confidential))
    fpstate = vcpu.fpstate
    text = f"fpstate {fpstate.size} B, XCR0={vcpu.xcr0:#x} XFD={format_mask(fpstate.xfd)}"
    if world.lanes.count == line:
        world.lanes.append(text)
    else:
        world.lanes.host(f"vcpu {vm.id}/{index}", text)


def delete_vcpu(world: World, words: Words) -> None:
    """Remove a vCPU."""
    label = words.take("a vCPU")
    words.end()
    world.lanes.user(f"delete vcpu {label}")
    world.apply(DeleteVcpu(vcpu=world.vcpu_name(label)))
    world.tell_effects()


def fail_allocation(world: World, words: Words) -> None:
    """Make allocations fail: the ``nth=`` from now on, or the next ``times=``."""
    if words.flag("off"):
        words.end()
        world.apply(ResetFaults())
        world.lanes.user("faults disarmed")
        return
    point, nth, times = words.key("point", "realloc"), words.key("nth"), words.key("times")
    vm, vcpu = words.key("vm"), words.key("vcpu")
    words.end()
    if point not in _POINTS:
        raise ScenarioError(f"fail-allocation: expected point= one of {', '.join(_POINTS)}, got {point!r}")
    attributes = FaultAttributes(fail_nth=number(nth or "0"), times=number(times or "-1"))
    command = ArmFault(
        point=_POINTS[point],
        action=FailErrno(errno.ENOMEM),
        selector=Selector(vm=f"vms/{vm}" if vm else "", vcpu=world.vcpu_name(vcpu) if vcpu else ""),
        attributes=attributes,
    )
    world.apply(command)
    when = f"number {nth} from now" if nth else (f"the next {times}" if times else "every one")
    scope = f" of {vcpu or vm}" if vcpu or vm else ""
    world.lanes.user(f"{_POINTS[point]} returns NULL", f"{when}{scope}")


def limit(world: World, words: Words) -> None:
    """The byte limit of a VM or of the host."""
    scope, text, vm = words.take("vm or host"), words.take("bytes or none"), words.key("vm")
    words.end()
    value = None if text == "none" else number(text)
    if scope == "host":
        world.apply(SetHostLimit(byte_limit=value))
    else:
        world.apply(UpdateVm(vm=world.vm(vm).name, fields=("byte_limit",), byte_limit=value))
    world.lanes.user(f"limit of the {scope}", "none" if value is None else f"{value} B")


def advance(world: World, words: Words) -> None:
    """Time passes."""
    duration = duration_ns(words.take("a time"))
    words.end()
    world.lanes.user(f"{format_ns(duration)} pass")
    world.advance(duration)


def preempt_at(world: World, words: Words) -> None:
    """Preempt whoever comes to a place in the middle of a growth next."""
    where, kernel_fpu = words.take(" or ".join(PREEMPT_POINTS)), words.flag("kernel-fpu")
    words.end()
    if where not in PREEMPT_POINTS:
        raise ScenarioError(f"preempt-at: expected {' or '.join(PREEMPT_POINTS)}, got {where!r}")
    world.planned = PlannedPreemption(where, kernel_fpu)
    world.lanes.user("planned: preemption at", PREEMPT_POINTS[where])


def trace(world: World, words: Words) -> None:
    """Print hardware operations and allocations. While that is on, saves and restores of empty state are not elided."""
    switch = words.take("on or off")
    words.end()
    if switch not in ("on", "off"):
        raise ScenarioError(f"trace: expected on or off, got {switch!r}")
    world.tracing = switch == "on"
    world.watch()


def replay(world: World, words: Words) -> None:
    """Replay the log so far; the runner does so at the end of every file."""
    words.end()
    world.lanes.user(f"replay of {world.replay()} commands", "identical digest")
