"""What a client packs is what the host reads as a message; what no record can say goes as messages."""

from __future__ import annotations

import pytest

from guest_agent import event as e
from guest_agent.packed import NumberedEvent, numbered_batch
from host_agent.service.translate.batch import batch_from_proto

VCPUS = ("vms/a/vcpus/0", "vms/a/vcpus/1")
EVENTS: tuple[e.GuestEvent, ...] = (
    e.Enter(),
    e.Enter(task="vms/a/tasks/t1"),
    e.Leave(),
    e.Preempt(),
    e.Preempt(cpu=3),
    e.Xsetbv(value=7, index=1, cpl=3),
    e.Wrmsr(0x1C4, 1 << 18),
    e.Rdmsr(0x1C5),
    e.Nm(cr0_ts=True),
    e.RegisterWrite(18, 64, b"abc"),
    e.RegisterRead(18, 64, 32),
    *(e.Tile(op, 2, b"m" * 9) for op in e.TileOp),
    e.XfdSync(1 << 18),
    e.Init(),
    e.Hlt(),
    e.Xgetbv(1),
    e.WriteCr4(1 << 18),
    *(e.Xsave(insn, (1 << 64) - 1, b"m", 16) for insn in e.XsaveInsn),
)


def numbered(*events: e.GuestEvent) -> list[NumberedEvent]:
    """The events by turns on two vCPUs."""
    return [NumberedEvent(VCPUS[nr % 2], nr // 2 + 1, event) for nr, event in enumerate(events)]


def test_packed_says_what_messages_say() -> None:
    """Every kind, read by the host in both forms."""
    entries = numbered(*EVENTS)
    packed = numbered_batch(entries, received_through={VCPUS[0]: 3, VCPUS[1]: 0})
    assert packed.WhichOneof("body") == "packed"
    odd = NumberedEvent(VCPUS[0], len(EVENTS), e.Xsetbv(value=7, cpl=9))
    messages = numbered_batch([*entries, odd], received_through={VCPUS[0]: 3})
    assert messages.WhichOneof("body") == "events"
    read = batch_from_proto("batch", packed)
    assert read.events == batch_from_proto("batch", messages).events[:-1]
    assert read.received == ((VCPUS[0], 3),)


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(e.Xsetbv(value=7, cpl=9), id="a privilege level there is not"),
        pytest.param(e.RegisterWrite(1 << 16, 0, b""), id="no bytes"),
    ],
)
def test_what_is_wrong_is_told_by_the_host(event: e.GuestEvent) -> None:
    """The client does not judge: in one form or the other the event reaches the host, which refuses it alone."""
    read = batch_from_proto("batch", numbered_batch(numbered(e.Hlt(), event), received_through={}))
    assert len(read.outcomes) == 2


def test_a_number_that_fits_no_field_is_an_error() -> None:
    """As it is without packing."""
    with pytest.raises(ValueError, match="out of range"):
        numbered_batch(numbered(e.Wrmsr(1 << 32, 0)), received_through={})


def test_nothing_to_say_but_what_was_received() -> None:
    """A batch without events has no body."""
    assert numbered_batch([], received_through={VCPUS[0]: 1}).WhichOneof("body") is None
