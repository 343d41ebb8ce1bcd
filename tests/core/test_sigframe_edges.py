"""Signals at their edges: which bytes of the stack are written, which pages are needed, and what it all costs.

References: arch/x86/kernel/fpu/signal.c; arch/x86/kernel/signal.c, get_sigframe() and sig_prepare_pkru().
"""

from __future__ import annotations

import struct
from dataclasses import asdict

import pytest

from fpu_core.alloc import Account
from fpu_core.errors import CoreBug
from fpu_core.fpu import TaskKind
from fpu_core.rt_signal import SignalFrame, deliver_signal, sigreturn
from fpu_core.rules import KERNEL_6_12
from fpu_core.sched import kernel_fpu_begin, kernel_fpu_end, read_pkru, switch_to
from fpu_core.sigframe import FP_XSTATE_MAGIC2, fpu_restore_sig
from fpu_core.swap import swap_in
from fpu_core.task import create_worker, use_feature
from fpu_core.usermem import PAGE_BYTES, UserMemory
from tests.core.rig import SPR, Rig, without_compaction

BASE = 0x7FFD_0000_0000
INIT_PKRU = 0x55555554


class _Watched(UserMemory):
    """Memory that notes the PKRU it is written under."""

    rig: Rig

    def copy_to_user(self, address: int, data: bytes) -> bool:
        self.seen.add((read_pkru(self.rig.cpu), self.rig.fpu.pkru))
        return super().copy_to_user(address, data)

    def __init__(self, rig: Rig) -> None:
        super().__init__(BASE, 65536)
        self.rig, self.seen = rig, set[tuple[int, int]]()


def _rig(profile: str = SPR, *, tiles: bool = False) -> Rig:
    rig = Rig.create(profile)
    use_feature(rig.fpu, 1, 0, b"xmm")
    if tiles:
        rig.permit(guest=False)
        use_feature(rig.fpu, 2, 0, b"ymm")
        use_feature(rig.fpu, 18, 0, b"tile")
    return rig


def _deliver(rig: Rig, memory: UserMemory | None = None, sp: int | None = None) -> SignalFrame:
    memory = memory if memory is not None else UserMemory(BASE, 65536)
    frame = deliver_signal(rig.fpu, memory, memory.end if sp is None else sp)
    assert frame is not None
    return frame


def _at(frame: SignalFrame, offset: int) -> int:
    return frame.address - frame.memory.base + offset


# -- the stack ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "fits"),
    [pytest.param(0, True, id="to the byte"), pytest.param(8, False, id="eight bytes short")],
)
def test_the_last_byte_of_the_stack(room: int, fits: bool) -> None:
    """The handler's stack pointer may be the lowest address of the stack: 440 bytes below the registers, aligned."""
    top = BASE + 65536
    address = (top - 2816 - 4) & -64
    lowest = ((address - 440) & -16) - 8
    memory = UserMemory(lowest + room, top - lowest - room)
    frame = deliver_signal(_rig().fpu, memory, top)
    assert (frame is not None) is fits
    if frame is not None:
        assert (frame.address, frame.sp) == (address, lowest)
    else:
        assert not any(memory.data)


def test_which_bytes_are_written() -> None:
    """The header whole, the components, the software bytes; not what lies below the frame, nor gaps in the image."""
    rig = _rig()
    memory = UserMemory(BASE, 65536)
    memory.data[:] = b"\xee" * len(memory.data)
    frame = _deliver(rig, memory)
    start = _at(frame, 0)
    assert not memory.data[:start].strip(b"\xee"), "below"
    assert not memory.data[start + 416 : start + 464].strip(b"\xee"), "what FXSAVE leaves to software"
    assert memory.data[start + 520 : start + 576] == bytes(56), "the header"
    assert not memory.data[start + 832 : start + 1088].strip(b"\xee"), "where MPX's components would be"
    assert not memory.data[start + 2696 : start + 2816].strip(b"\xee"), "behind the last component"
    assert not memory.data[start + 2820 :].strip(b"\xee"), "behind the magic word"


