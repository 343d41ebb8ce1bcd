"""Outcomes and exits in words."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from fpu_core.cpu import Vector
from fpu_core.xfeature import format_mask
from fpu_core.xsave_insn import MemoryImage
from host_agent.events import (
    BlockedOutcome,
    DoneOutcome,
    Enter,
    EventKind,
    GoneOutcome,
    Growth,
    Hlt,
    Init,
    InjectOutcome,
    Intercepts,
    Leave,
    Outcome,
    PendingOutcome,
    Preempt,
    RejectedOutcome,
    Wrmsr,
    XfdSync,
    Xsave,
    Xsetbv,
)
from host_agent.exits import DecisionKind, ExitRecord, ExitState, Victim
from host_agent.kvm.vcpu import Vcpu

if TYPE_CHECKING:
    from tests.scenarios.world import World

#: Events whose line says it all when they just work.
_QUIET: Final = (Enter, Leave, Preempt, Hlt, Init)


def tell(world: World, kind: EventKind, outcome: Outcome, before: Intercepts) -> None:
    """Print what became of an event whose own line, lane G, was printed already, before what it made the host do."""
    done = outcome.kind
    match done:
        case DoneOutcome(reallocated=Growth() as growth):
            tell_growth(world, outcome.vcpu, growth)
            world.lanes.guest("  done", _dropped(before, done.intercepts))
        case DoneOutcome() if isinstance(kind, _QUIET):
            pass
        case DoneOutcome():
            _answer(world, _done(world, kind, done, before))
        case InjectOutcome():
            _answer(world, _injected(done))
        case PendingOutcome(exit=name):
            record = world.exit(name)
            world.lanes.host(f"KVM_RUN = -{errno.errorcode[record.errno]}", f"event {outcome.seq} pending, vCPU parked")
        case BlockedOutcome(expected_seq=expected, migration=leaving) if leaving:
            _answer(world, f"blocked, the VM is leaving: send it again as event {expected}")
        case BlockedOutcome(expected_seq=expected, exit=name):
            blocked = f"blocked by exit {world.short(name)}: send it again as event {expected}"
            _answer(world, blocked)
        case RejectedOutcome(reason=reason, text=text):
            _answer(world, world.plain(f"rejected, {reason}: {text}"))
        case GoneOutcome(directive=directive):
            _answer(world, f"gone: {directive.kind}, {directive.reason}")


def tell_again(world: World, outcome: Outcome) -> None:
    """Print the outcome of a number that was sent before. Nothing happens for it a second time."""
    match outcome.kind:
        case DoneOutcome(value=value, data=data, reallocated=growth):
            answer = f"done, fpstate {growth.old_bytes} -> {growth.new_bytes} B" if growth is not None else "done"
            answer += f", = {format_mask(value)}" if value is not None else ""
            answer += f", = {world.patterns.name_of(data)}" if data else ""
        case InjectOutcome() as inject:
            answer = _injected(inject)
        case PendingOutcome(exit=name, generation=generation):
            answer = f"pending on exit {world.short(name)}, generation {generation}"
        case RejectedOutcome(reason=reason, text=text):
            answer = world.plain(f"rejected, {reason}: {text}")
        case other:
            answer = type(other).__name__
    world.lanes.append(f"event {outcome.seq} was: {answer}")


def _answer(world: World, text: str) -> None:
    """Beside the event if nothing came in between, else on a line of its own."""
    if world.lanes.count == world.event_line:
        world.lanes.append(text)
    else:
        world.lanes.guest("  ...", text)


def tell_growth(world: World, vcpu_name: str, growth: Growth) -> None:
    """A container that grew: its image sizes, and what was committed with it."""
    sizes = f"fpstate {growth.old_bytes} -> {growth.new_bytes} B"
    vcpu = world.state.vcpu(vcpu_name)
    world.lanes.host(sizes, f"commit {_committed(vcpu)}, {vcpu.vm.policy.goes_on}")


def _committed(vcpu: Vcpu) -> str:
    return f"XCR0={vcpu.xcr0:#x} XFD={format_mask(vcpu.fpstate.xfd)}"


def _done(world: World, kind: EventKind, done: DoneOutcome, before: Intercepts) -> str:
    if done.value is not None:
        return f"= {format_mask(done.value)}"
    if isinstance(kind, Xsave) and done.data:
        world.memories[world.memory] = done.data
        image = MemoryImage(bytearray(done.data))
        return f"stores XSTATE_BV={image.xstate_bv:#x} XCOMP_BV={image.xcomp_bv:#x}"
    if done.data:
        return f"= {world.patterns.name_of(done.data)}"
    said = "commit" if isinstance(kind, Xsetbv | Wrmsr | XfdSync) else "done"
    dropped = _dropped(before, done.intercepts)
    return f"{said}; {dropped}" if dropped else said


def _dropped(before: Intercepts, after: Intercepts | None) -> str:
    """What is intercepted from now on that was not, and the other way round."""
    changes = []
    if after is not None and after.nm and not before.nm:
        changes.append("#NM intercepted from now on")
    if after is not None and before.xfd_write and not after.xfd_write:
        changes.append("XFD no longer intercepted")
    return ", ".join(changes)


def _injected(inject: InjectOutcome) -> str:
    vector = Vector(inject.vector)
    if vector is Vector.GP:
        return f"#GP({inject.error_code})"
    return f"#NM, XFD_ERR={format_mask(inject.xfd_err)}" if vector is Vector.NM else f"#{vector.name}"


def tell_late(world: World, outcome: Outcome) -> None:
    """An event that was pending has another outcome now."""
    event = f"event {outcome.seq} of {world.short(outcome.vcpu)}"
    match outcome.kind:
        case DoneOutcome(reallocated=Growth() as growth):
            tell_growth(world, outcome.vcpu, growth)
            world.lanes.guest(event, "done")
        case DoneOutcome():
            world.lanes.guest(event, "skipped; " + _committed(world.state.vcpu(outcome.vcpu)) + " as before")
        case InjectOutcome() as inject:
            world.lanes.guest(event, _injected(inject))
        case PendingOutcome(generation=generation):
            world.lanes.guest(event, f"pending, generation {generation}")
        case GoneOutcome(directive=directive):
            world.lanes.guest(event, f"gone: {directive.kind}, {directive.reason}")
        case _:
            raise AssertionError(f"{outcome} is no outcome of a pending event")


def tell_exit(world: World, record: ExitRecord) -> None:
    """An exit as it is now."""
    name = f"exit {world.short(record.name)} {record.state.name}"
    match record.state:
        case ExitState.OPEN:
            world.lanes.user(f"{name}, generation {record.generation}", why(record))
        case ExitState.APPLYING:
            world.lanes.user(f"{name}, generation {record.generation}", f"{_decision(record)}")
        case ExitState.PAUSED:
            world.lanes.user(f"{name}, generation {record.generation}", _decision(record))
        case ExitState.RESOLVED:
            result = record.result.name if record.result is not None else ""
            world.lanes.user(name, f"{result}: {_decision(record)}")
        case ExitState.CANCELLED:
            world.lanes.user(name, record.note)
    if record.decision is DecisionKind.RECLAIM:
        tell_victims(world, record.reclaimed)


def tell_victims(world: World, victims: tuple[Victim, ...]) -> None:
    """What a Reclaim took from whom."""
    for each in victims:
        why = f"nothing, {each.refused.name}" if each.refused is not None else f"{each.freed_bytes} B"
        world.lanes.user(f"  reclaimed from {world.short(each.vcpu)}", why)


def why(record: ExitRecord) -> str:
    """Why the container could not grow."""
    need = f"{format_mask(record.xfeatures)} takes {record.bytes_needed} B"
    return f"{record.cause.name}, {errno.errorcode[record.errno]}: {need}; attempt {record.attempt}"


def _decision(record: ExitRecord) -> str:
    return f"{record.decision.name if record.decision else 'nothing'} by {record.decided_by}"
