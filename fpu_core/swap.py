"""The swap: which container is active changes by flipping a reference; growth happens here and nowhere else.

    H  swap_in(fpu, guest)     save the user's registers if they are live, flip, XFD if it differs, restore the guest's
    G    ...
    H  swap_out(fpu, guest)    a request pending? grow (or fail to) first; then the same the other way round

The hot path is one function each way and grows by exactly one condition, the pending request. It moves nothing that is
not live: with the registers and the image both in their init state there is nothing to save and nothing to load, and
XFD is written only when it differs. PKRU, which is in use nearly always, counts for neither: no restore touches it, and
of its copy in an image only the bit in XSTATE_BV is ever looked at.

Sources: the founding mail; arch/x86/kernel/fpu/core.c, fpu_swap_kvm_fpstate().
"""

from __future__ import annotations

from fpu_core.context import restore_fpregs_from_fpstate, save_fpregs_to_fpstate
from fpu_core.errors import CoreBug
from fpu_core.fpu import Fpu, FpuGuest, ReallocRequest
from fpu_core.guest import guest_container
from fpu_core.realloc import Reallocated, ReallocFailed, free_replaced, replace_guest_fpstate
from fpu_core.xfeature import XFEATURE_MASK_PKRU

#: Components that a restore loads or initialises: PKRU is switched beside the swap.
_LIVE = ~XFEATURE_MASK_PKRU

#: What a swap-out says: None nearly always, else how the request went.
SwapResult = Reallocated | ReallocFailed | None


def swap_in(fpu: Fpu, guest: FpuGuest) -> None:
    """Make the guest's container the active one (KVM_RUN enters). ``fpu`` must be running."""
    cur = fpu.fpstate
    new = guest.fpstate
    cpu = fpu.cpu
    if new is None or new.in_use or cpu is None or fpu.task_fpstate is not None or guest.realloc_request is not None:
        raise CoreBug(f"swap-in of {guest} by {fpu}")
    # With need_load the image is the truth already and there is nothing to save: the mail's copy that is not made.
    if not fpu.need_load and not cur.is_confidential:
        if (cpu.xinuse | cur.xstate_bv) & _LIVE or cpu.eager:
            save_fpregs_to_fpstate(fpu)
        else:
            cur.xstate_bv = cpu.xinuse
    fpu.task_fpstate = cur
    fpu.fpstate = new
    new.in_use = True
    if new.is_confidential:
        cpu.xfd_update_state(new.xfd)
    elif (new.xstate_bv | cpu.xinuse) & _LIVE or cpu.eager:
        restore_fpregs_from_fpstate(cpu, fpu, new)
    elif new.xfd != cpu.xfd_cache:
        cpu.xfd_set_state(new.xfd)
    cpu.owner = fpu
    fpu.last_cpu = cpu.nr
    fpu.need_load = False


def swap_out(fpu: Fpu, guest: FpuGuest) -> SwapResult:
    """Make the user's own container the active one again (KVM_RUN leaves), honouring a pending request first.

    Returns None where nothing was requested. A failed request leaves what the same swap without one leaves.
    """
    request = guest.realloc_request
    if request is not None:
        return _swap_out_and_grow(fpu, guest, request)
    cur = fpu.fpstate
    new = fpu.task_fpstate
    cpu = fpu.cpu
    if cur is not guest.fpstate or new is None or cpu is None or not cur.in_use:
        raise CoreBug(f"swap-out of {guest} by {fpu}")
    if not fpu.need_load and not cur.is_confidential:
        if (cpu.xinuse | cur.xstate_bv) & _LIVE or cpu.eager:
            save_fpregs_to_fpstate(fpu)
        else:
            cur.xstate_bv = cpu.xinuse
    cur.in_use = False
    fpu.fpstate = new
    fpu.task_fpstate = None
    if (new.xstate_bv | cpu.xinuse) & _LIVE or cpu.eager:
        restore_fpregs_from_fpstate(cpu, fpu, new)
    elif new.xfd != cpu.xfd_cache:
        cpu.xfd_set_state(new.xfd)
    cpu.owner = fpu
    fpu.last_cpu = cpu.nr
    fpu.need_load = False
    return None


def _swap_out_and_grow(fpu: Fpu, guest: FpuGuest, request: ReallocRequest) -> SwapResult:
    """The mail's three steps: 1 allocate, 2 save the guest into the new container, 3 restore the user from its own.

    The registers are saved under the XFD they were used with; only then does the new container get the XFD that the
    pending write asks for. It reaches the register with the next swap-in, as every XFD does.
    """
    guest.realloc_request = None  # cleared on success and on failure: a retry is a new run that requests again
    old = guest_container(guest)
    result = replace_guest_fpstate(fpu, guest, request.xfeatures)
    if isinstance(result, ReallocFailed):
        swap_out(fpu, guest)
        return result
    fpstate = guest_container(guest)
    if not fpstate.is_confidential:
        save_fpregs_to_fpstate(fpu)
        fpu.need_load = True  # the new image is the truth, so what follows saves nothing more
    fpstate.xfd = request.xfd
    fpstate.xstate_bv &= ~request.xfd
    swap_out(fpu, guest)
    free_replaced(fpu, old)
    return result


def abandon_swap(fpu: Fpu, guest: FpuGuest) -> None:
    """Give the thread its own container back after a bug of ours, whatever was half done; the guest's is left as it is.

    The user's registers were saved when the guest was swapped in, so its image is the truth and nothing of it is lost.
    """
    guest.realloc_request = None
    if guest.fpstate is not None:
        guest.fpstate.in_use = False
        guest.fpstate.xstate_bv &= ~guest.fpstate.xfd
    if fpu.task_fpstate is not None:
        fpu.fpstate, fpu.task_fpstate = fpu.task_fpstate, None
        fpu.need_load = True
        fpu.last_cpu = -1
    if fpu.cpu is not None:
        fpu.cpu.xfd_err = 0
        if fpu.cpu.owner is fpu and fpu.need_load:
            fpu.cpu.owner = None
