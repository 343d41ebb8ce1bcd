"""Signals: the frame byte by byte, what a handler starts with, and every way sigreturn can go.

References: arch/x86/kernel/fpu/signal.c; core.c, fpu__clear_user_states().
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from fpu_core.altstack import get_sigframe_size, sigaltstack
from fpu_core.rt_signal import SignalFrame, deliver_signal, sigreturn
from fpu_core.rules import KERNEL_6_12, KERNEL_6_18, KernelRules
from fpu_core.sched import read_pkru, switch_fpu_return, switch_to
from fpu_core.sigframe import FP_XSTATE_MAGIC1, FP_XSTATE_MAGIC2, copy_fpstate_to_sigframe, fpu_restore_sig
from fpu_core.task import clone_task, enable_shadow_stack, use_feature
from fpu_core.usermem import PAGE_BYTES, UserMemory
from tests.core.rig import SPR, Rig, without_compaction

BASE = 0x7FFD_0000_0000
TILE_DATA = 1 << 18
INIT_PKRU = 0x55555554


def _deliver(rig: Rig, memory: UserMemory | None = None) -> SignalFrame:
    memory = memory if memory is not None else UserMemory(BASE, 65536)
    frame = deliver_signal(rig.fpu, memory, memory.end)
    assert frame is not None
    return frame


def _bytes(frame: SignalFrame, offset: int, length: int) -> bytes:
    start = frame.address - frame.memory.base + offset
    return bytes(frame.memory.data[start : start + length])


def _poke(frame: SignalFrame, offset: int, data: bytes) -> None:
    start = frame.address - frame.memory.base + offset
    frame.memory.data[start : start + len(data)] = data


def _bv(frame: SignalFrame) -> int:
    return int.from_bytes(_bytes(frame, 512, 8), "little")


def _rig(*, tiles: bool = False, rules: KernelRules = KERNEL_6_18) -> Rig:
    rig = Rig.create(rules=rules)
    rig.permit(guest=False)
    use_feature(rig.fpu, 1, 0, b"xmm")
    use_feature(rig.fpu, 2, 0, b"ymm")
    use_feature(rig.fpu, 9, 0, struct.pack("<I", 0xC))
    if tiles:
        use_feature(rig.fpu, 18, 0, b"tile")
    return rig


# -- the frame ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tiles", "user_size", "features"), [(False, 2816, 0x202E7), (True, 11008, 0x602E7)], ids=["default", "with tiles"]
)
def test_frame(tiles: bool, user_size: int, features: int) -> None:
    """On a 64-byte boundary: 48 software bytes, all defined, the second magic behind the image, x87 and SSE marked."""
    rig = _rig(tiles=tiles)
    frame = _deliver(rig)
    assert frame.address % 64 == 0
    assert frame.memory.end - frame.address - user_size - 4 < 64
    assert frame.sp % 16 == 8
    assert _bytes(frame, 464, 48) == struct.pack("<IIQI", FP_XSTATE_MAGIC1, user_size + 4, features, user_size).ljust(
        48, b"\0"
    )
    assert _bytes(frame, user_size, 4) == struct.pack("<I", FP_XSTATE_MAGIC2)
    assert _bytes(frame, 520, 56) == bytes(56)
    assert _bv(frame) == 0x207 | (TILE_DATA if tiles else 0)
    assert (_bytes(frame, 160, 3), _bytes(frame, 576, 3)) == (b"xmm", b"ymm")
    assert _bytes(frame, 2688, 4) == struct.pack("<I", 0xC), (
        "PKRU of the program, not the one the frame is written under"
    )


def test_init_tiles_are_not_written() -> None:
    """A task whose container has tile data but whose tiles are in their init state: the frame is not touched there."""
    rig = _rig(tiles=True)
    rig.cpu.init_components(3 << 17)
    memory = UserMemory(BASE, 65536)
    memory.data[:] = b"\xee" * len(memory.data)
    frame = _deliver(rig, memory)
    assert _bytes(frame, 2816, 8192) == b"\xee" * 8192
    assert _bytes(frame, 1152, 512) == bytes(512), "other components in init state are written"
    assert not _bv(frame) & 3 << 17
    assert _bytes(frame, 11008, 4) == struct.pack("<I", FP_XSTATE_MAGIC2)


def test_a_handler_starts_clean() -> None:
    """Init registers, default PKRU, live at once; the task keeps its container and its XFD."""
    rig = _rig(tiles=True)
    _deliver(rig)
    assert rig.cpu.xinuse == 1 << 9
    assert (read_pkru(rig.cpu), rig.fpu.pkru) == (INIT_PKRU, INIT_PKRU)
    assert (rig.fpu.need_load, rig.fpu.fpstate.xfd, rig.cpu.xfd) == (False, 0, 0)
    rig.check()


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("disturbed", [False, True])
def test_round_trip(tiles: bool, disturbed: bool) -> None:
    """What the handler does to registers is undone, also if the task was preempted and moved meanwhile."""
    rig = _rig(tiles=tiles)
    before = rig.cpu.observable()
    frame = _deliver(rig)
    use_feature(rig.fpu, 2, 0, b"handler")
    use_feature(rig.fpu, 9, 0, struct.pack("<I", 0x3))
    if disturbed:
        switch_to(rig.cpus[1], rig.fpu)
    assert sigreturn(rig.fpu, frame)
    assert rig.cpu.observable() == before | {0: rig.cpu.read_register(0)}, "x87 is marked as in use, that is all"
    assert rig.fpu.pkru == 0xC
    rig.check()


def test_round_trip_with_pkru_in_its_init_state() -> None:
    """PKRU 0 has to come back as 0, and a frame written under an open PKRU must not lose the one there was (B26)."""
    rig = _rig()
    use_feature(rig.fpu, 9, 0, bytes(4))
    frame = _deliver(rig)
    assert _bv(frame) & 1 << 9
    assert sigreturn(rig.fpu, frame)
    assert (rig.fpu.pkru, read_pkru(rig.cpu)) == (0, 0)


def test_supervisor_state_is_not_the_handlers_to_lose() -> None:
    """The shadow stack stays through delivery and return, whether the registers were live or in memory."""
    rig = _rig()
    enable_shadow_stack(rig.fpu, 0x7000)
    cet = rig.cpu.read_register(11)
    frame = _deliver(rig)
    assert rig.cpu.read_register(11) == cet
    switch_to(rig.cpus[1], rig.fpu)
    assert sigreturn(rig.fpu, frame)
    assert rig.cpu.read_register(11) == cet


def test_xfd_is_in_step_before_the_registers_are_cleared() -> None:
    """Another task's XFD is in the register when a failed sigreturn clears this one's (B2)."""
    rig = _rig(tiles=True)
    frame = _deliver(rig)
    other = clone_task(rig.fpu, "other", thread=True)
    cpu = rig.cpu
    switch_to(cpu, other)
    switch_fpu_return(other)
    switch_to(cpu, rig.fpu)
    assert (cpu.xfd, rig.fpu.fpstate.xfd) == (TILE_DATA, 0)
    _poke(frame, 520, b"\1")
    assert not sigreturn(rig.fpu, frame)
    assert cpu.xfd == cpu.xfd_cache == 0
    rig.check()


def test_another_tasks_xfd_between_the_frame_and_the_handler() -> None:
    """The task loses its CPU when the frame is written: XFD is somebody else's when the registers are cleared (B2)."""
    rig = _rig(tiles=True)
    other = clone_task(rig.fpu, "other", thread=True)
    cpu, hits = rig.cpu, []

    def preempted(name: str) -> None:
        hits.append(name)
        switch_to(cpu, other)
        switch_fpu_return(other)
        switch_to(cpu, rig.fpu)
        assert (cpu.xfd, rig.fpu.fpstate.xfd) == (TILE_DATA, 0)

    rig.host.preemptible = preempted
    frame = _deliver(rig)
    assert len(hits) == 1
    assert cpu.xfd == cpu.xfd_cache == 0
    rig.check()
    assert sigreturn(rig.fpu, frame)
    assert rig.cpu.read_register(18).startswith(b"tile")


