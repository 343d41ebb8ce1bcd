"""Sessions and their unary calls: growth, an exit and its end, numbers, leases."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from fpstate.v1 import event_pb2, exit_pb2, session_pb2, vcpu_pb2, vm_pb2
from google.protobuf import duration_pb2

from host_agent.service.limits import CREDITS_MAX, EVENTS_PER_BATCH_MAX
from tests.service.world import IA32_XFD, TIMEOUT_S, XCR0_AMX, XTILE_DATA, World, error_info

pytestmark = pytest.mark.asyncio

RETRY = exit_pb2.Decision(retry=exit_pb2.Retry())


async def test_a_guest_grows(world: World) -> None:
    """XSETBV with the tiles grows the container within the call, and the outcome says from what to what."""
    guest = await world.guest()
    (outcome,) = await guest.submit_until_final(guest.enable_tiles())
    assert outcome.done.skip_instruction
    assert outcome.done.reallocated.old_bytes < 8192 < outcome.done.reallocated.new_bytes
    assert outcome.done.reallocated.xfeatures & XTILE_DATA
    vcpu = (await world.vcpus.GetVcpu(vcpu_pb2.GetVcpuRequest(name=guest.vcpu))).vcpu
    assert (vcpu.xcr0, vcpu.fpstate.size_bytes) == (XCR0_AMX, outcome.done.reallocated.new_bytes)


async def test_register_bytes_come_back(world: World) -> None:
    """What a guest loaded is what it reads, through the wire and a preemption."""
    guest = await world.guest()
    data = bytes(range(256)) * 32
    outcomes = await guest.submit_until_final(
        guest.enable_tiles(),
        guest.event(register_write=event_pb2.RegisterWrite(feature=18, data=data)),
        guest.event(preempt=event_pb2.Preempt()),
        guest.event(register_read=event_pb2.RegisterRead(feature=18, length=8192)),
    )
    assert [outcome.WhichOneof("outcome") for outcome in outcomes] == ["done"] * 4
    assert outcomes[3].done.data == data


async def test_nm_tells_the_guest_which_feature(world: World) -> None:
    """With XFD set, a use of the tiles is #NM and XFD_ERR names XTILE_DATA; RDMSR reads it back."""
    guest = await world.guest()
    _, _, nm, xfd_err = await guest.submit_until_final(
        guest.event(wrmsr=event_pb2.Wrmsr(msr=IA32_XFD, value=XTILE_DATA)),
        guest.enable_tiles(),
        guest.event(nm=event_pb2.Nm()),
        guest.event(rdmsr=event_pb2.Rdmsr(msr=0x1C5)),
    )
    assert (nm.inject.vector, nm.inject.xfd_err) == (7, XTILE_DATA)
    assert not nm.inject.HasField("error_code")
    assert xfd_err.done.value == XTILE_DATA


async def test_a_wrong_value_is_gp(world: World) -> None:
    """What the processor would refuse is an exception of the guest's, and no error of the call."""
    guest = await world.guest()
    (outcome,) = await guest.submit(guest.event(xsetbv=event_pb2.Xsetbv(value=0)))
    assert (outcome.inject.vector, outcome.inject.error_code) == (13, 0)


async def test_a_failed_growth_parks_the_vcpu_and_nothing_else(world: World) -> None:
    """The outcome is pending on an exit; later events are blocked; another vCPU does not notice."""
    vm = await world.vm(vcpus=2)
    guest = await world.guest(f"{vm}/vcpus/0", f"{vm}/vcpus/1")
    await world.fail_next_growth(vcpu=f"{vm}/vcpus/0")
    pending, blocked, other = await guest.submit(
        guest.enable_tiles(), guest.event(hlt=event_pb2.Hlt()), guest.enable_tiles(f"{vm}/vcpus/1")
    )
    assert pending.pending.exit == f"{vm}/vcpus/0/exits/1"
    assert (blocked.blocked.expected_seq, blocked.blocked.exit) == (2, pending.pending.exit)
    assert other.HasField("done")


