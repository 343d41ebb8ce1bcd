"""What can differ between two hosts, and nothing else: names, counters and times are left out, orders are kept.

A host falls into parts, one a vCPU, one a VM, and the rest. A part speaks of its own vCPU or VM as "it", so that two
vCPUs in the same situation have the same part: that is what symmetry sorts.

    left out                                    what stands for it
    times of the host's clock                   the order of the deadlines
    revisions, serial numbers, epochs, uids     who opened a session or a control, and the how manieth
    numbers of CPUs                             whose registers they hold
    counters that nobody decides by             nothing
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import NamedTuple

from fault_lab.explore.cast import Cast
from fault_lab.explore.turn import Turn
from fpu_core.cpu import Cpu
from fpu_core.fpstate import Fpstate
from fpu_core.fpu import Fpu
from host_agent.exits import ExitRecord
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import HostState, TaskRecord, VcpuSide

_IT = "it"


class Parts(NamedTuple):
    """A host in parts."""

    rest: Hashable
    vms: tuple[Hashable, ...]
    vcpus: tuple[Hashable, ...]


def parts_of(turn: Turn, cast: Cast) -> Parts:
    """Take a host apart, with the rules' books about it."""
    state = turn.machine.state
    names = [vcpu.name for vcpu in cast.vcpus]
    vcpus = [_vcpu(state, name) for name in names]
    ranks = _ranks(state)
    cpus, rest = _cpus(state, vcpus)
    controls = tuple((key, name in state.controls) for key, (name, _) in sorted(turn.controls.items()))
    return Parts(
        (state.draining, state.allocator.host.used_bytes, controls, rest),
        tuple(_vm(turn, cast, nr) for nr in range(len(cast.vms))),
        tuple(
            (_vcpu_part(state, vcpu, ranks, name), *cpus[nr], *_books(turn, state, vcpu, name))
            for nr, (name, vcpu) in enumerate(zip(names, vcpus, strict=True))
        ),
    )


def _vcpu(state: HostState, name: str) -> Vcpu | None:
    vm, _, index = name.partition("/vcpus/")
    found = state.vms.get(vm)
    return found.kvm.vcpus.get(int(index)) if found is not None else None


def _ranks(state: HostState) -> dict[str, int]:
    """The place of each exit's deadline in their order; equal ones have one place."""
    due = {record.name: record.deadline_ns for record in state.exits.values() if record.deadline_ns is not None}
    order = {at: rank for rank, at in enumerate(sorted(set(due.values())))}
    return {name: order[at] for name, at in due.items()}


# -- a VM --------------------------------------------------------------------------------------------------------------


def _vm(turn: Turn, cast: Cast, nr: int) -> Hashable:
    state = turn.machine.state
    vm = state.vms.get(cast.vm_name(nr))
    if vm is None:
        return None
    mine = [(life, name) for (of, life), (name, _) in sorted(turn.sessions.items()) if of == nr]
    sessions = tuple((life, name in state.sessions, name in state.fenced_sessions) for life, name in mine)
    account = vm.kvm.account
    return sessions, account.used_bytes, account.limit_bytes, vm.hidden_at_reset, len(vm.tasks)


# -- a vCPU ------------------------------------------------------------------------------------------------------------


def _vcpu_part(state: HostState, vcpu: Vcpu | None, ranks: dict[str, int], name: str) -> Hashable:
    if vcpu is None:
        return None
    guest = vcpu.guest
    buffers = guest.buffers
    own = (
        (vcpu.state, vcpu.incarnation, vcpu.xcr0, vcpu.xss, vcpu.pkru, vcpu.cr4_written, vcpu.has_run),
        (vcpu.nm_intercept, vcpu.xfd_passthrough, vcpu.cpuid.fingerprint, guest.xfd_err, guest.xfeatures),
        _fpstate(guest.fpstate),
        (_fpstate(buffers.user_fpu), _fpstate(buffers.guest_fpu)) if buffers is not None else None,
    )
    side = vcpu.agent if isinstance(vcpu.agent, VcpuSide) else VcpuSide(uid=state.vcpu_uid(vcpu))
    task = state.vms[name.partition("/vcpus/")[0]].tasks.get(side.task)
    kept = (
        side.next_seq,
        side.session is not None,
        tuple((seq, repr(outcome.kind).replace(name, _IT)) for seq, outcome in side.outcomes.items()),
        tuple(repr(each).replace(name, _IT) for each in side.directives.values()),
        _task(task, vcpu),
    )
    records = (*state.exits.values(), *state.resolved_exits.values())
    return own, kept, tuple(_exit(record, ranks) for record in records if record.vcpu == name)


