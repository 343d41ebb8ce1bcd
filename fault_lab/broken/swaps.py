"""The swap-out that grows, with one step where it does not belong. The right order: ``fpu_core/swap.py``."""

from __future__ import annotations

from fpu_core.context import save_fpregs_to_fpstate
from fpu_core.fpu import Fpu, FpuGuest, ReallocRequest
from fpu_core.guest import guest_container
from fpu_core.realloc import ReallocFailed, free_replaced, replace_guest_fpstate
from fpu_core.swap import SwapResult, swap_out


def xfd_first(fpu: Fpu, guest: FpuGuest, request: ReallocRequest) -> SwapResult:
    """The container gets the new XFD before it has the room: a failure leaves a feature enabled that has no place."""
    guest_container(guest).xfd = request.xfd
    return _rest(fpu, guest, request)


def request_kept(fpu: Fpu, guest: FpuGuest, request: ReallocRequest) -> SwapResult:
    """A failed request is not cleared: it lives on outside the run loop, and the next entry meets it."""
    guest.realloc_request = None
    result = _rest(fpu, guest, request)
    if isinstance(result, ReallocFailed):
        guest.realloc_request = request
    return result


def freed_first(fpu: Fpu, guest: FpuGuest, request: ReallocRequest) -> SwapResult:
    """The old container is given back before the new one is there: where none comes, the guest's memory is others'."""
    guest.realloc_request = None
    old = guest_container(guest)
    free_replaced(fpu, old)
    result = replace_guest_fpstate(fpu, guest, request.xfeatures)
    if isinstance(result, ReallocFailed):
        swap_out(fpu, guest)
        return result
    _fill(fpu, guest, request)
    swap_out(fpu, guest)
    return result


def not_saved(fpu: Fpu, guest: FpuGuest, request: ReallocRequest) -> SwapResult:
    """The guest is not saved into the new container: its registers are those of a guest that has just been made."""
    guest.realloc_request = None
    old = guest_container(guest)
    result = replace_guest_fpstate(fpu, guest, request.xfeatures)
    if not isinstance(result, ReallocFailed):
        fpu.need_load = True
        guest_container(guest).xfd = request.xfd
    swap_out(fpu, guest)
    if not isinstance(result, ReallocFailed):
        free_replaced(fpu, old)
    return result


def _rest(fpu: Fpu, guest: FpuGuest, request: ReallocRequest) -> SwapResult:
    """The right order from the allocation on."""
    guest.realloc_request = None
    old = guest_container(guest)
    result = replace_guest_fpstate(fpu, guest, request.xfeatures)
    if isinstance(result, ReallocFailed):
        swap_out(fpu, guest)
        return result
    _fill(fpu, guest, request)
    swap_out(fpu, guest)
    free_replaced(fpu, old)
    return result


def _fill(fpu: Fpu, guest: FpuGuest, request: ReallocRequest) -> None:
    fpstate = guest_container(guest)
    if not fpstate.is_confidential:
        save_fpregs_to_fpstate(fpu)
        fpu.need_load = True
    fpstate.xfd = request.xfd
    fpstate.xstate_bv &= ~request.xfd
