"""The connection is cut in the middle, and everything happens exactly once all the same."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio
from fpstate.v1 import exit_pb2

from fpstated.client import (
    AsyncHost,
    Done,
    GuestEvent,
    HostError,
    Interrupted,
    RegisterRead,
    RegisterWrite,
    Wrmsr,
    Xsetbv,
    connect,
    connect_async,
    create_guest,
    open_async_session,
    open_session,
)
from fpstated.testing_host import AsyncHostUnderTest, HostUnderTest, async_host, host_on_a_thread
from host_agent.state import HostConfig
from tests import test_guest_aio as on_a_loop
from tests import test_guest_session as on_threads

XCR0_WITH_TILES = 0x602E7
VCPU = "vms/a/vcpus/0"


class Wire:
    """A wire between an agent and its host, in threads: bytes go through until it is cut, and again once it is mended.

    What is cut is gone: connections through it end, and new ones are refused.
    """

    def __init__(self, path: Path, target: str) -> None:
        self.address = f"unix:{path}"
        self._path = path
        self._target = target.removeprefix("unix:")
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.connections = 0
        self.mend()

    def cut(self) -> None:
        """End every connection, and let nobody in."""
        with self._lock:
            listener, self._listener = self._listener, None
            ends, self._ends = self._ends, []
        if listener is not None:
            self._path.unlink()
            _end(listener)
        for end in ends:
            _end(end)

    def mend(self) -> None:
        """Let agents in."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._path))
        listener.listen()
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(self._target)
                with self._lock:
                    self._ends += [near, far]
                    self.connections += 1
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while content := source.recv(65536):
            sink.sendall(content)
    _end(source)
    _end(sink)