# -- stacks ------------------------------------------------------------------------------------------------------------


def test_the_frame_must_fit() -> None:
    """Exactly AT_MINSIGSTKSZ is enough; the bare minimum of sigaltstack(2) is not, and nothing has changed then."""
    rig = _rig(tiles=True)
    before, pkru = rig.cpu.observable(), rig.fpu.pkru
    assert deliver_signal(rig.fpu, *_stack(2048)) is None
    assert (rig.cpu.observable(), rig.fpu.pkru) == (before, pkru)
    rig.check()
    assert deliver_signal(rig.fpu, *_stack(get_sigframe_size(rig.config))) is not None


def _stack(size: int) -> tuple[UserMemory, int]:
    memory = UserMemory(BASE, size)
    return memory, memory.end


def test_why_enospc_is_there() -> None:
    """A stack that was large enough without tiles is not with them; the permission would have been refused."""
    rig = Rig.create()
    assert sigaltstack(rig.fpu, 4096) == 0
    assert deliver_signal(rig.fpu, *_stack(4096)) is not None
    assert deliver_signal(_rig(tiles=True).fpu, *_stack(4096)) is None


def test_absent_pages_are_faulted_in() -> None:
    """Saving faults, clears the frame, which brings the pages in, and saves again over what was there."""
    rig = _rig(tiles=True)
    memory = UserMemory(BASE, 65536)
    memory.data[:] = b"\xee" * len(memory.data)
    memory.absent = set(range(BASE // PAGE_BYTES, memory.end // PAGE_BYTES))
    frame = _deliver(rig, memory)
    assert _bytes(frame, 160, 3) == b"xmm"
    assert _bytes(frame, 2816, 4) == b"tile"
    assert sigreturn(rig.fpu, frame)


def test_memory_that_is_not_mapped() -> None:
    """A frame beside the mapping can be neither written nor read."""
    rig = _rig()
    memory = UserMemory(BASE, 65536)
    assert not copy_fpstate_to_sigframe(rig.fpu, memory, memory.end - 64, 0)
    assert not fpu_restore_sig(rig.fpu, memory, memory.end - 64)
    assert rig.cpu.xinuse == 1 << 9, "a failed sigreturn clears the registers"


# -- sigreturn ---------------------------------------------------------------------------------------------------------


def test_no_frame_is_init_registers() -> None:
    """A null pointer asks for that."""
    rig = _rig()
    assert fpu_restore_sig(rig.fpu, UserMemory(BASE, PAGE_BYTES), 0)
    assert (rig.cpu.xinuse, rig.fpu.pkru) == (1 << 9, INIT_PKRU)


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        pytest.param(464, b"\0\0\0\0", id="no first magic"),
        pytest.param(2816, b"\0\0\0\0", id="no second magic"),
    ],
)
def test_fx_only(offset: int, data: bytes) -> None:
    """Without the magic words the frame is FXSAVE's: x87 and SSE are restored, all else goes to init, PKRU too."""
    rig = _rig()
    frame = _deliver(rig)
    _poke(frame, offset, data)
    use_feature(rig.fpu, 7, 0, b"handler")
    assert sigreturn(rig.fpu, frame)
    assert rig.cpu.read_register(1).startswith(b"xmm")
    assert not rig.cpu.xinuse & ~3
    assert rig.fpu.pkru == 0
    rig.check()