def test_the_frame_is_written_under_an_open_pkru() -> None:
    """A stack may be protected by a key that the program has closed, so every write goes through PKRU 0."""
    rig = _rig()
    use_feature(rig.fpu, 9, 0, struct.pack("<I", 0xC))
    memory, points = _Watched(rig), list[str]()
    rig.host.preemptible = points.append
    frame = _deliver(rig, memory)
    assert memory.seen == {(0, 0)}
    assert points == ["signal: frame written, registers not yet cleared"]
    assert (read_pkru(rig.cpu), rig.fpu.pkru) == (INIT_PKRU, INIT_PKRU)
    assert struct.unpack_from("<I", memory.data, _at(frame, 2688)) == (0xC,)


def test_who_takes_no_signal() -> None:
    """A worker has no user mode, and a thread in KVM_RUN leaves it first: delivery and return are our bug there."""
    rig = _rig()
    frame = _deliver(rig)
    worker = create_worker(rig.host, "worker", TaskKind.KTHREAD, account=Account("host"))
    switch_to(rig.cpus[1], worker)
    swap_in(rig.fpu, rig.guest())
    for fpu in (worker, rig.fpu):
        with pytest.raises(CoreBug, match="takes a signal outside user mode"):
            deliver_signal(fpu, frame.memory, frame.memory.end)
        with pytest.raises(CoreBug, match="returns from a signal outside user mode"):
            sigreturn(fpu, frame)


# -- pages -------------------------------------------------------------------------------------------------------------


def test_tiles_in_their_init_state_need_no_pages() -> None:
    """A save touches what it writes: the pages of tiles that are in their init state stay absent."""
    rig = _rig(tiles=True)
    rig.cpu.init_components(3 << 17)
    memory = UserMemory(BASE, 65536)
    frame = deliver_signal(rig.fpu, memory, BASE + 32768)
    assert frame is not None
    sigreturn(rig.fpu, frame)
    rig.cpu.init_components(3 << 17)
    tiles = (frame.address + 2816) // PAGE_BYTES + 1
    memory.absent = {tiles}
    assert deliver_signal(rig.fpu, memory, BASE + 32768) is not None
    assert memory.absent == {tiles}


_COMPACTED = 1 << 63


@pytest.mark.parametrize(
    ("present", "xstate_bv", "xcomp_bv", "needed"),
    [
        pytest.param(576, 0x3, 0, False, id="the header is the end"),
        pytest.param(768, 0x7, 0, True, id="YMM is cut"),
        pytest.param(832, 0x7, 0, False, id="YMM ends with the page"),
        pytest.param(1600, 0x83, 0, True, id="Hi16_ZMM lies at 1664 in the standard format"),
        pytest.param(1600, 0x83, _COMPACTED | 0x83, False, id="and at 576 in the compacted one"),
        pytest.param(1536, 0x83, _COMPACTED | 0x83, True, id="where it is cut"),
        pytest.param(832, 0x7, _COMPACTED | 0x87, False, id="behind YMM it is in its init state"),
    ],
)
def test_which_pages_a_sigreturn_needs(present: int, xstate_bv: int, xcomp_bv: int, needed: bool) -> None:
    """XRSTOR touches the components that XSTATE_BV has, where the format has them; only their pages come in."""
    rig = _rig(tiles=True)
    frame = _deliver(rig, sp=BASE + 32768 + PAGE_BYTES - present + 11008 + 4)
    assert -frame.address % PAGE_BYTES == present
    struct.pack_into("<QQ", frame.memory.data, _at(frame, 512), xstate_bv, xcomp_bv)
    second = frame.address // PAGE_BYTES + 1
    frame.memory.absent = {second}
    assert sigreturn(rig.fpu, frame)
    assert frame.memory.absent == (set() if needed else {second})
    assert rig.cpu.read_register(1).startswith(b"xmm")
    rig.check()


# -- frames that are not ours ------------------------------------------------------------------------------------------


