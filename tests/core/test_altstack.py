"""Alternate signal stacks: what fits beside a permission, and the two ends that do not count alike."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fpu_core.altstack import get_sigframe_size, sigaltstack
from fpu_core.config import boot
from fpu_core.cpuid import builtin_profile
from fpu_core.errors import Errno
from fpu_core.fpu import Fpu
from fpu_core.permission import XcompOp, arch_prctl, get_permitted, request_permission
from fpu_core.task import clone_task, exec_task, exit_task
from fpu_core.xfeature import XFEATURE_MASK_USER_DYNAMIC, XFEATURE_MASK_XTILE, XFEATURE_XTILE_DATA
from tests.core.rig import SPR, Rig, without_compaction
from tests.differential.machine import with_xcr0


@pytest.mark.parametrize(
    ("xcr0", "user_size", "frame"),
    [
        pytest.param(0x7, 832, 1776, id="AVX"),
        pytest.param(0xE7, 2688, 3632, id="AVX-512"),
        pytest.param(0x2E7, 2696, 3632, id="AVX-512 and PKRU"),
        pytest.param(0x602E7, 11008, 11952, id="AMX"),
    ],
)
def test_the_largest_frame(xcr0: int, user_size: int, frame: int) -> None:
    """AT_MINSIGSTKSZ: 3,632 and 11,952 are what such machines report."""
    config = boot(with_xcr0(builtin_profile(SPR), xcr0))
    assert (config.user.max_size, get_sigframe_size(config)) == (user_size, frame)


def test_a_host_without_xsave_has_no_second_magic() -> None:
    """512 bytes of FXSAVE, 112 of FSAVE, nothing behind them."""
    assert get_sigframe_size(Rig.create(without_compaction(xsave=False)).config) == 1440


def _request(rig: Rig, *, guest: bool = False) -> Errno:
    return request_permission(rig.fpu, XFEATURE_XTILE_DATA, guest=guest)


@pytest.mark.parametrize(
    ("size", "errno"),
    [
        pytest.param(None, Errno.OK, id="no stack"),
        pytest.param(11951, Errno.ENOSPC, id="a byte short of the frame"),
        pytest.param(11952, Errno.OK, id="exactly the frame"),
    ],
)
def test_a_permission_must_fit_the_stacks(size: int | None, errno: Errno) -> None:
    """ENOSPC while an alternate stack is too small for a frame with tile data; nothing changes then."""
    rig = Rig.create()
    assert sigaltstack(rig.fpu, size) is Errno.OK
    assert _request(rig) is errno
    assert bool(get_permitted(rig.fpu, guest=False) & XFEATURE_MASK_USER_DYNAMIC) == (errno is Errno.OK)


def test_every_thread_counts_and_guests_do_not() -> None:
    """The stack of another thread is in the way; a guest's permission needs no frame; a thread that ended is not."""
    rig = Rig.create()
    thread = Fpu(rig.host, "thread", account=rig.fpu.account, leader=rig.fpu)
    assert sigaltstack(thread, 8192) is Errno.OK
    assert _request(rig) is Errno.ENOSPC
    assert _request(rig, guest=True) is Errno.OK
    exit_task(thread)
    assert _request(rig) is Errno.OK


@pytest.mark.parametrize(
    ("size", "errno"),
    [
        pytest.param(0, Errno.ENOMEM, id="0 is not SS_DISABLE"),
        pytest.param(2047, Errno.ENOMEM, id="below MINSIGSTKSZ"),
        pytest.param(11836, Errno.ENOMEM, id="exactly what this side counts: > is asked for"),
        pytest.param(11837, Errno.OK, id="a byte more, and 115 short of what the permission would have needed"),
        pytest.param(None, Errno.OK, id="SS_DISABLE always works"),
    ],
)
def test_a_stack_must_fit_the_permission(size: int | None, errno: Errno) -> None:
    """With tile data permitted; a refused stack leaves the one that was."""
    rig = Rig.create()
    rig.permit(guest=False)
    assert sigaltstack(rig.fpu, 16384) is Errno.OK
    assert sigaltstack(rig.fpu, size) is errno
    assert rig.fpu.sas_ss_size == (16384 if errno else size or 0)


def test_without_the_permission_only_the_minimum_counts() -> None:
    """2,048 bytes are accepted, although a frame of the host's would not fit; with the boot option they are not."""
    rig = Rig.create()
    assert sigaltstack(rig.fpu, 2048) is Errno.OK
    rig.host.strict_sigaltstack_size = True
    assert sigaltstack(rig.fpu, 2048) is Errno.ENOMEM
    assert sigaltstack(rig.fpu, 3644) is Errno.ENOMEM
    assert sigaltstack(rig.fpu, 3645) is Errno.OK


@pytest.mark.parametrize(
    ("size", "strict", "errno"),
    [
        pytest.param(2048, False, Errno.OK, id="the minimum"),
        pytest.param(2048, True, Errno.ENOMEM, id="with the boot option it does not fit a frame"),
        pytest.param(3260, True, Errno.ENOMEM, id="exactly what is counted"),
        pytest.param(3261, True, Errno.OK, id="a byte more"),
    ],
)
def test_a_host_without_dynamic_features(size: int, strict: bool, errno: Errno) -> None:
    """Nothing can grow there, so only the boot option makes the kernel look."""
    rig = Rig.create("zen4")
    rig.host.strict_sigaltstack_size = strict
    assert sigaltstack(rig.fpu, size) is errno


def test_who_inherits_a_stack() -> None:
    """A process that forks hands its stack down, a new thread has none, and exec drops it."""
    rig = Rig.create()
    sigaltstack(rig.fpu, 4096)
    assert clone_task(rig.fpu, "child", thread=False).sas_ss_size == 4096
    assert clone_task(rig.fpu, "thread", thread=True).sas_ss_size == 0
    exec_task(rig.fpu)
    assert rig.fpu.sas_ss_size == 0


def test_the_five_operations() -> None:
    """A GET answers at a user address or faults; a REQ has no answer; other options are EINVAL."""
    rig = Rig.create()
    good, bad = 0x7000_0000_0000, 0xFFFF_8000_0000_0000
    assert arch_prctl(rig.fpu, XcompOp.GET_SUPP, good) == (Errno.OK, 0x602E7)
    assert arch_prctl(rig.fpu, XcompOp.GET_PERM, good) == (Errno.OK, 0x202E7)
    assert arch_prctl(rig.fpu, XcompOp.REQ_PERM, 18) == (Errno.OK, None)
    assert arch_prctl(rig.fpu, XcompOp.GET_PERM, good) == (Errno.OK, 0x602E7)
    assert arch_prctl(rig.fpu, XcompOp.GET_GUEST_PERM, good) == (Errno.OK, 0x202E7)
    for op in (XcompOp.GET_SUPP, XcompOp.GET_PERM, XcompOp.GET_GUEST_PERM):
        assert arch_prctl(rig.fpu, op, bad) == (Errno.EFAULT, None)
        assert arch_prctl(rig.fpu, op, 0) == (Errno.EFAULT, None)
    assert arch_prctl(rig.fpu, 0x1026, 18) == (Errno.EINVAL, None)
    assert XFEATURE_MASK_XTILE & get_permitted(rig.fpu, guest=True) == 1 << 17


def test_a_host_without_amx_permits_nothing() -> None:
    """EOPNOTSUPP before anything else is looked at."""
    rig = Rig.create(replace(builtin_profile("zen4")))
    assert arch_prctl(rig.fpu, XcompOp.REQ_GUEST_PERM, 18) == (Errno.EOPNOTSUPP, None)
