"""What a plan means is looked at here: names that must be there or must not be twice, ranges, points and their actions.

Every mistake is found, not the first alone. A plan without a mistake can be run; what can run and yet cannot fail is
a warning: ``warnings``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, Final

from fpstate.fault.v1 import fault_pb2, plan_pb2
from google.protobuf.message import Message

from fault_lab.injection.attributes import FaultAttributeError
from fault_lab.injection.draw import PPM
from fault_lab.injection.hit import matches
from fault_lab.injection.points import FAULT_POINTS, FaultPoint
from fault_lab.plan.acts import ACTS
from fault_lab.plan.entities import entities, nodes, vcpus, vms
from fault_lab.plan.problem import Problem
from fault_lab.plan.resolve import default_action
from fault_lab.wire.action import action_from_proto
from fault_lab.wire.duration import DAY_NS, duration_ns
from fault_lab.wire.fault import attributes_from_proto, window_from_proto
from fpu_core.cpuid import builtin_profile_names, parse_cpuid_dump
from fpu_core.errors import FieldError
from fpu_core.rules import KERNEL_RULES
from guest_agent.script_parser import ScriptError, parse_script
from host_agent.kvm.policy import ALLOCATION_POLICIES
from vmm_controller.policy.parse import PolicyTextError, parse_policies

API_VERSION: Final = "fpstate.fault.v1"
#: The scripts that a guest may play by name; the files are fpstated/mix.
MIX: Final = ("after-nm", "never-amx", "preempted", "preempted-tiles", "xcr0-first")
_ID: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_CHECK: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_FIRED: Final = "fired:"
_MANY: Final = 1_000_000
_PARTS_MAX: Final = 4_096
#: Names that a message lists.
_SHOWN: Final = 8
#: The longest time that anything in a plan takes.
_RUN_NS_MAX: Final = 10_000 * DAY_NS

Problems = Iterator[Problem]


def problems(plan: plan_pb2.Plan) -> list[Problem]:
    """Return every mistake, without positions; empty for a plan that can be run."""
    found = [*_root(plan), *_topology(plan), *_workload(plan), *_readers(plan)]
    for nr, fault in enumerate(plan.faults):
        found += _fault(plan, fault, f"faults[{nr}]")
    return [*found, *_run(plan), *_checks(plan), *_schedule(plan), *_order(plan.order), *_branches(plan)]


def _root(plan: plan_pb2.Plan) -> Problems:
    if plan.api_version != API_VERSION:
        yield Problem("api_version", API_VERSION, repr(plan.api_version))
    yield from _name("name", plan.name)
    yield from _once("faults", [fault.name for fault in plan.faults])


# -- topology ----------------------------------------------------------------------------------------------------------


def _topology(plan: plan_pb2.Plan) -> Problems:
    there = plan.topology
    if not there.hosts:
        yield Problem("topology.hosts", "at least one host", "none")
    if not there.vms:
        yield Problem("topology.vms", "at least one VM", "none")
    for nr, host in enumerate(there.hosts):
        yield from _host(host, f"topology.hosts[{nr}]")
    for nr, vm in enumerate(there.vms):
        yield from _vm(plan, vm, f"topology.vms[{nr}]")
    for nr, controller in enumerate(there.controllers):
        yield from _controller(plan, controller, f"topology.controllers[{nr}]")
    for nr, link in enumerate(there.links):
        yield from _link(plan, link, f"topology.links[{nr}]")
    if there.HasField("link_default"):
        yield from _latency(there.link_default, "topology.link_default")
    yield from _once("topology.hosts", [host.name for host in there.hosts])
    yield from _once("topology.vms", [vm.name for vm in there.vms])
    hosts, controllers = [host.name for host in there.hosts], [each.name for each in there.controllers]
    yield from _once("topology.controllers", hosts + controllers, first=len(hosts))
    readers = [each.name for each in plan.workload.readers]
    yield from _once("workload.readers", hosts + controllers + readers, first=len(hosts + controllers))
    movers = [each.name for each in plan.workload.migrations]
    others = hosts + controllers + readers
    yield from _once("workload.migrations", others + movers, first=len(others))


def _host(host: plan_pb2.PlannedHost, path: str) -> Problems:
    yield from _name(f"{path}.name", host.name)
    yield from _one_of(f"{path}.profile", host.profile, builtin_profile_names())
    yield from _one_of(f"{path}.kernel_rules", host.kernel_rules, KERNEL_RULES)
    yield from _range(f"{path}.cpus", host.cpus, 0, _PARTS_MAX)
    yield from _range(f"{path}.session_credits", host.session_credits, 0, _PARTS_MAX)
    yield from _time(host, "exit_deadline", path, least=1)
    yield from _time(host, "default_lease", path, least=1)


def _vm(plan: plan_pb2.Plan, vm: plan_pb2.PlannedVm, path: str) -> Problems:
    yield from _name(f"{path}.name", vm.name)
    yield from _known_host(plan, vm.host, path)
    yield from _one_of(f"{path}.profile", vm.profile, builtin_profile_names())
    if vm.cpuid_dump:
        yield from _processor(vm, path)
    yield from _one_of(f"{path}.allocation_policy", vm.allocation_policy, ALLOCATION_POLICIES)
    yield from _range(f"{path}.vcpus", vm.vcpus, 0, _PARTS_MAX)
    yield from _range(f"{path}.attach.events", vm.attach.events, 0, _PARTS_MAX)
    for key in vm.labels:
        if not _ID.fullmatch(key):
            yield Problem(f"{path}.labels", "keys of lower-case letters, digits and hyphens", repr(key))


def _processor(vm: plan_pb2.PlannedVm, path: str) -> Problems:
    if vm.profile:
        yield Problem(f"{path}.cpuid_dump", "nothing where profile is set", "both")
    try:
        parse_cpuid_dump(vm.cpuid_dump, name="dump")
    except FieldError as error:
        yield Problem(f"{path}.cpuid_dump", error.expected, str(error.got))


def _controller(plan: plan_pb2.Plan, controller: plan_pb2.PlannedController, path: str) -> Problems:
    yield from _name(f"{path}.name", controller.name)
    yield from _known_host(plan, controller.host, path)
    if controller.vm:
        yield from _one_of(f"{path}.vm", controller.vm, [vm.name for vm in plan.topology.vms])
    try:
        parse_policies(controller.policies)
    except PolicyTextError as error:
        nr = list(controller.policies).index(error.text) if error.text in controller.policies else 0
        yield Problem(f"{path}.policies[{nr}]", f"a policy: {error.complaint}", repr(error.text))


def _link(plan: plan_pb2.Plan, link: plan_pb2.PlannedLink, path: str) -> Problems:
    for side in ("from", "to"):
        yield from _fitting(f"{path}.{side}", getattr(link, side), nodes(plan))
    if not link.HasField("latency"):
        yield Problem(f"{path}.latency", "how long a message takes", "nothing")
    else:
        yield from _latency(link.latency, f"{path}.latency")


# -- workload ----------------------------------------------------------------------------------------------------------


def _workload(plan: plan_pb2.Plan) -> Problems:
    for nr, guest in enumerate(plan.workload.guests):
        path = f"workload.guests[{nr}]"
        if guest.vcpu:
            yield from _fitting(f"{path}.vcpu", guest.vcpu, vcpus(plan))
        yield from _range(f"{path}.rounds", guest.rounds, 0, _MANY)
        if guest.HasField("think_time"):
            yield from _latency(guest.think_time, f"{path}.think_time")
        match guest.WhichOneof("play"):
            case "script":
                yield from _script(guest.script, f"{path}.script")
            case "mix":
                yield from _one_of(f"{path}.mix", guest.mix, MIX)
            case "random":
                yield from _range(f"{path}.random.events", guest.random.events, 1, _MANY)
            case _:
                yield Problem(path, "script, mix or random", "none of them")
    for nr, tasks in enumerate(plan.workload.tasks):
        yield from _tasks(plan, tasks, f"workload.tasks[{nr}]")
    yield from _migrations(plan)
    yield from _range("workload.preempt_ppm", plan.workload.preempt_ppm, 0, PPM)


def _migrations(plan: plan_pb2.Plan) -> Problems:
    there, moves = plan.topology, plan.workload.migrations
    on = {vm.name: vm.host or (there.hosts[0].name if there.hosts else "") for vm in there.vms}
    for nr, move in enumerate(moves):
        path = f"workload.migrations[{nr}]"
        yield from _name(f"{path}.name", move.name)
        if move.vm not in on:
            yield Problem(f"{path}.vm", f"one of {_some(list(on))}", repr(move.vm))
        if move.vm in [each.vm for each in moves[:nr]]:
            yield Problem(f"{path}.vm", "a VM that no row before moves", repr(move.vm))
        others = [host.name for host in there.hosts if host.name != on.get(move.vm)]
        if move.target not in others:
            yield Problem(f"{path}.target", f"a host that the VM is not on: {_some(others)}", repr(move.target))
        yield from _time(move, "after", path)


def _tasks(plan: plan_pb2.Plan, tasks: plan_pb2.PlannedTasks, path: str) -> Problems:
    if tasks.vm:
        yield from _fitting(f"{path}.vm", tasks.vm, vms(plan))
    yield from _range(f"{path}.random.events", tasks.random.events, 1, _MANY)
    for nr, act in enumerate(tasks.acts):
        yield from _one_of(f"{path}.acts[{nr}]", act, ACTS)
    if tasks.HasField("think_time"):
        yield from _latency(tasks.think_time, f"{path}.think_time")


def _readers(plan: plan_pb2.Plan) -> Problems:
    for nr, reader in enumerate(plan.workload.readers):
        path = f"workload.readers[{nr}]"
        yield from _name(f"{path}.name", reader.name)
        yield from _known_host(plan, reader.host, path)
        if reader.vcpu:
            yield from _fitting(f"{path}.vcpu", reader.vcpu, vcpus(plan))
        yield from _range(f"{path}.clients", reader.clients, 0, _PARTS_MAX)
        yield from _range(f"{path}.reads", reader.reads, 0, _MANY)
        if reader.HasField("think_time"):
            yield from _latency(reader.think_time, f"{path}.think_time")


def _script(text: str, path: str) -> Problems:
    try:
        parse_script(text, name="line")
    except ScriptError as error:
        line, _, said = str(error).partition(": ")
        yield Problem(path, f"a script; in its {line.replace(':', ' ')}: {said}", "")


# -- faults ------------------------------------------------------------------------------------------------------------


def _fault(plan: plan_pb2.Plan, fault: plan_pb2.PlannedFault, path: str) -> Problems:
    yield from _name(f"{path}.name", fault.name)
    point = FAULT_POINTS.get(fault.point)
    if point is None:
        yield from _point(f"{path}.point", fault.point)
    yield from _scope(plan, fault, path)
    yield from _action(fault, point, f"{path}.action")
    try:
        attributes_from_proto(f"{path}.attributes", fault.attributes)
    except FaultAttributeError as error:
        yield _from_error(error)
    if fault.HasField("window"):
        try:
            window_from_proto(f"{path}.window", fault.window)
        except FaultAttributeError as error:
            yield _from_error(error)
    if fault.HasField("swizzle"):
        yield from _swizzle(fault, path)
    if fault.HasField("gate_ppm"):
        yield from _range(f"{path}.gate_ppm", fault.gate_ppm, 0, PPM)


def _swizzle(fault: plan_pb2.PlannedFault, path: str) -> Problems:
    yield from _time(fault, "swizzle", path, least=1)
    if fault.point != "link.message":
        yield Problem(f"{path}.swizzle", "link.message, whose links are held", fault.point)
    elif not fault.action.HasField("hold_action") or fault.action.hold_action.HasField("duration"):
        yield Problem(f"{path}.action", "hold without a duration: a swizzle draws it", "another")


def _scope(plan: plan_pb2.Plan, fault: plan_pb2.PlannedFault, path: str) -> Problems:
    scope = fault.scope
    if scope.owner:
        yield Problem(f"{path}.scope.owner", "nothing: who runs the plan is its owner", repr(scope.owner))
    if scope.vm:
        yield from _one_of(f"{path}.scope.vm", scope.vm, [f"vms/{vm.name}" for vm in plan.topology.vms])
    if scope.vcpu:
        yield from _one_of(f"{path}.scope.vcpu", scope.vcpu, vcpus(plan))
    choice = entities(plan, fault.point)
    if scope.entity and choice is not None:
        yield from _fitting(f"{path}.scope.entity", scope.entity, choice)
    for nr, name in enumerate(scope.among if choice is not None else ()):
        yield from _one_of(f"{path}.scope.among[{nr}]", name, choice)
    picks = fault.pick not in (plan_pb2.PICK_UNSPECIFIED, plan_pb2.PICK_ALL)
    if picks and choice is None and fault.point in FAULT_POINTS:
        yield Problem(f"{path}.pick", f"all: nobody can be picked at {fault.point}", "a pick")
    wanted = (1, 100) if fault.pick == plan_pb2.PICK_PERCENT else (0, 0)
    yield from _range(f"{path}.percent", fault.percent, *wanted)


def _action(fault: plan_pb2.PlannedFault, point: FaultPoint | None, path: str) -> Problems:
    if not fault.HasField("action"):
        if point is not None and default_action(point) is None:
            yield Problem(path, f"an action: {point.objection_to_none}", "none")
        return
    yield from _taken(fault.action, point, path)


def _taken(action: fault_pb2.FaultAction, point: FaultPoint | None, path: str) -> Problems:
    try:
        value = action_from_proto(path, action)
    except FaultAttributeError as error:
        yield _from_error(error)
        return
    expected = point.objection(value) if point is not None else ""
    if expected:
        yield Problem(path, f"what {point.name if point else ''} takes: {expected}", type(value).__name__)


# -- the run -----------------------------------------------------------------------------------------------------------


def _run(plan: plan_pb2.Plan) -> Problems:
    for name in ("warm", "chaos", "heal", "settle"):
        yield from _time(getattr(plan.phases, name), "duration", f"phases.{name}", most=_RUN_NS_MAX)
    yield from _time(plan.budget, "virtual_time", "budget", least=1, most=_RUN_NS_MAX)
    yield from _range("search.depth", plan.search.depth, 0, 100)


def _checks(plan: plan_pb2.Plan) -> Problems:
    faults = [fault.name for fault in plan.faults]
    for kind in ("always", "sometimes", "eventually"):
        for nr, name in enumerate(getattr(plan.checks, kind)):
            path = f"checks.{kind}[{nr}]"
            if name.startswith(_FIRED) and kind == "sometimes":
                yield from _one_of(path, name.removeprefix(_FIRED), faults)
            elif not _CHECK.fullmatch(name):
                yield Problem(path, "the name of a check", repr(name))


def _schedule(plan: plan_pb2.Plan) -> Problems:
    for nr, hit in enumerate(plan.schedule.hits):
        yield from _hit(plan, hit, f"schedule.hits[{nr}]")
        yield from _hits_action(hit, f"schedule.hits[{nr}].action")
    for nr, point in enumerate(plan.schedule.points):
        if point not in FAULT_POINTS:
            yield from _point(f"schedule.points[{nr}]", point)


def _order(order: plan_pb2.Order) -> Problems:
    yield from _time(order, "slack", "order")
    yield from _range("order.priorities.changes", order.priorities.changes, 0, 100)
    if order.priorities.changes and not order.priorities.steps:
        yield Problem("order.priorities.steps", "1 or more, for the changes to be spread over", "0")
    for nr, deviation in enumerate(order.deviations):
        if not deviation.step:
            yield Problem(f"order.deviations[{nr}].step", "1 or more", "0")
        if not deviation.lane:
            yield Problem(f"order.deviations[{nr}].lane", "a lane", "nothing")


def _branches(plan: plan_pb2.Plan) -> Problems:
    last = -1
    for nr, branch in enumerate(plan.branches):
        path = f"branches[{nr}]"
        if branch.record <= last:
            yield Problem(f"{path}.record", f"{last + 1} or more, behind the branch before", str(branch.record))
        last = branch.record
        for hit_nr, hit in enumerate(branch.fire):
            yield from _hit(plan, hit, f"{path}.fire[{hit_nr}]")
            yield from _hits_action(hit, f"{path}.fire[{hit_nr}].action")
        for hit_nr, hit in enumerate(branch.drop):
            yield from _hit(plan, hit, f"{path}.drop[{hit_nr}]")
            if hit.HasField("action"):
                yield Problem(f"{path}.drop[{hit_nr}].action", "none: the hit does not fire", "an action")


def _hit(plan: plan_pb2.Plan, hit: plan_pb2.ScheduledHit, path: str) -> Problems:
    if hit.point not in FAULT_POINTS:
        yield from _point(f"{path}.point", hit.point)
    choice = entities(plan, hit.point)
    if choice is not None and hit.entity not in choice:
        yield Problem(f"{path}.entity", f"one of {_some(choice)}", repr(hit.entity))
    if not hit.hit:
        yield Problem(f"{path}.hit", "1 or more", "0")


def _hits_action(hit: plan_pb2.ScheduledHit, path: str) -> Problems:
    point = FAULT_POINTS.get(hit.point)
    if hit.HasField("action"):
        yield from _taken(hit.action, point, path)
    elif point is not None and default_action(point) is None:
        yield Problem(path, f"an action: {point.objection_to_none}", "none")


def _point(path: str, point: str) -> Problems:
    near = difflib.get_close_matches(point, FAULT_POINTS, n=1)
    hint = f"such as {near[0]}" if near else "of those that `fpstated faults list` shows"
    yield Problem(path, f"a fault point {hint}", repr(point) if point else "nothing")


# -- pieces ------------------------------------------------------------------------------------------------------------


def _name(path: str, value: str) -> Problems:
    if not _ID.fullmatch(value):
        yield Problem(path, "lower-case letters, digits and hyphens, a letter first, 1 to 63 of them", repr(value))


def _once(path: str, names: list[str], *, first: int = 0) -> Problems:
    """Each name once; those before ``first`` belong to another list and are only in the way."""
    for nr, name in enumerate(names):
        if nr >= first and name in names[:nr]:
            yield Problem(f"{path}[{nr - first}].name", "a name of its own", repr(name))


def _one_of(path: str, value: str, known: Any) -> Problems:  # noqa: ANN401 -- any collection of names
    if value and value not in known:
        near = difflib.get_close_matches(value, list(known))
        yield Problem(path, f"one of {_some([*near, *known])}", repr(value))


def _fitting(path: str, pattern: str, known: list[str]) -> Problems:
    if not any(matches(pattern, name) for name in known):
        yield Problem(path, f"one of {_some(known)}, or a pattern of some", repr(pattern))


def _some(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    shown = ", ".join(names[:_SHOWN]) or "none"
    return f"{shown}, ..." if len(names) > _SHOWN else shown


def _range(path: str, value: int, least: int, most: int) -> Problems:
    if not least <= value <= most:
        yield Problem(path, f"{least}..{most}" if least != most else str(least), str(value))


def _known_host(plan: plan_pb2.Plan, host: str, path: str) -> Problems:
    yield from _one_of(f"{path}.host", host, [each.name for each in plan.topology.hosts])


def _time(message: Message, name: str, path: str, *, least: int = 0, most: int = DAY_NS) -> Problems:
    if message.HasField(name):
        try:
            duration_ns(f"{path}.{name}", getattr(message, name), least=least, most=most)
        except FaultAttributeError as error:
            yield _from_error(error)


def _latency(latency: plan_pb2.Latency, path: str) -> Problems:
    try:
        least = duration_ns(f"{path}.min", latency.min)
        if latency.HasField("max"):
            duration_ns(f"{path}.max", latency.max, least=least)
    except FaultAttributeError as error:
        yield _from_error(error)


def _from_error(error: FaultAttributeError) -> Problem:
    return Problem(error.field, error.expected, str(error.got))
