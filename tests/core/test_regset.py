"""NT_X86_XSTATE: sizes, errnos, PKRU, and that a write is seen on every CPU.

Reference: arch/x86/kernel/fpu/regset.c.
"""

from __future__ import annotations

import struct

import pytest

from fpu_core.alloc import Account
from fpu_core.errors import CoreBug, Errno
from fpu_core.fpu import TaskKind
from fpu_core.regset import ptrace_getregset, ptrace_setregset, xstateregs_get, xstateregs_set
from fpu_core.sched import kernel_fpu_begin, kernel_fpu_end, read_pkru, switch_fpu_return, switch_to
from fpu_core.task import create_worker, use_feature
from tests.core.rig import Rig, without_compaction

USER_MAX = 11008


def _stopped(rig: Rig) -> None:
    switch_to(rig.cpu, None)


def _image(rig: Rig) -> bytearray:
    image = xstateregs_get(rig.fpu)
    assert not isinstance(image, Errno)
    return bytearray(image)


def _goes_on(rig: Rig, cpu: int = 0) -> None:
    switch_to(rig.cpus[cpu], rig.fpu)
    switch_fpu_return(rig.fpu)


@pytest.mark.parametrize(
    ("length", "errno"),
    [
        pytest.param(0, Errno.EFAULT, id="nothing at all"),
        pytest.param(4, Errno.EINVAL, id="not a multiple of 8"),
        pytest.param(2816, Errno.EFAULT, id="what this task's container has"),
        pytest.param(USER_MAX - 8, Errno.EFAULT, id="a register short"),
        pytest.param(USER_MAX, Errno.OK, id="what the host has"),
        pytest.param(USER_MAX + 8, Errno.OK, id="more is not looked at"),
        pytest.param(USER_MAX + 4, Errno.EINVAL, id="but its length is"),
    ],
)
def test_size(length: int, errno: Errno) -> None:
    """The whole of the host's largest image, whatever the task may use; a refused length changes nothing."""
    rig = Rig.create()
    use_feature(rig.fpu, 1, 0, b"mine")
    _stopped(rig)
    image = bytes(_image(rig))
    assert len(image) == USER_MAX
    assert ptrace_setregset(rig.fpu, image[:length].ljust(length, b"\0")) is errno
    _goes_on(rig)
    assert rig.cpu.read_register(1).startswith(b"mine")


def test_get_is_cut_to_the_iovec() -> None:
    """A shorter buffer gets the front; one that is no multiple of 8 is EINVAL."""
    rig = Rig.create()
    _stopped(rig)
    assert ptrace_getregset(rig.fpu, 576) == bytes(_image(rig)[:576])
    assert ptrace_getregset(rig.fpu, 577) is Errno.EINVAL


@pytest.mark.parametrize("cpu", [0, 1])
def test_a_write_is_seen_on_every_cpu(cpu: int) -> None:
    """The old registers are still on the CPU, valid by owner and last CPU: the write takes that away."""
    rig = Rig.create()
    use_feature(rig.fpu, 1, 0, b"old")
    _stopped(rig)
    image = _image(rig)
    image[160:163] = b"new"
    assert xstateregs_set(rig.fpu, bytes(image)) is Errno.OK
    _goes_on(rig, cpu)
    assert rig.cpu.read_register(1).startswith(b"new")
    rig.check()


def test_a_refused_write_reloads_what_was_there() -> None:
    """The image is forced to be the truth before the buffer is judged; it has not changed."""
    rig = Rig.create()
    use_feature(rig.fpu, 1, 0, b"mine")
    _stopped(rig)
    image = _image(rig)
    image[160:163] = b"bad"
    image[512 + 20] = 1
    assert xstateregs_set(rig.fpu, bytes(image)) is Errno.EINVAL
    assert (rig.fpu.need_load, rig.fpu.last_cpu) == (True, -1)
    _goes_on(rig)
    assert rig.cpu.read_register(1).startswith(b"mine")


