"""Host tasks: the VMM's threads. Who runs on which modelled CPU, and who is in KVM_RUN."""

from __future__ import annotations

from dataclasses import dataclass

from fpu_core.cpu import Vector
from fpu_core.errors import Errno
from fpu_core.fpu import Fpu, TaskKind
from fpu_core.realloc import Reallocated
from fpu_core.sched import kernel_fpu_begin, kernel_fpu_end, switch_to
from fpu_core.task import (
    Signal,
    clone_task,
    create_worker,
    enable_shadow_stack,
    exec_task,
    exit_task,
    use_feature,
)
from fpu_core.xfeature import XFEATURE_SSE
from host_agent.commands import (
    CloneTask,
    CreateTask,
    ExecTask,
    ExitTask,
    KernelFpu,
    PreemptTask,
    ScheduleTask,
    UseFeature,
)
from host_agent.errors import Reason, Refused, invalid, limit_reached, no_memory
from host_agent.events import Growth
from host_agent.ids import check_id
from host_agent.kvm.run import vcpu_enter, vcpu_leave
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import HostState, TaskRecord, VmRecord
from host_agent.task_commands import CreateWorker, EnableShadowStack

#: What a kernel_fpu section leaves in the XMM registers, to be found by nobody.
KERNEL_BYTES = bytes([0xA5]) * 256


@dataclass(frozen=True, slots=True)
class FeatureUse:
    """What became of a task's use of a feature.

    ``signal`` is empty if it worked, else SIGILL, SIGSEGV, or a vector as ``#GP``; ``data`` is what was read back.
    """

    signal: str
    growth: Growth | None
    data: bytes = b""


# -- running -----------------------------------------------------------------------------------------------------------


def run_on_cpu(vm: VmRecord, task: TaskRecord) -> None:
    """Make sure the task runs, on its home CPU or else the first one that is online; whoever was there is preempted."""
    if task.fpu.cpu is None:
        home = vm.platform.cpus[task.home_cpu]
        switch_to(home if home.online else next(cpu for cpu in vm.platform.cpus if cpu.online), task.fpu)


def enter_guest(state: HostState, vm: VmRecord, vcpu: Vcpu, task: TaskRecord) -> None:
    """KVM_RUN on ``task``, a thread of the VM's process; a thread is in one KVM_RUN at a time.

    Another process gets EIO. Source: virt/kvm/kvm_main.c, kvm_vcpu_ioctl(), vcpu->kvm->mm != current->mm.
    """
    if task.fpu.leader is not vm.kvm.leader:
        text = f"task {task.id!r} is of another process: KVM_RUN returns EIO"
        raise Refused(Reason.KVM_ERRNO, text, errno=5, errnoName="EIO", call="KVM_RUN")
    if task.fpu.is_worker:
        raise invalid("task", "a task that goes to user mode", task.id)
    if task.vcpu is not None:
        raise Refused(
            Reason.TASK_BUSY,
            f"task {task.id!r} runs vCPU {task.vcpu.index}",
            task=f"{vm.name}/tasks/{task.id}",
            vcpu=state.vcpu_name(task.vcpu),
        )
    run_on_cpu(vm, task)
    failure = vcpu_enter(vcpu, task.fpu)
    if failure is not None:
        name = state.vcpu_name(vcpu)
        raise no_memory(f"the image of task {task.id!r}, KVM_RUN of {name!r}", failure, name)
    task.vcpu = vcpu


def leave_guest(vm: VmRecord, vcpu: Vcpu) -> None:
    """KVM_RUN returns, with nothing requested."""
    task = runner(vm, vcpu)
    run_on_cpu(vm, task)
    vcpu_leave(vcpu)
    task.vcpu = None


def runner(vm: VmRecord, vcpu: Vcpu) -> TaskRecord:
    """The task in whose KVM_RUN ``vcpu`` is."""
    assert vcpu.fpu is not None
    return vm.tasks[vcpu.fpu.name.rpartition("/")[2]]


# -- life --------------------------------------------------------------------------------------------------------------


