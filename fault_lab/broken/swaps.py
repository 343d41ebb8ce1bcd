"""The swap-out that grows, with one step where it does not belong. The right order: ``fpu_core/swap.py``."""

from __future__ import annotations

from collections.abc import Callable

from fpu_core.context import save_fpregs_to_fpstate
from fpu_core.fpu import Fpu, FpuGuest, ReallocRequest
from fpu_core.guest import guest_container, update_guest_xfd
from fpu_core.realloc import ReallocFailed, free_replaced, replace_guest_fpstate
from fpu_core.swap import SwapResult, swap_out

Grow = Callable[[Fpu, FpuGuest, ReallocRequest], SwapResult]


def xfd_first(right: Grow) -> Grow:
    """The write of XFD takes effect, and then the room is looked for: a failure leaves tiles enabled and no place."""

    def grow(fpu: Fpu, guest: FpuGuest, request: ReallocRequest) -> SwapResult:
        update_guest_xfd(fpu, guest, request.xfd)
        return right(fpu, guest, request)

    return grow


def request_kept(right: Grow) -> Grow:
    """A failed request is not cleared: it lives on outside the run loop, and the next entry meets it."""

    def grow(fpu: Fpu, guest: FpuGuest, request: ReallocRequest) -> SwapResult:
        result = right(fpu, guest, request)
        if isinstance(result, ReallocFailed):
            guest.realloc_request = request
        return result

    return grow


def freed_first(_right: Grow) -> Grow:
    """The old container is given back before the new one is there: where none comes, the guest's memory is others'."""

    def grow(fpu: Fpu, guest: FpuGuest, request: ReallocRequest) -> SwapResult:
        guest.realloc_request = None
        free_replaced(fpu, guest_container(guest))
        result = replace_guest_fpstate(fpu, guest, request.xfeatures)
        if not isinstance(result, ReallocFailed):
            fpstate = guest_container(guest)
            save_fpregs_to_fpstate(fpu)
            fpu.need_load = True
            fpstate.xfd = request.xfd
            fpstate.xstate_bv &= ~request.xfd
        swap_out(fpu, guest)
        return result

    return grow


def not_saved(_right: Grow) -> Grow:
    """The guest is not saved into the new container: its registers are those of a guest that has just been made."""

    def grow(fpu: Fpu, guest: FpuGuest, request: ReallocRequest) -> SwapResult:
        guest.realloc_request = None
        old = guest_container(guest)
        result = replace_guest_fpstate(fpu, guest, request.xfeatures)
        if isinstance(result, ReallocFailed):
            swap_out(fpu, guest)
            return result
        fpu.need_load = True
        guest_container(guest).xfd = request.xfd
        swap_out(fpu, guest)
        free_replaced(fpu, old)
        return result

    return grow
