"""One guest event on one vCPU: make sure it is entered where it must be, run the intercept, say what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fpu_core.sched import switch_to
from fpu_core.tile import TILE_BYTES, TILE_COUNT, TILECFG_BYTES, TileOp
from fpu_core.xsave_insn import XSAVE_ALIGN
from host_agent.directives import issue_directive
from host_agent.errors import Reason, Refused, invalid
from host_agent.events import (
    Directive,
    DoneOutcome,
    Enter,
    EventKind,
    Growth,
    Hlt,
    Init,
    InjectOutcome,
    Intercepts,
    Leave,
    Nm,
    OutcomeKind,
    PendingOutcome,
    Preempt,
    Rdmsr,
    RegisterRead,
    RegisterWrite,
    Tile,
    WriteCr4,
    Wrmsr,
    XfdSync,
    Xgetbv,
    Xsave,
    Xsetbv,
)
from host_agent.exit_desk import cancel_exit, open_exit
from host_agent.exits import ExitResult
from host_agent.kvm import intercept
from host_agent.kvm.lifecycle import VcpuEvent, VcpuState
from host_agent.kvm.outcome import DONE, Done, Inject, Intercepted, PendingWrite, ReallocExit
from host_agent.kvm.vcpu import Vcpu, clear_cr4, init_vcpu
from host_agent.state import HostState, TaskRecord, VmRecord
from host_agent.tasks import enter_guest, leave_guest, move_to_cpu, run_on_cpu, runner, thread_of


def run_event(state: HostState, vcpu: Vcpu, seq: int, kind: EventKind, *, explicit: bool) -> OutcomeKind:
    """Execute event ``seq``; raises ``Refused`` for a mistake, after which nothing has changed."""
    vm_name = vcpu.vm.account.name
    vm = state.vms[vm_name]
    state.act_for(vm_name, state.vcpu_name(vcpu), type(kind).__name__)
    execute = _INSTRUCTIONS.get(type(kind))
    if execute is None:
        return _no_instruction(state, vm, vcpu, kind, explicit=explicit)
    if type(kind) in _CHECKED:
        check_operands(kind)
    if vcpu.state is not VcpuState.ENTERED:
        _enter_implicitly(state, vm, vcpu, explicit=explicit)
    task = runner(vm, vcpu)
    if task.fpu.cpu is None:
        run_on_cpu(vm, task)
    return _executed(state, vcpu, seq, task, execute(vcpu, kind))


def _no_instruction(state: HostState, vm: VmRecord, vcpu: Vcpu, kind: EventKind, *, explicit: bool) -> OutcomeKind:
    match kind:
        case Enter():
            return _enter(state, vm, vcpu, kind)
        case Leave():
            _need_entered(state, vcpu)
            leave_guest(vm, vcpu)
            return done_outcome(vcpu, None)
        case Preempt():
            return _preempt(state, vm, vcpu, kind)
        case Init():
            return _init(state, vm, vcpu)
        case Hlt():
            vcpu.has_run = True  # how else could it execute HLT
            if vcpu.state is VcpuState.ENTERED and not explicit:
                leave_guest(vm, vcpu)
            return done_outcome(vcpu, DONE)
        case _:
            raise AssertionError(f"{kind} is no event")


def _executed(state: HostState, vcpu: Vcpu, seq: int, task: TaskRecord, result: Intercepted) -> OutcomeKind:
    """What became of an instruction that ``task`` ran."""
    if isinstance(result, ReallocExit):
        task.vcpu = None
        record = open_exit(state, vcpu, seq, result)
        return PendingOutcome(record.name, record.generation)
    if isinstance(result, Inject):
        return InjectOutcome(result.vector, result.error_code, result.xfd_err)
    return done_outcome(vcpu, result)


def _xfd_sync(vcpu: Vcpu, xfd: int) -> Done:
    try:
        return intercept.handle_xfd_sync(vcpu, xfd=xfd)
    except intercept.XfdSyncNeedsGrowthError as error:
        raise Refused(
            Reason.XFD_SYNC_NEEDS_GROWTH,
            str(error),
            vcpu=f"{vcpu.vm.account.name}/vcpus/{vcpu.index}",
            xfd=hex(error.xfd),
            xfeatures=hex(error.missing),
        ) from error


#: Each instruction, and how it executes; each function is given its own kind.
_INSTRUCTIONS: Final[dict[type, Callable[[Vcpu, Any], Intercepted]]] = {
    Xsetbv: lambda vcpu, e: intercept.handle_xsetbv(vcpu, index=e.index, value=e.value, cpl=e.cpl),
    Wrmsr: lambda vcpu, e: intercept.handle_wrmsr(vcpu, msr=e.msr, value=e.value),
    Rdmsr: lambda vcpu, e: intercept.handle_rdmsr(vcpu, msr=e.msr),
    Nm: lambda vcpu, e: intercept.handle_nm(vcpu, cr0_ts=e.cr0_ts),
    RegisterWrite: lambda vcpu, e: intercept.write_register(vcpu, feature=e.feature, offset=e.offset, data=e.data),
    RegisterRead: lambda vcpu, e: intercept.read_register(vcpu, feature=e.feature, offset=e.offset, length=e.length),
    Tile: lambda vcpu, e: intercept.execute_tile(vcpu, op=e.op, tile=e.tile, memory=e.memory),
    Xsave: lambda vcpu, e: intercept.execute_xsave(
        vcpu, insn=e.insn, rfbm=e.rfbm, memory=e.memory, address=e.misaligned_by
    ),
    XfdSync: lambda vcpu, e: _xfd_sync(vcpu, e.xfd),
    Xgetbv: lambda vcpu, e: intercept.handle_xgetbv(vcpu, index=e.index),
    WriteCr4: lambda vcpu, e: intercept.handle_write_cr4(vcpu, value=e.value),
}


#: Those with operands that no processor would have seen.
_CHECKED: Final = frozenset({Tile, Xsave, Xsetbv})


def check_operands(kind: EventKind) -> None:
    """Refuse operands no processor would have seen."""
    match kind:
        case Tile(op, tile, memory):
            if not 0 <= tile < TILE_COUNT:
                raise invalid("tile.tile", f"0..{TILE_COUNT - 1}", tile)
            wanted = {TileOp.LDTILECFG: TILECFG_BYTES, TileOp.TILELOADD: TILE_BYTES}.get(op, 0)
            if len(memory) != wanted:
                raise invalid("tile.memory", f"{wanted} bytes for {op.name}", f"{len(memory)} bytes")
        case Xsave(misaligned_by=misaligned_by):
            if not 0 <= misaligned_by < XSAVE_ALIGN:
                raise invalid("xsave.misaligned_by", f"0..{XSAVE_ALIGN - 1}", misaligned_by)
        case Xsetbv(_, _, cpl):
            if not 0 <= cpl <= 3:
                raise invalid("xsetbv.cpl", "0..3", cpl)
        case _:
            pass


# -- entering and leaving ----------------------------------------------------------------------------------------------


def _enter_implicitly(state: HostState, vm: VmRecord, vcpu: Vcpu, *, explicit: bool) -> None:
    """Instructions execute in the guest. IMPLICIT enters as needed, and takes the thread from another vCPU of it."""
    if explicit:
        _need_entered(state, vcpu)
    task = own_task(state, vm, vcpu)
    if task.vcpu is not None:
        leave_guest(vm, task.vcpu)
    enter_guest(state, vm, vcpu, task)


def own_task(state: HostState, vm: VmRecord, vcpu: Vcpu) -> TaskRecord:
    """The thread a vCPU runs on where nobody says: the one it was created with, or one of its own, made now."""
    side = state.side(vcpu)
    if not side.task or side.task not in vm.tasks:
        side.task = f"vcpu-{vcpu.index}"
    found = vm.tasks.get(side.task)
    return found if found is not None else thread_of(state, vm, side.task)


def _enter(state: HostState, vm: VmRecord, vcpu: Vcpu, kind: Enter) -> DoneOutcome:
    if vcpu.state is VcpuState.ENTERED:
        name = state.vcpu_name(vcpu)
        task_id = runner(vm, vcpu).id
        text = f"{name!r} is in the guest, on task {task_id!r}"
        raise Refused(Reason.VCPU_ALREADY_ENTERED, text, vcpu=name, task=f"{vm.name}/tasks/{task_id}")
    if kind.task:
        _, task = state.task(f"{vm.name}/tasks/{kind.task}")
        state.side(vcpu).task = kind.task
    else:
        task = own_task(state, vm, vcpu)
    enter_guest(state, vm, vcpu, task)
    return done_outcome(vcpu, None)


def enter_again(state: HostState, vcpu: Vcpu, write: PendingWrite | None) -> Done | ReallocExit | None:
    """KVM_RUN of a parked vCPU: its instruction executes again (``write``), or the guest goes on without it (None)."""
    vm = state.vms[vcpu.vm.account.name]
    task = own_task(state, vm, vcpu)
    if task.vcpu is not None:
        leave_guest(vm, task.vcpu)
    enter_guest(state, vm, vcpu, task)
    if write is None:
        return None
    result = vcpu.vm.policy.execute_write(vcpu, write)
    if isinstance(result, ReallocExit):
        task.vcpu = None
    return result


def _preempt(state: HostState, vm: VmRecord, vcpu: Vcpu, kind: Preempt) -> DoneOutcome:
    """The thread loses its CPU, and gets it back (or another) when it next has something to do."""
    _need_entered(state, vcpu)
    task = runner(vm, vcpu)
    if task.fpu.cpu is not None:
        switch_to(task.fpu.cpu, None)
    if kind.cpu is not None:
        move_to_cpu(vm, task, kind.cpu)
    return done_outcome(vcpu, None)


def _init(state: HostState, vm: VmRecord, vcpu: Vcpu) -> DoneOutcome:
    """INIT keeps XCR0 and the registers, MPX and CET aside. It cancels an exit the vCPU was parked on.

    A vCPU that is not loaded is not unloaded (bug B20); one that is, is loaded again afterwards.
    """
    if vcpu.state in (VcpuState.PARKED, VcpuState.PAUSED):
        if vcpu.state is VcpuState.PAUSED:
            again = issue_directive(state, vcpu, "RESUME", "INIT")
        else:  # its VMM sent the INIT: nothing to be told
            state.serial += 1
            again = Directive(state.serial, state.vcpu_name(vcpu), "RESUME", "INIT")
        cancel_exit(state, vcpu, again, "INIT", ExitResult.VCPU_INIT)
        vcpu.move(VcpuEvent.SETTLE)
    was_entered = vcpu.state is VcpuState.ENTERED
    task = runner(vm, vcpu) if was_entered else None
    if was_entered:
        leave_guest(vm, vcpu)
    init_vcpu(vcpu)
    clear_cr4(vcpu)
    if task is not None:
        enter_guest(state, vm, vcpu, task)
    return done_outcome(vcpu, None)


def _need_entered(state: HostState, vcpu: Vcpu) -> None:
    if vcpu.state is not VcpuState.ENTERED:
        name = state.vcpu_name(vcpu)
        text = f"{name!r} is {vcpu.state.value}, not in the guest"
        raise Refused(Reason.VCPU_NOT_ENTERED, text, vcpu=name, state=vcpu.state.name)


# -- answers -----------------------------------------------------------------------------------------------------------


def done_outcome(vcpu: Vcpu, done: Done | None) -> DoneOutcome:
    """An effect, with the interception as it is now. Without ``done`` there was no instruction to skip."""
    if done is None:
        return DoneOutcome(skip_instruction=False, intercepts=intercepts(vcpu))
    if done.value is None and not done.data and done.reallocated is None:
        return _PLAIN_DONE[vcpu.xfd_passthrough, vcpu.nm_intercept]
    growth = None
    if done.reallocated is not None:
        grown = done.reallocated
        growth = Growth(grown.old_size_bytes, grown.new_size_bytes, vcpu.fpstate.xfeatures)
    return DoneOutcome(value=done.value, data=done.data, reallocated=growth, intercepts=intercepts(vcpu))


def intercepts(vcpu: Vcpu) -> Intercepts:
    """What is intercepted of this vCPU now."""
    return _INTERCEPTS[vcpu.xfd_passthrough, vcpu.nm_intercept]


#: By (XFD passes through, #NM is taken). Values that most outcomes hold are made once.
_INTERCEPTS: Final = {
    (passes, nm): Intercepts(xfd_read=not passes, xfd_write=not passes, nm=nm)
    for passes in (False, True)
    for nm in (False, True)
}
#: What an event comes to that has nothing to say.
_PLAIN_DONE: Final = {which: DoneOutcome(intercepts=seen) for which, seen in _INTERCEPTS.items()}