def add_task(state: HostState, vm: VmRecord, task_id: str, fpu: Fpu) -> TaskRecord:
    """Enter a task into the VM's books; its home CPU goes round."""
    if len(vm.tasks) >= state.config.max_tasks_per_vm:
        raise limit_reached(f"tasks of {vm.name}", "tasks_per_vm_max", state.config.max_tasks_per_vm)
    home_cpu = len(vm.tasks) % len(vm.platform.cpus)
    task = TaskRecord(task_id, state.next_id("task"), fpu, home_cpu)
    if fpu.cpu is None:
        fpu.need_load = True  # a task that has not run yet has its init state in memory
    vm.tasks[task_id] = task
    return task


def create_task(state: HostState, command: CreateTask) -> tuple[VmRecord, TaskRecord]:
    """A new thread of the VM's process, cloned from its main thread."""
    vm = state.vm(command.vm)
    return vm, thread_of(state, vm, command.task_id)


def thread_of(state: HostState, vm: VmRecord, task_id: str) -> TaskRecord:
    """A thread that starts with init registers: nothing of the main thread's is handed down."""
    _check_new_task(vm, task_id)
    fpu = Fpu(vm.platform.host, f"{vm.name}/tasks/{task_id}", account=vm.kvm.account, leader=vm.kvm.leader)
    return add_task(state, vm, task_id, fpu)


def _check_new_task(vm: VmRecord, task_id: str) -> None:
    check_id("task_id", task_id)
    if task_id in vm.tasks:
        raise Refused(Reason.TASK_EXISTS, f"task {task_id!r} exists", task=f"{vm.name}/tasks/{task_id}")


def clone(state: HostState, command: CloneTask) -> tuple[VmRecord, TaskRecord]:
    """clone(2): the child starts with the parent's registers, dynamic state in its init state."""
    vm, parent = state.task(command.task)
    _check_new_task(vm, command.task_id)
    user_mode(vm, parent)
    run_on_cpu(vm, parent)
    fpu = clone_task(parent.fpu, f"{vm.name}/tasks/{command.task_id}", thread=command.thread, ssp=command.ssp)
    return vm, add_task(state, vm, command.task_id, fpu)


def create_worker_task(state: HostState, command: CreateWorker) -> tuple[VmRecord, TaskRecord]:
    """A kernel thread that works for the VM, or a worker thread of its process that never leaves the kernel."""
    vm = state.vm(command.vm)
    _check_new_task(vm, command.task_id)
    kind = TaskKind.USER_WORKER if command.user_worker else TaskKind.KTHREAD
    leader = vm.kvm.leader if command.user_worker else None
    name = f"{vm.name}/tasks/{command.task_id}"
    fpu = create_worker(vm.platform.host, name, kind, account=vm.kvm.account, leader=leader)
    return vm, add_task(state, vm, command.task_id, fpu)


def enable_shadow_stack_of(state: HostState, command: EnableShadowStack) -> Errno:
    """EOPNOTSUPP where the host has no user shadow stacks."""
    vm, task = state.task(command.task)
    user_mode(vm, task)
    if not 0 <= command.ssp < 1 << 64:
        raise invalid("ssp", "a 64-bit address", command.ssp)
    run_on_cpu(vm, task)
    return enable_shadow_stack(task.fpu, command.ssp)


def check_execute(state: HostState, command: ExecTask) -> tuple[VmRecord, TaskRecord]:
    """Refuse an execve(2) that cannot be; nothing changes."""
    vm, task = state.task(command.task)
    if task.fpu.leader is not task.fpu:
        raise invalid("name", "the main thread of its process, which another thread would become by execve", task.id)
    for each in vm.tasks.values():
        if each.fpu.leader is task.fpu:
            _outside(vm, each)
    return vm, task


def execute(state: HostState, vm: VmRecord, task: TaskRecord) -> None:
    """execve(2) by the main thread of a process: its other threads end. Source: fs/exec.c, de_thread()."""
    for each in [each for each in vm.tasks.values() if each.fpu.leader is task.fpu and each is not task]:
        end_task(state, vm, each)
    exec_task(task.fpu)
    task.frames.clear()
    state.permissions[vm.name].forget(task.fpu)


def exit_one(state: HostState, command: ExitTask) -> None:
    """The task ends. The main thread ends with its VM only."""
    vm, task = state.task(command.task)
    if task.fpu is vm.kvm.leader:
        raise invalid("name", "a task other than main, which holds the VM's permissions", task.id)
    _outside(vm, task)
    end_task(state, vm, task)