@pytest.mark.parametrize(
    ("bv", "pkru", "then"),
    [
        pytest.param(0x200, 0x30, 0x30, id="the bit is set: the value"),
        pytest.param(0x000, 0x30, 0, id="the bit is clear: 0, as XRSTOR would have it"),
    ],
)
def test_pkru(bv: int, pkru: int, then: int) -> None:
    """PKRU is the task's own, beside the image, and in the register when it runs again (B33)."""
    rig = Rig.create()
    use_feature(rig.fpu, 9, 0, struct.pack("<I", 0xC))
    _stopped(rig)
    image = _image(rig)
    assert struct.unpack_from("<I", image, 2688) == (0xC,)
    struct.pack_into("<I", image, 2688, pkru)
    struct.pack_into("<Q", image, 512, bv)
    assert xstateregs_set(rig.fpu, bytes(image)) is Errno.OK
    assert rig.fpu.pkru == then
    _goes_on(rig)
    assert read_pkru(rig.cpu) == then
    rig.check()


def test_tiles_need_the_container() -> None:
    """XTILE_DATA is EINVAL until the task's container has it; then it goes in and out like the rest."""
    rig = Rig.create()
    rig.permit(guest=False)
    _stopped(rig)
    image = _image(rig)
    struct.pack_into("<Q", image, 512, 1 << 18)
    image[2816:2820] = b"tile"
    assert xstateregs_set(rig.fpu, bytes(image)) is Errno.EINVAL
    _goes_on(rig)
    use_feature(rig.fpu, 18, 0, b"mine")
    _stopped(rig)
    assert _image(rig)[2816:2820] == b"mine"
    assert xstateregs_set(rig.fpu, bytes(image)) is Errno.OK
    _goes_on(rig)
    assert rig.cpu.read_register(18).startswith(b"tile")


def test_mxcsr_that_the_image_never_held() -> None:
    """YMM is in use and SSE is not, in a container that has grown: the export takes MXCSR from memory that is zero."""
    rig = Rig.create()
    rig.permit(guest=False)
    use_feature(rig.fpu, 2, 0, b"ymm")
    use_feature(rig.fpu, 18, 0, b"tile")
    _stopped(rig)
    assert struct.unpack_from("<I", _image(rig), 24) == (0,)
    _goes_on(rig)
    assert rig.cpu.mxcsr == 0x1F80


def test_a_running_task_is_saved_for_its_core_dump() -> None:
    """Only its own dump reads a task that runs; ptrace writes a stopped one, and no worker."""
    rig = Rig.create()
    use_feature(rig.fpu, 1, 0, b"live")
    assert _image(rig)[160:164] == b"live"
    with pytest.raises(CoreBug, match="while it runs"):
        xstateregs_set(rig.fpu, bytes(_image(rig)))
    with pytest.raises(CoreBug, match="outside user mode"):
        xstateregs_get(create_worker(rig.host, "worker", TaskKind.KTHREAD, account=Account("host")))


def test_a_host_without_xsave() -> None:
    """There is no such register set: ENODEV."""
    rig = Rig.create(without_compaction(xsave=False))
    _stopped(rig)
    assert xstateregs_get(rig.fpu) is Errno.ENODEV
    assert xstateregs_set(rig.fpu, bytes(512)) is Errno.ENODEV


def test_a_core_dump_of_a_task_whose_registers_are_in_memory() -> None:
    """A running task is read too: its image is brought up to date only if the registers are its own."""
    rig = Rig.create()
    use_feature(rig.fpu, 1, 0, b"mine")
    kernel_fpu_begin(rig.cpu)
    rig.cpu.write_register(1, 0, b"kernel")
    kernel_fpu_end(rig.cpu)
    saves = rig.cpu.counters.saves
    assert _image(rig)[160:164] == b"mine"
    assert rig.cpu.counters.saves == saves
