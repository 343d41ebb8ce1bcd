"""A resource by its name, as its List call shows it now: what a change is a change of."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Final

from fpstate.v1 import exit_pb2, host_pb2, migration_pb2, session_pb2, task_pb2, vcpu_pb2, vm_pb2, watch_pb2

from host_agent.errors import Refused
from host_agent.service.translate.exit import exit_to_proto
from host_agent.service.translate.migration import migration_to_proto
from host_agent.service.translate.session import session_to_proto
from host_agent.service.translate.vcpu import task_to_proto, vcpu_to_proto
from host_agent.service.translate.vm import vm_to_proto
from host_agent.state import HostState, VmRecord

Resource = (
    vm_pb2.Vm
    | vcpu_pb2.Vcpu
    | task_pb2.Task
    | session_pb2.Session
    | exit_pb2.Exit
    | migration_pb2.Migration
    | host_pb2.Host
)

#: The name of the host's own part.
HOST: Final = "host"

KINDS: Final[dict[type, watch_pb2.ResourceKind.ValueType]] = {
    vm_pb2.Vm: watch_pb2.RESOURCE_KIND_VM,
    vcpu_pb2.Vcpu: watch_pb2.RESOURCE_KIND_VCPU,
    task_pb2.Task: watch_pb2.RESOURCE_KIND_TASK,
    session_pb2.Session: watch_pb2.RESOURCE_KIND_SESSION,
    exit_pb2.Exit: watch_pb2.RESOURCE_KIND_EXIT,
    migration_pb2.Migration: watch_pb2.RESOURCE_KIND_MIGRATION,
    host_pb2.Host: watch_pb2.RESOURCE_KIND_HOST,
}


def resource(state: HostState, name: str) -> Resource | None:
    """The resource of that name; None where there is none now."""
    try:
        return _resource(state, name)
    except Refused:
        return None


def _resource(state: HostState, name: str) -> Resource | None:
    match name.split("/"):
        case ["vms", _]:
            return vm_to_proto(state.vm(name))
        case ["vms", _, "vcpus", _]:
            return vcpu_to_proto(state, state.vcpu(name))
        case ["vms", _, "tasks", _]:
            return task_to_proto(state, *state.task(name))
        case ["vms", _, "vcpus", _, "exits", _]:
            record = state.exits.get(name) or state.resolved_exits.get(name)
            return exit_to_proto(state, record) if record is not None else None
        case ["vms", _, "migrations", _]:
            migration = state.migrations.get(name)
            return migration_to_proto(migration) if migration is not None else None
        case ["sessions", _]:
            session = state.sessions.get(name)
            return session_to_proto(session) if session is not None else None
        case ["host"]:
            return host_to_proto(state)
        case _:  # what a command asks to be made, and the machine will refuse
            return None


def host_to_proto(state: HostState) -> host_pb2.Host:
    """The host's own part."""
    return host_pb2.Host(
        name=state.config.host,
        settings=host_pb2.HostSettings(byte_limit=state.allocator.host.limit_bytes),
        drain_state=host_pb2.DRAIN_STATE_DRAINING if state.draining else host_pb2.DRAIN_STATE_SERVING,
    )


def names(state: HostState) -> Iterator[str]:
    """The name of everything there is."""
    yield HOST
    for vm in state.vms.values():
        yield from names_in(vm)
    yield from chain(state.sessions, state.exits, state.resolved_exits, state.migrations)


def names_in(vm: VmRecord) -> Iterator[str]:
    """The names of a VM, its vCPUs and its tasks."""
    yield vm.name
    yield from (f"{vm.name}/vcpus/{index}" for index in vm.kvm.vcpus)
    yield from (f"{vm.name}/tasks/{task}" for task in vm.tasks)


def uid(state: HostState, found: Resource) -> str:
    """What no other resource has, of this name or another."""
    match found:
        case exit_pb2.Exit():
            return f"{found.vcpu_uid}/exits/{found.seq}"
        case session_pb2.Session():
            return found.name.rpartition("/")[2]
        case host_pb2.Host():
            return state.config.boot_id
        case _:
            return found.uid


def same(before: Resource, after: Resource) -> bool:
    """Whether nothing has changed. That an exit's time runs is no change of it."""
    if isinstance(before, exit_pb2.Exit) and isinstance(after, exit_pb2.Exit):
        return before.update_revision == after.update_revision
    return before == after
