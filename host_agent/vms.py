"""VMs: create, change, permissions, CPUID, reset, delete."""

from __future__ import annotations

from typing import Final

from fpu_core.config import boot
from fpu_core.cpu import Cpu
from fpu_core.cpuid import builtin_profile, parse_cpuid_dump
from fpu_core.errors import Errno, FieldError
from fpu_core.fpu import Fpu, FpuHost
from fpu_core.invariants import PermissionHistory
from fpu_core.permission import get_permitted, request_permission
from fpu_core.rules import KERNEL_RULES
from host_agent.commands import CreateVm, DeleteVm, ExecTask, RequestPermission, ResetVm, SetCpuid, UpdateVm
from host_agent.directives import finish_pending, issue_directive
from host_agent.errors import Reason, Refused, invalid, kvm_errno, limit_reached, out_of_memory
from host_agent.events import GoneOutcome
from host_agent.exit_desk import cancel_exit
from host_agent.exits import ExitResult
from host_agent.faults import check_ioctl
from host_agent.ids import check_id
from host_agent.kvm.cpuid import CpuidTable, GuestCpuid
from host_agent.kvm.lifecycle import VcpuState
from host_agent.kvm.policy import allocation_policy
from host_agent.kvm.set_cpuid import set_cpuid2, set_vm_cpuid
from host_agent.kvm.vcpu import KvmVm, reset_vcpu
from host_agent.state import HostState, Platform, TaskRecord, VmRecord, vm_account
from host_agent.tasks import add_task, check_execute, end_task, leave_guest
from host_agent.tasks import execute as execute_program
from host_agent.vcpus import remove_vcpu

#: Processors from dumps that are kept while no VM uses them.
IDLE_PROCESSORS_MAX: Final = 16


def create_vm(state: HostState, command: CreateVm) -> VmRecord:
    """Make a VM with its main thread. The processor is a built-in profile or a dump, never both."""
    check_id("vm_id", command.vm_id)
    name = f"vms/{command.vm_id}"
    if name in state.vms or name in state.coming:
        raise Refused(Reason.VM_EXISTS, f"VM {name!r} exists", vm=name)
    if state.draining:
        raise Refused(Reason.HOST_DRAINING, "the host is draining and takes no new VM")
    if len(state.vms) >= state.config.max_vms:
        raise limit_reached("VMs of the host", "vms_max", state.config.max_vms)
    if command.byte_limit is not None and command.byte_limit < 0:
        raise invalid("vm.byte_limit", "0 or more bytes", command.byte_limit)
    vm = make_vm(state, command)
    enter_vm(state, vm)
    return vm


def make_vm(state: HostState, command: CreateVm) -> VmRecord:
    """The VM of a command, with its main thread, in nobody's books yet."""
    name = f"vms/{command.vm_id}"
    policy = allocation_policy(command.allocation_policy)
    profile, dump = _processor(state, command)
    state.act_for(name)
    if state.fault_errno("kvm.vm.alloc"):
        raise out_of_memory(f"VM {name!r}")
    platform = _platform(state, command, profile, dump)
    account = vm_account(state, command.vm_id, command.byte_limit)
    leader = Fpu(platform.host, f"{name}/tasks/main", account=account)
    vm = VmRecord(
        id=command.vm_id,
        uid=state.next_id("vm"),
        profile=profile,
        kernel_rules=platform.host.config.rules.name,
        allocation_policy=command.allocation_policy,
        platform=platform,
        kvm=KvmVm(platform.host, account, leader, policy, has_protected_state=command.has_protected_state),
        owner_pid=command.owner_pid,
        owner_name=command.owner_name,
        labels=dict(command.labels),
        revision=state.revision,
        cpuid_dump=dump,
    )
    add_task(state, vm, "main", leader)
    return vm


def enter_vm(state: HostState, vm: VmRecord) -> None:
    """From now on it is one of the host's."""
    state.vms[vm.name] = vm
    vm.revision = state.revision
    rules = vm.platform.host.config.rules
    state.permissions[vm.name] = PermissionHistory(rules.perm_loses_supervisor, rules.user_supported)