def test_fxrstor_does_not_look_at_the_header() -> None:
    """Without the first magic word there is no header behind the legacy region: whatever lies there is ignored."""
    rig = _rig()
    frame = _deliver(rig)
    frame.memory.data[_at(frame, 464) : _at(frame, 468)] = bytes(4)
    frame.memory.data[_at(frame, 512) : _at(frame, 576)] = b"\xff" * 64
    assert sigreturn(rig.fpu, frame)
    assert rig.cpu.read_register(1).startswith(b"xmm")


@pytest.mark.parametrize(("shift", "fine"), [(16, True), (8, False)])
def test_fxrstor_wants_16_bytes_of_alignment(shift: int, fine: bool) -> None:
    """A program's own frame need not be at a multiple of 64, but of 16."""
    rig = _rig()
    memory = UserMemory(BASE, PAGE_BYTES)
    struct.pack_into("<I", memory.data, shift + 24, 0x1F80)
    assert fpu_restore_sig(rig.fpu, memory, BASE + shift) is fine


def test_the_least_size_a_frame_may_claim() -> None:
    """6.12: legacy region and header, 576 bytes, with the magic word right behind them."""
    rig = Rig.create(rules=KERNEL_6_12)
    use_feature(rig.fpu, 7, 0, b"zmm")
    frame = _deliver(rig)
    struct.pack_into("<I", frame.memory.data, _at(frame, 480), 576)
    struct.pack_into("<I", frame.memory.data, _at(frame, 576), FP_XSTATE_MAGIC2)
    assert sigreturn(rig.fpu, frame)
    assert rig.cpu.read_register(7).startswith(b"zmm"), "ours: all of it is restored"


# -- cost --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rig", "delivery", "live", "preempted"),
    [
        pytest.param(_rig, (1, 1), (0, 1), (0, 2), id="SPR: supervisor state is loaded beside the frame"),
        pytest.param(lambda: _rig("goldmont"), (1, 1), (0, 1), (0, 1), id="goldmont: there is none"),
        pytest.param(lambda: Rig.create(without_compaction(xsave=False)), (1, 1), (0, 1), (0, 1), id="FXSAVE, FXRSTOR"),
    ],
)
def test_what_a_signal_costs(
    rig: object, delivery: tuple[int, int], live: tuple[int, int], preempted: tuple[int, int]
) -> None:
    """One save and one load of the init image; then one load of the frame, as (saves, restores)."""
    assert callable(rig)
    here = rig()
    assert isinstance(here, Rig)

    def cost(before: dict[str, int]) -> tuple[int, int]:
        after = asdict(here.cpu.counters)
        return after["saves"] - before["saves"], after["restores"] - before["restores"]

    for expected in (live, preempted):
        before = asdict(here.cpu.counters)
        frame = _deliver(here)
        assert cost(before) == delivery
        if expected is preempted:
            kernel_fpu_begin(here.cpu)
            kernel_fpu_end(here.cpu)
        before = asdict(here.cpu.counters)
        assert sigreturn(here.fpu, frame)
        assert cost(before) == expected
        here.check()


@pytest.mark.parametrize(
    ("profile", "restores"),
    [pytest.param(SPR, 2, id="SPR: supervisor state, init image"), pytest.param("goldmont", 1, id="goldmont: init")],
)
def test_what_clearing_costs(profile: str, restores: int) -> None:
    """Supervisor registers that are in memory are loaded first, where there are any."""
    rig = _rig(profile)
    kernel_fpu_begin(rig.cpu)
    kernel_fpu_end(rig.cpu)
    before = rig.cpu.counters.restores
    assert fpu_restore_sig(rig.fpu, UserMemory(BASE, PAGE_BYTES), 0)
    assert rig.cpu.counters.restores - before == restores


def test_what_a_frame_of_the_legacy_region_costs() -> None:
    """FXRSTOR, and the init image for all that it does not have."""
    rig = _rig()
    frame = _deliver(rig)
    frame.memory.data[_at(frame, 464) : _at(frame, 468)] = bytes(4)
    before = rig.cpu.counters.restores
    assert sigreturn(rig.fpu, frame)
    assert rig.cpu.counters.restores - before == 2
