"""The client of a host, under names that stay.

Blocking, one call per trapped instruction, for the thread of a vCPU:

    with connect("unix:/run/user/1000/fpstated/host.sock") as host:
        host.create_vm("a", profile="sapphire-rapids")
        host.request_permission("vms/a")
        vcpu = host.create_vcpu("vms/a").name
        with open_session(host.channel, vcpus=[vcpu]) as session:
            outcome = session.vcpu(vcpu).xsetbv(0x602E7)

Asyncio, in batches over one stream: `connect_async`, `AsyncHost`, `open_async_session`, `AsyncSession`.

Operators: `migrate` moves a VM from host to host, `abort_migration` takes a move back, `MigrationCalls` are its calls.

What a host refuses is raised: `HostError`, for an event `EventRejected`. What a guest gets is a value: `Done`,
`Injected`, `Gone`.
"""

from __future__ import annotations

import grpc

from fpstated.link.tls import ClientTls
from guest_agent.aio import AsyncSession, open_async_session
from guest_agent.aio_host import AsyncHost
from guest_agent.aio_port import AsyncVcpuPort
from guest_agent.error import EventRejected, HostError
from guest_agent.event import (
    Enter,
    GuestEvent,
    Hlt,
    Init,
    Leave,
    Nm,
    Preempt,
    Rdmsr,
    RegisterRead,
    RegisterWrite,
    Tile,
    TileOp,
    WriteCr4,
    Wrmsr,
    XfdSync,
    Xgetbv,
    Xsave,
    XsaveInsn,
    Xsetbv,
)
from guest_agent.host import Host
from guest_agent.migrate import Incompatible, Migrated, MigrateStep, abort_migration, migrate
from guest_agent.migration_calls import MigrationCalls, VmExport
from guest_agent.opening import RunMode
from guest_agent.outcome import (
    Directive,
    DirectiveKind,
    Done,
    FieldViolation,
    FinalOutcome,
    Gone,
    Growth,
    Injected,
    InstructionOutcome,
    Intercepts,
    Pending,
    Refusal,
    Rejected,
)
from guest_agent.port import VcpuPort
from guest_agent.request import AllocationPolicy
from guest_agent.session import Session, open_session
from guest_agent.setup import create_guest
from guest_agent.step import PendingEvent, PortStep
from guest_agent.wait import EventBlocked, Interrupted, SessionLost, StillPending

__all__ = [
    "AllocationPolicy",
    "AsyncHost",
    "AsyncSession",
    "AsyncVcpuPort",
    "ClientTls",
    "Directive",
    "DirectiveKind",
    "Done",
    "Enter",
    "EventBlocked",
    "EventRejected",
    "FieldViolation",
    "FinalOutcome",
    "Gone",
    "Growth",
    "GuestEvent",
    "Hlt",
    "Host",
    "HostError",
    "Incompatible",
    "Init",
    "Injected",
    "InstructionOutcome",
    "Intercepts",
    "Interrupted",
    "Leave",
    "MigrateStep",
    "Migrated",
    "MigrationCalls",
    "Nm",
    "Pending",
    "PendingEvent",
    "PortStep",
    "Preempt",
    "Rdmsr",
    "Refusal",
    "RegisterRead",
    "RegisterWrite",
    "Rejected",
    "RunMode",
    "Session",
    "SessionLost",
    "StillPending",
    "Tile",
    "TileOp",
    "VcpuPort",
    "VmExport",
    "WriteCr4",
    "Wrmsr",
    "XfdSync",
    "Xgetbv",
    "Xsave",
    "XsaveInsn",
    "Xsetbv",
    "abort_migration",
    "connect",
    "connect_async",
    "create_guest",
    "migrate",
    "open_async_session",
    "open_session",
]


def connect(host: str | grpc.Channel, *, tls: ClientTls | None = None) -> Host:
    """Return the host at an address (`unix:PATH`, `HOST:PORT`) or on a channel of the caller's; a context manager.

    It connects at its first call, and again whenever it has to. `tls` is for an address with mutual TLS. Raises
    ValueError for what is no address, and for files that no TLS can be made of.
    """
    return Host(host, tls=tls)


def connect_async(host: str | grpc.aio.Channel, *, tls: ClientTls | None = None) -> AsyncHost:
    """Return the host for asyncio, in a running event loop; an async context manager. Otherwise as `connect`."""
    return AsyncHost(host, tls=tls)
