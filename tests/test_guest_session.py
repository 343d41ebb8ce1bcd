"""The blocking session against a real host: one call per trapped instruction, exactly once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from fpstate.v1 import exit_pb2, exit_pb2_grpc, session_pb2

from fpstated.client import (
    Directive,
    DirectiveKind,
    Done,
    EventRejected,
    Gone,
    Host,
    HostError,
    Injected,
    Intercepts,
    Interrupted,
    PendingEvent,
    PortStep,
    RunMode,
    SessionLost,
    StillPending,
    TileOp,
    VcpuPort,
    connect,
    create_guest,
    open_session,
)
from fpstated.testing_host import HostUnderTest, host_on_a_thread
from guest_agent.call import BlockingCalls
from guest_agent.directive import DirectiveListener
from guest_agent.opening import SessionKey
from guest_agent.outcome import Refusal
from host_agent.service.clock import ManualClock
from host_agent.state import HostConfig

XFD, XFD_ERR = 0x1C4, 0x1C5
XTILE_DATA = 1 << 18
XCR0_WITH_TILES = 0x602E7
ENOMEM = 12
REALLOC = "fpstate.realloc.alloc"


@pytest.fixture
def server() -> Iterator[HostUnderTest]:
    """A host on a socket of its own, with faults, checking every invariant after every command."""
    with host_on_a_thread(HostConfig(faults=True, check_invariants=True)) as running:
        yield running


@pytest.fixture
def host(server: HostUnderTest) -> Iterator[Host]:
    """The client of that host."""
    with connect(server.address) as client:
        yield client


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that block."""
    with ThreadPoolExecutor(max_workers=4) as threads:
        yield threads


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread brings about; the test's own timeout ends a wait in vain."""
    while not condition():
        time.sleep(0.005)


def decide(host: Host, exit_name: str, **decision: object) -> exit_pb2.Exit:
    """Decide an exit as a controller of its VM would."""
    stub = exit_pb2_grpc.ExitServiceStub(host.channel)
    record = stub.GetExit(exit_pb2.GetExitRequest(name=exit_name), timeout=60).exit
    scope = exit_name.partition("/vcpus/")[0]
    control = stub.AcquireControl(exit_pb2.AcquireControlRequest(scope=scope, controller_name="test"), timeout=60)
    request = exit_pb2.ResolveExitRequest(
        name=exit_name,
        generation=record.generation,
        control=control.control,
        control_epoch=control.epoch,
        decision=exit_pb2.Decision(**decision),  # type: ignore[arg-type]
    )
    answer = stub.ResolveExit(request, timeout=60).exit
    stub.ReleaseControl(exit_pb2.ReleaseControlRequest(control=control.control, epoch=control.epoch), timeout=60)
    return answer


def park(host: Host, port: VcpuPort, pool: ThreadPoolExecutor) -> tuple[Future[object], PendingEvent]:
    """Let the port's next growth fail, begin it in another thread, and wait until the vCPU is parked."""
    host.arm_fault(REALLOC, errno=ENOMEM, vcpu=port.name, fail_nth=1)
    parked: list[PendingEvent] = []
    port.on_pending = parked.append
    waiting: Future[object] = pool.submit(port.xsetbv, XCR0_WITH_TILES)
    until(lambda: bool(parked) or waiting.done())
    return waiting, parked[0]


# ---- one call per instruction ----------------------------------------------------------------------------------------


def test_the_mails_second_run_is_four_calls(host: Host) -> None:
    """XFD armed, tiles enabled, #NM with XFD_ERR, and the XFD write that grows the container."""
    vcpu = create_guest(host, "a")
    with open_session(host.channel, vcpus=[vcpu], client_name="test") as session:
        port = session.vcpu(vcpu)
        assert isinstance(port.wrmsr(XFD, value=XTILE_DATA), Done)
        assert isinstance(port.xsetbv(XCR0_WITH_TILES), Done)
        assert port.tile(TileOp.TILEZERO, tile=0) == Injected(6)  # no configuration yet
        port.tile(TileOp.LDTILECFG, memory=bytes([1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8]))
        assert port.tile(TileOp.TILEZERO, tile=0) == Injected(7, xfd_err=XTILE_DATA)
        assert port.rdmsr(XFD_ERR) == Done(XTILE_DATA, intercepts=host_intercepts(port))
        grown = port.wrmsr(XFD, value=0)
    assert isinstance(grown, Done)
    assert grown.reallocated is not None
    assert (grown.reallocated.old_bytes, grown.reallocated.new_bytes) == (2560, 10752)
    assert host.get_vcpu(vcpu).fpstate.size_bytes == 10752


