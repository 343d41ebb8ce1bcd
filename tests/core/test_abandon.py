"""A swap given up after a bug of ours: the thread has its own registers again, and nobody else's are touched.

What can be half done at that moment: the guest's registers live, in memory, or another task's in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from fpu_core import swap, three_buffer
from fpu_core.cpu import Cpu
from fpu_core.fpu import Fpu, FpuGuest, fpstate_set_realloc_request
from fpu_core.sched import switch_fpu_return, switch_to
from fpu_core.task import use_feature
from fpu_core.xfeature import XFEATURE_MASK_XTILE_DATA as TILE_DATA
from tests.core.rig import Rig, container


@dataclass(frozen=True)
class _Scheme:
    """One way to swap."""

    create: Callable[[Rig], FpuGuest]
    swap_in: Callable[[Fpu, FpuGuest], object]
    abandon: Callable[[Fpu, FpuGuest], None]


def _with_buffers(rig: Rig) -> FpuGuest:
    guest = FpuGuest()
    assert three_buffer.alloc_kvm_buffers(rig.fpu, guest) is None
    rig.guests.append(guest)
    return guest


_SCHEMES = [
    pytest.param(_Scheme(Rig.guest, swap.swap_in, swap.abandon_swap), id="swap"),
    pytest.param(_Scheme(_with_buffers, three_buffer.swap_in, three_buffer.abandon_swap), id="three_buffer"),
]


def _entered(scheme: _Scheme, nr: int = 0) -> tuple[Rig, FpuGuest, Cpu]:
    """A thread on CPU ``nr`` that had something in XMM when its guest, which has too, was swapped in."""
    rig = Rig.create()
    switch_to(rig.cpus[nr], rig.fpu)
    use_feature(rig.fpu, 1, 0, b"user")
    guest = scheme.create(rig)
    assert scheme.swap_in(rig.fpu, guest) is None
    rig.cpu.write_register(1, 0, b"guest")
    return rig, guest, rig.cpu


@pytest.mark.parametrize("scheme", _SCHEMES)
@pytest.mark.parametrize("nr", [0, 1])
def test_the_guest_is_live(scheme: _Scheme, nr: int) -> None:
    """No CPU's registers are taken for the thread's, XFD_ERR is nobody's, and its image is loaded when it goes on."""
    rig, guest, cpu = _entered(scheme, nr)
    cpu.xfd_err = TILE_DATA
    scheme.abandon(rig.fpu, guest)
    assert (rig.fpu.task_fpstate, rig.fpu.fpstate.in_use, container(guest).in_use) == (None, False, False)
    assert (rig.fpu.need_load, rig.fpu.last_cpu, cpu.owner, cpu.xfd_err) == (True, -1, None, 0)
    switch_fpu_return(rig.fpu)
    assert cpu.read_register(1).startswith(b"user")
    assert cpu.xfd == cpu.xfd_cache == rig.fpu.fpstate.xfd == TILE_DATA
    rig.check()


@pytest.mark.parametrize("scheme", _SCHEMES)
def test_another_tasks_registers_are_there(scheme: _Scheme) -> None:
    """The thread was preempted and is back, but not its registers: those of the task in between stay that task's."""
    rig, guest, cpu = _entered(scheme)
    other = Fpu(rig.host, "other", account=rig.fpu.account)
    other.need_load = True
    switch_to(cpu, other)
    use_feature(other, 1, 0, b"other")
    switch_to(cpu, rig.fpu)
    scheme.abandon(rig.fpu, guest)
    assert cpu.owner is other
    switch_fpu_return(rig.fpu)
    assert cpu.read_register(1).startswith(b"user")
    switch_to(cpu, other)
    switch_fpu_return(other)
    assert cpu.read_register(1).startswith(b"other")


@pytest.mark.parametrize("scheme", _SCHEMES)
def test_the_thread_is_outside(scheme: _Scheme) -> None:
    """The bug came before the swap-in: the thread's registers are live and stay so."""
    rig = Rig.create()
    guest = scheme.create(rig)
    use_feature(rig.fpu, 1, 0, b"user")
    scheme.abandon(rig.fpu, guest)
    assert (rig.fpu.need_load, rig.cpu.owner) == (False, rig.fpu)
    assert rig.cpu.read_register(1).startswith(b"user")
    rig.check()


def test_the_request_is_gone_and_the_image_can_be_loaded() -> None:
    """A write that armed XFD was under way: the image loses what XFD forbids to load, and keeps the rest."""
    rig = Rig.create()
    rig.permit()
    guest = rig.guest()
    swap.swap_in(rig.fpu, guest)
    fpstate_set_realloc_request(guest, TILE_DATA, 0)
    swap.swap_out(rig.fpu, guest)
    swap.swap_in(rig.fpu, guest)
    rig.cpu.write_register(2, 0, b"ymm")
    rig.cpu.write_register(18, 0, b"tile")
    switch_to(rig.cpus[1], rig.fpu)
    assert container(guest).xstate_bv == TILE_DATA | 1 << 2 | 1 << 9
    fpstate_set_realloc_request(guest, TILE_DATA, 0)
    container(guest).xfd = TILE_DATA
    swap.abandon_swap(rig.fpu, guest)
    assert guest.realloc_request is None
    assert container(guest).xstate_bv == 1 << 2 | 1 << 9
    swap.swap_in(rig.fpu, guest)
    assert rig.cpu.read_register(2).startswith(b"ymm")
    rig.check()