def _processor(state: HostState, command: CreateVm) -> tuple[str, str]:
    """Return (profile name, dump), one of them empty: what the command says, or the host's default."""
    if command.profile and command.cpuid_dump:
        raise invalid("vm.cpuid_dump", "nothing where profile is set", "both")
    if command.profile or command.cpuid_dump:
        return command.profile, command.cpuid_dump
    if state.config.default_cpuid_dump:
        return "", state.config.default_cpuid_dump
    return state.config.default_profile, ""


def _platform(state: HostState, command: CreateVm, profile_name: str, dump: str) -> Platform:
    """The processor and kernel of a VM; VMs with the same share its CPUs."""
    rules_name = command.kernel_rules or state.config.default_kernel_rules
    if rules_name not in KERNEL_RULES:
        raise invalid("vm.kernel_rules", f"one of {', '.join(KERNEL_RULES)}", rules_name)
    source = dump or profile_name
    found = state.platforms.get((source, rules_name))
    if found is not None:
        return found
    try:
        profile = parse_cpuid_dump(dump, name="dump") if dump else builtin_profile(source)
    except FieldError as error:
        field = "vm.cpuid_dump" if dump else "vm.profile"
        raise invalid(field, error.expected, error.got) from error
    if dump:
        _forget_processors(state)
    host = FpuHost(boot(profile, KERNEL_RULES[rules_name]), state.allocator, state.tracer, may_grow=state.may_grow)
    platform = Platform(host, [Cpu(nr, host.config, state.tracer) for nr in range(state.config.cpus)])
    state.platforms[source, rules_name] = platform
    return platform


def _forget_processors(state: HostState) -> None:
    """Make room for one more dump's, as a caller can think up any number: the oldest that no VM uses any more go."""
    used = {id(vm.platform) for vm in state.vms.values()}
    idle = [key for key, platform in state.platforms.items() if "eax=" in key[0] and id(platform) not in used]
    for key in idle[: max(0, len(idle) - IDLE_PROCESSORS_MAX + 1)]:
        del state.platforms[key]


def update_vm(state: HostState, command: UpdateVm) -> VmRecord:
    """Change the named fields, all or none."""
    vm = state.vm(command.vm)
    unknown = [field for field in command.fields if field not in ("byte_limit", "owner", "labels")]
    if unknown or not command.fields:
        raise invalid("update_mask", "paths out of: byte_limit, owner, labels", ",".join(command.fields))
    if command.etag and command.etag != vm_etag(vm):
        raise Refused(Reason.ETAG_MISMATCH, f"{vm.name} has changed", name=vm.name, etag=vm_etag(vm))
    if "byte_limit" in command.fields:
        if command.byte_limit is not None and command.byte_limit < 0:
            raise invalid("vm.byte_limit", "0 or more bytes", command.byte_limit)
        vm.kvm.account.set_limit(command.byte_limit)
    if "owner" in command.fields:
        vm.owner_pid, vm.owner_name = command.owner_pid, command.owner_name
    if "labels" in command.fields:
        vm.labels = dict(command.labels)
    vm.revision = state.revision
    return vm


def vm_etag(vm: VmRecord) -> str:
    """Changes whenever the VM's own fields do."""
    return f'"{vm.revision}"'


def delete_vm(state: HostState, command: DeleteVm) -> None:
    """Stop and remove every vCPU, end every task, give all memory back."""
    vm = state.vm(command.vm)
    if vm.kvm.vcpus and not command.force:
        raise Refused(
            Reason.VM_NOT_EMPTY, f"{vm.name} has {len(vm.kvm.vcpus)} vCPUs", vm=vm.name, vcpus=len(vm.kvm.vcpus)
        )
    for vcpu in list(vm.kvm.vcpus.values()):
        remove_vcpu(state, vcpu, "the VM was deleted")
    for task in list(vm.tasks.values()):
        end_task(state, vm, task)
    for control in [each for each in state.controls.values() if each.scope == vm.name]:
        del state.controls[control.name]  # a later VM of the name is another
    del state.vms[vm.name]
    state.permissions.pop(vm.name, None)


def reset_vm(state: HostState, command: ResetVm) -> VmRecord:
    """RESET every vCPU: XCR0 = 1, XFD = 0, registers in init state; containers keep their size."""
    vm = state.vm(command.vm)
    reset_vcpus(state, vm, "the VM was reset")
    return vm


