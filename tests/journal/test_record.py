"""Records: what is written is what is read, and nothing else is."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpu_core.tile import TileOp
from fpu_core.xsave_insn import XsaveInsn
from host_agent.commands import Boot, Command, CreateVm, KeepAlive, ResolveExit, SubmitBatch, Tick
from host_agent.effects import ExitChanged
from host_agent.errors import Reason, Refused
from host_agent.events import (
    DoneOutcome,
    Enter,
    EventKind,
    GuestEvent,
    Hlt,
    Init,
    InjectOutcome,
    Leave,
    Malformed,
    Nm,
    Outcome,
    Preempt,
    Rdmsr,
    RegisterRead,
    RegisterWrite,
    RejectedOutcome,
    Tile,
    WriteCr4,
    Wrmsr,
    XfdSync,
    Xgetbv,
    Xsave,
    Xsetbv,
)
from host_agent.exits import Decision, DecisionKind
from host_agent.journal.command import BadCommandError, events_in, pack_command, unpack_command
from host_agent.journal.event_form import pack_event
from host_agent.journal.outcome import outcome_text, pack_outcome
from host_agent.journal.record import BadRecordError, pack_record, unpack_record
from tests.core import profiles
from tests.journal.rig import CONFIG, VCPU, history

profiles.load_profile()

number = st.one_of(st.integers(0, 3), st.integers(-1, 2**64), st.just(2**64 - 1))
data = st.binary(max_size=40)
kinds: st.SearchStrategy[EventKind] = st.one_of(
    st.builds(Enter, st.text(max_size=10)),
    st.builds(Preempt, st.one_of(st.none(), number)),
    st.builds(Xsetbv, number, number, number),
    st.builds(Wrmsr, number, number),
    st.builds(Rdmsr, number),
    st.builds(Nm, st.booleans()),
    st.builds(RegisterWrite, number, number, data),
    st.builds(RegisterRead, number, number, number),
    st.builds(Tile, st.sampled_from(TileOp), number, data),
    st.builds(XfdSync, number),
    st.builds(Xgetbv, number),
    st.builds(WriteCr4, number),
    st.builds(Xsave, st.sampled_from(XsaveInsn), number, data, number),
    st.builds(Malformed, st.text(), st.text(), st.text(), st.dictionaries(st.text(), st.text(), max_size=2)),
    st.sampled_from([Leave(), Init(), Hlt()]),
)
events = st.builds(GuestEvent, st.sampled_from([VCPU, "vms/ü/vcpus/1", ""]), st.integers(0, 2**64 - 1), kinds)
batches = st.builds(
    SubmitBatch,
    session=st.text(max_size=20),
    epoch=number,
    events=st.lists(events, max_size=5).map(tuple),
    received=st.lists(st.tuples(st.sampled_from([VCPU, "x"]), number), max_size=3).map(tuple),
)


@given(batch=batches)
def test_a_batch_is_read_as_it_was_written(batch: SubmitBatch) -> None:
    """Any event, any operand, in range or not."""
    packed = pack_command(batch)
    assert unpack_command(packed) == batch
    assert packed[:1] == b"\x00" or events_in(packed) == len(batch.events)


@pytest.mark.parametrize(
    "command",
    [
        Boot(config=CONFIG),
        CreateVm(vm_id="a", labels={"k": "v"}, byte_limit=5, request_id="r"),
        KeepAlive(session="sessions/s", epoch=3),
        ResolveExit(
            exit="e",
            generation=1,
            control="c",
            control_epoch=1,
            decision=Decision(DecisionKind.RETRY_AFTER, delay_ns=5),
        ),
        Tick(),
    ],
    ids=lambda command: type(command).__name__,
)
def test_every_other_command_is_json(command: Command) -> None:
    """And is read as it was written."""
    assert unpack_command(pack_command(command)) == command


def test_an_ordinary_event_takes_a_few_bytes() -> None:
    """What a guest does all day is not JSON: the whole batch is smaller than one event would be as text."""
    batch = SubmitBatch(session="s", epoch=1, events=tuple(GuestEvent(VCPU, nr, Wrmsr(0x1C4, 0)) for nr in range(256)))
    assert len(pack_command(batch)) < 256 * 24
    done = tuple(Outcome(VCPU, nr, DoneOutcome()) for nr in range(256))
    assert len(pack_outcome(batch, done, [])) == 1 + 256 * 2


@given(raw=st.binary(max_size=60))
def test_foreign_bytes_are_no_command(raw: bytes) -> None:
    """Whatever they are: an error of ours, or a command that writes itself the same way."""
    with suppress(BadCommandError):
        unpack_command(raw)


@given(cut=st.integers(0, 2000), flip=st.integers(0, 7))
def test_a_damaged_batch_is_no_other_batch_by_accident_of_ours(cut: int, flip: int) -> None:
    """Cut short or with a bit changed: an error of ours, never a crash of another kind."""
    packed = bytearray(next(body for _, body in history().bodies[8:9]))
    packed[cut % len(packed)] ^= 1 << flip
    for raw in (bytes(packed), bytes(packed[: cut % len(packed)])):
        with pytest.raises(BadRecordError):
            unpack_record(raw, 0)


@pytest.mark.parametrize(
    "kind",
    [
        *(Enter("t"), Leave(), Preempt(1), Xsetbv(0, 7), Wrmsr(0x1C4, 0), Rdmsr(0x1C4), Nm(cr0_ts=True), Hlt(), Init()),
        *(
            RegisterWrite(1, 0, b"x"),
            RegisterRead(1, 0, 1),
            Tile(TileOp.TILEZERO, 1),
            XfdSync(0),
            Xgetbv(1),
            WriteCr4(1),
        ),
        Xsave(XsaveInsn.XSAVEC, 7, b"m", 3),
    ],
    ids=lambda kind: type(kind).__name__,
)
def test_what_guests_do_is_no_json(kind: EventKind) -> None:
    """Each of these kinds has a form of its own. Another would be JSON, and none the worse but for speed."""
    assert pack_event(0, GuestEvent(VCPU, 1, kind))[10] != 0


def test_records_are_chained() -> None:
    """A record is good behind the one it was written behind, and behind no other."""
    first, crc = pack_record(0, 1, 10, b"c", b"o")
    second, _ = pack_record(crc, 2, 20, b"d", b"p")
    assert unpack_record(second, unpack_record(first, 0).crc).revision == 2
    with pytest.raises(BadRecordError, match="checksum"):
        unpack_record(second, 0)


@pytest.mark.parametrize("offset", range(31))
def test_no_byte_of_a_record_can_change(offset: int) -> None:
    """The head, the command, the outcome, and the checksum itself."""
    raw = bytearray(pack_record(7, 1, 10, b"c", b"o")[0] + b"")
    raw[offset % len(raw)] ^= 0x40
    with pytest.raises(BadRecordError):
        unpack_record(bytes(raw), 7)


def test_outcomes_differ_where_they_are_different() -> None:
    """Value, data, growth, interception, exception, refusal: each is in the bytes. Wording is not."""
    batch = SubmitBatch(session="s", epoch=1, events=(GuestEvent(VCPU, 1, Hlt()),))

    def packed(kind: object, *effects: ExitChanged) -> bytes:
        return pack_outcome(batch, (Outcome(VCPU, 1, kind),), effects)  # type: ignore[arg-type]

    seen = {
        packed(DoneOutcome()),
        packed(DoneOutcome(skip_instruction=False)),
        packed(DoneOutcome(value=0)),
        packed(DoneOutcome(value=2**64 - 1)),
        packed(DoneOutcome(data=b"x")),
        packed(InjectOutcome(13, 0, 0)),
        packed(InjectOutcome(13, None, 0)),
        packed(DoneOutcome(), ExitChanged("e")),
        packed(RejectedOutcome("SEQ_GAP", "one wording")),
        pack_outcome(batch, Refused(Reason.SESSION_FENCED, "text", session="s"), []),
        pack_outcome(batch, Refused(Reason.SESSION_FENCED, "text", session="t"), []),
        pack_outcome(batch, KeyError("x"), []),
    }
    assert len(seen) == 12
    assert packed(RejectedOutcome("SEQ_GAP", "one wording")) == packed(RejectedOutcome("SEQ_GAP", "another"))
    assert outcome_text(packed(DoneOutcome(value=7), ExitChanged("exits/1"))).startswith("done value=0x7 skip; effects")
