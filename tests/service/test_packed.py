"""Packed records: the documented layout, byte for byte, and what refuses a whole message."""

from __future__ import annotations

import struct

import grpc
import pytest
from fpstate.v1 import event_pb2, session_pb2
from hypothesis import given
from hypothesis import strategies as st

from fpu_core.tile import TileOp
from fpu_core.xsave_insn import XsaveInsn
from host_agent import events as e
from host_agent.service.errors import Failure
from host_agent.service.translate.packed import Record, careful, decode, encode, quick
from tests.service.world import XCR0_AMX, World, error_info

VCPU = "vms/a/vcpus/0"
HEADER = struct.Struct("<HHIIIQQ")


def record(kind: int, *, flags: int = 0, arg: int = 0, value: int = 0, payload: bytes = b"", seq: int = 1) -> Record:
    """A record of the one vCPU."""
    return Record(kind, flags, 0, arg, seq, value, payload)


@pytest.mark.parametrize(
    ("packed", "kind"),
    [
        pytest.param(record(3), e.Enter(), id="enter"),
        pytest.param(record(3, payload=b"vms/a/tasks/t1"), e.Enter(task="t1"), id="enter on a task"),
        pytest.param(record(4), e.Leave(), id="leave"),
        pytest.param(record(5), e.Preempt(), id="preempt"),
        pytest.param(record(5, flags=1, arg=3), e.Preempt(cpu=3), id="preempt to a CPU"),
        pytest.param(record(6, flags=3, arg=1, value=7), e.Xsetbv(index=1, value=7, cpl=3), id="xsetbv"),
        pytest.param(record(7, arg=0x1C4, value=1 << 18), e.Wrmsr(0x1C4, 1 << 18), id="wrmsr"),
        pytest.param(record(8, arg=0x1C5), e.Rdmsr(0x1C5), id="rdmsr"),
        pytest.param(record(9, flags=1), e.Nm(cr0_ts=True), id="nm"),
        pytest.param(
            record(10, arg=18, value=64, payload=b"abc"), e.RegisterWrite(18, 64, b"abc"), id="register_write"
        ),
        pytest.param(record(11, arg=18, value=64 | 32 << 32), e.RegisterRead(18, 64, 32), id="register_read"),
        pytest.param(record(12, flags=4, arg=2, payload=b"m"), e.Tile(TileOp.TILELOADD, 2, b"m"), id="tile"),
        pytest.param(record(13, value=1 << 18), e.XfdSync(1 << 18), id="xfd_sync"),
        pytest.param(record(14), e.Init(), id="init"),
        pytest.param(record(15), e.Hlt(), id="hlt"),
        pytest.param(record(16, arg=1), e.Xgetbv(1), id="xgetbv"),
        pytest.param(record(17, value=1 << 18), e.WriteCr4(1 << 18), id="write_cr4"),
        pytest.param(
            record(18, flags=3, arg=16, value=1 << 18, payload=b"m"),
            e.Xsave(XsaveInsn.XSAVEC, 1 << 18, b"m", misaligned_by=16),
            id="xsave",
        ),
    ],
)
def test_every_kind_is_read_back(packed: Record, kind: e.EventKind) -> None:
    """What is encoded is what is decoded, for each of the kinds."""
    ((vcpu, seq, event),) = decode("packed", encode([VCPU], [packed]))
    assert (vcpu, seq, event) == (VCPU, 1, e.GuestEvent(VCPU, 1, kind))


def test_the_layout_is_the_documented_one() -> None:
    """Number 5 of the first vCPU, WRMSR of IA32_XFD with 0: the example of the documentation."""
    raw = bytes.fromhex("07000000 00000000 00000000 c4010000 0500000000000000 0000000000000000".replace(" ", ""))
    assert encode([VCPU], [record(7, arg=0x1C4, seq=5)]).records == raw
    ((_, seq, event),) = decode("packed", event_pb2.PackedEvents(vcpus=[VCPU], records=raw))
    assert (seq, event) == (5, e.GuestEvent(VCPU, 5, e.Wrmsr(0x1C4, 0)))


def test_records_begin_at_multiples_of_eight() -> None:
    """A payload is padded with zeros; the next record is found behind it."""
    packed = encode([VCPU], [record(10, arg=2, payload=b"12345"), record(15, seq=2)])
    assert len(packed.records) == 32 + 8 + 32
    assert [seq for _, seq, _ in decode("packed", packed)] == [1, 2]


WRMSR = HEADER.pack(7, 0, 0, 0, 0x1C4, 1, 0)