def reset_vcpus(state: HostState, vm: VmRecord, why: str) -> None:
    """RESET what can be: a broken vCPU stays broken."""
    for vcpu in vm.kvm.vcpus.values():
        if vcpu.state is VcpuState.BROKEN:
            continue
        directive = issue_directive(state, vcpu, "RESET", why)
        cancel_exit(state, vcpu, directive, why, ExitResult.VM_RESET)
        if vcpu.state is VcpuState.ENTERED:
            leave_guest(vm, vcpu)
        if vcpu.agent is not None:
            finish_pending(state, vcpu, GoneOutcome(directive))
        reset_vcpu(vcpu)
    hide_features_of(vm)
    vm.revision = state.revision


def hide_features_of(vm: VmRecord) -> None:
    """Take what was to be hidden from the CPUID of the VM and of each vCPU: after a reset none has run yet.

    A vCPU that RESET left alone, since it is broken, keeps its own. What the VMM sets afterwards is what it sets.
    """
    hidden, vm.hidden_at_reset = vm.hidden_at_reset, 0
    if hidden:
        vm.kvm.hide(hidden)


def execute(state: HostState, command: ExecTask) -> tuple[VmRecord, TaskRecord]:
    """execve(2). By the VMM's own main thread it ends the vCPUs: KVM's file descriptors are close-on-exec.

    Source: virt/kvm/kvm_main.c, create_vcpu_fd() and kvm_dev_ioctl_create_vm(), O_CLOEXEC.
    """
    vm, task = check_execute(state, command)
    if task.fpu is vm.kvm.leader:
        for vcpu in list(vm.kvm.vcpus.values()):
            remove_vcpu(state, vcpu, "its VMM executed another program")
    execute_program(state, vm, task)
    return vm, task


def request_vm_permission(state: HostState, command: RequestPermission) -> int:
    """arch_prctl of the VM's process; returns what is permitted afterwards, refuses with the kernel's errno."""
    vm = state.vm(command.vm)
    errno = request_permission(vm.kvm.leader, command.feature, guest=command.guest)
    if errno is not Errno.OK:
        raise kvm_errno(errno, f"arch_prctl for feature {command.feature}")
    vm.revision = state.revision
    return get_permitted(vm.kvm.leader, guest=command.guest)


def set_cpuid(state: HostState, command: SetCpuid) -> VmRecord:
    """KVM_SET_CPUID2 of one vCPU, or of every one and those to come: all of them, or none and the kernel's errno.

    Whether anything is allocated here, and so can fail, is the VM's policy's business; a failure changes no CPUID.
    """
    vm = state.vm(command.vm)
    cpuid = _guest_cpuid(vm.kvm, command)
    vcpu = state.vcpu(command.vcpu) if command.vcpu else None
    state.act_for(vm.name, command.vcpu)
    check_ioctl(state, "kvm.set_cpuid.copy", "KVM_SET_CPUID2")
    errno = set_cpuid2(vcpu, cpuid) if vcpu is not None else set_vm_cpuid(vm.kvm, cpuid)
    if errno is not Errno.OK:
        raise kvm_errno(errno, "KVM_SET_CPUID2")
    vm.revision = state.revision
    return vm


def _guest_cpuid(kvm: KvmVm, command: SetCpuid) -> GuestCpuid:
    """What a command gives: its own table, or all the host supports cut down to a mask."""
    if command.table is not None:
        return GuestCpuid(command.table, kvm.caps)
    mask = command.xcr0_mask
    if mask is None:
        raise invalid("cpuid", "xcr0_mask or table", "none")
    if mask & ~kvm.supported_xcr0:
        raise invalid("xcr0_mask", f"a subset of {kvm.supported_xcr0:#x}", hex(mask))
    return kvm.masked_cpuid(mask)


def get_supported_cpuid(state: HostState, name: str) -> CpuidTable:
    """KVM_GET_SUPPORTED_CPUID as the VM's process gets it now: what it has no permission for is hidden in leaf 0xD."""
    kvm = state.vm(name).kvm
    return kvm.supported_cpuid(kvm.permitted_xcr0)


def required_size(state: HostState, name: str) -> int:
    """KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2): the larger of 4,096 and the standard size of what is permitted, in bytes."""
    vm = state.vm(name)
    return max(4096, vm.platform.host.config.user_size(vm.kvm.permitted_xcr0))