def host_intercepts(port: VcpuPort) -> Intercepts | None:
    """What is intercepted now, as the port's next outcome says."""
    outcome = port.rdmsr(XFD_ERR)
    assert isinstance(outcome, Done)
    return outcome.intercepts


def test_register_bytes_come_back(host: Host) -> None:
    """What a guest loads is what it reads, by component, offset and length."""
    vcpu = create_guest(host, "a")
    with open_session(host.channel, vcpus=[vcpu]) as session:
        port = session.vcpu(vcpu)
        port.xsetbv(7)
        port.write_register(2, offset=16, data=b"vectors!")
        assert isinstance(read := port.read_register(2, offset=14, length=12), Done)
        assert read.data == b"\0\0vectors!\0\0"


def test_a_refused_instruction_is_a_value(host: Host) -> None:
    """A value that XCR0 can not have is #GP for the guest, and no error of the caller's."""
    vcpu = create_guest(host, "a")
    with open_session(host.channel, vcpus=[vcpu]) as session:
        assert session.vcpu(vcpu).xsetbv(4) == Injected(13, error_code=0)


def test_a_mistake_is_raised_and_the_next_event_goes_on(host: Host) -> None:
    """A rejected event changed nothing; whether or not its number is used, the one behind it happens."""
    vcpu = create_guest(host, "a")
    with open_session(host.channel, vcpus=[vcpu]) as session:
        port = session.vcpu(vcpu)
        with pytest.raises(EventRejected) as used:
            port.wrmsr(0x123, value=0)
        with pytest.raises(EventRejected) as unused:
            port.write_register(2, data=b"")
        assert [error.value.reason for error in (used, unused)] == ["FIELD_INVALID"] * 2
        assert used.value.metadata["expected"] == "0x1c4 (XFD), 0x1c5 (XFD_ERR) or 0xda0 (XSS)"
        assert unused.value.violations
        assert isinstance(port.hlt(), Done)


def test_the_guest_sees_the_cpuid_its_vmm_sets(host: Host) -> None:
    """An empty table leaves XCR0 nothing but x87; CR4.OSXSAVE decides whether there is an XCR0 at all."""
    vcpu = create_guest(host, "a")
    supported = host.get_supported_cpuid("vms/a").cpuid.entries
    assert host.set_cpuid("vms/a", table=supported) == XCR0_WITH_TILES
    assert host.set_cpuid("vms/a", table=[]) == 0
    with pytest.raises(ValueError, match="xcr0_mask or table, and not both"):
        host.set_cpuid("vms/a")
    with open_session(host.channel, vcpus=[vcpu]) as session:
        port = session.vcpu(vcpu)
        assert port.xsetbv(0x3) == Injected(13, error_code=0)
        assert isinstance(read := port.xgetbv(), Done)
        assert read.value == 1
        assert port.write_cr4(1 << 18) == Injected(13, error_code=0), "no XSAVE in the guest's CPUID"
    with pytest.raises(HostError, match="EINVAL"):
        host.set_cpuid("vms/a", table=supported)


def test_a_number_beyond_the_wire_uses_no_number(host: Host) -> None:
    """It is refused here, before anything is sent."""
    vcpu = create_guest(host, "a")
    with open_session(host.channel, vcpus=[vcpu]) as session:
        port = session.vcpu(vcpu)
        with pytest.raises(ValueError, match="out of range"):
            port.xsetbv(1 << 64)
        assert port.next_seq == 1


def test_in_run_mode_explicit_the_client_enters_and_leaves(host: Host) -> None:
    """An instruction outside of KVM_RUN is the caller's mistake; preemption in between changes nothing."""
    vcpu = create_guest(host, "a")
    with open_session(host.channel, vcpus=[vcpu], run_mode=RunMode.EXPLICIT) as session:
        port = session.vcpu(vcpu)
        with pytest.raises(EventRejected, match="VCPU_NOT_ENTERED"):
            port.xsetbv(7)
        port.enter()
        port.xsetbv(7)
        port.write_register(2, data=b"kept")
        port.preempt(cpu=1)
        assert isinstance(read := port.read_register(2, length=4), Done)
        assert read.data == b"kept"
        port.leave()
        with pytest.raises(EventRejected, match="VCPU_NOT_ENTERED"):
            port.leave()