@pytest.mark.parametrize(
    ("records", "path"),
    [
        pytest.param(WRMSR[:31], "packed.records[0]", id="a header cut short"),
        pytest.param(WRMSR + WRMSR[:8], "packed.records[1]", id="a second one cut short"),
        pytest.param(HEADER.pack(10, 0, 9, 0, 2, 1, 0) + bytes(8), "packed.records[0].payload_bytes", id="no payload"),
        pytest.param(
            HEADER.pack(10, 0, 1, 0, 2, 1, 0) + b"a1234567", "packed.records[0]", id="padding that says something"
        ),
        pytest.param(HEADER.pack(2, 0, 0, 0, 0, 1, 0), "packed.records[0].kind", id="an unknown kind"),
        pytest.param(
            HEADER.pack(15, 0, 0, 1, 0, 1, 0), "packed.records[0].vcpu_ordinal", id="a vCPU that is not listed"
        ),
        pytest.param(HEADER.pack(15, 0, 0, 0, 0, 0, 0), "packed.records[0].seq", id="number 0"),
        pytest.param(HEADER.pack(15, 1, 0, 0, 0, 1, 0), "packed.records[0].flags", id="flags that HLT does not have"),
        pytest.param(HEADER.pack(15, 0, 0, 0, 0, 1, 9), "packed.records[0].value", id="a value that HLT does not have"),
    ],
)
def test_a_malformed_record_refuses_the_message(records: bytes, path: str) -> None:
    """None of its events is applied, and the refusal says which record and which part."""
    with pytest.raises(Failure) as caught:
        decode("packed", event_pb2.PackedEvents(vcpus=[VCPU], records=records))
    assert caught.value.field == path


def test_each_vcpu_is_listed_once() -> None:
    """An ordinal means one vCPU."""
    with pytest.raises(Failure, match="each vCPU once"):
        decode("packed", event_pb2.PackedEvents(vcpus=[VCPU, VCPU]))


def test_a_record_that_is_wrong_is_its_own_event() -> None:
    """Well formed and wrong: rejected as the same message would be, and the others happen."""
    wrong, right = decode("packed", encode([VCPU], [record(12, flags=99), record(15, seq=2)]))
    assert isinstance(wrong[2], Failure)
    assert wrong[2].field == "packed.records[0].tile.op"
    assert right[2] == e.GuestEvent(VCPU, 2, e.Hlt())


RECORDS = st.lists(
    st.builds(
        Record,
        kind=st.integers(2, 19),
        flags=st.integers(0, 4),
        ordinal=st.integers(0, 2),
        arg=st.sampled_from([0, 1, 0x1C4, 0xFFFF_FFFF]),
        seq=st.integers(0, 3),
        value=st.sampled_from([0, 1, 7, 64 | 32 << 32, 0xFFFF_FFFF_FFFF_FFFF]),
        payload=st.sampled_from([b"", b"m", b"vms/a/tasks/t1", b"\xff", bytes(8)]),
    ),
    max_size=4,
)


@given(records=RECORDS, cut=st.integers(0, 3))
def test_the_quick_reader_reads_what_the_careful_one_does(records: list[Record], cut: int) -> None:
    """It returns the same, or leaves it to the careful one: where a record is wrong, or cut short."""
    vcpus = [VCPU, "vms/a/vcpus/1"]
    raw = encode(vcpus, records).records
    raw = raw[: len(raw) - cut]
    found = quick(vcpus, raw)
    try:
        wanted = careful("packed", vcpus, raw)
    except Failure:
        assert found is None
        return
    assert found == (None if any(isinstance(event, Failure) for _, _, event in wanted) else wanted)


@pytest.mark.asyncio
async def test_packed_events_through_a_host(world: World) -> None:
    """The same outcomes as messages have; a field of a record is named by its number."""
    guest = await world.guest()
    packed = encode([guest.vcpu], [record(6, value=XCR0_AMX), record(11, arg=18, value=9000 << 32, seq=2)])
    request = session_pb2.SubmitEventsRequest(
        session=guest.session, epoch=guest.epoch, batch=event_pb2.EventBatch(packed=packed)
    )
    grown, wrong = (await world.sessions.SubmitEvents(request)).outcomes.outcomes
    assert grown.done.HasField("reallocated")
    assert error_info(wrong.rejected).metadata["field"] == "batch.packed.records[1].register_read.length"
    request.batch.packed.records = b"short"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.sessions.SubmitEvents(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