async def test_one_blocking_call_per_trapped_instruction(world: World) -> None:
    """SubmitEvents(FINAL) answers when the controller has decided; what was blocked behind is applied then."""
    guest = await world.guest()
    await world.fail_next_growth()
    control = await world.control()
    call = asyncio.create_task(guest.submit_until_final(guest.enable_tiles(), guest.event(hlt=event_pb2.Hlt())))
    exit_name = await world.open_exit()
    assert not call.done()
    resolved = await world.resolve(control, exit_name, RETRY)
    assert resolved.state == exit_pb2.EXIT_STATE_RESOLVED
    assert resolved.result == exit_pb2.EXIT_RESULT_COMMITTED
    grown, halted = await call
    assert grown.done.reallocated.new_bytes > 8192
    assert halted.HasField("done")


async def test_a_deadline_leaves_the_events_taken(world: World) -> None:
    """When the caller's deadline comes first, WaitOutcome gets the final outcome later."""
    guest = await world.guest()
    await world.fail_next_growth()
    control = await world.control()
    request = guest.request(guest.enable_tiles(), wait=session_pb2.WAIT_MODE_FINAL)
    for deadline_s in (0.1, 1, 10):  # a busy machine may not come to the call within a short one: the same again
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.sessions.SubmitEvents(request, timeout=deadline_s)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if world.server.agent.state.exits:
            break
    wait = asyncio.create_task(_wait_outcome(world, guest.session, guest.epoch, guest.vcpu, 1))
    await world.resolve(control, await world.open_exit(), exit_pb2.Decision(inject_gp=exit_pb2.InjectGp()))
    assert (await wait).inject.vector == 13
    assert (await _wait_outcome(world, guest.session, guest.epoch, guest.vcpu, 1)).inject.vector == 13


async def test_init_settles_a_pending_event_in_the_same_batch(world: World) -> None:
    """INIT cancels the exit: the event before it is gone, and a call that waits for it hears so."""
    guest = await world.guest()
    await world.fail_next_growth()
    gone, init = await guest.submit_until_final(guest.enable_tiles(), guest.event(init=event_pb2.Init()))
    assert gone.gone.directive.kind == event_pb2.DIRECTIVE_KIND_RESUME
    assert init.HasField("done")


async def test_killing_a_vm_ends_what_waits(world: World) -> None:
    """The waiting call answers gone, with what the VMM has to do."""
    guest = await world.guest()
    await world.fail_next_growth()
    control = await world.control()
    call = asyncio.create_task(guest.submit_until_final(guest.enable_tiles()))
    resolved = await world.resolve(control, await world.open_exit(), exit_pb2.Decision(kill_vm=exit_pb2.KillVm()))
    assert resolved.result == exit_pb2.EXIT_RESULT_VM_KILLED
    (outcome,) = await call
    assert outcome.gone.directive.kind == event_pb2.DIRECTIVE_KIND_STOP


async def test_deleting_a_vm_by_force_ends_what_waits(world: World) -> None:
    """A vCPU that is not there any more still gives its last answer."""
    guest = await world.guest()
    await world.fail_next_growth()
    call = asyncio.create_task(guest.submit_until_final(guest.enable_tiles()))
    await world.open_exit()
    await world.vms.DeleteVm(vm_pb2.DeleteVmRequest(name="vms/a", force=True))
    (outcome,) = await call
    assert outcome.HasField("gone")


# -- numbers -----------------------------------------------------------------------------------------------------------


