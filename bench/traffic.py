"""What guests do when they do not grow, as messages: batches of events in both forms, and a stream that takes them.

Four kinds of event by turns on four vCPUs: XSETBV, WRMSR of XFD, RDMSR of XFD, and a register load of 16 bytes. A
quarter has an answer that says something (the RDMSR), and none leaves anything as it would be without it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from fpstate.v1 import event_pb2, session_pb2, session_pb2_grpc, vcpu_pb2, vcpu_pb2_grpc, vm_pb2, vm_pb2_grpc

from bench.echo import ATTACH
from host_agent.service.translate.packed import Record, encode

BATCH: Final = 256
VCPUS: Final = 4
#: Batches under way on a stream: enough for client and server to work at once.
WINDOW: Final = 4
_XFD: Final = 0x1C4


@dataclass(slots=True)
class Guests:
    """vCPUs of one session, and the numbers that their next events have."""

    session: str
    epoch: int
    names: list[str]
    next_seq: list[int] = field(default_factory=lambda: [1] * VCPUS)

    def batch(self, *, packed: bool) -> event_pb2.EventBatch:
        """The next batch. Says that the outcomes were received of what came a window before."""
        received = [
            event_pb2.SeqMark(vcpu=name, seq=seq - 1 - WINDOW * BATCH // VCPUS)
            for name, seq in zip(self.names, self.next_seq, strict=True)
            if seq - 1 > WINDOW * BATCH // VCPUS
        ]
        if packed:
            records = [self._record(nr) for nr in range(BATCH)]
            return event_pb2.EventBatch(packed=encode(self.names, records), outcomes_received_through=received)
        events = event_pb2.GuestEvents(events=[self._event(nr) for nr in range(BATCH)])
        return event_pb2.EventBatch(events=events, outcomes_received_through=received)

    def _number(self, nr: int) -> int:
        seq = self.next_seq[nr % VCPUS]
        self.next_seq[nr % VCPUS] += 1
        return seq

    def _event(self, nr: int) -> event_pb2.GuestEvent:
        event = event_pb2.GuestEvent(vcpu=self.names[nr % VCPUS], seq=self._number(nr))
        match nr // VCPUS % 4:
            case 0:
                event.xsetbv.value = 7
            case 1:
                event.wrmsr.msr = _XFD
            case 2:
                event.rdmsr.msr = _XFD
            case _:
                event.register_write.feature = 1
                event.register_write.data = bytes(16)
        return event

    def _record(self, nr: int) -> Record:
        kind, arg, value, payload = ((6, 0, 7, b""), (7, _XFD, 0, b""), (8, _XFD, 0, b""), (10, 1, 0, bytes(16)))[
            nr // VCPUS % 4
        ]
        return Record(kind, 0, nr % VCPUS, arg, self._number(nr), value, payload)


async def open_guests(channel: grpc.aio.Channel, vm_id: str) -> Guests:
    """A VM with vCPUs on a host, and a session over them."""
    vms, vcpus = vm_pb2_grpc.VmServiceStub(channel), vcpu_pb2_grpc.VcpuServiceStub(channel)
    await vms.CreateVm(vm_pb2.CreateVmRequest(vm_id=vm_id))
    names = [f"vms/{vm_id}/vcpus/{index}" for index in range(VCPUS)]
    for index in range(VCPUS):
        await vcpus.CreateVcpu(vcpu_pb2.CreateVcpuRequest(parent=f"vms/{vm_id}", index=index))
    request = session_pb2.OpenSessionRequest(client_name="bench", vcpus=names)
    request.lease.seconds = 3600
    opened = await session_pb2_grpc.GuestSessionServiceStub(channel).OpenSession(request)
    return Guests(opened.session, opened.epoch, names)


class Stream:
    """An Attach stream to the host, or to the bare server, which sends each message back."""

    def __init__(self, channel: grpc.aio.Channel, reply: Any, heard: Callable[[Any], int]) -> None:  # noqa: ANN401
        """``reply`` is the class of what comes back, ``heard`` how many events a message answers."""
        self._heard = heard
        self._call = channel.stream_stream(
            ATTACH,
            request_serializer=session_pb2.AttachRequest.SerializeToString,
            response_deserializer=reply.FromString,
        )()

    async def open(self, guests: Guests) -> None:
        """Say hello, and hear the answer."""
        hello = session_pb2.AttachHello(session=guests.session, epoch=guests.epoch, done_runs=True)
        await self._call.write(session_pb2.AttachRequest(hello=hello))
        await self._call.read()

    async def run(self, messages: list[session_pb2.AttachRequest]) -> float:
        """Send batches, so many under way, until all are answered; events a second."""
        begin_s = time.perf_counter()
        sent = heard = 0
        while heard < len(messages) * BATCH:
            while sent < len(messages) and sent * BATCH - heard < WINDOW * BATCH:
                await self._call.write(messages[sent])
                sent += 1
            heard += self._heard(await self._call.read())
        return len(messages) * BATCH / (time.perf_counter() - begin_s)

    def cancel(self) -> None:
        """End the call."""
        self._call.cancel()


def host_stream(channel: grpc.aio.Channel) -> Stream:
    """A stream to a host."""

    def heard(reply: session_pb2.AttachResponse) -> int:
        runs = reply.outcomes.done_runs
        return len(reply.outcomes.outcomes) + sum(run.last_seq - run.first_seq + 1 for run in runs)

    return Stream(channel, session_pb2.AttachResponse, heard)


def echo_stream(channel: grpc.aio.Channel) -> Stream:
    """A stream to the bare server."""
    return Stream(channel, session_pb2.AttachRequest, lambda _reply: BATCH)


def blocks(guests: Guests, *, packed: bool, batches: int) -> Iterator[list[session_pb2.AttachRequest]]:
    """Blocks of messages, without end, each made before it is measured."""
    for _ in itertools.count():
        yield [session_pb2.AttachRequest(batch=guests.batch(packed=packed)) for _ in range(batches)]