@pytest.mark.parametrize(
    ("rules", "xstate_size", "kept"),
    [
        pytest.param(KERNEL_6_18, 575, True, id="6.18 does not look at the size"),
        pytest.param(KERNEL_6_18, 2817, True, id="however large"),
        pytest.param(KERNEL_6_12, 2816, True, id="6.12: the right size"),
        pytest.param(KERNEL_6_12, 575, False, id="6.12: below the header"),
        pytest.param(KERNEL_6_12, 2817, False, id="6.12: above the container"),
        pytest.param(KERNEL_6_12, 1088, False, id="6.12: the second magic is not there"),
    ],
)
def test_the_size_a_frame_claims(rules: KernelRules, xstate_size: int, kept: bool) -> None:
    """Whose size says where the second magic word is (B38)."""
    rig = _rig(rules=rules)
    frame = _deliver(rig)
    _poke(frame, 480, struct.pack("<I", xstate_size))
    assert sigreturn(rig.fpu, frame)
    assert rig.cpu.read_register(2).startswith(b"ymm") is kept


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        pytest.param(KERNEL_6_12, True, id="6.12 looks where the frame says"),
        pytest.param(KERNEL_6_18, False, id="6.18 where the grown container's would be"),
    ],
)
def test_tiles_first_used_in_a_handler(rules: KernelRules, kept: bool) -> None:
    """The container grows under the frame: its magic word is where the old size was, and 6.18 takes it for FXSAVE's."""
    rig = _rig(rules=rules)
    memory = UserMemory(BASE, 65536)
    frame = deliver_signal(rig.fpu, memory, BASE + 32768)
    assert frame is not None
    use_feature(rig.fpu, 18, 0, b"tile")
    assert sigreturn(rig.fpu, frame)
    assert rig.cpu.read_register(1).startswith(b"xmm")
    assert rig.cpu.read_register(2).startswith(b"ymm") is kept
    rig.check()