def end_task(state: HostState, vm: VmRecord, task: TaskRecord) -> None:
    """Take the task off its CPU and give its memory back."""
    exit_task(task.fpu)
    for cpu in vm.platform.cpus:
        if cpu.owner is task.fpu:
            cpu.owner = None
    del vm.tasks[task.id]
    if vm.name in state.permissions:
        state.permissions[vm.name].forget(task.fpu)


def schedule(state: HostState, command: ScheduleTask) -> tuple[VmRecord, TaskRecord]:
    """The task runs on ``cpu`` from now on, and there now."""
    vm, task = state.task(command.task)
    move_to_cpu(vm, task, command.cpu)
    return vm, task


def move_to_cpu(vm: VmRecord, task: TaskRecord, cpu: int) -> None:
    """Migrate the task; what was in the registers goes by way of memory."""
    if not 0 <= cpu < len(vm.platform.cpus):
        raise invalid("cpu", f"0..{len(vm.platform.cpus) - 1}", cpu)
    if not vm.platform.cpus[cpu].online:
        raise invalid("cpu", "a CPU that is online", cpu)
    task.home_cpu = cpu
    switch_to(vm.platform.cpus[cpu], task.fpu)


def preempt(state: HostState, command: PreemptTask) -> tuple[VmRecord, TaskRecord]:
    """The task loses its CPU, wherever it is in its own code or in KVM_RUN."""
    vm, task = state.task(command.task)
    cpu = task.fpu.cpu
    if cpu is None:
        raise Refused(Reason.TASK_NOT_RUNNING, f"task {task.id!r} is on no CPU", task=command.task)
    switch_to(cpu, None)
    return vm, task


def use(state: HostState, command: UseFeature) -> FeatureUse:
    """User code uses a feature: #NM grows the task's own container, or ends in a signal."""
    vm, task = state.task(command.task)
    user_mode(vm, task)
    config = state.platform_config(vm)
    usable = config.user.max_features | config.legacy_features
    if command.feature < 0 or not usable >> command.feature & 1:
        raise invalid("feature", f"a bit of {usable:#x}", command.feature)
    state.act_for(vm.name)
    size = config.table.size_bytes(command.feature)
    if command.offset < 0 or command.length < 0 or command.offset + command.length > size:
        raise invalid("length", f"bytes that end at or before byte {size} of the component", command.length)
    run_on_cpu(vm, task)
    state.act_for(vm.name)
    result = use_feature(task.fpu, command.feature, command.offset, command.data)
    match result:
        case Signal():
            return FeatureUse(result.value, None)
        case Vector():
            return FeatureUse(f"#{result.name}", None)
    growth = None
    if isinstance(result, Reallocated):
        growth = Growth(result.old_size_bytes, result.new_size_bytes, task.fpu.fpstate.xfeatures)
    return FeatureUse("", growth, _read_back(task, command))


def _read_back(task: TaskRecord, command: UseFeature) -> bytes:
    cpu = task.fpu.cpu
    assert cpu is not None
    return cpu.read_register(command.feature)[command.offset : command.offset + command.length]


def kernel_fpu(state: HostState, command: KernelFpu) -> tuple[VmRecord, TaskRecord]:
    """The kernel uses the FPU on the CPU where the task runs: one section, which nothing can interrupt.

    It leaves its own bytes in the registers. They are nobody's, and the task's come back before it goes on.
    """
    vm, task = state.task(command.task)
    run_on_cpu(vm, task)
    cpu = task.fpu.cpu
    assert cpu is not None
    kernel_fpu_begin(cpu)
    cpu.write_register(XFEATURE_SSE, 0, KERNEL_BYTES)
    kernel_fpu_end(cpu)
    return vm, task


def user_mode(vm: VmRecord, task: TaskRecord) -> None:
    """Refuse a task that is not in user mode now, or never is."""
    if task.fpu.is_worker:
        raise invalid("task", "a task that goes to user mode", task.id)
    _outside(vm, task)


def _outside(vm: VmRecord, task: TaskRecord) -> None:
    if task.vcpu is not None:
        text = f"task {task.id!r} is in KVM_RUN of vCPU {task.vcpu.index}"
        raise Refused(
            Reason.TASK_BUSY, text, task=f"{vm.name}/tasks/{task.id}", vcpu=f"{vm.name}/vcpus/{task.vcpu.index}"
        )