async def test_a_repeated_number_gets_its_outcome_again(world: World) -> None:
    """Until the outcome was acknowledged as received; then it is forgotten."""
    guest = await world.guest()
    event = guest.enable_tiles()
    (first,) = await guest.submit(event)
    (again,) = await guest.submit(event)
    assert again == first
    received = event_pb2.EventBatch(outcomes_received_through=[event_pb2.SeqMark(vcpu=guest.vcpu, seq=1)])
    await world.sessions.SubmitEvents(
        session_pb2.SubmitEventsRequest(session=guest.session, epoch=guest.epoch, batch=received)
    )
    (forgotten,) = await guest.submit(event)
    assert error_info(forgotten.rejected).reason == "OUTCOME_FORGOTTEN"


async def test_a_gap_names_the_expected_number(world: World) -> None:
    """An event beyond the next number is not looked at."""
    guest = await world.guest()
    guest.next_seq[guest.vcpu] = 5
    (outcome,) = await guest.submit(guest.event(hlt=event_pb2.Hlt()))
    info = error_info(outcome.rejected)
    assert (info.reason, info.metadata["expectedSeq"]) == ("SEQ_GAP", "1")


async def test_what_is_durable_is_what_was_taken(world: World) -> None:
    """In memory, an event that was taken is as durable as it gets."""
    guest = await world.guest()
    request = guest.request(guest.enable_tiles(), guest.event(hlt=event_pb2.Hlt()))
    answer = await world.sessions.SubmitEvents(request)
    assert [(mark.vcpu, mark.seq) for mark in answer.outcomes.durable_through] == [(guest.vcpu, 2)]


async def test_a_malformed_event_is_its_own_outcome(world: World) -> None:
    """It is rejected with the path of its field; events of other vCPUs in the batch happen."""
    vm = await world.vm(vcpus=2)
    guest = await world.guest(f"{vm}/vcpus/0", f"{vm}/vcpus/1")
    bad_cpl = guest.event(xsetbv=event_pb2.Xsetbv(value=XCR0_AMX, cpl=7))
    nothing = event_pb2.GuestEvent(vcpu=f"{vm}/vcpus/0", seq=2)
    nobody = event_pb2.GuestEvent(vcpu="vms/a/vcpus/007", seq=1, hlt=event_pb2.Hlt())
    outcomes = await guest.submit(bad_cpl, nothing, nobody, guest.enable_tiles(f"{vm}/vcpus/1"))
    assert [_field(outcome) for outcome in outcomes[:3]] == [
        "batch.events.events[0].xsetbv.cpl",
        "batch.events.events[1].kind",
        "batch.events.events[2].vcpu",
    ]
    assert outcomes[3].HasField("done")