def test_sigreturn_leaves_what_the_container_has_no_room_for() -> None:
    """Tiles of the process before stay in the registers, under XFD, and are there when the container grows."""
    rig = _rig()
    rig.permit(guest=False)
    frame = _deliver(rig)
    cpu, other = rig.cpu, clone_task(rig.fpu, "other", thread=False)
    switch_to(cpu, other)
    use_feature(other, 18, 0, b"secret")
    switch_to(cpu, rig.fpu)
    assert sigreturn(rig.fpu, frame)
    use_feature(rig.fpu, 18, 4096, b"tile")
    assert cpu.read_register(18).startswith(b"secret"), (
        "as the kernel, which restores what the frame can hold and no more"
    )


def test_what_the_handler_writes_is_what_is_restored() -> None:
    """The frame is the program's to change: registers, XSTATE_BV and MXCSR."""
    rig = _rig()
    frame = _deliver(rig)
    _poke(frame, 576, b"YMM")
    _poke(frame, 24, struct.pack("<I", 0x1FA0))
    assert sigreturn(rig.fpu, frame)
    assert rig.cpu.read_register(2).startswith(b"YMM")
    assert rig.cpu.mxcsr == 0x1FA0
    frame = _deliver(rig)
    _poke(frame, 512, struct.pack("<Q", 0x3))
    assert sigreturn(rig.fpu, frame)
    assert not rig.cpu.xinuse & ~3, "a clear bit is the init state, PKRU's too"
    assert rig.fpu.pkru == 0


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        pytest.param(24, struct.pack("<I", 1 << 16), id="a reserved bit of MXCSR"),
        pytest.param(513, b"\x04", id="XSTATE_BV of a component the task has not"),
        pytest.param(520, b"\x01", id="XCOMP_BV without its format bit"),
        pytest.param(530, b"\x01", id="a reserved byte of the header"),
    ],
)
def test_a_bad_frame(offset: int, data: bytes) -> None:
    """XRSTOR faults, which is no page fault: SIGSEGV, and the registers are cleared rather than half restored."""
    rig = _rig()
    frame = _deliver(rig)
    use_feature(rig.fpu, 7, 0, b"handler")
    _poke(frame, offset, data)
    assert not sigreturn(rig.fpu, frame)
    assert (rig.cpu.xinuse, rig.fpu.pkru, rig.fpu.need_load) == (1 << 9, INIT_PKRU, False)
    rig.check()


