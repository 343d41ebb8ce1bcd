"""A CPU, a thread and many vCPUs: what the swap is measured on."""

from __future__ import annotations

from dataclasses import dataclass

from fpu_core.alloc import Account
from fpu_core.config import boot
from fpu_core.context import fpregs_restore_userregs
from fpu_core.cpu import Cpu
from fpu_core.cpuid import builtin_profile
from fpu_core.fpu import Fpu, FpuGuest, FpuHost
from fpu_core.guest import alloc_guest_fpstate, guest_container, update_guest_xfd
from fpu_core.sched import switch_to


@dataclass(slots=True)
class SwapWorld:
    """One thread that runs ``guests`` in turn."""

    cpu: Cpu
    fpu: Fpu
    guests: list[FpuGuest]


def swap_world(count: int, *, profile: str = "sapphire-rapids", armed: bool) -> SwapWorld:
    """Make ``count`` default vCPUs; ``armed`` gives each the XFD of the host, so that no swap has to write it."""
    host = FpuHost(boot(builtin_profile(profile)))
    cpu = Cpu(0, host.config)
    fpu = Fpu(host, "thread", account=Account("bench", host.allocator.host))
    fpu.need_load = True
    switch_to(cpu, fpu)
    fpregs_restore_userregs(fpu)
    guests = []
    for _ in range(count):
        guest = FpuGuest()
        assert alloc_guest_fpstate(fpu, guest) is None
        if armed:
            update_guest_xfd(None, guest, host.config.init_xfd)
        guests.append(guest)
    assert all(guest_container(guest).xstate_bv == 0 for guest in guests)
    return SwapWorld(cpu, fpu, guests)
