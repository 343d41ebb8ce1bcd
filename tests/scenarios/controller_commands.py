"""``controller`` and ``decide``: what the userspace that decides says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from host_agent.commands import AcquireControl, ResolveExit
from host_agent.exits import Decision, DecisionKind, ExitRecord
from host_agent.state import ControlRecord
from tests.scenarios.block import ScenarioError
from tests.scenarios.operands import Words, duration_ns, number
from tests.scenarios.outcomes import tell_exit
from tests.scenarios.world import HOUR_NS, World


def controller(world: World, words: Words) -> None:
    """Take control of the exits of a VM (``scope=``) or of the host."""
    name, scope, lease = words.take("a name"), words.key("scope"), words.key("lease")
    label = words.key("label", name)
    words.end()
    record = _acquire(world, name, f"vms/{scope}" if scope else "", duration_ns(lease) if lease else HOUR_NS)
    world.controls[label] = record
    world.lanes.user(f"{label} controls {scope or 'the host'}", f"epoch {record.epoch}")


def _acquire(world: World, name: str, scope: str, lease_ns: int) -> ControlRecord:
    record: ControlRecord = world.apply(AcquireControl(scope=scope, controller=name, lease_ns=lease_ns))
    return record


def decide(world: World, words: Words) -> None:
    """Decide the open exit, or the one named; a controller is made where none of that name is there yet."""
    name = words.take(f"one of {', '.join(DECISIONS)}")
    if name not in DECISIONS:
        raise ScenarioError(f"decide: expected one of {', '.join(DECISIONS)}, got {name!r}")
    record = _exit(world, words.key("exit"))
    generation, who, reason = words.key("generation"), words.key("as", "controller"), words.key("reason")
    text, decision = DECISIONS[name](words)
    words.end()
    control = world.controls.get(who)
    if control is None:
        control = world.controls[who] = _acquire(world, who, "", HOUR_NS)
    asked = number(generation) if generation else record.generation
    world.acting_task = None
    world.lanes.user(f"exit {world.short(record.name)}, generation {asked}", text)
    line = world.lanes.count
    replied: ExitRecord = world.apply(
        ResolveExit(
            exit=record.name,
            generation=asked,
            control=control.name,
            control_epoch=control.epoch,
            decision=decision,
            reason=reason,
        )
    )
    world.tell_effects()
    if world.lanes.count == line:  # decided before, in the same words: the answer is the exit as it is
        tell_exit(world, replied)


def _exit(world: World, label: str) -> ExitRecord:
    """``a/0/8``, or the one that is open."""
    if label:
        vm, vcpu, seq = label.split("/")
        return world.exit(f"vms/{vm}/vcpus/{vcpu}/exits/{seq}")
    if len(world.state.exits) != 1:
        names = ", ".join(world.short(name) for name in world.state.exits) or "none"
        raise ScenarioError(f"decide: say which exit with exit=; open are: {names}")
    return next(iter(world.state.exits.values()))


def _plain(kind: DecisionKind) -> Callable[[Words], tuple[str, Decision]]:
    return lambda _words: (kind.name, Decision(kind))


def _retry_after(words: Words) -> tuple[str, Decision]:
    delay = words.take("a time")
    return f"RETRY_AFTER {delay}", Decision(DecisionKind.RETRY_AFTER, delay_ns=duration_ns(delay))


def _raise_limit(words: Words) -> tuple[str, Decision]:
    scope, limit = words.take("vm or host"), number(words.take("bytes"))
    return f"RAISE_LIMIT {scope} to {limit} B", Decision(DecisionKind.RAISE_LIMIT, bytes=limit, scope=scope)


def _reclaim(words: Words) -> tuple[str, Decision]:
    """``victims=a/0,b/1``, ``any``, or both."""
    named, any_victim = words.key("victims"), words.flag("any")
    labels = [label.split("/") for label in named.split(",")] if named else []
    victims = tuple(f"vms/{vm}/vcpus/{index}" for vm, index in labels)
    said = " then ".join([*([f"from {named}"] if named else []), *(["from any"] if any_victim else [])])
    return f"RECLAIM {said}", Decision(DecisionKind.RECLAIM, victims=victims, any_victim=any_victim)


def _migrate(words: Words) -> tuple[str, Decision]:
    target = words.key("to")
    return f"MIGRATE to {target}", Decision(DecisionKind.MIGRATE, target=target)


#: Every decision by its word.
DECISIONS: Final[dict[str, Callable[[Words], tuple[str, Decision]]]] = {
    kind.name.lower().replace("_", "-"): _plain(kind) for kind in DecisionKind
} | {"retry-after": _retry_after, "raise-limit": _raise_limit, "reclaim": _reclaim, "migrate": _migrate}