async def test_a_batch_has_a_limit(world: World) -> None:
    """More events than HostLimits.events_per_batch_max are refused, and none of them happens."""
    guest = await world.guest()
    events = [guest.event(hlt=event_pb2.Hlt()) for _ in range(EVENTS_PER_BATCH_MAX + 1)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guest.submit(*events)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error_info(caught.value).metadata["limit"] == "events_per_batch_max"
    assert (await guest.submit(events[0]))[0].HasField("done")


async def test_credits_count_what_is_not_final(world: World) -> None:
    """A parked vCPU's event takes one; the event too many is rejected, and its number is not used."""
    vm = await world.vm(vcpus=2)
    guest = await world.guest(f"{vm}/vcpus/0", f"{vm}/vcpus/1")
    await world.fail_next_growth(vcpu=f"{vm}/vcpus/0")
    await guest.submit(guest.enable_tiles())
    events = [guest.event(f"{vm}/vcpus/1", hlt=event_pb2.Hlt()) for _ in range(CREDITS_MAX)]
    outcomes = await guest.submit(*events)
    assert all(outcome.HasField("done") for outcome in outcomes[:1000])
    assert error_info(outcomes[-1].rejected).reason == "CREDITS_EXCEEDED"


async def test_waiting_for_what_was_never_submitted_is_refused(world: World) -> None:
    """WaitOutcome knows the numbers there were."""
    guest = await world.guest()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _wait_outcome(world, guest.session, guest.epoch, guest.vcpu, 1)
    assert error_info(caught.value).reason == "SEQ_GAP"


# -- epochs and leases -------------------------------------------------------------------------------------------------


async def test_the_newest_session_has_the_vcpu(world: World) -> None:
    """The older one keeps its other vCPUs; what it sends for the one it lost is rejected."""
    vm = await world.vm(vcpus=2)
    older = await world.guest(f"{vm}/vcpus/0", f"{vm}/vcpus/1")
    newer = await world.guest(f"{vm}/vcpus/0")
    assert newer.epoch > older.epoch
    lost, kept = await older.submit(older.enable_tiles(), older.enable_tiles(f"{vm}/vcpus/1"))
    assert error_info(lost.rejected).reason == "SESSION_FENCED"
    assert kept.HasField("done")
    assert (await newer.submit(newer.enable_tiles()))[0].HasField("done")


async def test_a_stale_epoch_is_aborted(world: World) -> None:
    """An epoch that is not the session's is refused as a whole."""
    guest = await world.guest()
    guest.epoch += 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guest.submit(guest.enable_tiles())
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert error_info(caught.value).reason == "SESSION_FENCED"


async def test_a_lease_ends_by_itself(world: World) -> None:
    """Time alone ends a session; the next one goes on where it was."""
    guest = await world.guest(lease_s=5)
    await guest.submit(guest.enable_tiles())
    world.clock.advance(4)
    await world.sessions.KeepAlive(session_pb2.KeepAliveRequest(session=guest.session, epoch=guest.epoch))
    world.clock.advance(4)
    await guest.submit(guest.event(hlt=event_pb2.Hlt()))
    world.clock.advance(5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guest.submit(guest.event(hlt=event_pb2.Hlt()))
    assert error_info(caught.value).reason == "SESSION_EXPIRED"
    again = await world.guest(guest.vcpu)
    assert again.next_seq == {guest.vcpu: 3}


async def test_an_expired_lease_ends_what_waits(world: World) -> None:
    """A call that waits for an outcome hears that its session is over; the outcome is kept for the next one."""
    guest = await world.guest(lease_s=5)
    await world.fail_next_growth()
    call = asyncio.create_task(guest.submit_until_final(guest.enable_tiles()))
    await world.open_exit()
    world.clock.advance(5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert error_info(caught.value).reason == "SESSION_EXPIRED"
    request = session_pb2.OpenSessionRequest(vcpus=[guest.vcpu])
    (resume,) = (await world.sessions.OpenSession(request)).vcpus
    assert (resume.next_seq, resume.pending.seq) == (2, 1)


async def test_closing_a_closed_session_is_fine(world: World) -> None:
    """A lost answer can be asked for again."""
    guest = await world.guest()
    request = session_pb2.CloseSessionRequest(session=guest.session, epoch=guest.epoch)
    await world.sessions.CloseSession(request)
    await world.sessions.CloseSession(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guest.submit(guest.enable_tiles())
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_explicit_runs_enter_and_leave_themselves(world: World) -> None:
    """In run mode EXPLICIT an instruction outside the guest is rejected."""
    guest = await world.guest(explicit=True)
    outside, entered, grown, left = await guest.submit(
        guest.enable_tiles(),
        guest.event(enter=event_pb2.Enter(task="vms/a/tasks/main")),
        guest.enable_tiles(),
        guest.event(leave=event_pb2.Leave()),
    )
    assert error_info(outside.rejected).reason == "VCPU_NOT_ENTERED"
    assert entered.HasField("done")
    assert grown.done.HasField("reallocated")
    assert left.HasField("done")


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        pytest.param({"vcpus": ["vms/a"]}, "vcpus[0]", id="a VM is no vCPU"),
        pytest.param({"vcpus": ["vms/a/vcpus/0"], "run_mode": 9}, "run_mode", id="an unknown run mode"),
        pytest.param({"vcpus": ["vms/a/vcpus/0"], "client_name": "x" * 129}, "client_name", id="a name too long"),
        pytest.param(
            {"vcpus": ["vms/a/vcpus/0"], "lease": duration_pb2.Duration(seconds=-1)}, "lease", id="a lease below zero"
        ),
        pytest.param({"vcpus": []}, "vcpus", id="no vCPU at all"),
    ],
)
async def test_a_bad_open_session_names_the_field(world: World, request_: dict[str, object], path: str) -> None:
    """INVALID_ARGUMENT with the path of the field."""
    await world.vm()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.sessions.OpenSession(session_pb2.OpenSessionRequest(**request_))  # type: ignore[arg-type]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_info(caught.value).metadata["field"] == path


async def test_a_missing_capability_is_told_at_once(world: World) -> None:
    """Rather than in the middle."""
    vm = await world.vm()
    request = session_pb2.OpenSessionRequest(
        vcpus=[f"{vm}/vcpus/0"], required_capabilities=["sessions", "manual-clock"]
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.sessions.OpenSession(request)
    assert dict(error_info(caught.value).metadata) == {"capability": "manual-clock"}


# -- helpers -----------------------------------------------------------------------------------------------------------


async def _wait_outcome(world: World, session: str, epoch: int, vcpu: str, seq: int) -> event_pb2.EventOutcome:
    request = session_pb2.WaitOutcomeRequest(session=session, epoch=epoch, vcpu=vcpu, seq=seq)
    return (await world.sessions.WaitOutcome(request, timeout=TIMEOUT_S)).outcome


def _field(outcome: event_pb2.EventOutcome) -> str:
    return str(error_info(outcome.rejected).metadata["field"])


async def test_a_takeover_fences_the_call_that_waits(world: World) -> None:
    """An older session's wait ends with SESSION_FENCED at once; the outcome is the newer agent's, and only its."""
    older = await world.guest()
    await world.fail_next_growth()
    waiting = asyncio.ensure_future(older.submit_until_final(older.enable_tiles()))
    while not world.server.agent.state.exits:  # noqa: ASYNC110 -- the machine is pure: it calls nobody
        await asyncio.sleep(0)
    newer = await world.guest(older.vcpu)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await waiting
    assert error_info(refused.value).reason == "SESSION_FENCED"
    control = await world.control()
    await world.resolve(control, f"{older.vcpu}/exits/1", RETRY)
    request = session_pb2.WaitOutcomeRequest(session=newer.session, epoch=newer.epoch, vcpu=newer.vcpu, seq=1)
    assert (await world.sessions.WaitOutcome(request, timeout=TIMEOUT_S)).outcome.HasField("done")


async def test_who_was_replaced_after_its_lease_is_fenced(world: World) -> None:
    """Another session has used the vCPU's next number meanwhile: taking its outcome for one's own would lose an event.

    The first agent's event never came through, its lease ran out, another agent took the vCPU and used the same number.
    The first one must not hear that its session has merely expired: it would open a new one and go on.
    """
    vm = await world.vm()
    first = await world.guest(f"{vm}/vcpus/0", lease_s=3)
    world.clock.advance(4)
    with pytest.raises(grpc.aio.AioRpcError) as expired:
        await first.submit(first.event(hlt=event_pb2.Hlt()))
    assert error_info(expired.value).reason == "SESSION_EXPIRED"
    second = await world.guest(f"{vm}/vcpus/0", lease_s=3)
    await second.submit(second.event(rdmsr=event_pb2.Rdmsr(msr=IA32_XFD)))
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError) as fenced:
            await first.submit(first.event(hlt=event_pb2.Hlt()))
        info = error_info(fenced.value)
        assert (info.reason, info.metadata["currentEpoch"]) == ("SESSION_FENCED", str(second.epoch))
        world.clock.advance(4)  # also when the second one's lease is over