def _exit(record: ExitRecord, ranks: dict[str, int]) -> Hashable:
    return (
        (record.seq, record.state, record.generation, record.attempt, record.cause, record.result, record.note),
        (record.write, record.old_xcr0, record.old_xfd, record.xfeatures, record.bytes_needed),
        (ranks.get(record.name), record.retry_ns is None, record.decision),
        tuple((nr, repr(winner).replace(record.vcpu, _IT)) for nr, winner in record.winners.items()),
    )


def _task(task: TaskRecord | None, vcpu: Vcpu) -> Hashable:
    if task is None:
        return None
    fpu = task.fpu
    at_home = fpu.last_cpu == task.home_cpu
    return (
        task.vcpu is vcpu,
        fpu.need_load,
        at_home,
        fpu.last_cpu < 0,
        fpu.pkru,
        _fpstate(fpu.fpstate),
        _fpstate(fpu.task_fpstate),
    )


def _fpstate(fpstate: Fpstate | None) -> Hashable:
    if fpstate is None:
        return None
    return (
        (fpstate.size, fpstate.user_size, fpstate.xfeatures, fpstate.user_xfeatures, fpstate.xfd),
        (fpstate.is_valloc, fpstate.is_guest, fpstate.is_confidential, fpstate.in_use),
        bytes(fpstate.image()),
    )


def _books(turn: Turn, state: HostState, vcpu: Vcpu | None, name: str) -> Iterator[Hashable]:
    """What the rules know of a vCPU that the machine may not, and the requests that are known of it."""
    uid = state.vcpu_uid(vcpu) if vcpu is not None else ""
    yield turn.rules.heard_through(uid)
    yield turn.rules.is_disturbed(name.partition("/vcpus/")[0], name)
    yield tuple(request.removeprefix(name) for request in sorted(state.requests) if request.startswith(f"{name}/"))
    yield tuple((exit_.removeprefix(name), nr) for exit_, nr in turn.changes.items() if exit_.startswith(f"{name}/"))


# -- CPUs --------------------------------------------------------------------------------------------------------------


def _cpus(state: HostState, vcpus: list[Vcpu | None]) -> tuple[list[list[Hashable]], Hashable]:
    """The CPUs with each vCPU whose task's registers they hold, or whose task runs there; the others by themselves."""
    owners: dict[int, int] = {}
    for nr, vcpu in enumerate(vcpus):
        side = vcpu.agent if vcpu is not None else None
        if vcpu is not None and isinstance(side, VcpuSide):
            task = state.vms[vcpu.vm.account.name].tasks.get(side.task)
            if task is not None:
                owners[id(task.fpu)] = nr
    mine: list[list[Hashable]] = [[] for _ in vcpus]
    rest: list[Hashable] = []
    for platform in state.platforms.values():
        for cpu in platform.cpus:
            whose = {owners.get(id(fpu), -1) for fpu in (cpu.owner, cpu.current) if fpu is not None}
            if len(whose) == 1 and -1 not in whose:
                mine[whose.pop()].append(_cpu(cpu, with_names=False))
            else:
                rest.append(_cpu(cpu, with_names=True))
    return mine, tuple(sorted(rest, key=repr))


def _cpu(cpu: Cpu, *, with_names: bool) -> Hashable:
    regs = tuple((nr, bytes(raw)) for nr, raw in sorted(cpu.regs.items()) if cpu.xinuse >> nr & 1)
    whose = (_name(cpu.owner), _name(cpu.current)) if with_names else (cpu.owner is None, cpu.current is None)
    return cpu.xcr0, cpu.xfd, cpu.xfd_cache, cpu.xfd_err, cpu.xinuse, cpu.mxcsr, regs, whose


def _name(fpu: Fpu | None) -> str:
    return fpu.name if fpu is not None else ""