def test_a_session_says_what_to_intercept(host: Host) -> None:
    """As it is when the session is opened: an earlier one may have left it otherwise."""
    vcpu = create_guest(host, "a")
    with open_session(host.channel, vcpus=[vcpu]) as session:
        assert session.vcpu(vcpu).intercepts == Intercepts(xfd_read=True, xfd_write=True, nm=False)
        session.vcpu(vcpu).wrmsr(XFD, value=XTILE_DATA)
    with open_session(host.channel, vcpus=[vcpu]) as session:
        assert session.vcpu(vcpu).intercepts == Intercepts(xfd_read=True, xfd_write=True, nm=True)


def test_two_vcpus_of_one_session_are_two_threads(host: Host, pool: ThreadPoolExecutor) -> None:
    """While one is parked the other goes on."""
    names = [create_guest(host, "a", index=index) for index in (0, 1)]
    with open_session(host.channel, vcpus=names) as session:
        first, second = (session.vcpu(name) for name in names)
        waiting, parked = park(host, first, pool)
        assert isinstance(grown := second.xsetbv(XCR0_WITH_TILES), Done)
        assert grown.reallocated is not None
        decide(host, parked.pending.exit, retry=exit_pb2.Retry())
        assert isinstance(waiting.result(), Done)


# ---- pending ---------------------------------------------------------------------------------------------------------


def test_a_parked_vcpu_blocks_until_the_decision(host: Host, pool: ThreadPoolExecutor) -> None:
    """The call that failed to grow returns what the retry came to, and says meanwhile on which exit it waits."""
    vcpu = create_guest(host, "a")
    steps: list[PortStep] = []
    with open_session(host.channel, vcpus=[vcpu]) as session:
        port = session.vcpu(vcpu)
        port.on_step = steps.append
        waiting, parked = park(host, port, pool)
        assert (parked.seq, parked.pending.exit, parked.pending.generation) == (1, f"{vcpu}/exits/1", 1)
        assert port.pending == parked
        with pytest.raises(StillPending, match=f"{vcpu}: event 1 waits on {vcpu}/exits/1"):
            port.hlt()
        decide(host, parked.pending.exit, retry=exit_pb2.Retry())
        assert isinstance(grown := waiting.result(), Done)
        assert grown.reallocated is not None
        assert isinstance(port.hlt(), Done)  # nothing pends any more
    assert [step.outcome for step in steps[:3]] == [None, parked.pending, grown]


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        pytest.param({"inject_gp": exit_pb2.InjectGp()}, Injected(13, error_code=0), id="inject-gp"),
        pytest.param({"kill_vcpu": exit_pb2.KillVcpu()}, DirectiveKind.STOP, id="kill-vcpu"),
        pytest.param({"reset_vm": exit_pb2.ResetVm()}, DirectiveKind.RESET, id="reset-vm"),
    ],
)
def test_every_final_decision_ends_the_wait(
    host: Host, pool: ThreadPoolExecutor, decision: dict[str, object], expected: object
) -> None:
    """#GP is an exception for the guest; a vCPU that is killed or reset is gone, with what the VMM has to do."""
    vcpu = create_guest(host, "a")
    with open_session(host.channel, vcpus=[vcpu]) as session:
        waiting, parked = park(host, session.vcpu(vcpu), pool)
        decide(host, parked.pending.exit, **decision)
        outcome = waiting.result()
    assert (outcome.directive.kind if isinstance(outcome, Gone) else outcome) == expected


def test_init_cancels_what_pends(host: Host, pool: ThreadPoolExecutor) -> None:
    """INIT comes from another thread, under the next number, and the vCPU's own thread gets Gone."""
    vcpu = create_guest(host, "a")
    with open_session(host.channel, vcpus=[vcpu]) as session:
        port = session.vcpu(vcpu)
        waiting, _parked = park(host, port, pool)
        assert isinstance(port.init(), Done)
        assert isinstance(waiting.result(), Gone)
        assert isinstance(port.hlt(), Done)
        assert port.next_seq == 4


