"""What a snapshot holds of each class of the state: every field, except those that are made anew.

Fields are found, not listed, so none can be forgotten: a new one is saved from the day it is there, or a test says that
its type has no shape yet. What cannot be saved (hooks, observers) or need not be (what follows from the rest) is named
in ``RECORDS`` and made by ``remake``.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Final

from fault_lab.injection import action, attributes, hit, table
from fpu_core import alloc, fpu, tile
from fpu_core.config import FpuConfig, boot
from fpu_core.cpu import Cpu, CpuCounters
from fpu_core.cpuid import builtin_profile, builtin_profile_names, parse_cpuid_dump
from fpu_core.fpstate import Fpstate
from fpu_core.invariants import PermissionHistory
from fpu_core.rt_signal import SignalFrame
from fpu_core.rules import KERNEL_RULES
from fpu_core.usermem import UserMemory
from host_agent import (
    audit,
    commands,
    cpus,
    errors,
    events,
    exits,
    faults,
    migration_commands,
    migrations,
    sessions,
    signals,
    state,
    task_commands,
    tasks,
    vcpu_state,
    vms,
)
from host_agent.kvm import caps, cpuid, lifecycle, outcome, shrink
from host_agent.kvm.cpuid import GuestCpuid
from host_agent.kvm.policy import ALLOCATION_POLICIES
from host_agent.kvm.vcpu import KvmVm, Vcpu
from host_agent.state import HostState


@dataclass(frozen=True, slots=True)
class Shape:
    """A class and the fields that are saved of it, sorted by name."""

    cls: type
    saved: tuple[str, ...]


def fields_of(cls: type) -> tuple[str, ...]:
    """Every field of instances of a class: of a dataclass, or the slots of it and of its bases."""
    if dataclasses.is_dataclass(cls):
        return tuple(sorted(each.name for each in dataclasses.fields(cls)))
    return tuple(sorted({name for base in cls.__mro__ for name in vars(base).get("__slots__", ())}))


#: Records, which change and are somebody: each with the fields that are made anew.
RECORDS: Final[dict[type, frozenset[str]]] = {
    HostState: frozenset({"deadlines", "effects", "tracer"}),
    state.Platform: frozenset(),
    fpu.FpuHost: frozenset({"config", "may_grow", "preemptible", "tracer"}),
    Cpu: frozenset({"config", "eager", "interrupted", "tracer"}),
    CpuCounters: frozenset(),
    fpu.CoreCounts: frozenset(),
    fpu.Fpu: frozenset(),
    fpu.StatePerm: frozenset(),
    Fpstate: frozenset(),
    fpu.FpuGuest: frozenset(),
    fpu.KvmBuffers: frozenset(),
    KvmVm: frozenset(),
    GuestCpuid: frozenset(),
    Vcpu: frozenset(),
    PermissionHistory: frozenset(),
    alloc.Allocator: frozenset({"should_fail"}),
    alloc.Account: frozenset(),
    SignalFrame: frozenset(),
    UserMemory: frozenset(),
    state.TaskRecord: frozenset(),
    state.VmRecord: frozenset(),
    state.VcpuSide: frozenset(),
    state.SessionRecord: frozenset(),
    state.ControlRecord: frozenset(),
    exits.ExitRecord: frozenset(),
    audit.Audit: frozenset(),
    audit.DecisionRecord: frozenset(),
    migrations.MigrationRecord: frozenset(),
    table.FaultTable: frozenset(),
    table.ArmedFault: frozenset(),
}

#: Where the values are that a record may hold: every frozen dataclass and every enum of these modules.
_VALUE_MODULES: Final = (
    *(audit, commands, task_commands, errors, events, exits, sessions, state),
    *(cpus, migration_commands, migrations, signals, tasks, vcpu_state, vms),
    *(caps, cpuid, lifecycle, outcome, shrink, alloc, fpu, tile),
    *(action, attributes, faults, hit, table),
)

#: Objects without a state of their own, of which a record may hold the one that there is, by name.
SINGLETONS: Final[dict[str, object]] = dict(ALLOCATION_POLICIES)


def _types(module: ModuleType) -> Iterator[type]:
    for found in vars(module).values():
        if isinstance(found, type):
            yield found


def _is_value(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) and bool(cls.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def _shapes() -> Iterator[Shape]:
    for module in _VALUE_MODULES:
        yield from (Shape(cls, fields_of(cls)) for cls in _types(module) if _is_value(cls))
    for cls, remade in RECORDS.items():
        yield Shape(cls, tuple(name for name in fields_of(cls) if name not in remade))


SHAPES: Final[dict[str, Shape]] = {shape.cls.__name__: shape for shape in _shapes()}
ENUMS: Final[dict[str, type[enum.Enum]]] = {
    cls.__name__: cls for module in _VALUE_MODULES for cls in _types(module) if issubclass(cls, enum.Enum)
}


def remake(host: HostState) -> None:
    """Make what is not saved: configurations from their sources, hooks, and what nobody listens to yet."""
    host.effects = []
    host.hook_faults()
    for (source, rules), platform in host.platforms.items():
        platform.host.config = config = _config(source, rules)
        platform.host.preemptible = None
        for cpu in platform.cpus:
            cpu.config = config
            cpu.interrupted = None
    host.index_deadlines()
    host.listen(None)


def _config(source: str, rules: str) -> FpuConfig:
    """What a host booted to on a processor: a built-in profile by name, or a dump's text."""
    builtin = source in builtin_profile_names()
    profile = builtin_profile(source) if builtin else parse_cpuid_dump(source, name="dump")
    return boot(profile, KERNEL_RULES[rules])