def _end(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


# ---- blocking --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[HostUnderTest]:
    """A host on a thread, checking every invariant after every command."""
    with host_on_a_thread(HostConfig(faults=True, check_invariants=True)) as running:
        yield running


@pytest.fixture
def wire(server: HostUnderTest, tmp_path: Path) -> Iterator[Wire]:
    """The wire to that host."""
    made = Wire(tmp_path / "wire.sock", server.address)
    yield made
    made.cut()


def test_a_cut_while_the_vcpu_is_parked_loses_nothing(server: HostUnderTest, wire: Wire) -> None:
    """The thread waits on; the decision falls while nobody is connected; its outcome comes once the wire is mended."""
    with connect(server.address) as host, ThreadPoolExecutor() as pool:
        vcpu = create_guest(host, "a")
        with open_session(wire.address, vcpus=[vcpu]) as session:
            port = session.vcpu(vcpu)
            waiting, parked = on_threads.park(host, port, pool)
            wire.cut()
            on_threads.decide(host, parked.pending.exit, retry=exit_pb2.Retry())
            assert not waiting.done()
            wire.mend()
            assert isinstance(grown := waiting.result(), Done)
            assert grown.reallocated is not None
            assert isinstance(port.hlt(), Done)
            assert wire.connections >= 2
        assert host.get_vcpu(vcpu).next_seq == 3


def test_an_event_that_is_sent_into_a_cut_happens_once(server: HostUnderTest, wire: Wire) -> None:
    """A call that finds nobody is sent again under the same number, as often as it takes."""
    with connect(server.address) as host, ThreadPoolExecutor() as pool:
        vcpu = create_guest(host, "a")
        with open_session(wire.address, vcpus=[vcpu]) as session:
            port = session.vcpu(vcpu)
            port.xsetbv(7)
            wire.cut()
            writing = pool.submit(port.write_register, 2, data=b"once")
            assert not writing.done()
            wire.mend()
            assert isinstance(writing.result(), Done)
            assert isinstance(read := port.read_register(2, length=4), Done)
            assert read.data == b"once"
        assert host.get_vcpu(vcpu).next_seq == 4


def test_a_lease_that_ends_during_the_cut_opens_a_new_session(server: HostUnderTest, wire: Wire) -> None:
    """The vCPU stays parked without an agent; the thread that waits never learns that its session was another one."""
    with connect(server.address) as host, ThreadPoolExecutor() as pool:
        vcpu = create_guest(host, "a")
        with open_session(wire.address, vcpus=[vcpu], lease_s=0.2) as session:
            before = session.key
            waiting, parked = on_threads.park(host, session.vcpu(vcpu), pool)
            wire.cut()
            on_threads.until(lambda: before.name not in server.machine.state.sessions)
            on_threads.decide(host, parked.pending.exit, retry=exit_pb2.Retry())
            wire.mend()
            assert isinstance(waiting.result(), Done)
            assert session.key != before


def test_a_host_that_stays_away_ends_the_call(server: HostUnderTest, wire: Wire) -> None:
    """After `reconnect_s` the call fails; the event stays, and happens when it is waited for again."""
    with connect(server.address) as host:
        vcpu = create_guest(host, "a")
        with open_session(wire.address, vcpus=[vcpu], reconnect_s=0.1) as session:
            port = session.vcpu(vcpu)
            wire.cut()
            with pytest.raises(HostError, match="UNAVAILABLE"):
                port.xsetbv(7)
            assert port.pending is not None
            wire.mend()
            on_threads.until(lambda: _reached(port.wait_pending))
        assert host.get_vcpu(vcpu).xcr0 == 7


def _reached(wait: object) -> bool:
    assert callable(wait)
    try:
        return isinstance(wait(), Done)
    except HostError:
        return False


def test_a_cut_can_be_interrupted(server: HostUnderTest, wire: Wire) -> None:
    """A thread that is between two tries ends at once when it is asked to."""
    with connect(server.address) as host, ThreadPoolExecutor() as pool:
        vcpu = create_guest(host, "a")
        with open_session(wire.address, vcpus=[vcpu], reconnect_s=3600) as session:
            port = session.vcpu(vcpu)
            wire.cut()
            trying = pool.submit(port.hlt)
            port.interrupt()
            with pytest.raises(Interrupted):
                trying.result()
            wire.mend()


# ---- asyncio ---------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def aio_server() -> AsyncIterator[AsyncHostUnderTest]:
    """A host on the test's own loop."""
    async with async_host(HostConfig(faults=True, check_invariants=True)) as running:
        yield running


@pytest_asyncio.fixture
async def aio_host(aio_server: AsyncHostUnderTest) -> AsyncIterator[AsyncHost]:
    """Its client, on a wire that is never cut, with the VM `a`."""
    async with connect_async(aio_server.address) as client:
        await client.create_vm("a")
        await client.request_permission("vms/a")
        await client.create_vcpu("vms/a")
        yield client


@pytest.fixture
def aio_wire(aio_server: AsyncHostUnderTest, tmp_path: Path) -> Iterator[Wire]:
    """The wire to that host."""
    made = Wire(tmp_path / "wire.sock", aio_server.address)
    yield made
    made.cut()


@pytest.mark.asyncio
async def test_a_stream_that_is_cut_goes_on(aio_host: AsyncHost, aio_wire: Wire) -> None:
    """What is parked, what waits behind it, and what is submitted during the cut all happen, once and in order."""
    async with await open_async_session(aio_wire.address, vcpus=[VCPU]) as session:
        port = session.vcpu(VCPU)
        waiting, parked = await on_a_loop.park(aio_host, port)
        behind = asyncio.create_task(port.submit_all([RegisterWrite(2, 0, b"1")]))
        await asyncio.sleep(0)
        aio_wire.cut()
        await on_a_loop.until(lambda: not session.attached)
        during = asyncio.create_task(port.submit_all([RegisterRead(2, 0, 1), RegisterWrite(2, 0, b"2")]))
        await on_a_loop.decide(aio_host, parked.pending.exit, exit_pb2.Decision(retry=exit_pb2.Retry()))
        aio_wire.mend()
        assert isinstance(await waiting, Done)
        assert isinstance((await behind)[0], Done)
        read = (await during)[0]
        assert isinstance(read, Done)
        assert read.data == b"1"
        assert isinstance(last := await port.read_register(2, length=1), Done)
        assert last.data == b"2"
        assert (await aio_host.get_vcpu(VCPU)).next_seq == port.next_seq == 6


@pytest.mark.asyncio
async def test_cuts_again_and_again_repeat_nothing(aio_host: AsyncHost, aio_wire: Wire) -> None:
    """Three cuts in the middle of numbered writes: as many events at the host as were sent, the last value last."""
    rounds, count = 3, 400
    async with await open_async_session(aio_wire.address, vcpus=[VCPU]) as session:
        port = session.vcpu(VCPU)
        await port.xsetbv(7)
        for nr in range(rounds):
            first = port.received_through
            writes: list[GuestEvent] = [
                RegisterWrite(2, 0, (nr * count + n).to_bytes(2, "little")) for n in range(count)
            ]
            under_way = asyncio.create_task(port.submit_all(writes))
            await on_a_loop.until(lambda first=first: port.received_through > first)  # type: ignore[misc]
            aio_wire.cut()
            aio_wire.mend()
            assert all(isinstance(outcome, Done) for outcome in await under_way)
        assert isinstance(last := await port.read_register(2, length=2), Done)
        assert int.from_bytes(last.data, "little") == rounds * count - 1
    assert (await aio_host.get_vcpu(VCPU)).next_seq == rounds * count + 3
    assert aio_wire.connections == 1 + rounds


@pytest.mark.asyncio
async def test_a_lease_that_ends_during_the_cut_is_opened_anew(
    aio_server: AsyncHostUnderTest, aio_host: AsyncHost, aio_wire: Wire
) -> None:
    """A decision that fell without any session is heard by the next one."""
    async with await open_async_session(aio_wire.address, vcpus=[VCPU], lease_s=0.2) as session:
        before = session.key
        port = session.vcpu(VCPU)
        waiting, parked = await on_a_loop.park(aio_host, port)
        aio_wire.cut()
        await on_a_loop.until(lambda: before.name not in aio_server.machine.state.sessions)
        await on_a_loop.decide(aio_host, parked.pending.exit, exit_pb2.Decision(inject_gp=exit_pb2.InjectGp()))
        aio_wire.mend()
        assert not isinstance(await waiting, Done)
        assert session.key != before
        assert isinstance(await port.hlt(), Done)


@pytest.mark.asyncio
async def test_an_earlier_agents_event_that_ended_during_the_cut_is_asked_for(
    aio_host: AsyncHost, aio_wire: Wire
) -> None:
    """The new agent cannot send it again, since it does not know what it was; it asks for its outcome."""
    async with await open_async_session(aio_wire.address, vcpus=[VCPU]) as first:
        given_up, parked = await on_a_loop.park(aio_host, first.vcpu(VCPU))
        given_up.cancel()
    async with await open_async_session(aio_wire.address, vcpus=[VCPU]) as second:
        port = second.vcpu(VCPU)
        await on_a_loop.until(lambda: second.attached)
        aio_wire.cut()
        await on_a_loop.until(lambda: not second.attached)
        await on_a_loop.decide(aio_host, parked.pending.exit, exit_pb2.Decision(retry=exit_pb2.Retry()))
        aio_wire.mend()
        assert isinstance(await port.wait_pending(), Done)
        assert isinstance(await port.hlt(), Done)


@pytest.mark.asyncio
async def test_a_host_that_stays_away_ends_every_wait(aio_host: AsyncHost, aio_wire: Wire) -> None:
    """After `reconnect_s` each of them fails with what gRPC said, and so does whoever comes later."""
    async with await open_async_session(aio_wire.address, vcpus=[VCPU], reconnect_s=0.1) as session:
        port = session.vcpu(VCPU)
        waiting, _parked = await on_a_loop.park(aio_host, port)
        aio_wire.cut()
        for wait in (waiting, port.hlt()):
            with pytest.raises(HostError, match="UNAVAILABLE"):
                await wait


@pytest.mark.asyncio
async def test_mistakes_among_the_events_of_a_cut_stay_mistakes(aio_host: AsyncHost, aio_wire: Wire) -> None:
    """A rejected event is not sent again as if it were lost."""
    async with await open_async_session(aio_wire.address, vcpus=[VCPU]) as session:
        port = session.vcpu(VCPU)
        await port.xsetbv(XCR0_WITH_TILES & 7)
        aio_wire.cut()
        events: list[GuestEvent] = [Wrmsr(0x123, 0), Xsetbv(7), RegisterWrite(2, 0, b""), Xsetbv(7)]
        during = asyncio.create_task(port.submit_all(events))
        await asyncio.sleep(0)
        aio_wire.mend()
        kinds = [type(outcome).__name__ for outcome in await during]
    assert kinds == ["Rejected", "Done", "Rejected", "Done"]
    assert (await aio_host.get_vcpu(VCPU)).xcr0 == 7
