"""A session for asyncio, over one Attach stream.

    async with await open_async_session("unix:/run/fpstated.sock", vcpus=["vms/a/vcpus/0"]) as session:
        port = session.vcpu("vms/a/vcpus/0")
        outcome = await port.wrmsr(MSR_IA32_XFD, value=0)
        outcomes = await port.submit_all([Rdmsr(MSR_IA32_XFD), Rdmsr(MSR_IA32_XFD_ERR)])

One task reads the stream for as long as the session lives. When the stream breaks it attaches again, after a pause that
doubles, in a new session where the lease has ended, and everything without a final outcome is sent again under its own
number. Nothing ever waits for a single read with a time limit, which would cancel the call.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from fpstate.v1 import session_pb2

from guest_agent.aio_link import AsyncLink, open_on
from guest_agent.aio_port import AsyncVcpuPort
from guest_agent.channel import connect_async
from guest_agent.moving import goes_with_its_vm
from guest_agent.opening import RunMode, SessionKey, SessionSpec, resume_from_proto
from guest_agent.outcome import Directive, DirectiveKind
from guest_agent.packed import NumberedEvent, numbered_batch
from guest_agent.wait import SessionLost
from guest_agent.wire import directive_from_proto, done_of_run, outcome_from_proto

RECONNECT_S = 60.0
#: Events of one message: with a whole tile register each it still is far below what a host reads at once.
EVENTS_PER_MESSAGE = 256

OnDirective = Callable[[Directive], Awaitable[None] | None]


async def open_async_session(  # noqa: PLR0913 -- keywords, all with defaults
    host: str | grpc.aio.Channel,
    *,
    vcpus: Sequence[str],
    client_name: str = "",
    run_mode: RunMode = RunMode.IMPLICIT,
    lease_s: float | None = None,
    required_capabilities: Sequence[str] = (),
    reconnect_s: float = RECONNECT_S,
    on_directive: OnDirective | None = None,
    connect_to: Callable[[str], grpc.aio.Channel] = connect_async,
) -> AsyncSession:
    """Open a session over vCPUs that exist, at an address (`unix:PATH`, `HOST:PORT`) or on a channel of the caller's.

    `lease_s` is a wish in seconds, the host decides. `reconnect_s` is how long the session tries to reach a host that
    has gone away, in seconds. `on_directive` carries out what the host has decided about a vCPU, and when it has
    returned the directive is acknowledged; without it directives are left to `Gone` outcomes, apart from PAUSE and
    RESUME, which the session carries out by itself: what is submitted for a paused vCPU waits. `connect_to` makes a
    channel to where the session's VM has moved, which the session follows by itself.

    Raises:
        HostError: the host refused (`VCPU_NOT_FOUND`, `CAPABILITY_MISSING` ...) or was not reached.
        ValueError: the address is none.
    """
    spec = SessionSpec(
        vcpus=tuple(vcpus),
        client_name=client_name,
        run_mode=run_mode,
        lease_s=lease_s,
        required_capabilities=tuple(required_capabilities),
    )
    channel = connect_to(host) if isinstance(host, str) else host
    owns_channel = isinstance(host, str)
    try:
        opened = await open_on(channel, spec)
    except BaseException:
        if owns_channel:
            await channel.close()
        raise
    link = AsyncLink(channel, spec, opened, owns_channel=owns_channel, reconnect_s=reconnect_s, connect_to=connect_to)
    return AsyncSession(link, on_directive=on_directive)


class AsyncSession:
    """An open session; made by `open_async_session`, ended by `close` or the end of its `async with` block.

    Everything belongs to the event loop it was opened on.
    """

    def __init__(self, link: AsyncLink, *, on_directive: OnDirective | None) -> None:
        self._link = link
        self._on_directive = on_directive
        self._directives: asyncio.Queue[Directive] = asyncio.Queue()
        self._credits = link.opened.credits
        #: Events of all vCPUs that were sent and have no final outcome yet; the ports count.
        self.under_way = 0
        self._queued: dict[AsyncVcpuPort, None] = {}
        self._received: dict[AsyncVcpuPort, None] = {}
        self._ports = {each.vcpu: AsyncVcpuPort(self, each) for each in link.opened.vcpus}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        for coroutine in (link.run(self._take), self._keep_alive(), self._carry_out_directives()):
            self._start(coroutine)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def key(self) -> SessionKey:
        """Name and epoch; another one after the session was opened again."""
        return self._link.key

    @property
    def lease_s(self) -> float:
        """Length of the lease as granted, in seconds."""
        return self._link.opened.lease_s

    @property
    def vcpus(self) -> tuple[str, ...]:
        """The vCPUs of the session: `vms/{vm}/vcpus/{index}`."""
        return tuple(self._ports)

    @property
    def attached(self) -> bool:
        """Whether there is a stream now; without one, events wait for the next."""
        return self._link.attached

    @property
    def credits_left(self) -> int:
        """How many events more may be under way."""
        return max(0, self._credits - self.under_way)

    def vcpu(self, name: str) -> AsyncVcpuPort:
        """Return the port of a vCPU of this session.

        Raises:
            KeyError: the session was not opened with this vCPU.
        """
        return self._ports[name]

    async def close(self) -> None:
        """End the session: every wait fails with `SessionLost`, its vCPUs leave the guest. Twice is fine.

        What the host says to it is not asked: a session that is not closed ends with its lease.
        """
        if self._closed:
            return
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._end(SessionLost("the session was closed by its owner"))
        await self._link.close()

    # ---- what comes --------------------------------------------------------------------------------------------------

    def _take(self, response: session_pb2.AttachResponse) -> None:
        match response.WhichOneof("body"):
            case "attached":
                self._take_attached(response.attached)
            case "outcomes":
                self._take_outcomes(response.outcomes)
            case "credits":
                self._credits = response.credits.events
            case "draining":
                self._link.resume_target = response.draining.resume_target
            case "directive":
                self._take_directive(directive_from_proto(response.directive))
            case None:
                pass  # news of a later version of the contract
        self._pump()

    def _take_attached(self, attached: session_pb2.Attached) -> None:
        """Send again what has no final outcome yet, and ask for one that came while nobody was attached."""
        self._credits = attached.credits
        self._received = dict.fromkeys(self._ports.values())  # what was said before may have been lost
        for resume in map(resume_from_proto, attached.vcpus):
            port = self._ports[resume.vcpu]
            self.send(port.attach(resume))
            seq = port.unknown_seq(resume)
            if seq is not None:
                self._start(self._ask(port, seq))

    def _take_outcomes(self, outcomes: session_pb2.Outcomes) -> None:
        taken = {mark.vcpu: mark.seq for mark in outcomes.durable_through}
        for each in outcomes.outcomes:
            port = self._ports.get(each.vcpu)
            if port is not None:
                port.hear(each.seq, outcome_from_proto(each), taken=taken.get(each.vcpu, each.seq) >= each.seq)
        for run in outcomes.done_runs:
            port = self._ports.get(run.vcpu)
            if port is not None:
                done = done_of_run(run)
                for seq in range(run.first_seq, run.last_seq + 1):
                    port.hear(seq, done)

    def _take_directive(self, directive: Directive) -> None:
        """Hand a directive on; the VM's move is followed here."""
        if directive.kind is not DirectiveKind.MOVED or not self.follows(directive.target):
            self._directives.put_nowait(directive)

    def follows(self, target: str) -> bool:
        """Go to `target`, where the VM lives now, if the session can; for the session's ports."""
        if not goes_with_its_vm(self.vcpus):
            return False
        self._link.move(target)
        return True

    async def _ask(self, port: AsyncVcpuPort, seq: int) -> None:
        outcome = await self._link.wait_outcome(port.name, seq)
        if outcome is not None:
            port.hear(seq, outcome)
            self._pump()

    def _pump(self) -> None:
        """Let those send that have something: however many vCPUs there are, most have not."""
        for port in list(self._queued):
            port.pump()
            if not port.queued:
                self._queued.pop(port, None)

    # ---- what goes ---------------------------------------------------------------------------------------------------

    def has_queued(self, port: AsyncVcpuPort) -> None:
        """An event of this port waits to be sent."""
        self._queued[port] = None

    def has_received(self, port: AsyncVcpuPort) -> None:
        """A final outcome has come for this port: the next batch says so."""
        self._received[port] = None

    def send(self, events: Sequence[NumberedEvent]) -> None:
        """Send events on the stream that is attached; for the session's ports."""
        for first in range(0, len(events), EVENTS_PER_MESSAGE):
            self._send_batch(events[first : first + EVENTS_PER_MESSAGE])

    def _send_batch(self, events: Sequence[NumberedEvent]) -> None:
        if not self._link.attached:
            return  # what matters is sent again on the next stream
        received = {port.name: port.received_through for port in self._received}
        self._received.clear()
        self._link.send(session_pb2.AttachRequest(batch=numbered_batch(events, received_through=received)))

    async def _keep_alive(self) -> None:
        """Renew the lease at a third of it, with a batch that only says what was received."""
        while True:
            await asyncio.sleep(self.lease_s / 3)
            self._send_batch(())

    async def _carry_out_directives(self) -> None:
        """Carry directives out in their order, and acknowledge each; one that comes again is only acknowledged."""
        done: dict[tuple[int, str], int] = {}  # ids of directives are each host's own
        while True:
            directive = await self._directives.get()
            of = self._link.moves, directive.vcpu
            if directive.id > done.get(of, 0):
                if not await self._carried_out(directive):
                    continue
                done[of] = directive.id
            ack = session_pb2.DirectiveAck(id=directive.id, vcpu=directive.vcpu)
            self._link.send(session_pb2.AttachRequest(directive_ack=ack))

    async def _carried_out(self, directive: Directive) -> bool:
        """Carry one out. PAUSE and RESUME are the port's: nothing of the vCPU's is sent while it is paused."""
        port = self._ports.get(directive.vcpu)
        pausing = directive.kind in (DirectiveKind.PAUSE, DirectiveKind.RESUME)
        if port is not None:
            port.paused = directive.kind is DirectiveKind.PAUSE
            port.pump()
        if self._on_directive is None:
            return pausing
        answer = self._on_directive(directive)
        if inspect.isawaitable(answer):
            await answer
        return True

    # ---- tasks -------------------------------------------------------------------------------------------------------

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(coroutine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a part of the session; what ends it ends the session, and comes out of every wait."""
        try:
            await coroutine
        except Exception as error:  # noqa: BLE001 -- whoever waits, now or later, raises it
            self._end(error)

    def _end(self, error: Exception) -> None:
        for port in self._ports.values():
            port.end(error)