def test_a_wait_can_be_abandoned_and_taken_up_again(host: Host, pool: ThreadPoolExecutor) -> None:
    """`interrupt` ends the call, not the event: its outcome is waited for later, and it happened once."""
    vcpu = create_guest(host, "a")
    with open_session(host.channel, vcpus=[vcpu]) as session:
        port = session.vcpu(vcpu)
        waiting, parked = park(host, port, pool)
        port.interrupt()
        with pytest.raises(Interrupted):
            waiting.result()
        assert port.pending == parked
        decide(host, parked.pending.exit, retry=exit_pb2.Retry())
        assert isinstance(port.wait_pending(), Done)
        assert (port.next_seq, host.get_vcpu(vcpu).next_seq) == (2, 2)


def test_an_interrupt_that_comes_early_is_not_lost(host: Host) -> None:
    """It ends the next call where none is under way, and only that; the event was kept and can be waited for."""
    vcpu = create_guest(host, "a")
    with open_session(host.channel, vcpus=[vcpu]) as session:
        port = session.vcpu(vcpu)
        port.interrupt()
        with pytest.raises(Interrupted):
            port.hlt()
        assert port.pending is not None
        assert isinstance(port.wait_pending(), Done)
        with pytest.raises(LookupError, match="no event is pending"):
            port.wait_pending()


# ---- sessions --------------------------------------------------------------------------------------------------------


def test_a_new_agent_takes_a_parked_vcpu_over(host: Host, pool: ThreadPoolExecutor) -> None:
    """Its session says which event pends; it waits for it, and goes on with the next number."""
    vcpu = create_guest(host, "a")
    first = open_session(host.channel, vcpus=[vcpu])
    waiting, parked = park(host, first.vcpu(vcpu), pool)
    with open_session(host.channel, vcpus=[vcpu]) as second:
        port = second.vcpu(vcpu)
        assert port.pending == PendingEvent(1, None, parked.pending)
        with pytest.raises(HostError, match="SESSION_FENCED"):
            waiting.result()
        decide(host, parked.pending.exit, inject_gp=exit_pb2.InjectGp())
        assert port.wait_pending() == Injected(13, error_code=0)
        assert isinstance(port.hlt(), Done)
        with pytest.raises(HostError, match="SESSION_FENCED"):
            first.vcpu(vcpu).wait_pending()
    first.close()


def test_an_ended_lease_opens_a_new_session(server: HostUnderTest, host: Host) -> None:
    """The numbers belong to the vCPU: the call behind the gap goes on where the one before it was."""
    vcpu = create_guest(host, "a")
    with open_session(host.channel, vcpus=[vcpu]) as session:
        port = session.vcpu(vcpu)
        port.xsetbv(7)
        before = session.key
        host_forgets(server, before.name)
        port.write_register(2, data=b"still here")
        assert session.key != before
        assert isinstance(read := port.read_register(2, length=10), Done)
        assert read.data == b"still here"
        assert port.next_seq == 4


def host_forgets(server: HostUnderTest, session: str) -> None:
    """End a session as its lease would: through the wire, by whoever knows its epoch."""
    record = server.machine.state.sessions[session]
    with grpc.insecure_channel(server.address) as channel:
        from fpstate.v1.session_pb2_grpc import GuestSessionServiceStub

        request = session_pb2.CloseSessionRequest(session=session, epoch=record.epoch)
        GuestSessionServiceStub(channel).CloseSession(request, timeout=60)


def test_the_lease_is_renewed_while_nothing_happens() -> None:
    """A session that says nothing for several leases of the host's clock is still the same one."""
    clock = ManualClock()
    with host_on_a_thread(HostConfig(), clock) as server, connect(server.address) as host:
        vcpu = create_guest(host, "a")
        with open_session(host.channel, vcpus=[vcpu], lease_s=0.3) as session:
            before, record = session.key, server.machine.state.sessions[session.key.name]
            for _ in range(5):
                server.advance(0.2)
                until(lambda: record.expires_ns == clock.now_ns() + record.lease_ns)
            session.vcpu(vcpu).hlt()
            assert session.key == before


