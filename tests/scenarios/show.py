"""``show``: reads, printed. None of them is a command of the machine, so none is in the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fpu_core.alloc import Account
from fpu_core.config import FpuConfig
from fpu_core.cpu import Cpu
from fpu_core.fpstate import MXCSR_INIT, Fpstate
from fpu_core.fpu import FPU_GUEST_PERM_LOCKED, Fpu
from fpu_core.layout import MXCSR_OFFSET
from fpu_core.xfeature import (
    XCOMP_BV_COMPACTED_FORMAT,
    XFEATURE_MASK_PKRU,
    XFEATURE_MASK_SSE,
    XFEATURE_NAMES,
    XFEATURE_PKRU,
    for_each_set_bit,
    format_mask,
)
from host_agent.decision_rules import allowed_decisions
from host_agent.guest_events import intercepts
from host_agent.kvm.vcpu import Vcpu
from host_agent.state import VcpuSide, VmRecord
from tests.scenarios import outcomes
from tests.scenarios.block import ScenarioError
from tests.scenarios.operands import Words, format_ns, number
from tests.scenarios.world import World


def show(world: World, words: Words) -> None:
    """``show WHAT [OF]``."""
    what = words.take(f"one of {', '.join(SUBJECTS)}")
    if what not in SUBJECTS:
        raise ScenarioError(f"show: expected one of {', '.join(SUBJECTS)}, got {what!r}")
    of = words.take("a name") if words.peek() else ""
    words.end()
    SUBJECTS[what](world, of)


def _vcpu(world: World, of: str) -> None:
    vcpu = world.vcpu(of or "0")
    registers = f"XCR0={vcpu.xcr0:#x} XFD={format_mask(vcpu.fpstate.xfd)} XFD_ERR={format_mask(vcpu.guest.xfd_err)}"
    now = intercepts(vcpu)
    taken = [name for name, on in (("XFD", now.xfd_write), ("#NM", now.nm)) if on]
    world.lanes.host(f"vcpu {_name(world, vcpu)} {vcpu.state.name}", registers)
    seq = world.state.side(vcpu).next_seq
    life = f"incarnation {vcpu.incarnation}, next is event {seq}"
    world.lanes.host(f"  intercepts {', '.join(taken) or 'nothing'}", life)


def _fpstate(world: World, of: str) -> None:
    """The container of a vCPU, or those of a task: its own, and the one that is active."""
    vcpu, fpu = _subject(world, of)
    if vcpu is not None:
        _container(world, f"guest {_name(world, vcpu)}", vcpu.fpstate)
        world.lanes.host("  uabi", f"{vcpu.guest.uabi_size} B")
        return
    assert fpu is not None
    own = fpu.task_fpstate if fpu.task_fpstate is not None else fpu.fpstate
    _container(world, f"user {_short(world, fpu)}", own)


def _container(world: World, whose: str, fpstate: Fpstate) -> None:
    flags = [name for name in ("in_use", "is_confidential") if getattr(fpstate, name)]
    sizes = f"{fpstate.size} B, user format {fpstate.user_size} B"
    masks = f"xfeatures={fpstate.xfeatures:#x} XFD={format_mask(fpstate.xfd)}"
    world.lanes.host(f"{whose}: {sizes}", " ".join([masks, *flags]))


def _registers(world: World, of: str) -> None:
    """What a vCPU or a task would find in its registers, wherever they are now."""
    vcpu, fpu = _subject(world, of)
    if vcpu is not None:
        whose, fpstate, runner = f"guest {_name(world, vcpu)}", vcpu.fpstate, vcpu.fpu
        config, pkru, at_first = vcpu.vm.host.config, vcpu.pkru, 0
    else:
        assert fpu is not None
        whose, runner = f"user {_short(world, fpu)}", fpu if fpu.task_fpstate is None else None
        fpstate = fpu.task_fpstate if fpu.task_fpstate is not None else fpu.fpstate
        config = fpu.host.config
        pkru, at_first = fpu.pkru, config.init_pkru
    if runner is not None and runner.cpu is not None and not runner.need_load:
        where, (held, mxcsr) = f"live on cpu {runner.cpu.nr}", (runner.cpu.observable(), runner.cpu.mxcsr)
    else:
        where, (held, mxcsr) = "in memory", _image(fpstate, config)
    # PKRU is beside the image, and of no interest while it is what everybody starts with.
    held.pop(XFEATURE_PKRU, None)
    if pkru != at_first:
        held[XFEATURE_PKRU] = pkru.to_bytes(8, "little")
    found = [f"{XFEATURE_NAMES[nr]}={world.patterns.describe(nr, raw)}" for nr, raw in sorted(held.items())]
    if mxcsr != MXCSR_INIT:
        found.append(f"MXCSR={mxcsr:#x}")
    world.lanes.host(f"{whose}, {where}", "; ".join(found) or "all in init state")


def _image(fpstate: Fpstate, config: FpuConfig) -> tuple[dict[int, bytes], int]:
    """The components an image says are in use, and its MXCSR. A compacted image has one only together with SSE."""
    layout = fpstate.xcomp_bv & ~XCOMP_BV_COMPACTED_FORMAT if config.compacted else fpstate.xfeatures
    offsets = config.table.offsets(layout, compacted=config.compacted)
    held = {
        nr: bytes(fpstate.regs[offsets[nr] : offsets[nr] + config.table.size_bytes(nr)])
        for nr in for_each_set_bit(fpstate.xstate_bv)
    }
    if config.compacted and not fpstate.xstate_bv & XFEATURE_MASK_SSE:
        return held, MXCSR_INIT
    return held, int.from_bytes(fpstate.regs[MXCSR_OFFSET : MXCSR_OFFSET + 4], "little")


def _cpu(world: World, of: str) -> None:
    nr = number(of or "0")
    cpu: Cpu = world.vm().platform.cpus[nr]
    runs = _short(world, cpu.current) if cpu.current is not None else "nothing"
    owner = _short(world, cpu.owner) if cpu.owner is not None else "nobody"
    in_use = format_mask(cpu.xinuse & ~XFEATURE_MASK_PKRU)  # which nearly always is
    seen = f"XFD={format_mask(cpu.xfd)} XFD_ERR={format_mask(cpu.xfd_err)} XINUSE={in_use}"
    world.lanes.host(f"cpu {nr} runs {runs}, registers of {owner}", seen)


def _exit(world: World, of: str) -> None:
    """Every exit, open and settled, or one; with what it allows."""
    records = [*world.state.resolved_exits.values(), *world.state.exits.values()]
    for record in records:
        if of in ("", world.short(record.name)):
            outcomes.tell_exit(world, record)
            write = record.write
            wanted = f"XCR0={write.xcr0:#x} XFD={format_mask(write.xfd)}"
            world.lanes.user(
                f"  {write.trigger.value} would make {wanted}",
                f"was XCR0={record.old_xcr0:#x} XFD={format_mask(record.old_xfd)}",
            )
            if allowed_decisions(record):
                due = f", at {format_ns(record.expires_ns)} PAUSE" if record.expires_ns is not None else ""
                allowed = ", ".join(sorted(kind.name for kind in allowed_decisions(record)))
                world.lanes.user(f"  allows {allowed}{due}")


def _audit(world: World, _of: str) -> None:
    """Every decision that was taken."""
    for record in world.state.audit.decisions.values():
        result = f", {record.result.name}" if record.result is not None else ""
        why = f"; why: {record.decider.reason}" if record.decider.reason else ""
        world.lanes.user(
            f"{record.number}: {record.decision.kind.name} by {record.decider.name}",
            f"exit {world.short(record.exit)}, generation {record.generation}: {record.state.name}{result}{why}",
        )


def _directives(world: World, _of: str) -> None:
    """What no VMM has acknowledged: of live sessions, and of vCPUs that have none."""
    sides = [vcpu.agent for vm in world.state.vms.values() for vcpu in vm.kvm.vcpus.values()]
    waiting = [each for side in sides if isinstance(side, VcpuSide) for each in side.directives.values()]
    told = [each for session in world.state.sessions.values() for each in session.directives.values()]
    for where, directives in (("told", told), ("to be told", waiting)):
        for each in directives:
            world.lanes.user(f"{each.kind} for {world.short(each.vcpu)}, {where}", each.reason)
    if not told and not waiting:
        world.lanes.user("no directive waits")


def _ledger(world: World, _of: str) -> None:
    for account in (world.state.allocator.host, *(vm.kvm.account for vm in world.state.vms.values())):
        most = "no limit" if account.limit_bytes is None else f"limit {account.limit_bytes} B"
        world.lanes.host(f"{world.short(account.name)} uses {account.used_bytes} B", f"{most}; {_history(account)}")


def _history(account: Account) -> str:
    return f"peak {account.peak_bytes} B, {account.allocations} allocations, {account.failures} failures"


def _permissions(world: World, of: str) -> None:
    record = world.task(of or "main")
    leader = record.fpu.leader
    locked = ", LOCKED" if leader.guest_perm.state_perm & FPU_GUEST_PERM_LOCKED else ""
    guest = leader.guest_perm
    world.lanes.host(
        f"{_short(world, record.fpu)}, user perm {leader.perm.state_perm:#x}",
        f"guest perm {guest.state_perm & ~FPU_GUEST_PERM_LOCKED:#x}{locked}, {guest.state_size} B",
    )


def _faults(world: World, _of: str) -> None:
    for fault in world.state.faults.armed.values():
        world.lanes.user(fault.point, f"reached {fault.hits} times, fired {fault.fired}")


def _digest(world: World, _of: str) -> None:
    world.lanes.user("digest", world.digest_label(world.machine.digest()))


# -- names -------------------------------------------------------------------------------------------------------------


def _subject(world: World, of: str) -> tuple[Vcpu | None, Fpu | None]:
    """A vCPU (``0``, ``b/0``; the first for none) or a task (``main``)."""
    if not of or of.rpartition("/")[2].isdecimal():
        return world.vcpu(of or "0"), None
    return None, world.task(of).fpu


def _name(world: World, vcpu: Vcpu) -> str:
    return world.short(world.state.vcpu_name(vcpu))


def _short(world: World, fpu: Fpu) -> str:
    """A task's name, by the books: the core's own name for it says the same."""
    for vm in world.state.vms.values():
        for record in vm.tasks.values():
            if record.fpu is fpu:
                return _task(vm, record.id)
    return fpu.name


def _task(vm: VmRecord, task_id: str) -> str:
    return f"{vm.id}/{task_id}"


#: Everything that can be shown, by its word.
SUBJECTS: Final[dict[str, Callable[[World, str], None]]] = {
    "vcpu": _vcpu,
    "fpstate": _fpstate,
    "registers": _registers,
    "cpu": _cpu,
    "exit": _exit,
    "audit": _audit,
    "directives": _directives,
    "ledger": _ledger,
    "permissions": _permissions,
    "faults": _faults,
    "digest": _digest,
}