def test_a_frame_that_lies_about_its_size_terminates() -> None:
    """Its tiles lie in pages that are absent: they are faulted in by the kernel's size, not the frame's (B15)."""
    rig = _rig(tiles=True)
    frame = _deliver(rig)
    _poke(frame, 480, struct.pack("<I", 576))
    first = frame.address // PAGE_BYTES
    frame.memory.absent = {first + 1, first + 2}
    assert sigreturn(rig.fpu, frame)
    assert rig.cpu.read_register(18).startswith(b"tile")
    assert not frame.memory.absent


class _SleepsInTheFault(UserMemory):
    """Memory whose pages take long to come in: something else runs meanwhile."""

    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    def fault_in(self, address: int, length: int) -> bool:
        self.meanwhile()
        return super().fault_in(address, length)


def test_registers_of_another_task_are_not_left_half_written() -> None:
    """A page fault in the middle of XRSTOR has changed registers that were another task's, who then runs (B35)."""
    rig = _rig(tiles=True)
    memory = _SleepsInTheFault(BASE, 65536)
    frame = _deliver(rig, memory)
    other = clone_task(rig.fpu, "other", thread=True)
    cpu, seen = rig.cpu, []
    switch_to(cpu, other)
    use_feature(other, 2, 0, b"others")
    switch_to(cpu, rig.fpu)
    assert cpu.owner is other

    def other_runs() -> None:
        if rig.fpu.cpu is not None and frame.memory.absent:
            seen.append(cpu.read_register(2)[:6])
            switch_to(cpu, other)
            switch_fpu_return(other)
            seen.append(cpu.read_register(2)[:6])
            switch_to(cpu, rig.fpu)

    frame.memory.absent = {frame.address // PAGE_BYTES + 1}
    memory.meanwhile = other_runs
    assert sigreturn(rig.fpu, frame)
    assert seen[-2:] == [b"ymm" + bytes(3), b"others"], "it was half loaded, and the other task did not see it"
    assert rig.cpu.read_register(18).startswith(b"tile")
    rig.check()


def test_a_compacted_image_in_a_frame() -> None:
    """A program may put XSAVEC's format there: XRSTOR takes it."""
    rig = _rig()
    frame = _deliver(rig)
    _poke(frame, 512, struct.pack("<QQ", 0x4, 1 << 63 | 0x4))
    _poke(frame, 576, b"compacted")
    assert sigreturn(rig.fpu, frame)
    assert rig.cpu.read_register(2).startswith(b"compacted")


@pytest.mark.parametrize(
    "rig",
    [
        pytest.param(lambda: Rig.create(without_compaction()), id="no XSAVEC, no XSAVES"),
        pytest.param(lambda: Rig.create(without_compaction(xsave=False)), id="no XSAVE"),
        pytest.param(lambda: Rig.create("goldmont"), id="goldmont"),
        pytest.param(lambda: Rig.create("zen4"), id="zen4"),
        pytest.param(lambda: Rig.create(SPR, rules=KERNEL_6_12), id="6.12"),
    ],
)
def test_round_trip_elsewhere(rig: Callable[[], Rig]) -> None:
    """Every kind of host has signals."""
    here = rig()
    use_feature(here.fpu, 0, 32, b"x87")
    use_feature(here.fpu, 1, 0, b"xmm")
    use_feature(here.fpu, 0, 24, struct.pack("<I", 0x1FA0))
    frame = _deliver(here)
    assert here.cpu.mxcsr == 0x1F80
    use_feature(here.fpu, 1, 0, b"handler")
    assert sigreturn(here.fpu, frame)
    assert here.cpu.mxcsr == 0x1FA0
    assert (here.cpu.read_register(0)[32:35], here.cpu.read_register(1)[:3]) == (b"x87", b"xmm")
    here.check()
