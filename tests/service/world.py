"""A host on a socket and a guest agent's view of it: what the tests of the services are written with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
from fpstate.fault.v1 import fault_pb2, fault_pb2_grpc
from fpstate.v1 import (
    event_pb2,
    exit_pb2,
    exit_pb2_grpc,
    host_pb2_grpc,
    migration_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    task_pb2_grpc,
    vcpu_pb2,
    vcpu_pb2_grpc,
    vm_pb2,
    vm_pb2_grpc,
    watch_pb2_grpc,
)
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from host_agent.service.clock import ManualClock
from host_agent.service.server import HostServer

#: What the guests of the tests enable in XCR0: all of Sapphire Rapids, tiles included.
XCR0_AMX = 0x602E7
XTILE_DATA = 1 << 18
IA32_XFD = 0x1C4
#: Long enough for a machine that is busy with something else; what fails without a limit is not waited for at all.
TIMEOUT_S = 60


class World:
    """One host and a stub of each service. ``clock`` is the host's: time passes when a test says so."""

    def __init__(self, server: HostServer, clock: ManualClock, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.clock = clock
        self.hosts = host_pb2_grpc.HostServiceStub(channel)
        self.vms = vm_pb2_grpc.VmServiceStub(channel)
        self.vcpus = vcpu_pb2_grpc.VcpuServiceStub(channel)
        self.tasks = task_pb2_grpc.TaskServiceStub(channel)
        self.sessions = session_pb2_grpc.GuestSessionServiceStub(channel)
        self.exits = exit_pb2_grpc.ExitServiceStub(channel)
        self.watches = watch_pb2_grpc.WatchServiceStub(channel)
        self.migrations = migration_pb2_grpc.MigrationServiceStub(channel)
        self.faults = fault_pb2_grpc.FaultServiceStub(channel)

    async def vm(self, vm_id: str = "a", *, vcpus: int = 1, permit: bool = True, **fields: Any) -> str:  # noqa: ANN401
        """A VM that may use tiles in its guests, with vCPUs 0, 1, ...; returns its name."""
        created = await self.vms.CreateVm(vm_pb2.CreateVmRequest(vm_id=vm_id, vm=vm_pb2.Vm(**fields)))
        name = created.vm.name
        if permit:
            await self.vms.RequestPermission(
                vm_pb2.RequestPermissionRequest(name=name, scope=vm_pb2.PERMISSION_SCOPE_GUEST, feature=18)
            )
        for index in range(vcpus):
            await self.vcpus.CreateVcpu(vcpu_pb2.CreateVcpuRequest(parent=name, index=index))
        return name

    async def guest(self, *vcpus: str, lease_s: int = 0, explicit: bool = False) -> Guest:
        """A session over ``vcpus``; over vCPU 0 of a new VM where none is named."""
        names = vcpus or (f"{await self.vm()}/vcpus/0",)
        request = session_pb2.OpenSessionRequest(client_name="test", vcpus=names)
        request.lease.seconds = lease_s
        if explicit:
            request.run_mode = session_pb2.RUN_MODE_EXPLICIT
        opened = await self.sessions.OpenSession(request)
        return Guest(self, opened.session, opened.epoch, {each.vcpu: each.next_seq for each in opened.vcpus})

    async def control(self, scope: str = "", name: str = "test") -> exit_pb2.AcquireControlResponse:
        """Control of a scope."""
        return await self.exits.AcquireControl(exit_pb2.AcquireControlRequest(scope=scope, controller_name=name))

    async def fail_next_growth(self, *, times: int = 1, vcpu: str = "") -> None:
        """Let the next so many growths of guests' containers fail with ENOMEM."""
        fault = fault_pb2.Fault(
            point="fpstate.realloc.alloc",
            scope=fault_pb2.FaultScope(vcpu=vcpu),
            attributes=fault_pb2.FaultAttributes(times=times),
            action=fault_pb2.FaultAction(errno_action=fault_pb2.ErrnoAction(errno_value=12)),
        )
        await self.faults.ArmFault(fault_pb2.ArmFaultRequest(fault=fault))

    async def open_exit(self) -> str:
        """Wait until there is an exit and return the name of the first."""
        while True:
            listed = await self.exits.ListExits(exit_pb2.ListExitsRequest())
            if listed.exits:
                return listed.exits[0].name
            await asyncio.sleep(0)

    async def resolve(
        self, control: exit_pb2.AcquireControlResponse, exit_name: str, decision: exit_pb2.Decision, generation: int = 1
    ) -> exit_pb2.Exit:
        """Decide, and return the exit afterwards."""
        resolved = await self.exits.ResolveExit(
            exit_pb2.ResolveExitRequest(
                name=exit_name,
                generation=generation,
                control=control.control,
                control_epoch=control.epoch,
                decision=decision,
            )
        )
        return resolved.exit


@dataclass
class Guest:
    """A guest agent's session, counting the numbers of its vCPUs."""

    world: World
    session: str
    epoch: int
    next_seq: dict[str, int] = field(default_factory=dict)

    @property
    def vcpu(self) -> str:
        """The first vCPU."""
        return next(iter(self.next_seq))

    def event(self, vcpu: str = "", **kind: Any) -> event_pb2.GuestEvent:  # noqa: ANN401 -- any kind of event
        """The next event of a vCPU (the first one if none is named); ``kind`` is one field of GuestEvent."""
        name = vcpu or self.vcpu
        seq = self.next_seq[name]
        self.next_seq[name] = seq + 1
        return event_pb2.GuestEvent(vcpu=name, seq=seq, **kind)

    def enable_tiles(self, vcpu: str = "") -> event_pb2.GuestEvent:
        """XSETBV with the tile features: the container has to grow for it."""
        return self.event(vcpu, xsetbv=event_pb2.Xsetbv(value=XCR0_AMX))

    def request(
        self, *events: event_pb2.GuestEvent, wait: session_pb2.WaitMode.ValueType = session_pb2.WAIT_MODE_ACCEPTED
    ) -> session_pb2.SubmitEventsRequest:
        """A batch as SubmitEvents takes it."""
        batch = event_pb2.EventBatch(events=event_pb2.GuestEvents(events=events))
        return session_pb2.SubmitEventsRequest(session=self.session, epoch=self.epoch, batch=batch, wait=wait)

    async def submit(self, *events: event_pb2.GuestEvent) -> list[event_pb2.EventOutcome]:
        """Submit and return the outcomes as they are."""
        answer = await self.world.sessions.SubmitEvents(self.request(*events), timeout=TIMEOUT_S)
        return list(answer.outcomes.outcomes)

    async def submit_until_final(self, *events: event_pb2.GuestEvent) -> list[event_pb2.EventOutcome]:
        """Submit and wait for the final outcomes."""
        request = self.request(*events, wait=session_pb2.WAIT_MODE_FINAL)
        answer = await self.world.sessions.SubmitEvents(request, timeout=TIMEOUT_S)
        return list(answer.outcomes.outcomes)

    def hello(self, *vcpus: str) -> session_pb2.AttachRequest:
        """The first message of a stream."""
        hello = session_pb2.AttachHello(session=self.session, epoch=self.epoch, vcpus=vcpus)
        return session_pb2.AttachRequest(hello=hello)

    @staticmethod
    def batch(*events: event_pb2.GuestEvent) -> session_pb2.AttachRequest:
        """A batch as a stream takes it."""
        batch = event_pb2.EventBatch(events=event_pb2.GuestEvents(events=events))
        return session_pb2.AttachRequest(batch=batch)


async def settled(condition: Callable[[], bool]) -> None:
    """Wait until ``condition()`` holds."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 -- what is waited for has no event of its own
            await asyncio.sleep(0.005)


async def read(stream: Any) -> session_pb2.AttachResponse:  # noqa: ANN401 -- a call has no public type
    """The next message of an Attach stream; there has to be one."""
    message = await asyncio.wait_for(stream.read(), TIMEOUT_S)
    assert isinstance(message, session_pb2.AttachResponse), "the stream has ended"
    return message


async def read_outcomes(stream: Any, count: int) -> list[event_pb2.EventOutcome]:  # noqa: ANN401
    """The next so many outcomes of an Attach stream, which may come in one message or in several."""
    outcomes: list[event_pb2.EventOutcome] = []
    while len(outcomes) < count:
        message = await read(stream)
        assert message.HasField("outcomes"), f"expected outcomes, got {message}"
        outcomes += message.outcomes.outcomes
    assert len(outcomes) == count
    return outcomes


def error_info(error: grpc.aio.AioRpcError | status_pb2.Status) -> error_details_pb2.ErrorInfo:
    """The one ErrorInfo of a failed call or of a rejected event."""
    infos = [detail for detail in details(error) if isinstance(detail, error_details_pb2.ErrorInfo)]
    assert len(infos) == 1, "exactly one ErrorInfo"
    assert infos[0].domain == "fpstate.dev"
    return infos[0]


def details(error: grpc.aio.AioRpcError | status_pb2.Status) -> list[Any]:
    """The details of a google.rpc.Status, unpacked."""
    status = error if isinstance(error, status_pb2.Status) else rpc_status.from_call(cast("grpc.Call", error))
    assert status is not None, f"a bare status: {error}"
    unpacked = []
    for packed in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            if packed.Is(kind.DESCRIPTOR):
                detail = kind()
                packed.Unpack(detail)
                unpacked.append(detail)
    return unpacked