def test_a_vcpu_that_was_made_anew_is_another_one(server: HostUnderTest, host: Host) -> None:
    """An agent does not go on with the numbers of a vCPU that was deleted."""
    vcpu = create_guest(host, "a")
    with open_session(host.channel, vcpus=[vcpu]) as session:
        session.vcpu(vcpu).hlt()
        host_forgets(server, session.key.name)
        host.delete_vm("vms/a", force=True)
        assert create_guest(host, "a") == vcpu
        with pytest.raises(SessionLost, match="it was made anew"):
            session.vcpu(vcpu).hlt()


def test_closing_ends_every_wait(host: Host, pool: ThreadPoolExecutor) -> None:
    """A thread that waits on a port of a closed session hears of it, and so does whoever comes later."""
    vcpu = create_guest(host, "a")
    session = open_session(host.channel, vcpus=[vcpu])
    waiting, _parked = park(host, session.vcpu(vcpu), pool)
    session.close()
    session.close()
    with pytest.raises(Interrupted):
        waiting.result()
    with pytest.raises(SessionLost, match="closed by its owner"):
        session.vcpu(vcpu).wait_pending()


def test_a_session_without_its_vcpu_is_refused(host: Host) -> None:
    """The refusal names the vCPU, and the capability that a host lacks."""
    with pytest.raises(HostError, match="VCPU_NOT_FOUND") as missing:
        open_session(host.channel, vcpus=["vms/none/vcpus/0"])
    assert missing.value.metadata == {"vcpu": "vms/none/vcpus/0"}
    vcpu = create_guest(host, "a")
    with pytest.raises(HostError, match="CAPABILITY_MISSING"):
        open_session(host.channel, vcpus=[vcpu], required_capabilities=["time-travel"])


def test_a_host_that_is_not_there_is_unavailable(tmp_path_factory: pytest.TempPathFactory) -> None:
    """GRPC's own failure has a status and no reason."""
    nowhere = tmp_path_factory.mktemp("no") / "host.sock"
    with pytest.raises(HostError) as caught:
        open_session(f"unix:{nowhere}", vcpus=["vms/a/vcpus/0"])
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "")


# ---- directives and the host's own calls -----------------------------------------------------------------------------


def test_a_directive_is_carried_out_and_acknowledged(
    server: HostUnderTest, host: Host, pool: ThreadPoolExecutor
) -> None:
    """When one vCPU's decision kills its VM, the other hears STOP although it waits for nothing."""
    names = [create_guest(host, "a", index=index) for index in (0, 1)]
    heard: list[Directive] = []
    with open_session(host.channel, vcpus=names) as session:
        with DirectiveListener(session, heard.append, vcpus=names[1:]):
            waiting, parked = park(host, session.vcpu(names[0]), pool)
            decide(host, parked.pending.exit, kill_vm=exit_pb2.KillVm())
            until(lambda: bool(heard))
            record = server.machine.state.sessions[session.key.name]
            until(lambda: all(each.vcpu != names[1] for each in record.directives.values()))
        assert isinstance(waiting.result(), Gone)
        assert [(each.vcpu, each.kind) for each in heard] == [(names[1], DirectiveKind.STOP)]
        with pytest.raises(EventRejected, match="VCPU_KILLED"):
            session.vcpu(names[1]).hlt()


def test_setting_up_twice_is_setting_up_once(host: Host) -> None:
    """With a request_id the first call's answers come again; without one, what exists is taken as it is."""
    assert create_guest(host, "a", request_id="once") == create_guest(host, "a", request_id="once")
    assert create_guest(host, "a") == "vms/a/vcpus/0"
    assert [vm.name for vm in host.list_vms()] == ["vms/a"]
    assert [vcpu.name for vcpu in host.list_vcpus("vms/a")] == ["vms/a/vcpus/0"]
    assert host.get_vm("vms/a").guest_perm & XTILE_DATA


def test_the_hosts_calls(host: Host) -> None:
    """Faults are armed, counted and taken out; a VM is reset and deleted; what is refused is a HostError."""
    assert "sessions" in host.info().capabilities
    vcpu = create_guest(host, "a")
    fault = host.arm_fault(REALLOC, errno=ENOMEM, vm="vms/a", times=1)
    assert [each.name for each in host.list_faults()] == [fault.name]
    assert host.disarm_fault(fault.name).hits == 0
    assert host.list_faults() == []
    assert host.reset_vm("vms/a").name == "vms/a"
    assert host.get_vcpu(vcpu).incarnation == 2
    assert host.list_exits("vms/a") == []
    may = host.get_permission("vms/a", guest=False)
    assert (may.supported, may.permitted, may.locked) == (0x602E7, 0x202E7, False)
    assert host.set_altstack("vms/a/tasks/main", 2048).altstack_bytes == 2048
    with pytest.raises(HostError, match="ENOMEM"):
        host.set_altstack("vms/a/tasks/main", 2047)
    assert host.set_altstack("vms/a/tasks/main", None).altstack_bytes == 0
    with pytest.raises(HostError, match="VM_NOT_EMPTY"):
        host.delete_vm("vms/a")
    host.delete_vcpu(vcpu)
    host.delete_vm("vms/a")
    with pytest.raises(HostError, match="VM_NOT_FOUND"):
        host.get_vm("vms/a")


def test_a_program_with_fault_points_of_its_own(host: Host) -> None:
    """It asks at each hit what is to happen; its owner renews the lease and heals in the end."""
    fault = host.arm_fault("mine.write", errno=ENOMEM, owner="me", fail_nth=2, lease_s=60.0)
    answers = [host.evaluate("mine.write", size=512) for _ in range(3)]
    assert [answer.errno_action.errno_value if answer else 0 for answer in answers] == [0, ENOMEM, 0]
    assert (host.renew_faults("me"), host.renew_faults("them")) == (1, 0)
    assert [(each.name, each.hits) for each in host.reset_faults("me")] == [(fault.name, 3)]
    assert host.reset_faults() == []


def test_no_thread_outlives_its_session(host: Host) -> None:
    """The keepalive thread ends with the session."""
    vcpu = create_guest(host, "a")
    with open_session(host.channel, vcpus=[vcpu]):
        assert any(thread.name == "fpstated-keepalive" for thread in threading.enumerate())
    assert not any(thread.name == "fpstated-keepalive" for thread in threading.enumerate())


class _Hold:
    """A session that a thread of ours has opened anew while a call of the old one was under way."""

    def __init__(self, *, reopened: bool) -> None:
        self.key = SessionKey("sessions/old", 1)
        self.closed = False
        self._reopened = reopened

    def reopen(self, key: SessionKey) -> None:
        """Nobody asks for it."""
        raise AssertionError(key)

    def move(self, key: SessionKey, target: str) -> None:
        """Nobody asks for it."""
        raise AssertionError(key, target)

    def reopened(self, key: SessionKey) -> bool:
        """The new key is there once this was asked."""
        if self._reopened:
            self.key = SessionKey("sessions/new", 2)
        return key != self.key


class _Call:
    """A call that was answered, or refused."""

    def __init__(self, refused: HostError | None) -> None:
        self._refused = refused

    def result(self) -> str:
        """Answer."""
        if self._refused is not None:
            raise self._refused
        return "answer"


@pytest.mark.parametrize("reopened", [True, False])
def test_our_own_new_session_is_nobody_elses(reopened: bool) -> None:
    """A call that hears of the fence that our own new session has put up goes on in that; another's ends it."""
    fenced = HostError(Refusal("ABORTED", "fenced", "SESSION_FENCED"))
    calls = BlockingCalls(_Hold(reopened=reopened), reconnect_s=1)

    def start(key: SessionKey) -> Any:  # noqa: ANN401 -- a future of grpc's
        return _Call(fenced if key.epoch == 1 else None)

    if reopened:
        assert calls.until_answered(start) == "answer"
        return
    with pytest.raises(HostError):
        calls.until_answered(start)


@pytest.mark.parametrize("held", [True, False])
def test_patience_is_for_a_host_that_is_not_there(held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that a host held for long and lost by its end begins a new patience: a decision may take several hosts."""
    monkeypatch.setattr("guest_agent.call.HELD_S", 0.01 if held else 1000.0)
    calls = BlockingCalls(_Hold(reopened=False), reconnect_s=0.2)
    tries = iter(range(8))

    class Lost(_Call):
        def result(self) -> str:
            time.sleep(0.02)
            return super().result()

    def start(_key: SessionKey) -> Any:  # noqa: ANN401 -- a future of grpc's
        return Lost(HostError(Refusal("UNAVAILABLE", "cut")) if next(tries, None) is not None else None)

    if held:
        assert calls.until_answered(start) == "answer"
        return
    with pytest.raises(HostError, match="cut"):
        calls.until_answered(start)
